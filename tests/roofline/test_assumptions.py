"""What is said of a model on a GPU before its numbers are believed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from simcluster.catalog.layers import ModelSpec
from simcluster.catalog.specs import EngineProfile, GPUSpec
from simcluster.roofline.assumptions import assumptions
from simcluster.testing.specs import a100, environment, h100, llama_2_7b, vllm_engine
from simcluster.testing.toy import RECURRENT, SPARSE

HOPPER = replace(h100(), native_8bit=("fp8", "int8"))
AMPERE = replace(a100(), native_8bit=("int8",))


def lines(
    spec: ModelSpec | None = None,
    gpu: GPUSpec = HOPPER,
    engine: EngineProfile | None = None,
    **model: Any,
) -> str:
    """Return what is said of a model, by default of a plain one in 16 bits on an H100."""
    where = environment(model=spec or llama_2_7b(), engine=engine)
    cluster = replace(where.cluster, gpu=gpu)
    served = replace(where.model, **model)
    return "\n".join(assumptions(replace(where, model=served, cluster=cluster)))


def test_nothing_is_said_of_what_is_calibrated() -> None:
    """A plain model in 16 bits anywhere, and in FP8 where the GPU multiplies it."""
    assert not lines()
    assert not lines(gpu=AMPERE)
    assert not lines(weight_dtype="fp8")
    assert not lines(kv_dtype="fp8")


@pytest.mark.parametrize(
    ("gpu", "dtype", "said"),
    [
        (AMPERE, "fp8", "has no fp8 arithmetic (what has: Ada, Hopper, Blackwell, CDNA3, CDNA4"),
        (AMPERE, "fp8-block", "fp8-block weights are brought to 16 bits"),
        (HOPPER, "nvfp4", "H100-80GB SXM has no nvfp4 arithmetic (what has: Blackwell)"),
        (
            HOPPER,
            "mxfp4",
            "mxfp4 weights are brought to 16 bits and then multiplied: engines give them",
        ),
        (HOPPER, "fp8-block", "step times of fp8-block weights are those of fp8"),
        (HOPPER, "int8", "step times of int8 weights are those of fp8"),
        (AMPERE, "int4", "are those of 16-bit multiplications that read 4-bit weights"),
        (
            replace(HOPPER, flops_4bit=9e15, native_4bit=("nvfp4",)),
            "nvfp4",
            "the rate of nvfp4 multiplications is not measured on H100-80GB SXM",
        ),
        (
            replace(HOPPER, flops_4bit=9e15, native_4bit=("nvfp4",), mfu_4bit=0.4),
            "nvfp4",
            "small ones and bringing inputs to 4 bits are not calibrated",
        ),
    ],
)
def test_a_dtype_without_a_way_of_its_own_says_what_stands_in(
    gpu: GPUSpec, dtype: str, said: str
) -> None:
    """And which generations have one."""
    assert said in lines(gpu=gpu, weight_dtype=dtype)


def test_layers_that_are_not_calibrated_are_said() -> None:
    """Recurrent and sparse layers, and windows that an engine keeps whole or that share nothing."""
    assert "times of its recurrent layers are not calibrated" in lines(RECURRENT)
    assert "times of its sparse attention are not calibrated" in lines(SPARSE)
    windows = llama_2_7b(sliding_window=1024)
    whole = replace(vllm_engine(), name="old", hybrid_kv_cache=False)
    assert "engine old keeps all tokens" in lines(windows, engine=whole)
    sharing = replace(vllm_engine(), prefix_caching=True)
    assert "prefixes are not reused, since no layer keeps all" in lines(windows, engine=sharing)
    assert "with this KV cache" in lines(kv_dtype="nvfp4")


def test_notes_of_the_file_are_passed_on_once() -> None:
    """A model that also sees is served as text, and says so."""
    spec = replace(llama_2_7b(), notes=("images are not simulated",))
    where = environment(model=spec)
    where = replace(where, extra_models=(where.model,))
    assert assumptions(where) == ["llama-2-7b: images are not simulated"]
