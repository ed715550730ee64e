"""The time of one kernel on one GPU: a smooth roofline plus a fixed latency.

``(compute^p + memory^p)^(1/p) + fixed`` with ``compute = flops / (mfu x peak)`` and ``memory =
bytes / (mbu x bandwidth)``. A plain maximum without the fixed latency is off by 10-19 % on matrix
multiplications and by more than 100 % on decode attention (measured sets, see docs). Finer terms,
each left out by default: tiles and waves of multiplications and attention, and the chain of one
sequence's context in decode attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf
from typing import Final, NamedTuple

from simcluster.catalog.specs import ExpertKernel, GPUSpec, KernelConstants
from simcluster.roofline.experts import kernel_for, multiplication_s
from simcluster.roofline.operators import (
    ACTIVATION_BYTES,
    ALIGN_KERNELS,
    AttentionWork,
    Operator,
    Routing,
)
from simcluster.roofline.smooth import smooth_max

Tiles = Sequence[tuple[float, float]]
"""Rows and columns of the result that one block computes."""

GEMM_TILES: Final[Tiles] = ((128.0, 256.0), (128.0, 128.0), (64.0, 128.0), (64.0, 64.0))
"""The fastest of them counts."""
GROUPED_TILES: Final[Tiles] = (*GEMM_TILES, (32.0, 64.0), (16.0, 64.0))
"""The same of experts, whose kernels have tiles for the few rows of each, and of weights that are
unpacked to 16 bits on the way (Marlin, arXiv 2408.11743: tiles of 16 to 64 rows)."""
FEW_ROWS: Final = 16.0
"""Rows up to which libraries multiply with kernels of their own, which stream weights better."""
KEPT_FOR_HEADS: Final = 2.0 / 3.0
"""Share of the second-level cache in which later query heads find the keys and values that earlier
ones have read (0.68 on RTX PRO 6000, 0.57 on RTX 4090; LLMServingSim's mixed calls)."""
ROW_BYTES: Final = 1000.0
"""Unit of `KernelConstants.row_chain_s` (bytes)."""
QUANTISE_BYTES: Final = 3.0
"""Traffic of bringing one number from 16 to 8 bits (bytes): read once, written once.

Engines do it in one kernel, compiled or their own, which streams like an activation. The tables of
vLLM 0.14 that constants are fitted to (aiconfigurator; Hopper, Ada) hold something else: 0.083 to
0.085 of the bandwidth on both (`KernelConstants.mbu_quantise`), as long as absolute value, maximum,
conversion, division, limits and conversion of an uncompiled PyTorch module take, which move about
35 bytes a number. The table of vLLM 0.19 on B200 (0.57) has the one kernel. With the chain, vLLM's
8-bit runs of MLPerf come out 14 % (H100) and 22 % (L40S) too slow.
"""
_BEHIND_NORM: Final = frozenset(
    ("qkv_proj", "up_proj", "qkv_a_proj", "q_b_proj", "kv_b_proj", "in_proj", "shared_up_proj")
)
"""Multiplications whose input is the result of a norm."""
SPLIT_BLOCKS: Final = 1.6
"""Blocks per SM (sequences x KV heads) below which decode attention splits contexts: 0.8 of the two
that an SM holds (FlashAttention-2's rule, which newer kernels follow roughly)."""
SPLIT_TOKENS: Final = 128.0
"""Mean context (tokens) above which there is something to split: one tile of keys."""
_ONE_BLOCK: Final = 1.14
_TWO_BLOCKS: Final = 1.52
"""Time of a part wave of decode attention with one and with two blocks on an SM, relative to the
SM's share of the bandwidth: one block alone streams at 0.88 of it, and two together still pay for
being short (FlashAttention-2 on A100 with 24 to 128 sequences and 4 KV heads, Vidur)."""


def wave_share(waves: float) -> float:
    """How much longer decode attention of `waves` blocks per SM takes than full waves do.

    An SM holds two blocks at a time. A part wave takes as long as its fullest SM. Fewer than 0.8
    blocks per SM are split along the context by the kernel and fill the GPU again.

    >>> wave_share(2.0)
    1.0
    """
    if waves < 0.8:
        return 1.0
    full = 2.0 * (waves // 2.0)
    rest = waves - full
    if rest > 0.0:
        rest = max(rest, _ONE_BLOCK if rest <= 1.0 else _TWO_BLOCKS)
    return (full + rest) / waves


class DecodeTerms(NamedTuple):
    """Time of decode attention of a batch as a function of its tokens of context C.

    ``const + linear C + sqrt(root^2 + (rate C)^2)``, and ``split`` more where C is above
    ``split_above``.

    Attributes
    ----------
    const, root, split : float
        In s, or in ticks where the caller has scaled them.
    linear, rate : float
        The same per token.
    """

    const: float
    linear: float
    root: float
    rate: float
    split: float
    split_above: float
    """Tokens; infinite where contexts are never split."""


class MixedTerms(NamedTuple):
    """Time of decodes in the tiles of a prefill kernel, by their tokens of context C.

    ``const + smooth_max(tile C, read C + again max(0, C - again_above))``.
    """

    const: float
    """Context apart (s)."""
    tile: float
    """Arithmetic of the tiles, per token of context (s)."""
    read: float
    """The cache read once, per token of context (s)."""
    again: float
    """The cache read again for query heads that come later, per token (s)."""
    again_above: float
    """Tokens of context whose keys and values the second-level cache keeps for them."""


class KernelTimer:
    """Times of kernels on one GPU (s, not yet on the grid).

    Parameters
    ----------
    gpu : GPUSpec
        Its peaks and the constants of the kernel law.
    generation : str
        Software of the engine, see `EngineProfile.kernel_generation`.
    quantises : str
        See `EngineProfile`; ``"left out"``: multiplications alone, also with scales by blocks.
    splits_attention : bool
        See `EngineProfile`.
    """

    __slots__ = (
        "_attention_bandwidth",
        "_attention_bandwidth_8bit",
        "_attention_flops",
        "_block",
        "_block_s",
        "_cached",
        "_elementwise_bandwidth",
        "_elementwise_fixed_s",
        "_expert_kernels",
        "_gemm_bandwidth",
        "_gemm_bandwidth_few",
        "_gemm_flops",
        "_gemm_flops_4bit",
        "_gemm_flops_8bit",
        "_gpu",
        "_l2_bytes",
        "_native",
        "_norm_fixed_s",
        "_num_sms",
        "_p",
        "_prefill_bandwidth",
        "_prefill_p",
        "_quantises",
        "_splits_attention",
        "attention_fixed_s",
        "constants",
        "fixed_s",
    )

    def __init__(
        self,
        gpu: GPUSpec,
        generation: str = "",
        *,
        quantises: str = "fused",
        splits_attention: bool = False,
    ) -> None:
        constants = gpu.constants_of(generation)
        bandwidth = gpu.memory_bandwidth
        self.constants: KernelConstants = constants
        self._gpu = gpu
        self._expert_kernels: dict[str, ExpertKernel | None] = {}
        self._native = frozenset(gpu.native_8bit)
        self._gemm_flops = constants.mfu_gemm * gpu.flops_16bit
        mfu_8bit = _or(constants.mfu_gemm_8bit, constants.mfu_gemm)
        self._gemm_flops_8bit = (
            self._gemm_flops if gpu.flops_8bit is None else mfu_8bit * gpu.flops_8bit
        )
        # Multiplications by blocks: rate, bandwidth, latency.
        self._block: tuple[float, float, float] | None = None
        if constants.fixed_block_s is not None and gpu.flops_8bit is not None:
            self._block = (
                _or(constants.mfu_gemm_block, mfu_8bit) * gpu.flops_8bit,
                _or(constants.mbu_gemm_block, constants.mbu_gemm) * bandwidth,
                constants.fixed_block_s,
            )
        self._gemm_flops_4bit = _or(gpu.reached_nvfp4, 0.0)
        self._gemm_bandwidth = constants.mbu_gemm * bandwidth
        self._gemm_bandwidth_few = _or(constants.mbu_gemm_few, constants.mbu_gemm) * bandwidth
        self._attention_flops = constants.mfu_attention * gpu.flops_16bit
        self._attention_bandwidth = constants.mbu_attention * bandwidth
        mbu_8bit = _or(constants.mbu_attention_8bit, constants.mbu_attention)
        by_sms = _or(constants.attention_sm_8bit, inf) * gpu.num_sms
        self._attention_bandwidth_8bit = min(mbu_8bit * bandwidth, by_sms)
        self._prefill_bandwidth = _or(constants.mbu_prefill, constants.mbu_attention) * bandwidth
        self._elementwise_bandwidth = {
            "norm": _or(constants.mbu_norm, constants.mbu_elementwise) * bandwidth,
            "rope": _or(constants.mbu_rope, constants.mbu_elementwise) * bandwidth,
            "activation": _or(constants.mbu_activation, constants.mbu_elementwise) * bandwidth,
            "add": _or(constants.mbu_add, constants.mbu_elementwise) * bandwidth,
            "embedding": _or(constants.mbu_embedding, constants.mbu_elementwise) * bandwidth,
            "other": constants.mbu_elementwise * bandwidth,
        }
        self._cached = {
            "norm": constants.cached_norm,
            "rope": constants.cached_rope,
            "activation": constants.cached_activation,
            "add": constants.cached_add,
            "embedding": constants.cached_embedding,
            "other": 1.0,
        }
        self._l2_bytes = gpu.l2_bytes
        self._splits_attention = splits_attention or constants.mixed_tile == 0.0
        self._quantises = quantises
        self._block_s = constants.attention_block_s / gpu.num_sms
        self._num_sms = float(gpu.num_sms)
        self._p = constants.smooth_p
        self._prefill_p = _or(constants.prefill_p, constants.smooth_p)
        self.fixed_s = constants.fixed_s
        self._elementwise_fixed_s = constants.elementwise_fixed_s
        self._norm_fixed_s = _or(constants.norm_fixed_s, constants.elementwise_fixed_s or 0.0)
        self.attention_fixed_s = _or(constants.attention_fixed_s, constants.fixed_s)

    def operator_s(self, operator: Operator) -> float:
        """Time of a multiplication or an elementwise kernel."""
        if operator.routing is not None:
            kernel = self._expert_kernel(operator.routing.weights)
            if kernel is not None:
                return self._experts_s(kernel, operator, operator.routing)
        if operator.kind == "gemm":
            multiplied = self._number_bytes(operator.arithmetic)
            return self.gemm_s(
                operator.flops,
                operator.bytes,
                multiplied,
                operator.rows,
                operator.cols,
                operator.groups,
                behind_norm=operator.name in _BEHIND_NORM,
                unpacks=operator.weight_bytes < ACTIVATION_BYTES == multiplied,
                by_blocks=operator.weight_bytes > 1.0 == multiplied,
            )
        return self.elementwise_s(operator.bytes, operator.family, operator.rows)

    def _expert_kernel(self, weights: str) -> ExpertKernel | None:
        if weights not in self._expert_kernels:
            found = kernel_for(self._gpu, self.constants.experts, weights)
            self._expert_kernels[weights] = found
        return self._expert_kernels[weights]

    def _experts_s(self, kernel: ExpertKernel, operator: Operator, routing: Routing) -> float:
        """Time of one of the kernels of routed experts; their activation is one like any other.

        Sorting tokens by expert takes the latency of the call, adding up what scales with numbers.
        """
        if operator.kind == "gemm":
            return multiplication_s(kernel, self._gpu, operator, routing)
        if operator.name in ALIGN_KERNELS:
            return kernel.fixed_s / len(ALIGN_KERNELS)
        return kernel.number_s * 0.5 * operator.flops

    def _number_bytes(self, arithmetic: str) -> float:
        """Bytes of the numbers that are multiplied for weights of this arithmetic."""
        if arithmetic == "nvfp4" and self._gemm_flops_4bit > 0.0:
            return 0.5
        return 1.0 if arithmetic in self._native else ACTIVATION_BYTES

    def gemm_s(
        self,
        flops: float,
        num_bytes: float,
        number_bytes: float,
        rows: float = 0.0,
        cols: float = 0.0,
        groups: float = 1.0,
        *,
        behind_norm: bool = False,
        unpacks: bool = False,
        by_blocks: bool = False,
    ) -> float:
        """Time of a matrix multiplication, by the peak of the numbers that are multiplied.

        Those of one byte use the 8-bit peak if there is one, those of half a byte the 4-bit peak.

        Parameters
        ----------
        flops, num_bytes, number_bytes : float
            Work, traffic (bytes), bytes of the numbers that are multiplied: weights that the GPU
            does not multiply as they are stored are brought to 16 bits first.
        rows, cols : float
            Shape of the result; 0 leaves tiles out.
        groups : float
            Multiplications of that shape in one kernel.
        behind_norm : bool
            A norm makes its input, and can bring it to 8 bits on the way.
        unpacks : bool
            Its kernel brings the weights to 16 bits on the way.
        by_blocks : bool
            Its weights and inputs have a scale per block.
        """
        peak, quantise_s, fixed_s = self._gemm_flops, 0.0, self.fixed_s
        in_4_bits = number_bytes == 0.5 and self._gemm_flops_4bit > 0.0
        if number_bytes == 1.0 or in_4_bits:
            peak = self._gemm_flops_4bit if in_4_bits else self._gemm_flops_8bit
            unfused = self._quantises == "unfused" and not behind_norm
            if (unfused or self._quantises == "apart") and cols > 0.0:
                quantise_s = self.elementwise_s(QUANTISE_BYTES * 0.5 * flops / cols, "activation")
        bandwidth = self._gemm_bandwidth
        if 0.0 < rows <= FEW_ROWS and groups <= 1.0:
            bandwidth = self._gemm_bandwidth_few
        if by_blocks and self._block is not None:
            peak, bandwidth, fixed_s = self._block
            if self._quantises != "left out":
                quantise_s = self.elementwise_s(QUANTISE_BYTES * 0.5 * flops / cols, "activation")
        waves = self.constants.gemm_waves
        if waves is not None and rows > 0.0:
            tiles = GROUPED_TILES if unpacks or groups > 1.0 else GEMM_TILES
            flops = self._tiled_flops(flops, rows, cols, groups, waves, tiles)
        law = smooth_max(flops / peak, num_bytes / bandwidth, self._p)
        return law + fixed_s + quantise_s

    def _tiled_flops(
        self,
        flops: float,
        rows: float,
        cols: float,
        groups: float,
        waves: float,
        shapes: Tiles,
    ) -> float:
        """FLOPs that take as long in whole tiles and, by the share `waves`, in whole waves."""
        best = 0.0
        per_result = flops / (rows * cols * groups)
        loss, sms = self.constants.gemm_tile_loss, self._num_sms
        for tile_rows, tile_cols in shapes:
            tiles = ceil(rows / tile_rows) * ceil(cols / tile_cols) * groups / sms
            tiles += waves * (ceil(tiles) - tiles)
            slower = 1.0 + 0.5 * loss * (128.0 / tile_rows + 128.0 / tile_cols - 1.5)
            padded = tiles * sms * tile_rows * tile_cols * per_result * slower
            if best == 0.0 or padded < best:
                best = padded
        return best

    def elementwise_s(self, num_bytes: float, family: str = "other", rows: float = 0.0) -> float:
        """Time of a norm, rotary embedding, activation, copy: bandwidth and a least time.

        Parameters
        ----------
        num_bytes : float
            Traffic (bytes); of it the second-level cache holds what it has room for.
        family : str
            See `operators.Operator.family`.
        rows : float
            Tokens; 0 leaves out what rows cost.
        """
        constants = self.constants
        cached = min(num_bytes, self._l2_bytes)
        gain = self._cached[family]
        memory_s = (num_bytes - cached + cached / gain) / self._elementwise_bandwidth[family]
        memory_s += constants.row_s * rows / self._num_sms
        if self._elementwise_fixed_s is None:
            return memory_s + self.fixed_s
        least_s = self._norm_fixed_s if family == "norm" else self._elementwise_fixed_s
        if rows > 0.0 and family != "add":
            least_s += constants.row_chain_s * num_bytes / rows / ROW_BYTES
        return smooth_max(memory_s, least_s, self._p)

    def prefill_attention_s(self, flops: float, num_bytes: float) -> float:
        """Time of prefill attention without the kernel's fixed latency."""
        return smooth_max(
            flops / self._attention_flops, num_bytes / self._prefill_bandwidth, self._prefill_p
        )

    def recurrence_s(self, flops: float, num_bytes: float) -> float:
        """Time of the recurrence of linear attention or a state-space layer (s).

        No such kernel is among the measured ones: the shares of attention stand in for its own.
        """
        law = smooth_max(
            flops / self._attention_flops, num_bytes / self._attention_bandwidth, self._p
        )
        return law + self.attention_fixed_s

    def prefill_flops(self, flops: float, padded_flops: float, blocks: float) -> float:
        """FLOPs that take as long as `flops` do in whole waves, by the share of the GPU.

        Parameters
        ----------
        flops : float
            Work of the kernel.
        padded_flops : float
            The same in whole tiles of `KernelConstants.prefill_tile` queries.
        blocks : float
            Tiles times heads.
        """
        share = self.constants.prefill_waves
        if share == 0.0 or blocks == 0.0:
            return flops
        waves = blocks / self._num_sms
        return flops + share * (padded_flops * ceil(waves) / waves - flops)

    def decode_terms(self, work: AttentionWork, num_decodes: int) -> DecodeTerms:
        """Return the time of decode attention of `num_decodes` sequences (s).

        Two times make most of it: that of the blocks, which have to begin and to end and move
        queries and results, and that of the cache and its arithmetic, stretched by part waves.
        Beside them the tokens of one sequence are a chain (the mean context times a constant), and
        kernels that split long contexts pay for putting the parts together.
        """
        constants = self.constants
        blocks = num_decodes * work.kv_heads / self._num_sms
        per_token = self._per_token_s(work)
        if constants.decode_waves > 0.0:
            per_token *= 1.0 + constants.decode_waves * (wave_share(blocks) - 1.0)
        fixed_s, block_s, overlap = self.attention_fixed_s, self._block_s, constants.decode_overlap
        if work.cache_bytes == 1.0:
            fixed_s = _or(constants.attention_fixed_8bit_s, fixed_s)
            block_s = _or(constants.attention_block_8bit_s, block_s * self._num_sms) / self._num_sms
            overlap = _or(constants.decode_overlap_8bit, overlap)
        begin_s = self._sequence_s(work, block_s) * num_decodes
        splits = constants.attention_split_s > 0.0 and blocks < SPLIT_BLOCKS
        return DecodeTerms(
            const=fixed_s + (1.0 - overlap) * begin_s,
            linear=(1.0 - overlap) * per_token + constants.attention_context_s / num_decodes,
            root=overlap * begin_s,
            rate=overlap * per_token,
            split=constants.attention_split_s if splits else 0.0,
            split_above=SPLIT_TOKENS * num_decodes if splits else inf,
        )

    def mixed_terms(self, work: AttentionWork, num_decodes: int) -> MixedTerms | None:
        """Return what `num_decodes` sequences cost in one kernel with a prefill chunk (s).

        Every query head of a sequence is a block that fills a whole tile with its one query, one
        such block per SM at a time, and works through the context alone. Blocks of the same KV
        head that run side by side read the cache once; those of a later wave find it in the
        second-level cache if it has room for the tokens of one KV head.

        Returns
        -------
        MixedTerms or None
            None where decodes have kernels of their own beside a chunk; multi-head latent
            attention always does, which decodes in another form than it prefills.
        """
        if self._splits_attention or work.expand_flops > 0.0:
            return None
        constants, sms = self.constants, self._num_sms
        blocks = num_decodes * work.heads
        block_s = _or(constants.mixed_block_s, constants.attention_block_s) / sms
        tile_s = constants.mixed_tile * work.prefill_flops / work.heads
        tile_s /= constants.mixed_mfu * self._attention_flops / sms
        group = work.heads / work.kv_heads
        turns = group / min(group, max(1.0, sms // num_decodes))
        read_s = work.decode_kv_bytes / self._attention_bandwidth
        return MixedTerms(
            const=(block_s * work.heads + work.io_bytes / self._attention_bandwidth) * num_decodes,
            tile=tile_s * ceil(blocks / sms) / num_decodes,
            read=read_s,
            again=(turns - 1.0) * read_s,
            again_above=KEPT_FOR_HEADS * self._l2_bytes * work.kv_heads / work.decode_kv_bytes,
        )

    def mixed_s(self, terms: MixedTerms, context_tokens: int) -> float:
        """Time of decodes beside a chunk, over `context_tokens` of context together (s)."""
        read_s = terms.read * context_tokens
        read_s += terms.again * max(0.0, context_tokens - terms.again_above)
        return terms.const + smooth_max(terms.tile * context_tokens, read_s, self._p)

    def _sequence_s(self, work: AttentionWork, block_s: float) -> float:
        """Time of the blocks of one decoding sequence (s), with its query and result."""
        return block_s * work.kv_heads + work.io_bytes / self._attention_bandwidth

    def _per_token_s(self, work: AttentionWork) -> float:
        """Time of a token of context (s), its cache and its arithmetic.

        Both grow with the tokens, and so does their smooth maximum.
        """
        bandwidth = self._attention_bandwidth
        if work.cache_bytes == 1.0:
            bandwidth = self._attention_bandwidth_8bit
        return smooth_max(
            work.decode_flops / self._attention_flops, work.decode_kv_bytes / bandwidth, self._p
        )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
