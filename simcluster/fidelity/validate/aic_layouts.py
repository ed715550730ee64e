"""InferenceX: closed loops of models with experts, spread over GPUs or with data-parallel ranks.

Rows of ``aic_e2e`` (b200, h100) with ``moe_ep_size`` or ``attention_dp_size`` above 1. Those of
gb200 are prefill and decode pools of different layouts, or no closed loops, and left out.

Degrees are not written alike in all exports. ``2026-03-25`` has them as they are: ``tp x dp`` and
``moe_tp x moe_ep`` are the GPUs. In the other two SGLang's and TensorRT-LLM's are squared (64, 8, 8
for 8 GPUs): 55 measured loops stand in both forms. vLLM's ``--enable-expert-parallel`` reads as
data parallelism there (4, 4, 16 for TP 4 and EP 4): InferenceX's scripts of MiniMax-M2.5 set it
without ``--data-parallel-size``, and 13 of 15 loops on H100 that were measured for both exports
have the same TPOT within 1.5 %. `normalised` undoes both. Repeated rows count once.

DeepSeek under TensorRT-LLM is taken from the last export alone. The earlier ones hold a second time
for the same image, layout and load, of half the TPOT: runs with speculative decoding (InferenceX's
``dsr1_*_trt_mtp.sh``), which nothing in the row says.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from simcluster.fidelity.validate.aic_loops import GPUS, lengths, measured
from simcluster.fidelity.validate.base import Check, check
from simcluster.fidelity.validate.harness import environment, records, serve
from simcluster.roofline.layout import Layout
from simcluster.units import FloatArray

DATA_SET: Final = "aic_layouts"
MODELS: Final = {
    "deepseek-ai/DeepSeek-R1": "deepseek-v3",
    "deepseek-ai/DeepSeek-V3": "deepseek-v3",
    "moonshotai/Kimi-K2.5": "kimi-k2.5",
    "MiniMaxAI/MiniMax-M2.5": "minimax-m2",
    "Qwen/Qwen3.5-397B-A17B": "qwen3.5-397b-a17b",
    "openai/gpt-oss-120b": "gpt-oss-120b",
}
"""Models by their names in the set. MiniMax-M2.5 has the shape of M2."""
ENGINES: Final = {"vllm": "vllm-0.19", "sglang": "sglang-0.5", "trtllm": "trtllm-1"}
WEIGHTS: Final = {
    ("deepseek-v3", "fp4"): "nvfp4",
    ("kimi-k2.5", "fp4"): "nvfp4",
    ("minimax-m2", "fp4"): "nvfp4",
    ("qwen3.5-397b-a17b", "fp8"): "fp8-block",
}
"""Weights where they are not those of the catalogue's checkpoint."""
KV_DTYPES: Final = {"trtllm": "fp8", "sglang": "fp8", "vllm": None}
"""Numbers of the KV cache by InferenceX's scripts (``dsr1_fp4_b200_trt.sh``: dtype fp8,
``dsr1_fp4_b200.sh``: fp8_e4m3); vLLM's leave it to the engine."""
TOKEN_BUDGET: Final = {"vllm": 8192, "sglang": 16384}
"""Tokens of a step: vLLM's default on these GPUs, SGLang's ``--chunked-prefill-size``.
TensorRT-LLM's follows the load: `_budget`."""
ROUNDS: Final = 4
"""Requests per client, of the 10 that were measured: mean TPOT moves by less than 2 % with all."""


@dataclass(frozen=True, slots=True)
class Loop:
    """One measured closed loop."""

    gpu: str
    backend: str
    model: str
    """GPU and model of the catalogue, engine as the set names it."""
    precision: str
    layout: Layout
    clients: int
    """Requests in the system at once."""
    isl: int
    osl: int
    """Nominal lengths (tokens)."""
    ttft_ms: float
    tpot_ms: float
    """Measured means."""


