"""Goodput: the highest offered rate that a strategy sustains within its targets.

From a grid of rates and their attainments. The definition is that of DistServe (Zhong et al., OSDI
2024), EcoServe and BestServe; what vLLM's benchmark calls request goodput is ``good_rps`` here.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt

from simcluster.config import SloConfig
from simcluster.errors import DataError

if TYPE_CHECKING:
    from simcluster.frames.metrics import Frame

Censored = Literal["below", "above"]

Wanted = Mapping[str, float]
"""Columns of the sweep frame, and the share (0 to 1) that each must reach."""

_MANY_SEEDS: Final = 5
"""Seeds from which their scatter, rather than the batches of each run, tells the error."""
_ROUNDING: Final = 1e-12
"""An attainment this far below the target reaches it: a mean over seeds is not exact."""


AT_LOW_LOAD: Final = "meets the targets at its goodput, but not at every lower rate"
"""What is said of a strategy whose attainment falls below the wanted one at low rates."""


def wanted_shares(slo: SloConfig) -> dict[str, float]:
    """Return which columns of the sweep frame must reach which share (0 to 1).

    ``slo_attainment`` alone where all targets want the same; where targets have percentiles a
    column for each, such as ``ttft_attainment``, and with classes for each of every class.
    """
    if slo.percentiles is None:
        return {"slo_attainment": slo.attainment}
    if slo.classes:
        return {
            f"{key}_attainment.{name}": slo.wanted(key)
            for name in slo.classes
            for key in slo.of(name).counted
        }
    return {f"{key}_attainment": slo.wanted(key) for key in slo.counted}


def met(share: float) -> str:
    """Return which share of the requests meet a target (%), rounded down; a dash for NaN.

    So 89.96 % does not read as 90 %, and nothing as 100 % of which some are missing.

    >>> met(0.93750), met(1.0), met(math.nan)
    ('93.7', '100.0', '-')
    """
    return "-" if math.isnan(share) else f"{math.floor(1000 * share + 1e-9) / 10:.1f}"


def target_of(column: str) -> str:
    """Return in words what a column of shares is of.

    >>> target_of("ttft_attainment"), target_of("tpot_attainment.chat")
    ('TTFT', 'TPOT of chat')
    """
    what, _, name = column.partition("_attainment")
    words = {"slo": "all targets", "joint": "all targets", "e2el": "end to end"}.get(
        what, what.upper()
    )
    return words + (f" of {name[1:]}" if name else "")


def falls_short(margin: float, high_margin: float | None = None) -> str:
    """Return how a plan falls short of a need, in words.

    Parameters
    ----------
    margin, high_margin : float
        Goodput, and the upper end of its interval, over what is needed, less 1.

    Notes
    -----
    >>> falls_short(-0.104, -0.09), falls_short(-0.005, 0.01)
    ('misses it by 10.4 %', 'misses it by 0.5 %, which may be chance')
    """
    if margin >= 0:
        return "may sustain it, which is not sure"
    words = f"misses it by {-100 * margin:.1f} %"
    if high_margin is not None and high_margin > 0:
        words += ", which may be chance"
    return words


def three_digits(value: float) -> str:
    """Return `value` with at least three digits, never as a power of ten.

    >>> three_digits(3.14159), three_digits(16.0), three_digits(10800.4), three_digits(0.0)
    ('3.14', '16.0', '10,800', '0')
    """
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Goodput:
    """A goodput, or the bound that the grid of rates gives."""

    value: float
    """Goodput (requests/s). Where censored, the bound: the highest rate of the grid (the goodput is
    at least that) or the lowest (it is less). NaN where runs have no offered rate."""
    censored: Censored | None = None
    """``"above"`` if no rate of the grid is too high, ``"below"`` if every rate is, else None."""

    def __str__(self) -> str:
        sign = {None: "", "above": "≥ ", "below": "< "}[self.censored]
        return sign + three_digits(self.value)

    def per_gpu(self, gpus: float) -> float:
        """Return requests per second and GPU, with `gpus` held."""
        return self.value / gpus

    def per_cost(self, gpus: float, price_per_gpu_hour: float) -> float:
        """Return requests per unit of currency, with GPUs rented at `price_per_gpu_hour`."""
        return self.value * 3600.0 / (gpus * price_per_gpu_hour)


def mean_attainment(
    rates_rps: npt.ArrayLike, attainments: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the distinct rates, rising, and the mean attainment (over seeds) at each.

    Parameters
    ----------
    rates_rps, attainments : array_like
        Offered rate (requests/s) and attainment (0 to 1) of each run, in any order.

    Returns
    -------
    rates_rps, means : ndarray
        Shape ``(num_rates,)``.

    Raises
    ------
    DataError
        If there is no run, or a run has no attainment.
    """
    rates = np.asarray(rates_rps, dtype=np.float64)
    shares = np.asarray(attainments, dtype=np.float64)
    if rates.shape != shares.shape or rates.ndim != 1:
        raise ValueError(f"rates {rates.shape} and attainments {shares.shape} must pair up")
    if rates.size == 0:
        raise DataError("no runs to take a goodput from")
    if np.isnan(shares).any():
        rate = rates[np.isnan(shares)][0]
        raise DataError(
            f"no request arrived in the measured window at {rate:g} requests/s: "
            "lower run.warmup_s or run.cooldown_s, or simulate more requests"
        )
    return _means(rates, shares)


