"""The search of one strategy in a closed loop: the most users at which the targets are met.

Like `search`, for whole numbers of users: single runs find two numbers around the crossing, and
replications at two numbers, one next to the other where that is needed, give the place of the
crossing between them (log odds straight in the logarithm of the number). Lengths of runs follow
from the number of users, not from time: every user asks several times.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Generator
from dataclasses import replace
from typing import Final

from simcluster.studies.goodput.estimate import (
    CONFIDENCE,
    Estimate,
    estimate_crossing,
    t_quantile,
)
from simcluster.studies.goodput.probe import Outcome, Probe, Wanted
from simcluster.studies.goodput.rules import RULES, SearchRules, Settings
from simcluster.studies.goodput.search import Located, Search, Stage, Status, Verdict

_CYCLES: Final = 5
"""Requests of a user in the longest run, at least: all of them begin at once."""
_Stages = Generator[list[Wanted], list[Outcome], Stage]


def search_users(
    start: float | Located | Verdict,
    settings: Settings,
    rules: SearchRules = RULES,
    *,
    size: int | None = None,
) -> Search:
    """Look for the largest number of users whose attainment reaches the target.

    Parameters
    ----------
    start, settings, rules, size
        As in `search.search`; rates are numbers of users.

    Yields
    ------
    list of Wanted
        Runs to do; the outcomes are sent back in this order.
    """
    going = _Users(settings, rules)
    if isinstance(start, Verdict):
        return (yield from going.grown(start, size or settings.replications))
    around = yield from going.around(start.rate_rps if isinstance(start, Located) else start)
    if isinstance(around, Verdict):
        return around
    return (yield from going.settled(*around))


class _Users:
    """A search under way, and the runs that it has had."""

    def __init__(self, settings: Settings, rules: SearchRules) -> None:
        self._settings, self._rules = settings, rules
        self._probes: list[Probe] = []
        self._stages: list[Stage] = []

    def _length(self, users: float, cycles: float, least: int) -> int:
        """Requests of a run in which each user asks about `cycles` times, or `least`."""
        return min(max(least, math.ceil(cycles * users)), self._settings.max_requests)

    def _single(
        self, users: int, num_requests: int
    ) -> Generator[list[Wanted], list[Outcome], Probe]:
        outcomes = yield [Wanted(float(users), 0, num_requests)]
        self._probes.append(Probe(float(users), num_requests, tuple(outcomes), (0,)))
        return self._probes[-1]

    def around(
        self, guess: float
    ) -> Generator[list[Wanted], list[Outcome], tuple[int, int] | Verdict]:
        """Find two close numbers of users with the crossing between them; or that there is none."""
        rules, walk = self._rules, self._rules.walk
        most = max(1, self._settings.max_requests // _CYCLES)
        first = users = min(max(1, round(guess)), most)
        low: Probe | None = None
        high: Probe | None = None
        while True:
            num = self._length(users, rules.scout_residences, rules.scout_requests)
            probe = yield from self._single(users, num)
            margin = probe.margin(self._settings)
            if margin >= 0:
                low = probe
            else:
                high = probe
            if high is None:
                if users > rules.farthest * first or users == most:
                    return self._verdict("unlimited")
                step = walk.far_step if margin > walk.far else walk.step
                users = min(max(users + 1, round(users * step)), most)
            elif low is None:
                if users == 1:
                    return self._verdict("unattainable", alone=probe)
                step = walk.far_step**2 if -margin > walk.far else walk.far_step
                users = max(1, min(users - 1, round(users / step)))
            else:
                ends = int(low.rate_rps), int(high.rate_rps)
                if ends[1] - ends[0] <= 1 or ends[1] <= rules.near * ends[0]:
                    return ends
                users = min(max(self._between(low, high), ends[0] + 1), ends[1] - 1)

    def _between(self, low: Probe, high: Probe) -> int:
        """Return about where the log odds of two runs cross the target, off both ends."""
        margins = low.margin(self._settings), high.margin(self._settings)
        fall, keep = margins[0] - margins[1], self._rules.walk.margin
        share = margins[0] / fall if fall <= self._rules.walk.straight else 0.5
        share = min(max(share, keep), 1 - keep)
        return round(low.rate_rps * math.exp(share * math.log(high.rate_rps / low.rate_rps)))

    def settled(self, low: int, high: int) -> Search:
        """Estimate the crossing between two numbers of users well enough; move them where not."""
        settings, rules = self._settings, self._rules
        counted = rules.least_misses / (1 - max(settings.wanted(1)))
        least = max(rules.least_requests, math.ceil(counted / rules.counted))
        size, length = rules.pilot_size, 0
        for _ in range(rules.most_stages):
            length = max(length, self._length(high, rules.length(settings.tolerance), least))
            stage = yield from self._stage((low, high), length, size)
            own = stage.estimate
            if own is None or abs(stage.shift) > rules.outside_users * stage.gap:
                following = self._moved(stage)
                if isinstance(following, str):
                    return self._verdict(following, alone=stage.low)
                low, high = following
                continue
            fall = stage.low.margin(settings) - stage.high.margin(settings)
            if fall > 2 * rules.straight and high - low > 1:
                low, high = self._narrowed(own, low, high)
                continue
            wanted = self._size(stage, own)
            if wanted <= size:
                narrow = own.half_width <= settings.tolerance or _is_whole(own)
                return (yield from self._checked(self._verdict("found" if narrow else "wide")))
            if wanted > rules.many and length < settings.max_requests:
                longer = min(math.ceil(length * wanted / size), settings.max_requests)
                wanted = max(settings.replications, math.ceil(wanted * length / longer))
                length = longer
            size = min(wanted, rules.most)
        holds = [s for s in self._stages if self._holds(s)]
        self._stages += holds[-1:]
        return self._verdict("wide" if holds else "not settled")

    def _holds(self, stage: Stage) -> bool:
        enough = stage.size >= self._settings.replications and stage.estimate is not None
        return enough and abs(stage.shift) <= self._rules.outside_users * stage.gap

    def _moved(self, stage: Stage) -> tuple[int, int] | Status:
        """Return the two numbers that follow two without the crossing between them."""
        settings, low, high = self._settings, int(stage.low.rate_rps), int(stage.high.rate_rps)
        apart = high - low
        if stage.low.margin(settings) < 0:  # it lies below
            return ("unattainable") if low == 1 else (max(1, low - 2 * apart), low)
        if stage.high.margin(settings) >= 0:  # above
            return high, high + 2 * apart
        if stage.gap > self._rules.too_far:
            return "not settled"
        return max(1, low - apart), high + apart

    def _narrowed(self, own: Estimate, low: int, high: int) -> tuple[int, int]:
        """Return two closer numbers around the crossing: attainment falls too far for a line."""
        half = math.log(high / low) / 4
        centre = min(max(math.exp(own.log_rate), low), high)
        nearer = max(low, math.floor(centre * math.exp(-half)))
        farther = min(high, max(nearer + 1, math.ceil(centre * math.exp(half))))
        if farther - nearer < high - low:
            return min(nearer, farther - 1), farther
        # Of three numbers the one in the middle replaces the end that is farther away.
        return (low, high - 1) if centre - low < high - centre else (low + 1, high)

    def _size(self, stage: Stage, own: Estimate) -> int:
        """Return the replications that a stage needs; no more than it has if it is good."""
        settings, rules, size = self._settings, self._rules, stage.size
        if size >= settings.replications and (
            own.half_width <= settings.tolerance or _is_whole(own) or size >= rules.most
        ):
            return size
        width = math.sqrt(own.variance * size)
        width *= t_quantile(0.5 + CONFIDENCE / 2, settings.most_degrees)
        needed = min((width / (rules.aim * settings.tolerance)) ** 2, rules.growth * size)
        wanted = max(settings.replications, math.ceil(needed))
        return (
            max(wanted, math.ceil(rules.more * size)) if size >= settings.replications else wanted
        )

    def _stage(self, users: tuple[int, int], num_requests: int, size: int) -> _Stages:
        """Run replications at two numbers of users; those of the last stage are not run again."""
        before = self._stages[-1] if self._stages else None
        probes: list[Probe] = []
        todo: list[Wanted] = []
        for side, number in enumerate(users):
            old = None if before is None else (before.low, before.high)[side]
            same = old is not None and (old.rate_rps, old.num_requests) == (number, num_requests)
            had = old.outcomes[:size] if same and old is not None else ()
            numbers = tuple(range(1 + side, 1 + side + 2 * size, 2))
            probes.append(Probe(float(number), num_requests, had, numbers))
            todo += [Wanted(float(number), k, num_requests) for k in numbers[len(had) :]]
            if same:
                self._probes = [probe for probe in self._probes if probe is not old]
        came = iter((yield todo) if todo else ())
        low, high = (
            replace(p, outcomes=p.outcomes + tuple(itertools.islice(came, size - len(p.outcomes))))
            for p in probes
        )
        self._probes += [low, high]
        wanted = self._settings.wanted(len(low.outcomes[0].counted))
        numbers = low.replications + high.replications
        stage = Stage(
            low=low,
            high=high,
            estimate=estimate_crossing(
                low.counts, high.counts, wanted, numbers, self._settings.most_degrees
            ),
        )
        self._stages.append(stage)
        return stage

    def grown(self, verdict: Verdict, size: int) -> Search:
        """Let the last stage of a verdict grow to `size` replications at each number of users."""
        last = verdict.stages[-1]
        self._probes, self._stages = list(verdict.probes), list(verdict.stages)
        users = int(last.low.rate_rps), int(last.high.rate_rps)
        stage = yield from self._stage(users, last.num_requests, size)
        if not self._holds(stage):
            return verdict  # by chance its crossing lies outside; the former is as good
        return replace(self._verdict(verdict.status), dips=verdict.dips)

    def _checked(self, verdict: Verdict) -> Search:
        """Look at few users too: a goodput says that the targets are met with any fewer."""
        rules, dips = self._rules, []
        assert verdict.goodput is not None, "it is found"
        most = max(1, math.floor(verdict.goodput.value))
        for users in dict.fromkeys(max(1, round(share * most)) for share in rules.low_loads):
            if users < most:
                num = self._length(users, rules.scout_residences, rules.scout_requests)
                probe = yield from self._single(users, num)
                if probe.margin(self._settings) < -rules.dip:
                    dips.append(probe)
        return replace(verdict, probes=tuple(self._probes), dips=tuple(dips))

    def _verdict(self, status: Status, alone: Probe | None = None) -> Verdict:
        known = tuple(stage for stage in self._stages if stage.estimate is not None)
        return Verdict(
            status=status,
            estimate=known[-1].estimate if status in ("found", "wide") else None,
            probes=tuple(self._probes),
            stages=known,
            alone=alone if status == "unattainable" else None,
        )


def _is_whole(own: Estimate) -> bool:
    """Whether the interval says a single number of users."""
    ends = own.interval
    return math.floor(ends.low) == math.floor(ends.high)
