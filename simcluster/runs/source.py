"""Request sources: they let the requests of a workload enter a deployment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from typing import Any, Final

import simpy

from simcluster.engine.clock import ARRIVAL, At
from simcluster.engine.groups.cluster import Cluster, Deployment
from simcluster.request import Request, RequestStatus
from simcluster.roofline.host import on_cpu
from simcluster.units import TICKS_PER_S
from simcluster.workload import Workload

_ROWS_AT_ONCE: Final = 1 << 14


def _rows(workload: Workload) -> Iterator[tuple[float, int, int, bool]]:
    """Give arrival, prompt, output and rejection of each request, a chunk of Python's own at once.

    Lists of all of them would take five times the memory of the arrays.
    """
    arrays = (workload.arrival_s, workload.prompt_len, workload.output_len, workload.rejected)
    for first in range(0, workload.num_requests, _ROWS_AT_ONCE):
        chunk = slice(first, first + _ROWS_AT_ONCE)
        yield from zip(*(array[chunk].tolist() for array in arrays), strict=True)


class Source(ABC):
    """Lets requests enter a deployment and counts those that end; rejected ones end on arrival.

    Parameters
    ----------
    cluster : Cluster
        Where the deployment stands; it tells the source of requests that end.
    deployment : Deployment
        Where requests enter.
    workload : Workload
        The requests.

    Attributes
    ----------
    num_left : int
        Requests that have not ended, those that have yet to arrive included.
    done : simpy.Event
        Happens when none is left.
    """

    def __init__(self, cluster: Cluster, deployment: Deployment, workload: Workload) -> None:
        self._cluster, self._env = cluster, cluster.env
        self._entry = deployment.entry
        self._workload = workload
        engine = on_cpu(cluster.environment.engine)
        self._block_size = engine.block_size
        self._front_end_s = round(engine.front_end_s * TICKS_PER_S) / TICKS_PER_S
        self._log = cluster.recorder.requests
        self._coming = _rows(workload)
        self.done = simpy.Event(self._env)
        self.num_left = workload.num_requests
        self.process = self._env.process(self._run())
        cluster.on_finish = self._ended
        if not self.num_left:
            self.done.succeed()

    def _ended(self, request: Request) -> None:
        """Count a request that finished or was rejected."""
        self._log.ended(request)
        self.num_left -= 1
        if self.num_left:
            self._one_ended()
        else:
            self.done.succeed()

    @abstractmethod
    def _one_ended(self) -> None:
        """Hear that a request ended and others are left."""

    @abstractmethod
    def _run(self) -> Generator[simpy.Event, Any, None]:
        """Let the requests enter, each at its time."""

    def _enter(self, arrival_s: float, prompt_len: int, output_len: int, rejected: bool) -> None:
        number, workload = self._log.num_arrived, self._workload
        request = Request(number, arrival_s, prompt_len, output_len)
        if workload.score is not None:
            request.score = float(workload.score[number])
        if workload.slo_class is not None:
            request.slo_class = workload.slo_class[number]
        if workload.priority is not None:
            request.priority = int(workload.priority[number])
        if workload.hashes is not None:
            request.block_ids = workload.hashes.runs(number, self._block_size)
        self._log.arrived(request)
        if rejected:
            request.status = RequestStatus.REJECTED
            self._cluster.on_finish(request)
        elif self._front_end_s:
            passed = At(self._env, self._env.now + self._front_end_s, ARRIVAL)
            passed.callbacks.append(lambda _: self._entry.submit(request))
        else:
            self._entry.submit(request)


class OpenLoop(Source):
    """Requests arrive by the clock."""

    def _one_ended(self) -> None:
        """Nothing to do: arrivals do not wait for the end of others."""

    def _run(self) -> Generator[simpy.Event, Any, None]:
        env = self._env
        for arrival_s, prompt_len, output_len, rejected in self._coming:
            yield At(env, arrival_s, ARRIVAL)
            self._enter(arrival_s, prompt_len, output_len, rejected)


class ClosedLoop(Source):
    """A fixed number of requests is in the system; the next enters when one ends."""

    def _run(self) -> Generator[simpy.Event, Any, None]:
        yield At(self._env, 0.0, ARRIVAL)
        for _ in range(self._workload.concurrency or 0):
            self._enter_next()

    def _one_ended(self) -> None:
        """Let the next request enter, after all that ends at this time."""
        arrival = At(self._env, self._env.now, ARRIVAL)
        arrival.callbacks.append(lambda _: self._enter_next())

    def _enter_next(self) -> None:
        coming = next(self._coming, None)
        if coming is not None:
            _, prompt_len, output_len, rejected = coming
            self._enter(self._env.now, prompt_len, output_len, rejected)
