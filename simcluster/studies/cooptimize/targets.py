"""The targets of ``[slo]`` in a co-optimisation: long runs that judge them, and the verdict."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np

from simcluster.config import SloConfig
from simcluster.frames.metrics import binned_average, count_over_time, met_targets
from simcluster.frames.schema import Columns
from simcluster.runs.cell import Cell
from simcluster.runs.simulate import simulate
from simcluster.scenario.scenario import Scenario
from simcluster.studies.goodput.rules import RULES
from simcluster.studies.goodput.runs import counted_window
from simcluster.units import FloatArray

MOST_COUNTED: Final = 200_000
"""Requests that a long run counts, at most."""
FEWEST_RUNS, MOST_RUNS = 3, 12
"""Seeds of a finalist: at first, and where a target is still in doubt."""
_LEAST_SHARE: Final = 1e-4
"""Shares as near to 0 or 1 are as good as there, in log odds."""
_GROWTH: Final = 1.3
"""Requests in the system in the last third over those in the first from which a run may be
overloaded; beyond chance too."""
_CERTAIN_GROWTH: Final = 3.0
"""The same whatever the scatter."""

Status = Literal["kept", "missed", "overloaded", "in doubt"]


@dataclass(frozen=True, slots=True)
class Judged:
    """A simulation of a plan."""

    latency_s: float
    """The wanted percentile of the wanted latency (s)."""
    quality: float
    """Mean expected quality."""
    shares: tuple[float, ...] = ()
    """Share of the counted requests within each of `counted_of`."""
    num_counted: int = 0
    """Requests counted."""
    in_system: tuple[float, float] | None = None
    """Requests in the system, mean over time: in the first and the last third of what is counted
    of a long run; None of other runs, which fill up from nothing."""
    residence_s: float = 0.0
    """Mean time of a finished request in the system (s)."""


def counted_of(slo: SloConfig) -> tuple[str, ...]:
    """Return the targets that a plan must keep (`SloConfig.counted`); none where none is set."""
    return slo.counted if slo.has_targets else ()


def wanted_of(slo: SloConfig) -> FloatArray:
    """Return the share (0 to 1) that each of `counted_of` must reach."""
    return np.array([slo.wanted(key) for key in counted_of(slo)])


def log_odds(shares: FloatArray | Sequence[float]) -> FloatArray:
    """Return the log odds of shares, finite.

    >>> log_odds([0.5, 0.9]).round(2).tolist()
    [0.0, 2.2]
    """
    inside = np.clip(shares, _LEAST_SHARE, 1 - _LEAST_SHARE)
    return np.asarray(np.log(inside / (1 - inside)))


def shares_within(columns: Columns, slo: SloConfig, counted: np.ndarray) -> tuple[float, ...]:
    """Return the share of the counted requests within each of `counted_of`; 0 of none."""
    met = met_targets(columns, slo)
    return tuple(
        float(met[key][counted].mean()) if counted.any() else 0.0 for key in counted_of(slo)
    )


def counted_of_run(arrival_s: FloatArray) -> np.ndarray:
    """Return which requests of a long run are counted, as a search for a goodput does."""
    first, last = float(arrival_s.min()), float(arrival_s.max())
    return counted_window(arrival_s - first, last - first)


def num_requests(rate_rps: float, residence_s: float, slo: SloConfig) -> int:
    """Return how many requests a long run has, warm-up included.

    It counts at least as many, over as many mean residence times, as a replication of a search for
    a goodput (`goodput.rules`), and as many times the TTFT target: a queue must have the time to
    build up beyond it.
    """
    least_s = RULES.residences * max(residence_s, slo.ttft_s or 0.0)
    counted = max(RULES.least_requests, math.ceil(rate_rps * least_s))
    return math.ceil(min(counted, MOST_COUNTED) / RULES.counted)


def judged(
    scenario: Scenario, cell: Cell, metric: str, percentile: float, slo: SloConfig
) -> Judged:
    """Simulate a plan: as long as the scenario says, or the requests of the cell in a long run.

    Parameters
    ----------
    scenario : Scenario
        The plan as a scenario.
    cell : Cell
        Rate, seed and length.
    metric : str
        Column of the wanted latency.
    percentile : float
        Which percentile of it.
    slo : SloConfig
        The targets to count.
    """
    long = cell.num_requests is not None
    if long:
        workload = dataclasses.replace(
            scenario.workload, num_requests=cell.num_requests, duration_s=None
        )
        run = dataclasses.replace(scenario.run, max_time_s=None)
        scenario = dataclasses.replace(scenario, workload=workload, run=run)
    requests = simulate(scenario, rate_rps=cell.rate_rps, seed=cell.seed).columns["requests"]
    arrival = requests["arrival_s"]
    if long:
        inside = counted_of_run(arrival)
    else:
        inside = arrival >= scenario.run.warmup_s
        inside &= arrival <= arrival.max() - scenario.run.cooldown_s
    shares = shares_within(requests, slo, inside)
    served = inside & (requests["status"] != "rejected")  # the others are too long for every plan
    finished = requests["status"][served] == "finished"
    values = np.where(finished, requests[metric][served], math.inf)
    values = values[~np.isnan(values)]
    latency = float(np.quantile(values, percentile / 100, method="higher"))
    stayed = (requests["last_output_s"] - arrival)[served & (requests["status"] == "finished")]
    return Judged(
        latency,
        float(np.mean(requests["quality"][served])),
        shares,
        int(inside.sum()),
        _in_system(requests, arrival[inside]) if long else None,
        float(stayed.mean()) if len(stayed) else math.inf,
    )


def _in_system(requests: Columns, arrivals_s: FloatArray) -> tuple[float, float] | None:
    """Return the mean number of requests in the system in the first and the last third."""
    start_s, end_s = float(arrivals_s.min()), float(arrivals_s.max())
    if end_s <= start_s:
        return None
    arrival = np.where(requests["status"] == "rejected", np.nan, requests["arrival_s"])
    times, counts = count_over_time(arrival, requests["last_output_s"])
    first, _, last = binned_average(times, counts, np.linspace(start_s, end_s, 4)).tolist()
    return first, last


def judged_of(shares: Sequence[float], in_system: Sequence[float] | None, **rest: Any) -> Judged:
    """Return what was recorded of a simulation."""
    levels = None if in_system is None else (in_system[0], in_system[1])
    return Judged(shares=tuple(shares), in_system=levels, **rest)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the long runs of a plan say of the targets."""

    status: Status
    """``kept``: beyond chance; ``in doubt``: neither kept nor missed beyond chance."""
    shares: tuple[float, ...]
    """Of each target, mean over the runs."""
    lows: tuple[float, ...]
    highs: tuple[float, ...]
    """Ends of their 99 % intervals."""
    in_system: tuple[float, float] | None
    """Mean number of requests in the system in the first and the last third of the runs."""

    def worst(self, wanted: FloatArray) -> int:
        """Return which target is farthest below its wanted share, in log odds."""
        return int(np.argmin(log_odds(self.shares) - log_odds(wanted)))


