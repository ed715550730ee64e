"""The race by cost: the cheapest plans that sustain a rate.

Candidates are tried from the cheapest up, at the rate itself: one run says whether a candidate
meets the targets there, and no goodput is sought of what does not. Runs of the first length turn
candidates away, for short runs flatter; longer ones on several draws order those that are left; the
finals give the goodputs of the cheapest of them, and of the best one step down and up in cost.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
from simcluster.studies.rank.finals import LONGEST, NONE, Finals, merged, settle
from simcluster.studies.rank.race import TRUSTED, Crossing, RaceRun, log_odds, search
from simcluster.studies.rank.ranking import Need, Plan, Stage
from simcluster.studies.rank.rounds import FIRST, REPLICATIONS, SECOND, THIRD, Rounds
from simcluster.studies.rank.standings import candidate_of
from simcluster.studies.space import build

_SHARE: Final = 0.6  # of the bound, where nothing of a family is known
_AT_ONCE: Final = 2  # plans of one cost that are settled before it is asked whether one will do
_ANY: Final = 0.5  # difference of two plans within which either may be taken: none is looked at
_LOOKED_AT: Final = 4  # candidates of one step up or down in cost

_SLOPE: Final = 20.0  # of the log odds over the log rate: only sizes tolerances and starts
_SHORT: Final = 0.75  # log odds below the target up to which a short run turns nobody away
_NEARLY: Final = 0.4  # the same of the mean of the long runs
_FARTHEST: Final = 0.5  # from the rate, in logarithms, that a run at the rate tells of a goodput
_WIDEST: Final = 0.12  # tolerance of a plan that is far from what is needed
_STEP_TOLERANCE: Final = 0.06  # of a step down or up in cost
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
        self._looked: dict[str, Crossing] = {}

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
            close = self._close(self._levels[size])
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
        left = [name for name in left if self._odds[name] >= -_NEARLY]
        return sorted(left, key=lambda name: -self._odds[name])

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
        return self._located(name, self._raced(name).goodput_rps, self._seen[name].residence_s)

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
        """Return the best candidate of a cost, settled well enough for one line; None of none."""
        if size is None:
            return None
        names = self._levels[size]
        known = [name for name in names if name in self._final.intervals]
        if known:
            return max(known, key=lambda name: self._final.intervals[name].value)
        # The families' ratios of goodput to bound say whom to look at.
        ratios: dict[str, float] = {}
        for name, interval in self._final.intervals.items():
            one, ratio = self._contest.families[name], interval.value / self._bounds[name].total_rps
            ratios[one] = max(ratios.get(one, 0.0), ratio)
        guesses = {
            name: self._bounds[name].total_rps * ratios.get(self._contest.families[name], _SHARE)
            for name in names
        }
        best = sorted(guesses, key=lambda name: -guesses[name])[:_LOOKED_AT]
        searches = {
            name: search(
                self._contest.cell(name, guesses[name], 1, SECOND),
                self._target,
                slope=_SLOPE,
                trusted=TRUSTED[1],
            )
            for name in best
        }
        found = self._contest.crossings(searches, "one step up or down")
        self._looked |= found
        first = max(found.values(), key=self._contest.value)
        if not 0 < first.goodput_rps < math.inf:
            return None
        near = first.nearest
        residence_s = math.nan if near is None else near.residence_s
        start = self._located(first.name, self._contest.value(first), residence_s)
        self._settle({first.name: start}, {first.name: max(_STEP_TOLERANCE, self._table.tolerance)})
        return first.name

    def _goodput(self, name: str) -> Interval:
        """Return the goodput of a candidate; without an interval if it is not settled."""
        if name in self._final.intervals:
            return self._final.intervals[name]
        crossing = self._looked.get(name) or self._raced(name)
        return Interval(value=crossing.goodput_rps, low=math.nan, high=math.nan)

    def _sustains(self, name: str) -> Literal["yes", "not sure", "no"]:
        """Tell by the interval whether a candidate sustains the rate."""
        if name in self._final.intervals:
            goodput = self._final.intervals[name]
            if goodput.low >= self.rate_rps:
                return "yes"
            return "no" if goodput.high < self.rate_rps else "not sure"
        return "not sure" if name in self._perhaps else "no"

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
        known = self._final.intervals
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
        less = 1 - goodput.value / self.rate_rps
        raise TooFewGpusError(
            f"{asked}: the {stock} GPUs sustain at most {three_digits(goodput.value)} requests/s "
            f"(95 %: {low} to {high}), {less:.1%} less, by {best}{extra} on {size.num_gpus} of "
            "them. Add GPUs, loosen the targets, or need less."
        )
