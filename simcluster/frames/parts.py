"""A run in parts: the frames of some requests at a time, with the steps that they were in.

What unrolls steps needs as much memory as there are steps. Of a long run it can look at one part
after the other: all about some thousand requests that came one after the other, and the spans of
the time in which they were served.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, NamedTuple

import numpy as np

from simcluster.config import Environment
from simcluster.errors import InvariantError
from simcluster.frames.packed import rows_of
from simcluster.frames.schema import Columns
from simcluster.frames.unroll import Frames, kinds_of, lane_numbers

PART: Final = 1 << 14
"""Requests of a part."""


class Part(NamedTuple):
    """Some requests of a run, those with ids ``first <= id < last``."""

    first: int
    last: int
    frames: Frames
    """Their rows of ``requests`` and ``segments``, with ids that count from 0; the ``spans`` of
    their time; ``instances`` and ``windows`` of the run. Segments count the decode steps of these
    spans."""


def parts_of(frames: Frames, environment: Environment, size: int = PART) -> Iterator[Part]:
    """Give the parts of a run, in the order of the requests' ids.

    Parameters
    ----------
    frames : mapping of str to columns
        ``requests``, ``segments``, ``spans``, ``instances`` and ``windows`` of the run.
    environment : Environment
        That of the run. Of a model with a sliding window all is one part: its steps take as long as
        the contexts of all sequences say.
    size : int
        Requests of a part.

    Raises
    ------
    InvariantError
        If a segment has decode steps that are in no span of its time.
    """
    count = len(frames["requests"]["arrival_s"])
    if count <= size or _has_windows(frames, environment):
        yield Part(0, count, frames)
        return
    spans, segments = frames["spans"], frames["segments"]
    ended = np.maximum.accumulate(np.asarray(spans["end_s"]))
    starts = np.minimum.accumulate(np.asarray(spans["start_s"])[::-1])[::-1]
    owner = np.asarray(segments["request_id"])
    by_owner = np.argsort(owner, kind="stable")
    bounds = np.searchsorted(owner[by_owner], np.arange(0, count + size, size))
    num_lanes = 1 + int(np.max(spans["lane"], initial=0))
    gone, counted_to = np.zeros(1, np.int64), 0
    for number, first in enumerate(range(0, count, size)):
        last = min(first + size, count)
        requests = rows_of(frames["requests"], first, last)
        own = by_owner[bounds[number] : bounds[number + 1]]
        begin, end = _time_of(requests)
        row = int(np.searchsorted(ended, begin, side="right"))
        stop = max(row, int(np.searchsorted(starts, end, side="left")))
        # Decode steps of each lane before these spans: only what lies between two parts is counted.
        if row != counted_to:
            between = rows_of(spans, min(row, counted_to), max(row, counted_to))
            lanes = lane_numbers(between, num_lanes)
            steps = np.where(np.asarray(between["num_decodes"]) > 0, between["num_steps"], 0)
            more = np.bincount(lanes, weights=steps, minlength=len(gone)).astype(np.int64)
            gone = np.pad(gone, (0, len(more) - len(gone)))
            gone, counted_to = gone + (more if row > counted_to else -more), row
        stays = {name: np.asarray(segments[name])[own] for name in segments}
        stays["request_id"] = stays["request_id"] - first
        lanes = lane_numbers(stays, num_lanes)
        before = np.zeros(len(own), np.int64)
        known = lanes < len(gone)
        before[known] = gone[lanes[known]]
        for name in ("first_step", "last_step"):
            stays[name] = stays[name] - before
        if np.any(stays["first_step"] < 0):
            raise InvariantError("a segment begins before the steps of its time: of another run")
        yield Part(
            first,
            last,
            {
                "requests": requests,
                "segments": stays,
                "spans": rows_of(spans, row, stop),
                "instances": frames["instances"],
                "windows": frames["windows"],
            },
        )


def _time_of(requests: Columns) -> tuple[float, float]:
    """Return from when to when (s) these requests may be in steps."""
    scheduled = np.asarray(requests["scheduled_s"], dtype=np.float64)
    begun = ~np.isnan(scheduled)
    if not begun.any():
        return np.inf, np.inf
    last = np.asarray(requests["last_token_s"], dtype=np.float64)[begun]
    ended = np.asarray(requests["status"], dtype=object)[begun] == "finished"
    end = float(last.max()) if ended.all() else np.inf
    return float(scheduled[begun].min()), end


def _has_windows(frames: Frames, environment: Environment) -> bool:
    """Tell whether step times ask how far each sequence reaches back."""
    kinds = {(kind.model, kind.gpu) for kind in kinds_of(frames["instances"])}
    return any(environment.part(*kind).model.spec.reach is not None for kind in kinds)
