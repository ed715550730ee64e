"""How fast plans are found, and by which search: exhaustive, Optuna's GP, NSGA-II, random.

    python benchmarks/cooptimize.py time [CACHE]        # the whole search, 24 and 48 GPUs
    python benchmarks/cooptimize.py samplers [CACHE]    # on a space small enough to enumerate
    python benchmarks/cooptimize.py skeleton [CACHE]    # exhaustive search against every plan

Seconds are CPU seconds of this process and its workers, and wall seconds beside them.
"""

from __future__ import annotations

import dataclasses
import os
import resource
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import simcluster
from simcluster.planner.cooptimize.fleets import Family, Fleet
from simcluster.planner.cooptimize.front import hypervolume
from simcluster.planner.cooptimize.judge import Plan
from simcluster.planner.cooptimize.run import cooptimize, prepared
from simcluster.planner.cooptimize.search import Space, exhaustive, objective_values, sampled
from simcluster.units import FloatArray

SCENARIO = Path(__file__).parents[1] / "scenarios" / "boute.toml"
PRICES = {  # USD per hour: the catalogue's lowest of any tier
    "H100": 2.69,
    "RTX PRO 6000": 1.84,
    "RTX 5090": 0.89,
    "RTX 4090": 0.59,
    "A100-80GB SXM": 1.39,
    "L40S": 0.79,
}
LEVELS, FRACTIONS = 4, 10
SEEDS = range(3)


def cpu_s() -> float:
    """CPU seconds so far, of this process and of workers that have ended."""
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usage)


def stock(gpus: list[str]) -> dict[str, Any]:
    """Eight of each type, as overrides of the scenario."""
    machines = [{"gpu": gpu, "nodes": 1, "price_per_gpu_hour": PRICES[gpu]} for gpu in gpus]
    changes: dict[str, Any] = {f"cluster.{k}": v for k, v in machines[0].items()}
    return {**changes, "extra_cluster": machines[1:]}


def whole_search() -> None:
    """Time the command on three and six GPU types, nothing kept from before."""
    from joblib.externals.loky import get_reusable_executor

    for gpus in (["H100", "RTX PRO 6000", "RTX 5090"], list(PRICES)):
        scenario = simcluster.load(SCENARIO, {**stock(gpus), "strategy": _any_strategy()})
        with tempfile.TemporaryDirectory() as cache:
            cpu, wall = cpu_s(), time.perf_counter()
            outcome = cooptimize(scenario, cache=Path(cache), jobs=2, baselines=False)
            get_reusable_executor().shutdown(wait=True)  # so that its CPU time is counted
            cpu, wall = cpu_s() - cpu, time.perf_counter() - wall
        print(
            f"{len(gpus)} GPU types, {8 * len(gpus)} GPUs: {cpu:.1f} CPU s, {wall:.1f} s; database "
            f"{outcome.database_s:.1f} s, search {outcome.search_s:.1f} s "
            f"({outcome.found.num_evaluations:,} plans), simulations {outcome.finalists_s:.1f} s; "
            f"difference {', '.join(f'{100 * c.difference:+.1f} %' for c in outcome.finalists)}",
            flush=True,
        )


def _any_strategy() -> list[dict[str, Any]]:
    return [{"name": "any", "kind": "nodg", "tp_size": 8}]


def small_space(cache: Path) -> Space:
    """Three kinds of fleets of each model at four capacities, and eleven load fractions."""
    changes = {"cooptimize.quality_at_least": 0.86, "cooptimize.budget_per_hour": 40.0}
    whole = Space.of(prepared(simcluster.load(SCENARIO, changes), cache=cache))

    def trimmed(families: list[Family]) -> list[Family]:
        alone = [f for f in families if len(f.units) == 1]
        best: dict[str, Family] = {}
        database = whole.judge.database
        for family in alone:  # the kind of most requests per GPU of each type
            unit = family.units[0]
            rival = best.get(unit.gpu)
            rate = database[unit].capacity_rps / unit.num_gpus
            if (
                rival is None
                or rate > database[rival.units[0]].capacity_rps / rival.units[0].num_gpus
            ):
                best[unit.gpu] = family
        chosen = list(best.values())[:3]
        step = len(chosen[0].by_level) // LEVELS
        return [Family(f.units, f.by_level[step - 1 :: step]) for f in chosen]

    return dataclasses.replace(whole, families=tuple(trimmed(f) for f in whole.families))


def every_plan(space: Space) -> list[Plan]:
    """Judge the whole space one by one."""
    plans = []
    weak, strong = ([f for family in fs for f in family.by_level if f] for fs in space.families)
    for part in range(FRACTIONS + 1):
        for one in weak:
            for other in strong:
                share = part / FRACTIONS
                plans.append(space.judge.look_up((share, 1 - share), (one, other)))
    return plans


def feasible(space: Space, plans: list[Plan]) -> FloatArray:
    """Return the objectives of each plan; inf where it breaks a limit."""
    rows = [
        objective_values(p, space.judge.table.objectives)
        if max(space.judge.violations(p)) <= 1e-9
        else [np.inf] * 3
        for p in plans
    ]
    return np.array(rows)


