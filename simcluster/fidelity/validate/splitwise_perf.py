"""Splitwise: prompt and token times of fixed batches, Llama-2-70B on DGX A100 and H100, 2023."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from simcluster.catalog.specs import EngineProfile
from simcluster.fidelity.validate.base import Check, check
from simcluster.fidelity.validate.harness import environment, step_time, table
from simcluster.roofline import StepShape
from simcluster.units import MS, FloatArray

if TYPE_CHECKING:
    import pandas as pd

DATA_SET: Final = "splitwise_perf"
MODEL: Final = "llama-2-70b"
ENGINE: Final = "vllm-0.2"
GPUS: Final = {"a100-80gb": "A100", "h100-80gb": "H100"}
FABRIC: Final = {"A100": "nvlink3-nccl", "H100": "nvlink4-nccl"}
CPU_SPEED: Final = {"A100": 1.0, "H100": 1.45}
"""Single-thread speed of the hosts relative to the DGX A100's (two EPYC 7742, 2019).

A DGX H100 has two Xeon 8480C (2023). 1.45 is the ratio of the token times at TP 8, one
sequence behind 128 tokens (43.1 and 29.8 ms), CPU time on both; that point is not compared.
"""
_COLUMNS: Final = (
    "hardware",
    "tensor_parallel",
    "prompt_size",
    "batch_size",
    "token_size",
    "prompt_time",
    "token_time",
    "note",
)


def checks(data_dir: Path) -> list[Check]:
    """Compare medians of the repeats with one prefill step and the decode steps behind it."""
    found = []
    for hardware, gpu in GPUS.items():
        of_gpu = points(data_dir, hardware)
        prompt, token = simulated(gpu, of_gpu)
        degrees = of_gpu["tensor_parallel"].to_numpy()
        for quantity, truth, guess, must, aim in (
            ("prompt time", of_gpu["prompt_time"].to_numpy(), prompt, 0.15, 0.10),
            ("token time", of_gpu["token_time"].to_numpy(), token, 0.06, 0.05),
        ):
            about = partial(
                check, unit="ms", data_set=DATA_SET, gpu=gpu, model=MODEL, quantity=quantity
            )
            found.append(about(truth, guess, regime="all", must=must, aim=aim))
            found += [
                about(truth[degrees == tp], guess[degrees == tp], regime=f"TP {tp}")
                for tp in np.unique(degrees)
            ]
    return found


def points(data_dir: Path, hardware: str) -> pd.DataFrame:
    """Return the medians over the repeats of each batch on `hardware`."""
    frame = table(data_dir / DATA_SET / "llama2-70b.csv.gz", _COLUMNS)
    frame = frame[frame["note"].isna() & (frame["hardware"] == hardware)]
    keys = ["tensor_parallel", "prompt_size", "batch_size"]
    values = ["prompt_time", "token_time", "token_size"]
    medians = frame.groupby(keys, as_index=False)[values].median()
    return medians[(medians["tensor_parallel"] < 8) | (medians["prompt_size"] > 128)]


def simulated(
    gpu: str, of_gpu: pd.DataFrame, engine: EngineProfile | None = None
) -> tuple[FloatArray, FloatArray]:
    """Return prompt and token times (ms) of the points of a GPU, each of shape ``(n,)``."""
    where = environment(
        gpu,
        MODEL,
        engine or ENGINE,
        num_gpus=8,
        fabric=FABRIC[gpu],
        changes={"cpu_speed": CPU_SPEED[gpu]},
    )
    prompt, token = [], []
    for tp_size, length, batch, steps in zip(
        of_gpu["tensor_parallel"],
        of_gpu["prompt_size"],
        of_gpu["batch_size"],
        of_gpu["token_size"],
        strict=True,
    ):
        times = step_time(where, int(tp_size))
        chunks = ((int(length), 0),) * int(batch)
        prompt.append(times.step_s(StepShape(0, 0, chunks, int(batch), 0)) / MS)
        decode = times.decode_steps_s(int(batch), int(batch * (length + 1)), int(steps) - 1)
        token.append(decode.mean() / MS)
    return np.array(prompt), np.array(token)
