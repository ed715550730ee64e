"""The operators of a forward pass on one rank: how many FLOPs, how many bytes.

Sizes follow the table of a Llama-style decoder layer (h hidden, n heads, n_kv KV heads, d head
dimension, f FFN width, t tensor-parallel ranks, m tokens of the step, activations in 16 bits).
Query, key and value are one matrix multiplication, gate and up another, and the residual sum is
part of the norm, as serving engines do it. Attention is left open here: it depends on contexts.

With data-parallel ranks every rank has tokens of its own, and experts compute those of all ranks
(`Layout`). Of groups with different experts the busiest is described, which the others wait for.

Not modelled: biases, padding to captured batch sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby, islice
from math import log
from typing import Final, Literal, NamedTuple

from simcluster.catalog.layers import (
    BF16,
    Attention,
    DenseMlp,
    Experts,
    LatentAttention,
    Layer,
    LayerRun,
    Mixer,
    ModelSpec,
    Recurrent,
    WeightDtype,
)
from simcluster.config import ModelConfig
from simcluster.roofline.layout import Layout, busiest_rows, busiest_touched

Dtypes = tuple[WeightDtype, WeightDtype]
"""Of a mixer's projections and of its output projection."""

Kind = Literal[
    "gemm",
    "elementwise",
    "attention",
    "all_reduce",
    "all_gather",
    "gather",
    "scatter",
    "dispatch",
    "combine",
]
"""The last four move tokens between data-parallel ranks and experts: all tokens to all ranks and
sums back, or each token to its experts and results back (all-to-all)."""

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
ALIGN_KERNELS: Final = ("experts_count", "experts_align", "experts_quantise")
"""Kernels before the multiplications of routed experts: visits counted, tokens put in the order of
experts (vLLM: ``moe_align_block_size``), inputs brought to few bits or copied. What is measured is
their time together."""
_ALIGN_BYTES: Final = 12.0
"""Traffic per visit of sorting tokens by expert: expert and place read, place in order written."""
_SAMPLER_BYTES: Final = 10.0
"""Traffic per logit of greedy sampling: read in 16 bits, written and read again in 32."""
_DISPATCH_BYTES: Final = 1.0 + 4.0 / 128
"""Bytes of a number that is sent to experts that multiply 8 bits or fewer: fp8 with a 32-bit scale
per 128 (DeepEP, `low_latency_dispatch`)."""


class Routing(NamedTuple):
    """What kernels of routed experts go by beside their work."""

    tokens: float
    """Tokens of the step."""
    experts: float
    """Experts of the layer on this rank."""
    width: float
    """Width of an expert on this rank, per matrix."""
    weights: str
    """Dtype of their weights."""


class Operator(NamedTuple):
    """One kernel of one rank."""

    name: str
    """What it computes."""
    kind: Kind
    """Which law gives its time."""
    flops: float
    """Floating-point operations; 0 for attention, whose work depends on contexts."""
    bytes: float
    """Device-memory traffic (bytes); for collectives the size of the message, for an all-to-all
    that of one copy of the tokens that a GPU sends."""
    weights: float = 0.0
    """Weights that live on this rank for it, used in this step or not."""
    weight_bytes: float = ACTIVATION_BYTES
    """Bytes of one of those weights, with its share of the scales."""
    rows: float = 0.0
    cols: float = 0.0
    """Shape of the result of a multiplication, of one of them if it is grouped; rows also of an
    elementwise kernel."""
    groups: float = 0.0
    """Multiplications in one; more than one for experts, 0 for what is none."""
    arithmetic: str = "16bit"
    """Numbers that are multiplied where the GPU can: see `WeightDtype.arithmetic`."""
    routing: Routing | None = None
    """Of kernels of routed experts alone."""

    @property
    def family(self) -> Family:
        """Which class of elementwise kernels it is in: they reach unequal shares of bandwidth."""
        return _FAMILIES.get(self.name, "norm" if self.name.endswith("norm") else "other")


