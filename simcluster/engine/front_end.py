"""In front of a group of instances: requests come in here, are routed, or wait to be."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Sequence
from typing import Any

import simpy

from simcluster.engine.clock import ROUTING, Wake
from simcluster.engine.instance import Instance
from simcluster.request import Request, RequestStatus
from simcluster.routing.base import Router


class FrontEnd(ABC):
    """Routes requests to its instances; a SimPy process offers the pending ones again.

    The queue of pending requests is first come, first served: its head is offered again whenever an
    instance reaches a step boundary.

    Parameters
    ----------
    env : simpy.Environment
        The run.
    instances : sequence of Instance
        The group; this object becomes their owner.
    on_finish : callable
        Called with every request that finished or was rejected.

    Attributes
    ----------
    pending : deque of Request
        Requests that no instance could take yet.
    """

    def __init__(
        self,
        env: simpy.Environment,
        instances: Sequence[Instance],
        on_finish: Callable[[Request], None],
    ) -> None:
        self._env = env
        self.instances = list(instances)
        self._on_finish = on_finish
        self.pending: deque[Request] = deque()
        self._due = False
        self._wake = Wake(env)
        for instance in self.instances:
            instance.owner = self
        self.process = env.process(self._run())

    def submit(self, request: Request) -> None:
        """Route `request`, or let it wait behind those that wait already."""
        if self.pending or not self._place(request):
            self.pending.append(request)
            if len(self.pending) == 1:
                self._pending_changed(True)

    def reject(self, request: Request) -> None:
        """Turn `request` away for good; it counts as missed."""
        request.status = RequestStatus.REJECTED
        self._on_finish(request)

    @abstractmethod
    def _place(self, request: Request) -> bool:
        """Give `request` to an instance, or reject it; False leaves it pending."""

    def _pending_changed(self, any_pending: bool) -> None:  # noqa: B027 (a hook)
        """Hear that the queue of pending requests has become non-empty, or empty."""

    def _run(self) -> Generator[simpy.Event, Any, None]:
        while True:
            yield self._wake.sleep()
            self._due = False
            while self.pending and self._place(self.pending[0]):
                self.pending.popleft()
            if not self.pending:
                self._pending_changed(False)

    # --- what the instances say ---------------------------------------------------------------

    def boundary(self, instance: Instance) -> None:
        """Offer the head of the queue again, once all that happens at this time is known."""
        if self.pending and not self._due:
            self._due = True
            self._wake.move(self._env.now, ROUTING)

    def prefilled(self, instance: Instance, request: Request) -> None:  # noqa: B027 (a hook)
        """Nothing to do: the request goes on to decode where it is."""

    def preempted(self, instance: Instance, request: Request) -> None:  # noqa: B027 (a hook)
        """Nothing to do: the request recomputes where it is."""

    def finished(self, instance: Instance, request: Request) -> None:
        """Pass the news on."""
        self._on_finish(request)


class Gateway(FrontEnd):
    """A front end with a router that looks at the load of the instances.

    Parameters
    ----------
    env, instances, on_finish
        As in `FrontEnd`.
    router : Router
        Which instance gets a request.
    """

    def __init__(
        self,
        env: simpy.Environment,
        instances: Sequence[Instance],
        router: Router,
        on_finish: Callable[[Request], None],
    ) -> None:
        super().__init__(env, instances, on_finish)
        self._router = router

    def _place(self, request: Request) -> bool:
        index = self._router.choose(request, self.instances, self._env.now)
        if index is None:
            return False
        self.instances[index].submit(request)
        return True
