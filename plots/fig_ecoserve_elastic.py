"""Attainment, load and instances over time of scenarios/ecoserve/elastic.py.

python plots/fig_ecoserve_elastic.py results/ecoserve --study rising -o ecoserve_rising.png
"""

from pathlib import Path

import click
import numpy as np
import pandas as pd
from common import command
from matplotlib.figure import Figure

from simcluster.show.plot import legend_beside, new_figure, palette


@command(__doc__, "ecoserve_elastic.png")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--study", type=click.Choice(["rising", "day"]), default="rising", show_default=True)
def main(folder: Path, study: str) -> Figure:
    """Read the CSVs and draw three panels."""
    over_time = pd.read_csv(folder / f"{study}_attainment.csv")
    changes = pd.read_csv(folder / f"{study}_changes.csv")
    names = list(dict.fromkeys(over_time["policy"]))
    styles = palette(names)
    figure = new_figure(width=8.5, height=6.0)
    load, attainment, size = figure.subplots(3, 1, sharex=True, height_ratios=(1, 2, 1.4))
    first = over_time[over_time["policy"] == names[0]]
    load.step(first["time_s"] / 60, first["rate_rps"], where="post", color="#555555", lw=1.0)
    load.set_ylabel("requests/s")
    end = over_time["time_s"].max() / 60
    for name in names:
        mine = over_time[over_time["policy"] == name]
        smooth = max(1, round(len(mine) / 60))
        share = mine["attainment"].rolling(smooth, min_periods=1, center=True).mean()
        look = {"color": styles[name]["color"], "linestyle": styles[name]["linestyle"], "lw": 1.5}
        attainment.plot(mine["time_s"] / 60, 100 * share, label=name, **look)
        own = changes[(changes["policy"] == name) & changes["event"].isin(["join", "drain"])]
        if len(own):
            before = own["instances"].iloc[0] + (1 if own["event"].iloc[0] == "drain" else -1)
            times = np.concatenate([[0.0], own["time_s"] / 60, [end]])
            counts = np.concatenate([[before], own["instances"], own["instances"].iloc[-1:]])
            size.step(times, counts, where="post", **look)
        splits = changes[(changes["policy"] == name) & (changes["event"] == "split")]
        size.plot(
            splits["time_s"] / 60, splits["instances"], "v", ms=6, color=styles[name]["color"]
        )
    attainment.axhline(90, color="#555555", lw=0.8, ls=":")
    attainment.set_ylabel("within targets (%)")
    attainment.set_ylim(0, 103)
    size.set_ylabel("instances\n(triangle: split)")
    size.set_xlabel("time (min)")
    for ax in (load, attainment, size):
        ax.spines[["top", "right"]].set_visible(False)
    legend_beside(attainment)
    return figure


if __name__ == "__main__":
    main()
