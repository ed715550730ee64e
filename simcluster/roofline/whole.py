"""Step times that are known for whole steps only: a measured table, a formula."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
from mypy_extensions import mypyc_attr

from simcluster.roofline.base import StepShape, ends_of
from simcluster.roofline.schedule import KernelRun, KernelSchedule
from simcluster.units import FloatArray, IntArray


@mypyc_attr(allow_interpreted_subclasses=True)
class WholeStepTime(ABC):
    """A `StepTime` made of the duration of one step; a subclass has one method, `step_s`.

    All of a step is time on the GPU, in one kernel that costs nothing to issue: there is no host
    work that could be hidden. A subclass that knows a closed form for a run of decode steps
    overrides `decode_steps_s` for speed.
    """

    overlaps_host = False

    @abstractmethod
    def step_s(self, shape: StepShape, hidden_s: float = 0.0) -> float:
        """Duration of one step (s), above 0 and on the time grid (`simcluster.units.on_grid`).

        Parameters
        ----------
        shape : StepShape
            What it computes.
        hidden_s : float
            To be ignored: there is no host work.
        """

    def decode_steps_s(
        self,
        num_decodes: int,
        context_tokens: int,
        num_steps: int,
        hidden_s: float = 0.0,
        window_tokens: IntArray | None = None,
    ) -> FloatArray:
        """Durations of consecutive pure decode steps (s), shape ``(num_steps,)``, one by one."""
        contexts = range(context_tokens, context_tokens + num_steps * num_decodes, num_decodes)
        windows = contexts if window_tokens is None else window_tokens.tolist()
        shapes = (
            StepShape(num_decodes, context, (), num_decodes, window)
            for context, window in zip(contexts, windows, strict=True)
        )
        return np.array([self.step_s(shape) for shape in shapes], dtype=np.float64)

    def decode_ends_s(
        self,
        start_s: float,
        num_decodes: int,
        context_tokens: int,
        num_steps: int,
        hidden_s: float = 0.0,
        window_tokens: IntArray | None = None,
    ) -> list[float]:
        """When consecutive pure decode steps end (s)."""
        durations_s = self.decode_steps_s(
            num_decodes, context_tokens, num_steps, hidden_s, window_tokens
        )
        return ends_of(start_s, durations_s)

    def gpu_s(self, shape: StepShape) -> float:
        """Duration of the step (s): all of it is time on the GPU."""
        return self.step_s(shape)

    def prefill_s(self, prompt_len: int) -> float:
        """Duration of a step that prefills one prompt of `prompt_len` tokens alone (s)."""
        return self.step_s(StepShape(0, 0, ((prompt_len, 0),), 1, 0))

    def kernels(self, shape: StepShape) -> KernelSchedule:
        """The step as one kernel that costs nothing to issue."""
        run = KernelRun(("step",), (0.0,), (self.step_s(shape),), (False,), 1)
        return KernelSchedule(0.0, (run,), 0.0)
