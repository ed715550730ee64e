"""Laws that hold whatever is simulated: queueing theory, conservation, relations between runs."""

from __future__ import annotations

import dataclasses
import heapq
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simcluster.config import Environment, SloConfig
from simcluster.rng import stream
from simcluster.roofline.sources import StepTimeFactory
from simcluster.runs.result import Result
from simcluster.runs.simulate import run
from simcluster.strategies import FuDG, NoDG, PaDG, Strategy
from simcluster.testing import specs
from simcluster.testing.examples import examples
from simcluster.testing.laws import STAMPS, check_laws
from simcluster.testing.step_times import ConstantStepTime, LinearStepTime, same_for_all
from simcluster.testing.watch import Watched
from simcluster.testing.workloads import shared_prefixes, workload_of
from simcluster.units import FloatArray, IntArray, grid_array, on_grid
from simcluster.workload import Workload
from simcluster.workload.hashes import BlockHashes

RouterName = Literal["round-robin", "least-loaded", "shared-queue", "prefix-aware"]
ROUTER_NAMES: tuple[RouterName, ...] = (
    "round-robin",
    "least-loaded",
    "shared-queue",
    "prefix-aware",
)
NUM_SEEDS = 20
NUM_REQUESTS = 4000

# --- queueing theory ---------------------------------------------------------------------------


def md1_wait(rate_rps: float, service_s: float) -> float:
    """Mean wait of M/D/1: Pollaczek-Khinchine without variance of service."""
    load = rate_rps * service_s
    return load * service_s / (2 * (1 - load))


def erlang_c(num_servers: int, offered: float) -> float:
    """Probability of waiting in M/M/c, from the Erlang B recursion (`offered` in erlangs)."""
    blocked = 1.0
    for k in range(1, num_servers + 1):
        blocked = offered * blocked / (k + offered * blocked)
    return blocked / (1 - offered / num_servers * (1 - blocked))


def mmc_wait(rate_rps: float, service_s: float, num_servers: int) -> float:
    """Mean wait of M/M/c."""
    offered = rate_rps * service_s
    return erlang_c(num_servers, offered) * service_s / (num_servers - offered)


def assert_mean_is(samples: list[float], expected: float) -> None:
    """The mean over seeds is the expected one, within four standard errors."""
    half_width = 4 * np.std(samples, ddof=1) / math.sqrt(len(samples))
    assert half_width < 0.25 * expected, "too noisy to say anything"
    assert abs(np.mean(samples) - expected) < half_width


def poisson(rate_rps: float, seed: int, num_requests: int = NUM_REQUESTS) -> FloatArray:
    """Poisson arrivals (s) on the grid."""
    gaps = stream(seed, "test", "arrivals").exponential(1 / rate_rps, num_requests)
    return grid_array(np.cumsum(gaps))


TOKENS_PER_S = 2**14


def exponential_prompts(seed: int, num_requests: int = NUM_REQUESTS) -> IntArray:
    """Prompts whose prefill takes an exponential time of mean 1 s at `TOKENS_PER_S`."""
    service_s = stream(seed, "test", "service").exponential(1.0, num_requests)
    return np.ceil(service_s * TOKENS_PER_S).astype(np.int64)


def servers(num_servers: int, router: RouterName = "shared-queue") -> NoDG:
    """Instances that serve one request at a time."""
    return NoDG(name="servers", instances=num_servers, max_num_seqs=1, router=router)


ONE_TOKEN = specs.environment(
    model=specs.llama_2_7b(num_layers=1, num_heads=2, num_kv_heads=1, head_dim=128),
    engine=dataclasses.replace(specs.ideal_engine(), block_size=1024),
    max_model_len=2**18,
)
"""Room for a prompt of 16 mean service times."""


@pytest.mark.parametrize("rho", [0.3, 0.7])
def test_one_slot_with_constant_step_waits_like_md1(rho: float) -> None:
    """One sequence of one token and a constant step: the mean wait is the M/D/1 formula."""
    waits = []
    for seed in range(NUM_SEEDS):
        workload = workload_of(poisson(rho, seed), 1, 1)
        result = run(
            ONE_TOKEN,
            servers(1, "least-loaded"),
            workload,
            step_time=same_for_all(ConstantStepTime(1.0)),
        )
        waits.append(float(np.mean(result.columns["requests"]["queue_s"])))
    assert_mean_is(waits, md1_wait(rho, 1.0))


