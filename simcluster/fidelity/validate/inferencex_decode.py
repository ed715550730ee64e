"""InferenceX: time per output token by context and clients, vLLM on 8 H200, February 2026.

Layouts of tensor parallelism alone: Qwen3.5-397B in 16 bits. Those of MiniMax-M2.5 have expert
parallelism. The source calls these runs experimental.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from simcluster.fidelity.validate.base import Check, check
from simcluster.fidelity.validate.harness import environment, records, serve, table
from simcluster.units import FloatArray

if TYPE_CHECKING:
    import pandas as pd

DATA_SET: Final = "inferencex_decode"
GPU: Final = "H200"
ENGINE: Final = "vllm-0.19"
LAYOUT: Final = "qwen35_vllm_tp8"
MODEL: Final = "qwen3.5-397b-a17b"
_DEGREE: Final = 8
_ROUNDS: Final = 4
"""Requests per client, of 10 measured."""
_COLUMNS: Final = ("layout", "isl", "osl", "conc", "median_ttft", "median_tpot")


def checks(data_dir: Path) -> list[Check]:
    """Run each closed loop and compare median TPOT and TTFT."""
    frame = rows(data_dir)
    ttft, tpot = simulated(frame)
    about = partial(check, unit="ms", data_set=DATA_SET, gpu=GPU, model=MODEL)
    truth = 1e3 * frame["median_tpot"].to_numpy()
    clients = frame["conc"].to_numpy()
    found = [
        about(truth, tpot, regime="all contexts", quantity="median TPOT", must=0.20, aim=0.12),
        about(
            1e3 * frame["median_ttft"].to_numpy(),
            ttft,
            regime="all contexts",
            quantity="median TTFT",
        ),
    ]
    for count in np.unique(clients):
        part = clients == count
        regime = f"{count:.0f} clients"
        found.append(about(truth[part], tpot[part], regime=regime, quantity="median TPOT"))
    return found


def rows(data_dir: Path) -> pd.DataFrame:
    """Return the runs of Qwen3.5 with tensor parallelism alone."""
    frame = table(data_dir / DATA_SET / "qwen3.5.csv", _COLUMNS)
    return frame[frame["layout"] == LAYOUT]


def simulated(frame: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """Return median TTFT and TPOT (ms) of the runs of `frame`, each of shape ``(n,)``."""
    ttft, tpot = [], []
    for row in records(frame):
        clients, prompt, output = (int(row[name]) for name in ("conc", "isl", "osl"))
        where = environment(GPU, MODEL, ENGINE, num_gpus=_DEGREE, max_model_len=prompt + output)
        requests = serve(
            where,
            np.full(_ROUNDS * clients, prompt),
            np.full(_ROUNDS * clients, output),
            tp_size=_DEGREE,
            concurrency=clients,
            chunk_size=where.engine.on(where.cluster.gpu).chunk_size,
        )
        ttft.append(1e3 * float(np.median(requests["ttft_s"])))
        tpot.append(1e3 * float(np.nanmedian(requests["tpot_s"])))
    return np.array(ttft), np.array(tpot)
