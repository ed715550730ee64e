"""Blocks of a trace: what a resample keeps of it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from simcluster.errors import ConfigError, DataError
from simcluster.workload import ArrivalTimes, Offer, WorkloadSettings, build
from simcluster.workload.profiles import (
    AnyPhaseArrivals,
    OnOffArrivals,
    ScheduleArrivals,
    SchedulePiece,
)
from simcluster.workload.replay import TraceReplay
from simcluster.workload.trace_blocks import TraceBlocks

NUM = 400


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Return a trace whose requests all have lengths of their own, with a busy second half."""
    rng = np.random.default_rng(8)
    gaps = np.concatenate([rng.exponential(1.0, NUM // 2), rng.exponential(0.25, NUM // 2)])
    place = tmp_path / "t.csv"
    rows = "".join(f"{t:.6f},{k + 1},{2 * k + 1}\n" for k, t in enumerate(np.cumsum(gaps)))
    place.write_text(f"arrival_s,prompt_len,output_len\n{rows}")
    return str(place)


def drawn(
    blocks: TraceBlocks, num: int = 1000, rate: float | None = None, seed: int = 1
) -> ArrivalTimes:
    """Return a run at a rate; by default the trace's own."""
    offer = Offer(num_requests=num, rate_rps=rate or blocks.rate_rps, needs_lengths=True)
    return blocks.draw(offer, seed)


def rows_of(run: ArrivalTimes) -> np.ndarray:
    """Return the rows of the trace that a run is made of."""
    assert run.lengths is not None
    prompt, output = run.lengths.draw(len(run.arrival_s), np.random.default_rng(0))
    assert (output == 2 * prompt - 1).all(), "prompt and output stay pairs"
    return prompt - 1


def test_a_resample_is_made_of_whole_blocks_of_the_trace(trace: str) -> None:
    """With the gaps within a block, as many requests as asked, and none that is not there."""
    blocks = TraceBlocks(path=trace, num_blocks=8)
    times = blocks.read().arrival_s
    assert times is not None
    run = drawn(blocks)
    rows = rows_of(run)
    assert len(rows) == len(run.arrival_s) == 1000
    assert (np.diff(run.arrival_s) >= 0).all()
    block = (times / blocks.block_s).astype(int)
    of_block = Counter(block.tolist())
    starts = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
    place = 0.0
    for first, last in zip(starts, [*starts[1:], None], strict=True):
        own = rows[first:last]
        # Blocks drawn behind each other may follow each other in the trace too.
        for number in dict.fromkeys(block[own].tolist()):
            some = own[block[own] == number]
            if last is not None:
                assert len(some) == of_block[number], "a block is whole"
            place = max(place, run.arrival_s[first])
        gaps = np.diff(run.arrival_s[first:last])
        assert gaps == pytest.approx(np.diff(times[own]), abs=1e-6)
    counts = Counter(block[rows].tolist())
    assert len(counts) > 3


def test_resamples_have_the_rate_and_the_lengths_of_the_trace(trace: str) -> None:
    """In the mean over seeds, at four standard errors; the busy half weighs as in the trace."""
    blocks = TraceBlocks(path=trace, num_blocks=8)
    runs = [drawn(blocks, 4 * NUM, 2.0, seed) for seed in range(200)]
    for values, truth in (
        ([len(r.arrival_s) / r.arrival_s[-1] for r in runs], 2.0),
        ([rows_of(r).mean() for r in runs], (NUM - 1) / 2),
    ):
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        assert abs(np.mean(values) - truth) < 4 * error + 0.01 * truth


def test_time_is_scaled_and_the_same_requests_come(trace: str) -> None:
    """At twice the rate in half the time; the first of a longer run are those of a shorter."""
    blocks = TraceBlocks(path=trace, num_blocks=8)
    slow, fast, longer = drawn(blocks, rate=1.0), drawn(blocks, rate=2.0), drawn(blocks, 3000, 1.0)
    assert (rows_of(slow) == rows_of(fast)).all()
    assert fast.arrival_s == pytest.approx(slow.arrival_s / 2)
    assert (rows_of(longer)[:1000] == rows_of(slow)).all()
    assert longer.arrival_s[:1000] == pytest.approx(slow.arrival_s)
    assert (rows_of(drawn(blocks, seed=2)) != rows_of(slow)).any()


def test_thinning_leaves_out_at_random_and_keeps_the_clock(trace: str) -> None:
    """What comes at a rate comes at every higher one, at the same time; above its own none can."""
    blocks = TraceBlocks(path=trace, num_blocks=8, thin=True)
    own = blocks.rate_rps
    few, many = drawn(blocks, 500, own / 4), drawn(blocks, 1250, own / 2)
    assert set(zip(few.arrival_s[:400], rows_of(few)[:400], strict=True)) <= set(
        zip(many.arrival_s, rows_of(many), strict=True)
    )
    runs = [drawn(blocks, 500, own / 4, seed) for seed in range(100)]
    rates = [len(run.arrival_s) / run.arrival_s[-1] for run in runs]
    error = np.std(rates, ddof=1) / 10
    assert abs(np.mean(rates) - own / 4) < 4 * error + 0.02 * own / 4
    with pytest.raises(ConfigError, match="leaving some out lowers a rate alone"):
        drawn(blocks, 500, 1.01 * own)


def test_ids_of_one_block_are_new_in_each_copy_and_common_ones_stay(tmp_path: Path) -> None:
    """Another day has the same system prompt and other questions behind it."""
    place = tmp_path / "t.jsonl"
    rows = [
        {
            "timestamp": 1000 * k,
            "input_length": 3 * 512,
            "output_length": 4,
            "hash_ids": [7, 100 + 2 * k, 101 + 2 * k],
        }
        for k in range(40)
    ]
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    blocks = TraceBlocks(path=str(place), num_blocks=4)
    run = drawn(blocks, 200)
    assert run.hashes is not None
    ids = [[i for part in run.hashes.runs(k, 512) for i in part] for k in range(200)]
    assert all(len(own) == 3 for own in ids)
    assert len({own[0] for own in ids}) == 1, "what several blocks have in common"
    assert all(own[2] == own[1] + 1 for own in ids)
    assert len({own[1] for own in ids}) == 200, "no question is asked twice"


def test_sessions_stay_whole(tmp_path: Path) -> None:
    """Turns wait for their own turn before, as long as in the trace."""
    place = tmp_path / "t.jsonl"
    rows = []
    for k in range(60):
        rows += [
            {"session_id": f"s{k}", "timestamp": 2000 * k, "input_length": 10 + k,
             "output_length": 3},
            {"session_id": f"s{k}", "delay": 500 + k, "input_length": 20, "output_length": 4},
        ]  # fmt: skip
    place.write_text("".join(json.dumps(row) + "\n" for row in rows))
    blocks = TraceBlocks(path=str(place), num_blocks=6)
    assert blocks.turns_per_session == 2
    assert blocks.rate_rps == pytest.approx(2 * 0.5)
    run = drawn(blocks, 300, 4.0)
    assert run.turns is not None
    after = run.turns.after
    assert (after[::2] == -1).all()
    assert (after[1::2] == np.arange(0, 300, 2)).all()
    assert run.lengths is not None
    prompt, _ = run.lengths.draw(300, np.random.default_rng(0))
    assert run.turns.think_s[1::2] == pytest.approx((490 + prompt[::2]) / 1000, abs=1e-6)
    first = run.arrival_s[::2]
    assert (np.diff(first) >= 0).all()
    assert len(first) / first[-1] == pytest.approx(2.0, rel=0.15), "4 turns/s are 2 sessions/s"


def test_a_window_is_cut_and_a_changed_file_read_again(trace: str) -> None:
    """The blocks are those of the window; and of the file as it is."""
    whole = TraceReplay(path=trace, end_s=50.0)
    blocks = TraceBlocks.of(whole, num_blocks=5, thin=False)
    assert blocks.num_requests == len(whole.read().prompt_len) < NUM
    assert blocks.block_s == pytest.approx(10.0, abs=1.0)
    Path(trace).write_text("arrival_s,prompt_len,output_len\n0,5,9\n1,5,9\n2,5,9\n")
    assert blocks.num_requests == 3
    Path(trace).write_text("arrival_s,prompt_len,output_len\n1,5,9\n1,5,9\n")
    with pytest.raises(DataError, match="arrive at once"):
        assert blocks.rate_rps


def test_blocks_build_a_workload(trace: str) -> None:
    """As any arrivals do; those that are too long are marked."""
    settings = WorkloadSettings(
        arrivals=TraceBlocks(path=trace, num_blocks=8), num_requests=600, rate_rps=3.0
    )
    load = build(settings, seed=3, rate_rps=None, max_model_len=600)
    again = build(settings, seed=3, rate_rps=None, max_model_len=600)
    assert load.num_requests == 600
    assert 0 < load.rejected.sum() < 600
    assert load.rate_rps == 3.0
    assert (load.arrival_s == again.arrival_s).all()


# A cycle from anywhere --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["on-off", "schedule"])
def test_a_cycle_from_anywhere_has_its_mean_rate_at_once(kind: str) -> None:
    """In any window of fixed length: by the mean over phases; from its beginning it has not."""
    pieces = tuple(SchedulePiece(duration_s=d, rate_rps=r) for d, r in ((3, 0), (2, 1), (5, 9)))
    cycle = OnOffArrivals(on_s=4, off_s=6) if kind == "on-off" else ScheduleArrivals(pieces=pieces)
    anywhere = AnyPhaseArrivals(of=cycle)
    counts = []
    for seed in range(600):
        times = anywhere.times(200, 2.0, seed)
        assert times[0] >= 0
        assert (np.diff(times) >= 0).all()
        counts.append(int((times < 4.0).sum()))
    error = np.std(counts, ddof=1) / np.sqrt(len(counts))
    assert abs(np.mean(counts) - 8.0) < 4 * error
    own = [int((cycle.times(200, 2.0, seed) < 4.0).sum()) for seed in range(100)]
    assert abs(np.mean(own) - 8.0) > 1.0
    longer = anywhere.times(300, 2.0, 5)
    assert longer[:200] == pytest.approx(anywhere.times(200, 2.0, 5))


def test_the_key_is_refused_where_nothing_is_a_trace() -> None:
    """And taken beside a trace."""
    with pytest.raises(ConfigError, match="only a trace is scaled or thinned"):
        WorkloadSettings(lengths="sharegpt", goodput_by="thin")
    settings = WorkloadSettings(trace="t.csv", goodput_by="thin")
    assert dataclasses.replace(settings, goodput_by=None).goodput_by is None
