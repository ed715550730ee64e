"""Host time of an engine: from CPU timings, from kernel launches, or from iteration times."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from simcluster import catalog
from simcluster.catalog.specs import EngineProfile, GPUSpec
from simcluster.config import ModelConfig
from simcluster.fidelity.calibrate.readers import splitwise_perf, vidur
from simcluster.fidelity.calibrate.readers.samples import Samples
from simcluster.roofline import RooflineStepTime, StepShape
from simcluster.units import MS, US


@dataclass(frozen=True, slots=True)
class HostFit:
    """Keys of an engine entry that were found, and the line that says how."""

    keys: tuple[tuple[str, float], ...]
    """Keys of the catalogue's table ``engine``, in its units."""
    line: str
    """What was found, for people."""


def from_cpu_times(folder: Path, revision: str = "older") -> HostFit:
    """Host work before and after the kernels of a step at one GPU, from Vidur's CPU timings."""
    lines = vidur.host_times(folder, revision)
    tp, before, per_before, after, per_after = lines[0]
    return HostFit(
        (
            ("host_before_ms", before / MS),
            ("host_per_seq_before_us", per_before / US),
            ("host_after_ms", after / MS),
            ("host_per_seq_after_us", per_after / US),
        ),
        f"host time (revision {revision}, {tp} GPU): {(before + after) / MS:.2f} ms a step "
        f"and {(per_before + per_after) / US:.0f} us a sequence",
    )


def from_launches(rows: Samples) -> HostFit | None:
    """CPU cost of launching one kernel, and a captured graph; None where neither was measured."""
    launches = rows.of("issue")
    keys = []
    for name, eager in (("issue_us", True), ("graph_issue_us", False)):
        some = launches.time_s[launches.eager == eager]
        if len(some):
            keys.append((name, float(np.median(some)) / US))
    if not keys:
        return None
    return HostFit(
        tuple(keys), "CPU cost of a launch: " + ", ".join(f"{n} = {v:.3g}" for n, v in keys)
    )


def from_iterations(
    measured: splitwise_perf.Iterations, gpu: GPUSpec, engine: EngineProfile
) -> HostFit:
    """Host time that is left of measured decode steps when the kernels' time is taken off.

    One line over the batch size, for all degrees of tensor parallelism together; never below 0.
    """
    bare = replace(
        engine,
        host_before_s=0.0,
        host_after_s=0.0,
        host_per_seq_before_s=0.0,
        host_per_seq_after_s=0.0,
        host_workers_s=0.0,
    )
    model = ModelConfig(spec=catalog.model(splitwise_perf.MODEL), max_model_len=8192)
    link = catalog.link(gpu.fabric)
    steps = {
        int(tp): RooflineStepTime(model, gpu, link, bare, int(tp))
        for tp in np.unique(measured.tp_size)
    }
    kernels = []
    for tp, batch, prompt, output in zip(
        measured.tp_size, measured.batch, measured.prompt_len, measured.output_len, strict=True
    ):
        context = int(batch * (prompt + output / 2))
        shape = StepShape(int(batch), context, (), int(batch), context)
        kernels.append(steps[int(tp)].step_s(shape))
    rest = measured.token_s - np.array(kernels)
    slope, fixed = np.polyfit(measured.batch, rest, 1)
    if slope < 0.0:
        slope, fixed = 0.0, float(rest.mean())
    fixed = max(float(fixed), 0.0)
    simulated = np.array(kernels) + fixed + slope * measured.batch
    error = float(np.mean(np.abs(simulated / measured.token_s - 1.0)))
    return HostFit(
        (
            ("host_before_ms", 0.5 * fixed / MS),
            ("host_after_ms", 0.5 * fixed / MS),
            ("host_per_seq_before_us", 0.5 * float(slope) / US),
            ("host_per_seq_after_us", 0.5 * float(slope) / US),
        ),
        f"host time left of {len(rest)} measured decode steps of {splitwise_perf.MODEL} with the "
        f"kernels of {engine.name}: {fixed / MS:.2f} ms a step and {slope / US:.0f} us a sequence; "
        f"mean error of the steps {error:.1%}",
    )
