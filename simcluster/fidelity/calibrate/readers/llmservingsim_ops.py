"""Operators of Llama-3.1-8B, and attention of Qwen3-32B, in vLLM 0.19 (LLMServingSim)."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from simcluster.fidelity.calibrate.readers.samples import Samples, joined, samples
from simcluster.fidelity.calibrate.readers.tables import column, table
from simcluster.fidelity.calibrate.readers.vidur import joined_layers
from simcluster.units import US

GPUS: Final = {"RTX 4090": "RTX4090", "RTX PRO 6000 Blackwell Server": "RTXPRO6000"}
"""Catalogue name and prefix of the files."""
_HIDDEN, _WIDTH, _KV_WIDTH, _FFN, _VOCAB = 4096.0, 4096.0, 1024.0, 14336.0, 128256.0
_HEADS, _KV_HEADS, _HEAD_DIM = 32.0, 8.0, 128.0
_UNSEEN: Final = "RTXPRO6000__Qwen3-32B__tp1__attention.csv.gz"
_UNSEEN_HEADS: Final = 64.0


def read(folder: Path, gpu: str) -> Samples:
    """Layers, LM head, sampler and attention of `gpu`; groups by degree and number of tokens."""
    prefix = GPUS.get(gpu)
    parts = []
    for tp in (1, 2):
        stem = f"{prefix}__Llama-3.1-8B__tp{tp}"
        if prefix is not None and (folder / f"{stem}__dense.csv.gz").exists():
            parts += [
                read_layers(folder / f"{stem}__dense.csv.gz", tp),
                read_sampled(folder / f"{stem}__per_sequence.csv.gz", tp),
                read_attention(folder / f"{stem}__attention.csv.gz", tp),
            ]
    return joined(parts)


def read_unseen_heads(folder: Path) -> Samples:
    """Attention of Qwen3-32B on RTX PRO 6000, 8 query heads per KV head: no fit sees it."""
    return read_attention(folder / _UNSEEN, 1, _UNSEEN_HEADS)


def read_layers(path: Path, tp: int) -> Samples:
    """Multiplications and elementwise kernels of a layer; two norms in each."""
    frame = table(path, ("layer", "tokens", "time_us"))
    pivot = frame.pivot_table(index="tokens", columns="layer", values="time_us").dropna()
    tokens = np.asarray(pivot.index, dtype=np.float64)
    number = np.arange(len(tokens))
    gemms = {
        "qkv_proj": ((_WIDTH + 2 * _KV_WIDTH) / tp, _HIDDEN),
        "o_proj": (_HIDDEN, _WIDTH / tp),
        "gate_up_proj": (2 * _FFN / tp, _HIDDEN),
        "down_proj": (_HIDDEN, _FFN / tp),
    }
    elementwise = [
        ("layernorm", "norm", _HIDDEN),
        ("layernorm", "norm", _HIDDEN),
        ("rotary_emb", "rope", (_WIDTH + _KV_WIDTH) / tp),
        ("act_fn", "activation", _FFN / tp),
    ]
    group = _thirds(tokens, tp)

    def rows(name: str, operator: str, n: float, k: float, layer: object) -> Samples:
        time = column(pivot, name) * US
        return samples(
            operator, time, m=tokens, n=n, k=k, group=group, layer=np.asarray(layer, dtype=np.int64)
        )

    parts = [rows(name, "gemm", n, k, number) for name, (n, k) in gemms.items()]
    parts += [rows(name, op, n, np.nan, number) for name, op, n in elementwise]
    parts.append(rows("embedding", "embedding", _HIDDEN, np.nan, np.full(len(tokens), -1)))
    return joined_layers(parts)


def read_sampled(path: Path, tp: int) -> Samples:
    """LM head and sampler."""
    frame = table(path, ("layer", "sequences", "time_us"))
    head, sampler = (frame[frame["layer"] == name] for name in ("lm_head", "sampler"))
    m = column(head, "sequences")
    return joined(
        [
            samples(
                "gemm",
                column(head, "time_us") * US,
                m=m,
                n=_VOCAB / tp,
                k=_HIDDEN,
                group=_thirds(m, tp),
            ),
            samples(
                "sampler",
                column(sampler, "time_us") * US,
                m=column(sampler, "sequences"),
                n=_VOCAB,
                group=_thirds(column(sampler, "sequences"), tp),
            ),
        ]
    )


def read_attention(path: Path, tp: int, num_heads: float = _HEADS) -> Samples:
    """Prefill of one chunk, decode, and both in one call (chunks with nothing cached).

    Keys and values come from memory: calls whose cache would fit the second-level one take as long
    as memory does, where aiconfigurator's of the same sizes take half.
    """
    frame = table(path, ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"))
    heads = {"num_heads": num_heads / tp, "num_kv_heads": _KV_HEADS / tp, "head_dim": _HEAD_DIM}
    chunk, decodes = frame["prefill_chunk"] > 0, frame["n_decode"] > 0
    prefill, decode = frame[chunk & ~decodes], frame[~chunk & decodes]
    mixed = frame[chunk & decodes & (frame["kv_prefill"] == 0)]
    return joined(
        [
            samples(
                "attention_prefill",
                column(prefill, "time_us") * US,
                m=column(prefill, "prefill_chunk"),
                batch=1,
                context=column(prefill, "kv_prefill"),
                group=_thirds(column(prefill, "prefill_chunk"), tp),
                cold=True,
                **heads,
            ),
            samples(
                "attention_decode",
                column(decode, "time_us") * US,
                m=1,
                batch=column(decode, "n_decode"),
                context=column(decode, "kv_decode") - 1.0,
                group=_thirds(column(decode, "n_decode"), tp),
                cold=True,
                **heads,
            ),
            samples(
                "attention_mixed",
                column(mixed, "time_us") * US,
                m=column(mixed, "prefill_chunk"),
                batch=column(mixed, "n_decode"),
                context=column(mixed, "kv_decode") - 1.0,
                group=_thirds(column(mixed, "n_decode"), tp),
                **heads,
            ),
        ]
    )


def _thirds(tokens: object, tp: int) -> list[str]:
    """Groups that take turns along the sizes: every sixth size together."""
    values = np.asarray(tokens, dtype=np.float64)
    order = np.searchsorted(np.unique(values), values)
    return [f"tp{tp}-{i % 6}" for i in order]
