"""The plans for a need, and the margins of the best, as text and as plain values."""

from __future__ import annotations

import math
from typing import Any

from simcluster.frames.goodput import falls_short, three_digits
from simcluster.show.terminal import filled
from simcluster.show.text import aligned
from simcluster.studies.rank.ranking import Level, Need, Plan, Ranking
from simcluster.units import MS


def plans_text(ranking: Ranking, need: Need) -> str:
    """Return the cheapest plans as a table, with the next step down and up in cost."""
    currency = ranking.scenario.environment.cluster.currency
    first = need.plans[0]
    priced = first.cost_per_hour is not None
    cost = [f"{currency}/h", f"{currency}/M tok"] if priced else ["GPU-h/M tok"]
    rows = [["plan", "strategy", "GPUs", "spares", "goodput", "95 %", *cost, "sustains it"]]
    steps = [("next step down", need.below), ("next step up", need.above)]
    rows += [_cells(plan, plan.candidate.name) for plan in need.plans]
    rows += [_cells(plan, f"{word}: {plan.candidate.name}") for word, plan in steps if plan]
    kept = f"with {100 * need.headroom:g} % of the goodput kept free: {need.rate_rps:.4g}; "
    if not need.headroom:
        kept = "with nothing kept free (rank.headroom); "
    lines = [
        filled(f"The cheapest plans for {need.need_rps:g} requests/s, {kept}{need.spares}:"),
        aligned(rows),
        filled(
            f"M tok: a million output tokens at {need.need_rps:g} requests/s. GPUs: with spares."
        ),
        *map(filled, _step_lines(need, currency if priced else "")),
    ]
    return "\n".join(lines)


def _cells(plan: Plan, name: str) -> list[str]:
    c = plan.candidate
    cost = [_or_dash(plan.gpu_hours_per_million)]
    if plan.cost_per_hour is not None:
        cost = [three_digits(plan.cost_per_hour), _or_dash(plan.cost_per_million)]
    known = not math.isnan(c.low_rps)
    span = f"{three_digits(c.low_rps)} to {three_digits(c.high_rps)}" if known else "not settled"
    return [
        name,
        c.strategy,
        str(plan.num_gpus),
        str(plan.num_spares),
        three_digits(c.goodput_rps) if known else f"about {three_digits(c.goodput_rps)}",
        span,
        *cost,
        plan.sustains,
    ]


def _or_dash(value: float | None) -> str:
    return "-" if value is None else three_digits(value)


def _step_lines(need: Need, currency: str) -> list[str]:
    """Return what the steps in cost mean, and what is not sure."""
    lines = []
    if all(plan.sustains == "not sure" for plan in need.plans):
        lines.append(
            "Not sure: no interval lies above what is needed as a whole. Lower rank.tolerance, or "
            "take the next step up."
        )
    best = need.plans[0]
    if need.below is None:
        lines.append("There is no cheaper plan in this space.")
    else:
        name, against = need.below.candidate.name, _against(need.below, best, currency)
        lines.append(f"{name} {against}{falls_short(need.below.margin, need.below.margins[1])}.")
    if need.above is None:
        lines.append("There is no dearer plan in this space.")
    else:
        name, more = need.above.candidate.name, need.above.margin
        what = f"sustains {100 * more:.1f} % more than is needed" if more > 0 else falls_short(more)
        lines.append(f"{name} {_against(need.above, best, currency)}{what}.")
    steps = [plan for plan in (need.below, need.above) if plan is not None]
    if steps:
        line = "A step has the highest goodput of its cost"
        if any(plan.candidate.stage != "final" for plan in steps):
            line += ", by short runs on the requests of a settled plan"
        lines.append(f"{line}.")
    if any(math.isnan(plan.candidate.low_rps) for plan in (*need.plans, *steps)):
        lines.append("about: by short runs, which flatter.")
    return lines


