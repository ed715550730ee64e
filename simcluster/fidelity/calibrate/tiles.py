"""The tiles that engines cut the rows of experts into, for whole arrays of batches."""

from __future__ import annotations

import numpy as np

from simcluster.catalog.expert_tiles import TILE_RULES
from simcluster.units import FloatArray


def tiles_of(
    rule: str, tokens: FloatArray, routed: FloatArray, experts: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return rows and columns of the tiles of batches, as `simcluster.roofline.experts.tile_of`."""
    measure = {
        "tokens": tokens,
        "tokens per expert": tokens / experts,
        "rows per expert": routed / experts,
    }[TILE_RULES[rule].measure]
    steps = TILE_RULES[rule].steps
    within = [measure <= most for most, _, _ in steps]
    return (
        np.select(within, [np.full(len(measure), rows) for _, rows, _ in steps]),
        np.select(within, [np.full(len(measure), cols) for _, _, cols in steps]),
    )