@dataclass(frozen=True, slots=True)
class AttentionWork:
    """What attention costs on one rank, per token; multiply by the tokens of the step."""

    decode_flops: float
    """FLOPs of a decoding sequence per token it attends to."""
    decode_kv_bytes: float
    """Cache read by a decoding sequence per token it attends to (bytes)."""
    io_bytes: float
    """Query read and output written per new token (bytes)."""
    prefill_flops: float
    """FLOPs per pair of a prefill token and a token it attends to."""
    prefill_kv_bytes: float
    """Keys and values read once per chunk and token, cached or new (bytes)."""
    expand_flops: float
    """FLOPs per cached token of a chunk: multi-head latent attention expands it again."""
    kv_heads: float
    """KV heads on this rank; decode attention launches one block per sequence and KV head."""
    heads: float
    """Query heads on this rank; prefill attention launches one block per 128 queries and head."""
    cache_bytes: float = 2.0
    """Bytes of a number in the cache."""


def kv_heads_per_rank(mixer: Mixer, tp_size: int) -> float:
    """KV heads on one rank: split while there are enough, then replicated; 1 latent for MLA.

    Of a recurrent layer the heads of its state.
    """
    if isinstance(mixer, LatentAttention):
        return 1.0
    if isinstance(mixer, Recurrent):
        return mixer.num_heads / tp_size
    return max(1.0, mixer.num_kv_heads / tp_size)


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
    """Return the layers of a pipeline stage in order as runs of equal ones."""
    if pp_size == 1:
        return spec.layers
    counts = stage_layers(spec.num_layers, pp_size)
    first = sum(counts[:stage])
    layers = islice(spec.each_layer, first, first + counts[stage])
    return tuple(LayerRun(layer, len(list(same))) for layer, same in groupby(layers))


def experts_touched(
    num_experts: int, num_active: int, num_tokens: int, spread: float = 0.0
) -> float:
    """Mean number of distinct experts that `num_tokens` tokens visit.

    Each token picks `num_active` of `num_experts` at random. The popularity of experts is a gamma
    variate with the coefficient of variation `spread`, so that visits of the tokens behind the
    first are negative-binomial: none with ``(1 + spread^2 x)^(-1 / spread^2)`` where an even router
    has ``exp(-x)``.

    >>> experts_touched(8, 2, 1, 0.63)
    2.0
    """
    missed = 1.0 - num_active / num_experts
    if spread == 0.0 or missed == 0.0:
        return num_experts * (1.0 - missed**num_tokens)
    visits = -(num_tokens - 1) * log(missed)
    others: float = (1.0 + spread**2 * visits) ** (-1.0 / spread**2)
    return num_experts * (1.0 - missed * others)


def attention_work(
    model: ModelConfig, mixer: Attention | LatentAttention, tp_size: int
) -> AttentionWork:
    """Return what attention of one layer costs per token on one rank.

    Multi-head latent attention decodes in its absorbed form: every head attends to the latent
    vector itself. It prefills in the expanded form, and expands the cached part of a prompt again
    for every chunk.
    """
    heads, kv_bytes = mixer.num_heads / tp_size, model.kv_bytes
    if isinstance(mixer, LatentAttention):
        latent = mixer.kv_lora_rank + mixer.qk_rope_dim
        expanded = mixer.qk_nope_dim + mixer.qk_rope_dim + mixer.v_head_dim
        return AttentionWork(
            decode_flops=2.0 * heads * (latent + mixer.kv_lora_rank),
            decode_kv_bytes=kv_bytes * latent,
            io_bytes=ACTIVATION_BYTES * heads * (latent + mixer.kv_lora_rank),
            prefill_flops=2.0 * heads * expanded,
            prefill_kv_bytes=ACTIVATION_BYTES * heads * expanded,
            expand_flops=2.0 * mixer.kv_lora_rank * heads * (mixer.qk_nope_dim + mixer.v_head_dim),
            kv_heads=1.0,
            heads=heads,
            cache_bytes=kv_bytes,
        )
    kv_heads, width = kv_heads_per_rank(mixer, tp_size), mixer.head_dim + mixer.v_head_dim
    return AttentionWork(
        decode_flops=2.0 * heads * width,
        decode_kv_bytes=kv_bytes * kv_heads * width,
        io_bytes=ACTIVATION_BYTES * heads * width,
        prefill_flops=2.0 * heads * width,
        prefill_kv_bytes=kv_bytes * kv_heads * width,
        expand_flops=0.0,
        kv_heads=kv_heads,
        heads=heads,
        cache_bytes=kv_bytes,
    )


