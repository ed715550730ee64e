"""Classes of requests with targets of their own: a queue with a known answer, frames, refusals."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from helpers.refusals import refused
from helpers.scenarios import small_scenario
from simcluster import compare, read, resolve, simulate
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import main
from simcluster.config import SloConfig, SloTargets
from simcluster.frames.metrics import attainments, class_attainments, met_targets
from simcluster.frames.schema import Columns
from simcluster.rng import stream
from simcluster.runs.cell import Cell
from simcluster.runs.simulate import run
from simcluster.scenario.scenario import Scenario
from simcluster.strategies import FuDG, NoDG
from simcluster.studies.goodput import Outcome, Verdict, runs
from simcluster.studies.rank import race
from simcluster.testing import specs
from simcluster.testing.step_times import ConstantStepTime, same_for_all
from simcluster.testing.workloads import workload_of
from simcluster.workload import Workload, build

ROOT = Path(__file__).parent.parent

TWO = [{"name": "quick", "share": 0.3}, {"name": "slow", "share": 0.7}]
ONE_TOKEN = {"kind": "fixed", "prompt_len": 1, "output_len": 1}
MIXED = {
    "kind": "lognormal",
    "prompt_median": 300,
    "prompt_sigma": 0.7,
    "output_median": 20,
    "output_sigma": 0.7,
}


def tables(slo: dict[str, Any], **workload: Any) -> dict[str, Any]:
    """Return a small scenario."""
    own = {"lengths": MIXED, "num_requests": 300, "rate_rps": 20.0, **workload}
    return {**small_scenario({"name": "one", "kind": "nodg"}, workload=own), "slo": slo}


def queue(slo: dict[str, Any], **workload: Any) -> Scenario:
    """Return a scenario whose requests are served one by one, 1 s each (`served`)."""
    return resolve(tables(slo, lengths=ONE_TOKEN, **workload))


def served(scenario: Scenario, workload: Workload) -> Columns:
    """Return the frame of a deployment of one sequence with steps of 1 s."""
    environment = specs.environment(
        model=specs.llama_2_7b(), engine=specs.ideal_engine(), num_nodes=1
    )
    environment = dataclasses.replace(environment, slo=scenario.environment.slo)
    strategy = NoDG(name="one", instances=1, max_num_seqs=1)
    step = same_for_all(ConstantStepTime(1.0))
    return run(environment, strategy, workload, step_time=step).columns["requests"]


@pytest.fixture
def by_lindley(md1: Any) -> Callable[[Scenario, Sequence[runs.Cell]], list[Outcome]]:
    """Outcomes of runs of that queue, by Lindley's recursion."""

    def of(scenario: Scenario, cells: Sequence[runs.Cell]) -> list[Outcome]:
        outcomes = []
        for cell in cells:
            settings = dataclasses.replace(scenario.workload, num_requests=cell.num_requests)
            drawn = build(settings, seed=cell.seed, rate_rps=cell.rate_rps, max_model_len=10)
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
            if drawn.slo_class is not None:
                columns["slo_class"] = drawn.slo_class
            outcomes.append(runs.outcome(columns, scenario, cell.rate_rps))
        return outcomes

    return of


@pytest.fixture
def goodput(by_lindley: Any) -> Callable[[Scenario], Verdict]:
    """Goodput of that queue."""

    def of(scenario: Scenario) -> Verdict:
        found = runs.find(scenario, seed=4, tolerance=0.03, simulate=by_lindley)
        return found.verdicts["one"]

    return of


def drawn(scenario: Scenario, *, seed: int = 0, rate_rps: float = 1.0) -> Workload:
    """Return the requests of `scenario`."""
    return build(scenario.workload, seed=seed, rate_rps=rate_rps, max_model_len=4096)


# Against theory ---------------------------------------------------------------------------------


