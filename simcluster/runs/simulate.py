"""One simulation: (scenario, seed) to result."""

from __future__ import annotations

import gc
import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import simpy

from simcluster.config import Environment
from simcluster.engine.clock import ARRIVAL, SCHEDULING, At, Clock
from simcluster.engine.groups.cluster import Cluster, Deployment
from simcluster.engine.log import KernelLog
from simcluster.engine.recorder import Recorder, transfer_columns
from simcluster.errors import ConfigError, InvariantError
from simcluster.frames.itl import with_p99
from simcluster.frames.schema import (
    INSTANCES,
    LINKS,
    SCALING,
    SEGMENTS,
    SPANS,
    TRANSFERS,
    WINDOWS,
    frame,
    schema_of,
)
from simcluster.quality import QualityCurve
from simcluster.request import Request, RequestStatus
from simcluster.rng import stream
from simcluster.roofline.sources import StepTimeFactory
from simcluster.scenario import arguments
from simcluster.scenario.scenario import Scenario, refuse_other
from simcluster.strategies.base import Strategy
from simcluster.strategies.routed import Routed
from simcluster.units import MAX_TIME_S, on_grid
from simcluster.workload import Workload, build

if TYPE_CHECKING:
    import pandas as pd

RESOLUTIONS: Final = ("span", "step", "kernel")
"""What one event stands for; the results are the same."""

_ROWS_AT_ONCE: Final = 1 << 14

FRAMES: Final = (
    "requests",
    "spans",
    "segments",
    "transfers",
    "links",
    "windows",
    "scaling",
    "instances",
)
"""Frames of a run."""


@dataclass(frozen=True, repr=False)
class Result:
    """What one run gave.

    Attributes
    ----------
    strategy : str
        Name of the strategy.
    rate_rps : float
        Offered rate (requests/s); NaN in a closed loop.
    seed : int
        Seed of the run.
    num_gpus : int
        GPUs the strategy used, the most at a time.
    columns : dict
        Frame name to columns, as in `simcluster.frames.schema`.
    end_s : float
        When the last request ended (s).
    num_events : int
        SimPy events.
    """

    strategy: str
    rate_rps: float
    seed: int
    num_gpus: int
    columns: dict[str, dict[str, npt.NDArray[Any]]]
    end_s: float
    num_events: int

    def __repr__(self) -> str:
        requests = len(self.columns["requests"]["request_id"])
        return (
            f"Result({self.strategy!r}, {self.rate_rps:g} requests/s, seed {self.seed}: "
            f"{requests} requests, {self.num_gpus} GPUs)"
        )

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row per arrived request."""
        columns = self.columns["requests"]
        return frame(columns, schema_of("requests", columns))

    @cached_property
    def spans(self) -> pd.DataFrame:
        """One row per run of equal steps."""
        return frame(self.columns["spans"], SPANS)

    @cached_property
    def segments(self) -> pd.DataFrame:
        """One row per stay of a request in a decode batch."""
        return frame(self.columns["segments"], SEGMENTS)

    @cached_property
    def transfers(self) -> pd.DataFrame:
        """One row per KV transfer."""
        return frame(self.columns["transfers"], TRANSFERS)

    @cached_property
    def links(self) -> pd.DataFrame:
        """Bytes and utilisation of every link in equal stretches of time."""
        return frame(self.columns["links"], LINKS)

    @cached_property
    def windows(self) -> pd.DataFrame:
        """One row per prefill window of a macro instance."""
        return frame(self.columns["windows"], WINDOWS)

    @cached_property
    def scaling(self) -> pd.DataFrame:
        """One row per instance that came or went, and per split and merge."""
        return frame(self.columns["scaling"], SCALING)

    @cached_property
    def instances(self) -> pd.DataFrame:
        """One row per instance."""
        return frame(self.columns["instances"], INSTANCES)


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

    Returns
    -------
    Result
        The frames.

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
    workload = build(
        scenario.workload,
        seed=seed,
        rate_rps=rate_rps,
        max_model_len=scenario.environment.model.max_model_len,
    )
    quality = scenario.quality
    if quality is not None:
        score = quality.draw(workload.prompt_len, workload.output_len, seed)
        workload = replace(workload, score=score)
    elif isinstance(chosen, Routed):
        score = stream(seed, "scores").random(workload.num_requests)
        workload = replace(workload, score=score)
    return run(
        scenario.environment,
        chosen,
        workload,
        seed=seed,
        resolution=resolution or scenario.run.resolution,
        max_time_s=scenario.run.max_time_s,
        kernels_in=kernels_in,
        quality=None if quality is None else quality.curve(),
    )


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
        Start and end (s) of a stretch of time: the steps that reach into it, and no others, are run
        kernel by kernel (of a pipeline all steps), and the kernels in the stretch are in the frame
        ``kernels`` of the result.
    quality : QualityCurve, optional
        Expected quality of each model of a strategy of several by the workload's scores.

    Returns
    -------
    Result
        The frames, one row for every request that arrived, finished or not.

    Raises
    ------
    ConfigError
        If the deployment does not fit the machines, or the run lasts longer than the time grid.
    """
    if resolution not in RESOLUTIONS:
        raise ConfigError(
            "run.resolution",
            resolution,
            "not a resolution",
            f"Use one of {', '.join(RESOLUTIONS)}.",
        )
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
    done = simpy.Event(env)
    arrivals = _source_of(workload)(cluster, deployment, workload)
    left = workload.num_requests

    def ended(request: Request) -> None:
        nonlocal left
        recorder.requests.ended(request)
        left -= 1
        if not left:
            done.succeed()
        else:
            arrivals.one_ended(request)

    cluster.on_finish = ended
    if not left:
        done.succeed()
    stop_s = math.inf if max_time_s is None else max_time_s
    timer = At(env, on_grid(min(stop_s, MAX_TIME_S)), 2 * SCHEDULING)
    timer.callbacks.append(lambda _: _stop(done))
    try:
        env.run(until=done)
    except RuntimeError as error:
        if not str(error).startswith("No scheduled events left"):
            raise
        raise InvariantError(f"{left} requests are left and nothing happens any more") from error
    if left and env.peek() == math.inf:
        raise InvariantError(f"{left} requests are left and nothing happens any more")
    if left and env.now >= MAX_TIME_S < stop_s:
        raise ConfigError(
            "run.max_time_s",
            max_time_s,
            f"the run reaches {MAX_TIME_S:.0f} s (24 days), where the time grid ends, with {left} "
            f"of {workload.num_requests} requests to come or unfinished",
            "Set it to an earlier time, or ask for fewer or shorter requests, or for more GPUs.",
        )
    for instance in cluster.instances:
        instance.close()
    for close in deployment.on_end:
        close(env.now)
    models = deployment.models or (environment.model.spec.name,)
    routed = quality is not None and len(models) == quality.num_models
    requests = recorder.requests.columns(
        models, quality.expected if quality is not None and routed else None
    )
    if workload.slo_class is not None:
        requests["slo_class"] = workload.slo_class[: len(requests["request_id"])]
    result = _result(strategy.name, workload, seed, cluster, recorder, requests, env)
    if environment.slo.has_target("itl_s"):
        result.columns["requests"] = with_p99(result.columns, environment, step_time=step_time)
    return result


