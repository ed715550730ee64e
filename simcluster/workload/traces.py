"""Readers of request traces: plain CSV, Azure 2023 CSV, two kinds of JSON lines; gzip or plain.

The standard library's readers take 0.1 s for 100,000 rows, so pandas is not needed here. Every
refusal is one line: file, line, column, value, rule, remedy.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np

from simcluster.errors import DataError, nearest
from simcluster.units import MAX_TIME_S, MS, US, FloatArray, IntArray
from simcluster.workload.base import MAX_TOKENS
from simcluster.workload.hashes import BlockHashes

TraceFormat = Literal["auto", "csv", "azure-2023", "mooncake", "llmservingsim"]

CSV_COLUMNS: Final = {
    "csv": (("arrival_s", "prompt_len", "output_len"),),
    "azure-2023": (
        ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
        ("arrival_s", "input_tokens", "output_tokens"),
    ),
}
"""Columns of the CSV formats: arrival, prompt, output."""


@dataclass(frozen=True, slots=True)
class JsonFormat:
    """Keys of a line of a JSON trace; further ones are not read.

    Attributes
    ----------
    columns : tuple of str
        Arrival, prompt, output.
    unit_s : float
        Unit of the arrival (s).
    ids : str
        Ids of the prompt's blocks; may be missing.
    tokens_per_id : int
        Tokens of such a block.
    """

    columns: tuple[str, str, str]
    unit_s: float
    ids: str
    tokens_per_id: int


_ROWS_AT_ONCE: Final = 1 << 14
_MAX_ID: Final = 2**53
JSON_FORMATS: Final = {
    "mooncake": JsonFormat(("timestamp", "input_length", "output_length"), MS, "hash_ids", 512),
    "llmservingsim": JsonFormat(
        ("arrival_s", "input_tokens", "output_tokens"), 1.0, "block16_ids", 16
    ),
}
"""The formats of JSON lines."""

Row = tuple[int, Any, Any, Any, Any]
"""Line of the file; arrival, prompt, output and ids of the prompt's blocks as read."""


@dataclass(frozen=True, slots=True)
class Trace:
    """The requests of a trace file.

    Attributes
    ----------
    file : Path
        Where they were read.
    arrival_s : ndarray of float64 or None
        Arrivals (s) since the first request, sorted, shape ``(n,)``; None where they were not
        asked for.
    prompt_len, output_len : ndarray of int64
        Tokens, each >= 1, shape ``(n,)``.
    hashes : BlockHashes or None
        Ids of the prompts' blocks, where the file has any.
    """

    file: Path
    arrival_s: FloatArray | None
    prompt_len: IntArray
    output_len: IntArray
    hashes: BlockHashes | None = None


@dataclass(frozen=True, slots=True)
class Table:
    """The cells of a CSV file, as text.

    Attributes
    ----------
    file : Path
        Where they were read.
    columns : list of str
        The header.
    rows : list of list of str
        Cells of each row, as many as there are columns.
    lines : list of int
        Line of the file in which each row ends, counted from 1.
    """

    file: Path
    columns: list[str]
    rows: list[list[str]]
    lines: list[int]

    def require(self, *names: str) -> None:
        """Raise ``DataError`` naming the columns that are missing."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            found = ", ".join(repr(c) for c in self.columns[:12])
            raise DataError(
                f"{self.file} line 1: missing column{'s' * (len(missing) > 1)} "
                f"{', '.join(missing)}; found {found}. Rename or add the columns."
            )

    def text(self, row: int, column: str) -> str:
        """Return one cell without blanks around it."""
        return self.rows[row][self.columns.index(column)].strip()

    def number(self, row: int, column: str) -> float:
        """Return one cell as a finite number; ``DataError`` otherwise."""
        value = number(self.text(row, column))
        if value is None:
            raise self.error(row, column, "must be a number", "Mend or drop the row.")
        return value

    def error(self, row: int, column: str, rule: str, remedy: str) -> DataError:
        """Return the error that says that one cell breaks `rule`."""
        return bad_cell(self.file, self.lines[row], column, self.text(row, column), rule, remedy)


def bad_cell(
    file: Path, line: int, column: str, value: object, rule: str, remedy: str
) -> DataError:
    """Return the error that says that one value of a file breaks `rule`."""
    return DataError(f"{file} line {line}, {column} = {value!r}: {rule}. {remedy}")


def number(value: object) -> float | None:
    """Return `value`, text or a JSON value, as a finite number; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        result = float(value)
    except (ValueError, OverflowError):
        return None
    return result if math.isfinite(result) else None


