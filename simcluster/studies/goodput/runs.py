"""Goodputs of the strategies of a scenario: the simulator answers their searches, on all cores."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np

from simcluster.config import TARGETS, SloConfig
from simcluster.errors import ConfigError, DataError
from simcluster.frames.metrics import (
    mean_gpus,
    measured_window,
    members_of,
    met_targets,
    request_metrics,
)
from simcluster.frames.schema import Columns
from simcluster.rng import stream
from simcluster.roofline.base import StepShape
from simcluster.runs.cell import Cell, digest_of
from simcluster.runs.executor import Runner
from simcluster.runs.simulate import run, workload_of
from simcluster.scenario.scenario import Scenario
from simcluster.strategies import Strategy
from simcluster.strategies.base import dry_run
from simcluster.studies.goodput import arguments
from simcluster.studies.goodput.errors import Shifts, shifts
from simcluster.studies.goodput.pairs import (
    INDIFFERENCE,
    Compared,
    compare_all,
    wanted_sizes,
)
from simcluster.studies.goodput.probe import PARTS, Outcome, Wanted
from simcluster.studies.goodput.rules import RULES, Settings
from simcluster.studies.goodput.search import Located, Verdict, search
from simcluster.units import FloatArray
from simcluster.workload import WorkloadSettings
from simcluster.workload.base import BoolArray, EndlessArrivals
from simcluster.workload.build import fit

W = TypeVar("W")
R = TypeVar("R")
V = TypeVar("V")

_MANY: Final = 500_000
LATENCIES: Final = ("ttft", "tpot", "e2el")
"""Of which percentiles are told."""
PERCENTILES: Final = (50, 90, 95, 99)
WARMUP: Final = 0.3
"""Share of the arrival time that is not counted: about six stays of a request. What the empty start
still adds to a goodput then is 0 to 2 % (measured: docs/goodput.md)."""
TARGETS_PER_RUN: Final = 20.0
"""Shortest run, in targets of the TTFT or the end-to-end latency."""
_LOOKS: Final = 3
"""Times that open pairs may get more replications, at most."""
Progress = Callable[[int, int], None]
"""Called with the number of strategies that are done and of all runs so far."""


Simulate = Callable[[Scenario, Sequence[Cell]], Sequence[Outcome]]
"""Runs cells, in any order and anywhere, and returns their outcomes in the order of the cells."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """Goodputs of the strategies of a scenario, on the same requests."""

    scenario: Scenario
    """What was searched."""
    settings: Settings
    """How."""
    seed: int
    """What the seeds of the replications follow from."""
    num_gpus: dict[str, int]
    """GPUs of each strategy; of an autoscaled one those of its most instances in service."""
    verdicts: dict[str, Verdict]
    """By strategy, in the order of the scenario."""
    ramps_s: dict[str, float] = dataclasses.field(default_factory=dict)
    """Of the autoscaled strategies: the least time until all instances can serve (s)."""
    indifference: float = INDIFFERENCE
    """Difference of two goodputs, as a share, within which either may be taken."""
    shifts: Shifts = dataclasses.field(default_factory=dict)
    """What the errors of the step times do to each goodput; empty where nobody asked."""

    def comparisons(self) -> list[Compared]:
        """Every pair of strategies that have a goodput, the best first (`compare_verdicts`)."""
        return compare_all(self.verdicts, indifference=self.indifference)

    def mean_gpus(self, name: str) -> float:
        """GPUs that a strategy holds at its goodput, mean over what is counted of its runs.

        NaN if it is autoscaled and has no goodput, or if its runs do not say.
        """
        if name not in self.ramps_s:
            return float(self.num_gpus[name])
        verdict = self.verdicts[name]
        if verdict.recommended is not None:
            return verdict.recommended.mean("mean_gpus")
        if verdict.estimate is None:
            return math.nan
        stage = verdict.stages[-1]
        return stage.mean_at(stage.place_of(self.settings), "mean_gpus")


def find(
    scenario: Scenario,
    *,
    seed: int | None = None,
    tolerance: float = 0.03,
    replications: int = 8,
    max_requests: int = 200_000,
    indifference: float = INDIFFERENCE,
    jobs: int | None = None,
    dask: str | None = None,
    simulate: Simulate | None = None,
    progress: Progress | None = None,
    starts: Mapping[str, float | Located] | None = None,
    searched: Callable[[Found], None] | None = None,
    step_time_errors: bool = False,
) -> Found:
    """Find the goodput of every strategy of `scenario`.

    Parameters
    ----------
    scenario : Scenario
        Its rates, run length, seeds but the first, warm-up and cool-down are not used.
    seed : int, optional
        The seeds of the replications are drawn from this one; default: the scenario's first.
    tolerance : float
        Half width of the 95 % interval over the goodput, > 0.
    replications : int
        Runs at each of the two rates that a goodput rests on, >= 3; the same for all strategies.
    max_requests : int
        Longest run (requests).
    indifference : float
        Difference of two goodputs, as a share, within which either may be taken: pairs that are
        neither decided nor within it get more replications.
    jobs : int, optional
        Processes; default: one per core. 1 runs in this process.
    dask : str, optional
        Address of a Dask scheduler, in place of the processes.
    simulate : callable, optional
        Runs the cells in place of `simulate_cells`.
    progress : callable, optional
        Called after each round of runs.
    starts : mapping of str to float or Located, optional
        Where to start with a strategy, if better is known than what the step times say: a rate
        (requests/s), or about where attainment crosses the target.
    searched : callable, optional
        Called with the goodputs before pairs are compared.
    step_time_errors : bool
        Simulate what the errors of the step times do to each goodput (`errors.shifts`).

    Raises
    ------
    ConfigError
        If there are no targets, the arrivals cannot be drawn anew at any rate, a strategy does not
        fit the machines, or an argument cannot be meant.
    DataError
        If no strategy meets the targets even when requests are alone.
    """
    arguments.refuse(
        scenario,
        seed=seed,
        tolerance=tolerance,
        replications=replications,
        max_requests=max_requests,
        indifference=indifference,
    )
    check(scenario)
    slo, strictest = scenario.environment.slo, scenario.environment.slo.strictest()
    waits = [t for t in (strictest.ttft_s, strictest.e2el_s) if t is not None]
    settings = Settings(
        target=slo.attainment,
        targets=targets_of(slo),
        tolerance=tolerance,
        replications=replications,
        max_requests=max_requests,
        least_s=TARGETS_PER_RUN * min(waits, default=0.0),
    )
    seed = scenario.run.seeds[0] if seed is None else seed
    guesses = {s.name: guess(scenario, s) for s in scenario.strategies}
    if simulate is None:
        simulate = functools.partial(simulate_cells, runner=Runner(jobs, dask))
    known, num_runs = starts or {}, 0

    def ask(wanted: list[tuple[str, Wanted]]) -> Sequence[Outcome]:
        nonlocal num_runs
        num_runs += len(wanted)
        cells = [
            Cell(name, one.rate_rps, replication_seed(seed, one.replication), one.num_requests)
            for name, one in wanted
        ]
        return simulate(scenario, cells)

    own = {name: _with_ramp(settings, guess.ramp_s) for name, guess in guesses.items()}
    tell = (lambda ended: progress(ended, num_runs)) if progress else None
    verdicts = answer(
        {n: search(known.get(n, guess.rate_rps), own[n]) for n, guess in guesses.items()}, ask, tell
    )
    if all(v.status == "unattainable" for v in verdicts.values()):
        best = "; ".join(f"{name} {best_achievable(v)}" for name, v in verdicts.items())
        share = 100 * slo.attainment
        raise DataError(
            f"no strategy meets the targets for {share:g} % of the requests even when they are "
            f"alone: {best}. Loosen slo.ttft_s, slo.tpot_s or slo.e2el_s."
        )
    found = Found(
        scenario=scenario,
        settings=settings,
        seed=seed,
        num_gpus={name: own.num_gpus for name, own in guesses.items()},
        verdicts=verdicts,
        ramps_s={n: own.ramp_s for n, own in guesses.items() if own.ramp_s is not None},
        indifference=indifference,
    )
    if searched is not None:
        searched(found)
    for _ in range(_LOOKS):
        sizes = wanted_sizes(found.verdicts, found.comparisons(), RULES.most)
        if not sizes:
            break
        larger = {n: search(found.verdicts[n], own[n], size=size) for n, size in sizes.items()}
        verdicts = {**found.verdicts, **answer(larger, ask)}
        found = dataclasses.replace(found, verdicts=verdicts)
    if step_time_errors:
        seed_of = functools.partial(replication_seed, seed)
        moved = shifts(scenario, found.verdicts, settings, simulate, seed_of)
        found = dataclasses.replace(found, shifts=moved)
    return found


def targets_of(slo: SloConfig) -> tuple[float, ...]:
    """Return the share wanted of each criterion, in the order of `outcome`."""
    return tuple(slo.wanted(key) for key in slo.counted) * max(1, len(slo.classes or ()))


def _with_ramp(settings: Settings, ramp_s: float | None) -> Settings:
    """Return settings whose runs count nothing before all instances could have started."""
    if not ramp_s:
        return settings
    whole_s = ramp_s / WARMUP
    least_s = max(settings.least_s, whole_s)
    return dataclasses.replace(settings, least_s=least_s, scout_s=whole_s)


def best_achievable(verdict: Verdict) -> str:
    """Return the latencies of requests that are alone, in words."""
    probe = verdict.alone
    if probe is None:
        return ""
    parts = [
        f"{key.upper()} P50 {probe.mean(f'{key}_s_p50'):.3g} s, "
        f"P90 {probe.mean(f'{key}_s_p90'):.3g} s"
        for key in LATENCIES
        if not math.isnan(probe.mean(f"{key}_s_p50"))
    ]
    return ", ".join(parts) or "finishes no request"


def check(scenario: Scenario) -> None:
    """Refuse what has no goodput to search for.

    Raises
    ------
    ConfigError
        If there are no targets or all requests must meet them, a strategy routes between models,
        or the arrivals cannot be drawn at any rate.
    """
    slo = scenario.environment.slo
    if not slo.has_targets:
        remedy = "Add slo.ttft_s, slo.tpot_s or slo.e2el_s."
        raise ConfigError("slo", None, "a goodput needs at least one latency target", remedy)
    if slo.attainment >= 1:
        rule = "no rate keeps every single request of an endless stream within targets"
        raise ConfigError("slo.attainment", slo.attainment, rule, "Use 0.999 or less.")
    for strategy in scenario.strategies:
        if strategy.kind == "routed":
            rule = "a search takes strategies of one model on one type of GPU"
            remedy = "Use `simcluster compare` with rates."
            raise ConfigError(f"strategy.{strategy.name}.kind", strategy.kind, rule, remedy)
    process = scenario.workload.arrival_process
    if not isinstance(process, EndlessArrivals) or process.own_rate_rps is not None:
        raise ConfigError(
            "workload.arrivals",
            getattr(process, "kind", "trace"),
            "a search needs arrivals that can be drawn anew at any rate and length",
            "Use poisson, gamma, constant or on-off, or `simcluster compare` with rates.",
        )


# Where to start ---------------------------------------------------------------------------------


class Guess(NamedTuple):
    """Where the search for a goodput starts."""

    rate_rps: float
    """About the most that the strategy can carry (requests/s)."""
    num_gpus: int
    """Its GPUs; of an autoscaled strategy those of its most instances in service."""
    ramp_s: float | None
    """Of an autoscaled strategy: the least time until all instances can serve (s)."""


def guess(scenario: Scenario, strategy: Strategy) -> Guess:
    """Return a rate (requests/s) near the most that `strategy` can carry, and its GPUs.

    Each instance prefills prompts one at a time and decodes in the largest batch that its memory,
    its sequence limit and the TPOT target allow, with lengths at their means. Where instances come
    and go the most in service are meant.
    """
    environment = scenario.environment
    cluster = dry_run(environment, strategy)
    lengths = scenario.workload.length_distribution
    assert lengths is not None, "endless arrivals have a length distribution"
    prompts, outputs = lengths.draw(1000, stream(0, "lengths"))
    longest = environment.model.max_model_len
    prompt = int(np.minimum(prompts, longest).mean())
    output = float(np.minimum(outputs, longest).mean())
    context = prompt + int(output / 2)
    rates = {"prefill": 0.0, "decode": 0.0, "mixed": 0.0}
    count = Counter(placed.role for placed in cluster.placed)
    growth = {role: most / count[role] for role, most in cluster.most_instances.items()}
    for placed in cluster.placed:
        instance, pool = placed.instance, placed.role
        lane: Any = getattr(instance, "lanes", [instance])[0]
        seqs = getattr(strategy, "max_num_seqs", None) or environment.engine.max_num_seqs
        fit = instance.free_blocks // max(1, instance.blocks_for(context))
        batch = max(1, min(seqs, fit))
        limit = environment.slo.strictest().tpot_s or math.inf
        while batch > 1 and _decode_s(lane, batch, context) > limit:
            batch = batch * 3 // 4
        decode_s = (output - 1) * _decode_s(lane, batch, context) / batch
        prefill_s = instance.prefill_s(max(1, prompt))
        busy_s = {"prefill": prefill_s, "decode": decode_s, "mixed": prefill_s + decode_s}[pool]
        rates[pool] += growth[pool] / max(busy_s, 1e-9)
    split = [rates[pool] for pool in ("prefill", "decode") if rates[pool]]
    return Guess(
        rate_rps=rates["mixed"] + (min(split) if split else 0.0),
        num_gpus=cluster.most_gpus,
        ramp_s=max((scaled.ramp_s for scaled in cluster.scaled), default=None),
    )


def _decode_s(lane: Any, batch: int, context: int) -> float:
    shape = StepShape(batch, batch * context, (), batch, batch * context)
    return float(lane.step_time.step_s(shape))


# Runs -------------------------------------------------------------------------------------------


def outcome(columns: Columns, scenario: Scenario, rate_rps: float) -> Outcome:
    """Return what the search needs of one run.

    Parameters
    ----------
    columns : mapping or pandas.DataFrame
        The requests frame: all requests.
    scenario : Scenario
        Its targets, criterion and metric.
    rate_rps : float
        Offered rate (requests/s).

    Returns
    -------
    Outcome
        Without the first 30 % of the arrival time, but for its course. One criterion if the targets
        count jointly, else one for each target; with classes as many for each class.
    """
    slo = scenario.environment.slo
    arrival = np.asarray(columns["arrival_s"], dtype=np.float64)
    end = float(arrival[-1])
    kept = measured_window(columns, WARMUP * end, 0.0)
    met = met_targets(columns, slo)
    names = slo.counted
    latency = request_metrics(columns, slo.metric)
    members = members_of(columns, slo)
    statistics = _latencies(latency, kept) | _attainments(met, kept, members)
    groups = [kept & own for own in members.values()] or [kept]
    all_of = list(members.values()) or [np.ones(len(arrival), dtype=np.bool_)]
    statistics["output_tokens"] = float(np.asarray(columns["num_output_tokens"])[kept].mean())
    late = kept & (arrival >= (1 + WARMUP) / 2 * end)
    counted = int(kept.sum())
    rejected = np.asarray(columns["status"], dtype=object) == "rejected"
    stay = latency["e2el_s"][kept]
    stay = stay[~np.isnan(stay)]
    left = np.asarray(columns["last_output_s"], dtype=np.float64)
    came = int(((arrival > end / 2) & ~rejected).sum())
    went = int(((left > end / 2) & (left <= end)).sum())
    prompt, output = (np.asarray(columns[name]) for name in ("prompt_len", "output_len"))
    # What was asked for, whatever a strategy rejects: else its mean would not be the expected one.
    in_system, served = flow(arrival[~rejected], left, end)
    fits = kept & (prompt + output <= scenario.environment.model.max_model_len)
    return Outcome(
        counted=tuple(int(group.sum()) for group in groups for _ in names),
        met=tuple(int(met[name][group].sum()) for group in groups for name in names),
        residence_s=float(stay.mean()) if stay.size else math.nan,
        arrivals=math.log(counted / ((1 - WARMUP) * end * rate_rps)),
        controls=tuple(
            math.log(tokens.sum() / (counted * mean)) if tokens.size else 0.0
            for tokens, mean in zip(
                (prompt[fits], output[fits]), mean_lengths(scenario), strict=True
            )
        ),
        drift=max(_drift(met["joint"], group, group & late) for group in groups),
        growth=(came - went) / max(came, 1),
        course=course(
            [met[name][own] for own in all_of for name in names],
            [arrival[own] for own in all_of for _ in names],
            end,
        ),
        backlogs=in_system,
        served=served,
        end_s=end,
        statistics=statistics,
    )


def course(
    met: Sequence[BoolArray], arrival: Sequence[FloatArray], end_s: float
) -> tuple[float, ...]:
    """Return the share that met each criterion in each part of a run (`Outcome.course`).

    Parameters
    ----------
    met : sequence of ndarray
        Of each criterion: which of the requests that it is about met it.
    arrival : sequence of ndarray
        When they arrived (s), of the same shapes.
    end_s : float
        Last arrival of the run (s).
    """
    shares = []
    for flags, times in zip(met, arrival, strict=True):
        part = np.minimum((times / end_s * PARTS).astype(np.int64), PARTS - 1)
        came = np.bincount(part, minlength=PARTS)
        kept = np.bincount(part, weights=flags, minlength=PARTS)
        shares.append(np.where(came > 0, kept / np.maximum(came, 1), 1.0))
    return tuple(np.stack(shares, axis=-1).ravel().tolist())


def flow(
    arrival_s: FloatArray, left_s: FloatArray, end_s: float
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the requests in the system at the end of each part of a run, and those that left.

    `Outcome.backlogs` and `Outcome.served`.

    Parameters
    ----------
    arrival_s, left_s : ndarray
        When requests came, rising, and when they left (s); NaN of one that never left.
    end_s : float
        Last arrival of the run (s).
    """
    edges = np.linspace(0.0, end_s, PARTS + 1)[1:]
    gone = np.searchsorted(np.sort(left_s[~np.isnan(left_s)]), edges, side="right")
    came = np.searchsorted(arrival_s, edges, side="right")
    return tuple((came - gone).tolist()), tuple(np.diff(gone, prepend=0).tolist())


