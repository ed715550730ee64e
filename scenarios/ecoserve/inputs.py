"""Which inputs decide how far vLLM and Sarathi stay behind EcoServe: target 2, relaxed, changed."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
from cases import Case
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


def outputs_from(shortest: int) -> dict[str, Any]:
    """Lengths as fitted to the paper, but no answer under `shortest` tokens."""
    lengths = {"kind": "quantiles", "levels": LEVELS, "prompt": _quantiles(FITTED, 0)}
    output = np.maximum(_quantiles(FITTED, 1), shortest).tolist()
    return {"workload.lengths": {**lengths, "output": output}}


CHANGES: dict[str, dict[str, Any]] = {
    "as it stands": {},
    "answers of 20 tokens or more": outputs_from(20),
    "shortest 3 % as in ShareGPT": outputs_of("sharegpt-etalon", TAIL),
    "outputs of ShareGPT (Helix)": outputs_of("sharegpt-helix"),
    "outputs of LMSYS chats (APEX)": outputs_of("lmsys-apex"),
    "no host time": {"engine.profile": "ideal"},
    "host of vLLM 0.2 (2023)": {"engine.profile": "vllm-0.2"},
    "host of vLLM 0.19 (2026)": {"engine.profile": "vllm-0.19"},
    "no captured graphs": {"engine.profile": "eager"},
    "4096 batched tokens": {
        "engine.max_num_batched_tokens": 4096,
        "engine.max_model_len": 4096,
    },
    "64 sequences": {"engine.max_num_seqs": 64},
    "half the KV memory": {"engine.gpu_memory_utilization": 0.68},
}
"""For all systems alike: the same engine serves them in the paper."""

SHORT = "shortest 3 % as in ShareGPT"


def inputs() -> Iterator[Row]:
    """Order and distance of the three systems with published values."""
    for (what, change), name in itertools.product(CHANGES.items(), ("EcoServe", "vLLM", "Sarathi")):
        case = Case(changes=change)
        yield Row(label={"input": what, "name": name}, case=case, tables=SYSTEMS[name](case))
    for short, (name, tables) in itertools.product(
        (False, True), {"vLLM": vllm, "Sarathi": sarathi}.items()
    ):
        changes = CHANGES[SHORT] if short else {}
        also = ", " + SHORT if short else ""
        case = Case(changes=changes)
        label = {"input": "round robin" + also, "name": name}
        yield Row(label=label, case=case, tables=tables(case, router="round-robin"))
        # A router that draws the instance splits Poisson arrivals: each instance is on its own.
        case = Case(changes=changes, num_gpus=2)
        label = {"input": "random instance" + also, "name": name}
        yield Row(label=label, case=case, tables=tables(case), scale=8)
    yield from own_scheduling()


def own_scheduling() -> Iterator[Row]:
    """What DistServe's and MoonCake's own scheduling contribute."""
    case = Case()
    plain = {
        "prefill_max_num_seqs": None,
        "prefill_max_num_batched_tokens": None,
        "waiting_block_share": None,
        "preemption": "recompute",
    }
    yield Row(
        label={"input": "pulls what fits", "name": "DistServe"},
        case=case,
        tables=distserve(case, **plain),
    )
    for what, settings in {
        "least loaded, after the prefill": {
            "prefill_choice": "router",
            "transfer": "after-prefill",
        },
        "early rejection": {"early_rejection": True},
    }.items():
        yield Row(
            label={"input": what, "name": "MoonCake"}, case=case, tables=mooncake(case, **settings)
        )
