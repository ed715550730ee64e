"""Constants of the kernel law from measured kernels, by least squares on relative errors.

Three fits one after another, since each needs what the one before found: matrix multiplications
(with whole layers, where they are known), elementwise kernels, attention. Experts and 8-bit
weights then take shares of their own. Outliers beyond 10 % count less than squared.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from simcluster.catalog.specs import ExpertKernel, GPUSpec, KernelConstants, LinkSpec
from simcluster.fidelity.calibrate.law import (
    by_blocks,
    expert_kernel,
    kernel_s,
    layer_sums,
    touched_experts,
    tuned_experts,
    weights_and_tiles,
)
from simcluster.fidelity.calibrate.readers.samples import ELEMENTWISE, Mask, Samples, joined
from simcluster.fidelity.calibrate.tiles import tiles_of
from simcluster.roofline.experts import ALIGNED, MIDDLE_TILE, TUNED
from simcluster.units import NS, PS, US, FloatArray

_FORGIVEN: Final = 0.1
_MOST_ROWS: Final = 4000
"""Rows of one fit; of more every n-th is taken."""
_LAYER_WEIGHT: Final = 3.0
"""Weight of a whole layer against that of one of its kernels."""
_IN_CACHE: Final = 1.2
_SMALL: Final = 0.125
"""Decode attention that reads between 0.125 and 1.2 of the second-level cache is left out."""
_LARGE_CACHE: Final = 64e6
"""From this size on (bytes) a cache keeps weights from one timed call to the next."""
_MATTER: Final = 2.0
"""Mixed calls that take this many times as long as their chunk alone tell what decodes cost."""
_CACHED: Final = 3.0
"""Largest share of bandwidth of elementwise kernels, out of the second-level cache."""
_GAIN: Final = 8.0
"""Largest gain of a second-level cache over memory."""
_HBM_BANDWIDTH: Final = 4e12
"""Parts with more (bytes/s) read small weights from memory nearly as fast as from the cache."""
LEAST_ROWS: Final = 8
"""Kernels of one class that a fit needs."""
_SMALLEST_MESSAGE: Final = 4096.0
_LARGEST_MESSAGE: Final = 2.0**26


@dataclass(frozen=True, slots=True)
class Term:
    """One constant of a fit: where it starts and the range it may take, in its natural unit."""

    name: str
    """Field of `KernelConstants`."""
    start: float
    low: float
    high: float
    """First guess and range, in units of `scale`."""
    scale: float = 1.0
    """Times this is the field's value."""


