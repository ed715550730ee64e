"""Reuse of common prefixes: the pool, the ids of blocks, replays, and what a run makes of them."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.refusals import refused
from simcluster.config import SchedulerConfig
from simcluster.errors import ConfigError, DataError, InvariantError
from simcluster.kvcache import PrefixPool
from simcluster.request import Request
from simcluster.runs.result import Result
from simcluster.runs.simulate import run
from simcluster.sched import SCHEDULERS
from simcluster.strategies import FuDG, NoDG
from simcluster.studies.prefix_reuse import replay
from simcluster.testing import specs
from simcluster.testing.examples import examples
from simcluster.testing.step_times import ConstantStepTime, LinearStepTime, same_for_all
from simcluster.testing.workloads import shared_prefixes, workload_of
from simcluster.workload import Workload, WorkloadSettings, build
from simcluster.workload.hashes import BlockHashes
from simcluster.workload.replay import TraceArrivals

DATA = Path(os.environ.get("SIMCLUSTER_DATA", "../shared/data"))
CONVERSATIONS = DATA / "traces_mooncake" / "conversation_trace.jsonl.gz"
SERVED = DATA / "llmservingsim_vllm" / "workload__Llama-3.1-8B.jsonl.gz"
BLOCK = 4


# --- the pool ----------------------------------------------------------------------------------

Tokens = tuple[int, ...]


class NamedBlocks:
    """The slow way: a block is known by all the tokens up to its end, the cache is a list.

    `idle` is in the order of eviction. A sequence is the list of its blocks: tokens where the block
    is known, None where it is its own.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.idle: list[Tokens] = []
        self.sequences: dict[int, list[Tokens | None]] = {}

    def in_use(self) -> set[Tokens]:
        """Known blocks that a sequence holds."""
        return {b for blocks in self.sequences.values() for b in blocks if b is not None}

    @property
    def free(self) -> int:
        """Blocks that no sequence holds."""
        own = sum(block is None for blocks in self.sequences.values() for block in blocks)
        return self.num_blocks - own - len(self.in_use())

    def trim(self) -> None:
        """Evict what has no room."""
        del self.idle[: max(0, len(self.idle) - self.free)]

    def find(self, tokens: Tokens) -> list[Tokens]:
        """Known blocks at the start of a prompt, which is never found whole."""
        known = self.in_use() | set(self.idle)
        found: list[Tokens] = []
        for end in range(BLOCK, len(tokens), BLOCK):
            if tokens[:end] not in known:
                break
            found.append(tokens[:end])
        return found

    def come(self, number: int, tokens: Tokens, num_blocks: int) -> None:
        """Let a sequence in."""
        found = self.find(tokens)
        self.sequences[number] = [*found, *[None] * (num_blocks - len(found))]
        self.idle = [block for block in self.idle if block not in found]
        self.trim()

    def compute(self, number: int, tokens: Tokens) -> None:
        """`tokens` of the sequence are computed: its full blocks become known."""
        blocks = self.sequences[number]
        for index in range(len(tokens) // BLOCK):
            blocks[index] = tokens[: (index + 1) * BLOCK]
            self.idle = [block for block in self.idle if block != blocks[index]]

    def go(self, number: int) -> None:
        """The sequence leaves; its last block is evicted first."""
        for block in reversed(self.sequences.pop(number)):
            if block is not None and block not in self.in_use() and block not in self.idle:
                self.idle.append(block)


IDS: dict[Tokens, int] = {}


def chain(tokens: Tokens) -> tuple[range, ...]:
    """Ids of the full blocks of `tokens`, one run each."""
    ends = range(BLOCK, len(tokens) + 1, BLOCK)
    numbers = [IDS.setdefault(tokens[:end], 10 * len(IDS)) for end in ends]
    return tuple(range(n, n + 1) for n in numbers)


@examples(300)
@given(data=st.data())
def test_the_pool_is_a_list_of_blocks_known_by_their_tokens(data: st.DataObject) -> None:
    """Found, free and known are those of the slow way after every arrival, step and departure."""
    num_blocks = data.draw(st.integers(5, 12))
    pool, slow = PrefixPool(num_blocks, BLOCK), NamedBlocks(num_blocks)
    running: dict[int, tuple[Request, Tokens]] = {}
    for number in range(data.draw(st.integers(1, 12))):
        # Few different tokens, all alike within a block, so that prefixes are often the same.
        firsts = data.draw(st.lists(st.integers(0, 1), min_size=1, max_size=4))
        tail = data.draw(st.integers(0, BLOCK - 1))
        tokens = tuple(f for f in firsts for _ in range(BLOCK)) + (7,) * tail
        request = Request(number, 0.0, len(tokens), 1)
        request.block_ids = chain(tokens)
        wanted = pool.blocks_for(len(tokens))
        while running and not pool.can_admit(wanted):
            leave(pool, slow, running, data.draw(st.sampled_from(sorted(running))))
        found, in_use = pool.find(request, len(tokens))
        names = slow.find(tokens)
        assert found == len(names)
        assert in_use == sum(name in slow.in_use() for name in names)
        pool.take(request, wanted, found)
        slow.come(number, tokens, wanted)
        request.num_computed_tokens = found * BLOCK
        running[number] = (request, tokens)
        for other, (known, its_tokens) in running.items():
            more = data.draw(st.integers(0, len(its_tokens) - known.num_computed_tokens))
            if more:
                known.num_computed_tokens += more
                pool.computed(known)
                slow.compute(other, its_tokens[: known.num_computed_tokens])
            assert_agree(pool, slow)
        for other in data.draw(st.sets(st.sampled_from(sorted(running)))):
            leave(pool, slow, running, other)


def leave(
    pool: PrefixPool, slow: NamedBlocks, running: dict[int, tuple[Request, Tokens]], number: int
) -> None:
    """Let one go, wherever it is in its prompt."""
    request, tokens = running.pop(number)
    pool.leave(request, pool.blocks_for(len(tokens)))
    slow.go(number)
    assert_agree(pool, slow)


def assert_agree(pool: PrefixPool, slow: NamedBlocks) -> None:
    """The books agree with each other and with the slow way."""
    pool.check()
    assert pool.free_blocks == slow.free
    assert pool.num_known == len(slow.in_use() | set(slow.idle))


def three_idle() -> tuple[PrefixPool, Request]:
    """Return a pool of five blocks that knows three of a prompt nobody holds, and the next one."""
    pool, prompt = PrefixPool(5, BLOCK), tuple(range(3 * BLOCK + 1))
    first, second = (Request(number, 0.0, len(prompt), 1) for number in (0, 1))
    for request in (first, second):
        request.block_ids = chain(prompt)
    pool.take(first, 4, 0)
    first.num_computed_tokens = len(prompt)
    pool.leave(first, 4)
    return pool, second


@pytest.mark.parametrize("taken", range(6))
def test_blocks_that_a_step_under_way_takes_are_gone_as_at_its_end(taken: int) -> None:
    """Asked in the middle of it, or after it: the same blocks are found, the last ones evicted."""
    (early, request), (late, _) = three_idle(), three_idle()
    early.settle(taken)
    late.allocate(taken)
    assert early.find(request, request.prompt_len) == late.find(request, request.prompt_len)
    assert early.find(request, request.prompt_len)[0] == min(3, 5 - taken)
    assert early.free_blocks == 5, "they are taken at its end"


def test_a_request_does_not_reserve_what_the_step_under_way_evicts() -> None:
    """KV that comes from elsewhere in the middle of a step finds what is left at its end."""
    pool, request = three_idle()
    config = SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=64)
    scheduler = SCHEDULERS["prefill-priority"](config, pool)
    assert scheduler.reserve(request, 4, request.prompt_len) == 1 * BLOCK


