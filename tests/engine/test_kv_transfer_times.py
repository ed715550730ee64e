"""KV transfers of the models that EcoServe evaluates: sizes, times alone, times on a busy NIC."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from simcluster import catalog
from simcluster.config import ClusterConfig, ModelConfig
from simcluster.engine.clock import ARRIVAL, At, Clock
from simcluster.engine.links.link import LinkNetwork
from simcluster.engine.links.topology import Topology
from simcluster.engine.placement import GpuGroup
from simcluster.engine.recorder import Recorder, transfer_columns
from simcluster.rng import stream
from simcluster.units import grid_array

MB = 1e6
NETWORKS = ("10gbe", "25gbe", "ib-400")
TABLE = [
    # mean prompt (tokens), KV (MB), seconds over one NIC of 10, 25 and 400 Gbit/s at line rate
    ("llama-30b", 343.76, 549, (0.44, 0.18, 0.011)),
    ("llama-30b", 2048, 3270, (2.6, 1.05, 0.065)),
    ("codellama-34b", 343.76, 68, (0.054, 0.022, 0.001)),
    ("codellama-34b", 2686.89, 528, (0.42, 0.17, 0.011)),
    ("qwen2-72b", 2686.89, 880, (0.70, 0.28, 0.018)),
]
"""One average request of ShareGPT or LongBench, from the models' shapes and the line rates."""


def rounding(printed: float) -> float:
    """Half a unit of the last digit of a printed number."""
    digits = len(str(printed).partition(".")[2])
    return 0.5 * 10.0**-digits


def transfers(network: str, num_bytes: int, at_s: Any, *, line_rate: bool) -> Any:
    """The transfers frame of so many bytes, sent at these times from one node to another."""
    link = catalog.link(network)
    if line_rate:
        link = dataclasses.replace(link, efficiency=1.0, latency_s=0.0)
    gpu = catalog.gpu("L20")
    config = ClusterConfig(
        gpu=gpu,
        num_nodes=2,
        gpus_per_node=8,
        fabric=catalog.link("pcie4"),
        network=link,
        num_nics=1,
        pcie=dataclasses.replace(catalog.link(gpu.pcie), latency_s=0.0),
        price_per_gpu_hour=None,
    )
    env, recorder = Clock(), Recorder()
    links = LinkNetwork(env, recorder)
    # Four instances of two GPUs on either node, which have one NIC.
    groups = [[GpuGroup(f"{n}-{k}", n, (2 * k, 2 * k + 1)) for k in range(4)] for n in (0, 1)]
    topology = Topology(config)
    for group in (*groups[0], *groups[1]):
        topology.add(group)
    for k, time_s in enumerate(at_s):
        path = topology.between(groups[0][k % 4], groups[1][(k // 4) % 4])
        event = At(env, float(time_s), ARRIVAL)
        assert event.callbacks is not None
        event.callbacks.append(
            lambda _, k=k, path=path: links.transfer(k, path, num_bytes, lambda: None)  # type: ignore[misc]
        )
    env.run()
    return transfer_columns(recorder.transfers)


@pytest.mark.parametrize(("model", "prompt", "size_mb", "seconds"), TABLE)
def test_an_average_request_takes_what_its_kv_takes_at_line_rate(
    model: str, prompt: float, size_mb: float, seconds: tuple[float, ...]
) -> None:
    """Within 2 %, beside the rounding of what was printed; with real links 3 to 50 % longer."""
    spec = catalog.model(model)
    num_bytes = round(prompt * ModelConfig(spec=spec, max_model_len=4096).kv_bytes_per_token)
    assert num_bytes / MB == pytest.approx(size_mb, rel=0.02)
    for network, printed in zip(NETWORKS, seconds, strict=True):
        alone = transfers(network, num_bytes, [0.0], line_rate=True)["end_s"][0]
        assert abs(alone - printed) <= 0.02 * printed + rounding(printed)
        real = transfers(network, num_bytes, [0.0], line_rate=False)["end_s"][0]
        link = catalog.link(network)
        assert real == pytest.approx(alone / link.efficiency + link.latency_s, rel=5e-3)


@pytest.mark.parametrize("load", [0.5, 0.7])
def test_a_busy_nic_stretches_transfers_like_processor_sharing(load: float) -> None:
    """Poisson transfers of four prefill instances on one NIC: 1 / (1 - load) times as long."""
    num_bytes = 549_000_000
    alone_s = num_bytes / catalog.link("10gbe").bandwidth
    stretched = []
    for seed in range(12):
        gaps = stream(seed, "test", "kv").exponential(alone_s / load, 800)
        frame = transfers("10gbe", num_bytes, grid_array(np.cumsum(gaps)), line_rate=True)
        stretched.append(float(frame["duration_s"].mean() / alone_s))
    half_width = 4 * np.std(stretched, ddof=1) / np.sqrt(len(stretched))
    assert half_width < 0.2 / (1 - load)
    assert abs(np.mean(stretched) - 1 / (1 - load)) < half_width
