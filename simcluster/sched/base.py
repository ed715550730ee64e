"""What an instance runs next: plans, the decode batch, and what all schedulers share.

A scheduler decides and keeps books; it knows no clock and never reads ``output_len`` to decide.
(The decode batch knows at which step each answer ends, which only serves to skip events: a run of
steps in which nothing can change is one plan.)
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from itertools import accumulate
from math import isnan, nan
from typing import Protocol

import numpy as np

from simcluster.config import SchedulerConfig
from simcluster.errors import InvariantError
from simcluster.kvcache import BlockPool
from simcluster.request import Request, RequestStatus
from simcluster.roofline.base import StepShape
from simcluster.units import IntArray


class StepPlan:
    """What the next steps of an instance compute.

    Attributes
    ----------
    kind : str
        ``"prefill"``, ``"decode"`` or ``"mixed"``.
    num_decodes, context_tokens : int
        Decoding sequences, and the tokens they attend to in the first step, summed.
    chunks : tuple of (Request, int)
        Requests with a prefill chunk, and the new tokens of each. Over several steps it is one
        request, whose chunks take all that the decodes leave of the token budget.
    max_steps : int
        For how many steps the plan stays valid if nothing arrives.
    last_tokens : int
        New tokens of the chunk in the last of those steps if it ends the prompt and is not the
        first; else 0.
    """

    __slots__ = ("chunks", "context_tokens", "kind", "last_tokens", "max_steps", "num_decodes")

    def __init__(
        self,
        kind: str,
        num_decodes: int,
        context_tokens: int,
        chunks: tuple[tuple[Request, int], ...],
        max_steps: int,
        last_tokens: int = 0,
    ) -> None:
        self.kind = kind
        self.num_decodes = num_decodes
        self.context_tokens = context_tokens
        self.chunks = chunks
        self.max_steps = max_steps
        self.last_tokens = last_tokens

    @property
    def prefill_tokens(self) -> int:
        """New prefill tokens of the first step."""
        return sum([n for _, n in self.chunks])

    @property
    def cached_tokens(self) -> int:
        """Tokens of the requests with a chunk that are in the cache before the first step."""
        return sum([request.num_computed_tokens for request, _ in self.chunks])

    @property
    def closed_steps(self) -> int:
        """For how many steps no newcomer can join, because a prompt takes the whole budget."""
        if not self.chunks or self.max_steps == 1:
            return 0
        return self.max_steps - 1 if self.last_tokens else self.max_steps

    def last_step(self) -> StepPlan:
        """Return the plan of the last step alone, where its chunk is smaller than the others."""
        earlier, size = self.max_steps - 1, self.num_decodes
        context = self.context_tokens + earlier * size
        chunks = ((self.chunks[0][0], self.last_tokens),)
        return StepPlan(self.kind, size, context, chunks, 1)

    def shape(self, window_tokens: int | None = None, step: int = 0) -> StepShape:
        """Shape of step number `step`, from 0, for the step-time model.

        `window_tokens` is the window-capped sum of the contexts then; None in a model without a
        sliding window.
        """
        size = self.num_decodes
        context = self.context_tokens + step * size
        chunks: tuple[tuple[int, int], ...] = ()
        ending = 0
        if step and self.chunks:
            ((request, tokens),) = self.chunks
            cached = request.num_computed_tokens + step * tokens
            if self.last_tokens and step == self.max_steps - 1:
                tokens, ending = self.last_tokens, 1
            chunks = ((tokens, cached),)
        elif self.chunks:
            chunks = tuple([(n, request.num_computed_tokens) for request, n in self.chunks])
            for request, n in self.chunks:
                ending += request.num_computed_tokens + n == target(request)
        return StepShape(
            size,
            context,
            chunks,
            size + ending,
            context if window_tokens is None else window_tokens,
        )


class StepOutcome:
    """What the steps of a plan brought about.

    Attributes
    ----------
    prefilled : list of Request
        Their prompt is computed and they produced a token.
    finished : list of Request
        They produced their last token.
    """

    __slots__ = ("finished", "prefilled")

    def __init__(self) -> None:
        self.prefilled: list[Request] = []
        self.finished: list[Request] = []


def target(request: Request) -> int:
    """Tokens a prefill of `request` computes: prompt, and what was output before a preemption."""
    return request.prompt_len + request.num_output_tokens


class DecodeBatch:
    """The decoding sequences of an instance, with no work per sequence per step.

    In a decode step every sequence gains one token. So it is enough to keep sums, a heap of the
    steps at which sequences end, and how many sequences fill a block at each remainder of the step
    count.

    Attributes
    ----------
    step : int
        Decode steps done since the start.
    size : int
        Sequences in the batch.
    context_tokens : int
        Tokens the sequences attend to in the next step, summed: those in the cache and the new one.
    """

    __slots__ = (
        "_block_size",
        "_ends",
        "_fills",
        "_members",
        "_order",
        "context_tokens",
        "size",
        "step",
    )

    def __init__(self, block_size: int) -> None:
        self.step = 0
        self.size = 0
        self.context_tokens = 0
        self._block_size = block_size
        self._members: dict[int, Request] = {}
        self._ends: list[tuple[int, int, Request]] = []
        self._fills = [0] * block_size
        self._order = 0

    def __contains__(self, request: Request) -> bool:
        return request.request_id in self._members

    def __iter__(self) -> Iterator[Request]:
        return iter(self._members.values())

    def add(self, request: Request) -> None:
        """Let `request` decode from the next step on; its counters must be those of now."""
        request.decode_step = self.step
        computed = request.num_computed_tokens
        self._members[request.request_id] = request
        self._fills[(computed - self.step) % self._block_size] += 1
        self.size += 1
        self.context_tokens += computed + 1
        end = self.step + request.output_len - request.num_output_tokens
        self._order += 1
        heapq.heappush(self._ends, (end, self._order, request))

    def remove(self, request: Request) -> None:
        """Take `request` out and bring its counters up to now."""
        del self._members[request.request_id]
        done = self.step - request.decode_step
        request.num_computed_tokens += done
        request.num_output_tokens += done
        self._fills[(request.num_computed_tokens - self.step) % self._block_size] -= 1
        self.size -= 1
        self.context_tokens -= request.num_computed_tokens + 1

    def tokens_of(self, request: Request) -> int:
        """Tokens of `request` in the cache now."""
        return request.num_computed_tokens + self.step - request.decode_step

    def window_tokens(self, num_steps: int, window: int) -> IntArray:
        """Sums of the contexts, each capped at `window` tokens, of the next steps.

        The one thing here that costs work per sequence and step, for models with a window only.

        Returns
        -------
        int array, shape ``(num_steps,)``
            Tokens attended to in a layer with a sliding window.
        """
        contexts = np.fromiter((self.tokens_of(r) + 1 for r in self), np.int64, self.size)
        grown = contexts[:, None] + np.arange(num_steps)
        sums: IntArray = np.minimum(grown, window).sum(axis=0, dtype=np.int64)
        return sums

    def steps_to_next_end(self) -> int:
        """Steps until the first sequence ends, >= 1; the batch must not be empty."""
        ends = self._ends
        while True:
            end, _, request = ends[0]
            # A sequence that left early (preempted) leaves its entry behind.
            if (
                request.request_id in self._members
                and end == request.decode_step + request.output_len - request.num_output_tokens
            ):
                return end - self.step
            heapq.heappop(ends)

    def blocks_needed(self, num_steps: int) -> int:
        """New blocks that the next `num_steps` steps take."""
        cycles, rest = divmod(num_steps, self._block_size)
        needed = cycles * self.size
        first = self.step
        fills, size = self._fills, self._block_size
        for step in range(first, first + rest):
            needed += fills[-step % size]
        return needed

    def blocks_by_step(self, num_steps: int) -> list[int]:
        """New blocks that the next 1, 2, .. `num_steps` steps take."""
        fills, size, first = self._fills, self._block_size, self.step
        return list(accumulate(fills[-s % size] for s in range(first, first + num_steps)))

    def steps_with(self, free_blocks: int, limit: int) -> int:
        """Most steps, at most `limit`, whose new blocks fit into `free_blocks`."""
        if (limit // self._block_size + 1) * self.size <= free_blocks:
            return limit
        cycles = free_blocks // self.size
        steps = cycles * self._block_size
        left = free_blocks - cycles * self.size
        fills, size = self._fills, self._block_size
        while steps < limit:
            left -= fills[-(self.step + steps) % size]
            if left < 0:
                return steps
            steps += 1
        return limit

    def advance(self, num_steps: int) -> list[Request]:
        """Do `num_steps` steps; return the sequences that end with the last, taken out."""
        self.step += num_steps
        self.context_tokens += num_steps * self.size
        finished: list[Request] = []
        while self.size and self.steps_to_next_end() == 0:
            request = heapq.heappop(self._ends)[2]
            self.remove(request)
            finished.append(request)
        if not self.size:
            self._ends.clear()
        return finished


class Scheduler(Protocol):
    """What an instance asks of its scheduler."""

    pool: BlockPool
    batch: DecodeBatch
    waiting: deque[Request]

    def add(self, request: Request) -> None:
        """Queue `request`."""
        ...

    def join(self, request: Request) -> None:
        """Take over a request whose KV has arrived in blocks reserved here."""
        ...

    def schedule(self, now: float) -> StepPlan | None:
        """Plan the next steps, starting `now` (s); None when there is nothing to run."""
        ...

    def complete(self, plan: StepPlan, num_steps: int, now: float) -> StepOutcome:
        """Book `num_steps` steps of `plan`, the last ending `now` (s)."""
        ...


class BatchScheduler(ABC):
    """What the schedulers share: queue, pool, decode batch, preemption.

    Parameters
    ----------
    config : SchedulerConfig
        Limits of one step.
    pool : BlockPool
        The instance's KV cache.
    prefill_only : bool
        Requests leave after their prefill (a prefill pool); their blocks stay taken until
        `release`.
    host : BlockPool, optional
        Host memory that the KV of a preempted request is copied to while there is room in it; it
        comes back from there instead of being computed again. Requests that were preempted before
        their prefill ended always recompute.

    Attributes
    ----------
    waiting : deque of Request
        First come, first served; preempted requests go to the front.
    swapped : deque of Request
        Those whose KV is in host memory. As in vLLM (its V0 scheduler) nobody else is admitted
        before they are back.
    copied_blocks : int
        Blocks copied to or from host memory since the number was last set to 0: the next step waits
        for these copies.
    queued_tokens : int
        Tokens of the waiting requests, of the swapped ones and of those in prefill.
    waiting_blocks : int
        KV blocks that the waiting and swapped requests take on admission, if they find none.
    num_preemptions, num_swaps : int
        Preemptions so far, and those of them by swap.
    preempted, resumed, joined : list of Request
        Decoding requests preempted, those back from host memory, and those from elsewhere that are
        in the batch now, since the list was last cleared.
    segments : list of (int, float, int, int)
        Stays in the decode batch that ended since the list was last cleared: request id, end of the
        prefill before (s; NaN if its KV came from elsewhere), decode step before and after.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        pool: BlockPool,
        *,
        prefill_only: bool = False,
        host: BlockPool | None = None,
    ) -> None:
        self.config = config
        self.pool = pool
        self.host = host
        self._shares = pool.shares
        self.prefill_only = prefill_only
        self.waiting: deque[Request] = deque()
        self.batch = DecodeBatch(pool.block_size)
        self.queued_tokens = 0
        self.waiting_blocks = 0
        self.num_preemptions = 0
        self.num_swaps = 0
        self.copied_blocks = 0
        self.swapped: deque[Request] = deque()
        self.preempted: list[Request] = []
        self.resumed: list[Request] = []
        self.joined: list[Request] = []
        self.segments: list[tuple[int, float, int, int]] = []
        self._prefilling: dict[int, Request] = {}
        self._running: dict[int, Request] = {}  # in order of admission; prefilling and decoding
        self._joining: deque[Request] = deque()
        self._prefill_end_s: dict[int, float] = {}  # of the decoding requests
        self._fresh: list[Request] = []  # decoding, first decode step not yet started

    @property
    def num_running(self) -> int:
        """Requests admitted and not finished."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests not yet admitted."""
        return len(self.waiting) + len(self._joining) + len(self.swapped)

    @property
    def num_tokens(self) -> int:
        """Tokens of waiting and running requests at the last step boundary."""
        return self.queued_tokens + self.batch.context_tokens - self.batch.size

    @property
    def has_unfinished(self) -> bool:
        """Whether any request waits or runs."""
        return bool(self._running or self.waiting or self._joining or self.swapped)

    def has_room(self, request: Request, taken_blocks: int = 0) -> bool:
        """Whether sequences and blocks would let `request` in now, behind those that wait already.

        `taken_blocks` are blocks that steps already begun have taken and `complete` has not booked.
        The token limit of a step can still make it wait for the next one.
        """
        num_seqs = len(self._running) + len(self._joining) + len(self.waiting)
        if num_seqs >= self.config.max_num_seqs or self.swapped:
            return False
        num_blocks = taken_blocks + self.pool.blocks_for(target(request))
        if self.waiting:
            needed = num_blocks + self.waiting_blocks + self.pool.watermark_blocks
            return needed <= self.pool.free_blocks
        return self.pool.can_admit(num_blocks - self.pool.find(request, target(request))[1])

    def can_reserve(
        self, request: Request, taken_blocks: int, num_tokens: int | None = None
    ) -> bool:
        """Whether the KV of `request`, computed elsewhere, fits above the watermark now.

        Preempted requests come first: they were here before. `taken_blocks` as in `has_room`;
        `num_tokens` are the tokens to come, by default those computed so far.
        """
        if self.waiting or self.swapped:
            return False
        tokens = request.num_computed_tokens if num_tokens is None else num_tokens
        needed = self.pool.blocks_for(tokens) + taken_blocks
        return self.pool.can_admit(needed - self.pool.find(request, tokens + 1)[1])

    def reserve(self, request: Request, taken_blocks: int, num_tokens: int | None = None) -> int:
        """Take the blocks for the KV of `request`, which is to come, as in `can_reserve`.

        Returns
        -------
        int
            Tokens whose KV is here already.
        """
        pool = self.pool
        tokens = request.num_computed_tokens if num_tokens is None else num_tokens
        pool.settle(taken_blocks)
        found = pool.find(request, tokens + 1)[0]
        pool.take(request, pool.blocks_for(tokens), found)
        return found * pool.block_size

    def add(self, request: Request) -> None:
        """Queue `request` at the back."""
        self.waiting.append(request)
        self.queued_tokens += target(request)
        self.waiting_blocks += self.pool.blocks_for(target(request))

    def join(self, request: Request) -> None:
        """Take over `request`, whose KV has arrived in blocks reserved here."""
        self._joining.append(request)
        self.queued_tokens += target(request)

    def release(self, request: Request) -> None:
        """Free the blocks of `request` (prefill pool: its KV has left)."""
        self.pool.leave(request, self.pool.blocks_for(request.num_computed_tokens))

    @abstractmethod
    def schedule(self, now: float) -> StepPlan | None:
        """Plan the next steps, starting `now` (s); None when there is nothing to run."""

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

    def _end_segment(self, request: Request) -> None:
        """Note the stay in the decode batch that `request` has just left."""
        number = request.request_id
        start_s = self._prefill_end_s.pop(number)
        self.segments.append((number, start_s, request.decode_step, self.batch.step))

    def close(self) -> None:
        """End all stays in the decode batch, because the run is over."""
        for request in list(self.batch):
            self.batch.remove(request)
            self._end_segment(request)

    def _leave(self, request: Request, now: float) -> None:
        """Finish `request`."""
        request.status = RequestStatus.FINISHED
        request.last_token_s = now
        del self._running[request.request_id]
        self.pool.leave(request, self.pool.blocks_for(request.num_computed_tokens))

    def _admit(self, request: Request, num_blocks: int, num_found: int, now: float) -> None:
        """Take the head of the queue, `request`, into the running set.

        `num_found` of its `num_blocks` are in the pool, and the tokens in them are not computed.
        """
        self.waiting.popleft()
        self.waiting_blocks -= num_blocks
        self.pool.take(request, num_blocks, num_found)
        request.num_computed_tokens = num_found * self.pool.block_size
        request.status = RequestStatus.RUNNING
        if isnan(request.scheduled_s):
            request.scheduled_s = now
            request.num_cached_tokens = request.num_computed_tokens
        self._running[request.request_id] = request
        self._prefilling[request.request_id] = request

    def _admit_joining(self) -> None:
        while self._joining and len(self._running) < self.config.max_num_seqs:
            request = self._joining.popleft()
            self.queued_tokens -= target(request)
            request.status = RequestStatus.RUNNING
            self._running[request.request_id] = request
            self._start_decode(request, nan)
            self.joined.append(request)

    def _make_room_for_one_step(self) -> None:
        """Preempt the newest requests until every decode can write its next token."""
        if self.batch.size <= self.pool.free_blocks:
            return  # each takes one block at most
        while self.batch.size and self.batch.blocks_needed(1) > self.pool.free_blocks:
            self._preempt(next(reversed(self._running.values())))

    def _preempt(self, request: Request) -> None:
        """Take the KV of `request` back; it waits in front of the others."""
        del self._running[request.request_id]
        swaps = False
        if request in self.batch:
            self.batch.remove(request)
            self._end_segment(request)
            num_blocks = self.pool.blocks_for(request.num_computed_tokens)
            swaps = self.host is not None and num_blocks <= self.host.free_blocks
            self.pool.leave(request, num_blocks)
            self.queued_tokens += target(request)
            self.preempted.append(request)
        else:
            del self._prefilling[request.request_id]
            self.pool.leave(request, self.pool.blocks_for(target(request)))
        request.status = RequestStatus.PREEMPTED
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting_blocks += self.pool.blocks_for(target(request))
        if swaps:
            self._swap_out(request)
        else:
            request.num_computed_tokens = 0
            self.waiting.appendleft(request)

    def _swap_out(self, request: Request) -> None:
        """Copy the KV of `request`, which has just lost its blocks, to host memory."""
        assert self.host is not None
        num_blocks = self.host.blocks_for(request.num_computed_tokens)
        self.host.allocate(num_blocks)
        self.copied_blocks += num_blocks
        self.num_swaps += 1
        self.swapped.appendleft(request)

    def _swap_in(self) -> None:
        """Copy the KV of swapped requests back, the first come first, as far as it fits.

        With it must fit what the coming step takes, or it would be preempted at once.
        """
        pool, host = self.pool, self.host
        assert host is not None
        while self.swapped and len(self._running) < self.config.max_num_seqs:
            request = self.swapped[0]
            tokens = request.num_computed_tokens
            num_blocks = pool.blocks_for(tokens)
            found, in_use = pool.find(request, tokens + 1)
            next_step = pool.blocks_for(tokens + 1) - num_blocks + self.batch.blocks_needed(1)
            if not pool.can_admit(num_blocks - in_use + next_step):
                return
            self.swapped.popleft()
            pool.take(request, num_blocks, found)
            host.release(num_blocks)
            self.copied_blocks += num_blocks - found
            self.queued_tokens -= target(request)
            self.waiting_blocks -= pool.blocks_for(target(request))
            request.status = RequestStatus.RUNNING
            self._running[request.request_id] = request
            self._start_decode(request, nan)
            self.resumed.append(request)

    def _start_fresh(self, now: float) -> None:
        """Stamp the decodes whose first decode step starts `now`."""
        for request in self._fresh:
            if isnan(request.decode_start_s) and request in self.batch:
                request.decode_start_s = now
        self._fresh.clear()

    def _decode_plan(self, now: float) -> StepPlan | None:
        """Plan decode steps of the whole batch until one ends or the pool runs dry."""
        preemptions = self.num_preemptions
        self._make_room_for_one_step()
        batch = self.batch
        if not batch.size:
            return None
        if self._fresh:
            self._start_fresh(now)
        # What a preemption has freed may let others in at the next boundary already. (A scheduler
        # that makes room before it admits, as the chunked one does, has let them in by now.)
        steps = 1
        if self.num_preemptions == preemptions and not self.copied_blocks:
            steps = batch.steps_with(self.pool.free_blocks, batch.steps_to_next_end())
        return StepPlan("decode", batch.size, batch.context_tokens, (), steps)
