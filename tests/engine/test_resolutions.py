"""Kernels, steps and spans: one model, three resolutions, the same floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.ties import TICK, TIES, Ticks, with_coarse_links
from simcluster.catalog.specs import EngineProfile
from simcluster.config import Environment, SloConfig
from simcluster.request import Request
from simcluster.routing import ROUTERS
from simcluster.runs.simulate import run
from simcluster.sched import QUEUES, SCHEDULERS
from simcluster.sched.prefill_priority import PrefillPriority
from simcluster.strategies import FuDG, NoDG, PaDG
from simcluster.strategies.scaling import MitosisSettings, ThresholdSettings
from simcluster.testing.contracts.base import GAPS, PREFIXES, REQUESTS, registered
from simcluster.testing.examples import examples
from simcluster.testing.specs import environment, ideal_engine, llama_2_7b, vllm_engine
from simcluster.testing.toy import (
    ENGINES,
    LAYOUTS,
    LOOSE,
    MAX_MODEL_LEN,
    MOE,
    STRICT,
    TOY,
    TOYS,
    agreed,
    assert_same,
    toy_environment,
    toy_workload,
    with_layout,
    with_room,
)
from simcluster.workload import Workload

TURNS = st.one_of(
    st.none(),
    st.none(),
    # Independent requests, turns at once, at multiples of a coarse tick, and others.
    st.lists(
        st.one_of(
            st.just(-1.0),
            st.just(0.0),
            st.integers(1, 20).map(lambda k: k * 2.0**-10),
            st.floats(0.0, 0.03),
        ),
        min_size=1,
        max_size=8,
    ),
)
ROUTER_NAMES = st.sampled_from(list(ROUTERS))
QUEUE_NAMES = st.sampled_from(["first-come", "first-come", *QUEUES])
SPLITTING = [name for name, scheduler in SCHEDULERS.items() if scheduler.splits_prompts]
POOL = st.sampled_from([None, 10, 13, 24])
SEQS = st.sampled_from([1, 3, 8, 64])
TRANSFERS = ("after-prefill", "layerwise")


@st.composite
def strategies(draw: st.DrawFn) -> Any:
    """Any deployment of the toy cluster, with pools small enough to preempt."""
    pp_size = draw(st.sampled_from([1, 1, 2]))
    pool = draw(POOL)
    common: dict[str, Any] = {
        "name": "s",
        "tp_size": draw(st.sampled_from([1, 2])),
        "pp_size": pp_size,
        "num_kv_blocks": None if pool is None else pp_size * pool,
        "max_num_seqs": draw(SEQS),
        "prefix_caching": draw(st.booleans()),
        "queue": draw(QUEUE_NAMES),
        "preemption": draw(st.sampled_from(["recompute", "swap"])),
        # Room for everything, or for one sequence or two.
        "swap_bytes": draw(st.sampled_from([4.0 * 2**30, 200_000.0, 400_000.0])),
    }
    kind = draw(st.sampled_from([*SCHEDULERS, "intra", "inter", "padg"]))
    routing: dict[str, Any] = {
        "router": draw(ROUTER_NAMES),
        # Exact, or reported at multiples of a time with which arrivals tie.
        "status_interval_s": draw(st.sampled_from([0.0, 0.0, 2.0**-9, 0.1])),
    }
    if kind in SCHEDULERS and kind not in SPLITTING:
        return NoDG(
            **common,
            instances=draw(st.integers(1, 4)),
            scheduler=kind,
            **routing,
            autoscale=draw(by_load()),
        )
    if kind in SCHEDULERS:
        return NoDG(
            **common,
            instances=draw(st.integers(1, 4)),
            **routing,
            scheduler=kind,
            # Prompts of several chunks, and chunks that take several prompts.
            chunk_size=max(common["max_num_seqs"], draw(st.sampled_from([9, 16, 33, 70, 128]))),
        )
    if kind == "padg":
        return padg(draw, common)
    prefill = draw(st.integers(1, 2))
    if kind == "inter":
        common["prefill_autoscale"] = draw(by_load())
        common["decode_autoscale"] = draw(by_load())
    if pp_size == 1 and draw(st.booleans()):
        routing = {"prefill_choice": "ttft", "early_rejection": draw(st.booleans())}
        common["queue"] = "first-come"  # what its estimate of the TTFT assumes
    return FuDG(
        **common,
        prefill_instances=prefill,
        # Inside nodes every prefill needs a decode beside it.
        decode_instances=prefill if kind == "intra" else draw(st.integers(1, 2)),
        placement="intra-node" if kind == "intra" else "inter-node",
        pool=draw(st.sampled_from([None, None, "none", "decode-node"])),
        transfer="after-prefill" if pp_size > 1 else draw(st.sampled_from(TRANSFERS)),
        prefill_max_num_seqs=draw(st.sampled_from([None, 1, 2])),
        prefill_max_num_batched_tokens=draw(st.sampled_from([None, MAX_MODEL_LEN])),
        # From one request ahead to all that fits.
        waiting_block_share=draw(st.sampled_from([None, 0.05, 0.05, 0.5, 1.0])),
        **routing,
    )


def padg(draw: st.DrawFn, common: dict[str, Any]) -> PaDG:
    """Any form of rolling activation."""
    form = draw(st.sampled_from(["paper", "paper", "paper", "code", "fixed"]))
    chunk = draw(st.sampled_from([None, None, 64, 70]))
    every = ("ttft", "tpot", "kv")
    return PaDG(
        **common,
        variant="code" if form == "code" else "paper",
        window="fixed:0.5" if form == "fixed" else "adaptive",
        slack=draw(st.sampled_from([None, "mean", "max", "min", "quantile:0.2"])),
        constraints=draw(st.sampled_from([every, ("tpot",), ()])) if form == "paper" else every,
        next_instance=draw(st.sampled_from(["cyclic", "random"])),
        prefill_error=draw(st.sampled_from([0.0, 0.0, 0.5])),
        status_interval_s=draw(st.sampled_from([0.0, 0.0, 0.013])),
        hold_output=draw(st.booleans()),
        scheduler="chunked" if chunk else "prefill-priority",
        chunk_size=chunk,
        **draw(macros()),
    )


@st.composite
def macros(draw: st.DrawFn) -> dict[str, Any]:
    """One macro instance, several, or some that come and go."""
    kind = draw(st.sampled_from(["one", "one", "two", "mitosis"]))
    if kind == "one":
        return {"instances": draw(st.integers(1, 4))}
    if kind == "two":
        return {"instances": draw(st.integers(2, 4)), "macro_instances": 2}
    return {
        "instances": draw(st.integers(1, 3)),
        "mitosis": MitosisSettings(
            lower=1,
            upper=3,
            max_instances=4,
            up_at=draw(st.sampled_from([0.1, 1.0])),
            **draw(coming_and_going()),
        ),
    }


@st.composite
def coming_and_going(draw: st.DrawFn) -> dict[str, float]:
    """Looks that tie with steps, and others."""
    return {
        "interval_s": draw(st.sampled_from([2.0**-6, 0.03])),
        "cooldown_s": draw(st.sampled_from([0.0, 0.05])),
        "start_up_s": draw(st.sampled_from([0.0, 2.0**-5])),
    }


@st.composite
def by_load(draw: st.DrawFn) -> ThresholdSettings | None:
    """A threshold autoscaler, or none."""
    if draw(st.booleans()):
        return None
    return ThresholdSettings(up=3, down=1, max_instances=3, **draw(coming_and_going()))


SLOS = st.sampled_from(
    [
        LOOSE,
        STRICT,
        SloConfig(ttft_s=0.004, tpot_s=0.002),
    ]
)


@examples(120)
@given(
    strategy=strategies(),
    where=st.builds(toy_environment, st.sampled_from(ENGINES), SLOS, st.sampled_from(TOYS)),
    layout=st.sampled_from(LAYOUTS),
    load=st.one_of(
        st.builds(toy_workload, REQUESTS, st.sampled_from([1, 4]), PREFIXES),
        st.builds(toy_workload, REQUESTS, prefixes=PREFIXES, turns=TURNS),
        st.builds(toy_workload, REQUESTS, prefixes=PREFIXES, turns=TURNS),
    ),
)
def test_span_equals_step(
    strategy: Any, where: Environment, layout: dict[str, Any], load: Workload
) -> None:
    """Skipping over step ends changes no float of any frame."""
    strategy = with_layout(strategy, where.model.spec, layout)
    strategy = with_room(strategy, where.model.spec)
    agreed(where, strategy, load)


def test_room_that_a_swap_makes_is_seen_at_once() -> None:
    """A request swapped in is no longer ahead of those outside, though no boundary follows soon."""
    strategy = NoDG(
        name="s",
        instances=2,
        router="shared-queue",
        preemption="swap",
        num_kv_blocks=10,
        max_num_seqs=3,
    )
    where = toy_environment(ENGINES[0], LOOSE, TOY)
    load = toy_workload([(0.0, 85, 29), (0.0, 85, 31), (0.0, 5, 29), (0.0, 65, 1)])
    span = agreed(where, strategy, load)
    assert span.columns["instances"]["num_swaps"].sum() > 0


@examples(30)
@given(
    strategy=strategies(),
    where=st.builds(toy_environment, st.sampled_from(ENGINES), SLOS),
    load=st.builds(
        toy_workload,
        REQUESTS.filter(lambda r: sum(o for _, _, o in r) < 200),
        prefixes=PREFIXES,
        turns=TURNS,
    ),
)
def test_step_equals_kernel(strategy: Any, where: Environment, load: Workload) -> None:
    """The closed form of a step is what dispatchers and GPUs do event by event."""
    agreed(where, strategy, load, ("step", "kernel"))


@examples(60)
@given(
    strategy=strategies(),
    engine=st.sampled_from(ENGINES),
    slo=SLOS,
    layout=st.sampled_from(LAYOUTS),
    load=st.builds(toy_workload, REQUESTS, prefixes=PREFIXES, turns=TURNS),
)
def test_span_equals_step_in_every_layout(
    strategy: Any, engine: EngineProfile, slo: SloConfig, layout: dict[str, Any], load: Workload
) -> None:
    """Experts spread over GPUs, and data-parallel ranks in lock-step."""
    where = toy_environment(engine, slo, MOE)
    agreed(where, with_room(with_layout(strategy, MOE, layout), MOE), load)


def test_the_rank_with_the_longest_context_need_not_be_the_slowest() -> None:
    """Where host work is hidden: the other rank's step is a tick longer by rounding."""
    engine = next(e for e in ENGINES if e.overlaps_host)
    where = toy_environment(engine, LOOSE, MOE)
    strategy = NoDG(name="s", instances=1, max_num_seqs=1, scheduler="chunked", chunk_size=9)
    strategy = with_room(with_layout(strategy, MOE, {"dp_size": 2, "ep_size": 1}), MOE)
    load = toy_workload([(0.0, 1, 3), (0.0, 8, 3)])
    agreed(where, strategy, load)
    agreed(where, strategy, load, ("step", "kernel"))