def samplers(cache: Path) -> None:
    """Compare searches by hypervolume against the number of plans judged."""
    space = small_space(cache)
    started = time.process_time()
    values = feasible(space, every_plan(space))
    each = (time.process_time() - started) / len(values)
    inside = values[np.isfinite(values).all(axis=1)]
    low, high = inside.min(axis=0), inside.max(axis=0)

    def volume(rows: FloatArray) -> float:
        rows = rows[np.isfinite(rows).all(axis=1)]
        return hypervolume((rows - low) / (high - low), [1.1] * 3) if len(rows) else 0.0

    whole, num = volume(values), len(values)
    budget = round(0.05 * num)
    print(f"{num} plans, {1e6 * each:.0f} us each by the database; 5 % are {budget}")
    curves: dict[str, list[FloatArray]] = {}
    seconds: dict[str, float] = {}
    for sampler, most in (("random", 8 * budget), ("nsga2", 2 * budget), ("gp", budget)):
        runs = []
        started = time.process_time()
        for seed in SEEDS:
            found = sampled(space, sampler, most, seed=seed)
            rows = feasible(space, found.history)
            steps = sorted({*range(10, most + 1, 10), most, budget})
            runs.append(np.array([[n, volume(rows[:n]) / whole] for n in steps]))
            print(f"  {sampler}, seed {seed}: {runs[-1][-1, 1]:.3f} at {most}", flush=True)
        curves[sampler] = runs
        seconds[sampler] = (time.process_time() - started) / (len(SEEDS) * most)
    for sampler, runs in curves.items():
        at = [float(np.interp(budget, run[:, 0], run[:, 1])) for run in runs]
        each_seed = ", ".join(f"{100 * v:.1f}" for v in at)
        print(
            f"{sampler}: {100 * np.mean(at):.1f} % of exhaustive hypervolume at {budget} "
            f"evaluations ({each_seed}); {seconds[sampler]:.3f} CPU s an evaluation"
        )
    for evaluations in (40, budget):
        reached = float(
            np.mean([np.interp(evaluations, run[:, 0], run[:, 1]) for run in curves["gp"]])
        )
        for other in ("random", "nsga2"):
            mean = np.mean([run[:, 1] for run in curves[other]], axis=0)
            enough = np.flatnonzero(mean >= reached)
            count = curves[other][0][enough[0], 0] if len(enough) else np.inf
            print(
                f"{100 * reached:.1f} %: gp {evaluations} evaluations, {other} {count:.0f} "
                f"({count / evaluations:.1f} x)"
            )
    print(f"({os.cpu_count()} cores)")


def skeleton(cache: Path) -> None:
    """Compare the pruned search with every number of every kind of unit on two GPU types."""
    machines = [{"gpu": "RTX 5090", "nodes": 1, "price_per_gpu_hour": PRICES["RTX 5090"]}]
    changes = {
        "cluster.nodes": 1,
        "extra_cluster": machines,
        "cooptimize.quality_at_least": 0.86,
        "cooptimize.fractions": 40,
        "strategy": _any_strategy(),
    }
    judge = prepared(simcluster.load(SCENARIO, changes), cache=cache)
    space = Space.of(judge)

    def every_fleet(model: str) -> list[Fleet]:
        options = [
            [
                (),
                *(
                    ((unit, n),)
                    for unit in judge.database
                    if (unit.model, unit.gpu) == (model, gpu)
                    for n in range(1, 8 // unit.num_gpus + 1)
                ),
            ]
            for gpu in judge.stock.gpus
        ]
        return [judge.stock.fleet(judge.database, sum(parts, ())) for parts in product(*options)]

    def of(space: Space) -> tuple[int, FloatArray]:
        found = exhaustive(space)
        return found.num_evaluations, feasible(space, found.front)

    everything = Everything(judge, space.families, tuple(map(every_fleet, judge.table.models)))
    num, full = of(everything)
    low, high = full.min(axis=0), full.max(axis=0)
    whole = hypervolume((full - low) / (high - low), [1.1] * 3)
    for steps in (40, 20, 10, 6, 4):
        table = dataclasses.replace(judge.table, fractions=steps)
        coarse = dataclasses.replace(space, judge=dataclasses.replace(judge, table=table))
        started = time.process_time()
        count, front = of(coarse)
        seconds = time.process_time() - started
        volume = hypervolume((front - low) / (high - low), [1.1] * 3)
        print(
            f"{steps} steps of the fraction: {count} of {num} plans ({100 * count / num:.1f} %), "
            f"{100 * volume / whole:.2f} % of the hypervolume, {seconds:.2f} CPU s"
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Everything(Space):
    """A space of given fleets."""

    all_fleets: tuple[list[Fleet], ...] = ()

    def fleets(self, model: int) -> list[Fleet]:
        """Return every fleet of a model."""
        return [fleet for fleet in self.all_fleets[model] if fleet.parts]


if __name__ == "__main__":
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp())
    {
        "time": whole_search,
        "samplers": lambda: samplers(folder),
        "skeleton": lambda: skeleton(folder),
    }[sys.argv[1]]()