def test_nobody_has_blocks_twice() -> None:
    """A second admission without a departure is a bug of ours."""
    pool, request = PrefixPool(8, BLOCK), Request(0, 0.0, 8, 1)
    pool.take(request, 2, 0)
    with pytest.raises(InvariantError):
        pool.take(request, 2, 0)


# --- ids ---------------------------------------------------------------------------------------


@examples(200)
@given(
    rows=st.lists(st.lists(st.integers(0, 30), max_size=6), min_size=1, max_size=6),
    tokens_per_id=st.sampled_from([1, 4, 12]),
    ratio=st.sampled_from([1, 2, 3]),
    data=st.data(),
)
def test_runs_are_the_ids_one_by_one(
    rows: list[list[int]], tokens_per_id: int, ratio: int, data: st.DataObject
) -> None:
    """Whole, cut into smaller blocks, or joined into larger ones; of all rows or a part of them."""
    tokens = [data.draw(st.integers(0, len(row) * tokens_per_id + 3)) for row in rows]
    starts = np.cumsum([0, *map(len, rows)])
    flat = np.array([i for row in rows for i in row], np.int64)
    hashes = BlockHashes.of_ids(flat, starts, np.array(tokens), tokens_per_id)
    first = data.draw(st.integers(0, len(rows) - 1))
    part = hashes.of_requests(first, len(rows))
    assert part.num_requests == len(rows) - first
    for number, (row, length) in enumerate(zip(rows[first:], tokens[first:], strict=True)):
        known = min(length, len(row) * tokens_per_id)

        def flattened(block_size: int, number: int = number) -> list[int]:
            return [i for run in part.runs(number, block_size) for i in run]

        larger = row[ratio - 1 :: ratio]
        assert flattened(ratio * tokens_per_id) == larger[: known // (ratio * tokens_per_id)]
        if tokens_per_id % ratio == 0:
            size = tokens_per_id // ratio
            smaller = [i * ratio + k for i in row for k in range(ratio)]
            assert flattened(size) == smaller[: known // size]


def test_blocks_that_do_not_fit_into_each_other_are_refused() -> None:
    """Ids of 16 tokens say nothing about blocks of 24."""
    load = workload_of([0.0], 40, 1, hashes=shared_prefixes([0], [0], [40]))
    odd = specs.environment(engine=dataclasses.replace(specs.ideal_engine(), block_size=24))
    with pytest.raises(ConfigError, match=r"engine\.block_size = 24: .* blocks of 16 tokens"):
        run(odd, NoDG(name="s", instances=1), load)


# --- traces ------------------------------------------------------------------------------------


def trace(folder: Path, rows: list[dict[str, object]]) -> str:
    """Write a trace and return its path."""
    file = folder / "trace.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return str(file)


def mooncake(**keys: object) -> dict[str, object]:
    """One row of a Mooncake trace."""
    return {"timestamp": 0, "input_length": 600, "output_length": 5, **keys}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([mooncake(), mooncake(hash_ids="x")], "line 2, hash_ids: must be a list of whole numbers"),
        ([mooncake(hash_ids=[0.5])], "line 1, hash_ids: must be a list of whole numbers"),
    ],
)
def test_ids_that_cannot_be_are_refused_in_one_line(
    tmp_path: Path, rows: list[dict[str, object]], message: str
) -> None:
    """With the line of the file."""
    settings = WorkloadSettings(trace=trace(tmp_path, rows))
    with refused(message, error=DataError):
        build(settings, seed=0, rate_rps=None, max_model_len=1000)


