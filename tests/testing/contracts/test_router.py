"""The contract of routers: ours keep it, and it notices those that do not.

Programs that are wrong on purpose stand beside the law that notices each.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import ClassVar

import pytest

from simcluster.request import Request
from simcluster.routing import ROUTERS, LeastLoaded, RoundRobin, Router
from simcluster.routing.base import InstanceView
from simcluster.testing.contracts import (
    RouterContract,
)
from simcluster.testing.contracts.base import notices


@pytest.mark.parametrize("name", list(ROUTERS))
class TestRegisteredRouters(RouterContract):
    """Every router that is registered."""

    @pytest.fixture
    def router(self, name: str) -> Callable[[], Router]:
        """Return what makes it."""
        return ROUTERS[name]


Views = Sequence[InstanceView]


class FirstOfEquals(LeastLoaded):
    """Feeds the first instance of an idle cluster only."""

    def choose(self, request: Request, instances: Views, now: float) -> int | None:
        """The first with the fewest tokens."""
        return min(range(len(instances)), key=lambda k: instances[k].load_tokens)


class FromASet(LeastLoaded):
    """Takes the first with few tokens that a set gives."""

    def choose(self, request: Request, instances: Views, now: float) -> int | None:
        """The least loaded, ties by a set's order."""
        chosen = min(set(instances), key=lambda view: view.load_tokens)
        return list(instances).index(chosen)


class CountsInItsClass(RoundRobin):
    """All routers of a process go round together."""

    turn: ClassVar[int] = 0

    def choose(self, request: Request, instances: Views, now: float) -> int | None:
        """The next in the common ring."""
        CountsInItsClass.turn += 1
        return CountsInItsClass.turn % len(instances)


class Throws(RoundRobin):
    """Draws from the stream of the whole process."""

    def choose(self, request: Request, instances: Views, now: float) -> int | None:
        """Any."""
        return random.randrange(len(instances))


class ReadsAnswers(RoundRobin):
    """Sends long answers to the last instance."""

    def choose(self, request: Request, instances: Views, now: float) -> int | None:
        """The last, or the next in the ring."""
        return (
            len(instances) - 1
            if request.output_len > 40
            else super().choose(request, instances, now)
        )


class Remembers(RoundRobin):
    """Goes on to an instance that may be gone."""

    def choose(self, request: Request, instances: Views, now: float) -> int | None:
        """The next of the most there ever were."""
        self._most = max(getattr(self, "_most", 0), len(instances))
        self._next += 1
        return self._next % self._most


class Hesitates(LeastLoaded):
    """Keeps requests back until an instance is busy."""

    def choose(self, request: Request, instances: Views, now: float) -> int | None:
        """None while all are idle."""
        busy = any(view.load_tokens for view in instances)
        return super().choose(request, instances, now) if busy else None


class Writes(RoundRobin):
    """Cuts the request to what it likes."""

    def choose(self, request: Request, instances: Views, now: float) -> int | None:
        """The next in the ring."""
        request.prompt_len = min(request.prompt_len, 20)
        return super().choose(request, instances, now)


class ByTheClock(RoundRobin):
    """Changes its mind about a pending request when asked again: one try in two fails."""

    def choose(self, request: Request, instances: Views, now: float) -> int | None:
        """None the first time."""
        self._next += 1
        loaded = any(view.load_tokens for view in instances)
        return None if loaded and self._next % 2 else self._next % len(instances)


SAME = "the_same_reports_give_the_same_choices"
WRONG_ROUTERS = [
    (FirstOfEquals, "equal_instances_get_equal_shares", "2 equal instances get"),
    (
        FromASet,
        "choices_do_not_depend_on_the_order_of_a_set",
        "the hash of an instance or of a request decides",
    ),
    (CountsInItsClass, SAME, "a second router chooses otherwise"),
    (Throws, SAME, "it draws from `random` or `np.random`"),
    (
        ReadsAnswers,
        "choices_do_not_depend_on_how_long_an_answer_will_be",
        "the answers decide",
    ),
    (Remembers, "an_idle_instance_gets_the_request", "is not the index of one of"),
    (Hesitates, "an_idle_instance_gets_the_request", "is left pending in an idle cluster"),
    (Hesitates, "resolutions_agree_in_a_crowd", "requests are left and nothing happens"),
    (Writes, SAME, "a router must not change the request"),
    (ByTheClock, "resolutions_agree_in_a_crowd", "requests|requests are left"),
]


@pytest.mark.parametrize(
    ("wrong", "law", "message"), WRONG_ROUTERS, ids=[w[0].__name__ for w in WRONG_ROUTERS]
)
def test_the_router_contract_notices(wrong: type, law: str, message: str) -> None:
    """One law of it at least, in words that say what is wrong."""
    given = {"count": 2} if "shares" in law else {}
    notices(RouterContract, law, message, router=wrong, **given)
