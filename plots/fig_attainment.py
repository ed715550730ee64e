"""SLO attainment against offered rate of a recorded comparison.

python plots/fig_attainment.py RESULT_DIR -o attainment.png
"""

from pathlib import Path

import click

from simcluster.runs.folder import read
from simcluster.show.plot import legend_beside, new_figure, plot_attainment


@click.command(help=__doc__)
@click.argument("result_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="attainment.png",
    show_default=True,
    help="Picture to write.",
)
@click.option(
    "--target",
    type=click.FloatRange(0, 1, min_open=True),
    help="Attainment to mark.  [default: the scenario's]",
)
def main(result_dir: Path, output: Path, target: float | None) -> None:
    """Read the sweep, draw, write the picture."""
    results = read(result_dir)
    target = results.scenario.environment.slo.attainment if target is None else target
    figure = new_figure()
    legend_beside(plot_attainment(results.sweep, target, ax=figure.subplots()))
    figure.savefig(output)
    click.echo(output)


if __name__ == "__main__":
    main()
