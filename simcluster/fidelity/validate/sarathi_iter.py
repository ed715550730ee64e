"""Sarathi-Serve: iteration times of Yi-34B on two bridged A100, 2023-2024."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from simcluster.fidelity.validate.base import Check, check
from simcluster.fidelity.validate.harness import environment, step_time, table
from simcluster.roofline import StepShape

DATA_SET: Final = "sarathi_iter"
MODEL: Final = "yi-34b"
GPU: Final = "A100 PCIe"
ENGINE: Final = "sarathi"
_TP_SIZE: Final = 2
_CONTEXT: Final = 1024
"""Tokens behind each decoding sequence."""


def checks(data_dir: Path) -> list[Check]:
    """Compare steps of one prompt, and of decoding sequences behind 1024 tokens."""
    where = environment(GPU, MODEL, ENGINE, num_gpus=_TP_SIZE, fabric="nvlink3-bridge")
    times = step_time(where, _TP_SIZE)
    about = partial(check, data_set=DATA_SET, gpu=GPU, model=MODEL, quantity="step time")
    found = []
    for regime in ("prefill", "decode"):
        column = f"batch_num_{regime}_tokens"
        frame = table(
            data_dir / DATA_SET / f"figure-2__{regime}.csv", (column, "batch_execution_time")
        )
        simulated = [
            times.prefill_s(int(tokens))
            if regime == "prefill"
            else times.step_s(StepShape(int(tokens), int(tokens) * (_CONTEXT + 1), (), 0, 0))
            for tokens in frame[column]
        ]
        found.append(about(frame["batch_execution_time"].to_numpy(), simulated, regime=regime))
    return found
