"""The space of candidates: strategies x parallelism x splits x limits, each with its name.

Names as BestServe (arXiv 2506.05871) writes them: ``8m-tp4`` for eight mixed instances of four
GPUs, ``4p4d-tp4`` for four prefill and four decode instances; and in the same way ``8e-tp4`` for a
PaDG ring of eight. Behind them stands what else is not the default: ``-dp8``, ``-ep8``, ``-pp2``,
``-chunk512``,
``-inter`` (FuDG between nodes), ``-seqs128``, ``-tokens8192``.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from simcluster.config import Environment
from simcluster.engine.groups.cluster import Cluster
from simcluster.errors import ConfigError, DataError
from simcluster.roofline.layout import Layout, check_layout
from simcluster.roofline.memory import tp_degrees
from simcluster.scenario.rank_table import Kind, RankTable
from simcluster.sched import SCHEDULERS
from simcluster.strategies import FuDG, NoDG, PaDG, Strategy
from simcluster.strategies.base import dry_run
from simcluster.strategies.nodg import SCHEDULER_OF

DP_SIZES: Final = (1, 4, 8)
"""Data-parallel ranks that are tried where no list says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A point of the space before it is known to fit."""

    kind: Kind
    """Family."""
    num_gpus: int
    tp_size: int
    pp_size: int
    """All GPUs, ranks of a group, stages."""
    dp_size: int = 1
    ep_size: int = 1
    """Data-parallel ranks, groups of experts."""
    prefill_share: float | None
    """Share of the instances that prefill; None without disaggregation."""
    chunk_size: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    """Limits; None for the engine's."""

    @property
    def num_instances(self) -> int:
        """Instances that the GPUs hold."""
        return self.num_gpus // self.gpus_of_one

    @property
    def gpus_of_one(self) -> int:
        """GPUs of an instance."""
        return self.layout.num_gpus * self.pp_size

    @property
    def layout(self) -> Layout:
        """How an instance is laid out, its pipeline apart."""
        return Layout(self.tp_size, self.dp_size, self.ep_size)

    @property
    def suffix(self) -> str:
        """What stands behind the instances in the name."""
        parts = [f"-{self.layout}"]
        parts += [f"-pp{self.pp_size}"] if self.pp_size > 1 else []
        parts += [f"-chunk{self.chunk_size}"] if self.chunk_size else []
        parts += ["-inter"] if self.kind == "fudg-inter" else []
        parts += [f"-seqs{self.max_num_seqs}"] if self.max_num_seqs else []
        parts += [f"-tokens{self.max_num_batched_tokens}"] if self.max_num_batched_tokens else []
        return "".join(parts)

    def strategy(self) -> Strategy | None:
        """Return the settings of the candidate; None if it has too few instances for its roles."""
        count, common = self.num_instances, self._common()
        match self.kind:
            case "nodg" | "chunked":
                return NoDG(
                    name=f"{count}m{self.suffix}",
                    instances=count,
                    scheduler=SCHEDULER_OF[self.kind],
                    chunk_size=self.chunk_size,
                    **common,
                )
            case "padg":
                return PaDG(name=f"{count}e{self.suffix}", instances=count, **common)
        if count < 2:
            return None
        assert self.prefill_share is not None, "disaggregated shapes have a share"
        prefill = min(max(1, round(self.prefill_share * count)), count - 1)
        return FuDG(
            name=f"{prefill}p{count - prefill}d{self.suffix}",
            prefill_instances=prefill,
            decode_instances=count - prefill,
            placement="intra-node" if self.kind == "fudg-intra" else "inter-node",
            **common,
        )

    def _common(self) -> dict[str, Any]:
        return {
            "tp_size": self.tp_size,
            "pp_size": self.pp_size,
            "dp_size": self.dp_size,
            "ep_size": self.ep_size,
            "max_num_seqs": self.max_num_seqs,
            "max_num_batched_tokens": self.max_num_batched_tokens,
        }


def shapes(table: RankTable, environment: Environment) -> Iterator[Shape]:
    """Give all combinations of the lists of `table`, repeats included."""
    for kind in table.strategies:
        splits = kind in SCHEDULER_OF and SCHEDULERS[SCHEDULER_OF[kind]].splits_prompts
        chunks = (table.chunk_sizes or (environment.engine.chunk_size,)) if splits else (None,)
        for num_gpus, layout, pp_size, share, chunk, seqs, tokens in itertools.product(
            table.num_gpus or (environment.cluster.num_gpus,),
            tuple(layouts(table, environment)),
            table.pp_sizes,
            table.prefill_shares if kind.startswith("fudg") else (None,),
            chunks,
            table.max_num_seqs or (None,),
            (None,) if splits else table.max_num_batched_tokens or (None,),
        ):
            yield Shape(
                kind=kind,
                num_gpus=num_gpus,
                tp_size=layout.tp_size,
                pp_size=pp_size,
                dp_size=layout.dp_size,
                ep_size=layout.ep_size,
                prefill_share=share,
                chunk_size=chunk,
                max_num_seqs=seqs,
                max_num_batched_tokens=tokens,
            )