def checks(data_dir: Path) -> list[Check]:
    """Run every loop and compare mean TPOT and TTFT."""
    loops = [loop for system in GPUS for loop in rows(data_dir, system)]
    ttft, tpot = simulated(loops)
    seen = np.array([loop.tpot_ms for loop in loops])
    seen_ttft = np.array([loop.ttft_ms for loop in loops])
    about = partial(check, unit="ms", data_set=DATA_SET, gpu="H100, B200", model="MoE")
    found = [about(seen, tpot, regime="all", quantity="TPOT", must=0.25, aim=0.15)]
    found.append(about(seen_ttft, ttft, regime="all", quantity="TTFT"))
    labels = {
        "expert parallelism": [loop.layout.dp_size == 1 for loop in loops],
        "attention data parallelism": [loop.layout.dp_size > 1 for loop in loops],
    }
    for name in dict.fromkeys(f"{loop.backend}, {loop.model}, {loop.precision}" for loop in loops):
        labels[name] = [name == f"{x.backend}, {x.model}, {x.precision}" for x in loops]
    for name, chosen in labels.items():
        part = np.array(chosen)
        found.append(about(seen[part], tpot[part], regime=name, quantity="TPOT"))
    return found


def rows(data_dir: Path, system: str) -> list[Loop]:
    """Return the closed loops of `system` with expert or data parallelism, each once."""
    frame = measured(data_dir, system)
    keep = frame["model_path"].isin(list(MODELS))
    keep &= (frame["moe_ep_size"] > 1) | (frame["attention_dp_size"] > 1)
    speculative = (frame["backend"] == "trtllm") & ~frame["source_tag"].str.startswith("db-dump/")
    keep &= ~(speculative & frame["model_path"].str.contains("DeepSeek"))
    found: dict[tuple[object, ...], Loop] = {}
    for row in records(frame[keep]):
        loop = _loop(row, GPUS[system])
        same = round(loop.ttft_ms, 1), round(loop.tpot_ms, 2), loop.isl, loop.osl
        found.setdefault((loop.backend, *same), loop)
    return list(found.values())


def _loop(row: dict[str, Any], gpu: str) -> Loop:
    clients = row["concurrency"] if row["concurrency"] > 0 else row["batch_size"]
    return Loop(
        gpu=gpu,
        backend=row["backend"],
        model=MODELS[row["model_path"]],
        precision=row["precision"],
        layout=normalised(row),
        clients=int(clients),
        isl=int(row["isl"]),
        osl=int(row["osl"]),
        ttft_ms=float(row["silicon_ttft_ms"]),
        tpot_ms=float(row["silicon_tpot_ms"]),
    )


def normalised(row: dict[str, Any]) -> Layout:
    """Return the layout of a row, whose degrees may be squared: see above."""
    tp, dp, ep = (int(row[f"{name}_size"]) for name in ("tp", "attention_dp", "moe_ep"))
    if not str(row["source_tag"]).startswith("2026-03-25") and ep > 1:
        if row["backend"] == "vllm":
            return Layout(tp, 1, tp)
        return Layout(1, ep, ep) if dp > 1 else Layout(ep, 1, ep)
    return Layout(tp, dp, ep)


def _budget(loop: Loop) -> int:
    """Tokens of a step; TensorRT-LLM's holds a prompt and the clients, 8192 at least."""
    if loop.backend != "trtllm":
        return TOKEN_BUDGET[loop.backend]
    return max(8192, (loop.clients + loop.isl + 127) // 64 * 64)


def simulated(loops: list[Loop], rounds: int = ROUNDS) -> tuple[FloatArray, FloatArray]:
    """Return mean TTFT and TPOT (ms) of `loops`, each of shape ``(n,)``."""
    ttft, tpot = [], []
    for loop in loops:
        prompts, outputs = lengths(loop.isl, loop.osl, rounds * loop.clients, DATA_SET)
        where = environment(
            loop.gpu,
            loop.model,
            ENGINES[loop.backend],
            num_gpus=8,
            max_model_len=loop.isl + loop.osl,
            weight_dtype=WEIGHTS.get((loop.model, loop.precision)),
            kv_dtype=KV_DTYPES[loop.backend],
            changes={"max_num_seqs": loop.clients},
        )
        requests = serve(
            where,
            prompts,
            outputs,
            tp_size=loop.layout.tp_size,
            dp_size=loop.layout.dp_size,
            ep_size=loop.layout.ep_size,
            concurrency=loop.clients,
            chunk_size=_budget(loop),
            max_num_seqs=loop.clients,
        )
        ttft.append(1e3 * requests["ttft_s"].mean())
        tpot.append(1e3 * requests["tpot_s"].mean())
    return np.array(ttft), np.array(tpot)
