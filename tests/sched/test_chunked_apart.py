"""SGLang's batching: prompts in chunks, in steps of their own, before decodes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from simcluster.config import SchedulerConfig
from simcluster.errors import ConfigError
from simcluster.kvcache import BlockPool
from simcluster.request import Request
from simcluster.runs.simulate import run
from simcluster.sched import ChunkedApart
from simcluster.strategies import NoDG
from simcluster.testing.specs import vllm_engine
from simcluster.testing.toy import toy_environment, toy_workload


def scheduler(budget: int, num_blocks: int = 100) -> ChunkedApart:
    """Return a scheduler of four sequences with blocks of 16 tokens."""
    config = SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=budget)
    return ChunkedApart(config, BlockPool(num_blocks, 16))


def test_steps_by_hand() -> None:
    """Prompts of 10 and 20 tokens and a budget of 16; a third comes while they decode."""
    own = scheduler(16)
    first, second, third = (Request(i, 0.0, n, 5) for i, n in enumerate((10, 20, 30)))
    own.add(first)
    own.add(second)
    steps = []
    for now in range(6):
        plan = own.schedule(float(now))
        assert plan is not None
        chunks = [(request.request_id, num) for request, num in plan.chunks]
        steps.append((plan.kind, plan.num_decodes, chunks))
        own.complete(plan, 1, now + 1.0)
        if now == 2:
            own.add(third)
    assert steps == [
        ("prefill", 0, [(0, 10), (1, 6)]),
        ("prefill", 0, [(1, 14)]),  # the first request waits for its second token
        ("decode", 2, []),
        ("prefill", 0, [(2, 16)]),
        ("prefill", 0, [(2, 14)]),
        ("decode", 3, []),
    ]


def test_decodes_do_not_shrink_the_budget_of_a_step_with_prompts() -> None:
    """Unlike hybrid batches, where each decode takes a token of it."""
    own = scheduler(16)
    own.add(Request(0, 0.0, 10, 9))
    plan = own.schedule(0.0)
    assert plan is not None
    own.complete(plan, 1, 1.0)
    own.add(Request(1, 1.0, 40, 9))
    plan = own.schedule(1.0)
    assert plan is not None
    assert [num for _, num in plan.chunks] == [16]


def test_a_prompt_that_finds_no_blocks_lets_the_others_decode() -> None:
    """Two blocks: the second prompt waits until the first request has left."""
    own = scheduler(64, num_blocks=2)
    own.add(Request(0, 0.0, 16, 4))
    own.add(Request(1, 0.0, 32, 4))
    kinds = []
    for now in range(5):
        plan = own.schedule(float(now))
        assert plan is not None
        kinds.append((plan.kind, [request.request_id for request, _ in plan.chunks]))
        own.complete(plan, 1, now + 1.0)
    assert kinds == [
        ("prefill", [0]),
        ("decode", []),
        ("decode", []),
        ("decode", []),
        ("prefill", [1]),
    ]


@pytest.mark.parametrize("budget", [1, 7, 64])
def test_no_step_has_both_or_more_than_the_budget(budget: int) -> None:
    """Over a whole run of twelve requests."""
    own = scheduler(budget, num_blocks=30)
    for number in range(12):
        own.add(Request(number, 0.0, 5 + 9 * number % 40, 3 + number % 4))
    now = 0.0
    while own.has_unfinished:
        plan = own.schedule(now)
        assert plan is not None
        assert not (plan.chunks and plan.num_decodes)
        assert sum(num for _, num in plan.chunks) <= budget
        now += 1.0
        own.complete(plan, 1, now)


@pytest.mark.parametrize("changes", [{"prefill_wait_steps": 4}, {"prefill_interval": 2}])
def test_prompts_that_wait_beside_decodes_are_refused(changes: dict[str, Any]) -> None:
    """Its prompts are never beside decodes, so the keys would change nothing."""
    where = toy_environment(replace(vllm_engine(), **changes))
    strategy = NoDG(name="apart", instances=1, scheduler="chunked-apart")
    with pytest.raises(ConfigError, match="computes prompts as soon as they fit"):
        run(where, strategy, toy_workload([(0.0, 20, 2)]))
