"""What fits in GPU memory: weights, and the blocks of KV cache that are left."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice, product
from typing import Final, NamedTuple

from simcluster.catalog.layers import (
    Attention,
    DenseMlp,
    LatentAttention,
    Layer,
    Mixer,
    ModelSpec,
    Recurrent,
    WeightDtype,
)
from simcluster.catalog.specs import EngineProfile, GPUSpec
from simcluster.config import ModelConfig
from simcluster.errors import ConfigError
from simcluster.kvcache import BlockLayout, LimitedGroup
from simcluster.roofline.layout import Layout, check_layout
from simcluster.roofline.operators import (
    ACTIVATION_BYTES,
    Operator,
    embedding_operators,
    head_operators,
    layer_operators,
    layer_runs,
    state_bytes,
)
from simcluster.units import GB

_STATE_ALIGNMENT: Final = 16
"""Blocks are made larger by multiples of it (tokens; vLLM, ``kernel_block_alignment_size``)."""
_PADDED: Final = 1.25
"""Kinds of layers that differ by less are padded to equal groups (vLLM)."""


def weight_bytes_per_gpu(
    model: ModelConfig,
    tp_size: int,
    pp_size: int = 1,
    stage: int = 0,
    layout: Layout | None = None,
) -> float:
    """Bytes of weights on one rank of the tensor-parallel group of one pipeline stage.

    With `layout` experts are spread over all data-parallel ranks, whatever else is replicated.

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
    for layer, repeat in layer_runs(model.spec, pp_size, stage):
        total += repeat * _weight_bytes(layer_operators(model, layer, tp_size, 1, layout))
    return total


def kv_bytes_per_token_per_gpu(
    model: ModelConfig, tp_size: int, pp_size: int = 1, stage: int = 0
) -> float:
    """KV cache of one token on one rank, all layers of its pipeline stage (bytes).

    The heads are split while there are enough, then replicated; the latent vector of multi-head
    latent attention is on every rank. Layers with a window are counted in full.
    """
    runs = layer_runs(model.spec, pp_size, stage)
    return sum(repeat * layer_kv_bytes(model, layer.mixer, tp_size) for layer, repeat in runs)


def layer_kv_bytes(model: ModelConfig, mixer: Mixer | None, tp_size: int) -> float:
    """KV cache of one token in one layer on one rank (bytes)."""
    whole = model.kv_bytes_of(mixer)
    return whole / min(tp_size, mixer.num_kv_heads) if isinstance(mixer, Attention) else whole


class ProfilingPass(NamedTuple):
    """The pass by which an engine measures its activations before it sizes the KV cache."""

    num_tokens: int
    num_seqs: int
    """Tokens of a step and sequences that sample at most."""

    @classmethod
    def of(
        cls,
        model: ModelConfig,
        gpu: GPUSpec,
        engine: EngineProfile,
        num_tokens: int | None = None,
        num_seqs: int | None = None,
    ) -> ProfilingPass:
        """Return the pass of an engine with these limits; None: the engine's own."""
        if num_tokens is None:
            num_tokens = engine.max_num_batched_tokens or max(model.max_model_len, 2048)
        if num_seqs is None:
            num_seqs = engine.on(gpu).max_num_seqs
        return cls(num_tokens, min(num_seqs, num_tokens))


def activation_bytes(
    model: ModelConfig,
    engine: EngineProfile,
    tp_size: int,
    profiled: ProfilingPass,
    layout: Layout | None = None,
) -> float:
    """Peak of the activations of a profiling pass on one rank (bytes).

    The larger of two: the layers, with the residual stream and what the widest layer has at a
    time, and the sampler, with the logits of every sequence and the copies that sorting and
    normalising make of them. The sampler's are not split over the ranks, and they are the larger in
    models of today. 0 for an engine without such a pass, whose reserve holds all.
    """
    if not engine.sampler_bytes:
        return 0.0
    spec, layout = model.spec, layout or Layout(tp_size)
    widest = max(_layer_width(spec, run.layer, layout) for run in spec.layers)
    layers = ACTIVATION_BYTES * profiled.num_tokens * (2.0 * spec.hidden_size + widest)
    return max(layers, engine.sampler_bytes * profiled.num_seqs * spec.vocab_size)


