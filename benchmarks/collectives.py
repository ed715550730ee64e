"""How wrong is a share frozen for a step? ``python benchmarks/collectives.py``.

KV transfers and the all-reduces of a tensor-parallel group share PCIe wires. The simulator gives
all collectives of a step one share of the wire, and the flows a constant demand of the collectives
(docs/links.md). Here one flow beside endless decode steps is tracked all-reduce by all-reduce
instead, kernel after kernel as at resolution ``kernel``: while one runs it and the flow have equal
shares, between two the flow has the wire to itself. Printed are the time of a step and the
bandwidth of the flow, both ways.
"""

from __future__ import annotations

from dataclasses import replace

from simcluster import catalog
from simcluster.catalog.specs import LinkSpec
from simcluster.config import ModelConfig
from simcluster.roofline import RooflineStepTime
from simcluster.roofline.base import StepShape
from simcluster.roofline.collectives import library_terms
from simcluster.roofline.operators import ACTIVATION_BYTES

CASES = [
    (gpu, model, tp_size, shape)
    for gpu, model, tp_size in (("L20", "llama-30b", 4), ("A800-80GB PCIe", "qwen2-72b", 4))
    for shape in (
        StepShape(16, 16 * 500, (), 16, 16 * 500),
        StepShape(128, 128 * 500, (), 128, 128 * 500),
        StepShape(0, 0, ((2048, 0),), 1, 0),
    )
]


def tracked(
    times: RooflineStepTime, fabric: LinkSpec, tp_size: int, shape: StepShape, limit: float
) -> tuple[float, float]:
    """Step time (s) and bandwidth of the flow (bytes/s per GPU), all-reduce by all-reduce.

    The flow takes at most `limit` (bytes/s per GPU) even if alone.
    """
    wire = fabric.bandwidth * fabric.efficiency
    latency_s = library_terms(fabric, tp_size)[0].latency_s
    beside = min(limit, wire / 2)
    share = max(1 - limit / wire, 0.5)
    schedule = times.kernels(shape)
    step_s = schedule.host_before_s + schedule.host_after_s
    num_bytes = limit * step_s
    for run in schedule.runs:
        for duration_s, collective in zip(run.run_s, run.collective, strict=True):
            if collective:
                sending_s = max(0.0, duration_s - latency_s) / share
                step_s += run.repeat * (latency_s + sending_s)
                num_bytes += run.repeat * (limit * latency_s + beside * sending_s)
            else:
                step_s += run.repeat * duration_s
                num_bytes += run.repeat * limit * duration_s
    return step_s, num_bytes / step_s


def frozen(
    model: ModelConfig,
    gpu_name: str,
    fabric: LinkSpec,
    tp_size: int,
    shape: StepShape,
    limit: float,
) -> tuple[float, float]:
    """The same by the rule: one share for the step, one demand towards the flow."""
    wire = fabric.bandwidth * fabric.efficiency
    share = int(max(1 - limit / wire, 0.5) * 64 + 1e-9) / 64
    slower = replace(fabric, bandwidth=fabric.bandwidth * share)
    times = RooflineStepTime(model, catalog.gpu(gpu_name), slower, ENGINE, tp_size)
    schedule = times.kernels(shape)
    step_s = schedule.host_before_s + schedule.host_after_s
    step_s += sum(run.repeat * sum(run.run_s) for run in schedule.runs)
    tokens = shape.num_decodes + sum(new for new, _ in shape.chunks)
    message = model.spec.hidden_size * ACTIVATION_BYTES
    sent = 2 * model.spec.num_layers * 2 * (tp_size - 1) / tp_size * message * tokens
    demand = sent / step_s
    return step_s, min(limit, max(wire - demand, wire / 2))


ENGINE = catalog.engine("vllm-0.7")


def main() -> None:
    """Print both ways for a flow that could fill the wire, and one behind a 10 Gbit/s NIC."""
    columns = ("flow", "step, tracked", "frozen", "GB/s", "frozen")
    print(f"{'case':44s} " + " ".join(f"{c:>14s}" for c in columns))
    for gpu_name, model_name, tp_size, shape in CASES:
        model = ModelConfig(spec=catalog.model(model_name), max_model_len=4096)
        fabric = catalog.link(catalog.gpu(gpu_name).fabric)
        times = RooflineStepTime(model, catalog.gpu(gpu_name), fabric, ENGINE, tp_size)
        for name, limit in (
            ("greedy", fabric.bandwidth * fabric.efficiency),
            ("10 GbE", 1.175e9 / tp_size),
        ):
            exact = tracked(times, fabric, tp_size, shape, limit)
            rule = frozen(model, gpu_name, fabric, tp_size, shape, limit)
            what = f"{model_name} TP{tp_size} {gpu_name}, " + (
                f"{shape.num_decodes} decodes" if shape.num_decodes else "2048 prefill"
            )
            cells = (
                name,
                f"{1e3 * exact[0]:.2f} ms",
                f"{100 * (rule[0] / exact[0] - 1):+.1f}%",
                f"{exact[1] / 1e9:.2f}",
                f"{100 * (rule[1] / exact[1] - 1):+.1f}%",
            )
            print(f"{what:44s} " + " ".join(f"{c:>14s}" for c in cells))


if __name__ == "__main__":
    main()