def test_ids_stand_for_the_prompt_alone(tmp_path: Path) -> None:
    """The last id of a prompt does not reach into its answer, nor past where it was cut."""
    rows = [mooncake(hash_ids=[0, 1], output_length=500), mooncake(hash_ids=[0, 1])]
    settings = WorkloadSettings(trace=trace(tmp_path, rows), on_too_long="truncate")
    load = build(settings, seed=0, rate_rps=None, max_model_len=606)
    assert load.hashes is not None
    assert load.prompt_len.tolist() == [600, 600]
    assert [list(run) for run in load.hashes.runs(0, 512)] == [[0]]
    assert sum(map(len, load.hashes.runs(0, 16))) == 600 // 16
    short = build(settings, seed=0, rate_rps=None, max_model_len=101)
    assert short.hashes is not None
    assert sum(map(len, short.hashes.runs(0, 16))) == 100 // 16


def test_lengths_from_elsewhere_share_nothing(tmp_path: Path) -> None:
    """The ids are those of the trace's own prompts."""
    path = trace(tmp_path, [mooncake(hash_ids=[0, 1])])
    settings = WorkloadSettings(arrivals=TraceArrivals(path=path), lengths="sharegpt-etalon")
    load = build(settings, seed=0, rate_rps=None, max_model_len=4096)
    assert load.hashes is None


# --- replays -----------------------------------------------------------------------------------


