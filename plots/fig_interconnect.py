"""Goodput over the bandwidth of a node's NICs: where FuDG crosses NoDG and PaDG.

python plots/fig_interconnect.py results/interconnect -o interconnect.png
"""

from pathlib import Path

import pandas as pd
from common import RESULT_DIR, command
from matplotlib.figure import Figure

from simcluster.show.plot import new_figure, palette


@command(__doc__, "interconnect.png")
@RESULT_DIR
def main(result_dir: Path) -> Figure:
    """Read the frame that scenarios/interconnect.py writes and draw."""
    frame = pd.read_parquet(result_dir / "interconnect.parquet")
    machines = list(frame["machine"].unique())
    figure = new_figure(width=8.4, height=3.6)
    styles = palette(["NoDG", "PaDG", "FuDG"])
    fudg_colour = styles["FuDG"]["color"]
    panels = figure.subplots(1, len(machines), squeeze=False)[0]
    for ax, machine in zip(panels, machines, strict=True):
        here = frame[frame["machine"] == machine]
        fudg = here[here["strategy"] == "FuDG"]
        for strategy in ("NoDG", "PaDG"):
            colour = styles[strategy]["color"]
            goodput = here.loc[here["strategy"] == strategy, "goodput_rps"].iloc[0]
            ax.axhline(goodput, color=colour, linestyle="--", label=strategy)
        ax.plot(
            fudg["node_gbit"],
            fudg["goodput_rps"],
            color=fudg_colour,
            marker="o",
            label="FuDG",
        )
        # More bandwidth would help: the best network gives more than a twentieth more.
        limited = fudg["goodput_rps"] < 0.95 * fudg["goodput_rps"].max()
        ax.plot(
            fudg["node_gbit"][limited],
            fudg["goodput_rps"][limited],
            color=fudg_colour,
            marker="o",
            markerfacecolor="white",
            linestyle="none",
            label="FuDG, limited by its NICs",
        )
        ax.set_xscale("log")
        ax.set_xticks(fudg["node_gbit"], [f"{gbit:g}" for gbit in fudg["node_gbit"]])
        ax.minorticks_off()
        ax.set_ylim(bottom=0)
        ax.set_xlabel("NICs of a node (Gbit/s)")
        ax.set_title(machine, loc="left", fontsize="medium")
    panels[0].set_ylabel("Goodput (requests/s)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    return figure


if __name__ == "__main__":
    main()
