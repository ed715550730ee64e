"""Goodputs in a notebook: as HTML, as a frame, as a report, as a picture."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from simcluster.report.views import shown, written
from simcluster.show.text import heading, targets
from simcluster.studies.goodput import tables

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from simcluster.studies.goodput.runs import Found


def to_frame(found: Found) -> pd.DataFrame:
    """Return a row per strategy: goodput with its interval, per GPU and cost, shares, status.

    ``cost_per_hour`` and what is per cost is in the currency of the scenario; NaN where no price
    is known, and where there is no goodput.
    """
    import pandas as pd

    rows = []
    for one in tables.as_json(found, compared=False)["goodput"]:
        goodput = one["goodput_rps"] or {}
        users = one.get("goodput_users") or {}
        per_gpu = one["goodput_rps_per_gpu"] or {}
        share = one.get("attainment") or {}
        row = {"strategy": one["strategy"], "status": one["status"], "num_gpus": one["num_gpus"]}
        if found.unit == "users":
            row["goodput_users"] = users.get("value", math.nan)
        row |= {
            "goodput_rps": goodput.get("value", math.nan),
            "low_rps": goodput.get("low", math.nan),
            "high_rps": goodput.get("high", math.nan),
            "goodput_rps_per_gpu": per_gpu.get("value", math.nan),
            "cost_per_hour": _or_nan(one.get("cost_per_hour")),
            "cost_per_million_output_tokens": _value(one["cost_per_million_output_tokens"]),
            "ttft_attainment": _or_nan(share.get("ttft")),
            "tpot_attainment": _or_nan(share.get("tpot")),
            "num_requests": one["num_requests"],
        }
        rows.append(row)
    return pd.DataFrame(rows)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _value(one: object) -> float:
    """Return a number, or that of an interval."""
    if isinstance(one, dict):
        return _or_nan(one.get("value"))
    return float(one) if isinstance(one, int | float) else math.nan


def to_html(found: Found) -> str:
    """Return goodputs for a notebook, with the pairs below."""
    slo = found.scenario.environment.slo
    notes = [f"Targets: {targets(slo)}. Goodputs in requests/s, with their 95 % interval."]
    notes += [str(pair) for pair in found.comparisons()]
    table = to_frame(found).dropna(axis="columns", how="all")
    return shown(heading(found.scenario), "", table, notes)


def report(found: Found, out: str | Path) -> Path:
    """Write results and the report of them."""
    return written(out, lambda folder: tables.write(found, folder))


def plot_goodput(found: Found, *, ax: Axes) -> Axes:
    """Draw the goodput of each strategy with its 95 % interval; those without one have a word."""
    from simcluster.show.plot import as_written, palette

    names = list(found.verdicts)
    styles = palette(names)
    for place, name in enumerate(names):
        goodput, colour = found.goodput(name), styles[name]["color"]
        if goodput is None:
            ax.annotate(f"  {found.verdicts[name].status}", (0.0, place), va="center")
            continue
        ends = [[goodput.value - goodput.low], [goodput.high - goodput.value]]
        ax.errorbar(goodput.value, place, xerr=ends, fmt="o", color=colour, capsize=3)
    ax.set_yticks(range(len(names)), [as_written(name) for name in names])
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlim(left=0.0)
    ax.set_xlabel(f"Goodput ({found.unit}), 95 % interval")
    ax.grid(visible=True, axis="x", linewidth=0.4, alpha=0.5)
    ax.spines[["top", "right"]].set_visible(False)
    return ax
