"""Run a deployment kernel by kernel, and see that steps and spans say the same.

    python scenarios/kernels.py

Twelve requests on two instances of Llama-3.1-8B, two GPUs each. At resolution ``kernel`` a SimPy
process per rank plays the CPU dispatcher, another the kernel queue of the GPU; at ``step`` a
forward pass is one event, at ``span`` a run of equal decode steps is.
"""

from __future__ import annotations

import argparse
import time

import simcluster

SCENARIO = {
    "model": {"name": "llama-3.1-8b"},
    "engine": {"profile": "eager", "max_model_len": 4096},
    "cluster": {"gpu": "A100-80GB", "nodes": 1, "gpus_per_node": 4},
    "workload": {
        "lengths": {"kind": "fixed", "prompt_len": 300, "output_len": 12},
        "num_requests": 12,
        "rate_rps": 20.0,
    },
    "slo": {"ttft_s": 1.0, "tpot_s": 0.05},
    "strategy": [{"name": "vLLM", "kind": "nodg", "tp_size": 2}],
}


def main() -> None:
    """Simulate at each resolution; compare and count."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    scenario = simcluster.resolve(SCENARIO)
    results = {}
    for resolution in ("kernel", "step", "span"):
        start = time.process_time()
        results[resolution] = simcluster.simulate(scenario, resolution=resolution)
        cpu_s = time.process_time() - start
        events = results[resolution].num_events
        print(f"{resolution:7s} {events:10,d} events {cpu_s:8.3f} CPU-s")
    same = all(results["kernel"].requests.equals(results[r].requests) for r in ("step", "span"))
    print(f"\nEvery stamp of every request is the same to the last bit: {same}\n")
    print(results["kernel"].requests[["arrival_s", "ttft_s", "tpot_s", "e2el_s"]].to_string())


if __name__ == "__main__":
    main()
