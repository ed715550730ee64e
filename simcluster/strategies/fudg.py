"""FuDG: prefill and decode on different instances, the KV cache moves between them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Annotated, Any, Literal

from pydantic import Field

from simcluster.catalog.specs import EngineProfile
from simcluster.engine.groups.cluster import Cluster, Deployment
from simcluster.engine.groups.handover import KvHandover
from simcluster.engine.groups.prefill_gateway import Conductor, PrefillGateway
from simcluster.engine.groups.step_connector import ConnectorRates, StepConnector
from simcluster.engine.instance import InstanceLike
from simcluster.engine.links.link import Path
from simcluster.engine.shape import InstanceShape
from simcluster.errors import ConfigError
from simcluster.request import Request
from simcluster.roofline.layout import AllToAll
from simcluster.routing import LeastLoaded
from simcluster.sched import SCHEDULERS
from simcluster.strategies.base import RouterSettings, scheduler_of
from simcluster.strategies.pools import place_apart, place_together, pool_sizes
from simcluster.strategies.scaling import ThresholdSettings, scale_by_load
from simcluster.units import on_grid


@dataclass(frozen=True, slots=True, kw_only=True)
class FuDG(RouterSettings):
    """A prefill pool and a decode pool.

    With ``placement = "intra-node"`` both roles stand on every node (DistServe), with
    ``"inter-node"`` on different nodes where they can (MoonCake). Without a pool the decode side
    pulls the KV cache from GPU to GPU once it has room for it, as in DistServe. With a pool in host
    memory the prefill side pushes it there at once, and it moves on when the decode side has room:
    two copies, as EcoServe (section 4.1) ran MoonCake. The pool is beside the decode instance or on
    a third node.

    DistServe's own scheduling: `prefill_max_num_seqs` and `prefill_max_num_batched_tokens` limit
    the batches of its context stage, which stalls by itself when its memory is full of KV that
    nobody has pulled; with `waiting_block_share` the decode side pulls as little ahead as it does;
    ``preemption = "swap"`` swaps the newest request out. MoonCake's: ``prefill_choice = "ttft"``
    sends a request to the prefill instance with the smallest estimated TTFT, cached prefixes
    counted in, and `early_rejection` turns it away if a target would be missed.
    """

    kind: Literal["fudg"] = "fudg"
    prefill_instances: Annotated[int | None, Field(ge=1)] = None
    """Prefill instances; default: half of what fits."""
    decode_instances: Annotated[int | None, Field(ge=1)] = None
    """Decode instances; default: the rest of what fits."""
    placement: Literal["intra-node", "inter-node"] = "intra-node"
    """Whether the two pools share nodes, and so which links the KV takes."""
    pool: Literal["none", "decode-node", "remote"] | None = None
    """Host memory that the KV passes: none (GPU to GPU), that of the decode instance's node, or
    that of a third node; default: none inside a node and inside steps, else decode-node."""
    transfer: Literal["after-prefill", "layerwise"] = "after-prefill"
    """When the KV sets out: after the last layer, or from the end of the first layer on, layer by
    layer behind the prefill."""
    prefill_tp_size: Annotated[int | None, Field(ge=1)] = None
    """GPUs of a tensor-parallel group of a prefill instance; default: tp_size."""
    prefill_dp_size: Annotated[int | None, Field(ge=1)] = None
    """Data-parallel ranks of a prefill instance; default: dp_size."""
    prefill_ep_size: Annotated[int | None, Field(ge=1)] = None
    """Groups of GPUs with different experts in a prefill instance; default: ep_size."""
    prefill_all_to_all: AllToAll | None = None
    """How tokens reach the experts of other ranks of a prefill instance; default: all_to_all."""
    prefill_max_num_seqs: Annotated[int | None, Field(ge=1)] = None
    """Most prompts in a batch of a prefill instance; default: max_num_seqs."""
    prefill_max_num_batched_tokens: Annotated[int | None, Field(ge=1)] = None
    """Most tokens in a batch of a prefill instance; default: max_num_batched_tokens."""
    kv_connector: Literal["beside", "inside"] | None = None
    """Whether KV moves beside the steps, or inside the steps, which wait for it; default: the
    engine's."""
    first_token: Literal["decode", "prefill"] = "decode"
    """Which side shows the first token: the decode side when it has the KV (vLLM, SGLang, Dynamo),
    or the prefill side (DistServe's evaluation)."""
    waiting_block_share: Annotated[float | None, Field(gt=0, le=1)] = None
    """A decode instance takes no more KV while requests that do not decode yet have this share of
    its blocks (DistServe: 0.05); default: it takes what fits."""
    prefill_choice: Literal["router", "ttft"] = "router"
    """Who chooses the prefill instance: router, or the smallest estimated TTFT (MoonCake), cached
    prefixes counted in."""
    early_rejection: bool = False
    """Turn a request away on arrival if its estimated TTFT or the next step of the decode instance
    would miss its target; needs prefill_choice = 'ttft'."""
    prefill_autoscale: ThresholdSettings | None = None
    """Prefill instances come and go with the load; default: they stay."""
    decode_autoscale: ThresholdSettings | None = None
    """Decode instances come and go with the load; default: they stay."""

    def build(self, cluster: Cluster) -> Deployment:
        """Place both pools and connect them.

        Raises
        ------
        ConfigError
            If they do not fit, or settings do not go together.
        """
        self._check_together()
        shape = self._shape(cluster)
        self._check_conductor(cluster, shape)
        connector = self.connector(cluster)
        cluster.moves_kv = connector == "beside"
        shapes = {"prefill": self._prefill_shape(cluster, shape), "decode": shape}
        counts = pool_sizes(cluster, shapes, self.prefill_instances, self.decode_instances)
        if self.placement == "inter-node":
            prefill, decode = place_apart(cluster, shapes, *counts)
        else:
            prefill, decode = place_together(cluster, shapes, *counts)
        for instance in decode:
            self.paths(cluster, prefill[0], instance)  # what is refused is refused before the run
        handover = self._handover(cluster, decode, inside=connector == "inside")
        gateway = self._gateway(cluster, prefill, handover)
        if self.prefill_autoscale is not None:
            scale_by_load(
                self.prefill_autoscale,
                cluster,
                shapes["prefill"],
                "prefill",
                gateway,
                lambda: len(gateway.pending),
            )
        if self.decode_autoscale is not None:
            scale_by_load(
                self.decode_autoscale, cluster, shape, "decode", handover, handover.num_coming
            )
        return Deployment(gateway)

    def _check_together(self) -> None:
        """Refuse settings that do not go together.

        Raises
        ------
        ConfigError
            If pools that share nodes are to be scaled, or a pipeline or several data-parallel ranks
            are to send by layers.
        """
        if self.placement == "intra-node" and (self.prefill_autoscale or self.decode_autoscale):
            raise ConfigError(
                self.shape().key("placement"),
                self.placement,
                "pools that share nodes cannot be scaled one by one",
                'Use placement = "inter-node".',
            )
        if self.transfer == "layerwise" and self.pp_size > 1:
            raise ConfigError(
                self.shape().key("transfer"),
                self.transfer,
                "is not there for pipelines: their stages prefill at different times",
                'Use pp_size = 1, or transfer = "after-prefill".',
            )
        if self.transfer == "layerwise" and self._most_ranks > 1:
            raise ConfigError(
                self.shape().key("transfer"),
                self.transfer,
                "is not there for several data-parallel ranks, which prefill at the same time",
                'Use dp_size = 1, or transfer = "after-prefill".',
            )

    @property
    def _most_ranks(self) -> int:
        """Data-parallel ranks of the instances that have the most."""
        return max(self.dp_size, self.prefill_dp_size or 1)

    def _shape(self, cluster: Cluster) -> InstanceShape:
        """Return what instances are made of: their scheduler is the engine's.

        Prefills come whole where transfers follow them layer by layer, and where a conductor
        reckons with one batch at a time.
        """
        engine = cluster.environment.engine
        scheduler = scheduler_of(engine)
        whole = self.transfer == "layerwise" or self.prefill_choice == "ttft"
        if whole or not SCHEDULERS[scheduler].splits_prompts:
            return self.shape()
        return self.shape(scheduler, self.budget(engine))

    def _handover(
        self, cluster: Cluster, decode: list[InstanceLike], *, inside: bool
    ) -> KvHandover:
        """Return what moves requests to the decode instances, inside their steps or beside."""

        def finished(request: Request) -> None:
            cluster.on_finish(request)

        def paths(source: InstanceLike, destination: InstanceLike) -> tuple[Path, ...]:
            return self.paths(cluster, source, destination)

        def reaches(source: InstanceLike, destination: InstanceLike) -> bool:
            return self._work_together(cluster, source, destination)

        env, network, model = cluster.env, cluster.network, cluster.environment.model
        engine = cluster.environment.engine
        if not inside:
            return KvHandover(
                env,
                network,
                decode,
                router=LeastLoaded,
                paths=paths,
                reaches=reaches,
                model=model,
                on_finish=finished,
                waiting_block_share=self.waiting_block_share,
                handover_s=on_grid(engine.handover_s),
                redoes_last_token=self.redoes_last_token(engine),
            )
        return StepConnector(
            env,
            network,
            decode,
            router=LeastLoaded,
            paths=paths,
            model=model,
            on_finish=finished,
            rates=self.rates(cluster),
            handover_s=on_grid(engine.handover_s),
        )

    def _gateway(
        self, cluster: Cluster, prefill: list[InstanceLike], handover: KvHandover
    ) -> PrefillGateway:
        """Return what stands in front of the prefill instances."""

        def finished(request: Request) -> None:
            cluster.on_finish(request)

        num_layers = cluster.environment.model.spec.num_layers
        common: dict[str, Any] = {
            "handover": handover,
            "follow_layers": num_layers if self.transfer == "layerwise" else None,
            "shows_first_token": self.first_token == "prefill",
        }
        if self.prefill_choice == "ttft":
            targets = cluster.environment.slo if self.early_rejection else None
            return Conductor(cluster.env, prefill, finished, targets=targets, **common)
        return PrefillGateway(
            cluster.env,
            prefill,
            self.make_router(),
            finished,
            status_interval_s=on_grid(self.status_interval_s),
            pending=self.make_queue(),
            **common,
        )

    def connector(self, cluster: Cluster) -> str:
        """Return how KV moves, by the engine or by the strategy's own word.

        Raises
        ------
        ConfigError
            If a setting has no meaning for a connector inside the steps.
        """
        engine = cluster.environment.engine
        connector = self.kv_connector or engine.kv_connector
        if connector == "beside":
            return connector
        for key, value, default in (
            ("pp_size", self.pp_size, 1),
            ("dp_size", self.dp_size, 1),
            ("prefill_tp_size", self.prefill_tp_size or self.tp_size, self.tp_size),
            ("prefill_dp_size", self.prefill_dp_size or 1, 1),
            ("transfer", self.transfer, "after-prefill"),
            ("pool", self.pool or "none", "none"),
            ("waiting_block_share", self.waiting_block_share, None),
        ):
            if value != default:
                rule = "does not go with a KV connector inside the steps, which moves whole prompts"
                remedy = 'Leave it out, or use kv_connector = "beside".'
                raise ConfigError(self.shape().key(key), value, rule, remedy)
        if engine.kv_between_steps and engine.kv_get_bytes_per_s is None:
            raise ConfigError(
                "engine.kv_get_bytes_per_s",
                None,
                "engine.kv_between_steps needs the rate at which KV leaves a prefill instance",
                "Give it, or set kv_between_steps = false.",
            )
        return connector

    def redoes_last_token(self, engine: EngineProfile) -> bool:
        """Whether users wait for the decode side to compute the last token of a prompt again.

        Left out with pipelines and data-parallel ranks, whose batches have no step of their own to
        go by.
        """
        beside = (self.kv_connector or engine.kv_connector) == "beside"
        decodes_alone = self.first_token == "decode" and self.pp_size == self.dp_size == 1
        return engine.redoes_last_token and beside and decodes_alone

    def rates(self, cluster: Cluster) -> ConnectorRates:
        """Return how fast KV passes a connector inside the steps."""
        engine = cluster.environment.engine
        put, get = (
            inf if rate is None else self.tp_size * rate
            for rate in (engine.kv_put_bytes_per_s, engine.kv_get_bytes_per_s)
        )
        buffer_bytes = self.tp_size * (engine.kv_buffer_bytes or inf)
        return ConnectorRates(put, get, engine.kv_poll_s, buffer_bytes, engine.kv_between_steps)

    def _check_conductor(self, cluster: Cluster, shape: InstanceShape) -> None:
        """Refuse what the estimates cannot do, and settings without effect beside them."""
        slo = cluster.environment.slo.strictest()
        if self.prefill_choice == "router":
            if self.early_rejection:
                raise ConfigError(
                    shape.key("early_rejection"),
                    True,
                    "needs an estimate of the TTFT",
                    'Use prefill_choice = "ttft".',
                )
            return
        if self.early_rejection and slo.ttft_s is None and slo.tpot_s is None:
            raise ConfigError(
                shape.key("early_rejection"),
                True,
                "there is no target that could be missed",
                "Set slo.ttft_s or slo.tpot_s.",
            )
        for key, value, default in (
            ("router", self.router, "least-loaded"),
            ("status_interval_s", self.status_interval_s, 0.0),
            ("pp_size", self.pp_size, 1),
            ("dp_size", self.dp_size, 1),
            ("prefill_dp_size", self.prefill_dp_size or 1, 1),
            ("queue", self.queue, "first-come"),
        ):
            if value != default:
                raise ConfigError(
                    shape.key(key),
                    value,
                    'does not go with prefill_choice = "ttft", which keeps books of its own, of '
                    "one batch at a time in order of arrival",
                    'Leave it out, or use prefill_choice = "router".',
                )

    def paths(
        self, cluster: Cluster, source: InstanceLike, destination: InstanceLike
    ) -> tuple[Path, ...]:
        """Links that the KV takes, copy by copy; none if the two do not work together."""
        topology = cluster.topology
        here, there = cluster.where(source).home, cluster.where(destination).home
        if not self._work_together(cluster, source, destination):
            return ()
        apart = self.placement != "intra-node" and self.connector(cluster) == "beside"
        staging = self.pool or ("decode-node" if apart else "none")
        if staging == "none":
            return (topology.between(here, there),)
        near = there
        if staging == "remote":
            nodes = range(cluster.environment.cluster.num_nodes)
            others = [node for node in nodes if node not in (here.node, there.node)]
            if not others:
                raise ConfigError(
                    self.shape().key("pool"),
                    self.pool,
                    "needs a node beside those of the prefill and the decode instance, "
                    f"and the cluster has {len(nodes)}",
                    'Add nodes, or use pool = "decode-node".',
                )
            choice = source.instance_id + destination.instance_id
            near = cluster.gpus_on(others[choice % len(others)], choice)
        return (topology.to_host(here, near), topology.from_host(near, there))

    def _work_together(
        self, cluster: Cluster, source: InstanceLike, destination: InstanceLike
    ) -> bool:
        """Whether KV goes from one instance to the other: from everywhere, or inside nodes."""
        if self.placement != "intra-node":
            return True
        return cluster.where(source).home.node == cluster.where(destination).home.node

    def _prefill_shape(self, cluster: Cluster, shape: InstanceShape) -> InstanceShape:
        """Return `shape` with the layout and the limits of the context stage.

        Replicas and skew go with experts that are spread over GPUs.
        """
        tokens = self.prefill_max_num_batched_tokens
        longest = cluster.environment.model.max_model_len
        splits = SCHEDULERS[shape.scheduler].splits_prompts
        if tokens is not None and tokens < longest and not splits:
            raise ConfigError(
                shape.key("prefill_max_num_batched_tokens"),
                tokens,
                f"a prompt of max_model_len = {longest} would not fit in one prefill step",
                "Raise it, or lower engine.max_model_len.",
            )
        ep_size = self.prefill_ep_size or shape.ep_size
        spread = ep_size > 1
        return replace(
            shape,
            tp_size=self.prefill_tp_size or shape.tp_size,
            dp_size=self.prefill_dp_size or shape.dp_size,
            ep_size=ep_size,
            all_to_all=self.prefill_all_to_all or shape.all_to_all,
            redundant_experts=shape.redundant_experts if spread else 0,
            expert_skew=shape.expert_skew if spread else 1.0,
            max_num_seqs=self.prefill_max_num_seqs or shape.max_num_seqs,
            max_num_batched_tokens=tokens or shape.max_num_batched_tokens,
        )
