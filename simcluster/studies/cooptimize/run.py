"""From a scenario with ``[cooptimize]`` to a front of plans and the one to take."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from simcluster.config import SloConfig
from simcluster.errors import ConfigError
from simcluster.runs.executor import Runner
from simcluster.runs.recorded import RUNS, RecordedRuns
from simcluster.scenario.cooptimize_table import CooptimizeTable
from simcluster.scenario.scenario import Scenario
from simcluster.studies.cooptimize.database import build_database, candidates
from simcluster.studies.cooptimize.fleets import Fleet, Stock, preferences
from simcluster.studies.cooptimize.judge import (
    TOLERANCE,
    Confirmed,
    Judge,
    Plan,
    check_limits,
)
from simcluster.studies.cooptimize.sampling import sampled
from simcluster.studies.cooptimize.search import Allowed, Found, Space, exhaustive, pareto
from simcluster.studies.cooptimize.targets import Verdict, counted_of, log_odds, wanted_of
from simcluster.units import FloatArray

Progress = Callable[[str, int, int], None]
"""Called with the stage, the number of its steps that are done, and of all."""

BASELINES = (
    "big model, one GPU type",
    "big model, mixed GPUs",
    "routing, uniform split",
    "co-optimised, one GPU type",
)
"""Names of the plans that the chosen one is compared with (BOute, section 3.5)."""


_TRIES: Final = 3
"""Plans that are simulated, at most, for each that is wanted."""
_TRIES_WITH_TARGETS: Final = 6
"""The same where targets must be kept: each shows how far the database is to be trusted."""


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a co-optimisation found."""

    judge: Judge
    """Limits, database, stock."""
    found: Found
    """The search and its front."""
    finalists: list[Confirmed]
    """Plans simulated token by token, the best first."""
    chosen: Confirmed
    """The first of them that keeps all limits as simulated, else the quickest."""
    kept: bool
    """Whether the chosen one keeps them."""
    baselines: Mapping[str, Confirmed | None]
    """The best plan of each restricted space; None where none keeps the limits."""
    preferences: Mapping[str, FloatArray]
    """Thousands of requests per unit of currency by model and GPU type."""
    database_s: float
    search_s: float
    finalists_s: float
    """How long each stage took (s)."""


def table_of(scenario: Scenario) -> CooptimizeTable:
    """Return the table ``[cooptimize]`` of a scenario.

    Raises
    ------
    ConfigError
        If there is none.
    """
    if scenario.cooptimize is None:
        raise ConfigError(
            "cooptimize",
            None,
            "the scenario has no such table",
            "Add [cooptimize] with models = [...] and a budget; docs/boute.md shows one.",
        )
    return scenario.cooptimize


def cooptimize(
    scenario: Scenario,
    *,
    rate_rps: float | None = None,
    cache: Path | None = None,
    jobs: int | None = None,
    dask: str | None = None,
    baselines: bool = True,
    progress: Progress | None = None,
) -> Outcome:
    """Search load fractions and fleets together, and confirm the best by simulation.

    Parameters
    ----------
    scenario : Scenario
        From `scenario.file.load`, with a table ``[cooptimize]``.
    rate_rps : float, optional
        Offered rate (requests/s); default: the scenario's.
    cache : Path, optional
        Folder where simulations are recorded as soon as each is done: a killed search resumes.
    jobs : int, optional
        Processes; default: one per core.
    dask : str, optional
        Address of a Dask scheduler, in place of the processes.
    baselines : bool
        Find the restricted plans too.
    progress : callable, optional
        Hears of the stages.

    Raises
    ------
    ConfigError
        If a limit cannot be kept, whatever is deployed; says what can.
    """
    started = time.perf_counter()
    judge = prepared(
        scenario, rate_rps=rate_rps, cache=cache, jobs=jobs, dask=dask, progress=progress
    )
    database_s = time.perf_counter() - started
    space = Space.of(judge)
    found = _search(space)
    if not found.front:
        raise _nothing(space)
    search_s = time.perf_counter() - started - database_s
    finalists = _confirmed(judge, found.front, _again(space, found), progress)
    if not judge.keeps_targets(finalists[0]):
        raise _missed(judge, finalists)
    outcome = Outcome(
        judge,
        found,
        finalists,
        finalists[0],
        judge.keeps(finalists[0]),
        {},
        preferences(judge.database, judge.stock, judge.table.models),
        database_s,
        search_s,
        time.perf_counter() - started - database_s - search_s,
    )
    return with_baselines(outcome) if baselines else outcome


