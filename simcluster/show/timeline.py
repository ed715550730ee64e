"""Timelines: what instances, links, requests and kernels did, for ui.perfetto.dev.

The file is JSON in the Trace Event Format of Chrome's trace viewer, which Perfetto
(https://ui.perfetto.dev) and ``chrome://tracing`` open. Every instance and every link is a process;
the requests are one more.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt

from simcluster._version import __version__
from simcluster.config import Environment
from simcluster.errors import ConfigError, DataError
from simcluster.frames.schema import Columns
from simcluster.frames.unroll import Frames, InstanceKind, kinds_of, steps
from simcluster.runs.kernel_budget import MAX_EVENTS, events_per_step
from simcluster.runs.result import Kept
from simcluster.runs.simulate import simulate
from simcluster.scenario.scenario import Scenario
from simcluster.units import US

Event = dict[str, Any]
"""One trace event: what it is (``ph``), when (``ts``, us), where (``pid``, ``tid``), ``name``..."""

Resolution = Literal["span", "step", "kernel"]


_NS_PER_S: Final = 1e9
_NS_PER_US: Final = US * _NS_PER_S
_CHROME_COLOURS: Final = {
    "prefill": "thread_state_iowait",
    "decode": "thread_state_running",
    "mixed": "thread_state_runnable",
}
"""Names of the palette of ``chrome://tracing``; Perfetto chooses colours by the names of slices."""


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """The interval that is drawn."""

    start_s: float
    end_s: float
    """What was asked for (s): steps, kernels and transfers that reach into it are drawn whole."""
    first_s: float
    last_s: float
    """From the start of the first of those steps to the end of the last (s): requests and prefill
    windows are cut there."""

    def shows(self, starts_s: npt.ArrayLike, ends_s: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Tell which of some things reach into it; NaN stands for not yet."""
        return _overlap(starts_s, ends_s, self.start_s, self.end_s)

    def cut(self, start_s: float, end_s: float) -> tuple[float, float]:
        """Return the part of something that is drawn; NaN for an end stands for not yet."""
        end_s = self.last_s if np.isnan(end_s) else min(end_s, self.last_s)
        return max(start_s, self.first_s), end_s


def _overlap(
    starts_s: npt.ArrayLike, ends_s: npt.ArrayLike, start_s: float, end_s: float
) -> npt.NDArray[np.bool_]:
    starts, ends = np.asarray(starts_s, np.float64), np.asarray(ends_s, np.float64)
    ends = np.where(np.isnan(ends), np.inf, ends)
    overlap: npt.NDArray[np.bool_] = (starts < end_s) & (ends > start_s)
    return overlap


# Events -----------------------------------------------------------------------------------------


def _us(time_s: float) -> float:
    """Microseconds of the trace, rounded to the nanoseconds that the viewers keep."""
    return round(time_s * _NS_PER_S) / _NS_PER_US


class _Tracks:
    """Numbers and names of processes and threads, all different, as those of a system are.

    Attributes
    ----------
    names : list of dict
        The metadata events.
    """

    def __init__(self) -> None:
        self.names: list[Event] = []
        self._last = 0

    def process(self, name: str) -> int:
        """Return the number of a new process, shown below those before it."""
        pid = self._number()
        self._name("process_name", pid, 0, {"name": name})
        self._name("process_sort_index", pid, 0, {"sort_index": pid})
        return pid

    def thread(self, pid: int, name: str) -> int:
        """Return the number of a new thread of process `pid`, shown below those before it."""
        tid = self._number()
        self._name("thread_name", pid, tid, {"name": name})
        self._name("thread_sort_index", pid, tid, {"sort_index": tid})
        return tid

    def _number(self) -> int:
        self._last += 1
        return self._last

    def _name(self, kind: str, pid: int, tid: int, args: Mapping[str, object]) -> None:
        event: Event = {"ph": "M", "name": kind, "pid": pid, "args": args}
        if tid:
            event["tid"] = tid
        self.names.append(event)


_Args = Mapping[str, object]


def _slice(
    thread: tuple[int, int], name: str, interval: tuple[float, float], args: _Args | None = None
) -> Event:
    """Return a slice of a thread, given as process and thread; what happens in turn."""
    start, end = (round(time_s * _NS_PER_S) for time_s in interval)
    event: Event = {"ph": "X", "name": name, "pid": thread[0], "tid": thread[1]}
    event |= {"ts": start / _NS_PER_US, "dur": (end - start) / _NS_PER_US}
    if args:
        event["args"] = _known(args)
    return event


def _async(
    row: tuple[int, str, int], name: str, interval: tuple[float, float], args: _Args | None = None
) -> tuple[Event, Event]:
    """Return begin and end of a slice in a row, given as process, kind and number.

    Rows of a kind may overlap; slices of a row nest.
    """
    pid, kind, number = row
    event: Event = {"cat": kind, "name": name, "pid": pid, "id2": {"local": f"{number:#x}"}}
    begin, end = ({"ph": ph, **event, "ts": _us(t)} for ph, t in zip("be", interval, strict=True))
    if args:
        begin["args"] = _known(args)
    return begin, end


def _known(args: Mapping[str, object]) -> dict[str, object]:
    """Return what JSON can hold: without NaN, which stands for not yet."""
    return {k: v for k, v in args.items() if not (isinstance(v, float) and np.isnan(v))}


def _rows(columns: Columns, rows: npt.NDArray[Any], *names: str) -> Iterator[tuple[Any, ...]]:
    """Give the values of some columns, row by row, as Python's own."""
    return zip(*(np.asarray(columns[name])[rows].tolist() for name in names), strict=True)


def view_of(frames: Frames, log: Columns, start_s: float = 0.0, end_s: float = np.inf) -> View:
    """Return the view of an interval.

    Parameters
    ----------
    frames : mapping of str to columns
        ``requests`` and ``transfers`` of the run.
    log : mapping of str to array
        Its steps, or its spans.
    start_s, end_s : float
        The interval (s).

    Raises
    ------
    ConfigError
        If nothing happens in it.
    """
    if not start_s < end_s:
        rule = f"is not after the start at {start_s:g} s"
        raise ConfigError("--end", end_s, rule, "Give a later one, or leave it out.")
    requests, transfers = frames["requests"], frames["transfers"]
    present = requests["status"] != "rejected"
    last_s = max(
        float(np.max(times, initial=0.0))
        for times in (log["end_s"], requests["arrival_s"][present], transfers["end_s"])
    )
    shown = _overlap(log["start_s"], log["end_s"], start_s, end_s)
    if not (
        np.any(shown)
        or np.any(
            _overlap(requests["arrival_s"], requests["last_output_s"], start_s, end_s) & present
        )
        or np.any(_overlap(transfers["requested_s"], transfers["end_s"], start_s, end_s))
    ):
        until = "" if np.isinf(end_s) else f" and before {end_s:g} s"
        rule = f"nothing happens after {start_s:g} s{until}"
        remedy = f"The run takes {last_s:.6g} s: give a part of it."
        raise ConfigError("--start", start_s, rule, remedy)
    return View(
        start_s,
        end_s,
        min(start_s, float(np.min(log["start_s"][shown], initial=np.inf))),
        max(min(end_s, last_s), float(np.max(log["end_s"][shown], initial=0.0))),
    )


def trace_events(frames: Frames, log: Columns, view: View) -> Iterator[Event]:
    """Give the events of a timeline, names first.

    Parameters
    ----------
    frames : mapping of str to columns
        Those of a run, with or without ``kernels``.
    log : mapping of str to array
        Its steps, or its spans for fewer events.
    view : View
        What to draw; requests and prefill windows are cut at its ends.

    Yields
    ------
    dict
        One event.
    """
    tracks = _Tracks()
    parts = [_requests(frames, view, tracks.process("requests"))]
    threads: dict[tuple[int, int], tuple[int, int]] = {}
    everyone = np.arange(len(frames["instances"]["instance"]))
    for instance, num_gpus in _rows(frames["instances"], everyone, "instance", "num_gpus"):
        pid = tracks.process(_instance_name(frames["instances"], instance))
        for lane in np.unique(log["lane"][log["instance"] == instance]).tolist():
            name = "steps" if lane == 0 else f"steps, batch {lane}"
            threads[instance, lane] = pid, tracks.thread(pid, name)
        if np.any(frames["windows"]["instance"] == instance):
            tid = tracks.thread(pid, "prefill window")
            parts.append(_windows(frames["windows"], instance, view, (pid, tid)))
        parts.append(_levels(frames["spans"], instance, view, pid))
        if "kernels" in frames:
            ranks = {
                (rank, unit): (pid, tracks.thread(pid, f"rank {rank} {unit.upper()}"))
                for rank in range(num_gpus)
                for unit in ("cpu", "gpu")
            }
            parts.append(_kernels(frames["kernels"], instance, ranks))
    parts.append(_steps(frames, log, view, threads))
    parts.append(_handovers(frames["requests"], log, view, threads))
    transfers = frames["transfers"]
    names = {name for path in set(transfers["path"].tolist()) for name in path.split(" > ")}
    links = {name: tracks.process(f"link {name}") for name in sorted(names)}
    parts.append(_transfers(transfers, view, links))
    yield from tracks.names
    for part in parts:
        yield from part


def _instance_name(instances: Columns, instance: int) -> str:
    does, node, num_gpus = (instances[name][instance] for name in ("pool", "node", "num_gpus"))
    role = "" if does == "mixed" else f"{does}, "
    gpus = "1 GPU" if num_gpus == 1 else f"{num_gpus} GPUs"
    return f"instance {instance} ({role}node {node}, {gpus})"


def _steps(
    frames: Frames, log: Columns, view: View, threads: Mapping[tuple[int, int], tuple[int, int]]
) -> Iterator[Event]:
    """Steps, or spans, of every instance."""
    prefilled = _prefilled(frames)
    rows = np.flatnonzero(view.shows(log["start_s"], log["end_s"]))
    counts = log["num_steps"] if "num_steps" in log else np.ones(len(log["end_s"]), np.int64)
    names = ("instance", "lane", "start_s", "end_s", "kind")
    numbers = ("num_decodes", "context_tokens", "num_prefills", "prefill_tokens")
    for (instance, lane, start_s, end_s, kind), values, num_steps in zip(
        _rows(log, rows, *names), _rows(log, rows, *numbers), counts[rows].tolist(), strict=True
    ):
        args: dict[str, object] = dict(zip(numbers, values, strict=True))
        if num_steps > 1:
            args["num_steps"] = num_steps
        if ended := prefilled.get((instance, end_s)):
            args["prefilled_requests"] = ", ".join(map(str, ended))
        event = _slice(threads[instance, lane], kind, (start_s, end_s), args)
        yield event | {"cat": "step", "cname": _CHROME_COLOURS[kind]}


def _prefilled(frames: Frames) -> dict[tuple[int, float], list[int]]:
    """Requests whose prompt was computed, by instance and time (s)."""
    requests, segments = frames["requests"], frames["segments"]
    found: dict[tuple[int, float], list[int]] = {}
    first = np.flatnonzero(~np.isnan(requests["first_token_s"]))
    again = np.flatnonzero(
        ~np.isnan(segments["start_s"])
        & (segments["start_s"] != requests["first_token_s"][segments["request_id"]])
    )
    for request_id, instance, time_s in (
        *_rows(requests, first, "request_id", "prefill_instance", "first_token_s"),
        *_rows(segments, again, "request_id", "instance", "start_s"),
    ):
        found.setdefault((instance, time_s), []).append(request_id)
    return found


def _handovers(
    requests: Columns, log: Columns, view: View, threads: Mapping[tuple[int, int], tuple[int, int]]
) -> Iterator[Event]:
    """Arrows from the prefill step of a request to its first decode step on another instance."""
    rows = np.flatnonzero(view.shows(log["start_s"], log["end_s"]))
    starts: dict[tuple[int, float], tuple[int, float]] = {}
    ends: dict[tuple[int, float], tuple[int, float]] = {}
    for instance, lane, start_s, end_s in _rows(log, rows, "instance", "lane", "start_s", "end_s"):
        starts[instance, start_s] = ends[instance, end_s] = lane, (start_s + end_s) / 2
    moved = (requests["prefill_instance"] != requests["decode_instance"]) & ~np.isnan(
        requests["decode_start_s"]
    )
    names = ("request_id", "prefill_instance", "first_token_s", "decode_instance", "decode_start_s")
    for request_id, source, first_s, destination, decode_s in _rows(
        requests, np.flatnonzero(moved), *names
    ):
        if (source, first_s) in ends and (destination, decode_s) in starts:
            event: Event = {"cat": "request", "name": "KV handover", "id": request_id}
            for phase, instance, (lane, middle_s) in (
                ("s", source, ends[source, first_s]),
                ("f", destination, starts[destination, decode_s]),
            ):
                pid, tid = threads[instance, lane]
                yield {"ph": phase, **event, "bp": "e", "pid": pid, "tid": tid, "ts": _us(middle_s)}


def _windows(
    windows: Columns, instance: int, view: View, thread: tuple[int, int]
) -> Iterator[Event]:
    """Prefill windows of one instance, and how long its output is held back in each."""
    own = (windows["instance"] == instance) & view.shows(windows["opened_s"], windows["closed_s"])
    for opened_s, closed_s, released_s in _rows(
        windows, np.flatnonzero(own), "opened_s", "closed_s", "released_s"
    ):
        times = {"opened_s": opened_s, "closed_s": closed_s}
        yield _slice(thread, "prefill window", view.cut(opened_s, closed_s), times)
        if np.isnan(released_s):
            continue
        held_until_s = min(released_s, closed_s)
        for name, start_s, end_s in (
            ("output held back", opened_s, held_until_s),
            ("output streams", held_until_s, closed_s),
        ):
            if start_s < end_s and start_s < view.last_s and end_s > view.first_s:
                yield _slice(thread, name, view.cut(start_s, end_s))


def _levels(spans: Columns, instance: int, view: View, pid: int) -> Iterator[Event]:
    """Requests and KV usage of one instance, at the end of every span; each lane by itself."""
    own = (spans["instance"] == instance) & view.shows(spans["start_s"], spans["end_s"])
    names = ("lane", "end_s", "num_waiting", "num_running", "kv_usage")
    rows = _rows(spans, np.flatnonzero(own), *names)
    for lane, end_s, num_waiting, num_running, kv_usage in rows:
        of = f", batch {lane}" if lane else ""
        for name, args in (
            (f"requests{of}", {"waiting": num_waiting, "running": num_running}),
            (f"KV blocks in use{of}", {"%": 100 * kv_usage}),
        ):
            yield {"ph": "C", "name": name, "pid": pid, "ts": _us(end_s), "args": args}


def _kernels(
    kernels: Columns,
    instance: int,
    threads: Mapping[tuple[int, str], tuple[int, int]],
) -> Iterator[Event]:
    """What the CPU threads and GPUs of one instance did."""
    own = np.flatnonzero(kernels["instance"] == instance)
    for rank, unit, name, start_s, end_s in _rows(
        kernels, own, "rank", "unit", "name", "start_s", "end_s"
    ):
        yield _slice(threads[rank, unit], name, (start_s, end_s)) | {"cat": unit}


def _requests(frames: Frames, view: View, pid: int) -> Iterator[Event]:
    """One row per request: from its arrival to its last output, and in which phase it was."""
    requests = frames["requests"]
    present = view.shows(requests["arrival_s"], requests["last_output_s"])
    present &= requests["status"] != "rejected"
    sent_s = dict(zip(*(frames["transfers"][n][::-1].tolist() for n in _SENT), strict=True))
    digits = len(str(len(present)))
    names = list(requests)
    for values in _rows(requests, np.flatnonzero(present), *names):
        request = dict(zip(names, values, strict=True))
        number = request["request_id"]
        row = pid, "request", number
        interval = view.cut(request["arrival_s"], request["last_output_s"])
        args = {name: request[name] for name in _REQUEST_ARGS}
        begin, end = _async(row, f"request {number:0{digits}}", interval, args)
        yield begin
        for name, start_s, end_s in _phases(request, sent_s.get(number, np.nan)):
            if start_s < view.last_s and not end_s <= view.first_s:
                yield from _async(row, name, view.cut(start_s, end_s))
        yield end


_SENT: Final = ("request_id", "requested_s")
_REQUEST_ARGS: Final = (
    "prompt_len",
    "output_len",
    "num_output_tokens",
    "status",
    "prefill_instance",
    "decode_instance",
    "num_preemptions",
    "arrival_s",
    "queue_s",
    "ttft_s",
    "tpot_s",
    "e2el_s",
)


def _phases(row: Mapping[str, Any], sent_s: float) -> Iterator[tuple[str, float, float]]:
    """Phases of a request in order, each with start and end (s); NaN for not yet.

    `sent_s` is when its KV left for another instance, NaN if it did not.
    """
    first_token_s = row["first_token_s"]
    arrived_s = first_token_s + row["transfer_s"]
    sent_s = first_token_s if np.isnan(sent_s) else sent_s
    stamps = (
        ("queued", row["arrival_s"], row["scheduled_s"]),
        ("prefill", row["scheduled_s"], first_token_s),
        ("waits for KV blocks", first_token_s, sent_s),
        ("KV transfer", sent_s, arrived_s),
        ("waits to decode", arrived_s, row["decode_start_s"]),
        ("decode", row["decode_start_s"], row["last_token_s"]),
        ("output held back", row["last_token_s"], row["last_output_s"]),
    )
    for name, start_s, end_s in stamps:
        # What has begun and not ended lasts; a phase of no length is left out.
        if not np.isnan(start_s) and start_s != end_s:
            yield name, start_s, end_s


def _transfers(transfers: Columns, view: View, links: Mapping[str, int]) -> Iterator[Event]:
    """KV transfers on every link of their paths."""
    shown = np.flatnonzero(view.shows(transfers["requested_s"], transfers["end_s"]))
    names = ("request_id", "path", "num_bytes", "requested_s", "start_s", "end_s", "bytes_per_s")
    for number, (request_id, path, num_bytes, requested_s, start_s, end_s, bytes_per_s) in zip(
        shown.tolist(), _rows(transfers, shown, *names), strict=True
    ):
        args = {
            "request": request_id,
            "num_bytes": num_bytes,
            "latency_s": start_s - requested_s,
            "bytes_per_s": bytes_per_s,
        }
        for name in path.split(" > "):
            row = links[name], "transfer", number
            yield from _async(row, "KV transfer", view.cut(requested_s, end_s), args)


# Timeline files ---------------------------------------------------------------------------------


def write_timeline(
    scenario: Scenario,
    out: str | Path,
    *,
    strategy: str | None = None,
    rate_rps: float | None = None,
    seed: int | None = None,
    resolution: Resolution = "step",
    start_s: float = 0.0,
    end_s: float | None = None,
) -> int:
    """Simulate one strategy and write its timeline.

    Parameters
    ----------
    scenario : Scenario
        From `simcluster.load`.
    out : str or Path
        The file; compressed if it ends with ``.gz``.
    strategy, rate_rps, seed
        Which run, as in `simcluster.simulate`.
    resolution : str
        What is drawn of the instances: ``"span"`` runs of equal steps, ``"step"`` every step,
        ``"kernel"`` every kernel beside the steps.
    start_s, end_s : float
        Which interval (s); by default all of the run.

    Raises
    ------
    ConfigError
        If nothing happens in the interval, or more kernels than make sense.
    DataError
        If `out` cannot be written.
    """
    result = simulate(scenario, strategy=strategy, rate_rps=rate_rps, seed=seed, resolution="span")
    frames = Kept(result.columns)
    log: Columns = frames["spans"]
    if resolution != "span":
        log = steps(frames, scenario.environment)
    view = view_of(frames, log, start_s, np.inf if end_s is None else end_s)
    if resolution == "kernel":
        _refuse_too_many(num_kernel_events(frames, log, view, scenario.environment), view)
        stop_s = min(view.last_s, scenario.run.max_time_s or np.inf)
        inside = simulate(
            dataclasses.replace(scenario, run=dataclasses.replace(scenario.run, max_time_s=stop_s)),
            strategy=strategy,
            rate_rps=rate_rps,
            seed=seed,
            resolution="span",
            kernels_in=(view.start_s, view.end_s),
        )
        frames["kernels"] = inside.columns["kernels"]
    about = {
        "simcluster": __version__,
        "strategy": result.strategy,
        "rate_rps": None if np.isnan(result.rate_rps) else result.rate_rps,
        "seed": result.seed,
    }
    return write_events(trace_events(frames, log, view), out, about)


def num_kernel_events(frames: Frames, log: Columns, view: View, environment: Environment) -> int:
    """Estimate the events of a simulation that runs the steps in view kernel by kernel."""
    instances = frames["instances"]
    group = np.asarray(instances["tp_size"], dtype=np.int64)
    shown = view.shows(log["start_s"], log["end_s"])
    # A pipeline runs kernel by kernel from the start.
    pipelined = np.flatnonzero(instances["num_gpus"] > group)
    shown |= (log["start_s"] < view.end_s) & np.isin(log["instance"], pipelined)
    num_steps = np.bincount(log["instance"][shown], minlength=len(group))
    num_events = 0
    by_kind: Counter[InstanceKind] = Counter()
    for kind, steps_shown in zip(kinds_of(instances), num_steps.tolist(), strict=True):
        by_kind[kind] += steps_shown
    for kind, count in by_kind.items():
        if count:
            num_events += count * events_per_step(environment, kind)
    return num_events


def _refuse_too_many(num_events: int, view: View) -> None:
    if num_events > MAX_EVENTS:
        raise ConfigError(
            "--resolution",
            "kernel",
            f"the kernels between {view.first_s:.6g} s and {view.last_s:.6g} s are about "
            f"{num_events / 1e6:.0f} million events, more than {MAX_EVENTS / 1e6:.0f} million",
            "Give a shorter interval with --start and --end, or fewer requests with "
            "--set workload.num_requests=10.",
        )


def write_events(
    events: Iterable[Event], out: str | Path, about: Mapping[str, object] | None = None
) -> int:
    """Write trace events as a file that Perfetto and ``chrome://tracing`` open.

    Parameters
    ----------
    events : iterable of dict
        As from `trace_events`.
    out : str or Path
        The file; compressed if it ends with ``.gz``. It is there whole or not at all.
    about : mapping of str to object, optional
        What the viewers show as information on the trace.

    Raises
    ------
    DataError
        If the file cannot be written.
    """
    out = Path(out)
    encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
    partial = out.with_name(f".{out.name}.partial")
    open_ = gzip.open if out.suffix == ".gz" else open
    count = 0
    try:
        with open_(partial, "wt", encoding="utf-8") as file:
            file.write('{"displayTimeUnit":"ms","otherData":')
            file.write(encode(dict(about or {})) + ',"traceEvents":[')
            for event in events:
                file.write(",\n" if count else "\n")
                file.write(encode(event))
                count += 1
            file.write("\n]}\n")
        partial.replace(out)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DataError(f"{out}: cannot be written ({reason}). Give another file.") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return count
