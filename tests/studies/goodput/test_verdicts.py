"""Every way in which a search can end, compared with every other, in tables, JSON and files."""

from __future__ import annotations

import csv
import functools
import itertools
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from helpers.outcomes import outcome_of_odds
from helpers.scenarios import small_scenario
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import main
from simcluster.frames.goodput import three_digits
from simcluster.runs.simulate import simulate
from simcluster.scenario.file import resolve
from simcluster.scenario.scenario import Scenario
from simcluster.studies.goodput import Cell, Estimate, Found, Outcome, compare, find, runs, tables
from simcluster.studies.goodput import pairs as pairs_module
from simcluster.studies.goodput.by_rate import compare_by_rate
from simcluster.studies.goodput.estimate import estimate_crossing, logit
from simcluster.studies.goodput.pairs import compare_verdicts
from simcluster.studies.goodput.probe import Probe
from simcluster.studies.goodput.rules import Settings
from simcluster.studies.goodput.search import Stage, Verdict
from simcluster.studies.goodput.shape import Falls
from simcluster.testing.examples import examples

SETTINGS = Settings(target=0.9, tolerance=0.05, max_requests=20_000)
STATISTICS = {
    **{f"{key}_s_p{p}": 0.1 for key in ("ttft", "tpot", "e2el") for p in (50, 90, 95, 99)},
    **{f"{key}_attainment": 0.93 for key in ("ttft", "tpot", "itl", "e2el")},
    "output_tokens": 20.0,
}


def outcome(odds: float) -> Outcome:
    """Return a run of many requests with these log odds of meeting the targets."""
    return outcome_of_odds(odds, residence_s=1e-2, statistics=STATISTICS)


@functools.cache
def scenario_of(*names: str) -> Scenario:
    """Return a scenario with strategies of these names."""
    return resolve(
        small_scenario(
            *({"name": name, "kind": "nodg"} for name in names),
            cluster={"price_per_gpu_hour": 2.0},
        )
    )


# Searches that end in each way ------------------------------------------------------------------


def line(goodput: float, spread: float) -> Callable[[Sequence[Cell]], list[Outcome]]:
    """Return runs whose log odds fall with the rate; those at one rate lie evenly around it."""

    def answer(cells: Sequence[Cell]) -> list[Outcome]:
        came = []
        for rate, own in itertools.groupby(cells, key=lambda cell: cell.rate_rps):
            size = len(list(own))
            middle = logit(0.9) - 12 * math.log(rate / goodput)
            places = np.linspace(-spread, spread, size) if size > 1 else [0.0]
            came += [outcome(middle + place) for place in places]
        return came

    return answer


def pilots_only(cells: Sequence[Cell]) -> list[Outcome]:
    """Single runs show a crossing; each stage puts it far above its own rates."""
    middle = math.exp(np.mean([math.log(cell.rate_rps) for cell in cells]))
    where = 1.4 * middle if len(cells) > 1 else 100.0
    return line(where, 0.001)(cells)


def no_stage(cells: Sequence[Cell]) -> list[Outcome]:
    """Single runs show a crossing; in no stage does attainment fall with the rate."""
    if len(cells) == 1:
        return line(100.0, 0.0)(cells)
    return [outcome(logit(0.9) + 0.001 * k) for k, _ in enumerate(cells)]


ENDINGS: dict[str, tuple[str, Callable[[Sequence[Cell]], list[Outcome]]]] = {
    "found": ("found", line(100.0, 0.02)),
    "wide": ("wide", line(98.0, 8.0)),
    "pilots only": ("not settled", pilots_only),
    "no stage": ("not settled", no_stage),
    "unlimited": ("unlimited", lambda cells: [outcome(20.0) for _ in cells]),
    "unattainable": ("unattainable", lambda cells: [outcome(-20.0) for _ in cells]),
}


