"""Strategies whose instances come and go: GPUs held, cost, bounds, tables, pictures."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import simcluster
from helpers.outcomes import outcome_of_odds
from helpers.scenarios import small_scenario
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import main
from simcluster.errors import DataError
from simcluster.frames.goodput import goodput_table
from simcluster.frames.metrics import gpu_hours, mean_gpus
from simcluster.runs.executor import Runner
from simcluster.scenario.file import resolve
from simcluster.scenario.rank_table import RankTable
from simcluster.scenario.scenario import Scenario
from simcluster.strategies import FuDG, NoDG, PaDG, Strategy
from simcluster.strategies.scaling import MitosisSettings, ThresholdSettings
from simcluster.studies import bestserve
from simcluster.studies.goodput import Cell, find, runs, simulate_cell, tables
from simcluster.studies.goodput.rules import Settings
from simcluster.studies.rank import finals, race, report, rounds, screen
from simcluster.studies.rank.contest import Contest
from simcluster.studies.rank.rank import rank
from simcluster.studies.work import Work

PRICE = 2.0
ALWAYS_UP = {"up": 1e-6, "down": 0.0, "interval_s": 0.5, "cooldown_s": 0.5, "start_up_s": 0.25}
"""One more instance every half second while any request is there; none ever leaves."""
DOCUMENT = small_scenario(
    {
        "name": "auto",
        "kind": "nodg",
        "tp_size": 2,
        "instances": 1,
        "autoscale": {**ALWAYS_UP, "max_instances": 3},
    },
    {"name": "three", "kind": "nodg", "tp_size": 2, "instances": 3},
    cluster={"gpus_per_node": 8, "price_per_gpu_hour": PRICE},
    engine={"max_model_len": 2048},
    workload={
        "lengths": {"kind": "fixed", "prompt_len": 400, "output_len": 5},
        "num_requests": 400,
    },
    slo={"ttft_s": 0.3, "tpot_s": 0.05},
    sweep={"rates_rps": [20, 60]},
    run={"seeds": [0, 1]},
)
RAMP_S = 0.5 + 0.5 + 0.25
"""The first look, the second, and a start-up."""


# The integral -----------------------------------------------------------------------------------


def frame(*held: tuple[float, float, int]) -> dict[str, np.ndarray]:
    """Return instances that hold GPUs from, until (NaN: to the end), how many."""
    taken, freed, gpus = zip(*held, strict=True)
    return {"taken_s": np.array(taken), "freed_s": np.array(freed), "num_gpus": np.array(gpus)}


def test_gpus_held_are_an_integral_over_time() -> None:
    """By hand: 2 GPUs throughout, 4 for three of ten seconds, 1 from the middle on."""
    held = frame((0.0, math.nan, 2), (5.0, 8.0, 4), (7.0, math.nan, 1), (12.0, 13.0, 8))
    assert mean_gpus(held, 2.0, 12.0) == pytest.approx((2 * 10 + 4 * 3 + 1 * 5) / 10)
    assert gpu_hours(held, 12.0, 2.0) == pytest.approx((2 * 10 + 4 * 3 + 1 * 5) / 3600)
    assert gpu_hours(held, 12.0) == pytest.approx((2 * 12 + 4 * 3 + 1 * 5) / 3600)
    # At one moment: those held then.
    assert [mean_gpus(held, t, t) for t in (4.0, 5.0, 7.5, 8.0, 12.5)] == [2, 6, 7, 3, 11]


@given(st.floats(0.0, 1e4), st.floats(1e-3, 1e4), st.integers(1, 64))
def test_gpus_held_throughout_are_a_whole_number(start: float, length: float, gpus: int) -> None:
    """To the last bit: a table shows 8, not 7.9999."""
    held = frame((0.0, math.nan, gpus), (0.0, 2 * (start + length), gpus))
    assert mean_gpus(held, start, start + length) == 2 * gpus


def test_gpus_held_in_a_run_are_those_of_its_scaling_log() -> None:
    """The log of starts and departures, added up second by second, is the other way to count."""
    scenario = resolve(
        DOCUMENT, {"strategy.auto.autoscale.up": 1.0, "strategy.auto.autoscale.down": 0.5}
    )
    result = simcluster.simulate(scenario, strategy="auto", rate_rps=20.0, seed=3)
    log, end = result.columns["scaling"], result.end_s
    changes = [(0.0, 2)]
    for event, time in zip(log["event"], log["time_s"], strict=True):
        changes += [(float(time), {"start": 2, "freed": -2}.get(event, 0))]
    assert sum(change < 0 for _, change in changes) > 3
    start = 0.3 * end
    integral = sum(change * (end - max(time, start)) for time, change in changes)
    found = mean_gpus(result.columns["instances"], start, end)
    assert found == pytest.approx(integral / (end - start))
    assert 2 < found < 6


def fifty_rps(_: Scenario, cells: Sequence[Cell]) -> list[runs.Outcome]:
    """Return runs of strategies with a goodput of 50 requests/s, which hold 4 GPUs above it."""
    came = []
    for cell in cells:
        odds = math.log(9) - 12 * math.log(cell.rate_rps / 50.0)
        gpus = 2.0 if cell.rate_rps < 50.0 else 4.0
        came.append(outcome_of_odds(odds, statistics={"mean_gpus": gpus}))
    return came


# The goodput of a known number of GPUs ----------------------------------------------------------


def test_cost_counts_the_gpus_that_an_autoscaler_holds() -> None:
    """It starts with 2 GPUs and holds 6 from the first seconds on: the cost is that of 6."""
    found = find(resolve(DOCUMENT), tolerance=0.3, max_requests=1000, jobs=1)
    auto, three = tables.as_json(found)["goodput"]
    assert (auto["num_gpus"], three["num_gpus"]) == (6, 6)
    assert auto["mean_gpus"] == three["mean_gpus"] == 6.0
    for row in (auto, three):
        rate = row["goodput_rps"]["value"]
        assert row["goodput_rps_per_gpu"]["value"] == pytest.approx(rate / 6)
        assert row["requests_per_cost"]["value"] == pytest.approx(rate * 3600 / (6 * PRICE))
        tokens = 5  # of every request
        cost = 1e6 / (rate * tokens) * 6 * PRICE / 3600
        assert row["cost_per_million_output_tokens"]["value"] == pytest.approx(cost)
    # From the same instances the same goodput, but for the order in which they came.
    low, high = three["goodput_rps"]["low"], three["goodput_rps"]["high"]
    assert 0.95 * low < auto["goodput_rps"]["value"] < 1.05 * high
    assert found.ramps_s == {"auto": pytest.approx(RAMP_S)}


def test_gpus_held_lie_between_those_of_the_two_rates() -> None:
    """Where one rate holds 2 GPUs and the other 4, the goodput between them holds 2 to 4."""
    found = find(resolve(DOCUMENT), tolerance=0.05, simulate=fifty_rps)
    stage = found.verdicts["auto"].stages[-1]
    assert stage.low.rate_rps < 50.0 < stage.high.rate_rps
    low, high = math.log(stage.low.rate_rps), math.log(stage.high.rate_rps)
    place = (math.log(50.0) - low) / (high - low)
    assert found.mean_gpus("auto") == pytest.approx(2 + 2 * place, abs=1e-3)
    assert found.mean_gpus("three") == 6.0, "nobody asks the runs of a strategy that stays as it is"
    text = tables.as_text(found)
    assert f"{2 + 2 * place:.2f} of 6" in text
    assert "Figures per GPU and per cost count the GPU-hours held" in " ".join(text.split())


def test_runs_that_do_not_say_how_many_gpus_they_held_have_no_cost() -> None:
    """Not the cost of some other number."""

    def simulate(_: Scenario, cells: Sequence[Cell]) -> list[runs.Outcome]:
        return [
            dataclasses.replace(one, statistics={**one.statistics, "mean_gpus": math.nan})
            for one in runs.simulate_cells(scenario, cells, Runner(jobs=1))
        ]

    scenario = resolve(DOCUMENT)
    found = find(scenario, tolerance=0.3, max_requests=1000, simulate=simulate)
    auto, three = tables.as_json(found)["goodput"]
    assert auto["goodput_rps"] is not None
    assert auto["requests_per_cost"] is auto["goodput_rps_per_gpu"] is auto["mean_gpus"] is None
    assert three["requests_per_cost"] is not None
    assert tables.as_text(found)


# Bounds and starts ------------------------------------------------------------------------------


def scaled(most: int | None, **changes: Any) -> ThresholdSettings:
    """Return a threshold autoscaler."""
    return ThresholdSettings(**{**ALWAYS_UP, "max_instances": most, **changes})


MITOSIS = MitosisSettings(lower=1, upper=2, max_instances=4, interval_s=1.0, cooldown_s=2.5)
PAIRS: dict[str, tuple[Strategy, Strategy]] = {
    "nodg": (
        NoDG(name="a", instances=1, autoscale=scaled(3)),
        NoDG(name="a", instances=3),
    ),
    "as many as fit": (
        NoDG(name="a", instances=1, tp_size=2, autoscale=scaled(None)),
        NoDG(name="a", instances=4, tp_size=2),
    ),
    "more than fit": (
        NoDG(name="a", instances=2, tp_size=4, autoscale=scaled(9)),
        NoDG(name="a", instances=2, tp_size=4),
    ),
    "fewer than at the start": (
        NoDG(name="a", instances=3, autoscale=scaled(2)),
        NoDG(name="a", instances=3),
    ),
    "padg": (PaDG(name="a", instances=2, mitosis=MITOSIS), PaDG(name="a", instances=4)),
}


@pytest.mark.parametrize("case", PAIRS)
def test_an_autoscaled_strategy_is_bounded_as_its_most_instances(case: str) -> None:
    """The oracle is the strategy that has them all the time."""
    auto, fixed = PAIRS[case]
    scenario = resolve(DOCUMENT)
    bounds = screen.Screen(scenario.environment, screen.Lengths.of(scenario))
    one, other = bounds.bound(auto), bounds.bound(fixed)
    assert (one.total_rps, one.num_gpus) == (other.total_rps, other.num_gpus)
    assert (one.prefill_rps, one.decode_rps) == (other.prefill_rps, other.decode_rps)
    assert other.ramp_s is None
    assert one.ramp_s is not None
    first, second = runs.guess(scenario, auto), runs.guess(scenario, fixed)
    assert first.rate_rps == pytest.approx(second.rate_rps)
    assert first.num_gpus == second.num_gpus
    assert (first.ramp_s, second.ramp_s) == (one.ramp_s, None)


@pytest.mark.parametrize(
    ("case", "ramp_s"),
    [
        ("nodg", RAMP_S),
        ("as many as fit", RAMP_S + 0.5),
        ("more than fit", 0.0),
        ("fewer than at the start", 0.0),
    ],
)
def test_the_time_to_start_all_instances_is_known(case: str, ramp_s: float) -> None:
    """One at each look, and the last one's start-up; a cooldown of 2.5 looks is three looks."""
    scenario = resolve(DOCUMENT)
    assert runs.guess(scenario, PAIRS[case][0]).ramp_s == pytest.approx(ramp_s)
    start_up = scenario.environment.model.spec.num_params * 2 / 375e6
    padg = runs.guess(scenario, PAIRS["padg"][0]).ramp_s
    assert padg == pytest.approx(1.0 + 3.0 + start_up)


