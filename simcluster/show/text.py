"""Results as text for a terminal: aligned tables of at most 80 columns, and rows for programs."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import textwrap
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import click
import numpy as np

from simcluster.catalog import Entry, default_price
from simcluster.catalog.layers import ModelSpec
from simcluster.catalog.listing import limits_text
from simcluster.config import LAW, ClusterConfig, Environment, ModelConfig, SloConfig
from simcluster.errors import DataError, printable
from simcluster.frames.breakdown import TTFT_PARTS, mean_parts, ttft_parts
from simcluster.frames.by_group import group_summaries
from simcluster.frames.goodput import (
    met,
    representative_rate,
    strategies,
    target_of,
    wanted_shares,
)
from simcluster.frames.metrics import PERCENTILES, STATISTICS, cached_block_share, measured_window
from simcluster.frames.schema import CLASS_ATTAINMENT, Columns
from simcluster.roofline import kinds
from simcluster.roofline.assumptions import assumptions
from simcluster.runs.folder import Comparison, rows_of, sweep_columns
from simcluster.scenario import kernel_use
from simcluster.scenario.remarks import remarks
from simcluster.scenario.scenario import Scenario
from simcluster.show.terminal import filled, fitted, hanging, table_width
from simcluster.units import GB, MS
from simcluster.workload import WorkloadSettings
from simcluster.workload.lengths import TabulatedLengths

if TYPE_CHECKING:
    import pandas as pd

    from simcluster.show.plot import PictureFormat

Row = Mapping[str, Any]
"""One row of the sweep frame, by column."""

_RATES_PER_BLOCK: Final = 9
_NAME_WIDTH: Final = 16
_FEW: Final = 3
_LEAST_ROOM: Final = 20
"""Characters that a column of text must have, at least, to be put into several lines."""
_INDENT: Final = 10 * " "
"""What stands before the further lines of the heading's paragraphs."""
_LATENCIES: Final = (
    ("TTFT", "ttft_s", 1.0, "s"),
    ("TPOT", "tpot_s", MS, "ms"),
    ("ITL", "itl_s", MS, "ms"),
)
_END_OF_RATES: Final = {False: "arrival counted", True: "output"}
_ACCURACY: Final = {
    "measured": "calibrated on measured kernels",
    "fitted": "constants fitted here to published measurements of its kernels",
    "data-sheet": "data sheet with typical efficiencies, not measured",
}


@contextlib.contextmanager
def resumable(kept: bool) -> Iterator[None]:
    """Say on standard error what becomes of finished runs if the block is interrupted (Ctrl-C).

    Parameters
    ----------
    kept : bool
        Whether they are recorded; nothing is said otherwise.
    """
    try:
        yield
    except KeyboardInterrupt:
        if kept:
            click.echo("\nFinished runs are kept; the same command resumes.", err=True)
        raise


def comparison_text(comparison: Comparison, answer: str = "") -> str:
    """Return the tables of a comparison: what was compared, goodput, attainment by rate.

    Parameters
    ----------
    comparison : Comparison
        What was simulated.
    answer : str
        What came out, in a sentence or two (`report.of_runs.answer`); stands above the tables.
    """
    scenario = comparison.scenario
    parts = [heading(scenario)]
    if answer:
        parts.append(filled(f"Answer:   {answer}", _INDENT))
    parts.append(_main_table(comparison, scenario))
    if _is_swept(comparison.sweep):
        parts += _attainment_tables(comparison.sweep, scenario.environment.slo)
    return "\n\n".join(parts + _footnotes(sweep_columns(comparison.rows), scenario)) + "\n"


def run_text(comparison: Comparison) -> str:
    """Return the table of a single run."""
    scenario = comparison.scenario
    sweep = sweep_columns(comparison.rows)
    row = {name: column[0] for name, column in sweep.items()}
    latencies = [
        [f"{name} ({unit})", *(_number(row[f"{key}_{stat}"] / scale) for stat in STATISTICS)]
        for name, key, scale, unit in (*_LATENCIES, ("end to end", "e2el_s", 1.0, "s"))
    ]
    rate = "" if math.isnan(row["rate_rps"]) else f" at {row['rate_rps']:g} requests/s"
    summary = [
        ["requests counted", f"{row['num_requests']}"],
        ["of them finished", f"{row['num_finished']}"],
        ["of them rejected", f"{row['num_rejected']}"],
        ["preemptions", f"{row['num_preemptions']}"],
        *_cached(comparison),
        *_within(row, scenario.environment.slo),
        ["good requests/s", _number(row["good_rps"])],
        ["finished requests/s", _number(row["throughput_rps"])],
        ["output tokens/s", _number(row["output_tokens_per_s"])],
        ["time of these rates (s)", _time_of_rates(row)],
        *_cost_rows(row, scenario.environment),
    ]
    gpus = f"{row['num_gpus']} GPUs"
    if row["mean_gpus"] != row["num_gpus"]:
        gpus = f"{_number(row['mean_gpus'])} GPUs (held, mean over the window; at most {gpus})"
    title = f"{row['strategy']} on {gpus}{rate}, seed {row['seed']}"
    parts = [
        heading(scenario),
        title,
        aligned(summary),
        aligned([["latency", "mean", *(f"P{percent}" for percent in PERCENTILES)], *latencies]),
        *_parts_of_ttft(comparison, scenario),
        *_groups(comparison, scenario),
    ]
    return "\n\n".join(parts + _footnotes(sweep, scenario)) + "\n"


