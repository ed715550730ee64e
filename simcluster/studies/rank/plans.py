"""The race by cost: the cheapest plans that sustain a rate.

Candidates are tried from the cheapest up, at the rate itself: one run says whether a candidate
meets the targets there, and no goodput is sought of what does not. Runs of the first length turn
candidates away, for short runs flatter; longer ones on several draws order those that are left; the
finals give the goodputs of the cheapest of them. Where several meet the targets easily at the rate,
short searches say which sustains the most. The best one step down and up in cost are those of
the highest goodput, which is not the order at the rate: one that collapses above its goodput may
sustain more than one that misses the targets little by little.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NoReturn

from simcluster.errors import DataError
from simcluster.frames.goodput import three_digits
from simcluster.runs.cell import Cell
from simcluster.scenario.rank_table import RankTable
from simcluster.studies.goodput import Interval, Located
from simcluster.studies.goodput.rules import RULES
from simcluster.studies.goodput.runs import mean_lengths
from simcluster.studies.rank import spares
from simcluster.studies.rank.contest import Contest
from simcluster.studies.rank.draws import Draws, around
from simcluster.studies.rank.finals import LONGEST, NONE, Finals, merged, settle
from simcluster.studies.rank.race import TRUSTED, Crossing, RaceRun, log_odds, search
from simcluster.studies.rank.ranking import Need, Plan, Stage
from simcluster.studies.rank.rounds import (
    BIAS,
    CLOSE,
    FIRST,
    REPLICATIONS,
    SECOND,
    THIRD,
    Rounds,
)
from simcluster.studies.rank.standings import candidate_of
from simcluster.studies.space import build

_SHARE: Final = 0.6  # of the bound, where nothing of a family is known
_AT_ONCE: Final = 2  # plans of one cost that are settled before it is asked whether one will do
_EASY: Final = 2.0  # log odds above the target from which a run does not tell plans apart
_ANY: Final = 0.5  # difference of two plans within which either may be taken: none is looked at
_LOOKED_AT: Final = 3  # candidates of each family, one step up or down in cost
_STEPPED: Final = 3  # the most of these that have longer runs
_STEP_NEAR: Final = 0.15  # from the best in short runs, in logarithms: may sustain more than it
_STEPS: Final = "one step up or down"  # part of the work

_SLOPE: Final = 20.0  # of the log odds over the log rate: only sizes tolerances and starts
_SHORT: Final = 0.75  # log odds below the target up to which a short run turns nobody away
_NEARLY: Final = 0.4  # the same of the mean of the long runs
_FARTHEST: Final = 0.5  # from the rate, in logarithms, that a run at the rate tells of a goodput
_WIDEST: Final = 0.12  # tolerance of a plan that is far from what is needed
_FINAL_REQUESTS: Final = 180_000.0  # that settle a goodput to 3 %, as a rule


class TooFewGpusError(DataError):
    """A need that is more than the best of all that fits on the GPUs there are sustains."""


@dataclass(frozen=True, slots=True)
class _Size:
    """What a candidate takes with its spares."""

    num_spares: int
    num_gpus: int


class Plans:
    """The plans of a contest for a needed rate.

    Parameters
    ----------
    contest : Contest
        Who races on what.
    table : RankTable
        What is needed, and how sure the answer shall be.
    """

    def __init__(self, contest: Contest, table: RankTable) -> None:
        assert table.need_rps is not None, "there is a need"
        self._contest, self._table = contest, table
        self._bounds = contest.bounds
        self.need_rps = table.need_rps
        self.rate_rps = table.need_rps / (1 - table.headroom)
        self._target = contest.scenario.environment.slo.attainment
        self._sizes = {name: self._size(name) for name in self._bounds}
        stock = contest.scenario.environment.cluster.num_gpus
        self._levels: dict[int, list[str]] = {}
        for name in sorted(self._sizes, key=lambda n: (self._sizes[n].num_gpus, n)):
            if self._sizes[name].num_gpus <= stock:
                self._levels.setdefault(self._sizes[name].num_gpus, []).append(name)
        self._odds: dict[str, float] = {}  # distance from the target at the rate, in log odds
        self._seen: dict[str, RaceRun] = {}
        self._perhaps: set[str] = set()  # by three draws of short runs
        self._final = NONE
        self._turned_away: set[str] = set()  # by runs at the rate
        self._looked: dict[str, Crossing] = {}
        self._rated: dict[str, Interval] = {}  # by the ratio to one that is settled

    def _size(self, name: str) -> _Size:
        environment = self._contest.scenario.environment
        cluster = build(environment, self._contest.scenario.strategy(name))
        count = sum(cluster.most_instances.values())
        each = max(placed.num_gpus for placed in cluster.placed)  # it may take the place of any
        extra = spares.spares_of(self._table, count)
        return _Size(extra, self._bounds[name].num_gpus + extra * each)

    def find(self) -> Need:
        """Return the cheapest plans.

        Raises
        ------
        DataError
            If nothing sustains the rate.
        """
        self._contest.work.expect("finals", 3 * _FINAL_REQUESTS)
        sizes = list(self._levels)
        at = self._first_sure(sizes)
        if at is None:
            at = self._best_unsure(sizes)
        found = [name for name in self._levels[sizes[at]] if self._sustains(name) != "no"]
        below = self._step(sizes[at - 1] if at else None)
        above = self._step(sizes[at + 1] if at + 1 < len(sizes) else None)
        self._contest.work.end("at the rate")
        self._contest.work.end("finals")
        order = {"yes": 0, "not sure": 1}
        plans = sorted(
            map(self._plan, found),
            key=lambda plan: (order[plan.sustains], -plan.candidate.goodput_rps),
        )
        return Need(
            need_rps=self.need_rps,
            rate_rps=self.rate_rps,
            headroom=self._table.headroom,
            spares=spares.in_words(self._table),
            plans=tuple(plans),
            below=None if below is None else self._plan(below),
            above=None if above is None else self._plan(above),
        )

    def _first_sure(self, sizes: Sequence[int]) -> int | None:
        """Settle the best of each cost, upwards, until one surely sustains the rate.

        Returns the number of that cost; None if there is none.
        """
        for number, size in enumerate(sizes):
            close = self._by_goodput(self._close(self._levels[size]))
            self._perhaps |= set(close)
            best = close[: self._table.finalists]
            for batch in (best[k : k + _AT_ONCE] for k in range(0, len(best), _AT_ONCE)):
                self._settle_best(batch)
                if any(self._sustains(name) == "yes" for name in batch):
                    return number
        return None

    def _best_unsure(self, sizes: Sequence[int]) -> int:
        """Return the number of the cost with the best of what may sustain the rate, if any may."""
        unsure = {
            number: max(self._goodput(name).value for name in names)
            for number, size in enumerate(sizes)
            if (names := [n for n in self._levels[size] if self._sustains(n) == "not sure"])
        }
        if not unsure:
            self._refuse()
        return max(unsure, key=lambda number: unsure[number])

    @property
    def final(self) -> Finals:
        """What the longest runs have shown."""
        return self._final

    def _close(self, names: Sequence[str]) -> list[str]:
        """Return who may sustain the rate, the best first."""
        names = [name for name in names if self._bounds[name].total_rps >= self.rate_rps]
        short = [self._contest.cell(name, self.rate_rps, 0, FIRST) for name in names]
        left = []
        for cell, seen in zip(short, self._contest.probes(short, "at the rate"), strict=True):
            wanted = log_odds(self._target, seen.num_requests)
            self._odds[cell.strategy] = seen.log_odds - wanted
            self._seen[cell.strategy] = seen
            if self._odds[cell.strategy] >= -_SHORT:
                left.append(cell.strategy)
            else:
                self._turned_away.add(cell.strategy)
        if not left:
            return []
        length = max(self._contest.length(name, self.rate_rps, THIRD) for name in left)
        cells = [
            Cell(name, self.rate_rps, self._contest.seed(2 + draw), length)
            for name in left
            for draw in range(REPLICATIONS)
        ]
        runs = self._contest.probes(cells, "at the rate")
        for number, name in enumerate(left):
            own = runs[number * REPLICATIONS : (number + 1) * REPLICATIONS]
            wanted = log_odds(self._target, length)
            self._odds[name] = sum(one.log_odds for one in own) / REPLICATIONS - wanted
            self._seen[name] = own[0]
        close = [name for name in left if self._odds[name] >= -_NEARLY]
        self._turned_away |= set(left) - set(close)
        return sorted(close, key=lambda name: -self._odds[name])

    def _by_goodput(self, close: Sequence[str]) -> list[str]:
        """Return candidates that may sustain the rate, those of the highest goodput first.

        Runs in which nearly all requests are within the targets do not tell how much more a
        candidate sustains: those are searched for.
        """
        easy = [name for name in close if self._odds[name] >= _EASY]
        if len(easy) > 1:
            self._look_at(easy, THIRD, "at the rate")
        return sorted(close, key=lambda name: -self._contest.value(self._seen_goodput(name)))

    def _seen_goodput(self, name: str) -> Crossing:
        """Return what short runs say of a goodput: of a search, or of the run at the rate."""
        looked = self._looked.get(name)
        if looked is not None and 0 < looked.goodput_rps < math.inf:
            return looked
        return self._raced(name)

    def _settle_best(self, names: Sequence[str]) -> None:
        """Settle some that may sustain the rate, each as well as it takes to tell."""
        tolerances = {}
        for name in names:
            margin, enough = abs(self._odds[name]) / _SLOPE, self._table.tolerance
            while 2 * enough <= min(margin, _WIDEST):
                enough *= 2
            tolerances[name] = enough
        self._settle({name: self._start(name) for name in names}, tolerances)

    def _start(self, name: str) -> Located:
        """Return about where the attainment of a candidate crosses the target."""
        goodput_rps = self._contest.value(self._seen_goodput(name))
        return self._located(name, goodput_rps, self._seen[name].residence_s)

    def _located(self, name: str, rate_rps: float, residence_s: float) -> Located:
        if not math.isfinite(residence_s):
            residence_s = self._bounds[name].residence_s
        needed = rate_rps * RULES.residences * residence_s
        return Located(
            rate_rps=rate_rps, slope=_SLOPE, num_requests=math.ceil(min(needed, LONGEST))
        )

    def _raced(self, name: str) -> Crossing:
        """Return what the run at the rate says of a goodput: by a usual slope, not beyond half."""
        shift = min(max(self._odds[name] / _SLOPE, -_FARTHEST), _FARTHEST)
        rate = min(self.rate_rps * math.exp(shift), self._bounds[name].total_rps)
        return Crossing(
            name=name,
            goodput_rps=rate,
            low_rps=self.rate_rps,
            high_rps=self.rate_rps,
            probes=(self._seen[name],),
            num_requests=self._seen[name].num_requests,
        )

    def _settle(
        self, starts: Mapping[str, float | Located], tolerances: Mapping[str, float]
    ) -> None:
        final = settle(
            self._contest.scenario,
            starts,
            tolerances=tolerances,
            seed=self._contest.seed(2 + REPLICATIONS),
            runner=self._contest.runner,
            indifference=_ANY,
            done=lambda cell: self._contest.did("finals", cell),
        )
        self._final = merged(self._final, final)

    def _step(self, size: int | None) -> str | None:
        """Return the candidate of a cost with the highest goodput; None of none.

        It is not settled: at the edge of stability that takes as long as all the rest. Its goodput
        is that of a settled one times their ratio in short runs on the same requests, as in a
        ranking by goodput.
        """
        if size is None:
            return None
        known = [name for name in self._levels[size] if name in self._final.intervals]
        values = {
            name: self._contest.value(crossing)
            for name, crossing in self._searched(self._levels[size]).items()
            if 0 < crossing.goodput_rps < math.inf
        }
        order = sorted(values, key=lambda name: -values[name])
        near = [n for n in order if values[n] >= math.exp(-_STEP_NEAR) * values[order[0]]]
        near = near[:_STEPPED]
        other = self._reference(size)
        if set(near) - set(known):
            guesses = {name: values[name] for name in near}
            if other is not None:
                guesses.setdefault(other, self._final.intervals[other].value)
            self._rate_by(other, self._drawn(guesses))
        goodputs = {name: self._goodput(name).value for name in {*near, *known}}
        return max(sorted(goodputs), key=lambda name: goodputs[name], default=None)

    def _reference(self, size: int) -> str | None:
        """Return the settled candidate that is nearest in cost, the best of these; None of none."""
        known = self._final.intervals
        return min(
            known,
            key=lambda name: (abs(self._sizes[name].num_gpus - size), -known[name].value),
            default=None,
        )

    def _searched(self, names: Sequence[str]) -> dict[str, Crossing]:
        """Return goodputs in short runs of those of each family that may be its best."""
        own = self._contest.by_family(sorted(names, key=lambda n: -self._bounds[n].total_rps))
        best = [name for family in own.values() for name in family[:_LOOKED_AT]]
        return self._look_at(best, SECOND, _STEPS)

    def _look_at(self, names: Sequence[str], times: float, part: str) -> dict[str, Crossing]:
        """Return goodputs of candidates in short runs, which belong to a part of the work."""
        # The families' ratios of goodput to bound say where to look.
        ratios: dict[str, float] = {}
        for name, interval in self._final.intervals.items():
            one, ratio = self._contest.families[name], interval.value / self._bounds[name].total_rps
            ratios[one] = max(ratios.get(one, 0.0), ratio)
        searches = {}
        for name in names:
            guess = self._bounds[name].total_rps * ratios.get(self._contest.families[name], _SHARE)
            cell = self._contest.cell(name, guess, 1, times)
            searches[name] = search(cell, self._target, slope=_SLOPE, trusted=TRUSTED[1])
        found = self._contest.crossings(searches, part)
        self._looked |= found
        return found

    def _drawn(self, guesses: Mapping[str, float]) -> Draws:
        """Return goodputs of some candidates in longer runs, on several draws of requests."""
        draws, slopes = Draws(), dict.fromkeys(guesses, _SLOPE)
        length = max(self._contest.length(name, rate, THIRD) for name, rate in guesses.items())
        for draw in range(REPLICATIONS):
            searches = {
                name: search(
                    Cell(name, rate, self._contest.seed(2 + draw), length),
                    self._target,
                    step=CLOSE,
                    near=CLOSE,
                    slope=slopes[name],
                    trusted=TRUSTED[2],
                )
                for name, rate in guesses.items()
            }
            for name, one in self._contest.crossings(searches, _STEPS).items():
                draws.add(name, one)
                slopes[name] = one.slope if math.isfinite(one.slope) else slopes[name]
                if not draw:
                    self._looked[name] = one
            guesses = {name: draws[name][0].goodput_rps or guesses[name] for name in guesses}
        return draws

    def _rate_by(self, other: str | None, draws: Draws) -> None:
        """Note the goodputs of draws, by that of a settled candidate where there is one."""
        for name in draws.sound:
            most, value = self._bounds[name].total_rps, math.exp(draws.mean_log(name))
            if other is None or other not in draws.sound:
                self._rated[name] = Interval(value=min(value, most), low=math.nan, high=math.nan)
                continue
            own = self._final.intervals[other]
            half = math.hypot(math.log(own.high / own.value), draws.half_width_of_ratios(0.975))
            one = around(
                min(own.value * value / math.exp(draws.mean_log(other)), most), half + BIAS[2]
            )
            if name in self._turned_away and one.value < self.rate_rps:
                # Runs at the rate itself have shown that it is missed.
                one = replace(one, high=min(one.high, self.rate_rps))
            self._rated[name] = one

    def _goodput(self, name: str) -> Interval:
        """Return the goodput of a candidate; without an interval if nothing is known of that."""
        if name in self._final.intervals:
            return self._final.intervals[name]
        if name in self._rated:
            return self._rated[name]
        value = self._contest.value(self._seen_goodput(name))
        return Interval(value=value, low=math.nan, high=math.nan)

    def _sustains(self, name: str) -> Literal["yes", "not sure", "no"]:
        """Tell by its goodput and the interval whether a candidate sustains the rate."""
        known = (self._final.intervals, self._rated, self._looked, self._perhaps)
        if not any(name in seen for seen in known):
            return "no"
        goodput = self._goodput(name)
        if goodput.value < self.rate_rps:
            return "no"
        return "yes" if goodput.low >= self.rate_rps else "not sure"

    def _plan(self, name: str) -> Plan:
        scenario = self._contest.scenario
        size, goodput = self._sizes[name], self._goodput(name)
        crossing = self._looked.get(name) or self._raced(name)
        stage: Stage = "final" if name in self._final.intervals else "race"
        candidate = candidate_of(
            self._contest, name, stage, goodput, crossing, self._final.within.get(name, {})
        )
        if name in self._final.mean_gpus:
            candidate = candidate.holding(self._final.mean_gpus[name])
        millions_per_hour = self.need_rps * mean_lengths(scenario)[1] * 3600.0 / 1e6
        price = scenario.environment.cluster.price_per_gpu_hour
        cost = None if price is None else price * size.num_gpus
        misses = self._sustains(name) == "no"
        return Plan(
            candidate=candidate,
            num_spares=size.num_spares,
            num_gpus=size.num_gpus,
            cost_per_hour=cost,
            cost_per_million=None if cost is None or misses else cost / millions_per_hour,
            gpu_hours_per_million=None if misses else size.num_gpus / millions_per_hour,
            sustains=self._sustains(name),
            margin=goodput.value / self.rate_rps - 1,
            margins=(goodput.low / self.rate_rps - 1, goodput.high / self.rate_rps - 1),
        )

    def _refuse(self) -> NoReturn:
        """Refuse a need that nothing sustains, with the best that there is.

        Raises
        ------
        TooFewGpusError
            If the best is known.
        DataError
            In any other case.
        """
        stock = self._contest.scenario.environment.cluster.num_gpus
        headroom = self._table.headroom
        asked = f"rank.need_rps = {self.need_rps:g}"
        if headroom:
            asked += f" ({self.rate_rps:.4g} with {100 * headroom:g} % of the goodput kept free)"
        fit = [name for names in self._levels.values() for name in names]
        if not fit:
            raise DataError(
                f"{asked}: with {spares.in_words(self._table)} no candidate fits on the {stock} "
                "GPUs. Ask for fewer spares, or add GPUs."
            )
        if not self._final.intervals:
            contest = self._contest.only(fit)
            rounds = Rounds(contest)
            rounds.first_round()
            rounds.second_round()
            best = rounds.third_round()[0]
            self._settle({best: rounds.start(best)}, {best: max(0.05, self._table.tolerance)})
        else:
            self._step(max(self._levels))
        rated = {n: one for n, one in self._rated.items() if math.isfinite(one.low)}
        known = {**rated, **self._final.intervals}
        if not known:
            words = "; ".join(f"{n}: {w}" for n, w in self._final.unsettled.items())
            raise DataError(
                f"{asked}: no plan on the {stock} GPUs is known to sustain it ({words})"
            )
        best = max(known, key=lambda name: known[name].value)
        goodput = known[best]
        size = self._sizes[best]
        extra = f" and {size.num_spares} spare" if size.num_spares else ""
        low, high = three_digits(goodput.low), three_digits(goodput.high)
        less = f"{100 * (1 - goodput.value / self.rate_rps):.1f}"
        raise TooFewGpusError(
            f"{asked}: the {stock} GPUs sustain at most {three_digits(goodput.value)} requests/s "
            f"(95 %: {low} to {high}), {less} % less, by {best}{extra} on {size.num_gpus} of "
            "them. Add GPUs, loosen the targets, or need less."
        )
