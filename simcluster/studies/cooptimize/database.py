"""The offline stage: latencies of each kind of replica by load, simulated once and kept on disk."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from simcluster.config import ClusterConfig, Environment, RunConfig
from simcluster.errors import ConfigError
from simcluster.frames.metrics import in_window
from simcluster.runs.executor import with_registered
from simcluster.runs.recorded import digest_of, program, without_prices
from simcluster.runs.simulate import run
from simcluster.scenario.cooptimize_table import CooptimizeTable, Kind
from simcluster.scenario.scenario import Scenario
from simcluster.strategies import FuDG, NoDG, PaDG
from simcluster.strategies.base import dry_run
from simcluster.strategies.nodg import SCHEDULER_OF
from simcluster.units import FloatArray
from simcluster.workload import WorkloadSettings, build

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
_SATURATING: Final = 800
"""Requests that arrive at once to measure the throughput of a group."""


@dataclass(frozen=True, slots=True)
class Unit:
    """The smallest deployment of a model on one GPU type by one strategy.

    Attributes
    ----------
    model, gpu : str
        Which.
    kind : str
        Strategy, a `settings.Kind`.
    tp_size, pp_size : int
        Of each of its instances.
    """

    model: str
    gpu: str
    kind: Kind
    tp_size: int
    pp_size: int

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
    """What the database knows of a unit.

    Attributes
    ----------
    unit : Unit
        Of which.
    capacity_rps : float
        Requests/s that a saturated unit finishes, in a group of many.
    counts : tuple of int
        Units of the simulated groups: one, and some.
    quantiles : dict of str to ndarray
        For each of `METRICS` the latencies (s), shape ``(groups, loads, len(MASSES))``.
    """

    unit: Unit
    capacity_rps: float
    counts: tuple[int, ...]
    quantiles: Mapping[str, FloatArray]

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
        one, many = (1 / c for c in self.counts)
        part = float(np.clip((one - 1 / count) / (one - many), 0, 1))
        return np.asarray(np.exp((1 - part) * values[0] + part * values[1]))


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
            for kind in table.strategies:
                for tp_size in table.tp_sizes:
                    for pp_size in table.pp_sizes:
                        unit = Unit(model, cluster.gpu.name, kind, tp_size, pp_size)
                        try:
                            _placed(scenario.environment, unit, 1)
                            found.append(unit)
                        except ConfigError as error:
                            refused.append(error)
        if len(found) == before:
            closest = min(refused, key=lambda e: e.missing_bytes or math.inf)
            raise ConfigError(
                "cooptimize.models",
                model,
                f"fits on no GPU type of the stock; closest: {closest.rule}",
                "Add GPUs with more memory, or allow larger tp_sizes or pp_sizes.",
            )
    return found


def _placed(environment: Environment, unit: Unit, count: int) -> None:
    """Place units on idle machines, so that what does not fit is refused."""
    part = environment.part(unit.model, unit.gpu)
    dry_run(part, unit.serving(count, str(unit)))


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
    *,
    cache: Path | None,
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[Unit, Entry]:
    """Simulate every unit at every load, or take what an earlier call has kept.

    Parameters
    ----------
    scenario : Scenario
        Machines, engine, workload, targets.
    table : CooptimizeTable
        Its loads.
    units : sequence of Unit
        What to simulate.
    cache : Path or None
        Folder of kept entries, each named by a digest of all that decides it and written as soon
        as it is there; None keeps nothing.
    jobs : int, optional
        Processes; default: one per core.
    progress : callable, optional
        Called with the number of finished units and of all.
    """
    import joblib

    found: dict[Unit, Entry] = {}
    left = []
    for unit in units:
        entry = None if cache is None else _read(_file(cache, scenario, table, unit), unit)
        if entry is None:
            left.append(unit)
        else:
            found[unit] = entry
    # Small units serve most requests and take longest.
    left.sort(key=lambda unit: unit.num_gpus)
    measured = with_registered(_measured)
    calls = (joblib.delayed(measured)(scenario, table, unit, cache) for unit in left)
    parallel = joblib.Parallel(n_jobs=jobs or -1, return_as="generator_unordered")
    outcomes = (
        parallel(calls)
        if len(left) > 1 and jobs != 1
        else (_measured(scenario, table, unit, cache) for unit in left)
    )
    for entry in outcomes:
        found[entry.unit] = entry
        if progress:
            progress(len(found), len(units))
    return {unit: found[unit] for unit in units}


def _measured(scenario: Scenario, table: CooptimizeTable, unit: Unit, cache: Path | None) -> Entry:
    entry = _simulated(scenario, table, unit)
    if cache is not None:
        _write(_file(cache, scenario, table, unit), entry)
    return entry


def _simulated(scenario: Scenario, table: CooptimizeTable, unit: Unit) -> Entry:
    environment = scenario.environment.part(unit.model, unit.gpu)
    most = most_units(environment.cluster, unit)
    counts = (1,) if most == 1 else (1, min(_MANY, most))
    seed = table.seeds[0]
    capacity = throughput_rps(environment, scenario.workload, unit, counts[-1], seed) / counts[-1]
    duration_s = own_duration_s(scenario)
    quantiles = {m: np.empty((len(counts), len(table.loads), len(MASSES))) for m in METRICS}
    for at, load in enumerate(table.loads):
        for group, count in enumerate(counts):
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
            strategy = unit.serving(count, "unit")
            values = latencies_of(environment, scenario, strategy, max(num, 1), rate, seed)
            for metric in METRICS:
                quantiles[metric][group, at] = np.quantile(values[metric], _LEVELS)
    return Entry(unit, capacity, counts, quantiles)


def latencies_of(
    environment: Environment,
    scenario: Scenario,
    strategy: Any,
    num_requests: int,
    rate_rps: float,
    seed: int,
) -> dict[str, FloatArray]:
    """Simulate one strategy and return its latencies (s) by metric, over finished requests."""
    result = run(
        environment,
        strategy,
        _requests(scenario.workload, num_requests, rate_rps, environment, seed),
        seed=seed,
    )
    columns = in_window(result.columns["requests"], _window(scenario.run))
    finished = np.asarray(columns["status"]) == "finished"
    values = {}
    for metric in METRICS:
        of_metric = np.asarray(columns[metric], dtype=np.float64)[finished]
        of_metric = of_metric[~np.isnan(of_metric)]
        values[metric] = of_metric if len(of_metric) else np.array([np.inf])
    return values


def _window(config: RunConfig) -> RunConfig:
    return dataclasses.replace(config, cooldown_s=0.0)


def throughput_rps(
    environment: Environment, workload: WorkloadSettings, unit: Unit, count: int, seed: int
) -> float:
    """Requests per second that a saturated group finishes: of a crowd, the middle three fifths.

    Parameters
    ----------
    environment : Environment
        Of the unit's model and GPU type (`Environment.part`).
    workload : WorkloadSettings
        Whose lengths.
    unit : Unit
        Of what the group consists.
    count : int
        Units of the group.
    seed : int
        Of the lengths.
    """
    num = _SATURATING * count
    crowd = _requests(workload, num, 1e5, environment, seed)
    columns = run(environment, unit.serving(count, "unit"), crowd, seed=seed).columns["requests"]
    ends = np.sort(columns["last_token_s"][np.asarray(columns["status"]) == "finished"])
    low, high = int(0.2 * len(ends)), int(0.8 * len(ends))
    return float((high - low) / (ends[high] - ends[low]))


def _requests(
    workload: WorkloadSettings, num: int, rate_rps: float, environment: Environment, seed: int
) -> Any:
    settings = dataclasses.replace(workload, num_requests=num, duration_s=None)
    length = environment.model.max_model_len
    return build(settings, seed=seed, rate_rps=rate_rps, max_model_len=length)


def own_duration_s(scenario: Scenario) -> float:
    """How long requests arrive in the scenario (s)."""
    workload, rate = scenario.workload, scenario.default_rate_rps
    if workload.duration_s is not None:
        return workload.duration_s
    num = workload.num_requests or 2000
    return num / rate if rate else 120.0


# On disk ----------------------------------------------------------------------------------------


def default_cache() -> Path:
    """Folder of kept entries: ``simcluster`` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "simcluster"


def _file(cache: Path, scenario: Scenario, table: CooptimizeTable, unit: Unit) -> Path:
    parts = [
        program(),
        without_prices(scenario.environment.part(unit.model, unit.gpu)),
        unit,
        scenario.workload,
        scenario.run.warmup_s,
        own_duration_s(scenario),
        table.loads,
        table.seeds[0],
    ]
    return cache / "units" / f"{digest_of(parts)[:32]}.json"


def write_json(path: Path, value: Any) -> None:
    """Write `value` whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        json.dump(value, file)
    Path(name).replace(path)


def _write(path: Path, entry: Entry) -> None:
    value = {
        "capacity_rps": entry.capacity_rps,
        "counts": entry.counts,
        "quantiles": {m: q.tolist() for m, q in entry.quantiles.items()},
    }
    write_json(path, value)


def _read(path: Path, unit: Unit) -> Entry | None:
    """Return a kept entry; None if there is none or it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        return Entry(
            unit,
            float(value["capacity_rps"]),
            tuple(value["counts"]),
            {m: np.array(value["quantiles"][m]) for m in METRICS},
        )
    except (OSError, ValueError, KeyError):
        return None
