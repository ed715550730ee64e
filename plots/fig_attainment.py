"""SLO attainment against offered rate of a recorded comparison.

python plots/fig_attainment.py RESULT_DIR -o attainment.png
"""

from pathlib import Path

from common import RESULT_DIR, TARGET, command
from matplotlib.figure import Figure

from simcluster.runs.folder import read
from simcluster.show.plot import figure_of_attainment, legend_beside, new_figure, plot_attainment


@command(__doc__, "attainment.png")
@RESULT_DIR
@TARGET
def main(result_dir: Path, target: float | None) -> Figure:
    """Read the sweep and draw."""
    results = read(result_dir)
    if target is None:
        return figure_of_attainment(results.sweep, results.scenario.environment.slo)
    figure = new_figure()
    legend_beside(plot_attainment(results.sweep, target, ax=figure.subplots()))
    return figure


if __name__ == "__main__":
    main()