def _latencies(latency: Mapping[str, FloatArray], kept: BoolArray) -> dict[str, float]:
    """Return percentiles (s) of the requests that are counted; NaN where there are none."""
    found: dict[str, float] = {}
    for key in LATENCIES:
        values = latency[f"{key}_s"][kept]
        values = values[~np.isnan(values)]
        for percent in PERCENTILES:
            value = float(np.percentile(values, percent)) if values.size else math.nan
            found[f"{key}_s_p{percent}"] = value
    return found


def _attainments(
    met: Mapping[str, BoolArray], kept: BoolArray, members: Mapping[str, BoolArray]
) -> dict[str, float]:
    """Return the shares within each target, of all that are counted and of each class."""
    found = {f"{key}_attainment": float(met[key][kept].mean()) for key in TARGETS}
    for name, own in members.items():
        for key in (*TARGETS, "joint"):
            within = met[key][kept & own]
            found[f"{name}.{key}_attainment"] = float(within.mean()) if within.size else math.nan
    return found


def _drift(met: BoolArray, all_: BoolArray, late: Any) -> float:
    """Return the share of `all_` that met its targets less that of the `late` ones; 0 of none."""
    return float(met[all_].mean() - met[late].mean()) if late.any() else 0.0


@functools.lru_cache(maxsize=16)
def _mean_lengths(
    settings: WorkloadSettings, max_model_len: int, contents: str
) -> tuple[float, float]:
    """Return the means of `settings`, for as long as its files have the same `contents`."""
    lengths = settings.length_distribution
    assert lengths is not None, "endless arrivals have a length distribution"
    drawn = lengths.draw(_MANY, stream(0, "mean lengths"))
    prompt, output, rejected = fit(*drawn, max_model_len, settings.on_too_long)
    return float((prompt * ~rejected).mean()), float((output * ~rejected).mean())


