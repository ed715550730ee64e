"""Frames of long runs in little memory: columns in chunks, each in as few bytes as its values need.

A time takes eight bytes, and most of them say what the row before said. A `PackedFrame` is used
like a dict of arrays: a column is unpacked, to the bit, whenever it is asked for. Who goes through
all rows asks for some at a time (`rows_of`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from simcluster.frames.schema import Columns
from simcluster.units import TICKS_PER_S, IntArray

ROWS = 1 << 16
"""Rows of a chunk. Frames of fewer rows are not packed."""

_NAN_BITS = int(np.float64(np.nan).view(np.int64))


class Packed:
    """Some values of one column: whole numbers, in as many bytes as their range needs.

    Times are counted in ticks of the time grid, other floats and texts are numbers of a table.
    Rising numbers are kept as differences.
    """

    __slots__ = ("_bytes", "_dtype", "_is_rising", "_least", "_nans", "_table", "_ticks", "count")

    def __init__(self, values: npt.NDArray[Any]) -> None:
        self.count = len(values)
        self._dtype = values.dtype
        self._table: npt.NDArray[Any] | None = None
        self._nans: npt.NDArray[np.uint8] | None = None
        self._ticks = False
        self._pack(self._as_numbers(values))

    def _as_numbers(self, values: npt.NDArray[Any]) -> IntArray:
        if values.dtype == object:
            of_text = {text: number for number, text in enumerate(dict.fromkeys(values.tolist()))}
            self._table = np.array(list(of_text), dtype=object)
            return np.array([of_text[text] for text in values.tolist()], dtype=np.int64)
        if values.dtype != np.float64:
            return values.astype(np.int64)
        bits = values.view(np.int64)
        nans = np.isnan(values)
        known = values
        if nans.any():
            if nans.all() or (bits[nans] != _NAN_BITS).any():
                return bits
            known = np.where(nans, values[np.argmin(nans)], values)
        with np.errstate(over="ignore", invalid="ignore"):
            ticks = known * TICKS_PER_S
        fits = bool((np.abs(ticks) < 2**62).all()) and np.array_equal(ticks, np.rint(ticks))
        if fits and not np.signbit(known[known == 0]).any():
            self._ticks = True
            if nans.any():
                self._nans = np.packbits(nans)
            return ticks.astype(np.int64)
        distinct, numbers = np.unique(bits, return_inverse=True)
        if len(distinct) > self.count // 4:
            return bits
        self._table = distinct.view(np.float64)
        return numbers

    def _pack(self, numbers: IntArray) -> None:
        whole = numbers.view(np.uint64)
        self._is_rising = False
        least = int(numbers.min())
        width = _width(int(numbers.max()) - least)
        if self.count > 1 and width > 1:
            changes = np.diff(numbers)
            # A difference that does not fit in 64 bits is no gain.
            low, high = int(changes.min()), int(changes.max())
            if width < 8 and _width(high - low) < width:
                self._is_rising = True
                whole = np.concatenate([[0], changes - low]).astype(np.uint64)
                self._least: tuple[int, int] = int(numbers[0]), low
                width = _width(high - low)
        if not self._is_rising:
            self._least = least, 0
            whole = whole - np.array([least], np.int64).view(np.uint64)
        planes = whole.astype("<u8").view(np.uint8).reshape(self.count, 8)
        self._bytes = planes[:, :width].T.copy()

    def unpack(self) -> npt.NDArray[Any]:
        """Return the values."""
        planes = np.zeros((self.count, 8), np.uint8)
        planes[:, : len(self._bytes)] = self._bytes.T
        numbers = planes.view("<u8").reshape(self.count).astype(np.int64)
        first, low = self._least
        if self._is_rising:
            numbers[1:] += low
            numbers[0] = first
            numbers = np.cumsum(numbers)
        else:
            numbers += first
        if self._table is not None:
            return self._table[numbers]
        if self._ticks:
            times = numbers / TICKS_PER_S
            if self._nans is not None:
                times[np.unpackbits(self._nans, count=self.count).view(np.bool_)] = np.nan
            return times
        if self._dtype == np.float64:
            return numbers.view(np.float64)
        return numbers.astype(self._dtype)


def _width(most: int) -> int:
    """Return how many bytes a whole number of at least 0 needs."""
    return (most.bit_length() + 7) // 8


Derive = Callable[[Columns], npt.NDArray[Any]]
"""Makes a column of others; a function of a module, so that frames can go to other processes."""


class PackedFrame(Mapping[str, npt.NDArray[Any]]):
    """A frame whose columns are unpacked when they are asked for.

    Parameters
    ----------
    chunks : mapping of str to sequence of Packed
        The columns, each in chunks of the same rows.
    derived : mapping of str to callable, optional
        Columns that are made of others.
    names : sequence of str, optional
        The columns in their order; by default those of `chunks`.
    """

    def __init__(
        self,
        chunks: Mapping[str, Sequence[Packed]],
        derived: Mapping[str, Derive] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        self._chunks = dict(chunks)
        self._derived = dict(derived or {})
        self._names = list(self._chunks if names is None else names)
        counts = [chunk.count for chunk in next(iter(self._chunks.values()))]
        self._bounds = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])

    @property
    def num_rows(self) -> int:
        """How many rows there are."""
        return int(self._bounds[-1])

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Return a whole column."""
        if name in self._derived:
            return self._derived[name](self)
        return self._part(name, 0, self.num_rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def _part(self, name: str, first: int, last: int) -> npt.NDArray[Any]:
        begin = int(np.searchsorted(self._bounds[:-1], first, side="right")) - 1
        parts: list[npt.NDArray[Any]] = []
        for number in range(begin, len(self._bounds) - 1):
            at = int(self._bounds[number])
            if at >= last and parts:
                break
            values = self._chunks[name][number].unpack()
            parts.append(values[max(first - at, 0) : max(last - at, 0)])
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def rows(self, first: int, last: int) -> dict[str, npt.NDArray[Any]]:
        """Return all columns of some rows, ``first <= row < last``."""
        last = min(last, self.num_rows)
        first = min(first, last)
        kept = {name: self._part(name, first, last) for name in self._chunks}
        kept |= {name: derive(kept) for name, derive in self._derived.items()}
        return {name: kept[name] for name in self._names}

    def derive(self, derived: Mapping[str, Derive], names: Sequence[str]) -> PackedFrame:
        """Return this frame with columns that are made of it, all in the order of `names`."""
        return PackedFrame(self._chunks, {**self._derived, **derived}, names)

    def with_column(self, name: str, values: npt.NDArray[Any]) -> PackedFrame:
        """Return this frame with one column more, or one replaced."""
        parts = zip(self._bounds[:-1].tolist(), self._bounds[1:].tolist(), strict=True)
        chunks = [Packed(np.ascontiguousarray(values[a:b])) for a, b in parts]
        names = [*(n for n in self._names if n != name), name]
        return PackedFrame({**self._chunks, name: chunks}, self._derived, names)


def pack(columns: Columns) -> Columns:
    """Return a frame that takes little memory, or a short way; an empty one stays as it is."""
    if isinstance(columns, PackedFrame) or not num_rows(columns):
        return columns
    return PackedFrame({name: [Packed(np.asarray(columns[name]))] for name in columns})


def num_rows(columns: Columns) -> int:
    """Return how many rows a frame has."""
    if isinstance(columns, PackedFrame):
        return columns.num_rows
    return len(next(iter(columns.values())))


def rows_of(columns: Columns, first: int, last: int) -> dict[str, npt.NDArray[Any]]:
    """Return some rows of a frame, ``first <= row < last``."""
    if isinstance(columns, PackedFrame):
        return columns.rows(first, last)
    return {name: np.asarray(columns[name])[first:last] for name in columns}


def with_column(columns: Columns, name: str, values: npt.NDArray[Any]) -> Columns:
    """Return a frame and one column more."""
    if isinstance(columns, PackedFrame):
        return columns.with_column(name, values)
    return {**columns, name: values}
