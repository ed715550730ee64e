"""Rows of the requests frame."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from simcluster.engine.log import CHUNK, Columns
from simcluster.frames.schema import REQUESTS
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
        self._columns = Columns(
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
        if len(self._ended) >= CHUNK:
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
