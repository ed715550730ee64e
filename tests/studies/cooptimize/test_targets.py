"""Targets of ``[slo]`` in a co-optimisation: verdicts against chance and queues, finalists."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import simcluster
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import main
from simcluster.config import SloConfig, SloPercentiles
from simcluster.studies.cooptimize import report
from simcluster.studies.cooptimize import run as online
from simcluster.studies.cooptimize.database import MASSES, METRICS, Entry, Unit, kinds_of
from simcluster.studies.cooptimize.fleets import Stock
from simcluster.studies.cooptimize.front import undominated
from simcluster.studies.cooptimize.judge import Confirmed, Judge, Plan
from simcluster.studies.cooptimize.run import Outcome, cooptimize, table_of
from simcluster.studies.cooptimize.search import Space, exhaustive
from simcluster.studies.cooptimize.targets import (
    Judged,
    _in_system,
    counted_of_run,
    num_requests,
    verdict_of,
    wanted_of,
)

MODEL, GPU = "llama-3.1-8b", "H100 SXM"
LOADS = (0.2, 0.5, 0.8, 1.0, 1.1)
TABLES: dict[str, Any] = {
    "model": {"name": MODEL},
    "cluster": {"gpu": "H100", "nodes": 1, "gpus_per_node": 4, "price_per_gpu_hour": 2.0},
    "engine": {"max_model_len": 2048},
    "workload": {
        "rate_rps": 20,
        "duration_s": 20,
        "lengths": {"kind": "fixed", "prompt_len": 800, "output_len": 40},
    },
    "slo": {"ttft_s": 0.2, "tpot_s": 0.02, "criterion": "marginal", "attainment": 0.9},
    "cooptimize": {
        "models": [MODEL],
        "latency": "tpot",
        "goal": "cost",
        "objectives": ["cost", "latency"],
        "tp_sizes": [1],
        "loads": LOADS,
        "finalists": 1,
        "seeds": [0, 1],
    },
}


def ran(shares: Any, num: int = 4000, levels: tuple[float, float] = (10.0, 10.0)) -> Judged:
    """A long run with these shares within the targets."""
    return Judged(1.0, math.nan, tuple(shares), num, levels, 1.0)


# Verdicts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("runs", [3, 6, 12])
def test_a_target_that_is_just_met_is_kept_or_missed_in_one_of_a_hundred(runs: int) -> None:
    """Binomial runs whose true share is the wanted one: 0.5 % of the intervals lie on each side."""
    rng = np.random.default_rng(1)
    wanted, num, tries = np.array([0.9]), 4000, 4000
    found = [
        verdict_of([ran([k / num]) for k in rng.binomial(num, 0.9, runs)], wanted).status
        for _ in range(tries)
    ]
    for status in ("kept", "missed"):
        # 0.5 % of 4,000 are 20; at four standard deviations 38
        assert found.count(status) <= 38
    assert set(found) <= {"kept", "missed", "in doubt"}
    better = [
        verdict_of([ran([k / num]) for k in rng.binomial(num, 0.95, runs)], wanted).status
        for _ in range(200)
    ]
    assert better.count("kept") >= 190


def test_every_target_must_be_kept_and_runs_must_agree() -> None:
    """One of two missed is missed; a collapse in one of three runs leaves a doubt."""
    wanted = np.array([0.95, 0.99])
    assert verdict_of([ran([0.99, 0.999])] * 3, wanted).status == "kept"
    assert verdict_of([ran([0.99, 0.97])] * 3, wanted).status == "missed"
    collapse = verdict_of([ran([0.99, 1.0]), ran([0.99, 1.0]), ran([0.2, 1.0])], wanted)
    assert collapse.status == "in doubt"
    assert verdict_of([ran([0.99, 0.97])] * 3, wanted).worst(wanted) == 1


def queue(rho: float, seed: int, num: int = 6000) -> tuple[float, float]:
    """Requests in an M/D/1 queue with a service of 1 s, by Lindley's recursion."""
    gaps = np.random.default_rng(seed).exponential(1 / rho, num)
    arrival = np.cumsum(gaps)
    ends, free = np.empty(num), 0.0
    for i, moment in enumerate(arrival.tolist()):
        free = max(free, moment) + 1.0
        ends[i] = free
    columns = {
        "status": np.full(num, "finished", dtype=object),
        "arrival_s": arrival,
        "last_output_s": ends,
    }
    levels = _in_system(columns, arrival[counted_of_run(arrival)])
    assert levels is not None
    return levels


@pytest.mark.parametrize(
    ("rho", "overloaded"), [(0.5, False), (0.85, False), (1.1, True), (1.3, True)]
)
def test_a_queue_that_grows_is_overloaded_and_a_stable_one_is_not(
    rho: float, overloaded: bool
) -> None:
    """M/D/1 below and above the rate at which its one server is busy."""
    for first in range(0, 30, 3):
        levels = [queue(rho, seed) for seed in range(first, first + 3)]
        status = verdict_of([ran([0.99], levels=pair) for pair in levels], np.array([0.9])).status
        assert (status == "overloaded") is overloaded


