"""The command line: results on standard output, progress elsewhere, numbers for programs."""

from __future__ import annotations

import json
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

import simcluster
from helpers.scenarios import small_scenario
from simcluster import catalog
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import _LATE, main
from simcluster.frames.breakdown import ttft_parts
from simcluster.runs import compare as sweep
from simcluster.scenario.file import json_schema, load, resolve
from simcluster.show import text as report

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "scenarios").glob("*.py"))
PRINTING = ("dispatch_bound", "kernels")
"""Scripts that take no arguments and write no folder."""
DOCUMENT = small_scenario(
    {"name": "vLLM", "kind": "nodg"},
    {"name": "EcoServe", "kind": "padg"},
    cluster={"price_per_gpu_hour": 2.0},
    workload={"num_requests": 40},
    sweep={"rates_rps": [2, 20]},
    run={"seeds": [0, 1]},
)


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """Return a scenario file of eight short runs."""
    path = tmp_path / "scenario.toml"
    path.write_text(to_toml(DOCUMENT))
    return path


def call(*arguments: object) -> Result:
    """Call the command line and expect it to work."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    return result


@pytest.mark.parametrize("command", ["", "run", "compare", "plot", "catalog", "show", "schema"])
def test_every_command_explains_itself(command: str) -> None:
    """A page of help, without importing anything that takes time."""
    assert "Usage:" in call(*command.split(), "--help").stdout


def test_version() -> None:
    """The package's."""
    assert simcluster.__version__ in call("--version").stdout


def test_the_price_stands_over_every_table(scenario: Path) -> None:
    """With who asks it and when; the scenario's own; or how to give one where none is known."""
    assert "USD per GPU and hour (" in call("run", scenario, "--set", "cluster.gpu=H100").stdout
    own = call("run", scenario, "--set", "cluster.price_per_gpu_hour=0.5").stdout
    assert "0.5 USD per GPU and hour (of the scenario)" in own
    unpriced = ["--set", "cluster.gpu=L20", "--set", "cluster.price_per_gpu_hour="]
    unpriced += ["--set", "slo.tpot_s=0.1"]  # an L20 decodes slower than on A100
    assert "none known in USD" in call("run", scenario, *unpriced).stdout


def test_show_prints_a_scenario_without_strategies(scenario: Path) -> None:
    """With the defaults of the table that asks the question."""
    shown = call("show", scenario, "--set", "strategy=", "--set", "rank.finalists=2").stdout
    table = tomllib.loads(shown)["rank"]
    assert (table["finalists"], table["mode"]) == (2, "simulate")
    assert "strategy" not in tomllib.loads(shown)


def test_show_prints_a_scenario_that_reads_back(scenario: Path) -> None:
    """With overrides in it."""
    text = call("show", scenario, "--set", "strategy.EcoServe.slack=min", "--seed", 7).stdout
    document = tomllib.loads(text)
    assert document["strategy"][1]["slack"] == "min"
    assert document["run"]["seeds"] == [7]
    changes = {"strategy.EcoServe.slack": "min", "run.seeds": [7]}
    assert resolve(document) == load(scenario, changes)


def test_compare_prints_a_table_that_fits_a_terminal(scenario: Path) -> None:
    """Strategies, goodput, latencies with units, and what the step times rest on."""
    text = call("compare", scenario, "--jobs", 1).stdout
    assert max(map(len, text.splitlines())) <= 100
    for words in (
        "vLLM",
        "EcoServe",
        "goodput",
        "per GPU",
        "per USD",
        "TTFT",
        "P99",
        "ms",
        "req/s",
    ):
        assert words in text
    assert catalog.gpu("A100").constants.accuracy in text


def test_the_widest_table_fits_too(tmp_path: Path) -> None:
    """Long names are cut, many rates are folded."""
    document = {**DOCUMENT, "sweep": {"rates_rps": [1000 + i for i in range(30)]}}
    document["strategy"] = [{"name": "a very long name of a strategy", "kind": "nodg"}]
    document["workload"] = {**DOCUMENT["workload"], "num_requests": 5}
    comparison = sweep.compare(resolve(document), jobs=1)
    assert max(map(len, report.comparison_text(comparison).splitlines())) <= 100


