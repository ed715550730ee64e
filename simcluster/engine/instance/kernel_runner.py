"""Runner of single steps, kernel by kernel."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import simpy

from simcluster.engine.clock import Wake
from simcluster.engine.instance.dispatcher import RankGroup
from simcluster.engine.instance.runner import SpanRunner
from simcluster.engine.instance.span import Span
from simcluster.engine.log import KernelLog
from simcluster.roofline.base import StepShape, StepTime
from simcluster.sched import StepPlan

if TYPE_CHECKING:
    from simcluster.engine.instance.instance import Instance


class KernelRunner(SpanRunner):
    """Dispatchers and GPUs run a step kernel by kernel.

    Where kernels are recorded, only steps that reach into the time of the record are run so, the
    others as in `SpanRunner`.

    Parameters
    ----------
    instance, wake, most_steps, kernels
        As in `SpanRunner`.
    ranks : RankGroup
        Dispatchers and GPUs.
    """

    def __init__(
        self,
        instance: Instance,
        wake: Wake,
        most_steps: int,
        kernels: KernelLog | None,
        ranks: RankGroup,
    ) -> None:
        super().__init__(instance, wake, most_steps, kernels)
        self._ranks = ranks

    def run(self, span: Span, plan: StepPlan) -> Iterable[simpy.Event]:
        """Wait for the end of the step, or of the last step."""
        if self._is_recorded(span, plan):
            return self._run_kernels(span, plan)
        return super().run(span, plan)

    def _is_recorded(self, span: Span, plan: StepPlan) -> bool:
        log, now = self._kernels, self._env.now
        if log is None:
            return True
        if now >= log.end_s:
            return False
        shape = self._instance.scheduler.shape(plan)
        step_s = self._instance.step_time.step_s(shape, span.hidden_s)
        return now + span.copies_s + step_s > log.start_s

    def _run_kernels(self, span: Span, plan: StepPlan) -> Generator[simpy.Event, Any, None]:
        """Let the dispatchers and GPUs do one step, kernel by kernel."""
        instance = self._instance
        span.num_steps = 1
        span.ends = []
        shape = instance.scheduler.shape(plan)
        end = yield from run_kernels(
            instance, instance.step_time, shape, span, self._ranks, self._kernels
        )
        span.ends = [end]
        yield self._wake.at(end, self._priority)


def run_kernels(
    instance: Instance,
    step_time: StepTime,
    shape: StepShape,
    span: Span,
    ranks: RankGroup,
    log: KernelLog | None,
) -> Generator[simpy.Event, Any, float]:
    """Let `ranks` do a step of `shape`, kernel by kernel; return when its host work ends (s).

    Parameters
    ----------
    instance : Instance
        Whose step.
    step_time : StepTime
        Its kernels.
    shape : StepShape
        What the step computes.
    span : Span
        The step, with its copies and what of its host work is hidden.
    ranks : RankGroup
        Dispatchers and GPUs.
    log : KernelLog or None
        Where host work is recorded.
    """
    env = instance.env
    schedule = step_time.kernels(shape)
    host_after_s = schedule.host_after_s

    def write(start_s: float, end_s: float) -> None:
        if log is not None:
            log.add((instance.instance_id, 0, "cpu", "host work", start_s, end_s))

    if step_time.overlaps_host:
        # Another thread does the host work of this step; it began when the GPU began the last.
        left_s = schedule.host_before_s + host_after_s - span.hidden_s
        if left_s > 0.0:
            yield env.timeout(left_s)
            write(env.now - left_s, env.now)
        schedule = replace(schedule, host_before_s=0.0)
        host_after_s = 0.0
    if span.copies_s:
        yield env.timeout(span.copies_s)
    yield ranks.run(schedule)
    end = env.now + host_after_s
    if host_after_s:
        write(env.now, end)
    return end
