"""Goodputs of the strategies of a scenario: the simulator answers their searches, on all cores."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, TypeVar

import numpy as np

from simcluster.config import TARGETS, SloConfig
from simcluster.errors import ConfigError, DataError
from simcluster.frames.metrics import (
    mean_gpus,
    members_of,
    met_targets,
    request_metrics,
)
from simcluster.frames.schema import Columns
from simcluster.rng import stream
from simcluster.roofline.base import StepShape
from simcluster.runs.cell import Cell, digest_of
from simcluster.runs.executor import Runner
from simcluster.runs.recorded import RecordedRuns
from simcluster.runs.simulate import run, workload_of
from simcluster.runs.views import Viewed
from simcluster.scenario.scenario import Scenario
from simcluster.strategies import Strategy
from simcluster.strategies.base import dry_run
from simcluster.studies.goodput import arguments, arrivals
from simcluster.studies.goodput.arrivals import Load, TraceChance
from simcluster.studies.goodput.errors import Shifts, shifts, variants
from simcluster.studies.goodput.estimate import Interval, logit
from simcluster.studies.goodput.moved import changes
from simcluster.studies.goodput.pairs import (
    INDIFFERENCE,
    Compared,
    compare_all,
    wanted_sizes,
)
from simcluster.studies.goodput.probe import PARTS, Outcome, Wanted
from simcluster.studies.goodput.rules import RULES, Settings
from simcluster.studies.goodput.search import Located, Search, Verdict, search
from simcluster.studies.goodput.users import search_users
from simcluster.studies.work import Progress, Work
from simcluster.units import FloatArray, IntArray
from simcluster.workload import WorkloadSettings
from simcluster.workload.base import BoolArray, EndlessArrivals
from simcluster.workload.build import fit
from simcluster.workload.closed_loop import AnyConcurrency
from simcluster.workload.trace_blocks import TraceBlocks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

W = TypeVar("W")
R = TypeVar("R")
V = TypeVar("V")

_MANY: Final = 500_000
LATENCIES: Final = ("ttft", "tpot", "e2el")
"""Of which percentiles are told."""
PERCENTILES: Final = (50, 90, 95, 99)
WARMUP: Final = RULES.warmup
"""Share of the arrival time that is not counted: about six stays of a request. What the empty start
still adds to a goodput then is up to 0.5 % (docs/goodput.md, "How a run begins and ends")."""
TARGETS_PER_RUN: Final = 20.0
"""Shortest run, in targets of the TTFT or the end-to-end latency."""
_LIKELY: Final = 1.3  # of the least stage: what a search takes with its single runs
_LOOKS: Final = 3
"""Times that open pairs may get more replications, at most."""

Simulate = Callable[[Scenario, Sequence[Cell]], Sequence[Outcome]]
"""Runs cells, in any order and anywhere, and returns their outcomes in the order of the cells."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Found(Viewed):
    """Goodputs of the strategies of a scenario, on the same requests.

    A notebook shows them as a table; `to_frame`, `report` and `plot_goodput` show them otherwise.
    """

    _VIEW: ClassVar[str] = "simcluster.studies.goodput.views"

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
    sensitivity: Shifts = dataclasses.field(default_factory=dict)
    """What longer requests and tighter targets do to each (`moved.changes`); likewise."""
    levels: Mapping[float, Mapping[str, Verdict]] = dataclasses.field(default_factory=dict)
    """Searches for other attainments (0 to 1) of the strategies that have a goodput; empty where
    nobody asked."""
    load: Load | None = None
    """What was varied; None for the rate of arrivals that follow a law."""
    chances: dict[str, TraceChance] = dataclasses.field(default_factory=dict)
    """What a trace as a sample adds to the interval of each goodput; empty without a trace."""

    def __repr__(self) -> str:
        return f"Found(goodputs of {', '.join(self.verdicts)})"

    @property
    def simulated(self) -> Scenario:
        """What the runs simulate: the scenario, with arrivals at any load and length."""
        return self.scenario if self.load is None else self.load.scenario

    @property
    def unit(self) -> str:
        """Unit of goodputs: requests/s, or users in a closed loop."""
        return "requests/s" if self.load is None else self.load.unit

    def goodput(self, name: str) -> Interval | None:
        """The goodput of a strategy in `unit`: users are whole. None where it has none."""
        own = self.verdicts[name].goodput
        return None if own is None else self.told(own)

    def plot_goodput(self, ax: Axes | None = None) -> Axes:
        """Draw each goodput with its 95 % interval, into new axes or `ax`."""
        return self._draw("plot_goodput", ax)

    def told(self, goodput: Interval) -> Interval:
        """Return a goodput as it is told: users are whole."""
        return arrivals.whole_users(goodput) if self.unit == "users" else goodput

    def comparisons(self) -> list[Compared]:
        """Every pair of strategies that have a goodput, the best first (`compare_verdicts`)."""
        pairs = compare_all(self.verdicts, indifference=self.indifference)
        if self.unit == "requests/s":
            return pairs
        own = {name: self.goodput(name) for name in self.verdicts}
        return [
            arrivals.in_whole_users(pair, first, second)
            for pair in pairs
            if (first := own[pair.first]) and (second := own[pair.second])
        ]

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
    recorded: RecordedRuns | None = None,
    starts: Mapping[str, float | Located] | None = None,
    searched: Callable[[Found], None] | None = None,
    step_time_errors: bool = False,
    sensitivity: bool = False,
    levels: Sequence[float] = (),
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
        Called after each run, or of runs that `simulate` does after each round.
    recorded : RecordedRuns, optional
        Where runs are kept as soon as each is done, and taken from if they are there.
    starts : mapping of str to float or Located, optional
        Where to start with a strategy, if better is known than what the step times say: a rate
        (requests/s; of a closed loop users), or about where attainment crosses the target.
    searched : callable, optional
        Called with the goodputs before pairs are compared.
    step_time_errors : bool
        Simulate what the errors of the step times do to each goodput (`errors.shifts`).
    sensitivity : bool
        Simulate what lengths and targets that differ by a tenth do to each goodput.
    levels : sequence of float
        Other attainments, above 0 and below 1, whose rates are searched too: of every criterion.

    Raises
    ------
    ConfigError
        If there are no targets, the arrivals cannot be drawn at any rate, a trace is too short
        for an interval, a strategy does not fit the machines, or an argument cannot be meant.
    DataError
        If no strategy meets the targets even when requests are alone, or a trace cannot be read.
    """
    arguments.refuse(
        scenario,
        seed=seed,
        tolerance=tolerance,
        replications=replications,
        max_requests=max_requests,
        indifference=indifference,
        levels=levels,
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
    guesses = guesses_of(scenario)
    work, known = Work(progress), starts or {}
    for name in guesses:
        work.expect(name, _LIKELY * 2 * replications * RULES.least_requests)

    def did(cell: Cell) -> None:
        work.did(cell.strategy, cell.num_requests or 0)

    if simulate is None:
        runner = Runner(jobs, dask, recorded)
        simulate = functools.partial(simulate_cells, runner=runner, done=did)
        did_round = None
    else:
        did_round = did
    load = load_of(scenario, guesses)
    settings = dataclasses.replace(settings, even=not load.meaning)

    def ask(wanted: list[tuple[str, Wanted]]) -> Sequence[Outcome]:
        for name, own in itertools.groupby(wanted, key=lambda pair: pair[0]):
            work.more(name, _yet([one for _, one in own], replications))
        cells = [
            Cell(name, one.rate_rps, replication_seed(seed, one.replication), one.num_requests)
            for name, one in wanted
        ]
        came = simulate(load.scenario, cells)
        if did_round:
            for cell in cells:
                did_round(cell)
        return came

    begins = {name: known.get(name, _begin(load, guess)) for name, guess in guesses.items()}
    own = {n: _lasting(settings, load, guess, begins[n]) for n, guess in guesses.items()}
    looking = _search_of(load)
    verdicts = answer({n: looking(begins[n], own[n]) for n in guesses}, ask, ended=work.end)
    _refuse_unattainable(verdicts, slo)
    found = Found(
        scenario=scenario,
        settings=settings,
        seed=seed,
        num_gpus={name: own.num_gpus for name, own in guesses.items()},
        verdicts=verdicts,
        ramps_s={n: own.ramp_s for n, own in guesses.items() if own.ramp_s is not None},
        indifference=indifference,
        load=load,
    )
    if searched is not None:
        searched(_with_chance(found))
    found = _with_pairs_settled(
        found, lambda at, name, size: looking(at.verdicts[name], own[name], size=size), ask
    )
    shifted = functools.partial(
        shifts,
        settings=settings,
        simulate=simulate,
        seed_of=functools.partial(replication_seed, seed),
    )
    if step_time_errors:
        found = dataclasses.replace(found, shifts=shifted(variants(load.scenario), found.verdicts))
    if sensitivity:
        moved = shifted(changes(load.scenario), found.verdicts)
        found = dataclasses.replace(found, sensitivity=moved)
    others = {level: _at_level(found, level, own, ask) for level in levels}
    return _with_chance(dataclasses.replace(found, levels=others))


def _refuse_unattainable(verdicts: Mapping[str, Verdict], slo: SloConfig) -> None:
    """Refuse targets that no strategy meets, with what requests get that are alone."""
    if any(verdict.status != "unattainable" for verdict in verdicts.values()):
        return
    best = "; ".join(f"{name} {best_achievable(v)}" for name, v in verdicts.items())
    raise DataError(
        f"no strategy meets the targets for {100 * slo.attainment:g} % of the requests even when "
        f"they are alone: {best}. Loosen slo.ttft_s, slo.tpot_s or slo.e2el_s."
    )


Ask = Callable[[list[tuple[str, Wanted]]], Sequence[Outcome]]
"""Does runs: of whom, and what is wanted. Returns the outcomes in the same order."""


def _with_pairs_settled(
    found: Found, grown: Callable[[Found, str, int], Search], ask: Ask
) -> Found:
    """Return the searches with more replications where pairs are open, as far as that helps.

    `grown` is the search that lets the last stage of a strategy grow to a number of replications.
    """
    for _ in range(_LOOKS):
        sizes = wanted_sizes(found.verdicts, found.comparisons(), RULES)
        if not sizes:
            break
        larger = {name: grown(found, name, size) for name, size in sizes.items()}
        found = dataclasses.replace(found, verdicts={**found.verdicts, **answer(larger, ask)})
    return found


def _search_of(load: Load) -> Callable[..., Search]:
    """Return the search for what is varied; its runs are long enough for a trace."""
    least = max(RULES.least_requests, load.num_run)
    rules = dataclasses.replace(RULES, least_requests=least)
    return functools.partial(search if load.unit == "requests/s" else search_users, rules=rules)


def _with_chance(found: Found) -> Found:
    """Return goodputs whose intervals hold the chance of the trace too, where there is one."""
    load = found.load
    if load is None or load.trace is None:
        return found
    told = {n: arrivals.with_chance_of_trace(v, load) for n, v in found.verdicts.items()}
    levels = {
        level: {n: arrivals.with_chance_of_trace(v, load)[0] for n, v in verdicts.items()}
        for level, verdicts in found.levels.items()
    }
    return dataclasses.replace(
        found,
        verdicts={name: verdict for name, (verdict, _) in told.items()},
        chances={name: chance for name, (_, chance) in told.items() if chance is not None},
        levels=levels,
    )


def _at_level(
    found: Found,
    level: float,
    own: Mapping[str, Settings],
    ask: Ask,
) -> dict[str, Verdict]:
    """Search the rates of another attainment, from what the runs so far show of it."""
    looking, searches = _search_of(found.load or Load(scenario=found.scenario)), {}
    for name, verdict in found.verdicts.items():
        if verdict.estimate is None:
            continue
        settings = dataclasses.replace(own[name], target=level, targets=())
        shift = (logit(found.settings.target) - logit(level)) / verdict.estimate.slope
        around = math.exp(verdict.estimate.log_rate + max(-1.0, min(1.0, shift)))
        searches[name] = looking(around, settings)
    return answer(searches, ask)


def _yet(wanted: list[Wanted], replications: int) -> int:
    """Return about how many requests a search takes from these runs on, these among them."""
    asked = sum(one.num_requests for one in wanted)
    if len(wanted) == 1:  # locating: a stage is still to come
        return asked + 2 * replications * RULES.least_requests
    first = len(wanted) == 2 * RULES.pilot_size
    return (2 * replications if first else len(wanted)) * wanted[-1].num_requests


def targets_of(slo: SloConfig) -> tuple[float, ...]:
    """Return the share wanted of each criterion, in the order of `outcome`."""
    return tuple(slo.wanted(key) for key in slo.counted) * max(1, len(slo.classes or ()))


def _lasting(settings: Settings, load: Load, guess: Guess, begin: float | Located) -> Settings:
    """Return settings whose runs are long enough for the instances and for the arrivals.

    They count nothing before all instances could have started, and a whole cycle of the arrivals.

    Raises
    ------
    ConfigError
        If the longest run is too short for that at the rate where the search begins, or instances
        come and go in a closed loop, whose runs have no length in time.
    """
    ramp_s = guess.ramp_s or 0.0
    if load.unit == "users":
        if guess.ramp_s is not None:
            rule = "how long its runs last is not known, and instances take time to start"
            remedy = "Leave out autoscale and mitosis, or use arrivals at a rate."
            raise ConfigError("workload.arrivals", "closed-loop", rule, remedy)
        return settings
    least_s = max(ramp_s / WARMUP, load.least_s)
    rate = begin.rate_rps if isinstance(begin, Located) else begin
    num = math.ceil(rate * load.least_s)
    if num > settings.max_requests:
        rule = (
            f"{load.why} takes runs of {num:,} requests at about {rate:.3g} requests/s, and the "
            f"longest have {settings.max_requests:,}"
        )
        remedy = "Raise --max-requests (max_requests), or shorten it."
        raise ConfigError("workload", None, rule, remedy)
    if not least_s:
        return settings
    return dataclasses.replace(settings, least_s=max(settings.least_s, least_s), scout_s=least_s)


def _begin(load: Load, guess: Guess) -> float:
    """Return the rate (requests/s) or the number of users where a search begins."""
    if load.unit == "users":
        return guess.in_system
    return min(guess.rate_rps, load.most_rps / 1.2)


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
        If there are no targets or all requests must meet them, or a strategy routes between models.
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


def refuse_own_rates(scenario: Scenario) -> None:
    """Refuse arrivals that have a rate of their own, or none: for who compares on one draw.

    Raises
    ------
    ConfigError
        If they are a trace, a schedule, clients, sessions or a closed loop.
    """
    process = scenario.workload.arrival_process
    if not isinstance(process, EndlessArrivals) or process.own_rate_rps is not None:
        raise ConfigError(
            "workload.arrivals",
            getattr(process, "kind", "trace"),
            "a search needs arrivals that can be drawn at any rate and length",
            "Use poisson, gamma, constant or on-off, or `simcluster goodput` with strategies.",
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
    in_system: float
    """About the requests in the system at that rate: rate times mean stay."""


def guess(scenario: Scenario, strategy: Strategy) -> Guess:
    """Return a rate (requests/s) near the most that `strategy` can carry, and its GPUs.

    Each instance prefills prompts one at a time and decodes in the largest batch that its memory,
    its sequence limit and the TPOT target allow, with lengths at their means. Where instances come
    and go the most in service are meant.
    """
    environment = scenario.environment
    cluster = dry_run(environment, strategy)
    lengths = arrivals.typical_lengths(scenario.workload)
    prompts, outputs = lengths.draw(1000, stream(0, "lengths"))
    longest = environment.model.max_model_len
    prompt = int(np.minimum(prompts, longest).mean())
    output = float(np.minimum(outputs, longest).mean())
    context = prompt + int(output / 2)
    rates = {"prefill": 0.0, "decode": 0.0, "mixed": 0.0}
    stays_s = dict.fromkeys(rates, 0.0)
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
        busy_s = {"prefill": prefill_s, "decode": decode_s, "mixed": prefill_s + decode_s}
        rates[pool] += growth[pool] / max(busy_s[pool], 1e-9)
        alone_s = {"prefill": prefill_s, "decode": batch * decode_s, "mixed": prefill_s}
        alone_s["mixed"] += batch * decode_s
        stays_s[pool] = max(stays_s[pool], alone_s[pool])
    split = [rates[pool] for pool in ("prefill", "decode") if rates[pool]]
    divided = min(split) if split else 0.0
    both_s = stays_s["prefill"] + stays_s["decode"]
    return Guess(
        rate_rps=rates["mixed"] + divided,
        num_gpus=cluster.most_gpus,
        ramp_s=max((scaled.ramp_s for scaled in cluster.scaled), default=None),
        in_system=rates["mixed"] * stays_s["mixed"] + divided * both_s,
    )


def guesses_of(scenario: Scenario) -> dict[str, Guess]:
    """Return where the searches of the strategies start, by name.

    Raises
    ------
    ConfigError
        If the arrivals are of a kind that cannot be searched.
    """
    arrivals.refuse(scenario.workload)
    return {strategy.name: guess(scenario, strategy) for strategy in scenario.strategies}


def load_of(scenario: Scenario, guesses: Mapping[str, Guess] | None = None) -> Load:
    """Return what a search in `scenario` varies, and what its runs simulate (`arrivals.load_of`).

    Parameters
    ----------
    scenario : Scenario
        The question.
    guesses : mapping of str to Guess, optional
        Those of its strategies, where they are known.
    """
    if guesses is None:
        scenario.refuse_no_strategy()
        check(scenario)
        guesses = guesses_of(scenario)
    in_system = max(guess.in_system for guess in guesses.values())
    return arrivals.load_of(scenario, in_system)


def _decode_s(lane: Any, batch: int, context: int) -> float:
    shape = StepShape(batch, batch * context, (), batch, batch * context)
    return float(lane.step_time.step_s(shape))


# Runs -------------------------------------------------------------------------------------------


def outcome(
    columns: Columns, scenario: Scenario, rate_rps: float, *, clock_end_s: float = math.inf
) -> Outcome:
    """Return what the search needs of one run.

    Parameters
    ----------
    columns : mapping or pandas.DataFrame
        The requests frame: all requests.
    scenario : Scenario
        Its targets, criterion and metric.
    rate_rps : float
        Offered rate (requests/s); of a closed loop its users.
    clock_end_s : float
        Where turns wait for answers: when the last session begins (s). Turns that come later are
        not counted, for no sessions begin beside them any more.

    Returns
    -------
    Outcome
        Of the requests of `counted_window`, but for its course. One criterion if the targets
        count jointly, else one for each target; with classes as many for each class.
    """
    slo = scenario.environment.slo
    arrival = np.asarray(columns["arrival_s"], dtype=np.float64)
    end = min(float(arrival[-1]), clock_end_s)
    kept = counted_window(arrival, end)
    met = met_targets(columns, slo)
    names = slo.counted
    latency = request_metrics(columns, slo.metric)
    members = members_of(columns, slo)
    statistics = _latencies(latency, kept) | _attainments(met, kept, members)
    groups = [kept & own for own in members.values()] or [kept]
    all_of = list(members.values()) or [np.ones(len(arrival), dtype=np.bool_)]
    statistics["output_tokens"] = float(np.asarray(columns["num_output_tokens"])[kept].mean())
    late = kept & (arrival >= (WARMUP + RULES.counted / 2) * end)
    counted = int(kept.sum())
    statistics["rate_rps"] = counted / (RULES.counted * end)
    rejected = np.asarray(columns["status"], dtype=object) == "rejected"
    stay = latency["e2el_s"][kept]
    stay = stay[~np.isnan(stay)]
    left = np.asarray(columns["last_output_s"], dtype=np.float64)
    came = int(((arrival > end / 2) & (arrival <= end) & ~rejected).sum())
    went = int(((left > end / 2) & (left <= end)).sum())
    prompt, output = (np.asarray(columns[name]) for name in ("prompt_len", "output_len"))
    # What was asked for, whatever a strategy rejects: else its mean would not be the expected one.
    in_system, served = flow(arrival[~rejected], left, end)
    fits = kept & (prompt + output <= scenario.environment.model.max_model_len)
    is_closed = isinstance(scenario.workload.arrival_process, AnyConcurrency)
    return Outcome(
        counted=tuple(int(group.sum()) for group in groups for _ in names),
        met=tuple(int(met[name][group].sum()) for group in groups for name in names),
        residence_s=float(stay.mean()) if stay.size else math.nan,
        arrivals=_excess(scenario, counted, RULES.counted * end * rate_rps),
        controls=_excess_lengths(scenario, counted, prompt[fits], output[fits]),
        drift=max(_drift(met["joint"], group, group & late) for group in groups),
        growth=(came - went) / max(came, 1),
        # Nobody waits outside a closed loop: it has no queue that could grow.
        course=()
        if is_closed
        else course(
            [met[name][own] for own in all_of for name in names],
            [arrival[own] for own in all_of for _ in names],
            end,
        ),
        backlogs=in_system,
        served=served,
        end_s=end,
        statistics=statistics,
    )


def counted_window(arrival_s: FloatArray, end_s: float) -> BoolArray:
    """Return which requests of a run count: those without its start and its end.

    Parameters
    ----------
    arrival_s : ndarray
        When they came (s).
    end_s : float
        End of the arrivals (s), which begin at 0.

    Notes
    -----
    Requests meet an empty system at the start, and those of the last mean residence time have
    nobody behind them: either is served too well (`benchmarks/start_and_end.py`).
    """
    start_s, last_s = WARMUP * end_s, (1 - RULES.cooldown) * end_s
    return np.asarray((arrival_s >= start_s) & (arrival_s <= last_s), dtype=np.bool_)


def _excess(scenario: Scenario, counted: int, expected: float) -> float:
    """Return by how much more requests came than expected: a logarithm (`Outcome.arrivals`).

    Where answers decide when requests come their number says nothing: 0. Of a trace, whose blocks
    differ much, its first term, which is 0 in the mean over runs of a given number of requests.
    """
    workload = scenario.workload
    if arrivals.waits_for_answers(workload):
        return 0.0
    if isinstance(workload.arrival_process, TraceBlocks):
        return 1 - expected / counted
    return math.log(counted / expected)


def _excess_lengths(
    scenario: Scenario, counted: int, prompt: IntArray, output: IntArray
) -> tuple[float, ...]:
    """Return by how much more tokens were asked for than expected (`Outcome.controls`).

    Nothing where the expectation is not known.
    """
    if arrivals.expected_lengths(scenario.workload) is None:
        return ()
    return tuple(
        math.log(tokens.sum() / (counted * mean)) if tokens.size else 0.0
        for tokens, mean in zip((prompt, output), mean_lengths(scenario), strict=True)
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
        within = times <= end_s
        part = np.minimum((times[within] / end_s * PARTS).astype(np.int64), PARTS - 1)
        came = np.bincount(part, minlength=PARTS)
        kept = np.bincount(part, weights=flags[within], minlength=PARTS)
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
    lengths = arrivals.expected_lengths(settings)
    assert lengths is not None, "of a trace and of sessions nobody asks"
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
    workload = workload_of(scenario, cell)
    result = run(scenario.environment, strategy, workload, seed=cell.seed)
    requests = result.columns["requests"]
    clock_end_s = math.inf
    if workload.turns is not None:
        clock_end_s = float(workload.arrival_s[workload.turns.after < 0].max())
    one = outcome(requests, scenario, cell.rate_rps, clock_end_s=clock_end_s)
    end_s = one.end_s
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
    scenario: Scenario,
    cells: Sequence[Cell],
    runner: Runner | None = None,
    done: Callable[[Cell], None] | None = None,
) -> list[Outcome]:
    """Run `cells`; default: on all cores of this machine, with nothing kept.

    `done` is called with each as soon as it is there.
    """
    return (runner or Runner()).cells(simulate_cell, scenario, cells, made=Outcome, done=done)


def replication_seed(seed: int, replication: int) -> int:
    """Return the seed of the run of a replication: `simulate` with it meets the same requests."""
    return int(stream(seed, "replications", str(replication)).integers(2**31))


def answer(
    searches: Mapping[str, Generator[list[W], list[R], V]],
    ask: Callable[[list[tuple[str, W]]], Sequence[R]],
    told: Callable[[int], None] | None = None,
    ended: Callable[[str], None] | None = None,
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
    ended : callable, optional
        Called with the name of each as soon as it has.
    """
    found: dict[str, V] = {}
    answers: dict[str, Any] = dict.fromkeys(searches)
    while answers:
        wanted: dict[str, list[W]] = {}
        for name, outcomes in answers.items():
            try:
                wanted[name] = searches[name].send(outcomes)
            except StopIteration as end:
                found[name] = end.value
                if ended:
                    ended(name)
        if told:
            told(len(found))
        todo = [(name, one) for name, batch in wanted.items() for one in batch]
        came = iter(ask(todo) if todo else ())
        answers = {name: list(itertools.islice(came, len(b))) for name, b in wanted.items()}
    return {name: found[name] for name in searches}
