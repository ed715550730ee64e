"""How engines cut the rows of experts into tiles, and which peak their kernels work against."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Final, Literal, NamedTuple

Measure = Literal["tokens", "tokens per expert", "rows per expert"]


class TileRule(NamedTuple):
    """How an engine chooses the tile of a grouped multiplication."""

    measure: Measure
    """What decides: tokens of the step, tokens over experts, or visits over experts."""
    steps: tuple[tuple[float, float, float], ...]
    """Largest measure, rows and columns of the tile, by rising measure; the last without limit."""
    source: str
    """Where the rule stands."""


TILE_RULES: Final[Mapping[str, TileRule]] = {
    "by-experts": TileRule(
        "tokens per expert",
        ((1.0, 16.0, 32.0), (inf, 64.0, 64.0)),
        "vLLM up to 0.18, fused_moe.get_default_config: more tokens than experts, or not",
    ),
    "by-tokens": TileRule(
        "tokens",
        (
            (32.0, 16.0, 64.0),
            (64.0, 32.0, 64.0),
            (96.0, 32.0, 128.0),
            (512.0, 64.0, 128.0),
            (inf, 128.0, 128.0),
        ),
        "vLLM 0.19, fused_moe.get_default_config, 16-bit and 8-bit weights",
    ),
    "block": TileRule(
        "tokens",
        ((inf, 64.0, 128.0),),
        "vLLM up to 0.18, fused_moe.get_default_config, 8-bit weights by blocks of 128",
    ),
    "block-by-tokens": TileRule(
        "tokens",
        ((64.0, 16.0, 128.0), (inf, 64.0, 128.0)),
        "vLLM 0.19, fused_moe.get_default_config, 8-bit weights by blocks of 128",
    ),
    "marlin": TileRule(
        "rows per expert",
        (
            (7.2, 8.0, 64.0),
            (14.4, 16.0, 64.0),
            (28.8, 32.0, 64.0),
            (43.2, 48.0, 64.0),
            (inf, 64.0, 64.0),
        ),
        "vLLM, fused_marlin_moe: the least of 8 to 64 rows that is filled to less than 0.9",
    ),
    "wna16": TileRule(
        "tokens",
        ((20.0, 16.0, 64.0), (40.0, 32.0, 64.0), (inf, 64.0, 64.0)),
        "vLLM, fused_moe.get_default_config, 4-bit weights in Triton",
    ),
    "tuned": TileRule(
        "rows per expert",
        (
            (14.4, 16.0, 64.0),
            (28.8, 32.0, 64.0),
            (57.6, 64.0, 128.0),
            (inf, 128.0, 128.0),
        ),
        "vLLM, fused_moe/configs: tuned tiles grow with the batch; here the least filled to 0.9",
    ),
    "trtllm": TileRule(
        "rows per expert",
        ((8.999, 8.0, 128.0), (16.999, 16.0, 128.0), (32.999, 32.0, 128.0), (inf, 64.0, 128.0)),
        "aiconfigurator, collector/vllm/collect_moe.py: tile_tokens_dim of FlashInfer's kernel "
        "(visits over experts rounded down, then up to a power of two from 8 to 64)",
    ),
}
"""Rules by name, a value of `ExpertKernel.tiles`."""
PEAKS: Final[Mapping[str, str]] = {
    "bf16": "flops_16bit",
    "fp8": "flops_8bit",
    "fp8-block": "flops_8bit",
    "int4": "flops_16bit",
    "mxfp4": "flops_8bit",
    "nvfp4": "flops_4bit",
}
"""Peak of the GPU that `ExpertKernel.mfu` is a share of, by `ExpertKernel.weights`."""
