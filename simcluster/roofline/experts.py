"""The time of routed experts: grouped multiplications in tiles of the rows of each expert.

A kernel cuts the rows of every expert into tiles whose height the engine chooses by the size of the
batch, so a few rows are multiplied as 16 or 64. Where a tile is large the arithmetic of rows that
are not there rules, where it is small the weights that are read do.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, expm1
from typing import Final

from simcluster.catalog.expert_tiles import PEAKS, TILE_RULES
from simcluster.catalog.specs import ExpertKernel, GPUSpec
from simcluster.roofline.operators import Operator, Routing
from simcluster.roofline.smooth import smooth_max

TUNED: Final = "tuned"
"""Rule of tiles for experts that the engine ships tuned tiles for."""
MIDDLE_TILE: Final = 64.0
"""Rows of the tile that `ExpertKernel.mfu` is of."""
ALIGNED: Final = 16.0
"""Widths that this does not divide are read number by number (Triton's rule)."""
_STAND_INS: Final[Mapping[str, tuple[str, ...]]] = {
    "fp8": ("fp8-block",),
    "fp8-block": ("fp8",),
    "mxfp4": ("int4",),
    "nvfp4": ("int4",),
}
_NATIVE: Final[Mapping[str, str]] = {
    "bf16": "bf16",
    "fp8": "fp8",
    "fp8-block": "fp8-block",
    "mxfp8": "fp8-block",
    "int8": "fp8",
    "mxfp4": "mxfp4",
    "nvfp4": "nvfp4",
}
"""Kind of kernel by dtype, where the GPU multiplies such numbers; weights of others are unpacked to
16 bits (``"int4"``)."""


def kernel_for(
    gpu: GPUSpec, kernels: tuple[ExpertKernel, ...], weights: str
) -> ExpertKernel | None:
    """Return the kernel for experts with these weights; None where the GPU has none measured.

    Parameters
    ----------
    gpu : GPUSpec
        Its peaks say which numbers it multiplies as they are stored.
    kernels : tuple of ExpertKernel
        Those of its constants.
    weights : str
        Name of the dtype, see `simcluster.catalog.layers.WEIGHT_DTYPES`.
    """
    kind = _NATIVE.get(weights, "int4")
    if kind.startswith("fp8"):
        arithmetic = "int8" if weights == "int8" else "fp8"
        kind = kind if arithmetic in gpu.native_8bit else "int4"
    elif kind.endswith("fp4") and kind not in gpu.native_4bit:
        kind = "int4"
    for wanted in (kind, *_STAND_INS.get(kind, ())):
        for kernel in kernels:
            if kernel.weights == wanted:
                return kernel
    return None


def tile_of(tiles: str, tokens: float, routed: float, experts: float) -> tuple[float, float]:
    """Return rows and columns of the tile for a batch.

    Parameters
    ----------
    tiles : str
        Name of the rule.
    tokens, routed, experts : float
        Tokens, visits to experts (tokens times experts per token), experts of the layer.
    """
    rule = TILE_RULES[tiles]
    measure = tokens
    if rule.measure == "tokens per expert":
        measure = tokens / experts
    elif rule.measure == "rows per expert":
        measure = routed / experts
    for most, rows, cols in rule.steps:
        if measure <= most:
            return rows, cols
    raise AssertionError("the last step has no limit")


def num_tiles(groups: float, rows: float, tile_rows: float) -> float:
    """Return tiles of all experts together, of which each has `rows` rows in the mean.

    ``groups / (1 - exp(-tile_rows / rows))``: exact where the rows of an expert spread like an
    exponential; at least one tile per expert, and half a tile more than there are rows where there
    are many, as with any spread wider than a tile.

    >>> num_tiles(8.0, 1e-3, 16.0)
    8.0
    """
    return groups / -expm1(-tile_rows / rows)


def multiplication_s(
    kernel: ExpertKernel, gpu: GPUSpec, operator: Operator, routing: Routing
) -> float:
    """Time of one grouped multiplication (s)."""
    routed = operator.rows * operator.groups
    tuned = (int(routing.experts), int(routing.width)) in kernel.tuned
    rule = TUNED if tuned else kernel.tiles
    tile_rows, tile_cols = tile_of(rule, routing.tokens, routed, routing.experts)
    tiles = num_tiles(operator.groups, operator.rows, tile_rows)
    mfu = kernel.mfu
    if tile_rows < MIDDLE_TILE:
        mfu *= kernel.small_tiles
    elif tile_rows > MIDDLE_TILE:
        mfu *= kernel.large_tiles
    if tuned:
        mfu *= kernel.tuned_gain
    peak = getattr(gpu, PEAKS[kernel.weights])
    law = smooth_max(
        operator.flops * tiles * tile_rows / routed / (mfu * peak),
        operator.bytes / (kernel.mbu * gpu.memory_bandwidth),
        kernel.smooth_p,
    )
    if routing.width % ALIGNED:
        law *= kernel.unaligned
    return law + kernel.tile_s * tiles * ceil(operator.cols / tile_cols) / gpu.num_sms