def test_compare_gives_json(scenario: Path) -> None:
    """A row per strategy, rate and seed; a goodput per strategy; plain JSON."""
    result = json.loads(
        call("compare", scenario, "--jobs", 1, "--json").stdout, parse_constant=pytest.fail
    )
    assert len(result["rows"]) == 8
    known = {"gpu", "accuracy", "kind", "errors", "errors_on", "errors_fitted"}
    assert set(result["step_times"]) == known
    assert result["step_times"]["accuracy"] in ("measured", "fitted", "data-sheet")
    row = result["rows"][0]
    assert (row["strategy"], row["rate_rps"], row["seed"]) == ("vLLM", 2.0, 0)
    assert row["num_requests"] == 40
    assert 0 <= row["slo_attainment"] <= 1
    for latency in ("ttft_s", "tpot_s", "e2el_s"):
        assert set(row[latency]) == {"mean", "p50", "p90", "p95", "p99"}
        assert row[latency]["p50"] <= row[latency]["p99"]
    assert [g["strategy"] for g in result["goodput"]] == ["vLLM", "EcoServe"]
    goodput = result["goodput"][0]
    assert goodput["censored"] in (None, "above", "below")
    assert goodput["goodput_rps_per_gpu"] == goodput["goodput_rps"] / 2
    assert goodput["requests_per_cost"] == pytest.approx(goodput["goodput_rps"] * 3600 / 4)
    assert (result["currency"], result["price_per_gpu_hour"]) == ("USD", 2.0)


def test_nan_becomes_null(scenario: Path) -> None:
    """One-token answers have no TPOT."""
    setting = "workload.lengths={kind='fixed', prompt_len=10, output_len=1}"
    result = call("run", scenario, "--set", setting, "--set", "slo.tpot_s=", "--json").stdout
    row = json.loads(result, parse_constant=pytest.fail)["rows"][0]
    assert row["tpot_s"] == dict.fromkeys(("mean", "p50", "p90", "p95", "p99"))
    assert row["slo_attainment"] == 1.0


def test_run_takes_the_first_strategy_and_rate_by_default(scenario: Path) -> None:
    """Options name others."""
    row = json.loads(call("run", scenario, "--json").stdout)["rows"][0]
    assert (row["strategy"], row["rate_rps"], row["seed"]) == ("vLLM", 2.0, 0)
    options = ["--strategy", "EcoServe", "--rate", 5, "--seed", 3]
    result = json.loads(call("run", scenario, *options, "--json").stdout)
    row = result["rows"][0]
    assert (row["strategy"], row["rate_rps"], row["seed"]) == ("EcoServe", 5.0, 3)
    assert "goodput" not in result
    changes = ["--set", "workload.rate_rps=7"]
    assert json.loads(call("run", scenario, *changes, "--json").stdout)["rows"][0]["rate_rps"] == 7


def test_run_prints_latencies_with_their_units(scenario: Path) -> None:
    """For people."""
    text = call("run", scenario).stdout
    for words in ("vLLM on 2 GPUs at 2 requests/s, seed 0", "TTFT (s)", "TPOT (ms)", "P99"):
        assert words in text


def test_resolutions_give_the_same_numbers(scenario: Path) -> None:
    """The option changes what an event is, not what comes out."""
    answers = {
        call("run", scenario, "--json", "--resolution", r).stdout
        for r in ("span", "step", "kernel")
    }
    assert len(answers) == 1


def test_run_writes_the_frames(scenario: Path, tmp_path: Path) -> None:
    """At the top of the folder, as Parquet or CSV."""
    call("run", scenario, "-o", tmp_path / "out")
    assert len(simcluster.read(tmp_path / "out").requests()) == 40
    assert (tmp_path / "out" / "requests.parquet").is_file()
    call("run", scenario, "-o", tmp_path / "out", "--format", "csv")
    assert (tmp_path / "out" / "requests.csv").is_file()
    assert not (tmp_path / "out" / "requests.parquet").exists()
    assert len(simcluster.read(tmp_path / "out").requests("vLLM", 2, 0)) == 40


