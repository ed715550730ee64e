"""What others register: by assignment in a script, by entry points of an installed package."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import simcluster
from simcluster import registry
from simcluster.config import Environment
from simcluster.errors import ConfigError, DataError
from simcluster.registry import Registry
from simcluster.roofline import STEP_TIMES, RooflineSource, StepTime
from simcluster.roofline.of_environment import roofline_step_time
from simcluster.runs import cell
from simcluster.runs.simulate import run
from simcluster.scenario.file import json_schema
from simcluster.show.text import heading
from simcluster.strategies import FuDG, NoDG
from simcluster.testing.specs import pcie4
from simcluster.testing.step_times import ConstantStepTime
from simcluster.testing.toy import assert_same, toy_environment, toy_workload
from simcluster.units import FloatArray
from simcluster.workload import ARRIVALS, LENGTHS
from simcluster.workload.base import EndlessArrivals
from simcluster.workload.lengths import FixedLengths

ROOT = Path(simcluster.__file__).parents[1]

SCENARIO: dict[str, Any] = {
    "model": {"name": "llama-2-7b"},
    "cluster": {"gpu": "A100-80GB", "gpus_per_node": 2},
    "engine": {"max_model_len": 512},
    "workload": {
        "arrivals": "poisson",
        "lengths": {"kind": "fixed", "prompt_len": 200, "output_len": 20},
        "num_requests": 12,
    },
    "sweep": {"rates_rps": [4.0, 8.0]},
    "slo": {"ttft_s": 1.0, "tpot_s": 0.1},
    "strategy": [{"name": "one", "kind": "nodg", "instances": 2}],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs(EndlessArrivals):
    """Two requests at a time."""

    kind: Literal["pairs"] = "pairs"

    def times(self, num_requests: int, rate_rps: float, seed: int) -> FloatArray:
        """Every second multiple of the gap."""
        return (np.arange(num_requests) // 2 + 1) * 2 / rate_rps


@dataclass(frozen=True, slots=True, kw_only=True)
class Short(FixedLengths):
    """Fixed lengths under another name."""

    kind: Literal["short"] = "short"  # type: ignore[assignment]  # a kind of its own


@pytest.fixture
def registered() -> Iterator[None]:
    """Register an arrival process and a length distribution for the time of a test."""
    ARRIVALS["pairs"], LENGTHS["short"] = Pairs, Short
    yield
    del ARRIVALS["pairs"], LENGTHS["short"]


def with_workload(**changes: Any) -> dict[str, Any]:
    """Return the scenario with keys of its workload changed."""
    return {**SCENARIO, "workload": {**SCENARIO["workload"], **changes}}


def kinds() -> set[Any]:
    """Return every kind that the schema of scenario files knows."""
    tables = json_schema()["$defs"].values()
    return {t["properties"]["kind"].get("const") for t in tables if "kind" in t["properties"]}


@pytest.mark.usefixtures("registered")
def test_arrivals_and_lengths_registered_after_import_can_be_written_in_a_file() -> None:
    """By name or as a table; they stand in the schema, and the document gives them back."""
    lengths = {"kind": "short", "prompt_len": 100, "output_len": 2}
    for arrivals in ("pairs", {"kind": "pairs"}):
        scenario = simcluster.resolve(with_workload(arrivals=arrivals, lengths=lengths))
        assert scenario.workload.arrival_process == Pairs()
        assert scenario.workload.length_distribution == Short(prompt_len=100, output_len=2)
        assert simcluster.resolve(scenario.document).workload == scenario.workload
        requests = simcluster.simulate(scenario, rate_rps=4.0).columns["requests"]
        assert requests["arrival_s"].tolist() == [0.5 * (k // 2 + 1) for k in range(12)]
        assert set(requests["prompt_len"]) == {100}
    assert {"pairs", "short"} <= kinds()


def test_what_is_registered_no_more_is_refused() -> None:
    """One line with the nearest names, and the schema knows it no more."""
    with pytest.raises(ConfigError, match=r"workload\.arrivals\.kind = 'pairs': no such kind"):
        simcluster.resolve(with_workload(arrivals={"kind": "pairs"}))
    assert not {"pairs", "short"} & kinds()


def twice(environment: Environment, tp_size: int) -> StepTime:
    """Step times of a GPU as they are, of another name."""
    return roofline_step_time(environment, tp_size)


@pytest.fixture
def twice_registered() -> Iterator[None]:
    """Register a source of step times for the time of a test."""
    STEP_TIMES["twice"] = twice
    yield
    del STEP_TIMES["twice"]


@pytest.mark.usefixtures("twice_registered")
def test_the_scenario_names_the_source_of_step_times() -> None:
    """What makes the same step times gives the same frames, and the name is in the document."""
    scenario = simcluster.resolve({**SCENARIO, "engine": {"step_times": "twice"}})
    assert scenario.environment.step_times == "twice"
    assert scenario.document["engine"]["step_times"] == "twice"
    own = simcluster.simulate(simcluster.resolve({**SCENARIO, "engine": {}}))
    assert_same(simcluster.simulate(scenario), own)
    assert "Step times of A100-80GB SXM: unknown (they come from 'twice')" in heading(scenario)
    with pytest.raises(ConfigError, match=r"engine\.step_times = 'twise'.*Did you mean 'twice'\?"):
        simcluster.resolve({**SCENARIO, "engine": {"step_times": "twise"}})


def test_the_source_that_a_run_is_given_goes_before_that_of_the_scenario() -> None:
    """Every step takes a second: 100 prompt tokens and five answers are done after five."""
    where, load = toy_environment(), toy_workload([(0.0, 100, 5)])
    result = run(where, NoDG(name="s"), load, step_time=lambda *_: ConstantStepTime(1.0))
    assert result.columns["requests"]["last_token_s"].tolist() == [5.0]


@pytest.mark.usefixtures("twice_registered")
def test_a_plain_function_knows_no_pipelines_and_no_shared_wires() -> None:
    """Both are refused in one line instead of taken from the roofline."""
    where, load = toy_environment(), toy_workload([(0.0, 100, 5)])
    with pytest.raises(ConfigError, match=r"strategy\.s\.pp_size = 2: the source of step times"):
        run(where, NoDG(name="s", pp_size=2), load, step_time=twice)
    machines = replace(where.cluster, fabric=pcie4(), pcie=pcie4())
    on_pcie = replace(where, cluster=machines, step_times="twice")
    fudg = FuDG(name="s", tp_size=2, prefill_instances=1, decode_instances=1)
    with pytest.raises(ConfigError, match=r"engine\.step_times: KV transfers and collectives"):
        run(on_pcie, fudg, load)
    alone = FuDG(name="s", tp_size=1, prefill_instances=1, decode_instances=1)
    assert_same(run(on_pcie, alone, load), run(on_pcie, alone, load, step_time=RooflineSource()))


PLUGIN = '''
"""A plug-in of every kind."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from simcluster.roofline.of_environment import roofline_step_time
from simcluster.routing import RoundRobin
from simcluster.sched import FirstCome, PrefillPriority
from simcluster.strategies import NoDG
from simcluster.workload.base import EndlessArrivals
from simcluster.workload.lengths import FixedLengths


