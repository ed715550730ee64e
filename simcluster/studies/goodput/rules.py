"""What a search for a goodput goes by: what is asked of it, and the numbers of its method."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from simcluster.units import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """How one rate follows another until two close ones have the crossing between them.

    Distances are those of the log odds of attainment from those of the target.
    """

    step: float
    """Ratio of a rate to the one before it while all of them lie on one side, > 1."""
    far_step: float = 1.0
    """The same at a large distance, if it is larger than `step`; downwards at least its square."""
    far: float
    """The distance that is large."""
    growth: float = 1.0
    """Factor of `step` from each rate that misses the target to the next."""
    leap: float = 1.0
    """Ratio to the next rate below `leap_below`."""
    leap_below: float = 0.0
    """Share of the first guess below which rates fall by `leap`."""
    margin: float
    """Share of the logarithms between two rates that the next one keeps from both, below 0.5."""
    straight: float = math.inf
    """Fall of the log odds between two rates up to which they are taken as straight in the
    logarithm of the rate; beyond it the next rate lies in the middle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRules:
    """The numbers of the method of `search`; ``docs/goodput.md`` explains it.

    None is fitted to a result: they trade requests against risk, and
    ``benchmarks/coverage.py`` measures on a queue with a known goodput what they achieve.
    """

    scout_requests: int = 400
    """Requests of the first run at a rate."""
    scout_residences: float = 12.0
    """Length of a run that locates, in mean residence times."""
    hopeless: float = 2.0
    """Log odds short of the target at which a short run is believed."""
    doubtful: float = 0.5
    """Log odds below the target up to which a run that is too short is done again."""
    walk: Walk = Walk(
        step=1.1, far_step=1.6, far=2.5, leap=4.0, leap_below=1 / 30, margin=0.2, straight=5.0
    )
    """How locating goes from rate to rate."""
    near: float = 1.12
    """Highest over lowest rate at which locating may end."""
    straight: float = 2.5
    """Fall of the log odds between two rates that a straight line is trusted with."""
    farthest: float = 30.0
    """Times the first guess beyond which the targets are met at any rate."""
    lowest: float = 1e-6
    """Share of the first guess below which they are met at none."""
    alone: float = 0.05
    """Requests in the system below which one meets no other."""
    residences: float = 15.0
    """Length of a replication in mean residence times at a tolerance of 3 %, at least."""
    least_residences: float = 12.0
    """The same at any tolerance."""
    decay: float = 2.3
    """Mean residence times in which what the empty start does to attainment falls by a factor of e
    (`benchmarks/start_and_end.py`)."""
    least_requests: int = 4000
    """Requests of a replication, at least."""
    least_misses: float = 100.0
    """Requests that miss their targets in a replication at the goodput, at least: where they are
    few, their logarithm is skewed."""
    warmup: float = 0.4
    """Share of a run at its start that is not counted: few requests are in the system."""
    cooldown: float = 1 / 15
    """Share of a run at its end that is not counted, about a mean residence time: nobody comes
    after these requests who could delay them."""
    pilot_size: int = 3
    """Replications at each of the two rates of the first look at how much runs vary."""
    pilot_gap: float = 0.5
    """Ratio of the first distance of the two rates to the farthest, at least: how steeply
    attainment falls is not known before."""
    placed: float = 0.4
    """Distance of the crossing from the middle of the two rates, in their distances, at which the
    first stage is in its place."""
    most_places: int = 4
    """Places that are tried for the first stage."""
    fall: float = 6.0
    """Fall of the log odds between the two rates of a stage, times the root of the tolerance."""
    spread: tuple[float, float] = (0.5, 0.6)
    """Distance of the two rates: least in tolerances, most in their roots."""
    too_far: float = 1.0
    """Logarithm of the ratio of two rates that do not differ in attainment, beyond which there is
    nothing to settle."""
    outside: float = 1 / math.sqrt(2)
    """Distance of the crossing from the middle of the two rates, in their distances, from which the
    stage is repeated there: up to it a line is as good as in the middle."""
    outside_users: float = 0.5
    """The same of users: a number of them that was never simulated is no goodput."""
    most_shift: float = 3.0
    """Farthest move to a crossing outside, in distances of the two rates."""
    ample: float = 2.0
    """Times the least length up to which a bias makes runs longer."""
    longer: float = 1.5
    """Growth of the wanted length from which a stage is repeated."""
    growth: float = 8.0
    """Most growth of a stage at once, in requests."""
    more: float = 1.2
    """Least growth of a stage whose interval is too wide, in replications."""
    many: int = 24
    """Replications at a rate above which runs become longer instead."""
    most: int = 32
    """Replications at a rate where runs cannot be longer, at most."""
    most_of_pair: int = 64
    """Replications at a rate that an open pair may have, once `most` have shown that as many would
    settle it."""
    chance: float = 0.001
    """Of taking noise for a bias."""
    aim: float = 0.8
    """Half width that a stage is sized for, in tolerances: few shall be too wide."""
    unsteady: float = 1 / 3
    """What the empty start of the runs may add to the goodput, in tolerances."""
    retreat: float = 1.05
    """Ratio of the lowest rate with a collapse to the next one that is tried."""
    safe: int = 2
    """Times the replications of a stage that must show no collapse at a recommended rate."""
    most_retreats: int = 8
    """Rates that are tried below a collapse."""
    low_loads: tuple[float, ...] = (0.5, 0.25)
    """Shares of the goodput at which the targets must be met too, one run each."""
    dip: float = 0.3
    """Log odds short of the target from which such a run misses it."""
    most_stages: int = 16
    """Stages of a search."""

    @property
    def counted(self) -> float:
        """Share of a run that is counted."""
        return 1 - self.warmup - self.cooldown

    def length(self, tolerance: float) -> float:
        """Length of a replication in mean residence times, at least.

        Parameters
        ----------
        tolerance : float
            Wanted half width of the interval over the goodput: what the empty start adds is to be
            about the same share of it, whatever it is.
        """
        more = self.decay / self.warmup * math.log(0.03 / tolerance)
        return max(self.least_residences, self.residences + more)


