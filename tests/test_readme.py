"""What the README shows works: its Python, its commands, its links."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from simcluster.cli import main
from simcluster.strategies import STRATEGIES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYTHON = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README + PYTHON, re.DOTALL)
COMMANDS = re.findall(r"^    simcluster (\w+ .*?)(?:  #.*)?$", README, re.MULTILINE)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder to work in that has the scenarios, and a trace in Mooncake's format."""
    shutil.copytree(ROOT / "scenarios", tmp_path / "scenarios")
    row = '{{"timestamp": {}, "input_length": 600, "output_length": 9, "hash_ids": [1, {}]}}\n'
    (tmp_path / "requests.jsonl").write_text("".join(row.format(2000 * n, n) for n in range(5)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_python_blocks_run(block: str, project: Path) -> None:
    """As they stand."""
    known = dict(STRATEGIES)
    try:
        (project / "block.py").write_text(block)
        runpy.run_path("block.py", run_name="__main__")
    finally:
        STRATEGIES.clear()
        STRATEGIES.update(known)


def test_commands_run(project: Path) -> None:
    """In order, with short runs."""
    assert len(COMMANDS) >= 6
    for command in COMMANDS:
        arguments = shlex.split(command)
        if arguments[0] == "plan":  # minutes: `tests/studies/test_plan.py` runs a shorter one
            main.commands["plan"].make_context("plan", arguments[1:]).close()
            continue
        if arguments[0] in ("run", "compare"):
            arguments += ["--set", "workload.duration_s=2", "--set", "sweep.rates_rps=[4]"]
        if arguments[0] == "goodput":
            arguments += ["--tolerance", "0.5", "--max-requests", "1000", "--set", "slo.ttft_s=0.5"]
            arguments += ["--set", "workload.lengths={kind='fixed', prompt_len=900, output_len=5}"]
        if arguments[0] == "rank":
            few = ["rank.strategies=['nodg']", "rank.num_gpus=[8]", "rank.tp_sizes=[4]"]
            few += ["rank.pp_sizes=[1]", "rank.tolerance=0.9", "slo.ttft_s=0.5", "rank.finalists=1"]
            few += ["workload.lengths={kind = 'fixed', prompt_len = 900, output_len = 5}"]
            arguments += [word for setting in few for word in ("--set", setting)]
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output


def test_it_is_short() -> None:
    """One and a half screens of a newcomer's time."""
    assert len(README.splitlines()) < 120


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_links_of_the_documentation_lead_somewhere(page: Path) -> None:
    """Pages, pictures and scripts that a page names are there, and the index names every page."""
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text)
    assert [link for link in links if not (page.parent / link).exists()] == []
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert page.name == "index.md" or f"({page.name})" in index


def test_links_lead_somewhere() -> None:
    """Every relative link is a file of the project."""
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).is_file()] == []
