"""The finalists: goodputs to the wanted tolerance, and pairs told apart or not."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from simcluster.executor import outcomes
from simcluster.goodput_search import student
from simcluster.planner.race import Crossing, cross
from simcluster.scenario import Scenario
from simcluster.units import FloatArray

_DRAWS: Final = (4, 8, 16)  # of requests, until the intervals are narrow enough
_STEP: Final = 1.04


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A goodput and its 95 % interval (requests/s)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finals:
    """What the longest runs say.

    Attributes
    ----------
    intervals : dict of str to Interval
        Of each finalist.
    decided, undecided : tuple of str
        Pairs that are told apart at 95 % and those that are not, in words.
    num_requests : int
        Requests simulated.
    """

    intervals: dict[str, Interval]
    decided: tuple[str, ...]
    undecided: tuple[str, ...]
    num_requests: int


def settle(
    scenarios: Mapping[str, Scenario],
    guesses: Mapping[str, float],
    *,
    num_requests: int,
    tolerance: float,
    seed: int,
    jobs: int | None = None,
    dask: str | None = None,
) -> Finals:
    """Settle the goodputs of a few candidates on the same draws of requests.

    Parameters
    ----------
    scenarios : mapping of str to Scenario
        By candidate, each with that strategy alone.
    guesses : mapping of str to float
        About their goodputs (requests/s).
    num_requests : int
        Requests of a run.
    tolerance : float
        Wanted half width of the 95 % intervals over the goodput.
    seed : int
        Draws count up from it.
    jobs, dask : int, str, optional
        As in `executor.outcomes`.

    Notes
    -----
    Intervals are Student's, of the logarithm of the goodput over independent draws. Draws are added
    in steps, at most until the intervals are as narrow as wanted.
    """
    found: dict[tuple[str, int], Crossing] = {}
    for draws in _DRAWS:
        missing = [(n, d) for d in range(draws) for n in scenarios if (n, d) not in found]
        calls = [(n, d, scenarios[n], guesses[n], seed + d, num_requests) for n, d in missing]
        for name, draw, crossing in outcomes(_cross, calls, jobs=jobs, dask=dask):
            found[name, draw] = crossing
        logs = {
            n: np.log([max(found[n, d].goodput_rps, 1e-9) for d in range(draws)]) for n in scenarios
        }
        if max(half_width(own) for own in logs.values()) <= tolerance:
            break
    intervals = {name: interval(own) for name, own in logs.items()}
    pairs = list(itertools.combinations(sorted(logs, key=lambda n: -logs[n].mean()), 2))
    told = {pair: compare(pair, logs) for pair in pairs}
    return Finals(
        intervals=intervals,
        decided=tuple(text for sure, text in told.values() if sure),
        undecided=tuple(text for sure, text in told.values() if not sure),
        num_requests=sum(c.num_requests for c in found.values()),
    )


def _cross(
    name: str, draw: int, scenario: Scenario, guess_rps: float, seed: int, num_requests: int
) -> tuple[str, int, Crossing]:
    crossing = cross(
        scenario,
        guess_rps=guess_rps,
        seed=seed,
        num_requests=num_requests,
        step=_STEP,
        near=_STEP,
    )
    return name, draw, crossing


def half_width(values: FloatArray) -> float:
    """Return half the width of Student's 95 % interval of the mean of independent values."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return student.quantile(0.975, len(values) - 1) * error


def interval(logs: FloatArray) -> Interval:
    """Return the goodput and its interval from logarithms over draws."""
    centre, half = float(logs.mean()), half_width(logs)
    return Interval(
        value=math.exp(centre), low=math.exp(centre - half), high=math.exp(centre + half)
    )


def compare(pair: tuple[str, str], logs: Mapping[str, FloatArray]) -> tuple[bool, str]:
    """Return whether the first of a pair is better at 95 %, draw by draw, and the words for it."""
    first, second = pair
    gaps = logs[first] - logs[second]
    gain, half = float(gaps.mean()), half_width(gaps)
    percent = [100 * math.expm1(x) for x in (gain, gain - half, gain + half)]
    if gain > half:
        return True, (
            f"{first} beats {second} by {percent[0]:.2g} % (95 %: {percent[1]:.2g} to "
            f"{percent[2]:.2g})"
        )
    return False, (
        f"{first} and {second}: undecided, {percent[0]:+.2g} % (95 %: {percent[1]:+.2g} to "
        f"{percent[2]:+.2g})"
    )
