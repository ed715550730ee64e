"""aiconfigurator's own tables (the extra ``aic``): the law against them, and served runs with them.

The tables that the package bundles are newer than ``aic_ops`` (vLLM 0.24 in the place of 0.14 and
0.19), and the law is not fitted to them. The served runs are InferenceX's closed loops of mixtures
of experts (``aic_e2e``), with ``kernels = "aiconfigurator"``: dispatch, host work and links are
ours, and nothing is fitted to these runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from simcluster.catalog import config_json
from simcluster.catalog.layers import ModelSpec
from simcluster.config import AICONFIGURATOR, Environment
from simcluster.fidelity.validate.aic_loops import GPUS, lengths, measured
from simcluster.fidelity.validate.base import Check, UnavailableError, check
from simcluster.fidelity.validate.harness import environment, records, serve
from simcluster.roofline.measured.aic import AicKernels
from simcluster.roofline.measured.base import Gemm, Heads
from simcluster.units import FloatArray

if TYPE_CHECKING:
    import pandas as pd

DATA_SET: Final = "aic_kernels"
ENGINES: Final = {"vllm": "vllm-0.19", "trtllm": "trtllm-1", "sglang": "sglang-0.5"}
"""vLLM 0.15 to 0.19, TensorRT-LLM 1.2, SGLang 0.5.9."""
TOKEN_BUDGET: Final = {"vllm": 8192, "trtllm": 16384, "sglang": 16384}
"""Tokens of a step (InferenceX: max-num-batched-tokens, max_num_tokens; vLLM's and SGLang's
defaults on B200 alike)."""
MODELS: Final = {
    "openai/gpt-oss-120b": "gpt-oss-120b",
    "MiniMaxAI/MiniMax-M2.5": "minimax-m2.5",
    "moonshotai/Kimi-K2.5": "kimi-k2.5",
    "deepseek-ai/DeepSeek-V3": "deepseek-v3",
}
WHOLE_NODE: Final = 8
"""GPUs of the rows of DeepSeek, which are SGLang's in fp8: fewer do not hold it. Rows named R1 mix
runs with and without multi-token prediction (one day, one configuration: TPOT 5.8 and 8.6 ms)."""
CHECKPOINTS: Final = {
    ("MiniMaxAI/MiniMax-M2.5", "fp4"): "nvidia--MiniMax-M2.5-NVFP4_config.json",
    ("moonshotai/Kimi-K2.5", "fp4"): "nvidia--Kimi-K2.5-NVFP4_config.json",
}
"""NVFP4 checkpoints, which keep attention in more bits; the package bundles their config.json."""
GPT_OSS_ON_B200: Final[dict[str, Any]] = {
    "fuses_allreduce": True,
    "fuses_allreduce_max_bytes": 32.0 * 2**20,
}
"""InferenceX's gptoss_fp4_b200.sh: fuse_allreduce_rms, and kv-cache-dtype fp8."""
ROUNDS: Final = 4
"""Requests per client; the runs had 10, which gives means within 1 % of these."""
MOST_CLIENTS: Final = 256
"""Clients of the largest runs. 16 runs with 512 are left out: 9 of gpt-oss on H100, which stalled
(`aic_moe.STALLED_CLIENTS`), and 7 of MiniMax-M2.5 on B200."""
_EIGHT_BIT: Final = "fp8"
_ROWS: Final = (1, 4, 16, 64, 256, 1024, 4096)
_WIDTHS: Final = (
    (4096, 4096),
    (6144, 4096),
    (28672, 4096),
    (4096, 14336),
    (1280, 8192),
    (8192, 8192),
)
"""Projections of Llama-3.1-8B, and of 70B on eight ranks and whole (n, k)."""
_HEADS: Final = ((32, 8), (8, 1), (16, 2), (64, 8))
_BATCHES: Final = (1, 8, 32, 128)
_CONTEXTS: Final = (512, 2048, 8192, 32768)
_PROMPTS: Final = (256, 1024, 4096, 8192)


def checks(data_dir: Path) -> list[Check]:
    """Compare the law with the package's tables, and runs with them with measured ones.

    Raises
    ------
    UnavailableError
        If the package is not installed.
    FileNotFoundError
        If the served runs are missing.
    """
    if find_spec("aiconfigurator_core") is None:
        raise UnavailableError(
            'needs the package aiconfigurator-core: pip install "simcluster[aic]"'
        )
    for system in GPUS:
        rows(data_dir, system)  # a missing file is said before the work
    found = [item for gpu in GPUS.values() for item in kernel_checks(gpu)]
    return found + served_checks(data_dir)


