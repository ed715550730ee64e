"""Time a kernel: inside a captured graph with cold weights, or one by one on the CPU."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    import torch

_GRAPH_S: Final = 1e-3
"""What one replay should take: long against the resolution of events."""
_TOTAL_S: Final = 5e-3
"""What all replays of a call should take."""
_MAX_CALLS: Final = 32
_MIN_REPLAYS: Final = 3
_MAX_REPLAYS: Final = 20
_FLUSH_BYTES: Final = 2**29
"""Least that is written between replays: empties the cache, and takes longer than a launch."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A call that is ready to run."""

    run: Callable[[int], object]
    """Runs the call on copy i of its weights or cache."""
    copies: int = 1
    """How many copies there are; together they are larger than the cache of the GPU."""


class Timer(Protocol):
    """How calls are timed."""

    def time_s(self, prepared: Prepared) -> tuple[float, str]:
        """Return the median time of one call (s), and its mode: ``"graph"`` or ``"eager"``."""


def num_calls(estimate_s: float) -> int:
    """Return how many calls one graph should hold, given the time of one (s)."""
    return min(_MAX_CALLS, max(1, math.ceil(_GRAPH_S / max(estimate_s, 1e-9))))


def num_replays(graph_s: float) -> int:
    """Return how often a graph should be replayed, given the time of one replay (s)."""
    return min(_MAX_REPLAYS, max(_MIN_REPLAYS, math.ceil(_TOTAL_S / max(graph_s, 1e-9))))


def captured(calls: Callable[[], None], pool: object) -> tuple[Callable[[], object], str]:
    """Return what replays a captured graph of `calls`, and the mode ``"graph"``.

    Where they cannot be captured it returns them as they are, and ``"eager"``. The current stream
    must not be the default one; the graph's memory comes from `pool`.
    """
    import torch

    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    # torch.cuda.graph() would empty the caches of the allocator each time.
    graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    failed = False
    try:
        calls()
    except RuntimeError:
        failed = True
    try:
        graph.capture_end()
    except RuntimeError:
        failed = True
    if failed:
        torch.cuda.synchronize()
        return calls, "eager"
    return graph.replay, "graph"


class CudaTimer:
    """Times calls by events around a captured graph of them.

    Between replays the cache is overwritten, so that weights come from memory as they do in a
    model; what the calls share (activations) is warm after the first of them, as in a model too.
    The overwriting also covers the launch of the graph.
    """

    def __init__(self, device: torch.device) -> None:
        import torch

        properties = torch.cuda.get_device_properties(device)
        cache: int = getattr(properties, "L2_cache_size", 0)
        free, _ = torch.cuda.mem_get_info(device)
        size = min(max(_FLUSH_BYTES, 4 * cache), free // 8)
        self._flush = torch.empty(size, dtype=torch.uint8, device=device)
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def time_s(self, prepared: Prepared) -> tuple[float, str]:
        """Return the median time of one call (s) and its mode."""
        import torch

        run, copies = prepared.run, prepared.copies
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for i in range(2):  # chooses and loads the kernel, sizes the workspace
                run(i % copies)
            self._stream.synchronize()
            estimate = self._elapsed_s(lambda: run(2 % copies))
            count = num_calls(estimate)

            def all_calls() -> None:
                for i in range(count):
                    run(i % copies)

            replay, mode = captured(all_calls, self._pool)
            replay()
            once = self._elapsed_s(replay)
            times = [self._elapsed_s(replay) for _ in range(num_replays(once))]
        return median(times) / count, mode

    def _elapsed_s(self, calls: Callable[[], object]) -> float:
        """Return the time between an event before and one after `calls` (s)."""
        import torch

        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        self._flush.zero_()
        start.record(self._stream)
        calls()
        end.record(self._stream)
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3


class CpuTimer:
    """Times calls by the clock; a stand-in that takes the same path."""

    def time_s(self, prepared: Prepared) -> tuple[float, str]:
        """Return the median time of one call (s) and the mode ``"eager"``."""
        run, copies = prepared.run, prepared.copies
        run(0)
        times = []
        for i in range(_MIN_REPLAYS):
            start = time.perf_counter()
            run(i % copies)
            times.append(time.perf_counter() - start)
        return median(times), "eager"
