"""Steps of pipelines computed ahead are the same at all three resolutions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers.ties import TICK, TIES, Ticks, with_coarse_links
from simcluster.config import Environment, SloConfig
from simcluster.engine.instance.pipeline import BatchesInFlight
from simcluster.errors import InvariantError
from simcluster.routing import ROUTERS
from simcluster.runs.simulate import Result, run
from simcluster.sched import QUEUES
from simcluster.strategies import FuDG, NoDG, PaDG
from simcluster.testing.contracts.base import REQUESTS
from simcluster.testing.examples import examples
from simcluster.testing.specs import ideal_engine, vllm_engine
from simcluster.testing.toy import (
    DEEP,
    ENGINES,
    LOOSE,
    STRICT,
    agreed,
    assert_same,
    toy,
    toy_environment,
    toy_workload,
    with_room,
)
from simcluster.workload import Workload

ROUTER_NAMES = st.sampled_from(list(ROUTERS))
QUEUE_NAMES = st.sampled_from(["first-come", "first-come", *QUEUES])
POOL = st.sampled_from([None, 10, 13, 24])
SLOS = st.sampled_from([LOOSE, STRICT, SloConfig(ttft_s=0.004, tpot_s=0.002)])
DEEP_WINDOWED = toy("deep-window", num_layers=4, sliding_window=24, num_sliding_layers=2)


LEVELS = ("kv_usage", "num_waiting", "num_running")


def assert_same_steps(one: Result, other: Result, *, without: tuple[str, ...] = LEVELS) -> None:
    """Rows of spans are the same too: in a pipeline each is a step.

    What else happens at the very end of a step may count in its levels or not.
    """
    spans = [result.columns["spans"] for result in (one, other)]
    orders = [np.lexsort((s["start_s"], s["lane"], s["instance"])) for s in spans]
    for column in set(spans[0]) - set(without):
        ours, theirs = (s[column][order] for s, order in zip(spans, orders, strict=True))
        assert ours.tolist() == theirs.tolist(), column


def assert_same_lanes(one: Result, other: Result) -> None:
    """Frames, and steps of each lane, are the same."""
    assert_same(one, other)
    assert_same_steps(one, other)


@st.composite
def pipelines(draw: st.DrawFn) -> Any:
    """Any deployment of pipelined instances, with pools small enough to preempt."""
    pp_size = draw(st.sampled_from([2, 3, 4]))
    pool = draw(POOL)
    common: dict[str, Any] = {
        "name": "s",
        "pp_size": pp_size,
        "num_kv_blocks": None if pool is None else pp_size * pool,
        "max_num_seqs": draw(st.sampled_from([1, 3, 8])),
    }
    common["queue"] = draw(QUEUE_NAMES)
    router = draw(ROUTER_NAMES)
    match draw(st.sampled_from(["nodg", "chunked", "fudg", "padg"])):
        case "nodg":
            return NoDG(**common, instances=draw(st.integers(1, 2)), router=router)
        case "chunked":
            chunk_size = draw(st.sampled_from([9, 16, 40]))
            return NoDG(
                **common, instances=1, scheduler="chunked", chunk_size=chunk_size, router=router
            )
        case "padg":
            return PaDG(**common, instances=2, slack=draw(st.sampled_from(["mean", "min"])))
        case _:
            return FuDG(
                **common,
                prefill_instances=1,
                decode_instances=1,
                placement="inter-node",
                router=router,
            )


@examples(60)
@given(
    strategy=pipelines(),
    where=st.builds(
        toy_environment, st.sampled_from(ENGINES), SLOS, st.sampled_from([DEEP, DEEP_WINDOWED])
    ),
    load=st.builds(toy_workload, REQUESTS, st.sampled_from([None, None, 4])),
    max_time_s=st.sampled_from([None, None, 0.05]),
)
def test_pipelines_computed_ahead_equal_steps(
    strategy: Any, where: Environment, load: Workload, max_time_s: float | None
) -> None:
    """Batches in flight, taken back when one of them changes; also where the run is cut."""
    strategy = with_room(strategy, where.model.spec)
    resolutions = ["span", "step"]
    if load.output_len.sum() < 100 and max_time_s is None:
        resolutions.append("kernel")
    agreed(where, strategy, load, resolutions, same=assert_same_lanes, max_time_s=max_time_s)


@pytest.mark.parametrize("host_ticks", [(0, 0), (1, 0), (2, 1)])
@examples(30)
@given(
    requests=TIES,
    strategy=pipelines(),
)
def test_pipelines_equal_steps_where_everything_ties(
    host_ticks: tuple[int, int], requests: list[tuple[float, int, int]], strategy: Any
) -> None:
    """Batches are ready at the same time, and when others end, arrive and are handed over."""
    slo = SloConfig(ttft_s=64 * TICK, tpot_s=2 * TICK)
    where = with_coarse_links(toy_environment(ideal_engine(), slo, DEEP))
    load = toy_workload(requests)
    agreed(where, strategy, load, same=assert_same_lanes, step_time=Ticks(host_ticks))


def test_pipelines_take_fewer_events_than_steps() -> None:
    """Most steps of batches in flight are no events, or the cases above would say little."""
    where = toy_environment(vllm_engine(), SloConfig(), DEEP)
    load = toy_workload([(0.0, 50, 60), (0.02, 50, 60), (0.03, 20, 60), (0.0, 90, 50)])
    strategy = NoDG(name="s", instances=1, pp_size=2, num_kv_blocks=40)
    span, step = (run(where, strategy, load, resolution=name) for name in ("span", "step"))
    assert_same_steps(span, step, without=())
    num_steps = step.columns["instances"]["num_steps"].sum()
    assert span.num_events < num_steps / 2 < step.num_events / 4


def test_the_agreement_test_notices_steps_that_are_not_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A batch that comes before others that were computed ahead delays them."""
    where = toy_environment(vllm_engine(), SloConfig(), DEEP)
    load = toy_workload([(0.0, 50, 60), (0.02, 50, 60), (0.03, 20, 60)])
    strategy = NoDG(name="s", instances=1, pp_size=2)
    step = run(where, strategy, load, resolution="step")
    assert_same(run(where, strategy, load), step)
    monkeypatch.setattr(BatchesInFlight, "_take_back", lambda self, time_s: None)
    with pytest.raises((AssertionError, InvariantError)):
        assert_same(run(where, strategy, load), step)