@pytest.mark.parametrize(("num_servers", "rho"), [(1, 0.5), (2, 0.7), (4, 0.8)])
def test_a_shared_queue_with_exponential_prefills_waits_like_mmc(
    num_servers: int, rho: float
) -> None:
    """Instances that share a queue of exponential jobs: the mean wait is Erlang's formula."""
    rate_rps = rho * num_servers
    step_time = same_for_all(LinearStepTime(1 / TOKENS_PER_S, 1.0))
    waits = []
    for seed in range(NUM_SEEDS):
        workload = workload_of(poisson(rate_rps, seed), exponential_prompts(seed), 1)
        result = run(ONE_TOKEN, servers(num_servers), workload, step_time=step_time)
        waits.append(float(np.mean(result.columns["requests"]["queue_s"])))
    assert_mean_is(waits, mmc_wait(rate_rps, 1.0, num_servers))


def multi_server_starts(
    arrival_s: FloatArray, service_s: FloatArray, num_servers: int
) -> FloatArray:
    """When each customer of G/G/c starts, first come, first served: Kiefer and Wolfowitz (1955)."""
    free_at = [0.0] * num_servers
    starts = []
    for arrival, service in zip(arrival_s, service_s, strict=True):
        starts.append(max(arrival, heapq.heappop(free_at)))
        heapq.heappush(free_at, starts[-1] + service)
    return np.array(starts)


@pytest.mark.parametrize("num_servers", [1, 2, 3, 8])
def test_every_single_wait_is_that_of_the_recursion(num_servers: int) -> None:
    """Not only the mean: each request of G/G/c starts when the recursion says, to the last bit."""
    arrivals = poisson(0.85 * num_servers, 1)
    prompts = exponential_prompts(2)
    step_time = same_for_all(LinearStepTime(1 / TOKENS_PER_S, 1.0))
    result = run(
        ONE_TOKEN, servers(num_servers), workload_of(arrivals, prompts, 1), step_time=step_time
    )
    expected = multi_server_starts(arrivals, prompts / TOKENS_PER_S, num_servers)
    assert np.array_equal(result.columns["requests"]["scheduled_s"], expected)


def test_decode_of_unlimited_batch_is_an_infinite_server() -> None:
    """A decode step that costs the same for any batch: M/G/infinity holds rate x service tokens.

    With prefills of one tick and steps of constant length nobody waits for longer than a step, so
    the mean number in the system is the arrival rate times the mean residence of one alone
    (insensitive to the distribution of lengths), within the half step lost on entering.
    """
    step_s, rate_rps = 2.0**-6, 8.0
    levels = []
    for seed in range(8):
        outputs = stream(seed, "test", "outputs").integers(32, 97, NUM_REQUESTS)
        arrivals = poisson(rate_rps, seed)
        watched = Watched(NoDG(name="infinite", instances=1))
        result = run(
            specs.environment(model=specs.llama_2_7b(), max_model_len=128),
            watched,
            workload_of(arrivals, 1, outputs),
            step_time=same_for_all(LinearStepTime(2.0**-32, step_s)),
        )
        assert result.columns["requests"]["num_preemptions"].sum() == 0
        levels.append(mean_level(watched.levels, 0.1 * arrivals[-1], 0.9 * arrivals[-1]))
    lost_s = step_s / 2
    assert_mean_is(levels, rate_rps * (64 * step_s - step_s + lost_s))


def mean_level(levels: list[tuple[float, int]], start_s: float, end_s: float) -> float:
    """Time average of a level between two times."""
    times, counts = (np.array(column, np.float64) for column in zip(*levels, strict=True))
    edges = np.clip(np.append(times, math.inf), start_s, end_s)
    return float((counts * np.diff(edges)).sum() / (end_s - start_s))


