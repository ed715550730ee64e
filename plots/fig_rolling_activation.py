"""Rolling activation of a recorded run: which instance prefills while the others decode.

python plots/fig_rolling_activation.py RESULT_DIR -o rolling_activation.png
"""

from pathlib import Path

import click
from common import RATE, RESULT_DIR, SEED, chosen_run, command
from matplotlib.figure import Figure

from simcluster.errors import DataError
from simcluster.frames.goodput import strategies
from simcluster.runs.folder import read
from simcluster.show.plot import new_figure
from simcluster.show.plot_timeline import legend_of_turns, plot_rolling_activation

LENGTH_S = 25.0
"""What is drawn by default (s), from the middle of the arrivals on."""


@command(__doc__, "rolling_activation.png")
@RESULT_DIR
@click.option("--strategy", help="Which strategy.  [default: the first with prefill windows]")
@RATE
@SEED
@click.option("--start", "start_s", type=float, help="From here (s).  [default: mid-run]")
@click.option("--end", "end_s", type=float, help="To here (s).  [default: 25 s later]")
def main(
    result_dir: Path,
    strategy: str | None,
    rate_rps: float | None,
    seed: int | None,
    start_s: float | None,
    end_s: float | None,
) -> Figure:
    """Read the frames and draw."""
    results = read(result_dir)
    rate_rps, seed = chosen_run(results, rate_rps, seed)
    for name in strategies(results.sweep) if strategy is None else [strategy]:
        windows = results.frame("windows", name, rate_rps, seed)
        if len(windows):
            break
    else:
        raise DataError(f"{result_dir}: no strategy in it has prefill windows (kind padg)")
    requests = results.requests(name, rate_rps, seed)
    if start_s is None:
        start_s = float(requests["arrival_s"].median())

    figure = new_figure(width=11.0, height=3.8)
    ax = figure.subplots()
    plot_rolling_activation(
        results.spans(name, rate_rps, seed),
        windows,
        requests=requests,
        start_s=start_s,
        end_s=start_s + LENGTH_S if end_s is None else end_s,
        ax=ax,
    )
    legend_of_turns(ax)
    return figure


if __name__ == "__main__":
    main()
