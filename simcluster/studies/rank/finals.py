"""The finalists: goodputs to the wanted tolerance, and pairs told apart or not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from simcluster.errors import DataError
from simcluster.runs.cell import Cell
from simcluster.runs.executor import Runner
from simcluster.scenario.scenario import Scenario
from simcluster.studies.goodput import (
    Found,
    Interval,
    Located,
    Outcome,
    Verdict,
    find,
    simulate_cell,
)
from simcluster.studies.goodput.tables import ending

LONGEST: Final = 20_000
"""Requests of the longest run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finals:
    """What the longest runs say."""

    intervals: dict[str, Interval]
    """Goodput (requests/s) and its 95 % interval of each finalist that has one."""
    mean_gpus: dict[str, float]
    """GPUs that each of those holds at its goodput, mean over time."""
    unsettled: dict[str, str]
    """What is known of the goodput of each of the others, in words."""
    verdicts: dict[str, Verdict]
    """How each search ended."""
    num_requests: int
    """Requests simulated."""


def settle(
    scenario: Scenario,
    starts: Mapping[str, float | Located],
    *,
    tolerances: Mapping[str, float],
    seed: int,
    runner: Runner,
    done: Callable[[Cell], None] | None = None,
) -> Finals:
    """Settle the goodputs of some strategies of `scenario` on the same requests.

    Parameters
    ----------
    scenario : Scenario
        With these strategies among others.
    starts : mapping of str to float or Located
        Which, and where their searches start (`studies.goodput.find`).
    tolerances : mapping of str to float
        Wanted half width of the 95 % interval of each, over the goodput.
    seed : int
        Decides the requests: the k-th replication of all of them is the same.
    runner : Runner
        Does the runs.
    done : callable, optional
        Called with each run that has ended.

    Notes
    -----
    Runs are no longer than `LONGEST`: at the edge of stability, where a queue may still grow after
    hours, the interval is left wider than asked, or the race's estimate has to do.
    """
    final = Finals(intervals={}, mean_gpus={}, unsettled={}, verdicts={}, num_requests=0)
    for tolerance in sorted({tolerances[name] for name in starts}):
        own = {name: start for name, start in starts.items() if tolerances[name] == tolerance}
        try:
            found = find(
                scenario.only(*own),
                seed=seed,
                tolerance=tolerance,
                max_requests=LONGEST,
                simulate=functools.partial(_simulate, runner=runner, done=done),
                starts=own,
            )
        except DataError as error:
            if not str(error).startswith("no strategy meets the targets"):
                raise
            final.unsettled.update(dict.fromkeys(own, str(error).partition(". ")[0]))
        else:
            final = _with(final, found)
    return final


def _simulate(
    scenario: Scenario,
    cells: Sequence[Cell],
    *,
    runner: Runner,
    done: Callable[[Cell], None] | None,
) -> list[Outcome]:
    """Do runs of a search and tell of each."""
    return runner.cells(simulate_cell, scenario, cells, made=Outcome, done=done)


def _with(final: Finals, found: Found) -> Finals:
    """Return `final` with what a search found."""
    num = sum(verdict.num_requests for verdict in found.verdicts.values())
    intervals = {
        name: verdict.goodput
        for name, verdict in found.verdicts.items()
        if verdict.goodput is not None
    }
    words = {
        name: ending(verdict, found.settings) or verdict.status
        for name, verdict in found.verdicts.items()
        if name not in intervals
    }
    return Finals(
        intervals=final.intervals | intervals,
        mean_gpus=final.mean_gpus | {name: found.mean_gpus(name) for name in intervals},
        unsettled=final.unsettled | words,
        verdicts=final.verdicts | found.verdicts,
        num_requests=final.num_requests + num,
    )
