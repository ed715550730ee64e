"""Numbers out of frames: latencies, targets met, levels over time, one sweep row per run.

Every function takes a frame as columns (name to array) or as a pandas frame and reads the columns
of `simcluster.frames.schema` alone; nothing is sorted or written in place. Tallies (TTFT) are
averaged over requests, levels (queue length, KV usage) over time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
import numpy.typing as npt

from simcluster.config import RunConfig, SloConfig
from simcluster.errors import ConfigError, nearest
from simcluster.frames.schema import (
    CLASS_ATTAINMENT,
    ITL_P99,
    SLO_CLASS,
    Columns,
    schema_of,
)
from simcluster.units import FloatArray

if TYPE_CHECKING:
    import pandas as pd

    from simcluster.frames.itl import GapStatistics

    Frame: TypeAlias = Columns | pd.DataFrame

BoolArray = npt.NDArray[np.bool_]
SweepRow = dict[str, str | int | float | bool]
"""One row of the sweep frame: the columns of `schema.SWEEP`."""

METRICS: Final = ("user", "ecoserve")
"""The two ways to count latency; see `request_metrics`."""
LATENCIES: Final = ("ttft_s", "tpot_s", "e2el_s")
PERCENTILES: Final = (50, 90, 95, 99)
STATISTICS: Final = ("mean", *(f"p{percent}" for percent in PERCENTILES))
"""What is told of a latency over the requests of a run."""
BATCHES: Final = 10
"""Batches of requests, in order of arrival, whose shares tell how far one run is to be trusted."""
RESIDENCES_PER_WINDOW: Final = 10.0
"""A run whose counted requests arrive within fewer median residence times is transient."""

_SHARES: Final = frozenset({"kv_usage"})
_LEVELS: Final = frozenset({"kv_usage", "num_waiting", "num_running"})


def floats(columns: Frame, name: str) -> FloatArray:
    """Return a column as floats."""
    return np.asarray(columns[name], dtype=np.float64)


def has_status(columns: Frame, status: str) -> BoolArray:
    """Return which requests have a status."""
    return np.asarray(np.asarray(columns["status"], dtype=object) == status, dtype=np.bool_)


def request_metrics(columns: Frame, metric: str = "user") -> dict[str, FloatArray]:
    """Return TTFT, TPOT and end-to-end latency of every request.

    Parameters
    ----------
    columns : mapping or pandas.DataFrame
        The requests frame.
    metric : str
        ``"user"``: TTFT = first output - arrival, TPOT = (last output - first output) /
        (output_len - 1). ``"ecoserve"``: TTFT = decode start - arrival, TPOT = (last token -
        decode start) / (output_len - 1).

    Returns
    -------
    dict of str to ndarray
        ``ttft_s``, ``tpot_s`` and ``e2el_s`` (s), each of shape ``(num_requests,)``; NaN where the
        moment never came, and for the TPOT of a one-token answer. ``e2el_s`` is last output -
        arrival in both.

    Raises
    ------
    ConfigError
        If `metric` is neither.

    Notes
    -----
    ``"ecoserve"`` is the definition of the EcoServe paper (arXiv 2504.18154), which books the
    wait for the phase switch, or for the KV transfer, under TTFT and starts the TPOT after it. Two
    systems may only be compared by the same metric.
    """
    if metric == "user":
        first, last = floats(columns, "first_output_s"), floats(columns, "last_output_s")
    elif metric == "ecoserve":
        first, last = floats(columns, "decode_start_s"), floats(columns, "last_token_s")
    else:
        raise ConfigError(
            "slo.metric", metric, "not a way to count latency", nearest(metric, METRICS)
        )
    arrival = floats(columns, "arrival_s")
    gaps = floats(columns, "output_len") - 1
    tpot = np.full(arrival.shape, np.nan)
    np.divide(last - first, gaps, out=tpot, where=gaps > 0)
    return {
        "ttft_s": first - arrival,
        "tpot_s": tpot,
        "e2el_s": floats(columns, "last_output_s") - arrival,
    }


def met_targets(columns: Frame, slo: SloConfig) -> dict[str, BoolArray]:
    """Return which requests met which target.

    A request that was rejected or did not finish misses every target, set or not. A finished
    one-token answer has no TPOT and no ITL and cannot miss those targets. A latency equal to its
    target meets it. With classes each request is judged by the targets of its own. The ITL of a
    request is the P99 of its gaps, which only frames of runs with that target hold.

    Returns
    -------
    dict of str to ndarray
        ``ttft``, ``tpot``, ``itl``, ``e2el`` and ``joint`` (all of them), bool, shape
        ``(num_requests,)``.
    """
    latency = request_metrics(columns, slo.metric)
    if slo.has_target("itl_s"):
        latency["itl_s"] = floats(columns, ITL_P99)
    finished = has_status(columns, "finished")
    one_token = floats(columns, "output_len") <= 1

    members = members_of(columns, slo)

    def met(name: str) -> BoolArray:
        if name not in latency:
            return finished
        target_s: float | None = getattr(slo, name)
        limit_s = np.full(finished.shape, np.inf if target_s is None else target_s)
        for own, requests in members.items():
            target_s = getattr(slo.of(own), name)
            limit_s[requests] = np.inf if target_s is None else target_s
        return np.asarray(finished & ((latency[name] <= limit_s) | (limit_s == np.inf)), np.bool_)

    ttft, e2el = met("ttft_s"), met("e2el_s")
    tpot, itl = (met(name) | (finished & one_token) for name in ("tpot_s", "itl_s"))
    each = {"ttft": ttft, "tpot": tpot, "itl": itl, "e2el": e2el}
    return {**each, "joint": ttft & tpot & itl & e2el}


def members_of(columns: Frame, slo: SloConfig) -> dict[str, BoolArray]:
    """Return which requests are of each class of `slo`, bool, shape ``(num_requests,)``.

    Empty where `slo` has no classes.
    """
    if not slo.classes:
        return {}
    of = np.asarray(columns[SLO_CLASS], dtype=object)
    return {name: np.asarray(of == name, dtype=np.bool_) for name in slo.classes}


def window_bounds(columns: Frame, warmup_s: float, cooldown_s: float) -> tuple[float, float]:
    """Return start and end (s) of the measured window: warm-up to last arrival less cool-down.

    The end lies at or before the start when the cuts leave nothing, and at the start when there
    are no requests.
    """
    arrival = floats(columns, "arrival_s")
    if arrival.size == 0:
        return warmup_s, warmup_s
    return warmup_s, float(arrival.max()) - cooldown_s


def measured_window(columns: Frame, warmup_s: float, cooldown_s: float) -> BoolArray:
    """Return which requests are counted: those that arrive in the measured window.

    Parameters
    ----------
    columns : mapping or pandas.DataFrame
        The requests frame.
    warmup_s, cooldown_s : float
        Requests that arrive before `warmup_s` (s), or in the last `cooldown_s` (s) of the
        arrivals, are not counted. Both edges of what is left belong to the window.

    Returns
    -------
    ndarray
        bool, shape ``(num_requests,)``.
    """
    return measured_between(columns, *window_bounds(columns, warmup_s, cooldown_s))


def measured_between(columns: Frame, start_s: float, end_s: float) -> BoolArray:
    """Return which requests arrive between two times (s), both included."""
    arrival = floats(columns, "arrival_s")
    return np.asarray((arrival >= start_s) & (arrival <= end_s), dtype=np.bool_)


def in_window(columns: Frame, run: RunConfig) -> Columns:
    """Return the counted requests alone: those that arrive in the window of `run`."""
    kept = measured_window(columns, run.warmup_s, run.cooldown_s)
    return {name: np.asarray(columns[name])[kept] for name in schema_of("requests", columns)}


def attainments(columns: Frame, slo: SloConfig, counted: BoolArray) -> dict[str, float]:
    """Return the shares of the counted requests that met the targets.

    Parameters
    ----------
    columns : mapping or pandas.DataFrame
        The requests frame.
    slo : SloConfig
        The targets; its criterion decides the entry ``slo``.
    counted : ndarray
        Which requests count (`measured_window`), bool, shape ``(num_requests,)``.

    Returns
    -------
    dict of str to float
        ``ttft``, ``tpot``, ``itl``, ``e2el``, ``joint``, and ``slo``: the joint share, or the
        smallest of the separate ones under ``criterion = "marginal"``; with classes that of the
        class where it is least. 0 to 1; NaN if no request counts.
    """
    met = met_targets(columns, slo)
    shares = _shares(met, slo, counted)
    if slo.classes:
        each = _by_class(met, columns, slo, counted).values()
        shares["slo"] = min((share for share in each if share == share), default=np.nan)
    return shares


def attainment_error(columns: Frame, slo: SloConfig, counted: BoolArray) -> float:
    """Return the standard error of the attainment of one run, by the means of ten batches.

    Requests that meet together are late together: batches of neighbours are nearly independent
    where requests are not (Law, Simulation Modeling and Analysis, 2015, section 9.5.3). The largest
    of the targets that are counted, and of the classes.

    Returns
    -------
    float
        NaN where fewer than two requests for each batch count.
    """
    met = met_targets(columns, slo)
    members = list(members_of(columns, slo).values()) or [np.ones(counted.shape, np.bool_)]
    errors = []
    for own in members:
        rows = np.flatnonzero(counted & own)
        rows = rows[np.argsort(floats(columns, "arrival_s")[rows], kind="stable")]
        if len(rows) < 2 * BATCHES:
            return np.nan
        for key in slo.counted:
            means = [float(met[key][batch].mean()) for batch in np.array_split(rows, BATCHES)]
            errors.append(float(np.std(means, ddof=1) / np.sqrt(BATCHES)))
    return max(errors)


def class_attainments(columns: Frame, slo: SloConfig, counted: BoolArray) -> dict[str, float]:
    """Return the share of the counted requests of each class that met its targets.

    Returns
    -------
    dict of str to float
        By class, counted by the criterion of `slo`; NaN for a class without counted requests.
        Empty without classes.
    """
    return _by_class(met_targets(columns, slo), columns, slo, counted)


def class_columns(columns: Frame, slo: SloConfig, counted: BoolArray) -> dict[str, float]:
    """Return the columns of the sweep frame that only runs with classes have.

    Returns
    -------
    dict of str to float
        ``slo_attainment.NAME`` as from `class_attainments`; where targets have percentiles also
        the share that met each counted target, such as ``ttft_attainment.NAME``.
    """
    met = met_targets(columns, slo)
    found = {
        f"{CLASS_ATTAINMENT}{name}": share
        for name, share in _by_class(met, columns, slo, counted).items()
    }
    if slo.percentiles is not None:
        for name, own in members_of(columns, slo).items():
            shares = _shares(met, slo, counted & own)
            found |= {f"{key}_attainment.{name}": shares[key] for key in slo.of(name).counted}
    return found


def _by_class(
    met: dict[str, BoolArray], columns: Frame, slo: SloConfig, counted: BoolArray
) -> dict[str, float]:
    members = members_of(columns, slo)
    return {name: _shares(met, slo, counted & own)["slo"] for name, own in members.items()}


def _shares(met: dict[str, BoolArray], slo: SloConfig, counted: BoolArray) -> dict[str, float]:
    """Return the shares of `attainments` over the counted requests, whatever their class."""
    shares = {
        name: float(np.mean(flags[counted])) if counted.any() else np.nan
        for name, flags in met.items()
    }
    return with_criterion(shares, slo)


def with_criterion(shares: dict[str, float], slo: SloConfig) -> dict[str, float]:
    """Return the shares of all targets with ``slo``, the one that the criterion decides by."""
    if slo.criterion == "marginal":
        shares["slo"] = min(share for name, share in shares.items() if name != "joint")
    elif slo.criterion == "joint":
        shares["slo"] = shares["joint"]
    else:
        raise ConfigError(
            "slo.criterion",
            slo.criterion,
            "not a way to count attainment",
            nearest(slo.criterion, ("joint", "marginal")),
        )
    return shares


def _statistics(name: str, values: FloatArray) -> dict[str, float]:
    known = values[~np.isnan(values)]
    if known.size == 0:
        return {f"{name}_{stat}": np.nan for stat in STATISTICS}
    found = (known.mean(), *quantiles(known, [percent / 100 for percent in PERCENTILES]))
    return {f"{name}_{stat}": float(value) for stat, value in zip(STATISTICS, found, strict=True)}


def _is_transient(e2el_s: FloatArray, window_s: float) -> bool:
    """Tell whether arrivals over `window_s` are too short; the unfinished stay for ever.

    `e2el_s` holds the admitted requests alone, with NaN for the unfinished.
    """
    if e2el_s.size == 0:
        return True
    median_s = median(np.where(np.isnan(e2el_s), np.inf, e2el_s))
    return window_s < RESIDENCES_PER_WINDOW * median_s


def median(values: FloatArray) -> float:
    """Return the median of at least one value, infinite ones among them, as `numpy.median`."""
    low, high = (len(values) - 1) // 2, len(values) // 2
    middle = np.partition(values, [low, high])
    return float((middle[low] + middle[high]) / 2)


def quantiles(values: FloatArray, shares: Sequence[float]) -> list[float]:
    """Return the quantiles of at least one finite value, interpolated, as `numpy.quantile`.

    NumPy's own, and its median, import ``numpy.ma``: that takes longer than a small simulation.
    """
    ordered = np.sort(values)
    found = []
    for share in shares:
        place = share * (len(ordered) - 1)
        below = int(place)
        low, high = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
        part = place - below
        # From the nearer of the two, as NumPy does, so that the upper one is met exactly.
        step = high - low
        found.append(float(low + step * part if part < 0.5 else high - step * (1 - part)))
    return found


def _work_bounds(columns: Frame, counted: BoolArray, run: RunConfig) -> tuple[float, float]:
    """Return from when to when (s) the counted requests were worked on.

    From the end of the warm-up, or from the first counted arrival where the system was empty
    before, to the last output of the counted requests; to ``run.max_time_s`` where the clock was
    stopped before some ended.
    """
    arrival, last_output = floats(columns, "arrival_s"), floats(columns, "last_output_s")
    if not counted.any():
        return run.warmup_s, run.warmup_s
    start = float(arrival[counted].min())
    served = ~has_status(columns, "rejected")
    if np.any(served & (arrival < run.warmup_s) & ~(last_output <= run.warmup_s)):
        start = run.warmup_s
    ends = last_output[counted & has_status(columns, "finished")]
    end = float(ends.max(initial=start))
    if run.max_time_s is not None and has_status(columns, "unfinished")[counted].any():
        end = max(end, run.max_time_s)
    return start, end


def tokens_released(columns: Frame, start_s: float, end_s: float) -> float:
    """Count the output tokens that finished requests release between two times (s).

    Those after the first are taken as evenly spaced from first to last output; for the last of
    them that the end cuts this gives a fraction.
    """
    finished = has_status(columns, "finished")
    first = floats(columns, "first_output_s")[finished]
    last = floats(columns, "last_output_s")[finished]
    gaps = floats(columns, "num_output_tokens")[finished] - 1
    starts_inside = (first >= start_s) & (first <= end_s)
    inside = np.minimum(last, end_s) - np.maximum(first, start_s)
    share = starts_inside.astype(np.float64)  # of an answer released all at once
    np.divide(np.maximum(inside, 0.0), last - first, out=share, where=last > first)
    return float(starts_inside.sum() + (gaps * share).sum())


def summarise(
    columns: Frame,
    *,
    slo: SloConfig,
    run: RunConfig,
    strategy: str,
    rate_rps: float,
    seed: int,
    num_gpus: int,
    instances: Frame | None = None,
    gaps: GapStatistics | None = None,
) -> SweepRow:
    """Return the sweep row of one run.

    Parameters
    ----------
    columns : mapping or pandas.DataFrame
        The requests frame of the run, all requests, warm-up included.
    slo : SloConfig
        Targets, criterion and metric.
    run : RunConfig
        Its warm-up and cool-down cut the window.
    strategy, rate_rps, seed, num_gpus : str, float, int, int
        What the run was; copied into the row.
    instances : mapping or pandas.DataFrame, optional
        The instances frame, which says how many GPUs were held; without it `num_gpus` all the time.
    gaps : GapStatistics, optional
        Gaps between the tokens of the run (`simcluster.frames.itl`); without them the ITL is NaN.

    Returns
    -------
    dict
        The columns of `schema.SWEEP`, and with classes the attainment of each.

    Notes
    -----
    Attainment counts the requests that arrived in the window: the rejected and the unfinished
    missed. Latency statistics are over the finished of them, percentiles by linear interpolation
    between order statistics (NumPy's default).

    Rates count what finishes between ``rates_from_s`` and ``rates_to_s``, whenever it arrived:
    finished requests, those of them that met every target, and the output tokens that finished
    requests release (taken as evenly spaced). That time ends with the window of arrivals where the
    run is long. In a transient run, such as a burst, and where answers decide the arrivals (a
    closed loop: `rate_rps` is NaN), it ends with the last output of the counted requests, as the
    duration of ``vllm bench serve`` does: the requests over the time of their arrivals alone would
    be more than any cluster serves.
    """
    counted = measured_window(columns, run.warmup_s, run.cooldown_s)
    start, end = window_bounds(columns, run.warmup_s, run.cooldown_s)
    finished = has_status(columns, "finished")
    last_output = floats(columns, "last_output_s")
    rejected = has_status(columns, "rejected")
    latency = request_metrics(columns, slo.metric)
    span_s = float(np.ptp(floats(columns, "arrival_s")[counted])) if counted.any() else 0.0
    transient = _is_transient(latency["e2el_s"][counted & ~rejected], span_s)
    if transient or np.isnan(rate_rps):
        start, end = _work_bounds(columns, counted, run)

    def per_second(amount: float) -> float:
        return amount / (end - start) if end > start else np.nan

    leaves = finished & (last_output > start) & (last_output <= end)
    shares = attainments(columns, slo, counted)
    row: SweepRow = {
        "strategy": strategy,
        "rate_rps": float(rate_rps),
        "seed": int(seed),
        "num_gpus": int(num_gpus),
        "mean_gpus": num_gpus if instances is None else mean_gpus(instances, start, end),
        "num_requests": int(counted.sum()),
        "num_finished": int((counted & finished).sum()),
        "num_rejected": int((counted & rejected).sum()),
        "slo_attainment": shares["slo"],
        "ttft_attainment": shares["ttft"],
        "tpot_attainment": shares["tpot"],
        "itl_attainment": shares["itl"],
        "e2el_attainment": shares["e2el"],
        "attainment_error": attainment_error(columns, slo, counted),
        "good_rps": per_second(float(met_targets(columns, slo)["joint"][leaves].sum())),
        "throughput_rps": per_second(float(leaves.sum())),
        "output_tokens_per_s": per_second(tokens_released(columns, start, end)),
        "num_preemptions": int(floats(columns, "num_preemptions")[counted].sum()),
        "cached_token_share": cached_token_share(columns, counted),
        "transient": transient,
        "rates_from_s": start,
        "rates_to_s": end,
    }
    for name in LATENCIES:
        row.update(_statistics(name, latency[name][counted & finished]))
    itl = dict.fromkeys(STATISTICS, np.nan) if gaps is None else gaps.statistics(counted & finished)
    row.update({f"itl_s_{stat}": value for stat, value in itl.items()})
    row.update(class_columns(columns, slo, counted))
    return row


def cached_token_share(columns: Frame, counted: BoolArray | None = None) -> float:
    """Return the share of the prompt tokens that requests found in a KV cache, 0 to 1.

    Parameters
    ----------
    columns : mapping or pandas.DataFrame
        The requests frame.
    counted : ndarray of bool, optional
        Which requests count, shape ``(num_requests,)``; all by default. Of them those that no
        instance admitted are left out.
    """
    admitted = ~np.isnan(floats(columns, "scheduled_s"))
    chosen = admitted if counted is None else admitted & counted
    prompts = float(floats(columns, "prompt_len")[chosen].sum())
    return float(floats(columns, "num_cached_tokens")[chosen].sum()) / prompts if prompts else 0.0


def cached_block_share(instances: Frame) -> float:
    """Return the share of full KV blocks looked for that were found, 0 to 1.

    Parameters
    ----------
    instances : mapping or pandas.DataFrame
        The instances frame. Requests look for the blocks of their prompts when they come in; behind
        a prefill instance again at the decode instance, for those of the KV that is to come.
    """
    asked = float(floats(instances, "asked_blocks").sum())
    return float(floats(instances, "cached_blocks").sum()) / asked if asked else 0.0


def gpu_hours(instances: Frame, end_s: float, start_s: float = 0.0) -> float:
    """Return the GPU time that instances hold, from the start of their start-up on (hours).

    Parameters
    ----------
    instances : mapping or pandas.DataFrame
        The instances frame.
    end_s : float
        Until when (s): instances that were not freed hold their GPUs to the end of the run.
    start_s : float
        From when on (s).
    """
    return float((_held_s(instances, start_s, end_s) * floats(instances, "num_gpus")).sum() / 3600)


def mean_gpus(instances: Frame, start_s: float, end_s: float) -> float:
    """Return the mean over time of the GPUs that instances hold, all together (`held_gpus`)."""
    return float(held_gpus(instances, start_s, end_s).sum())


def held_gpus(instances: Frame, start_s: float, end_s: float) -> FloatArray:
    """Return the mean over time of the GPUs that each instance holds.

    Parameters
    ----------
    instances : mapping or pandas.DataFrame
        The instances frame.
    start_s, end_s : float
        From when to when (s); of one moment the GPUs held then.

    Returns
    -------
    ndarray
        Shape ``(num_instances,)``.
    """
    num_gpus = floats(instances, "num_gpus")
    if end_s > start_s:
        return _held_s(instances, start_s, end_s) / (end_s - start_s) * num_gpus
    gone = floats(instances, "freed_s") <= start_s
    return num_gpus * ((floats(instances, "taken_s") <= start_s) & ~gone)


def _held_s(instances: Frame, start_s: float, end_s: float) -> FloatArray:
    """Return how long each instance holds its GPUs between two times (s)."""
    freed = floats(instances, "freed_s")
    last = np.minimum(np.where(np.isnan(freed), end_s, freed), end_s)
    held: FloatArray = np.maximum(last - np.maximum(floats(instances, "taken_s"), start_s), 0.0)
    return held


def mean_by_arrival(
    columns: Frame, values: FloatArray, num_bins: int = 60
) -> tuple[FloatArray, FloatArray]:
    """Return the mean of a value over the requests that arrive in each of equal stretches of time.

    Parameters
    ----------
    columns : mapping or pandas.DataFrame
        The requests frame.
    values : ndarray
        One per request, shape ``(num_requests,)``; NaN is left out.
    num_bins : int
        Number of stretches, from 0 to the last arrival.

    Returns
    -------
    edges_s, means : ndarray
        Shapes ``(num_bins + 1,)`` and ``(num_bins,)``; NaN where no such request arrives.
    """
    arrival = floats(columns, "arrival_s")
    edges = np.linspace(0.0, float(arrival.max(initial=0.0)) or 1.0, num_bins + 1)
    known = ~np.isnan(values)
    bins = np.clip(np.searchsorted(edges, arrival[known], side="right") - 1, 0, num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    sums = np.bincount(bins, weights=values[known], minlength=num_bins)
    means: FloatArray = np.full(num_bins, np.nan)
    np.divide(sums, counts, out=means, where=counts > 0)
    return edges, means


def ecdf(values: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Return the empirical distribution function of `values` at its steps.

    Parameters
    ----------
    values : array_like
        Shape ``(num_values,)``, in any order. NaN means "never": it counts in the share's
        denominator and has no step, so that the function ends below 1.

    Returns
    -------
    x, y : ndarray
        The distinct values, rising, and the share of all values that is at most x.

    Examples
    --------
    >>> x, y = ecdf([3.0, 1.0, float("nan"), 3.0])
    >>> x.tolist(), y.tolist()
    ([1.0, 3.0], [0.25, 0.75])
    """
    array = np.asarray(values, dtype=np.float64)
    x, counts = np.unique(array[~np.isnan(array)], return_counts=True)
    return x, np.cumsum(counts) / max(array.size, 1)


def _steps(times_s: FloatArray, changes: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Sum `changes` in the order of time; one entry per distinct time."""
    order = np.argsort(times_s, kind="stable")
    times, levels = times_s[order], np.cumsum(changes[order])
    last = np.ones(times.size, dtype=np.bool_)
    last[:-1] = times[1:] != times[:-1]
    return times[last], levels[last]


def level_over_time(
    spans: Frame, column: str, *, instances: Collection[int] | None = None
) -> tuple[FloatArray, FloatArray]:
    """Return a level of the cluster as a step function of time.

    An instance's level is known at the ends of its spans and holds until the next one (no
    interpolation); it is 0 before the first. So what changes while an instance takes no steps, such
    as KV freed by the end of a transfer, shows at the end of its next span. Counts are added over
    the instances, shares (``kv_usage``) averaged. So are those of the lanes of an instance, its
    batches in flight (of a pipeline, of data-parallel ranks); lanes behind the last one that has
    spans are not known.

    Parameters
    ----------
    spans : mapping or pandas.DataFrame
        The spans frame.
    column : str
        ``"num_waiting"``, ``"num_running"`` or ``"kv_usage"``.
    instances : collection of int, optional
        These alone, and all of these: an instance that never took a step counts as empty. By
        default the instances that have spans.

    Returns
    -------
    times_s, levels : ndarray
        Times (s), rising, and the level from each until the next; it is 0 before the first.

    Raises
    ------
    ValueError
        If `column` is not a level.
    """
    if column not in _LEVELS:
        raise ValueError(f"{column!r} is not a level; {nearest(column, _LEVELS)}")
    instance = np.asarray(spans["instance"], dtype=np.int64)
    lane = np.asarray(spans["lane"], dtype=np.int64)
    end, level = floats(spans, "end_s"), floats(spans, column)
    chosen = np.unique(instance if instances is None else np.asarray(sorted(instances)))
    kept = np.isin(instance, chosen)
    instance, lane, end, level = instance[kept], lane[kept], end[kept], level[kept]
    if column in _SHARES:
        num_lanes = np.zeros(int(np.max(instance, initial=-1)) + 1)
        np.maximum.at(num_lanes, instance, lane + 1)
        level = level / num_lanes[instance]

    by_lane = np.lexsort((end, lane, instance))
    instance, lane, end, level = instance[by_lane], lane[by_lane], end[by_lane], level[by_lane]
    same = (instance[1:] == instance[:-1]) & (lane[1:] == lane[:-1])
    before = np.zeros_like(level)
    before[1:] = np.where(same, level[:-1], 0.0)
    times, total = _steps(end, level - before)
    if column in _SHARES:
        # Sums of differences of shares do not cancel exactly; an empty cluster is 0, not -1e-17.
        return times, np.clip(total / max(chosen.size, 1), 0.0, 1.0)
    return times, total


def count_over_time(
    starts_s: npt.ArrayLike, ends_s: npt.ArrayLike
) -> tuple[FloatArray, FloatArray]:
    """Return how many intervals are open as a step function of time.

    Parameters
    ----------
    starts_s, ends_s : array_like
        Start and end (s) of each interval, shape ``(num,)``; the start is inside, the end is not.
        A NaN start never opens, a NaN end never closes.

    Returns
    -------
    times_s, counts : ndarray
        Times (s), rising, and the count from each until the next; it is 0 before the first.

    Examples
    --------
    >>> times, counts = count_over_time([0.0, 1.0], [2.0, float("nan")])
    >>> times.tolist(), counts.tolist()
    ([0.0, 1.0, 2.0], [1.0, 2.0, 1.0])
    """
    starts = np.asarray(starts_s, dtype=np.float64)
    ends = np.asarray(ends_s, dtype=np.float64)
    opens = ~np.isnan(starts)
    closes = opens & ~np.isnan(ends)
    times = np.concatenate([starts[opens], ends[closes]])
    changes = np.concatenate([np.ones(int(opens.sum())), -np.ones(int(closes.sum()))])
    return _steps(times, changes)


def waiting_over_time(requests: Frame) -> tuple[FloatArray, FloatArray]:
    """Return how many requests have arrived but have not been in any step yet, over time.

    It counts a request wherever it waits, in a router or in an instance, unlike the spans' column
    ``num_waiting``, which counts the instances' queues at the ends of spans (and there also
    requests that were preempted or handed over).

    Parameters
    ----------
    requests : mapping or pandas.DataFrame
        The requests frame; rejected requests never wait.

    Returns
    -------
    times_s, counts : ndarray
        As in `count_over_time`.
    """
    arrival = np.where(has_status(requests, "rejected"), np.nan, floats(requests, "arrival_s"))
    return count_over_time(arrival, floats(requests, "scheduled_s"))


def queued_over_time(
    requests: Frame, *, instances: Collection[int] | None = None
) -> tuple[FloatArray, FloatArray]:
    """Return how many requests an instance holds that have not been in any step yet, over time.

    The part of `waiting_over_time` that no router holds back: from routing to the first step.

    Parameters
    ----------
    requests : mapping or pandas.DataFrame
        The requests frame.
    instances : collection of int, optional
        Those of these instances alone; by default of all.

    Returns
    -------
    times_s, counts : ndarray
        As in `count_over_time`.
    """
    routed = np.where(has_status(requests, "rejected"), np.nan, floats(requests, "routed_s"))
    scheduled = floats(requests, "scheduled_s")
    if instances is not None:
        own = np.isin(np.asarray(requests["prefill_instance"], np.int64), sorted(instances))
        routed, scheduled = routed[own], scheduled[own]
    return count_over_time(routed, scheduled)


def binned_average(times_s: FloatArray, levels: FloatArray, edges_s: npt.ArrayLike) -> FloatArray:
    """Return the averages over time of a step function between consecutive edges.

    Parameters
    ----------
    times_s, levels : ndarray
        The step function, as from `level_over_time`.
    edges_s : array_like
        Edges of the bins (s), strictly rising, shape ``(num_bins + 1,)``.

    Returns
    -------
    ndarray
        Exact averages (no sampling), shape ``(num_bins,)``.

    Raises
    ------
    ValueError
        If the edges do not rise.
    """
    edges = np.asarray(edges_s, dtype=np.float64)
    if not np.all(np.diff(edges) > 0):
        raise ValueError("edges_s must rise")
    if times_s.size == 0:
        return np.zeros(edges.size - 1)
    # The integral of a step function is linear between its times: interpolation is exact.
    end = max(float(edges[-1]), float(times_s[-1]))
    knots = np.append(times_s, end)
    integral = np.concatenate([[0.0], np.cumsum(levels * np.diff(knots))])
    averages: FloatArray = np.diff(np.interp(edges, knots, integral)) / np.diff(edges)
    return averages


def time_average(times_s: FloatArray, levels: FloatArray, start_s: float, end_s: float) -> float:
    """Return the average over time of a step function between `start_s` and `end_s` (s).

    Parameters
    ----------
    times_s, levels : ndarray
        The step function, as from `level_over_time`.
    start_s, end_s : float
        From when to when (s), ``start_s < end_s``.

    Raises
    ------
    ValueError
        If the interval is empty.
    """
    return float(binned_average(times_s, levels, [start_s, end_s])[0])
