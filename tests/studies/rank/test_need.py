"""The cheapest plans for a needed rate: costs, spares, steps, and what cannot be sustained."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from scipy import stats

from helpers.scenarios import ranked_scenario
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import main
from simcluster.errors import ConfigError, DataError
from simcluster.runs.executor import Runner
from simcluster.scenario.file import resolve
from simcluster.scenario.rank_table import RankTable
from simcluster.scenario.scenario import Scenario
from simcluster.studies.goodput import Interval
from simcluster.studies.rank import finals, report
from simcluster.studies.rank.contest import Contest
from simcluster.studies.rank.plans import Plans, TooFewGpusError
from simcluster.studies.rank.race import Crossing, RaceRun, cross
from simcluster.studies.rank.rank import rank
from simcluster.studies.rank.ranking import Need, Ranking
from simcluster.studies.rank.screen import Lengths, Screen
from simcluster.studies.rank.spares import num_spares
from simcluster.studies.space import space
from simcluster.studies.work import Work

SPACE = {
    "strategies": ["nodg", "padg"],
    "tp_sizes": [1, 2],
    "prefill_shares": [0.5],
    "finalists": 2,
    "tolerance": 0.3,
}


def settle_quickly(
    scenario: Scenario, names: list[str], *, seed: int, half: float = 0.03, **_: Any
) -> finals.Finals:
    """Stand in for `finals.settle`: one draw, and intervals of 3 %."""
    values = {name: long_goodput(scenario, name, seed) for name in names}
    intervals = {
        n: Interval(value=v, low=(1 - half) * v, high=(1 + half) * v) for n, v in values.items()
    }
    held = dict.fromkeys(names, math.nan)
    return dataclasses.replace(finals.NONE, intervals=intervals, mean_gpus=held)


def long_goodput(scenario: Scenario, name: str, seed: int) -> float:
    """Return a goodput by a search of its own."""
    only = scenario.only(name)
    gpus = report_gpus(scenario.strategy(name))
    guess = 20.0 * gpus
    return cross(only, guess_rps=guess, seed=seed, num_requests=1000, near=1.1).goodput_rps


def asked(need_rps: float, *, half: float = 0.03, **changes: Any) -> Ranking:
    """Return the answer to a need, on a node of four GPUs at 2 USD."""
    document = ranked_scenario(rank={**SPACE, "need_rps": need_rps, **changes})
    del document["strategy"]
    with pytest.MonkeyPatch.context() as patch:
        settle = functools.partial(settle_quickly, half=half)
        patch.setattr("simcluster.studies.rank.plans.settle", settle)
        return rank(resolve(document), jobs=1)


def need_of(ranking: Ranking) -> Need:
    """Return the plans."""
    assert ranking.need is not None
    return ranking.need


@pytest.fixture(scope="module")
def fifty() -> Ranking:
    """Return the plans for 50 requests/s."""
    return asked(50.0)


@pytest.fixture(scope="module")
def goodputs() -> dict[str, tuple[int, float]]:
    """Return GPUs and goodput of everything that fits on four GPUs, each by itself."""
    document = ranked_scenario(rank=SPACE)
    table = RankTable(**{**SPACE, "num_gpus": (1, 2, 3, 4)})
    scenario = resolve(document)
    every = space(table, scenario.environment).strategies
    scenario = scenario.with_strategies(every.values())
    held = {name: report_gpus(strategy) for name, strategy in every.items()}
    return {name: (held[name], long_goodput(scenario, name, 77)) for name in every}


def report_gpus(strategy: Any) -> int:
    """Return the GPUs of a candidate by its settings."""
    if strategy.kind == "fudg":
        return int((strategy.prefill_instances + strategy.decode_instances) * strategy.tp_size)
    return int(strategy.instances * strategy.tp_size)


# Spares -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("num", [1, 3, 8, 100])
@pytest.mark.parametrize("each", [0.5, 0.99, 0.999])
@pytest.mark.parametrize("wanted", [0.9, 0.999, 0.99999])
def test_spares_are_the_fewest_with_which_enough_are_up(
    num: int, each: float, wanted: float
) -> None:
    """By the survival function of the binomial distribution, which is another implementation."""
    spares = num_spares(num, each, wanted)
    assert stats.binom.sf(num - 1, num + spares, each) >= wanted
    assert not spares or stats.binom.sf(num - 1, num + spares - 1, each) < wanted


def test_one_of_two_is_enough_as_often_as_not_both_are_down() -> None:
    """1 - (1 - a)^2 by hand: 0.99 for a = 0.9."""
    assert num_spares(1, 0.9, 0.9) == 0
    assert num_spares(1, 0.9, 0.99) == 1
    assert num_spares(1, 0.9, 0.9901) == 2


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"headroom": 0.1}, "rank.headroom"),
        ({"spare_instances": 1}, "rank.spare_instances"),
        ({"need_rps": 9.0, "availability": 0.99}, "rank.availability"),
        ({"need_rps": 9.0, "instance_availability": 0.99}, "rank.instance_availability"),
        (
            {
                "need_rps": 9.0,
                "availability": 0.9,
                "instance_availability": 0.9,
                "spare_instances": 1,
            },
            "rank.spare_instances",
        ),
        ({"need_rps": 9.0, "mode": "bestserve"}, "rank.mode"),
        ({"need_rps": -1.0}, "rank.need_rps"),
        ({"need_rps": 9.0, "headroom": 1.0}, "rank.headroom"),
        (
            {"need_rps": 9.0, "availability": 0.999, "instance_availability": 1e-6},
            "rank.availability",
        ),
    ],
)
def test_keys_that_cannot_be_meant_are_refused(keys: dict[str, Any], key: str) -> None:
    """With the key to change, before any run."""
    with pytest.raises(ConfigError) as caught:
        rank(resolve(ranked_scenario(rank={**SPACE, **keys})), jobs=1)
    assert caught.value.key == key


# Plans ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("need_rps", [15.0, 50.0])
def test_no_plan_is_cheaper_than_the_cheapest(
    need_rps: float, fifty: Ranking, goodputs: dict[str, tuple[int, float]]
) -> None:
    """Against the goodput of everything that fits, each sought by itself on other requests."""
    need = need_of(fifty if need_rps == 50.0 else asked(need_rps))
    first = need.plans[0]
    assert first.sustains == "yes"
    cheapest = min(gpus for gpus, goodput in goodputs.values() if goodput >= need_rps)
    assert first.num_gpus == cheapest
    assert goodputs[first.candidate.name][1] >= 0.97 * need_rps
    assert {plan.num_gpus for plan in need.plans} == {cheapest}
    for step, sign in ((need.below, -1), (need.above, 1)):
        sizes = {gpus for gpus, _ in goodputs.values() if sign * (gpus - cheapest) > 0}
        if not sizes:
            assert step is None
            continue
        assert step is not None
        assert step.num_gpus == (max(sizes) if sign < 0 else min(sizes))
        best = max(goodput for gpus, goodput in goodputs.values() if gpus == step.num_gpus)
        assert step.candidate.goodput_rps >= 0.85 * best  # one draw against another
        assert (step.sustains == "no") == (sign < 0)


def test_a_number_of_gpus_is_the_most_there_may_be(fifty: Ranking) -> None:
    """A file that ranks what its four GPUs do best still gets the cheaper plan."""
    plans = need_of(asked(50.0, num_gpus=[4])).plans
    assert plans == need_of(fifty).plans


def test_an_interval_around_the_need_is_not_sure(fifty: Ranking) -> None:
    """The same plan, 1.5 % above the need with an interval of 3 %: a step up in cost is sure."""
    first = need_of(fifty).plans[0]
    need = need_of(asked(0.985 * first.candidate.goodput_rps))
    assert need.plans[0].sustains == "yes"
    assert need.plans[0].num_gpus > first.num_gpus
    assert need.below is not None
    assert need.below.candidate.name == first.candidate.name
    assert need.below.sustains == "not sure"


def test_what_is_listed_as_meeting_a_need_has_the_goodput_for_it(fifty: Ranking) -> None:
    """Not the second of a cost, which lies 0.1 % below it with an interval that reaches above."""
    first, second, *_ = (plan.candidate for plan in need_of(fifty).plans)
    assert (first.stage, second.stage) == ("final", "final")
    need_rps = 1.001 * second.goodput_rps
    assert need_rps < 0.99 * first.goodput_rps
    plans = need_of(asked(need_rps, half=0.003)).plans
    assert [plan.candidate.name for plan in plans] == [first.name]


def test_a_step_down_that_chance_alone_may_put_below_is_said(fifty: Ranking) -> None:
    """The same plan, 1.5 % below the need with an interval of 3 %."""
    first = need_of(fifty).plans[0]
    ranking = asked(1.015 * first.candidate.goodput_rps)
    below = need_of(ranking).below
    assert below is not None
    assert (below.candidate.name, below.sustains) == (first.candidate.name, "no")
    assert "misses it by 1.5 %, which may be chance." in report.as_text(ranking)


def plans_of_four() -> tuple[Plans, Contest]:
    """Return the plans for 50 requests/s on four GPUs, and the contest of their candidates."""
    document = ranked_scenario(rank={**SPACE, "strategies": ["nodg", "fudg-intra"]})
    scenario = resolve(document)
    environment = scenario.environment
    table = RankTable(**{**SPACE, "num_gpus": (4,), "need_rps": 50.0})
    every = space(dataclasses.replace(table, strategies=("nodg", "fudg-intra")), environment)
    scenario = scenario.with_strategies(every.strategies.values())
    screen = Screen(environment, Lengths.of(scenario))
    bounds = {name: screen.bound(one) for name, one in every.strategies.items()}
    contest = Contest(scenario, bounds, Runner(1, None, None), Work(None))
    return Plans(contest, table), contest


def test_plans_that_meet_the_targets_easily_are_ordered_by_what_they_sustain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run at the rate itself does not tell them apart: all requests are within the targets."""
    plans, contest = plans_of_four()
    first, second, barely = "2m-tp2", "4m-tp1", "2p2d-tp1"
    plans._odds = {second: 4.6, first: 4.4, barely: 0.3}
    found = {first: crossing(first, 83.0), second: crossing(second, 71.0)}
    asked: list[str] = []

    def crossings(searches: dict[str, Any], part: str) -> dict[str, Crossing]:
        asked.extend(searches)
        return {name: found[name] for name in searches}

    monkeypatch.setattr(contest, "crossings", crossings)
    run = RaceRun(
        rate_rps=50.0,
        num_requests=1000,
        attainment=1.0,
        ttft_attainment=1.0,
        tpot_attainment=1.0,
        itl_attainment=1.0,
        e2el_attainment=1.0,
        ttft_s=0.1,
        tpot_s=0.01,
        residence_s=0.5,
        peak_kv_usage=0.5,
        num_preemptions=0,
    )
    plans._seen = dict.fromkeys(plans._odds, run)
    assert plans._by_goodput([second, first, barely]) == [first, second, barely]
    assert sorted(asked) == [first, second]
    assert plans._goodput(first).value == min(83.0, contest.bounds[first].total_rps)
    assert plans._goodput(barely).value < 60.0


