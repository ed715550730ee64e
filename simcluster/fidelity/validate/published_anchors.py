"""Published numbers of vLLM: fixed batches of late 2024; KV transfers between two nodes."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from simcluster import catalog
from simcluster.catalog.specs import LinkSpec
from simcluster.config import ClusterConfig
from simcluster.engine.clock import Clock
from simcluster.engine.links.link import LinkNetwork
from simcluster.engine.links.topology import Topology
from simcluster.engine.placement import GpuGroup
from simcluster.engine.recorder import Recorder
from simcluster.fidelity.validate.base import Check, check
from simcluster.fidelity.validate.harness import environment, records, serve, table
from simcluster.units import MB, MS, FloatArray

DATA_SET: Final = "published_anchors"
ENGINE: Final = "vllm-0.7"
_BATCH, _PROMPT, _OUTPUT = 8, 32, 128
"""The latency test of vLLM's nightly benchmark."""


def checks(data_dir: Path) -> list[Check]:
    """Compare the end-to-end time of eight sequences started together, and KV transfers."""
    return [*_nightly(data_dir), *_transfers(data_dir)]


def _nightly(data_dir: Path) -> list[Check]:
    frame = table(
        data_dir / DATA_SET / "vllm_nightly.csv", ("gpu", "test", "model", "tp", "value", "unit")
    )
    found = []
    for row in records(frame[frame["test"] == "latency"]):
        tp_size = int(row["tp"])
        where = environment(row["gpu"], row["model"], ENGINE, num_gpus=tp_size, max_model_len=4096)
        done = serve(where, [_PROMPT] * _BATCH, [_OUTPUT] * _BATCH, tp_size=tp_size)
        about = partial(check, data_set=DATA_SET, gpu=row["gpu"], model=row["model"])
        found.append(
            about(
                [row["value"] * MS],
                [float(done["e2el_s"].max())],
                regime=f"nightly, TP {tp_size}",
                quantity="latency",
            )
        )
    return found


# --- KV transfers between two nodes of eight H800 ----------------------------------------------

_NODE: Final = "h800-nvlink-8"


def _transfers(data_dir: Path) -> list[Check]:
    """Fit latency and efficiency of the NICs on every second size; compare the others."""
    path = data_dir / DATA_SET / "kv_transfer.csv"
    if not path.exists():
        return []
    frame = table(path, ("prompt_tokens", "kv_size_mb", "transfer_ms"))
    num_bytes = frame["kv_size_mb"].to_numpy(np.float64) * MB
    measured_s = frame["transfer_ms"].to_numpy(np.float64) * MS
    fitted = np.arange(len(frame)) % 2 == 0
    shape = catalog.node(_NODE)
    network = catalog.link(shape.network)
    latency_s, efficiency = _fit(
        num_bytes[fitted], measured_s[fitted], shape.num_nics * network.bandwidth
    )
    network = replace(network, latency_s=latency_s, efficiency=efficiency)
    return [
        check(
            measured_s[chosen],
            [_transfer_s(network, round(size)) for size in num_bytes[chosen]],
            data_set=DATA_SET,
            gpu=shape.gpu,
            model="qwen3-8b",
            regime=regime,
            quantity="KV transfer",
            must=must,
            limits="mean" if must is None else "p90",
        )
        for regime, chosen, must in (("fitted", fitted, None), ("held out", ~fitted, 0.15))
    ]


def _fit(num_bytes: FloatArray, seconds: FloatArray, bandwidth: float) -> tuple[float, float]:
    """Latency (s) and share of `bandwidth` with the least squares of the relative errors."""
    terms = np.column_stack([np.ones(len(num_bytes)), num_bytes / bandwidth])
    (latency_s, slowness), *_ = np.linalg.lstsq(
        terms / seconds[:, None], np.ones(len(seconds)), rcond=None
    )
    return float(latency_s), float(1 / slowness)


def _transfer_s(network: LinkSpec, num_bytes: int) -> float:
    """Time of one transfer between the GPUs of two nodes, over links simulated alone (s)."""
    shape = catalog.node(_NODE)
    gpu = catalog.gpu(shape.gpu)
    config = ClusterConfig(
        gpu=gpu,
        num_nodes=2,
        gpus_per_node=shape.gpus_per_node,
        fabric=catalog.link(shape.fabric),
        network=network,
        num_nics=shape.num_nics,
        pcie=catalog.link(gpu.pcie),
        price_per_gpu_hour=None,
    )
    source, destination = (
        GpuGroup(f"instance-{node}", node, tuple(range(shape.gpus_per_node))) for node in (0, 1)
    )
    env = Clock()
    path = Topology(config).between(source, destination)
    LinkNetwork(env, Recorder()).transfer(0, path, num_bytes, lambda: None)
    env.run()
    return env.now
