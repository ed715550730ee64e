"""Iteration times of Llama-2-70B on DGX servers that Splitwise measured."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from simcluster.fidelity.calibrate.readers.tables import column, table
from simcluster.units import MS, FloatArray

GPUS: Final = {"A100-80GB SXM": "a100-80gb", "H100 SXM": "h100-80gb"}
"""Catalogue name and name in the set; the power-capped rows are no measurement of their own."""
MODEL: Final = "llama-2-70b"


@dataclass(frozen=True, slots=True, eq=False)
class Iterations:
    """Measured steps, arrays of shape ``(n,)``."""

    tp_size: FloatArray
    batch: FloatArray
    prompt_len: FloatArray
    output_len: FloatArray
    """Ranks; sequences; tokens of each prompt; tokens generated for each."""
    prompt_s: FloatArray
    token_s: FloatArray
    """Step with all prompts, mean decode step (s)."""


def read(folder: Path, gpu: str) -> Iterations | None:
    """Medians over the repeats of each point on `gpu`, rows with a remark left out; or None."""
    path = folder / "llama2-70b.csv.gz"
    if gpu not in GPUS or not path.exists():
        return None
    keys = ["tensor_parallel", "batch_size", "prompt_size", "token_size"]
    frame = table(path, (*keys, "hardware", "prompt_time", "token_time", "note"))
    frame = frame[frame["note"].isna() & (frame["hardware"] == GPUS[gpu])]
    medians = frame.groupby(keys, as_index=False)[["prompt_time", "token_time"]].median()
    return Iterations(
        tp_size=column(medians, "tensor_parallel"),
        batch=column(medians, "batch_size"),
        prompt_len=column(medians, "prompt_size"),
        output_len=column(medians, "token_size"),
        prompt_s=column(medians, "prompt_time") * MS,
        token_s=column(medians, "token_time") * MS,
    )
