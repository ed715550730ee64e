"""Workloads written out by hand, for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from simcluster.units import grid_array
from simcluster.workload import Workload


def workload_of(
    arrival_s: npt.ArrayLike,
    prompt_len: npt.ArrayLike,
    output_len: npt.ArrayLike,
    *,
    rejected: Sequence[bool] | None = None,
    concurrency: int | None = None,
) -> Workload:
    """Return the workload with these requests.

    Parameters
    ----------
    arrival_s : array_like of float
        Arrivals (s), sorted, shape ``(num_requests,)``; put on the time grid. Ignored (taken as 0)
        in a closed loop.
    prompt_len, output_len : array_like of int
        Tokens, each >= 1; broadcast to the number of arrivals.
    rejected : sequence of bool, optional
        Which are turned away on arrival; none by default.
    concurrency : int, optional
        Requests in the system at once, for a closed loop.

    Returns
    -------
    Workload
        Ready for `simcluster.simulate.run`.
    """
    arrivals = grid_array(np.asarray(arrival_s, np.float64))
    if concurrency is not None:
        arrivals = np.zeros_like(arrivals)
    count = len(arrivals)
    return Workload(
        arrival_s=arrivals,
        prompt_len=np.broadcast_to(np.asarray(prompt_len, np.int64), count),
        output_len=np.broadcast_to(np.asarray(output_len, np.int64), count),
        rejected=np.zeros(count, bool) if rejected is None else np.asarray(rejected, bool),
        concurrency=concurrency,
    )
