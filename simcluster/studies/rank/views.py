"""A ranking in a notebook: as HTML, as a frame, as a report, as pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from simcluster.report.views import shown, written
from simcluster.show.text import heading, targets
from simcluster.studies.rank import report as files

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from simcluster.studies.rank.ranking import Ranking


def to_frame(ranking: Ranking) -> pd.DataFrame:
    """Return a row per candidate, the best first; with a need, per plan, the cheapest first."""
    import pandas as pd

    from simcluster.studies.rank.need_report import plan_rows

    if ranking.need is not None:
        return pd.DataFrame(plan_rows(ranking.need))
    rows = []
    for one in files.as_json(ranking, compared=False)["candidates"]:
        low, high = one.pop("interval_rps")
        rows.append({**one, "low_rps": low, "high_rps": high})
    return pd.DataFrame(rows)


def to_html(ranking: Ranking) -> str:
    """Return a ranking for a notebook, with the pairs of finalists below."""
    slo = ranking.scenario.environment.slo
    best = [c.name for c in ranking.candidates if c.stage == "final"]
    names = best or [ranking.candidates[0].name]
    table = to_frame(ranking)
    if ranking.need is None:
        columns = ["rank", "name", "strategy", "num_gpus", "goodput_rps", "low_rps", "high_rps"]
        columns += ["goodput_rps_per_gpu", "cost_per_hour", "bottleneck"]
        table = table[columns].dropna(axis="columns", how="all")
    notes = [f"Targets: {targets(slo)}. Goodputs in requests/s, with their 95 % interval."]
    notes += [*ranking.decided, *ranking.undecided, *ranking.raced, *ranking.notes]
    return shown(heading(ranking.scenario.only(*names)), "", table, notes)


def report(ranking: Ranking, out: str | Path) -> Path:
    """Write results and the report of them."""
    asked = ranking.asked or ranking.scenario
    return written(out, lambda folder: files.write(ranking, folder, asked))


def plot_cost_front(ranking: Ranking, *, ax: Axes) -> Axes:
    """Draw goodput by cost."""
    return files.plot_cost_front(ranking, ax=ax)


def plot_latency_front(ranking: Ranking, *, ax: Axes) -> Axes:
    """Draw TTFT by TPOT."""
    return files.plot_latency_front(ranking, ax=ax)
