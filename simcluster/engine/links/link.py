"""KV-transfer links: shared by the flows on them, each getting its max-min fair share."""

from __future__ import annotations

import heapq
import math
from array import array
from collections.abc import Callable, Collection, Iterable, Sequence
from operator import attrgetter
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import simpy

from simcluster.engine.clock import TRANSFER_END, At, Clock
from simcluster.engine.recorder import Recorder
from simcluster.units import TICK_S, TICKS_PER_S, FloatArray, on_grid


class Link:
    """One direction of one link.

    Parameters
    ----------
    name : str
        Such as ``"node-0 nic out"``.
    bandwidth : float
        What its flows share (bytes/s), > 0; infinite on a link that only adds latency.
    latency_s : float
        What it adds to a transfer before the first byte (s).

    Attributes
    ----------
    routes : list of Route
        All routes that use it, in the order in which they were first used.
    busy : dict
        Those with flows, in the order in which they became busy; kept only if it `decides`.
    num_flows : int
        Flows of the busy routes.
    decides : bool
        It may decide a rate. It cannot if whatever uses it also uses one narrower link, such as the
        PCIe link in front of a slow NIC: such a link is left out of the sharing.
    collectives : bool
        Collectives of a tensor-parallel group use it too.
    watcher : int
        Number of the watcher of its network that wants to know what these are left; -1 for none.
    widest : float
        Most that a flow of any of its routes can get (bytes/s): the highest `Route.narrowest`.
    demand : float
        What these would take if they were alone (bytes/s): they get it, or the share of a flow.
    """

    __slots__ = (
        "_common",
        "_gone",
        "_left",
        "_level",
        "_number",
        "_room",
        "_visit",
        "bandwidth",
        "busy",
        "collectives",
        "decides",
        "demand",
        "latency_s",
        "name",
        "num_flows",
        "routes",
        "watcher",
        "widest",
    )

    def __init__(self, name: str, bandwidth: float, latency_s: float) -> None:
        self.name = name
        self.bandwidth = bandwidth
        self.latency_s = latency_s
        self.routes: list[Route] = []
        self.busy: dict[Route, None] = {}
        self.num_flows = 0
        self.decides = False
        self.collectives = False
        self.watcher = -1
        self.widest = 0.0
        self.demand = 0.0
        self._common: Path = ()  # the links that all its routes use
        self._visit = 0  # while rates are being shared out: of which visit the rest is,
        self._left = 0  # flows without a rate,
        self._gone = 0  # those of them that got one in this round,
        self._room = 0.0  # bandwidth that is left for the others,
        self._level = 0.0  # what each of these would get,
        self._number = 0  # and its place in the list of links

    @property
    def num_bytes(self) -> int:
        """Bytes of the transfers it has finished."""
        return sum([route.num_bytes for route in self.routes])

    def carry_collectives(self) -> None:
        """Note that collectives use it too: it may decide a rate from now on."""
        self.collectives = self.decides = True
        for route in self.routes:
            route.choose_links()

    @property
    def left_for_collectives(self) -> float:
        """What its flows leave, or the share of one more flow if that is more (bytes/s)."""
        taken = 0.0
        for route in self.busy:
            taken += route.rate * len(route.flows)
        return max(self.bandwidth - taken, self.bandwidth / (self.num_flows + 1))

    def level(self, demand: float) -> float:
        """What it gives each of its flows if collectives ask for `demand` (both bytes/s)."""
        num_flows = self.num_flows
        return max((self.bandwidth - demand) / num_flows, self.bandwidth / (num_flows + 1))

    def add(self, route: Route) -> None:
        """Note that `route` uses it; see whether it can still be ignored."""
        self._common = (
            tuple(link for link in self._common if link in route.path)
            if self.routes
            else route.path
        )
        self.routes.append(route)
        self.widest = max(self.widest, route.narrowest)
        narrower = self.bandwidth == math.inf or any(
            link.bandwidth < self.bandwidth for link in self._common
        )
        # Of equals on one path the first decides.
        equals = [link for link in self._common if link.bandwidth == self.bandwidth]
        if not self.decides and not narrower and equals[0] is self:
            self.decides = True
            for other in self.routes:
                other.choose_links()


Path = tuple[Link, ...]


