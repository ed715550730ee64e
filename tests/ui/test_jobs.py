"""Commands that the page starts: what came of them, also when they fail or are stopped."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

pytest.importorskip("tomlkit", reason="the extra ui is not installed")

from simcluster.errors import DataError
from simcluster.ui import facts, jobs
from simcluster.ui.jobs import Job, Jobs

FIRST = (Path(__file__).parents[2] / "scenarios" / "first.toml").read_text(encoding="utf-8")
SMALL = FIRST.replace("duration_s = 30", "duration_s = 3").replace(
    "[6, 8, 10, 12, 14, 16]", "[6, 8]"
)


def test_a_command_leaves_its_answer_and_report(tmp_path: Path) -> None:
    """Found again by the next page; two of them can be compared."""

    async def two() -> tuple[Job, Job, str]:
        here = Jobs(tmp_path / "new" / "ui")
        first = await here.run("compare", [], SMALL)
        second = await here.run("compare", ["--set", "cluster.gpu=H100"], SMALL)
        return first, second, await here.difference(first, second)

    first, second, difference = asyncio.run(two())
    assert (first.state, second.state, second.number) == ("done", "done", 2)
    assert "chunked prefill" in first.output
    assert first.report is not None
    assert first.report.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert "cluster.gpu" in difference
    again = Jobs(tmp_path / "new" / "ui")
    assert {n: (job.title, job.output) for n, job in again.all.items()} == {
        1: ("1 compare", first.output),
        2: ("2 compare", second.output),
    }
    assert again.all[1].scenario == SMALL


def test_a_command_that_fails_says_its_line(tmp_path: Path) -> None:
    """And leaves no folder that looks like an answer."""
    wrong = SMALL.replace("A100", "A1000")
    job = asyncio.run(Jobs(tmp_path).run("compare", [], wrong))
    assert job.state == "failed"
    assert [line for line in job.said if line.startswith("error: cluster.gpu = 'A1000'")]
    again = Jobs(tmp_path)
    assert again.all == {}
    assert asyncio.run(again.run("compare", [], wrong)).number == 2, "its file stays"


def test_a_stopped_command_keeps_its_runs(tmp_path: Path) -> None:
    """As Ctrl-C at a terminal: the process ends, and says how to resume."""

    async def stopped() -> Job:
        here = Jobs(tmp_path)
        begun: list[Job] = []
        options = ["--tolerance", "0.005", "--jobs", "1"]
        running = asyncio.create_task(here.run("goodput", options, FIRST, begun.append))
        limit = time.monotonic() + 300
        while not (begun and begun[0].percent):
            assert time.monotonic() < limit
            assert not running.done(), begun[0].said
            await asyncio.sleep(0.1)
        here.stop_all()
        return await running

    job = asyncio.run(stopped())
    assert job.state == "stopped"
    assert job.report is None
    assert any("resume" in line or "kept" in line for line in job.said), job.said


def test_facts_become_a_scenario(tmp_path: Path) -> None:
    """By `simcluster init`, whose refusals are lines."""
    here = Jobs(tmp_path)
    values = {fact.option: fact.value for fact in facts.FACTS}
    text = asyncio.run(here.written(facts.words(values)))
    assert 'name = "llama-3.1-8b"' in text
    with pytest.raises(DataError, match=r"--gpu|cluster\.gpu"):
        asyncio.run(here.written(facts.words(values | {"gpu": "A1000"})))


def test_lines_of_a_terminal() -> None:
    """A bar and signs of life pass, what a person must know stays, also with a per cent sign."""
    job = Job(1, "goodput", Path())
    text = (
        "searching  [#####-------]   37%  00:01:02  3/9 requests\rsimulating: 2 s\r"
        "warning: runs are short by 5%\r\nerror: "
    )
    rest = jobs._take_lines(text, job)
    assert (job.percent, job.left, job.said) == (37, "00:01:02", ["warning: runs are short by 5%"])
    job.read(f"{rest}last\r\n")
    assert job.said[1:] == ["error: last"]
