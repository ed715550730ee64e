"""Runs that fall into two groups: a plan that works until it collapses, and does not recover.

Attainment of an ordinary queue falls smoothly as its load rises, and what a run shows varies around
one value. A *metastable* plan has two states at one rate: in one nearly all requests are within
their targets; once chance has filled its memory or its queue, work that is done twice (preemptions,
retries) keeps it full, and hardly any are. A mean over runs of both kinds says how long the runs
were, not what the plan sustains (Bronson et al., Metastable failures in distributed systems, HotOS
2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from simcluster.studies.goodput.estimate import CONFIDENCE
from simcluster.studies.goodput.probe import PARTS, Outcome, Probe
from simcluster.units import FloatArray

DEEP: Final = 3.0
"""Log odds short of the target at which a tenth of a run is fallen: of 95 %, below 49 %."""
NEAR: Final = 1.0
"""Log odds short of the target down to which the end of a run is healthy."""
_LAST: Final = 2  # tenths at the end of a run that say how it ended
_EXCESS: Final = 2.5  # roots of the requests of a run: what chance alone adds to a queue
_UNQUIET: Final = 0.1  # share of the tenths before a fall that may be short of the target
_SLOWER: Final = 0.04  # share of the offered rate by which a collapsed plan serves less, at least
_BETWEEN: Final = 0.25  # share of the runs that may be neither healthy nor fallen
_RECOVERED: Final = 0.5  # share of falls that end again from which they are no collapse


@dataclass(frozen=True, slots=True, kw_only=True)
class Falls:
    """Collapses seen at one rate."""

    rate_rps: float
    """Offered rate (requests/s)."""
    num_runs: int
    num_fallen: int
    """Runs there, and those that fell."""
    num_recovered: int
    """Of the fallen those that were healthy again at their end."""
    healthy_s: float
    """Time of operation before the first fall, all runs together (s)."""
    preemptions: float = 0.0
    """Preemptions in a fallen run, mean."""
    full: str = ""
    """Pool whose KV cache was full in the fallen runs; empty where none was."""

    @property
    def hours(self) -> float:
        """Hours of operation before the first fall, all runs together."""
        return self.healthy_s / 3600

    @property
    def per_hour(self) -> tuple[float, float, float]:
        """Falls per hour of operation: the maximum-likelihood value and its 95 % interval.

        Notes
        -----
        Falls come as a Poisson process of healthy time; the interval is the exact one (Garwood,
        Biometrika 28, 1936). Without a fall it is one-sided: the upper end is 3.0 over the hours.
        """
        from scipy import stats

        num, tail = self.num_fallen, (1 - CONFIDENCE) / 2
        if not self.hours > 0:
            return math.nan, 0.0, math.inf
        if num == 0:
            return 0.0, 0.0, -math.log(1 - CONFIDENCE) / self.hours
        low = float(stats.chi2.ppf(tail, 2 * num)) / 2
        high = float(stats.chi2.ppf(1 - tail, 2 * num + 2)) / 2
        return num / self.hours, low / self.hours, high / self.hours


def falls_at(probe: Probe, targets: Sequence[float]) -> Falls:
    """Count the runs at one rate that fell.

    Parameters
    ----------
    probe : Probe
        The runs.
    targets : sequence of float
        Wanted share of each criterion, 0 to 1.
    """
    firsts = [_first_deep(_margins(one, targets)) for one in probe.outcomes]
    fallen = [k for k, first in enumerate(firsts) if first is not None]
    span_s = probe.num_requests / probe.rate_rps
    shares = [1.0 if first is None else first / PARTS for first in firsts]
    own = [probe.outcomes[k] for k in fallen]
    recovered = sum(_ends_healthy(_margins(one, targets)) for one in own)
    full, preemptions = "", 0.0
    if own:
        preemptions = sum(o.statistics.get("preemptions", 0.0) for o in own) / len(own)
        usage = {
            name: min(o.statistics.get(name, 0.0) for o in own)
            for name in own[0].statistics
            if name.startswith("peak_kv_usage.")
        }
        top = max(usage, key=lambda name: usage[name], default="")
        full = top.partition(".")[2] if top and usage[top] > 0.95 else ""
    return Falls(
        rate_rps=probe.rate_rps,
        num_runs=len(firsts),
        num_fallen=len(fallen),
        num_recovered=recovered,
        healthy_s=span_s * sum(shares),
        preemptions=preemptions,
        full=full,
    )


def in_two_groups(probe: Probe, targets: Sequence[float]) -> bool:
    """Tell whether the runs at one rate are of two kinds: healthy ones, and collapsed ones.

    Notes
    -----
    A run has *collapsed* if it was healthy for a tenth of its time at least, its last two tenths
    are `DEEP` log odds short of the target, and its queue there is longer than that of the healthy
    runs by more than chance adds: a few roots of the number of requests. Nearly all others must
    be healthy to the end, or fallen. Falls that mostly recover are excursions of an ordinary queue
    near its limit, and no collapse; so are falls of a plan whose attainment varies widely without
    them. Nor is a queue that serves its offered rate while it is long:
    chance in the arrivals filled it, and will empty it.
    """
    margins = [_margins(one, targets) for one in probe.outcomes]
    if any(not len(own) for own in margins):
        return False  # nobody noted the course of the runs
    healthy = [k for k, own in enumerate(margins) if _is_healthy(own)]
    fallen = [k for k, own in enumerate(margins) if _first_deep(own) is not None]
    between = len(margins) - len(healthy) - len(fallen)
    if not healthy or not fallen or between > _BETWEEN * len(margins):
        return False
    usual = float(np.median([probe.outcomes[k].backlogs[-1] for k in healthy]))
    least = usual + _EXCESS * math.sqrt(probe.num_requests)
    collapsed = [
        k
        for k in fallen
        if (_first_deep(margins[k]) or 0) > 0
        and (margins[k][-_LAST:] <= -DEEP).all()
        and probe.outcomes[k].backlogs[-1] >= least
    ]
    recovered = sum(_ends_healthy(margins[k]) for k in fallen)
    if not collapsed or recovered >= _RECOVERED * len(fallen):
        return False
    # Before a fall, and where there is none, all is well.
    quiet = [
        m[: PARTS if (first := _first_deep(m)) is None else max(first - 1, 0)] for m in margins
    ]
    if (np.concatenate(quiet) < -NEAR).mean() > _UNQUIET:
        return False
    spans = [(probe.outcomes[k], _first_deep(margins[k]) or 0) for k in collapsed]
    served = sum(sum(one.served[first:]) for one, first in spans)
    time_s = sum(one.end_s * (1 - first / PARTS) for one, first in spans)
    # Beyond chance in what requests ask for: one standard error, were they independent.
    return served + math.sqrt(served) < (1 - _SLOWER) * probe.rate_rps * time_s


def _margins(outcome: Outcome, targets: Sequence[float]) -> FloatArray:
    """Log odds of each tenth of a run less those wanted, of the criterion that is worst.

    Shape ``(PARTS,)``; empty where the course of the run is not known. Kept finite as by half a
    request more that met and that missed.
    """
    if not outcome.course:
        return np.empty(0)
    shares = np.array(outcome.course).reshape(PARTS, len(targets))
    wanted = np.array(targets)
    size = max(1.0, min(outcome.counted) / PARTS)
    odds = np.log((shares * size + 0.5) / ((1 - shares) * size + 0.5))
    worst: FloatArray = (odds - np.log(wanted / (1 - wanted))).min(axis=1)
    return worst


def _first_deep(margins: FloatArray) -> int | None:
    """Return the first tenth of a run that is fallen; None if none is."""
    deep = np.flatnonzero(margins <= -DEEP)
    return int(deep[0]) if len(deep) else None


def _ends_healthy(margins: FloatArray) -> bool:
    return bool((margins[-_LAST:] >= -NEAR).all())


def _is_healthy(margins: FloatArray) -> bool:
    """Whether no tenth of a run is fallen, and its last ones are about within the target."""
    return _first_deep(margins) is None and _ends_healthy(margins)
