"""Goodput with confidence: a queue whose goodput is known, pairs, bad input."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from scipy import stats

from helpers.outcomes import outcome_of_odds
from simcluster.cli import main
from simcluster.rng import stream
from simcluster.runs.simulate import run
from simcluster.strategies import NoDG
from simcluster.studies.goodput import compare
from simcluster.studies.goodput.by_rate import AtRate, ByRate, paired_p_value
from simcluster.studies.goodput.estimate import Counts, Estimate, estimate_crossing
from simcluster.studies.goodput.probe import Outcome
from simcluster.studies.goodput.rules import RULES, Settings
from simcluster.studies.goodput.runs import counted_window
from simcluster.studies.goodput.search import Located, Verdict, search
from simcluster.testing import specs
from simcluster.testing.step_times import ConstantStepTime, same_for_all
from simcluster.testing.workloads import workload_of


def test_a_deployment_of_one_sequence_waits_as_the_benchmark_says(md1: Any) -> None:
    """So the coverage of the benchmark is that of the simulator."""
    gaps = stream(3, "arrivals").standard_exponential(500)
    workload = workload_of(np.cumsum(gaps) / 0.8, 1, 1)
    strategy = NoDG(name="one", instances=1, max_num_seqs=1)
    step = same_for_all(ConstantStepTime(1.0))
    environment = specs.environment(
        model=specs.llama_2_7b(), engine=specs.ideal_engine(), num_nodes=1
    )
    result = run(environment, strategy, workload, step_time=step)
    requests = result.columns["requests"]
    waits = requests["scheduled_s"] - requests["arrival_s"]
    assert waits == pytest.approx(md1.lindley(workload.arrival_s), abs=1e-6)


def test_waits_of_the_queue_follow_theory(md1: Any) -> None:
    """Erlang's formula against a long recursion; without load nobody waits."""
    arrival = np.cumsum(stream(1, "arrivals").standard_exponential(400_000)) / 0.7
    share = float((md1.lindley(arrival) <= 3.5).mean())
    assert share == pytest.approx(md1.md1_within(0.7, 3.5), abs=0.005)
    assert md1.md1_within(0.5, 0.0) == pytest.approx(0.5)


def test_intervals_hold_the_true_goodput(md1: Any) -> None:
    """A loose version of ``benchmarks/coverage.py``: 60 whole searches; 95 % less four errors."""
    settings = Settings(target=0.9, tolerance=0.04, least_s=100)
    held, width, bias, _ = md1.coverage(60, 5.0, settings)
    assert held >= 0.95 - 4 * math.sqrt(0.95 * 0.05 / 60)
    assert width <= 0.04
    assert abs(bias) < 0.01


@pytest.mark.parametrize("seed", [286, 321, 325])
def test_rates_come_together_again(md1: Any, seed: int) -> None:
    """Where a pilot could not tell its rates apart, later ones are not far apart for ever."""
    settings = Settings(target=0.9, tolerance=0.01, least_s=200)
    verdict = md1.one_search(seed, 10.0, settings)
    assert verdict.status == "found"
    last = verdict.stages[-1]
    assert last.high.rate_rps / last.low.rate_rps < 1.1
    assert verdict.estimate.interval.value == pytest.approx(md1.true_goodput(10.0, 0.9), rel=0.02)


def test_a_tighter_tolerance_takes_longer_runs(md1: Any) -> None:
    """The interval is as narrow as asked; where the runs may not be long enough, it says so."""
    loose = md1.one_search(0, 5.0, Settings(target=0.9, tolerance=0.05))
    tight = md1.one_search(0, 5.0, Settings(target=0.9, tolerance=0.01, max_requests=200_000))
    assert tight.estimate.half_width <= 0.01
    assert tight.num_requests > 2 * loose.num_requests
    short = md1.one_search(0, 5.0, Settings(target=0.9, tolerance=0.01, max_requests=1500))
    assert short.status == "wide"


def searched_on_a_line(begin: Located, slope: float, scatter: float = 0.0) -> Verdict:
    """Return a whole search of log odds that fall straight through those of 90 % at a rate of 1.

    With the same scatter in each second run.
    """
    going = search(begin, Settings(target=0.9))
    wanted = next(going)
    while True:
        came = []
        for one in wanted:
            off = scatter if one.replication % 4 < 2 else -scatter
            odds = math.log(9) - slope * math.log(one.rate_rps) + off
            came.append(outcome_of_odds(odds))
        try:
            wanted = going.send(came)
        except StopIteration as end:
            verdict: Verdict = end.value
            return verdict