@examples(20)
@given(
    strategy=strategies(),
    engine=st.sampled_from(ENGINES),
    layout=st.sampled_from(LAYOUTS),
    load=st.builds(
        toy_workload,
        REQUESTS.filter(lambda r: sum(o for _, _, o in r) < 200),
        prefixes=PREFIXES,
        turns=TURNS,
    ),
)
def test_step_equals_kernel_in_every_layout(
    strategy: Any, engine: EngineProfile, layout: dict[str, Any], load: Workload
) -> None:
    """Ranks that run kernel by kernel end their step with the slowest."""
    where = toy_environment(engine, LOOSE, MOE)
    strategy = with_room(with_layout(strategy, MOE, layout), MOE)
    agreed(where, strategy, load, ("step", "kernel"))


TIED = {
    "handover": FuDG(name="s", prefill_instances=1, decode_instances=2),
    "handover between nodes": FuDG(
        name="s", prefill_instances=1, decode_instances=3, placement="inter-node"
    ),
    "handover, little ahead": FuDG(
        name="s", prefill_instances=1, decode_instances=2, max_num_seqs=2, waiting_block_share=0.001
    ),
    "handover to a pipeline, little ahead": FuDG(
        name="s",
        prefill_instances=1,
        decode_instances=1,
        pp_size=2,
        max_num_seqs=2,
        waiting_block_share=0.001,
    ),
    "handover by a conductor": FuDG(
        name="s",
        prefill_instances=2,
        decode_instances=2,
        transfer="layerwise",
        prefill_choice="ttft",
        early_rejection=True,
    ),
    "arrivals": NoDG(name="s", instances=3),
    "arrivals, chunked": NoDG(
        name="s", instances=2, scheduler="chunked", chunk_size=64, max_num_seqs=16
    ),
    "full pools": NoDG(name="s", instances=2, num_kv_blocks=10, max_num_seqs=3),
    "windows": PaDG(name="s", instances=3),
    "windows of the code": PaDG(name="s", instances=3, variant="code"),
    "windows, one loose": PaDG(name="s", instances=2, slack="max", max_num_seqs=4),
}


