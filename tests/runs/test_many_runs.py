"""Sweeps that are killed, changed or spread over machines: nothing lost, nothing done twice."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import simcluster
from helpers.scenarios import small_scenario
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import main
from simcluster.errors import ConfigError, DataError, WorkerError
from simcluster.runs import compare as sweep
from simcluster.runs import executor, recorded
from simcluster.runs.cell import Cell, identity, made_by
from simcluster.runs.executor import outcomes
from simcluster.scenario.file import resolve
from simcluster.show import text as report

DOCUMENT = small_scenario(
    {"name": "vLLM", "kind": "nodg"},
    {"name": "Sarathi", "kind": "nodg", "scheduler": "chunked"},
    {"name": "DistServe", "kind": "fudg"},
    cluster={"price_per_gpu_hour": 2.0},
    workload={"num_requests": 60},
    sweep={"rates_rps": [2, 20]},
)

needs_distributed = pytest.mark.skipif(
    importlib.util.find_spec("distributed") is None, reason="distributed is not installed"
)
quiet = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


def written(out: Path) -> dict[str, int]:
    """Return when the manifest of each run was written (ns): a run done again has another time.

    Of whole runs: the folder of one that is being written has a name with a dot in front.
    """
    found = (out / "cells").glob("[!.]*/cell.json")
    return {p.parent.name: p.stat().st_mtime_ns for p in found}


def by_name(out: Path) -> dict[str, int]:
    """Return `written` by strategy, rate and seed, without the identity."""
    return {name.rpartition("-")[0]: time_ns for name, time_ns in written(out).items()}


# What is used again ------------------------------------------------------------------------------


def test_a_changed_strategy_runs_only_its_own_cells(tmp_path: Path) -> None:
    """The others are the very files of before; the result is that of a fresh comparison."""
    out = tmp_path / "out"
    sweep.compare(resolve(DOCUMENT), jobs=1, out=out)
    before = by_name(out)
    changed = resolve(DOCUMENT, {"strategy.Sarathi.chunk_size": 256})
    again = sweep.compare(changed, jobs=1, out=out)
    assert {name for name, time_ns in by_name(out).items() if before[name] != time_ns} == {
        "sarathi-r2-s0",
        "sarathi-r20-s0",
    }
    fresh = sweep.compare(changed, jobs=1)
    pd.testing.assert_frame_equal(again.sweep, fresh.sweep, check_exact=True)
    for cell in fresh.cells():
        pd.testing.assert_frame_equal(again.requests(*cell), fresh.requests(*cell))


@pytest.mark.parametrize(
    ("changes", "num_new"),
    [
        ({"cluster.price_per_gpu_hour": 3.0}, 0),
        ({"slo.attainment": 0.5}, 0),
        ({"sweep.rates_rps": [2, 10, 20]}, 3),
        ({"run.seeds": [0, 1]}, 6),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else str(value),
)
def test_what_does_not_touch_a_run_does_not_run_it_again(
    changes: dict[str, object], num_new: int, tmp_path: Path
) -> None:
    """Prices and the wanted attainment are looked at afterwards; rates and seeds add runs."""
    out = tmp_path / "out"
    sweep.compare(resolve(DOCUMENT), jobs=1, out=out)
    before = written(out)
    comparison = sweep.compare(resolve(DOCUMENT, changes), jobs=1, out=out)
    after = written(out)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + num_new == len(comparison.rows)


@pytest.mark.parametrize(
    "changes",
    [
        {"model.kv_dtype": "fp8"},
        {"cluster.network": "10gbe"},
        {"engine.block_size": 32},
        {"workload.num_requests": 61},
        {"slo.tpot_s": 0.03},
        {"slo.criterion": "marginal"},
        {"run.warmup_s": 1.0},
        {"strategy.vLLM.max_num_seqs": 7},
    ],
    ids=lambda value: next(iter(value)),
)
def test_what_decides_a_run_is_in_its_identity(changes: dict[str, object]) -> None:
    """Each makes it another run."""
    cell = Cell("vLLM", 2.0, 0)
    one, other = resolve(DOCUMENT), resolve(DOCUMENT, changes)
    assert identity(one, cell) != identity(other, cell)


def test_files_count_by_their_contents(tmp_path: Path) -> None:
    """A trace elsewhere with the same rows is the same workload; with others it is not."""
    cell = Cell("vLLM", None, 0)
    found = set()
    for name, row in (("a.csv", "1,10,5"), ("b.csv", "1,10,5"), ("c.csv", "2,10,5")):
        (tmp_path / name).write_text(f"arrival_s,prompt_len,output_len\n0,10,5\n{row}\n")
        workload = {"trace": str(tmp_path / name)}
        scenario = resolve({**DOCUMENT, "workload": workload, "sweep": {}})
        found.add(identity(scenario, cell))
    assert len(found) == 2


def with_own(tmp_path: Path, entries: dict[str, list[dict[str, Any]]]) -> Any:
    """Return the scenario with entries of its own, from a file that is written over each time."""
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(entries))
    return resolve({**DOCUMENT, "workload": SHAREGPT, "catalog": [str(path)]})


SHAREGPT = {"num_requests": 30, "lengths": "sharegpt-etalon"}
USED = {
    "gpu": {"name": "A100-80GB SXM", "like": "A100", "aliases": ["A100"], "num_sms": 100},
    "kernels": {"name": "ampere-ga100", "like": "ampere-ga100", "mfu_gemm": 0.5},
    "link": {"name": "nvlink3", "like": "nvlink3", "efficiency": 0.5},
    "model": {"name": "llama-2-7b", "like": "llama-2-7b", "num_layers": 16},
    "engine": {"name": "vllm-0.7", "like": "vllm-0.7", "issue_us": 30},
    "lengths": {"name": "sharegpt-etalon", "like": "sharegpt-etalon", "prompt_mean": 8.0},
}
"""Entries that take the place of those that the scenario of `with_own` names."""


@pytest.mark.parametrize("table", USED)
def test_an_entry_counts_where_it_is_used_and_by_what_it_holds(table: str, tmp_path: Path) -> None:
    """Whatever else is in its file, wherever the file lies; edited it makes another run."""
    row = {**USED[table], "source": "us"}
    key, value = list(row.items())[-2]
    cell = Cell("vLLM", 2.0, 0)

    def found(*rows: dict[str, Any], **others: list[dict[str, Any]]) -> str:
        return identity(with_own(tmp_path, {table: list(rows), **others}), cell)

    own = found(row)
    assert own != found()
    assert own != found({**row, key: value * 1.5 if isinstance(value, float) else value + 1})
    unused = {**row, "name": "another", "aliases": []}
    assert own == found(row, unused) == found(unused, row)
    price = {"gpu": "A100", "per_gpu_hour": 9.0, "currency": "USD", "tier": "on-demand"}
    price |= {"provider": "us", "date": "2026-10", "source": "us"}
    assert own == found(row, price=[price])
    (tmp_path / "elsewhere").mkdir()
    scenario = with_own(tmp_path / "elsewhere", {table: [row]})
    assert own == identity(scenario, cell)


def fixed(prompt_len: int) -> dict[str, Any]:
    """Return a length table in the place of a packaged one, with prompts of one length."""
    row = {"name": "sharegpt-etalon", "like": "sharegpt-etalon", "source": "us"}
    row |= {"levels": [0, 1], "prompt": [prompt_len] * 2, "output_by_prompt": [[5, 5]]}
    return {"lengths": [row]}


@pytest.mark.parametrize("jobs", [1, 2])
def test_the_entries_of_one_comparison_do_not_reach_the_next(jobs: int, tmp_path: Path) -> None:
    """In the same processes, one after the other: each draws its prompts from its own table."""
    packaged = resolve({**DOCUMENT, "workload": SHAREGPT})
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = with_own(tmp_path / "a", fixed(33)), with_own(tmp_path / "b", fixed(77))
    for scenario, prompts in ((one, {33}), (two, {77}), (one, {33}), (packaged, None)):
        comparison = sweep.compare(scenario, jobs=jobs)
        for cell in comparison.cells():
            seen = set(comparison.requests(*cell)["prompt_len"].tolist())
            assert seen == prompts if prompts else len(seen) > 20


def test_recorded_runs_are_used_again_for_the_same_entries_alone(tmp_path: Path) -> None:
    """An edited entry is another scenario; one that is not used changes nothing."""
    out = tmp_path / "out"
    sweep.compare(with_own(tmp_path, fixed(33)), jobs=1, out=out)
    before = written(out)
    entries = fixed(33)
    entries["lengths"].append({**entries["lengths"][0], "name": "another"})
    sweep.compare(with_own(tmp_path, entries), jobs=1, out=out)
    assert written(out) == before
    edited = with_own(tmp_path, fixed(77))
    with pytest.raises(DataError, match="holds 6 runs of another scenario that would be lost"):
        sweep.compare(edited, jobs=1, out=out)
    comparison = sweep.compare(edited, jobs=1, out=out, replace=True)
    for cell in comparison.cells():
        assert set(comparison.requests(*cell)["prompt_len"].tolist()) == {77}


def test_a_workers_scenario_needs_no_file(tmp_path: Path) -> None:
    """What was read travels: the file may be gone, as it is on another machine."""
    scenario = with_own(tmp_path, fixed(33))
    (tmp_path / "mine.toml").unlink()
    comparison = sweep.compare(scenario, jobs=2)
    assert set(comparison.requests(*comparison.cells()[0])["prompt_len"].tolist()) == {33}
    assert "A100" in report.comparison_text(comparison)


def test_a_catalogue_file_that_changed_since_the_runs_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What is computed from old results now, such as step times, is of the file as it is now."""
    gpu = {**USED["gpu"], "source": "us"}
    sweep.compare(with_own(tmp_path, {"gpu": [gpu]}), jobs=1, out=tmp_path / "out")
    assert simcluster.read(tmp_path / "out").scenario.environment.cluster.gpu.num_sms == 100
    assert not caplog.records
    with_own(tmp_path, {"gpu": [{**gpu, "num_sms": 90}]})
    comparison = simcluster.read(tmp_path / "out")
    assert len(comparison.sweep) == 6
    assert not caplog.records
    assert comparison.scenario.environment.cluster.gpu.num_sms == 90
    (record,) = caplog.records
    assert record.getMessage().startswith(f"{tmp_path / 'mine.toml'} has changed since these runs")


