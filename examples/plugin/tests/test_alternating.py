"""Alternating prompts and decodes keeps the contract of schedulers, and alternates."""

from __future__ import annotations

import pytest
from simcluster_example.alternating import Alternating

from simcluster.runs.simulate import run
from simcluster.sched import SCHEDULERS
from simcluster.strategies import NoDG
from simcluster.testing.contracts import SchedulerContract
from simcluster.testing.contracts.base import registered
from simcluster.testing.toy import toy_environment, toy_workload


class TestAlternating(SchedulerContract):
    """All that every scheduler keeps."""

    @pytest.fixture
    def scheduler(self) -> type[Alternating]:
        """Return the class."""
        return Alternating


def test_a_running_request_waits_for_one_prompt_at_most() -> None:
    """Four prompts that come together: each is followed by one decode step."""
    with registered(SCHEDULERS, Alternating) as name:
        strategy = NoDG(name="s", instances=1, scheduler=name)
        result = run(toy_environment(), strategy, toy_workload([(0.0, 20, 9)] * 4))
    spans = result.columns["spans"]
    kinds = ["prefill", "decode"] * 4
    assert spans["kind"].tolist()[:8] == kinds
    assert spans["num_steps"].tolist()[:7] == [1] * 7
