"""Goodputs with confidence as text, as rows for programs, and as files."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from simcluster._version import __version__
from simcluster.catalog.toml_writer import to_toml
from simcluster.config import TARGETS
from simcluster.frames.goodput import AT_LOW_LOAD, three_digits
from simcluster.runs import output
from simcluster.show.terminal import filled, fitted
from simcluster.show.text import aligned, gpus_caption, gpus_text, heading, step_times_of
from simcluster.studies.goodput.arrivals import STAYS
from simcluster.studies.goodput.by_rate import ByRate
from simcluster.studies.goodput.errors import (
    ASSUMED,
    FACTORS,
    errors_of,
    turning,
    widened,
    widened_ratio,
)
from simcluster.studies.goodput.estimate import Interval, logit
from simcluster.studies.goodput.locate import Bracket
from simcluster.studies.goodput.moved import WORDS, relative_change, steps
from simcluster.studies.goodput.pairs import Compared
from simcluster.studies.goodput.probe import Probe
from simcluster.studies.goodput.rules import Settings
from simcluster.studies.goodput.runs import (
    LATENCIES,
    PERCENTILES,
    WARMUP,
    Found,
    best_achievable,
    replication_seed,
)
from simcluster.studies.goodput.search import Stage, Status, Verdict
from simcluster.studies.goodput.shape import Falls

FILES: Final = ("goodput.json", "probes.csv", "scenario.toml")
"""Files of a result folder, beside the recorded runs."""
LEVELS: Final = (0.5, 0.9, 0.95, 0.99)
"""Attainments whose rates are bounded by the runs of the search."""
_WHAT: Final = {
    "requests/s": "highest rate (req/s) at which",
    "users": "most users (requests in the system at once) with whom",
}
_WITHOUT: Final[dict[Status, str]] = {
    "not settled": "not settled",
    "unlimited": "no limit",
    "unattainable": "none",
}
"""In place of the goodput of a strategy that has none."""


def as_json(
    found: Found, by_rate: Sequence[ByRate] | None = None, *, compared: bool = True
) -> dict[str, Any]:
    """Return the results as plain values for ``json.dumps``: NaN as None.

    Parameters
    ----------
    found : Found
        Goodputs.
    by_rate : sequence of ByRate, optional
        Comparisons at common rates.
    compared : bool
        With the comparisons of the goodputs; else None stands there.
    """
    settings, environment = found.settings, found.scenario.environment
    result: dict[str, Any] = {
        "goodput": [_row(found, name, verdict) for name, verdict in found.verdicts.items()],
        "comparisons": _comparisons(found) if compared else None,
        "levels": [_level(found, level) for level in found.levels],
        "unit": found.unit,
        "arrivals": arrivals_text(found) or None,
        "confidence": 0.95,
        "settings": dataclasses.asdict(settings),
        "seed": found.seed,
        "criterion": environment.slo.criterion,
        "step_times": step_times_of(environment),
        "step_time_errors": errors_of(environment) if found.shifts else None,
        "currency": environment.cluster.currency,
        "price_per_gpu_hour": environment.cluster.price_per_gpu_hour,
    }
    if by_rate is not None:
        result["by_rate"] = [{"text": str(p), **dataclasses.asdict(p)} for p in by_rate]
    plain: dict[str, Any] = _plain(result)
    return plain


def _level(found: Found, level: float) -> dict[str, Any]:
    """Return the searches for another attainment as plain values."""
    key = "goodput_users" if found.unit == "users" else "goodput_rps"
    rows = [
        {
            "strategy": name,
            "status": verdict.status,
            key: own and dataclasses.asdict(found.told(own)),
        }
        for name, verdict in found.levels[level].items()
        for own in [verdict.goodput]
    ]
    return {"attainment": level, "goodput": rows}


def _levels(found: Found) -> str:
    """Return the table of the rates of other attainments; nothing where nobody asked."""
    if not found.levels:
        return ""
    table = [["strategy", *(f"P{100 * level:g}" for level in found.levels)]]
    for name in found.verdicts:
        row = [name[:16]]
        for verdicts in found.levels.values():
            verdict = verdicts.get(name)
            goodput = None if verdict is None else verdict.goodput
            if goodput is None:
                row.append("-" if verdict is None else _WITHOUT[verdict.status])
            else:
                told = found.told(goodput)
                row.append(" ".join([three_digits(told.value), _span(told)]))
        table.append(row)
    what = "Users" if found.unit == "users" else "Rates (req/s)"
    title = f"{what} that keep other shares of the requests within the targets, with 95 %:"
    return title + "\n" + aligned(table)


def _span(interval: Interval) -> str:
    return f"({three_digits(interval.low)}-{three_digits(interval.high)})"


def _comparisons(found: Found) -> list[dict[str, Any]]:
    rows = [
        {
            "text": str(pair),
            "decided": pair.decided,
            "alike": pair.alike,
            **dataclasses.asdict(pair),
            "ratio_with_step_time_errors": _with_errors(found, pair),
        }
        for pair in found.comparisons()
    ]
    if found.unit == "users":
        for row in rows:
            row["difference_users"] = row.pop("difference_rps")
    return rows


def _with_errors(found: Found, pair: Compared) -> dict[str, float] | None:
    """Return the ratio of a pair with the errors of the step times in its interval, if known."""
    first, second = (found.shifts.get(name) for name in (pair.first, pair.second))
    if not first or not second:
        return None
    return dataclasses.asdict(widened_ratio(pair.ratio, first, second))


def _row(found: Found, name: str, verdict: Verdict) -> dict[str, Any]:
    row: dict[str, Any] = {
        "strategy": name,
        "num_gpus": found.num_gpus[name],
        "mean_gpus": None,
        "status": verdict.status,
        "goodput_rps": None,
        "goodput_rps_per_gpu": None,
        "cost_per_hour": None,
        "requests_per_cost": None,
        "cost_per_million_output_tokens": None,
        "saturated": None,
        "num_requests": verdict.num_requests,
        "near": {f"p{100 * level:g}": near(verdict, level) for level in LEVELS},
    }
    at = verdict.at
    if at is not None:
        row["latency_at_rps"] = at.rate_rps
        row["latency"] = {
            f"{key}_s": {f"p{p}": at.mean(f"{key}_s_p{p}") for p in PERCENTILES}
            for key in LATENCIES
        }
    row["falls"] = [_fall(one) for one in verdict.falls]
    row["misses_at_low_load"] = [
        {"rate_rps": probe.rate_rps, "attainment": _least(probe)} for probe in verdict.dips
    ]
    goodput = found.goodput(name)
    if found.unit == "users":
        row["goodput_users"] = None
    if goodput is None or at is None:
        bounds = near(verdict, found.settings.target)
        row["between"] = {key: bounds[key] for key in ("low_rps", "high_rps")}
        return row
    share_at = functools.partial(verdict.share_at_goodput, settings=found.settings)
    if found.unit == "users":
        row["goodput_users"] = dataclasses.asdict(goodput)
        stage = verdict.stages[-1]
        share_at = functools.partial(stage.share_at, _place(stage, goodput.value))
        goodput = carried(found, name, goodput)
    row["goodput_rps"] = dataclasses.asdict(goodput)
    if chance := found.chances.get(name):
        row["chance_of_trace"] = dataclasses.asdict(chance)
    if own := found.shifts.get(name):
        row["goodput_rps_with_step_time_errors"] = dataclasses.asdict(widened(goodput, own))
        row["shift_by_step_time_errors"] = dict(own)
    if own := found.sensitivity.get(name):
        row["shift_by_tenths"] = dict(own)
    if verdict.estimate is not None:
        row["saturated"] = verdict.stages[-1].high.saturated
    row["attainment"] = {key: share_at(f"{key}_attainment") for key in TARGETS}
    slo = found.scenario.environment.slo
    if slo.classes:
        row["classes"] = {
            name: {key: share_at(f"{name}.{key}_attainment") for key in (*TARGETS, "joint")}
            for name in slo.classes
        }
    gpus = found.mean_gpus(name)
    if gpus > 0:  # not where runs do not say how many were held
        row |= _per_gpu(goodput, gpus, at, found.scenario.environment.cluster.price_per_gpu_hour)
    return row


def carried(found: Found, name: str, users: Interval) -> Interval:
    """Return the requests/s of a number of users; each asks as often as at the goodput."""
    stage = found.verdicts[name].stages[-1]
    rate = stage.mean_at(_place(stage, users.value), "rate_rps")
    return _scaled(users, rate / max(users.value, 1.0))


def _place(stage: Stage, users: float) -> float:
    """Return where a number of users is between the two of a stage: 0 to 1, or beyond."""
    return math.log(max(users, 1.0) / stage.low.rate_rps) / stage.gap


def _fall(falls: Falls) -> dict[str, Any]:
    value, low, high = falls.per_hour
    per_hour = {"value": value, "low": low, "high": high}
    return {**dataclasses.asdict(falls), "hours": falls.hours, "per_hour": per_hour}


def _least(probe: Probe) -> float:
    """Attainment of a single run, of the criterion that is met least."""
    met, counted = probe.outcomes[0].least
    return met / max(counted, 1)


def _per_gpu(goodput: Interval, gpus: float, at: Probe, price: float | None) -> dict[str, Any]:
    """Return what a goodput is per GPU held and, with a price per hour, per cost of those."""
    row: dict[str, Any] = {
        "mean_gpus": gpus,
        "goodput_rps_per_gpu": dataclasses.asdict(_scaled(goodput, 1 / gpus)),
    }
    if price is not None:
        row["cost_per_hour"] = gpus * price
        per_cost = 3600 / (gpus * price)
        row["requests_per_cost"] = dataclasses.asdict(_scaled(goodput, per_cost))
        tokens = at.mean("output_tokens")
        row["cost_per_million_output_tokens"] = dataclasses.asdict(
            Interval(
                value=_cost_of_million(goodput.value * per_cost * tokens),
                low=_cost_of_million(goodput.high * per_cost * tokens),
                high=_cost_of_million(goodput.low * per_cost * tokens),
            )
        )
    return row


def _cost_of_million(tokens_per_cost: float) -> float:
    """Return the cost of a million tokens; infinite where an interval reaches down to none."""
    return 1e6 / tokens_per_cost if tokens_per_cost else math.inf


def near(verdict: Verdict, level: float) -> dict[str, float | None]:
    """Return about where attainment falls below `level`, from the runs there are.

    Returns
    -------
    dict of str to float or None
        ``low_rps`` and ``high_rps``: neighbouring rates on either side, None where no run lies
        there; ``rps``: between them, the log odds of attainment taken as straight in the logarithm
        of the rate. Of several runs at a rate the longest, which flatters least.
    """
    longest: dict[float, Probe] = {}
    for probe in verdict.probes:
        known = longest.get(probe.rate_rps)
        if known is None or known.num_requests <= probe.num_requests:
            longest[probe.rate_rps] = probe
    wanted = logit(level)
    miss = [p for p in longest.values() if p.log_odds < wanted]
    high = min(miss, key=lambda p: p.rate_rps, default=None)
    reach = [
        p
        for p in longest.values()
        if p.log_odds >= wanted and (high is None or p.rate_rps < high.rate_rps)
    ]
    low = max(reach, key=lambda p: p.rate_rps, default=None)
    around = Bracket(low, high)
    return {
        "rps": around.crossing_rps(wanted) if around.is_closed else None,
        "low_rps": None if low is None else low.rate_rps,
        "high_rps": None if high is None else high.rate_rps,
    }


def _scaled(interval: Interval, factor: float) -> Interval:
    return Interval(
        value=interval.value * factor, low=interval.low * factor, high=interval.high * factor
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_text(found: Found, by_rate: Sequence[ByRate] | None = None) -> str:
    """Return the tables: goodput of each strategy, latencies there, comparisons."""
    rows = [_row(found, name, verdict) for name, verdict in found.verdicts.items()]
    cluster = found.scenario.environment.cluster
    heads = ["strategy", "GPUs", "goodput", "95 %", "per GPU"]
    if found.unit == "users":
        heads[2:4] = ["users", "95 %", "req/s"]
    if cluster.price_per_gpu_hour is not None:
        currency = cluster.currency
        heads += [f"{currency}/h", f"req/{currency}", f"{currency}/M tokens"]
    heads += ["TTFT ok", "TPOT ok", "requests"]
    table = [heads, *(_cells(row, len(heads)) for row in rows)]
    parts = [
        heading(found.scenario),
        aligned(table),
        filled(
            f"Goodput: the {_WHAT[found.unit]} {100 * found.settings.target:g} % of the "
            "requests meet the targets, with its 95 % interval; per GPU: req/s; M tokens: a "
            "million output tokens; ok: % within that target at the goodput; requests: simulated "
            "in all.",
            "",
        ),
        _filled(arrivals_text(found)),
        _autoscaled(found, rows),
        _classes(found, rows),
        "\n".join(_remarks(found)),
    ]
    parts.append(_pairs(found))
    parts += [_errors(found), _sensitivity(found), _levels(found)]
    if by_rate:
        title = "Attainment at all of these rates, on the same requests (p < 0.05):"
        parts.append("\n".join([title, *(f"  {pair}" for pair in by_rate)]))
    return fitted("\n\n".join(part for part in parts if part)) + "\n"


def _pairs(found: Found) -> str:
    """Return the comparison of every two strategies, and which take part in none."""
    pairs = found.comparisons()
    lines = [f"  {pair}" for pair in pairs]
    if pairs:
        lines.insert(0, "On the same requests, where not said otherwise:")
    without = [name for name, verdict in found.verdicts.items() if verdict.goodput is None]
    if without and len(found.verdicts) > 1:
        lines.append(_filled(f"Not compared, without a goodput: {', '.join(without)}."))
    return "\n".join(lines)


def _errors(found: Found) -> str:
    """Return the second intervals, with the errors of the step times; nothing without them."""
    errors = errors_of(found.scenario.environment)
    if not found.shifts:
        return ""
    if not errors:
        return "The error of these step times is not known: intervals are of chance alone."
    table = [["strategy", "goodput", "95 %"]]
    for name, own in found.shifts.items():
        goodput = found.verdicts[name].goodput
        assert goodput is not None, "who was moved has a goodput"
        wide = found.told(widened(goodput, own))
        span = f"{three_digits(wide.low)}-{three_digits(wide.high)}"
        table.append([name[:16], three_digits(wide.value), span])
    parts = ", ".join(f"{FACTORS[f]} {100 * error:.0f} %" for f, error in errors.items())
    title = _filled(
        "With the errors of the step times as well, alike for all strategies (one standard "
        f"deviation: {parts}; those of {' and '.join(FACTORS[f] for f in ASSUMED)} are assumed):"
    )
    lines = [title, aligned(table)]
    for pair in found.comparisons():
        first, second = (found.shifts.get(name, {}) for name in (pair.first, pair.second))
        if not first or not second:
            continue
        ratio = widened_ratio(pair.ratio, first, second)
        ends = (100 * (x - 1) for x in (ratio.low, ratio.high))
        words = "{:+.2g} to {:+.2g} %".format(*ends)
        turns = turning(pair.ratio, first, second, errors)
        if turns:
            words += "; turned by " + " or ".join(
                f"{FACTORS[one.factor]} {100 * abs(math.expm1(one.error)):.2g} % "
                f"{'slower' if one.error > 0 else 'quicker'}"
                for one in turns
            )
        lines.append(_filled(f"  {pair.first} over {pair.second}: {words}"))
    return "\n".join(lines)


def _sensitivity(found: Found) -> str:
    """Return what longer requests and tighter targets do; nothing where nobody asked."""
    if not found.sensitivity:
        return ""
    names = list(dict.fromkeys(name for own in found.sensitivity.values() for name in own))
    table = [["strategy", *names]]
    for strategy, own in found.sensitivity.items():
        table.append([strategy[:16], *(f"{100 * math.expm1(own[name]):+.1f} %" for name in names)])
    lines = [
        _filled(
            "Shift of each goodput when prompts or outputs are a tenth longer, or a target is "
            "divided by 1.1 (one replication each):"
        ),
        aligned(table),
    ]
    if "prompts" not in names:
        lines.append("The lengths come with the arrivals and were not moved.")
    for pair in found.comparisons():
        first, second = (found.sensitivity.get(n, {}) for n in (pair.first, pair.second))
        turns = turning(pair.ratio, first, second, steps(first))
        if turns:
            words = " or ".join(
                f"{one.factor} {100 * abs(relative_change(one.factor, one.error)):.2g} % "
                f"{WORDS[one.factor][one.error < 0]}"
                for one in turns
            )
            lines.append(_filled(f"  {pair.first} over {pair.second}: turned by {words}"))
    return "\n".join(lines)


def _classes(found: Found, rows: Sequence[dict[str, Any]]) -> str:
    """Return the table of the attainment of each class; nothing without classes."""
    slo = found.scenario.environment.slo
    known = [row for row in rows if row["goodput_rps"] is not None]
    if not slo.classes or not known:
        return ""
    keys = TARGETS if slo.criterion == "marginal" else ("joint",)
    table = [
        [
            row["strategy"][:16],
            *(f"{100 * min(one[key] for key in keys):.1f}" for one in row["classes"].values()),
        ]
        for row in known
    ]
    title = (
        f"Of every class {100 * slo.attainment:g} % must meet its targets; there are at the "
        "goodput (%):"
    )
    return title + "\n" + aligned([["strategy", *slo.classes], *table])


def _cells(row: dict[str, Any], width: int) -> list[str]:
    gpus = row["num_gpus"] if row["mean_gpus"] is None else row["mean_gpus"]
    first = [row["strategy"][:16], gpus_text(gpus, row["num_gpus"])]
    last = f"{row['num_requests']:,}"
    if row["goodput_rps"] is None:
        return [*first, _WITHOUT[row["status"]], *["-"] * (width - 4), last]
    goodput = row.get("goodput_users") or row["goodput_rps"]
    span = f"{three_digits(goodput['low'])}-{three_digits(goodput['high'])}"
    values = [three_digits(goodput["value"]), span]
    if "goodput_users" in row:
        values = [f"{goodput['value']:,.0f}", f"{goodput['low']:,.0f}-{goodput['high']:,.0f}"]
        values.append(three_digits(row["goodput_rps"]["value"]))
        width -= 1
    figures = (
        "goodput_rps_per_gpu",
        "cost_per_hour",
        "requests_per_cost",
        "cost_per_million_output_tokens",
    )
    known = [row[key] for key in figures[: width - 7]]  # without a price there is but the first
    values += ["-" if one is None else three_digits(_middle(one)) for one in known]
    values += [f"{100 * row['attainment'][key]:.1f}" for key in ("ttft", "tpot")]
    return [*first, *values, last]


def _middle(figure: float | dict[str, float]) -> float:
    """Return a figure, or the value of one with an interval."""
    return figure["value"] if isinstance(figure, dict) else figure


def _autoscaled(found: Found, rows: Sequence[dict[str, Any]]) -> str:
    """Return what GPU counts of strategies mean whose instances come and go; nothing of others."""
    lines = []
    if any(row["mean_gpus"] not in (None, row["num_gpus"]) for row in rows):
        lines.append(gpus_caption("at the goodput", "those of the most instances in service"))
    for name, ramp_s in found.ramps_s.items():
        stages = found.verdicts[name].stages
        at = stages[-1].low if stages else found.verdicts[name].probes[-1]
        warmup_s = WARMUP * at.num_requests / at.rate_rps
        if warmup_s < ramp_s:
            lines.append(
                _filled(
                    f"{name}: what is counted begins {warmup_s:.0f} s into its runs; all instances "
                    f"take {ramp_s:.0f} s to start at least, so it may carry more: raise "
                    f"--max-requests ({found.settings.max_requests:,})."
                )
            )
    return "\n".join(lines)


def _filled(line: str) -> str:
    """Return a line in lines that a terminal shows whole."""
    return filled(line)


def _remarks(found: Found) -> list[str]:
    """Return what a reader of the table must know of single strategies, a line each."""
    lines = []
    remedies: dict[Status, str] = {
        "unlimited": "set slo.ttft_s or slo.e2el_s, or tighten them",
        "wide": f"raise --max-requests ({found.settings.max_requests:,})",
        "not settled": f"raise --max-requests ({found.settings.max_requests:,}) or --tolerance",
    }
    for name, verdict in found.verdicts.items():
        lines += [_filled(f"{name}: {words}.") for words in _of_trace(found, name)]
        if words := ending(verdict, found.settings):
            remedy = remedies.get(verdict.status)
            lines.append(_filled(f"{name}: {words}{f': {remedy}' if remedy else ''}."))
        lines += [_filled(f"{name}: {words}.") for words in collapses(verdict)]
        if verdict.dips:
            lines.append(_filled(f"{name}: {low_loads(verdict)}."))
        if verdict.estimate is not None and verdict.stages[-1].high.saturated:
            rate = three_digits(verdict.stages[-1].high.rate_rps)
            lines.append(f"{name}: saturated at {rate} req/s: its queue grows without bound.")
    if found.unit == "users":
        return [line.replace(" req/s", " users") for line in lines]
    return lines


def arrivals_text(found: Found) -> str:
    """Return what the rate of the arrivals means, in a line; nothing where it is plain."""
    return f"{found.load.meaning}." if found.load and found.load.meaning else ""


def _of_trace(found: Found, name: str) -> list[str]:
    """Return what the trace leaves open of a goodput, in words; nothing without a trace."""
    chance, verdict = found.chances.get(name), found.verdicts[name]
    if chance is None or verdict.estimate is None:
        return []
    words = [
        f"of its interval the trace's own chance alone makes +-{100 * chance.half_width:.2g} %, "
        "which a longer trace narrows and no run does"
    ]
    if chance.stays < STAYS:
        words.append(
            f"a block of the trace has {chance.stays:.2g} mean stays of a request at the goodput, "
            "so that queues are cut at its ends: use a longer trace"
        )
    return words


def collapses(verdict: Verdict) -> list[str]:
    """Return where a strategy collapses and how often, in words; nothing where it does not."""
    fallen = [falls for falls in verdict.falls if falls.num_fallen]
    if not fallen:
        return []
    lowest = fallen[0]
    value, low, high = (three_digits(x) for x in lowest.per_hour)
    words = (
        f"collapses in {lowest.num_fallen} of {lowest.num_runs} runs at "
        f"{three_digits(lowest.rate_rps)} req/s and does not recover"
    )
    if lowest.num_recovered:
        words += f" ({lowest.num_recovered} did)"
    if lowest.full:
        words += f": the KV cache of {_POOLS.get(lowest.full, lowest.full)} is full"
        words += f", {lowest.preemptions:,.0f} preemptions" if lowest.preemptions else ""
    words += f"; {value} times per hour of operation (95 %: {low} to {high})"
    safe = [f for f in verdict.falls if not f.num_fallen and f.rate_rps < lowest.rate_rps]
    if not safe:
        return [words]
    held = safe[-1]
    most = held.per_hour[2]
    name = "recommended: " if verdict.status == "collapses" else ""
    return [
        words,
        f"{name}at {three_digits(held.rate_rps)} req/s none in {held.num_runs} runs, "
        f"{three_digits(held.hours)} hours: below {three_digits(most)} per hour (95 %); for below "
        f"one a day simulate {math.ceil(72 / held.hours)} times as long there (--max-requests)",
    ]


_POOLS: Final = {
    "mixed": "the instances",
    "prefill": "the prefill pool",
    "decode": "the decode pool",
}


def low_loads(verdict: Verdict) -> str:
    """Return at which low loads the targets are missed, in words."""
    places = [
        f"at {three_digits(probe.rate_rps)} req/s {100 * _least(probe):.3g} %"
        for probe in verdict.dips
    ]
    return f"{AT_LOW_LOAD}: {', '.join(places)} of the requests are within them"


def ending(verdict: Verdict, settings: Settings) -> str:
    """Return how a search ended, in words: what is known of its goodput; nothing if it is found."""
    match verdict.status:
        case "unattainable":
            return f"misses the targets even alone: {best_achievable(verdict)}"
        case "unlimited":
            return "meets the targets at every rate tried, though its queue may grow without bound"
        case "not settled":
            return f"not settled: {_between(verdict, settings.target)}"
        case "wide" if verdict.estimate and verdict.estimate.half_width <= settings.tolerance:
            return "attainment still falls in its longest runs, so longer ones would carry less"
        case "wide":
            return "the longest runs leave the interval wider than asked"
        case "collapses":
            return "its goodput is the rate that is recommended, up to the lowest with a collapse"
    return ""


def _between(verdict: Verdict, target: float) -> str:
    """Return the rates between which the runs of a search put its goodput, in words."""
    bounds, share = near(verdict, target), f"{100 * target:g} %"
    low, high = bounds["low_rps"], bounds["high_rps"]
    if low is not None and high is not None:
        ends = [three_digits(rate) for rate in (low, high)]
        if ends[0] == ends[1]:
            ends = [f"{rate:.5g}" for rate in (low, high)]
        places = f"falls below {share} between {ends[0]} and {ends[1]} req/s"
    elif low is not None:
        places = f"is at least {share} up to {three_digits(low)} req/s"
    elif high is not None:
        places = f"is below {share} from {three_digits(high)} req/s on"
    else:
        return "there are no runs"
    return f"attainment {places} in the runs there are; no interval is known"


def write(
    found: Found,
    folder: Path,
    by_rate: Sequence[ByRate] | None = None,
    *,
    compared: bool = True,
) -> list[Path]:
    """Write ``goodput.json``, ``probes.csv`` (a row per run) and ``scenario.toml``.

    Parameters
    ----------
    found : Found
        Goodputs.
    folder : Path
        Where to write.
    by_rate : sequence of ByRate, optional
        Comparisons at common rates.
    compared : bool
        As in `as_json`: what was found can be written before it is compared.

    Raises
    ------
    DataError
        If `folder` cannot be written.
    """
    result = {"version": __version__, **as_json(found, by_rate, compared=compared)}
    texts = {
        "goodput.json": json.dumps(result, indent=2) + "\n",
        "probes.csv": _probes(found),
        "scenario.toml": to_toml(found.scenario.document),
    }
    with output.together(folder) as hidden:
        for name, text in texts.items():
            (hidden / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def _probes(found: Found) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    heads = ["strategy", "rate_rps", "seed", "num_requests", "counted", "met", "growth"]
    writer.writerow(heads)
    for name, verdict in found.verdicts.items():
        for probe in verdict.probes:
            writer.writerows(_runs(name, probe, found.seed))
    return file.getvalue()


def _runs(name: str, probe: Probe, seed: int) -> list[list[Any]]:
    return [
        [
            name,
            probe.rate_rps,
            replication_seed(seed, k),
            probe.num_requests,
            *reversed(o.least),
            o.growth,
        ]
        for k, o in zip(probe.replications, probe.outcomes, strict=True)
    ]
