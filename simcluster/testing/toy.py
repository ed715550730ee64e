"""A toy cluster: a model of two layers on A100 nodes, small requests, and frames compared.

Runs take milliseconds, and pools of a dozen KV blocks are full at once, so that queues, preemptions
and ties are common. The contracts and the tests of the three resolutions run on it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from simcluster.catalog.layers import ModelSpec
from simcluster.catalog.specs import EngineProfile
from simcluster.config import Environment, ModelConfig, SloConfig
from simcluster.roofline.memory import kv_layout
from simcluster.runs.result import FRAMES, Result
from simcluster.runs.simulate import run
from simcluster.strategies import Strategy
from simcluster.testing.laws import require
from simcluster.testing.specs import (
    eager_engine,
    environment,
    ideal_engine,
    llama_2_7b,
    vllm_engine,
)
from simcluster.testing.workloads import shared_prefixes
from simcluster.units import grid_array
from simcluster.workload import Workload
from simcluster.workload.turns import Turns


def toy(name: str, **changes: object) -> ModelSpec:
    """Return a model of two layers, of no meaning but quick to simulate; or with other keys."""
    shape: dict[str, object] = {"num_layers": 2, "hidden_size": 512, "num_heads": 8}
    shape |= {"num_kv_heads": 4, "head_dim": 64, "ffn_dim": 1024, "vocab_size": 1000}
    return llama_2_7b(**shape | {"name": name, **changes})


TOY: Final = toy("toy")
"""Two equal layers."""
WINDOWED: Final = toy("toy-window", layers=[{"sliding_window": 24}, {}])
"""A sliding window in one of two layers."""
CHUNKED: Final = toy("toy-chunk", layers=[{"repeat": 3, "attention_chunk": 32}, {}])
"""Three of four layers attend within chunks."""
RECURRENT: Final = toy(
    "toy-recurrent",
    layers=[{"mixer": "gated-deltanet", "num_experts": 4}, {"mixer": "none"}, {}],
    num_experts_active=2,
    moe_ffn_dim=256,
    linear_key_heads=4,
    linear_key_dim=32,
    linear_heads=8,
    linear_value_dim=16,
    conv_kernel=4,
)
"""A recurrent layer with experts, an MLP alone, and a layer that attends to all."""
SPARSE: Final = toy(
    "toy-sparse",
    kv_lora_rank=64,
    qk_nope_dim=32,
    qk_rope_dim=16,
    v_head_dim=32,
    index_heads=4,
    index_head_dim=32,
    index_top_k=24,
)
"""Latent attention to the 24 tokens that an index chooses."""
MOE: Final = toy("toy-moe", num_experts=4, num_experts_active=2, moe_ffn_dim=256, shared_ffn_dim=64)
"""Two layers of experts."""
TOYS: Final = (TOY, WINDOWED, CHUNKED, RECURRENT, SPARSE, MOE)
"""A model of every kind of layer."""
LAYOUTS: Final[tuple[dict[str, Any], ...]] = (
    {},
    {"ep_size": 2, "tp_size": 2},
    {"dp_size": 2, "ep_size": 1},
    {"dp_size": 2, "ep_size": 2, "tp_size": 1, "all_to_all": "low-latency"},
    {"dp_size": 2, "ep_size": 4, "tp_size": 2, "all_to_all": "throughput", "expert_skew": 1.5},
    {"dp_size": 4, "ep_size": 4, "tp_size": 1, "redundant_experts": 4},
    {"dp_size": 2, "ep_size": 2, "tp_size": 1, "prefill_dp_size": 1, "prefill_tp_size": 2},
    {"dp_size": 2, "ep_size": 2, "tp_size": 1, "prefill_dp_size": 1, "prefill_ep_size": 1},
)
"""Layouts of models with experts: spread over GPUs, shared by data-parallel ranks, both; and with
prefill instances of another layout, of as many GPUs or fewer."""
DEEP: Final = toy("deep", num_layers=4)
"""Four equal layers, for pipelines of up to four stages."""
OVERLAPPING: Final[EngineProfile] = dataclasses.replace(
    vllm_engine(), name="overlapping", overlaps_host=True
)
"""An engine that does the host work of a step while the GPU works on the step before."""
AHEAD: Final[EngineProfile] = dataclasses.replace(
    vllm_engine(), name="ahead", plans_ahead=True, front_end_s=0.003
)
"""An engine that plans a step while the step before runs."""
SPLITTING: Final[EngineProfile] = dataclasses.replace(
    vllm_engine(), name="splitting", scheduler="chunked", chunk_size=70, max_num_seqs=64
)
"""An engine whose own scheduler splits prompts, in every pool."""
ENGINES: Final = (ideal_engine(), vllm_engine(), eager_engine(), OVERLAPPING, AHEAD, SPLITTING)
"""Engines without host work, with some, with kernels issued one by one, overlapping, ahead, and
splitting prompts."""
MAX_MODEL_LEN: Final = 160
"""Longest prompt plus output of the toy cluster (tokens): ten KV blocks."""
LOOSE: Final = SloConfig(ttft_s=5.0, tpot_s=0.1)
"""Targets that the toy cluster meets."""
STRICT: Final = SloConfig(ttft_s=0.02, tpot_s=0.003)
"""Targets that it can just meet, so that windows of rolling activation come and go."""
COMPARED: Final = tuple(name for name in FRAMES if name != "spans")
"""Frames that do not depend on the resolution; spans do."""


def with_layout(strategy: Any, model: ModelSpec, layout: Mapping[str, Any]) -> Any:
    """Return `strategy` with `layout`, one of `LAYOUTS`, where there can be one.

    The model must have experts and the strategy no pipeline. What does not go with data-parallel
    ranks becomes the default.
    """
    if model.experts is None or strategy.pp_size > 1:
        return strategy
    changes = dict(layout)
    unequal = "prefill_dp_size" in changes and "prefill_tp_size" not in changes
    if strategy.kind != "fudg" or (unequal and strategy.placement == "intra-node"):
        changes = {key: value for key, value in changes.items() if not key.startswith("prefill_")}
    if changes.get("dp_size", 1) > 1 and strategy.kind == "fudg":
        changes |= {
            "transfer": "after-prefill",
            "prefill_choice": "router",
            "early_rejection": False,
        }
    return dataclasses.replace(strategy, **changes)


def with_room(strategy: Any, model: ModelSpec) -> Any:
    """Return `strategy` with as much room in its KV pool for `model` as it says for a plain model.

    A sequence of a model whose layers cache in several ways takes more, and smaller, blocks.
    """
    if strategy.num_kv_blocks is None:
        return strategy
    served = ModelConfig(spec=model, max_model_len=MAX_MODEL_LEN)
    layout = kv_layout(served, ideal_engine(), strategy.tp_size, MAX_MODEL_LEN)
    plain = -(-MAX_MODEL_LEN // ideal_engine().block_size)
    larger = -(-layout.prompt_blocks(MAX_MODEL_LEN) // plain)
    return dataclasses.replace(strategy, num_kv_blocks=larger * strategy.num_kv_blocks)


def toy_environment(
    engine: EngineProfile | None = None,
    slo: SloConfig = LOOSE,
    model: ModelSpec = TOY,
) -> Environment:
    """Return two nodes of eight GPUs that serve a toy model, by default with host work of 1 ms."""
    machines = environment(engine=engine, slo=slo, num_nodes=2, gpus_per_node=8)
    return dataclasses.replace(machines, model=ModelConfig(spec=model, max_model_len=MAX_MODEL_LEN))


def toy_workload(
    requests: Sequence[tuple[float, int, int]],
    concurrency: int | None = None,
    prefixes: Sequence[tuple[int, int]] | None = None,
    turns: Sequence[float] | None = None,
) -> Workload:
    """Return a workload of `requests`, with three priorities and a score for each.

    Parameters
    ----------
    requests : sequence of (float, int, int)
        Gap before the request (s), prompt and output (tokens).
    concurrency : int, optional
        Requests in the system at once, for a closed loop; the gaps count for nothing then.
    prefixes : sequence of (int, int), optional
        Group and shared tokens of each request, repeated as often as needed: requests of a group
        begin alike. Every other answer can be shared too, as in a conversation.
    turns : sequence of float, optional
        For each request, repeated as often as needed, the time (s) between the answer to the one
        before it and its arrival; a negative one for a request that waits for nobody.
    """
    gaps, prompts, outputs = (np.array(column) for column in zip(*requests, strict=True))
    count = len(requests)
    hashes = None
    if prefixes is not None:
        groups, shared = zip(*(prefixes[k % len(prefixes)] for k in range(count)), strict=True)
        known = (prompts + outputs * (np.arange(count) % 2)).tolist()
        hashes = shared_prefixes(
            groups, shared, known, tokens_per_id=(8, 16, 32)[len(prefixes) % 3]
        )
    waits = None
    if turns is not None:
        think_s = grid_array(np.resize(np.asarray(turns, np.float64), count))
        think_s[0] = -1.0
        after = np.where(think_s < 0, -1, np.arange(count) - 1)
        waits = Turns(after=after, think_s=np.maximum(think_s, 0.0))
    return Workload(
        turns=waits,
        arrival_s=np.zeros(count) if concurrency else grid_array(np.cumsum(gaps)),
        prompt_len=prompts,
        output_len=outputs,
        rejected=np.zeros(count, bool),
        concurrency=concurrency,
        hashes=hashes,
        priority=np.arange(count) * 7 % 3,
        score=np.arange(count) * 13 % 32 / 32,
    )


def assert_same(one: Result, other: Result, frames: Sequence[str] = COMPARED) -> None:
    """Require that the frames of two runs are the same, bit by bit.

    Parameters
    ----------
    one, other : Result
        Two runs, such as one by spans and one by steps.
    frames : sequence of str
        Names of the frames; by default those that do not depend on the resolution.

    Raises
    ------
    AssertionError
        With the first column that differs, and both its values.
    """
    for name in frames:
        for column, values in one.columns[name].items():
            theirs = other.columns[name][column]
            require(
                values.tobytes() == theirs.tobytes() or list(values) == list(theirs),
                f"{name}.{column}: {values} against {theirs}",
            )
    require(one.end_s == other.end_s, f"the runs end at {one.end_s} s and {other.end_s} s")


def agreed(
    where: Environment,
    strategy: Strategy,
    workload: Workload,
    resolutions: Sequence[str] = ("span", "step"),
    *,
    same: Callable[[Result, Result], None] = assert_same,
    **options: Any,
) -> Result:
    """Return a run at the first of some resolutions whose frames are the same at all of them.

    Parameters
    ----------
    where, strategy, workload
        Those of `simcluster.runs.simulate.run`.
    resolutions : sequence of str
        By default spans and steps.
    same : callable
        Requires that two runs are the same.
    **options
        Further arguments of `simcluster.runs.simulate.run`.

    Raises
    ------
    AssertionError
        With the first column that differs, and both its values.
    """
    first, *others = (
        run(where, strategy, workload, resolution=resolution, **options)
        for resolution in resolutions
    )
    for other in others:
        same(first, other)
    return first
