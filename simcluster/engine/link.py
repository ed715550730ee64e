"""KV-transfer links: shared by the flows on them, each getting its max-min fair share."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Generator, Sequence
from typing import Any

import simpy

from simcluster.engine.clock import TRANSFER_END, At, Clock, Wake
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
    routes : dict
        The routes with flows that use it, in the order in which they became busy.
    matters : bool
        It may decide a rate: it is the narrowest link of a busy route, or its busy routes could
        fill it. Others, such as the PCIe link in front of a slow NIC, are left out of the sharing.
    """

    __slots__ = (
        "_load",
        "_room",
        "bandwidth",
        "latency_s",
        "matters",
        "name",
        "num_bytes",
        "routes",
    )

    def __init__(self, name: str, bandwidth: float, latency_s: float) -> None:
        self.name = name
        self.bandwidth = bandwidth
        self.latency_s = latency_s
        self.num_bytes = 0
        self.routes: dict[Route, None] = {}
        self.matters = False
        self._load = 0  # flows without a rate yet, while rates are being shared out
        self._room = 0.0  # bandwidth that is left for them

    def add(self, route: Route) -> None:
        """Note that `route` is busy."""
        self.routes[route] = None
        self._weigh()

    def remove(self, route: Route) -> None:
        """Note that `route` is no longer busy."""
        del self.routes[route]
        self._weigh()

    def _weigh(self) -> None:
        widths = [route.narrowest for route in self.routes]
        self.matters = self.bandwidth in widths or sum(widths) > self.bandwidth


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
        What a flow present since the route became busy would have received at `settled_s` (bytes).
    settled_s : float
        When the counter was last brought up to date (s).
    end_s : float
        When the first of its flows ends at the present rate (s).
    latency_s : float
        What passes before a flow on it begins (s, on the grid).
    narrowest : float
        Bandwidth of its narrowest link (bytes/s): what all its flows together get at most.
    """

    __slots__ = (
        "_share",
        "end_s",
        "flows",
        "latency_s",
        "narrowest",
        "path",
        "rate",
        "served_bytes",
        "settled_s",
    )

    def __init__(self, path: Path) -> None:
        self.path = path
        self.narrowest = min(link.bandwidth for link in path)
        self.latency_s = on_grid(sum(link.latency_s for link in path))
        self.flows: list[tuple[float, int, Flow]] = []
        self.rate = 0.0
        self.served_bytes = 0.0
        self.settled_s = 0.0
        self.end_s = math.inf
        self._share = 0.0  # its rate while rates are being shared out; 0 for none yet

    def settle(self, now: float) -> None:
        """Bring the counter up to `now` (s)."""
        self.served_bytes += self.rate * (now - self.settled_s)
        self.settled_s = now


def max_min_rates(routes: Sequence[Route]) -> list[float]:
    """Max-min fair rates (bytes/s) of a flow on each of `routes`, by progressive filling.

    The link that would give its flows the least fixes their rate at an equal share; it and they are
    taken out, and so on (Bertsekas and Gallager, Data Networks, section 6.5.2).

    Parameters
    ----------
    routes : sequence of Route
        Busy routes; whoever shares a link with one of them is among them.
    """
    if len(routes) == 1:
        route = routes[0]
        return [route.narrowest / len(route.flows)]
    links: list[Link] = []
    for route in routes:
        route._share = 0.0
        count = len(route.flows)
        for link in route.path:
            if link.matters:
                if not link._load:
                    link._room = link.bandwidth
                    links.append(link)
                link._load += count
    left = len(routes)
    while left:
        share, tightest = math.inf, links[0]
        for link in links:
            if link._load:
                room = link._room / link._load
                if room < share:
                    share, tightest = room, link
        for route in tightest.routes:
            if route._share:
                continue
            route._share = share
            left -= 1
            count = len(route.flows)
            for link in route.path:
                if link.matters:
                    link._load -= count
                    link._room -= share * count
    return [route._share for route in routes]


def connected(route: Route) -> list[Route]:
    """Return the busy routes whose rates hang together with that of `route`, itself first.

    Two routes hang together if they share a link that matters, or both hang together with a third.
    """
    found = {route}
    queue = [route]
    for one in queue:
        for link in one.path:
            if link.matters and len(link.routes) > 1:
                for other in link.routes:
                    if other not in found:
                        found.add(other)
                        queue.append(other)
    return queue


class LinkNetwork:
    """All links of a cluster: a SimPy process that moves flows along and ends them.

    When a flow starts or ends, the rates of the routes that hang together with its own are solved
    again; between such moments every flow advances at its rate.

    Parameters
    ----------
    env : Clock
        The run.
    recorder : Recorder
        Where finished transfers go.
    """

    def __init__(self, env: Clock, recorder: Recorder) -> None:
        self._env = env
        self._rows = recorder.transfers
        self._routes: dict[Path, Route] = {}
        self._busy: dict[Route, None] = {}
        self._num_started = 0
        self._next_end = math.inf
        self._wake = Wake(env)
        self.process = env.process(self._run())

    def transfer(
        self, request_id: int, path: Path, num_bytes: int, on_end: Callable[[], None]
    ) -> None:
        """Send `num_bytes` along `path`; call `on_end` when the last byte has arrived.

        The latencies of the path pass first, then the flow takes its share of every link.
        """
        now = self._env.now
        route = self._routes.get(path)
        if route is None:
            route = self._routes[path] = Route(path)
        flow = Flow(request_id, num_bytes, now, on_end)
        start = At(self._env, now + route.latency_s, TRANSFER_END)
        start.callbacks.append(lambda _: self._start(flow, route))

    def _start(self, flow: Flow, route: Route) -> None:
        now = self._env.now
        if not route.flows:
            route.served_bytes, route.settled_s, route.rate = 0.0, now, 0.0
            self._busy[route] = None
            for link in route.path:
                link.add(route)
        route.settle(now)
        flow.start_s = now
        flow.goal_bytes = route.served_bytes + flow.num_bytes
        self._num_started += 1
        heapq.heappush(route.flows, (flow.goal_bytes, self._num_started, flow))
        self._share(connected(route))
        next_end = self._first_end()
        if next_end != self._next_end:
            self._next_end = next_end
            self._wake.move(next_end, TRANSFER_END)

    def _share(self, routes: Sequence[Route]) -> None:
        """Share the links of `routes` anew.

        Those whose rate stays, and whose first flow has not just changed, are left as they are.
        """
        now = self._env.now
        for other, rate in zip(routes, max_min_rates(routes), strict=True):
            if rate != other.rate or other.settled_s == now:
                other.settle(now)
                other.rate = rate
                left = other.flows[0][0] - other.served_bytes
                # Rounded up to the grid: bytes never arrive before they could.
                other.end_s = max(now, on_grid_up(now + left / rate))

    def _first_end(self) -> float:
        """When the next flow ends (s); infinity without flows."""
        return min([route.end_s for route in self._busy], default=math.inf)

    def _run(self) -> Generator[simpy.Event, Any, None]:
        while True:
            if self._next_end == math.inf:
                yield self._wake.sleep()
            else:
                yield self._wake.at(self._next_end, TRANSFER_END)
            now = self._env.now
            ending = [route for route in self._busy if route.end_s <= now]
            # Before they go: what hangs together with them now gets their share.
            around = connected(ending[0])
            if len(ending) > 1:
                around = list(dict.fromkeys(other for one in ending for other in connected(one)))
            ended = self._take_ended(ending)
            self._share([route for route in around if route.flows])
            self._next_end = self._first_end()
            for flow in ended:
                flow.on_end()

    def _take_ended(self, ending: Sequence[Route]) -> list[Flow]:
        """Take out and record the flows of `ending` that end now, in the order of their start."""
        now = self._env.now
        ended: list[tuple[int, Flow, Path]] = []
        for route in ending:
            route.settle(now)
            goal = route.flows[0][0]
            route.served_bytes = max(route.served_bytes, goal)
            while route.flows and route.flows[0][0] <= goal:
                _, order, flow = heapq.heappop(route.flows)
                ended.append((order, flow, route.path))
            if not route.flows:
                del self._busy[route]
                for link in route.path:
                    link.remove(route)
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
