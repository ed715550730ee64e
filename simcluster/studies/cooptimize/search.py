"""The online stage: load fractions and fleets, every one of the skeleton."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np

from simcluster.errors import ConfigError
from simcluster.studies.cooptimize.database import most_units
from simcluster.studies.cooptimize.fleets import (
    LATENCY_GRID,
    NO_FLEET,
    Family,
    Fleet,
    families,
    usage,
)
from simcluster.studies.cooptimize.front import undominated
from simcluster.studies.cooptimize.judge import TOLERANCE, Judge, Plan
from simcluster.studies.cooptimize.targets import counted_of
from simcluster.units import FloatArray, IntArray

Allowed = Callable[[Sequence[Fleet]], bool]
"""Whether the fleets of all models may stand together, beyond budget and stock."""


@dataclass(slots=True)
class Found:
    """What a search found."""

    front: list[Plan]
    """Undominated plans that keep all limits, cheapest first."""
    num_evaluations: int
    """Plans judged."""
    sampler: str
    """By what."""
    seconds: float
    """How long the search took, without the database."""
    history: list[Plan] = field(default_factory=list)
    """Of a sampler, every plan judged, in order."""


@dataclass(frozen=True, slots=True, eq=False)
class Space:
    """What can be chosen."""

    judge: Judge
    """What judges."""
    families: tuple[list[Family], ...]
    """Of each model."""

    @classmethod
    def of(cls, judge: Judge) -> Space:
        """Return the space of the judge's models and stock."""
        return cls(
            judge,
            tuple(
                families(judge.database, model, judge.stock, judge.rate_rps, judge.metric)
                for model in judge.table.models
            ),
        )

    def fleets(self, model: int) -> list[Fleet]:
        """Return every fleet of a model once: all of one kind of unit, and the mixed ones."""
        judge, found = self.judge, {}
        for family in self.families[model]:
            candidates: list[Fleet | None] = list(family.by_level)
            if len(family.units) == 1:
                unit = family.units[0]
                most = most_units(judge.stock.cluster(unit.gpu), unit)
                candidates = [
                    judge.stock.fleet(judge.database, [(unit, count)])
                    for count in range(1, most + 1)
                ]
            for fleet in candidates:
                if fleet is not None:
                    found[fleet.parts] = fleet
        return list(found.values())

    def splits(self) -> list[tuple[float, ...]]:
        """Return the load fractions of exhaustive search.

        Steps of the simplex; of two models also the least share of the strong one that reaches the
        wanted quality.
        """
        table, curve = self.judge.table, self.judge.curve
        num_models, steps = len(table.models), table.fractions
        grid = [
            tuple(part / steps for part in (*parts, steps - sum(parts)))
            for parts in product(range(steps + 1), repeat=num_models - 1)
            if sum(parts) <= steps
        ]
        if num_models == 2 and curve is not None and table.quality_at_least is not None:
            try:
                share = curve.least_strong_share(table.quality_at_least)
            except ValueError:
                return grid  # only a mix of several slices reaches it
            # Rounded up in the last place that a file shows, so that the limit is kept.
            share = min(1.0, math.ceil(share * 1e6) / 1e6)
            grid.append((round(1 - share, 6), share))
        return sorted(set(grid))


