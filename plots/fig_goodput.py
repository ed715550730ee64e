"""Goodput of each strategy of a recorded comparison, in all, per GPU or per unit of money.

python plots/fig_goodput.py RESULT_DIR --per gpu -o goodput.png
"""

from dataclasses import replace
from pathlib import Path

import click
from common import RESULT_DIR, TARGET, command
from matplotlib.figure import Figure

from simcluster.frames.goodput import goodput_table, wanted_shares
from simcluster.runs.folder import read
from simcluster.show.plot import goodput_title, new_figure, plot_goodput_bars

COLUMNS = {"cluster": "goodput_rps", "gpu": "goodput_rps_per_gpu", "cost": "requests_per_cost"}


@command(__doc__, "goodput.png")
@RESULT_DIR
@TARGET
@click.option(
    "--per",
    type=click.Choice(list(COLUMNS)),
    default="cluster",
    show_default=True,
    help="What the goodput is divided by.",
)
def main(result_dir: Path, target: float | None, per: str) -> Figure:
    """Read the sweep and draw."""
    results = read(result_dir)
    cluster = results.scenario.environment.cluster
    price = cluster.price_per_gpu_hour
    if per == "cost" and price is None:
        raise click.UsageError("no price is known: set cluster.price_per_gpu_hour in the scenario")
    slo = results.scenario.environment.slo
    if target is not None:
        slo = replace(slo, attainment=target, percentiles=None)
    rows = goodput_table(results.sweep, wanted_shares(slo), price_per_gpu_hour=price)
    figure = new_figure(height=1.2 + 0.42 * len(rows["strategy"]))
    ax = figure.subplots()
    plot_goodput_bars(rows, column=COLUMNS[per], currency=cluster.currency, ax=ax)
    ax.set_title(goodput_title(slo), loc="left", fontsize="medium")
    return figure


if __name__ == "__main__":
    main()
