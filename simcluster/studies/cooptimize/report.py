"""A co-optimisation as text, as plain values, and as a picture."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from simcluster._version import __version__
from simcluster.catalog.toml_writer import to_toml
from simcluster.frames.goodput import target_of
from simcluster.runs import output
from simcluster.show.terminal import filled, fitted
from simcluster.show.text import aligned, step_times_of, targets
from simcluster.studies.cooptimize.database import kinds_of
from simcluster.studies.cooptimize.fleets import Fleet
from simcluster.studies.cooptimize.judge import Confirmed, Judge, Plan
from simcluster.studies.cooptimize.run import Outcome, described, grown
from simcluster.studies.cooptimize.targets import Verdict, counted_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FILES: Final = ("cooptimize.json", "plan.toml", "scenario.toml")
"""Files of a result folder."""
_ROWS: Final = 12
"""Rows of the front in the text; the JSON has all."""
_LATENCY: Final = {"e2el": "end-to-end latency", "ttft": "TTFT", "tpot": "TPOT"}


def text(outcome: Outcome) -> str:
    """Return the tables: front, chosen plan and why, preferences, baselines, accuracy."""
    judge = outcome.judge
    parts = [
        _heading(outcome),
        _front(outcome),
        _chosen(outcome),
        _preferences(outcome),
        "Why:\n" + "\n".join(f"- {line}" for line in reasons(outcome)),
    ]
    if outcome.baselines:
        parts.append(_baselines(outcome))
    parts.append(_finalists(outcome))
    stages = (
        f"database {outcome.database_s:.1f} s ({len(judge.database)} kinds of units), search "
        f"{outcome.search_s:.1f} s ({outcome.found.num_evaluations:,} plans judged, "
        f"{outcome.found.sampler}), simulations {outcome.finalists_s:.1f} s"
    )
    return fitted("\n\n".join([*parts, f"Time: {stages}"])) + "\n"


def _percentile(judge: Judge) -> str:
    return f"P{judge.table.percentile:g}"


def _heading(outcome: Outcome) -> str:
    judge, table = outcome.judge, outcome.judge.table
    currency = judge.stock.clusters[0].currency
    machines = ", ".join(
        f"{c.num_gpus} x {c.gpu.name} at {c.price_per_gpu_hour:g}" for c in judge.stock.clusters
    )
    limits = [
        text
        for value, text in (
            (table.budget_per_hour, f"at most {table.budget_per_hour} {currency} per hour"),
            (table.quality_at_least, f"quality at least {table.quality_at_least}"),
            (table.latency_at_most_s, f"latency at most {table.latency_at_most_s} s"),
        )
        if value is not None
    ]
    return "\n".join(
        [
            f"{' and '.join(table.models)} at {judge.rate_rps:g} requests/s",
            f"Stock:  {machines} {currency} per hour",
            f"Limits: {', '.join(limits) or 'none'}; goal: {table.goal}; latency: "
            f"{_percentile(judge)} of the {_LATENCY[table.latency]}",
            f"Targets: {_targets(judge)}",
            f"Pools:  {', '.join(_KINDS[kind] for kind in kinds_of(judge.scenario, table))}"
            + ("" if table.strategies else " (as the engine schedules; cooptimize.strategies)"),
        ]
    )


_KINDS: Final = {
    "nodg": "prefill first",
    "chunked": "chunked prefill",
    "padg": "PaDG",
    "fudg": "FuDG",
}


def _targets(judge: Judge) -> str:
    """Return the targets that plans must keep."""
    if not judge.slo.has_targets:
        return "none in [slo]; only the limits are kept, in runs as long as the scenario's"
    return targets(judge.slo)


def _front(outcome: Outcome) -> str:
    judge, front = outcome.judge, outcome.found.front
    shown = front
    if len(front) > _ROWS:
        picks = np.unique(np.linspace(0, len(front) - 1, _ROWS).round().astype(int))
        shown = [front[i] for i in picks]
    currency = judge.stock.clusters[0].currency
    head = [f"{currency} per h", f"{_percentile(judge)} (s)", "quality", "plan"]
    rows = [
        [
            f"{plan.cost_per_hour:.2f}",
            _seconds(plan.latency_s),
            _quality(plan.quality),
            short(judge, plan),
        ]
        for plan in shown
    ]
    num = f"{len(front)} plan" + ("s" if len(front) != 1 else "")
    title = f"Pareto front by the database ({num}" + (
        f", {len(shown)} of them shown):" if len(shown) < len(front) else "):"
    )
    return f"{title}\n{aligned([head, *rows], left=(3,))}"


def short(judge: Judge, plan: Plan) -> str:
    """Return a plan in a line: share, GPUs and units of each model."""
    parts = []
    for model, fraction, fleet in zip(judge.table.models, plan.fractions, plan.fleets, strict=True):
        if fleet.parts:
            gpus = " + ".join(
                f"{unit.num_gpus * count} {_gpu(unit.gpu)} {unit}" for unit, count in fleet.parts
            )
            parts.append(f"{100 * fraction:.0f} % {_model(model)}: {gpus}")
    return "; ".join(parts)


def _gpu(name: str) -> str:
    return name.removesuffix(" Blackwell Server").removesuffix(" SXM")


def _model(name: str) -> str:
    return name.rsplit("-", 1)[-1].upper() if "-" in name else name


def _quality(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _chosen(outcome: Outcome) -> str:
    judge, chosen = outcome.judge, outcome.chosen
    lines = [f"Chosen plan: {described(judge, chosen.plan)}"]
    lines.append(
        f"{chosen.plan.cost_per_hour:.2f} {judge.stock.clusters[0].currency} per hour, "
        f"{_percentile(judge)} {_interval(chosen)} s as simulated, quality "
        f"{_quality(chosen.plan.quality)}"
    )
    if chosen.verdict is not None:
        lines += _shares(judge, chosen.verdict, len(chosen.runs))
    if not outcome.kept:
        lines.append(
            "As simulated it breaks a limit that it keeps by the database; none of the "
            f"{len(outcome.finalists)} plans simulated keeps all."
        )
    return "\n".join(lines)


def _shares(judge: Judge, verdict: Verdict, num_runs: int) -> list[str]:
    """Return how many requests are within each target."""
    columns = zip(counted_of(judge.slo), verdict.shares, verdict.lows, verdict.highs, strict=True)
    each = [
        f"{100 * share:.1f} % within {target_of(key)} ({100 * low:.1f} to {100 * high:.1f}, "
        f"{100 * judge.slo.wanted(key):g} wanted)"
        for key, share, low, high in columns
    ]
    line = f"Of the requests {', '.join(each)}: 99 % intervals, {num_runs} long runs"
    return [filled(line)]


def _interval(confirmed: Confirmed) -> str:
    half, digits = confirmed.half_width_s, _digits(confirmed.latency_s)
    width = "" if math.isnan(half) else f" +- {half:.{digits}f}"
    return f"{confirmed.latency_s:.{digits}f}{width}"


def _seconds(value: float) -> str:
    return f"{value:.{_digits(value)}f}"


def _digits(value: float) -> int:
    """Return the decimals of a latency (s): a TPOT is some hundredths of a second."""
    return 2 if value >= 1 else 4


def _preferences(outcome: Outcome) -> str:
    judge = outcome.judge
    currency = judge.stock.clusters[0].currency
    head = [f"thousand requests per {currency}", *(_gpu(gpu) for gpu in judge.stock.gpus)]
    rows = [
        [model, *("-" if value == 0 else f"{value:.1f}" for value in outcome.preferences[model])]
        for model in judge.table.models
    ]
    return aligned([head, *rows])


def reasons(outcome: Outcome) -> list[str]:
    """Return why the chosen plan is as it is, in sentences."""
    judge, plan = outcome.judge, outcome.chosen.plan
    lines = []
    for model, fleet in zip(judge.table.models, plan.fleets, strict=True):
        if fleet.parts:
            lines.append(_why_gpus(outcome, model, fleet))
    table, curve = judge.table, judge.curve
    if curve is not None and table.quality_at_least is not None and curve.num_models == 2:
        try:
            share = curve.least_strong_share(table.quality_at_least)
        except ValueError:
            share = math.nan
        if not math.isnan(share):
            lines.append(
                f"a quality of {table.quality_at_least:g} takes at least {100 * share:.1f} % of "
                f"the requests on {table.models[-1]}; the plan sends "
                f"{100 * plan.fractions[-1]:.1f} %"
            )
    single = [c for c in outcome.baselines.values() if c is not None]
    if single:
        best = min(single, key=lambda c: c.latency_s)
        lines.append(
            f"the quickest baseline takes {best.latency_s:.2f} s for "
            f"{best.plan.cost_per_hour:.2f} per hour, the plan {outcome.chosen.latency_s:.2f} s "
            f"for {plan.cost_per_hour:.2f}"
        )
    return lines


def _why_gpus(outcome: Outcome, model: str, fleet: Fleet) -> str:
    judge = outcome.judge
    values = dict(zip(judge.stock.gpus, outcome.preferences[model].tolist(), strict=True))
    used = [unit.gpu for unit, _ in fleet.parts]
    others = {gpu: value for gpu, value in values.items() if gpu not in used and value > 0}
    here = ", ".join(f"{_gpu(gpu)} {values[gpu]:.1f}" for gpu in used)
    if not others:
        return f"{model}: {here} thousand requests per unit of currency; it fits on nothing else"
    best = max(others, key=lambda gpu: others[gpu])
    ratio = max(values[gpu] for gpu in used) / others[best]
    if ratio >= 1:
        return (
            f"{model}: {here} thousand requests per unit of currency, {ratio:.2f} times as many as "
            f"on {_gpu(best)}, the next best"
        )
    return (
        f"{model}: {here} thousand requests per unit of currency; {_gpu(best)} would give "
        f"{1 / ratio:.2f} times as many, but more slowly, or it is short in stock"
    )


def _baselines(outcome: Outcome) -> str:
    judge = outcome.judge
    currency = judge.stock.clusters[0].currency
    rows = [["co-optimised", *_numbers(outcome.chosen)]]
    for name, confirmed in outcome.baselines.items():
        numbers = ["-", "-", "-"] if confirmed is None else _numbers(confirmed)
        rows.append([name, *numbers])
    head = ["best plan of each kind", f"{currency} per h", f"{_percentile(judge)} (s)", "quality"]
    note = ""
    if any(confirmed is None for confirmed in outcome.baselines.values()):
        note = "\n-: no such plan keeps the limits"
    return aligned([head, *rows]) + note


def _numbers(confirmed: Confirmed) -> list[str]:
    return [
        f"{confirmed.plan.cost_per_hour:.2f}",
        _interval(confirmed),
        _quality(confirmed.plan.quality),
    ]


def _finalists(outcome: Outcome) -> str:
    judge = outcome.judge
    currency = judge.stock.clusters[0].currency
    head = ["finalist", "by database (s)", "simulated (s)", "difference (%)"]
    rows = [
        [
            f"{number}",
            _seconds(one.plan.latency_s),
            _interval(one),
            f"{100 * one.difference:+.1f}" if math.isfinite(one.latency_s) else "-",
        ]
        for number, one in enumerate(outcome.finalists, start=1)
    ]
    counts = sorted({len(one.runs) for one in outcome.finalists})
    seeds = " or ".join(f"{count}" for count in counts)
    title = f"{_percentile(judge)} by the database and of all pools together, {seeds} seeds:"
    if not judge.slo.has_targets:
        return title + "\n" + aligned([head, *rows])
    keys = counted_of(judge.slo)
    heads = [
        ["", "by database", "simulated", "off", currency, *map(target_of, keys), "targets"],
        ["finalist", "(s)", "(s)", "(%)", "per h", *("(%)" for _ in keys), ""],
    ]
    rows = [
        [*row, f"{one.plan.cost_per_hour:.2f}", *_verdict_cells(one)]
        for row, one in zip(rows, outcome.finalists, strict=True)
    ]
    notes = [
        f"- finalist {number} is overloaded and rejected: {grown(one.verdict)}"
        for number, one in enumerate(outcome.finalists, start=1)
        if one.verdict is not None and one.verdict.status == "overloaded"
    ]
    return "\n".join([title, aligned([*heads, *rows], heads=2), *notes])


def _verdict_cells(one: Confirmed) -> list[str]:
    """Return the share within each target, and what becomes of them."""
    assert one.verdict is not None, "asked with targets alone"
    return [*(f"{100 * share:.1f}" for share in one.verdict.shares), one.verdict.status]


def as_json(outcome: Outcome) -> dict[str, Any]:
    """Return the outcome as plain values for ``json.dumps``."""
    judge = outcome.judge

    def plan_row(plan: Plan) -> dict[str, Any]:
        return {
            "cost_per_hour": plan.cost_per_hour,
            "latency_s": plan.latency_s if math.isfinite(plan.latency_s) else None,
            "quality": None if math.isnan(plan.quality) else plan.quality,
            "models": [
                {
                    "model": model,
                    "fraction": fraction,
                    "pools": [
                        {
                            "gpu": unit.gpu,
                            "strategy": unit.kind,
                            "tp_size": unit.tp_size,
                            "pp_size": unit.pp_size,
                            "num_gpus": unit.num_gpus * count,
                            "instances": unit.num_instances * count,
                        }
                        for unit, count in fleet.parts
                    ],
                }
                for model, fraction, fleet in zip(
                    judge.table.models, plan.fractions, plan.fleets, strict=True
                )
            ],
        }

    def confirmed_row(one: Confirmed) -> dict[str, Any]:
        half = one.half_width_s
        return {
            **plan_row(one.plan),
            "simulated_latency_s": [x if math.isfinite(x) else None for x in one.latencies_s],
            "half_width_s": None if math.isnan(half) else half,
            "database_against_simulation": one.difference if math.isfinite(one.latency_s) else None,
            "targets": None if one.verdict is None else verdict_row(one.verdict),
        }

    def verdict_row(verdict: Verdict) -> dict[str, Any]:
        columns = zip(
            counted_of(judge.slo), verdict.shares, verdict.lows, verdict.highs, strict=True
        )
        return {
            "status": verdict.status,
            "requests_in_system": verdict.in_system,
            "within": {
                key: {"share": share, "low": low, "high": high, "wanted": judge.slo.wanted(key)}
                for key, share, low, high in columns
            },
        }

    return {
        "rate_rps": judge.rate_rps,
        "percentile": judge.table.percentile,
        "latency": judge.table.latency,
        "currency": judge.stock.clusters[0].currency,
        "sampler": outcome.found.sampler,
        "evaluations": outcome.found.num_evaluations,
        "front": [plan_row(plan) for plan in outcome.found.front],
        "finalists": [confirmed_row(one) for one in outcome.finalists],
        "chosen": confirmed_row(outcome.chosen),
        "keeps_limits": outcome.kept,
        "baselines": {
            name: None if one is None else confirmed_row(one)
            for name, one in outcome.baselines.items()
        },
        "preferences": {
            model: dict(zip(judge.stock.gpus, row.tolist(), strict=True))
            for model, row in outcome.preferences.items()
        },
        "seconds": {
            "database": outcome.database_s,
            "search": outcome.search_s,
            "simulations": outcome.finalists_s,
        },
    }


def write(outcome: Outcome, folder: Path) -> None:
    """Write ``cooptimize.json``, ``plan.toml`` (the chosen plan) and ``scenario.toml``.

    Raises
    ------
    DataError
        If `folder` cannot be written.
    """
    judge = outcome.judge
    environment = judge.scenario.environment
    plain = {
        "version": __version__,
        **as_json(outcome),
        "limits": {
            "budget_per_hour": judge.table.budget_per_hour,
            "quality_at_least": judge.table.quality_at_least,
            "latency_at_most_s": judge.table.latency_at_most_s,
        },
        "goal": judge.table.goal,
        "why": reasons(outcome),
        "text": text(outcome),
        "step_times": step_times_of(environment),
    }
    texts = {
        "cooptimize.json": json.dumps(plain, indent=1) + "\n",
        "plan.toml": to_toml(judge.scenario_of(outcome.chosen.plan).document),
        "scenario.toml": to_toml(judge.scenario.document),
    }
    with output.together(folder) as hidden:
        for name, words in texts.items():
            (hidden / name).write_text(words, encoding="utf-8")


def figure(outcome: Outcome) -> Figure:
    """Draw the front: latency against cost, coloured by quality; chosen plan and baselines."""
    from simcluster.show.plot import log_scale, new_figure

    judge, front = outcome.judge, outcome.found.front
    picture = new_figure(width=8.0, height=4.5)
    ax = picture.add_subplot()
    cost = [plan.cost_per_hour for plan in front]
    latency = [plan.latency_s for plan in front]
    quality = [plan.quality for plan in front]
    if judge.curve is None:
        ax.scatter(cost, latency, s=18, color="0.4", label="front (database)")
    else:
        dots = ax.scatter(cost, latency, c=quality, s=18, cmap="viridis", label="front (database)")
        picture.colorbar(dots, ax=ax, label="quality")
    markers = ("s", "D", "^", "v")
    taken: list[tuple[float, float]] = []
    for marker, (name, one) in zip(markers, outcome.baselines.items(), strict=False):
        if one is None:
            continue
        point = (one.plan.cost_per_hour, one.latency_s)
        size = 50 + 60 * sum(point == other for other in taken)
        taken.append(point)
        ax.scatter(*point, marker=marker, s=size, facecolors="none", edgecolors="0.2", label=name)
    chosen = outcome.chosen
    half = chosen.half_width_s
    ax.errorbar(
        chosen.plan.cost_per_hour,
        chosen.latency_s,
        yerr=None if math.isnan(half) else half,
        marker="*",
        markersize=15,
        color="tab:red",
        linestyle="none",
        label="chosen (simulated)",
    )
    log_scale(ax)
    ax.set_xlabel(f"cost ({judge.stock.clusters[0].currency} per hour)")
    ax.set_ylabel(f"{_percentile(judge)} {_LATENCY[judge.table.latency]} (s)")
    ax.legend(fontsize="small")
    return picture
