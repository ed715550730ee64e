"""What happened, as columns: rows are tuples while running and arrays at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from simcluster.request import Request, RequestStatus
from simcluster.schema import (
    INSTANCES,
    KERNELS,
    REQUESTS,
    SCALING,
    SEGMENTS,
    SPANS,
    TRANSFERS,
    WINDOWS,
    Schema,
)
from simcluster.units import FloatArray, IntArray

_TRANSFER_STAMPS: Final = (
    "request_id",
    "path",
    "num_bytes",
    "requested_s",
    "start_s",
    "end_s",
)
"""Columns of the transfers frame that are written down; the others follow from them."""
_CHUNK: Final = 1 << 12
"""Rows that are tuples, or requests, before they become numbers."""


class _Columns:
    """Typed arrays, one per column, that grow: twice the room whenever it is used up.

    Room that is not used yet costs no memory, and neither does a column in which all numbers are 0:
    the system hands pages out when they are written to.

    Parameters
    ----------
    dtypes : mapping of str to str
        NumPy dtype of each column, by name.
    """

    __slots__ = ("_arrays", "_blank", "_room", "num_rows")

    def __init__(self, dtypes: Mapping[str, str]) -> None:
        self.num_rows = 0
        self._room = _CHUNK
        self._arrays = {name: np.zeros(_CHUNK, dtype) for name, dtype in dtypes.items()}
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
    """Rows of one frame, turned into typed arrays chunk by chunk so that tuples do not pile up.

    Parameters
    ----------
    schema : Schema
        Columns, in the order of the tuples.
    """

    __slots__ = ("_columns", "_schema", "rows")

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._columns = _Columns(_dtypes(schema))
        self.rows: list[tuple[Any, ...]] = []

    def add(self, row: tuple[Any, ...]) -> None:
        """Append one row."""
        self.rows.append(row)
        if len(self.rows) >= _CHUNK:
            self._flush()

    def _flush(self) -> None:
        self._columns.append(self.rows)
        self.rows.clear()

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """All rows, by column; the log is empty afterwards, so that they are not kept twice."""
        if self.rows:
            self._flush()
        columns = {name: self._columns.pop(name) for name in self._schema}
        self._columns = _Columns(_dtypes(self._schema))
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


class Recorder:
    """Collects the frames of one run.

    Parameters
    ----------
    kernels : KernelLog, optional
        Where kernels go; they are not recorded by default.

    Attributes
    ----------
    requests : RequestLog
        The requests.
    spans, segments, transfers, windows, scaling, instances : Log
        Rows in the order of the columns of `simcluster.schema`.
    """

    def __init__(self, kernels: KernelLog | None = None) -> None:
        self.kernels = kernels
        self.requests = RequestLog()
        self.spans = Log(SPANS)
        self.segments = Log(SEGMENTS)
        self.transfers = Log({name: TRANSFERS[name] for name in _TRANSFER_STAMPS})
        self.windows = Log(WINDOWS)
        self.scaling = Log(SCALING)
        self.instances = Log(INSTANCES)


def transfer_columns(log: Log) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of the transfers frame from the rows of `log`."""
    columns = log.columns()
    columns["wait_s"] = columns["start_s"] - columns["requested_s"]
    columns["duration_s"] = duration_s = columns["end_s"] - columns["start_s"]
    instant = duration_s == 0
    columns["bytes_per_s"] = columns["num_bytes"] / np.where(instant, np.nan, duration_s)
    return columns


_STAMPS: Final = (
    "arrival_s",
    "routed_s",
    "scheduled_s",
    "first_token_s",
    "decode_start_s",
    "first_output_s",
    "last_token_s",
    "last_output_s",
    "transfer_s",
    "score",
)
_COUNTS: Final = (
    "request_id",
    "prompt_len",
    "output_len",
    "num_output_tokens",
    "prefill_instance",
    "decode_instance",
    "num_preemptions",
    "num_cached_tokens",
)
_row_of = attrgetter(*_STAMPS, *_COUNTS, "model")
_STATUS: Final = np.array(["unfinished", "finished", "rejected"], dtype=object)
_STATUS_CODES: Final = {RequestStatus.FINISHED: 1, RequestStatus.REJECTED: 2}


class RequestLog:
    """Rows of the requests frame; of a request that has ended only its numbers are kept.

    Attributes
    ----------
    num_arrived : int
        Requests so far; their ids are 0, 1, ...
    """

    def __init__(self) -> None:
        self.num_arrived = 0
        self._present: dict[int, Request] = {}
        self._ended: list[Request] = []
        self._columns = _Columns(
            {n: REQUESTS[n].dtype for n in (*_STAMPS, *_COUNTS)}
            | {"model": "int32", "status": "int8"}
        )

    def arrived(self, request: Request) -> None:
        """Keep `request`, whose id is the next number, while it is served."""
        self._present[request.request_id] = request
        self.num_arrived += 1

    def ended(self, request: Request) -> None:
        """Write `request` down: it finished or was rejected, and changes no more."""
        del self._present[request.request_id]
        self._ended.append(request)
        if len(self._ended) >= _CHUNK:
            self._write(self._ended)

    def _write(self, requests: list[Request]) -> None:
        self._columns.make_room(self.num_arrived)
        rows = np.fromiter((r.request_id for r in requests), np.int64, len(requests))
        codes = [_STATUS_CODES.get(r.status, 0) for r in requests]
        self._columns.put(rows, (*zip(*map(_row_of, requests), strict=True), codes))
        requests.clear()

    def columns(
        self,
        models: Sequence[str],
        quality_of: Callable[[FloatArray], FloatArray] | None = None,
    ) -> dict[str, npt.NDArray[Any]]:
        """Return the frame, in order of arrival, unfinished ones included; empty the log.

        Parameters
        ----------
        models : sequence of str
            Names of the models that `Request.model` counts.
        quality_of : callable, optional
            From scores, shape ``(n,)``, to each model's expected quality, shape ``(n,
            num_models)``.
        """
        for requests in (self._ended, list(self._present.values())):
            if requests:
                self._write(requests)
        self._present.clear()
        columns = {name: self._columns.pop(name) for name in (*_STAMPS, *_COUNTS)}
        codes = self._columns.pop("status")
        # Computed, but still held back when the run was stopped: its user has not seen the end.
        codes[(codes == 1) & np.isnan(columns["last_output_s"])] = 0
        columns["status"] = _STATUS[codes]
        chosen = self._columns.pop("model")
        # What is the same for all takes no memory.
        columns["model"] = np.broadcast_to(np.array(models[:1], dtype=object), len(chosen))
        if len(models) > 1:
            columns["model"] = np.array(models, dtype=object)[chosen]
        columns["quality"] = np.broadcast_to(np.nan, len(chosen))
        if quality_of is not None and len(chosen):
            expected = quality_of(columns["score"])
            columns["quality"] = expected[np.arange(len(chosen)), chosen]
        arrival = columns["arrival_s"]
        columns["queue_s"] = columns["scheduled_s"] - arrival
        columns["ttft_s"] = columns["first_output_s"] - arrival
        columns["e2el_s"] = columns["last_output_s"] - arrival
        gaps = columns["output_len"] - 1.0
        gaps[gaps == 0] = np.nan
        columns["tpot_s"] = (columns["last_output_s"] - columns["first_output_s"]) / gaps
        return {name: columns[name] for name in REQUESTS}
