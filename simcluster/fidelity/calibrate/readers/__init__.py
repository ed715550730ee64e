"""Formats of measured kernels: one module each, all giving `simcluster.fidelity.calibrate.Samples`.

=================  ======================================
module             idea
=================  ======================================
plain_csv          the CSV that a user measures
aic_ops            NVIDIA's aiconfigurator
llmservingsim_ops  LLMServingSim's operators in vLLM 0.19
splitwise_perf     Splitwise's iteration times
vidur              Vidur's profiles
tables             columns of a published table
samples            measured kernels of any source in one table
=================  ======================================
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

from simcluster.fidelity.calibrate.readers import (
    aic_ops,
    llmservingsim_ops,
    plain_csv,
    splitwise_perf,
    vidur,
)
from simcluster.fidelity.calibrate.readers.samples import Samples

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
