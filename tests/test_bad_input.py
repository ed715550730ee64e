"""What a clumsy user writes is refused in one line: key, value, rule, remedy; nothing is written.

The lines are checked word by word where they are ours to phrase, by their parts elsewhere.
"""

from __future__ import annotations

import errno
import math
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import simcluster
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import main
from simcluster.errors import ConfigError, DataError
from simcluster.runs import executor, output
from simcluster.scenario.rank_table import RankTable
from simcluster.studies.goodput import find
from simcluster.studies.rank.rank import rank

SCENARIO: dict[str, Any] = {
    "model": {"name": "codellama-34b"},
    "cluster": {"gpu": "L20", "nodes": 2, "gpus_per_node": 8, "network": "10gbe"},
    "engine": {"profile": "vllm-0.7"},
    "workload": {"lengths": "sharegpt-ecoserve", "num_requests": 20},
    "slo": {"ttft_s": 5.0, "tpot_s": 0.1},
    "sweep": {"rates_rps": [4]},
    "strategy": [
        {"name": "vLLM", "kind": "nodg", "tp_size": 4},
        {"name": "EcoServe", "kind": "padg", "tp_size": 4},
    ],
}


@pytest.fixture
def scenario(tmp_path: Path) -> Path:
    """Return a scenario file that works as it is."""
    path = tmp_path / "scenario.toml"
    path.write_text(to_toml(SCENARIO))
    return path


def call(*arguments: object) -> Result:
    """Call the command line as a user would."""
    return CliRunner().invoke(main, [str(a) for a in arguments])


def refused(result: Result, *parts: str, code: int = 1) -> str:
    """Check that `result` is one line that holds `parts`; return it."""
    assert result.exit_code == code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    line = result.stderr.strip().splitlines()[-1]
    if code == 1:
        assert result.stderr.count("\n") == 1
        assert line.startswith("error: ")
    for part in parts:
        assert part in line
    return line


def nothing_left(folder: Path) -> None:
    """Check that `folder` holds no results, whole or half."""
    left = [path.name for path in folder.iterdir() if path.is_dir()]
    assert left == []


