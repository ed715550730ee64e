"""What step times and memory of a model on a GPU take for granted, one line each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from simcluster.catalog.layers import Experts, LatentAttention, Recurrent
from simcluster.catalog.specs import EngineProfile, GPUSpec
from simcluster.config import Environment, ModelConfig
from simcluster.roofline.experts import kernel_for

_GENERATIONS: Final = {
    "fp8": "Ada, Hopper, Blackwell, CDNA3, CDNA4 and Gaudi 3",
    "int8": "Turing, Ampere, Ada, Hopper, Blackwell but B300, CDNA3, CDNA4, Da Vinci, TPU",
    "nvfp4": "Blackwell",
}
"""GPUs whose tensor cores multiply such numbers (data sheets)."""
_STAND_INS: Final = {
    "fp8-block": "fp8 with one scale per matrix",
    "mxfp8": "fp8 with one scale per matrix",
    "int8": "fp8",
    "int4": "16-bit multiplications that read 4-bit weights",
    "int4-g64": "16-bit multiplications that read 4-bit weights",
    "int4-g32": "16-bit multiplications that read 4-bit weights",
    "nf4": "16-bit multiplications that read 4-bit weights",
}
"""What stands in for dtypes whose kernels are not calibrated."""


def assumptions(environment: Environment) -> list[str]:
    """Return what is taken for granted of all models on all GPUs, no line twice."""
    lines: dict[str, None] = {}
    for model in environment.models:
        lines |= dict.fromkeys(f"{model.spec.name}: {note}" for note in model.spec.notes)
        for cluster in environment.clusters:
            lines |= dict.fromkeys(_of_weights(model, cluster.gpu))
            lines |= dict.fromkeys(_of_kernels(environment.engine, cluster.gpu))
            lines |= dict.fromkeys(_of_experts(model, environment.engine, cluster.gpu))
        lines |= dict.fromkeys(_of_layers(model, environment.engine))
    return list(lines)


def _of_weights(model: ModelConfig, gpu: GPUSpec) -> Iterator[str]:
    """Say how weights are multiplied where the GPU or the law has no way of its own."""
    stored = {dtype for layer in model.spec.each_layer for dtype in layer.dtypes_in_use}
    for dtype in sorted({model.dtype_of(dtype) for dtype in stored}):
        if dtype.arithmetic == "16bit":
            if dtype.name in _STAND_INS:
                yield f"step times of {dtype.name} weights are those of {_STAND_INS[dtype.name]}"
        elif dtype.arithmetic == "nvfp4" and gpu.reached_nvfp4 is not None:
            yield (
                "step times of nvfp4 weights: the rate of large multiplications is measured, "
                "small ones and bringing inputs to 4 bits are not calibrated"
            )
        elif dtype.arithmetic not in gpu.native_8bit:
            why = _not_multiplied(dtype.arithmetic, gpu)
            yield f"{dtype.name} weights are brought to 16 bits and then multiplied: {why}"
        elif dtype.name in _STAND_INS and not (
            dtype.name == "fp8-block" and gpu.constants.fixed_block_s is not None
        ):
            yield f"step times of {dtype.name} weights are those of {_STAND_INS[dtype.name]}"
    if model.kv_bytes not in (1.0, 2.0):
        yield "step times with this KV cache are those of a 16-bit one with as many bytes"


def _not_multiplied(arithmetic: str, gpu: GPUSpec) -> str:
    """Say why weights of this arithmetic are not multiplied as they are stored."""
    if arithmetic == "mxfp4":
        return "engines give them inputs of 16 bits"
    if arithmetic in gpu.native_4bit:
        return f"the rate of {arithmetic} multiplications is not measured on {gpu.name}"
    return f"{gpu.name} has no {arithmetic} arithmetic (what has: {_GENERATIONS[arithmetic]})"


def _of_kernels(engine: EngineProfile, gpu: GPUSpec) -> Iterator[str]:
    """Say where kernels of another software than the engine's stand in."""
    wanted = engine.kernel_generation
    if wanted and gpu.constants_of(wanted).generation != wanted:
        yield (
            f"kernels of the generation {wanted!r} of engine {engine.name} are not known for "
            f"{gpu.name}: those of current software stand in"
        )


def _of_experts(model: ModelConfig, engine: EngineProfile, gpu: GPUSpec) -> Iterator[str]:
    """Say with which kernel the routed experts are multiplied: few were measured on every GPU."""
    stored = {
        layer.dtypes.experts
        for layer in model.spec.each_layer
        if any(isinstance(mlp, Experts) for mlp in layer.mlps)
    }
    constants = gpu.constants_of(engine.kernel_generation)
    for name in sorted({model.dtype_of(dtype).name for dtype in stored}):
        kernel = kernel_for(gpu, constants.experts, name)
        if kernel is None:
            yield (
                f"experts in {name} on {gpu.name}: no kernel for them was measured, the shares of "
                "other multiplications stand in"
            )
        else:
            yield f"experts in {name} on {gpu.name}: the kernel {kernel.name!r} of the catalogue"


def _of_layers(model: ModelConfig, engine: EngineProfile) -> Iterator[str]:
    """Say what of unusual layers is not calibrated, or not kept apart by the engine."""
    mixers, name = model.spec.mixers, model.spec.name
    if model.spec.experts is not None:
        yield (
            f"{name}: the popularity of experts varies by {model.expert_spread:g} of its mean "
            "(model.expert_spread; real gates: about 0.6), so that a batch visits fewer of them"
        )
    if any(isinstance(mixer, Recurrent) for mixer in mixers):
        yield (
            f"{name}: times of its recurrent layers are not calibrated (the shares of attention "
            "stand in), and prefixes are not reused: a state belongs to one sequence"
        )
    if any(isinstance(mixer, LatentAttention) and mixer.index for mixer in mixers):
        yield f"{name}: times of its sparse attention are not calibrated (those of attention are)"
    windows = [mixer for mixer in mixers if mixer.reach and not isinstance(mixer, LatentAttention)]
    if windows and not engine.hybrid_kv_cache:
        yield f"engine {engine.name} keeps all tokens, also of layers that attend to a part of them"
    elif windows and len(windows) == len(mixers) and engine.prefix_caching:
        yield f"{name}: prefixes are not reused, since no layer keeps all tokens"
