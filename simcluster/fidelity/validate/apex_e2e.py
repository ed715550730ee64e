"""APEX: serving runs of Llama-3.1-70B on 8 x H100, vLLM 0.6.0, 2024."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from simcluster.catalog.specs import EngineProfile
from simcluster.fidelity.validate.base import Check, check
from simcluster.fidelity.validate.harness import environment, records, replayed, serve, table
from simcluster.units import FloatArray

DATA_SET: Final = "apex_e2e"
TRACES: Final = "traces_apex"
GPU: Final = "H100"
MODEL: Final = "llama-3.1-70b"
ENGINE: Final = "vllm-0.6"
CHUNK: Final = 512
"""Token budget of a step: vLLM 0.6.0 splits prompts by default where a model's context is above
32k tokens, into chunks of 512 (``EngineArgs.create_engine_config``)."""
LONGEST: Final = 4736
"""Longest sequence that is served (tokens): of its traces, 4733. Its own limit is not known."""
FITTED: Final = "lmsys_025"
"""Part of the names of the runs that the engine's host times were fitted to."""
_NAME: Final = re.compile(r"(llama_([a-z]+)_\d+)_validation_(?:(\d)DP)?(\d)TP(?:_(\d))?")
_COLUMNS: Final = ("file", "n_requests", "output_tokens_served", "mean_ttft_s", "tpot_s")


class Run(NamedTuple):
    """One measured run and the simulated means (s)."""

    name: str
    workload: str
    tp_size: int
    ttft_s: float
    tpot_s: float
    simulated_ttft_s: float
    simulated_tpot_s: float


def checks(data_dir: Path) -> list[Check]:
    """Replay the trace of every run, one replica each, and compare mean TTFT and TPOT."""
    done = runs(data_dir)
    held_out = np.array([FITTED not in run.name for run in done])
    workload = np.array([run.workload for run in done])
    tp_size = np.array([run.tp_size for run in done])
    found = []
    for quantity, measured, simulated, must, aim in (
        ("TPOT", [r.tpot_s for r in done], [r.simulated_tpot_s for r in done], 0.05, 0.03),
        ("TTFT", [r.ttft_s for r in done], [r.simulated_ttft_s for r in done], 0.30, 0.15),
    ):
        truth, guess = np.array(measured), np.array(simulated)
        about = partial(check, data_set=DATA_SET, gpu=GPU, model=MODEL, quantity=quantity)
        found.append(about(truth, guess, regime="all", must=must, aim=aim))
        parts = [("not fitted", held_out)]
        parts += [(f"TP {tp}", tp_size == tp) for tp in np.unique(tp_size)]
        parts += [(name, workload == name) for name in np.unique(workload)]
        found += [about(truth[part], guess[part], regime=name) for name, part in parts]
    return found


def runs(
    data_dir: Path, only: str = "", engine: EngineProfile | None = None, most: int | None = None
) -> list[Run]:
    """Simulate the runs whose name contains `only`, at most `most`, with ENGINE or `engine`.

    Notes
    -----
    A replica of n gets every n-th request of the trace. Where a replica served more requests than
    the stored trace holds, the trace is repeated. Outputs are scaled to the tokens that were
    served: some runs stopped at the model's end token, and single lengths are not stored. TPOT is
    the sum of the gaps over the tokens, as in the logs.
    """
    frame = table(data_dir / DATA_SET / "h100x8_llama31_70b_vllm060.csv", _COLUMNS)
    frame = frame[frame["file"].str.contains(only, regex=False)].head(most or len(frame))
    where = environment(GPU, MODEL, engine or ENGINE, num_gpus=8, max_model_len=LONGEST)
    done = []
    for row in records(frame):
        name = _NAME.fullmatch(row["file"])
        if name is None:
            continue
        replicas, tp_size, replica = int(name[3] or 1), int(name[4]), int(name[5] or 0)
        trace = table(
            data_dir / TRACES / f"{name[1]}.csv.gz", ("arrival_s", "input_tokens", "output_tokens")
        ).iloc[replica::replicas]
        arrival_s, prompts, outputs = replayed(trace, int(row["n_requests"]))
        outputs = np.rint(outputs * (row["output_tokens_served"] / outputs.sum())).astype(np.int64)
        requests = serve(
            where,
            prompts,
            np.maximum(outputs, 1),
            tp_size=tp_size,
            arrival_s=arrival_s,
            chunk_size=CHUNK,
        )
        gaps: FloatArray = requests["last_output_s"] - requests["first_output_s"]
        done.append(
            Run(
                str(row["file"]),
                name[2],
                tp_size,
                float(row["mean_ttft_s"]),
                float(row["tpot_s"]),
                float(requests["ttft_s"].mean()),
                float(gaps.sum() / requests["output_len"].sum()),
            )
        )
    return done
