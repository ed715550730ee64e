"""The command ``simcluster rank``: thin."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from simcluster.runs import recorded
from simcluster.show.text import resumable
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
    with resumable(out is not None), recorded.writing(out, report.FILES) as (folder, runs):
        ranking = rank(scenario, jobs=jobs, dask=dask, progress=progress, recorded=runs)
        if folder is not None:
            pictures = report.write(ranking, folder)
    if as_json:
        click.echo(json.dumps(report.as_json(ranking), indent=2))
        return
    shown = len(ranking.candidates) if show_all else 20
    click.echo(report.as_text(ranking, shown=shown), nl=False)
    for picture in pictures:
        click.echo(f"picture: {(out or picture.parent) / picture.name}")
