"""KV-transfer links: shared by the flows on them, each getting its max-min fair share."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

import simpy

from simcluster.engine.clock import TRANSFER_END, At, Wake
from simcluster.engine.recorder import Recorder
from simcluster.units import on_grid, on_grid_up


class Link:
    """One direction of one link.

    Parameters
    ----------
    name : str
        Such as ``"node-0 nic out"``.
    bandwidth : float
        What its flows share (bytes/s), > 0.
    latency_s : float
        What it adds to a transfer before the first byte (s).

    Attributes
    ----------
    num_bytes : int
        Bytes of the transfers it has finished.
    """

    __slots__ = ("bandwidth", "latency_s", "name", "num_bytes")

    def __init__(self, name: str, bandwidth: float, latency_s: float) -> None:
        self.name = name
        self.bandwidth = bandwidth
        self.latency_s = latency_s
        self.num_bytes = 0


Path = tuple[Link, ...]


class Flow:
    """One transfer under way.

    Attributes
    ----------
    goal_bytes : float
        What its route must have served to each of its flows when this one ends (bytes).
    """

    __slots__ = ("goal_bytes", "num_bytes", "on_end", "request_id", "requested_s", "start_s")

    def __init__(
        self, request_id: int, num_bytes: int, requested_s: float, on_end: Callable[[], None]
    ) -> None:
        self.request_id = request_id
        self.num_bytes = num_bytes
        self.requested_s = requested_s
        self.start_s = requested_s
        self.goal_bytes = 0.0
        self.on_end = on_end


class Route:
    """All flows on one path: they have the same rate, so one counter serves them all.

    Attributes
    ----------
    path : Path
        Its links.
    flows : list
        Heap of (goal in served bytes, order of start, flow).
    rate : float
        Of each flow (bytes/s).
    served_bytes : float
        What a flow present since the start would have received (bytes).
    end_s : float
        When the first of its flows ends at the present rate (s).
    """

    __slots__ = ("end_s", "flows", "path", "rate", "served_bytes")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.flows: list[tuple[float, int, Flow]] = []
        self.rate = 0.0
        self.served_bytes = 0.0
        self.end_s = math.inf


def share_links(routes: Sequence[Route]) -> None:
    """Set the max-min fair rates of `routes`, all with flows, by progressive filling.

    The link that would give its flows the least fixes their rate at an equal share; it and they are
    taken out, and so on (Bertsekas and Gallager, Data Networks, section 6.5.2).
    """
    room: dict[Link, float] = {}
    flows: dict[Link, int] = {}
    for route in routes:
        for link in route.path:
            room[link] = link.bandwidth
            flows[link] = flows.get(link, 0) + len(route.flows)
    unfixed = list(routes)
    while unfixed:
        share, tightest = math.inf, unfixed[0].path[0]
        for link, count in flows.items():
            if count and room[link] / count < share:
                share, tightest = room[link] / count, link
        still = []
        for route in unfixed:
            if tightest not in route.path:
                still.append(route)
                continue
            route.rate = share
            count = len(route.flows)
            for link in route.path:
                room[link] = max(0.0, room[link] - share * count)
                flows[link] -= count
        unfixed = still


class LinkNetwork:
    """All links of a cluster: a SimPy process that moves flows along and ends them.

    Rates are solved again whenever a flow starts or ends; between such moments every flow advances
    at its rate.

    Parameters
    ----------
    env : simpy.Environment
        The run.
    recorder : Recorder
        Where finished transfers go.
    """

    def __init__(self, env: simpy.Environment, recorder: Recorder) -> None:
        self._env = env
        self._rows = recorder.transfers
        self._routes: dict[Path, Route] = {}
        self._active: dict[Path, Route] = {}
        self._settled_s = 0.0
        self._num_started = 0
        self._wake = Wake(env)
        self.process = env.process(self._run())

    def transfer(
        self, request_id: int, path: Path, num_bytes: int, on_end: Callable[[], None]
    ) -> None:
        """Send `num_bytes` along `path`; call `on_end` when the last byte has arrived.

        The latencies of the path pass first, then the flow takes its share of every link.
        """
        env = self._env
        flow = Flow(request_id, num_bytes, env.now, on_end)
        latency_s = on_grid(sum(link.latency_s for link in path))
        start = At(env, env.now + latency_s, TRANSFER_END)
        start.callbacks.append(lambda _: self._start(flow, path))

    def _start(self, flow: Flow, path: Path) -> None:
        self._settle()
        route = self._routes.get(path)
        if route is None:
            route = self._routes[path] = Route(path)
        self._active[path] = route
        flow.start_s = self._env.now
        flow.goal_bytes = route.served_bytes + flow.num_bytes
        self._num_started += 1
        heapq.heappush(route.flows, (flow.goal_bytes, self._num_started, flow))
        self._wake.move(self._share(), TRANSFER_END)

    def _settle(self) -> None:
        """Advance every flow to now."""
        elapsed = self._env.now - self._settled_s
        if elapsed:
            for route in self._active.values():
                route.served_bytes += route.rate * elapsed
        self._settled_s = self._env.now

    def _share(self) -> float:
        """Share the links anew; return when the next flow ends (s), infinity without flows."""
        now, first = self._env.now, math.inf
        routes = list(self._active.values())
        share_links(routes)
        for route in routes:
            left = route.flows[0][0] - route.served_bytes
            # Rounded up to the grid: bytes never arrive before they could.
            route.end_s = max(now, on_grid_up(now + left / route.rate))
            first = min(first, route.end_s)
        return first

    def _run(self) -> Generator[simpy.Event, Any, None]:
        next_end = math.inf
        while True:
            if next_end == math.inf:
                yield self._wake.sleep()
            else:
                yield self._wake.at(next_end, TRANSFER_END)
            self._settle()
            ended = self._take_ended()
            next_end = self._share()
            for flow in ended:
                flow.on_end()

    def _take_ended(self) -> list[Flow]:
        """Take out and record the flows that end now, in the order of their start."""
        now = self._env.now
        ended: list[tuple[int, Flow, Path]] = []
        for path, route in list(self._active.items()):
            if route.end_s > now:
                continue
            goal = route.flows[0][0]
            route.served_bytes = max(route.served_bytes, goal)
            while route.flows and route.flows[0][0] <= goal:
                _, order, flow = heapq.heappop(route.flows)
                ended.append((order, flow, path))
            if not route.flows:
                del self._active[path]
                route.served_bytes = 0.0
        ended.sort(key=lambda entry: entry[0])
        for _, flow, path in ended:
            for link in path:
                link.num_bytes += flow.num_bytes
            self._rows.add(
                (
                    flow.request_id,
                    path[0].name,
                    path[-1].name,
                    flow.num_bytes,
                    flow.requested_s,
                    flow.start_s,
                    now,
                )
            )
        return [flow for _, flow, _ in ended]
