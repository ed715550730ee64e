"""DistServe: the authors' fits of vLLM's forward passes of OPT on A100, early 2024."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from simcluster.fidelity.validate.base import Check, check
from simcluster.fidelity.validate.harness import environment, records, step_time, table
from simcluster.roofline import StepShape
from simcluster.units import MS

DATA_SET: Final = "distserve_fits"
GPU: Final = "A100"
ENGINE: Final = "vllm-0.2"
FABRIC: Final = "nvlink3-nccl"
_BATCHES: Final = (1, 4, 16, 64)
_CONTEXT: Final = 512
_PROMPTS: Final = (128, 256, 512, 1024)
"""Where the fits are evaluated: sequences behind 512 tokens, prompts of one sequence (OPT ends at
2048 tokens)."""
_COLUMNS: Final = (
    "engine",
    "model",
    "tp",
    *(f"prefill_{x}" for x in "abc"),
    *(f"decoding_smallbs_{x}" for x in "abc"),
)


def checks(data_dir: Path) -> list[Check]:
    """Compare prefill and decode steps of OPT-13B and 66B."""
    frame = table(data_dir / DATA_SET / "a100_80g_latency_fits.csv", _COLUMNS)
    prefill: list[tuple[float, float]] = []
    decode: list[tuple[float, float]] = []
    for row in records(frame[frame["engine"] == "vllm"]):
        tp_size = int(row["tp"])
        model = str(row["model"]).removeprefix("facebook/")
        if tp_size == 3:
            continue  # 72 heads, but 50,272 words cannot be shared out over three
        where = environment(GPU, model, ENGINE, num_gpus=8, max_model_len=2048, fabric=FABRIC)
        times = step_time(where, tp_size)
        for length in _PROMPTS:
            fit = row["prefill_a"] + row["prefill_b"] * length + row["prefill_c"] * length**2
            prefill.append((fit * MS, times.prefill_s(length)))
        for batch in _BATCHES:
            tokens = batch * _CONTEXT
            fit = row["decoding_smallbs_a"] + row["decoding_smallbs_b"] * tokens
            fit += row["decoding_smallbs_c"] * batch
            decode.append((fit * MS, times.step_s(StepShape(batch, tokens, (), batch, tokens))))
    about = partial(
        check, data_set=DATA_SET, gpu=GPU, model="opt-13b, opt-66b", quantity="step time"
    )
    return [
        about(*np.transpose(pairs), regime=regime)
        for regime, pairs in (("prefill", prefill), ("decode", decode))
    ]