class Flow:
    """One transfer under way.

    Attributes
    ----------
    route : Route
        Its path.
    start_s : float
        When its first byte leaves (s); until then, when it was asked for.
    """

    __slots__ = ("num_bytes", "on_end", "request_id", "requested_s", "route", "start_s")

    def __init__(
        self,
        route: Route,
        request_id: int,
        num_bytes: int,
        requested_s: float,
        on_end: Callable[[], None],
    ) -> None:
        self.route = route
        self.request_id = request_id
        self.num_bytes = num_bytes
        self.requested_s = self.start_s = requested_s
        self.on_end = on_end


class Route:
    """All flows on one path: they have the same rate, so one counter serves them all.

    Attributes
    ----------
    path : Path
        Its links.
    number : int
        Its place among the routes of the network.
    name : str
        The names of its links.
    links : tuple of Link
        Those of them that may decide its rate.
    alone : bool
        No other route uses these.
    flows : list
        Heap of (goal in served bytes, order of start, flow).
    rate : float
        Of each flow (bytes/s).
    served_bytes : float
        What a flow present since the route became busy would have received at `settled_s` (bytes).
    settled_s : float
        When the counter was last brought up to date (s); ahead of time if the only flow is yet to
        start.
    end_s : float
        When the first of its flows ends at the present rate (s); infinity without flows.
    latency_s : float
        What passes before a flow on it begins (s, on the grid).
    narrowest : float
        Bandwidth of its narrowest link (bytes/s): what all its flows together get at most.
    num_bytes : int
        Bytes of the transfers it has finished.
    """

    __slots__ = (
        "_share",
        "_visit",
        "alone",
        "end_s",
        "flows",
        "latency_s",
        "links",
        "name",
        "narrowest",
        "num_bytes",
        "number",
        "path",
        "rate",
        "served_bytes",
        "settled_s",
    )

    def __init__(self, path: Path, number: int) -> None:
        self.path = path
        self.number = number
        self.name = " > ".join(link.name for link in path)
        self.links: tuple[Link, ...] = ()
        self.alone = True
        self.narrowest = min(link.bandwidth for link in path)
        self.latency_s = on_grid(sum([link.latency_s for link in path], 0.0))
        self.flows: list[tuple[float, int, Flow]] = []
        self.rate = 0.0
        self.served_bytes = 0.0
        self.settled_s = 0.0
        self.end_s = math.inf
        self.num_bytes = 0
        self._visit = 0  # while rates are being shared out: of which visit the share is
        self._share = 0.0  # the new rate; 0 for none yet
        for link in path:
            link.add(self)
        self.choose_links()

    def choose_links(self) -> None:
        """Find the links that may decide its rate."""
        links = tuple(link for link in self.path if link.decides)
        if self.flows:
            for link in links:
                if link not in self.links:
                    link.busy[self] = None
                    link.num_flows += len(self.flows)
        self.links = links
        self.alone = all(len(link.routes) == 1 and not link.collectives for link in links)

    def settle(self, now: float) -> None:
        """Bring the counter up to `now` (s)."""
        self.served_bytes += self.rate * (now - self.settled_s)
        self.settled_s = now


def share(routes: Collection[Route], links: Collection[Link]) -> None:
    """Find the max-min fair rate of a flow on each of `routes`: progressive filling.

    The links that would give their flows the least fix the rate of these at an equal share; they
    are taken out, and so on (Bertsekas and Gallager, Data Networks, section 6.5.2). Links that tie
    are taken out together and bandwidth is taken off a link once a round, so that the rates do not
    depend on the order of `routes` or `links`, not by a bit.

    Parameters
    ----------
    routes : collection of Route
        Busy routes, with all routes that share a link with one of them.
    links : collection of Link
        The links that they share.
    """
    for route in routes:
        route._share = 0.0
    # One that gives each flow more than any of them can take decides nothing, whatever collectives
    # ask for.
    deciding = [link for link in links if link.bandwidth <= link.widest * (link.num_flows + 1)]
    if len(deciding) > _FEW_LINKS:
        _share_many(routes, links, deciding)
        return
    links = deciding
    for link in links:
        link._left, link._room, link._gone = link.num_flows, link.bandwidth, 0
    left = len(routes)
    lowest = 0.0
    while left:
        last, lowest = lowest, math.inf
        for link in links:
            num_flows = link._left
            if num_flows:
                gone = link._gone
                if gone:
                    link._left = num_flows = num_flows - gone
                    if not num_flows:
                        continue
                    link._room -= last * gone
                    link._gone = 0
                level = link._room / num_flows
                demand = link.demand
                if demand:
                    level = max((link._room - demand) / num_flows, link._room / (num_flows + 1))
                if level < lowest:
                    lowest = level
                    fullest = [link]
                elif level == lowest:
                    fullest.append(link)
        for link in fullest:
            for route in link.busy:
                if not route._share:
                    route._share = lowest
                    left -= 1
                    num_flows = len(route.flows)
                    for other in route.links:
                        other._gone += num_flows


