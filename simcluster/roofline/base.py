"""Step-time models: from the shape of a step to its duration."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from simcluster.roofline.schedule import KernelSchedule
from simcluster.units import FloatArray, IntArray


class StepShape(NamedTuple):
    """What one forward pass of an instance computes."""

    num_decodes: int
    """Sequences that decode, one token each."""
    context_tokens: int
    """Tokens the decoding sequences attend to, summed, their own new tokens included."""
    chunks: tuple[tuple[int, int], ...]
    """For each sequence with a prefill chunk: ``(new tokens, tokens already in the cache)``."""
    num_sampled: int
    """Sequences that sample a token in this step: the decodes and the chunks that end a prompt."""
    window_tokens: int
    """Like `context_tokens`, each sequence's part capped at the sliding window; equal to
    `context_tokens` in a model without one."""
    other_tokens: int = 0
    """Tokens that the other data-parallel ranks of the instance compute in the same step: experts
    see them too."""

    @property
    def num_tokens(self) -> int:
        """Tokens that go through the layers: one per decode and those of the chunks."""
        return self.num_decodes + sum([new for new, _ in self.chunks])


def ends_of(start_s: float, durations_s: FloatArray) -> list[float]:
    """Return when steps of such durations (s) end if the first starts at `start_s` (s)."""
    ends: list[float] = (durations_s.cumsum() + start_s).tolist()
    return ends


class StepTime(Protocol):
    """Durations of steps (s, on the time grid).

    Scalar and vector answers are the same bits: ``decode_steps_s(b, c, n)[k]`` equals
    ``step_s(StepShape(b, c + k * b, (), b, ...))``.
    """

    overlaps_host: bool
    """The engine does the host work of a step while the GPU works on the step before. Only then
    `hidden_s` matters."""

    def step_s(self, shape: StepShape, hidden_s: float = 0.0) -> float:
        """Duration of one step (s).

        Parameters
        ----------
        shape : StepShape
            What it computes.
        hidden_s : float
            GPU time of the step before if this one follows it without a pause, else 0 (s); as
            much of the host work is already done.
        """

    def decode_steps_s(
        self,
        num_decodes: int,
        context_tokens: int,
        num_steps: int,
        hidden_s: float = 0.0,
        window_tokens: IntArray | None = None,
    ) -> FloatArray:
        """Durations of consecutive pure decode steps of the same sequences.

        Parameters
        ----------
        num_decodes : int
            Sequences in the batch, >= 1.
        context_tokens : int
            Tokens attended to in the first step, summed; grows by `num_decodes` a step.
        num_steps : int
            How many steps, >= 1.
        hidden_s : float
            As in `step_s`, for the first step.
        window_tokens : int array, optional
            Window-capped sums of each step, shape ``(num_steps,)``; needed for models with a
            sliding window only.

        Returns
        -------
        float array, shape ``(num_steps,)``
            Durations (s).
        """

    def decode_ends_s(
        self,
        start_s: float,
        num_decodes: int,
        context_tokens: int,
        num_steps: int,
        hidden_s: float = 0.0,
        window_tokens: IntArray | None = None,
    ) -> list[float]:
        """When consecutive pure decode steps end (s), the first of which starts at `start_s` (s).

        The sums of `decode_steps_s`, whose parameters the others are (`ends_of`).
        """

    def gpu_s(self, shape: StepShape) -> float:
        """Duration of the step without its host work (s)."""

    def prefill_s(self, prompt_len: int) -> float:
        """Duration of a step that prefills one prompt of `prompt_len` tokens alone (s)."""

    def kernels(self, shape: StepShape) -> KernelSchedule:
        """The kernels of the step, for simulation one by one."""


class StageTime(StepTime, Protocol):
    """Durations of what one stage of a pipeline does of a step (s, on the time grid).

    The host work before a step is with the first stage, the one after it with the last; stages do
    not overlap it with the work of the GPU.
    """

    def host_s(self, shape: StepShape) -> tuple[float, float]:
        """Host work of the stage before and after its kernels (s)."""

    def decode_gpu_s(
        self,
        num_decodes: int,
        context_tokens: int,
        num_steps: int,
        window_tokens: IntArray | None = None,
    ) -> FloatArray:
        """Durations of consecutive pure decode steps without their host work (s).

        Parameters and shape are those of `decode_steps_s`.
        """


class RankTime(StepTime, Protocol):
    """Durations of steps of a data-parallel rank (s, on the time grid).

    They know the tokens of the other ranks in the same step: `StepShape.other_tokens`, and the same
    here.
    """

    def decode_steps_s(
        self,
        num_decodes: int,
        context_tokens: int,
        num_steps: int,
        hidden_s: float = 0.0,
        window_tokens: IntArray | None = None,
        other_tokens: int = 0,
    ) -> FloatArray:
        """Durations of consecutive pure decode steps of the same sequences (s).

        Parameters and shape are those of `StepTime.decode_steps_s`; `other_tokens` are those of the
        other ranks together in each step, >= 0.
        """
