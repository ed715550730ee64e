"""One request alone: every stamp written down by hand from the times of single steps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np
import pytest

from simcluster.config import Environment, SloConfig
from simcluster.roofline import RooflineStepTime, StepTime
from simcluster.roofline.base import StepShape
from simcluster.runs.result import Result
from simcluster.runs.simulate import run
from simcluster.strategies import FuDG, NoDG, PaDG, Strategy
from simcluster.testing import specs
from simcluster.testing.step_times import LinearStepTime, same_for_all
from simcluster.testing.workloads import workload_of
from simcluster.units import TICK_S, on_grid

ARRIVAL_S = 0.75
PROMPT_LEN = 1000
OUTPUT_LEN = 700
"""More decode steps than the longest span."""
PREFILL_TOKEN_S, DECODE_S, CONTEXT_S = 2.0**-12, 2.0**-7, 2.0**-22
LINEAR = LinearStepTime(PREFILL_TOKEN_S, DECODE_S, per_context_token_s=CONTEXT_S)
RESOLUTIONS = ("span", "step", "kernel")


def alone(
    strategy: Strategy,
    environment: Environment | None = None,
    step_time: StepTime = LINEAR,
    *,
    prompt_len: int = PROMPT_LEN,
    output_len: int = OUTPUT_LEN,
    resolution: str = "span",
) -> Result:
    """Run a single request."""
    return run(
        environment or specs.environment(),
        strategy,
        workload_of([ARRIVAL_S], prompt_len, output_len),
        step_time=same_for_all(step_time),
        resolution=resolution,
    )


def stamps(result: Result) -> dict[str, Any]:
    """The request's row."""
    return {name: column[0] for name, column in result.columns["requests"].items()}


def linear_decode_s(output_len: int = OUTPUT_LEN, prompt_len: int = PROMPT_LEN) -> float:
    """All decode steps of `LINEAR`: step k attends to the prompt, k outputs and the new token."""
    steps = output_len - 1
    contexts = steps * (prompt_len + 1) + steps * (steps - 1) // 2
    return steps * DECODE_S + contexts * CONTEXT_S


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_prefill_priority_takes_one_prefill_and_the_decodes(resolution: str) -> None:
    """TTFT is the prefill, TPOT the mean decode step, E2EL their sum: exactly."""
    row = stamps(alone(NoDG(name="nodg", instances=1), resolution=resolution))
    prefill_s, decode_s = PROMPT_LEN * PREFILL_TOKEN_S, linear_decode_s()
    assert row["status"] == "finished"
    assert row["routed_s"] == row["scheduled_s"] == ARRIVAL_S
    assert row["queue_s"] == 0
    assert row["first_token_s"] == row["first_output_s"] == row["decode_start_s"]
    assert row["ttft_s"] == prefill_s
    assert row["last_token_s"] == row["last_output_s"]
    assert row["e2el_s"] == prefill_s + decode_s
    assert row["tpot_s"] == decode_s / (OUTPUT_LEN - 1)
    assert row["transfer_s"] == 0


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("chunk_size", [256, 500, 999, 1000, 1001])
def test_chunked_takes_as_many_steps_as_there_are_chunks(chunk_size: int, resolution: str) -> None:
    """TTFT is the sum of the chunks; their number is the prompt over the budget, rounded up."""
    fixed_s = 2.0**-5
    step_time = LinearStepTime(
        PREFILL_TOKEN_S, DECODE_S, per_context_token_s=CONTEXT_S, fixed_s=fixed_s
    )
    strategy = NoDG(name="chunked", instances=1, scheduler="chunked", chunk_size=chunk_size)
    result = alone(strategy, step_time=step_time, resolution=resolution)
    num_chunks = math.ceil(PROMPT_LEN / chunk_size)
    row, spans = stamps(result), result.columns["spans"]
    prefills = spans["kind"] == "prefill"
    sizes = [chunk_size] * (num_chunks - 1) + [PROMPT_LEN - chunk_size * (num_chunks - 1)]
    steps = spans["num_steps"][prefills]
    assert np.repeat(spans["prefill_tokens"][prefills], steps).tolist() == sizes
    assert row["ttft_s"] == num_chunks * fixed_s + PROMPT_LEN * PREFILL_TOKEN_S
    decode_s = linear_decode_s() + (OUTPUT_LEN - 1) * fixed_s
    assert row["e2el_s"] == row["ttft_s"] + decode_s


