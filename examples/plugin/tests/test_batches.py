"""Batches keep the contract of arrival processes, and come together."""

from __future__ import annotations

import numpy as np
import pytest
from simcluster_example.batches import BatchArrivals

from simcluster.testing.contracts import ArrivalContract


class TestBatches(ArrivalContract):
    """All that every arrival process keeps."""

    @pytest.fixture
    def arrivals(self) -> BatchArrivals:
        """Return settings."""
        return BatchArrivals(batch_size=3)


def test_three_requests_arrive_together() -> None:
    """And never six."""
    times = BatchArrivals(batch_size=3).times(99, 5.0, 0)
    _, counts = np.unique(times, return_counts=True)
    assert set(counts.tolist()) == {3}
