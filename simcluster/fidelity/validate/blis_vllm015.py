"""vLLM 0.15.1 on H100: load stages of dense and mixture models with prompts that repeat."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from simcluster.catalog.specs import EngineProfile
from simcluster.fidelity.validate.base import Check, check
from simcluster.fidelity.validate.harness import environment, records, serve, table
from simcluster.units import FloatArray, IntArray
from simcluster.workload.hashes import BlockHashes

if TYPE_CHECKING:
    import pandas as pd

DATA_SET: Final = "blis_vllm015"
GPU: Final = "H100"
ENGINE: Final = "vllm-0.19"
MODELS: Final = {
    "mistralai/Mixtral-8x7B-v0.1": "mixtral-8x7b",
    "Qwen/Qwen3-14B": "qwen3-14b",
    "meta-llama/Llama-3.1-8B-Instruct": "llama-3.1-8b",
}
FITTED: Final = 16
"""The experiment (Llama-3.1-8B at TP 1) that host time and front end are fitted to."""
MAX_NUM_SEQS: Final = 128
MAX_MODEL_LEN: Final = 4096
STAGE_S: Final = 30.0
"""Simulated part of a stage (s), of 600 or more measured; its first fifth is not counted."""
_SETTLING: Final = 0.2
_BLOCK: Final = 16
_QUANTITIES: Final = ("TTFT", "TPOT", "E2E")
_PEER_METRICS: Final = {"ttft_mean": "TTFT", "itl_mean": "TPOT", "e2e_mean": "E2E"}
_PEER_COLUMNS: Final = (
    "simulator",
    "exp_id",
    "model",
    "workload",
    "metric",
    "predicted_ms",
    "measured_ms",
)
_COLUMNS: Final = (
    "exp_id",
    "workload",
    "model",
    "tp",
    "rate_rps",
    "prompt_tokens",
    "output_tokens",
    "max_num_batched_tokens",
    "gpu_memory_utilization",
    "overloaded",
    "ttft_mean_ms",
    "tpot_mean_ms",
    "e2e_mean_ms",
)


class _Prompts(NamedTuple):
    """Prompts of a workload: system prompts, users of each, tokens of a system prompt."""

    num_systems: int
    num_users: int
    system_len: int


WORKLOADS: Final = {
    "general": _Prompts(9, 5, 100),
    "general-lite": _Prompts(9, 5, 100),
    "codegen": _Prompts(11, 4, 100),
    "roleplay": _Prompts(10, 5, 150),
    "reasoning": _Prompts(23, 1, 100),
    "reasoning-lite": _Prompts(23, 1, 100),
}
"""From the set's README: which prompts the shared-prefix generator repeats."""


def checks(data_dir: Path) -> list[Check]:
    """Compare means of stages; two of them (experiment `FITTED`) are not held out."""
    frame = rows(data_dir)
    truth = frame[["ttft_mean_ms", "tpot_mean_ms", "e2e_mean_ms"]].to_numpy()
    guess = simulated(frame)
    names = frame["model"].map(MODELS).to_numpy()
    dense = names != "mixtral-8x7b"
    about = partial(check, data_set=DATA_SET, gpu=GPU, unit="ms")
    must_aim = {("dense", "TTFT"): (0.12, 0.08), ("mixtral-8x7b", "TPOT"): (0.10, 0.06)}
    must_aim |= {("dense", quantity): (0.05, 0.03) for quantity in ("TPOT", "E2E")}
    parts = [("dense", "all stages", dense), ("mixtral-8x7b", "all stages", ~dense)]
    held_out = dense & (frame["exp_id"] != FITTED).to_numpy()
    parts.append(("dense", "not fitted", held_out))
    degree = frame["tp"].to_numpy()
    for name, tp in sorted(set(zip(names.tolist(), degree.tolist(), strict=True))):
        parts.append((name, f"TP {tp:.0f}", (names == name) & (degree == tp)))
    found = []
    for model, regime, part in parts:
        for i, quantity in enumerate(_QUANTITIES):
            limits = must_aim.get((model, quantity)) if regime == "all stages" else None
            must, aim = limits or (None, None)
            pair = truth[part, i], guess[part, i]
            found.append(
                about(*pair, model=model, regime=regime, quantity=quantity, must=must, aim=aim)
            )
    return found


def rows(data_dir: Path) -> pd.DataFrame:
    """Return the stages of known models and workloads that were not overloaded."""
    frame = table(data_dir / DATA_SET / "stages.csv", _COLUMNS)
    known = frame["model"].isin(list(MODELS)) & frame["workload"].isin(list(WORKLOADS))
    return frame[known & (frame["overloaded"] != "yes")]


class Rival(NamedTuple):
    """Errors of another simulator's published predictions, and ours on the same whole runs."""

    simulator: str
    model: str
    """``"dense"``, ``"mixtral-8x7b"``, or ``"all"``."""
    theirs: dict[str, Check]
    ours: dict[str, Check]
    """By quantity: TTFT, TPOT, E2E."""