def with_baselines(outcome: Outcome) -> Outcome:
    """Find the restricted plans that the chosen one is compared with, of two models."""
    started, judge = time.perf_counter(), outcome.judge
    if len(judge.table.models) != 2:
        return outcome
    space, found = Space.of(judge), dict[str, Confirmed | None]()
    for name, allowed in rules().items():
        again = functools.partial(_restricted_again, space, allowed)
        front = restricted(space, allowed)
        best = _confirmed(judge, front, again)[0] if front else None
        found[name] = best if best is None or judge.keeps_targets(best) else None
    finalists_s = outcome.finalists_s + time.perf_counter() - started
    return dataclasses.replace(outcome, baselines=found, finalists_s=finalists_s)


def prepared(
    scenario: Scenario,
    *,
    rate_rps: float | None = None,
    cache: Path | None = None,
    jobs: int | None = None,
    dask: str | None = None,
    progress: Progress | None = None,
) -> Judge:
    """Check the limits and build the database: the offline stage.

    Parameters and errors as in `cooptimize`.
    """
    table = table_of(scenario)
    slo = scenario.environment.slo
    if slo.has_targets and slo.attainment >= 1:
        rule = "no plan keeps every single request of an endless stream within targets"
        raise ConfigError("slo.attainment", slo.attainment, rule, "Use 0.999 or less.")
    if scenario.workload.classes:
        raise ConfigError(
            "workload.classes",
            None,
            "a co-optimisation splits requests by difficulty and knows no classes",
            "Leave them out, or use `simcluster goodput` with a strategy.",
        )
    names = [model.spec.name for model in scenario.environment.models]
    for i, name in enumerate(table.models):
        if name not in names:
            rule = "is no model of this scenario"
            remedy = f"It has {', '.join(names)}; add an [[extra_model]]."
            raise ConfigError(f"cooptimize.models[{i}]", name, rule, remedy)
    curve = None if scenario.quality is None else scenario.quality.curve()
    check_limits(table, curve)
    _check_loads(table)
    rate = rate_rps if rate_rps is not None else scenario.default_rate_rps
    if rate is None:
        raise ConfigError(
            "workload.rate_rps", None, "is missing", "Set the rate that is to be served."
        )
    stock = Stock(scenario.environment.clusters)
    units = candidates(scenario, table)
    runner = Runner(jobs, dask, None if cache is None else RecordedRuns(cache / RUNS))
    stage = None if progress is None else functools.partial(progress, "database")
    database = build_database(scenario, table, units, runner, stage)
    return Judge(scenario, table, database, stock, curve, rate, runner)


def _check_loads(table: CooptimizeTable) -> None:
    if list(table.loads) != sorted(set(table.loads)):
        raise ConfigError(
            "cooptimize.loads",
            str(list(table.loads)),
            "must rise, without repeats",
            f"Write {sorted(set(table.loads))}.",
        )


def _search(space: Space) -> Found:
    table = space.judge.table
    simulate = table.evaluate == "simulation"
    sampler = table.sampler
    if sampler == "auto":
        sampler = "gp" if simulate else "exhaustive"
        if len(table.models) > 2:
            sampler = "gp" if simulate else "nsga2"
    if sampler == "exhaustive" and simulate:
        raise ConfigError(
            "cooptimize.sampler",
            "exhaustive",
            "would simulate every combination",
            'Use evaluate = "database", or the sampler "gp", "nsga2" or "random".',
        )
    if sampler == "exhaustive":
        return exhaustive(space)
    return sampled(
        space,
        sampler,
        table.evaluations,
        stable=table.stable,
        seed=table.seeds[0],
        simulate=simulate,
    )


def ranked(judge: Judge, plans: Sequence[Plan]) -> list[Plan]:
    """Return plans in the order of the goal."""
    keys: dict[str, Callable[[Plan], tuple[float, ...]]] = {
        "cost": lambda p: (p.cost_per_hour, p.latency_s),
        "latency": lambda p: (p.latency_s, p.cost_per_hour),
        "quality": lambda p: (-p.quality, p.cost_per_hour),
    }
    return sorted(plans, key=keys[judge.table.goal])


Again = Callable[[float], Sequence[Plan]]
"""Returns the front of a search with another margin of the targets (`Judge.margin`)."""


