"""The finalists: goodputs to the wanted tolerance, and pairs told apart or not."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from simcluster.runs.executor import Runner
from simcluster.scenario.scenario import Scenario
from simcluster.studies.goodput import Interval, Located, Verdict, find, simulate_cells
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
    tolerance: float,
    seed: int,
    runner: Runner,
) -> Finals:
    """Settle the goodputs of some strategies of `scenario` on the same requests.

    Parameters
    ----------
    scenario : Scenario
        With these strategies among others.
    starts : mapping of str to float or Located
        Which, and where their searches start (`studies.goodput.find`).
    tolerance : float
        Wanted half width of the 95 % intervals over the goodput.
    seed : int
        Decides the requests.
    runner : Runner
        Does the runs.

    Notes
    -----
    Runs are no longer than `LONGEST`: at the edge of stability, where a queue may still grow after
    hours, the interval is left wider than asked, or the race's estimate has to do.
    """
    few = scenario.only(*starts)
    found = find(
        few,
        seed=seed,
        tolerance=tolerance,
        max_requests=LONGEST,
        simulate=functools.partial(simulate_cells, runner=runner),
        starts=starts,
    )
    return Finals(
        intervals={
            name: verdict.goodput
            for name, verdict in found.verdicts.items()
            if verdict.goodput is not None
        },
        mean_gpus={
            name: found.mean_gpus(name)
            for name, verdict in found.verdicts.items()
            if verdict.goodput is not None
        },
        unsettled={
            name: ending(verdict, found.settings)
            for name, verdict in found.verdicts.items()
            if verdict.goodput is None
        },
        verdicts=found.verdicts,
        num_requests=sum(verdict.num_requests for verdict in found.verdicts.values()),
    )
