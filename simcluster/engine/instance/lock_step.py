"""Data-parallel ranks of an instance, whose steps begin and end together.

Experts are spread over all ranks, so their layers wait for one another (vLLM, docs/serving/
data_parallel_deployment.md: "forward passes must be aligned"). A step lasts as long as that of the
rank with the most work, and experts compute the tokens of all ranks. A rank without work runs a
dummy batch of one token while another has some (``execute_dummy_batch``).

Not modelled: ranks that wait for one another within a step in turns. Where the layers differ in
kind, one rank may be the slowest in some and another in others; the step of the slowest rank is
taken whole.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Generator, Iterable, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import simpy

from simcluster.engine.clock import LOCK_STEP, SCHEDULING, STEP_END, At, Clock, Wake
from simcluster.engine.instance.dispatcher import RankGroup
from simcluster.engine.instance.kernel_runner import run_kernels
from simcluster.engine.instance.runner import Runner
from simcluster.engine.instance.span import Span
from simcluster.engine.log import KernelLog
from simcluster.roofline.base import RankTime
from simcluster.sched import StepPlan
from simcluster.units import FloatArray

if TYPE_CHECKING:
    from simcluster.engine.instance.instance import Instance

MAX_LOCK_STEPS: Final = 64
"""Longest run of steps planned at once: any rank's news ends the run of all."""
DUMMY_TOKENS: Final = 1
"""Tokens of the batch of a rank without work (vLLM, ``execute_dummy_batch``)."""


class LockStep:
    """The steps that the ranks of one instance take together.

    Ranks that have planned at the same time begin together, after everything else that happens
    then; one that gets work in the middle of a step begins with the next.

    Parameters
    ----------
    env : Clock
        The run.
    step_time : RankTime
        Step times of each rank.
    num_ranks : int
        How many there are.
    most_steps : int
        Longest run of steps that is one event.
    by_kernel : bool
        Every rank runs its steps kernel by kernel.
    """

    def __init__(
        self,
        env: Clock,
        step_time: RankTime,
        num_ranks: int,
        most_steps: int,
        *,
        by_kernel: bool,
    ) -> None:
        self._env = env
        self._step_time = step_time
        self._num_ranks = num_ranks
        self._most_steps = min(most_steps, MAX_LOCK_STEPS)
        self.by_kernel = by_kernel
        self._planned: list[LockStepRunner] = []  # at this time, and not begun
        self._active: list[LockStepRunner] = []
        self._num_arrived = 0  # of the active ones, kernel by kernel
        self._called: list[LockStepRunner] = []  # idle ones that got work meanwhile
        self._ends: list[float] = []  # of the steps under way (s); empty while not known
        self._num_steps = 0
        self._latest_s = 0.0  # end of the step under way of those that have arrived (s)

    @property
    def row_per_step(self) -> bool:
        """Whether runs of several steps are one event."""
        return self._most_steps > 1 and not self.by_kernel

    def join(self, runner: LockStepRunner) -> None:
        """Let the steps that `runner` has planned now begin with those of the others."""
        if not self._planned:
            begin = At(self._env, self._env.now, LOCK_STEP + runner.order)
            begin.callbacks.append(self._begin)
        self._planned.append(runner)

    def rouse(self, runner: LockStepRunner) -> None:
        """Let an idle rank that got work plan: now, or with the others when their step ends."""
        now = self._env.now
        if self._num_arrived < len(self._active) and self.by_kernel and not self._ends:
            self._called.append(runner)
            return
        step = bisect_left(self._ends, now, 0, self._num_steps)
        if step == self._num_steps:
            runner.plan_at(now)
            return
        self.stop(step + 1)
        runner.plan_at(self._ends[step])

    def stop(self, num_steps: int) -> None:
        """End the run of all ranks after `num_steps` steps, if it does not end before."""
        if num_steps >= self._num_steps:
            return
        self._num_steps = num_steps
        for runner in self._active:
            runner.end_after(num_steps)

    def arrive(self, end_s: float) -> None:
        """Hear that a rank is done at `end_s` (s) with the step under way, kernel by kernel."""
        self._num_arrived += 1
        self._latest_s = max(self._latest_s, end_s)
        if self._num_arrived == len(self._active):
            self._ends, self._num_steps = [self._latest_s], 1
            for runner in self._active:
                runner.end_with(self._ends, 1)
            for runner in self._called:
                runner.plan_at(self._latest_s)
            self._called.clear()

    def _begin(self, _: simpy.Event) -> None:
        """Begin the steps of all who have planned."""
        self._active = sorted(self._planned, key=lambda runner: runner.order)
        self._planned = []
        tokens = [runner.num_tokens for runner in self._active]
        total = sum(tokens) + DUMMY_TOKENS * (self._num_ranks - len(tokens))
        for runner, own in zip(self._active, tokens, strict=True):
            runner.beside(total - own)
        if self.by_kernel:
            self._ends, self._num_steps, self._num_arrived = [], 0, 0
            self._latest_s = 0.0
            for runner in self._active:
                runner.begin.succeed()
            return
        limit = min([self._most_steps, *(runner.most_steps for runner in self._active)])
        self._ends = self._ends_of(limit)
        steps = limit
        if steps > 1:
            for runner in self._active:
                steps = min(steps, runner.watched_steps(self._ends))
        self._num_steps = steps
        for runner in self._active:
            runner.end_with(self._ends, steps)

    def _ends_of(self, num_steps: int) -> list[float]:
        """When the next steps end (s): each lasts as long as that of its slowest rank."""
        times = [runner.durations_s(num_steps) for runner in self._slowest()]
        longest = times[0]
        for other in times[1:]:
            longest = np.maximum(longest, other)
        durations: list[float] = longest.tolist()
        durations[0] += self._env.now
        return list(accumulate(durations))

    def _slowest(self) -> Sequence[LockStepRunner]:
        """Ranks of which any may be the slowest: of those that decode alike the longest context."""
        found: dict[object, LockStepRunner] = {}
        for number, runner in enumerate(self._active):
            key = runner.alike
            known = found.setdefault(number if key is None else ("alike", key), runner)
            if runner.context_tokens > known.context_tokens:
                found["alike", key] = runner
        return list(found.values())


