"""Look into a run while it happens: a wrapper around any strategy that keeps its own books."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from simcluster.engine.groups.cluster import Cluster, Deployment
from simcluster.engine.instance import Instance, InstanceLike
from simcluster.engine.instance.pipelined import PipelinedInstance
from simcluster.kvcache import PrefixPool
from simcluster.request import Request, RequestStatus
from simcluster.sched import SCHEDULERS, Scheduler, StepOutcome, StepPlan, target
from simcluster.strategies.base import Strategy
from simcluster.testing.laws import require


@dataclass
class InstanceBooks:
    """What an instance, or one lane of a pipelined instance, was seen to do."""

    num_prefilled: int = 0
    """Prefills that ended, recomputations included."""
    prefill_tokens: int = 0
    decode_tokens: int = 0
    """Tokens computed in prefill chunks, and tokens that decode steps produced."""
    cached_tokens: int = 0
    """Tokens that admitted requests found in the KV cache, recomputations included."""
    admitted: list[int] = field(default_factory=list)
    """Request ids in the order in which a prefill of theirs was begun."""


class Watched:
    """A strategy whose deployment is watched; use it where the strategy would go.

    It counts requests in the system on its own, and refuses one that ends twice. After each plan
    and each step it checks the scheduler: limits of a step, the counts that routers see, KV blocks
    in use against the sum over sequences (pools of the role ``mixed``, where nothing is reserved
    for transfers), and that it does not stop while the head of its queue fits.

    Attributes
    ----------
    levels : list of (float, int)
        Time (s) and number of requests in the system from then on, rejected ones left out.
    lanes : list of Instance
        The instances; of a pipelined one its lanes.
    books : list of InstanceBooks
        One per lane.
    """

    cluster: Cluster
    """The machines of the last run."""

    def __init__(self, strategy: Strategy) -> None:
        self.kind = strategy.kind
        self.name = strategy.name
        self._strategy = strategy
        self.levels: list[tuple[float, int]] = []
        self.lanes: list[Instance] = []
        self.books: list[InstanceBooks] = []
        self._inside: set[int] = set()
        self._gone: set[int] = set()

    def build(self, cluster: Cluster) -> Deployment:
        """Build the strategy's deployment and attach the books to it."""
        self.cluster = cluster
        self.levels = [(0.0, 0)]
        self.lanes, self.books = [], []
        self._inside.clear()
        self._gone.clear()
        with _watched_schedulers():
            deployment = self._strategy.build(cluster)
        for placed in cluster.placed:
            for lane in _lanes(placed.instance):
                self.lanes.append(lane)
                self.books.append(InstanceBooks())
                _watch(lane, self.books[-1], counts_blocks=placed.role == "mixed")
        return Deployment(_Entry(self, deployment), deployment.on_end, deployment.models)

    def entered(self, request: Request) -> None:
        """Book that `request` is in the system."""
        self._inside.add(request.request_id)
        self.levels.append((self.cluster.env.now, len(self._inside)))

    def left(self, request: Request) -> None:
        """Book that `request` is out of the system."""
        require(request.request_id not in self._gone, "a request ends twice")
        self._gone.add(request.request_id)
        if request.request_id in self._inside:
            self._inside.discard(request.request_id)
            self.levels.append((self.cluster.env.now, len(self._inside)))

    def check_end(self) -> None:
        """Check that nothing is left in the instances: no request, no count, no KV block.

        For runs in which every request has ended.
        """
        for lane in self.lanes:
            scheduler = lane.scheduler
            require(not scheduler.has_unfinished, "requests are left in an instance")
            require(scheduler.num_waiting + scheduler.num_running == 0, "requests are left")
            require(scheduler.num_tokens == 0, "tokens of requests that have ended are left")
            used = scheduler.pool.num_blocks - scheduler.pool.free_blocks
            require(used == 0, f"{used} KV blocks of requests that have ended are left")


class _Entry:
    """The deployment's entrance; on the first request it starts to listen to the exit too."""

    def __init__(self, watched: Watched, deployment: Deployment) -> None:
        self._watched = watched
        self._entry = deployment.entry
        self._listening = False

    def submit(self, request: Request) -> None:
        """Take `request` on to the deployment."""
        if not self._listening:
            self._listening = True
            cluster, on_finish = self._watched.cluster, self._watched.cluster.on_finish

            def finished(ended: Request) -> None:
                self._watched.left(ended)
                on_finish(ended)

            cluster.on_finish = finished
        self._watched.entered(request)
        self._entry.submit(request)


def _lanes(instance: InstanceLike) -> list[Instance]:
    if isinstance(instance, PipelinedInstance):
        return instance.lanes
    if isinstance(instance, Instance):
        return [instance]
    raise TypeError(f"no way to look into {instance!r}")


@contextmanager
def _watched_schedulers() -> Iterator[None]:
    """Let instances that are placed meanwhile have schedulers that can be watched."""
    own, added = dict(SCHEDULERS._own), dict(SCHEDULERS.added)
    for name in list(SCHEDULERS):
        SCHEDULERS[name] = _watched(SCHEDULERS[name])
    try:
        yield
    finally:
        SCHEDULERS._own, SCHEDULERS.added = own, added


