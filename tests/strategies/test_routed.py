"""Several models behind a router: conservation, agreement of resolutions, traps, bad input."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import simcluster
from simcluster.config import ClusterConfig, Environment, ModelConfig, RunConfig
from simcluster.errors import ConfigError
from simcluster.frames.by_group import group_summaries
from simcluster.frames.unroll import steps
from simcluster.quality import curve
from simcluster.routing.shares import FixedShares
from simcluster.runs.cell import Cell, identity
from simcluster.runs.simulate import run
from simcluster.strategies import FuDG, NoDG, PaDG, Routed, ServingGroup
from simcluster.testing.examples import examples
from simcluster.testing.laws import check_laws
from simcluster.testing.specs import (
    environment,
    h100,
    nvlink3,
    vllm_engine,
)
from simcluster.testing.toy import MAX_MODEL_LEN, STRICT, TOY, assert_same, toy, with_room
from simcluster.units import grid_array
from simcluster.workload import Workload

SMALL = dataclasses.replace(TOY, name="small")
LARGE = toy("large", num_layers=5, sliding_window=24, num_sliding_layers=2)
A100, H100 = "A100-80GB SXM", "H100-80GB SXM"


def two_models() -> Environment:
    """Two models and two GPU types: two nodes of eight A100, one of four H100."""
    machines = environment(engine=vllm_engine(), slo=STRICT)
    more: ClusterConfig = dataclasses.replace(
        machines.cluster,
        gpu=h100(),
        num_nodes=1,
        gpus_per_node=4,
        fabric=dataclasses.replace(nvlink3(), name="nvlink4", bandwidth=450e9),
        price_per_gpu_hour=3.0,
    )
    return dataclasses.replace(
        machines,
        model=ModelConfig(spec=LARGE, max_model_len=MAX_MODEL_LEN),
        extra_models=(ModelConfig(spec=SMALL, max_model_len=MAX_MODEL_LEN),),
        extra_clusters=(more,),
    )


def load(requests: list[tuple[float, int, int, float]], concurrency: int | None = None) -> Workload:
    """Gaps (s), prompts, outputs and scores as a workload."""
    gaps, prompts, outputs, scores = zip(*requests, strict=True)
    return Workload(
        arrival_s=np.zeros(len(gaps)) if concurrency else grid_array(np.cumsum(gaps)),
        prompt_len=np.array(prompts),
        output_len=np.array(outputs),
        rejected=np.zeros(len(gaps), bool),
        concurrency=concurrency,
        score=np.array(scores),
    )


REQUESTS = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.integers(0, 40).map(lambda k: k * 2.0**-10)),
        st.integers(1, 100),
        st.integers(1, 50),
        st.floats(0, 1),
    ),
    min_size=1,
    max_size=25,
)


@st.composite
def servings(draw: st.DrawFn, number: int) -> Any:
    """A pool of four GPUs at most, with few enough blocks to preempt."""
    pp_size = draw(st.sampled_from([1, 1, 2]))
    blocks = draw(st.sampled_from([None, 10, 13, 24]))
    common: dict[str, Any] = {
        "name": f"pool-{number}",
        "pp_size": pp_size,
        "num_kv_blocks": None if blocks is None else pp_size * blocks,
        "max_num_seqs": draw(st.sampled_from([1, 3, 8, 64])),
    }
    most = 2 // pp_size
    kind = draw(st.sampled_from(["nodg", "chunked", "padg", "fudg"]))
    if kind == "nodg":
        return NoDG(**common, instances=draw(st.integers(1, most)))
    if kind == "chunked":
        return NoDG(**common, instances=draw(st.integers(1, most)), scheduler="chunked")
    if kind == "padg":
        return PaDG(**common, instances=draw(st.integers(1, most)))
    common["pp_size"], common["num_kv_blocks"] = 1, blocks
    placement = draw(st.sampled_from(["intra-node", "inter-node"]))
    return FuDG(**common, prefill_instances=1, decode_instances=1, placement=placement)


@st.composite
def deployments(draw: st.DrawFn) -> Routed:
    """Two models, two pools of each at most, on either GPU type; any split."""
    pools = []
    for model in ("small", "large"):
        for gpu in draw(st.sampled_from([(A100,), (H100,), (A100, H100)])):
            weight = draw(st.sampled_from([None, 1.0, 2.5]))
            serving = with_room(draw(servings(len(pools))), LARGE if model == "large" else SMALL)
            pools.append(ServingGroup(model=model, gpu=gpu, serving=serving, weight=weight))
    weak = draw(st.sampled_from([0.0, 0.25, 0.5, 0.8, 1.0]))
    return Routed(
        name="routed", models=("small", "large"), fractions=(weak, 1 - weak), pool=tuple(pools)
    )


@examples(120)
@given(deployments(), REQUESTS, st.sampled_from([None, None, 3]))
def test_span_equals_step_and_the_laws_hold(
    strategy: Routed, requests: list[tuple[float, int, int, float]], concurrency: int | None
) -> None:
    """Pools of all strategies in one simulation conserve, and skip steps without a trace."""
    where, work = two_models(), load(requests, concurrency)
    span = run(where, strategy, work)
    check_laws(span)
    assert_same(span, run(where, strategy, work, resolution="step"))
    columns = span.columns["requests"]
    weak = strategy.fractions[0] if strategy.fractions else 0.0
    easy = columns["score"] < weak if weak < 1 else np.ones(len(requests), bool)
    assert columns["model"].tolist() == np.where(easy, "small", "large").tolist()
    at = columns["prefill_instance"]
    served = at >= 0
    assert (span.columns["instances"]["model"][at] == columns["model"])[served].all()
    # Steps are unrolled with the step times of each instance's own model and GPU.
    assert len(steps(span.columns, where)["end_s"]) == span.columns["spans"]["num_steps"].sum()


@examples(25)
@given(deployments(), REQUESTS.filter(lambda r: sum(o for _, _, o, _ in r) < 150))
def test_step_equals_kernel(
    strategy: Routed, requests: list[tuple[float, int, int, float]]
) -> None:
    """Kernel by kernel too."""
    where, work = two_models(), load(requests)
    assert_same(
        run(where, strategy, work, resolution="step"),
        run(where, strategy, work, resolution="kernel"),
    )


@examples(40)
@given(servings(0), REQUESTS)
def test_one_model_alone_is_the_strategy_itself(
    serving: Any, requests: list[tuple[float, int, int, float]]
) -> None:
    """Routing that sends everything to one pool adds nothing to the strategy of that pool."""
    where = dataclasses.replace(two_models(), extra_models=(), extra_clusters=())
    serving = with_room(serving, LARGE)
    pool = ServingGroup(model="large", gpu=A100, serving=serving)
    routed = Routed(name="routed", models=("large",), fractions=(1.0,), pool=(pool,))
    assert_same(run(where, routed, load(requests)), run(where, serving, load(requests)))


def test_models_share_the_machines_of_a_type() -> None:
    """Twelve instances of four GPUs do not fit twice on the same sixteen."""
    strategy = Routed(
        name="r",
        models=("small", "large"),
        fractions=(0.5, 0.5),
        pool=(
            ServingGroup(model="small", gpu=A100, serving=NoDG(name="s", tp_size=4, instances=3)),
            ServingGroup(model="large", gpu=A100, serving=NoDG(name="l", tp_size=4, instances=2)),
        ),
    )
    with pytest.raises(ConfigError, match=r"strategy\.l\.instances = 2.*holds 1"):
        run(two_models(), strategy, load([(0.0, 5, 5, 0.5)]))


def test_pools_and_nodes_are_numbered_through() -> None:
    """Nodes of the second type come after those of the first."""
    strategy = Routed(
        name="r",
        models=("small", "large"),
        fractions=(0.5, 0.5),
        pool=(
            ServingGroup(model="small", gpu=H100, serving=NoDG(name="s", instances=1)),
            ServingGroup(model="large", gpu=A100, serving=NoDG(name="l", tp_size=8, instances=2)),
        ),
    )
    instances = run(two_models(), strategy, load([(0.0, 5, 5, 0.5)])).columns["instances"]
    assert instances["instance"].tolist() == [0, 1, 2]
    assert instances["node"].tolist() == [2, 0, 1]
    assert instances["gpu"].tolist() == [H100, A100, A100]
    assert instances["model"].tolist() == ["small", "large", "large"]


def test_shares_are_kept_without_chance() -> None:
    """After any number of choices no index is off its share by one."""
    shares, weights = FixedShares([1.0, 2.5, 0.5]), np.array([1.0, 2.5, 0.5]) / 4
    counts: Counter[int] = Counter()
    for n in range(1, 200):
        counts[shares.choose()] += 1
        assert all(abs(counts[i] - n * w) < 1 for i, w in enumerate(weights))


def test_pools_of_a_model_share_its_requests_by_weight() -> None:
    """Three to one, in the table of pools as in the frame."""
    strategy = Routed(
        name="r",
        models=("small",),
        fractions=(1.0,),
        pool=(
            ServingGroup(model="small", gpu=A100, weight=3.0, serving=NoDG(name="a", instances=1)),
            ServingGroup(model="small", gpu=H100, weight=1.0, serving=NoDG(name="h", instances=2)),
        ),
    )
    where = two_models()
    work = load([(0.001, 10, 5, 0.5)] * 40)
    result = run(where, strategy, work, quality=curve.constant([0.7]))
    scenario_run = RunConfig()
    a100, h100_, whole = group_summaries(result.columns, where, scenario_run)
    assert (a100.num_requests, h100_.num_requests, whole.num_requests) == (30, 10, 40)
    assert (a100.mean_gpus, h100_.mean_gpus, whole.mean_gpus) == (1, 2, 3)
    assert (a100.cost_per_hour, h100_.cost_per_hour, whole.cost_per_hour) == (1.5, 6.0, 7.5)
    # An instance that is there for the second half of the time costs half.
    requests, instances = result.columns["requests"], dict(result.columns["instances"])
    arrival = requests["arrival_s"]
    instances["taken_s"] = np.array([0.0, 0.0, arrival[-1] / 2])
    frames = {"requests": requests, "instances": instances}
    _, h100_, whole = group_summaries(frames, where, scenario_run)
    assert (h100_.mean_gpus, whole.mean_gpus) == pytest.approx((1.5, 2.5))
    assert (h100_.cost_per_hour, whole.cost_per_hour) == pytest.approx((4.5, 6.0))
    assert whole.quality == pytest.approx(0.7)


def pools(small_gpu: str, tp_size: int) -> list[dict[str, Any]]:
    """Return tables of six instances of the small model and three of the large one."""
    small = {"name": "8B", "kind": "nodg", "instances": 6}
    large = {"name": "70B", "kind": "nodg", "tp_size": tp_size, "instances": 3}
    return [
        {"model": "llama-3.1-8b", "gpu": small_gpu, "serving": small},
        {"model": "llama-3.1-70b", "gpu": "H100", "serving": large},
    ]


TABLES: dict[str, Any] = {
    "model": {"name": "llama-3.1-70b"},
    "extra_model": [{"name": "llama-3.1-8b"}],
    "cluster": {"gpu": "H100", "nodes": 3, "price_per_gpu_hour": 2.69},
    "extra_cluster": [{"gpu": "RTX 5090", "nodes": 1, "price_per_gpu_hour": 0.89}],
    "engine": {"profile": "vllm-0.19", "max_model_len": 8192},
    "workload": {"lengths": "sharegpt-ecoserve", "rate_rps": 20, "num_requests": 300},
    "quality": {"kind": "measured", "benchmark": "gsm8k"},
    "strategy": [
        {
            "name": "routed",
            "kind": "routed",
            "models": ["llama-3.1-8b", "llama-3.1-70b"],
            "fractions": [0.6, 0.4],
            "pool": pools("5090", 4),
        },
        {"name": "big", "kind": "nodg", "tp_size": 4},
    ],
}


def test_a_file_with_two_models_runs_and_keeps_what_the_router_knew() -> None:
    """Model, score and expected quality of every request; the quality is the curve's."""
    scenario = simcluster.resolve(TABLES)
    requests = simcluster.simulate(scenario).requests
    assert set(requests["model"]) == {"llama-3.1-8b", "llama-3.1-70b"}
    assert ((requests["score"] < 0.6) == (requests["model"] == "llama-3.1-8b")).all()
    assert scenario.quality is not None
    expected = float(scenario.quality.curve().quality([0.6, 0.4]))
    assert requests["quality"].mean() == pytest.approx(expected, abs=0.04)
    alone = simcluster.simulate(scenario, strategy="big").requests
    assert set(alone["model"]) == {"llama-3.1-70b"}
    assert (alone["score"] == requests["score"]).all()
    # A file as shown reads back as the same scenario.
    assert simcluster.resolve(scenario.document) == scenario


