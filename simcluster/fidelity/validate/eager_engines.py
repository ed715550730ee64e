"""Engines of 2023 and early 2024 that issue every kernel, on models and GPUs not fitted, pooled."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from simcluster.fidelity.validate import distserve_fits, sarathi_iter, splitwise_perf
from simcluster.fidelity.validate.base import Check, check
from simcluster.units import MS

DATA_SET: Final = "eager engines"
"""A check over three data sets, each of which has checks of its own."""


def checks(data_dir: Path) -> list[Check]:
    """Compare all their steps at once: what is fitted (Splitwise on A100) is left out."""
    parts = [x for x in splitwise_perf.checks(data_dir) if (x.gpu, x.regime) == ("H100", "all")]
    parts += sarathi_iter.checks(data_dir) + distserve_fits.checks(data_dir)
    measured, simulated = [], []
    for part in parts:
        assert part.measured is not None
        assert part.simulated is not None
        to_s = MS if part.unit == "ms" else 1.0
        measured.append(to_s * part.measured)
        simulated.append(to_s * part.simulated)
    return [
        check(
            np.concatenate(measured),
            np.concatenate(simulated),
            data_set=DATA_SET,
            gpu="A100, H100",
            model="4 models",
            regime="not fitted",
            quantity="prefill and decode steps",
            must=0.12,
            aim=0.08,
            limits="median",
        )
    ]
