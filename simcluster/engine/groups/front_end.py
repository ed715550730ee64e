"""In front of a group of instances: requests come in here, are routed, or wait to be."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any, Final

import simpy
from mypy_extensions import mypyc_attr

from simcluster.engine.clock import ROUTING, Clock, Wake
from simcluster.engine.groups.reports import ReportClock
from simcluster.engine.instance import InstanceLike, InstanceOwner, at_the_next_boundary
from simcluster.request import Request, RequestStatus
from simcluster.routing.base import InstanceView, Router
from simcluster.routing.least_loaded import LeastLoaded, Loads
from simcluster.routing.status import Status
from simcluster.sched import FirstCome, RequestQueue

_MANY: Final = 32
"""Instances from which on the least of their loads is kept."""


@mypyc_attr(allow_interpreted_subclasses=True)
class FrontEnd(InstanceOwner):
    """Routes requests to its instances; a SimPy process offers the pending ones again.

    The head of the queue of pending requests is offered again whenever an instance reaches a step
    boundary.

    Parameters
    ----------
    env : Clock
        The run.
    instances : sequence of InstanceLike
        The group; this object becomes their owner.
    on_finish : callable
        Called with every request that finished or was rejected.
    pending : RequestQueue, optional
        The queue, empty; default: first come, first served.

    Attributes
    ----------
    pending : RequestQueue
        Requests that no instance could take yet.
    """

    def __init__(
        self,
        env: Clock,
        instances: Sequence[InstanceLike],
        on_finish: Callable[[Request], None],
        *,
        pending: RequestQueue | None = None,
    ) -> None:
        self._env = env
        self.instances = list(instances)
        self._on_finish = on_finish
        self.pending: RequestQueue = FirstCome() if pending is None else pending
        self._due: list[InstanceLike] = []  # had a boundary since the queue was looked at
        self._wake = Wake(env)
        for instance in self.instances:
            instance.owner = self
        self.process = env.process(self._run())

    def submit(self, request: Request) -> None:
        """Route `request`, or let it wait in its place among those that wait already."""
        if not self.pending.goes_first(request):
            self.pending.push(request)
            return
        if not self._place(request):
            self.pending.push(request)
        if self.pending.head is not None:
            # A new head; or the old one, for which it counts where the newcomer went.
            self._head_waits(self.pending.head)

    def reject(self, request: Request) -> None:
        """Turn `request` away for good; it counts as missed."""
        request.status = RequestStatus.REJECTED
        self._on_finish(request)

    @abstractmethod
    def _place(self, request: Request, among: Collection[InstanceLike] | None = None) -> bool:
        """Give `request` to an instance, or reject it; False leaves it pending.

        `among` are the instances whose state has changed since it was offered last; None means that
        it has not been offered to any.
        """

    def _head_waits(self, request: Request) -> None:
        """Hear that `request` heads the queue and no instance could take it now."""

    def _none_wait(self) -> None:
        """Hear that the queue has become empty."""

    def _run(self) -> Generator[simpy.Event, Any, None]:
        while True:
            yield self._wake.sleep()
            among: list[InstanceLike] | None = list(self._due)
            self._due.clear()
            while (head := self.pending.head) is not None and self._place(head, among):
                self.pending.pop()
                among = None
            if head is None:
                self._none_wait()
            elif among is None:
                self._head_waits(head)

    # --- the group changes ------------------------------------------------------------------------

    def add(self, instance: InstanceLike) -> None:
        """Put `instance` into service."""
        self.instances.append(instance)
        instance.owner = self
        self.boundary(instance)

    def drain(self) -> InstanceLike:
        """Give the instance with the fewest unfinished requests no more of them; return it.

        It stays ours until it has finished those that it has.
        """
        instance = min(reversed(self.instances), key=lambda i: i.num_unfinished)
        self.instances.remove(instance)
        return instance

    def is_drained(self, instance: InstanceLike) -> bool:
        """Whether an instance that was drained has finished everything."""
        return not instance.has_unfinished

    # --- what the instances say ---------------------------------------------------------------

    def boundary(self, instance: InstanceLike) -> None:
        """Offer the head of the queue again, once all that happens at this time is known."""
        if self.pending.head is not None:
            if not self._due:
                self._wake.move(self._env.now, ROUTING)
            self._due.append(instance)

    def finished(self, instance: InstanceLike, request: Request) -> None:
        """Pass the news on."""
        self._on_finish(request)


@mypyc_attr(allow_interpreted_subclasses=True)
class Gateway(FrontEnd):
    """A front end with a router that looks at the load of the instances.

    Parameters
    ----------
    env, instances, on_finish, pending
        As in `FrontEnd`.
    router : Router
        Which instance gets a request.
    status_interval_s : float
        The instances report their load at multiples of this time (s, on the grid); 0: the router
        sees it as it is.
    """

    def __init__(
        self,
        env: Clock,
        instances: Sequence[InstanceLike],
        router: Router,
        on_finish: Callable[[Request], None],
        status_interval_s: float = 0.0,
        *,
        pending: RequestQueue | None = None,
    ) -> None:
        super().__init__(env, instances, on_finish, pending=pending)
        self._router = router
        self._statuses = [Status(instance) for instance in self.instances]
        self._views: Sequence[InstanceView] = (
            self._statuses if status_interval_s else self.instances
        )
        self._clock = ReportClock(env, status_interval_s, self._report)
        self._loads: Loads | None = None
        self._numbers: dict[int, int] = {}
        self._count()

    def _count(self) -> None:
        """Keep the least of the loads where reading all of them for each request takes long.

        Instances that report their load from time to time, or have several batches in flight, are
        read for each request; so are all of them for a router of another kind.
        """
        live = not self._clock.interval_s and all(i.num_lanes == 1 for i in self.instances)
        if len(self.instances) < _MANY or not live or type(self._router) is not LeastLoaded:
            self._loads = None
            return
        self._loads = Loads(self.instances)
        self._numbers = {one.instance_id: k for k, one in enumerate(self.instances)}

    def _fell(self, instance: InstanceLike) -> None:
        if self._loads is not None:
            number = self._numbers.get(instance.instance_id)
            if number is not None:  # else it is out of service
                self._loads.fell(number)

    def boundary(self, instance: InstanceLike) -> None:
        """Offer the head of the queue again, once all that happens at this time is known."""
        self._fell(instance)
        super().boundary(instance)

    def preempted(self, instance: InstanceLike, request: Request) -> None:
        """Note that the load fell: what is computed again counts as little as before its start."""
        self._fell(instance)

    def add(self, instance: InstanceLike) -> None:
        """Put `instance` into service; it reports at once."""
        self._statuses.append(Status(instance))
        super().add(instance)
        self._count()

    def drain(self) -> InstanceLike:
        """Give the instance with the fewest unfinished requests no more of them; return it."""
        instance = super().drain()
        self._statuses[:] = [s for s in self._statuses if s.instance_id != instance.instance_id]
        self._count()
        return instance

    def _head_waits(self, request: Request) -> None:
        # An instance only gets worse between the ends of its spans, except that a pipeline may let
        # the request into another lane.
        for instance in self.instances:
            if instance.num_lanes > 1:
                instance.watch(at_the_next_boundary)

    def _none_wait(self) -> None:
        for instance in self.instances:
            if instance.num_lanes > 1:
                instance.watch(None)

    def _place(self, request: Request, among: Collection[InstanceLike] | None = None) -> bool:
        router, index = self._router, None
        if self._loads is not None and isinstance(router, LeastLoaded):
            index = router.choose_among(self._loads)
        else:
            index = router.choose(request, self._views, self._env.now)
        if index is None:
            return False
        if self._clock.interval_s:
            self._statuses[index].sent(request)
            self._clock.start()
        self.instances[index].submit(request)
        return True

    def _report(self) -> bool:
        """All instances report. Idle ones have nothing new to say until the next request."""
        for status in self._statuses:
            status.update()
        return any(instance.has_unfinished for instance in self.instances)
