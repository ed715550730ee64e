"""The kernel law against measured layers; round constants, so the bounds are loose.

The catalogue's own constants are held to tighter bounds where they are calibrated.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simcluster.catalog.specs import GPUSpec
from simcluster.config import ModelConfig
from simcluster.roofline.kernels import KernelTimer
from simcluster.roofline.operators import layer_operators
from simcluster.testing.specs import a100, codellama_34b, h100

DATA = Path(
    os.environ.get(
        "SIMCLUSTER_DATA", str(Path(__file__).resolve().parents[2] / ".." / "shared" / "data")
    )
)
MEASURED = {
    "qkv_proj": "attn_pre_proj_median_ms",
    "o_proj": "attn_post_proj_median_ms",
    "up_proj": "mlp_up_proj_median_ms",
    "down_proj": "mlp_down_proj_median_ms",
}


def predict_ms(gpu: GPUSpec, row: pd.Series) -> float:
    """Sum of the four multiplications of a layer with the shape of `row` (ms)."""
    spec = codellama_34b(
        hidden_size=int(row["n_embd"]),
        num_heads=int(row["n_head"]),
        num_kv_heads=int(row["n_kv_head"]),
        head_dim=int(row["n_embd"]) // int(row["n_head"]),
        ffn_dim=int(row["n_expanded_embd"]),
        gated_mlp=bool(row["use_gated_mlp"]),
    )
    model = ModelConfig(spec=spec, max_model_len=4096)
    operators = layer_operators(model, spec.layers[0].layer, int(row["tp"]), int(row["num_tokens"]))
    timer = KernelTimer(gpu)
    return 1e3 * sum(
        timer.gemm_s(op.flops, op.bytes, op.weight_bytes) for op in operators if op.kind == "gemm"
    )


@pytest.mark.parametrize("name", ["a100", "h100"])
def test_the_multiplications_of_a_layer_are_near_the_measured_ones(name: str) -> None:
    """Mean error over every third token count of each model and degree, 1 to 4096 tokens."""
    files = sorted((DATA / "vidur_mlp").glob(f"{name}__*.csv.gz"))
    if not files:
        pytest.skip(f"no measured layers (vidur_mlp) under SIMCLUSTER_DATA for {name}")
    gpu = {"a100": a100, "h100": h100}[name]()
    for path in files:
        rows = pd.read_csv(path).iloc[::3]
        predicted = np.array([predict_ms(gpu, row) for _, row in rows.iterrows()])
        measured = rows[list(MEASURED.values())].sum(axis=1).to_numpy()
        error = np.abs(predicted / measured - 1)
        print(f"{path.name}: mean error {error.mean():.1%}, 90th {np.quantile(error, 0.9):.1%}")  # noqa: T201 (shown with -s)
        assert error.mean() < 0.15
