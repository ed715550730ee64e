"""Queues: in which order waiting requests are admitted.

A policy is a queue, apart from batching: any scheduler works with any of them. Only the head of a
queue is ever admitted; while it does not fit, everybody behind it waits.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator, Reversible

from mypy_extensions import mypyc_attr

from simcluster.request import Request


@mypyc_attr(allow_interpreted_subclasses=True)
class RequestQueue(ABC):
    """Waiting requests in the order of a policy.

    Attributes
    ----------
    head : Request or None
        The next request to be admitted; None if nobody waits. Subclasses keep it up to date.
    """

    def __init__(self) -> None:
        self.head: Request | None = None

    @abstractmethod
    def push(self, request: Request) -> bool:
        """Let `request` wait; return whether it is the head now."""

    @abstractmethod
    def put_back(self, request: Request) -> None:
        """Let `request`, which was preempted, wait again."""

    @abstractmethod
    def pop(self) -> Request:
        """Take the head out and return it; there must be one."""

    @abstractmethod
    def goes_first(self, request: Request) -> bool:
        """Whether `request` would be the head if it waited too."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __iter__(self) -> Iterator[Request]:
        """Give the waiting requests in order."""

    def drain(self) -> list[Request]:
        """Take all waiting requests out and return them in order."""
        return [self.pop() for _ in range(len(self))]

    def victim(self, running: Reversible[Request]) -> Request:
        """Return which of the `running` requests, in order of admission, is preempted: the last."""
        return next(iter(reversed(running)))


@mypyc_attr(allow_interpreted_subclasses=True)
class FirstCome(RequestQueue):
    """First come, first served; preempted requests go to the front (vLLM's policy ``fcfs``)."""

    def __init__(self) -> None:
        super().__init__()
        self._requests: deque[Request] = deque()

    def push(self, request: Request) -> bool:
        """Let `request` wait behind all others; return whether nobody else waits."""
        self._requests.append(request)
        if self.head is None:
            self.head = request
            return True
        return False

    def put_back(self, request: Request) -> None:
        """Let `request`, which was preempted, wait in front of all others."""
        self._requests.appendleft(request)
        self.head = request

    def pop(self) -> Request:
        """Take the head out and return it."""
        request = self._requests.popleft()
        self.head = self._requests[0] if self._requests else None
        return request

    def goes_first(self, request: Request) -> bool:
        """Whether nobody waits."""
        return self.head is None

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests)
