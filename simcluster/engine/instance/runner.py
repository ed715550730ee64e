"""Runners: how the steps of a span pass, as one event, kernel by kernel, or through a pipeline."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Generator, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import simpy

from simcluster.engine.clock import STEP_END, Wake
from simcluster.engine.dispatcher import RankGroup
from simcluster.engine.instance.span import Span
from simcluster.engine.pipeline import BatchesInFlight, BatchRun, PipelineStages
from simcluster.engine.recorder import KernelLog
from simcluster.sched import StepPlan
from simcluster.units import IntArray

if TYPE_CHECKING:
    from simcluster.engine.instance.instance import Instance

MAX_SPAN_STEPS: Final = 512
"""Longest run of steps planned as one event; longer ones are planned again from their end."""
MAX_PIPELINE_STEPS: Final = 64
"""The same for batches of a pipeline: steps computed ahead are lost when one of them changes."""


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
        step_time = self._instance.step_time
        schedule = step_time.kernels(self._instance.scheduler.shape(plan))
        host_after_s = schedule.host_after_s
        span.num_steps = 1
        span.ends = []
        if step_time.overlaps_host:
            # Another thread does the host work of this step; it began when the GPU began the last.
            left_s = schedule.host_before_s + host_after_s - span.hidden_s
            if left_s > 0.0:
                yield self._env.timeout(left_s)
                self._write_host_work(self._env.now - left_s, self._env.now)
            schedule = replace(schedule, host_before_s=0.0)
            host_after_s = 0.0
        if span.copies_s:
            yield self._env.timeout(span.copies_s)
        yield self._ranks.run(schedule)
        end = self._env.now + host_after_s
        if host_after_s:
            self._write_host_work(self._env.now, end)
        span.ends = [end]
        yield self._wake.at(end, self._priority)

    def _write_host_work(self, start_s: float, end_s: float) -> None:
        if self._kernels is not None:
            row = (self._instance.instance_id, 0, "cpu", "host work", start_s, end_s)
            self._kernels.add(row)


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
