"""From a few facts to an answer: how many GPUs, which strategy, at what cost (by `rank`).

The facts are made into a scenario (`scenario.draft`), which is ranked for the rate that is needed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from simcluster.errors import ConfigError, DataError
from simcluster.runs.recorded import RecordedRuns
from simcluster.scenario.draft import NODE, Draft
from simcluster.scenario.file import resolve
from simcluster.scenario.rank_table import RankTable
from simcluster.scenario.scenario import Scenario
from simcluster.show.commands import MOST_GPUS
from simcluster.studies.rank.plans import TooFewGpusError
from simcluster.studies.rank.rank import rank
from simcluster.studies.rank.ranking import Ranking
from simcluster.studies.rank.screen import Lengths, Screen
from simcluster.studies.space import space

_FITS_IF_AT_ALL: Final = 32
"""GPUs: a model that does not fit on so many does not fit for want of GPUs."""
_BELOW_BOUND: Final = 0.5
"""Goodput over the roofline's bound that is at least expected: candidates below a half of the best
bound are not run by `rank` either."""

Progress = Callable[[int, int, float], None]


def written(draft: Draft) -> str:
    """Return the scenario file of a draft, with a tensor-parallel degree that is of use.

    Raises
    ------
    ConfigError, DataError
        If model or GPU are not known, or the model does not fit.
    """
    return _within_context(draft).text(*_tp_of_use(draft))


def scenario_of(draft: Draft) -> Scenario:
    """Return the scenario that a plan is asked of: the rate as a need, all strategies that fit.

    Raises
    ------
    ConfigError
        If something of the draft cannot be used.
    """
    return resolve(tomllib.loads(_within_context(draft).text()))


def _within_context(draft: Draft) -> Draft:
    """Return the draft with lengths that the model takes."""
    asked = replace(draft, rate_rps=draft.rate_rps or 1.0)
    model = resolve(tomllib.loads(asked.text())).environment.model
    return replace(draft, context=model.max_model_len)


def _tp_of_use(draft: Draft) -> tuple[int, str]:
    """Return a tensor-parallel degree for all strategies, and why that one.

    The smallest that keeps the targets when requests are alone, and whose KV cache beside the
    weights is large enough: by the roofline a GPU sustains at least half of what it does with the
    best degree.
    """
    asked = replace(draft, rate_rps=draft.rate_rps or 1.0)
    scenario = scenario_of(asked)
    environment = scenario.environment
    found = space(RankTable(strategies=("nodg",)), environment)
    if not found.strategies:
        found.refuse_empty()
    screen = Screen(environment, Lengths.of(scenario))
    strategies: list[Any] = list(found.strategies.values())
    bounds = {int(one.tp_size): screen.bound(one) for one in strategies}
    per_gpu = {tp: bound.total_rps / bound.num_gpus for tp, bound in bounds.items()}
    fits = min(bounds)
    meets = [tp for tp in bounds if bounds[tp].alone_share >= environment.slo.attainment]
    if not meets:
        return fits, "smallest that fits; none keeps the targets for one request"
    best = max(per_gpu[tp] for tp in meets)
    chosen = min(tp for tp in meets if per_gpu[tp] >= _BELOW_BOUND * best)
    room = f"KV cache for {bounds[chosen].memory_batch} requests"
    if chosen == fits:
        return chosen, f"smallest that fits, {room}"
    if fits in meets:
        fewer = f"{bounds[fits].memory_batch} with {fits}"
        return chosen, f"{room}, {fewer}"
    return chosen, f"smallest that keeps the targets, {room}"


def enough(draft: Draft) -> Draft:
    """Return the draft with as many whole nodes as its rate may need, by the roofline's bounds.

    Raises
    ------
    ConfigError, DataError
        If something of the draft cannot be used, or no strategy fits.
    """
    assert draft.rate_rps is not None, "a plan is for a rate"
    asked = replace(draft, num_gpus=NODE)
    while True:
        try:
            if _BELOW_BOUND * _best_bound(asked) >= draft.rate_rps:
                return asked
        except DataError:
            if asked.num_gpus >= _FITS_IF_AT_ALL:
                raise
        if asked.num_gpus >= MOST_GPUS:
            return asked
        asked = replace(asked, num_gpus=2 * asked.num_gpus)


def _best_bound(draft: Draft) -> float:
    """Return what the best candidate on all GPUs sustains at most by the roofline (requests/s)."""
    scenario = scenario_of(draft)
    environment = scenario.environment
    found = space(scenario.rank or RankTable(), environment)
    if not found.strategies:
        found.refuse_empty()
    screen = Screen(environment, Lengths.of(scenario))
    return max(screen.bound(strategy).total_rps for strategy in found.strategies.values())


def plan(
    draft: Draft,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
    recorded: RecordedRuns | None = None,
) -> Ranking:
    """Return the cheapest plans for the rate of a draft.

    Parameters
    ----------
    draft : Draft
        The facts; its GPUs are those that there are.
    jobs : int, optional
        Processes; default: one per core.
    progress : callable, optional
        Called after each run.
    recorded : RecordedRuns, optional
        Where runs are kept.

    Raises
    ------
    ConfigError
        If there is no rate or no target, or something of the draft cannot be used.
    DataError
        If nothing on these GPUs sustains the rate; with the best that there is.
    """
    if draft.rate_rps is None:
        raise ConfigError("--rate", None, "a plan is for a rate", "Write --rate 25.")
    if not draft.targets:
        rule = "a plan needs a latency target"
        raise ConfigError("--ttft-p95", None, rule, "Write --ttft-p95 1s --tpot-p95 40ms.")
    return rank(scenario_of(draft), jobs=jobs, progress=progress, recorded=recorded)


def sized_plan(
    draft: Draft,
    *,
    jobs: int | None = None,
    progress: Progress | None = None,
    recorded: RecordedRuns | None = None,
) -> tuple[Draft, Ranking]:
    """Return the draft with as many GPUs as its rate takes, and the cheapest plans on these.

    GPUs are those of `enough`, doubled as long as nothing on them sustains the rate.

    Parameters
    ----------
    draft : Draft
        The facts; its number of GPUs is not used.
    jobs, progress, recorded
        As in `plan`.

    Raises
    ------
    ConfigError
        As in `plan`.
    DataError
        If nothing on `MOST_GPUS` GPUs sustains the rate, or no strategy fits.
    """
    asked = enough(draft)
    while True:
        try:
            return asked, plan(asked, jobs=jobs, progress=progress, recorded=recorded)
        except TooFewGpusError:
            if 2 * asked.num_gpus > MOST_GPUS:
                raise
            asked = replace(asked, num_gpus=2 * asked.num_gpus)
