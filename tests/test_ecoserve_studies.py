"""The studies of EcoServe's evaluation run, go on where they stopped, and fill the tables."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import CliRunner

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "scenarios" / "ecoserve"


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules."""
    monkeypatch.syspath_prepend(str(FOLDER))
    names = ("cases", "studies", "elastic", "tables")
    yield {name: __import__(name) for name in names}
    for name in names:
        sys.modules.pop(name, None)


class Line:
    """Attainment that falls in a straight line, and a dip at low rates."""

    def __init__(self, cases: Any) -> None:
        self.cases = cases
        self.asked: list[float] = []

    def at(self, rate_rps: float, seed: int) -> dict[str, float]:
        """1 up to 10 requests/s, 0 at 20; a dip below 2."""
        self.asked.append(rate_rps)
        share = 0.5 if rate_rps < 2 else min(1.0, max(0.0, 2.0 - rate_rps / 10.0))
        return {"ecoserve": share}


@pytest.mark.parametrize("start_rps", [1.0, 3.0, 11.0, 19.0, 300.0])
@pytest.mark.parametrize("level", [0.9, 0.5, 0.05])
def test_goodput_is_the_highest_rate_that_reaches_the_level(
    modules: dict[str, ModuleType], start_rps: float, level: float
) -> None:
    """Found from any start above the dip, to a small fraction of a grid step, in few runs."""
    cases = modules["cases"]
    line = Line(cases)
    found = cases.Runs.goodput(line, 0, level, "ecoserve", max(start_rps, 3.0))
    assert found == pytest.approx(10.0 * (2.0 - level), rel=1e-9)
    assert len(line.asked) < 20


def test_a_level_that_no_rate_reaches_is_given_as_none(modules: dict[str, ModuleType]) -> None:
    """0 rather than a search without end."""

    class Never(Line):
        def at(self, rate_rps: float, seed: int) -> dict[str, float]:
            return {"ecoserve": 0.4}

    assert modules["cases"].Runs.goodput(Never(None), 0, 0.9, "ecoserve", 20.0) == 0.0


def test_intervals_are_students(modules: dict[str, ModuleType]) -> None:
    """Three values with mean 2 and standard deviation 1: 4.303 / sqrt(3) at 95 %."""
    mean, width = modules["cases"].interval([1.0, 2.0, 3.0])
    assert (mean, width) == (2.0, pytest.approx(4.303 / 3**0.5))


def test_every_row_of_every_study_is_a_scenario(modules: dict[str, ModuleType]) -> None:
    """All of them are accepted and fit their machines, in their first form."""
    from simcluster.sweep import check

    count = 0
    for study in modules["studies"].STUDIES.values():
        for _, case, tables, _ in study():
            if tables:
                check(case.scenario(tables[:1], 10.0))
                count += 1
    assert count > 150


def test_a_study_goes_on_from_the_runs_it_has(
    modules: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second time nothing is simulated, and the same comes out; figures and tables are made."""
    studies, tables = modules["studies"], modules["tables"]
    arguments = ["slo", "--quick", "--jobs", "1", "-o", str(tmp_path)]
    studies.main(arguments)
    first = (tmp_path / "slo.csv").read_text()
    assert first.count("\n") == 4
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert all(json.loads(path.read_text()) for path in runs)
    studies.main(arguments)
    assert (tmp_path / "slo.csv").read_text() == first
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()} == runs

    document = tmp_path / "doc.md"
    document.write_text("before\n<!-- target 2 -->\nold\n<!-- end of target 2 -->\nafter\n")
    tables.main([str(tmp_path), str(document)])
    text = document.read_text()
    assert "| 5 s, 100 ms | EcoServe | 42 |" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")

    figure = runpy.run_path(str(ROOT / "plots" / "fig_ecoserve_goodput.py"))["main"]
    picture = tmp_path / "goodput.png"
    done = CliRunner().invoke(
        figure, [str(tmp_path / "slo.csv"), "-o", str(picture)], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert picture.stat().st_size > 5000


def test_elastic_policies_run(
    modules: dict[str, ModuleType], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A few seconds of each, with figures and tables."""
    modules["elastic"].main(["--quick", "--jobs", "1", "-o", str(tmp_path)])
    document = tmp_path / "doc.md"
    document.write_text("<!-- day -->\n<!-- end of day -->\n")
    modules["tables"].main([str(tmp_path), str(document)])
    assert document.read_text().count("\n| ") == 2 + len(modules["elastic"].DAY)
    figure = runpy.run_path(str(ROOT / "plots" / "fig_ecoserve_elastic.py"))["main"]
    for study in ("rising", "day"):
        picture = tmp_path / f"{study}.png"
        done = CliRunner().invoke(
            figure,
            [str(tmp_path), "--study", study, "-o", str(picture)],
            catch_exceptions=False,
        )
        assert done.exit_code == 0
        assert picture.stat().st_size > 5000