# The law against the tables -----------------------------------------------------------------------


def kernel_checks(gpu: str) -> list[Check]:
    """Compare the law with the tables of vLLM's kernels, class by class."""
    about = partial(check, data_set=DATA_SET, gpu=gpu, regime="law against vLLM 0.24")
    plain = _kernels(gpu, "llama-3.1-8b", 1)
    found = []
    for dtype, quantity in (("bf16", "each GEMM"), ("fp8", "each 8-bit GEMM")):
        calls = [Gemm(dtype, float(m), float(n), float(k)) for m in _ROWS for n, k in _WIDTHS]
        law = [plain.law_gemm_s(call) for call in calls]
        pairs = [(plain.gemm_s(call, law_s), law_s) for call, law_s in zip(calls, law, strict=True)]
        found.append(about(*_known(pairs), quantity=quantity))
    decode, prefill = [], []
    for heads, kv_heads in _HEADS:
        seen = Heads(float(heads), float(kv_heads), 128, 2.0)
        for batch in _BATCHES:
            times = [plain.law_decode_s(seen, batch, float(c)) for c in _CONTEXTS]
            ratios = dict(plain.decode_ratios(seen, batch) or ())
            decode += [
                (law_s * ratios[c], law_s)
                for c, law_s in zip(_CONTEXTS, times, strict=True)
                if c in ratios
            ]
        for new in _PROMPTS:
            law_s = plain.law_prefill_s(seen, new, 0, 1)
            ratio = plain.prefill_ratio(seen, new, 0, 1)
            prefill.append((None if ratio is None else ratio * law_s, law_s))
    found.append(about(*_known(decode), quantity="decode attention"))
    found.append(about(*_known(prefill), quantity="prefill attention"))
    for name, tp_sizes in (("minimax-m2.5", (1, 2, 4)), ("gpt-oss-120b", (1, 2, 4, 8))):
        pairs = []
        for tp_size in tp_sizes:
            own = _kernels(gpu, name, tp_size)
            for m in _ROWS:
                pairs += own.expert_pairs(m)
        found.append(about(*_known(pairs), model=name, quantity="experts"))
    return [item for item in found if item.n]


def _kernels(gpu: str, model: str, tp_size: int) -> AicKernels:
    where = environment(gpu, model, ENGINES["vllm"], num_gpus=8)
    return AicKernels(where.model, where.cluster.gpu, where.engine, tp_size)


def _known(pairs: Iterable[tuple[float | None, float]]) -> tuple[FloatArray, FloatArray]:
    """Return tables' and law's times (s) of the calls that the tables have."""
    kept = [(table_s, law_s) for table_s, law_s in pairs if table_s is not None]
    both = np.array(kept, dtype=np.float64).reshape(-1, 2)
    return both[:, 0], both[:, 1]


# Served runs with the tables ----------------------------------------------------------------------


def served_checks(data_dir: Path) -> list[Check]:
    """Run the closed loops of mixtures of experts, tensor parallel, with the package's tables."""
    frames = {gpu: rows(data_dir, system) for system, gpu in GPUS.items()}
    about = partial(check, data_set=DATA_SET, unit="ms")
    parts: list[tuple[str, str, str, FloatArray, FloatArray]] = []
    found = []
    for gpu, frame in frames.items():
        ttft, tpot = simulated(gpu, frame)
        for name in frame["model_path"].unique():
            for precision in frame["precision"].unique():
                for backend in frame["backend"].unique():
                    here = (
                        (frame["model_path"] == name)
                        & (frame["precision"] == precision)
                        & (frame["backend"] == backend)
                    ).to_numpy()
                    if not here.any():
                        continue
                    own = partial(
                        about, gpu=gpu, model=MODELS[name], regime=f"{precision}, {backend}"
                    )
                    for quantity, column, guess in (
                        ("TPOT", "silicon_tpot_ms", tpot),
                        ("TTFT", "silicon_ttft_ms", ttft),
                    ):
                        truth = frame[column].to_numpy(dtype=np.float64)[here]
                        found.append(own(truth, guess[here], quantity=quantity))
                        parts.append((precision, quantity, gpu, truth, guess[here]))
    everywhere = partial(about, gpu="H100, B200", model="MoE")
    for regime, eight in (("8-bit experts", True), ("4-bit experts", False)):
        found += [
            everywhere(*_joined(parts, quantity, eight), regime=regime, quantity=quantity)
            for quantity in ("TPOT", "TTFT")
        ]
    pair = _joined(parts, "TPOT", None)
    found.append(everywhere(*pair, regime="all runs", quantity="TPOT", must=0.13, aim=0.09))
    return found


