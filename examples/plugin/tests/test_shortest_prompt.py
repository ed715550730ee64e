"""The shortest prompt first keeps the contract of queues."""

from __future__ import annotations

import pytest
from simcluster_example.shortest_prompt import ShortestPrompt

from simcluster.testing.contracts import QueueContract


class TestShortestPrompt(QueueContract):
    """All that every queue keeps."""

    @pytest.fixture
    def queue(self) -> type[ShortestPrompt]:
        """Return the class."""
        return ShortestPrompt
