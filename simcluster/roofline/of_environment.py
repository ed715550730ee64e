"""Step times of the roofline model for the machines of a scenario."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Final

from simcluster.catalog.specs import EngineProfile, GPUSpec, LinkSpec
from simcluster.config import ClusterConfig, Environment, ModelConfig
from simcluster.roofline.answers import KernelAnswers
from simcluster.roofline.collectives import ExpertLinks, library_terms
from simcluster.roofline.layout import Layout
from simcluster.roofline.measured import measured_kernels
from simcluster.roofline.memory import check_pp
from simcluster.roofline.pipeline import pipeline_stages
from simcluster.roofline.steptime import RooflineStepTime


def roofline_step_time(
    environment: Environment,
    tp_size: int,
    wire_share: float = 1.0,
    layout: Layout | None = None,
) -> RooflineStepTime:
    """Step times of the roofline model on the cluster's GPU and fabric.

    `wire_share` is the share of the fabric that the collectives get; `layout` that of the instance,
    by default over `tp_size` GPUs alone.
    """
    cluster, layout = environment.cluster, layout or Layout(tp_size)
    fabric = group_fabric(cluster, tp_size)
    if wire_share < 1.0:
        fabric = replace(fabric, bandwidth=fabric.bandwidth * wire_share)
    return _roofline(
        environment.model,
        cluster.gpu,
        fabric,
        environment.engine,
        tp_size,
        layout,
        expert_links(cluster, layout) if layout.dp_size > 1 else None,
        measured_kernels(environment, tp_size),
    )


@lru_cache(maxsize=256)
def _roofline(
    model: ModelConfig,
    gpu: GPUSpec,
    fabric: LinkSpec,
    engine: EngineProfile,
    tp_size: int,
    layout: Layout,
    links: ExpertLinks | None,
    measured: KernelAnswers | None,
) -> RooflineStepTime:
    """Return step times that the runs of a process share: what one has computed others look up."""
    return RooflineStepTime(
        model,
        gpu,
        fabric,
        engine,
        tp_size,
        layout=layout,
        expert_links=links,
        measured=measured,
    )


def expert_links(cluster: ClusterConfig, layout: Layout) -> ExpertLinks:
    """Links between the GPUs of an instance whose data-parallel ranks share experts.

    Inside a node those of the fabric, PCIe where the fabric does not join them all; between nodes
    every GPU has its share of the NICs.
    """
    per_node = min(layout.num_gpus, cluster.gpus_per_node)
    domain = cluster.gpus_per_domain or per_node
    crosses = layout.num_gpus > cluster.gpus_per_node
    return ExpertLinks(
        inside=cluster.fabric if per_node <= domain else cluster.pcie,
        group=group_fabric(cluster, layout.num_gpus),
        between=cluster.network if crosses else None,
        gpus_per_node=per_node,
        nics_per_gpu=cluster.num_nics / cluster.gpus_per_node,
    )


def group_fabric(cluster: ClusterConfig, tp_size: int) -> LinkSpec:
    """Link over which a tensor-parallel group of `tp_size` GPUs talks.

    The fabric; PCIe if the group is larger than the domain that the fabric joins. A group larger
    than a node passes the network: its rings go through all NICs of a node side by side, each no
    faster than the fabric, and every round of an all-reduce waits for the network's latency once
    per node in both of its halves.
    """
    inside = cluster.fabric
    if cluster.gpus_per_domain is not None and tp_size > cluster.gpus_per_domain:
        inside = cluster.pcie
    if tp_size <= cluster.gpus_per_node or cluster.network is None:
        return inside
    network = cluster.network
    protocols = library_terms(inside, cluster.gpus_per_node)
    latency_s = min(terms.latency_s for terms in protocols)
    reached = inside.bandwidth * max(terms.efficiency for terms in protocols)
    num_nodes = -(-tp_size // cluster.gpus_per_node)
    bandwidth = min(reached, cluster.num_nics * network.bandwidth * network.efficiency)
    return replace(
        network,
        bandwidth=bandwidth,
        efficiency=1.0,
        allreduce_efficiency=1.0,
        allreduce_latency_s=latency_s + 2 * (num_nodes - 1) * network.latency_s,
        allreduce_terms=(),
        own_allreduce_terms=(),
    )


def roofline_stages(
    environment: Environment,
    tp_size: int,
    pp_size: int,
    *,
    key: str,
    layout: Layout | None = None,
) -> tuple[RooflineStepTime, ...]:
    """Step times of the stages of a pipelined instance.

    Parameters
    ----------
    environment : Environment
        Model, machines, engine.
    tp_size, pp_size : int
        GPUs of a stage, and stages.
    key : str
        Scenario key of `pp_size`, for messages.
    layout : Layout, optional
        That of a stage; by default over `tp_size` GPUs alone.
    """
    check_pp(environment.model, pp_size, key=key)
    fabric = group_fabric(environment.cluster, tp_size)
    gpu, engine = environment.cluster.gpu, environment.engine
    measured = measured_kernels(environment, tp_size)
    return _stages(environment.model, gpu, fabric, engine, tp_size, pp_size, layout, measured)


_stages: Final = lru_cache(maxsize=16)(pipeline_stages)
"""Like `_roofline` for the stages of a pipeline."""
