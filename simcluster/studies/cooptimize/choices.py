"""Plans within the limits that are known before any is judged, as points of a few variables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from simcluster.errors import ConfigError
from simcluster.rng import stream
from simcluster.studies.cooptimize.database import MASSES
from simcluster.studies.cooptimize.fleets import NO_FLEET, Fleet, usage
from simcluster.studies.cooptimize.judge import TOLERANCE, Judge, Plan
from simcluster.studies.cooptimize.search import Space
from simcluster.units import FloatArray, IntArray

_MOST_ROWS: Final = 100_000
"""Plans to choose from, at most; of more so many are drawn."""
_MOST_COMBINED: Final = 1_000_000
"""Combinations of fleets that are looked through at one split of the load, at most."""


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """Plans that keep budget, stock, quality and the database's loads."""

    judge: Judge
    """Whose limits."""
    splits: list[tuple[float, ...]]
    """Load fractions that reach the wanted quality."""
    fleets: tuple[list[Fleet], ...]
    """Of each model; the last one is none."""
    rows: IntArray
    """Plans by index, shape ``(n, 1 + num_models)``: split, and fleet of each model."""
    names: list[str]
    """Of the variables."""
    points: FloatArray
    """Variables of each plan, each 0 to 1 from its least to its largest value, shape ``(n,
    len(names))``: load fractions of all models but the last; and of each model the load
    (logarithm), the latency at little load (logarithm) and the cost."""
    estimates: FloatArray
    """Latency (s) as estimated from the same, shape ``(n,)``: of the model with the largest, that
    at little load stretched by the load, as a step grows with the requests in the batch."""
    costs: FloatArray
    qualities: FloatArray
    """Of each plan, shape ``(n,)``."""
    seen: Any
    """What has been judged, shape ``(n,)``."""

    @classmethod
    def of(cls, space: Space) -> Choices:
        """Return the choices of a space."""
        judge, least = space.judge, space.judge.table.quality_at_least
        splits = [
            split
            for split in space.splits()
            if least is None or judge.quality(split) >= least - TOLERANCE
        ]
        fleets = tuple([*space.fleets(m), NO_FLEET] for m in range(len(space.families)))
        rows = _rows(judge, splits, fleets)
        if len(rows) > _MOST_ROWS:
            drawn = stream(judge.table.seeds[0], "choices").permutation(len(rows))[:_MOST_ROWS]
            rows = rows[np.sort(drawn)]
        shares = np.array(splits).reshape(len(splits), len(fleets))[rows[:, 0]]
        names = [f"fraction-{number}" for number in range(len(fleets) - 1)]
        columns = [shares[:, number] for number in range(len(fleets) - 1)]
        estimates, costs = np.zeros(len(rows)), np.zeros(len(rows))
        for model, of_model in enumerate(fleets):
            index, used = rows[:, model + 1], shares[:, model] > 0
            capacity = np.array([fleet.capacity_rps for fleet in of_model])[index]
            floor = np.array([_floor_s(judge, fleet) for fleet in of_model])[index]
            cost = np.array([fleet.cost_per_hour for fleet in of_model])[index]
            load = shares[:, model] * judge.rate_rps / np.where(used, capacity, 1.0)
            estimates = np.maximum(estimates, np.where(used, floor * (1 + load), 0.0))
            costs += cost
            names += [f"load-{model}", f"latency-{model}", f"cost-{model}"]
            columns += [_log(load, used), _log(floor, used), cost]
        points = np.array([_from_0_to_1(column) for column in columns]).T
        qualities = np.array([judge.quality(split) for split in splits])[rows[:, 0]]
        seen = np.zeros(len(rows), dtype=bool)
        return cls(judge, splits, fleets, rows, names, points, estimates, costs, qualities, seen)

    def plan(self, number: int) -> Plan:
        """Look a plan up in the database."""
        return self.judge.look_up(*self._parts(number))

    def simulated(self, number: int) -> Plan:
        """Simulate a plan with the first seed; infinitely slow if the nodes cannot hold it."""
        split, fleets = self._parts(number)
        cost, quality = float(self.costs[number]), float(self.qualities[number])
        plan = Plan(split, fleets, cost, math.inf, quality)
        try:
            ((judged,),) = self.judge.simulated([plan], self.judge.table.seeds[:1])
        except ConfigError:
            return plan
        return Plan(split, fleets, cost, judged.latency_s, quality, judged.shares)

    def _parts(self, number: int) -> tuple[tuple[float, ...], tuple[Fleet, ...]]:
        split, *indices = self.rows[number].tolist()
        fleets = tuple(fleets[i] for fleets, i in zip(self.fleets, indices, strict=True))
        return self.splits[split], fleets

    def parameters(self, number: int) -> dict[str, float]:
        """Return the variables of a plan by name."""
        return dict(zip(self.names, self.points[number].tolist(), strict=True))

    def unseen(self) -> IntArray:
        """Return which plans have not been judged."""
        return np.flatnonzero(~self.seen)

    def nearest(self, wanted: dict[str, float]) -> int | None:
        """Return the plan nearest to values of the variables that has not been judged.

        Returns
        -------
        int or None
            None if all have been.
        """
        left = self.unseen()
        if not len(left):
            return None
        point = np.array([wanted[name] for name in self.names])
        return int(left[np.argmin(np.abs(self.points[left] - point).sum(axis=1))])


