"""Goodput of each strategy of a recorded comparison, in all, per GPU or per unit of money.

python plots/fig_goodput.py RESULT_DIR --per gpu -o goodput.png
"""

from pathlib import Path

import click

from simcluster.frames.goodput import goodput_table
from simcluster.runs.folder import read
from simcluster.show.plot import new_figure, plot_goodput_bars

COLUMNS = {"cluster": "goodput_rps", "gpu": "goodput_rps_per_gpu", "cost": "requests_per_cost"}


@click.command(help=__doc__)
@click.argument("result_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="goodput.png",
    show_default=True,
    help="Picture to write.",
)
@click.option(
    "--target",
    type=click.FloatRange(0, 1, min_open=True),
    help="Attainment that a rate must reach.  [default: the scenario's]",
)
@click.option(
    "--per",
    type=click.Choice(list(COLUMNS)),
    default="cluster",
    show_default=True,
    help="What the goodput is divided by.",
)
def main(result_dir: Path, output: Path, target: float | None, per: str) -> None:
    """Read the sweep, draw, write the picture."""
    results = read(result_dir)
    cluster = results.scenario.environment.cluster
    price = cluster.price_per_gpu_hour
    if per == "cost" and price is None:
        raise click.UsageError("no price is known: set cluster.price_per_gpu_hour in the scenario")
    target = results.scenario.environment.slo.attainment if target is None else target
    rows = goodput_table(results.sweep, target, price_per_gpu_hour=price)
    figure = new_figure(height=1.2 + 0.42 * len(rows["strategy"]))
    ax = figure.subplots()
    plot_goodput_bars(rows, column=COLUMNS[per], currency=cluster.currency, ax=ax)
    ax.set_title(
        f"{100 * target:.4g}% of requests meet their targets", loc="left", fontsize="medium"
    )
    figure.savefig(output)
    click.echo(output)


if __name__ == "__main__":
    main()
