"""What EcoServe's evaluation serves on which machines: model, GPUs, requests, targets.

Set-up: EcoServe (arXiv 2504.18154), section 4.1 and table 4. One set of constants per GPU and
engine: those of the catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simcluster.scenario.file import resolve
from simcluster.scenario.scenario import Scenario

ENGINE = "vllm-0.7"
"""The engine of the paper's time, that all systems share (section 4.1). A system's table may name
another profile of it, as ``engine``: with its KV connector."""
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

RUN_S = {"alpaca-ecoserve": 120.0, "sharegpt-ecoserve": 180.0, "longbench-ecoserve": 600.0}
"""Arrivals of a run (s): at least twenty TTFT targets, and about ten times what a request stays."""


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
    duration_s : float
        Arrivals of a run (s); by default those of the data set.
    """

    model: str = "codellama-34b"
    gpu: str = "A800"
    dataset: str = "sharegpt-ecoserve"
    ttft_s: float | None = None
    tpot_s: float = TPOT_S
    changes: Mapping[str, Any] = field(default_factory=dict)
    num_gpus: int | None = None
    duration_s: float | None = None

    @property
    def tp_size(self) -> int:
        """GPUs of an instance."""
        return TP_SIZE[self.model, self.gpu]

    @property
    def num_instances(self) -> int:
        """Instances that every system has: 32 L20 or 16 A800."""
        gpus = self.num_gpus or {"L20": 32, "A800": 16}[self.gpu]
        return gpus // self.tp_size

    def scenario(self, systems: Sequence[Mapping[str, Any]]) -> Scenario:
        """Return the scenario with `systems`, which share an engine."""
        profiles = {system.get("engine", ENGINE) for system in systems}
        assert len(profiles) == 1, "an engine each"
        document = {
            "model": {"name": self.model},
            "cluster": dict(CLUSTERS[self.gpu]),
            "engine": {"profile": profiles.pop()},
            "workload": {
                "lengths": self.dataset,
                "duration_s": self.duration_s or RUN_S[self.dataset],
                # Llama-30B has a context of 2048 tokens; the paper truncates LongBench for it.
                "on_too_long": "truncate",
            },
            "slo": {
                "ttft_s": self.ttft_s or TTFT_S[self.dataset],
                "tpot_s": self.tpot_s,
                "metric": "ecoserve",
            },
            "sweep": {"rates_rps": [1.0]},
            "strategy": [
                {key: value for key, value in system.items() if key != "engine"}
                for system in systems
            ],
        }
        return resolve(document, dict(self.changes))
