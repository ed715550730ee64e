"""A run of several models, group by group: who answered how many requests, how fast, how well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from simcluster.config import Environment, RunConfig
from simcluster.frames.metrics import held_gpus, in_window, window_bounds
from simcluster.frames.schema import Columns
from simcluster.units import FloatArray


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSummary:
    """One model on one GPU type in a run, or all of them."""

    model: str
    gpu: str
    """What; ``"all"`` and empty for the whole deployment."""
    mean_gpus: float
    """GPUs that its instances hold, mean over the window."""
    cost_per_hour: float
    """Their price; NaN where one is not known."""
    num_requests: int
    """Requests counted that were given to it."""
    share: float
    """Those as a share of all, 0 to 1."""
    quality: float
    """Their mean expected quality, 0 to 1; NaN if not known."""
    ttft_p50_s: float
    ttft_p95_s: float
    tpot_p50_s: float
    tpot_p95_s: float
    e2el_p50_s: float
    e2el_p95_s: float
    """Percentiles over those that finished (s)."""


def group_summaries(
    frames: Mapping[str, Columns], environment: Environment, run: RunConfig
) -> list[GroupSummary]:
    """Return one row per model and GPU type, and a last one for all.

    Parameters
    ----------
    frames : mapping of str to columns
        ``requests`` and ``instances`` of the run.
    environment : Environment
        Its machines have the prices.
    run : RunConfig
        Its warm-up and cool-down cut the window.

    Notes
    -----
    A request belongs to the group that prefills it. One that was rejected on arrival belongs to
    none and counts in the last row alone.
    """
    requests, instances = in_window(frames["requests"], run), frames["instances"]
    gpus = held_gpus(instances, *window_bounds(frames["requests"], run.warmup_s, run.cooldown_s))
    prices = {
        c.gpu.name: np.nan if c.price_per_gpu_hour is None else c.price_per_gpu_hour
        for c in environment.clusters
    }
    kinds = list(zip(np.asarray(instances["model"]), np.asarray(instances["gpu"]), strict=True))
    costs = gpus * np.array([prices[gpu] for _, gpu in kinds])
    at = np.asarray(requests["prefill_instance"])
    everyone = np.ones(len(at), dtype=bool)
    rows = []
    for model, gpu in dict.fromkeys(kinds):
        here = np.array([kind == (model, gpu) for kind in kinds])
        mine = np.isin(at, np.flatnonzero(here))
        rows.append(
            _row(model, gpu, float(gpus[here].sum()), float(costs[here].sum()), requests, mine)
        )
    rows.append(_row("all", "", float(gpus.sum()), float(costs.sum()), requests, everyone))
    return rows


def _row(
    model: str, gpu: str, mean_gpus: float, cost: float, requests: Columns, mine: np.ndarray
) -> GroupSummary:
    finished = mine & (np.asarray(requests["status"]) == "finished")

    def percentile(name: str, share: float) -> float:
        values = np.asarray(requests[name], dtype=np.float64)[finished]
        values = values[~np.isnan(values)]
        return float(np.quantile(values, share)) if len(values) else np.nan

    quality: FloatArray = np.asarray(requests["quality"], dtype=np.float64)[mine]
    return GroupSummary(
        model=model,
        gpu=gpu,
        mean_gpus=mean_gpus,
        cost_per_hour=cost,
        num_requests=int(mine.sum()),
        share=float(mine.mean()) if len(mine) else np.nan,
        quality=float(quality.mean()) if len(quality) else np.nan,
        **{
            f"{name}_p{percent}_s": percentile(f"{name}_s", percent / 100)
            for name in ("ttft", "tpot", "e2el")
            for percent in (50, 95)
        },
    )
