"""BestServe's estimator: against its formulas, queueing theory and cases done by hand."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from simcluster.config import SloPercentiles
from simcluster.errors import ConfigError
from simcluster.scenario.file import resolve
from simcluster.scenario.scenario import Scenario
from simcluster.studies import bestserve
from simcluster.studies.bestserve import Estimator, TandemDeployment
from simcluster.workload import Workload

DOCUMENT: dict[str, Any] = {
    "model": {"name": "codellama-34b"},
    "cluster": {"gpu": "910B3", "nodes": 1, "gpus_per_node": 8},
    "engine": {"profile": "eager", "max_model_len": 4096},
    "workload": {"lengths": {"kind": "fixed", "prompt_len": 1000, "output_len": 11}},
    "slo": {"ttft_s": 1.5, "tpot_s": 0.07, "criterion": "marginal"},
    "strategy": [
        {"name": "2m-tp4", "kind": "nodg", "tp_size": 4},
        {"name": "1p1d-tp4", "kind": "fudg", "tp_size": 4},
        {"name": "2e-tp4", "kind": "padg", "tp_size": 4},
    ],
}


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    """Return eight 910B3 without graph capture."""
    return resolve(DOCUMENT)


class Fixed:
    """Batch times that do not depend on lengths: so much a prompt, so much a step."""

    def __init__(self, prompt_s: float, step_s: float, per_seq_s: float = 0.0) -> None:
        self._prompt_s, self._step_s, self._per_seq_s = prompt_s, step_s, per_seq_s

    def prefill_s(self, batch: int, prompt_len: int) -> float:
        """So much a prompt."""
        return batch * self._prompt_s

    def decode_s(self, batch: int, context: int) -> float:
        """So much a step, and a little for each sequence."""
        return self._step_s + batch * self._per_seq_s


def workload(arrival_s: list[float], output_len: int = 11) -> Workload:
    """Return requests of 100 tokens at these times."""
    n = len(arrival_s)
    return Workload(
        arrival_s=np.array(arrival_s),
        prompt_len=np.full(n, 100),
        output_len=np.full(n, output_len),
        rejected=np.zeros(n, dtype=bool),
        concurrency=None,
        rate_rps=1.0,
        notes=(),
    )


def served(**changes: Any) -> TandemDeployment:
    """Return one collocated instance, or what `changes` make of it."""
    base = TandemDeployment(
        mixed=1, prefill=0, decode=0, slots=100, prefill_tokens=100, transfer_s_per_token=0.0
    )
    return dataclasses.replace(base, **changes)


DISAGGREGATED: dict[str, Any] = {"mixed": 0, "prefill": 1, "decode": 1}


# Layer 1 ----------------------------------------------------------------------------------------


def with_engine(scenario: Scenario, **changes: Any) -> Any:
    """Return the environment with another engine."""
    engine = dataclasses.replace(scenario.environment.engine, **changes)
    return dataclasses.replace(scenario.environment, engine=engine)


@pytest.mark.parametrize("tp_size", [2, 8])
@pytest.mark.parametrize("batch", [1, 64])
@pytest.mark.parametrize("issue_s", [0.0, 20e-6, 1e-3])
def test_a_step_is_the_recurrence_of_dispatch(
    scenario: Scenario, tp_size: int, batch: int, issue_s: float
) -> None:
    """Operator by operator: it starts when it is issued and the one before has ended."""
    estimator = Estimator(with_engine(scenario, issue_s=issue_s), tp_size)
    layers = estimator._layer(batch, 1, 1000) * scenario.environment.model.spec.num_layers
    issued = end = 0.0
    for took in [estimator._embedding(batch), *layers, *estimator._head(batch)]:
        issued += issue_s
        end = max(issued, end) + took
    assert estimator.decode_s(batch, 1000) == pytest.approx(end, abs=1e-6)


def test_limits_are_bandwidth_compute_and_dispatch(scenario: Scenario) -> None:
    """One sequence reads the weights, a long prompt computes, slow issue hides both."""
    free = Estimator(with_engine(scenario, issue_s=0.0), 1)
    gpu, spec = scenario.environment.cluster.gpu, scenario.environment.model.spec
    constants = gpu.constants
    weights_s = 2.0 * spec.num_params / (constants.mbu_gemm * gpu.memory_bandwidth)
    assert free.decode_s(1, 100) == pytest.approx(weights_s, rel=0.03)
    layers = spec.num_params - 2 * spec.vocab_size * spec.hidden_size
    flops = 4000 * 2 * layers + spec.num_layers * 2 * 4000**2 * spec.num_heads * spec.head_dim
    compute_s = flops / (constants.mfu_gemm * gpu.flops_16bit)
    assert free.prefill_s(1, 4000) == pytest.approx(compute_s, rel=0.06)
    slow = Estimator(with_engine(scenario, issue_s=1e-3), 8)
    assert slow.decode_s(1, 100) == pytest.approx(slow.issue_s(), rel=0.01)
    assert slow.decode_s(32, 100) == pytest.approx(slow.decode_s(1, 100), rel=0.01)


def test_graphs_take_the_issue_out(scenario: Scenario) -> None:
    """One issue for the whole step: decode is as fast as without a CPU, prefill is not captured."""
    free = Estimator(with_engine(scenario, issue_s=0.0), 8)
    graph = Estimator(with_engine(scenario, issue_s=1e-3, graph_max_seqs=64, graph_issue_s=1e-4), 8)
    assert graph.decode_s(64, 500) == pytest.approx(free.decode_s(64, 500) + 1e-4, rel=1e-6)
    assert graph.decode_s(65, 500) > 0.5
    assert graph.prefill_s(1, 10) > 0.5


def test_all_reduces_cost_their_latency_and_wire(scenario: Scenario) -> None:
    """Two of each layer, and none in a group of one."""
    fabric = scenario.environment.cluster.fabric
    one, two = (Estimator(scenario.environment, tp_size) for tp_size in (1, 2))
    assert len(one._layer(1, 1, 10)) == 11
    assert len(two._layer(1, 1, 10)) == 13
    hidden = scenario.environment.model.spec.hidden_size
    sent = 2.0 * 500 * hidden  # 2 (t - 1) / t of two bytes each
    assert two._all_reduce(500)[0] >= sent / fabric.bandwidth


# Layer 2 ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.3, 0.7])
def test_one_prompt_at_a_time_waits_like_md1(rho: float) -> None:
    """Poisson arrivals at a prefill pool of one with constant times: Pollaczek and Khinchine."""
    waits = []
    for seed in range(20):
        gaps = np.random.default_rng(seed).exponential(1 / rho, 4000)
        requests = workload(np.cumsum(gaps).tolist())
        ttft_s, _ = bestserve.estimate(served(**DISAGGREGATED), Fixed(1.0, 0.0), requests)
        waits.append(ttft_s.mean() - 1.0)
    half_width = 4 * np.std(waits, ddof=1) / np.sqrt(len(waits))
    assert abs(np.mean(waits) - rho / (2 * (1 - rho))) < half_width


def test_decode_pool_adds_transfer_and_steps() -> None:
    """TPOT = (transfer + 10 steps) / 10 where slots are free; with one slot requests queue."""
    deployment = served(**DISAGGREGATED, transfer_s_per_token=0.001)
    requests = workload([0.0, 10.0])
    ttft_s, tpot_s = bestserve.estimate(deployment, Fixed(1.0, 0.05), requests)
    np.testing.assert_allclose(ttft_s, 1.0)
    np.testing.assert_allclose(tpot_s, (0.1 + 0.5) / 10)
    deployment = dataclasses.replace(deployment, slots=1, prefill=2)
    _, tpot_s = bestserve.estimate(deployment, Fixed(1.0, 0.05), workload([0.0, 0.0]))
    np.testing.assert_allclose(tpot_s, [0.06, 0.06 + 0.05])


def test_a_prefill_holds_up_what_decodes_there() -> None:
    """Collocated: the second prompt comes in the middle of the first one's decoding."""
    ttft_s, tpot_s = bestserve.estimate(served(), Fixed(1.0, 0.1), workload([0.0, 1.5]))
    np.testing.assert_allclose(ttft_s, 1.0)
    np.testing.assert_allclose(tpot_s, [(1.0 + 1.0) / 10, 0.1])