def microseconds(value: object) -> float | None:
    """Return a time stamp of the original Azure files (text) in whole us, None where it is none.

    >>> microseconds("2023-11-16 18:15:50.9951690") - microseconds("2023-11-16 18:15:46.6805900")
    4314579.0
    """
    try:
        stamp = datetime.fromisoformat(str(value).strip())
    except ValueError:
        return None
    return float((stamp - datetime(2000, 1, 1, tzinfo=stamp.tzinfo)) // timedelta(microseconds=1))


def read_text(file: Path) -> str:
    """Return the text of `file`, unpacked where it is gzip.

    Raises
    ------
    DataError
        If there is no such file, or it is not text.
    """
    try:
        content = file.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        return content.decode("utf-8-sig")
    except FileNotFoundError:
        beside = [f.name for f in file.parent.iterdir()] if file.parent.is_dir() else []
        hint = nearest(file.name, beside) if beside else f"{file.parent} is no folder either."
        raise DataError(f"{file}: no such file. {hint}") from None
    except UnicodeDecodeError:
        raise DataError(f"{file}: not UTF-8 text. Convert it or name another file.") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{file}: cannot be read ({reason}). Name another file.") from None


def read_csv(file: Path, text: str | None = None) -> Table:
    """Return the cells of a CSV file with a header; blank lines are skipped.

    Parameters
    ----------
    file : Path
        The file, gzip or plain.
    text : str or None
        Its text, where it has been read.

    Raises
    ------
    DataError
        If the file cannot be read, is empty, or a row has another number of cells than the header.
    """
    reader = csv.reader(io.StringIO(read_text(file) if text is None else text))
    columns: list[str] = []
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for cells in reader:
            if not cells:
                continue
            if not columns:
                columns = [cell.strip() for cell in cells]
                continue
            if len(cells) != len(columns):
                raise DataError(
                    f"{file} line {reader.line_num}: {len(cells)} cells where the header has "
                    f"{len(columns)}. Mend or drop the row."
                )
            rows.append(cells)
            lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(
            f"{file} line {reader.line_num}: no CSV ({error}). Mend or drop the row."
        ) from None
    if not columns:
        raise DataError(f"{file}: empty. Name a file with a header and one row per request.")
    return Table(file, columns, rows, lines)


def read_trace(file: Path, format: TraceFormat = "auto", *, arrivals: bool = True) -> Trace:
    """Read a trace.

    Parameters
    ----------
    file : Path
        The file, gzip or plain.
    format : str
        ``"csv"`` (columns ``arrival_s, prompt_len, output_len``), ``"azure-2023"``
        (``TIMESTAMP, ContextTokens, GeneratedTokens``, or ``arrival_s, input_tokens,
        output_tokens``), ``"mooncake"`` (JSON lines with ``timestamp`` in ms, ``input_length``,
        ``output_length``, and ``hash_ids`` of blocks of 512 tokens), ``"llmservingsim"`` (JSON
        lines with ``arrival_s``, ``input_tokens``, ``output_tokens``, and ``block16_ids``), or
        ``"auto"`` to tell by the first line. Other columns are not read.
    arrivals : bool
        Read the arrivals; without them a file of lengths alone will do.

    Returns
    -------
    Trace
        Arrivals count from the first request.

    Raises
    ------
    DataError
        If the file cannot be read, is empty, lacks a column, holds something that is no number,
        arrivals that go back or last longer than 24 days, a length below 1, or ids of blocks that
        the prompt does not have or that are no chain.
    """
    if format not in JSON_FORMATS and (sound := _read_sound_csv(file, format, arrivals=arrivals)):
        return sound
    text = read_text(file)
    rows: Iterator[Row]
    clock: Callable[[object], float | None]
    json_format: JsonFormat | None = None
    if format in JSON_FORMATS or (format == "auto" and text.lstrip().startswith("{")):
        json_format = JSON_FORMATS[_json_kind(text) if format == "auto" else format]
        rows, columns, clock = _json_rows(file, text, json_format), json_format.columns, number
        unit_s = json_format.unit_s
    else:
        table = read_csv(file, text)
        columns = _likeliest(table.columns, format)
        table.require(*columns[0 if arrivals else 1 :])
        rows = _csv_rows(table, columns)
        clock, unit_s = (microseconds, US) if columns[0] == "TIMESTAMP" else (number, 1.0)
    return _trace(file, rows, columns, clock if arrivals else None, unit_s, json_format)


def _json_kind(text: str) -> str:
    """Return the format of JSON lines: that of which the first line has most keys."""
    first = text.lstrip().partition("\n")[0]
    return max(JSON_FORMATS, key=lambda kind: sum(f'"{c}"' in first for c in _keys(kind)))


def _keys(kind: str) -> tuple[str, ...]:
    return (*JSON_FORMATS[kind].columns, JSON_FORMATS[kind].ids)


def _likeliest(header: Sequence[str], format: TraceFormat) -> tuple[str, str, str]:
    """Return the columns of a CSV format that `header` has most of."""
    formats = CSV_COLUMNS if format == "auto" else [format]
    return max(
        (known for each in formats for known in CSV_COLUMNS[each]),
        key=lambda known: len(set(known).intersection(header)),
    )


def _read_sound_csv(file: Path, format: TraceFormat, *, arrivals: bool) -> Trace | None:
    """Return the trace of a CSV file of numbers in which all is as it should be, read in bulk.

    None where anything is not: row by row one finds out what, or that it is well (blank lines, time
    stamps).
    """
    numbers: list[list[FloatArray]] = [[], [], []]
    try:
        with file.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(file, "rt", encoding="utf-8-sig", newline="") as lines:
            reader = csv.reader(lines)
            header = [cell.strip() for cell in next(reader, [])]
            columns = _likeliest(header, format)
            if columns[0] == "TIMESTAMP" or not set(columns).issubset(header):
                return None
            places = [header.index(column) for column in columns]
            while rows := list(islice(reader, _ROWS_AT_ONCE)):
                cells = list(zip(*rows, strict=True))
                if len(cells) != len(header):
                    return None
                for place, column in zip(places, numbers, strict=True):
                    column.append(np.fromiter(map(float, cells[place]), np.float64, len(rows)))
    except (OSError, EOFError, zlib.error, ValueError, csv.Error):
        return None
    if not numbers[0]:
        return None
    arrival, prompt, output = (np.concatenate(column) for column in numbers)
    for lengths in (prompt, output):
        if not np.all((lengths >= 1) & (lengths <= MAX_TOKENS) & (lengths == np.rint(lengths))):
            return None
    if not arrivals:
        return Trace(file, None, prompt.astype(np.int64), output.astype(np.int64))
    if not (np.isfinite(arrival).all() and np.all(np.diff(arrival) >= 0)):
        return None
    arrival_s = arrival - arrival[0]
    if arrival_s[-1] >= MAX_TIME_S:
        return None
    return Trace(file, arrival_s, prompt.astype(np.int64), output.astype(np.int64))


def _csv_rows(table: Table, columns: tuple[str, str, str]) -> Iterator[Row]:
    """Give the rows of a CSV trace."""
    indices = [table.columns.index(c) if c in table.columns else None for c in columns]
    for line, cells in zip(table.lines, table.rows, strict=True):
        arrival, prompt, output = (None if i is None else cells[i] for i in indices)
        yield line, arrival, prompt, output, None


def _json_rows(file: Path, text: str, format: JsonFormat) -> Iterator[Row]:
    """Give the rows of a trace of JSON lines."""
    arrival, prompt, output = format.columns
    for line, content in enumerate(text.splitlines(), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise DataError(f"{file} line {line}: no JSON object. Mend or drop the line.")
        for key in (prompt, output):
            if key not in row:
                raise DataError(f"{file} line {line}: missing key {key}. Mend or drop the line.")
        yield line, row.get(arrival), row[prompt], row[output], row.get(format.ids)


def _trace(
    file: Path,
    rows: Iterator[Row],
    columns: tuple[str, str, str],
    clock: Callable[[object], float | None] | None,
    unit_s: float,
    json_format: JsonFormat | None,
) -> Trace:
    """Return the checked trace of `rows`; `clock` reads arrivals in `unit_s`, None reads none."""
    ids = None if json_format is None else _Ids(file, json_format)
    arrivals: list[float] = []
    prompt_len: list[int] = []
    output_len: list[int] = []
    for line, arrival, prompt, output, block_ids in rows:
        if clock is not None:
            now = clock(arrival)
            if now is None:
                raise bad_cell(
                    file, line, columns[0], arrival, "must be a time", "Mend or drop the row."
                )
            if arrivals and now < arrivals[-1]:
                raise bad_cell(
                    file,
                    line,
                    columns[0],
                    arrival,
                    "is earlier than the row before",
                    f"Sort the file by {columns[0]}.",
                )
            arrivals.append(now)
        for column, value, lengths in (
            (columns[1], prompt, prompt_len),
            (columns[2], output, output_len),
        ):
            length = number(value)
            if length is None or not 1 <= length <= MAX_TOKENS or length != int(length):
                raise bad_cell(
                    file,
                    line,
                    column,
                    value,
                    f"must be a whole number of tokens from 1 to {MAX_TOKENS}",
                    "Mend or drop the row.",
                )
            lengths.append(int(length))
        if ids is not None:
            ids.add(line, block_ids, prompt_len[-1])
    if not prompt_len:
        raise DataError(f"{file}: no request in it. Name a file with one row per request.")
    arrival_s = (np.array(arrivals) - arrivals[0]) * unit_s if arrivals else None
    if arrival_s is not None and arrival_s[-1] >= MAX_TIME_S:
        raise DataError(
            f"{file}: lasts {arrival_s[-1]:.0f} s, more than the {MAX_TIME_S:.0f} s (24 days) of "
            f"the time grid. Cut the file, or check the unit of {columns[0]}."
        )
    hashes = None if ids is None else ids.hashes(np.array(prompt_len))
    return Trace(file, arrival_s, np.array(prompt_len), np.array(output_len), hashes)


class _Ids:
    """Collects the block ids of a trace, row by row."""

    def __init__(self, file: Path, format: JsonFormat) -> None:
        self._file = file
        self._format = format
        self._ids = array("q")
        self._ends = array("q", [0])
        self._lines: list[int] = []

    def add(self, line: int, ids: Any, prompt_len: int) -> None:
        """Add those of a row; None for a prompt that shares nothing."""
        key, size = self._format.ids, self._format.tokens_per_id
        most = -(-prompt_len // size)
        if ids is not None:
            try:
                if not isinstance(ids, list):
                    raise TypeError
                self._ids.extend(ids)
            except (TypeError, OverflowError):
                raise DataError(
                    f"{self._file} line {line}, {key}: must be a list of whole numbers. "
                    "Mend or drop the row."
                ) from None
            if len(ids) > most:
                raise DataError(
                    f"{self._file} line {line}, {key}: {len(ids)} ids, but a prompt of "
                    f"{prompt_len} tokens has {most} blocks of {size}. Mend or drop the row."
                )
        self._ends.append(len(self._ids))
        self._lines.append(line)

    def hashes(self, prompt_len: IntArray) -> BlockHashes | None:
        """Return the ids of all rows, checked to be chains; None if there is none."""
        if not self._ids:
            return None
        ids = np.array(self._ids, dtype=np.int64)
        ends = np.array(self._ends, dtype=np.int64)
        before = np.concatenate([[-1], ids[:-1]])
        before[ends[:-1][np.diff(ends) > 0]] = -1
        order = np.argsort(ids, kind="stable")
        again = np.flatnonzero(ids[order][1:] == ids[order][:-1])
        wrong = order[1:][again][before[order[1:]][again] != before[order[:-1]][again]]
        wrong = np.append(wrong, np.flatnonzero((ids < 0) | (ids > _MAX_ID)))
        if len(wrong):
            at = int(wrong.min())
            line = self._lines[int(np.searchsorted(ends, at, side="right")) - 1]
            raise DataError(
                f"{self._file} line {line}, {self._format.ids}: id {ids[at]} "
                + (
                    "does not follow the same id everywhere. An id must stand for all tokens up to "
                    "its end: mend the ids."
                    if 0 <= ids[at] <= _MAX_ID
                    else f"is not from 0 to {_MAX_ID}. Renumber the ids."
                )
            )
        return BlockHashes.of_ids(ids, ends, prompt_len, self._format.tokens_per_id)
