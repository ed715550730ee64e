"""A run's row without its frames: requests are counted as they end, and forgotten.

Counts, shares and means are those of `metrics.summarise`. Percentiles come from histograms whose
bins are `BIN` wide: each is at most half a bin, `ERROR`, from the exact one. Such a median also
decides whether a run is transient.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from simcluster.config import RunConfig, SloConfig
from simcluster.errors import InvariantError
from simcluster.frames import metrics
from simcluster.frames.metrics import (
    BATCHES,
    LATENCIES,
    PERCENTILES,
    STATISTICS,
    SweepRow,
    quantiles,
)
from simcluster.frames.schema import CLASS_ATTAINMENT, Columns
from simcluster.units import FloatArray, IntArray

_DROPPED: Final = 42
"""Low bits of a float that its bin leaves out: ten bits of the fraction are left."""
BIN: Final = 2.0**-10
"""Width of a bin, of its lower edge at most."""
ERROR: Final = BIN / 2
"""Largest relative error of a percentile."""


class Histogram:
    """How often a latency falls into each bin; bins are parts of a power of two, so relative.

    Ten bits of the fraction of a float are the bin (like the HDR histogram), so that NumPy counts
    a chunk at once and two histograms of the same run are the same.
    """

    def __init__(self) -> None:
        self._counts = np.zeros(1 << (63 - _DROPPED), np.int64)  # pages in use alone take memory
        self._sums: list[float] = []
        self._least, self._most = math.inf, -math.inf
        self.count = 0

    def add(self, values: FloatArray, weights: IntArray | None = None) -> None:
        """Add latencies (s), finite and >= 0, shape ``(n,)``, each as often as its weight says."""
        if not len(values):
            return
        bins = (values + 0.0).view(np.int64) >> _DROPPED  # -0.0 is 0
        if weights is None:
            np.add.at(self._counts, bins, 1)
            self._sums.append(float(values.sum()))
            self.count += len(values)
        else:
            np.add.at(self._counts, bins, weights)
            self._sums.append(float((values * weights).sum()))
            self.count += int(weights.sum())
        self._least = min(self._least, float(values.min()))
        self._most = max(self._most, float(values.max()))

    def at(self, ranks: Sequence[int]) -> FloatArray:
        """Return order statistics, to within `ERROR`.

        Parameters
        ----------
        ranks : sequence of int
            How many values come before each, from 0 to ``count - 1``.

        Returns
        -------
        ndarray of float64
            Latencies (s), shape ``(num_ranks,)``.
        """
        used = np.flatnonzero(self._counts)
        below = np.cumsum(self._counts[used])
        bins = used[np.searchsorted(below, ranks, side="right")]
        low, high = (np.array(edge << _DROPPED).view(np.float64) for edge in (bins, bins + 1))
        # No further from either edge than half a bin of the lower one.
        middle: FloatArray = np.clip((low + high) / 2, self._least, self._most)
        return middle

    def statistics(self, name: str) -> dict[str, float]:
        """Return mean, P50, P90, P95 and P99 as columns of the sweep frame; NaN without values."""
        if not self.count:
            return {f"{name}_{stat}": math.nan for stat in STATISTICS}
        found = [math.fsum(self._sums) / self.count]
        for percent in PERCENTILES:
            place = (self.count - 1) * (percent / 100)
            pair = self.at([int(place), min(int(place) + 1, self.count - 1)])
            found += quantiles(pair, [place - int(place)])
        return {f"{name}_{stat}": value for stat, value in zip(STATISTICS, found, strict=True)}

    def median(self, num_infinite: int) -> float:
        """Return the median (s) of the values and `num_infinite` infinite ones; one at least."""
        total = self.count + num_infinite
        low, high = (total - 1) // 2, total // 2
        if high >= self.count:
            return math.inf
        pair = self.at([low, high])
        return float((pair[0] + pair[1]) / 2)


class _Batches:
    """Which share of each batch of requests met its targets, as `metrics.attainment_error` asks.

    Parameters
    ----------
    ids : range or ndarray of int
        Requests that are counted, in order of arrival, shape ``(num_counted,)``.
    keys : tuple of str
        Targets.
    """

    def __init__(self, ids: range | IntArray, keys: tuple[str, ...]) -> None:
        size, longer = divmod(len(ids), BATCHES)
        self._sizes = size + (np.arange(BATCHES) < longer)  # as `numpy.array_split` makes them
        places = np.cumsum(self._sizes) - self._sizes
        self._begins = np.array([int(ids[place]) for place in places if place < len(ids)], np.int64)
        self._met = {key: np.zeros(BATCHES, np.int64) for key in keys}

    def add(
        self, ids: IntArray, met: Mapping[str, metrics.BoolArray], chosen: metrics.BoolArray
    ) -> None:
        """Count the chosen of some requests; shape ``(num_requests,)`` each."""
        batch = np.searchsorted(self._begins, ids[chosen], side="right") - 1
        for key, sums in self._met.items():
            sums += np.bincount(batch[met[key][chosen]], minlength=BATCHES)

    def error(self) -> float:
        """Return the largest standard error of a target; NaN with too few requests."""
        if self._sizes.sum() < 2 * BATCHES:
            return math.nan
        return max(
            float(np.std(sums / self._sizes, ddof=1) / np.sqrt(BATCHES))
            for sums in self._met.values()
        )


class Summary:
    """What becomes of requests that come chunk by chunk, in any order.

    Parameters
    ----------
    slo : SloConfig
        Targets, criterion and metric.
    run : RunConfig
        Its warm-up and cool-down.
    arrival_s : ndarray
        Arrivals (s) of all requests that will arrive, shape ``(num_requests,)``, sorted.
    slo_class : ndarray of str, optional
        The class of each, same shape; needed where `slo` has classes.
    """

    def __init__(
        self,
        slo: SloConfig,
        run: RunConfig,
        arrival_s: FloatArray,
        slo_class: npt.NDArray[Any] | None = None,
    ) -> None:
        self._slo, self._run = slo, run
        self._window = metrics.window_bounds(
            {"arrival_s": arrival_s[-1:]}, run.warmup_s, run.cooldown_s
        )
        start, end = self._window
        self._first = int(np.searchsorted(arrival_s, start, side="left"))
        last = max(self._first, int(np.searchsorted(arrival_s, end, side="right")))
        self._num_counted = last - self._first
        self._span_s = self._first_arrival_s = 0.0
        if self._num_counted:
            self._first_arrival_s = float(arrival_s[self._first])
            self._span_s = float(arrival_s[last - 1]) - self._first_arrival_s
        self._num_arrived, self._num_seen = len(arrival_s), 0
        self._sums: dict[str, float] = {}
        self._of_class: dict[str, dict[str, int]] = {name: {} for name in slo.classes or ()}
        each: list[range | IntArray] = [range(self._first, last)]
        if slo.classes and slo_class is not None:
            of = slo_class[self._first : last]
            each = [self._first + np.flatnonzero(of == name) for name in slo.classes]
        self._batches = [_Batches(ids, slo.counted) for ids in each]
        self._latencies = {name: Histogram() for name in LATENCIES}
        self._gaps = Histogram()
        self._admitted = Histogram()  # end-to-end, of admitted requests whether counted by status
        self._num_endless = 0
        self._is_busy_at_start = self._is_any_unfinished = False
        self._last_output_s = -math.inf
        self._others: list[Columns] = []
        self.knows_itl = True
        """Whether gaps between tokens were added for all requests."""

    def add(self, columns: Columns, gaps: tuple[FloatArray, IntArray] | None) -> None:
        """Count some requests.

        Parameters
        ----------
        columns : mapping
            Their rows of the requests frame.
        gaps : tuple of ndarray, or None
            Gaps between the tokens of those that are counted and finished (s), and how often each
            occurs; None if they are not known.
        """
        run, (start, end) = self._run, self._window
        arrival = metrics.floats(columns, "arrival_s")
        self._num_seen += len(arrival)
        counted = np.asarray((arrival >= start) & (arrival <= end), np.bool_)
        finished = metrics.has_status(columns, "finished")
        rejected = metrics.has_status(columns, "rejected")
        last_output = metrics.floats(columns, "last_output_s")
        latency = metrics.request_metrics(columns, self._slo.metric)
        met = metrics.met_targets(columns, self._slo)

        self._count("num_requests", counted)
        self._count("num_finished", counted & finished)
        self._count("num_rejected", counted & rejected)
        for key, flags in met.items():
            self._count(f"met.{key}", counted & flags)
        preemptions = metrics.floats(columns, "num_preemptions")
        self._sum("num_preemptions", float(preemptions[counted].sum()))
        admitted = counted & ~np.isnan(metrics.floats(columns, "scheduled_s"))
        for name in ("prompt_len", "num_cached_tokens"):
            self._sum(name, float(metrics.floats(columns, name)[admitted].sum()))
        for name, own in metrics.members_of(columns, self._slo).items():
            of = self._of_class[name]
            for key, flags in {"all": counted, **met}.items():
                of[key] = of.get(key, 0) + int((flags & own & counted).sum())
        ids = metrics.floats(columns, "request_id").astype(np.int64)
        members = list(metrics.members_of(columns, self._slo).values()) or [counted]
        for batches, own in zip(self._batches, members, strict=True):
            batches.add(ids, met, own & counted)

        for name, histogram in self._latencies.items():
            values = latency[name][counted & finished]
            histogram.add(values[~np.isnan(values)])
        if gaps is None:
            self.knows_itl = False
        else:
            self._gaps.add(*gaps)
        whole = latency["e2el_s"][counted & ~rejected]
        self._admitted.add(whole[~np.isnan(whole)])
        self._num_endless += int(np.isnan(whole).sum())

        # Rates over the window of arrivals.
        leaves = finished & (last_output > start) & (last_output <= end)
        self._count("window.leaves", leaves)
        self._count("window.good", leaves & met["joint"])
        self._sum("window.tokens", metrics.tokens_released(columns, start, end))
        # Rates over the time of the work on counted requests, which is known at the end.
        self._count("work.good", counted & finished & met["joint"])
        tokens = metrics.floats(columns, "num_output_tokens")
        self._sum("work.tokens", float(tokens[counted & finished].sum()))
        ends = last_output[counted & finished]
        self._last_output_s = max(self._last_output_s, float(ends.max(initial=-math.inf)))
        unfinished = metrics.has_status(columns, "unfinished")
        self._is_any_unfinished |= bool(unfinished[counted].any())
        before = ~rejected & (arrival < run.warmup_s) & ~(last_output <= run.warmup_s)
        self._is_busy_at_start |= bool(before.any())
        beside = ~counted & finished & (last_output > run.warmup_s)
        if beside.any():
            names = ("first_output_s", "last_output_s", "num_output_tokens", "status")
            kept = {name: np.asarray(columns[name])[beside] for name in names}
            self._others.append({**kept, "joint": met["joint"][beside]})

    def _count(self, key: str, flags: metrics.BoolArray) -> None:
        self._sum(key, int(np.count_nonzero(flags)))

    def _sum(self, key: str, amount: float) -> None:
        self._sums[key] = self._sums.get(key, 0) + amount

    def row(
        self, *, strategy: str, rate_rps: float, seed: int, num_gpus: int, instances: Columns
    ) -> SweepRow:
        """Return the sweep row, with the columns of `metrics.summarise`; arguments as there."""
        if self._num_seen != self._num_arrived:
            raise InvariantError(
                f"{self._num_seen} requests ended, {self._num_arrived} arrived: a summary lost some"
            )
        start, end = self._window
        sums = self._sums
        count = int(sums.get("num_requests", 0))
        median_s = math.nan
        transient = self._admitted.count + self._num_endless == 0
        if not transient:
            median_s = self._admitted.median(self._num_endless)
            transient = self._span_s < metrics.RESIDENCES_PER_WINDOW * median_s
        leaves, good, tokens = (sums.get(f"window.{k}", 0) for k in ("leaves", "good", "tokens"))
        if transient or math.isnan(rate_rps):
            start, end = self._work_bounds(count)
            leaves, good = sums.get("num_finished", 0), sums.get("work.good", 0)
            tokens = sums.get("work.tokens", 0.0)
            for other in self._others:
                last = other["last_output_s"]
                inside = (last > start) & (last <= end)
                leaves, good = leaves + int(inside.sum()), good + int(other["joint"][inside].sum())
                tokens += metrics.tokens_released(other, start, end)

        def per_second(amount: float) -> float:
            return amount / (end - start) if end > start else math.nan

        shares = self._shares({k[4:]: v for k, v in sums.items() if k.startswith("met.")}, count)
        by_class = {
            name: self._shares(of, of.get("all", 0))["slo"] for name, of in self._of_class.items()
        }
        if by_class:
            known = [share for share in by_class.values() if share == share]
            shares["slo"] = min(known, default=math.nan)
        prompts = sums.get("prompt_len", 0.0)
        row: SweepRow = {
            "strategy": strategy,
            "rate_rps": float(rate_rps),
            "seed": int(seed),
            "num_gpus": int(num_gpus),
            "mean_gpus": metrics.mean_gpus(instances, start, end),
            "num_requests": count,
            "num_finished": int(sums.get("num_finished", 0)),
            "num_rejected": int(sums.get("num_rejected", 0)),
            "slo_attainment": shares["slo"],
            "ttft_attainment": shares["ttft"],
            "tpot_attainment": shares["tpot"],
            "itl_attainment": shares["itl"],
            "e2el_attainment": shares["e2el"],
            "attainment_error": float(np.max([batches.error() for batches in self._batches])),
            "good_rps": per_second(good),
            "throughput_rps": per_second(leaves),
            "output_tokens_per_s": per_second(tokens),
            "num_preemptions": int(sums.get("num_preemptions", 0)),
            "cached_token_share": sums.get("num_cached_tokens", 0.0) / prompts if prompts else 0.0,
            "transient": bool(transient),
            "rates_from_s": start,
            "rates_to_s": end,
        }
        for name, histogram in self._latencies.items():
            row.update(histogram.statistics(name))
        gaps = self._gaps if self.knows_itl else Histogram()
        row.update(gaps.statistics("itl_s"))
        for name, share in by_class.items():
            row[f"{CLASS_ATTAINMENT}{name}"] = share
        if self._slo.percentiles is not None:
            for name, of in self._of_class.items():
                found = self._shares(of, of.get("all", 0))
                for key in self._slo.of(name).counted:
                    row[f"{key}_attainment.{name}"] = found[key]
        return row

    def _shares(self, met: Mapping[str, float], count: int) -> dict[str, float]:
        shares = {
            key: met.get(key, 0) / count if count else math.nan
            for key in ("ttft", "tpot", "itl", "e2el", "joint")
        }
        return metrics.with_criterion(shares, self._slo)

    def _work_bounds(self, count: int) -> tuple[float, float]:
        """Return from when to when (s) the counted requests were worked on."""
        run = self._run
        if not count:
            return run.warmup_s, run.warmup_s
        start = run.warmup_s if self._is_busy_at_start else self._first_arrival_s
        end = max(start, self._last_output_s)
        if run.max_time_s is not None and self._is_any_unfinished:
            end = max(end, run.max_time_s)
        return start, end
