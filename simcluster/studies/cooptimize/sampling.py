"""The online stage by a sampler of Optuna: which plans are judged one after the other."""

from __future__ import annotations

import heapq
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np

from simcluster.errors import ConfigError
from simcluster.rng import stream
from simcluster.studies.cooptimize.choices import Choices
from simcluster.studies.cooptimize.front import hypervolume, undominated
from simcluster.studies.cooptimize.judge import TOLERANCE, Judge, Plan
from simcluster.studies.cooptimize.search import Found, Space, objective_values, pareto
from simcluster.units import FloatArray

_SEEDED: Final = 0.25
"""Share of the evaluations that the promising plans take, at most."""
_MOST_COMPARED, _BLOCK = 512, 512
"""Plans whose acquisition is compared, and how many are computed at once."""
_MARGIN: Final = 1.1
"""Corner of a hypervolume, in ranges of each objective above its least value."""


def sampled(
    space: Space,
    sampler: str,
    num_evaluations: int,
    *,
    stable: int | None = None,
    seed: int = 0,
    simulate: bool = False,
    seeded: bool | None = None,
) -> Found:
    """Search by a sampler of Optuna.

    The sampler's variables are those of `Choices`. A proposal stands for the nearest plan that has
    not been judged and keeps the limits known beforehand: budget, stock, quality, and no more load
    than the database has; the Gaussian processes propose only such plans. Optuna is told the plan
    and not the proposal, so that nothing is judged twice and nothing that cannot be taken. With the
    same seed and recorded simulations an interrupted search repeats its steps without their cost,
    and resumes.

    Parameters
    ----------
    space : Space
        What can be chosen.
    sampler : str
        ``"nsga2"``, ``"gp"`` or ``"random"``.
    num_evaluations : int
        At most so many.
    stable : int, optional
        Stop when so many in a row did not change the front.
    seed : int
        Of the sampler.
    simulate : bool
        Judge by a simulation of all pools together and not by the database.
    seeded : bool, optional
        Whether the first plans are those that a cheaper judgement finds best (`promising`);
        default: with ``"gp"``.

    Raises
    ------
    ConfigError
        If the sampler's packages are not installed.
    """
    try:
        import optuna
    except ImportError:
        raise _missing(sampler, "optuna", "cooptimize") from None
    started = time.perf_counter()
    judge, choices = space.judge, Choices.of(space)
    first: list[int] = []
    if seeded if seeded is not None else sampler == "gp":
        first = promising(choices, simulate, math.ceil(_SEEDED * num_evaluations))

    def judged(number: int) -> Plan:
        return choices.simulated(number) if simulate else choices.plan(number)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna marks its samplers as experimental
        before = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        try:
            study = optuna.create_study(
                directions=["minimize"] * len(judge.table.objectives),
                sampler=_sampler(optuna, sampler, seed, choices),
            )
            told = _told(optuna, study, choices, first, sampler, judged)
            history, front = _collected(judge, told, num_evaluations, stable)
        finally:
            optuna.logging.set_verbosity(before)
    return Found(front, len(history), sampler, time.perf_counter() - started, history)


def _told(
    optuna: Any,
    study: Any,
    choices: Choices,
    first: Sequence[int],
    sampler: str,
    judged: Callable[[int], Plan],
) -> Iterator[Plan]:
    """Judge one plan after the other and tell the study, until all have been."""
    judge, seeds = choices.judge, iter(first)
    variables = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in choices.names}
    while True:
        number, asked = next(seeds, None), None
        if number is None:
            asked = study.ask(variables)
            number = choices.nearest(asked.params)
        if number is None:
            return
        choices.seen[number] = True
        if asked is None or sampler != "nsga2":  # its generations are of its own proposals
            if asked is not None:
                study.tell(asked, state=optuna.trial.TrialState.FAIL)
            study.enqueue_trial(choices.parameters(number))
            asked = study.ask(variables)
        plan = judged(number)
        asked.set_user_attr("violation", max(judge.violations(plan)))
        study.tell(asked, objective_values(plan, judge.table.objectives))
        yield plan


def _collected(
    judge: Judge, plans: Iterator[Plan], num_evaluations: int, stable: int | None
) -> tuple[list[Plan], list[Plan]]:
    """Return what was judged, and the front of it."""
    history: list[Plan] = []
    front: list[Plan] = []
    unchanged = 0
    for plan in plans:
        history.append(plan)
        kept = max(judge.violations(plan)) <= TOLERANCE
        grown = pareto([*front, plan], judge.table.objectives) if kept else front
        unchanged = unchanged + 1 if grown == front else 0
        front = grown
        stopped = stable is not None and bool(front) and unchanged >= stable
        if stopped or len(history) >= num_evaluations:
            break
    return history, front