SETTINGS = [
    # unknown keys
    ("cluster.nods=3", "cluster.nods = 3: is not a key of [cluster]. Did you mean 'nodes'"),
    ("slo.tp_size=2", "slo.tp_size = 2: is not a key of [slo]. It belongs in [[strategy]]"),
    (
        "clutser.nodes=2",
        "clutser = a table: is not a key of a scenario file. Did you mean 'cluster'",
    ),
    (
        "strategy.0.tpsize=2",
        "strategy[0].tpsize = 2: is not a key of [[strategy]] with kind = 'nodg'",
    ),
    ("rank.finalist=3", "rank.finalist = 3: is not a key of [rank]. Did you mean 'finalists'?"),
    (
        "rank.tp_size=2",
        "rank.tp_size = 2: is not a key of [rank]. Did you mean 'tp_sizes'? As written it belongs "
        "in [[strategy]] with kind = 'nodg'",
    ),
    (
        "cooptimize.budget=9",
        "cooptimize.budget = 9: is not a key of [cooptimize]. Did you mean 'budget_per_hour'?",
    ),
    (
        "sweep.rate_rps=3",
        "sweep.rate_rps = 3: is not a key of [sweep]. Did you mean 'rates_rps'? As written it "
        "belongs in [workload].",
    ),
    (
        "strategy.1.router=9",
        "strategy[1].router = 9: is not a key of [[strategy]] with kind",
    ),
    (
        "strategy.0.chunk_size=9",
        "strategy.vLLM.chunk_size = 9: scheduler 'prefill-priority' does not split prompts",
    ),
    # wrong types and ranges
    ("cluster.nodes=four", "cluster.nodes = 'four': must be a whole number >= 1 and <= 10000."),
    ("cluster.nodes=1.5", "cluster.nodes = 1.5: must be a whole number >= 1 and <= 10000."),
    ("cluster.nodes=true", "cluster.nodes = true: must be a whole number >= 1 and <= 10000."),
    ("cluster.nodes=10000000000000000000000", "must be a whole number >= 1 and <= 10000."),
    ("engine.issue_s=1e300", "engine.issue_s = 1e+300: must be a number >= 0 and <= 3600."),
    ("run.seeds=[9223372036854775808]", "run.seeds[0] = 9223372036854775808: must be a whole"),
    ("cluster.nodes=0", "cluster.nodes = 0: must be a whole number >= 1 and <= 10000."),
    ("slo.ttft_s=-1", "slo.ttft_s = -1: must be a number > 0."),
    ("slo.ttft_s=nan", "slo.ttft_s = NaN: must be a number > 0."),
    ("slo.ttft_s=inf", "slo.ttft_s = Infinity: must be a number > 0."),
    ("slo.attainment=90", "slo.attainment = 90: must be a number > 0 and <= 1."),
    (
        "slo.percentiles={ttft=0.95}",
        "slo.percentiles.ttft = 0.95: a percentile is in per cent; 0.95 reads as a share. Write 95",
    ),
    ("slo.percentiles={ttft=100}", "slo.percentiles.ttft = 100: must be a number > 0 and < 100."),
    (
        "slo.percentiles={ttft=95}",
        'criterion = "joint" counts all targets of a request together. Write slo.criterion',
    ),
    ("slo.metric=users", "slo.metric = 'users': must be one of 'user', 'ecoserve'. Did you mean"),
    ("model.weight_dtype=int3", "model.weight_dtype = 'int3': must be one of 'bf16', 'fp8', "),
    ("sweep.rates_rps=4", "sweep.rates_rps = 4: must be a list, each a number > 0."),
    ("sweep.rates_rps=[0]", "sweep.rates_rps[0] = 0: must be a number > 0."),
    ("sweep.rates_rps=[4,2]", "sweep.rates_rps = [4.0, 2.0]: must rise, without repeats. Write"),
    ("run.seeds=[]", "run.seeds = []: must be a list with at least one item"),
    ("run.seeds=[1,1]", "run.seeds = [1, 1]: must differ from one another. Write [1]."),
    ("workload=3", "workload = 3: must be a table."),
    ("workload.rate_rps=0", "workload.rate_rps = 0: must be a number > 0 and <= 1000000000."),
    ("workload.num_requests=0", "workload.num_requests = 0: must be a whole number >= 1"),
    (
        "workload.lengths={kind='fixed', prompt_len=-5, output_len=1}",
        "workload.lengths.prompt_len = -5: must be a whole number >= 1",
    ),
    (
        "workload.arrivals={kind='gamma', burstyness=2}",
        "workload.arrivals.burstyness = 2: is not a key of [workload.arrivals]. Did you",
    ),
    ("quality={points=[[0,1]]}", "quality.kind: is missing; it must be one of 'abilities', "),
    # names that do not exist
    (f"model.name={300 * 'a'}", "aaa...: no such model in the catalogue."),
    ("cluster.gpu=L21", "cluster.gpu = 'L21': no such gpu in the catalogue. `simcluster catalog"),
    ("model.name=codelama-34b", "model.name = 'codelama-34b': no such model"),
    ("engine.profile=vlm-0.7", "engine.profile = 'vlm-0.7': no such engine"),
    ("cluster.network=10gb", "cluster.network = '10gb': "),
    ("workload.lengths=sharegtp", "workload.lengths = 'sharegtp': no such lengths"),
    ("workload.arrivals=poison", "workload.arrivals = 'poison': no such arrival process. Did you"),
    ("workload.arrivals={kind='poison'}", "workload.arrivals.kind = 'poison'"),
    ("strategy.0.kind=ndg", "strategy[0].kind = 'ndg': must be one of 'fudg', 'nodg', 'padg', "),
    ("strategy.0.router=fastest", "strategy[0].router = 'fastest': must be one of"),
    # what does not fit together
    ("strategy.1.name=vLLM", "strategy[1].name = 'vLLM': is also the name of strategy[0]."),
    ("engine.max_model_len=99999", "engine.max_model_len = 99999: codellama-34b has a context of"),
    ("strategy.0.tp_size=3", "strategy.vLLM.tp_size = 3"),
    ("strategy.0.instances=9", "strategy.vLLM.instances = 9"),
    ("strategy.0.tp_size=1", "strategy.vLLM.tp_size = 1"),
    (
        "strategy.0.tp_size=16",
        "strategy.vLLM.tp_size = 16: a tensor-parallel group stays inside a node, and a node has",
    ),
    (
        "cluster.oversubscription=0.5",
        "cluster.oversubscription = 0.5: must be a number >= 1 and <= 1000.",
    ),
    (
        "cluster.oversubscription=4",
        "cluster.oversubscription = 4.0: says nothing while all nodes are on one switch.",
    ),
    ("cluster.nics=0", "cluster.nics = 0: must be a whole number >= 1"),
    (
        "cluster.fabric=10gbe",
        "cluster.fabric = '10gbe': is a link between nodes, not inside a node.",
    ),
    ("cluster.currency=EUR", "cluster.currency = 'EUR': is given without a price."),
    # keys that lead nowhere
    (
        "strategy.vLM.tp_size=2",
        "strategy.vLM.tp_size: strategy has no entry 'vLM'. Did you mean 'vLLM'?",
    ),
    ("strategy.2.tp_size=2", "strategy.2.tp_size: strategy has no entry '2'."),
    ("model.name.x=2", "model.name.x = 2: model.name is a value, not a table."),
]


@pytest.mark.parametrize(("setting", "line"), SETTINGS, ids=[s for s, _ in SETTINGS])
def test_a_bad_setting(scenario: Path, setting: str, line: str) -> None:
    """Key, value, rule and remedy in one line, before anything is simulated or written."""
    out = scenario.parent / "out"
    shown = refused(call("compare", scenario, "--set", setting, "-o", out, "--jobs", 1), line)
    assert shown.rstrip(")").endswith((".", "?", ". more")) or shown.endswith("more)")
    nothing_left(scenario.parent)


