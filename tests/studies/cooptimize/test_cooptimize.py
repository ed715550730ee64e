"""Routing and deployment together: the search against trying all, limits, resuming, traps."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import simcluster
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import main
from simcluster.errors import ConfigError
from simcluster.runs.executor import Runner
from simcluster.runs.recorded import RecordedRuns
from simcluster.scenario.scenario import Scenario
from simcluster.studies.cooptimize import database as offline
from simcluster.studies.cooptimize import targets
from simcluster.studies.cooptimize.choices import Choices
from simcluster.studies.cooptimize.database import MASSES, METRICS, Entry, Unit, most_units
from simcluster.studies.cooptimize.fleets import LATENCY_GRID, NO_FLEET, Fleet, Stock, families
from simcluster.studies.cooptimize.front import hypervolume, undominated
from simcluster.studies.cooptimize.judge import Judge, Plan, percentile_of
from simcluster.studies.cooptimize.run import (
    cooptimize,
    prepared,
    ranked,
    restricted,
    rules,
    table_of,
)
from simcluster.studies.cooptimize.sampling import promising, sampled, spread
from simcluster.studies.cooptimize.search import Space, exhaustive, pareto
from simcluster.testing.examples import examples

WEAK, STRONG, CHEAP, DEAR = "llama-3.1-8b", "llama-3.1-70b", "RTX 5090", "H100 SXM"
LOADS = (0.2, 0.4, 0.55, 0.7, 0.85, 1.0)

TABLES: dict[str, Any] = {
    "model": {"name": STRONG},
    "extra_model": [{"name": WEAK}],
    "cluster": {"gpu": "H100", "nodes": 2, "gpus_per_node": 4, "price_per_gpu_hour": 2.69},
    "extra_cluster": [
        {"gpu": CHEAP, "nodes": 1, "gpus_per_node": 4, "price_per_gpu_hour": 0.89},
    ],
    "engine": {"profile": "vllm-0.19", "max_model_len": 2048},
    "workload": {
        "rate_rps": 12,
        "duration_s": 30,
        "lengths": {"kind": "fixed", "prompt_len": 150, "output_len": 200},
    },
    "quality": {"kind": "measured", "benchmark": "gsm8k"},
    "cooptimize": {
        "models": [WEAK, STRONG],
        "budget_per_hour": 16,
        "quality_at_least": 0.75,
        "tp_sizes": [1, 4],
        "loads": LOADS,
        "fractions": 8,
        "finalists": 1,
        "seeds": [0, 1],
    },
}


def made_up(unit: Unit, capacity_rps: float, floor_s: float) -> Entry:
    """An entry whose latencies grow with the load as in a queue."""
    levels = np.cumsum(MASSES) - MASSES / 2
    rows = [floor_s * (1 + levels) / (1.2 - load) for load in LOADS]
    quantiles = {metric: np.array([rows, rows]) for metric in METRICS}
    return Entry(unit, capacity_rps, (1, 4), quantiles)


def judge(**changes: Any) -> Judge:
    """A judge over a made-up database of five kinds of units."""
    tables = {**TABLES, "cooptimize": {**TABLES["cooptimize"], **changes}}
    scenario = simcluster.resolve(tables)
    entries = [
        made_up(Unit(WEAK, CHEAP, "nodg", 1, 1), 8.0, 2.0),
        made_up(Unit(WEAK, DEAR, "nodg", 1, 1), 20.0, 1.0),
        made_up(Unit(STRONG, DEAR, "nodg", 4, 1), 10.0, 3.0),
        made_up(Unit(STRONG, DEAR, "nodg", 2, 1), 3.0, 5.0),
        made_up(Unit(STRONG, CHEAP, "nodg", 4, 1), 4.0, 8.0),
    ]
    quality = scenario.quality
    assert quality is not None
    return Judge(
        scenario,
        table_of(scenario),
        {entry.unit: entry for entry in entries},
        Stock(scenario.environment.clusters),
        quality.curve(),
        12.0,
    )


# Fronts -----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(*[st.integers(0, 6)] * 3), min_size=1, max_size=30))
@examples(100)
def test_the_front_is_what_no_other_point_beats(points: list[tuple[int, ...]]) -> None:
    """By comparing every pair."""
    rows = np.array(points, dtype=float)
    front = {tuple(p) for p in rows[undominated(rows)].tolist()}
    beaten = {
        p
        for p in points
        if any(all(a <= b for a, b in zip(q, p, strict=True)) and q != p for q in points)
    }
    assert front == {tuple(map(float, p)) for p in set(points) - beaten}
    assert len(undominated(rows)) == len(front)


@pytest.mark.parametrize("num_objectives", [1, 2, 3])
@given(data=st.data())
@examples(60)
def test_the_hypervolume_is_the_number_of_dominated_cells(
    num_objectives: int, data: st.DataObject
) -> None:
    """Of whole-numbered points, counted one by one."""
    points = data.draw(
        st.lists(st.tuples(*[st.integers(0, 5)] * num_objectives), min_size=1, max_size=8)
    )
    cells = product(range(4), repeat=num_objectives)
    counted = sum(
        any(all(a <= c for a, c in zip(p, cell, strict=True)) for p in points) for cell in cells
    )
    assert hypervolume(np.array(points, dtype=float), [4] * num_objectives) == counted


@given(st.floats(0.01, 100), st.floats(1, 99))
@examples(100)
def test_a_percentile_is_read_off_the_tail(scale: float, percentile: float) -> None:
    """Of an exponential distribution: -scale x log of the share beyond."""
    tail = np.exp(-LATENCY_GRID / scale)
    expected = -scale * np.log(1 - percentile / 100)
    assert percentile_of(tail, percentile) == pytest.approx(expected, rel=2e-3)


# The search -------------------------------------------------------------------------------------


def every_plan(where: Judge) -> list[Plan]:
    """Second implementation: each split with each pair of fleets, looked up one by one."""
    space, plans = Space.of(where), []
    for split in space.splits():
        choices = [
            space.fleets(model) if fraction > 0 else [NO_FLEET]
            for model, fraction in enumerate(split)
        ]
        for fleets in product(*choices):
            plan = where.look_up(split, fleets)
            if max(where.violations(plan)) <= 1e-9:
                plans.append(plan)
    return plans


@pytest.mark.parametrize(
    "changes",
    [{}, {"latency_at_most_s": 9.0, "budget_per_hour": 22}, {"objectives": ["cost", "latency"]}],
)
def test_exhaustive_search_finds_what_trying_all_finds(changes: dict[str, Any]) -> None:
    """The same front from pairs judged all at once as from plans judged one by one."""
    where = judge(**changes)
    found = exhaustive(Space.of(where))
    expected = pareto(every_plan(where), where.table.objectives)
    assert found.front

    def values(plans: list[Plan]) -> Any:
        return np.array(sorted((p.cost_per_hour, p.latency_s, p.quality) for p in plans))

    cheapest = [min(p.cost_per_hour for p in plans) for plans in (found.front, expected)]
    assert cheapest[0] == pytest.approx(cheapest[1])
    mine, theirs = values(found.front), values(expected)
    # The two round latencies differently: each point has one beside it.
    for one, other in ((mine, theirs), (theirs, mine)):
        for point in one:
            near = np.abs(other / point - 1).max(axis=1)
            assert near.min() < 1e-3


def test_a_fleet_of_a_level_is_the_cheapest_of_all_that_reach_it() -> None:
    """The knapsack against every number of units of two GPU types."""
    where = judge()
    for family in families(where.database, WEAK, where.stock, 12.0, "e2el_s"):
        if len(family.units) < 2:
            continue
        tries = [
            where.stock.fleet(where.database, list(zip(family.units, counts, strict=True)))
            for counts in product(
                *[
                    range(1, most_units(where.stock.cluster(unit.gpu), unit) + 1)
                    for unit in family.units
                ]
            )
        ]
        for level, fleet in zip(np.geomspace(0.05, 3.0, 24) * 12.0, family.by_level, strict=True):
            enough = [t.cost_per_hour for t in tries if t.capacity_rps >= level]
            assert (fleet is None) == (not enough)
            if fleet is not None:
                assert fleet.cost_per_hour == pytest.approx(min(enough))


def test_units_that_are_beaten_are_left_out() -> None:
    """A smaller unit stays though it is slower and dearer: it comes in finer steps."""
    where = judge()

    def units_of(database: Any) -> set[Unit]:
        found = families(database, STRONG, where.stock, 12.0, "e2el_s")
        return {unit for family in found for unit in family.units}

    assert Unit(STRONG, DEAR, "nodg", 2, 1) in units_of(where.database)
    beaten = Unit(STRONG, DEAR, "chunked", 4, 1)
    more = {**where.database, beaten: made_up(beaten, 9.0, 4.0)}
    assert beaten not in units_of(more)


def test_the_best_thresholds_change_when_the_deployment_changes() -> None:
    """The second trap of BOute: the same GPUs, split otherwise, want other load fractions."""
    where = dataclasses.replace(judge(), rate_rps=20.0)
    weak, strong = Unit(WEAK, DEAR, "nodg", 1, 1), Unit(STRONG, DEAR, "nodg", 4, 1)

    def best_share(num_weak: int) -> float:
        fleets = [
            where.stock.fleet(where.database, [(weak, num_weak)]),
            where.stock.fleet(where.database, [(strong, 1)]),
        ]
        shares = np.linspace(0.05, 0.95, 19)
        latency = [where.look_up((1 - s, s), fleets).latency_s for s in shares]
        return float(shares[int(np.argmin(latency))])

    assert best_share(1) > best_share(4)


def named(plan: Plan) -> tuple[Any, ...]:
    """What a plan is, without how it was judged."""
    return plan.fractions, tuple(fleet.parts for fleet in plan.fleets)


@pytest.mark.parametrize("sampler", ["random", "nsga2"])
def test_samplers_judge_every_plan_once_if_they_may(sampler: str) -> None:
    """No more and no fewer than the plans within the limits, and the front of all of them."""
    pytest.importorskip("optuna")
    where = judge()
    found = sampled(Space.of(where), sampler, 10_000, seed=3)
    plans = every_plan(where)
    assert sorted(map(named, found.history), key=repr) == sorted(map(named, plans), key=repr)
    expected = pareto(plans, where.table.objectives)
    assert [named(p) for p in found.front] == [named(p) for p in expected]


@pytest.mark.parametrize("sampler", ["random", "nsga2", "gp"])
@pytest.mark.parametrize("limit", [None, 9.0])
def test_samplers_find_plans_within_the_limits_and_repeat(
    sampler: str, limit: float | None
) -> None:
    """With a seed the same steps; what they judge keeps all limits but perhaps the latency's."""
    pytest.importorskip("optuna")
    if sampler == "gp":
        pytest.importorskip("torch")
    space = Space.of(judge(budget_per_hour=30, fractions=20, latency_at_most_s=limit))
    count = 14 if sampler == "gp" else 40  # ten before its first model
    one, other = (sampled(space, sampler, count, seed=3) for _ in range(2))
    assert list(map(named, one.history)) == list(map(named, other.history))
    assert one.num_evaluations == count == len(set(map(named, one.history)))
    free = dataclasses.replace(space.judge.table, latency_at_most_s=None)
    for plan in one.history:
        assert max(dataclasses.replace(space.judge, table=free).violations(plan)) <= 1e-9
    assert one.front
    for plan in one.front:
        assert max(space.judge.violations(plan)) <= 1e-9