@pytest.mark.parametrize("off", [1.0, 1.06, 0.94, 1.3])
@pytest.mark.parametrize("slope", [10.0, 40.0])
def test_a_start_off_the_goodput_costs_two_runs_each(off: float, slope: float) -> None:
    """The stage is put in its place by pairs of runs, and no larger one is thrown away."""
    begin = Located(rate_rps=off, slope=slope, num_requests=4000)
    verdict = searched_on_a_line(begin, slope)
    assert verdict.goodput is not None
    assert verdict.goodput.value == pytest.approx(1.0, rel=1e-4)
    sizes = [len(probe.outcomes) for probe in verdict.probes]
    assert sizes.count(8) == 2
    assert set(sizes) == {1, 8}
    assert sum(sizes) <= 16 + 2 * 4 + 2  # the stage, its places, the low loads
    assert {len(stage.low.outcomes) for stage in verdict.stages} == {3, 8}


def test_a_slope_that_is_far_too_steep_does_not_hide_how_far_off_a_start_is() -> None:
    """One run may fall off a cliff where the mean of many does not."""
    verdict = searched_on_a_line(Located(rate_rps=1.1, slope=300.0, num_requests=4000), 30.0)
    assert {len(probe.outcomes) for probe in verdict.probes} == {1, 8}


def test_what_counts_is_neither_the_start_nor_the_end_of_a_run() -> None:
    """0.4 and a fifteenth of the time of arrivals; a delay alone then shows the true share.

    Requests that are slow while others come after them: those of the last stay have none.
    """
    arrival = np.arange(0.0, 1500.0)
    slow = arrival < 1400.0
    kept = counted_window(arrival, 1500.0)
    assert (arrival[kept].min(), arrival[kept].max()) == (600.0, 1400.0)
    assert slow[kept].mean() > 0.998
    assert RULES.counted == pytest.approx(8 / 15)


def test_a_stage_that_grew_keeps_the_degrees_of_its_first_look() -> None:
    """Stein: its size followed from how much the first replications varied."""
    low, high = _counts(1.0, np.linspace(0.93, 0.97, 30)), _counts(1.1, np.linspace(0.80, 0.88, 30))
    free = estimate_crossing(low, high, 0.9)
    capped = estimate_crossing(low, high, 0.9, most_degrees=Settings(target=0.9).most_degrees)
    assert free is not None
    assert capped is not None
    assert (free.degrees > 12, capped.degrees) == (True, 12)
    assert capped.half_width / free.half_width == pytest.approx(
        stats.t.ppf(0.975, 12) / stats.t.ppf(0.975, free.degrees)
    )
    grown = searched_on_a_line(
        Located(rate_rps=1.0, slope=20.0, num_requests=4000), 20.0, scatter=1.5
    )
    assert grown.estimate is not None
    assert grown.stages[-1].size > 8
    assert grown.estimate.degrees <= 12


def test_a_tighter_tolerance_takes_a_longer_start() -> None:
    """What decays by e in 2.3 residence times is the same share of the tolerance at its end."""
    at = {tolerance: 0.4 * RULES.length(tolerance) for tolerance in (0.03, 0.01, 0.003)}
    left = {tolerance: math.exp(-length / 2.3) / tolerance for tolerance, length in at.items()}
    assert left[0.01] == pytest.approx(left[0.03])
    assert left[0.003] == pytest.approx(left[0.03])
    assert at[0.03] == pytest.approx(6.0)


def _always(met: bool, residence_s: float) -> str:
    going = search(2.0, Settings(target=0.9))
    wanted = next(going)
    for _ in range(100):
        done = Outcome(
            counted=(100,),
            met=(100 * met,),
            residence_s=residence_s,
            arrivals=0.0,
            drift=0.0,
            growth=0.0,
        )
        try:
            wanted = going.send([done] * len(wanted))
        except StopIteration as end:
            return str(end.value.status)
    raise AssertionError("the search does not end")


