"""The search of one strategy: which runs it wants next, until its goodput is known well enough.

Pure: it asks for runs and is told what came out. `runs` lets the simulator answer. Three parts:
single runs, as few and short as will do, find about where attainment crosses the target; a pilot
stage of few replications there says how much runs vary; final stages on other seeds, whose rates,
number and length were chosen before they ran, give the estimate.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

import numpy as np

from simcluster.studies.goodput import student
from simcluster.studies.goodput.estimate import CONFIDENCE, Counts, Estimate, cross, logit

Status = Literal["found", "wide", "not settled", "unlimited", "unattainable"]

RESIDENCES: Final = 20.0
"""Mean residence times in a run of a replication, at least: long answers stay much longer."""
_SCOUT_RESIDENCES: Final = 12.0
_SCOUT_REQUESTS: Final = 400
_LEAST_REQUESTS: Final = 4000
_HOPELESS: Final = 2.0  # log odds short of the target at which a short run is believed
_STEP: Final = (1.1, 1.6)  # between two rates of a search that knows no bound, least and most
_NEAR: Final = 1.12  # highest over lowest rate at which locating may end
_STRAIGHT: Final = 2.5  # fall of the log odds that a straight line is trusted with
_FALL: Final = 6.0  # of the log odds between two rates, times the root of the tolerance
_SPREAD: Final = (0.2, 0.6)  # distance of two rates: least in tolerances, most in their roots
_PILOT_SPREAD: Final = 0.5  # the least in a pilot stage
_PILOTS: Final = 1_000_000  # number of the first replication of a pilot stage
_PILOT: Final = 3  # replications at each of the two rates of the pilot stage
_OUTSIDE: Final = 0.6  # distance of the crossing from the middle of the two rates, in distances
_BEYOND: Final = 1.0  # the same in log odds, and
_FAR: Final = 0.75  # in tolerances: the least of the two is allowed in any case
_AMPLE: Final = 2.0  # of the least length, to which a bias makes runs longer
_GROWTH: Final = (1.4, 8.0)  # of the run length, least and most
_CHANCE: Final = (0.05, 0.001)  # of taking noise for a bias: in a pilot, in a final stage
_AIM: Final = 0.5  # of the tolerance, when a run length is chosen: few stages shall be too wide
_UNSTEADY: Final = 1 / 3  # of the tolerance: what the start of the runs adds to the goodput
_MOST_STAGES: Final = 12
_ALONE: Final = 0.05  # requests in the system below which one meets no other
_FARTHEST: Final = 30.0  # times the first guess
_SATURATED: Final = 0.01  # share of the arrivals by which the queue grows


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How sure the answer shall be.

    Attributes
    ----------
    target : float
        Attainment that a rate must reach, above 0 and below 1.
    tolerance : float
        Half width of the 95 % interval over the goodput, > 0.
    replications : int
        Independent runs at each of the two rates that an estimate rests on, >= 3.
    max_requests : int
        Longest run (requests).
    least_s : float
        Shortest run (s of arrivals), apart from first scouts: a queue must have the time to build
        up beyond the targets.
    scout_s : float
        Shortest scout (s of arrivals): instances that are yet to start must have the time.
    """

    target: float
    tolerance: float = 0.03
    replications: int = 5
    max_requests: int = 200_000
    least_s: float = 0.0
    scout_s: float = 0.0

    def num_scout_requests(self, rate_rps: float) -> int:
        """Requests of a first run at a rate (requests/s)."""
        return min(max(_SCOUT_REQUESTS, math.ceil(rate_rps * self.scout_s)), self.max_requests)


