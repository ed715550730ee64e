"""Rows of a trace in whatever it is kept: CSV, JSON lines, a JSON array, Parquet."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final

from simcluster.errors import DataError
from simcluster.workload.base import MAX_NUM_REQUESTS
from simcluster.workload.files import ROWS_AT_ONCE, beginning, csv_chunks, lines, magic
from simcluster.workload.formats import LAYOUTS, refuse_others

_PARQUET: Final = b"PAR1"
_KEY: Final = re.compile(r'"([^"\\]{1,40})"\s*:')
_ARRAY_CHARS: Final = 1 << 28
"""Longest JSON array, which is read whole."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of a trace."""

    lines: Sequence[int]
    """Line of the file, or number of the row where there are no lines; from 1."""
    columns: Mapping[str, Any]
    """Cells by column or key, as they were read: text from CSV, else values. None where a JSON
    object lacks the key."""

    def cells(self, name: str | None) -> Sequence[Any]:
        """Return the cells of a column; None for each row where there is no such column."""
        found = None if name is None else self.columns.get(name)
        if found is None:
            return [None] * len(self.lines)
        cells: Sequence[Any] = found.to_pylist() if hasattr(found, "to_pylist") else found
        return cells


def chunks(file: Path) -> Iterator[Chunk]:
    """Give the rows of a trace file in its order, some at once; an empty file gives none.

    Raises
    ------
    DataError
        If it cannot be read, or a row is broken.
    """
    start = magic(file)
    if start[:4] == _PARQUET:
        yield from _parquet_chunks(file)
        return
    head = beginning(file).lstrip()
    if head[:1] in ("{", "["):
        refuse_others(file, _KEY.findall(head))
        source = lines(file)
        above, first = 1, next(source, "")
        while not first.strip():
            above, first = above + 1, next(source, "")
        objects = _objects(file, above, chain([first], source))
        while some := list(islice(objects, ROWS_AT_ONCE)):
            keys = dict.fromkeys(key for _, row in some for key in row)
            yield Chunk(
                [line for line, _ in some], {key: [row.get(key) for _, row in some] for key in keys}
            )
        return
    table = csv_chunks(file)
    _, (header,) = next(table)
    read = {name for one in LAYOUTS for name in one.read}
    if twice := [name for name in header if name in read and header.count(name) > 1]:
        raise DataError(f"{file} line 1: column {twice[0]!r} stands there twice. Rename one.")
    refuse_others(file, header)
    if not read & set(header):  # what it is not is said, not which of its rows is odd
        yield Chunk([], {name: [] for name in header})
        return
    for ends, rows in table:
        if rows:
            yield Chunk(ends, dict(zip(header, zip(*rows, strict=True), strict=True)))
    yield Chunk([], {name: [] for name in header})


def _objects(
    file: Path, above: int, source: Iterator[str]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Give the objects of JSON lines, or of one JSON array or object over several lines."""
    for line, text in enumerate(source, start=above):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            if line > above:
                row = None
            else:
                yield from _whole(file, above, chain([text], source))
                return
        if isinstance(row, list) and line == above:
            yield from _whole(file, above, chain([text], source))
            return
        if not isinstance(row, dict):
            raise DataError(f"{file} line {line}: no JSON object. Mend or drop the line.")
        yield line, row


def _whole(
    file: Path, above: int, source: Iterator[str]
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Give the objects of one JSON value."""
    parts, total = [], 0
    for text in source:
        parts.append(text)
        total += len(text)
        if total > _ARRAY_CHARS:
            raise DataError(
                f"{file}: a JSON value of more than {_ARRAY_CHARS >> 20} million characters. Write "
                "one object a line."
            )
    try:
        rows = json.loads("".join(parts))
    except RecursionError:
        raise DataError(f"{file}: JSON nested too deep. Name a file of requests.") from None
    except ValueError as error:
        line = above - 1 + getattr(error, "lineno", 1)
        raise DataError(f"{file} line {line}: no JSON object. Mend or drop the line.") from None
    for number, row in enumerate(rows if isinstance(rows, list) else [rows], start=1):
        if not isinstance(row, dict):
            raise DataError(f"{file} entry {number}: no JSON object. Mend or drop the entry.")
        yield number, row


def _parquet_chunks(file: Path) -> Iterator[Chunk]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(file) as parquet:
            if parquet.metadata.num_rows > MAX_NUM_REQUESTS:
                raise DataError(
                    f"{file}: {parquet.metadata.num_rows:,} rows, more than {MAX_NUM_REQUESTS:,}. "
                    "Cut the file."
                )
            row = 0
            for batch in parquet.iter_batches(ROWS_AT_ONCE):
                numbers = range(row + 1, row + 1 + len(batch))
                names = batch.schema.names
                yield Chunk(numbers, {name: batch.column(name) for name in names})
                row += len(batch)
            yield Chunk([], {name: [] for name in parquet.schema_arrow.names})
    except (OSError, pa.ArrowException, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{file}: no Parquet that can be read ({reason}). Name another.") from None
