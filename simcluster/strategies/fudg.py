"""FuDG: prefill and decode on different instances, the KV cache moves between them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from simcluster.engine.cluster import Cluster, Deployment, InstanceShape
from simcluster.engine.front_end import Gateway
from simcluster.engine.handover import KvHandover
from simcluster.engine.instance import InstanceLike
from simcluster.engine.link import Path
from simcluster.errors import ConfigError
from simcluster.request import Request, RequestStatus
from simcluster.routing import ROUTERS, LeastLoaded
from simcluster.strategies.base import CommonSettings, count_that_fits
from simcluster.strategies.scaling import ThresholdSettings, scale_by_load


class PrefillGateway(Gateway):
    """The front end of a prefill pool: what has been prefilled is handed over."""

    handover: KvHandover

    def is_drained(self, instance: InstanceLike) -> bool:
        """Whether it has prefilled everything, and all the KV has left."""
        return super().is_drained(instance) and not self.handover.holds(instance)

    def prefilled(self, instance: InstanceLike, request: Request) -> None:
        """Send the request on, unless its one token ended it."""
        if request.status is RequestStatus.TRANSFERRING:
            self.handover.hand_over(instance, request)


@dataclass(frozen=True, slots=True, kw_only=True)
class FuDG(CommonSettings):
    """A prefill pool and a decode pool.

    With ``placement = "intra-node"`` both roles stand on every node and the KV cache moves over the
    node's fabric (DistServe, PAPERS 4.3); with ``"inter-node"`` they stand on different nodes where
    they can, and the KV cache passes through the memory of the decode side's host: prefill GPU to
    pool over the network, pool to decode GPU over PCIe (MoonCake as EcoServe ran it, PAPERS 4.4).

    Not as those systems: blocks on the decode side are reserved before the first byte moves, a
    decode instance that runs out recomputes instead of swapping to the CPU, the KV cache moves
    after the last layer and not layer by layer, and no request is turned away early.
    """

    kind: Literal["fudg"] = "fudg"
    prefill_instances: Annotated[
        int | None, Field(ge=1, description="Prefill instances; default: half of what fits.")
    ] = None
    decode_instances: Annotated[
        int | None, Field(ge=1, description="Decode instances; default: the rest of what fits.")
    ] = None
    placement: Annotated[
        Literal["intra-node", "inter-node"],
        Field(description="Whether the two pools share nodes, and so which links the KV takes."),
    ] = "intra-node"
    router: Annotated[
        Literal["round-robin", "least-loaded", "shared-queue"],
        Field(description="Which prefill instance gets a request."),
    ] = "least-loaded"
    prefill_autoscale: Annotated[
        ThresholdSettings | None,
        Field(description="Prefill instances come and go with the load; default: they stay."),
    ] = None
    decode_autoscale: Annotated[
        ThresholdSettings | None,
        Field(description="Decode instances come and go with the load; default: they stay."),
    ] = None

    def build(self, cluster: Cluster) -> Deployment:
        """Place both pools and connect them.

        Raises
        ------
        ConfigError
            If they do not fit, or pools that share nodes are to be scaled.
        """
        if self.placement == "intra-node" and (self.prefill_autoscale or self.decode_autoscale):
            raise ConfigError(
                self.shape().key("placement"),
                self.placement,
                "pools that share nodes cannot be scaled one by one",
                'Use placement = "inter-node".',
            )
        shape = self.shape()
        num_prefill, num_decode = self._counts(cluster, shape)
        prefill, decode = self._place(cluster, shape, num_prefill, num_decode)

        def finished(request: Request) -> None:
            cluster.on_finish(request)

        def paths(source: InstanceLike, destination: InstanceLike) -> tuple[Path, ...]:
            same_node = cluster.node_of(source) == cluster.node_of(destination)
            if self.placement == "intra-node":
                return (cluster.fabric_path(source, destination),) if same_node else ()
            pool = cluster.node_of(destination)
            return (cluster.to_host_path(source, pool), cluster.from_host_path(destination))

        gateway = PrefillGateway(cluster.env, prefill, ROUTERS[self.router](), finished)
        gateway.handover = KvHandover(
            cluster.env,
            cluster.network,
            decode,
            router=LeastLoaded,
            paths=paths,
            bytes_per_token=cluster.environment.model.kv_bytes_per_token,
            on_finish=finished,
        )
        if self.prefill_autoscale is not None:
            scale_by_load(
                self.prefill_autoscale,
                cluster,
                shape,
                "prefill",
                gateway,
                lambda: len(gateway.pending),
            )
        if self.decode_autoscale is not None:
            group = gateway.handover
            scale_by_load(self.decode_autoscale, cluster, shape, "decode", group, group.num_coming)
        return Deployment(gateway)

    def _counts(self, cluster: Cluster, shape: InstanceShape) -> tuple[int, int]:
        """Return how many prefill and decode instances to place."""
        most = count_that_fits(cluster, shape, None)
        prefill, decode = self.prefill_instances, self.decode_instances
        if prefill is None:
            prefill = max(1, most - decode) if decode is not None else max(1, most // 2)
        if decode is None:
            decode = max(1, most - prefill)
        if prefill + decode > most:
            wanted = f"{prefill} prefill + {decode} decode"
            raise ConfigError(
                shape.key("prefill_instances"),
                prefill,
                f"{wanted} instances of {shape.num_gpus} GPUs do not fit: the cluster holds {most}",
                f"Use at most {most} together (two are the least), or more nodes.",
            )
        return prefill, decode

    def _place(
        self, cluster: Cluster, shape: InstanceShape, num_prefill: int, num_decode: int
    ) -> tuple[list[InstanceLike], list[InstanceLike]]:
        if self.placement == "inter-node":
            prefill = [cluster.place(shape, "prefill") for _ in range(num_prefill)]
            # Decode instances fill the nodes from the other end: on nodes of their own if possible.
            decode = []
            for _ in range(num_decode):
                room = cluster.capacity(shape)
                node = max(n for n, left in enumerate(room) if left)
                decode.append(cluster.place(shape, "decode", node))
            return prefill, decode
        pools: dict[str, list[InstanceLike]] = {"prefill": [], "decode": []}
        left = {"prefill": num_prefill, "decode": num_decode}
        room = cluster.capacity(shape)
        nodes = [node for node, count in enumerate(room) if count >= 2]
        used = nodes[: min(num_prefill, num_decode)]
        if not used:
            raise ConfigError(
                shape.key("placement"),
                self.placement,
                f"no node holds two instances of {shape.num_gpus} GPUs, one of each role",
                'Use a smaller tp_size, or placement = "inter-node".',
            )
        # Each role is dealt out evenly over the nodes, so that every prefill finds a decode.
        while left["prefill"] or left["decode"]:
            for node in used:
                for pool in ("prefill", "decode"):
                    if left[pool] and cluster.capacity(shape)[node]:
                        pools[pool].append(cluster.place(shape, pool, node))
                        left[pool] -= 1
            if not any(cluster.capacity(shape)[node] for node in used) and any(left.values()):
                raise ConfigError(
                    shape.key("prefill_instances"),
                    num_prefill,
                    f"{num_prefill} prefill and {num_decode} decode instances cannot share "
                    f"{len(used)} nodes so that every node has both roles",
                    "Choose numbers closer to each other, or another tp_size.",
                )
        return pools["prefill"], pools["decode"]