def _layer_width(spec: ModelSpec, layer: Layer, layout: Layout) -> float:
    """Numbers per token that a layer has at a time on one rank, the residual stream apart.

    Experts work on the tokens of all data-parallel ranks, a group on its share of them.
    """
    inputs, hidden = 3 if spec.gated_mlp else 2, spec.hidden_size
    tp_size, moe_tp = layout.tp_size, layout.moe_tp_size
    widths = [float(hidden)]
    mixer = layer.mixer
    if isinstance(mixer, Attention):
        widths.append(
            (mixer.q_width + mixer.kv_width + mixer.num_heads * mixer.v_head_dim) / tp_size
        )
    elif isinstance(mixer, LatentAttention):
        expanded = 2 * (mixer.qk_nope_dim + mixer.qk_rope_dim) + 2 * mixer.v_head_dim
        widths.append(mixer.num_heads * expanded / tp_size)
    elif mixer is not None:
        widths.append((mixer.in_width + mixer.value_width) / tp_size)
    for mlp in layer.mlps:
        if isinstance(mlp, DenseMlp):
            widths.append(inputs * mlp.ffn_dim / tp_size)
        else:
            # What goes in and comes out of every expert, as fused kernels keep it.
            inner = mlp.latent_dim or hidden
            routed = max((inputs - 1) * mlp.ffn_dim / moe_tp, inner) + mlp.ffn_dim / moe_tp
            seen = mlp.num_active * layout.dp_size / layout.ep_size
            widths.append(seen * routed + inputs * mlp.shared_ffn_dim / tp_size)
    return max(widths)


def outside_bytes(gpu: GPUSpec, engine: EngineProfile, tp_size: int, pp_size: int = 1) -> float:
    """Memory of one rank beside weights, activations and cache: context, communicators (bytes)."""
    shared = engine.communicator_bytes if tp_size * pp_size > 1 and "nvlink" in gpu.fabric else 0.0
    return engine.reserved_bytes + shared


def kv_pool_bytes(
    model: ModelConfig,
    gpu: GPUSpec,
    engine: EngineProfile,
    tp_size: int,
    pp_size: int = 1,
    stage: int = 0,
    profiled: ProfilingPass | None = None,
    layout: Layout | None = None,
) -> float:
    """Memory left for KV blocks on one rank of a stage (bytes); negative if the weights do not fit.

    Parameters
    ----------
    model, gpu, engine, tp_size, pp_size, stage
        As in `kv_blocks`.
    profiled : ProfilingPass, optional
        What activations are measured with; default: the engine's limits.
    layout : Layout, optional
        How the instance is laid out; by default over `tp_size` GPUs alone.

    Notes
    -----
    By `EngineProfile.memory_rule`, with the share f, the memory M that CUDA gives out, weights W,
    activations A and all else N:

    - ``"total"`` (vLLM, ``gpu_memory_utilization``): f M - W - A - N. Captured graphs come on top.
    - ``"static"`` (SGLang, ``mem_fraction_static``): f (M - N) - W. What it leaves is for
      activations and captured graphs.
    - ``"free"`` (TensorRT-LLM, ``free_gpu_memory_fraction``): f (M - W - A - N).
    """
    layout = layout or Layout(tp_size)
    weights = weight_bytes_per_gpu(model, tp_size, pp_size, stage, layout)
    outside = outside_bytes(gpu, engine, layout.num_gpus, pp_size)
    share, memory = engine.gpu_memory_utilization, gpu.allocatable_bytes
    if engine.memory_rule == "static":
        return share * (memory - outside) - weights
    profiled = profiled or ProfilingPass.of(model, gpu, engine)
    activations = activation_bytes(model, engine, tp_size, profiled, layout)
    if engine.memory_rule == "free":
        return share * (memory - weights - activations - outside)
    return share * memory - weights - activations - outside


# Groups of layers -------------------------------------------------------------------------------


