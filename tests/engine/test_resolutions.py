"""Kernels, steps and spans: one model, three resolutions, the same floats."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simcluster.catalog.specs import EngineProfile, ModelSpec
from simcluster.config import Environment, SloConfig
from simcluster.engine.instance.pipeline import BatchesInFlight
from simcluster.engine.instance.span import Span
from simcluster.engine.instance.span_log import SpanLog
from simcluster.errors import InvariantError
from simcluster.frames import unroll
from simcluster.roofline import StepShape, StepTimeSource
from simcluster.routing import ROUTERS
from simcluster.runs.result import Result
from simcluster.runs.simulate import run
from simcluster.sched import QUEUES, SCHEDULERS, DecodeBatch, StepPlan, target
from simcluster.sched.chunked import ChunkedPrefill
from simcluster.strategies import FuDG, NoDG, PaDG
from simcluster.strategies.scaling import MitosisSettings, ThresholdSettings
from simcluster.testing.specs import (
    environment,
    ideal_engine,
    llama_2_7b,
    pcie4,
    vllm_engine,
)
from simcluster.testing.step_times import ConstantStepTime
from simcluster.testing.toy import (
    DEEP,
    ENGINES,
    LOOSE,
    MAX_MODEL_LEN,
    OVERLAPPING,
    STRICT,
    TOY,
    WINDOWED,
    assert_same,
    toy_environment,
    toy_workload,
)

GAPS = st.one_of(
    st.just(0.0),
    # Multiples of a coarse tick: ties with each other.
    st.integers(0, 40).map(lambda k: k * 2.0**-10),
    st.floats(0.0, 0.03),
)
REQUESTS = st.lists(
    st.tuples(GAPS, st.integers(1, 100), st.integers(1, 60)), min_size=1, max_size=25
)
PREFIXES = st.one_of(
    st.none(), st.lists(st.tuples(st.integers(0, 3), st.integers(0, 160)), min_size=1, max_size=6)
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


@settings(max_examples=300, deadline=None)
@given(
    strategy=strategies(),
    requests=REQUESTS,
    engine=st.sampled_from(ENGINES),
    slo=SLOS,
    model=st.sampled_from([TOY, WINDOWED]),
    concurrency=st.sampled_from([None, None, None, 1, 4]),
    prefixes=PREFIXES,
)
def test_span_equals_step(
    strategy: Any,
    requests: list[tuple[float, int, int]],
    engine: EngineProfile,
    slo: SloConfig,
    model: ModelSpec,
    concurrency: int | None,
    prefixes: list[tuple[int, int]] | None,
) -> None:
    """Skipping over step ends changes no float of any frame."""
    where = toy_environment(engine, slo, model)
    load = toy_workload(requests, concurrency, prefixes)
    assert_same(
        run(where, strategy, load, resolution="span"), run(where, strategy, load, resolution="step")
    )


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
    span = run(where, strategy, load, resolution="span")
    assert span.columns["instances"]["num_swaps"].sum() > 0
    assert_same(span, run(where, strategy, load, resolution="step"))


@settings(max_examples=60, deadline=None)
@given(
    strategy=strategies(),
    requests=REQUESTS.filter(lambda r: sum(o for _, _, o in r) < 200),
    engine=st.sampled_from(ENGINES),
    slo=SLOS,
    prefixes=PREFIXES,
)
def test_step_equals_kernel(
    strategy: Any,
    requests: list[tuple[float, int, int]],
    engine: EngineProfile,
    slo: SloConfig,
    prefixes: list[tuple[int, int]] | None,
) -> None:
    """The closed form of a step is what dispatchers and GPUs do event by event."""
    where, load = toy_environment(engine, slo), toy_workload(requests, prefixes=prefixes)
    assert_same(
        run(where, strategy, load, resolution="step"),
        run(where, strategy, load, resolution="kernel"),
    )


def with_coarse_links(where: Environment) -> Environment:
    """Every link moves the KV of one token in one `TICK`, without latency."""
    links = {}
    for name in ("fabric", "network", "pcie"):
        link = getattr(where.cluster, name)
        bandwidth = where.model.kv_bytes_per_token / TICK
        links[name] = dataclasses.replace(link, bandwidth=bandwidth, efficiency=1.0, latency_s=0.0)
    return dataclasses.replace(where, cluster=dataclasses.replace(where.cluster, **links))


TICK = 2.0**-6


@dataclasses.dataclass(frozen=True)
class TickStage:
    """A stage that takes two coarse ticks whatever it does; host work before and after in ticks."""

    host_ticks: tuple[int, int]
    overlaps_host = False

    def host_s(self, shape: StepShape) -> tuple[float, float]:
        """Before and after."""
        return self.host_ticks[0] * TICK, self.host_ticks[1] * TICK

    def gpu_s(self, shape: StepShape) -> float:
        """Two ticks."""
        return 2 * TICK

    def decode_gpu_s(self, size: int, context: int, num_steps: int, window: Any) -> Any:
        """Two ticks each."""
        return np.full(num_steps, 2 * TICK)


@dataclasses.dataclass(frozen=True)
class Ticks(StepTimeSource):
    """Every step takes two coarse ticks; in a pipeline it takes them in each stage."""

    host_ticks: tuple[int, int] = (0, 0)

    def __call__(self, environment: Environment, tp_size: int) -> ConstantStepTime:
        """Two ticks."""
        return ConstantStepTime(2 * TICK)

    def stages(self, environment: Environment, tp_size: int, pp_size: int, *, key: str) -> Any:
        """Equal stages."""
        return tuple(TickStage(self.host_ticks) for _ in range(pp_size))


TIES = {
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


@pytest.mark.parametrize("name", TIES)
@settings(max_examples=150, deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.one_of(st.just(0), st.integers(0, 25)).map(lambda k: k * TICK),
            # Loads that differ by little, so that one step more or less decides.
            st.integers(4, 6),
            st.integers(15, 40),
        ),
        min_size=3,
        max_size=8,
    ),
    ttft_s=st.sampled_from([64 * TICK, 8 * TICK]),
)
def test_span_equals_step_where_everything_ties(
    name: str, requests: list[tuple[float, int, int]], ttft_s: float
) -> None:
    """Every step takes two coarse ticks: arrivals, transfers and steps of all instances tie."""
    where = toy_environment(ideal_engine(), SloConfig(ttft_s=ttft_s, tpot_s=2 * TICK))
    where, load = with_coarse_links(where), toy_workload(requests)
    span, step = (
        run(where, TIES[name], load, resolution=resolution, step_time=Ticks())
        for resolution in ("span", "step")
    )
    assert_same(span, step)


@settings(max_examples=150, deadline=None)
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
    load = toy_workload(requests)
    span = run(where, strategy, load, resolution="span")
    assert_same(span, run(where, strategy, load, resolution="step"))


def test_chunked_prefill_with_full_host_memory_is_the_same_at_span_and_step() -> None:
    """Four requests of 300 + 400 tokens in a pool for two, host memory for less than one."""
    where = environment(model=llama_2_7b(), max_model_len=1000, num_nodes=1, gpus_per_node=1)
    strategy = NoDG(
        name="s", scheduler="chunked", preemption="swap", swap_bytes=2e8, num_kv_blocks=63
    )
    load = toy_workload([(0.05 * k, 300, 400) for k in range(4)])
    span = run(where, strategy, load, resolution="span")
    instances = span.columns["instances"]
    assert 0 < instances["num_swaps"].sum() < instances["num_preemptions"].sum()
    assert_same(span, run(where, strategy, load, resolution="step"))


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
    span = run(where, strategy, load, resolution="span")
    waited = span.columns["requests"]["queue_s"]
    assert (waited > 1.0).mean() > 0.25, "many requests wait"
    assert_same(span, run(where, strategy, load, resolution="step"))


LONG = dict(name="s", scheduler="chunked", max_num_seqs=6)
LONG_PROMPTS = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.integers(0, 20).map(lambda k: k * 2.0**-10)),
        st.one_of(st.integers(30, 120), st.integers(1, 20)),
        st.integers(1, 40),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(
    requests=LONG_PROMPTS,
    chunk_size=st.sampled_from([6, 9, 16, 24]),
    num_kv_blocks=st.sampled_from([10, 12, 15, None]),
    instances=st.integers(1, 2),
    router=st.sampled_from(["least-loaded", "shared-queue"]),
    engine=st.sampled_from(ENGINES),
    model=st.sampled_from([TOY, WINDOWED]),
)
def test_runs_of_chunks_equal_steps(
    requests: list[tuple[float, int, int]],
    chunk_size: int,
    num_kv_blocks: int | None,
    instances: int,
    router: str,
    engine: EngineProfile,
    model: ModelSpec,
) -> None:
    """Long prompts in many chunks beside decodes that end, arrivals, and pools that run dry."""
    where = toy_environment(engine, SloConfig(), model)
    strategy = NoDG(
        **LONG,
        chunk_size=chunk_size,
        num_kv_blocks=num_kv_blocks,
        instances=instances,
        router=router,
    )
    load = toy_workload(requests)
    span = run(where, strategy, load, resolution="span")
    assert_same(span, run(where, strategy, load, resolution="step"))
    if len(requests) <= 4:
        assert_same(span, run(where, strategy, load, resolution="kernel"))


TIGHT_CHUNKS = NoDG(**LONG, instances=1, chunk_size=9, num_kv_blocks=12)
CROWD = [
    *[(0.0, 20, 40), (0.0, 20, 36), (0.003, 120, 5), (0.01, 90, 3), (0.03, 30, 9)],
    *[(1.0, 8, 60), (0.002, 100, 3), (0.002, 10, 5)],
]


def test_runs_of_chunks_are_cut_in_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an arrival, by the end of a decode, by the pool: the cases above are not empty."""
    plans: list[tuple[StepPlan, int]] = []
    ends: set[str] = set()
    schedule, book = ChunkedPrefill.schedule, SpanLog.book

    def seen_schedule(self: ChunkedPrefill, now: float) -> StepPlan | None:
        plan = schedule(self, now)
        if plan is not None and plan.kind == "mixed" and plan.max_steps > 1:
            request, tokens = plan.chunks[0]
            full = (target(request) - request.num_computed_tokens - 1) // tokens
            if plan.max_steps == self.batch.steps_to_next_end():
                ends.add("a decode ends")
            elif plan.max_steps < full:
                ends.add("the pool runs dry")
        return plan

    def seen_book(self: SpanLog, span: Span, steps: int, *rest: Any) -> Any:
        plan = span.plan
        assert plan is not None
        if plan.kind == "mixed" and plan.max_steps > 1:
            ends.add("an arrival" if steps < plan.max_steps else "the prompt ends")
            plans.append((plan, steps))
        return book(self, span, steps, *rest)

    monkeypatch.setattr(ChunkedPrefill, "schedule", seen_schedule)
    monkeypatch.setattr(SpanLog, "book", seen_book)
    where, load = toy_environment(vllm_engine(), SloConfig()), toy_workload(CROWD)
    result = run(where, TIGHT_CHUNKS, load)
    assert result.columns["requests"]["num_preemptions"].sum() > 0
    assert ends == {"a decode ends", "the pool runs dry", "an arrival", "the prompt ends"}
    assert max(steps for _, steps in plans) > 4


