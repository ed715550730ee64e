"""The command ``simcluster cooptimize``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace a value of the file, such as cooptimize.budget_per_hour=20; may be repeated.",
)
@click.option(
    "--rate",
    type=click.FloatRange(min=0, min_open=True),
    help="Offered rate (requests/s)  [default: the scenario's]",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Write the chosen plan here, as a scenario for simcluster run.",
)
@click.option(
    "--plot", "picture", type=click.Path(path_type=Path), help="Draw the Pareto front here (PNG)."
)
@click.option(
    "--cache",
    type=click.Path(path_type=Path),
    help="Folder of finished simulations  [default: simcluster in the user's cache folder]",
)
@click.option("--baselines/--no-baselines", default=True, help="Find the plans to compare with.")
@click.option("--jobs", type=click.IntRange(min=1), help="Processes  [default: one per core]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def cooptimize(
    file: Path,
    overrides: tuple[str, ...],
    rate: float | None,
    out: Path | None,
    picture: Path | None,
    cache: Path | None,
    baselines: bool,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Choose load fractions and GPUs for the models of scenario FILE together.

    FILE has a table [cooptimize] with models, limits and goal. Prints the Pareto front of cost,
    latency and quality, and the best plan, simulated token by token. What has been simulated is
    kept: after an interrupt the same command goes on.
    """
    from simcluster.catalog.toml_writer import to_toml
    from simcluster.errors import DataError
    from simcluster.scenario.file import load, parse_override
    from simcluster.studies.cooptimize import report
    from simcluster.studies.cooptimize.database import default_cache
    from simcluster.studies.cooptimize.run import cooptimize as search

    scenario = load(file, dict(parse_override(text) for text in overrides))
    outcome = search(
        scenario,
        rate_rps=rate,
        cache=cache or default_cache(),
        jobs=jobs,
        baselines=baselines,
        progress=_show if sys.stderr.isatty() else None,
    )
    try:
        if out is not None:
            plan = outcome.judge.scenario_of(outcome.chosen.plan)
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(to_toml(plan.document), encoding="utf-8")
        if picture is not None:
            picture.parent.mkdir(parents=True, exist_ok=True)
            report.figure(outcome).savefig(picture)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be written ({error.strerror}).") from None
    if as_json:
        click.echo(json.dumps(report.as_json(outcome), indent=2))
    else:
        click.echo(report.text(outcome), nl=False)


def _show(stage: str, done: int, total: int) -> None:
    """Write the progress on one line of standard error."""
    click.echo(f"\r{stage}: {done} of {total} ", err=True, nl=done == total)
