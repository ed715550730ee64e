"""A run without frames: requests that have ended are counted, some thousand at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from simcluster.config import Environment, RunConfig
from simcluster.engine.groups.cluster import Cluster
from simcluster.errors import ConfigError, InvariantError
from simcluster.frames.itl import gaps_of
from simcluster.frames.metrics import measured_between
from simcluster.frames.schema import ITL_P99, SEGMENTS, SLO_CLASS, SPANS, WINDOWS, Columns
from simcluster.frames.summary import ERROR, Summary
from simcluster.frames.unroll import lane_numbers
from simcluster.request import Request
from simcluster.roofline.layout import Layout
from simcluster.roofline.sources import StepTimeFactory
from simcluster.units import IntArray
from simcluster.workload import Workload

_LANES: Final = 1 << 10
"""More batches in flight than an instance has."""
_AT_ONCE: Final = 1 << 14
"""Requests that are counted at once."""


def refuse(workload: Workload, environment: Environment) -> None:
    """Refuse a summary of requests whose arrivals are not known before the run.

    Raises
    ------
    ConfigError
        If requests wait for answers, or an ITL target asks for steps that a summary cannot unroll.
    """
    remedy = 'Set run.recorder = "frames", which keeps all requests.'
    if workload.concurrency is not None or workload.turns is not None:
        rule = "a summary needs arrivals that wait for no answer (no closed loop, no sessions)"
        raise ConfigError("run.recorder", "summary", rule, remedy)
    if environment.slo.has_target("itl_s") and _reaches_back(environment):
        rule = "a summary does not know the ITL of a model with a sliding window"
        raise ConfigError("run.recorder", "summary", rule, remedy)


def _reaches_back(environment: Environment) -> bool:
    return any(model.spec.reach is not None for model in environment.models)


def missing(knows_itl: bool) -> str:
    """Return the line that says what a summary lacks."""
    line = (
        f'recorder = "summary": percentiles are within {100 * ERROR:.2f} %. No frames are kept, so '
        "that there are no plots, timelines and reports."
    )
    no_itl = (
        " ITL is a dash: where output is held back, as in PaDG, or a model has a sliding window, "
        'gaps between tokens take run.recorder = "frames".'
    )
    return line if knows_itl else line + no_itl


class Fold:
    """Takes requests from a recorder as they end, and the steps that they were in.

    Parameters
    ----------
    cluster : Cluster
        Its recorder gives its requests here from now on.
    workload : Workload
        The requests.
    run : RunConfig
        What is counted.
    models : sequence of str
        Names of the models.
    step_time : callable or None
        What makes the step times of the run.
    """

    def __init__(
        self,
        cluster: Cluster,
        workload: Workload,
        run: RunConfig,
        models: tuple[str, ...],
        step_time: StepTimeFactory | None,
    ) -> None:
        arrival_s = workload.arrival_s
        if run.max_time_s is not None:
            arrival_s = arrival_s[: np.searchsorted(arrival_s, run.max_time_s, side="right")]
        slo_class = workload.slo_class
        if slo_class is not None:
            slo_class = slo_class[: len(arrival_s)]
        self.summary = Summary(cluster.environment.slo, run, arrival_s, slo_class)
        self._cluster, self._workload, self._run = cluster, workload, run
        self._environment, self._recorder = cluster.environment, cluster.recorder
        self._models, self._step_time = models, step_time
        self._last_arrival_s = float(arrival_s[-1]) if len(arrival_s) else 0.0
        self._waits: list[Request] = []
        self._spans, self._segments = _empty(SPANS), _empty(SEGMENTS)
        self._gone = np.zeros(1, np.int64)
        if _reaches_back(self._environment):
            self.summary.knows_itl = False
        self._recorder.requests.take = self._take

    def _take(self, requests: list[Request]) -> None:
        self._waits += requests
        requests.clear()
        if len(self._waits) >= _AT_ONCE:
            self._count()

    def close(self) -> None:
        """Count what is left, unfinished requests included."""
        self._recorder.requests.flush()
        self._count()

    def _count(self) -> None:
        recorder = self._recorder
        requests = sorted(self._waits, key=lambda request: request.request_id)
        self._waits = []
        self._spans = _joined(self._spans, recorder.spans.columns())
        self._segments = _joined(self._segments, recorder.segments.columns())
        recorder.transfers.columns()
        windows = recorder.windows.columns()
        if not np.isnan(windows["released_s"]).all():
            self._forget_itl()
        if not requests:
            return
        columns: dict[str, npt.NDArray[Any]] = recorder.requests.rows_of(requests, self._models)
        ids = columns["request_id"]
        if self._workload.slo_class is not None:
            columns[SLO_CLASS] = self._workload.slo_class[ids]
        gaps = None
        if self.summary.knows_itl:
            of_requests = gaps_of(self._part(columns), self._environment, step_time=self._step_time)
            run = self._run
            counted = measured_between(columns, run.warmup_s, self._last_arrival_s - run.cooldown_s)
            gaps = of_requests.weighted(counted & (columns["status"] == "finished"))
            if self._environment.slo.has_target("itl_s"):
                columns[ITL_P99] = of_requests.p99_of_each(len(ids))
        self.summary.add(columns, gaps)
        self._drop_old_spans()

    def _forget_itl(self) -> None:
        if self._environment.slo.has_target("itl_s"):
            raise ConfigError(
                "run.recorder",
                "summary",
                "a summary does not know the ITL where output is held back",
                'Set run.recorder = "frames", or hold_output = false.',
            )
        self.summary.knows_itl = False

    def _part(self, requests: Columns) -> dict[str, Columns]:
        """Return the frames of these requests alone; their segments are taken out here."""
        ids, segments = requests["request_id"], self._segments
        owner = np.asarray(segments["request_id"])
        place = np.minimum(np.searchsorted(ids, owner), len(ids) - 1)
        own = ids[place] == owner
        stays = {name: column[own] for name, column in segments.items()}
        self._segments = {name: column[~own] for name, column in segments.items()}
        stays["request_id"] = place[own]
        lanes = _lanes(stays)
        before = np.zeros(len(lanes), np.int64)
        known = lanes < len(self._gone)
        before[known] = self._gone[lanes[known]]
        for name in ("first_step", "last_step"):
            stays[name] = stays[name] - before
        if np.any(stays["first_step"] < 0):
            raise InvariantError("a request was in steps that were forgotten already")
        placed = self._cluster.placed
        instances = {
            "instance": np.array([p.instance.instance_id for p in placed], np.int64),
            **{
                name: np.array([getattr(p.layout, name) for p in placed], object)
                for name in Layout._fields
            },
            "model": np.array([p.model for p in placed], object),
            "gpu": np.array([p.gpu for p in placed], object),
        }
        return {
            "requests": requests,
            "segments": stays,
            "spans": self._spans,
            "instances": instances,
            "windows": _empty(WINDOWS),
        }

    def _drop_old_spans(self) -> None:
        """Forget the spans that ended before any request that is left was in a step."""
        scheduled = [r.scheduled_s for r in self._recorder.requests.present]
        # Those that have ended and are not counted yet were there too.
        scheduled += [r.scheduled_s for r in self._recorder.requests.waiting]
        begin = np.fmin.reduce(np.array(scheduled, dtype=np.float64), initial=np.inf)
        ended = np.maximum.accumulate(self._spans["end_s"])
        row = int(np.searchsorted(ended, begin, side="right"))
        old = {name: column[:row] for name, column in self._spans.items()}
        steps = np.where(old["num_decodes"] > 0, old["num_steps"], 0)
        more = np.bincount(_lanes(old), weights=steps, minlength=len(self._gone)).astype(np.int64)
        self._gone = np.pad(self._gone, (0, len(more) - len(self._gone))) + more
        # Copies, so that the arrays that they are a part of can go.
        self._spans = {name: column[row:].copy() for name, column in self._spans.items()}


def _lanes(columns: Mapping[str, npt.NDArray[Any]]) -> IntArray:
    if np.max(columns["lane"], initial=0) >= _LANES:
        raise InvariantError(f"an instance has more than {_LANES} batches in flight")
    return lane_numbers(columns, _LANES)


def _empty(schema: Mapping[str, Any]) -> dict[str, npt.NDArray[Any]]:
    return {
        name: np.empty(0, object if column.dtype == "str" else column.dtype)
        for name, column in schema.items()
    }


def _joined(first: Columns, second: Columns) -> dict[str, npt.NDArray[Any]]:
    return {name: np.concatenate([first[name], second[name]]) for name in first}
