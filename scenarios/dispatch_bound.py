"""Find where decode is limited by the CPU that issues the kernels, and not by the GPU's memory.

    python scenarios/dispatch_bound.py

BestServe (arXiv 2506.05871) says that decode is "primarily limited by CPU-GPU dispatch latency".
For CodeLlama-34B on A100 and Ascend 910B3 this compares, for each tensor-parallel degree and batch,
the time to issue the kernels of a decode step one by one with the time to run them, and then does
the same with a captured graph. Issue costs are those of the engine profile `eager`; none is tuned
here.
"""

from __future__ import annotations

import dataclasses

import pandas as pd

from simcluster import catalog
from simcluster.config import ModelConfig
from simcluster.roofline import RooflineStepTime
from simcluster.roofline.base import StepShape

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
DEGREES = (1, 2, 4, 8)
GPUS = ("A100-80GB SXM", "Ascend 910B3")
CONTEXT = 1000
"""Tokens that each sequence attends to."""


def decode_step(gpu: str, tp_size: int, batch: int, *, graph: bool) -> dict[str, object]:
    """One decode step: what issuing takes, what running takes, what the step takes (ms)."""
    spec = catalog.gpu(gpu)
    engine = catalog.engine("eager")
    if graph:
        captured = catalog.engine("vllm-0.7")
        engine = dataclasses.replace(
            engine, graph_max_seqs=captured.graph_max_seqs, graph_issue_s=captured.graph_issue_s
        )
    model = ModelConfig(spec=catalog.model("codellama-34b"), max_model_len=16384)
    times = RooflineStepTime(model, spec, catalog.link(spec.fabric), engine, tp_size)
    shape = StepShape(batch, batch * CONTEXT, (), batch, batch * CONTEXT)
    schedule = times.kernels(shape)
    issue_s = sum(run.repeat * sum(run.issue_s) for run in schedule.runs)
    run_s = sum(run.repeat * sum(run.run_s) for run in schedule.runs)
    return {
        "gpu": spec.name,
        "dispatch": "graph" if graph else "eager",
        "tp_size": tp_size,
        "batch": batch,
        "issue_ms": 1e3 * issue_s,
        "run_ms": 1e3 * run_s,
        "gpu_step_ms": 1e3 * times.gpu_s(shape),
        "bound": "dispatch" if issue_s > run_s else "memory",
    }


def study() -> pd.DataFrame:
    """Every GPU, way of issuing, degree and batch."""
    return pd.DataFrame(
        [
            decode_step(gpu, tp_size, batch, graph=graph)
            for gpu in GPUS
            for graph in (False, True)
            for tp_size in DEGREES
            for batch in BATCHES
        ]
    )


def turning_points(cells: pd.DataFrame) -> pd.DataFrame:
    """The largest batch whose step is dispatch-bound, per GPU, way of issuing and degree."""
    bound = cells.assign(batch=cells["batch"].where(cells["bound"] == "dispatch", 0))
    return bound.pivot_table(
        index=["gpu", "dispatch"], columns="tp_size", values="batch", aggfunc="max"
    )


def main() -> None:
    """Print the tables."""
    cells = study()
    print(f"CodeLlama-34B, decode, {CONTEXT} tokens of context per sequence\n")
    print("Largest batch at which issuing the kernels takes longer than running them (0: none):\n")
    print(turning_points(cells).to_string())
    eager = cells[(cells["dispatch"] == "eager") & cells["batch"].isin((1, 32, 256))]
    print("\nTime of a decode step on the GPU (ms):\n")
    print(
        eager.pivot_table(
            index=["gpu", "batch"], columns="tp_size", values=["issue_ms", "gpu_step_ms"]
        )
        .round(1)
        .to_string()
    )


if __name__ == "__main__":
    main()
