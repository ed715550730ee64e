"""The smooth maximum of two times."""

from __future__ import annotations


def smooth_max(a: float, b: float, p: float) -> float:
    """Return ``(a^p + b^p)^(1/p)``, between the maximum and the sum of two times (s), both >= 0.

    >>> smooth_max(3.0, 4.0, 2.0)
    5.0
    """
    high, low = (a, b) if a > b else (b, a)
    if low == 0.0:
        return high
    return float(high * (1.0 + (low / high) ** p) ** (1.0 / p))