def test_one_token_needs_no_decode() -> None:
    """An answer of one token ends with its prefill; it has no time per output token."""
    row = stamps(alone(NoDG(name="nodg", instances=1), output_len=1))
    assert row["e2el_s"] == row["ttft_s"] == PROMPT_LEN * PREFILL_TOKEN_S
    assert row["decode_start_s"] == row["last_token_s"] == row["first_token_s"]
    assert math.isnan(row["tpot_s"])


@pytest.mark.parametrize("engine", [specs.ideal_engine(), specs.vllm_engine()])
@pytest.mark.parametrize("tp_size", [1, 2])
def test_roofline_times_are_added_up_step_by_step(engine: Any, tp_size: int) -> None:
    """With the real step times: one call per step, contexts counted here, summed here."""
    environment = specs.environment(engine=engine, model=specs.llama_2_7b())
    cluster = environment.cluster
    step_time = RooflineStepTime(
        environment.model, cluster.gpu, cluster.fabric, environment.engine, tp_size
    )
    prompt_len, output_len = 321, 50
    strategy = NoDG(name="nodg", instances=1, tp_size=tp_size)
    workload = workload_of([ARRIVAL_S], prompt_len, output_len)
    row = stamps(run(environment, strategy, workload))
    ttft_s = step_time.step_s(StepShape(0, 0, ((prompt_len, 0),), 1, 0))
    decode_s = 0.0
    for context in range(prompt_len + 1, prompt_len + output_len):
        decode_s += step_time.step_s(StepShape(1, context, (), 1, context))
    assert row["ttft_s"] == ttft_s
    assert row["e2el_s"] == ttft_s + decode_s
    assert 0.001 < decode_s / (output_len - 1) < 0.1


def test_an_engine_that_overlaps_host_work_hides_it_behind_the_step_before() -> None:
    """The first step pays host and GPU; each later one what the step before did not hide."""
    engine = dataclasses.replace(specs.vllm_engine(), overlaps_host=True)
    environment = specs.environment(engine=engine, model=specs.llama_2_7b())
    cluster = environment.cluster
    step_time = RooflineStepTime(environment.model, cluster.gpu, cluster.fabric, engine, 1)
    prompt_len, output_len = 321, 50
    workload = workload_of([ARRIVAL_S], prompt_len, output_len)
    row = stamps(run(environment, NoDG(name="nodg", instances=1), workload))
    shapes = [StepShape(0, 0, ((prompt_len, 0),), 1, 0)]
    shapes += [StepShape(1, c, (), 1, c) for c in range(prompt_len + 1, prompt_len + output_len)]
    total_s = hidden_s = 0.0
    for shape in shapes:
        total_s += step_time.step_s(shape, hidden_s)
        hidden_s = step_time.gpu_s(shape)
    assert row["e2el_s"] == total_s


SLOW = dataclasses.replace(specs.pcie4(), bandwidth=3e9, efficiency=0.7, latency_s=1.1e-5)
MACHINES = dataclasses.replace(
    specs.environment(num_nodes=2, gpus_per_node=2),
    cluster=dataclasses.replace(specs.environment(num_nodes=2, gpus_per_node=2).cluster, pcie=SLOW),
)


