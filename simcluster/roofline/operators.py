"""The operators of a forward pass on one rank: how many FLOPs, how many bytes.

Sizes follow the table of a Llama-style decoder layer (h hidden, n heads, n_kv KV heads, d head
dimension, f FFN width, t tensor-parallel ranks, m tokens of the step, activations in 16 bits).
Query, key and value are one matrix multiplication, gate and up another, and the residual sum is
part of the norm, as serving engines do it. Attention is left open here: it depends on contexts.

Not modelled: biases, quantisation kernels, experts of uneven popularity, padding to captured batch
sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import Final, Literal, NamedTuple

from simcluster.catalog.specs import ModelSpec
from simcluster.config import ModelConfig

Kind = Literal["gemm", "elementwise", "attention", "all_reduce", "all_gather"]

Family = Literal["norm", "rope", "activation", "add", "embedding", "other"]

_FAMILIES: Final[dict[str, Family]] = {
    "rope": "rope",
    "embedding": "embedding",
    "activation": "activation",
    "shared_activation": "activation",
    "experts_activation": "activation",
    "experts_sum": "add",
    "ungated_activation": "add",
    "shared_ungated_activation": "add",
    "experts_ungated_activation": "add",
}
ACTIVATION_BYTES: Final = 2.0
"""Bytes of one activation; engines keep them in 16 bits also with 8-bit weights."""
_EMBEDDING_BYTES: Final = 2.0
"""Bytes of one weight of embedding, router and LM head: engines quantise the layers only."""
_SAMPLER_BYTES: Final = 10.0
"""Traffic per logit of greedy sampling: read in 16 bits, written and read again in 32."""


class Operator(NamedTuple):
    """One kernel of one rank.

    Attributes
    ----------
    name : str
        What it computes.
    kind : str
        Which law gives its time.
    flops : float
        Floating-point operations; 0 for attention, whose work depends on contexts.
    bytes : float
        Device-memory traffic (bytes); for collectives the size of the message.
    weights : float
        Weights that live on this rank for it, used in this step or not.
    weight_bytes : float
        Bytes of one of those weights.
    rows, cols : float
        Shape of the result of a multiplication, of one of them if it is grouped; rows also of
        an elementwise kernel.
    groups : float
        Multiplications in one; more than one for experts, 0 for what is none.
    """

    name: str
    kind: Kind
    flops: float
    bytes: float
    weights: float = 0.0
    weight_bytes: float = ACTIVATION_BYTES
    rows: float = 0.0
    cols: float = 0.0
    groups: float = 0.0

    @property
    def family(self) -> Family:
        """Which class of elementwise kernels it is in: they reach unequal shares of bandwidth."""
        return _FAMILIES.get(self.name, "norm" if self.name.endswith("norm") else "other")


class LayerRun(NamedTuple):
    """Equal layers that follow one another.

    Attributes
    ----------
    moe : bool
        Mixture of experts instead of a dense MLP.
    window : bool
        Attention within the sliding window only.
    repeat : int
        How many.
    """

    moe: bool
    window: bool
    repeat: int


@dataclass(frozen=True, slots=True)
class AttentionWork:
    """What attention costs on one rank, per token; multiply by the tokens of the step.

    Attributes
    ----------
    decode_flops : float
        FLOPs of a decoding sequence per token it attends to.
    decode_kv_bytes : float
        Cache read by a decoding sequence per token it attends to (bytes).
    io_bytes : float
        Query read and output written per new token (bytes).
    prefill_flops : float
        FLOPs per pair of a prefill token and a token it attends to.
    prefill_kv_bytes : float
        Keys and values read once per chunk and token, cached or new (bytes).
    expand_flops : float
        FLOPs per cached token of a chunk: multi-head latent attention expands it again.
    kv_heads : float
        KV heads on this rank; decode attention launches one block per sequence and KV head.
    heads : float
        Query heads on this rank; prefill attention launches one block per 128 queries and head.
    cache_bytes : float
        Bytes of a number in the cache.
    """

    decode_flops: float
    decode_kv_bytes: float
    io_bytes: float
    prefill_flops: float
    prefill_kv_bytes: float
    expand_flops: float
    kv_heads: float
    heads: float
    cache_bytes: float = 2.0


def is_mla(spec: ModelSpec) -> bool:
    """Whether the model caches one latent vector per token (multi-head latent attention)."""
    return spec.kv_lora_rank > 0


def kv_heads_per_rank(spec: ModelSpec, tp_size: int) -> float:
    """KV heads on one rank: split while there are enough, then replicated; 1 latent for MLA."""
    return 1.0 if is_mla(spec) else max(1.0, spec.num_kv_heads / tp_size)


def stage_layers(num_layers: int, pp_size: int) -> tuple[int, ...]:
    """Return how many layers each stage of a pipeline has, as even as possible.

    Layers left over go one by one to the stage before the last and those before it: the last has
    the LM head too, and the first the embedding. This is vLLM's rule (``get_pp_indices``,
    vllm/distributed/utils.py).

    >>> stage_layers(62, 4)
    (15, 16, 16, 15)
    """
    even, left = divmod(num_layers, pp_size)
    last = pp_size - 1
    return tuple(even + (last - left <= stage < last) for stage in range(pp_size))


def layer_runs(spec: ModelSpec, pp_size: int = 1, stage: int = 0) -> tuple[LayerRun, ...]:
    """Return the layers of a pipeline stage in order as runs of equal ones.

    Dense layers come first, and so do layers with a sliding window: models that interleave the
    two kinds of attention do the same work in another order. For that reason each stage has its
    even share of the layers with a window, at its beginning.
    """
    counts = stage_layers(spec.num_layers, pp_size)
    first = sum(counts[:stage])
    end = first + counts[stage]
    windowed = (
        end * spec.num_sliding_layers // spec.num_layers
        - first * spec.num_sliding_layers // spec.num_layers
    )
    kinds = (
        (spec.num_experts > 0 and i >= spec.num_dense_layers, i - first < windowed)
        for i in range(first, end)
    )
    return tuple(LayerRun(*kind, len(list(group))) for kind, group in groupby(kinds))


def experts_touched(num_experts: int, num_active: int, num_tokens: int) -> float:
    """Mean number of distinct experts that `num_tokens` tokens visit.

    Each token picks `num_active` of `num_experts` at random, all equally popular.

    >>> experts_touched(8, 2, 1)
    2.0
    """
    return num_experts * (1.0 - (1.0 - num_active / num_experts) ** num_tokens)


def attention_work(model: ModelConfig, tp_size: int) -> AttentionWork:
    """Return what attention of one layer costs per token on one rank.

    Multi-head latent attention decodes in its absorbed form: every head attends to the latent
    vector itself. It prefills in the expanded form, and expands the cached part of a prompt anew
    for every chunk.
    """
    spec = model.spec
    heads = spec.num_heads / tp_size
    if is_mla(spec):
        latent = spec.kv_lora_rank + spec.qk_rope_dim
        expanded = spec.qk_nope_dim + spec.qk_rope_dim + spec.v_head_dim
        return AttentionWork(
            decode_flops=2.0 * heads * (latent + spec.kv_lora_rank),
            decode_kv_bytes=model.kv_bytes * latent,
            io_bytes=ACTIVATION_BYTES * heads * (latent + spec.kv_lora_rank),
            prefill_flops=2.0 * heads * expanded,
            prefill_kv_bytes=ACTIVATION_BYTES * heads * expanded,
            expand_flops=2.0 * spec.kv_lora_rank * heads * (spec.qk_nope_dim + spec.v_head_dim),
            kv_heads=1.0,
            heads=heads,
            cache_bytes=model.kv_bytes,
        )
    kv_heads = kv_heads_per_rank(spec, tp_size)
    kv_bytes = model.kv_bytes * 2.0 * kv_heads * spec.head_dim
    return AttentionWork(
        decode_flops=4.0 * heads * spec.head_dim,
        decode_kv_bytes=kv_bytes,
        io_bytes=ACTIVATION_BYTES * 2.0 * heads * spec.head_dim,
        prefill_flops=4.0 * heads * spec.head_dim,
        prefill_kv_bytes=kv_bytes,
        expand_flops=0.0,
        kv_heads=kv_heads,
        heads=heads,
        cache_bytes=model.kv_bytes,
    )


def embedding_operators(model: ModelConfig, tp_size: int, num_tokens: int) -> list[Operator]:
    """Return the operators before the first layer; the table is split by vocabulary."""
    hidden = num_tokens * model.spec.hidden_size * ACTIVATION_BYTES
    table = model.spec.vocab_size * model.spec.hidden_size / tp_size
    operators = [
        Operator(
            "embedding",
            "elementwise",
            0.0,
            2 * hidden,
            table,
            _embedding_bytes(model),
            rows=num_tokens,
        )
    ]
    if tp_size > 1:
        operators.append(Operator("embedding_all_reduce", "all_reduce", 0.0, hidden))
    return operators


def layer_operators(
    model: ModelConfig, tp_size: int, num_tokens: int, *, moe: bool
) -> list[Operator]:
    """Return the operators of one layer in order; exactly one is of kind ``"attention"``.

    Parameters
    ----------
    model : ModelConfig
        The model and the precision of its weights and cache.
    tp_size : int
        Ranks of the tensor-parallel group.
    num_tokens : int
        Tokens of the step, >= 1: one per decoding sequence plus those of the chunks.
    moe : bool
        Mixture of experts instead of a dense MLP.
    """
    all_reduce = num_tokens * model.spec.hidden_size * ACTIVATION_BYTES
    project = _latent_operators if is_mla(model.spec) else _attention_operators
    operators = [_norm("input_norm", model, num_tokens), *project(model, tp_size, num_tokens)]
    if tp_size > 1:
        operators.append(Operator("attention_all_reduce", "all_reduce", 0.0, all_reduce))
    operators.append(_norm("post_norm", model, num_tokens))
    if moe:
        operators += _moe_operators(model, tp_size, num_tokens)
    else:
        operators += _mlp_operators(model, tp_size, num_tokens, "", model.spec.ffn_dim)
    if tp_size > 1:
        operators.append(Operator("mlp_all_reduce", "all_reduce", 0.0, all_reduce))
    return operators


def head_operators(
    model: ModelConfig, tp_size: int, num_tokens: int, num_sampled: int
) -> list[Operator]:
    """Return the operators after the last layer; the LM head sees the sampled tokens only.

    A tied head adds no weights of its own. The sampler is greedy.
    """
    spec = model.spec
    operators = [_norm("final_norm", model, num_tokens)]
    if num_sampled == 0:
        return operators
    width = spec.vocab_size / tp_size
    head = _gemm("lm_head", num_sampled, spec.hidden_size, width, _embedding_bytes(model))
    operators.append(head._replace(weights=0.0) if spec.tied_embeddings else head)
    num_logits = num_sampled * spec.vocab_size
    if tp_size > 1:
        logits = num_logits * ACTIVATION_BYTES
        operators.append(Operator("logits_all_gather", "all_gather", 0.0, logits))
    operators.append(
        Operator(
            "sampler", "elementwise", num_logits, _SAMPLER_BYTES * num_logits, rows=num_sampled
        )
    )
    return operators


def _attention_operators(model: ModelConfig, tp_size: int, num_tokens: int) -> list[Operator]:
    """Multi-head, grouped-query and multi-query attention with their projections."""
    spec = model.spec
    heads = spec.num_heads / tp_size
    kv_heads = kv_heads_per_rank(spec, tp_size)
    width, kv_width = heads * spec.head_dim, kv_heads * spec.head_dim
    rotated = num_tokens * (width + kv_width)
    written = num_tokens * 2 * kv_width
    return [
        _gemm("qkv_proj", num_tokens, spec.hidden_size, width + 2 * kv_width, model.weight_bytes),
        _by_row("rope", num_tokens, 6 * rotated, 2 * ACTIVATION_BYTES * rotated),
        _by_row("kv_write", num_tokens, 0.0, (ACTIVATION_BYTES + model.kv_bytes) * written),
        Operator("attention", "attention", 0.0, 0.0),
        _gemm("o_proj", num_tokens, width, spec.hidden_size, model.weight_bytes),
    ]


def _latent_operators(model: ModelConfig, tp_size: int, num_tokens: int) -> list[Operator]:
    """Multi-head latent attention (DeepSeek-V2, 2024, section 2.1) with its projections.

    The down-projections are replicated on every rank. Folding the up-projection of keys into the
    query and that of values into the output (decode) costs the same FLOPs and weights per token as
    expanding the token's latent vector (prefill): one operator ``kv_b_proj`` stands for either.
    """
    spec, weight_bytes = model.spec, model.weight_bytes
    heads = spec.num_heads / tp_size
    latent = spec.kv_lora_rank + spec.qk_rope_dim
    query = heads * (spec.qk_nope_dim + spec.qk_rope_dim)
    expanded = heads * (spec.qk_nope_dim + spec.v_head_dim)
    if spec.q_lora_rank:
        down = spec.q_lora_rank + latent
        normed = num_tokens * (spec.q_lora_rank + spec.kv_lora_rank)
        projections = [
            _gemm("qkv_a_proj", num_tokens, spec.hidden_size, down, weight_bytes),
            _by_row("latent_norm", num_tokens, 4 * normed, 2 * ACTIVATION_BYTES * normed),
            _gemm("q_b_proj", num_tokens, spec.q_lora_rank, query, weight_bytes),
        ]
    else:
        normed = num_tokens * spec.kv_lora_rank
        projections = [
            _gemm("qkv_a_proj", num_tokens, spec.hidden_size, query + latent, weight_bytes),
            _by_row("latent_norm", num_tokens, 4 * normed, 2 * ACTIVATION_BYTES * normed),
        ]
    rotated = num_tokens * (heads + 1) * spec.qk_rope_dim
    written = num_tokens * latent
    return [
        *projections,
        _by_row("rope", num_tokens, 6 * rotated, 2 * ACTIVATION_BYTES * rotated),
        _by_row("kv_write", num_tokens, 0.0, (ACTIVATION_BYTES + model.kv_bytes) * written),
        _gemm("kv_b_proj", num_tokens, spec.kv_lora_rank, expanded, weight_bytes),
        Operator("attention", "attention", 0.0, 0.0),
        _gemm("o_proj", num_tokens, heads * spec.v_head_dim, spec.hidden_size, weight_bytes),
    ]


def _mlp_operators(
    model: ModelConfig, tp_size: int, num_tokens: int, prefix: str, ffn_dim: int
) -> list[Operator]:
    """Dense MLP, or the shared experts as one; gate and up are one multiplication."""
    hidden, width = model.spec.hidden_size, ffn_dim / tp_size
    inputs = 2 if model.spec.gated_mlp else 1
    activated = num_tokens * width
    return [
        _gemm(f"{prefix}up_proj", num_tokens, hidden, inputs * width, model.weight_bytes),
        _by_row(
            f"{prefix}{_activation(model)}",
            num_tokens,
            5 * activated,
            (inputs + 1) * ACTIVATION_BYTES * activated,
        ),
        _gemm(f"{prefix}down_proj", num_tokens, width, hidden, model.weight_bytes),
    ]


def _moe_operators(model: ModelConfig, tp_size: int, num_tokens: int) -> list[Operator]:
    """Router, routed experts (each split over the ranks), shared experts.

    Only the weights of experts that some token visits are read.
    """
    spec = model.spec
    hidden, width = spec.hidden_size, spec.moe_ffn_dim / tp_size
    inputs = 2 if spec.gated_mlp else 1
    routed = num_tokens * spec.num_experts_active
    scored = num_tokens * spec.num_experts
    touched = experts_touched(spec.num_experts, spec.num_experts_active, num_tokens)
    activated = routed * width

    def grouped(name: str, num_in: float, num_out: float) -> Operator:
        read = model.weight_bytes * touched * num_in * num_out
        return Operator(
            name,
            "gemm",
            2.0 * routed * num_in * num_out,
            read + ACTIVATION_BYTES * routed * (num_in + num_out),
            spec.num_experts * num_in * num_out,
            model.weight_bytes,
            rows=routed / touched,
            cols=num_out,
            groups=touched,
        )

    operators = [
        _gemm("router", num_tokens, hidden, spec.num_experts, _embedding_bytes(model)),
        _by_row("top_k", num_tokens, scored, 2 * ACTIVATION_BYTES * scored),
        grouped("experts_up_proj", hidden, inputs * width),
        _by_row(
            f"experts_{_activation(model)}",
            routed,
            5 * activated,
            (inputs + 1) * ACTIVATION_BYTES * activated,
        ),
        grouped("experts_down_proj", width, hidden),
        _by_row(
            "experts_sum",
            num_tokens,
            2.0 * routed * hidden,
            ACTIVATION_BYTES * hidden * (routed + num_tokens),
        ),
    ]
    if spec.num_shared_experts:
        shared = spec.num_shared_experts * spec.moe_ffn_dim
        operators += _mlp_operators(model, tp_size, num_tokens, "shared_", shared)
    return operators


def _norm(name: str, model: ModelConfig, num_tokens: int) -> Operator:
    """RMSNorm with the residual sum: reads both inputs, writes both outputs."""
    hidden = model.spec.hidden_size
    numbers = 4.0 * num_tokens * hidden + hidden
    return Operator(
        name,
        "elementwise",
        5.0 * num_tokens * hidden,
        ACTIVATION_BYTES * numbers,
        hidden,
        rows=num_tokens,
    )


def _activation(model: ModelConfig) -> str:
    """Name of the activation: one without a gate only streams, like a sum."""
    return "activation" if model.spec.gated_mlp else "ungated_activation"


def _by_row(name: str, rows: float, flops: float, num_bytes: float) -> Operator:
    """Return an elementwise kernel without weights."""
    return Operator(name, "elementwise", flops, num_bytes, rows=rows)


def _gemm(
    name: str, num_tokens: float, num_in: float, num_out: float, weight_bytes: float
) -> Operator:
    """Return a dense projection of `num_tokens` rows."""
    weights = num_in * num_out
    moved = weight_bytes * weights + ACTIVATION_BYTES * num_tokens * (num_in + num_out)
    return Operator(
        name,
        "gemm",
        2.0 * num_tokens * weights,
        moved,
        weights,
        weight_bytes,
        rows=num_tokens,
        cols=num_out,
        groups=1.0,
    )


def _embedding_bytes(model: ModelConfig) -> float:
    return max(_EMBEDDING_BYTES, model.weight_bytes)
