"""Routers: who gets a request, and what the choice does to a cluster."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simcluster.engine.groups import front_end
from simcluster.request import Request
from simcluster.rng import stream
from simcluster.routing import (
    ROUTERS,
    LeastLoaded,
    PrefixAware,
    RoundRobin,
    SharedQueue,
    Status,
)
from simcluster.routing.least_loaded import Loads
from simcluster.runs.result import Result
from simcluster.runs.simulate import run
from simcluster.strategies import NoDG
from simcluster.testing import specs
from simcluster.testing.examples import examples
from simcluster.testing.step_times import ConstantStepTime, LinearStepTime, same_for_all
from simcluster.testing.toy import toy_environment, toy_workload
from simcluster.testing.workloads import shared_prefixes, workload_of
from simcluster.units import FloatArray, grid_array


@dataclass
class Report:
    """What an instance reports."""

    instance_id: int
    load_tokens: int
    free_blocks: int = 100
    room: bool = True
    cached: int = 0

    def cached_tokens(self, request: Request) -> int:
        """Tokens of `request` in its cache."""
        return self.cached

    def has_room(self, request: Request) -> bool:
        """Whether it would take `request`."""
        return self.room


REQUEST = Request(0, 0.0, 10, 10)
LOADS = st.lists(st.integers(0, 5), min_size=1, max_size=9)


@given(count=st.integers(1, 9), num_requests=st.integers(1, 40))
def test_round_robin_goes_round(count: int, num_requests: int) -> None:
    """The k-th request goes to instance k modulo their number, whatever they report."""
    router = RoundRobin()
    reports = [Report(k, load_tokens=99 * k) for k in range(count)]
    chosen = [router.choose(REQUEST, reports, 0.0) for _ in range(num_requests)]
    assert chosen == [k % count for k in range(num_requests)]


@examples(200)
@given(rounds=st.lists(LOADS, min_size=1, max_size=12))
def test_least_loaded_takes_a_minimum_and_ties_take_turns(rounds: list[list[int]]) -> None:
    """Nobody has less than the chosen one; among equals the first after the last chosen."""
    router = LeastLoaded()
    count = len(rounds[0])
    last = -1
    for loads in rounds:
        reports = [Report(k, load) for k, load in enumerate((loads * count)[:count])]
        chosen = router.choose(REQUEST, reports, 0.0)
        least = min(report.load_tokens for report in reports)
        equals = [k for k, report in enumerate(reports) if report.load_tokens == least]
        assert chosen == min(equals, key=lambda k: (k - last - 1) % count)
        last = chosen


@examples(200)
@given(
    rounds=st.lists(
        st.lists(st.tuples(st.integers(0, 5), st.integers(0, 3)), min_size=3, max_size=3),
        min_size=1,
        max_size=12,
    ),
    weight=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
)
def test_prefix_aware_balances_what_is_cached_against_load(
    rounds: list[list[tuple[int, int]]], weight: float
) -> None:
    """Nobody has a better balance; without weight, or with nothing cached, it is least-loaded."""
    router, plain, uncached, last = PrefixAware(weight), LeastLoaded(), PrefixAware(weight), -1
    for states in rounds:
        reports = [Report(k, load, cached=c) for k, (load, c) in enumerate(states)]
        chosen = router.choose(REQUEST, reports, 0.0)
        balance = [weight * c - load for load, c in states]
        equals = [k for k in range(3) if balance[k] == max(balance)]
        assert chosen == min(equals, key=lambda k: (k - last - 1) % 3)
        last = chosen
        least = plain.choose(REQUEST, reports, 0.0)
        assert weight or chosen == least
        assert uncached.choose(REQUEST, [Report(k, s[0]) for k, s in enumerate(states)], 0.0) == (
            least
        )


def test_a_status_is_the_last_report_and_what_was_sent_since() -> None:
    """Room and cache are of now."""
    instance = Report(3, load_tokens=7)
    status = Status(instance)
    instance.load_tokens, instance.room, instance.cached = 100, False, 32
    assert (status.instance_id, status.load_tokens) == (3, 7)
    status.sent(REQUEST)
    assert status.load_tokens == 17
    assert not status.has_room(REQUEST)
    assert status.cached_tokens(REQUEST) == 32
    status.update()
    assert status.load_tokens == 100


def test_load_that_is_reported_late_is_routed_by_late() -> None:
    """Two requests on two instances; the first ends before the third comes, which does not show.

    Steps take a second. The long prompts load instance 0 with 100 tokens until 1.0, instance 1 with
    10 until 30; at 1.5 the third request comes. Reported every 8 s, instance 0 still has its 100.
    """
    load = workload_of([0.0, 0.0, 1.5, 9.5], [100, 10, 5, 5], [1, 30, 1, 1])
    where = specs.environment(max_model_len=256)
    step = same_for_all(ConstantStepTime(1.0))

    def placed(interval_s: float) -> list[int]:
        strategy = NoDG(name="s", instances=2, status_interval_s=interval_s)
        result = run(where, strategy, load, step_time=step)
        instances: list[int] = result.columns["requests"]["prefill_instance"].tolist()
        return instances

    assert placed(0.0) == [0, 1, 0, 0]
    assert placed(8.0) == [0, 1, 1, 0]


def test_a_prefix_draws_its_requests_to_where_it_is() -> None:
    """Two system prompts, two instances: with the router each stays on one, without they mix."""
    groups = [0, 1, 1, 0, 1, 0, 0, 1]
    hashes = shared_prefixes(groups, [160] * 8, [164] * 8)
    load = workload_of(10.0 * np.arange(8), 164, 2, hashes=hashes)
    where = specs.environment(max_model_len=256)

    def run_with(router: Literal["least-loaded", "prefix-aware"]) -> Result:
        strategy = NoDG(name="s", instances=2, router=router, prefix_caching=True)
        return run(where, strategy, load)

    drawn, mixed = run_with("prefix-aware"), run_with("least-loaded")
    assert drawn.columns["requests"]["prefill_instance"].tolist() == groups
    assert drawn.columns["requests"]["num_cached_tokens"].tolist() == [0, 0, *[160] * 6]
    assert mixed.columns["requests"]["num_cached_tokens"].sum() < 6 * 160
    assert mixed.columns["requests"]["prefill_instance"].tolist() != groups


@examples(200)
@given(
    rounds=st.lists(
        st.lists(st.tuples(st.integers(0, 3), st.booleans()), min_size=1, max_size=6),
        min_size=1,
        max_size=12,
    )
)
def test_shared_queue_takes_the_least_loaded_with_room(
    rounds: list[list[tuple[int, bool]]],
) -> None:
    """Without room anywhere the request stays pending; full instances are never chosen."""
    router = SharedQueue()
    count = len(rounds[0])
    last = -1
    for states in rounds:
        reports = [
            Report(k, load, room=room) for k, (load, room) in enumerate((states * count)[:count])
        ]
        open_ones = [k for k in range(count) if reports[k].room]
        chosen = router.choose(REQUEST, reports, 0.0)
        if not open_ones:
            assert chosen is None
            continue
        least = min(reports[k].load_tokens for k in open_ones)
        equals = [k for k in open_ones if reports[k].load_tokens == least]
        assert chosen == min(equals, key=lambda k: (k - last - 1) % count)
        last = chosen


@pytest.mark.parametrize("name", sorted(ROUTERS))
def test_every_router_chooses_an_instance_or_none(name: str) -> None:
    """The contract: an index into the list it was given."""
    router = ROUTERS[name]()
    rng = np.random.default_rng(0)
    for _ in range(200):
        count = int(rng.integers(1, 6))
        reports = [
            Report(k, int(rng.integers(0, 9)), room=bool(rng.integers(2))) for k in range(count)
        ]
        chosen = router.choose(REQUEST, reports, 0.0)
        assert chosen is None or 0 <= chosen < count


# --- in a cluster: separate queues, one sequence at a time --------------------------------------

NUM_REQUESTS = 3000
TOKENS_PER_S = 2.0**10
STEP_TIME = same_for_all(LinearStepTime(1 / TOKENS_PER_S, 1.0))
MACHINES = specs.environment(model=specs.llama_2_7b(), max_model_len=2**14)


def arrivals_and_prompts() -> tuple[FloatArray, FloatArray]:
    """Poisson arrivals for four servers at 80 % load, exponential service of mean 1 s."""
    gaps = stream(1, "test", "arrivals").exponential(1 / 3.2, NUM_REQUESTS)
    service = stream(1, "test", "service").exponential(1.0, NUM_REQUESTS)
    prompts = np.minimum(np.ceil(service * TOKENS_PER_S), 2**14 - 1)
    return grid_array(np.cumsum(gaps)), prompts


def start_times(router: str) -> tuple[FloatArray, FloatArray]:
    """Instance and start of each request on four servers behind `router`."""
    arrivals, prompts = arrivals_and_prompts()
    result = run(
        MACHINES,
        NoDG(name="four", instances=4, max_num_seqs=1, router=router),  # type: ignore[arg-type]
        workload_of(arrivals, prompts, 1),
        step_time=STEP_TIME,
    )
    requests = result.columns["requests"]
    return requests["prefill_instance"], requests["scheduled_s"]


def test_round_robin_is_four_lindley_queues() -> None:
    """Each instance sees every fourth request and serves it by Lindley's recursion, exactly."""
    arrivals, prompts = arrivals_and_prompts()
    instance, started = start_times("round-robin")
    assert np.array_equal(instance, np.arange(NUM_REQUESTS) % 4)
    free_at = [0.0] * 4
    for k in range(NUM_REQUESTS):
        expected = max(arrivals[k], free_at[k % 4])
        assert started[k] == expected
        free_at[k % 4] = expected + prompts[k] / TOKENS_PER_S