def test_a_trace_replaces_lengths_and_arrivals(scenario: Path, tmp_path: Path) -> None:
    """Relative to where the user stands."""
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_len,output_len\n0,10,5\n1,20,6\n3,30,7\n")
    call("run", scenario, "--trace", trace, "-o", tmp_path / "out")
    requests = simcluster.read(tmp_path / "out").requests()
    assert requests["prompt_len"].tolist() == [10, 20, 30]
    assert requests["arrival_s"].tolist() == [0.0, 1.0, 3.0]
    call("run", scenario, "--trace", trace, "--rate", 2, "-o", tmp_path / "out", "--replace")
    assert simcluster.read(tmp_path / "out").requests()["arrival_s"].max() < 3.0
    call(
        "run",
        scenario,
        "--trace",
        trace,
        "--set",
        "workload.num_requests=2",
        "-o",
        tmp_path / "out",
        "--replace",
    )
    assert len(simcluster.read(tmp_path / "out").requests()) == 2


def test_plot_draws_into_the_result_folder(scenario: Path, tmp_path: Path) -> None:
    """And says where; a later comparison may replace the folder, pictures and all."""
    out = tmp_path / "out"
    call("compare", scenario, "--jobs", 1, "-o", out)
    pictures = [Path(line) for line in call("plot", out).stdout.splitlines()]
    assert len(pictures) >= 6
    assert all(p.parent == out / "figures" and p.stat().st_size > 1000 for p in pictures)
    call("plot", out, "--rate", 20, "--seed", 1, "-o", tmp_path / "elsewhere")
    assert len(list((tmp_path / "elsewhere").iterdir())) == len(pictures)
    call("run", scenario, "-o", out, "--replace")
    one = {Path(line).stem for line in call("plot", out).stdout.splitlines()}
    assert {p.stem for p in pictures} - one == {"attainment", "goodput"}  # one rate is no curve


def test_catalog_lists_and_searches() -> None:
    """By words in any order; few matches come with their sources."""
    everything = call("catalog").stdout
    assert all(name in everything for kind in catalog.KINDS for name in catalog.names(kind))
    found = call("catalog", "l20", "--kind", "gpu").stdout
    assert found.startswith("gpu")
    assert "source:" in found
    entries = json.loads(call("catalog", "--kind", "model", "--json").stdout)
    assert {e["name"] for e in entries} == set(catalog.names("model"))
    assert all(e["source"] for e in entries)


def test_schema_prints_the_json_schema() -> None:
    """For editors."""
    assert json.loads(call("schema").stdout) == json_schema()


def test_progress_goes_to_a_terminal_only(scenario: Path) -> None:
    """Standard error stays empty in a pipe, and standard output holds the table alone."""
    command = [
        sys.executable,
        "-m",
        "simcluster",
        "compare",
        str(scenario),
        "--json",
        "--jobs",
        "1",
    ]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert run.stderr == ""
    json.loads(run.stdout)


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_progress_shows_the_time_left(scenario: Path) -> None:
    """On a terminal a bar counts the runs."""
    import os
    import pty

    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "simcluster", "compare", str(scenario), "--jobs", "1"]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=follower, check=True)
    os.close(follower)
    shown = os.read(leader, 100_000).decode()
    os.close(leader)
    assert "simulating" in shown
    assert "8/8" in shown
    assert b"simulating" not in run.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=[p.stem for p in SCRIPTS])