def test_each_class_waits_as_theory_says_by_its_own_target(md1: Any) -> None:
    """M/D/1: the share of a class is that of waits within its own target, by Erlang's formula."""
    slo = {"classes": {"quick": {"ttft_s": 1.5}, "slow": {"ttft_s": 5.0}}}
    scenario = queue(slo, classes=TWO, num_requests=20_000)
    columns = served(scenario, drawn(scenario, rate_rps=0.7))
    counted = columns["arrival_s"] > 1000
    shares = class_attainments(columns, scenario.environment.slo, counted)
    waits = md1.lindley(columns["arrival_s"])
    for name, wait_s in (("quick", 0.5), ("slow", 4.0)):
        own = counted & (columns["slo_class"] == name)
        assert shares[name] == pytest.approx(float((waits[own] <= wait_s + 1e-6).mean()), abs=1e-12)
        assert shares[name] == pytest.approx(md1.md1_within(0.7, wait_s), abs=0.025)
    assert shares["slow"] - shares["quick"] > 0.3
    whole = attainments(columns, scenario.environment.slo, counted)
    assert whole["slo"] == shares["quick"]
    size = {name: float((columns["slo_class"][counted] == name).mean()) for name in shares}
    assert whole["joint"] == pytest.approx(sum(size[name] * shares[name] for name in shares))


def test_the_goodput_is_that_of_the_stricter_class(goodput: Any, md1: Any) -> None:
    """As with the stricter targets alone, and as theory says; the other class has room."""
    slo = {"classes": {"quick": {"ttft_s": 6.0}, "slow": {"ttft_s": 11.0}}}
    scenario = queue(slo, classes=TWO)
    both, alone = goodput(scenario), goodput(queue({"ttft_s": 6.0}))
    assert both.estimate is not None
    assert alone.estimate is not None
    truth = md1.true_goodput(5.0, 0.9)
    assert both.estimate.interval.value == pytest.approx(truth, rel=0.03)
    assert both.estimate.interval.low <= truth <= both.estimate.interval.high
    assert both.estimate.interval.value == pytest.approx(alone.estimate.interval.value, rel=0.03)
    low = both.stages[-1].low
    for name, wait_s in (("quick", 5.0), ("slow", 10.0)):
        expected = md1.md1_within(low.rate_rps, wait_s)
        assert low.mean(f"{name}.joint_attainment") == pytest.approx(expected, abs=0.015)


def test_the_order_of_the_classes_does_not_matter(goodput: Any, md1: Any) -> None:
    """The stricter one may come last."""
    slo = {"classes": {"quick": {"ttft_s": 11.0}, "slow": {"ttft_s": 6.0}}}
    estimate = goodput(queue(slo, classes=TWO)).estimate
    assert estimate is not None
    assert estimate.interval.value == pytest.approx(md1.true_goodput(5.0, 0.9), rel=0.03)


@pytest.mark.parametrize(("criterion", "columns"), [("joint", 1), ("marginal", 2)])
def test_each_class_is_a_criterion_of_the_search(
    by_lindley: Any, criterion: str, columns: int
) -> None:
    """Or one for each of its targets; what is counted adds up."""
    slo = {
        "criterion": criterion,
        "tpot_s": 1.0,
        "classes": {"quick": {"ttft_s": 2.0}, "slow": {"ttft_s": 9.0}},
    }
    cell = runs.Cell("one", 0.7, 3, 4000)
    (split,) = by_lindley(queue(slo, classes=TWO), [cell])
    (whole,) = by_lindley(queue({"criterion": criterion, "ttft_s": 2.0}), [cell])
    assert len(split.counted) == 2 * columns
    quick, slow = split.counted[0], split.counted[columns]
    assert quick + slow == whole.counted[0]
    assert quick == pytest.approx(0.3 * whole.counted[0], rel=0.1)
    assert split.met[0] / quick < split.met[columns] / slow
    assert split.least == (split.met[0], quick)


# Requests ---------------------------------------------------------------------------------------


