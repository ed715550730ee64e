"""aiconfigurator's tables as kernel times: the package's own answers, and what is refused.

The package is an extra; without it only the refusal is tested.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
import warnings
from typing import Any

import pytest

from simcluster.config import AICONFIGURATOR, Environment
from simcluster.errors import ConfigError
from simcluster.fidelity.validate.harness import environment
from simcluster.roofline import StepShape
from simcluster.roofline.measured import aic, measured_kernels
from simcluster.roofline.sources import StepTimeFactory, source_of
from simcluster.testing.contracts import StepTimeContract


def place(gpu: str, model: str, engine: str = "vllm-0.19", **more: Any) -> Environment:
    """Return a model on eight GPUs with the package's kernel times."""
    where = environment(gpu, model, engine, num_gpus=8, max_model_len=8192, **more)
    return dataclasses.replace(where, kernels=AICONFIGURATOR)


def kernels_us(where: Environment, shape: StepShape, tp_size: int) -> dict[str, float]:
    """Return the time of each kernel of a step by name (us), the last one of a name."""
    schedule = source_of(where)(where, tp_size).kernels(shape)
    return {
        name: 1e6 * time_s
        for run in schedule.runs
        for name, time_s in zip(run.names, run.run_s, strict=True)
    }


def decodes(num: int, context: int) -> StepShape:
    """Return a step of decodes of equal context."""
    return StepShape(num, num * context, (), num, num * context)


def test_without_the_package_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An import that fails is a setting that cannot be used, no traceback."""
    aic.tables_of.cache_clear()
    monkeypatch.setitem(sys.modules, "aiconfigurator_core", None)
    try:
        with pytest.raises(ConfigError) as error:
            measured_kernels(place("H100", "llama-3.1-8b"), 1)
    finally:
        aic.tables_of.cache_clear()
    assert str(error.value) == (
        "engine.kernels = 'aiconfigurator': needs the package aiconfigurator-core, which is not "
        'installed. Run pip install "simcluster[aic]" (it brings its tables and needs no network).'
    )


@pytest.mark.parametrize(
    ("gpu", "engine", "parts"),
    [
        (
            "H100 NVL",
            "vllm-0.19",
            ("no measured kernels of H100 NVL", "nearest it has is H100 SXM"),
        ),
        ("MI300X", "vllm-0.19", ("no measured kernels of MI300X", "It has A100-80GB SXM, ")),
        ("H100", "sarathi", ("has measured vLLM, SGLang and TensorRT-LLM, not engine 'sarathi'",)),
    ],
)
def test_gpus_and_engines_that_were_not_measured_are_refused(
    gpu: str, engine: str, parts: tuple[str, ...]
) -> None:
    """One line that names the nearest there is, with or without the package."""
    with pytest.raises(ConfigError) as error:
        measured_kernels(place(gpu, "llama-3.1-8b", engine), 1)
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def asked(system: str, backend: str, make: Any, **at: Any) -> float:
    """Return what the package itself answers for one operator (us)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            from aiconfigurator_core.sdk import common, operations, perf_database
            from aiconfigurator_core.sdk.engine import EngineHandle, build_ops_json

            database = perf_database.get_database(system, backend, "current")
            handle = EngineHandle.for_database(database)
            answers = handle.evaluate_ops_json(build_ops_json([make(operations, common)]), **at)
        finally:
            logging.disable(logging.NOTSET)
    return 1e3 * float(answers[0][1])


@pytest.fixture
def package() -> None:
    """Skip where the package is not installed."""
    pytest.importorskip("aiconfigurator_core", reason="needs the extra aic")


@pytest.mark.usefixtures("package")
def test_multiplications_take_what_the_package_answers() -> None:
    """16-bit weights of Llama-3.1-8B on H100, 48 rows."""
    got = kernels_us(place("H100", "llama-3.1-8b"), decodes(48, 500), 1)
    for name, n, k in (("qkv_proj", 6144, 4096), ("down_proj", 4096, 14336)):
        expected = asked(
            "h100_sxm",
            "vllm",
            lambda ops, names, n=n, k=k: ops.GEMM("x", 1.0, n, k, names.GEMMQuantMode.bfloat16),
            is_context=False,
            batch_size=48,
            s=1,
            x=48,
        )
        assert got[name] == pytest.approx(expected, abs=1e-3)