def index_work(mixer: LatentAttention) -> AttentionWork | None:
    """Return what the index of sparse attention costs per token, the same on every rank.

    Each query scores all cached keys: one product per index head (DeepSeek-V3.2, section 2.1).
    None where the layer has none of its own.
    """
    index = mixer.index
    if index is None or not index.own:
        return None
    flops = 2.0 * index.num_heads * index.head_dim
    return AttentionWork(
        decode_flops=flops,
        decode_kv_bytes=float(index.cache_bytes),
        io_bytes=ACTIVATION_BYTES * index.num_heads * index.head_dim,
        prefill_flops=flops,
        prefill_kv_bytes=float(index.cache_bytes),
        expand_flops=0.0,
        kv_heads=1.0,
        heads=float(index.num_heads),
    )


def state_bytes(mixer: Recurrent, tp_size: int) -> float:
    """State of one sequence in a recurrent layer on one rank (bytes)."""
    return mixer.state_bytes / tp_size


def recurrence_flops(mixer: Recurrent, tp_size: int) -> float:
    """FLOPs of a token in a recurrent layer on one rank: decay, correction, update, read-out.

    Two per number of the state and pass; the delta rule passes four times (decay, product with the
    key, outer product, product with the query), Mamba-2 three times (arXiv 2405.21060, eq. 1).
    """
    passes = 4.0 if mixer.kind == "gated-deltanet" else 3.0
    return 2.0 * passes * mixer.num_heads / tp_size * mixer.key_dim * mixer.value_dim


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
            BF16.num_bytes,
            rows=num_tokens,
        )
    ]
    if tp_size > 1:
        operators.append(Operator("embedding_all_reduce", "all_reduce", 0.0, hidden))
    return operators


def layer_operators(
    model: ModelConfig,
    layer: Layer,
    tp_size: int,
    num_tokens: int,
    layout: Layout | None = None,
    all_tokens: int | None = None,
) -> list[Operator]:
    """Return the operators of one layer in order; at most one is of kind ``"attention"``.

    Parameters
    ----------
    model : ModelConfig
        The model and the precision of its weights and cache.
    layer : Layer
        One of its layers.
    tp_size : int
        Ranks of the tensor-parallel group.
    num_tokens : int
        Tokens of the step, >= 1: one per decoding sequence plus those of the chunks.
    layout : Layout, optional
        How the instance is laid out; by default over `tp_size` GPUs alone.
    all_tokens : int, optional
        Tokens of all data-parallel ranks together; by default this rank's alone.
    """
    layout = layout or Layout(tp_size)
    all_tokens = num_tokens if all_tokens is None else all_tokens
    all_reduce = num_tokens * model.spec.hidden_size * ACTIVATION_BYTES
    operators: list[Operator] = []
    if layer.mixer is not None:
        dtypes = model.dtype_of(layer.dtypes.mixer), model.dtype_of(layer.dtypes.out)
        operators.append(_norm("input_norm", model, num_tokens))
        operators += _mixer_operators(model, layer.mixer, dtypes, tp_size, num_tokens)
        if tp_size > 1:
            operators.append(Operator("attention_all_reduce", "all_reduce", 0.0, all_reduce))
    if layer.mlps:
        operators.append(_norm("post_norm", model, num_tokens))
        for mlp in layer.mlps:
            operators += _any_mlp_operators(model, layer, mlp, layout, num_tokens, all_tokens)
        # Where tokens are sent to their experts each GPU sends its share of them.
        shared_out = layout.all_to_all != "gather" and any(
            isinstance(m, Experts) for m in layer.mlps
        )
        if tp_size > 1 and shared_out:
            operators.append(Operator("mlp_all_gather", "all_gather", 0.0, all_reduce))
        elif tp_size > 1:
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
    head = _gemm("lm_head", num_sampled, spec.hidden_size, width, BF16)
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


def _mixer_operators(
    model: ModelConfig, mixer: Mixer, dtypes: Dtypes, tp_size: int, num_tokens: int
) -> list[Operator]:
    """Attention or recurrence of a layer with its projections; `dtypes` as in `LayerDtypes`."""
    if isinstance(mixer, LatentAttention):
        return _latent_operators(model, mixer, dtypes, tp_size, num_tokens)
    if isinstance(mixer, Recurrent):
        return _recurrent_operators(model, mixer, dtypes, tp_size, num_tokens)
    return _attention_operators(model, mixer, dtypes, tp_size, num_tokens)


