"""EcoServe's rolling activation against its definitions, from scratch at every decision."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from helpers.drawn import bursts
from simcluster.config import Environment, SloConfig
from simcluster.request import Request
from simcluster.routing.prefill_predictor import PrefillPredictor, from_profile
from simcluster.routing.rolling_activation import (
    PaperActivation,
    slack_statistic,
)
from simcluster.runs.result import Result
from simcluster.runs.simulate import run
from simcluster.strategies import NoDG, PaDG
from simcluster.testing import specs
from simcluster.testing.examples import examples
from simcluster.testing.laws import check_laws
from simcluster.testing.step_times import LinearStepTime, same_for_all
from simcluster.testing.workloads import workload_of
from simcluster.units import TICKS_PER_S, on_grid
from simcluster.workload import Workload

Slack = Literal["mean", "max", "min", "quantile:0.3"]
SLACKS: tuple[Slack, ...] = ("mean", "max", "min", "quantile:0.3")


def ticks(time_s: float) -> int:
    """Time as a whole number of ticks: exact arithmetic of its own."""
    count = time_s * TICKS_PER_S
    assert count == int(count)
    return int(count)


def slack_covers(saved: list[int], need: int, slack: Slack) -> bool:
    """Whether the saved TPOT of the existing requests covers the prefill; empty passes."""
    if not saved:
        return True
    if slack == "mean":
        return sum(saved) >= need * len(saved)
    if slack == "quantile:0.3":
        # The smallest value that three tenths of all do not exceed.
        enough = [v for v in saved if 10 * sum(w <= v for w in saved) >= 3 * len(saved)]
        return min(enough) >= need
    return (max(saved) if slack == "max" else min(saved)) >= need


# --- the rule by itself --------------------------------------------------------------------------


@dataclass
class View:
    """What an instance reports."""

    decode_step: int = 0
    num_lanes: int = 1
    free_blocks: int = 100
    waiting_blocks: int = 0
    has_unfinished: bool = True

    def decode_step_of(self, lane: int) -> int:
        """Decode steps done."""
        return self.decode_step

    def prompt_blocks(self, num_tokens: int) -> int:
        """Blocks of 16 tokens."""
        return -(-num_tokens // 16)

    def free_blocks_after(self, num_steps: int) -> int:
        """Not used here."""
        raise NotImplementedError


@dataclass
class Placed:
    """A request as Algorithm 1 sees it."""

    request: Request
    order: int
    predicted: int
    tokens: int = 0
    first_token: int = 0
    decoding: bool = False


@dataclass
class Definition:
    """Algorithm 1 of EcoServe (OSDI version), nothing kept but the requests themselves.

    ``switched`` is the time of an instance's last phase switch, counted in decisions.
    """

    ttft: int
    tpot: int
    slack: Slack
    placed: list[list[Placed]]
    switched: list[int]
    current: int = 0
    opened: bool = False

    def satisfied(self, index: int, predicted: int, view: View, prompt: int, now: int) -> bool:
        """The three constraints."""
        here = self.placed[index]
        pending = [q for q in here if q.order >= self.switched[index]]
        total = sum(q.predicted for q in pending) + predicted
        existing = [q for q in here if q.order < self.switched[index] and q.decoding]
        saved = [q.tokens * self.tpot - (now - q.first_token) for q in existing]
        fits = math.ceil(prompt / 16) + view.waiting_blocks <= view.free_blocks
        return total <= self.ttft and slack_covers(saved, total, self.slack) and fits

    def scan(self, predicted: int, views: Sequence[View], prompt: int, now: int) -> int | None:
        """First satisfied instance in the ring, from the current on."""
        count = len(views)
        for step in range(count):
            index = (self.current + step) % count
            if self.satisfied(index, predicted, views[index], prompt, now):
                return index
        return None


CHANGES = ("route", "route", "route", "prefilled", "prefilled", "step", "step", "step", "leave")


@examples(200)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 4), slack=st.sampled_from(SLACKS))
def test_the_books_of_the_ring_are_algorithm_1(seed: int, count: int, slack: Slack) -> None:
    """Sums and keys stand for the pending and existing sets of the paper, whatever happens."""
    rng = np.random.default_rng(seed)
    ttft_s, tpot_s = on_grid(1.0), on_grid(0.1)
    rule = PaperActivation(count, ttft_s=ttft_s, tpot_s=tpot_s, slack=slack)
    slow = Definition(ticks(ttft_s), ticks(tpot_s), slack, [[] for _ in range(count)], [0] * count)
    views: Sequence[Any] = [View() for _ in range(count)]
    now = 0.0
    for order in range(1, 120):
        now = on_grid(now + rng.exponential(0.05 / count))
        index = int(rng.integers(count))
        here, view = slow.placed[index], views[index]
        view.free_blocks = int(rng.choice([4, 100, 100, 100]))
        view.waiting_blocks = int(rng.choice([0, 0, 2]))
        change = rng.choice(CHANGES)
        if change == "route":
            route(rule, slow, Request(order, now, int(rng.integers(1, 60)), 10**6), views, now)
        elif change == "step":
            view.decode_step += 1
            for placed in here:
                placed.tokens += placed.decoding
        elif change == "prefilled":
            coming = [q for q in here if not q.decoding]
            if coming:
                begin_decode(rule, index, coming[0], view, now)
        elif decoding := [q for q in here if q.decoding]:
            leaving, finished = decoding[rng.integers(len(decoding))], bool(rng.integers(2))
            rule.left(index, leaving.request, finished=finished)
            leaving.decoding = False
            if finished:
                here.remove(leaving)


def route(
    rule: PaperActivation,
    slow: Definition,
    request: Request,
    views: Sequence[Any],
    now: float,
) -> None:
    """Both decide about `request`; after a failed round the current instance opens a window too."""
    predicted_s = on_grid(request.prompt_len * 0.0073)
    order, prompt_len = request.request_id, request.prompt_len
    for index, view in enumerate(views):
        assert rule.satisfied(index, request, predicted_s, view, now) == slow.satisfied(
            index, ticks(predicted_s), view, prompt_len, ticks(now)
        )
    found = rule.scan(request, predicted_s, views, now)
    chosen = slow.scan(ticks(predicted_s), views, prompt_len, ticks(now))
    if found is None or chosen is None:
        assert found is chosen is None
        return
    opens = chosen != slow.current or not slow.opened
    assert found == (chosen, opens)
    assert rule.scan(request, predicted_s, views, now, among=[chosen]) == (chosen, True)
    rule.accept(chosen, request, predicted_s, now, opens=opens)
    slow.opened = True
    if opens:
        slow.switched[slow.current] = slow.switched[chosen] = order
        slow.current = chosen
    slow.placed[chosen].append(Placed(request, order, ticks(predicted_s)))


def begin_decode(rule: PaperActivation, index: int, placed: Placed, view: View, now: float) -> None:
    """A prefill ends: the first token, or the next one after a preemption."""
    request = placed.request
    if not placed.tokens:
        request.first_token_s = now
        placed.first_token = ticks(now)
    placed.tokens += 1
    placed.decoding = True
    request.num_output_tokens, request.decode_step = placed.tokens, view.decode_step
    rule.joined(index, request, 0, rule.key_of(request))


# --- in a cluster: every decision replayed from what was recorded --------------------------------

BLOCK = 4
MAX_MODEL_LEN = 256
STEP_TIME = LinearStepTime(1.03e-3, 4.9e-3, per_context_token_s=1.7e-6)


def machines(ttft_s: float, tpot_s: float) -> Environment:
    """Machines with small blocks under these targets."""
    return specs.environment(
        engine=dataclasses.replace(specs.ideal_engine(), block_size=BLOCK),
        max_model_len=MAX_MODEL_LEN,
        slo=SloConfig(ttft_s=ttft_s, tpot_s=tpot_s),
    )


@dataclass
class Replay:
    """The macro-instance scheduler, from the frames of a run at resolution ``step`` alone.

    At each time: steps end, then requests arrive, then the head of the queue is offered again if it
    waited and some step has ended. Only what has happened by then is looked at. Without preemption.
    """

    result: Result
    environment: Environment
    num_blocks: int
    slack: Slack
    num_instances: int
    routed: dict[int, tuple[int, float]] = field(default_factory=dict)
    rejected: list[int] = field(default_factory=list)
    windows: list[tuple[int, float]] = field(default_factory=list)
    pending: list[int] = field(default_factory=list)
    order: dict[int, int] = field(default_factory=dict)
    switched: list[int] = field(default_factory=list)
    current: int = 0
    decisions: int = 0
    most_pending: int = 0

    def __post_init__(self) -> None:
        columns = self.result.columns
        self.requests: dict[str, npt.NDArray[Any]] = columns["requests"]
        spans = columns["spans"]
        assert (spans["num_steps"] == 1).all()
        self.steps = [
            {name: spans[name][spans["instance"] == i] for name in ("start_s", "end_s", "kind")}
            for i in range(self.num_instances)
        ]
        self.switched = [0] * self.num_instances

    def run(self) -> None:
        """Decide about every request in turn."""
        ends = sorted({float(t) for steps in self.steps for t in steps["end_s"]})
        arrivals = self.requests["arrival_s"].tolist()
        for now in sorted({*ends, *arrivals}):
            offered_again = bool(self.pending) and now in ends
            for number in np.flatnonzero(self.requests["arrival_s"] == now).tolist():
                if self.pending or not self.place(number, now, waited=False):
                    self.pending.append(number)
            self.most_pending = max(self.most_pending, len(self.pending))
            waited = True
            while offered_again and self.pending and self.place(self.pending[0], now, waited):
                self.pending.pop(0)
                waited = False

    def predicted(self, number: int) -> int:
        """Predicted prefill of a request alone (ticks)."""
        return ticks(STEP_TIME.prefill_s(int(self.requests["prompt_len"][number])))

    def place(self, number: int, now: float, waited: bool) -> bool:
        """Route request `number` if some instance satisfies the constraints."""
        predicted, ttft_s = self.predicted(number), self.environment.slo.ttft_s
        assert ttft_s is not None
        if predicted > ticks(on_grid(ttft_s)):
            self.rejected.append(number)
            return True
        for step in range(self.num_instances):
            index = (self.current + step) % self.num_instances
            if self.satisfied(index, number, now):
                break
        else:
            return False
        self.decisions += 1
        if index != self.current:
            self.switched[self.current] = self.switched[index] = self.decisions
            self.windows.append((index, now))
        elif waited or not self.windows:
            self.switched[index] = self.decisions
            self.windows.append((index, now))
        self.current = index
        self.order[number] = self.decisions
        self.routed[number] = (index, now)
        return True

    def satisfied(self, index: int, number: int, now: float) -> bool:
        """Algorithm 1 of the paper for one instance."""
        slo = self.environment.slo
        assert slo.ttft_s is not None
        assert slo.tpot_s is not None
        last_token_s = self.requests["last_token_s"]
        here = [
            q for q, (where, _) in self.routed.items() if where == index and last_token_s[q] > now
        ]
        pending = [q for q in here if self.order[q] >= self.switched[index]]
        total = sum(self.predicted(q) for q in pending) + self.predicted(number)
        existing = [q for q in here if self.order[q] < self.switched[index]]
        tpot = ticks(on_grid(slo.tpot_s))
        saved = []
        for q in existing:
            first_token_s = float(self.requests["first_token_s"][q])
            if first_token_s <= now:
                tokens = 1 + self.decodes(q, index, ended_by=now)
                saved.append(tokens * tpot - (ticks(now) - ticks(first_token_s)))
        prompt_len = int(self.requests["prompt_len"][number])
        return (
            total <= ticks(on_grid(slo.ttft_s))
            and slack_covers(saved, total, self.slack)
            and -(-prompt_len // BLOCK) <= self.num_blocks - self.blocks(here, index, now)
        )

    def decodes(
        self, number: int, index: int, *, ended_by: float = math.inf, begun_by: float = math.inf
    ) -> int:
        """Decode steps of a request that have ended, or begun before, a time."""
        steps = self.steps[index]
        mine = (steps["kind"] == "decode") & (
            steps["start_s"] >= self.requests["decode_start_s"][number]
        )
        mine &= (steps["end_s"] <= ended_by) & (steps["start_s"] < begun_by)
        return int(mine.sum())

    def blocks(self, here: list[int], index: int, now: float) -> int:
        """KV blocks of the requests routed there: prompts, and the decode steps begun by `now`."""
        used = 0
        for q in here:
            tokens = int(self.requests["prompt_len"][q]) + self.decodes(q, index, begun_by=now)
            used += -(-tokens // BLOCK)
        return used


WORKLOADS = bursts([0.0, 0.0, 0.001, 0.01, 0.03, 0.1, 0.3], most=30)
TARGETS = st.sampled_from([(0.2, 0.0061), (0.1, 0.0057), (0.3, 0.0103), (0.16, 0.04), (5.0, 0.1)])


@examples(200)
@given(
    workload=WORKLOADS,
    targets=TARGETS,
    num_instances=st.integers(1, 4),
    slack=st.sampled_from(SLACKS),
    num_kv_blocks=st.sampled_from([70, 150, 2000]),
)
def test_every_decision_follows_from_what_was_recorded(
    workload: Workload,
    targets: tuple[float, float],
    num_instances: int,
    slack: Slack,
    num_kv_blocks: int,
) -> None:
    """Who goes where and when, and when windows open: recomputed from the frames, nothing else."""
    environment = machines(*targets)
    strategy = PaDG(name="padg", instances=num_instances, slack=slack, num_kv_blocks=num_kv_blocks)
    result = run(
        environment, strategy, workload, step_time=same_for_all(STEP_TIME), resolution="step"
    )
    assume(not result.columns["requests"]["num_preemptions"].any())
    check_replay(Replay(result, environment, num_kv_blocks, slack, num_instances))


def check_replay(replay: Replay) -> None:
    """The replay routes, rejects and opens windows like the run."""
    replay.run()
    requests, windows = replay.result.columns["requests"], replay.result.columns["windows"]
    assert replay.pending == []
    assert np.flatnonzero(requests["status"] == "rejected").tolist() == sorted(replay.rejected)
    for number, (index, now) in replay.routed.items():
        assert (requests["prefill_instance"][number], requests["routed_s"][number]) == (index, now)
    opened = list(zip(windows["instance"].tolist(), windows["opened_s"].tolist(), strict=True))
    assert opened == replay.windows


BUSY = machines(0.25, 0.0103)


def busy_run(
    num_instances: int,
    seed: int = 0,
    *,
    count: int = 150,
    resolution: str = "span",
    **rules: Any,
) -> Result:
    """A loaded ring with many switches and pending requests."""
    rng = np.random.default_rng(seed)
    workload = workload_of(
        np.cumsum(rng.exponential(0.04, count)),
        rng.integers(1, 120, count),
        rng.integers(1, 100, count),
    )
    return run(
        BUSY,
        PaDG(name="padg", instances=num_instances, **rules),
        workload,
        step_time=same_for_all(STEP_TIME),
        resolution=resolution,
    )


@pytest.mark.parametrize("slack", SLACKS)
@pytest.mark.parametrize("num_instances", [1, 2, 3, 5])
def test_long_runs_replay_with_switches_waits_and_new_windows(
    num_instances: int, slack: Slack
) -> None:
    """A loaded ring does all that the rule is about, and still follows from the record."""
    result = busy_run(num_instances, slack=slack, resolution="step")
    replay = Replay(result, BUSY, 10**6, slack, num_instances)
    check_replay(replay)
    changes = np.diff([index for index, _ in replay.windows])
    if num_instances <= 3:
        assert replay.most_pending >= 3
        assert (changes == 0).sum() >= 1, "no window after a failed round"
    if num_instances > 1:
        assert (changes != 0).sum() >= 10, "no switches"


@pytest.mark.parametrize("num_instances", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_one_window_is_open_at_a_time_and_everyone_gets_in(num_instances: int, seed: int) -> None:
    """Windows follow one another without gap or overlap; pending requests are all retried."""
    result = busy_run(num_instances, seed)
    check_laws(result)
    requests, windows = result.columns["requests"], result.columns["windows"]
    assert (requests["status"] == "finished").all()
    assert windows["opened_s"][0] == requests["arrival_s"][0]
    assert np.array_equal(windows["closed_s"][:-1], windows["opened_s"][1:])
    assert windows["closed_s"][-1] == result.end_s
    assert (windows["opened_s"] <= windows["closed_s"]).all()
    for number in range(len(requests["request_id"])):
        routed_s = requests["routed_s"][number]
        around = (windows["opened_s"] <= routed_s) & (routed_s <= windows["closed_s"])
        assert requests["prefill_instance"][number] in windows["instance"][around]


@pytest.mark.parametrize("num_instances", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_output_is_held_back_during_the_window_and_not_longer(
    num_instances: int, seed: int
) -> None:
    """Every first and last output, from the rule and the windows.

    A token computed in its instance's window is released when the window closes, when S_TTFT has
    passed since it opened, or when its instance has nothing left to do; any other token at once.
    """
    result = busy_run(num_instances, seed)
    requests, windows = result.columns["requests"], result.columns["windows"]
    held = 0
    for number in range(len(requests["request_id"])):
        index = requests["prefill_instance"][number]
        mine = requests["prefill_instance"] == index
        for token, output in (
            ("first_token_s", "first_output_s"),
            ("last_token_s", "last_output_s"),
        ):
            computed_s = requests[token][number]
            inside = (
                (windows["instance"] == index)
                & (windows["opened_s"] < computed_s)
                & (computed_s <= windows["closed_s"])
            )
            expected_s = computed_s
            if inside.any():
                window = np.flatnonzero(inside)[0]
                until_s = min(
                    windows["opened_s"][window] + on_grid(0.25), windows["closed_s"][window]
                )
                if computed_s <= until_s:
                    done = [
                        t
                        for t in requests["last_token_s"][mine]
                        if t >= computed_s
                        and not (
                            (requests["routed_s"][mine] < t) & (requests["last_token_s"][mine] > t)
                        ).any()
                    ]
                    expected_s = min([until_s, *done])
            assert requests[output][number] == expected_s
            held += expected_s > computed_s
    assert held > 20


def test_streaming_differs_from_holding_back_only_in_what_users_see() -> None:
    """Hold-back changes no decision: the same tokens are computed at the same times."""
    held, streamed = busy_run(3), busy_run(3, hold_output=False)
    for name, column in held.columns["requests"].items():
        if name not in ("first_output_s", "last_output_s", "ttft_s", "tpot_s", "e2el_s", "status"):
            equal_nan = column.dtype.kind == "f"
            other = streamed.columns["requests"][name]
            assert np.array_equal(column, other, equal_nan=equal_nan)
    outputs = streamed.columns["requests"]
    assert np.array_equal(outputs["first_output_s"], outputs["first_token_s"])
    assert np.array_equal(outputs["last_output_s"], outputs["last_token_s"])
    assert np.isnan(streamed.columns["windows"]["released_s"]).all()


RINGS_OF_ONE: dict[str, dict[str, Any]] = {
    "paper, constraints off": {"constraints": ()},
    "paper, constraints that never bind": {"constraints": ("kv",)},
    "code": {"variant": "code"},
    "code, random": {"variant": "code", "next_instance": "random", "prefill_error": 1.0},
    "fixed windows": {"window": "fixed:0.1"},
}


@pytest.mark.parametrize("name", RINGS_OF_ONE)
@examples(25)
@given(
    workload=WORKLOADS,
    targets=TARGETS,
    scheduler=st.sampled_from(["prefill-priority", "chunked"]),
    num_kv_blocks=st.sampled_from([70, 2000]),
)
def test_a_ring_of_one_is_nodg(
    name: str, workload: Workload, targets: tuple[float, float], scheduler: Any, num_kv_blocks: int
) -> None:
    """EcoServe, section 3: with one instance and nothing that binds it is plain vLLM."""
    kv_binds = "kv" in RINGS_OF_ONE[name].get("constraints", ())
    common: dict[str, Any] = {
        "name": "one",
        "instances": 1,
        "num_kv_blocks": 2000 if kv_binds else num_kv_blocks,
        "scheduler": scheduler,
    }
    runs = [
        run(machines(*targets), strategy, workload, step_time=same_for_all(STEP_TIME))
        for strategy in (
            PaDG(**common, **RINGS_OF_ONE[name], hold_output=False),
            NoDG(**common),
        )
    ]
    for column, values in runs[0].columns["requests"].items():
        theirs = runs[1].columns["requests"][column]
        assert np.array_equal(values, theirs, equal_nan=values.dtype.kind == "f"), column


# --- the released scheduler ----------------------------------------------------------------------


@dataclass
class CodeReplay(Replay):
    """EcoServe's released scheduler, row by row, from the frames of a run at resolution ``step``.

    Only the current instance is checked; on failure the next one gets the request.
    """

    window: list[int] = field(default_factory=list)
    opened: float = 0.0

    def predicted(self, number: int) -> int:
        """The authors' profile: linear below 16 tokens (no prompt here is above 4096)."""
        prompt_len = int(self.requests["prompt_len"][number])
        if prompt_len >= 16:
            return ticks(STEP_TIME.prefill_s(prompt_len))
        return ticks(on_grid(STEP_TIME.prefill_s(16) * prompt_len / 16))

    def place(self, number: int, now: float, waited: bool) -> bool:
        """Stay or pass the window on; never wait."""
        if not self.windows or not self.stays(number, now):
            if self.windows:
                self.current = (self.current + 1) % self.num_instances
            self.windows.append((self.current, now))
            self.window, self.opened = [], now
        self.window.append(number)
        self.routed[number] = (self.current, now)
        return True

    def stays(self, number: int, now: float) -> bool:
        """Blocks, empty instance, time budget, hysteresis: in this order."""
        prompts = self.requests["prompt_len"]
        blocks = sum((int(prompts[q]) + BLOCK) // BLOCK for q in [*self.window, number])
        here = self.unfinished(self.current, now)
        if blocks > self.num_blocks - self.blocks(here, self.current, now):
            return False
        if not here:
            return True
        ttft = ticks(on_grid(self.environment.slo.ttft_s or 0.0))
        need = sum(self.predicted(q) for q in [*self.window, number])
        budget = ttft if self.window else math.inf
        if min(budget, self.largest_slack(self.current, now, self.opened)) > need:
            return True
        if need > ttft:
            return False
        after = (self.current + 1) % self.num_instances
        if not self.unfinished(after, now):
            return False
        count = self.num_instances
        return count * self.largest_slack(after, now, now) < ttft * (count - 1)

    def unfinished(self, index: int, now: float) -> list[int]:
        """Requests of an instance that have not ended."""
        ends = self.requests["last_token_s"]
        return [q for q, (where, _) in self.routed.items() if where == index and ends[q] > now]

    def largest_slack(self, index: int, now: float, since: float) -> float:
        """Over the requests whose first decode step has started before `now`."""
        tpot = ticks(on_grid(self.environment.slo.tpot_s or 0.0))
        starts = self.requests["decode_start_s"]
        slacks = [
            ticks(float(starts[q])) + self.decodes(q, index, ended_by=now) * tpot - ticks(since)
            for q in self.unfinished(index, now)
            if starts[q] < now
        ]
        return max(slacks, default=math.inf)

    def blocks(self, here: list[int], index: int, now: float) -> int:
        """KV blocks taken, those of requests whose prefill has not begun left out."""
        begun = [q for q in here if self.requests["scheduled_s"][q] < now]
        return super().blocks(begun, index, now)


@examples(150)
@given(
    workload=WORKLOADS,
    targets=TARGETS,
    num_instances=st.integers(1, 4),
    num_kv_blocks=st.sampled_from([70, 150, 2000]),
)
def test_the_code_variant_does_what_the_released_scheduler_does(
    workload: Workload, targets: tuple[float, float], num_instances: int, num_kv_blocks: int
) -> None:
    """Who goes where, when windows open: recomputed from the frames by the rows of its table."""
    environment = machines(*targets)
    strategy = PaDG(
        name="padg", instances=num_instances, variant="code", num_kv_blocks=num_kv_blocks
    )
    result = run(
        environment, strategy, workload, step_time=same_for_all(STEP_TIME), resolution="step"
    )
    assume(not result.columns["requests"]["num_preemptions"].any())
    check_replay(CodeReplay(result, environment, num_kv_blocks, "max", num_instances))


@pytest.mark.parametrize("num_instances", [2, 3, 5])
def test_the_code_variant_switches_stays_and_never_waits(num_instances: int) -> None:
    """A loaded ring: many switches, none of them with a request in front."""
    result = busy_run(num_instances, variant="code", resolution="step")
    replay = CodeReplay(result, BUSY, 10**6, "max", num_instances)
    check_replay(replay)
    requests = result.columns["requests"]
    assert np.array_equal(requests["routed_s"], requests["arrival_s"])
    assert len(replay.windows) > 15
    opened = [index for index, _ in replay.windows]
    assert (np.diff(opened) % num_instances == 1).all()


# --- ablations -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.25, 1.0])
def test_fixed_windows_pass_on_by_the_clock(fraction: float) -> None:
    """Each opens with the first request that comes so long after the one before opened."""
    result = busy_run(3, window=f"fixed:{fraction}")
    requests, windows = result.columns["requests"], result.columns["windows"]
    length_s = on_grid(fraction * on_grid(0.25))
    opened, expected = -math.inf, []
    for arrival_s in requests["arrival_s"].tolist():
        if arrival_s >= opened + length_s:
            opened = arrival_s
            expected.append(arrival_s)
    assert windows["opened_s"].tolist() == expected
    assert windows["instance"].tolist() == [k % 3 for k in range(len(expected))]
    assert np.array_equal(requests["routed_s"], requests["arrival_s"])


def test_the_next_instance_is_drawn_among_the_others() -> None:
    """Random choice: another one each time, all of them about equally often, the same twice."""
    results = [busy_run(4, variant="code", next_instance="random", count=1500) for _ in range(2)]
    opened = [result.columns["windows"]["instance"].tolist() for result in results]
    assert opened[0] == opened[1]
    steps = np.diff(opened[0]) % 4
    counts = np.bincount(steps, minlength=4)
    assert counts[0] == 0
    # Three equally likely outcomes: five standard deviations of a share.
    share, total = 1 / 3, counts.sum()
    assert total > 150
    assert (abs(counts[1:] / total - share) < 5 * math.sqrt(share * (1 - share) / total)).all()


@pytest.mark.parametrize("variant", ["paper", "code"])
def test_symmetric_rings_serve_symmetric_shares(variant: Any) -> None:
    """No instance is preferred: requests spread over equal instances evenly."""
    result = busy_run(3, variant=variant, count=3000)
    shares = result.columns["instances"]["num_requests"] / 3000
    assert abs(shares - 1 / 3).max() < 0.03


def test_a_lower_quantile_of_the_slack_is_a_stricter_rule() -> None:
    """Order statistics: 0 is the smallest, 1 the largest; half of four values is the second."""
    values = [3.0, 1.0, 4.0, 2.0]
    found = [slack_statistic(f"quantile:{q}")(values) for q in (0, 0.25, 0.26, 0.5, 1)]
    assert found == [1.0, 1.0, 2.0, 2.0, 4.0]
    rules = [("min", "quantile:0"), ("max", "quantile:1")]
    for name, quantile in rules:
        one, other = busy_run(3, slack=name), busy_run(3, slack=quantile)
        for column, array in one.columns["requests"].items():
            theirs = other.columns["requests"][column]
            assert np.array_equal(array, theirs, equal_nan=array.dtype.kind == "f"), column


def test_constraints_bind_one_by_one() -> None:
    """Without the TTFT constraint nothing is rejected; without the TPOT one fewer wait."""
    waits = {}
    for kept in [("ttft", "tpot", "kv"), ("ttft", "kv"), ()]:
        requests = busy_run(2, constraints=kept).columns["requests"]
        waits[kept] = (requests["routed_s"] > requests["arrival_s"]).sum()
    assert waits[("ttft", "tpot", "kv")] > 10
    assert waits[("ttft", "tpot", "kv")] > waits[("ttft", "kv")] >= waits[()] == 0
    environment = machines(0.05, 0.01)
    workload = workload_of([0.0], [200], [5])
    for kept, status in ((("ttft",), "rejected"), (("tpot", "kv"), "finished")):
        strategy = PaDG(name="padg", instances=2, constraints=kept)
        result = run(environment, strategy, workload, step_time=same_for_all(STEP_TIME))
        assert result.columns["requests"]["status"][0] == status


def test_the_predictor_errs_by_a_factor_of_its_own_for_each_request() -> None:
    """Lognormal with median 1, drawn by request, whatever order they are asked in."""
    true = STEP_TIME.prefill_s(100)
    requests = [Request(number, 0.0, 100, 1) for number in range(3000)]
    one, other = (
        PrefillPredictor(STEP_TIME.prefill_s, 0.3, np.random.default_rng(5)) for _ in range(2)
    )
    backwards = [other(request) for request in requests[::-1]]
    predicted = [one(request) for request in requests]
    assert predicted == backwards[::-1]
    logs = np.log(np.array(predicted) / true)
    assert abs(logs.mean()) < 5 * 0.3 / math.sqrt(3000)
    assert abs(logs.std() / 0.3 - 1) < 0.1
    assert PrefillPredictor(STEP_TIME.prefill_s, 0.0, np.random.default_rng(5))(requests[0]) == true


def test_the_profile_of_the_authors_is_linear_outside_its_entries() -> None:
    """Below 16 and above 4096 tokens in proportion to the entry there."""
    profile = from_profile(STEP_TIME.prefill_s)
    first, last = STEP_TIME.prefill_s(16), STEP_TIME.prefill_s(4096)
    assert profile(8) == on_grid(first / 2)
    assert profile(8192) == on_grid(2 * last)
    assert [profile(n) for n in (16, 100, 4096)] == [
        STEP_TIME.prefill_s(n) for n in (16, 100, 4096)
    ]


def test_the_code_variant_believes_the_profile_of_the_authors() -> None:
    """With a TTFT target between what a prompt takes and what the profile says of it."""
    step_time = LinearStepTime(1e-3, 4.9e-3, fixed_s=5e-3)
    first, true = step_time.prefill_s(100), step_time.prefill_s(1)
    profiled = step_time.prefill_s(16) / 16
    assert profiled < 0.5 * true
    workload = workload_of([0.0, 2.0**-20], [100, 1], [50, 5])
    for share, instance in ((0.5, 0), (-0.5, 1)):
        where = machines(first + profiled + share * (true - profiled), 0.1)
        strategy = PaDG(name="padg", instances=2, variant="code")
        result = run(where, strategy, workload, step_time=same_for_all(step_time))
        assert result.columns["requests"]["prefill_instance"].tolist() == [0, instance]


@pytest.mark.parametrize(
    ("variant", "own", "other"), [("paper", "mean", "max"), ("code", "max", "mean")]
)
def test_each_variant_has_the_statistic_of_its_source(variant: Any, own: Any, other: Any) -> None:
    """The paper's slack is a mean (section 3.4.2), the released code's a maximum."""
    where = [
        busy_run(5, variant=variant, **rules).columns["requests"]["prefill_instance"].tolist()
        for rules in ({}, {"slack": own}, {"slack": other})
    ]
    assert where[0] == where[1] != where[2]


def test_stale_status_delays_whoever_waits_to_the_next_report() -> None:
    """Who waited is routed at a multiple of the interval, nobody at a mere step boundary."""
    interval_s = 2.0**-5
    result = busy_run(2, status_interval_s=interval_s)
    check_laws(result)
    requests = result.columns["requests"]
    assert (requests["status"] == "finished").all()
    waited = requests["routed_s"] > requests["arrival_s"]
    assert waited.sum() > 10
    assert (requests["routed_s"][waited] % interval_s == 0).all()


def test_those_who_queue_behind_a_failed_head_share_its_window() -> None:
    """The prefills routed at once when a window opens fit into S_TTFT together.

    Eleven prompts of 0.4 s wait behind one of 0.9 s under a target of 1 s: two at a time go in.
    """
    environment = specs.environment(max_model_len=1024, slo=SloConfig(ttft_s=1.0, tpot_s=0.1))
    workload = workload_of(np.full(12, 0.01), [900] + [400] * 11, 60)
    result = run(
        environment,
        PaDG(name="padg", instances=1),
        workload,
        step_time=same_for_all(LinearStepTime(1e-3, 1e-2)),
    )
    requests = result.columns["requests"]
    assert (requests["status"] == "finished").all()
    _, together = np.unique(requests["routed_s"], return_counts=True)
    assert together.tolist() == [1, 2, 2, 2, 2, 2, 1]
