"""Many runs and their folders: same seed, same bytes; nothing lost, nothing done twice."""

from __future__ import annotations

import filecmp
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import simcluster
from helpers.scenarios import small_scenario
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import main
from simcluster.errors import DataError
from simcluster.frames.schema import SCHEMAS
from simcluster.runs import compare as sweep
from simcluster.runs import folder as store
from simcluster.runs.result import FRAMES
from simcluster.scenario.file import resolve
from simcluster.scenario.scenario import Scenario

DOCUMENT = small_scenario(
    {"name": "vLLM", "kind": "nodg"},
    {"name": "DistServe", "kind": "fudg"},
    {"name": "EcoServe", "kind": "padg"},
    cluster={"price_per_gpu_hour": 2.0},
    workload={
        "num_requests": 60,
        "lengths": {
            "kind": "lognormal",
            "prompt_median": 200,
            "prompt_sigma": 1.0,
            "prompt_max": 3000,
            "output_median": 50,
            "output_sigma": 0.8,
            "output_max": 500,
        },
    },
    sweep={"rates_rps": [2, 20]},
    run={"seeds": [0, 1]},
)


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """Return twelve short runs."""
    return resolve(DOCUMENT)


@pytest.fixture(scope="module")
def comparison(scenario: Scenario) -> store.Comparison:
    """Return them run in this process, in memory."""
    return simcluster.compare(scenario, jobs=1)