def _rows(
    judge: Judge, splits: Sequence[Sequence[float]], fleets: Sequence[Sequence[Fleet]]
) -> IntArray:
    """Return every plan within budget and stock that carries its load; of very many, some."""
    found = [np.empty((0, 1 + len(fleets)), dtype=np.int64)]
    capacities = [np.array([fleet.capacity_rps for fleet in of_model]) for of_model in fleets]
    for number, split in enumerate(splits):
        indices = []
        for share, of_model, capacity in zip(split, fleets, capacities, strict=True):
            least = share * judge.rate_rps / judge.table.loads[-1]
            carries = np.flatnonzero(capacity[:-1] >= least)
            indices.append(carries if share > 0 else np.array([len(of_model) - 1]))
        combined = _combined(judge, indices, number)
        kept = combined[_affordable(judge, fleets, combined)]
        found.append(np.column_stack([np.full(len(kept), number), kept]))
    return np.vstack(found)


def _combined(judge: Judge, indices: Sequence[IntArray], number: int) -> IntArray:
    """Return all combinations of one index of each model, or so many at random."""
    total = math.prod(len(of_model) for of_model in indices)
    if total <= _MOST_COMBINED:
        return np.stack(np.meshgrid(*indices, indexing="ij"), axis=-1).reshape(-1, len(indices))
    rng = stream(judge.table.seeds[0], "choices", str(number))
    drawn = [of_model[rng.integers(len(of_model), size=_MOST_COMBINED)] for of_model in indices]
    return np.unique(np.column_stack(drawn), axis=0)


def _affordable(judge: Judge, fleets: Sequence[Sequence[Fleet]], combined: IntArray) -> Any:
    gpus = judge.stock.gpus
    cost, used = np.zeros(len(combined)), np.zeros((len(combined), len(gpus)))
    for model, of_model in enumerate(fleets):
        cost += np.array([fleet.cost_per_hour for fleet in of_model])[combined[:, model]]
        used += usage(of_model, gpus)[combined[:, model]]
    fits = (used <= [judge.stock.cluster(gpu).num_gpus for gpu in gpus]).all(axis=1)
    if judge.table.budget_per_hour is not None:
        fits &= cost <= judge.table.budget_per_hour + TOLERANCE
    return fits


def _floor_s(judge: Judge, fleet: Fleet) -> float:
    """Return the wanted percentile of a fleet's latency at the lowest load (s); 0 without."""
    levels, level = np.cumsum(MASSES) - MASSES / 2, judge.table.percentile / 100
    of_units = [judge.database[unit].quantiles[judge.metric][-1, 0] for unit, _ in fleet.parts]
    return max((float(np.interp(level, levels, values)) for values in of_units), default=0.0)


def _log(values: FloatArray, used: Any) -> FloatArray:
    """Return logarithms; where a model is not used the least of the others."""
    if not used.any():
        return np.zeros(len(values))
    logs = np.log(np.where(used, values, 1.0))
    return np.where(used, logs, logs[used].min())


def _from_0_to_1(values: FloatArray) -> FloatArray:
    if not len(values) or np.ptp(values) == 0:
        return np.zeros(len(values))
    return np.asarray((values - values.min()) / np.ptp(values))
