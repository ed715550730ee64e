"""How an instance lays a model out on its GPUs: tensor, data and expert parallelism.

As engines have it: an instance has ``dp_size x tp_size`` GPUs (and a pipeline as many per stage).
Attention and its KV cache are split over the `tp_size` GPUs of a data-parallel rank and replicated
over the `dp_size` ranks, each of which has sequences of its own. Experts are spread over all of
these GPUs: in `ep_size` groups of whole experts, each split by width over the rest
(``moe_tp_size``). vLLM has ``ep_size`` 1 or all (``--enable-expert-parallel``: EP_SIZE = TP_SIZE x
DP_SIZE, docs/serving/expert_parallel_deployment.md), TensorRT-LLM and SGLang any divisor
(``moe_expert_parallel_size``, ``--ep-size``).

How busy the busiest of the groups is, is in closed form for a router that picks all experts alike.
"""

from __future__ import annotations

from functools import lru_cache
from math import comb, sqrt
from statistics import NormalDist
from typing import Final, Literal, NamedTuple, get_args

from simcluster.catalog.layers import Experts
from simcluster.catalog.specs import EngineProfile
from simcluster.config import ModelConfig
from simcluster.errors import ConfigError

AllToAll = Literal["gather", "low-latency", "throughput"]
ALL_TO_ALL: Final[tuple[AllToAll, ...]] = get_args(AllToAll)
"""How tokens reach the experts of other data-parallel ranks, and the results come back."""


