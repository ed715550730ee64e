"""The contracts of arrival processes and length distributions: `simcluster.workload`."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from simcluster.errors import ConfigError
from simcluster.rng import stream
from simcluster.strategies import NoDG
from simcluster.testing.contracts.base import agreeing_run, common_draws_untouched, registered
from simcluster.testing.laws import require
from simcluster.testing.toy import MAX_MODEL_LEN, toy_environment
from simcluster.units import TICKS_PER_S, FloatArray, IntArray
from simcluster.workload import (
    ARRIVALS,
    LENGTHS,
    ArrivalProcess,
    ArrivalTimes,
    LengthDistribution,
    Offer,
    WorkloadSettings,
    build,
)
from simcluster.workload.lengths import FixedLengths

RATE_RPS = 8.0
NUM_REQUESTS = 2000
SEEDS = range(20)
_STANDARD_ERRORS = 4.0


def drawn(
    process: ArrivalProcess,
    *,
    num_requests: int | None = None,
    duration_s: float | None = None,
    rate_rps: float | None = RATE_RPS,
    seed: int = 0,
) -> ArrivalTimes:
    """Return what a process draws; without a rate where it takes none, all of a short trace.

    Parameters
    ----------
    process : ArrivalProcess
        What is tried.
    num_requests, duration_s, rate_rps
        As in `simcluster.workload.Offer`.
    seed : int
        Seed of the run.
    """
    offer = Offer(
        num_requests=num_requests,
        duration_s=duration_s,
        rate_rps=rate_rps,
        needs_lengths=process.has_lengths,
    )
    for _ in range(3):
        try:
            with common_draws_untouched():
                return process.draw(offer, seed)
        except ConfigError as error:
            if error.key == "workload.rate_rps" and offer.rate_rps is not None:
                offer = dataclasses.replace(offer, rate_rps=None)
            elif error.key == "workload.num_requests" and num_requests is not None:
                offer = dataclasses.replace(offer, num_requests=None)
            else:
                raise
    raise AssertionError("it refuses every offer")


class ArrivalContract:
    """Laws of every arrival process; derive a test class with the fixture `arrivals`.

    The pattern of the settings that the fixture returns should be short beside 2000 requests at 8
    requests per second: the mean rate is judged over these, with 20 seeds.

    - Arrivals are sorted, finite and not before time 0; as a workload they are on the time grid.
    - Their mean rate is the one asked for, and the one that is reported.
    - They follow from settings and seed alone: not from other draws, from global random streams, or
      from what was asked before. Asked for more or for longer, the first are the same.
    - A scenario file can hold the settings, by their name in the registry, and every key has a
      meaning.

    Examples
    --------
    ::

        class TestMine(ArrivalContract):
            @pytest.fixture
            def arrivals(self):
                return Mine(period_s=10.0)
    """

    @pytest.fixture
    def arrivals(self) -> ArrivalProcess:
        """Return the settings that are tested; override it."""
        raise NotImplementedError("give the contract a fixture `arrivals` that returns settings")

    def test_arrivals_are_sorted_times_from_0_on(self, arrivals: ArrivalProcess) -> None:
        """As many as asked for, or all of a shorter trace."""
        for seed in SEEDS:
            times = drawn(arrivals, num_requests=300, seed=seed).arrival_s
            require(times.dtype == np.float64, f"arrivals are {times.dtype}, not float64")
            require(times.ndim == 1 and 0 < len(times) <= 300, f"arrivals of shape {times.shape}")
            require(bool(np.isfinite(times).all()), "an arrival is not finite")
            require(times[0] >= 0, f"the first request arrives at {times[0]} s")
            require(bool((np.diff(times) >= 0).all()), "arrivals are not sorted")

    def test_the_mean_rate_is_the_one_asked_for(self, arrivals: ArrivalProcess) -> None:
        """Over 20 seeds, within four standard errors of their mean."""
        rates = []
        for seed in SEEDS:
            times = drawn(arrivals, num_requests=NUM_REQUESTS, seed=seed)
            if times.concurrency is not None:
                require(times.rate_rps is None, "a closed loop has no offered rate")
                require(not times.arrival_s.any(), "in a closed loop all arrivals are 0")
                return
            require(times.rate_rps is not None, "the rate is not reported")
            rates.append(len(times.arrival_s) / times.arrival_s[-1] / times.rate_rps)
        kept = times.rate_rps == RATE_RPS or not _takes_a_rate(arrivals)
        require(kept, f"a rate of {RATE_RPS:g} requests/s is taken, and not kept")
        error = _STANDARD_ERRORS * np.std(rates, ddof=1) / np.sqrt(len(rates))
        error += 2 / len(times.arrival_s)  # whether the first or last gap counts is open
        mean = np.mean(rates)
        require(
            abs(mean - 1) <= error,
            f"the mean rate is {mean:.4f} of the one asked for; chance is within {error:.4f} of 1",
        )

    def test_the_seed_alone_decides(self, arrivals: ArrivalProcess) -> None:
        """Drawn again, and after others, they are the same bits."""
        first = [drawn(arrivals, num_requests=100, seed=seed).arrival_s for seed in (0, 1)]
        drawn(arrivals, num_requests=7, seed=5)
        again = [drawn(arrivals, num_requests=100, seed=seed).arrival_s for seed in (1, 0)][::-1]
        for one, other in zip(first, again, strict=True):
            require(one.tobytes() == other.tobytes(), "the same seed gives other arrivals")

    def test_the_first_of_more_are_the_same(self, arrivals: ArrivalProcess) -> None:
        """At its own rate if it has one: a longer run meets the same requests first."""
        rate_rps = None
        try:
            many = drawn(arrivals, num_requests=400, rate_rps=None).arrival_s
        except ConfigError:
            rate_rps = RATE_RPS
            many = drawn(arrivals, num_requests=400).arrival_s
        few = drawn(arrivals, num_requests=len(many) // 4, rate_rps=rate_rps).arrival_s
        require(many[: len(few)].tobytes() == few.tobytes(), "the first of more are others")
        if not many.any():
            return
        until_s = float(many[len(many) // 2])
        before = drawn(arrivals, duration_s=until_s, rate_rps=rate_rps).arrival_s
        require(bool((before < until_s).all()), "a request arrives after the duration")
        expected = many[: np.searchsorted(many, until_s)]
        require(before.tobytes() == expected.tobytes(), "before a time arrive others than of more")

    def test_a_workload_is_on_the_time_grid(self, arrivals: ArrivalProcess) -> None:
        """Sorted there too, with lengths, and read-only."""
        load = _build(arrivals)
        ticks = load.arrival_s * TICKS_PER_S
        require(bool((ticks == np.rint(ticks)).all()), "an arrival is not on the time grid")
        require(bool((np.diff(load.arrival_s) >= 0).all()), "arrivals are not sorted")
        require(load.prompt_len.min() >= 1 and load.output_len.min() >= 1, "a length below 1")
        require(not load.arrival_s.flags.writeable, "a workload can be changed")

    def test_resolutions_agree(self, arrivals: ArrivalProcess) -> None:
        """Served by two instances, every request ends, and the laws of any run hold."""
        agreeing_run(toy_environment(), NoDG(name="contract", instances=2), _build(arrivals))

    def test_its_table_can_be_read_and_explains_itself(self, arrivals: ArrivalProcess) -> None:
        """In a scenario file, under the name that it has in the registry."""
        with registered(ARRIVALS, type(arrivals), arrivals.kind) as name:
            _check_table("arrivals", name, arrivals)


def _takes_a_rate(arrivals: ArrivalProcess) -> bool:
    offer = Offer(num_requests=2, rate_rps=RATE_RPS, needs_lengths=arrivals.has_lengths)
    try:
        arrivals.draw(offer, 0)
    except ConfigError:
        return False
    return True


def _build(arrivals: ArrivalProcess) -> Any:
    lengths = None if arrivals.has_lengths else FixedLengths(prompt_len=40, output_len=20)
    settings = WorkloadSettings(arrivals=arrivals, lengths=lengths, num_requests=30)
    closed = drawn(arrivals, num_requests=2).concurrency is not None
    return build(
        settings,
        seed=3,
        rate_rps=None if closed else 40.0,
        max_model_len=MAX_MODEL_LEN,
    )


def _check_table(key: str, name: str, settings: Any) -> None:
    """Require that ``workload.KEY`` holds `settings` as the table that they are, under `name`."""
    kind = type(settings).kind if isinstance(getattr(type(settings), "kind", None), str) else None
    kind = kind or settings.kind
    require(name == kind, f"it is registered as {name!r}, its kind is {kind!r}")
    adapter = TypeAdapter(WorkloadSettings)
    table = {k: v for k, v in dataclasses.asdict(settings).items() if v is not None}
    rest = {"lengths": {"kind": "fixed", "prompt_len": 1, "output_len": 1}} | {key: table}
    read = getattr(adapter.validate_json(json.dumps(rest)), key)
    require(read == settings, f"a file that holds {settings} gives {read}")
    properties = TypeAdapter(type(settings)).json_schema()["properties"]
    silent = [k for k, v in properties.items() if k != "kind" and not v.get("description")]
    require(not silent, f"keys without a description: {', '.join(silent)}")
    frozen = type(settings).__dataclass_params__.frozen
    require(frozen, "settings must be a frozen dataclass: runs share them")


class LengthContract:
    """Laws of every length distribution; derive a test class with the fixture `lengths`.

    - Prompts and outputs are whole numbers from 1 up.
    - They follow from settings and generator alone; the first of more are the same, so that a
      longer run meets the same requests first.
    - A scenario file can hold the settings, by their name in the registry, and every key has a
      meaning.

    Examples
    --------
    ::

        class TestMine(LengthContract):
            @pytest.fixture
            def lengths(self):
                return Mine(mean_len=200.0)
    """

    @pytest.fixture
    def lengths(self) -> LengthDistribution:
        """Return the settings that are tested; override it."""
        raise NotImplementedError("give the contract a fixture `lengths` that returns settings")

    def test_lengths_are_whole_numbers_from_1_up(self, lengths: LengthDistribution) -> None:
        """As many as asked for."""
        for seed in SEEDS:
            for column in _lengths(lengths, 50, seed):
                require(column.dtype == np.int64, f"lengths are {column.dtype}, not int64")
                require(column.shape == (50,), f"50 lengths have the shape {column.shape}")
                require(column.min() >= 1, f"a length of {column.min()} tokens")

    def test_the_generator_alone_decides_and_the_first_of_more_are_the_same(
        self, lengths: LengthDistribution
    ) -> None:
        """Drawn again, after others, and as the first of more."""
        first = _lengths(lengths, 20, 0)
        _lengths(lengths, 5, 1)
        for again in (_lengths(lengths, 20, 0), _lengths(lengths, 60, 0)):
            for one, other in zip(first, again, strict=True):
                require(one.tolist() == other[:20].tolist(), "the same generator gives others")

    def test_its_table_can_be_read_and_explains_itself(self, lengths: LengthDistribution) -> None:
        """In a scenario file, under the name that it has in the registry."""
        settings: Any = lengths
        with registered(LENGTHS, type(settings), settings.kind) as name:
            _check_table("lengths", name, settings)


def _lengths(lengths: LengthDistribution, count: int, seed: int) -> tuple[IntArray, IntArray]:
    with common_draws_untouched():
        return lengths.draw(count, stream(seed, "lengths"))


def gaps_s(arrivals: ArrivalProcess, count: int, seed: int = 0) -> FloatArray:
    """Return the gaps between `count` arrivals (s), shape ``(count,)``, the first from time 0."""
    return np.diff(drawn(arrivals, num_requests=count, seed=seed).arrival_s, prepend=0.0)
