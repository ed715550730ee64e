"""A closed loop: a fixed number of requests in the system at any time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from simcluster.config import Settings
from simcluster.errors import ConfigError
from simcluster.workload.base import DEFAULT_NUM_REQUESTS, ArrivalTimes, Offer


@dataclass(frozen=True, slots=True, kw_only=True)
class ClosedLoopArrivals(Settings):
    """So many users, each of whom asks again as soon as the answer is there.

    The rate is a result, not a setting: the engine lets the next request in when one finishes.
    """

    has_lengths: ClassVar[bool] = False

    kind: Literal["closed-loop"] = "closed-loop"
    concurrency: Annotated[int, Field(ge=1, le=1_000_000)]
    """Requests in the system at once."""

    def draw(self, offer: Offer, seed: int) -> ArrivalTimes:
        """Return zeros: when the requests arrive is for the engine to say."""
        if offer.rate_rps is not None:
            raise ConfigError(
                "workload.rate_rps",
                offer.rate_rps,
                "a closed loop has no offered rate",
                "Leave the rates out, or choose arrivals that have one.",
            )
        if offer.duration_s is not None:
            raise ConfigError(
                "workload.duration_s",
                offer.duration_s,
                "a closed loop does not know beforehand how many requests fit in a time",
                "Give num_requests instead.",
            )
        return ArrivalTimes(
            arrival_s=np.zeros(offer.num_requests or DEFAULT_NUM_REQUESTS),
            rate_rps=None,
            concurrency=self.concurrency,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AnyConcurrency(Settings):
    """A closed loop whose number of users is what a search varies, in the place of a rate."""

    has_lengths: ClassVar[bool] = False

    kind: Literal["any-concurrency"] = "any-concurrency"

    def draw(self, offer: Offer, seed: int) -> ArrivalTimes:
        """Return a closed loop of ``offer.rate_rps`` users, a whole number."""
        assert offer.rate_rps is not None, "a search says how many users"
        users = ClosedLoopArrivals(concurrency=round(offer.rate_rps))
        return users.draw(replace(offer, rate_rps=None), seed)
