"""A file of measured kernel times, CSV or Parquet: its columns, checked row by row.

``docs/calibration.md`` describes the columns. ``simcluster measure`` writes such a file, and two
readers use it: `simcluster.fidelity.calibrate` fits the constants of the kernel law to it, and
``engine.kernels`` takes the times themselves (`simcluster.roofline.measured`).
"""

from __future__ import annotations

import csv
import gzip
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from simcluster.errors import DataError, nearest

NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    "gemm": ("m", "n", "k"),
    "grouped_gemm": ("m", "n", "k", "num_experts", "top_k"),
    "moe": ("m", "n", "k", "num_experts", "top_k"),
    "attention_prefill": ("m", "batch", "context", "num_heads", "num_kv_heads", "head_dim"),
    "attention_decode": ("batch", "context", "num_heads", "num_kv_heads", "head_dim"),
    "attention_mixed": ("m", "batch", "context", "num_heads", "num_kv_heads", "head_dim"),
    "norm": ("m", "n"),
    "norm_only": ("m", "n"),
    "rope": ("m", "n"),
    "activation": ("m", "n"),
    "add": ("m", "n"),
    "embedding": ("m", "n"),
    "kv_write": ("m", "n"),
    "sampler": ("m", "n"),
    "all_reduce": ("m", "n", "tp"),
    "all_gather": ("m", "n", "tp"),
    "send_recv": ("m", "n"),
    "issue": ("m",),
}
"""Operators and the columns that each needs."""

NUMBERS: Final = (
    "m",
    "n",
    "k",
    "batch",
    "context",
    "num_heads",
    "num_kv_heads",
    "head_dim",
    "num_experts",
    "top_k",
    "tp",
    "touched",
    "padded",
)
"""Columns that hold numbers. `touched` counts the experts that some token visits where a benchmark
says so, `padded` their rows in whole tiles; elsewhere tokens pick experts at random."""

NONE: Final = -1.0
"""Stands for a number that an operator does not use, where NaN would not equal itself."""

DTYPES: Final = (
    "bf16",
    "fp16",
    "fp8",
    "fp8-block",
    "mxfp8",
    "int8",
    "int4",
    "int4-g64",
    "int4-g32",
    "mxfp4",
    "nvfp4",
)
"""What the column dtype may say."""

UNITS: Final = {"time_us": 1e-6, "time_ms": 1e-3, "time_s": 1.0}
"""Time columns and their units (s)."""
_COLUMNS: Final = ("operator", *NUMBERS, "dtype", "mode", *UNITS, "gpu")
_REPEATS: Final = 2.0
"""Times of one call that differ by more than this factor are no repeats of it."""
SUFFIXES: Final = (".csv", ".csv.gz", ".parquet")
"""Ends of the names of such files."""


class KernelCall(NamedTuple):
    """What was called. Numbers that its operator does not use are `NONE`."""

    operator: str
    """A key of `NEEDS`."""
    dtype: str
    """One of `DTYPES`: weights of a multiplication, cache of attention, else elements."""
    eager: bool
    """Launched one by one, not in a captured graph."""
    m: float = NONE
    n: float = NONE
    k: float = NONE
    batch: float = NONE
    context: float = NONE
    num_heads: float = NONE
    num_kv_heads: float = NONE
    head_dim: float = NONE
    num_experts: float = NONE
    top_k: float = NONE
    tp: float = NONE
    touched: float = NONE
    padded: float = NONE


class KernelRow(NamedTuple):
    """The median time of one call."""

    call: KernelCall
    time_s: float
    """Above 0 (s)."""
    gpu: str = ""
    """As the file names it; empty where it does not."""


