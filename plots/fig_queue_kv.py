"""Waiting requests and KV usage over time of a recorded comparison, at one offered rate.

python plots/fig_queue_kv.py RESULT_DIR -o queue_kv.png
"""

from pathlib import Path

import click

from simcluster.frames.goodput import representative_rate, strategies
from simcluster.runs.folder import read
from simcluster.show.plot import (
    legend_beside,
    new_figure,
    overlay,
    palette,
    plot_kv_usage_by_pool,
    plot_queue_over_time,
    plot_waiting_over_time,
)


@click.command(help=__doc__)
@click.argument("result_dir", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default="queue_kv.png",
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
    names = strategies(results.sweep)
    styles = palette(names)
    target = results.scenario.environment.slo.attainment
    if rate_rps is None and results.sweep["rate_rps"].notna().all():  # a closed loop has none
        rate_rps = representative_rate(results.sweep, target)
    seed = int(results.sweep["seed"].iloc[0]) if seed is None else seed
    requests = {name: results.requests(name, rate_rps, seed) for name in names}
    spans = {name: results.spans(name, rate_rps, seed) for name in names}

    figure = new_figure(height=7.6)
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    overlay(plot_waiting_over_time, requests, styles=styles, ax=top)
    overlay(plot_queue_over_time, requests, styles=styles, ax=middle)
    middle.set_ylim(top.get_ylim())
    for name in names:
        instances = results.instances(name, rate_rps, seed)
        plot_kv_usage_by_pool(spans[name], instances, ax=bottom, label=name, **styles[name])
    if rate_rps is not None:
        top.set_title(f"{rate_rps:g} requests/s", loc="left", fontsize="medium")
    for ax in (top, middle):
        ax.set_xlabel("")
    legend_beside(bottom)
    figure.savefig(output)
    click.echo(output)


if __name__ == "__main__":
    main()