def test_least_loaded_joins_the_fewest_tokens() -> None:
    """A slow replay: at each arrival count the tokens that wait or run everywhere, take the least.

    A running prefill counts whole until its end, as instances report their last step boundary.
    """
    arrivals, prompts = arrivals_and_prompts()
    instance, started = start_times("least-loaded")
    held: list[list[tuple[float, float]]] = [[] for _ in range(4)]  # (end, prompt) of each
    last = -1
    for k in range(NUM_REQUESTS):
        for jobs in held:
            while jobs and jobs[0][0] <= arrivals[k]:
                heapq.heappop(jobs)
        loads = [sum(prompt for _, prompt in jobs) for jobs in held]
        order = [(last + 1 + step) % 4 for step in range(4)]
        chosen = min(order, key=lambda i: loads[i])
        assert instance[k] == chosen
        free_at = max((end for end, _ in held[chosen]), default=0.0)
        assert started[k] == max(arrivals[k], free_at)
        heapq.heappush(held[chosen], (started[k] + prompts[k] / TOKENS_PER_S, prompts[k]))
        last = chosen


def test_better_informed_routers_wait_less() -> None:
    """Known order for equal servers: one queue, then least work, then round robin."""
    arrivals, _ = arrivals_and_prompts()
    waits = {}
    for name in ROUTERS:
        _, started = start_times(name)
        waits[name] = float(np.mean(started - arrivals))
    assert waits["shared-queue"] < waits["least-loaded"] < 0.5 * waits["round-robin"]


