"""Many calls at once: by joblib on the cores of this machine, by Dask's futures on a cluster."""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import re
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import CancelledError
from typing import Any, Final, TypeVar

from simcluster import registry
from simcluster.errors import DataError, WorkerError
from simcluster.runs.recorded import program
from simcluster.scenario import arguments

T = TypeVar("T")

CONNECT_S: Final = 5.0
"""How long a Dask scheduler may take to answer (s)."""
LOOK_S: Final = 5.0
"""How long Dask's first worker, and then a result, may take before workers are looked for (s)."""
_KEPT: Final = "What was recorded is kept, and the same command goes on from it."


def outcomes(
    function: Callable[..., T],
    calls: Iterable[tuple[Any, ...]],
    *,
    jobs: int | None = None,
    dask: str | None = None,
) -> Generator[T, None, None]:
    """Call `function` with each of `calls` and give the results as they come, in any order.

    Parameters
    ----------
    function : callable
        What to call; it and its arguments travel to other processes.
    calls : iterable of tuple
        Arguments of each call; those that take longest first keep all workers busy to the end.
    jobs : int, optional
        Processes on this machine (joblib's loky), >= 1; default: one per core. 1 calls in this
        process.
    dask : str, optional
        Address of a Dask scheduler (``"tcp://host:8786"``); then its workers are used, by Dask's
        own futures. They need this version of simcluster, and the files that a scenario names at
        the same paths.

    Raises
    ------
    ConfigError
        If `jobs` is not a whole number >= 1, or `dask` not text.
    DataError
        If no scheduler or worker answers, or the workers have another version.
    WorkerError
        If a process of this machine dies; if the Dask scheduler or all of its workers do, or as
        many workers with the same call as the scheduler allows.

    Notes
    -----
    What a call raises comes out here as soon as it is known. However the iteration ends before
    its end (by that, by an interrupt, by ``close``), calls that have not begun never do. Those
    that have are killed on this machine; a Dask worker finishes its own and drops the result.
    The calls of a Dask worker that is lost go to the others: that is no error.
    """
    function = with_registered(function)
    if jobs is not None:
        remedy = "Leave it out for one process per core."
        arguments.whole("jobs", jobs, least=1, remedy=remedy)
    if dask is not None:
        remedy = 'Give one such as "tcp://host:8786".'
        arguments.of_type("dask", dask, str, "an address", remedy)
    calls = list(calls)
    if dask is not None:
        yield from _on_dask(function, calls, dask)
    elif jobs == 1 or len(calls) <= 1:
        yield from (function(*call) for call in calls)
    else:
        yield from _on_cores(function, calls, jobs)


def with_registered(function: Callable[..., T]) -> Callable[..., T]:
    """Return `function` for other processes: what this script has registered goes with it.

    Entries of installed packages are there in any case.
    """
    added = registry.added()
    return functools.partial(_with, added, function) if added else function


def _with(added: registry.Added, function: Callable[..., T], *call: Any) -> T:
    """Register `added` in this process, then call `function`."""
    registry.add(added)
    return function(*call)


def _on_cores(
    function: Callable[..., T], calls: list[tuple[Any, ...]], jobs: int | None
) -> Iterator[T]:
    """Give the results of `calls` from processes of this machine."""
    from concurrent.futures.process import BrokenProcessPool

    import joblib

    # Calls are long: one at a time, so that each result is here as soon as it is there.
    parallel = joblib.Parallel(n_jobs=jobs or -1, return_as="generator_unordered", batch_size=1)
    results = parallel(joblib.delayed(function)(*call) for call in calls)
    try:
        for result in results:  # noqa: UP028  "yield from" would close it where joblib warns
            yield result
    except BrokenProcessPool as error:
        codes = re.search(r"exit codes of the workers are \{(.*?)\}", str(error))
        how = f" ({codes[1]})" if codes else ""
        raise WorkerError(
            f"a worker process died{how}; with SIGKILL it was mostly memory that ran out. {_KEPT} "
            "Fewer processes at a time (--jobs) take less memory."
        ) from None
    finally:
        with warnings.catch_warnings():  # joblib warns of what is stopped, here on purpose
            warnings.simplefilter("ignore", UserWarning)
            results.close()


def _on_dask(function: Callable[..., T], calls: list[tuple[Any, ...]], address: str) -> Iterator[T]:
    """Give the results of `calls` from the workers of the scheduler at `address`.

    By futures of Dask's own: joblib's back end for Dask was seen to wait for ever for a result.
    """
    with _connected(address) as client:
        from distributed.scheduler import KilledWorker

        done: queue.SimpleQueue[Any] = queue.SimpleQueue()
        left = {client.submit(function, *call, pure=False) for call in calls}
        for one in left:
            one.add_done_callback(done.put)
        patience_s = LOOK_S
        future: Any = None
        try:
            while left:
                future = None
                try:
                    future = done.get(timeout=patience_s)
                    result = future.result(timeout=patience_s)
                except (queue.Empty, TimeoutError):
                    if future is not None and future.status == "error":
                        raise  # the call's own
                    if client.status != "running":  # it tries to reconnect
                        raise CancelledError from None
                    # A long call; or a result that is lost with its worker, or has a long way.
                    # Not by scheduler_info(): a thread of Dask's may empty its list of workers.
                    if not client.nthreads():
                        raise WorkerError(f"--dask {address}: no worker is left. {_KEPT}") from None
                    if future is not None:
                        done.put(future)
                        patience_s *= 2
                    continue
                left.remove(future)
                yield result
        except KilledWorker as error:
            raise WorkerError(
                f"--dask {address}: several workers died of the same run, the last one at "
                f"{error.last_worker.address}, mostly because memory ran out. {_KEPT}"
            ) from None
        except (CancelledError, OSError):
            if future is not None and future.status == "error":
                raise  # the call's own
            raise WorkerError(f"--dask {address}: the scheduler is lost. {_KEPT}") from None
        finally:
            client.cancel(list(left))


@contextlib.contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Give a client of the scheduler at `address`, which has workers with this program."""
    remedy = "Leave out --dask to use the cores of this machine."
    try:
        from distributed import Client
    except ImportError:
        raise DataError(
            f"--dask {address}: the package distributed is not installed "
            f'(pip install "simcluster[dask]"). {remedy}'
        ) from None
    try:
        client = Client(  # type: ignore[no-untyped-call]  # Dask is typed in part
            address, timeout=CONNECT_S, set_as_default=False
        )
    except (OSError, ValueError):  # a time-out is an OSError
        raise DataError(
            f"--dask {address}: no scheduler answers within {CONNECT_S:g} s. Start one with "
            f"`dask scheduler`, or correct the address. {remedy}"
        ) from None
    with _unlogged("distributed.client"), _unlogged("asyncio"), client:
        try:
            client.wait_for_workers(1, timeout=LOOK_S)
        except TimeoutError:
            raise DataError(
                f"--dask {address}: the scheduler has no workers. Start some with "
                f"`dask worker {address} --nthreads 1`. {remedy}"
            ) from None
        strangers = [at for at, other in client.run(_program).items() if other != program()]
        if strangers:
            raise DataError(
                f"--dask {address}: the worker {strangers[0]} does not have this version of "
                f"simcluster ({program()}). Install it there. {remedy}"
            )
        yield client


@contextlib.contextmanager
def _unlogged(name: str) -> Iterator[None]:
    """Keep a logger from writing pages about what comes out of here as one line."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def _program() -> str | None:
    """Return `program` of the process this runs in; None where simcluster cannot be imported."""
    try:
        from simcluster.runs import recorded
    except ImportError:
        return None
    return recorded.program()
