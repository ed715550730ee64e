"""The systems that EcoServe's evaluation compares, as tables ``[[strategy]]`` of a scenario.

EcoServe (arXiv 2504.18154), section 4.1; what it does not state (chunk sizes, ratios of prefill to
decode instances) is tried in several ways.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cases import Case

Table = dict[str, Any]
"""A table ``[[strategy]]``."""


def system(case: Case, name: str, **settings: Any) -> Table:
    """Return a table ``[[strategy]]`` on the GPUs of `case`."""
    table: Table = {"name": name, "tp_size": case.tp_size, **settings}
    if table["kind"] != "fudg":
        table.setdefault("instances", case.num_instances)
    if case.gpu == "L20":
        table.setdefault("instances_per_node", 2 if name.startswith("DistServe") else 1)
    return table


def vllm(case: Case, **settings: Any) -> list[Table]:
    """VLLM behind a router that knows the load."""
    return [system(case, "vLLM", kind="nodg", **settings)]


def sarathi(case: Case, sizes: Sequence[int] = (512, 1024, 2048), **settings: Any) -> list[Table]:
    """Sarathi-Serve with each of its chunk sizes (tokens); the paper states none."""
    return [
        system(
            case, f"Sarathi {size}", kind="nodg", scheduler="chunked", chunk_size=size, **settings
        )
        for size in sizes
    ]


def distserve(case: Case, **settings: Any) -> list[Table]:
    """DistServe, prefill and decode instances on every node, at several ratios.

    The limits of its context stage are those of its authors' evaluation scripts: 128 prompts and
    32,768 tokens in a batch. The worker of the decode stage copies a request's KV in a call that
    its steps wait for, at the speed of PCIe; it swaps.
    """
    count, on_node = case.num_instances, 8 // case.tp_size
    if on_node < 2:
        return []  # Qwen2-72B with TP 8: both roles do not fit on a node; left out in the paper too
    own: dict[str, Any] = {
        "prefill_max_num_seqs": 128,
        "prefill_max_num_batched_tokens": 32768,
        "kv_connector": "inside",
        "preemption": "swap",
        **settings,
    }
    nodes = count // on_node
    return [
        system(
            case,
            f"DistServe {prefill}:{on_node - prefill}",
            kind="fudg",
            placement="intra-node",
            prefill_instances=nodes * prefill,
            decode_instances=nodes * (on_node - prefill),
            **{key: value for key, value in own.items() if value is not None},
        )
        for prefill in range(1, on_node)
    ]


MOONCAKE_ENGINE = "vllm-0.7-mooncake"
"""The engine with the KV connector of that time, its rates as measured on A10."""


def mooncake(case: Case, **settings: Any) -> list[Table]:
    """MoonCake on the engine of the paper's time, at several ratios.

    KV moves inside the steps, from prefill to decode instance. Its prefill instance is the one with
    the smallest estimated TTFT; nobody is rejected, for the paper counts every request.
    """
    count = case.num_instances
    own = {"engine": MOONCAKE_ENGINE, "prefill_choice": "ttft"}
    return [
        system(
            case,
            f"MoonCake {prefill}:{count - prefill}",
            kind="fudg",
            placement="inter-node",
            prefill_instances=prefill,
            decode_instances=count - prefill,
            **{**own, **settings},
        )
        for prefill in sorted({max(1, share * count // 8) for share in (2, 3, 4)})
    ]


def ecoserve(case: Case, **settings: Any) -> list[Table]:
    """EcoServe as its authors released it."""
    return [system(case, "EcoServe", kind="padg", **{"variant": "code", **settings})]


def ecoserve_paper(case: Case, **settings: Any) -> list[Table]:
    """EcoServe by Algorithm 1 of the paper."""
    return [system(case, "EcoServe (paper)", kind="padg", variant="paper", **settings)]


SYSTEMS: dict[str, Callable[..., list[Table]]] = {
    "EcoServe": ecoserve,
    "EcoServe (paper)": ecoserve_paper,
    "vLLM": vllm,
    "Sarathi": sarathi,
    "DistServe": distserve,
    "MoonCake": mooncake,
}
PUBLISHED = ("EcoServe", "vLLM", "Sarathi", "DistServe", "MoonCake")
"""Those of the published comparison."""