def cut_in_half(folder: Path) -> None:
    """Truncate the requests frame."""
    frame = folder / "requests.parquet"
    frame.write_bytes(frame.read_bytes()[: frame.stat().st_size // 2])


def lose_manifest(folder: Path) -> None:
    """Truncate the manifest."""
    (folder / recorded.MANIFEST).write_text("{")


def age(folder: Path) -> None:
    """Pretend that another version wrote the run."""
    path = folder / recorded.MANIFEST
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "made_by": "0.0.9"}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (cut_in_half, "1 recorded run is damaged: run again"),
        (lose_manifest, "1 recorded run is damaged: run again"),
        (age, "1 recorded run is made by another version: run again"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_run_that_cannot_be_used_is_done_again_and_said_so(
    spoil: Any, words: str, finished: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """That one alone, whether the comparison had finished or not."""
    scenario, out = resolve(DOCUMENT), tmp_path / "out"
    sweep.compare(scenario, jobs=1, out=out)
    whole = {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
    if not finished:
        out.rename(tmp_path / ".out.partial")
    place = out if finished else tmp_path / ".out.partial"
    victim = sorted(written(place))[0]
    spoil(place / "cells" / victim)
    before = written(place)
    with caplog.at_level(logging.WARNING, "simcluster"):
        sweep.compare(scenario, jobs=1, out=out)
    assert [record.getMessage() for record in caplog.records] == [words]
    after = written(out)
    assert {name for name in before if after[name] != before[name]} == {victim}
    assert {p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()} == whole


def test_another_scenario_is_refused_in_one_line(tmp_path: Path) -> None:
    """Before anything runs, and unless told; a comparison that is there already is not touched."""
    out, file = tmp_path / "out", tmp_path / "s.toml"
    file.write_text(to_toml(DOCUMENT))
    runner, command = CliRunner(), ["compare", str(file), "--jobs", "1", "-o", str(out)]
    assert runner.invoke(main, command).exit_code == 0
    (out / "figures").mkdir()
    before = {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.suffix != ".parquet"}
    assert runner.invoke(main, command).exit_code == 0
    assert {p: p.stat().st_mtime_ns for p in before if p != out} == {
        p: t for p, t in before.items() if p != out
    }
    for change in ("slo.tpot_s=1.0", "strategy.0.name=other"):
        refused = runner.invoke(main, [*command, "--set", change])
        assert refused.exit_code == 1
        assert re.fullmatch(
            r"error: .*out: holds \d runs of another scenario that would be lost \(.*\)\. "
            r"Give another folder with -o, or --replace .*\n",
            refused.stderr,
        )
    replaced = runner.invoke(main, [*command, "--set", "slo.tpot_s=1.0", "--replace"])
    assert replaced.exit_code == 0
    assert simcluster.read(out).document["slo"]["tpot_s"] == 1.0


# Kills ------------------------------------------------------------------------------------------


def test_a_killed_sweep_goes_on_with_what_was_recorded(
    killed_twice: Callable[..., dict[str, int]], tmp_path: Path
) -> None:
    """Killed again at random moments: recorded runs stay, the end is the same."""
    document = {**DOCUMENT, "run": {"seeds": list(range(8))}}
    document["workload"] = {**DOCUMENT["workload"], "num_requests": 400}
    (tmp_path / "s.toml").write_text(to_toml(document))
    command = [sys.executable, "-m", "simcluster", "compare", "s.toml", "-o", "out", "--jobs", "2"]
    known = killed_twice(
        command, lambda: written(tmp_path / ".out.partial") or written(tmp_path / "out")
    )
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    assert known.items() <= written(tmp_path / "out").items()
    expected = sweep.compare(resolve(document), jobs=1)
    pd.testing.assert_frame_equal(
        simcluster.read(tmp_path / "out").sweep, expected.sweep, check_exact=True
    )
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def children(pid: int) -> list[int]:
    """Return the worker processes of a process."""
    own = []
    for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        with contextlib.suppress(OSError):
            if b"LokyProcess" in Path(f"/proc/{text}/cmdline").read_bytes():
                own.append(int(text))
    return own


needs_proc = pytest.mark.skipif(
    not Path(f"/proc/self/task/{os.getpid()}/children").exists(), reason="needs Linux's /proc"
)


@contextlib.contextmanager
def comparison_at_work(folder: Path, wait_until: Any) -> Iterator[subprocess.Popen[str]]:
    """Start a long comparison of two processes; give it as soon as a run is recorded."""
    document = {**DOCUMENT, "run": {"seeds": list(range(150))}}
    document["workload"] = {**DOCUMENT["workload"], "num_requests": 400}
    (folder / "s.toml").write_text(to_toml(document))
    command = [sys.executable, "-m", "simcluster", "compare", "s.toml", "-o", "out", "--jobs", "2"]
    process = subprocess.Popen(
        command,
        cwd=folder,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        # Children of a shell in the background ignore Ctrl-C unless told otherwise.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        wait_until(lambda: written(folder / ".out.partial") or process.poll() is not None)
        assert process.poll() is None
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


def loses_nothing(folder: Path, stderr: str, known: dict[str, int]) -> None:
    """Check that recorded runs are kept whole and nothing is left in front of them."""
    assert "Traceback" not in stderr
    assert not (folder / "out").exists()
    partial = folder / ".out.partial"
    assert known.items() <= written(partial).items()
    scenario = resolve(DOCUMENT)
    for run in recorded.recorded(partial):
        maker = made_by(scenario, scenario.strategies[0].name)
        assert run.fault(maker, "parquet") is None


@needs_proc
def test_a_killed_worker_process_is_one_line(wait_until: Any, tmp_path: Path) -> None:
    """As when memory runs out: recorded runs stay, and nothing waits for ever."""
    with comparison_at_work(tmp_path, wait_until) as process:
        known = written(tmp_path / ".out.partial")
        os.kill(children(process.pid)[0], signal.SIGKILL)
        _, stderr = process.communicate()
    assert process.returncode == 1
    assert stderr.startswith("error: a worker process died (SIGKILL(-9))")
    assert stderr.count("\n") == 1
    assert "the same command resumes" in stderr
    loses_nothing(tmp_path, stderr, known)


@needs_proc
def test_an_interrupt_stops_the_processes_and_keeps_what_was_recorded(
    wait_until: Any, tmp_path: Path
) -> None:
    """Ctrl-C reaches the whole process group; no process is left behind, nothing but words."""
    with comparison_at_work(tmp_path, wait_until) as process:
        known = written(tmp_path / ".out.partial")
        workers = children(process.pid)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))
    assert process.returncode == 1
    assert len(workers) == 2
    assert "Finished runs are kept; the same command resumes." in stderr
    loses_nothing(tmp_path, stderr, known)


def marked(folder: Path, number: int, *, bad: int = -1, last: int = 39) -> int:
    """Leave a mark; fail if `number` is `bad`, never end if it is beyond `last`."""
    (folder / str(number)).touch()
    if number == bad:
        raise ValueError(f"call {number}")
    while number > last:
        time.sleep(0.01)
    return number


@pytest.mark.parametrize("jobs", [1, 2])
def test_calls_that_have_not_begun_never_do_after_a_failure(tmp_path: Path, jobs: int) -> None:
    """The exception of the call comes out; those behind it that were under way are stopped."""
    marking = functools.partial(marked, bad=2, last=2)
    with pytest.raises(ValueError, match="call 2"):
        list(outcomes(marking, [(tmp_path, k) for k in range(40)], jobs=jobs))
    begun = len(list(tmp_path.iterdir()))
    assert 3 <= begun <= (3 if jobs == 1 else 3 + jobs)
    time.sleep(0.3)
    assert len(list(tmp_path.iterdir())) == begun


@pytest.mark.parametrize("jobs", [1, 2])
def test_calls_that_have_not_begun_never_do_after_a_stop(tmp_path: Path, jobs: int) -> None:
    """Without a warning of what was stopped; the next call has its processes again."""
    calls = [(tmp_path, k) for k in range(40)]
    with contextlib.closing(outcomes(functools.partial(marked, last=0), calls, jobs=jobs)) as done:
        assert next(done) == 0
    begun = len(list(tmp_path.iterdir()))
    assert begun <= (1 if jobs == 1 else 1 + jobs)
    time.sleep(0.3)
    assert len(list(tmp_path.iterdir())) == begun
    assert sorted(outcomes(marked, calls[:3], jobs=jobs)) == [0, 1, 2]


@pytest.mark.parametrize("jobs", [0, -1, 1.5, "2", True])
def test_a_number_of_processes_that_is_none_is_refused(jobs: Any, tmp_path: Path) -> None:
    """In one line, with nothing written."""
    with pytest.raises(
        ConfigError, match=r"^jobs = .*: must be a whole number >= 1\. Leave it out"
    ):
        sweep.compare(resolve(DOCUMENT), jobs=jobs, out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


# Dask -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def dask_cluster(
    wait_until: Any, folder: Path, num_workers: int
) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """Start a scheduler and workers as processes on loopback, and wait for all of them.

    Gives the scheduler's address and the processes, the scheduler first.
    """
    from distributed import Client

    file = folder / "scheduler.json"
    scheduler = ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--no-show"]
    worker = [
        "worker",
        "--nthreads",
        "1",
        "--no-nanny",
        "--no-dashboard",
        "--local-directory",
        str(folder),
    ]
    commands = [[*scheduler, "--scheduler-file", str(file)]]
    commands += [[*worker, "--scheduler-file", str(file)]] * num_workers
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "dask", *command],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for command in commands
    ]
    try:
        wait_until(lambda: file.exists() and file.read_text().endswith("}"))
        address = json.loads(file.read_text())["address"]
        with Client(address, timeout=executor.CONNECT_S, set_as_default=False) as client:
            wait_until(lambda: len(client.nthreads()) == num_workers)
        yield address, processes
    finally:
        for process in reversed(processes):
            process.kill()
        for process in processes:
            process.wait()


@pytest.fixture
def cluster(wait_until: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`dask_cluster` with patience for a slow machine, and none for what never comes."""
    monkeypatch.setattr(executor, "CONNECT_S", 600.0)
    monkeypatch.setattr(executor, "LOOK_S", 0.5)
    return functools.partial(dask_cluster, wait_until)


@needs_distributed
@quiet
def test_two_dask_workers_give_the_same_folder(cluster: Any, tmp_path: Path) -> None:
    """The same call with an address; the workers see nothing of the result folder."""

    # The workers cannot import this file; what a function defines in place travels whole.
    def met(folder: Path) -> int:
        """Return the process that this runs in, as soon as two processes run this."""
        (folder / f"process-{os.getpid()}").touch()
        while len(list(folder.glob("process-*"))) < 2:
            time.sleep(0.01)
        return os.getpid()

    scenario = resolve(DOCUMENT)
    sweep.compare(scenario, jobs=1, out=tmp_path / "here")
    (tmp_path / "dask").mkdir()
    with cluster(tmp_path / "dask", 2) as (address, _):
        sweep.compare(scenario, dask=address, out=tmp_path / "there")
        afar = sweep.compare(scenario, dask=address)
        pids = set(outcomes(met, [(tmp_path,)] * 8, dask=address))
    assert len(pids) == 2
    assert os.getpid() not in pids
    for path in (tmp_path / "here").rglob("*"):
        if path.is_file():
            other = tmp_path / "there" / path.relative_to(tmp_path / "here")
            assert other.read_bytes() == path.read_bytes()
    # Without a folder frames come back packed, and are the same.
    near = simcluster.read(tmp_path / "here")
    for cell in near.cells():
        for name, columns in near.frames(cell).items():
            for column, values in columns.items():
                np.testing.assert_array_equal(afar.frames(cell)[name][column], values)


def test_no_process_holds_a_scenario_twice() -> None:
    """It is opened once in each, whatever the number of runs there."""

    def seen(scenario: Any, _: int) -> tuple[int, int, str]:
        """Return the process, the object, and the name of its first strategy."""
        return os.getpid(), id(scenario), scenario.strategies[0].name

    one, other = resolve(DOCUMENT), resolve(DOCUMENT, {"run.warmup_s": 1.0})
    for scenarios in ([one], [one, other]):
        calls = [(scenario, k) for k in range(20) for scenario in scenarios]
        found = set(outcomes(seen, calls, jobs=2))
        for pid in {pid for pid, _, _ in found}:
            assert len([row for row in found if row[0] == pid]) <= len(scenarios)
        assert {name for _, _, name in found} == {one.strategies[0].name}


@needs_distributed
@quiet
def test_a_scheduler_that_does_not_answer_is_one_line(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No workers, nothing listens there, no address: one line that offers this machine."""
    scenario = resolve(DOCUMENT)
    with (
        cluster(tmp_path, 0) as (address, _),
        pytest.raises(DataError, match=r"has no workers.*Leave out --dask"),
    ):
        sweep.compare(scenario, dask=address, out=tmp_path / "out")
    monkeypatch.setattr(executor, "CONNECT_S", 0.5)
    for address in ("tcp://127.0.0.1:9", "nonsense://x"):
        with pytest.raises(DataError, match=r"no scheduler answers.*Leave out --dask to use"):
            sweep.compare(scenario, dask=address, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@needs_distributed
@quiet
def test_what_a_call_on_dask_raises_comes_out(cluster: Any, tmp_path: Path) -> None:
    """Also where it looks like a time-out or a lost connection; what is left is cancelled."""
    kinds = (ZeroDivisionError, TimeoutError, OSError)
    with cluster(tmp_path, 1) as (address, _):
        for kind in kinds:
            folder = tmp_path / kind.__name__
            folder.mkdir()

            def fail(number: int, folder: Path = folder, kind: type[Exception] = kind) -> int:
                (folder / str(number)).touch()
                if number == 1:
                    raise kind("the call's own")
                while number > 1 and not (folder / "seen").exists():
                    time.sleep(0.01)
                time.sleep(0.05)
                return number

            with pytest.raises(kind, match="the call's own"):
                list(outcomes(fail, [(k,) for k in range(40)], dask=address))
            assert len(list(folder.iterdir())) <= 3
            (folder / "seen").touch()
    for kind in kinds:
        assert len(list((tmp_path / kind.__name__).iterdir())) < 40


@needs_distributed
@quiet
def test_the_runs_of_a_lost_dask_worker_go_to_the_others(cluster: Any, tmp_path: Path) -> None:
    """Each call's result is there once, with no word about it."""
    with cluster(tmp_path, 2) as (address, processes):
        came = []
        work = outcomes(lambda k: (time.sleep(0.2), k)[1], [(k,) for k in range(16)], dask=address)
        for number in work:
            came.append(number)
            if len(came) == 3:
                processes[1].kill()
        assert sorted(came) == list(range(16))


@needs_distributed
@quiet
@pytest.mark.parametrize(
    ("victims", "words"), [(slice(1, None), "no worker is left"), (slice(0, 1), "is lost")]
)
def test_a_lost_cluster_is_one_line_and_keeps_what_was_recorded(
    victims: slice, words: str, cluster: Any, tmp_path: Path
) -> None:
    """Both workers, or the scheduler: an error in place of a wait for ever."""
    document = {**DOCUMENT, "run": {"seeds": list(range(40))}}
    scenario = resolve(document, {"workload.num_requests": 400})
    (tmp_path / "dask").mkdir()
    with cluster(tmp_path / "dask", 2) as (address, processes):

        def kill(done: int, *_: object) -> None:
            if done == 3:
                for process in processes[victims]:
                    process.kill()

        with pytest.raises(WorkerError, match=rf"--dask tcp://\S+: .*{words}\. Recorded runs"):
            sweep.compare(scenario, dask=address, out=tmp_path / "out", progress=kill)
    assert len(written(tmp_path / ".out.partial")) >= 3
    loses_nothing(tmp_path, "", {})


@needs_distributed
@quiet
def test_a_run_that_kills_its_workers_is_one_line(cluster: Any, tmp_path: Path) -> None:
    """Dask tries it on four; the address of the last one is said."""
    with (
        cluster(tmp_path, 5) as (address, _),
        pytest.raises(WorkerError, match="several workers died of the same run, the last one"),
    ):
        list(
            outcomes(
                lambda k: os.kill(os.getpid(), signal.SIGKILL) if k == 1 else k,
                [(0,), (1,)],
                dask=address,
            )
        )
