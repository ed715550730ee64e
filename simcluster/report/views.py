"""How results show themselves in a notebook, and what all of them share in that."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from simcluster.errors import DataError, printable
from simcluster.frames.goodput import Goodput, representative_rate, wanted_shares
from simcluster.frames.metrics import in_window
from simcluster.report.make import write_report
from simcluster.runs import folder as store
from simcluster.scenario import arguments
from simcluster.show.text import heading, targets

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from simcluster.runs.folder import Comparison

_MOST_ROWS: Final = 40
"""Rows of a table in a notebook; the frame has all."""


def shown(head: str, answer: str, table: pd.DataFrame, notes: Sequence[str] = ()) -> str:
    """Return a result as HTML: what was asked (folded), the answer, a table, notes.

    Parameters
    ----------
    head : str
        What was asked, in lines.
    answer : str
        In a sentence or two; may be empty.
    table : pandas.DataFrame
        Its first 40 rows are shown.
    notes : sequence of str
        Below the table.
    """
    question, _, rest = head.partition("\n")
    parts = [f"<details><summary>{_text(question)}</summary><pre>{_text(rest)}</pre></details>"]
    if answer:
        parts.append(f"<p><strong>{_text(answer)}</strong></p>")
    few = table.head(_MOST_ROWS)
    parts.append(few.to_html(index=False, escape=True, border=0, float_format="{:.4g}".format))
    if len(table) > len(few):
        parts.append(f"<p>and {len(table) - len(few)} more: to_frame() has all</p>")
    parts += [f"<p>{_text(note)}</p>" for note in notes]
    return "".join(parts)


def _text(text: str) -> str:
    return html.escape("\n".join(printable(line) for line in text.split("\n")))


def written(out: str | Path, save: Callable[[Path], object]) -> Path:
    """Write a result folder and the report of it beside each other; return the page."""
    page = arguments.path("out", out, "Give the path of a page, such as first.html.")
    if not page.suffix:
        raise DataError(f"{printable(str(page))}: has no suffix. Write such as {page}.html.")
    folder = page.with_suffix("")
    save(folder)
    return write_report(folder, page)


# Comparisons ------------------------------------------------------------------------------------


def to_frame(comparison: Comparison) -> pd.DataFrame:
    """Return goodputs by strategy; of runs at one rate, a row per run."""
    return comparison.goodput if _is_swept(comparison) else comparison.sweep


def to_html(comparison: Comparison) -> str:
    """Return a comparison for a notebook."""
    from simcluster.report.of_runs import answer

    table = to_frame(comparison)
    if _is_swept(comparison):
        columns = ["strategy", "num_gpus", "goodput", "goodput_per_gpu"]
        bounds = [
            [
                str(Goodput(value=value, censored=censored or None))
                for value, censored in zip(table[name], table["censored"], strict=True)
            ]
            for name in ("goodput_rps", "goodput_rps_per_gpu")
        ]
        table = table.assign(goodput=bounds[0], goodput_per_gpu=bounds[1])
    else:
        columns = ["strategy", "rate_rps", "seed", "slo_attainment", "good_rps"]
        columns += ["ttft_s_p50", "ttft_s_p99", "tpot_s_p50", "tpot_s_p99"]
    table = table[columns]
    slo = comparison.scenario.environment.slo
    return shown(
        heading(comparison.scenario),
        answer(comparison),
        table,
        [f"Targets: {targets(slo)}. Times in seconds, rates in requests/s."],
    )


def report(comparison: Comparison, out: str | Path) -> Path:
    """Write the report of a comparison."""
    if comparison.folder is not None:
        return write_report(comparison.folder, out)
    return written(out, lambda folder: store.save(comparison, folder))


def plot_attainment(comparison: Comparison, *, ax: Axes, **keywords: Any) -> Axes:
    """Draw attainment by rate with the target."""
    from simcluster.show import plot

    share = comparison.scenario.environment.slo.attainment
    axes = plot.plot_attainment(comparison.sweep, share, ax=ax, **keywords)
    plot.legend_beside(axes)
    return axes


def plot_goodput(comparison: Comparison, *, ax: Axes, **keywords: Any) -> Axes:
    """Draw a bar per strategy."""
    from simcluster.show import plot

    if not _is_swept(comparison):
        raise DataError("runs at one rate have no goodput: give the scenario several rates")
    currency = comparison.scenario.environment.cluster.currency
    return plot.plot_goodput_bars(comparison.goodput, currency=currency, ax=ax, **keywords)


def plot_ttft(comparison: Comparison, *, ax: Axes, **keywords: Any) -> Axes:
    """Draw distributions of the TTFT at one rate and seed."""
    from simcluster.show import plot

    return _distributions(comparison, plot.plot_ttft_ecdf, "ttft_s", ax, **keywords)


def plot_tpot(comparison: Comparison, *, ax: Axes, **keywords: Any) -> Axes:
    """Draw distributions of the TPOT at one rate and seed."""
    from simcluster.show import plot

    return _distributions(comparison, plot.plot_tpot_ecdf, "tpot_s", ax, **keywords)


def _distributions(
    comparison: Comparison,
    draw: Callable[..., Axes],
    target: str,
    ax: Axes,
    rate_rps: float | None = None,
    seed: int | None = None,
) -> Axes:
    from simcluster.show import plot

    environment, run = comparison.scenario.environment, comparison.scenario.run
    cells = comparison.cells()
    if rate_rps is None and _is_swept(comparison):
        rate_rps = representative_rate(comparison.sweep, wanted_shares(environment.slo))
    seed = cells[0].seed if seed is None else seed
    names = list(dict.fromkeys(cell.strategy for cell in cells))
    frames = {name: in_window(comparison.requests(name, rate_rps, seed), run) for name in names}
    limit = None if environment.slo.classes else getattr(environment.slo, target)
    styles = plot.palette(names)
    plot.overlay(draw, frames, styles=styles, ax=ax, target_s=limit, metric=environment.slo.metric)
    if rate_rps is not None:
        ax.set_title(f"{rate_rps:g} requests/s", loc="left", fontsize="medium")
    plot.legend_beside(ax)
    return ax


def _is_swept(comparison: Comparison) -> bool:
    return len({cell.rate_rps for cell in comparison.cells()} - {None}) > 1
