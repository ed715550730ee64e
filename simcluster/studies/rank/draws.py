"""Goodputs of candidates on several draws of requests, and how far the draws agree."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import numpy as np

from simcluster.studies.goodput import Interval
from simcluster.studies.goodput.estimate import t_quantile
from simcluster.studies.rank.race import Crossing

_MOST_LOG: Final = 700.0  # logarithm of what is still a number


class Draws:
    """Searches of each candidate, one for each draw; all candidates meet the same draws."""

    def __init__(self) -> None:
        self._crossings: dict[str, list[Crossing]] = {}

    def add(self, name: str, crossing: Crossing) -> None:
        """Note the search of a candidate on the next draw."""
        self._crossings.setdefault(name, []).append(crossing)

    def __getitem__(self, name: str) -> list[Crossing]:
        return self._crossings[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._crossings)

    def __len__(self) -> int:
        return len(self._crossings)

    def __contains__(self, name: object) -> bool:
        return name in self._crossings

    @property
    def sound(self) -> list[str]:
        """Candidates that met the targets at some rate on each draw."""
        return [n for n, own in self._crossings.items() if all(c.goodput_rps > 0 for c in own)]

    def mean_log(self, name: str) -> float:
        """Mean over the draws of the log goodput; minus infinity if one of them has none."""
        values = [c.goodput_rps for c in self[name]]
        return float(np.mean([math.log(value) if value > 0 else -math.inf for value in values]))

    def interval_of(self, name: str, bias: float) -> Interval:
        """Return the goodput of a sound candidate, whose logarithm `bias` may have shifted."""
        logs = [math.log(c.goodput_rps) for c in self[name]]
        error = float(np.std(logs, ddof=1)) / math.sqrt(len(logs))
        return around(
            math.exp(self.mean_log(name)), t_quantile(0.975, len(logs) - 1) * error + bias
        )

    def spread(self) -> tuple[float, int]:
        """Standard deviation between draws of a log goodput less that of the others, and its df."""
        logs = np.array([[math.log(c.goodput_rps) for c in self[name]] for name in self.sound])
        if not len(logs):
            return math.inf, 1  # nothing says how much
        rest = logs - logs.mean(axis=1, keepdims=True)
        degrees = logs.shape[1] - 1
        if len(logs) > 1:
            # What a draw does to all candidates alike is not between them.
            rest = rest - logs.mean(axis=0) + logs.mean()
            degrees *= logs.shape[0] - 1
        return float(np.sqrt((rest**2).sum() / degrees)), degrees

    def half_width_of_ratios(self, level: float, times: float = 1.0) -> float:
        """Half width (log) of the interval of a ratio of two goodputs, from all draws.

        Parameters
        ----------
        level : float
            Probability that the ratio is not above the upper end.
        times : float
            Variance of what is compared over the variance of the mean of all draws.
        """
        spread, degrees = self.spread()
        num = max(map(len, self._crossings.values()), default=1)
        return t_quantile(level, degrees) * spread * math.sqrt(2 * times / num)

    def half_width(self) -> float:
        """Half width of the 95 % interval of a ratio, by Bonferroni for all pairs with the best."""
        return self.half_width_of_ratios(1 - 0.025 / max(1, len(self) - 1))


def around(value: float, half: float) -> Interval:
    """Return the interval of a value whose logarithm is known to plus and minus `half`."""
    return Interval(value=value, low=value * exp(-half), high=value * exp(half))


def exp(x: float) -> float:
    """Return e to the power of `x`; infinity where that is no number."""
    return math.exp(x) if x < _MOST_LOG else math.inf
