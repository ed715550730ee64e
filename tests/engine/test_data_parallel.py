"""Data-parallel ranks: sequences of their own, steps in lock-step, experts shared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simcluster.config import Environment
from simcluster.errors import ConfigError
from simcluster.frames import unroll
from simcluster.frames.metrics import level_over_time
from simcluster.roofline.base import StepShape, StepTime
from simcluster.roofline.layout import Layout
from simcluster.roofline.of_environment import roofline_step_time
from simcluster.roofline.whole import WholeStepTime
from simcluster.runs.simulate import run
from simcluster.strategies import FuDG, NoDG
from simcluster.testing.contracts.base import watched_run
from simcluster.testing.specs import ideal_engine, vllm_engine
from simcluster.testing.toy import AHEAD, MOE, OVERLAPPING, toy_environment, toy_workload

TWO = Layout(1, 2, 2)


def ranks(dp_size: int, **changes: Any) -> NoDG:
    """One instance of `dp_size` data-parallel ranks with experts spread over them."""
    return NoDG(name="s", instances=1, dp_size=dp_size, ep_size=dp_size, **changes)


def moe(engine: Any = None) -> Environment:
    """The toy cluster with a model of experts."""
    return toy_environment(engine or ideal_engine(), model=MOE)


class BesideItself(WholeStepTime):
    """A second implementation: a rank beside others that do just what it does."""

    def __init__(self, times: StepTime, num_others: int) -> None:
        self._times, self._num_others = times, num_others

    def step_s(self, shape: StepShape, hidden_s: float = 0.0) -> float:
        """Duration of the step of one rank where all have the same (s)."""
        beside = shape._replace(other_tokens=self._num_others * shape.num_tokens)
        return self._times.step_s(beside)


@pytest.mark.parametrize("dp_size", [2, 4])
@pytest.mark.parametrize("scheduler", ["prefill-priority", "chunked"])
@pytest.mark.parametrize("engine", [ideal_engine(), vllm_engine()], ids=["ideal", "host"])
def test_ranks_with_equal_load_are_instances_whose_experts_see_all_tokens(
    dp_size: int, scheduler: str, engine: Any
) -> None:
    """Every request comes once for each rank; the stamps are those of an instance alone."""
    where = moe(engine)
    asked = [(0.0, 60, 9), (0.003, 30, 20), (0.001, 90, 5), (0.02, 7, 33)]
    settings: dict[str, Any] = {"num_kv_blocks": 40, "scheduler": scheduler, "max_num_seqs": 8}
    if scheduler == "chunked":
        settings["chunk_size"] = 33
    each = [(gap if k == 0 else 0.0, p, o) for gap, p, o in asked for k in range(dp_size)]
    together = run(where, ranks(dp_size, **settings), toy_workload(each))
    layout = Layout(1, dp_size, dp_size)
    times = BesideItself(roofline_step_time(where, 1, layout=layout), dp_size - 1)
    alone = run(
        where,
        NoDG(name="s", instances=1, **settings),
        toy_workload(asked),
        step_time=lambda environment, tp_size: times,
    )
    for name in ("scheduled_s", "first_token_s", "decode_start_s", "last_token_s"):
        of_ranks = together.columns["requests"][name].reshape(-1, dp_size)
        assert (of_ranks == alone.columns["requests"][name][:, None]).all(), name


def test_a_rank_without_work_runs_a_dummy_token() -> None:
    """One request alone: each step is that of its rank beside one token of the other."""
    where = moe(vllm_engine())
    times = roofline_step_time(where, 1, layout=TWO)
    requests = run(where, ranks(2), toy_workload([(0.0, 50, 3)])).columns["requests"]
    first = times.step_s(StepShape(0, 0, ((50, 0),), 1, 0, 1))
    steps = [times.step_s(StepShape(1, context, (), 1, context, 1)) for context in (51, 52)]
    assert requests["first_token_s"][0] == first
    assert requests["last_token_s"][0] == first + sum(steps)
    alone = times.step_s(StepShape(1, 51, (), 1, 51))
    assert steps[0] != alone


def test_a_step_lasts_as_long_as_that_of_the_slowest_rank() -> None:
    """Two requests of unequal contexts, one on each rank: both get each token at the same time."""
    where = moe()
    times = roofline_step_time(where, 1, layout=TWO)
    result = run(where, ranks(2), toy_workload([(0.0, 100, 4), (0.0, 20, 4)]))
    requests = result.columns["requests"]
    prefill = max(
        times.step_s(StepShape(0, 0, ((own, 0),), 1, 0, other))
        for own, other in ((100, 20), (20, 100))
    )
    steps = [times.step_s(StepShape(1, 101 + k, (), 1, 101 + k, 1)) for k in range(3)]
    assert requests["first_token_s"].tolist() == [prefill, prefill]
    assert requests["last_token_s"].tolist() == [prefill + sum(steps)] * 2
    spans = result.columns["spans"]
    by_lane = [spans["end_s"][spans["lane"] == lane].tolist() for lane in (0, 1)]
    assert by_lane[0] == by_lane[1]


def test_a_rank_that_was_idle_begins_with_the_next_step() -> None:
    """What comes in the middle of a step waits for its end, on whichever rank."""
    where = moe()
    times = roofline_step_time(where, 1, layout=TWO)
    first = times.step_s(StepShape(0, 0, ((100, 0),), 1, 0, 1))
    load = toy_workload([(0.0, 100, 20), (first / 2, 10, 2)])
    requests = run(where, ranks(2), load).columns["requests"]
    assert requests["scheduled_s"][1] == first


def test_a_rank_that_gets_work_ends_a_run_of_steps_of_the_others() -> None:
    """In the middle of the fourth decode step: from the fifth on both take their steps together."""
    where = moe()
    times = roofline_step_time(where, 1, layout=TWO)

    def decode(context: int, others: int = 1) -> float:
        return times.step_s(StepShape(1, context, (), 1, context, others))

    first = times.step_s(StepShape(0, 0, ((100, 0),), 1, 0, 1))
    before = [decode(context) for context in range(101, 105)]
    load = toy_workload([(0.0, 100, 20), (first + sum(before[:3]) + before[3] / 2, 10, 2)])
    requests = run(where, ranks(2), load).columns["requests"]
    begun = first + sum(before)
    assert requests["scheduled_s"][1] == begun
    prefill = times.step_s(StepShape(0, 0, ((10, 0),), 1, 0, 1))
    together = [max(prefill, decode(105, others=10)), max(decode(106), decode(11))]
    assert requests["last_token_s"][1] == begun + sum(together)
    after = [decode(context) for context in range(107, 120)]
    assert requests["last_token_s"][0] == begun + sum(together) + sum(after)


def test_requests_go_to_the_rank_with_the_fewest_and_waiting_ones_count_four() -> None:
    """Rank 0 has one that runs and one that waits for blocks: 5; rank 1 gets more up to 5 too."""
    where = moe()
    large, small = (100, 60), (5, 60)
    asked = [large, small, large, small, small, small, small, small]
    load = toy_workload([(0.0005 * (k > 0), *lengths) for k, lengths in enumerate(asked)])
    segments = run(where, ranks(2, num_kv_blocks=12), load).columns["segments"]
    lanes = dict(zip(segments["request_id"].tolist(), segments["lane"].tolist(), strict=True))
    assert [lanes[k] for k in range(8)] == [0, 1, 0, 1, 1, 1, 1, 0]


def test_levels_over_time_are_those_of_all_ranks() -> None:
    """Four equal requests on two ranks: all four run until the last token of all."""
    load = toy_workload([(0.0, 30, 10)] * 4)
    result = run(moe(), ranks(2, num_kv_blocks=30), load)
    times, running = level_over_time(result.columns["spans"], "num_running")
    assert set(running[:-1].tolist()) == {4.0}
    assert (times[-1], running[-1]) == (result.end_s, 0.0)


def test_each_rank_has_blocks_of_its_own() -> None:
    """The instances frame counts the blocks of all ranks, and memory is that of one GPU each."""
    where = moe()
    one = run(where, ranks(2, num_kv_blocks=30), toy_workload([(0.0, 20, 2)]))
    assert one.columns["instances"]["num_blocks"][0] == 60
    assert one.columns["instances"]["num_gpus"][0] == 2


@pytest.mark.parametrize("engine", [vllm_engine(), OVERLAPPING, AHEAD], ids=lambda e: e.name)
def test_steps_of_ranks_can_be_unrolled(engine: Any) -> None:
    """Every step has a row, so the log of steps is the spans frame."""
    where = moe(engine)
    load = toy_workload([(0.001, 30 + k, 10 + k) for k in range(12)])
    span = run(where, ranks(2), load)
    log = unroll.steps(span.columns, where)
    by_step = run(where, ranks(2), load, resolution="step").columns["spans"]
    assert sorted(log["end_s"].tolist()) == sorted(by_step["end_s"].tolist())


def test_prefill_and_decode_instances_may_have_ranks() -> None:
    """FuDG: the KV of a request goes to a rank of the decode instance and stays there."""
    where = moe(vllm_engine())
    strategy = FuDG(
        name="s", prefill_instances=1, decode_instances=1, dp_size=2, ep_size=2, num_kv_blocks=40
    )
    load = toy_workload([(0.001, 40, 12)] * 8)
    result = run(where, strategy, load)
    assert (result.columns["requests"]["status"] == "finished").all()
    lanes = result.columns["spans"]
    decoding = lanes["num_decodes"] > 0
    assert sorted(set(lanes["lane"][decoding].tolist())) == [0, 1]


def test_prefill_instances_may_have_a_layout_of_their_own() -> None:
    """Prefill over two GPUs, decode on four data-parallel ranks: each as an instance alone."""
    where = moe(vllm_engine())
    strategy = FuDG(
        name="s",
        prefill_instances=2,
        decode_instances=1,
        placement="inter-node",
        tp_size=1,
        dp_size=4,
        ep_size=4,
        prefill_tp_size=2,
        prefill_dp_size=1,
        prefill_ep_size=2,
    )
    result = run(where, strategy, toy_workload([(0.01, 80, 12)] * 6))
    instances = result.columns["instances"]
    assert instances["num_gpus"].tolist() == [2, 2, 4]
    assert instances["tp_size"].tolist() == [2, 2, 1]
    assert instances["dp_size"].tolist() == [1, 1, 4]
    assert instances["ep_size"].tolist() == [2, 2, 4]
    requests = result.columns["requests"]
    alone = roofline_step_time(where, 2, layout=Layout(2, 1, 2)).prefill_s(80)
    assert requests["first_token_s"][0] - requests["scheduled_s"][0] == alone


def test_replicas_and_skew_go_with_experts_that_are_spread() -> None:
    """Decode instances have them, prefill instances whose experts are split have none."""
    spread: dict[str, Any] = {"ep_size": 2, "redundant_experts": 4, "expert_skew": 1.5}
    strategy = FuDG(
        name="s", prefill_instances=1, decode_instances=1, dp_size=2, prefill_ep_size=1, **spread
    )
    found = run(moe(vllm_engine()), strategy, toy_workload([(0.0, 20, 2)])).columns["instances"]
    assert found["redundant_experts"].tolist() == [0, 4]
    assert found["expert_skew"].tolist() == [1.0, 1.5]


def test_copies_of_swapped_kv_lengthen_the_steps_of_all_ranks() -> None:
    """Kernel by kernel they are waits of their own, in whole steps part of the duration."""
    strategy = ranks(2, num_kv_blocks=10, max_num_seqs=8, preemption="swap")
    load = toy_workload([(0.0005, 30, 40)] * 10)
    span, kernel = (
        run(moe(vllm_engine()), strategy, load, resolution=resolution).columns
        for resolution in ("span", "kernel")
    )
    assert span["instances"]["num_swaps"].sum() > 0
    assert np.array_equal(span["requests"]["last_token_s"], kernel["requests"]["last_token_s"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefill_dp_size": 1}, "Say how many of each"),
        (
            {"prefill_dp_size": 1, "prefill_instances": 1, "decode_instances": 1},
            "do not share nodes evenly",
        ),
        ({"transfer": "layerwise"}, "not there for several data-parallel ranks"),
        ({"prefill_choice": "ttft"}, "books of its own"),
        ({"kv_connector": "inside"}, "does not go with a KV connector inside the steps"),
        ({"prefill_ep_size": 3}, "does not divide the 2 GPUs"),
    ],
)
def test_layouts_that_pools_cannot_have_are_refused(changes: dict[str, Any], message: str) -> None:
    """With one line."""
    strategy = FuDG(name="s", tp_size=1, dp_size=2, ep_size=1)
    with pytest.raises(ConfigError, match=message):
        run(moe(vllm_engine()), replace(strategy, **changes), toy_workload([(0.0, 20, 2)]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pp_size": 2}, "data-parallel ranks of a pipeline are not simulated"),
        ({"dp_size": 16}, "the ranks do not fit on a node"),
    ],
)
def test_what_is_not_simulated_is_refused(changes: dict[str, Any], message: str) -> None:
    """With one line."""
    where = moe()
    where = replace(where, cluster=replace(where.cluster, network=None))
    strategy = replace(ranks(2), **{"ep_size": 1, **changes})
    with pytest.raises(ConfigError, match=message):
        run(where, strategy, toy_workload([(0.0, 20, 2)]))


def test_more_ranks_serve_the_same_requests_with_the_same_tokens() -> None:
    """Every token asked for is produced, and the laws of any run hold, step by step."""
    where = moe(vllm_engine())
    load = toy_workload([(0.0005, 10 + 3 * k, 5 + k) for k in range(30)])
    for dp_size in (1, 2, 4):
        requests = watched_run(where, ranks(dp_size), load).columns["requests"]
        assert np.array_equal(requests["num_output_tokens"], requests["output_len"])
