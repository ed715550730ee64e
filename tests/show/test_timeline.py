"""Timelines: events that viewers accept, and that say what the frames say."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import simcluster.show.timeline
from simcluster import Scenario, load, simulate
from simcluster.cli import main
from simcluster.errors import ConfigError, DataError
from simcluster.frames.unroll import steps
from simcluster.show.timeline import num_kernel_events, trace_events, view_of, write_timeline

SCENARIOS = Path(__file__).parents[2] / "scenarios"
PADG = SCENARIOS / "nodg_vs_padg.toml"
Events = list[dict[str, Any]]


@pytest.fixture(scope="module")
def padg() -> Scenario:
    """A macro instance under a load that makes its windows go round."""
    return load(PADG, {"workload.num_requests": 300, "workload.rate_rps": 30})


@pytest.fixture(scope="module")
def fudg() -> Scenario:
    """Prefill and decode on different nodes: KV moves over links."""
    return load(
        SCENARIOS / "nodg_vs_fudg.toml", {"workload.num_requests": 40, "workload.rate_rps": 6}
    )


def last_strategy(scenario: Scenario) -> str:
    """Name of the last strategy of the file, the disaggregated one."""
    return scenario.strategies[-1].name


def written(scenario: Scenario, tmp_path: Path, **keywords: Any) -> Events:
    """Events of a timeline file of the last strategy."""
    out = tmp_path / "trace.json"
    count = write_timeline(scenario, out, strategy=last_strategy(scenario), **keywords)
    document = json.loads(out.read_text())
    assert document["otherData"]["strategy"] == last_strategy(scenario)
    assert len(document["traceEvents"]) == count
    assert [p.name for p in tmp_path.iterdir()] == ["trace.json"]
    return list(document["traceEvents"])


def nanoseconds(event: dict[str, Any]) -> tuple[int, int]:
    """Start and end of a slice, as the viewers keep them."""
    start = round(event["ts"] * 1000)
    return start, start + round(event["dur"] * 1000)


def threads(events: Events) -> dict[int, str]:
    """Names of the threads."""
    return {e["tid"]: e["args"]["name"] for e in events if e["name"] == "thread_name"}


def processes(events: Events) -> dict[int, str]:
    """Names of the processes."""
    return {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}


def assert_valid(events: Events) -> None:
    """What the Trace Event Format asks for, and what Perfetto drops where it is not so."""
    slices, rows = defaultdict(list), defaultdict(list)
    known = set(processes(events)) | set(threads(events))
    # Perfetto knows threads by number alone, and takes one numbered as its process for the main.
    assert len(known) == len(processes(events)) + len(threads(events))
    assert 0 not in known
    for event in events:
        assert event["pid"] in known
        if event["ph"] == "M":
            continue
        assert event["ts"] >= 0
        match event["ph"]:
            case "X":
                slices[event["tid"]].append(nanoseconds(event))
            case "b" | "e":
                rows[event["pid"], event["cat"], event["id2"]["local"]].append(event)
            case "C":
                assert all(np.isfinite(v) for v in event["args"].values())
            case other:
                assert other in "sf"
    for tid, own in slices.items():
        assert tid in threads(events)
        assert_nested(own)
    for own_events in rows.values():
        stack = []
        stamps = [event["ts"] for event in own_events]
        assert stamps == sorted(stamps)
        for event in own_events:
            if event["ph"] == "b":
                stack.append(event["name"])
            else:
                assert stack.pop() == event["name"]
        assert not stack
    assert_arrows_hit_slices(events)


def assert_nested(slices: list[tuple[int, int]]) -> None:
    """Slices of a thread lie inside one another or apart, never across."""
    open_until: list[int] = []
    for start, end in sorted(slices, key=lambda s: (s[0], -s[1])):
        assert end >= start
        while open_until and open_until[-1] <= start:
            open_until.pop()
        assert not open_until or end <= open_until[-1]
        open_until.append(end)


def assert_arrows_hit_slices(events: Events) -> None:
    """Both ends of every arrow lie in a slice of their thread."""
    arrows = defaultdict(list)
    slices = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            slices[event["tid"]].append(nanoseconds(event))
        elif event["ph"] in "sf":
            arrows[event["id"]].append(event)
    for ends in arrows.values():
        assert [e["ph"] for e in ends] == ["s", "f"]
        for end in ends:
            assert any(a <= end["ts"] * 1000 <= b for a, b in slices[end["tid"]])


def step_slices(events: Events) -> Events:
    """Slices of steps."""
    return [e for e in events if e.get("cat") == "step"]


# What is drawn ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["padg", "fudg"])
@pytest.mark.parametrize("resolution", ["span", "step"])
def test_a_timeline_is_valid_and_holds_every_step(
    name: str, resolution: Any, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """As many slices as steps or spans, with their numbers."""
    scenario: Scenario = request.getfixturevalue(name)
    events = written(scenario, tmp_path, resolution=resolution)
    assert_valid(events)
    result = simulate(scenario, strategy=last_strategy(scenario))
    spans, slices = result.columns["spans"], step_slices(events)
    expected = spans["num_steps"].sum() if resolution == "step" else len(spans["num_steps"])
    assert len(slices) == expected
    tokens = sum(e["args"]["num_decodes"] * e["args"].get("num_steps", 1) for e in slices)
    assert tokens == (spans["num_decodes"] * spans["num_steps"]).sum()
    assert sum(e["args"]["prefill_tokens"] for e in slices) == spans["prefill_tokens"].sum()
    last = max(nanoseconds(e)[1] for e in slices)
    assert last == round(spans["end_s"].max() * 1e9)


def test_requests_have_their_phases(fudg: Scenario, tmp_path: Path) -> None:
    """One row per request; its phases follow one another from arrival to last output."""
    events = written(fudg, tmp_path)
    result = simulate(fudg, strategy=last_strategy(fudg))
    columns = result.columns["requests"]
    rows = defaultdict(list)
    for event in events:
        if event.get("cat") == "request" and event["ph"] in "be":
            rows[int(event["id2"]["local"], 16)].append(event)
    assert set(rows) == set(columns["request_id"])
    for number, own in rows.items():
        first, *inner, last = own
        assert first["name"] == last["name"]
        assert round(first["ts"] * 1000) == round(columns["arrival_s"][number] * 1e9)
        assert round(last["ts"] * 1000) == round(columns["last_output_s"][number] * 1e9)
        stamps = [first["ts"], *(e["ts"] for e in inner), last["ts"]]
        assert stamps[0::2] == stamps[1::2]  # each phase begins where the one before ended
        assert "decode" in {e["name"] for e in inner}


def test_transfers_are_on_all_links_of_their_path(fudg: Scenario, tmp_path: Path) -> None:
    """Every transfer shows on the links that the frame names, with its bytes."""
    events = written(fudg, tmp_path)
    transfers = simulate(fudg, strategy=last_strategy(fudg)).columns["transfers"]
    names = processes(events)
    seen = defaultdict(int)
    for event in events:
        if event.get("cat") == "transfer" and event["ph"] == "b":
            seen[names[event["pid"]].removeprefix("link ")] += event["args"]["num_bytes"]
    for link, num_bytes in seen.items():
        ours = [link in path.split(" > ") for path in transfers["path"]]
        assert num_bytes == transfers["num_bytes"][ours].sum()
    assert set(seen) == {link for path in transfers["path"] for link in path.split(" > ")}
    moved = [e for e in events if e["ph"] == "s"]
    assert len(moved) == len({*transfers["request_id"]})


def test_prefill_windows_say_how_long_output_is_held(padg: Scenario, tmp_path: Path) -> None:
    """Windows, and inside them the time held back and the time that streams, fill each other."""
    events = written(padg, tmp_path)
    assert_valid(events)
    windows = simulate(padg, strategy=last_strategy(padg)).columns["windows"]
    slices = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            slices[event["name"]].append(event)
    open_s, held_s, streams_s = (
        sum(e["dur"] for e in slices[name]) / 1e6
        for name in ("prefill window", "output held back", "output streams")
    )
    assert len(slices["prefill window"]) == len(windows["opened_s"]) > 4
    assert open_s == pytest.approx(np.sum(windows["closed_s"] - windows["opened_s"]), abs=1e-6)
    held_until_s = np.minimum(windows["released_s"], windows["closed_s"])
    assert held_s == pytest.approx(np.sum(held_until_s - windows["opened_s"]), abs=1e-6)
    assert open_s == pytest.approx(held_s + streams_s, abs=1e-6)


def test_a_stretch_shows_what_reaches_into_it(padg: Scenario, tmp_path: Path) -> None:
    """Steps whole, everything longer cut where they end."""
    whole = [nanoseconds(e) for e in step_slices(written(padg, tmp_path))]
    events = written(padg, tmp_path, start_s=2.0, end_s=2.5)
    assert_valid(events)
    slices = [nanoseconds(e) for e in step_slices(events)]
    assert sorted(slices) == sorted(s for s in whole if s[0] < 2.5e9 and s[1] > 2.0e9)
    first, last = min(s[0] for s in slices), max(s[1] for s in slices)
    for event in events:
        if event["ph"] in "Xbe":
            assert first <= event["ts"] * 1000 + 1e-3
            assert event["ts"] * 1000 + event.get("dur", 0) * 1000 <= last + 1e-3
    assert any(e["name"].startswith("request ") for e in events)


def test_kernels_fill_their_steps(padg: Scenario, tmp_path: Path) -> None:
    """At resolution kernel every rank has a thread of the CPU and one of the GPU, inside steps."""
    events = written(padg, tmp_path, resolution="kernel", start_s=2.0, end_s=2.4)
    assert_valid(events)
    names = threads(events)
    steps_of = defaultdict(list)
    for event in step_slices(events):
        steps_of[event["pid"]].append(nanoseconds(event))
    kernels = [e for e in events if e.get("cat") in ("cpu", "gpu")]
    assert {names[e["tid"]] for e in kernels} == {
        "rank 0 CPU",
        "rank 1 CPU",
        "rank 0 GPU",
        "rank 1 GPU",
    }
    assert len(kernels) > 1000
    for event in kernels:
        start, end = nanoseconds(event)
        assert any(a <= start and end <= b for a, b in steps_of[event["pid"]])
    # The same steps as without kernels.
    plain = written(padg, tmp_path, start_s=2.0, end_s=2.4)
    assert sorted(map(nanoseconds, step_slices(events))) == sorted(
        map(nanoseconds, step_slices(plain))
    )


def test_a_pipeline_shows_its_batches_and_stages(padg: Scenario, tmp_path: Path) -> None:
    """A thread of steps for each batch in flight, and CPU and GPU for the ranks of all stages."""
    changes = {"workload.num_requests": 30, "workload.rate_rps": 30, "strategy.EcoServe.pp_size": 2}
    piped = load(PADG, changes)
    stretch = {"start_s": 0.5, "end_s": 0.8}
    events = written(piped, tmp_path, resolution="kernel", **stretch)
    assert_valid(events)
    assert {"steps", "steps, batch 1", "rank 3 GPU"} <= set(threads(events).values())
    counters = {e["name"] for e in events if e["ph"] == "C"}
    assert {"requests, batch 1", "KV blocks in use, batch 1"} <= counters
    kernels = [nanoseconds(e) for e in events if e.get("cat") == "gpu"]
    assert len(kernels) > 1000
    assert all(start < 0.8e9 and end > 0.5e9 for start, end in kernels)
    name = last_strategy(piped)
    plain = simulate(piped, strategy=name)
    log = steps(plain.columns, piped.environment)
    view = view_of(plain.columns, log, **stretch)
    estimate = num_kernel_events(plain.columns, log, view, piped.environment)
    inside = simulate(
        dataclasses.replace(piped, run=dataclasses.replace(piped.run, max_time_s=view.last_s)),
        strategy=name,
        kernels_in=(0.5, 0.8),
    )
    assert inside.num_events == pytest.approx(estimate, rel=0.25)


def test_the_estimate_of_kernel_events_is_near(padg: Scenario) -> None:
    """What a run kernel by kernel costs is known before it, within a quarter."""
    name = padg.strategies[0].name
    plain = simulate(padg, strategy=name)
    log = steps(plain.columns, padg.environment)
    view = view_of(plain.columns, log, 2.0, 2.2)
    inside = simulate(padg, strategy=name, kernels_in=(2.0, 2.2))
    estimate = num_kernel_events(plain.columns, log, view, padg.environment)
    assert inside.num_events - plain.num_events == pytest.approx(estimate, rel=0.25)


def test_a_compressed_timeline_holds_the_same(padg: Scenario, tmp_path: Path) -> None:
    """``.json.gz`` is the same document."""
    for name in ("a.json", "b.json.gz"):
        write_timeline(padg, tmp_path / name, start_s=1.0, end_s=1.2)
    packed = gzip.decompress((tmp_path / "b.json.gz").read_bytes())
    assert packed == (tmp_path / "a.json").read_bytes()


def test_what_has_not_ended_reaches_to_the_end(padg: Scenario) -> None:
    """A run cut short: requests without a last output, windows that never release."""
    cut = load(PADG, {"workload.num_requests": 60, "workload.rate_rps": 30, "run.max_time_s": 3.0})
    result = simulate(cut, strategy=last_strategy(cut))
    assert (result.columns["requests"]["status"] == "unfinished").any()
    log = steps(result.columns, cut.environment)
    events = list(trace_events(result.columns, log, view_of(result.columns, log)))
    assert_valid(events)
    assert json.dumps(events, allow_nan=False)


# What is refused --------------------------------------------------------------------------------


def test_an_empty_stretch_is_refused(padg: Scenario, tmp_path: Path) -> None:
    """After the run nothing happens; the message says how long it is."""
    with pytest.raises(ConfigError, match=r"--start = 9000.*nothing happens.*The run takes"):
        written(padg, tmp_path, start_s=9000.0)
    with pytest.raises(ConfigError, match=r"--end = 1.*not after"):
        written(padg, tmp_path, start_s=2.0, end_s=1.0)
    assert not list(tmp_path.iterdir())


def test_more_kernels_than_make_sense_are_refused(
    padg: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line says how many they are and how to limit them."""
    large = load(PADG, {"workload.num_requests": 500, "workload.rate_rps": 2})
    with pytest.raises(ConfigError, match=r"million events.*--start and --end.*num_requests"):
        written(large, tmp_path, resolution="kernel")
    monkeypatch.setattr(simcluster.show.timeline, "MAX_EVENTS", 1000)
    with pytest.raises(ConfigError, match="million events"):
        written(padg, tmp_path, resolution="kernel", start_s=2.0, end_s=2.1)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_refused(padg: Scenario, tmp_path: Path) -> None:
    """One line, and nothing is left behind."""
    with pytest.raises(DataError, match="cannot be written"):
        write_timeline(padg, tmp_path / "no" / "trace.json", start_s=1.0, end_s=1.1)


def test_the_command_writes_a_timeline(tmp_path: Path) -> None:
    """It says where, how much, and what opens it; errors are one line."""
    out = tmp_path / "trace.json"
    call = ["timeline", str(PADG), "--set", "workload.num_requests=30", "--strategy", "EcoServe"]
    done = CliRunner().invoke(main, [*call, "-o", str(out), "--start", "0.5", "--end", "1.5"])
    assert done.exit_code == 0, done.output
    assert "ui.perfetto.dev" in done.output
    assert_valid(json.loads(out.read_text())["traceEvents"])
    failed = CliRunner().invoke(main, [*call, "-o", str(out), "--start", "1e6"])
    assert failed.exit_code == 1
    assert failed.stderr.count("\n") == 1
