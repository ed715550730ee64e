"""What a model is: runs of equal layers, each with a token mixer and an MLP, and their dtypes.

A mixer is `Attention` (with keys and values in the cache), `LatentAttention` (one latent vector per
token) or `Recurrent` (linear attention and state-space layers: a fixed state per sequence); an MLP
is `DenseMlp` or `Experts`. Either may be absent, as in models whose blocks have only one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final, NamedTuple


class WeightDtype(NamedTuple):
    """How weights are stored."""

    name: str
    """Its name, a value of ``model.weight_dtype``."""
    num_bytes: float
    """Bytes of one weight, with its share of the scales."""
    arithmetic: str
    """Numbers that the tensor cores multiply where they can: ``"16bit"``, ``"fp8"``, ``"int8"`` or
    ``"nvfp4"``; elsewhere weights are brought to 16 bits first. So are ``"mxfp4"`` everywhere:
    engines give them inputs of 16 bits (gpt-oss in vLLM 0.24 on B200)."""
    block: int
    """Weights in a row that share a scale, and which no rank may cut; 1 for none."""
    source: str
    """Where bytes and block come from."""


BF16: Final = WeightDtype("bf16", 2.0, "16bit", 1, "by definition; fp16 alike")
WEIGHT_DTYPES: Final[Mapping[str, WeightDtype]] = {
    dtype.name: dtype
    for dtype in (
        BF16,
        WeightDtype("fp8", 1.0, "fp8", 1, "one scale per matrix or column, left out"),
        WeightDtype(
            "fp8-block",
            1.0 + 4.0 / 128**2,
            "fp8",
            128,
            "DeepSeek-V3 (arXiv 2412.19437), section 3.3.2: a 32-bit scale per 128 x 128 weights",
        ),
        WeightDtype("mxfp8", 1.0 + 1.0 / 32, "fp8", 32, "OCP MX 1.0, table 1: 8 bits per 32"),
        WeightDtype("int8", 1.0, "int8", 1, "one scale per column, left out"),
        WeightDtype(
            "int4",
            0.5 + 2.5 / 128,
            "16bit",
            128,
            "AWQ (arXiv 2306.00978), GPTQ: 16-bit scale and 4-bit zero per 128 weights",
        ),
        WeightDtype("int4-g64", 0.5 + 2.5 / 64, "16bit", 64, "the same per 64 weights"),
        WeightDtype("int4-g32", 0.5 + 2.0 / 32, "16bit", 32, "16-bit scale per 32, symmetric"),
        WeightDtype(
            "nf4", 0.5 + 1.0 / 64, "16bit", 1, "QLoRA (arXiv 2305.14314): 8-bit scale per 64"
        ),
        WeightDtype(
            "mxfp4", 0.5 + 1.0 / 32, "mxfp4", 1, "OCP MX 1.0, table 1: 8 bits per 32; engines pad"
        ),
        WeightDtype("nvfp4", 0.5 + 1.0 / 16, "nvfp4", 16, "NVIDIA: an FP8 scale per 16 weights"),
    )
}
"""Dtypes of weights by name."""

KV_BYTES: Final[Mapping[str, float]] = {
    "bf16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "nvfp4": 0.5 + 1.0 / 16,
}
"""Bytes of one number in the cache, with its share of the scales."""


class Reach(NamedTuple):
    """How far back a layer attends: to a sliding window, or to the present chunk of the context."""

    tokens: int
    """Width (tokens), >= 1."""
    chunked: bool = False
    """Chunks of that width instead of a window: the first token of a chunk sees itself alone."""

    def of(self, context: int) -> int:
        """Tokens attended to at position `context` (its own included, >= 1)."""
        return (context - 1) % self.tokens + 1 if self.chunked else min(context, self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class Attention:
    """Multi-head, grouped-query or multi-query attention."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    """Query heads, key and value heads, width of a query and of a key."""
    v_head_dim: int
    """Width of a value."""
    reach: Reach | None = None
    """Window or chunk; None where it attends to all."""
    output_gate: bool = False
    """The query projection is twice as wide: its second half gates the output."""
    values_are_keys: bool = False
    """There is no projection of values (the cache holds both)."""
    qk_norm: str = ""
    """Queries and keys are normed: each head by itself (``"head"``), or all heads as one row
    (``"all"``), whose mean square the ranks of a tensor-parallel group add up; empty for none."""

    @property
    def kv_numbers(self) -> int:
        """Numbers in the cache of one token."""
        return self.num_kv_heads * (self.head_dim + self.v_head_dim)

    @property
    def q_width(self) -> int:
        """Columns of the query projection."""
        return (2 if self.output_gate else 1) * self.num_heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Columns of the projections of keys and values together."""
        return self.num_kv_heads * (
            self.head_dim + (0 if self.values_are_keys else self.v_head_dim)
        )

    def num_params(self, hidden: int) -> int:
        """Parameters of the projections, for this hidden size."""
        return hidden * (self.q_width + self.kv_width) + self.num_out_params(hidden)

    def num_out_params(self, hidden: int) -> int:
        """Parameters of the output projection."""
        return hidden * self.num_heads * self.v_head_dim