@st.composite
def conversations(draw: st.DrawFn, most: int = 25) -> Workload:
    """Requests a thousand seconds apart, with prefixes in common, some also in their answers."""
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(1, 90), st.integers(1, 30), st.integers(0, 2), st.integers(0, 100)
            ),
            min_size=1,
            max_size=most,
        )
    )
    prompts, outputs, groups, shared = (np.array(column) for column in zip(*rows, strict=True))
    known = prompts + outputs * draw(st.booleans())
    return workload_of(
        1000.0 * np.arange(len(rows)),
        prompts,
        outputs,
        hashes=shared_prefixes(groups.tolist(), shared.tolist(), known.tolist(), tokens_per_id=8),
    )


SMALL = specs.environment(
    engine=dataclasses.replace(specs.ideal_engine(), block_size=8), max_model_len=128
)
TICK = 2.0**-10


def cached(result: Result) -> list[int]:
    """Cached tokens of each request."""
    tokens: list[int] = result.columns["requests"]["num_cached_tokens"].tolist()
    return tokens


@examples(150)
@given(load=conversations(), num_blocks=st.sampled_from([16, 20, 40]), chunked=st.booleans())
def test_one_instance_that_is_never_busy_finds_what_a_replay_finds(
    load: Workload, num_blocks: int, chunked: bool
) -> None:
    """The scheduler, the steps and the pool between them lose nothing and find nothing else."""
    strategy = NoDG(
        name="s",
        instances=1,
        num_kv_blocks=num_blocks,
        prefix_caching=True,
        max_num_seqs=4,
        scheduler="chunked" if chunked else "prefill-priority",
        chunk_size=24 if chunked else None,
    )
    result = run(SMALL, strategy, load, step_time=same_for_all(ConstantStepTime(TICK)))
    expected = replay(load, block_size=8, num_blocks=num_blocks)
    assert sum(cached(result)) == expected.found_tokens
    assert result.columns["instances"]["cached_blocks"][0] == expected.found_blocks
    assert result.columns["instances"]["asked_blocks"][0] == expected.num_blocks


