"""Steps of Qwen2.5-7B on L20 at TP 1 and at TP 4 over PCIe, vLLM 0.10.1, at locked SM clocks.

Beside them what handing a prompt over takes: TTFT of a pair of instances less that of one.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from simcluster.fidelity.validate.base import Check, check
from simcluster.fidelity.validate.harness import environment, records, step_time, table
from simcluster.roofline import StepShape
from simcluster.runs.simulate import run
from simcluster.strategies import FuDG, NoDG
from simcluster.workload import Workload

DATA_SET: Final = "l20_five_systems"
MODEL: Final = "qwen2.5-7b"
GPU: Final = "L20"
ENGINE: Final = "vllm-0.11"
CLOCK_MHZ: Final = 2520
"""Boost clock; at a lower one peak FLOP/s falls in proportion, memory bandwidth does not."""
_LIMITS: Final = {
    ("prefill", 1): (0.05, 0.03),
    ("decode", 1): (0.06, 0.04),
    ("prefill", 4): (0.08, 0.05),
    ("decode", 4): (0.08, 0.05),
}
"""Must and aim of the mean error, by phase and degree."""
_COLUMNS: Final = ("tp", "phase", "sm_mhz", "batch", "tokens", "time_s")
_HANDOFF_COLUMNS: Final = ("prompt_tokens", "overhead_s")
HANDOFF_FITTED: Final = 512
"""Prompt (tokens) whose hand-over gives `EngineProfile.handover_s`."""


def checks(data_dir: Path) -> list[Check]:
    """Compare steps of one prompt and steady decode steps, at the boost clock and below.

    The link's bandwidth and latency over four GPUs are fitted to the steps at the boost clock and
    TP 4; those at lower clocks, and all at TP 1, are held out.
    """
    frame = table(data_dir / DATA_SET / "steps.csv", _COLUMNS)
    rows = records(frame)
    times = np.array([(row["time_s"], simulated_s(row)) for row in rows])
    about = partial(check, data_set=DATA_SET, gpu=GPU, model=MODEL)
    found = []
    for (phase, tp), (must, aim) in _LIMITS.items():
        here = ((frame["phase"] == phase) & (frame["tp"] == tp)).to_numpy()
        quantity = f"{phase} step"
        truth, guess = times[here].T
        found.append(about(truth, guess, regime=f"TP {tp}", quantity=quantity, must=must, aim=aim))
        slow = here & (frame["sm_mhz"] < CLOCK_MHZ).to_numpy()
        if slow.any():
            regime = f"TP {tp}, lower clocks"
            found.append(about(*times[slow].T, regime=regime, quantity=quantity))
    handed = table(data_dir / DATA_SET / "pd_handoff.csv", _HANDOFF_COLUMNS)
    handed = handed[handed["prompt_tokens"] != HANDOFF_FITTED]
    guesses = [handover_s(int(tokens)) for tokens in handed["prompt_tokens"]]
    found.append(
        about(handed["overhead_s"], guesses, regime="TP 1, 2k and 7k", quantity="KV hand-over")
    )
    return found


def handover_s(prompt_len: int) -> float:
    """Return by how much the TTFT of a lone request grows with a pair of instances (s)."""
    where = environment(GPU, MODEL, ENGINE, num_gpus=2, max_model_len=8192)
    load = Workload(
        arrival_s=np.zeros(1),
        prompt_len=np.array([prompt_len]),
        output_len=np.array([2]),
        rejected=np.zeros(1, dtype=bool),
    )
    pair = FuDG(name="pair", prefill_instances=1, decode_instances=1)
    apart_s, alone_s = (
        float(run(where, strategy, load).columns["requests"]["ttft_s"][0])
        for strategy in (pair, NoDG(name="one", instances=1))
    )
    return apart_s - alone_s


def simulated_s(row: dict[str, Any]) -> float:
    """Return the simulated duration of the step of a row (s)."""
    where = environment(GPU, MODEL, ENGINE, num_gpus=8, max_model_len=8192)
    gpu = where.cluster.gpu
    slower = replace(gpu, flops_16bit=gpu.flops_16bit * row["sm_mhz"] / CLOCK_MHZ)
    where = replace(where, cluster=replace(where.cluster, gpu=slower))
    times = step_time(where, int(row["tp"]))
    batch, tokens = int(row["batch"]), int(row["tokens"])
    if row["phase"] == "prefill":
        return times.prefill_s(tokens)
    return times.step_s(StepShape(batch, batch * tokens, (), batch, 0))
