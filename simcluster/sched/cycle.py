"""Events that come back: how many sequences do something in the steps to come."""

from __future__ import annotations

from bisect import bisect_right
from itertools import accumulate


class Cycle:
    """A multiset of events, each of which happens at every step of one remainder.

    Counting the events of a run of steps takes a sum over a period, whatever the number of events.

    Parameters
    ----------
    period : int
        Steps from an event to itself, >= 1.
    """

    __slots__ = ("_counts", "_period", "_size")

    def __init__(self, period: int) -> None:
        self._period = period
        self._counts = [0] * period  # events of each remainder
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def add(self, step: int) -> None:
        """Let an event happen at `step`, and a period later, and so on."""
        self._counts[step % self._period] += 1
        self._size += 1

    def remove(self, step: int) -> None:
        """Take one event out that happens at `step`."""
        self._counts[step % self._period] -= 1
        self._size -= 1

    def count(self, start: int, num_steps: int) -> int:
        """Count the events in `num_steps` steps from `start` on."""
        counts, period = self._counts, self._period
        first = start % period
        if num_steps == 1:
            return counts[first]
        cycles, rest = divmod(num_steps, period)
        end = first + rest
        found = cycles * self._size + sum(counts[first:end])
        return found if end <= period else found + sum(counts[: end - period])

    def until(self, start: int, number: int) -> int:
        """Count the steps from `start` on before the one with event `number` (from 0).

        There must be an event at all.
        """
        cycles, rest = divmod(number, self._size)
        return cycles * self._period + bisect_right(list(accumulate(self._from(start))), rest)

    def by_step(self, start: int, num_steps: int) -> list[int]:
        """Count the events of each of `num_steps` steps from `start` on."""
        return (self._from(start) * (num_steps // self._period + 1))[:num_steps]

    def _from(self, start: int) -> list[int]:
        """Events of each step of a period that begins at `start`."""
        first = start % self._period
        return self._counts[first:] + self._counts[:first]
