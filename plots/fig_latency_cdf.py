"""Distributions of TTFT and TPOT of a recorded comparison, at one offered rate.

python plots/fig_latency_cdf.py RESULT_DIR -o latency_cdf.png
"""

from pathlib import Path

import click

from simcluster.frames.goodput import representative_rate, strategies
from simcluster.frames.metrics import in_window
from simcluster.runs.folder import read
from simcluster.show.plot import (
    legend_beside,
    new_figure,
    overlay,
    palette,
    plot_tpot_ecdf,
    plot_ttft_ecdf,
)


@click.command(help=__doc__)
@click.argument("result_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="latency_cdf.png",
    show_default=True,
    help="Picture to write.",
)
@click.option(
    "--rate",
    "rate_rps",
    type=float,
    help="Offered rate (requests/s).  [default: the highest that some strategy carries]",
)
@click.option("--seed", type=int, help="Seed of the runs.  [default: the first]")
def main(result_dir: Path, output: Path, rate_rps: float | None, seed: int | None) -> None:
    """Read the frames, draw, write the picture."""
    results = read(result_dir)
    slo, run = results.scenario.environment.slo, results.scenario.run
    names = strategies(results.sweep)
    if rate_rps is None and results.sweep["rate_rps"].notna().all():  # a closed loop has none
        rate_rps = representative_rate(results.sweep, slo.attainment)
    seed = int(results.sweep["seed"].iloc[0]) if seed is None else seed
    requests = {name: in_window(results.requests(name, rate_rps, seed), run) for name in names}

    figure = new_figure(width=10.5)
    left, right = figure.subplots(1, 2)
    styles = palette(names)
    overlay(
        plot_ttft_ecdf, requests, styles=styles, ax=left, target_s=slo.ttft_s, metric=slo.metric
    )
    overlay(
        plot_tpot_ecdf, requests, styles=styles, ax=right, target_s=slo.tpot_s, metric=slo.metric
    )
    if rate_rps is not None:
        left.set_title(f"{rate_rps:g} requests/s", loc="left", fontsize="medium")
    legend_beside(right)
    figure.savefig(output)
    click.echo(output)


if __name__ == "__main__":
    main()