# --- conservation, on anything ------------------------------------------------------------------

MAX_MODEL_LEN = 64
SMALL = specs.environment(
    engine=dataclasses.replace(specs.ideal_engine(), block_size=4),
    max_model_len=MAX_MODEL_LEN,
    slo=SloConfig(ttft_s=0.25, tpot_s=0.02),
)
SLOW_LINK = dataclasses.replace(specs.pcie4(), bandwidth=2e8, latency_s=1e-3)
SMALL_AND_SLOW = dataclasses.replace(
    SMALL,
    cluster=dataclasses.replace(SMALL.cluster, fabric=SLOW_LINK, pcie=SLOW_LINK, network=SLOW_LINK),
)
BLOCK_BYTES = 4.0 * SMALL.model.kv_bytes_per_token
STEP_TIME = same_for_all(LinearStepTime(1e-3, 5e-3, per_context_token_s=1e-5))


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Up to 30 requests of at most `MAX_MODEL_LEN` tokens, with ties, some rejected."""
    gap = st.one_of(st.just(0.0), st.sampled_from([0.01, 0.02, 0.1]), st.floats(0.0, 0.3))
    rows = draw(
        st.lists(
            st.tuples(
                gap,
                st.integers(1, MAX_MODEL_LEN - 1),
                st.integers(1, MAX_MODEL_LEN - 1),
                st.integers(0, 9).map(lambda n: n == 0),
            ),
            min_size=1,
            max_size=30,
        )
    )
    gaps, prompts, outputs, rejected = zip(*rows, strict=True)
    outputs = np.minimum(outputs, MAX_MODEL_LEN - np.array(prompts))
    return workload_of(
        np.cumsum(gaps),
        prompts,
        outputs,
        rejected=rejected,
        concurrency=draw(st.sampled_from([None, None, None, 1, 3, 40])),
        hashes=draw(prefixes(prompts, outputs)),
    )


@st.composite
def prefixes(draw: st.DrawFn, prompts: Sequence[int], outputs: Sequence[int]) -> BlockHashes | None:
    """None, or block ids: of conversations (answers too), of common beginnings, of nothing."""
    if draw(st.booleans()):
        return None
    count = len(prompts)
    groups = draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))
    shared = draw(st.lists(st.integers(0, MAX_MODEL_LEN), min_size=count, max_size=count))
    known = np.array(prompts) + np.array(outputs) * draw(st.booleans())
    return shared_prefixes(
        groups, shared, known.tolist(), tokens_per_id=draw(st.sampled_from([2, 4, 8]))
    )


@st.composite
def strategies(draw: st.DrawFn, kinds: tuple[str, ...] = ("nodg", "fudg", "padg")) -> Strategy:
    """Any strategy, with pools so small that they preempt."""
    router: RouterName = draw(st.sampled_from(ROUTER_NAMES))
    interval_s = draw(st.sampled_from([0.0, 0.0, 2.0**-6, 0.25]))
    common: dict[str, Any] = {
        "name": "any",
        "max_num_seqs": draw(st.sampled_from([1, 2, 5, 16])),
        "num_kv_blocks": draw(st.sampled_from([16, 17, 20, 40])),
        "prefix_caching": draw(st.booleans()),
        "preemption": draw(st.sampled_from(["recompute", "swap"])),
        "swap_bytes": draw(st.sampled_from([4.0 * 2**30, 12 * BLOCK_BYTES])),
    }
    kind = draw(st.sampled_from(kinds))
    if kind == "padg":
        return PaDG(
            instances=draw(st.integers(1, 3)),
            variant=draw(st.sampled_from(["paper", "code"])),
            slack=draw(st.sampled_from([None, "mean", "max", "min", "quantile:0.5"])),
            next_instance=draw(st.sampled_from(["cyclic", "random"])),
            window=draw(st.sampled_from(["adaptive", "adaptive", "fixed:0.25"])),
            hold_output=draw(st.booleans()),
            **common,
        )
    if kind == "fudg":
        return FuDG(
            prefill_instances=draw(st.integers(1, 2)),
            decode_instances=draw(st.integers(1, 2)),
            placement=draw(st.sampled_from(["intra-node", "inter-node"])),
            waiting_block_share=draw(st.sampled_from([None, 0.05, 0.5])),
            prefill_max_num_seqs=draw(st.sampled_from([None, 1, 3])),
            **draw(
                st.sampled_from(
                    [
                        {"router": router, "status_interval_s": interval_s},
                        {"prefill_choice": "ttft"},
                        {"prefill_choice": "ttft", "early_rejection": True},
                    ]
                )
            ),
            **common,
        )
    chunk = draw(st.sampled_from([None, 16, 21, 64]))
    return NoDG(
        instances=draw(st.integers(1, 3)),
        scheduler="chunked" if chunk else "prefill-priority",
        chunk_size=chunk,
        router=router,
        status_interval_s=interval_s,
        **common,
    )


@examples(400)
@given(strategy=strategies(), workload=workloads())
def test_requests_tokens_blocks_and_time_are_conserved(
    strategy: Strategy, workload: Workload
) -> None:
    """Nothing is lost, made twice, or left lying about, however small the memory."""
    watched = Watched(strategy)
    result = run(SMALL_AND_SLOW, watched, workload, step_time=STEP_TIME)
    check_laws(result)
    requests = result.columns["requests"]
    finished = requests["status"] == "finished"
    assert not (requests["status"] == "unfinished").any()
    assert (requests["status"][workload.rejected] == "rejected").all()
    if strategy.kind != "padg" and not getattr(strategy, "early_rejection", False):
        assert np.array_equal(finished, ~workload.rejected)
    produced = sum(books.num_prefilled + books.decode_tokens for books in watched.books)
    assert produced == requests["num_output_tokens"].sum() == requests["output_len"][finished].sum()
    prefilled = sum(books.prefill_tokens for books in watched.books)
    spans = result.columns["spans"]
    assert prefilled == (spans["num_steps"] * spans["prefill_tokens"]).sum()
    cached = sum(books.cached_tokens for books in watched.books)
    assert cached >= requests["num_cached_tokens"].sum()
    assert cached == 0 or (strategy.prefix_caching and workload.hashes is not None)
    assert_empty(watched)


def assert_empty(watched: Watched) -> None:
    """Nothing is left in the instances: no request, no token, no block."""
    for lane in watched.lanes:
        assert lane.scheduler.pool.free_blocks == lane.scheduler.pool.num_blocks
        assert not lane.scheduler.has_unfinished
        assert lane.scheduler.num_tokens == lane.scheduler.queued_tokens == lane.load_tokens == 0
        assert lane.scheduler.waiting_blocks == 0
        host = lane.scheduler.swap.host
        assert host is None or host.free_blocks == host.num_blocks


@examples(60)
@given(strategy=strategies(), workload=workloads())
def test_pipelines_conserve_too(strategy: Any, workload: Workload) -> None:
    """Two stages with a batch in flight on each, on the roofline's step times."""
    piped = dataclasses.replace(strategy, pp_size=2, num_kv_blocks=2 * strategy.num_kv_blocks)
    if piped.kind == "fudg":  # its estimates of the TTFT are of one batch at a time
        piped = dataclasses.replace(piped, prefill_choice="router", early_rejection=False)
    watched = Watched(piped)
    result = run(SMALL_AND_SLOW, watched, workload)
    check_laws(result)
    requests = result.columns["requests"]
    assert not (requests["status"] == "unfinished").any()
    produced = sum(books.num_prefilled + books.decode_tokens for books in watched.books)
    assert produced == requests["num_output_tokens"].sum()
    assert_empty(watched)