def tree(folder: Path) -> list[str]:
    """Return the files of `folder`, by path in it."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def assert_same_bytes(one: Path, other: Path) -> None:
    """Check that two folders hold the same files with the same bytes."""
    assert tree(one) == tree(other)
    _, different, odd = filecmp.cmpfiles(one, other, tree(one), shallow=False)
    assert (different, odd) == ([], [])


def test_every_strategy_runs_at_every_rate_with_every_seed(comparison: store.Comparison) -> None:
    """In the order of the scenario, whichever run finished first."""
    expected = [
        store.Cell(strategy, rate, seed)
        for strategy in ("vLLM", "DistServe", "EcoServe")
        for rate in (2.0, 20.0)
        for seed in (0, 1)
    ]
    assert comparison.cells() == expected
    assert store.cells_of(comparison.rows) == expected


def test_strategies_meet_the_same_requests(comparison: store.Comparison) -> None:
    """Common random numbers: their difference is the strategies', not the draw's."""
    asked = ["arrival_s", "prompt_len", "output_len"]
    one = comparison.requests("vLLM", 20, 1)[asked]
    pd.testing.assert_frame_equal(one, comparison.requests("EcoServe", 20, 1)[asked])
    assert not one.equals(comparison.requests("vLLM", 20, 0)[asked])
    slower = comparison.requests("vLLM", 2, 1)
    assert slower["prompt_len"].equals(one["prompt_len"])
    np.testing.assert_allclose(slower["arrival_s"], 10 * one["arrival_s"], rtol=1e-6)


def test_attainment_is_the_share_of_requests_within_both_targets(
    comparison: store.Comparison,
) -> None:
    """Counted by hand from the frame of one run."""
    requests = comparison.requests("EcoServe", 20, 0)
    met = (requests["ttft_s"] <= 0.2) & ~(requests["tpot_s"] > 0.02)
    row = comparison.sweep.query("strategy == 'EcoServe' and rate_rps == 20 and seed == 0")
    assert row["slo_attainment"].item() == pytest.approx(met.mean())


def test_cost_is_goodput_over_price(comparison: store.Comparison) -> None:
    """Requests per dollar: goodput x 3600 / (GPUs x price)."""
    table = comparison.goodput
    expected = table["goodput_rps"] * 3600 / (table["num_gpus"] * 2.0)
    np.testing.assert_allclose(table["requests_per_cost"], expected)


def test_folders_have_the_same_bytes_however_they_were_made(
    scenario: Scenario, comparison: store.Comparison, tmp_path: Path
) -> None:
    """In one process, in several, from memory, and in a fresh interpreter."""
    done: list[tuple[int, int, float]] = []
    sweep.compare(scenario, jobs=1, out=tmp_path / "one", progress=lambda *n: done.append(n))
    assert [number[:2] for number in done] == [(i + 1, 12) for i in range(12)]
    np.testing.assert_allclose([share for *_, share in done], np.arange(1, 13) / 12)
    sweep.compare(scenario, jobs=2, out=tmp_path / "two")
    store.save(comparison, tmp_path / "memory")
    (tmp_path / "scenario.toml").write_text(to_toml(DOCUMENT))
    command = [sys.executable, "-m", "simcluster", "compare", "scenario.toml", "-o", "fresh"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    for other in ("two", "memory", "fresh"):
        assert_same_bytes(tmp_path / "one", tmp_path / other)
    assert not [p.name for p in tmp_path.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("fmt", store.FORMATS)
def test_a_folder_gives_the_frames_back(
    scenario: Scenario, comparison: store.Comparison, tmp_path: Path, fmt: store.Format
) -> None:
    """Bit for bit, with the types of the schema, as Parquet and as CSV."""
    sweep.compare(scenario, jobs=1, out=tmp_path / "out", fmt=fmt)
    read = simcluster.read(tmp_path / "out")
    assert read.cells() == comparison.cells()
    assert resolve(read.document) == scenario
    pd.testing.assert_frame_equal(read.sweep, comparison.sweep, check_exact=True)
    pd.testing.assert_frame_equal(read.goodput, comparison.goodput, check_exact=True)
    for cell in read.cells():
        for name in FRAMES:
            frame = read.frame(name, *cell)
            assert list(frame.columns) == list(SCHEMAS[name])
            expected = comparison.frame(name, *cell)
            pd.testing.assert_frame_equal(frame, expected, check_exact=True)


LATER = ["mean_gpus", "rates_from_s", "rates_to_s", "itl_attainment", "itl_s_mean"]
LATER += ["itl_s_p50", "itl_s_p90", "itl_s_p99", "e2el_attainment", "attainment_error"]
LATER += [f"{name}_s_p95" for name in ("ttft", "tpot", "itl", "e2el")]
"""Columns of the sweep frame that version 0.1.0 of 2026-11-29 did not write."""


@pytest.mark.parametrize("fmt", store.FORMATS)
def test_folders_of_an_earlier_version_stay_readable(
    scenario: Scenario, comparison: store.Comparison, tmp_path: Path, fmt: store.Format
) -> None:
    """With the columns and the engine key that it wrote; what it did not measure is unknown."""
    out = tmp_path / "out"
    sweep.compare(scenario, jobs=1, out=out, fmt=fmt)
    file = out / f"sweep.{fmt}"
    rows = (pd.read_csv if fmt == "csv" else pd.read_parquet)(file).drop(columns=LATER)
    if fmt == "csv":
        rows.to_csv(file, index=False)
    else:
        rows.to_parquet(file)
    text = (out / "scenario.toml").read_text()
    assert 'quantises = "apart"' in text
    text = text.replace('quantises = "apart"', "quantises_apart = true")
    (out / "scenario.toml").write_text(text)
    read = simcluster.read(out)
    assert resolve(read.document) == scenario
    assert (read.sweep["mean_gpus"] == read.sweep["num_gpus"]).all()
    assert read.sweep["itl_s_p99"].isna().all()
    pd.testing.assert_frame_equal(
        read.sweep.drop(columns=LATER), comparison.sweep.drop(columns=LATER), check_exact=True
    )
    pd.testing.assert_frame_equal(read.goodput, comparison.goodput)
    assert CliRunner().invoke(main, ["plot", str(out)]).exit_code == 0


def test_an_interrupted_sweep_goes_on(scenario: Scenario, tmp_path: Path) -> None:
    """Finished cells are kept, the others run, the result is that of an undisturbed sweep."""
    out, runs = tmp_path / "out", []

    def interrupt(done: int, total: int, share: float) -> None:
        runs.append(done)
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sweep.compare(scenario, jobs=1, out=out, progress=interrupt)
    assert not out.exists()
    kept = list((tmp_path / ".out.partial" / "cells").iterdir())
    assert len(kept) == 5
    stamps = {path.name: path.stat().st_mtime_ns for path in kept}
    sweep.compare(scenario, jobs=1, out=out)
    again = {p.name: p.stat().st_mtime_ns for p in (out / "cells").iterdir() if p.name in stamps}
    assert again == stamps
    sweep.compare(scenario, jobs=1, out=tmp_path / "other")
    assert_same_bytes(out, tmp_path / "other")


def test_what_another_scenario_left_is_not_used(scenario: Scenario, tmp_path: Path) -> None:
    """Nor thrown away, unless told so: an unfinished folder holds results too."""

    def interrupt(done: int, total: int, share: float) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        sweep.compare(scenario, jobs=1, out=out, progress=interrupt)
    changed = resolve(DOCUMENT, {"slo.tpot_s": 1.0})
    with pytest.raises(DataError, match="1 run of another scenario that would be lost"):
        sweep.compare(changed, jobs=1, out=out)
    read = sweep.compare(changed, jobs=1, out=out, replace=True)
    np.testing.assert_array_equal(read.sweep, sweep.compare(changed, jobs=1).sweep)


def test_a_changed_trace_is_another_scenario(tmp_path: Path) -> None:
    """The path is the same, the requests are not."""
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_len,output_len\n0,10,5\n1,10,5\n")
    scenario = resolve({**DOCUMENT, "workload": {"trace": str(trace)}, "sweep": {}})
    first = sweep.compare(scenario, jobs=1, out=tmp_path / "out")
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert list(meta["inputs"]) == [str(trace)]
    trace.write_text("arrival_s,prompt_len,output_len\n0,10,5\n2,10,5\n")
    with pytest.raises(DataError, match="runs of another scenario"):
        sweep.compare(scenario, jobs=1, out=tmp_path / "out")
    sweep.compare(scenario, jobs=1, out=tmp_path / "out", replace=True)
    assert json.loads((tmp_path / "out" / "meta.json").read_text()) != meta
    assert set(first.sweep["rate_rps"]) == {1.0}


def test_a_failed_sweep_keeps_what_was_done(scenario: Scenario, tmp_path: Path) -> None:
    """For the next attempt; it does not touch the results that were there."""

    def fail(done: int, total: int, share: float) -> None:
        if done == 3:
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        sweep.compare(scenario, jobs=1, out=tmp_path / "out", progress=fail)
    assert not (tmp_path / "out").exists()
    assert len(list((tmp_path / ".out.partial" / "cells").iterdir())) == 3
    sweep.compare(scenario, jobs=1, out=tmp_path / "out")
    before = tree(tmp_path)
    longer = resolve(DOCUMENT, {"sweep.rates_rps": [2, 20, 30]})
    with pytest.raises(ValueError, match="a bug"):
        sweep.compare(longer, jobs=1, out=tmp_path / "out", progress=fail)
    assert tree(tmp_path / "out") == [name[4:] for name in before]


def test_results_replace_our_older_results(scenario: Scenario, tmp_path: Path) -> None:
    """A run replaces a comparison if told to, and figures of the old results go with them."""
    out = tmp_path / "out"
    sweep.compare(scenario, jobs=1, out=out)
    (out / "figures").mkdir()
    (out / "figures" / "old.png").write_bytes(b"")
    single = sweep.run(scenario, store.Cell("vLLM", 2.0, 0))
    with pytest.raises(DataError, match="holds 11 runs of another scenario"):
        store.save(single, out)
    store.save(single, out, replace=True)
    frames = [f"{name}.parquet" for name in (*FRAMES, "sweep")]
    assert tree(out) == sorted([*frames, "cell.json", "meta.json", "scenario.toml"])
    read = simcluster.read(out)
    pd.testing.assert_frame_equal(read.requests(), single.requests(), check_exact=True)
    assert read.cells() == [store.Cell("vLLM", 2.0, 0)]


def test_a_run_is_named_by_what_tells_it_apart(comparison: store.Comparison) -> None:
    """What is left out may have only one value; a wrong name is told the right ones."""
    with pytest.raises(DataError, match="differ in strategy: name one of 'vLLM', 'DistServe'"):
        comparison.requests()
    with pytest.raises(DataError, match=r"differ in rate_rps: name one of 2\.0, 20\.0"):
        comparison.requests("vLLM")
    with pytest.raises(DataError, match=r"no run has strategy = 'vllm'\. Did you mean 'vLLM'"):
        comparison.requests("vllm")
    with pytest.raises(DataError, match="no run has rate_rps = 3"):
        comparison.requests("vLLM", 3)


def test_cells_have_names_of_their_own() -> None:
    """Names that differ in signs only, and rates that differ in the last digit, do not collide."""
    cells = [
        store.Cell(strategy, rate, seed)
        for strategy in ("a b", "a-b", "A B", "ä", "../x", "", "a-b~2")
        for rate in (1.0, 1.0000000000000002, 0.1, 1e-7, None)
        for seed in (0, 1)
    ]
    names = store.cell_names(cells)
    assert len(set(names.values())) == len(cells)
    assert all("/" not in name and not name.startswith(".") for name in names.values())


@pytest.mark.parametrize(
    "workload",
    [
        {"arrivals": {"kind": "closed-loop", "concurrency": 4}, "num_requests": 30},
        {"rate_rps": 3.0, "num_requests": 30},
    ],
    ids=["closed-loop", "own-rate"],
)
def test_a_comparison_without_a_sweep(workload: dict[str, Any], tmp_path: Path) -> None:
    """One run per strategy and seed; the rate is the workload's, or there is none."""
    workload = {**workload, "lengths": DOCUMENT["workload"]["lengths"]}
    scenario = resolve({**DOCUMENT, "workload": workload, "sweep": {}})
    read = sweep.compare(scenario, jobs=1, out=tmp_path / "out")
    assert len(read.sweep) == 6
    rate = read.sweep["rate_rps"]
    assert rate.eq(3.0).all() if "rate_rps" in workload else rate.isna().all()
    assert len(read.requests("vLLM", seed=1)) == 30


def test_a_strategy_of_ones_own_runs_in_other_processes(tmp_path: Path) -> None:
    """Registered in a script, as the README shows, and carried to the workers by value."""
    script = tmp_path / "mine.py"
    script.write_text(
        "from dataclasses import dataclass\n"
        "from typing import Literal\n"
        "from simcluster import compare\n"
        "from simcluster.scenario.file import resolve\n"
        "from simcluster.strategies import STRATEGIES\n"
        "from simcluster.strategies.nodg import NoDG\n"
        "@dataclass(frozen=True, slots=True, kw_only=True)\n"
        "class Mine(NoDG):\n"
        "    kind: Literal['mine'] = 'mine'\n"
        "STRATEGIES['mine'] = Mine\n"
        f"document = {DOCUMENT!r}\n"
        "document['strategy'] = [{'name': 'mine', 'kind': 'mine'}, {'name': 'b', 'kind': 'nodg'}]\n"
        "if __name__ == '__main__':\n"
        "    sweep = compare(resolve(document), jobs=2).sweep\n"
        "    print(sweep.groupby('strategy')['ttft_s_mean'].mean().nunique())\n"
    )
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["1"]
