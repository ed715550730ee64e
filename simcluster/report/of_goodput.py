"""Reports of ``simcluster goodput``: the highest rate of each strategy, and how sure that is."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simcluster.frames.goodput import AT_LOW_LOAD, three_digits
from simcluster.report import charts
from simcluster.report.common import (
    about,
    command_line,
    family_of,
    gpus,
    last_sections,
    price_caution,
    scenario_of,
    short,
    within_targets,
)
from simcluster.report.page import (
    Block,
    Bullets,
    Chart,
    Choice,
    Page,
    Section,
    Table,
    Value,
    or_nan,
)
from simcluster.scenario.scenario import Scenario
from simcluster.show.text import served
from simcluster.units import MS

_ENDS: Mapping[str, str] = {
    "found": "the interval is as narrow as asked",
    "wide": "the interval is wider than asked: raise --max-requests",
    "collapses": "runs at one rate fall into two groups; the goodput is the rate recommended",
    "not settled": "no goodput: the longest runs did not settle it",
    "unlimited": "meets the targets at every rate tried",
    "unattainable": "misses the targets even alone",
}
"""What a search can end with, in words."""


def page(result: Mapping[str, Any], folder: Path) -> Page:
    """Return the report of a search.

    Parameters
    ----------
    result : mapping
        What ``goodput.json`` holds.
    folder : Path
        The result folder.
    """
    scenario = scenario_of(folder)
    rows = result["goodput"]
    found = sorted((r for r in rows if r["goodput_rps"]), key=lambda r: -_value(r))
    styles = charts.Styles(row["strategy"] for row in rows)
    unit = result["unit"]
    sections = [Section("Strategies", [_table(rows, scenario, result), *_endings(rows)])]
    if found:
        sections.append(Section("Goodput", _bars(found, styles, result, scenario)))
    sections.append(Section("Attainment by rate", [_attainment(folder, styles, result)]))
    if found:
        sections.append(Section("Latencies at the goodput", [_latencies(found, styles)]))
    if pairs := _pairs(result):
        sections.append(Section("Pair by pair", [pairs]))
    question = "Which strategy sustains the highest rate within the targets"
    if unit == "users":
        question = "With which strategy are the most users served within the targets"
    return Page(
        question=f"{question}: {served(scenario)}?",
        about=about(scenario),
        answer=_answer(found, rows, result, scenario),
        confidence=[*_confidence(found, result), *price_caution(scenario)],
        sections=[
            *sections,
            *last_sections(
                scenario,
                result["step_times"],
                _command(folder, result),
                ["goodput.json", "probes.csv (a row per run)", "scenario.toml"],
            ),
        ],
    )


def _value(row: Mapping[str, Any]) -> float:
    goodput = row.get("goodput_users") or row["goodput_rps"]
    return float(goodput["value"])


def _command(folder: Path, result: Mapping[str, Any]) -> str:
    settings = result["settings"]
    words = ["goodput", folder / "scenario.toml", "--tolerance", f"{settings['tolerance']:g}"]
    words += ["--max-requests", settings["max_requests"], "--seed", result["seed"]]
    return command_line(*words, "-o", f"{folder}-again")


def _answer(
    found: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
    scenario: Scenario,
) -> list[str]:
    if not found:
        ends = "; ".join(f"{row['strategy']}: {_ENDS[row['status']]}" for row in rows)
        return ["No strategy has a goodput.", f"{ends}."]
    best = found[0]
    goodput = best.get("goodput_users") or best["goodput_rps"]
    unit = "users" if best.get("goodput_users") else "requests/s"
    first = (
        f"{best['strategy']} sustains the most: {three_digits(goodput['value'])} {unit} (95 %: "
        f"{_span(goodput)}) on {gpus(best['mean_gpus'] or best['num_gpus'])} GPUs with "
        f"{within_targets(scenario)}"
    )
    if cost := best.get("cost_per_million_output_tokens"):
        first += (
            f", at {three_digits(cost['value'])} {result['currency']} per million output tokens"
        )
    unlimited = [row["strategy"] for row in rows if row["status"] == "unlimited"]
    if unlimited:
        return [f"{', '.join(unlimited)} has no limit at the rates tried.", f"{first}."]
    if len(found) == 1:
        return [f"{first}.", "No other strategy has a goodput to compare it with."]
    return [f"{first}.", f"{_compared(best['strategy'], found[1]['strategy'], result)}."]


def _compared(first: str, second: str, result: Mapping[str, Any]) -> str:
    """Return what is known of the difference of two strategies."""
    for pair in result["comparisons"] or ():
        if {pair["first"], pair["second"]} == {first, second}:
            if pair["decided"] or pair["alike"]:
                return str(pair["text"]).rstrip(".")
            return f"The order of {first} and {second} is not decided: {pair['text']}".rstrip(".")
    return f"{second} follows; the two were not compared"


def _span(interval: Mapping[str, float | None]) -> str:
    low, high = interval["low"], interval["high"]
    ends = ["-" if end is None else three_digits(end) for end in (low, high)]
    return f"{ends[0]} to {ends[1]}"


def _confidence(found: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> list[str]:
    lines = [
        f"Intervals are 95 %, over repeated draws of the requests (wanted: within "
        f"{100 * result['settings']['tolerance']:g} %)."
    ]
    wide = [row["strategy"] for row in found if row["status"] != "found"]
    if wide:
        lines.append(f"Less sure than asked, see the table: {', '.join(wide)}.")
    errors = result.get("step_time_errors")
    if errors is None:
        lines.append("What the errors of the step times do was not simulated, or is not known.")
        return lines
    each = ", ".join(f"{name} {100 * error:.0f} %" for name, error in errors.items())
    lines.append(
        f"With the errors of the step times as well (one standard deviation: {each}) intervals "
        "are wider: pale bars below."
    )
    for pair in result["comparisons"] or ():
        wide_ratio = pair.get("ratio_with_step_time_errors")
        if wide_ratio and pair["decided"] and wide_ratio["low"] < 1 < wide_ratio["high"]:
            lines.append(
                f"Errors of the step times could turn the order of {pair['first']} and "
                f"{pair['second']}."
            )
    return lines


def _table(
    rows: Sequence[Mapping[str, Any]], scenario: Scenario, result: Mapping[str, Any]
) -> Table:
    currency, price = result["currency"], result["price_per_gpu_hour"]
    users = result["unit"] == "users"
    heads = ["Strategy", "Kind", "GPUs"]
    heads += ["Users"] if users else []
    heads += ["Goodput (req/s)", "95 % (req/s)", "per GPU (req/s)"]
    heads += [f"{currency}/h", f"{currency}/M output tokens"] if price is not None else []
    targets = scenario.environment.slo.targets
    heads += [f"{short(key)} met (%)" for key in targets]
    heads += ["TTFT P95 (s)", "TPOT P95 (ms)", "How it ended"]
    table = []
    for row in rows:
        kind, words = family_of(scenario, row["strategy"])
        goodput, held = row["goodput_rps"], row["mean_gpus"] or row["num_gpus"]
        cells = [
            Value.word(row["strategy"]),
            Value.word(kind, words),
            Value.number(held, gpus(held)),
        ]
        if users:
            cells.append(Value.digits(_of(row.get("goodput_users"))))
        cells += [Value.digits(_of(goodput)), Value.word(_span(goodput) if goodput else "-")]
        cells.append(Value.digits(_of(row["goodput_rps_per_gpu"])))
        if price is not None:
            cells.append(Value.digits(held * price))
            cells.append(Value.digits(_of(row["cost_per_million_output_tokens"])))
        shares = row.get("attainment") or {}
        cells += [Value.share(shares.get(key)) for key in targets]
        latency = row.get("latency") or {}
        cells.append(Value.digits(latency.get("ttft_s", {}).get("p95")))
        tpot = latency.get("tpot_s", {}).get("p95")
        cells.append(Value.digits(None if tpot is None else tpot / MS))
        cells.append(Value.word(row["status"], _ENDS[row["status"]]))
        table.append(cells)
    return Table(
        "Shares are those at the goodput, latencies those at the nearest simulated rate.",
        heads,
        table,
    )


def _of(interval: Mapping[str, float] | None) -> float | None:
    return None if interval is None else interval["value"]


def _endings(rows: Sequence[Mapping[str, Any]]) -> list[Block]:
    lines = [
        f"{row['strategy']}: {_ENDS[row['status']]}." for row in rows if row["status"] != "found"
    ]
    lines += [
        f"{row['strategy']}: its queue grows without bound just above its goodput."
        for row in rows
        if row.get("saturated")
    ]
    lines += [
        f"{row['strategy']}: {AT_LOW_LOAD}: it misses them at "
        f"{three_digits(dip['rate_rps'])} requests/s."
        for row in rows
        for dip in row["misses_at_low_load"]
    ]
    for row in rows:
        fallen = [fall for fall in row["falls"] if fall["num_fallen"]]
        lines += [
            f"{row['strategy']}: collapses in {fall['num_fallen']} of {fall['num_runs']} runs at "
            f"{three_digits(fall['rate_rps'])} requests/s."
            for fall in fallen[:1]
        ]
    return [Bullets(lines)] if lines else []


def _bars(
    found: Sequence[Mapping[str, Any]],
    styles: charts.Styles,
    result: Mapping[str, Any],
    scenario: Scenario,
) -> list[Block]:
    names = [row["strategy"] for row in found]
    measures = [("requests/s", "goodput_rps"), ("requests/s per GPU", "goodput_rps_per_gpu")]
    if result["price_per_gpu_hour"] is not None:
        currency = result["currency"]
        measures.append((f"requests per {currency}", "requests_per_cost"))
        measures.append((f"{currency} per million output tokens", "cost_per_million_output_tokens"))
    choices = []
    for unit, key in measures:
        own = [row[key] for row in found]
        traces = [_interval_trace(names, own, styles, "chance alone")]
        if key == "goodput_rps" and all("goodput_rps_with_step_time_errors" in r for r in found):
            wide = [row["goodput_rps_with_step_time_errors"] for row in found]
            pale = _interval_trace(names, wide, styles, "with the errors of the step times")
            pale["opacity"] = 0.45
            traces.append(pale)
        title = charts.axis(f"{unit}", rangemode="tozero")
        choices.append(Choice(unit, traces, {"xaxis": title}))
    return [
        Chart(
            "Goodput with 95 % intervals",
            f"From most to least: {', '.join(names)}. "
            "Pale: with the errors of the step times as well.",
            choices,
            {**charts.bars_layout("Goodput", 2 * len(found)), "barmode": "group"},
            asks="Goodput in ",
        )
    ]


def _interval_trace(
    names: Sequence[str],
    intervals: Sequence[Mapping[str, float | None]],
    styles: charts.Styles,
    title: str,
) -> dict[str, Any]:
    return charts.interval_bars(
        names,
        [or_nan(one["value"]) for one in intervals],
        [or_nan(one["low"]) for one in intervals],
        [or_nan(one["high"]) for one in intervals],
        [styles.colour(name) for name in names],
        [f"95 %: {_span(one)}, {title}" for one in intervals],
        title,
    )


def _attainment(folder: Path, styles: charts.Styles, result: Mapping[str, Any]) -> Chart:
    """Return the chart of all runs of the search, pooled by rate."""
    with (folder / "probes.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    pooled: dict[str, dict[float, tuple[int, int]]] = {}
    for row in rows:
        rates = pooled.setdefault(row["strategy"], {})
        met, counted = rates.get(float(row["rate_rps"]), (0, 0))
        rates[float(row["rate_rps"])] = met + int(row["met"]), counted + int(row["counted"])
    traces = []
    for name, rates in pooled.items():
        order = sorted(rates)
        traces += charts.lines(
            styles,
            {name: (charts.numbers(order), charts.numbers([_share(rates[r]) for r in order]))},
            mode="lines+markers",
            marker=styles.marker(name),
            text=[f"{rates[rate][1]:,} requests" for rate in order],
            hovertemplate="%{x:.4g}: %{y:.1%}, %{text}<extra>%{fullData.name}</extra>",
        )
    level = result["settings"]["target"]
    what = "Users in the system" if result["unit"] == "users" else "Offered rate (requests/s)"
    mark = charts.target_line(level, f"{100 * level:g} % wanted", across=True)
    return Chart(
        "Share of the requests within the targets, of all runs of the search",
        "Points near the wanted share rest on many more requests than those far from it.",
        [Choice("", traces, mark)],
        charts.layout(charts.axis(what), charts.percent_axis("Share of the requests"), height=420),
        note="The criterion that is met least often counts. Short runs look better than they are; "
        "the goodput rests on the longest runs.",
    )


def _share(pair: tuple[int, int]) -> float:
    return pair[0] / pair[1] if pair[1] else math.nan


def _latencies(found: Sequence[Mapping[str, Any]], styles: charts.Styles) -> Chart:
    choices = []
    for key, name, unit, scale in (
        ("ttft_s", "TTFT", "s", 1.0),
        ("tpot_s", "TPOT", "ms", MS),
        ("e2el_s", "End to end", "s", 1.0),
    ):
        points = {}
        for row in found:
            own = row["latency"][key]
            known = {p: v for p, v in own.items() if v is not None}
            points[row["strategy"]] = (
                [p.upper() for p in known],
                charts.numbers([v / scale for v in known.values()]),
            )
        traces = charts.lines(
            styles,
            points,
            mode="lines+markers",
            hovertemplate="%{x}: %{y:.4g} " + unit + "<extra>%{fullData.name}</extra>",
        )
        for trace, row in zip(traces, found, strict=True):
            trace["marker"] = styles.marker(row["strategy"])
        y = charts.axis(f"{name} ({unit})", rangemode="tozero")
        choices.append(Choice(name, traces, {"yaxis": y}))
    rates = ", ".join(f"{r['strategy']} {three_digits(r['latency_at_rps'])}" for r in found)
    return Chart(
        "Percentiles of the latencies at the simulated rate nearest to the goodput",
        f"Each at its own rate (requests/s): {rates}.",
        choices,
        charts.layout(charts.axis("Percentile", type="category"), {}, height=360),
        asks="Show ",
        note="A search keeps percentiles, not every request: `simcluster compare -o` keeps those.",
    )


def _pairs(result: Mapping[str, Any]) -> Table | None:
    pairs = result["comparisons"] or ()
    if not pairs:
        return None
    rows = []
    for pair in pairs:
        words = "decided" if pair["decided"] else "not decided"
        if pair["alike"]:
            words = "alike: take either"
        wide = pair["ratio_with_step_time_errors"]
        rows.append(
            [
                Value.word(pair["first"]),
                Value.word(pair["second"]),
                Value.digits(pair["ratio"]["value"]),
                Value.word(_span(pair["ratio"])),
                Value.word(_span(wide) if wide else "-"),
                Value.word(words),
                Value.word(pair["text"]),
            ]
        )
    heads = ["First", "Second", "Ratio", "95 %", "95 % with step-time errors", "Order", "In words"]
    return Table("Ratio of the goodputs on the same requests where that was possible", heads, rows)
