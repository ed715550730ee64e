"""Published vLLM numbers of late 2024 and early 2025: fixed batches and short serving runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Final

from simcluster.accuracy.base import Check, check
from simcluster.accuracy.harness import environment, records, serve, table
from simcluster.units import MS

DATA_SET: Final = "published_anchors"
ENGINE: Final = "vllm-0.7"
_BATCH, _PROMPT, _OUTPUT = 8, 32, 128
"""The latency test of vLLM's nightly benchmark."""


def checks(data_dir: Path) -> list[Check]:
    """Compare the end-to-end time of eight sequences started together."""
    frame = table(
        data_dir / DATA_SET / "vllm_nightly.csv", ("gpu", "test", "model", "tp", "value", "unit")
    )
    found = []
    for row in records(frame[frame["test"] == "latency"]):
        tp_size = int(row["tp"])
        where = environment(row["gpu"], row["model"], ENGINE, num_gpus=tp_size, max_model_len=4096)
        done = serve(where, [_PROMPT] * _BATCH, [_OUTPUT] * _BATCH, tp_size=tp_size)
        about = partial(check, data_set=DATA_SET, gpu=row["gpu"], model=row["model"])
        found.append(
            about(
                [row["value"] * MS],
                [float(done["e2el_s"].max())],
                regime=f"nightly, TP {tp_size}",
                quantity="latency",
            )
        )
    return found