def test_further_findings_are_counted(scenario: Path) -> None:
    """One line, the first thing to mend; the others will come."""
    settings = ["--set", "slo.ttft_s=-1", "--set", "slo.tpot_s=-1", "--set", "cluster.nods=1"]
    line = refused(call("show", scenario, *settings), "cluster.nods = 1", "(and 2 more)")
    assert "slo.ttft_s" not in line


@pytest.mark.parametrize("command", ["run", "compare", "show"])
def test_a_missing_file(tmp_path: Path, command: str) -> None:
    """The path and what is wrong with it."""
    refused(call(command, tmp_path / "nope.toml"), "nope.toml: cannot be read", "Give the path")


def test_a_folder_for_a_file(tmp_path: Path) -> None:
    """A folder is no scenario."""
    refused(call("show", tmp_path), "cannot be read (Is a directory)")


def test_broken_toml(tmp_path: Path) -> None:
    """Line and column."""
    path = tmp_path / "scenario.toml"
    path.write_text("[model]\nname = codellama\n")
    refused(call("show", path), "scenario.toml: is not TOML", "line 2, column 8")


def test_a_binary_file(tmp_path: Path) -> None:
    """The Parquet file next to the scenario is picked easily."""
    path = tmp_path / "scenario.toml"
    path.write_bytes(b"PAR1\xff\xfe\x00")
    refused(call("show", path), "scenario.toml: is not text")


def test_an_empty_file(tmp_path: Path) -> None:
    """It lacks a model, and three more things."""
    path = tmp_path / "scenario.toml"
    path.write_text("")
    refused(call("show", path), "model: is missing; it must be a table.", "(and 2 more)")


def test_no_gpu(scenario: Path) -> None:
    """A cluster needs a GPU or a node shape."""
    text = to_toml({**SCENARIO, "cluster": {"nodes": 2}})
    scenario.write_text(text)
    refused(call("show", scenario), "cluster.gpu: is missing", 'gpu = "L20"')


def test_no_targets(scenario: Path) -> None:
    """Goodput without a target is every rate."""
    scenario.write_text(to_toml({**SCENARIO, "slo": {}, "strategy": SCENARIO["strategy"][:1]}))
    refused(call("compare", scenario), "slo: a comparison needs at least one latency target")


def test_a_strategy_that_needs_a_target(scenario: Path) -> None:
    """PaDG routes by both."""
    scenario.write_text(to_toml({**SCENARIO, "slo": {"ttft_s": 1.0}}))
    refused(call("compare", scenario), "slo.tpot_s: strategy 'EcoServe' routes by it")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("slack=quantile:1.5", ("slack = 'quantile:1.5'", "q from 0 to 1")),
        ("slack=median", ("slack = 'median'", "mean, max, min or quantile:q")),
        ("window=fixed:0", ("window = 'fixed:0'", "fraction above 0")),
        ("constraints=[]", ("constraints", 'variant = "paper"')),
        ("chunk_size=512", ("chunk_size = 512", "does not split prompts")),
    ],
)
def test_rules_of_padg_that_do_not_exist(
    scenario: Path, override: str, parts: tuple[str, ...]
) -> None:
    """One line each that says what could stand there."""
    code = ("--set", "strategy.EcoServe.variant=code")
    refused(call("compare", scenario, *code, "--set", f"strategy.EcoServe.{override}"), *parts)


def test_a_ttft_target_that_no_prefill_meets(scenario: Path) -> None:
    """Not refused, but said: half of the requests cannot meet it, whatever the strategy."""
    done = call("run", scenario, "--set", "slo.ttft_s=0.001", "--set", "workload.rate_rps=1")
    assert done.exit_code == 0
    assert re.search(
        r"warning: .*slo\.ttft_s = 0\.001 s is below the \d\.\d+ s .* median prompt of \d+ tokens",
        done.stderr,
    )
    done = call("run", scenario, "--set", "workload.rate_rps=1")
    assert "warning" not in done.stderr


def test_no_rate(scenario: Path) -> None:
    """Poisson arrivals need one from somewhere."""
    scenario.write_text(to_toml({**SCENARIO, "sweep": {}}))
    refused(call("run", scenario), "workload.rate_rps")


def test_an_unknown_strategy(scenario: Path) -> None:
    """Offers the nearest."""
    refused(
        call("run", scenario, "--strategy", "ecoserve"), "'ecoserve'", "Did you mean 'EcoServe'?"
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ("trace.csv", "empty")),
        ("arrival_s,prompt_len,output_len\n", ("trace.csv",)),
        ("arrival_s,prompt_len,output_len\n1,5,5\n0,5,5\n", ("trace.csv", "line 3", "arrival_s")),
        ("arrival_s,prompt_len,output_len\n0,-5,5\n", ("trace.csv", "line 2", "prompt_len", "-5")),
        (
            "arrival_s,prompt_len,output_len\n0,5,abc\n",
            ("trace.csv", "line 2", "output_len", "abc"),
        ),
        ("when,how\n0,5\n", ("trace.csv",)),
        (
            "# Notes, of a kind\nOne line\nand, one, more\n",
            ("trace.csv", "missing columns arrival_s"),
        ),
    ],
    ids=["empty", "header-only", "unsorted", "negative", "text", "other-columns", "prose"],
)
def test_a_bad_trace(scenario: Path, text: str, parts: tuple[str, ...]) -> None:
    """File, line, column, value."""
    trace = scenario.parent / "trace.csv"
    trace.write_text(text)
    out = scenario.parent / "out"
    refused(call("run", scenario, "--trace", trace, "-o", out), *parts)
    nothing_left(scenario.parent)


