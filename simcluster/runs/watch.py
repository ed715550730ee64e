"""How far the run under way is: for who shows it while it computes, at no cost to the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_present: list[Callable[[], float]] = []


@contextmanager
def watched(share: Callable[[], float]) -> Iterator[None]:
    """Let others ask how far a run is while the block lasts.

    Parameters
    ----------
    share : callable
        Returns the share of its requests that have ended, 0 to 1; called from another thread.
    """
    _present.append(share)
    try:
        yield
    finally:
        _present.pop()


def share_done() -> float | None:
    """Return how far the run under way in this process is, 0 to 1; None where there is none."""
    try:
        return _present[-1]()
    except IndexError:
        return None
