"""Two strategies of a search compared, whatever their verdicts are."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from simcluster.studies.goodput.estimate import (
    Estimate,
    Interval,
    around,
    half_width,
    t_p_value,
)
from simcluster.studies.goodput.rules import SearchRules
from simcluster.studies.goodput.search import Verdict
from simcluster.units import FloatArray

INDIFFERENCE: Final = 0.03
"""Difference of two goodputs, as a share, within which either may be taken."""
_HOPEFUL: Final = (3.0, 1.25)
"""Times the most replications that a pair may need by its estimate and still be tried: the need is
estimated from few runs at first, from many later. Beyond it they would not settle it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Two strategies."""

    first: str
    second: str
    """Their names; the first has the higher goodput."""
    ratio: Interval
    """Goodput of the first over that of the second."""
    difference_rps: Interval
    """Goodput of the first less that of the second (requests/s)."""
    p_value: float
    """Two-sided, of the ratio being 1; of this pair alone. NaN where one of them collapses: its
    rates are bounds, not an estimate."""
    paired: bool
    """Whether they met the same requests."""
    indifference: float = INDIFFERENCE
    """Difference, as a share, within which either may be taken."""

    @property
    def decided(self) -> bool:
        """Whether the interval of the ratio leaves 1 out."""
        return self.ratio.low > 1.0

    @property
    def alike(self) -> bool:
        """Whether the whole interval of the ratio is within the indifference."""
        most = 1 + self.indifference
        return self.ratio.high <= most and self.ratio.low >= 1 / most

    def __str__(self) -> str:
        gain, low, high = (
            100 * (x - 1) for x in (self.ratio.value, self.ratio.low, self.ratio.high)
        )
        apart = "" if self.paired or math.isnan(self.p_value) else ", on different requests"
        within = f"within {100 * self.indifference:g} %"
        if self.decided:
            close = f", {within}" if self.alike else ""
            return (
                f"{self.first} beats {self.second} by {gain:.3g} % "
                f"(95 %: {low:.3g} to {high:.3g}){apart}{close}"
            )
        word = f"{within}, take either" if self.alike else "undecided"
        return (
            f"{self.first} and {self.second}: {word}, {gain:+.2g} % "
            f"(95 %: {low:+.2g} to {high:+.2g}){apart}"
        )


def compare(
    first: str,
    one: Estimate,
    second: str,
    other: Estimate,
    *,
    indifference: float = INDIFFERENCE,
) -> Compared:
    """Compare two goodputs.

    Parameters
    ----------
    first, second : str
        Names of the strategies, in any order.
    one, other : Estimate
        Their goodputs. Replications that both rest on met the same requests: their noise is
        subtracted run by run. The ratio is that of the two goodputs, whatever they share.
    indifference : float
        Difference, as a share, within which either may be taken.
    """
    if one.log_rate < other.log_rate:
        first, one, second, other = second, other, first, one
    ratio = one.log_rate - other.log_rate
    error, degrees = _error_of_difference(one, other, (1.0, 1.0))
    p_value = 0.0 if ratio else 1.0
    if error > 0:
        p_value = t_p_value(ratio / error, degrees)
    rates = math.exp(one.log_rate), math.exp(other.log_rate)
    gap = rates[0] - rates[1]
    half = half_width(*_error_of_difference(one, other, rates))
    return Compared(
        first=first,
        second=second,
        ratio=around(ratio, half_width(error, degrees)),
        difference_rps=Interval(value=gap, low=gap - half, high=gap + half),
        p_value=p_value,
        paired=bool(_by_replication(one).keys() & _by_replication(other).keys()),
        indifference=indifference,
    )


def _by_replication(estimate: Estimate) -> dict[int, float]:
    """Return the influence of each replication by its number."""
    numbers = estimate.replications or tuple(range(len(estimate.influence)))
    return dict(zip(numbers, estimate.influence.tolist(), strict=True))


def _error_of_difference(
    one: Estimate, other: Estimate, factors: tuple[float, float]
) -> tuple[float, int]:
    """Return standard error and degrees of freedom of ``factors[0] * one - factors[1] * other``.

    The noise of each replication that both have met is subtracted before it is squared. What only
    one of them has met is independent, with the degrees of freedom of Welch and Satterthwaite.
    """
    ours, theirs = _by_replication(one), _by_replication(other)
    shared = sorted(ours.keys() & theirs.keys())
    groups = [
        (
            _noise([factors[0] * ours[k] - factors[1] * theirs[k] for k in shared]),
            _least(one, other),
        ),
        (_noise([factors[0] * x for k, x in ours.items() if k not in theirs]), one.degrees),
        (_noise([factors[1] * x for k, x in theirs.items() if k not in ours]), other.degrees),
    ]
    total = sum(variance for variance, _ in groups)
    if not total > 0:
        return 0.0, _least(one, other)
    # Shares, for squares of the variances could underflow.
    spread = sum((variance / total) ** 2 / degrees for variance, degrees in groups)
    return math.sqrt(total), max(1, round(1 / spread))


def _least(one: Estimate, other: Estimate) -> int:
    return min(one.degrees, other.degrees)


def _noise(parts: list[float]) -> float:
    noise: FloatArray = np.array(parts)
    return float((noise**2).sum())


def compare_verdicts(
    first: str,
    one: Verdict,
    second: str,
    other: Verdict,
    *,
    indifference: float = INDIFFERENCE,
) -> Compared | None:
    """Compare the goodputs of two strategies; None where one of them has none.

    Where one of them collapses, its goodput lies between the rate that is recommended and the
    lowest one that showed a collapse; the ratio then lies between those of the ends.
    """
    if one.estimate is not None and other.estimate is not None:
        return compare(first, one.estimate, second, other.estimate, indifference=indifference)
    ours, theirs = one.goodput, other.goodput
    if ours is None or theirs is None:
        return None
    if ours.value < theirs.value:
        first, ours, second, theirs = second, theirs, first, ours
    return Compared(
        first=first,
        second=second,
        ratio=Interval(
            value=ours.value / theirs.value,
            low=ours.low / theirs.high,
            high=ours.high / theirs.low if theirs.low > 0 else math.inf,
        ),
        difference_rps=Interval(
            value=ours.value - theirs.value,
            low=ours.low - theirs.high,
            high=ours.high - theirs.low,
        ),
        p_value=math.nan,
        paired=False,
        indifference=indifference,
    )


def compare_all(
    verdicts: Mapping[str, Verdict], *, indifference: float = INDIFFERENCE
) -> list[Compared]:
    """Compare every pair of strategies that have a goodput, the best first."""

    def falling(name: str) -> float:
        goodput = verdicts[name].goodput
        return math.inf if goodput is None else -goodput.value

    pairs = (
        compare_verdicts(
            first, verdicts[first], second, verdicts[second], indifference=indifference
        )
        for first, second in itertools.combinations(verdicts, 2)
    )
    return sorted(
        (pair for pair in pairs if pair is not None),
        key=lambda pair: (falling(pair.first), falling(pair.second)),
    )


def wanted_sizes(
    verdicts: Mapping[str, Verdict], pairs: list[Compared], rules: SearchRules
) -> dict[str, int]:
    """Return the replications at a rate that would settle pairs which are open, by strategy.

    Parameters
    ----------
    verdicts : mapping of str to Verdict
        The searches so far.
    pairs : list of Compared
        What they say.
    rules : SearchRules
        Replications that a strategy may have at a rate (`most`, and `most_of_pair` once it has as
        many). A pair that needs more stays open.

    Notes
    -----
    A pair is settled if its interval leaves 1 out, or lies within the indifference: the half width
    must be below the difference, or below what is left of the indifference. Of the two the wider
    is aimed at, a tenth below it.
    """
    sizes: dict[str, int] = {}
    for pair in pairs:
        own = [verdicts[name] for name in (pair.first, pair.second)]
        if pair.decided or pair.alike or any(v.estimate is None for v in own):
            continue
        gain = math.log(pair.ratio.value)
        half = math.log(pair.ratio.high / pair.ratio.value)
        wanted = 0.9 * max(gain, math.log1p(pair.indifference) - gain)
        size = max(v.stages[-1].size for v in own)
        needed = math.ceil(size * (half / wanted) ** 2)
        known = size >= rules.most
        most = rules.most_of_pair if known else rules.most
        if needed > _HOPEFUL[known] * most:
            continue  # would not be settled
        for name in (pair.first, pair.second):
            sizes[name] = max(sizes.get(name, 0), min(max(needed, size), most))
    return {n: size for n, size in sizes.items() if size > verdicts[n].stages[-1].size}