def test_a_missing_trace(scenario: Path) -> None:
    """Refused like any other missing file."""
    refused(call("run", scenario, "--trace", scenario.parent / "nope.csv"), "nope.csv")


@pytest.mark.parametrize("command", ["run", "compare"])
def test_an_output_below_a_file(scenario: Path, command: str) -> None:
    """A folder that cannot be made is refused before simulating."""
    refused(call(command, scenario, "-o", scenario / "out"), "out: cannot be written", "-o")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root writes everywhere")
def test_an_output_that_is_not_ours_to_write(scenario: Path, tmp_path: Path) -> None:
    """The same for a folder without permission."""
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    refused(call("run", scenario, "-o", locked / "out"), "cannot be written (Permission denied)")


def test_an_output_that_is_a_file(scenario: Path) -> None:
    """A file is not replaced by a folder."""
    refused(call("run", scenario, "-o", scenario), "is a file, not a folder")
    assert scenario.is_file()


def test_an_output_folder_with_something_else_in_it(scenario: Path, tmp_path: Path) -> None:
    """Only result folders are replaced, and only if nobody has added to them."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("precious")
    refused(call("run", scenario, "-o", out), "holds files that are not ours (thesis.tex)")
    (out / "thesis.tex").rename(out / "scenario.toml")
    refused(call("run", scenario, "-o", out), "is not a result folder")
    assert (out / "scenario.toml").read_text() == "precious"


@pytest.mark.parametrize(
    "arguments",
    [
        ["run"],
        ["--set", "foo"],
        ["--set", "=3"],
        ["--rate", "0"],
        ["--rate", "-1"],
        ["--seed", "-1"],
        ["--seed", "x"],
        ["--resolution", "token"],
        ["--format", "xlsx"],
        ["--jobs", "2"],
    ],
    ids=" ".join,
)
def test_a_wrong_call(scenario: Path, arguments: list[str]) -> None:
    """Exit code 2, as click does."""
    if arguments != ["run"]:
        arguments = ["run", str(scenario), *arguments]
    refused(call(*arguments), "Error:", code=2)


def test_plot_of_something_else(tmp_path: Path) -> None:
    """A folder without results cannot be drawn."""
    refused(call("plot", tmp_path), "is not a result folder")


@pytest.mark.parametrize("command", ["report", "plot", "show", "diff"])
def test_results_of_an_interrupted_run_are_said_to_be_there(
    command: str, scenario: Path, tmp_path: Path
) -> None:
    """Hidden beside the folder; the same call again finishes them."""
    out = tmp_path / "out"

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simcluster.compare(simcluster.load(scenario), jobs=1, out=out, progress=stop)
    words = "out: is not finished. An interrupted command was writing it; 1 finished run is kept in"
    others = [tmp_path] if command == "diff" else []
    remedy = "Call that command again, into the same folder: it resumes."
    refused(call(command, out, *others), words, remedy)
    assert call("compare", scenario, "-o", out, "--jobs", 1).exit_code == 0
    assert not output.interrupted(out)
    refused(call("report", tmp_path / "other"), "other: is not there")


def test_catalogue_without_a_match() -> None:
    """Offers the nearest names."""
    refused(
        call("catalog", "H10O", "--kind", "gpu"), "nothing in the catalogue matches 'H10O'", "H100"
    )


def test_a_bad_catalogue_of_ones_own(scenario: Path) -> None:
    """Named by file and entry."""
    (scenario.parent / "mine.toml").write_text('[[gpu]]\nname = "X"\nlike = "L2O"\n')
    scenario.write_text(to_toml({"catalog": ["mine.toml"], **SCENARIO}))
    refused(call("show", scenario), "mine.toml", "L2O")


FROM_PYTHON: list[tuple[str, Any, str]] = [
    ("simulate", {"seed": -1}, "seed = -1: must be a whole number >= 0."),
    ("simulate", {"seed": 0.5}, "seed = 0.5: must be a whole number >= 0."),
    ("simulate", {"seed": True}, "seed = True: must be a whole number >= 0."),
    ("simulate", {"rate_rps": "8"}, "rate_rps = '8': must be a number > 0."),
    ("simulate", {"rate_rps": 0.0}, "rate_rps = 0.0: must be a number > 0."),
    ("simulate", {"rate_rps": math.nan}, "rate_rps = nan: must be a number > 0."),
    ("simulate", {"strategy": 3}, "strategy = 3: the scenario has no strategy of this name."),
    ("simulate", {"resolution": "fine"}, "run.resolution = 'fine': is not a resolution."),
    ("compare", {"jobs": 0}, "jobs = 0: must be a whole number >= 1. Leave it out"),
    ("compare", {"jobs": "2"}, "jobs = '2': must be a whole number >= 1."),
    ("compare", {"dask": 8786}, "dask = 8786: must be an address. Give one such as"),
    ("compare", {"fmt": "xlsx"}, "fmt = 'xlsx': is not a format of frames. Known: csv, parquet."),
    ("compare", {"out": 3}, "out = 3: must be a path."),
    ("compare", {"out": "a\0b"}, "out = 'a\\x00b': must be a path."),
    ("find", {"tolerance": 0}, "tolerance = 0: must be a number > 0 and < 1."),
    ("find", {"tolerance": -0.03}, "tolerance = -0.03: must be a number > 0 and < 1."),
    ("find", {"tolerance": "3%"}, "tolerance = '3%': must be a number > 0 and < 1."),
    ("find", {"replications": 2}, "replications = 2: must be a whole number >= 3."),
    ("find", {"max_requests": 0}, "max_requests = 0: must be a whole number >= 1000."),
    ("find", {"max_requests": 1e4}, "max_requests = 10000.0: must be a whole number >= 1000."),
    ("find", {"seed": -1}, "seed = -1: must be a whole number >= 0."),
    ("find", {"jobs": 0}, "jobs = 0: must be a whole number >= 1."),
    ("rank", {"jobs": 0}, "jobs = 0: must be a whole number >= 1."),
    ("rank", {"table": {"tolerance": 0.1}}, "table: must be a RankTable, not dict."),
    ("rank", {"table": RankTable(tolerance=0.0)}, "tolerance = 0.0: must be a number > 0 and < 1."),
    ("rank", {"table": RankTable(tolerance=-1.0)}, "tolerance = -1.0: must be a number > 0"),
    ("rank", {"table": RankTable(strategies=())}, "strategies = []: must be a list with at least"),
]

PUBLIC: dict[str, Callable[..., object]] = {
    "simulate": simcluster.simulate,
    "compare": simcluster.compare,
    "find": find,
    "rank": rank,
}


@pytest.mark.parametrize(
    ("function", "given", "line"), FROM_PYTHON, ids=[f"{f} {g}" for f, g, _ in FROM_PYTHON]
)
def test_a_bad_argument_from_python(
    scenario: Path, function: str, given: dict[str, object], line: str
) -> None:
    """The same kind of line as for a setting, before anything is drawn or written."""
    loaded = simcluster.load(scenario)
    with pytest.raises(ConfigError, match="^" + re.escape(line)) as caught:
        PUBLIC[function](loaded, **given)
    assert "\n" not in str(caught.value)
    assert caught.value.remedy
    nothing_left(scenario.parent)


@pytest.mark.parametrize("function", PUBLIC)
@pytest.mark.parametrize(
    ("value", "line"),
    [
        ("s.toml", "scenario = 's.toml': must be a scenario. simcluster.load reads one"),
        (SCENARIO, "scenario: must be a scenario, not dict."),
        (None, "scenario: must be a scenario, not NoneType."),
    ],
    ids=["path", "tables", "none"],
)
def test_what_is_no_scenario(function: str, value: object, line: str) -> None:
    """The path of its file, or its tables, are easily given in its place."""
    with pytest.raises(ConfigError, match="^" + re.escape(line)):
        PUBLIC[function](value)


@pytest.mark.parametrize("function", ["simulate", "compare", "find"])
def test_a_scenario_without_strategies(scenario: Path, function: str) -> None:
    """Such as the file of a ranking, whose strategies are the candidates."""
    bare = simcluster.load(scenario, {"strategy": None, "rank.finalists": 2})
    with pytest.raises(ConfigError, match=r"^strategy: the scenario has none\. Add a table") as got:
        PUBLIC[function](bare)
    assert "Or use `simcluster rank`, which makes its own from [rank]." in str(got.value)


@pytest.mark.parametrize("command", ["run", "compare", "goodput", "timeline"])
def test_a_command_that_needs_a_strategy_says_so(scenario: Path, command: str) -> None:
    """In a line, with the command that needs none; nothing is written."""
    out = ("-o", str(scenario.with_name("out.json"))) if command == "timeline" else ()
    scenario.write_text(to_toml({**SCENARIO, "strategy": [], "rank": {"tp_sizes": [2]}}))
    refused(call(command, scenario, *out), "strategy: the scenario has none.", "`simcluster rank`")
    assert [path.name for path in scenario.parent.iterdir()] == [scenario.name]


@pytest.mark.parametrize(
    ("read", "line"),
    [
        (lambda: simcluster.load(None), "path: must be a path, not NoneType."),  # type: ignore[arg-type]
        (lambda: simcluster.load(SCENARIO), "path: must be a path, not dict."),  # type: ignore[arg-type]
        (lambda: simcluster.read(3), "folder = 3: must be a path."),  # type: ignore[arg-type]
        (lambda: simcluster.resolve("s.toml"), "document = 's.toml': must be a mapping"),  # type: ignore[arg-type]
        (
            lambda: simcluster.resolve(SCENARIO, ["slo.ttft_s=1"]),  # type: ignore[arg-type]
            "overrides: must be a mapping with text for keys, not list. Write them as",
        ),
    ],
    ids=["nothing", "tables", "number", "path", "list"],
)
def test_what_cannot_be_read(read: Callable[[], object], line: str) -> None:
    """Wrong types at the functions that read."""
    with pytest.raises(ConfigError, match="^" + re.escape(line)):
        read()


def test_numbers_of_numpy_are_numbers() -> None:
    """A rate out of an array, an array of rates."""
    changes = {"sweep.rates_rps": np.array([2.0, 3.0]), "slo.ttft_s": np.float64(1.0)}
    loaded = simcluster.resolve(SCENARIO, changes)
    assert loaded.rates_rps == (2.0, 3.0)
    one = simcluster.simulate(loaded, rate_rps=np.float64(2.0), seed=np.int64(3))  # type: ignore[arg-type]
    other = simcluster.simulate(loaded, rate_rps=2.0, seed=3)
    assert one.requests.equals(other.requests)


def test_a_frame_that_does_not_exist(scenario: Path) -> None:
    """Offers the nearest."""
    comparison = simcluster.compare(simcluster.load(scenario), jobs=1)
    with pytest.raises(DataError, match=r"no frame is called 'request'\. Did you mean 'requests'"):
        comparison.frame("request", "vLLM")


@pytest.mark.parametrize("command", ["goodput", "rank"])
@pytest.mark.parametrize(
    ("name", "words"), [("file", "is a file, not a folder"), ("file/out", "cannot be written")]
)
def test_an_answer_that_cannot_be_written_is_not_searched_for(
    command: str, name: str, words: str, scenario: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search takes minutes: it is refused before, not after."""
    monkeypatch.setattr(executor, "outcomes", None)  # whoever simulates fails
    (scenario.parent / "file").touch()
    refused(call(command, scenario, "--jobs", 1, "-o", scenario.parent / name), words, "-o")