def _within(row: Row, slo: SloConfig) -> list[list[str]]:
    """Return the lines on the share of requests within the targets, of each where they differ."""
    if slo.percentiles is not None:
        return [
            [f"within {target_of(key)} (%)", f"{met(row[key])} of {100 * level:g} wanted"]
            for key, level in wanted_shares(slo).items()
        ]
    of_classes = [
        [f"class {name} (%)", met(row[CLASS_ATTAINMENT + name])] for name in slo.classes or ()
    ]
    each = [
        [
            f"within the {target_of(f'{key}_attainment')} target (%)",
            met(row[f"{key}_attainment"]),
        ]
        for key in slo.targets
    ]
    return [
        ["within the targets (%)", met(row["slo_attainment"])],
        *(each if len(each) > 1 else []),
        *of_classes,
    ]


def _costs(row: Row, cluster: ClusterConfig, rate_rps: float | None = None) -> list[float]:
    """Return the price per hour of the GPUs held, and per million output tokens at a rate.

    Parameters
    ----------
    row : Series
        A row of the sweep: GPUs held, tokens of a request.
    cluster : ClusterConfig
        Its GPUs have a price.
    rate_rps : float, optional
        Requests/s; default: those that the run finished.
    """
    per_hour = float(row["mean_gpus"]) * (cluster.price_per_gpu_hour or math.nan)
    finished, tokens = float(row["throughput_rps"]), float(row["output_tokens_per_s"])
    if rate_rps is not None:
        tokens = tokens / finished * rate_rps if finished else math.nan
    return [per_hour, per_hour / (tokens * 3600 / 1e6) if tokens else math.nan]


def _cost_rows(row: Row, environment: Environment) -> list[list[str]]:
    """Return the lines on what a run costs; none where no price is known, or several."""
    cluster = environment.cluster
    if cluster.price_per_gpu_hour is None or environment.extra_clusters:
        return []
    units = (f"{cluster.currency}/h", f"{cluster.currency}/million output tokens")
    return [[u, _number(v)] for u, v in zip(units, _costs(row, cluster), strict=True)]


def _parts_of_ttft(comparison: Comparison, scenario: Scenario) -> list[str]:
    """Return the table of what the TTFT is made of; nothing where no request was finished."""
    run = scenario.run
    if run.recorder == "summary":
        return []
    requests = comparison.frames(comparison.cells()[0])["requests"]
    finished = np.asarray(requests["status"], dtype=object) == "finished"
    counted = finished & measured_window(requests, run.warmup_s, run.cooldown_s)
    means = mean_parts(ttft_parts(requests), counted)
    whole = sum(means.values())
    if not whole > 0:
        return []
    rows = [
        [TTFT_PARTS[part], _number(value), f"{100 * value / whole:.1f}"]
        for part, value in means.items()
        if value > 0
    ]
    return [aligned([["of the mean TTFT (users' first output)", "s", "%"], *rows])]


def _time_of_rates(row: Row) -> str:
    """Return the time that rates are taken over, and what it ends with."""
    bounds = f"{_number(row['rates_from_s'])} to {_number(row['rates_to_s'])}"
    return f"{bounds} (last {_END_OF_RATES[_until_output(row)]})"


def _until_output(row: Row) -> bool:
    """Tell whether the rates of a run are taken until its last output; else to its last arrival."""
    return bool(row["transient"]) or math.isnan(row["rate_rps"])


def _cached(comparison: Comparison) -> list[list[str]]:
    """Return the lines on prefixes found in the KV cache; none where none were looked for."""
    instances = comparison.columns("instances", comparison.cells()[0])
    if not np.asarray(instances["asked_blocks"]).any():
        return []
    share = comparison.rows[0]["cached_token_share"]
    return [
        ["prompt tokens from the cache (%)", met(float(share))],
        ["KV blocks from the cache (%)", met(cached_block_share(instances))],
    ]


def _groups(comparison: Comparison, scenario: Scenario) -> list[str]:
    """Return the table of groups of a run of several models; nothing for other runs."""
    environment = scenario.environment
    several = environment.extra_models or environment.extra_clusters
    if not several or scenario.run.recorder == "summary":
        return []
    frames = comparison.frames(comparison.cells()[0])
    head = [
        ["", "", "", environment.cluster.currency, "requests", "", "TTFT", "TTFT", "E2E", "E2E"],
        ["model", "GPU", "GPUs", "per h", "%", "quality", "P50 s", "P95 s", "P50 s", "P95 s"],
    ]
    table = [
        [
            row.model,
            _short(row.gpu),
            f"{row.mean_gpus:.4g}",
            _number(row.cost_per_hour),
            met(row.share),
            "-" if math.isnan(row.quality) else f"{row.quality:.4f}",
            *map(_number, (row.ttft_p50_s, row.ttft_p95_s, row.e2el_p50_s, row.e2el_p95_s)),
        ]
        for row in group_summaries(frames, environment, scenario.run)
    ]
    return [aligned([*head, *table], heads=2)]