class Scheduler(PrefillPriority):
    pass


class Queue(FirstCome):
    pass


class Router(RoundRobin):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy(NoDG):
    kind: Literal["own"] = "own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrivals(EndlessArrivals):
    kind: Literal["own"] = "own"

    def times(self, num_requests, rate_rps, seed):
        return np.arange(1, num_requests + 1) / rate_rps


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths(FixedLengths):
    kind: Literal["own"] = "own"


def step_times(environment, tp_size):
    return roofline_step_time(environment, tp_size)
'''
GROUPS = {
    "schedulers": ("simcluster.sched", "SCHEDULERS", "Scheduler"),
    "queues": ("simcluster.sched", "QUEUES", "Queue"),
    "routers": ("simcluster.routing", "ROUTERS", "Router"),
    "strategies": ("simcluster.strategies", "STRATEGIES", "Strategy"),
    "arrivals": ("simcluster.workload", "ARRIVALS", "Arrivals"),
    "lengths": ("simcluster.workload", "LENGTHS", "Lengths"),
    "step_times": ("simcluster.roofline", "STEP_TIMES", "step_times"),
}
OWN: dict[str, Any] = {
    **SCENARIO,
    "engine": {"max_model_len": 512, "step_times": "own"},
    "workload": {
        "arrivals": "own",
        "lengths": {"kind": "own", "prompt_len": 200, "output_len": 20},
        "num_requests": 12,
    },
    "strategy": [
        {
            "name": "one",
            "kind": "own",
            "instances": 2,
            "scheduler": "own",
            "queue": "own",
            "router": "own",
        }
    ],
}
COMPARE = """
if __name__ == "__main__":
    import json, sys
    import simcluster
    scenario = simcluster.resolve(json.loads(sys.argv[1]))
    sweep = simcluster.compare(scenario, jobs=2).sweep
    print(json.dumps(sweep[["rate_rps", "num_finished"]].to_dict("list")))
"""


def registrations() -> str:
    """Return a script's lines that register the plug-in under the name of ``own``."""
    lines = [f"from {module} import {name}" for module, name, _ in GROUPS.values()]
    return "\n".join([*lines, *(f'{name}["own"] = {c}' for _, name, c in GROUPS.values()), ""])


def install(folder: Path) -> None:
    """Write the plug-in into `folder` as pip would install it."""
    (folder / "plugged.py").write_text(PLUGIN)
    about = folder / "plugged-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        "".join(f"[simcluster.{g}]\nown = plugged:{c}\n" for g, (_, _, c) in GROUPS.items())
    )


@pytest.mark.parametrize("how", ["script", "package"])
def test_plug_ins_of_every_kind_run_in_worker_processes(tmp_path: Path, how: str) -> None:
    """Two rates on two processes, all parts of the run registered by another than us."""
    script = tmp_path / "script.py"
    if how == "script":
        script.write_text(PLUGIN + registrations() + COMPARE)
    else:
        install(tmp_path)
        script.write_text(textwrap.dedent(COMPARE))
    found = subprocess.run(
        [sys.executable, str(script), json.dumps(OWN)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == {"rate_rps": [4.0, 8.0], "num_finished": [12, 12]}


def test_the_group_of_a_registry_is_that_of_its_entry_points() -> None:
    """Or the two tests above would try less than all of them."""
    assert {f"simcluster.{group}" for group in GROUPS} == set(registry.groups())


def test_a_package_that_cannot_be_imported_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which package it is, and what its import raises."""
    install(tmp_path)
    (tmp_path / "plugged.py").write_text("raise KeyError('mine')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    schedulers: Registry[Any] = Registry("simcluster.schedulers", {})
    assert list(schedulers) == ["own"]
    with pytest.raises(DataError, match=r"'own' of the installed package plugged cannot be loaded"):
        schedulers["own"]


@pytest.mark.usefixtures("registered")
def test_recorded_runs_count_the_code_of_plug_ins_as_their_maker() -> None:
    """After a change of a plug-in its runs are made again, those of others are not."""
    plain = simcluster.resolve(SCENARIO)
    assert cell.made_by(plain, "one") == cell.program()
    own = simcluster.resolve(with_workload(arrivals="pairs"))
    maker = cell.made_by(own, "one")
    assert maker != cell.program()
    assert maker.startswith(cell.program())
