"""Units: seconds and bytes inside; the only place that converts; the time grid.

Every time of a simulation is a multiple of ``TICK_S`` = 2^-32 s (0.23 ns). Sums and differences
of such doubles are exact below 2^21 s (24 days), so results do not depend on the order of
additions and ``now + (t - now) == t`` holds.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

TICKS_PER_S: Final = 4294967296.0
"""Ticks of the time grid in one second, 2^32."""
TICK_S: Final = 1.0 / TICKS_PER_S
"""One tick of the time grid (s), 2^-32."""
MAX_TIME_S: Final = 2.0**21
"""Times must stay below this (s) for sums to be exact: 24 days."""

MB: Final = 1e6
GB: Final = 1e9
MS: Final = 1e-3
US: Final = 1e-6
NS: Final = 1e-9
PS: Final = 1e-12


def on_grid(time_s: float) -> float:
    """Return `time_s` (s) rounded to the nearest multiple of ``TICK_S``, half to even.

    >>> on_grid(1.0)
    1.0
    >>> on_grid(0.1) == 0.1
    False
    """
    return round(time_s * TICKS_PER_S) * TICK_S


def grid_array(times_s: FloatArray) -> FloatArray:
    """Return `times_s` (s) rounded like `on_grid`, element by element and bit for bit."""
    ticks = times_s * TICKS_PER_S
    np.rint(ticks, out=ticks)
    ticks *= TICK_S
    return ticks


def gbit_per_s(value: float) -> float:
    """Bytes per second of a network speed in Gbit/s."""
    return value * 1e9 / 8
