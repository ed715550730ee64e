"""The time of one kernel on one GPU: a smooth roofline plus a fixed latency.

``(compute^p + memory^p)^(1/p) + fixed`` with ``compute = flops / (mfu x peak)`` and ``memory =
bytes / (mbu x bandwidth)``. A plain maximum without the fixed latency is off by 10-19 % on matrix
multiplications and by more than 100 % on decode attention (measured sets, see docs). Finer terms,
each left out by default: tiles and waves of multiplications and attention, and the chain of one
sequence's context in decode attention.
"""

from __future__ import annotations

from math import ceil
from typing import Final

from simcluster.roofline.operators import AttentionWork, Operator
from simcluster.specs import GPUSpec, KernelConstants

GEMM_TILES: Final = ((128.0, 256.0), (128.0, 128.0), (64.0, 128.0), (64.0, 64.0))
"""Rows and columns of the result that one block computes; the fastest of them counts."""
PREFILL_TILE: Final = 128.0
"""Queries that one block of prefill attention computes."""
QUANTISE_BYTES: Final = 3.0
"""Traffic of bringing one number from 16 to 8 bits (bytes)."""
_ONE_BLOCK: Final = 1.14
_TWO_BLOCKS: Final = 1.52
"""Time of a part wave of decode attention with one and with two blocks on an SM, relative to the
SM's share of the bandwidth: one block alone streams at 0.88 of it, and two together still pay for
being short (FlashAttention-2 on A100 with 24 to 128 sequences and 4 KV heads, Vidur)."""


def smooth_max(a: float, b: float, p: float) -> float:
    """Return ``(a^p + b^p)^(1/p)``, between the maximum and the sum of two times (s), both >= 0.

    >>> smooth_max(3.0, 4.0, 2.0)
    5.0
    """
    high, low = (a, b) if a > b else (b, a)
    if low == 0.0:
        return high
    return float(high * (1.0 + (low / high) ** p) ** (1.0 / p))


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


