"""The command ``simcluster cooptimize``: thin."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from simcluster.errors import DataError
from simcluster.runs import output
from simcluster.runs.recorded import RUNS


def run(
    scenario: Any,
    *,
    rate: float | None,
    cache: Path | None,
    jobs: int | None,
    dask: str | None,
    baselines: bool,
    out: Path | None,
    picture: Path | None,
    results: Path | None,
    as_json: bool,
) -> None:
    """Search, write, print."""
    from simcluster.catalog.toml_writer import to_toml
    from simcluster.studies.cooptimize import report
    from simcluster.studies.cooptimize.database import default_cache
    from simcluster.studies.cooptimize.run import cooptimize, with_baselines

    cache = cache or default_cache()
    if results is not None:
        output.refuse_strangers(results, report.FILES)
    with _resumable(cache):
        outcome = cooptimize(
            scenario,
            rate_rps=rate,
            cache=cache,
            jobs=jobs,
            dask=dask,
            baselines=False,
            progress=_show if sys.stderr.isatty() else None,
        )
        if out is not None:  # before it is compared with others
            with _written():
                plan = outcome.judge.scenario_of(outcome.chosen.plan)
                output.write_whole(out, to_toml(plan.document))
        if baselines:
            outcome = with_baselines(outcome)
    if results is not None:
        report.write(outcome, results)
    if picture is not None:
        figure = report.figure(outcome)
        with _written():
            picture.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(picture)
    if as_json:
        click.echo(json.dumps(report.as_json(outcome), indent=2))
    else:
        click.echo(report.text(outcome), nl=False)


@contextlib.contextmanager
def _resumable(cache: Path) -> Iterator[None]:
    """Say after an interrupt (Ctrl-C) what is kept, and how to resume."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(
            f"\nThe simulations that have finished are kept in {cache / RUNS}: kinds of units of "
            "the database, and finalists by seed. The same command resumes.",
            err=True,
        )
        raise


@contextlib.contextmanager
def _written() -> Iterator[None]:
    """Say in one line what cannot be written."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be written ({error.strerror}).") from None


def _show(stage: str, done: int, total: int) -> None:
    """Write the progress on one line of standard error."""
    click.echo(f"\r{stage}: {done} of {total} ", err=True, nl=done == total)
