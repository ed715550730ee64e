"""Scenario files: defaults, overrides, the document that reads back as the same scenario."""

from __future__ import annotations

import dataclasses
import math
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from helpers.scenarios import small_scenario
from simcluster import catalog
from simcluster.catalog.own_file import entry_text
from simcluster.catalog.specs import EngineProfile
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import main
from simcluster.engine.instance import Instance
from simcluster.errors import ConfigError
from simcluster.scenario import file as scenario_file
from simcluster.scenario.check import validated
from simcluster.scenario.file import (
    json_schema,
    load,
    markdown_keys,
    parse_override,
    resolve,
    with_paths_of,
)
from simcluster.scenario.tables import EngineTable
from simcluster.strategies import STRATEGIES, NoDG
from simcluster.strategies.base import dry_run
from simcluster.testing.examples import examples
from simcluster.workload import ARRIVALS, LENGTHS

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "scenarios").glob("*.toml"))

SMALL = small_scenario(
    {"name": "a", "kind": "nodg"},
    {"name": "b", "kind": "padg"},
    workload={"lengths": {"kind": "fixed", "prompt_len": 100, "output_len": 20}},
    slo={"ttft_s": 1.0, "tpot_s": 0.1},
)

KEYS = st.text(min_size=1, max_size=8)
VALUES = st.one_of(
    st.booleans(),
    st.integers(min_value=-(2**63), max_value=2**63 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.lists(st.integers(min_value=-9, max_value=9), max_size=4),
)
TABLES = st.dictionaries(
    KEYS,
    st.recursive(
        VALUES,
        lambda inner: st.one_of(
            st.dictionaries(KEYS, inner, max_size=4),
            st.lists(st.dictionaries(KEYS, inner, max_size=3), min_size=1, max_size=3),
        ),
        max_leaves=10,
    ),
    max_size=5,
)


@given(TABLES)
@examples(100)
def test_toml_reads_back(document: dict[str, object]) -> None:
    """The standard library's reader, the oracle, gives back what was written."""
    assert tomllib.loads(to_toml(document)) == document


def test_toml_writes_nan_and_leaves_out_none() -> None:
    """TOML has a nan but no null."""
    read = tomllib.loads(to_toml({"a": math.nan, "b": None, "c": {"d": None}}))
    assert math.isnan(read.pop("a"))
    assert read == {"c": {}}


def test_entries_written_one_after_the_other_are_a_list() -> None:
    """However short they are: an inline list could not be added to."""
    text = entry_text("link", {"name": "a"}) + entry_text("link", {"name": "b", "lanes": None})
    assert tomllib.loads(text) == {"link": [{"name": "a"}, {"name": "b"}]}


def again(document: dict[str, Any]) -> Any:
    """Read a document as ``simcluster show`` prints it."""
    return resolve(tomllib.loads(to_toml(document)))


@pytest.mark.parametrize("path", FILES, ids=[p.stem for p in FILES])
def test_a_shown_scenario_reads_back_as_the_same(path: Path) -> None:
    """Defaults are filled in once and for all: a later catalogue default does not move a result."""
    scenario = load(path)
    assert again(dict(scenario.document)) == scenario


@pytest.mark.parametrize(
    "workload",
    [
        {"arrivals": {"kind": "gamma", "burstiness": 0.5}, "lengths": "sharegpt-ecoserve"},
        {"trace": "some/trace.csv"},
        {"lengths": SMALL["workload"]["lengths"], "rate_rps": 3, "duration_s": 60},
    ],
)
def test_workloads_read_back_as_the_same(workload: dict[str, Any]) -> None:
    """Whatever form the workload is written in."""
    scenario = resolve({**SMALL, "workload": workload})
    assert again(dict(scenario.document)) == scenario


@pytest.mark.parametrize("table", ["rank", "cooptimize"])
def test_a_question_without_strategies_reads_back_as_the_same(table: str) -> None:
    """`rank` and `cooptimize` make strategies of their own: their files need none."""
    asked = {"rank": {"tp_sizes": [2]}, "cooptimize": {"models": ["Llama 2 7B"]}}[table]
    tables = {**SMALL, "model": {"name": "Llama 2 7B"}, table: asked, "strategy": []}
    scenario = resolve(tables)
    assert scenario.strategies == ()
    assert "strategy" not in scenario.document
    assert again(dict(scenario.document)) == scenario
    assert (scenario.rank is not None, scenario.cooptimize is not None) == (
        table == "rank",
        table == "cooptimize",
    )
    if scenario.rank is not None:
        assert (scenario.rank.tp_sizes, scenario.rank.pp_sizes) == ((2,), (1,))  # given, default
    if scenario.cooptimize is not None:
        assert scenario.cooptimize.models == (scenario.environment.model.spec.name,)


def test_other_strategies_are_in_the_document_too() -> None:
    """What is written beside results names what was simulated."""
    scenario = resolve({**SMALL, "rank": {"tp_sizes": [2]}})
    few = scenario.only("b")
    assert (
        [s.name for s in few.strategies] == ["b"] == [s["name"] for s in few.document["strategy"]]
    )
    assert again(dict(few.document)) == few
    assert again(dict(scenario.with_strategies(()).document)) == scenario.with_strategies(())


@pytest.mark.parametrize(
    ("gpu", "changes", "limits"),
    [
        ("A100", {}, (256, 2048)),
        ("L20", {}, (256, 2048)),
        ("H100 SXM", {}, (1024, 8192)),
        ("H100 SXM", {"engine.max_num_seqs": 64}, (64, 8192)),
        ("H100 SXM", {"engine.chunk_size": 4096}, (1024, 4096)),
        ("H100 SXM", {"engine.chunk_size": 512}, (512, 512)),
        ("H100 SXM", {"engine.max_num_batched_tokens": 4096}, (1024, 4096)),
    ],
)
def test_a_profile_is_a_whole_engine(
    gpu: str, changes: dict[str, int], limits: tuple[int, int]
) -> None:
    """VLLM's API server: chunked prefill, 8192 tokens and 1024 sequences on H100, else 2048, 256.

    No more sequences than tokens (vLLM, ``EngineArgs.get_batch_defaults`` and what follows it).
    """
    nodg = {**SMALL, "engine": {}, "strategy": [{"name": "a", "kind": "nodg"}]}
    scenario = resolve(nodg, {"cluster.gpu": gpu, **changes})
    engine = scenario.environment.engine
    assert (engine.max_num_batched_tokens or engine.chunk_size) == limits[1]
    (strategy,) = scenario.strategies
    assert isinstance(strategy, NoDG)
    assert strategy.scheduler == "chunked"
    (instance, *_) = dry_run(scenario.environment, strategy).instances
    assert isinstance(instance, Instance)
    config = instance.scheduler.config
    assert (config.max_num_seqs, config.max_num_batched_tokens) == limits
    assert again(dict(scenario.document)) == scenario
    old = resolve(nodg, {"engine.profile": "vllm-0.7"}).strategies[0]
    assert isinstance(old, NoDG)
    assert old.scheduler == "prefill-priority"


def test_defaults_come_from_the_catalogue() -> None:
    """What the file leaves out is what the catalogue says, and the document states it."""
    scenario = resolve({key: table for key, table in SMALL.items() if key != "engine"})
    gpu = catalog.gpu("A100")
    cluster = scenario.environment.cluster
    assert cluster.gpu == gpu
    assert cluster.fabric == catalog.link(gpu.fabric)
    assert cluster.network == catalog.link("100gbe")
    assert cluster.num_nics == 1
    assert scenario.environment.engine == catalog.engine("vllm-0.19").on(gpu)
    model = scenario.environment.model
    assert model.max_model_len == model.spec.max_position
    assert scenario.document["cluster"]["gpu"] == gpu.name
    assert scenario.document["workload"]["arrivals"] == "poisson"


def test_the_price_comes_from_the_catalogue() -> None:
    """Where it knows one; else there is none, and no cost is made up."""
    prices = {name: catalog.default_price(catalog.gpu(name)) for name in catalog.names("gpu")}
    priced = next(name for name, price in prices.items() if price is not None)
    unpriced = next(name for name, price in prices.items() if price is None)
    cluster = resolve(SMALL, {"cluster.gpu": priced}).environment.cluster
    assert prices[priced] is not None
    assert cluster.price_per_gpu_hour == prices[priced].per_gpu_hour  # type: ignore[union-attr]
    document = resolve(SMALL, {"cluster.gpu": unpriced}).document["cluster"]
    assert "price_per_gpu_hour" not in document
    assert "currency" not in document


def test_a_node_shape_fills_in_the_cluster() -> None:
    """Its keys give way to those of the file."""
    name = catalog.names("node")[0]
    shape = catalog.node(name)
    tables = {**SMALL, "cluster": {"node": name}}
    cluster = resolve(tables).environment.cluster
    assert cluster.gpu == catalog.gpu(shape.gpu)
    assert cluster.gpus_per_node == shape.gpus_per_node
    assert cluster.num_nics == shape.num_nics
    assert cluster.fabric.name == shape.fabric
    assert cluster.network.name == shape.network
    tables["cluster"] = {"node": name, "gpus_per_node": 3, "nics": 5, "network": "10gbe"}
    cluster = resolve(tables).environment.cluster
    assert (cluster.gpus_per_node, cluster.num_nics) == (3, 5)
    assert cluster.network.name == "10gbe"


def test_another_gpu_in_a_node_shape_brings_its_own_fabric() -> None:
    """An L20 in the shape of an H100 server has no NVLink."""
    shapes = [n for n in catalog.names("node") if catalog.node(n).gpu == catalog.gpu("H100").name]
    cluster = resolve({**SMALL, "cluster": {"node": shapes[0], "gpu": "L20"}}).environment.cluster
    assert cluster.fabric.name == catalog.gpu("L20").fabric


def test_the_engine_table_overrides_every_number_of_a_profile() -> None:
    """A new number of `EngineProfile` needs its key."""
    others = {"profile", "max_model_len", "step_times", "kernels"}
    keys = {f.name for f in dataclasses.fields(EngineTable)} - others
    assert keys == {f.name for f in dataclasses.fields(EngineProfile)} - {"name", "source"}


ENGINE_VALUES: dict[str, object] = {
    "gpu_memory_utilization": 0.5,
    "reserved_bytes": 1e9,
    "memory_rule": "static",
    "sampler_bytes": 7.0,
    "scheduler": "chunked",
    "large_gpu_max_num_seqs": 9,
    "large_gpu_chunk_size": 90,
    "communicator_bytes": 2e9,
    "hybrid_kv_cache": False,
    "block_size": 32,
    "watermark": 0.25,
    "max_num_seqs": 17,
    "max_num_batched_tokens": 3000,
    "chunk_size": 300,
    "host_before_s": 0.25,
    "host_after_s": 0.25,
    "host_per_seq_before_s": 0.25,
    "host_per_seq_after_s": 0.25,
    "host_workers_s": 0.25,
    "cpu_speed": 1.5,
    "overlaps_host": True,
    "graph_max_seqs": 3,
    "issue_s": 0.25,
    "graph_issue_s": 0.25,
    "queue_depth": 7,
    "kernel_generation": "2024",
    "plans_ahead": True,
    "handover_s": 0.002,
    "redoes_last_token": True,
    "kv_connector": "inside",
    "kv_between_steps": True,
    "kv_put_bytes_per_s": 1e9,
    "kv_get_bytes_per_s": 2e9,
    "kv_poll_s": 0.001,
    "kv_buffer_bytes": 3e9,
    "quantises": "apart",
    "front_end_s": 0.004,
    "front_end_token_s": 2e-6,
    "piece_max_tokens": 100,
    "piece_issue_s": 3e-6,
    "fuses_allreduce": True,
    "fuses_allreduce_max_bytes": 8e6,
    "splits_attention": True,
    "own_allreduce": False,
    "prefix_caching": True,
    "prefill_wait_steps": 12,
    "prefill_wait_share": 0.5,
    "prefill_interval": 4,
    "reserves_output": True,
    "api_servers": 2,
    "expert_parallel": "none",
    "api_request_s": 0.003,
    "api_token_s": 4e-5,
}


@pytest.mark.parametrize(
    "key",
    [f.name for f in dataclasses.fields(EngineTable) if f.name not in ("step_times", "kernels")],
)
def test_every_engine_key_arrives(key: str) -> None:
    """In the profile that the run uses, and in the document."""
    if key == "profile":
        scenario = resolve(SMALL, {"engine.profile": "eager"})
        assert scenario.environment.engine == catalog.engine("eager")
    elif key == "max_model_len":
        assert resolve(SMALL, {"engine.max_model_len": 99}).environment.model.max_model_len == 99
    elif key.startswith("large_gpu_"):  # A100 is no large GPU to vLLM
        for gpu, arrives in (("A100", False), ("H100 SXM", True)):
            scenario = resolve(SMALL, {f"engine.{key}": ENGINE_VALUES[key], "cluster.gpu": gpu})
            limit = getattr(scenario.environment.engine, key.removeprefix("large_gpu_"))
            assert (limit == ENGINE_VALUES[key]) is arrives
    else:
        also = {"engine.scheduler": "chunked"} if key.startswith("prefill_") else {}
        scenario = resolve(SMALL, {f"engine.{key}": ENGINE_VALUES[key]} | also)
        assert getattr(scenario.environment.engine, key) == ENGINE_VALUES[key]
        assert scenario.document["engine"][key] == ENGINE_VALUES[key]


def test_each_target_has_a_percentile_of_its_own() -> None:
    """TTFT P95 and TPOT P99: each by its own share, any other by that of attainment."""
    percentiles = {"ttft": 95, "tpot": 99}
    changes = {"slo.criterion": "marginal", "slo.percentiles": percentiles, "slo.e2el_s": 9}
    slo = resolve(SMALL, changes).environment.slo
    assert [slo.wanted(key) for key in ("ttft", "tpot", "e2el", "joint")] == [0.95, 0.99, 0.9, 0.9]
    assert slo.counted == ("ttft", "tpot", "e2el")
    assert resolve(SMALL).environment.slo.counted == ("joint",)
    with pytest.raises(ConfigError, match=r"slo.percentiles.e2el = 95.*slo.e2el_s has no value"):
        resolve(SMALL, {"slo.criterion": "marginal", "slo.percentiles.e2el": 95})
    kept = resolve(SMALL, changes).document["slo"]["percentiles"]
    assert {key: value for key, value in kept.items() if value} == percentiles


@pytest.mark.parametrize(
    ("key", "value", "got"),
    [
        ("model.weight_dtype", "fp8", lambda s: s.environment.model.weight_dtype == "fp8"),
        ("model.kv_dtype", "fp8", lambda s: s.environment.model.kv_bytes == 1),
        ("cluster.nodes", 3, lambda s: s.environment.cluster.num_gpus == 6),
        ("cluster.fabric", "pcie4", lambda s: s.environment.cluster.fabric.name == "pcie4"),
        ("cluster.network", "10gbe", lambda s: s.environment.cluster.network.name == "10gbe"),
        ("cluster.nics", 4, lambda s: s.environment.cluster.num_nics == 4),
        ("cluster.price_per_gpu_hour", 9, lambda s: s.environment.cluster.price_per_gpu_hour == 9),
        ("slo.e2el_s", 30, lambda s: s.environment.slo.e2el_s == 30),
        ("slo.criterion", "marginal", lambda s: s.environment.slo.criterion == "marginal"),
        ("slo.metric", "ecoserve", lambda s: s.environment.slo.metric == "ecoserve"),
        ("slo.attainment", 0.99, lambda s: s.environment.slo.attainment == 0.99),
        ("sweep.rates_rps", [1, 2], lambda s: s.rates_rps == (1.0, 2.0)),
        ("workload.rate_rps", 3, lambda s: s.rates_rps == (3.0,)),
        ("run.seeds", [4, 5], lambda s: s.run.seeds == (4, 5)),
        ("run.warmup_s", 7, lambda s: s.run.warmup_s == 7),
        ("run.cooldown_s", 7, lambda s: s.run.cooldown_s == 7),
        ("run.resolution", "step", lambda s: s.run.resolution == "step"),
        ("run.max_time_s", 60, lambda s: s.run.max_time_s == 60),
        ("strategy.0.tp_size", 2, lambda s: s.strategies[0].tp_size == 2),
        ("strategy[1].tp_size", 2, lambda s: s.strategies[1].tp_size == 2),
        ("strategy.0.prefix_caching", True, lambda s: s.strategies[0].prefix_caching),
        ("strategy.0.preemption", "swap", lambda s: s.strategies[0].preemption == "swap"),
        ("strategy.0.swap_bytes", 1e9, lambda s: s.strategies[0].swap_bytes == 1e9),
        ("strategy.b.slack", "min", lambda s: s.strategies[1].slack == "min"),
    ],
)
def test_a_key_has_its_effect(key: str, value: object, got: Any) -> None:
    """Each key changes what it names, as an override and so as a key of the file."""
    assert not got(resolve(SMALL))
    assert got(resolve(SMALL, {key: value}))


def test_an_override_takes_the_place_of_what_it_excludes() -> None:
    """Of the file's keys, not of another override."""
    lasting = {**SMALL, "workload": {**SMALL["workload"], "duration_s": 60}}
    workload = resolve(lasting, {"workload.num_requests": 5}).workload
    assert (workload.num_requests, workload.duration_s) == (5, None)
    workload = resolve(lasting, {"workload.trace": "/trace.csv"}).workload
    assert (workload.lengths, workload.arrivals, workload.duration_s) == (None, None, None)
    workload = resolve(lasting, {"workload.num_requests": 5, "workload.trace": "/t.csv"}).workload
    assert workload.num_requests == 5
    with pytest.raises(ConfigError, match=r"num_requests \(5\) is given too"):
        resolve(lasting, {"workload.num_requests": 5, "workload.duration_s": 5})


def test_overrides_follow_one_another() -> None:
    """The last one wins, and None takes a key out."""
    scenario = resolve(SMALL, {"slo.e2el_s": 5, "slo.ttft_s": None})
    assert scenario.environment.slo.e2el_s == 5
    assert scenario.environment.slo.ttft_s is None
    assert SMALL["slo"] == {"ttft_s": 1.0, "tpot_s": 0.1}


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("a.b=1", "a.b", 1),
        ("a.b = 1.5", "a.b", 1.5),
        ("a=true", "a", True),
        ("a=[1, 2]", "a", [1, 2]),
        ("a=H100", "a", "H100"),
        ('a="1"', "a", "1"),
        ("a={ kind = 'gamma' }", "a", {"kind": "gamma"}),
        ("a=b=c", "a", "b=c"),
        ("a=", "a", None),
    ],
)
def test_override_values_are_toml_or_text(text: str, key: str, value: object) -> None:
    """So that a GPU's name needs no quotation marks and a number is a number."""
    assert parse_override(text) == (key, value)