def test_a_ranking_that_fails_leaves_no_folder(scenario: Path) -> None:
    """Nor one of those above it."""
    changes = ["--set", "slo.ttft_s=0.001"]
    out = scenario.parent / "new" / "out"
    refused(call("rank", scenario, "--jobs", 1, *changes, "-o", out), "none of the")
    nothing_left(scenario.parent)


def test_files_are_written_together_or_not_at_all(tmp_path: Path) -> None:
    """A full disk in the middle leaves the files of before."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a").write_text("before")

    def fill() -> None:
        with output.together(tmp_path / "out") as folder:
            (folder / "a").write_text("after")
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(DataError, match=r"out: cannot be written \(No space left on device\)"):
        fill()
    assert [p.name for p in tmp_path.rglob("*")] == ["out", "a"]
    assert (tmp_path / "out" / "a").read_text() == "before"
    with output.together(tmp_path / "out") as folder:
        (folder / "a").write_text("after")
        (folder / "b").touch()
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["a", "b", "out"]
    assert (tmp_path / "out" / "a").read_text() == "after"


def test_requests_that_are_all_too_long_are_explained(scenario: Path) -> None:
    """A table of dashes says nothing; the reason and the limit stand under it."""
    result = call("run", scenario, "--set", "engine.max_model_len=16")
    assert result.exit_code == 0
    assert "Rejected: all of the requests" in result.stdout
    assert "(16 tokens)" in result.stdout


def test_an_error_of_a_worker_comes_back_as_one_line(scenario: Path) -> None:
    """Exceptions cross from one process to another by pickle, key, value, rule and remedy too."""
    error = ConfigError("a.b", 3, "a rule", "A remedy.", missing_bytes=1e9)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.key, again.value) == (str(error), "a.b", 3)
    assert again.missing_bytes == 1e9
    arguments = ["--set", 'workload.arrivals={kind="closed-loop",concurrency=10}', "--jobs", "2"]
    refused(call("compare", scenario, *arguments), "workload.rate_rps", "closed loop")


def test_a_kernel_run_too_large_to_be_meant_is_refused(scenario: Path) -> None:
    """It says how many events it would take, and how to ask for less."""
    changes = ["--resolution", "kernel", "--set", "workload.num_requests=400"]
    line = refused(call("run", scenario, *changes), "run.resolution = 'kernel'", "million events")
    assert "workload.num_requests" in line


ENGINE_WITHOUT_ISSUE_COSTS = """
[[engine]]
name = "mine"
host_before_ms = 1
host_after_ms = 1
host_per_seq_before_us = 1
host_per_seq_after_us = 1
overlaps_host = false
graph_max_seqs = 0
queue_depth = 1024
gpu_memory_utilization = 0.9
reserved_gb = 2
block_size = 16
watermark = 0.01
max_num_seqs = 256
chunk_size = 512
source = "nowhere"
"""


@pytest.mark.parametrize("resolution", ["span", "kernel"])
def test_an_engine_profile_without_issue_costs_is_refused(
    scenario: Path, resolution: str, tmp_path: Path
) -> None:
    """A step issued for nothing would not be dispatch-bound at any size: no silent zero."""
    (scenario.parent / "mine.toml").write_text(ENGINE_WITHOUT_ISSUE_COSTS)
    changed = {"catalog": ["mine.toml"], **SCENARIO, "engine": {"profile": "mine"}}
    scenario.write_text(to_toml(changed))
    refused(
        call("run", scenario, "--resolution", resolution, "-o", tmp_path / "out"),
        "mine.toml: engine[0].issue_us: the key is missing. Add issue_us: CPU cost of issuing one",
    )
    nothing_left(tmp_path)


def test_a_timeline_window_with_nothing_in_it_is_refused(scenario: Path, tmp_path: Path) -> None:
    """It says how long the run is; no file is left."""
    out = tmp_path / "trace.json"
    refused(
        call("timeline", scenario, "-o", out, "--start", "1e5"),
        "--start = 100000.0: nothing happens after 100000 s. The run takes",
        "give a part of it",
    )
    assert not out.exists()


@pytest.mark.parametrize("digits", [5000, 100_000])
def test_a_number_of_thousands_of_digits_is_refused_in_one_short_line(
    scenario: Path, digits: int
) -> None:
    """Python itself refuses to read or write it: in an override, and in the file."""
    key = f"workload.num_requests = 1{digits * '0'}"
    line = refused(call("run", scenario, "--set", key), "num_requests = ", "must be a whole number")
    assert len(line) < 300
    scenario.write_text(key)
    assert len(refused(call("run", scenario), "is not TOML")) < 300


def test_nesting_without_end_is_refused_in_one_short_line(scenario: Path) -> None:
    """5,000 lists in each other are more than Python's stack holds."""
    scenario.write_text("model = " + 5000 * "[")
    assert len(refused(call("run", scenario), "is not TOML")) < 300


