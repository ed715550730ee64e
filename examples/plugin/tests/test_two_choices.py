"""The better of two draws keeps the contract of routers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from simcluster_example.two_choices import TwoChoices

from simcluster.routing import Router
from simcluster.testing.contracts import RouterContract


class TestTwoChoices(RouterContract):
    """All that every router keeps."""

    @pytest.fixture
    def router(self) -> Callable[[], Router]:
        """Return the class."""
        return TwoChoices
