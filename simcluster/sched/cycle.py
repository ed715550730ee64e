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

    Attributes
    ----------
    counts : list of int
        Events of each remainder, for callers in a hurry.
    """

    __slots__ = ("_period", "counts")

    def __init__(self, period: int) -> None:
        self._period = period
        self.counts = [0] * period

    def __len__(self) -> int:
        return sum(self.counts)

    def add(self, step: int) -> None:
        """Let an event happen at `step`, and a period later, and so on."""
        self.counts[step % self._period] += 1

    def remove(self, step: int) -> None:
        """Take one event out that happens at `step`."""
        self.counts[step % self._period] -= 1

    def count(self, start: int, num_steps: int) -> int:
        """Count the events in `num_steps` steps from `start` on."""
        counts, period = self.counts, self._period
        first = start % period
        if num_steps == 1:
            return counts[first]
        end = first + num_steps
        if end <= period:
            return sum(counts[first:end])
        cycles, rest = divmod(end, period)
        return cycles * sum(counts) + sum(counts[:rest]) - sum(counts[:first])

    def until(self, start: int, number: int) -> int:
        """Count the steps from `start` on before the one with event `number` (from 0).

        There must be an event at all.
        """
        cycles, rest = divmod(number, sum(self.counts))
        return cycles * self._period + bisect_right(list(accumulate(self._from(start))), rest)

    def by_step(self, start: int, num_steps: int) -> list[int]:
        """Count the events of each of `num_steps` steps from `start` on."""
        return (self._from(start) * (num_steps // self._period + 1))[:num_steps]

    def _from(self, start: int) -> list[int]:
        """Events of each step of a period that begins at `start`."""
        first = start % self._period
        return self.counts[first:] + self.counts[:first]
