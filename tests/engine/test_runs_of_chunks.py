"""Prompts in many chunks: a run of chunks is one event, and the same as its steps."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simcluster.catalog.layers import ModelSpec
from simcluster.catalog.specs import EngineProfile
from simcluster.config import SloConfig
from simcluster.engine.instance.span import Span
from simcluster.engine.instance.span_log import SpanLog
from simcluster.runs.simulate import run
from simcluster.sched import StepPlan, target
from simcluster.sched.chunked import ChunkedPrefill
from simcluster.strategies import NoDG
from simcluster.testing.examples import examples
from simcluster.testing.specs import vllm_engine
from simcluster.testing.toy import (
    ENGINES,
    TOYS,
    agreed,
    assert_same,
    toy_environment,
    toy_workload,
    with_room,
)

LONG = dict(name="s", scheduler="chunked", max_num_seqs=6)
LONG_PROMPTS = st.lists(
    st.tuples(
        st.one_of(st.just(0.0), st.integers(0, 20).map(lambda k: k * 2.0**-10)),
        st.one_of(st.integers(30, 120), st.integers(1, 20)),
        st.integers(1, 40),
    ),
    min_size=1,
    max_size=12,
)


@examples(60)
@given(
    requests=LONG_PROMPTS,
    chunk_size=st.sampled_from([6, 9, 16, 24]),
    num_kv_blocks=st.sampled_from([10, 12, 15, None]),
    instances=st.integers(1, 2),
    router=st.sampled_from(["least-loaded", "shared-queue"]),
    engine=st.sampled_from(ENGINES),
    model=st.sampled_from(TOYS),
)
def test_runs_of_chunks_equal_steps(
    requests: list[tuple[float, int, int]],
    chunk_size: int,
    num_kv_blocks: int | None,
    instances: int,
    router: str,
    engine: EngineProfile,
    model: ModelSpec,
) -> None:
    """Long prompts in many chunks beside decodes that end, arrivals, and pools that run dry."""
    where = toy_environment(engine, SloConfig(), model)
    strategy = NoDG(
        **LONG,
        chunk_size=chunk_size,
        num_kv_blocks=num_kv_blocks,
        instances=instances,
        router=router,
    )
    strategy, load = with_room(strategy, model), toy_workload(requests)
    span = agreed(where, strategy, load)
    if len(requests) <= 4:
        assert_same(span, run(where, strategy, load, resolution="kernel"))


TIGHT_CHUNKS = NoDG(**LONG, instances=1, chunk_size=9, num_kv_blocks=12)
CROWD = [
    *[(0.0, 20, 40), (0.0, 20, 36), (0.003, 120, 5), (0.01, 90, 3), (0.03, 30, 9)],
    *[(1.0, 8, 60), (0.002, 100, 3), (0.002, 10, 5)],
]


def test_runs_of_chunks_are_cut_in_every_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """By an arrival, by the end of a decode, by the pool: the cases above are not empty."""
    plans: list[tuple[StepPlan, int]] = []
    ends: set[str] = set()
    schedule, book = ChunkedPrefill.schedule, SpanLog.book

    def seen_schedule(self: ChunkedPrefill, now: float) -> StepPlan | None:
        plan = schedule(self, now)
        if plan is not None and plan.kind == "mixed" and plan.max_steps > 1:
            request, tokens = plan.chunks[0]
            full = (target(request) - request.num_computed_tokens - 1) // tokens
            if plan.max_steps == self.batch.steps_to_next_end():
                ends.add("a decode ends")
            elif plan.max_steps < full:
                ends.add("the pool runs dry")
        return plan

    def seen_book(self: SpanLog, span: Span, steps: int, *rest: Any) -> Any:
        plan = span.plan
        assert plan is not None
        if plan.kind == "mixed" and plan.max_steps > 1:
            ends.add("an arrival" if steps < plan.max_steps else "the prompt ends")
            plans.append((plan, steps))
        return book(self, span, steps, *rest)

    monkeypatch.setattr(ChunkedPrefill, "schedule", seen_schedule)
    monkeypatch.setattr(SpanLog, "book", seen_book)
    where, load = toy_environment(vllm_engine(), SloConfig()), toy_workload(CROWD)
    result = run(where, TIGHT_CHUNKS, load)
    assert result.columns["requests"]["num_preemptions"].sum() > 0
    assert ends == {"a decode ends", "the pool runs dry", "an arrival", "the prompt ends"}
    assert max(steps for _, steps in plans) > 4


def test_the_agreement_test_notices_a_chunk_that_leaves_a_newcomer_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last chunk of a prompt leaves room: whoever arrives before it must share its step."""
    where, load = toy_environment(vllm_engine(), SloConfig()), toy_workload(CROWD)
    strategy = NoDG(**LONG, instances=1, chunk_size=9)
    step = run(where, strategy, load, resolution="step")
    assert_same(run(where, strategy, load), step)
    monkeypatch.setattr(StepPlan, "closed_steps", property(lambda plan: plan.max_steps))
    with pytest.raises(AssertionError):
        assert_same(run(where, strategy, load), step)
