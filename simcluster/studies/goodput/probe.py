"""Runs of a search: which it wants, what each gives, and what those at one rate show together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from simcluster.studies.goodput.estimate import Counts, t_quantile
from simcluster.studies.goodput.rules import Settings
from simcluster.units import FloatArray

SATURATED: Final = 0.01
"""Share of the arrivals by which the queue grows, above which it grows without bound."""
PARTS: Final = 10
"""Equal parts of the time of arrivals in which the course of a run is noted."""


class Wanted(NamedTuple):
    """A run: offered rate (requests/s), number of the replication, number of requests."""

    rate_rps: float
    replication: int
    num_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run gave."""

    counted: tuple[int, ...]
    """Requests after the warm-up that each criterion is about."""
    met: tuple[int, ...]
    """Of them those that met it."""
    residence_s: float
    """Mean time in the system (s) of those that finished; NaN if none did."""
    arrivals: float
    """Logarithm of the rate at which requests came after the warm-up over the rate offered."""
    drift: float
    """Share within the targets less that of the second half of the counted arrivals."""
    growth: float
    """Arrivals less departures in the second half of the arrivals, over the arrivals."""
    controls: tuple[float, ...] = ()
    """Logarithms of other sums of what they asked for over their expectations."""
    course: tuple[float, ...] = ()
    """Share within each criterion of the requests that came in each of `PARTS` parts of the time,
    warm-up included: all criteria of the first part, then of the second, and so on. 1 where none
    came; empty where nobody noted it."""
    backlogs: tuple[int, ...] = ()
    """Requests in the system at the end of each of these parts."""
    served: tuple[int, ...] = ()
    """Requests that left it in each of them."""
    end_s: float = math.nan
    """Last arrival (s): the end of the last part."""
    statistics: dict[str, float] = field(default_factory=dict)
    """To be averaged and shown: latencies (s), separate attainments, tokens."""

    @property
    def least(self) -> tuple[int, int]:
        """Requests that met the criterion that is met least, and those it is about."""
        pairs = list(zip(self.met, self.counted, strict=True))
        return min(pairs, key=lambda pair: pair[0] / pair[1] if pair[1] else 1.0)


@dataclass(frozen=True, slots=True)
class Probe:
    """Runs at one rate with one length, each with a seed of its own."""

    rate_rps: float
    num_requests: int
    outcomes: tuple[Outcome, ...]
    replications: tuple[int, ...]

    @property
    def counts(self) -> Counts:
        """Requests counted, and those within the targets."""
        return Counts(
            rate_rps=self.rate_rps,
            counted=np.array([o.counted for o in self.outcomes], dtype=np.float64),
            met=np.array([o.met for o in self.outcomes], dtype=np.float64),
            arrivals=np.array([o.arrivals for o in self.outcomes]),
            controls=np.array([o.controls for o in self.outcomes], dtype=np.float64),
        )

    def shares(self, settings: Settings) -> FloatArray:
        """Attainment of each run, of the criterion that is farthest below its target.

        As if that target were ``settings.target``: its odds over those wanted are kept. Shape
        ``(num_runs,)``.
        """
        counts = self.counts
        odds, wanted = counts.logits().mean(axis=1), settings.log_odds(len(self.outcomes[0].met))
        worst = int(np.argmin(odds - wanted))
        share = counts.met[:, worst] / np.maximum(counts.counted[:, worst], 1)
        factor = settings.target / (1 - settings.target) / math.exp(wanted[worst])
        result: FloatArray = share * factor / (share * factor + 1 - share)
        return result

    @property
    def log_odds(self) -> float:
        """Of the attainment of the criterion that is met least, all runs together."""
        return float(self.counts.logits().mean(axis=1).min())

    def margin(self, settings: Settings) -> float:
        """Log odds of attainment less those wanted, of the criterion where that is least."""
        odds = self.counts.logits().mean(axis=1)
        return float((odds - settings.log_odds(len(odds))).min())

    def margin_at_least(self, settings: Settings) -> float:
        """Return the lower end of the one-sided 95 % interval of `margin`; of one run nothing."""
        size = len(self.outcomes)
        if size == 1:
            return -math.inf
        odds = self.counts.logits()
        error = odds.std(axis=1, ddof=1) / math.sqrt(size)
        least = odds.mean(axis=1) - t_quantile(0.95, size - 1) * error
        return float((least - settings.log_odds(len(odds))).min())

    @property
    def growth(self) -> float:
        """Share of the arrivals by which the queue grows, mean over the runs."""
        return sum(o.growth for o in self.outcomes) / len(self.outcomes)

    def grows_beyond(self, share: float) -> bool:
        """Whether the queue grows by over `share` of the arrivals beyond chance (95 %, one-sided).

        A single run says nothing about chance: False.
        """
        size = len(self.outcomes)
        if size == 1:
            return False
        error = float(np.std([o.growth for o in self.outcomes], ddof=1)) / math.sqrt(size)
        return self.growth - t_quantile(0.95, size - 1) * error > share

    @property
    def saturated(self) -> bool:
        """Whether the queue grows by over 1 % of the arrivals: without bound."""
        return self.grows_beyond(SATURATED)

    def mean(self, name: str) -> float:
        """Mean of a statistic over the runs that have it, NaN if none has."""
        values = [o.statistics.get(name, math.nan) for o in self.outcomes]
        known = [v for v in values if not math.isnan(v)]
        return sum(known) / len(known) if known else math.nan

    @property
    def residence_s(self) -> float:
        """Mean time in the system (s), of the runs that know it; 0 if none does."""
        known = [o.residence_s for o in self.outcomes if not math.isnan(o.residence_s)]
        return sum(known) / len(known) if known else 0.0

    def least_requests(self, settings: Settings, residences: float, least: int = 0) -> int:
        """Requests of a run at this rate that lasts `residences` mean residence times."""
        needed = self.rate_rps * max(residences * self.residence_s, settings.least_s)
        return min(max(least, math.ceil(needed)), settings.max_requests)