def heading(scenario: Scenario) -> str:
    """Return what is served on what, the targets, and what the step times rest on."""
    environment = scenario.environment
    limits = limits_text(environment.engine.on(environment.cluster.gpu))
    notes = [*assumptions(environment), *remarks(scenario)]
    return "\n".join(
        [
            filled(
                f"{environment.model.spec.name} on {_machines(environment.cluster)}, "
                f"engine {environment.engine.name}",
                _INDENT,
            ),
            filled(f"Engine:   {limits} (by default)", _INDENT),
            *_extras(environment),
            filled(f"Requests: {_requests(scenario.workload)}", _INDENT),
            *_wrapped(notes_of(scenario)),
            filled(f"Targets:  {targets(environment.slo)}", _INDENT),
            *_step_times(environment),
            *(filled(f"Kernels:  {line}", _INDENT) for line in kernel_use.lines(scenario)),
            *(filled(f"Note:     {line}", _INDENT) for line in notes),
            filled(f"Price:    {_price(environment.cluster)}", _INDENT),
        ]
    )


def all_notes(scenario: Scenario) -> list[str]:
    """Return what is assumed, stands in for something, or is not used or simulated."""
    environment = scenario.environment
    return [
        *notes_of(scenario),
        *kernel_use.lines(scenario),
        *assumptions(environment),
        *remarks(scenario),
    ]


def notes_of(scenario: Scenario) -> tuple[str, ...]:
    """Return what was assumed about the files of requests, and what of them is not simulated."""
    try:
        return scenario.workload.notes()
    except DataError as error:
        return (str(error),)  # results are shown of a file that is not there any more


def _wrapped(notes: Sequence[str]) -> list[str]:
    """Return notes as indented lines."""
    return [filled(note, _INDENT + "  ", _INDENT) for note in notes]


def _extras(environment: Environment) -> list[str]:
    """Return lines of the further models and machines."""
    lines = []
    if environment.extra_models:
        names = ", ".join(model.spec.name for model in environment.models)
        lines.append(filled(f"Models:   {names}", _INDENT))
    for cluster in environment.extra_clusters:
        lines.append(filled(f"Also:     {_machines(cluster)}", _INDENT))
        lines += _wrapped([f"{_price(cluster)}; step times {environment.accuracy_of(cluster)}"])
        if environment.step_times == "roofline" and environment.kernels == LAW:
            lines += _wrapped([_error_of_kind(environment, cluster)])
    return lines


def _step_times(environment: Environment) -> list[str]:
    """Return what the step times rest on, and the error of their kind."""
    cluster, source = environment.cluster, environment.step_times
    accuracy = environment.accuracy_of(cluster)
    about = _ACCURACY.get(accuracy, "see its source")
    if source != "roofline":
        about = f"they come from {source!r}"
    elif environment.kernels != LAW:
        about = f"kernels of {kernels_of(environment)}; the error of such runs is not known"
    else:
        about = f"{about}; {_error_of_kind(environment, cluster)}"
    line = f"Step times of {cluster.gpu.name}: {accuracy} ({about})"
    return [filled(line, _INDENT)]


def kernels_of(environment: Environment) -> str:
    """Return the name of the source of kernel times: ``engine.kernels``, of a path its end."""
    kernels = environment.kernels
    return kernels if isinstance(kernels, str) else kernels.name


def _error_of_kind(environment: Environment, cluster: ClusterConfig) -> str:
    """Return the measured errors of what is simulated, of `docs/accuracy.md`'s kinds."""
    kind = kinds.in_words(kinds.kind_of(environment, cluster))
    known = kinds.known(environment, cluster)
    if known is None:
        return f"{kind}: not measured, its error is not known"
    errors = ", ".join(f"{name} {100 * error:.0f} %" for name, error in known.errors.items())
    runs = f"{known.n} run{'s' * (known.n != 1)}" if known.served else f"{known.n} steps"
    fitted = ", fitted to them" if known.fitted else ""
    return f"{kind}: {errors} off in {runs} on {', '.join(known.gpus)}{fitted}"


def step_times_of(environment: Environment) -> dict[str, Any]:
    """Return what a program should know of the step times.

    GPU, accuracy, a source that is not ours; of our own the kind, and its measured errors (shares)
    with the GPUs they were measured on, None where there are none.
    """
    cluster, source = environment.cluster, environment.step_times
    about = {"gpu": cluster.gpu.name, "accuracy": environment.accuracy_of(cluster)}
    if source != "roofline":
        return {**about, "source": source}
    if environment.kernels != LAW:
        return {**about, "source": kernels_of(environment)}
    known = kinds.known(environment)
    return {
        **about,
        "kind": kinds.in_words(kinds.kind_of(environment)),
        "errors": None if known is None else dict(known.errors),
        "errors_on": None if known is None else list(known.gpus),
        "errors_fitted": None if known is None else known.fitted,
    }


def _price(cluster: ClusterConfig) -> str:
    """Return the price of a GPU with its provider and date, or how to give one."""
    gpu, price = cluster.gpu, cluster.price_per_gpu_hour
    if price is None:
        return (
            f"none known in USD; set cluster.price_per_gpu_hour (`simcluster catalog --kind price "
            f"{gpu.name}`)"
        )
    known = default_price(gpu)
    quoted = known is not None and (known.per_gpu_hour, known.currency) == (price, cluster.currency)
    origin = f"{known.provider}, {known.date}" if known and quoted else "of the scenario"
    return f"{price:g} {cluster.currency} per GPU and hour ({origin})"


