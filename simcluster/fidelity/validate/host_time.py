"""Derives the host times of engine profiles from runs held apart: prints what the catalogue states.

Run as ``python -m simcluster.fidelity.validate.host_time DATA_DIR`` after the kernel constants have
changed: host time is what steps take beside their kernels, so the two are fitted in that order.

- ``vllm-0.2``: token times of Splitwise's A100 runs; held out: prompt times, and all H100 runs.
- ``vllm-0.6``: APEX's chat runs at the lower rate (7 of 46); held out: the other 39.
- ``vllm-0.11``: InferenceMAX's H100 runs of 1024 tokens in and out with four clients (3 of 45),
  then the front end from their TTFT; held out: the other 42.
- ``vllm-0.11-async``, ``trtllm-1``: by hand, see their sources (two of 60 runs and four of 72).
- ``vllm-0.19``: both runs of LLMServingSim and two load stages of ``blis_vllm015`` (Llama-3.1-8B on
  one H100; they tell a step's constant from its sequences), one host time for three GPUs; then the
  front end from the TTFT of those stages. Held out: the other 34 stages.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from simcluster import catalog
from simcluster.catalog.specs import EngineProfile
from simcluster.fidelity.validate import (
    aic_e2e,
    aic_loops,
    apex_e2e,
    blis_vllm015,
    llmservingsim_vllm,
    splitwise_perf,
)
from simcluster.units import MS, US, FloatArray

FEW_CLIENTS = 4
"""Clients of the runs that the host time of ``vllm-0.11`` is fitted to."""


def vllm_0_2(data_dir: Path) -> str:
    """Host per step, host per sequence, issue of a kernel: from A100 token times."""
    points = splitwise_perf.points(data_dir, "a100-80gb")
    measured = points["token_time"].to_numpy()
    base = catalog.engine(splitwise_perf.ENGINE)

    def profile(x: Sequence[float]) -> EngineProfile:
        step_ms, per_seq_us, issue_us = np.abs(x)
        return replace(
            base,
            host_before_s=step_ms * MS,
            host_after_s=0.0,
            host_workers_s=0.0,
            host_per_seq_before_s=per_seq_us * US,
            host_per_seq_after_s=0.0,
            issue_s=issue_us * US,
        )

    def errors(x: Sequence[float]) -> FloatArray:
        _, token = splitwise_perf.simulated("A100", points, profile(x))
        return np.asarray(token / measured - 1.0)

    x = _fitted(errors, (6.0, 300.0, 35.0))
    words = "{:.2f} ms a step, {:.0f} us a sequence, {:.1f} us a kernel"
    return f"vllm-0.2: {words.format(*x)}; token times of A100 within {_mape(errors(x))}"


def vllm_0_6(data_dir: Path) -> str:
    """Host for several workers, issue of a kernel: from seven lightly loaded runs."""
    base = catalog.engine(apex_e2e.ENGINE)

    def profile(x: Sequence[float]) -> EngineProfile:
        workers_ms, issue_us = np.abs(x)
        return replace(base, host_workers_s=workers_ms * MS, issue_s=issue_us * US)

    def errors(x: Sequence[float]) -> FloatArray:
        runs = apex_e2e.runs(data_dir, apex_e2e.FITTED, profile(x))
        tpot = [run.simulated_tpot_s / run.tpot_s - 1.0 for run in runs]
        ttft = [run.simulated_ttft_s / run.ttft_s - 1.0 for run in runs]
        return np.array(tpot + ttft)

    x = _fitted(errors, (4.0, 25.0))
    found = errors(x)
    tpot, ttft = np.split(found, 2)
    words = "{:.2f} ms for several workers, {:.1f} us a kernel"
    return f"vllm-0.6: {words.format(*x)}; TPOT within {_mape(tpot)}, TTFT within {_mape(ttft)}"


def vllm_0_19(data_dir: Path) -> str:
    """Host per step and per sequence, one for all GPUs, and the front end."""
    base = catalog.engine(llmservingsim_vllm.ENGINE)
    stages = blis_vllm015.rows(data_dir)
    stages = stages[stages["exp_id"] == blis_vllm015.FITTED]
    truth = stages[["ttft_mean_ms", "tpot_mean_ms", "e2e_mean_ms"]].to_numpy()

    def profile(x: Sequence[float]) -> EngineProfile:
        step_ms, per_seq_us = np.abs(x)
        return replace(
            base,
            host_before_s=step_ms * MS,
            host_after_s=0.0,
            host_per_seq_before_s=per_seq_us * US,
            host_per_seq_after_s=0.0,
            front_end_s=0.0,
        )

    def errors(x: Sequence[float]) -> FloatArray:
        guess = blis_vllm015.simulated(stages, profile(x))
        means = list((guess / truth - 1.0)[:, 1:])
        for gpu in ("RTXPRO6000", "RTX4090"):
            measured, simulated = llmservingsim_vllm.replay(data_dir, gpu, profile(x))
            means.append(np.nanmean(simulated[:, 1:] / measured[:, 1:] - 1.0, axis=0))
        return np.concatenate(means)

    x = _fitted(errors, (0.7, 15.0))
    late_ms = truth[:, 0] - blis_vllm015.simulated(stages, profile(x))[:, 0]
    words = "{:.2f} ms a step, {:.1f} us a sequence, front end {:.1f} ms"
    found = words.format(*x, late_ms.mean())
    return f"vllm-0.19: {found}; mean TPOT and latency within {_mape(errors(x))}"


def vllm_0_11(data_dir: Path) -> str:
    """Host per step, per sequence as known, and the front end: from three lightly loaded runs."""
    base = catalog.engine(aic_e2e.ENGINES["vllm"])
    frame = aic_e2e.rows(data_dir, "h100_sxm")
    some = frame[(frame["isl"] == frame["osl"]) & (frame["batch_size"] == FEW_CLIENTS)]
    measured = some["silicon_tpot_ms"].to_numpy()

    def means(x: Sequence[float]) -> tuple[FloatArray, FloatArray]:
        engine = replace(base, host_before_s=abs(x[0]) * MS, host_after_s=0.0, front_end_s=0.0)
        return aic_e2e.simulated(aic_loops.GPUS["h100_sxm"], some, vllm=engine)

    def errors(x: Sequence[float]) -> FloatArray:
        return np.asarray(means(x)[1] / measured - 1.0)

    x = _fitted(errors, (1.0,))
    late_ms = np.mean(some["silicon_ttft_ms"].to_numpy() - means(x)[0])
    found = f"{x[0]:.2f} ms a step, front end {late_ms:.1f} ms"
    return f"vllm-0.11: {found}; TPOT within {_mape(errors(x))}"


def _fitted(
    errors: Callable[[Sequence[float]], FloatArray], start: Sequence[float]
) -> Sequence[float]:
    """Return the parameters, all above 0, with the smallest mean squared relative error."""
    from scipy.optimize import minimize

    found = minimize(
        lambda x: float(np.mean(errors(x) ** 2)),
        start,
        method="Nelder-Mead",
        options={"maxiter": 60, "xatol": 0.05, "fatol": 1e-6},
    )
    return [abs(float(value)) for value in found.x]


def _mape(errors: FloatArray) -> str:
    return f"{100 * np.abs(errors).mean():.1f} % (mean)"


if __name__ == "__main__":
    for derive in (vllm_0_2, vllm_0_6, vllm_0_19, vllm_0_11):
        print(derive(Path(sys.argv[1])))  # noqa: T201 - a report for a person
