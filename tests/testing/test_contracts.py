"""Contracts as a stranger uses them."""

from __future__ import annotations

import pytest

pytest_plugins = ["pytester"]

STRANGER = """
import pytest
from simcluster.sched import PrefillPriority
from simcluster.testing.contracts import QueueContract, SchedulerContract

class Mine(PrefillPriority):
    def add(self, request):
        super().add(request)
        return False

class TestMine(SchedulerContract):
    @pytest.fixture
    def scheduler(self):
        return Mine

class TestNothing(QueueContract):
    pass
"""


def test_a_stranger_derives_one_class_with_one_fixture(pytester: pytest.Pytester) -> None:
    """What breaks a law fails with its words; a fixture that is not given is asked for."""
    pytester.makepyfile(STRANGER)
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "-x", "-k", "crowd")
    result.stdout.fnmatch_lines(["*AssertionError: requests.scheduled_s*"])
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "-k", "Nothing and share")
    result.stdout.fnmatch_lines(["*give the contract a fixture `queue` that returns the class*"])
