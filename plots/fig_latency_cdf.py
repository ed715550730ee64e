"""Distributions of TTFT and TPOT of a recorded comparison, at one offered rate.

python plots/fig_latency_cdf.py RESULT_DIR -o latency_cdf.png
"""

from pathlib import Path

from common import RATE, RESULT_DIR, SEED, chosen_run, command
from matplotlib.figure import Figure

from simcluster.frames.goodput import strategies
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


@command(__doc__, "latency_cdf.png")
@RESULT_DIR
@RATE
@SEED
def main(result_dir: Path, rate_rps: float | None, seed: int | None) -> Figure:
    """Read the frames and draw."""
    results = read(result_dir)
    slo, run = results.scenario.environment.slo, results.scenario.run
    names = strategies(results.sweep)
    rate_rps, seed = chosen_run(results, rate_rps, seed)
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
    return figure


if __name__ == "__main__":
    main()
