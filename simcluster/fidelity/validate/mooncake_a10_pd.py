"""Prefill and decode apart on two A10, vLLM 0.6.4 with a KV connector inside its steps."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from simcluster import catalog
from simcluster.config import Environment
from simcluster.fidelity.validate.base import Check, check
from simcluster.fidelity.validate.harness import environment, records, table
from simcluster.runs.simulate import run
from simcluster.strategies import FuDG, NoDG, Strategy
from simcluster.units import FloatArray, grid_array
from simcluster.workload import Workload

DATA_SET: Final = "mooncake_a10_pd"
GPU: Final = "A10"
MODEL: Final = "qwen2.5-7b"
WEIGHTS: Final = "int4"
"""GPTQ, four bits."""
ENGINE: Final = "vllm-0.7-mooncake"
PROMPT_LEN: Final = {256: 245, 1024: 1011, 2048: 2034, 4096: 4092, 8192: 8180}
"""Mean prompts (tokens) by their nominal length (README of the set)."""
_MAX_MODEL_LEN: Final = 10000
_UTILISATION: Final = 0.8
_CHUNK: Final = 512
_SEED: Final = 0
_NETWORKS: Final = {
    "rdma_1nic": ("roce-100", 1),
    "rdma_2nic": ("roce-100", 2),
    "tcp": ("100gbe", 1),
}
"""Link and cards by transport; runs through a store in host memory are another connector."""
FITTED: Final = ("rdma_1nic", 256)
"""Transport and nominal prompt that the connector's constants are fitted to."""
_SUSTAINED: Final = 0.95
"""Share of the rate that comes through where a system is not overloaded."""
_COLUMNS: Final = (
    "setting",
    "transport",
    "tp",
    "prefill_instances",
    "decode_instances",
    "input_len",
    "output_len",
    "rate_req_s",
    "requests",
    "req_throughput_s",
    "ttft_p50_ms",
    "tpot_p99_ms",
)
_QUANTITIES: Final = {"median TTFT": (0.25, 0.15), "P99 of TPOT": (0.40, 0.25)}
"""Must and aim of the median error where prefill and decode are apart."""


def checks(data_dir: Path) -> list[Check]:
    """Compare runs that keep up with their rate."""
    frame = table(data_dir / DATA_SET / "serving.csv", _COLUMNS)
    apart = frame["setting"].eq("disagg") & frame["transport"].isin(list(_NETWORKS))
    known = (apart | ~frame["setting"].eq("disagg")) & frame["input_len"].isin(list(PROMPT_LEN))
    keeps_up = frame["req_throughput_s"] >= _SUSTAINED * frame["rate_req_s"]
    frame = frame[known & keeps_up]
    rows = records(frame)
    truth = frame[["ttft_p50_ms", "tpot_p99_ms"]].to_numpy()
    guess = np.array([simulated_ms(row) for row in rows]).reshape(-1, 2)
    is_apart = frame["setting"].eq("disagg").to_numpy()
    fitted = np.array([(row["transport"], row["input_len"]) == FITTED for row in rows], bool)
    about = partial(check, data_set=DATA_SET, gpu=GPU, model=f"{MODEL} {WEIGHTS}", unit="ms")
    found = []
    for regime, part in (
        ("P/D", is_apart),
        ("P/D, not fitted", is_apart & ~fitted),
        ("collocated", ~is_apart),
    ):
        for i, (quantity, limits) in enumerate(_QUANTITIES.items()):
            must, aim = limits if regime == "P/D" else (None, None)
            found.append(
                about(
                    truth[part, i],
                    guess[part, i],
                    regime=regime,
                    quantity=quantity,
                    must=must,
                    aim=aim,
                    limits="median",
                )
            )
    return found


def simulated_ms(row: dict[str, Any]) -> tuple[float, float]:
    """Return the median TTFT and the P99 of TPOT of the run of a row (ms)."""
    return served_ms(*deployment(row), row)


def served_ms(where: Environment, strategy: Strategy, row: dict[str, Any]) -> tuple[float, float]:
    """Return what the requests of a row get from `strategy`."""
    count = int(row["requests"])
    workload = Workload(
        arrival_s=grid_array(arrivals(float(row["rate_req_s"]), count)),
        prompt_len=np.full(count, PROMPT_LEN[int(row["input_len"])]),
        output_len=np.full(count, int(row["output_len"])),
        rejected=np.zeros(count, dtype=bool),
    )
    requests = run(where, strategy, workload).columns["requests"]
    return (
        1e3 * float(np.median(requests["ttft_s"])),
        1e3 * float(np.percentile(requests["tpot_s"], 99)),
    )


def arrivals(rate_rps: float, count: int) -> FloatArray:
    """Return the arrivals of the runs (s), shape ``(count,)``.

    vLLM's ``benchmark_serving.py`` seeds NumPy with 0 and draws a gap after every request: the
    durations of the set are the sums of these gaps and half a second.
    """
    gaps = np.random.RandomState(_SEED).exponential(1.0 / rate_rps, count)
    return np.concatenate([[0.0], np.cumsum(gaps)[:-1]])


def deployment(row: dict[str, Any]) -> tuple[Environment, Strategy]:
    """Return the machines and the strategy of a row."""
    tp_size = int(row["tp"])
    where = environment(
        GPU,
        MODEL,
        ENGINE,
        num_gpus=tp_size,
        max_model_len=_MAX_MODEL_LEN,
        weight_dtype=WEIGHTS,
        changes={"gpu_memory_utilization": _UTILISATION},
    )
    if row["setting"] == "non_disagg_chunked":
        chunked = NoDG(name="one", tp_size=tp_size, instances=1, scheduler="chunked")
        return where, replace(chunked, chunk_size=_CHUNK)
    if row["setting"] == "non_disagg":
        whole = NoDG(name="one", tp_size=tp_size, instances=1, scheduler="prefill-priority")
        return where, replace(whole, max_num_batched_tokens=_MAX_MODEL_LEN)
    num_prefill, num_decode = int(row["prefill_instances"]), int(row["decode_instances"])
    link, num_nics = _NETWORKS[row["transport"]]
    cluster = replace(
        where.cluster,
        num_nodes=num_prefill + num_decode,
        network=catalog.link(link),
        num_nics=min(num_nics, tp_size),
    )
    apart = FuDG(
        name="apart",
        tp_size=tp_size,
        prefill_instances=num_prefill,
        decode_instances=num_decode,
        placement="inter-node",
        max_num_batched_tokens=_MAX_MODEL_LEN,
    )
    return replace(where, cluster=cluster), apart
