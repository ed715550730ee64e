"""API servers: what a single CPU process in front of the schedulers does to a load."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from simcluster.config import SloConfig
from simcluster.engine.clock import ARRIVAL, At, Clock
from simcluster.engine.groups.api_server import ApiServer
from simcluster.errors import ConfigError
from simcluster.rng import stream
from simcluster.runs.simulate import run
from simcluster.strategies import FuDG, NoDG
from simcluster.strategies.base import dry_run
from simcluster.testing.specs import ideal_engine
from simcluster.testing.step_times import ConstantStepTime, same_for_all
from simcluster.testing.toy import assert_same, toy_environment
from simcluster.testing.workloads import workload_of
from simcluster.units import on_grid

STEP_S = on_grid(0.01)


def through_at(
    arrivals: list[float], *, request_s: float, token_s: float = 0.0, output_len: int = 10
) -> list[float]:
    """When requests that come in then are through one API server (s), in order of arrival."""
    env = Clock()
    server = ApiServer(env, request_s, token_s)
    ends = [0.0] * len(arrivals)

    def take(number: int) -> None:
        server.take(output_len, lambda: ends.__setitem__(number, env.now))

    for number, arrival_s in enumerate(arrivals):
        event = At(env, on_grid(arrival_s), ARRIVAL)
        event.callbacks.append(lambda _, number=number: take(number))
    env.run()
    return ends


def test_of_a_burst_all_requests_are_through_at_its_end() -> None:
    """Each has the n-th part of the CPU: n requests end together, after n times their work."""
    ends = through_at([0.0] * 50, request_s=0.008)
    assert ends == pytest.approx([50 * 0.008] * 50, rel=1e-6)


def test_two_requests_share_the_time_in_which_both_are_there() -> None:
    """By hand: 10 ms of work each, 4 ms apart: 6 ms alone at each end, 8 ms of sharing."""
    assert through_at([0.0, 0.004], request_s=0.010) == pytest.approx([0.016, 0.020], rel=1e-6)


def test_streaming_holds_up_others_and_no_work_is_lost() -> None:
    """10 tokens of 1 ms: the second, which comes in then, shares with them."""
    ends = through_at([0.0, 0.010], request_s=0.010, token_s=0.001)
    assert ends == pytest.approx([0.010, 0.030], rel=1e-6)


def test_a_short_job_is_through_before_a_long_one_that_began_first() -> None:
    """100 tokens of 1 ms are streamed when a request of 1 ms comes in: half of the CPU, 2 ms."""
    ends = through_at([0.0, 0.050], request_s=0.001, token_s=0.001, output_len=100)
    assert ends == pytest.approx([0.001, 0.052], rel=1e-6)


def test_a_poisson_load_waits_as_under_processor_sharing() -> None:
    """Mean time in an M/G/1 queue with processor sharing: work / (1 - load), whatever the work.

    Kleinrock, Queueing Systems II, section 4.4; here the work is constant. Four standard errors
    over seeds.
    """
    load, work_s = 0.7, 0.01
    means = []
    for seed in range(12):
        gaps = stream(seed, "gaps").exponential(work_s / load, 4000)
        arrivals = np.cumsum(gaps)
        ends = np.array(through_at(arrivals.tolist(), request_s=work_s))
        means.append(float((ends - arrivals)[400:].mean()))
    error = 4 * np.std(means, ddof=1) / np.sqrt(len(means))
    assert abs(np.mean(means) - work_s / (1 - load)) < error


@pytest.mark.parametrize("strategy", ["nodg", "fudg"])
def test_resolutions_agree_behind_api_servers(strategy: str) -> None:
    """And the time to the first token of the last of a burst is the server's, per instance."""
    engine = dataclasses.replace(ideal_engine(), api_servers=1, api_request_s=0.02)
    where = toy_environment(engine, SloConfig())
    made = (
        NoDG(name="s", instances=2, scheduler="chunked", max_num_seqs=8)
        if strategy == "nodg"
        else FuDG(name="f", prefill_instances=1, decode_instances=1)
    )
    arrivals = [0.0] * 6 + [0.013, 0.05, 0.3]
    results = [
        run(
            where,
            made,
            workload_of(arrivals, 4, 30),
            step_time=same_for_all(ConstantStepTime(STEP_S)),
            resolution=resolution,
        )
        for resolution in ("span", "step")
    ]
    assert_same(*results)
    routed_s = results[0].columns["requests"]["routed_s"]
    servers = 2 if strategy == "nodg" else 1
    alone = 0.3 + 0.02
    assert routed_s[-1] == pytest.approx(alone, rel=1e-6)
    if servers == 2:
        # Three of the first six, and one that comes in later, share each server.
        assert routed_s[0] == pytest.approx(0.013 + 4 * (0.02 - 0.013 / 3), rel=1e-6)


def test_servers_without_cpu_times_are_refused() -> None:
    """They would limit nothing."""
    engine = dataclasses.replace(ideal_engine(), api_servers=1)
    with pytest.raises(ConfigError, match=r"engine\.api_servers.*api_request_s"):
        dry_run(toy_environment(engine, SloConfig()), NoDG(name="s", instances=1))
