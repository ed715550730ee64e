"""What a check against measured data is: errors of one quantity in one regime, and its limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike

from simcluster.errors import InvariantError
from simcluster.units import FloatArray

Statistic = Literal["mean", "median", "p90", "bias"]
"""Which number of a check its limits are about."""

_TAIL: Final = 0.9


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Check:
    """Simulated against measured values of one quantity; errors are shares, 0.07 being 7 %."""

    data_set: str
    """Folder of the measured set, such as ``"vidur_mlp"``."""
    gpu: str
    model: str
    """What was measured; ``"all"`` or empty where several or none."""
    regime: str
    """Which part of the data, such as ``"unseen n"`` or ``"prefill"``."""
    quantity: str
    """What is compared, such as ``"GEMM time"`` or ``"TPOT"``."""
    n: int
    """Number of pairs."""
    median: float
    mean: float
    p90: float
    """Of the absolute relative errors."""
    bias: float
    """Mean simulated over mean measured value, less 1."""
    must: float | None = None
    aim: float | None = None
    """Limits of the statistic named by `limits`; None where none was set."""
    limits: Statistic = "mean"
    """``"mean"``, ``"median"``, ``"p90"`` or ``"bias"``."""
    measured: FloatArray | None = None
    simulated: FloatArray | None = None
    """The pairs, shape ``(n,)``, for pictures."""
    unit: str = "s"
    """Of both: ``"s"``, ``"ms"``, ``"tokens/s"``."""

    @property
    def value(self) -> float:
        """The statistic that the limits are about, without sign."""
        return abs(float(getattr(self, self.limits)))

    @property
    def met(self) -> bool | None:
        """Whether the `must` limit is kept; None where there is none."""
        return None if self.must is None else self.value <= self.must


class UnavailableError(Exception):
    """A check that cannot be made here, with the reason."""


def check(
    measured: ArrayLike,
    simulated: ArrayLike,
    *,
    data_set: str,
    gpu: str,
    model: str = "",
    regime: str,
    quantity: str,
    must: float | None = None,
    aim: float | None = None,
    limits: Statistic = "mean",
    unit: str = "s",
) -> Check:
    """Compare pairs of values.

    Parameters
    ----------
    measured, simulated : array-like, shape ``(n,)``
        Values in the same unit, measured ones > 0.
    data_set, gpu, model, regime, quantity, must, aim, limits, unit
        As in `Check`.

    Returns
    -------
    Check
        With NaN statistics where there are no pairs.
    """
    truth = np.asarray(measured, dtype=np.float64)
    guess = np.asarray(simulated, dtype=np.float64)
    if truth.shape != guess.shape or truth.ndim != 1:
        raise InvariantError(f"measured {truth.shape} against simulated {guess.shape}")
    error = np.abs(guess / truth - 1.0)
    some = len(truth) > 0
    return Check(
        data_set=data_set,
        gpu=gpu,
        model=model,
        regime=regime,
        quantity=quantity,
        n=len(truth),
        median=float(np.median(error)) if some else np.nan,
        mean=float(np.mean(error)) if some else np.nan,
        p90=float(np.quantile(error, _TAIL)) if some else np.nan,
        bias=float(np.mean(guess) / np.mean(truth) - 1.0) if some else np.nan,
        must=must,
        aim=aim,
        limits=limits,
        measured=truth,
        simulated=guess,
        unit=unit,
    )