def targets(slo: SloConfig) -> str:
    """Return the latency targets in words, a line per class where there are classes."""
    if slo.classes:
        each = {name: targets(slo.of(name)) for name in slo.classes}
        width = max(map(len, each))
        return "\n          ".join(f"{name:<{width}}  {text}" for name, text in each.items())
    own = slo.percentiles is not None
    limits = [
        f"{name} ≤ {_number(value / scale)} {unit}"
        + (f" for {100 * slo.wanted(key):g} %" if own else "")
        for name, key, value, scale, unit in (
            ("TTFT", "ttft", slo.ttft_s, 1.0, "s"),
            ("TPOT", "tpot", slo.tpot_s, MS, "ms"),
            ("P99 of ITL", "itl", slo.itl_s, MS, "ms"),
            ("end to end", "e2el", slo.e2el_s, 1.0, "s"),
        )
        if value is not None
    ]
    if not limits:
        return "none"
    metric = "" if slo.metric == "user" else f", latencies by the {slo.metric} definition"
    share = "" if own else f" for {100 * slo.attainment:g} %"
    return f"{', '.join(limits)}{share} of the requests ({slo.criterion}{metric})"


def _machines(cluster: ClusterConfig) -> str:
    nodes = f"{cluster.num_nodes} x {cluster.gpus_per_node} {cluster.gpu.name}"
    network = "none"
    if cluster.num_nodes > 1 and cluster.network is not None:
        network = f"{cluster.num_nics} x {cluster.network.name}"
    return f"{nodes} (in a node {cluster.fabric.name}, between nodes {network})"


def _requests(workload: WorkloadSettings) -> str:
    parts = []
    for key in ("trace", "lengths", "arrivals"):
        value: Any = getattr(workload, key)
        if isinstance(value, TabulatedLengths):
            value = value.table.name
        if value is not None:
            value = getattr(value, "path", getattr(value, "kind", value))
            parts.append(f"{key} {printable(str(value))}")
    if workload.num_requests is not None:
        parts.append(f"{workload.num_requests} per run")
    if workload.duration_s is not None:
        parts.append(f"{workload.duration_s:g} s per run")
    return ", ".join(parts)


def _is_swept(sweep: pd.DataFrame) -> bool:
    """Tell whether there are several rates; those of closed loops are not known."""
    return len(sweep["rate_rps"].dropna().unique()) > 1


_TextColumn = list[str]
"""One column of a table: three lines of heading, then one cell per strategy."""


def _main_table(comparison: Comparison, scenario: Scenario) -> str:
    """One row per strategy: goodput if rates were swept, and latencies at one rate."""
    sweep, slo = comparison.sweep, scenario.environment.slo
    swept = _is_swept(sweep)
    rate = representative_rate(sweep, wanted_shares(slo)) if swept else math.nan
    chosen = sweep[sweep["rate_rps"] == rate] if swept else sweep
    means = chosen.groupby("strategy", sort=False).mean(numeric_only=True)
    at_rate = {str(name): row for name, row in zip(means.index, rows_of(means), strict=True)}
    names = strategies(sweep)

    def column(heads: list[str], key: str, scale: float = 1.0) -> _TextColumn:
        values = [at_rate.get(name, {}).get(key, math.nan) / scale for name in names]
        return [*heads, *(met(v) if heads[2] == "%" else _number(v) for v in values)]

    gpus = _gpus(comparison, means, names, swept=swept)
    columns = [
        ["", "", "strategy", *map(_short, names)],
        ["", "", "GPUs", *gpus],
    ]
    if swept:
        columns += _goodput_columns(comparison, scenario)
        columns += _cost_columns(comparison, scenario, at_rate)
    else:
        columns += [column(["finished", "", "req/s"], "throughput_rps")]
        columns += [column(["good", "", "req/s"], "good_rps")]
    if slo.percentiles is None or slo.classes:
        columns.append(column(["within", "targets", "%"], "slo_attainment"))
        for key in slo.targets if len(slo.targets) > 1 else ():
            columns.append(
                column(["within", target_of(f"{key}_attainment"), "%"], f"{key}_attainment")
            )
    else:
        for key in wanted_shares(slo):
            columns.append(column(["within", target_of(key), "%"], key))
    if sweep["cached_token_share"].any():
        columns.append(column(["prompt", "cached", "%"], "cached_token_share"))
    latencies = [
        [column([name, f"P{p}", unit], f"{key}_p{p}", scale) for p in PERCENTILES]
        for name, key, scale, unit in _LATENCIES
    ]
    tables = [columns, *_packed([["", "", "strategy", *map(_short, names)]], latencies)]
    table = "\n\n".join(aligned(list(zip(*one, strict=True)), heads=3) for one in tables)
    caption = _caption(sweep, slo, rate)
    if swept and (good_to := _good_to(comparison)):
        caption += "\n" + good_to
    if any(" of " in cell for cell in gpus):
        where = "at the goodput" if swept else ""
        caption += "\n" + gpus_caption(where, "the most at a time in any run")
    return table + "\n\n" + fitted(caption, "") + _class_table(names, at_rate, slo)