def searched(first: str, second: str) -> tuple[Found, Callable[..., list[Outcome]]]:
    """Search two strategies that end in these ways."""
    names = {f"1 {first}": first, f"2 {second}": second}

    def simulate(_: Scenario, cells: Sequence[Cell]) -> list[Outcome]:
        came: list[Outcome] = []
        for name, own in itertools.groupby(cells, key=lambda cell: cell.strategy):
            came += ENDINGS[names[name]][1](list(own))
        return came

    options: dict[str, Any] = {"tolerance": 0.05, "max_requests": 20_000, "simulate": simulate}
    return find(scenario_of(*names), **options), simulate


@pytest.mark.parametrize("second", ENDINGS)
@pytest.mark.parametrize("first", ENDINGS)
def test_searches_that_end_in_any_two_ways_end_in_a_table(
    first: str, second: str, tmp_path: Path
) -> None:
    """As text, JSON and files; only two goodputs are compared, and no other has a value."""
    if first == second == "unattainable":
        return  # one line instead, see `test_bad_input_is_one_line`
    found, simulate = searched(first, second)
    kinds = [ENDINGS[kind][0] for kind in (first, second)]
    assert [verdict.status for verdict in found.verdicts.values()] == kinds
    for kind, verdict in zip((first, second), found.verdicts.values(), strict=True):
        assert (kind in ("found", "wide")) == (verdict.goodput is not None)
        assert (kind in ("pilots only", "found", "wide")) == bool(verdict.stages)
        if verdict.goodput is not None:
            rates = [probe.rate_rps for probe in verdict.probes]
            assert min(rates) <= verdict.goodput.value <= max(rates)
    by_rate = compare_by_rate(found, simulate)
    text, plain = tables.as_text(found, by_rate), tables.as_json(found, by_rate)
    json.dumps(plain, allow_nan=False)
    known = [kind in ("found", "wide") for kind in kinds]
    assert len(plain["comparisons"]) == len(by_rate) == all(known)
    assert ("Not compared" in text) == (not all(known))
    assert max(map(len, text.splitlines())) <= 110
    for row, kind, has in zip(plain["goodput"], kinds, known, strict=True):
        assert row["status"] == kind
        assert (row["goodput_rps"] is not None) == has
        assert (row["requests_per_cost"] is not None) == has
        line_of = next(one for one in text.splitlines() if one.startswith(row["strategy"]))
        assert ("not settled" in line_of) == (kind == "not settled")
        if kind == "not settled":
            low, high = row["between"]["low_rps"], row["between"]["high_rps"]
            assert low is None or high is None or low < high
            assert f"{row['strategy']}: not settled: attainment" in text
    tables.write(found, tmp_path, by_rate)
    stored = json.loads((tmp_path / "goodput.json").read_text())
    assert stored["goodput"] == plain["goodput"]
    rows = list(csv.DictReader((tmp_path / "probes.csv").read_text().splitlines()))
    assert {row["strategy"] for row in rows} == set(found.verdicts)


# Verdicts drawn at random -----------------------------------------------------------------------