RULES: Final = SearchRules()
"""The rules of every search that is given no others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How sure the answer shall be."""

    target: float
    """Attainment that a rate must reach, above 0 and below 1."""
    targets: tuple[float, ...] = ()
    """The same of each criterion, where they differ; empty where all are `target`."""
    tolerance: float = 0.03
    """Half width of the 95 % interval over the goodput, > 0."""
    replications: int = 8
    """Independent runs at each of the two rates that an estimate rests on, >= 3."""
    max_requests: int = 200_000
    """Longest run (requests)."""
    least_s: float = 0.0
    """Shortest run (s of arrivals), apart from first scouts: a queue must have the time to build up
    beyond the targets."""
    scout_s: float = 0.0
    """Shortest scout (s of arrivals): instances that are yet to start must have the time."""

    even: bool = True
    """Whether runs at one rate have arrivals of one kind: else they may fall into two groups by
    their arrivals alone, and no collapse is looked for."""

    @property
    def most_degrees(self) -> int:
        """Degrees of freedom of an interval, at most: those that the least stage has.

        The size of a larger one follows from what the least one varied by, and it ends at those
        that vary little by chance. With the degrees of the first look the interval of such a
        sample keeps its level (Stein, Annals of Mathematical Statistics 16, 1945).
        """
        return max(2 * self.replications - 4, 1)  # two for the line, up to two for controls

    def wanted(self, num: int) -> tuple[float, ...]:
        """Return the attainment wanted of each of `num` criteria, 0 to 1."""
        return self.targets or (self.target,) * num

    def log_odds(self, num: int) -> FloatArray:
        """Return the log odds of the attainment wanted of each of `num` criteria."""
        wanted = np.array(self.wanted(num))
        odds: FloatArray = np.log(wanted / (1 - wanted))
        return odds

    def num_scout_requests(self, rate_rps: float) -> int:
        """Requests of a first run at a rate (requests/s)."""
        return min(max(RULES.scout_requests, math.ceil(rate_rps * self.scout_s)), self.max_requests)
