"""Goodputs of every kind of arrivals: against theory, and what is said of each."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from helpers.outcomes import outcome_of_odds
from helpers.scenarios import small_scenario
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import main
from simcluster.errors import ConfigError, SimclusterError
from simcluster.runs.cell import scope_of
from simcluster.runs.simulate import run, workload_of
from simcluster.scenario.file import resolve
from simcluster.scenario.scenario import Scenario
from simcluster.strategies import NoDG
from simcluster.studies.goodput import Cell, Found, Outcome, find, tables
from simcluster.studies.goodput.arrivals import (
    in_whole_users,
    load_of,
    typical_lengths,
    whole_users,
    with_chance_of_trace,
)
from simcluster.studies.goodput.by_rate import compare_by_rate
from simcluster.studies.goodput.estimate import Interval
from simcluster.studies.goodput.pairs import Compared
from simcluster.studies.goodput.rules import RULES, Settings
from simcluster.studies.goodput.runs import outcome, simulate_cell
from simcluster.studies.goodput.users import search_users
from simcluster.testing import specs
from simcluster.testing.step_times import ConstantStepTime, same_for_all

ONE = {"name": "one", "kind": "nodg"}
FIXED = {"lengths": {"kind": "fixed", "prompt_len": 300, "output_len": 20}}
Answer = Callable[[Scenario, Sequence[Cell]], list[Outcome]]


def scenario_with(workload: dict[str, Any], **tables: Any) -> Scenario:
    """Return a small scenario with these requests alone."""
    document = small_scenario(ONE, **tables)
    return resolve({**document, "workload": workload})


def poisson_trace(place: Path, num: int, seed: int, *, tokens: str = "300,20") -> str:
    """Write a trace of Poisson arrivals of 5 requests/s; return its path."""
    times = np.cumsum(np.random.default_rng(seed).exponential(0.2, num))
    rows = "".join(f"{time:.6f},{tokens}\n" for time in times.tolist())
    place.write_text(f"arrival_s,prompt_len,output_len\n{rows}")
    return str(place)


# Against theory ---------------------------------------------------------------------------------


@pytest.fixture
def by_lindley(md1: Any) -> Answer:
    """One server of 1 s per request, by Lindley's recursion on the requests of the cells."""

    def of(scenario: Scenario, cells: Sequence[Cell]) -> list[Outcome]:
        outcomes = []
        for cell in cells:
            drawn = workload_of(scenario, cell)
            left = drawn.arrival_s + md1.lindley(drawn.arrival_s) + 1
            columns: dict[str, Any] = {
                "arrival_s": drawn.arrival_s,
                "first_output_s": left,
                "last_output_s": left,
                "prompt_len": drawn.prompt_len,
                "output_len": drawn.output_len,
                "num_output_tokens": drawn.output_len,
                "status": np.full(len(left), "finished", dtype=object),
            }
            assert cell.rate_rps is not None
            outcomes.append(outcome(columns, scenario, cell.rate_rps))
        return outcomes

    return of


def test_the_interval_of_a_poisson_trace_holds_the_goodput_of_theory(
    md1: Any, by_lindley: Answer, tmp_path: Path
) -> None:
    """M/D/1, waits within 5 s for 90 %; that of the runs alone is too narrow by what is said."""
    path = poisson_trace(tmp_path / "t.csv", 20_000, 1)
    scenario = scenario_with({"trace": path}, slo={"ttft_s": 6.0, "tpot_s": None})
    found = find(scenario, seed=4, tolerance=0.03, simulate=by_lindley)
    verdict = found.verdicts["one"]
    assert verdict.estimate is not None
    ends = verdict.estimate.interval
    truth = md1.true_goodput(5.0, 0.9)
    assert ends.low <= truth <= ends.high
    chance = found.chances["one"].half_width
    assert 0.01 < chance < verdict.estimate.half_width < 0.05
    stage = verdict.stages[-1]
    assert stage.estimate is not None
    assert stage.estimate.half_width < chance
    again = find(scenario, seed=4, tolerance=0.03, simulate=by_lindley)
    assert repr(again.verdicts) == repr(found.verdicts)
    text, plain = tables.as_text(found).replace("\n  ", " "), tables.as_json(found)
    assert "the interval is that of another trace of 20,000 requests" in text
    assert "the trace's own chance alone makes" in text
    assert plain["unit"] == "requests/s"
    assert plain["goodput"][0]["chance_of_trace"]["half_width"] == chance