def test_long_runs_count_what_a_goodput_search_counts() -> None:
    """4,000 requests, 15 residence times, 15 TTFT targets, of 1 - 0.4 - 1/15 of the run."""
    slo = SloConfig(ttft_s=5.0)
    share = 8 / 15
    assert share * num_requests(1.0, 3.0, slo) == pytest.approx(4000, abs=1)
    assert share * num_requests(100.0, 3.0, slo) == pytest.approx(100 * 15 * 5, abs=1)
    assert share * num_requests(100.0, 30.0, slo) == pytest.approx(100 * 15 * 30, abs=1)


def test_what_is_wanted_is_by_the_percentiles() -> None:
    """Each target that is set has its share; without targets there is none."""
    slo = SloConfig(ttft_s=1, tpot_s=1, attainment=0.8)
    assert wanted_of(slo).tolist() == [0.8]
    own = dataclasses.replace(slo, criterion="marginal", percentiles=SloPercentiles(ttft=95))
    assert wanted_of(own).tolist() == [0.95, 0.8]
    assert wanted_of(SloConfig()).size == 0


# The database -----------------------------------------------------------------------------------


def entry(capacity_rps: float = 10.0) -> Entry:
    """A unit that keeps TTFT up to a load of 0.8, by the database."""
    levels = np.cumsum(MASSES) - MASSES / 2
    rows = [(1 + levels) / (1.3 - load) for load in LOADS]
    quantiles = {metric: 0.01 * np.array([rows, rows]) for metric in METRICS}
    shares = np.array([[[0.999, 0.99], [0.99, 0.99], [0.95, 0.99], [0.5, 0.99]]] * 2)
    return Entry(Unit(MODEL, GPU, "chunked", 1, 1), capacity_rps, (1, 4), quantiles, shares)


def test_shares_are_those_simulated_and_none_when_saturated() -> None:
    """At the loads of the database as stored, falling in between, 0 from saturation on."""
    one = entry()
    assert one.within(0.5, 1, LOADS) == pytest.approx([0.99, 0.99])
    assert one.within(0.95, 4, LOADS) == pytest.approx([0.5, 0.99])
    between = one.within(0.65, 2, LOADS)
    assert 0.95 < between[0] < 0.99
    assert one.within(0.01, 1, LOADS) == pytest.approx([0.999, 0.99])
    assert one.within(1.0, 1, LOADS).tolist() == [0.0, 0.0]
    assert 0 < one.within(0.99, 1, LOADS)[1] < 0.5


def judge(**slo: Any) -> Judge:
    """A judge whose database has one kind of unit."""
    scenario = simcluster.resolve({**TABLES, "slo": {**TABLES["slo"], **slo}})
    one = entry()
    stock = Stock(scenario.environment.clusters)
    return Judge(scenario, table_of(scenario), {one.unit: one}, stock, None, 20.0)


def test_the_search_leaves_out_plans_that_miss_a_target_by_the_database() -> None:
    """20 requests/s on units of 10: three have a load of 2/3 and keep 90 %, four 99 %."""
    assert [p.fleets[0].parts[0][1] for p in exhaustive(Space.of(judge())).front] == [3, 4]
    strict = exhaustive(Space.of(judge(attainment=0.985))).front
    assert [plan.fleets[0].parts[0][1] for plan in strict] == [4]
    free = exhaustive(Space.of(judge(attainment=0.5))).front
    assert len(free) == 2  # two are saturated, whatever share is wanted
    for plan in free:
        seen = judge().look_up(plan.fractions, plan.fleets)
        assert seen.shares == pytest.approx(plan.shares)
        assert seen.latency_s == pytest.approx(plan.latency_s)


# Finalists --------------------------------------------------------------------------------------


def confirmed_by(monkeypatch: pytest.MonkeyPatch, holds: Any) -> None:
    """Let simulations of plans say what `holds` says of their number of units."""

    def confirm(self: Judge, plans: list[Plan]) -> list[Confirmed]:
        return [
            Confirmed(plan, runs, verdict_of(runs, wanted_of(self.slo)))
            for plan in plans
            for runs in ((holds(plan.fleets[0].parts[0][1]),) * 3,)
        ]

    monkeypatch.setattr(Judge, "confirm", confirm)


