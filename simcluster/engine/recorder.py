"""What happened, as columns: rows are tuples while running and arrays at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from simcluster.request import Request, RequestStatus
from simcluster.schema import (
    INSTANCES,
    KERNELS,
    REQUESTS,
    SEGMENTS,
    SPANS,
    TRANSFERS,
    WINDOWS,
    Schema,
)
from simcluster.units import FloatArray

_CHUNK: Final = 1 << 15
_STATUS_NAMES: Final = {RequestStatus.FINISHED: "finished", RequestStatus.REJECTED: "rejected"}


class Log:
    """Rows of one frame, turned into typed arrays chunk by chunk so that tuples do not pile up.

    Parameters
    ----------
    schema : Schema
        Columns, in the order of the tuples.
    """

    __slots__ = ("_arrays", "_schema", "rows")

    def __init__(self, schema: Schema) -> None:
        self._schema = schema
        self._arrays: list[list[npt.NDArray[Any]]] = [[] for _ in schema]
        self.rows: list[tuple[Any, ...]] = []

    def add(self, row: tuple[Any, ...]) -> None:
        """Append one row."""
        self.rows.append(row)
        if len(self.rows) >= _CHUNK:
            self._flush()

    def _flush(self) -> None:
        for arrays, values, column in zip(
            self._arrays,
            zip(*self.rows, strict=True),
            self._schema.values(),
            strict=True,
        ):
            arrays.append(np.array(values, dtype=object if column.dtype == "str" else column.dtype))
        self.rows.clear()

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """All rows, by column; the log is empty afterwards, so that they are not kept twice."""
        if self.rows:
            self._flush()
        columns: dict[str, npt.NDArray[Any]] = {}
        for (name, column), arrays in zip(self._schema.items(), self._arrays, strict=True):
            empty = np.empty(0, dtype=object if column.dtype == "str" else column.dtype)
            columns[name] = np.concatenate(arrays) if arrays else empty
            arrays.clear()
        return columns


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
    spans, segments, transfers, windows, instances : Log
        Rows in the order of the columns of `simcluster.schema`.
    """

    def __init__(self, kernels: KernelLog | None = None) -> None:
        self.kernels = kernels
        self.spans = Log(SPANS)
        self.segments = Log(SEGMENTS)
        self.transfers = Log(TRANSFERS)
        self.windows = Log(WINDOWS)
        self.instances = Log(INSTANCES)


def request_columns(
    requests: Sequence[Request],
    models: Sequence[str],
    quality_of: Callable[[FloatArray], FloatArray] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of the requests frame, one row per request, unfinished ones included.

    Parameters
    ----------
    requests : sequence of Request
        Those that arrived, in order.
    models : sequence of str
        Names of the models that `Request.model` counts.
    quality_of : callable, optional
        From scores, shape ``(n,)``, to each model's expected quality, shape ``(n, num_models)``.
    """
    stamps = (
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
    counts = (
        "request_id",
        "prompt_len",
        "output_len",
        "num_output_tokens",
        "prefill_instance",
        "decode_instance",
        "num_preemptions",
        "num_cached_tokens",
    )
    columns: dict[str, npt.NDArray[Any]] = {
        name: np.array([getattr(r, name) for r in requests], dtype=np.float64) for name in stamps
    }
    for name in counts:
        columns[name] = np.array([getattr(r, name) for r in requests], dtype=REQUESTS[name].dtype)
    status = np.array([_STATUS_NAMES.get(r.status, "unfinished") for r in requests], dtype=object)
    # Computed, but still held back when the run was stopped: its user has not seen the end.
    status[(status == "finished") & np.isnan(columns["last_output_s"])] = "unfinished"
    columns["status"] = status
    chosen = np.array([r.model for r in requests], dtype=np.int64)
    columns["model"] = np.array(models, dtype=object)[chosen]
    columns["quality"] = np.full(len(requests), np.nan)
    if quality_of is not None and len(requests):
        expected = quality_of(columns["score"])
        columns["quality"] = expected[np.arange(len(requests)), chosen]
    arrival = columns["arrival_s"]
    columns["queue_s"] = columns["scheduled_s"] - arrival
    columns["ttft_s"] = columns["first_output_s"] - arrival
    columns["e2el_s"] = columns["last_output_s"] - arrival
    gaps = columns["output_len"] - 1.0
    gaps[gaps == 0] = np.nan
    columns["tpot_s"] = (columns["last_output_s"] - columns["first_output_s"]) / gaps
    return {name: columns[name] for name in REQUESTS}
