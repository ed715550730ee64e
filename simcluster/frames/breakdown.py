"""Where the time of a request goes: the parts of its TTFT and of its end-to-end latency.

The parts lie between stamps that every request of every strategy has, so they add up to the latency
itself, and two strategies can be compared part by part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from simcluster.units import FloatArray

if TYPE_CHECKING:
    from simcluster.frames.metrics import BoolArray, Frame

TTFT_PARTS: Final = {
    "routing": "waits to be given to an instance (in PaDG: for a prefill window)",
    "queue": "waits in the instance",
    "prefill": "prefill, from its first step to its first token",
    "transfer": "its KV cache moves to the decode instance",
    "held": "the first token is computed and held back",
}
"""Parts of the TTFT by name: what happens in each."""
E2E_PARTS: Final = {
    "routing": TTFT_PARTS["routing"],
    "queue": TTFT_PARTS["queue"],
    "prefill": TTFT_PARTS["prefill"],
    "transfer": TTFT_PARTS["transfer"],
    "pause": "prefilled, waits for its first decode step (in PaDG: for the window to pass on)",
    "decode": "decode, from its first step to its last token, prefills of others in between",
    "release": "the last token is computed and held back",
}
"""Parts of the end-to-end latency by name: what happens in each."""


def ttft_parts(requests: Frame) -> dict[str, FloatArray]:
    """Return the parts of the TTFT (first output - arrival) of every request.

    Parameters
    ----------
    requests : mapping or pandas.DataFrame
        The requests frame.

    Returns
    -------
    dict of str to ndarray
        By the names of `TTFT_PARTS` (s), each of shape ``(num_requests,)``; their sum is the TTFT.
        NaN where the request never came so far.
    """
    return _parts_until(_stamp(requests, "first_output_s"), requests, "held")


def e2e_parts(requests: Frame) -> dict[str, FloatArray]:
    """Return the parts of the end-to-end latency (last output - arrival) of every request.

    Parameters
    ----------
    requests : mapping or pandas.DataFrame
        The requests frame.

    Returns
    -------
    dict of str to ndarray
        By the names of `E2E_PARTS` (s), each of shape ``(num_requests,)``; their sum is the
        latency. NaN where the request never came so far; 0 for the decode of one token.

    Notes
    -----
    A transfer counts from the first token on: what of it lies inside the prefill (layer by layer)
    costs nobody time.
    """
    starts, last = _stamp(requests, "decode_start_s"), _stamp(requests, "last_token_s")
    return {
        **_parts_until(starts, requests, "pause"),
        "decode": last - starts,
        "release": _stamp(requests, "last_output_s") - last,
    }


def mean_parts(parts: dict[str, FloatArray], chosen: BoolArray) -> dict[str, float]:
    """Return the mean of each part over the chosen requests that have all of them (s).

    So the means add up to the mean latency of those requests; NaN where there are none.
    """
    whole = chosen & ~np.isnan(sum(parts.values()))
    return {
        name: float(values[whole].mean()) if whole.any() else np.nan
        for name, values in parts.items()
    }


def _parts_until(end: FloatArray, requests: Frame, rest: str) -> dict[str, FloatArray]:
    """Return the parts from arrival to `end`, which follows the first token; `rest` is the last."""
    arrival, routed = _stamp(requests, "arrival_s"), _stamp(requests, "routed_s")
    scheduled, first = _stamp(requests, "scheduled_s"), _stamp(requests, "first_token_s")
    moves = np.minimum(_stamp(requests, "transfer_s"), end - first)
    return {
        "routing": routed - arrival,
        "queue": scheduled - routed,
        "prefill": first - scheduled,
        "transfer": moves,
        rest: end - first - moves,
    }


def _stamp(requests: Frame, name: str) -> FloatArray:
    return np.asarray(requests[name], dtype=np.float64)