def test_paths_start_at_the_scenario_file(tmp_path: Path) -> None:
    """A scenario and its trace can be moved together, and run from anywhere."""
    tables = {**SMALL, "workload": {"trace": "trace.csv"}}
    (tmp_path / "scenario.toml").write_text(to_toml(tables))
    scenario = load(tmp_path / "scenario.toml")
    assert scenario.document["workload"]["trace"] == str(tmp_path / "trace.csv")


ON_THE_COMMAND_LINE = [
    ("workload.trace=mine.csv", ["workload", "trace"]),
    ("workload.trace={path='mine.csv', end_s=9}", ["workload", "trace", "path"]),
    ("workload.arrivals={kind='trace', path='mine.csv'}", ["workload", "arrivals", "path"]),
    ("workload.lengths={kind='trace', path='mine.csv'}", ["workload", "lengths", "path"]),
    ("quality.path=mine.csv", ["quality", "path"]),
    ("engine.kernels=mine.csv", ["engine", "kernels"]),
    ("model.name=mine.json", ["model", "name"]),
    ("catalog=['mine.csv']", ["catalog", 0]),
]


@pytest.mark.parametrize(("text", "place"), ON_THE_COMMAND_LINE, ids=lambda x: str(x))
def test_paths_of_set_start_where_who_types_them_is(
    text: str, place: list[Any], tmp_path: Path
) -> None:
    """As the shell completes them; absolute paths, and what is no path, stay as they are."""
    key, value = parse_override(text)
    (tmp_path / "mine.json").write_text("{}")
    got: Any = with_paths_of(key, value, tmp_path)
    for step in place[len(key.split(".")) :]:
        got = got[step]
    assert got == str(tmp_path / ("mine.json" if "json" in text else "mine.csv"))
    again = parse_override(text.replace("mine", "/there/mine"))
    assert with_paths_of(*again, tmp_path) == again[1]


