"""What it costs the CPU to launch one kernel, and a captured graph of many."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Final

from simcluster.fidelity.measure.plan import Call
from simcluster.fidelity.measure.timers import captured

if TYPE_CHECKING:
    import torch

_LAUNCHES: Final = 256
"""Launches between two looks at the clock; fewer than the queue of a GPU holds (1024)."""
_ROUNDS: Final = 20


def issue_s(call: Call, device: torch.device) -> float:
    """Return the CPU time of one launch (s): of a kernel, or of a graph of ``m`` kernels.

    Raises
    ------
    ValueError
        If a graph is asked for on a device that has none.
    """
    import torch

    x, weight, y = (torch.ones(16, 16, device=device) for _ in range(3))

    def kernel() -> None:
        torch.mm(x, weight, out=y)

    cuda = device.type == "cuda"
    synchronize: Callable[[], object] = torch.cuda.synchronize if cuda else lambda: None
    kernel()
    launch: Callable[[], object]
    if call.mode == "eager":
        launch, launches = kernel, _LAUNCHES
    elif cuda:
        launch, launches = _graph(kernel, call.size("m")), 1
    else:
        raise ValueError("no graphs on this device")
    times = []
    for _ in range(_ROUNDS):
        synchronize()
        start = time.perf_counter()
        for _ in range(launches):
            launch()
        times.append((time.perf_counter() - start) / launches)
    synchronize()
    return median(times)


def _graph(kernel: Callable[[], None], kernels: int) -> Callable[[], object]:
    """Return what launches a captured graph of `kernels` kernels."""
    import torch

    def all_kernels() -> None:
        for _ in range(kernels):
            kernel()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        kernel()
        replay, mode = captured(all_kernels, torch.cuda.graph_pool_handle())
        if mode != "graph":
            raise ValueError("the graph could not be captured")
        replay()
    stream.synchronize()
    return replay