@pytest.mark.parametrize("name", TIED)
@examples(40)
@given(
    requests=TIES,
    ttft_s=st.sampled_from([64 * TICK, 8 * TICK]),
)
def test_span_equals_step_where_everything_ties(
    name: str, requests: list[tuple[float, int, int]], ttft_s: float
) -> None:
    """Every step takes two coarse ticks: arrivals, transfers and steps of all instances tie."""
    where = toy_environment(ideal_engine(), SloConfig(ttft_s=ttft_s, tpot_s=2 * TICK))
    where, load = with_coarse_links(where), toy_workload(requests)
    agreed(where, TIED[name], load, step_time=Ticks())


@examples(40)
@given(
    requests=st.lists(
        st.tuples(GAPS, st.integers(20, 100), st.integers(20, 60)), min_size=3, max_size=9
    ),
    scheduler=st.sampled_from(list(SCHEDULERS)),
    queue=st.sampled_from(list(QUEUES)),
    num_kv_blocks=st.integers(10, 14),
    host_blocks=st.integers(1, 12),
    instances=st.integers(1, 2),
)
def test_spans_with_little_host_memory_equal_steps(
    requests: list[tuple[float, int, int]],
    scheduler: str,
    queue: str,
    num_kv_blocks: int,
    host_blocks: int,
    instances: int,
) -> None:
    """Some preempted requests are swapped, others find host memory full and recompute."""
    where = toy_environment(vllm_engine(), SloConfig())
    block_bytes = where.model.kv_bytes_per_token * where.engine.block_size
    strategy = NoDG(
        name="s",
        instances=instances,
        scheduler=scheduler,
        max_num_seqs=8,
        queue=queue,
        num_kv_blocks=num_kv_blocks,
        preemption="swap",
        swap_bytes=float(host_blocks * block_bytes),
    )
    agreed(where, strategy, toy_workload(requests))


