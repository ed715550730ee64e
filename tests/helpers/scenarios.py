"""Small scenarios as the tables of their files, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_TABLES: Final[dict[str, dict[str, Any]]] = {
    "model": {"name": "llama-2-7b"},
    "cluster": {"gpu": "A100", "nodes": 1, "gpus_per_node": 2},
    "engine": {"profile": "vllm-0.7"},
    "workload": {"lengths": {"kind": "fixed", "prompt_len": 300, "output_len": 20}},
    "slo": {"ttft_s": 0.2, "tpot_s": 0.02},
}


def small_scenario(*strategies: Mapping[str, Any], **tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of a scenario: Llama-2-7B on a node of two A100, requests all alike.

    Parameters
    ----------
    *strategies : mapping
        Tables of ``[[strategy]]``.
    **tables : mapping
        Other tables; keys of one that is there already are added to it or replace its own.
    """
    given = {name: {**_TABLES.get(name, {}), **table} for name, table in tables.items()}
    return {**_TABLES, **given, "strategy": [dict(table) for table in strategies]}


def ranked_scenario(**tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the tables of a scenario to rank: one strategy of its own, a node of four GPUs."""
    return small_scenario(
        {"name": "mine", "kind": "nodg", "tp_size": 4},
        cluster={"gpus_per_node": 4, "price_per_gpu_hour": 2.0},
        engine={"max_model_len": 2048},
        workload={"lengths": {"kind": "fixed", "prompt_len": 400, "output_len": 20}},
        slo={"ttft_s": 0.3, "tpot_s": 0.05},
        **tables,
    )