def test_control_characters_never_reach_the_terminal(tmp_path: Path) -> None:
    r"""Of columns, cells and values: they are written out, as \x1b."""
    file = tmp_path / "trace.csv"
    file.write_text("arrival_s,prompt_len,output_len,a\x1b[31m\n0,1,1,2\n", encoding="utf-8")
    told = call("trace", file)
    assert "not simulated: column a\\x1b[31m" in told.stdout
    assert "\x1b" not in told.output
    file.write_text("arrival_s,prompt_len,output_len\n0,\x1b[31m,1\n", encoding="utf-8")
    assert "\x1b" not in refused(call("trace", file), "prompt_len = '\\x1b[31m': must be")
    file = tmp_path / "\x1b[31m.csv"
    assert "\x1b" not in refused(call("trace", file), "\\x1b[31m.csv: no such file")


def test_an_empty_table_says_why_it_is_empty(scenario: Path) -> None:
    """Warm-up, cool-down and the end of the clock leave nothing to count."""
    run = ("run", scenario, "--set", "sweep=", "--set", "workload.rate_rps=4")
    for setting, words in (
        ("warmup_s=1e6", "those that arrive before run.warmup_s = 1e+06 s are left out."),
        ("cooldown_s=1e308", "those that arrive in the last run.cooldown_s = 1e+308 s are left"),
        ("max_time_s=1e-6", "run.max_time_s = 1e-06 s stops the clock."),
    ):
        text = " ".join(call(*run, "--set", f"run.{setting}").stdout.split())
        assert f"No request is counted: {words}" in text
    done = call(*run, "--set", "run.max_time_s=3")
    assert re.search(r"\d+ of \d+ requests had not ended when run.max_time_s = 3 s", done.stdout)
    compared = call("compare", scenario, "--set", "run.warmup_s=1e6", "--jobs", 1)
    assert "In 2 of 2 runs no request is counted" in compared.stdout
    assert (
        "Answer:   Nothing is compared: there are runs without a counted request."
        in compared.stdout
    )


