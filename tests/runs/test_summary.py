"""A summary is the row of the run whose frames it does not keep, to within its error."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import simcluster
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import main
from simcluster.config import RunConfig, SloConfig, SloTargets
from simcluster.engine import request_log
from simcluster.errors import ConfigError, DataError
from simcluster.frames.itl import GapsInParts
from simcluster.frames.metrics import summarise
from simcluster.frames.summary import ERROR, Histogram
from simcluster.runs import compare, fold
from simcluster.runs.result import FRAMES
from simcluster.runs.simulate import run
from simcluster.strategies import FuDG, NoDG, PaDG
from simcluster.testing.examples import examples
from simcluster.testing.specs import vllm_engine
from simcluster.testing.toy import MOE, toy_environment, toy_workload

STRATEGIES: list[Any] = [
    NoDG(name="plain", instances=2),
    NoDG(name="tight", instances=1, num_kv_blocks=13),
    NoDG(name="swap", instances=1, num_kv_blocks=10, max_num_seqs=3, preemption="swap"),
    NoDG(name="chunks", instances=1, scheduler="chunked", chunk_size=70, max_num_seqs=64),
    NoDG(name="piped", instances=1, pp_size=2, num_kv_blocks=26),
    FuDG(name="distserve", prefill_instances=1, decode_instances=1, num_kv_blocks=13),
    PaDG(name="open", instances=2, hold_output=False),
    PaDG(name="held", instances=2, num_kv_blocks=13, slack="max"),
]
LOADS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.001, 0.02, 0.4]), st.integers(1, 90), st.integers(1, 40)),
    min_size=1,
    max_size=60,
)
SLO = SloConfig(ttft_s=0.05, tpot_s=0.012)


@examples(150)
@given(
    strategy=st.sampled_from(STRATEGIES),
    load=LOADS,
    settings=st.builds(
        RunConfig,
        warmup_s=st.sampled_from([0.0, 0.0, 0.03]),
        cooldown_s=st.sampled_from([0.0, 0.0, 0.5]),
        max_time_s=st.sampled_from([None, None, 0.2]),
    ),
    slo=st.sampled_from([SLO, replace(SLO, criterion="marginal"), replace(SLO, itl_s=0.011)]),
    at_once=st.sampled_from([1, 4, 1000]),
)
def test_a_summary_is_the_row_of_the_frames(
    strategy: Any, load: Any, settings: RunConfig, slo: SloConfig, at_once: int
) -> None:
    """Whatever the strategy, the window and the sizes of chunks."""
    where, workload = toy_environment(vllm_engine(), slo), toy_workload(load)
    workload = replace(workload, rate_rps=10.0)
    result = run(where, strategy, workload, max_time_s=settings.max_time_s)
    row = summarise(
        result.columns["requests"],
        slo=slo,
        run=settings,
        strategy=strategy.name,
        rate_rps=10.0,
        seed=0,
        num_gpus=result.num_gpus,
        instances=result.columns["instances"],
        gaps=GapsInParts(result.columns, where),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request_log, "CHUNK", max(1, at_once // 4))
        patch.setattr(fold, "_AT_ONCE", at_once)
        held = not np.isnan(result.columns["windows"]["released_s"]).all()
        if held and slo.itl_s is not None:
            with pytest.raises(ConfigError, match="held back"):
                run(where, strategy, workload, max_time_s=settings.max_time_s, summary=settings)
            return
        short = run(where, strategy, workload, max_time_s=settings.max_time_s, summary=settings)
    assert short.summary is not None
    assert set(short.columns) == {"scaling", "instances"}
    found = short.summary.row(
        strategy=strategy.name,
        rate_rps=10.0,
        seed=0,
        num_gpus=short.num_gpus,
        instances=short.columns["instances"],
    )
    assert list(found) == list(row)
    assert short.summary.knows_itl is not held
    for name, value in row.items():
        if name.startswith("itl_s_") and held:
            assert found[name] != found[name], f"{name} is not NaN"
        elif name.rpartition("_")[2] in ("p50", "p90", "p95", "p99"):
            assert found[name] == pytest.approx(value, rel=ERROR, nan_ok=True), name
        elif isinstance(value, float):
            assert found[name] == pytest.approx(value, rel=1e-9, nan_ok=True), name
        else:
            assert found[name] == value, name


@pytest.mark.parametrize("criterion", ["joint", "marginal"])
@pytest.mark.parametrize("rate_rps", [300.0, math.nan])
def test_classes_and_batches_are_those_of_the_frames(
    criterion: Literal["joint", "marginal"], rate_rps: float
) -> None:
    """The error of the attainment is that of the worst class, a row without a rate has its time."""
    targets = {"chat": SloTargets(ttft_s=0.0018), "batch": SloTargets(tpot_s=0.0015)}
    slo = replace(SLO, criterion=criterion, classes=targets)
    where, strategy = toy_environment(vllm_engine(), slo), NoDG(name="one", instances=1)
    load = toy_workload([(0.003 * (k % 4), 1 + 7 * k % 60, 1 + k % 20) for k in range(150)])
    names = np.array(["batch" if k % 3 % 2 else "chat" for k in range(150)], dtype=object)
    load = replace(load, slo_class=names)
    settings = RunConfig(warmup_s=0.02, cooldown_s=0.1)
    about: dict[str, Any] = {"strategy": "one", "rate_rps": rate_rps, "seed": 0}
    result = run(where, strategy, load)
    row = summarise(
        result.columns["requests"],
        slo=slo,
        run=settings,
        num_gpus=result.num_gpus,
        instances=result.columns["instances"],
        gaps=GapsInParts(result.columns, where),
        **about,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request_log, "CHUNK", 4)
        patch.setattr(fold, "_AT_ONCE", 16)
        short = run(where, strategy, load, summary=settings)
    assert short.summary is not None
    instances = short.columns["instances"]
    found = short.summary.row(num_gpus=short.num_gpus, instances=instances, **about)
    assert 0.0 < float(row["attainment_error"]) < 0.5
    assert list(found) == list(row)
    for name, value in row.items():
        if name.rpartition("_")[2] not in ("p50", "p90", "p95", "p99") and name != "strategy":
            assert found[name] == pytest.approx(value, rel=1e-9, nan_ok=True), name


@given(values=st.lists(st.floats(0.0, 1e6), min_size=1, max_size=50))
def test_a_histogram_is_as_exact_as_it_says(values: list[float]) -> None:
    """Every order statistic, of latencies of any size."""
    histogram = Histogram()
    histogram.add(np.array(values))
    ordered = np.sort(values)
    found = histogram.at(range(len(values)))
    small = ordered < np.finfo(np.float64).tiny  # subnormal: a bin is not relative there
    assert (np.abs(found - ordered)[~small] <= ERROR * ordered[~small]).all()
    median = histogram.median(1)
    assert median == pytest.approx(np.median([*values, math.inf]), rel=ERROR, abs=1e-300)


def test_what_a_summary_cannot_know_is_refused() -> None:
    """A closed loop has no arrivals before the run."""
    load = replace(toy_workload([(0.0, 10, 5)] * 4), concurrency=2)
    with pytest.raises(ConfigError, match=r"run\.recorder.*closed loop"):
        run(toy_environment(), NoDG(name="s"), load, summary=RunConfig())


DOCUMENT: dict[str, Any] = {
    "model": {"name": "llama-3.1-8b"},
    "cluster": {"gpu": "H100", "gpus_per_node": 1},
    "engine": {"profile": "vllm-0.19", "max_model_len": 8192},
    "workload": {
        "lengths": {"kind": "fixed", "prompt_len": 400, "output_len": 20},
        "num_requests": 200,
        "rate_rps": 4.0,
    },
    "slo": {"ttft_s": 1.0, "tpot_s": 0.1},
    "run": {"recorder": "summary"},
    "strategy": [{"name": "m", "kind": "nodg"}],
}


def test_run_says_what_a_summary_lacks_and_reports_refuse(tmp_path: Path) -> None:
    """One line each; the numbers are there, the folder has no frames of requests."""
    file, out = tmp_path / "s.toml", tmp_path / "out"
    file.write_text(to_toml(DOCUMENT))
    shown = CliRunner().invoke(main, ["run", str(file), "-o", str(out)])
    assert shown.exit_code == 0, shown.output
    assert "within 0.05 %" in shown.stderr
    assert {path.stem for path in out.iterdir()} & set(FRAMES) == {"scaling", "instances"}
    full = CliRunner().invoke(main, ["run", str(file), "--json", "--set", "run.recorder=frames"])
    rows = [json.loads(text)["rows"][0] for text in (full.stdout,)]
    short = simcluster.read(out).rows[0]
    assert short["slo_attainment"] == rows[0]["slo_attainment"]
    assert short["ttft_s_p99"] == pytest.approx(rows[0]["ttft_s"]["p99"], rel=ERROR)
    for command in (["report", str(out)], ["plot", str(out)], ["timeline", str(file)]):
        refused = CliRunner().invoke(main, [*command, *(["-o", str(tmp_path / "x")])])
        assert refused.exit_code == 1, (command, refused.output)
        assert "recorder" in refused.stderr
        assert len(refused.stderr.strip().splitlines()) == 1
    with pytest.raises(DataError, match=r"run\.recorder"):
        simcluster.read(out).requests()
    with pytest.raises(DataError, match=r"run\.recorder"):
        simcluster.simulate(simcluster.load(file)).columns["requests"]


def test_warnings_about_the_median_request_are_those_of_a_run_with_frames() -> None:
    """A target that nobody can meet is said, whatever is kept of the run."""
    changes = {"slo.ttft_s": 0.001, "run.max_time_s": 5.0}
    document = {**DOCUMENT, "run": {}}
    document["workload"] = {
        **DOCUMENT["workload"],
        "lengths": {"kind": "lognormal", "prompt_median": 400, "prompt_sigma": 1.0}
        | {"output_median": 20, "output_sigma": 0.5},
    }
    said = []
    for recorder in ("frames", "summary"):
        scenario = simcluster.resolve(document, {**changes, "run.recorder": recorder})
        cell = compare.choose(scenario, None, None)
        said.append(compare.warnings_of(scenario, compare.run(scenario, cell)))
    assert any("slo.ttft_s = 0.001 s is below" in line for line in said[0])
    assert "recorder" in said[1][0]
    assert said[1][1:] == said[0]


def test_gaps_of_data_parallel_ranks_are_those_of_the_frames(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ranks are lanes of one instance whose step times its whole layout decides."""
    where = toy_environment(vllm_engine(), SLO, model=MOE)
    strategy = NoDG(name="ranks", instances=2, dp_size=2, ep_size=2, num_kv_blocks=40)
    load = replace(toy_workload([(0.002, 30 + k, 1 + k % 30) for k in range(40)]), rate_rps=1.0)
    result = run(where, strategy, load)
    finished = result.columns["requests"]["status"] == "finished"
    whole = GapsInParts(result.columns, where).statistics(finished)
    assert GapsInParts(result.columns, where, size=7).statistics(finished) == whole
    monkeypatch.setattr(request_log, "CHUNK", 2)
    monkeypatch.setattr(fold, "_AT_ONCE", 6)
    short = run(where, strategy, load, summary=RunConfig())
    assert short.summary is not None
    row = short.summary.row(
        strategy="ranks",
        rate_rps=1.0,
        seed=0,
        num_gpus=short.num_gpus,
        instances=short.columns["instances"],
    )
    assert row["itl_s_mean"] == pytest.approx(whole["mean"], rel=1e-12)
    assert row["itl_s_p99"] == pytest.approx(whole["p99"], rel=ERROR)
