"""How fast plans are found, and by which search: exhaustive, Optuna's GP, NSGA-II, random.

    python benchmarks/cooptimize.py time [CACHE]        # the whole search, 24 and 48 GPUs
    python benchmarks/cooptimize.py samplers [CACHE]    # on a space small enough to enumerate
    python benchmarks/cooptimize.py skeleton [CACHE]    # exhaustive search against every plan

Seconds are CPU seconds of this process and its workers, and wall seconds beside them.
"""

from __future__ import annotations

import dataclasses
import math
import resource
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

import simcluster
from simcluster.studies.cooptimize.choices import Choices
from simcluster.studies.cooptimize.database import Unit
from simcluster.studies.cooptimize.fleets import Fleet
from simcluster.studies.cooptimize.front import hypervolume, undominated
from simcluster.studies.cooptimize.judge import TOLERANCE, Judge, Plan
from simcluster.studies.cooptimize.run import cooptimize, prepared
from simcluster.studies.cooptimize.sampling import sampled
from simcluster.studies.cooptimize.search import Space, exhaustive, objective_values
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
        scenario = simcluster.load(SCENARIO, {**stock(gpus), "strategy": None})
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


@dataclasses.dataclass(frozen=True, eq=False)
class Everything(Space):
    """A space of given fleets."""

    all_fleets: tuple[list[Fleet], ...] = ()

    def fleets(self, model: int) -> list[Fleet]:
        """Return every fleet of a model."""
        return [fleet for fleet in self.all_fleets[model] if fleet.parts]


def small_space(cache: Path) -> Space:
    """Up to two H100 and four RTX 5090 for the 8B, three replicas on each of two types for the 70B.

    With 21 load fractions; every number of the units of most requests per GPU, mixed or not.
    """
    changes = {
        "cooptimize.quality_at_least": 0.86,
        "cooptimize.budget_per_hour": 40.0,
        "cooptimize.fractions": 20,
        "workload.duration_s": 40.0,
    }
    judge = prepared(simcluster.load(SCENARIO, changes), cache=cache)
    stocks = (
        (judge.table.models[0], {"H100 SXM": 2, "RTX 5090": 4}),
        (judge.table.models[1], {"H100 SXM": 3, "RTX PRO 6000 Blackwell Server": 3}),
    )
    fleets = []
    for model, most in stocks:
        units = [_best_unit(judge, model, gpu) for gpu in most]
        counts = product(*(range(number + 1) for number in most.values()))
        parts = [[(u, n) for u, n in zip(units, row, strict=True) if n] for row in counts]
        fleets.append([judge.stock.fleet(judge.database, part) for part in parts if part])
    return Everything(judge, ([], []), tuple(fleets))


def _best_unit(judge: Judge, model: str, gpu: str) -> Unit:
    """Return the kind of unit with most requests per GPU."""
    here = [unit for unit in judge.database if (unit.model, unit.gpu) == (model, gpu)]
    return max(here, key=lambda unit: judge.database[unit].capacity_rps / unit.num_gpus)


def objectives(space: Space, plans: list[Plan]) -> FloatArray:
    """Return the objectives of each plan; inf where it breaks a limit."""
    rows = [
        objective_values(p, space.judge.table.objectives)
        if max(space.judge.violations(p)) <= TOLERANCE
        else [np.inf] * 3
        for p in plans
    ]
    return np.array(rows)


def samplers(cache: Path) -> None:
    """Compare searches by the hypervolume they reach after a number of plans judged.

    Once judged by the database, once by simulation; of the latter all are simulated beforehand and
    kept, so that a search is charged for its own time alone.
    """
    space = small_space(cache)
    choices = Choices.of(space)
    numbers = list(range(len(choices.rows)))
    started = time.process_time()
    looked_up = [choices.plan(number) for number in numbers]
    each = (time.process_time() - started) / len(numbers)
    print(f"{len(numbers)} plans within budget, stock, quality and throughput")
    compare(space, looked_up, f"by the database, {1e6 * each:.0f} us of CPU each")
    started = time.perf_counter()
    placed = [plan for plan in looked_up if space.judge.fits(plan)]
    space.judge.simulated(placed, space.judge.table.seeds[:1])
    wall = time.perf_counter() - started
    simulated = [choices.simulated(number) for number in numbers]
    compare(space, simulated, f"by simulation, all in {wall:.0f} s", simulate=True)