def _share_many(
    routes: Collection[Route], links: Collection[Link], deciding: Sequence[Link]
) -> None:
    """Do what `share` does, with the levels of the links in a heap; the same numbers to the bit.

    A round then costs as much as the links whose flows it fixes, and not as all of them.
    """
    for link in links:
        link._left = link._gone = 0
    levels = []
    for number, link in enumerate(deciding):
        if not link.num_flows:
            continue
        link._left, link._room = link.num_flows, link.bandwidth
        link._number, link._level = number, _level(link)
        levels.append((link._level, number))
    heapq.heapify(levels)
    left = len(routes)
    while left:
        lowest = levels[0][0]
        fullest = []
        while levels and levels[0][0] == lowest:
            link = deciding[heapq.heappop(levels)[1]]
            if link._left and link._level == lowest:  # else its level has risen since
                fullest.append(link)
        touched = []
        for link in fullest:
            for route in link.busy:
                if not route._share:
                    route._share = lowest
                    left -= 1
                    num_flows = len(route.flows)
                    for other in route.links:
                        if other._left:
                            if not other._gone:
                                touched.append(other)
                            other._gone += num_flows
        for link in touched:
            link._left -= link._gone
            if link._left:
                link._room -= lowest * link._gone
                link._level = _level(link)
                heapq.heappush(levels, (link._level, link._number))
            link._gone = 0


def _level(link: Link) -> float:
    """What `link` gives each of its flows that have no rate yet (bytes/s)."""
    demand = link.demand
    if demand:
        return max((link._room - demand) / link._left, link._room / (link._left + 1))
    return link._room / link._left


_FEW_LINKS: Final = 48
"""Number of links up to which it is cheaper to look at all of them in each round of sharing."""
_END_S: Final = attrgetter("end_s")
NUM_STRETCHES: Final = 200
"""Into how many equal stretches of time the links frame divides a run."""
_CLEARLY: Final = 1 + 1e-9
"""Factor that no rounding of a rate reaches."""
_FEW_ROUTES: Final = 24
"""Number of busy routes up to which it is cheaper to share all links again than to look for coupled
ones."""


def connected(links: Iterable[Link], visit: int) -> tuple[list[Route], list[Link]]:
    """Return the busy routes whose rates hang together with those on `links`, and their links.

    Two routes hang together if they share a link, or both hang together with a third. `visit` is a
    number that no earlier call was given.
    """
    routes: list[Route] = []
    queue: list[Link] = []
    for link in links:
        if link._visit != visit:
            link._visit = visit
            queue.append(link)
    for link in queue:
        for route in link.busy:
            if route._visit != visit:
                route._visit = visit
                routes.append(route)
                for other in route.links:
                    if other._visit != visit:
                        other._visit = visit
                        queue.append(other)
    return routes, queue


