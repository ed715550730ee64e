"""A ranking as text, as plain values for programs, as files and pictures."""

from __future__ import annotations

import csv
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from simcluster._version import __version__
from simcluster.catalog.toml_writer import to_toml
from simcluster.frames.goodput import three_digits
from simcluster.runs import output
from simcluster.scenario.scenario import Scenario
from simcluster.show.plot import as_written, log_scale, new_figure, palette
from simcluster.show.terminal import filled, fitted
from simcluster.show.text import aligned, gpus_caption, gpus_text, heading, step_times_of
from simcluster.studies.goodput.runs import mean_lengths
from simcluster.studies.rank.need_report import (
    finite,
    level_row,
    margins_text,
    need_row,
    plan_rows,
    plans_text,
)
from simcluster.studies.rank.ranking import Candidate, Ranking
from simcluster.units import MS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_SHOWN: Final = 20
_FRONT: Final[dict[str, Any]] = {
    "color": "black",
    "linewidth": 1.2,
    "linestyle": "--",
    "zorder": 1,
    "label": "Pareto front",
}
_COLUMN: Final = 0.7
"""Width of the column of one cost, as a share of the way to the next."""
_FAMILIES: Final = ("NoDG", "NoDG chunked", "PaDG", "FuDG intra-node", "FuDG inter-node")
FILES: Final = (
    "ranking.json",
    "ranking.csv",
    "plans.csv",
    "cost_front.png",
    "latency_front.png",
    "scenario.toml",
)
"""Files of a result folder, beside the recorded runs."""


