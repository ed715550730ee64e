"""What a search varies, by the kind of the arrivals: a rate or a number of users, and how.

Every kind gets its meaning in one line, which the tables show. Traces are drawn in blocks
(`workload.trace_blocks`), so that runs vary as another day of the traffic would; of what a trace
itself is a sample, the interval knows by `with_chance_of_trace`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final, Literal

import numpy as np

from simcluster.errors import ConfigError
from simcluster.rng import stream
from simcluster.scenario.scenario import Scenario
from simcluster.studies.goodput.estimate import Interval, half_width
from simcluster.studies.goodput.pairs import Compared
from simcluster.studies.goodput.rules import RULES
from simcluster.studies.goodput.search import Verdict
from simcluster.workload import WorkloadSettings
from simcluster.workload.base import ArrivalProcess, EndlessArrivals, LengthDistribution, Offer
from simcluster.workload.clients import ClientArrivals
from simcluster.workload.closed_loop import AnyConcurrency, ClosedLoopArrivals
from simcluster.workload.profiles import AnyPhaseArrivals, CyclicArrivals
from simcluster.workload.replay import RowLengths, TraceArrivals
from simcluster.workload.sessions import SessionArrivals
from simcluster.workload.trace_blocks import TraceBlocks

Unit = Literal["requests/s", "users"]

LEAST_BLOCKS: Final = 8
"""Blocks of a trace below which their scatter says too little for an interval."""
MOST_BLOCKS: Final = 24
"""Blocks that a trace is cut into, at most: hours of a day. Longer ones keep more of its course."""
STAYS: Final = 5.0
"""Length of a block in mean stays of a request, as guessed before the search (high, as a rule): at
least. Where that measured at the goodput is below, a line says so."""
_LEAST_OF_BLOCK: Final = 25
_TRACE_RUN: Final = 10_000
_SAMPLE: Final = 4000
_SAMPLED_TURNS: Final = 20_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What a search varies."""

    scenario: Scenario
    """What is simulated: the scenario with arrivals that can be drawn at any load and length."""
    unit: Unit = "requests/s"
    """Unit of the load and of the goodput."""
    meaning: str = ""
    """What the load means, in words; empty where arrivals are drawn by a law at the rate alone."""
    least_s: float = 0.0
    """Length of a run at least (s): of what is counted a cycle, of what is not a session."""
    why: str = ""
    """What that length follows from, in words."""
    most_rps: float = math.inf
    """Highest rate that there can be (requests/s)."""
    trace: TraceBlocks | None = None
    """The blocks of a trace that runs are drawn from."""

    @property
    def num_run(self) -> int:
        """Requests of a run by its arrivals, at least: of a trace as many as it has, within reason.

        So the runs vary as days do.
        """
        return 0 if self.trace is None else min(self.trace.num_requests, _TRACE_RUN)


def refuse(workload: WorkloadSettings) -> None:
    """Refuse arrivals that a search cannot draw.

    Raises
    ------
    ConfigError
        If they are of a kind that is none of ours and does not go on for ever.
    """
    process = workload.arrival_process
    known = EndlessArrivals | TraceArrivals | ClientArrivals | SessionArrivals | ClosedLoopArrivals
    if not isinstance(process, known):
        raise ConfigError(
            "workload.arrivals",
            getattr(process, "kind", type(process).__name__),
            "a search needs arrivals that can be drawn at any rate and length",
            "Derive them from EndlessArrivals, or use `simcluster compare` with rates.",
        )


