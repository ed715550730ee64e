"""Events that come back: how many sequences do something in the steps to come."""

from __future__ import annotations

from bisect import bisect_left, insort


class Cycle:
    """A multiset of events, each of which happens at every step of one remainder.

    Counting the events of a run of steps takes two bisections, whatever the number of events.

    Parameters
    ----------
    period : int
        Steps from an event to itself, >= 1.
    """

    __slots__ = ("_period", "_phases")

    def __init__(self, period: int) -> None:
        self._period = period
        self._phases: list[int] = []  # sorted

    def __len__(self) -> int:
        return len(self._phases)

    def add(self, step: int) -> None:
        """Let an event happen at `step`, and a period later, and so on."""
        insort(self._phases, step % self._period)

    def remove(self, step: int) -> None:
        """Take one event out that happens at `step`."""
        del self._phases[bisect_left(self._phases, step % self._period)]

    def count(self, start: int, num_steps: int) -> int:
        """Count the events in `num_steps` steps from `start` on."""
        cycles, rest = divmod(num_steps, self._period)
        first = start % self._period
        phases, end = self._phases, first + rest
        found = bisect_left(phases, end) - bisect_left(phases, first)
        if end > self._period:
            found += bisect_left(phases, end - self._period)
        return cycles * len(phases) + found

    def until(self, start: int, number: int) -> int:
        """Count the steps from `start` on before the one with event `number` (from 0).

        There must be an event at all.
        """
        phases = self._phases
        cycles, rest = divmod(number, len(phases))
        first = start % self._period
        place = bisect_left(phases, first) + rest
        wrapped = place >= len(phases)
        phase = phases[place - len(phases) * wrapped] + self._period * wrapped
        return cycles * self._period + phase - first

    def by_step(self, start: int, num_steps: int) -> list[int]:
        """Count the events of each of `num_steps` steps from `start` on."""
        counts = [0] * num_steps
        phases, period, first = self._phases, self._period, start % self._period
        begin, end = bisect_left(phases, first), bisect_left(phases, first + num_steps)
        for phase in phases[begin:end]:
            for offset in range(phase - first, num_steps, period):
                counts[offset] += 1
        for phase in phases[: bisect_left(phases, min(first, first + num_steps - period))]:
            for offset in range(phase - first + period, num_steps, period):
                counts[offset] += 1
        return counts
