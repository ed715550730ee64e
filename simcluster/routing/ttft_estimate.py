"""The prefill instance that promises the first token soonest."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import isnan
from typing import Protocol

from simcluster.request import Request


class PrefillView(Protocol):
    """What the estimate asks of a prefill instance."""

    instance_id: int

    def cached_tokens(self, request: Request) -> int:
        """Tokens of `request` that it would find in its KV cache."""

    def prefill_s(self, prompt_len: int, cached_tokens: int = 0) -> float:
        """Time to prefill one prompt of so many tokens alone, some of them cached (s)."""


class _Books:
    """What one instance has been given and has not prefilled.

    Attributes
    ----------
    waiting : deque of (Request, float)
        Requests whose prefill has not begun, with its predicted time (s).
    waiting_s : float
        Sum of these (s).
    running : dict of int to (Request, float)
        Those in the batch under way, by id.
    """

    __slots__ = ("running", "waiting", "waiting_s")

    def __init__(self) -> None:
        self.waiting: deque[tuple[Request, float]] = deque()
        self.waiting_s = 0.0
        self.running: dict[int, tuple[Request, float]] = {}

    def update(self) -> None:
        """Move requests whose prefill has begun."""
        while self.waiting and not isnan(self.waiting[0][0].scheduled_s):
            request, prefill_s = self.waiting.popleft()
            self.waiting_s -= prefill_s
            self.running[request.request_id] = request, prefill_s

    def left_s(self, now: float) -> float:
        """Predicted time until everything is prefilled (s)."""
        self.update()
        left_s = 0.0
        for _, prefill_s in self.running.values():
            left_s += prefill_s
        if self.running:
            start_s = next(iter(self.running.values()))[0].scheduled_s
            left_s = max(0.0, left_s - (now - start_s))
        return left_s + self.waiting_s


class TtftEstimate:
    """Predict the TTFT of a request on every prefill instance, and choose the smallest.

    It is the predicted prefill time of what the instance still has to prefill, and that of the
    tokens of the request which are not in its cache (MoonCake, Algorithm 1). Prompts are taken to
    be prefilled one by one, as the Conductor there does; an instance that cannot go on, because
    nobody pulls its KV, is taken to do. Among equals the first after the one chosen last gets it.
    """

    def __init__(self) -> None:
        self._books: dict[int, _Books] = {}
        self._last = -1

    def choose(
        self, request: Request, instances: Sequence[PrefillView], now: float
    ) -> tuple[int, float, float]:
        """Return the index of the best instance, the estimate there, and of it its own prefill (s).

        Parameters
        ----------
        request : Request
            Who asks.
        instances : sequence of PrefillView
            Where it could go, at least one.
        now : float
            The time (s).
        """
        count = len(instances)
        best, least_s, own_s = -1, 0.0, 0.0
        for step in range(1, count + 1):
            index = (self._last + step) % count
            instance = instances[index]
            books = self._books.get(instance.instance_id)
            prefill_s = instance.prefill_s(request.prompt_len, instance.cached_tokens(request))
            ttft_s = prefill_s + (0.0 if books is None else books.left_s(now))
            if best < 0 or ttft_s < least_s:
                best, least_s, own_s = index, ttft_s, prefill_s
        self._last = best
        return best, least_s, own_s

    def sent(self, instance: PrefillView, request: Request, prefill_s: float) -> None:
        """Know of `request`, given to `instance`, whose own prefill should take `prefill_s` (s)."""
        books = self._books.setdefault(instance.instance_id, _Books())
        books.waiting.append((request, prefill_s))
        books.waiting_s += prefill_s

    def prefilled(self, instance: PrefillView, request: Request) -> None:
        """Forget `request`, which `instance` has prefilled."""
        books = self._books[instance.instance_id]
        books.update()
        del books.running[request.request_id]
