"""Formats of measured kernels: one module each, all giving `simcluster.calibration.Samples`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from simcluster.calibration.readers import (
    aic_ops,
    llmservingsim_ops,
    plain_csv,
    splitwise_perf,
    vidur,
)
from simcluster.calibration.samples import Samples

Reader = Callable[[Path, str], Samples]

KERNELS: Final[dict[str, Reader]] = {
    "vidur_mlp": vidur.read_mlp,
    "vidur_attention_a100": vidur.read_attention,
    "aic_ops": aic_ops.read,
    "llmservingsim_ops": llmservingsim_ops.read,
}
"""Folders of kernel times: what each holds for a GPU of the catalogue; may be nothing."""

LINKS: Final[dict[str, Reader]] = {
    "aic_ops": aic_ops.read_links,
    "vidur_network": vidur.read_network,
}
"""Folders of collectives."""

__all__ = [
    "KERNELS",
    "LINKS",
    "Reader",
    "aic_ops",
    "llmservingsim_ops",
    "plain_csv",
    "splitwise_perf",
    "vidur",
]
