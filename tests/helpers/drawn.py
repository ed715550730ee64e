"""Workloads that hypothesis draws, for property tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from simcluster.testing.workloads import workload_of
from simcluster.workload import Workload


def bursts(gaps_s: Sequence[float], *, most: int) -> st.SearchStrategy[Workload]:
    """Return a strategy of workloads of prompts up to 150 tokens and answers up to 100.

    Parameters
    ----------
    gaps_s : sequence of float
        Times between two arrivals to draw from (s); 0 for requests that arrive together.
    most : int
        Most requests, >= 1.
    """
    request = st.tuples(st.sampled_from(gaps_s), st.integers(1, 150), st.integers(1, 100))

    def workload(requests: Sequence[tuple[float, int, int]]) -> Workload:
        gaps, prompts, outputs = zip(*requests, strict=True)
        return workload_of(np.cumsum(gaps), prompts, outputs)

    return st.lists(request, min_size=1, max_size=most).map(workload)