def _packed(first: list[_TextColumn], groups: list[list[_TextColumn]]) -> list[list[_TextColumn]]:
    """Return tables that begin with the columns `first`, each with the groups that fit."""

    def width(columns: list[_TextColumn]) -> int:
        return sum(2 + max(map(len, column)) for column in columns) - 2

    tables, most = [first + groups[0]], table_width()
    for group in groups[1:]:
        if most is None or width(tables[-1] + group) <= most:
            tables[-1] = tables[-1] + group
        else:
            tables.append(first + group)
    return tables


def _gpus(
    comparison: Comparison, means: pd.DataFrame, names: list[str], *, swept: bool
) -> _TextColumn:
    """Return the GPUs of each strategy: held at the goodput, or in the runs there are."""
    sweep = comparison.sweep
    if swept:
        rows = comparison.goodput
        held = dict(zip(rows["strategy"], rows["mean_gpus"], strict=True))
    else:
        held = {name: float(means["mean_gpus"].loc[name]) for name in names}
    most = sweep.groupby("strategy")["num_gpus"].max().to_dict()
    return [gpus_text(held[name], int(most[name])) for name in names]


def gpus_text(held: float, most: int) -> str:
    """Return the GPUs of a strategy: a number, or the mean held of the most where they change.

    >>> gpus_text(8.0, 8), gpus_text(5.333, 8)
    ('8', '5.33 of 8')
    """
    if held == most:
        return str(most)
    return f"{_number(held)} of {most}"


def gpus_caption(where: str, most: str) -> str:
    """Return what the GPU counts mean where instances come and go.

    Parameters
    ----------
    where : str
        At which rate the GPUs held are counted; empty for that of the run.
    most : str
        What the larger number is.
    """
    return filled(
        f"GPUs x of y: instances come and go; x: held{where and ' '}{where}, mean over the "
        f"measured window; y: {most}. Figures per GPU and per cost count the GPU-hours held.",
        "",
    )


def _class_table(names: list[str], at_rate: dict[str, dict[str, Any]], slo: SloConfig) -> str:
    """Return the attainment of each class by strategy; nothing without classes."""
    if not slo.classes:
        return ""

    def rows_of_columns(columns: Sequence[str]) -> list[list[str]]:
        return [
            [_short(name), *(met(at_rate.get(name, {}).get(c, math.nan)) for c in columns)]
            for name in names
        ]

    if slo.percentiles is not None:
        wanted = wanted_shares(slo)
        heads = [["", *map(target_of, wanted)]]
        heads.append(["strategy", *(f"({100 * level:g})" for level in wanted.values())])
        title = "Requests of each class within its targets (%), and in brackets the wanted share:"
        table = aligned([*heads, *rows_of_columns(list(wanted))], heads=2)
        return "\n\n" + title + "\n\n" + table
    rows = rows_of_columns([CLASS_ATTAINMENT + one for one in slo.classes])
    title = "Requests of each class within its targets (%); the share above is the least of these:"
    return "\n\n" + title + "\n\n" + aligned([["strategy", *slo.classes], *rows])


def _goodput_columns(comparison: Comparison, scenario: Scenario) -> list[_TextColumn]:
    goodput = comparison.goodput
    currency = scenario.environment.cluster.currency
    shown = [(["goodput", "", "req/s"], "goodput_rps", 1.0)]
    intervals = _intervals(goodput) if _num_seeds(comparison.sweep) > 1 else []
    shown += [(["goodput", "per GPU", "req/s"], "goodput_rps_per_gpu", 1.0)]
    if not goodput["requests_per_cost"].isna().all():
        shown += [(["goodput", f"per {currency}", "k req"], "requests_per_cost", 1e3)]
    signs = [{"": "", "above": ">=", "below": "<"}[c] for c in goodput["censored"]]
    first, *others = [
        heads + [sign + _number(v / scale) for sign, v in zip(signs, goodput[key], strict=True)]
        for heads, key, scale in shown
    ]
    return [first, *intervals, *others]


def _cost_columns(
    comparison: Comparison, scenario: Scenario, at_rate: dict[str, dict[str, Any]]
) -> list[_TextColumn]:
    """Return the price per million output tokens at the goodputs; none where no price is known."""
    cluster = scenario.environment.cluster
    if cluster.price_per_gpu_hour is None or scenario.environment.extra_clusters:
        return []
    costs = []
    for row in rows_of(comparison.goodput):
        at: Any = {**at_rate.get(row["strategy"], {}), "mean_gpus": row["mean_gpus"]}
        known = len(at) > 1 and row["censored"] != "below"
        costs.append(_costs(at, cluster, row["goodput_rps"]) if known else [math.nan] * 2)
    heads = (["GPUs", "", f"{cluster.currency}/h"], ["output", "M tokens", cluster.currency])
    return [
        [*head, *map(_number, values)]
        for head, values in zip(heads, zip(*costs, strict=True), strict=True)
    ]


def _num_seeds(sweep: pd.DataFrame) -> int:
    return len(sweep["seed"].unique())