def test_classes_change_no_request() -> None:
    """Arrivals and lengths are those without classes, bit for bit; so is the run."""
    plain = resolve(tables({"ttft_s": 0.2, "tpot_s": 0.03}))
    split = resolve(tables({"ttft_s": 0.2, "tpot_s": 0.03}, classes=TWO))
    one, other = simulate(plain).columns["requests"], simulate(split).columns["requests"]
    assert set(other) - set(one) == {"slo_class"}
    for name, column in one.items():
        np.testing.assert_array_equal(column, other[name], err_msg=name)
    assert "slo_class" not in simulate(plain).requests
    assert set(simulate(split).requests["slo_class"]) == {"quick", "slow"}
    met, again = (met_targets(c, s.environment.slo) for c, s in ((one, plain), (other, split)))
    for name, flags in met.items():
        assert flags.mean() > 0
        np.testing.assert_array_equal(flags, again[name], err_msg=name)
    assert met["joint"].mean() < 1


def test_equal_targets_are_as_no_classes(goodput: Any) -> None:
    """A class without targets has those of [slo]; the goodput is the same but for the noise."""
    equal = goodput(queue({"ttft_s": 6.0}, classes=TWO)).estimate
    none = goodput(queue({"ttft_s": 6.0})).estimate
    assert equal is not None
    assert none is not None
    assert equal.interval.value == pytest.approx(none.interval.value, rel=0.03)
    slo = resolve(tables({"ttft_s": 6.0, "tpot_s": 0.1}, classes=TWO)).environment.slo
    assert slo.of("quick") == slo.of("slow") == dataclasses.replace(slo, classes=None)


def test_a_seed_and_a_request_have_one_class() -> None:
    """At any rate and length of a run, whatever it asks for; another seed has others."""
    # Lengths by inversion, two numbers a request: classes from the same ones would hang on them.
    workload = {"classes": TWO, "lengths": "sharegpt-ecoserve"}
    scenario = resolve(tables({"ttft_s": 1.0}, **workload, num_requests=20_000))
    first = drawn(scenario).slo_class
    assert first is not None
    np.testing.assert_array_equal(first, drawn(scenario, rate_rps=9.0).slo_class)
    shorter = resolve(tables({"ttft_s": 1.0}, **workload, num_requests=500))
    np.testing.assert_array_equal(first[:500], drawn(shorter).slo_class)
    assert (first != drawn(scenario, seed=1).slo_class).any()
    requests = drawn(scenario)
    gaps = np.diff(requests.arrival_s, prepend=0.0)
    for column in (gaps, np.log(requests.prompt_len), np.log(requests.output_len)):
        for own in (first, first[::2], first[1::2]):
            correlation = np.corrcoef(own == "quick", column[: len(own)])[0, 1]
            assert abs(correlation) < 4 / math.sqrt(len(own))
    error = math.sqrt(0.3 * 0.7 / 20_000)
    assert float((first == "quick").mean()) == pytest.approx(0.3, abs=4 * error)


def test_a_class_may_have_lengths_of_its_own() -> None:
    """The others keep theirs; together they are a mixture."""
    classes = [TWO[0], {**TWO[1], "lengths": {"kind": "fixed", "prompt_len": 7, "output_len": 3}}]
    scenario = resolve(tables({"ttft_s": 1.0}, classes=classes, num_requests=5000))
    split = drawn(scenario)
    plain = drawn(resolve(tables({"ttft_s": 1.0}, num_requests=5000)))
    quick = split.slo_class == "quick"
    np.testing.assert_array_equal(split.prompt_len[quick], plain.prompt_len[quick])
    np.testing.assert_array_equal(split.output_len[quick], plain.output_len[quick])
    assert set(split.prompt_len[~quick]) == {7}
    assert set(split.output_len[~quick]) == {3}
    mixture = scenario.workload.length_distribution
    assert mixture is not None
    prompts, outputs = mixture.draw(100_000, stream(1, "lengths"))
    assert float((prompts == 7).mean()) == pytest.approx(0.7, abs=0.01)
    assert set(outputs[prompts == 7]) == {3}
    assert prompts[prompts != 7].mean() == pytest.approx(plain.prompt_len.mean(), rel=0.05)
    prefix, _ = mixture.draw(50, stream(1, "lengths"))
    np.testing.assert_array_equal(prefix, prompts[:50])


