"""Classes of requests: which class each request has, and the lengths of all of them together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from simcluster.units import IntArray
from simcluster.workload.base import LengthDistribution


def choices(shares: Sequence[float], num_requests: int, rng: np.random.Generator) -> IntArray:
    """Return the number of a class for each request, each drawn with its share.

    Parameters
    ----------
    shares : sequence of float
        Share of each class, > 0; together 1.
    num_requests : int
        How many. The first n of a longer draw are the draw of n.
    rng : numpy.random.Generator
        One number is drawn per request.
    """
    inner = np.cumsum(shares)[:-1]
    return np.searchsorted(inner, rng.random(num_requests), side="right").astype(np.int64)


@dataclass(frozen=True, slots=True)
class MixedLengths:
    """The lengths of requests of several classes: each is of one of `parts`, by its share."""

    shares: tuple[float, ...]
    """Share of each part, > 0; together 1."""
    parts: tuple[LengthDistribution, ...]
    """The distributions."""

    def draw(self, num_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Return prompt and output lengths (tokens)."""
        of_class, *of_parts = rng.spawn(1 + len(self.parts))
        which = choices(self.shares, num_requests, of_class)
        drawn = [
            part.draw(num_requests, own) for part, own in zip(self.parts, of_parts, strict=True)
        ]
        prompt_len, output_len = (np.choose(which, lengths) for lengths in zip(*drawn, strict=True))
        return prompt_len, output_len
