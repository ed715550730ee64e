"""The search of one strategy: which runs it wants next, until its goodput is known well enough.

Pure: it asks for runs and is told what came out. `runs` lets the simulator answer. Three parts:
single runs, as few and short as will do, locate about where attainment crosses the target; a pilot
stage of few replications there says how much runs vary; final stages on other seeds, whose rates,
number and length were chosen before they ran, give the estimate.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from simcluster.studies.goodput.estimate import (
    CONFIDENCE,
    Estimate,
    estimate_crossing,
    logit,
    t_quantile,
)
from simcluster.studies.goodput.locate import Bracket, locate
from simcluster.studies.goodput.probe import Outcome, Probe, Wanted
from simcluster.studies.goodput.rules import RULES, SearchRules, Settings

Status = Literal["found", "wide", "not settled", "unlimited", "unattainable"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """About where attainment crosses the target."""

    rate_rps: float
    """About the goodput (requests/s)."""
    slope: float
    """Fall of the log odds of attainment per unit of the logarithm of the rate, > 0."""
    num_requests: int
    """Least length of a run there."""


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
        if self.estimate is None or mean <= t_quantile(1 - chance, len(drift) - 1) * error:
            return 0.0
        return mean / (target * (1 - target)) / self.estimate.slope


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The goodput of one strategy."""

    status: Status
    """``"found"``; ``"wide"``: the longest runs leave the interval wider than asked, or queues
    still build up in them; ``"not settled"``: no final stage has the crossing between its two
    rates; ``"unlimited"``: the targets are met at any rate; ``"unattainable"``: at none."""
    estimate: Estimate | None
    """The goodput, if it is found or wide: that of the last stage alone, a final one. What pilots
    estimate is none: of many pilots some look far better than they are."""
    probes: tuple[Probe, ...]
    """Every run, in the order of the search."""
    stages: tuple[Stage, ...] = ()
    """The replications that show attainment fall between their two rates, in order; pilots too."""
    alone: Probe | None = None
    """Of ``"unattainable"``: requests that meet no other."""

    @property
    def num_requests(self) -> int:
        """Requests simulated, all probes together."""
        return sum(p.num_requests * len(p.outcomes) for p in self.probes)


_Runs = Generator[list[Wanted], list[Outcome], Probe]
Search = Generator[list[Wanted], list[Outcome], Verdict]
"""A search under way: yields the runs that it wants next, and is sent their outcomes."""


def search(start: float | Located, settings: Settings, rules: SearchRules = RULES) -> Search:
    """Look for the highest rate whose attainment reaches the target.

    Parameters
    ----------
    start : float or Located
        Where to start (requests/s), > 0: a bound from the roofline; or about where attainment
        crosses the target, if that is known.
    settings : Settings
        How sure the answer shall be.
    rules : SearchRules
        The numbers of the method.

    Yields
    ------
    list of Wanted
        Runs to do; the outcomes are sent back in this order.
    """
    going = _Searching(settings, rules)
    if not isinstance(start, Located):
        located = yield from going.located(start)
        if isinstance(located, Verdict):
            return located
        start = located
    return (yield from going.settled(start))


class _Plan(NamedTuple):
    """Of a stage: rate (requests/s) in the middle, logarithm of the ratio of its two rates."""

    rate_rps: float
    gap: float
    num_requests: int
    is_final: bool


class _Aim(NamedTuple):
    """Of the next stage: about where attainment crosses, how steeply, and how long runs must be.

    With the least distance of its two rates (logarithm of their ratio), and whether the crossing
    lay between those of the last stage, a final one.
    """

    rate_rps: float
    slope: float
    num_requests: float
    is_final: bool = False
    least_gap: float = 0.0
    holds: bool = False


