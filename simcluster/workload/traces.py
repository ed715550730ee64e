"""Reader of request traces: the requests of a file, checked.

What a file does not prove and nobody told is said in `Trace.notes`. Every refusal is one line:
file, line, column, value, rule, remedy. `simcluster.workload.formats` lists the formats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np

from simcluster.errors import DataError, printable
from simcluster.units import US, FloatArray, IntArray, grid_array
from simcluster.workload.base import MAX_NUM_REQUESTS, MAX_TOKENS, BoolArray
from simcluster.workload.block_ids import IdColumn
from simcluster.workload.cells import MEND, dates, id_lists, ids_of_tokens, numbers
from simcluster.workload.files import bad_cell
from simcluster.workload.formats import DATES, UNITS_S, Layout
from simcluster.workload.hashes import BlockHashes
from simcluster.workload.recognise import (
    USUAL_RPS,
    TraceOptions,
    Understood,
    mean_rate_rps,
    understood,
)
from simcluster.workload.records import Chunk, chunks
from simcluster.workload.turns import Sessions, Turns, added_up, are_whole, conversation_hashes

ALL: Final = (0.0, math.inf)
"""Window (s) of a whole trace."""
MAX_STAMP_S: Final = 4e9
"""Time stamps (s) further away are refused."""
_SHOWN: Final = 6


@dataclass(frozen=True, slots=True)
class Trace:
    """The requests of a trace file."""

    file: Path
    """Where they were read."""
    format: str
    time_unit: str
    """Its format, and the unit of its times (`formats.DATES` for dates)."""
    arrival_s: FloatArray | None
    """Arrivals (s) since the first request, sorted, shape ``(n,)``; of a turn that waits for an
    answer the earliest one, wherever it stands. None where they were not asked for."""
    prompt_len: IntArray
    output_len: IntArray
    """Tokens, each >= 1, shape ``(n,)``."""
    hashes: BlockHashes | None = None
    """Ids of the prompts' blocks, where the file has any."""
    turns: Turns | None = None
    """Which requests wait for the answer to another; None where none does."""
    notes: tuple[str, ...] = ()
    """What was assumed, what was left out, and what of the file is not simulated."""

    @property
    def clock_s(self) -> FloatArray:
        """Arrivals (s) of the requests that wait for no answer; empty where none were read."""
        if self.arrival_s is None:
            return np.empty(0)
        return self.arrival_s if self.turns is None else self.arrival_s[self.turns.after < 0]

    @property
    def rate_rps(self) -> float | None:
        """Gaps over time (requests/s) of `clock_s`; None where all arrive at once."""
        return mean_rate_rps(self.clock_s)

    @property
    def summary(self) -> str:
        """Format, unit, block size, requests, time and rate, in words."""
        stamps = "dates" if self.time_unit == DATES else f"times in {self.time_unit}"
        parts = [f"{self.format}, {stamps}"] if self.arrival_s is not None else [self.format]
        if self.hashes is not None:
            parts.append(f"blocks of {self.hashes.tokens_per_id} tokens")
        counts, what = _count(len(self.prompt_len), "request"), "requests"
        if self.turns is not None:
            counts += f" in {_count(len(self.clock_s), 'session')}"
            what = "sessions"
        if self.rate_rps is not None:
            counts += f" over {self.clock_s[-1]:.4g} s ({self.rate_rps:.3g} {what}/s)"
        return f"{', '.join(parts)}; {counts}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def read_trace(
    file: Path,
    options: TraceOptions | None = None,
    *,
    arrivals: bool = True,
    window_s: tuple[float, float] = ALL,
) -> Trace:
    """Read a trace.

    Parameters
    ----------
    file : Path
        CSV, JSON lines, a JSON array or Parquet; text may be gzip.
    options : TraceOptions, optional
        What is known of it; by default it is told by its columns.
    arrivals : bool
        Read the arrivals; without them a file of lengths alone will do.
    window_s : tuple of float
        Start (in) and end (out) of what is wanted (s since the first request). Rows behind it are
        not read where the format is sorted. Sessions count by their first turn.

    Returns
    -------
    Trace
        Arrivals count from the first request of the window. It may be longer than the time grid.

    Raises
    ------
    DataError
        If the file cannot be read, is empty, is known to be something else, lacks a column or is
        ambiguous; if it holds something that is no number, arrivals that go back, a length below 1
        or ids of blocks that the prompt does not have; or if no request is in the window.
    """
    source = chunks(file)
    first = next(source, None)
    if first is None:
        raise DataError(f"{file}: no request in it. Name a file with one row per request.")
    known = understood(file, options or TraceOptions(), first, arrivals=arrivals)
    rows = _Rows(file, known, arrivals=arrivals, window_s=window_s)
    for chunk in chain([first], source):
        rows.add(chunk)
        if rows.is_past:
            break
    if not rows.num_seen:
        raise DataError(f"{file}: no request in it. Name a file with one row per request.")
    if not rows.num_kept:
        raise DataError(
            f"{file}: no request from {window_s[0]:g} s on"
            + (f" and before {window_s[1]:g} s" if window_s[1] < math.inf else "")
            + f" (start_s, end_s); the file has times from 0 to {rows.last_s:g} s."
        )
    trace = rows.trace()
    if known.layout.session is not None:
        trace = _with_sessions(trace, rows, options or TraceOptions(), window_s)
    elif known.layout.sorts and trace.arrival_s is not None:
        trace = _sorted(trace)
    if trace.arrival_s is not None:
        trace = replace(trace, arrival_s=trace.arrival_s - trace.clock_s[0])
    return replace(trace, notes=(*trace.notes, *_doubts(trace, options or TraceOptions())))


