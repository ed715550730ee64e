"""Collectives and KV transfers on the same wires slow each other down, at all resolutions alike."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simcluster.catalog.specs import EngineProfile
from simcluster.config import Environment, SloConfig
from simcluster.frames import unroll
from simcluster.runs.simulate import run
from simcluster.strategies import FuDG
from simcluster.testing.contracts.base import REQUESTS
from simcluster.testing.examples import examples
from simcluster.testing.specs import ideal_engine, pcie4, vllm_engine
from simcluster.testing.toy import (
    OVERLAPPING,
    agreed,
    assert_same,
    toy_environment,
    toy_workload,
)

TRANSFERS = ("after-prefill", "layerwise")


def on_one_wire(where: Environment, bandwidth: float) -> Environment:
    """GPUs that reach each other, the host and the NICs over PCIe of this bandwidth (bytes/s)."""
    wire = dataclasses.replace(pcie4(), bandwidth=bandwidth)
    assert where.cluster.network is not None
    network = dataclasses.replace(where.cluster.network, bandwidth=bandwidth / 2, latency_s=2e-5)
    cluster = dataclasses.replace(where.cluster, fabric=wire, pcie=wire, network=network)
    return dataclasses.replace(where, cluster=cluster)


@examples(25)
@given(
    requests=REQUESTS,
    engine=st.sampled_from([ideal_engine(), vllm_engine(), OVERLAPPING]),
    bandwidth=st.sampled_from([2e7, 1e8, 1e9]),
    placement=st.sampled_from(["intra-node", "inter-node"]),
    transfer=st.sampled_from(TRANSFERS),
    tp_size=st.sampled_from([2, 4]),
    num_kv_blocks=st.sampled_from([None, 13]),
)
def test_collectives_beside_transfers_are_the_same_at_all_resolutions(
    requests: list[tuple[float, int, int]],
    engine: EngineProfile,
    bandwidth: float,
    placement: Any,
    transfer: Any,
    tp_size: int,
    num_kv_blocks: int | None,
) -> None:
    """Shares frozen at the start of a step, demands constant until the batch changes."""
    where = on_one_wire(toy_environment(engine, SloConfig()), bandwidth)
    strategy = FuDG(
        name="s",
        tp_size=tp_size,
        prefill_instances=2,
        decode_instances=2,
        placement=placement,
        transfer=transfer,
        num_kv_blocks=num_kv_blocks,
    )
    load = toy_workload(requests)
    span = agreed(where, strategy, load)
    if len(requests) <= 6:
        assert_same(span, run(where, strategy, load, resolution="kernel"))


def test_collectives_and_transfers_slow_each_other_down() -> None:
    """The case above is not empty: steps beside transfers are longer, and so are the transfers."""
    strategy = FuDG(name="s", tp_size=4, prefill_instances=1, decode_instances=1)
    load = toy_workload([(0.0, 90, 50), (0.0, 90, 50), (0.01, 90, 30), (0.01, 90, 30)])
    shared = on_one_wire(toy_environment(ideal_engine(), SloConfig()), 2e7)
    # The same speeds, on wires that are told apart.
    pcie = dataclasses.replace(shared.cluster.pcie, name="pcie of its own")
    apart = dataclasses.replace(shared, cluster=dataclasses.replace(shared.cluster, pcie=pcie))
    slow, fast = run(shared, strategy, load), run(apart, strategy, load)
    busy = [result.columns["instances"]["busy_s"].sum() for result in (slow, fast)]
    assert busy[0] > 1.01 * busy[1]
    sent = [result.columns["transfers"]["duration_s"].sum() for result in (slow, fast)]
    assert sent[0] > 1.05 * sent[1]
    assert (slow.columns["spans"]["wire_share"] < 1).any()
    assert (fast.columns["spans"]["wire_share"] == 1).all()
    # The steps of a run follow from its record, those beside transfers too.
    log = unroll.steps(slow.columns, shared)
    by_step = run(shared, strategy, load, resolution="step").columns["spans"]
    in_order = np.lexsort((log["end_s"], log["instance"]))
    expected = np.lexsort((by_step["end_s"], by_step["instance"]))
    assert np.array_equal(log["end_s"][in_order], by_step["end_s"][expected])
