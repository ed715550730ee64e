"""Step-time models that can be written down on paper, for tests against theory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from simcluster.config import Environment
from simcluster.roofline.base import StepShape, StepTime
from simcluster.roofline.whole import WholeStepTime
from simcluster.units import FloatArray, IntArray, on_grid


class LinearStepTime(WholeStepTime):
    """A step takes a time linear in what it computes.

    ``fixed_s + per_prefill_token_s x prefill tokens + per_decode_step_s (if anything decodes) +
    per_context_token_s x tokens attended to by the decodes``. The coefficients are put on the time
    grid, so that every duration is an exact sum of them. All of it is time on the GPU: there is no
    host work.

    Parameters
    ----------
    per_prefill_token_s : float
        For each prefill token (s), >= 0.
    per_decode_step_s : float
        For a step with decodes, however many (s), >= 0.
    per_context_token_s : float
        For each token that the decodes attend to (s), >= 0.
    fixed_s : float
        For every step (s), >= 0.

    Raises
    ------
    ValueError
        If a step of one prefill token, or of one decode, would take no time on the grid.
    """

    def __init__(
        self,
        per_prefill_token_s: float,
        per_decode_step_s: float = 0.0,
        *,
        per_context_token_s: float = 0.0,
        fixed_s: float = 0.0,
    ) -> None:
        self.per_prefill_token_s = on_grid(per_prefill_token_s)
        self.per_decode_step_s = on_grid(per_decode_step_s)
        self.per_context_token_s = on_grid(per_context_token_s)
        self.fixed_s = on_grid(fixed_s)
        decode_s = self.fixed_s + self.per_decode_step_s + self.per_context_token_s
        if min(self.fixed_s + self.per_prefill_token_s, decode_s) <= 0:
            raise ValueError("a step of one token must take time")

    def step_s(self, shape: StepShape, hidden_s: float = 0.0) -> float:
        """Duration of one step (s)."""
        duration_s = self.fixed_s + self.per_prefill_token_s * sum(n for n, _ in shape.chunks)
        if shape.num_decodes:
            duration_s += self.per_decode_step_s + self.per_context_token_s * shape.context_tokens
        return duration_s

    def decode_steps_s(
        self,
        num_decodes: int,
        context_tokens: int,
        num_steps: int,
        hidden_s: float = 0.0,
        window_tokens: IntArray | None = None,
    ) -> FloatArray:
        """Durations of consecutive pure decode steps (s), shape ``(num_steps,)``."""
        contexts = context_tokens + num_decodes * np.arange(num_steps, dtype=np.float64)
        durations: FloatArray = (
            self.fixed_s + self.per_decode_step_s + self.per_context_token_s * contexts
        )
        return durations


class ConstantStepTime(LinearStepTime):
    """Every step takes the same time, whatever it computes.

    Parameters
    ----------
    step_s : float
        Duration of a step (s), > 0; put on the time grid.
    """

    def __init__(self, step_s: float) -> None:
        super().__init__(0.0, fixed_s=step_s)


def same_for_all(step_time: StepTime) -> Callable[[Environment, int], StepTime]:
    """Return a factory for `simcluster.runs.simulate.run` that gives every instance `step_time`."""
    return lambda environment, tp_size: step_time