class Wanted(NamedTuple):
    """A run: offered rate (requests/s), number of the replication, number of requests."""

    rate_rps: float
    replication: int
    num_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run gave.

    Attributes
    ----------
    counted : tuple of int
        Requests after the warm-up that each criterion is about.
    met : tuple of int
        Of them those that met it.
    residence_s : float
        Mean time in the system (s) of those that finished; NaN if none did.
    arrivals : float
        Logarithm of the rate at which requests came after the warm-up over the rate offered.
    controls : tuple of float
        Logarithms of other sums of what they asked for over their expectations.
    drift : float
        Share within the targets less that of the second half of the counted arrivals.
    growth : float
        Arrivals less departures in the second half of the arrivals, over the arrivals.
    statistics : dict of str to float
        To be averaged and shown: latencies (s), separate attainments, tokens.
    """

    counted: tuple[int, ...]
    met: tuple[int, ...]
    residence_s: float
    arrivals: float
    drift: float
    growth: float
    controls: tuple[float, ...] = ()
    statistics: dict[str, float] = field(default_factory=dict)

    @property
    def least(self) -> tuple[int, int]:
        """Requests that met the criterion that is met least, and those it is about."""
        pairs = list(zip(self.met, self.counted, strict=True))
        return min(pairs, key=lambda pair: pair[0] / pair[1] if pair[1] else 1.0)


@dataclass(frozen=True, slots=True)
class Probe:
    """Runs at one rate with one length, each with a seed of its own."""

    rate_rps: float
    num_requests: int
    outcomes: tuple[Outcome, ...]
    replications: tuple[int, ...]

    @property
    def counts(self) -> Counts:
        """Requests counted, and those within the targets."""
        return Counts(
            rate_rps=self.rate_rps,
            counted=np.array([o.counted for o in self.outcomes], dtype=np.float64),
            met=np.array([o.met for o in self.outcomes], dtype=np.float64),
            arrivals=np.array([o.arrivals for o in self.outcomes]),
            controls=np.array([o.controls for o in self.outcomes], dtype=np.float64),
        )

    @property
    def log_odds(self) -> float:
        """Of the attainment of the criterion that is met least, all runs together."""
        return float(self.counts.logits().mean(axis=1).min())

    @property
    def growth(self) -> float:
        """Share of the arrivals by which the queue grows, mean over the runs."""
        return sum(o.growth for o in self.outcomes) / len(self.outcomes)

    def grows_beyond(self, share: float) -> bool:
        """Whether the queue grows by over `share` of the arrivals beyond chance (95 %, one-sided).

        A single run says nothing about chance: False.
        """
        size = len(self.outcomes)
        if size == 1:
            return False
        error = float(np.std([o.growth for o in self.outcomes], ddof=1)) / math.sqrt(size)
        return self.growth - student.quantile(0.95, size - 1) * error > share

    @property
    def saturated(self) -> bool:
        """Whether the queue grows by over 1 % of the arrivals: without bound."""
        return self.grows_beyond(_SATURATED)

    def mean(self, name: str) -> float:
        """Mean of a statistic over the runs that have it, NaN if none has."""
        values = [o.statistics.get(name, math.nan) for o in self.outcomes]
        known = [v for v in values if not math.isnan(v)]
        return sum(known) / len(known) if known else math.nan

    def least_requests(self, settings: Settings, residences: float) -> int:
        """Requests of a run at this rate that lasts `residences` times a request's stay."""
        known = [o.residence_s for o in self.outcomes if not math.isnan(o.residence_s)]
        residence_s = sum(known) / len(known) if known else 0.0
        needed = self.rate_rps * max(residences * residence_s, settings.least_s)
        least = _LEAST_REQUESTS if residences == RESIDENCES else 0
        return min(max(least, math.ceil(needed)), settings.max_requests)


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """About where attainment crosses the target.

    Attributes
    ----------
    rate_rps : float
        About the goodput (requests/s).
    slope : float
        Fall of the log odds of attainment per unit of the logarithm of the rate, > 0.
    num_requests : int
        Least length of a run there.
    """

    rate_rps: float
    slope: float
    num_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Replications at two rates, and what they give; final or of a pilot."""

    low: Probe
    high: Probe
    estimate: Estimate | None
    is_final: bool = True

    @property
    def replications(self) -> tuple[int, ...]:
        """Numbers of the replications at the lower rate, then at the higher one."""
        return self.low.replications + self.high.replications

    @property
    def size(self) -> int:
        """Replications at each of the two rates."""
        return len(self.low.outcomes)

    @property
    def fall(self) -> float:
        """Fall of the log odds of attainment from the lower rate to the higher one."""
        return self.low.log_odds - self.high.log_odds

    def place_of(self, target: float) -> float:
        """Return where between the two rates its runs cross `target`: 0 to 1, or a little beyond.

        In log odds. That is the goodput but for what the estimate takes off for chance in the
        arrivals and lengths of these runs, so that shares there agree with one another.
        """
        place = (self.low.log_odds - logit(target)) / self.fall if self.fall > 0 else 0.5
        return min(max(place, -1.0), 2.0)

    def mean_at(self, place: float, name: str) -> float:
        """Mean of a statistic at a place: linear between the two rates, and no further."""
        low, high = self.low.mean(name), self.high.mean(name)
        return low + min(max(place, 0.0), 1.0) * (high - low)

    def share_at(self, place: float, name: str) -> float:
        """Share of the requests at a place: its log odds are linear in the place."""
        low, high = self.low.mean(name), self.high.mean(name)
        if not (0 < low < 1 and 0 < high < 1):
            return self.mean_at(place, name)
        odds = logit(low) + place * (logit(high) - logit(low))
        return 1 / (1 + math.exp(-odds))

    def start_bias(self, target: float, chance: float) -> float:
        """By how much the runs' empty start raises the logarithm of the goodput.

        0 where noise alone looks like that with a probability of at least `chance`.

        The second half of the runs is taken as free of it: attainment that still falls from the
        first half to the second does so because queues are still building up.
        """
        drift = np.array([o.drift for p in (self.low, self.high) for o in p.outcomes])
        error = float(drift.std(ddof=1)) / math.sqrt(len(drift))
        mean = float(drift.mean())
        if self.estimate is None or mean <= student.quantile(1 - chance, len(drift) - 1) * error:
            return 0.0
        return mean / (target * (1 - target)) / self.estimate.slope


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The goodput of one strategy.

    Attributes
    ----------
    status : str
        ``"found"``; ``"wide"``: the longest runs leave the interval wider than asked, or queues
        still build up in them; ``"not settled"``: no final stage has the crossing between its two
        rates; ``"unlimited"``: the targets are met at any rate; ``"unattainable"``: at none.
    estimate : Estimate or None
        The goodput, if it is found or wide: that of the last stage alone, a final one. What pilots
        estimate is none: of many pilots some look far better than they are.
    probes : tuple of Probe
        Every run, in the order of the search.
    stages : tuple of Stage
        The replications that show attainment fall between their two rates, in order; pilots too.
    alone : Probe or None
        Of ``"unattainable"``: requests that meet no other.
    """

    status: Status
    estimate: Estimate | None
    probes: tuple[Probe, ...]
    stages: tuple[Stage, ...] = ()
    alone: Probe | None = None

    @property
    def num_requests(self) -> int:
        """Requests simulated, all probes together."""
        return sum(p.num_requests * len(p.outcomes) for p in self.probes)