def test_a_stored_run_is_not_taken_for_that_of_other_models_or_qualities() -> None:
    """Further models, machines and the quality are part of what a run is; prices are not."""
    first = simcluster.resolve(TABLES)
    cell = Cell("routed", 20.0, 0)
    for key, value, same in (
        ("extra_model.0.weight_dtype", "fp8", False),
        ("extra_cluster.0.nodes", 2, False),
        ("extra_cluster.0.price_per_gpu_hour", 0.5, True),
        ("quality.router", "oracle", False),
    ):
        other = simcluster.resolve(TABLES, {key: value})
        assert (identity(other, cell) == identity(first, cell)) == same, key


def test_routing_with_a_uniform_split_can_be_worse_than_the_big_model_alone() -> None:
    """The first trap of BOute: half the GPUs for each model starves the large one."""
    pool = pools("H100", 2)
    uniform = {**TABLES["strategy"][0], "fractions": [0.4, 0.6], "pool": pool}
    single = {"name": "single", "kind": "nodg", "tp_size": 4, "instances": 3}
    tables = {**TABLES, "strategy": [uniform, single], "extra_cluster": []}
    tables["workload"] = {**TABLES["workload"], "rate_rps": 30, "num_requests": 1800}
    # At the default of 0.9 two H100 do not hold the large model.
    tables["engine"] = {**TABLES["engine"], "gpu_memory_utilization": 0.95}
    scenario = simcluster.resolve(tables)
    p95 = {
        name: np.quantile(simcluster.simulate(scenario, strategy=name).requests["e2el_s"], 0.95)
        for name in ("routed", "single")
    }
    assert p95["routed"] > p95["single"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thresholds": [0.5]}, "is given beside thresholds"),
        ({"fractions": None}, "fractions: is missing"),
        ({"fractions": [0.5, 0.3, 0.2]}, "3 are too many for 2 models"),
        ({"fractions": [0.5]}, "1 are too few for 2 models"),
        ({"fractions": [0.5, 0.4]}, "must add up to 1, not 0.9"),
        ({"fractions": None, "thresholds": [0.3, 0.6]}, "2 are too many for 2 models. Give 1"),
        ({"models": ["llama-3.1-8b", "llama-3.1-8b"]}, "names a model twice"),
        ({"models": ["llama-3.1-8b", "llama-2-7b"]}, "is no model of this scenario"),
        ({"models": ["llama-3.1-70b"], "fractions": [1]}, r"are 1 models, and \[quality\] knows 2"),
    ],
)
def test_bad_splits_are_refused(changes: dict[str, Any], message: str) -> None:
    """When the file is read, in one line."""
    strategy = {k: v for k, v in {**TABLES["strategy"][0], **changes}.items() if v is not None}
    with pytest.raises(ConfigError, match=message):
        simcluster.resolve({**TABLES, "strategy": [strategy]})