def test_an_overloaded_finalist_is_rejected_and_the_report_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By the database three units do, as simulated only four."""
    good, grows = ran([0.99, 0.99]), ran([0.99, 0.99], levels=(10.0, 90.0))
    confirmed_by(monkeypatch, lambda count: good if count == 4 else grows)
    where = judge()
    space = Space.of(where)
    found = exhaustive(space)
    finalists = online._confirmed(where, found.front, online._again(space, found))
    assert [one.plan.fleets[0].parts[0][1] for one in finalists] == [4, 3]
    assert where.keeps(finalists[0])
    assert not where.keeps(finalists[1])
    nothing = {MODEL: np.array([1.0])}
    outcome = Outcome(where, found, finalists, finalists[0], True, {}, nothing, 0, 0, 0)
    text = report.text(outcome)
    assert "finalist 2 is overloaded and rejected" in text
    assert "requests in the system grow from 10 to 90" in " ".join(text.split())
    assert "Targets: TTFT ≤ 0.200 s, TPOT ≤ 20.0 ms for 90 % of the requests" in text
    data = report.as_json(outcome)
    assert data["finalists"][1]["targets"]["status"] == "overloaded"
    assert data["chosen"]["targets"]["within"]["ttft"]["wanted"] == 0.9


def test_no_plan_is_one_line_with_the_target_and_by_how_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of plans that all miss as simulated the best is named."""
    confirmed_by(monkeypatch, lambda count: ran([0.2 * count, 0.99]))
    where = judge()
    space = Space.of(where)
    found = exhaustive(space)
    finalists = online._confirmed(where, found.front, online._again(space, found))
    assert not where.keeps_targets(finalists[0])
    line = str(online._missed(where, finalists))
    assert line.startswith("slo.ttft_s = 0.2: none of the 2 plans simulated keeps it: the best, ")
    assert "4 H100 SXM (4 x chunked TP1), has 80 % of the requests within" in line
    assert "90 % are wanted" in line


def test_the_front_has_no_plan_that_another_beats() -> None:
    """Among those that keep the targets."""
    front = exhaustive(Space.of(judge())).front
    assert len(undominated(np.array([[p.cost_per_hour, p.latency_s] for p in front]))) == len(front)


# From file to plan ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of simulations that the tests share."""
    return tmp_path_factory.mktemp("cache")


def test_the_chosen_plan_keeps_the_targets_in_a_run_of_its_own(kept: Path) -> None:
    """Requests of 800 + 40 tokens at 20/s: shares as reported, counted here from the frames."""
    outcome = cooptimize(simcluster.resolve(TABLES), cache=kept, jobs=1)
    chosen = outcome.chosen
    assert outcome.kept
    assert chosen.verdict is not None
    assert chosen.verdict.status == "kept"
    assert len(chosen.runs) >= 3  # two seeds are given
    num = outcome.judge.long_run(chosen.plan)
    plan = simcluster.resolve(
        outcome.judge.scenario_of(chosen.plan).document, {"workload.num_requests": num}
    )
    requests = simcluster.simulate(plan, seed=0).requests
    first, last = requests.arrival_s.min(), requests.arrival_s.max()
    place = (requests.arrival_s - first) / (last - first)
    counted = requests[(place >= 0.4) & (place <= 14 / 15)]
    assert chosen.runs[0].num_counted == len(counted) >= 0.9 * 4000
    assert chosen.runs[0].shares == (
        pytest.approx((counted.ttft_s <= 0.2).mean()),
        pytest.approx((counted.tpot_s <= 0.02).mean()),
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slo.ttft_s": 0.001}, "slo.ttft_s = 0.001: no plan within the limits keeps it: by the"),
        ({"slo.attainment": 1.0}, "slo.attainment = 1.0: no plan keeps every single request"),
    ],
)
def test_targets_that_cannot_be_kept_are_refused(
    tmp_path: Path, kept: Path, changes: dict[str, Any], message: str
) -> None:
    """In one line that names the true cause."""
    file = tmp_path / "scenario.toml"
    file.write_text(to_toml(TABLES))
    settings = [
        x for key, value in changes.items() for x in ("--set", f"{key}={json.dumps(value)}")
    ]
    arguments = ["cooptimize", str(file), "--cache", str(kept), "--jobs", "1", *settings]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_pools_schedule_as_the_engine_does() -> None:
    """Unless strategies are named."""
    for profile, kind in (("vllm-0.19", "chunked"), ("vllm-0.7", "nodg")):
        scenario = simcluster.resolve({**TABLES, "engine": {"profile": profile}})
        assert kinds_of(scenario, table_of(scenario)) == (kind,)
    named = simcluster.resolve(TABLES, {"cooptimize.strategies": ["padg"]})
    assert kinds_of(named, table_of(named)) == ("padg",)


def test_an_interrupt_says_where_the_simulations_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And that the same command resumes."""

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(online, "cooptimize", interrupted)
    file = tmp_path / "scenario.toml"
    file.write_text(to_toml(TABLES))
    result = CliRunner().invoke(main, ["cooptimize", str(file), "--cache", str(tmp_path / "kept")])
    assert result.exit_code != 0
    assert f"are kept in {tmp_path / 'kept' / 'runs'}" in result.stderr
    assert "The same command resumes." in result.stderr
