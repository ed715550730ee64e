"""How good a plan is: by looking it up in the database, or by simulating it token by token."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from simcluster.config import TARGET_KEYS, SloConfig, SloPercentiles
from simcluster.errors import ConfigError
from simcluster.quality import QualityCurve
from simcluster.runs.cell import Cell, digest_of
from simcluster.runs.executor import Labelled, Runner
from simcluster.runs.recorded import Label, RecordedRuns
from simcluster.scenario.cooptimize_table import CooptimizeTable
from simcluster.scenario.file import changed
from simcluster.scenario.scenario import Scenario
from simcluster.strategies.base import dry_run
from simcluster.studies.cooptimize.database import MASSES, Database
from simcluster.studies.cooptimize.fleets import (
    LATENCY_GRID,
    Fleet,
    Stock,
    shares_within,
    tail_shares,
)
from simcluster.studies.cooptimize.targets import (
    FEWEST_RUNS,
    MOST_RUNS,
    Judged,
    Verdict,
    counted_of,
    judged,
    judged_of,
    log_odds,
    num_requests,
    student_975,
    verdict_of,
    wanted_of,
)
from simcluster.units import FloatArray
from simcluster.workload.base import EndlessArrivals

TOLERANCE: Final = 1e-9
"""How much a limit may seem broken by rounding."""

_LONGER: Final = 1.3
"""Times its length from which a long run is repeated as long as it should be."""

NAME = "co-optimised"
"""Name of the strategy of a chosen plan."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Load fractions and fleets of all models, and what they come to."""

    fractions: tuple[float, ...]
    """Share of the requests of each model, from the weakest to the strongest."""
    fleets: tuple[Fleet, ...]
    """What serves each."""
    cost_per_hour: float
    """Price of all GPUs."""
    latency_s: float
    """The wanted percentile of the wanted latency (s), as it was judged; inf where overloaded."""
    quality: float
    """Mean expected quality, 0 to 1; NaN for one model without."""
    shares: tuple[float, ...] = ()
    """Of the requests within each counted target of ``[slo]``; empty where it has none."""


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A plan and its simulations token by token, all pools together."""

    plan: Plan
    """As the database has it."""
    runs: tuple[Judged, ...]
    """One for each seed."""
    verdict: Verdict | None = None
    """What they say of the targets of ``[slo]``; None where it has none."""

    @property
    def latencies_s(self) -> tuple[float, ...]:
        """The wanted percentile (s) with each seed."""
        return tuple(run.latency_s for run in self.runs)

    @property
    def latency_s(self) -> float:
        """Mean over the seeds (s)."""
        return float(np.mean(self.latencies_s))

    @property
    def half_width_s(self) -> float:
        """Half the 95 % confidence interval of the mean over seeds (s); NaN for one seed."""
        num = len(self.runs)
        if num < 2:
            return math.nan
        return student_975(num - 1) * float(np.std(self.latencies_s, ddof=1)) / math.sqrt(num)

    @property
    def difference(self) -> float:
        """The database's latency against the simulated one, as a share of the latter."""
        return self.plan.latency_s / self.latency_s - 1


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """Everything a plan is judged by."""

    scenario: Scenario
    """Models, machines, workload, targets."""
    table: CooptimizeTable
    """Limits and goal."""
    database: Database
    """The offline stage."""
    stock: Stock
    """GPU types, numbers, prices."""
    curve: QualityCurve | None
    """Quality by load fractions; None for one model."""
    rate_rps: float
    """Offered rate of all requests."""
    runner: Runner = field(default_factory=Runner)
    """Does the simulations."""
    margin: float = 0.0
    """Log odds by which the database's shares within the targets must exceed the wanted ones; -inf
    to search without the targets."""

    @property
    def slo(self) -> SloConfig:
        """The targets of the scenario."""
        return self.scenario.environment.slo

    @property
    def searches_targets(self) -> bool:
        """Whether plans are looked up by the targets too."""
        return self.slo.has_targets and self.margin > -math.inf

    @property
    def metric(self) -> str:
        """Column of the wanted latency."""
        return f"{self.table.latency}_s"

    def quality(self, fractions: Sequence[float]) -> float:
        """Return the mean expected quality; NaN for one model without."""
        return math.nan if self.curve is None else float(self.curve.quality(list(fractions)))

    def tail(self, fleet: Fleet, rate_rps: float) -> FloatArray:
        """Return the share of a fleet's requests beyond each of `LATENCY_GRID`."""
        return tail_shares(self.database, fleet, rate_rps, self.metric, self.table.loads)

    def look_up(self, fractions: Sequence[float], fleets: Sequence[Fleet]) -> Plan:
        """Judge a plan by the database."""
        tail = np.zeros(len(LATENCY_GRID))
        for fraction, fleet in zip(fractions, fleets, strict=True):
            if fraction > 0:
                tail += fraction * self.tail(fleet, fraction * self.rate_rps)
        shares: FloatArray = np.zeros(len(counted_of(self.slo)))
        for fraction, fleet in zip(fractions, fleets, strict=True):
            if fraction > 0 and len(shares):
                shares = shares + fraction * self.shares(fleet, fraction * self.rate_rps)
        return Plan(
            tuple(fractions),
            tuple(fleets),
            sum(fleet.cost_per_hour for fleet in fleets),
            percentile_of(tail, self.table.percentile),
            self.quality(fractions),
            tuple(shares.tolist()),
        )

    def shares(self, fleet: Fleet, rate_rps: float) -> FloatArray:
        """Return the share of a fleet's requests within each counted target."""
        return shares_within(self.database, fleet, rate_rps, self.table.loads)

    def headroom(self, shares: FloatArray) -> FloatArray:
        """Return by how much (log odds) shares exceed the wanted ones where they do so least.

        Parameters
        ----------
        shares : ndarray
            Shape ``(..., targets)``.
        """
        return np.asarray((log_odds(shares) - log_odds(wanted_of(self.slo))).min(axis=-1))

    def violations(self, plan: Plan) -> tuple[float, ...]:
        """Return by how much each limit is broken; all at most 0 for a feasible plan."""
        table = self.table
        used = [
            sum(fleet.num_gpus(gpu) for fleet in plan.fleets) - self.stock.cluster(gpu).num_gpus
            for gpu in self.stock.gpus
        ]
        budget = table.budget_per_hour
        limit = table.latency_at_most_s
        latency = min(plan.latency_s, LATENCY_GRID[-1])
        overload = 0.0 if math.isfinite(plan.latency_s) else 1.0
        short = -math.inf
        if self.searches_targets:
            short = self.margin - float(self.headroom(np.array(plan.shares))) if plan.shares else 1
        return (
            float(max(used)),
            0.0 if budget is None else plan.cost_per_hour - budget,
            0.0 if table.quality_at_least is None else table.quality_at_least - plan.quality,
            overload if limit is None else max(overload, math.log(latency / limit)),
            short,
        )

    def scenario_of(self, plan: Plan, name: str = NAME) -> Scenario:
        """Return a plan as a scenario that ``simcluster run`` takes, with the limit as a target.

        Raises
        ------
        ConfigError
            If the plan does not make a scenario.
        """
        changes = {
            "cooptimize": None,
            "rank": None,
            "sweep": None,
            "strategy": [self._strategy(plan, name)],
            "workload.rate_rps": self.rate_rps,
            **self._targets(),
        }
        return changed(self.scenario, changes)

    def _targets(self) -> dict[str, Any]:
        """Return the keys of ``[slo]`` that say the latency limit, by dotted key.

        Of the limit and a target of the scenario's own the smaller holds, for the larger share of
        the requests. The limit's percentile becomes the wanted attainment where no other latency
        has a target, which would change with it; beside others it is that of its target alone,
        where each is counted by itself.
        """
        limit, slo, key = self.table.latency_at_most_s, self.slo, self.table.latency
        if limit is None:
            return {}
        given = {key: value for key in TARGET_KEYS if (value := getattr(slo, key)) is not None}
        share = self.table.percentile / 100
        if self.metric in given:
            share = max(share, slo.wanted(key))
        targets = {f"slo.{self.metric}": min(limit, given.pop(self.metric, limit))}
        apart = given and slo.criterion == "marginal" and share != slo.attainment
        if slo.percentiles is not None or apart:
            own = dataclasses.asdict(slo.percentiles or SloPercentiles())
            own |= {key: 100 * share}
            return {**targets, "slo.percentiles": {k: p for k, p in own.items() if p is not None}}
        return targets if given else {**targets, "slo.attainment": share}

    def _strategy(self, plan: Plan, name: str) -> dict[str, Any]:
        pools: list[tuple[int, dict[str, Any]]] = []
        for model, fleet in zip(self.table.models, plan.fleets, strict=True):
            for unit, count in fleet.parts:
                serving = unit.serving(count, f"{model} on {unit.gpu}")
                pool = {
                    "model": model,
                    "gpu": unit.gpu,
                    "weight": self.database[unit].capacity_rps * count,
                    "serving": dataclasses.asdict(serving),
                }
                pools.append((unit.tp_size * unit.pp_size, pool))
        # Large instances first: what is left of the nodes still holds the small ones.
        pools.sort(key=lambda entry: -entry[0])
        return {
            "name": name,
            "kind": "routed",
            "models": list(self.table.models),
            "fractions": list(plan.fractions),
            "pool": [pool for _, pool in pools],
        }

    def simulated(
        self,
        plans: Sequence[Plan],
        seeds: Sequence[int],
        lengths: Sequence[int | None] | None = None,
    ) -> list[list[Judged]]:
        """Simulate plans, all pools of each together, with each seed.

        Parameters
        ----------
        plans : sequence of Plan
            Which.
        seeds : sequence of int
            Of the runs of each.
        lengths : sequence of int or None, optional
            Requests of a long run of each; by default runs are as long as in the scenario.

        Raises
        ------
        ConfigError
            If the instances of one cannot be placed on the nodes.
        """
        lengths = [None] * len(plans) if lengths is None else lengths
        calls = [
            (scenario, Cell(NAME, self.rate_rps, seed, num), self.metric, percentile, self.slo)
            for scenario, num in zip(map(self.scenario_of, plans), lengths, strict=True)
            for seed in seeds
            for percentile in (self.table.percentile,)
        ]
        runs = self.runner.recorded
        store = None if runs is None else Labelled(runs, functools.partial(_label, runs), judged_of)
        came = iter(self.runner.each(judged, calls, store))
        return [list(itertools.islice(came, len(seeds))) for _ in plans]

    def confirm(self, plans: Sequence[Plan]) -> list[Confirmed]:
        """Simulate plans with every seed; those that the nodes cannot hold are left out.

        With targets in ``[slo]`` in long runs and with further seeds while a target is in doubt.
        """
        placed = [plan for plan in plans if self.fits(plan)]
        if not self.slo.has_targets:
            runs = self.simulated(placed, self.table.seeds)
            return [Confirmed(plan, tuple(own)) for plan, own in zip(placed, runs, strict=True)]
        lengths = [self.long_run(plan) for plan in placed]
        seeds = first_seeds(self.table.seeds, FEWEST_RUNS)
        confirmed = [
            self._with_verdict(plan, own)
            for plan, own in zip(placed, self.simulated(placed, seeds, lengths), strict=True)
        ]
        for at, one in enumerate(confirmed):
            # Residence times that the database did not foresee: longer runs, once.
            needed = self._num_requests(max(run.residence_s for run in one.runs))
            here = lengths[at]
            longer = here is not None and needed is not None and needed > _LONGER * here
            if longer and one.verdict is not None and one.verdict.status in ("kept", "in doubt"):
                lengths[at] = needed
                one = self._with_verdict(one.plan, *self.simulated([one.plan], seeds, [needed]))
            while one.verdict is not None and one.verdict.status == "in doubt":
                if len(one.runs) >= MOST_RUNS:
                    break
                more = first_seeds(self.table.seeds, 2 * len(one.runs))[len(one.runs) :]
                (own,) = self.simulated([one.plan], more, [lengths[at]])
                one = self._with_verdict(one.plan, [*one.runs, *own])
            confirmed[at] = one
        return confirmed

    def _with_verdict(self, plan: Plan, runs: Sequence[Judged]) -> Confirmed:
        return Confirmed(plan, tuple(runs), verdict_of(runs, wanted_of(self.slo)))

    def long_run(self, plan: Plan) -> int | None:
        """Return how many requests a long run of a plan has, by the database's residence times.

        None where arrivals cannot be drawn at any length: runs are then as long as the scenario's.
        """
        return self._num_requests(self.residence_s(plan))

    def _num_requests(self, residence_s: float) -> int | None:
        """Return the requests of a long run; None where arrivals cannot be drawn so."""
        process = self.scenario.workload.arrival_process
        if not isinstance(process, EndlessArrivals) or process.own_rate_rps is not None:
            return None
        if not math.isfinite(residence_s):
            residence_s = 0.0  # nothing finished: the least length shows it
        return num_requests(self.rate_rps, residence_s, self.slo)

    def residence_s(self, plan: Plan) -> float:
        """Return the mean time of a request in the system (s), by the database."""
        total = 0.0
        for fraction, fleet in zip(plan.fractions, plan.fleets, strict=True):
            load = fraction * self.rate_rps / fleet.capacity_rps if fleet.parts else 0.0
            for unit, count in fleet.parts:
                entry = self.database[unit]
                weight = entry.capacity_rps * count / fleet.capacity_rps
                values = entry.latencies("e2el_s", load, count, self.table.loads)
                total += fraction * weight * float(values @ MASSES)
        return total

    def fits(self, plan: Plan) -> bool:
        """Whether the nodes can hold the instances of a plan."""
        try:
            scenario = self.scenario_of(plan)
            dry_run(scenario.environment, scenario.strategies[0])
        except ConfigError:
            return False
        return True

    def keeps(self, confirmed: Confirmed) -> bool:
        """Tell whether a plan keeps all limits, and targets and latency as simulated."""
        plan = dataclasses.replace(confirmed.plan, latency_s=confirmed.latency_s)
        *limits, _ = self.violations(plan)
        return self.keeps_targets(confirmed) and max(limits) <= TOLERANCE

    def keeps_targets(self, confirmed: Confirmed) -> bool:
        """Tell whether a plan keeps every target of ``[slo]`` as simulated."""
        return confirmed.verdict is None or confirmed.verdict.status == "kept"