def test_chunked_prefill_with_full_host_memory_is_the_same_at_span_and_step() -> None:
    """Four requests of 300 + 400 tokens in a pool for two, host memory for less than one."""
    where = environment(model=llama_2_7b(), max_model_len=1000, num_nodes=1, gpus_per_node=1)
    strategy = NoDG(
        name="s", scheduler="chunked", preemption="swap", swap_bytes=2e8, num_kv_blocks=63
    )
    load = toy_workload([(0.05 * k, 300, 400) for k in range(4)])
    span = agreed(where, strategy, load)
    instances = span.columns["instances"]
    assert 0 < instances["num_swaps"].sum() < instances["num_preemptions"].sum()


@pytest.mark.parametrize("queue", list(QUEUES))
def test_a_queue_behind_a_full_pool_is_the_same_at_span_and_step(queue: str) -> None:
    """Heads that do not fit, and newcomers that go before them: 300 requests in a small pool."""
    rng = np.random.default_rng(7)
    where = environment(model=llama_2_7b(), max_model_len=4096, num_nodes=1, gpus_per_node=1)
    prompts = rng.lognormal(6.0, 1.0, 300).clip(16, 3000).astype(int).tolist()
    outputs = rng.integers(20, 400, 300).tolist()
    gaps = rng.exponential(1 / 4, 300).tolist()
    load = toy_workload(list(zip(gaps, prompts, outputs, strict=True)))
    strategy = NoDG(name="s", num_kv_blocks=300, queue=queue)
    span = agreed(where, strategy, load)
    waited = span.columns["requests"]["queue_s"]
    assert (waited > 1.0).mean() > 0.25, "many requests wait"


class Deaf(PrefillPriority):
    """A scheduler that says of no arrival that it changes the plan under way."""

    def add(self, request: Request) -> bool:
        """Take it, and say nothing."""
        super().add(request)
        return False


def test_the_agreement_test_notices_one_step_too_many() -> None:
    """A span that runs over the arrival that should cut it is seen."""
    where = toy_environment(vllm_engine(), SloConfig())
    load = toy_workload([(0.0, 50, 60), (0.02, 50, 60), (0.03, 20, 60)])
    right = NoDG(name="s", instances=1, scheduler="prefill-priority")
    step = run(where, right, load, resolution="step")
    assert_same(run(where, right, load, resolution="span"), step)
    with registered(SCHEDULERS, Deaf) as name:
        wrong = NoDG(name="s", instances=1, scheduler=name)
        assert_same(run(where, wrong, load, resolution="step"), step)
        with pytest.raises(AssertionError):
            assert_same(run(where, wrong, load, resolution="span"), step)


def test_prefixes_are_found_and_swaps_happen_in_the_agreement_cases() -> None:
    """With the workloads drawn above, or the property would say little."""
    where = toy_environment(vllm_engine(), SloConfig())
    load = toy_workload([(0.001, 60, 60)] * 12, prefixes=[(0, 48), (1, 64)])
    strategy = NoDG(
        name="s",
        instances=1,
        num_kv_blocks=13,
        prefix_caching=True,
        preemption="swap",
        swap_bytes=200_000.0,
    )
    result = run(where, strategy, load)
    assert result.columns["requests"]["num_cached_tokens"].sum() > 100
    swaps = result.columns["instances"]["num_swaps"].sum()
    assert 0 < swaps < result.columns["instances"]["num_preemptions"].sum()


def test_preemption_happens_in_the_agreement_cases() -> None:
    """The pools drawn above are small enough to preempt, or the property would say little."""
    where = toy_environment(vllm_engine(), SloConfig())
    load = toy_workload([(0.001, 60, 60)] * 12)
    result = run(where, NoDG(name="s", instances=1, num_kv_blocks=13), load)
    assert result.columns["requests"]["num_preemptions"].sum() > 3
