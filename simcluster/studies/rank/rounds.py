"""The rounds of a ranking: few requests for all, more for those near the best, then the finals.

`Rounds` holds what each round has shown; `Rounds.standings` makes the order of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from simcluster.errors import DataError
from simcluster.runs.cell import Cell
from simcluster.runs.executor import Runner
from simcluster.scenario.scenario import Scenario
from simcluster.studies.goodput import Interval, Located
from simcluster.studies.goodput.rules import RULES
from simcluster.studies.goodput.runs import WARMUP as FINAL_WARMUP
from simcluster.studies.goodput.runs import answer
from simcluster.studies.rank.draws import Draws, around, exp
from simcluster.studies.rank.explain import explain, family
from simcluster.studies.rank.finals import LONGEST, Finals, settle
from simcluster.studies.rank.race import WARMUP, Crossing, RaceRun, Search, probe, search
from simcluster.studies.rank.ranking import Candidate, Stage
from simcluster.studies.rank.screen import Bound

Progress = Callable[[int, int, float], None]
"""Called with the number of candidates done in a round, of all, and the share of the work."""

FIRST, SECOND, THIRD = 4.0, 10.0, 16.0
"""Length of a run in the rounds, in TTFT targets or half residence times, the longer of both."""
REPLICATIONS: Final = 3
"""Draws of requests in the third round."""
_LEAST_REQUESTS: Final = 200
_CLOSE: Final = 1.06  # step and end of a search that starts from an earlier round's goodput
_USUAL_RUNS: Final = 5  # of a search, to tell how far a round has come
_SCOUTS: Final = 3  # of each family, that show how far below its bound a family ends
# Short runs flatter, some candidates more than others: where decode instances with little memory
# are yet to fill up, a run of 44 s put a goodput of 42 requests/s at its bound of 58, and one of
# 39.5 at 44; runs of 110 s put them at 51 and 43, of 180 s the first at 45 (CodeLlama-34B on L20,
# 2026-11-21).
_BEHIND: Final = (0.65, 0.8)  # of the best: goodputs below it do not come back in longer runs
_BIAS: Final = (0.2, 0.1, 0.08)  # by which runs of a round may flatter one more than another, logs
_FAR_BEHIND: Final = 0.5  # of what the best carries per GPU: a bound below it needs no run
_MOST: Final = (32, 8)  # candidates that go on, of one number of GPUs
_MOST_SMALLER: Final = (4, 2)  # the same of each smaller number of GPUs
_SLOPE: Final = 15.0  # of the log odds of attainment over the log rate, where no run shows it


class Rounds:
    """The rounds of one ranking, and what they have shown."""

    def __init__(
        self,
        scenario: Scenario,
        bounds: Mapping[str, Bound],
        runner: Runner,
        progress: Progress | None = None,
    ) -> None:
        self._scenario, self._bounds = scenario, bounds
        self._runner, self._progress = runner, progress
        self._strategies = {s.name: s for s in scenario.strategies}
        self._first: dict[str, Crossing] = {}
        self._guessed: dict[str, float] = {}
        self._second: dict[str, Crossing] = {}
        self._third = Draws()
        self.num_requests = 0

    # --- rounds -------------------------------------------------------------------------------

    def first_round(self) -> None:
        """Find every candidate's goodput on one draw of few requests."""
        order = sorted(self._bounds, key=lambda name: -self._bounds[name].total_rps)
        scouts = [
            name
            for own in self._families(order).values()
            for name in [*own[: _SCOUTS - 1], own[len(own) // 2]]
        ]
        scouts = list(dict.fromkeys(scouts))
        share = 0.6  # of the bound; where scouts start
        self._find([(name, share * self._bounds[name].total_rps, 0.0) for name in scouts], order)
        rest = [name for name in order if name not in self._first]
        per_gpu = max(self._value(c) / self._held(c) for c in self._first.values())
        calls = []
        for name in rest:
            known = [
                self._value(c) / self._bounds[n].total_rps
                for n, c in self._first.items()
                if family(self._strategies[n]) == family(self._strategies[name]) and c.goodput_rps
            ]
            guess = float(np.median(known)) if known else share
            bound = self._bounds[name]
            best = per_gpu * bound.num_gpus
            dull = _BEHIND[0] * best
            if bound.total_rps < _FAR_BEHIND * best:
                self._guessed[name] = guess * bound.total_rps
            else:
                calls.append((name, guess * bound.total_rps, dull))
        self._find(calls, order)

    def _families(self, names: Sequence[str]) -> dict[str, list[str]]:
        own: dict[str, list[str]] = {}
        for name in names:
            own.setdefault(family(self._strategies[name]), []).append(name)
        return own

    def _find(self, calls: Sequence[tuple[str, float, float]], field: Sequence[str]) -> None:
        """Search some of a field of candidates: name, first guess, and what is not interesting."""
        target = self._scenario.environment.slo.attainment
        searches = {
            name: search(self._cell(name, guess, 0, FIRST), target, uninteresting_rps=dull)
            for name, guess, dull in calls
        }
        done = len(self._first) + len(self._guessed)
        self._first |= self._crossings(searches, (0.0, 0.25), done, len(field))

    def second_round(self) -> None:
        """Look longer at those that may be close to the best."""
        field = self._close(self._first, 0)
        starts = [self._cell(n, self._value(self._first[n]), 1, SECOND) for n in field]
        self._second = self._crossings(self._closer(starts), (0.25, 0.45), 0, len(field))

    def third_round(self) -> list[str]:
        """Look at those close to the best on several draws; return them, the best first."""
        field = self._close(self._second, 1)
        guesses = {name: self._value(self._second[name]) for name in field}
        # The same requests for all of one size: their ratios are the candidates' then.
        lengths: dict[int, int] = {}
        for name in field:
            size, length = self._bounds[name].num_gpus, self._length(name, guesses[name], THIRD)
            lengths[size] = max(lengths.get(size, 0), length)
        for draw in range(REPLICATIONS):
            starts = [
                Cell(n, guesses[n], self._seed(2 + draw), lengths[self._bounds[n].num_gpus])
                for n in field
            ]
            shares = (0.45 + 0.25 * draw / REPLICATIONS, 0.45 + 0.25 * (draw + 1) / REPLICATIONS)
            done, total = draw * len(field), REPLICATIONS * len(field)
            for n, c in self._crossings(self._closer(starts), shares, done, total).items():
                self._third.add(n, c)
            # Longer runs carry less than the second round's: the next draw starts from there.
            guesses = {n: self._third[n][0].goodput_rps or guesses[n] for n in field}
        order = sorted(field, key=lambda name: -self._third.mean_log(name))
        least = self._third.mean_log(order[0]) - self._third.half_width() - _BIAS[2]
        # The second comes along, to say by how much it is behind.
        return order[: max(2, sum(self._third.mean_log(name) >= least for name in order))]

    def _closer(self, starts: Sequence[Cell]) -> dict[str, Search]:
        """Return searches of those whose goodputs are known from an earlier round."""
        target = self._scenario.environment.slo.attainment
        return {one.strategy: search(one, target, step=_CLOSE, near=_CLOSE) for one in starts}

    def _crossings(
        self, searches: Mapping[str, Search], shares: tuple[float, float], done: int, total: int
    ) -> dict[str, Crossing]:
        """Return how searches end.

        Parameters
        ----------
        searches : mapping of str to generator
            Of the candidates.
        shares : tuple of float
            Share of the work that is done before and after, 0 to 1.
        done, total : int
            Candidates that are done before, and all of this round.
        """
        runs = Counter[str]()
        ended = 0

        def tell(num_ended: int) -> None:
            nonlocal ended
            ended = num_ended
            known = sum(min(count / _USUAL_RUNS, 0.9) for count in runs.values())
            part = 1.0 if ended == len(searches) else known / len(searches)
            self._tell(done + ended, total, shares[0] + part * (shares[1] - shares[0]))

        def heard(cell: Cell) -> None:
            runs[cell.strategy] += 1
            tell(ended)

        def ask(wanted: list[tuple[str, Cell]]) -> list[RaceRun]:
            return self._probes([cell for _, cell in wanted], heard)

        found = answer(searches, ask, tell)
        self.num_requests += sum(crossing.num_requests for crossing in found.values())
        return found

    def _probes(
        self, cells: Sequence[Cell], done: Callable[[Cell], None] | None = None
    ) -> list[RaceRun]:
        """Return the outcomes of runs of candidates, as the race sees them."""
        scenario, kind = self._scenario, "race"
        return self._runner.cells(probe, scenario, cells, made=RaceRun, kind=kind, done=done)

    def _cell(self, name: str, rate_rps: float, draw: int, times: float) -> Cell:
        """Return a run of a candidate on a draw of requests, as long as those of a round."""
        return Cell(name, rate_rps, self._seed(draw), self._length(name, rate_rps, times))

    def _value(self, crossing: Crossing) -> float:
        """Return a goodput (requests/s), not above its bound, as short runs may put it."""
        return min(crossing.goodput_rps, self._bounds[crossing.name].total_rps)

    def _held(self, crossing: Crossing) -> float:
        """Return the GPUs that a candidate holds about where its attainment crosses the target."""
        bound = self._bounds[crossing.name]
        known = bound.ramp_s is not None and crossing.mean_gpus > 0
        return crossing.mean_gpus if known else float(bound.num_gpus)

    def _close(self, crossings: Mapping[str, Crossing], number: int) -> list[str]:
        """Candidates near the best of all, or of their number of GPUs, and the best of a family."""
        values = {name: self._value(c) for name, c in crossings.items() if c.goodput_rps > 0}
        if not values:
            raise DataError(
                f"none of {len(crossings)} candidates meets the targets at any rate that was tried "
                "although single requests do. Loosen slo.ttft_s, slo.tpot_s or slo.e2el_s."
            )
        order = sorted(values, key=lambda name: -values[name])
        close: list[str] = []
        for num_gpus in dict.fromkeys(self._bounds[n].num_gpus for n in order):
            own = [n for n in order if self._bounds[n].num_gpus == num_gpus]
            near = [n for n in own if values[n] >= _BEHIND[number] * values[own[0]]]
            most = _MOST_SMALLER if close else _MOST
            close += near[: most[number]]
        close += [own[0] for own in self._families(order).values()]
        return list(dict.fromkeys(close))

    def final_round(self, names: Sequence[str], tolerance: float) -> Finals:
        """Settle the goodputs of `names` to the tolerance.

        Raises
        ------
        DataError
            If none of them is settled and none of the third round met the targets on each draw.
        """
        final = settle(
            self._scenario,
            {name: self._start(name) for name in names},
            tolerance=tolerance,
            seed=self._seed(2 + REPLICATIONS),
            runner=self._runner,
        )
        self.num_requests += final.num_requests
        if not final.intervals and not self._third.sound:
            raise DataError(
                f"none of the {len(self._third)} best candidates meets the targets on each of "
                f"{REPLICATIONS} draws of requests, at any rate, and no finalist is settled: even "
                "single requests hardly meet them. Loosen slo.ttft_s, slo.tpot_s, slo.e2el_s or "
                "slo.attainment."
            )
        return final

    def _start(self, name: str) -> float | Located:
        """Return what the third round says of where the attainment of a candidate crosses.

        Its bound alone if on some draw it met the targets at no rate.
        """
        own = self._third[name]
        if name not in self._third.sound:
            return self._bounds[name].total_rps
        slopes = [c.slope for c in own if math.isfinite(c.slope)]
        known = [p.residence_s for c in own for p in c.probes if p.rate_rps == c.low_rps]
        known = [residence_s for residence_s in known if math.isfinite(residence_s)]
        rate = math.exp(self._third.mean_log(name))
        residence_s = sum(known) / len(known) if known else self._bounds[name].residence_s
        return Located(
            rate_rps=rate,
            slope=sum(slopes) / len(slopes) if slopes else _SLOPE,
            num_requests=math.ceil(min(rate * RULES.residences * residence_s, LONGEST)),
        )

    def latencies(self, names: Sequence[str], rate_rps: float) -> dict[str, RaceRun]:
        """Return the run of each candidate at a rate that all of them carry."""
        cells = [self._cell(name, rate_rps, 0, FIRST) for name in names]
        self.num_requests += sum(cell.num_requests or 0 for cell in cells)
        return dict(zip(names, self._probes(cells), strict=True))

    def notes(self, candidates: Sequence[Candidate]) -> tuple[str, ...]:
        """Return which candidates' runs are too short for all of their instances to start."""
        lines = []
        for c in candidates:
            ramp_s = self._bounds[c.name].ramp_s
            if ramp_s is None or c.stage == "bound" or not c.goodput_rps:
                continue
            share = FINAL_WARMUP if c.stage == "final" else WARMUP
            most_s = share * LONGEST / c.goodput_rps
            if most_s < ramp_s:
                lines.append(
                    f"{c.name}: what is counted begins {most_s:.0f} s into its longest runs; all "
                    f"instances take {ramp_s:.0f} s to start at least, so it may carry more."
                )
        return tuple(lines)

    def _length(self, name: str, rate_rps: float, times: float) -> int:
        """Return the requests of a run at about `rate_rps`: queues must have time to build up.

        And instances to start, in what is not counted, but for no more requests than `LONGEST`.
        """
        slo, bound = self._scenario.environment.slo.strictest(), self._bounds[name]
        target_s = max(slo.ttft_s or 0.0, slo.e2el_s or 0.0)
        long_s = times * max(target_s, bound.residence_s / 2)
        rate_rps = min(rate_rps, bound.total_rps)
        ramp = min((bound.ramp_s or 0.0) / WARMUP * rate_rps, LONGEST)
        return max(_LEAST_REQUESTS, math.ceil(max(long_s * rate_rps, ramp)))

    def _seed(self, draw: int) -> int:
        return 1000 * self._scenario.run.seeds[0] + draw

    def _tell(self, done: int, total: int, share: float) -> None:
        if self._progress:
            self._progress(done, total, share)

    # --- what the rounds say ------------------------------------------------------------------

    def standings(self, final: Finals) -> list[Candidate]:
        """Return all candidates, the best first.

        Who was settled has its own interval. Everybody else has the winner's goodput times the
        ratio to it on the same requests: what short runs do to all alike falls out of that. If
        nobody was settled, the winner's goodput is that of the third round.
        """
        winner = self._winner(final)
        own = final.intervals.get(winner) or self._third.interval_of(winner, _BIAS[2])
        ranked = []
        for name in self._first:
            if name in final.intervals:
                one = self._candidate(name, "final", final.intervals[name])
                ranked.append(one.holding(final.mean_gpus[name]))
            elif name == winner:
                ranked.append(self._candidate(name, "race", own))
            elif name in self._third:
                ranked.append(self._candidate(name, "race", self._raced(name, winner, own)))
            else:
                ranked.append(self._candidate(name, "screen", self._screened(name, winner, own)))
        scale = own.value / self._value(self._first[winner])
        for name, guess in self._guessed.items():
            most = self._bounds[name].total_rps
            guessed = Interval(value=min(scale * guess, most), low=0.0, high=most)
            ranked.append(self._candidate(name, "bound", guessed))
        return sorted(ranked, key=lambda candidate: -candidate.goodput_rps)

    def _winner(self, final: Finals) -> str:
        """Return whose goodput says what that of others is.

        The best of the settled, but of those that met the targets on each draw of the third round
        if there are any, for the others' ratios to it are taken there.
        """
        sound = self._third.sound
        settled = [name for name in final.intervals if name in sound]
        if sound and not settled:
            return max(sound, key=self._third.mean_log)
        return max(settled or final.intervals, key=lambda name: final.intervals[name].value)

    def _raced(self, name: str, winner: str, own: Interval) -> Interval:
        """Return a goodput from that of the winner and the ratio to it in the third round.

        It is 0, with an interval up to the bound, if on some draw the targets were met at no rate.
        """
        if name not in self._third.sound:
            return Interval(value=0.0, low=0.0, high=self._bounds[name].total_rps)
        wide = self._third.half_width_of_ratios(0.975)
        half = math.hypot(math.log(own.high / own.value), wide) + _BIAS[2]
        ratio = math.exp(self._third.mean_log(name) - self._third.mean_log(winner))
        return around(own.value * ratio, half)

    def _screened(self, name: str, winner: str, own: Interval) -> Interval:
        """Return a goodput from that of the winner and the ratio to it in an earlier round."""
        last = self._second if name in self._second else self._first
        length, bias = (SECOND, _BIAS[1]) if last is self._second else (FIRST, _BIAS[0])
        wide = self._third.half_width_of_ratios(0.975, REPLICATIONS * THIRD / length)
        half = math.hypot(math.log(own.high / own.value), wide) + bias
        scale = own.value / self._value(last[winner])
        value, most = scale * self._value(last[name]), self._bounds[name].total_rps
        return Interval(
            value=value,
            low=min(scale * last[name].low_rps * exp(-half), value),
            high=max(min(scale * last[name].high_rps * exp(half), most), value),
        )

    def _last(self, name: str) -> Crossing | None:
        """Return the longest search for the goodput of a candidate, if there was any."""
        if name in self._third:
            return self._third[name][0]
        return self._second.get(name) or self._first.get(name)

    def _candidate(self, name: str, stage: Stage, goodput: Interval) -> Candidate:
        bound = self._bounds[name]
        crossing = self._last(name)
        bottleneck, why = explain(self._strategies[name], bound, crossing)
        return Candidate(
            name=name,
            strategy=family(self._strategies[name]),
            num_gpus=bound.num_gpus,
            mean_gpus=float(bound.num_gpus) if crossing is None else self._held(crossing),
            goodput_rps=goodput.value,
            low_rps=goodput.low,
            high_rps=goodput.high,
            stage=stage,
            price_per_gpu_hour=self._scenario.environment.cluster.price_per_gpu_hour,
            bottleneck=bottleneck,
            why=why,
            ttft_s=math.nan,
            tpot_s=math.nan,
            bound_rps=bound.total_rps,
        )
