"""The instance with the fewest tokens to its name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from mypy_extensions import mypyc_attr

from simcluster.request import Request
from simcluster.routing.base import InstanceView


@mypyc_attr(allow_interpreted_subclasses=True)
class LeastLoaded:
    """Give each request to the instance with the fewest waiting and running tokens.

    Among equals the first after the one chosen last gets it: a fixed order would feed the first
    instance of an idle cluster only.
    """

    def __init__(self) -> None:
        self._last = -1

    def choose(self, request: Request, instances: Sequence[InstanceView], now: float) -> int | None:
        """Return the index of the least loaded instance."""
        first = (self._last + 1) % len(instances)
        best, least = -1, -1
        for index in (*range(first, len(instances)), *range(first)):
            load = instances[index].load_tokens
            if load < least or best < 0:
                best, least = index, load
                if load == 0:
                    break
        self._last = best
        return best

    def choose_among(self, loads: Loads) -> int:
        """Return what `choose` would among the instances of `loads`, reading few of them."""
        self._last = loads.first_least(self._last + 1)
        return self._last


class Loads:
    """The least of many loads, without reading them all: a tournament of lower bounds.

    A load grows by itself, as steps pass, and with the requests that an instance is given. So what
    was read of it is a lower bound until somebody says that it `fell`. The instance with the lowest
    bound is read again, until one has the load that its bound says.

    Parameters
    ----------
    instances : sequence of InstanceView
        The instances, whose loads are whole numbers >= 0.
    """

    def __init__(self, instances: Sequence[InstanceView]) -> None:
        self._instances = list(instances)
        self._size = 1
        while self._size < len(self._instances):
            self._size *= 2
        # The bounds are the leaves of a tree in which a node has the lower of the two below it.
        self._bounds = [_NEVER] * (2 * self._size)
        for index in range(len(self._instances)):
            self._set(index, 0)

    def fell(self, index: int) -> None:
        """Hear that the load of an instance may be lower than it was."""
        self._set(index, 0)

    def first_least(self, first: int) -> int:
        """Return the index of the least load, among equals the next from `first` on, cyclically."""
        bounds, size = self._bounds, self._size
        first %= len(self._instances)
        while True:
            least = bounds[1]
            index = self._next(first, least)
            load = self._instances[index].load_tokens
            if load == bounds[size + index]:
                return index
            self._set(index, load)

    def _set(self, index: int, bound: int) -> None:
        bounds = self._bounds
        node = self._size + index
        bounds[node] = bound
        while node > 1:
            node //= 2
            left, right = bounds[2 * node], bounds[2 * node + 1]
            lower = left if left < right else right
            if bounds[node] == lower:
                break
            bounds[node] = lower

    def _next(self, first: int, least: int) -> int:
        """Return the first leaf from `first` on, cyclically, whose bound is the lowest, `least`."""
        bounds, size = self._bounds, self._size
        node = size + first
        if bounds[node] != least:
            # Up until a subtree to the right has it, or all to the right is done; then down.
            while node > 1 and (node % 2 or bounds[node + 1] != least):
                node //= 2
            node = node + 1 if node > 1 else 1
            while node < size:
                node *= 2
                node += bounds[node] != least
        return node - size


_NEVER: Final = 1 << 62
"""More than any load."""
