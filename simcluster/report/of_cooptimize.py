"""Reports of ``simcluster cooptimize``: the front of cost, latency and quality, the chosen plan."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from simcluster.frames.goodput import three_digits
from simcluster.report import charts
from simcluster.report.common import about, command_line, last_sections, price_caution, scenario_of
from simcluster.report.page import (
    INK,
    Bullets,
    Chart,
    Choice,
    Code,
    Page,
    Section,
    Table,
    Value,
    as_label,
)

_Row = Mapping[str, Any]
_LATENCY = {"e2el": "end-to-end latency", "ttft": "TTFT", "tpot": "TPOT"}


def page(result: _Row, folder: Path) -> Page:
    """Return the report of a co-optimisation.

    Parameters
    ----------
    result : mapping
        What ``cooptimize.json`` holds.
    folder : Path
        The result folder.
    """
    scenario = scenario_of(folder)
    models = " and ".join(model["model"] for model in result["chosen"]["models"])
    command = command_line(
        "cooptimize",
        folder / "scenario.toml",
        "--rate",
        f"{result['rate_rps']:g}",
        "--results",
        f"{folder}-again",
    )
    sections = [
        Section("Chosen plan", [_plan(result["chosen"]), Bullets(result["why"])]),
        Section("Front", [_front(result), _front_table(result)]),
        Section("Against plans of one kind", [_baselines(result)]),
        Section("As the terminal shows it", [Code(result["text"], "All tables")]),
    ]
    return Page(
        question=f"Which GPUs for which model, and how much load for each: {models} at "
        f"{result['rate_rps']:g} requests/s?",
        about=about(scenario),
        answer=_answer(result),
        confidence=[*_confidence(result), *price_caution(scenario)],
        sections=[
            *sections,
            *last_sections(
                scenario, result["step_times"], command, ["cooptimize.json", "plan.toml"]
            ),
        ],
    )


def _percentile(result: _Row) -> str:
    return f"P{result['percentile']:g} of the {_LATENCY[result['latency']]}"


def _simulated(row: _Row) -> float:
    """Return the mean of the simulated latencies (s); NaN where a seed has none."""
    values = row["simulated_latency_s"]
    if not values or any(value is None for value in values):
        return math.nan
    return float(sum(values) / len(values))


def _answer(result: _Row) -> list[str]:
    chosen, currency = result["chosen"], result["currency"]
    parts = ", ".join(f"{100 * m['fraction']:.0f} % on {m['model']}" for m in chosen["models"])
    quality = chosen["quality"]
    known = "" if quality is None else f", quality {quality:.4f}"
    first = (
        f"The chosen plan sends {parts} and costs {three_digits(chosen['cost_per_hour'])} "
        f"{currency} per hour, with a {_percentile(result)} of "
        f"{three_digits(_simulated(chosen))} s{known}."
    )
    others = {n: row for n, row in result["baselines"].items() if row is not None}
    if not result["keeps_limits"]:
        return [first, "As simulated it breaks a limit; no simulated plan keeps all of them."]
    if not others:
        return [first, "It keeps all limits in the simulation."]
    name = min(others, key=lambda n: _simulated(others[n]))
    return [
        first,
        f"It keeps all limits; the quickest plan of one kind ({name}) takes "
        f"{three_digits(_simulated(others[name]))} s for "
        f"{three_digits(others[name]['cost_per_hour'])} {currency} per hour.",
    ]


def _confidence(result: _Row) -> list[str]:
    chosen = result["chosen"]
    half = chosen["half_width_s"]
    width = "not known" if half is None else f"+-{three_digits(half)} s"
    lines = [
        f"Simulated with {len(chosen['simulated_latency_s'])} seeds; interval of the latency: "
        f"{width}.",
        f"{result['evaluations']:,} plans were judged by a database of simulated units; only the "
        f"{len(result['finalists'])} finalists were simulated as a whole.",
    ]
    off = chosen["database_against_simulation"]
    if off is not None:
        lines.append(f"For the chosen plan the database is off by {100 * off:+.1f} %.")
    limits = {key: value for key, value in result["limits"].items() if value is not None}
    words = ", ".join(f"{key} = {value:g}" for key, value in limits.items())
    lines.append(f"Another limit or goal moves the answer along the front: {words or 'no limits'}.")
    return lines


def _plan(row: _Row) -> Table:
    heads = ["Model", "Load (%)", "GPU", "Strategy", "Instances", "GPUs", "TP", "PP"]
    rows = [
        [
            Value.word(model["model"]),
            Value.number(100 * model["fraction"], f"{100 * model['fraction']:.1f}"),
            Value.word(pool["gpu"]),
            Value.word(pool["strategy"]),
            *(Value.number(pool[key]) for key in ("instances", "num_gpus", "tp_size", "pp_size")),
        ]
        for model in row["models"]
        for pool in model["pools"]
    ]
    return Table("Pools of the chosen plan", heads, rows)


def _words(row: _Row) -> str:
    """Return a plan in a line."""
    return "; ".join(
        f"{100 * model['fraction']:.0f} % {model['model']}: "
        + " + ".join(f"{pool['num_gpus']} {pool['gpu']}" for pool in model["pools"])
        for model in row["models"]
        if model["pools"]
    )


def _front(result: _Row) -> Chart:
    currency, rows = result["currency"], result["front"]
    known = [row for row in rows if row["latency_s"] is not None]
    quality = [row["quality"] for row in known]
    marker: dict[str, Any] = {"size": 9, "color": INK}
    if all(value is not None for value in quality) and quality:
        marker = {
            "size": 9,
            "color": charts.numbers(quality),
            "colorscale": "Viridis",
            "colorbar": {"title": {"text": "quality"}},
            "showscale": True,
        }
    traces = [
        _points("front, by the database", known, marker),
    ]
    others = [(n, r) for n, r in result["baselines"].items() if r is not None]
    for i, (name, row) in enumerate([*others, ("chosen (simulated)", result["chosen"])]):
        last = i == len(others)
        shape = {"size": 16 if last else 11, "symbol": "star" if last else charts.SYMBOLS[i + 1]}
        shape["color"] = "#D55E00" if last else INK
        point = {**row, "latency_s": _simulated(row)}
        traces.append(_points(name, [point], shape))
    return Chart(
        f"Cost against {_percentile(result)}",
        f"{len(known)} plans that no other beats in cost, latency and quality together; the star "
        "is the chosen one as simulated.",
        [Choice("", traces)],
        charts.layout(
            charts.axis(f"Cost ({currency} per hour)"),
            charts.axis(f"{_percentile(result)} (s)", type="log"),
            height=440,
        ),
    )


def _points(name: str, rows: Sequence[_Row], marker: Any) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": as_label(name),
        "x": charts.numbers([row["cost_per_hour"] for row in rows]),
        "y": charts.numbers([row["latency_s"] for row in rows]),
        "text": [as_label(_words(row)) for row in rows],
        "marker": marker,
        "hovertemplate": "%{text}<br>%{x:.4g}, %{y:.4g} s<extra>%{fullData.name}</extra>",
    }


def _front_table(result: _Row) -> Table:
    heads = ["Plan", f"{result['currency']}/h", f"{_percentile(result)} (s)", "Quality"]
    rows = [
        [
            Value.word(_words(row)),
            Value.digits(row["cost_per_hour"]),
            Value.digits(row["latency_s"]),
            Value.number(
                row["quality"], None if row["quality"] is None else f"{row['quality']:.4f}"
            ),
        ]
        for row in result["front"]
    ]
    return Table(f"All {len(rows)} plans of the front, by the database", heads, rows, folded=True)


def _baselines(result: _Row) -> Table:
    heads = ["Best plan of each kind", f"{result['currency']}/h", f"{_percentile(result)} (s)"]
    heads += ["Quality", "Plan"]
    rows = []
    for name, row in [("co-optimised", result["chosen"]), *result["baselines"].items()]:
        if row is None:
            none = Value.word("no such plan keeps the limits")
            rows.append([Value.word(name), *(Value.number(None) for _ in range(3)), none])
            continue
        quality = row["quality"]
        rows.append(
            [
                Value.word(name),
                Value.digits(row["cost_per_hour"]),
                Value.digits(_simulated(row)),
                Value.number(quality, None if quality is None else f"{quality:.4f}"),
                Value.word(_words(row)),
            ]
        )
    return Table("Latencies as simulated", heads, rows)
