"""Result folders of every kind, made once: short runs of small scenarios."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.scenarios import ranked_scenario, small_scenario
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import main

HOSTILE = "<img src=x onerror=alert(1)></script><b>%{x}</b> $x^2$ & co"
"""Name of a strategy that would be markup, a script's end, a template and a formula."""
CLUSTER = {"price_per_gpu_hour": 2.0}
STRATEGIES = (
    {"name": "vLLM", "kind": "nodg"},
    {"name": "DistServe", "kind": "fudg"},
    {"name": HOSTILE, "kind": "padg"},
)
KINDS = ("run", "compare", "goodput", "rank", "need", "cooptimize")


def command(*arguments: object) -> None:
    """Call the command line and expect it to end well, or with what is not settled."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code in (0, 3), result.output


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a result folder by kind; made by one process for all that run these tests."""
    own = tmp_path_factory.getbasetemp()
    place = (own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own) / "results"
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "done").exists():
            make(place)
            (place / "done").touch()
    return {kind: place / kind for kind in KINDS}


def make(place: Path) -> None:
    """Run every kind of command into a folder of its own in `place`."""
    compared = small_scenario(
        *STRATEGIES,
        cluster=CLUSTER,
        workload={"num_requests": 60},
        sweep={"rates_rps": [2, 12, 30]},
        run={"seeds": [0, 1]},
    )
    ranked = ranked_scenario()
    ranked.pop("strategy")
    ranked["rank"] = {
        "num_gpus": [2],
        "strategies": ["nodg", "chunked"],
        "tp_sizes": [1],
        "chunk_sizes": [512],
        "finalists": 1,
        "tolerance": 0.3,
    }
    mixed = {
        **small_scenario(
            engine={"profile": "vllm-0.19", "max_model_len": 4096},
            model={"name": "llama-3.1-8b"},
            cluster={"gpu": "RTX 5090", "nodes": 1, "gpus_per_node": 2, **CLUSTER},
            workload={"rate_rps": 4, "duration_s": 4},
            slo={"e2el_s": 30, "ttft_s": 5, "tpot_s": 0.5},
        ),
        "cooptimize": {
            "models": ["llama-3.1-8b"],
            "budget_per_hour": 10.0,
            "loads": [0.5, 1.1],
            "tp_sizes": [1],
            "seeds": [0],
        },
    }
    mixed.pop("strategy")
    for name, tables in (("compared", compared), ("ranked", ranked), ("mixed", mixed)):
        (place / f"{name}.toml").write_text(to_toml(tables), encoding="utf-8")
    file = place / "compared.toml"
    command("run", file, "--strategy", HOSTILE, "--rate", 12, "--seed", 1, "-o", place / "run")
    command("compare", file, "--jobs", 1, "-o", place / "compare")
    fast = ["--tolerance", 0.3, "--max-requests", 1000, "--no-step-time-errors", "--jobs", 1]
    command("goodput", file, *fast, "-o", place / "goodput")
    command("rank", place / "ranked.toml", "--jobs", 1, "-o", place / "rank")
    plain = ["--set", "rank.strategies=['chunked']", "--need", 20]
    command("rank", place / "ranked.toml", *plain, "--jobs", 1, "-o", place / "need")
    options = ["--cache", place / "cache", "--jobs", 1, "--no-baselines"]
    command("cooptimize", place / "mixed.toml", *options, "--results", place / "cooptimize")