@given(st.lists(st.floats(0, 1), min_size=7, max_size=7), st.integers(0, 10))
@examples(30)
def test_a_proposal_stands_for_the_nearest_plan_not_judged(point: list[float], seen: int) -> None:
    """Against measuring to each; and a plan's own variables stand for it."""
    choices = Choices.of(Space.of(judge()))
    assert len(choices.names) == 7
    wanted = dict(zip(choices.names, point, strict=True))
    for _ in range(seen):
        taken = choices.nearest(wanted)
        assert taken is not None
        choices.seen[taken] = True
    found = choices.nearest(wanted)
    assert found is not None
    away = [
        (sum(abs(a - b) for a, b in zip(row, point, strict=True)), number)
        for number, row in enumerate(choices.points.tolist())
    ]
    assert away[found][0] == pytest.approx(sorted(away)[seen][0])
    own = choices.nearest(choices.parameters(found))
    assert own is not None
    assert choices.parameters(own) == choices.parameters(found)


def test_the_gp_begins_where_an_estimate_is_best() -> None:
    """Before simulations with the database's front, before look-ups with the estimated one."""
    where = judge(budget_per_hour=30, fractions=20)
    choices = Choices.of(Space.of(where))
    front = {named(p) for p in pareto(every_plan(where), where.table.objectives)}
    first = promising(choices, simulate=True, most=10)
    assert len(first) == 10
    assert {named(choices.plan(number)) for number in first} <= front
    estimated = promising(choices, simulate=False, most=10_000)
    rows = np.column_stack([choices.costs, choices.estimates, -choices.qualities])
    assert sorted(estimated) == sorted(undominated(rows).tolist())


