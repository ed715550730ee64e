"""The offline stage: latencies of each kind of replica by load, simulated once and recorded."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

from simcluster.config import ClusterConfig
from simcluster.errors import ConfigError
from simcluster.frames.metrics import in_window
from simcluster.frames.schema import Columns
from simcluster.runs.cell import Cell, digest_of, made_by, scope_of
from simcluster.runs.executor import Labelled, Runner
from simcluster.runs.recorded import Label
from simcluster.runs.simulate import run, workload_of
from simcluster.scenario.cooptimize_table import CooptimizeTable, Kind
from simcluster.scenario.scenario import Scenario
from simcluster.strategies import FuDG, NoDG, PaDG
from simcluster.strategies.base import dry_run
from simcluster.strategies.nodg import SCHEDULER_OF
from simcluster.studies.cooptimize.targets import (
    counted_of,
    counted_of_run,
    log_odds,
    shares_within,
)
from simcluster.units import FloatArray

METRICS: Final = ("e2el_s", "ttft_s", "tpot_s")

_EDGES: Final = np.concatenate([np.linspace(0, 0.9, 46), np.linspace(0.9, 1, 41)[1:]])
MASSES: Final[FloatArray] = np.diff(_EDGES)
"""Shares of the requests that each stored quantile stands for; finer in the tail."""
_LEVELS: Final = (_EDGES[1:] + _EDGES[:-1]) / 2

_MANY: Final = 4
"""Units of the larger of the two simulated groups."""
_FEWEST, _MOST = 1500, 3000
"""Requests of a simulation of the database below saturation, at least and at most."""
_NEAR_SATURATION: Final = 0.95
"""From this load on a backlog grows for as long as requests arrive."""
_OVERLOAD: Final = 1.0
"""Load from which the targets are missed by all requests in the long run."""
_SATURATING: Final = 800
"""Requests that arrive at once to measure the throughput of a group, at least."""
_BATCHES: Final = 3
"""Of the largest batches of the group, so many requests at least arrive at once."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The smallest deployment of a model on one GPU type by one strategy."""

    model: str
    gpu: str
    """Which."""
    kind: Kind
    """Strategy, a `settings.Kind`."""
    tp_size: int
    pp_size: int
    """Of each of its instances."""

    @property
    def num_instances(self) -> int:
        """Instances: a ring of PaDG has two, FuDG one to prefill and one to decode."""
        return 2 if self.kind in ("padg", "fudg") else 1

    @property
    def num_gpus(self) -> int:
        """GPUs of all its instances."""
        return self.num_instances * self.tp_size * self.pp_size

    def __str__(self) -> str:
        depth = f" x PP{self.pp_size}" if self.pp_size > 1 else ""
        return f"{self.kind} TP{self.tp_size}{depth}"

    def serving(self, count: int, name: str) -> NoDG | PaDG | FuDG:
        """Return the strategy of `count` such units together."""
        common: dict[str, Any] = {"name": name, "tp_size": self.tp_size, "pp_size": self.pp_size}
        if self.kind == "padg":
            return PaDG(**common, instances=2 * count)
        if self.kind == "fudg":
            return FuDG(**common, prefill_instances=count, decode_instances=count)
        return NoDG(**common, instances=count, scheduler=SCHEDULER_OF[self.kind])


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """What the database knows of a unit."""

    unit: Unit
    """Of which."""
    capacity_rps: float
    """Requests/s that a saturated unit finishes, in a group of many."""
    counts: tuple[int, ...]
    """Units of the simulated groups: one, and some."""
    quantiles: Mapping[str, FloatArray]
    """For each of `METRICS` the latencies (s), shape ``(groups, loads, len(MASSES))``."""
    shares: FloatArray | None = None
    """Share of the requests within each counted target of ``[slo]``, shape ``(groups,
    share_loads, targets)``; None where it has none."""

    def latencies(self, metric: str, load: float, count: int, loads: Sequence[float]) -> FloatArray:
        """Return the quantiles (s) of a latency in a group of `count` units at a load.

        Interpolated between the simulated loads and in the inverse number of units (sharing
        requests evens out the load of each, as in a queue with many servers), on the logarithm of
        the latency; below the first load as at it. Beyond the last load: infinite.
        """
        stored = np.log(np.maximum(self.quantiles[metric], 1e-9))
        grid = np.asarray(loads)
        if load > grid[-1]:
            return np.full(stored.shape[-1], np.inf)
        at = float(np.clip(load, grid[0], grid[-1]))
        right = max(1, int(np.searchsorted(grid, at)))
        part = (at - grid[right - 1]) / (grid[right] - grid[right - 1])
        values = (1 - part) * stored[:, right - 1] + part * stored[:, right]
        if len(self.counts) == 1:
            return np.asarray(np.exp(values[0]))
        part = self._many(count)
        return np.asarray(np.exp((1 - part) * values[0] + part * values[1]))

    def within(self, load: float, count: int, loads: Sequence[float]) -> FloatArray:
        """Return the share within each target in a group of `count` units at a load.

        Interpolated in log odds as `latencies` are; 0 from the saturated load on, as in a run
        without end.
        """
        assert self.shares is not None, "looked up with targets alone"
        grid = np.array([*share_loads(loads), _OVERLOAD])
        if load >= grid[-1]:
            return np.zeros(self.shares.shape[-1])
        overload = np.zeros((len(self.counts), 1, self.shares.shape[-1]))
        stored = log_odds(np.concatenate([self.shares, overload], axis=1))
        at = float(np.clip(load, grid[0], grid[-1]))
        right = max(1, int(np.searchsorted(grid, at)))
        part = (at - grid[right - 1]) / (grid[right] - grid[right - 1])
        odds = (1 - part) * stored[:, right - 1] + part * stored[:, right]
        if len(self.counts) > 1:
            odds = (1 - self._many(count)) * odds[:1] + self._many(count) * odds[1:]
        return np.asarray(1 / (1 + np.exp(-odds[0])))

    def _many(self, count: int) -> float:
        """Return how far a group of `count` units lies from the smaller stored group, 0 to 1."""
        one, many = (1 / c for c in self.counts)
        return float(np.clip((one - 1 / count) / (one - many), 0, 1))


