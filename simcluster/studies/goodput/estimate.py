"""From replications at two rates to a goodput with its interval, and to comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from simcluster.units import FloatArray

CONFIDENCE: Final = 0.95
"""Of every interval here: of each alone, not of all together."""
_MOST_SKEWED: Final = 0.5  # widening for skewed noise: beyond, the expansion says nothing
_LEAST_DEGREES: Final = 4  # of freedom that controls must leave
_FARTHEST: Final = math.log(100.0)  # of a crossing from the rates: beyond, it is not one
_ITERATIONS: Final = 30
_STEEPEST: Final = 30.0  # log odds beyond which a share is 0 or 1
_SETTLED: Final = 1e-6
_MOST: Final = 700.0  # logarithm of what is still a number


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What the replications at one rate gave."""

    rate_rps: float
    """Offered rate (requests/s)."""
    counted: FloatArray
    """Requests counted in each replication for each criterion, shape ``(num_replications,
    num_criteria)``: one column if the targets count jointly, else one for each target."""
    met: FloatArray
    """Of them those that met it, same shape."""
    arrivals: FloatArray
    """Logarithm of the rate at which requests came in each replication over `rate_rps`, shape
    ``(num_replications,)``."""
    controls: FloatArray
    """Logarithms of other sums of what was asked for over their expectations, such as tokens, shape
    ``(num_replications, num_controls)``."""

    @property
    def attainments(self) -> FloatArray:
        """Share over all replications of each criterion, shape ``(num_criteria,)``."""
        result: FloatArray = self.met.sum(axis=0) / np.maximum(self.counted.sum(axis=0), 1)
        return result

    @property
    def attainment(self) -> float:
        """Share over all replications, of the criterion that is met least."""
        return float(self.attainments.min())

    def logits(self) -> FloatArray:
        """Log odds of each criterion in each replication, shape ``(num_criteria, num_repl.)``.

        Their means are those of all replications together, with half a request added to those that
        met and to those that missed so that none is infinite; around that the log odds of a single
        replication are linear in its share, so that its noise does not bias them.
        """
        counted = self.counted.sum(axis=0)
        pooled = (self.met.sum(axis=0) + 0.5) / (counted + 1)
        shares = self.met / np.maximum(self.counted, 1)
        weights = self.counted / np.maximum(counted / len(self.counted), 1)
        away = (shares - self.attainments) * weights
        result: FloatArray = (np.log(pooled / (1 - pooled)) + away / (pooled * (1 - pooled))).T
        return result


def logit(share: float) -> float:
    """Log odds of `share`, which is above 0 and below 1."""
    return math.log(share / (1 - share))


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate and its 95 % interval, in one unit."""

    value: float
    """The estimate."""
    low: float
    high: float
    """Ends of the interval."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A goodput from replications at two rates."""

    log_rate: float
    """Logarithm of the goodput (requests/s)."""
    slope: float
    """Fall of the log odds of attainment per unit of the logarithm of the rate."""
    influence: FloatArray
    """By how much the noise of each replication moves `log_rate`: the squares sum to its variance.
    Shape ``(2 * num_replications,)``, those of the lower rate first."""
    degrees: int
    """Effective degrees of freedom of that variance."""
    replications: tuple[int, ...] = ()
    """Number of the replication of each entry of `influence`: equal numbers met the same requests.
    Empty: they are counted from 0."""

    @property
    def variance(self) -> float:
        """Variance of `log_rate`."""
        return float((self.influence**2).sum())

    @property
    def half_width(self) -> float:
        """Half the width of the 95 % interval of `log_rate`."""
        error = math.sqrt(self.variance) * skewness_factor(self.influence)
        return half_width(error, self.degrees)

    @property
    def interval(self) -> Interval:
        """The goodput (requests/s)."""
        return around(self.log_rate, self.half_width)


def t_quantile(probability: float, degrees: int) -> float:
    """Value that Student's t with `degrees` degrees of freedom stays below with `probability`."""
    from scipy import stats

    return float(stats.t.ppf(probability, degrees))


def t_p_value(t: float, degrees: int) -> float:
    """Two-sided p-value of a value of Student's t with `degrees` degrees of freedom."""
    from scipy import stats

    return 2 * float(stats.t.sf(abs(t), degrees))


def half_width(error: float, degrees: int) -> float:
    """Return half the width of the 95 % interval of an estimate with this standard error."""
    return t_quantile(0.5 + CONFIDENCE / 2, degrees) * error


def skewness_factor(noise: FloatArray) -> float:
    """Return by how much an interval of Student's t is wider where the noise of runs is skewed.

    Parameters
    ----------
    noise : ndarray
        By how much each run moves an estimate, shape ``(num_runs,)``.

    Notes
    -----
    Edgeworth: the two-sided interval of a mean with skewness ``g`` of its own covers too little by
    the term ``g^2 (z^4 + 2 z^2 - 3) / 18`` of its half width (Hall, The Bootstrap and Edgeworth
    Expansion, 1992, section 2.6, with the part for the estimated variance in Student's t). Few of
    the requests that miss a high percentile come alone, so that some runs have many of them.
    """
    total = float((noise**2).sum())
    if not total > 0:
        return 1.0
    scaled = noise / math.sqrt(total)  # its cubes could underflow
    z = 1.959963984540054
    term = float((scaled**3).sum()) ** 2 * (z**4 + 2 * z**2 - 3) / 18
    return 1.0 + min(term, _MOST_SKEWED)


