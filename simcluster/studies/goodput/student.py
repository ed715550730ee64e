"""Student's t distribution for whole degrees of freedom, in closed form."""

from __future__ import annotations

import math


def cdf(t: float, degrees: int) -> float:
    """Probability that Student's t with `degrees` (>= 1) degrees of freedom is at most `t`.

    Notes
    -----
    Abramowitz and Stegun (1964), equations 26.7.3 and 26.7.4: finite sums of cosines.
    """
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for k in range(1 if odd else 0, degrees - 1, 2):
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    inside = 2 / math.pi * (angle + sine * total) if odd else sine * total
    return 0.5 + 0.5 * inside


def quantile(probability: float, degrees: int) -> float:
    """Value that Student's t stays below with `probability` (0.5 to below 1), by bisection.

    >>> round(quantile(0.975, 7), 4)
    2.3646
    """
    low, high = 0.0, 1.0
    while cdf(high, degrees) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if cdf(middle, degrees) < probability else (low, middle)
    return (low + high) / 2
