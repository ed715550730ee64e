"""Outcomes of the runs of a goodput search written by hand, for tests."""

from __future__ import annotations

import math
from typing import Any

from simcluster.studies.goodput import Outcome

_COUNTED = 10**9


def outcome_of_odds(log_odds: float, **fields: Any) -> Outcome:
    """Return the outcome of a run of a billion requests that meet their targets with these odds.

    Parameters
    ----------
    log_odds : float
        Logarithm of the number that meets the targets over the number that misses them.
    **fields
        Other fields of the outcome; without them the run is short and shows no trend.
    """
    known: dict[str, Any] = {"residence_s": 1e-3, "arrivals": 0.0, "drift": 0.0, "growth": 0.0}
    met = round(_COUNTED / (1 + math.exp(-log_odds)))
    return Outcome(counted=(_COUNTED,), met=(met,), **{**known, **fields})
