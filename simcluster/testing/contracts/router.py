"""The contract of routers: `simcluster.routing.Router`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simcluster.request import Request
from simcluster.routing import ROUTERS, Router
from simcluster.strategies import FuDG, NoDG
from simcluster.strategies.scaling import ThresholdSettings
from simcluster.testing.contracts.base import (
    CROWD,
    PREFIXES,
    REQUESTS,
    Ask,
    Asked,
    agreeing_run,
    common_draws_untouched,
    crowd,
    laws,
    registered,
    turned,
)
from simcluster.testing.laws import require
from simcluster.testing.toy import STRICT, toy_environment, toy_workload

_ROUNDS = 200
_STANDARD_ERRORS = 5.0


class View:
    """An instance as a router sees it, made by a test.

    Parameters
    ----------
    instance_id : int
        Its number.
    load_tokens, free_blocks, cached : int
        What it reports: tokens, KV blocks, and tokens of any request in its cache.
    room : bool
        Whether it would take a request.
    hashed : int
        What it hashes to: no choice may depend on it.
    """

    def __init__(
        self,
        instance_id: int,
        load_tokens: int = 0,
        free_blocks: int = 100,
        cached: int = 0,
        *,
        room: bool = True,
        hashed: int = 0,
    ) -> None:
        self.instance_id = instance_id
        self.load_tokens = load_tokens
        self.free_blocks = free_blocks
        self.cached = cached
        self.room = room
        self._hash = hashed

    def cached_tokens(self, request: Request) -> int:
        """Tokens of `request` in its cache."""
        return min(self.cached, request.prompt_len - 1)

    def has_room(self, request: Request) -> bool:
        """Whether it would take `request` into its next step."""
        return self.room

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return self is other


Reported = tuple[int, int, int, bool]
Round = tuple[Ask, list[Reported]]

ROUNDS: st.SearchStrategy[list[Round]] = st.integers(1, 6).flatmap(
    lambda count: st.lists(
        st.tuples(
            st.builds(Ask, st.just(0), st.integers(1, 100), st.integers(1, 50)),
            st.lists(
                st.tuples(st.integers(0, 5), st.integers(0, 3), st.integers(0, 64), st.booleans()),
                min_size=count,
                max_size=count,
            ),
        ),
        min_size=1,
        max_size=12,
    )
)
"""Requests, one after the other, and what the instances report each time."""
_CASE: Final = [
    (ask, [(k * 7 % 5 * (n % 2), 3, 0, (n + k) % 4 > 0) for k in range(4)])
    for n, ask in enumerate(CROWD)
]


def choices(
    router: Callable[[], Router],
    rounds: list[Round],
    *,
    output_len: int | None = None,
    hashed: Callable[[int], int] = lambda k: k,
) -> list[int | None]:
    """Return what a new router chooses in each of `rounds`.

    Raises
    ------
    AssertionError
        If it chooses an instance that is not there, or changes the request.
    """
    made = router()
    chosen: list[int | None] = []
    for number, (ask, reported) in enumerate(rounds):
        views = [
            View(k, load, blocks, cached, room=room, hashed=hashed(k))
            for k, (load, blocks, cached, room) in enumerate(reported)
        ]
        request = ask.request(number, hashed(number))
        if output_len is not None:
            request.output_len = output_len
        before = _contents(request)
        index = made.choose(request, tuple(views), float(number))
        require(_contents(request) == before, "a router must not change the request")
        known = index is None or (type(index) is int and 0 <= index < len(views))
        require(known, f"{index!r} is not the index of one of {len(views)} instances")
        chosen.append(index)
    return chosen


def _contents(request: Request) -> dict[str, str]:
    names = [name for name in dir(Request) if not name.startswith("_")]  # compiled or not
    return {name: repr(getattr(request, name, None)) for name in names}


@st.composite
def deployments(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """Draw a strategy's kind and its keys but the router's."""
    keys: dict[str, Any] = {
        "name": "contract",
        "num_kv_blocks": draw(st.sampled_from([None, 10, 13, 24])),
        "max_num_seqs": draw(st.sampled_from([1, 3, 8, 64])),
        "prefix_caching": draw(st.booleans()),
        "queue": draw(st.sampled_from(["first-come", "shortest-first"])),
        # Exact, or reported at multiples of a time with which arrivals tie.
        "status_interval_s": draw(st.sampled_from([0.0, 0.0, 2.0**-9, 0.1])),
    }
    if draw(st.sampled_from([True, False, False])):
        keys |= {"prefill_instances": draw(st.integers(1, 3)), "decode_instances": 1}
        return "fudg", {**keys, "placement": "inter-node"}
    if draw(st.booleans()):
        keys["autoscale"] = ThresholdSettings(
            up=3, down=1, max_instances=4, interval_s=2.0**-6, cooldown_s=0.0, start_up_s=2.0**-5
        )
    return "nodg", {**keys, "instances": draw(st.integers(1, 4))}


class RouterContract:
    """Laws of every router; derive a test class with the fixture `router`.

    - It chooses an instance that is there, also after their number has changed, or none; never none
      while all are idle and have room.
    - The same requests and reports give the same choices; they do not depend on how long an answer
      will be, on the order of a set, or on another router.
    - Equal instances get their fair share: of many requests on an idle cluster none gets more or
      fewer than chance allows.
    - Results at the resolutions span, step and kernel are the same bits, and every request ends.

    Examples
    --------
    ::

        class TestMine(RouterContract):
            @pytest.fixture
            def router(self):
                return Mine
    """

    @pytest.fixture
    def router(self) -> Callable[[], Router]:
        """Return the class that is tested, or a function that makes routers; override it."""
        raise NotImplementedError("give the contract a fixture `router` that returns the class")

    @laws(150)
    @given(rounds=ROUNDS)
    @example(rounds=_CASE)
    def test_the_same_reports_give_the_same_choices(
        self, router: Callable[[], Router], rounds: list[Round]
    ) -> None:
        """Nothing is kept in the class, or drawn from a stream of the whole process."""
        with common_draws_untouched():
            first = choices(router, rounds)
        require(first == choices(router, rounds), "a second router chooses otherwise")

    @laws(100)
    @given(rounds=ROUNDS, output_len=st.integers(1, 50))
    @example(rounds=_CASE, output_len=50)
    def test_choices_do_not_depend_on_how_long_an_answer_will_be(
        self, router: Callable[[], Router], rounds: list[Round], output_len: int
    ) -> None:
        """With other answers the choices are the same."""
        own, other = choices(router, rounds), choices(router, rounds, output_len=output_len)
        require(own == other, "the answers decide")

    @laws(100)
    @given(rounds=ROUNDS)
    @example(rounds=_CASE)
    def test_choices_do_not_depend_on_the_order_of_a_set(
        self, router: Callable[[], Router], rounds: list[Round]
    ) -> None:
        """Instances and requests that hash to other numbers are chosen the same."""
        own, other = choices(router, rounds), choices(router, rounds, hashed=turned)
        require(own == other, "the hash of an instance or of a request decides")

    @laws(50)
    @given(counts=st.lists(st.integers(1, 6), min_size=2, max_size=20))
    def test_an_idle_instance_gets_the_request(
        self, router: Callable[[], Router], counts: list[int]
    ) -> None:
        """Instances come and go; all of them are idle and have room."""
        rounds = [(Ask(0, 9, 9), [(0, 100, 0, True)] * count) for count in counts]
        require(None not in choices(router, rounds), "a request is left pending in an idle cluster")

    @pytest.mark.parametrize("count", [2, 3, 8])
    def test_equal_instances_get_equal_shares(
        self, router: Callable[[], Router], count: int
    ) -> None:
        """Of 200 requests per instance none gets more or fewer than five standard errors."""
        rounds = [(Ask(0, 9, 9), [(0, 100, 0, True)] * count)] * (_ROUNDS * count)
        chosen = choices(router, rounds)
        shares = [chosen.count(k) for k in range(count)]
        deviation = _STANDARD_ERRORS * (_ROUNDS * (1 - 1 / count)) ** 0.5
        fair = all(abs(share - _ROUNDS) <= deviation for share in shares)
        require(fair, f"{count} equal instances get {shares} requests")

    def test_resolutions_agree_in_a_crowd(self, router: Callable[[], Router]) -> None:
        """Three instances whose pools are full, and loads that are known late."""
        for status_interval_s in (0.0, 2.0**-7):
            with registered(ROUTERS, router) as name:
                strategy = NoDG(
                    name="contract",
                    instances=3,
                    router=name,
                    status_interval_s=status_interval_s,
                    num_kv_blocks=13,
                    max_num_seqs=8,
                )
                agreeing_run(toy_environment(), strategy, crowd(gap_s=0.001))

    @laws(60)
    @given(drawn=deployments(), requests=REQUESTS, prefixes=PREFIXES)
    def test_resolutions_agree(
        self,
        router: Callable[[], Router],
        drawn: tuple[str, dict[str, Any]],
        requests: Asked,
        prefixes: list[tuple[int, int]] | None,
    ) -> None:
        """In front of instances that stay, that come and go, and that only prefill."""
        kind, keys = drawn
        with registered(ROUTERS, router) as name:
            strategy = {"nodg": NoDG, "fudg": FuDG}[kind](**keys, router=name)
            load = toy_workload(requests, prefixes=prefixes)
            agreeing_run(toy_environment(slo=STRICT), strategy, load)
