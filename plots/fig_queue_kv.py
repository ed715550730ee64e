"""Waiting requests and KV usage over time of a recorded comparison, at one offered rate.

python plots/fig_queue_kv.py RESULT_DIR -o queue_kv.png
"""

from pathlib import Path

from common import RATE, RESULT_DIR, SEED, chosen_run, command
from matplotlib.figure import Figure

from simcluster.frames.goodput import strategies
from simcluster.runs.folder import read
from simcluster.show.plot import (
    legend_beside,
    new_figure,
    overlay,
    palette,
    plot_kv_usage_by_role,
    plot_queue_over_time,
    plot_waiting_over_time,
)


@command(__doc__, "queue_kv.png")
@RESULT_DIR
@RATE
@SEED
def main(result_dir: Path, rate_rps: float | None, seed: int | None) -> Figure:
    """Read the frames and draw."""
    results = read(result_dir)
    names = strategies(results.sweep)
    styles = palette(names)
    rate_rps, seed = chosen_run(results, rate_rps, seed)
    requests = {name: results.requests(name, rate_rps, seed) for name in names}
    spans = {name: results.spans(name, rate_rps, seed) for name in names}

    figure = new_figure(height=7.6)
    top, middle, bottom = figure.subplots(3, 1, sharex=True)
    overlay(plot_waiting_over_time, requests, styles=styles, ax=top)
    overlay(plot_queue_over_time, requests, styles=styles, ax=middle)
    middle.set_ylim(top.get_ylim())
    for name in names:
        instances = results.instances(name, rate_rps, seed)
        plot_kv_usage_by_role(spans[name], instances, ax=bottom, label=name, **styles[name])
    if rate_rps is not None:
        top.set_title(f"{rate_rps:g} requests/s", loc="left", fontsize="medium")
    for ax in (top, middle):
        ax.set_xlabel("")
    legend_beside(bottom)
    return figure


if __name__ == "__main__":
    main()