def _stop(done: simpy.Event) -> None:
    """Let `done` happen if it has not."""
    if not done.triggered:
        done.succeed()


def _result(
    strategy: str,
    workload: Workload,
    seed: int,
    cluster: Cluster,
    recorder: Recorder,
    requests: dict[str, npt.NDArray[Any]],
    env: Clock,
) -> Result:
    for placed in cluster.placed:
        recorder.instances.add(
            (
                placed.instance.instance_id,
                placed.role,
                placed.node,
                placed.num_gpus,
                placed.tp_size,
                placed.taken_s,
                placed.freed_s,
                *placed.instance.stats,
                placed.model,
                placed.gpu,
            )
        )
    return Result(
        strategy=strategy,
        rate_rps=float("nan") if workload.rate_rps is None else workload.rate_rps,
        seed=seed,
        num_gpus=cluster.num_gpus,
        columns={
            "requests": requests,
            "spans": recorder.spans.columns(),
            "segments": recorder.segments.columns(),
            "transfers": transfer_columns(recorder.transfers),
            "links": cluster.network.columns(env.now),
            "windows": recorder.windows.columns(),
            "scaling": recorder.scaling.columns(),
            "instances": recorder.instances.columns(),
            **({} if recorder.kernels is None else {"kernels": recorder.kernels.columns()}),
        },
        end_s=env.now,
        num_events=env.num_events,
    )


def _rows(workload: Workload) -> Iterator[tuple[float, int, int, bool]]:
    """Give arrival, prompt, output and rejection of each request, a chunk of Python's own at once.

    Lists of all of them would take five times the memory of the arrays.
    """
    arrays = (workload.arrival_s, workload.prompt_len, workload.output_len, workload.rejected)
    for first in range(0, workload.num_requests, _ROWS_AT_ONCE):
        chunk = slice(first, first + _ROWS_AT_ONCE)
        yield from zip(*(array[chunk].tolist() for array in arrays), strict=True)


