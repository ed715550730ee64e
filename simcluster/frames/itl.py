"""Inter-token latencies (ITL) of a run: their percentiles, and the P99 of each request.

A gap is the time from one released token of a request to its next, so a request of n tokens has
n - 1 gaps. Like ``vllm bench serve`` the percentiles of a run pool the gaps of all requests. What
GuideLLM and AIPerf call inter-token latency is the mean of a request's gaps: the TPOT here.

All sequences of a decode batch wait the same time for the next step. So gaps are kept as runs of
steps, one per stay of a request in a decode batch, and not token by token; only where output is
held back is every token's release looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from simcluster.config import Environment
from simcluster.frames.metrics import PERCENTILES, STATISTICS, quantiles
from simcluster.frames.packed import with_column
from simcluster.frames.parts import PART, parts_of
from simcluster.frames.schema import ITL_P99, Columns
from simcluster.frames.unroll import (
    Frames,
    decode_steps,
    inter_token_latencies,
    released_times,
    token_layout,
    token_times_of,
)
from simcluster.roofline.sources import StepTimeFactory
from simcluster.units import TICKS_PER_S, FloatArray, IntArray

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Gaps:
    """Gaps between the released tokens of every request."""

    step_s: FloatArray
    """From the end of each decode step's predecessor to its own end (s), lane after lane; shape
    ``(num_steps,)``."""
    first: IntArray
    last: IntArray
    """Runs of steps ``first <= step < last`` whose gaps are a request's; shape ``(num_runs,)``."""
    run_of: IntArray
    """Whose each run is, shape ``(num_runs,)``."""
    single_s: FloatArray
    """All other gaps (s), shape ``(num_singles,)``; NaN for a token that was never released."""
    single_of: IntArray
    """Whose each of them is."""

    def statistics(self, chosen: BoolArray) -> dict[str, float]:
        """Return mean, P50, P90, P95 and P99 (s) of all gaps of the chosen requests.

        Parameters
        ----------
        chosen : ndarray of bool
            Which requests, shape ``(num_requests,)``.

        Returns
        -------
        dict of str to float
            ``mean``, ``p50``, ``p90``, ``p95``, ``p99``, interpolated between order statistics
            (NumPy's default); NaN without a gap.
        """
        tally = Tally()
        tally.add(*self.weighted(chosen))
        return tally.statistics()

    def distribution(self, chosen: BoolArray) -> tuple[FloatArray, IntArray]:
        """Return the distinct gaps of the chosen requests (s), rising, and how often each occurs.

        Parameters
        ----------
        chosen : ndarray of bool
            Which requests, shape ``(num_requests,)``.

        Returns
        -------
        values, counts : ndarray
            Shape ``(num_values,)`` each; gaps that never ended are left out.
        """
        tally = Tally()
        tally.add(*self.weighted(chosen))
        return tally.distribution()

    def weighted(self, chosen: BoolArray) -> tuple[FloatArray, IntArray]:
        """Return the gaps of the chosen requests (s), some of them equal, and how often they occur.

        Gaps that never ended are left out.
        """
        runs = chosen[self.run_of]
        change = np.zeros(len(self.step_s) + 1, np.int64)
        np.add.at(change, self.first[runs], 1)
        np.add.at(change, self.last[runs], -1)
        weight = np.cumsum(change)[:-1]
        singles = self.single_s[chosen[self.single_of]]
        singles = singles[~np.isnan(singles)]
        values = np.concatenate([self.step_s[weight > 0], singles])
        weights = np.concatenate([weight[weight > 0], np.ones(len(singles), np.int64)])
        return values, weights

    def p99_of_each(self, num_requests: int) -> FloatArray:
        """Return the P99 of the gaps of each request (s): 99 % of them are at most this.

        Returns
        -------
        ndarray of float64
            The nearest rank, shape ``(num_requests,)``: the longest gap of an answer of up to 100
            tokens. NaN without a gap, or where the P99 was never released.
        """
        p99_s = np.full(num_requests, np.nan)
        runs = np.argsort(self.run_of, kind="stable")
        singles = np.argsort(self.single_of, kind="stable")
        bounds = np.arange(num_requests + 1)
        run_at = np.searchsorted(self.run_of[runs], bounds).tolist()
        single_at = np.searchsorted(self.single_of[singles], bounds).tolist()
        for request in range(num_requests):
            mine = runs[run_at[request] : run_at[request + 1]]
            parts = [
                self.step_s[a:b] for a, b in zip(self.first[mine], self.last[mine], strict=True)
            ]
            parts.append(self.single_s[singles[single_at[request] : single_at[request + 1]]])
            gaps = np.concatenate(parts)
            if len(gaps):
                rank = len(gaps) - len(gaps) // 100 - 1
                p99_s[request] = np.partition(gaps, rank)[rank]
        return p99_s