def first_seeds(seeds: Sequence[int], num: int) -> list[int]:
    """Return at least `num` seeds: those given, and the smallest others.

    >>> first_seeds((5, 0), 4)
    [5, 0, 1, 2]
    """
    others = (seed for seed in itertools.count() if seed not in seeds)
    return [*seeds, *itertools.islice(others, max(0, num - len(seeds)))]


def _label(
    runs: RecordedRuns,
    scenario: Scenario,
    cell: Cell,
    metric: str,
    percentile: float,
    slo: SloConfig,
) -> Label:
    """Return what a simulation of a plan is."""
    return runs.label(scenario, cell, f"{metric} {percentile} {digest_of(slo)}")


def percentile_of(tail: FloatArray, percentile: float) -> float:
    """Return the latency (s) that a share of the requests is below, by a falling tail.

    Linear in the logarithm of the latency between grid points; inf where the tail never falls so
    low.
    """
    left = 1 - percentile / 100
    index = int(np.searchsorted(-tail, -left))
    if index >= len(tail):
        return math.inf
    if index == 0:
        return float(LATENCY_GRID[0])
    high, low = tail[index - 1], tail[index]
    part = (high - left) / (high - low) if high > low else 1.0
    return float(LATENCY_GRID[index - 1] * (LATENCY_GRID[index] / LATENCY_GRID[index - 1]) ** part)