GEMM_TERMS: Final = (
    Term("mfu_gemm", 0.7, 0.1, 1.0),
    Term("mbu_gemm", 0.8, 0.1, 1.0),
    Term("mbu_gemm_few", 0.8, 0.1, 1.0),
    Term("smooth_p", 2.0, 1.0, 4.0),
    Term("fixed_s", 4.0, 0.0, 30.0, US),
    Term("gemm_waves", 0.3, 0.0, 1.0),
    Term("gemm_tile_loss", 0.1, 0.0, 2.0),
)
ELEMENTWISE_TERMS: Final = (
    Term("elementwise_fixed_s", 2.5, 0.1, 30.0, US),
    Term("row_chain_s", 30.0, 0.0, 1000.0, NS),
    Term("row_s", 0.1, 0.0, 10.0, US),
)
ATTENTION_TERMS: Final = (Term("attention_fixed_s", 10.0, 0.0, 60.0, US),)
PREFILL_TERMS: Final = (
    Term("mfu_attention", 0.5, 0.05, 1.0),
    Term("mbu_prefill", 0.5, 0.05, 1.0),
    Term("prefill_waves", 0.5, 0.0, 1.0),
    Term("prefill_p", 1.5, 1.0, 4.0),
    Term("attention_causal", 0.8, 0.0, 1.0),
)
DECODE_TERMS: Final = (
    Term("mbu_attention", 0.8, 0.1, 1.0),
    Term("attention_block_s", 2.0, 0.0, 20.0, US),
    Term("attention_context_s", 0.5, 0.0, 10.0, 1e-9),
    Term("decode_waves", 0.3, 0.0, 1.0),
    Term("attention_split_s", 2.0, 0.0, 30.0, US),
    Term("decode_overlap", 0.5, 0.0, 1.0),
)
EIGHT_BIT_CACHE_TERMS: Final = (
    Term("mbu_attention_8bit", 0.8, 0.05, 1.0),
    Term("attention_fixed_8bit_s", 10.0, 0.0, 60.0, US),
    Term("attention_block_8bit_s", 2.0, 0.0, 20.0, US),
    Term("decode_overlap_8bit", 0.5, 0.0, 1.0),
)
MIXED_TERMS: Final = (
    Term("mixed_mfu", 0.9, 0.05, 1.0),
    Term("mixed_block_s", 5.0, 0.0, 60.0, US),
)
EIGHT_BIT_TERMS: Final = (
    Term("mfu_gemm_8bit", 0.6, 0.05, 1.0),
    Term("quantise_s", 3.0, 0.0, 30.0, US),
    Term("mbu_quantise", 0.3, 0.01, 1.0),
)
BLOCK_TERMS: Final = (
    Term("mfu_gemm_block", 0.6, 0.05, 1.0),
    Term("mbu_gemm_block", 0.8, 0.1, 1.0),
    Term("fixed_block_s", 12.0, 0.0, 100.0, US),
)
EXPERT_TERMS: Final = (
    Term("mfu", 0.4, 0.01, 1.0),
    Term("mbu", 0.7, 0.02, 1.0),
    Term("smooth_p", 3.0, 1.0, 6.0),
    Term("tile_s", 0.2, 0.0, 20.0, US),
    Term("fixed_s", 20.0, 0.0, 200.0, US),
    Term("number_s", 1.0, 0.0, 500.0, PS),
)
SMALL_TILES: Final = Term("small_tiles", 0.5, 0.05, 4.0)
LARGE_TILES: Final = Term("large_tiles", 1.0, 0.3, 4.0)
UNALIGNED: Final = Term("unaligned", 2.0, 1.0, 6.0)
TUNED_GAIN: Final = Term("tuned_gain", 2.0, 1.0, 8.0)


def fit(rows: Samples, gpu: GPUSpec, start: KernelConstants) -> KernelConstants:
    """Fit what `rows` can tell; the other constants stay as in `start`.

    Parameters
    ----------
    rows : Samples
        Measured kernels of one GPU and one generation of software.
    gpu : GPUSpec
        Its data sheet.
    start : KernelConstants
        Constants that are kept where there are no rows for them.

    Returns
    -------
    KernelConstants
    """
    constants = start
    gemms = rows.of("gemm")
    gemms = gemms.take(gemms_from_memory(gemms, gpu))
    wide = gemms.take(gemms.bytes >= 2.0)
    if len(wide) >= LEAST_ROWS:
        with_tiles = replace(constants, gemm_waves=0.0)
        constants = _fit(wide, gpu, with_tiles, GEMM_TERMS)
    constants = _fit_elementwise(rows, gpu, constants)
    constants = _fit_attention(rows, gpu, constants)
    eight_bit = gemms.take(gemms.bytes == 1.0)
    if len(eight_bit) >= LEAST_ROWS and gpu.flops_8bit is not None:
        filled = replace(constants, quantise_s=1.0 * US)
        constants = _fit(eight_bit, gpu, filled, EIGHT_BIT_TERMS)
    blocks = gemms.take(by_blocks(gemms))
    if len(blocks) >= LEAST_ROWS and gpu.flops_8bit is not None:
        constants = _fit(blocks, gpu, constants, BLOCK_TERMS)
    return _fit_experts(rows.of("grouped_gemm", "moe"), gpu, constants)


