"""Shape of an instance: parallelism, limits of a step, KV blocks, host memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

from simcluster.config import Environment, SchedulerConfig
from simcluster.errors import ConfigError
from simcluster.kvcache import BlockLayout
from simcluster.roofline.layout import AllToAll, Layout
from simcluster.roofline.memory import ProfilingPass, block_bytes, kv_blocks, kv_layout
from simcluster.sched import SCHEDULERS, splitting
from simcluster.units import on_grid


@dataclass(frozen=True, slots=True)
class InstanceShape:
    """What an instance is made of."""

    strategy: str
    """Name of the strategy, for messages."""
    tp_size: int
    """GPUs of its tensor-parallel group."""
    pp_size: int = 1
    """Stages of its pipeline, each on such a group."""
    scheduler: str = "prefill-priority"
    """A key of `simcluster.sched.SCHEDULERS`."""
    queue: str = "first-come"
    """A key of `simcluster.sched.QUEUES`: the order of waiting requests."""
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    """Limits of a step; None for the engine's."""
    instances_per_node: int | None = None
    """Most instances on a node; None for as many as fit."""
    num_kv_blocks: int | None = None
    """KV blocks; None for what fits in memory."""
    prefix_caching: bool | None = None
    """Whether common prefixes share KV blocks; None for the engine's habit."""
    swap_bytes: float = 0.0
    """Host memory per GPU for the KV of preempted requests (bytes); 0 to recompute it."""
    tp_across_nodes: bool = False
    """A tensor-parallel group may be larger than a node; it takes whole nodes then."""
    dp_size: int = 1
    ep_size: int = 1
    """Data-parallel ranks of attention, each with such a pipeline and the KV blocks; groups of GPUs
    with different experts."""
    redundant_experts: int = 0
    """Replicas of experts."""
    all_to_all: AllToAll = "gather"
    """How tokens reach the experts of other ranks."""
    expert_skew: float = 1.0
    """Tokens of the busiest group of experts over the mean, at least."""

    @property
    def num_groups(self) -> int:
        """Tensor-parallel groups of an instance."""
        return self.pp_size * self.dp_size

    @property
    def num_gpus(self) -> int:
        """GPUs of an instance."""
        return self.tp_size * self.num_groups

    @property
    def layout(self) -> Layout:
        """Its layout, the pipeline apart."""
        return Layout(
            self.tp_size,
            self.dp_size,
            self.ep_size,
            self.redundant_experts,
            self.all_to_all,
            self.expert_skew,
        )

    def key(self, name: str) -> str:
        """The scenario key `name` of this strategy."""
        return f"strategy.{self.strategy}.{name}"


def block_layout(environment: Environment, shape: InstanceShape) -> BlockLayout:
    """Return how many KV blocks a sequence holds in an instance of `shape`."""
    tokens = scheduler_limits(environment, shape).max_num_batched_tokens
    return kv_layout(environment.model, environment.engine, shape.tp_size, tokens)