@pytest.mark.parametrize(
    "text",
    [
        "model.name=llama-3.1-8b",
        "engine.kernels=law",
        "engine.kernels=aiconfigurator",
        "slo.ttft_s=1",
        "workload.lengths=sharegpt-ecoserve",
        "cluster.gpu=H100",
        "catalog=",
    ],
)
def test_what_is_no_path_is_left_alone(text: str, tmp_path: Path) -> None:
    """Names of the catalogue, numbers, keys that are taken out."""
    key, value = parse_override(text)
    assert with_paths_of(key, value, tmp_path) == value


def test_every_key_that_takes_a_path_is_known_to_set() -> None:
    """Those whose description says so, on the page that is made of the schema."""
    page = (ROOT / "docs" / "scenario.md").read_text(encoding="utf-8")
    words = r"relative to the scenario file|from the scenario's folder|Clients file"
    keys = {
        line.split("`")[1]
        for line in page.splitlines()
        if line.startswith("| `") and re.search(words, line)
    }
    known = {str(place[-1]) for _, place in ON_THE_COMMAND_LINE} | {"catalog"}
    assert keys == known - {"0", "trace"}


def test_a_path_of_set_is_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scenario is in one folder, its trace where the command is typed."""
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios" / "one.toml").write_text(to_toml(SMALL))
    (tmp_path / "mine.csv").write_text((ROOT / "scenarios" / "first_trace.csv").read_text())
    monkeypatch.chdir(tmp_path)
    words = ["show", "scenarios/one.toml", "--set", "workload.trace=mine.csv"]
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    shown = tomllib.loads(result.stdout)
    assert shown["workload"]["trace"] == str(tmp_path / "mine.csv")


def test_a_catalogue_of_ones_own(tmp_path: Path) -> None:
    """A GPU that the package does not know, taken from one that it does."""
    (tmp_path / "mine.toml").write_text(
        '[[gpu]]\nname = "L20-96GB"\nlike = "L20"\nmemory_gb = 96\nsource = "made up"\n'
    )
    tables = {**SMALL, "catalog": ["mine.toml"], "cluster": {"gpu": "L20-96GB"}}
    scenario = resolve(tables, folder=tmp_path)
    assert scenario.environment.cluster.gpu.memory_bytes == 96e9
    assert again(dict(scenario.document)) == scenario


OWN: dict[str, tuple[str, dict[str, Any]]] = {
    "gpu": ("A100-80GB SXM", {"aliases": ["A100"], "memory_gb": 60}),
    "kernels": ("ampere-ga100", {"mfu_gemm": 0.125}),
    "price": ("", {"gpu": "A100", "per_gpu_hour": 0.125}),
    "link": ("nvlink3", {"efficiency": 0.125}),
    "model": ("llama-2-7b", {"num_layers": 16}),
    "engine": ("vllm-0.7", {"block_size": 48}),
    "lengths": ("sharegpt-etalon", {"prompt_mean": 7.0}),
    "quality": ("gsm8k-routellm", {"both_correct": 1}),
}
"""An entry of each table that `NAMING` uses: its name, and a number of one's own for it."""

