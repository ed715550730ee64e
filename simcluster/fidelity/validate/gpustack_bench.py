"""GPUStack's performance lab: bursts of requests under vLLM on A100 and H100, autumn 2025.

Its FP8 rows on A100 are the ones on GPUs that do not multiply FP8: weights are read in 8 bits
(Marlin's kernels) and multiplied in 16. Rows of other engines, of expert parallelism and of models
that are not in the catalogue are left out; those of H100 and of gpt-oss count from 2,000 tokens of
prompt on, where the GPU and not the API server decides.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from simcluster import catalog
from simcluster.fidelity.validate.base import Check, check
from simcluster.fidelity.validate.harness import environment, records, serve, table
from simcluster.units import FloatArray, IntArray

if TYPE_CHECKING:
    import pandas as pd

DATA_SET: Final = "gpustack_bench"
ENGINE: Final = "vllm-0.11"
"""The documents name vLLM 0.11.0."""
ASYNC: Final = "vllm-0.11-async"
"""The same with ``--async-scheduling``."""
GPU: Final = "A100"
MODELS: Final[dict[str, tuple[str, str | None]]] = {
    "Qwen/Qwen3-32B": ("qwen3-32b", None),
    "Qwen/Qwen3-32B-FP8": ("qwen3-32b", "fp8-block"),
    "Qwen/Qwen3-32B-AWQ": ("qwen3-32b", "int4"),
    "Qwen/Qwen3-235B-A22B-Instruct-2507": ("qwen3-235b-a22b", None),
    "Qwen/Qwen3-235B-A22B-Instruct-2507-FP8": ("qwen3-235b-a22b", "fp8-block"),
}
"""Model and weights by the name that is served."""
LONG_MODELS: Final = {
    **MODELS,
    "openai/gpt-oss-120b": ("gpt-oss-120b", None),
    "openai/gpt-oss-20b": ("gpt-oss-20b", None),
}
"""The same for prompts from `LONG` tokens on."""
LONG: Final = 1990
"""Mean tokens of a prompt from which on rows of both GPUs count: 500 prompts of 2000 or of 4000
tokens, 100 of 32000."""
_NO_ROOM: Final = ("h100", "vllm serve Qwen/Qwen3-32B", 32000)
"""GPU, command and tokens of prompts that are left out: beside the weights there is room for 17,000
tokens, so the command lacks a setting."""
BITS: Final = {None: 16, "fp8-block": 8, "int4": 4}
_EIGHT: Final = 8
_QUANTITIES: Final = (("output tokens/s", "tokens/s"), ("TTFT", "ms"), ("TPOT", "ms"))
_NUM_GPUS: Final = 8
_SHORT_ANSWER: Final = 4
"""Answers of this length come from bursts that wait for the API server, not for the GPU."""
_FIXED_FROM: Final = 1000
"""Prompts of this mean length (tokens) and more, and of `_FIXED`, are all as long."""
_FIXED: Final = 128
_LENGTHS: Final = "lengths_helix"
_COMMAND: Final = re.compile(
    r"vllm serve (\S+)"
    r"(?: --max-model-len \d+| -tp (\d+)| --max-num-batched-tokens (\d+)| (--async-scheduling))*"
)
_COLUMNS: Final = (
    "gpu",
    "serving_command",
    "successful_requests",
    "total_input_tokens",
    "total_generated_tokens",
    "output_token_throughput_tok_s",
    "mean_ttft_ms",
    "mean_tpot_ms",
    "maximum_request_concurrency",
    "also_in_other_file",
)


@dataclass(frozen=True, slots=True)
class Served:
    """What a command says."""

    model: str
    weight_dtype: str | None
    tp_size: int
    chunk_size: int | None
    """Tokens of a step; None for the engine's default."""
    engine: str
    """Profile of the engine."""


def checks(data_dir: Path) -> list[Check]:
    """Serve every burst of a model of the catalogue with settings that are known."""
    frame = rows(data_dir)
    truth = frame[["output_token_throughput_tok_s", "mean_ttft_ms", "mean_tpot_ms"]].to_numpy()
    guess = simulated(data_dir, frame)
    bits = np.array([BITS[command_of(x).weight_dtype] for x in frame["serving_command"]])
    answers = (frame["total_generated_tokens"] / frame["successful_requests"]).to_numpy()
    found = []
    about = partial(
        check, data_set=DATA_SET, gpu=GPU, model="qwen3-32b, -235b-a22b", limits="median"
    )
    for kind in (16, 8, 4):
        part = (bits == kind) & (answers > _SHORT_ANSWER)
        must, aim = (0.30, 0.15) if kind == _EIGHT else (None, None)
        found += [
            about(
                truth[part, column],
                guess[part, column],
                regime=f"{kind}-bit weights",
                quantity=quantity,
                unit=unit,
                must=must,
                aim=aim,
            )
            for column, (quantity, unit) in enumerate(_QUANTITIES)
        ]
    found += long_checks(data_dir)
    part, (quantity, unit) = answers <= _SHORT_ANSWER, _QUANTITIES[0]
    pair = truth[part, 0], guess[part, 0]
    found.append(about(*pair, regime="bursts of short answers", quantity=quantity, unit=unit))
    return found


