"""Runs on disk are recognised by what made them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import simcluster
from helpers.refusals import refused
from helpers.scenarios import small_scenario
from simcluster.errors import DataError
from simcluster.runs.cell import program

CHANGE_ONE_BY_ONE = """
import sys
from pathlib import Path
import simcluster
from simcluster.runs.cell import program

print(program.__wrapped__())
for name in sys.argv[1:]:
    with (Path(simcluster.__file__).parent / name).open("a") as file:
        file.write("# changed\\n")
    print(program.__wrapped__())
"""


def test_the_digest_of_the_program_covers_the_whole_package(tmp_path: Path) -> None:
    """A change of any module or catalogue file makes another program, wherever it is installed."""
    package = Path(simcluster.__file__).parent
    shutil.copytree(package, tmp_path / "simcluster", ignore=shutil.ignore_patterns("__pycache__"))
    changed = ["errors.py", "runs/cell.py", "engine/clock.py", "catalog/gpus.toml"]
    done = subprocess.run(
        [sys.executable, "-c", CHANGE_ONE_BY_ONE, *changed],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    unchanged, *others = done.stdout.split()
    assert unchanged == program()
    assert len({unchanged, *others}) == 1 + len(changed)


TABLES = small_scenario(
    {"name": "s", "kind": "nodg"},
    workload={"num_requests": 5},
    sweep={"rates_rps": [2.0, 4.0]},
)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two runs."""
    out = tmp_path_factory.mktemp("results") / "out"
    simcluster.compare(simcluster.resolve(TABLES), out=out, jobs=1)
    return out


def one_fewer(meta: dict[str, Any]) -> None:
    """Forget a run."""
    meta["cells"].pop()


def twice(meta: dict[str, Any]) -> None:
    """Name a run in the place of another too."""
    meta["cells"][1] = meta["cells"][0]


@pytest.mark.parametrize("change", [one_fewer, twice])
def test_a_list_of_other_runs_than_the_sweep_has_is_damage(
    results: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    """Results of one run would stand under the name of another."""
    out = tmp_path / "out"
    shutil.copytree(results, out)
    meta = json.loads((out / "meta.json").read_text(encoding="utf-8"))
    change(meta)
    (out / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    with refused("meta.json lists", "sweep has 2 rows", "damaged", error=DataError):
        simcluster.read(out)


def test_a_scenario_without_its_defaults_is_not_that_of_a_result(
    results: Path, tmp_path: Path
) -> None:
    """The file of a folder has every default filled in; a goodput needs the attainment."""
    out = tmp_path / "out"
    shutil.copytree(results, out)
    text = (out / "scenario.toml").read_text(encoding="utf-8")
    (out / "scenario.toml").write_text(text.replace("attainment", "attained"), encoding="utf-8")
    with refused("is not a result folder", error=DataError):
        simcluster.read(out)


def test_a_manifest_that_lists_only_some_files_is_damage(
    results: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that is not listed could be anything: the run is done again, with a warning."""
    out = tmp_path / "out"
    shutil.copytree(results, out)
    manifest = next(out.glob("cells/*/cell.json"))
    known = json.loads(manifest.read_text(encoding="utf-8"))
    del known["files"]["requests.parquet"]
    manifest.write_text(json.dumps(known), encoding="utf-8")
    simcluster.compare(simcluster.resolve(TABLES), out=out, jobs=1)
    assert "1 recorded run is damaged: run again" in caplog.text
    again = json.loads(next(out.glob("cells/*/cell.json")).read_text(encoding="utf-8"))
    assert "requests.parquet" in again["files"]


def test_a_damaged_frame_is_one_readable_line(results: Path, tmp_path: Path) -> None:
    """Whatever the library says of it, without line ends and control characters."""
    out = tmp_path / "out"
    shutil.copytree(results, out)
    frame = next(out.glob("cells/*/links.parquet"))
    frame.write_bytes(frame.read_bytes()[:-9] + b"\x1b[31m\n\x00\xff")
    found = simcluster.read(out)
    with refused("links.parquet: cannot be read", error=DataError):
        for cell in found.cells():
            found.frames(cell)


@pytest.mark.parametrize("fmt", ["parquet", "csv"])
def test_frames_of_an_earlier_version_are_refused_by_name(
    results: Path, tmp_path: Path, fmt: str
) -> None:
    """Before there were data-parallel ranks: not in the words of the library that reads files."""
    found = simcluster.read(results)
    frame = found.instances(*found.cells()[0])
    old = frame.drop(columns=["dp_size", "ep_size"])
    out = tmp_path / "out"
    shutil.copytree(results, out)
    for path in out.glob("cells/*/instances.parquet"):
        path.unlink()
        if fmt == "csv":
            old.to_csv(path.with_suffix(".csv"), index=False)
        else:
            old.to_parquet(path)
    old_found = simcluster.read(out)
    with refused(
        f"instances.{fmt}: has no column dp_size and 1 more: an earlier version of simcluster",
        "Run the scenario again",
        error=DataError,
    ):
        old_found.instances(*old_found.cells()[0])
