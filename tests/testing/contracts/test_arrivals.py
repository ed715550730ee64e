"""The contracts of arrivals and lengths: ours keep them, and they notice those that do not.

Programs that are wrong on purpose stand beside the law that notices each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from simcluster.catalog import Catalog
from simcluster.rng import stream
from simcluster.testing.contracts import (
    ArrivalContract,
    LengthContract,
)
from simcluster.testing.contracts.base import notices
from simcluster.testing.toy import MAX_MODEL_LEN
from simcluster.units import FloatArray, IntArray
from simcluster.workload import ARRIVALS, LENGTHS, ArrivalProcess, LengthDistribution
from simcluster.workload.base import ArrivalTimes, EndlessArrivals, Offer
from simcluster.workload.clients import ClientArrivals
from simcluster.workload.closed_loop import ClosedLoopArrivals
from simcluster.workload.lengths import (
    FixedLengths,
    LognormalLengths,
    QuantileLengths,
    TableLengths,
)
from simcluster.workload.profiles import OnOffArrivals, ScheduleArrivals, SchedulePiece
from simcluster.workload.renewal import GammaArrivals
from simcluster.workload.replay import TraceArrivals, TraceLengths
from simcluster.workload.sessions import SessionArrivals

TRACE = "arrival_s,prompt_len,output_len\n" + "".join(
    f"{k / 8 + (k % 3) / 64},{20 + 7 * k % 60},{1 + 5 * k % 30}\n" for k in range(400)
)
CLIENTS = (
    "client,mean_rate,cv_mean,pattern_mode,input_tokens_q0,input_tokens_q1,output_tokens_q0,"
    "output_tokens_q1\n0,3.0,1.5,Gamma,10,60,5,30\n1,1.0,1.0,Weibull,10,60,5,30\n"
)
PROCESSES: dict[str, Callable[[Path], ArrivalProcess]] = {
    "gamma": lambda _: GammaArrivals(cv=1.5),
    "on-off": lambda _: OnOffArrivals(on_s=3.0, off_s=2.0, off_share=0.2),
    "schedule": lambda _: ScheduleArrivals(
        pieces=(
            SchedulePiece(duration_s=3.0, rate_rps=2.0),
            SchedulePiece(duration_s=1.0, rate_rps=9.0),
        )
    ),
    "closed-loop": lambda _: ClosedLoopArrivals(concurrency=3),
    "trace": lambda folder: TraceArrivals(path=written(folder / "trace.csv", TRACE)),
    "clients": lambda folder: ClientArrivals(path=written(folder / "clients.csv", CLIENTS)),
    # Short conversations that fit the toy cluster.
    "sessions": lambda _: SessionArrivals(
        gap_median_s=0.5,
        mean_turns=3.0,
        message_median=8.0,
        output_median=8.0,
        system_len=16,
        max_context_len=MAX_MODEL_LEN,
    ),
}
"""Settings of processes; one that is not here is tried with its defaults."""
DISTRIBUTIONS: dict[str, Callable[[Path], Any]] = {
    "fixed": lambda _: FixedLengths(prompt_len=30, output_len=20),
    "lognormal": lambda _: LognormalLengths(
        prompt_median=200.0, prompt_sigma=1.0, output_median=100.0, output_sigma=1.0
    ),
    "quantiles": lambda _: QuantileLengths(
        levels=(0.0, 0.5, 1.0), prompt=(1.0, 80.0, 900.0), output=(1.0, 50.0, 200.0)
    ),
    "table": lambda _: TableLengths(name=Catalog().names("lengths")[0]),
    "trace": lambda folder: TraceLengths(path=written(folder / "trace.csv", TRACE)),
}
"""Settings of distributions; one that is not here is tried with its defaults."""


def written(file: Path, text: str) -> str:
    """Write `text` to `file`; return its path."""
    file.write_text(text)
    return str(file)


@pytest.mark.parametrize("kind", list(ARRIVALS))
class TestRegisteredArrivals(ArrivalContract):
    """Every arrival process that is registered."""

    @pytest.fixture
    def arrivals(self, kind: str, tmp_path: Path) -> ArrivalProcess:
        """Return settings."""
        return PROCESSES[kind](tmp_path) if kind in PROCESSES else ARRIVALS[kind]()


@pytest.mark.parametrize("kind", list(LENGTHS))
class TestRegisteredLengths(LengthContract):
    """Every length distribution that is registered."""

    @pytest.fixture
    def lengths(self, kind: str, tmp_path: Path) -> LengthDistribution:
        """Return settings."""
        made: LengthDistribution = (
            DISTRIBUTIONS[kind](tmp_path) if kind in DISTRIBUTIONS else LENGTHS[kind]()
        )
        return made


@dataclass(frozen=True, slots=True, kw_only=True)
class Poisson(EndlessArrivals):
    """Exponential gaps; right as it is."""

    kind: Literal["contract"] = "contract"

    def times(self, num_requests: int, rate_rps: float, seed: int) -> FloatArray:
        """The first arrivals (s)."""
        return np.cumsum(stream(seed, "arrivals").standard_exponential(num_requests)) / rate_rps


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsorted(Poisson):
    """Gaps that were not summed."""

    def times(self, num_requests: int, rate_rps: float, seed: int) -> FloatArray:
        """Each for itself."""
        gaps = stream(seed, "arrivals").standard_exponential(num_requests)
        return np.arange(num_requests) / rate_rps + gaps


@dataclass(frozen=True, slots=True, kw_only=True)
class Early(Poisson):
    """The first request comes before time 0."""

    def times(self, num_requests: int, rate_rps: float, seed: int) -> FloatArray:
        """A second too early."""
        return Poisson.times(self, num_requests, rate_rps, seed) - 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Short(Poisson):
    """In single precision: what is on the grid then are others."""

    def times(self, num_requests: int, rate_rps: float, seed: int) -> Any:
        """Rounded to 24 bits."""
        return Poisson.times(self, num_requests, rate_rps, seed).astype(np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slow(Poisson):
    """Five in a hundred fewer than asked for."""

    def times(self, num_requests: int, rate_rps: float, seed: int) -> FloatArray:
        """Longer gaps."""
        return Poisson.times(self, num_requests, 0.95 * rate_rps, seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Own(Poisson):
    """Takes a rate, and goes on at its own."""

    def draw(self, offer: Offer, seed: int) -> ArrivalTimes:
        """At four requests a second."""
        return EndlessArrivals.draw(self, dataclasses.replace(offer, rate_rps=4.0), seed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Global(Poisson):
    """Draws from the stream of the whole process."""

    def times(self, num_requests: int, rate_rps: float, seed: int) -> FloatArray:
        """Other arrivals every time."""
        return np.cumsum(np.random.exponential(1.0, num_requests)) / rate_rps  # noqa: NPY002


DRAWN: list[int] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Stateful(Poisson):
    """Every draw begins where the last one ended."""

    def times(self, num_requests: int, rate_rps: float, seed: int) -> FloatArray:
        """Of another seed every time."""
        DRAWN.append(seed)
        return Poisson.times(self, num_requests, rate_rps, seed + len(DRAWN))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretched(Poisson):
    """More requests are others."""

    def times(self, num_requests: int, rate_rps: float, seed: int) -> FloatArray:
        """Of another seed for every number."""
        return Poisson.times(self, num_requests, rate_rps, seed + num_requests)


@dataclass(frozen=True, slots=True, kw_only=True)
class Silent(Poisson):
    """Does not say what its key means."""

    period_s: float = 3.0


SORTED = "arrivals_are_sorted_times_from_0_on"
WRONG_ARRIVALS = [
    (Unsorted, SORTED, "arrivals are not sorted"),
    (Early, SORTED, "the first request arrives at -"),
    (Short, SORTED, "arrivals are float32, not float64"),
    (Slow, "the_mean_rate_is_the_one_asked_for", "the mean rate is 0.9"),
    (Own, "the_mean_rate_is_the_one_asked_for", "a rate of 8 requests/s is taken, and not kept"),
    (Global, SORTED, "it draws from `random` or `np.random`"),
    (Stateful, "the_seed_alone_decides", "the same seed gives other arrivals"),
    (Stretched, "the_first_of_more_are_the_same", "the first of more are others"),
    (Silent, "its_table_can_be_read_and_explains_itself", "without a description: period_s"),
]


@pytest.mark.parametrize(
    ("wrong", "law", "message"), WRONG_ARRIVALS, ids=[w[0].__name__ for w in WRONG_ARRIVALS]
)
def test_the_arrival_contract_notices(wrong: type, law: str, message: str) -> None:
    """One law of it at least, in words that say what is wrong."""
    notices(ArrivalContract, law, message, arrivals=wrong())


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths(FixedLengths):
    """Fixed lengths under another name; right as it is."""

    kind: Literal["contract"] = "contract"  # type: ignore[assignment]  # a kind of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Empty(Lengths):
    """Prompts without a token."""

    def draw(self, num_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Some of them."""
        prompts, outputs = FixedLengths.draw(self, num_requests, rng)
        return prompts * rng.integers(0, 2, num_requests), outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Fractions(Lengths):
    """Half tokens."""

    def draw(self, num_requests: int, rng: np.random.Generator) -> Any:
        """As floats."""
        return np.full(num_requests, 2.5), np.full(num_requests, 1.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class ColumnByColumn(Lengths):
    """Prompts first, then outputs: with more requests the outputs are others."""

    def draw(self, num_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Two draws of all."""
        return rng.integers(1, 99, num_requests), rng.integers(1, 99, num_requests)


WHOLE = "lengths_are_whole_numbers_from_1_up"
WRONG_LENGTHS = [
    (Empty, WHOLE, "a length of 0 tokens"),
    (Fractions, WHOLE, "lengths are float64, not int64"),
    (
        ColumnByColumn,
        "the_generator_alone_decides_and_the_first_of_more_are_the_same",
        "the same generator gives others",
    ),
]


@pytest.mark.parametrize(
    ("wrong", "law", "message"), WRONG_LENGTHS, ids=[w[0].__name__ for w in WRONG_LENGTHS]
)
def test_the_length_contract_notices(wrong: type, law: str, message: str) -> None:
    """One law of it at least, in words that say what is wrong."""
    notices(LengthContract, law, message, lengths=wrong(prompt_len=5, output_len=5))