def estimate_crossing(
    low: Counts,
    high: Counts,
    target: float | Sequence[float],
    replications: tuple[int, ...] = (),
    most_degrees: int | None = None,
) -> Estimate | None:
    """Return the goodput near two rates, or None where attainment hardly falls between them.

    Parameters
    ----------
    low, high : Counts
        Independent replications at two rates, equally many at each.
    target : float or sequence of float
        Attainment wanted, above 0 and below 1: of every criterion, or of each.
    replications : tuple of int, optional
        Numbers of the replications, those at the lower rate first.
    most_degrees : int, optional
        Degrees of freedom of the interval, at most (`Settings.most_degrees`).

    Returns
    -------
    Estimate or None
        Of the criterion whose attainment crosses the target first.

    Notes
    -----
    Least squares: the log odds of a replication are taken as straight in the logarithm of the rate
    at which its requests really came, and in the logarithms of its other controls. So a replication
    that by chance asked for more than its rate says counts as one at a higher load. The controls
    have known expectations, so unlike conditioning on them this removes their noise without
    shifting the attainment (Lavenberg and Welch, 1981).

    Residuals are divided by ``sqrt(1 - leverage)``, so that two rates may differ in their noise
    (MacKinnon and White, 1985, HC2).
    """
    found: Estimate | None = None
    wanted = np.broadcast_to(np.asarray(target, dtype=np.float64), low.attainments.shape)
    for column, (below, above) in enumerate(zip(low.logits(), high.logits(), strict=True)):
        own = float(wanted[column])
        estimate = _fit(low, high, np.concatenate([below, above]), own, replications)
        if estimate is None:
            worst = min(low.attainments[column], high.attainments[column])
            if worst >= own:
                continue  # is met, and does not fall
            return None
        if found is None or estimate.log_rate < found.log_rate:
            found = estimate
    if found is not None and most_degrees is not None:
        found = replace(found, degrees=min(found.degrees, most_degrees))
    return found


def _fit(
    low: Counts, high: Counts, log_odds: FloatArray, target: float, replications: tuple[int, ...]
) -> Estimate | None:
    size = len(low.arrivals)
    gap = math.log(high.rate_rps / low.rate_rps)
    offered = np.repeat([-gap / 2, gap / 2], size)
    arrivals = np.concatenate([low.arrivals, high.arrivals])
    columns = [np.ones(2 * size), offered + arrivals]
    controls = np.concatenate([low.controls, high.controls])
    for control in controls.T:
        if control.std() > 0 and 2 * size - len(columns) > _LEAST_DEGREES:
            columns.append(control)
    design = np.stack(columns, axis=-1)
    solve = np.linalg.pinv(design)
    level, slope = (solve @ log_odds)[:2]
    if not slope < 0:
        return None
    leverage = np.einsum("ik,ki->i", design, solve)
    residuals = log_odds - design @ (solve @ log_odds)
    noise = residuals / np.sqrt(np.maximum(1 - leverage, 1e-9))
    place = (logit(target) - float(level)) / float(slope)
    if abs(place) > _FARTHEST:
        return None
    influence = -(solve[0] + place * solve[1]) / float(slope) * noise
    degrees = effective_degrees(influence, 2 * size - design.shape[1])
    middle = (math.log(low.rate_rps) + math.log(high.rate_rps)) / 2
    return Estimate(
        log_rate=middle + place,
        slope=-float(slope),
        influence=influence,
        degrees=degrees,
        replications=replications,
    )


def pooled_crossing(
    log_rates: FloatArray, shares: FloatArray, target: float
) -> tuple[float, float] | None:
    """Return about where attainment crosses the target, from single runs at any rates.

    Parameters
    ----------
    log_rates : ndarray
        Logarithm of the rate at which requests came in each run, shape ``(num_runs,)``.
    shares : ndarray
        Attainment of each run, 0 to 1, same shape.
    target : float
        Attainment wanted, above 0 and below 1.

    Returns
    -------
    tuple of float or None
        Logarithm of the crossing, and the fall of the log odds per unit of the logarithm of the
        rate; None where attainment does not fall, or falls as a step between runs.

    Notes
    -----
    Logistic regression in which all runs count alike, so that those with all or no requests within
    the targets count too. By iterated weighted least squares.
    """
    centre = float(log_rates.mean())
    design = np.stack([np.ones_like(log_rates), log_rates - centre], axis=-1)
    level, slope = logit(target), 0.0
    for _ in range(_ITERATIONS):
        odds = np.clip(level + slope * design[:, 1], -_STEEPEST, _STEEPEST)
        mean = 1 / (1 + np.exp(-odds))
        weight = mean * (1 - mean)
        curvature = design.T @ (weight[:, None] * design)
        if np.linalg.cond(curvature) > 1 / np.finfo(np.float64).eps:
            return None
        step = np.linalg.solve(curvature, design.T @ (shares - mean))
        level, slope = level + float(step[0]), slope + float(step[1])
        if abs(step).max() < _SETTLED * (1 + abs(slope)):
            return (centre + (logit(target) - level) / slope, -slope) if slope < 0 else None
    return None


def effective_degrees(influence: FloatArray, most: int) -> int:
    """Return the degrees of freedom of the variance of an estimate from two groups of runs.

    Parameters
    ----------
    influence : ndarray
        As in `Estimate`.
    most : int
        Degrees of freedom if all runs count and vary alike.

    Notes
    -----
    Welch and Satterthwaite: where the runs of one group decide, only they count.
    """
    groups = (influence**2).reshape(2, -1).sum(axis=1)
    if not groups.any():
        return most
    return max(1, round(most / 2 * float(groups.sum() ** 2 / (groups**2).sum())))


def around(centre: float, half: float) -> Interval:
    """Return the interval of a value whose logarithm is `centre`, to plus and minus `half`."""
    return Interval(
        value=math.exp(centre),
        low=math.exp(centre - half),
        high=math.exp(centre + half) if centre + half < _MOST else math.inf,
    )
