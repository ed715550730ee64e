"""Goodputs of a study of scenarios/ecoserve/studies.py, with their 95 % intervals.

python plots/fig_ecoserve_goodput.py results/ecoserve/slo.csv -o ecoserve_slo.png
"""

import textwrap
from pathlib import Path

import click
import pandas as pd
from common import command, csv_argument
from matplotlib.figure import Figure

from simcluster.show.plot import legend_beside, new_figure, palette

NOT_LABELS = ("system", "user_ttft_s", "name")
LABEL_WIDTH = 13
MANY = 10
WIDEST = 14.0
AXIS = {"instances": "instances", "cv": "coefficient of variation of the times between arrivals"}
SHORT = {
    "alpaca-ecoserve": "Alpaca",
    "sharegpt-ecoserve": "ShareGPT",
    "longbench-ecoserve": "LongBench",
    "llama-30b": "30B",
    "codellama-34b": "34B",
    "qwen2-72b": "72B",
}


def group_of(row: "pd.Series[object]", keys: list[str]) -> str:
    """Return the label of the group of bars that a row belongs to."""
    parts = []
    for key in keys:
        value = row[key]
        if key == "ttft_s":
            value = f"{float(str(value)):g} s"
        elif key == "tpot_s":
            value = f"{1000 * float(str(value)):g} ms"
        elif key == "hold_output":
            value = "held" if str(value) == "True" else "shown"
        text = "" if pd.isna(row[key]) else SHORT.get(str(value), str(value))
        parts.append(textwrap.fill(text, LABEL_WIDTH))
    return "\n".join(part for part in parts if part)


@command(__doc__, "ecoserve_goodput.png")
@csv_argument("study")
@click.option("--level", type=click.Choice(["p50", "p90", "p99"]), multiple=True)
@click.option("--bars", help="Column that tells the bars of a group.  [default: name, or the last]")
def main(study: Path, level: tuple[str, ...], bars: str | None) -> Figure:
    """Read the CSV and draw one panel per level."""
    table = pd.read_csv(study)
    levels = level or tuple(p for p in ("p90", "p99") if p in table)
    numbers = {c for c in table if c.startswith(("p50", "p90", "p99"))}
    labels = [c for c in table if c not in numbers and c not in NOT_LABELS]
    bars = bars or ("name" if "name" in table else labels[-1])
    keys = [key for key in labels if key != bars and len(set(table[key])) > 1]
    table["group"] = [group_of(row, keys) for _, row in table.iterrows()]
    groups = list(dict.fromkeys(table["group"]))
    names = [str(name) for name in dict.fromkeys(table[bars])]
    colours = palette(names)
    figure = new_figure(
        width=min(max(7.0, 0.3 * len(table) + 2.0, 0.75 * len(groups) + 2.0), WIDEST),
        height=2.7 * len(levels),
    )
    axes = figure.subplots(len(levels), 1, squeeze=False, sharex=True)[:, 0]
    # Bars stand side by side in their group, however many it has.
    sizes = table.groupby("group")["group"].transform("size")
    width = 0.8 / sizes.max()
    place = table.groupby("group").cumcount() - (sizes - 1) / 2
    table["x"] = table["group"].map({g: k for k, g in enumerate(groups)}) + width * place
    # Words of many groups do not fit side by side.
    slanted = len(groups) > MANY and max(len(line) for g in groups for line in g.split("\n")) > 10
    for ax, p in zip(axes, levels, strict=True):
        for name in names:
            mine = table[table[bars].astype(str) == name]
            ax.bar(
                mine["x"],
                mine[p],
                width * 0.92,
                yerr=[mine[p] - mine[f"{p}_low"], mine[f"{p}_high"] - mine[p]],
                color=colours[name]["color"],
                error_kw={"elinewidth": 0.8, "capsize": 1.5},
                label=name,
            )
        ax.set_ylabel(f"{p.upper()} goodput (requests/s)")
        if slanted:
            flat = [" ".join(group.split("\n")) for group in groups]
            ax.set_xticks(range(len(groups)), flat, fontsize=8, rotation=35, ha="right")
        else:
            ax.set_xticks(range(len(groups)), groups, fontsize=8)
        ax.spines[["top", "right"]].set_visible(False)
        ax.set_ylim(bottom=0)
    if len(keys) == 1 and keys[0] in AXIS:
        axes[-1].set_xlabel(AXIS[keys[0]])
    legend_beside(axes[0])
    return figure


if __name__ == "__main__":
    main()
