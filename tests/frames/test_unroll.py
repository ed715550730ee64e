"""Steps and tokens unrolled from spans: as in a run at resolution step, and as a witness saw."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simcluster import load, read
from simcluster.catalog.layers import ModelSpec
from simcluster.catalog.specs import EngineProfile
from simcluster.config import Environment
from simcluster.engine.groups.cluster import Cluster, Deployment
from simcluster.engine.instance import Instance
from simcluster.errors import InvariantError
from simcluster.frames.unroll import (
    PerRequest,
    inter_token_latencies,
    itl_quantiles_s,
    longest_stall_s,
    released_times,
    steps,
    token_times,
)
from simcluster.request import Request, RequestStatus
from simcluster.roofline import StepShape
from simcluster.roofline.of_environment import roofline_step_time
from simcluster.runs import compare as sweep
from simcluster.runs.result import Result
from simcluster.runs.simulate import run, simulate
from simcluster.scenario.file import resolve
from simcluster.sched import StepOutcome, StepPlan
from simcluster.strategies import FuDG, NoDG, PaDG, Strategy
from simcluster.testing.examples import examples
from simcluster.testing.specs import eager_engine, vllm_engine
from simcluster.testing.toy import ENGINES, STRICT, TOYS, toy_environment, with_room
from simcluster.testing.workloads import workload_of
from simcluster.workload import Workload

SCENARIOS = Path(__file__).parents[2] / "scenarios"

STRATEGIES: dict[str, Any] = {
    "vllm": NoDG(name="vllm", instances=2),
    "tight": NoDG(name="tight", instances=1, num_kv_blocks=13),
    "sarathi": NoDG(
        name="sarathi",
        instances=1,
        scheduler="chunked",
        chunk_size=70,
        max_num_seqs=64,
        num_kv_blocks=24,
    ),
    "sarathi-long-prompts": NoDG(
        name="sarathi-long-prompts",
        instances=1,
        scheduler="chunked",
        chunk_size=16,
        max_num_seqs=8,
        num_kv_blocks=24,
    ),
    "distserve": FuDG(name="distserve", prefill_instances=1, decode_instances=1, num_kv_blocks=13),
    "prefill-shows": FuDG(
        name="prefill-shows",
        prefill_instances=1,
        decode_instances=1,
        num_kv_blocks=13,
        first_token="prefill",
    ),
    "mooncake": FuDG(
        name="mooncake",
        prefill_instances=2,
        decode_instances=2,
        placement="inter-node",
        num_kv_blocks=24,
    ),
    "ecoserve": PaDG(name="ecoserve", instances=3),
    "ecoserve-tight": PaDG(name="ecoserve-tight", instances=2, num_kv_blocks=13, slack="max"),
    "piped": NoDG(name="piped", instances=1, pp_size=2, num_kv_blocks=26),
    "ecoserve-piped": PaDG(name="ecoserve-piped", instances=2, pp_size=2),
    "ecoserve-open": PaDG(name="ecoserve-open", instances=2, hold_output=False),
}


def unrolled(result: Result, where: Environment) -> tuple[dict[str, Any], PerRequest, PerRequest]:
    """Steps, computed and released token times of a run."""
    log = steps(result.columns, where)
    computed = token_times(result.columns, log)
    return log, computed, released_times(result.columns, computed)


def by_lane(columns: Any, names: Any) -> list[list[Any]]:
    """Columns in the order of instance, lane and time."""
    order = np.lexsort((columns["start_s"], columns["lane"], columns["instance"]))
    return [list(columns[name][order]) for name in names]


@pytest.fixture(scope="module")
def busy() -> Workload:
    """Requests that queue, preempt where memory is small, and meet other ones everywhere."""
    rng = np.random.default_rng(5)
    count = 60
    return workload_of(
        np.cumsum(rng.exponential(0.002, count)),
        rng.integers(1, 90, count),
        rng.integers(1, 60, count),
    )


# The witness ------------------------------------------------------------------------------------


class Witness:
    """A strategy that writes down every token when it is computed and when it is released.

    It stands between instance and scheduler and knows nothing of spans or segments; at resolution
    ``step`` it sees every step.
    """

    def __init__(self, strategy: Strategy) -> None:
        self.kind, self.name, self._strategy = strategy.kind, strategy.name, strategy
        self.computed: dict[int, list[float]] = defaultdict(list)
        self.released: dict[int, list[float]] = defaultdict(list)

    def build(self, cluster: Cluster) -> Deployment:
        """Build the deployment and listen in on its instances."""
        deployment = self._strategy.build(cluster)
        for instance in cluster.instances:
            for lane in getattr(instance, "lanes", [instance]):  # of a pipeline
                self._watch(lane)
        return deployment

    def _leaves(self, request: Request) -> bool:
        """Whether the first token of `request`, just prefilled, comes from a decode instance."""
        shown_here = not isinstance(self._strategy, FuDG) or self._strategy.first_token == "prefill"
        return request.status is RequestStatus.TRANSFERRING and not shown_here

    def _watch(self, instance: Instance) -> None:
        scheduler, held = instance.scheduler, []
        complete, release_output = scheduler.complete, instance.release_output
        schedule = scheduler.schedule

        def watched_complete(plan: StepPlan, num_steps: int, now: float) -> StepOutcome:
            decoding = [r.request_id for r in scheduler.batch] if plan.num_decodes else []
            outcome = complete(plan, num_steps, now)
            leaving = {r.request_id for r in outcome.prefilled if self._leaves(r)}
            for number in [*decoding, *(r.request_id for r in outcome.prefilled)]:
                self.computed[number].append(now)
                if number in leaving:
                    continue
                if instance.hold_output:
                    held.append(number)
                else:
                    self.released[number].append(now)
            return outcome

        def watched_schedule(now: float) -> StepPlan | None:
            plan = schedule(now)
            for request in scheduler.joined:
                if not self.released[request.request_id]:
                    self.released[request.request_id].append(now)
            return plan

        def watched_release() -> Any:
            for number in held:
                self.released[number].append(scheduler_clock())
            held.clear()
            return release_output()

        def scheduler_clock() -> float:
            return float(instance.env.now)

        scheduler.schedule = watched_schedule  # type: ignore[method-assign]  # listening in
        scheduler.complete = watched_complete  # type: ignore[method-assign]  # listening in
        instance.release_output = watched_release  # type: ignore[method-assign]


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.name)
@pytest.mark.parametrize("model", TOYS, ids=lambda m: m.name)
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_token_is_where_a_witness_saw_it(
    name: str, model: ModelSpec, engine: EngineProfile, busy: Workload
) -> None:
    """Computed and released times of all tokens, from a span run against watching a step run."""
    where = toy_environment(engine, STRICT, model)
    strategy = with_room(STRATEGIES[name], model)
    witness = Witness(strategy)
    run(where, witness, busy, resolution="step")
    result = run(where, strategy, busy)
    _, computed, released = unrolled(result, where)
    for number in range(len(busy.prompt_len)):
        assert list(computed[number]) == witness.computed[number]
        assert list(released[number]) == witness.released[number]


def test_the_cases_hold_output_preempt_and_share_steps(busy: Workload) -> None:
    """The runs above contain what is hard to unroll, or they would say little."""
    where = toy_environment(slo=STRICT)
    for name in ("tight", "sarathi", "distserve", "ecoserve-tight"):
        columns = run(where, STRATEGIES[name], busy).columns
        assert columns["requests"]["num_preemptions"].sum() > 0, name
    result = run(where, STRATEGIES["ecoserve"], busy)
    _, computed, released = unrolled(result, where)
    assert len(result.columns["windows"]["instance"]) > 3
    assert np.any(released.values > computed.values)
    assert (result.columns["spans"]["num_steps"] > 1).any()
    assert (run(where, STRATEGIES["sarathi"], busy).columns["spans"]["kind"] == "mixed").any()
    spans = run(where, STRATEGIES["sarathi-long-prompts"], busy).columns["spans"]
    assert ((spans["kind"] == "mixed") & (spans["num_steps"] > 1)).any()


# Spans against steps ----------------------------------------------------------------------------

GAPS = st.one_of(st.just(0.0), st.integers(0, 40).map(lambda k: k * 2.0**-10), st.floats(0.0, 0.03))


@examples(150)
@given(
    strategy=st.sampled_from(list(STRATEGIES.values())),
    requests=st.lists(
        st.tuples(GAPS, st.integers(1, 100), st.integers(1, 60)), min_size=1, max_size=20
    ),
    engine=st.sampled_from(ENGINES),
    model=st.sampled_from(TOYS),
    concurrency=st.sampled_from([None, None, 1, 4]),
    max_time_s=st.sampled_from([None, None, 0.0, 0.03, 0.1]),
)
@example(  # chunks of a prompt without decodes, with sliding windows
    strategy=STRATEGIES["sarathi-long-prompts"],
    requests=[(0.0, 49, 1)],
    engine=ENGINES[0],
    model=next(model for model in TOYS if model.reach is not None),
    concurrency=None,
    max_time_s=None,
)
def test_span_run_and_step_run_agree_on_every_step_and_token(
    strategy: Any,
    requests: list[tuple[float, int, int]],
    engine: EngineProfile,
    model: ModelSpec,
    concurrency: int | None,
    max_time_s: float | None,
) -> None:
    """Also when the clock stops early, in the middle of spans, windows and transfers."""
    gaps, prompts, outputs = zip(*requests, strict=True)
    load = workload_of(np.cumsum(gaps), prompts, outputs, concurrency=concurrency)
    where, strategy = toy_environment(engine, STRICT, model), with_room(strategy, model)
    results = [
        run(where, strategy, load, resolution=resolution, max_time_s=max_time_s)
        for resolution in ("span", "step")
    ]
    (log, computed, released), (step_log, *step_tokens) = (unrolled(r, where) for r in results)
    # At resolution step a span is a step: the frame itself is the oracle.
    spans = results[1].columns["spans"]
    assert set(spans["num_steps"]) <= {1}
    assert by_lane(log, log) == by_lane(spans, log) == by_lane(step_log, log)
    for tokens, others in zip((computed, released), step_tokens, strict=True):
        assert list(tokens.offsets) == list(others.offsets)
        np.testing.assert_array_equal(tokens.values, others.values)
    assert_laws(results[0], computed, released)


def assert_laws(result: Result, computed: PerRequest, released: PerRequest) -> None:
    """What token times must be, whatever the strategy."""
    columns = result.columns["requests"]
    gaps = inter_token_latencies(computed)
    assert list(computed.counts) == list(columns["num_output_tokens"])
    for number, count in enumerate(computed.counts):
        tokens, shown = computed[number], released[number]
        assert len(gaps[number]) == max(0, count - 1)
        if not count:
            assert np.isnan(columns["first_token_s"][number])
            continue
        assert tokens[0] == columns["first_token_s"][number]
        assert np.all(np.diff(tokens) > 0)
        # What is held back when the run ends is never shown.
        held = np.isnan(shown)
        assert np.all(np.diff(held.astype(int)) >= 0)
        assert np.all((shown >= tokens)[~held])
        assert np.all(np.diff(shown[~held]) >= 0)
        if columns["status"][number] == "finished":
            assert tokens[-1] == columns["last_token_s"][number]
            np.testing.assert_equal(shown[-1], columns["last_output_s"][number])
        # Sums on the time grid are exact, so the mean gap is too.
        assert gaps[number].sum() == tokens[-1] - tokens[0]


def test_tpot_is_the_mean_gap_of_released_tokens(busy: Workload) -> None:
    """The TPOT of the requests frame is the mean ITL, for every strategy."""
    for strategy in STRATEGIES.values():
        result = run(toy_environment(slo=STRICT), strategy, busy)
        *_, released = unrolled(result, toy_environment(slo=STRICT))
        tpot_s = result.columns["requests"]["tpot_s"]
        gaps = inter_token_latencies(released)
        for number in np.flatnonzero(gaps.counts):
            assert gaps[number].mean() == pytest.approx(tpot_s[number], rel=1e-12)


def test_one_request_alone_decodes_at_the_pace_of_its_step_times() -> None:
    """The gaps are the durations that the model gives for one sequence of growing context."""
    where = toy_environment(vllm_engine(), STRICT)
    result = run(where, NoDG(name="s", instances=1), workload_of([0.0], [40], [12]))
    _, computed, _ = unrolled(result, where)
    model = roofline_step_time(where, 1)
    expected = [model.step_s(StepShape(1, c, (), 1, c)) for c in range(41, 52)]
    assert list(inter_token_latencies(computed)[0]) == expected


# Saved runs -------------------------------------------------------------------------------------


@pytest.mark.parametrize("fmt", ["parquet", "csv"])
def test_a_result_folder_is_enough(tmp_path: Path, fmt: Any) -> None:
    """Frames and scenario of a saved run give the same steps and tokens as the run in hand."""
    changes = {"workload.num_requests": 40, "sweep.rates_rps": [6]}
    scenario = load(SCENARIOS / "nodg_vs_padg.toml", changes)
    sweep.compare(scenario, jobs=1, out=tmp_path / "saved", fmt=fmt)
    saved = read(tmp_path / "saved")
    where = resolve(saved.document).environment
    for cell in saved.cells():
        frames = saved.frames(cell)
        result = simulate(scenario, strategy=cell.strategy, rate_rps=cell.rate_rps, seed=cell.seed)
        log, computed, released = unrolled(result, scenario.environment)
        saved_log = steps(frames, where)
        saved_tokens = token_times(frames, saved_log)
        assert by_lane(saved_log, log) == by_lane(log, log)
        assert list(saved_tokens.values) == list(computed.values)
        assert list(released_times(frames, saved_tokens).values) == list(released.values)


def test_another_environment_is_noticed(busy: Workload) -> None:
    """Step times that are not those of the run end its spans at other times."""
    result = run(toy_environment(vllm_engine(), STRICT), STRATEGIES["vllm"], busy)
    with pytest.raises(InvariantError, match="not those of the run"):
        steps(result.columns, toy_environment(eager_engine(), STRICT))


def test_frames_of_different_runs_are_noticed(busy: Workload) -> None:
    """Tokens cannot be read from the steps of another run, or with other requests."""
    where = toy_environment(slo=STRICT)
    one = run(where, STRATEGIES["vllm"], busy)
    two = run(where, STRATEGIES["tight"], busy)
    log = steps(one.columns, where)
    short = {name: column[: len(column) // 2] for name, column in log.items()}
    with pytest.raises(InvariantError, match="segment"):
        token_times(one.columns, short)
    with pytest.raises(InvariantError, match="segments"):
        token_times({**one.columns, "segments": two.columns["segments"]}, log)
    held = run(where, STRATEGIES["ecoserve"], busy)
    tokens = token_times(held.columns, steps(held.columns, where))
    with pytest.raises(InvariantError, match="windows"):
        released_times({**held.columns, "windows": one.columns["windows"]}, tokens)


# Latencies of tokens ----------------------------------------------------------------------------

TOKENS = PerRequest(np.array([0, 3, 3, 4, 6]), np.array([1.0, 1.5, 3.5, 2.0, 4.0, 4.25]))


def test_gaps_and_stalls_of_written_out_tokens() -> None:
    """Four requests: of three tokens, none, one, and two."""
    gaps = inter_token_latencies(TOKENS)
    assert [list(gaps[i]) for i in range(4)] == [[0.5, 2.0], [], [], [0.25]]
    np.testing.assert_array_equal(longest_stall_s(TOKENS), [2.0, np.nan, np.nan, 0.25])
    assert list(itl_quantiles_s(TOKENS, (0.0, 0.5, 1.0))) == [0.25, 0.5, 2.0]
    assert list(TOKENS[-1]) == [4.0, 4.25]
    with pytest.raises(IndexError):
        TOKENS[4]


def test_no_tokens_have_no_gaps() -> None:
    """An empty run, and requests of one token."""
    empty = PerRequest(np.zeros(1, np.int64), np.empty(0))
    assert len(longest_stall_s(empty)) == 0
    assert np.isnan(itl_quantiles_s(empty)).all()
    where = toy_environment(slo=STRICT)
    result = run(where, STRATEGIES["vllm"], workload_of([0.0, 0.1], [5, 5], [1, 1]))
    _, computed, _ = unrolled(result, where)
    assert list(computed.counts) == [1, 1]
    assert np.isnan(longest_stall_s(computed)).all()


def test_a_held_request_stalls_its_user_but_not_the_engine(busy: Workload) -> None:
    """Hold-back makes somebody wait longer between tokens than the engine took for them."""
    where = toy_environment(slo=STRICT)
    held = run(where, STRATEGIES["ecoserve-tight"], busy)
    _, computed, released = unrolled(held, where)
    stalls, shown = longest_stall_s(computed), longest_stall_s(released)
    assert np.nanmax(shown - stalls) > 0


def test_rejected_requests_have_no_tokens() -> None:
    """They keep their row, empty."""
    where = toy_environment(slo=STRICT)
    load = workload_of([0.0, 0.0], [5, 5], [3, 3], rejected=[True, False])
    _, computed, _ = unrolled(run(where, STRATEGIES["vllm"], load), where)
    assert list(computed.counts) == [0, 3]


def test_requests_hold_their_counters_after_a_run_that_was_cut() -> None:
    """A run cut in the middle of a span knows how far its requests are."""
    where = toy_environment(vllm_engine(), STRICT)
    load = workload_of([0.0, 0.02], [50, 50], [60, 60])
    result = run(where, NoDG(name="s", instances=1), load, max_time_s=0.05)
    requests = result.columns["requests"]
    _, computed, _ = unrolled(result, where)
    assert list(requests["status"]) == ["unfinished", "unfinished"]
    assert all(requests["num_output_tokens"] > 10)
    assert computed.values.max() <= 0.05
