"""Pictures of frames: each function draws into the axes it is given and returns them.

Without axes it draws into pyplot's current ones; further keywords go to its lines or bars.
Numbers come from `simcluster.frames.metrics` and `simcluster.frames.goodput`. Nothing here changes
matplotlib's settings, shows a window, or sorts what it is given; only `render_comparison` writes
files.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypedDict

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import StepPatch
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from simcluster.config import RunConfig, SloConfig
from simcluster.errors import DataError
from simcluster.frames.goodput import (
    Goodput,
    goodput_table,
    mean_attainment,
    strategies,
    target_of,
    wanted_shares,
)
from simcluster.frames.metrics import (
    binned_average,
    ecdf,
    in_window,
    level_over_time,
    mean_by_arrival,
    queued_over_time,
    request_metrics,
    waiting_over_time,
)
from simcluster.show.colours import COLOURS, places
from simcluster.units import MS, FloatArray

if TYPE_CHECKING:
    from simcluster.frames.metrics import Frame

Dashes = str | tuple[float, tuple[float, ...]]
"""A line style of matplotlib: a name, or an offset and the lengths of dashes and gaps."""

_DASHES: Final[tuple[Dashes, ...]] = (
    "-",
    (0, (4, 1.5)),
    (0, (5, 1.2, 1, 1.2)),
    (0, (1, 0.9)),
    (0, (8, 1.5)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (7, 1.2, 3, 1.2)),
)
_MARKERS: Final = "osD^vPX"
_TARGET: Final = "#555555"
_MOST_LABELLED: Final = 2000.0
"""A logarithmic axis over at most this factor is labelled at 1, 2, 5, 10..., else at decades."""
_MOST_POINTS: Final = 2000
_MOST_BINS: Final = 120
_LOW_USAGE: Final = 0.4
"""KV usage that stays below this is drawn on an axis that does not reach 100 %."""
_LOG_FROM_RATIO: Final = 10.0
"""A latency axis is logarithmic where its largest value is this many times the smallest."""
_LOG_FROM_PEAKS: Final = 30.0
"""An axis of counts is, where the highest peak is this many times the lowest."""


class LineStyle(TypedDict):
    """Keywords of a line that belong to one strategy."""

    color: str
    linestyle: Dashes


def palette(names: Iterable[str]) -> dict[str, LineStyle]:
    """Return a colour and a line style for each name: strategies that are known have their own.

    Others take the next that are free (`colours.places`). Make it once from all strategies of a
    comparison and hand it to every figure, so that a strategy looks the same in all of them. The
    first 49 are distinct; the line styles tell the first seven apart without colour.

    >>> palette(["mine", "EcoServe"])["EcoServe"]["color"]
    '#0072B2'
    """
    return {
        name: LineStyle(
            color=COLOURS[place % len(COLOURS)],
            linestyle=_DASHES[(place + place // len(COLOURS)) % len(_DASHES)],
        )
        for name, place in places(names).items()
    }


PictureFormat = Literal["png", "svg", "pdf"]
COLUMN_IN: Final = {1: 3.33, 2: 7.0}
"""Width of one and of two columns of a paper (inches; ACM, IEEE and USENIX within 0.2)."""


def new_figure(*, width: float = 7.0, height: float = 3.8) -> Figure:
    """Return an empty figure (inches) that makes room for legends beside its axes."""
    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def for_paper(figure: Figure, columns: Literal[1, 2] = 2) -> Figure:
    """Bring a figure to the width of one or two columns of a paper, with text of 7 to 8 points.

    In one column legends beside the axes go below them, and long labels are wrapped.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Such as ``comparison.plot_attainment().figure``.
    columns : int
        1 or 2.

    Raises
    ------
    DataError
        If `columns` is neither.
    """
    if columns not in COLUMN_IN:
        raise DataError(f"columns = {columns}: a paper has 1 or 2")
    width, height = figure.get_size_inches()
    new = COLUMN_IN[columns]
    specs = [ax.get_subplotspec() for ax in figure.axes]
    num_rows = len({spec.rowspan.start for spec in specs if spec is not None})
    tall = max(0.72 * new, 1.9 * num_rows) if columns == 1 else new * height / width
    figure.set_size_inches(new, tall)
    for ax in figure.axes:
        ax.tick_params(which="both", labelsize=7)
        for text in ax.texts:
            text.set_fontsize(7)
        ax.xaxis.label.set_fontsize(8)
        per_row = 22 if columns == 1 else 40
        ax.set_ylabel(textwrap.fill(ax.get_ylabel(), per_row), fontsize=8)
        ax.set_title(textwrap.fill(ax.get_title(loc="left"), 44), loc="left", fontsize=8)
        legend = ax.get_legend()
        if legend is None:
            continue
        if columns == 1:
            handles, labels = ax.get_legend_handles_labels()
            below = (0.5, -0.3 if ax.get_xlabel() else -0.1)
            ax.legend(
                handles,
                labels,
                loc="upper center",
                bbox_to_anchor=below,
                ncols=2,
                frameon=False,
                fontsize=7,
            )
        else:
            for text in legend.get_texts():
                text.set_fontsize(7)
    return figure


def as_written(name: str) -> str:
    r"""Return `name` as a label that shows just that.

    Matplotlib sets what stands between dollar signs as formulas, and leaves labels with a leading
    underscore out of legends.

    >>> as_written("$x_1$"), as_written("_mine")
    ('\\$x_1\\$', ' _mine')
    """
    text = name.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def legend_beside(ax: Axes) -> None:
    """Put the legend to the right of the axes, where it cannot cover a line; targets last."""
    handles, labels = ax.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda i: labels[i].startswith("target "))
    ax.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        frameon=False,
        borderaxespad=0.0,
        handlelength=2.6,
    )


def overlay(
    plot: Callable[..., Axes],
    frames: Mapping[str, Frame],
    *,
    styles: Mapping[str, LineStyle],
    ax: Axes,
    **keywords: Any,
) -> Axes:
    """Call `plot` for the frame of each strategy on the same axes, labelled and in its style."""
    for name, one in frames.items():
        plot(one, ax=ax, label=as_written(name), **{**styles[name], **keywords})
    return ax


def _given_or_current(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    from matplotlib import pyplot as plt

    return plt.gca()


def _tidy(ax: Axes) -> None:
    ax.grid(visible=True, linewidth=0.4, alpha=0.5)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)


def _draw_target(ax: Axes, value: float, label: str, *, across: bool) -> None:
    """Draw a target once, however many lines are compared with it."""
    if any(line.get_gid() == "target" for line in ax.get_lines()):
        return
    draw = ax.axhline if across else ax.axvline
    draw(value, color=_TARGET, linewidth=1.0, label=label, gid="target", zorder=1.5)


def _data(ax: Axes) -> list[tuple[FloatArray, FloatArray]]:
    """Return the points of every line that is not a target and not empty."""
    points = [
        (np.asarray(line.get_xdata(), np.float64), np.asarray(line.get_ydata(), np.float64))
        for line in ax.get_lines()
        if line.get_gid() != "target"
    ]
    return [(x, y) for x, y in points if x.size]


def _fit_latency_axis(ax: Axes) -> None:
    """Fit the x axis to all distributions drawn so far: logarithmic where they span a lot.

    A linear axis starts at zero; both leave out the last half percent of the widest distribution,
    so that one straggler does not squeeze the rest.
    """

    def quantile(x: FloatArray, y: FloatArray, share: float) -> float:
        return float(x[min(np.searchsorted(y, share * y[-1]), x.size - 1)])

    lines = _data(ax)
    targets = [float(np.max(t.get_xdata())) for t in ax.get_lines() if t.get_gid() == "target"]
    if not lines:
        return
    low = min(quantile(x, y, 0.02) for x, y in lines)
    high = max(quantile(x, y, 0.98) for x, y in lines)
    if low > 0 and high / low > _LOG_FROM_RATIO:
        ends = [quantile(x, y, share) for x, y in lines for share in (0.005, 0.995)] + targets
        positive = [end for end in ends if end > 0]
        ax.set_xscale("log")
        left, right = min(positive) / 1.3, max(positive) * 1.3
        ax.set_xlim(left, right)
        few_decades = right / left < _MOST_LABELLED
        ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if few_decades else (1.0,)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ends = [quantile(x, y, 0.995) for x, y in lines] + targets
        ax.set_xscale("linear")
        ax.set_xlim(0.0, 1.08 * max(ends) or 1.0)


def log_scale(ax: Axes) -> None:
    """Give `ax` a logarithmic vertical axis with plain numbers."""
    ax.set_yscale("log")
    for write in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
        write(FuncFormatter(lambda y, _: f"{y:g}"))


def _in_percent(ax: Axes, *, top: float = 1.03) -> None:
    ax.set_ylim(0.0, top)
    ax.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))


def _plot_ecdf(
    values: FloatArray, ax: Axes | None, target: float | None, name: str, unit: str, **keywords: Any
) -> Axes:
    axes = _given_or_current(ax)
    x, y = ecdf(values)
    if x.size > _MOST_POINTS:  # every drawn point is exact
        drawn = np.unique(np.linspace(0, x.size - 1, _MOST_POINTS).round().astype(np.int64))
        x, y = x[drawn], y[drawn]
    if x.size:
        x, y = np.concatenate([x[:1], x]), np.concatenate([[0.0], y])
    axes.step(x, y, where="post", **{"linewidth": 1.6, **keywords})
    if target is not None:
        _draw_target(axes, target, f"target {target:g} {unit}", across=False)
    _fit_latency_axis(axes)
    axes.set_xlabel(f"{name} ({unit})")
    axes.set_ylabel("Share of arrived requests")
    _in_percent(axes)
    _tidy(axes)
    return axes


def _latency(requests: Frame, name: str, metric: str) -> FloatArray:
    """Latencies with NaN for every request that did not finish: it counts as never."""
    finished = np.asarray(requests["status"], dtype=object) == "finished"
    return np.where(finished, request_metrics(requests, metric)[name], np.nan)


def plot_ttft_ecdf(
    requests: Frame,
    *,
    target_s: float | None = None,
    metric: str = "user",
    ax: Axes | None = None,
    **line_kwargs: Any,
) -> Axes:
    """Draw the share of requests whose TTFT is at most x.

    The share is of all requests in the frame: a line that ends below 1 had requests that were
    rejected or did not finish. At the target it reads the TTFT attainment.

    Parameters
    ----------
    requests : mapping or pandas.DataFrame
        The requests frame, cut to its window by the caller.
    target_s : float, optional
        Target (s) to mark.
    metric : str
        ``"user"`` or ``"ecoserve"`` (`metrics.request_metrics`).
    **line_kwargs
        For the line: ``label``, ``color``...
    """
    values = _latency(requests, "ttft_s", metric)
    return _plot_ecdf(values, ax, target_s, "Time to first token", "s", **line_kwargs)


def plot_tpot_ecdf(
    requests: Frame,
    *,
    target_s: float | None = None,
    metric: str = "user",
    ax: Axes | None = None,
    **line_kwargs: Any,
) -> Axes:
    """Draw the share of requests whose TPOT is at most x (in ms).

    Requests for one token are left out; otherwise as `plot_ttft_ecdf`.
    """
    values = _latency(requests, "tpot_s", metric)[np.asarray(requests["output_len"]) > 1]
    target = None if target_s is None else target_s / MS
    axes = _plot_ecdf(values / MS, ax, target, "Time per output token", "ms", **line_kwargs)
    axes.set_ylabel("Share of arrived requests (≥ 2 tokens)")
    return axes


def plot_attainment(
    sweep: Frame,
    target: float,
    *,
    column: str = "slo_attainment",
    styles: Mapping[str, LineStyle] | None = None,
    ax: Axes | None = None,
    **line_kwargs: Any,
) -> Axes:
    """Draw SLO attainment against offered rate, one line per strategy, and the target across.

    Lines go through the mean over seeds; whiskers reach from the lowest to the highest seed.

    Parameters
    ----------
    sweep : mapping or pandas.DataFrame
        The sweep frame.
    target : float
        Attainment to mark, 0 to 1.
    column : str
        Which share, such as ``"ttft_attainment"``.
    styles : mapping, optional
        Colour and line style of each strategy; by default `palette` of those in the sweep.

    Raises
    ------
    DataError
        If runs have no offered rate.
    """
    axes = _given_or_current(ax)
    names = np.asarray(sweep["strategy"], dtype=object)
    all_rates = np.asarray(sweep["rate_rps"], dtype=np.float64)
    shares = np.asarray(sweep[column], dtype=np.float64)
    if not np.isfinite(all_rates).all():
        raise DataError("runs without an offered rate (a closed loop) have no attainment by rate")
    order = strategies(sweep)
    styles = palette(order) if styles is None else styles
    place_of = places(order)
    for name in order:
        own = names == name
        rates, means = mean_attainment(all_rates[own], shares[own])
        by_rate = [shares[own & (all_rates == rate)] for rate in rates]
        low = means - [s.min() for s in by_rate]
        high = [s.max() for s in by_rate] - means
        marks = {
            "marker": _MARKERS[place_of[name] % len(_MARKERS)],
            "markersize": 4.5,
            "linewidth": 1.6,
        }
        axes.plot(
            rates, means, **{"label": as_written(name), **marks, **styles[name], **line_kwargs}
        )
        if np.any(high + low > 0):
            whiskers = np.maximum([low, high], 0.0)
            axes.errorbar(
                rates, means, whiskers, fmt="none", ecolor=styles[name]["color"], capsize=2.5
            )
    _draw_target(axes, target, f"target {100 * target:.4g}%", across=True)
    axes.set_xlabel("Offered rate (requests/s)")
    what = "SLO attainment" if column == "slo_attainment" else f"Within {target_of(column)}"
    axes.set_ylabel(f"{what} (share of arrived requests)")
    axes.set_xlim(0.0, 1.05 * max(x.max() for x, _ in _data(axes)))
    _in_percent(axes)
    _tidy(axes)
    return axes


_BAR_LABELS: Final = {
    "goodput_rps": "Goodput (requests/s)",
    "goodput_rps_per_gpu": "Goodput per GPU (requests/s)",
    "requests_per_cost": "Requests at goodput per {currency}",
}


def plot_goodput_bars(
    rows: Frame,
    *,
    column: str = "goodput_rps",
    currency: str = "USD",
    styles: Mapping[str, LineStyle] | None = None,
    ax: Axes | None = None,
    **bar_kwargs: Any,
) -> Axes:
    """Draw one bar per strategy: its goodput, per GPU or per cost where `column` says so.

    A bar with hatching is a bound: "≥" where the grid of rates was too low to find the goodput.
    Where every rate was too high there is no bar, only the bound "<". Whiskers reach from the
    lowest to the highest goodput of single seeds.

    Parameters
    ----------
    rows : mapping or pandas.DataFrame
        As from `frames.goodput.goodput_table`.
    column : str
        ``"goodput_rps"``, ``"goodput_rps_per_gpu"`` or ``"requests_per_cost"``.
    currency : str
        Currency of the price, for the label.
    styles : mapping, optional
        Colour of each strategy; by default `palette` of those in the rows.
    """
    axes = _given_or_current(ax)
    names = [str(name) for name in np.asarray(rows["strategy"], dtype=object)]
    styles = palette(names) if styles is None else styles
    values = np.asarray(rows[column], dtype=np.float64)
    goodput = np.asarray(rows["goodput_rps"], dtype=np.float64)
    censored = np.asarray(rows["censored"], dtype=object)
    spread = np.stack([np.asarray(rows[f"goodput_rps_{end}"]) for end in ("min", "max")])
    spread = spread * (values / goodput)

    room = float(np.nanmax(spread, initial=0.0)) or 1.0
    for i, name in enumerate(names):
        below, above = censored[i] == "below", censored[i] == "above"
        bar = {"height": 0.62, "color": styles[name]["color"]}
        if above:
            bar |= {"hatch": "///", "edgecolor": "white", "linewidth": 0.0}
        axes.barh(i, 0.0 if below else values[i], **{**bar, **bar_kwargs})
        low, high = spread[:, i]
        tip = values[i]
        if not below and high > low:
            axes.plot([low, high], [i, i], color="#222222", linewidth=1.2, marker="|", markersize=7)
            tip = max(tip, high)
        bound = Goodput(value=float(values[i]), censored=censored[i] or None)
        start = 0.0 if below else tip
        axes.annotate(
            str(bound), (start, i), xytext=(5, 0), textcoords="offset points", va="center"
        )
    axes.set_yticks(range(len(names)), [as_written(name) for name in names])
    axes.invert_yaxis()
    axes.set_xlim(0.0, 1.14 * room)
    axes.set_xlabel(_BAR_LABELS[column].format(currency=currency))
    _tidy(axes)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    return axes


def _fit_level_axes(ax: Axes) -> None:
    """Fit the axes to all levels drawn so far.

    The y axis is linear up to 10 and logarithmic above where one line's peak dwarfs another's (of
    at least one, or there is nothing to see of it).
    """
    lines = _data(ax)
    peaks = [float(y.max()) for _, y in lines]
    ax.set_xlim(0.0, 1.02 * max([float(x.max()) for x, _ in lines], default=0.0) or 1.0)
    visible = [peak for peak in peaks if peak >= 1.0]
    if visible and max(visible) > _LOG_FROM_PEAKS * min(visible):
        ax.set_yscale("symlog", linthresh=10.0)
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        ax.set_ylim(0.0, 1.5 * max(peaks))
    else:
        ax.set_yscale("linear")
        ax.set_ylim(0.0, 1.08 * max(peaks, default=0.0) or 1.0)


def _plot_level(
    times: FloatArray, levels: FloatArray, ax: Axes | None, axis_label: str, **line_kwargs: Any
) -> Axes:
    """Draw a step function until it is zero for good.

    Averages over equal bins are drawn where it has more steps than can be seen.
    """
    axes = _given_or_current(ax)
    used = int(np.max(np.flatnonzero(levels > 0), initial=-1)) + 2
    times, levels = times[:used], levels[:used]
    if times.size > _MOST_BINS:
        edges = np.linspace(min(0.0, float(times[0])), float(times[-1]), _MOST_BINS + 1)
        times, levels = edges, np.append(binned_average(times, levels, edges), levels[-1])
    axes.step(times, levels, where="post", **{"linewidth": 1.3, **line_kwargs})
    axes.set_xlabel("Time (s)")
    axes.set_ylabel(axis_label)
    _fit_level_axes(axes)
    _tidy(axes)
    return axes


def plot_ttft_over_time(
    requests: Frame,
    *,
    target_s: float | None = None,
    metric: str = "user",
    ax: Axes | None = None,
    **line_kwargs: Any,
) -> Axes:
    """Draw the mean TTFT of the requests that arrive in each of many equal intervals.

    It rises without end where a cluster is overloaded.

    Parameters
    ----------
    requests : mapping or pandas.DataFrame
        The requests frame; those that never had an output are left out.
    target_s : float, optional
        Target (s) to mark.
    metric : str
        As in `plot_ttft_ecdf`.
    """
    axes = _given_or_current(ax)
    edges, means = mean_by_arrival(requests, request_metrics(requests, metric)["ttft_s"])
    axes.stairs(means, edges, baseline=None, **{"linewidth": 1.3, **line_kwargs})
    if target_s is not None:
        _draw_target(axes, target_s, f"target {target_s:g} s", across=True)
    axes.set_xlabel("Arrival (s)")
    axes.set_ylabel("Mean time to first token (s)")
    drawn = [np.asarray(p.get_data()[0]) for p in axes.patches if isinstance(p, StepPatch)]
    known = [float(values[~np.isnan(values)].max(initial=0.0)) for values in drawn]
    axes.set_ylim(0.0, 1.08 * max([*known, target_s or 0.0]) or 1.0)
    _tidy(axes)
    return axes


def plot_waiting_over_time(requests: Frame, *, ax: Axes | None = None, **line_kwargs: Any) -> Axes:
    """Draw how many requests have arrived and wait for their first step, wherever they wait.

    It includes those that a router holds back. Long runs are drawn as averages over equal bins.

    Parameters
    ----------
    requests : mapping or pandas.DataFrame
        The requests frame, not cut.
    """
    times, counts = waiting_over_time(requests)
    return _plot_level(times, counts, ax, "Requests with no step yet", **line_kwargs)


def plot_queue_over_time(
    requests: Frame,
    *,
    instances: Collection[int] | None = None,
    ax: Axes | None = None,
    **line_kwargs: Any,
) -> Axes:
    """Draw how many requests wait in the queues of the instances for their first step.

    These are the routed requests of `plot_waiting_over_time`; it includes none that a router holds
    back. Long runs are drawn as averages over equal bins.

    Parameters
    ----------
    requests : mapping or pandas.DataFrame
        The requests frame, not cut.
    instances : collection of int, optional
        The queues of these alone; by default of all.
    """
    times, counts = queued_over_time(requests, instances=instances)
    return _plot_level(times, counts, ax, "of them in instance queues", **line_kwargs)


def plot_kv_usage_over_time(
    spans: Frame,
    *,
    instances: Collection[int] | None = None,
    ax: Axes | None = None,
    **line_kwargs: Any,
) -> Axes:
    """Draw the share of KV blocks in use, the mean over the instances.

    Parameters
    ----------
    spans : mapping or pandas.DataFrame
        The spans frame.
    instances : collection of int, optional
        The mean over all of these; by default over those that have spans.
    """
    times, levels = level_over_time(spans, "kv_usage", instances=instances)
    axes = _plot_level(times, levels, ax, "KV blocks in use", **line_kwargs)
    peak = max([float(y.max()) for _, y in _data(axes)], default=0.0)
    _in_percent(axes, top=1.15 * peak if 0.0 < peak < _LOW_USAGE else 1.03)
    return axes


def instances_by_role(instances: Frame) -> dict[str, list[int]]:
    """Return the ids of the instances of each role, from the instances frame."""
    ids = np.asarray(instances["instance"], dtype=np.int64).tolist()
    names = [str(name) for name in np.asarray(instances["pool"], dtype=object)]
    return {
        role: [i for i, name in zip(ids, names, strict=True) if name == role]
        for role in dict.fromkeys(names)
    }


def plot_kv_usage_by_role(
    spans: Frame, instances: Frame, *, ax: Axes | None = None, **line_kwargs: Any
) -> Axes:
    """Draw the KV usage of each role; a mean over prefill and decode instances would hide both.

    Parameters
    ----------
    spans, instances : mapping or pandas.DataFrame
        The frames of one run.
    **line_kwargs
        For the lines; the lines of prefill instances are thinner and paler.
    """
    axes = _given_or_current(ax)
    members = instances_by_role(instances)
    for role, ids in members.items():
        own = dict(line_kwargs)
        if len(members) > 1:
            own["label"] = f"{line_kwargs.get('label', '')} ({role})".strip()
            if role == "prefill":
                own |= {"linewidth": 0.9, "alpha": 0.7}
        plot_kv_usage_over_time(spans, instances=ids, ax=axes, **own)
    return axes


def goodput_title(slo: SloConfig) -> str:
    """Return which share of the requests is within the targets at a goodput."""
    if slo.percentiles is None:
        return f"{100 * slo.attainment:.4g}% of requests meet their targets"
    shares = (f"{target_of(c)} for {100 * share:g}%" for c, share in wanted_shares(slo).items())
    return "Within the targets: " + ", ".join(shares)


def figure_of_attainment(
    sweep: Frame, slo: SloConfig, *, styles: Mapping[str, LineStyle] | None = None
) -> Figure:
    """Draw attainment against offered rate; a panel for each target that has a share of its own."""
    wanted = wanted_shares(slo)
    figure = new_figure(height=3.4 * len(wanted)) if len(wanted) > 1 else new_figure()
    panels = figure.subplots(len(wanted), 1, squeeze=False)[:, 0]
    for axes, (column, share) in zip(panels, wanted.items(), strict=True):
        legend_beside(plot_attainment(sweep, share, column=column, styles=styles, ax=axes))
    return figure


def render_comparison(
    sweep: Frame,
    requests_by_strategy: Mapping[str, Frame],
    spans_by_strategy: Mapping[str, Frame],
    slo: SloConfig,
    out_dir: Path,
    *,
    instances_by_strategy: Mapping[str, Frame] | None = None,
    run: RunConfig | None = None,
    title: str = "",
    about: str = "",
    fmt: PictureFormat = "png",
    columns: Literal[1, 2] | None = None,
) -> list[Path]:
    """Draw the figures of a comparison and write them.

    Parameters
    ----------
    sweep : mapping or pandas.DataFrame
        The sweep frame.
    requests_by_strategy, spans_by_strategy : mapping of str to frame
        The frames of one run of each strategy, all at the same rate and seed.
    slo : SloConfig
        The targets to mark; its metric is that of the latency figures.
    out_dir : Path
        Folder to write to; made where it does not exist.
    instances_by_strategy : mapping of str to frame, optional
        The instances frames of the same runs; with them KV usage is drawn by role.
    run : RunConfig, optional
        Its warm-up and cool-down cut the requests of the latency figures; by default all count.
    title : str
        Over the figures of single runs, such as ``"12 requests/s"``.
    about : str
        At the top of every figure: model, machines, targets.
    fmt : str
        ``"png"``, ``"svg"`` or ``"pdf"``.
    columns : int, optional
        Width in columns of a paper (`for_paper`); then `about` is left out, for the caption.

    Returns
    -------
    list of Path
        With ``"png"`` ``ttft_cdf.png``, ``tpot_cdf.png``, ``attainment.png``, ``goodput.png``,
        ``ttft_over_time.png``, ``queue.png`` and ``kv_usage.png`` in `out_dir`; ``attainment`` and
        ``goodput`` are left out where runs have no offered rate, or all the same.
    """
    styles = palette([*strategies(sweep), *requests_by_strategy, *spans_by_strategy])
    run = RunConfig() if run is None else run
    counted = {name: in_window(one, run) for name, one in requests_by_strategy.items()}
    out_dir.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    rates = np.unique(np.asarray(sweep["rate_rps"], dtype=np.float64))
    has_rates = rates.size > 1 and bool(np.isfinite(rates).all())

    def save(figure: Figure, name: str) -> None:
        if columns is not None:
            for_paper(figure, columns)
        elif about:
            figure.suptitle(as_written(about), fontsize="small", x=0.01, ha="left")
        written.append((out_dir / name).with_suffix(f".{fmt}"))
        figure.savefig(written[-1])

    for name, plot, target_s in (  # a curve of all classes has no one target
        ("ttft_cdf.png", plot_ttft_ecdf, None if slo.classes else slo.ttft_s),
        ("tpot_cdf.png", plot_tpot_ecdf, None if slo.classes else slo.tpot_s),
    ):
        figure = new_figure()
        ax = figure.subplots()
        overlay(plot, counted, styles=styles, ax=ax, target_s=target_s, metric=slo.metric)
        ax.set_title(title, loc="left", fontsize="medium")
        legend_beside(ax)
        save(figure, name)

    if has_rates:
        save(figure_of_attainment(sweep, slo, styles=styles), "attainment.png")

        table = goodput_table(sweep, wanted_shares(slo))
        figure = new_figure(height=1.0 + 0.42 * len(table["strategy"]))
        ax = plot_goodput_bars(table, styles=styles, ax=figure.subplots())
        ax.set_title(goodput_title(slo), loc="left", fontsize="medium")
        save(figure, "goodput.png")

    figure = new_figure()
    ax = figure.subplots()
    target_s = None if slo.classes else slo.ttft_s
    for name, one in counted.items():
        plot_ttft_over_time(
            one,
            target_s=target_s,
            metric=slo.metric,
            ax=ax,
            label=as_written(name),
            color=styles[name]["color"],
            linestyle=styles[name]["linestyle"],
        )
    ax.set_title(title, loc="left", fontsize="medium")
    legend_beside(ax)
    save(figure, "ttft_over_time.png")

    figure = new_figure(height=5.2)
    above, below = figure.subplots(2, 1, sharex=True, sharey=True)
    overlay(plot_queue_over_time, requests_by_strategy, styles=styles, ax=below)
    overlay(plot_waiting_over_time, requests_by_strategy, styles=styles, ax=above)
    above.set_title(title, loc="left", fontsize="medium")
    above.set_xlabel("")
    legend_beside(above)
    save(figure, "queue.png")

    figure = new_figure()
    ax = figure.subplots()
    for name, spans in spans_by_strategy.items():
        if instances_by_strategy is not None and name in instances_by_strategy:
            plot_kv_usage_by_role(
                spans, instances_by_strategy[name], ax=ax, label=as_written(name), **styles[name]
            )
        else:
            plot_kv_usage_over_time(spans, ax=ax, label=as_written(name), **styles[name])
    ax.set_title(title, loc="left", fontsize="medium")
    legend_beside(ax)
    save(figure, "kv_usage.png")
    return written