def gemms_from_memory(rows: Samples, gpu: GPUSpec) -> Mask:
    """Which multiplications are timed as a served model meets them.

    A benchmark that repeats one multiplication finds its weights in a large second-level cache. A
    model never does: it reads all its weights in turn. With caches of 64 MB and more beside GDDR
    memory those whose weights fit 1.5 times are left out, up to 2048 rows (then arithmetic rules),
    unless they were measured as parts of a layer or are known to be cold.
    """
    weights = rows.bytes * rows["n"] * rows["k"]
    everything = gpu.l2_bytes < _LARGE_CACHE or gpu.memory_bandwidth > _HBM_BANDWIDTH
    keep = (weights > 1.5 * gpu.l2_bytes) | (rows["m"] >= 2048)
    return np.asarray(keep | (rows.layer >= 0) | rows.cold | everything, dtype=np.bool_)


def decodes_from_memory(rows: Samples, gpu: GPUSpec) -> Mask:
    """Which calls of attention do not find their keys and values in the second-level cache.

    As `gemms_from_memory`. Where the latency rules, because they are few, it does not matter.
    """
    read = 2.0 * rows.bytes * rows["num_kv_heads"] * rows["head_dim"]
    read = read * rows["batch"] * rows["context"]
    prefill = rows.operator == "attention_prefill"
    everything = gpu.l2_bytes < _LARGE_CACHE
    keep = (read > _IN_CACHE * gpu.l2_bytes) | (read < _SMALL * gpu.l2_bytes)
    return np.asarray(prefill | keep | rows.cold | everything, dtype=np.bool_)


def experts_from_memory(rows: Samples, gpu: GPUSpec) -> Mask:
    """Which calls of experts read their weights from memory; as `gemms_from_memory`."""
    matrices = np.where(rows.operator == "moe", 3.0, 1.0)
    weights = rows.bytes * touched_experts(rows) * matrices * rows["n"] * rows["k"]
    everything = gpu.l2_bytes < _LARGE_CACHE or gpu.memory_bandwidth > _HBM_BANDWIDTH
    keep = (weights > 1.5 * gpu.l2_bytes) | (rows["m"] >= 2048)
    return np.asarray(keep | rows.cold | everything, dtype=np.bool_)


def _fit_experts(rows: Samples, gpu: GPUSpec, constants: KernelConstants) -> KernelConstants:
    """Fit a kernel for experts to the rows of each; others stay as they are."""
    rows = rows.take(experts_from_memory(rows, gpu))
    for name in sorted(set(rows.kernel.tolist())):
        some = rows.take(rows.kernel == name)
        if len(some) >= LEAST_ROWS:
            constants = _with(constants, _fit_kernel(some, gpu, constants))
    return constants


def first_kernel(weights: str, tiles: str) -> ExpertKernel:
    """Return what the fit of a kernel for experts starts from, see `EXPERT_TERMS`."""
    guesses: dict[str, Any] = {term.name: term.start * term.scale for term in EXPERT_TERMS}
    name, source = f"{weights} {tiles}", "first guesses"
    return ExpertKernel(name=name, weights=weights, tiles=tiles, source=source, **guesses)


def _fit_kernel(rows: Samples, gpu: GPUSpec, constants: KernelConstants) -> ExpertKernel:
    start = expert_kernel(rows, gpu, constants)
    if start is None:
        weights, tiles = weights_and_tiles(rows)
        start = first_kernel(weights, tiles or ("marlin" if weights == "int4" else "by-tokens"))
    batch = rows["m"], rows["m"] * rows["top_k"], rows["num_experts"]
    tuned = tuned_experts(rows, start)
    heights = np.where(tuned, tiles_of(TUNED, *batch)[0], tiles_of(start.tiles, *batch)[0])
    terms = list(EXPERT_TERMS)
    for term, there in (
        (SMALL_TILES, heights < MIDDLE_TILE),
        (LARGE_TILES, heights > MIDDLE_TILE),
        (UNALIGNED, rows["n"] % ALIGNED > 0.0),
        (TUNED_GAIN, tuned),
    ):
        if there.sum() >= LEAST_ROWS:
            terms.append(term)
    if not (rows.operator == "moe").any():
        terms = [term for term in terms if term.name not in ("fixed_s", "number_s")]
    known = _thinned(rows)

    def filled(x: FloatArray) -> ExpertKernel:
        values: dict[str, Any] = {
            term.name: float(value) * term.scale for term, value in zip(terms, x, strict=True)
        }
        return replace(start, **values)

    def residuals(x: FloatArray) -> FloatArray:
        times = kernel_s(known, gpu, _with(constants, filled(x)))
        return np.asarray(np.log(times / known.time_s))

    x = least_squares(
        residuals,
        [term.start for term in terms],
        [term.low for term in terms],
        [term.high for term in terms],
    )
    return filled(x)