def mean_lengths(scenario: Scenario) -> tuple[float, float]:
    """Return the expected prompt and output (tokens) of a request; those rejected have none.

    From half a million draws: to 0.3 % where the standard deviation is twice the mean.
    """
    longest = scenario.environment.model.max_model_len
    return _mean_lengths(scenario.workload, longest, digest_of(scenario.workload))


def simulate_cell(scenario: Scenario, cell: Cell) -> Outcome:
    """Simulate one run of a search: that of `simulate` with as many requests."""
    assert cell.rate_rps is not None
    strategy = scenario.strategy(cell.strategy)
    result = run(scenario.environment, strategy, workload_of(scenario, cell), seed=cell.seed)
    requests = result.columns["requests"]
    end_s = float(requests["arrival_s"][-1])
    one = outcome(requests, scenario, cell.rate_rps)
    instances = result.columns["instances"]
    usage = {
        f"peak_kv_usage.{pool}": float(instances["peak_kv_usage"][instances["pool"] == pool].max())
        for pool in np.unique(instances["pool"].astype(str))
    }
    more = {
        "mean_gpus": mean_gpus(instances, WARMUP * end_s, end_s),
        "preemptions": float(instances["num_preemptions"].sum()),
        **usage,
    }
    return dataclasses.replace(one, statistics={**one.statistics, **more})


