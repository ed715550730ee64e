"""One simulation: (scenario, seed) to result."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import simpy

from simcluster.config import Environment, RunConfig
from simcluster.engine.clock import SCHEDULING, At, Clock
from simcluster.engine.groups.cluster import Cluster
from simcluster.engine.log import KernelLog
from simcluster.engine.recorder import Recorder, transfer_columns
from simcluster.errors import ConfigError, InvariantError
from simcluster.frames.itl import with_p99
from simcluster.frames.packed import with_column
from simcluster.frames.schema import SLO_CLASS, Columns
from simcluster.quality import QualityCurve
from simcluster.rng import stream
from simcluster.roofline.sources import StepTimeFactory
from simcluster.runs.cell import Cell
from simcluster.runs.fold import Fold, refuse
from simcluster.runs.result import SUMMARY_FRAMES, Kept, Result
from simcluster.runs.source import Source, source_of
from simcluster.runs.watch import watched
from simcluster.scenario import arguments
from simcluster.scenario.scenario import Scenario, refuse_other
from simcluster.strategies.base import Strategy, used_by
from simcluster.strategies.routed import Routed
from simcluster.units import MAX_TIME_S, on_grid
from simcluster.workload import Workload, build

RESOLUTIONS: Final = ("span", "step", "kernel")
"""What one event stands for; the results are the same."""


def simulate(
    scenario: Scenario,
    *,
    strategy: str | None = None,
    rate_rps: float | None = None,
    seed: int | None = None,
    resolution: str | None = None,
    kernels_in: tuple[float, float] | None = None,
) -> Result:
    """Simulate one strategy of `scenario` at one rate.

    Parameters
    ----------
    scenario : Scenario
        What to simulate.
    strategy : str, optional
        Name of the strategy; the first by default.
    rate_rps : float, optional
        Offered rate (requests/s); by default the workload's, else its own (a trace), else the first
        of the sweep.
    seed : int, optional
        Seed of the run; the scenario's first by default.
    resolution : str, optional
        ``"span"``, ``"step"`` or ``"kernel"``; the scenario's by default.
    kernels_in : tuple of float, optional
        As in `run`.

    Raises
    ------
    ConfigError
        If the deployment does not fit the machines, an argument names nothing, `scenario` is none,
        or the rate or the seed is not a number that could be one.
    """
    refuse_other(scenario)
    chosen = scenario.strategy(strategy)
    if rate_rps is not None:
        remedy = "Give a number such as 8.0 (requests/s)."
        arguments.between("rate_rps", rate_rps, above=0.0, below=math.inf, remedy=remedy)
    if seed is not None:
        arguments.whole("seed", seed, least=0, remedy="Give one such as 0.")
    seed = scenario.run.seeds[0] if seed is None else seed
    if rate_rps is None:
        rate_rps = scenario.default_rate_rps
    quality = scenario.quality
    return run(
        scenario.environment,
        chosen,
        workload_of(scenario, Cell(chosen.name, rate_rps, seed)),
        seed=seed,
        resolution=resolution or scenario.run.resolution,
        max_time_s=scenario.run.max_time_s,
        kernels_in=kernels_in,
        quality=None if quality is None else quality.curve(),
        summary=scenario.run if scenario.run.recorder == "summary" else None,
    )


def workload_of(scenario: Scenario, cell: Cell) -> Workload:
    """Return the requests of a run: the same for all strategies at its rate, seed and length.

    Their scores are drawn with them where something routes by difficulty or has a quality.
    """
    settings = scenario.workload
    if cell.num_requests is not None:
        settings = replace(settings, num_requests=cell.num_requests, duration_s=None)
    workload = build(
        settings,
        seed=cell.seed,
        rate_rps=cell.rate_rps,
        max_model_len=scenario.environment.model.max_model_len,
    )
    if scenario.quality is not None:
        score = scenario.quality.draw(workload.prompt_len, workload.output_len, cell.seed)
    elif isinstance(scenario.strategy(cell.strategy), Routed):
        score = stream(cell.seed, "scores").random(workload.num_requests)
    else:
        return workload
    return replace(workload, score=score)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Leave cyclic garbage alone for a while.

    A run makes millions of small objects and no cycles to speak of; looking for some takes a tenth
    of its time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_garbage_collection()
def run(
    environment: Environment,
    strategy: Strategy,
    workload: Workload,
    *,
    seed: int = 0,
    resolution: str = "span",
    max_time_s: float | None = None,
    step_time: StepTimeFactory | None = None,
    kernels_in: tuple[float, float] | None = None,
    quality: QualityCurve | None = None,
    summary: RunConfig | None = None,
) -> Result:
    """Run `workload` through a deployment of `strategy`.

    Parameters
    ----------
    environment : Environment
        Model, machines, engine, targets.
    strategy : Strategy
        What is deployed.
    workload : Workload
        The requests; nothing random is left.
    seed : int
        For the record.
    resolution : str
        ``"span"``, ``"step"`` or ``"kernel"``.
    max_time_s : float, optional
        Stop the clock here (s); what happens at this very time still counts, steps that would start
        then do not.
    step_time : callable, optional
        Makes the step-time model of an instance; default: the source that `environment` names.
    kernels_in : tuple of float, optional
        Start and end (s) of an interval: the steps that reach into it, and no others, are run
        kernel by kernel (of a pipeline all steps), and the kernels in it are in the frame
        ``kernels`` of the result.
    quality : QualityCurve, optional
        Expected quality of each model of a strategy of several by the workload's scores.
    summary : RunConfig, optional
        Count requests as they end, by this window, and keep no frames of them.

    Returns
    -------
    Result
        The frames, one row for every request that arrived, finished or not.

    Raises
    ------
    ConfigError
        If the deployment does not fit the machines, the run lasts longer than the time grid, or
        these requests have no summary.
    """
    arguments.one_of("run.resolution", resolution, RESOLUTIONS, "a resolution")
    environment = used_by(strategy, environment)
    env = Clock()
    recorder = Recorder(None if kernels_in is None else KernelLog(*kernels_in))
    if workload.hashes is not None:
        workload.hashes.check_block_size(environment.engine.block_size)
    cluster = Cluster(
        env,
        environment,
        recorder,
        resolution=resolution,
        step_time=step_time,
        seed=seed,
        has_prefixes=workload.hashes is not None,
    )
    deployment = strategy.build(cluster)
    if deployment.models and workload.score is None:
        raise InvariantError("a deployment of several models needs the scores of its requests")
    models = deployment.models or (environment.model.spec.name,)
    fold = None
    if summary is not None:
        refuse(workload, environment)
        fold = Fold(cluster, workload, summary, models, step_time)
    source = source_of(workload)(cluster, deployment, workload)
    with watched(lambda: 1.0 - source.num_left / max(1, workload.num_requests)):
        _let_pass(env, source, max_time_s)
    for instance in cluster.instances:
        instance.close()
    for close in deployment.on_end:
        close(env.now)
    result = Result(
        strategy=strategy.name,
        rate_rps=float("nan") if workload.rate_rps is None else workload.rate_rps,
        seed=seed,
        num_gpus=cluster.num_gpus,
        columns={},
        end_s=env.now,
        num_events=env.num_events,
    )
    if fold is not None:
        fold.close()
        kept = Kept({name: c for name, c in _columns(cluster).items() if name in SUMMARY_FRAMES})
        return replace(result, columns=kept, summary=fold.summary)
    rated = quality is not None and len(models) == quality.num_models
    expected = quality.expected if quality is not None and rated else None
    requests: Columns = recorder.requests.columns(models, expected)
    if workload.slo_class is not None:
        requests = with_column(requests, SLO_CLASS, workload.slo_class[source.rows])
    columns: dict[str, Columns] = {"requests": requests, **_columns(cluster)}
    if environment.slo.has_target("itl_s"):
        columns["requests"] = with_p99(columns, environment, step_time=step_time)
    return replace(result, columns=columns)


def _let_pass(env: Clock, source: Source, max_time_s: float | None) -> None:
    """Let time pass until all requests of `source` have ended, or until `max_time_s`."""
    stop_s = math.inf if max_time_s is None else max_time_s
    is_stuck = False

    def stop(_: simpy.Event) -> None:
        nonlocal is_stuck
        if not source.done.triggered:
            is_stuck = env.peek() == math.inf
            source.done.succeed()

    timer = At(env, on_grid(min(stop_s, MAX_TIME_S)), 2 * SCHEDULING)
    timer.callbacks.append(stop)
    env.run_until(source.done)
    if is_stuck:
        raise InvariantError(f"{source.num_left} requests are left and nothing happens any more")
    if source.num_left and env.now >= MAX_TIME_S < stop_s:
        raise ConfigError(
            "run.max_time_s",
            max_time_s,
            f"the run reaches {MAX_TIME_S:.0f} s (24 days), where the time grid ends, with "
            f"{source.num_left} requests to come or unfinished",
            "Set it to an earlier time, or ask for fewer or shorter requests, or for more GPUs.",
        )


def _columns(cluster: Cluster) -> dict[str, Columns]:
    """Return the columns of all frames but the requests'."""
    recorder = cluster.recorder
    for placed in cluster.placed:
        recorder.instances.add(
            (
                placed.instance.instance_id,
                placed.role,
                placed.node,
                placed.num_gpus,
                *placed.layout,
                placed.taken_s,
                placed.freed_s,
                *placed.instance.stats,
                placed.model,
                placed.gpu,
            )
        )
    return {
        "spans": recorder.spans.columns(),
        "segments": recorder.segments.columns(),
        "transfers": transfer_columns(recorder.transfers),
        "links": cluster.network.columns(cluster.env.now),
        "windows": recorder.windows.columns(),
        "scaling": recorder.scaling.columns(),
        "instances": recorder.instances.columns(),
        **({} if recorder.kernels is None else {"kernels": recorder.kernels.columns()}),
    }