@pytest.mark.usefixtures("package")
def test_the_experts_of_a_layer_take_what_the_package_answers() -> None:
    """MiniMax-M2 at TP 4 on B200, 64 tokens; its call has the choice of experts and their sum."""
    got = kernels_us(place("B200", "minimax-m2.5"), decodes(64, 500), 4)
    parts = [time for name, time in got.items() if name.startswith("experts_") or name == "top_k"]
    expected = asked(
        "b200_sxm",
        "vllm",
        lambda ops, names: ops.MoE(
            "x",
            1.0,
            3072,
            1536,
            8,
            256,
            4,
            1,
            names.MoEQuantMode.fp8_block,
            "power_law_1.01",
            1,
            is_context=False,
        ),
        is_context=False,
        batch_size=64,
        s=1,
        x=64,
    )
    assert sum(parts) == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("package")
@pytest.mark.parametrize("context", [512, 4096])
def test_decode_attention_takes_what_the_package_answers(context: int) -> None:
    """Contexts of a power of two, which are asked for; in between the law gives the shape."""
    got = kernels_us(place("H100", "llama-3.1-8b"), decodes(16, context), 1)["attention"]
    expected = asked(
        "h100_sxm",
        "vllm",
        lambda ops, names: ops.GenerationAttention(
            "x",
            1.0,
            32,
            8,
            names.KVCacheQuantMode.bfloat16,
            head_size=128,
            lane_order=aic.tables_of("H100 SXM", "vllm").lanes["GenerationAttention"],
        ),
        is_context=False,
        batch_size=16,
        s=context,
    )
    assert got == pytest.approx(expected, rel=1e-4)


@pytest.mark.usefixtures("package")
def test_the_coverage_names_rows_and_what_the_law_gives() -> None:
    """Latent attention is the law's; experts of MXFP4 on Blackwell have inputs of 8 bits."""
    (line,) = measured_kernels(place("B200", "gpt-oss-120b"), 4).coverage().lines  # type: ignore[union-attr]  # it has tables
    assert line.startswith("aiconfigurator-core 0.12.0 (b200_sxm, vllm 0.24.0): measured are GEMM")
    assert "experts (mxfp4: rows w4a8_mxfp4_mxfp8 of sglang, power_law_1.01)" in line
    assert line.endswith("elementwise by the law, collectives by the links")
    lines = measured_kernels(place("B200", "deepseek-v3", "trtllm-1"), 8).coverage().lines  # type: ignore[union-attr]  # it has tables
    assert lines[-1] == "latent attention and recurrent layers by the law"


@pytest.mark.usefixtures("package")
def test_a_model_that_the_package_has_no_rows_of_is_refused() -> None:
    """H100 has no multiplications of int8 weights, and a cache of half a byte is in no table."""
    where = place("H100", "opt-13b", weight_dtype="int8", kv_dtype="nvfp4")
    measured = measured_kernels(where, 1)
    assert measured is not None
    assert set(measured.coverage().measured) == {"GEMM"}  # the LM head keeps 16 bits


class TestAicStepTimes(StepTimeContract):
    """All that every source of step times keeps."""

    @pytest.fixture
    def step_time(self, package: None) -> StepTimeFactory:
        """Return the source."""
        return lambda where, tp_size: source_of(where)(where, tp_size)

    @pytest.fixture
    def environments(self, package: None) -> list[Environment]:
        """Return a dense model, windows with experts of 4 bits, and experts of 8 bits."""
        return [
            place("H100", "llama-3.1-8b"),
            place("B200", "gpt-oss-20b", "trtllm-1"),
            place("H100", "qwen3-30b-a3b", "sglang-0.5", weight_dtype="fp8"),
        ]