def as_text(ranking: Ranking, *, shown: int = _SHOWN) -> str:
    """Return the ranking as tables for a terminal, the best `shown` candidates of it."""
    candidates = ranking.candidates
    # What is said of single strategies is said of those in the answer, not of hundreds.
    answer = [c.name for c in candidates if c.stage == "final"] or [candidates[0].name]
    parts = [heading(ranking.scenario.only(*answer)), fitted(_counts(ranking))]
    if ranking.need is not None:
        parts.append(plans_text(ranking, ranking.need))
    else:
        parts.append(_table(ranking, candidates[:shown]))
        if len(candidates) > shown:
            parts[-1] += f"\n... and {len(candidates) - shown} more (--all, --json or -o DIR)"
    parts.append("\n".join(map(filled, ranking.notes)))
    parts.append(fitted(_unsettled(ranking)))
    parts.append(fitted(_told_apart(ranking)))
    parts.append(fitted(_why(candidates[: min(shown, 8)])))
    parts.append(margins_text(ranking))
    if ranking.need is None:
        parts.append(fitted(_fronts(ranking)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _counts(ranking: Ranking) -> str:
    stages = [candidate.stage for candidate in ranking.candidates]
    text = (
        f"{len(stages)} candidates: {stages.count('final')} settled, {stages.count('race')} raced, "
        f"{stages.count('screen')} after short runs, {stages.count('bound')} by their bound alone; "
        f"{ranking.num_requests:,} requests simulated"
    )
    if ranking.need is not None:
        text = f"{ranking.num_requests:,} requests simulated"
    if ranking.table.mode == "bestserve":
        text = f"{len(stages)} candidates, estimated as BestServe does: no intervals"
    if ranking.removed:
        num = ranking.removed.total()
        text += f"\n{num} candidate{'s' if num != 1 else ''} removed before any run:"
        for rule, count in ranking.removed.most_common():
            text += f"\n  {count:4d}  {rule}"
    return text


def _table(ranking: Ranking, candidates: tuple[Candidate, ...]) -> str:
    currency = ranking.scenario.environment.cluster.currency
    priced = candidates[0].cost_per_hour is not None
    heads = ["candidate, goodput in req/s", "strategy", "GPUs", "goodput", "95 %", "per GPU"]
    heads += [f"{currency}/h", f"req/{currency}", f"{currency}/M tok"] if priced else []
    output_len = mean_lengths(ranking.scenario)[1] if priced else math.nan
    rows = [[*heads, "bottleneck"]]
    for number, c in enumerate(candidates, 1):
        row = [
            f"{number:3d} {c.name}",
            c.strategy,
            gpus_text(c.mean_gpus, c.num_gpus),
            three_digits(c.goodput_rps),
            _interval(c),
            three_digits(c.per_gpu_rps),
        ]
        if c.cost_per_hour is not None:
            per_million = 1e6 / (c.per_cost * output_len) if c.per_cost else math.inf
            row += [three_digits(one) for one in (c.cost_per_hour, c.per_cost, per_million)]
        rows.append([*row, c.bottleneck])
    captions = []
    if priced:
        captions.append("M tok: a million output tokens, at the goodput.")
    if any(c.mean_gpus != c.num_gpus for c in candidates):
        captions.append(gpus_caption("about the goodput", "those of the most instances in service"))
    return "\n\n".join([aligned(rows), *map(filled, captions)])


def _interval(candidate: Candidate) -> str:
    if math.isnan(candidate.low_rps):
        return "-"
    high = "" if math.isinf(candidate.high_rps) else three_digits(candidate.high_rps)
    return f"{three_digits(candidate.low_rps)} to {high}"


def _unsettled(ranking: Ranking) -> str:
    """Return which finalists have no settled goodput, and what is known of theirs."""
    if not ranking.unsettled:
        return ""
    title = "Finalists without a settled goodput; what the table has is from the last round:"
    if not any(candidate.stage == "final" for candidate in ranking.candidates):
        title = (
            "No finalist has a settled goodput: all goodputs are from rounds of short runs, which "
            "flatter.\nRaise rank.tolerance."
        )
    return "\n".join([title, *(f"  {n}: {words}" for n, words in ranking.unsettled.items())])


def _told_apart(ranking: Ranking) -> str:
    pairs = (*ranking.decided, *ranking.undecided, *ranking.raced)
    title = "Finalists, pair by pair on the same requests where not said otherwise (95 % each):"
    return "\n".join([title, *(f"  {text}" for text in pairs)]) if pairs else ""


def _why(candidates: tuple[Candidate, ...]) -> str:
    lines = [f"  {c.name}: {c.bottleneck}-bound; {c.why}" for c in candidates]
    return "\n".join(["What keeps them from sustaining more:", *lines])


def _fronts(ranking: Ranking) -> str:
    cost = [
        f"{c.name} ({gpus_text(c.mean_gpus, c.num_gpus)} GPUs, {three_digits(c.goodput_rps)} req/s)"
        for c in ranking.cost_front()
    ]
    parts = [f"Best goodput for its cost: {'; '.join(cost)}"]
    latency = [
        f"{c.name} ({three_digits(c.ttft_s)} s, {three_digits(c.tpot_s / MS)} ms)"
        for c in ranking.latency_front()
    ]
    if latency:
        slo = ranking.scenario.environment.slo
        both = dict.fromkeys(f"P{100 * slo.wanted(key):g}" for key in ("ttft", "tpot"))
        parts.append(
            f"Best TTFT for its TPOT ({' and '.join(both)} at "
            f"{three_digits(ranking.latency_rate_rps)} req/s): {'; '.join(latency)}"
        )
    return "\n".join(parts)


def as_json(ranking: Ranking, *, compared: bool = True) -> dict[str, Any]:
    """Return the ranking as plain values for ``json.dumps``: NaN and infinity as None."""
    environment = ranking.scenario.environment
    on_cost = {c.name for c in ranking.cost_front()}
    on_latency = {c.name for c in ranking.latency_front()}
    return {
        "simcluster": __version__,
        "mode": ranking.table.mode,
        "candidates": [
            {
                "rank": number,
                **row(c),
                "on_cost_front": c.name in on_cost,
                "on_latency_front": c.name in on_latency,
            }
            for number, c in enumerate(ranking.candidates, 1)
        ],
        "notes": list(ranking.notes),
        "unsettled": dict(ranking.unsettled),
        "raced": list(ranking.raced),
        "levels": [level_row(level) for level in ranking.levels],
        "need": None if ranking.need is None else need_row(ranking.need),
        "undecided": list(ranking.undecided) if compared else None,
        "decided": list(ranking.decided) if compared else None,
        "removed": dict(ranking.removed),
        "latency_rate_rps": finite(ranking.latency_rate_rps),
        "currency": environment.cluster.currency,
        "step_times": step_times_of(environment),
    }


def row(candidate: Candidate) -> dict[str, Any]:
    """Return one candidate as plain values."""
    return {
        "name": candidate.name,
        "strategy": candidate.strategy,
        "num_gpus": candidate.num_gpus,
        "mean_gpus": candidate.mean_gpus,
        "goodput_rps": candidate.goodput_rps,
        "interval_rps": [finite(candidate.low_rps), finite(candidate.high_rps)],
        "goodput_rps_per_gpu": candidate.per_gpu_rps,
        "requests_per_cost": finite(candidate.per_cost),
        "cost_per_hour": candidate.cost_per_hour,
        "bottleneck": candidate.bottleneck,
        "why": candidate.why,
        "stage": candidate.stage,
        "ttft_s": finite(candidate.ttft_s),
        "tpot_s": finite(candidate.tpot_s),
        "bound_rps": finite(candidate.bound_rps),
    }


def write(ranking: Ranking, out: Path, asked: Scenario | None = None) -> list[Path]:
    """Write the ranking into the folder `out`: rows as CSV and JSON, a picture of each front.

    And the scenario that was `asked`, which holds the space and not the candidates.

    With a need the plans as CSV in place of the pictures.
    The rows are there before the finalists are compared and before the pictures are drawn.

    Raises
    ------
    DataError
        If `out` cannot be written.
    """
    if asked is not None:
        with output.together(out) as folder:
            (folder / "scenario.toml").write_text(to_toml(asked.document), encoding="utf-8")
    _write_rows(as_json(ranking, compared=False), out)
    _write_rows(as_json(ranking), out)
    if ranking.need is not None:
        with output.together(out) as folder:
            _write_csv(plan_rows(ranking.need), folder / "plans.csv")
        return []
    with output.together(out) as folder:
        pictures = []
        for name, plot in (("cost_front", plot_cost_front), ("latency_front", plot_latency_front)):
            figure = new_figure(width=8.0, height=4.4)
            plot(ranking, ax=figure.add_subplot())
            figure.savefig(folder / f"{name}.png")
            pictures.append(out / f"{name}.png")
    return pictures


def _write_rows(plain: dict[str, Any], out: Path) -> None:
    with output.together(out) as folder:
        text = json.dumps(plain, indent=1) + "\n"
        (folder / "ranking.json").write_text(text, encoding="utf-8")
        _write_csv(plain["candidates"], folder / "ranking.csv")


def _write_csv(rows: Sequence[dict[str, Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0]])
        writer.writeheader()
        writer.writerows(rows)


# Pictures ----------------------------------------------------------------------------------------


def plot_cost_front(ranking: Ranking, *, ax: Axes) -> Axes:
    """Draw goodput against the cost of the GPUs held, with intervals, and the Pareto front.

    A grey column is one cost: the candidates in it stand side by side by family, so that their
    intervals can be read. The front is drawn at the costs themselves, the middles of the columns.
    """
    environment = ranking.scenario.environment
    priced = environment.cluster.price_per_gpu_hour is not None
    scale = environment.cluster.price_per_gpu_hour or 1.0
    families = _families(ranking.candidates)
    sizes = sorted({c.num_gpus for c in ranking.candidates})
    held = [c.mean_gpus for c in ranking.candidates]
    gap = min((b - a for a, b in itertools.pairwise(sizes)), default=sizes[0]) * scale
    step = _COLUMN * gap / max(len(families), 2)
    middle = (len(families) - 1) / 2
    places = {name: (number - middle) * step for number, name in enumerate(families)}

    def x(candidate: Candidate) -> float:
        return candidate.mean_gpus * scale + places[candidate.strategy]

    for size in sizes:
        ends = (size * scale - _COLUMN * gap / 2, size * scale + _COLUMN * gap / 2)
        ax.axvspan(*ends, color="#F0F0F0", zorder=0, linewidth=0, gid="column")
    for name, colour in families.items():
        own = [c for c in ranking.candidates if c.strategy == name]
        _with_intervals(ax, [x(c) for c in own], own, colour=colour, label=as_written(name))
    front = ranking.cost_front()
    costs, goodputs = [c.mean_gpus * scale for c in front], [c.goodput_rps for c in front]
    right = max(*held, sizes[-1]) * scale + _COLUMN * gap / 2
    ax.step([*costs, right], [*goodputs, goodputs[-1]], where="post", **_FRONT)
    for c in front:
        ax.annotate(
            as_written(c.name),
            (c.mean_gpus * scale, c.goodput_rps),
            xytext=(-6, 5),
            textcoords="offset points",
            ha="right",
            fontsize=8,
        )
    ax.set_xticks([size * scale for size in sizes])
    currency = environment.cluster.currency
    what = f"cost of the GPUs ({currency} per hour)" if priced else "GPUs"
    ax.set_xlabel(f"{what}; all of a column {'cost the same' if priced else 'have as many'}")
    ax.set_ylabel("goodput (requests/s)")
    ax.set_ylim(0, 1.2 * max(c.goodput_rps for c in ranking.candidates))
    ends = min(*held, sizes[0]) * scale, max(*held, sizes[-1]) * scale
    ax.set_xlim(ends[0] - 0.8 * gap, ends[1] + 0.6 * gap)
    _finish(ax)
    return ax


def _with_intervals(
    ax: Axes, x: Sequence[float], candidates: Sequence[Candidate], *, colour: str, label: str
) -> None:
    """Draw the goodputs of candidates at `x`, with their intervals."""
    low = [max(0.0, c.goodput_rps - c.low_rps) for c in candidates]
    high = [max(0.0, c.high_rps - c.goodput_rps) if _has_high(c) else 0.0 for c in candidates]
    ax.errorbar(
        x,
        [c.goodput_rps for c in candidates],
        yerr=[low, high],
        fmt="o",
        markersize=3.5,
        elinewidth=0.6,
        color=colour,
        alpha=0.75,
        label=label,
    )


def plot_latency_front(ranking: Ranking, *, ax: Axes) -> Axes:
    """Draw TTFT against TPOT at a rate that candidates sustain, and the Pareto front."""
    known = [c for c in ranking.candidates if not math.isnan(c.ttft_s + c.tpot_s)]
    for name, style in _families(known).items():
        own = [c for c in known if c.strategy == name]
        ax.plot(
            [c.tpot_s / MS for c in own],
            [c.ttft_s for c in own],
            "o",
            markersize=4,
            color=style,
            alpha=0.75,
            label=as_written(name),
        )
    front = ranking.latency_front()
    ax.step([c.tpot_s / MS for c in front], [c.ttft_s for c in front], where="pre", **_FRONT)
    for number, c in enumerate(front):
        ax.annotate(
            as_written(c.name),
            (c.tpot_s / MS, c.ttft_s),
            xytext=(6, 6 if number % 2 else -10),
            textcoords="offset points",
            fontsize=8,
        )
    slo = ranking.scenario.environment.slo
    rate = three_digits(ranking.latency_rate_rps)
    ax.set_xlabel(f"P{100 * slo.wanted('tpot'):g} TPOT (ms) at {rate} requests/s")
    ax.set_ylabel(f"P{100 * slo.wanted('ttft'):g} TTFT (s)")
    if known:
        log_scale(ax)
    _finish(ax)
    return ax


def _has_high(candidate: Candidate) -> bool:
    return math.isfinite(candidate.high_rps)


def _families(candidates: tuple[Candidate, ...] | list[Candidate]) -> dict[str, str]:
    """Return a colour for each family that occurs, the same in every picture."""
    there = {c.strategy for c in candidates}
    names = [*_FAMILIES, *sorted(there - set(_FAMILIES))]
    styles = palette(names)
    return {name: styles[name]["color"] for name in names if name in there}


def _finish(ax: Axes) -> None:
    ax.grid(visible=True, linewidth=0.4, alpha=0.5)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False, borderaxespad=0.0)