class SparseIndex(NamedTuple):
    """The index of DeepSeek sparse attention: it chooses the tokens that attention reads."""

    num_heads: int
    head_dim: int
    """Shape of the index; one key per token is cached, in 8 bits with a 32-bit scale."""
    top_k: int
    """Tokens that attention reads."""
    own: bool = True
    """Whether the layer has an index of its own; else it takes the choice of a layer before it."""

    @property
    def cache_bytes(self) -> int:
        """Index cache of one token (bytes): vLLM's ``DeepseekV32IndexerCache``."""
        return self.head_dim + 4 if self.own else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1).

    Attributes
    ----------
    kv_lora_rank, qk_rope_dim : int
        What is cached per token: the latent vector and the shared key with position.
    qk_nope_dim, v_head_dim : int
        Widths of a head: key without position, value.
    """

    num_heads: int
    """Query heads."""
    q_lora_rank: int
    """Rank of the query; 0 for none."""
    kv_lora_rank: int
    qk_nope_dim: int
    qk_rope_dim: int
    v_head_dim: int
    index: SparseIndex | None = None
    """Sparse attention; None where it attends to all."""

    @property
    def reach(self) -> Reach | None:
        """Tokens that attention itself reads."""
        return None if self.index is None else Reach(self.index.top_k)

    @property
    def kv_numbers(self) -> int:
        """Numbers in the cache of one token, without the index."""
        return self.kv_lora_rank + self.qk_rope_dim

    def num_params(self, hidden: int) -> int:
        """Parameters of the projections, for this hidden size."""
        heads, rank = self.num_heads, self.q_lora_rank
        query = heads * (self.qk_nope_dim + self.qk_rope_dim)
        into_query = rank * (hidden + query) if rank else hidden * query
        latent = hidden * (self.kv_lora_rank + self.qk_rope_dim)
        expand = self.kv_lora_rank * heads * (self.qk_nope_dim + self.v_head_dim)
        index = self.index_params(hidden)
        return into_query + latent + expand + index + self.num_out_params(hidden)

    def num_out_params(self, hidden: int) -> int:
        """Parameters of the output projection."""
        return self.num_heads * self.v_head_dim * hidden

    def index_params(self, hidden: int) -> int:
        """Parameters of the index: its queries, one key, a weight per head."""
        index = self.index
        if index is None or not index.own:
            return 0
        queries = (self.q_lora_rank or hidden) * index.num_heads * index.head_dim
        return queries + hidden * (index.head_dim + index.num_heads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recurrent:
    """Linear attention and state-space layers: a state per sequence in place of a cache.

    Gated DeltaNet (arXiv 2412.06464, as in Qwen3-Next) and Mamba-2 (arXiv 2405.21060) alike: of
    each head a matrix of `key_dim` x `value_dim`, and the last inputs of a short convolution over
    queries, keys and values. Mamba-2 calls keys and queries B and C, values x.
    """

    kind: str
    """``"gated-deltanet"`` or ``"mamba2"``."""
    num_key_heads: int
    key_dim: int
    """Heads of queries and of keys (Mamba-2: groups), their width (state size)."""
    num_heads: int
    value_dim: int
    """Heads of values and of the state, and their width."""
    conv_kernel: int
    """Width of the convolution (tokens)."""
    state_bytes_per_number: float = 2.0
    """Bytes of a number in the state matrices; the convolution's are in 16 bits."""

    reach: ClassVar[None] = None
    kv_numbers: ClassVar[int] = 0

    @property
    def value_width(self) -> int:
        """Width of the values, of their gate and of the output."""
        return self.num_heads * self.value_dim

    @property
    def conv_width(self) -> int:
        """Columns that pass the convolution: queries, keys and values."""
        return 2 * self.num_key_heads * self.key_dim + self.value_width

    @property
    def scalars_per_head(self) -> int:
        """Numbers per head and token beside them: decay and strength, or a step width."""
        return 2 if self.kind == "gated-deltanet" else 1

    @property
    def in_width(self) -> int:
        """Columns of the input projection: conv_width, the gate, the numbers per head."""
        return self.conv_width + self.value_width + self.scalars_per_head * self.num_heads

    @property
    def state_bytes(self) -> float:
        """State of one sequence (bytes)."""
        matrices = self.num_heads * self.key_dim * self.value_dim * self.state_bytes_per_number
        return matrices + 2.0 * self.conv_width * (self.conv_kernel - 1)

    def num_params(self, hidden: int) -> int:
        """Parameters of projections and convolution, for this hidden size."""
        convolution = self.conv_width * self.conv_kernel
        return hidden * self.in_width + convolution + self.num_out_params(hidden)

    def num_out_params(self, hidden: int) -> int:
        """Parameters of the output projection."""
        return hidden * self.value_width


