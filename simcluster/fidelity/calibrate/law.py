"""The kernel law of `simcluster.roofline.kernels` for whole arrays of measured kernels.

A test holds the two to equal times; this one exists because a fit asks for a hundred thousand.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from simcluster.catalog.expert_tiles import PEAKS
from simcluster.catalog.specs import ExpertKernel, GPUSpec, KernelConstants
from simcluster.fidelity.calibrate.readers.samples import ELEMENTWISE, Mask, Samples
from simcluster.fidelity.calibrate.tiles import tiles_of
from simcluster.roofline.experts import ALIGNED, MIDDLE_TILE, TUNED, kernel_for
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
    gemm = rows.operator == "gemm"
    if gemm.any():
        times[gemm] = gemm_s(rows.take(gemm), gpu, constants)
    for name, law in (("grouped_gemm", grouped_s), ("moe", moe_s)):
        here = rows.operator == name
        for kernel in sorted(set(rows.kernel[here].tolist())):
            some = here & (rows.kernel == kernel)
            times[some] = law(rows.take(some), gpu, constants)
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
    """Times of multiplications, one each or as many as there are experts (s)."""
    grouped = np.isin(rows.operator, ("grouped_gemm", "moe"))
    m, n, k = rows["m"], rows["n"], rows["k"]
    routed = m * _one_if_nan(rows["top_k"])
    groups = np.where(grouped, touched_experts(rows), 1.0)
    flops = 2.0 * routed * n * k
    moved = rows.bytes * groups * n * k + _ACTIVATION_BYTES * routed * (n + k)
    mfu_8bit = constants.mfu_gemm if constants.mfu_gemm_8bit is None else constants.mfu_gemm_8bit
    peak = np.full(len(rows), constants.mfu_gemm * gpu.flops_16bit)
    blocks = by_blocks(rows)
    if gpu.flops_8bit is not None:
        peak[rows.bytes == 1.0] = mfu_8bit * gpu.flops_8bit
        peak[blocks] = _or(constants.mfu_gemm_block, mfu_8bit) * gpu.flops_8bit
    bandwidth = np.full(len(rows), constants.mbu_gemm * gpu.memory_bandwidth)
    several = groups > 1.0
    if constants.mbu_gemm_few is not None:
        few = (routed <= FEW_ROWS) & ~several
        bandwidth[few] = constants.mbu_gemm_few * gpu.memory_bandwidth
    bandwidth[blocks] = _or(constants.mbu_gemm_block, constants.mbu_gemm) * gpu.memory_bandwidth
    if constants.gemm_waves is not None:
        flops = _tiled_flops(routed / groups, n, k, groups, gpu, constants)
    law = smooth_max(flops / peak, moved / bandwidth, constants.smooth_p)
    law += np.where(blocks, _or(constants.fixed_block_s, constants.fixed_s), constants.fixed_s)
    if constants.quantise_s is not None and gpu.flops_8bit is not None:
        mbu = constants.mbu_quantise or constants.mbu_elementwise
        law += np.where(
            blocks | (rows.bytes == 1.0),
            constants.quantise_s + QUANTISE_BYTES * routed * k / (mbu * gpu.memory_bandwidth),
            0.0,
        )
    return law


def by_blocks(rows: Samples) -> Mask:
    """Which multiplications have 8-bit weights with a scale per block."""
    return np.asarray((rows.operator == "gemm") & (rows.bytes > 1.0) & (rows.bytes < 1.01))


def moe_s(rows: Samples, gpu: GPUSpec, constants: KernelConstants) -> FloatArray:
    """Times of a gated MLP of experts (s), all with one kernel.

    Sorting, two grouped multiplications, the activation between them and the sum.
    """
    numbers = dict(rows.numbers)
    hidden, width, routed = numbers["k"], numbers["n"], numbers["m"] * numbers["top_k"]
    activation = replace(
        rows,
        operator=np.full(len(rows), "activation"),
        numbers=numbers | {"m": routed},
    )
    whole = elementwise_s(activation, gpu, constants)
    numbers["width"] = width
    up = replace(rows, numbers=numbers | {"n": 2.0 * width})
    down = replace(rows, numbers=numbers | {"n": hidden, "k": width})
    for part in (up, down):
        whole += grouped_s(part, gpu, constants)
    kernel = expert_kernel(rows, gpu, constants)
    if kernel is None:
        return whole
    return whole + kernel.fixed_s + kernel.number_s * routed * hidden


def expert_kernel(rows: Samples, gpu: GPUSpec, constants: KernelConstants) -> ExpertKernel | None:
    """Return the kernel for experts that all `rows` have; the engine's own where none is named."""
    weights, tiles = weights_and_tiles(rows)
    if not tiles:
        return kernel_for(gpu, constants.experts, weights)
    for kernel in constants.experts:
        if (kernel.weights, kernel.tiles) == (weights, tiles):
            return kernel
    return None


