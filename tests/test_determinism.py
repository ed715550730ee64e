"""Same seed, same bytes: in one interpreter, in a fresh one, whatever the order of ties."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simpy

import simcluster
from simcluster.config import RunConfig, SloConfig
from simcluster.engine.clock import (
    ARRIVAL,
    FAULT,
    ROUTING,
    SCHEDULING,
    STEP_END,
    TRANSFER_END,
    At,
    Clock,
    Wake,
)
from simcluster.runs.result import Result
from simcluster.runs.simulate import run, simulate
from simcluster.scenario.scenario import Scenario
from simcluster.strategies import FuDG, NoDG, PaDG
from simcluster.testing import specs
from simcluster.testing.step_times import ConstantStepTime, LinearStepTime, same_for_all
from simcluster.testing.workloads import workload_of
from simcluster.workload import WorkloadSettings
from simcluster.workload.lengths import LognormalLengths

FRESH_HASH_SEEDS = ("0", "4711")


def scenario(resolution: str = "span") -> Scenario:
    """All strategies on a small loaded cluster, with ties, preemption and transfers."""
    return Scenario(
        environment=specs.environment(
            model=specs.llama_2_7b(), max_model_len=1024, slo=SloConfig(ttft_s=0.4, tpot_s=0.02)
        ),
        workload=WorkloadSettings(
            lengths=LognormalLengths(
                prompt_median=150, prompt_sigma=1.0, output_median=60, output_sigma=0.9
            ),
            num_requests=120,
            rate_rps=40.0,
        ),
        rates_rps=(),
        strategies=(
            NoDG(name="vllm", instances=3, num_kv_blocks=80),
            NoDG(name="sarathi", instances=3, scheduler="chunked", router="shared-queue"),
            FuDG(name="distserve", prefill_instances=2, decode_instances=2),
            FuDG(name="mooncake", prefill_instances=2, decode_instances=2, placement="inter-node"),
            PaDG(name="ecoserve", instances=4),
        ),
        run=RunConfig(resolution=resolution),  # type: ignore[arg-type]
        document={},
    )


def digest(result: Result) -> str:
    """Fingerprint of every byte of every frame."""
    hashed = hashlib.sha256()
    for frame, columns in sorted(result.columns.items()):
        for name, column in columns.items():
            text = column.dtype == object
            data = "\0".join(column).encode() if text else column.tobytes()
            hashed.update(f"{frame}.{name}.{len(data)}:".encode() + data)
    return hashed.hexdigest()


def digests(seed: int = 3) -> dict[str, str]:
    """Fingerprints by strategy."""
    chosen = scenario()
    return {
        strategy.name: digest(simulate(chosen, strategy=strategy.name, seed=seed))
        for strategy in chosen.strategies
    }


def test_the_same_seed_gives_the_same_bytes() -> None:
    """Run after run; and another seed gives others, or the test would be blind."""
    first, again, other = digests(), digests(), digests(seed=4)
    assert first == again
    assert not set(first.values()) & set(other.values())


@pytest.mark.parametrize("hash_seed", FRESH_HASH_SEEDS)
def test_a_fresh_interpreter_gives_the_same_bytes(hash_seed: str) -> None:
    """Nothing depends on addresses, hash seeds, or what ran before."""
    root = Path(simcluster.__file__).parents[1]
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)}
    fresh = subprocess.run(
        [sys.executable, __file__],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert fresh.stdout.splitlines() == [f"{name} {value}" for name, value in digests().items()]


def test_the_run_preempts_waits_and_transfers() -> None:
    """The digests cover what could go wrong."""
    vllm = simulate(scenario(), strategy="vllm", seed=3)
    assert vllm.columns["requests"]["num_preemptions"].sum() > 0
    ecoserve = simulate(scenario(), strategy="ecoserve", seed=3)
    assert len(ecoserve.columns["windows"]["instance"]) > 3
    mooncake = simulate(scenario(), strategy="mooncake", seed=3)
    assert len(mooncake.columns["transfers"]["request_id"]) > 100


def test_a_run_leaves_the_workload_alone() -> None:
    """Strategies are compared on the same requests: a run must not write to them."""
    workload = workload_of(np.zeros(4), [10, 20, 30, 40], 5, concurrency=2)
    before = [workload.arrival_s.copy(), workload.prompt_len.copy(), workload.output_len.copy()]
    run(specs.environment(), NoDG(name="nodg", instances=1), workload)
    after = [workload.arrival_s, workload.prompt_len, workload.output_len]
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


# --- ties have a rule ----------------------------------------------------------------------------

ORDER = (FAULT, STEP_END, STEP_END + 1, TRANSFER_END, ARRIVAL, ROUTING, SCHEDULING, SCHEDULING + 7)


@pytest.mark.parametrize("seed", range(5))
def test_events_of_one_time_happen_in_the_stated_order(seed: int) -> None:
    """Faults, step ends, transfer ends, arrivals, routing, scheduling: however they were made."""
    env = Clock()
    seen: list[tuple[float, int]] = []
    expected = list(itertools.product((0.5, 1.0, 2.0), ORDER))
    shuffled = np.random.default_rng(seed).permutation(len(expected))
    for time_s, priority in (expected[k] for k in shuffled):
        event = At(env, time_s, priority)
        assert event.callbacks is not None
        event.callbacks.append(
            lambda _, p=priority: seen.append((env.now, p))  # type: ignore[misc]
        )
    env.run()
    assert seen == expected


def test_events_of_one_time_and_kind_happen_in_the_order_they_were_made() -> None:
    """Arrivals of one time by id."""
    env = Clock()
    seen: list[int] = []
    for number in range(5):
        event = At(env, 1.0, ARRIVAL)
        assert event.callbacks is not None
        event.callbacks.append(lambda _, n=number: seen.append(n))  # type: ignore[misc]
    env.run()
    assert seen == [0, 1, 2, 3, 4]


def test_an_absolute_time_is_met_exactly() -> None:
    """No sum of planned and observed times: the clock reads what was asked for."""
    times = np.random.default_rng(0).integers(0, 2**50, 1000) / 2.0**32
    env = Clock()
    seen: list[float] = []
    for time_s in times.tolist():
        event = At(env, time_s, ARRIVAL)
        assert event.callbacks is not None
        event.callbacks.append(lambda _: seen.append(env.now))
    env.run()
    assert seen == sorted(times.tolist())


def test_a_wait_can_be_moved_forth_and_back() -> None:
    """A process that waits goes on when it was told last, once."""
    env = Clock()
    wake = Wake(env)
    woken: list[float] = []

    def sleeper() -> Generator[simpy.Event, Any, None]:
        while True:
            yield wake.sleep()
            woken.append(env.now)

    env.process(sleeper())
    for at_s, until_s in ((1.0, 5.0), (2.0, 3.0), (4.0, 9.0), (4.5, 4.75)):
        event = At(env, at_s, ARRIVAL)
        assert event.callbacks is not None
        event.callbacks.append(
            lambda _, t=until_s: wake.move(t, ROUTING)  # type: ignore[misc]
        )
    env.run()
    assert woken == [3.0, 4.75]


def test_an_arrival_at_the_end_of_a_step_sees_the_instance_after_it() -> None:
    """Step ends come before arrivals: the instance that has just finished is free for it."""
    result = run(
        specs.environment(),
        NoDG(name="nodg", instances=2, router="least-loaded"),
        workload_of([0.0, 0.5, 1.0], [10, 1, 5], 1),
        step_time=same_for_all(ConstantStepTime(1.0)),
    )
    requests = result.columns["requests"]
    assert requests["prefill_instance"].tolist() == [0, 1, 0]
    assert requests["queue_s"].tolist() == [0.0, 0.0, 0.0]


def test_arrivals_of_one_time_share_the_next_step() -> None:
    """Scheduling comes after all arrivals of its time: both prompts are in one batch."""
    result = run(
        specs.environment(),
        NoDG(name="nodg", instances=1),
        workload_of([1.0, 1.0, 1.0], [10, 20, 30], 1),
        step_time=same_for_all(LinearStepTime(0.25, 1.0)),
    )
    assert result.columns["spans"]["prefill_tokens"].tolist() == [60]
    assert result.columns["requests"]["ttft_s"].tolist() == [15.0, 15.0, 15.0]


if __name__ == "__main__":
    for line in (f"{name} {value}" for name, value in digests().items()):
        sys.stdout.write(line + "\n")
