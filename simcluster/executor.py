"""Many calls at once: on the cores of this machine, or on a Dask cluster by the same call."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, TypeVar

from simcluster.cell_store import program
from simcluster.errors import DataError

T = TypeVar("T")

CONNECT_S: Final = 5.0
"""How long a Dask scheduler, and then its first worker, may take to answer (s)."""


def outcomes(
    function: Callable[..., T],
    calls: Iterable[tuple[Any, ...]],
    *,
    jobs: int | None = None,
    dask: str | None = None,
) -> Iterator[T]:
    """Call `function` with each of `calls` and give the results as they come, in any order.

    Parameters
    ----------
    function : callable
        What to call; it and its arguments travel to other processes.
    calls : iterable of tuple
        Arguments of each call; those that take longest first keep all workers busy to the end.
    jobs : int, optional
        Processes on this machine; default: one per core. 1 calls in this process.
    dask : str, optional
        Address of a Dask scheduler (``"tcp://host:8786"``); then its workers are used. They need
        this version of simcluster, and the files that a scenario names at the same paths.

    Raises
    ------
    DataError
        If no scheduler or worker answers, or the workers have another version.
    """
    calls = list(calls)
    if dask is None and (jobs == 1 or len(calls) <= 1):
        yield from (function(*arguments) for arguments in calls)
        return
    if dask is not None:
        yield from _on_dask(function, calls, dask)
        return
    import joblib

    # Calls are long: one at a time, so that each result is here as soon as it is there.
    parallel = joblib.Parallel(n_jobs=jobs or -1, return_as="generator_unordered", batch_size=1)
    yield from parallel(joblib.delayed(function)(*arguments) for arguments in calls)


def _on_dask(function: Callable[..., T], calls: list[tuple[Any, ...]], address: str) -> Iterator[T]:
    """Give the results of `calls` from the workers of the scheduler at `address`.

    By futures of Dask's own: joblib's back end for Dask was seen to wait for ever for a result.
    """
    with _connected(address) as client, client.as_current():
        from distributed import as_completed

        futures = [client.submit(function, *arguments, pure=False) for arguments in calls]
        for future in as_completed(futures):  # type: ignore[no-untyped-call]
            yield future.result()


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
        client = Client(address, timeout=CONNECT_S, set_as_default=False)  # type: ignore[no-untyped-call]
    except (OSError, ValueError):  # a time-out is an OSError
        raise DataError(
            f"--dask {address}: no scheduler answers within {CONNECT_S:g} s. Start one with "
            f"`dask scheduler`, or correct the address. {remedy}"
        ) from None
    with client:
        try:
            client.wait_for_workers(1, timeout=CONNECT_S)
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


def _program() -> str | None:
    """Return `program` of the process this runs in; None where simcluster cannot be imported."""
    try:
        from simcluster import cell_store
    except ImportError:
        return None
    return cell_store.program()
