"""The command ``simcluster calibrate``."""

from __future__ import annotations

import json
from pathlib import Path

import click

from simcluster.show.commands import Command


@click.command(cls=Command)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--gpu", required=True, help="GPU that was measured, a name of the catalogue.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Write the catalogue file here.")
@click.option(
    "--set",
    "sets",
    multiple=True,
    help="Published set to take, such as vidur_mlp, where DATA is a folder of them; may be "
    "repeated.",
)
@click.option("--engine", default="vllm-0.19", show_default=True, help="Engine to write costs for.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def calibrate(
    data: Path, gpu: str, out: Path | None, sets: tuple[str, ...], engine: str, as_json: bool
) -> None:
    """Fit the constants of a GPU's kernels to measured ones.

    DATA is a CSV of kernel times (simcluster measure writes one, docs/calibration.md defines it)
    or a folder of published measured sets. Prints the constants, and the error in the data and
    held out; -o writes them as a catalogue file for catalog = [...] of a scenario.
    """
    from simcluster.fidelity.calibrate.calibrate import calibrated

    result = calibrated(data, gpu, sets, engine)
    if out is not None:
        out.write_text(result.toml(), encoding="utf-8")
        click.echo(out, err=True)
    if as_json:
        click.echo(json.dumps(result.as_json(), indent=2))
    else:
        click.echo(result.as_text(), nl=False)
