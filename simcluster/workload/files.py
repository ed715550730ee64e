"""Lines and cells of input files, gzip or plain; what cannot be read is refused in one line."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import math
import stat
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path
from typing import Final

from simcluster.errors import DataError, in_message, nearest

GZIP: Final = b"\x1f\x8b"
MAX_LINE_CHARS: Final = 1 << 24
"""Longer lines are refused: a file without line ends would fill the memory."""
MAX_RATIO: Final = 30
"""A gzip file that unpacks to more than so many times its size is refused..."""
UNPACKED_FREE: Final = 1 << 24
"""... once it has given so many characters; published traces unpack to 3 to 12 times theirs."""
_BLOCK_CHARS: Final = 1 << 20
_DELIMITERS: Final = ",;\t"
ROWS_AT_ONCE: Final = 1 << 14
"""Rows of a table that are read together."""


def magic(file: Path) -> bytes:
    """Return the first bytes of a regular file, at most eight.

    Raises
    ------
    DataError
        If there is no such file, it is no regular one (a folder, a pipe, a device), or it cannot be
        opened.
    """
    try:
        mode = file.stat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "no regular file but a pipe or a device"
            raise DataError(f"{file}: cannot be read: it is {kind}. Name a file.")
        with file.open("rb") as raw:
            return raw.read(8)
    except (FileNotFoundError, NotADirectoryError):
        beside = [f.name for f in file.parent.iterdir()] if file.parent.is_dir() else []
        hint = nearest(file.name, beside) if beside else f"{file.parent} is no folder either."
        raise DataError(f"{file}: no such file. {hint}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{str(file)!r}: cannot be read ({reason}). Name another file.") from None


def beginning(file: Path) -> str:
    """Return the first 4096 characters of a text file, unpacked where it is gzip (`lines`)."""
    with _text(file) as text:
        return text.read(4096)


@contextlib.contextmanager
def _text(file: Path) -> Iterator[io.TextIOWrapper]:
    """Open a text file, unpacked where it is gzip; what goes wrong is one line."""
    opened = gzip.open if magic(file)[:2] == GZIP else open
    try:
        with opened(file, "rb") as raw:
            yield io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
    except UnicodeDecodeError:
        raise DataError(f"{file}: not UTF-8 text. Convert it or name another file.") from None
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{file}: cannot be read ({reason}). Name another file.") from None


def lines(file: Path) -> Iterator[str]:
    """Give the lines of a text file with their ends, unpacked where it is gzip.

    Raises
    ------
    DataError
        As `magic`; also if it is not UTF-8, breaks off, or goes beyond a limit of this module.
    """
    limit = math.inf
    if magic(file)[:2] == GZIP:
        limit = max(UNPACKED_FREE, MAX_RATIO * file.stat().st_size)
    total, rest = 0, ""
    with _text(file) as text:
        while block := text.read(_BLOCK_CHARS):
            total += len(block)
            if total > limit:
                raise DataError(
                    f"{file}: unpacks to more than {MAX_RATIO} times its size. If that is meant, "
                    "unpack it and name the unpacked file."
                )
            # The last line may go on in the next block.
            *whole, rest = io.StringIO(rest + block, newline="")
            if len(rest) > MAX_LINE_CHARS:
                raise DataError(
                    f"{file}: a line is longer than {MAX_LINE_CHARS >> 20} million characters. "
                    "Name a file with a line per request."
                )
            yield from whole
    if rest:
        yield rest


@dataclass(frozen=True, slots=True)
class Table:
    """The cells of a CSV file, as text."""

    file: Path
    """Where they were read."""
    columns: list[str]
    """The header."""
    rows: list[list[str]]
    """Cells of each row, as many as there are columns."""
    lines: list[int]
    """Line of the file in which each row ends, counted from 1."""

    def require(self, *names: str) -> None:
        """Raise ``DataError`` naming the columns that are missing."""
        if missing := [name for name in names if name not in self.columns]:
            raise missing_columns(self.file, missing, self.columns)

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


def missing_columns(file: Path, missing: list[str], found: list[str]) -> DataError:
    """Return the error that says which columns a file lacks, and which it has."""
    names = ", ".join(repr(c[:40]) for c in found[:12])
    return DataError(
        f"{file} line 1: missing column{'s' * (len(missing) > 1)} {', '.join(missing)}; found "
        f"{names}. Rename or add the columns."
    )


def bad_cell(
    file: Path, line: int, column: str, value: object, rule: str, remedy: str
) -> DataError:
    """Return the error that says that one value of a file breaks `rule`."""
    return DataError(f"{file} line {line}, {column} = {in_message(value)}: {rule}. {remedy}")


def number(value: object) -> float | None:
    """Return `value`, text or a JSON value, as a finite number; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        return None
    try:
        result = float(value)
    except (ValueError, OverflowError):
        return None
    return result if math.isfinite(result) else None


def csv_chunks(file: Path) -> Iterator[tuple[Sequence[int], list[list[str]]]]:
    """Give the header of a CSV file, then its rows, some at once, with the lines they end in.

    Blank lines are skipped. Cells are parted by a comma, or by a semicolon or tab where the header
    has no comma.

    Raises
    ------
    DataError
        As `lines`; also if the file is empty or no CSV, or a row has another number of cells than
        the header.
    """
    source = lines(file)
    above, first = 1, next(source, "")
    while first and not first.strip():
        above, first = above + 1, next(source, "")
    if not first:
        raise DataError(f"{file}: empty. Name a file with a header and one row per request.")
    delimiter = next((d for d in _DELIMITERS if d in first), ",")
    reader = csv.reader([first], delimiter=delimiter)
    try:
        header = [cell.strip() for cell in next(reader)]
        yield [above], [header]
        reader = csv.reader(source, delimiter=delimiter)
        start = 0
        while rows := list(islice(reader, ROWS_AT_ONCE)):
            ends: Sequence[int] = range(above + start + 1, above + reader.line_num + 1)
            if len(ends) != len(rows):  # cells with line ends in them
                heights = (1 + sum(cell.count("\n") for cell in row) for row in rows)
                ends = list(accumulate(heights, initial=above + start))[1:]
            start = reader.line_num
            if set(map(len, rows)) != {len(header)}:
                ends, rows = _checked(file, ends, rows, len(header))
            yield ends, rows
    except csv.Error as error:
        raise DataError(
            f"{file} line {above + reader.line_num}: no CSV ({error}). Mend or drop the row."
        ) from None


def _checked(
    file: Path, ends: Sequence[int], rows: list[list[str]], width: int
) -> tuple[Sequence[int], list[list[str]]]:
    """Return rows without those of blank lines; another one of another width is refused."""
    filled = [(line, row) for line, row in zip(ends, rows, strict=True) if row]
    for line, row in filled:
        if len(row) != width:
            raise DataError(
                f"{file} line {line}: {len(row)} cells where the header has {width}. "
                "Mend or drop the row."
            )
    return [line for line, _ in filled], [row for _, row in filled]


def read_csv(file: Path) -> Table:
    """Return the cells of a CSV file with a header (`csv_chunks`)."""
    (_, (columns,)), *chunks = csv_chunks(file)
    return Table(
        file,
        columns,
        [row for _, rows in chunks for row in rows],
        [line for ends, _ in chunks for line in ends],
    )
