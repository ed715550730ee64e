"""The three strategies in pictures: the same requests on the same two GPUs, step by step.

python plots/fig_strategies.py scenarios/first.toml -o strategies.png
"""

from pathlib import Path

import click
from common import command
from matplotlib.figure import Figure

import simcluster
from simcluster.show.plot import new_figure
from simcluster.show.plot_timeline import legend_of_turns, plot_rolling_activation

TITLES = {
    "nodg": "NoDG: every instance prefills and decodes, in the same steps",
    "fudg": "FuDG: instance 0 prefills, instance 1 decodes, the KV cache moves between them",
    "padg": "PaDG: instances take turns; one prefills in its window, the other decodes",
}


@command(__doc__, "strategies.png")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--rate", "rate_rps", type=float, default=8.0, show_default=True)
@click.option("--start", "start_s", type=float, default=10.0, show_default=True, help="From (s).")
@click.option("--end", "end_s", type=float, default=14.0, show_default=True, help="To (s).")
def main(file: Path, rate_rps: float, start_s: float, end_s: float) -> Figure:
    """Simulate the first strategy of each kind in the file, and draw their instances."""
    scenario = simcluster.load(file, {"workload.duration_s": end_s + 1})
    by_kind = {one.kind: one for one in reversed(scenario.strategies)}
    kinds = [kind for kind in TITLES if kind in by_kind]
    figure = new_figure(width=11.0, height=1.9 * len(kinds) + 0.4)
    for kind, ax in zip(
        kinds, figure.subplots(len(kinds), sharex=True, squeeze=False)[:, 0], strict=True
    ):
        run = simcluster.simulate(scenario, strategy=by_kind[kind].name, rate_rps=rate_rps)
        columns = run.columns
        plot_rolling_activation(
            columns["spans"],
            columns["windows"],
            requests=columns["requests"],
            start_s=start_s,
            end_s=end_s,
            ax=ax,
        )
        ax.set_title(TITLES[kind], loc="left", pad=22, fontsize=10)
        legend_of_turns(ax)
        ax.label_outer()
    return figure


if __name__ == "__main__":
    main()