def test_intervals_over_traces_hold_the_goodput_of_theory(md1: Any) -> None:
    """Of 40 short traces; with the chance of the runs alone half of the intervals do not."""
    settings = md1.Settings(target=0.9, tolerance=0.05, max_requests=40_000, least_s=100.0)
    held, _, bias, _ = md1.coverage(40, 5.0, settings, num_of_trace=4000)
    assert 0.85 <= held <= 1.0  # 95 % of 40 is 38; below 34 by chance once in 300
    assert abs(bias) < 0.02


def test_a_thinned_poisson_trace_is_a_poisson_trace(
    md1: Any, by_lindley: Answer, tmp_path: Path
) -> None:
    """Of 5 requests/s, far above the goodput; the same theory holds."""
    path = poisson_trace(tmp_path / "t.csv", 60_000, 2)
    workload = {"trace": path, "goodput_by": "thin"}
    scenario = scenario_with(workload, slo={"ttft_s": 6.0, "tpot_s": None})
    found = find(scenario, seed=4, tolerance=0.05, simulate=by_lindley, starts={"one": 1.0})
    estimate = found.verdicts["one"].estimate
    assert estimate is not None
    assert estimate.interval.low <= md1.true_goodput(5.0, 0.9) <= estimate.interval.high
    assert "requests are left out at random" in tables.as_text(found).replace("\n  ", " ")


def test_the_goodput_of_a_slow_schedule_is_that_of_its_pieces(md1: Any, by_lindley: Answer) -> None:
    """Each piece is long beside any wait: M/D/1 at its rate, weighed by its requests.

    So runs must count whole cycles: one that sees the busy piece alone takes it for all.
    """
    pieces = [{"duration_s": 6000.0, "rate_rps": r} for r in (1.0, 2.0)]
    workload = {**FIXED, "arrivals": {"kind": "schedule", "pieces": pieces}}
    scenario = scenario_with(workload, slo={"ttft_s": 6.0, "tpot_s": None})
    found = find(scenario, seed=4, tolerance=0.05, max_requests=60_000, simulate=by_lindley,
                 starts={"one": 0.5})  # fmt: skip
    verdict = found.verdicts["one"]
    assert verdict.estimate is not None
    for probe in verdict.probes:
        assert probe.num_requests / probe.rate_rps >= 12_000 / RULES.counted
    low, high = 0.1, 0.74
    for _ in range(40):
        rate = (low + high) / 2
        within = [md1.md1_within(share * rate, 5.0) for share in (2 / 3, 4 / 3)]
        low, high = (rate, high) if within[0] / 3 + 2 * within[1] / 3 >= 0.9 else (low, rate)
    ends = verdict.estimate.interval
    assert ends.low * 0.99 <= low <= ends.high * 1.01


def one_at_a_time(scenario: Scenario, cells: Sequence[Cell]) -> list[Outcome]:
    """Serve one request of one token at a time, in steps of 1 s."""
    environment = specs.environment(
        model=specs.llama_2_7b(), engine=specs.ideal_engine(), num_nodes=1
    )
    strategy = NoDG(name="one", instances=1, max_num_seqs=1)
    step = same_for_all(ConstantStepTime(1.0))
    outcomes = []
    for cell in cells:
        workload = workload_of(scenario, cell)
        columns = run(environment, strategy, workload, step_time=step).columns["requests"]
        assert cell.rate_rps is not None
        outcomes.append(outcome(columns, scenario, cell.rate_rps))
    return outcomes


def closed(most_s: float) -> Scenario:
    """Return a closed loop of requests of one token that must be answered in this time (s)."""
    return scenario_with(
        {
            "lengths": {"kind": "fixed", "prompt_len": 8, "output_len": 1},
            "arrivals": {"kind": "closed-loop", "concurrency": 3},
        },
        slo={"ttft_s": most_s, "tpot_s": None},
    )


@pytest.mark.parametrize(("most_s", "users"), [(1.0, 1), (7.5, 7), (8.0, 8), (12.9, 12)])
def test_users_of_one_server_wait_for_all_the_others(most_s: float, users: int) -> None:
    """N users of a server of 1 s without think time: every answer takes N s, so floor(T) users."""
    found = find(closed(most_s), seed=1, tolerance=0.05, max_requests=2000, simulate=one_at_a_time)
    assert found.verdicts["one"].status == "found"
    assert found.goodput("one") == Interval(value=users, low=users, high=users)
    plain = tables.as_json(found)
    (row,) = plain["goodput"]
    assert plain["unit"] == "users"
    assert row["goodput_users"]["value"] == users
    assert row["goodput_rps"]["value"] == pytest.approx(1.0, rel=1e-3)  # the server's
    assert row["attainment"]["ttft"] == 1.0
    text = tables.as_text(found)
    assert f"{users}-{users}" in text
    assert "concurrency = 3 of the scenario is not used" in text.replace("\n  ", " ")


