"""Tables that nothing uses, and values that look like a slip: refused, or said in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import simcluster
from helpers.refusals import refused
from helpers.scenarios import small_scenario
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import main
from simcluster.scenario.remarks import remarks
from simcluster.strategies.base import dry_run

MIXED = {"name": "mixed", "kind": "nodg"}
SPLIT = {"name": "split", "kind": "fudg"}
ROUTED = {
    "name": "routed",
    "kind": "routed",
    "models": ["llama-2-7b"],
    "fractions": [1.0],
    "pool": [{"model": "llama-2-7b", "gpu": "H100", "serving": {**MIXED, "name": "a"}}],
}
WORKLOAD = {
    "lengths": {"kind": "fixed", "prompt_len": 300, "output_len": 20},
    "rate_rps": 2,
    "num_requests": 5,
}
TABLES: dict[str, Any] = {
    "workload": WORKLOAD,
    "extra_cluster": [{"gpu": "H100", "gpus_per_node": 1}],
}


def written(folder: Path, *strategies: dict[str, Any], **more: Any) -> Path:
    """A scenario file with further tables."""
    path = folder / "scenario.toml"
    path.write_text(to_toml({**small_scenario(*strategies), **more}))
    return path


@pytest.mark.parametrize("strategies", [[MIXED], [SPLIT], [MIXED, SPLIT]])
def test_machines_that_no_strategy_can_use_are_refused(
    tmp_path: Path, strategies: list[dict[str, Any]]
) -> None:
    """Prefill on one type of GPU and decode on another is asked for, and is not there."""
    with refused("H100", "is not used", "different types", "[cluster] has A100", "Remove it"):
        simcluster.load(written(tmp_path, *strategies, **TABLES))
    with refused("serves one model", key="extra_model[0]"):
        extra = [{"name": "llama-3.1-8b"}]
        simcluster.load(written(tmp_path, *strategies, workload=WORKLOAD, extra_model=extra))


def test_machines_of_some_strategies_are_said_for_the_others(tmp_path: Path) -> None:
    """In the heading of a table and among the notes of its JSON."""
    path = written(tmp_path, ROUTED, MIXED, **TABLES)
    arguments = ["run", str(path), "--strategy", "mixed"]
    line = "mixed: on A100-80GB SXM alone; H100 SXM of extra_cluster not used"
    text = CliRunner().invoke(main, arguments, catch_exceptions=False).stdout
    assert f"Note:     {line}" in text
    found = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False).stdout
    assert line in json.loads(found)["notes"]


def test_further_machines_change_nothing_for_a_strategy_that_cannot_use_them() -> None:
    """The engine has other limits on large GPUs; which they are depends on [cluster] alone."""
    engine = {"profile": "vllm-0.19", "max_model_len": 4096}
    cluster = {"gpu": "H100", "gpus_per_node": 1}
    # A prompt that fits into one step of a large GPU and not of a small one.
    lengths = {"kind": "fixed", "prompt_len": 3000, "output_len": 20}
    workload = {**WORKLOAD, "lengths": lengths}
    tables = small_scenario(MIXED, cluster=cluster, engine=engine, workload=workload)
    alone = simcluster.resolve(tables)
    beside = simcluster.resolve({**tables, "extra_cluster": [{"gpu": "RTX 4090"}]})
    blocks = [
        dry_run(one.environment, one.strategies[0]).instances[0].free_blocks
        for one in (alone, beside)
    ]
    assert blocks[0] == blocks[1]
    one, other = (simcluster.simulate(scenario).requests for scenario in (alone, beside))
    assert one.equals(other)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("slo.ttft_s", 1000, "write 1"),
        ("slo.tpot_s", 50, "write 0.05"),
        ("slo.itl_s", 100, "write 0.1"),
        ("slo.e2el_s", 30000, "write 30"),
        ("slo.ttft_s", 60, None),
        ("slo.tpot_s", 1, None),
    ],
)
def test_milliseconds_that_are_taken_for_seconds(key: str, value: float, said: str | None) -> None:
    """Targets that no request can miss; long ones that people mean pass."""
    scenario = simcluster.resolve(small_scenario(MIXED), {key: value})
    found = [line for line in remarks(scenario) if key in line]
    assert bool(found) == (said is not None)
    if said is not None:
        assert "is in seconds" in found[0]
        assert found[0].endswith(said)


def test_a_quality_that_no_strategy_routes_by_is_said() -> None:
    """It is drawn, and nobody asks for it."""
    quality = {"kind": "measured", "benchmark": "gsm8k"}
    scenario = simcluster.resolve(small_scenario(MIXED, quality=quality))
    assert any("[quality] is not used" in line for line in remarks(scenario))


def test_times_of_api_servers_that_are_not_there_are_said() -> None:
    """The profile's own are nobody's wish, and pass; so do those of servers that are there."""

    def said(**engine: object) -> list[str]:
        changes = {f"engine.{key}": value for key, value in engine.items()}
        scenario = simcluster.resolve(small_scenario(MIXED), changes)
        again = simcluster.resolve(scenario.document)  # of a result folder
        assert remarks(again) == remarks(scenario)
        return [line for line in remarks(scenario) if "api_" in line]

    assert said(api_request_s=0.009) == [
        "engine.api_request_s = 0.009 is not used: engine.api_servers = 0, which limits nothing"
    ]
    assert not said(profile="vllm-0.11")
    assert not said(api_servers=2, api_request_s=0.009)


@pytest.mark.parametrize("key", ["prefill_interval", "prefill_wait_steps"])
def test_waits_beside_decodes_that_are_not_there_are_said(key: str) -> None:
    """They change nothing of a FuDG run, and are said; of chunked prefill they are of use."""
    workload = {"num_requests": 40, "rate_rps": 8}
    chunked = {"profile": "vllm-0.19", "max_model_len": 4096}
    split = small_scenario({"name": "split", "kind": "fudg"}, workload=workload, engine=chunked)
    plain, waits = (simcluster.resolve(split, {f"engine.{key}": n}) for n in (1, 40))
    if key == "prefill_wait_steps":
        plain = simcluster.resolve(split)
    assert simcluster.simulate(plain).requests.equals(simcluster.simulate(waits).requests)
    assert any(f"split: engine.{key} = 40 has no effect" in line for line in remarks(waits))
    assert not any(key in line for line in remarks(plain))
    mixed = small_scenario({"name": "one", "kind": "nodg", "scheduler": "chunked"})
    assert not any(key in line for line in remarks(simcluster.resolve(mixed, {f"engine.{key}": 4})))