class KernelTimer:
    """Times of kernels on one GPU (s, not yet on the grid).

    Parameters
    ----------
    gpu : GPUSpec
        Its peaks and the constants of the kernel law.
    generation : str
        Software of the engine, see `EngineProfile.kernel_generation`.
    quantises_apart : bool
        See `EngineProfile.quantises_apart`.
    """

    __slots__ = (
        "_attention_bandwidth",
        "_attention_flops",
        "_block_s",
        "_elementwise_bandwidth",
        "_elementwise_fixed_s",
        "_gemm_bandwidth",
        "_gemm_flops",
        "_gemm_flops_8bit",
        "_grouped",
        "_norm_fixed_s",
        "_num_sms",
        "_p",
        "_prefill_bandwidth",
        "_prefill_p",
        "_quantise_s",
        "_quantise_s_per_number",
        "attention_fixed_s",
        "constants",
        "fixed_s",
    )

    def __init__(
        self, gpu: GPUSpec, generation: str = "", *, quantises_apart: bool = False
    ) -> None:
        constants = gpu.constants_of(generation)
        bandwidth = gpu.memory_bandwidth
        self.constants: KernelConstants = constants
        self._gemm_flops = constants.mfu_gemm * gpu.flops_16bit
        mfu_8bit = _or(constants.mfu_gemm_8bit, constants.mfu_gemm)
        self._gemm_flops_8bit = (
            self._gemm_flops if gpu.flops_8bit is None else mfu_8bit * gpu.flops_8bit
        )
        self._gemm_bandwidth = constants.mbu_gemm * bandwidth
        self._grouped = (
            _or(constants.mfu_grouped, constants.mfu_gemm) / constants.mfu_gemm,
            _or(constants.mbu_grouped, constants.mbu_gemm) / constants.mbu_gemm,
        )
        self._attention_flops = constants.mfu_attention * gpu.flops_16bit
        self._attention_bandwidth = constants.mbu_attention * bandwidth
        self._prefill_bandwidth = _or(constants.mbu_prefill, constants.mbu_attention) * bandwidth
        self._elementwise_bandwidth = {
            "norm": _or(constants.mbu_norm, constants.mbu_elementwise) * bandwidth,
            "rope": _or(constants.mbu_rope, constants.mbu_elementwise) * bandwidth,
            "activation": _or(constants.mbu_activation, constants.mbu_elementwise) * bandwidth,
            "add": _or(constants.mbu_add, constants.mbu_elementwise) * bandwidth,
            "embedding": _or(constants.mbu_embedding, constants.mbu_elementwise) * bandwidth,
            "other": constants.mbu_elementwise * bandwidth,
        }
        self._quantise_s = constants.quantise_s if quantises_apart else None
        mbu_quantise = _or(constants.mbu_quantise, constants.mbu_elementwise)
        self._quantise_s_per_number = QUANTISE_BYTES / (mbu_quantise * bandwidth)
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
        if operator.kind == "gemm":
            return self.gemm_s(
                operator.flops,
                operator.bytes,
                operator.weight_bytes,
                operator.rows,
                operator.cols,
                operator.groups,
            )
        return self.elementwise_s(operator.bytes, operator.family)

    def gemm_s(
        self,
        flops: float,
        num_bytes: float,
        weight_bytes: float,
        rows: float = 0.0,
        cols: float = 0.0,
        groups: float = 1.0,
    ) -> float:
        """Time of a matrix multiplication; one-byte weights use the 8-bit peak where there is one.

        Half-byte weights are unpacked and multiplied in 16 bits.

        Parameters
        ----------
        flops, num_bytes, weight_bytes : float
            Work, traffic (bytes), bytes of one weight.
        rows, cols : float
            Shape of the result; 0 leaves tiles out.
        groups : float
            Multiplications of that shape in one kernel.
        """
        peak, quantise_s = self._gemm_flops, 0.0
        if weight_bytes == 1.0:
            peak = self._gemm_flops_8bit
            if self._quantise_s is not None and cols > 0.0:
                inputs = 0.5 * flops / cols
                quantise_s = self._quantise_s + inputs * self._quantise_s_per_number
        bandwidth = self._gemm_bandwidth
        waves = self.constants.gemm_waves
        if waves is not None and rows > 0.0:
            flops = self._tiled_flops(flops, rows, cols, groups, waves)
        if groups > 1.0:
            mfu, mbu = self._grouped
            peak, bandwidth = mfu * peak, mbu * bandwidth
        law = smooth_max(flops / peak, num_bytes / bandwidth, self._p)
        return law + self.fixed_s + quantise_s

    def _tiled_flops(
        self, flops: float, rows: float, cols: float, groups: float, waves: float
    ) -> float:
        """FLOPs that take as long in whole tiles and, by the share `waves`, in whole waves."""
        best = 0.0
        per_result = flops / (rows * cols * groups)
        loss, sms = self.constants.gemm_tile_loss, self._num_sms
        for tile_rows, tile_cols in GEMM_TILES:
            tiles = ceil(rows / tile_rows) * ceil(cols / tile_cols) * groups / sms
            tiles += waves * (ceil(tiles) - tiles)
            slower = 1.0 + 0.5 * loss * (128.0 / tile_rows + 128.0 / tile_cols - 1.5)
            padded = tiles * sms * tile_rows * tile_cols * per_result * slower
            if best == 0.0 or padded < best:
                best = padded
        return best

    def elementwise_s(self, num_bytes: float, family: str = "other") -> float:
        """Time of a norm, rotary embedding, activation, copy: bandwidth and a least time."""
        memory_s = num_bytes / self._elementwise_bandwidth[family]
        if self._elementwise_fixed_s is None:
            return memory_s + self.fixed_s
        least_s = self._norm_fixed_s if family == "norm" else self._elementwise_fixed_s
        return smooth_max(memory_s, least_s, self._p)

    def prefill_attention_s(self, flops: float, num_bytes: float) -> float:
        """Time of prefill attention without the kernel's fixed latency."""
        return smooth_max(
            flops / self._attention_flops, num_bytes / self._prefill_bandwidth, self._prefill_p
        )

    def prefill_flops(self, flops: float, padded_flops: float, blocks: float) -> float:
        """FLOPs that take as long as `flops` do in whole waves, by the share of the GPU.

        Parameters
        ----------
        flops : float
            Work of the kernel.
        padded_flops : float
            The same in whole tiles of `PREFILL_TILE` queries.
        blocks : float
            Tiles times heads.
        """
        share = self.constants.prefill_waves
        if share == 0.0 or blocks == 0.0:
            return flops
        waves = blocks / self._num_sms
        return flops + share * (padded_flops * ceil(waves) / waves - flops)

    def decode_attention_s(self, work: AttentionWork) -> tuple[float, float]:
        """Return the slopes of decode attention: s per sequence, s per token attended to.

        The time of the kernel is ``attention_fixed_s + per_sequence x sequences + per_token x
        tokens``: compute and memory time both grow with the tokens, and so does their smooth
        maximum. `decode_slope` has the finer terms.
        """
        per_sequence = self._block_s * work.kv_heads + work.io_bytes / self._attention_bandwidth
        per_token = smooth_max(
            work.decode_flops / self._attention_flops,
            work.decode_kv_bytes / self._attention_bandwidth,
            self._p,
        )
        return per_sequence, per_token

    def mixed_sequence_s(self, work: AttentionWork) -> float:
        """Return what a decoding sequence costs beside a prefill chunk (s), context apart."""
        per_sequence, _ = self.decode_attention_s(work)
        if self.constants.mixed_block_s is None:
            return per_sequence
        block_s = self.constants.mixed_block_s / self._num_sms
        return per_sequence + (block_s - self._block_s) * work.kv_heads

    def decode_slope(self, work: AttentionWork, num_decodes: int) -> tuple[float, float]:
        """Return what one token of context costs among `num_decodes` sequences (s).

        Two times make it up: that of the cache and the arithmetic, stretched by part waves, and
        that of the chain which the tokens of one sequence are (the mean context times a constant,
        as a slope over the total). In a decode step kernels split long contexts and pay for
        putting the parts together: the sum of the two. Beside a prefill chunk they do not split,
        and the longer one counts: a smooth maximum.

        Returns
        -------
        tuple of float
            In a decode step, and beside a prefill chunk.
        """
        constants = self.constants
        _, alone = self.decode_attention_s(work)
        mixed = alone / constants.mixed_mbu
        if constants.decode_waves > 0.0:
            waves = num_decodes * work.kv_heads / self._num_sms
            alone *= 1.0 + constants.decode_waves * (wave_share(waves) - 1.0)
        chain = constants.attention_context_s
        mixed_chain = _or(constants.mixed_context_s, chain)
        return (
            alone + chain / num_decodes,
            smooth_max(mixed, mixed_chain / num_decodes, self._p),
        )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
