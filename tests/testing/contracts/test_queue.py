"""The contract of queues: ours keep it, and it notices those that do not.

Programs that are wrong on purpose stand beside the law that notices each.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from simcluster.request import Request
from simcluster.sched import (
    QUEUES,
    FirstCome,
    KeyedQueue,
    RequestQueue,
    ShortestFirst,
)
from simcluster.testing.contracts import (
    QueueContract,
)
from simcluster.testing.contracts.base import notices


@pytest.mark.parametrize("name", list(QUEUES))
class TestRegisteredQueues(QueueContract):
    """Every queue that is registered."""

    @pytest.fixture
    def queue(self, name: str) -> type[RequestQueue]:
        """Return the class."""
        return QUEUES[name]


class SaysLast(ShortestFirst):
    """Says of every newcomer that it is not the head."""

    def push(self, request: Request) -> bool:
        """Never true."""
        super().push(request)
        return False


class ForgetsTheHead(FirstCome):
    """Keeps the old head when one is put back."""

    def put_back(self, request: Request) -> None:
        """To the front, but for the head."""
        head = self.head
        super().put_back(request)
        self.head = head or request


class ShortestAnswer(KeyedQueue):
    """Knows how long the answers will be."""

    def key(self, request: Request) -> float:
        """Output (tokens)."""
        return request.output_len


class LosesThePreempted(ShortestFirst):
    """Drops what is put back."""

    def put_back(self, request: Request) -> None:
        """Nowhere."""


class InASet(FirstCome):
    """Keeps no order: whatever a set gives first goes first."""

    def pop(self) -> Request:
        """Return any."""
        request = next(iter(set(self._requests)))
        self._requests.remove(request)
        self.head = next(iter(set(self._requests)), None)
        return request

    def push(self, request: Request) -> bool:
        """Into the set."""
        self._requests.append(request)
        self.head = next(iter(set(self._requests)))
        return self.head is request

    def put_back(self, request: Request) -> None:
        """Into the set."""
        self.push(request)

    def goes_first(self, request: Request) -> bool:
        """Whether a set would give it first."""
        return next(iter({*self._requests, request})) is request

    def __iter__(self) -> Iterator[Request]:
        return iter(set(self._requests))


class OneForAll(FirstCome):
    """All instances have the same list."""

    shared: ClassVar[deque[Request]] = deque()

    def __init__(self) -> None:
        super().__init__()
        self._requests = self.shared


class Ages(KeyedQueue):
    """The longest first; at every fifth newcomer those that wait change places."""

    def key(self, request: Request) -> float:
        """Minus the prompt (tokens)."""
        return -request.prompt_len

    def push(self, request: Request) -> bool:
        """Sort the other way round."""
        if len(self._heap) % 5 == 4:
            self._heap = sorted((-key, number, r) for key, number, r in self._heap)
        return super().push(request)


class PreemptsWhomItLikes(FirstCome):
    """Names a victim that does not run."""

    def victim(self, running: Any) -> Request:
        """The head."""
        return self.head or super().victim(running)


ORDER = "no_request_is_lost_and_the_head_is_the_first"
WRONG_QUEUES = [
    (SaysLast, ORDER, "push returns False; the newcomer is head: True"),
    (ForgetsTheHead, ORDER, "the head is not the first in order"),
    (LosesThePreempted, ORDER, "another length than its requests"),
    (Ages, ORDER, "those that wait change places"),
    (PreemptsWhomItLikes, ORDER, "the victim is not running"),
    (
        ShortestAnswer,
        "the_order_does_not_depend_on_how_long_an_answer_will_be",
        "the answers decide the order",
    ),
    (
        InASet,
        "the_order_does_not_depend_on_that_of_a_set",
        "the hash of a request decides the order|change places",
    ),
    (OneForAll, "two_queues_share_nothing", "waits in another too"),
]


@pytest.mark.parametrize(
    ("wrong", "law", "message"), WRONG_QUEUES, ids=[w[0].__name__ for w in WRONG_QUEUES]
)
def test_the_queue_contract_notices(wrong: type, law: str, message: str) -> None:
    """One law of it at least, in words that say what is wrong."""
    notices(QueueContract, law, message, queue=wrong)


@pytest.mark.parametrize("wrong", [SaysLast, LosesThePreempted])
def test_simulations_notice_wrong_queues_too(wrong: type) -> None:
    """Heads that are not told of start late, and lost requests never end."""
    with pytest.raises(AssertionError):
        QueueContract().test_resolutions_agree_with_every_scheduler(queue=wrong, num_kv_blocks=13)
