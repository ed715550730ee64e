"""Pipelined instances: batches in flight, bubbles, and what a pipeline costs a lone request."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from simcluster.config import ModelConfig, SloConfig
from simcluster.errors import ConfigError
from simcluster.roofline import handover_s, pipeline_stages
from simcluster.roofline.base import StepShape
from simcluster.runs.result import Result
from simcluster.runs.simulate import run
from simcluster.strategies import NoDG, PaDG
from simcluster.testing.specs import environment, ideal_engine, llama_2_7b, nvlink3, vllm_engine
from simcluster.workload import Workload

WHERE = dataclasses.replace(
    environment(engine=ideal_engine(), num_nodes=2, gpus_per_node=4),
    model=ModelConfig(spec=llama_2_7b(), max_model_len=1024),
)


def requests(count: int, prompt_len: int = 200, output_len: int = 20) -> Workload:
    """Requests that all arrive at once."""
    return Workload(
        arrival_s=np.zeros(count),
        prompt_len=np.full(count, prompt_len),
        output_len=np.full(count, output_len),
        rejected=np.zeros(count, bool),
    )


def pipelined(pp_size: int, **changes: object) -> NoDG:
    """One instance of `pp_size` stages."""
    return NoDG(name="p", instances=1, pp_size=pp_size, **changes)  # type: ignore[arg-type]


def test_a_lone_request_passes_every_stage_and_handover() -> None:
    """TTFT of one request alone is the stages' times and the handovers between them, exactly."""
    result = run(WHERE, pipelined(4), requests(1, output_len=1))
    stages = pipeline_stages(
        WHERE.model, WHERE.cluster.gpu, WHERE.cluster.fabric, WHERE.engine, 1, 4
    )
    shape = StepShape(0, 0, ((200, 0),), 1, 0)
    handover = handover_s(WHERE.model, nvlink3(), 200)
    expected = sum(stage.gpu_s(shape) for stage in stages) + 3 * handover
    assert result.columns["requests"]["ttft_s"][0] == expected


def lanes(result: Result) -> set[int]:
    """Lanes in which anything ran."""
    return set(result.columns["spans"]["lane"].tolist())


def test_as_many_batches_are_in_flight_as_stages() -> None:
    """Eight requests share four lanes, two each, and steps of different lanes overlap in time."""
    result = run(WHERE, pipelined(4), requests(8))
    assert lanes(result) == {0, 1, 2, 3}
    spans = result.columns["spans"]
    first = spans["start_s"] == 0.0
    assert first.sum() == 4
    segments = result.columns["segments"]
    assert np.bincount(segments["lane"]).tolist() == [2, 2, 2, 2]


def test_full_pipelines_carry_almost_stages_times_one_batch() -> None:
    """Four lanes finish four times the work in little more time than one lane its own.

    The excess is the time to fill the pipeline and what one stage takes longer than the mean.
    """
    one = run(WHERE, pipelined(4), requests(1)).end_s
    four = run(WHERE, pipelined(4), requests(4)).end_s
    assert one < four < 1.35 * one


def test_stages_of_the_same_lane_never_overlap() -> None:
    """Within a lane a step starts when the one before has ended."""
    spans = run(WHERE, pipelined(2), requests(30)).columns["spans"]
    for lane in (0, 1):
        mine = spans["lane"] == lane
        assert (spans["start_s"][mine][1:] >= spans["end_s"][mine][:-1]).all()


def test_a_pipeline_larger_than_a_node_hands_over_through_the_network() -> None:
    """Eight stages on two nodes of four GPUs: one of the seven handovers crosses the NIC."""
    result = run(WHERE, pipelined(8), requests(1, output_len=1))
    stages = pipeline_stages(
        WHERE.model, WHERE.cluster.gpu, WHERE.cluster.fabric, WHERE.engine, 1, 8
    )
    shape = StepShape(0, 0, ((200, 0),), 1, 0)
    inside = handover_s(WHERE.model, WHERE.cluster.fabric, 200)
    between = handover_s(WHERE.model, WHERE.cluster.network, 200)
    expected = sum(stage.gpu_s(shape) for stage in stages) + 6 * inside + between
    assert result.columns["requests"]["ttft_s"][0] == expected
    assert result.columns["instances"]["num_gpus"].tolist() == [8]


def test_macro_instances_of_pipelines_serve_everything() -> None:
    """Rolling activation over pipelined instances: all requests finish, both instances work."""
    where = dataclasses.replace(WHERE, engine=vllm_engine(), slo=SloConfig(ttft_s=0.2, tpot_s=0.02))
    load = dataclasses.replace(requests(60), arrival_s=np.arange(60) / 64)
    result = run(where, PaDG(name="p", instances=2, pp_size=2), load)
    columns = result.columns["requests"]
    assert set(columns["status"]) == {"finished"}
    assert set(columns["prefill_instance"]) == {0, 1}


@pytest.mark.parametrize(
    ("strategy", "part"),
    [
        (pipelined(3), "instances = 1"),
        (pipelined(40), "pp_size = 40: llama-2-7b has 32 layers"),
        (pipelined(2, num_kv_blocks=100), "100: 800 tokens in each of the 2 batches"),
        (pipelined(16), "do not fit"),
    ],
)
def test_what_does_not_fit_is_refused(strategy: NoDG, part: str) -> None:
    """More stages than layers, pools too small for a batch each, more GPUs than there are."""
    where = dataclasses.replace(
        WHERE, cluster=dataclasses.replace(WHERE.cluster, gpus_per_node=2, num_nodes=1)
    )
    if strategy.pp_size in (2, 40):
        where = dataclasses.replace(
            WHERE, cluster=dataclasses.replace(WHERE.cluster, gpus_per_node=40)
        )
    with pytest.raises(ConfigError, match=r"^strategy\.p\.") as refusal:
        run(where, strategy, requests(1))
    assert part in str(refusal.value)