@pytest.mark.parametrize("split", [(1, 3), (2, 2), (3, 1)])
def test_scaled_pools_are_bounded_by_no_less_than_any_split(split: tuple[int, int]) -> None:
    """Of the GPUs that there are, whatever the autoscalers come to."""
    changes = {"cluster.nodes": 4, "cluster.gpus_per_node": 1, "cluster.network": "10gbe"}
    scenario = resolve(DOCUMENT, changes)
    pools: dict[str, Any] = {"placement": "inter-node"}
    rules = {"prefill_autoscale": scaled(None), "decode_autoscale": scaled(None)}
    auto = FuDG(name="a", prefill_instances=1, decode_instances=1, **rules, **pools)
    fixed = FuDG(name="a", prefill_instances=split[0], decode_instances=split[1], **pools)
    bounds = screen.Screen(scenario.environment, screen.Lengths.of(scenario))
    assert bounds.bound(auto).total_rps >= bounds.bound(fixed).total_rps
    assert bounds.bound(auto).num_gpus == 4


def test_nothing_is_counted_before_all_instances_could_have_started() -> None:
    """Scouts too are long enough that the part left out is as long as the ramp."""
    asked: list[Cell] = []

    def simulate(scenario: Scenario, cells: Sequence[Cell]) -> list[runs.Outcome]:
        asked.extend(cells)
        return fifty_rps(scenario, cells)

    slow = {"strategy.auto.autoscale.start_up_s": 30.0}
    found = find(resolve(DOCUMENT, slow), tolerance=0.1, simulate=simulate)
    ramp_s = found.ramps_s["auto"]
    assert ramp_s == pytest.approx(31.0)
    lengths = {
        n: [c.num_requests / c.rate_rps for c in asked if c.strategy == n]
        for n in ("auto", "three")
    }
    assert min(lengths["auto"]) * runs.WARMUP >= ramp_s
    assert min(lengths["three"]) * runs.WARMUP < ramp_s
    assert found.verdicts["auto"].status == "found"
    assert "to start at least" not in tables.as_text(found)