def load_of(scenario: Scenario, in_system: float) -> Load:
    """Return what a search in `scenario` varies.

    Parameters
    ----------
    scenario : Scenario
        The question.
    in_system : float
        About the most requests that any of its strategies has in the system at its goodput: rate
        times mean stay.

    Raises
    ------
    ConfigError
        If a trace is too short for an interval, or instances come and go beside a closed loop.
    DataError
        If a file cannot be read, or all requests of a trace arrive at once.
    """
    process = scenario.workload.arrival_process
    if isinstance(process, TraceArrivals):
        return _of_trace(scenario, process, in_system)
    if isinstance(process, ClosedLoopArrivals):
        return Load(
            scenario=_with(scenario, AnyConcurrency()),
            unit="users",
            meaning="A closed loop: goodput is the number of users, each of whom asks again when "
            f"answered (concurrency = {process.concurrency} of the scenario is not used)",
        )
    if isinstance(process, CyclicArrivals):
        return Load(
            scenario=_with(scenario, AnyPhaseArrivals(of=process)),
            meaning=f"The rate is the mean of the {process.kind} arrivals: all their rates are "
            f"scaled, their cycle stays {process.cycle_s:g} s, and a run begins anywhere in it",
            least_s=process.cycle_s / RULES.counted,
            why=f"a cycle of the arrivals ({process.cycle_s:g} s)",
        )
    if isinstance(process, SessionArrivals):
        mean_s = (process.mean_turns - 1) * process.mean_gap_s
        return Load(
            scenario=scenario,
            meaning="The rate is that of turns: sessions begin more or less often, and what is "
            f"within them stays; {process.turns_per_session:.3g} turns a session",
            least_s=mean_s / RULES.warmup,
            why=f"the waits of a session ({mean_s:.4g} s), which pass before requests count,",
        )
    if isinstance(process, ClientArrivals):
        own = process.rate_rps(needs_lengths=scenario.workload.lengths is None)
        return Load(
            scenario=scenario,
            meaning=f"The rate is the sum of the clients': all are scaled alike (own: {own:.4g} "
            "requests/s), and how bursty each is stays",
        )
    return Load(scenario=scenario)


def _with(scenario: Scenario, process: ArrivalProcess) -> Scenario:
    workload = replace(scenario.workload, trace=None, arrivals=process, goodput_by=None)
    return replace(scenario, workload=workload)


def _of_trace(scenario: Scenario, process: TraceArrivals, in_system: float) -> Load:
    thin = scenario.workload.goodput_by == "thin"
    whole = TraceBlocks.of(process, num_blocks=1, thin=thin)
    num, turns = whole.num_requests, whole.turns_per_session
    least = max(_LEAST_OF_BLOCK * turns, STAYS * in_system)
    if num < LEAST_BLOCKS * least:
        raise ConfigError(
            process.key,
            process.path,
            f"{num:,} requests are too few for an interval: it takes {LEAST_BLOCKS} blocks of "
            f"about {math.ceil(least):,} ({STAYS:g} mean stays at the goodput)",
            "Use a longer trace or window, or `simcluster compare` with rates.",
        )
    blocks = TraceBlocks.of(process, num_blocks=min(MOST_BLOCKS, int(num / least)), thin=thin)
    by = "requests are left out at random" if thin else "its time is scaled, bursts and lulls alike"
    sessions = "" if turns == 1 else f"; sessions are kept whole, {turns:.3g} turns each"
    return Load(
        scenario=_with(scenario, blocks),
        meaning=f"The trace has {blocks.rate_rps:.4g} requests/s; for other rates {by}{sessions}. "
        f"Runs are drawn from {blocks.num_blocks} blocks of {blocks.block_s:.4g} s of it, with "
        f"repetition: the interval is that of another trace of {num:,} requests",
        least_s=blocks.turns_s / RULES.warmup,
        why=f"the waits of a session ({blocks.turns_s:.4g} s), which pass before requests count,",
        most_rps=blocks.rate_rps if thin else math.inf,
        trace=blocks,
    )


# Lengths ----------------------------------------------------------------------------------------


def expected_lengths(workload: WorkloadSettings) -> LengthDistribution | None:
    """Return lengths whose means are those of an endless run; None where runs show no others.

    None for traces and sessions: what a trace asks for is a sample itself, and the lengths of turns
    follow from one another.
    """
    process = workload.arrival_process
    if workload.length_distribution is None and isinstance(process, ClientArrivals):
        return process.typical_lengths()
    return workload.length_distribution


def typical_lengths(workload: WorkloadSettings) -> LengthDistribution:
    """Return lengths of requests picked at random from an endless run."""
    known = expected_lengths(workload)
    if known is not None:
        return known
    process = workload.arrival_process
    if isinstance(process, TraceArrivals):
        trace = process.read()
        rows = stream(0, "lengths").integers(len(trace.prompt_len), size=_SAMPLE)
        return RowLengths(trace.prompt_len[rows], trace.output_len[rows])
    assert isinstance(process, SessionArrivals), "all others have lengths"
    memory_s = max(1.0, process.mean_turns * process.mean_gap_s)
    offer = Offer(
        num_requests=_SAMPLE, rate_rps=min(1.0, _SAMPLED_TURNS / memory_s), needs_lengths=True
    )
    lengths = process.draw(offer, 0).lengths
    assert lengths is not None, "sessions have lengths"
    return lengths