@examples(150)
@given(strategy=strategies(), workload=workloads())
def test_littles_law_holds_exactly(strategy: Strategy, workload: Workload) -> None:
    """From empty to empty: the number in the system, summed over time, is the residences' sum.

    Both sides are sums of multiples of one tick and therefore exact; the left comes from counting
    heads at the door, the right from the stamps.
    """
    watched = Watched(strategy)
    result = run(SMALL_AND_SLOW, watched, workload, step_time=STEP_TIME)
    requests = result.columns["requests"]
    inside = requests["status"] == "finished"
    residence_s = (requests["last_output_s"] - requests["arrival_s"])[inside]
    assert watched.levels[-1][1] == 0
    times, counts = zip(*watched.levels, strict=True)
    area = (np.array(counts[:-1]) * np.diff(times)).sum() if len(times) > 1 else 0.0
    assert area == residence_s.sum()


def test_the_laws_see_preemptions_and_transfers() -> None:
    """What is drawn above does preempt, wait and transfer, or the laws would say little."""
    rng = np.random.default_rng(0)
    prompts = rng.integers(1, MAX_MODEL_LEN - 1, 40)
    outputs = np.minimum(rng.integers(1, MAX_MODEL_LEN, 40), MAX_MODEL_LEN - prompts)
    workload = workload_of(
        np.cumsum(rng.exponential(0.02, 40)),
        prompts,
        outputs,
        hashes=shared_prefixes([0] * 40, prompts // 2, prompts, tokens_per_id=4),
    )
    for strategy in (
        NoDG(name="a", instances=1, num_kv_blocks=20),
        NoDG(name="b", instances=1, num_kv_blocks=20, scheduler="chunked", chunk_size=256),
        FuDG(name="c", prefill_instances=1, decode_instances=1, num_kv_blocks=20),
        NoDG(name="d", instances=1, num_kv_blocks=20, prefix_caching=True, preemption="swap"),
    ):
        result = run(SMALL_AND_SLOW, strategy, workload, step_time=STEP_TIME)
        check_laws(result)
        assert result.columns["requests"]["num_preemptions"].sum() >= 3
        assert (result.columns["requests"]["queue_s"] > 0).any()
        swaps = result.columns["instances"]["num_swaps"].sum()
        assert swaps >= 3 if strategy.preemption == "swap" else swaps == 0
        found = result.columns["instances"]["cached_blocks"].sum()
        assert found >= 3 if strategy.prefix_caching else found == 0


# --- relations between runs ---------------------------------------------------------------------


def same(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> bool:
    """Whether two columns are equal, NaN included."""
    if one.dtype == object:
        return bool((one == other).all())
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))