@dataclass(frozen=True, slots=True)
class KernelTable:
    """A file of kernel times."""

    path: str
    """Where it was read."""
    rows: tuple[KernelRow, ...]
    """In the order of the file."""

    @property
    def name(self) -> str:
        """Name of the file without its folder."""
        return Path(self.path).name

    def of(self, gpu: str) -> KernelTable:
        """Return the rows of `gpu`: those that name it, and those that name none.

        Raises
        ------
        DataError
            If there are none.
        """
        kept = tuple(row for row in self.rows if not row.gpu or same_gpu(row.gpu, gpu))
        if not kept:
            found = ", ".join(sorted({row.gpu for row in self.rows}))
            raise DataError(
                f"{self.name}: no rows of {gpu} (column gpu: {found}). Measure it, or leave the "
                "column out if the rows are its own"
            )
        return KernelTable(self.path, kept)


def read(path: Path) -> KernelTable:
    """Read a file of kernel times.

    Parameters
    ----------
    path : Path
        CSV (``.gz`` or not) or Parquet.

    Returns
    -------
    KernelTable
        One row per call; the median of its repeats.

    Raises
    ------
    DataError
        If a column, a value or a time is missing or out of range, a unit, operator or dtype is
        unknown, or repeats of one call differ by more than a factor of two.
    """
    found = calls_of(path)
    rows = [
        KernelRow(call, median([time for _, time in times]), gpu)
        for (call, gpu), times in found.items()
    ]
    if not rows:
        raise DataError(f"{path.name}: no rows")
    return KernelTable(str(path), tuple(rows))


def calls_of(
    path: Path, gpu: str = "", dtypes: Iterable[str] = DTYPES
) -> dict[tuple[KernelCall, str], list[tuple[int, float]]]:
    """Return the lines and times (s) of each call, by call and GPU.

    Rows whose column `gpu` names another GPU than `gpu` are left out; none where it is empty.

    Raises
    ------
    DataError
        As `read`.
    """
    calls: dict[tuple[KernelCall, str], list[tuple[int, float]]] = {}
    known = tuple(dtypes)
    for line, row in _rows(path):
        where = f"{path.name} line {line}"
        named = row.get("gpu") or ""
        if gpu and named and not same_gpu(named, gpu):
            continue
        call, time_s = _checked(row, where, known)
        calls.setdefault((call, named), []).append((line, time_s))
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
    return calls


def same_gpu(one: str, other: str) -> bool:
    """Return whether two names of a GPU differ in capitals, spaces and signs alone."""
    return _folded(one) == _folded(other)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Give the rows with their line numbers; comment lines are skipped."""
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
        return
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


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Give the rows of a Parquet file, numbered from 1, as texts; what is null is empty."""
    import pyarrow
    import pyarrow.parquet as pq

    try:
        found = pq.read_table(path)
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from None
    _check_header(path.name, list(found.column_names))
    for number, row in enumerate(found.to_pylist(), 1):
        yield number, {name: _text(value) for name, value in row.items()}


def _text(value: object) -> str:
    """Return a value of a Parquet file as a CSV has it."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return repr(value) if isinstance(value, float) else str(value)


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


def _checked(row: dict[str, str], where: str, dtypes: tuple[str, ...]) -> tuple[KernelCall, float]:
    """Return what was called and the time (s)."""
    operator, dtype = row["operator"], row["dtype"]
    if operator not in NEEDS:
        raise DataError(f"{where}: unknown operator {operator!r}. {nearest(operator, NEEDS)}")
    if dtype not in dtypes:
        raise DataError(f"{where}: unknown dtype {dtype!r}: use {', '.join(dtypes)}")
    mode = row.get("mode") or "graph"
    if mode not in ("graph", "eager"):
        raise DataError(f"{where}: unknown mode {mode!r}: use graph or eager")
    unit = next(column for column in UNITS if column in row)
    time_s = _number(row, unit, where) * UNITS[unit]
    if not time_s > 0.0:
        raise DataError(f"{where}: {unit} is {row[unit]}, must be above 0")
    numbers = {"m": 1.0} if operator == "attention_decode" else {}
    for name in NEEDS[operator]:
        value = _number(row, name, where)
        least = 0.0 if name == "context" else 2.0 if name == "tp" else 1.0
        if value < least:
            raise DataError(f"{where}: {name} is {value:g}, must be at least {least:g}")
        numbers[name] = value
    return KernelCall(operator, dtype, mode == "eager", **numbers), time_s


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
