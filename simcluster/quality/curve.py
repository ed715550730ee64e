"""How good the answers are when a router splits requests by difficulty among several models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from simcluster.units import FloatArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class QualityCurve:
    """Expected quality of each model against the difficulty score of a request.

    Scores are quantiles: over all requests they are uniform on 0 to 1, so the thresholds of a
    router are the cumulative load fractions of its models.
    """

    levels: FloatArray
    """Scores, rising from 0 to 1, shape ``(num_levels,)``."""
    cumulative: FloatArray
    """Quality of each model summed over the requests up to each score (the integral of its expected
    quality from 0), shape ``(num_models, num_levels)``; linear between levels. The last column is
    the quality of each model alone."""

    @property
    def num_models(self) -> int:
        """Models, in order of rising quality."""
        return len(self.cumulative)

    @property
    def alone(self) -> FloatArray:
        """Quality of each model when it answers every request, shape ``(num_models,)``."""
        return self.cumulative[:, -1]

    def expected(self, scores: FloatArray) -> FloatArray:
        """Return the expected quality of each model at `scores`.

        Parameters
        ----------
        scores : ndarray of float64
            Difficulty, 0 to 1, shape ``(n,)``.

        Returns
        -------
        ndarray of float64
            Shape ``(n, num_models)``, each 0 to 1.
        """
        slopes = np.diff(self.cumulative, axis=1) / np.diff(self.levels)
        at = np.searchsorted(self.levels, scores, side="right") - 1
        return np.asarray(slopes[:, np.clip(at, 0, slopes.shape[1] - 1)].T)

    def quality(self, fractions: npt.ArrayLike) -> FloatArray:
        """Return the mean quality over all requests.

        Parameters
        ----------
        fractions : array_like
            Load fractions of the models from the weakest to the strongest, which take the requests
            in order of rising score; shape ``(..., num_models)``, each >= 0, sum 1.

        Returns
        -------
        ndarray of float64
            Shape ``(...)``.
        """
        shares = np.asarray(fractions, dtype=np.float64)
        ends = np.cumsum(shares, axis=-1)
        ends[..., -1] = 1.0
        starts = ends - shares
        starts[..., 0] = 0.0
        parts = [
            np.interp(ends[..., m], self.levels, row) - np.interp(starts[..., m], self.levels, row)
            for m, row in enumerate(self.cumulative)
        ]
        return np.asarray(sum(parts), dtype=np.float64)

    def best(self) -> tuple[float, FloatArray]:
        """Return the highest quality that any thresholds reach, and the load fractions that do.

        Where some requests are answered better by a weaker model this is above the strongest
        model's own.
        """
        gained = np.diff(self.cumulative, axis=1)
        num_models, num_segments = gained.shape
        value = np.zeros(num_models)
        came_from = np.zeros((num_segments, num_models), dtype=np.int64)
        for segment in range(num_segments):
            for model in range(num_models):
                came_from[segment, model] = int(np.argmax(value[: model + 1]))
            value = value[came_from[segment]] + gained[:, segment]
        model = int(np.argmax(value))
        best, fractions = float(value[model]), np.zeros(num_models)
        for segment in range(num_segments - 1, -1, -1):
            fractions[model] += self.levels[segment + 1] - self.levels[segment]
            model = int(came_from[segment, model])
        return best, fractions / fractions.sum()

    def least_strong_share(self, quality: float) -> float:
        """Return the smallest load fraction of the strong model of two that reaches `quality`.

        Raises
        ------
        ValueError
            If no fraction does, or there are not two models.
        """
        if self.num_models != 2:
            raise ValueError("defined for two models")
        shares = 1.0 - self.levels[::-1]
        reached = self.quality(np.column_stack([1.0 - shares, shares]))
        enough = np.flatnonzero(reached >= quality)
        if not len(enough):
            raise ValueError("no share of the strong model reaches this quality")
        first = int(enough[0])
        if first == 0:
            return 0.0
        below, above = reached[first - 1], reached[first]
        part = (quality - below) / (above - below)
        return float(shares[first - 1] + part * (shares[first] - shares[first - 1]))


def thresholds(fractions: Sequence[float]) -> FloatArray:
    """Return the scores at which the next stronger model takes over: one less than fractions."""
    return np.cumsum(np.asarray(fractions, dtype=np.float64))[:-1]


def chosen_models(scores: FloatArray, fractions: Sequence[float]) -> IntArray:
    """Return which model (from 0, the weakest) answers each request; a tie goes to the stronger."""
    return np.searchsorted(thresholds(fractions), scores, side="right").astype(np.int64)


# Where curves come from -------------------------------------------------------------------------


def constant(accuracies: Sequence[float]) -> QualityCurve:
    """Return the curve of a router that knows nothing: every score is equally hard (random)."""
    alone = np.asarray(accuracies, dtype=np.float64)
    return QualityCurve(np.array([0.0, 1.0]), np.column_stack([np.zeros(len(alone)), alone]))


def oracle(both: float, only_strong: float, only_weak: float, neither: float) -> QualityCurve:
    """Return the curve of a router that knows who is right, from counts of a weak and strong model.

    First the requests that only the weak model answers right, last those that only the strong
    one does.
    """
    total = both + only_strong + only_weak + neither
    classes = [(only_weak, 1.0, 0.0), (both + neither, both, both), (only_strong, 0.0, 1.0)]
    levels, weak, strong = [0.0], [0.0], [0.0]
    for count, by_weak, by_strong in classes:
        if count == 0:
            continue
        levels.append(levels[-1] + count / total)
        equal = by_weak == by_strong
        weak.append(weak[-1] + (by_weak if equal else by_weak * count) / total)
        strong.append(strong[-1] + (by_strong if equal else by_strong * count) / total)
    levels[-1] = 1.0
    return QualityCurve(np.array(levels), np.array([weak, strong]))


def noisy(
    both: float, only_strong: float, only_weak: float, neither: float, separation: float
) -> QualityCurve:
    """Return the curve of a router that sees the gain of the strong model under Gaussian noise.

    Parameters
    ----------
    both, only_strong, only_weak, neither : float
        Requests by who answered right.
    separation : float
        Distance between the means of the score for a gain of 0 and of 1, in standard deviations of
        the noise (d' of signal detection), >= 0: 0 is the random router, infinity the oracle.

    Notes
    -----
    The score of a request with gain g (-1, 0, 1) is N(g * separation, 1); its quantile among all
    requests is the difficulty.
    """
    if separation == 0:
        total = both + only_strong + only_weak + neither
        return constant([(both + only_weak) / total, (both + only_strong) / total])
    counts = np.array([both, only_strong, only_weak, neither], dtype=np.float64)
    share_both, share_strong, share_weak, share_neither = counts / counts.sum()
    x = np.linspace(-8.0 - separation, 8.0 + separation, 2001)
    same, more, less = (normal_cdf(x - g * separation) for g in (0, 1, -1))
    levels = (share_both + share_neither) * same + share_strong * more + share_weak * less
    weak = share_both * same + share_weak * less
    strong = share_both * same + share_strong * more
    levels[0] = weak[0] = strong[0] = 0.0
    levels[-1] = 1.0
    weak[-1], strong[-1] = share_both + share_weak, share_both + share_strong
    kept = np.concatenate([[True], np.diff(levels) > 1e-12])
    kept[-1] = True
    kept[:-1] &= levels[:-1] < 1.0
    return QualityCurve(levels[kept], np.array([weak[kept], strong[kept]]))


def calibrated_separation(
    counts: tuple[float, float, float, float], strong_share: float, quality: float
) -> float:
    """Return the separation with which a noisy router reaches `quality` at `strong_share`.

    Parameters
    ----------
    counts : tuple of float
        Both right, only the strong, only the weak, neither.
    strong_share : float
        Load fraction of the strong model, 0 to 1.
    quality : float
        Published quality of the routed answers at that fraction.

    Raises
    ------
    ValueError
        If the random router is better already, or the oracle worse.
    """

    def reached(separation: float) -> float:
        return float(noisy(*counts, separation).quality([1 - strong_share, strong_share]))

    low, high = 0.0, 30.0
    if not reached(low) <= quality <= reached(high):
        raise ValueError("no router between the random one and the oracle has this quality")
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) >= quality else (middle, high)
    return (low + high) / 2


def from_points(points: Sequence[tuple[float, float]]) -> QualityCurve:
    """Return the curve through points of (load fraction of the strong model, quality).

    The strong model is equally good at every score; what the points say of the gain is the weak
    model's. The first fraction is 0, the last 1.
    """
    shares, qualities = (
        np.asarray(column, dtype=np.float64) for column in zip(*points, strict=True)
    )
    levels = 1.0 - shares[::-1]
    strong = qualities[-1] * levels
    # Quality at share s = strong's alone - the loss on the easy 1 - s that the weak model answers.
    weak = strong - (qualities[-1] - qualities[::-1])
    return QualityCurve(levels, np.array([weak, strong]))


def from_outcomes(scores: FloatArray, outcomes: FloatArray) -> QualityCurve:
    """Return the empirical curve of scored requests; requests of equal score are one level.

    Parameters
    ----------
    scores : ndarray of float64
        Difficulty by the router, in any unit, shape ``(n,)``.
    outcomes : ndarray of float64
        Quality of each model's answer, 0 to 1, shape ``(n, num_models)``.
    """
    order = np.argsort(scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]) > 0, True))
    sums = np.cumsum(outcomes[order], axis=0)[last].T / len(scores)
    levels = np.concatenate([[0.0], (last + 1) / len(scores)])
    return QualityCurve(levels, np.hstack([np.zeros((len(sums), 1)), sums]))


def from_abilities(accuracies: Sequence[float], separation: float) -> QualityCurve:
    """Return the curve of any number of models by a probit model of ability and difficulty.

    A request of difficulty u is answered right with probability Phi(a - b Phi^-1(u)), where b is
    `separation` and a such that the mean over all requests is the model's accuracy: a =
    sqrt(1 + b^2) Phi^-1(accuracy), since Z normal makes E Phi(a - b Z) = Phi(a / sqrt(1 + b^2)).
    """
    if separation == 0:
        return constant(accuracies)
    z = np.linspace(-6.0, 6.0, 1201)
    levels = normal_cdf(z)
    levels[0], levels[-1] = 0.0, 1.0
    middle = normal_quantile((levels[1:] + levels[:-1]) / 2)
    rows = []
    for accuracy in accuracies:
        a = math.sqrt(1 + separation**2) * float(normal_quantile(np.array([accuracy]))[0])
        steps = normal_cdf(a - separation * middle) * np.diff(levels)
        steps = np.minimum(steps * accuracy / steps.sum(), np.diff(levels))
        rows.append(np.concatenate([[0.0], np.cumsum(steps)]))
    return QualityCurve(levels, np.array(rows))


def normal_cdf(x: FloatArray) -> FloatArray:
    """Return the standard normal distribution function of each of `x`."""
    return np.array([0.5 * math.erfc(-v / math.sqrt(2)) for v in x.tolist()])


def normal_quantile(p: FloatArray) -> FloatArray:
    """Return the standard normal quantile of each of `p`, each above 0 and below 1."""
    from statistics import NormalDist

    inverse = NormalDist().inv_cdf
    return np.array([inverse(v) for v in p.tolist()])