def share_loads(loads: Sequence[float]) -> tuple[float, ...]:
    """Return the loads of the database at which the shares within the targets are simulated."""
    return (*(load for load in loads if load < _NEAR_SATURATION), _NEAR_SATURATION)


Database = Mapping[Unit, Entry]


def candidates(scenario: Scenario, table: CooptimizeTable) -> list[Unit]:
    """Return the units that fit: memory holds the model, the stock holds the GPUs of a unit.

    Tensor-parallel groups stay inside a node.

    Raises
    ------
    ConfigError
        If a model fits on no GPU type; says how much memory is missing where least is.
    """
    found: list[Unit] = []
    for model in table.models:
        refused: list[ConfigError] = []
        before = len(found)
        for cluster in scenario.environment.clusters:
            for kind in kinds_of(scenario, table):
                for tp_size in table.tp_sizes:
                    for pp_size in table.pp_sizes:
                        unit = Unit(model, cluster.gpu.name, kind, tp_size, pp_size)
                        try:
                            group = _group(scenario, unit, 1)
                            dry_run(group.environment, group.strategies[0])
                            found.append(unit)
                        except ConfigError as error:
                            refused.append(error)
        if len(found) == before:
            raise _no_unit(model, refused)
    return found


def _no_unit(model: str, refused: Sequence[ConfigError]) -> ConfigError:
    """Return why nothing serves a model: memory, or what else was refused most often."""
    short = [error for error in refused if error.missing_bytes is not None]
    if short:
        closest = min(short, key=lambda error: error.missing_bytes or math.inf)
        return ConfigError(
            "cooptimize.models",
            model,
            f"fits on no GPU type of the stock; closest: {closest.rule}",
            "Add GPUs with more memory, or allow larger tp_sizes or pp_sizes.",
        )
    # The same cause is told of every degree; of several the most frequent one.
    ((key, rule, remedy), _), *_ = Counter((e.key, e.rule, e.remedy) for e in refused).most_common()
    return ConfigError(
        "cooptimize.models",
        model,
        f"cannot be served by any unit: {key.removeprefix('strategy.')}: {rule}",
        remedy,
    )


