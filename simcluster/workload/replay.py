"""Requests of a trace file: its arrivals, its lengths, or both."""

from __future__ import annotations

import functools
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self

import numpy as np
from pydantic import Field

from simcluster.config import Settings
from simcluster.errors import ConfigError, DataError, printable
from simcluster.units import IntArray
from simcluster.workload.base import ArrivalTimes, Offer, joined
from simcluster.workload.formats import TimeUnit, TraceFormat
from simcluster.workload.recognise import TraceOptions, mean_rate_rps
from simcluster.workload.traces import ALL, Trace, read_trace
from simcluster.workload.turns import TurnLengths

MAX_TRACE_S: Final = 1e9
"""Longest trace of which a window can be cut (s): 32 years."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFile(Settings):
    """A trace file, or a window of it."""

    key: ClassVar[str] = "workload.trace"

    path: Annotated[str, Field(min_length=1)]
    """Trace file, from the scenario's folder: CSV, JSON lines, a JSON array or Parquet; text may be
    gzip."""
    format: TraceFormat = "auto"
    """Published format of the file; auto tells it by its columns."""
    time_unit: TimeUnit | None = None
    """Unit of its times; default: that of the format."""
    block_size: Annotated[int | None, Field(ge=1, le=1 << 20)] = None
    """Tokens of a block that has an id; default: that of the format."""
    turns: TurnLengths = "auto"
    """What the prompt length of a later turn of a session is: whole, or added to the turn before
    and its answer; auto tells it by lengths and ids."""
    start_s: Annotated[float, Field(ge=0, le=MAX_TRACE_S)] = 0.0
    """Leave out what arrives earlier (s since the first request)."""
    end_s: Annotated[float | None, Field(gt=0, le=MAX_TRACE_S)] = None
    """Leave out what arrives from then on (s since the first request)."""

    def __post_init__(self) -> None:
        """Check that the window has a length."""
        if self.end_s is not None and self.end_s <= self.start_s:
            raise ConfigError(
                f"{self.key}.end_s",
                self.end_s,
                f"must be after start_s ({self.start_s:g})",
                "Raise the first or lower the second.",
            )

    def with_base(self, folder: Path) -> Self:
        """Return the same with a relative path taken from `folder`."""
        return replace(self, path=joined(folder, self.path))

    def read(self, *, arrivals: bool = True) -> Trace:
        """Read the window of the file; arrivals count from its first request.

        The last files that were read are kept, so that the runs of a sweep do not read them again.

        Parameters
        ----------
        arrivals : bool
            Read the arrivals; a window needs them in any case.

        Raises
        ------
        DataError
            If the file cannot be used, or no request is in the window.
        """
        window_s = (self.start_s, math.inf if self.end_s is None else self.end_s)
        options = TraceOptions(
            format=self.format,
            time_unit=self.time_unit,
            block_size=self.block_size,
            turns=self.turns,
        )
        return _read(Path(self.path), file_state(self.path), options, window_s, arrivals)

    def notes(self) -> tuple[str, ...]:
        """Return what a reader of results should know about the file; it is read."""
        return _notes(self.read())


def _notes(trace: Trace) -> tuple[str, ...]:
    return f"{printable(trace.file.name)}: {trace.summary}", *trace.notes


def file_state(path: str) -> tuple[int, ...]:
    """Return what changes with a file: size and times; nothing where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return ()
    return status.st_size, status.st_mtime_ns, status.st_ino


@functools.lru_cache(maxsize=2)
def _read(
    path: Path,
    state: tuple[int, ...],
    options: TraceOptions,
    window_s: tuple[float, float],
    arrivals: bool,
) -> Trace:
    trace = read_trace(path, options, arrivals=arrivals or window_s != ALL, window_s=window_s)
    for array in (trace.arrival_s, trace.prompt_len, trace.output_len):
        if array is not None:
            array.setflags(write=False)
    return trace