def simulated(
    strategy: Strategy,
    workload: Workload,
    environment: Environment = SMALL,
    step_time: StepTimeFactory = STEP_TIME,
    resolution: str = "span",
) -> Result:
    """Run it."""
    return run(environment, strategy, workload, step_time=step_time, resolution=resolution)


def with_copies(environment: Environment, block_s: float, slo: SloConfig) -> Environment:
    """With these targets, and a copy of a KV block to host memory that takes `block_s`."""
    link = dataclasses.replace(
        environment.cluster.pcie, bandwidth=BLOCK_BYTES / block_s, efficiency=1.0, latency_s=block_s
    )
    cluster = dataclasses.replace(environment.cluster, pcie=link)
    return dataclasses.replace(environment, cluster=cluster, slo=slo)


@examples(100)
@given(strategy=strategies(("nodg", "padg")), workload=workloads())
def test_twice_the_time_is_twice_every_stamp(strategy: Strategy, workload: Workload) -> None:
    """Arrivals, steps and targets that take twice as long double every time, to the last bit."""
    # Powers of two: doubled they are still on the grid.
    once = LinearStepTime(2.0**-10, 2.0**-8, per_context_token_s=2.0**-16)
    twice = LinearStepTime(2.0**-9, 2.0**-7, per_context_token_s=2.0**-15)
    short = with_copies(SMALL, 2.0**-8, SloConfig(ttft_s=0.25, tpot_s=2.0**-6))
    long = with_copies(SMALL, 2.0**-7, SloConfig(ttft_s=0.5, tpot_s=2.0**-5))
    slower = dataclasses.replace(workload, arrival_s=2 * workload.arrival_s)
    settled: Any = strategy
    later = dataclasses.replace(settled, status_interval_s=2 * settled.status_interval_s)
    one = simulated(strategy, workload, short, same_for_all(once))
    other = simulated(later, slower, long, same_for_all(twice))
    for frame in ("requests", "spans", "windows", "instances"):
        for name, column in one.columns[frame].items():
            expected = 2 * column if name.endswith("_s") else column
            assert same(expected, other.columns[frame][name]), f"{frame}.{name}"


