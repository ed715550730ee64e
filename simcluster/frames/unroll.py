"""Steps and tokens of a run, unrolled from its spans when somebody asks.

A run records runs of equal steps (``spans``) and stays of requests in decode batches
(``segments``). That is enough to know when every step and every token ended, to the bit: the
durations of the steps of a span are computed anew with the step-time model of the run, and a
decoding request gets one token from every decode step of its stay.

All functions take the frames of a run as columns, those of a result in hand or of a saved one::

    log = steps(result.columns, scenario.environment)
    computed = token_times(result.columns, log)
    stalls_s = longest_stall_s(released_times(result.columns, computed))

    comparison = simcluster.read("results/quickstart")
    frames = comparison.frames(comparison.cells()[0])
    log = steps(frames, comparison.scenario.environment)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from simcluster.catalog.layers import Reach
from simcluster.config import Environment
from simcluster.errors import InvariantError
from simcluster.frames.schema import STEPS, Columns, checked
from simcluster.request import tokens_gained
from simcluster.roofline import StepTime
from simcluster.roofline.base import StepShape
from simcluster.roofline.layout import Layout
from simcluster.roofline.sources import (
    StepTimeFactory,
    StepTimeSource,
    beyond_tp,
    source_of,
    times_of,
)
from simcluster.units import FloatArray, IntArray

Frames = Mapping[str, Columns]
"""The frames of one run as columns, by name."""


@dataclass(frozen=True, slots=True)
class PerRequest:
    """Numbers of every request, in one array because they are of different lengths."""

    offsets: IntArray
    """Where the numbers of each request begin; the last entry is their total; shape ``(num_requests
    + 1,)``."""
    values: FloatArray
    """The numbers, request by request; shape ``(offsets[-1],)``."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, request_id: int) -> FloatArray:
        """Return the numbers of one request."""
        request_id = range(len(self))[request_id]
        return self.values[self.offsets[request_id] : self.offsets[request_id + 1]]

    @property
    def counts(self) -> IntArray:
        """How many numbers each request has, shape ``(num_requests,)``."""
        counts: IntArray = np.diff(self.offsets)
        return counts


class InstanceKind(NamedTuple):
    """What decides the step times of an instance."""

    layout: Layout
    model: str
    gpu: str


def kinds_of(instances: Columns) -> list[InstanceKind]:
    """Return the kind of each row of the instances frame."""
    columns = [np.asarray(instances[name]).tolist() for name in Layout._fields]
    layouts = [Layout(*row) for row in zip(*columns, strict=True)]
    kinds = zip(layouts, instances["model"], instances["gpu"], strict=True)
    return [InstanceKind(*row) for row in kinds]


# Steps ------------------------------------------------------------------------------------------