def kv_layout(
    model: ModelConfig, engine: EngineProfile, tp_size: int, num_tokens: int
) -> BlockLayout:
    """Return how many blocks of an instance's pool a sequence holds.

    Parameters
    ----------
    model : ModelConfig
        Whose layers.
    engine : EngineProfile
        Its block size, and whether it keeps apart layers that cache differently.
    tp_size : int
        Ranks of the tensor-parallel group.
    num_tokens : int
        Most tokens of a step, and so of a prompt at once.

    Notes
    -----
    vLLM's hybrid KV cache manager (``vllm/v1/core/kv_cache_utils.py``): layers are dealt into
    groups of equal size, that of the kind with the fewest layers (with the most, where no kind has
    a quarter more), and a block of the pool holds the tokens of one block for the layers of one
    group. A recurrent layer's state is one block; where it is larger, blocks of tokens are made as
    large (``HybridAttentionMambaModelConfig``).
    """
    kinds = _cache_kinds(model, engine)
    size = _group_size(kinds)
    page = min(layer_kv_bytes(model, kind, tp_size) for kind in kinds if kind.kv_numbers)
    block_size = engine.block_size
    states = [state_bytes(kind, tp_size) for kind in kinds if isinstance(kind, Recurrent)]
    if states:
        least = math.ceil(max(states) / page)
        block_size = max(block_size, _STATE_ALIGNMENT * math.ceil(least / _STATE_ALIGNMENT))
    full, limited = 0, []
    for kind, count in kinds.items():
        groups = math.ceil(count / size)
        if isinstance(kind, Recurrent):
            limited.append(LimitedGroup(groups, 1, 1))
            continue
        weight = groups * math.ceil(layer_kv_bytes(model, kind, tp_size) / page)
        reach = kind.reach if isinstance(kind, Attention) and engine.hybrid_kv_cache else None
        if reach is None:
            full += weight
            continue
        seen = reach.tokens if reach.chunked else reach.tokens - 1
        extra = 0 if reach.chunked else 1  # a window may begin inside a block
        limited.append(
            LimitedGroup(
                weight,
                max(1, math.ceil(seen / block_size) + extra),
                math.ceil((seen + num_tokens) / block_size) + extra,
            )
        )
    return BlockLayout(block_size, full, tuple(limited))


def _cache_kinds(model: ModelConfig, engine: EngineProfile) -> dict[Mixer, int]:
    """Kinds of caches, each by one of its mixers, and how many layers have it."""
    kinds: dict[Mixer, int] = {}
    for layer, repeat in model.spec.layers:
        if layer.mixer is None:
            continue
        like = next(
            (kind for kind in kinds if _cache_alike(kind, layer.mixer, engine)), layer.mixer
        )
        kinds[like] = kinds.get(like, 0) + repeat
    return kinds


def _group_size(kinds: Mapping[Mixer, int]) -> int:
    """Layers of a group, by the layers of each kind."""
    fewest, most = min(kinds.values()), max(kinds.values())
    return most if most < _PADDED * fewest else fewest


def _cache_alike(a: Mixer, b: Mixer, engine: EngineProfile) -> bool:
    """Whether one group may hold layers of both: they keep the same tokens."""
    if isinstance(a, Recurrent) or isinstance(b, Recurrent):
        return type(a) is type(b)
    reaches = [mixer.reach if isinstance(mixer, Attention) else None for mixer in (a, b)]
    return not engine.hybrid_kv_cache or reaches[0] == reaches[1]


def block_bytes(
    model: ModelConfig,
    engine: EngineProfile,
    tp_size: int,
    layout: BlockLayout,
    pp_size: int = 1,
    stage: int = 0,
) -> float:
    """Bytes of a block of the pool on one rank of a stage: the largest of its groups' shares.

    0 if the stage has no layer with a cache or a state.
    """
    here = _cache_kinds(model, engine)
    page = min(layer_kv_bytes(model, kind, tp_size) for kind in here if kind.kv_numbers)
    size, bytes_of_block = _group_size(here), 0.0
    for kind, count in here.items():
        groups = math.ceil(count / size)
        mine = [
            (layer.mixer, repeat)
            for layer, repeat in layer_runs(model.spec, pp_size, stage)
            if layer.mixer is not None and _cache_alike(kind, layer.mixer, engine)
        ]
        num = sum(repeat for _, repeat in mine)
        if isinstance(kind, Recurrent):
            per_token = page * math.ceil(num / groups)
        else:
            weight = groups * math.ceil(layer_kv_bytes(model, kind, tp_size) / page)
            total = sum(repeat * layer_kv_bytes(model, mixer, tp_size) for mixer, repeat in mine)
            # Groups that are not full are padded: a block is as large for all of them.
            padded = math.ceil(num / groups) * groups / max(num, 1)
            per_token = total * padded / weight
        bytes_of_block = max(bytes_of_block, per_token)
    return bytes_of_block * layout.block_size


