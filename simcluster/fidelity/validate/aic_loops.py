"""Closed loops of InferenceMAX and InferenceX as ``aic_e2e`` has them: columns, rows, lengths."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from simcluster.fidelity.validate.harness import table
from simcluster.rng import stream
from simcluster.units import IntArray

if TYPE_CHECKING:
    import pandas as pd

FOLDER: Final = "aic_e2e"
GPUS: Final = {"h100_sxm": "H100", "b200_sxm": "B200"}
"""GPU of the catalogue by file."""
SHORTEST: Final = 0.8
"""Lengths are uniform from this share of the nominal length to it (RANDOM_RANGE_RATIO)."""
_COLUMNS: Final = (
    "backend",
    "backend_version",
    "model_path",
    "precision",
    "mode",
    "isl",
    "osl",
    "batch_size",
    "concurrency",
    "tp_size",
    "attention_dp_size",
    "moe_tp_size",
    "moe_ep_size",
    "silicon_ttft_ms",
    "silicon_tpot_ms",
    "source_tag",
)


def measured(data_dir: Path, system: str) -> pd.DataFrame:
    """Return the closed loops of a file of the set, prefill and decode together.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    DataError
        If it cannot be read as a table or lacks columns.
    """
    frame = table(data_dir / FOLDER / f"{system}.csv.gz", _COLUMNS)
    tag = frame["source_tag"].astype(str)
    exported = tag.str.startswith("2026-") | tag.str.startswith("db-dump/")
    return frame[exported & (frame["mode"] == "agg")]


def lengths(
    prompt: float, output: float, num_requests: int, seed_name: str = FOLDER
) -> tuple[IntArray, IntArray]:
    """Draw lengths of prompts and outputs (tokens), shape ``(num_requests,)`` each.

    Parameters
    ----------
    prompt, output : float
        Nominal lengths (tokens), which are the longest.
    num_requests : int
        Requests of the run.
    seed_name : str
        Name of the random stream.
    """
    rng = stream(0, seed_name)
    prompts, outputs = (
        rng.integers(int(SHORTEST * longest), int(longest) + 1, num_requests)
        for longest in (prompt, output)
    )
    return prompts, outputs