class Tally:
    """How often each gap occurs, of many gaps that come a part at a time.

    The distinct gaps of a part are kept once, on the time grid in four bytes each. So percentiles
    are exact, and nothing as long as the run is sorted.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[npt.NDArray[Any], npt.NDArray[Any]]] = []
        self._sums: list[float] = []
        self._count = 0
        self._most = 0.0

    def add(self, values: FloatArray, weights: IntArray) -> None:
        """Add gaps (s), >= 0, each as often as its weight says; shape ``(num_values,)`` each."""
        if not len(values):
            return
        # On the time grid the sum of a part is exact, so that the order does not matter.
        self._sums.append(float(np.sum(values * weights)))
        order = np.argsort(values)
        values, below = values[order], np.cumsum(weights[order])
        last = np.append(values[1:] != values[:-1], True)
        values, below = values[last], below[last]
        count = int(below[-1])
        self._count += count
        self._most = max(self._most, float(values[-1]))
        ticks = values * TICKS_PER_S
        kept: npt.NDArray[Any] = values
        if ticks[-1] < 2**32 and np.array_equal(ticks, np.rint(ticks)):
            kept = ticks.astype(np.uint32)
        self._parts.append((kept, below.astype(np.uint32 if count < 2**32 else np.int64)))

    def statistics(self) -> dict[str, float]:
        """Return mean, P50, P90, P95 and P99 as `Gaps.statistics` does."""
        if not self._count:
            return dict.fromkeys(STATISTICS, np.nan)
        numbers = [math.fsum(self._sums) / self._count]
        for percent in PERCENTILES:
            place = (self._count - 1) * (percent / 100)
            ranks = int(place), min(int(place) + 1, self._count - 1)
            pair = np.array([self._at(rank) for rank in ranks])
            numbers += quantiles(pair, [place - int(place)])
        return dict(zip(STATISTICS, numbers, strict=True))

    def _at(self, rank: int) -> float:
        """Return the gap that `rank` others come before in order."""
        # Halves the floats themselves: those of at least 0 are in the order of their bits.
        low, high = 0, int(np.float64(self._most).view(np.int64))
        while low < high:
            middle = (low + high) // 2
            if self._at_most(float(np.int64(middle).view(np.float64))) > rank:
                high = middle
            else:
                low = middle + 1
        return float(np.int64(low).view(np.float64))

    def _at_most(self, value: float) -> int:
        """Count the gaps that are at most `value` (s)."""
        total = 0
        for kept, below in self._parts:
            place = value
            if kept.dtype == np.uint32:
                place = min(math.floor(value * TICKS_PER_S), 2**32 - 1)
            where = int(np.searchsorted(kept, kept.dtype.type(place), side="right"))
            total += int(below[where - 1]) if where else 0
        return total

    def distribution(self) -> tuple[FloatArray, IntArray]:
        """Return the distinct gaps (s), rising, and how often each occurs."""
        if not self._parts:
            return np.empty(0), np.empty(0, np.int64)
        values = np.concatenate(
            [k / TICKS_PER_S if k.dtype == np.uint32 else k for k, _ in self._parts]
        )
        counts = np.concatenate(
            [np.diff(below.astype(np.int64), prepend=0) for _, below in self._parts]
        )
        distinct, where = np.unique(values, return_inverse=True)
        return distinct, np.bincount(where, weights=counts).astype(np.int64)


class GapStatistics(Protocol):
    """What tells the percentiles of the gaps of a run."""

    def statistics(self, chosen: BoolArray) -> dict[str, float]:
        """Return mean, P50, P90, P95 and P99 (s) of all gaps of the chosen requests."""


@dataclass(frozen=True, slots=True)
class GapsInParts:
    """Gaps between the released tokens of every request, unrolled part by part at each question.

    The answers are those of `Gaps`, to the bit, in the memory of one part (`frames.parts`).
    """

    frames: Frames
    """``requests``, ``spans``, ``segments``, ``windows`` and ``instances`` of the run."""
    environment: Environment
    """That of the run."""
    step_time: StepTimeFactory | None = None
    """What made the step times of the run; None: the source that `environment` names."""
    size: int = PART
    """Requests of a part."""

    def _gaps(self) -> Iterator[tuple[slice, Gaps]]:
        for part in parts_of(self.frames, self.environment, self.size):
            gaps = gaps_of(part.frames, self.environment, step_time=self.step_time)
            yield slice(part.first, part.last), gaps

    def _tally(self, chosen: BoolArray) -> Tally:
        tally = Tally()
        for own, gaps in self._gaps():
            tally.add(*gaps.weighted(chosen[own]))
        return tally

    def statistics(self, chosen: BoolArray) -> dict[str, float]:
        """Return mean, P50, P90, P95 and P99 (s), as `Gaps.statistics`."""
        return self._tally(chosen).statistics()

    def distribution(self, chosen: BoolArray) -> tuple[FloatArray, IntArray]:
        """Return the distinct gaps (s) and how often each occurs, as `Gaps.distribution`."""
        return self._tally(chosen).distribution()

    def p99_of_each(self) -> FloatArray:
        """Return the P99 of the gaps of each request (s), as `Gaps.p99_of_each`."""
        found = [gaps.p99_of_each(own.stop - own.start) for own, gaps in self._gaps()]
        return np.concatenate([np.empty(0), *found])


def gaps_of(
    frames: Frames, environment: Environment, *, step_time: StepTimeFactory | None = None
) -> Gaps:
    """Return the gaps between the released tokens of a run.

    Parameters
    ----------
    frames : mapping of str to columns
        ``requests``, ``spans``, ``segments``, ``windows`` and ``instances`` of the run.
    environment : Environment
        That of the run.
    step_time : callable, optional
        What made the step times of the run; default: the source that `environment` names.

    Raises
    ------
    InvariantError
        If the frames or the step times are not those of one run.
    """
    lanes, ends = decodes_of_run = decode_steps(frames, environment, step_time=step_time)
    if not np.isnan(frames["windows"]["released_s"]).all():
        computed = token_times_of(frames, decodes_of_run)
        gaps = inter_token_latencies(released_times(frames, computed))
        nothing = np.empty(0, np.int64)
        owner = np.repeat(np.arange(len(gaps)), gaps.counts)
        return Gaps(np.empty(0), nothing, nothing, nothing, gaps.values, owner)
    layout, segments = token_layout(frames), frames["segments"]
    decodes = layout.num_steps > 0
    first = lanes.first_steps(segments, layout.order[decodes])
    last = first + layout.num_steps[decodes]
    request = layout.request[decodes]

    # What a request's tokens come in: its first token, tokens of later prefills, runs of steps. A
    # gap lies inside a run, or between two of these.
    requests = frames["requests"]
    some, final = np.flatnonzero(layout.has_first), np.flatnonzero(layout.has_last)
    refills = np.flatnonzero(layout.refilled)
    start_s = np.asarray(segments["start_s"], dtype=np.float64)[layout.order]
    place = 2 * np.flatnonzero(decodes) + 1
    owner = np.concatenate([some, layout.request[refills], request, final])
    turn = np.concatenate(
        [np.full(len(some), -1), 2 * refills, place, np.full(len(final), 2 * len(start_s))]
    )
    alone_s = (requests["first_output_s"][some], start_s[refills], requests["last_token_s"][final])
    begins = np.concatenate([alone_s[0], alone_s[1], ends[first], alone_s[2]])
    stops = np.concatenate([alone_s[0], alone_s[1], ends[last - 1], alone_s[2]])
    order = np.lexsort((turn, owner))
    owner, begins, stops = owner[order], begins[order], stops[order]
    same = owner[1:] == owner[:-1]
    return Gaps(
        np.diff(ends, prepend=np.nan),
        first + 1,
        last,
        request,
        (begins[1:] - stops[:-1])[same],
        owner[1:][same],
    )


def with_p99(
    frames: Frames, environment: Environment, *, step_time: StepTimeFactory | None = None
) -> Columns:
    """Return the requests frame with the P99 of each request's gaps (`schema.ITL_P99`)."""
    p99_s = GapsInParts(frames, environment, step_time).p99_of_each()
    return with_column(frames["requests"], ITL_P99, p99_s)