def layouts(table: RankTable, environment: Environment) -> Iterator[Layout]:
    """Give all combinations of tensor, data and expert parallelism of `table`.

    By default experts are split over all GPUs of an instance, and spread over them, with
    data-parallel ranks and without; an instance has no more GPUs than a node unless a list says so.
    """
    spreads = environment.model.spec.experts and environment.engine.expert_parallel != "none"
    per_node = environment.cluster.gpus_per_node
    for tp_size, dp_size in itertools.product(
        table.tp_sizes, table.dp_sizes or (DP_SIZES if spreads else (1,))
    ):
        num_gpus = tp_size * dp_size
        if not table.dp_sizes and dp_size > 1 and num_gpus > per_node:
            continue
        default = {1} if dp_size == 1 or not spreads else set()
        default |= {num_gpus} if spreads else set()
        for ep_size in table.ep_sizes or sorted(default):
            yield Layout(tp_size, dp_size, ep_size)


@dataclass(frozen=True, slots=True)
class Space:
    """The candidates that fit, and why the others do not."""

    strategies: dict[str, Strategy]
    """By name, in the order of the table."""
    removed: Counter[str]
    """Number of removed candidates by the rule that removed them."""

    def refuse_empty(self) -> None:
        """Refuse a space of which nothing is left.

        Raises
        ------
        DataError
            With each rule and how many candidates it removed.
        """
        if not self.strategies:
            rules = "; ".join(f"{n} removed: {rule}" for rule, n in self.removed.most_common())
            raise DataError(
                f"none of the {self.removed.total()} candidates is left ({rules}). "
                "Widen the lists of [rank], or take larger GPUs or a smaller engine.max_model_len."
            )


def space(table: RankTable, environment: Environment) -> Space:
    """Return the candidates of `table` that can be placed on the machines.

    Pools that are to stand on different nodes and have one node between them are left out where
    `table` has them inside a node too: the KV cache takes a detour there, by the host's memory.
    """
    found: dict[str, Strategy] = {}
    removed: Counter[str] = Counter()
    for shape in shapes(table, environment):
        strategy = shape.strategy()
        if strategy is None:
            removed["fewer than two instances for prefill and decode"] += 1
        elif strategy.name not in found:
            rule = misfit(shape, strategy, environment)
            if rule is None and shape.kind == "fudg-inter" and "fudg-intra" in table.strategies:
                rule = _TWIN if _on_one_node(strategy, environment) else None
            if rule is None:
                found[strategy.name] = strategy
            else:
                removed[rule] += 1
    return Space(found, removed)


_TWIN: Final = "pools that are to be on different nodes would share one, as those of fudg-intra do"


def _on_one_node(strategy: Strategy, environment: Environment) -> bool:
    """Whether all instances of a candidate that fits stand on the same node."""
    placed = build(environment, strategy).placed
    return len({group.node for one in placed for group in one.groups}) == 1


def misfit(shape: Shape, strategy: Strategy, environment: Environment) -> str | None:
    """Return the rule that keeps a candidate off the machines; None if it can be placed."""
    cluster, model = environment.cluster, environment.model
    try:
        check_layout(model, environment.engine, shape.layout, key="tp_size")
    except ConfigError as error:
        return _RULES[error.key]
    degrees = tp_degrees(model, shape.layout)
    if shape.tp_size not in degrees:
        return (
            "heads, experts or blocks of weights cannot be shared out over tp_size GPUs "
            f"({model.spec.name}: over {', '.join(map(str, degrees))})"
        )
    if shape.pp_size > model.spec.num_layers:
        return "more stages than layers"
    if shape.num_gpus > cluster.num_gpus:
        return f"more GPUs than the cluster's {cluster.num_gpus}"
    if shape.num_instances < 1:
        return "an instance is larger than num_gpus"
    if shape.num_gpus % shape.gpus_of_one:
        return "instances leave some of num_gpus idle"
    try:
        build(environment, strategy)
    except ConfigError as error:
        return _RULES.get(error.key.rpartition(".")[2], error.key.rpartition(".")[2])
    return None


_RULES = {
    "tp_size": "weights and the longest request do not fit in the GPUs' memory",
    "ep_size": "experts cannot be spread over ep_size groups of GPUs, or the engine does not",
    "dp_size": "data-parallel ranks need experts, and an engine that has them",
    "pp_size": "a batch of the pipeline cannot hold the longest request",
    "chunk_size": "chunk_size is below max_num_seqs",
    "max_num_batched_tokens": "the longest prompt does not fit in a prefill step",
    "all_to_all": "data-parallel ranks or whole experts are missing for an all-to-all",
    "placement": "no node holds a prefill and a decode instance",
    "prefill_instances": "prefill and decode instances cannot share nodes evenly",
    "instances": "instances do not fit on the nodes",
}
"""What a refused key of a strategy means for a candidate."""


def build(environment: Environment, strategy: Strategy) -> Cluster:
    """Place a candidate on idle machines.

    Raises
    ------
    ConfigError
        If it does not fit.
    """
    slo = environment.slo.strictest()
    targets = dataclasses.replace(slo, ttft_s=slo.ttft_s or 1.0, tpot_s=slo.tpot_s or 1.0)
    environment = dataclasses.replace(environment, slo=targets)
    return dry_run(environment, strategy)
