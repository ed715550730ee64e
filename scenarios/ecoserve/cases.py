"""What EcoServe's evaluation runs on what, and a search for goodputs that can be resumed.

Set-up: EcoServe (arXiv 2504.18154), section 4.1 and table 4. One set of constants per GPU and
engine: those of the catalogue.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import simcluster
from simcluster.metrics import in_window, met_targets, request_metrics
from simcluster.scenario_file import resolve
from simcluster.simulate import simulate

CLUSTERS: dict[str, dict[str, Any]] = {
    # Eight nodes with one instance each, "to mitigate MoonCake's bandwidth limits".
    "L20": {"node": "l20-pcie-8", "nodes": 8},
    "A800": {"node": "a800-pcie-8", "nodes": 2},
}
MODELS = ("llama-30b", "codellama-34b", "qwen2-72b")
TP_SIZE = {
    ("llama-30b", "L20"): 4,
    ("llama-30b", "A800"): 2,
    ("codellama-34b", "L20"): 4,
    ("codellama-34b", "A800"): 2,
    ("qwen2-72b", "L20"): 8,
    ("qwen2-72b", "A800"): 4,
}
TTFT_S = {"alpaca-ecoserve": 1.0, "sharegpt-ecoserve": 5.0, "longbench-ecoserve": 15.0}
TPOT_S = 0.1
LEVELS = (0.9, 0.5, 0.99)
"""Attainments at which the paper reports goodputs; options are chosen at the first."""

GRID = 1.06
"""Ratio of neighbouring rates of the search."""

LEAST = 0.2
"""Goodputs below this (requests/s) are given as 0."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """Model, machines, requests and targets.

    Attributes
    ----------
    model, gpu, dataset : str
        Names of the catalogue; the GPU a key of ``CLUSTERS``.
    ttft_s, tpot_s : float or None
        Targets (s); by default those of the data set.
    changes : mapping
        More keys of the scenario file, dotted.
    num_gpus : int
        GPUs that every system has.
    """

    model: str = "codellama-34b"
    gpu: str = "A800"
    dataset: str = "sharegpt-ecoserve"
    ttft_s: float | None = None
    tpot_s: float = TPOT_S
    changes: Mapping[str, Any] = field(default_factory=dict)
    num_gpus: int | None = None

    @property
    def tp_size(self) -> int:
        """GPUs of an instance."""
        return TP_SIZE[self.model, self.gpu]

    @property
    def num_instances(self) -> int:
        """Instances that every system has: 32 L20 or 16 A800."""
        gpus = self.num_gpus or {"L20": 32, "A800": 16}[self.gpu]
        return gpus // self.tp_size

    def scenario(self, systems: Sequence[Mapping[str, Any]], duration_s: float) -> Any:
        """Return the scenario with `systems`, each run lasting `duration_s` (s)."""
        document = {
            "model": {"name": self.model},
            "cluster": dict(CLUSTERS[self.gpu]),
            "workload": {
                "lengths": self.dataset,
                "duration_s": duration_s,
                # Llama-30B has a context of 2048 tokens; the paper truncates LongBench for it.
                "on_too_long": "truncate",
            },
            "slo": {
                "ttft_s": self.ttft_s or TTFT_S[self.dataset],
                "tpot_s": self.tpot_s,
                "metric": "ecoserve",
            },
            "run": {"warmup_s": min(20.0, duration_s / 10)},
            "sweep": {"rates_rps": [1.0]},
            "strategy": [dict(system) for system in systems],
        }
        return resolve(document, dict(self.changes))


def system(case: Case, name: str, **settings: Any) -> dict[str, Any]:
    """Return a table ``[[strategy]]`` on the GPUs of `case`."""
    table: dict[str, Any] = {"name": name, "tp_size": case.tp_size, **settings}
    if table["kind"] != "fudg":
        table.setdefault("instances", case.num_instances)
    if case.gpu == "L20":
        table.setdefault("instances_per_node", 2 if name.startswith("DistServe") else 1)
    return table


def vllm(case: Case, **settings: Any) -> list[dict[str, Any]]:
    """VLLM behind a router that knows the load."""
    return [system(case, "vLLM", kind="nodg", **settings)]


def sarathi(case: Case, **settings: Any) -> list[dict[str, Any]]:
    """Sarathi-Serve with each of its chunk sizes; the paper states none."""
    return [
        system(
            case, f"Sarathi {size}", kind="nodg", scheduler="chunked", chunk_size=size, **settings
        )
        for size in (512, 1024, 2048)
    ]


def distserve(case: Case) -> list[dict[str, Any]]:
    """DistServe, prefill and decode instances on every node, at several ratios."""
    count, on_node = case.num_instances, 8 // case.tp_size
    if on_node < 2:
        return []  # Qwen2-72B with TP 8: both roles do not fit on a node; left out in the paper too
    nodes = count // on_node
    return [
        system(
            case,
            f"DistServe {prefill}:{on_node - prefill}",
            kind="fudg",
            placement="intra-node",
            prefill_instances=nodes * prefill,
            decode_instances=nodes * (on_node - prefill),
        )
        for prefill in range(1, on_node)
    ]


def mooncake(case: Case) -> list[dict[str, Any]]:
    """MoonCake, through the pool on the hosts, at several ratios."""
    count = case.num_instances
    return [
        system(
            case,
            f"MoonCake {prefill}:{count - prefill}",
            kind="fudg",
            placement="inter-node",
            prefill_instances=prefill,
            decode_instances=count - prefill,
        )
        for prefill in sorted({max(1, count // 4), max(1, 3 * count // 8), count // 2})
    ]


def ecoserve(case: Case, **settings: Any) -> list[dict[str, Any]]:
    """EcoServe as its authors released it."""
    return [system(case, "EcoServe", kind="padg", **{"variant": "code", **settings})]


def ecoserve_paper(case: Case) -> list[dict[str, Any]]:
    """EcoServe by Algorithm 1 of the paper."""
    return [system(case, "EcoServe (paper)", kind="padg", variant="paper")]


SYSTEMS: dict[str, Callable[[Case], list[dict[str, Any]]]] = {
    "EcoServe": ecoserve,
    "EcoServe (paper)": ecoserve_paper,
    "vLLM": vllm,
    "Sarathi": sarathi,
    "DistServe": distserve,
    "MoonCake": mooncake,
}


class Runs:
    """Runs of one case and system, each kept in a file of its own as soon as it has ended.

    Parameters
    ----------
    case : Case
        What is served.
    table : mapping
        The system's table.
    folder : Path
        Where the runs are kept.
    duration_s : float
        Length of a run (s).
    """

    def __init__(
        self, case: Case, table: Mapping[str, Any], folder: Path, duration_s: float
    ) -> None:
        self._scenario = case.scenario([table], duration_s)
        document = json.dumps(self._scenario.document, sort_keys=True)
        digest = hashlib.sha256(f"{simcluster.__version__} {document}".encode()).hexdigest()
        self._path = folder / f"{digest[:20]}.json"
        self._known: dict[str, dict[str, float]] = {}
        if self._path.exists():
            self._known = json.loads(self._path.read_text(encoding="utf-8"))

    def at(self, rate_rps: float, seed: int) -> dict[str, float]:
        """Return attainments and the median TTFT of users at one rate."""
        key = f"{rate_rps:.6g} {seed}"
        if key not in self._known:
            self._known[key] = self._run(float(f"{rate_rps:.6g}"), seed)
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps(self._known), encoding="utf-8")
            partial.replace(self._path)
        return self._known[key]

    def _run(self, rate_rps: float, seed: int) -> dict[str, float]:
        scenario = self._scenario
        result = simulate(scenario, rate_rps=rate_rps, seed=seed)
        columns = in_window(result.columns["requests"], scenario.run)
        if not len(columns["status"]):
            return {"ecoserve": 1.0, "user": 1.0, "user_ttft_s": 0.0, "preemptions": 0.0}
        slo = scenario.environment.slo
        finished = columns["status"] == "finished"
        shares = {
            metric: float(
                met_targets(columns, dataclasses.replace(slo, metric=metric))["joint"].mean()
            )
            for metric in ("ecoserve", "user")
        }
        ttft_s = np.where(finished, request_metrics(columns)["ttft_s"], np.inf)
        return {
            **shares,
            "user_ttft_s": min(float(np.median(ttft_s)), 1e6),
            "preemptions": float(columns["num_preemptions"].sum()),
        }

    def goodput(self, seed: int, level: float, metric: str, start_rps: float) -> float:
        """Return the highest rate whose attainment reaches `level` (requests/s); 0 below `LEAST`.

        The paper's goodput is "the largest request rate" with such an attainment. Rates are powers
        of ``GRID``: from the one next to `start_rps` in doubling steps until the level is
        bracketed, then halved, and at last linear between neighbours. A rate above is taken to be
        worse; the search comes from above, so that a level that is missed again at low rates does
        not matter.
        """
        share: dict[int, float] = {}

        def reaches(k: int) -> bool:
            share[k] = self.at(GRID**k, seed)[metric]
            return share[k] >= level

        low = high = round(math.log(start_rps) / math.log(GRID))
        step = 1
        if reaches(low):
            while reaches(high := low + step):
                low, step = high, 2 * step
        else:
            while not reaches(low := high - step):
                high, step = low, 2 * step
                if GRID**low < LEAST:
                    return 0.0
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if reaches(middle) else (low, middle)
        part = (share[low] - level) / (share[low] - share[high])
        return float(GRID**low + part * (GRID**high - GRID**low))


#: Two-sided 95 % quantile of Student's t by degrees of freedom.
T95 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365}


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and half width of the 95 % interval over seeds (NaN for one seed)."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.nan
    spread = float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return mean, T95[len(values) - 1] * spread


def goodputs(
    case: Case,
    tables: Sequence[Mapping[str, Any]],
    folder: Path,
    *,
    seeds: int = 3,
    duration_s: float = 120.0,
    start_rps: float = 25.0,
    metric: str = "ecoserve",
    levels: Sequence[float] = (0.9, 0.99),
) -> dict[str, Any] | None:
    """Return the goodputs of a system at each level, with intervals; None if it does not fit.

    Of several `tables` (chunk sizes, ratios) the one with the best goodput at the first level, with
    the first seed, is taken.
    """
    if not tables:
        return None
    found: list[tuple[float, Runs, str]] = []
    for table in tables:
        runs = Runs(case, table, folder, duration_s)
        if len(tables) > 1:
            start_rps = max(runs.goodput(0, levels[0], metric, start_rps), LEAST)
        found.append((start_rps, runs, str(table["name"])))
    start_rps, runs, name = max(found, key=lambda one: one[0])
    row: dict[str, Any] = {"system": name}
    at_p90 = start_rps
    for level in levels:
        values: list[float] = []
        for seed in range(seeds):
            near = values[0] if values else at_p90
            values.append(runs.goodput(seed, level, metric, max(near, LEAST)))
        at_p90 = values[0] if level == levels[0] else at_p90
        key = f"p{100 * level:.0f}"
        row[key], row[f"{key}_ci"] = interval(values)
    nearest = GRID ** math.floor(math.log(max(at_p90, LEAST)) / math.log(GRID))
    row["user_ttft_s"] = runs.at(nearest, 0)["user_ttft_s"]
    row["user_share"] = runs.at(nearest, 0)["user"]
    return row