def _means(
    rates_rps: npt.NDArray[Any], values: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the distinct rates, rising, and the mean of the values at each."""
    unique, where = np.unique(rates_rps, return_inverse=True)
    return unique, np.bincount(where, weights=values) / np.bincount(where)


def goodput_rps(rates_rps: npt.ArrayLike, attainments: npt.ArrayLike, target: float) -> Goodput:
    """Return the rate at which attainment falls below `target`.

    Runs at the same rate (seeds) are averaged first. Between the rates of the grid attainment is
    taken as linear; the first downward crossing counts, so that a lucky point above it does not.

    Parameters
    ----------
    rates_rps, attainments : array_like
        Offered rate (requests/s; NaN in a closed loop, which has no goodput) and attainment (0 to
        1) of each run, in any order.
    target : float
        Attainment that a rate must reach to count as carried, 0 to 1.

    Returns
    -------
    Goodput
        Censored where the grid holds no downward crossing: ``"above"`` if its highest rate
        reaches the target, ``"below"`` if no rate does.

    Raises
    ------
    DataError
        If there is no run, or a run has no attainment.

    Examples
    --------
    >>> goodput_rps([1, 2, 4], [1.0, 1.0, 0.5], target=0.75)
    Goodput(value=3.0, censored=None)
    >>> str(goodput_rps([1, 2], [1.0, 0.95], target=0.9))
    '≥ 2.00'
    """
    rates, means = mean_attainment(rates_rps, attainments)
    if np.isnan(rates).any():
        return Goodput(value=np.nan)
    reaches = means >= target - _ROUNDING
    crossings = np.flatnonzero(reaches[:-1] & ~reaches[1:])
    if crossings.size == 0:
        if reaches[-1]:
            return Goodput(value=float(rates[-1]), censored="above")
        return Goodput(value=float(rates[0]), censored="below")
    i = int(crossings[0])
    share = max(0.0, (means[i] - target) / (means[i] - means[i + 1]))
    return Goodput(value=float(rates[i] + share * (rates[i + 1] - rates[i])))


def strategies(sweep: Frame) -> list[str]:
    """Return the strategies of a sweep in the order of their first row."""
    return list(dict.fromkeys(str(name) for name in np.asarray(sweep["strategy"], dtype=object)))


def first_missed(
    rates_rps: npt.ArrayLike, shares: Mapping[str, npt.ArrayLike], wanted: Wanted
) -> tuple[Goodput, str]:
    """Return the rate at which the first column falls below its wanted share, and which it is.

    Parameters
    ----------
    rates_rps : array_like
        Offered rate (requests/s) of each run.
    shares : mapping of str to array_like
        By column of `wanted`, the share (0 to 1) of each run.
    wanted : mapping of str to float
        As from `wanted_shares`.

    Raises
    ------
    DataError
        If there is no run, or a run has no attainment.
    """
    each = [(goodput_rps(rates_rps, shares[key], level), key) for key, level in wanted.items()]
    # A bound from below says more than a crossing at the same rate.
    return min(each, key=lambda one: (one[0].value, one[0].censored != "below"))


def goodput_error(
    rates_rps: npt.ArrayLike,
    shares: npt.ArrayLike,
    errors: npt.ArrayLike,
    num_requests: npt.ArrayLike,
    level: float,
) -> float:
    """Return how far the goodput of a grid of rates is to be trusted (requests/s).

    Two standard errors of the attainment at the two rates around the crossing (of the mean over the
    seeds: by their scatter where there are several, else by `errors`), over the slope between
    them; and what the grid leaves open: between two rates attainment is taken as linear, and where
    its log odds are linear instead the crossing lies elsewhere.

    Parameters
    ----------
    rates_rps, shares, errors, num_requests : array_like
        Of each run: offered rate (requests/s), attainment (0 to 1), its standard error, and the
        requests counted.
    level : float
        Attainment that a rate must reach, 0 to 1.

    Returns
    -------
    float
        Half the width of an interval; NaN where the goodput is a bound, or an error is unknown.
    """
    rates, means = mean_attainment(rates_rps, shares)
    found = goodput_rps(rates_rps, shares, level)
    if found.censored or np.isnan(found.value) or not 0 < level < 1:
        return np.nan
    reaches = means >= level - _ROUNDING
    i = int(np.flatnonzero(reaches[:-1] & ~reaches[1:])[0])
    part = (found.value - rates[i]) / (rates[i + 1] - rates[i])
    at = [np.asarray(rates_rps, dtype=np.float64) == rate for rate in rates[i : i + 2]]
    each = [_mean_error(np.asarray(shares)[own], np.asarray(errors)[own]) for own in at]
    slope = (means[i] - means[i + 1]) / (rates[i + 1] - rates[i])
    chance = 2 * math.hypot((1 - part) * each[0], part * each[1]) / slope
    counts = [float(np.asarray(num_requests, dtype=np.float64)[own].sum()) for own in at]
    high, low = (
        math.log((mean * num + 0.5) / ((1 - mean) * num + 0.5))
        for mean, num in zip(means[i : i + 2], counts, strict=True)
    )
    wanted = math.log(level / (1 - level))
    other = min(max((high - wanted) / (high - low), 0.0), 1.0) if high > low else part
    return float(chance + abs(other - part) * (rates[i + 1] - rates[i]))


def _mean_error(shares: npt.NDArray[Any], errors: npt.NDArray[Any]) -> float:
    """Return the standard error of the mean over seeds, at least the one of single runs allows."""
    within = float(np.mean(errors)) / math.sqrt(len(errors))
    if len(shares) < _MANY_SEEDS:
        return within
    return float(np.std(shares, ddof=1)) / math.sqrt(len(shares))


def _shares_of(sweep: Frame, wanted: Wanted | float) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the wanted shares by column, and these columns."""
    by_column = {"slo_attainment": wanted} if isinstance(wanted, float | int) else dict(wanted)
    return by_column, {key: np.asarray(sweep[key], dtype=np.float64) for key in by_column}


def goodput_table(
    sweep: Frame,
    wanted: Wanted | float,
    *,
    price_per_gpu_hour: float | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Return one row per strategy: its goodput, per GPU and per cost.

    Parameters
    ----------
    sweep : mapping or pandas.DataFrame
        The sweep frame (`schema.SWEEP`).
    wanted : float or mapping of str to float
        Attainment that a rate must reach to count as carried, 0 to 1; or of several columns, as
        from `wanted_shares`.
    price_per_gpu_hour : float, optional
        Price of one GPU for one hour; all strategies run on the same type.

    Returns
    -------
    dict of str to ndarray
        Columns, one entry per strategy in the order of the sweep: ``strategy``; ``num_gpus``, the
        most GPUs held at a time in any run; ``mean_gpus``, the GPUs held at the goodput, mean over
        time, which differ from it where instances come and go; ``goodput_rps`` (requests/s, or the
        bound where censored); ``censored`` (``""``, ``"below"`` or ``"above"``);
        ``goodput_rps_min`` and ``goodput_rps_max``, the smallest and largest of the goodputs of
        single seeds (bounds where those are censored); ``goodput_rps_error``, half the width of
        the interval that the grid and the runs leave (`goodput_error`; NaN where it is not
        known); ``goodput_rps_per_gpu``, of the GPUs held;
        ``requests_per_cost`` (requests per unit of the price's currency, for the GPU-hours
        held), NaN without a price; and, of several wanted columns, ``first_missed``: the one
        that falls below its share at the goodput, empty where none does.

    Raises
    ------
    DataError
        If a strategy has two runs at one rate with one seed, or a run has no attainment.

    Notes
    -----
    Between two rates of the grid the GPUs held are taken as linear in the rate, as attainment is.
    """
    names = np.asarray(sweep["strategy"], dtype=object)
    rates = np.asarray(sweep["rate_rps"], dtype=np.float64)
    levels, shares = _shares_of(sweep, wanted)
    seeds, gpus = np.asarray(sweep["seed"]), np.asarray(sweep["num_gpus"])
    held = np.asarray(sweep["mean_gpus"], dtype=np.float64)
    order = strategies(sweep)
    errors, counts = _column(sweep, "attainment_error"), _column(sweep, "num_requests")
    goodputs, missed, open_, by_seed, num_gpus, mean_gpus = [], [], [], [], [], []

    def found(chosen: npt.NDArray[np.bool_]) -> tuple[Goodput, str]:
        return first_missed(rates[chosen], {k: s[chosen] for k, s in shares.items()}, levels)

    for name in order:
        own = names == name
        _refuse_twice(name, rates[own], seeds[own])
        goodput, first = found(own)
        goodputs.append(goodput)
        level = levels[first]
        open_.append(goodput_error(rates[own], shares[first][own], errors[own], counts[own], level))
        missed.append("" if goodput.censored == "above" else first)
        by_seed.append([found(own & (seeds == s))[0].value for s in np.unique(seeds[own])])
        num_gpus.append(int(gpus[own].max()))
        mean_gpus.append(_at(goodputs[-1].value, rates[own], held[own]))
    price = np.nan if price_per_gpu_hour is None else price_per_gpu_hour
    table = {
        "strategy": np.array(order, dtype=object),
        "num_gpus": np.array(num_gpus, dtype=np.int64),
        "mean_gpus": np.array(mean_gpus, dtype=np.float64),
        "goodput_rps": np.array([g.value for g in goodputs]),
        "censored": np.array([g.censored or "" for g in goodputs], dtype=object),
        "goodput_rps_min": np.array([min(values) for values in by_seed]),
        "goodput_rps_max": np.array([max(values) for values in by_seed]),
        "goodput_rps_error": np.array(open_, dtype=np.float64),
        "goodput_rps_per_gpu": np.array(
            [g.per_gpu(n) for g, n in zip(goodputs, mean_gpus, strict=True)]
        ),
        "requests_per_cost": np.array(
            [g.per_cost(n, price) for g, n in zip(goodputs, mean_gpus, strict=True)]
        ),
    }
    return {**table, "first_missed": np.array(missed, dtype=object)} if len(levels) > 1 else table


def _column(sweep: Frame, name: str) -> npt.NDArray[Any]:
    """Return a column; unknown (NaN) where the sweep lacks it."""
    if name in sweep:
        return np.asarray(sweep[name], dtype=np.float64)
    return np.full(len(np.asarray(sweep["rate_rps"])), np.nan)


def _refuse_twice(name: str, rates_rps: npt.NDArray[Any], seeds: npt.NDArray[Any]) -> None:
    """Refuse two runs of a strategy that may only be variants under one name."""
    runs = Counter(zip(rates_rps.tolist(), seeds.tolist(), strict=True))
    (rate, seed), count = runs.most_common(1)[0]
    if count > 1:
        raise DataError(
            f"strategy {name!r} has {count} runs at {rate:g} requests/s with seed {seed}: "
            "give the variants different names"
        )


def _at(rate_rps: float, rates_rps: npt.NDArray[Any], values: npt.NDArray[Any]) -> float:
    """Return a quantity of runs at a rate, linear between those of the grid, seeds averaged."""
    if np.isnan(rate_rps):
        return float(values.mean())
    return float(np.interp(rate_rps, *_means(rates_rps, values)))


def representative_rate(sweep: Frame, wanted: Wanted | float) -> float:
    """Return the rate to show distributions at: the highest that some strategy still carries.

    Parameters
    ----------
    sweep : mapping or pandas.DataFrame
        The sweep frame.
    wanted : float or mapping of str to float
        Attainment that a rate must reach to count as carried, 0 to 1; or of several columns, as
        from `wanted_shares`.

    Returns
    -------
    float
        An offered rate of the sweep (requests/s) that every strategy was run at where there is
        one; the lowest if no strategy sustains any; NaN if runs have no offered rate.
    """
    names = np.asarray(sweep["strategy"], dtype=object)
    rates = np.asarray(sweep["rate_rps"], dtype=np.float64)
    levels, shares = _shares_of(sweep, wanted)
    order = strategies(sweep)
    if not order:
        raise DataError("no runs in the sweep")
    if np.isnan(rates).any():
        return np.nan
    each = [set(rates[names == name].tolist()) for name in order]
    shared = set.intersection(*each) or set(rates.tolist())
    carried = []
    for own in (names == name for name in order):
        curves = [(mean_attainment(rates[own], shares[key][own]), levels[key]) for key in levels]
        reaches = np.all([means >= level - _ROUNDING for (_, means), level in curves], axis=0)
        carried += [rate for rate in curves[0][0][0][reaches].tolist() if rate in shared]
    return float(max(carried) if carried else min(shared))
