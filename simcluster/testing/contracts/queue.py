"""The contract of queues: `simcluster.sched.RequestQueue`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simcluster.request import Request
from simcluster.sched import QUEUES, SCHEDULERS, RequestQueue
from simcluster.strategies import NoDG
from simcluster.testing.contracts.base import (
    ASKS,
    CROWD,
    OTHER_OUTPUTS,
    OTHERWISE,
    Ask,
    agreeing_run,
    crowd,
    laws,
    registered,
    turned,
)
from simcluster.testing.laws import require
from simcluster.testing.toy import toy_environment

ACTIONS: st.SearchStrategy[list[str]] = st.lists(
    st.sampled_from(["push", "push", "pop", "put back", "victim"]), min_size=1, max_size=40
)
"""Actions on a queue; those that make no sense at the time are left out."""
_BUSY: Final = [*["push"] * 6, "pop", "pop", "victim", "put back", "push", "pop", "push"] * 2


@dataclass
class Handled:
    """A queue through which requests go, with books beside it."""

    queue: RequestQueue
    """What is tried; empty."""
    waiting: list[Request] = field(default_factory=list)
    """What must be in it, in any order."""
    out: list[Request] = field(default_factory=list)
    """What was popped and not put back, in order."""
    log: list[tuple[str, int]] = field(default_factory=list)
    """What happened to which request."""

    def push(self, request: Request) -> None:
        """Let a new request wait; check what `goes_first` foretold and what `push` returns."""
        foretold, before = self.queue.goes_first(request), list(self.queue)
        pushed = self.queue.push(request)
        self.waiting.append(request)
        self._check(before)
        leads = self.queue.head is request
        require(pushed == leads, f"push returns {pushed}; the newcomer is head: {leads}")
        require(foretold == leads, f"goes_first says {foretold}; the newcomer is head: {leads}")
        self.log.append(("push", request.request_id))

    def put_back(self) -> None:
        """Let the request that was popped last wait again, preempted."""
        request, before = self.out.pop(), list(self.queue)
        self.queue.put_back(request)
        self.waiting.append(request)
        self._check(before)
        self.log.append(("put back", request.request_id))

    def pop(self) -> None:
        """Take the head out."""
        head, before = self.queue.head, list(self.queue)
        request = self.queue.pop()
        require(request is head, "pop does not return the head")
        self.waiting.remove(request)
        self.out.append(request)
        self._check(before)
        self.log.append(("pop", request.request_id))

    def victim(self) -> None:
        """Ask which of those that are out would be preempted."""
        before = list(self.queue)
        chosen = self.queue.victim(list(self.out))
        require(any(chosen is request for request in self.out), "the victim is not running")
        self._check(before)
        self.log.append(("victim", chosen.request_id))

    def drain(self) -> None:
        """Take all out."""
        before = list(self.queue)
        drained = self.queue.drain()
        require(drained == before, "drain does not return the requests in order")
        self.waiting.clear()
        self._check([])
        self.log += [("drain", request.request_id) for request in drained]

    def _check(self, before: list[Request]) -> None:
        now = list(self.queue)
        require(
            len(self.queue) == len(self.waiting), "the queue has another length than its requests"
        )
        require(_ids(now, sort=True) == _ids(self.waiting, sort=True), "requests lost or doubled")
        require(list(self.queue) == now, "iterating changes the queue")
        head = now[0] if now else None
        require(self.queue.head is head, "the head is not the first in order")
        stay = [r for r in before if r in now], [r for r in now if r in before]
        require(stay[0] == stay[1], "those that wait change places")


def _ids(requests: list[Request], *, sort: bool = False) -> list[int]:
    ids = [request.request_id for request in requests]
    return sorted(ids) if sort else ids


def handled(
    queue: Callable[[], RequestQueue],
    asks: list[Ask],
    actions: list[str],
    hashed: Callable[[int], int] = lambda k: k,
) -> list[tuple[str, int]]:
    """Let requests go through a new queue; return what happened to which."""
    books = Handled(queue())
    coming = [ask.request(k, hashed(k)) for k, ask in enumerate(asks)][::-1]
    for action in actions:
        if action == "push" and coming:
            books.push(coming.pop())
        elif action == "pop" and books.waiting:
            books.pop()
        elif action == "put back" and books.out:
            books.put_back()
        elif action == "victim" and books.out:
            books.victim()
    books.drain()
    return books.log


class QueueContract:
    """Laws of every queue; derive a test class with the fixture `queue`.

    - No request is lost or doubled; the head is the first in order, and `push` and `goes_first` say
      truly whether a newcomer is the head.
    - Those that wait do not change places: a plan that holds while the head does not fit relies on
      it.
    - The order does not depend on how long an answer will be, or on the order of a set, and two
      queues share nothing.
    - With every scheduler results at the resolutions span, step and kernel are the same bits.

    Examples
    --------
    ::

        class TestMine(QueueContract):
            @pytest.fixture
            def queue(self):
                return Mine
    """

    @pytest.fixture
    def queue(self) -> type[RequestQueue]:
        """Return the class that is tested; override it."""
        raise NotImplementedError("give the contract a fixture `queue` that returns the class")

    @laws(200)
    @given(asks=ASKS, actions=ACTIONS)
    @example(asks=CROWD, actions=_BUSY)
    def test_no_request_is_lost_and_the_head_is_the_first(
        self, queue: type[RequestQueue], asks: list[Ask], actions: list[str]
    ) -> None:
        """Whatever is pushed, popped and put back."""
        handled(queue, asks, actions)

    @laws(100)
    @given(asks=ASKS, actions=ACTIONS, outputs=OTHER_OUTPUTS)
    @example(asks=CROWD, actions=_BUSY, outputs=OTHERWISE)
    def test_the_order_does_not_depend_on_how_long_an_answer_will_be(
        self,
        queue: type[RequestQueue],
        asks: list[Ask],
        actions: list[str],
        outputs: list[int],
    ) -> None:
        """With other answers the same requests come out at the same places."""
        others = [
            Ask(ask.step, ask.prompt_len, output, ask.priority)
            for ask, output in zip(asks, outputs, strict=False)
        ]
        one, other = handled(queue, asks, actions), handled(queue, others, actions)
        require(one == other, "the answers decide the order")

    @laws(100)
    @given(asks=ASKS, actions=ACTIONS)
    @example(asks=CROWD, actions=_BUSY)
    def test_the_order_does_not_depend_on_that_of_a_set(
        self, queue: type[RequestQueue], asks: list[Ask], actions: list[str]
    ) -> None:
        """Requests that hash to other numbers come out at the same places."""
        one, other = handled(queue, asks, actions), handled(queue, asks, actions, turned)
        require(one == other, "the hash of a request decides the order")

    def test_two_queues_share_nothing(self, queue: type[RequestQueue]) -> None:
        """A request that waits in one does not wait in the other."""
        one, other = queue(), queue()
        one.push(Ask(0, 5, 5).request(0))
        require(len(other) == 0, "a request that waits in one queue waits in another too")
        require(other.head is None, "a request that heads one queue heads another too")

    @pytest.mark.parametrize("num_kv_blocks", [None, 13])
    def test_resolutions_agree_with_every_scheduler(
        self, queue: type[RequestQueue], num_kv_blocks: int | None
    ) -> None:
        """Heads that do not fit, newcomers before them, here and in front of all instances."""
        for scheduler in SCHEDULERS:
            for router in ("least-loaded", "shared-queue"):
                with registered(QUEUES, queue) as name:
                    strategy = NoDG(
                        name="contract",
                        instances=2,
                        scheduler=scheduler,
                        queue=name,
                        router=router,
                        num_kv_blocks=num_kv_blocks,
                        max_num_seqs=8,
                        chunk_size=32 if SCHEDULERS[scheduler].splits_prompts else None,
                    )
                    agreeing_run(toy_environment(), strategy, crowd(80, gap_s=0.001))