def _again(space: Space, found: Found) -> Again:
    """Return how to search with another margin: all plans, or those that a sampler judged."""

    def front(margin: float) -> Sequence[Plan]:
        if found.sampler == "exhaustive":
            return exhaustive(_with_margin(space, margin)).front
        judge = dataclasses.replace(space.judge, margin=margin)
        kept = [plan for plan in found.history if max(judge.violations(plan)) <= TOLERANCE]
        return pareto(kept, judge.table.objectives)

    return front


def _restricted_again(space: Space, allowed: Allowed, margin: float) -> Sequence[Plan]:
    return restricted(_with_margin(space, margin), allowed)


def _with_margin(space: Space, margin: float) -> Space:
    return dataclasses.replace(space, judge=dataclasses.replace(space.judge, margin=margin))


def _confirmed(
    judge: Judge, front: Sequence[Plan], again: Again, progress: Progress | None = None
) -> list[Confirmed]:
    """Simulate the best plans until as many as wanted keep the limits; the best one first.

    Where none of that number does, the quickest is the best; of targets the plan nearest to them. A
    plan that misses a target or is overloaded shows that the database is too hopeful there: the
    next ones are those that keep the targets by more, by the database, than that plan.
    """
    wanted, num_kept = judge.table.finalists, 0
    most = (_TRIES_WITH_TARGETS if judge.slo.has_targets else _TRIES) * wanted
    plans, margin = ranked(judge, front)[:most], judge.margin
    confirmed: list[Confirmed] = []
    seen: set[tuple[Any, ...]] = set()
    # At once as many as are simulated in any case; with targets one by one, the runs are long.
    while num_kept < wanted and plans and len(seen) < most:
        size = 1 if judge.slo.has_targets else wanted - num_kept
        batch, plans = plans[:size], plans[size:]
        seen |= {(plan.fractions, plan.fleets) for plan in batch}
        for one in judge.confirm(batch):
            confirmed.append(one)
            num_kept += judge.keeps(one)
            if not judge.keeps_targets(one):
                margin = max(margin, _margin_beyond(judge, one))
                plans = ranked(judge, again(margin))
            if progress:
                progress("finalists", len(confirmed), most)
        plans = [plan for plan in plans if (plan.fractions, plan.fleets) not in seen]
    if not confirmed:
        raise ConfigError(
            "cooptimize",
            None,
            "no plan can be packed on the nodes",
            "Add nodes or smaller tp_sizes.",
        )
    keys: dict[str, Callable[[Confirmed], float]] = {
        "cost": lambda c: c.plan.cost_per_hour,
        "latency": lambda c: c.latency_s,
        "quality": lambda c: -c.plan.quality,
    }
    by_goal = keys[judge.table.goal]

    def order(one: Confirmed) -> tuple[float, ...]:
        if judge.keeps(one):
            return (0, by_goal(one))
        if judge.keeps_targets(one):
            return (1, one.latency_s)
        assert one.verdict is not None, "without targets all are kept"
        return (2, -float(judge.headroom(np.array(one.verdict.shares))))

    return sorted(confirmed, key=order)


def _margin_beyond(judge: Judge, missed: Confirmed) -> float:
    """Return the margin of the next plans after one that misses a target as simulated.

    By the database it must be larger than that plan's, the more so the farther it misses.
    """
    assert missed.verdict is not None, "a plan without targets misses none"
    far = -float(judge.headroom(np.array(missed.verdict.shares)))
    return float(judge.headroom(np.array(missed.plan.shares))) + min(max(far, 0.2), 1.0) / 2


def _missed(judge: Judge, finalists: Sequence[Confirmed]) -> ConfigError:
    """Return which target the best of the simulated plans misses, and by how much."""
    best = finalists[0]
    verdict = best.verdict
    assert verdict is not None, "a plan without targets misses none"
    at = verdict.worst(wanted_of(judge.slo))
    key = counted_of(judge.slo)[at]
    share, wanted = 100 * verdict.shares[at], 100 * judge.slo.wanted(key)
    rule = (
        f"none of the {len(finalists)} plans simulated keeps it: the best, "
        f"{described(judge, best.plan)}, has {share:.3g} % of the requests within "
        f"({100 * verdict.lows[at]:.3g} to {100 * verdict.highs[at]:.3g}), and {wanted:g} % are "
        "wanted"
    )
    if verdict.status == "overloaded":
        rule += "; it is overloaded: " + grown(verdict)
    name, value = target_key(judge.slo, key)
    remedy = "Raise the target, the budget or the stock, or lower the rate."
    return ConfigError(name, value, rule, remedy)


