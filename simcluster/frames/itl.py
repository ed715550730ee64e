"""Inter-token latencies (ITL) of a run: their percentiles, and the P99 of each request.

A gap is the time from one released token of a request to its next, so a request of n tokens has
n - 1 gaps. Like ``vllm bench serve`` the percentiles of a run pool the gaps of all requests. What
GuideLLM and AIPerf call inter-token latency is the mean of a request's gaps: the TPOT here.

All sequences of a decode batch wait the same time for the next step. So gaps are kept as runs of
steps, one per stay of a request in a decode batch, and not token by token; only where output is
held back is every token's release looked at.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from simcluster.config import Environment
from simcluster.frames.metrics import PERCENTILES, STATISTICS, quantiles
from simcluster.frames.schema import ITL_P99
from simcluster.frames.unroll import (
    Frames,
    Lanes,
    inter_token_latencies,
    released_times,
    steps,
    token_layout,
    token_times,
)
from simcluster.roofline.sources import StepTimeFactory
from simcluster.units import FloatArray, IntArray

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
        values, weights, num_singles = self._weighted(chosen)
        if not len(values):
            return dict.fromkeys(STATISTICS, np.nan)
        if len(values) == num_singles:
            shares = [percent / 100 for percent in PERCENTILES]
            numbers = (values.mean(), *np.quantile(values, shares))
        else:
            order = np.argsort(values)
            values, below = values[order], np.cumsum(weights[order])
            mean = np.sum(values * weights[order]) / below[-1]
            numbers = (mean, *(_quantile(values, below, percent) for percent in PERCENTILES))
        return dict(zip(STATISTICS, map(float, numbers), strict=True))

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
        values, weights, _ = self._weighted(chosen)
        distinct, where = np.unique(values, return_inverse=True)
        return distinct, np.bincount(where, weights=weights).astype(np.int64)

    def _weighted(self, chosen: BoolArray) -> tuple[FloatArray, IntArray, int]:
        """Return the gaps of the chosen requests, how often each occurs, and how many stand alone.

        The last of them are those that are no decode step of a batch.
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
        return values, weights, len(singles)

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


def _quantile(values: FloatArray, below: IntArray, percent: int) -> float:
    """Return a percentile of sorted `values`, of which ``below[i]`` are at most the i-th."""
    place = (int(below[-1]) - 1) * (percent / 100)
    ranks = [int(place), min(int(place) + 1, int(below[-1]) - 1)]
    pair = values[np.searchsorted(below, ranks, side="right")]
    return quantiles(pair, [place - int(place)])[0]


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
    log = steps(frames, environment, step_time=step_time)
    if not np.isnan(frames["windows"]["released_s"]).all():
        gaps = inter_token_latencies(released_times(frames, token_times(frames, log)))
        nothing = np.empty(0, np.int64)
        owner = np.repeat(np.arange(len(gaps)), gaps.counts)
        return Gaps(np.empty(0), nothing, nothing, nothing, gaps.values, owner)
    layout, segments = token_layout(frames), frames["segments"]
    lanes = Lanes.of(log, np.ones(len(log["end_s"]), np.int64))
    ends = np.asarray(log["end_s"], dtype=np.float64)[lanes.order]
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
) -> dict[str, npt.NDArray[Any]]:
    """Return the requests frame with the P99 of each request's gaps (`schema.ITL_P99`)."""
    requests = frames["requests"]
    gaps = gaps_of(frames, environment, step_time=step_time)
    return {**requests, ITL_P99: gaps.p99_of_each(len(requests["request_id"]))}
