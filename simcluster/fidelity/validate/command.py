"""The command ``simcluster validate``."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command()
@click.argument("data_dir", type=click.Path(path_type=Path))
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), help="Write report and pictures to this folder."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--only", multiple=True, help="Check this data set alone; may be repeated.")
def validate(data_dir: Path, out: Path | None, as_json: bool, only: tuple[str, ...]) -> None:
    """Compare simulated with measured times: all checks on the folder DATA_DIR of measured sets."""
    from simcluster.fidelity.validate import report
    from simcluster.fidelity.validate.run import validate as run_checks

    result = run_checks(data_dir, only)
    if out is not None:
        for path in report.write(result, out):
            click.echo(path, err=True)
    if as_json:
        click.echo(json.dumps(report.as_json(result), indent=2))
    else:
        click.echo(report.as_text(result), nl=False)
