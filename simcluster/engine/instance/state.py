"""State of an instance as others may read it: that of its last step boundary."""

from __future__ import annotations

from bisect import bisect_right

from simcluster.catalog.layers import Reach
from simcluster.engine.clock import Clock
from simcluster.engine.instance.span import Span
from simcluster.request import Request
from simcluster.roofline.base import StepShape, StepTime
from simcluster.sched import Scheduler


class InstanceState:
    """What routers and strategies may know of an instance.

    In the middle of a span it is the state at the step boundary before, never interpolated, so that
    it is the same at every resolution.

    Parameters
    ----------
    env : Clock
        The run.
    scheduler : Scheduler
        The books of the instance.
    step_time : StepTime
        Its step times.
    reach : Reach or None
        Window, chunk or top-k of the model's layers.

    Attributes
    ----------
    span : Span
        The steps under way.
    """

    def __init__(
        self, env: Clock, scheduler: Scheduler, step_time: StepTime, reach: Reach | None
    ) -> None:
        self.env = env
        self.scheduler = scheduler
        self.step_time = step_time
        self.span = Span()
        self._reach = reach

    @property
    def load_tokens(self) -> int:
        """Tokens of the waiting and running requests."""
        # Routers read it of every instance for every request: no detours.
        scheduler, span = self.scheduler, self.span
        batch = scheduler.batch
        tokens = scheduler.queued_tokens + batch.context_tokens - batch.size
        plan = span.plan
        if plan is not None and plan.num_decodes:
            steps = bisect_right(span.ends, self.env.now)
            tokens += (steps if steps < span.num_steps else span.num_steps) * plan.num_decodes
        return tokens

    @property
    def has_unfinished(self) -> bool:
        """Whether any request waits or runs."""
        return self.scheduler.has_unfinished

    @property
    def num_unfinished(self) -> int:
        """Requests that wait or run."""
        return self.scheduler.num_waiting + self.scheduler.num_running

    def decodes(self, request: Request) -> bool:
        """Whether `request` is decoding here."""
        return request in self.scheduler.batch

    def lane_of(self, request: Request) -> int:
        """The lane that `request` is in: there is one."""
        return 0

    def decode_step_of(self, lane: int) -> int:
        """Decode steps done so far."""
        step = self.scheduler.batch.step
        if self.span.plan is not None and self.span.plan.num_decodes:
            step += self.span.steps_ended(self.env.now)
        return step

    # --- KV cache -----------------------------------------------------------------------------

    @property
    def taken_blocks(self) -> int:
        """Blocks taken by the steps of the span that have begun, not yet booked.

        A step takes its blocks when it begins. At the very time of a boundary the next one has not:
        whatever asks then comes before scheduling.
        """
        span = self.span
        if span.plan is None or not span.plan.num_decodes:
            return 0
        begun = min(span.steps_begun(self.env.now), span.num_steps)
        return self.scheduler.batch.blocks_needed(begun)

    @property
    def free_blocks(self) -> int:
        """Free KV blocks."""
        return self.scheduler.pool.free_blocks - self.taken_blocks

    @property
    def waiting_blocks(self) -> int:
        """KV blocks that the requests waiting here will take."""
        return self.scheduler.waiting_blocks

    def blocks_for(self, num_tokens: int) -> int:
        """KV blocks that hold `num_tokens` tokens of one sequence."""
        return self.scheduler.pool.blocks_for(num_tokens)

    def prompt_blocks(self, num_tokens: int) -> int:
        """KV blocks of a sequence while its `num_tokens` tokens are prefilled."""
        return self.scheduler.pool.prompt_blocks(num_tokens)

    def free_blocks_after(self, num_steps: int) -> int:
        """Free KV blocks when `num_steps` steps of the span have ended."""
        scheduler = self.scheduler
        return scheduler.pool.free_blocks - scheduler.batch.blocks_needed(num_steps)

    def cached_tokens(self, request: Request) -> int:
        """Tokens of `request` that it would find in the KV cache."""
        pool = self.scheduler.pool
        if not pool.shares:
            return 0
        pool.settle(self.taken_blocks)
        return pool.find(request, request.prompt_len)[0] * pool.block_size

    def has_room(self, request: Request) -> bool:
        """Whether `request` would be admitted at the next boundary."""
        return self.scheduler.has_room(request, self.taken_blocks)

    def can_reserve(self, request: Request, num_tokens: int | None = None) -> bool:
        """Whether `num_tokens` of `request` (default: what it has) fit above the watermark."""
        return self.scheduler.can_reserve(request, self.taken_blocks, num_tokens)

    # --- predictions --------------------------------------------------------------------------

    def prefill_s(self, prompt_len: int, cached_tokens: int = 0) -> float:
        """Time to prefill one prompt alone, `cached_tokens` of it cached (s)."""
        if not cached_tokens:
            return self.step_time.prefill_s(prompt_len)
        chunk = (prompt_len - cached_tokens, cached_tokens)
        return self.step_time.step_s(StepShape(0, 0, (chunk,), 1, 0))

    def decode_s(self, num_seqs: int, context_tokens: int) -> float:
        """Time of a decode step of `num_seqs` with `context_tokens` of context together (s)."""
        window = context_tokens
        if self._reach is not None:
            each = -(-context_tokens // num_seqs)
            window = min(context_tokens, num_seqs * self._reach.of(each))
        return self.step_time.step_s(StepShape(num_seqs, context_tokens, (), num_seqs, window))
