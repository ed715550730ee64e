"""Kernels of a stretch of time: nothing else changes, and they are those of the step-time model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simcluster.catalog.specs import EngineProfile
from simcluster.frames.schema import KERNELS, checked
from simcluster.frames.unroll import steps
from simcluster.roofline import StepShape
from simcluster.roofline.of_environment import roofline_step_time
from simcluster.runs.simulate import run
from simcluster.strategies import FuDG, NoDG, PaDG
from simcluster.testing.examples import examples
from simcluster.testing.specs import eager_engine, vllm_engine
from simcluster.testing.toy import ENGINES, STRICT, assert_same, toy_environment
from simcluster.testing.workloads import workload_of
from simcluster.workload import Workload

STRATEGIES: dict[str, Any] = {
    "vllm": NoDG(name="vllm", instances=2, tp_size=2),
    "tight": NoDG(name="tight", instances=1, num_kv_blocks=13),
    "sarathi": NoDG(
        name="sarathi", instances=1, scheduler="chunked", chunk_size=70, max_num_seqs=64
    ),
    "distserve": FuDG(name="distserve", prefill_instances=1, decode_instances=1, tp_size=2),
    "ecoserve": PaDG(name="ecoserve", instances=2),
}


@pytest.fixture(scope="module")
def busy() -> Workload:
    """Two dozen requests, one on the heels of the other."""
    rng = np.random.default_rng(3)
    return workload_of(
        np.cumsum(rng.exponential(0.002, 24)), rng.integers(1, 90, 24), rng.integers(1, 40, 24)
    )


@examples(80)
@given(
    strategy=st.sampled_from(list(STRATEGIES.values())),
    engine=st.sampled_from(ENGINES),
    start_s=st.floats(0.0, 0.08),
    length_s=st.floats(0.0, 0.01),
    resolution=st.sampled_from(["span", "step"]),
)
def test_looking_inside_changes_nothing(
    strategy: Any,
    engine: EngineProfile,
    start_s: float,
    length_s: float,
    resolution: str,
    busy: Workload,
) -> None:
    """A run that goes through kernels for a while gives the frames of one that does not."""
    where = toy_environment(engine, STRICT)
    inside = run(
        where, strategy, busy, resolution=resolution, kernels_in=(start_s, start_s + length_s)
    )
    assert_same(inside, run(where, strategy, busy))


@pytest.mark.parametrize("engine", ENGINES, ids=lambda e: e.name)
@pytest.mark.parametrize("name", STRATEGIES)
def test_kernels_are_those_of_the_steps_in_the_stretch(
    name: str, engine: EngineProfile, busy: Workload
) -> None:
    """On every rank: as many as the model says, in order, from the issue to the end of the step."""
    where, strategy = toy_environment(engine, STRICT), STRATEGIES[name]
    start_s, end_s = 0.02, 0.05
    result = run(where, strategy, busy, kernels_in=(start_s, end_s))
    log = steps(result.columns, where)
    kernels = checked(result.columns["kernels"], KERNELS)
    model = roofline_step_time(where, strategy.tp_size)
    assert np.all((kernels["start_s"] < end_s) & (kernels["end_s"] > start_s))
    inside = np.flatnonzero((log["start_s"] >= start_s) & (log["end_s"] <= end_s))
    assert len(inside) > 3
    gpu = kernels["unit"] == "gpu"
    seen = 0
    for step in inside:
        begin, end = log["start_s"][step], log["end_s"][step]
        own = (kernels["instance"] == log["instance"][step]) & (kernels["start_s"] >= begin)
        own &= kernels["end_s"] <= end
        assert set(kernels["rank"][own]) == set(range(strategy.tp_size))
        num_seqs = int(log["num_decodes"][step] + log["num_prefills"][step])
        for rank in range(strategy.tp_size):
            here = own & gpu & (kernels["rank"] == rank)
            starts, ends = kernels["start_s"][here], kernels["end_s"][here]
            seen += len(starts)
            assert np.all(starts[1:] >= ends[:-1])
            if log["kind"][step] == "decode":
                context = int(log["context_tokens"][step])
                schedule = model.kernels(StepShape(num_seqs, context, (), num_seqs, context))
                names = [n for r in schedule.runs for _ in range(r.repeat) for n in r.names]
                assert list(kernels["name"][here]) == names
                times = [t for r in schedule.runs for _ in range(r.repeat) for t in r.run_s]
                assert list(ends - starts) == times
            issues = own & ~gpu & (kernels["rank"] == rank)
            begins, stops = kernels["start_s"][issues], kernels["end_s"][issues]
            assert np.all(begins[1:] >= stops[:-1])
        last = kernels["end_s"][own].max()
        assert last == end
    # Others belong to the steps at the two edges, one for each rank and lane at most.
    across = (log["start_s"] < end_s) & (log["end_s"] > start_s)
    edges = across.sum() - len(inside)
    per_step = seen / (len(inside) * strategy.tp_size)
    assert seen <= gpu.sum() <= seen + edges * strategy.tp_size * per_step


def test_a_captured_graph_is_issued_once(busy: Workload) -> None:
    """A decode step costs one issue on the CPU where graphs are captured, else one per kernel."""
    counts = {}
    for engine in (vllm_engine(), eager_engine()):
        result = run(
            toy_environment(engine, STRICT), STRATEGIES["tight"], busy, kernels_in=(0.0, 1.0)
        )
        kernels = result.columns["kernels"]
        issued = (kernels["unit"] == "cpu") & (kernels["name"] != "host work")
        counts[engine.name] = issued.sum() / (kernels["unit"] == "gpu").sum()
    assert counts["eager"] == 1.0
    assert counts["vllm-like"] < 0.5


def test_kernels_are_recorded_on_demand_alone(busy: Workload) -> None:
    """No frame of kernels unless it is asked for, also at resolution kernel."""
    where = toy_environment(vllm_engine(), STRICT)
    for resolution in ("span", "kernel"):
        result = run(where, STRATEGIES["tight"], busy, resolution=resolution)
        assert "kernels" not in result.columns
