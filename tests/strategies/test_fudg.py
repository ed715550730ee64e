"""Prefill and decode on different instances: what moves, what waits, what is left undisturbed."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.patches import StepPatch

from helpers.drawn import bursts
from simcluster.catalog.layers import ModelSpec
from simcluster.catalog.specs import LinkSpec
from simcluster.config import Environment, SloConfig
from simcluster.errors import ConfigError
from simcluster.roofline import StepShape
from simcluster.runs.result import Result
from simcluster.runs.simulate import run, simulate
from simcluster.scenario.file import resolve
from simcluster.show.plot_links import figure_of_links
from simcluster.strategies import FuDG, NoDG
from simcluster.testing import specs
from simcluster.testing.examples import examples
from simcluster.testing.laws import check_laws, union_of
from simcluster.testing.step_times import LinearStepTime, same_for_all
from simcluster.testing.toy import (
    CHUNKED,
    RECURRENT,
    SPARSE,
    TOY,
    WINDOWED,
    assert_same,
    toy_environment,
)
from simcluster.testing.workloads import shared_prefixes, workload_of
from simcluster.units import TICK_S, on_grid
from simcluster.workload import Workload

Placement = Literal["intra-node", "inter-node"]
PLACEMENTS: tuple[Placement, ...] = ("intra-node", "inter-node")
COPIES = {"intra-node": 1, "inter-node": 2}
KV_BYTES = 196_608
"""KV cache of one token of the test model."""
STEP_TIME = LinearStepTime(2.0**-10, 2.0**-8, per_context_token_s=2.0**-20)
BLOCK = 4


def link(bandwidth: float, latency_s: float = 0.0) -> LinkSpec:
    """A link that reaches its whole bandwidth; two of one bandwidth are the same wire."""
    return dataclasses.replace(
        specs.pcie4(),
        name=f"{bandwidth:g} bytes/s",
        bandwidth=bandwidth,
        efficiency=1.0,
        latency_s=latency_s,
    )


def machines(
    *,
    fabric: float = 1e9,
    pcie: float = 1e9,
    network: float = 2e8,
    latency_s: float = 1e-3,
    num_nodes: int = 2,
    gpus_per_node: int = 4,
) -> Environment:
    """Nodes with links of these bandwidths (bytes/s) and one NIC each."""
    base = specs.environment(
        engine=dataclasses.replace(specs.ideal_engine(), block_size=BLOCK, watermark=0.0),
        max_model_len=256,
        num_nodes=num_nodes,
        gpus_per_node=gpus_per_node,
    )
    cluster = dataclasses.replace(
        base.cluster,
        fabric=link(fabric, latency_s),
        pcie=link(pcie, latency_s),
        network=link(network, latency_s),
    )
    return dataclasses.replace(base, cluster=cluster)


def disaggregated(
    prefill_instances: int | None,
    decode_instances: int | None,
    *,
    num_kv_blocks: int = 3000,
    **settings: Any,
) -> FuDG:
    """Return a deployment of so many instances, by default with memory for all."""
    return FuDG(
        name="fudg",
        prefill_instances=prefill_instances,
        decode_instances=decode_instances,
        num_kv_blocks=num_kv_blocks,
        **settings,
    )


def deployed(environment: Environment, strategy: FuDG, workload: Workload) -> Result:
    """Run it."""
    return run(environment, strategy, workload, step_time=same_for_all(STEP_TIME))


WORKLOADS = bursts([0.0, 0.0, 0.01, 0.05, 0.2], most=25)


@examples(150)
@given(
    workload=WORKLOADS,
    placement=st.sampled_from(PLACEMENTS),
    pools=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    num_kv_blocks=st.sampled_from([64, 80, 2000]),
)
def test_every_byte_of_kv_moves_once_per_copy(
    workload: Workload, placement: Placement, pools: tuple[int, int], num_kv_blocks: int
) -> None:
    """Transfers carry the KV of the prompts that go on to decode, leg after leg, no more."""
    strategy = disaggregated(pools[0], pools[1], placement=placement, num_kv_blocks=num_kv_blocks)
    result = deployed(machines(), strategy, workload)
    check_laws(result)
    requests, transfers = result.columns["requests"], result.columns["transfers"]
    pool = result.columns["instances"]["pool"]
    moved = requests["output_len"] > 1
    copies = COPIES[placement]
    assert transfers["num_bytes"].sum() == KV_BYTES * requests["prompt_len"][moved].sum() * copies
    assert len(transfers["end_s"]) == copies * moved.sum()
    assert (pool[requests["prefill_instance"]] == "prefill").all()
    assert (pool[requests["decode_instance"][moved]] == "decode").all()
    for number in np.flatnonzero(moved):
        legs = np.flatnonzero(transfers["request_id"] == number)
        legs = legs[np.argsort(transfers["end_s"][legs])]
        assert transfers["requested_s"][legs[0]] >= requests["first_token_s"][number]
        later_s = transfers["requested_s"][legs[1:]] - transfers["end_s"][legs[:-1]]
        assert (later_s >= 0).all()
        if num_kv_blocks == 2000:
            assert (later_s == 0).all(), "the second copy waits for room alone"
        arrived_s = transfers["end_s"][legs[-1]]
        assert requests["first_token_s"][number] + requests["transfer_s"][number] == arrived_s
        assert requests["decode_start_s"][number] >= arrived_s
        bandwidth = 1e9 if placement == "intra-node" else min(1e9, 2e8)
        least_s = transfers["num_bytes"][legs[0]] / bandwidth
        assert transfers["end_s"][legs[0]] - transfers["start_s"][legs[0]] >= least_s
    assert (requests["transfer_s"][~moved] == 0).all()


@examples(80)
@given(workload=WORKLOADS, placement=st.sampled_from(PLACEMENTS))
def test_instances_work_exactly_while_they_hold_something_to_compute(
    workload: Workload, placement: Placement
) -> None:
    """With memory for all, a prefill or decode instance idles only when its queue is empty.

    A prefill instance is busy from routing to first token of its requests, a decode instance from
    the arrival of the KV to the last token.
    """
    strategy = disaggregated(2, 2, placement=placement)
    result = deployed(machines(), strategy, workload)
    requests, spans = result.columns["requests"], result.columns["spans"]
    joined_s = requests["first_token_s"] + requests["transfer_s"]
    moved = requests["output_len"] > 1
    for instance, pool in enumerate(result.columns["instances"]["pool"]):
        if pool == "prefill":
            mine = requests["prefill_instance"] == instance
            held = union_of(requests["routed_s"][mine], requests["first_token_s"][mine])
        else:
            mine = moved & (requests["decode_instance"] == instance)
            held = union_of(joined_s[mine], requests["last_token_s"][mine])
        steps = spans["instance"] == instance
        assert np.array_equal(held, union_of(spans["start_s"][steps], spans["end_s"][steps]))
        assert (spans["kind"][steps] == pool).all()


@examples(80)
@given(workload=WORKLOADS, placement=st.sampled_from(PLACEMENTS))
def test_decodes_do_not_disturb_prefills(workload: Workload, placement: Placement) -> None:
    """What disaggregation is for: TTFT is that of an instance whose answers all have one token."""
    fudg = deployed(
        machines(),
        disaggregated(1, 1, placement=placement, first_token="prefill"),
        workload,
    )
    alone = run(
        machines(),
        NoDG(name="prefill", instances=1, num_kv_blocks=3000),
        dataclasses.replace(workload, output_len=np.ones_like(workload.output_len)),
        step_time=same_for_all(STEP_TIME),
    )
    assert np.array_equal(fudg.columns["requests"]["ttft_s"], alone.columns["requests"]["ttft_s"])


@pytest.mark.parametrize(("network", "least_s"), [("10gbe", 0.6), ("ib-400", 0.13)])
def test_ttft_holds_the_kv_transfer_as_users_of_current_engines_see_it(
    network: str, least_s: float
) -> None:
    """3,072 tokens of Qwen2.5-14B are 604 MB: 0.48 s on 10 Gbit/s, beside a prefill of 0.12 s."""
    document = {
        "model": {"name": "qwen2.5-14b"},
        "cluster": {"gpu": "H800", "nodes": 2, "gpus_per_node": 1, "network": network},
        "engine": {"profile": "vllm-0.19", "max_model_len": 8192},
        "workload": {
            "lengths": {"kind": "fixed", "prompt_len": 3072, "output_len": 100},
            "arrivals": "constant",
            "num_requests": 5,
        },
        "strategy": [
            {"name": "1P1D", "kind": "fudg", "placement": "inter-node", "pool": "none"},
        ],
    }
    ttft_s = simulate(resolve(document), rate_rps=0.2).columns["requests"]["ttft_s"]
    sent_s = 2 * 48 * 8 * 128 * 2 * 3072 / (1.25e9 if network == "10gbe" else 50e9)
    assert (ttft_s > max(least_s, sent_s)).all()
    assert (ttft_s < 1.5 * least_s).all()


@pytest.mark.parametrize("redoes", [False, True])
def test_a_hand_over_takes_a_proxy_and_the_step_that_redoes_the_last_token(redoes: bool) -> None:
    """Of a lone request: both pass between the arrival of its KV and its first token."""
    where = machines()
    engine = dataclasses.replace(where.engine, handover_s=0.25, redoes_last_token=redoes)
    there = dataclasses.replace(where, engine=engine)
    strategy, load = disaggregated(1, 1), workload_of([0.0], 20, 5)
    at_once, later = (
        {
            name: column[0]
            for name, column in deployed(w, strategy, load).columns["requests"].items()
        }
        for w in (where, there)
    )
    step_s = STEP_TIME.step_s(StepShape(1, 21, (), 1, 21)) if redoes else 0.0
    assert later["first_output_s"] == at_once["first_output_s"] + 0.25 + step_s
    assert later["last_token_s"] == at_once["last_token_s"] + 0.25 + step_s
    assert later["transfer_s"] == at_once["transfer_s"]


def test_pipelines_leave_out_the_step_that_redoes_the_last_token() -> None:
    """Their batches have no step of their own to go by; it is said where the key is documented."""
    where = machines()
    there = dataclasses.replace(
        where, engine=dataclasses.replace(where.engine, redoes_last_token=True)
    )
    strategy, load = disaggregated(1, 1, pp_size=2), workload_of([0.0], 20, 5)
    plain, same = (run(w, strategy, load).columns["requests"] for w in (where, there))
    assert same["first_output_s"][0] == plain["first_output_s"][0]


@examples(60)
@given(workload=WORKLOADS, placement=st.sampled_from(PLACEMENTS), redoes=st.booleans())
def test_hand_overs_agree_at_both_resolutions(
    workload: Workload, placement: Placement, redoes: bool
) -> None:
    """The step that is redone has the load of the last boundary, at whatever resolution."""
    engine = dataclasses.replace(
        specs.vllm_engine(), block_size=BLOCK, handover_s=2e-3, redoes_last_token=redoes
    )
    where = dataclasses.replace(machines(), engine=engine)
    strategy = disaggregated(2, 2, placement=placement, num_kv_blocks=80)
    span, step = (
        run(where, strategy, workload, step_time=same_for_all(STEP_TIME), resolution=resolution)
        for resolution in ("span", "step")
    )
    check_laws(span)
    assert_same(span, step)


def uphill_ends(result: Result) -> list[float]:
    """When the KV of each request reached the pool, by request."""
    transfers = result.columns["transfers"]
    uphill = np.array([path.endswith("nic in") for path in transfers["path"]])
    order = np.argsort(transfers["request_id"][uphill])
    ends: list[float] = transfers["end_s"][uphill][order].tolist()
    return ends


ONE_NIC = machines(pcie=1e12, network=2e8, num_nodes=3, gpus_per_node=2)
ALONE_S = 200 * KV_BYTES / 2e8
"""200 tokens over a NIC."""


def test_prefill_instances_of_a_node_share_its_nic_on_the_way_out() -> None:
    """Two prompts that end together, bound for different nodes, take twice as long as one.

    Prefills stand on node 0, decodes on nodes 2, 2, 1; the first request keeps the first decode
    instance busy, so that the other two go to the second and third.
    """
    strategy = FuDG(name="fudg", prefill_instances=2, decode_instances=3, placement="inter-node")
    result = deployed(ONE_NIC, strategy, workload_of([0.0, 0.25, 0.25], 200, [56, 9, 9]))
    nodes = result.columns["instances"]["node"]
    assert nodes[result.columns["requests"]["prefill_instance"]].tolist() == [0, 0, 0]
    assert sorted(nodes[result.columns["requests"]["decode_instance"]][1:]) == [1, 2]
    ready_s = 200 * STEP_TIME.per_prefill_token_s + on_grid(2e-3)
    both_s = 0.25 + ready_s + 2 * ALONE_S
    expected = [ready_s + ALONE_S, both_s, both_s]
    assert uphill_ends(result) == pytest.approx(expected, abs=2 * TICK_S)


def test_prefill_instances_of_all_nodes_share_the_nic_on_the_way_in() -> None:
    """Three prompts from two nodes for one node: a third of its NIC each."""
    strategy = FuDG(name="fudg", prefill_instances=3, decode_instances=1, placement="inter-node")
    result = deployed(ONE_NIC, strategy, workload_of(np.zeros(3), 200, 9))
    assert result.columns["instances"]["node"].tolist() == [0, 0, 1, 2]
    ready_s = 200 * STEP_TIME.per_prefill_token_s + on_grid(2e-3)
    assert uphill_ends(result) == pytest.approx([ready_s + 3 * ALONE_S] * 3, abs=2 * TICK_S)


def test_inside_a_node_nobody_shares_a_nic() -> None:
    """Over the fabric, pairs of instances on different nodes do not slow each other down."""
    strategy = FuDG(name="fudg", prefill_instances=2, decode_instances=2)
    result = deployed(machines(), strategy, workload_of([0.0, 0.0], 200, 9))
    nodes = result.columns["instances"]["node"]
    requests = result.columns["requests"]
    assert (
        nodes[requests["prefill_instance"]].tolist()
        == nodes[requests["decode_instance"]].tolist()
        == [0, 1]
    )
    start_s = 200 * STEP_TIME.per_prefill_token_s + on_grid(1e-3)
    lasted = result.columns["transfers"]["end_s"] - start_s
    assert np.abs(lasted - 200 * KV_BYTES / 1e9).max() <= 2 * TICK_S


@pytest.mark.parametrize(
    ("num_prefill", "num_decode", "nodes"),
    [
        (1, 1, [0, 1]),
        (4, 4, [0, 0, 0, 0, 1, 1, 1, 1]),
        (2, 6, [0, 0, 1, 1, 1, 1, 0, 0]),
        (6, 2, [0, 0, 0, 0, 1, 1, 1, 1]),
    ],
)
def test_pools_between_nodes_stand_apart_where_they_can(
    num_prefill: int, num_decode: int, nodes: list[int]
) -> None:
    """Prefills fill the first nodes, decodes the last."""
    strategy = FuDG(
        name="fudg",
        prefill_instances=num_prefill,
        decode_instances=num_decode,
        placement="inter-node",
    )
    result = deployed(machines(), strategy, workload_of([0.0], 10, 2))
    assert result.columns["instances"]["node"].tolist() == nodes


def test_prefill_stalls_when_decode_has_no_room() -> None:
    """DistServe pulls: what is not pulled keeps its blocks, and a full prefill pool waits.

    Pools of 64 blocks of 4 tokens. Three prompts of 200 tokens (50 blocks each) and answers of 56
    tokens: the decode side holds one at a time, so the second's KV stays on the prefill side until
    the first has ended, and only when it has left can the third's prefill begin.
    """
    environment = machines(latency_s=0.0)
    strategy = disaggregated(1, 1, num_kv_blocks=64)
    result = deployed(environment, strategy, workload_of(np.zeros(3), 200, 56))
    requests, transfers = result.columns["requests"], result.columns["transfers"]
    prefill_s = 200 * STEP_TIME.per_prefill_token_s
    contexts = np.arange(201, 256)
    decode_s = 55 * STEP_TIME.per_decode_step_s + STEP_TIME.per_context_token_s * contexts.sum()
    move_s = math.ceil(200 * KV_BYTES / 1e9 / TICK_S) * TICK_S
    # The second is prefilled once the first has left, the third once the second has.
    first_token = [prefill_s, prefill_s + move_s + prefill_s]
    arrived = [prefill_s + move_s]
    ended = [arrived[0] + decode_s]
    arrived.append(max(first_token[1], ended[0]) + move_s)
    first_token.append(arrived[1] + prefill_s)
    ended.append(arrived[1] + decode_s)
    arrived.append(max(first_token[2], ended[1]) + move_s)
    ended.append(arrived[2] + decode_s)
    assert ended[0] > first_token[1], "the second does wait"
    assert requests["first_token_s"].tolist() == first_token
    assert requests["last_token_s"].tolist() == pytest.approx(ended, abs=4 * TICK_S)
    assert transfers["end_s"].tolist() == pytest.approx(arrived, abs=4 * TICK_S)
    assert requests["scheduled_s"][2] == pytest.approx(arrived[1], abs=4 * TICK_S)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_queue_in_front_of_a_full_prefill_pool_moves_on(placement: Placement) -> None:
    """Blocks that a transfer frees let in whoever waits in front, with no step to announce it."""
    strategy = disaggregated(1, 2, placement=placement, router="shared-queue", num_kv_blocks=64)
    environment = machines(network=5e7, fabric=5e7)
    result = deployed(environment, strategy, workload_of(np.zeros(6), 200, 2))
    assert (result.columns["requests"]["status"] == "finished").all()


def test_kv_goes_to_the_decode_instance_with_fewer_tokens() -> None:
    """Least loaded, what is still on its way included: two prompts at once go to two instances."""
    strategy = disaggregated(1, 3)
    environment = machines(gpus_per_node=8, num_nodes=1, fabric=1e8)
    result = deployed(environment, strategy, workload_of(np.zeros(9), 25, 50))
    _, counts = np.unique(result.columns["requests"]["decode_instance"], return_counts=True)
    assert counts.tolist() == [3, 3, 3]


def test_a_transfer_that_waits_behind_a_preempted_request_follows_it() -> None:
    """Memory left over once a preempted request is back in is used for the next transfer at once.

    X and A outgrow 64 blocks, A is preempted and comes back when X has ended; B, whose KV would
    have fitted beside A all along, then moves without waiting for A's end.
    """
    environment = machines(fabric=1e11)
    strategy = disaggregated(1, 1, num_kv_blocks=64)
    workload = workload_of([0.0, 0.0, 0.35], [100, 100, 60], [100, 100, 5])
    result = deployed(environment, strategy, workload)
    requests, transfers = result.columns["requests"], result.columns["transfers"]
    x, a, b = range(3)
    assert requests["num_preemptions"].tolist() == [0, 1, 0]
    spans = result.columns["spans"]
    recomputed = (spans["instance"] == 1) & (spans["num_prefills"] > 0)
    back_s = spans["end_s"][recomputed].tolist()
    assert len(back_s) == 1
    assert requests["first_token_s"][b] < requests["last_token_s"][x] < back_s[0]
    moved = transfers["request_id"] == b
    assert transfers["requested_s"][moved].tolist() == back_s
    assert requests["last_token_s"][b] < requests["last_token_s"][a]


# --- DistServe's own scheduling ------------------------------------------------------------------


SLOW_DECODES = LinearStepTime(2.0**-13, 2.0**-6)


def stalled(share: float | None) -> Result:
    """Seven prompts of 200 tokens (50 blocks), pools of 200 blocks, one decode at a time."""
    strategy = disaggregated(1, 1, num_kv_blocks=200, max_num_seqs=1, waiting_block_share=share)
    environment = machines(latency_s=0.0, fabric=1e11)
    work = workload_of(np.zeros(7), 200, 56)
    return run(environment, strategy, work, step_time=same_for_all(SLOW_DECODES))


def test_prefill_stalls_when_the_decode_side_will_not_pull() -> None:
    """DistServe: what waits on the decode side bounds what it pulls, and so what prefills.

    The first decodes (64 blocks at its end), the second is pulled and waits: 50 blocks, not below
    5 % of 200. The next four fill the prefill side, and the last prompt begins when the first
    answer has ended, the second request has joined and the third one's KV has left. Without the
    limit the decode side takes what fits: the last prompt never waits, and answers lose their KV.
    """
    prefill_s = 200 * SLOW_DECODES.per_prefill_token_s
    decode_s = 55 * SLOW_DECODES.per_decode_step_s
    move_s = math.ceil(200 * KV_BYTES / 1e11 / TICK_S) * TICK_S
    result = stalled(0.05)
    requests, transfers = result.columns["requests"], result.columns["transfers"]
    assert requests["first_token_s"][:6].tolist() == [k * prefill_s for k in range(1, 7)]
    ends = [prefill_s + move_s + k * decode_s for k in range(1, 8)]
    assert requests["last_token_s"].tolist() == ends
    pulled = np.zeros(7)
    pulled[transfers["request_id"]] = transfers["requested_s"]
    assert pulled.tolist() == [prefill_s, 2 * prefill_s, *ends[:5]]
    assert requests["scheduled_s"][6] == ends[0] + move_s
    free = stalled(None).columns["requests"]
    assert free["first_token_s"].tolist() == [k * prefill_s for k in range(1, 8)]
    assert free["num_preemptions"].sum() > requests["num_preemptions"].sum() == 0


@examples(60)
@given(
    workload=WORKLOADS,
    placement=st.sampled_from(PLACEMENTS),
    num_kv_blocks=st.sampled_from([80, 200]),
    max_num_seqs=st.sampled_from([1, 3, 64]),
    share=st.sampled_from([0.02, 0.1, 0.3]),
)
def test_the_decode_side_pulls_only_below_its_share_of_waiting_blocks(
    workload: Workload, placement: Placement, num_kv_blocks: int, max_num_seqs: int, share: float
) -> None:
    """Whenever blocks are reserved, those reserved before for requests that wait are below it."""
    strategy = disaggregated(
        2,
        1,
        placement=placement,
        num_kv_blocks=num_kv_blocks,
        max_num_seqs=max_num_seqs,
        prefill_max_num_seqs=2,
        waiting_block_share=share,
    )
    result = deployed(machines(), strategy, workload)
    check_laws(result)
    requests, transfers = result.columns["requests"], result.columns["transfers"]
    assert (requests["status"] == "finished").all()
    if requests["num_preemptions"].any():
        return  # a recomputed request delays the first step of one that has joined
    last = {}  # of the copies of a request the last one needs the blocks
    for number, asked_s in zip(transfers["request_id"], transfers["requested_s"], strict=True):
        last[number] = max(asked_s, last.get(number, 0.0))
    blocks = -(-requests["prompt_len"] // BLOCK)
    for asked_s in last.values():
        waiting = [
            blocks[other]
            for other, since_s in last.items()
            if since_s < asked_s < requests["decode_start_s"][other]
        ]
        assert sum(waiting) < share * num_kv_blocks


@examples(60)
@given(workload=WORKLOADS, placement=st.sampled_from(PLACEMENTS))
def test_without_pressure_the_limits_of_distserve_change_nothing(
    workload: Workload, placement: Placement
) -> None:
    """Where all that could wait is below the share, every frame is the same, bit by bit."""
    plain = disaggregated(2, 2, placement=placement, num_kv_blocks=2000)
    limited = dataclasses.replace(
        plain,
        waiting_block_share=1.0,
        prefill_max_num_seqs=25,
        prefill_max_num_batched_tokens=machines().engine.max_num_batched_tokens or 2048,
    )
    one, other = (deployed(machines(), s, workload).columns for s in (plain, limited))
    for name in ("requests", "spans", "transfers", "segments", "instances"):
        for column, values in one[name].items():
            assert list(map(str, values)) == list(map(str, other[name][column])), (name, column)


def test_the_batches_of_the_context_stage_have_limits_of_their_own() -> None:
    """Two prompts a batch by number, two by tokens; decodes are limited by `max_num_seqs` alone."""
    work = workload_of(np.zeros(6), 100, 50)
    for settings_ in ({"prefill_max_num_seqs": 2}, {"prefill_max_num_batched_tokens": 256}):
        strategy = disaggregated(1, 1, num_kv_blocks=2000, max_num_seqs=6, **settings_)
        environment, step_time = machines(fabric=1e11), same_for_all(SLOW_DECODES)
        spans = run(environment, strategy, work, step_time=step_time).columns["spans"]
        assert spans["num_prefills"][spans["kind"] == "prefill"].tolist() == [2, 2, 2]
        assert spans["num_decodes"].max() == 6


# --- MoonCake's own scheduling -------------------------------------------------------------------


CONDUCTED = disaggregated(
    2, 1, placement="inter-node", prefill_max_num_seqs=1, prefill_choice="ttft"
)
"""Prompts one by one, where the estimate of the TTFT is exact."""


def with_targets(ttft_s: float | None = None, tpot_s: float | None = None) -> Environment:
    """The machines with targets."""
    return dataclasses.replace(machines(), slo=SloConfig(ttft_s=ttft_s, tpot_s=tpot_s))


def free_at(requests: dict[str, np.ndarray], instance: int, number: int) -> float:
    """When `instance` has prefilled all that was sent there before request `number` (s)."""
    mine = requests["prefill_instance"][:number] == instance
    ends: float = requests["first_token_s"][:number][mine].max(initial=0.0)
    return max(ends, float(requests["arrival_s"][number]))


@examples(80)
@given(workload=WORKLOADS, ttft_s=st.sampled_from([None, 0.05, 0.15, 0.3]))
def test_a_request_goes_where_its_first_token_comes_first(
    workload: Workload, ttft_s: float | None
) -> None:
    """By the times at which prefills really end; rejected is who would miss the target anywhere."""
    strategy = dataclasses.replace(CONDUCTED, early_rejection=ttft_s is not None)
    result = deployed(with_targets(ttft_s), strategy, workload)
    check_laws(result)
    requests = result.columns["requests"]
    for number in range(workload.num_requests):
        prefill_s = requests["prompt_len"][number] * STEP_TIME.per_prefill_token_s
        best_s = min(free_at(requests, k, number) for k in range(2)) + prefill_s
        ttft_there_s = best_s - requests["arrival_s"][number]
        rejected = requests["status"][number] == "rejected"
        assert rejected == (ttft_s is not None and ttft_there_s > ttft_s)
        if not rejected:
            assert requests["first_token_s"][number] == best_s
    if ttft_s is None:
        assert (requests["status"] == "finished").all(), "nobody is rejected unless asked for"


def test_the_estimate_knows_how_far_a_prefill_is() -> None:
    """A prompt goes behind the longer one that is nearly done: 0.025 s are left of it, not 0.106.

    The load, in tokens, is 200 there and 180 elsewhere until the prefills end.
    """
    work = workload_of([0.0, 0.1, 0.17], [200, 180, 100], 2)
    chosen = deployed(machines(), CONDUCTED, work).columns["requests"]["prefill_instance"]
    assert chosen.tolist() == [0, 1, 0]
    plain = dataclasses.replace(CONDUCTED, prefill_choice="router")
    by_load = deployed(machines(), plain, work).columns["requests"]["prefill_instance"]
    assert by_load.tolist() == [0, 1, 1]


@pytest.mark.parametrize(("cached", "expected"), [(True, 0), (False, 1)])
def test_a_cached_prefix_counts_by_the_prefill_time_that_it_saves(
    cached: bool, expected: int
) -> None:
    """The last prompt waits for the instance that has most of it, since that is sooner.

    160 of its 200 tokens are in the cache of instance 0, which has 0.097 s left of another prompt:
    0.097 + 0.039 s there, 0.195 s on the idle instance 1.
    """
    prompts = [160, 10, 120, 200]
    hashes = shared_prefixes([0, 1, 2, 0], [160, 0, 0, 160], prompts, tokens_per_id=BLOCK)
    work = dataclasses.replace(workload_of([0.0, 0.4, 0.5, 0.52], prompts, 2), hashes=hashes)
    strategy = dataclasses.replace(CONDUCTED, prefix_caching=cached)
    requests = deployed(machines(), strategy, work).columns["requests"]
    assert requests["prefill_instance"].tolist() == [0, 1, 0, expected]
    assert requests["num_cached_tokens"].tolist() == [0, 0, 0, 160 * cached]


def test_a_request_that_would_slow_the_decodes_too_much_is_rejected() -> None:
    """The second would make a step of two sequences with 204 tokens; the third comes alone."""

    def step_s(context: int) -> float:
        return STEP_TIME.per_decode_step_s + context * STEP_TIME.per_context_token_s

    work = workload_of([0.0, 0.3, 2.0], 100, 56)
    strategy = dataclasses.replace(CONDUCTED, early_rejection=True)
    limit = step_s(150)
    status = deployed(with_targets(tpot_s=limit), strategy, work).columns["requests"]["status"]
    assert status.tolist() == ["finished", "rejected", "finished"]
    status = deployed(with_targets(tpot_s=step_s(300)), strategy, work).columns["requests"][
        "status"
    ]
    assert (status == "finished").all()


def test_early_rejection_without_targets_is_refused() -> None:
    """There is nothing to miss."""
    strategy = dataclasses.replace(CONDUCTED, early_rejection=True)
    with pytest.raises(ConfigError, match="there is no target that could be missed"):
        deployed(with_targets(), strategy, workload_of([0.0], 100, 2))


@examples(40)
@given(workload=WORKLOADS)
def test_early_rejection_with_loose_targets_changes_nothing(workload: Workload) -> None:
    """Bit by bit, and nobody is rejected."""
    plain = dataclasses.replace(CONDUCTED, prefill_max_num_seqs=None, num_kv_blocks=64)
    loose = dataclasses.replace(plain, early_rejection=True)
    where = with_targets(ttft_s=1e6, tpot_s=1e6)
    one, other = (deployed(where, s, workload).columns for s in (plain, loose))
    assert (one["requests"]["status"] == "finished").all()
    for name in ("requests", "spans", "transfers", "segments", "instances"):
        for column, values in one[name].items():
            assert list(map(str, values)) == list(map(str, other[name][column])), (name, column)


# --- transfer modes ------------------------------------------------------------------------------


def one_request(**settings: object) -> Result:
    """One prompt of 200 tokens from one prefill to one decode instance, in a cluster of three."""
    strategy = disaggregated(1, 1, **settings)
    environment = machines(num_nodes=3, gpus_per_node=2, pcie=4e8, network=2e8, fabric=1e8)
    return deployed(environment, strategy, workload_of([0.0], 200, 9))


PREFILL_S = 200 * STEP_TIME.per_prefill_token_s
NUM_BYTES = 200 * KV_BYTES
LATENCY_S = on_grid(1e-3)


def test_pull_is_one_copy_and_push_two() -> None:
    """GPU to GPU at the NIC's speed; through a pool over NIC and PCIe; a third node: two NICs."""
    nic_s, pcie_s = NUM_BYTES / 2e8, NUM_BYTES / 4e8
    expected = {
        "none": [nic_s + 2 * LATENCY_S],
        "decode-node": [nic_s + 2 * LATENCY_S, pcie_s + LATENCY_S],
        "remote": [nic_s + 2 * LATENCY_S, nic_s + 2 * LATENCY_S],
    }
    for pool, seconds in expected.items():
        result = one_request(placement="inter-node", pool=pool)
        transfers, requests = result.columns["transfers"], result.columns["requests"]
        lasted = transfers["end_s"] - transfers["requested_s"]
        assert lasted.tolist() == pytest.approx(seconds, abs=3 * TICK_S)
        assert requests["transfer_s"][0] == pytest.approx(sum(seconds), abs=6 * TICK_S)
    crossed = "\n".join(
        one_request(placement="inter-node", pool="remote").columns["transfers"]["path"]
    )
    assert crossed.count("nic out") == crossed.count("nic in") == 2