def test_scenario_scripts_run(
    script: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each script in ``scenarios/`` runs and prints something, here with few requests."""
    arguments = ["-o", str(tmp_path / "out")]
    if script.stem == "azure_trace":
        trace = tmp_path / "trace.csv"
        rows = [f"{i / 3},{100 + 10 * i},{20 + i}" for i in range(40)]
        trace.write_text("\n".join(["arrival_s,prompt_len,output_len", *rows]) + "\n")
        arguments += ["--trace", str(trace), "--num-requests", "30"]
    elif script.stem in PRINTING:
        arguments = []
    elif script.stem == "boute":
        types = '[{gpu="RTX 5090", price_per_gpu_hour=0.89}]'
        arguments += ["--duration", "4", "--part", "example", "--rates", "12"]
        arguments += ["--splits", "1", "--set"]
        arguments += ["cooptimize.loads=[0.5,1.1]", "cooptimize.tp_sizes=[1,4]"]
        arguments += [f"extra_cluster={types}", "cooptimize.seeds=[0]"]
    else:
        arguments += ["--duration", "4"]
    if script.stem == "interconnect":
        arguments += ["--gbit", "10"]
    monkeypatch.setattr(sys, "argv", [str(script), *arguments])
    runpy.run_path(str(script), run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) >= 5
    assert not arguments or any((tmp_path / "out").iterdir())


def test_late_commands_are_listed_in_the_words_of_their_short_help() -> None:
    """The list of commands does not import them, so it has their sentences itself."""
    assert _LATE
    for name, (_, sentence) in _LATE.items():
        command = main.get_command(click.Context(main), name)
        assert command is not None
        assert command.short_help == sentence
    listed = CliRunner().invoke(main, ["--help"]).output
    assert all(f"\n  {name} " in listed for name in main.list_commands(click.Context(main)))


def test_a_comparison_begins_with_its_answer_and_a_run_says_where_its_ttft_goes(
    scenario: Path,
) -> None:
    """Which target is missed, what it costs, and the parts of the TTFT, which make up all of it."""
    text = call("compare", scenario, "--jobs", 1).stdout
    assert "\nAnswer:   " in text
    assert text.index("Answer:") < text.index("strategy")
    one = call("run", scenario, "--rate", 20, "--strategy", "EcoServe").stdout
    lines = {
        line.rsplit(maxsplit=1)[0].strip(): line.split()[-1] for line in one.splitlines() if line
    }
    assert {"within the TTFT target (%)", "within the TPOT target (%)"} <= set(lines)
    assert float(lines["USD/h"]) == 4.0  # two GPUs at 2 USD
    tokens = float(lines["output tokens/s"])
    assert float(lines["USD/million output tokens"]) == pytest.approx(4e6 / 3600 / tokens, rel=0.01)
    part = one.partition("of the mean TTFT")[2].partition("\n\n")[0].splitlines()[2:]
    assert sum(float(line.split()[-1]) for line in part) == pytest.approx(100, abs=0.5)
    whole = simcluster.simulate(load(scenario), strategy="EcoServe", rate_rps=20).requests
    means = [values.mean() for values in ttft_parts(whole).values()]
    shown = [f"{100 * mean / sum(means):.1f}" for mean in means if mean > 0]
    assert [line.split()[-1] for line in part] == shown  # to the nearest: a share of time


def test_a_trace_is_replayed_faster(tmp_path: Path, scenario: Path) -> None:
    """Twice the speed is twice the rate of its own; without a trace it is refused."""
    file = tmp_path / "trace.csv"
    rows = [f"{i / 4},{100},{5}" for i in range(41)]
    file.write_text("\n".join(["arrival_s,prompt_len,output_len", *rows]) + "\n")
    rates = [
        json.loads(call("run", scenario, "--trace", file, "--json", *more).stdout)["rows"][0]
        for more in ([], ["--speed", 2])
    ]
    requests = [row["num_requests"] for row in rates]
    assert requests == [41, 41]
    span = [row["rates_to_s"] - row["rates_from_s"] for row in rates]
    assert rates[1]["rate_rps"] == pytest.approx(
        8.2, rel=0.03
    )  # 41 requests in 10 s, twice as fast
    assert span[1] < span[0]
    result = CliRunner().invoke(main, ["run", str(scenario), "--speed", "2"])
    assert (result.exit_code, "there is no trace" in result.stderr) == (1, True)


def test_plot_says_what_draws_the_folder_of_a_search(tmp_path: Path) -> None:
    """Its runs are not kept whole."""
    for name, command in (
        ("goodput.json", "goodput"),
        ("ranking.json", "rank"),
        ("cooptimize.json", "cooptimize"),
    ):
        folder = tmp_path / command
        folder.mkdir()
        (folder / name).write_text("{}")
        result = CliRunner().invoke(main, ["plot", str(folder)])
        assert result.exit_code == 1
        assert f"what `simcluster {command}` found" in result.stderr
        assert "simcluster report" in result.stderr
