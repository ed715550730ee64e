"""Step times for the machines of a scenario, shared by the runs of a process."""

from __future__ import annotations

from dataclasses import replace

from simcluster.roofline import StepShape
from simcluster.roofline.of_environment import roofline_stages, roofline_step_time
from simcluster.testing.specs import h100, vllm_engine
from simcluster.testing.toy import LOOSE, toy_environment


def test_equal_machines_share_step_times_and_others_do_not() -> None:
    """Equal settings, not the same objects: a second reading of a scenario makes others."""
    one, other = (toy_environment(vllm_engine(), LOOSE) for _ in range(2))
    assert one is not other
    model = roofline_step_time(one, 2)
    assert roofline_step_time(other, 2) is model
    faster = replace(other, cluster=replace(other.cluster, gpu=h100()))
    for changed in (
        roofline_step_time(one, 1),
        roofline_step_time(one, 2, wire_share=0.5),
        roofline_step_time(faster, 2),
        roofline_step_time(replace(one, engine=replace(vllm_engine(), host_before_s=0.5)), 2),
    ):
        assert changed is not model


def test_pipelines_share_stages() -> None:
    """Stages of equal settings are the same; of another number of stages they take less time."""
    one, other = (toy_environment(vllm_engine(), LOOSE) for _ in range(2))
    stages = roofline_stages(one, 1, 2, key="pp_size")
    assert roofline_stages(other, 1, 2, key="pp_size") is stages
    (whole,) = roofline_stages(other, 1, 1, key="pp_size")
    step = StepShape(8, 400, (), 8, 400)
    assert max(stage.gpu_s(step) for stage in stages) < whole.gpu_s(step)
