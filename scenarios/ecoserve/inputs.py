"""Which inputs decide how far vLLM and Sarathi stay behind EcoServe: target 2, relaxed, changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from cases import ENGINE, Case
from rows import Row
from systems import SYSTEMS, distserve, mooncake, sarathi, vllm

from simcluster.workload.lengths import TableLengths

FITTED = "sharegpt-ecoserve"
LEVELS = (
    *(0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05),
    *(k / 20 for k in range(2, 20)),
    *(0.98, 0.99, 0.995, 0.999, 1),
)
TAIL = 0.03
"""Share of the shortest answers that are taken from another table."""


def _quantiles(table: str, column: int) -> list[float]:
    drawn = TableLengths(name=table).draw(50_000, np.random.default_rng(0))[column]
    return [float(value) for value in np.quantile(drawn, LEVELS)]


def outputs_of(table: str, share: float = 1.0) -> dict[str, Any]:
    """Prompts as fitted to the paper; the shortest `share` of the outputs as in `table`."""
    own, other = _quantiles(FITTED, 1), _quantiles(table, 1)
    mixed = [b if level <= share else a for level, a, b in zip(LEVELS, own, other, strict=True)]
    lengths = {"kind": "quantiles", "levels": LEVELS, "prompt": _quantiles(FITTED, 0)}
    return {"workload.lengths": {**lengths, "output": np.maximum.accumulate(mixed).tolist()}}


IDLE = {"engine.host_workers_s": 0.0079}
"""GPUs of V0 engines stand still for 5 to 13 ms between decode steps (vllm-project/vllm#6854). The
profile has 5 to 7 ms with 60 to 100 sequences; this makes it 11 to 13."""
SHORT = "shortest 3 % as in ShareGPT"
CHANGES: dict[str, dict[str, Any]] = {
    "as it stands": {},
    SHORT: outputs_of("sharegpt-etalon", TAIL),
    "outputs of LMSYS chats (APEX)": outputs_of("lmsys-apex"),
    "GPUs idle for 13 ms a step": IDLE,
    "no host time": {"engine.profile": "ideal"},
    "host of vLLM 0.2 (2023)": {"engine.profile": "vllm-0.2"},
    "64 sequences": {"engine.max_num_seqs": 64},
    "both: short answers, idle GPUs": outputs_of("sharegpt-etalon", TAIL) | IDLE,
}
"""For all systems alike: the same engine serves them in the paper."""


def inputs() -> Iterator[Row]:
    """Order and distance of the three systems with published values."""
    for (what, change), name in itertools.product(CHANGES.items(), ("EcoServe", "vLLM", "Sarathi")):
        case = Case(changes=change)
        yield Row(label={"input": what, "name": name}, case=case, tables=SYSTEMS[name](case))
    yield Row(
        label={"input": "round robin", "name": "vLLM"},
        case=Case(),
        tables=vllm(Case(), router="round-robin"),
    )
    for what, (name, tables) in itertools.product(
        ("as it stands", "both: short answers, idle GPUs"),
        {"vLLM": vllm, "Sarathi": sarathi}.items(),
    ):
        # A Poisson stream for each instance: alone with its share of the load.
        alone = Case(changes=CHANGES[what], num_gpus=2)
        also = "" if what == "as it stands" else ", " + what
        label = {"input": "a stream for each instance" + also, "name": name}
        yield Row(label=label, case=alone, tables=tables(alone), scale=8)
    yield from own_scheduling()


def own_scheduling() -> Iterator[Row]:
    """What the KV connectors and the scheduling of DistServe and MoonCake contribute."""
    case = Case()
    beside = {"engine": ENGINE, "pool": "decode-node"}
    yield Row(
        label={"input": "KV beside the steps", "name": "DistServe"},
        case=case,
        tables=distserve(case, kv_connector="beside", waiting_block_share=0.05),
    )
    for what, settings in {
        "KV beside the steps, by layers": {**beside, "transfer": "layerwise"},
        "least loaded": {"prefill_choice": "router"},
        "early rejection": {"early_rejection": True},
    }.items():
        yield Row(
            label={"input": what, "name": "MoonCake"}, case=case, tables=mooncake(case, **settings)
        )