class LockStepRunner(Runner):
    """Runner of one data-parallel rank: its steps begin and end with those of the others.

    Parameters
    ----------
    instance, wake
        As in `Runner`.
    group : LockStep
        The ranks together.
    step_time : RankTime
        Step times of the rank.
    ranks : RankGroup or None
        Its dispatchers and GPUs, kernel by kernel.
    kernels : KernelLog, optional
        Where host work is recorded.

    Attributes
    ----------
    order : int
        Place of the rank in ties.
    begin : simpy.Event
        Happens when the step under way may begin, kernel by kernel.
    """

    def __init__(
        self,
        instance: Instance,
        wake: Wake,
        group: LockStep,
        step_time: RankTime,
        ranks: RankGroup | None,
        kernels: KernelLog | None = None,
    ) -> None:
        super().__init__(instance, wake)
        self.order = instance.order
        self.begin = simpy.Event(instance.env)
        self._group = group
        self._step_time = step_time
        self._ranks = ranks
        self._kernels = kernels
        self._span: Span = instance.span
        self._plan: StepPlan | None = None

    # --- for the instance -----------------------------------------------------------------------

    def run(self, span: Span, plan: StepPlan) -> Iterable[simpy.Event]:
        """Wait for the others to plan, and for the end of the last step, which may move."""
        self._span, self._plan = span, plan
        span.ends, span.num_steps = [], 0
        span.num_waiting = self._instance.scheduler.num_waiting
        if self._group.by_kernel:
            return self._run_kernels(span, plan)
        self._wake.sleep()
        self._group.join(self)
        return (self._wake.event,)

    def stop(self, span: Span, num_steps: int) -> None:
        """End the steps of all ranks after `num_steps`."""
        self._group.stop(num_steps)

    def rouse(self) -> None:
        """Let the rank, which was idle, plan when the step of the others has ended."""
        self._group.rouse(self)

    def _run_kernels(self, span: Span, plan: StepPlan) -> Generator[simpy.Event, Any, None]:
        assert self._ranks is not None, "kernel by kernel there are dispatchers and GPUs"
        self.begin = simpy.Event(self._env)
        self._group.join(self)
        yield self.begin
        shape = self._instance.shape_of(plan, 0)
        end_s = yield from run_kernels(
            self._instance, self._step_time, shape, span, self._ranks, self._kernels
        )
        self._wake.sleep()
        self._group.arrive(end_s)
        yield self._wake.event

    # --- for the group --------------------------------------------------------------------------

    @property
    def plan(self) -> StepPlan:
        """What the rank computes in the steps under way."""
        assert self._plan is not None, "a rank that begins has a plan"
        return self._plan

    @property
    def num_tokens(self) -> int:
        """Tokens of the rank in each step."""
        return self.plan.num_decodes + self.plan.prefill_tokens

    @property
    def context_tokens(self) -> int:
        """Tokens that its decodes attend to in the first step."""
        return self.plan.context_tokens

    @property
    def most_steps(self) -> int:
        """Steps for which the plan stays valid and every step has the same tokens."""
        plan = self.plan
        return plan.max_steps - 1 if plan.last_tokens else plan.max_steps

    @property
    def alike(self) -> int | None:
        """What ranks that decode have in common where the longest context is the slowest.

        Where host work is hidden, a step can be slower by a tick though its context is shorter: it
        lasts the host work and what the GPU's time grew by, in which the rounding of two counts.
        """
        plan = self.plan
        if plan.chunks or self._span.copies_s or self._step_time.overlaps_host:
            return None
        if self._instance.scheduler.window_tokens(1) is not None:
            return None
        return plan.num_decodes

    def beside(self, other_tokens: int) -> None:
        """Take note of the tokens of the other ranks in each step."""
        self._instance.other_tokens = other_tokens

    def watched_steps(self, ends: list[float]) -> int:
        """Steps, of those that end at `ends` (s), after which somebody watches a boundary."""
        stop_at = self._instance.stop_at
        return len(ends) if stop_at is None else stop_at(self._instance, ends, 0)

    def durations_s(self, num_steps: int) -> FloatArray:
        """How long the next steps of this rank would take (s), shape ``(num_steps,)``."""
        instance, span, plan = self._instance, self._span, self.plan
        times, hidden_s = self._step_time, span.hidden_s
        if plan.chunks or num_steps == 1:
            found = []
            for step in range(num_steps):
                shape = instance.shape_of(plan, step)
                found.append(times.step_s(shape, hidden_s))
                hidden_s = times.gpu_s(shape) if times.overlaps_host else 0.0
            found[0] += span.copies_s
            return np.array(found)
        window = instance.scheduler.window_tokens(num_steps)
        return times.decode_steps_s(
            plan.num_decodes,
            plan.context_tokens,
            num_steps,
            hidden_s,
            window,
            instance.other_tokens,
        )

    def end_with(self, ends: list[float], num_steps: int) -> None:
        """Let the steps end at `ends` (s), `num_steps` of them."""
        self._span.ends = ends
        self.end_after(num_steps)

    def end_after(self, num_steps: int) -> None:
        """End the run after `num_steps` steps."""
        self._span.num_steps = num_steps
        self._wake.move(self._span.ends[num_steps - 1], STEP_END + self.order)

    def plan_at(self, time_s: float) -> None:
        """Let the rank, which was idle, plan at `time_s` (s)."""
        self._wake.move(time_s, SCHEDULING + self.order)
