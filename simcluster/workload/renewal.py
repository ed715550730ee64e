"""Renewal arrivals: gaps drawn independently of each other (Poisson, gamma) or equal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from simcluster.errors import ConfigError
from simcluster.rng import stream
from simcluster.units import FloatArray
from simcluster.workload.base import EndlessArrivals


@dataclass(frozen=True, slots=True, kw_only=True)
class PoissonArrivals(EndlessArrivals):
    """Exponential gaps, the first one before the first request."""

    kind: Literal["poisson"] = "poisson"

    def times(self, num_requests: int, rate_rps: float, seed: int) -> FloatArray:
        """Return the first `num_requests` arrivals (s)."""
        times_s = stream(seed, "arrivals").standard_exponential(num_requests)
        np.cumsum(times_s, out=times_s)
        times_s /= rate_rps
        return times_s


@dataclass(frozen=True, slots=True, kw_only=True)
class GammaArrivals(EndlessArrivals):
    """Gamma-distributed gaps, the first one before the first request.

    Notes
    -----
    ``burstiness`` is the shape, as in vLLM's benchmark; the coefficient of variation of the gaps
    is ``1 / sqrt(burstiness)``. EcoServe's bursty arrivals are ``cv`` 1.2, 1.5 and 2.0.
    """

    kind: Literal["gamma"] = "gamma"
    burstiness: Annotated[float | None, Field(ge=1e-4, le=1e6)] = None
    """Shape of the gaps; 1 is Poisson, less is burstier."""
    cv: Annotated[float | None, Field(ge=0.001, le=100)] = None
    """Coefficient of variation of the gaps, in place of burstiness."""

    def __post_init__(self) -> None:
        """Check that one of `burstiness` and `cv` is given."""
        if (self.burstiness is None) == (self.cv is None):
            raise ConfigError(
                "workload.arrivals.burstiness",
                self.burstiness,
                "gamma arrivals take either burstiness or cv",
                "Give one of them; burstiness = 1 / cv^2.",
            )

    @property
    def shape(self) -> float:
        """Shape of the gamma distribution."""
        if self.burstiness is not None:
            return self.burstiness
        assert self.cv is not None
        return 1.0 / self.cv**2

    def times(self, num_requests: int, rate_rps: float, seed: int) -> FloatArray:
        """Return the first `num_requests` arrivals (s)."""
        times_s = stream(seed, "arrivals").standard_gamma(self.shape, num_requests)
        np.cumsum(times_s, out=times_s)
        times_s /= self.shape * rate_rps
        return times_s


@dataclass(frozen=True, slots=True, kw_only=True)
class ConstantArrivals(EndlessArrivals):
    """Equal gaps; request k arrives at ``(k + 1) / rate``."""

    kind: Literal["constant"] = "constant"

    def times(self, num_requests: int, rate_rps: float, seed: int) -> FloatArray:
        """Return the first `num_requests` arrivals (s)."""
        return np.arange(1, num_requests + 1) / rate_rps