def test_every_class_may_have_lengths_of_its_own() -> None:
    """Then the workload needs none."""
    own = [
        {**one, "lengths": {"kind": "fixed", "prompt_len": k + 1, "output_len": 2}}
        for k, one in enumerate(TWO)
    ]
    document = tables({"ttft_s": 1.0}, classes=own)
    del document["workload"]["lengths"]
    scenario = resolve(document)
    split = drawn(scenario)
    np.testing.assert_array_equal(split.prompt_len, np.where(split.slo_class == "quick", 1, 2))
    assert runs.mean_lengths(scenario) == pytest.approx((1.7, 2.0), rel=0.01)


# Targets ----------------------------------------------------------------------------------------


def test_what_a_class_leaves_out_is_that_of_the_table() -> None:
    """The document says it all, and reading it again gives the same."""
    slo = {"ttft_s": 1.0, "tpot_s": 0.1, "classes": {"slow": {"ttft_s": 9.0, "e2el_s": 60.0}}}
    scenario = resolve(tables(slo, classes=TWO))
    assert scenario.environment.slo.classes == {
        "quick": SloTargets(ttft_s=1.0, tpot_s=0.1),
        "slow": SloTargets(ttft_s=9.0, tpot_s=0.1, e2el_s=60.0),
    }
    again = resolve(scenario.document)
    assert again.environment.slo == scenario.environment.slo
    assert again.document == scenario.document
    assert again.workload == scenario.workload


def test_the_strictest_and_the_loosest_of_all_classes() -> None:
    """One without a target is the loosest in it."""
    slo = SloConfig(
        tpot_s=0.2,
        classes={"a": SloTargets(ttft_s=1.0, tpot_s=0.1), "b": SloTargets(ttft_s=9.0, e2el_s=5.0)},
    )
    assert slo.strictest() == SloConfig(ttft_s=1.0, tpot_s=0.1, e2el_s=5.0)
    assert slo.loosest() == SloConfig(ttft_s=9.0, tpot_s=0.2)
    assert SloConfig(ttft_s=1.0).strictest() == SloConfig(ttft_s=1.0)
    assert not SloConfig(classes={"a": SloTargets()}).has_targets
    assert SloConfig(classes={"a": SloTargets(e2el_s=1.0)}).has_targets


@pytest.mark.parametrize("resolution", ["span", "step", "kernel"])
def test_early_rejection_goes_by_the_targets_of_the_class(resolution: str) -> None:
    """Only requests of the class that cannot meet its target are turned away."""
    slo = SloConfig(classes={"quick": SloTargets(ttft_s=1.5), "slow": SloTargets(ttft_s=100.0)})
    environment = specs.environment(engine=specs.ideal_engine(), num_nodes=1, slo=slo)
    names = np.array(["quick", "slow"] * 10, dtype=object)
    workload = dataclasses.replace(workload_of([0.0] * 20, 100, 5), slo_class=names)
    strategy = FuDG(
        name="pd",
        prefill_instances=1,
        decode_instances=1,
        tp_size=4,
        prefill_choice="ttft",
        early_rejection=True,
    )
    step = same_for_all(ConstantStepTime(1.0))
    result = run(environment, strategy, workload, step_time=step, resolution=resolution)
    requests = result.columns["requests"]
    turned = requests["status"] == "rejected"
    assert set(requests["slo_class"][turned]) == {"quick"}
    assert turned.sum() >= 8
    spanned = run(environment, strategy, workload, step_time=step).columns["requests"]
    for name, column in requests.items():
        np.testing.assert_array_equal(column, spanned[name], err_msg=name)