@dataclass(frozen=True, slots=True)
class RowLengths:
    """The lengths of given requests, in their order."""

    prompt_len: IntArray
    output_len: IntArray
    """Tokens, shape ``(n,)``; at most n can be drawn."""

    def draw(self, num_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Return prompt and output lengths (tokens) of the first `num_requests`."""
        return self.prompt_len[:num_requests], self.output_len[:num_requests]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceArrivals(TraceFile):
    """The arrivals of a trace, and its lengths unless others are asked for.

    Without a rate of the workload or the sweep the trace is replayed as it stands; with one all
    its gaps are scaled so that the mean rate of the requests used is that rate.
    """

    key: ClassVar[str] = "workload.arrivals"
    has_lengths: ClassVar[bool] = True

    kind: Literal["trace"] = "trace"

    def draw(self, offer: Offer, seed: int) -> ArrivalTimes:
        """Return the arrivals of the trace (see `ArrivalProcess`)."""
        trace = self.read()
        if trace.turns is not None and offer.rate_rps is not None:
            raise ConfigError(
                "workload.rate_rps",
                offer.rate_rps,
                f"turns of {self.path} wait for answers, so that the rate is a result",
                "Leave the rates out.",
            )
        arrival_s, turns = trace.arrival_s, trace.turns
        assert arrival_s is not None
        if offer.num_requests is not None:
            if offer.num_requests > len(arrival_s):
                raise ConfigError(
                    "workload.num_requests",
                    offer.num_requests,
                    f"{self.path} has {len(arrival_s)} requests"
                    + (" in the window" if self.start_s > 0 or self.end_s is not None else ""),
                    "Lower it, or leave it out to use them all.",
                )
            arrival_s = arrival_s[: offer.num_requests]
        rate_rps = None if turns is not None else mean_rate_rps(arrival_s)
        if offer.rate_rps is not None:
            if rate_rps is None:
                raise DataError(
                    f"{self.path}: all {len(arrival_s)} requests arrive at once, so they cannot "
                    f"be scaled to {offer.rate_rps:g} requests/s. Leave out the rate, or use more "
                    "of the trace."
                )
            arrival_s = arrival_s * (rate_rps / offer.rate_rps)
            rate_rps = offer.rate_rps
        if offer.duration_s is not None:
            late = arrival_s >= offer.duration_s
            if turns is not None:
                late &= turns.after[: len(late)] < 0  # whole sessions, as they begin
            arrival_s = arrival_s[: np.argmax(late) if late.any() else len(late)]
        return ArrivalTimes(
            arrival_s=arrival_s,
            rate_rps=rate_rps,
            lengths=RowLengths(trace.prompt_len, trace.output_len),
            hashes=trace.hashes,
            turns=None if turns is None else turns.of_requests(0, len(arrival_s)),
            notes=_notes(trace),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceReplay(TraceArrivals):
    """The arrivals and lengths of ``workload.trace``."""

    key: ClassVar[str] = "workload.trace"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceLengths(TraceFile):
    """The lengths of a trace with the arrivals of something else; prompt and output stay pairs."""

    key: ClassVar[str] = "workload.lengths"

    kind: Literal["trace"] = "trace"
    order: Literal["file", "sampled"] = "file"
    """file: row after row; sampled: rows drawn at random, with repetition."""

    def notes(self) -> tuple[str, ...]:
        """Return what a reader of results should know about the file; it is read."""
        return _notes(self.read(arrivals=False))

    def draw(self, num_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Return prompt and output lengths (tokens).

        Raises
        ------
        ConfigError
            If the file has fewer rows than requests and they are taken in order.
        """
        trace = self.read(arrivals=False)
        num_rows = len(trace.prompt_len)
        if self.order == "sampled":
            rows = rng.integers(num_rows, size=num_requests)
            return trace.prompt_len[rows], trace.output_len[rows]
        if num_requests > num_rows:
            raise ConfigError(
                "workload.lengths.order",
                self.order,
                f"{self.path} has {num_rows} rows for {num_requests} requests",
                'Set order = "sampled", or ask for fewer requests.',
            )
        return trace.prompt_len[:num_requests], trace.output_len[:num_requests]
