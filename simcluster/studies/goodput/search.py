"""The search of one strategy: which runs it wants next, until its goodput is known well enough.

Pure: it asks for runs and is told what came out. `runs` lets the simulator answer. Single runs, as
few and short as will do, locate about where attainment crosses the target; replications at two
rates around it show how the runs lie there: on a line, or in two groups (`shape`). On a line the
same stage grows until the interval is narrow enough. Of two groups the rate is sought at which
nothing collapses.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from simcluster.studies.goodput.estimate import (
    CONFIDENCE,
    Estimate,
    Interval,
    estimate_crossing,
    logit,
    pooled_crossing,
    t_quantile,
)
from simcluster.studies.goodput.locate import Bracket, locate
from simcluster.studies.goodput.probe import Outcome, Probe, Wanted
from simcluster.studies.goodput.rules import RULES, SearchRules, Settings
from simcluster.studies.goodput.shape import Falls, falls_at, in_two_groups

Status = Literal["found", "wide", "collapses", "not settled", "unlimited", "unattainable"]


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
    """Replications at two rates, and what they give."""

    low: Probe
    high: Probe
    estimate: Estimate | None

    @property
    def replications(self) -> tuple[int, ...]:
        """Numbers of the replications at the lower rate, then at the higher one."""
        return self.low.replications + self.high.replications

    @property
    def size(self) -> int:
        """Replications at each of the two rates."""
        return len(self.low.outcomes)

    @property
    def num_requests(self) -> int:
        """Requests of each run."""
        return self.low.num_requests

    @property
    def gap(self) -> float:
        """Logarithm of the ratio of the two rates."""
        return math.log(self.high.rate_rps / self.low.rate_rps)

    @property
    def middle(self) -> float:
        """Logarithm of the rate in the middle (requests/s)."""
        return (math.log(self.low.rate_rps) + math.log(self.high.rate_rps)) / 2

    @property
    def shift(self) -> float:
        """Logarithm of the estimate less that of the middle."""
        assert self.estimate is not None
        return self.estimate.log_rate - self.middle

    def place_shift(self, settings: Settings, slope: float) -> float:
        """Logarithm of the crossing less that of the middle, of a stage that is small.

        By `slope`, or by that of the stage itself where attainment falls less steeply. A run whose
        requests came faster than its rate counts as one at the higher rate.
        """
        low, high = self.low.margin(settings), self.high.margin(settings)
        own = (low - high) / self.gap
        early = np.concatenate([self.low.counts.arrivals, self.high.counts.arrivals]).mean()
        return (low + high) / 2 / (min(own, slope) if own > 0 else slope) + float(early)

    def place_of(self, settings: Settings) -> float:
        """Return where between the two rates its runs cross the target: 0 to 1, or a little beyond.

        In log odds. That is the goodput but for what the estimate takes off for chance in the
        arrivals and lengths of these runs, so that shares there agree with one another.
        """
        low, high = self.low.margin(settings), self.high.margin(settings)
        place = low / (low - high) if low > high else 0.5
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
    still build up in them; ``"collapses"``: runs at one rate fall into two groups; ``"not
    settled"``: no stage has the crossing between its two rates; ``"unlimited"``: the targets are
    met at any rate; ``"unattainable"``: at none."""
    estimate: Estimate | None
    """The goodput, if it is found or wide: that of the last stage alone."""
    probes: tuple[Probe, ...]
    """Every run, in the order of the search."""
    stages: tuple[Stage, ...] = ()
    """The replications that show attainment fall between their two rates, in order."""
    alone: Probe | None = None
    """Of ``"unattainable"``: requests that meet no other."""
    falls: tuple[Falls, ...] = ()
    """Rates with runs that collapsed, and the one below that showed none, rising; empty where no
    collapse was seen."""
    recommended: Probe | None = None
    """Of ``"collapses"``: runs at the highest rate tried at which none collapsed and the targets
    were met beyond chance."""
    dips: tuple[Probe, ...] = ()
    """Runs at low loads that miss the targets all the same."""

    @property
    def num_requests(self) -> int:
        """Requests simulated, all probes together."""
        return sum(p.num_requests * len(p.outcomes) for p in self.probes)

    @property
    def goodput(self) -> Interval | None:
        """The goodput (requests/s) and its interval; None where there is none.

        Of a strategy that collapses the recommended rate, up to the lowest one with a collapse.
        """
        if self.estimate is not None:
            return self.estimate.interval
        if self.recommended is None:
            return None
        rate = self.recommended.rate_rps
        above = [f.rate_rps for f in self.falls if f.num_fallen and f.rate_rps > rate]
        return Interval(value=rate, low=rate, high=min(above, default=rate))

    def share_at_goodput(self, name: str, settings: Settings) -> float:
        """Return the share of the requests at the goodput that a statistic says; NaN without one.

        Parameters
        ----------
        name : str
            Of the statistic, such as ``"ttft_attainment"``.
        settings : Settings
            What was asked of the search.
        """
        if self.recommended is not None:
            return self.recommended.mean(name)
        if self.estimate is None:
            return math.nan
        stage = self.stages[-1]
        return stage.share_at(stage.place_of(settings), name)

    @property
    def at(self) -> Probe | None:
        """Runs at the goodput or just below, for latencies; None where there are none."""
        if self.recommended is not None:
            return self.recommended
        return self.stages[-1].low if self.stages else self.alone