def _intervals(goodput: pd.DataFrame) -> list[_TextColumn]:
    """Return the column of intervals of the goodputs."""
    cells = [
        "-" if math.isnan(error) else f"{_number(max(value - error, 0))}-{_number(value + error)}"
        for value, error in zip(goodput["goodput_rps"], goodput["goodput_rps_error"], strict=True)
    ]
    return [["goodput", "interval", "req/s", *cells]]


def _good_to(comparison: Comparison) -> str:
    """Return how far the goodputs of a grid are to be trusted, in a sentence; empty if unknown."""
    goodput = comparison.goodput
    if _num_seeds(comparison.sweep) > 1:
        return (
            "Interval: what the scatter of the runs and the grid of rates leave open (about 95 %); "
            "`simcluster goodput` is surer."
        )
    error = largest_error(goodput)
    if not error:
        return ""
    return (
        f"One run per rate: each goodput is good to about {error}; "
        "`simcluster goodput` gives intervals."
    )


def largest_error(goodput: pd.DataFrame) -> str:
    """Return the largest half-width of an interval of these goodputs, as a share of its goodput.

    Parameters
    ----------
    goodput : DataFrame
        The goodputs of a comparison, with their errors (requests/s).

    Returns
    -------
    str
        Rounded up to whole per cent, as in "13 %"; empty where no error is known.
    """
    shares = (goodput["goodput_rps_error"] / goodput["goodput_rps"]).dropna()
    return "" if shares.empty else f"{math.ceil(100 * shares.max()):g} %"


def _caption(sweep: pd.DataFrame, slo: SloConfig, rate: float) -> str:
    seeds = _num_seeds(sweep)
    mean = f" Means over {seeds} seeds." if seeds > 1 else ""
    if math.isnan(rate):
        own = float(sweep["rate_rps"].iloc[0])
        offered = (
            "no offered rate (answers decide)" if math.isnan(own) else f"offered {own:.4g} req/s"
        )
        ends = {_END_OF_RATES[_until_output(row)] for row in rows_of(sweep)}
        return (
            f"Good requests finish within their targets; {offered}.{mean}\n"
            f"Both rates count what finishes up to the last {' or '.join(sorted(ends))} of a run."
        )
    if slo.percentiles is None:
        what = f"at which {100 * slo.attainment:g} % of the requests meet the targets"
    else:
        what = "at which each target is met by its wanted share of the requests"
    return (
        f"Goodput: the highest rate {what}.{mean}\n"
        f"Share within the targets and latencies: at {rate:.4g} req/s, the highest rate of the "
        "sweep that some strategy sustains (the lowest if none does)."
    )


def _attainment_tables(sweep: pd.DataFrame, slo: SloConfig) -> list[str]:
    """Attainment (%) of every strategy at every rate; of each target with percentiles."""
    if slo.percentiles is None:
        title = "Requests within the targets (%) at each offered rate (req/s):"
        return [_by_rate(sweep, "slo_attainment", title)]
    titles = {
        key: f"Requests within {target_of(key)} (%, {100 * level:g} wanted) at each offered rate "
        "(req/s):"
        for key, level in wanted_shares(slo).items()
    }
    return [_by_rate(sweep, key, title) for key, title in titles.items()]


def _by_rate(sweep: pd.DataFrame, column: str, title: str) -> str:
    """Return a share (%) of every strategy at every rate, in blocks of columns."""
    means = sweep.groupby(["strategy", "rate_rps"])[column].mean().to_dict()
    rates = sorted(sweep["rate_rps"].unique())
    blocks = []
    for start in range(0, len(rates), _RATES_PER_BLOCK):
        part = rates[start : start + _RATES_PER_BLOCK]
        head = ["strategy", *(f"{rate:.4g}" for rate in part)]
        rows = [
            [_short(name), *(met(means.get((name, rate), math.nan)) for rate in part)]
            for name in strategies(sweep)
        ]
        blocks.append(aligned([head, *rows]))
    return "\n\n".join([title, *blocks])


def _footnotes(sweep: Columns, scenario: Scenario) -> list[str]:
    """Return what a reader must know of these numbers, a paragraph each."""
    notes = [*_not_counted(sweep, scenario)]
    rejected, counted = int(sweep["num_rejected"].sum()), int(sweep["num_requests"].sum())
    if rejected:
        longest = scenario.environment.model.max_model_len
        share = "all" if rejected == counted else f"{rejected} of {counted}"
        notes.append(
            f"Rejected: {share} of the requests; prompt and output do not fit in the KV cache or "
            f"in engine.max_model_len ({longest} tokens). They count as missed."
        )
    short = int(sweep["transient"].sum()) if rejected < counted else 0
    if short:
        workload = scenario.workload
        longer = f"workload.{'duration_s' if workload.num_requests is None else 'num_requests'}"
        if workload.trace is not None and workload.num_requests is None:
            longer = "a longer trace"
        count = len(sweep["strategy"])
        runs = "The run is" if count == 1 else f"{short} of {count} runs are"
        notes.append(
            f"{runs} shorter than ten median residence times, so an overload may not show in full; "
            f"more: {longer}."
        )
    shown = set(sweep["strategy"])
    for side, what in (
        ("decode", "when the decode side has the KV cache, as users of vLLM, SGLang and Dynamo do"),
        ("prefill", "from the prefill side, before the KV cache has moved"),
    ):
        names = [
            strategy.name
            for strategy in scenario.strategies
            if strategy.name in shown and getattr(strategy, "first_token", None) == side
        ]
        if names:
            notes.append(f"{', '.join(names)}: users get the first token {what} (first_token).")
    return [filled(note, "") for note in notes]


