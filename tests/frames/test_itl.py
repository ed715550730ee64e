"""Inter-token latencies: against every token written out, a hand count, and step times on paper."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import simcluster
from simcluster.cli import main
from simcluster.config import Environment, RunConfig, SloConfig, SloTargets
from simcluster.errors import ConfigError
from simcluster.frames.itl import Gaps, GapsInParts, Tally, gaps_of, with_p99
from simcluster.frames.metrics import attainments, met_targets, summarise
from simcluster.frames.schema import ITL_P99
from simcluster.frames.unroll import (
    inter_token_latencies,
    released_times,
    steps,
    token_times,
)
from simcluster.roofline import StepShape
from simcluster.roofline.of_environment import roofline_step_time
from simcluster.runs.result import Result
from simcluster.runs.simulate import run, simulate
from simcluster.strategies import FuDG, NoDG, PaDG
from simcluster.testing.contracts.base import REQUESTS
from simcluster.testing.examples import examples
from simcluster.testing.specs import vllm_engine
from simcluster.testing.toy import (
    ENGINES,
    STRICT,
    TOYS,
    toy_environment,
    toy_workload,
    with_room,
)
from simcluster.testing.workloads import workload_of
from simcluster.workload import Workload

STRATEGIES: list[Any] = [
    NoDG(name="vllm", instances=2),
    NoDG(name="tight", instances=1, num_kv_blocks=13),
    NoDG(name="swap", instances=1, num_kv_blocks=10, max_num_seqs=3, preemption="swap"),
    NoDG(name="chunks", instances=1, scheduler="chunked", chunk_size=70, max_num_seqs=64),
    NoDG(name="small-chunks", instances=1, scheduler="chunked", chunk_size=16, max_num_seqs=8),
    NoDG(name="piped", instances=1, pp_size=2, num_kv_blocks=26),
    FuDG(name="distserve", prefill_instances=1, decode_instances=1, num_kv_blocks=13),
    PaDG(name="open", instances=2, hold_output=False),
    PaDG(name="held", instances=2, num_kv_blocks=13, slack="max"),
]


@examples(150)
@given(
    strategy=st.sampled_from(STRATEGIES),
    load=st.builds(toy_workload, REQUESTS),
    where=st.builds(
        toy_environment, st.sampled_from(ENGINES), st.just(STRICT), st.sampled_from(TOYS)
    ),
    resolution=st.sampled_from(["span", "step"]),
    max_time_s=st.sampled_from([None, None, 0.03, 0.1]),
)
def test_gaps_are_those_between_tokens_written_out(
    strategy: Any, load: Workload, where: Environment, resolution: str, max_time_s: float | None
) -> None:
    """Pooled percentiles and the P99 of each request, from all token times one by one.

    `tests/frames/test_unroll.py` compares those token times with what a witness saw.
    """
    strategy = with_room(strategy, where.model.spec)
    result = run(where, strategy, load, resolution=resolution, max_time_s=max_time_s)
    gaps = gaps_of(result.columns, where)
    released = released_times(
        result.columns, token_times(result.columns, steps(result.columns, where))
    )
    each = inter_token_latencies(released)
    count = len(each)
    chosen = np.arange(count) % 3 != 1
    of_chosen = np.concatenate([[], *(each[i] for i in np.flatnonzero(chosen))])
    of_chosen = of_chosen[~np.isnan(of_chosen)]
    found = gaps.statistics(chosen)
    if len(of_chosen):
        expected = np.quantile(of_chosen, [0.5, 0.9, 0.95, 0.99]).tolist()
        assert [found[stat] for stat in ("p50", "p90", "p95", "p99")] == expected
        assert found["mean"] == pytest.approx(of_chosen.mean(), rel=1e-12)
    else:
        assert np.isnan(list(found.values())).all()
    values, counts = gaps.distribution(chosen)
    assert (np.diff(values) > 0).all()
    np.testing.assert_array_equal(np.repeat(values, counts), np.sort(of_chosen))
    p99_s = gaps.p99_of_each(count)
    for number in range(count):
        mine = each[number]
        if len(mine):
            expected = np.quantile(mine, 0.99, method="inverted_cdf")
            np.testing.assert_equal(p99_s[number], expected)
        else:
            assert np.isnan(p99_s[number])
    # A few requests at a time, with the spans of their time: the same to the bit.
    parts = GapsInParts(result.columns, where, size=3)
    np.testing.assert_equal(parts.statistics(chosen), found)
    for one, other in zip(parts.distribution(chosen), (values, counts), strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(parts.p99_of_each(), p99_s)


def test_a_tally_of_parts_is_numpys_quantile_of_all() -> None:
    """On the time grid and off it, above and below a second, with ties across parts."""
    rng = np.random.default_rng(0)
    tally, every = Tally(), []
    for number in range(20):
        values = rng.exponential(0.3, 50)
        if number % 3:
            values = np.rint(values * 64) / 64  # many ties, on the grid
        weights = rng.integers(1, 5, 50)
        tally.add(values, weights)
        every.append(np.repeat(values, weights))
    pooled = np.concatenate(every)
    found = tally.statistics()
    expected = np.quantile(pooled, [0.5, 0.9, 0.95, 0.99]).tolist()
    assert [found[stat] for stat in ("p50", "p90", "p95", "p99")] == expected
    assert found["mean"] == pytest.approx(pooled.mean(), rel=1e-12)
    values, counts = tally.distribution()
    np.testing.assert_array_equal(np.repeat(values, counts), np.sort(pooled))


def test_the_gaps_of_a_request_add_up_to_its_decode() -> None:
    """Law: from the first to the last released token, with one gap fewer than tokens."""
    where = toy_environment(vllm_engine(), STRICT)
    load = toy_workload([(0.002, 30 + k, 1 + k * 7 % 40) for k in range(40)])
    for strategy in STRATEGIES:
        result = run(where, strategy, load)
        requests = result.columns["requests"]
        gaps = gaps_of(result.columns, where)
        for number in np.flatnonzero(requests["status"] == "finished"):
            alone = gaps.single_s[gaps.single_of == number]
            mine = np.flatnonzero(gaps.run_of == number)
            parts = [gaps.step_s[gaps.first[i] : gaps.last[i]] for i in mine]
            every = np.concatenate([alone, *parts])
            assert len(every) == requests["output_len"][number] - 1
            decode_s = requests["last_output_s"][number] - requests["first_output_s"][number]
            assert every.sum() == decode_s  # sums on the time grid are exact


def test_percentiles_of_gaps_written_by_hand() -> None:
    """Three sequences share the steps of 10 and 20 ms; one waits 1 s for a prefill between them."""
    gaps = Gaps(
        step_s=np.array([np.nan, 0.010, 0.020]),
        first=np.array([1, 1, 1]),
        last=np.array([3, 2, 3]),
        run_of=np.array([0, 1, 2]),
        single_s=np.array([1.0, np.nan]),
        single_of=np.array([0, 2]),
    )
    everyone = np.ones(3, np.bool_)
    # 0.010 x 3, 0.020 x 2, 1.0; the NaN is a token that nobody saw
    assert gaps.statistics(everyone) == {
        "mean": pytest.approx(1.07 / 6),
        "p50": pytest.approx(0.015),
        "p90": pytest.approx(0.51),
        "p95": pytest.approx(0.755),
        "p99": pytest.approx(0.951),
    }
    assert gaps.statistics(np.array([False, True, False]))["p99"] == 0.010
    assert gaps.p99_of_each(4).tolist()[:2] == [1.0, 0.010]
    assert np.isnan(gaps.p99_of_each(4)[2:]).all()


@pytest.mark.parametrize(("num", "late"), [(99, 1), (100, 1), (199, 1), (200, 2), (200, 3)])
def test_a_request_meets_its_itl_target_if_99_percent_of_its_gaps_do(num: int, late: int) -> None:
    """Counted: so an answer of up to 100 tokens must not stall once, one of 201 may twice."""
    slow = np.arange(num) < late
    gaps = Gaps(*(np.empty(0, np.int64) for _ in range(4)), np.where(slow, 0.5, 0.01), 0 * slow)
    p99_s = gaps.p99_of_each(1)[0]
    assert (p99_s <= 0.1) == ((~slow).mean() >= 0.99)


# Targets ----------------------------------------------------------------------------------------


def result_with(slo: SloConfig) -> Result:
    """One long answer that three prefills interrupt, and short ones."""
    load = workload_of([0.0, 0.02, 0.03, 0.04], [20, 100, 100, 100], [60, 1, 2, 3])
    return run(toy_environment(vllm_engine(), slo), NoDG(name="s", instances=1), load)


def test_a_stall_misses_the_itl_target_though_the_mean_gap_is_short() -> None:
    """TPOT is met, ITL is not; one-token answers have no gap and cannot miss it."""
    loose = SloConfig(ttft_s=5.0, tpot_s=1.0)
    plain = result_with(loose).columns["requests"]
    assert ITL_P99 not in plain
    gaps = gaps_of(result_with(loose).columns, toy_environment(vllm_engine(), loose))
    p99_s = gaps.p99_of_each(4)
    mean_s = plain["tpot_s"]
    assert p99_s[0] > 1.5 * mean_s[0]
    target_s = float((p99_s[0] + mean_s[0]) / 2)
    slo = dataclasses.replace(loose, itl_s=target_s)
    columns = result_with(slo).columns["requests"]
    np.testing.assert_array_equal(columns[ITL_P99], p99_s)
    met = met_targets(columns, slo)
    assert met["tpot"].all()
    assert met["itl"].tolist() == [False, True, *(p99_s[2:] <= target_s)]
    assert met["joint"].tolist() == met["itl"].tolist()
    counted = np.ones(4, np.bool_)
    marginal = dataclasses.replace(slo, criterion="marginal")
    assert attainments(columns, marginal, counted)["slo"] == met["itl"].mean()
    row = summarise(
        columns, slo=slo, run=RunConfig(), strategy="s", rate_rps=1.0, seed=0, num_gpus=1
    )
    assert row["itl_attainment"] == met["itl"].mean()
    assert np.isnan(row["itl_s_p99"])  # of whom nobody gave the gaps
    exact = dataclasses.replace(loose, itl_s=float(p99_s[0]))
    assert met_targets(result_with(exact).columns["requests"], exact)["itl"][0]


def test_a_class_may_have_an_itl_target_of_its_own() -> None:
    """The other class has none and cannot miss it."""
    slo = SloConfig(ttft_s=5.0, classes={"chat": SloTargets(itl_s=1e-6), "batch": SloTargets()})
    columns = dict(result_with(slo).columns["requests"])
    columns["slo_class"] = np.array(["batch", "chat", "chat", "batch"], dtype=object)
    assert met_targets(columns, slo)["joint"].tolist() == [True, True, False, True]


def test_all_resolutions_give_the_same_itl_column() -> None:
    """It comes from the same steps."""
    slo = SloConfig(itl_s=0.01)
    where, load = toy_environment(vllm_engine(), slo), toy_workload([(0.001, 40, 20)] * 12)
    results = [
        run(where, NoDG(name="s", instances=2), load, resolution=r).columns["requests"][ITL_P99]
        for r in ("span", "step", "kernel")
    ]
    assert results[0].tobytes() == results[1].tobytes() == results[2].tobytes()
    again = run(toy_environment(vllm_engine()), NoDG(name="s", instances=2), load)
    p99_s = with_p99(again.columns, toy_environment(vllm_engine()))[ITL_P99]
    assert p99_s.tobytes() == results[0].tobytes()


# Chunks (people ask which token budget keeps the P99 of the ITL within theirs) --------------------

DOCUMENT: dict[str, Any] = {
    "model": {"name": "llama-3.1-8b"},
    "cluster": {"gpu": "H100", "gpus_per_node": 1},
    "engine": {"profile": "vllm-0.19", "max_model_len": 8192},
    "workload": {
        "lengths": {"kind": "fixed", "prompt_len": 4000, "output_len": 200},
        "num_requests": 400,
        "rate_rps": 4.0,
    },
    "slo": {"ttft_s": 5.0, "itl_s": 0.1},
    "strategy": [{"name": "m", "kind": "nodg", "scheduler": "chunked"}],
}


def itl_ms(chunk: int) -> tuple[float, float, float]:
    """Mean TTFT, and P50 and P99 of the ITL (ms), with a token budget of `chunk`."""
    scenario = simcluster.resolve(DOCUMENT, {"strategy.m.chunk_size": chunk})
    result = simulate(scenario)
    statistics = gaps_of(result.columns, scenario.environment).statistics(
        result.columns["requests"]["status"] == "finished"
    )
    ttft_ms = 1e3 * float(np.nanmean(result.columns["requests"]["ttft_s"]))
    return ttft_ms, 1e3 * statistics["p50"], 1e3 * statistics["p99"]


def test_the_p99_of_the_itl_is_a_step_with_a_full_budget() -> None:
    """It grows with the chunk and the TTFT the other way round (Sarathi-Serve, section 4).

    At 4 requests/s of 4000 prompt tokens more than a tenth of the steps hold a chunk, so the P99
    lies between the times of a step with a full budget beside no and beside 40 decodes of 4200.
    """
    found = {chunk: itl_ms(chunk) for chunk in (512, 1024, 2048)}
    environment = simcluster.resolve(DOCUMENT).environment
    model = roofline_step_time(environment, 1)
    for chunk, (_, p50_ms, p99_ms) in found.items():
        alone = model.step_s(StepShape(0, 0, ((chunk, 0),), 0, 0))
        most = model.step_s(StepShape(40, 40 * 4200, ((chunk - 40, 4000 - chunk),), 40, 0))
        assert 1e3 * alone < p99_ms < 1e3 * most, chunk
        assert p50_ms < p99_ms
    ttft, _, p99 = zip(*found.values(), strict=True)
    assert p99[0] < p99[1] < p99[2]
    assert ttft[0] > ttft[1] > ttft[2]


def test_run_and_compare_print_itl_and_its_target(tmp_path: Path) -> None:
    """In the tables, in the JSON, in the line of the targets."""
    file = tmp_path / "scenario.toml"
    from simcluster.catalog.toml_writer import to_toml

    changes = {"num_requests": 40}
    file.write_text(to_toml({**DOCUMENT, "workload": {**DOCUMENT["workload"], **changes}}))
    shown = CliRunner().invoke(main, ["run", str(file)])
    assert shown.exit_code == 0, shown.output
    assert "P99 of ITL ≤ 100 ms" in shown.stdout
    line = next(x.split() for x in shown.stdout.splitlines() if x.startswith("ITL (ms)"))
    data = json.loads(CliRunner().invoke(main, ["run", str(file), "--json"]).stdout)
    itl = data["rows"][0]["itl_s"]
    for text, stat in zip(line[2:], ("mean", "p50", "p90", "p95", "p99"), strict=True):
        assert float(text) == pytest.approx(1e3 * itl[stat], rel=6e-3)
    compared = CliRunner().invoke(main, ["compare", str(file), "--jobs", "1"])
    assert compared.exit_code == 0, compared.output
    assert any(line.split().count("ITL") == 4 for line in compared.stdout.splitlines())
    rules = [line for line in compared.stdout.splitlines() if line.startswith("---")]
    assert max(map(len, rules)) <= 80
    tables = compared.stdout.partition("Answer:")[2].partition("\n\n")[2].splitlines()
    for percentile in ("P50", "P90", "P95", "P99"):
        assert sum(head.split().count(percentile) for head in tables) == 3


@pytest.mark.parametrize("value", [0.0, -0.1, float("inf"), "fast"])
def test_an_itl_target_must_be_a_positive_time(value: Any) -> None:
    """One line, like the other targets."""
    with pytest.raises(ConfigError, match=r"slo\.itl_s"):
        simcluster.resolve(DOCUMENT, {"slo.itl_s": value})


def test_percentiles_reach_the_heading_the_tables_and_the_json(tmp_path: Path) -> None:
    """TTFT P95 and TPOT P80: the targets say so, each has its share, one of them limits."""
    file = tmp_path / "scenario.toml"
    from simcluster.catalog.toml_writer import to_toml

    slo: dict[str, Any] = {"ttft_s": 1.0, "tpot_s": 0.02, "criterion": "marginal"}
    slo["percentiles"] = {"ttft": 95, "tpot": 80}
    workload = {**DOCUMENT["workload"], "num_requests": 40}
    workload.pop("rate_rps", None)
    sweep = {"rates_rps": [1.0, 500.0]}
    file.write_text(to_toml({**DOCUMENT, "slo": slo, "workload": workload, "sweep": sweep}))
    shown = CliRunner().invoke(main, ["compare", str(file), "--jobs", "1"])
    assert shown.exit_code == 0, shown.output
    assert "TTFT ≤ 1.00 s for 95 %, TPOT ≤ 20.0 ms for 80 % of the requests" in shown.stdout
    assert "Requests within TPOT (%, 80 wanted) at each offered rate (req/s):" in shown.stdout
    out = CliRunner().invoke(main, ["compare", str(file), "--jobs", "1", "--json"])
    data = json.loads(out.stdout)
    by_rate = {row["rate_rps"]: row for row in data["rows"]}
    wanted = {"ttft_attainment": 0.95, "tpot_attainment": 0.8}
    crossings = {
        key: 1 + 499 * (by_rate[1.0][key] - share) / (by_rate[1.0][key] - by_rate[500.0][key])
        for key, share in wanted.items()
        if by_rate[500.0][key] < share
    }
    (found,) = data["goodput"]
    assert crossings
    assert found["goodput_rps"] == pytest.approx(min(crossings.values()))
    assert found["first_missed"] == min(crossings, key=lambda key: crossings[key])
