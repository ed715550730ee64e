"""Rows of frames: tuples while running, typed arrays at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from simcluster.frames import packed
from simcluster.frames.schema import KERNELS, Schema
from simcluster.units import IntArray

CHUNK: Final = 1 << 12
"""Rows that are tuples, or requests, before they become numbers."""


class Columns:
    """Typed arrays, one per column, that grow: twice the room whenever it is used up.

    Room that is not used yet costs no memory, and neither does a column in which all numbers are 0:
    the system hands pages out when they are written to.
    """

    __slots__ = ("_arrays", "_blank", "_room", "num_rows")

    def __init__(self, dtypes: Mapping[str, str]) -> None:
        self.num_rows = 0
        self._room = CHUNK
        self._arrays = {name: np.zeros(CHUNK, dtype) for name, dtype in dtypes.items()}
        self._blank = {name for name, dtype in dtypes.items() if dtype != "O"}

    def make_room(self, num_rows: int) -> None:
        """Let there be `num_rows` rows, if there are fewer; the new ones hold 0."""
        self.num_rows = max(self.num_rows, num_rows)
        if self.num_rows <= self._room:
            return
        while self._room < self.num_rows:
            self._room *= 2
        for name, old in self._arrays.items():
            self._arrays[name] = np.zeros(self._room, old.dtype)
            if name not in self._blank:
                self._arrays[name][: len(old)] = old

    def append(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Add rows at the end, whose entries are in the order of the columns."""
        first = self.num_rows
        self.make_room(first + len(rows))
        self.put(slice(first, self.num_rows), zip(*rows, strict=True))

    def put(self, rows: IntArray | slice, values: Iterable[Sequence[Any]]) -> None:
        """Write some rows, which hold 0, values column by column."""
        for (name, array), column in zip(self._arrays.items(), values, strict=True):
            if name in self._blank:
                if not any(column):
                    continue
                self._blank.remove(name)
            array[rows] = column

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the columns."""
        return {name: array[: self.num_rows] for name, array in self._arrays.items()}


class Chunks:
    """Rows of a frame, in chunks of `packed.ROWS` rows that are packed when they are full.

    Rows come in any order. A chunk is full when as many rows were written as it has.
    """

    __slots__ = ("_dtypes", "_open", "_packed", "_written", "num_rows")

    def __init__(self, dtypes: Mapping[str, str]) -> None:
        self._dtypes = dict(dtypes)
        self._open: dict[int, Columns] = {}
        self._written: dict[int, int] = {}
        self._packed: dict[int, dict[str, Any]] = {}
        self.num_rows = 0

    def append(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Add rows at the end, whose entries are in the order of the columns."""
        size: int = packed.ROWS
        done = 0
        while done < len(rows):
            number, place = divmod(self.num_rows, size)
            some = rows[done : done + size - place]
            chunk = self._chunk(number)
            chunk.append(some)
            self.num_rows += len(some)
            self._count(number, len(some))
            done += len(some)

    def put(self, rows: IntArray, values: Iterable[Sequence[Any]]) -> None:
        """Write some rows, which hold 0, values column by column; none is written twice."""
        if not len(rows):
            return
        size: int = packed.ROWS
        first, last = int(rows.min()) // size, int(rows.max()) // size
        self.num_rows = max(self.num_rows, int(rows.max()) + 1)
        if first == last:
            self._put(first, rows - first * size, values)
            return
        number_of = rows // size
        columns = [list(column) for column in values]
        for number in range(first, last + 1):
            own = np.flatnonzero(number_of == number)
            if len(own):
                chosen = own.tolist()
                parts = [[column[i] for i in chosen] for column in columns]
                self._put(number, rows[own] - number * size, parts)

    def _put(self, number: int, rows: IntArray, values: Iterable[Sequence[Any]]) -> None:
        chunk = self._chunk(number)
        chunk.make_room(int(rows.max()) + 1)
        chunk.put(rows, values)
        self._count(number, len(rows))

    def _chunk(self, number: int) -> Columns:
        chunk = self._open.get(number)
        if chunk is None:
            chunk = self._open[number] = Columns(self._dtypes)
        return chunk

    def _count(self, number: int, more: int) -> None:
        """Pack a chunk when all its rows are written."""
        self._written[number] = self._written.get(number, 0) + more
        if self._written[number] == packed.ROWS:
            self._pack(number)

    def _pack(self, number: int) -> None:
        arrays = self._open.pop(number).arrays()
        self._packed[number] = {name: packed.Packed(arrays.pop(name)) for name in self._dtypes}

    def take(self, num_rows: int = 0) -> dict[str, npt.NDArray[Any]] | packed.PackedFrame:
        """Return all rows, at least `num_rows`; nothing is left here, so that none is kept twice.

        Returns
        -------
        dict of str to ndarray, or PackedFrame
            Arrays, where all rows are one chunk.
        """
        size: int = packed.ROWS
        num_rows = self.num_rows = max(self.num_rows, num_rows)
        if num_rows <= size and not self._packed:
            chunk = self._chunk(0)
            chunk.make_room(num_rows)
            self._open.clear()
            return chunk.arrays()
        for number in range(-(-num_rows // size)):
            if number not in self._packed:
                self._chunk(number).make_room(min(size, num_rows - number * size))
                self._pack(number)
        numbers = sorted(self._packed)
        whole = {name: [self._packed[n].pop(name) for n in numbers] for name in self._dtypes}
        self._packed.clear()
        return packed.PackedFrame(whole)


class Log:
    """Rows of one frame, turned into typed arrays chunk by chunk so that tuples do not pile up."""

    __slots__ = ("_chunks", "_schema", "rows")

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._chunks = Chunks(_dtypes(schema))
        self.rows: list[tuple[Any, ...]] = []

    def add(self, row: tuple[Any, ...]) -> None:
        """Append one row."""
        self.rows.append(row)
        if len(self.rows) >= CHUNK:
            self._flush()

    def _flush(self) -> None:
        self._chunks.append(self.rows)
        self.rows.clear()

    def columns(self) -> dict[str, npt.NDArray[Any]] | packed.PackedFrame:
        """All rows, by column; the log is empty afterwards, so that they are not kept twice."""
        if self.rows:
            self._flush()
        columns = self._chunks.take()
        self._chunks = Chunks(_dtypes(self._schema))
        return columns


def _dtypes(schema: Schema) -> dict[str, str]:
    return {name: "O" if c.dtype == "str" else c.dtype for name, c in schema.items()}


WriteKernel = Callable[[str, str, float, float], None]
"""Writes down what one rank did: unit, name, start and end (s)."""


class KernelLog(Log):
    """Rows of the kernels that reach into a stretch of time; others that it is given are dropped.

    Parameters
    ----------
    start_s, end_s : float
        The stretch (s).
    """

    __slots__ = ("end_s", "start_s")

    def __init__(self, start_s: float, end_s: float) -> None:
        super().__init__(KERNELS)
        self.start_s = start_s
        self.end_s = end_s

    def add(self, row: tuple[Any, ...]) -> None:
        """Append one row, if it is in the stretch."""
        if row[-2] < self.end_s and row[-1] > self.start_s:
            super().add(row)

    def writer(self, instance_id: int, rank: int) -> WriteKernel:
        """Return what writes the rows of one rank of an instance."""

        def write(unit: str, name: str, start_s: float, end_s: float) -> None:
            self.add((instance_id, rank, unit, name, start_s, end_s))

        return write