@pytest.mark.parametrize("tenths", range(52, 120, 3))
def test_a_number_of_users_that_was_not_simulated_is_no_goodput(tenths: int) -> None:
    """Wherever log odds cross the target, steeply or not, on numbers or between them.

    The runs that locate put the crossing 0.15 users too high, so that it may lie beside the stage.
    """
    for slope in (4.0, 20.0, 60.0):
        going = search_users(8.0, Settings(target=0.9))
        wanted = next(going)
        while True:
            came = []
            for one in wanted:
                crossing = tenths / 10 + (0.0 if one.replication else 0.15)
                odds = math.log(9) - slope * math.log(one.rate_rps / crossing)
                came.append(outcome_of_odds(odds))
            try:
                wanted = going.send(came)
            except StopIteration as end:
                verdict = end.value
                break
        assert verdict.goodput is not None
        users = math.floor(verdict.goodput.value * (1 + 1e-9))
        assert users == tenths // 10
        last = verdict.stages[-1]
        assert last.low.rate_rps <= verdict.goodput.value * (1 + 1e-9)
        assert verdict.goodput.value <= last.high.rate_rps * (1 + 1e-9)


def test_a_target_below_one_service_is_met_by_no_user() -> None:
    """Even one alone waits 1 s."""
    with pytest.raises(SimclusterError, match="alone: one TTFT P50 1 s"):
        find(closed(0.9), seed=1, tolerance=0.05, max_requests=2000, simulate=one_at_a_time)


def test_users_at_any_number_are_no_limit() -> None:
    """Where the targets hold with all that runs can have; and a search ends."""
    found = find(closed(1e6), seed=1, tolerance=0.05, max_requests=1000, simulate=one_at_a_time)
    assert found.verdicts["one"].status == "unlimited"


def test_the_simulator_agrees_with_a_search_for_users() -> None:
    """Random lengths: attainment of long runs crosses the target at the users that are found."""
    scenario = scenario_with(
        {
            "lengths": {"kind": "lognormal", "prompt_median": 300, "prompt_sigma": 0.5,
                        "output_median": 10, "output_sigma": 0.5},
            "arrivals": {"kind": "closed-loop", "concurrency": 3},
        },
    )  # fmt: skip
    found = find(scenario, tolerance=0.3, max_requests=1500, jobs=1)
    users = found.goodput("one")
    assert users is not None

    def share(number: float) -> float:
        met, counted = simulate_cell(found.simulated, Cell("one", number, 7, 6000)).least
        return met / counted

    assert share(max(1, users.low - 1)) >= 0.9
    assert share(users.high + 2) < 0.9


@pytest.mark.parametrize("values", [(7.48, 7.9), (7.5, 8.5), (0.9, 3.2), (250.0, 251.5)])
def test_pairs_of_whole_users_do_not_contradict_their_goodputs(values: tuple[float, float]) -> None:
    """Equal numbers are never decided; what two intervals apart say stands."""
    second, first = values
    spans = [Interval(value=x, low=x, high=x) for x in (first, second)]
    told = [whole_users(span) for span in spans]
    ratio = first / second
    exact = Interval(value=ratio, low=ratio, high=ratio)
    gap = Interval(value=first - second, low=first - second, high=first - second)
    pair = Compared(
        first="a", second="b", ratio=exact, difference_rps=gap, p_value=0.0, paired=True
    )
    whole = in_whole_users(pair, *told)
    assert whole.ratio.low <= whole.ratio.value <= whole.ratio.high
    assert whole.decided == (math.floor(first) > max(1, math.floor(second)))
    assert whole.difference_rps.value == math.floor(first) - math.floor(second)


