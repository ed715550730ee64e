"""What a workload is, and what arrival processes and length distributions must offer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import ClassVar, Final, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from simcluster.config import Settings
from simcluster.errors import ConfigError
from simcluster.units import FloatArray, IntArray
from simcluster.workload.hashes import BlockHashes
from simcluster.workload.turns import Turns

T = TypeVar("T")
BoolArray = npt.NDArray[np.bool_]

DEFAULT_NUM_REQUESTS: Final = 2000
"""Requests of a workload that says neither how many nor how long."""
MAX_NUM_REQUESTS: Final = 30_000_000
"""More requests than this in one workload are refused; drawing that number takes 2 GB."""
MAX_RATE_RPS: Final = 1e9
"""Higher rates (requests/s) are refused; at this one all requests come at once."""
SHORTEST_S: Final = 1e-3
"""Shorter phases of arrivals (s) are refused: they would be one mean rate."""
MAX_TOKENS: Final = 2**31 - 1
"""Longest prompt or output (tokens) that fits the frames' 32-bit columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The requests of one run, drawn before time starts; the arrays are read-only."""

    arrival_s: FloatArray
    """Arrivals (s) on the time grid, shape ``(num_requests,)``, sorted; all 0 in a closed loop. Of
    a turn that waits for an answer the earliest, wherever it stands."""
    prompt_len: IntArray
    output_len: IntArray
    """Tokens asked, each >= 1, shape ``(num_requests,)``."""
    rejected: BoolArray
    """Longer than ``max_model_len`` under ``on_too_long = "reject"``; shape ``(num_requests,)``.
    They arrive, are not served, and count as missed."""
    concurrency: int | None = None
    """Closed loop: so many requests are in the system at once, the next one enters when one
    finishes. None where requests arrive by the clock."""
    rate_rps: float | None = None
    """Offered rate (requests/s): the one asked for, or the trace's, schedule's or clients' own.
    None in a closed loop, where turns wait for answers, and where all requests of a trace arrive at
    once."""
    notes: tuple[str, ...] = ()
    """What a reader of the result should know about the requests, such as clients left out."""
    score: FloatArray | None = None
    """Difficulty by a router, 0 to 1, shape ``(num_requests,)``; None where nothing routes by
    it."""
    hashes: BlockHashes | None = None
    """Ids of the blocks of tokens, where it is known which prompts have a prefix in common."""
    slo_class: npt.NDArray[np.object_] | None = None
    """Class of each request, shape ``(num_requests,)``, dtype object; None without classes."""
    priority: IntArray | None = None
    """Its priority, the smaller number first, shape ``(num_requests,)``; None without classes."""
    turns: Turns | None = None
    """Which requests wait for the answer to another one; None where none does."""

    @property
    def num_requests(self) -> int:
        """Requests in the workload, the rejected ones included."""
        return len(self.arrival_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """How much is asked of an arrival process."""

    num_requests: int | None = None
    """So many requests; None where `duration_s` says it, or the process itself."""
    duration_s: float | None = None
    """Every request that arrives before this (s)."""
    rate_rps: float | None = None
    """Mean rate (requests/s); None for the process's own."""
    needs_lengths: bool = False
    """The requests get the lengths that come with the arrivals (``ArrivalTimes.lengths``)."""


class LengthDistribution(Protocol):
    """Where prompt and output lengths come from."""

    def draw(self, num_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Return the prompt and output lengths (tokens, >= 1) of `num_requests` requests.

        The first n of a longer draw are the draw of n, so that a run that lasts longer or has a
        higher rate meets the same requests first.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalTimes:
    """What an arrival process gives back.

    Attributes
    ----------
    rate_rps, concurrency, notes, turns
        As in `Workload`.
    """

    arrival_s: FloatArray
    """Arrivals (s), sorted, >= 0; not yet on the time grid."""
    rate_rps: float | None
    concurrency: int | None = None
    lengths: LengthDistribution | None = None
    """The lengths of these very requests, where the source knows them."""
    notes: tuple[str, ...] = ()
    hashes: BlockHashes | None = None
    """Ids of the blocks of tokens of these very requests, or of more than these; they go with
    `lengths`."""
    turns: Turns | None = None


class ArrivalProcess(Protocol):
    """Settings of an arrival process: a frozen dataclass, one field per key of its table.

    The pattern of a seed must not depend on the rate: two rates meet the same requests. A process
    that reads a file also has a method ``with_base(folder)``, which returns it with its relative
    path taken from the folder of the scenario file.
    """

    has_lengths: ClassVar[bool]
    """Its `draw` can give lengths too, so that ``workload.lengths`` may be left out."""

    @property
    def kind(self) -> str:
        """Name in the registry, the ``kind`` of its table."""

    def draw(self, offer: Offer, seed: int) -> ArrivalTimes:
        """Return the arrivals of the run `seed`, from streams named ``"arrivals", ...``.

        Raises
        ------
        ConfigError
            If the offer lacks something that the process needs, or asks what it cannot give.
        DataError
            If an input file cannot be used.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class EndlessArrivals(Settings, ABC):
    """Base of the processes that can go on for ever: they say `times`, this says how many."""

    has_lengths: ClassVar[bool] = False

    kind: str

    @abstractmethod
    def times(self, num_requests: int, rate_rps: float, seed: int) -> FloatArray:
        """Return the first `num_requests` arrivals (s) at the mean rate `rate_rps`, sorted.

        The first n of a longer draw are the draw of n.
        """

    @property
    def own_rate_rps(self) -> float | None:
        """Mean rate (requests/s) where none is asked for; None where one must be."""
        return None

    @property
    def own_duration_s(self) -> float | None:
        """How long (s) it goes on where the workload does not say; None for a default number."""
        return None

    def draw(self, offer: Offer, seed: int) -> ArrivalTimes:
        """Return the arrivals of the run `seed` (see `ArrivalProcess`)."""
        rate_rps = offer.rate_rps if offer.rate_rps is not None else self.own_rate_rps
        if rate_rps is None:
            raise ConfigError(
                "workload.rate_rps",
                None,
                f"{self.kind} arrivals need a rate",
                "Set it, or give the rates of a sweep.",
            )
        duration_s = offer.duration_s
        if offer.num_requests is None and duration_s is None:
            duration_s = self.own_duration_s
        if duration_s is None:
            arrival_s = self.times(offer.num_requests or DEFAULT_NUM_REQUESTS, rate_rps, seed)
        else:
            arrival_s = arrivals_before(
                duration_s, rate_rps, lambda num: self.times(num, rate_rps, seed)
            )
        return ArrivalTimes(arrival_s=arrival_s, rate_rps=rate_rps)


def arrivals_before(
    duration_s: float, rate_rps: float, times: Callable[[int], FloatArray]
) -> FloatArray:
    """Return the arrivals before `duration_s` of a process that gives its first n arrivals.

    Parameters
    ----------
    duration_s : float
        End of the arrivals (s), > 0.
    rate_rps : float
        Mean rate (requests/s), > 0, to guess how many there are.
    times : callable
        ``times(n)`` gives the first n arrivals (s), sorted.

    Raises
    ------
    ConfigError
        If no request arrives, or more than ``MAX_NUM_REQUESTS``.
    """
    expected = duration_s * rate_rps
    num = math.ceil(expected + 4 * math.sqrt(expected)) + 16 if math.isfinite(expected) else 0
    while 0 < num <= MAX_NUM_REQUESTS:
        arrival_s = times(num)
        if arrival_s[-1] >= duration_s:
            arrival_s = arrival_s[: np.searchsorted(arrival_s, duration_s)]
            if len(arrival_s) == 0:
                break
            return arrival_s
        num *= 2
    too_many = num == 0 or num > MAX_NUM_REQUESTS
    raise ConfigError(
        "workload.duration_s",
        duration_s,
        f"more than {MAX_NUM_REQUESTS} requests arrive in it at {rate_rps:g} requests/s"
        if too_many
        else f"no request arrives in it at {rate_rps:g} requests/s",
        "Shorten it or lower the rate." if too_many else "Lengthen it or raise the rate.",
    )


def joined(folder: Path, path: str) -> str:
    """Return `path`, if it is relative taken from `folder`; a leading ``~`` is the home folder."""
    return str(folder / Path(path).expanduser())


def with_defaults(cls: type[T], name: str, key: str) -> T:
    """Return the settings that a bare name stands for: `cls` with its defaults.

    Raises
    ------
    ConfigError
        If `cls` has keys without a default.
    """
    required = [
        f.name
        for f in fields(cls)  # type: ignore[arg-type]  # T is a dataclass
        if f.default is MISSING and f.default_factory is MISSING
    ]
    if required:
        raise ConfigError(
            key,
            name,
            f"{name} needs {' and '.join(required)}",
            f"Write it as a table: {key.rpartition('.')[2]} = "
            f'{{ kind = "{name}", {", ".join(f"{r} = ..." for r in required)} }}.',
        )
    return cls()
