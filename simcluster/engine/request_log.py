"""Rows of the requests frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from simcluster.engine.log import CHUNK, Chunks, Columns
from simcluster.frames.packed import Derive, PackedFrame
from simcluster.frames.schema import REQUESTS
from simcluster.frames.schema import Columns as Frame
from simcluster.request import Request, RequestStatus
from simcluster.units import FloatArray

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
_DTYPES: Final = {n: REQUESTS[n].dtype for n in (*_STAMPS, *_COUNTS)} | {
    "model": "int32",
    "status": "int8",
}
_row_of = attrgetter(*_STAMPS, *_COUNTS, "model")
_STATUS: Final = np.array(["unfinished", "finished", "rejected"], dtype=object)
_STATUS_CODES: Final = {RequestStatus.FINISHED: 1, RequestStatus.REJECTED: 2}


class RequestLog:
    """Rows of the requests frame; of a request that has ended only its numbers are kept.

    Attributes
    ----------
    num_arrived : int
        Requests so far; their ids are 0, 1, ...
    take : callable or None
        Gets those that have ended, in a list to be emptied, in the place of the columns.
    """

    def __init__(self) -> None:
        self.num_arrived = 0
        self.take: Callable[[list[Request]], None] | None = None
        self._present: dict[int, Request] = {}
        self._ended: list[Request] = []
        self._chunks = Chunks(_DTYPES)

    @property
    def present(self) -> list[Request]:
        """Requests that have arrived and not ended."""
        return list(self._present.values())

    @property
    def waiting(self) -> list[Request]:
        """Requests that have ended and are not written down yet."""
        return self._ended

    def arrived(self, request: Request) -> None:
        """Keep `request`, whose id is the next number, while it is served."""
        self._present[request.request_id] = request
        self.num_arrived += 1

    def ended(self, request: Request) -> None:
        """Write `request` down: it finished or was rejected, and changes no more."""
        del self._present[request.request_id]
        self._ended.append(request)
        if len(self._ended) >= CHUNK:
            self._write(self._ended)

    def flush(self) -> None:
        """Write all down, unfinished requests too."""
        for requests in (self._ended, self.present):
            if requests:
                self._write(requests)
        self._present.clear()

    def _write(self, requests: list[Request]) -> None:
        if self.take is not None:
            self.take(requests)
            return
        rows = np.fromiter((r.request_id for r in requests), np.int64, len(requests))
        self._chunks.put(rows, _columns_of(requests))
        requests.clear()

    def rows_of(self, requests: list[Request], models: Sequence[str]) -> dict[str, Any]:
        """Return the rows of some requests, in their order, of whom nobody knows the quality."""
        columns = Columns(_DTYPES)
        columns.make_room(len(requests))
        columns.put(slice(0, len(requests)), _columns_of(requests))
        return _frame(columns.arrays(), models, None)

    def columns(
        self,
        models: Sequence[str],
        quality_of: Callable[[FloatArray], FloatArray] | None = None,
    ) -> dict[str, npt.NDArray[Any]] | PackedFrame:
        """Return the frame, in order of arrival, unfinished ones included; empty the log.

        Parameters
        ----------
        models : sequence of str
            Names of the models that `Request.model` counts.
        quality_of : callable, optional
            From scores, shape ``(n,)``, to each model's expected quality, shape ``(n,
            num_models)``.
        """
        self.flush()
        numbers = self._chunks.take(self.num_arrived)
        if isinstance(numbers, PackedFrame):
            return self._packed(numbers, models, quality_of)
        return _frame(numbers, models, quality_of)

    def _packed(
        self,
        numbers: PackedFrame,
        models: Sequence[str],
        quality_of: Callable[[FloatArray], FloatArray] | None,
    ) -> PackedFrame:
        """Return the frame of a long run (`frames.packed`)."""
        chosen = numbers["model"]
        quality = np.broadcast_to(np.nan, len(chosen))
        if quality_of is not None:
            quality = _quality(quality_of, numbers["score"], chosen)
        columns = numbers.with_column("quality", quality)
        columns = columns.with_column("model", np.array(models, dtype=object)[chosen])
        columns = columns.with_column("status", _status(numbers))
        return columns.derive(_DERIVED, list(REQUESTS))


def _columns_of(requests: list[Request]) -> Iterable[Sequence[Any]]:
    codes = [_STATUS_CODES.get(r.status, 0) for r in requests]
    return (*zip(*map(_row_of, requests), strict=True), codes)


def _frame(
    numbers: dict[str, npt.NDArray[Any]],
    models: Sequence[str],
    quality_of: Callable[[FloatArray], FloatArray] | None,
) -> dict[str, npt.NDArray[Any]]:
    columns = {name: numbers[name] for name in (*_STAMPS, *_COUNTS)}
    columns["status"] = _status(numbers)
    chosen = numbers["model"]
    # What is the same for all takes no memory.
    columns["model"] = np.broadcast_to(np.array(models[:1], dtype=object), len(chosen))
    if len(models) > 1:
        columns["model"] = np.array(models, dtype=object)[chosen]
    columns["quality"] = np.broadcast_to(np.nan, len(chosen))
    if quality_of is not None and len(chosen):
        columns["quality"] = _quality(quality_of, columns["score"], chosen)
    for name, derive in _DERIVED.items():
        columns[name] = derive(columns)
    return {name: columns[name] for name in REQUESTS}


def _status(numbers: Frame) -> npt.NDArray[Any]:
    # Computed, but still held back when the run was stopped: its user has not seen the end.
    codes = numbers["status"].copy()
    codes[(codes == 1) & np.isnan(numbers["last_output_s"])] = 0
    status: npt.NDArray[Any] = _STATUS[codes]
    return status


def _quality(
    quality_of: Callable[[FloatArray], FloatArray], score: FloatArray, model: npt.NDArray[Any]
) -> FloatArray:
    expected = quality_of(score)
    chosen: FloatArray = expected[np.arange(len(model)), model]
    return chosen


def _queue_s(columns: Frame) -> FloatArray:
    queue_s: FloatArray = columns["scheduled_s"] - columns["arrival_s"]
    return queue_s


def _ttft_s(columns: Frame) -> FloatArray:
    ttft_s: FloatArray = columns["first_output_s"] - columns["arrival_s"]
    return ttft_s


def _e2el_s(columns: Frame) -> FloatArray:
    e2el_s: FloatArray = columns["last_output_s"] - columns["arrival_s"]
    return e2el_s


def _tpot_s(columns: Frame) -> FloatArray:
    gaps = columns["output_len"] - 1.0
    gaps[gaps == 0] = np.nan
    tpot_s: FloatArray = (columns["last_output_s"] - columns["first_output_s"]) / gaps
    return tpot_s


_DERIVED: Final[dict[str, Derive]] = {
    "queue_s": _queue_s,
    "ttft_s": _ttft_s,
    "e2el_s": _e2el_s,
    "tpot_s": _tpot_s,
}