def verdict_of(runs: Sequence[Judged], wanted: FloatArray) -> Verdict:
    """Return what runs with different seeds say of the targets.

    A target is kept if the lower end of the 99 % interval of its share (Student's t over the runs,
    at least as wide as the binomial one of all requests) reaches the wanted share, missed if the
    upper end does not. A plan is overloaded if the number of requests in the system grows over the
    runs beyond chance.
    """
    shares = np.array([run.shares for run in runs])
    mean, num = shares.mean(axis=0), len(runs)
    counted = sum(run.num_counted for run in runs)
    binomial = mean * (1 - mean) / max(counted, 1)
    between = shares.var(axis=0, ddof=1) / num if num > 1 else np.full(mean.shape, np.inf)
    half = _student(_STUDENT_995, _BEYOND_995, num - 1) * np.sqrt(np.maximum(binomial, between))
    levels = np.array([run.in_system for run in runs if run.in_system is not None])
    status: Status = "in doubt"
    if len(levels) and _overloaded(*levels.T):
        status = "overloaded"
    elif (mean - half >= wanted).all():
        status = "kept"
    elif (mean + half < wanted).any():
        status = "missed"
    low, high = np.maximum(mean - half, 0), np.minimum(mean + half, 1)
    means = None if not len(levels) else (float(levels[:, 0].mean()), float(levels[:, 1].mean()))
    return Verdict(status, tuple(mean.tolist()), tuple(low.tolist()), tuple(high.tolist()), means)


def _overloaded(first: FloatArray, last: FloatArray) -> bool:
    """Whether the number of requests in the system grows over the runs beyond chance."""
    if last.mean() < _GROWTH * first.mean():
        return False
    if last.mean() >= _CERTAIN_GROWTH * first.mean():
        return True
    change = last - first
    if len(change) < 2:
        return True
    half = student_975(len(change) - 1) * float(change.std(ddof=1)) / math.sqrt(len(change))
    return bool(change.mean() > half)


_STUDENT_975: Final = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201)
_STUDENT_995: Final = (63.657, 9.925, 5.841, 4.604, 4.032, 3.707, 3.499, 3.355, 3.250, 3.169, 3.106)
"""Quantiles of Student's t from one degree of freedom on (Abramowitz and Stegun, table 26.10)."""


_BEYOND_975, _BEYOND_995 = (1.96, 2.7), (2.576, 5.9)
"""Beyond the table: the normal quantile, and what is added over the degrees of freedom, a little
more than Student's."""


def student_975(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t."""
    return _student(_STUDENT_975, _BEYOND_975, freedom)


def _student(table: Sequence[float], beyond: tuple[float, float], freedom: int) -> float:
    if freedom < 1:
        return math.inf
    if freedom <= len(table):
        return table[freedom - 1]
    return beyond[0] + beyond[1] / freedom