class _Rows:
    """The rows of a trace that were read, column by column."""

    def __init__(
        self, file: Path, known: Understood, *, arrivals: bool, window_s: tuple[float, float]
    ) -> None:
        self._file, self._known, self._arrivals = file, known, arrivals
        self.layout = known.layout
        self._window_s = window_s
        self.num_seen = self.num_kept = 0
        self.last_s = -math.inf
        self.is_past = False
        self.labels: list[Any] = []
        self.waits_s: list[FloatArray] = []
        self.lines: list[int] = []
        self._origin: float | None = None
        self._columns: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
        self._ids = IdColumn()
        self._codes: dict[tuple[Any, ...], int] = {}
        self._num_failed = self._num_images = self._num_with_images = 0
        self._short_ids = self._with_ids = 0
        self._unused: dict[str, None] = {}

    def add(self, chunk: Chunk) -> None:
        """Check some rows, and keep those in the window."""
        layout = self._known.layout
        self._unused |= dict.fromkeys(n for n in chunk.columns if n not in layout.read)
        if layout.sub_requests in chunk.columns:
            chunk = _one_a_turn(self._file, chunk, layout)
        self.num_seen += len(chunk.lines)
        if not len(chunk.lines):
            return
        prompts, outputs = (self._tokens(chunk, name) for name in (layout.prompt, layout.output))
        keep = (prompts >= 1) & (outputs >= 1)
        if self._arrivals:
            times_s = self._times_s(chunk)
            inside = np.ones_like(keep)
            if layout.session is None:
                inside = (times_s >= self._window_s[0]) & (times_s < self._window_s[1])
                self.is_past = not layout.sorts and bool(times_s[-1] >= self._window_s[1])
            self._num_failed += int(np.count_nonzero(~keep & inside))
            keep &= inside
            self._columns[0].append(times_s[keep])
        else:
            self._num_failed += int(np.count_nonzero(~keep))
        kept = np.flatnonzero(keep)
        self.num_kept += len(kept)
        if self.num_kept > MAX_NUM_REQUESTS:
            raise DataError(
                f"{self._file}: more than {MAX_NUM_REQUESTS:,} requests. Take a window of it "
                "(start_s, end_s)."
            )
        self._columns[1].append(prompts[kept])
        self._columns[2].append(outputs[kept])
        self._add_ids(chunk, kept, prompts)
        if layout.images is not None:
            images = numbers(self._file, chunk, layout.images, "must be a number")[kept]
            self._num_images += int(images.sum())
            self._num_with_images += int(np.count_nonzero(images))
        if layout.session is not None:
            self._add_session(chunk, kept)

    def _tokens(self, chunk: Chunk, name: str) -> IntArray:
        """Return the lengths in one column (tokens), checked; 0 of requests that failed."""
        rule = f"must be a whole number of tokens from 1 to {MAX_TOKENS}"
        values = numbers(self._file, chunk, name, rule)
        least = 0 if self._known.layout.is_log else 1
        right = (values >= least) & (values <= MAX_TOKENS) & (values == np.rint(values))
        self._require(chunk, name, right, rule, MEND)
        return values.astype(np.int64)

    def _require(self, chunk: Chunk, name: str, right: BoolArray, rule: str, remedy: str) -> None:
        """Refuse the first cell of a column that is not right."""
        if not right.all():
            at = int(np.argmin(right))
            cell = chunk.cells(name)[at]
            raise bad_cell(self._file, chunk.lines[at], name, cell, rule, remedy)

    def _times_s(self, chunk: Chunk) -> FloatArray:
        """Return the times of some rows (s since the first row); NaN where a turn has none."""
        layout, unit, name = self._known.layout, self._known.unit, self._known.layout.arrival
        if unit == DATES:
            stamps, unit_s = dates(self._file, chunk, name), US
        else:
            missing = None if layout.session is None else math.nan
            stamps = numbers(self._file, chunk, name, "must be a time", missing)
            unit_s = UNITS_S[unit]
        if self._origin is None:
            self._origin = 0.0 if layout.session is not None else float(stamps[0])
        times_s = (stamps - self._origin) * unit_s
        rule = f"must be within {MAX_STAMP_S:g} s (126 years) of the first time, or of 1970"
        self._require(chunk, name, ~(np.abs(times_s) > MAX_STAMP_S), rule, MEND)
        if not layout.sorts:
            rule, remedy = "is earlier than the row before", f"Sort the file by {name}."
            self._require(chunk, name, np.diff(times_s, prepend=self.last_s) >= 0, rule, remedy)
        self.last_s = float(np.fmax.reduce(times_s, initial=self.last_s))
        return times_s

    def _add_ids(self, chunk: Chunk, kept: IntArray, prompts: IntArray) -> None:
        """Add the block ids of the kept rows."""
        layout, size = self._known.layout, self._known.block_size
        if layout.token_ids in chunk.columns and layout.token_ids is not None:
            names = (layout.token_ids, layout.prompt)
            rows = ids_of_tokens(self._file, chunk, names, size, self._codes)
        elif layout.ids in chunk.columns and layout.ids is not None:
            rows = id_lists(self._file, chunk, layout.ids)
        else:
            self._ids.skip(len(kept))
            return
        num_ids = np.fromiter(map(len, rows), np.int64, len(rows))
        size = max(size, 1)
        fits = num_ids <= -(-prompts // size)
        if not fits.all():
            at = int(np.argmin(fits))
            raise DataError(
                f"{self._file} line {chunk.lines[at]}, {layout.ids}: {num_ids[at]} ids, but a "
                f"prompt of {prompts[at]} tokens has {-(-prompts[at] // size)} blocks of {size}. "
                "Set block_size, or mend or drop the row."
            )
        self._short_ids += int(np.count_nonzero((num_ids < prompts // size)[kept]))
        self._with_ids += int(np.count_nonzero(num_ids[kept]))
        self._ids.add([rows[at] for at in kept])

    def _add_session(self, chunk: Chunk, kept: IntArray) -> None:
        """Add whose turn each kept row is, and how long it waits."""
        layout = self._known.layout
        assert layout.session is not None
        assert layout.delay is not None
        labels = chunk.cells(layout.session)
        sound = np.array([one is None or isinstance(one, str | int | tuple) for one in labels])
        self._require(chunk, layout.session, sound, "must be a text or a whole number", MEND)
        self.labels += [labels[at] for at in kept]
        self.lines += [chunk.lines[at] for at in kept]
        waits = numbers(self._file, chunk, layout.delay, "must be a time", 0.0)
        self._require(chunk, layout.delay, waits >= 0, "must be 0 or more", MEND)
        self.waits_s.append(waits[kept] * UNITS_S[self._known.unit])

    def trace(self) -> Trace:
        """Return the requests in the order of the file."""
        times, prompts, outputs = (np.concatenate(part) if part else None for part in self._columns)
        assert prompts is not None
        assert outputs is not None
        hashes = None
        if self._with_ids:
            starts = np.concatenate([[0], self._ids.ends])
            ids = self._ids.prefixes()
            hashes = BlockHashes.of_ids(ids, starts, prompts, self._known.block_size)
        known = self._known
        return Trace(
            self._file, known.layout.format, known.unit, times, prompts, outputs, hashes,
            notes=(*known.notes, *self._notes()),
        )  # fmt: skip

    def _notes(self) -> list[str]:
        """Return what was left out, and what of the file is not simulated."""
        notes = []
        if self._num_failed:
            notes.append(
                f"{self._num_failed:,} of {self._num_failed + self.num_kept:,} rows have no prompt "
                "or no output tokens: failed requests, left out"
            )
        if self._num_images:
            notes.append(
                f"{self._num_images:,} images ({self._known.layout.images}) of "
                f"{self._num_with_images:,} requests are not simulated"
            )
        if self._with_ids and (short := self._short_ids):
            notes.append(
                f"{short:,} of {self.num_kept:,} prompts have ids for none or some of their full "
                "blocks; the others are shared with nobody"
            )
        if unused := list(self._unused):
            more = f" and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else ""
            names = ", ".join(printable(name[:40]) for name in unused[:_SHOWN])
            notes.append(f"not simulated: column{'s' * (len(unused) > 1)} {names}{more}")
        return notes


def _one_a_turn(file: Path, chunk: Chunk, layout: Layout) -> Chunk:
    """Return a chunk of sessions with a row per turn, each with the wait before it."""
    assert layout.session is not None
    assert layout.delay is not None
    keys = (layout.arrival, layout.session, layout.delay, layout.prompt, layout.output)
    more = (layout.token_ids,) if layout.token_ids else ()
    lines: list[int] = []
    columns: dict[str, list[Any]] = {key: [] for key in (*keys, *more)}
    rows = [chunk.cells(key) for key in (*columns, layout.sub_requests)]
    for line, *cells, turns in zip(chunk.lines, *rows, strict=True):
        row = dict(zip(columns, cells, strict=True))
        if turns is None:
            turns = [row]
        elif not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise DataError(
                f"{file} line {line}, {layout.sub_requests}: must be a list of objects. {MEND}"
            )
        else:
            row[layout.session] = ("line", line)
        wait = 0.0
        for number, turn in enumerate(turns):
            lines.append(line)
            here = {**turn, layout.session: row[layout.session], layout.delay: wait}
            here[layout.arrival] = None if number else row[layout.arrival]
            for key, column in columns.items():
                column.append(here.get(key))
            wait = turn.get(layout.delay) or 0.0
    return Chunk(lines, columns)


def _sorted(trace: Trace) -> Trace:
    """Return the trace with its rows in the order of time."""
    assert trace.arrival_s is not None
    if not (np.diff(trace.arrival_s) < 0).any():
        return trace
    order = np.argsort(trace.arrival_s, kind="stable")
    return replace(_of(trace, order), notes=(*trace.notes, "rows were sorted by their time"))


def _of(trace: Trace, rows: IntArray) -> Trace:
    """Return some rows of a trace, in that order; its turns are left out."""
    return replace(
        trace,
        arrival_s=None if trace.arrival_s is None else trace.arrival_s[rows],
        prompt_len=trace.prompt_len[rows],
        output_len=trace.output_len[rows],
        hashes=None if trace.hashes is None else trace.hashes.of_rows(rows),
        turns=None,
    )


def _with_sessions(
    trace: Trace, rows: _Rows, options: TraceOptions, window_s: tuple[float, float]
) -> Trace:
    """Return the trace with the turns of each session one after the other, each waiting.

    Sessions are in the order in which they begin; those that begin outside the window are left out.
    """
    sessions = Sessions.of(rows.labels)
    trace = _whole_prompts(trace, sessions, options)
    if trace.arrival_s is None:
        return trace
    arrival_s = trace.arrival_s
    begins = sessions.after < 0
    if np.isnan(arrival_s[begins]).any():
        at = int(np.flatnonzero(begins & np.isnan(arrival_s))[0])
        raise DataError(
            f"{trace.file} line {rows.lines[at]}: the first turn of a session has no "
            f"{rows.layout.arrival}: only the benchmark knows when it begins. Add it, or use the "
            'lengths alone: lengths = { kind = "trace", path = ... }.'
        )
    root = np.arange(len(begins))
    for row in sessions.order.tolist():
        if not begins[row]:
            root[row] = root[sessions.after[row]]
    since_s = arrival_s[root] - arrival_s[begins].min()
    inside = (since_s >= window_s[0]) & (since_s < window_s[1])
    if not inside.any():
        raise DataError(
            f"{trace.file}: no session begins in the window (start_s, end_s); the last begins at "
            f"{since_s.max():g} s."
        )
    order = sessions.order[np.argsort(since_s[sessions.order], kind="stable")]
    order = order[inside[order]]
    place = np.full(len(begins), -1)
    place[order] = np.arange(len(order))
    waits_s = grid_array(np.concatenate(rows.waits_s))
    after = np.where(sessions.after[order] < 0, -1, place[sessions.after[order]])
    earliest_s = np.where(np.isnan(arrival_s), 0.0, arrival_s - arrival_s[order[0]])
    turns = Turns(after=after, think_s=np.where(after < 0, 0.0, waits_s[order]))
    found = replace(_of(replace(trace, arrival_s=earliest_s), order), turns=turns)
    return found if (after >= 0).any() else replace(found, turns=None)


def _whole_prompts(trace: Trace, sessions: Sessions, options: TraceOptions) -> Trace:
    """Return the trace with whole prompts, where later turns hold what is added to those before."""
    if not len(sessions.later) or trace.format == "llmservingsim":
        return trace
    whole, why = options.turns == "whole", "as told"
    if options.turns == "auto":
        first_id = np.full(len(trace.prompt_len), -1, np.int64)
        if trace.hashes is not None:
            offsets = trace.hashes.offsets
            known = np.diff(offsets) > 0
            first_id[known] = trace.hashes.first[offsets[:-1][known]]
        whole, why = are_whole(trace.file, sessions, trace.prompt_len, trace.output_len, first_id)
    if whole:
        return replace(trace, notes=(*trace.notes, f"later turns hold their whole prompt ({why})"))
    prompt_len = added_up(sessions, trace.prompt_len, trace.output_len)
    hashes = conversation_hashes(sessions, prompt_len, trace.output_len, trace.hashes)
    note = f"later turns add to the turn before and its answer ({why})"
    return replace(trace, prompt_len=prompt_len, hashes=hashes, notes=(*trace.notes, note))


def _doubts(trace: Trace, options: TraceOptions) -> list[str]:
    """Return what is unusual about a trace whose unit nobody told."""
    rate = trace.rate_rps
    if options.time_unit is not None or rate is None or len(trace.clock_s) < 3:
        return []
    if USUAL_RPS[0] <= rate <= USUAL_RPS[1]:
        return []
    return [f"{rate:.3g} requests/s is an unusual rate: check format and time_unit"]
