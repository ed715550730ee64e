"""The command ``simcluster goodput``: thin."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
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
    sensitivity: bool,
    levels: Sequence[float],
    jobs: int | None,
    dask: str | None,
    out: Path | None,
    replace: bool,
    as_json: bool,
    progress: AbstractContextManager[Any],
) -> None:
    """Search, write, print."""
    from simcluster.runs import recorded
    from simcluster.runs.executor import Runner
    from simcluster.show.text import resumable
    from simcluster.studies.goodput import find, simulate_cells, tables
    from simcluster.studies.goodput.by_rate import compare_by_rate
    from simcluster.studies.goodput.errors import variants
    from simcluster.studies.goodput.moved import changes
    from simcluster.studies.goodput.runs import load_of

    def write_first(folder: Path, found: Found) -> None:
        tables.write(found, folder, compared=False)

    own: list[Any] = []
    if out is not None:
        simulated = load_of(scenario).scenario
        own = [simulated, *variants(simulated).values(), *changes(simulated).values()]
    with (
        resumable(out is not None),
        recorded.writing(
            out,
            tables.FILES,
            scenario,
            variants=own,
            replace=replace,
        ) as (folder, kept),
        progress as shown,
    ):
        found = find(
            scenario,
            tolerance=tolerance,
            max_requests=max_requests,
            indifference=indifference,
            step_time_errors=step_time_errors,
            sensitivity=sensitivity,
            levels=levels,
            jobs=jobs,
            dask=dask,
            recorded=kept,
            progress=shown,
            # Before it is compared: whatever happens then, it is not lost.
            searched=None if folder is None else functools.partial(write_first, folder),
        )
        if folder is not None:
            tables.write(found, folder, compared=False)
        simulate = functools.partial(simulate_cells, runner=Runner(jobs, dask, kept))
        pairs = compare_by_rate(found, simulate) if by_rate else None
        if folder is not None:
            tables.write(found, folder, pairs)
    if as_json:
        click.echo(json.dumps(tables.as_json(found, pairs), indent=2))
    else:
        click.echo(tables.as_text(found, pairs), nl=False)
    if any(verdict.status == "not settled" for verdict in found.verdicts.values()):
        raise SystemExit(NOT_SETTLED)
