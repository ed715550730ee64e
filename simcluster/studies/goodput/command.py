"""The command ``simcluster goodput``: thin."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

if TYPE_CHECKING:
    from simcluster.studies.goodput import Found


NOT_SETTLED: Final = 3
"""Exit status of a search that is done, with a strategy that is not settled."""


def run(
    scenario: Any,
    *,
    tolerance: float,
    max_requests: int,
    indifference: float,
    by_rate: bool,
    step_time_errors: bool,
    jobs: int | None,
    dask: str | None,
    out: Path | None,
    replace: bool,
    as_json: bool,
) -> None:
    """Search, write, print."""
    from simcluster.runs import recorded
    from simcluster.runs.executor import Runner
    from simcluster.show.text import resumable
    from simcluster.studies.goodput import find, simulate_cells, tables
    from simcluster.studies.goodput.by_rate import compare_by_rate

    def write_first(folder: Path, found: Found) -> None:
        tables.write(found, folder, compared=False)

    shown = sys.stderr.isatty()
    total = len(scenario.strategies)

    def progress(done: int, runs: int) -> None:
        click.echo(
            f"\rsearching: {runs} runs, {done} of {total} strategies done", err=True, nl=False
        )

    try:
        with (
            resumable(out is not None),
            recorded.writing(out, tables.FILES, scenario, replace=replace) as (folder, kept),
        ):
            simulate = functools.partial(simulate_cells, runner=Runner(jobs, dask, kept))
            found = find(
                scenario,
                tolerance=tolerance,
                max_requests=max_requests,
                indifference=indifference,
                step_time_errors=step_time_errors,
                simulate=simulate,
                progress=progress if shown else None,
                # Before it is compared: whatever happens then, it is not lost.
                searched=None if folder is None else functools.partial(write_first, folder),
            )
            pairs = compare_by_rate(found, simulate) if by_rate else None
            if folder is not None:
                tables.write(found, folder, pairs)
    finally:
        if shown:
            click.echo(err=True)
    if as_json:
        click.echo(json.dumps(tables.as_json(found, pairs), indent=2))
    else:
        click.echo(tables.as_text(found, pairs), nl=False)
    if any(verdict.status == "not settled" for verdict in found.verdicts.values()):
        raise SystemExit(NOT_SETTLED)