def test_layer_by_layer_hides_the_transfer_behind_the_prefill() -> None:
    """What is left after the prefill is the last layer's share, where the link is fast enough."""
    num_layers = machines().model.spec.num_layers
    fast = {"placement": "intra-node", "pool": "decode-node"}
    result = one_request(**fast, transfer="layerwise")
    transfers, requests = result.columns["transfers"], result.columns["requests"]
    first, last = np.argsort(transfers["start_s"][:2])
    assert transfers["num_bytes"][:2].sum() == NUM_BYTES
    assert transfers["num_bytes"][last] == NUM_BYTES // num_layers
    first_layer_s = PREFILL_S / num_layers
    assert transfers["requested_s"][first] == pytest.approx(first_layer_s, abs=TICK_S)
    assert requests["first_token_s"][0] == PREFILL_S
    last_layer_s = LATENCY_S + NUM_BYTES // num_layers / 4e8
    assert transfers["requested_s"][last] == PREFILL_S
    assert transfers["end_s"][last] == pytest.approx(PREFILL_S + last_layer_s, abs=2 * TICK_S)
    slow = one_request(placement="inter-node", transfer="layerwise", pool="none")
    end_s = slow.columns["transfers"]["end_s"].max()
    sent_s = NUM_BYTES / 2e8 + 4 * LATENCY_S
    assert end_s == pytest.approx(max(first_layer_s + sent_s, PREFILL_S), abs=5 * TICK_S)


