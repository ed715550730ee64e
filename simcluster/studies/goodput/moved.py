"""What moves goodputs besides the machines: longer prompts and outputs, tighter targets.

What a plan is made for is known about as badly as the machines are. Each length is made a tenth
longer and each target a tenth tighter, all strategies are simulated so at their goodputs on the
same requests, and the shift of each goodput follows from that of its attainment (`errors.shifts`).
A tenth is a step to look at, not an error: it enters no interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from simcluster.config import TARGET_KEYS, SloConfig, SloTargets
from simcluster.scenario.scenario import Scenario
from simcluster.studies.goodput.errors import Factor
from simcluster.workload.lengths import LongerLengths
from simcluster.workload.settings import LengthSettings, WorkloadSettings

TENTH: Final = math.log(1.1)
"""Of how much longer lengths are, or latencies count as: a logarithm."""

WORDS: Final[dict[Factor, tuple[str, str]]] = {
    "prompts": ("longer", "shorter"),
    "outputs": ("longer", "shorter"),
    "TTFT target": ("tighter", "looser"),
    "TPOT target": ("tighter", "looser"),
    "end-to-end target": ("tighter", "looser"),
    "ITL target": ("tighter", "looser"),
}
"""What is moved, with the words for a positive and a negative step."""

_LENGTHS: Final = ("prompts", "outputs")
_TARGETS: Final = {
    "ttft_s": "TTFT target",
    "tpot_s": "TPOT target",
    "e2el_s": "end-to-end target",
    "itl_s": "ITL target",
}


def changes(scenario: Scenario) -> dict[Factor, Scenario]:
    """Return the scenario with each length a tenth longer, and with each target a tenth tighter.

    Without the lengths where they come with a trace, with clients or with sessions: those are what
    was measured, and longer turns would not follow from one another.
    """
    workload, slo = scenario.workload, scenario.environment.slo
    found: dict[Factor, Scenario] = {}
    if workload.length_distribution is not None:
        for name, factors in (("prompts", (1.1, 1.0)), ("outputs", (1.0, 1.1))):
            found[name] = replace(scenario, workload=longer(workload, *factors))
    for key in TARGET_KEYS:
        if slo.has_target(key):
            environment = replace(scenario.environment, slo=tighter(slo, key))
            found[_TARGETS[key]] = replace(scenario, environment=environment)
    return found


def longer(workload: WorkloadSettings, prompt: float, output: float) -> WorkloadSettings:
    """Return a workload whose prompts and outputs, of every class, are longer by factors."""

    def one(lengths: LengthSettings | None) -> LengthSettings | None:
        if lengths is None:
            return None
        assert not isinstance(lengths, str), "names were replaced by their tables"
        return LongerLengths(of=lengths, prompt=prompt, output=output)

    classes = workload.classes and tuple(
        replace(c, lengths=one(c.lengths)) for c in workload.classes
    )
    return replace(workload, lengths=one(workload.lengths), classes=classes)


def tighter(slo: SloConfig, key: str) -> SloConfig:
    """Return targets of which one is a tenth tighter, for every class."""

    def one(targets: SloTargets) -> dict[str, Any]:
        value = getattr(targets, key)
        return {} if value is None else {key: value / 1.1}

    classes = slo.classes and {name: replace(own, **one(own)) for name, own in slo.classes.items()}
    return replace(slo, classes=classes, **one(slo))


def steps(shifts: Mapping[Factor, float]) -> dict[Factor, float]:
    """Return the size of the step of each that was moved: logarithms (`errors.turning`)."""
    return dict.fromkeys(shifts, TENTH)


def relative_change(factor: Factor, step: float) -> float:
    """Return by which share of itself a length or a target changes at a step.

    Parameters
    ----------
    factor : str
        A key of `WORDS`.
    step : float
        A logarithm: of the factor of a length, or of what a target is divided by.

    Returns
    -------
    float
        What is added to 1: positive where the length or the target grows.
    """
    return math.expm1(step if factor in _LENGTHS else -step)
