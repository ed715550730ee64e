"""Who races on what: candidates, their bounds, draws of requests, and the runs on them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from simcluster.config import TARGETS
from simcluster.runs.cell import Cell
from simcluster.runs.executor import Runner
from simcluster.scenario.scenario import Scenario
from simcluster.studies.goodput.runs import answer
from simcluster.studies.rank.explain import family
from simcluster.studies.rank.finals import LONGEST
from simcluster.studies.rank.race import WARMUP, Crossing, RaceRun, Search, probe
from simcluster.studies.rank.screen import Bound
from simcluster.studies.rank.work import Work

LEAST_REQUESTS: Final = 200
"""Of a run."""


class Contest:
    """The candidates of a ranking, and what runs of them take.

    Parameters
    ----------
    scenario : Scenario
        With the candidates as its strategies.
    bounds : mapping of str to Bound
        What each carries at most.
    runner : Runner
        Does the runs.
    work : Work
        Is told of them.
    """

    def __init__(
        self, scenario: Scenario, bounds: Mapping[str, Bound], runner: Runner, work: Work
    ) -> None:
        self.scenario, self.bounds, self.runner, self.work = scenario, bounds, runner, work
        self.families = {s.name: family(s) for s in scenario.strategies}
        slo = scenario.environment.slo
        # What is recorded of a run depends on the shares that are wanted.
        self._kind = "race" + "".join(f"-{slo.wanted(key):g}" for key in TARGETS)

    def only(self, names: Sequence[str]) -> Contest:
        """Return the contest of some of the candidates."""
        bounds = {name: self.bounds[name] for name in names}
        return Contest(self.scenario.only(*names), bounds, self.runner, self.work)

    def seed(self, draw: int) -> int:
        """Return the seed of a draw of requests."""
        return 1000 * self.scenario.run.seeds[0] + draw

    def length(self, name: str, rate_rps: float, times: float) -> int:
        """Return the requests of a run at about `rate_rps`: queues must have time to build up.

        And instances to start, in what is not counted, but for no more requests than `LONGEST`.

        Parameters
        ----------
        name : str
            The candidate.
        rate_rps : float
            Offered rate (requests/s).
        times : float
            Length in TTFT targets or half residence times, the longer of both.
        """
        slo, bound = self.scenario.environment.slo.strictest(), self.bounds[name]
        target_s = max(slo.ttft_s or 0.0, slo.e2el_s or 0.0)
        long_s = times * max(target_s, bound.residence_s / 2)
        rate_rps = min(rate_rps, bound.total_rps)
        ramp = min((bound.ramp_s or 0.0) / WARMUP * rate_rps, LONGEST)
        return max(LEAST_REQUESTS, math.ceil(max(long_s * rate_rps, ramp)))

    def cell(self, name: str, rate_rps: float, draw: int, times: float) -> Cell:
        """Return a run of a candidate on a draw of requests, as long as those of a round."""
        return Cell(name, rate_rps, self.seed(draw), self.length(name, rate_rps, times))

    def probes(self, cells: Sequence[Cell], part: str) -> list[RaceRun]:
        """Return the outcomes of runs, which belong to a part of the work."""
        return self.runner.cells(
            probe,
            self.scenario,
            cells,
            made=RaceRun,
            kind=self._kind,
            done=lambda cell: self.did(part, cell),
        )

    def did(self, part: str, cell: Cell) -> None:
        """Note a run that has ended."""
        self.work.did(part, cell.num_requests or 0)

    def crossings(self, searches: Mapping[str, Search], part: str) -> dict[str, Crossing]:
        """Return how searches of candidates end, which belong to a part of the work."""
        return answer(searches, lambda wanted: self.probes([cell for _, cell in wanted], part))

    def value(self, crossing: Crossing) -> float:
        """Return a goodput (requests/s), not above its bound, as short runs may put it."""
        return min(crossing.goodput_rps, self.bounds[crossing.name].total_rps)

    def held(self, crossing: Crossing) -> float:
        """Return the GPUs that a candidate holds about where its attainment crosses the target."""
        bound = self.bounds[crossing.name]
        known = bound.ramp_s is not None and crossing.mean_gpus > 0
        return crossing.mean_gpus if known else float(bound.num_gpus)

    def by_family(self, names: Sequence[str]) -> dict[str, list[str]]:
        """Return the names of each family, in their order."""
        own: dict[str, list[str]] = {}
        for name in names:
            own.setdefault(self.families[name], []).append(name)
        return own