def exhaustive(space: Space, allowed: Allowed | None = None) -> Found:
    """Judge every pair of fleets of two models (or fleet of one) at every step of the fractions.

    Parameters
    ----------
    space : Space
        What can be chosen.
    allowed : callable, optional
        Leaves out fleets that may not stand together (the baselines).

    Raises
    ------
    ConfigError
        For more than two models.
    """
    started = time.perf_counter()
    judge = space.judge
    if len(space.families) > 2:
        raise ConfigError(
            "cooptimize.sampler",
            "exhaustive",
            f"{len(space.families)} models have too many combinations of fleets",
            'Use "nsga2".',
        )
    choices = [space.fleets(model) for model in range(len(space.families))]
    if len(choices) == 1:
        choices.insert(0, [])  # a weaker model that gets nothing
    weak, strong = ([NO_FLEET, *fleets] for fleets in choices)
    pairs = _pairs(judge, weak, strong, allowed)
    plans: list[Plan] = []
    count = 0
    for split in space.splits():
        quality = judge.quality(split)
        least = judge.table.quality_at_least
        if least is not None and quality < least - TOLERANCE:
            continue
        shares = split if len(split) == 2 else (0.0, 1.0)
        at_split = pairs.where(shares)
        if not at_split.any():
            continue
        rows = pairs.select(at_split)
        count += len(rows.cost)
        latency = _latencies(judge, rows, weak, strong, shares)
        kept = np.isfinite(latency)
        if judge.table.latency_at_most_s is not None:
            kept &= latency <= judge.table.latency_at_most_s
        within = _within(judge, rows, weak, strong, shares)
        if judge.searches_targets:
            kept &= judge.headroom(within) >= judge.margin - TOLERANCE
        index = np.flatnonzero(kept)
        for best in _staircase(rows.cost[index], latency[index]):
            row = index[best]
            fleets = (weak[rows.weak[row]], strong[rows.strong[row]])[-len(split) :]
            cost, latency_s = float(rows.cost[row]), float(latency[row])
            own = tuple(within[row].tolist())
            plans.append(Plan(split, fleets, cost, latency_s, quality, own))
    return Found(
        pareto(plans, judge.table.objectives),
        count,
        "exhaustive",
        time.perf_counter() - started,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Pairs:
    """Pairs of fleets by index, with their cost; index 0 is no fleet."""

    weak: IntArray
    strong: IntArray
    cost: FloatArray

    def where(self, shares: Sequence[float]) -> Any:
        """Tell which pairs serve exactly the models that get requests."""
        return ((self.weak > 0) == (shares[0] > 0)) & ((self.strong > 0) == (shares[1] > 0))

    def select(self, rows: Any) -> _Pairs:
        """Return some of the pairs."""
        return _Pairs(self.weak[rows], self.strong[rows], self.cost[rows])


def _pairs(
    judge: Judge, weak: Sequence[Fleet], strong: Sequence[Fleet], allowed: Allowed | None
) -> _Pairs:
    """Return the pairs that keep to budget and stock."""
    costs = [np.array([fleet.cost_per_hour for fleet in fleets]) for fleets in (weak, strong)]
    cost = costs[0][:, None] + costs[1][None, :]
    fits = np.ones(cost.shape, dtype=bool)
    if judge.table.budget_per_hour is not None:
        fits &= cost <= judge.table.budget_per_hour + TOLERANCE
    gpus = judge.stock.gpus
    used = [usage(fleets, gpus) for fleets in (weak, strong)]
    for number, gpu in enumerate(gpus):
        total = used[0][:, None, number] + used[1][None, :, number]
        fits &= total <= judge.stock.cluster(gpu).num_gpus
    rows = np.argwhere(fits)
    if allowed is not None:
        kept = [allowed((weak[a], strong[b])) for a, b in rows.tolist()]
        rows = rows[np.array(kept, dtype=bool)] if len(rows) else rows
    return _Pairs(rows[:, 0], rows[:, 1], cost[rows[:, 0], rows[:, 1]])


def _latencies(
    judge: Judge,
    rows: _Pairs,
    weak: Sequence[Fleet],
    strong: Sequence[Fleet],
    shares: Sequence[float],
) -> FloatArray:
    """Return the percentile of every pair: the grid is searched by halving, all pairs at once."""
    tails = []
    for fleets, chosen, share in ((weak, rows.weak, shares[0]), (strong, rows.strong, shares[1])):
        tail = np.zeros((len(fleets), len(LATENCY_GRID)), dtype=np.float32)
        for number in np.unique(chosen).tolist():
            if share > 0:
                tail[number] = share * judge.tail(fleets[number], share * judge.rate_rps)
        tails.append(tail)
    left = np.float32(1 - judge.table.percentile / 100)

    def at(index: IntArray) -> FloatArray:
        return np.asarray(tails[0][rows.weak, index] + tails[1][rows.strong, index])

    last = len(LATENCY_GRID) - 1
    low = np.full(len(rows.cost), -1, dtype=np.int64)
    high = np.full(len(rows.cost), last, dtype=np.int64)
    while (high - low > 1).any():
        middle = (low + high) // 2
        below = at(np.maximum(middle, 0)) <= left
        wide = high - low > 1
        high = np.where(wide & below, middle, high)
        low = np.where(wide & ~below, middle, low)
    before = np.maximum(high - 1, 0)
    upper, lower = at(before), at(high)
    part = np.where(upper > lower, (upper - left) / np.maximum(upper - lower, 1e-12), 1.0)
    logs = np.log(LATENCY_GRID)
    latency = np.exp(logs[before] + np.clip(part, 0, 1) * (logs[high] - logs[before]))
    return np.where(lower <= left, latency, np.inf)


def _within(
    judge: Judge,
    rows: _Pairs,
    weak: Sequence[Fleet],
    strong: Sequence[Fleet],
    shares: Sequence[float],
) -> FloatArray:
    """Return the share of every pair within each target of ``[slo]``, shape ``(rows, targets)``."""
    total = np.zeros((len(rows.cost), len(counted_of(judge.slo))))
    if not total.size:
        return total
    for fleets, chosen, share in ((weak, rows.weak, shares[0]), (strong, rows.strong, shares[1])):
        own = np.zeros((len(fleets), total.shape[1]))
        for number in np.unique(chosen).tolist() if share > 0 else ():
            own[number] = judge.shares(fleets[number], share * judge.rate_rps)
        total += share * own[chosen]
    return total


def _staircase(cost: FloatArray, latency: FloatArray) -> list[int]:
    """Return the rows that are quicker than every one that costs no more, cheapest first."""
    order = np.lexsort((latency, cost))
    best = np.minimum.accumulate(latency[order])
    quicker = np.concatenate([[True], best[1:] < best[:-1]]) if len(order) else order
    return [int(row) for row in order[np.asarray(quicker, dtype=bool)]]


def pareto(plans: Sequence[Plan], objectives: Sequence[str]) -> list[Plan]:
    """Return the plans that no other beats in `objectives`, cheapest first."""
    if not plans:
        return []
    values = np.array([objective_values(plan, objectives) for plan in plans])
    front = [plans[row] for row in undominated(values).tolist()]
    return sorted(front, key=lambda plan: (plan.cost_per_hour, plan.latency_s))


def objective_values(plan: Plan, objectives: Sequence[str]) -> list[float]:
    """Return the objectives as they are minimised: log latency, negative logit of quality."""
    quality = min(max(plan.quality, 1e-6), 1 - 1e-6)
    values = {
        "cost": plan.cost_per_hour,
        "latency": math.log(min(plan.latency_s, LATENCY_GRID[-1])),
        "quality": 0.0 if math.isnan(quality) else -math.log(quality / (1 - quality)),
    }
    return [values[objective] for objective in objectives]
