"""Fleets: how many units of what serve one model; the few worth looking at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Final

import numpy as np

from simcluster.config import ClusterConfig
from simcluster.errors import ConfigError
from simcluster.studies.cooptimize.database import MASSES, Database, Entry, Unit, most_units
from simcluster.units import FloatArray, IntArray

CAPACITY_LEVELS: Final = 24
"""Steps of a fleet's capacity, from a twentieth of the offered rate to three times it."""
_MOST_TYPES: Final = 3
"""GPU types in one fleet, at most."""
_TYPES_OF_MANY: Final = 2
"""The same where there are more than four GPU types."""

LATENCY_GRID: Final[FloatArray] = np.geomspace(1e-4, 1e5, 1024)
"""Latencies (s) at which distributions are added up."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """Units that serve one model together, each GPU type with one kind of unit."""

    parts: tuple[tuple[Unit, int], ...]
    """Kinds of units and how many of each; empty for no fleet."""
    capacity_rps: float
    """Requests/s that it finishes when saturated."""
    cost_per_hour: float
    """Price of its GPUs."""

    def num_gpus(self, gpu: str) -> int:
        """GPUs of one type."""
        return sum(unit.num_gpus * count for unit, count in self.parts if unit.gpu == gpu)

    def __str__(self) -> str:
        return " + ".join(
            f"{unit.num_gpus * count} {unit.gpu} ({count} x {unit})" for unit, count in self.parts
        )


NO_FLEET: Final = Fleet((), 0.0, 0.0)


@dataclass(frozen=True, slots=True)
class Stock:
    """GPU types with their numbers and prices."""

    clusters: tuple[ClusterConfig, ...]
    """One for each GPU type."""

    def __post_init__(self) -> None:
        for cluster in self.clusters:
            if cluster.price_per_gpu_hour is None:
                raise ConfigError(
                    "cluster.price_per_gpu_hour",
                    None,
                    f"{cluster.gpu.name} has no price, and a plan's cost is wanted",
                    f"Set it for {cluster.gpu.name}; `simcluster catalog --kind price "
                    f"{cluster.gpu.name}` lists prices.",
                )

    @property
    def gpus(self) -> tuple[str, ...]:
        """Names of the types."""
        return tuple(cluster.gpu.name for cluster in self.clusters)

    def cluster(self, gpu: str) -> ClusterConfig:
        """Return the machines of a type."""
        return next(c for c in self.clusters if c.gpu.name == gpu)

    def price(self, gpu: str) -> float:
        """Return the price of a GPU for an hour."""
        price = self.cluster(gpu).price_per_gpu_hour
        assert price is not None, "checked above"
        return price

    def fleet(self, database: Database, parts: Sequence[tuple[Unit, int]]) -> Fleet:
        """Return the fleet of these units."""
        return Fleet(
            tuple(parts),
            sum(database[unit].capacity_rps * count for unit, count in parts),
            sum(self.price(unit.gpu) * unit.num_gpus * count for unit, count in parts),
        )


@dataclass(frozen=True, slots=True)
class Family:
    """Fleets of the same kinds of units, by capacity."""

    units: tuple[Unit, ...]
    """One for each GPU type of it."""
    by_level: tuple[Fleet | None, ...]
    """The cheapest of a capacity of at least each level; None where the stock is too small."""

    def __str__(self) -> str:
        return " + ".join(f"{unit.gpu} {unit}" for unit in self.units)


def skeleton(entries: Sequence[Entry], stock: Stock, metric: str) -> list[Unit]:
    """Return the units that no other of the same model and GPU type beats in every respect.

    In respect of requests per second and GPU, of the latency's 95th percentile at each load, and
    of the share within each target of ``[slo]`` at each load: a Pareto skeleton in cost and latency
    (BOute, section 3.2).
    """
    kept = []
    for entry in entries:
        rivals = [e for e in entries if e is not entry and e.unit.gpu == entry.unit.gpu]
        if not any(_beats(rival, entry, metric) for rival in rivals):
            kept.append(entry.unit)
    return kept


def _beats(one: Entry, other: Entry, metric: str) -> bool:
    by_cost = one.capacity_rps / one.unit.num_gpus, other.capacity_rps / other.unit.num_gpus
    tail = int(np.searchsorted(np.cumsum(MASSES), 0.95))
    slow = one.quantiles[metric][-1, :, tail], other.quantiles[metric][-1, :, tail]
    # A larger unit comes in coarser steps: it must not displace a smaller one.
    return bool(
        by_cost[0] >= by_cost[1]
        and (slow[0] <= slow[1]).all()
        and one.unit.num_gpus <= other.unit.num_gpus
        and (one.shares is None or other.shares is None or _shares_beat(one.shares, other.shares))
    )


def _shares_beat(one: FloatArray, other: FloatArray) -> bool:
    return bool((one[-1] >= other[-1]).all())


def families(
    database: Database, model: str, stock: Stock, rate_rps: float, metric: str
) -> list[Family]:
    """Return the fleets of a model worth looking at.

    Every kind of unit of the Pareto skeleton alone; and mixed over GPU types the one of most
    requests per GPU and the one of least latency. How many of each is a multiple-choice knapsack:
    of each GPU type one item (a number of units) is taken, for a capacity of at least a level at
    the least cost. It is solved exactly by keeping the Pareto set of (cost, capacity) type by type.
    """
    entries = [entry for unit, entry in database.items() if unit.model == model]
    by_gpu: dict[str, list[Unit]] = {}
    for unit in skeleton(entries, stock, metric):
        by_gpu.setdefault(unit.gpu, []).append(unit)
    chosen: list[tuple[Unit, ...]] = [(unit,) for units in by_gpu.values() for unit in units]
    best = {gpu: _extremes(database, units, metric) for gpu, units in by_gpu.items()}
    most = _TYPES_OF_MANY if len(by_gpu) > 4 else _MOST_TYPES
    for size in range(2, min(most, len(by_gpu)) + 1):
        for gpus in combinations(by_gpu, size):
            chosen += list(product(*(best[gpu] for gpu in gpus)))
    levels = capacity_levels(rate_rps)
    return [Family(units, _by_level(database, stock, units, levels)) for units in chosen]


def capacity_levels(rate_rps: float) -> FloatArray:
    """Return the capacities (requests/s) of the levels of a family."""
    return np.geomspace(0.05, 3.0, CAPACITY_LEVELS) * rate_rps


def _extremes(database: Database, units: Sequence[Unit], metric: str) -> list[Unit]:
    tail = int(np.searchsorted(np.cumsum(MASSES), 0.95))
    efficient = max(units, key=lambda u: database[u].capacity_rps / u.num_gpus)
    quick = min(units, key=lambda u: float(database[u].quantiles[metric][-1, 0, tail]))
    chosen = [efficient, quick]
    surest = [
        (_sureness(database[unit]), unit) for unit in units if database[unit].shares is not None
    ]
    chosen += [max(surest, key=lambda one: one[0])[1]] if surest else []
    return list(dict.fromkeys(chosen))


def _sureness(entry: Entry) -> float:
    """Return how surely a unit keeps the targets: least share of a target, summed over loads."""
    return 0.0 if entry.shares is None else float(entry.shares[-1].min(axis=-1).sum())


def _by_level(
    database: Database, stock: Stock, units: Sequence[Unit], levels: FloatArray
) -> tuple[Fleet | None, ...]:
    states: list[Fleet] = [NO_FLEET]
    for unit in units:
        most = most_units(stock.cluster(unit.gpu), unit)
        grown = [
            stock.fleet(database, [*state.parts, (unit, count)])
            for state in states
            for count in range(1, most + 1)
        ]
        states = _undominated(grown)
    costs = np.array([state.cost_per_hour for state in states])
    capacities = np.array([state.capacity_rps for state in states])
    found: list[Fleet | None] = []
    for level in levels:
        enough = np.flatnonzero(capacities >= level)
        found.append(states[enough[np.argmin(costs[enough])]] if len(enough) else None)
    return tuple(found)


def _undominated(fleets: Sequence[Fleet]) -> list[Fleet]:
    """Return the fleets with more capacity than every one that costs no more."""
    ordered = sorted(fleets, key=lambda f: (f.cost_per_hour, -f.capacity_rps))
    kept, best = [], -math.inf
    for fleet in ordered:
        if fleet.capacity_rps > best:
            kept.append(fleet)
            best = fleet.capacity_rps
    return kept


def tail_shares(
    database: Database, fleet: Fleet, rate_rps: float, metric: str, loads: Sequence[float]
) -> FloatArray:
    """Return the share of requests that take longer than each of `LATENCY_GRID`.

    All parts of the fleet have the same load; each gets requests in proportion to its capacity.

    Returns
    -------
    ndarray of float64
        Shape ``(len(LATENCY_GRID),)``, falling; all 1 where the fleet is overloaded beyond the
        database.
    """
    if rate_rps <= 0:
        return np.zeros(len(LATENCY_GRID))
    load = rate_rps / fleet.capacity_rps if fleet.capacity_rps else math.inf
    if load > loads[-1]:
        return np.ones(len(LATENCY_GRID))
    total = np.zeros(len(LATENCY_GRID))
    below = np.cumsum(MASSES) - MASSES / 2
    for unit, count in fleet.parts:
        entry = database[unit]
        share = entry.capacity_rps * count / fleet.capacity_rps
        values = np.maximum.accumulate(entry.latencies(metric, load, count, loads))
        total += share * (1 - np.interp(np.log(LATENCY_GRID), np.log(values), below, 0.0, 1.0))
    return total


def shares_within(
    database: Database, fleet: Fleet, rate_rps: float, loads: Sequence[float]
) -> FloatArray:
    """Return the share of requests within each target; as `tail_shares`, 0 where overloaded.

    Returns
    -------
    ndarray of float64
        Shape ``(targets,)``.
    """
    load = rate_rps / fleet.capacity_rps
    parts = [
        database[unit].capacity_rps * count * database[unit].within(load, count, loads)
        for unit, count in fleet.parts
    ]
    return np.asarray(np.sum(parts, axis=0) / fleet.capacity_rps)


def usage(fleets: Sequence[Fleet], gpus: Sequence[str]) -> IntArray:
    """Return the GPUs of each type that each fleet uses, shape ``(fleets, types)``."""
    return np.array([[fleet.num_gpus(gpu) for gpu in gpus] for fleet in fleets], dtype=np.int64)


def preferences(
    database: Database, stock: Stock, models: Sequence[str]
) -> Mapping[str, FloatArray]:
    """Return thousands of requests per unit of currency: the model x GPU preference matrix.

    Of the best kind of unit at its saturated throughput; 0 where the model does not fit. A row for
    each model, a column for each type of the stock.
    """
    table = {}
    for model in models:
        row = [
            max(
                (
                    entry.capacity_rps * 3.6 / (unit.num_gpus * stock.price(gpu))
                    for unit, entry in database.items()
                    if (unit.model, unit.gpu) == (model, gpu)
                ),
                default=0.0,
            )
            for gpu in stock.gpus
        ]
        table[model] = np.array(row)
    return table
