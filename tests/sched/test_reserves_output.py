"""Admission by whole outputs: TensorRT-LLM's GUARANTEED_NO_EVICT, by hand and by its laws."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from simcluster.frames.schema import Columns
from simcluster.runs.simulate import run
from simcluster.strategies import FuDG, NoDG
from simcluster.testing.contracts.base import agreeing_run
from simcluster.testing.specs import vllm_engine
from simcluster.testing.toy import (
    AHEAD,
    MAX_MODEL_LEN,
    TOYS,
    toy_environment,
    toy_workload,
    with_room,
)

RESERVES = dataclasses.replace(vllm_engine(), name="reserves", reserves_output=True)
PACKS = dataclasses.replace(RESERVES, reserves_output=False)


def most_at_once(columns: Columns) -> int:
    """Return how many requests ran at a time: from scheduled to last token."""
    starts, ends = columns["scheduled_s"], columns["last_token_s"]
    return max(int(((starts <= at) & (ends > at)).sum()) for at in starts)


@pytest.mark.parametrize("scheduler", ["chunked", "prefill-priority", "chunked-apart"])
@pytest.mark.parametrize(
    ("output", "at_once"),
    [
        (1, 11),  # 16 tokens: one block of 11
        (17, 5),  # 16 + 17 - 1 = 32 tokens: two blocks
        (33, 3),  # 48 tokens: three blocks
        (34, 2),  # 49 tokens: four blocks
    ],
)
def test_as_many_run_as_whole_outputs_fit(scheduler: str, output: int, at_once: int) -> None:
    """Eleven blocks of 16 tokens, prompts of 16 tokens, by hand; the last token is not cached."""
    strategy = NoDG(name="one", instances=1, scheduler=scheduler, num_kv_blocks=11, max_num_seqs=32)
    workload = toy_workload([(0.0, 16, output)] * 12)
    found = run(toy_environment(RESERVES), strategy, workload).columns["requests"]
    assert found["num_preemptions"].sum() == 0
    assert np.isfinite(found["last_token_s"]).all()
    if output > 1:
        assert most_at_once(found) == at_once


@pytest.mark.parametrize(("watermark", "at_once"), [(0.0, 5), (0.2, 4), (0.95, 1)])
def test_the_watermark_stays_free_of_whole_outputs(watermark: float, at_once: int) -> None:
    """Two blocks each of eleven; of 0.2 two stay free, and one alone is let in whatever it is."""
    engine = dataclasses.replace(RESERVES, watermark=watermark)
    strategy = NoDG(name="one", instances=1, num_kv_blocks=11, max_num_seqs=32)
    workload = toy_workload([(0.0, 16, 17)] * 12)
    found = run(toy_environment(engine), strategy, workload).columns["requests"]
    assert most_at_once(found) == at_once


def test_without_it_more_run_and_some_are_preempted() -> None:
    """MAX_UTILIZATION: prompts that fit are admitted, and decodes that find no block preempt."""
    strategy = NoDG(name="one", instances=1, scheduler="chunked", num_kv_blocks=11, max_num_seqs=32)
    workload = toy_workload([(0.0, 16, 49)] * 12)
    packed, kept = (
        run(toy_environment(engine), strategy, workload).columns["requests"]
        for engine in (PACKS, RESERVES)
    )
    assert packed["num_preemptions"].sum() > 0
    assert kept["num_preemptions"].sum() == 0
    assert most_at_once(packed) > most_at_once(kept) == 2


@pytest.mark.parametrize("number", range(len(TOYS)))
@pytest.mark.parametrize("scheduler", ["chunked", "prefill-priority", "chunked-apart"])
def test_no_request_is_preempted_and_the_resolutions_agree(number: int, scheduler: str) -> None:
    """Random lengths in a small pool, every kind of layer, also where steps are planned ahead."""
    rng = np.random.default_rng(number)
    requests = [
        (0.001 * i, int(rng.integers(1, 90)), int(rng.integers(1, MAX_MODEL_LEN - 90)))
        for i in range(40)
    ]
    for engine in (RESERVES, dataclasses.replace(AHEAD, reserves_output=True)):
        where = toy_environment(engine, model=TOYS[number])
        strategy = NoDG(
            name="one", instances=1, scheduler=scheduler, num_kv_blocks=24, max_num_seqs=16
        )
        found = agreeing_run(where, with_room(strategy, TOYS[number]), toy_workload(requests))
        assert found.columns["requests"]["num_preemptions"].sum() == 0


def test_decode_pools_reserve_for_what_is_handed_over() -> None:
    """FuDG: the decode side takes a request when its whole output has room."""
    strategy = FuDG(
        name="pd", prefill_instances=1, decode_instances=1, num_kv_blocks=24, max_num_seqs=16
    )
    requests = [(0.001 * i, 30, 60) for i in range(20)]
    found = agreeing_run(toy_environment(RESERVES), strategy, toy_workload(requests))
    assert found.columns["requests"]["num_preemptions"].sum() == 0
    assert np.isfinite(found.columns["requests"]["last_token_s"]).all()
