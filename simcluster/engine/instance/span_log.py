"""Rows of the spans and segments frames, written by one lane."""

from __future__ import annotations

from simcluster.engine.instance.span import Span
from simcluster.engine.recorder import Recorder
from simcluster.roofline.base import StepTime
from simcluster.sched import Scheduler, StepOutcome, StepPlan


class SpanLog:
    """Books the steps of one lane of an instance and writes them down.

    Parameters
    ----------
    recorder : Recorder
        Where the rows go.
    instance_id, lane : int
        Whose they are.
    scheduler : Scheduler
        Who did the steps.
    row_per_step : bool
        A row for every step (in a pipeline: when a step ends depends on the other batches, and
        nobody could unroll a run of them), else one for a run of equal steps.

    Attributes
    ----------
    busy_s : float
        Time in steps so far (s).
    num_steps : int
        Steps so far.
    """

    def __init__(
        self,
        recorder: Recorder,
        instance_id: int,
        lane: int,
        scheduler: Scheduler,
        *,
        row_per_step: bool,
    ) -> None:
        self._spans, self._segments = recorder.spans, recorder.segments
        self._instance_id, self._lane = instance_id, lane
        self._scheduler = scheduler
        self._row_per_step = row_per_step
        self.busy_s = 0.0
        self.num_steps = 0

    def book(
        self, span: Span, num_steps: int, end_s: float, step_time: StepTime, share: float
    ) -> StepOutcome:
        """Book the first `num_steps` steps of `span`, the last of which ended at `end_s` (s).

        Parameters
        ----------
        span : Span
            The steps; its start moves to the last one where that is a row of its own.
        num_steps, end_s
            How far it came.
        step_time : StepTime
            GPU time of the step before the last, where the engine overlaps.
        share : float
            Share of the wires that its collectives had, 0 to 1.
        """
        scheduler, plan = self._scheduler, span.plan
        assert plan is not None, "a span that runs has a plan"
        num_waiting = scheduler.num_waiting
        if not plan.last_tokens or num_steps < plan.max_steps:
            return self._book_equal_steps(span, plan, num_steps, end_s, num_waiting, share)
        # The last chunk is smaller: a row of its own. Nobody waited for it to begin.
        boundary_s, hidden_s, last = span.ends[num_steps - 2], 0.0, plan.last_step()
        if step_time.overlaps_host:
            hidden_s = step_time.gpu_s(scheduler.shape(plan, num_steps - 2))
        self._book_equal_steps(span, plan, num_steps - 1, boundary_s, 0, share)
        span.start_s, span.hidden_s = boundary_s, hidden_s
        return self._book_equal_steps(span, last, 1, end_s, num_waiting, share)

    def _book_equal_steps(
        self,
        span: Span,
        plan: StepPlan,
        num_steps: int,
        end_s: float,
        num_waiting: int,
        share: float,
    ) -> StepOutcome:
        scheduler = self._scheduler
        tokens = cached = 0
        if plan.chunks:
            tokens, cached = plan.prefill_tokens, plan.cached_tokens
        start_s, context, rows = span.start_s, plan.context_tokens, num_steps
        if self._row_per_step and num_steps > 1:
            self._write_all_but_the_last(span, plan, num_steps)
            start_s, rows = span.ends[num_steps - 2], 1
            context += (num_steps - 1) * plan.num_decodes
            cached += (num_steps - 1) * tokens
        outcome = scheduler.complete(plan, num_steps, end_s)
        self.busy_s += end_s - span.start_s
        self.num_steps += num_steps
        levels = scheduler.pool.usage, num_waiting, scheduler.num_running, span.hidden_s, share
        self._write(plan, start_s, end_s, rows, context, tokens, cached, levels)
        if scheduler.segments:
            self.write_segments()
        return outcome

    def _write_all_but_the_last(self, span: Span, plan: StepPlan, num_steps: int) -> None:
        """Write a row for each step but the last: nothing but the steps happened in between."""
        scheduler, pool = self._scheduler, self._scheduler.pool
        start_s, context = span.start_s, plan.context_tokens
        tokens, cached = plan.prefill_tokens, plan.cached_tokens
        taken = scheduler.batch.blocks_by_step(num_steps - 1)
        for end_s, blocks in zip(span.ends, taken, strict=False):
            usage = 1.0 - (pool.free_blocks - blocks) / pool.num_blocks
            levels = usage, span.num_waiting, scheduler.num_running, 0.0, 1.0
            self._write(plan, start_s, end_s, 1, context, tokens, cached, levels)
            start_s = end_s
            context += plan.num_decodes
            cached += tokens

    def _write(
        self,
        plan: StepPlan,
        start_s: float,
        end_s: float,
        num_steps: int,
        context_tokens: int,
        prefill_tokens: int,
        cached_tokens: int,
        levels: tuple[float, int, int, float, float],
    ) -> None:
        """Write a row, in the order of `schema.SPANS`; `levels` are its last five columns."""
        self._spans.add(
            (
                self._instance_id,
                self._lane,
                start_s,
                end_s,
                plan.kind,
                num_steps,
                plan.num_decodes,
                context_tokens,
                len(plan.chunks),
                prefill_tokens,
                cached_tokens,
                *levels,
            )
        )

    def write_segments(self) -> None:
        """Write down the stays in the decode batch that have ended."""
        segments = self._scheduler.segments
        for request_id, prefill_end_s, first_step, last_step in segments:
            self._segments.add(
                (request_id, self._instance_id, self._lane, prefill_end_s, first_step, last_step)
            )
        segments.clear()