def _joined(
    parts: Iterable[tuple[str, str, str, FloatArray, FloatArray]], quantity: str, eight: bool | None
) -> tuple[FloatArray, FloatArray]:
    """Return measured and simulated values of all parts of a quantity, of 8 bits or of 4."""
    kept = [
        (truth, guess)
        for precision, name, _, truth, guess in parts
        if name == quantity and (eight is None or (precision == _EIGHT_BIT) == eight)
    ]
    truths, guesses = zip(*kept, strict=True)
    return np.concatenate(truths), np.concatenate(guesses)


def rows(data_dir: Path, system: str) -> pd.DataFrame:
    """Return the closed-loop runs of mixtures of experts on tensor-parallel ranks of a system."""
    frame = measured(data_dir, system)
    keep = frame["model_path"].isin(list(MODELS))
    keep &= frame["backend"].isin(list(ENGINES)) & (frame["batch_size"] <= MOST_CLIENTS)
    keep &= (frame["attention_dp_size"] == 1) & (frame["moe_ep_size"] == 1)
    deepseek = frame["model_path"].str.startswith("deepseek-ai/")
    served = (frame["precision"] == _EIGHT_BIT) & (frame["tp_size"] == WHOLE_NODE)
    keep &= deepseek == (frame["backend"] == "sglang")
    return frame[keep & (served | ~deepseek)]


def simulated(gpu: str, frame: pd.DataFrame) -> tuple[FloatArray, FloatArray]:
    """Return mean TTFT and TPOT (ms) of the runs of `frame`, each of shape ``(n,)``.

    A configuration that was measured several times is simulated once.
    """
    known: dict[tuple[Any, ...], tuple[float, float]] = {}
    found = []
    for row in records(frame):
        names = ("backend", "model_path", "precision", "isl", "osl", "batch_size", "tp_size")
        key = tuple(row[name] for name in names)
        if key not in known:
            known[key] = _served(gpu, row)
        found.append(known[key])
    both = np.array(found).reshape(-1, 2)
    return both[:, 0], both[:, 1]


def _served(gpu: str, row: dict[str, Any]) -> tuple[float, float]:
    """Return mean TTFT and TPOT (ms) of one run."""
    clients = int(row["batch_size"])
    prompts, outputs = lengths(row["isl"], row["osl"], ROUNDS * clients)
    requests = serve(
        place(gpu, row),
        prompts,
        outputs,
        tp_size=int(row["tp_size"]),
        concurrency=clients,
        chunk_size=TOKEN_BUDGET[row["backend"]],
        max_num_seqs=clients,
    )
    return 1e3 * float(requests["ttft_s"].mean()), 1e3 * float(requests["tpot_s"].mean())


def place(gpu: str, row: dict[str, Any]) -> Environment:
    """Return model, machine and engine of a run, with the package's kernel times."""
    changes: dict[str, Any] = {"max_num_seqs": int(row["batch_size"])}
    kv_dtype = None
    if row["model_path"].startswith("openai") and gpu == GPUS["b200_sxm"]:
        kv_dtype = "fp8"
        if row["backend"] == "vllm":
            changes |= GPT_OSS_ON_B200
    where = environment(
        gpu,
        MODELS[row["model_path"]],
        ENGINES[row["backend"]],
        num_gpus=8,
        max_model_len=int(row["isl"] + row["osl"]),
        kv_dtype=kv_dtype,
        changes=changes,
    )
    bundled = CHECKPOINTS.get((row["model_path"], row["precision"]))
    if bundled:
        where = replace(where, model=replace(where.model, spec=_checkpoint(bundled)))
    return replace(where, kernels=AICONFIGURATOR)


def _checkpoint(name: str) -> ModelSpec:
    """Return the model of a config.json that the package bundles."""
    folder = files("aiconfigurator_core") / "model_configs"
    return config_json.model(str(folder / name))