@examples(60)
@given(load=conversations(), block_size=st.sampled_from([4, 8, 16]))
def test_a_larger_cache_finds_no_fewer(load: Workload, block_size: int) -> None:
    """Up to the cache without end, which finds what a set of all prefixes finds."""
    smallest = -(-120 // block_size)
    sizes = [smallest, smallest + 1, 2 * smallest, 5 * smallest, None]
    found = [replay(load, block_size=block_size, num_blocks=n).found_tokens for n in sizes]
    assert found == sorted(found)
    assert load.hashes is not None
    seen: set[int] = set()
    tokens = 0
    for number, prompt_len in enumerate(load.prompt_len.tolist()):
        ids = [i for run in load.hashes.runs(number, block_size) for i in run]
        first_new = next((k for k, i in enumerate(ids) if i not in seen), len(ids))
        tokens += min(first_new, (prompt_len - 1) // block_size) * block_size
        end = prompt_len + int(load.output_len[number]) - 1
        seen.update(ids[: end // block_size])
    assert found[-1] == tokens


def test_a_cache_smaller_than_one_prompt_is_refused() -> None:
    """In one line, by the replay and by the instance."""
    load = workload_of([0.0], 100, 20, hashes=shared_prefixes([0], [0], [100]))
    with pytest.raises(ConfigError, match=r"num_blocks = 7: the longest request takes 8 blocks"):
        replay(load, block_size=16, num_blocks=7)
    strategy = NoDG(name="s", instances=1, num_kv_blocks=15, prefix_caching=True)
    with pytest.raises(ConfigError, match="cannot hold one sequence of max_model_len = 128"):
        run(SMALL, strategy, load)
    with pytest.raises(ConfigError, match="its requests have no block ids"):
        replay(workload_of([0.0], 100, 20), block_size=16)


@pytest.mark.skipif(not CONVERSATIONS.exists(), reason="needs the shared Mooncake traces")
def test_the_shared_conversations_share_as_much_as_published() -> None:
    """36.6 % of its blocks of 512 tokens, 37.4 % of its tokens in blocks of 16; less in less room.

    The oracle for the first is the file: ids of a row that stand in an earlier row.
    """
    settings = WorkloadSettings(trace=str(CONVERSATIONS))
    load = build(settings, seed=0, rate_rps=None, max_model_len=200_000)
    whole = replay(load, block_size=512, partial_blocks=True)
    rows = [row["hash_ids"] for row in json_lines(CONVERSATIONS)]
    seen: set[int] = set()
    found = 0
    for ids in rows:
        found += sum(i in seen for i in ids)
        seen.update(ids)
    assert (whole.found_blocks, whole.num_blocks) == (found, sum(map(len, rows)))
    assert whole.block_share == pytest.approx(0.366, abs=0.0005)
    shares = [
        replay(load, block_size=512, num_blocks=n).token_share for n in (500, 2000, 8000, None)
    ]
    assert shares == sorted(shares)
    assert shares[0] < 0.1
    part = replay(head(load, 2000), block_size=16)
    by_id = replay(head(load, 2000), block_size=512, partial_blocks=True)
    assert 0 <= by_id.token_share - part.token_share < 0.001
    assert whole.token_share == pytest.approx(0.374, abs=0.0005)


def json_lines(file: Path) -> list[dict[str, Any]]:
    """Rows of a packed file."""
    with gzip.open(file, "rt") as lines:
        return [json.loads(line) for line in lines]


def head(load: Workload, count: int) -> Workload:
    """The first requests of a workload."""
    assert load.hashes is not None
    return dataclasses.replace(
        load,
        **{
            name: getattr(load, name)[:count]
            for name in ("arrival_s", "prompt_len", "output_len", "rejected")
        },
        hashes=load.hashes.of_requests(0, count),
    )


@pytest.mark.skipif(not SERVED.exists(), reason="needs the shared LLMServingSim workload")
def test_the_shared_served_workload_is_read_with_its_blocks() -> None:
    """1,220 of its 15,942 full blocks of 16 tokens stand in an earlier prompt."""
    load = build(WorkloadSettings(trace=str(SERVED)), seed=0, rate_rps=None, max_model_len=32_768)
    found = replay(load, block_size=16, partial_blocks=False)
    assert load.num_requests == 300
    assert found.num_blocks == 15_942
    rows = json_lines(SERVED)
    seen: set[int] = set()
    expected = 0
    for row in rows:
        ids, most = row["block16_ids"], (row["input_tokens"] - 1) // 16
        expected += sum(i in seen for i in ids[:most])
        seen.update(ids)
    assert found.found_blocks == expected


# --- what a run makes of it --------------------------------------------------------------------

LINEAR = same_for_all(LinearStepTime(TICK, 8 * TICK))


@pytest.mark.parametrize("scheduler", ["prefill-priority", "chunked"])
@pytest.mark.parametrize(("prompt", "left"), [(41, 1), (40, 8), (48, 8), (33, 1)])
def test_only_the_uncached_tokens_are_computed(scheduler: str, prompt: int, left: int) -> None:
    """The second of two equal prompts pays for what follows its last full block but one token."""
    load = workload_of(
        [0.0, 10.0],
        prompt,
        3,
        hashes=shared_prefixes([0, 0], [prompt] * 2, [prompt] * 2, tokens_per_id=8),
    )
    strategy = NoDG(name="s", instances=1, scheduler=scheduler, prefix_caching=True)  # type: ignore[arg-type]
    result = run(SMALL, strategy, load, step_time=LINEAR)
    assert result.columns["requests"]["ttft_s"].tolist() == [prompt * TICK, left * TICK]
    assert cached(result) == [0, prompt - left]
    off = run(SMALL, dataclasses.replace(strategy, prefix_caching=False), load, step_time=LINEAR)
    assert off.columns["requests"]["ttft_s"].tolist() == [prompt * TICK] * 2


def test_cached_tokens_are_attended_to() -> None:
    """A chunk behind cached tokens takes as long as the roofline says of it, and shares memory."""
    load = workload_of([0.0, 10.0], 1600, 2, hashes=shared_prefixes([0, 0], [1600] * 2, [1600] * 2))
    where = specs.environment(max_model_len=2048)
    strategy = NoDG(name="s", instances=1, prefix_caching=True)
    result = run(where, strategy, load, resolution="step")
    spans = result.columns["spans"]
    assert spans["prefill_tokens"].tolist() == [1600, 0, 16, 0]
    assert spans["cached_tokens"].tolist() == [0, 0, 1584, 0]


def test_an_answer_is_found_by_the_next_turn() -> None:
    """Blocks that decode filled are known once the request has left."""
    hashes = shared_prefixes([0, 0], [64, 64], [20 + 30, 64], tokens_per_id=8)
    load = workload_of([0.0, 10.0], [20, 64], [30, 1], hashes=hashes)
    strategy = NoDG(name="s", instances=1, prefix_caching=True)
    result = run(SMALL, strategy, load, step_time=LINEAR)
    # 49 tokens have been computed: the last token of an answer is never fed back.
    assert cached(result) == [0, 48]


def test_two_with_one_prefix_need_less_room_than_two_without() -> None:
    """Of 20 blocks each takes 12; with 10 in common both run at once."""
    ids = shared_prefixes([0, 0], [80, 80], [90, 90], tokens_per_id=8)
    load = workload_of([0.0, 1.0], 90, 5, hashes=ids)
    strategy = NoDG(name="s", instances=1, num_kv_blocks=20, prefix_caching=True)
    slow = same_for_all(LinearStepTime(TICK, 1.0))
    with_reuse = run(SMALL, strategy, load, step_time=slow)
    off = dataclasses.replace(strategy, prefix_caching=False)
    without = run(SMALL, off, load, step_time=slow)
    assert with_reuse.columns["requests"]["queue_s"][1] < 1.2
    assert without.columns["requests"]["queue_s"][1] > 3
    assert with_reuse.columns["instances"]["peak_kv_usage"][0] == (10 + 2 + 2) / 20


def test_prefill_and_decode_instances_have_caches_of_their_own() -> None:
    """The second turn finds on the prefill side the first prompt, on the decode side the answer."""
    hashes = shared_prefixes([0, 0], [64, 64], [20 + 30, 64], tokens_per_id=8)
    load = workload_of([0.0, 10.0], [20, 64], [30, 3], hashes=hashes)
    strategy = FuDG(name="s", prefill_instances=1, decode_instances=1, prefix_caching=True)
    result = run(SMALL, strategy, load, step_time=LINEAR)
    assert cached(result) == [0, 16]
    assert result.columns["instances"]["cached_blocks"].tolist() == [2, 6]


# --- swapping ----------------------------------------------------------------------------------


def test_a_swapped_request_pays_for_its_copies_and_for_nothing_else() -> None:
    """Every step takes a tick and every block copied another: the last output is their sum.

    Two prompts of 16 tokens in 8 blocks of 8: both hold 4 blocks at 32 tokens each, and the newer
    goes out. It comes back when the other has ended.
    """
    per_block = SMALL.model.kv_bytes_per_token * 8
    pcie = dataclasses.replace(
        SMALL.cluster.pcie, bandwidth=per_block / TICK, efficiency=1.0, latency_s=0.0
    )
    where = dataclasses.replace(
        SMALL,
        model=dataclasses.replace(SMALL.model, max_model_len=64),
        cluster=dataclasses.replace(SMALL.cluster, pcie=pcie),
    )
    load = workload_of([0.0, 0.0], 16, [30, 30])
    ticks = same_for_all(ConstantStepTime(TICK))
    strategy = NoDG(name="s", instances=1, num_kv_blocks=8, preemption="swap")
    result = run(where, strategy, load, step_time=ticks)
    # One prefill; steps 1 to 16 fill 4 blocks each; the first decodes on to its 30th token.
    out, first_alone, back, second_alone = 4, 29 - 16, 4, 29 - 16
    assert result.columns["requests"]["last_token_s"].tolist() == [
        (1 + 16 + out + first_alone) * TICK,
        (1 + 16 + out + first_alone + back + second_alone) * TICK,
    ]
    assert result.columns["instances"]["num_swaps"].tolist() == [1]
    recomputed = run(
        where, dataclasses.replace(strategy, preemption="recompute"), load, step_time=ticks
    )
    assert recomputed.columns["instances"]["num_swaps"].tolist() == [0]
    # Its recomputation is one step that gives a token too.
    assert recomputed.end_s == (1 + 16 + first_alone + 1 + second_alone - 1) * TICK
    # Host memory for three blocks: it recomputes.
    tight = dataclasses.replace(strategy, swap_bytes=3.5 * per_block)
    assert run(where, tight, load, step_time=ticks).end_s == recomputed.end_s


def test_host_memory_without_room_for_a_block_is_refused() -> None:
    """In one line, with what a block takes."""
    strategy = NoDG(name="s", instances=1, preemption="swap", swap_bytes=1000.0)
    with pytest.raises(ConfigError, match=r"strategy\.s\.swap_bytes = 1000\.0: a GPU's share"):
        run(SMALL, strategy, workload_of([0.0], 16, 3))