class LinkNetwork:
    """All links of a cluster: moves flows along and ends them.

    When a flow starts or ends, the rates of the routes that hang together with its own are solved
    again; between such moments every flow advances at its rate.
    """

    def __init__(self, env: Clock, recorder: Recorder) -> None:
        self._env = env
        self._rows = recorder.transfers
        self._routes: dict[Path, Route] = {}
        self._busy: dict[Route, None] = {}
        self._shared: dict[Route, None] = {}  # those of them that are not alone
        self._shared_links: dict[Link, None] = {}  # what they use
        self._num_started = 0
        self._num_visits = 0
        self._rates = array("d")  # time (s), route and rate of all its flows (bytes/s), in threes
        self._next_end_s = math.inf
        self._watchers: list[Callable[[], None]] = []
        self._to_tell: set[int] = set()  # watchers on whose links flows, or their rates, changed
        self._woken_s = math.inf  # when the earliest event that looks for ends happens

    def columns(self, end_s: float) -> dict[str, npt.NDArray[Any]]:
        """Columns of the links frame of a run that ended at `end_s` (s).

        What a route has carried at the end of a stretch of time lies on straight lines between the
        moments at which its rate changed, so the bytes of every stretch are exact.
        """
        edges = np.linspace(0.0, end_s, NUM_STRETCHES + 1)
        log = np.array(self._rates).reshape(-1, 3)
        log = log[np.argsort(log[:, 1], kind="stable")]
        firsts = np.searchsorted(log[:, 1], np.arange(len(self._routes) + 1))
        carried: dict[Link, FloatArray] = {}
        for route, first, last in zip(self._routes.values(), firsts, firsts[1:], strict=False):
            times = np.minimum(np.append(log[first:last, 0], end_s), end_s)
            passed = np.cumsum(log[first:last, 2] * np.diff(times))
            at_edges = np.interp(edges, times, np.insert(passed, 0, 0.0))
            for link in route.path:
                if link.bandwidth < math.inf:
                    carried[link] = carried.get(link, 0.0) + np.diff(at_edges)
        names = [link.name for link in carried]
        num_bytes = np.concatenate([*carried.values(), np.empty(0)])
        bandwidth = np.repeat([link.bandwidth for link in carried], NUM_STRETCHES)
        length_s = end_s / NUM_STRETCHES
        return {
            "link": np.repeat(np.array(names, dtype=object), NUM_STRETCHES),
            "start_s": np.tile(edges[:-1], len(names)),
            "end_s": np.tile(edges[1:], len(names)),
            "num_bytes": num_bytes,
            "bandwidth": bandwidth,
            "utilisation": num_bytes / (bandwidth * length_s),
        }

    def watch(self, links: Sequence[Link], watcher: Callable[[], None]) -> None:
        """Call `watcher` whenever rates or flows on `links` may have changed; one for each link."""
        for link in links:
            link.watcher = len(self._watchers)
        self._watchers.append(watcher)

    def demand(self, links: Sequence[Link], bytes_per_s: float) -> None:
        """Let the collectives on `links` ask for `bytes_per_s` from now on.

        A link that even without waiting for the others gives each flow more than any of them gets
        decides no rate: nothing is shared again unless one does, before or after.
        """
        deciding: Route | None = None
        for link in links:
            if link.busy and deciding is None:
                highest = max(route.rate for route in link.busy) * _CLEARLY
                if link.level(link.demand) <= highest or link.level(bytes_per_s) <= highest:
                    deciding = next(iter(link.busy))
            link.demand = bytes_per_s
        if deciding is not None:
            self._share(deciding, self._env.now)
            self._shared_anew()

    def _shared_anew(self) -> None:
        """Look for the next end; tell those who share links with the flows."""
        self._next_end_s = min(map(_END_S, self._busy), default=math.inf)
        self._look_at(self._next_end_s)
        if self._to_tell:
            numbers = sorted(self._to_tell)
            self._to_tell.clear()
            for number in numbers:
                self._watchers[number]()

    @property
    def rates(self) -> dict[Path, tuple[float, int]]:
        """Rate of a flow (bytes/s) and number of flows, by busy path."""
        return {route.path: (route.rate, len(route.flows)) for route in self._busy}

    def transfer(
        self,
        request_id: int,
        path: Path,
        num_bytes: int,
        on_end: Callable[[], None],
        *,
        requested_s: float | None = None,
    ) -> None:
        """Send `num_bytes` along `path`; call `on_end` when the last byte has arrived.

        The latencies of the path pass first, then the flow takes its share of every link. It is
        recorded as asked for at `requested_s` (s), now by default.
        """
        now = self._env.now
        route = self._routes.get(path)
        if route is None:
            route = self._add_route(path)
        asked_s = now if requested_s is None else requested_s
        flow = Flow(route, request_id, num_bytes, asked_s, on_end)
        start_s = now + route.latency_s
        if not route.flows and route.alone:
            # Nothing can happen on these links before it starts: no need to look then.
            self._enter(flow, start_s)
            return
        start = At(self._env, start_s, TRANSFER_END, flow)
        start.callbacks.append(self._started)

    def _add_route(self, path: Path) -> Route:
        route = self._routes[path] = Route(path, len(self._routes))
        neighbours = dict.fromkeys(other for link in route.links for other in link.routes)
        del neighbours[route]
        for other in neighbours:
            other.alone = False
            if other.flows:
                self._note_shared(other)
            if other.flows and other.settled_s > self._env.now:
                # Its flow counts as started ahead of time.
                flow = other.flows[0][2]
                self._take_out(other)
                start = At(self._env, flow.start_s, TRANSFER_END, flow)
                start.callbacks.append(self._started)
        self._next_end_s = min(map(_END_S, self._busy), default=math.inf)
        return route

    def _started(self, event: simpy.Event) -> None:
        flow: Flow = event.value  # type: ignore[assignment]  # SimPy's values are untyped
        self._enter(flow, self._env.now)

    def _enter(self, flow: Flow, start_s: float) -> None:
        """Let `flow` take its share from `start_s` (s) on: now, or soon if it is alone."""
        route = flow.route
        flow.start_s = start_s
        self._num_started += 1
        if route.flows:
            route.settle(start_s)
        else:
            route.served_bytes, route.settled_s, route.rate = 0.0, start_s, 0.0
            self._busy[route] = None
            for link in route.links:
                link.busy[route] = None
            if not route.alone:
                self._note_shared(route)
        heapq.heappush(route.flows, (route.served_bytes + flow.num_bytes, self._num_started, flow))
        for link in route.links:
            link.num_flows += 1
            if link.watcher >= 0:
                self._to_tell.add(link.watcher)
        self._share(route, start_s)
        self._shared_anew()

    def _note_shared(self, route: Route) -> None:
        self._shared[route] = None
        for link in route.links:
            self._shared_links[link] = None

    def _share(self, route: Route, now: float) -> None:
        """Share the links of `route` again, on which flows have started or ended.

        With them go all routes whose rates this moves. Those whose rate stays, and whose first flow
        has not just changed, are left as they are.
        """
        routes: Collection[Route] = self._shared
        links: Collection[Link] = self._shared_links
        if route.alone:
            if not route.flows:
                return
            routes = (route,)
            route._share = route.narrowest / len(route.flows)
        elif len(routes) > _FEW_ROUTES:
            self._num_visits += 1
            routes, links = connected(route.links, self._num_visits)
            share(routes, links)
        else:
            share(routes, links)
        for route in routes:
            rate = route._share
            if rate != route.rate or route.settled_s == now:
                for link in route.links:
                    if link.watcher >= 0:
                        self._to_tell.add(link.watcher)
                served = route.served_bytes + route.rate * (now - route.settled_s)
                route.served_bytes, route.settled_s, route.rate = served, now, rate
                self._rates.extend((now, route.number, rate * len(route.flows)))
                # Rounded up to the grid: bytes never arrive before they could.
                end_s = math.ceil((now + (route.flows[0][0] - served) / rate) * TICKS_PER_S)
                route.end_s = max(now, end_s * TICK_S)

    def _look_at(self, time_s: float) -> None:
        """Look for ends at `time_s` (s) at the latest, which is when the next one is due.

        Where it was due earlier, the event of then finds nothing and comes here again.
        """
        if time_s < self._woken_s:
            self._woken_s = time_s
            event = At(self._env, time_s, TRANSFER_END)
            event.callbacks.append(self._end)

    def _end(self, _: simpy.Event) -> None:
        """End what is due now."""
        now = self._env.now
        if now >= self._woken_s:
            self._woken_s = math.inf
        if now < self._next_end_s:
            self._look_at(self._next_end_s)
            return
        ending = [route for route in self._busy if route.end_s <= now]
        ended = self._take_ended(ending)
        for route in ending:
            self._share(route, now)
        self._shared_anew()
        for flow in ended:
            flow.on_end()

    def _take_ended(self, ending: Sequence[Route]) -> list[Flow]:
        """Take out and record the flows of `ending` that end now, in the order of their start."""
        now = self._env.now
        ended: list[tuple[int, Flow]] = []
        for route in ending:
            flows = route.flows
            route.settle(now)
            goal = flows[0][0]
            route.served_bytes = max(route.served_bytes, goal)
            while flows and flows[0][0] <= goal:
                _, order, flow = heapq.heappop(flows)
                ended.append((order, flow))
                route.num_bytes += flow.num_bytes
                for link in route.links:
                    link.num_flows -= 1
                    if link.watcher >= 0:
                        self._to_tell.add(link.watcher)
            if not flows:
                self._take_out(route)
        ended.sort()
        for _, flow in ended:
            self._rows.add(
                (
                    flow.request_id,
                    flow.route.name,
                    flow.num_bytes,
                    flow.requested_s,
                    flow.start_s,
                    now,
                )
            )
        return [flow for _, flow in ended]

    def _take_out(self, route: Route) -> None:
        """Note that `route` is no longer busy; forget its flows, if it has any."""
        del self._busy[route]
        self._rates.extend((max(self._env.now, route.settled_s), route.number, 0.0))
        self._shared.pop(route, None)
        for link in route.links:
            del link.busy[route]
            link.num_flows -= len(route.flows)
            if not link.busy:
                self._shared_links.pop(link, None)
        route.flows.clear()
        route.end_s = math.inf