class DenseMlp(NamedTuple):
    """An MLP that every token passes; `ffn_dim` per matrix."""

    ffn_dim: int

    def num_params(self, hidden: int, *, gated: bool) -> int:
        """Parameters, for this hidden size."""
        return (3 if gated else 2) * hidden * self.ffn_dim


class Experts(NamedTuple):
    """A mixture of experts, and shared experts beside it."""

    num_experts: int
    num_active: int
    ffn_dim: int
    """Routed experts, those that a token visits, their width per matrix."""
    shared_ffn_dim: int = 0
    """Width of the shared experts together; 0 for none."""
    latent_dim: int = 0
    """Width of what routed experts read and write; 0 for the hidden size."""

    def routed_params(self, hidden: int, *, gated: bool) -> int:
        """Parameters of the routed experts."""
        width = self.latent_dim or hidden
        return (3 if gated else 2) * width * self.ffn_dim * self.num_experts

    def num_params(self, hidden: int, *, gated: bool) -> int:
        """Parameters with router, shared experts and the way into the latent space."""
        shared = (3 if gated else 2) * hidden * self.shared_ffn_dim
        rest = hidden * self.num_experts + 2 * hidden * self.latent_dim
        return self.routed_params(hidden, gated=gated) + shared + rest


Mixer = Attention | LatentAttention | Recurrent
Mlp = DenseMlp | Experts


class LayerDtypes(NamedTuple):
    """How the weights of a layer are stored."""

    mixer: WeightDtype = BF16
    out: WeightDtype = BF16
    """The mixer's projections, and the one of its output."""
    mlp: WeightDtype = BF16
    experts: WeightDtype = BF16
    shared: WeightDtype = BF16
    """Dense MLP, routed and shared experts."""


STORED_IN_16_BITS: Final = LayerDtypes()


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer."""

    mixer: Mixer | None
    """How tokens see one another; None for a block that is an MLP alone."""
    mlps: tuple[Mlp, ...]
    """What each token passes, in order; empty for a block that is a mixer alone."""
    dtypes: LayerDtypes = STORED_IN_16_BITS
    """How the checkpoint stores its weights."""

    @property
    def dtypes_in_use(self) -> set[WeightDtype]:
        """Dtypes of the matrices that it has."""
        return {dtype for dtype, num in self.matrices(1, gated=True) if num}

    def matrices(self, hidden: int, *, gated: bool) -> Iterator[tuple[WeightDtype, int]]:
        """Dtype and parameters of the matrices that engines quantise: all but the router's."""
        if self.mixer is not None:
            out = self.mixer.num_out_params(hidden)
            yield self.dtypes.mixer, self.mixer.num_params(hidden) - out
            yield self.dtypes.out, out
        for mlp in self.mlps:
            if isinstance(mlp, DenseMlp):
                yield self.dtypes.mlp, mlp.num_params(hidden, gated=gated)
            else:
                yield self.dtypes.experts, mlp.routed_params(hidden, gated=gated)
                yield self.dtypes.shared, (3 if gated else 2) * hidden * mlp.shared_ffn_dim

    def num_params(self, hidden: int, *, gated: bool) -> int:
        """Parameters with norms, without biases."""
        parts = [mlp.num_params(hidden, gated=gated) for mlp in self.mlps]
        mixer = 0 if self.mixer is None else self.mixer.num_params(hidden)
        return mixer + sum(parts) + hidden * ((self.mixer is not None) + bool(self.mlps))


