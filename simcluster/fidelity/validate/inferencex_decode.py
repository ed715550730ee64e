"""InferenceX: time per output token by context and clients, vLLM on 8 H200, February 2026.

Qwen3.5-397B in 16 bits by tensor parallelism alone; MiniMax-M2.5 (fp8 by blocks) with its experts
spread over the GPUs, and seven runs of eight data-parallel ranks. The source calls these runs
experimental.
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
MODELS: Final = {"qwen3.5": "qwen3.5-397b-a17b", "minimax-m2.5": "minimax-m2"}
"""By file; MiniMax-M2.5 has the shape of M2."""
LAYOUTS: Final = {
    "qwen35_vllm_tp8": (8, 1, 1),
    "minimax_m25_vllm_tep8": (8, 1, 8),
    "minimax_m25_vllm_dep8": (1, 8, 8),
}
"""Tensor-parallel degree, data-parallel ranks and expert-parallel degree by their names there."""
_ROUNDS: Final = 4
"""Requests per client, of 10 measured."""
_COLUMNS: Final = ("model_dir", "layout", "isl", "osl", "conc", "median_ttft", "median_tpot")


def checks(data_dir: Path) -> list[Check]:
    """Run each closed loop and compare median TPOT and TTFT."""
    frame = rows(data_dir)
    ttft, tpot = simulated(frame)
    about = partial(check, unit="ms", data_set=DATA_SET, gpu=GPU)
    truth = 1e3 * frame["median_tpot"].to_numpy()
    first = 1e3 * frame["median_ttft"].to_numpy()
    both = "two mixtures"
    found = [
        about(
            truth,
            tpot,
            model=both,
            regime="all contexts",
            quantity="median TPOT",
            must=0.20,
            aim=0.12,
        ),
        about(first, ttft, model=both, regime="all contexts", quantity="median TTFT"),
    ]
    for name, model in MODELS.items():
        own = (frame["model_dir"] == name).to_numpy()
        for count in (0, *np.unique(frame["conc"].to_numpy()[own])):
            part = own & ((frame["conc"].to_numpy() == count) | (count == 0))
            regime = f"{count:.0f} clients" if count else "all contexts"
            found.append(
                about(truth[part], tpot[part], model=model, regime=regime, quantity="median TPOT")
            )
    return found


def rows(data_dir: Path) -> pd.DataFrame:
    """Return the runs of both models."""
    import pandas as pd

    frames = [table(data_dir / DATA_SET / f"{name}.csv", _COLUMNS) for name in MODELS]
    frame = pd.concat(frames, ignore_index=True)
    return frame[frame["layout"].isin(list(LAYOUTS))]


def simulated(frame: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """Return median TTFT and TPOT (ms) of the runs of `frame`, each of shape ``(n,)``."""
    ttft, tpot = [], []
    for row in records(frame):
        clients, prompt, output = (int(row[name]) for name in ("conc", "isl", "osl"))
        tp_size, dp_size, ep_size = LAYOUTS[row["layout"]]
        model = MODELS[row["model_dir"]]
        where = environment(GPU, model, ENGINE, num_gpus=8, max_model_len=prompt + output)
        requests = serve(
            where,
            np.full(_ROUNDS * clients, prompt),
            np.full(_ROUNDS * clients, output),
            tp_size=tp_size,
            dp_size=dp_size,
            ep_size=ep_size,
            concurrency=clients,
            chunk_size=where.engine.on(where.cluster.gpu).chunk_size,
        )
        ttft.append(1e3 * float(np.median(requests["ttft_s"])))
        tpot.append(1e3 * float(np.nanmedian(requests["tpot_s"])))
    return np.array(ttft), np.array(tpot)