Search = Generator[list[Wanted], list[Outcome], Verdict]


def search(start: float | Located, settings: Settings) -> Search:
    """Look for the highest rate whose attainment reaches the target.

    Parameters
    ----------
    start : float or Located
        Where to start (requests/s), > 0: a bound from the roofline; or about where attainment
        crosses the target, if that is known.
    settings : Settings
        How sure the answer shall be.

    Yields
    ------
    list of Wanted
        Runs to do; the outcomes are sent back in this order.

    Returns
    -------
    Verdict
        The goodput.
    """
    probes: list[Probe] = []
    if not isinstance(start, Located):
        located = yield from _locate(start, settings, probes)
        if isinstance(located, Verdict):
            return located
        start = located
    return (yield from _settle(start, settings, probes))


def _locate(
    guess_rps: float, settings: Settings, probes: list[Probe]
) -> Generator[list[Wanted], list[Outcome], Located | Verdict]:
    """Find about where attainment crosses the target; a verdict where it does nowhere.

    Notes
    -----
    A rate is first tried with a short run. Short runs flatter, for queues have no time to build up:
    one that misses by far is hopeless and is believed, any other is followed by one long enough for
    the measured residence times.
    """
    target = logit(settings.target)
    low: Probe | None = None
    high: Probe | None = None
    rate = guess_rps
    while True:
        probe = yield from _single(rate, settings.num_scout_requests(rate), probes)
        if probe.log_odds > target - _HOPELESS:
            needed = probe.least_requests(settings, _SCOUT_RESIDENCES)
            while needed > 1.5 * probe.num_requests and probe.log_odds > target - _HOPELESS:
                # The stay is known better each time.
                probe = yield from _single(rate, needed, probes)
                needed = probe.least_requests(settings, _SCOUT_RESIDENCES)
        distance = probe.log_odds - target
        if distance >= 0:
            low = probe
        else:
            high = probe
        if high is None:
            if rate > _FARTHEST * guess_rps:
                return Verdict(status="unlimited", estimate=None, probes=tuple(probes))
            rate *= _STEP[1] if distance > _STRAIGHT else _STEP[0]
        elif low is None:
            stay_s = probe.outcomes[0].residence_s  # not a number where all are rejected
            if math.isnan(stay_s) or stay_s * rate < _ALONE or rate < guess_rps / 1e6:
                return Verdict(
                    status="unattainable", estimate=None, probes=tuple(probes), alone=probe
                )
            step = _STEP[1] if -distance > _STRAIGHT else _STEP[0]
            rate /= step if rate > guess_rps / _FARTHEST else 4.0
        else:
            fall, gap = low.log_odds - high.log_odds, math.log(high.rate_rps / low.rate_rps)
            near = gap <= math.log(_NEAR) and fall <= _STRAIGHT
            if near or gap <= settings.tolerance / 2:
                share = (low.log_odds - target) / fall
                return Located(
                    rate_rps=low.rate_rps * math.exp(share * gap),
                    slope=fall / gap,
                    num_requests=low.least_requests(settings, RESIDENCES),
                )
            share = (low.log_odds - target) / fall if fall <= 2 * _STRAIGHT else 0.5
            rate = low.rate_rps * math.exp(min(max(share, 0.2), 0.8) * gap)