def _not_counted(sweep: Columns, scenario: Scenario) -> Iterator[str]:
    """Say which runs count no request, and which were stopped with requests unfinished."""
    run = scenario.run
    limits = [
        f"those that arrive {text}"
        for value, text in (
            (run.warmup_s, f"before run.warmup_s = {run.warmup_s:g} s are left out"),
            (run.cooldown_s, f"in the last run.cooldown_s = {run.cooldown_s:g} s are left out"),
        )
        if value
    ]
    if run.max_time_s is not None:
        limits.append(f"run.max_time_s = {run.max_time_s:g} s stops the clock")
    empty, count = int((sweep["num_requests"] == 0).sum()), len(sweep["num_requests"])
    if empty:
        runs = "No request is" if count == 1 else f"In {empty} of {count} runs no request is"
        yield f"{runs} counted: {'; '.join(limits) or 'none arrives'}."
    ended = sweep["num_finished"] + sweep["num_rejected"]
    left = int((sweep["num_requests"] - ended).sum())
    if left and run.max_time_s is not None:
        yield (
            f"{left} of {int(sweep['num_requests'].sum())} requests had not ended when "
            f"run.max_time_s = {run.max_time_s:g} s stopped the clock: they count as missed."
        )


def aligned(rows: Sequence[Sequence[str]], heads: int = 1, left: Collection[int] = (0,)) -> str:
    """Return `rows` in columns, with a line under the heads of three or more.

    Columns that do not fit the terminal (`terminal.table_width`) go into a table below, which
    begins with the first column again; a table whose first column does not tell its rows apart
    stays whole. A column of text that is too wide beside the first alone has cells of several
    lines.

    Parameters
    ----------
    rows : sequence of sequence of str
        The heads, then the cells; a row may end early.
    heads : int
        Rows of heads.
    left : collection of int
        Columns of text, which stand to the left; numbers stand to the right.
    """
    widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(rows[0]))]
    names = [row[0] for row in rows[heads:]]
    most = table_width() if len(set(names)) == len(names) else None
    parts = _that_fit(widths, most)
    return "\n\n".join(
        _one_table(*_narrow(rows, left, widths, part, most), heads, left, part) for part in parts
    )


def _narrow(
    rows: Sequence[Sequence[str]],
    left: Collection[int],
    widths: Sequence[int],
    columns: Sequence[int],
    most: int | None,
) -> tuple[Sequence[Sequence[str]], Sequence[int]]:
    """Return rows and widths of a table whose last column, of text, takes no more than is left."""
    last = columns[-1]
    room = 0 if most is None else most - sum(widths[i] + 2 for i in columns[:-1])
    if last not in left or len(columns) < 2 or not _LEAST_ROOM <= room < widths[last]:
        return rows, widths
    lines: list[Sequence[str]] = []
    for row in rows:
        cell = row[last] if last < len(row) else ""
        for number, part in enumerate(textwrap.wrap(cell, room, break_on_hyphens=False) or [""]):
            own = [*row] if not number else [""] * len(row)
            own[last:] = [part]
            lines.append(own)
    return lines, [room if i == last else width for i, width in enumerate(widths)]


def _that_fit(widths: Sequence[int], most: int | None) -> list[list[int]]:
    """Return the columns of each table: the first, and as many others as fit."""
    parts = [[0]]
    for i in range(1, len(widths)):
        width = sum(widths[k] + 2 for k in [*parts[-1], i]) - 2
        if most is not None and width > most and len(parts[-1]) > 1:
            parts.append([0])
        parts[-1].append(i)
    return parts


def _one_table(
    rows: Sequence[Sequence[str]],
    widths: Sequence[int],
    heads: int,
    left: Collection[int],
    columns: Sequence[int],
) -> str:
    lines = [
        "  ".join(
            row[i].ljust(widths[i]) if i in left else row[i].rjust(widths[i])
            for i in columns
            if i < len(row)
        ).rstrip()
        for row in rows
    ]
    if len(rows[0]) > 2:
        lines.insert(heads, "-" * max(map(len, lines)))
    return "\n".join(lines)


def _short(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else name[: _NAME_WIDTH - 3] + "..."


def _number(value: float) -> str:
    """Three significant digits, but no more than three decimals; an exponent from a million on."""
    if math.isnan(value):
        return "-"
    if abs(value) >= 1e6:
        return f"{value:.2e}"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{min(3, max(0, digits))}f}"


def served(scenario: Scenario) -> str:
    """Return model and machines in a few words."""
    cluster = scenario.environment.cluster
    return f"{scenario.environment.model.spec.name} on {cluster.num_gpus} x {cluster.gpu.name}"


def _about(scenario: Scenario) -> str:
    """Return model, machines and targets, for the top of a picture."""
    slo = scenario.environment.slo
    wanted = "targets by class" if slo.classes else targets(slo)
    return f"{served(scenario)}; {wanted.partition(' of the requests')[0]}"