@given(st.lists(st.tuples(*[st.integers(0, 6)] * 3), min_size=1, max_size=12, unique=True))
@examples(60)
def test_the_spread_adds_the_most_volume_at_each_step(points: list[tuple[int, ...]]) -> None:
    """Against trying every point at every step."""
    values = np.array(points, dtype=float)
    values = values[undominated(values)]
    order = spread(values, 10_000)
    assert sorted(order) == list(range(len(values)))
    unit = (values - values.min(axis=0)) / np.maximum(np.ptp(values, axis=0), 1e-12)

    def volume(rows: list[int]) -> float:
        return hypervolume(unit[rows], [1.1] * 3)

    for step, row in enumerate(order):
        before = order[:step]
        most = max(volume([*before, other]) for other in order[step:])
        assert volume([*before, row]) == pytest.approx(most)


def test_a_sampler_stops_when_nothing_changes() -> None:
    """After so many evaluations without a better plan."""
    pytest.importorskip("optuna")
    space = Space.of(judge())
    every = sampled(space, "random", 2000, seed=3)
    found = sampled(space, "random", 2000, stable=5, seed=3)
    assert found.num_evaluations < every.num_evaluations
    # Five that changed nothing, and the one before them did.
    fronts = [
        pareto(every.history[:count], space.judge.table.objectives)
        for count in range(found.num_evaluations - 6, found.num_evaluations + 1)
    ]
    assert fronts[0] != fronts[1]
    assert all(front == fronts[1] for front in fronts[2:])