class _Load:
    """An instance of which only the load is asked for."""

    instance_id = 0

    def __init__(self) -> None:
        self.load_tokens = 0
        self.num_read = 0


@given(
    st.integers(1, 9),
    st.lists(st.tuples(st.integers(0, 8), st.integers(-6, 6)), max_size=60),
)
def test_the_least_of_many_loads_is_that_of_all(count: int, changes: list[tuple[int, int]]) -> None:
    """Loads grow without a word, and fall with one; ties go to the next after the last choice."""
    instances = [_Load() for _ in range(count)]
    loads, plain, quick = Loads(instances), LeastLoaded(), LeastLoaded()  # type: ignore[arg-type]
    request = Request(0, 0.0, 1, 1)
    for place, change in changes:
        index = place % count
        one = instances[index]
        one.load_tokens = max(0, one.load_tokens + change)
        if change < 0:
            loads.fell(index)
        expected = plain.choose(request, instances, 0.0)  # type: ignore[arg-type]
        assert quick.choose_among(loads) == expected


def test_a_gateway_of_many_instances_places_as_one_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it keeps the least of the loads or reads them all, every request goes to the same.

    With preemptions, and chunks of prompts that are computed between the reports of an instance.
    """
    requests = [(0.001 * (k % 7), 5 + 13 * k % 60, 1 + 7 * k % 40) for k in range(1, 150)]
    for scheduler in ("chunked", "prefill-priority"):
        settings = NoDG(
            name="n", instances=4, router="least-loaded", scheduler=scheduler, num_kv_blocks=12
        )
        columns = []
        for many in (2, 1000):
            monkeypatch.setattr(front_end, "_MANY", many)
            result = run(toy_environment(), settings, toy_workload(requests))
            columns.append(result.columns["requests"])
        assert columns[0]["num_preemptions"].any()
        for name, column in columns[0].items():
            assert np.array_equal(column, columns[1][name], equal_nan=column.dtype.kind == "f")
