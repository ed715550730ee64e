"""How far a ranking has come, by the requests that it simulates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

Progress = Callable[[int, int, float], None]
"""Called after each run with the requests that are simulated, those of the whole ranking as far as
is known now, and the share of the work that is done, 0 to 1."""

_MORE: Final = 1.25  # of what a part has taken, that it may still take beyond its expectation


class Work:
    """Requests simulated and requests expected, part by part.

    What a part takes is known for sure when it has ended. Before that it is expected, and grows
    with what it has taken already; the share shown never falls, it stands until it is true again.
    """

    def __init__(self, progress: Progress | None = None) -> None:
        self._progress = progress or (lambda *_: None)
        self._done: dict[str, int] = {}
        self._expected: dict[str, float] = {}
        self._ended: set[str] = set()
        self._share = 0.0

    @property
    def num_requests(self) -> int:
        """Requests simulated so far."""
        return sum(self._done.values())

    @property
    def num_expected(self) -> int:
        """Requests of the whole ranking, as far as is known now."""
        return round(sum(self._whole(part) for part in {**self._expected, **self._done}))

    def expect(self, part: str, num_requests: float) -> None:
        """Say what a part will take, or what is known better by now."""
        self._expected[part] = num_requests

    def did(self, part: str, num_requests: int) -> None:
        """Note a run that has ended."""
        self._done[part] = self._done.get(part, 0) + num_requests
        total = max(self.num_expected, 1)
        self._share = max(self._share, min(self.num_requests / total, 1.0))
        self._progress(self.num_requests, total, self._share)

    def end(self, part: str) -> None:
        """Note that a part takes no more."""
        self._ended.add(part)

    def _whole(self, part: str) -> float:
        done = self._done.get(part, 0)
        if part in self._ended:
            return done
        expected = self._expected.get(part, 0.0)
        return expected if done < expected else _MORE * done