@examples(60)
@given(workload=workloads(), chunk=st.sampled_from([16, 17, 40, 256]))
def test_chunk_size_changes_no_work(workload: Workload, chunk: int) -> None:
    """Prompt tokens computed are prompt tokens asked for, in whatever pieces."""
    strategy = NoDG(
        name="chunks", instances=1, scheduler="chunked", chunk_size=chunk, max_num_seqs=16
    )
    result = simulated(strategy, workload)
    asked = workload.prompt_len[~workload.rejected].sum()
    spans = result.columns["spans"]
    assert (spans["num_steps"] * spans["prefill_tokens"]).sum() == asked


@examples(60)
@given(strategy=strategies(), workload=workloads(), concurrency=st.integers(1, 12))
def test_a_closed_loop_keeps_its_number_in_the_system(
    strategy: Strategy, workload: Workload, concurrency: int
) -> None:
    """The k-th departure lets the next request in at the same time, until none is left.

    A request departs when its user has the whole answer.
    """
    closed = dataclasses.replace(
        workload,
        arrival_s=np.zeros(workload.num_requests),
        concurrency=concurrency,
    )
    environment = dataclasses.replace(SMALL, slo=SloConfig(ttft_s=9.0, tpot_s=9.0))
    requests = simulated(strategy, closed, environment).columns["requests"]
    # A rejected request leaves as it comes.
    left = np.where(closed.rejected, requests["arrival_s"], requests["last_output_s"])
    assert (requests["arrival_s"][:concurrency] == 0).all()
    entered = requests["arrival_s"][concurrency:]
    assert np.array_equal(entered, np.sort(left)[: len(entered)])


TIMES = (
    *STAMPS,
    "first_output_s",
    "last_output_s",
)


def assert_same_before(one: Result, other: Result, until_s: float) -> None:
    """Every stamp before `until_s` (s) is the same in both runs; so many requests are compared."""
    count = min(len(r.columns["requests"]["request_id"]) for r in (one, other))
    for name in TIMES:
        times, theirs = (r.columns["requests"][name][:count] for r in (one, other))
        assert same(np.where(times < until_s, times, 0), np.where(theirs < until_s, theirs, 0)), (
            name
        )


@examples(150)
@given(strategy=strategies(), workload=workloads(), data=st.data())
def test_nothing_depends_on_the_future(
    strategy: Strategy, workload: Workload, data: st.DataObject
) -> None:
    """Leaving out the requests that come later changes nothing that happens before."""
    workload = dataclasses.replace(workload, concurrency=None)
    kept = data.draw(st.integers(0, workload.num_requests - 1))
    fewer = dataclasses.replace(
        workload,
        arrival_s=workload.arrival_s[:kept],
        prompt_len=workload.prompt_len[:kept],
        output_len=workload.output_len[:kept],
        rejected=workload.rejected[:kept],
    )
    assert_same_before(
        simulated(strategy, workload, SMALL_AND_SLOW),
        simulated(strategy, fewer, SMALL_AND_SLOW),
        workload.arrival_s[kept],
    )


@examples(150)
@given(strategy=strategies(), workload=workloads(), until_s=st.floats(0.001, 3.0))
def test_a_run_that_is_stopped_is_the_beginning_of_the_run(
    strategy: Strategy, workload: Workload, until_s: float
) -> None:
    """Stopping the clock changes nothing that happened before; the unfinished keep their rows."""
    until_s = on_grid(until_s)
    full = simulated(strategy, workload, SMALL_AND_SLOW)
    stopped = run(SMALL_AND_SLOW, strategy, workload, step_time=STEP_TIME, max_time_s=until_s)
    assert_same_before(full, stopped, until_s)
    check_laws(stopped)
    assert stopped.end_s == min(until_s, full.end_s)
    requests = stopped.columns["requests"]
    if workload.concurrency is None:
        assert len(requests["request_id"]) == (workload.arrival_s <= until_s).sum()
    finished = requests["status"] == "finished"
    assert (requests["last_token_s"][finished] <= until_s).all()
    spans = stopped.columns["spans"]
    assert (spans["end_s"] <= until_s).all()