def transfer_end_s(start_s: float, num_bytes: int, rate: float, *latencies_s: float) -> float:
    """Latencies first, on the grid; then bytes over rate, rounded up to the grid."""
    start_s += on_grid(sum(latencies_s))
    return math.ceil((start_s + num_bytes / rate) / TICK_S) * TICK_S


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("tp_size", [1, 2])
@pytest.mark.parametrize("first_token", ["decode", "prefill"])
def test_kv_moves_once_over_the_fabric_inside_a_node(
    first_token: Any, tp_size: int, resolution: str
) -> None:
    """FuDG inside a node: latency plus bytes over the fabric of the whole group, then decode.

    The user has the first token when the decode side has the KV, or when the prefill has ended.
    """
    environment = specs.environment()
    fabric = environment.cluster.fabric
    strategy = FuDG(
        name="intra",
        prefill_instances=1,
        decode_instances=1,
        tp_size=tp_size,
        first_token=first_token,
    )
    result = alone(strategy, environment, resolution=resolution)
    row = stamps(result)
    first_token_s = ARRIVAL_S + PROMPT_LEN * PREFILL_TOKEN_S
    num_bytes = PROMPT_LEN * 196_608
    rate = tp_size * fabric.bandwidth * fabric.efficiency
    arrived_s = transfer_end_s(first_token_s, num_bytes, rate, fabric.latency_s)
    assert row["first_token_s"] == first_token_s
    assert row["first_output_s"] == (arrived_s if first_token == "decode" else first_token_s)
    assert row["decode_start_s"] == arrived_s
    assert row["transfer_s"] == arrived_s - first_token_s
    assert row["last_token_s"] == row["last_output_s"] == arrived_s + linear_decode_s()
    assert (row["prefill_instance"], row["decode_instance"]) == (0, 1)
    assert result.columns["transfers"]["num_bytes"].tolist() == [num_bytes]


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_kv_moves_twice_between_nodes(resolution: str) -> None:
    """FuDG between nodes: PCIe and NICs to the pool at the slower's rate, then PCIe down again."""
    cluster = MACHINES.cluster
    strategy = FuDG(name="inter", prefill_instances=1, decode_instances=1, placement="inter-node")
    result = alone(strategy, MACHINES, resolution=resolution)
    row, transfers = stamps(result), result.columns["transfers"]
    first_token_s = ARRIVAL_S + PROMPT_LEN * PREFILL_TOKEN_S
    num_bytes = PROMPT_LEN * 196_608
    pcie_rate = 3e9 * 0.7
    nic_rate = 25e9 / 8 * 0.9
    assert pcie_rate < nic_rate
    network_latency_s = cluster.network.latency_s
    pooled_s = transfer_end_s(
        first_token_s, num_bytes, pcie_rate, SLOW.latency_s, network_latency_s
    )
    arrived_s = transfer_end_s(pooled_s, num_bytes, pcie_rate, SLOW.latency_s)
    assert transfers["num_bytes"].tolist() == [num_bytes, num_bytes]
    assert transfers["end_s"].tolist() == [pooled_s, arrived_s]
    assert row["decode_start_s"] == arrived_s
    assert row["last_token_s"] == arrived_s + linear_decode_s()
    nodes = result.columns["instances"]["node"].tolist()
    assert nodes == [0, 1]


def test_the_pool_of_one_node_needs_no_network() -> None:
    """Where both roles stand on one node the KV cache passes through its memory over PCIe only."""
    environment = dataclasses.replace(
        MACHINES, cluster=dataclasses.replace(MACHINES.cluster, num_nodes=1)
    )
    strategy = FuDG(name="inter", prefill_instances=1, decode_instances=1, placement="inter-node")
    result = alone(strategy, environment)
    start_s = ARRIVAL_S + PROMPT_LEN * PREFILL_TOKEN_S
    num_bytes, rate = PROMPT_LEN * 196_608, 3e9 * 0.7
    pooled_s = transfer_end_s(start_s, num_bytes, rate, SLOW.latency_s)
    arrived_s = transfer_end_s(pooled_s, num_bytes, rate, SLOW.latency_s)
    assert result.columns["transfers"]["end_s"].tolist() == [pooled_s, arrived_s]


