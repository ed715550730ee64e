"""Reports of ``simcluster rank``: all candidates, why each loses, and the fronts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from simcluster.frames.goodput import AT_LOW_LOAD, falls_short, three_digits
from simcluster.report import charts
from simcluster.report.common import (
    about,
    command_line,
    gpus,
    last_sections,
    price_caution,
    scenario_of,
    within_targets,
)
from simcluster.report.page import (
    INK,
    Block,
    Bullets,
    Chart,
    Choice,
    Page,
    Section,
    Table,
    Value,
    as_label,
    or_nan,
    percent,
)
from simcluster.scenario.scenario import Scenario
from simcluster.show.text import served
from simcluster.units import MS

_STAGES: Final = {
    "final": "settled, in the longest runs",
    "race": "by several short runs",
    "screen": "by one short run",
    "bound": "by arithmetic alone, not simulated",
}
_LATENCIES: Final = ("ttft", "tpot")
_SHOWN: Final = 24
"""Candidates in the chart of goodputs; the table has all."""

_Row = Mapping[str, Any]


def page(result: _Row, folder: Path) -> Page:
    """Return the report of a ranking.

    Parameters
    ----------
    result : mapping
        What ``ranking.json`` holds.
    folder : Path
        The result folder.
    """
    scenario = scenario_of(folder)
    rows, need = result["candidates"], result["need"]
    styles = charts.Styles(row["strategy"] for row in rows)
    sections = []
    if need is not None:
        sections.append(Section(f"Plans for {need['need_rps']:g} requests/s", _plans(need, result)))
    sections += [
        Section("Ranking", [_table(rows, result), _bars(rows, styles), *_notes(result)]),
        Section("Why each sustains no more", [_why(rows)]),
        Section("Fronts", _fronts(rows, styles, result, scenario)),
    ]
    pairs = [*(result["decided"] or ()), *(result["undecided"] or ()), *result["raced"]]
    if pairs:
        sections.append(Section("Finalists, pair by pair (95 % each)", [Bullets(pairs)]))
    if result["levels"]:
        sections.append(Section("Latencies below the goodput", [_levels(result["levels"])]))
    question = f"Of all that fits: what sustains the most, and why: {served(scenario)}?"
    words = ["rank", folder / "scenario.toml", "-o", f"{folder}-again"]
    if need is not None:
        question = f"What is the cheapest that sustains {need['need_rps']:g} requests/s: "
        question += f"{served(scenario)}?"
    return Page(
        question=question,
        about=about(scenario),
        answer=_answer(result, scenario),
        confidence=[*_confidence(result), *price_caution(scenario)],
        sections=[
            *sections,
            *last_sections(
                scenario,
                result["step_times"],
                command_line(*words),
                ["ranking.json", "ranking.csv", "scenario.toml"],
            ),
        ],
    )


def _answer(result: _Row, scenario: Scenario) -> list[str]:
    rows, need, currency = result["candidates"], result["need"], result["currency"]
    share = within_targets(scenario)
    if need is not None:
        return need_answer(need, currency, share, result["notes"])
    best = rows[0]
    interval = best["interval_rps"]
    first = (
        f"{best['name']} ({best['strategy']}) sustains the most: "
        f"{three_digits(best['goodput_rps'])} requests/s{_interval(interval)} on "
        f"{gpus(best['mean_gpus'])} GPUs with {share}"
    )
    if best["cost_per_hour"] is not None:
        first += (
            f", for {three_digits(best['cost_per_hour'])} {currency} per hour "
            f"({three_digits(best['requests_per_cost'])} requests per {currency})"
        )
    if len(rows) == 1:
        return [f"{first}.", "There is no other candidate."]
    second = rows[1]
    for text in (*(result["decided"] or ()), *(result["undecided"] or ()), *result["raced"]):
        if best["name"] in text and second["name"] in text:
            return [f"{first}.", f"{text.rstrip('.')}."]
    gap = 1 - second["goodput_rps"] / best["goodput_rps"] if best["goodput_rps"] else math.nan
    return [
        f"{first}.",
        f"{second['name']} ({second['strategy']}) follows, {percent(gap)} behind; that pair was "
        "not settled together.",
    ]


def need_answer(need: _Row, currency: str, share: str, notes: Sequence[str] = ()) -> list[str]:
    """Return the cheapest plan for a rate and the next cheaper one, in two sentences.

    One more for each of the plans that are named that misses the targets when load is low.

    Parameters
    ----------
    need : mapping
        ``need`` of ``ranking.json``.
    currency : str
        Of its costs.
    share : str
        Which share of the requests is within which targets.
    notes : sequence of str
        ``notes`` of ``ranking.json``.
    """
    best = need["plans"][0]
    alike = [plan for plan in need["plans"] if plan["sustains"] == best["sustains"]]
    cost = ""
    if best["cost_per_hour"] is not None:
        cost = f", for {three_digits(best['cost_per_hour'])} {currency} per hour"
        if best["cost_per_million_output_tokens"] is not None:
            million = three_digits(best["cost_per_million_output_tokens"])
            cost += f" and {million} {currency} per million output tokens"
    sure = {"yes": "sustains", "not sure": "may sustain", "no": "does not sustain"}
    either = " or ".join(f"{plan['name']} ({plan['strategy']})" for plan in alike[:3])
    first = (
        f"{either} on {best['num_gpus']} GPUs {sure[best['sustains']]} {need['need_rps']:g} "
        f"requests/s with {share}{cost}."
    )
    low = [
        note
        for note in notes
        if any(note.startswith(f"{plan['name']}: {AT_LOW_LOAD}") for plan in alike[:3])
    ]
    down = need["step_down"]
    if down is None:
        return [first, "There is no cheaper plan in this space.", *low]
    words = falls_short(down["margin"], down["high_margin"])
    return [first, f"The next cheaper, {down['name']} on {down['num_gpus']} GPUs, {words}.", *low]


def _interval(interval: Sequence[float | None]) -> str:
    return " (no interval)" if interval[0] is None else f" (95 %: {_span(interval)})"


def _span(interval: Sequence[float | None]) -> str:
    """Return an interval; one without a lower end is none, one without an upper end is open."""
    low, high = interval
    if low is None:
        return "-"
    return f"{three_digits(low)} to {'no limit' if high is None else three_digits(high)}"


def _confidence(result: _Row) -> list[str]:
    stages = [row["stage"] for row in result["candidates"]]
    if result["mode"] == "bestserve":
        return ["Estimated by BestServe's rules: no intervals, and often wrong (docs/bestserve)."]
    counts = ", ".join(
        f"{stages.count(stage)} {words}" for stage, words in _STAGES.items() if stage in stages
    )
    lines = [
        f"{len(stages)} candidates: {counts}. Intervals are 95 %, for each candidate alone.",
        "If two intervals overlap and not both candidates were settled, their order is not known.",
    ]
    if result["unsettled"]:
        lines.append(
            "Finalists without a settled goodput rest on short runs, which look better than they "
            "are: " + "; ".join(f"{name}: {words}" for name, words in result["unsettled"].items())
        )
    best = result["candidates"][0]
    if result["need"] is not None:
        cheapest = result["need"]["plans"][0]["name"]
        best = next(row for row in result["candidates"] if row["name"] == cheapest)
    lines.append(
        f"What limits {best['name']} is {best['bottleneck']} ({best['why']}): a change of that "
        "target, or of the lengths of the requests, moves the answer most."
    )
    return lines


def _plans(need: _Row, result: _Row) -> list[Block]:
    currency = result["currency"]
    rows = [("cheapest", plan) for plan in need["plans"]]
    rows += [
        (word, need[key])
        for word, key in (("next step down", "step_down"), ("next step up", "step_up"))
        if need[key] is not None
    ]
    heads = ["Plan", "What", "Strategy", "GPUs", "Spares", "Goodput (req/s)", "95 % (req/s)"]
    heads += [f"{currency}/h", f"{currency}/M output tokens", "Sustains it", "Margin (%)"]
    table = [
        [
            Value.word(plan["name"]),
            Value.word(word),
            Value.word(plan["strategy"]),
            Value.number(plan["num_gpus"]),
            Value.number(plan["num_spares"]),
            Value.digits(plan["goodput_rps"]),
            Value.word(_span([plan["low_rps"], plan["high_rps"]])),
            Value.digits(plan["cost_per_hour"]),
            Value.digits(plan["cost_per_million_output_tokens"]),
            Value.word(plan["sustains"]),
            Value.number(100 * plan["margin"], f"{100 * plan['margin']:+.1f}"),
        ]
        for word, plan in rows
    ]
    kept = (
        f"{100 * need['headroom']:g} % of the goodput kept free, {need['against_lost_instances']}"
    )
    return [Table(f"The cheapest plans and one step down and up in cost; {kept}", heads, table)]


def _table(rows: Sequence[_Row], result: _Row) -> Table:
    currency = result["currency"]
    priced = rows[0]["cost_per_hour"] is not None
    heads = ["Candidate", "Rank", "Strategy", "GPUs", "Goodput (req/s)", "95 % (req/s)"]
    heads += ["per GPU (req/s)"]
    heads += [f"{currency}/h", f"req/{currency}"] if priced else []
    heads += ["Bound by", "How sure", "Front"]
    table = []
    for row in rows:
        span = _span(row["interval_rps"])
        cells = [Value.word(row["name"]), Value.number(row["rank"]), Value.word(row["strategy"])]
        cells.append(Value.number(row["mean_gpus"], gpus(row["mean_gpus"])))
        cells += [Value.digits(row["goodput_rps"]), Value.word(span)]
        cells.append(Value.digits(row["goodput_rps_per_gpu"]))
        if priced:
            cells += [Value.digits(row["cost_per_hour"]), Value.digits(row["requests_per_cost"])]
        fronts = [
            w for w, k in (("cost", "on_cost_front"), ("latency", "on_latency_front")) if row[k]
        ]
        cells += [
            Value.word(row["bottleneck"], row["why"]),
            Value.word(row["stage"], _STAGES.get(row["stage"], "")),
            Value.word(", ".join(fronts)),
        ]
        table.append(cells)
    return Table("All candidates. Press a heading to sort.", heads, table)


def _why(rows: Sequence[_Row]) -> Table:
    table = [
        [
            Value.word(row["name"]),
            Value.number(row["rank"]),
            Value.word(row["bottleneck"]),
            Value.word(row["why"]),
        ]
        for row in rows
    ]
    heads = ["Candidate", "Rank", "Bound by", "Figures at its goodput"]
    return Table("What keeps each candidate from sustaining more", heads, table)


def _bars(rows: Sequence[_Row], styles: charts.Styles) -> Chart:
    shown = rows[:_SHOWN]
    lows = [or_nan(row["interval_rps"][0]) for row in shown]
    highs = [or_nan(row["interval_rps"][1]) for row in shown]
    bars = charts.interval_bars(
        [row["name"] for row in shown],
        [row["goodput_rps"] for row in shown],
        lows,
        highs,
        [styles.colour(row["strategy"]) for row in shown],
        [f"{row['strategy']}, {row['bottleneck']}-bound: {row['why']}" for row in shown],
    )
    more = "" if len(rows) <= _SHOWN else f" The first {_SHOWN} of {len(rows)}."
    return Chart(
        "Goodput of the candidates, with 95 % intervals",
        f"{shown[0]['name']} is first. Colours are the families of strategies.{more}",
        [Choice("", [bars])],
        charts.bars_layout("Goodput (requests/s)", len(shown)),
    )


def _notes(result: _Row) -> list[Block]:
    lines = list(result["notes"])
    lines += [f"Removed before any run: {n} ({rule})." for rule, n in result["removed"].items()]
    return [Bullets(lines)] if lines else []


def _fronts(
    rows: Sequence[_Row], styles: charts.Styles, result: _Row, scenario: Scenario
) -> list[Block]:
    priced = rows[0]["cost_per_hour"] is not None
    currency = result["currency"]
    key = "cost_per_hour" if priced else "mean_gpus"
    x_title = f"Cost of the GPUs ({currency} per hour)" if priced else "GPUs"
    front = sorted((row for row in rows if row["on_cost_front"]), key=lambda row: row[key])
    traces = _points(rows, styles, lambda row: row[key], lambda row: row["goodput_rps"])
    traces.append(_front_line([row[key] for row in front], [row["goodput_rps"] for row in front]))
    best = ", ".join(f"{row['name']} ({three_digits(row['goodput_rps'])} req/s)" for row in front)
    blocks: list[Block] = [
        Chart(
            "Goodput against cost",
            f"Best goodput for its cost: {best}.",
            [Choice("", traces)],
            charts.layout(
                charts.axis(x_title, rangemode="tozero"),
                charts.axis("Goodput (requests/s)", rangemode="tozero"),
                height=420,
            ),
        )
    ]
    known = [row for row in rows if row["ttft_s"] is not None and row["tpot_s"] is not None]
    if not known:
        return blocks
    traces = _points(known, styles, lambda row: row["tpot_s"] / MS, lambda row: row["ttft_s"])
    front = sorted((r for r in known if r["on_latency_front"]), key=lambda row: row["tpot_s"])
    traces.append(_front_line([r["tpot_s"] / MS for r in front], [r["ttft_s"] for r in front]))
    slo = scenario.environment.slo
    of_ttft, of_tpot = (f"P{100 * slo.wanted(key):g} of the {key.upper()}" for key in _LATENCIES)
    rate = result["latency_rate_rps"]
    at = "" if rate is None else f" at {three_digits(rate)} requests/s"
    blocks.append(
        Chart(
            f"TTFT against TPOT{at}",
            f"{of_ttft}, {of_tpot}; best TTFT for its TPOT: "
            f"{', '.join(r['name'] for r in front)}. "
            "Candidates that do not sustain that rate are not shown.",
            [Choice("", traces)],
            charts.layout(
                charts.axis(f"{of_tpot} (ms)", rangemode="tozero"),
                charts.axis(f"{of_ttft} (s)", rangemode="tozero"),
                height=420,
            ),
        )
    )
    return blocks


def _points(rows: Sequence[_Row], styles: charts.Styles, x: Any, y: Any) -> list[dict[str, Any]]:
    families = dict.fromkeys(row["strategy"] for row in rows)
    traces = []
    for family in families:
        own = [row for row in rows if row["strategy"] == family]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": as_label(family),
                "x": charts.numbers([x(row) for row in own]),
                "y": charts.numbers([y(row) for row in own]),
                "text": [as_label(row["name"]) for row in own],
                "marker": styles.marker(family),
                "hovertemplate": "%{text}: %{x:.4g}, %{y:.4g}<extra>%{fullData.name}</extra>",
            }
        )
    return traces


def _front_line(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": "Pareto front",
        "x": charts.numbers(x),
        "y": charts.numbers(y),
        "line": {"color": INK, "dash": "dot", "shape": "hv", "width": 1.5},
        "hoverinfo": "skip",
    }


def _levels(levels: Sequence[_Row]) -> Table:
    heads = ["Candidate", "Share of its goodput (%)", "Rate (req/s)"]
    heads += [
        f"{n} {p} ({u})" for n, u in (("TTFT", "s"), ("TPOT", "ms")) for p in ("P50", "P95", "P99")
    ]
    rows = []
    for level in levels:
        ttft, tpot = (level["latencies_s"][key] for key in ("ttft", "tpot"))
        rows.append(
            [
                Value.word(level["name"]),
                Value.number(100 * level["share_of_goodput"]),
                Value.digits(level["rate_rps"]),
                *(Value.digits(ttft[p]) for p in ("p50", "p95", "p99")),
                *(
                    Value.digits(None if tpot[p] is None else tpot[p] / MS)
                    for p in ("p50", "p95", "p99")
                ),
            ]
        )
    return Table("Latencies of the best candidates at part load", heads, rows)
