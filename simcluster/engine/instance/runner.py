"""Runners: how the steps of a span pass. Here as one event; others are in files of their own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

import simpy

from simcluster.engine.clock import SCHEDULING, STEP_END, Wake
from simcluster.engine.instance.span import Span
from simcluster.engine.log import KernelLog
from simcluster.sched import StepPlan
from simcluster.units import IntArray

if TYPE_CHECKING:
    from simcluster.engine.instance.instance import Instance

MAX_SPAN_STEPS: Final = 512
"""Longest run of steps planned as one event; longer ones are planned again from their end."""


class Runner(ABC):
    """Lets the steps of the spans of one instance pass.

    Parameters
    ----------
    instance : Instance
        Whose spans; the runner sets ``ends`` and ``num_steps`` of them.
    wake : Wake
        What the instance waits for.
    """

    def __init__(self, instance: Instance, wake: Wake) -> None:
        self._instance = instance
        self._env = instance.env
        self._wake = wake
        self._priority = STEP_END + instance.order

    @abstractmethod
    def run(self, span: Span, plan: StepPlan) -> Iterable[simpy.Event]:
        """Give what the instance has to wait for until the steps of `plan` have ended."""

    def stop(self, span: Span, num_steps: int) -> None:
        """End `span` after `num_steps` steps, before it would."""
        span.num_steps = num_steps
        self._wake.move(span.ends[num_steps - 1], self._priority)

    def rouse(self) -> None:
        """Let the instance, which was idle, schedule now."""
        self._wake.move(self._env.now, SCHEDULING + self._instance.order)

    def idle(self) -> None:  # noqa: B027 (a hook)
        """Hear that the instance has nothing to run."""


class SpanRunner(Runner):
    """A run of steps is one event, at the end of the last; at resolution ``step`` one step is.

    Parameters
    ----------
    instance, wake
        As in `Runner`.
    most_steps : int
        Longest run of steps.
    kernels : KernelLog, optional
        Where kernels are recorded: the step that is to be shown has a span of its own.
    """

    def __init__(
        self, instance: Instance, wake: Wake, most_steps: int, kernels: KernelLog | None = None
    ) -> None:
        super().__init__(instance, wake)
        self._most_steps = most_steps
        self._kernels = kernels

    def run(self, span: Span, plan: StepPlan) -> Iterable[simpy.Event]:
        """Wait for the end of the last step."""
        instance = self._instance
        span.ends = ends = self._step_ends(span, plan)
        steps = len(ends)
        if steps > 1:
            if instance.stop_at is not None:
                steps = instance.stop_at(instance, ends, 0)
            if instance.wires is not None and instance.wires.is_stale:
                steps = 1
        span.num_steps = steps
        return (self._wake.at(ends[steps - 1], self._priority),)

    def _step_ends(self, span: Span, plan: StepPlan) -> list[float]:
        """End times of the steps of `plan` (s)."""
        instance, now, hidden_s = self._instance, self._env.now, span.hidden_s
        limit = min(plan.max_steps, self._most_steps)
        if limit == 1:
            step_s = instance.step_time.step_s(instance.scheduler.shape(plan), hidden_s)
            return [now + span.copies_s + step_s]
        window = instance.scheduler.window_tokens(limit)
        if plan.chunks:
            ends = self._chunk_ends(plan, limit, hidden_s, window)
        else:
            ends = instance.step_time.decode_ends_s(
                now, plan.num_decodes, plan.context_tokens, limit, hidden_s, window
            )
        if self._kernels is not None and now < self._kernels.start_s:
            del ends[max(1, bisect_right(ends, self._kernels.start_s)) :]
        return ends

    def _chunk_ends(
        self, plan: StepPlan, limit: int, hidden_s: float, window: IntArray | None
    ) -> list[float]:
        """End times of the first `limit` steps of `plan`, each with a chunk of one prompt (s)."""
        step_time, end = self._instance.step_time, self._env.now
        ends: list[float] = []
        for step in range(limit):
            shape = plan.shape(None if window is None else int(window[step]), step)
            end += step_time.step_s(shape, hidden_s)
            ends.append(end)
            if step_time.overlaps_host:
                hidden_s = step_time.gpu_s(shape)
        return ends