def _with(constants: KernelConstants, kernel: ExpertKernel) -> KernelConstants:
    """Return the constants with `kernel` in the place of that of the same weights and rule."""
    others = [
        other
        for other in constants.experts
        if (other.weights, other.tiles) != (kernel.weights, kernel.tiles)
    ]
    return replace(constants, experts=(*others, kernel))


def _fit_elementwise(rows: Samples, gpu: GPUSpec, constants: KernelConstants) -> KernelConstants:
    kernels = rows.of(*ELEMENTWISE)
    if len(kernels) < LEAST_ROWS:
        return constants
    found = {ELEMENTWISE[name][0] for name in kernels.operators}
    terms = list(ELEMENTWISE_TERMS)
    filled = replace(constants, elementwise_fixed_s=constants.elementwise_fixed_s or 2.5 * US)
    if "norm" in found:
        terms.append(Term("norm_fixed_s", 3.0, 0.1, 30.0, US))
        filled = replace(filled, norm_fixed_s=3.0 * US)
    for family in sorted(found - {"other"}):
        terms.append(Term(f"mbu_{family}", 0.6, 0.05, _CACHED))
        terms.append(Term(f"cached_{family}", 1.3, 1.0, _GAIN))
        share: dict[str, Any] = {f"mbu_{family}": 0.6}
        filled = replace(filled, **share)
    if "other" in found:
        terms.append(Term("mbu_elementwise", 0.6, 0.05, 1.0))
    return _fit(kernels, gpu, filled, terms)


def _fit_attention(rows: Samples, gpu: GPUSpec, constants: KernelConstants) -> KernelConstants:
    terms: list[Term] = []
    calls = rows.of("attention_prefill", "attention_decode")
    calls = calls.take(decodes_from_memory(calls, gpu))
    eight_bit = calls.take((calls.bytes == 1.0) & (calls.operator == "attention_decode"))
    calls = calls.take(calls.bytes >= 2.0)
    operators = calls.operators
    for name, those in (
        ("attention_prefill", PREFILL_TERMS),
        ("attention_decode", DECODE_TERMS),
    ):
        if name in operators:
            terms += those
    if len(calls) >= LEAST_ROWS:
        filled = replace(
            constants,
            attention_fixed_s=constants.attention_fixed_s or constants.fixed_s,
            mbu_prefill=constants.mbu_prefill or constants.mbu_attention,
        )
        constants = _fit(calls, gpu, filled, (*ATTENTION_TERMS, *terms))
    if len(eight_bit) >= LEAST_ROWS:
        free = replace(constants, attention_sm_8bit=None)
        constants = _fit(eight_bit, gpu, free, EIGHT_BIT_CACHE_TERMS)
    mixed = rows.of("attention_mixed")
    if len(mixed) < LEAST_ROWS or constants.mixed_tile == 0.0:
        return constants
    filled = replace(constants, mixed_block_s=constants.attention_block_s)
    times = [kernel_s(mixed, gpu, filled), kernel_s(_chunks(mixed), gpu, filled)]
    matter = times[0] > _MATTER * times[1]
    return _fit(mixed.take(matter) if matter.any() else mixed, gpu, filled, MIXED_TERMS)


def _chunks(mixed: Samples) -> Samples:
    """Return the chunks of mixed calls without their decodes."""
    numbers = dict(mixed.numbers)
    ones = np.ones(len(mixed))
    return replace(
        mixed,
        operator=np.full(len(mixed), "attention_prefill"),
        numbers=numbers | {"batch": ones, "context": 0.0 * ones},
    )


