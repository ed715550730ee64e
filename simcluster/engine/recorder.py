"""Recorder: where everything that happens in a run is written down, frame by frame."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from simcluster.engine.log import KernelLog, Log
from simcluster.engine.request_log import RequestLog
from simcluster.frames.schema import INSTANCES, SCALING, SEGMENTS, SPANS, TRANSFERS, WINDOWS

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


def transfer_columns(log: Log) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of the transfers frame from the rows of `log`."""
    columns = log.columns()
    columns["wait_s"] = columns["start_s"] - columns["requested_s"]
    columns["duration_s"] = duration_s = columns["end_s"] - columns["start_s"]
    instant = duration_s == 0
    columns["bytes_per_s"] = columns["num_bytes"] / np.where(instant, np.nan, duration_s)
    return columns
