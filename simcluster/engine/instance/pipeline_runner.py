"""Runners of the batches of a pipeline: step by step, or computed ahead."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Any, Final

import simpy

from simcluster.engine.clock import Wake
from simcluster.engine.instance.pipeline import BatchesInFlight, BatchRun, PipelineStages
from simcluster.engine.instance.runner import Runner
from simcluster.engine.instance.span import Span
from simcluster.sched import StepPlan

if TYPE_CHECKING:
    from simcluster.engine.instance.instance import Instance

MAX_PIPELINE_STEPS: Final = 64
"""Longest run of steps of a batch: steps computed ahead are lost when another batch changes."""


class PipelineRunner(Runner):
    """A step passes the stages of a pipeline; the host works on it before and after.

    Parameters
    ----------
    instance, wake
        As in `Runner`.
    stages : PipelineStages
        The stages, shared with the other lanes.
    """

    def __init__(self, instance: Instance, wake: Wake, stages: PipelineStages) -> None:
        super().__init__(instance, wake)
        self._stages = stages

    def run(self, span: Span, plan: StepPlan) -> Iterable[simpy.Event]:
        """Wait for the host, the stages, the host."""
        return self._pass_through(span, plan)

    def _pass_through(self, span: Span, plan: StepPlan) -> Generator[simpy.Event, Any, None]:
        shape = self._instance.scheduler.shape(plan)
        before_s, after_s = self._stages.host_s(shape)
        span.num_steps = 1
        span.ends = []
        before_s += span.copies_s
        if before_s:
            yield self._wake.at(self._env.now + before_s, self._priority)
        end = yield from self._stages.pass_through(shape)
        end += after_s
        span.ends = [end]
        yield self._wake.at(end, self._priority)


class AheadRunner(PipelineRunner):
    """A run of steps passes the stages, computed ahead together with those of the other lanes.

    Parameters
    ----------
    instance, wake, stages
        As in `PipelineRunner`.
    in_flight : BatchesInFlight
        The batches of all lanes.
    """

    def __init__(
        self,
        instance: Instance,
        wake: Wake,
        stages: PipelineStages,
        in_flight: BatchesInFlight,
    ) -> None:
        super().__init__(instance, wake, stages)
        self._in_flight = in_flight
        self._batch_run: BatchRun | None = None  # the present span, or the last

    def run(self, span: Span, plan: StepPlan) -> Iterable[simpy.Event]:
        """Wait for the end of the last step, which may move."""
        instance, stages = self._instance, self._stages
        limit = min(plan.max_steps, MAX_PIPELINE_STEPS)
        if instance.stop_at is not None:
            limit = instance.stop_at(instance, [], 0)
        span.num_steps = limit
        span.num_waiting = instance.scheduler.num_waiting
        before_s, after_s = stages.host_s(instance.scheduler.shape(plan))
        self._wake.sleep()
        run = BatchRun(
            self._wake,
            self._priority,
            limit,
            (before_s + span.copies_s, after_s),
            *stages.stage_times(plan, limit, instance.scheduler.window_tokens(limit)),
        )
        if self._batch_run is not None:
            self._in_flight.leave(self._batch_run, idle=False)
        self._batch_run, span.ends = run, run.ends
        self._in_flight.enter(run, self._env.now)
        return (self._wake.event,)

    def stop(self, span: Span, num_steps: int) -> None:
        """End `span` after `num_steps` steps, before it would."""
        span.num_steps = num_steps
        if self._batch_run is not None:
            self._in_flight.stop(self._batch_run, num_steps)

    def idle(self) -> None:
        """Leave the pipeline to the other lanes."""
        if self._batch_run is not None:
            self._in_flight.leave(self._batch_run, idle=True)
            self._batch_run = None