def test_three_models_are_sampled() -> None:
    """Every plan judged is within the limits, and some use all three."""
    pytest.importorskip("optuna")
    middle = "llama-30b"
    tables = {
        **TABLES,
        "extra_model": [{"name": WEAK}, {"name": middle}],
        "quality": {"kind": "abilities", "accuracies": [0.6, 0.7, 0.8]},
        "cooptimize": {
            **TABLES["cooptimize"],
            "models": [WEAK, middle, STRONG],
            "budget_per_hour": 25,
            "quality_at_least": 0.65,
        },
    }
    scenario = simcluster.resolve(tables)
    entry = made_up(Unit(middle, DEAR, "nodg", 1, 1), 6.0, 2.5)
    where = dataclasses.replace(
        judge(),
        scenario=scenario,
        table=table_of(scenario),
        curve=scenario.quality.curve() if scenario.quality else None,
    )
    where = dataclasses.replace(where, database={**where.database, entry.unit: entry})
    space = Space.of(where)
    with pytest.raises(ConfigError, match="3 models have too many combinations"):
        exhaustive(space)
    found = sampled(space, "nsga2", 200, seed=1)
    assert found.num_evaluations == 200 == len(set(map(named, found.history)))
    assert all(max(where.violations(plan)) <= 1e-9 for plan in found.history)
    assert any(all(fleet.parts for fleet in plan.fleets) for plan in found.history)


@pytest.mark.parametrize("latency", ["ttft", "tpot"])
def test_other_latencies_can_be_wanted(kept: Path, latency: str) -> None:
    """The finalists' percentile of that column, which the database foresees."""
    tables = with_limits(latency=latency)
    outcome = cooptimize(simcluster.resolve(tables), cache=kept, jobs=1, baselines=False)
    plan = outcome.judge.scenario_of(outcome.chosen.plan)
    requests = simcluster.simulate(plan, seed=0).requests
    values = requests[f"{latency}_s"].dropna()
    assert outcome.chosen.latencies_s[0] == np.quantile(values, 0.95, method="higher")