class Layout(NamedTuple):
    """Degrees of parallelism inside an instance, its pipeline apart."""

    tp_size: int = 1
    """GPUs of a tensor-parallel group: of one data-parallel rank."""
    dp_size: int = 1
    """Data-parallel ranks of attention, in lock-step."""
    ep_size: int = 1
    """Groups of GPUs with different experts; 1: all experts are split over all GPUs."""
    redundant_experts: int = 0
    """Replicas of experts beside the model's own, in all groups together (EPLB)."""
    all_to_all: AllToAll = "gather"
    """One of `ALL_TO_ALL`; without data-parallel ranks every GPU has all tokens anyway."""
    expert_skew: float = 1.0
    """Tokens of the busiest group over the mean of all, at least; chance alone makes more."""

    @property
    def num_gpus(self) -> int:
        """GPUs of the instance, or of one stage of its pipeline."""
        return self.tp_size * self.dp_size

    @property
    def moe_tp_size(self) -> int:
        """GPUs that an expert is split over."""
        return self.num_gpus // self.ep_size

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing but tensor parallelism."""
        return self.dp_size == self.ep_size == 1

    def local_experts(self, experts: Experts) -> int:
        """Experts of a GPU, replicas included."""
        return (experts.num_experts + self.redundant_experts) // self.ep_size

    def __str__(self) -> str:
        parts = [f"tp{self.tp_size}"]
        parts += [f"dp{self.dp_size}"] if self.dp_size > 1 else []
        parts += [f"ep{self.ep_size}"] if self.ep_size > 1 else []
        return "-".join(parts)


# What engines refuse ----------------------------------------------------------------------------


def check_layout(model: ModelConfig, engine: EngineProfile, layout: Layout, *, key: str) -> None:
    """Check that engines lay the model out so, tensor parallelism apart.

    Parameters
    ----------
    model, engine : ModelConfig, EngineProfile
        What is served, by which engine.
    layout : Layout
        Its degrees.
    key : str
        Key of ``tp_size`` in the scenario file, for messages; those of the others stand beside it.

    Raises
    ------
    ConfigError
        If experts cannot be shared out so, the engine has no such layout, or a key has no meaning.

    Notes
    -----
    vLLM needs ``ep_size`` 1 or all GPUs and has all-to-all kernels with data-parallel ranks and
    expert parallelism only (``FusedMoEParallelConfig``: ``use_all2all_kernels = dp_size > 1 and
    use_ep``); SGLang and TensorRT-LLM assert that the groups divide the experts (with replicas).
    """

    def refuse(name: str, value: object, rule: str, remedy: str) -> None:
        raise ConfigError(key.replace("tp_size", name), value, rule, remedy)

    experts, num_gpus, name = model.spec.experts, layout.num_gpus, model.spec.name
    if experts is None:
        if layout.dp_size > 1:
            rule = f"{name} has no experts: data-parallel ranks of it are instances of their own"
            refuse("dp_size", layout.dp_size, rule, "Use instances = ... instead.")
        if layout.ep_size > 1:
            rule = f"{name} has no experts that could be spread over GPUs"
            refuse("ep_size", layout.ep_size, rule, "Use tp_size, or a model with experts.")
    if layout.is_plain:
        for field in ("all_to_all", "redundant_experts", "expert_skew"):
            if getattr(layout, field) != Layout._field_defaults[field]:
                rule = "has no meaning where all GPUs have all experts and all tokens"
                refuse(field, getattr(layout, field), rule, "Remove it, or set ep_size.")
        return
    assert experts is not None, "without experts only plain layouts are left"
    if engine.expert_parallel == "none":
        field = "dp_size" if layout.dp_size > 1 else "ep_size"
        rule = f"engine {engine.name} has neither expert nor attention data parallelism"
        refuse(field, getattr(layout, field), rule, "Use a newer engine, or leave it out.")
    if num_gpus % layout.ep_size:
        divisors = [str(n) for n in range(1, num_gpus + 1) if num_gpus % n == 0]
        rule = f"does not divide the {num_gpus} GPUs that the experts are spread over"
        refuse("ep_size", layout.ep_size, rule, f"Use one of {', '.join(divisors)}.")
    if engine.expert_parallel == "all" and layout.ep_size not in (1, num_gpus):
        rule = (
            f"engine {engine.name} spreads whole experts over all GPUs of an instance "
            f"(tp_size x dp_size = {num_gpus}) or splits each over all"
        )
        refuse("ep_size", layout.ep_size, rule, f"Use 1 or {num_gpus}.")
    total = experts.num_experts + layout.redundant_experts
    if layout.ep_size == 1 and layout.redundant_experts:
        rule = "replicas of experts need GPUs with different experts"
        refuse("redundant_experts", layout.redundant_experts, rule, "Remove it, or set ep_size.")
    if total % layout.ep_size:
        beside = f" and {layout.redundant_experts} replicas" if layout.redundant_experts else ""
        missing = -total % layout.ep_size
        rule = f"does not divide the {experts.num_experts} experts{beside} of {name}"
        remedy = f"Use a divisor, or redundant_experts = {layout.redundant_experts + missing}."
        refuse("ep_size", layout.ep_size, rule, remedy)
    if layout.all_to_all != "gather":
        if layout.dp_size == 1:
            rule = "without data-parallel ranks every GPU has all tokens, and none are sent"
            refuse("all_to_all", layout.all_to_all, rule, "Remove it, or set dp_size.")
        if layout.ep_size != num_gpus:
            rule = f"DeepEP's kernels need whole experts on every GPU: ep_size = {num_gpus}"
            refuse("all_to_all", layout.all_to_all, rule, 'Set that, or use "gather".')
    if layout.ep_size == 1 and layout.expert_skew > 1.0:
        rule = "all GPUs have a part of every expert, and so equal work"
        refuse("expert_skew", layout.expert_skew, rule, "Remove it, or set ep_size.")


# The busiest group of experts -------------------------------------------------------------------


@lru_cache(maxsize=256)
def largest_of_normals(count: int) -> float:
    """Mean of the largest of `count` independent standard normal numbers.

    Blom's approximation (1958): 0.025 too large for two numbers, less for more.

    >>> round(largest_of_normals(8), 2)
    1.43
    """
    return NormalDist().inv_cdf((count - 0.375) / (count + 0.25))


def busiest_rows(experts: Experts, layout: Layout, num_tokens: int) -> float:
    """Token-expert pairs that the busiest group of experts computes.

    Parameters
    ----------
    experts : Experts
        Each token picks `num_active` different ones.
    layout : Layout
        Its groups, and the skew that popularity adds.
    num_tokens : int
        Tokens of all data-parallel ranks.

    Returns
    -------
    float
        Mean of the largest load. By the central limit theorem: loads of the groups are
        hypergeometric per token, independent between tokens, and their sum is known.
    """
    groups, active = layout.ep_size, experts.num_active
    mean = num_tokens * active / groups
    if groups == 1:
        return mean
    total = experts.num_experts + layout.redundant_experts
    share = 1.0 / groups
    # Var of a hypergeometric draw; sqrt(g / (g - 1)) for the sum of all groups being known.
    variance = num_tokens * active * share * (1 - share) * (total - active) / (total - 1)
    extra = largest_of_normals(groups) * sqrt(variance * groups / (groups - 1))
    most = num_tokens * float(min(active, total // groups))
    return min(most, max(mean + extra, layout.expert_skew * mean))


def busiest_touched(experts: Experts, layout: Layout, num_tokens: int, touched: float) -> float:
    """Distinct experts that tokens visit in the group where they are most.

    Parameters
    ----------
    experts, layout, num_tokens
        As in `busiest_rows`.
    touched : float
        Distinct experts that they visit in all groups together; a replica is one of them.
    """
    groups = layout.ep_size
    if groups == 1:
        return touched
    local = layout.local_experts(experts)
    total = local * groups
    share = min(1.0, touched / total)
    variance = local * share * (1.0 - share)
    extra = largest_of_normals(groups) * sqrt(variance * groups / (groups - 1))
    most = min(float(local), num_tokens * float(min(experts.num_active, local)))
    return min(most, local * share + extra)


def groups_visited(experts: Experts, num_groups: int) -> float:
    """Mean number of `num_groups` equal groups of experts that a token visits.

    It picks `num_active` different experts, all equally popular.
    """
    total, active = experts.num_experts, experts.num_active
    apart = comb(total - total // num_groups, active) / comb(total, active)
    return num_groups * (1.0 - apart)