def _attention_operators(
    model: ModelConfig, mixer: Attention, dtypes: Dtypes, tp_size: int, num_tokens: int
) -> list[Operator]:
    """Multi-head, grouped-query and multi-query attention with their projections."""
    dtype, out_dtype = dtypes
    hidden, heads = model.spec.hidden_size, mixer.num_heads / tp_size
    kv_heads = kv_heads_per_rank(mixer, tp_size)
    width, kv_width = mixer.q_width / tp_size, kv_heads * mixer.kv_width / mixer.num_kv_heads
    rotated = num_tokens * (heads + kv_heads) * mixer.head_dim
    written = num_tokens * kv_heads * (mixer.head_dim + mixer.v_head_dim)
    out = heads * mixer.v_head_dim
    operators = [
        _gemm("qkv_proj", num_tokens, hidden, width + kv_width, dtype),
        *_qk_norm_operators(mixer, num_tokens, (heads + kv_heads) * mixer.head_dim, tp_size),
        _by_row("rope", num_tokens, 6 * rotated, 2 * ACTIVATION_BYTES * rotated),
        _by_row("kv_write", num_tokens, 0.0, (ACTIVATION_BYTES + model.kv_bytes) * written),
        Operator("attention", "attention", 0.0, 0.0),
    ]
    if mixer.output_gate:
        gated = num_tokens * out
        operators.append(
            _by_row("attention_gate", num_tokens, 5 * gated, 3 * ACTIVATION_BYTES * gated)
        )
    return [*operators, _gemm("o_proj", num_tokens, out, hidden, out_dtype)]


def _qk_norm_operators(
    mixer: Attention, num_tokens: int, width: float, tp_size: int
) -> list[Operator]:
    """Norm of queries and keys, `width` numbers of a token; over all heads the ranks sum squares.

    The sum is a kernel and a message of two numbers of 32 bits a token (MiniMax-M2 in vLLM,
    ``MiniMaxText01RMSNormTP``).
    """
    numbers = num_tokens * width
    norm = _by_row("qk_norm", num_tokens, 4 * numbers, 2 * ACTIVATION_BYTES * numbers)
    if not mixer.qk_norm:
        return []
    if mixer.qk_norm == "head" or tp_size == 1:
        return [norm]
    return [
        _by_row("qk_square", num_tokens, 2 * numbers, ACTIVATION_BYTES * numbers),
        Operator("qk_all_reduce", "all_reduce", 0.0, 8.0 * num_tokens),
        norm,
    ]


def _latent_operators(
    model: ModelConfig, mixer: LatentAttention, dtypes: Dtypes, tp_size: int, num_tokens: int
) -> list[Operator]:
    """Multi-head latent attention (DeepSeek-V2, 2024, section 2.1) with its projections.

    The down-projections are replicated on every rank, and so is the index of sparse attention.
    Folding the up-projection of keys into the query and that of values into the output (decode)
    costs the same FLOPs and weights per token as expanding the token's latent vector (prefill): one
    operator ``kv_b_proj`` stands for either. Queries and keys are put together of a part with and
    a part without position, which is a kernel each.
    """
    dtype, out_dtype = dtypes
    hidden, heads = model.spec.hidden_size, mixer.num_heads / tp_size
    rank, latent = mixer.q_lora_rank, mixer.kv_lora_rank + mixer.qk_rope_dim
    query = heads * (mixer.qk_nope_dim + mixer.qk_rope_dim)
    expanded = heads * (mixer.qk_nope_dim + mixer.v_head_dim)
    down = (rank or query) + latent
    normed = num_tokens * (rank + mixer.kv_lora_rank)
    projections = [
        _gemm("qkv_a_proj", num_tokens, hidden, down, dtype),
        _by_row("latent_norm", num_tokens, 4 * normed, 2 * ACTIVATION_BYTES * normed),
    ]
    if rank:
        projections.append(_gemm("q_b_proj", num_tokens, rank, query, dtype))
    if mixer.index is not None and mixer.index.own:
        index, scores = mixer.index, mixer.index.num_heads * mixer.index.head_dim
        projections += [
            _gemm("index_q_proj", num_tokens, rank or hidden, scores, dtype),
            _gemm("index_k_proj", num_tokens, hidden, index.head_dim + index.num_heads, BF16),
        ]
    rotated = num_tokens * (heads + 1) * mixer.qk_rope_dim
    written = num_tokens * latent
    joined = 2 * ACTIVATION_BYTES * num_tokens * query
    return [
        *projections,
        _by_row("q_concat", num_tokens, 0.0, joined),
        _by_row("k_concat", num_tokens, 0.0, joined),
        _by_row("rope", num_tokens, 6 * rotated, 2 * ACTIVATION_BYTES * rotated),
        _by_row("kv_write", num_tokens, 0.0, (ACTIVATION_BYTES + model.kv_bytes) * written),
        _gemm("kv_b_proj", num_tokens, mixer.kv_lora_rank, expanded, dtype),
        Operator("attention", "attention", 0.0, 0.0),
        _gemm("o_proj", num_tokens, heads * mixer.v_head_dim, hidden, out_dtype),
    ]