class LayerRun(NamedTuple):
    """Equal layers that follow one another."""

    layer: Layer
    repeat: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The shape of a decoder-only language model."""

    name: str
    """Catalogue name, such as ``"codellama-34b"``."""
    hidden_size: int
    vocab_size: int
    """Width of the residual stream, tokens of the vocabulary."""
    gated_mlp: bool
    """Three MLP matrices (gate, up, down) instead of two."""
    tied_embeddings: bool
    """The LM head shares the embedding's weights."""
    max_position: int
    """Longest context (tokens)."""
    layers: tuple[LayerRun, ...]
    """All layers in order."""
    kv_dtype: str | None = None
    """How the checkpoint says that its cache is to be stored; None if it does not."""
    notes: tuple[str, ...] = ()
    """What of the model is not simulated, one line each."""
    source: str
    """Where the configuration was read."""

    @property
    def num_layers(self) -> int:
        """How many layers."""
        return sum(run.repeat for run in self.layers)

    @property
    def each_layer(self) -> Iterator[Layer]:
        """The layers one by one."""
        return (run.layer for run in self.layers for _ in range(run.repeat))

    @property
    def mixers(self) -> tuple[Mixer, ...]:
        """The different mixers, in order of their first layer."""
        found = (run.layer.mixer for run in self.layers)
        return tuple(dict.fromkeys(mixer for mixer in found if mixer is not None))

    @property
    def attentions(self) -> tuple[Attention | LatentAttention, ...]:
        """The different mixers with a cache, in order of their first layer."""
        return tuple(mixer for mixer in self.mixers if not isinstance(mixer, Recurrent))

    @property
    def num_heads(self) -> int:
        """Query heads of the first layer with attention."""
        return self.attentions[0].num_heads

    @property
    def num_kv_heads(self) -> int:
        """Key and value heads of that layer; those of the queries in latent attention."""
        first = self.attentions[0]
        return first.num_kv_heads if isinstance(first, Attention) else first.num_heads

    @property
    def head_dim(self) -> int:
        """Width of its values."""
        first = self.attentions[0]
        return first.head_dim if isinstance(first, Attention) else first.v_head_dim

    @property
    def ffn_dim(self) -> int:
        """Width of the first dense MLP, per matrix; of the experts where there is none."""
        every = [mlp for run in self.layers for mlp in run.layer.mlps]
        dense = [mlp for mlp in every if isinstance(mlp, DenseMlp)]
        return (dense or every)[0].ffn_dim

    @property
    def is_plain(self) -> bool:
        """Whether all layers are equal, dense, and attend to all without a latent vector."""
        run, *others = self.layers
        mixer, mlps = run.layer.mixer, run.layer.mlps
        attends = isinstance(mixer, Attention) and mixer.reach is None
        return not others and attends and len(mlps) == 1 and isinstance(mlps[0], DenseMlp)

    @property
    def experts(self) -> Experts | None:
        """The experts of the first layer that has some; None in a dense model."""
        every = (mlp for run in self.layers for mlp in run.layer.mlps)
        return next((mlp for mlp in every if isinstance(mlp, Experts)), None)

    @property
    def reach(self) -> Reach | None:
        """Window, chunk or top-k of the layers that have one; None if all attend to all."""
        return next((m.reach for m in self.mixers if m.reach is not None), None)

    @property
    def num_params(self) -> int:
        """Parameters: matrices, embeddings, norms; no biases, no learned positions."""
        hidden = self.hidden_size
        each = (
            run.repeat * run.layer.num_params(hidden, gated=self.gated_mlp) for run in self.layers
        )
        tables = (1 if self.tied_embeddings else 2) * self.vocab_size * hidden
        return sum(each) + tables + hidden

    @property
    def kv_bytes_per_token(self) -> int:
        """16-bit cache of one token, all layers, windows left out of account (bytes)."""
        mixers = [(run.layer.mixer, run.repeat) for run in self.layers]
        return sum(2 * repeat * mixer.kv_numbers for mixer, repeat in mixers if mixer is not None)
