"""Which of two strategies keeps more requests within the targets, rate by rate."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from simcluster.frames.goodput import three_digits
from simcluster.runs.cell import Cell
from simcluster.studies.goodput.estimate import t_p_value
from simcluster.studies.goodput.probe import Outcome
from simcluster.studies.goodput.runs import Found, Simulate, replication_seed
from simcluster.units import FloatArray

LEVEL: Final = 0.05
"""p-values below this decide."""
_FIRST: Final = 2_000_000  # number of the first replication: none that a goodput rests on


@dataclass(frozen=True, slots=True, kw_only=True)
class AtRate:
    """Two strategies at one offered rate, on the same requests."""

    rate_rps: float
    """Offered rate (requests/s)."""
    difference: float
    """Attainment of the first less that of the second, mean over the replications."""
    p_value: float
    """Two-sided, of no difference; of this pair at this rate alone."""

    def winner(self, first: str, second: str) -> str | None:
        """Return the name of the better one, None where it is undecided."""
        if self.p_value >= LEVEL:
            return None
        return first if self.difference > 0 else second


@dataclass(frozen=True, slots=True, kw_only=True)
class ByRate:
    """Two strategies at several rates, lowest first."""

    first: str
    second: str
    at: tuple[AtRate, ...]
    unit: str = "req/s"
    """Of the rates, in words; in a closed loop they are numbers of users."""

    def __str__(self) -> str:
        """Return the pair in words, such as ``A beats B up to 6.20 req/s, undecided above``."""
        stretches = [
            (winner, [point.rate_rps for point in points])
            for winner, points in itertools.groupby(
                self.at, key=lambda point: point.winner(self.first, self.second)
            )
        ]
        words = []
        for number, (winner, rates) in enumerate(stretches):
            loser = self.second if winner == self.first else self.first
            text = "undecided" if winner is None else f"{winner} beats {loser}"
            low, high = three_digits(rates[0]), three_digits(rates[-1])
            if 0 < number == len(stretches) - 1:
                place = f"from {low} {self.unit} on"
            elif number == 0 < len(stretches) - 1:
                place = f"up to {high} {self.unit}"
            else:
                place = (
                    f"at {low} {self.unit}" if low == high else f"from {low} to {high} {self.unit}"
                )
            words.append(f"{text} {place}")
        return f"{self.first}, {self.second}: {'; '.join(words)}"


def paired_p_value(differences: FloatArray) -> float:
    """Return the two-sided p-value of a mean of 0 (Student's t, as many values as replications)."""
    size = len(differences)
    error = float(differences.std(ddof=1)) / math.sqrt(size)
    mean = float(differences.mean())
    if error == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return t_p_value(mean / error, size - 1)


def compare_by_rate(
    found: Found, simulate: Simulate, *, rates_rps: Sequence[float] | None = None
) -> list[ByRate]:
    """Compare the strategies at common rates, on the same requests.

    Parameters
    ----------
    found : Found
        Their goodputs.
    simulate : callable
        Runs the cells.
    rates_rps : sequence of float, optional
        Offered rates (requests/s); default: the goodputs themselves.

    Returns
    -------
    list of ByRate
        Every pair of strategies that have a goodput; replications that no goodput rests on.
    """
    names = [n for n, v in found.verdicts.items() if v.estimate is not None]
    if len(names) < 2:
        return []
    is_users = found.unit == "users"
    goodputs = [
        max(1.0, own.value) if is_users else own.value for own in map(found.goodput, names) if own
    ]
    rates = sorted(set(goodputs if rates_rps is None else rates_rps))
    length = max(found.verdicts[name].stages[-1].low.num_requests for name in names)
    seeds = [replication_seed(found.seed, _FIRST + k) for k in range(found.settings.replications)]
    keys = list(itertools.product(names, rates))
    cells = [Cell(name, rate, seed, length) for name, rate in keys for seed in seeds]
    came = iter(simulate(found.simulated, cells))
    shares = {key: np.array([_share(next(came)) for _ in seeds]) for key in keys}
    return [
        ByRate(
            first=first,
            second=second,
            unit="users" if is_users else "req/s",
            at=tuple(
                AtRate(
                    rate_rps=rate,
                    difference=float((shares[first, rate] - shares[second, rate]).mean()),
                    p_value=paired_p_value(shares[first, rate] - shares[second, rate]),
                )
                for rate in rates
            ),
        )
        for first, second in itertools.combinations(names, 2)
    ]


def _share(outcome: Outcome) -> float:
    """Attainment of one run: of the criterion that is met least."""
    met, counted = outcome.least
    return met / max(counted, 1)
