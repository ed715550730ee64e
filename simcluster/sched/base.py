"""Scheduler: decides what an instance runs next; what all schedulers share.

A scheduler decides on top of its books (`books`). It knows no clock and never reads ``output_len``
to decide: the decode batch knows when each answer ends, but that only serves to skip events.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from math import isnan, nan
from typing import ClassVar

from mypy_extensions import mypyc_attr

from simcluster.catalog.layers import Reach
from simcluster.config import SchedulerConfig
from simcluster.kvcache import BlockPool
from simcluster.request import Request, RequestStatus
from simcluster.sched.books import Books
from simcluster.sched.plan import StepPlan, target
from simcluster.sched.queue import FirstCome, RequestQueue
from simcluster.sched.swap import SwapSpace


@mypyc_attr(allow_interpreted_subclasses=True)
class Scheduler(Books, ABC):
    """Queue, admission and preemption on top of the books; a subclass plans steps from them.

    A subclass has one method, `schedule`. It admits requests from the head of the queue only, with
    `_admit`, and plans decodes with `_decode_plan`; then a run of decode steps can be one event,
    and an arrival ends it only where the arrival could be admitted. A subclass that looks beyond
    the head, such as at the number of waiting requests, sets `looks_beyond_head`.
    `simcluster.testing.contracts.SchedulerContract` checks that all this holds.

    Parameters
    ----------
    config : SchedulerConfig
        Limits of one step.
    pool, prefill_only, reach
        As in `Books`.
    host : BlockPool, optional
        Host memory that the KV of a preempted request is copied to while there is room in it; it
        comes back from there instead of being computed again. Requests that were preempted before
        their prefill ended always recompute.
    queue : RequestQueue, optional
        Order in which waiting requests are admitted; default: first come, first served.
    plans_ahead : bool
        Steps are planned while the step before runs: requests that come in wait until `see`.

    Attributes
    ----------
    splits_prompts : bool
        Class attribute: a prompt may be computed in chunks over several steps, beside decodes.
    looks_beyond_head : bool
        Class attribute: plans depend on more than the head of the queue, so any arrival may change
        them. Where that depends on the configuration, a class has `_looks_beyond_head` instead.
    delays_prefill : bool
        Class attribute: it knows the delays of prefill in `SchedulerConfig`.
    limit_key : str
        Class attribute: key of a strategy that sets the most tokens of a step.
    waiting : RequestQueue
        Requests that are not admitted.
    swap : SwapSpace
        Requests whose KV is in host memory.
    swapped : deque of Request
        These requests. As in vLLM (its V0 scheduler) nobody else is admitted before they are back.
    waiting_blocks : int
        KV blocks that the waiting and swapped requests take on admission, if they find none.
    num_preemptions : int
        Preemptions so far.
    preempted, resumed, joined : list of Request
        Decoding requests preempted, those back from host memory, and those from elsewhere that are
        in the batch now, since the list was last cleared.
    """

    splits_prompts: ClassVar[bool] = False
    looks_beyond_head: ClassVar[bool] = False
    delays_prefill: ClassVar[bool] = False
    limit_key: ClassVar[str] = "max_num_batched_tokens"

    def __init__(
        self,
        config: SchedulerConfig,
        pool: BlockPool,
        *,
        prefill_only: bool = False,
        host: BlockPool | None = None,
        queue: RequestQueue | None = None,
        reach: Reach | None = None,
        plans_ahead: bool = False,
    ) -> None:
        super().__init__(pool, prefill_only=prefill_only, reach=reach)
        self.config = config
        # A prefill pool gives prompts away: it has no outputs to reserve.
        self._reserves = config.reserves_output and not prefill_only
        self.plans_ahead = plans_ahead
        self.waiting: RequestQueue = FirstCome() if queue is None else queue
        self.swap = SwapSpace(host)
        self.swapped = self.swap.requests
        self.waiting_blocks = 0
        self.num_preemptions = 0
        self.preempted: list[Request] = []
        self.resumed: list[Request] = []
        self.joined: list[Request] = []
        self._joining: deque[Request] = deque()
        self._unseen: deque[Request] = deque()  # came in while a step ran, in order
        self._just_preempted = False  # while the present plan was made

    @property
    def num_waiting(self) -> int:
        """Requests not yet admitted."""
        return len(self.waiting) + len(self._joining) + len(self.swapped) + len(self._unseen)

    @property
    def num_tokens(self) -> int:
        """Tokens of waiting and running requests at the last step boundary."""
        return self.queued_tokens + self.batch.context_tokens - self.batch.size

    @property
    def has_unfinished(self) -> bool:
        """Whether any request waits or runs."""
        waits = self.waiting.head or self._joining or self.swapped or self._unseen
        return bool(self._running or waits)

    def has_room(self, request: Request, taken_blocks: int = 0) -> bool:
        """Whether sequences and blocks would let `request` in now, behind those that wait already.

        `taken_blocks` are blocks that steps already begun have taken and `complete` has not booked.
        The token limit of a step can still make it wait for the next one.
        """
        unseen = len(self._unseen)
        num_seqs = len(self._running) + len(self._joining) + len(self.waiting) + unseen
        if num_seqs >= self.config.max_num_seqs or self.swapped:
            return False
        num_blocks = taken_blocks + self.pool.prompt_blocks(target(request))
        if self.waiting.head is not None or unseen:
            needed = num_blocks + self.waiting_blocks + self.pool.watermark_blocks
            return needed <= self.pool.free_blocks and not self._reserves
        found = self.pool.find(request, target(request))[1]
        return self._fits(request, num_blocks - found)

    def can_reserve(
        self, request: Request, taken_blocks: int, num_tokens: int | None = None
    ) -> bool:
        """Whether the KV of `request`, computed elsewhere, fits above the watermark now.

        Preempted requests come first: they were here before. `taken_blocks` as in `has_room`;
        `num_tokens` are the tokens to come, by default those computed so far.
        """
        if self.waiting.head is not None or self.swapped or self._unseen:
            return False
        tokens = request.num_computed_tokens if num_tokens is None else num_tokens
        needed = self.pool.blocks_for(tokens) + taken_blocks
        return self._fits(request, needed - self.pool.find(request, tokens + 1)[1])

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
        if self._reserves:
            self._promised += self._whole_blocks(request)
        return found * pool.block_size

    def add(self, request: Request) -> bool:
        """Queue `request`; return whether it may change what was planned for the next steps.

        Behind a head that does not fit it changes nothing before a sequence ends.
        """
        self.queued_tokens += target(request)
        self.waiting_blocks += self.pool.prompt_blocks(target(request))
        if self.plans_ahead:
            self._unseen.append(request)
            return self._counts(request)
        return self.waiting.push(request) or self._looks_beyond_head()

    def see(self, num_requests: int) -> None:
        """Let the next plan know of the first `num_requests` that it does not know of yet."""
        for _ in range(num_requests):
            request = self._unseen.popleft()
            if request.status is RequestStatus.TRANSFERRING:
                self._joining.append(request)
            else:
                self.waiting.push(request)

    def join(self, request: Request) -> None:
        """Take over `request`, whose KV has arrived in blocks reserved here."""
        (self._unseen if self.plans_ahead else self._joining).append(request)
        self.queued_tokens += target(request)

    def schedule(self, now: float) -> StepPlan | None:
        """Plan the next steps, starting `now` (s); None when there is nothing to run."""
        self._just_preempted = False
        plan = self._plan(now)
        if plan is None and (self.waiting.head or self._joining or self.swapped):
            # Preempting emptied the batch and made room for others.
            plan = self._plan(now)
        if self._unseen and plan is not None and any(map(self._counts, self._unseen)):
            # The plan after the next step knows of them.
            plan.max_steps, plan.last_tokens = max(plan.closed_steps, 1), 0
        return plan

    def _looks_beyond_head(self) -> bool:
        """Whether a request behind the head may change a plan."""
        return self.looks_beyond_head

    def _counts(self, request: Request) -> bool:
        """Whether `request`, once it is seen, may change a plan."""
        if self._looks_beyond_head() or request.status is RequestStatus.TRANSFERRING:
            return True
        return self.waiting.goes_first(request)

    @abstractmethod
    def _plan(self, now: float) -> StepPlan | None:
        """Plan the next steps, starting `now` (s); None if nothing can run before others move."""

    def _admit(self, request: Request, num_blocks: int, num_found: int, now: float) -> None:
        """Take the head of the queue, `request`, into the running set.

        `num_found` of its `num_blocks` are in the pool, and the tokens in them are not computed.
        """
        self.waiting.pop()
        self.waiting_blocks -= num_blocks
        self.pool.take(request, num_blocks, num_found)
        if self._reserves:
            self._promised += self._whole_blocks(request)
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
        """Preempt requests, by the policy of the queue, until every decode can write a token."""
        batch = self.batch
        if batch.size * batch.most_blocks_per_step <= self.pool.free_blocks:
            return
        while batch.size and batch.blocks_needed(1) > self.pool.free_blocks:
            self._preempt(self.waiting.victim(self._running.values()))

    def _preempt(self, request: Request) -> None:
        """Take the KV of `request` back; it waits again."""
        del self._running[request.request_id]
        if self._reserves:
            self._promised -= self._whole_blocks(request)
        swaps, num_blocks = False, 0
        if request in self.batch:
            self.batch.remove(request)
            self._end_segment(request)
            num_blocks = self.pool.blocks_for(request.num_computed_tokens)
            swaps = self.swap.has_room(num_blocks)
            self.pool.leave(request, num_blocks)
            self.queued_tokens += target(request)
            self.preempted.append(request)
        else:
            del self._prefilling[request.request_id]
            self.pool.leave(request, self.pool.prompt_blocks(target(request)))
        request.status = RequestStatus.PREEMPTED
        request.num_preemptions += 1
        self.num_preemptions += 1
        self._just_preempted = True
        self.waiting_blocks += self.pool.prompt_blocks(target(request))
        if swaps:
            self.swap.put(request, num_blocks)
        else:
            request.num_computed_tokens = 0
            self.waiting.put_back(request)

    def _swap_in(self) -> None:
        """Copy the KV of swapped requests back, the first come first, as far as it fits.

        With it must fit what the coming step takes, or it would be preempted at once.
        """
        pool = self.pool
        while self.swapped and len(self._running) < self.config.max_num_seqs:
            request = self.swapped[0]
            tokens = request.num_computed_tokens
            num_blocks = pool.blocks_for(tokens)
            found, in_use = pool.find(request, tokens + 1)
            next_step = pool.blocks_for(tokens + 1) - num_blocks + self.batch.blocks_needed(1)
            if not self._fits(request, num_blocks - in_use + next_step):
                return
            if self._reserves:
                self._promised += self._whole_blocks(request)
            self.swap.take(num_blocks, found * pool.layout.full)
            pool.take(request, num_blocks, found)
            self.queued_tokens -= target(request)
            self.waiting_blocks -= pool.prompt_blocks(target(request))
            request.status = RequestStatus.RUNNING
            self._running[request.request_id] = request
            self._start_decode(request, nan)
            self.resumed.append(request)

    def _decode_plan(self, now: float) -> StepPlan | None:
        """Plan decode steps of the whole batch until one ends or the pool runs dry."""
        self._make_room_for_one_step()
        batch = self.batch
        if not batch.size:
            return None
        if self._fresh:
            self._start_fresh(now)
        # What a preemption has freed may let others in at the next boundary already, whether they
        # wait or were swapped out.
        steps = 1
        if not self._just_preempted and not self.swap.copied_blocks:
            steps = batch.steps_with(self.pool.free_blocks, batch.steps_to_next_end())
        return StepPlan("decode", batch.size, batch.context_tokens, (), steps)
