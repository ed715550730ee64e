"""Rank every strategy for given GPUs: screen by roofline, race on few requests, settle the best.

The question is BestServe's (arXiv 2506.05871); the answers are simulated token by token, on the
same requests for all candidates, and come with intervals. `space` makes the candidates, `screen`
bounds them, `rounds` races them, `explain` says why the losers lose, `ranking` is the result.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from typing import Final

from pydantic import TypeAdapter

from simcluster.config import Environment
from simcluster.errors import ConfigError, DataError
from simcluster.runs.executor import Runner, outcomes
from simcluster.runs.recorded import RecordedRuns
from simcluster.scenario import arguments
from simcluster.scenario.check import validated
from simcluster.scenario.rank_table import RankTable
from simcluster.scenario.scenario import Scenario, refuse_other
from simcluster.studies import bestserve
from simcluster.studies.goodput.runs import check
from simcluster.studies.rank.explain import explain_bound, family
from simcluster.studies.rank.ranking import Candidate, Ranking
from simcluster.studies.rank.rounds import Progress, Rounds
from simcluster.studies.rank.screen import Bound, Lengths, Screen
from simcluster.studies.space import space

_LATENCY_RATE: Final = 0.5  # of the best goodput: where latencies are compared


def rank(
    scenario: Scenario,
    table: RankTable | None = None,
    *,
    jobs: int | None = None,
    dask: str | None = None,
    progress: Progress | None = None,
    recorded: RecordedRuns | None = None,
) -> Ranking:
    """Rank all candidates of `table` and the strategies of `scenario`.

    Parameters
    ----------
    scenario : Scenario
        Model, machines, engine, workload, targets. Its rates and run length are not used.
    table : RankTable, optional
        The space; default: that of the scenario, else all families with the table's defaults.
    jobs : int, optional
        Processes; default: one per core.
    dask : str, optional
        Address of a Dask scheduler, in place of the processes.
    progress : callable, optional
        Called after each run of a round.
    recorded : RecordedRuns, optional
        Where runs are kept as soon as each is done, and taken from if they are there.

    Raises
    ------
    ConfigError
        If there are no targets, a strategy routes between models, the arrivals cannot be drawn at
        any rate, or an argument cannot be meant.
    DataError
        If no candidate is left, or none meets the targets at any rate.
    """
    refuse_other(scenario, empty=True)
    if table is not None:
        remedy = "Leave it out for that of the scenario."
        arguments.of_type("table", table, RankTable, "a RankTable", remedy)
        table = validated(TypeAdapter(RankTable), dataclasses.asdict(table))
    table = table or scenario.rank or RankTable()
    check(scenario)
    environment = scenario.environment
    if table.mode == "bestserve":
        _refuse_for_bestserve(environment)
    found = space(table, environment)
    strategies = {**found.strategies, **{s.name: s for s in scenario.strategies}}
    if not strategies:
        found.refuse_empty()
    screen = Screen(environment, Lengths.of(scenario))
    bounds = {name: screen.bound(strategy) for name, strategy in strategies.items()}
    hopeless = _hopeless(bounds, environment)
    for name in hopeless:
        found.removed["targets are missed even by requests that are alone"] += 1
        del strategies[name], bounds[name]
    scenario = scenario.with_strategies(strategies.values())
    if table.mode == "bestserve":
        return _estimated(scenario, table, bounds, found.removed, jobs, dask, progress)
    race = Rounds(scenario, bounds, Runner(jobs, dask, recorded), progress)
    race.first_round()
    race.second_round()
    field = race.third_round()
    final = race.final_round(field[: table.finalists], table.tolerance)
    ranked = race.standings(final)
    rate = _LATENCY_RATE * ranked[0].goodput_rps
    latencies = race.latencies([c.name for c in ranked if c.goodput_rps >= rate], rate)
    candidates = tuple(
        dataclasses.replace(c, ttft_s=latencies[c.name].ttft_s, tpot_s=latencies[c.name].tpot_s)
        if c.name in latencies
        else c
        for c in ranked
    )
    return Ranking(
        scenario=scenario,
        table=table,
        candidates=candidates,
        removed=found.removed,
        unsettled=final.unsettled,
        verdicts=final.verdicts,
        notes=race.notes(candidates),
        latency_rate_rps=rate,
        num_requests=race.num_requests,
    )


def _refuse_for_bestserve(environment: Environment) -> None:
    """Refuse targets that BestServe's estimator does not know."""
    rule = ""
    if environment.slo.classes:
        rule = "BestServe's estimator knows one set of targets, the workload has classes"
    elif environment.slo.itl_s is not None:
        rule = "BestServe's estimator does not know the gaps between tokens (slo.itl_s)"
    if rule:
        raise ConfigError("rank.mode", "bestserve", rule, 'Use rank.mode = "simulate".')