def _against(plan: Plan, best: Plan, currency: str) -> str:
    """Return what a plan costs more or less than the cheapest that sustains the need."""
    gap = plan.num_gpus - best.num_gpus
    noun, word = "GPU" if abs(gap) == 1 else "GPUs", "more" if gap > 0 else "fewer"
    text = f"({abs(gap)} {noun} {word}"
    if currency and plan.cost_per_hour is not None and best.cost_per_hour is not None:
        less = plan.cost_per_hour - best.cost_per_hour
        text += f", {three_digits(abs(less))} {currency}/h {'more' if less > 0 else 'less'}"
    return text + ") "


def margins_text(ranking: Ranking) -> str:
    """Return the latencies of the best below their goodputs as a table."""
    if not ranking.levels:
        return ""
    slo = ranking.scenario.environment.slo
    heads = ["req/s", *(f"TTFT {p} s" for p in ("P50", "P95", "P99"))]
    heads += [f"TPOT {p} ms" for p in ("P50", "P95", "P99")]
    rows = [["at a share of the goodput", *heads]]
    for level in ranking.levels:
        ttft, tpot = (level.latencies.percentiles[key] for key in ("ttft", "tpot"))
        rows.append(
            [
                f"{level.name}, {100 * level.share:.0f} %",
                three_digits(level.latencies.rate_rps),
                *(three_digits(ttft[p]) for p in ("p50", "p95", "p99")),
                *(three_digits(tpot[p] / MS) for p in ("p50", "p95", "p99")),
            ]
        )
    targets = [
        f"{name} {value / unit:g} {symbol} (P{100 * slo.wanted(key):g})"
        for name, key, value, unit, symbol in (
            ("TTFT", "ttft", slo.ttft_s, 1.0, "s"),
            ("TPOT", "tpot", slo.tpot_s, MS, "ms"),
        )
        if value is not None
    ]
    aim = f" (targets: {', '.join(targets)})" if targets and not slo.classes else ""
    return filled(f"Latencies below the goodput{aim}:") + f"\n{aligned(rows)}"


def finite(value: float) -> float | None:
    """Return a number that JSON knows, or None."""
    return value if math.isfinite(value) else None


def plan_row(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain values."""
    c = plan.candidate
    return {
        "name": c.name,
        "strategy": c.strategy,
        "num_gpus": plan.num_gpus,
        "num_spares": plan.num_spares,
        "goodput_rps": c.goodput_rps,
        "low_rps": finite(c.low_rps),
        "high_rps": finite(c.high_rps),
        "cost_per_hour": plan.cost_per_hour,
        "cost_per_million_output_tokens": plan.cost_per_million,
        "gpu_hours_per_million_output_tokens": plan.gpu_hours_per_million,
        "sustains": plan.sustains,
        "margin": plan.margin,
        "low_margin": finite(plan.margins[0]),
        "high_margin": finite(plan.margins[1]),
    }


def plan_rows(need: Need) -> list[dict[str, Any]]:
    """Return the plans as rows: the cheapest, then the steps down and up."""
    rows = [{"step": "cheapest", **plan_row(plan)} for plan in need.plans]
    steps = (("down", need.below), ("up", need.above))
    return rows + [{"step": word, **plan_row(plan)} for word, plan in steps if plan is not None]


def need_row(need: Need) -> dict[str, Any]:
    """Return a need and its plans as plain values."""
    return {
        "need_rps": need.need_rps,
        "headroom": need.headroom,
        "goodput_needed_rps": need.rate_rps,
        "against_lost_instances": need.spares,
        "plans": [plan_row(plan) for plan in need.plans],
        "step_down": None if need.below is None else plan_row(need.below),
        "step_up": None if need.above is None else plan_row(need.above),
    }


def level_row(level: Level) -> dict[str, Any]:
    """Return the latencies of a candidate at a share of its goodput as plain values."""
    found = level.latencies
    return {
        "name": level.name,
        "share_of_goodput": level.share,
        "rate_rps": found.rate_rps,
        "latencies_s": {
            key: {name: finite(value) for name, value in own.items()}
            for key, own in found.percentiles.items()
        },
    }
