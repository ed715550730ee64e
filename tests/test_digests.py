"""The runs of ``benchmarks/digests.py`` give the requests and frames that are committed.

They tell whether a change of the code changed any result. After a change on purpose, write the
file again and say why in CHANGELOG.md: ``python benchmarks/digests.py --write
tests/golden/digests.txt``.
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import simcluster

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "benchmarks" / "digests.py"
GOLDEN = Path(__file__).parent / "golden" / "digests.txt"

digests = SimpleNamespace(**runpy.run_path(str(SCRIPT)))
KNOWN: dict[str, str] = digests.read(GOLDEN)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Traces and other files that the scenarios name."""
    path: Path = tmp_path_factory.mktemp("digests")
    digests.write_files(path)
    return path


@pytest.mark.parametrize("name", digests.names())
def test_a_run_gives_the_frames_that_are_committed(name: str, folder: Path) -> None:
    """One byte of one column more or less is a difference; the text says of which frames."""
    assert digests.differences([digests.line(name, folder)], GOLDEN) == []


def test_the_file_has_one_line_for_each_run_of_the_list() -> None:
    """A run that is renamed or removed leaves no line behind."""
    assert list(KNOWN) == digests.names()
    assert len(GOLDEN.read_text().splitlines()) == len(KNOWN) >= 60


def test_runs_have_the_same_requests_only_where_the_list_says_so() -> None:
    """Resolutions share their requests; any other two runs differ, or a setting does nothing."""
    first: dict[str, str] = {}
    for name in digests.names():
        requests = KNOWN[name].split()[1]
        twin = digests.find(name).same_requests_as
        if twin is None:
            assert requests not in first, f"{name} and {first[requests]}"
            first[requests] = name
        else:
            assert requests == KNOWN[twin].split()[1], f"{name} and {twin}"


def test_a_run_that_does_not_show_what_its_name_says_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run called "swap" that never swaps would guard nothing."""
    monkeypatch.setitem(digests.SHOWS, "swaps", lambda frames: False)
    with pytest.raises(digests.ListError, match="nodg-swap: the run does not show swaps"):
        digests.line("nodg-swap", folder)


def test_a_digest_notices_the_last_bit_a_dtype_an_order_and_a_text() -> None:
    """And neither the name of a column nor the sign of a NaN."""
    times, texts = np.array([0.1, np.nan]), np.array(["a", "bc"], dtype=object)
    digest = digests.digest({"x_s": times, "who": texts})
    others = [
        {"x_s": np.nextafter(times, 1.0), "who": texts},
        {"x_s": times.astype(np.float32), "who": texts},
        {"who": texts, "x_s": times},
        {"x_s": times, "who": np.array(["ab", "c"], dtype=object)},
        {"x_s": times, "who": texts, "more": np.zeros(0)},
    ]
    seen = [digests.digest(other) for other in others]
    assert len({digest, *seen}) == 1 + len(others)
    assert digests.digest({"y_s": np.array([0.1, -np.nan]), "who": texts}) == digest
    assert digests.digest({"x_s": times}, {"who": texts}) != digest


def test_a_check_names_the_runs_that_differ_and_fails(tmp_path: Path) -> None:
    """The command that an engineer runs after a move: exit 1 and which frames, exit 0 if none."""
    changed = tmp_path / "changed.txt"
    nodg, chunked = KNOWN["nodg"].split(), KNOWN["chunked"].split()
    chunked[2] = "0" * 64
    nodg[1] = "0" * 64
    changed.write_text(f"{' '.join(nodg)}\n{' '.join(chunked)}\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(simcluster.__file__).parents[1])}
    for file, code, text in (
        (changed, 1, "nodg: requests\nchunked: other frames\n2 runs, 2 differ\n"),
        (GOLDEN, 0, "2 runs, 0 differ\n"),
    ):
        command = [sys.executable, str(SCRIPT), "nodg", "chunked", "--check", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert (done.returncode, done.stdout) == (code, text), done.stderr