@pytest.mark.parametrize("load", [0.2, 0.6, 0.9])
def test_equal_instances_get_equal_shares(load: float) -> None:
    """Eight equal instances behind least-loaded: requests and busy time within 10 % of each other.

    Ties broken in a fixed order would give the first instance of an idle cluster everything.
    """
    num_requests, mean_s = 6000, 0.5
    rng = stream(5, "test", "lengths")
    prompts = rng.integers(50, 451, num_requests)
    outputs = rng.integers(1, 101, num_requests)
    # Alone, a request takes 250 x 1 ms + 50 x 5 ms; batches of decodes share their steps.
    workload = workload_of(poisson(8 * load / mean_s, 6, num_requests), prompts, outputs)
    result = run(
        specs.environment(max_model_len=1024),
        NoDG(name="eight", instances=8, router="least-loaded"),
        workload,
        step_time=same_for_all(LinearStepTime(1e-3, 5e-3)),
    )
    instances = result.columns["instances"]
    for name in ("num_requests", "busy_s"):
        share = instances[name] / instances[name].mean()
        assert share.max() - share.min() < 0.1, (name, share)


def attainment(result: Result, slo: SloConfig) -> float:
    """Share of all requests that met both targets; NaN of a one-token answer meets TPOT."""
    requests = result.columns["requests"]
    met = (requests["ttft_s"] <= slo.ttft_s) & ~(requests["tpot_s"] > slo.tpot_s)
    return float(met.mean())


@pytest.mark.parametrize("scheduler", ["prefill-priority", "chunked"])
@pytest.mark.parametrize("router", ["round-robin", "least-loaded"])
def test_more_load_does_not_raise_attainment(
    scheduler: Literal["prefill-priority", "chunked"], router: RouterName
) -> None:
    """NoDG: the same requests, packed closer, do not meet more targets, beyond noise."""
    slo = SloConfig(ttft_s=1.0, tpot_s=0.03)
    environment = specs.environment(max_model_len=2048, slo=slo)
    strategy = NoDG(name="nodg", instances=2, scheduler=scheduler, router=router)
    rates = [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    num_requests = 400
    shares = np.empty((6, len(rates)))
    for seed in range(len(shares)):
        rng = stream(seed, "test", "lengths")
        prompts = np.clip(rng.lognormal(5.0, 1.0, num_requests), 1, 1024).astype(int)
        outputs = np.clip(rng.lognormal(4.5, 0.8, num_requests), 1, 1024).astype(int)
        unit = poisson(1.0, seed, num_requests)
        for column, rate_rps in enumerate(rates):
            result = run(
                environment,
                strategy,
                workload_of(unit / rate_rps, prompts, outputs),
                step_time=same_for_all(LinearStepTime(2e-4, 2e-2, per_context_token_s=2e-7)),
            )
            shares[seed, column] = attainment(result, slo)
    assert shares[:, 0].mean() > 0.9
    assert shares[:, -1].mean() < 0.5
    rises = np.diff(shares, axis=1)
    noise = 4 * rises.std(axis=0, ddof=1) / math.sqrt(len(shares))
    assert (rises.mean(axis=0) <= noise).all(), rises.mean(axis=0)


@examples(40)
@given(strategy=strategies(), workload=workloads())
def test_span_is_step_here_too(strategy: Strategy, workload: Workload) -> None:
    """The default resolution gives the floats of one event per step on all of these cases."""
    one = simulated(strategy, workload, SMALL_AND_SLOW, resolution="span")
    other = simulated(strategy, workload, SMALL_AND_SLOW, resolution="step")
    for frame in ("requests", "transfers", "windows", "instances"):
        for name, column in one.columns[frame].items():
            assert same(column, other.columns[frame][name]), f"{frame}.{name}"
