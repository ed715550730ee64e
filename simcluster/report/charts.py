"""Charts of reports as plotly.js takes them: plain values, rounded, with escaped text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from simcluster.report.page import INK, Trace, as_label
from simcluster.show.colours import COLOURS, places
from simcluster.units import FloatArray

DASHES: Final = ("solid", "dash", "dashdot", "dot", "longdash", "longdashdot", "5px,2px")
SYMBOLS: Final = ("circle", "square", "diamond", "triangle-down", "triangle-up", "cross", "x")
_POINTS: Final = 160
"""Points of a distribution that are drawn; each is exact."""
_DIGITS: Final = 6


class Styles:
    """A colour, a line style and a marker for each strategy, the same in all charts of a page.

    Those of the pictures (`show.colours.places`).
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._place = places(names)

    def colour(self, name: str) -> str:
        """Return the colour of a strategy; black is that of the text."""
        colour = COLOURS[self._place[name] % len(COLOURS)]
        return INK if colour == "#000000" else colour

    def line(self, name: str) -> dict[str, Any]:
        """Return how its lines look."""
        dash = DASHES[self._place[name] % len(DASHES)]
        return {"color": self.colour(name), "dash": dash, "width": 2}

    def marker(self, name: str) -> dict[str, Any]:
        """Return how its points look."""
        symbol = SYMBOLS[self._place[name] % len(SYMBOLS)]
        return {"color": self.colour(name), "symbol": symbol, "size": 8}


def numbers(values: npt.ArrayLike) -> list[float | None]:
    """Return numbers as JSON has them: rounded to six digits, None for what is not known."""
    return [rounded(float(value)) for value in np.asarray(values, dtype=np.float64).ravel()]


def rounded(value: float) -> float | None:
    """Return a number of six digits; None where it is not finite."""
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None


def axis(title: str, **more: Any) -> dict[str, Any]:
    """Return an axis with its title and unit."""
    return {"title": {"text": as_label(title)}, **more}


def percent_axis(title: str) -> dict[str, Any]:
    """Return an axis of shares."""
    return axis(title, tickformat=".0%", range=[0, 1.03])


def layout(x: Mapping[str, Any], y: Mapping[str, Any], height: int = 380, **more: Any) -> Any:
    """Return the layout of a chart of one panel."""
    return {"xaxis": dict(x), "yaxis": dict(y), "height": height, **more}


def target_line(value: float, text: str, *, across: bool = False) -> dict[str, Any]:
    """Return the shape and the words of a target."""
    line = {"color": INK, "width": 1.2, "dash": "dot"}
    if across:
        shape = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": value, "y1": value}
        words = {"xref": "paper", "x": 1, "y": value, "xanchor": "right", "yanchor": "bottom"}
    else:
        shape = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": value, "x1": value}
        words = {"yref": "paper", "y": 0.02, "x": value, "xanchor": "left", "yanchor": "bottom"}
    return {
        "shapes": [{**shape, "line": line}],
        "annotations": [{**words, "text": as_label(text), "showarrow": False, "xshift": 4}],
    }


def distribution(values: FloatArray, counts: npt.NDArray[Any], total: float) -> Any:
    """Return the points of a distribution function that are drawn.

    Parameters
    ----------
    values : ndarray
        Distinct values, rising.
    counts : ndarray
        How often each occurs.
    total : float
        What the share is of; more than the counts' sum where some have no value.
    """
    share = np.cumsum(counts) / max(total, 1)
    if values.size > _POINTS:  # as many points where the curve is steep as in its tail
        shares = np.concatenate([np.linspace(0, 0.9, _POINTS // 2), np.linspace(0.9, 1, 80)])
        kept = np.unique(np.searchsorted(share, shares * share[-1]).clip(0, values.size - 1))
        values, share = values[kept], share[kept]
    return numbers(values), numbers(share)


def lines(
    styles: Styles, points: Mapping[str, tuple[Sequence[Any], Sequence[Any]]], **more: Any
) -> list[Trace]:
    """Return one line per strategy."""
    return [
        {
            "type": "scatter",
            "mode": "lines",
            "name": as_label(name),
            "x": x,
            "y": y,
            "line": {**styles.line(name), **more.get("line", {})},
            **{key: value for key, value in more.items() if key != "line"},
        }
        for name, (x, y) in points.items()
    ]


_UNKNOWN: Final = "unknown"
"""An end of an interval for plotly: it draws a whisker of no width for null, none for a text."""


def interval_bars(
    names: Sequence[str],
    values: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
    colours: Sequence[str],
    texts: Sequence[str] = (),
    title: str = "",
) -> Trace:
    """Return horizontal bars with intervals, the first on top; an unknown end has no whisker."""

    def reach(ends: Sequence[float], sign: int) -> list[float | str | None]:
        pairs = zip(values, ends, strict=True)
        return [
            rounded(max(0.0, sign * (end - value))) if math.isfinite(end - value) else _UNKNOWN
            for value, end in pairs
        ]

    return {
        "type": "bar",
        "orientation": "h",
        "name": as_label(title),
        "y": [as_label(name) for name in names],
        "x": numbers(values),
        "text": [as_label(text) for text in texts],
        "textposition": "none",
        "hovertemplate": "%{y}: %{x}<br>%{text}<extra></extra>",
        "marker": {"color": list(colours)},
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": reach(highs, 1),
            "arrayminus": reach(lows, -1),
            "color": INK,
            "thickness": 1.2,
        },
    }


def bars_layout(title: str, count: int, **more: Any) -> Any:
    """Return the layout of horizontal bars."""
    y = {"autorange": "reversed", "type": "category", "ticksuffix": " "}
    x = axis(title, rangemode="tozero")
    return layout(x, y, height=110 + 34 * count, showlegend=False, **more)


def stacked(parts: Mapping[str, Sequence[float]], names: Sequence[str]) -> list[Trace]:
    """Return stacked horizontal bars: one colour per part, one bar per name."""
    palette = ("#56B4E9", "#0072B2", "#D55E00", "#E69F00", "#CC79A7", "#009E73", "#999999")
    return [
        {
            "type": "bar",
            "orientation": "h",
            "name": as_label(part),
            "y": [as_label(name) for name in names],
            "x": numbers(values),
            "marker": {"color": palette[i % len(palette)]},
            "hovertemplate": "%{y}: %{x:.3g} s<extra>%{fullData.name}</extra>",
        }
        for i, (part, values) in enumerate(parts.items())
    ]
