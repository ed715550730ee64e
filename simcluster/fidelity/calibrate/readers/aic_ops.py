"""The operator tables of NVIDIA's aiconfigurator: ``aic_ops``, vLLM of 2025 and 2026."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from simcluster.catalog.layers import WEIGHT_DTYPES
from simcluster.fidelity.calibrate.readers.samples import Samples, joined, samples
from simcluster.fidelity.calibrate.readers.tables import column, table
from simcluster.fidelity.calibrate.tiles import tiles_of
from simcluster.units import MS, IntArray

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
_NUMBER_BYTES: Final = {
    "bfloat16": 2.0,
    "fp8": 1.0,
    "fp8_block": WEIGHT_DTYPES["fp8-block"].num_bytes,
}
_OLD: Final = "0.14.0"
_EXPERTS: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "bfloat16": ("bf16", {_OLD: "by-experts", "": "by-tokens"}),
    "fp8": ("fp8", {_OLD: "by-experts", "": "by-tokens"}),
    "fp8_block": ("fp8-block", {_OLD: "block", "": "block-by-tokens"}),
    "int4_wo": ("int4", {_OLD: "marlin", "": "wna16"}),
    "nvfp4": ("nvfp4", {"": "trtllm"}),
    "w4a16_mxfp4": ("mxfp4", {"": "trtllm"}),
}
"""Weights, and rule of tiles by version of vLLM (the last for all others), by name in the tables.

4-bit integers went through Marlin's kernel in the collector for 0.14 (``vllm_marlin_moe``), through
``fused_experts`` and so Triton's in that for 0.19 (``collect_moe.py``), whatever the table says.
"""


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
    """Experts all on one GPU or each split, of all dtypes and all three spreads of tokens."""
    wanted = ("moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts")
    frame = table(folder / f"{system}__moe.csv.gz", (*wanted, "distribution", "framework_version"))
    frame = frame[frame["moe_dtype"].isin(_EXPERTS) & (frame["moe_ep_size"] == 1)]
    found = []
    for (dtype, version), rows in frame.groupby(["moe_dtype", "framework_version"]):
        weights, by_version = _EXPERTS[str(dtype)]
        rule = by_version.get(str(version), by_version[""])
        tokens, top_k, experts = (
            column(rows, name) for name in ("num_tokens", "topk", "num_experts")
        )
        heights, _ = tiles_of(rule, tokens, tokens * top_k, experts)
        spread = [
            _tiled(int(m), int(e), int(k), str(name), int(height))
            for m, e, k, name, height in zip(
                tokens, experts, top_k, rows["distribution"], heights, strict=True
            )
        ]
        touched, padded = np.array(spread, dtype=np.float64).T
        found.append(
            samples(
                "moe",
                column(rows, "latency_ms") * MS,
                m=tokens,
                n=column(rows, "inter_size") / column(rows, "moe_tp_size"),
                k=column(rows, "hidden_size"),
                num_experts=experts,
                top_k=top_k,
                touched=touched,
                padded=padded,
                num_bytes=WEIGHT_DTYPES[weights].num_bytes,
                kernel=f"{weights} {rule}",
                group=rows["hidden_size"].astype(str),
            )
        )
    return joined(found)


@lru_cache(maxsize=65536)
def _tiled(tokens: int, experts: int, top_k: int, spread: str, tile_rows: int) -> tuple[int, int]:
    """Return experts that some token visits, and their rows in whole tiles."""
    visits = _visits(tokens, experts, top_k, spread)
    tiles = -(-visits // tile_rows)
    return int((visits > 0).sum()), int(tiles.sum()) * tile_rows


@lru_cache(maxsize=4096)
def _visits(tokens: int, experts: int, top_k: int, spread: str) -> IntArray:
    """Return visits of each expert as the benchmark deals them out (collector/helper.py).

    ``balanced``: in turn. ``power_law_ALPHA``: in proportion to draws from a power law between 1
    and 0.8 tokens (0.01 and 2 where there are more experts than visits), here its quantiles.
    """
    if spread == "balanced":
        stride = -(-experts // top_k)
        at = np.arange(tokens, dtype=np.float64)[:, None]
        if tokens < stride:
            at = at * stride / tokens
        visited = (at + stride * np.arange(top_k)).astype(np.int64) % experts
        return np.bincount(visited.ravel(), minlength=experts).astype(np.int64)
    alpha = float(spread.rpartition("_")[2])
    low, high = (1.0, 0.8 * tokens) if tokens * top_k > experts else (0.01, 2.0)
    ends = low ** (1.0 - alpha), high ** (1.0 - alpha)
    quantiles = (np.arange(experts) + 0.5) / experts
    drawn = (ends[0] + (ends[1] - ends[0]) * quantiles) ** (1.0 / (1.0 - alpha))
    visits: IntArray = np.rint(drawn / drawn.sum() * tokens * top_k).astype(np.int64)
    missing = tokens * top_k - int(visits.sum())
    largest = np.argsort(-visits, kind="stable")
    for i in range(abs(missing)):
        one = largest[i % experts]
        visits[one] += 1 if missing > 0 else -1 if visits[one] > 1 else 0
    return np.minimum(visits, tokens)


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
