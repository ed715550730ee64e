"""What fits in GPU memory: weights, and the blocks of KV cache that are left."""

from __future__ import annotations

import math

from simcluster.config import ModelConfig
from simcluster.errors import ConfigError
from simcluster.roofline.operators import (
    Operator,
    embedding_operators,
    head_operators,
    is_mla,
    layer_operators,
    layer_runs,
)
from simcluster.specs import EngineProfile, GPUSpec, ModelSpec
from simcluster.units import GB


def weight_bytes_per_gpu(model: ModelConfig, tp_size: int) -> float:
    """Bytes of weights on one rank of a tensor-parallel group.

    Norms, routers, down-projections of latent attention and KV heads beyond one per rank are
    replicated. Embedding, router and LM head keep 16 bits when the layers have fewer.
    """
    operators = embedding_operators(model, tp_size, 1) + head_operators(model, tp_size, 1, 1)
    total = _weight_bytes(operators)
    for run in layer_runs(model.spec):
        layer = layer_operators(model, tp_size, 1, moe=run.moe)
        total += run.repeat * _weight_bytes(layer)
    return total


def kv_bytes_per_token_per_gpu(model: ModelConfig, tp_size: int) -> float:
    """KV cache of one token on one rank, all layers (bytes).

    The heads are split while there are enough, then replicated; the latent vector of multi-head
    latent attention is on every rank. Layers with a sliding window are counted in full: one pool
    of blocks serves all layers.
    """
    if is_mla(model.spec):
        return float(model.kv_bytes_per_token)
    return model.kv_bytes_per_token / min(tp_size, model.spec.num_kv_heads)


def kv_pool_bytes(model: ModelConfig, gpu: GPUSpec, engine: EngineProfile, tp_size: int) -> float:
    """Memory left for KV blocks on one rank (bytes); negative if the weights do not fit.

    The engine's share of the GPU minus weights minus what it reserves. The capacity is the data
    sheet's in decimal GB: parts with HBM report about 6 % more to the driver, parts with ECC in
    GDDR6 1 % less.
    """
    share = engine.gpu_memory_utilization * gpu.memory_bytes
    return share - weight_bytes_per_gpu(model, tp_size) - engine.reserved_bytes


def kv_blocks(
    model: ModelConfig, gpu: GPUSpec, engine: EngineProfile, tp_size: int, *, key: str
) -> int:
    """Return the number of KV blocks of an instance.

    Parameters
    ----------
    model : ModelConfig
        What is stored and cached, in which precision.
    gpu : GPUSpec
        The GPU of every rank.
    engine : EngineProfile
        Its share of the memory, its reserve, its block size.
    tp_size : int
        Ranks of the tensor-parallel group.
    key : str
        Key of `tp_size` in the scenario file, for messages.

    Returns
    -------
    int
        Blocks of ``engine.block_size`` tokens; every rank holds its part of each.

    Raises
    ------
    ConfigError
        If the heads cannot be split so, the weights do not fit, or the pool cannot hold one
        sequence of ``max_model_len``; the message says by how much, and what would fit.
    """
    check_tp(model, tp_size, key=key)
    name = model.spec.name
    pool = kv_pool_bytes(model, gpu, engine, tp_size)
    per_token = kv_bytes_per_token_per_gpu(model, tp_size)
    if pool < per_token * engine.block_size:
        weights = weight_bytes_per_gpu(model, tp_size)
        share = engine.gpu_memory_utilization * gpu.memory_bytes
        raise ConfigError(
            key,
            tp_size,
            f"{name} does not fit on {gpu.name}: {weights / GB:.1f} GB of weights and "
            f"{engine.reserved_bytes / GB:.1f} GB reserved per GPU, of {share / GB:.1f} GB usable; "
            f"{max(-pool / GB, 0.1):.1f} GB per GPU are missing",
            _larger_tp(model, gpu, engine, tp_size)
            or "Choose a GPU with more memory, or weights of fewer bytes.",
        )
    blocks = int(pool // (per_token * engine.block_size))
    if blocks * engine.block_size < model.max_model_len:
        raise ConfigError(
            key,
            tp_size,
            f"the KV cache of {blocks * engine.block_size} tokens that is left on {gpu.name} "
            f"cannot hold one sequence of max_model_len = {model.max_model_len}",
            f"Set engine.max_model_len to at most {blocks * engine.block_size}. "
            + (_larger_tp(model, gpu, engine, tp_size) or "No degree of parallelism is enough."),
        )
    return blocks


def check_tp(model: ModelConfig, tp_size: int, *, key: str) -> None:
    """Check that heads can be split over `tp_size` ranks.

    Raises
    ------
    ConfigError
        If `tp_size` does not divide the query heads, or KV heads can neither be split nor
        replicated evenly; lists the degrees that work.
    """
    degrees = tp_degrees(model.spec)
    if tp_size not in degrees:
        raise ConfigError(
            key,
            tp_size,
            f"{model.spec.name} has {model.spec.num_heads} heads and {model.spec.num_kv_heads} "
            "KV heads, which cannot be shared out evenly over so many GPUs",
            f"Use one of {', '.join(map(str, degrees))}.",
        )


def tp_degrees(spec: ModelSpec) -> list[int]:
    """Return the tensor-parallel degrees that share out the heads evenly, rising."""
    kv_heads = 1 if is_mla(spec) else spec.num_kv_heads
    return [
        t
        for t in range(1, spec.num_heads + 1)
        if spec.num_heads % t == 0 and (kv_heads % t == 0 or t % kv_heads == 0)
    ]


def _larger_tp(model: ModelConfig, gpu: GPUSpec, engine: EngineProfile, tp_size: int) -> str | None:
    """Name the smallest larger degree whose pool holds a sequence of ``max_model_len``."""
    length = math.ceil(model.max_model_len / engine.block_size) * engine.block_size
    for t in tp_degrees(model.spec):
        pool = kv_pool_bytes(model, gpu, engine, t)
        if t > tp_size and pool >= length * kv_bytes_per_token_per_gpu(model, t):
            return f"The smallest tensor-parallel degree that is enough is {t}."
    return None


def _weight_bytes(operators: list[Operator]) -> float:
    return sum(operator.weights * operator.weight_bytes for operator in operators)
