"""A validation as a table for the terminal, rows for programs, Markdown and pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from simcluster import catalog
from simcluster.errors import ConfigError
from simcluster.fidelity.validate import board
from simcluster.fidelity.validate.base import Check
from simcluster.fidelity.validate.run import Validation
from simcluster.show.text import aligned
from simcluster.units import MS, US

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Colour = tuple[float, float, float, float]
"""Red, green, blue, opacity."""

HEADER: Final = (
    "data set",
    "GPU",
    "model",
    "regime",
    "quantity",
    "n",
    "measured",
    "simulated",
    "bias %",
    "median %",
    "mean %",
    "P90 %",
    "must %",
    "aim %",
    "met",
)
_SECONDS: Final = {"s": 1.0, "ms": MS, "us": US}
"""Units of time that tables show (s)."""
_NUM_TEXT: Final = 5
"""Columns of the table that are text, from the left."""


def as_text(result: Validation) -> str:
    """Return the table for a terminal: errors in percent, one line per check."""
    rows = [HEADER, *(_cells(item) for item in result.checks)]
    return "\n".join([aligned(rows, left=range(_NUM_TEXT)), "", *_notes(result)]) + "\n"


def as_markdown(result: Validation) -> str:
    """Return the tables of the checks as Markdown: what must be reached, then every check."""
    asked = [item for item in result.checks if item.must is not None]
    parts = ["## What must be reached", _markdown_table(asked), "## All checks"]
    parts += [_markdown_table(result.checks), *_notes(result)]
    return "\n\n".join(parts) + "\n"


def as_json(result: Validation) -> dict[str, Any]:
    """Return everything as values of JSON; NaN as None, errors as shares."""
    return {
        "checks": [
            {
                "data_set": item.data_set,
                "gpu": item.gpu,
                "model": item.model,
                "regime": item.regime,
                "quantity": item.quantity,
                "n": item.n,
                **_errors(item),
                "limits": item.limits,
                "must": item.must,
                "aim": item.aim,
                "met": item.met,
                "measured": _numbers(item.measured),
                "simulated": _numbers(item.simulated),
                "unit": item.unit,
                "step_times": accuracy_class(item.gpu),
            }
            for item in result.checks
        ],
        "rivals": [
            {
                "simulator": one.simulator,
                "model": one.model,
                **{
                    side: {
                        quantity: {"n": item.n, **_errors(item)} for quantity, item in found.items()
                    }
                    for side, found in (("predicted", one.theirs), ("simcluster", one.ours))
                },
            }
            for one in result.rivals
        ],
        "absent": [{"data_set": a.data_set, "reason": a.reason} for a in result.absent],
        "seconds": result.seconds,
    }


_STATISTICS: Final = ("median", "mean", "p90", "bias")


def _errors(item: Check) -> dict[str, float | None]:
    return {name: _number(getattr(item, name)) for name in _STATISTICS}


def accuracy_class(gpu: str) -> str | None:
    """Return what the step times of a GPU rest on; None where `gpu` is not one of the catalogue."""
    try:
        return catalog.gpu(gpu).constants.accuracy
    except ConfigError:
        return None


def write(result: Validation, out: Path) -> list[Path]:
    """Write report and pictures to the folder `out`, made if needed, and return their paths."""
    import json

    out.mkdir(parents=True, exist_ok=True)
    paths = [out / "report.md", out / "report.json"]
    kinds = board.as_markdown(result.checks, result.rivals)
    page = f"## By kind\n\n{kinds}\n\n{as_markdown(result)}"
    paths[0].write_text(page, encoding="utf-8")
    paths[1].write_text(json.dumps(as_json(result), indent=1) + "\n", encoding="utf-8")
    for name, draw in (("parity.png", plot_parity), ("errors.png", plot_errors)):
        save(draw, result, out / name)
        paths.append(out / name)
    return paths


def save(draw: Callable[[Iterable[Check], Axes], Axes], result: Validation, path: Path) -> None:
    """Save the picture that `draw` makes of the headline checks."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 5.5), layout="constrained")
    draw(headline(result.checks), figure.add_subplot())
    figure.savefig(path, dpi=150)


def headline(checks: Sequence[Check]) -> list[Check]:
    """Return the checks with a limit and more than one point: those worth a picture."""
    several = [item for item in checks if item.n > 1]
    return [item for item in several if item.must is not None] or several


def plot_parity(checks: Iterable[Check], ax: Axes, **scatter: Any) -> Axes:
    """Draw simulated over measured values, each check scaled by its mean measured value."""
    for name, (colour, marker, _), found in _by_data_set(checks):
        scaled = [
            (item.measured / np.mean(item.measured), item.simulated / np.mean(item.measured))
            for item in found
            if item.measured is not None and item.simulated is not None
        ]
        if not scaled:
            continue
        measured, simulated = (np.concatenate(values) for values in zip(*scaled, strict=True))
        ax.scatter(
            measured,
            simulated,
            **{
                "s": 7,
                "color": colour,
                "marker": marker,
                "linewidths": 0.0,
                "alpha": 0.6,
                "label": name,
                "rasterized": True,
                **scatter,
            },
        )
    low, high = ax.get_xlim()
    low = max(low, 1e-3)
    ends = np.array([low, high])
    for factor, style in ((1.0, "-"), (0.8, ":"), (1.25, ":")):
        ax.plot(ends, factor * ends, style, color="0.3", linewidth=0.8)
    ax.set(
        xscale="log",
        yscale="log",
        xlabel="measured / mean measured of its check",
        ylabel="simulated / mean measured of its check",
    )
    ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0), markerscale=2.0)
    return ax


