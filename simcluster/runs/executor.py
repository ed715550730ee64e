"""Many calls at once: by joblib on the cores of this machine, by Dask's futures on a cluster.

A `Runner` is how a study does its runs: recorded ones are taken, the others done and recorded.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import pickle
import queue
import re
import socket
import warnings
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import Any, Final, Generic, Protocol, TypeVar

from simcluster import registry
from simcluster.errors import DataError, WorkerError
from simcluster.runs.cell import Cell, program
from simcluster.runs.recorded import Label, RecordedRuns
from simcluster.scenario import arguments
from simcluster.scenario.scenario import Scenario

T = TypeVar("T")

CONNECT_S: Final = 5.0
"""How long a Dask scheduler may take to answer (s)."""
LOOK_S: Final = 5.0
"""How long Dask's first worker, and then a result, may take before workers are looked for (s)."""
_KEPT: Final = "Recorded runs are kept; the same command resumes."


class Store(Protocol[T]):
    """Where the outcomes of calls are kept, by the arguments of the call."""

    def read(self, *call: Any) -> T | None:
        """Return the outcome of a call; None if there is none that can be used."""

    def keep(self, outcome: T, *call: Any) -> T:
        """Keep the outcome of a call and return what of it shall stay in memory."""


@dataclass(frozen=True, slots=True)
class Labelled(Generic[T]):
    """A `Store` in a folder of recorded runs."""

    runs: RecordedRuns
    """The folder."""
    label: Callable[..., Label]
    """Says with the arguments of a call what its outcome is of."""
    made: Callable[..., T]
    """Makes an outcome of the values that were recorded."""

    def read(self, *call: Any) -> T | None:
        """Return what was recorded of a call; None if there is nothing that can be used."""
        return self.runs.read(self.label(*call), self.made)

    def keep(self, outcome: T, *call: Any) -> T:
        """Record an outcome."""
        return self.runs.keep(self.label(*call), outcome)


@dataclass(frozen=True, slots=True)
class Runner:
    """How a study does its runs."""

    jobs: int | None = None
    """Processes on this machine; None for one per core, 1 for this one."""
    dask: str | None = None
    """Address of a Dask scheduler whose workers take the place of those processes."""
    recorded: RecordedRuns | None = None
    """Where outcomes are kept; None keeps none."""

    def each(
        self,
        function: Callable[..., T],
        calls: Sequence[tuple[Any, ...]],
        store: Store[T] | None = None,
        done: Callable[[int, T], None] | None = None,
    ) -> list[T]:
        """Return the outcome of each call; what is in the store is not called again.

        Parameters
        ----------
        function : callable
            What to call, here or in another process.
        calls : sequence of tuple
            Arguments of each call; those that take longest first keep all workers busy to the end.
        store : Store, optional
            Takes each outcome as soon as it is there.
        done : callable, optional
            Called after that with the number of the call and its outcome; those of the store come
            first.

        Raises
        ------
        ConfigError, DataError, WorkerError
            As `outcomes` does.
        """
        found: dict[int, T] = {}
        left = []
        for number, call in enumerate(calls):
            known = None if store is None else store.read(*call)
            if known is None:
                left.append((function, number, *call))
                continue
            found[number] = known
            if done:
                done(number, known)
        with contextlib.closing(outcomes(_numbered, left, jobs=self.jobs, dask=self.dask)) as came:
            for number, outcome in came:
                kept = outcome if store is None else store.keep(outcome, *calls[number])
                found[number] = kept
                if done:
                    done(number, kept)
        return [found[number] for number in range(len(calls))]

    def cells(
        self,
        measure: Callable[[Scenario, Cell], T],
        scenario: Scenario,
        cells: Sequence[Cell],
        *,
        made: Callable[..., T],
        kind: str = "",
        done: Callable[[Cell], None] | None = None,
    ) -> list[T]:
        """Return the outcomes of runs of `scenario`, in the order of the cells.

        The longest are run first, so that short ones fill the gaps at the end.

        Parameters
        ----------
        measure : callable
            Simulates a run and returns its outcome, a dataclass or a mapping.
        scenario : Scenario
            With the strategies of all cells.
        cells : sequence of Cell
            The runs.
        made : callable
            Makes an outcome of the values that were recorded: the dataclass, or `dict`.
        kind : str
            Tells what `measure` returns from what others do (`runs.cell.identity`).
        done : callable, optional
            Called with each cell whose outcome is there.
        """
        runs = self.recorded
        store = None
        if runs is not None:
            store = Labelled(runs, lambda _, cell: runs.label(scenario, cell, kind), made)
        light = {cell.strategy: scenario.only(cell.strategy) for cell in cells}
        order = sorted(dict.fromkeys(cells), key=lambda cell: -(cell.num_requests or 0))
        calls = [(light[cell.strategy], cell) for cell in order]
        told = None if done is None else lambda number, _: done(order[number])
        by_cell = dict(zip(order, self.each(measure, calls, store, told), strict=True))
        return [by_cell[cell] for cell in cells]