_Runs = Generator[list[Wanted], list[Outcome], Probe]
Search = Generator[list[Wanted], list[Outcome], Verdict]
"""A search under way: yields the runs that it wants next, and is sent their outcomes."""


def search(
    start: float | Located | Verdict,
    settings: Settings,
    rules: SearchRules = RULES,
    *,
    size: int | None = None,
) -> Search:
    """Look for the highest rate whose attainment reaches the target.

    Parameters
    ----------
    start : float, Located or Verdict
        Where to start (requests/s), > 0: a bound from the roofline; or about where attainment
        crosses the target, if that is known; or how a search ended whose last stage shall grow.
    settings : Settings
        How sure the answer shall be.
    rules : SearchRules
        The numbers of the method.
    size : int, optional
        Of the last stage of a verdict: replications at each rate that it shall have.

    Yields
    ------
    list of Wanted
        Runs to do; the outcomes are sent back in this order.
    """
    going = _Searching(settings, rules)
    if isinstance(start, Verdict):
        return (yield from going.grown(start, size or settings.replications))
    if not isinstance(start, Located):
        located = yield from going.located(start)
        if isinstance(located, Verdict):
            return located
        start = located
    return (yield from going.settled(start))


class _Plan(NamedTuple):
    """Of a stage: rate (requests/s) in the middle, logarithm of the ratio of its two rates.

    With requests of a run, and replications at each rate.
    """

    rate_rps: float
    gap: float
    num_requests: int
    size: int


class _Where(NamedTuple):
    """About where attainment crosses the target: logarithm of the rate, and how steeply."""

    log_rate: float
    slope: float