def test_a_ratio_of_users_is_no_surer_than_their_numbers() -> None:
    """8.2 and 7.8, each by half a user: 8 and 7, 8 and 8 or 7 and 7, though the ratio is known."""
    told = [whole_users(Interval(value=x, low=x - 0.5, high=x + 0.5)) for x in (8.2, 7.8)]
    ratio = Interval(value=8.2 / 7.8, low=1.04, high=1.06)
    gap = Interval(value=0.4, low=0.3, high=0.5)
    pair = Compared(
        first="a", second="b", ratio=ratio, difference_rps=gap, p_value=0.001, paired=True
    )
    whole = in_whole_users(pair, *told)
    assert pair.decided
    assert not whole.decided
    assert whole.ratio.value == 8 / 7


# Each kind on the simulator ---------------------------------------------------------------------

KINDS: dict[str, tuple[dict[str, Any], str]] = {
    "trace": ({"trace": "TRACE"}, "for other rates its time is scaled"),
    "schedule": (
        {
            **FIXED,
            "arrivals": {
                "kind": "schedule",
                "pieces": [{"duration_s": 4, "rate_rps": 5}, {"duration_s": 6, "rate_rps": 20}],
            },
        },
        "their cycle stays 10 s",
    ),
    "on-off": (
        {**FIXED, "arrivals": {"kind": "on-off", "on_s": 2.0, "off_s": 1.0}},
        "their cycle stays 3 s",
    ),
    "clients": ({"arrivals": {"kind": "clients", "path": "CLIENTS"}}, "the sum of the clients'"),
    "sessions": (
        {"arrivals": {"kind": "sessions", "mean_turns": 2, "gap_median_s": 0.5, "system_len": 100,
                      "output_median": 20}},
        "2 turns a session",
    ),
    "answers": (
        {
            "arrivals": {
                "kind": "sessions", "mean_turns": 2, "gap_median_s": 0.5, "gap_after": "answer",
                "system_len": 100, "output_median": 20,
            }
        },
        "2 turns a session",
    ),
    "closed-loop": (
        {**FIXED, "arrivals": {"kind": "closed-loop", "concurrency": 2}},
        "goodput is the number of users",
    ),
}  # fmt: skip


def document_of(kind: str, folder: Path) -> dict[str, Any]:
    """Return a small scenario with arrivals of a kind; its files are in `folder`."""
    workload = json.dumps(KINDS[kind][0])
    trace = poisson_trace(folder / "trace.csv", 2000, 3)
    clients = folder / "clients.csv"
    head = "client,mean_rate,cv_mean,pattern_mode,input_tokens_q0,input_tokens_q1,"
    rows = "a,2.0,1.5,Gamma,100,400,5,20\nb,1.0,0.8,Weibull,200,300,5,9\n"
    clients.write_text(f"{head}output_tokens_q0,output_tokens_q1\n{rows}")
    workload = workload.replace("TRACE", trace).replace("CLIENTS", str(clients))
    slo = {"ttft_s": 0.3, "tpot_s": 0.05, "attainment": 0.8}
    document = small_scenario(ONE, cluster={"gpus_per_node": 1}, slo=slo)
    return {**document, "workload": json.loads(workload)}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_arrivals_gets_a_goodput(kind: str, tmp_path: Path) -> None:
    """By the command, with its meaning in a line; the same command then runs nothing again."""
    file, out = tmp_path / "s.toml", tmp_path / "out"
    file.write_text(to_toml(dict(resolve(document_of(kind, tmp_path)).document)))
    command = ["goodput", str(file), "-o", str(out), "--jobs", "1", "--tolerance", "0.3"]
    command += ["--max-requests", "1000"]
    first = CliRunner().invoke(main, command)
    assert first.exit_code == 0, first.output
    assert KINDS[kind][1] in first.output.replace("\n  ", " ")
    stored = json.loads((out / "goodput.json").read_text())
    unit = "users" if kind == "closed-loop" else "requests/s"
    assert stored["unit"] == unit
    (row,) = stored["goodput"]
    own = row["goodput_users" if unit == "users" else "goodput_rps"]
    assert own["low"] <= own["value"] <= own["high"]
    before = {p.name: p.stat().st_mtime_ns for p in (out / "runs").glob("[!.]*")}
    again = CliRunner().invoke(main, command)
    assert again.output == first.output
    assert {p.name: p.stat().st_mtime_ns for p in (out / "runs").glob("[!.]*")} == before


def test_recorded_runs_of_each_kind_are_runs_of_their_own(tmp_path: Path) -> None:
    """So that none is taken for another: nor are other blocks, or thinning."""
    loads = [load_of(resolve(document_of(kind, tmp_path)), 1.0) for kind in KINDS]
    trace = resolve(document_of("trace", tmp_path))
    thinned = dataclasses.replace(trace.workload, goodput_by="thin")
    loads.append(load_of(dataclasses.replace(trace, workload=thinned), 1.0))
    loads.append(load_of(trace, 40.0))  # longer blocks
    assert len({scope_of(load.scenario, "one") for load in loads}) == len(loads)


