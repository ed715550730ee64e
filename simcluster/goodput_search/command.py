"""The command ``simcluster goodput``: thin."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import Any

import click


def run(
    scenario: Any,
    *,
    tolerance: float,
    max_requests: int,
    by_rate: bool,
    jobs: int | None,
    dask: str | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Search, write, print."""
    from simcluster.goodput_search import find, simulate_cells, tables
    from simcluster.goodput_search.by_rate import compare_by_rate

    shown = sys.stderr.isatty()
    total = len(scenario.strategies)

    def progress(done: int, runs: int) -> None:
        click.echo(
            f"\rsearching: {runs} runs, {done} of {total} strategies done", err=True, nl=False
        )

    try:
        found = find(
            scenario,
            tolerance=tolerance,
            max_requests=max_requests,
            jobs=jobs,
            dask=dask,
            progress=progress if shown else None,
        )
        pairs = None
        if by_rate:
            simulate = functools.partial(simulate_cells, jobs=jobs, dask=dask)
            pairs = compare_by_rate(found, simulate)
    finally:
        if shown:
            click.echo(err=True)
    if out is not None:
        tables.write(found, out, pairs)
    if as_json:
        click.echo(json.dumps(tables.as_json(found, pairs), indent=2))
    else:
        click.echo(tables.as_text(found, pairs), nl=False)