def test_baselines_are_what_they_say() -> None:
    """One model, one GPU type, equal numbers."""
    space = Space.of(judge(budget_per_hour=30))
    fronts = {name: restricted(space, rule) for name, rule in rules().items()}
    free = ranked(space.judge, exhaustive(space).front)[0]
    for name, front in fronts.items():
        assert front, name
        assert ranked(space.judge, front)[0].latency_s >= free.latency_s - 1e-9
        for plan in front:
            gpus = {unit.gpu for fleet in plan.fleets for unit, _ in fleet.parts}
            if name.startswith("big"):
                assert plan.fractions == (0.0, 1.0)
            if "one GPU type" in name or "uniform" in name:
                assert len(gpus) == 1
            if "uniform" in name:
                (gpu,) = gpus
                assert plan.fleets[0].num_gpus(gpu) == plan.fleets[1].num_gpus(gpu)


def test_a_mixed_fleet_shares_load_evenly() -> None:
    """Its tail is that of its parts at the same load, weighed by capacity."""
    where = judge()
    parts = [(Unit(WEAK, CHEAP, "nodg", 1, 1), 2), (Unit(WEAK, DEAR, "nodg", 1, 1), 1)]
    both = where.stock.fleet(where.database, parts)
    alone = [where.stock.fleet(where.database, [part]) for part in parts]
    tail = where.tail(both, 18.0)
    weights = [fleet.capacity_rps / both.capacity_rps for fleet in alone]
    expected = sum(w * where.tail(fleet, 18.0 * w) for w, fleet in zip(weights, alone, strict=True))
    assert tail == pytest.approx(expected)
    assert where.tail(both, 40.0).min() == 1  # overloaded
    assert where.tail(Fleet((), 0.0, 0.0), 0.0).max() == 0


# Limits -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of simulations that the tests share."""
    return tmp_path_factory.mktemp("cache")


def call(tables: dict[str, Any], tmp_path: Path, cache: Path, *more: str) -> Any:
    """Call the command on a scenario of these tables."""
    path = tmp_path / "scenario.toml"
    path.write_text(to_toml(tables))
    arguments = ["cooptimize", str(path), "--cache", str(cache), "--jobs", "1", *more]
    return CliRunner().invoke(main, arguments)


def with_limits(**changes: Any) -> dict[str, Any]:
    """The tables with other keys of ``[cooptimize]``; None takes one out."""
    merged = {**TABLES["cooptimize"], **changes}
    return {**TABLES, "cooptimize": {k: v for k, v in merged.items() if v is not None}}


def test_from_file_to_plan_that_runs(tmp_path: Path, kept: Path) -> None:
    """The chosen plan is a scenario; simulating it gives the latency that was reported."""
    out, picture = tmp_path / "plan.toml", tmp_path / "front.png"
    result = call(TABLES, tmp_path, kept, "--json", "-o", str(out), "--plot", str(picture))
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    chosen = found["chosen"]
    assert found["keeps_limits"]
    assert chosen["cost_per_hour"] <= 16
    assert chosen["quality"] >= 0.75
    assert picture.stat().st_size > 5000
    assert set(found["preferences"]) == {WEAK, STRONG}
    scenario = simcluster.load(out)
    latencies = []
    for seed in (0, 1):
        requests = simcluster.simulate(scenario, seed=seed).requests
        latencies.append(np.quantile(requests["e2el_s"], 0.95, method="higher"))
    assert latencies == pytest.approx(chosen["simulated_latency_s"])
    # The database foresees what all pools together do.
    assert abs(chosen["database_against_simulation"]) < 0.1
    run = CliRunner().invoke(main, ["run", str(out)])
    assert run.exit_code == 0, run.output
    text = call(TABLES, tmp_path, kept)
    assert "Chosen plan" in text.stdout
    assert max(map(len, text.stdout.splitlines())) < 200


