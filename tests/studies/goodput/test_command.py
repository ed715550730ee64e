"""Searches that are killed or changed: no recorded run is lost, none is done twice."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from helpers.scenarios import small_scenario
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import main
from simcluster.errors import WorkerError
from simcluster.runs import recorded
from simcluster.runs.cell import identity, scope_of
from simcluster.runs.executor import Runner
from simcluster.scenario.file import resolve
from simcluster.studies.goodput import Cell, find, runs, tables

DOCUMENT = small_scenario(
    {"name": "one", "kind": "nodg"},
    {"name": "two", "kind": "fudg"},
    cluster={"price_per_gpu_hour": 2.0},
)
OPTIONS = ("--tolerance", "0.3", "--max-requests", "1000")


def call(folder: Path, changes: dict[str, object] | None = None, *options: str) -> Any:
    """Search in this process, into ``out`` in `folder`."""
    (folder / "s.toml").write_text(to_toml(dict(resolve(DOCUMENT, changes).document)))
    command = ["goodput", str(folder / "s.toml"), "-o", str(folder / "out"), "--jobs", "1"]
    return CliRunner().invoke(main, [*command, *OPTIONS, *options])


def written(place: Path) -> dict[str, int]:
    """Return when each run was written (ns): a run done again has another time."""
    return {p.name: p.stat().st_mtime_ns for p in (place / "runs").glob("[!.]*")}


def strategies_of(place: Path, names: set[str]) -> set[str]:
    """Return the strategies of some runs."""
    return {recorded.read_file(place / "runs" / name).name for name in names}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a finished search in ``out``."""
    folder = tmp_path_factory.mktemp("finished")
    assert call(folder).exit_code == 0
    return folder


@pytest.fixture
def again(finished: Path, tmp_path: Path) -> Path:
    """Return a copy of it, with the times of the runs."""
    subprocess.run(["cp", "-rp", f"{finished}/.", str(tmp_path)], check=True)
    return tmp_path


def test_what_is_read_back_is_what_was_written(tmp_path: Path) -> None:
    """To the last bit, with NaN, and in the order of the cells."""
    scenario, options = resolve(DOCUMENT), (tmp_path / "out", tables.FILES)
    cells = [Cell("one", 3.0, 1, 50), Cell("two", 40.0, 2, 60), Cell("one", 3.0, 1, 50)]
    with recorded.writing(*options, scenario) as (_, kept):
        first = runs.simulate_cells(scenario, cells, Runner(jobs=1, recorded=kept))
    assert repr(first) == repr(list(map(runs.simulate_cell, [scenario] * 3, cells)))
    with recorded.writing(*options, scenario) as (folder, kept):
        assert folder is not None
        before = written(folder)
        again = runs.simulate_cells(scenario, cells, Runner(jobs=1, recorded=kept))
        assert repr(again) == repr(first)
        assert written(folder) == before
    assert len(before) == 2