@st.composite
def stages(draw: st.DrawFn) -> Stage:
    """Draw a stage around some rate; the k-th replication of every strategy has the same runs."""
    size = draw(st.sampled_from([3, 8, 11]))
    rate = draw(st.floats(0.1, 1e3))
    spread = draw(st.sampled_from([0.0, 1e-9, 0.05, 3.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    first = draw(st.sampled_from([1, 1001]))
    probes = []
    for side in (0, 1):
        odds = logit(0.9) + (1 - 2 * side) * draw(st.sampled_from([1e-6, 0.3, 2.0]))
        outcomes = [outcome(odds + spread * rng.standard_normal()) for _ in range(size)]
        numbers = tuple(range(first + side, first + 2 * size, 2))
        where = rate * math.exp(0.05 * (2 * side - 1))
        probes.append(Probe(where, 4000, tuple(outcomes), numbers))
    low, high = probes
    numbers = low.replications + high.replications
    estimate = estimate_crossing(low.counts, high.counts, 0.9, numbers)
    return Stage(low=low, high=high, estimate=estimate)


def falls(rate: float, num: int) -> Falls:
    """Return runs at a rate of which so many collapsed."""
    return Falls(
        rate_rps=rate, num_runs=16, num_fallen=num, num_recovered=0, healthy_s=900.0, full="decode"
    )


@st.composite
def verdicts(draw: st.DrawFn) -> Verdict:
    """Draw any verdict that a search can end with."""
    single = Probe(draw(st.floats(0.1, 1e3)), 400, (outcome(draw(st.floats(-9, 9))),), (0,))
    status = draw(
        st.sampled_from(["found", "wide", "collapses", "not settled", "unlimited", "unattainable"])
    )
    if status in ("unlimited", "unattainable"):
        alone = single if status == "unattainable" else None
        return Verdict(status=status, estimate=None, probes=(single,), alone=alone)
    if status == "collapses":
        rate = draw(st.floats(0.1, 1e3))
        probe = Probe(rate, 4000, (outcome(3.0),) * 16, tuple(range(1, 17)))
        seen = falls(rate, 0), falls(1.05 * rate, draw(st.integers(1, 16)))
        return Verdict(status=status, estimate=None, probes=(probe,), falls=seen, recommended=probe)
    own = draw(st.lists(stages(), max_size=2))
    known = tuple(stage for stage in own if stage.estimate is not None)
    if not known:
        status = "not settled"
    return Verdict(
        status=status,
        estimate=None if status == "not settled" else known[-1].estimate,
        probes=(single, *(p for stage in own for p in (stage.low, stage.high))),
        stages=known,
        dips=draw(st.sampled_from([(), (single,)])),
    )


@examples(100)
@given(st.lists(verdicts(), min_size=1, max_size=4))
def test_any_verdicts_make_a_table(drawn: list[Verdict]) -> None:
    """With every pair of goodputs once, the better first, and intervals around their values."""
    names = [f"s{k}" for k in range(len(drawn))]
    found = Found(
        scenario=scenario_of(*names),
        settings=SETTINGS,
        seed=0,
        num_gpus=dict.fromkeys(names, 2),
        verdicts=dict(zip(names, drawn, strict=True)),
    )
    compared = found.comparisons()
    known = [name for name in names if found.verdicts[name].goodput is not None]
    assert sorted(tuple(sorted((p.first, p.second))) for p in compared) == list(
        itertools.combinations(known, 2)
    )
    for pair in compared:
        assert pair.ratio.low <= pair.ratio.value <= pair.ratio.high
        assert pair.ratio.value >= 1.0
        own = [found.verdicts[name] for name in (pair.first, pair.second)]
        goodputs = [verdict.goodput.value for verdict in own if verdict.goodput]
        assert pair.ratio.value == pytest.approx(goodputs[0] / goodputs[1])
        if any(verdict.status == "collapses" for verdict in own):
            assert math.isnan(pair.p_value)
            continue
        assert 0.0 <= pair.p_value <= 1.0
        one, other = (verdict.stages[-1].replications for verdict in own)
        assert pair.paired == bool(set(one) & set(other))
    text = tables.as_text(found)
    assert all(str(pair) in text for pair in compared)
    for name, verdict in found.verdicts.items():
        plain = " ".join(text.split())  # lines are filled
        if verdict.status == "collapses":
            below, above = verdict.falls
            words = f"{name}: collapses in {above.num_fallen} of 16 runs at "
            assert words in plain
            assert f"{name}: recommended: at {three_digits(below.rate_rps)} req/s none" in plain
        words = f"{name}: meets the targets at its goodput, but not at every lower rate: at "
        assert (words in plain) == bool(verdict.dips)
    json.dumps(tables.as_json(found), allow_nan=False)


@examples(100)
@given(verdicts(), verdicts())
def test_the_order_of_a_pair_does_not_matter(one: Verdict, other: Verdict) -> None:
    """Whatever the two verdicts are."""
    forth, back = compare_verdicts("a", one, "b", other), compare_verdicts("b", other, "a", one)
    assert (forth is None) == (one.goodput is None or other.goodput is None)
    if forth is not None and back is not None and forth.ratio.value > 1.0:
        assert repr(forth) == repr(back), "a p-value that is not known equals none"


def test_two_rates_that_look_alike_are_said_with_more_digits() -> None:
    """Not between 25.1 and 25.1."""
    probes = tuple(Probe(r, 400, (outcome(odds),), (0,)) for r, odds in ((25.08, 9), (25.12, 0)))
    ended = Verdict(status="not settled", estimate=None, probes=probes)
    assert "between 25.08 and 25.12 req/s" in tables.ending(ended, SETTINGS)


# Independent goodputs ---------------------------------------------------------------------------


def estimate_of(sample: np.ndarray) -> Estimate:
    """Return a goodput whose logarithm is the mean of a sample."""
    size = len(sample)
    influence = (sample - sample.mean()) / math.sqrt(size * (size - 1))
    first = 1000 * size
    return Estimate(
        log_rate=float(sample.mean()),
        slope=9.0,
        influence=influence,
        degrees=size - 1,
        replications=tuple(range(first, first + size)),
    )


@pytest.mark.parametrize(("size", "other_size"), [(6, 10), (10, 6), (10, 11), (3, 20)])
def test_independent_goodputs_are_compared_as_by_welch(size: int, other_size: int) -> None:
    """SciPy's test of Welch is the oracle; its degrees of freedom are rounded here."""
    rng = np.random.default_rng(7)
    one, other = rng.normal(1.2, 0.3, size), rng.normal(1.0, 0.05, other_size)
    expected = stats.ttest_ind(one, other, equal_var=False)
    error = math.sqrt(one.var(ddof=1) / size + other.var(ddof=1) / other_size)
    pair = compare("one", estimate_of(one), "other", estimate_of(other))
    degrees = round(expected.df)
    assert math.log(pair.ratio.value) == pytest.approx(abs(one.mean() - other.mean()))
    assert pair.p_value == pytest.approx(2 * stats.t.sf(abs(expected.statistic), degrees))
    half = math.log(pair.ratio.high / pair.ratio.value)
    assert half == pytest.approx(stats.t.ppf(0.975, degrees) * error)
    assert "on different requests" in str(pair)
    # In requests/s by the delta method.
    rates = math.exp(one.mean()), math.exp(other.mean())
    parts = [r**2 * x.var(ddof=1) / len(x) for r, x in zip(rates, (one, other), strict=True)]
    free = sum(parts) ** 2 / sum(
        p**2 / (n - 1) for p, n in zip(parts, (size, other_size), strict=True)
    )
    wide = stats.t.ppf(0.975, round(free)) * math.sqrt(sum(parts))
    gap = pair.difference_rps
    assert gap.high - gap.value == pytest.approx(wide)


# What was found is not lost ---------------------------------------------------------------------


@pytest.mark.parametrize("options", [[], ["--by-rate"]])
def test_what_was_found_is_written_before_it_is_compared(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure of the comparison leaves the goodputs, and the same command then ends at once."""
    (tmp_path / "s.toml").write_text(to_toml(dict(scenario_of("one", "two").document)))
    command = ["goodput", str(tmp_path / "s.toml"), "-o", str(tmp_path / "out"), "--jobs", "1"]
    command += ["--no-step-time-errors", *options]
    whole, place = "simcluster.studies.goodput.by_rate.compare_by_rate", tmp_path / "out"
    answer = line(100.0, 0.02)
    monkeypatch.setattr(runs, "simulate_cell", lambda _, cell: answer([cell])[0])

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        if options:
            patch.setattr(whole, fail)
        else:
            patch.setattr(pairs_module, "compare", fail)
        failed = CliRunner().invoke(main, command)
    assert isinstance(failed.exception, ZeroDivisionError)
    left = json.loads((place / "goodput.json").read_text())
    assert [row["status"] for row in left["goodput"]] == ["found", "found"]
    assert left["comparisons"] is None
    assert (place / "probes.csv").exists()
    assert not (tmp_path / ".out.partial").exists()
    if not options:
        monkeypatch.setattr(runs, "simulate_cell", fail)  # nothing is run again
    assert CliRunner().invoke(main, command).exit_code == 0
    stored = json.loads((place / "goodput.json").read_text())
    assert stored["goodput"] == left["goodput"]
    assert len(stored["comparisons"]) == 1


# The command ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "status"), [("found", 0), ("no stage", 3)])
def test_a_search_that_settles_nothing_ends_with_status_3(
    kind: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done, and says between which rates the goodput lies."""
    (tmp_path / "s.toml").write_text(to_toml(dict(scenario_of("one").document)))

    def cells(_: Scenario, wanted: Sequence[Cell], **__: object) -> list[Outcome]:
        return ENDINGS[kind][1](list(wanted))

    monkeypatch.setattr(runs, "simulate_cells", cells)
    options = ["--no-step-time-errors", "--jobs", "1"]
    ended = CliRunner().invoke(main, ["goodput", str(tmp_path / "s.toml"), *options])
    assert ended.exit_code == status
    assert ("one: not settled: attainment" in ended.stdout) == (status == 3)


@pytest.mark.parametrize("text", ["100", "0.95", "P50,x", "nan", "-5"])
def test_levels_that_are_no_percentiles_are_one_line(text: str, tmp_path: Path) -> None:
    """A share in place of a percentile too."""
    (tmp_path / "s.toml").write_text(to_toml(dict(scenario_of("one").document)))
    command = ["goodput", str(tmp_path / "s.toml"), f"--levels={text}"]
    ended = CliRunner().invoke(main, command)
    assert ended.exit_code in (1, 2)
    assert "is no percentile from 1 to below 100" in ended.stderr


# What a run is counted by -----------------------------------------------------------------------


def test_what_was_asked_for_counts_whatever_is_rejected() -> None:
    """A strategy that rejects the longest prompts has not been asked for less."""
    document = small_scenario({"name": "one", "kind": "nodg"})
    document["workload"] = {
        "lengths": {
            "kind": "lognormal",
            "prompt_median": 300,
            "prompt_sigma": 0.8,
            "output_median": 5,
            "output_sigma": 0.3,
        },
        "num_requests": 400,
    }
    scenario = resolve(document)
    columns = simulate(scenario, rate_rps=2.0, seed=1).columns["requests"]
    before = runs.outcome(columns, scenario, 2.0)
    longest = columns["prompt_len"] > np.quantile(columns["prompt_len"], 0.95)
    status = np.where(longest, "rejected", columns["status"].astype(object))
    after = runs.outcome({**columns, "status": status}, scenario, 2.0)
    assert after.controls == before.controls
    assert after.met < before.met
    assert abs(before.controls[0]) < 0.3


@pytest.mark.parametrize(
    ("slo", "targets"),
    [
        ({"ttft_s": 1.0, "itl_s": 0.1}, (0.9, 0.9)),
        ({"ttft_s": 1.0, "tpot_s": 0.1, "percentiles": {"tpot": 99}}, (0.9, 0.99)),
    ],
)
def test_each_target_that_is_set_is_a_criterion(
    slo: dict[str, Any], targets: tuple[float, ...]
) -> None:
    """Gaps between tokens too, each with its own percentile."""
    document = small_scenario({"name": "one", "kind": "nodg"})
    document["slo"] = {"attainment": 0.9, "criterion": "marginal", **slo}
    scenario = resolve(document)
    assert runs.targets_of(scenario.environment.slo) == targets
    one = runs.simulate_cell(scenario, Cell("one", 1.0, 1, 50))
    assert len(one.counted) == len(targets)