class _Searching:
    """A search under way, and the runs that it has had."""

    def __init__(self, settings: Settings, rules: SearchRules) -> None:
        self._settings, self._rules = settings, rules
        self._probes: list[Probe] = []
        self._stages: list[Stage] = []
        self._falls: list[Falls] = []

    # Locate -------------------------------------------------------------------------------------

    def located(
        self, guess_rps: float
    ) -> Generator[list[Wanted], list[Outcome], Located | Verdict]:
        """Find about where attainment crosses the target; a verdict where it does nowhere."""
        settings, rules = self._settings, self._rules

        def ends(known: Bracket[_Seen]) -> bool:
            if known.high is None:
                assert known.low is not None
                return known.low.rate_rps > rules.farthest * guess_rps
            if known.low is None:
                rate, residence_s = known.high.rate_rps, known.high.probe.outcomes[0].residence_s
                alone = math.isnan(residence_s) or residence_s * rate < rules.alone
                return alone or rate < rules.lowest * guess_rps
            return known.gap <= math.log(rules.near)

        def look(rate_rps: float) -> Generator[list[Wanted], list[Outcome], _Seen]:
            probe = yield from self._look(rate_rps)
            return _Seen(rate_rps, probe.margin(settings), probe)

        found = yield from locate(guess_rps, 0.0, look, ends, rules.walk)
        if found.low is None or found.high is None:
            return Verdict(
                status="unlimited" if found.high is None else "unattainable",
                estimate=None,
                probes=tuple(self._probes),
                alone=None if found.high is None else found.high.probe,
            )
        return Located(
            rate_rps=found.crossing_rps(0.0),
            slope=found.slope,
            num_requests=self._least(found.low.probe),
        )

    def _look(self, rate_rps: float) -> _Runs:
        """Look at a rate by runs that are as long as it takes to believe them.

        The first is short. Short runs flatter, for queues have no time to build up: one that misses
        by far is hopeless and is believed, any other is followed by one long enough for the
        measured residence times, which are known better each time; a miss needs no longer one.
        """
        settings, rules = self._settings, self._rules
        probe = yield from self._single(rate_rps, settings.num_scout_requests(rate_rps))
        if probe.margin(settings) > -rules.hopeless:
            needed = probe.least_requests(settings, rules.scout_residences)
            while needed > 1.5 * probe.num_requests and probe.margin(settings) >= -rules.doubtful:
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
        counted = rules.least_misses / (1 - max(self._settings.wanted(1)))
        least = max(rules.least_requests, math.ceil(counted / rules.counted))
        return probe.least_requests(self._settings, rules.length(self._settings.tolerance), least)

    # Settle -------------------------------------------------------------------------------------

    def settled(self, located: Located) -> Search:
        """Estimate the goodput well enough.

        Notes
        -----
        The k-th replication meets the same requests in every stage and of every strategy. So the
        goodput of given replications is the root of one function of the rate, wherever its rates
        were, and moving them biases nothing; only their number and length follow what was seen.
        Stages are sized to land inside the tolerance, so that few grow twice (stopping as soon as
        an interval is narrow makes intervals too narrow).
        """
        rules = self._rules
        num = min(located.num_requests, self._settings.max_requests)
        plan, before = yield from self._placed(located, num)
        for _ in range(rules.most_stages):
            stage = yield from self._stage(plan, before)
            before = None
            if self._note_falls(stage.low, stage.high):
                return (yield from self._without_collapse(num))
            following = self._following(stage)
            if not isinstance(following, _Plan):
                return (yield from self._checked(self._verdict(following)))
            plan = following
        holds = [s for s in self._stages if self._holds(s)]
        if holds:
            self._stages.append(holds[-1])
        return self._verdict("wide" if holds else "not settled")

    def _placed(
        self, located: Located, num_requests: int
    ) -> Generator[list[Wanted], list[Outcome], tuple[_Plan, Stage | None]]:
        """Return the first stage: where one full run at each of its two rates puts the crossing.

        With the last of these pairs of runs, which count in the stage if it has their rates. The
        runs that located are shorter, and short runs flatter; all of them met the same requests.
        Two runs that miss the place cost less than a stage that does.
        """
        rules, had, stage = self._rules, len(self._stages), None
        plan = self._around(located.rate_rps, located.slope, num_requests, 1)
        plan = plan._replace(gap=max(plan.gap, self._widest() * rules.pilot_gap))
        for tried in range(rules.most_places):
            stage = yield from self._stage(plan)
            shift = stage.place_shift(self._settings, located.slope)
            if tried and (known := self._pooled(stage)):
                shift = known.log_rate - stage.middle
            if abs(shift) <= rules.placed * plan.gap:
                break
            most = rules.most_shift * plan.gap
            rate = plan.rate_rps * math.exp(min(max(shift, -most), most))
            plan = plan._replace(rate_rps=rate)
        del self._stages[had:]
        return plan._replace(size=rules.pilot_size), stage

    def _widest(self) -> float:
        """Logarithm of the ratio of a stage's two rates, at most."""
        return self._rules.spread[1] * math.sqrt(self._settings.tolerance)

    def grown(self, verdict: Verdict, size: int) -> Search:
        """Let the last stage of a verdict grow to `size` replications at each rate."""
        last = verdict.stages[-1]
        self._probes, self._stages = list(verdict.probes), list(verdict.stages)
        self._falls = list(verdict.falls)
        plan = _Plan(math.exp(last.middle), last.gap, last.num_requests, size)
        stage = yield from self._stage(plan, last)
        if self._note_falls(stage.low, stage.high):
            return (yield from self._without_collapse(last.num_requests))
        if not self._holds(stage):
            # By chance its crossing lies outside: the former is as good.
            return replace(verdict, probes=tuple(self._probes))
        return replace(self._verdict(verdict.status), dips=verdict.dips)

    def _around(self, rate_rps: float, slope: float, num_requests: float, size: int) -> _Plan:
        """Return a stage around a rate at which attainment falls with `slope`."""
        rules, tolerance = self._rules, self._settings.tolerance
        gap = min(rules.fall / slope * math.sqrt(tolerance), self._widest())
        gap = max(gap, rules.spread[0] * tolerance)
        scout = self._settings.num_scout_requests(rate_rps * math.exp(gap / 2))
        num = min(math.ceil(num_requests), self._settings.max_requests)
        return _Plan(rate_rps, gap, max(num, scout), size)

    def _holds(self, stage: Stage) -> bool:
        """Whether a stage has the crossing near its two rates, and is large enough to say so."""
        estimate = stage.estimate
        if stage.size < self._settings.replications or estimate is None:
            return False
        return not self._is_outside(stage, estimate.log_rate)

    def _is_outside(self, stage: Stage, log_rate: float) -> bool:
        """Whether a crossing lies too far from the two rates, or above all that were simulated.

        A line through two points of a smooth curve is off by a multiple of ``x^2 - (gap / 2)^2``,
        ``x`` being the distance from their middle: ``gap / sqrt(2)`` away it is off by as much as
        in the middle.
        """
        far = abs(log_rate - stage.middle) > self._rules.outside * stage.gap
        highest = max(probe.rate_rps for probe in self._probes)
        return far or log_rate > math.log(highest)

    def _where(self, stage: Stage) -> _Where | None:
        """About where the crossing is after a stage; None where attainment does not fall.

        A stage with all replications tells by itself. Before, all full runs so far tell together,
        at whatever rates: three runs at a rate vary too much to move a stage by them alone.
        """
        own = stage.estimate
        alone = None if own is None else _Where(own.log_rate, own.slope)
        if stage.size >= self._settings.replications:
            return alone
        return self._pooled(stage) or alone

    def _pooled(self, stage: Stage) -> _Where | None:
        """Where all full runs so far put the crossing; None where that is not near a stage."""
        full = [p for p in self._probes if p.num_requests >= stage.num_requests]
        known = pooled_crossing(
            np.concatenate([math.log(p.rate_rps) + p.counts.arrivals for p in full]),
            np.concatenate([p.shares(self._settings) for p in full]),
            self._settings.target,
        )
        if known is None or abs(known[0] - stage.middle) > self._rules.too_far:
            return None
        return _Where(*known)

    def _following(self, stage: Stage) -> _Plan | Status:
        """Return the stage that follows one, or how the search ends with it."""
        settings, rules, estimate = self._settings, self._rules, stage.estimate
        num, size = stage.num_requests, stage.size
        where = self._where(stage)
        if where is None:  # its rates do not differ: further apart, with all replications
            gap = 2 * stage.gap
            if gap > rules.too_far:
                return "not settled"
            return _Plan(math.exp(stage.middle), gap, num, max(size, settings.replications))
        # Outside its two rates the line is trusted for a few of their distances alone.
        most = rules.most_shift * stage.gap
        shift = max(min(where.log_rate - stage.middle, most), -most)
        there = self._around(math.exp(stage.middle + shift), where.slope, num, size)
        if self._is_outside(stage, where.log_rate):
            return self._closer(stage, there, where.log_rate - stage.middle)
        fall = stage.low.margin(settings) - stage.high.margin(settings)
        if fall > 2 * rules.straight and stage.gap > settings.tolerance / 2:
            return there._replace(gap=min(there.gap, stage.gap / 2))  # too coarse for a line
        length = self._length(stage)
        if length > rules.longer * num:
            return there._replace(num_requests=length)
        if size < settings.replications or estimate is None:  # too few to tell how much they vary
            return _Plan(math.exp(stage.middle), stage.gap, num, max(size, settings.replications))
        if estimate.half_width <= settings.tolerance:
            return "wide" if self._is_biased(stage) else "found"
        return self._larger(stage, there)

    def _closer(self, stage: Stage, there: _Plan, shift: float) -> _Plan:
        """Return the stage that follows one whose crossing lies outside.

        Where that of the stage before lay outside on the other side, the crossing is between the
        two: few runs have misjudged how steeply attainment falls.
        """
        before = self._stages[-2] if len(self._stages) > 1 else None
        if before is None or before.estimate is None or before.shift * shift >= 0:
            return there
        apart = abs(before.middle - stage.middle)
        rate = math.exp((before.middle + stage.middle) / 2)
        size = max(stage.size, self._settings.replications)
        return there._replace(rate_rps=rate, gap=max(there.gap, apart), size=size)

    def _larger(self, stage: Stage, there: _Plan) -> _Plan | Status:
        """Return a stage of more replications, or of longer runs, for a narrower interval."""
        settings, rules, size = self._settings, self._rules, stage.size
        estimate, num = stage.estimate, stage.num_requests
        assert estimate is not None
        width = math.sqrt(estimate.variance * size)
        width *= t_quantile(0.5 + CONFIDENCE / 2, settings.most_degrees)
        needed = min((width / (rules.aim * settings.tolerance)) ** 2, rules.growth * size)
        wanted = math.ceil(max(needed, rules.more * size))
        if wanted > rules.many and num < settings.max_requests:
            length = min(math.ceil(num * wanted / settings.replications), settings.max_requests)
            wanted = max(settings.replications, math.ceil(wanted * num / length))
            return there._replace(num_requests=length, size=min(wanted, rules.most))
        wanted = min(wanted, rules.most)
        if wanted <= size:
            return "wide"
        return _Plan(math.exp(stage.middle), stage.gap, num, wanted)

    def _is_biased(self, stage: Stage) -> bool:
        """Whether queues still build up in the runs of a stage, beyond chance."""
        settings, rules = self._settings, self._rules
        bias = stage.start_bias(settings.target, rules.chance)
        return bias > rules.unsteady * settings.tolerance

    def _length(self, stage: Stage) -> int:
        """Return the requests that runs need, without regard to the width of the interval."""
        settings, rules = self._settings, self._rules
        least, num = self._least(stage.low), stage.num_requests
        ample = min(max(rules.ample * least, num), settings.max_requests)
        length = max(least, num)
        if stage.size >= settings.replications and self._is_biased(stage):
            length *= 2
        return math.ceil(min(length, ample))

    def _stage(
        self, plan: _Plan, before: Stage | None = None
    ) -> Generator[list[Wanted], list[Outcome], Stage]:
        """Run replications at two rates; those that the last stage had are not run again.

        Those at the two rates meet different requests.
        """
        if before is None and self._stages:
            before = self._stages[-1]
        rates = [plan.rate_rps * math.exp(side * plan.gap / 2) for side in (-1, 1)]
        had: list[tuple[Outcome, ...]] = [(), ()]
        if before is not None and before.num_requests == plan.num_requests:
            olds = before.low, before.high
            if all(math.isclose(o.rate_rps, r) for o, r in zip(olds, rates, strict=True)):
                rates = [old.rate_rps for old in olds]
                had = [old.outcomes for old in olds]
                self._probes = [probe for probe in self._probes if probe not in olds]
        numbers = [tuple(range(1 + i, 1 + 2 * plan.size, 2)) for i in (0, 1)]
        todo = [own[len(kept) :] for own, kept in zip(numbers, had, strict=True)]
        came = yield [
            Wanted(rate, k, plan.num_requests)
            for rate, own in zip(rates, todo, strict=True)
            for k in own
        ]
        outcomes = (
            had[0] + tuple(came[: len(todo[0])]),
            had[1] + tuple(came[len(todo[0]) :]),
        )
        low, high = (
            Probe(rate, plan.num_requests, own, own_numbers[: len(own)])
            for rate, own, own_numbers in zip(rates, outcomes, numbers, strict=True)
        )
        self._probes += [low, high]
        wanted = self._settings.wanted(len(low.outcomes[0].counted))
        estimate = estimate_crossing(
            low.counts,
            high.counts,
            wanted,
            low.replications + high.replications,
            self._settings.most_degrees,
        )
        stage = Stage(low=low, high=high, estimate=estimate)
        self._stages.append(stage)
        return stage

    def _checked(self, verdict: Verdict) -> Search:
        """Look at low loads too: a goodput says that the targets are met at all rates below it."""
        if verdict.goodput is None or verdict.at is None:
            return verdict
        settings, rules, dips = self._settings, self._rules, []
        num = verdict.at.least_requests(settings, rules.scout_residences)
        for share in rules.low_loads:
            rate = share * verdict.goodput.value
            few = max(settings.num_scout_requests(rate), math.ceil(share * num))
            probe = yield from self._single(rate, few)
            if probe.margin(settings) < -rules.dip:
                dips.append(probe)
        return replace(verdict, probes=tuple(self._probes), dips=tuple(dips))

    def _verdict(self, status: Status) -> Verdict:
        known = tuple(stage for stage in self._stages if stage.estimate is not None)
        has_goodput = status in ("found", "wide")
        return Verdict(
            status=status,
            estimate=known[-1].estimate if has_goodput else None,
            probes=tuple(self._probes),
            stages=known,
            falls=tuple(sorted(self._falls, key=lambda falls: falls.rate_rps)),
        )

    # Collapses ----------------------------------------------------------------------------------

    def _note_falls(self, *probes: Probe) -> bool:
        """Note rates whose runs fall into two groups; tell whether there is one."""
        settings, seen = self._settings, False
        for probe in probes:
            wanted = settings.wanted(len(probe.outcomes[0].counted))
            if settings.even and in_two_groups(probe, wanted):
                self._falls.append(falls_at(probe, wanted))
                seen = True
        return seen

    def _without_collapse(self, num_requests: int) -> Search:
        """Find a rate below those with a collapse at which none is seen and the targets are met.

        Where none collapses and the targets are missed all the same, the goodput is that of an
        ordinary queue, and lies lower.
        """
        settings, rules = self._settings, self._rules
        size = rules.safe * settings.replications
        for _ in range(rules.most_retreats):
            rate = min(falls.rate_rps for falls in self._falls) / rules.retreat
            numbers = tuple(range(1, 1 + size))
            outcomes = yield [Wanted(rate, k, num_requests) for k in numbers]
            probe = Probe(rate, num_requests, tuple(outcomes), numbers)
            self._probes.append(probe)
            own = falls_at(probe, settings.wanted(len(probe.outcomes[0].counted)))
            self._falls.append(own)
            if own.num_fallen:
                continue
            if probe.margin_at_least(settings) >= 0:
                return replace(self._verdict("collapses"), recommended=probe)
            slope = max((s.estimate.slope for s in self._stages if s.estimate), default=10.0)
            located = Located(rate_rps=rate, slope=slope, num_requests=num_requests)
            return (yield from self.settled(located))
        return self._verdict("not settled")


@dataclass(frozen=True, slots=True)
class _Seen:
    """A run that locates: its rate (requests/s), and its log odds less those wanted."""

    rate_rps: float
    log_odds: float
    probe: Probe