def compare(space: Space, plans: list[Plan], title: str, *, simulate: bool = False) -> None:
    """Print what each search reaches by simulations, which are recorded, or by looking plans up."""
    import joblib

    values = objectives(space, plans)
    inside = values[np.isfinite(values).all(axis=1)]
    low, high = inside.min(axis=0), inside.max(axis=0)

    def volume(rows: FloatArray) -> float:
        unit = (rows - low) / (high - low)
        return hypervolume(unit[undominated(unit)], [1.1] * 3)

    whole, num = volume(values), len(plans)
    budget = round(0.05 * num)
    steps = sorted({*np.geomspace(4, num, 50).astype(int).tolist(), budget, budget // 2})
    print(f"\n{title}; 5 % are {budget}; {len(undominated(inside))} on the front", flush=True)
    searches = {
        "gp": ("gp", budget, True),
        "nsga2": ("nsga2", 4 * budget, False),
        "random": ("random", num, False),
    }
    curves: dict[str, FloatArray] = {}
    for name, (sampler, most, seeded) in searches.items():
        runs = joblib.Parallel(n_jobs=2)(
            joblib.delayed(_search)(space, sampler, most, seed, seeded, simulate) for seed in SEEDS
        )
        curves[name] = np.array(
            [[volume(objectives(space, history[:n])) / whole for n in steps if n <= most]
             for history, _ in runs]
        )  # fmt: skip
        at = 100 * curves[name][:, steps.index(budget)]
        print(
            f"{name}: {np.median(at):.1f} % of the hypervolume of all at {budget} evaluations "
            f"(seeds {at.min():.1f} to {at.max():.1f}); "
            f"{np.mean([s for _, s in runs]) / most:.3f} CPU s each",
            flush=True,
        )
    shuffled = np.array(
        [
            [
                volume(values[np.random.default_rng(seed).permutation(num)[:n]]) / whole
                for n in steps
            ]
            for seed in range(20)
        ]
    )
    curves["drawn evenly from all plans"] = shuffled
    for count in (budget // 2, budget):
        reached = curves["gp"][:, steps.index(count)]
        for name in ("random", "drawn evenly from all plans", "nsga2"):
            needed = sorted(
                next((n for n, v in zip(steps, run, strict=False) if v >= level), math.inf)
                for level in reached
                for run in curves[name]
            )
            middle = needed[len(needed) // 2]
            print(
                f"  to what gp has at {count} ({100 * np.median(reached):.1f} %): {name} "
                f"{_number(middle)} evaluations ({_number(needed[0])} to {_number(needed[-1])}), "
                f"{middle / count:.1f} times ({needed[0] / count:.1f} to {needed[-1] / count:.1f})",
                flush=True,
            )


def _number(evaluations: float) -> str:
    """Return a number of evaluations; of a search that stopped before, so."""
    return f"{evaluations:.0f}" if math.isfinite(evaluations) else "more than were tried"


def _search(
    space: Space, sampler: str, most: int, seed: int, seeded: bool, simulate: bool
) -> tuple[list[Plan], float]:
    started = time.process_time()
    found = sampled(space, sampler, most, seed=seed, seeded=seeded, simulate=simulate)
    return found.history, time.process_time() - started


def skeleton(cache: Path) -> None:
    """Compare the pruned search with every number of every kind of unit on two GPU types."""
    machines = [{"gpu": "RTX 5090", "nodes": 1, "price_per_gpu_hour": PRICES["RTX 5090"]}]
    changes = {
        "cluster.nodes": 1,
        "extra_cluster": machines,
        "cooptimize.quality_at_least": 0.86,
        "cooptimize.fractions": 40,
        "strategy": None,
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
        return found.num_evaluations, objectives(space, found.front)

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


if __name__ == "__main__":
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(tempfile.mkdtemp())
    {
        "time": whole_search,
        "samplers": lambda: samplers(folder),
        "skeleton": lambda: skeleton(folder),
    }[sys.argv[1]]()