def test_a_kv_buffer_smaller_than_a_prompt_is_said(scenario: Path) -> None:
    """One prompt is let in whatever it holds, so the run goes on: half a gigabyte is a prompt."""
    split = '[{name = "a", kind = "fudg", tp_size = 4, kv_connector = "inside"}]'
    settings = [f"strategy={split}", "engine.kv_get_bytes_per_s=1e9", "workload.rate_rps=1"]
    small = call(
        *("run", scenario, "--set", "engine.kv_buffer_bytes=10", "--set", "sweep="),
        *(part for setting in settings for part in ("--set", setting)),
    )
    assert "engine.kv_buffer_bytes = 10 is less than the KV cache of the median" in small.stderr
    large = call(
        *("run", scenario, "--set", "engine.kv_buffer_bytes=1e12", "--set", "sweep="),
        *(part for setting in settings for part in ("--set", setting)),
    )
    assert "kv_buffer_bytes" not in large.stderr


def test_a_tpot_target_that_no_decode_step_meets_is_said(scenario: Path) -> None:
    """As for TTFT: no strategy decodes faster than one sequence alone."""
    settings = ["--set", "slo.tpot_s=0.0001", "--set", "workload.rate_rps=1", "--set", "sweep="]
    done = call("run", scenario, *settings)
    assert re.search(r"slo\.tpot_s = 0\.0001 s is below the 0\.0\d+ s of a decode", done.stderr)