PER_TOKEN = 2 * 2 * 4 * 64
"""KV cache of one token in one layer of a toy model with four KV heads of 64 (bytes)."""


@pytest.mark.parametrize(
    ("model", "moved", "last_layer"),
    [
        (TOY, 2 * 100 * PER_TOKEN, 100 * PER_TOKEN),
        # A window of 24 tokens; the fourth token of a chunk of 32; matrices and 3 columns.
        (WINDOWED, (24 + 100) * PER_TOKEN, 100 * PER_TOKEN),
        (CHUNKED, (3 * 4 + 100) * PER_TOKEN, 100 * PER_TOKEN),
        (RECURRENT, 8 * 32 * 16 * 2 + 3 * 384 * 2 + 100 * PER_TOKEN, 100 * PER_TOKEN),
        # 64 + 16 numbers of 2 bytes; 32 of one byte and a 32-bit scale for the index.
        (SPARSE, 2 * 100 * (160 + 36), 100 * (160 + 36)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_layers_keep_is_what_moves(model: ModelSpec, moved: int, last_layer: int) -> None:
    """Windows and chunks as far as they reach, a state as it is, and all of a latent vector."""
    where = toy_environment(model=model)
    one = workload_of([0.0], 100, 9)
    whole = FuDG(name="s", prefill_instances=1, decode_instances=1)
    by_layer = dataclasses.replace(whole, transfer="layerwise")
    assert run(where, whole, one).columns["transfers"]["num_bytes"].tolist() == [moved]
    pieces = run(where, by_layer, one).columns["transfers"]["num_bytes"].tolist()
    assert sorted(pieces) == sorted([last_layer, moved - last_layer])


def test_a_pool_takes_the_kv_while_the_decode_side_is_full() -> None:
    """Push: the prefill side is free again after the first copy, whoever waits on the other side.

    As `test_prefill_stalls_when_decode_has_no_room`, with a pool between: nothing stalls.
    """
    environment = machines(latency_s=0.0)
    strategy = disaggregated(1, 1, num_kv_blocks=64, pool="decode-node")
    result = deployed(environment, strategy, workload_of(np.zeros(3), 200, 56))
    move_s = math.ceil(200 * KV_BYTES / 1e9 / TICK_S) * TICK_S
    expected = [PREFILL_S + k * (PREFILL_S + move_s) for k in range(3)]
    assert result.columns["requests"]["first_token_s"].tolist() == expected
    assert (result.columns["requests"]["status"] == "finished").all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool": "remote", "placement": "inter-node"}, "needs a node beside those"),
        ({"transfer": "layerwise", "pp_size": 2}, "is not there for pipelines"),
        ({"early_rejection": True}, "early_rejection = True: needs an estimate"),
        (
            {"prefill_choice": "ttft", "router": "round-robin"},
            "router = 'round-robin': does not go",
        ),
        ({"prefill_choice": "ttft", "status_interval_s": 0.1}, "status_interval_s = 0.1: does not"),
        ({"prefill_choice": "ttft", "pp_size": 2}, "pp_size = 2: does not go"),
        (
            {"prefill_max_num_batched_tokens": 255},
            "prefill_max_num_batched_tokens = 255: a prompt of",
        ),
    ],
)
def test_transfers_that_cannot_be_are_refused(settings: dict[str, object], message: str) -> None:
    """One line with the way out."""
    strategy = disaggregated(None, None, **settings)
    with pytest.raises(ConfigError, match=message):
        deployed(machines(), strategy, workload_of([0.0], 200, 9))


def test_nodes_without_a_network_are_refused() -> None:
    """Before anything runs, with the nodes that cannot reach each other."""
    base = machines()
    islands = dataclasses.replace(base, cluster=dataclasses.replace(base.cluster, network=None))
    inside = disaggregated(None, None)
    assert deployed(islands, inside, workload_of([0.0], 200, 9)).end_s > 0
    between = dataclasses.replace(inside, placement="inter-node")
    with pytest.raises(ConfigError, match="no path from node 0 to node 1"):
        deployed(islands, between, workload_of([0.0], 200, 9))


def test_eight_prefill_and_eight_decode_instances_are_balanced() -> None:
    """Shares of the work within a tenth of each other on either side: nobody is left idle."""
    rng = np.random.default_rng(0)
    count = 2000
    work = workload_of(
        np.cumsum(rng.exponential(0.02, count)),
        rng.integers(20, 200, count),
        rng.integers(20, 50, count),
    )
    environment = machines(num_nodes=2, gpus_per_node=8, fabric=1e10)
    for placement in PLACEMENTS:
        strategy = disaggregated(8, 8, placement=placement)
        result = deployed(environment, strategy, work)
        requests, pool = result.columns["requests"], result.columns["instances"]["pool"]
        for role, tokens in (("prefill", "prompt_len"), ("decode", "output_len")):
            which = requests[f"{role}_instance"]
            shares = np.bincount(which, weights=requests[tokens], minlength=16)[pool == role]
            assert len(shares) == 8
            assert np.abs(shares / shares.mean() - 1).max() < 0.1


def test_links_carry_what_the_transfers_moved() -> None:
    """Every byte of a transfer on every link of its path, never faster than the link."""
    rng = np.random.default_rng(1)
    work = workload_of(np.cumsum(rng.exponential(0.2, 60)), rng.integers(1, 150, 60), 9)
    strategy = disaggregated(2, 2, placement="inter-node")
    result = deployed(machines(), strategy, work)
    links, transfers = result.columns["links"], result.columns["transfers"]
    assert links["utilisation"].max() <= 1 + 1e-9
    assert links["utilisation"].max() > 0.3
    assert links["end_s"].max() == result.end_s
    for name in set(links["link"]):
        crossed = [name in path.split(" > ") for path in transfers["path"]]
        carried = links["num_bytes"][links["link"] == name].sum()
        assert carried == pytest.approx(transfers["num_bytes"][crossed].sum(), rel=1e-6)


def test_the_picture_of_links_shows_the_busiest_and_every_kind_of_copy() -> None:
    """Curves of the links frame, highest first; points of the transfers frame, copy by copy."""
    rng = np.random.default_rng(1)
    work = workload_of(np.cumsum(rng.exponential(0.2, 60)), rng.integers(1, 150, 60), 9)
    strategy = disaggregated(2, 2, placement="inter-node")
    result = deployed(machines(), strategy, work)
    figure = figure_of_links({"fudg": result.links}, {"fudg": result.transfers})
    levels, points = figure.axes
    shown = [patch.get_label() for patch in levels.patches]
    means = result.links.groupby("link")["utilisation"].mean()
    assert shown[0] == means.idxmax()
    assert shown == sorted(shown, key=lambda name: -means[name])
    first = levels.patches[0]
    assert isinstance(first, StepPatch)
    values = result.links.loc[result.links["link"] == shown[0], "utilisation"]
    assert np.array_equal(first.get_data().values, values)
    drawn = [len(dots.get_offsets()) for dots in points.collections]
    assert sum(drawn) == len(result.transfers)
    assert [dots.get_label() for dots in points.collections] == [
        "pcie out > nic out > nic in",
        "host out > pcie in",
    ]
