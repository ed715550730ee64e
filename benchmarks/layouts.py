"""Engine loop of a model with experts against a dense one: ``python benchmarks/layouts.py``.

Closed loops of the same requests on one instance, in alternation: Qwen2-72B over eight GPUs,
Qwen3-235B with its experts spread over them (``ep_size = 8``), and with eight data-parallel ranks
(``dp_size = 8``). Printed are steps and output tokens per CPU second, and their ratio to the dense
model's; a step of data-parallel ranks counts once for each rank that worked in it.
"""

from __future__ import annotations

import statistics
import time

import numpy as np

from simcluster.config import Environment
from simcluster.fidelity.validate.harness import environment
from simcluster.runs.simulate import run
from simcluster.strategies import NoDG
from simcluster.workload import Workload

REQUESTS, CLIENTS, PROMPT, OUTPUT = 3000, 64, 600, 200
ROUNDS = 5
CASES = {
    "dense, TP 8": ("qwen2-72b", {"tp_size": 8}),
    "experts, TP 8, EP 8": ("qwen3-235b-a22b", {"tp_size": 8, "ep_size": 8}),
    "experts, DP 8, EP 8": ("qwen3-235b-a22b", {"dp_size": 8, "ep_size": 8}),
}


def loop(where: Environment, layout: dict[str, int]) -> tuple[float, float]:
    """Return steps and output tokens per CPU second of one run."""
    rng = np.random.default_rng(0)
    outputs = rng.integers(OUTPUT // 2, OUTPUT + OUTPUT // 2, REQUESTS)
    workload = Workload(
        arrival_s=np.zeros(REQUESTS),
        prompt_len=rng.integers(PROMPT // 2, PROMPT + PROMPT // 2, REQUESTS),
        output_len=outputs,
        rejected=np.zeros(REQUESTS, bool),
        concurrency=CLIENTS,
    )
    begun = time.process_time()
    result = run(where, NoDG(name="s", instances=1, **layout), workload)
    seconds = time.process_time() - begun
    steps = int(result.columns["instances"]["num_steps"].sum())
    return steps / seconds, float(outputs.sum()) / seconds


def main() -> None:
    """Run all in alternation and print medians."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in CASES}
    places = {
        name: environment(
            "H100", model, "vllm-0.19", num_gpus=8, max_model_len=4096, weight_dtype="fp8"
        )
        for name, (model, _) in CASES.items()
    }
    for _ in range(ROUNDS):
        for name, (_, layout) in CASES.items():
            found[name].append(loop(places[name], layout))
    base = [statistics.median(values) for values in zip(*found["dense, TP 8"], strict=True)]
    print(f"{'':22}{'steps/CPU s':>14}{'tokens/CPU s':>14}{'of dense':>12}")
    for name, each in found.items():
        steps, tokens = (statistics.median(values) for values in zip(*each, strict=True))
        ratio = f"{steps / base[0]:.2f}, {tokens / base[1]:.2f}"
        print(f"{name:22}{steps:14,.0f}{tokens:14,.0f}{ratio:>12}")


if __name__ == "__main__":
    main()