def test_rolling_activation_goes_by_the_strictest_class() -> None:
    """As if all requests had its targets."""
    slo = {
        "tpot_s": 0.2,
        "classes": {"quick": {"ttft_s": 0.3}, "slow": {"ttft_s": 9.0, "tpot_s": 0.05}},
    }
    runs_ = []
    for document in (tables(slo, classes=TWO), tables({"ttft_s": 0.3, "tpot_s": 0.05})):
        document["strategy"] = [{"name": "one", "kind": "padg"}]
        runs_.append(simulate(resolve(document)).columns["requests"]["last_output_s"])
    np.testing.assert_array_equal(*runs_)


def test_a_race_counts_the_class_that_is_met_least() -> None:
    """Whichever it is."""
    for names in (("quick", "slow"), ("slow", "quick")):
        classes = dict(zip(names, ({"ttft_s": 0.06}, {"ttft_s": 5.0}), strict=True))
        scenario = resolve(tables({"classes": classes}, classes=TWO))
        seen = race.probe(scenario, Cell(scenario.strategies[0].name, 30.0, 1, 400))
        plain = resolve(tables({"ttft_s": 0.06}))
        workload = build(
            dataclasses.replace(scenario.workload, num_requests=400),
            seed=1,
            rate_rps=30.0,
            max_model_len=4096,
        )
        columns = run(scenario.environment, scenario.strategies[0], workload).columns["requests"]
        counted = columns["arrival_s"] >= race.WARMUP * columns["arrival_s"][-1]
        strict = counted & (columns["slo_class"] == names[0])
        met = met_targets(columns, plain.environment.slo)["joint"]
        assert seen.attainment == pytest.approx(float(met[strict].mean()))
        assert 0 < seen.attainment < 1


# Commands ---------------------------------------------------------------------------------------

SLO = {"classes": {"quick": {"ttft_s": 0.2}, "slow": {"ttft_s": 5.0, "tpot_s": 0.1}}}


@pytest.mark.parametrize("fmt", ["parquet", "csv"])
def test_results_keep_the_classes(tmp_path: Path, fmt: Any) -> None:
    """In frames and sweep, on disk as in memory."""
    document = tables(SLO, classes=TWO)
    scenario = resolve({**document, "sweep": {"rates_rps": [10.0, 40.0]}})
    compare(scenario, jobs=1, out=tmp_path / "out", fmt=fmt)
    stored, kept = read(tmp_path / "out"), compare(scenario, jobs=1)
    assert stored.sweep.equals(kept.sweep)
    requests = stored.requests("one", 40.0)
    assert requests["slo_class"].equals(kept.requests("one", 40.0)["slo_class"])
    row = stored.sweep.iloc[1]
    quick = requests[requests["slo_class"] == "quick"]
    assert row["slo_attainment.quick"] == pytest.approx((quick["ttft_s"] <= 0.2).mean())
    assert row["slo_attainment"] == min(row["slo_attainment.quick"], row["slo_attainment.slow"])


def test_tables_show_each_class(tmp_path: Path) -> None:
    """``run``, ``compare`` and ``goodput``."""
    path = tmp_path / "two.toml"
    path.write_text(to_toml(tables(SLO, classes=TWO)))

    def call(*arguments: str) -> str:
        result = CliRunner().invoke(main, [arguments[0], str(path), *arguments[1:]])
        assert result.exit_code == 0, result.stderr
        assert max(map(len, result.stdout.splitlines())) <= 110
        return result.stdout

    text = call("run")
    assert "class quick (%)" in text
    assert "class slow (%)" in text
    text = call("compare", "--jobs", "1", "--set", "sweep.rates_rps=[10, 40]")
    assert ["strategy", "quick", "slow"] in [line.split() for line in text.splitlines()]
    options = ["--tolerance", "0.3", "--max-requests", "1000", "--jobs", "1"]
    text = call("goodput", *options)
    assert "Of every class 90 %" in text
    shares = json.loads(call("goodput", *options, "--json"))["goodput"][0]["classes"]
    assert set(shares) == {"quick", "slow"}
    assert min(one["joint"] for one in shares.values()) == pytest.approx(0.9, abs=0.03)


