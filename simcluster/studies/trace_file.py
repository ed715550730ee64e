"""A trace file at a glance: its format, rates, lengths and prefix reuse, as text or a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from simcluster.catalog.toml_writer import to_toml
from simcluster.errors import DataError, printable
from simcluster.show.terminal import filled
from simcluster.show.text import aligned
from simcluster.studies.prefix_reuse import replay
from simcluster.units import FloatArray, IntArray
from simcluster.workload import Workload
from simcluster.workload.formats import DATES, LAYOUTS
from simcluster.workload.recognise import mean_rate_rps
from simcluster.workload.replay import TraceFile
from simcluster.workload.traces import Trace

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_REPLAYED: Final = 50_000
"""Prefix reuse is taken from this many requests at most, the first ones (about 5 s)."""
MAX_CONTEXT_LEN: Final = 1 << 24
"""Requests of more tokens than any model takes are left out of it."""
_BARS: Final = 12
_BAR_WIDTH: Final = 50


def rate_over_time(clock_s: FloatArray, most: int) -> tuple[FloatArray, FloatArray]:
    """Return the rate of arrivals in equal parts of their span.

    Parameters
    ----------
    clock_s : ndarray of float64
        Arrivals (s), sorted, the first at 0; shape ``(n,)``.
    most : int
        Parts, at most; never more than there are gaps.

    Returns
    -------
    edges_s, rate_rps : ndarray of float64
        Edges (s), shape ``(parts + 1,)``, and gaps that end in each part over its length
        (requests/s), shape ``(parts,)``, so that their mean is the mean rate. Both are empty where
        all requests arrive at once.
    """
    if mean_rate_rps(clock_s) is None:
        return np.empty(0), np.empty(0)
    edges_s = np.linspace(0.0, clock_s[-1], min(most, len(clock_s) - 1) + 1)
    ended = np.searchsorted(clock_s, edges_s, side="right") - 1
    ended[0] = 0  # gaps of 0 at the start are of the first part
    return edges_s, np.diff(ended) / np.diff(edges_s)


def facts(trace: Trace) -> dict[str, Any]:
    """Return what is known of a trace, as JSON has it.

    Returns
    -------
    dict
        ``file``, ``format``, ``source`` (where the format is published), ``time_unit`` (``"date"``
        for dates), ``block_size`` (tokens; None without ids), ``num_requests``, ``num_sessions``
        (None where no request waits for an answer), ``span_s``, ``rate_rps`` and ``gap_cv``
        (coefficient of variation of the gaps) of all requests, or of first turns; ``prompt_len``
        and ``output_len`` (tokens: mean, p50, p90, p99, max); ``reused_token_share`` (0 to 1, of
        the prompt tokens of the first `MAX_REPLAYED` requests, in one cache without end; None
        without ids); ``notes``.
    """
    clock_s, hashes = trace.clock_s, trace.hashes
    gaps_s = np.diff(clock_s)
    return {
        "file": str(trace.file),
        "format": trace.format,
        "source": next(one.source for one in LAYOUTS if one.format == trace.format),
        "time_unit": trace.time_unit,
        "block_size": None if hashes is None else hashes.tokens_per_id,
        "num_requests": len(trace.prompt_len),
        "num_sessions": None if trace.turns is None else len(clock_s),
        "span_s": float(clock_s[-1]) if len(clock_s) else 0.0,
        "rate_rps": trace.rate_rps,
        "gap_cv": None if trace.rate_rps is None else float(gaps_s.std() / gaps_s.mean()),
        "prompt_len": _statistics(trace.prompt_len),
        "output_len": _statistics(trace.output_len),
        "reused_token_share": None if hashes is None else _reused(trace),
        "notes": list(trace.notes),
    }


def _statistics(tokens: IntArray) -> dict[str, float]:
    quantiles = np.quantile(tokens, [0.5, 0.9, 0.99]).tolist()
    names = ("mean", "p50", "p90", "p99", "max")
    return dict(zip(names, [float(tokens.mean()), *quantiles, float(tokens.max())], strict=True))


def _reused(trace: Trace) -> float:
    """Return the share of the prompt tokens that one cache without end would hold."""
    count = min(len(trace.prompt_len), MAX_REPLAYED)
    assert trace.hashes is not None
    workload = Workload(
        arrival_s=np.zeros(count),
        prompt_len=trace.prompt_len[:count],
        output_len=trace.output_len[:count],
        rejected=(trace.prompt_len + trace.output_len)[:count] > MAX_CONTEXT_LEN,
        hashes=trace.hashes.of_requests(0, count),
    )
    return replay(workload, block_size=trace.hashes.tokens_per_id).token_share


def trace_text(told: TraceFile, trace: Trace, known: dict[str, Any]) -> str:
    """Return `facts` as text: tables, bars of the rate over time, and the line for a scenario."""
    kind = f"{printable(trace.file.name)}: {trace.summary}"
    parts = [
        filled(kind) + f"\nFormat: {known['source']}",
        aligned(_counts(known)),
        aligned([["tokens", "mean", "P50", "P90", "P99", "max"], *_lengths(known)]),
    ]
    if bars := _bars(trace.clock_s, "sessions" if trace.turns is not None else "requests"):
        parts.append(bars)
    if trace.notes:
        notes = (filled(f"- {note}") for note in trace.notes)
        parts.append("\n".join(["Assumed, left out or not simulated:", *notes]))
    parts.append(f"In a scenario:\n\n[workload]\n{scenario_line(told, trace)}")
    return "\n\n".join(parts) + "\n"


def _counts(known: dict[str, Any]) -> list[list[str]]:
    """Return the rows of counts and rates that are known."""
    what = "requests" if known["num_sessions"] is None else "sessions"
    rows = [("requests", known["num_requests"], ",d"), ("sessions", known["num_sessions"], ",d")]
    rows += [(f"span of {what} (s)", known["span_s"], ".4g")]
    rows += [(f"mean rate ({what}/s)", known["rate_rps"], ".3g")]
    rows += [("coefficient of variation of the gaps (1: Poisson)", known["gap_cv"], ".2f")]
    if (share := known["reused_token_share"]) is not None:
        some = known["num_requests"] > MAX_REPLAYED
        of = f" of the first {MAX_REPLAYED:,}" if some else ""
        rows += [(f"prompt tokens{of} that a cache without end holds (%)", 100 * share, ".1f")]
    return [[label, format(value, spec)] for label, value, spec in rows if value is not None]


def _lengths(known: dict[str, Any]) -> list[list[str]]:
    return [
        [name, *(f"{value:,.0f}" for value in known[f"{name}_len"].values())]
        for name in ("prompt", "output")
    ]


def _bars(clock_s: FloatArray, what: str) -> str:
    """Return the rate over time as lines of text; nothing where all arrive at once."""
    edges_s, rate_rps = rate_over_time(clock_s, _BARS)
    if not len(rate_rps):
        return ""
    lengths = np.rint(_BAR_WIDTH * rate_rps / rate_rps.max()).astype(int)
    rows = [
        [f"{start:.4g}", f"{rate:.3g}", "#" * int(length)]
        for start, rate, length in zip(edges_s[:-1], rate_rps, lengths, strict=True)
    ]
    return aligned([["from (s)", f"{what}/s", ""], *rows], left=(2,))


def scenario_line(told: TraceFile, trace: Trace) -> str:
    """Return the key of ``[workload]`` that reads `trace` as it was read, format and unit told."""
    keys: dict[str, Any] = {"path": told.path, "format": trace.format}
    if trace.time_unit != DATES:
        keys["time_unit"] = trace.time_unit
    if trace.hashes is not None:
        keys["block_size"] = trace.hashes.tokens_per_id
    if told.turns != "auto":
        keys["turns"] = told.turns
    if told.start_s:
        keys["start_s"] = told.start_s
    keys["end_s"] = told.end_s
    return f"trace = {{ {', '.join(to_toml(keys).splitlines())} }}"


def figure(trace: Trace) -> Figure:
    """Return a picture of a trace: its rate over time, and the distribution of its lengths."""
    from simcluster.show.colours import COLOURS
    from simcluster.show.plot import as_written, new_figure

    drawn = new_figure(height=5.4)
    above, below = drawn.subplots(2, 1)
    edges_s, rate_rps = rate_over_time(trace.clock_s, 120)
    what = "requests" if trace.turns is None else "sessions"
    above.stairs(rate_rps, edges_s if len(edges_s) else np.zeros(1), color=COLOURS[0], fill=True)
    above.set(xlabel="time (s)", ylabel=f"{what}/s", title=as_written(trace.file.name))
    for colour, (name, tokens) in zip(
        COLOURS, (("prompt", trace.prompt_len), ("output", trace.output_len)), strict=False
    ):
        below.ecdf(tokens, label=name, color=colour)
    below.set(xscale="log", xlabel="tokens", ylabel="share of requests")
    below.legend(frameon=False)
    return drawn


def write_figure(trace: Trace, out: Path) -> None:
    """Write `figure` to a file; its ending says the kind.

    Raises
    ------
    DataError
        If it cannot be written.
    """
    try:
        figure(trace).savefig(out)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise DataError(f"{out}: cannot be written ({reason}). Give a .png file with -o.") from None
