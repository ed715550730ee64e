"""Policies: queues that order waiting requests by a key."""

from __future__ import annotations

import heapq
from abc import abstractmethod
from collections.abc import Iterator, Reversible
from typing import Final

from mypy_extensions import mypyc_attr

from simcluster.registry import Registry
from simcluster.request import Request
from simcluster.sched.queue import FirstCome, RequestQueue


@mypyc_attr(allow_interpreted_subclasses=True)
class KeyedQueue(RequestQueue):
    """Smallest key first, ties in order of arrival; preempted requests keep their place."""

    def __init__(self) -> None:
        super().__init__()
        self._heap: list[tuple[float, int, Request]] = []

    @abstractmethod
    def key(self, request: Request) -> float:
        """Return what `request` is ordered by; it must not change while the request waits."""

    def _entry(self, request: Request) -> tuple[float, int, Request]:
        return self.key(request), request.request_id, request

    def push(self, request: Request) -> bool:
        """Let `request` wait in its place; return whether it is the head now."""
        heapq.heappush(self._heap, self._entry(request))
        self.head = self._heap[0][-1]
        return self.head is request

    def put_back(self, request: Request) -> None:
        """Let `request`, which was preempted, wait in its place."""
        self.push(request)

    def pop(self) -> Request:
        """Take the head out and return it."""
        request = heapq.heappop(self._heap)[-1]
        self.head = self._heap[0][-1] if self._heap else None
        return request

    def goes_first(self, request: Request) -> bool:
        """Whether the key of `request` is below all others, or came first of equal ones."""
        return not self._heap or self._entry(request) < self._heap[0]

    def __len__(self) -> int:
        return len(self._heap)

    def __iter__(self) -> Iterator[Request]:
        return iter([request for _, _, request in sorted(self._heap)])


@mypyc_attr(allow_interpreted_subclasses=True)
class ShortestFirst(KeyedQueue):
    """Shortest prompt first. Long prompts can wait for ever in an overloaded instance."""

    def key(self, request: Request) -> float:
        """Prompt of `request` (tokens)."""
        return request.prompt_len


@mypyc_attr(allow_interpreted_subclasses=True)
class Priority(KeyedQueue):
    """Smallest priority number first, as vLLM's policy ``priority`` does.

    The number is that of the request's class (``workload.classes``). Where the KV cache runs dry,
    the running request with the largest number is preempted, of equals the one admitted last.
    """

    def key(self, request: Request) -> float:
        """Priority of `request`."""
        return request.priority

    def drain(self) -> list[Request]:
        """Take all waiting requests out and return them in order."""
        return [self.pop() for _ in range(len(self))]

    def victim(self, running: Reversible[Request]) -> Request:
        """Return the running request with the largest priority number, of equals the last."""
        return max(reversed(running), key=self.key)


QUEUES: Final[Registry[type[RequestQueue]]] = Registry(
    "simcluster.queues",
    {"first-come": FirstCome, "shortest-first": ShortestFirst, "priority": Priority},
)
"""Queues by the name that ``strategy.queue`` gives them."""
