"""InferenceMAX: closed loops of mixture-of-experts models, vLLM and TensorRT-LLM, 8 and 4 bits.

Rows without expert parallelism or data-parallel attention. The set has a run more than once, also
under two names of a model: each configuration is simulated once and compared with every row.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from simcluster.fidelity.validate.aic_e2e import DATA_SET, KV_DTYPES, TOKEN_BUDGET
from simcluster.fidelity.validate.aic_loops import GPUS, lengths, measured
from simcluster.fidelity.validate.base import Check, check
from simcluster.fidelity.validate.harness import environment, records, serve
from simcluster.units import FloatArray

if TYPE_CHECKING:
    import pandas as pd

MODELS: Final = {
    "openai/gpt-oss-120b": "gpt-oss-120b",
    "MiniMaxAI/MiniMax-M2.5": "minimax-m2",
    "moonshotai/Kimi-K2.5": "kimi-k2.5",
    "deepseek-ai/DeepSeek-R1": "deepseek-v3",
    "deepseek-ai/DeepSeek-V3": "deepseek-v3",
}
ENGINES: Final = {"vllm": "vllm-0.19", "trtllm": "trtllm-1"}
"""vLLM is 0.15 to 0.19 in these rows."""
WEIGHTS: Final = {"fp8": "fp8-block", "fp4": "nvfp4", "int4": "int4-g32"}
"""By precision; gpt-oss is MXFP4 whatever the set calls it, Kimi's integers have groups of 32."""
_BITS: Final = {"fp8": "8-bit weights", "fp4": "4-bit weights", "int4": "4-bit weights"}
SEVERAL_TOKENS: Final = (("1.2.0rc6.post3", None), ("1.1.0rc2.post2", 8.0))
"""Versions (and degrees) of TensorRT-LLM that served DeepSeek with several tokens a step (MTP): at
the same settings they take 0.45 to 0.8 of the time of 1.2.0rc6.post2. Not simulated."""
STALLED_CLIENTS: Final = 512
"""Clients of gpt-oss on H100 from which on runs are left out: the time per token is a third of the
one with 64 clients, with 20 to 460 s to the first."""
_ROUNDS: Final = 3
_MEASURED_ROUNDS: Final = 10
"""Requests per client here and in the measured runs, whose first meet all others."""
_KEYS: Final = ("backend", "model", "precision", "isl", "osl", "batch_size", "tp_size")


def checks(data_dir: Path) -> list[Check]:
    """Run each configuration's closed loop and compare mean TPOT and TTFT, row by row."""
    parts = []
    for system, gpu in GPUS.items():
        frame = rows(data_dir, system)
        ttft, tpot = simulated(gpu, frame)
        parts.append(frame.assign(gpu=gpu, ttft=ttft, tpot=tpot))
    found = []
    for bits, limits in (("8-bit weights", (0.15, 0.10)), ("4-bit weights", (0.20, 0.12))):
        here = [part[part["precision"].map(_BITS) == bits] for part in parts]
        found.append(_compared(here, bits, "TPOT", limits))
        found.append(_compared(here, bits, "TTFT"))
    found.append(_compared(parts, "8 and 4 bits", "TTFT", (0.30, 0.15)))
    for part in parts:
        for (backend, model, precision), some in part.groupby(["backend", "model", "precision"]):
            regime = f"{ENGINES[str(backend)]}, {WEIGHTS[str(precision)]}"
            if model == "gpt-oss-120b":
                regime = f"{ENGINES[str(backend)]}, mxfp4"
            found += [
                _compared([some], regime, quantity, model=str(model))
                for quantity in ("TPOT", "TTFT")
            ]
    return found


def _compared(
    parts: list[pd.DataFrame],
    regime: str,
    quantity: str,
    limits: tuple[float, float] | None = None,
    model: str = "mixtures of experts",
) -> Check:
    gpus = ", ".join(dict.fromkeys(gpu for part in parts for gpu in part["gpu"]))
    truth, guess = (
        np.concatenate([part[column].to_numpy(dtype=np.float64) for part in parts])
        for column in (f"silicon_{quantity.lower()}_ms", quantity.lower())
    )
    about = partial(check, unit="ms", data_set=DATA_SET, gpu=gpus, model=model, regime=regime)
    must, aim = limits or (None, None)
    return about(truth, guess, quantity=quantity, must=must, aim=aim)


def rows(data_dir: Path, system: str) -> pd.DataFrame:
    """Return the closed-loop runs of mixtures on one node, all experts on every rank."""
    frame = measured(data_dir, system)
    keep = frame["moe_ep_size"] == 1
    keep &= (frame["attention_dp_size"].fillna(1) == 1) & (frame["tp_size"] <= 8)
    keep &= frame["model_path"].isin(list(MODELS)) & frame["backend"].isin(list(ENGINES))
    keep &= ~((system == "h100_sxm") & (frame["batch_size"] >= STALLED_CLIENTS))
    deepseek = frame["model_path"].str.startswith("deepseek-ai/")
    for version, degree in SEVERAL_TOKENS:
        there = frame["backend_version"].astype(str) == version
        if degree is not None:
            there &= frame["tp_size"] == degree
        keep &= ~(deepseek & there)
    return frame[keep].assign(model=frame["model_path"].map(MODELS))


def simulated(gpu: str, frame: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """Return mean TTFT and TPOT (ms) of the runs of `frame`, each of shape ``(n,)``."""
    known: dict[tuple[Any, ...], tuple[float, float]] = {}
    found = []
    for row in records(frame):
        key = tuple(row[name] for name in _KEYS)
        if key not in known:
            known[key] = _one(gpu, row)
        found.append(known[key])
    ttft, tpot = np.array(found).T
    return ttft, tpot


def _one(gpu: str, row: dict[str, Any]) -> tuple[float, float]:
    """Mean TTFT and TPOT of one run (ms).

    Of the measured requests a tenth meet all others at once, of the simulated ones a third: means
    are weighted so that they count for a tenth.
    """
    clients = int(row["batch_size"])
    prompts, outputs = lengths(row["isl"], row["osl"], _ROUNDS * clients)
    where = environment(
        gpu,
        row["model"],
        ENGINES[row["backend"]],
        num_gpus=8,
        max_model_len=int(row["isl"] + row["osl"]),
        weight_dtype="mxfp4" if row["model"] == "gpt-oss-120b" else WEIGHTS[row["precision"]],
        kv_dtype=KV_DTYPES[gpu],
        changes={"max_num_seqs": clients},
    )
    requests = serve(
        where,
        prompts,
        outputs,
        tp_size=int(row["tp_size"]),
        concurrency=clients,
        chunk_size=TOKEN_BUDGET[row["backend"]],
        max_num_seqs=clients,
    )
    first = 1.0 / _MEASURED_ROUNDS
    weights = np.full(len(prompts), (1.0 - first) / (len(prompts) - clients))
    weights[:clients] = first / clients
    return (
        1e3 * float((weights * requests["ttft_s"]).sum()),
        1e3 * float((weights * requests["tpot_s"]).sum()),
    )
