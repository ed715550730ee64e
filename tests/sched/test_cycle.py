"""Events that come back, against counting them one by one."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from simcluster.sched.cycle import Cycle


@settings(deadline=None)
@given(
    period=st.integers(1, 12),
    added=st.lists(st.integers(0, 100), max_size=12),
    removed=st.integers(0, 12),
    start=st.integers(0, 60),
    num_steps=st.integers(0, 60),
)
def test_events_are_counted_without_looking_at_each(
    period: int, added: list[int], removed: int, start: int, num_steps: int
) -> None:
    """Counts of a run, step by step, and the steps before an event."""
    cycle, kept = Cycle(period), added[removed:]
    for step in added:
        cycle.add(step)
    for step in added[:removed]:
        cycle.remove(step + 3 * period)
    phases = Counter(step % period for step in kept)
    expected = [phases[step % period] for step in range(start, start + num_steps)]
    assert len(cycle) == len(kept)
    assert cycle.count(start, num_steps) == sum(expected)
    assert cycle.by_step(start, num_steps) == expected
    for number in range(sum(expected)):
        before = cycle.until(start, number)
        assert sum(expected[:before]) <= number < sum(expected[: before + 1])
