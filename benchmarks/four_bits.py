"""How near NVFP4 multiplications are to aiconfigurator's tables, and the shares in gpus.toml.

    python benchmarks/four_bits.py FOLDER

FOLDER is ``aiconfigurator_core/systems/data`` of the wheel aiconfigurator-core 0.12.0 (Apache-2.0).
Of multiplications, rows of 1,024 and more with weights of 4 million numbers and more count: there
arithmetic rules. The share is the one whose median error is nil. Experts: 500 rows without expert
parallelism, drawn with a fixed seed.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from simcluster import catalog
from simcluster.catalog.layers import WEIGHT_DTYPES
from simcluster.catalog.specs import GPUSpec
from simcluster.roofline.kernels import KernelTimer
from simcluster.roofline.operators import ACTIVATION_BYTES, experts_touched

PARTS = {
    "B200": "b200_sxm",
    "GB200": "gb200",
    "B300": "b300_sxm",
    "GB300": "gb300",
    "RTX PRO 6000": "rtx_pro_6000_server",
}
NVFP4 = WEIGHT_DTYPES["nvfp4"].num_bytes


def gemm_s(
    timer: KernelTimer, in_4_bits: bool, m: float, n: float, k: float, groups: float
) -> float:
    """Time of `groups` multiplications of `m` rows together (s)."""
    moved = NVFP4 * groups * n * k + ACTIVATION_BYTES * m * (n + k)
    number = 0.5 if in_4_bits else ACTIVATION_BYTES
    return timer.gemm_s(
        2.0 * m * n * k, moved, number, m / groups, n, groups, unpacks=not in_4_bits
    )


def dense_errors(gpu: GPUSpec, rows: pd.DataFrame, *, in_4_bits: bool = True) -> np.ndarray:
    """Relative errors of dense multiplications."""
    timer = KernelTimer(gpu)
    times = [gemm_s(timer, in_4_bits, m, n, k, 1.0) for m, n, k in rows[["m", "n", "k"]].to_numpy()]
    return np.array(times) * 1e3 / rows["latency"].to_numpy() - 1.0


def expert_errors(gpu: GPUSpec, rows: pd.DataFrame, *, in_4_bits: bool) -> np.ndarray:
    """Relative errors of gated experts."""
    timer, found = KernelTimer(gpu), []
    for row in rows.itertuples():
        routed, width = float(row.num_tokens * row.topk), row.inter_size / row.moe_tp_size
        touched = experts_touched(row.num_experts, row.topk, row.num_tokens)
        time_s = timer.elementwise_s(6.0 * routed * width, "activation", routed)
        for num_in, num_out in ((row.hidden_size, 2.0 * width), (width, row.hidden_size)):
            time_s += gemm_s(timer, in_4_bits, routed, num_out, num_in, touched)
        found.append(time_s * 1e3 / row.latency - 1.0)
    return np.array(found)


def fitted_share(gpu: GPUSpec, rows: pd.DataFrame) -> float:
    """The share of the 4-bit peak with which half of the rows are too slow."""
    low, high = 0.05, 0.95
    for _ in range(14):
        share = 0.5 * (low + high)
        slow = np.median(dense_errors(replace(gpu, mfu_4bit=share), rows)) > 0.0
        low, high = (share, high) if slow else (low, share)
    return share


def main(folder: Path) -> None:
    """Print a line per part, and one of experts on B200."""
    for name, part in PARTS.items():
        table = pd.read_parquet(folder / part / "gemm/vllm/0.24.0/gemm_perf.parquet")
        rows = table[(table.gemm_dtype == "nvfp4") & (table.n * table.k > 4e6)]
        large, small = rows[rows.m >= 1024], rows[rows.m < 64]
        gpu = catalog.gpu(name)
        shares = f"share {fitted_share(gpu, large):.3f} (catalogue {gpu.mfu_4bit})"
        errors = [
            100 * np.abs(dense_errors(gpu, large)).mean(),
            100 * np.abs(dense_errors(gpu, large, in_4_bits=False)).mean(),
            100 * np.median(dense_errors(gpu, small)),
        ]
        text = "off {:.0f} %, in 16 bits {:.0f} %; below 64 rows {:+.0f} % (median)"
        print(f"{name:13} {shares}: " + text.format(*errors))
    table = pd.read_parquet(folder / "b200_sxm/moe/vllm/0.24.0/moe_perf.parquet")
    rows = table[(table.moe_dtype == "nvfp4") & (table.moe_ep_size == 1)]
    rows = rows.iloc[np.random.default_rng(1).choice(len(rows), 500, replace=False)]
    found = [
        100 * np.abs(expert_errors(catalog.gpu("B200"), rows, in_4_bits=each)).mean()
        for each in (True, False)
    ]
    print("B200 experts: off {:.0f} %, in 16 bits {:.0f} %".format(*found))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Use: python benchmarks/four_bits.py FOLDER")
    main(Path(sys.argv[1]))