def test_the_example_of_the_guide_is_read() -> None:
    """What a reader adds to a scenario must be accepted."""
    guide = (ROOT / "docs" / "goodput.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```toml\n(.*?)```", guide, re.DOTALL)
    (example,) = (tomllib.loads(block) for block in blocks if "[[workload.classes]]" in block)
    document = tables({"ttft_s": 5.0, "tpot_s": 0.1}, **example["workload"])
    document["slo"].update(example["slo"])
    slo = resolve(document).environment.slo
    assert slo.of("interactive").ttft_s == 2.0
    assert slo.of("interactive").tpot_s == 0.1


@pytest.mark.parametrize(
    ("slo", "workload", "key", "says"),
    [
        ({"classes": {"quick": {}}}, {}, "slo.classes.quick", "no classes"),
        ({"classes": {"quik": {}}}, {"classes": TWO}, "slo.classes.quik", "'quick'"),
        ({"classes": {"slow": {"ttft": 1}}}, {"classes": TWO}, "slo.classes.slow.ttft", "ttft_s"),
        ({"classes": {"slow": {"ttft_s": 0}}}, {"classes": TWO}, "slo.classes.slow.ttft_s", "> 0"),
        ({}, {"classes": [{"name": "a"}]}, "workload.classes[0].share", "missing"),
        ({}, {"classes": [{"share": 1.0}]}, "workload.classes[0].name", "missing"),
        ({}, {"classes": [{"name": "a", "share": 0.0}]}, "workload.classes[0].share", "> 0"),
        ({}, {"classes": [{"name": "a.b", "share": 1.0}]}, "workload.classes[0].name", "letters"),
        ({}, {"classes": []}, "workload.classes", "at least one"),
        ({}, {"classes": TWO[:1]}, "workload.classes", "make 1"),
        ({}, {"classes": [TWO[0], TWO[0]]}, "workload.classes[1].name", "own name"),
        (
            {},
            {"classes": TWO, "lengths": None, "num_requests": None, "trace": "a.csv"},
            "workload.classes",
            "trace",
        ),
        (
            {},
            {
                "classes": [TWO[0], {**TWO[1], "lengths": ONE_TOKEN}],
                "lengths": None,
                "arrivals": {"kind": "clients", "path": "a.csv", "model": "m"},
            },
            "workload.classes[1].lengths",
            "clients",
        ),
        ({}, {"classes": TWO, "lengths": None}, "workload.lengths", "missing"),
    ],
)
def test_bad_input_is_one_line(
    slo: dict[str, Any], workload: dict[str, Any], key: str, says: str
) -> None:
    """With the key and the way out."""
    document = tables({"ttft_s": 1.0, **slo}, **workload)
    table = document["workload"]
    document["workload"] = {k: v for k, v in table.items() if v is not None}
    with refused(says, key=key):
        resolve(document)


@pytest.mark.parametrize(
    ("command", "extra", "key"),
    [
        ("rank", {"rank": {"mode": "bestserve"}}, "rank.mode"),
        ("cooptimize", {"cooptimize": {"models": ["llama-2-7b"]}}, "workload.classes"),
    ],
)
def test_what_cannot_do_classes_says_so(
    tmp_path: Path, command: str, extra: dict[str, Any], key: str
) -> None:
    """One line."""
    path = tmp_path / "two.toml"
    path.write_text(to_toml({**tables(SLO, classes=TWO), **extra}))
    result = CliRunner().invoke(main, [command, str(path)])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert key in result.stderr
    assert "classes" in result.stderr