def test_searches_end_where_there_is_no_goodput() -> None:
    """Targets that nothing misses, and targets that nothing meets."""
    assert _always(True, 1.0) == "unlimited"
    assert _always(False, 1.0) == "unattainable"


def _counts(rate_rps: float, shares: Any, arrivals: Any = None) -> Counts:
    """Return replications of a million requests with these shares of each criterion."""
    met = 1e6 * np.asarray(shares, dtype=np.float64)
    met = met[:, None] if met.ndim == 1 else met
    return Counts(
        rate_rps=rate_rps,
        counted=np.full(met.shape, 1e6),
        met=met,
        arrivals=np.zeros(len(met)) if arrivals is None else np.asarray(arrivals),
        controls=np.empty((len(met), 0)),
    )


def test_the_marginal_criterion_takes_the_least_share() -> None:
    """The goodput is where the first of the criteria crosses the target."""
    low = _counts(1.0, [[0.99, 0.95], [0.99, 0.94], [0.99, 0.96]])
    high = _counts(2.0, [[0.95, 0.80], [0.95, 0.81], [0.95, 0.79]])
    assert low.attainment == pytest.approx(0.95)
    both, second = (
        estimate_crossing(low, high, 0.9),
        estimate_crossing(_counts(1.0, [0.95, 0.94, 0.96]), _counts(2.0, [0.80, 0.81, 0.79]), 0.9),
    )
    assert both is not None
    assert second is not None
    assert both.log_rate == pytest.approx(second.log_rate)


def test_the_crossing_lies_between_the_two_rates() -> None:
    """Log odds are taken as straight in the logarithm of the rate."""
    estimate = estimate_crossing(_counts(1.0, [0.75] * 3), _counts(4.0, [0.25] * 3), 0.5)
    assert estimate is not None
    assert estimate.interval.value == pytest.approx(2.0)
    assert estimate.half_width == pytest.approx(0.0, abs=1e-6)
    assert estimate_crossing(_counts(1.0, [0.25] * 3), _counts(4.0, [0.75] * 3), 0.5) is None


def test_a_line_that_hardly_falls_has_no_crossing_or_an_open_interval() -> None:
    """One that crosses a thousand times above the rates is none; wide noise is no overflow."""
    assert (
        estimate_crossing(_counts(1.0, [0.99, 0.99, 0.99]), _counts(1.1, [0.98999] * 3), 0.5)
        is None
    )
    estimate = estimate_crossing(
        _counts(1.0, [0.5, 0.9, 0.1]), _counts(1.0001, [0.4999999, 0.9, 0.1]), 0.5
    )
    assert estimate is not None
    assert estimate.interval.low == 0.0
    assert estimate.interval.high == math.inf


def test_chance_in_the_number_of_arrivals_is_no_noise() -> None:
    """Replications that differ only by how fast their requests came are known exactly."""
    rng = np.random.default_rng(0)
    arrivals = rng.normal(0, 0.05, (2, 4))
    rates = 1.0, 1.2

    def share(rate: float, extra: Any) -> Any:
        return 1 / (1 + np.exp(8 * (np.log(rate) + extra) - 2))

    groups = [_counts(r, share(r, x), x) for r, x in zip(rates, arrivals, strict=True)]
    plain = [_counts(r, share(r, x)) for r, x in zip(rates, arrivals, strict=True)]
    estimate, without = estimate_crossing(*groups, 0.9), estimate_crossing(*plain, 0.9)
    assert estimate is not None
    assert without is not None
    truth = (2 - math.log(9)) / 8
    assert estimate.log_rate == pytest.approx(truth, abs=0.01)
    assert estimate.half_width < 0.2 * without.half_width


def test_pairs_are_decided_on_what_differs() -> None:
    """Common noise cancels; the better one comes first."""
    noise = np.array([0.05, -0.05, 0.02, 0.05, -0.05, 0.02])
    small = np.array([0.001, 0.001, -0.001, -0.001, 0.001, 0.001])
    a = Estimate(log_rate=math.log(10.0), slope=9.0, influence=noise, degrees=4)
    b = Estimate(log_rate=math.log(11.2), slope=9.0, influence=noise + small, degrees=4)
    pair = compare("a", a, "b", b)
    assert (pair.first, pair.decided) == ("b", True)
    assert str(pair).startswith("b beats a by 12 %")
    assert pair.difference_rps.value == pytest.approx(1.2)
    assert pair.p_value < 1e-4
    elsewhere = dataclasses.replace(b, replications=tuple(range(100, 106)))
    unpaired = compare("a", a, "b", elsewhere)
    assert (unpaired.paired, unpaired.decided) == (False, False)
    assert unpaired.ratio.value == pair.ratio.value
    assert "undecided" in str(unpaired)
    assert compare("a", a, "same", a).p_value == 1.0