def waits_for_answers(workload: WorkloadSettings) -> bool:
    """Whether when requests come follows from answers, so that their number says nothing."""
    process = workload.arrival_process
    if isinstance(process, SessionArrivals):
        return process.gap_after == "answer"
    return isinstance(process, AnyConcurrency) or (
        isinstance(process, TraceBlocks) and process.read().turns is not None
    )


# Whole users ------------------------------------------------------------------------------------


def whole_users(goodput: Interval) -> Interval:
    """Return a concurrency at which attainment crosses the target as numbers of users up to it."""
    return Interval(value=_floor(goodput.value), low=_floor(goodput.low), high=_floor(goodput.high))


def _floor(users: float) -> float:
    return float(math.floor(users * (1 + 1e-9))) if math.isfinite(users) else users


def in_whole_users(pair: Compared, first: Interval, second: Interval) -> Compared:
    """Return a pair of concurrencies compared as the numbers of users that tables show.

    Parameters
    ----------
    pair : Compared
        By the places where attainment crosses the target, between two numbers of users.
    first, second : Interval
        Goodputs of the two (users, whole).

    Notes
    -----
    Rounding to whole users moves the ratio by less than a user of either: its interval is widened
    by that, or that of the two intervals is taken where it is narrower.
    """
    one, other = max(first.value, 1.0), max(second.value, 1.0)
    value = one / other
    low = pair.ratio.low * (1 - 1 / one)
    high = pair.ratio.high * (1 + 1 / other)
    low = max(low, max(first.low, 1.0) / max(second.high, 1.0))
    high = min(high, max(first.high, 1.0) / max(second.low, 1.0))
    gap = first.value - second.value
    ends = first.low - second.high, first.high - second.low
    return replace(
        pair,
        ratio=Interval(value=value, low=min(low, value), high=max(high, value)),
        difference_rps=Interval(value=gap, low=min(ends[0], gap), high=max(ends[1], gap)),
        p_value=pair.p_value if value > 1 else 1.0,
    )


# The chance of a trace --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceChance:
    """What a trace as a sample adds to the interval of a goodput."""

    half_width: float
    """Half width of the 95 % interval of the logarithm by the trace alone."""
    stays: float
    """Length of a block in mean stays of a request at the goodput."""


def with_chance_of_trace(verdict: Verdict, load: Load) -> tuple[Verdict, TraceChance | None]:
    """Return a verdict whose interval is that of another trace as long; and what the trace adds.

    Parameters
    ----------
    verdict : Verdict
        Its interval is that of chance in the runs, which are drawn from one trace: more runs make
        it narrower than the trace allows.
    load : Load
        The blocks of the trace.

    Notes
    -----
    Runs of many requests vary less by as much as they are longer. So the variance of all runs
    together, times their requests, over those of the trace, is that of one resample of the trace,
    and the bootstrap takes that for the variance over traces. It is short by ``1 - 1/K`` for K
    blocks, and has K - 1 degrees of freedom; the two parts are added, with the degrees of Welch
    and Satterthwaite.
    """
    estimate, trace = verdict.estimate, load.trace
    if estimate is None or trace is None:
        return verdict, None
    stage = verdict.stages[-1]
    counted = sum(o.counted[0] for probe in (stage.low, stage.high) for o in probe.outcomes)
    share = math.exp(estimate.log_rate) / trace.rate_rps if trace.thin else 1.0
    num, free = trace.num_requests * share, trace.num_blocks - 1
    more = counted / num * trace.num_blocks / free
    degrees = (1 + more) ** 2 / (1 / estimate.degrees + more**2 / free)
    wide = replace(
        estimate,
        influence=np.asarray(estimate.influence * math.sqrt(1 + more)),
        degrees=max(1, round(degrees)),
    )
    in_system = stage.low.rate_rps * stage.low.residence_s
    chance = TraceChance(
        half_width=half_width(math.sqrt(estimate.variance * more), free),
        stays=num / trace.num_blocks / max(in_system, 1e-9),
    )
    return replace(verdict, estimate=wide), chance
