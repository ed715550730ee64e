"""Pictures of what instances do over time: the turns of a macro instance."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from simcluster.errors import DataError
from simcluster.units import FloatArray

if TYPE_CHECKING:
    from simcluster.frames.metrics import Frame

KIND_COLOURS: Final = {"prefill": "#D55E00", "decode": "#8FC5E8", "mixed": "#CC79A7"}
"""Of Okabe and Ito's palette; decode paler, because there is so much of it."""
_WINDOW: Final = "#1A1A1A"
_WINDOW_FILL: Final = "#F4EFD9"
_HELD: Final = "#009E73"
_ROUTED: Final = "#1A1A1A"
_LABELS: Final = {
    "prefill": "prefill steps",
    "decode": "decode steps",
    "mixed": "steps of both",
}
# Places in the row of an instance, whose middle is 0; the axis points down.
_BAR: Final = (-0.22, 0.22)
_FRAME: Final = (-0.42, 0.36)
_MARKS: Final = -0.32
_HELD_LINE: Final = 0.29


def plot_rolling_activation(
    spans: Frame,
    windows: Frame,
    instances: Collection[int] | None = None,
    *,
    requests: Frame | None = None,
    start_s: float | None = None,
    end_s: float | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw how instances take turns: one row each, with prefill, decode and prefill windows.

    Where a frame is drawn the prefill window of the instance is open: it alone is given requests,
    and it prefills them while the others decode. The line at the foot of a frame reaches as far as
    its output is held back.

    Parameters
    ----------
    spans, windows : mapping or pandas.DataFrame
        The frames of one run. Without windows it is a picture of any strategy.
    instances : collection of int, optional
        Which, from top to bottom; by default all that have spans.
    requests : mapping or pandas.DataFrame, optional
        The frame of the same run; with it a mark shows when each request was given to an instance.
    start_s, end_s : float, optional
        What to draw (s); by default the whole run.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default pyplot's current axes.

    Raises
    ------
    DataError
        If there is nothing to draw.
    """
    axes = _given_or_current(ax)
    starts, ends = _times(spans, "start_s"), _times(spans, "end_s")
    owner, kinds = _ids(spans, "instance"), np.asarray(spans["kind"], dtype=object)
    rows = sorted(set(owner.tolist())) if instances is None else list(instances)
    shown = np.isin(owner, rows)
    start_s = float(np.min(starts[shown], initial=np.inf)) if start_s is None else start_s
    end_s = float(np.max(ends[shown], initial=-np.inf)) if end_s is None else end_s
    shown &= (starts < end_s) & (ends > start_s)
    if not shown.any():
        raise DataError(f"no steps between {start_s:g} s and {end_s:g} s to draw")
    drawn = [kind for kind in KIND_COLOURS if np.any(shown & (kinds == kind))]
    for place, instance in enumerate(rows):
        for kind in drawn:
            own = shown & (owner == instance) & (kinds == kind)
            _draw_bars(axes, place, starts[own], ends[own], KIND_COLOURS[kind])
        _draw_windows(axes, place, windows, instance, start_s, end_s)
        if requests is not None:
            _draw_marks(axes, place, requests, instance, start_s, end_s)
    axes.set_xlim(start_s, end_s)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), [f"instance {instance}" for instance in rows])
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("Time (s)")
    axes.grid(visible=True, axis="x", linewidth=0.4, alpha=0.5)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return axes


def legend_of_turns(ax: Axes) -> None:
    """Put a legend above axes of `plot_rolling_activation`, of what is drawn in them."""
    gids = {artist.get_gid() for artist in (*ax.collections, *ax.patches, *ax.lines)}
    handles: list[Patch | Line2D] = [
        Patch(facecolor=colour, label=_LABELS[kind])
        for kind, colour in KIND_COLOURS.items()
        if colour in gids
    ]
    frame = Patch(facecolor=_WINDOW_FILL, edgecolor=_WINDOW, label="open prefill window")
    held = Line2D([], [], color=_HELD, linewidth=3, label="output held back")
    mark = Line2D([], [], color=_ROUTED, marker="|", markersize=8, linestyle="none")
    mark.set_label("request given to the instance")
    known = (("window", frame), ("held", held), ("routed", mark))
    handles += [handle for gid, handle in known if gid in gids]
    ax.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=len(handles),
        frameon=False,
        borderaxespad=0.2,
        handlelength=1.6,
        columnspacing=1.4,
    )


def _draw_bars(ax: Axes, place: int, starts: FloatArray, ends: FloatArray, colour: str) -> None:
    """Draw intervals as one bar each; those that touch become one."""
    if not len(starts):
        return
    order = np.argsort(starts, kind="stable")
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    apart = np.flatnonzero(starts[1:] > ends[:-1])
    left, right = starts[np.r_[0, apart + 1]], ends[np.r_[apart, len(ends) - 1]]
    low, high = place + _BAR[0], place + _BAR[1]
    corners = [[(a, low), (b, low), (b, high), (a, high)] for a, b in zip(left, right, strict=True)]
    bars = PolyCollection(corners, facecolor=colour, edgecolor="none", gid=colour, zorder=2)
    ax.add_collection(bars)


def _draw_windows(
    ax: Axes, place: int, windows: Frame, instance: int, start_s: float, end_s: float
) -> None:
    opened, closed = _times(windows, "opened_s"), _times(windows, "closed_s")
    held_until = np.minimum(_times(windows, "released_s"), closed)
    own = (_ids(windows, "instance") == instance) & (opened < end_s) & (closed > start_s)
    low, high = place + _FRAME[0], place + _FRAME[1]
    for window in np.flatnonzero(own).tolist():
        corner, size = (opened[window], low), (closed[window] - opened[window], high - low)
        for fill, edge, zorder in ((_WINDOW_FILL, "none", 1.0), ("none", _WINDOW, 3.0)):
            frame = Rectangle(
                corner, *size, facecolor=fill, edgecolor=edge, linewidth=1.2, zorder=zorder
            )
            frame.set_gid("window")
            ax.add_patch(frame)
        if held_until[window] > opened[window]:
            ax.plot(
                [opened[window], held_until[window]],
                [place + _HELD_LINE] * 2,
                color=_HELD,
                linewidth=3,
                solid_capstyle="butt",
                gid="held",
                zorder=2.5,
            )


def _draw_marks(
    ax: Axes, place: int, requests: Frame, instance: int, start_s: float, end_s: float
) -> None:
    routed = _times(requests, "routed_s")
    own = (_ids(requests, "prefill_instance") == instance) & (routed >= start_s) & (routed <= end_s)
    ax.plot(
        routed[own],
        np.full(int(own.sum()), place + _MARKS),
        marker="|",
        markersize=5,
        markeredgewidth=0.8,
        color=_ROUTED,
        linestyle="none",
        gid="routed",
        zorder=3.5,
    )


def _given_or_current(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt

    return plt.gca()


def _times(frame: Frame, name: str) -> FloatArray:
    return np.asarray(frame[name], dtype=np.float64)


def _ids(frame: Frame, name: str) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    ids: np.ndarray[tuple[int], np.dtype[np.int64]] = np.asarray(frame[name], dtype=np.int64)
    return ids