def _recurrent_operators(
    model: ModelConfig, mixer: Recurrent, dtypes: Dtypes, tp_size: int, num_tokens: int
) -> list[Operator]:
    """Linear attention or a state-space layer with its projections, all split over the ranks."""
    dtype, out_dtype = dtypes
    hidden = model.spec.hidden_size
    mixed = num_tokens * mixer.conv_width / tp_size
    values = num_tokens * mixer.value_width / tp_size
    return [
        _gemm("in_proj", num_tokens, hidden, mixer.in_width / tp_size, dtype),
        _by_row(
            "conv",
            num_tokens,
            2 * mixer.conv_kernel * mixed,
            2 * ACTIVATION_BYTES * mixed,
        )._replace(weights=mixer.conv_width * mixer.conv_kernel / tp_size),
        Operator("recurrence", "attention", 0.0, 0.0),
        _by_row("gated_norm", num_tokens, 9 * values, 3 * ACTIVATION_BYTES * values),
        _gemm("out_proj", num_tokens, mixer.value_width / tp_size, hidden, out_dtype),
    ]


def _any_mlp_operators(
    model: ModelConfig,
    layer: Layer,
    mlp: DenseMlp | Experts,
    layout: Layout,
    num_tokens: int,
    all_tokens: int,
) -> list[Operator]:
    """A dense MLP, or experts with what belongs to them."""
    dtypes, tp_size = layer.dtypes, layout.tp_size
    if isinstance(mlp, DenseMlp):
        dtype = model.dtype_of(dtypes.mlp)
        return _mlp_operators(model, dtype, tp_size, num_tokens, "", mlp.ffn_dim)
    dtype = model.dtype_of(dtypes.experts)
    operators = _moe_operators(model, mlp, dtype, layout, num_tokens, all_tokens)
    if mlp.shared_ffn_dim:
        dtype, width = model.dtype_of(dtypes.shared), mlp.shared_ffn_dim
        operators += _mlp_operators(model, dtype, tp_size, num_tokens, "shared_", width)
    return operators


def _mlp_operators(
    model: ModelConfig,
    dtype: WeightDtype,
    tp_size: int,
    num_tokens: int,
    prefix: str,
    ffn_dim: int,
) -> list[Operator]:
    """Dense MLP, or the shared experts as one; gate and up are one multiplication."""
    hidden, width = model.spec.hidden_size, ffn_dim / tp_size
    inputs = 2 if model.spec.gated_mlp else 1
    activated = num_tokens * width
    return [
        _gemm(f"{prefix}up_proj", num_tokens, hidden, inputs * width, dtype),
        _by_row(
            f"{prefix}{_activation(model)}",
            num_tokens,
            5 * activated,
            (inputs + 1) * ACTIVATION_BYTES * activated,
        ),
        _gemm(f"{prefix}down_proj", num_tokens, width, hidden, dtype),
    ]


