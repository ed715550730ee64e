"""How far goodputs move with the error of the step times: a second interval beside that of chance.

An interval of replications knows chance alone. Step times are wrong too, by amounts that
``docs/accuracy.md`` measures, and alike for all strategies: a GPU that computes more slowly than is
taken slows them all. So a ratio is surer than a level. Each part of a step (computing, reading
memory, the host, links) is moved by its error, all strategies are simulated so at their goodputs
on the same requests, and the shift of each goodput follows from that of its attainment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from simcluster.catalog.specs import LinkSpec
from simcluster.config import LAW, Environment
from simcluster.roofline.kinds import decode_error
from simcluster.runs.cell import Cell
from simcluster.scenario.scenario import Scenario
from simcluster.strategies import FuDG
from simcluster.studies.goodput.estimate import Interval, around
from simcluster.studies.goodput.probe import Outcome, Probe
from simcluster.studies.goodput.rules import Settings
from simcluster.studies.goodput.search import Verdict

Factor = str
"""Part of a step that is moved: a key of `FACTORS`."""

FACTORS: Final[dict[Factor, str]] = {
    "compute": "computing",
    "memory": "reading memory",
    "host": "the host",
    "links": "links",
}
"""In words."""

# Standard deviations of the logarithm. The mean absolute error of a normal one is 0.8 of it.
_ERRORS: Final[dict[str, dict[Factor, float]]] = {
    # Dense models in 16 bits on GPUs with measured kernels. Computing and reading: TTFT is off by
    # 2.3 to 3.7 %, TPOT by 2.4 to 6.3 % (`blis_vllm015`, `l20_five_systems`: docs/accuracy.md).
    # The host and links are assumed: no set measures them apart from the rest of a step.
    "fitted": {"compute": 0.05, "memory": 0.06, "host": 0.15, "links": 0.15},
    # Reachable shares that were not measured on this GPU. Over the seven fitted sets of current
    # kernels in the catalogue they spread by 0.11 (mfu_gemm) and 0.08 (mbu_gemm, mbu_attention);
    # half as much again is assumed, for kernels of other vendors reach less. So are the others.
    "data-sheet": {"compute": 0.15, "memory": 0.12, "host": 0.25, "links": 0.25},
}
ASSUMED: Final[tuple[Factor, ...]] = ("host", "links")
"""Parts whose error is not measured but assumed."""
_MEAN_ABSOLUTE: Final = 0.8  # of a normal distribution, in standard deviations: root of 2 / pi
# Engines of 2023-24 on models they were not fitted to: 9 to 23 %. It stands here, not in the kinds
# of `simcluster.roofline.kinds`: most runs of an old engine are of the model it was fitted to.
_OLDER: Final = 0.2
_UNIT: Final = 1.959963984540054  # of the normal distribution: 97.5 %


def errors_of(environment: Environment) -> dict[Factor, float]:
    """Return the error of each part of a step: standard deviation of its logarithm.

    Empty where nothing is known of it: step times of another source than the roofline, or kernels
    of another than its law.
    """
    if environment.step_times != "roofline" or environment.kernels != LAW:
        return {}
    constants = environment.cluster.gpu.constants_of(environment.engine.kernel_generation)
    known = dict(_ERRORS.get(constants.accuracy, _ERRORS["fitted"]))
    # The parts that decide TPOT are off by at least what TPOT of this kind is off.
    least = decode_error(environment) / _MEAN_ABSOLUTE
    if constants.generation:
        least = max(least, _OLDER)
    return {
        name: max(error, least if name in ("compute", "memory") else 0.0)
        for name, error in known.items()
    }


def slower(environment: Environment, factor: Factor, error: float) -> Environment:
    """Return machines on which one part of a step takes ``exp(error)`` times as long."""
    rate = math.exp(-error)
    cluster, engine = environment.cluster, environment.engine
    gpu = cluster.gpu
    match factor:
        case "compute":
            eight = None if gpu.flops_8bit is None else rate * gpu.flops_8bit
            four = None if gpu.flops_4bit is None else rate * gpu.flops_4bit
            gpu = replace(
                gpu, flops_16bit=rate * gpu.flops_16bit, flops_8bit=eight, flops_4bit=four
            )
        case "memory":
            gpu = replace(gpu, memory_bandwidth=rate * gpu.memory_bandwidth)
        case "host":
            names = ("before_s", "after_s", "per_seq_before_s", "per_seq_after_s", "workers_s")
            longer = {f"host_{name}": getattr(engine, f"host_{name}") / rate for name in names}
            engine = replace(engine, **longer)
        case "links":
            network = None if cluster.network is None else _slower(cluster.network, rate)
            cluster = replace(
                cluster,
                fabric=_slower(cluster.fabric, rate),
                network=network,
                pcie=_slower(cluster.pcie, rate),
            )
    return replace(environment, cluster=replace(cluster, gpu=gpu), engine=engine)


def _slower(link: LinkSpec, rate: float) -> LinkSpec:
    return replace(link, bandwidth=rate * link.bandwidth)


def variants(scenario: Scenario) -> dict[Factor, Scenario]:
    """Return the scenario with each part of a step slower by its error."""
    return {
        factor: replace(scenario, environment=slower(scenario.environment, factor, error))
        for factor, error in errors_of(scenario.environment).items()
    }


Shifts = Mapping[str, Mapping[Factor, float]]
"""By strategy: shift of the logarithm of its goodput when a part of a step is slower by its
error."""


def shifts(
    moved: Mapping[Factor, Scenario],
    verdicts: Mapping[str, Verdict],
    settings: Settings,
    simulate: Callable[[Scenario, Sequence[Cell]], Sequence[Outcome]],
    seed_of: Callable[[int], int],
) -> dict[str, dict[Factor, float]]:
    """Simulate each strategy near its goodput in scenarios that differ in one thing.

    Parameters
    ----------
    moved : mapping of str to Scenario
        What was searched, with one thing moved (`variants`, `moved.changes`).
    verdicts : mapping of str to Verdict
        How the searches ended; those with an estimate are moved.
    settings : Settings
        What was asked of them.
    simulate : callable
        Runs cells of a scenario.
    seed_of : callable
        Seed of a replication.

    Notes
    -----
    One replication at the lower rate of the last stage, which met the same requests before: the
    shift of the attainment over the slope. Links count where strategies move the KV cache or tensor
    parallelism is used.
    """
    found: dict[str, dict[Factor, float]] = {
        name: {} for name, verdict in verdicts.items() if verdict.estimate is not None
    }
    lows = {name: verdicts[name].stages[-1].low for name in found}
    for factor, scenario in moved.items():
        own = [n for n in found if factor != "links" or _uses_links(scenario, n)]
        cells = [
            Cell(n, lows[n].rate_rps, seed_of(lows[n].replications[0]), lows[n].num_requests)
            for n in own
        ]
        for name, came in zip(own, simulate(scenario, cells) if cells else (), strict=True):
            probe, estimate = lows[name], verdicts[name].estimate
            assert estimate is not None, "the others were left out"
            after = Probe(probe.rate_rps, probe.num_requests, (came,), (0,))
            before = replace(after, outcomes=probe.outcomes[:1])
            change = after.margin(settings) - before.margin(settings)
            found[name][factor] = change / estimate.slope
    return found


def _uses_links(scenario: Scenario, name: str) -> bool:
    strategy = scenario.strategy(name)
    several = getattr(strategy, "tp_size", 1) * getattr(strategy, "dp_size", 1) > 1
    return isinstance(strategy, FuDG) or several


def widened(goodput: Interval, own: Mapping[Factor, float]) -> Interval:
    """Return the interval of a goodput with the errors of the step times in it.

    Chance and the parts of a step are independent: their half widths add up in squares.
    """
    half = math.log(goodput.high / goodput.value) if goodput.low > 0 else math.inf
    error = _UNIT * math.sqrt(sum(shift**2 for shift in own.values()))
    return around(math.log(goodput.value), math.hypot(half, error))


def widened_ratio(
    ratio: Interval, first: Mapping[Factor, float], second: Mapping[Factor, float]
) -> Interval:
    """Return the interval of a ratio of goodputs with the errors of the step times in it.

    What moves both alike falls out.
    """
    apart = {f: first.get(f, 0.0) - second.get(f, 0.0) for f in {*first, *second}}
    return widened(ratio, apart)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turns:
    """A part of a step whose error turns the order of two strategies."""

    factor: Factor
    error: float
    """How much longer (positive) or shorter it then takes: logarithm."""


def turning(
    ratio: Interval,
    first: Mapping[Factor, float],
    second: Mapping[Factor, float],
    errors: Mapping[Factor, float],
) -> list[Turns]:
    """Return which parts of a step turn the order of a pair, moved by twice their error at most."""
    found = []
    gain = math.log(ratio.value)
    for factor, error in errors.items():
        apart = first.get(factor, 0.0) - second.get(factor, 0.0)
        if apart and abs(gain / apart) <= _UNIT:
            found.append(Turns(factor=factor, error=-gain / apart * error))
    return found
