"""The finalists: goodputs to the wanted tolerance, and pairs told apart or not."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from simcluster.config import TARGETS
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
from simcluster.studies.goodput.pairs import INDIFFERENCE
from simcluster.studies.goodput.tables import collapses, ending, low_loads

LONGEST: Final = 20_000
"""Requests of the longest run."""
_ANY: Final = 0.5  # difference within which a pair is not worth another run


@dataclass(frozen=True, slots=True, kw_only=True)
class Finals:
    """What the longest runs say."""

    intervals: dict[str, Interval]
    """Goodput (requests/s) and its 95 % interval of each finalist that has one."""
    mean_gpus: dict[str, float]
    """GPUs that each of those holds at its goodput, mean over time."""
    within: dict[str, dict[str, float]]
    """Of each of those the share of the requests within each latency target there (`TARGETS`)."""
    unsettled: dict[str, str]
    """What is known of the goodput of each of the others, in words."""
    notes: tuple[str, ...]
    """Who collapses, and where."""
    verdicts: dict[str, Verdict]
    """How each search ended."""
    num_requests: int
    """Requests simulated."""


NONE: Final = Finals(
    intervals={},
    mean_gpus={},
    within={},
    unsettled={},
    notes=(),
    verdicts={},
    num_requests=0,
)
"""Before anything is settled."""


def settle(
    scenario: Scenario,
    starts: Mapping[str, float | Located],
    *,
    tolerances: Mapping[str, float],
    seed: int,
    runner: Runner,
    indifference: float = INDIFFERENCE,
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
    indifference : float
        Difference of two goodputs, as a share, within which either may be taken: pairs of the
        narrowest tolerance that are neither decided nor within it get more replications.
    done : callable, optional
        Called with each run that has ended.

    Notes
    -----
    Runs are no longer than `LONGEST`: at the edge of stability, where a queue may still grow after
    hours, the interval is left wider than asked, or the race's estimate has to do.
    """
    final = NONE
    for tolerance in sorted({tolerances[name] for name in starts}):
        own = {name: start for name, start in starts.items() if tolerances[name] == tolerance}
        try:
            found = find(
                scenario.only(*own),
                seed=seed,
                tolerance=tolerance,
                max_requests=LONGEST,
                indifference=indifference if tolerance == min(tolerances.values()) else _ANY,
                simulate=functools.partial(_simulate, runner=runner, done=done),
                starts=own,
            )
        except DataError as error:
            if not str(error).startswith("no strategy meets the targets"):
                raise
            words = str(error).partition(". ")[0]
            lost = dataclasses.replace(NONE, unsettled=dict.fromkeys(own, words))
            final = merged(final, lost)
        else:
            final = merged(final, _of(found))
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


def merged(first: Finals, second: Finals) -> Finals:
    """Return what two finals say together."""
    return Finals(
        intervals=first.intervals | second.intervals,
        mean_gpus=first.mean_gpus | second.mean_gpus,
        within=first.within | second.within,
        unsettled=first.unsettled | second.unsettled,
        notes=first.notes + second.notes,
        verdicts=first.verdicts | second.verdicts,
        num_requests=first.num_requests + second.num_requests,
    )


def _of(found: Found) -> Finals:
    """Return what a search has found."""
    goodputs = {name: verdict.goodput for name, verdict in found.verdicts.items()}
    known = {name: goodput for name, goodput in goodputs.items() if goodput is not None}
    return Finals(
        intervals=known,
        mean_gpus={name: found.mean_gpus(name) for name in known},
        within={name: _within(found, name) for name in known},
        unsettled={
            name: ending(verdict, found.settings) or verdict.status
            for name, verdict in found.verdicts.items()
            if name not in known
        },
        notes=tuple(
            f"{name}: {words}."
            for name, verdict in found.verdicts.items()
            for words in (*collapses(verdict), *([low_loads(verdict)] if verdict.dips else ()))
        ),
        verdicts=found.verdicts,
        num_requests=sum(verdict.num_requests for verdict in found.verdicts.values()),
    )


def _within(found: Found, name: str) -> dict[str, float]:
    """Return the shares within each latency target at a goodput, as far as runs say."""
    verdict = found.verdicts[name]
    shares = {key: verdict.share_at_goodput(f"{key}_attainment", found.settings) for key in TARGETS}
    return {key: share for key, share in shares.items() if not math.isnan(share)}