def steps(
    frames: Frames, environment: Environment, *, step_time: StepTimeFactory | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Return one row per step of a run.

    Parameters
    ----------
    frames : mapping of str to columns
        ``spans`` and ``instances`` of the run; of a model with a sliding window also ``requests``
        and ``segments``.
    environment : Environment
        That of the run.
    step_time : callable, optional
        What made the step times of the run; default: the source that `environment` names.

    Returns
    -------
    dict of str to array
        The columns of `schema.STEPS`; the steps of each lane of an instance are in order of time.

    Raises
    ------
    InvariantError
        If the steps of a span do not end when the span did: these are not the step times of the
        run.
    """
    spans = frames["spans"]
    num_steps = np.asarray(spans["num_steps"], dtype=np.int64)
    starts = np.asarray(spans["start_s"], dtype=np.float64)
    first = np.cumsum(num_steps) - num_steps  # row of the first step of each span
    ends = _step_ends(frames, environment, step_time)
    begins = np.empty_like(ends)
    begins[1:] = ends[:-1]
    begins[first] = starts

    columns: dict[str, npt.NDArray[Any]] = {"start_s": begins, "end_s": ends}
    for name in set(STEPS) - set(columns):
        columns[name] = np.repeat(np.asarray(spans[name]), num_steps)
    step = np.arange(len(ends)) - np.repeat(first, num_steps)
    columns["context_tokens"] = columns["context_tokens"] + step * columns["num_decodes"]
    return checked(columns, STEPS)


def _step_ends(
    frames: Frames, environment: Environment, step_time: StepTimeFactory | None
) -> FloatArray:
    """Return when every step ended (s), span by span; arguments and errors as of `steps`."""
    spans = frames["spans"]
    num_steps = np.asarray(spans["num_steps"], dtype=np.int64)
    stops = np.asarray(spans["end_s"], dtype=np.float64)
    first = np.cumsum(num_steps) - num_steps
    ends = np.empty(int(num_steps.sum()))
    ends[first] = stops
    _fill_longer_spans(ends, first, frames, environment, source_of(environment, step_time))
    wrong = np.flatnonzero(ends[first + num_steps - 1] != stops)
    if len(wrong):
        span = int(wrong[0])
        raise InvariantError(
            f"the steps of the span of instance {spans['instance'][span]} at "
            f"{spans['start_s'][span]} s end at {ends[first[span] + num_steps[span] - 1]} s, not at"
            f" {stops[span]} s as they did in the run: the step times are not those of the run"
        )
    return ends


class DecodeSteps(NamedTuple):
    """When the decode steps of a run ended, one lane after the other."""

    lanes: Lanes
    ends: FloatArray  # shape (lanes.base[-1],), s


def decode_steps(
    frames: Frames, environment: Environment, *, step_time: StepTimeFactory | None = None
) -> DecodeSteps:
    """Return the ends of the decode steps alone; arguments and errors as of `steps`."""
    spans = frames["spans"]
    num_steps = np.asarray(spans["num_steps"], dtype=np.int64)
    first = np.cumsum(num_steps) - num_steps
    lanes = Lanes.of(spans, num_steps)
    ends = _step_ends(frames, environment, step_time)
    return DecodeSteps(lanes, ends[_runs(first[lanes.order], num_steps[lanes.order])])


def _fill_longer_spans(
    ends: FloatArray,
    first: IntArray,
    frames: Frames,
    environment: Environment,
    source: StepTimeSource,
) -> None:
    """Write the end times of the steps of all spans of more than one step.

    They decode, or compute equal chunks of one prompt, or both.
    """
    spans, instances = frames["spans"], frames["instances"]
    longer = np.flatnonzero(np.asarray(spans["num_steps"]) > 1)
    if not len(longer):
        return
    kinds = dict(zip(instances["instance"].tolist(), kinds_of(instances), strict=True))
    windows: dict[InstanceKind, tuple[IntArray, IntArray]] = {}
    for kind in dict.fromkeys(kinds.values()):
        if (reach := environment.part(kind.model, kind.gpu).model.spec.reach) is not None:
            windows[kind] = _window_tokens(frames, reach)

    @cache
    def step_time_of(kind: InstanceKind, wire_share: float) -> StepTime:
        part = environment.part(kind.model, kind.gpu)
        if wire_share == 1.0:
            return times_of(source, part, kind.layout)
        shared = source.beside_transfers(
            part, kind.layout.tp_size, wire_share, **beyond_tp(kind.layout)
        )
        if shared is None:
            raise InvariantError("these are not the step times of the run")
        return shared

    columns = {name: np.asarray(spans[name]) for name in _OF_SPANS}
    for rows in _alike(columns, longer, kinds):
        one = {name: values[rows[0]].item() for name, values in columns.items()}
        kind = kinds[one["instance"]]
        step_time = step_time_of(kind, one["wire_share"])
        for part in _portions(rows, columns["num_steps"], 1 if one["prefill_tokens"] else _AT_ONCE):
            runs = {name: values[part] for name, values in columns.items()}
            counts = runs["num_steps"]
            begins = np.cumsum(counts) - counts
            step = np.arange(int(counts.sum())) - np.repeat(begins, counts)
            window = None
            if kind in windows and one["num_decodes"]:
                windowed, at = windows[kind]
                window = windowed[np.repeat(at[part], counts) + step]
            if one["prefill_tokens"]:
                durations = _chunk_steps_s(step_time, runs, window)
            else:
                durations = _decode_runs_s(step_time, runs, window)
            sums = np.cumsum(durations)
            shift = runs["start_s"] - (sums[begins] - durations[begins])
            ends[np.repeat(first[part], counts) + step] = sums + np.repeat(shift, counts)


_OF_SPANS: Final = (
    "instance",
    "num_steps",
    "num_decodes",
    "context_tokens",
    "hidden_s",
    "start_s",
    "prefill_tokens",
    "cached_tokens",
    "wire_share",
)
_AT_ONCE: Final = 32_768
"""Steps that are computed at once: few enough for the cache of a core, and for exact sums."""


def _alike(columns: Columns, rows: IntArray, kinds: Mapping[int, InstanceKind]) -> list[IntArray]:
    """Split rows of spans by instance kind, share of the wires, batch size, and chunks or none."""
    numbers = {kind: number for number, kind in enumerate(dict.fromkeys(kinds.values()))}
    instances, of = np.unique(columns["instance"][rows], return_inverse=True)
    kind = np.array([numbers[kinds[instance]] for instance in instances.tolist()])[of]
    with_chunks = columns["prefill_tokens"][rows] > 0
    keys = (columns["num_decodes"][rows], with_chunks, columns["wire_share"][rows], kind)
    order = np.lexsort(keys)
    differs = np.zeros(len(rows) - 1, np.bool_)
    for key in keys:
        differs |= key[order][1:] != key[order][:-1]
    return np.split(rows[order], 1 + np.flatnonzero(differs))


def _portions(rows: IntArray, num_steps: IntArray, at_once: int) -> list[IntArray]:
    """Split rows of spans into portions of about `at_once` steps, or of one row each."""
    portion = np.cumsum(num_steps[rows]) // at_once
    return np.split(rows, 1 + np.flatnonzero(np.diff(portion)))


def _decode_runs_s(step_time: StepTime, runs: Columns, window: IntArray | None) -> FloatArray:
    """Durations of the steps of spans with batches of one size (s), one span after the other."""
    size, counts = int(runs["num_decodes"][0]), runs["num_steps"]
    context, hidden_s = runs["context_tokens"], runs["hidden_s"]
    at_once = getattr(step_time, "decode_runs_s", None)  # what a plug-in makes need not have it
    if at_once is not None:
        durations: FloatArray = at_once(size, context, counts, hidden_s, window)
        return durations
    windows: list[IntArray | None] = [None] * len(counts)
    if window is not None:
        windows = [*np.split(window, np.cumsum(counts)[:-1])]
    asked = zip(context.tolist(), counts.tolist(), hidden_s.tolist(), windows, strict=True)
    return np.concatenate([step_time.decode_steps_s(size, *one) for one in asked])


def _chunk_steps_s(step_time: StepTime, runs: Columns, window: IntArray | None) -> FloatArray:
    """Durations of the steps of a span (s), each with a chunk of one prompt, all of one size."""
    size, new, cached, context, count = (
        int(runs[name][0])
        for name in (
            "num_decodes",
            "prefill_tokens",
            "cached_tokens",
            "context_tokens",
            "num_steps",
        )
    )
    hidden_s = float(runs["hidden_s"][0])
    durations = np.empty(count)
    for step in range(count):
        reached = context + step * size
        windowed = reached if window is None or not size else int(window[step])
        shape = StepShape(size, reached, ((new, cached + step * new),), size, windowed)
        durations[step] = step_time.step_s(shape, hidden_s)
        hidden_s = step_time.gpu_s(shape) if step_time.overlaps_host else 0.0
    return durations


# Tokens -----------------------------------------------------------------------------------------


class TokenLayout(NamedTuple):
    """Where tokens are in a `PerRequest`, and where they come from.

    Arrays of segments are in the order of `order`: by request, then by time.
    """

    offsets: IntArray  # per request
    has_first: npt.NDArray[np.bool_]  # per request: a first token
    has_last: npt.NDArray[np.bool_]  # per request: a last token from a prefill, in no segment
    order: IntArray  # rows of the segments frame
    request: IntArray  # per segment
    before: IntArray  # per segment: tokens of the request before it
    refilled: npt.NDArray[
        np.bool_
    ]  # per segment: the prefill before it made a token, not the first
    num_steps: IntArray  # per segment


def token_layout(frames: Frames) -> TokenLayout:
    """Find the place of every token from requests and segments alone."""
    requests, segments = frames["requests"], frames["segments"]
    counts = np.asarray(requests["num_output_tokens"], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    first_token_s = np.asarray(requests["first_token_s"], dtype=np.float64)
    has_first = ~np.isnan(first_token_s)
    order = np.argsort(segments["request_id"], kind="stable")
    request = np.asarray(segments["request_id"], dtype=np.int64)[order]
    start_s = np.asarray(segments["start_s"], dtype=np.float64)[order]
    refilled = ~np.isnan(start_s) & (start_s != first_token_s[request])
    num_steps = np.asarray(segments["last_step"] - segments["first_step"], dtype=np.int64)[order]
    made = tokens_gained(num_steps) + refilled
    earlier = np.cumsum(made) - made
    of_request = np.bincount(request, weights=made, minlength=len(counts)).astype(np.int64)
    first_of_request = np.cumsum(of_request) - of_request
    before = earlier - first_of_request[request] + has_first[request]
    left = counts - of_request - has_first
    if np.any((left < 0) | (left > 1)):
        raise InvariantError("the segments of a request are not its output tokens")
    return TokenLayout(offsets, has_first, left == 1, order, request, before, refilled, num_steps)


@dataclass(frozen=True, slots=True)
class Lanes:
    """Where the decode steps of the lanes are if they stand in a row, one lane after the other."""

    num_lanes: int
    """Lanes of an instance, at most."""
    order: IntArray
    """Rows of spans or steps that decode, by lane and then as they were."""
    base: IntArray
    """Decode steps of all lanes before each one, and of all."""

    @classmethod
    def of(cls, columns: Columns, num_steps: IntArray) -> Lanes:
        """Return the lanes of a frame of spans or steps, whose rows stand for `num_steps` steps."""
        num_lanes = 1 + int(np.max(columns["lane"], initial=0))
        number = lane_numbers(columns, num_lanes)
        decodes = np.flatnonzero(np.asarray(columns["num_decodes"]) > 0)
        order = decodes[np.argsort(number[decodes], kind="stable")]
        counts = np.bincount(number[order], weights=num_steps[order]).astype(np.int64)
        return cls(num_lanes, order, np.concatenate([[0], np.cumsum(counts)]))

    def first_steps(self, segments: Columns, rows: IntArray) -> IntArray:
        """Return where the decode steps of some segments begin.

        Raises
        ------
        InvariantError
            If a lane has fewer steps than a segment in it.
        """
        lane = lane_numbers(segments, self.num_lanes)[rows]
        last_step = np.asarray(segments["last_step"], dtype=np.int64)[rows]
        if np.any(lane >= len(self.base) - 1) or np.any(
            last_step > self.base[lane + 1] - self.base[lane]
        ):
            raise InvariantError("a segment is longer than its lane: not of the same run")
        first: IntArray = self.base[lane] + segments["first_step"][rows]
        return first


def lane_numbers(columns: Columns, num_lanes: int) -> IntArray:
    """Return one number for the instance and the lane of each row."""
    instance = np.asarray(columns["instance"], dtype=np.int64)
    number: IntArray = instance * num_lanes + np.asarray(columns["lane"])
    return number


def token_times(frames: Frames, step_log: Columns) -> PerRequest:
    """Return when every output token of every request was computed.

    Returns
    -------
    PerRequest
        Times (s), rising within each request; as many as ``num_output_tokens``.

    Raises
    ------
    InvariantError
        If steps and segments are not of the same run.
    """
    lanes = Lanes.of(step_log, np.ones(len(step_log["end_s"]), np.int64))
    ends = np.asarray(step_log["end_s"], dtype=np.float64)[lanes.order]
    return token_times_of(frames, DecodeSteps(lanes, ends))


def token_times_of(frames: Frames, decodes_of_run: DecodeSteps) -> PerRequest:
    """Return what `token_times` does, from the decode steps alone."""
    lanes, ends = decodes_of_run
    layout = token_layout(frames)
    requests, segments = frames["requests"], frames["segments"]
    times = np.empty(layout.offsets[-1])
    times[layout.offsets[:-1][layout.has_first]] = requests["first_token_s"][layout.has_first]
    times[layout.offsets[1:][layout.has_last] - 1] = requests["last_token_s"][layout.has_last]
    place = layout.offsets[layout.request] + layout.before
    start_s = np.asarray(segments["start_s"], dtype=np.float64)[layout.order]
    times[place[layout.refilled]] = start_s[layout.refilled]

    decodes = layout.num_steps > 0
    source = lanes.first_steps(segments, layout.order[decodes])
    target = (place + layout.refilled)[decodes]
    num_steps = layout.num_steps[decodes]
    times[_runs(target, num_steps)] = ends[_runs(source, num_steps)]
    return PerRequest(layout.offsets, times)


def _runs(first: IntArray, length: IntArray) -> IntArray:
    """Return ``first[0], first[0] + 1, ...`` for ``length[0]`` numbers, then those of the next."""
    ahead = np.cumsum(length) - length
    runs: IntArray = np.repeat(first - ahead, length) + np.arange(length.sum())
    return runs


def released_times(frames: Frames, tokens: PerRequest) -> PerRequest:
    """Return when every output token was released to its user.

    They differ from the computed times where a strategy holds output back: a token computed in an
    instance whose prefill window holds its output is released when the window says so, or earlier,
    with the last token of its request, if the instance then had nothing left to do. A first token
    whose KV moves to another instance may be released there, when its request joins the batch.

    Returns
    -------
    PerRequest
        Times (s), never falling within a request; NaN for tokens held back when the run ended.

    Raises
    ------
    InvariantError
        If the first or last token of a request comes out at another time than in the run.
    """
    windows, requests = frames["windows"], frames["requests"]
    holds = ~np.isnan(windows["released_s"])
    released = tokens.values.copy()
    if np.any(holds):
        layout = token_layout(frames)
        instance = _instances(frames, layout)
        owner = np.repeat(np.arange(len(tokens)), tokens.counts)
        last_token_s = np.asarray(requests["last_token_s"])[owner]
        last_output_s = np.asarray(requests["last_output_s"])[owner]
        for number in np.unique(windows["instance"][holds]).tolist():
            own = np.flatnonzero(holds & (windows["instance"] == number))
            opened_s, until_s = windows["opened_s"][own], windows["released_s"][own]
            here = np.flatnonzero(instance == number)
            computed_s = tokens.values[here]
            # A token computed at the very time of the opening was released before it.
            window = np.searchsorted(opened_s, computed_s, side="left") - 1
            held = (window >= 0) & (computed_s <= until_s[window])
            here, until = here[held], until_s[window[held]]
            ended = last_token_s[here] <= until
            until[np.isinf(until)] = np.nan
            released[here] = np.where(ended, last_output_s[here], until)
    some = tokens.counts > 0
    moved = some & _moved(requests, windows["instance"][holds])
    first = tokens.offsets[:-1][moved]
    # NaN where the run ended before the other instance had released it.
    released[first] = requests["first_output_s"][moved]
    if np.any(released[first] < tokens.values[first]):
        raise InvariantError("a first token was released before it was computed")
    ended = requests["status"] == "finished"
    for place, rows, name in (
        (tokens.offsets[:-1], some, "first_output_s"),
        (tokens.offsets[1:] - 1, ended, "last_output_s"),
    ):
        if not np.array_equal(released[place[rows]], requests[name][rows], equal_nan=True):
            raise InvariantError("the windows do not release output when the run did")
    return PerRequest(tokens.offsets, released)


def _moved(requests: Columns, holding: IntArray) -> npt.NDArray[np.bool_]:
    """Return whose KV has left the instance of its prefill, or is about to.

    `holding` are the instances with windows that hold output.
    """
    prefilled = requests["prefill_instance"]
    unseen = np.isnan(requests["first_output_s"]) & ~np.isin(prefilled, holding)
    moved: npt.NDArray[np.bool_] = (prefilled != requests["decode_instance"]) | unseen
    return moved


def _counted(lengths: IntArray) -> IntArray:
    """Return ``0, 1, ..`` up to each of `lengths`, one after the other."""
    counted: IntArray = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return counted


def _instances(frames: Frames, layout: TokenLayout) -> IntArray:
    """Return the instance that computed each token."""
    requests, segments = frames["requests"], frames["segments"]
    instance = np.empty(layout.offsets[-1], dtype=np.int64)
    first, last = layout.offsets[:-1][layout.has_first], layout.offsets[1:][layout.has_last] - 1
    instance[last] = requests["decode_instance"][layout.has_last]
    instance[first] = requests["prefill_instance"][layout.has_first]
    length = layout.num_steps + layout.refilled
    place = _runs(layout.offsets[layout.request] + layout.before, length)
    instance[place] = np.repeat(np.asarray(segments["instance"])[layout.order], length)
    return instance


def _window_tokens(frames: Frames, reach: Reach) -> tuple[IntArray, IntArray]:
    """Sum the contexts of each decode step, each as far as it reaches.

    Returns
    -------
    sums : int array
        One for each decode step, lane by lane.
    at : int array
        Where in `sums` each span begins.

    Notes
    -----
    The context of a sequence rises by one per step until it reaches the window, or falls back to
    one at the start of a chunk, so what a segment adds is written as jumps and slopes: no work per
    sequence per step.
    """
    spans, segments, layout = frames["spans"], frames["segments"], token_layout(frames)
    num_steps = np.asarray(spans["num_steps"], dtype=np.int64)
    lanes = Lanes.of(spans, num_steps)
    at = np.zeros(len(num_steps), np.int64)
    at[lanes.order] = np.cumsum(num_steps[lanes.order]) - num_steps[lanes.order]

    decodes = layout.num_steps > 0
    first, length = lanes.first_steps(segments, layout.order[decodes]), layout.num_steps[decodes]
    prompt_len = np.asarray(frames["requests"]["prompt_len"], dtype=np.int64)
    context = (prompt_len[layout.request] + layout.before + layout.refilled)[decodes]
    width, last = reach.tokens, context + length - 1
    jump = np.zeros(int(lanes.base[-1]) + 2, np.int64)
    slope = np.zeros_like(jump)
    np.add.at(slope, first + 1, 1)
    if reach.chunked:
        np.add.at(jump, first, (context - 1) % width + 1)
        np.add.at(jump, first + length, -((last - 1) % width + 1))
        np.add.at(slope, first + length, -1)
        falls = (last - 1) // width - (context - 1) // width
        into = width - (context - 1) % width  # steps from the first to that of the first fall
        np.add.at(jump, np.repeat(first + into, falls) + width * _counted(falls), -width)
    else:
        np.add.at(jump, first, np.minimum(context, width))
        np.add.at(jump, first + length, -np.minimum(last, width))
        np.add.at(slope, first + 1 + np.clip(width - context, 0, length - 1), -1)
    return np.cumsum(jump + np.cumsum(slope)), at


# Latencies between tokens -----------------------------------------------------------------------


def inter_token_latencies(tokens: PerRequest) -> PerRequest:
    """Return the gaps (s) between consecutive tokens of each request.

    A request of n tokens has n - 1 gaps. Of released tokens gaps may be 0, where they came
    together, or NaN, where the run ended before they came.
    """
    counts = np.maximum(tokens.counts - 1, 0)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    later = _runs(tokens.offsets[:-1] + 1, counts)
    return PerRequest(offsets, tokens.values[later] - tokens.values[later - 1])


def longest_stall_s(tokens: PerRequest) -> FloatArray:
    """Return the longest gap between tokens of each request (s).

    Returns
    -------
    float array, shape ``(num_requests,)``
        NaN for requests of fewer than two tokens.
    """
    gaps = inter_token_latencies(tokens)
    longest = np.full(len(gaps), np.nan)
    some = gaps.counts > 0
    if np.any(some):
        longest[some] = np.fmax.reduceat(gaps.values, gaps.offsets[:-1][some])
    return longest


def itl_quantiles_s(tokens: PerRequest, shares: Sequence[float] = (0.5, 0.9, 0.99)) -> FloatArray:
    """Return quantiles of the gaps between tokens (s), over all gaps of all requests.

    Parameters
    ----------
    tokens : PerRequest
        Token times.
    shares : sequence of float
        Which quantiles, 0 to 1.

    Returns
    -------
    float array, shape ``(len(shares),)``
        NaN where no request has two tokens.
    """
    gaps = inter_token_latencies(tokens).values
    gaps = gaps[~np.isnan(gaps)]
    if not len(gaps):
        return np.full(len(shares), np.nan)
    return np.asarray(np.quantile(gaps, shares), dtype=np.float64)