def test_runs_too_short_for_the_instances_to_start_are_said() -> None:
    """Where the longest run is shorter than that."""
    scenario = resolve(DOCUMENT, {"strategy.auto.autoscale.start_up_s": 60.0})
    found = find(scenario, tolerance=0.3, max_requests=1000, jobs=1)
    text = " ".join(tables.as_text(found).split())
    assert "all instances take 61 s to start at least, so it may carry more: raise" in text


def test_settings_without_a_ramp_have_the_scouts_of_before() -> None:
    """400 requests at any rate."""
    assert [Settings(target=0.9).num_scout_requests(rate) for rate in (0.1, 1e4)] == [400, 400]
    assert Settings(target=0.9, scout_s=100.0).num_scout_requests(10.0) == 1000
    assert Settings(target=0.9, scout_s=1e9).num_scout_requests(10.0) == 200_000


# Rankings ---------------------------------------------------------------------------------------


def test_a_ranking_counts_the_gpus_held(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Others are measured against requests per GPU held, and the cost is that of those."""
    monkeypatch.setattr(finals, "LONGEST", 2000)
    table = RankTable(num_gpus=(2,), strategies=("nodg",), tp_sizes=(2,), tolerance=0.3)
    ranking = rank(resolve(DOCUMENT), table, jobs=1)
    by_name = {c.name: c for c in ranking.candidates}
    auto, three, one = (by_name[name] for name in ("auto", "three", "1m-tp2"))
    assert (auto.num_gpus, three.num_gpus, one.num_gpus) == (6, 6, 2)
    assert auto.mean_gpus == three.mean_gpus == 6.0
    assert auto.cost_per_hour == 6 * PRICE
    assert auto.per_cost == pytest.approx(auto.goodput_rps * 3600 / (6 * PRICE))
    assert auto.goodput_rps == pytest.approx(three.goodput_rps, rel=0.1)
    assert auto.goodput_rps > 2 * one.goodput_rps, "bounded by its most instances"
    assert "GPUs x of y" not in report.as_text(ranking)
    some = dataclasses.replace(auto, mean_gpus=4.5)
    rest = tuple(c for c in ranking.candidates if c.name != "auto")
    changed = dataclasses.replace(ranking, candidates=(some, *rest))
    text = report.as_text(changed)
    assert "4.50 of 6" in text
    assert "GPUs x of y" in text
    row = report.as_json(changed)["candidates"][0]
    assert (row["mean_gpus"], row["cost_per_hour"]) == (4.5, 4.5 * PRICE)
    assert some in changed.cost_front()
    assert report.write(changed, tmp_path / "out")


def test_candidates_are_measured_against_what_is_carried_per_gpu_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One GPU held of six at most carries 10: others of one GPU must carry as much, not 2."""
    dull: dict[str, float] = {}

    def search(start: Cell, _: float, *, uninteresting_rps: float, **__: float) -> race.Search:
        dull[start.strategy] = uninteresting_rps
        seen = race.RaceRun(
            rate_rps=10.0,
            num_requests=1,
            attainment=0.95,
            ttft_attainment=0.95,
            tpot_attainment=1.0,
            ttft_s=0.1,
            tpot_s=0.01,
            residence_s=1.0,
            peak_kv_usage=0.1,
            num_preemptions=0,
            mean_gpus=1.0 if start.strategy == "auto" else 6.0,
        )
        yield from ()
        return race.Crossing(
            name=start.strategy,
            goodput_rps=10.0,
            low_rps=10.0,
            high_rps=11.0,
            probes=(seen,),
            num_requests=1,
        )

    monkeypatch.setattr(rounds, "search", search)
    names = ["auto", *(f"fixed{k}" for k in range(9))]
    some = [NoDG(name=n, autoscale=scaled(6) if n == "auto" else None) for n in names]
    scenario = dataclasses.replace(resolve(DOCUMENT), strategies=tuple(some))
    bound = screen.Screen(scenario.environment, screen.Lengths.of(scenario)).bound(some[1])
    bounds = {n: dataclasses.replace(bound, total_rps=50.0, num_gpus=6) for n in names}
    bounds["auto"] = dataclasses.replace(bounds["auto"], total_rps=60.0, ramp_s=1.0)
    rounds.Rounds(Contest(scenario, bounds, Runner(jobs=1), Work())).first_round()
    later = [rate for rate in dull.values() if rate > 0]
    assert len(later) > 3
    assert later == pytest.approx([0.65 * 6 * 10.0] * len(later))


def test_bestserve_does_not_know_autoscaled_strategies() -> None:
    """Its estimator would take them as they are at the start."""
    assert not bestserve.knows(NoDG(name="a", autoscale=scaled(2)))
    assert bestserve.knows(NoDG(name="a", scheduler="prefill-priority"))
    pools = FuDG(name="a", placement="inter-node", decode_autoscale=scaled(2))
    assert not bestserve.knows(pools)
    assert bestserve.knows(dataclasses.replace(pools, decode_autoscale=None))


# Comparisons ------------------------------------------------------------------------------------


SWEEP = {
    "strategy": np.array(["auto"] * 4, dtype=object),
    "rate_rps": np.array([2.0, 4.0, 2.0, 4.0]),
    "seed": np.array([0, 0, 1, 1]),
    "num_gpus": np.array([4, 8, 2, 8]),
    "mean_gpus": np.array([3.0, 7.0, 2.0, 6.0]),
    # means 1.0 and 0.8: the goodput at 90 % is half-way, 3 requests/s
    "slo_attainment": np.array([1.0, 0.7, 1.0, 0.9]),
}


@pytest.mark.parametrize(
    ("target", "goodput", "held"),
    [(0.9, 3.0, (2.5 + 6.5) / 2), (0.5, 4.0, 6.5), (1.1, 2.0, 2.5)],
    ids=["between", "above", "below"],
)
def test_a_table_counts_the_gpus_held_at_the_goodput(
    target: float, goodput: float, held: float
) -> None:
    """Over the seeds 2.5 and 6.5 are held at the two rates, 8 at most; a GPU-hour costs 2.5."""
    for sweep in (SWEEP, pd.DataFrame(SWEEP)):
        table = goodput_table(sweep, target, price_per_gpu_hour=2.5)
        assert table["num_gpus"].tolist() == [8]
        assert table["mean_gpus"] == pytest.approx([held])
        assert table["goodput_rps"] == pytest.approx([goodput])
        assert table["goodput_rps_per_gpu"] == pytest.approx([goodput / held])
        assert table["requests_per_cost"] == pytest.approx([goodput * 3600 / (held * 2.5)])


def test_two_runs_at_one_rate_and_seed_are_refused() -> None:
    """They are variants under one name; a mean of both would be neither."""
    twice = SWEEP | {"seed": np.array([0, 0, 0, 1])}
    with pytest.raises(DataError, match="'auto' has 2 runs at 2 requests/s with seed 0"):
        goodput_table(twice, 0.9)


def test_an_autoscaled_strategy_is_compared_shown_and_drawn(tmp_path: Path) -> None:
    """Over two rates and two seeds that end with different numbers of GPUs."""
    changes = {"strategy.auto.autoscale.up": 3.0, "strategy.auto.autoscale.down": 0.2}
    scenario = tmp_path / "s.toml"
    scenario.write_text(to_toml(dict(resolve(DOCUMENT, changes).document)))
    folder = tmp_path / "out"
    shown = CliRunner().invoke(
        main, ["compare", str(scenario), "--jobs", "1", "-o", str(folder)], catch_exceptions=False
    )
    assert shown.exit_code == 0
    sweep = simcluster.read(folder).sweep.query("strategy == 'auto'")
    assert sweep["num_gpus"].min() < sweep["num_gpus"].max()
    row = next(line.split() for line in shown.stdout.splitlines() if line.startswith("auto"))
    assert row[2] == "of"
    assert int(row[3]) == sweep["num_gpus"].max()
    assert sweep["mean_gpus"].min() <= float(row[1]) <= sweep["mean_gpus"].max()
    assert "count the GPU-hours held" in " ".join(shown.stdout.split())
    assert max(map(len, shown.stdout.splitlines())) <= 100
    drawn = CliRunner().invoke(main, ["plot", str(folder)], catch_exceptions=False)
    assert drawn.exit_code == 0
    assert (folder / "figures" / "goodput.png").stat().st_size > 0
    again = ["compare", str(scenario), "--jobs", "1", "-o", str(folder), "--json"]
    plain = json.loads(CliRunner().invoke(main, again, catch_exceptions=False).stdout)
    auto = plain["goodput"][0]
    assert auto["goodput_rps_per_gpu"] == pytest.approx(auto["goodput_rps"] / auto["mean_gpus"])
    hours = auto["mean_gpus"] * PRICE
    assert auto["requests_per_cost"] == pytest.approx(auto["goodput_rps"] * 3600 / hours)


def test_one_rate_and_a_single_run_say_the_gpus_held(tmp_path: Path) -> None:
    """With what the numbers mean."""
    scenario = tmp_path / "s.toml"
    scenario.write_text(to_toml(dict(resolve(DOCUMENT, {"workload.num_requests": 60}).document)))
    options = ["--jobs", "1", "--set", "sweep.rates_rps=[20]"]
    text = CliRunner().invoke(main, ["compare", str(scenario), *options]).stdout
    assert " of 6 " in text
    assert "mean over the measured window" in " ".join(text.split())
    single = CliRunner().invoke(main, ["run", str(scenario), "--rate", "20"]).stdout
    assert "GPUs (held, mean over the window; at most 6 GPUs) at 20 requests/s" in single


def test_a_run_says_the_gpus_it_held_without_its_warm_up() -> None:
    """A cell of a search and a row of a sweep by the same integral."""
    scenario = resolve(DOCUMENT)
    cell = Cell("auto", 50.0, 7, 100)  # two seconds, of which 0.8 are left out
    result = simcluster.simulate(
        resolve(DOCUMENT, {"workload.num_requests": 100}), strategy="auto", rate_rps=50.0, seed=7
    )
    end = float(result.columns["requests"]["arrival_s"][-1])
    expected = 2 + 2 * (end - 0.5) / end + 2 * (end - 1.0) / end
    assert mean_gpus(result.columns["instances"], 0.0, end) == pytest.approx(expected)
    late = 2 + 2 + 2 * (end - 1.0) / (0.6 * end)
    assert simulate_cell(scenario, cell).statistics["mean_gpus"] == pytest.approx(late)
