"""Measured over law's time of decode attention, as a function of the tokens of context.

Products, sums and comparisons alone, so that a number and an array give the same bits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

from simcluster.units import FloatArray


class RatioCurve:
    """A factor on the law that is linear between knots, and constant beyond the last ones.

    Parameters
    ----------
    knots : sequence of (float, float)
        Tokens of context of a batch, rising, and measured over law's time there; at least one.

    Examples
    --------
    >>> curve = RatioCurve([(100.0, 1.0), (300.0, 2.0)])
    >>> curve.at(200.0), curve.at(1.0), curve.at(1e6)
    (1.5, 1.0, 2.0)
    """

    __slots__ = ("_base", "_knots", "_knots_array", "_slopes", "_table")

    def __init__(self, knots: Sequence[tuple[float, float]]) -> None:
        tokens = [float(x) for x, _ in knots]
        ratios = [float(ratio) for _, ratio in knots]
        slopes = [0.0]
        for i in range(1, len(knots)):
            slopes.append((ratios[i] - ratios[i - 1]) / (tokens[i] - tokens[i - 1]))
        # Segment i lies below knot i; before the first and behind the last the factor is constant.
        self._knots = tokens
        self._slopes = [*slopes, 0.0]
        starts = [tokens[0], *tokens]
        values = [ratios[0], *ratios]
        self._base = list(zip(starts, values, self._slopes, strict=True))
        self._knots_array = np.array(tokens)
        self._table = np.array(self._base)

    def at(self, tokens: float) -> float:
        """Factor at `tokens` of context."""
        start, value, slope = self._base[bisect_right(self._knots, tokens)]
        return value + slope * (tokens - start)

    def segment(self, first: float, last: float) -> tuple[float, float, float] | None:
        """Start, value and slope of the line from `first` to `last`; None where it has a corner."""
        index = bisect_right(self._knots, first)
        return self._base[index] if index == bisect_right(self._knots, last) else None

    def at_all(self, tokens: FloatArray) -> FloatArray:
        """Like `at` for an array, shape as `tokens`."""
        index = np.searchsorted(self._knots_array, tokens, side="right")
        start, value, slope = self._table[index].T
        result: FloatArray = tokens - start
        result *= slope
        result += value
        return result

    def at_rising(self, tokens: FloatArray) -> FloatArray:
        """Like `at_all` for numbers that rise, segment by segment."""
        first = bisect_right(self._knots, tokens[0])
        last = bisect_right(self._knots, tokens[-1])
        result = np.empty_like(tokens)
        begin = 0
        for index in range(first, last + 1):
            end = len(tokens)
            if index < last:
                end = int(np.searchsorted(tokens, self._knots[index], side="left"))
            start, value, slope = self._base[index]
            part = result[begin:end]
            np.subtract(tokens[begin:end], start, out=part)
            part *= slope
            part += value
            begin = end
        return result
