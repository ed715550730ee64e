"""What differs between two folders: settings by name, outcomes with their intervals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import simcluster
from helpers.scenarios import small_scenario
from simcluster.cli import main
from simcluster.errors import DataError
from simcluster.report.difference import Figure, difference

TABLES = small_scenario(
    {"name": "one", "kind": "nodg"},
    {"name": "two", "kind": "padg"},
    workload={"num_requests": 150},
    sweep={"rates_rps": [4, 40, 120]},
)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two comparisons: of a target of the TTFT, and of one that is looser."""
    place = tmp_path_factory.mktemp("pair")
    simcluster.compare(simcluster.resolve(TABLES), out=place / "a", jobs=1)
    changed = {"slo.ttft_s": 0.4, "strategy": TABLES["strategy"][:1]}
    simcluster.compare(simcluster.resolve(TABLES, changed), out=place / "b", jobs=1)
    return place / "a", place / "b"


def test_settings_that_differ_are_named_and_no_others(pair: tuple[Path, Path]) -> None:
    """A strategy that one has not is one line."""
    found = difference(*pair)
    assert found.settings == {
        "slo.ttft_s": (0.2, 0.4),
        "strategy.two": ("there", None),
        "(run) strategies": ("one, two", "one"),
    }


def test_outcomes_are_those_of_the_folders(pair: tuple[Path, Path]) -> None:
    """Goodputs with their errors, as the comparisons have them."""
    found = difference(*pair)
    rows = [simcluster.read(folder).goodput.set_index("strategy") for folder in pair]
    assert found.unit == "goodput (requests/s)"
    one, other = found.figures["one"]
    assert one is not None
    assert other is not None
    assert [one.value, other.value] == [row.loc["one", "goodput_rps"] for row in rows]
    assert found.figures["two"][1] is None


def test_a_folder_does_not_differ_from_itself(folders: dict[str, Path]) -> None:
    """Of every kind; and nothing is said of chance where nothing changed."""
    for kind, folder in folders.items():
        found = difference(folder, folder)
        assert not found.settings, kind
        assert found.figures, kind
        for one, other in found.figures.values():
            assert str(one) == str(other)
        result = CliRunner().invoke(main, ["diff", str(folder), str(folder)])
        assert result.exit_code == 0
        assert "The scenarios are the same." in result.stdout
        plain = CliRunner().invoke(main, ["diff", str(folder), str(folder), "--json"])
        json.loads(plain.stdout, parse_constant=pytest.fail)


def test_chance_is_told_by_both_intervals() -> None:
    """Half widths of 3 and 4 are 5 together: a difference of 4.9 is chance, one of 5.1 is not."""
    base = Figure(value=100.0, low=97.0, high=103.0)
    assert base.against(Figure(value=104.9, low=100.9, high=108.9)) == "+4.9 %, within chance"
    assert base.against(Figure(value=105.1, low=101.1, high=109.1)) == "+5.1 %, more than chance"
    assert base.against(Figure(value=110.0)) == "+10.0 %, how sure is not known"


def test_kinds_that_cannot_be_compared_say_so(folders: dict[str, Path], tmp_path: Path) -> None:
    """Their scenarios are compared all the same; what is no result is refused."""
    found = difference(folders["compare"], folders["goodput"])
    assert found.figures  # both hold goodputs of the same strategies
    other = difference(folders["cooptimize"], folders["goodput"])
    assert not other.figures
    assert "model.name" in other.settings
    with pytest.raises(DataError, match="is not a result folder"):
        difference(folders["run"], tmp_path)


def test_a_bound_is_no_figure() -> None:
    """A goodput below the lowest rate, against one that was found, is not some percent more."""
    below, found = Figure(value=40.0, bound="below"), Figure(value=12.0, low=11.0, high=13.0)
    assert str(below) == "< 40.0"
    assert str(Figure(value=40.0, bound="above")) == ">= 40.0"
    for words in (below.against(found), found.against(below)):
        assert "%" not in words
        assert "bound" in words


def test_bounds_of_a_sweep_reach_the_difference(tmp_path: Path) -> None:
    """At every rate of the sweep nothing is within the targets."""
    folder = tmp_path / "tight"
    simcluster.compare(simcluster.resolve(TABLES, {"slo.ttft_s": 1e-6}), out=folder, jobs=1)
    found = difference(folder, folder)
    assert {str(one) for pair in found.figures.values() for one in pair} == {"< 4.00"}