def plot_errors(checks: Iterable[Check], ax: Axes, **line: Any) -> Axes:
    """Draw, by data set, the share of points whose absolute error is at most x percent."""
    for name, (colour, _, style), found in _by_data_set(checks):
        errors = [
            100.0 * np.abs(item.simulated / item.measured - 1.0)
            for item in found
            if item.measured is not None and item.simulated is not None
        ]
        if not errors:
            continue
        error = np.sort(np.concatenate(errors))
        share = np.arange(1, len(error) + 1) / len(error)
        ax.step(
            error,
            share,
            where="post",
            **{
                "color": colour,
                "linestyle": style,
                "label": f"{name} ({len(error)} points)",
                **line,
            },
        )
    ax.set(xlim=(0, 60), ylim=(0, 1), xlabel="absolute error (%)", ylabel="share of points")
    ax.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return ax


_MARKERS: Final = "osD^v<>ph*PXd8H"
_STYLES: Final = ("-", "--", ":", "-.")
"""Ten colours in each: no two data sets look alike."""


def _by_data_set(
    checks: Iterable[Check],
) -> list[tuple[str, tuple[Colour, str, str], list[Check]]]:
    """Checks by data set, each with a colour, a marker and a style of line."""
    from matplotlib import colormaps

    found: dict[str, list[Check]] = {}
    for item in checks:
        found.setdefault(item.data_set, []).append(item)
    colours = colormaps["tab10"]
    return [
        (name, (colours(i % 10), _MARKERS[i % len(_MARKERS)], _STYLES[i // 10 % 4]), items)
        for i, (name, items) in enumerate(found.items())
    ]


def _cells(item: Check) -> tuple[str, ...]:
    return (
        item.data_set,
        item.gpu,
        item.model,
        item.regime,
        item.quantity,
        str(item.n),
        _value(item.measured, item.unit),
        _value(item.simulated, item.unit),
        _percent(item.bias, sign=True),
        _percent(item.median),
        _percent(item.mean),
        _percent(item.p90),
        _limit(item, item.must),
        _limit(item, item.aim),
        _met(item),
    )


def _met(item: Check) -> str:
    if item.met is None:
        return ""
    if item.met and item.aim is not None and item.value <= item.aim:
        return "aim"
    return "must" if item.met else "NO"


def _limit(item: Check, limit: float | None) -> str:
    return (
        ""
        if limit is None
        else f"{'' if item.limits == 'mean' else item.limits} {100 * limit:g}".strip()
    )


def _percent(share: float, *, sign: bool = False) -> str:
    if not math.isfinite(share):
        return ""
    return f"{100 * share:+.1f}" if sign else f"{100 * share:.1f}"


def _value(values: Any, unit: str) -> str:
    """Mean of some values with its unit; times in the unit that suits their size."""
    if values is None or not len(values):
        return ""
    mean = float(np.mean(values))
    if unit not in _SECONDS:
        return f"{mean:.4g} {unit}"
    seconds = mean * _SECONDS[unit]
    shown = next((name for name, one in _SECONDS.items() if seconds >= one), "us")
    return f"{seconds / _SECONDS[shown]:.4g} {shown}"


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _numbers(values: Any) -> list[float | None] | None:
    return None if values is None else [_number(v) for v in values]


def _markdown_table(checks: Iterable[Check]) -> str:
    lines = ["| " + " | ".join(HEADER) + " |"]
    lines.append("|" + "---|" * _NUM_TEXT + "---:|" * (len(HEADER) - _NUM_TEXT))
    lines += ["| " + " | ".join(_cells(item)) + " |" for item in checks]
    return "\n".join(lines)


def _notes(result: Validation) -> list[str]:
    asked = [item for item in result.checks if item.met is not None]
    met = sum(item.met is True for item in asked)
    aims = sum(_met(item) == "aim" for item in asked)
    lines = [
        "Errors in percent of the measured value; measured and simulated are means over n pairs. "
        "must and aim are limits of the mean error where no other statistic is named.",
        f"{met} of {len(asked)} limits are met, {aims} of them at their aim.",
    ]
    classes: dict[str, list[str]] = {}
    for gpu in dict.fromkeys(item.gpu for item in result.checks):
        if (kind := accuracy_class(gpu)) is not None:
            classes.setdefault(kind, []).append(gpu)
    lines += [f"Step times, {kind}: {', '.join(gpus)}." for kind, gpus in classes.items()]
    lines += [f"Absent: {a.data_set} ({a.reason})." for a in result.absent]
    lines.append(f"Made in {result.seconds:.0f} s.")
    return lines
