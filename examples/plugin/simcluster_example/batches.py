"""An arrival process: batches of requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from simcluster.rng import stream
from simcluster.units import FloatArray
from simcluster.workload.base import EndlessArrivals


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchArrivals(EndlessArrivals):
    """Several requests at a time, as from a program that asks for several answers at once."""

    kind: Literal["batches"] = "batches"
    batch_size: Annotated[int, Field(ge=1)] = 4
    """Requests that arrive together."""

    def times(self, num_requests: int, rate_rps: float, seed: int) -> FloatArray:
        """Return the first `num_requests` arrivals (s): batches are a Poisson process."""
        num_batches = -(-num_requests // self.batch_size)
        gaps = stream(seed, "arrivals").standard_exponential(num_batches)
        batch_s = np.cumsum(gaps) * self.batch_size / rate_rps
        return np.repeat(batch_s, self.batch_size)[:num_requests]
