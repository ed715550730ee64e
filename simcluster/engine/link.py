"""KV-transfer links: shared by the flows on them, each getting its max-min fair share."""

from __future__ import annotations

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

    __slots__ = ("bandwidth", "flows", "latency_s", "name", "num_bytes")

    def __init__(self, name: str, bandwidth: float, latency_s: float) -> None:
        self.name = name
        self.bandwidth = bandwidth
        self.latency_s = latency_s
        self.flows: dict[Flow, None] = {}
        self.num_bytes = 0


Path = tuple[Link, ...]


class Flow:
    """One transfer under way."""

    __slots__ = (
        "end_s",
        "left_bytes",
        "num_bytes",
        "on_end",
        "path",
        "rate",
        "request_id",
        "requested_s",
        "start_s",
    )

    def __init__(
        self,
        request_id: int,
        path: Path,
        num_bytes: int,
        requested_s: float,
        on_end: Callable[[], None],
    ) -> None:
        self.request_id = request_id
        self.path = path
        self.num_bytes = num_bytes
        self.left_bytes = float(num_bytes)
        self.requested_s = requested_s
        self.start_s = requested_s
        self.end_s = requested_s
        self.rate = 0.0
        self.on_end = on_end


def max_min_rates(flows: Sequence[Flow]) -> list[float]:
    """Max-min fair rates (bytes/s) of `flows` on their paths, by progressive filling.

    The most contended link fixes the rate of its flows at an equal share; it and they are taken
    out, and so on (Bertsekas and Gallager, Data Networks, section 6.5.2).
    """
    rates: dict[Flow, float] = {}
    room: dict[Link, float] = {}
    count: dict[Link, int] = {}
    for flow in flows:
        for link in flow.path:
            room[link] = link.bandwidth
            count[link] = count.get(link, 0) + 1
    while len(rates) < len(flows):
        tightest = min((link for link in count if count[link]), key=lambda k: room[k] / count[k])
        share = room[tightest] / count[tightest]
        for flow in flows:
            if flow not in rates and tightest in flow.path:
                rates[flow] = share
                for link in flow.path:
                    room[link] = max(0.0, room[link] - share)
                    count[link] -= 1
    return [rates[flow] for flow in flows]


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
        self._flows: dict[Flow, None] = {}
        self._settled_s = 0.0
        self._wake = Wake(env)
        self.process = env.process(self._run())

    def transfer(
        self, request_id: int, path: Path, num_bytes: int, on_end: Callable[[], None]
    ) -> None:
        """Send `num_bytes` along `path`; call `on_end` when the last byte has arrived.

        The latencies of the path pass first, then the flow takes its share of every link.
        """
        env = self._env
        flow = Flow(request_id, path, num_bytes, env.now, on_end)
        latency_s = on_grid(sum(link.latency_s for link in path))
        start = At(env, env.now + latency_s, TRANSFER_END)
        start.callbacks.append(lambda _: self._start(flow))

    def _start(self, flow: Flow) -> None:
        self._settle()
        flow.start_s = self._env.now
        self._flows[flow] = None
        self._wake.move(self._solve(), TRANSFER_END)

    def _settle(self) -> None:
        """Advance every flow to now."""
        elapsed = self._env.now - self._settled_s
        if elapsed:
            for flow in self._flows:
                flow.left_bytes -= flow.rate * elapsed
        self._settled_s = self._env.now

    def _solve(self) -> float:
        """Share the links anew; return when the next flow ends (s), infinity without flows."""
        flows = list(self._flows)
        now = self._env.now
        for flow, rate in zip(flows, max_min_rates(flows), strict=True):
            flow.rate = rate
            # Rounded up to the grid: bytes never arrive before they could.
            flow.end_s = max(now, on_grid_up(now + flow.left_bytes / rate))
        return min((flow.end_s for flow in flows), default=math.inf)

    def _run(self) -> Generator[simpy.Event, Any, None]:
        next_end = math.inf
        while True:
            if next_end == math.inf:
                yield self._wake.sleep()
            else:
                yield self._wake.at(next_end, TRANSFER_END)
            self._settle()
            now = self._env.now
            ended = [flow for flow in self._flows if flow.end_s <= now]
            for flow in ended:
                del self._flows[flow]
                for link in flow.path:
                    link.num_bytes += flow.num_bytes
                self._rows.add(
                    (
                        flow.request_id,
                        flow.path[0].name,
                        flow.path[-1].name,
                        flow.num_bytes,
                        flow.requested_s,
                        flow.start_s,
                        now,
                    )
                )
            next_end = self._solve()
            for flow in ended:
                flow.on_end()
