"""Request sources: they let the requests of a workload enter a deployment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Generator, Iterator
from heapq import heappop, heappush
from typing import Any, Final

import numpy as np
import simpy

from simcluster.engine.clock import ARRIVAL, At
from simcluster.engine.groups.api_server import ApiServers
from simcluster.engine.groups.cluster import Cluster, Deployment
from simcluster.errors import InvariantError
from simcluster.request import Request, RequestStatus
from simcluster.roofline.host import on_cpu
from simcluster.units import TICKS_PER_S, IntArray, on_grid
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
        self._api: ApiServers | None = None
        if engine.api_servers:
            entries = sum([placed.role != "decode" for placed in cluster.placed])
            count = engine.api_servers * max(1, entries)
            self._api = ApiServers(self._env, count, engine.api_request_s, engine.api_token_s)
        self._front_end_s = round(engine.front_end_s * TICKS_PER_S) / TICKS_PER_S
        self._front_end_token_s = engine.front_end_token_s
        self._last_passed_s = 0.0
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
            self._one_ended(request)
        else:
            self.done.succeed()

    @property
    def rows(self) -> slice | IntArray:
        """Rows of the workload that have entered, in the order of the requests' ids."""
        return slice(self._log.num_arrived)

    @abstractmethod
    def _one_ended(self, request: Request) -> None:
        """Hear that `request` ended and others are left."""

    @abstractmethod
    def _run(self) -> Generator[simpy.Event, Any, None]:
        """Let the requests enter, each at its time."""

    def _enter(
        self,
        arrival_s: float,
        prompt_len: int,
        output_len: int,
        rejected: bool,
        row: int | None = None,
    ) -> None:
        """Let a request of the workload enter: the next one, or the one in `row`."""
        number, workload = self._log.num_arrived, self._workload
        row = number if row is None else row
        request = Request(number, arrival_s, prompt_len, output_len)
        if workload.score is not None:
            request.score = float(workload.score[row])
        if workload.slo_class is not None:
            request.slo_class = workload.slo_class[row]
        if workload.priority is not None:
            request.priority = int(workload.priority[row])
        if workload.hashes is not None:
            request.block_ids = workload.hashes.runs(row, self._block_size)
        self._log.arrived(request)
        if rejected:
            request.status = RequestStatus.REJECTED
            self._cluster.on_finish(request)
        elif self._api is not None:
            self._api.take(output_len, lambda: self._pass(request))
        else:
            self._pass(request)

    def _pass(self, request: Request) -> None:
        """Give a request to the deployment, behind the latency of its front end."""
        late_s = self._front_end_s
        if self._front_end_token_s:
            late_s += on_grid(self._front_end_token_s * request.prompt_len)
        if late_s:
            # Prompts are tokenised in turn: none overtakes another.
            self._last_passed_s = max(self._last_passed_s, self._env.now + late_s)
            passed = At(self._env, self._last_passed_s, ARRIVAL)
            passed.callbacks.append(lambda _: self._entry.submit(request))
        else:
            self._entry.submit(request)


class OpenLoop(Source):
    """Requests arrive by the clock."""

    def _one_ended(self, request: Request) -> None:
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
        for _ in range(min(self._workload.concurrency or 0, self._workload.num_requests)):
            self._enter_next()

    def _one_ended(self, request: Request) -> None:
        """Let the next request enter, after all that ends at this time."""
        arrival = At(self._env, self._env.now, ARRIVAL)
        arrival.callbacks.append(lambda _: self._enter_next())

    def _enter_next(self) -> None:
        coming = next(self._coming, None)
        if coming is not None:
            _, prompt_len, output_len, rejected = coming
            self._enter(self._env.now, prompt_len, output_len, rejected)


class Sessions(Source):
    """Turns wait for the answer before them; the first of a session arrives by the clock.

    Requests that arrive at the same time enter in the order of the workload.
    """

    def __init__(self, cluster: Cluster, deployment: Deployment, workload: Workload) -> None:
        if workload.turns is None:
            raise InvariantError("sessions need requests that wait for answers")
        after = workload.turns.after
        self._think_s = workload.turns.think_s
        self._next = dict(zip(after.tolist(), range(len(after)), strict=True))
        self._first = np.flatnonzero(after < 0)
        self._due: list[tuple[float, int]] = []
        self._entered = array("q")
        super().__init__(cluster, deployment, workload)

    @property
    def rows(self) -> slice | IntArray:
        """Rows of the workload that have entered, in the order of the requests' ids."""
        return np.array(self._entered, dtype=np.int64)

    def _run(self) -> Generator[simpy.Event, Any, None]:
        arrival_s = self._workload.arrival_s[self._first].tolist()
        for row, time_s in zip(self._first.tolist(), arrival_s, strict=True):
            heappush(self._due, (time_s, row))
            yield At(self._env, time_s, ARRIVAL)
            self._enter_due()

    def _one_ended(self, request: Request) -> None:
        """Let the next turn of the session come when its user has read and written."""
        row = self._next.get(self._entered[request.request_id])
        if row is None:
            return
        time_s = self._env.now + float(self._think_s[row])
        time_s = max(time_s, float(self._workload.arrival_s[row]))
        heappush(self._due, (time_s, row))
        At(self._env, time_s, ARRIVAL).callbacks.append(lambda _: self._enter_due())

    def _enter_due(self) -> None:
        """Let everything enter that is due now."""
        load = self._workload
        while self._due and self._due[0][0] <= self._env.now:
            _, row = heappop(self._due)
            self._entered.append(row)
            lengths = int(load.prompt_len[row]), int(load.output_len[row])
            self._enter(self._env.now, *lengths, bool(load.rejected[row]), row)


def source_of(workload: Workload) -> type[Source]:
    """Return the kind of source that `workload` needs."""
    if workload.turns is not None:
        return Sessions
    return OpenLoop if workload.concurrency is None else ClosedLoop