def test_prompts_share_a_prefill_up_to_the_token_limit() -> None:
    """Three wait: two fit in 200 tokens, the third comes in the next batch."""
    deployment = served(**DISAGGREGATED, prefill_tokens=200)
    arrivals = [0.0, 0.1, 0.2, 0.3]
    ttft_s, _ = bestserve.estimate(deployment, Fixed(1.0, 0.0), workload(arrivals))
    np.testing.assert_allclose(ttft_s + arrivals, [1.0, 3.0, 3.0, 4.0])


def test_pseudo_batches_follow_the_occupancy_damped() -> None:
    """Slots fill one by one: each request sees the mean of the busy slots and what was before."""
    _, tpot_s = bestserve.estimate(
        served(**DISAGGREGATED), Fixed(0.0, 0.0, 1.0), workload([0.0, 0.1, 0.2, 0.3], 2)
    )
    pseudo, expected = 1.0, []
    for busy in (1, 2, 3, 4):
        pseudo = (pseudo + busy) / 2
        expected.append(max(1, round(pseudo)))
    np.testing.assert_allclose(tpot_s, expected)


# Layer 3 ----------------------------------------------------------------------------------------


def test_goodput_of_constant_arrivals_is_the_prefill_rate(scenario: Scenario) -> None:
    """Evenly spaced, one prompt at a time: every rate below one per prefill keeps the target."""
    workload = {**DOCUMENT["workload"], "arrivals": "constant"}
    changed = resolve({**DOCUMENT, "workload": workload, "engine": {"profile": "eager"}})
    strategy = dataclasses.replace(changed.strategies[1], max_num_batched_tokens=1000)
    short = dataclasses.replace(changed.environment.model, max_model_len=1000)
    environment = dataclasses.replace(changed.environment, model=short)
    slo = dataclasses.replace(environment.slo, ttft_s=0.13, tpot_s=None)
    lengths = dataclasses.replace(changed.workload.length_distribution, prompt_len=900)
    few = dataclasses.replace(
        changed,
        environment=dataclasses.replace(environment, slo=slo),
        workload=dataclasses.replace(changed.workload, lengths=lengths),
    )
    prefill_s = Estimator(environment, 4).prefill_s(1, 900)
    assert 0.065 < prefill_s < 0.13
    found = bestserve.goodput_rps(few, strategy)
    assert found == pytest.approx(1 / prefill_s, rel=0.01)


def test_what_it_does_not_know_is_refused(scenario: Scenario) -> None:
    """PaDG, chunks, pipelines, experts: one line that offers the simulation."""
    with pytest.raises(ConfigError, match=r'BestServe knows collocated.*"simulate"'):
        bestserve.goodput_rps(scenario, scenario.strategies[2])
    slo = dataclasses.replace(scenario.environment.slo, percentiles=SloPercentiles(ttft=95))
    own = dataclasses.replace(
        scenario, environment=dataclasses.replace(scenario.environment, slo=slo)
    )
    with pytest.raises(ConfigError, match=r"slo.percentiles: BestServe takes one share"):
        bestserve.goodput_rps(own, own.strategies[0])
    nodg = scenario.strategies[0]
    for changes in ({"scheduler": "chunked"}, {"pp_size": 2}):
        assert not bestserve.knows(dataclasses.replace(nodg, **changes))
    experts = resolve({**DOCUMENT, "model": {"name": "mixtral-8x7b"}})
    with pytest.raises(ConfigError, match="dense models"):
        bestserve.goodput_rps(experts, experts.strategies[0])
