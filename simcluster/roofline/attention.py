"""Attention of one layer of each kind in a step, in ticks; recurrent layers count as a kind.

Decode attention is affine in the batch and its context (decisions.md: "Decode attention is affine
in batch and context"), so the times of a run of steps are products, sums and rounding, the same
bits for one number and for an array.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt
from typing import Final, NamedTuple

import numpy as np

from simcluster.catalog.layers import Attention, LatentAttention, Reach, Recurrent
from simcluster.config import ModelConfig
from simcluster.roofline.answers import KernelAnswers, Ratio
from simcluster.roofline.base import StepShape
from simcluster.roofline.bounded import remember
from simcluster.roofline.kernels import DecodeTerms, KernelTimer, MixedTerms
from simcluster.roofline.operators import (
    AttentionWork,
    attention_work,
    index_work,
    recurrence_flops,
    state_bytes,
)
from simcluster.units import TICKS_PER_S, FloatArray

_TO_WHOLE: Final = 1.5 * 2.0**52
"""Adding and subtracting it rounds a number below 2^51 like ``rint``: half to even."""


class KindTerms(NamedTuple):
    """Decode attention of one kind of layer as a function of the contexts."""

    terms: DecodeTerms
    """In ticks."""
    reached: bool
    """It grows with the tokens within the layer's reach (window, chunk, top-k), else with all."""
    top_k: DecodeTerms | None
    """The index of sparse attention, which reads all."""
    measured: Ratio | None = None
    """Measured over law's time; None where the law counts."""

    def ticks(self, context_tokens: int, window_tokens: int) -> float:
        """Time for these sums of contexts (ticks, whole)."""
        tokens = window_tokens if self.reached else context_tokens
        ticks = decode_ticks(self.terms, tokens)
        if self.measured is not None:
            ticks = float(round(ticks * self.measured.at(tokens)))
        return ticks if self.top_k is None else ticks + decode_ticks(self.top_k, context_tokens)

    def ticks_array(
        self, context_tokens: FloatArray, window_tokens: FloatArray, rises: bool = True
    ) -> FloatArray:
        """Like `ticks` for arrays; `rises` says that no context is shorter than the one before."""
        tokens = window_tokens if self.reached else context_tokens
        ticks = decode_ticks_array(self.terms, tokens, rises)
        if self.measured is not None:
            if rises and not self.reached:
                ticks *= self.measured.at_rising(tokens)
            else:
                ticks *= self.measured.at_all(tokens)
            np.rint(ticks, out=ticks)
        if self.top_k is not None:
            ticks += decode_ticks_array(self.top_k, context_tokens, rises)
        return ticks


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
    measured : KernelAnswers, optional
        Measured times in the place of the law's.

    Attributes
    ----------
    reach : Reach or None
        Window, chunk or top-k of some layers; None if no layer has one.
    num_kinds : int
        Different mixers.
    of_first_kind : callable
        The first of `of_chunks`, alone.
    """

    def __init__(
        self,
        timer: KernelTimer,
        model: ModelConfig,
        tp_size: int,
        measured: KernelAnswers | None = None,
    ) -> None:
        self.reach = model.spec.reach
        self._kinds: list[AttentionKind | _RecurrentKind] = [
            _RecurrentKind(timer, mixer, tp_size)
            if isinstance(mixer, Recurrent)
            else AttentionKind(timer, model, mixer, tp_size, measured)
            for mixer in model.spec.mixers
        ]
        self.num_kinds = len(self._kinds)
        self.of_first_kind = self._kinds[0].of_chunks
        # Shortest time of each kind in a step with a chunk (ticks); a measured one may be any.
        least = 0.0 if measured is not None else timer.attention_fixed_s
        self.least = (float(round(least * TICKS_PER_S)),) * self.num_kinds

    def decode_terms(self, num_decodes: int) -> tuple[KindTerms, ...]:
        """Return the terms of `num_decodes` decoding sequences, kind by kind, in ticks."""
        return tuple([kind.decode_terms(num_decodes) for kind in self._kinds])

    def of_chunks(self, shape: StepShape) -> list[float]:
        """Attention of a step with prefill chunks, kind by kind (ticks, whole)."""
        return [kind.of_chunks(shape) for kind in self._kinds]


class _RecurrentKind:
    """Recurrent layers: each sequence's state is read and written once a step."""

    def __init__(self, timer: KernelTimer, mixer: Recurrent, tp_size: int) -> None:
        self._timer = timer
        self._state_bytes = 2.0 * state_bytes(mixer, tp_size)
        self._flops = recurrence_flops(mixer, tp_size)

    def decode_terms(self, num_decodes: int) -> KindTerms:
        ticks = self._ticks(num_decodes, num_decodes)
        return KindTerms(DecodeTerms(ticks, 0.0, 0.0, 0.0, 0.0, inf), False, None)

    def of_chunks(self, shape: StepShape) -> float:
        num_seqs = shape.num_decodes + len(shape.chunks)
        return float(round(self._ticks(num_seqs, shape.num_tokens)))

    def _ticks(self, num_seqs: int, num_tokens: int) -> float:
        seconds = self._timer.recurrence_s(self._flops * num_tokens, self._state_bytes * num_seqs)
        return seconds * TICKS_PER_S


