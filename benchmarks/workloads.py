"""The requests every simulator of the comparison was measured on, and the scenarios they meet.

Prompts and outputs are fixed (512 / 128 tokens) or chat-like (lognormal, median 500 / 150),
arrivals Poisson at 32 requests/s from a seeded `random.Random`, so that the same rows can be given
to other simulators.
"""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterator
from pathlib import Path

RATE_RPS = 32.0


def rows(kind: str, num_requests: int, seed: int = 0) -> Iterator[tuple[float, int, int]]:
    """Arrival (s), prompt and output (tokens) of each request; the first arrives at 0."""
    rng = random.Random(seed)
    arrival_s = 0.0
    for number in range(num_requests):
        if number:
            arrival_s += rng.expovariate(RATE_RPS)
        if kind == "fixed":
            yield arrival_s, 512, 128
        else:
            prompt = int(min(3072, max(16, rng.lognormvariate(math.log(500), 1.0))))
            output = int(min(768, max(8, rng.lognormvariate(math.log(150), 0.8))))
            yield arrival_s, prompt, output


def write_trace(path: Path, kind: str, num_requests: int) -> None:
    """Write the requests as the plain CSV trace that simcluster reads."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("arrival_s", "prompt_len", "output_len"))
        for arrival_s, prompt, output in rows(kind, num_requests):
            writer.writerow((f"{arrival_s:.6f}", prompt, output))


HEAD = """
[model]
name = "llama-2-7b"
[cluster]
gpu = "A100-80GB"
nodes = {nodes}
gpus_per_node = {per_node}
network = "25gbe"
[engine]
profile = "vllm-0.7"
[workload]
trace = "{trace}"
{rate}
[slo]
ttft_s = 5.0
tpot_s = 0.1
[[strategy]]
name = "{name}"
"""

STRATEGIES = {
    "nodg": 'kind = "nodg"\ninstances = 8\nrouter = "least-loaded"\n',
    "chunked": 'kind = "nodg"\nscheduler = "chunked"\nchunk_size = 512\ninstances = 8\n',
    "fudg": (
        'kind = "fudg"\nplacement = "inter-node"\nprefill_instances = 4\ndecode_instances = 4\n'
    ),
    "padg": 'kind = "padg"\ninstances = 8\n',
    "padg64": 'kind = "padg"\ninstances = 64\nmacro_instances = 6\n',
}


def scenario(strategy: str, trace: Path, rate_rps: float | None = None) -> str:
    """Scenario file: eight (or 64) instances of Llama-2-7B on A100, one GPU each."""
    nodes, per_node = {"fudg": (8, 1), "padg64": (8, 8)}.get(strategy, (1, 8))
    head = HEAD.format(
        name=strategy,
        trace=trace,
        nodes=nodes,
        per_node=per_node,
        rate="" if rate_rps is None else f"rate_rps = {rate_rps}",
    )
    return head + STRATEGIES[strategy]