@pytest.mark.parametrize("placement", ["intra-node", "inter-node"])
def test_one_token_is_not_transferred(placement: Literal["intra-node", "inter-node"]) -> None:
    """A request that ends with its prefill leaves no KV to move."""
    strategy = FuDG(name="fudg", prefill_instances=1, decode_instances=1, placement=placement)
    result = alone(strategy, MACHINES, output_len=1)
    row = stamps(result)
    assert len(result.columns["transfers"]["num_bytes"]) == 0
    assert row["e2el_s"] == row["ttft_s"] == PROMPT_LEN * PREFILL_TOKEN_S
    assert row["decode_instance"] == row["prefill_instance"] == 0


@pytest.mark.parametrize("resolution", RESOLUTIONS)
def test_padg_that_streams_is_nodg(resolution: str) -> None:
    """Without hold-back a request alone in a ring of three is a request alone in an instance."""
    row = stamps(alone(PaDG(name="padg", instances=3, hold_output=False), resolution=resolution))
    prefill_s, decode_s = PROMPT_LEN * PREFILL_TOKEN_S, linear_decode_s()
    assert row["ttft_s"] == prefill_s
    assert row["e2el_s"] == prefill_s + decode_s
    assert row["tpot_s"] == decode_s / (OUTPUT_LEN - 1)


def with_ttft(ttft_s: float) -> Environment:
    """The usual machines under this TTFT target."""
    return specs.environment(slo=SloConfig(ttft_s=ttft_s, tpot_s=0.1))


def test_padg_releases_held_output_when_nothing_is_left_to_do() -> None:
    """Held back, all tokens of an answer shorter than S_TTFT reach the user at its end."""
    result = alone(PaDG(name="padg", instances=2), with_ttft(100.0))
    row = stamps(result)
    e2el_s = PROMPT_LEN * PREFILL_TOKEN_S + linear_decode_s()
    assert row["first_token_s"] == ARRIVAL_S + PROMPT_LEN * PREFILL_TOKEN_S
    assert row["ttft_s"] == row["e2el_s"] == e2el_s
    assert row["tpot_s"] == 0


def test_padg_releases_held_output_after_the_ttft_target() -> None:
    """S_TTFT after the window opened the answer begins to stream, whoever still computes."""
    ttft_s = 2.0
    result = alone(PaDG(name="padg", instances=2), with_ttft(ttft_s))
    row, windows = stamps(result), result.columns["windows"]
    e2el_s = PROMPT_LEN * PREFILL_TOKEN_S + linear_decode_s()
    assert e2el_s > ttft_s
    assert row["first_token_s"] == ARRIVAL_S + PROMPT_LEN * PREFILL_TOKEN_S
    assert row["ttft_s"] == ttft_s
    assert row["e2el_s"] == e2el_s
    assert row["tpot_s"] == (e2el_s - ttft_s) / (OUTPUT_LEN - 1)
    assert windows["opened_s"].tolist() == [ARRIVAL_S]
    assert windows["released_s"].tolist() == [ARRIVAL_S + ttft_s]
    assert windows["closed_s"].tolist() == [result.end_s]


def test_padg_turns_away_a_prompt_that_cannot_meet_the_target() -> None:
    """Constraint 1 fails for it on an empty instance: it is rejected, not kept for ever."""
    predicted_s = PROMPT_LEN * PREFILL_TOKEN_S
    strategy = PaDG(name="padg", instances=2)
    late = stamps(alone(strategy, with_ttft(predicted_s - 2 * TICK_S)))
    assert late["status"] == "rejected"
    assert np.isnan(late["first_token_s"])
    in_time = stamps(alone(strategy, with_ttft(predicted_s)))
    assert in_time["status"] == "finished"
