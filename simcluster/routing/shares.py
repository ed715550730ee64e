"""Routing between pools: in fixed shares, without chance."""

from __future__ import annotations

from collections.abc import Sequence


class FixedShares:
    """Smooth weighted round robin: after n choices each has had about n times its share.

    Parameters
    ----------
    weights : sequence of float
        Relative shares, each > 0.

    Notes
    -----
    Each choice earns every index its weight; the richest is chosen, the first of equals, and pays
    for all (the algorithm of the nginx web server).
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self._weights = list(weights)
        self._total = sum(self._weights)
        self._credit = [0.0] * len(self._weights)

    def choose(self) -> int:
        """Return the next index."""
        credit = self._credit
        for index, weight in enumerate(self._weights):
            credit[index] += weight
        richest = credit.index(max(credit))
        credit[richest] -= self._total
        return richest