def target_key(slo: SloConfig, key: str) -> tuple[str, float | None]:
    """Return the key of the file of a counted target, and its value (s)."""
    return ("slo", None) if key == "joint" else (f"slo.{key}_s", getattr(slo, f"{key}_s"))


def grown(verdict: Verdict) -> str:
    """Return in words how the number of requests in the system grows."""
    if verdict.in_system is None:
        return ""
    first, last = verdict.in_system
    return f"requests in the system grow from {first:.3g} to {last:.3g} over its runs"


def _nothing(space: Space) -> ConfigError:
    """Return why no plan keeps all limits: the cheapest without a budget, or the quickest with."""
    judge = space.judge
    table = judge.table

    def least_without(limit: str, key: Callable[[Plan], float]) -> Plan | None:
        if getattr(table, limit) is None:
            return None
        free: dict[str, Any] = {limit: None, "objectives": ("cost", "latency")}
        other = dataclasses.replace(judge, table=dataclasses.replace(table, **free))
        return min(exhaustive(dataclasses.replace(space, judge=other)).front, key=key, default=None)

    if len(table.models) > 2:
        return ConfigError(
            "cooptimize", None, "the search found no plan within all limits", "Loosen one."
        )
    if cheapest := least_without("budget_per_hour", lambda plan: plan.cost_per_hour):
        return ConfigError(
            "cooptimize.budget_per_hour",
            table.budget_per_hour,
            f"is below the cheapest plan within the other limits: {described(judge, cheapest)}, "
            f"{cheapest.cost_per_hour:.2f} per hour",
            f"Raise it to {math.ceil(100 * cheapest.cost_per_hour) / 100:g}, or loosen a limit.",
        )
    if quickest := least_without("latency_at_most_s", lambda plan: plan.latency_s):
        return ConfigError(
            "cooptimize.latency_at_most_s",
            table.latency_at_most_s,
            f"is below the least latency within the other limits: {described(judge, quickest)}, "
            f"{quickest.latency_s:.2f} s",
            "Raise it, or the budget or stock.",
        )
    if judge.searches_targets:
        plans = exhaustive(_with_margin(space, -math.inf)).front
        if plans:
            best = max(plans, key=lambda plan: float(judge.headroom(np.array(plan.shares))))
            odds = log_odds(best.shares) - log_odds(wanted_of(judge.slo))
            key = counted_of(judge.slo)[int(np.argmin(odds))]
            share = 100 * best.shares[int(np.argmin(odds))]
            name, value = target_key(judge.slo, key)
            return ConfigError(
                name,
                value,
                f"no plan within the limits keeps it: by the database the best, "
                f"{described(judge, best)}, has {share:.3g} % of the requests within, and "
                f"{100 * judge.slo.wanted(key):g} % are wanted",
                "Raise the target, the budget or the stock, or lower the rate.",
            )
    return ConfigError(
        "workload.rate_rps",
        judge.rate_rps,
        "no plan within budget and stock carries it",
        "Lower it, or add GPUs or budget.",
    )


def described(judge: Judge, plan: Plan) -> str:
    """Return a plan in words."""
    parts = [
        f"{100 * fraction:.3g} % to {model} on {fleet}"
        for model, fraction, fleet in zip(
            judge.table.models, plan.fractions, plan.fleets, strict=True
        )
        if fleet.parts
    ]
    return "; ".join(parts)


# Baselines --------------------------------------------------------------------------------------


def _types(fleets: Sequence[Fleet]) -> set[str]:
    return {unit.gpu for fleet in fleets for unit, _ in fleet.parts}


def _only_big(fleets: Sequence[Fleet]) -> bool:
    return not fleets[0].parts


def _uniform(fleets: Sequence[Fleet]) -> bool:
    """One GPU type, and as many GPUs for one model as for the other."""
    counts = [sum(unit.num_gpus * n for unit, n in fleet.parts) for fleet in fleets]
    return min(counts) > 0 and len(_types(fleets)) == 1 and counts[0] == counts[1]


def rules() -> dict[str, Allowed]:
    """Return what each of `BASELINES` allows."""
    return dict(
        zip(
            BASELINES,
            (
                lambda fleets: _only_big(fleets) and len(_types(fleets)) == 1,
                _only_big,
                _uniform,
                lambda fleets: len(_types(fleets)) == 1,
            ),
            strict=True,
        )
    )


def restricted(space: Space, allowed: Allowed) -> list[Plan]:
    """Return the front of the plans that a baseline allows, within the limits."""
    return exhaustive(space, allowed).front