def _hopeless(bounds: Mapping[str, Bound], environment: Environment) -> list[str]:
    """Return who misses the targets even with requests that are alone; refuse if all do."""
    hopeless = [n for n, b in bounds.items() if b.alone_share < environment.slo.attainment]
    if len(hopeless) < len(bounds):
        return hopeless
    best_ttft = min(b.alone_ttft_s for b in bounds.values())
    best_tpot = min(b.alone_tpot_s for b in bounds.values())
    raise DataError(
        f"none of the {len(bounds)} candidates meets the targets for "
        f"{100 * environment.slo.attainment:g} % of the requests even when they are alone: the "
        f"best TTFT is {best_ttft:.3g} s, the best TPOT {1e3 * best_tpot:.3g} ms. Loosen "
        "slo.ttft_s or slo.tpot_s, or take faster GPUs."
    )


def _estimated(
    scenario: Scenario,
    table: RankTable,
    bounds: Mapping[str, Bound],
    removed: Counter[str],
    jobs: int | None,
    dask: str | None,
    progress: Progress | None,
) -> Ranking:
    """Rank by BestServe's estimator: the candidates that it knows, without intervals."""
    slo = dataclasses.replace(scenario.environment.slo, criterion="marginal")
    environment = dataclasses.replace(scenario.environment, slo=slo)
    scenario = dataclasses.replace(scenario, environment=environment)
    known = [s for s in scenario.strategies if bestserve.knows(s)]
    if len(known) < len(scenario.strategies):
        removed["BestServe's estimator does not know such a strategy"] += len(
            scenario.strategies
        ) - len(known)
    if not known:
        raise DataError(
            "BestServe's estimator knows none of the candidates: collocated instances that prefill "
            "first and disaggregated pools, without pipelines or autoscaling. Use "
            'rank.mode = "simulate".'
        )
    calls = [(scenario.only(strategy.name),) for strategy in known]
    values: dict[str, float] = {}
    for name, value in outcomes(_estimate, calls, jobs=jobs, dask=dask):
        values[name] = value
        if progress:
            progress(len(values), len(calls), len(values) / len(calls))
    candidates = []
    for name, value in sorted(values.items(), key=lambda item: -item[1]):
        bottleneck, why = explain_bound(bounds[name])
        candidates.append(
            Candidate(
                name=name,
                strategy=family(scenario.strategy(name)),
                num_gpus=bounds[name].num_gpus,
                mean_gpus=float(bounds[name].num_gpus),
                goodput_rps=value,
                low_rps=math.nan,
                high_rps=math.nan,
                stage="bound",
                price_per_gpu_hour=environment.cluster.price_per_gpu_hour,
                bottleneck=bottleneck,
                why=why,
                ttft_s=math.nan,
                tpot_s=math.nan,
                bound_rps=bounds[name].total_rps,
            )
        )
    return Ranking(
        scenario=scenario,
        table=table,
        candidates=tuple(candidates),
        removed=removed,
        unsettled={},
        verdicts={},
        notes=(),
        latency_rate_rps=math.nan,
        num_requests=0,
    )


def _estimate(scenario: Scenario) -> tuple[str, float]:
    strategy = scenario.strategies[0]
    return strategy.name, bestserve.goodput_rps(scenario, strategy)