def check_limits(table: CooptimizeTable, curve: QualityCurve | None) -> None:
    """Refuse limits that no plan can keep, whatever it costs.

    Raises
    ------
    ConfigError
        If more models than one come without quality, quality comes with one alone, or the wanted
        quality is above the highest.
    """
    num_models = len(table.models)
    if len(set(table.models)) < num_models:
        raise ConfigError(
            "cooptimize.models", str(list(table.models)), "names a model twice", "Name each once."
        )
    if curve is None:
        if num_models > 1:
            rule = f"is missing, and {num_models} models are to be routed among"
            raise ConfigError("quality", None, rule, "Add a table [quality].")
        if table.quality_at_least is not None:
            raise ConfigError(
                "cooptimize.quality_at_least",
                table.quality_at_least,
                "needs two models and a table [quality]",
                "Leave it out, or add them.",
            )
        return
    if num_models != curve.num_models:
        rule = f"are {num_models} models, and [quality] knows {curve.num_models}"
        if num_models < 2:
            rule = f"is one model; routing needs two, and [quality] knows {curve.num_models}"
        raise ConfigError(
            "cooptimize.models",
            str(list(table.models)),
            rule,
            "Give the models that the quality is of, from the weakest to the strongest.",
        )
    best, _ = curve.best()
    if table.quality_at_least is not None and table.quality_at_least > best:
        raise ConfigError(
            "cooptimize.quality_at_least",
            table.quality_at_least,
            f"no load fractions reach it: the highest quality is {best:.4f}, the strongest model's "
            f"own {curve.alone[-1]:.4f}",
            f"Ask for at most {math.floor(best * 1e4) / 1e4:g}.",
        )
