"""What step times ask of a source of measured kernel times (`simcluster.roofline.measured`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from simcluster.catalog.layers import Attention
from simcluster.roofline.kernels import KernelTimer
from simcluster.roofline.operators import Operator
from simcluster.units import FloatArray


class Ratio(Protocol):
    """Measured over law's time as a function of the tokens of context of a batch.

    A number and an array give the same bits.
    """

    def at(self, tokens: float) -> float:
        """Factor at `tokens` of context."""

    def at_all(self, tokens: FloatArray) -> FloatArray:
        """Like `at` for an array, shape as `tokens`."""

    def at_rising(self, tokens: FloatArray) -> FloatArray:
        """Like `at_all` for numbers that rise, at least one."""

    def segment(self, first: float, last: float) -> tuple[float, float, float] | None:
        """Start, value and slope of the line from `first` to `last`; None where it has a corner.

        The factor at t is ``value + slope * (t - start)``.
        """


class KernelAnswers(Protocol):
    """Times of kernels of one model on one rank; None or 1.0 where the law counts."""

    def times(
        self, operators: Sequence[Operator], timer: KernelTimer, *, spread: bool = False
    ) -> list[float | None]:
        """Times of kernels that follow one another (s); None for what the law gives.

        `spread`: experts are on other GPUs than those of the tensor-parallel group.
        """

    def decode_curve(self, mixer: Attention, num_decodes: int) -> Ratio | None:
        """Measured over law's time of decode attention of a batch; None for the law's own."""

    def chunks_ratio(self, mixer: Attention, chunks: tuple[tuple[int, int], ...]) -> float:
        """Measured over law's time of prefill attention of `chunks`; 1 for the law's own."""
