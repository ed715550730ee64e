"""The kernel law of `simcluster.roofline.kernels` for whole arrays of measured kernels.

A test holds the two to equal times; this one exists because a fit asks for a hundred thousand.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simcluster.catalog.specs import GPUSpec, KernelConstants
from simcluster.fidelity.calibrate.readers.samples import ELEMENTWISE, Mask, Samples
from simcluster.roofline.kernels import (
    FEW_ROWS,
    GEMM_TILES,
    GROUPED_TILES,
    KEPT_FOR_HEADS,
    QUANTISE_BYTES,
    ROW_BYTES,
    SPLIT_BLOCKS,
    SPLIT_TOKENS,
    wave_share,
)
from simcluster.units import FloatArray

_ACTIVATION_BYTES = 2.0


def kernel_s(rows: Samples, gpu: GPUSpec, constants: KernelConstants) -> FloatArray:
    """Times of GEMMs, elementwise kernels and attention (s), shape ``(n,)``; NaN for others."""
    times = np.full(len(rows), np.nan)
    gemm = np.isin(rows.operator, ("gemm", "grouped_gemm"))
    if gemm.any():
        times[gemm] = gemm_s(rows.take(gemm), gpu, constants)
    moe = rows.operator == "moe"
    if moe.any():
        times[moe] = moe_s(rows.take(moe), gpu, constants)
    elementwise = np.isin(rows.operator, tuple(ELEMENTWISE))
    if elementwise.any():
        times[elementwise] = elementwise_s(rows.take(elementwise), gpu, constants)
    attention = np.char.startswith(rows.operator, "attention")
    if attention.any():
        times[attention] = attention_s(rows.take(attention), gpu, constants)
    return times


def smooth_max(a: FloatArray, b: FloatArray, p: float) -> FloatArray:
    """``(a^p + b^p)^(1/p)`` without overflow; both >= 0 and at least one > 0."""
    high = np.maximum(a, b)
    low: FloatArray = np.minimum(a, b) / high
    result: FloatArray = high * (1.0 + low**p) ** (1.0 / p)
    return result


def gemm_s(rows: Samples, gpu: GPUSpec, constants: KernelConstants) -> FloatArray:
    """Times of plain and grouped multiplications (s)."""
    grouped = np.isin(rows.operator, ("grouped_gemm", "moe"))
    top_k, experts = _one_if_nan(rows["top_k"]), _one_if_nan(rows["num_experts"])
    m, n, k = rows["m"], rows["n"], rows["k"]
    routed = m * top_k
    at_random = experts * (1.0 - (1.0 - top_k / experts) ** m)
    touched = np.where(np.isnan(rows["touched"]), at_random, rows["touched"])
    groups = np.where(grouped, touched, 1.0)
    flops = 2.0 * routed * n * k
    moved = rows.bytes * groups * n * k + _ACTIVATION_BYTES * routed * (n + k)
    mfu_8bit = constants.mfu_gemm if constants.mfu_gemm_8bit is None else constants.mfu_gemm_8bit
    peak = np.full(len(rows), constants.mfu_gemm * gpu.flops_16bit)
    if gpu.flops_8bit is not None:
        peak[rows.bytes == 1.0] = mfu_8bit * gpu.flops_8bit
    bandwidth = np.full(len(rows), constants.mbu_gemm * gpu.memory_bandwidth)
    several = groups > 1.0
    if constants.mbu_gemm_few is not None:
        few = (routed <= FEW_ROWS) & ~several
        bandwidth[few] = constants.mbu_gemm_few * gpu.memory_bandwidth
    if constants.mfu_grouped is not None:
        peak[several] *= constants.mfu_grouped / constants.mfu_gemm
    if constants.mbu_grouped is not None:
        bandwidth[several] *= constants.mbu_grouped / constants.mbu_gemm
    tuned = several & tuned_experts(rows, constants)
    if constants.mfu_tuned is not None:
        peak[tuned] *= constants.mfu_tuned / (constants.mfu_grouped or constants.mfu_gemm)
    if constants.mbu_tuned is not None:
        bandwidth[tuned] *= constants.mbu_tuned / (constants.mbu_grouped or constants.mbu_gemm)
    if constants.gemm_waves is not None:
        flops = _tiled_flops(routed / groups, n, k, groups, gpu, constants)
    law = smooth_max(flops / peak, moved / bandwidth, constants.smooth_p) + constants.fixed_s
    law += np.where(several, constants.grouped_fixed_s, 0.0)
    if constants.quantise_s is not None and gpu.flops_8bit is not None:
        mbu = constants.mbu_quantise or constants.mbu_elementwise
        law += np.where(
            rows.bytes == 1.0,
            constants.quantise_s + QUANTISE_BYTES * routed * k / (mbu * gpu.memory_bandwidth),
            0.0,
        )
    return law


def tuned_experts(rows: Samples, constants: KernelConstants) -> Mask:
    """Which rows are of experts for which the engine ships tuned tiles."""
    found = np.zeros(len(rows), dtype=np.bool_)
    widths = rows.numbers.get("width", rows["n"])
    for num, width in constants.tuned_experts:
        found |= (rows["num_experts"] == num) & (widths == width)
    return found


def moe_s(rows: Samples, gpu: GPUSpec, constants: KernelConstants) -> FloatArray:
    """Times of a gated MLP of experts (s): two grouped multiplications and the activation."""
    numbers = dict(rows.numbers)
    hidden, width = numbers["k"], numbers["n"]
    numbers["width"] = width
    up = gemm_s(replace(rows, numbers=numbers | {"n": 2.0 * width}), gpu, constants)
    down = gemm_s(replace(rows, numbers=numbers | {"n": hidden, "k": width}), gpu, constants)
    routed = numbers["m"] * numbers["top_k"]
    activation = replace(
        rows,
        operator=np.full(len(rows), "activation"),
        numbers=numbers | {"m": routed},
    )
    return up + down + elementwise_s(activation, gpu, constants)


def _tiled_flops(
    rows: FloatArray,
    cols: FloatArray,
    inner: FloatArray,
    groups: FloatArray,
    gpu: GPUSpec,
    constants: KernelConstants,
) -> FloatArray:
    waves = constants.gemm_waves or 0.0
    best = np.full(len(rows), np.inf)
    for tile_rows, tile_cols in GROUPED_TILES:
        tiles = np.ceil(rows / tile_rows) * np.ceil(cols / tile_cols) * groups / gpu.num_sms
        tiles += waves * (np.ceil(tiles) - tiles)
        slower = 128.0 / tile_rows + 128.0 / tile_cols - 1.5
        padded = tiles * gpu.num_sms * tile_rows * tile_cols * 2.0 * inner
        padded *= 1.0 + 0.5 * constants.gemm_tile_loss * slower
        there = (groups > 1.0) | ((tile_rows, tile_cols) in GEMM_TILES)
        np.minimum(best, np.where(there, padded, np.inf), out=best)
    return best


def elementwise_s(rows: Samples, gpu: GPUSpec, constants: KernelConstants) -> FloatArray:
    """Times of elementwise kernels (s)."""
    moved = np.empty(len(rows))
    chain = np.zeros(len(rows))
    mbu = np.full(len(rows), constants.mbu_elementwise)
    gain = np.ones(len(rows))
    least = np.full(len(rows), constants.elementwise_fixed_s or 0.0)
    for name, (family, numbers) in ELEMENTWISE.items():
        here = rows.operator == name
        row = _ACTIVATION_BYTES * numbers * rows["n"][here]
        moved[here] = row * rows["m"][here]
        if family != "add":
            chain[here] = constants.row_chain_s * row / ROW_BYTES
        own = None if family == "other" else getattr(constants, f"mbu_{family}")
        if own is not None:
            mbu[here] = own
        if family != "other":
            gain[here] = getattr(constants, f"cached_{family}")
        if family == "norm" and constants.norm_fixed_s is not None:
            least[here] = constants.norm_fixed_s
    cached = np.minimum(moved, gpu.l2_bytes)
    memory = (moved - cached + cached / gain) / (mbu * gpu.memory_bandwidth)
    memory += constants.row_s * rows["m"] / gpu.num_sms
    if constants.elementwise_fixed_s is None:
        return memory + constants.fixed_s
    return smooth_max(memory, least + chain, constants.smooth_p)


def attention_s(rows: Samples, gpu: GPUSpec, constants: KernelConstants) -> FloatArray:
    """Times of attention kernels (s): prefill, decode, or one chunk and decodes in one call."""
    prefill = rows.operator == "attention_prefill"
    mixed = rows.operator == "attention_mixed"
    fixed = constants.fixed_s
    if constants.attention_fixed_s is not None:
        fixed = constants.attention_fixed_s
    sequences = np.where(mixed, 1.0, rows["batch"])
    cached = np.where(mixed, 0.0, rows["context"])
    times = np.full(len(rows), fixed)
    if constants.attention_fixed_8bit_s is not None:
        times[~prefill & ~mixed & (rows.bytes == 1.0)] = constants.attention_fixed_8bit_s
    some = prefill | mixed
    if some.any():
        times[some] += _prefill_s(rows.take(some), sequences[some], cached[some], gpu, constants)
    if not prefill.all():
        times[~prefill] += _decode_s(rows.take(~prefill), mixed[~prefill], gpu, constants)
    return times


def _prefill_s(
    rows: Samples,
    sequences: FloatArray,
    cached: FloatArray,
    gpu: GPUSpec,
    constants: KernelConstants,
) -> FloatArray:
    new, heads, width = rows["m"], rows["num_heads"], rows["head_dim"]
    seen = 2.0 * (cached + new) - constants.attention_causal * (new - 1.0)
    flops = 2.0 * sequences * new * seen * heads * width
    tile = constants.prefill_tile
    tiles = np.ceil(new / tile)
    waves = sequences * tiles * heads / gpu.num_sms
    padded = flops * (tiles * tile / new) * np.ceil(waves) / waves
    flops = flops + constants.prefill_waves * (padded - flops)
    moved = _ACTIVATION_BYTES * 2.0 * sequences * new * heads * width
    moved += rows.bytes * 2.0 * sequences * (cached + new) * rows["num_kv_heads"] * width
    mbu = constants.mbu_attention if constants.mbu_prefill is None else constants.mbu_prefill
    return smooth_max(
        flops / (constants.mfu_attention * gpu.flops_16bit),
        moved / (mbu * gpu.memory_bandwidth),
        constants.smooth_p if constants.prefill_p is None else constants.prefill_p,
    )


def _decode_s(rows: Samples, mixed: Mask, gpu: GPUSpec, constants: KernelConstants) -> FloatArray:
    batch, heads, kv_heads = rows["batch"], rows["num_heads"], rows["num_kv_heads"]
    width, tokens = rows["head_dim"], batch * (rows["context"] + 1.0)
    bandwidth = constants.mbu_attention * gpu.memory_bandwidth
    eight = rows.bytes == 1.0
    mbu_8bit = constants.mbu_attention_8bit or constants.mbu_attention
    by_sms = np.inf if constants.attention_sm_8bit is None else constants.attention_sm_8bit
    reading_8bit = min(mbu_8bit * gpu.memory_bandwidth, by_sms * gpu.num_sms)
    reading = np.where(eight, reading_8bit, bandwidth)
    blocks = batch * kv_heads / gpu.num_sms
    per_token = smooth_max(
        4.0 * heads * width / (constants.mfu_attention * gpu.flops_16bit),
        rows.bytes * 2.0 * kv_heads * width / reading,
        constants.smooth_p,
    )
    moved_s = batch * _ACTIVATION_BYTES * 2.0 * heads * width / bandwidth
    wide_block = constants.attention_block_s
    block = np.where(eight, _or(constants.attention_block_8bit_s, wide_block), wide_block)
    begin = block * blocks + moved_s
    stretch: FloatArray = np.ones(len(rows))
    if constants.decode_waves:
        distinct, index = np.unique(blocks, return_inverse=True)
        stretch = np.array([wave_share(float(one)) for one in distinct])[index]
        stretch = 1.0 + constants.decode_waves * (stretch - 1.0)
    read = tokens * per_token * stretch
    wide_overlap = constants.decode_overlap
    overlap = np.where(eight, _or(constants.decode_overlap_8bit, wide_overlap), wide_overlap)
    alone: FloatArray = (1.0 - overlap) * (begin + read) + overlap * np.hypot(begin, read)
    alone += tokens / batch * constants.attention_context_s
    splits = (blocks < SPLIT_BLOCKS) & (tokens > SPLIT_TOKENS * batch)
    alone += np.where(splits, constants.attention_split_s, 0.0)
    if not mixed.any():
        return alone
    if constants.mixed_tile == 0.0:
        fixed = constants.attention_fixed_s
        return alone + np.where(mixed, constants.fixed_s if fixed is None else fixed, 0.0)
    beside = _beside_s(rows, tokens, moved_s, rows.bytes * 2.0 * width, gpu, constants)
    return np.where(mixed, beside, alone)


def _beside_s(
    rows: Samples,
    tokens: FloatArray,
    moved_s: FloatArray,
    head_bytes: FloatArray,
    gpu: GPUSpec,
    constants: KernelConstants,
) -> FloatArray:
    """Times of decodes in the tiles of a prefill kernel (s)."""
    batch, heads, kv_heads = rows["batch"], rows["num_heads"], rows["num_kv_heads"]
    block = constants.mixed_block_s
    begin = constants.attention_block_s if block is None else block
    tile = constants.mixed_tile * 4.0 * rows["head_dim"] * gpu.num_sms
    tile = tile / (constants.mixed_mfu * constants.mfu_attention * gpu.flops_16bit)
    group = heads / kv_heads
    turns = group / np.minimum(group, np.maximum(1.0, gpu.num_sms // batch))
    late = np.maximum(0.0, tokens - KEPT_FOR_HEADS * gpu.l2_bytes / head_bytes)
    read = kv_heads * head_bytes / (constants.mbu_attention * gpu.memory_bandwidth)
    result: FloatArray = begin * batch * heads / gpu.num_sms + moved_s
    result += smooth_max(
        tile * np.ceil(batch * heads / gpu.num_sms) * tokens / batch,
        read * (tokens + (turns - 1.0) * late),
        constants.smooth_p,
    )
    return result


def layer_sums(rows: Samples, times: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return measured and simulated times of whole layers (s), summed over their kernels."""
    members = rows.layer >= 0
    number = rows.layer[members]
    measured: FloatArray = np.bincount(number, rows.time_s[members]).astype(np.float64)
    simulated: FloatArray = np.bincount(number, times[members]).astype(np.float64)
    some = measured > 0.0
    return measured[some], simulated[some]


def _one_if_nan(values: FloatArray) -> FloatArray:
    return np.where(np.isnan(values), 1.0, values)


def _or(value: float | None, default: float) -> float:
    return default if value is None else value