def test_an_interrupted_search_goes_on(
    tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was simulated before the interrupt is not simulated again."""
    done: list[Unit] = []
    original = offline._simulated

    def stops_at_the_third(scenario: Any, table: Any, unit: Unit) -> Entry:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(unit)
        return original(scenario, table, unit)

    scenario = simcluster.resolve(TABLES)
    monkeypatch.setattr(offline, "_simulated", stops_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        prepared(scenario, cache=tmp_path, jobs=1)
    first = list(done)

    def counts(scenario: Any, table: Any, unit: Unit) -> Entry:
        done.append(unit)
        return original(scenario, table, unit)

    monkeypatch.setattr(offline, "_simulated", counts)
    where = prepared(scenario, cache=tmp_path, jobs=1)
    assert len(first) == 2
    assert sorted(map(repr, done)) == sorted(map(repr, where.database))  # each once
    again = prepared(scenario, cache=tmp_path, jobs=1)
    assert len(done) == len(where.database)
    for unit, entry in where.database.items():
        for metric in METRICS:
            assert np.array_equal(entry.quantiles[metric], again.database[unit].quantiles[metric])
    assert all(path.suffix == ".json" for path in (tmp_path / "runs").iterdir())


def with_own(tmp_path: Path, output_len: int, **others: Any) -> Scenario:
    """The tables with a length table of one's own, in a file that is written over each time."""
    row = {"name": "sharegpt-etalon", "like": "sharegpt-etalon", "source": "us", "levels": [0, 1]}
    row |= {"prompt": [150, 150], "output_by_prompt": [[output_len, output_len]]}
    (tmp_path / "mine.toml").write_text(to_toml({"lengths": [row], **others}))
    workload = {**TABLES["workload"], "lengths": "sharegpt-etalon"}
    catalog = [str(tmp_path / "mine.toml")]
    return simcluster.resolve({**TABLES, "workload": workload, "catalog": catalog})


def test_what_is_kept_serves_the_same_entries_of_the_catalogue_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Units and plans are simulated again for an edited entry, not for one that nobody uses."""
    unit = Unit(WEAK, CHEAP, "nodg", 1, 1)
    plan = ranked(judge(), exhaustive(Space.of(judge())).front)[0]
    calls: list[str] = []

    def stands_in(scenario: Any, table: Any, unit: Unit) -> Entry:
        calls.append("unit")
        return made_up(unit, 8.0, 2.0)

    def simulates(*arguments: Any, **options: Any) -> Any:
        calls.append("plan")
        return original(*arguments, **options)

    original = targets.simulate
    monkeypatch.setattr(offline, "_simulated", stands_in)
    monkeypatch.setattr(targets, "simulate", simulates)

    def called(scenario: Scenario) -> tuple[list[str], float]:
        calls.clear()
        runner = Runner(jobs=1, recorded=RecordedRuns(tmp_path / "runs"))
        offline.build_database(scenario, table_of(scenario), [unit], runner)
        where = dataclasses.replace(judge(), scenario=scenario, runner=runner)
        ((found,),) = where.simulated([plan], [0])
        return list(calls), found.latency_s

    both = ["unit", "plan"]
    first, short_s = called(with_own(tmp_path, 20))
    assert first == both
    price = {"gpu": CHEAP, "per_gpu_hour": 9.0, "currency": "USD", "tier": "on-demand"}
    price |= {"provider": "us", "date": "2026-10", "source": "us"}
    slow = {"name": "slow", "like": "nvlink3", "efficiency": 0.1, "source": "us"}
    assert called(with_own(tmp_path, 20, price=[price], link=[slow])) == ([], short_s)
    again, long_s = called(with_own(tmp_path, 80))
    assert again == both
    assert long_s > 2 * short_s
    part = {"name": CHEAP, "like": CHEAP, "bandwidth_gb_s": 1000, "source": "us"}
    assert called(with_own(tmp_path, 20, gpu=[part]))[0] == both
    scenario = with_own(tmp_path, 20)
    (tmp_path / "mine.toml").unlink()  # the entries travel with the scenario
    assert called(scenario) == ([], short_s)


def test_a_search_by_simulations_goes_on_after_an_interrupt(
    kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An evaluation is one simulation of a plan; after an interrupt none is done again."""
    pytest.importorskip("optuna")
    changes = {"evaluate": "simulation", "sampler": "random", "evaluations": 5, "fractions": 4}
    scenario = simcluster.resolve(with_limits(**changes))
    runner = Runner(jobs=1, recorded=RecordedRuns(tmp_path / "runs"))
    where = dataclasses.replace(prepared(scenario, cache=kept, jobs=1), runner=runner)
    original, done = targets.simulate, []

    def simulates(*arguments: Any, **options: Any) -> Any:
        if len(done) == stop_at:
            raise KeyboardInterrupt
        done.append(arguments[0].document["strategy"])
        return original(*arguments, **options)

    monkeypatch.setattr(targets, "simulate", simulates)
    space, stop_at = Space.of(where), 2
    with pytest.raises(KeyboardInterrupt):
        sampled(space, "random", 5, seed=0, simulate=True)
    assert len(done) == 2
    stop_at = 10_000
    found = sampled(space, "random", 5, seed=0, simulate=True)
    assert found.num_evaluations == 5 == len(done)
    for plan in found.history:  # judged by the simulation with the first seed
        ((again,),) = where.simulated([plan], [0])
        assert plan.latency_s == again.latency_s
        assert plan.latency_s != where.look_up(plan.fractions, plan.fleets).latency_s
    assert len(done) == 5
    # The whole command, with what is kept.
    outcome = cooptimize(scenario, cache=kept, jobs=1, baselines=False)
    assert outcome.found.sampler == "random"
    assert outcome.found.num_evaluations == 5


def test_the_cheapest_mix_for_one_model(kept: Path) -> None:
    """The question of Melange: one model, a length histogram, a latency limit, least cost."""
    tables = with_limits(
        models=[WEAK],
        budget_per_hour=None,
        quality_at_least=None,
        latency_at_most_s=8.0,
        goal="cost",
        objectives=["cost", "latency"],
    )
    tables.pop("quality")
    outcome = cooptimize(simcluster.resolve(tables), cache=kept, jobs=1)
    plan = outcome.chosen.plan
    assert outcome.kept
    assert plan.fractions == (1.0,)
    # Nothing cheaper keeps the limit, by looking up every fleet.
    space = Space.of(outcome.judge)
    cheaper = [f for f in space.fleets(0) if f.cost_per_hour < plan.cost_per_hour - 1e-9]
    assert all(outcome.judge.look_up((1.0,), (f,)).latency_s > 8.0 for f in cheaper)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget_per_hour": 3}, r"is below the cheapest plan within the other limits: .*per hour"),
        ({"quality_at_least": 0.95}, r"no load fractions reach it: the highest quality is 0\.85"),
        ({"latency_at_most_s": 0.01}, r"is below the least latency.* s\. Raise it"),
        ({"models": [WEAK]}, "is one model; routing needs two"),
        ({"models": [WEAK, WEAK]}, "names a model twice"),
        ({"models": [WEAK, "llama-2-7b"]}, "is no model of this scenario"),
        ({"loads": [0.5, 0.25]}, "must rise"),
        ({"sampler": "exhaustive", "evaluate": "simulation"}, "would simulate every"),
        ({"models": []}, "at least one item"),
        ({"sampler": "magic"}, "must be one of 'auto', 'exhaustive'"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(
    tmp_path: Path, kept: Path, changes: dict[str, Any], message: str
) -> None:
    """In one line that says what can."""
    import re

    result = call(with_limits(**changes), tmp_path, kept)
    assert result.exit_code == 1, result.output
    assert result.stderr.count("\n") == 1
    assert re.search(message, result.stderr), result.stderr


def test_a_stock_that_cannot_hold_a_model_says_what_is_missing(tmp_path: Path, kept: Path) -> None:
    """In gigabytes per GPU, where least is missing."""
    tables = {
        **TABLES,
        "cluster": {"gpu": CHEAP, "nodes": 1, "gpus_per_node": 4, "price_per_gpu_hour": 0.89},
        "extra_cluster": [],
    }
    result = call(tables, tmp_path, kept)
    assert "llama-3.1-70b': fits on no GPU type of the stock" in result.stderr
    assert "GB per GPU are missing" in result.stderr


def test_a_plan_needs_prices_and_quality(tmp_path: Path, kept: Path) -> None:
    """A GPU type without a price has no cost; two models without quality no trade-off."""
    tables = {**TABLES, "extra_cluster": [{"gpu": "H20", "nodes": 1}]}
    result = call(tables, tmp_path, kept)
    assert "has no price" in result.stderr or result.exit_code == 0
    tables = {k: v for k, v in TABLES.items() if k != "quality"}
    result = call(tables, tmp_path, kept)
    assert "quality: is missing, and 2 models are to be routed among" in result.stderr
    tables = {k: v for k, v in TABLES.items() if k != "cooptimize"}
    assert "the scenario has no such table" in call(tables, tmp_path, kept).stderr


def test_the_document_of_a_plan_reads_back(kept: Path) -> None:
    """Fractions and pools are those of the plan."""
    where = judge()
    plan = ranked(where, exhaustive(Space.of(where)).front)[0]
    document = tomllib.loads(to_toml(where.scenario_of(plan).document))
    scenario = simcluster.resolve(document)
    strategy: Any = scenario.strategies[0]
    assert strategy.fractions == plan.fractions
    assert {pool.gpu for pool in strategy.pool} == {
        unit.gpu for fleet in plan.fleets for unit, _ in fleet.parts
    }
    assert "cooptimize" not in scenario.document


@pytest.mark.parametrize(
    ("slo", "limit", "expected"),
    [
        ({}, 20.0, {"e2el_s": 20.0, "attainment": 0.95}),  # the limit's own percentile
        ({"e2el_s": 30.0}, 20.0, {"e2el_s": 20.0, "attainment": 0.95}),
        ({"e2el_s": 15.0}, 20.0, {"e2el_s": 15.0, "attainment": 0.95}),
        # The attainment of another target is not touched.
        (
            {"ttft_s": 2.0, "attainment": 0.8},
            20.0,
            {"ttft_s": 2.0, "e2el_s": 20.0, "attainment": 0.8},
        ),
        ({"e2el_s": 15.0}, None, {"e2el_s": 15.0, "attainment": 0.9}),
    ],
)
def test_the_scenario_of_a_plan_has_the_latency_limit_as_a_target(
    slo: dict[str, float], limit: float | None, expected: dict[str, float]
) -> None:
    """So that ``simcluster run`` on the plan says how many requests keep to it."""
    where = judge()
    plan = ranked(where, exhaustive(Space.of(where)).front)[0]
    scenario = simcluster.resolve({**TABLES, "slo": slo})
    table = dataclasses.replace(where.table, latency_at_most_s=limit)
    where = dataclasses.replace(where, scenario=scenario, table=table)
    written = tomllib.loads(to_toml(where.scenario_of(plan).document))["slo"]
    assert {key: written[key] for key in written if key in expected} == expected
    assert {key for key in written if key.endswith("_s")} == {k for k in expected if k[-2:] == "_s"}


@pytest.mark.parametrize("num_waves", [1, 2, 3, 5, 8])
def test_requests_that_end_in_waves_end_at_the_rate_of_the_waves(num_waves: int) -> None:
    """Batches of 100 that end together every 2 s: 50 requests/s, however many waves are seen."""
    ends = np.repeat(2.0 * np.arange(1, num_waves + 1), 100)
    assert offline.finished_per_s(ends) == pytest.approx(50.0)


def test_a_crowd_larger_than_a_batch_measures_an_engine_of_large_batches() -> None:
    """A crowd that one batch of 1024 holds ended at once: 10^8 requests/s, and no memory left."""
    tables = with_limits(models=[WEAK])
    engine = {"profile": "vllm-0.19", "max_num_seqs": 1024, "chunk_size": 8192}
    unit = Unit(WEAK, DEAR, "nodg", 1, 1)
    few, many = (
        offline.throughput_rps(
            simcluster.resolve({**tables, "engine": {**tables["engine"], **engine, **changes}}),
            unit,
            1,
            0,
        )
        for changes in ({"max_num_seqs": 256}, {})
    )
    assert few < many < 3 * few