def rivals(data_dir: Path) -> list[Rival]:
    """Compare other simulators' predictions of whole runs with the measurement, and ours.

    Of dense models the run that host time is fitted to is left out. LLMServingSim predicts the
    first 300 requests of a run, and is compared with their measured means.
    """
    peers = table(data_dir / DATA_SET / "peer_predictions.csv", _PEER_COLUMNS)
    peers = peers[peers["metric"].isin(list(_PEER_METRICS))]
    frame = rows(data_dir)
    truth = run_means(frame, frame[["ttft_mean_ms", "tpot_mean_ms", "e2e_mean_ms"]].to_numpy())
    guess = run_means(frame, simulated(frame))
    peers = peers[[name in truth for name in _runs(peers)]]
    dense = peers["model"].map(MODELS) != "mixtral-8x7b"
    parts = {
        "dense": peers[dense & (peers["exp_id"] != FITTED)],
        "mixtral-8x7b": peers[~dense],
        "all": peers,
    }
    found = []
    for model, part in parts.items():
        for name, rows_of in part.groupby("simulator", sort=False):
            about = partial(
                check, data_set=DATA_SET, gpu=GPU, model=model, regime=str(name), unit="ms"
            )
            theirs, ours = {}, {}
            for metric, quantity in _PEER_METRICS.items():
                own = rows_of[rows_of["metric"] == metric]
                theirs[quantity] = about(own["measured_ms"], own["predicted_ms"], quantity=quantity)
                i = _QUANTITIES.index(quantity)
                measured, guessed = (
                    [means[run][i] for run in _runs(own)] for means in (truth, guess)
                )
                ours[quantity] = about(measured, guessed, quantity=quantity)
            found.append(Rival(str(name), model, theirs, ours))
    return found


def run_means(frame: pd.DataFrame, stages: FloatArray) -> dict[tuple[int, str], FloatArray]:
    """Return the means of whole runs, shape ``(3,)``, by experiment and workload.

    Stages of a run are equally long: their requests are in proportion to their rates.
    """
    names = _runs(frame)
    rates = frame["rate_rps"].to_numpy(np.float64)
    found = {}
    for name in dict.fromkeys(names):
        here = np.array([other == name for other in names])
        found[name] = np.average(stages[here], axis=0, weights=rates[here])
    return found


def _runs(frame: pd.DataFrame) -> list[tuple[int, str]]:
    """Experiment and workload of each row."""
    return list(zip(frame["exp_id"].tolist(), frame["workload"].tolist(), strict=True))


def simulated(frame: pd.DataFrame, engine: EngineProfile | str = ENGINE) -> FloatArray:
    """Return mean TTFT, TPOT and E2E (ms) of each stage, shape ``(n, 3)``.

    The stages of an experiment follow one another without a pause, at even distances.
    """
    means = np.empty((len(frame), len(_QUANTITIES)))
    numbers = frame["exp_id"].to_numpy()
    for number in dict.fromkeys(numbers.tolist()):
        here = np.flatnonzero(numbers == number)
        means[here] = _experiment(records(frame.iloc[here]), engine)
    return means


def _experiment(stages: list[dict[str, Any]], engine: EngineProfile | str) -> FloatArray:
    row = stages[0]
    counts = [int(stage["rate_rps"] * STAGE_S) for stage in stages]
    arrival_s = np.concatenate(
        [(i + np.arange(count) / count) * STAGE_S for i, count in enumerate(counts)]
    )
    prompts = np.full(len(arrival_s), int(row["prompt_tokens"]))
    tp_size = int(row["tp"])
    where = environment(
        GPU,
        MODELS[row["model"]],
        engine,
        num_gpus=tp_size,
        max_model_len=MAX_MODEL_LEN,
        changes={"gpu_memory_utilization": float(row["gpu_memory_utilization"])},
    )
    requests = serve(
        where,
        prompts,
        np.full(len(prompts), int(row["output_tokens"])),
        tp_size=tp_size,
        arrival_s=arrival_s,
        chunk_size=int(row["max_num_batched_tokens"]),
        max_num_seqs=MAX_NUM_SEQS,
        hashes=_hashes(WORKLOADS[row["workload"]], prompts),
    )
    times = np.column_stack([requests[name] for name in ("ttft_s", "tpot_s", "e2el_s")])
    place = arrival_s / STAGE_S
    counted = place % 1.0 > _SETTLING
    stage = place.astype(int)
    return np.array([1e3 * times[counted & (stage == i)].mean(axis=0) for i in range(len(stages))])


def _hashes(of: _Prompts, prompts: IntArray) -> BlockHashes:
    """Block ids of prompts that take turns, with whole blocks of their system prompt in common."""
    num_blocks = -(-int(prompts[0]) // _BLOCK)
    shared = np.arange(num_blocks) < of.system_len // _BLOCK
    turn = (np.arange(len(prompts)) % (of.num_systems * of.num_users))[:, None]
    owner = np.where(shared, turn % of.num_systems, of.num_systems + turn)
    ids = (owner * num_blocks + np.arange(num_blocks)).ravel()
    starts = np.arange(len(prompts) + 1) * num_blocks
    return BlockHashes.of_ids(ids, starts, prompts, _BLOCK)
