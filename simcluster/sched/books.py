"""Books of an instance: who runs, with which KV blocks, and what its steps have done."""

from __future__ import annotations

from math import isnan

from mypy_extensions import mypyc_attr

from simcluster.catalog.layers import Reach
from simcluster.errors import InvariantError
from simcluster.kvcache import BlockPool
from simcluster.request import Request, RequestStatus
from simcluster.roofline.base import StepShape
from simcluster.sched.decode_batch import DecodeBatch
from simcluster.sched.plan import StepOutcome, StepPlan, target
from simcluster.units import IntArray


@mypyc_attr(allow_interpreted_subclasses=True)
class Books:
    """Admitted requests, decode batch and pool, and what the steps of a plan change in them.

    They decide nothing: `Scheduler` does.

    Parameters
    ----------
    pool : BlockPool
        The instance's KV cache.
    prefill_only : bool
        Requests leave after their prefill (a prefill pool); their blocks stay taken until
        `release`.
    reach : Reach, optional
        Window, chunk or top-k of the model's layers.

    Attributes
    ----------
    batch : DecodeBatch
        The decoding requests.
    queued_tokens : int
        Tokens of the requests that wait, are swapped out or are in prefill.
    segments : list of (int, float, int, int)
        Stays in the decode batch that ended since the list was last cleared: request id, end of the
        prefill before (s; NaN if its KV came from elsewhere), decode step before and after.
    """

    def __init__(
        self, pool: BlockPool, *, prefill_only: bool = False, reach: Reach | None = None
    ) -> None:
        self.pool = pool
        self.prefill_only = prefill_only
        self.batch = DecodeBatch(pool.layout, reach)
        self.queued_tokens = 0
        self.segments: list[tuple[int, float, int, int]] = []
        self._shares = pool.shares
        self._reserves = False  # whole outputs, see `SchedulerConfig.reserves_output`
        self._promised = 0  # blocks of all that run when they end
        self._reach = reach
        self._prefilling: dict[int, Request] = {}
        self._running: dict[int, Request] = {}  # in order of admission; prefilling and decoding
        self._prefill_end_s: dict[int, float] = {}  # of the decoding requests
        self._fresh: list[Request] = []  # decoding, first decode step not yet started

    @property
    def num_running(self) -> int:
        """Requests admitted and not finished."""
        return len(self._running)

    def _blocks_of(self, request: Request) -> tuple[int, int, int]:
        """Blocks that `request` takes on admission: all, shared ones found, and free ones."""
        tokens = target(request)
        num_blocks = self.pool.prompt_blocks(tokens)
        if not self._shares:
            return num_blocks, 0, num_blocks
        found, in_use = self.pool.find(request, tokens)
        return num_blocks, found, num_blocks - in_use

    def _whole_blocks(self, request: Request) -> int:
        """Most blocks that `request` has at a time: of its prompt, or at its end."""
        tokens = request.prompt_len + request.output_len - 1
        return max(self.pool.prompt_blocks(request.prompt_len), self.pool.blocks_for(tokens))

    def _fits(self, request: Request, num_blocks: int) -> bool:
        """Whether `request`, which takes `num_blocks` now, may come in."""
        pool = self.pool
        if not pool.can_admit(num_blocks):
            return False
        if not self._reserves:
            return True
        most = pool.num_blocks - (pool.watermark_blocks if self._promised else 0)
        return self._promised + self._whole_blocks(request) <= most

    def shape(self, plan: StepPlan, step: int = 0) -> StepShape:
        """Shape of step number `step`, from 0, of `plan`; before the plan is booked."""
        if self._reach is None or not plan.num_decodes:
            return plan.shape(None, step)
        window_tokens = self.batch.window_tokens(step + 1)[step]
        return plan.shape(int(window_tokens), step)

    def window_tokens(self, num_steps: int) -> IntArray | None:
        """Sums of the contexts of the next steps as far as they reach, shape ``(num_steps,)``.

        None in a model without windows.
        """
        if self._reach is None:
            return None
        return self.batch.window_tokens(num_steps)

    def complete(self, plan: StepPlan, num_steps: int, now: float) -> StepOutcome:
        """Book `num_steps` equal steps of `plan`, the last ending `now` (s)."""
        outcome = StepOutcome()
        if plan.num_decodes:
            self.pool.allocate(self.batch.blocks_needed(num_steps))
            for request in self.batch.advance(num_steps):
                self._end_segment(request)
                self._leave(request, now)
                outcome.finished.append(request)
        if plan.chunks:
            if num_steps > 1 and num_steps > plan.closed_steps:
                raise InvariantError("more steps than the plan has with these chunks")
            for request, num_tokens in plan.chunks:
                request.num_computed_tokens += num_steps * num_tokens
                if self._shares:
                    self.pool.computed(request)
                if request.num_computed_tokens == target(request):
                    self._prefill_ended(request, now, outcome)
        return outcome

    def _prefill_ended(self, request: Request, now: float, outcome: StepOutcome) -> None:
        del self._prefilling[request.request_id]
        self.queued_tokens -= request.num_computed_tokens
        if self.pool.layout.limited:
            # Layers with a window let go what they held for the tokens of one step.
            tokens = request.num_computed_tokens
            self.pool.release(self.pool.prompt_blocks(tokens) - self.pool.blocks_for(tokens))
        request.num_output_tokens += 1
        if isnan(request.first_token_s):
            request.first_token_s = now
        outcome.prefilled.append(request)
        if request.num_output_tokens == request.output_len:
            if isnan(request.decode_start_s):
                request.decode_start_s = now
            self._leave(request, now)
            outcome.finished.append(request)
        elif self.prefill_only:
            request.status = RequestStatus.TRANSFERRING
            del self._running[request.request_id]
        else:
            self._start_decode(request, now)

    def _start_decode(self, request: Request, prefill_end_s: float) -> None:
        self.batch.add(request)
        self._prefill_end_s[request.request_id] = prefill_end_s
        self._fresh.append(request)

    def _start_fresh(self, now: float) -> None:
        """Stamp the decodes whose first decode step starts `now`."""
        for request in self._fresh:
            if isnan(request.decode_start_s) and request in self.batch:
                request.decode_start_s = now
        self._fresh.clear()

    def _end_segment(self, request: Request) -> None:
        """Note the stay in the decode batch that `request` has just left."""
        number = request.request_id
        start_s = self._prefill_end_s.pop(number)
        self.segments.append((number, start_s, request.decode_step, self.batch.step))

    def _leave(self, request: Request, now: float) -> None:
        """Finish `request`."""
        request.status = RequestStatus.FINISHED
        request.last_token_s = now
        del self._running[request.request_id]
        self.pool.leave(request, self.pool.blocks_for(request.num_computed_tokens))
        if self._reserves:
            self._promised -= self._whole_blocks(request)

    def release(self, request: Request) -> None:
        """Free the blocks of `request` (prefill pool: its KV has left)."""
        self.pool.leave(request, self.pool.blocks_for(request.num_computed_tokens))

    def close(self) -> None:
        """End all stays in the decode batch, because the run is over."""
        for request in list(self.batch):
            self.batch.remove(request)
            self._end_segment(request)