def test_a_finished_search_runs_nothing_again(again: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one for another attainment or price where it needs the same runs."""
    before = written(again / "out")
    answer = (again / "out" / "goodput.json").read_bytes()
    monkeypatch.setattr(runs, "simulate_cell", None)  # whoever simulates fails
    assert call(again).exit_code == 0
    assert (again / "out" / "goodput.json").read_bytes() == answer
    assert call(again, {"cluster.price_per_gpu_hour": 3.0}).exit_code == 0
    assert written(again / "out") == before
    assert not (again / ".out.partial").exists()


def test_a_changed_strategy_runs_only_its_own_cells(again: Path) -> None:
    """The other's runs are the very files of before."""
    before = written(again / "out")
    assert call(again, {"strategy.one.max_num_seqs": 4}).exit_code == 0
    after = written(again / "out")
    new = {name for name in after if before.get(name) != after[name]}
    assert strategies_of(again / "out", new) == {"one"}
    kept = {name for name in after if before.get(name) == after[name]}
    assert strategies_of(again / "out", kept) == {"two"}


@pytest.mark.parametrize(
    "changes",
    [
        {"slo.ttft_s": 0.3},
        {"engine.block_size": 32},
        {"model.kv_dtype": "fp8"},
        {"workload.lengths.prompt_len": 301},
        {"strategy.one.max_num_seqs": 7},
    ],
    ids=lambda value: next(iter(value)),
)
def test_what_decides_a_run_is_in_its_identity(changes: dict[str, object]) -> None:
    """Each makes it another run; length, rate and seed do too."""
    one, other = resolve(DOCUMENT), resolve(DOCUMENT, changes)
    assert scope_of(one, "one") != scope_of(other, "one")


def test_rate_seed_and_length_are_in_the_identity() -> None:
    """And nothing that a search sets itself."""
    scenario = resolve(DOCUMENT)
    scope, cell = scope_of(scenario, "one"), Cell("one", 3.0, 1, 50)
    others = [cell._replace(rate_rps=3.1), cell._replace(seed=2), cell._replace(num_requests=51)]
    assert len({identity(scenario, c) for c in (cell, *others)}) == 4
    for key in ("workload.num_requests", "workload.rate_rps", "slo.attainment"):
        changed = resolve(DOCUMENT, {key: 0.8 if key == "slo.attainment" else 33})
        assert scope_of(changed, "one") == scope


def test_runs_of_a_search_count_the_entries_that_are_used(tmp_path: Path) -> None:
    """By what they hold: not those that nobody names, nor what a file without them is called."""
    row = {"name": "nvlink3", "like": "nvlink3", "efficiency": 0.5, "source": "us"}
    scopes = []
    for name, rows in (
        ("a.toml", [row]),
        ("b.toml", [row, {**row, "name": "another"}]),
        ("b.toml", [{**row, "efficiency": 0.4}]),
    ):
        (tmp_path / name).write_text(to_toml({"link": rows}))
        scenario = resolve({**DOCUMENT, "catalog": [str(tmp_path / name)]})
        scopes.append(scope_of(scenario, "two"))
    assert scopes[0] == scopes[1] != scopes[2]
    assert scope_of(resolve(DOCUMENT), "two") not in scopes


def test_mean_lengths_are_those_of_the_table_and_not_of_its_name(tmp_path: Path) -> None:
    """In one process, for tables of equal names and for a trace that was written anew."""
    path, means = tmp_path / "mine.toml", []
    for prompt in (100, 300):
        row = {"name": "sharegpt-etalon", "like": "sharegpt-etalon", "source": "us"}
        row |= {"levels": [0, 1], "prompt": [prompt] * 2, "output_by_prompt": [[5, 5]]}
        path.write_text(to_toml({"lengths": [row]}))
        tables = {**DOCUMENT, "workload": {"lengths": "sharegpt-etalon"}, "catalog": [str(path)]}
        means.append(runs.mean_lengths(resolve(tables)))
    trace = tmp_path / "trace.csv"
    for prompt in (100, 300):
        trace.write_text(f"arrival_s,prompt_len,output_len\n0,{prompt},5\n1,{prompt},5\n")
        lengths = {"kind": "trace", "path": str(trace), "order": "sampled"}
        means.append(runs.mean_lengths(resolve({**DOCUMENT, "workload": {"lengths": lengths}})))
    assert means == [(100, 5), (300, 5)] * 2


def cut_in_half(path: Path) -> None:
    """Truncate the file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change_a_number(path: Path) -> None:
    """Keep it readable, with another number in it."""
    record = json.loads(path.read_text())
    record["outcome"]["drift"] += 0.25
    path.write_text(json.dumps(record))


def age(path: Path) -> None:
    """Pretend that another version wrote it."""
    record = json.loads(path.read_text())
    del record["sha256"]
    record["made_by"] = "0.0.9"
    digest = sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**record, "sha256": digest}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut_in_half, "1 recorded run is damaged: run again"),
        (change_a_number, "1 recorded run is damaged: run again"),
        (age, "1 recorded run is made by another version: run again"),
    ],
)
def test_a_run_that_cannot_be_used_is_done_again_and_said_so(
    spoil: Any, words: str, again: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """That one alone; the answer is that of before."""
    answer = (again / "out" / "goodput.json").read_bytes()
    victim = sorted(written(again / "out"))[0]
    spoil(again / "out" / "runs" / victim)
    before = written(again / "out")
    with caplog.at_level(logging.WARNING, "simcluster"):
        assert call(again).exit_code == 0
    assert [record.getMessage() for record in caplog.records] == [words]
    after = written(again / "out")
    assert {name for name in after if after[name] != before.get(name)} == {victim}
    assert (again / "out" / "goodput.json").read_bytes() == answer


def test_another_scenario_is_refused_unless_told(again: Path) -> None:
    """In one line, before anything runs; so are folders that are not ours."""
    before = {p: p.stat().st_mtime_ns for p in (again / "out").rglob("*")}
    for change in ({"slo.ttft_s": 0.3}, {"strategy.0.name": "other"}):
        refused = call(again, change)
        assert refused.exit_code == 1
        assert " runs of another scenario that would be lost (one). Give" in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert call(again, {"slo.ttft_s": 0.3}, "--replace").exit_code == 0
    (again / "out" / "thesis.tex").touch()
    refused = call(again, {"slo.ttft_s": 0.3})
    assert "holds files that are not ours (thesis.tex)" in refused.stderr


def test_results_without_runs_are_not_replaced_silently(tmp_path: Path) -> None:
    """Such as those of an earlier version."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "goodput.json").write_text("{}")
    refused = call(tmp_path)
    assert refused.exit_code == 1
    assert (
        "out: holds results of another scenario that would be lost (goodput.json)."
        in refused.stderr
    )
    assert (tmp_path / "out" / "goodput.json").read_text() == "{}"
    assert {p.name for p in tmp_path.iterdir()} == {"out", "s.toml"}


def test_a_search_that_fails_keeps_its_runs(tmp_path: Path) -> None:
    """Whatever ended it; one that has none leaves nothing."""
    scenario = resolve(DOCUMENT)

    def fail(num_runs: int) -> None:
        with recorded.writing(tmp_path / "out", tables.FILES, scenario) as (_, kept):
            cells = [Cell("one", 3.0, seed, 20) for seed in range(num_runs)]
            runs.simulate_cells(scenario, cells, Runner(jobs=1, recorded=kept))
            raise WorkerError("a process died")

    with pytest.raises(WorkerError):
        fail(0)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(WorkerError):
        fail(3)
    assert len(written(tmp_path / ".out.partial")) == 3
    assert not (tmp_path / "out").exists()


def test_a_killed_search_goes_on_with_what_was_recorded(
    killed_twice: Callable[..., dict[str, int]], finished: Path, tmp_path: Path
) -> None:
    """Killed again at random moments: recorded runs stay, the answer is the same."""
    (tmp_path / "s.toml").write_text(to_toml(DOCUMENT))
    command = [sys.executable, "-m", "simcluster", "goodput", "s.toml", "-o", "out", "--jobs", "2"]
    command += OPTIONS
    known = killed_twice(command, lambda: written(tmp_path / ".out.partial"))
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert done.stderr == ""
    assert known.items() <= written(tmp_path / "out").items()
    for name in ("goodput.json", "probes.csv"):
        expected = (finished / "out" / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "s.toml"]


def test_tables_from_python_are_written_too(tmp_path: Path) -> None:
    """Without runs, into any folder."""
    found = find(resolve(DOCUMENT), tolerance=0.5, max_requests=1000, jobs=1)
    paths = tables.write(found, tmp_path / "new" / "out")
    assert sorted(p.name for p in (tmp_path / "new").rglob("*")) == sorted(["out", *tables.FILES])
    assert all(path.is_file() for path in paths)
