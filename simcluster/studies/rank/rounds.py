"""The rounds of a ranking: few requests for all, more for those near the best, then the finals.

`Rounds` plays them and holds what each has shown; `standings` makes the order of it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Final

import numpy as np

from simcluster.errors import DataError
from simcluster.runs.cell import Cell
from simcluster.studies.goodput import Located
from simcluster.studies.goodput.rules import RULES
from simcluster.studies.rank.contest import Contest
from simcluster.studies.rank.draws import Draws
from simcluster.studies.rank.finals import LONGEST, Finals, settle
from simcluster.studies.rank.race import TRUSTED, Crossing, Search, search

FIRST, SECOND, THIRD = 4.0, 10.0, 16.0
"""Length of a run in the rounds, in TTFT targets or half residence times, the longer of both."""
REPLICATIONS: Final = 3
"""Draws of requests in the third round."""
BIAS: Final = (0.2, 0.1, 0.08)
"""By which runs of a round may flatter one candidate more than another, in logarithms."""
CLOSE: Final = 1.06
"""Step and end of a search that starts from the goodput of an earlier round."""
_SCOUTS: Final = 3  # of each family, that show how far below its bound a family ends
# Short runs flatter, some candidates more than others: where decode instances with little memory
# are yet to fill up, a run of 44 s put a goodput of 42 requests/s at its bound of 58, and one of
# 39.5 at 44; runs of 110 s put them at 51 and 43, of 180 s the first at 45 (CodeLlama-34B on L20,
# 2026-11-21).
_BEHIND: Final = (0.65, 0.8)  # of the best: goodputs below it do not come back in longer runs
_FAR_BEHIND: Final = 0.5  # of what the best carries per GPU: a bound below it needs no run
_MOST: Final = (32, 8)  # candidates that go on, of one number of GPUs
_MOST_SMALLER: Final = (4, 2)  # the same of each smaller number of GPUs
_SLOPE: Final = 15.0  # of the log odds of attainment over the log rate, where no run shows it
_RUNS: Final = (3.0, 1.7, 1.4)  # of a search in a round, as a rule
_FINAL_REQUESTS: Final = 180_000.0  # that settle a goodput to 3 %, as a rule
_WIDEST: Final = 0.12  # tolerance of a finalist that is clearly behind


class Rounds:
    """The rounds of one ranking, and what they have shown.

    Parameters
    ----------
    contest : Contest
        Who races on what.
    baselines : collection of str
        Candidates that come along to the finals however far behind they are.
    """

    def __init__(self, contest: Contest, baselines: Collection[str] = ()) -> None:
        self._contest, self._baselines = contest, baselines
        self._bounds = contest.bounds
        self._target = contest.scenario.environment.slo.attainment
        self.first: dict[str, Crossing] = {}
        self.guessed: dict[str, float] = {}
        self.second: dict[str, Crossing] = {}
        self.third = Draws()

    def expect(self, finalists: int, tolerance: float) -> None:
        """Say about how many requests the rounds and the finals will simulate."""
        work, names = self._contest.work, list(self._bounds)
        usual = [
            float(
                np.mean(
                    [self._contest.length(n, 0.5 * self._bounds[n].total_rps, t) for n in names]
                )
            )
            for t in (FIRST, SECOND, THIRD)
        ]
        work.expect("first round", _RUNS[0] * usual[0] * len(names))
        work.expect("second round", _RUNS[1] * usual[1] * min(24, len(names)))
        work.expect("third round", _RUNS[2] * usual[2] * REPLICATIONS * min(10, len(names)))
        work.expect("finals", _FINAL_REQUESTS * min(finalists, len(names)) * (0.03 / tolerance))

    def first_round(self) -> None:
        """Find every candidate's goodput on one draw of few requests."""
        order = sorted(self._bounds, key=lambda name: -self._bounds[name].total_rps)
        families = self._contest.by_family(order).values()
        picks = (name for own in families for name in [*own[: _SCOUTS - 1], own[len(own) // 2]])
        scouts = list(dict.fromkeys([*picks, *self._baselines]))
        share = 0.6  # of the bound; where scouts start
        self._find([(name, share * self._bounds[name].total_rps, 0.0) for name in scouts])
        slopes = self._slopes()
        rest = [name for name in order if name not in self.first]
        per_gpu = max(self._contest.value(c) / self._contest.held(c) for c in self.first.values())
        calls = []
        for name in rest:
            known = [
                self._contest.value(c) / self._bounds[n].total_rps
                for n, c in self.first.items()
                if self._contest.families[n] == self._contest.families[name] and c.goodput_rps
            ]
            guess = float(np.median(known)) if known else share
            bound = self._bounds[name]
            best = per_gpu * bound.num_gpus
            if bound.total_rps < _FAR_BEHIND * best:
                self.guessed[name] = guess * bound.total_rps
            else:
                calls.append((name, guess * bound.total_rps, _BEHIND[0] * best))
        self._find(calls, slopes)
        self._contest.work.end("first round")

    def _slopes(self) -> dict[str, float]:
        """Return how steeply attainment falls in each family, as far as is known."""
        own: dict[str, list[float]] = {}
        for name, crossing in self.first.items():
            own.setdefault(self._contest.families[name], []).append(crossing.slope)
        known = {one: [x for x in slopes if math.isfinite(x)] for one, slopes in own.items()}
        return {one: float(np.median(slopes)) for one, slopes in known.items() if slopes}

    def _find(
        self,
        calls: Sequence[tuple[str, float, float]],
        slopes: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        """Search some candidates: name, first guess, and what is not interesting."""
        searches = {
            name: search(
                self._contest.cell(name, guess, 0, FIRST),
                self._target,
                uninteresting_rps=dull,
                slope=slopes.get(self._contest.families[name], math.nan),
                trusted=TRUSTED[0],
            )
            for name, guess, dull in calls
        }
        self.first |= self._contest.crossings(searches, "first round")

    def second_round(self) -> None:
        """Look longer at those that may be close to the best."""
        field = self._close(self.first, 0)
        starts = [
            self._contest.cell(n, self._contest.value(self.first[n]), 1, SECOND) for n in field
        ]
        self._expect("second round", _RUNS[1], starts)
        self.second = self._contest.crossings(
            self._closer(starts, self.first, TRUSTED[1]), "second round"
        )
        self._contest.work.end("second round")

    def third_round(self) -> list[str]:
        """Look at those close to the best on several draws; return them, the best first."""
        field = self._close(self.second, 1)
        guesses = {name: self._contest.value(self.second[name]) for name in field}
        # The same requests for all of one size: their ratios are the candidates' then.
        lengths: dict[int, int] = {}
        for name in field:
            size = self._bounds[name].num_gpus
            length = self._contest.length(name, guesses[name], THIRD)
            lengths[size] = max(lengths.get(size, 0), length)
        last: Mapping[str, Crossing] = self.second
        for draw in range(REPLICATIONS):
            starts = [
                Cell(n, guesses[n], self._contest.seed(2 + draw), lengths[self._bounds[n].num_gpus])
                for n in field
            ]
            if not draw:
                self._expect("third round", _RUNS[2] * REPLICATIONS, starts)
            last = self._contest.crossings(self._closer(starts, last, TRUSTED[2]), "third round")
            for n, c in last.items():
                self.third.add(n, c)
            # Longer runs carry less than the second round's: the next draw starts from there.
            guesses = {n: self.third[n][0].goodput_rps or guesses[n] for n in field}
        self._contest.work.end("third round")
        order = sorted(field, key=lambda name: -self.third.mean_log(name))
        least = self.third.mean_log(order[0]) - self.third.half_width() - BIAS[2]
        # The second comes along, to say by how much it is behind.
        return order[: max(2, sum(self.third.mean_log(name) >= least for name in order))]

    def _expect(self, part: str, runs: float, starts: Sequence[Cell]) -> None:
        """Say what searches that start like this will take."""
        self._contest.work.expect(part, runs * sum(one.num_requests or 0 for one in starts))

    def _closer(
        self, starts: Sequence[Cell], known: Mapping[str, Crossing], trusted: float
    ) -> dict[str, Search]:
        """Return searches of those whose goodputs are known from an earlier round."""
        return {
            one.strategy: search(
                one,
                self._target,
                step=CLOSE,
                near=CLOSE,
                slope=known[one.strategy].slope,
                trusted=trusted,
            )
            for one in starts
        }

    def _close(self, crossings: Mapping[str, Crossing], number: int) -> list[str]:
        """Candidates near the best of all, or of their number of GPUs, and who comes in any case.

        Those are the best of each family, and the baselines.
        """
        values = {n: self._contest.value(c) for n, c in crossings.items() if c.goodput_rps > 0}
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
        close += [own[0] for own in self._contest.by_family(order).values()]
        close += [name for name in self._baselines if name in values]
        return list(dict.fromkeys(close))

    def finalists(self, field: Sequence[str], tolerance: float) -> dict[str, float]:
        """Return who goes to the finals, and the tolerance of each.

        Parameters
        ----------
        field : sequence of str
            Those that may be the best.
        tolerance : float
            That of theirs.

        Returns
        -------
        dict of str to float
            These, the best of each family and the baselines. Who is clearly behind needs no narrow
            interval: half of what it is behind tells it from the best.
        """
        order = sorted(self.third.sound, key=lambda name: -self.third.mean_log(name))
        found = dict.fromkeys(field, tolerance)
        others = [own[0] for own in self._contest.by_family(order).values()]
        others += [name for name in self._baselines if name in order]
        for name in others:
            behind = self.third.mean_log(order[0]) - self.third.mean_log(name)
            enough = tolerance
            while 2 * enough <= min(behind / 2, _WIDEST):
                enough *= 2
            found.setdefault(name, enough)
        return found

    def final_round(self, tolerances: Mapping[str, float]) -> Finals:
        """Settle the goodputs of finalists, each to its tolerance.

        Raises
        ------
        DataError
            If none of them is settled and none of the third round met the targets on each draw.
        """
        work = self._contest.work
        wanted = sum(min(1.0, 0.03 / tolerance) for tolerance in tolerances.values())
        work.expect("finals", _FINAL_REQUESTS * wanted)
        final = settle(
            self._contest.scenario,
            {name: self.start(name) for name in tolerances},
            tolerances=tolerances,
            seed=self._contest.seed(2 + REPLICATIONS),
            runner=self._contest.runner,
            done=lambda cell: self._contest.did("finals", cell),
        )
        work.end("finals")
        if not final.intervals and not self.third.sound:
            raise DataError(
                f"none of the {len(self.third)} best candidates meets the targets on each of "
                f"{REPLICATIONS} draws of requests, at any rate, and no finalist is settled: even "
                "single requests hardly meet them. Loosen slo.ttft_s, slo.tpot_s, slo.e2el_s or "
                "slo.attainment."
            )
        return final

    def start(self, name: str) -> float | Located:
        """Return what the third round says of where the attainment of a candidate crosses.

        Its bound alone if on some draw it met the targets at no rate.
        """
        own = self.third[name]
        if name not in self.third.sound:
            return self._bounds[name].total_rps
        slopes = [c.slope for c in own if math.isfinite(c.slope)]
        known = [c.nearest.residence_s for c in own if c.nearest is not None]
        known = [residence_s for residence_s in known if math.isfinite(residence_s)]
        rate = math.exp(self.third.mean_log(name))
        residence_s = sum(known) / len(known) if known else self._bounds[name].residence_s
        return Located(
            rate_rps=rate,
            slope=sum(slopes) / len(slopes) if slopes else _SLOPE,
            num_requests=math.ceil(min(rate * RULES.residences * residence_s, LONGEST)),
        )
