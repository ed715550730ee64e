"""All-reduce and all-gather between the GPUs of this machine, one process per GPU."""

from __future__ import annotations

import multiprocessing
import queue
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Final

from simcluster.errors import DataError
from simcluster.fidelity.measure.plan import Call
from simcluster.fidelity.measure.timers import captured, num_calls, num_replays

if TYPE_CHECKING:
    import torch

_TIMEOUT: Final = timedelta(seconds=60)
_GRACE_S: Final = 90.0
"""How long after the deadline an answer may come: start of the processes, the last call."""


def measure(
    calls: Sequence[Call], device_type: str, deadline: float
) -> Iterator[tuple[Call, float, str]]:
    """Time collectives of one group size.

    Parameters
    ----------
    calls : sequence of Call
        Collectives with the same ``tp``.
    device_type : str
        ``"cuda"`` (NCCL) or ``"cpu"`` (Gloo).
    deadline : float
        No call starts after this (`time.time`, s).

    Yields
    ------
    tuple of Call, float, str
        A call, its time (s; that of the slowest rank) and its mode.

    Raises
    ------
    DataError
        If a process ends before its time.
    """
    size = calls[0].size("tp")
    context = multiprocessing.get_context("spawn")
    answers: Any = context.Queue()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        store = str(Path(folder) / "store")
        ranks = [
            context.Process(
                target=_process,
                args=(rank, size, list(calls), device_type, store, deadline, answers),
                daemon=True,
            )
            for rank in range(size)
        ]
        try:
            for process in ranks:
                process.start()
            while (answer := _next(answers, ranks, deadline + _GRACE_S)) is not None:
                index, time_s, mode = answer
                yield calls[index], time_s, mode
            for process in ranks:
                process.join(_TIMEOUT.total_seconds())
        finally:
            for process in ranks:
                process.kill()
                process.join()


def _next(answers: Any, ranks: Sequence[Any], limit: float) -> tuple[int, float, str] | None:
    """Return the next answer; None after the last."""
    while True:
        try:
            answer: tuple[int, float, str] | str | None = answers.get(timeout=0.2)
        except queue.Empty:
            failed = [process.exitcode for process in ranks if process.exitcode]
            if failed:
                raise DataError(f"a process ended with code {failed[0]}") from None
            if time.time() > limit:
                raise DataError("the processes do not answer") from None
            continue
        if isinstance(answer, str):
            raise DataError(answer)
        return answer


def _process(rank: int, size: int, *arguments: Any) -> None:
    """Run one rank; what goes wrong is told to the parent, in one line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    answers = arguments[-1]
    try:
        _rank(rank, size, *arguments)
    except Exception as error:  # whatever PyTorch and the driver raise, the parent says it
        answers.put(" ".join(str(error).split())[:200] or type(error).__name__)


def _rank(
    rank: int,
    size: int,
    calls: list[Call],
    device_type: str,
    store: str,
    deadline: float,
    answers: Any,
) -> None:
    """Time the calls as one of `size` processes; the first one answers."""
    import torch
    from torch import distributed

    cuda = device_type == "cuda"
    if cuda:
        torch.cuda.set_device(rank)
    device = torch.device(device_type, rank) if cuda else torch.device("cpu")
    distributed.init_process_group(
        "nccl" if cuda else "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=size,
        timeout=_TIMEOUT,
    )
    if cuda:
        torch.cuda.set_stream(torch.cuda.Stream(device))  # graphs are not captured on the default
    for index, call in enumerate(calls):
        if _agreed(time.time() > deadline, device):
            break
        run = _collective(call, device)
        time_s, mode = _graph_time_s(run, device) if cuda else _clock_time_s(run, device)
        time_s = _slowest(time_s, device)
        if rank == 0:
            answers.put((index, time_s, mode))
    if rank == 0:
        answers.put(None)
    distributed.destroy_process_group()


def _collective(call: Call, device: torch.device) -> Callable[[], object]:
    import torch
    from torch import distributed

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[call.dtype]
    whole = torch.zeros(call.size("m") * call.size("n"), dtype=dtype, device=device)
    if call.operator == "all_reduce":
        return lambda: distributed.all_reduce(whole)
    part = whole[: whole.numel() // call.size("tp")].clone()
    gather = getattr(distributed, "all_gather_single", None)  # its name since PyTorch 2.13
    if gather is None:
        gather = distributed.all_gather_into_tensor
    return lambda: gather(whole, part)


def _slowest(seconds: float, device: torch.device) -> float:
    """Return the largest of the ranks' values, on every rank."""
    import torch
    from torch import distributed

    value = torch.tensor([seconds], dtype=torch.float64, device=device)
    distributed.all_reduce(value, op=distributed.ReduceOp.MAX)
    return float(value.item())


def _agreed(flag: bool, device: torch.device) -> bool:
    """Return whether the flag is set on any rank, on every rank."""
    return _slowest(float(flag), device) > 0


def _clock_time_s(run: Callable[[], object], device: torch.device) -> tuple[float, str]:
    times = []
    for _ in range(3):
        _slowest(0.0, device)  # all start together
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return median(times), "eager"


def _graph_time_s(run: Callable[[], object], device: torch.device) -> tuple[float, str]:
    """Time a captured graph of collectives by events; every rank takes equally many."""
    import torch

    def elapsed_s(calls: Callable[[], object]) -> float:
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        _slowest(0.0, device)
        start.record()
        calls()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    for _ in range(2):
        run()
    count = num_calls(_slowest(elapsed_s(run), device))

    def all_calls() -> None:
        for _ in range(count):
            run()

    replay, mode = captured(all_calls, torch.cuda.graph_pool_handle())
    replay()
    replays = num_replays(_slowest(elapsed_s(replay), device))
    return median(elapsed_s(replay) for _ in range(replays)) / count, mode
