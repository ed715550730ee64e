"""Vidur's profiles: ``vidur_mlp``, ``vidur_attention_a100``, ``vidur_network``, CPU overhead.

All are of software of 2023 and 2024, times are medians with a resolution of 1 us.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from simcluster.errors import DataError
from simcluster.fidelity.calibrate.readers.samples import Samples, Texts, joined, samples
from simcluster.fidelity.calibrate.readers.tables import column, table
from simcluster.units import MS, FloatArray

GPUS: Final = {"A100-80GB SXM": "a100", "H100 SXM": "h100", "A40": "a40"}
"""Catalogue name and prefix of the files."""
MACHINES: Final = {
    "A100-80GB SXM": "a100_dgx",
    "A100-80GB PCIe": "a100_pairwise_nvlink",
    "H100 SXM": "h100_dgx",
}
TRAINED: Final = ("Llama-2-7b-hf", "CodeLlama-34b-Instruct-hf")
"""Models of ``vidur_mlp`` that the catalogue is fitted to; the others are for checks."""
_GEMMS: Final = ("attn_pre_proj", "attn_post_proj", "mlp_up_proj", "mlp_down_proj")
_SEQUENCE: Final = (
    "input_layernorm",
    *_GEMMS[:1],
    "attn_rope",
    *_GEMMS[1:2],
    "post_attention_layernorm",
    *_GEMMS[2:3],
    "mlp_act",
    *_GEMMS[3:],
    "add",
)
_OPERATORS: Final = {
    "input_layernorm": "norm_only",
    "post_attention_layernorm": "norm_only",
    "attn_rope": "rope",
    "mlp_act": "activation",
    "add": "add",
}
_ATTENTION: Final = {"num_heads": 32.0, "num_kv_heads": 4.0, "head_dim": 128.0}
"""Per GPU: 64 query and 8 KV heads on two."""


def read_mlp(folder: Path, gpu: str) -> Samples:
    """Layers of every profiled model on `gpu`, in groups by model."""
    files = sorted(folder.glob(f"{GPUS.get(gpu, '-')}__*.csv.gz"))
    return joined([_mlp_file(path) for path in files])


def _mlp_file(path: Path) -> Samples:
    model = path.name.removesuffix(".csv.gz").split("__")[1]
    frame = table(path, ("num_tokens", "tp", "n_head", "n_kv_head", "n_embd", "n_expanded_embd"))
    m, hidden, tp = (column(frame, name) for name in ("num_tokens", "n_embd", "tp"))
    width = hidden / tp
    kv_width = hidden / column(frame, "n_head") * column(frame, "n_kv_head") / tp
    ffn = column(frame, "n_expanded_embd") / tp
    inputs = np.where(frame["use_gated_mlp"].astype(bool), 2.0, 1.0)
    shapes: dict[str, tuple[FloatArray, FloatArray]] = {
        "attn_pre_proj": (width + 2 * kv_width, hidden),
        "attn_post_proj": (hidden, width),
        "mlp_up_proj": (inputs * ffn, hidden),
        "mlp_down_proj": (hidden, ffn),
    }
    widths = {
        "input_layernorm": hidden,
        "post_attention_layernorm": hidden,
        "add": hidden,
        "attn_rope": width + kv_width,
        "mlp_act": ffn * (inputs + 1.0) / 3.0,  # bytes as of a gated one
    }
    number = np.arange(len(frame))
    parts = []
    for name in _SEQUENCE:
        if f"{name}_median_ms" not in frame:
            continue
        n, k = shapes.get(name) or (widths[name], np.full(len(frame), np.nan))
        operator = _OPERATORS.get(name, "gemm")
        time = column(frame, f"{name}_median_ms") * MS
        times = 1
        if operator == "activation" and not frame["use_gated_mlp"].any():
            operator = "add"  # no gate: as many bytes as n says, by a kernel that only streams
        elif operator == "add" and "post_attention_layernorm_median_ms" not in frame:
            times = 2  # attention and MLP side by side: x + attention + MLP
        for _ in range(times):
            parts.append(samples(operator, time / times, m=m, n=n, k=k, group=model, layer=number))
    rows = joined_layers(parts)
    return rows


def joined_layers(parts: list[Samples]) -> Samples:
    """Join operators of the same layers: their numbers stay."""
    rows = joined(parts)
    layer = np.concatenate([part.layer for part in parts if len(part)])
    return replace(rows, layer=layer)


def read_attention(folder: Path, gpu: str) -> Samples:
    """Prefill of one chunk, and decode, of 32 query and 4 KV heads; groups by context."""
    if gpu != "A100-80GB SXM":
        return joined([])
    path = folder / "a100__64q8kv_tp2_flashattention.csv.gz"
    frame = table(path, ("is_prefill", "batch_size", "prefill_chunk_size", "kv_cache_size"))
    prefill = frame[frame["is_prefill"].astype(bool)]
    decode = frame[~frame["is_prefill"].astype(bool)]
    cached = column(decode, "kv_cache_size")
    return joined(
        [
            samples(
                "attention_prefill",
                column(prefill, "attn_prefill_median_ms") * MS,
                m=column(prefill, "prefill_chunk_size"),
                batch=1,
                context=column(prefill, "kv_cache_size"),
                group=blocks(column(prefill, "kv_cache_size")),
                **_ATTENTION,
            ),
            samples(
                "attention_decode",
                column(decode, "attn_decode_median_ms") * MS,
                m=1,
                batch=column(decode, "batch_size"),
                context=cached - 1.0,
                group=blocks(cached),
                **_ATTENTION,
            ),
        ]
    )


def blocks(sizes: FloatArray, num: int = 10) -> Texts:
    """Return the name of the block of sizes that each row is in, `num` of equal width."""
    edges = np.linspace(sizes.min(), sizes.max(), num + 1)[1:-1]
    return np.searchsorted(edges, sizes, side="right").astype(np.str_)


def read_network(folder: Path, gpu: str) -> Samples:
    """All-reduces inside a node, launched one by one with NCCL."""
    path = folder / f"{MACHINES.get(gpu, '-')}__all_reduce.csv.gz"
    if not path.exists():
        return joined([])
    frame = table(path, ("num_workers", "devices_per_node", "size", "median_ms"))
    frame = frame[frame["num_workers"] == frame["devices_per_node"]]
    return samples(
        "all_reduce",
        column(frame, "median_ms") * MS,
        m=1,
        n=column(frame, "size") / 2.0,
        tp=column(frame, "num_workers"),
        eager=True,
    )


def host_times(folder: Path, revision: str) -> list[tuple[int, float, float, float, float]]:
    """Host time of a step by tensor-parallel degree, as lines over the batch size.

    Parameters
    ----------
    folder : Path
        ``vidur_cpu_overhead``.
    revision : str
        ``"latest"``, ``"older"`` or ``"oldest"``.

    Returns
    -------
    list of tuple
        Degree, then before the first kernel: fixed (s) and per sequence (s), then the same after
        the last one.
    """
    path = folder / f"a100_{revision}.csv"
    if not path.exists():
        raise DataError(f"{path}: no such file")
    frame = table(path, ("batch_size", "tensor_parallel_degree"))
    found = []
    for tp, rows in frame.groupby("tensor_parallel_degree"):
        batch = column(rows, "batch_size")
        line: list[float] = []
        for names in (
            ("schedule", "prepare_inputs_e2e"),
            ("sampler_e2e", "process_model_outputs"),
        ):
            time_s = np.sum([column(rows, f"{name}_mean") for name in names], axis=0) * MS
            slope, fixed = np.polyfit(batch, time_s, 1) if len(set(batch)) > 1 else (0.0, time_s[0])
            line += [float(fixed), float(slope)]
        found.append((int(str(tp)), line[0], line[1], line[2], line[3]))
    return found