@pytest.mark.parametrize(
    ("pool", "message"),
    [
        ({"model": "llama-2-7b"}, r"pool\[0\]\.model = 'llama-2-7b': is not in this scenario"),
        ({"gpu": "A100"}, r"pool\[0\]\.gpu = 'A100-80GB SXM': is not in this scenario"),
        ({"gpu": "nothing"}, "no such gpu in the catalogue"),
        ({"model": "llama-3.1-70b"}, "does not fit on RTX 5090.*GB per GPU are missing"),
    ],
)
def test_bad_pools_are_refused(pool: dict[str, Any], message: str) -> None:
    """When they are placed."""
    strategy = {**TABLES["strategy"][0]}
    strategy["pool"] = [{**strategy["pool"][0], **pool}, strategy["pool"][1]]
    with pytest.raises(ConfigError, match=message):
        simcluster.simulate(simcluster.resolve({**TABLES, "strategy": [strategy]}))


def test_a_model_with_requests_needs_a_group() -> None:
    """Unless its fraction is nothing."""
    strategy = {**TABLES["strategy"][0], "pool": TABLES["strategy"][0]["pool"][1:]}
    with pytest.raises(ConfigError, match=r"no group serves llama-3\.1-8b"):
        simcluster.simulate(simcluster.resolve({**TABLES, "strategy": [strategy]}))
    alone = {**strategy, "fractions": [0.0, 1.0]}
    result = simcluster.simulate(simcluster.resolve({**TABLES, "strategy": [alone]}))
    assert set(result.columns["requests"]["model"]) == {"llama-3.1-70b"}


def test_models_and_gpu_types_are_named_once() -> None:
    """Two tables for one GPU type would hide one of them."""
    for change in (
        {"extra_model": [{"name": "llama-3.1-70b"}]},
        {"extra_cluster": [{"gpu": "H100"}]},
    ):
        with pytest.raises(ConfigError, match="is in the scenario already"):
            simcluster.resolve({**TABLES, **change})
