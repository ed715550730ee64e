"""The table keeps the contract of step-time sources, and gives its own points back."""

from __future__ import annotations

import pytest
from simcluster_example.table_times import CONTEXT_S, table_times

from simcluster.roofline import StepShape
from simcluster.roofline.sources import StepTimeFactory
from simcluster.testing.contracts import StepTimeContract
from simcluster.testing.toy import toy_environment
from simcluster.units import on_grid


class TestTableTimes(StepTimeContract):
    """All that every source of step times keeps."""

    tp_sizes = (1,)  # the table was measured on one GPU

    @pytest.fixture
    def step_time(self) -> StepTimeFactory:
        """Return the source."""
        return table_times


def test_points_of_the_table_come_back() -> None:
    """A prompt of 1024 tokens; 32 sequences with 6400 tokens of context."""
    times = table_times(toy_environment(), 1)
    assert times.prefill_s(1024) == on_grid(78e-3)
    decode = times.step_s(StepShape(32, 6400, (), 32, 6400))
    assert decode == on_grid(9.6e-3 + 6400 * CONTEXT_S)
