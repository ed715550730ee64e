"""What a macro-instance scheduler believes a prompt's prefill to take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from simcluster.request import Request
from simcluster.units import on_grid

PROFILE_MIN: Final = 16
PROFILE_MAX: Final = 4096
"""Prompt lengths (tokens) between which the authors' profile has entries."""


def from_profile(prefill_s: Callable[[int], float]) -> Callable[[int], float]:
    """Return `prefill_s` as the profile of EcoServe's released code would give it.

    Shorter and longer prompts than the profile's are in proportion to its first and last entry.
    """
    first_s, last_s = prefill_s(PROFILE_MIN), prefill_s(PROFILE_MAX)

    def profiled_s(prompt_len: int) -> float:
        if prompt_len < PROFILE_MIN:
            return on_grid(first_s * prompt_len / PROFILE_MIN)
        if prompt_len > PROFILE_MAX:
            return on_grid(last_s * prompt_len / PROFILE_MAX)
        return prefill_s(prompt_len)

    return profiled_s


class PrefillPredictor:
    """The prefill time of a request alone, off by a random factor.

    Parameters
    ----------
    prefill_s : callable
        Time to prefill a prompt of so many tokens (s).
    error : float
        Standard deviation of the logarithm of the factor; 0 for none.
    rng : numpy.random.Generator
        Draws the factors, one per request in the order of their ids.

    Notes
    -----
    The median of the factor is 1. A request keeps its factor however often it is asked for.
    """

    def __init__(
        self, prefill_s: Callable[[int], float], error: float, rng: np.random.Generator
    ) -> None:
        self._prefill_s = prefill_s
        self._error = error
        self._rng = rng
        self._factors: list[float] = []

    def __call__(self, request: Request) -> float:
        """Return the predicted prefill time of `request` (s), on the grid."""
        if not self._error:
            return self._prefill_s(request.prompt_len)
        while len(self._factors) <= request.request_id:
            normal = self._rng.standard_normal(1024)
            self._factors += np.exp(self._error * normal).tolist()
        return on_grid(self._factors[request.request_id] * self._prefill_s(request.prompt_len))