@pytest.mark.parametrize("key", ["scheduler", "kernel_generation"])
def test_an_engine_of_a_catalogue_file_names_what_there_is(scenario: Path, key: str) -> None:
    """By file, entry and key."""
    text = f'[[engine]]\nname = "mine"\nlike = "vllm-0.19"\nsource = "x"\n{key} = "nonsense"\n'
    (scenario.parent / "mine.toml").write_text(text)
    scenario.write_text(to_toml({"catalog": ["mine.toml"], **SCENARIO}))
    refused(call("show", scenario), f"mine.toml: engine[0].{key} = 'nonsense': no ", "Known: ")
    (scenario.parent / "mine.toml").write_text(text.replace("nonsense", "2024", 1))
    if key == "kernel_generation":
        assert call("show", scenario).exit_code == 0


def test_kernels_of_no_known_generation_are_refused(scenario: Path) -> None:
    """They were those of current software, without a word; of a GPU without them it is said."""
    change = "engine.kernel_generation=foo"
    refused(
        call("run", scenario, "--set", change),
        "engine.kernel_generation = 'foo': no GPU of the catalogue has kernels of this generation.",
        "Known: 2023, 2024, 2025, trtllm. Or leave it out",
    )
    stands_in = "kernels of the generation '2024' of engine vllm-0.7 are not known for L20"
    rate = ("--set", "workload.rate_rps=1", "--set", "sweep=")
    assert stands_in in " ".join(call("run", scenario, *rate).stdout.split())
    known = ("--set", "cluster.gpu=A100", "--set", "model.name=llama-2-7b")
    assert "kernels of the generation" not in call("run", scenario, *rate, *known).stdout


def test_advice_never_prints_a_whole_table(scenario: Path) -> None:
    """A list where a table belongs."""
    line = refused(call("show", scenario, "--set", "engine=[]"), "engine = []: must be a table.")
    assert "null" not in line
    assert len(line) < 200
    kind = "workload.lengths.kind=fixed"
    refused(
        call("compare", scenario, "--set", kind),
        "workload.lengths is a value, not a table.",
        "--set 'workload.lengths={ kind = \"fixed\", ... }'; docs/scenario.md",
    )


def test_prefixes_that_are_not_reused_are_said(scenario: Path) -> None:
    """A trace that names its blocks, and an engine that does not look."""
    trace = scenario.parent / "trace.jsonl"
    row = '{"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}\n'
    trace.write_text(row + row.replace('p": 0', 'p": 900'))
    told = f'workload.trace={{path="{trace}",format="mooncake",time_unit="ms",block_size=512}}'
    change = ("--set", told, "--set", "workload.num_requests=", "--set", "sweep=")
    line = "prompts that begin alike are computed again: prefix caching is off"
    assert line in call("run", scenario, *change).stdout
    assert line not in call("run", scenario, *change, "--set", "engine.prefix_caching=true").stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("arguments", [["catalog"], ["schema"], ["show", "scenario.toml"]])
def test_output_that_cannot_be_written_is_one_line(scenario: Path, arguments: list[str]) -> None:
    """A full disk behind standard output; also what is left in the buffer at the end."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "simcluster", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            cwd=scenario.parent,
        )
    assert done.returncode == 1
    assert done.stderr == "error: the output cannot be written (No space left on device).\n"


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("=cmd()", "must not begin with =, +, - or @: a spreadsheet takes such a cell for"),
        ("@SUM(A1)", "must not begin with =, +, - or @"),
        ("a\x1b[31m", "must not hold control characters"),
    ],
)
def test_a_name_that_would_be_a_formula(scenario: Path, name: str, rule: str) -> None:
    """Names of strategies, of the models of a router and of catalogue entries reach CSV files."""
    scenario.write_text(to_toml({**SCENARIO, "strategy": [{"name": name, "kind": "nodg"}]}))
    refused(call("show", scenario), "strategy[0].name = ", rule)
    entry = {"name": name, "like": "L20", "source": "x"}
    (scenario.parent / "mine.toml").write_text(to_toml({"gpu": [entry]}))
    scenario.write_text(to_toml({"catalog": ["mine.toml"], **SCENARIO}))
    refused(call("show", scenario), "mine.toml: gpu[0].name = ", rule)


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are text elsewhere")
def test_a_folder_whose_name_is_not_utf8(scenario: Path) -> None:
    """The library that writes frames cannot name it."""
    out = scenario.parent / os.fsdecode(b"out\xff")
    rate = ("--set", "workload.rate_rps=1", "--set", "sweep=")
    refused(call("run", scenario, *rate, "-o", out), "out\\udcff: its name is not UTF-8.", "-o")
    nothing_left(scenario.parent)
