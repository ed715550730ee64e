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
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from simcluster.config import Environment, SloConfig
from simcluster.request import Request
from simcluster.routing.rolling_activation import RollingActivation
from simcluster.simulate import Result, run
from simcluster.strategies import NoDG, PaDG
from simcluster.testing import specs
from simcluster.testing.laws import check_laws
from simcluster.testing.step_times import LinearStepTime, same_for_all
from simcluster.testing.workloads import workload_of
from simcluster.units import TICKS_PER_S, on_grid
from simcluster.workload import Workload

Slack = Literal["mean", "max", "min"]
SLACKS: tuple[Slack, ...] = ("mean", "max", "min")


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
    return (max(saved) if slack == "max" else min(saved)) >= need


# --- the rule by itself --------------------------------------------------------------------------


@dataclass
class View:
    """What an instance reports."""

    decode_step: int = 0
    num_lanes: int = 1
    free_blocks: int = 100
    waiting_blocks: int = 0

    def decode_step_of(self, lane: int) -> int:
        """Decode steps done."""
        return self.decode_step

    def blocks_for(self, num_tokens: int) -> int:
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


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 4), slack=st.sampled_from(SLACKS))
def test_the_books_of_the_ring_are_algorithm_1(seed: int, count: int, slack: Slack) -> None:
    """Sums and keys stand for the pending and existing sets of the paper, whatever happens."""
    rng = np.random.default_rng(seed)
    ttft_s, tpot_s = on_grid(1.0), on_grid(0.1)
    rule = RollingActivation(count, ttft_s=ttft_s, tpot_s=tpot_s, slack=slack)
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
    rule: RollingActivation,
    slow: Definition,
    request: Request,
    views: Sequence[Any],
    now: float,
) -> None:
    """Both decide about `request`; a failed round makes a new window on the current instance."""
    predicted_s = on_grid(request.prompt_len * 0.0073)
    order, prompt_len = request.request_id, request.prompt_len
    for index, view in enumerate(views):
        assert rule.satisfied(index, request, predicted_s, view, now) == slow.satisfied(
            index, ticks(predicted_s), view, prompt_len, ticks(now)
        )
    chosen = rule.scan(request, predicted_s, views, now)
    assert chosen == slow.scan(ticks(predicted_s), views, prompt_len, ticks(now))
    if chosen is None:
        rule.reopen(now)
        slow.switched[slow.current] = order
        return
    assert rule.accept(chosen, request, predicted_s, now) == (chosen != slow.current)
    if chosen != slow.current:
        slow.switched[slow.current] = slow.switched[chosen] = order
        slow.current = chosen
    slow.placed[chosen].append(Placed(request, order, ticks(predicted_s)))


def begin_decode(
    rule: RollingActivation, index: int, placed: Placed, view: View, now: float
) -> None:
    """A prefill ends: the first token, or the next one after a preemption."""
    request = placed.request
    if not placed.tokens:
        request.first_token_s = now
        placed.first_token = ticks(now)
    placed.tokens += 1
    placed.decoding = True
    request.num_output_tokens, request.decode_step = placed.tokens, view.decode_step
    rule.joined(index, request, 0)


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


@st.composite
def workloads(draw: st.DrawFn) -> Workload:
    """Bursts of requests of all lengths."""
    rows = draw(
        st.lists(
            st.tuples(
                st.sampled_from([0.0, 0.0, 0.001, 0.01, 0.03, 0.1, 0.3]),
                st.integers(1, 150),
                st.integers(1, 100),
            ),
            min_size=1,
            max_size=30,
        )
    )
    gaps, prompts, outputs = zip(*rows, strict=True)
    return workload_of(np.cumsum(gaps), prompts, outputs)


TARGETS = st.sampled_from([(0.2, 0.0061), (0.1, 0.0057), (0.3, 0.0103), (0.16, 0.04), (5.0, 0.1)])


@settings(max_examples=200, deadline=None)
@given(
    workload=workloads(),
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
    slack: Slack = "mean",
    hold_output: bool = True,
    resolution: str = "span",
) -> Result:
    """A loaded ring with many switches and pending requests."""
    rng = np.random.default_rng(seed)
    count = 150
    workload = workload_of(
        np.cumsum(rng.exponential(0.04, count)),
        rng.integers(1, 120, count),
        rng.integers(1, 100, count),
    )
    return run(
        BUSY,
        PaDG(name="padg", instances=num_instances, slack=slack, hold_output=hold_output),
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
            assert np.array_equal(column, streamed.columns["requests"][name])
    outputs = streamed.columns["requests"]
    assert np.array_equal(outputs["first_output_s"], outputs["first_token_s"])
    assert np.array_equal(outputs["last_output_s"], outputs["last_token_s"])
    assert np.isnan(streamed.columns["windows"]["released_s"]).all()


@settings(max_examples=60, deadline=None)
@given(workload=workloads())
def test_a_ring_of_one_is_nodg(workload: Workload) -> None:
    """EcoServe, section 3: with one instance and constraints that never bind it is plain vLLM."""
    common: dict[str, Any] = {"name": "one", "instances": 1, "num_kv_blocks": 2000}
    runs = [
        run(machines(1e6, 1e3), strategy, workload, step_time=same_for_all(STEP_TIME))
        for strategy in (PaDG(**common, hold_output=False), NoDG(**common))
    ]
    for name, column in runs[0].columns["requests"].items():
        theirs = runs[1].columns["requests"][name]
        assert np.array_equal(column, theirs, equal_nan=column.dtype.kind == "f"), name


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