class _Source(ABC):
    """Lets requests enter a deployment; the rejected ones are turned away on arrival."""

    def __init__(self, cluster: Cluster, deployment: Deployment, workload: Workload) -> None:
        self._cluster = cluster
        self._env = cluster.env
        self._entry = deployment.entry
        self._concurrency = workload.concurrency
        self._num_requests = workload.num_requests
        self._hashes = workload.hashes
        self._block_size = cluster.environment.engine.block_size
        self._score = workload.score
        self._slo_class = workload.slo_class
        self._priority = workload.priority
        self._log = cluster.recorder.requests
        self._coming = _rows(workload)
        self.process = self._env.process(self._run())

    @abstractmethod
    def one_ended(self, request: Request) -> None:
        """Hear that `request` finished or was rejected."""

    @abstractmethod
    def _run(self) -> Generator[simpy.Event, Any, None]:
        """Let the requests enter, each at its time."""

    def _enter(
        self,
        arrival_s: float,
        prompt_len: int,
        output_len: int,
        rejected: bool,
        row: int | None = None,
    ) -> None:
        """Let a request of the workload enter: the next one, or that of `row`."""
        number = self._log.num_arrived
        row = number if row is None else row
        request = Request(number, arrival_s, prompt_len, output_len)
        if self._score is not None:
            request.score = float(self._score[row])
        if self._slo_class is not None:
            request.slo_class = self._slo_class[row]
        if self._priority is not None:
            request.priority = int(self._priority[row])
        if self._hashes is not None:
            request.block_ids = self._hashes.runs(row, self._block_size)
        self._log.arrived(request)
        if rejected:
            request.status = RequestStatus.REJECTED
            self._cluster.on_finish(request)
        else:
            self._entry.submit(request)


class _OpenLoop(_Source):
    """Requests arrive by the clock."""

    def one_ended(self, request: Request) -> None:
        """Nothing to do: arrivals do not wait for the end of others."""

    def _run(self) -> Generator[simpy.Event, Any, None]:
        env = self._env
        for arrival_s, prompt_len, output_len, rejected in self._coming:
            yield At(env, arrival_s, ARRIVAL)
            self._enter(arrival_s, prompt_len, output_len, rejected)


class _ClosedLoop(_Source):
    """A fixed number of requests is in the system; the next enters when one ends."""

    def _run(self) -> Generator[simpy.Event, Any, None]:
        yield At(self._env, 0.0, ARRIVAL)
        for _ in range(min(self._concurrency or 0, self._num_requests)):
            self._enter_next()

    def one_ended(self, request: Request) -> None:
        """Let the next request enter, after all that ends at this time."""
        arrival = At(self._env, self._env.now, ARRIVAL)
        arrival.callbacks.append(lambda _: self._enter_next())

    def _enter_next(self) -> None:
        coming = next(self._coming, None)
        if coming is not None:
            _, prompt_len, output_len, rejected = coming
            self._enter(self._env.now, prompt_len, output_len, rejected)


class _Sessions(_Source):
    """Turns wait for the answer before them; the first of a session arrives by the clock.

    Requests that arrive at the same time enter in the order of the workload.
    """

    def __init__(self, cluster: Cluster, deployment: Deployment, workload: Workload) -> None:
        assert workload.turns is not None
        self._workload = workload
        after = workload.turns.after
        self._next = dict(zip(after.tolist(), range(len(after)), strict=True))
        self._first = np.flatnonzero(after < 0)
        self._due: list[tuple[float, int]] = []
        self._row_of: dict[int, int] = {}
        super().__init__(cluster, deployment, workload)

    def _run(self) -> Generator[simpy.Event, Any, None]:
        arrival_s = self._workload.arrival_s[self._first].tolist()
        for row, time_s in zip(self._first.tolist(), arrival_s, strict=True):
            heappush(self._due, (time_s, row))
            yield At(self._env, time_s, ARRIVAL)
            self._enter_due()

    def one_ended(self, request: Request) -> None:
        """Let the next turn of the session come when its user has read and written."""
        row = self._next.get(self._row_of.pop(request.request_id))
        if row is None:
            return
        load = self._workload
        assert load.turns is not None
        time_s = self._env.now + float(load.turns.think_s[row])
        time_s = max(time_s, float(load.arrival_s[row]))
        heappush(self._due, (time_s, row))
        At(self._env, time_s, ARRIVAL).callbacks.append(lambda _: self._enter_due())

    def _enter_due(self) -> None:
        """Let everything enter that is due now."""
        load = self._workload
        while self._due and self._due[0][0] <= self._env.now:
            _, row = heappop(self._due)
            lengths = int(load.prompt_len[row]), int(load.output_len[row])
            self._row_of[self._log.num_arrived] = row
            self._enter(self._env.now, *lengths, bool(load.rejected[row]), row)


def _source_of(workload: Workload) -> type[_Source]:
    """Return what lets the requests of `workload` enter."""
    if workload.turns is not None:
        return _Sessions
    return _OpenLoop if workload.concurrency is None else _ClosedLoop