NAMING: dict[str, Any] = {
    **SMALL,
    "engine": {"profile": "vllm-0.7"},
    "workload": {"lengths": "sharegpt-etalon"},
    "quality": {"kind": "measured", "benchmark": "gsm8k-routellm"},
}


def own_file(path: Path, table: str, **changes: object) -> str:
    """Write a catalogue file with one's own entry of `table` and return its path."""
    name, row = OWN[table]
    terms = {"currency": "USD", "tier": "on-demand", "provider": "us", "date": "2026-10"}
    named = {"name": name, "like": name} if name else terms
    path.write_text(to_toml({table: [{**named, "source": "us", **row, **changes}]}))
    return str(path)


@pytest.mark.parametrize("table", OWN)
def test_a_scenario_sees_the_packaged_entries_and_its_own_files_alone(
    table: str, tmp_path: Path
) -> None:
    """One that was read before, in the same process, with files of its own, leaves no trace."""
    packaged = resolve(NAMING)
    key, value = list(OWN[table][1].items())[-1]
    half = {key: value // 2 if isinstance(value, int) else value / 2}
    mine = {**NAMING, "catalog": [own_file(tmp_path / "mine.toml", table)]}
    other = {**NAMING, "catalog": [own_file(tmp_path / "other.toml", table, **half)]}
    first, second = resolve(mine), resolve(other)
    assert resolve(NAMING) == packaged
    seen = {str((s.environment, s.workload, s.quality)) for s in (packaged, first, second)}
    assert len(seen) == 3
    assert resolve(mine) == first
    assert resolve(other) == second
    assert resolve(NAMING).environment == packaged.environment


def test_a_later_file_of_a_scenario_wins_and_can_build_on_an_earlier_one(tmp_path: Path) -> None:
    """In the order of the list; what an entry is like may stand in the file before."""
    own_file(tmp_path / "first.toml", "link", name="ours")
    (tmp_path / "then.toml").write_text(
        '[[gpu]]\nname = "mine"\nlike = "A100"\nfabric = "slow"\nsource = "us"\n'
        '[[link]]\nname = "slow"\nlike = "ours"\nlatency_us = 99\nsource = "us"\n'
    )
    tables = {**SMALL, "catalog": ["first.toml", "then.toml"], "cluster": {"gpu": "mine"}}
    fabric = resolve(tables, folder=tmp_path).environment.cluster.fabric
    assert (fabric.efficiency, fabric.latency_s) == (0.125, 99e-6)
    own_file(tmp_path / "last.toml", "link", name="SLOW", efficiency=0.5)
    tables["catalog"] = ["first.toml", "then.toml", "last.toml"]
    assert resolve(tables, folder=tmp_path).environment.cluster.fabric.efficiency == 0.5
    with pytest.raises(ConfigError, match=r"then\.toml: link\[0\]\.like = 'ours'"):
        resolve({**tables, "catalog": ["then.toml", "first.toml"]}, folder=tmp_path)


def test_a_currency_needs_a_price() -> None:
    """The catalogue's dollars are not taken for euros."""
    with pytest.raises(ConfigError, match=r"cluster\.currency = 'EUR'"):
        resolve(SMALL, {"cluster.currency": "EUR"})
    cluster = {**SMALL["cluster"], "currency": "EUR", "price_per_gpu_hour": 1.5}
    assert resolve({**SMALL, "cluster": cluster}).environment.cluster.currency == "EUR"


def test_links_are_of_their_kind() -> None:
    """A network does not join the GPUs of a node."""
    with pytest.raises(ConfigError, match="is a link between nodes, not inside a node"):
        resolve(SMALL, {"cluster.fabric": "10gbe"})


def test_the_schema_knows_every_extension() -> None:
    """Strategies, arrivals and lengths that are registered can be written in a file."""
    schema = json_schema()
    kinds = {
        table["properties"]["kind"].get("const")
        for table in schema["$defs"].values()
        if "kind" in table["properties"]
    }
    assert set(STRATEGIES) | set(ARRIVALS) | set(LENGTHS) <= kinds


def test_every_key_says_what_it_means() -> None:
    """Unit, rule and default stand in one place, so each key must state them there."""
    tables = [*json_schema()["$defs"].values(), json_schema()]
    silent = [
        f"{table.get('title')}.{name}"
        for table in tables
        for name, key in table["properties"].items()
        if name != "kind" and not key.get("description")
    ]
    assert not silent


def test_the_documented_keys_are_the_keys() -> None:
    """``docs/scenario.md`` holds the tables that ``simcluster schema --markdown`` prints."""
    documented = (ROOT / "docs" / "scenario.md").read_text(encoding="utf-8")
    assert markdown_keys() in documented, "paste it under the heading All keys"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_validator_of_the_files_own_kinds_reads_it_as_that_of_all_kinds(file: Path) -> None:
    """It is made in half the time; what it accepts is the same settings."""
    tables = load(file).document
    small = scenario_file._validated(tables)
    whole = validated(scenario_file.adapter(), tables)
    for key in (field.name for field in dataclasses.fields(whole)):
        assert getattr(small, key) == getattr(whole, key)


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": [{"name": "a"}]},
        {"strategy": [{"name": "a", "kind": "nodg"}, {"name": "b"}]},
        {"strategy": [{"name": "a", "kind": "noddg"}]},
        {"strategy": [{"name": "a", "kind": "nodg", "max_decode_batch": 1}]},
        {"strategy": [{"name": "a", "kind": "nodg", "tp_size": "four"}]},
        {"workload.lengths": {"kind": "fixd", "prompt_len": 1, "output_len": 2}},
        {"workload.lengths": {"kind": "fixed", "prompt_len": 0, "output_len": 2}},
        {"workload.arrivals": {"kind": "fixed", "prompt_len": 1, "output_len": 2}},
        {"workload.arrivals": {"kind": 7}},
        {"workload.arrivals": 7},
        {"quality": {"kind": "none"}},
        {"rank": {"gpus": "many"}},
        {"slo.ttft_s": -1},
        {"unknown": {"kind": "nodg"}},
    ],
    ids=repr,
)
def test_a_wrong_file_is_refused_in_the_words_of_the_whole_validator(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a validator of the file's own kinds does not know what else could be meant."""
    with pytest.raises(ConfigError) as quick:
        resolve(SMALL, changes)
    monkeypatch.setattr(
        scenario_file, "_validated", lambda tables: validated(scenario_file.adapter(), tables)
    )
    with pytest.raises(ConfigError) as whole:
        resolve(SMALL, changes)
    assert str(quick.value) == str(whole.value)


@pytest.mark.parametrize(("key", "value"), [("prefill_wait_steps", 3), ("prefill_interval", 2)])
def test_delays_of_prefill_are_refused_where_the_scheduler_knows_none(key: str, value: int) -> None:
    """A key without effect would be silently ignored."""
    settings = {f"engine.{key}": value, "engine.scheduler": "prefill-priority"}
    scenario = resolve(SMALL, settings)
    with pytest.raises(ConfigError, match=rf"engine\.{key}.*prefill-priority.*chunked"):
        dry_run(scenario.environment, NoDG(name="plain", tp_size=1))