def simulate_cells(
    scenario: Scenario, cells: Sequence[Cell], runner: Runner | None = None
) -> list[Outcome]:
    """Run `cells`; default: on all cores of this machine, with nothing kept."""
    return (runner or Runner()).cells(simulate_cell, scenario, cells, made=Outcome)


def replication_seed(seed: int, replication: int) -> int:
    """Return the seed of the run of a replication: `simulate` with it meets the same requests."""
    return int(stream(seed, "replications", str(replication)).integers(2**31))


def answer(
    searches: Mapping[str, Generator[list[W], list[R], V]],
    ask: Callable[[list[tuple[str, W]]], Sequence[R]],
    told: Callable[[int], None] | None = None,
) -> dict[str, V]:
    """Let searches go on in rounds, all runs that they want at once, and return how each ends.

    Parameters
    ----------
    searches : mapping of str to generator
        Each yields the runs that it wants, is sent their outcomes, and returns what it found.
    ask : callable
        Does runs: of whom, and what is wanted. Returns the outcomes in the same order.
    told : callable, optional
        Called after each round with the number of searches that have ended.
    """
    ended: dict[str, V] = {}
    answers: dict[str, Any] = dict.fromkeys(searches)
    while answers:
        wanted: dict[str, list[W]] = {}
        for name, outcomes in answers.items():
            try:
                wanted[name] = searches[name].send(outcomes)
            except StopIteration as end:
                ended[name] = end.value
        if told:
            told(len(ended))
        todo = [(name, one) for name, batch in wanted.items() for one in batch]
        came = iter(ask(todo) if todo else ())
        answers = {name: list(itertools.islice(came, len(b))) for name, b in wanted.items()}
    return {name: ended[name] for name in searches}