class AttentionKind:
    """Layers with keys and values, or a latent vector, in the cache.

    Parameters
    ----------
    timer, model, tp_size, measured
        As of `StepAttention`.
    mixer : Attention or LatentAttention
        Mixer of the layers; the law counts for latent attention.
    """

    def __init__(
        self,
        timer: KernelTimer,
        model: ModelConfig,
        mixer: Attention | LatentAttention,
        tp_size: int,
        measured: KernelAnswers | None = None,
    ) -> None:
        self._timer = timer
        self._measured = measured if isinstance(mixer, Attention) else None
        self._mixer = mixer
        self._curves: dict[int, Ratio | None] = {}
        self._reach = mixer.reach
        self._work = attention_work(model, mixer, tp_size)
        self._index = index_work(mixer) if isinstance(mixer, LatentAttention) else None
        self._fixed = timer.attention_fixed_s * TICKS_PER_S
        self._causal = timer.constants.attention_causal
        self._tile = int(timer.constants.prefill_tile)
        self._mixed: dict[int, DecodeTerms | MixedTerms] = {}

    def decode_terms(self, num_decodes: int) -> KindTerms:
        """Return the terms of `num_decodes` decoding sequences, in ticks."""
        index = None if self._index is None else self._terms_of(self._index, num_decodes)
        terms = self._terms_of(self._work, num_decodes)
        return KindTerms(terms, self._reach is not None, index, self._curve_of(num_decodes))

    def _curve_of(self, num_decodes: int) -> Ratio | None:
        """Measured over law's time of `num_decodes` sequences; None where the law counts."""
        if self._measured is None or not isinstance(self._mixer, Attention):
            return None
        if num_decodes not in self._curves:
            curve = self._measured.decode_curve(self._mixer, num_decodes)
            remember(self._curves, num_decodes, curve)
        return self._curves[num_decodes]

    def _terms_of(self, work: AttentionWork, num_decodes: int) -> DecodeTerms:
        """Terms in ticks: ticks per second are a power of two, so that no bit is lost."""
        const, linear, root, rate, split, above = self._timer.decode_terms(work, num_decodes)
        ticks = TICKS_PER_S
        return DecodeTerms(
            const * ticks, linear * ticks, root * ticks, rate * ticks, split * ticks, above
        )

    def of_chunks(self, shape: StepShape) -> float:
        """Attention of a step with prefill chunks (ticks, whole)."""
        num_decodes = shape.num_decodes
        if self._measured is not None and isinstance(self._mixer, Attention):
            tokens = shape.context_tokens if self._reach is None else shape.window_tokens
            if self._reach is None:
                ticks = self._fixed + self._prefill_attention(self._work, shape.chunks)
            else:
                ticks = self._fixed + self._reached_prefill(shape.chunks, self._reach)
            ticks *= self._measured.chunks_ratio(self._mixer, shape.chunks)
            return float(round(ticks + self._beside_ticks(num_decodes, tokens)))
        if self._reach is None:
            ticks = self._fixed + self._beside_ticks(num_decodes, shape.context_tokens)
            return float(round(ticks + self._prefill_attention(self._work, shape.chunks)))
        ticks = self._fixed + self._beside_ticks(num_decodes, shape.window_tokens)
        ticks = float(round(ticks + self._reached_prefill(shape.chunks, self._reach)))
        if self._index is not None:
            ticks += round(self._fixed + self._prefill_attention(self._index, shape.chunks))
            if num_decodes:
                terms = self._terms_of(self._index, num_decodes)
                ticks += decode_ticks(terms, shape.context_tokens)
        return ticks

    def _beside_ticks(self, num_decodes: int, tokens: int) -> float:
        """Ticks of `num_decodes` decodes beside a chunk, over `tokens` of context together."""
        if num_decodes == 0:
            return 0.0
        known = self._mixed.get(num_decodes)
        if known is None:
            known = self._timer.mixed_terms(self._work, num_decodes)
            if known is None:
                known = self._terms_of(self._work, num_decodes)
            remember(self._mixed, num_decodes, known)
        if isinstance(known, DecodeTerms):
            ticks = decode_ticks(known, tokens)
            curve = self._curve_of(num_decodes)
            return ticks if curve is None else ticks * curve.at(tokens)
        return self._timer.mixed_s(known, tokens) * TICKS_PER_S

    def _prefill_attention(self, work: AttentionWork, chunks: tuple[tuple[int, int], ...]) -> float:
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
        return self._prefill_ticks(
            work, tokens, cached, 0.5 * twice_pairs, 0.5 * twice_padded, tiles
        )

    def _reached_prefill(self, chunks: tuple[tuple[int, int], ...], reach: Reach) -> float:
        """Attention of the chunks as far as they reach (ticks, not rounded)."""
        tokens = cached = tiles = 0
        tile = self._tile
        twice_pairs = twice_padded = 0.0
        for new, old in chunks:
            tokens += new
            cached += old % reach.tokens if reach.chunked else min(old, reach.tokens)
            pairs = twice_pairs_within(reach, new, old, self._causal)
            num = -(-new // tile)
            tiles += num
            twice_pairs += pairs
            twice_padded += pairs * (num * tile / new)
        pairs, padded = 0.5 * twice_pairs, 0.5 * twice_padded
        return self._prefill_ticks(self._work, tokens, cached, pairs, padded, tiles)

    def _prefill_ticks(
        self,
        work: AttentionWork,
        tokens: int,
        cached: int,
        pairs: float,
        padded_pairs: float,
        tiles: int,
    ) -> float:
        flops = self._timer.prefill_flops(
            work.prefill_flops * pairs, work.prefill_flops * padded_pairs, tiles * work.heads
        )
        flops += work.expand_flops * cached
        moved = work.io_bytes * tokens + work.prefill_kv_bytes * (tokens + cached)
        return self._timer.prefill_attention_s(flops, moved) * TICKS_PER_S


def twice_pairs_within(reach: Reach, new: int, old: int, causal: float) -> float:
    """Twice the pairs of a token and one it attends to, of `new` tokens behind `old` cached ones.

    `causal` is the share of the masked half that is skipped.

    >>> twice_pairs_within(Reach(3), 4, 1, 1.0) / 2  # 2 + 3 + 3 + 3
    11.0
    >>> twice_pairs_within(Reach(3, chunked=True), 4, 1, 1.0) / 2  # 2 + 3 + 1 + 2
    8.0
    """
    width = reach.tokens

    def rising(seen: int, count: int) -> float:
        return count * (2 * (seen + count) - causal * (count - 1))

    if not reach.chunked:
        growing = min(new, max(0, width - old))
        return rising(old, growing) + 2 * (new - growing) * width
    seen = old % width
    first = min(new, width - seen)
    whole, rest = divmod(new - first, width)
    return rising(seen, first) + whole * rising(0, width) + rising(0, rest)


def decode_ticks(terms: DecodeTerms, tokens: int) -> float:
    """Return the time of decode attention over `tokens` of context (ticks, whole)."""
    const, linear, root, rate, split, above = terms
    ticks = const + linear * tokens
    if rate:
        growing = rate * tokens
        ticks += sqrt(growing * growing + root * root)
    if tokens > above:
        ticks += split
    return float(round(ticks))


def decode_ticks_array(terms: DecodeTerms, tokens: FloatArray, rises: bool) -> FloatArray:
    """Like `decode_ticks` for an array: the same operations in the same order.

    `rises` says that no number of `tokens` is below the one before.
    """
    const, linear, root, rate, split, above = terms
    ticks: FloatArray = tokens * linear
    ticks += const
    if rate:
        growing = tokens * rate
        growing *= growing
        growing += root * root
        np.sqrt(growing, out=growing)
        ticks += growing
    if split and len(tokens) and (not rises or tokens[-1] > above):
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


def measured_steps(
    terms: DecodeTerms, measured: Ratio, contexts: Sequence[int], fixed: float, per_tick: float
) -> list[float]:
    """Like `decode_steps`, with each time by the law times the measured factor."""
    segment = measured.segment(contexts[0], contexts[-1])
    if segment is None:
        ticks = decode_steps(terms, contexts, 0.0, 1.0)
        return [
            fixed + per_tick * ((law * measured.at(context) + _TO_WHOLE) - _TO_WHOLE)
            for law, context in zip(ticks, contexts, strict=True)
        ]
    const, linear, root, rate, split, above = terms
    start, value, slope = segment
    square = root * root
    if contexts[-1] <= above:
        split = 0.0
    return [
        fixed
        + per_tick
        * (
            (
                (
                    (
                        const
                        + linear * context
                        + sqrt((rate * context) * (rate * context) + square)
                        + (split if context > above else 0.0)
                        + _TO_WHOLE
                    )
                    - _TO_WHOLE
                )
                * (value + slope * (context - start))
                + _TO_WHOLE
            )
            - _TO_WHOLE
        )
        for context in contexts
    ]