@functools.cache
def _watched(kind: type[Scheduler]) -> type[Scheduler]:
    """Return a scheduler of this kind that checks itself and keeps books once it has some.

    A subclass, not methods of an object in the place of others: callers that are compiled call the
    methods of the class.
    """

    class WatchedScheduler(kind):  # type: ignore[misc, valid-type]  # what is watched is given
        books: InstanceBooks | None = None
        counts_blocks = False

        def schedule(self, now: float) -> StepPlan | None:
            plan: StepPlan | None = super().schedule(now)
            if self.books is not None:
                if plan is None:
                    check_stop(self)
                else:
                    check_plan(self, plan)
                self._check()
            return plan

        def _admit(self, request: Request, num_blocks: int, num_found: int, now: float) -> None:
            super()._admit(request, num_blocks, num_found, now)
            if self.books is not None:
                self.books.admitted.append(request.request_id)
                self.books.cached_tokens += request.num_computed_tokens

        def complete(self, plan: StepPlan, num_steps: int, now: float) -> StepOutcome:
            outcome: StepOutcome = super().complete(plan, num_steps, now)
            if self.books is not None:
                self.books.num_prefilled += len(outcome.prefilled)
                self.books.prefill_tokens += num_steps * plan.prefill_tokens
                self.books.decode_tokens += num_steps * plan.num_decodes
                self._check()
            return outcome

        def _check(self) -> None:
            check_counts(self)
            if self.counts_blocks:
                check_blocks(self)

    return WatchedScheduler


def _watch(instance: Instance, books: InstanceBooks, *, counts_blocks: bool) -> None:
    scheduler: Any = instance.scheduler
    scheduler.books, scheduler.counts_blocks = books, counts_blocks


def check_plan(scheduler: Scheduler, plan: StepPlan) -> None:
    """A plan is not empty, and within the limits of a step."""
    limits = scheduler.config
    require(plan.num_decodes + len(plan.chunks) > 0, "an empty plan")
    require(plan.max_steps >= 1, "steps of a plan")
    several = plan.chunks and plan.max_steps > 1
    require(not several or len(plan.chunks) == 1, "a run of steps with chunks of several prompts")
    require(scheduler.num_running <= limits.max_num_seqs, "more running than max_num_seqs")
    kind = "mixed" if plan.num_decodes and plan.chunks else "prefill" if plan.chunks else "decode"
    require(plan.kind == kind, "kind of a plan")
    # A recomputed request may exceed the limit that its prompt met; it then runs alone.
    alone = len(plan.chunks) == 1 and plan.chunks[0][0].num_preemptions > 0
    if plan.chunks and not alone:
        tokens = plan.prefill_tokens + plan.num_decodes
        require(tokens <= limits.max_num_batched_tokens, "more than max_num_batched_tokens")


def check_stop(scheduler: Scheduler) -> None:
    """An instance that stops has nothing in its queue that fits."""
    require(not scheduler.batch.size, "stopped with sequences to decode")
    if scheduler.waiting.head is not None:
        head, pool = scheduler.waiting.head, scheduler.pool
        in_use = pool.find(head, target(head))[1]
        fits = pool.can_admit(pool.prompt_blocks(target(head)) - in_use)
        require(not fits, "stopped while the head of the queue fits")
    if scheduler.swapped:
        first, pool = scheduler.swapped[0], scheduler.pool
        in_use = pool.find(first, first.num_computed_tokens + 1)[1]
        fits = pool.can_admit(pool.blocks_for(first.num_computed_tokens + 1) - in_use)
        require(not fits, "stopped while the first swapped request fits")


def check_counts(scheduler: Scheduler) -> None:
    """The tokens and blocks that routers see are those of the requests that wait or prefill."""
    waiting, joining = [*scheduler.waiting, *scheduler.swapped], list(scheduler._joining)
    for request in scheduler._unseen:
        came = request.status is RequestStatus.TRANSFERRING
        (joining if came else waiting).append(request)
    tokens = [target(r) for r in (*waiting, *joining, *scheduler._prefilling.values())]
    require(scheduler.queued_tokens == sum(tokens), "queued_tokens is not the sum of its requests")
    blocks = [scheduler.pool.prompt_blocks(target(request)) for request in waiting]
    require(
        scheduler.waiting_blocks == sum(blocks), "waiting_blocks is not the sum of its requests"
    )


def check_blocks(scheduler: Scheduler) -> None:
    """Blocks in use are those of the running sequences, each rounded up, a shared one once."""
    pool, used = scheduler.pool, 0
    for request in scheduler._running.values():
        if request in scheduler.batch:
            used += pool.blocks_for(scheduler.batch.tokens_of(request))
        else:
            used += pool.prompt_blocks(target(request))
    if isinstance(pool, PrefixPool):
        pool.check()
        used -= pool.num_saved
    require(pool.num_blocks - pool.free_blocks == used, "KV blocks lost or counted twice")
    if scheduler.swap.host is not None:
        copied = sum(pool.blocks_for(r.num_computed_tokens) for r in scheduler.swapped)
        require(scheduler.swap.host.used_blocks == copied, "host memory lost or counted twice")
