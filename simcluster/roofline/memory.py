"""What fits in GPU memory: weights, and the blocks of KV cache that are left."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice, product

from simcluster.catalog.specs import EngineProfile, GPUSpec, ModelSpec
from simcluster.config import ModelConfig
from simcluster.errors import ConfigError
from simcluster.roofline.operators import (
    Operator,
    embedding_operators,
    head_operators,
    is_mla,
    layer_operators,
    layer_runs,
    stage_layers,
)
from simcluster.units import GB


def weight_bytes_per_gpu(
    model: ModelConfig, tp_size: int, pp_size: int = 1, stage: int = 0
) -> float:
    """Bytes of weights on one rank of the tensor-parallel group of one pipeline stage.

    Norms, routers, down-projections of latent attention and KV heads beyond one per rank are
    replicated. Embedding, router and LM head keep 16 bits when the layers have fewer. The first
    stage has the embedding, the last one norm and LM head, which takes a copy of the embedding's
    weights along if it shares them.
    """
    operators: list[Operator] = []
    if stage == 0:
        operators += embedding_operators(model, tp_size, 1)
    if stage == pp_size - 1:
        if stage > 0:
            model = replace(model, spec=replace(model.spec, tied_embeddings=False))
        operators += head_operators(model, tp_size, 1, 1)
    total = _weight_bytes(operators)
    for run in layer_runs(model.spec, pp_size, stage):
        layer = layer_operators(model, tp_size, 1, moe=run.moe)
        total += run.repeat * _weight_bytes(layer)
    return total


def kv_bytes_per_token_per_gpu(
    model: ModelConfig, tp_size: int, pp_size: int = 1, stage: int = 0
) -> float:
    """KV cache of one token on one rank, all layers of its pipeline stage (bytes).

    The heads are split while there are enough, then replicated; the latent vector of multi-head
    latent attention is on every rank. Layers with a sliding window are counted in full: one pool
    of blocks serves all layers.
    """
    num_layers = model.spec.num_layers
    share = model.kv_bytes_per_token * stage_layers(num_layers, pp_size)[stage] / num_layers
    return share if is_mla(model.spec) else share / min(tp_size, model.spec.num_kv_heads)


def kv_pool_bytes(
    model: ModelConfig,
    gpu: GPUSpec,
    engine: EngineProfile,
    tp_size: int,
    pp_size: int = 1,
    stage: int = 0,
) -> float:
    """Memory left for KV blocks on one rank of a stage (bytes); negative if the weights do not fit.

    The engine's share of the GPU minus weights minus what it reserves. The capacity is the data
    sheet's in decimal GB: parts with HBM report about 6 % more to the driver, parts with ECC in
    GDDR6 1 % less.
    """
    share = engine.gpu_memory_utilization * gpu.memory_bytes
    return share - weight_bytes_per_gpu(model, tp_size, pp_size, stage) - engine.reserved_bytes


def kv_blocks(
    model: ModelConfig,
    gpu: GPUSpec,
    engine: EngineProfile,
    tp_size: int,
    pp_size: int = 1,
    *,
    key: str,
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
    pp_size : int
        Stages of the pipeline.
    key : str
        Key of `tp_size` in the scenario file, for messages; that of `pp_size` stands beside it.

    Returns
    -------
    int
        Blocks of ``engine.block_size`` tokens; every rank holds its part of each, and so does
        every stage: the one with the least room decides.

    Raises
    ------
    ConfigError
        If heads or layers cannot be split so, the weights do not fit, or the pool cannot hold one
        sequence of ``max_model_len``; the message says by how much, and what would fit.
    """
    check_tp(model, tp_size, key=key)
    check_pp(model, pp_size, key=key.replace("tp_size", "pp_size"))

    def room(stage: int) -> tuple[float, float]:
        return (
            kv_pool_bytes(model, gpu, engine, tp_size, pp_size, stage),
            kv_bytes_per_token_per_gpu(model, tp_size, pp_size, stage),
        )

    stage = min(range(pp_size), key=lambda i: room(i)[0] / room(i)[1])
    pool, per_token = room(stage)
    name = model.spec.name
    if pp_size > 1:
        name += f" with pp_size = {pp_size}"
    if pool < per_token * engine.block_size:
        weights = weight_bytes_per_gpu(model, tp_size, pp_size, stage)
        share = engine.gpu_memory_utilization * gpu.memory_bytes
        at_stage = f" in stage {stage + 1}" if pp_size > 1 else ""
        missing = max(-pool, 0.1 * GB)
        raise ConfigError(
            key,
            tp_size,
            f"{name} does not fit on {gpu.name}: {weights / GB:.1f} GB of weights{at_stage} and "
            f"{engine.reserved_bytes / GB:.1f} GB reserved per GPU, of {share / GB:.1f} GB usable; "
            f"{missing / GB:.1f} GB per GPU are missing",
            _enough(model, gpu, engine, tp_size, pp_size)
            or "Choose a GPU with more memory, or weights of fewer bytes.",
            missing,
        )
    blocks = int(pool // (per_token * engine.block_size))
    if blocks * engine.block_size < model.max_model_len:
        raise ConfigError(
            key,
            tp_size,
            f"the KV cache of {blocks * engine.block_size} tokens that is left on {gpu.name} "
            f"cannot hold one sequence of max_model_len = {model.max_model_len}",
            f"Set engine.max_model_len to at most {blocks * engine.block_size}. "
            + (
                _enough(model, gpu, engine, tp_size, pp_size)
                or "No degree of parallelism is enough."
            ),
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


def check_pp(model: ModelConfig, pp_size: int, *, key: str) -> None:
    """Check that every stage of a pipeline of `pp_size` gets a layer.

    Raises
    ------
    ConfigError
        If there are more stages than layers, or none.
    """
    num_layers = model.spec.num_layers
    if not 1 <= pp_size <= num_layers:
        raise ConfigError(
            key,
            pp_size,
            f"{model.spec.name} has {num_layers} layers, and every stage needs one",
            f"Use 1 to {num_layers}.",
        )


def tp_degrees(spec: ModelSpec) -> list[int]:
    """Return the tensor-parallel degrees that share out the heads evenly, rising."""
    kv_heads = 1 if is_mla(spec) else spec.num_kv_heads
    return [
        t
        for t in range(1, spec.num_heads + 1)
        if spec.num_heads % t == 0 and (kv_heads % t == 0 or t % kv_heads == 0)
    ]


def _enough(
    model: ModelConfig, gpu: GPUSpec, engine: EngineProfile, tp_size: int, pp_size: int
) -> str | None:
    """Name the degrees whose pools hold a sequence of ``max_model_len``, or None.

    The smallest larger degree of either kind with the other as it is; if neither is enough, the
    two that need the fewest GPUs together.
    """
    length = math.ceil(model.max_model_len / engine.block_size) * engine.block_size

    def fits(pair: tuple[int, int]) -> bool:
        return all(
            kv_pool_bytes(model, gpu, engine, *pair, stage)
            >= length * kv_bytes_per_token_per_gpu(model, *pair, stage)
            for stage in range(pair[1])
        )

    tp_sizes, pp_sizes = tp_degrees(model.spec), range(1, model.spec.num_layers + 1)
    wider = filter(fits, ((t, pp_size) for t in tp_sizes if t > tp_size))
    deeper = filter(fits, ((tp_size, p) for p in pp_sizes if p > pp_size))
    found = [pair for pair in (next(wider, None), next(deeper, None)) if pair is not None]
    if not found:
        pairs = sorted(product(tp_sizes, pp_sizes), key=lambda pair: (math.prod(pair), -pair[0]))
        found = list(islice(filter(fits, pairs), 1))
    if not found:
        return None
    return f"Enough is tp_size x pp_size = {' or '.join(f'{t} x {p}' for t, p in found)}."


def _weight_bytes(operators: list[Operator]) -> float:
    return sum(operator.weights * operator.weight_bytes for operator in operators)
