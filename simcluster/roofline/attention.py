"""Attention of one layer in a step, without and with the sliding window, in ticks.

Decode attention is affine in the batch and its context (decisions.md: "Decode attention is affine
in batch and context"), so the times of a run of steps are products, sums and rounding, the same
bits for one number and for an array.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Final

import numpy as np

from simcluster.config import ModelConfig
from simcluster.roofline.base import StepShape
from simcluster.roofline.bounded import remember
from simcluster.roofline.kernels import DecodeTerms, KernelTimer, MixedTerms
from simcluster.roofline.operators import attention_work
from simcluster.units import TICKS_PER_S, FloatArray

_TO_WHOLE: Final = 1.5 * 2.0**52
"""Adding and subtracting it rounds a number below 2^51 like ``rint``: half to even."""


class StepAttention:
    """Attention times of the layers of one instance.

    Parameters
    ----------
    timer : KernelTimer
        Times of kernels.
    model : ModelConfig
        What is served, in which precision.
    tp_size : int
        Ranks of the tensor-parallel group.

    Attributes
    ----------
    window : int or None
        Sliding window of some layers (tokens); None if no layer has one.
    """

    def __init__(self, timer: KernelTimer, model: ModelConfig, tp_size: int) -> None:
        self._timer = timer
        self.window = model.spec.sliding_window if model.spec.num_sliding_layers else None
        self._work = attention_work(model, tp_size)
        self._fixed = timer.attention_fixed_s * TICKS_PER_S
        self._causal = timer.constants.attention_causal
        self._tile = int(timer.constants.prefill_tile)
        self._mixed: dict[int, DecodeTerms | MixedTerms] = {}

    @property
    def least(self) -> float:
        """Shortest attention of a step with a chunk (ticks)."""
        return float(round(self._fixed))

    def decode_terms(self, num_decodes: int) -> DecodeTerms:
        """Return the terms of `num_decodes` decoding sequences, in ticks.

        Ticks per second are a power of two, so that no bit is lost.
        """
        const, linear, root, rate, split, above = self._timer.decode_terms(self._work, num_decodes)
        ticks = TICKS_PER_S
        return DecodeTerms(
            const * ticks, linear * ticks, root * ticks, rate * ticks, split * ticks, above
        )

    def of_decodes(self, terms: DecodeTerms, shape: StepShape) -> tuple[float, float]:
        """Attention of a pure decode step without and with the window (ticks, whole)."""
        full = decode_ticks(terms, shape.context_tokens)
        return full, 0.0 if self.window is None else decode_ticks(terms, shape.window_tokens)

    def of_chunks(self, shape: StepShape) -> tuple[float, float]:
        """Attention of a step with prefill chunks without and with the window (ticks, whole)."""
        decodes = shape.num_decodes
        full = self._beside_ticks(decodes, shape.context_tokens)
        full = float(round(full + self._fixed + self._prefill_attention(shape.chunks)))
        if self.window is None:
            return full, 0.0
        windowed = self._beside_ticks(decodes, shape.window_tokens) + self._fixed
        return full, float(round(windowed + self._windowed_prefill(shape.chunks, self.window)))

    def _beside_ticks(self, num_decodes: int, tokens: int) -> float:
        """Ticks of so many decodes beside a chunk, over so many tokens of context."""
        if num_decodes == 0:
            return 0.0
        known = self._mixed.get(num_decodes)
        if known is None:
            known = self._timer.mixed_terms(self._work, num_decodes)
            if known is None:
                known = self.decode_terms(num_decodes)
            remember(self._mixed, num_decodes, known)
        if isinstance(known, DecodeTerms):
            return decode_ticks(known, tokens)
        return self._timer.mixed_s(known, tokens) * TICKS_PER_S

    def _prefill_attention(self, chunks: tuple[tuple[int, int], ...]) -> float:
        """Attention of the chunks over all that is cached (ticks, not rounded)."""
        tokens = cached = tiles = 0
        causal, tile = self._causal, self._tile
        twice_pairs = twice_padded = 0.0
        for new, old in chunks:
            tokens += new
            cached += old
            twice_seen = 2 * (old + new) - causal * (new - 1)
            num = -(-new // tile)
            tiles += num
            twice_pairs += new * twice_seen
            twice_padded += num * tile * twice_seen
        return self._prefill_ticks(tokens, cached, 0.5 * twice_pairs, 0.5 * twice_padded, tiles)

    def _windowed_prefill(self, chunks: tuple[tuple[int, int], ...], window: int) -> float:
        """Attention of the chunks over the last `window` tokens (ticks, not rounded)."""
        tokens = cached = tiles = 0
        causal, tile = self._causal, self._tile
        twice_pairs = twice_padded = 0.0
        for new, old in chunks:
            growing = min(new, max(0, window - old))
            tokens += new
            cached += min(old, window)
            pairs = growing * (2 * (old + growing) - causal * (growing - 1))
            pairs += 2 * (new - growing) * window
            num = -(-new // tile)
            tiles += num
            twice_pairs += pairs
            twice_padded += pairs * (num * tile / new)
        return self._prefill_ticks(tokens, cached, 0.5 * twice_pairs, 0.5 * twice_padded, tiles)

    def _prefill_ticks(
        self, tokens: int, cached: int, pairs: float, padded_pairs: float, tiles: int
    ) -> float:
        work = self._work
        flops = self._timer.prefill_flops(
            work.prefill_flops * pairs, work.prefill_flops * padded_pairs, tiles * work.heads
        )
        flops += work.expand_flops * cached
        moved = work.io_bytes * tokens + work.prefill_kv_bytes * (tokens + cached)
        return self._timer.prefill_attention_s(flops, moved) * TICKS_PER_S


def decode_ticks(terms: DecodeTerms, tokens: int) -> float:
    """Decode attention over so many tokens of context (ticks, whole)."""
    const, linear, root, rate, split, above = terms
    ticks = const + linear * tokens
    if rate:
        growing = rate * tokens
        ticks += sqrt(growing * growing + root * root)
    if tokens > above:
        ticks += split
    return float(round(ticks))


def decode_ticks_array(terms: DecodeTerms, tokens: FloatArray) -> FloatArray:
    """Like `decode_ticks` for an array: the same operations in the same order."""
    const, linear, root, rate, split, above = terms
    ticks: FloatArray = tokens * linear
    ticks += const
    if rate:
        growing = tokens * rate
        growing *= growing
        growing += root * root
        np.sqrt(growing, out=growing)
        ticks += growing
    if split and len(tokens) and tokens[-1] > above:
        ticks[tokens > above] += split
    return np.rint(ticks, out=ticks)


def decode_steps(
    terms: DecodeTerms, contexts: Sequence[int], fixed: float, per_tick: float
) -> list[float]:
    """Return ``fixed + per_tick x decode_ticks`` for rising contexts: quicker without NumPy."""
    const, linear, root, rate, split, above = terms
    if rate == 0.0 and contexts[-1] <= above:
        return [
            fixed + per_tick * ((const + linear * context + _TO_WHOLE) - _TO_WHOLE)
            for context in contexts
        ]
    square = root * root
    return [
        fixed
        + per_tick
        * (
            (
                const
                + linear * context
                + sqrt((rate * context) * (rate * context) + square)
                + (split if context > above else 0.0)
                + _TO_WHOLE
            )
            - _TO_WHOLE
        )
        for context in contexts
    ]