def test_the_agreement_test_notices_a_chunk_that_leaves_a_newcomer_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last chunk of a prompt leaves room: whoever arrives before it must share its step."""
    where, load = toy_environment(vllm_engine(), SloConfig()), toy_workload(CROWD)
    strategy = NoDG(**LONG, instances=1, chunk_size=9)
    step = run(where, strategy, load, resolution="step")
    assert_same(run(where, strategy, load), step)
    monkeypatch.setattr(StepPlan, "closed_steps", property(lambda plan: plan.max_steps))
    with pytest.raises(AssertionError):
        assert_same(run(where, strategy, load), step)


DEEP_WINDOWED = dataclasses.replace(
    DEEP, name="deep-window", sliding_window=24, num_sliding_layers=2
)


LEVELS = ("kv_usage", "num_waiting", "num_running")


def assert_same_steps(one: Result, other: Result, *, without: tuple[str, ...] = LEVELS) -> None:
    """Rows of spans are the same too: in a pipeline each is a step.

    What else happens at the very end of a step may count in its levels or not.
    """
    spans = [result.columns["spans"] for result in (one, other)]
    orders = [np.lexsort((s["start_s"], s["lane"], s["instance"])) for s in spans]
    for column in set(spans[0]) - set(without):
        ours, theirs = (s[column][order] for s, order in zip(spans, orders, strict=True))
        assert ours.tolist() == theirs.tolist(), column


@st.composite
def pipelines(draw: st.DrawFn) -> Any:
    """Any deployment of pipelined instances, with pools small enough to preempt."""
    pp_size = draw(st.sampled_from([2, 3, 4]))
    pool = draw(POOL)
    common: dict[str, Any] = {
        "name": "s",
        "pp_size": pp_size,
        "num_kv_blocks": None if pool is None else pp_size * pool,
        "max_num_seqs": draw(st.sampled_from([1, 3, 8])),
    }
    common["queue"] = draw(QUEUE_NAMES)
    router = draw(ROUTER_NAMES)
    match draw(st.sampled_from(["nodg", "chunked", "fudg", "padg"])):
        case "nodg":
            return NoDG(**common, instances=draw(st.integers(1, 2)), router=router)
        case "chunked":
            chunk_size = draw(st.sampled_from([9, 16, 40]))
            return NoDG(
                **common, instances=1, scheduler="chunked", chunk_size=chunk_size, router=router
            )
        case "padg":
            return PaDG(**common, instances=2, slack=draw(st.sampled_from(["mean", "min"])))
        case _:
            return FuDG(
                **common,
                prefill_instances=1,
                decode_instances=1,
                placement="inter-node",
                router=router,
            )


@settings(max_examples=150, deadline=None)
@given(
    strategy=pipelines(),
    requests=REQUESTS,
    engine=st.sampled_from(ENGINES),
    slo=SLOS,
    model=st.sampled_from([DEEP, DEEP_WINDOWED]),
    concurrency=st.sampled_from([None, None, 4]),
    max_time_s=st.sampled_from([None, None, 0.05]),
)
def test_pipelines_computed_ahead_equal_steps(
    strategy: Any,
    requests: list[tuple[float, int, int]],
    engine: EngineProfile,
    slo: SloConfig,
    model: ModelSpec,
    concurrency: int | None,
    max_time_s: float | None,
) -> None:
    """Batches in flight, taken back when one of them changes; also where the run is cut."""
    where, load = toy_environment(engine, slo, model), toy_workload(requests, concurrency)
    resolutions = ["span", "step"]
    if sum(output for _, _, output in requests) < 100 and max_time_s is None:
        resolutions.append("kernel")
    span, *others = (
        run(where, strategy, load, resolution=resolution, max_time_s=max_time_s)
        for resolution in resolutions
    )
    for other in others:
        assert_same(span, other)
        assert_same_steps(span, other)


@pytest.mark.parametrize("host_ticks", [(0, 0), (1, 0), (2, 1)])
@settings(max_examples=100, deadline=None)
@given(
    requests=st.lists(
        st.tuples(
            st.one_of(st.just(0), st.integers(0, 25)).map(lambda k: k * TICK),
            st.integers(4, 6),
            st.integers(15, 40),
        ),
        min_size=3,
        max_size=8,
    ),
    strategy=pipelines(),
)
def test_pipelines_equal_steps_where_everything_ties(
    host_ticks: tuple[int, int], requests: list[tuple[float, int, int]], strategy: Any
) -> None:
    """Batches are ready at the same time, and when others end, arrive and are handed over."""
    slo = SloConfig(ttft_s=64 * TICK, tpot_s=2 * TICK)
    where = with_coarse_links(toy_environment(ideal_engine(), slo, DEEP))
    load = toy_workload(requests)
    ticks = Ticks(host_ticks)
    span, step = (
        run(where, strategy, load, resolution=resolution, step_time=ticks)
        for resolution in ("span", "step")
    )
    assert_same(span, step)
    assert_same_steps(span, step)


def test_pipelines_take_fewer_events_than_steps() -> None:
    """Most steps of batches in flight are no events, or the cases above would say little."""
    where = toy_environment(vllm_engine(), SloConfig(), DEEP)
    load = toy_workload([(0.0, 50, 60), (0.02, 50, 60), (0.03, 20, 60), (0.0, 90, 50)])
    strategy = NoDG(name="s", instances=1, pp_size=2, num_kv_blocks=40)
    span, step = (run(where, strategy, load, resolution=name) for name in ("span", "step"))
    assert_same_steps(span, step, without=())
    num_steps = step.columns["instances"]["num_steps"].sum()
    assert span.num_events < num_steps / 2 < step.num_events / 4


def test_the_agreement_test_notices_steps_that_are_not_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch that comes before others that were computed ahead delays them."""
    where = toy_environment(vllm_engine(), SloConfig(), DEEP)
    load = toy_workload([(0.0, 50, 60), (0.02, 50, 60), (0.03, 20, 60)])
    strategy = NoDG(name="s", instances=1, pp_size=2)
    step = run(where, strategy, load, resolution="step")
    assert_same(run(where, strategy, load), step)
    monkeypatch.setattr(BatchesInFlight, "_take_back", lambda self, time_s: None)
    with pytest.raises((AssertionError, InvariantError)):
        assert_same(run(where, strategy, load), step)


