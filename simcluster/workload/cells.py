"""Cells of a trace as numbers, dates and ids; the first wrong one is refused with its line."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np

from simcluster.errors import DataError
from simcluster.units import FloatArray
from simcluster.workload.block_ids import are_ids
from simcluster.workload.files import bad_cell, number
from simcluster.workload.records import Chunk

MEND: Final = "Mend or drop the row."


def microseconds(value: object) -> float | None:
    """Return a date with its time of day, text or datetime, in whole us; None where it is none.

    >>> microseconds("2023-11-16 18:15:50.9951690") - microseconds("2023-11-16 18:15:46.6805900")
    4314579.0
    """
    try:
        stamp = datetime.fromisoformat(str(value).strip())
    except ValueError:
        return None
    return float((stamp - datetime(2000, 1, 1, tzinfo=stamp.tzinfo)) // timedelta(microseconds=1))


def numbers(
    file: Path, chunk: Chunk, name: str, rule: str, missing: float | None = None
) -> FloatArray:
    """Return the cells of a column as finite numbers.

    Parameters
    ----------
    file, chunk, name : Path, Chunk, str
        Where they stand.
    rule : str
        What a cell must be, for the error.
    missing : float, optional
        In the place of a cell that is missing or empty, which is refused otherwise.

    Raises
    ------
    DataError
        With the first cell that is none.
    """
    cells = chunk.cells(name)
    if missing is not None:
        cells = [missing if cell is None or cell == "" else cell for cell in cells]
    elif set(map(type, cells)) == {str}:
        try:
            found = np.fromiter(map(float, cells), np.float64, len(cells))
        except ValueError:
            found = np.array([np.nan])
        if np.isfinite(found).all():
            return found
    values = np.empty(len(cells))
    for at, cell in enumerate(cells):
        value = cell if cell is missing else number(cell)
        if value is None:
            raise bad_cell(file, chunk.lines[at], name, cell, rule, MEND)
        values[at] = value
    return values


def dates(file: Path, chunk: Chunk, name: str) -> FloatArray:
    """Return the cells of a column of dates (us since 2000); `DataError` as `numbers`."""
    values = np.empty(len(chunk.lines))
    for at, cell in enumerate(chunk.cells(name)):
        value = microseconds(cell)
        if value is None:
            rule = "must be a time, a date with its time of day"
            raise bad_cell(file, chunk.lines[at], name, cell, rule, MEND)
        values[at] = value
    return values


def id_lists(file: Path, chunk: Chunk, name: str) -> list[Sequence[Any]]:
    """Return the block ids of each row; none where the cell is missing.

    Raises
    ------
    DataError
        With the first cell that is no list of whole numbers or texts.
    """
    rows: list[Sequence[Any]] = []
    for at, cell in enumerate(chunk.cells(name)):
        row = [] if cell is None else cell
        if not are_ids(row):
            raise DataError(
                f"{file} line {chunk.lines[at]}, {name}: must be a list of whole numbers or texts. "
                f"{MEND}"
            )
        rows.append(row)
    return rows


def ids_of_tokens(
    file: Path, chunk: Chunk, names: tuple[str, str], size: int, codes: dict[tuple[Any, ...], int]
) -> list[Sequence[Any]]:
    """Return the ids of the full blocks of each row's prompt, numbered as their tokens come.

    Parameters
    ----------
    file, chunk : Path, Chunk
        Where they stand.
    names : tuple of str
        Columns of the token ids and of their number.
    size : int
        Tokens of a block.
    codes : dict
        Ids of the blocks that have been met; new ones are added.

    Raises
    ------
    DataError
        With the first row whose token ids are not as many as its tokens.
    """
    rows: list[Sequence[Any]] = []
    pairs = zip(chunk.cells(names[0]), chunk.cells(names[1]), strict=True)
    for at, (cell, count) in enumerate(pairs):
        row = [] if cell is None else cell
        if not are_ids(row) or (row and len(row) != count):
            raise DataError(
                f"{file} line {chunk.lines[at]}, {names[0]}: must be a list of {count} whole "
                f"numbers. {MEND}"
            )
        blocks = (tuple(row[i : i + size]) for i in range(0, len(row) - size + 1, size))
        rows.append([codes.setdefault(block, len(codes)) for block in blocks])
    return rows
