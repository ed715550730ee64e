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

from simcluster.config import TARGET_KEYS
from simcluster.errors import ConfigError
from simcluster.quality import QualityCurve
from simcluster.runs.cell import Cell
from simcluster.runs.executor import Labelled, Runner
from simcluster.runs.recorded import Label, RecordedRuns
from simcluster.runs.simulate import simulate
from simcluster.scenario.cooptimize_table import CooptimizeTable
from simcluster.scenario.file import changed
from simcluster.scenario.scenario import Scenario
from simcluster.strategies.base import dry_run
from simcluster.studies.cooptimize.database import Database
from simcluster.studies.cooptimize.fleets import LATENCY_GRID, Fleet, Stock, tail_shares
from simcluster.units import FloatArray

TOLERANCE: Final = 1e-9
"""How much a limit may seem broken by rounding."""

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


@dataclass(frozen=True, slots=True)
class Confirmed:
    """A plan and its simulations token by token, all pools together."""

    plan: Plan
    """As the database has it."""
    latencies_s: tuple[float, ...]
    """The wanted percentile (s) with each seed."""
    qualities: tuple[float, ...]
    """Mean expected quality with each seed."""

    @property
    def latency_s(self) -> float:
        """Mean over the seeds (s)."""
        return float(np.mean(self.latencies_s))

    @property
    def half_width_s(self) -> float:
        """Half the 95 % confidence interval of the mean over seeds (s); NaN for one seed."""
        num = len(self.latencies_s)
        if num < 2:
            return math.nan
        return _student_975(num - 1) * float(np.std(self.latencies_s, ddof=1)) / math.sqrt(num)

    @property
    def difference(self) -> float:
        """The database's latency against the simulated one, as a share of the latter."""
        return self.plan.latency_s / self.latency_s - 1


def _student_975(freedom: int) -> float:
    """Return the 97.5 % quantile of Student's t (Abramowitz and Stegun, table 26.10)."""
    table = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
    return table[freedom - 1] if freedom <= len(table) else 1.96 + 2.5 / freedom


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
        return Plan(
            tuple(fractions),
            tuple(fleets),
            sum(fleet.cost_per_hour for fleet in fleets),
            percentile_of(tail, self.table.percentile),
            self.quality(fractions),
        )

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
        return (
            float(max(used)),
            0.0 if budget is None else plan.cost_per_hour - budget,
            0.0 if table.quality_at_least is None else table.quality_at_least - plan.quality,
            overload if limit is None else max(overload, math.log(latency / limit)),
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

    def _targets(self) -> dict[str, float]:
        """Return the keys of ``[slo]`` that say the latency limit, by dotted key.

        Of the limit and a target of the scenario's own the smaller holds. Its percentile becomes
        the wanted attainment where no other latency has a target, which would change with it.
        """
        limit, slo = self.table.latency_at_most_s, self.scenario.environment.slo
        if limit is None:
            return {}
        given = {key: value for key in TARGET_KEYS if (value := getattr(slo, key)) is not None}
        targets = {f"slo.{self.metric}": min(limit, given.pop(self.metric, limit))}
        return targets if given else {**targets, "slo.attainment": self.table.percentile / 100}

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

    def simulated(self, plans: Sequence[Plan], seeds: Sequence[int]) -> list[list[Judged]]:
        """Simulate plans, all pools of each together, with each seed.

        Raises
        ------
        ConfigError
            If the instances of one cannot be placed on the nodes.
        """
        calls = [
            (scenario, Cell(NAME, self.rate_rps, seed), self.metric, self.table.percentile)
            for scenario in map(self.scenario_of, plans)
            for seed in seeds
        ]
        runs = self.runner.recorded
        store = None if runs is None else Labelled(runs, functools.partial(_label, runs), Judged)
        came = iter(self.runner.each(_judged, calls, store))
        return [list(itertools.islice(came, len(seeds))) for _ in plans]

    def confirm(self, plans: Sequence[Plan]) -> list[Confirmed]:
        """Simulate plans with every seed; those that the nodes cannot hold are left out."""
        placed = [plan for plan in plans if self.fits(plan)]
        return [
            Confirmed(plan, tuple(o.latency_s for o in own), tuple(o.quality for o in own))
            for plan, own in zip(placed, self.simulated(placed, self.table.seeds), strict=True)
        ]

    def fits(self, plan: Plan) -> bool:
        """Whether the nodes can hold the instances of a plan."""
        try:
            scenario = self.scenario_of(plan)
            dry_run(scenario.environment, scenario.strategies[0])
        except ConfigError:
            return False
        return True

    def keeps(self, confirmed: Confirmed) -> bool:
        """Tell whether a plan keeps to the latency limit as simulated, and to the others."""
        plan = dataclasses.replace(confirmed.plan, latency_s=confirmed.latency_s)
        return max(self.violations(plan)) <= TOLERANCE


@dataclass(frozen=True, slots=True)
class Judged:
    """A simulation of a plan: the wanted percentile (s), and the mean expected quality."""

    latency_s: float
    quality: float


def _judged(scenario: Scenario, cell: Cell, metric: str, percentile: float) -> Judged:
    """Simulate a plan."""
    requests = simulate(scenario, rate_rps=cell.rate_rps, seed=cell.seed).columns["requests"]
    inside = requests["arrival_s"] >= scenario.run.warmup_s
    last = requests["arrival_s"].max() - scenario.run.cooldown_s
    inside &= requests["arrival_s"] <= last
    inside &= requests["status"] != "rejected"  # too long for every plan
    finished = requests["status"][inside] == "finished"
    values = np.where(finished, requests[metric][inside], math.inf)
    values = values[~np.isnan(values)]
    latency = float(np.quantile(values, percentile / 100, method="higher"))
    return Judged(latency, float(np.mean(requests["quality"][inside])))


def _label(
    runs: RecordedRuns, scenario: Scenario, cell: Cell, metric: str, percentile: float
) -> Label:
    """Return what a simulation of a plan is."""
    return runs.label(scenario, cell, f"{metric} {percentile}")


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
