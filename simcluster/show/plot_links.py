"""Pictures of KV transfers: how full links are, and what transfers get of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from simcluster.show.colours import COLOURS
from simcluster.show.plot import as_written, new_figure
from simcluster.units import GB

if TYPE_CHECKING:
    from simcluster.frames.metrics import Frame

_LOW: Final = 0.4
"""Utilisation that stays below this is drawn on an axis that does not reach 100 %."""
MOST_LINKS: Final = 6
"""Links drawn one by one: the busiest."""


def busiest_links(links: Frame, most: int = MOST_LINKS) -> list[str]:
    """Return the links with the highest mean utilisation, highest first; those of none left out."""
    names = np.asarray(links["link"])
    utilisation = np.asarray(links["utilisation"], dtype=np.float64)
    means = {str(name): float(utilisation[names == name].mean()) for name in dict.fromkeys(names)}
    ranked = sorted(means, key=lambda name: (-means[name], name))
    return [name for name in ranked if means[name] > 0][:most]


def plot_link_utilisation(links: Frame, *, ax: Axes, most: int = MOST_LINKS) -> Axes:
    """Draw the utilisation of the busiest links over time.

    Parameters
    ----------
    links : mapping or pandas.DataFrame
        The links frame.
    ax : matplotlib.axes.Axes
        Where to draw.
    most : int
        How many links.
    """
    names = np.asarray(links["link"])
    for number, name in enumerate(busiest_links(links, most)):
        mine = names == name
        edges = np.append(np.asarray(links["start_s"])[mine], np.asarray(links["end_s"])[mine][-1])
        ax.stairs(
            np.asarray(links["utilisation"])[mine],
            edges,
            color=COLOURS[number % len(COLOURS)],
            label=name,
            linewidth=1.0,
        )
    last_s = _last_use_s(links)
    if last_s > 0:  # a run is recorded to its horizon, of which links may use a part
        ax.set_xlim(0.0, 1.02 * last_s)
    peak = float(np.max(np.asarray(links["utilisation"], dtype=np.float64), initial=0.0))
    ax.set_ylim(0, 1.15 * peak if 0.0 < peak < _LOW else 1.03)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    ax.set_ylabel("link utilisation")
    ax.set_xlabel("time (s)")
    return ax


def _last_use_s(links: Frame) -> float:
    """Return when the last link was used (s); 0 if none was."""
    used = np.asarray(links["utilisation"], dtype=np.float64) > 0
    return float(np.max(np.asarray(links["end_s"], dtype=np.float64)[used], initial=0.0))


def plot_transfers(transfers: Frame, *, ax: Axes) -> Axes:
    """Draw the bandwidth that every transfer achieved over its duration.

    Transfers that share links lie below what one alone would get; long ones to the right.
    """
    paths = np.asarray(transfers["path"])
    last = np.array([_kind(str(path)) for path in paths])
    duration_s = np.asarray(transfers["duration_s"], dtype=np.float64)
    bytes_per_s = np.asarray(transfers["bytes_per_s"], dtype=np.float64)
    for number, kind in enumerate(dict.fromkeys(last.tolist())):
        mine = (last == kind) & (duration_s > 0)
        ax.scatter(
            duration_s[mine],
            bytes_per_s[mine] / GB,
            s=6,
            alpha=0.4,
            linewidths=0,
            color=COLOURS[number % len(COLOURS)],
            label=kind,
        )
    if (duration_s > 0).any():
        ax.set_xscale("log")
        ax.set_yscale("log")
    ax.set_xlabel("duration of the transfer (s)")
    ax.set_ylabel("achieved (GB/s)")
    return ax


def _kind(path: str) -> str:
    """Which copy a path is: its links without the numbers of instances and nodes."""
    return " > ".join(link.split(" ", 1)[-1] for link in path.split(" > "))


def figure_of_links(links: Mapping[str, Frame], transfers: Mapping[str, Frame]) -> Figure:
    """Return a figure with a row for every strategy: its links over time, and its transfers.

    Parameters
    ----------
    links, transfers : mapping of str to frame
        The frames of one run of each strategy.
    """
    figure = new_figure(width=10.0, height=3.4 * len(links))
    panels = figure.subplots(len(links), 2, squeeze=False, width_ratios=(3, 2))
    for (left, right), name in zip(panels, links, strict=True):
        plot_link_utilisation(links[name], ax=left)
        plot_transfers(transfers[name], ax=right)
        left.set_title(as_written(name), loc="left", fontsize="medium")
        for ax in (left, right):
            ax.legend(
                loc="upper center",
                bbox_to_anchor=(0.5, -0.2),
                ncols=1 if ax is right else 2,
                frameon=False,
                fontsize="small",
                markerscale=2.0,
            )
    return figure
