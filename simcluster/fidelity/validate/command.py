"""The command ``simcluster validate``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from simcluster.catalog.scores import PACKAGED, read
from simcluster.show.commands import Command


@click.command(cls=Command)
@click.argument("data_dir", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Write report and pictures to this folder."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--only", multiple=True, help="Check this data set alone; may be repeated.")
@click.option(
    "--gate",
    "gated",
    is_flag=True,
    help="Compare with the accepted scores; exit 1 if a check is worse by more than two points.",
)
@click.option("--update-gate", is_flag=True, help="Accept the scores of this run.")
@click.option(
    "--scores",
    type=click.Path(path_type=Path),
    default=PACKAGED,
    show_default="those of the package",
    help="File of accepted scores.",
)
def validate(
    data_dir: Path,
    out: Path | None,
    as_json: bool,
    only: tuple[str, ...],
    gated: bool,
    update_gate: bool,
    scores: Path,
) -> None:
    """Compare simulated with measured times: all checks on the folder DATA_DIR of measured sets."""
    from simcluster.fidelity.validate import gate, report
    from simcluster.fidelity.validate.run import validate as run_checks

    if gated and update_gate:
        raise click.UsageError("--gate compares and --update-gate accepts: give one of them.")
    before = read(scores) if gated else None  # a wrong file is said before the checks run
    result = run_checks(data_dir, only)
    if out is not None:
        for path in report.write(result, out):
            click.echo(path, err=True)
    if as_json:
        click.echo(json.dumps(report.as_json(result), indent=2))
    elif not gated:
        click.echo(report.as_text(result), nl=False)
    if update_gate:
        accepted = gate.update(result, data_dir, scores)
        click.echo(f"{scores}: {len(accepted.checks)} scores", err=True)
    if before is not None:
        found = gate.compare(result, before)
        click.echo(found.text(), nl=False, err=as_json)
        if not found.passed:
            sys.exit(1)
