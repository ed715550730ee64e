"""One after the other."""

from __future__ import annotations

from collections.abc import Sequence

from mypy_extensions import mypyc_attr

from simcluster.request import Request
from simcluster.routing.base import InstanceView


@mypyc_attr(allow_interpreted_subclasses=True)
class RoundRobin:
    """Give requests to the instances in turn, whatever their load."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, request: Request, instances: Sequence[InstanceView], now: float) -> int | None:
        """Return the next index in the ring."""
        index = self._next % len(instances)
        self._next = index + 1
        return index