def weights_and_tiles(rows: Samples) -> tuple[str, str]:
    """Return weights and rule of tiles of the kernel for experts of `rows`; ``""`` for no rule.

    Rows that name no kernel have the usual weights of as many bytes.
    """
    weights, _, tiles = str(rows.kernel[0]).partition(" ")
    return weights or {2.0: "bf16", 1.0: "fp8"}.get(float(rows.bytes[0]), "int4"), tiles


def grouped_s(rows: Samples, gpu: GPUSpec, constants: KernelConstants) -> FloatArray:
    """Times of one grouped multiplication of experts (s), all with one kernel."""
    kernel = expert_kernel(rows, gpu, constants)
    if kernel is None:
        return gemm_s(rows, gpu, constants)
    m, n, k, top_k, experts = (rows[name] for name in ("m", "n", "k", "top_k", "num_experts"))
    routed = m * top_k
    touched = touched_experts(rows)
    tuned = tuned_experts(rows, kernel)
    tile_rows, tile_cols = (
        np.where(tuned, of_tuned, of_others)
        for of_tuned, of_others in zip(
            tiles_of(TUNED, m, routed, experts),
            tiles_of(kernel.tiles, m, routed, experts),
            strict=True,
        )
    )
    padded = np.where(tuned, np.nan, rows["padded"])
    at_random = tile_rows * touched / -np.expm1(-tile_rows * touched / routed)
    padded = np.where(np.isnan(padded), at_random, padded)
    mfu = kernel.mfu * np.where(tile_rows < MIDDLE_TILE, kernel.small_tiles, 1.0)
    mfu = mfu * np.where(tile_rows > MIDDLE_TILE, kernel.large_tiles, 1.0)
    width = rows.numbers.get("width", n)
    mfu = mfu * np.where(tuned, kernel.tuned_gain, 1.0)
    law = smooth_max(
        2.0 * padded * n * k / (mfu * getattr(gpu, PEAKS[kernel.weights])),
        (rows.bytes * touched * n * k + _ACTIVATION_BYTES * routed * (n + k))
        / (kernel.mbu * gpu.memory_bandwidth),
        kernel.smooth_p,
    )
    law *= np.where(width % ALIGNED, kernel.unaligned, 1.0)
    tiles = padded / tile_rows * np.ceil(n / tile_cols)
    result: FloatArray = law + kernel.tile_s * tiles / gpu.num_sms
    return result


def tuned_experts(rows: Samples, kernel: ExpertKernel) -> Mask:
    """Which rows are of experts for which the engine ships tuned tiles."""
    width = rows.numbers.get("width", rows["n"])
    found = np.zeros(len(rows), dtype=np.bool_)
    for num, tuned_width in kernel.tuned:
        found |= (rows["num_experts"] == num) & (width == tuned_width)
    return found


def touched_experts(rows: Samples) -> FloatArray:
    """Experts that some token visits: as measured, else as tokens pick them at random."""
    experts, top_k = rows["num_experts"], rows["top_k"]
    at_random = experts * (1.0 - (1.0 - top_k / experts) ** rows["m"])
    return np.where(np.isnan(rows["touched"]), at_random, rows["touched"])


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