def test_goodputs_of_users_are_compared_by_their_numbers(tmp_path: Path) -> None:
    """At whole numbers, and in users."""
    scenario = closed(7.5)
    two = dataclasses.replace(scenario.strategies[0], name="two")
    both = dataclasses.replace(scenario, strategies=(scenario.strategies[0], two))
    found = find(both, seed=1, tolerance=0.05, max_requests=2000, simulate=one_at_a_time)
    (pair,) = found.comparisons()
    assert pair.alike
    assert not pair.decided
    (line,) = compare_by_rate(found, one_at_a_time)
    assert str(line) == "one, two: undecided at 7.00 users"
    assert "difference_users" in tables.as_json(found)["comparisons"][0]
    tables.write(found, tmp_path)


def test_typical_lengths_have_the_means_of_what_is_drawn(tmp_path: Path) -> None:
    """The search starts by them: of sessions and clients by a long draw of theirs."""
    rng = np.random.default_rng(0)
    for kind in ("clients", "sessions", "trace"):
        scenario = resolve(document_of(kind, tmp_path))
        num = 1000 if kind == "trace" else 20_000
        drawn = workload_of(scenario, Cell("one", None if kind == "trace" else 2.0, 3, num))
        prompt, output = typical_lengths(scenario.workload).draw(3000, rng)
        assert prompt.mean() == pytest.approx(drawn.prompt_len.mean(), rel=0.1)
        assert output.mean() == pytest.approx(drawn.output_len.mean(), rel=0.1)


# Turns that wait --------------------------------------------------------------------------------


def test_turns_after_the_last_session_has_begun_are_not_counted(tmp_path: Path) -> None:
    """They meet no new sessions; and as answers decide when turns come, their number says nothing.

    Counted are the turns of the window (`counted_window`) of the time until then.
    """
    scenario = resolve(document_of("answers", tmp_path))
    cell = Cell("one", 3.0, 5, 900)
    one = simulate_cell(scenario, cell)
    workload = workload_of(scenario, cell)
    assert workload.turns is not None
    first = workload.turns.after < 0
    assert one.end_s == workload.arrival_s[first].max()
    assert one.arrivals == 0.0
    assert one.controls == ()
    assert one.counted[0] == pytest.approx(RULES.counted * 900, rel=0.1)


# Refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("trace", {"workload.trace": {"path": "TRACE", "end_s": 20.0}}, "are too few"),
        ("schedule", {"workload.goodput_by": "thin"}, "only a trace is scaled or thinned"),
        ("trace", {"workload.goodput_by": "thin", "workload.trace": {"path": "LONG"}},
         "the trace has 5"),
        ("schedule", {"workload.arrivals.pieces": [{"duration_s": 1e4, "rate_rps": 1}]},
         "a cycle of the arrivals (10000 s) takes runs of"),
        ("sessions", {"workload.arrivals.gap_median_s": 2000.0}, "the waits of a session"),
        ("closed-loop", {"strategy.one.autoscale": {"max_instances": 1, "up": 8.0, "down": 2.0}},
         "instances take time to start"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_one_line(
    kind: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    """By what it is, before anything is simulated at length."""
    document = document_of(kind, tmp_path)
    text = json.dumps(changes).replace("TRACE", str(tmp_path / "trace.csv"))
    if "LONG" in text:
        text = text.replace("LONG", poisson_trace(tmp_path / "long.csv", 5000, 3))
    with pytest.raises(ConfigError) as caught:
        find(resolve(document, json.loads(text)), max_requests=1000, tolerance=0.3, jobs=1)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_verdict_without_a_goodput_has_no_chance_of_a_trace(
    by_lindley: Answer, tmp_path: Path
) -> None:
    """Nor has one without a trace."""
    path = poisson_trace(tmp_path / "t.csv", 9000, 1)
    scenario = scenario_with({"trace": path}, slo={"ttft_s": 1e6, "tpot_s": None})
    found: Found = find(scenario, seed=4, max_requests=4000, simulate=by_lindley)
    verdict = found.verdicts["one"]
    assert found.load is not None
    assert with_chance_of_trace(verdict, found.load) == (verdict, None)