def _single(
    rate_rps: float, num_requests: int, probes: list[Probe]
) -> Generator[list[Wanted], list[Outcome], Probe]:
    """Do one run; all single runs of one length meet the same requests."""
    outcomes = yield [Wanted(rate_rps, 0, num_requests)]
    probes.append(Probe(rate_rps, num_requests, tuple(outcomes), (0,)))
    return probes[-1]


def _settle(located: Located, settings: Settings, probes: list[Probe]) -> Search:
    """Estimate the goodput well enough.

    Notes
    -----
    Each stage has seeds of its own at each of its two rates, and its estimate is from them alone.
    Rates, number and length are fixed before it starts, from what was known before, so the estimate
    does not depend on when the search stops. Its interval could: a final stage ends the search if
    it is narrow enough. It is therefore made as long as the pilot says is needed for much less than
    the tolerance, so that few stages are turned down; the pilot itself never ends a search, for of
    many pilots some look far better than they are.
    """
    rate, slope, num = located.rate_rps, located.slope, located.num_requests
    stages: list[Stage] = []
    tolerance, target = settings.tolerance, settings.target
    root = math.sqrt(tolerance)
    least = 0.0
    is_final = holds = False
    for _ in range(_MOST_STAGES):
        # A pilot's slope is that of single short runs, often too steep: its rates stay apart.
        apart = (_SPREAD[0] if is_final else _PILOT_SPREAD) * tolerance
        gap = max(min(_FALL / slope, _SPREAD[1]) * root, apart, least)
        num = max(num, settings.num_scout_requests(rate * math.exp(gap / 2)))
        stage = yield from _stage(_Plan(rate, gap, num, is_final), stages, settings)
        stages.append(stage)
        probes += [stage.low, stage.high]
        estimate = stage.estimate
        longest = stage.is_final and num >= settings.max_requests
        holds = False  # the crossing between the rates of a final stage
        if estimate is None:
            # Not to be told apart: further apart, for longer.
            least = 2 * gap
            grown = 2.0 * num
            if least > 1.0:
                break
        else:
            least = 0.0
            off = estimate.log_rate - math.log(rate)
            slope = estimate.slope
            bias = stage.start_bias(target, _CHANCE[is_final])
            short = bias > _UNSTEADY * tolerance
            least_num = stage.low.least_requests(settings, RESIDENCES)
            ample = min(max(_AMPLE * least_num, num), settings.max_requests)
            grown = float(max(least_num, num))
            if short:
                off -= bias / 2
                if is_final:
                    grown *= max(2.0, bias / (_UNSTEADY * tolerance))
            beyond = min(_BEYOND / slope, _FAR * tolerance)
            outside = abs(off) > max(_OUTSIDE * gap, beyond)
            grown = min(grown, ample)
            if outside:
                # Beyond its two rates the line is trusted for a few of their distances alone.
                off = math.copysign(min(abs(off), 3 * gap), off)
                is_final = longest = False
            elif stage.fall > 2 * _STRAIGHT and gap > tolerance / 2:
                longest = False  # too coarse for a straight line: closer together
            elif is_final and grown <= 1.5 * num and estimate.half_width <= tolerance:
                return _verdict("found", probes, stages)
            else:
                holds = stage.is_final
                degrees = 2 * settings.replications - 4  # some are lost to unequal spread
                width = math.sqrt(estimate.variance * stage.size / settings.replications)
                width *= student.quantile(0.5 + CONFIDENCE / 2, degrees)
                factor = (width / (_AIM * tolerance)) ** 2
                factor = min(max(factor, _GROWTH[0] if is_final else 0.0), _GROWTH[1])
                grown = max(grown, num * factor)
                # Where runs cannot be longer a further pilot would say no more.
                is_final = factor < _GROWTH[1] or num >= settings.max_requests
            rate *= math.exp(off)
        if longest:
            break
        num = min(math.ceil(grown), settings.max_requests)
    return _verdict("wide" if holds else "not settled", probes, stages)