def long_checks(data_dir: Path) -> list[Check]:
    """Output tokens per second of bursts of long prompts, mixtures and dense models, both GPUs."""
    frame = rows(data_dir, ("a100", "h100"), LONG_MODELS)
    prompts = frame["total_input_tokens"] / frame["successful_requests"]
    gpu, command, longest = _NO_ROOM
    no_room = (frame["gpu"] == gpu) & (frame["serving_command"] == command) & (prompts >= longest)
    frame = frame[(prompts >= LONG) & ~no_room]
    truth = frame["output_token_throughput_tok_s"].to_numpy()
    guess = np.empty(len(frame))
    gpus = frame["gpu"].str.upper().to_numpy()
    for gpu in ("A100", "H100"):
        guess[gpus == gpu] = simulated(data_dir, frame[gpus == gpu], gpu)[:, 0]
    served = [command_of(command).model for command in frame["serving_command"]]
    mixtures = np.array([catalog.model(name).experts is not None for name in served])
    names = np.array(served)
    about = partial(check, data_set=DATA_SET, unit="tokens/s", quantity="output tokens/s")
    regime = "from 2,000 tokens"
    found = [
        about(truth, guess, gpu="A100, H100", model="all", regime=regime, must=0.20, aim=0.12),
        about(
            truth[mixtures],
            guess[mixtures],
            gpu="A100, H100",
            model="mixtures of experts",
            regime=regime,
        ),
    ]
    for gpu in ("A100", "H100"):
        for name in dict.fromkeys(served):
            part = (gpus == gpu) & (names == name)
            if part.any():
                found.append(about(truth[part], guess[part], gpu=gpu, model=name, regime=regime))
    return found


def rows(
    data_dir: Path,
    gpus: Sequence[str] = ("a100",),
    models: Mapping[str, tuple[str, str | None]] = MODELS,
) -> pd.DataFrame:
    """Return the bursts under vLLM whose model and settings are known, each once."""
    frame = table(data_dir / DATA_SET / "serving_benchmarks.csv.gz", _COLUMNS)
    frame = frame[frame["gpu"].isin(list(gpus)) & ~frame["also_in_other_file"].astype(bool)]
    frame = frame[frame["maximum_request_concurrency"].isna()]
    known = [_known(str(command), models) for command in frame["serving_command"]]
    return frame[known]


def _known(command: str, models: Mapping[str, tuple[str, str | None]]) -> bool:
    match = _COMMAND.fullmatch(command.strip())
    return match is not None and match[1] in models


def command_of(command: str) -> Served:
    """Return what `command`, one of a row of `rows`, serves."""
    match = _COMMAND.fullmatch(command.strip())
    assert match is not None, "only rows whose commands match are used"
    model, dtype = LONG_MODELS[match[1]]
    budget = int(match[3]) if match[3] else None
    return Served(model, dtype, int(match[2] or 1), budget, ASYNC if match[4] else ENGINE)


def simulated(data_dir: Path, frame: pd.DataFrame, gpu: str = GPU) -> FloatArray:
    """Return output tokens per second, mean TTFT and TPOT (ms) of each row, shape ``(n, 3)``."""
    found = []
    for row in records(frame):
        served, num = command_of(row["serving_command"]), int(row["successful_requests"])
        prompts, outputs = _lengths(
            data_dir, num, row["total_input_tokens"] / num, row["total_generated_tokens"] / num
        )
        where = environment(
            gpu,
            served.model,
            served.engine,
            num_gpus=_NUM_GPUS,
            max_model_len=int((prompts + outputs).max()),
            weight_dtype=served.weight_dtype,
        )
        limits = where.engine.on(where.cluster.gpu)
        requests = serve(
            where,
            prompts,
            outputs,
            tp_size=served.tp_size,
            chunk_size=served.chunk_size or limits.chunk_size,
            max_num_seqs=limits.max_num_seqs,
        )
        rate = float(outputs.sum() / requests["e2el_s"].max())
        tpot = float(np.nanmean(requests["tpot_s"]))
        found.append((rate, 1e3 * float(requests["ttft_s"].mean()), 1e3 * tpot))
    return np.array(found)


def _lengths(data_dir: Path, num: int, prompt: float, output: float) -> tuple[IntArray, IntArray]:
    """Return lengths with these means.

    All are equal where they were random prompts of one length; else they are ShareGPT's (single
    turns, as another set has them), scaled.
    """
    if prompt >= _FIXED_FROM or round(prompt) == _FIXED:
        return np.full(num, round(prompt)), np.full(num, max(1, round(output)))
    measured = table(
        data_dir / _LENGTHS / "shared_gpt.csv.gz", ("input_tokens", "output_tokens")
    ).sample(num, replace=True, random_state=0)
    scaled = []
    for column, mean in (("input_tokens", prompt), ("output_tokens", output)):
        values = measured[column].to_numpy(dtype=np.float64)
        scaled.append(np.maximum(1, np.rint(values * mean / values.mean())).astype(np.int64))
    return scaled[0], scaled[1]
