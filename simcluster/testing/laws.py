"""Laws that the frames of any run obey, whatever the strategy: conservation, order, no idling.

For tests, ours and a stranger's: call `check_laws` on a `simcluster.runs.simulate.Result`.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from simcluster.frames.schema import Columns
from simcluster.request import tokens_gained
from simcluster.runs.result import Result
from simcluster.units import FloatArray

STAMPS = (
    "arrival_s",
    "routed_s",
    "scheduled_s",
    "first_token_s",
    "decode_start_s",
    "last_token_s",
)
"""Stamps of a request in the order in which they happen."""


def require(condition: bool | np.bool_, message: str) -> None:
    """Raise ``AssertionError(message)`` unless `condition` holds, also under ``python -O``."""
    if not condition:
        raise AssertionError(message)


def check_laws(result: Result) -> None:
    """Check every law of this module that applies to `result`.

    Raises
    ------
    AssertionError
        With a line that says which law is broken.
    """
    check_requests(result)
    check_cache(result)
    check_spans(result)
    check_tokens(result)
    check_stamps(result)
    check_no_idling(result)
    check_windows(result)


def check_windows(result: Result) -> None:
    """At most one prefill window of a macro instance is open, and requests only enter open ones."""
    requests, windows = result.columns["requests"], result.columns["windows"]
    require(bool((windows["opened_s"] <= windows["closed_s"]).all()), "a window closes too early")
    for macro in np.unique(windows["macro"]):
        mine = windows["macro"] == macro
        opened, closed = windows["opened_s"][mine], windows["closed_s"][mine]
        require(bool((opened[1:] >= closed[:-1]).all()), "two windows are open at a time")
    routed = requests["routed_s"]
    # Of several groups those with windows: a group is one model on one GPU type.
    instances = result.columns["instances"]
    groups = list(zip(instances["model"], instances["gpu"], strict=True))
    with_windows = {groups[number] for number in windows["instance"]}
    turns = np.array([group in with_windows for group in groups], dtype=bool)
    at = requests["prefill_instance"]
    enters = np.isnan(routed) | (at < 0) | ~turns[at]
    for number in np.unique(windows["instance"]):
        mine = windows["instance"] == number
        here = requests["prefill_instance"] == number
        inside = (windows["opened_s"][mine] <= routed[here, None]) & (
            routed[here, None] <= windows["closed_s"][mine]
        )
        enters[here] |= inside.any(axis=1)
    require(bool(enters.all()), "a request is routed to a closed window")


def check_requests(result: Result) -> None:
    """Every arrived request is finished, rejected or unfinished, with stamps in order.

    A finished one has all its tokens; one that was rejected has no stamp but its arrival.
    """
    requests = result.columns["requests"]
    count = len(requests["request_id"])
    status = requests["status"]
    require(bool(np.array_equal(requests["request_id"], np.arange(count))), "ids are not 0, 1, ..")
    known = np.isin(status.astype(str), ["finished", "rejected", "unfinished"])
    require(bool(known.all()), "arrived = finished + rejected + unfinished")
    finished, rejected = status == "finished", status == "rejected"
    _check_finished(requests, finished, result.end_s)
    for name in (*STAMPS[2:], "first_output_s", "last_output_s"):
        require(bool(np.isnan(requests[name][rejected]).all()), f"a rejected request has {name}")
    require(not requests["num_output_tokens"][rejected].any(), "a rejected request has tokens")
    produced, asked = requests["num_output_tokens"], requests["output_len"]
    require(bool((produced <= asked).all()), "more tokens than asked for")


def _check_finished(requests: Columns, finished: npt.NDArray[np.bool_], end_s: float) -> None:
    row = {name: column[finished] for name, column in requests.items()}
    require(
        bool((row["num_output_tokens"] == row["output_len"]).all()),
        "a finished request lacks tokens",
    )
    for earlier, later in pairwise(STAMPS):
        require(bool((row[earlier] <= row[later]).all()), f"{earlier} after {later}")
    require(bool((row["scheduled_s"] < row["first_token_s"]).all()), "a prefill takes no time")
    # A preempted request can get the rest of its tokens from the prefills of its recomputations.
    decodes = (row["output_len"] > 1) & (row["num_preemptions"] == 0)
    decoded = row["decode_start_s"][decodes] < row["last_token_s"][decodes]
    require(bool(decoded.all()), "a decode takes no time")
    one = row["output_len"] == 1
    same = row["first_token_s"][one] == row["last_token_s"][one]
    require(bool(same.all()), "the first token of a one-token answer is not its last")
    require(bool((row["first_output_s"] >= row["first_token_s"]).all()), "released before computed")
    require(bool((row["last_output_s"] >= row["last_token_s"]).all()), "released before computed")
    require(bool((row["last_output_s"] >= row["first_output_s"]).all()), "output out of order")
    require(bool((row["last_output_s"] <= end_s).all()), "an output after the end of the run")


def check_cache(result: Result) -> None:
    """What was found in the KV cache is part of what was looked for, and never a whole prompt."""
    requests, instances = result.columns["requests"], result.columns["instances"]
    cached = requests["num_cached_tokens"]
    require(bool((cached >= 0).all()), "fewer than no cached tokens")
    require(bool((cached < requests["prompt_len"]).all()), "a prefill without a token")
    admitted = ~np.isnan(requests["scheduled_s"])
    require(not cached[~admitted].any(), "cached tokens before the admission")
    found, asked = instances["cached_blocks"], instances["asked_blocks"]
    require(bool(((found >= 0) & (found <= asked)).all()), "more blocks found than looked for")
    swaps, preemptions = instances["num_swaps"], instances["num_preemptions"]
    require(bool(((swaps >= 0) & (swaps <= preemptions)).all()), "more swaps than preemptions")


def check_spans(result: Result) -> None:
    """One step at a time per instance; busy time, steps and KV usage add up."""
    spans, instances = result.columns["spans"], result.columns["instances"]
    require(bool((spans["start_s"] < spans["end_s"]).all()), "a span takes no time")
    require(bool((spans["end_s"] <= result.end_s).all()), "a span after the end of the run")
    require(bool((spans["num_steps"] >= 1).all()), "a span without steps")
    decodes, prefills = spans["num_decodes"] > 0, spans["num_prefills"] > 0
    kind = np.where(decodes & prefills, "mixed", np.where(decodes, "decode", "prefill"))
    require(bool((kind == spans["kind"]).all() and (decodes | prefills).all()), "kind of a span")
    several = spans["num_prefills"][prefills & (spans["num_steps"] > 1)]
    require(bool((several == 1).all()), "a run of steps with chunks of several prompts")
    usage = np.concatenate([spans["kv_usage"], instances["peak_kv_usage"]])
    require(bool(((usage >= 0) & (usage <= 1)).all()), "KV usage outside 0 to 1")
    for row, instance in enumerate(instances["instance"]):
        mine = spans["instance"] == instance
        lanes = np.unique(spans["lane"][mine])
        for lane in lanes:
            both = mine & (spans["lane"] == lane)
            start, end = spans["start_s"][both], spans["end_s"][both]
            order = np.argsort(start, kind="stable")
            require(bool((start[order][1:] >= end[order][:-1]).all()), "spans overlap")
        # Exact: times are multiples of one tick.
        busy_s = (spans["end_s"][mine] - spans["start_s"][mine]).sum()
        require(instances["busy_s"][row] == busy_s, "busy time is not that of the spans")
        require(bool(busy_s <= len(lanes) * result.end_s), "busier than the clock")
        require(instances["num_steps"][row] == spans["num_steps"][mine].sum(), "steps lost")
        peak = instances["peak_kv_usage"][row]
        require(bool((spans["kv_usage"][mine] <= peak + 1e-12).all()), "usage above its peak")


def check_tokens(result: Result) -> None:
    """Tokens computed are tokens asked for; preemptions add what is computed again, no more.

    Applies to runs in which nothing is left unfinished.
    """
    requests, spans = result.columns["requests"], result.columns["spans"]
    if (requests["status"] == "unfinished").any():
        return
    finished = requests["status"] == "finished"
    _check_segments(result.columns["segments"], requests, finished)
    preemptions = int(requests["num_preemptions"].sum())
    per_instance = result.columns["instances"]["num_preemptions"]
    require(preemptions == per_instance.sum(), "preemptions by request and by instance differ")
    asked = int(requests["output_len"][finished].sum())
    gained = tokens_gained(spans["num_steps"].astype(np.int64))
    by_decode = int((gained * spans["num_decodes"]).sum())
    by_prefill = asked - by_decode
    count = int(finished.sum())
    require(count <= by_prefill <= count + preemptions, "tokens produced are not tokens asked for")
    prefilled = int((spans["num_steps"].astype(np.int64) * spans["prefill_tokens"]).sum())
    prompts = int(requests["prompt_len"][finished].sum())
    cached = int(requests["num_cached_tokens"][finished].sum())
    require(prefilled + cached >= prompts, "prompt tokens skipped")
    require(prefilled + cached == prompts or preemptions > 0, "prompt tokens computed twice")


def _check_segments(segments: Columns, requests: Columns, finished: npt.NDArray[np.bool_]) -> None:
    """Tokens of a request: one per decode step of its stays, one per prefill that ended."""
    stays = segments["last_step"] - segments["first_step"]
    require(bool((stays >= 0).all()), "a stay that ends before it begins")
    count = len(finished)
    gained = tokens_gained(stays.astype(np.int64))
    by_decode = np.bincount(segments["request_id"], weights=gained, minlength=count)
    by_prefill = (requests["num_output_tokens"] - by_decode)[finished]
    most = 1 + requests["num_preemptions"][finished]
    require(bool(((by_prefill >= 1) & (by_prefill <= most)).all()), "tokens outside the stays")
    num_stays = np.bincount(segments["request_id"], minlength=count)[finished]
    require(bool((num_stays <= most).all()), "more stays than preemptions allow")


def check_stamps(result: Result) -> None:
    """Stamps of finished requests are starts and ends of steps that do what the stamp says.

    A prefill starts and ends with prefill steps of its instance. A request that was not preempted
    starts to decode with a decode step, in the role ``mixed`` with the first after its prefill.
    """
    requests, spans = result.columns["requests"], result.columns["spans"]
    finished = requests["status"] == "finished"
    roles = result.columns["instances"]["pool"]
    for instance in range(len(roles)):
        mine = spans["instance"] == instance
        prefills, decodes = mine & (spans["num_prefills"] > 0), mine & (spans["num_decodes"] > 0)
        here = finished & (requests["prefill_instance"] == instance)
        for stamp, edges in (
            (requests["scheduled_s"][here], spans["start_s"][prefills]),
            (requests["first_token_s"][here], spans["end_s"][prefills]),
        ):
            require(bool(np.isin(stamp, edges).all()), "a prefill outside of prefill steps")
        here = finished & (requests["decode_instance"] == instance)
        ends = spans["end_s"][mine]
        require(bool(np.isin(requests["last_token_s"][here], ends).all()), "an end within a step")
        here &= (requests["num_preemptions"] == 0) & (requests["output_len"] > 1)
        starts = np.sort(spans["start_s"][decodes])
        stamp = requests["decode_start_s"][here]
        require(bool(np.isin(stamp, starts).all()), "a decode outside of decode steps")
        if roles[instance] == "mixed":
            first = starts[np.searchsorted(starts, requests["first_token_s"][here])]
            one_lane = not spans["lane"][mine].any()
            require(not one_lane or bool((stamp == first).all()), "a decode starts late or early")


def check_no_idling(result: Result) -> None:
    """An instance of the role ``mixed`` is busy exactly while it holds a request.

    Its spans cover the time from routing to last token of its requests, and nothing else. Applies
    to runs in which nothing is left unfinished.
    """
    requests, spans = result.columns["requests"], result.columns["spans"]
    instances = result.columns["instances"]
    if (requests["status"] == "unfinished").any():
        return
    for instance in instances["instance"][instances["pool"] == "mixed"]:
        mine = requests["prefill_instance"] == instance
        held = union_of(requests["routed_s"][mine], requests["last_token_s"][mine])
        steps = spans["instance"] == instance
        busy = union_of(spans["start_s"][steps], spans["end_s"][steps])
        require(
            bool(np.array_equal(held, busy)),
            f"instance {instance} idles with work, or works without",
        )


def union_of(start: FloatArray, end: FloatArray) -> FloatArray:
    """Return the union of the intervals from `start` to `end`, those that touch made one.

    Parameters
    ----------
    start, end : ndarray of float64
        Shape ``(num_intervals,)``.

    Returns
    -------
    ndarray of float64
        Shape ``(num_disjoint, 2)``, sorted.

    Examples
    --------
    >>> union_of(np.array([5.0, 0.0, 1.0]), np.array([6.0, 1.0, 3.0])).tolist()
    [[0.0, 3.0], [5.0, 6.0]]
    """
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    if not len(start):
        return np.empty((0, 2))
    reach = np.maximum.accumulate(end)
    opens = np.concatenate([[True], start[1:] > reach[:-1]])
    closes = np.concatenate([opens[1:], [True]])
    return np.column_stack([start[opens], reach[closes]])
