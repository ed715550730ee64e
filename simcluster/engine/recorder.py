"""Recorder: where everything that happens in a run is written down, frame by frame."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from simcluster.engine.log import KernelLog, Log
from simcluster.engine.request_log import RequestLog
from simcluster.frames.packed import Derive, PackedFrame
from simcluster.frames.schema import (
    INSTANCES,
    SCALING,
    SEGMENTS,
    SPANS,
    TRANSFERS,
    WINDOWS,
    Columns,
)

_TRANSFER_STAMPS: Final = (
    "request_id",
    "path",
    "num_bytes",
    "requested_s",
    "start_s",
    "end_s",
)
"""Columns of the transfers frame that are written down; the others follow from them."""


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
        Rows in the order of the columns of `simcluster.frames.schema`.
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


def transfer_columns(log: Log) -> Columns:
    """Return the columns of the transfers frame from the rows of `log`."""
    columns = log.columns()
    if isinstance(columns, PackedFrame):
        return columns.derive(_DERIVED, list(TRANSFERS))
    for name, derive in _DERIVED.items():
        columns[name] = derive(columns)
    return columns


def _wait_s(columns: Columns) -> npt.NDArray[Any]:
    wait_s: npt.NDArray[Any] = columns["start_s"] - columns["requested_s"]
    return wait_s


def _duration_s(columns: Columns) -> npt.NDArray[Any]:
    duration_s: npt.NDArray[Any] = columns["end_s"] - columns["start_s"]
    return duration_s


def _bytes_per_s(columns: Columns) -> npt.NDArray[Any]:
    duration_s = _duration_s(columns)
    speed: npt.NDArray[Any] = columns["num_bytes"] / np.where(duration_s == 0, np.nan, duration_s)
    return speed


_DERIVED: Final[dict[str, Derive]] = {
    "wait_s": _wait_s,
    "duration_s": _duration_s,
    "bytes_per_s": _bytes_per_s,
}