def kv_blocks(
    model: ModelConfig,
    gpu: GPUSpec,
    engine: EngineProfile,
    tp_size: int,
    pp_size: int = 1,
    *,
    key: str,
    profiled: ProfilingPass | None = None,
    layout: Layout | None = None,
) -> int:
    """Return the number of KV blocks of an instance, of each of its data-parallel ranks.

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
    profiled : ProfilingPass, optional
        What activations are measured with; default: the engine's limits.
    layout : Layout, optional
        How the instance is laid out; by default over `tp_size` GPUs alone.

    Returns
    -------
    int
        Blocks of the pool (`kv_layout`); every rank holds its part of each, and so does every
        stage: the one with the least room decides.

    Raises
    ------
    ConfigError
        If heads or layers cannot be split so, the weights do not fit, or the pool cannot hold one
        sequence of ``max_model_len``; the message says by how much, and what would fit.
    """
    layout = layout or Layout(tp_size)
    check_layout(model, engine, layout, key=key)
    check_tp(model, tp_size, key=key, layout=layout)
    check_pp(model, pp_size, key=key.replace("tp_size", "pp_size"))
    if profiled is None:
        profiled = ProfilingPass.of(model, gpu, engine)
    room = _Room(model, gpu, engine, profiled, layout)
    stage, blocks = room.tightest(tp_size, pp_size)
    name = model.spec.name
    if pp_size > 1:
        name += f" with pp_size = {pp_size}"
    if blocks < 1:
        weights = weight_bytes_per_gpu(model, tp_size, pp_size, stage, layout)
        share = engine.gpu_memory_utilization * gpu.allocatable_bytes
        pool = kv_pool_bytes(model, gpu, engine, tp_size, pp_size, stage, profiled, layout)
        if pool > 0 and engine.block_size > model.max_model_len:
            raise ConfigError(
                "engine.block_size",
                engine.block_size,
                f"not one block of this size fits into the {pool / GB:.1f} GB that {name} "
                f"leaves on {gpu.name} for KV",
                f"Use at most {model.max_model_len}; engines have 1 to 256.",
            )
        at_stage = f" in stage {stage + 1}" if pp_size > 1 else ""
        beside = activation_bytes(model, engine, tp_size, profiled, layout)
        beside += outside_bytes(gpu, engine, layout.num_gpus, pp_size)
        missing = max(-pool, 0.1 * GB)
        raise ConfigError(
            key,
            tp_size,
            f"{name} does not fit on {gpu.name}: {weights / GB:.1f} GB of weights{at_stage} and "
            f"{beside / GB:.1f} GB for activations and communicators per GPU, of "
            f"{share / GB:.1f} GB usable; {missing / GB:.1f} GB per GPU are missing",
            room.enough(tp_size, pp_size)
            or "Choose a GPU with more memory, or weights of fewer bytes.",
            missing,
        )
    longest = kv_layout(model, engine, tp_size, profiled.num_tokens).tokens_in(blocks)
    if longest < model.max_model_len:
        raise ConfigError(
            key,
            tp_size,
            f"the KV cache of {longest} tokens that is left on {gpu.name} "
            f"cannot hold one sequence of max_model_len = {model.max_model_len}",
            f"Set engine.max_model_len to at most {longest}. "
            + (room.enough(tp_size, pp_size) or "No degree of parallelism is enough."),
        )
    return blocks


class _Room(NamedTuple):
    """Room for KV blocks by degrees of parallelism."""

    model: ModelConfig
    gpu: GPUSpec
    engine: EngineProfile
    profiled: ProfilingPass
    layout: Layout
    """That of the instance, with the `tp_size` that was asked for."""

    def tightest(self, tp_size: int, pp_size: int) -> tuple[int, int]:
        """Return the stage with the least room, and the blocks of the pool that it holds."""
        model, gpu, engine, profiled, asked = self
        layout = kv_layout(model, engine, tp_size, profiled.num_tokens)
        laid_out = asked._replace(tp_size=tp_size)

        def room(stage: int) -> float:
            pool = kv_pool_bytes(model, gpu, engine, tp_size, pp_size, stage, profiled, laid_out)
            size = block_bytes(model, engine, tp_size, layout, pp_size, stage)
            return pool / size if size else math.inf if pool > 0 else -math.inf

        stage = min(range(pp_size), key=room)
        return stage, max(0, math.floor(room(stage)))

    def enough(self, tp_size: int, pp_size: int) -> str | None:
        """Name the degrees whose pools hold a sequence of ``max_model_len``, or None.

        The smallest larger degree of either kind with the other as it is; if neither is enough, the
        two that need the fewest GPUs together.
        """
        model, engine = self.model, self.engine
        if not self.layout.is_plain:
            # Other degrees have other groups of experts: no list of what would be enough.
            return "Spread the experts over more GPUs, or choose a GPU with more memory."

        def fits(pair: tuple[int, int]) -> bool:
            layout = kv_layout(model, engine, pair[0], self.profiled.num_tokens)
            return layout.tokens_in(self.tightest(*pair)[1]) >= model.max_model_len

        tp_sizes, pp_sizes = tp_degrees(model), range(1, model.spec.num_layers + 1)
        wider = filter(fits, ((t, pp_size) for t in tp_sizes if t > tp_size))
        deeper = filter(fits, ((tp_size, p) for p in pp_sizes if p > pp_size))
        found = [pair for pair in (next(wider, None), next(deeper, None)) if pair is not None]
        if not found:
            pairs = sorted(product(tp_sizes, pp_sizes), key=lambda p: (math.prod(p), -p[0]))
            found = list(islice(filter(fits, pairs), 1))
        if not found:
            return None
        return f"Enough is tp_size x pp_size = {' or '.join(f'{t} x {p}' for t, p in found)}."


