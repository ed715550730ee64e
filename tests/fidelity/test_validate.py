"""Validation: error statistics, reports, and each check on a small slice of the measured data."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

from simcluster import catalog
from simcluster.cli import main
from simcluster.errors import DataError
from simcluster.fidelity.validate import (
    aic_e2e,
    aic_layouts,
    aic_loops,
    apex_e2e,
    check,
    distserve_fits,
    ecoserve_prefill,
    harness,
    l20_five_systems,
    llmservingsim_vllm,
    mooncake_a10_pd,
    published_anchors,
    report,
    sarathi_iter,
    splitwise_perf,
)
from simcluster.fidelity.validate import (
    run as validation,
)
from simcluster.fidelity.validate.base import Statistic
from simcluster.fidelity.validate.run import Absent, Validation, validate
from simcluster.strategies import FuDG

DATA = Path(os.environ.get("SIMCLUSTER_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
about = partial(check, data_set="a set", gpu="A100", regime="all", quantity="TPOT")


def measured(name: str) -> Path:
    """The folder of measured sets, if it has `name`."""
    if not (DATA / name).is_dir():
        pytest.skip(f"measured set {name} is not here (SIMCLUSTER_DATA)")
    return DATA


# The statistics ---------------------------------------------------------------------------------


def test_errors_are_those_worked_out_by_hand() -> None:
    """Errors of 10, 20, 0, 40 % of 1, 2, 4, 5."""
    found = about([1, 2, 4, 5], [1.1, 1.6, 4, 7], must=0.2, aim=0.1)
    assert found.n == 4
    assert found.mean == pytest.approx(0.7 / 4)
    assert found.median == pytest.approx(0.15)
    assert found.p90 == pytest.approx(0.2 + 0.7 * 0.2)  # linear between the third and fourth
    assert found.bias == pytest.approx((1.1 + 1.6 + 4 + 7) / 12 - 1)
    assert found.met
    assert found.value == found.mean


@pytest.mark.parametrize(
    ("limits", "value"), [("mean", 0.175), ("median", 0.175), ("bias", 0.05), ("p90", 0.25)]
)
def test_limits_are_about_the_statistic_they_name(limits: Statistic, value: float) -> None:
    """Errors of 10, 10, 25 and 25 %, three of them below the measured value."""
    found = about([10, 10, 10, 10], [9, 9, 12.5, 7.5], must=0.1, limits=limits)
    assert found.value == pytest.approx(value)
    assert found.met is (limits == "bias")


# The report -------------------------------------------------------------------------------------


RESULT = Validation(
    (
        about([1.0, 2.0], [1.1, 1.8], must=0.12, aim=0.05),
        about([1.0, 2.0], [2.0, 1.0], must=0.05, limits="bias", quantity="TTFT"),
        about([3.0], [3.0], gpu="L20", regime="one"),
    ),
    (Absent("other_set", "other_set/file.csv is missing"),),
    1.5,
)


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (1.5, "s", "1.5 s"),
        (0.01376, "s", "13.76 ms"),
        (6.16e-5, "s", "61.6 us"),
        (1649.0, "ms", "1.649 s"),
        (20.51, "ms", "20.51 ms"),
        (16400.0, "tokens/s", "1.64e+04 tokens/s"),
    ],
)
def test_means_have_a_unit_that_suits_them(value: float, unit: str, shown: str) -> None:
    """Seconds, milliseconds or microseconds by their size; what is no time keeps its unit."""
    item = check(
        [value], [value], data_set="a", gpu="L20", regime="all", quantity="time", unit=unit
    )
    text = report.as_text(Validation((item,), (), 1.0)).replace("\n", " \n ")
    assert text.count(f" {shown} ") == 2
    assert f"| {shown} | {shown} |" in report.as_markdown(Validation((item,), (), 1.0))


def test_the_table_shows_errors_limits_and_what_the_step_times_rest_on() -> None:
    """One line per check, percent, and the accuracy class of every GPU."""
    text = report.as_text(RESULT)
    first, second, third = text.splitlines()[2:5]
    assert first.split() == [
        "a",
        "set",
        "A100",
        "all",
        "TPOT",
        "2",
        "1.5",
        "s",
        "1.45",
        "s",
        "-3.3",
        *["10.0"] * 3,
        "12",
        "5",
        "must",
    ]
    assert second.split()[-3:] == ["bias", "5", "must"]
    assert third.split()[-4:] == ["+0.0", "0.0", "0.0", "0.0"]
    assert "2 of 2 limits are met" in text
    assert f"Step times, {catalog.gpu('L20').constants.accuracy}: L20." in text
    assert "Absent: other_set (other_set/file.csv is missing)." in text


def test_the_json_is_json_and_complete() -> None:
    """NaN has no place in it."""
    bare = replace(RESULT.checks[0], bias=math.nan, measured=None, simulated=None)
    value = json.loads(json.dumps(report.as_json(replace(RESULT, checks=(bare,))), allow_nan=False))
    (row,) = value["checks"]
    assert row["bias"] is None
    assert row["measured"] is None
    assert row["mean"] == pytest.approx(0.1)
    assert row["step_times"] == catalog.gpu("A100").constants.accuracy
    assert value["absent"][0]["data_set"] == "other_set"


def test_report_and_pictures_are_written(tmp_path: Path) -> None:
    """A page, its numbers, a parity plot, an error distribution."""
    paths = report.write(RESULT, tmp_path / "new" / "folder")
    assert [p.name for p in paths] == ["report.md", "report.json", "parity.png", "errors.png"]
    assert all(p.stat().st_size > 100 for p in paths)
    assert paths[0].read_text().count("\n| a set |") == 2 + 3


def test_no_two_data_sets_look_alike() -> None:
    """Colour and style of the lines, of more sets than there are colours."""
    from matplotlib.figure import Figure

    items = [replace(RESULT.checks[0], data_set=f"set {k}") for k in range(35)]
    ax = report.plot_errors(items, Figure().add_subplot())
    looks = {(line.get_color(), line.get_linestyle()) for line in ax.get_lines()}
    assert len(looks) == 35


def test_the_error_plot_is_a_distribution() -> None:
    """The curve of errors 10 and 10 % jumps to 1 at 10 %."""
    from matplotlib.figure import Figure

    ax = report.plot_errors(RESULT.checks[:1], Figure().add_subplot())
    x, y = ax.get_lines()[0].get_data()
    assert x == pytest.approx([10.0, 10.0])
    assert y == pytest.approx([0.5, 1.0])


# Bad input --------------------------------------------------------------------------------------


def test_a_missing_folder_is_one_line() -> None:
    """Exit code 1, no traceback."""
    done = CliRunner().invoke(main, ["validate", "no/such/folder"])
    assert done.exit_code == 1
    assert done.stderr == "error: no/such/folder: no such folder of measured sets\n"


def test_missing_sets_are_listed_as_absent(tmp_path: Path) -> None:
    """An empty folder still gives the check that needs no files."""
    result = validate(tmp_path, list(validation.END_TO_END))
    assert {a.data_set for a in result.absent} == set(validation.END_TO_END) - {
        ecoserve_prefill.DATA_SET
    }
    assert result.absent[0].reason == "splitwise_perf/llama2-70b.csv.gz is missing"
    assert {c.data_set for c in result.checks} == {ecoserve_prefill.DATA_SET}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a table"),
        (b"a,b\n1,2\n", "column gpu, test, model, tp, value, unit is missing"),
    ],
)
def test_a_malformed_file_is_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    """The file and what is wrong with it."""
    path = tmp_path / "published_anchors" / "vllm_nightly.csv"
    path.parent.mkdir()
    path.write_bytes(content)
    done = CliRunner().invoke(main, ["validate", str(tmp_path), "--only", "published_anchors"])
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert str(path) in done.stderr


def test_an_unknown_data_set_is_refused(tmp_path: Path) -> None:
    """With the nearest name."""
    done = CliRunner().invoke(main, ["validate", str(tmp_path), "--only", "apex"])
    assert done.exit_code == 1
    assert "apex_e2e" in done.stderr


def test_a_broken_gzip_file_is_one_line(tmp_path: Path) -> None:
    """As a download that broke off leaves it."""
    path = tmp_path / "broken.csv.gz"
    path.write_bytes(b"\x1f\x8b\x08\x00 not really")
    with pytest.raises(DataError, match=r"broken.csv.gz: not a table"):
        harness.table(path, ("a",))


def test_a_table_that_was_written_again_is_read_again(tmp_path: Path) -> None:
    """It is kept while it is as it was: many checks read the same file."""
    path = tmp_path / "rows.csv"
    path.write_text("a\n1\n")
    os.utime(path, ns=(1, 1))
    first = harness.table(path, ("a",))
    assert harness.table(path, ("a",)) is first
    path.write_text("a\n2\n")
    assert harness.table(path, ("a",))["a"].tolist() == [2]


# The harness ------------------------------------------------------------------------------------


def test_a_closed_loop_of_one_runs_one_request_after_another() -> None:
    """Its end-to-end times add up to the end of the run: a law of closed loops."""
    where = harness.environment("A100", "llama-3.1-8b", "vllm-0.7", max_model_len=4096)
    done = harness.serve(where, [100, 200, 300], [5, 6, 7], tp_size=1, concurrency=1)
    assert done["e2el_s"].sum() == pytest.approx(done["last_output_s"].max())


def test_a_prefill_alone_takes_one_step() -> None:
    """The time to first token of a lone request is its prefill step."""
    where = harness.environment("A100", "llama-3.1-8b", "vllm-0.7", max_model_len=4096)
    (ttft,) = harness.serve(where, [500], [2], tp_size=1)["ttft_s"]
    assert ttft == harness.step_time(where, 1).prefill_s(500)


def test_a_trace_is_repeated_with_its_own_gap() -> None:
    """Three requests in three seconds, five asked for."""
    trace = pd.DataFrame(
        {"arrival_s": [1.0, 2.0, 3.0], "input_tokens": [7, 8, 9], "output_tokens": [1, 2, 3]}
    )
    arrival_s, prompts, outputs = harness.replayed(trace, 5)
    assert arrival_s.tolist() == [1.0, 2.0, 3.0, 5.0, 6.0]
    assert prompts.tolist() == [7, 8, 9, 7, 8]
    assert outputs.tolist() == [1, 2, 3, 1, 2]
    assert len(harness.replayed(trace, 2)[0]) == 3


def test_prompts_keep_their_measured_blocks_and_answers_are_nobody_elses(tmp_path: Path) -> None:
    """Prefixes are shared as measured; a preempted request can find its own answer again."""
    import gzip

    path = tmp_path / "workload.jsonl.gz"
    with gzip.open(path, "wt") as out:
        out.writelines(
            json.dumps({"block16_ids": ids}) + "\n" for ids in ([0, 1], [0, 1, 2], [5, 1], [])
        )
    prompts, outputs = np.array([40, 50, 32, 10]), np.array([8, 1, 20, 30])
    hashes = llmservingsim_vllm._hashes(path, prompts, outputs)
    assert hashes.num_tokens.tolist() == [48, 51, 52, 40]
    found = []
    for first, last in pairwise(hashes.offsets.tolist()):
        runs = zip(hashes.first[first:last], hashes.count[first:last], strict=True)
        found.append([int(start) + i for start, count in runs for i in range(count)])
    assert [len(ids) for ids in found] == [3, 4, 4, 3]
    assert [ids[:2] for ids in found[:3]] == [[0, 1], [0, 1], [5, 1]]
    own = found[0][2:] + found[1][3:] + found[2][2:] + found[3]
    assert len(set(own)) == len(own)
    assert min(own) > 5
    with pytest.raises(DataError, match="4 requests, 5 were measured"):
        llmservingsim_vllm._hashes(path, np.ones(5, dtype=np.int64), np.ones(5, dtype=np.int64))


# Each check on a slice --------------------------------------------------------------------------


def test_splitwise_token_times_follow_the_cpu_where_it_decides() -> None:
    """At TP 8 a decode step of Llama-2-70B is CPU time: half the CPU, nearly twice the time."""
    points = splitwise_perf.points(measured("splitwise_perf"), "a100-80gb")
    points = points[points["tensor_parallel"] == 8].head(2)
    engine = catalog.engine(splitwise_perf.ENGINE)
    _, token = splitwise_perf.simulated("A100", points, engine)
    slow = replace(
        engine,
        issue_s=2 * engine.issue_s,
        host_workers_s=2 * engine.host_workers_s,
    )
    _, slower = splitwise_perf.simulated("A100", points, slow)
    assert np.all((slower / token > 1.8) & (slower / token <= 2.0))
    assert token == pytest.approx(points["token_time"].to_numpy(), rel=0.12)


def test_apex_runs_are_replayed_per_replica() -> None:
    """Two runs of chat at low load: TPOT within 5 %."""
    runs = apex_e2e.runs(measured("apex_e2e"), "lmsys_025_validation_2DP4TP")
    assert [run.tp_size for run in runs] == [4, 4]
    assert [r.simulated_tpot_s for r in runs] == pytest.approx([r.tpot_s for r in runs], rel=0.05)


@pytest.mark.parametrize("system", ["h100_sxm", "b200_sxm"])
def test_closed_loops_of_inferencemax(system: str) -> None:
    """One row of each engine with four clients."""
    rows = aic_e2e.rows(measured("aic_e2e"), system)
    assert len(rows) == {"h100_sxm": 45, "b200_sxm": 132}[system]
    few = rows[(rows["batch_size"] == 4) & (rows["tp_size"] == 4) & (rows["osl"] == 1024)]
    ttft, tpot = aic_e2e.simulated(aic_loops.GPUS[system], few, rounds=2)
    assert tpot == pytest.approx(few["silicon_tpot_ms"].to_numpy(), rel=0.25)
    assert np.all(ttft > tpot)


def test_loops_with_experts_spread_over_gpus_have_one_layout_in_all_exports() -> None:
    """What was measured once and stands there in two forms is one layout, inside a node."""
    frame = aic_loops.measured(measured("aic_e2e"), "b200_sxm")
    frame = frame[frame["model_path"].isin(list(aic_layouts.MODELS))]
    frame = frame[(frame["moe_ep_size"] > 1) | (frame["attention_dp_size"] > 1)]
    frame = frame[frame["backend"] != "vllm"]
    layouts: dict[object, set[object]] = {}
    for row in harness.records(frame):
        key = (row["backend"], row["isl"], row["osl"], row["silicon_ttft_ms"])
        layouts.setdefault(key, set()).add(aic_layouts.normalised(row))
    assert sum(len(found) > 1 for found in layouts.values()) == 0
    assert max(layout.num_gpus for found in layouts.values() for layout in found) == 8


@pytest.mark.parametrize(("system", "count"), [("h100_sxm", 30), ("b200_sxm", 165)])
def test_closed_loops_with_expert_and_data_parallelism(system: str, count: int) -> None:
    """Loops in 8 bits, on B200 one with eight data-parallel ranks: TPOT within 25 % in the mean."""
    loops = aic_layouts.rows(measured("aic_e2e"), system)
    assert len(loops) == count
    eight_bits = [x for x in loops if x.model == "minimax-m2" and x.precision == "fp8"]
    few = [loop for loop in eight_bits if loop.clients <= 32 and loop.isl == 1024][::5]
    few += [
        x for x in loops if x.layout.dp_size == 8 and (x.clients, x.isl, x.osl) == (128, 1024, 1024)
    ]
    ttft, tpot = aic_layouts.simulated(few, rounds=2)
    off = np.abs(tpot / np.array([loop.tpot_ms for loop in few]) - 1.0)
    assert off.mean() < 0.25
    assert off.max() < 1 / 3
    assert np.all(ttft > tpot)


def test_every_request_of_the_replay_is_compared() -> None:
    """300 requests; the last ones end when the measured ones do, within a tenth."""
    folder = measured("llmservingsim_vllm")
    seen, made = llmservingsim_vllm.replay(folder, "RTXPRO6000")
    assert seen.shape == made.shape == (300, 3)
    assert np.nanmax(made[:, 2]) == pytest.approx(np.nanmax(seen[:, 2]), rel=0.1)


def test_iterations_of_sarathi_are_compared() -> None:
    """Eight prefills and eight decode batches."""
    found = sarathi_iter.checks(measured("sarathi_iter"))
    assert [(item.regime, item.n) for item in found] == [("prefill", 8), ("decode", 8)]


def test_dispatch_bound_passes_of_another_model_are_near() -> None:
    """The issue time fitted on Llama-2-70B holds for one sequence of OPT-13B and 66B."""
    decode = distserve_fits.checks(measured("distserve_fits"))[1]
    assert decode.measured is not None
    assert decode.simulated is not None
    assert decode.simulated[::4] == pytest.approx(decode.measured[::4], rel=0.2)


def test_arrivals_on_a10_are_those_of_the_measured_runs() -> None:
    """Runs last as long as the gaps that were drawn, and what the last answer takes."""
    frame = harness.table(measured("mooncake_a10_pd") / "mooncake_a10_pd" / "serving.csv", ())
    frame = frame[(frame["input_len"] == 256)]
    assert len(frame) == 20
    for rate, seconds in zip(frame["rate_req_s"], frame["duration_s"], strict=True):
        arrival_s = mooncake_a10_pd.arrivals(rate, 200)
        assert 0.2 < seconds - arrival_s[-1] < 0.6


def test_prefill_and_decode_apart_on_a10_are_compared() -> None:
    """18 runs of two GPUs, of which four are fitted, and ten of one."""
    found = mooncake_a10_pd.checks(measured("mooncake_a10_pd"))
    assert [item.n for item in found] == [18, 18, 14, 14, 10, 10]
    assert all(item.met for item in found[:2])


def test_a_connector_without_waits_misses_the_tails_on_a10() -> None:
    """KV that moves beside the steps: no batch stands still, and TPOT has no tail."""
    frame = harness.table(measured("mooncake_a10_pd") / "mooncake_a10_pd" / "serving.csv", ())
    (row,) = harness.records(
        frame[(frame["doc"] == "v0.1") & (frame["input_len"] == 1024)].query(
            "transport == 'rdma_1nic'"
        )
    )
    where, strategy = mooncake_a10_pd.deployment(row)
    assert isinstance(strategy, FuDG)
    beside = dataclasses.replace(strategy, kv_connector="beside", pool="none")
    inside_ms, beside_ms = (
        mooncake_a10_pd.served_ms(where, one, row)[1] for one in (strategy, beside)
    )
    assert beside_ms < 0.05 * row["tpot_p99_ms"]
    assert 0.5 < inside_ms / row["tpot_p99_ms"] < 1.5


def test_hand_overs_on_l20_are_compared() -> None:
    """Two prompts not fitted, each measured twice: no error of a fifth."""
    found = l20_five_systems.checks(measured("l20_five_systems"))[-1]
    assert (found.quantity, found.n) == ("KV hand-over", 4)
    assert found.p90 < 0.2


def test_nightlies_are_compared() -> None:
    """Four latency tests; one GPU within a tenth."""
    found = published_anchors.checks(measured("published_anchors"))
    assert len(found) == 4 + 2
    assert all(item.mean < 0.1 for item in found if item.regime.endswith("TP 1"))


def test_kv_transfers_between_nodes_are_compared() -> None:
    """Latency and efficiency from every second size: each of the others within 15 %."""
    found = published_anchors.checks(measured("published_anchors"))
    fitted, held_out = (item for item in found if item.quantity == "KV transfer")
    assert (fitted.n, held_out.n) == (5, 4)
    for item in (fitted, held_out):
        assert item.simulated is not None
        assert item.measured is not None
        assert np.abs(item.simulated / item.measured - 1).max() < 0.15


def test_ecoserve_prefill_rates_need_no_files() -> None:
    """A check, never a fit: within the 7 % asked for."""
    whole = ecoserve_prefill.checks()[0]
    assert whole.n == 4
    assert whole.met


def test_the_command_prints_the_table_and_writes_the_report(tmp_path: Path) -> None:
    """From a copy of one small set."""
    data = tmp_path / "data"
    shutil.copytree(measured("sarathi_iter") / "sarathi_iter", data / "sarathi_iter")
    arguments = ["validate", str(data), "--only", "sarathi_iter", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert "decode" in done.stdout
    assert (tmp_path / "out" / "report.md").is_file()
    done = CliRunner().invoke(main, [*arguments[:4], "--json"])
    assert len(json.loads(done.stdout)["checks"]) == 2
