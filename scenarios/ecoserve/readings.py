"""Other readings of the paper's TPOT, from the times of all tokens of a run.

EcoServe (arXiv 2504.18154), section 4.1: TTFT includes the wait for the phase switch, and TPOT is
counted from there. `simcluster` takes a request's own first decode step for the switch; it could
also be the instance's, and a TPOT target could be meant for nearly all gaps instead of their mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
import numpy.typing as npt

from simcluster.config import Environment, SloConfig
from simcluster.frames import unroll
from simcluster.frames.schema import Columns
from simcluster.frames.unroll import Frames, PerRequest

Mask = npt.NDArray[np.bool_]

SHARE: Final = 0.9
"""Of a request's gaps, in the reading ``gaps``."""


def after_release(requests: Columns, tokens: PerRequest, slo: SloConfig) -> Mask:
    """TTFT ends at the release of the output, or at the first decode step if that is later.

    TPOT is the mean gap of the tokens that are computed after the release: those before belong to
    the prefill window, in which the prefills of others interrupt them.
    """
    released = requests["first_output_s"]
    starts = np.fmax(released, requests["decode_start_s"])
    met = starts - requests["arrival_s"] <= slo.ttft_s
    for i in np.flatnonzero(met):
        times = tokens[i]
        later = times[np.searchsorted(times, released[i], side="right") :]
        if len(later) > 1:
            met[i] = (later[-1] - later[0]) / (len(later) - 1) <= slo.tpot_s
    return met & (requests["status"] == "finished")


def nearly_all_gaps(requests: Columns, tokens: PerRequest, slo: SloConfig) -> Mask:
    """TTFT to the first decode step; nine in ten gaps from there on within the TPOT target."""
    starts = requests["decode_start_s"]
    wait_s = np.where(np.isnan(starts), requests["first_token_s"], starts) - requests["arrival_s"]
    met = wait_s <= slo.ttft_s
    for i in np.flatnonzero(met):
        times = tokens[i]
        if len(times) > 1:
            gaps = np.diff(times)
            gaps[0] = times[1] - starts[i]
            met[i] = np.quantile(gaps, SHARE) <= slo.tpot_s
    return met & (requests["status"] == "finished")


READINGS: Final[dict[str, Callable[[Columns, PerRequest, SloConfig], Mask]]] = {
    "after release": after_release,
    "nearly all gaps": nearly_all_gaps,
}
"""Which requests met the targets, by reading."""


def met_by_reading(frames: Frames, environment: Environment) -> dict[str, Mask]:
    """Return which requests of a run met the targets, by reading."""
    tokens = unroll.token_times(frames, unroll.steps(frames, environment))
    return {
        name: read(frames["requests"], tokens, environment.slo) for name, read in READINGS.items()
    }