def num_kv_blocks(environment: Environment, shape: InstanceShape) -> int:
    """Return the KV blocks of an instance of `shape`: its own number, or what fits in memory.

    Raises
    ------
    ConfigError
        If they cannot hold one sequence of ``max_model_len``, in each of the batches of a pipeline.
    """
    num_blocks = shape.num_kv_blocks
    key = "num_kv_blocks"
    if num_blocks is None:
        key = "pp_size"
        num_blocks = kv_blocks(
            environment.model,
            environment.cluster.gpu,
            environment.engine,
            shape.tp_size,
            shape.pp_size,
            key=shape.key("tp_size"),
            profiled=ProfilingPass.of(
                environment.model,
                environment.cluster.gpu,
                environment.engine,
                scheduler_limits(environment, shape).max_num_batched_tokens,
                shape.max_num_seqs,
            ),
            layout=shape.layout,
        )
    tokens = block_layout(environment, shape).tokens_in(num_blocks // shape.pp_size)
    if tokens < environment.model.max_model_len:
        batches = f" in each of the {shape.pp_size} batches" if shape.pp_size > 1 else ""
        raise ConfigError(
            shape.key(key),
            shape.num_kv_blocks if key == "num_kv_blocks" else shape.pp_size,
            f"{tokens} tokens{batches} cannot hold one sequence of max_model_len = "
            f"{environment.model.max_model_len}",
            "Raise it, or lower engine.max_model_len."
            if key == "num_kv_blocks"
            else f"Set engine.max_model_len to at most {tokens}, or use fewer stages.",
        )
    return num_blocks


@dataclass(frozen=True, slots=True)
class HostMemory:
    """Where an instance, or a lane of a pipelined one, keeps the KV of preempted requests."""

    num_blocks: int
    """Blocks that find room, >= 1."""
    block_s: float
    """Time to copy one over the PCIe links of all GPUs of the instance at once (s)."""
    latency_s: float
    """Latency of a copy (s)."""

    @classmethod
    def of(cls, environment: Environment, shape: InstanceShape) -> HostMemory:
        """Return the host memory of an instance of `shape`; each lane of it has its share.

        Raises
        ------
        ConfigError
            If it holds no block.
        """
        model, pcie = environment.model, environment.cluster.pcie
        layout = block_layout(environment, shape)
        size = max(
            block_bytes(model, environment.engine, shape.tp_size, layout, shape.pp_size, stage)
            for stage in range(shape.pp_size)
        )
        num_blocks = int(shape.swap_bytes / size) // shape.pp_size
        if not num_blocks:
            raise ConfigError(
                shape.key("swap_bytes"),
                shape.swap_bytes,
                f"a GPU's share of a KV block is {math.ceil(size)} bytes, and "
                f"{shape.pp_size} must find room",
                "Raise it.",
            )
        return cls(num_blocks, size / (pcie.bandwidth * pcie.efficiency), pcie.latency_s)

    def copy_s(self, num_blocks: int) -> float:
        """Time to copy `num_blocks` blocks one way (s), on the grid."""
        return on_grid(self.latency_s + num_blocks * self.block_s)


def scheduler_limits(environment: Environment, shape: InstanceShape) -> SchedulerConfig:
    """Return the limits of a step: the strategy's, else the engine's defaults.

    Raises
    ------
    ConfigError
        If the longest prompt does not fit into a prefill step, or a full decode batch not into the
        token budget of a chunked one.
    """
    engine, max_model_len = environment.engine, environment.model.max_model_len
    tokens = shape.max_num_batched_tokens
    if tokens is None:
        tokens = engine.max_num_batched_tokens or max(max_model_len, 2048)
    # A default is no more than the budget, as in vLLM; what is given is taken at its word.
    max_num_seqs = shape.max_num_seqs or min(engine.max_num_seqs, tokens)
    scheduler = SCHEDULERS[shape.scheduler]
    if scheduler.splits_prompts:
        if tokens < max_num_seqs:
            raise ConfigError(
                shape.key(scheduler.limit_key),
                tokens,
                f"a full decode batch of max_num_seqs = {max_num_seqs} would not fit in one step",
                "Raise it, or lower max_num_seqs.",
            )
    elif tokens < max_model_len:
        raise ConfigError(
            shape.key(scheduler.limit_key),
            tokens,
            f"a prompt of max_model_len = {max_model_len} would not fit in one prefill step",
            "Raise it, lower engine.max_model_len, or use a scheduler that splits prompts "
            f"({', '.join(splitting())}).",
        )
    for name, off in (("prefill_wait_steps", 0), ("prefill_interval", 1)):
        if getattr(engine, name) != off and not scheduler.delays_prefill:
            delaying = [one for one, kind in SCHEDULERS.items() if kind.delays_prefill]
            raise ConfigError(
                f"engine.{name}",
                getattr(engine, name),
                f"the scheduler {shape.scheduler!r} computes prompts as soon as they fit",
                f"Remove it, or use a scheduler that can delay them ({', '.join(delaying)}).",
            )
    if engine.api_servers and not (engine.api_request_s or engine.api_token_s):
        raise ConfigError(
            "engine.api_servers",
            engine.api_servers,
            f"no CPU time of an API server is known for the engine {engine.name}",
            "Give engine.api_request_s (and engine.api_token_s), or remove the key.",
        )
    return SchedulerConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=tokens,
        prefill_wait_steps=engine.prefill_wait_steps,
        prefill_wait_tokens=engine.prefill_wait_share * tokens,
        prefill_interval=engine.prefill_interval,
        reserves_output=engine.reserves_output,
    )
