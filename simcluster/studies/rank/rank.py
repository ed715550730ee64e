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
from simcluster.studies.goodput.runs import check, refuse_own_rates
from simcluster.studies.rank import margin, spares
from simcluster.studies.rank.contest import Contest
from simcluster.studies.rank.explain import explain_bound, family
from simcluster.studies.rank.field import IDLE, Field, field_of
from simcluster.studies.rank.plans import Plans
from simcluster.studies.rank.ranking import Candidate, Ranking
from simcluster.studies.rank.rounds import FIRST, Rounds
from simcluster.studies.rank.screen import Bound, Lengths, Screen
from simcluster.studies.rank.standings import Standings
from simcluster.studies.work import Progress, Work

_LATENCY_RATE: Final = 0.5  # of the best goodput: where latencies are compared
_LATENCY_DRAW: Final = 20  # of requests, that no goodput rests on


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
    spares.check(table)
    check(scenario)
    refuse_own_rates(scenario)
    environment = scenario.environment
    if table.mode == "bestserve":
        _refuse_for_bestserve(environment)
    if table.need_rps is not None:
        most = max(table.num_gpus, default=environment.cluster.num_gpus)
        most = min(most, environment.cluster.num_gpus)
        table = dataclasses.replace(table, num_gpus=tuple(range(1, most + 1)))
        found = field_of(table, environment, scenario.strategies)
        del found.removed[IDLE]  # every number of GPUs was tried
    else:
        found = field_of(table, environment, scenario.strategies)
    screen = Screen(environment, Lengths.of(scenario))
    bounds = {name: screen.bound(strategy) for name, strategy in found.strategies.items()}
    for name in _hopeless(bounds, environment):
        found.removed["targets are missed even by requests that are alone"] += 1
        del found.strategies[name], bounds[name]
    own = [strategy.name for strategy in scenario.strategies]
    baselines = found.baselines(table, own)
    asked, scenario = scenario, scenario.with_strategies(found.strategies.values())
    if table.mode == "bestserve":
        ranking = _estimated(scenario, table, bounds, found.removed, jobs, dask, progress)
        return dataclasses.replace(ranking, asked=asked)
    contest = Contest(scenario, bounds, Runner(jobs, dask, recorded), Work(progress))
    if table.need_rps is not None:
        ranking = _planned(contest, table, found)
    else:
        ranking = _raced(contest, table, found, baselines)
    return dataclasses.replace(ranking, asked=asked)


def _raced(contest: Contest, table: RankTable, found: Field, baselines: list[str]) -> Ranking:
    """Rank by goodput."""
    rounds, work = Rounds(contest, baselines), contest.work
    rounds.expect(table.finalists, table.tolerance)
    rounds.first_round()
    rounds.second_round()
    field = rounds.third_round()
    final = rounds.final_round(rounds.finalists(field[: table.finalists], table.tolerance))
    standings = Standings(contest, rounds, final)
    ranked = standings.candidates()
    rate = _LATENCY_RATE * ranked[0].goodput_rps
    cells = [contest.cell(c.name, rate, 0, FIRST) for c in ranked if c.goodput_rps >= rate]
    seen = dict(zip((c.strategy for c in cells), contest.probes(cells, "latencies"), strict=True))
    candidates = tuple(
        dataclasses.replace(c, ttft_s=seen[c.name].ttft_s, tpot_s=seen[c.name].tpot_s)
        if c.name in seen
        else c
        for c in ranked
    )
    best = [c for c in candidates if c.stage == "final"] or candidates
    levels = margin.levels(contest, best[: margin.SHOWN], _LATENCY_DRAW)
    slo = contest.scenario.environment.slo
    notes = [
        *final.notes,
        *found.notes(),
        *standings.notes(candidates),
        *margin.warnings(levels, slo),
    ]
    return Ranking(
        scenario=contest.scenario,
        table=table,
        candidates=candidates,
        removed=found.removed,
        unsettled=final.unsettled,
        verdicts=final.verdicts,
        notes=tuple(notes),
        raced=tuple(standings.unsettled_pairs()),
        levels=tuple(levels),
        latency_rate_rps=rate,
        num_requests=work.num_requests,
    )


def _planned(contest: Contest, table: RankTable, found: Field) -> Ranking:
    """Find the cheapest plans for the need of `table`."""
    plans = Plans(contest, table)
    need = plans.find()
    steps = [plan for plan in (need.below, need.above) if plan is not None]
    candidates = [plan.candidate for plan in (*need.plans, *steps)]
    levels = margin.levels(contest, candidates[: len(need.plans)][: margin.SHOWN], _LATENCY_DRAW)
    slo = contest.scenario.environment.slo
    unused = ["rank.baselines is not used with a need"] if table.baselines else []
    return Ranking(
        scenario=contest.scenario,
        table=table,
        candidates=tuple(sorted(candidates, key=lambda c: -c.goodput_rps)),
        removed=found.removed,
        unsettled=plans.final.unsettled,
        verdicts=plans.final.verdicts,
        notes=(*unused, *plans.final.notes, *found.notes(), *margin.warnings(levels, slo)),
        levels=tuple(levels),
        need=need,
        latency_rate_rps=math.nan,
        num_requests=contest.work.num_requests,
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