def _verdict(status: Status, probes: list[Probe], stages: list[Stage]) -> Verdict:
    return Verdict(
        status=status,
        estimate=None if status == "not settled" else stages[-1].estimate,
        probes=tuple(probes),
        stages=tuple(stage for stage in stages if stage.estimate is not None),
    )


class _Plan(NamedTuple):
    """Of a stage: rate (requests/s) in the middle, logarithm of the ratio of its two rates."""

    rate_rps: float
    gap: float
    num_requests: int
    is_final: bool


def _stage(
    plan: _Plan, before: list[Stage], settings: Settings
) -> Generator[list[Wanted], list[Outcome], Stage]:
    """Run replications at two rates.

    Those at the two rates meet different requests, and so do those of two stages. The k-th final
    stage of one strategy meets the same requests as that of another.
    """
    size = settings.replications if plan.is_final else _PILOT
    number = sum(stage.is_final == plan.is_final for stage in before)
    first = 1 + 2 * size * number + (0 if plan.is_final else _PILOTS)
    numbers = [tuple(range(first + i * size, first + (i + 1) * size)) for i in (0, 1)]
    rates = [plan.rate_rps * math.exp(side * plan.gap / 2) for side in (-1, 1)]
    outcomes = yield [
        Wanted(rate, k, plan.num_requests)
        for rate, own in zip(rates, numbers, strict=True)
        for k in own
    ]
    low = Probe(rates[0], plan.num_requests, tuple(outcomes[:size]), numbers[0])
    high = Probe(rates[1], plan.num_requests, tuple(outcomes[size:]), numbers[1])
    estimate = cross(low.counts, high.counts, settings.target)
    return Stage(low=low, high=high, estimate=estimate, is_final=plan.is_final)
