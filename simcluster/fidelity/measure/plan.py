"""What is measured: the shapes that models have on one GPU, and a grid of powers of two.

The calls of a group come in an order of their own, shuffled once and for all, so that a run that is
cut short holds a fair sample of the grid.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Final

from simcluster.catalog.layers import ModelSpec
from simcluster.rng import stream

DEFAULT_MODELS: Final = (
    "llama-3.1-8b",
    "llama-2-7b",
    "codellama-34b",
    "qwen2.5-32b",
    "llama-3.1-70b",
)
"""Models whose shapes are measured where none are named: MHA and GQA, 7 to 70 billion."""

TP_SIZES: Final = (1, 2, 4, 8)
"""Tensor-parallel degrees whose shards are measured; one GPU is enough for all of them."""

TOKENS: Final = (1, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
"""Rows of a GEMM or an elementwise kernel (tokens)."""

HEAD_TOKENS: Final = 256
"""Most rows of the LM head, which sees sampled tokens only."""

WIDTHS: Final = (512, 1024, 2048, 4096, 8192, 16384)
"""Widths of the grid of GEMMs."""

BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS: Final = (127, 511, 1023, 2047, 4095, 8191, 16383, 32767)
"""Decode attention: sequences, and tokens that each has in the cache already."""
MAX_CACHED: Final = 2**19
"""Most tokens in the cache of one decode call, over the batch."""

PROMPTS: Final = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
PROMPT_BATCHES: Final = (1, 4)
CHUNK_CONTEXTS: Final = (1024, 4096, 16384)
"""Prefill attention: new tokens per sequence, sequences, and tokens cached before a chunk."""
MAX_PROMPT_TOKENS: Final = 16384

GRAPH_KERNELS: Final = (32, 128, 512)
"""Kernels of the captured graphs whose launch is timed."""

GROUPS: Final = (
    "issue",
    "gemm",
    "attention_decode",
    "attention_prefill",
    "elementwise",
    "collective",
)
"""Groups of calls in the order in which they are measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call to be timed; ``docs/calibration.md`` says what each operator runs.

    Attributes
    ----------
    m, n, k, batch, context, num_heads, num_kv_heads, head_dim, tp : int or None
        Its sizes; None where the operator has no such size.
    """

    operator: str
    """Its name in the CSV."""
    m: int | None = None
    n: int | None = None
    k: int | None = None
    batch: int | None = None
    context: int | None = None
    num_heads: int | None = None
    num_kv_heads: int | None = None
    head_dim: int | None = None
    dtype: str
    """``"bf16"``, ``"fp16"`` or ``"fp8"``."""
    tp: int | None = None
    mode: str = "graph"
    """``"graph"`` (inside a captured graph) or ``"eager"`` (launched one by one)."""

    def size(self, name: str) -> int:
        """Return a size that this operator has."""
        value = getattr(self, name)
        assert isinstance(value, int), f"{self.operator} has no {name}"
        return value


def calls(
    models: Sequence[ModelSpec], *, dtype: str, fp8: bool, num_gpus: int
) -> dict[str, list[Call]]:
    """Return the calls to measure, by group.

    Parameters
    ----------
    models : sequence of ModelSpec
        Models whose shards are measured at every degree of `TP_SIZES` that divides them.
    dtype : str
        16-bit type of weights, cache and activations: ``"bf16"`` or ``"fp16"``.
    fp8 : bool
        Measure GEMMs of 8-bit weights and activations too.
    num_gpus : int
        GPUs of the machine; collectives are measured where there are several.

    Returns
    -------
    dict of str to list of Call
        Keys are `GROUPS`; no call twice.
    """
    shards = [(model, tp) for model in models for tp in TP_SIZES if _divides(model, tp)]
    groups = {
        "issue": _issue(dtype, GRAPH_KERNELS),
        "gemm": _gemms(shards, dtype, fp8=fp8),
        "attention_decode": _decodes(shards, dtype),
        "attention_prefill": _prefills(shards, dtype),
        "elementwise": _elementwise(models, shards, dtype),
        "collective": _collectives(dtype, num_gpus),
    }
    return {group: _shuffled(group, found) for group, found in groups.items()}


def toy_calls(*, dtype: str, num_ranks: int) -> dict[str, list[Call]]:
    """Return a few calls of every operator, small enough for any machine."""
    attention = partial(Call, num_heads=4, num_kv_heads=2, head_dim=32, dtype=dtype)
    groups = {
        "issue": _issue(dtype, (4,)),
        "gemm": [Call(operator="gemm", m=m, n=96, k=64, dtype=dtype) for m in (1, 16)],
        "attention_decode": [
            attention(operator="attention_decode", batch=b, context=31) for b in (1, 3)
        ],
        "attention_prefill": [
            attention(operator="attention_prefill", m=16, batch=1, context=c) for c in (0, 8)
        ],
        "elementwise": [
            Call(operator=operator, m=8, n=64, dtype=dtype) for operator in ELEMENTWISE
        ],
        "collective": [
            Call(operator=operator, m=8, n=64, dtype=dtype, tp=num_ranks)
            for operator in ("all_reduce", "all_gather")
            if num_ranks > 1
        ],
    }
    return {group: _shuffled(group, found) for group, found in groups.items()}


ELEMENTWISE: Final = (
    "norm",
    "norm_only",
    "rope",
    "activation",
    "add",
    "embedding",
    "kv_write",
    "sampler",
)
"""Operators of the group ``elementwise``: few operations per byte."""


def _divides(model: ModelSpec, tp: int) -> bool:
    return model.num_heads % tp == 0 and model.ffn_dim % tp == 0


def _kv_heads(model: ModelSpec, tp: int) -> int:
    """KV heads of one rank: split while there are enough, then replicated."""
    return max(1, model.num_kv_heads // tp)


def _issue(dtype: str, kernels: Iterable[int]) -> list[Call]:
    eager = Call(operator="issue", m=1, dtype=dtype, mode="eager")
    return [eager, *(Call(operator="issue", m=m, dtype=dtype) for m in kernels)]


def _gemms(shards: Sequence[tuple[ModelSpec, int]], dtype: str, *, fp8: bool) -> list[Call]:
    """Return the projections of each shard, its LM head at few rows, and the grid of widths."""
    body, head = set(product(WIDTHS, WIDTHS)), set()
    for model, tp in shards:
        hidden, query = model.hidden_size, model.num_heads // tp * model.head_dim
        body.add((query + 2 * _kv_heads(model, tp) * model.head_dim, hidden))
        body.add((hidden, query))
        matrices = 2 if model.gated_mlp else 1
        body.add((matrices * model.ffn_dim // tp, hidden))
        body.add((hidden, model.ffn_dim // tp))
        head.add((-(-model.vocab_size // tp), hidden))
    few = [m for m in TOKENS if m <= HEAD_TOKENS]
    shapes = {(m, n, k) for m in TOKENS for n, k in body}
    shapes |= {(m, n, k) for m in few for n, k in head}
    found = [Call(operator="gemm", m=m, n=n, k=k, dtype=dtype) for m, n, k in sorted(shapes)]
    if fp8:
        found += [
            Call(operator="gemm", m=m, n=n, k=k, dtype="fp8")
            for m, n, k in sorted(shapes)
            if n % 16 == 0 and k % 16 == 0 and m >= 16 and m & (m - 1) == 0
        ]
    return found


def _heads(shards: Sequence[tuple[ModelSpec, int]]) -> list[tuple[int, int, int]]:
    """Return query heads, KV heads and head dimension of the shards, each combination once."""
    return sorted({(m.num_heads // tp, _kv_heads(m, tp), m.head_dim) for m, tp in shards})


def _attention(
    operator: str,
    shards: Sequence[tuple[ModelSpec, int]],
    dtype: str,
    sizes: Iterable[tuple[int | None, int, int]],
) -> list[Call]:
    """Return the calls of all heads of the shards with all `sizes`: m, batch and context."""
    return [
        Call(
            operator=operator,
            m=m,
            batch=batch,
            context=context,
            num_heads=heads,
            num_kv_heads=kv_heads,
            head_dim=head_dim,
            dtype=dtype,
        )
        for (heads, kv_heads, head_dim), (m, batch, context) in product(_heads(shards), sizes)
    ]


def _decodes(shards: Sequence[tuple[ModelSpec, int]], dtype: str) -> list[Call]:
    sizes = [(None, b, c) for b, c in product(BATCHES, CONTEXTS) if b * (c + 1) <= MAX_CACHED]
    return _attention("attention_decode", shards, dtype, sizes)


def _prefills(shards: Sequence[tuple[ModelSpec, int]], dtype: str) -> list[Call]:
    sizes = {(m, b, 0) for m, b in product(PROMPTS, PROMPT_BATCHES) if m * b <= MAX_PROMPT_TOKENS}
    sizes |= {(m, 1, c) for m, c in product((128, 512, 2048), CHUNK_CONTEXTS)}
    return _attention("attention_prefill", shards, dtype, sorted(sizes))


def _elementwise(
    models: Sequence[ModelSpec], shards: Sequence[tuple[ModelSpec, int]], dtype: str
) -> list[Call]:
    hidden = {model.hidden_size for model in models}
    widths: dict[str, set[int]] = {
        "norm": hidden,
        "norm_only": hidden,
        "add": hidden,
        "embedding": hidden,
        "rope": {(heads + kv) * dim for heads, kv, dim in _heads(shards)},
        "activation": {model.ffn_dim // tp for model, tp in shards},
        "kv_write": {2 * kv * dim for _, kv, dim in _heads(shards)},
        "sampler": {model.vocab_size for model in models},
    }
    return [
        Call(operator=operator, m=m, n=n, dtype=dtype)
        for operator in ELEMENTWISE
        for n in _few(widths[operator])
        for m in TOKENS
        if operator != "sampler" or m <= HEAD_TOKENS
    ]


def _few(widths: Iterable[int], count: int = 3) -> list[int]:
    """Return the smallest, the largest and one between: each width costs a compilation."""
    found = sorted(widths)
    return sorted({found[0], found[len(found) // 2], found[-1]})[:count]


def _collectives(dtype: str, num_gpus: int, n: int = 8192) -> list[Call]:
    return [
        Call(operator=operator, m=m, n=n, dtype=dtype, tp=tp)
        for tp in TP_SIZES
        if 1 < tp <= num_gpus
        for operator in ("all_reduce", "all_gather")
        for m in TOKENS
    ]


def _shuffled(group: str, found: list[Call]) -> list[Call]:
    order = stream(0, "measure", group).permutation(len(found))
    return [found[i] for i in order]
