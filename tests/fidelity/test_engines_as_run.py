"""What engines do beside plain kernels, as a person can count it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from simcluster import catalog
from simcluster.config import ModelConfig
from simcluster.fidelity.validate.harness import environment, serve
from simcluster.frames.schema import Columns
from simcluster.roofline import RooflineStepTime, StepShape
from simcluster.testing.specs import a100, ideal_engine, llama_2_7b, nvlink3, vllm_engine

FRONT_END_S = 0.25
MANY = StepShape(256, 256 * 4096, (), 256, 0)
TWICE = StepShape(256, 256 * 8192, (), 256, 0)


def served(front_end_s: float, concurrency: int | None) -> Columns:
    """Three requests, seconds apart or one after the other."""
    where = environment(
        "A100", "llama-3.1-8b", "vllm-0.7", changes={"front_end_s": front_end_s, "cpu_speed": 1.0}
    )
    arrival_s = None if concurrency else np.array([0.0, 10.0, 20.0])
    return serve(
        where, [100] * 3, [20] * 3, tp_size=1, arrival_s=arrival_s, concurrency=concurrency
    )


@pytest.mark.parametrize("concurrency", [None, 1])
def test_a_front_end_delays_the_first_token_and_nothing_else(concurrency: int | None) -> None:
    """Also in a closed loop, whose next request then comes later by as much."""
    without, behind = served(0.0, concurrency), served(FRONT_END_S, concurrency)
    assert behind["ttft_s"] == pytest.approx(without["ttft_s"] + FRONT_END_S, abs=1e-6)
    assert behind["tpot_s"] == pytest.approx(without["tpot_s"], abs=1e-9)
    late = FRONT_END_S * (np.arange(3) if concurrency else np.zeros(3))
    assert behind["arrival_s"] == pytest.approx(without["arrival_s"] + late, abs=1e-6)


def test_decodes_over_an_8_bit_cache_take_as_long_on_h100_as_on_h200() -> None:
    """The SMs bound vLLM's kernel; over 16 bits and in TensorRT-LLM's memory does."""
    model = ModelConfig(spec=catalog.model("llama-3.1-8b"), max_model_len=16384)

    def per_token_s(gpu: str, kv_dtype: str | None, generation: str) -> float:
        engine = replace(ideal_engine(), kernel_generation=generation)
        of = replace(model, kv_dtype=kv_dtype)
        times = RooflineStepTime(of, catalog.gpu(gpu), nvlink3(), engine, 1)
        return times.step_s(TWICE) - times.step_s(MANY)

    bandwidths = catalog.gpu("H200").memory_bandwidth / catalog.gpu("H100").memory_bandwidth
    for kv_dtype, generation, ratio in (
        ("fp8", "", 1.0),
        (None, "", bandwidths),
        ("fp8", "trtllm", bandwidths),
    ):
        times = [per_token_s(gpu, kv_dtype, generation) for gpu in ("H100", "H200")]
        assert times[0] / times[1] == pytest.approx(ratio, rel=0.02), (kv_dtype, generation)


def test_an_all_reduce_that_takes_the_norm_in_saves_two_norms_a_layer() -> None:
    """Nothing is saved on one GPU, which has no all-reduce."""
    model = ModelConfig(spec=llama_2_7b(), max_model_len=4096)
    shape = StepShape(8, 8 * 512, (), 8, 0)
    for tp_size, share in ((1, 0.0), (2, 1.0)):
        plain, fused = (
            RooflineStepTime(
                model,
                a100(),
                nvlink3(),
                replace(ideal_engine(), fuses_allreduce=flag),
                tp_size,
            )
            for flag in (False, True)
        )
        runs = plain.kernels(shape).runs
        norm_s = [
            seconds
            for run in runs
            for name, seconds in zip(run.names, run.run_s, strict=True)
            if name in ("input_norm", "post_norm")
            for _ in range(run.repeat)
        ]
        assert len(norm_s) == 2 * 32
        saved = plain.step_s(shape) - fused.step_s(shape)
        assert saved == pytest.approx(share * sum(norm_s), rel=1e-6)


def test_all_reduces_take_no_norm_in_beyond_their_largest_message() -> None:
    """Llama-2-7B has 4096 numbers of 2 bytes a token: 1 MiB are 128 tokens."""
    model = ModelConfig(spec=llama_2_7b(), max_model_len=4096)
    engine = replace(ideal_engine(), fuses_allreduce=True)
    plain, whole, some = (
        RooflineStepTime(model, a100(), nvlink3(), one, 2)
        for one in (
            ideal_engine(),
            engine,
            replace(engine, fuses_allreduce_max_bytes=float(2**20)),
        )
    )
    assert some.prefill_s(128) == whole.prefill_s(128) < plain.prefill_s(128)
    assert some.prefill_s(129) == plain.prefill_s(129) > whole.prefill_s(129)


def test_steps_captured_in_pieces_are_issued_at_the_cost_of_pieces() -> None:
    """Up to their tokens; a longer step waits for each of its kernels."""
    model = ModelConfig(spec=llama_2_7b(), max_model_len=4096)
    engine = replace(
        vllm_engine(), issue_s=1e-3, piece_max_tokens=128, piece_issue_s=1e-4, graph_max_seqs=0
    )
    times = RooflineStepTime(model, a100(), nvlink3(), engine, 1)
    for tokens, issue_s in ((128, 1e-4), (129, 1e-3)):
        schedule = times.kernels(StepShape(0, 0, ((tokens, 0),), 1, 0))
        issues = [s for run in schedule.runs for s in run.issue_s * run.repeat]
        assert issues == pytest.approx([issue_s] * len(issues))
        assert times.prefill_s(tokens) == pytest.approx(len(issues) * issue_s, rel=0.1)
