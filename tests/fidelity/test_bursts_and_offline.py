"""Which rows of MLPerf and of GPUStack's lab are compared, and as what."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from simcluster.fidelity.validate import gpustack_bench, mlperf_v51

DATA = Path(
    os.environ.get(
        "SIMCLUSTER_DATA", str(Path(__file__).resolve().parents[2] / ".." / "shared" / "data")
    )
)


def needs(name: str) -> None:
    """Skip the test where the set is not here."""
    if not (DATA / name).is_dir():
        pytest.skip(f"measured set {name} is not here (SIMCLUSTER_DATA)")


@pytest.mark.parametrize(
    ("command", "served"),
    [
        ("vllm serve Qwen/Qwen3-32B --max-model-len 32768", ("qwen3-32b", None, 1, None)),
        (
            "vllm serve Qwen/Qwen3-235B-A22B-Instruct-2507-FP8 -tp 4 --max-num-batched-tokens 4096",
            ("qwen3-235b-a22b", "fp8-block", 4, 4096),
        ),
    ],
)
def test_a_command_says_what_is_served(command: str, served: tuple[object, ...]) -> None:
    """Model, weights, degree and budget."""
    found = gpustack_bench.command_of(command)
    assert (found.model, found.weight_dtype, found.tp_size, found.chunk_size) == served


def test_bursts_with_settings_that_are_not_simulated_are_left_out() -> None:
    """Expert parallelism, asynchronous scheduling and other engines; repeats of other documents."""
    needs("gpustack_bench")
    frame = gpustack_bench.rows(DATA)
    commands = frame["serving_command"].astype(str)
    assert len(frame) == 19
    assert commands.str.startswith("vllm serve Qwen/Qwen3-").all()
    assert not commands.str.contains("expert-parallel|async|sglang|trtllm").any()
    assert not frame["also_in_other_file"].any()


def test_offline_results_are_counted_once_and_by_gpu() -> None:
    """Two accuracy targets are one run; two and four nodes are two. By hand from the file."""
    needs("mlperf_v51")
    frame = mlperf_v51.rows(DATA)
    gpus = frame["Nodes"] * frame["accelerators_per_node"]
    found = sorted(
        (str(model).removesuffix("-99"), int(count), round(float(rate / count), 1))
        for model, count, rate in zip(
            frame["Model"], gpus, frame["Performance_Result"], strict=True
        )
    )
    assert found == [
        ("llama2-70b", 16, 3897.0),
        ("llama2-70b", 32, 3902.5),
        ("llama3.1-405b", 16, 48.9),
        ("llama3.1-405b", 32, 48.8),
        ("llama3.1-8b", 1, 1642.2),
        ("llama3.1-8b", 1, 5777.1),
    ]
