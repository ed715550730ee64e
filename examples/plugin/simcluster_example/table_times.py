"""A source of step times: a table of measured steps."""

from __future__ import annotations

from typing import Final

import numpy as np

from simcluster.config import Environment
from simcluster.errors import ConfigError
from simcluster.roofline import StepShape, StepTime, WholeStepTime
from simcluster.units import on_grid

# Made up for this example: put your own measurements here.
PREFILL: Final = ([0, 512, 1024, 2048, 4096], [4e-3, 40e-3, 78e-3, 157e-3, 325e-3])
"""New tokens of a step, and its duration (s)."""
DECODE: Final = ([1, 8, 32, 128], [8.0e-3, 8.4e-3, 9.6e-3, 14.0e-3])
"""Sequences that decode, and the duration of the step without their context (s)."""
CONTEXT_S: Final = 0.25e-6
"""More for each token that they attend to (s)."""


class TableTimes(WholeStepTime):
    """Durations between the points of a table; a mixed step takes the sum of its two parts."""

    def step_s(self, shape: StepShape, hidden_s: float = 0.0) -> float:
        """Duration of one step (s)."""
        step_s = 0.0
        if shape.chunks:
            step_s += float(np.interp(shape.num_tokens - shape.num_decodes, *PREFILL))
        if shape.num_decodes:
            step_s += float(np.interp(shape.num_decodes, *DECODE))
            step_s += CONTEXT_S * shape.context_tokens
        return on_grid(step_s)


def table_times(environment: Environment, tp_size: int) -> StepTime:
    """Return the step times of an instance on one GPU.

    Raises
    ------
    ConfigError
        If it has several GPUs: the table is of one.
    """
    if tp_size != 1:
        raise ConfigError("tp_size", tp_size, "the table was measured on one GPU", "Use 1.")
    return TableTimes()
