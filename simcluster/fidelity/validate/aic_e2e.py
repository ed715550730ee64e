"""InferenceMAX: closed loops of Llama-3.1-70B in 8 bits, vLLM and TensorRT-LLM, autumn 2025."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from simcluster.catalog.specs import EngineProfile
from simcluster.fidelity.validate.aic_loops import FOLDER, GPUS, SHORTEST, lengths, measured
from simcluster.fidelity.validate.base import Check, check
from simcluster.fidelity.validate.harness import environment, records, serve
from simcluster.units import FloatArray

if TYPE_CHECKING:
    import pandas as pd

DATA_SET: Final = FOLDER
MODEL: Final = "llama-3.1-70b"
MODELS: Final = {"meta-llama/Llama-3.1-70B": MODEL}
"""Dense models of the set, by their names in it."""
ENGINES: Final = {"vllm": "vllm-0.11", "trtllm": "trtllm-1"}
ASYNC: Final = "vllm-0.11-async"
"""vLLM's profile on B200 (``70b_fp8_b200_slurm.sh`` of October 2025; Hopper's differs)."""
TOKEN_BUDGET: Final = {"vllm": 8192, "trtllm": 16384}
"""Tokens of a step in InferenceMAX's scripts (``70b_fp8_*.sh``: max-num-batched-tokens,
max_num_tokens); no prefix caching, 0.9 of the memory."""
KV_DTYPES: Final = {"H100": None, "B200": "fp8"}
"""Numbers of the KV cache (None: 16 bits), which the scripts leave to the engine: on two H100, 64
requests of 1024 + 8192 tokens and 32 or 64 of 8192 + 1024 waited 6 to 60 s for room, as with 16
bits; on one B200 none did."""
WAITING: Final = {"prefill_wait_steps": 20, "prefill_wait_share": 0.9}
"""How prompts wait for others under TensorRT-LLM where 1024 tokens come in and go out and TP is
below 8 (``70b_fp8_b200_trt_slurm.sh``: batch_wait_timeout_iters, batch_wait_max_tokens_ratio)."""
_SHORT: Final = 1024
_WHOLE_NODE: Final = 8
ROUNDS: Final = 10
"""Requests per client (num-prompts = 10 x concurrency)."""


def checks(data_dir: Path) -> list[Check]:
    """Run the closed loop of every dense row in 16 or 8 bits and compare mean TPOT and TTFT."""
    found = []
    all_tpot: list[tuple[FloatArray, FloatArray]] = []
    vllm_ttft: list[tuple[FloatArray, FloatArray]] = []
    for system, must, aim in (("h100_sxm", 0.16, 0.10), ("b200_sxm", 0.12, 0.08)):
        frame = rows(data_dir, system)
        gpu = GPUS[system]
        ttft, tpot = simulated(gpu, frame)
        about = partial(check, unit="ms", data_set=DATA_SET, gpu=gpu, model=MODEL)
        truth = frame["silicon_tpot_ms"].to_numpy()
        found.append(about(truth, tpot, regime="all", quantity="TPOT", must=must, aim=aim))
        backend = frame["backend"].to_numpy()
        lengths = (
            frame["isl"].astype(str) + " in, " + frame["osl"].astype(str) + " out"
        ).to_numpy()
        degree = frame["tp_size"].to_numpy()
        parts = [(ENGINES[name], backend == name) for name in np.unique(backend)]
        parts += [(name, lengths == name) for name in np.unique(lengths)]
        parts += [(f"TP {tp:.0f}", degree == tp) for tp in np.unique(degree)]
        found += [
            about(truth[part], tpot[part], regime=name, quantity="TPOT") for name, part in parts
        ]
        all_tpot.append((truth, tpot))
        truth = frame["silicon_ttft_ms"].to_numpy()
        vllm_ttft.append((truth[backend == "vllm"], ttft[backend == "vllm"]))
        found.append(about(truth, ttft, regime="all", quantity="TTFT"))
        found += [
            about(truth[part], ttft[part], regime=ENGINES[name], quantity="TTFT")
            for name, part in ((name, backend == name) for name in np.unique(backend))
        ]
        # Little's law: clients over the time of a request of mean length, both ways.
        pairs = ((truth, frame["silicon_tpot_ms"].to_numpy()), (ttft, tpot))
        tokens = (1 + SHORTEST) / 2 * frame["osl"].to_numpy() - 1
        clients = frame["batch_size"].to_numpy()
        rates = [1e3 * clients / (first + each * tokens) for first, each in pairs]
        about = partial(about, unit="requests/s", quantity="throughput")
        found += [
            about(*(rate[backend == name] for rate in rates), regime=ENGINES[name])
            for name in np.unique(backend)
        ]
    about = partial(check, unit="ms", data_set=DATA_SET, gpu="H100, B200", model=MODEL)
    truth, tpot = (np.concatenate(part) for part in zip(*all_tpot, strict=True))
    about_tpot = partial(about, truth, tpot, quantity="TPOT")
    found.append(about_tpot(regime="all runs", must=0.05, aim=0.04))
    found.append(about_tpot(regime="all runs, tail", must=0.09, aim=0.07, limits="p90"))
    truth, ttft = (np.concatenate(part) for part in zip(*vllm_ttft, strict=True))
    found.append(about(truth, ttft, regime="vLLM", quantity="TTFT", must=0.12, aim=0.08))
    return found


def rows(data_dir: Path, system: str) -> pd.DataFrame:
    """Return the closed-loop runs of dense models in 16 or 8 bits of a system."""
    frame = measured(data_dir, system)
    keep = frame["precision"].isin(["bf16", "fp8"])
    keep &= frame["model_path"].isin(list(MODELS)) & frame["backend"].isin(list(ENGINES))
    return frame[keep]


def _waits(row: dict[str, Any]) -> bool:
    """Whether prompts of this TensorRT-LLM run waited for others."""
    return bool(row["isl"] == row["osl"] == _SHORT and row["tp_size"] < _WHOLE_NODE)


def simulated(
    gpu: str, frame: pd.DataFrame, rounds: int = ROUNDS, vllm: EngineProfile | None = None
) -> tuple[FloatArray, FloatArray]:
    """Return mean TTFT and TPOT (ms) of the runs of `frame`, each of shape ``(n,)``.

    vLLM's runs on H100 take the profile `vllm` where it is given, the catalogue's otherwise.
    """
    ttft, tpot = [], []
    for row in records(frame):
        clients = int(row["batch_size"])
        prompts, outputs = lengths(row["isl"], row["osl"], rounds * clients)
        engine: str | EngineProfile = ENGINES[row["backend"]]
        changes: dict[str, Any] = {"max_num_seqs": clients}
        if row["backend"] == "vllm" and gpu == GPUS["b200_sxm"]:
            engine = ASYNC
        elif row["backend"] == "vllm" and vllm:
            engine = vllm
        elif row["backend"] == "trtllm" and _waits(row):
            changes |= WAITING
        where = environment(
            gpu,
            MODELS[row["model_path"]],
            engine,
            num_gpus=8,
            max_model_len=int(row["isl"] + row["osl"]),
            weight_dtype="fp8" if row["precision"] == "fp8" else None,
            kv_dtype=KV_DTYPES[gpu],
            changes=changes,
        )
        tp_size = int(row["tp_size"])
        requests = serve(
            where,
            prompts,
            outputs,
            tp_size=tp_size,
            concurrency=clients,
            chunk_size=TOKEN_BUDGET[row["backend"]],
            max_num_seqs=clients,
        )
        ttft.append(1e3 * requests["ttft_s"].mean())
        tpot.append(1e3 * requests["tpot_s"].mean())
    return np.array(ttft), np.array(tpot)
