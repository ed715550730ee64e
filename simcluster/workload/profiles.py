"""Poisson arrivals whose rate changes with the clock: on-off phases, a schedule of rates.

A sweep scales the rate, never the clock: Poisson points of rate 1 go through the inverse of the
cumulative rate (Lewis and Shedler 1979, time-scale transformation), so that two rates meet the
same requests and the phases keep their length.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from simcluster.config import Settings
from simcluster.errors import ConfigError
from simcluster.rng import stream
from simcluster.units import MAX_TIME_S, FloatArray
from simcluster.workload.base import MAX_RATE_RPS, SHORTEST_S, EndlessArrivals


def inverse_cumulative_rate(
    points: FloatArray, durations_s: FloatArray, rates_rps: FloatArray
) -> FloatArray:
    """Return when the cumulative rate of a repeated piecewise constant rate reaches `points`.

    Parameters
    ----------
    points : ndarray
        Expected numbers of requests, sorted, >= 0, shape ``(n,)``.
    durations_s : ndarray
        Durations of the pieces (s), each > 0, shape ``(m,)``; after the last the first follows.
    rates_rps : ndarray
        Rates of the pieces (requests/s), >= 0 and not all 0, shape ``(m,)``.

    Returns
    -------
    ndarray
        Times (s), sorted, shape ``(n,)``; never inside a piece of rate 0.
    """
    ends_s = np.cumsum(durations_s)
    starts_s = ends_s - durations_s
    filled = np.concatenate(([0.0], np.cumsum(durations_s * rates_rps)))
    period, rest = np.divmod(points, filled[-1])
    piece = np.searchsorted(filled, rest, side="right") - 1
    inside_s = starts_s[piece] + (rest - filled[piece]) / rates_rps[piece]
    times_s = period * ends_s[-1] + np.minimum(inside_s, ends_s[piece])
    return np.maximum.accumulate(times_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class CyclicArrivals(EndlessArrivals):
    """Base of Poisson arrivals whose rate is piecewise constant and repeats."""

    @abstractmethod
    def rates_at(self, rate_rps: float) -> tuple[FloatArray, FloatArray]:
        """Return durations (s) and rates (requests/s) of the pieces at the mean rate `rate_rps`."""

    @property
    @abstractmethod
    def cycle_s(self) -> float:
        """Length of all pieces together (s)."""

    def times(self, num_requests: int, rate_rps: float, seed: int) -> FloatArray:
        """Return the first `num_requests` arrivals (s)."""
        points = np.cumsum(stream(seed, "arrivals").standard_exponential(num_requests))
        return inverse_cumulative_rate(points, *self.rates_at(rate_rps))


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyPhaseArrivals(EndlessArrivals):
    """Those arrivals, from a random time of their cycle on: what a search draws.

    A run that begins where the cycle does and ends within one counts some pieces more often than
    they come; over runs that begin anywhere each piece counts by its length.
    """

    kind: Literal["any-phase"] = "any-phase"
    of: CyclicArrivals
    """The arrivals."""

    def times(self, num_requests: int, rate_rps: float, seed: int) -> FloatArray:
        """Return the first `num_requests` arrivals (s)."""
        durations_s, rates_rps = self.of.rates_at(rate_rps)
        start_s = float(stream(seed, "arrivals", "phase").random()) * self.of.cycle_s
        ends_s = np.cumsum(durations_s)
        passed_s = np.clip(start_s - (ends_s - durations_s), 0.0, durations_s)
        before = float((passed_s * rates_rps).sum())
        points = before + np.cumsum(stream(seed, "arrivals").standard_exponential(num_requests))
        times_s = inverse_cumulative_rate(points, durations_s, rates_rps) - start_s
        return np.maximum(times_s, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnOffArrivals(CyclicArrivals):
    """Bursts and pauses of fixed length in turn, beginning with a burst; Poisson in each."""

    kind: Literal["on-off"] = "on-off"
    on_s: Annotated[float, Field(ge=SHORTEST_S, le=MAX_TIME_S)]
    """Length of a burst (s)."""
    off_s: Annotated[float, Field(ge=SHORTEST_S, le=MAX_TIME_S)]
    """Length of a pause (s)."""
    off_share: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Rate in a pause as a share of the rate in a burst."""

    @property
    def cycle_s(self) -> float:
        """Length of a burst and a pause (s)."""
        return self.on_s + self.off_s

    def rates_at(self, rate_rps: float) -> tuple[FloatArray, FloatArray]:
        """Return durations (s) and rates (requests/s) of burst and pause; their mean is given."""
        on_rps = rate_rps * self.cycle_s / (self.on_s + self.off_s * self.off_share)
        return np.array([self.on_s, self.off_s]), np.array([on_rps, on_rps * self.off_share])


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulePiece(Settings):
    """One piece of a schedule of rates."""

    duration_s: Annotated[float, Field(ge=SHORTEST_S, le=MAX_TIME_S)]
    """How long it lasts (s)."""
    rate_rps: Annotated[float, Field(ge=0, le=MAX_RATE_RPS)]
    """Rate (requests/s); 0 for a pause of the arrivals."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleArrivals(CyclicArrivals):
    """Poisson arrivals at rates that follow a schedule, which repeats.

    Without a rate of the workload or the sweep the schedule's rates are used as they stand; with
    one they are multiplied so that their mean over the schedule is that rate.
    """

    kind: Literal["schedule"] = "schedule"
    pieces: Annotated[tuple[SchedulePiece, ...], Field(min_length=1)]
    """Pieces of constant rate, one after the other."""

    def __post_init__(self) -> None:
        """Check that some piece has requests."""
        if not any(piece.rate_rps > 0 for piece in self.pieces):
            raise ConfigError(
                "workload.arrivals.pieces",
                [piece.rate_rps for piece in self.pieces],
                "every rate of the schedule is 0",
                "Give one piece a rate above 0.",
            )

    @property
    def own_rate_rps(self) -> float:
        """Mean rate over the schedule (requests/s)."""
        return sum(p.duration_s * p.rate_rps for p in self.pieces) / self.cycle_s

    @property
    def own_duration_s(self) -> float:
        """Length of the schedule (s)."""
        return self.cycle_s

    @property
    def cycle_s(self) -> float:
        """Length of the schedule (s)."""
        return sum(piece.duration_s for piece in self.pieces)

    def rates_at(self, rate_rps: float) -> tuple[FloatArray, FloatArray]:
        """Return durations (s) and rates (requests/s) of the pieces; the mean rate is given."""
        scale = rate_rps / self.own_rate_rps
        durations_s = np.array([piece.duration_s for piece in self.pieces])
        return durations_s, np.array([piece.rate_rps for piece in self.pieces]) * scale