def test_pairs_by_rate_are_said_in_words() -> None:
    """Stretches of rates with one verdict; the p-value is that of a paired t test."""
    from scipy import stats

    values = np.array([0.01, 0.03, -0.01, 0.02])
    expected = stats.ttest_1samp(values, 0.0).pvalue
    assert paired_p_value(values) == pytest.approx(expected)
    assert paired_p_value(np.zeros(3)) == 1.0
    points = [(2.0, 0.1, 0.01), (6.2, 0.2, 0.04), (8.0, 0.0, 0.5), (9.0, -0.2, 0.001)]
    at = tuple(AtRate(rate_rps=r, difference=d, p_value=p) for r, d, p in points)
    text = "a beats b up to 6.20 req/s; undecided at 8.00 req/s; b beats a from 9.00 req/s on"
    assert str(ByRate(first="a", second="b", at=at)) == f"a, b: {text}"


SCENARIO = """
model.name = "llama-2-7b"
cluster = { gpu = "A100", nodes = 1, gpus_per_node = 1, price_per_gpu_hour = 2.0 }
workload.lengths = { kind = "lognormal", prompt_median = 500, prompt_sigma = 0.5, \
output_median = 6, output_sigma = 0.5 }
slo = { ttft_s = 0.5, attainment = 0.9 }
strategy = [ { name = "one", kind = "nodg", scheduler = "prefill-priority" }, \
{ name = "chunks", kind = "nodg", scheduler = "chunked" } ]
"""


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """A small scenario."""
    path = tmp_path / "small.toml"
    path.write_text(SCENARIO)
    return path


def call(*arguments: object) -> Any:
    """Run ``simcluster goodput`` in one process."""
    return CliRunner().invoke(
        main, ["goodput", *map(str, arguments), "--jobs", "1", "--max-requests", "1000"]
    )


def test_the_command_says_how_sure_it_is(scenario: Path, tmp_path: Path) -> None:
    """JSON, files; the same seed gives the same answer."""
    options = [scenario, "--tolerance", 0.3, "--seed", 5, "--by-rate", "-o", tmp_path / "out"]
    result = json.loads(call(*options, "--json").stdout, parse_constant=pytest.fail)
    row = result["goodput"][0]
    goodput = row["goodput_rps"]
    assert row["status"] == "found"
    assert goodput["low"] < goodput["value"] < goodput["high"]
    assert math.log(goodput["high"] / goodput["value"]) <= 0.3
    assert row["requests_per_cost"]["value"] == pytest.approx(goodput["value"] * 3600 / 2)
    assert row["cost_per_million_output_tokens"]["value"] > 0
    assert len(result["comparisons"]) == 1
    assert [len(pair["at"]) for pair in result["by_rate"]] == [2]
    stored = json.loads((tmp_path / "out" / "goodput.json").read_text())
    assert stored["goodput"] == result["goodput"]
    assert (tmp_path / "out" / "probes.csv").read_text().count("\n") > 15
    text = call(scenario, "--tolerance", 0.3, "--seed", 5).stdout
    assert "On the same requests" in text
    assert max(map(len, text.splitlines())) <= 110


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["slo.ttft_s=0.0001"], ["alone", "TTFT P50"]),
        (
            ["slo.ttft_s=0.0001", "strategy.one.kind=padg", "slo.tpot_s=1"],
            ["alone", "one finishes no request"],
        ),
        (["slo.ttft_s="], ["slo", "target"]),
        (["slo.attainment=1.0"], ["slo.attainment", "0.999"]),
        (["workload.goodput_by=thin"], ["workload.goodput_by", "only a trace"]),
    ],
)
def test_bad_input_is_one_line(scenario: Path, changes: list[str], words: list[str]) -> None:
    """With the way out."""
    result = call(scenario, *(part for change in changes for part in ("--set", change)))
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