def _sampler(optuna: Any, sampler: str, seed: int, choices: Choices) -> Any:
    def violation(trial: Any) -> Any:
        return (trial.user_attrs["violation"],)

    # All other limits are kept by every choice.
    limited = None if choices.judge.table.latency_at_most_s is None else violation
    if sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, constraints_func=limited)
    try:
        import torch  # noqa: F401 - Optuna asks for it only when the first plan is drawn
    except ImportError:
        raise _missing(sampler, "torch", "mobo") from None
    return _on_choices(optuna, choices, seed, limited)


def _on_choices(optuna: Any, choices: Choices, seed: int, limited: Any) -> Any:
    """Return Optuna's GP sampler, whose acquisition is the largest among the choices."""
    drawn = stream(seed, "acquisition")

    class OnChoices(optuna.samplers.GPSampler):  # type: ignore[misc]  # untyped
        """Looks for the largest acquisition among plans that can be taken."""

        def _optimize_acqf(self, acqf: Any, best_params: Any) -> Any:
            # Optuna's hook for another way to maximise the acquisition. Its own climbs in a box,
            # most of which is of no plan: cheap and quick at once.
            left = choices.unseen()
            if len(left) > _MOST_COMPARED:
                left = drawn.choice(left, _MOST_COMPARED, replace=False)
            order = [choices.names.index(name) for name in self._variables]
            points = choices.points[left][:, order]
            blocks = np.array_split(points, math.ceil(len(points) / _BLOCK))
            values = [acqf.eval_acqf_no_grad(block) for block in blocks]
            return points[int(np.argmax(np.concatenate(values)))]

        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            space = super().infer_relative_search_space(study, trial)
            self._variables = list(space)
            return space

    return OnChoices(seed=seed, constraints_func=limited, deterministic_objective=True)


def _missing(sampler: str, package: str, extra: str) -> ConfigError:
    return ConfigError(
        "cooptimize.sampler",
        sampler,
        f"needs {package}, which is not installed",
        f'Install simcluster[{extra}], or use sampler = "exhaustive".',
    )


# Where to begin ---------------------------------------------------------------------------------


def promising(choices: Choices, simulate: bool, most: int) -> list[int]:
    """Return the plans to judge first: the front by a cheaper judgement, the most telling first.

    Before simulations the cheaper judgement is the database, before look-ups the estimate from
    throughput and latency at little load of each fleet alone.

    Parameters
    ----------
    choices : Choices
        Which plans there are.
    simulate : bool
        Whether plans are simulated.
    most : int
        At most so many.
    """
    objectives = choices.judge.table.objectives
    latencies = choices.estimates
    if simulate:
        latencies = np.array([choices.plan(number).latency_s for number in range(len(latencies))])
    values = np.array(
        [
            objective_values(Plan((), (), *known), objectives)
            for known in zip(choices.costs, latencies, choices.qualities, strict=True)
        ]
    ).reshape(len(latencies), -1)
    front = undominated(values)
    return [int(front[row]) for row in spread(values[front], most)]


def spread(values: FloatArray, most: int) -> list[int]:
    """Order the points of a front so that the first ones dominate as much as they can.

    Greedily: each is the one that adds most hypervolume to those before it. What a point adds
    falls as others are taken, so most need not be looked at again.

    Parameters
    ----------
    values : ndarray of float64
        Shape ``(n, num_objectives)``, each to be small.
    most : int
        At most so many.
    """
    if not len(values):
        return []
    low = values.min(axis=0)
    unit = (values - low) / np.maximum(np.ptp(values, axis=0), 1e-12)
    corner = [_MARGIN] * values.shape[1]
    heap = [(-hypervolume(unit[[row]], corner), row, 0) for row in range(len(unit))]
    heapq.heapify(heap)
    taken: list[int] = []
    volume = 0.0
    while heap and len(taken) < most:
        gain, row, when = heapq.heappop(heap)
        if when < len(taken):
            gain = volume - hypervolume(unit[[*taken, row]], corner)
            heapq.heappush(heap, (gain, row, len(taken)))
            continue
        taken.append(row)
        volume -= gain
    return taken
