"""Engines that plan a step while the step before runs: who joins which step."""

from __future__ import annotations

import dataclasses

import pytest

from simcluster.config import SloConfig
from simcluster.runs.result import Result
from simcluster.runs.simulate import run
from simcluster.strategies import FuDG, NoDG
from simcluster.testing.specs import ideal_engine
from simcluster.testing.step_times import ConstantStepTime, same_for_all
from simcluster.testing.toy import assert_same, toy_environment
from simcluster.testing.workloads import workload_of
from simcluster.units import on_grid

STEP_S = on_grid(0.01)


def served(arrivals: list[float], *, ahead: bool, scheduler: str = "chunked") -> Result:
    """Requests of 4 + 50 tokens at these times (s), on one instance whose steps all take 10 ms."""
    engine = dataclasses.replace(ideal_engine(), plans_ahead=ahead)
    where = toy_environment(engine, SloConfig())
    strategy = NoDG(name="s", instances=1, scheduler=scheduler, max_num_seqs=8)
    times = same_for_all(ConstantStepTime(STEP_S))
    span, step = (
        run(
            where,
            strategy,
            workload_of(arrivals, 4, 50),
            step_time=times,
            resolution=resolution,
        )
        for resolution in ("span", "step")
    )
    assert_same(span, step)
    return span


@pytest.mark.parametrize("scheduler", ["chunked", "prefill-priority"])
@pytest.mark.parametrize(
    ("arrival_steps", "first_token_steps"),
    [
        (4.25, 7),  # in the fifth step: the sixth is planned already, the seventh takes it
        (5.0, 7),  # at the start of the sixth: that step and no later one is planned already
        (5.0625, 8),
    ],
)
def test_a_request_joins_the_step_after_the_next(
    arrival_steps: float, first_token_steps: int, scheduler: str
) -> None:
    """The first token waits for the step under way, the one that is planned, and its own."""
    result = served([0.0, arrival_steps * STEP_S], ahead=True, scheduler=scheduler)
    first_token_s = result.columns["requests"]["first_token_s"]
    assert first_token_s.tolist() == [STEP_S, first_token_steps * STEP_S]


def test_an_engine_that_does_not_plan_ahead_takes_it_into_the_next_step() -> None:
    """One step earlier than an engine that does."""
    first_token_s = served([0.0, 4.25 * STEP_S], ahead=False).columns["requests"]["first_token_s"]
    assert first_token_s.tolist() == [STEP_S, 6 * STEP_S]


def test_an_idle_engine_that_plans_ahead_starts_at_once() -> None:
    """Nothing is under way that a plan could have been made beside."""
    first_token_s = served([0.0, 80 * STEP_S], ahead=True).columns["requests"]["first_token_s"]
    assert first_token_s.tolist() == [STEP_S, 81 * STEP_S]


def test_requests_that_come_one_after_the_other_wait_alike() -> None:
    """Each of a stream of arrivals joins two steps after the one in which it came."""
    arrivals = [0.0, *((k + 0.5) * STEP_S for k in range(1, 6))]
    first_token_s = served(arrivals, ahead=True).columns["requests"]["first_token_s"]
    steps = [1, *(k + 3 for k in range(1, 6))]
    assert first_token_s.tolist() == [n * STEP_S for n in steps]


def test_kv_that_arrives_joins_the_step_after_the_next_too() -> None:
    """A hand-over to a decode instance that is busy."""
    engine = dataclasses.replace(ideal_engine(), plans_ahead=True)
    strategy = FuDG(name="s", prefill_instances=1, decode_instances=1, max_num_seqs=8)
    times = same_for_all(ConstantStepTime(STEP_S))
    load = workload_of([0.0, 4.25 * STEP_S], 4, 50)
    where = toy_environment(engine, SloConfig())
    result = run(where, strategy, load, step_time=times)
    requests, transfers = result.columns["requests"], result.columns["transfers"]
    assert_same(result, run(where, strategy, load, step_time=times, resolution="step"))
    arrived_s = transfers["end_s"][1]
    first_decode_s = requests["decode_start_s"][0]
    steps = (arrived_s - first_decode_s) / STEP_S
    joined = (requests["decode_start_s"][1] - first_decode_s) / STEP_S
    assert joined == pytest.approx(int(steps) + 2)
