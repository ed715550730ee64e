"""The plain CSV of ``docs/calibration.md``: what a user measures, checked row by row."""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np

from simcluster.errors import DataError, nearest
from simcluster.fidelity.calibrate.readers.samples import BYTES, NEEDS, NUMBERS, Samples, samples

UNITS: Final = {"time_us": 1e-6, "time_ms": 1e-3, "time_s": 1.0}
"""Time columns and their units (s)."""
_COLUMNS: Final = ("operator", *NUMBERS, "dtype", "mode", *UNITS, "gpu")
_NONE: Final = -1.0
"""Stands for a number that an operator does not use, where NaN would not equal itself."""
_REPEATS: Final = 2.0
"""Times of one call that differ by more than this factor are no repeats of it."""


def read(path: Path, gpu: str = "") -> Samples:
    """Read a CSV of kernel times.

    Parameters
    ----------
    path : Path
        File, ``.gz`` or not.
    gpu : str
        Rows whose column `gpu` names another one are left out; empty for all.

    Returns
    -------
    Samples
        One row per call; the median of its repeats. Grouped by `n` (GEMM) and head count.

    Raises
    ------
    DataError
        If a column, a value or a time is missing or out of range, a unit, operator or dtype is
        unknown, or repeats of one call differ by more than a factor of two.
    """
    calls: dict[tuple[object, ...], list[tuple[int, float]]] = {}
    for line, row in _rows(path):
        where = f"{path.name} line {line}"
        if gpu and row.get("gpu") and _folded(row["gpu"]) != _folded(gpu):
            continue
        call, time_s = _checked(row, where)
        calls.setdefault(call, []).append((line, time_s))
    if not calls:
        raise DataError(f"{path.name}: no rows{f' of {gpu}' if gpu else ''}")
    for measured in calls.values():
        (first, low), (last, high) = (
            min(measured, key=lambda pair: pair[1]),
            max(measured, key=lambda pair: pair[1]),
        )
        if high > _REPEATS * low:
            raise DataError(
                f"{path.name} lines {min(first, last)} and {max(first, last)}: the same call took "
                f"{low * 1e6:g} and {high * 1e6:g} us; remove the wrong one"
            )
    keys = list(calls)
    operators = np.array([str(key[0]) for key in keys])
    numbers = {}
    for i, name in enumerate(NUMBERS):
        values = np.array([key[3 + i] for key in keys], dtype=np.float64)
        numbers[name] = np.where(values == _NONE, np.nan, values)
    return samples(
        operators,
        [float(np.median([time for _, time in calls[key]])) for key in keys],
        num_bytes=[BYTES[str(key[1])] for key in keys],
        eager=[key[2] == "eager" for key in keys],
        group=_groups(operators, numbers),
        cold=True,
        **numbers,
    )


def _groups(
    operators: np.ndarray[tuple[int], np.dtype[np.str_]],
    numbers: dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]],
) -> list[str]:
    """What is held out together: widths of multiplications, head counts of attention."""
    return [
        f"{numbers['num_heads'][i]:g}" if name.startswith("attention") else f"{numbers['n'][i]:g}"
        for i, name in enumerate(operators)
    ]


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Give the rows with their line numbers; comment lines are skipped."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: cannot be read ({error})") from None
    lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if _holds_data(line)]
    if not lines:
        raise DataError(f"{path.name}: is empty")
    header = [name.strip() for name in next(csv.reader([lines[0][1]]))]
    _check_header(path.name, header)
    for number, line in lines[1:]:
        values = [value.strip() for value in next(csv.reader([line]))]
        if len(values) != len(header):
            raise DataError(
                f"{path.name} line {number}: {len(values)} values under {len(header)} columns"
            )
        yield number, dict(zip(header, values, strict=True))


def _holds_data(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _check_header(name: str, header: list[str]) -> None:
    for column in header:
        if column.startswith("time") and column not in UNITS:
            raise DataError(f"{name}: unknown unit of {column!r}: use {', '.join(UNITS)}")
        if column not in _COLUMNS:
            raise DataError(f"{name}: unknown column {column!r}. {nearest(column, _COLUMNS)}")
    twice = {column for column in header if header.count(column) > 1}
    if twice:
        raise DataError(f"{name}: column {sorted(twice)[0]!r} stands there twice")
    missing = [column for column in ("operator", "dtype") if column not in header]
    times = [column for column in UNITS if column in header]
    if not times:
        missing.append("time_us")
    if missing:
        raise DataError(f"{name}: missing column {', '.join(map(repr, missing))}")
    if len(times) > 1:
        raise DataError(f"{name}: two time columns, {times[0]!r} and {times[1]!r}; keep one")


def _checked(row: dict[str, str], where: str) -> tuple[tuple[object, ...], float]:
    """Return what was called (operator, dtype, mode, numbers) and the time (s)."""
    operator, dtype = row["operator"], row["dtype"]
    if operator not in NEEDS:
        raise DataError(f"{where}: unknown operator {operator!r}. {nearest(operator, NEEDS)}")
    if dtype not in BYTES:
        raise DataError(f"{where}: unknown dtype {dtype!r}: use {', '.join(BYTES)}")
    mode = row.get("mode") or "graph"
    if mode not in ("graph", "eager"):
        raise DataError(f"{where}: unknown mode {mode!r}: use graph or eager")
    unit = next(column for column in UNITS if column in row)
    time_s = _number(row, unit, where) * UNITS[unit]
    if not time_s > 0.0:
        raise DataError(f"{where}: {unit} is {row[unit]}, must be above 0")
    numbers = []
    for name in NUMBERS:
        if name not in NEEDS[operator]:
            numbers.append(math.nan if name != "m" or operator != "attention_decode" else 1.0)
            continue
        value = _number(row, name, where)
        least = 0.0 if name == "context" else 2.0 if name == "tp" else 1.0
        if value < least:
            raise DataError(f"{where}: {name} is {value:g}, must be at least {least:g}")
        numbers.append(value)
    key = tuple(_NONE if math.isnan(value) else value for value in numbers)
    return (operator, dtype, mode, *key), time_s


def _number(row: dict[str, str], name: str, where: str) -> float:
    text = row.get(name)
    if text is None:
        raise DataError(f"{where}: {row['operator']} needs the column {name!r}, which is missing")
    if text == "":
        raise DataError(f"{where}: {row['operator']} needs {name}, which is empty")
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{where}: {name} is {text!r}, not a number") from None
    if not math.isfinite(value):
        raise DataError(f"{where}: {name} is {text!r}, not a number")
    return value


def _folded(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())
