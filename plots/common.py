"""Parts that the scripts of this folder share: the head of their commands, the picture written."""

from collections.abc import Callable
from functools import wraps
from pathlib import Path

import click
from matplotlib.figure import Figure

from simcluster.frames.goodput import representative_rate, wanted_shares
from simcluster.runs.folder import Comparison

RESULT_DIR = click.argument(
    "result_dir", type=click.Path(exists=True, file_okay=False, path_type=Path)
)
RATE = click.option(
    "--rate",
    "rate_rps",
    type=float,
    help="Offered rate (requests/s).  [default: the highest that some strategy carries]",
)
SEED = click.option("--seed", type=int, help="Seed of the runs.  [default: the first]")
TARGET = click.option(
    "--target",
    type=click.FloatRange(0, 1, min_open=True),
    help="Attainment that a rate must reach.  [default: the scenario's]",
)


def csv_argument(name: str) -> Callable[[Callable[..., Figure]], Callable[..., Figure]]:
    """Argument of a script that draws a CSV file."""
    return click.argument(name, type=click.Path(exists=True, dir_okay=False, path_type=Path))


def command(doc: str | None, default: str) -> Callable[[Callable[..., Figure]], click.Command]:
    """Make a command of a function that draws a figure: it takes ``-o`` and writes the picture.

    Parameters
    ----------
    doc : str
        Help of the command: the docstring of the script.
    default : str
        Picture to write where ``-o`` is not given.
    """
    output = click.option(
        "-o",
        "--output",
        type=click.Path(dir_okay=False, path_type=Path),
        default=default,
        show_default=True,
        help="Picture to write.",
    )

    def of(draw: Callable[..., Figure]) -> click.Command:
        @wraps(draw)
        def main(output: Path, **arguments: object) -> None:
            draw(**arguments).savefig(output)
            click.echo(output)

        return click.command(help=doc)(output(main))

    return of


def chosen_run(
    results: Comparison, rate_rps: float | None, seed: int | None
) -> tuple[float | None, int]:
    """Rate (requests/s; None in a closed loop) and seed of the runs to draw, or their defaults."""
    sweep = results.sweep
    if rate_rps is None and sweep["rate_rps"].notna().all():  # a closed loop has none
        rate_rps = representative_rate(sweep, wanted_shares(results.scenario.environment.slo))
    return rate_rps, int(sweep["seed"].iloc[0]) if seed is None else seed
