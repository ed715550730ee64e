"""Host time of instances of several GPUs, and on other CPUs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from simcluster import catalog
from simcluster.catalog.specs import EngineProfile
from simcluster.config import ModelConfig
from simcluster.roofline import RooflineStepTime, StepShape

GPU = catalog.gpu("A100")
LINK = catalog.link(GPU.fabric)
MODEL = ModelConfig(spec=catalog.model("llama-2-7b"), max_model_len=4096)
PROFILE = replace(
    catalog.engine("eager"),
    host_before_s=1e-3,
    host_after_s=2e-3,
    host_per_seq_before_s=1e-5,
    host_per_seq_after_s=3e-5,
    host_workers_s=0.0,
)
DECODE = StepShape(8, 8192, (), 8, 8192)


def step(engine: EngineProfile, tp_size: int) -> RooflineStepTime:
    """Step times of an instance of `tp_size` GPUs."""
    return RooflineStepTime(MODEL, GPU, LINK, engine, tp_size)


@pytest.mark.parametrize(("tp_size", "more"), [(1, 0.0), (2, 5e-3), (8, 5e-3)])
def test_workers_cost_once_a_step_and_only_where_there_are_several(
    tp_size: int, more: float
) -> None:
    """The same for any number of them, as measured (Vidur, APEX)."""
    without = step(PROFILE, tp_size).step_s(DECODE)
    with_workers = step(replace(PROFILE, host_workers_s=5e-3), tp_size).step_s(DECODE)
    assert with_workers - without == pytest.approx(more, abs=1e-9)


def test_a_cpu_twice_as_fast_halves_all_cpu_times() -> None:
    """And leaves the GPU's alone."""
    engine = replace(PROFILE, host_workers_s=4e-3)
    fast = step(replace(engine, cpu_speed=2.0), 2)
    assert sum(fast.host_s(DECODE)) == pytest.approx(
        sum(step(engine, 2).host_s(DECODE)) / 2, abs=1e-9
    )
    issue = replace(engine, issue_s=1.0, cpu_speed=2.0)
    assert step(issue, 1).gpu_s(DECODE) == pytest.approx(
        step(replace(engine, issue_s=0.5), 1).gpu_s(DECODE)
    )
    free = replace(engine, issue_s=0.0, graph_issue_s=0.0)
    assert step(replace(free, cpu_speed=2.0), 1).gpu_s(DECODE) == step(free, 1).gpu_s(DECODE)
