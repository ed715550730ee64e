"""Conversations: lengths, gaps, popularity, and which blocks the turns have in common."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.refusals import refused
from simcluster.studies.prefix_reuse import replay
from simcluster.testing.examples import examples
from simcluster.workload import Workload, WorkloadSettings, build
from simcluster.workload.sessions import SessionArrivals

PLAIN = SessionArrivals(system_prompts=4, system_len=40, zipf=1.0)


def drawn(
    process: SessionArrivals = PLAIN,
    *,
    rate_rps: float = 10.0,
    seed: int = 0,
    num_requests: int | None = 5000,
    duration_s: float | None = None,
) -> Workload:
    """The turns of a run."""
    table = WorkloadSettings(arrivals=process, num_requests=num_requests, duration_s=duration_s)
    return build(table, seed=seed, rate_rps=rate_rps, max_model_len=2**31 - 1)


def ids(load: Workload, number: int) -> list[int]:
    """Ids of the full blocks of one request."""
    assert load.hashes is not None
    return [i for run in load.hashes.runs(number, 16) for i in run]


def sessions_of(load: Workload) -> dict[int, list[int]]:
    """Requests of each session, in order of arrival: those that share the first block of its own.

    (A session whose turns are all shorter than that block is left out.)
    """
    found: dict[int, list[int]] = {}
    for number in range(load.num_requests):
        own = ids(load, number)[2:]
        if own:
            found.setdefault(own[0], []).append(number)
    return found


def test_the_rate_is_the_one_asked_for_from_the_start() -> None:
    """Stationary: the first tenth of the time has a tenth of the turns, over seeds."""
    rates, first = [], []
    for seed in range(20):
        load = drawn(seed=seed, duration_s=200.0, num_requests=None)
        rates.append(load.num_requests / 200.0)
        first.append(np.searchsorted(load.arrival_s, 20.0) / 20.0)
    for sample in (rates, first):
        half_width = 4 * np.std(sample, ddof=1) / math.sqrt(len(sample))
        assert half_width < 2
        assert abs(np.mean(sample) - 10.0) < half_width
    assert load.rate_rps == 10.0


def test_users_may_wait_for_the_answer_before_they_think() -> None:
    """The same turns; each waits for the one before it in its session, and then a gap."""
    open_loop = drawn(num_requests=500)
    waiting = drawn(dataclasses.replace(PLAIN, gap_after="answer"), num_requests=500)
    for name in ("arrival_s", "prompt_len", "output_len"):
        assert getattr(open_loop, name).tolist() == getattr(waiting, name).tolist()
    assert open_loop.turns is None
    turns = waiting.turns
    assert turns is not None
    pairs = [pair for session in sessions_of(waiting).values() for pair in pairwise(session)]
    assert len(pairs) > 150
    for earlier, later in pairs:
        assert turns.after[later] == earlier
        gap_s = waiting.arrival_s[later] - waiting.arrival_s[earlier]
        assert turns.think_s[later] == pytest.approx(gap_s, abs=2.0**-31)
    assert set(np.flatnonzero(turns.after >= 0)) >= {later for _, later in pairs}
    assert not turns.think_s[turns.after < 0].any()


def test_turns_and_gaps_have_their_moments() -> None:
    """Turns are geometric with their mean, gaps lognormal with their median.

    Only sessions that began long after the start and end long before the end are whole.
    """
    process = dataclasses.replace(PLAIN, mean_turns=3.0, gap_median_s=2.0, gap_sigma=0.5)
    load = drawn(process, rate_rps=20.0, num_requests=30_000)
    whole = [
        turns
        for turns in sessions_of(load).values()
        if load.arrival_s[turns[0]] > 200 and load.arrival_s[turns[0]] < load.arrival_s[-1] - 200
    ]
    count = np.array([len(turns) for turns in whole])
    assert abs(count.mean() - 3.0) < 4 * count.std() / math.sqrt(len(count)) + 0.02
    assert np.mean(count == 1) == pytest.approx(1 / 3, abs=0.02)
    gaps = np.concatenate([np.diff(load.arrival_s[turns]) for turns in whole])
    assert np.median(gaps) == pytest.approx(2.0, rel=0.03)
    assert np.std(np.log(gaps)) == pytest.approx(0.5, rel=0.03)


def test_a_turn_holds_all_that_was_said_before() -> None:
    """Its prompt is the last one, the answer to it, and at least one token; so are its blocks."""
    load = drawn(num_requests=2000)
    seen = 0
    for turns in sessions_of(load).values():
        for before, after in pairwise(turns):
            said = load.prompt_len[before] + load.output_len[before]
            assert load.prompt_len[after] > said
            assert ids(load, after)[: said // 16] == ids(load, before)
            seen += 1
    assert seen > 1000


def test_system_prompts_are_shared_by_popularity_and_nothing_else_is() -> None:
    """The share of the k-th is as 1 / k; of different sessions no other block is the same."""
    load = drawn(num_requests=20_000)
    counts: dict[int, int] = {}
    owners: dict[int, int] = {}
    for own, turns in sessions_of(load).items():
        for number in turns:
            row = ids(load, number)
            counts[row[0]] = counts.get(row[0], 0) + 1
            assert row[1] == row[0] + 1
            assert all(owners.setdefault(i, own) == own for i in row[2:])
    shares = np.array(sorted(counts.values(), reverse=True)) / sum(counts.values())
    expected = np.array([1, 1 / 2, 1 / 3, 1 / 4]) / (25 / 12)
    assert np.allclose(shares, expected, atol=0.02)


@examples(40)
@given(
    system_len=st.sampled_from([0, 1, 15, 16, 33]),
    mean_turns=st.sampled_from([1.0, 1.5, 6.0]),
    limit=st.sampled_from([None, 600, 3000]),
    seed=st.integers(0, 5),
    num_requests=st.integers(1, 300),
)
def test_more_requests_begin_with_the_fewer(
    system_len: int, mean_turns: float, limit: int | None, seed: int, num_requests: int
) -> None:
    """The first n of more are the draw of n, ids included; limits are kept; rates move sessions."""
    process = dataclasses.replace(
        PLAIN, system_len=system_len, mean_turns=mean_turns, max_context_len=limit
    )
    few = drawn(process, seed=seed, num_requests=num_requests)
    more = drawn(process, seed=seed, num_requests=2 * num_requests + 7)
    assert few.num_requests == num_requests
    for name in ("arrival_s", "prompt_len", "output_len"):
        assert np.array_equal(getattr(few, name), getattr(more, name)[:num_requests])
    assert [ids(few, k) for k in range(num_requests)] == [ids(more, k) for k in range(num_requests)]
    assert (few.prompt_len > system_len).all()
    tokens = few.prompt_len + few.output_len
    assert limit is None or (tokens <= limit).all()
    assert few.hashes is not None
    assert np.array_equal(few.hashes.num_tokens, tokens)


def test_a_limit_of_the_context_leaves_the_rate_alone() -> None:
    """Sessions end earlier, so more of them come."""
    process = dataclasses.replace(PLAIN, max_context_len=1000, mean_turns=20.0, gap_median_s=1.0)
    rates = [
        drawn(process, seed=s, duration_s=200.0, num_requests=None).num_requests / 200
        for s in range(10)
    ]
    assert np.mean(rates) == pytest.approx(10.0, abs=4 * np.std(rates, ddof=1) / math.sqrt(10))


def test_system_prompts_and_turns_are_what_a_cache_finds() -> None:
    """Without either there is nothing to find; each of them gives something."""
    alone = dataclasses.replace(PLAIN, mean_turns=1.0, system_len=0)
    shares = [
        replay(drawn(process, num_requests=1000), block_size=16).token_share
        for process in (
            alone,
            dataclasses.replace(alone, system_len=400),
            dataclasses.replace(alone, mean_turns=5.0),
            dataclasses.replace(PLAIN, system_len=400),
        )
    ]
    assert shares[0] == 0
    assert min(shares[1:]) > 0.3
    assert shares[3] > shares[2]


def test_a_hundred_thousand_requests_take_fifty_bytes_each() -> None:
    """Runs of ids, not ids."""
    hashes = drawn(SessionArrivals(), num_requests=100_000).hashes
    assert hashes is not None
    arrays = (hashes.num_tokens, hashes.first, hashes.count, hashes.offsets)
    assert sum(a.nbytes for a in arrays) < 50 * 100_000


@pytest.mark.parametrize(
    ("changes", "table", "rate_rps", "message"),
    [
        ({}, {}, None, "workload.rate_rps: sessions need a rate"),
        ({}, {"lengths": "sharegpt-etalon"}, 1.0, "sessions have lengths of their own"),
        ({"max_context_len": 40}, {}, 1.0, "hardly a first turn fits behind a system prompt of 40"),
    ],
)
def test_sessions_that_cannot_be_are_refused(
    changes: dict[str, int], table: dict[str, str], rate_rps: float | None, message: str
) -> None:
    """In one line."""
    process = dataclasses.replace(PLAIN, **changes)  # type: ignore[arg-type]
    with refused(message):
        build(
            WorkloadSettings(arrivals=process, **table),  # type: ignore[arg-type]
            seed=0,
            rate_rps=rate_rps,
            max_model_len=1000,
        )