def test_steps_are_those_of_the_highest_goodput(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where one of that cost is settled already, because it was nearer at the rate itself."""
    plans, contest = plans_of_four()
    settled, other = "4m-tp1", "2p2d-tp1"
    interval = Interval(value=22.4, low=22.2, high=22.6)
    plans._final = dataclasses.replace(
        finals.NONE, intervals={settled: interval}, mean_gpus={settled: 4.0}
    )
    seen = {settled: 22.0, other: 23.1}

    def crossings(searches: dict[str, Any], part: str) -> dict[str, Crossing]:
        return {name: crossing(name, seen.get(name, 1.0)) for name in searches}

    monkeypatch.setattr(contest, "crossings", crossings)
    assert plans._step(4) == other
    found = plans._goodput(other)
    assert found.value == pytest.approx(22.4 * 23.1 / 22.0)
    assert found.low < found.value < found.high
    seen[other] = 21.0
    assert plans._step(4) == settled


def crossing(name: str, goodput_rps: float) -> Crossing:
    """Return a search that found a goodput."""
    return Crossing(
        name=name,
        goodput_rps=goodput_rps,
        low_rps=goodput_rps,
        high_rps=goodput_rps,
        probes=(),
        num_requests=0,
    )


def test_costs_are_those_of_the_gpus_over_the_tokens_of_the_need(fifty: Ranking) -> None:
    """All answers have 20 tokens: 50 requests/s are 3.6 million an hour."""
    for plan in need_of(fifty).plans:
        assert plan.cost_per_hour == 2.0 * plan.num_gpus
        assert plan.cost_per_million == pytest.approx(plan.cost_per_hour / 3.6, rel=1e-3)
        assert plan.gpu_hours_per_million == pytest.approx(plan.num_gpus / 3.6, rel=1e-3)
        assert plan.margin == pytest.approx(plan.candidate.goodput_rps / 50.0 - 1)
        assert (plan.candidate.low_rps >= 50.0) == (plan.sustains == "yes")


def test_headroom_and_spares_are_paid_for(fifty: Ranking) -> None:
    """Half of 50 with half kept free is 50; a spare is one instance more."""
    need = need_of(asked(25.0, headroom=0.5, spare_instances=1))
    assert need.rate_rps == pytest.approx(50.0)
    first, without = need.plans[0], need_of(fifty).plans[0]
    assert first.num_spares == 1
    each = 1 if first.candidate.name.endswith("tp1") else 2
    assert first.num_gpus == first.candidate.num_gpus + each
    assert first.num_gpus > without.num_gpus
    assert first.cost_per_hour == 2.0 * first.num_gpus
    text = " ".join(report.as_text(asked(25.0, headroom=0.5, spare_instances=1)).split())
    assert "for 25 requests/s, with 50 % of the goodput kept free: 50; one spare instance" in text


def test_a_need_above_the_stock_names_the_best_there_is(
    goodputs: dict[str, tuple[int, float]],
) -> None:
    """In one line, whether the bound says so or runs do."""
    best = max(goodput for _, goodput in goodputs.values())
    for need_rps in (1.25 * best, 100 * best):
        with pytest.raises(
            TooFewGpusError, match=r"^rank.need_rps = .* the 4 GPUs sustain at most"
        ) as caught:
            asked(need_rps)
        said = float(str(caught.value).partition("at most ")[2].split()[0])
        assert said == pytest.approx(best, rel=0.15)  # one draw against another
        assert "\n" not in str(caught.value)


def test_spares_that_leave_nothing_are_said() -> None:
    """Four GPUs, five instances."""
    with pytest.raises(DataError, match="with 4 spare instances no candidate fits on the 4 GPUs"):
        asked(5.0, spare_instances=4)


def test_without_a_price_gpus_take_its_place() -> None:
    """In the table and in JSON."""
    document = ranked_scenario(rank={**SPACE, "need_rps": 15.0})
    document["cluster"] = {"gpu": "L20", "nodes": 1, "gpus_per_node": 4, "network": "10gbe"}
    scenario = resolve(document)
    if scenario.environment.cluster.price_per_gpu_hour is not None:
        cluster = scenario.environment.cluster
        object.__setattr__(cluster, "price_per_gpu_hour", None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simcluster.studies.rank.plans.settle", settle_quickly)
        ranking = rank(scenario, jobs=1)
    assert "GPU-h/M tok" in report.as_text(ranking)
    plain = report.as_json(ranking)["need"]["plans"][0]
    assert plain["cost_per_hour"] is None
    assert plain["gpu_hours_per_million_output_tokens"] > 0


def test_the_command_writes_plans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Table, JSON and CSV say the same; --need is the key of the file."""
    monkeypatch.setattr("simcluster.studies.rank.plans.settle", settle_quickly)
    path, out = tmp_path / "s.toml", tmp_path / "out"
    path.write_text(to_toml(ranked_scenario(rank=SPACE)))
    call = ["rank", str(path), "--need", "15", "--jobs", "1", "-o", str(out)]
    text = CliRunner().invoke(main, call)
    assert text.exit_code == 0, text.output
    for words in ("The cheapest plans for 15 requests/s", "USD/h", "next step up: "):
        assert words in text.stdout
    plain = json.loads((out / "ranking.json").read_text())["need"]
    printed = json.loads(CliRunner().invoke(main, [*call, "--json"]).stdout)["need"]
    assert plain == printed
    with (out / "plans.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows if row["step"] == "cheapest"] == [
        plan["name"] for plan in plain["plans"]
    ]
    assert {row["step"] for row in rows} <= {"cheapest", "down", "up"}