def held_out(
    rows: Samples, gpu: GPUSpec, start: KernelConstants, folds: int = 3
) -> tuple[Samples, FloatArray]:
    """Predict every row by a fit that has not seen its group.

    Groups take turns in `folds` parts, by order of size where their names are numbers. Operators
    with all their rows in one part are not predicted: nothing would be known of them.

    Returns
    -------
    Samples, float array
        The rows in the order of the folds, and their predicted times (s).
    """
    names = sorted(set(rows.group.tolist()), key=lambda name: (len(name), name))
    parts: list[Samples] = []
    times: list[FloatArray] = []
    for fold in range(min(folds, len(names))):
        out = np.isin(rows.group, names[fold::folds])
        if out.all():
            continue
        test = rows.take(out & np.isin(rows.operator, rows.operator[~out]))
        constants = fit(rows.take(~out), gpu, start)
        parts.append(test)
        times.append(kernel_s(test, gpu, constants))
    if not parts:
        return rows.take(np.zeros(len(rows), dtype=np.bool_)), np.empty(0)
    return joined(parts), np.concatenate(times)


def fit_link(rows: Samples, link: LinkSpec) -> list[tuple[int, float, float]]:
    """Fit latency (s) and share of bandwidth of all-reduces, by world size."""
    found = []
    for size in np.unique(rows["tp"]):
        some = rows.take(rows["tp"] == size)
        message = some.bytes * some["m"] * some["n"]
        some = some.take((message >= _SMALLEST_MESSAGE) & (message <= _LARGEST_MESSAGE))
        if len(some) < 3:
            continue
        message = some.bytes * some["m"] * some["n"]
        sent = 2.0 * (size - 1.0) / size * message / link.bandwidth
        time = some.time_s

        def residuals(
            x: FloatArray, sent: FloatArray = sent, time: FloatArray = time
        ) -> FloatArray:
            return np.asarray(np.log((x[1] * US + sent / x[0]) / time))

        x = least_squares(residuals, [0.5, 10.0], [0.001, 0.1], [1.0, 500.0])
        found.append((int(size), float(x[1]) * US, float(x[0])))
    return found


def _fit(
    rows: Samples, gpu: GPUSpec, constants: KernelConstants, terms: Sequence[Term]
) -> KernelConstants:
    """Fit the constants named by `terms` to `rows`."""
    known = _thinned(rows)
    whole = bool((known.layer >= 0).any())

    def filled(x: FloatArray) -> KernelConstants:
        values: dict[str, Any] = {
            term.name: float(value) * term.scale for term, value in zip(terms, x, strict=True)
        }
        return replace(constants, **values)

    def residuals(x: FloatArray) -> FloatArray:
        times = kernel_s(known, gpu, filled(x))
        each: FloatArray = np.log(times / known.time_s)
        if not whole:
            return each
        measured, simulated = layer_sums(known, times)
        return np.concatenate([each, _LAYER_WEIGHT * np.log(simulated / measured)])

    x = least_squares(
        residuals,
        [term.start for term in terms],
        [term.low for term in terms],
        [term.high for term in terms],
    )
    return filled(x)


def _thinned(rows: Samples) -> Samples:
    """At most `_MOST_ROWS` rows, evenly: every n-th, or every n-th layer."""
    step = -(-len(rows) // _MOST_ROWS)
    if step <= 1:
        return rows
    number = np.where(rows.layer >= 0, rows.layer, np.arange(len(rows)))
    return rows.take(number % step == 0)


def least_squares(
    residuals: Callable[[FloatArray], FloatArray],
    start: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
) -> FloatArray:
    """Return the parameters between `low` and `high` whose residuals are smallest."""
    from scipy import optimize

    found = optimize.least_squares(
        residuals,
        start,
        bounds=(low, high),
        loss="soft_l1",
        f_scale=_FORGIVEN,
        x_scale=[max(abs(value), 0.05) for value in start],
        diff_step=1e-3,
    )
    return np.asarray(found.x, dtype=np.float64)