def kinds_of(scenario: Scenario, table: CooptimizeTable) -> tuple[Kind, ...]:
    """Return the strategies of pools to try; by default NoDG as the engine schedules."""
    if table.strategies is not None:
        return table.strategies
    own = scenario.environment.engine.scheduler
    for kind, scheduler in SCHEDULER_OF.items():
        if scheduler == own:
            return (cast(Kind, kind),)
    rule = f"is missing, and the engine's scheduler {own!r} is that of none"
    raise ConfigError("cooptimize.strategies", None, rule, 'Name them, such as ["chunked"].')


def _group(scenario: Scenario, unit: Unit, count: int) -> Scenario:
    """Return `scenario` with nothing but a group of units."""
    return dataclasses.replace(
        scenario,
        environment=scenario.environment.part(unit.model, unit.gpu),
        strategies=(unit.serving(count, str(unit)),),
        quality=None,
        document={},
    )


def most_units(cluster: ClusterConfig, unit: Unit) -> int:
    """Return how many units the stock of a GPU type holds."""
    per_instance = unit.tp_size * unit.pp_size
    if per_instance <= cluster.gpus_per_node:
        instances = cluster.num_nodes * (cluster.gpus_per_node // per_instance)
    else:
        instances = cluster.num_gpus // per_instance
    return instances // unit.num_instances


def build_database(
    scenario: Scenario,
    table: CooptimizeTable,
    units: Sequence[Unit],
    runner: Runner,
    progress: Callable[[int, int], None] | None = None,
) -> dict[Unit, Entry]:
    """Simulate every unit at every load, or take what an earlier call has recorded.

    Parameters
    ----------
    scenario : Scenario
        Machines, engine, workload, targets.
    table : CooptimizeTable
        Its loads.
    units : sequence of Unit
        What to simulate.
    runner : Runner
        Does it.
    progress : callable, optional
        Called with the number of finished units and of all.
    """
    # Small units serve most requests and take longest.
    calls = [(scenario, table, unit) for unit in sorted(units, key=lambda unit: unit.num_gpus)]
    store = None if runner.recorded is None else Labelled(runner.recorded, _label, _entry)
    count = itertools.count(1)

    def done(*_: object) -> None:
        if progress:
            progress(next(count), len(calls))

    found = {entry.unit: entry for entry in runner.each(_simulated, calls, store, done)}
    return {unit: found[unit] for unit in units}


def _label(scenario: Scenario, table: CooptimizeTable, unit: Unit) -> Label:
    """Return what the entry of a unit is, by all that decides it."""
    group, name = _group(scenario, unit, 1), str(unit)
    scope = scope_of(group, name)
    parts = [scope, unit, own_duration_s(scenario), table.loads, table.seeds[0]]
    about = {"strategy": name, "scope": scope}
    return Label(digest_of(parts)[:32], made_by(group, name), about)


def _entry(
    unit: dict[str, Any],
    capacity_rps: float,
    counts: tuple[int, ...],
    quantiles: dict[str, Any],
    shares: Any = None,
) -> Entry:
    """Return an entry from what was recorded of it."""
    by_metric = {m: np.array(q) for m, q in quantiles.items()}
    within = None if shares is None else np.array(shares)
    return Entry(Unit(**unit), capacity_rps, counts, by_metric, within)


def _simulated(scenario: Scenario, table: CooptimizeTable, unit: Unit) -> Entry:
    most = most_units(scenario.environment.part(unit.model, unit.gpu).cluster, unit)
    counts = (1,) if most == 1 else (1, min(_MANY, most))
    seed = table.seeds[0]
    capacity = throughput_rps(scenario, unit, counts[-1], seed) / counts[-1]
    duration_s = own_duration_s(scenario)
    quantiles = {m: np.empty((len(counts), len(table.loads), len(MASSES))) for m in METRICS}
    num_targets = len(counted_of(scenario.environment.slo))
    of_loads = share_loads(table.loads) if num_targets else ()
    shares = np.zeros((len(counts), len(of_loads), num_targets))
    for load in sorted({*table.loads, *of_loads}):
        for group, count in enumerate(counts):
            at = table.loads.index(load) if load in table.loads else None
            if load > _NEAR_SATURATION and group > 0:
                # In overload a group is as its members are: the backlog decides, not chance.
                for metric in METRICS:
                    quantiles[metric][group, at] = quantiles[metric][0, at]
                continue
            rate = load * capacity * count
            # In overload the latency depends on how long it lasts: as long as in the scenario.
            num = round(rate * duration_s)
            if load <= _NEAR_SATURATION:
                num = min(max(num, _FEWEST), _MOST)
            requests = _columns(_group(scenario, unit, count), rate, max(num, 1), seed)["requests"]
            if load in of_loads:
                inside = counted_of_run(requests["arrival_s"])
                own = shares_within(requests, scenario.environment.slo, inside)
                shares[group, of_loads.index(load)] = own
            if at is None:
                continue
            values = _latencies(requests, scenario)
            for metric in METRICS:
                quantiles[metric][group, at] = np.quantile(values[metric], _LEVELS)
    return Entry(unit, capacity, counts, quantiles, shares if num_targets else None)


def _columns(
    group: Scenario, rate_rps: float, num_requests: int, seed: int
) -> Mapping[str, Columns]:
    """Return the frames of a run of a group of units."""
    (strategy,) = group.strategies
    workload = workload_of(group, Cell(strategy.name, rate_rps, seed, num_requests))
    return run(group.environment, strategy, workload, seed=seed).columns


def _latencies(requests: Columns, scenario: Scenario) -> dict[str, FloatArray]:
    """Return the latencies (s) of a simulation by metric, over finished requests."""
    measured = dataclasses.replace(scenario.run, cooldown_s=0.0)
    columns = in_window(requests, measured)
    finished = np.asarray(columns["status"]) == "finished"
    values = {}
    for metric in METRICS:
        of_metric = np.asarray(columns[metric], dtype=np.float64)[finished]
        of_metric = of_metric[~np.isnan(of_metric)]
        values[metric] = of_metric if len(of_metric) else np.array([np.inf])
    return values


def throughput_rps(scenario: Scenario, unit: Unit, count: int, seed: int) -> float:
    """Requests per second that a saturated group finishes: of a crowd, the middle three fifths.

    A crowd that decodes all at once would end at once: it is several times the largest batch.
    """
    group, num, needed = _group(scenario, unit, count), 0, _SATURATING * count
    while num < needed:
        num = needed
        columns = _columns(group, 1e5, num, seed)
        batch = int(np.max(columns["spans"]["num_decodes"], initial=0))
        needed = _BATCHES * batch * len(columns["instances"]["instance"])
    requests = columns["requests"]
    ends = np.sort(requests["last_token_s"][np.asarray(requests["status"]) == "finished"])
    return finished_per_s(ends)


def finished_per_s(ends: FloatArray) -> float:
    """Return the rate at which requests end, from the times at which they did, in order.

    Between the first and the last end of the middle three fifths; requests of equal lengths end
    together, and all of an instant count or none. Of a single instant: since time 0.
    """
    first, last = ends[int(0.2 * len(ends))], ends[int(0.8 * len(ends))]
    if first == last:
        return float(len(ends) / last)
    num = np.searchsorted(ends, last, side="right") - np.searchsorted(ends, first, side="right")
    return float(num / (last - first))


def own_duration_s(scenario: Scenario) -> float:
    """How long requests arrive in the scenario (s)."""
    workload, rate = scenario.workload, scenario.default_rate_rps
    if workload.duration_s is not None:
        return workload.duration_s
    num = workload.num_requests or 2000
    return num / rate if rate else 120.0


def default_cache() -> Path:
    """Folder of kept simulations: ``simcluster`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "simcluster"
