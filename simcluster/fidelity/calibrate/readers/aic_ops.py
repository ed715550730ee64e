"""The operator tables of NVIDIA's aiconfigurator: ``aic_ops``, vLLM of 2025 and 2026."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from simcluster.fidelity.calibrate.readers.samples import Samples, joined, samples
from simcluster.fidelity.calibrate.readers.tables import column, table
from simcluster.units import MS

if TYPE_CHECKING:
    import pandas as pd

GPUS: Final = {
    "A100-80GB SXM": "a100_sxm",
    "H100 SXM": "h100_sxm",
    "B200 SXM": "b200_sxm",
    "L40S": "l40s",
    "RTX PRO 6000 Blackwell Server": "rtx_pro_6000_server",
}
"""Catalogue name and prefix of the files."""
LEAST_WIDTH: Final = 1024
"""Narrower multiplications (n or k) are left out: no layer of a served model has them."""
_NUMBER_BYTES: Final = {"bfloat16": 2.0, "fp8": 1.0}


def read(folder: Path, gpu: str) -> Samples:
    """Multiplications, attention and experts of `gpu`; groups by n and by query heads."""
    system = GPUS.get(gpu)
    if system is None or not (folder / f"{system}__gemm.csv.gz").exists():
        return joined([])
    return joined(
        [
            read_gemm(folder, system),
            read_attention(folder, system, "context"),
            read_attention(folder, system, "generation"),
            read_moe(folder, system),
        ]
    )


def read_gemm(folder: Path, system: str) -> Samples:
    """Multiplications with 16-bit and with 8-bit weights (per tensor)."""
    path = folder / f"{system}__gemm.csv.gz"
    frame = table(path, ("gemm_dtype", "m", "n", "k", "latency_ms"))
    frame = frame[frame["gemm_dtype"].isin(_NUMBER_BYTES)]
    frame = frame[(frame["n"] >= LEAST_WIDTH) & (frame["k"] >= LEAST_WIDTH)]
    return samples(
        "gemm",
        column(frame, "latency_ms") * MS,
        m=column(frame, "m"),
        n=column(frame, "n"),
        k=column(frame, "k"),
        num_bytes=frame["gemm_dtype"].map(_NUMBER_BYTES),
        group=frame["n"].astype(str),
    )


def read_attention(folder: Path, system: str, phase: str) -> Samples:
    """Attention without a window, heads of 128; `phase` context or generation.

    The cache has 16 bits, in generation 8 bits too; multiplications have 16 bits.
    """
    path = folder / f"{system}__attn_{phase}.csv.gz"
    wanted = ("batch_size", "isl", "num_heads", "num_key_value_heads", "step", "latency_ms")
    prefill = phase == "context"
    frame = _plain(table(path, wanted), ("bfloat16",) if prefill else tuple(_NUMBER_BYTES))
    heads, kv_heads = column(frame, "num_heads"), column(frame, "num_key_value_heads")
    return samples(
        "attention_prefill" if prefill else "attention_decode",
        column(frame, "latency_ms") * MS,
        m=column(frame, "isl"),
        batch=column(frame, "batch_size"),
        context=0.0 if prefill else column(frame, "step"),
        num_heads=heads,
        num_kv_heads=np.where(kv_heads > 0, kv_heads, heads),
        head_dim=column(frame, "head_dim"),
        num_bytes=frame["kv_cache_dtype"].map(_NUMBER_BYTES),
        group=frame["num_heads"].astype(str),
    )


def _plain(frame: pd.DataFrame, caches: tuple[str, ...]) -> pd.DataFrame:
    frame = frame[frame["kv_cache_dtype"].isin(caches) & (frame["head_dim"] == 128)]
    if "attn_dtype" in frame:
        frame = frame[frame["attn_dtype"] == "bfloat16"]
    if "window_size" in frame:
        frame = frame[frame["window_size"] == 0]
    return frame


def read_moe(folder: Path, system: str) -> Samples:
    """Experts with 16-bit weights, all on one GPU or each split, as evenly popular as measured."""
    wanted = ("moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts")
    frame = table(folder / f"{system}__moe.csv.gz", wanted)
    frame = frame[(frame["moe_dtype"] == "bfloat16") & (frame["moe_ep_size"] == 1)]
    balanced = bool((frame["distribution"] == "balanced").any())
    frame = frame[frame["distribution"] == ("balanced" if balanced else "power_law_1.01")]
    most = np.minimum(column(frame, "num_experts"), column(frame, "num_tokens") * frame["topk"])
    return samples(
        "moe",
        column(frame, "latency_ms") * MS,
        m=column(frame, "num_tokens"),
        n=column(frame, "inter_size") / column(frame, "moe_tp_size"),
        k=column(frame, "hidden_size"),
        num_experts=column(frame, "num_experts"),
        top_k=column(frame, "topk"),
        touched=most if balanced else np.nan,
        group=frame["hidden_size"].astype(str),
    )


def read_links(folder: Path, gpu: str) -> Samples:
    """All-reduces of NCCL."""
    system = GPUS.get(gpu)
    if system is None or not (folder / f"{system}__nccl.csv.gz").exists():
        return joined([])
    return read_nccl(folder, system)


def read_custom(folder: Path, system: str) -> Samples:
    """All-reduces of the engine's own kernel in a captured graph."""
    path = folder / f"{system}__custom_allreduce.csv.gz"
    frame = table(path, ("num_gpus", "message_size", "latency_ms", "backend"))
    frame = frame[frame["backend"] == "vllm_graph"]
    return samples(
        "all_reduce",
        column(frame, "latency_ms") * MS,
        m=1,
        n=column(frame, "message_size"),
        tp=column(frame, "num_gpus"),
    )


def read_nccl(folder: Path, system: str) -> Samples:
    """All-reduces of NCCL on 16-bit numbers."""
    path = folder / f"{system}__nccl.csv.gz"
    frame = table(path, ("op_name", "nccl_dtype", "num_gpus", "message_size", "latency_ms"))
    frame = frame[(frame["op_name"] == "all_reduce") & (frame["nccl_dtype"] == "half")]
    return samples(
        "all_reduce",
        column(frame, "latency_ms") * MS,
        m=1,
        n=column(frame, "message_size"),
        tp=column(frame, "num_gpus"),
    )