def _moe_operators(
    model: ModelConfig,
    experts: Experts,
    dtype: WeightDtype,
    layout: Layout,
    num_tokens: int,
    all_tokens: int,
) -> list[Operator]:
    """Router and routed experts, each split over the ranks of its group.

    Only the weights of experts that some token visits are read. Experts that work in a latent
    space are entered and left by a projection that every rank has whole.
    """
    hidden, width = model.spec.hidden_size, experts.ffn_dim / layout.moe_tp_size
    inner = experts.latent_dim or hidden
    inputs = 2 if model.spec.gated_mlp else 1
    scored = num_tokens * experts.num_experts
    routed = float(all_tokens * experts.num_active)
    # A replica is one more expert to visit.
    placed = experts.num_experts + layout.redundant_experts
    touched = experts_touched(placed, experts.num_active, all_tokens, model.expert_spread)
    local_experts = experts.num_experts
    if layout.ep_size > 1:
        routed = busiest_rows(experts, layout, all_tokens)
        touched = busiest_touched(experts, layout, all_tokens, touched)
        local_experts = layout.local_experts(experts)
    activated = routed * width
    routing = Routing(all_tokens, local_experts, width, dtype.name)

    def grouped(name: str, num_in: float, num_out: float) -> Operator:
        read = dtype.num_bytes * touched * num_in * num_out
        return Operator(
            name,
            "gemm",
            2.0 * routed * num_in * num_out,
            read + ACTIVATION_BYTES * routed * (num_in + num_out),
            local_experts * num_in * num_out,
            dtype.num_bytes,
            rows=routed / touched,
            cols=num_out,
            groups=touched,
            arithmetic=dtype.arithmetic,
            routing=routing,
        )

    def latent(name: str, num_in: float, num_out: float) -> list[Operator]:
        return [_gemm(name, num_tokens, num_in, num_out, BF16)] if experts.latent_dim else []

    there, back = _to_experts(layout, dtype, inner, num_tokens, all_tokens)
    # The low-latency kernels sum up what comes back.
    sums = layout.all_to_all != "low-latency"
    return [
        _gemm("router", num_tokens, hidden, experts.num_experts, BF16),
        _by_row("top_k", num_tokens, scored, 2 * ACTIVATION_BYTES * scored),
        *latent("latent_in_proj", hidden, inner),
        *there,
        *(
            _by_row(name, all_tokens, 0.0, _ALIGN_BYTES * routed)._replace(routing=routing)
            for name in ALIGN_KERNELS
        ),
        grouped("experts_up_proj", inner, inputs * width),
        _by_row(
            f"experts_{_activation(model)}",
            routed,
            5 * activated,
            (inputs + 1) * ACTIVATION_BYTES * activated,
        ),
        grouped("experts_down_proj", width, inner),
        *(
            [
                _by_row(
                    "experts_sum",
                    all_tokens,
                    2.0 * routed * inner,
                    ACTIVATION_BYTES * inner * (routed + all_tokens),
                )._replace(routing=routing)
            ]
            if sums
            else []
        ),
        *back,
        *latent("latent_out_proj", inner, hidden),
    ]


def _to_experts(
    layout: Layout, dtype: WeightDtype, width: int, num_tokens: int, all_tokens: int
) -> tuple[list[Operator], list[Operator]]:
    """Way of the tokens of data-parallel ranks to the experts, and of the results back.

    Tokens are gathered and summed in 16 bits. In an all-to-all each GPU of a rank sends its share
    of the rank's tokens.
    """
    if layout.dp_size == 1:
        return [], []
    if layout.all_to_all == "gather":
        message = ACTIVATION_BYTES * all_tokens * width
        return [Operator("gather", "gather", 0.0, message)], [
            Operator("scatter", "scatter", 0.0, message)
        ]
    sent = num_tokens / layout.tp_size * width
    in_8_bits = dtype.arithmetic in ("fp8", "int8", "nvfp4")
    each = _DISPATCH_BYTES if in_8_bits else ACTIVATION_BYTES
    return [Operator("dispatch", "dispatch", 0.0, each * sent)], [
        Operator("combine", "combine", 0.0, ACTIVATION_BYTES * sent)
    ]


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
    name: str, num_tokens: float, num_in: float, num_out: float, dtype: WeightDtype
) -> Operator:
    """Return a dense projection of `num_tokens` rows."""
    weights = num_in * num_out
    moved = dtype.num_bytes * weights + ACTIVATION_BYTES * num_tokens * (num_in + num_out)
    return Operator(
        name,
        "gemm",
        2.0 * num_tokens * weights,
        moved,
        weights,
        dtype.num_bytes,
        rows=num_tokens,
        cols=num_out,
        groups=1.0,
        arithmetic=dtype.arithmetic,
    )
