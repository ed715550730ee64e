"""Two close rates between which attainment crosses the target, found by one run after another.

The runs are the caller's, and so is the rule that ends the walk: a search on replications follows
short runs by long ones (`search`), a race has one draw of requests for all candidates
(`studies.rank.race`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from simcluster.studies.goodput.rules import Walk


class Seen(Protocol):
    """A run, or several, at one rate."""

    @property
    def rate_rps(self) -> float:
        """Offered rate (requests/s)."""

    @property
    def log_odds(self) -> float:
        """Log odds of attainment, finite."""


S = TypeVar("S", bound=Seen)


@dataclass(frozen=True, slots=True)
class Bracket(Generic[S]):
    """The two rates around a crossing."""

    low: S | None = None
    """The run at the highest rate of those that reached the target, as far as was looked."""
    high: S | None = None
    """The run at the lowest rate of those that missed it."""

    @property
    def is_closed(self) -> bool:
        """Whether there is a rate on either side."""
        return self.low is not None and self.high is not None

    @property
    def gap(self) -> float:
        """Logarithm of the ratio of the two rates; infinite where one is missing."""
        if self.low is None or self.high is None:
            return math.inf
        return math.log(self.high.rate_rps / self.low.rate_rps)

    @property
    def fall(self) -> float:
        """Fall of the log odds from the lower rate to the higher; NaN where one is missing."""
        if self.low is None or self.high is None:
            return math.nan
        return self.low.log_odds - self.high.log_odds

    @property
    def slope(self) -> float:
        """Fall of the log odds per unit of the logarithm of the rate; NaN where there is none."""
        return self.fall / self.gap if self.fall > 0 else math.nan

    def crossing_rps(self, target: float, *, margin: float = 0.0) -> float:
        """Rate (requests/s) at which a straight line crosses log odds of `target`.

        Straight in the logarithm of the rate.

        Parameters
        ----------
        target : float
            Log odds, between those of the two runs.
        margin : float
            Share of the logarithms that the rate keeps from both ends; in the middle at 0.5.
        """
        assert self.low is not None, "a crossing lies between two rates"
        share = (self.low.log_odds - target) / self.fall if self.fall > 0 else 0.5
        return self.low.rate_rps * math.exp(min(max(share, margin), 1 - margin) * self.gap)


def locate(
    guess_rps: float,
    target: float,
    look: Callable[[float], Generator[Any, Any, S]],
    ends: Callable[[Bracket[S]], bool],
    walk: Walk,
) -> Generator[Any, Any, Bracket[S]]:
    """Walk from rate to rate until two close ones have the crossing between them.

    Parameters
    ----------
    guess_rps : float
        The first rate (requests/s), > 0.
    target : float
        Log odds of the wanted attainment.
    look : callable
        Asks for runs at a rate and returns what they show.
    ends : callable
        Tells by the rates around the crossing whether the walk is over; asked after each rate.
    walk : Walk
        How one rate follows another.

    Yields
    ------
    object
        What `look` asks for.

    Returns
    -------
    Bracket
        What was known when it ended; open where no rate reached the target, or none missed it.
    """
    bracket: Bracket[S] = Bracket()
    rate, step = guess_rps, walk.step
    while True:
        seen = yield from look(rate)
        distance = seen.log_odds - target
        bracket = Bracket(seen, bracket.high) if distance >= 0 else Bracket(bracket.low, seen)
        if ends(bracket):
            return bracket
        if bracket.is_closed:
            margin = walk.margin if bracket.fall <= walk.straight else 0.5
            rate = bracket.crossing_rps(target, margin=margin)
        elif distance >= 0:
            rate *= max(walk.far_step, step) if distance > walk.far else step
        elif rate <= walk.leap_below * guess_rps:
            rate /= walk.leap
        else:
            rate /= max(walk.far_step, step**2) if -distance > walk.far else step
            step *= walk.growth