def test_the_agreement_test_notices_one_step_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A span that runs over the arrival that should cut it is seen."""
    where = toy_environment(vllm_engine(), SloConfig())
    load = toy_workload([(0.0, 50, 60), (0.02, 50, 60), (0.03, 20, 60)])
    strategy = NoDG(name="s", instances=1)
    step = run(where, strategy, load, resolution="step")
    assert_same(run(where, strategy, load, resolution="span"), step)
    original = DecodeBatch.steps_with
    monkeypatch.setattr(DecodeBatch, "blocks_needed", lambda self, n: original(self, 10**9, n))
    with pytest.raises(AssertionError):
        assert_same(run(where, strategy, load, resolution="span"), step)


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


# --- collectives and KV transfers on the same wires ----------------------------------------------


def on_one_wire(where: Environment, bandwidth: float) -> Environment:
    """GPUs that reach each other, the host and the NICs over PCIe of this bandwidth (bytes/s)."""
    wire = dataclasses.replace(pcie4(), bandwidth=bandwidth)
    assert where.cluster.network is not None
    network = dataclasses.replace(where.cluster.network, bandwidth=bandwidth / 2, latency_s=2e-5)
    cluster = dataclasses.replace(where.cluster, fabric=wire, pcie=wire, network=network)
    return dataclasses.replace(where, cluster=cluster)


@settings(max_examples=60, deadline=None)
@given(
    requests=REQUESTS,
    engine=st.sampled_from([ideal_engine(), vllm_engine(), OVERLAPPING]),
    bandwidth=st.sampled_from([2e7, 1e8, 1e9]),
    placement=st.sampled_from(["intra-node", "inter-node"]),
    transfer=st.sampled_from(TRANSFERS),
    tp_size=st.sampled_from([2, 4]),
    num_kv_blocks=st.sampled_from([None, 13]),
)
def test_collectives_beside_transfers_are_the_same_at_all_resolutions(
    requests: list[tuple[float, int, int]],
    engine: EngineProfile,
    bandwidth: float,
    placement: Any,
    transfer: Any,
    tp_size: int,
    num_kv_blocks: int | None,
) -> None:
    """Shares frozen at the start of a step, demands constant until the batch changes."""
    where = on_one_wire(toy_environment(engine, SloConfig()), bandwidth)
    strategy = FuDG(
        name="s",
        tp_size=tp_size,
        prefill_instances=2,
        decode_instances=2,
        placement=placement,
        transfer=transfer,
        num_kv_blocks=num_kv_blocks,
    )
    load = toy_workload(requests)
    span = run(where, strategy, load, resolution="span")
    assert_same(span, run(where, strategy, load, resolution="step"))
    if len(requests) <= 6:
        assert_same(span, run(where, strategy, load, resolution="kernel"))


def test_collectives_and_transfers_slow_each_other_down() -> None:
    """The case above is not empty: steps beside transfers are longer, and so are the transfers."""
    strategy = FuDG(name="s", tp_size=4, prefill_instances=1, decode_instances=1)
    load = toy_workload([(0.0, 90, 50), (0.0, 90, 50), (0.01, 90, 30), (0.01, 90, 30)])
    shared = on_one_wire(toy_environment(ideal_engine(), SloConfig()), 2e7)
    # The same speeds, on wires that are told apart.
    pcie = dataclasses.replace(shared.cluster.pcie, name="pcie of its own")
    apart = dataclasses.replace(shared, cluster=dataclasses.replace(shared.cluster, pcie=pcie))
    slow, fast = run(shared, strategy, load), run(apart, strategy, load)
    busy = [result.columns["instances"]["busy_s"].sum() for result in (slow, fast)]
    assert busy[0] > 1.01 * busy[1]
    sent = [result.columns["transfers"]["duration_s"].sum() for result in (slow, fast)]
    assert sent[0] > 1.05 * sent[1]
    assert (slow.columns["spans"]["wire_share"] < 1).any()
    assert (fast.columns["spans"]["wire_share"] == 1).all()
    # The steps of a run follow from its record, those beside transfers too.
    log = unroll.steps(slow.columns, shared)
    by_step = run(shared, strategy, load, resolution="step").columns["spans"]
    in_order = np.lexsort((log["end_s"], log["instance"]))
    expected = np.lexsort((by_step["end_s"], by_step["instance"]))
    assert np.array_equal(log["end_s"][in_order], by_step["end_s"][expected])
