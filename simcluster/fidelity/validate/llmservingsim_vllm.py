"""vLLM 0.19 on RTX 4090 and RTX PRO 6000: 300 ShareGPT requests, replayed one by one."""

from __future__ import annotations

import gzip
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from simcluster.catalog.specs import EngineProfile
from simcluster.errors import DataError
from simcluster.fidelity.validate.base import Check, check
from simcluster.fidelity.validate.harness import environment, serve, table
from simcluster.units import FloatArray, IntArray
from simcluster.workload.hashes import BlockHashes

if TYPE_CHECKING:
    import pandas as pd

DATA_SET: Final = "llmservingsim_vllm"
MODEL: Final = "llama-3.1-8b"
ENGINE: Final = "vllm-0.19"
CHUNK: Final = 2048
GPUS: Final = {"RTX4090": "RTX 4090", "RTXPRO6000": "RTX PRO 6000"}
QUANTITIES: Final = ("TTFT", "TPOT", "latency")
_BLOCK: Final = 16


class Replay(NamedTuple):
    """Measured and simulated times (s) of each request, shape ``(n, 3)``: see QUANTITIES."""

    measured: FloatArray
    simulated: FloatArray


def checks(data_dir: Path) -> list[Check]:
    """Compare means, percentiles and single requests of both runs."""
    found = []
    for name, gpu in GPUS.items():
        measured, simulated = replay(data_dir, name)
        about = partial(check, data_set=DATA_SET, gpu=gpu, model=MODEL)
        for i, quantity in enumerate(QUANTITIES):
            truth, guess = measured[:, i], simulated[:, i]
            whole = np.isfinite(truth)  # no TPOT of a single token
            truth, guess = truth[whole], guess[whole]
            must = 0.06 if quantity == "TTFT" else 0.05
            found.append(
                about(
                    truth,
                    guess,
                    regime="mean",
                    quantity=quantity,
                    must=must,
                    aim=0.02,
                    limits="bias",
                )
            )
            for level in (50, 90):
                pair = np.percentile(truth, level), np.percentile(guess, level)
                found.append(
                    about(
                        [pair[0]],
                        [pair[1]],
                        regime=f"P{level}",
                        quantity=quantity,
                        must=0.10,
                        aim=0.05,
                    )
                )
        arrival_s = _requests(data_dir, name)["arrival_s"].to_numpy(dtype=np.float64)
        rates = [
            [len(arrival_s) / float((arrival_s + times[:, 2]).max() - arrival_s[0])]
            for times in (measured, simulated)
        ]
        found.append(about(*rates, regime="mean", quantity="throughput", unit="requests/s"))
        found.append(
            about(
                measured[:, 2],
                simulated[:, 2],
                regime="each request",
                quantity="latency",
                must=0.10,
                aim=0.05,
                limits="median",
            )
        )
    return found


def replay(data_dir: Path, name: str, engine: EngineProfile | None = None) -> Replay:
    """Replay the run of the GPU `name` with ENGINE or `engine`.

    Prefixes are reused as the measured engine did it, also by preempted requests that come back.
    """
    folder = data_dir / DATA_SET
    frame = _requests(data_dir, name)
    meta = _json(folder / f"{name}__Llama-3.1-8B__meta.json")
    prompts = frame["input_tokens"].to_numpy(dtype=np.int64)
    outputs = frame["output_tokens"].to_numpy(dtype=np.int64)
    settings = meta["engine_kwargs"]
    where = environment(
        GPUS[name],
        MODEL,
        engine or ENGINE,
        max_model_len=32768,
        changes={"max_num_seqs": int(settings["max_num_seqs"])},
    )
    blocks = meta.get("kv_cache", {}).get("num_gpu_blocks")
    requests = serve(
        where,
        prompts,
        outputs,
        tp_size=1,
        arrival_s=frame["arrival_s"].to_numpy(dtype=np.float64),
        chunk_size=CHUNK,
        num_kv_blocks=blocks,
        hashes=_hashes(folder / "workload__Llama-3.1-8B.jsonl.gz", prompts, outputs),
    )
    arrival, first, last = (
        frame[c].to_numpy(dtype=np.float64) for c in ("arrival_s", "first_token_s", "last_token_s")
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where(outputs > 1, (last - first) / (outputs - 1), np.nan)
    return Replay(
        np.stack([first - arrival, tpot, last - arrival], axis=1),
        np.stack([requests["ttft_s"], requests["tpot_s"], requests["e2el_s"]], axis=1),
    )


def _requests(data_dir: Path, name: str) -> pd.DataFrame:
    columns = ("input_tokens", "output_tokens", "arrival_s", "first_token_s", "last_token_s")
    return table(data_dir / DATA_SET / f"{name}__Llama-3.1-8B__requests.csv.gz", columns)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from None


def _hashes(path: Path, prompts: IntArray, outputs: IntArray) -> BlockHashes:
    """Ids of the blocks of each request: the measured ones of its prompt, own ones behind them."""
    if not path.is_file():
        raise FileNotFoundError(path)
    try:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            measured = [json.loads(line)["block16_ids"] for line in lines]
    except (ValueError, KeyError, TypeError, OSError, EOFError) as error:
        raise DataError(f"{path}: not a workload of block ids: {error}") from None
    if len(measured) < len(prompts):
        raise DataError(f"{path}: {len(measured)} requests, {len(prompts)} were measured")
    tokens = prompts + outputs
    counts = -(-tokens // _BLOCK)
    starts = np.concatenate([[0], np.cumsum(counts)])
    ids = max(max(blocks, default=0) for blocks in measured) + 1 + np.arange(starts[-1])
    for start, blocks in zip(starts, measured, strict=False):
        ids[start : start + len(blocks)] = blocks
    return BlockHashes.of_ids(ids, starts, tokens, _BLOCK)