def _numbered(function: Callable[..., T], number: int, *call: Any) -> tuple[int, T]:
    """Call `function`, here or in a worker; the outcome comes with the number of its call."""
    return number, function(*call)


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
    if dask is not None and calls:
        yield from _on_dask(functools.partial(_unsealed, function), _sealed(calls), dask)
    elif jobs == 1 or len(calls) <= 1:
        yield from (function(*call) for call in calls)
    else:
        yield from _on_cores(functools.partial(_unsealed, function), _sealed(calls), jobs)


class _Sealed:
    """A scenario on its way to other processes: packed once, opened once by each of them."""

    __slots__ = ("digest", "packed")

    def __init__(self, scenario: Scenario) -> None:
        try:  # joblib's, which knows what a script or a notebook defines
            import cloudpickle
        except ImportError:  # before joblib 1.6 it was a part of it
            from joblib.externals import cloudpickle

        plain: bytes = cloudpickle.dumps(scenario)
        self.digest = hashlib.sha256(plain).digest()
        self.packed = zlib.compress(plain, 1)

    def open(self) -> Scenario:
        """Return the scenario: the same object each time, in one process."""
        scenario = _opened.get(self.digest)
        if scenario is None:
            while len(_opened) >= _MOST_OPENED:
                del _opened[next(iter(_opened))]
            scenario = _opened[self.digest] = pickle.loads(zlib.decompress(self.packed))
        return scenario


_opened: dict[bytes, Scenario] = {}
_MOST_OPENED: Final = 32


def _sealed(calls: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Return calls whose scenarios are sealed, each once."""
    known: dict[int, _Sealed] = {}
    for call in calls:
        for value in call:
            if isinstance(value, Scenario) and id(value) not in known:
                known[id(value)] = _Sealed(value)
    return [tuple(known.get(id(value), value) for value in call) for call in calls]


def _unsealed(function: Callable[..., T], *call: Any) -> T:
    """Call `function` with its scenarios opened."""
    return function(*(one.open() if isinstance(one, _Sealed) else one for one in call))


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


def _no_scheduler(address: str, remedy: str) -> DataError:
    return DataError(
        f"--dask {address}: no scheduler answers within {CONNECT_S:g} s. Start one with "
        f"`dask scheduler`, or correct the address. {remedy}"
    )


def _refuse_silent(address: str, remedy: str) -> None:
    """Refuse the address of a TCP port that nobody listens at; others are left to Dask."""
    place = address.partition("://")[2] or address
    if not address.startswith(("tcp://", "tls://")) and "://" in address:
        return
    host, _, port = place.rpartition(":") if ":" in place else (place, "", "8786")
    if not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError, UnicodeError):
        raise _no_scheduler(address, remedy) from None


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
    # First whether anybody listens: a client that fails leaves a traceback when it is collected.
    _refuse_silent(address, remedy)
    try:
        client = Client(  # type: ignore[no-untyped-call]  # Dask is typed in part
            address, timeout=CONNECT_S, set_as_default=False
        )
    except (OSError, ValueError):  # a time-out is an OSError
        raise _no_scheduler(address, remedy) from None
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
        from simcluster.runs import cell
    except ImportError:
        return None
    return cell.program()
