"""P95 of the plans of BOute's motivating example over the rate.

python plots/fig_boute.py results/boute/example-40.csv -o boute-example.png
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
from common import command, csv_argument
from matplotlib.figure import Figure

from simcluster.show.plot import log_scale, new_figure, palette

BY_FOURS, BEST = "routing, 4 + 8 or 8 + 4 H100", "routing, best split of 12 H100"


def spans(rates: list[float], held: list[bool]) -> list[tuple[float, float]]:
    """Return the ranges of neighbouring rates at which something holds."""
    edges = np.flatnonzero(np.diff([False, *held, False])).reshape(-1, 2)
    return [(rates[start], rates[end - 1]) for start, end in edges.tolist()]


@command(__doc__, "boute-example.png")
@csv_argument("table")
def main(table: Path) -> Figure:
    """Read the CSV and draw."""
    rows = pd.read_csv(table)
    names = [str(name) for name in dict.fromkeys(rows["plan"])]
    rates = sorted(set(rows["rate_rps"]))
    by_plan = rows.pivot_table("p95_s", "rate_rps", "plan")
    figure = new_figure(width=8.0, height=4.5)
    ax = figure.subplots()
    colours = palette(names)
    for name in names:
        of_plan = rows[rows["plan"] == name]
        ax.errorbar(
            of_plan["rate_rps"],
            of_plan["p95_s"],
            yerr=of_plan["half_width_s"].fillna(0.0),
            label=name,
            marker="o",
            markersize=4,
            capsize=2,
            **colours[name],
        )
    in_order = [name for name in names if name != BEST]
    held = [all(row[a] > row[b] for a, b in pairwise(in_order)) for _, row in by_plan.iterrows()]
    label = "published order holds\n(split by fours)"
    for start, end in spans(rates, held):
        ax.axvspan(start, end, color="0.92", zorder=0, label=label)
        label = "_nolegend_"
    log_scale(ax)
    ax.set_xlabel("offered rate (requests/s)")
    ax.set_ylabel("P95 end-to-end latency (s)")
    ax.legend(fontsize="small")
    return figure


if __name__ == "__main__":
    main()