def write_figures(
    comparison: Comparison,
    out: Path,
    rate_rps: float | None = None,
    seed: int | None = None,
    *,
    fmt: PictureFormat = "png",
    columns: Literal[1, 2] | None = None,
) -> list[Path]:
    """Draw the figures of a comparison (`plot.render_comparison`) and return their files.

    Where KV moves between instances, ``links.png`` shows links and transfers.

    Parameters
    ----------
    comparison : Comparison
        What to draw.
    out : Path
        Folder of the pictures.
    rate_rps, seed : float, int, optional
        Runs to draw latencies, queues and KV usage of; default: the rate of the table, and the
        first seed.
    fmt : str
        ``"png"``, ``"svg"`` or ``"pdf"``.
    columns : int, optional
        Width in columns of a paper; default: as on a screen.

    Raises
    ------
    DataError
        If there is no such run, or the folder cannot be written.
    """
    from simcluster.show.plot import for_paper, render_comparison
    from simcluster.show.plot_links import figure_of_links

    scenario = comparison.scenario
    slo = scenario.environment.slo
    if rate_rps is None and not comparison.sweep["rate_rps"].isna().all():
        rate_rps = representative_rate(comparison.sweep, wanted_shares(slo))
    seed = comparison.cells()[0].seed if seed is None else seed
    names = strategies(comparison.sweep)
    try:
        written = render_comparison(
            comparison.sweep,
            {name: comparison.requests(name, rate_rps, seed) for name in names},
            {name: comparison.spans(name, rate_rps, seed) for name in names},
            slo,
            out,
            instances_by_strategy={
                name: comparison.instances(name, rate_rps, seed) for name in names
            },
            run=scenario.run,
            title="" if rate_rps is None else f"{rate_rps:g} requests/s",
            about=_about(scenario),
            fmt=fmt,
            columns=columns,
        )
        transfers = {name: comparison.transfers(name, rate_rps, seed) for name in names}
        transfers = {name: frame for name, frame in transfers.items() if len(frame)}
        if transfers:
            links = {name: comparison.links(name, rate_rps, seed) for name in transfers}
            written.append(out / f"links.{fmt}")
            figure = figure_of_links(links, transfers)
            (figure if columns is None else for_paper(figure, 2)).savefig(written[-1])
        return written
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error.strerror or error}). Give another folder with -o."
        ) from None


def catalog_text(entries: Sequence[Entry]) -> str:
    """Return entries of the catalogue as a list, with their sources if they are few."""
    width = max(len(entry.name) for entry in entries)
    lines = []
    for entry in entries:
        name = f"{entry.kind:<8}{entry.name:<{width}}  "
        lines.append(hanging(name, entry.summary))
        if len(entries) <= _FEW:
            lines.append(filled(f"source: {entry.source}", 8 * " ", 8 * " "))
    return "\n".join(lines) + "\n"


def model_text(spec: ModelSpec) -> list[str]:
    """Return what a model's shape and its checkpoint come to, in lines."""
    served = ModelConfig(spec=spec, max_model_len=spec.max_position)
    dtypes = sorted({dtype.name for layer in spec.each_layer for dtype in layer.dtypes_in_use})
    return [
        f"{spec.name}: {spec.num_params / 1e9:.2f} billion parameters "
        f"({spec.num_params:,} without biases and learned positions)",
        f"Weights: {served.weight_bytes / GB:.2f} GB as stored ({', '.join(dtypes)})",
        f"KV cache: {spec.kv_bytes_per_token:,} bytes per token (16 bit, all layers)",
        *(f"Note: {note}" for note in spec.notes),
    ]


# Rows for programs ------------------------------------------------------------------------------


def as_json(comparison: Comparison, *, swept: bool) -> dict[str, Any]:
    """Return the results as plain values for ``json.dumps``: NaN as None."""
    rows = []
    for row in comparison.rows:
        plain: dict[str, Any] = {
            key: row[key]
            for key in (
                "strategy",
                "rate_rps",
                "seed",
                "num_requests",
                "slo_attainment",
                "good_rps",
            )
        }
        metrics = ("ttft_s", "tpot_s", "itl_s", "e2el_s")
        for metric in metrics:
            plain[metric] = {stat: row[f"{metric}_{stat}"] for stat in STATISTICS}
        rest = {k: v for k, v in row.items() if k not in plain and not k.startswith(metrics)}
        rows.append(_plain({**plain, **rest}))
    environment, run = comparison.scenario.environment, comparison.scenario.run
    result: dict[str, Any] = {"rows": rows, "step_times": step_times_of(environment)}
    if notes := all_notes(comparison.scenario):
        result["notes"] = notes
    if environment.extra_models and len(rows) == 1 and run.recorder == "frames":
        groups = group_summaries(comparison.frames(comparison.cells()[0]), environment, run)
        result["pools"] = [_plain(dataclasses.asdict(group)) for group in groups]
    if swept:
        goodput = rows_of(comparison.goodput)
        price = environment.cluster.price_per_gpu_hour
        if price is None:
            for row in goodput:
                del row["requests_per_cost"]
        result["goodput"] = [
            _plain({**row, "censored": row["censored"] or None}) for row in goodput
        ]
        if price is not None:
            result["currency"] = environment.cluster.currency
            result["price_per_gpu_hour"] = price
    return result


def _plain(value: Any) -> Any:
    """Return `value` as JSON can hold it."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and math.isnan(value) else value
