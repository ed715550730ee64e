"""Rows of frames: tuples while running, typed arrays at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

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

    def pop(self, name: str) -> npt.NDArray[Any]:
        """Take one column out."""
        return self._arrays.pop(name)[: self.num_rows]


class Log:
    """Rows of one frame, turned into typed arrays chunk by chunk so that tuples do not pile up."""

    __slots__ = ("_columns", "_schema", "rows")

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._columns = Columns(_dtypes(schema))
        self.rows: list[tuple[Any, ...]] = []

    def add(self, row: tuple[Any, ...]) -> None:
        """Append one row."""
        self.rows.append(row)
        if len(self.rows) >= CHUNK:
            self._flush()

    def _flush(self) -> None:
        self._columns.append(self.rows)
        self.rows.clear()

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """All rows, by column; the log is empty afterwards, so that they are not kept twice."""
        if self.rows:
            self._flush()
        columns = {name: self._columns.pop(name) for name in self._schema}
        self._columns = Columns(_dtypes(self._schema))
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
