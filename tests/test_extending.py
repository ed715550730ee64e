"""What ``docs/extending.md`` shows is what CI runs: files of the example plug-in, whole."""

from __future__ import annotations

import re
import runpy
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import simcluster
from simcluster import registry
from simcluster.sched import SCHEDULERS
from simcluster.testing import contracts

ROOT = Path(simcluster.__file__).parents[1]
PLUGIN = ROOT / "examples" / "plugin"
GUIDE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
FILES = re.findall(r"\*\*`(examples/[^`]+)`\*\*\n\n```\w+\n(.*?)```", GUIDE, re.DOTALL)
SCRIPTS = re.findall(r"^(?!\*\*)[^\n]*\n\n```python\n(.*?)```", GUIDE, re.DOTALL | re.MULTILINE)
RECIPES = re.split(r"^## \d\. ", GUIDE, flags=re.MULTILINE)[1:]
CONTRACTS = [name for name in contracts.__all__ if name.endswith("Contract")]


@pytest.fixture
def plugin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Let the package of the example be imported; what it registers is forgotten."""
    monkeypatch.syspath_prepend(str(PLUGIN))
    yield PLUGIN
    for name in list(SCHEDULERS.added):
        del SCHEDULERS[name]


@pytest.mark.parametrize(("path", "block"), FILES, ids=[path for path, _ in FILES])
def test_a_file_that_is_shown_is_the_file(path: str, block: str) -> None:
    """To the letter: paste it where they differ."""
    assert block == (ROOT / path).read_text(encoding="utf-8")


def test_every_file_of_the_example_is_shown() -> None:
    """But the package's ``__init__`` and the test of its installation."""
    files = [*PLUGIN.glob("simcluster_example/*"), *PLUGIN.glob("tests/*")]
    known = {str(f.relative_to(ROOT)) for f in files if f.suffix in (".py", ".toml")}
    left = known - {path for path, _ in FILES}
    assert {Path(path).name for path in left} == {"__init__.py", "test_installed.py"}


@pytest.mark.parametrize("script", SCRIPTS, ids=range(len(SCRIPTS)))
def test_a_script_that_is_shown_runs(
    script: str, plugin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it stands, in a folder that has the scenarios."""
    shutil.copytree(ROOT / "scenarios", tmp_path / "scenarios")
    monkeypatch.chdir(tmp_path)
    Path("script.py").write_text(script)
    runpy.run_path("script.py", run_name="__main__")


@pytest.mark.parametrize("path", [path for path, _ in FILES if path.endswith(".py")])
def test_a_file_that_is_shown_can_be_imported(path: str, plugin: Path) -> None:
    """Also the tests, whose contracts run where the example is installed (``make plugin``)."""
    runpy.run_path(str(ROOT / path))


def test_there_are_six_recipes_each_with_its_contract() -> None:
    """Each shows a test that derives from a contract, and no contract is left out."""
    assert len(RECIPES) == 6
    assert len(FILES) + len(SCRIPTS) == GUIDE.count("```python") + RECIPES[-1].count("```toml")
    for recipe in RECIPES:
        assert re.search(r"class Test\w+\(\w+Contract\)", recipe), recipe[:40]
    assert [name for name in CONTRACTS if name not in GUIDE] == []


def test_shortest_prompt_first_takes_two_files_and_less_than_forty_lines() -> None:
    """The guide says how many."""
    files = dict(FILES)
    ours = [files[path] for path in files if "shortest_prompt" in path]
    num_lines = sum(len(block.splitlines()) for block in ours)
    assert (len(ours), f"is a policy: {num_lines} lines in two files" in GUIDE) == (2, True)
    assert num_lines < 40


def test_every_group_of_entry_points_is_named() -> None:
    """In the guide; and the example uses all but those of lengths."""
    assert [group for group in registry.groups() if group not in GUIDE] == []
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    assert set(project["entry-points"]) == set(registry.groups()) - {"simcluster.lengths"}


def test_links_lead_somewhere() -> None:
    """Every relative link is a file, and every anchor a heading."""
    links = re.findall(r"\]\(([^)#:]+)\)", GUIDE)
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
    headings = {
        re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", GUIDE, re.MULTILINE)
    }
    assert [a for a in re.findall(r"\]\(#([^)]+)\)", GUIDE) if a not in headings] == []
