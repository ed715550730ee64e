"""The command ``simcluster rank``: thin."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from simcluster.runs import recorded
from simcluster.studies.rank import report
from simcluster.studies.rank.rank import rank

Progress = Callable[[int, int, float], None]


def run(
    scenario: Any,
    *,
    jobs: int | None,
    dask: str | None,
    progress: Progress | None,
    out: Path | None,
    as_json: bool,
    show_all: bool,
) -> None:
    """Rank, write, print."""
    pictures: list[Path] = []
    with _resumable(out), recorded.writing(out, report.FILES) as (folder, runs):
        ranking = rank(scenario, jobs=jobs, dask=dask, progress=progress, recorded=runs)
        if folder is not None:
            pictures = report.write(ranking, folder, scenario)
    if as_json:
        click.echo(json.dumps(report.as_json(ranking), indent=2))
        return
    shown = len(ranking.candidates) if show_all else 20
    click.echo(report.as_text(ranking, shown=shown), nl=False)
    for picture in pictures:
        click.echo(f"picture: {(out or picture.parent) / picture.name}")


@contextlib.contextmanager
def _resumable(out: Path | None) -> Iterator[None]:
    """Say on standard error what is kept if the block is interrupted (Ctrl-C), and how to go on."""
    try:
        yield
    except KeyboardInterrupt:
        if out is None:
            line = "Nothing is kept: with -o DIR finished runs are, and the same command goes on."
        else:
            line = f"{_num_kept(out)} finished runs are kept; the same command goes on from there."
        click.echo(f"\n{line}", err=True)
        raise


def _num_kept(out: Path) -> int:
    """Return the number of recorded runs beside the folder `out`, or in it."""
    folders = [
        out / recorded.RUNS,
        *out.absolute().parent.glob(f".{out.name}.partial/{recorded.RUNS}"),
    ]
    return max((sum(1 for _ in folder.glob("*.json")) for folder in folders), default=0)