# Degrees ----------------------------------------------------------------------------------------


def check_tp(model: ModelConfig, tp_size: int, *, key: str, layout: Layout | None = None) -> None:
    """Check that heads, experts and blocks of weights can be split over `tp_size` ranks.

    With `layout` experts are split over the GPUs of their group.

    Raises
    ------
    ConfigError
        If engines refuse the degree; says why, and lists the degrees that work.
    """
    why = _refusal(model, tp_size, layout)
    if why is not None:
        degrees = ", ".join(map(str, tp_degrees(model, layout)))
        raise ConfigError(key, tp_size, f"{model.spec.name} {why}", f"Use one of {degrees}.")


def tp_degrees(model: ModelConfig, layout: Layout | None = None) -> list[int]:
    """Return the tensor-parallel degrees that engines take for the model, rising.

    With the other degrees of `layout` where it is given; with as many more groups of experts where
    those are spread over all GPUs.
    """
    degrees = range(1, model.spec.num_heads + 1)
    if layout is None:
        return [t for t in degrees if _refusal(model, t) is None]
    whole = layout.ep_size == layout.num_gpus
    layouts = (
        layout._replace(tp_size=t, ep_size=t * layout.dp_size if whole else layout.ep_size)
        for t in degrees
    )
    return [x.tp_size for x in layouts if _refusal(model, x.tp_size, x) is None]


def _refusal(model: ModelConfig, tp_size: int, layout: Layout | None = None) -> str | None:
    """Say why engines do not split the model over `tp_size` ranks; None if they do."""
    layout = layout or Layout(tp_size)
    if layout.num_gpus == 1:
        return None
    if layout.num_gpus % layout.ep_size:
        return f"has experts that {layout.num_gpus} GPUs cannot hold in {layout.ep_size} groups"
    for mixer in model.spec.mixers:
        kv_heads = 1
        if isinstance(mixer, Attention):
            kv_heads = mixer.num_kv_heads
        elif isinstance(mixer, Recurrent):
            kv_heads = mixer.num_key_heads
        if mixer.num_heads % tp_size or (kv_heads % tp_size and tp_size % kv_heads):
            return (
                f"has {mixer.num_heads} heads and {kv_heads} KV heads, which cannot be shared out "
                f"evenly over {tp_size} GPUs"
            )
    for layer, _ in model.spec.layers:
        for what, width, dtype in _split_widths(layer):
            ranks = layout.moe_tp_size if what == "experts" else tp_size
            if ranks == 1:
                continue
            if width % ranks:
                return f"has {what} of width {width}, which {ranks} GPUs cannot share evenly"
            block = model.dtype_of(dtype).block
            if width // ranks % block:
                return (
                    f"has {what} of width {width}: a GPU's share, {width // ranks}, is no "
                    f"multiple of the {block}-wide blocks that its {model.dtype_of(dtype).name} "
                    "weights are scaled in"
                )
    return None


def _split_widths(layer: Layer) -> Iterator[tuple[str, int, WeightDtype]]:
    """Give the widths that tensor parallelism splits, with what they are and their dtype."""
    dtypes = layer.dtypes
    for mlp in layer.mlps:
        if isinstance(mlp, DenseMlp):
            yield "an MLP", mlp.ffn_dim, dtypes.mlp
            continue
        yield "experts", mlp.ffn_dim, dtypes.experts
        if mlp.shared_ffn_dim:
            yield "shared experts", mlp.shared_ffn_dim, dtypes.shared


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


def _weight_bytes(operators: list[Operator]) -> float:
    return sum(operator.weights * operator.weight_bytes for operator in operators)