class _Searching:
    """A search under way, and the runs that it has had."""

    def __init__(self, settings: Settings, rules: SearchRules) -> None:
        self._settings, self._rules = settings, rules
        self._probes: list[Probe] = []
        self._stages: list[Stage] = []

    # Locate -------------------------------------------------------------------------------------

    def located(
        self, guess_rps: float
    ) -> Generator[list[Wanted], list[Outcome], Located | Verdict]:
        """Find about where attainment crosses the target; a verdict where it does nowhere."""
        settings, rules = self._settings, self._rules
        target = logit(settings.target)

        def ends(known: Bracket[Probe]) -> bool:
            if known.high is None:
                assert known.low is not None
                return known.low.rate_rps > rules.farthest * guess_rps
            if known.low is None:
                rate, residence_s = known.high.rate_rps, known.high.outcomes[0].residence_s
                alone = math.isnan(residence_s) or residence_s * rate < rules.alone
                return alone or rate < rules.lowest * guess_rps
            near = known.gap <= math.log(rules.near) and known.fall <= rules.straight
            return near or known.gap <= settings.tolerance / 2

        found = yield from locate(guess_rps, target, self._look, ends, rules.walk)
        if found.low is None or found.high is None:
            return Verdict(
                status="unlimited" if found.high is None else "unattainable",
                estimate=None,
                probes=tuple(self._probes),
                alone=found.high,
            )
        return Located(
            rate_rps=found.crossing_rps(target),
            slope=found.slope,
            num_requests=self._least(found.low),
        )

    def _look(self, rate_rps: float) -> _Runs:
        """Look at a rate by runs that are as long as it takes to believe them.

        The first is short. Short runs flatter, for queues have no time to build up: one that misses
        by far is hopeless and is believed, any other is followed by one long enough for the
        measured residence times, which are known better each time.
        """
        settings, rules = self._settings, self._rules
        least = logit(settings.target) - rules.hopeless
        probe = yield from self._single(rate_rps, settings.num_scout_requests(rate_rps))
        if probe.log_odds > least:
            needed = probe.least_requests(settings, rules.scout_residences)
            while needed > 1.5 * probe.num_requests and probe.log_odds > least:
                probe = yield from self._single(rate_rps, needed)
                needed = probe.least_requests(settings, rules.scout_residences)
        return probe

    def _single(self, rate_rps: float, num_requests: int) -> _Runs:
        """Do one run; all single runs of one length meet the same requests."""
        outcomes = yield [Wanted(rate_rps, 0, num_requests)]
        self._probes.append(Probe(rate_rps, num_requests, tuple(outcomes), (0,)))
        return self._probes[-1]

    def _least(self, probe: Probe) -> int:
        """Requests of a replication at a rate, at least."""
        rules = self._rules
        return probe.least_requests(self._settings, rules.residences, rules.least_requests)

    # Settle -------------------------------------------------------------------------------------

    def settled(self, located: Located) -> Search:
        """Estimate the goodput well enough.

        Notes
        -----
        Each stage has seeds of its own at each of its two rates, and its estimate is from them
        alone. Rates, number and length are fixed before it starts, from what was known before, so
        the estimate does not depend on when the search stops.

        Stopping as soon as an interval is narrow would make intervals too narrow (optional
        stopping). So a final stage is sized from the pilot to land well inside the tolerance, few
        are rejected for their width, and a pilot never ends the search.
        """
        aim = _Aim(located.rate_rps, located.slope, located.num_requests)
        for _ in range(self._rules.most_stages):
            plan = self._plan(aim)
            self._stages.append((yield from self._stage(plan)))
            following = self._judged(plan, aim)
            if not isinstance(following, _Aim):
                return self._verdict(following)
            aim = following
        return self._verdict("wide" if aim.holds else "not settled")

    def _plan(self, aim: _Aim) -> _Plan:
        rules, tolerance = self._rules, self._settings.tolerance
        least = rules.spread[0] if aim.is_final else rules.pilot_spread
        wanted = min(rules.fall / aim.slope, rules.spread[1]) * math.sqrt(tolerance)
        gap = max(wanted, least * tolerance, aim.least_gap)
        scout = self._settings.num_scout_requests(aim.rate_rps * math.exp(gap / 2))
        most = self._settings.max_requests
        return _Plan(
            aim.rate_rps, gap, max(min(math.ceil(aim.num_requests), most), scout), aim.is_final
        )

    def _judged(self, plan: _Plan, aim: _Aim) -> _Aim | Status:
        """Return what the next stage aims at, or how the search ends with the last one."""
        settings, rules, stage = self._settings, self._rules, self._stages[-1]
        num, tolerance, estimate = plan.num_requests, settings.tolerance, stage.estimate
        is_longest = plan.is_final and num >= settings.max_requests
        if estimate is None:  # its rates do not differ: further apart, for longer
            gap = 2 * plan.gap
            if gap > rules.too_far or is_longest:
                return "not settled"
            return aim._replace(num_requests=2.0 * num, least_gap=gap, holds=False)
        shift, length = self._shift_and_length(plan)
        beyond = min(rules.beyond / estimate.slope, rules.beyond_tolerances * tolerance)
        if abs(shift) > max(rules.outside * plan.gap, beyond):
            # Outside its two rates the line is trusted for a few of their distances alone.
            shift = math.copysign(min(abs(shift), rules.most_shift * plan.gap), shift)
            return _Aim(plan.rate_rps * math.exp(shift), estimate.slope, length)
        rate = plan.rate_rps * math.exp(shift)
        if stage.fall > 2 * rules.straight and plan.gap > tolerance / 2:
            # Too coarse for a straight line: closer together.
            return _Aim(rate, estimate.slope, length, plan.is_final)
        narrow = estimate.half_width <= tolerance
        if plan.is_final and length <= rules.longer * num and narrow:
            return "found"
        if is_longest:
            return "wide"
        factor = self._growth(stage, estimate)
        # Where runs cannot be longer a further pilot would say no more.
        is_final = factor < rules.growth[1] or num >= settings.max_requests
        return _Aim(rate, estimate.slope, max(length, num * factor), is_final, holds=plan.is_final)

    def _shift_and_length(self, plan: _Plan) -> tuple[float, float]:
        """Return by how much the logarithm of the rate is off, and the length that runs need.

        Without regard to the width of the interval: queues must have built up.
        """
        settings, rules, stage = self._settings, self._rules, self._stages[-1]
        assert stage.estimate is not None
        steady = rules.unsteady * settings.tolerance
        bias = stage.start_bias(settings.target, rules.chance[plan.is_final])
        least, num = self._least(stage.low), plan.num_requests
        ample = min(max(rules.ample * least, num), settings.max_requests)
        shift, length = stage.estimate.log_rate - math.log(plan.rate_rps), float(max(least, num))
        if bias > steady:
            shift -= bias / 2
            if plan.is_final:
                length *= max(2.0, bias / steady)
        return shift, min(length, ample)

    def _growth(self, stage: Stage, estimate: Estimate) -> float:
        """Return by how much runs must be longer for an interval that is narrow enough."""
        settings, rules = self._settings, self._rules
        degrees = 2 * settings.replications - 4  # some are lost to unequal spread
        width = math.sqrt(estimate.variance * stage.size / settings.replications)
        width *= t_quantile(0.5 + CONFIDENCE / 2, degrees)
        factor = (width / (rules.aim * settings.tolerance)) ** 2
        return min(max(factor, rules.growth[0] if stage.is_final else 0.0), rules.growth[1])

    def _stage(self, plan: _Plan) -> Generator[list[Wanted], list[Outcome], Stage]:
        """Run replications at two rates.

        Those at the two rates meet different requests, and so do those of two stages. The k-th
        final stage of one strategy meets the same requests as that of another.
        """
        rules = self._rules
        size = self._settings.replications if plan.is_final else rules.pilot_size
        number = sum(stage.is_final == plan.is_final for stage in self._stages)
        first = 1 + 2 * size * number + (0 if plan.is_final else rules.first_pilot)
        numbers = [tuple(range(first + i * size, first + (i + 1) * size)) for i in (0, 1)]
        rates = [plan.rate_rps * math.exp(side * plan.gap / 2) for side in (-1, 1)]
        outcomes = yield [
            Wanted(rate, k, plan.num_requests)
            for rate, own in zip(rates, numbers, strict=True)
            for k in own
        ]
        low = Probe(rates[0], plan.num_requests, tuple(outcomes[:size]), numbers[0])
        high = Probe(rates[1], plan.num_requests, tuple(outcomes[size:]), numbers[1])
        self._probes += [low, high]
        estimate = estimate_crossing(low.counts, high.counts, self._settings.target)
        return Stage(low=low, high=high, estimate=estimate, is_final=plan.is_final)

    def _verdict(self, status: Status) -> Verdict:
        return Verdict(
            status=status,
            estimate=None if status == "not settled" else self._stages[-1].estimate,
            probes=tuple(self._probes),
            stages=tuple(stage for stage in self._stages if stage.estimate is not None),
        )
