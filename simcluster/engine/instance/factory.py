"""Instances from shapes: schedulers, KV pools, step times, pipelines, put together."""

from __future__ import annotations

import itertools
from itertools import pairwise
from typing import NamedTuple, cast

from simcluster.catalog.specs import LinkSpec
from simcluster.config import Environment, SchedulerConfig
from simcluster.engine.clock import Clock
from simcluster.engine.instance import Instance, InstanceLike
from simcluster.engine.instance.data_parallel import DataParallelInstance
from simcluster.engine.instance.dispatcher import RankGroup
from simcluster.engine.instance.lock_step import MAX_LOCK_STEPS, LockStep
from simcluster.engine.instance.pipeline import PipelineStages
from simcluster.engine.instance.pipelined import PipelinedInstance
from simcluster.engine.links.link import Link, LinkNetwork
from simcluster.engine.links.wires import SHARES, SharedWires
from simcluster.engine.placement import GpuGroup
from simcluster.engine.recorder import Recorder
from simcluster.engine.shape import (
    HostMemory,
    InstanceShape,
    block_layout,
    num_kv_blocks,
    scheduler_limits,
)
from simcluster.errors import ConfigError
from simcluster.kvcache import BlockLayout, BlockPool, PrefixPool
from simcluster.roofline import RankTime, StageTime, StepTime
from simcluster.roofline.layout import Layout
from simcluster.roofline.operators import ACTIVATION_BYTES
from simcluster.roofline.sources import StepTimeSource, beyond_tp, times_of
from simcluster.sched import QUEUES, SCHEDULERS


class _Plan(NamedTuple):
    """What follows of a shape and its environment alone."""

    num_blocks: int
    layout: BlockLayout
    limits: SchedulerConfig
    host: HostMemory | None


class InstanceFactory:
    """Makes the instances of one model on one GPU type; equal ones share their step times.

    Parameters
    ----------
    env : Clock
        The run.
    environment : Environment
        Model, machines, engine.
    recorder : Recorder
        Where the instances write.
    resolution : str
        ``"span"``, ``"step"`` or ``"kernel"``.
    step_times : StepTimeSource
        Makes the step-time model of an instance.
    has_prefixes : bool
        Whether requests say which blocks they have in common; where not, none are looked for.
    lane_numbers : iterator of int
        Numbers of all lanes of the run: their order in ties.
    """

    def __init__(
        self,
        env: Clock,
        environment: Environment,
        recorder: Recorder,
        *,
        resolution: str,
        step_times: StepTimeSource,
        has_prefixes: bool,
        lane_numbers: itertools.count[int],
    ) -> None:
        self._env = env
        self._environment = environment
        self._recorder = recorder
        self._resolution = resolution
        self._source = step_times
        self._has_prefixes = has_prefixes
        self._lane_numbers = lane_numbers
        self._step_times: dict[Layout, StepTime] = {}
        self._step_times_at: dict[tuple[Layout, int], StepTime] = {}  # and share of wires
        self._stages: dict[tuple[Layout, int], tuple[StageTime, ...]] = {}
        self._plans: dict[InstanceShape, _Plan] = {}

    def of(self, environment: Environment) -> InstanceFactory:
        """Return a factory of another model or GPU type in the same run."""
        return InstanceFactory(
            self._env,
            environment,
            self._recorder,
            resolution=self._resolution,
            step_times=self._source,
            has_prefixes=self._has_prefixes,
            lane_numbers=self._lane_numbers,
        )

    def make(
        self, number: int, shape: InstanceShape, role: str, groups: tuple[GpuGroup, ...]
    ) -> InstanceLike:
        """Return instance `number` of the run, of `shape`, on the GPUs of `groups`.

        Raises
        ------
        ConfigError
            If the model or one longest sequence does not fit its GPUs, or its limits contradict one
            another.
        """
        num_blocks = self._plan(shape).num_blocks
        if shape.dp_size > 1:
            return self._data_parallel(number, shape, role, groups)
        if shape.pp_size == 1:
            step_time = self._times_of(shape)
            ranks = self._ranks(number, shape.tp_size, 0) if self._by_kernel else None
            return self._lane(number, shape, role, num_blocks, step_time, ranks=ranks)
        pipeline = self._pipeline(number, shape, groups)
        lanes = [
            self._lane(
                number,
                shape,
                role,
                num_blocks // shape.pp_size,
                pipeline.first,
                lane=k,
                pipeline=pipeline,
            )
            for k in range(shape.pp_size)
        ]
        return PipelinedInstance(lanes, pipeline.prefill_s)

    def _data_parallel(
        self, number: int, shape: InstanceShape, role: str, groups: tuple[GpuGroup, ...]
    ) -> DataParallelInstance:
        """Return an instance of several data-parallel ranks."""
        if shape.pp_size > 1:
            rule = "data-parallel ranks of a pipeline are not simulated"
            raise ConfigError(shape.key("dp_size"), shape.dp_size, rule, "Use pp_size = 1.")
        if len({group.node for group in groups}) > 1 and self._environment.cluster.network is None:
            rule = "the ranks do not fit on a node, and there is no network between nodes"
            remedy = "Use fewer GPUs per instance, or name cluster.network."
            raise ConfigError(shape.key("dp_size"), shape.dp_size, rule, remedy)
        step_time = cast(RankTime, self._times_of(shape))
        most_steps = MAX_LOCK_STEPS if self._resolution == "span" else 1
        group = LockStep(self._env, step_time, shape.dp_size, most_steps, by_kernel=self._by_kernel)
        tp_size = shape.tp_size
        lanes = [
            self._lane(
                number,
                shape,
                role,
                self._plan(shape).num_blocks,
                step_time,
                lane=rank,
                ranks=self._ranks(number, tp_size, rank * tp_size) if self._by_kernel else None,
                lock_step=(group, step_time),
            )
            for rank in range(shape.dp_size)
        ]
        return DataParallelInstance(lanes, step_time.prefill_s)

    def _times_of(self, shape: InstanceShape) -> StepTime:
        """Step times of an instance of `shape` without a pipeline."""
        known = self._step_times.get(shape.layout)
        if known is None:
            known = times_of(
                self._source, self._environment, shape.layout, key=shape.key("ep_size")
            )
            self._step_times[shape.layout] = known
        return known

    def _plan(self, shape: InstanceShape) -> _Plan:
        """What all instances of `shape` have in common; reckoned once, for there may be many."""
        known = self._plans.get(shape)
        if known is None:
            environment = self._environment
            known = self._plans[shape] = _Plan(
                num_kv_blocks(environment, shape),
                block_layout(environment, shape),
                scheduler_limits(environment, shape),
                HostMemory.of(environment, shape) if shape.swap_bytes else None,
            )
        return known

    @property
    def _by_kernel(self) -> bool:
        return self._resolution == "kernel" or self._recorder.kernels is not None

    def _ranks(self, number: int, tp_size: int, first_rank: int) -> RankGroup:
        depth, log = self._environment.engine.queue_depth, self._recorder.kernels
        return RankGroup(self._env, tp_size, depth, log, number, first_rank=first_rank)

    def _pipeline(
        self, number: int, shape: InstanceShape, groups: tuple[GpuGroup, ...]
    ) -> PipelineStages:
        tp_size, pp_size = shape.tp_size, shape.pp_size
        stages = self._stages_of(shape)
        links = [
            self._between_stages(shape, a.node, b.node)
            for a, b in pairwise(groups[:: len(groups) // pp_size])
        ]
        ranks = None
        if self._by_kernel:
            ranks = [self._ranks(number, tp_size, k * tp_size) for k in range(pp_size)]
        ahead = self._resolution == "span"
        return PipelineStages(self._env, stages, self._environment.model, links, ranks, ahead=ahead)

    def _stages_of(self, shape: InstanceShape) -> tuple[StageTime, ...]:
        """Step times of the stages of a pipelined instance of `shape`."""
        tp_size, pp_size = shape.tp_size, shape.pp_size
        stages = self._stages.get((shape.layout, pp_size))
        if stages is None:
            key = shape.key("pp_size")
            if not shape.layout.is_plain:
                self._times_of(shape)  # a source that does not know it is refused
            stages = self._source.stages(
                self._environment, tp_size, pp_size, key=key, **beyond_tp(shape.layout)
            )
            if stages is None:
                rule = "the source of step times knows no stages of a pipeline"
                remedy = 'Use pp_size = 1, or engine.step_times = "roofline".'
                raise ConfigError(key, pp_size, rule, remedy)
            self._stages[(shape.layout, pp_size)] = stages
        return stages

    def _between_stages(self, shape: InstanceShape, source: int, destination: int) -> LinkSpec:
        """Link that hands activations from a stage on node `source` to one on `destination`."""
        cluster = self._environment.cluster
        if source == destination:
            return cluster.fabric
        if cluster.network is None:
            rule = "the pipeline is larger than a node, and there is no network between nodes"
            remedy = "Use fewer GPUs per instance, or name cluster.network."
            raise ConfigError(shape.key("pp_size"), shape.pp_size, rule, remedy)
        return cluster.network

    def _lane(
        self,
        number: int,
        shape: InstanceShape,
        role: str,
        num_blocks: int,
        step_time: StepTime,
        *,
        ranks: RankGroup | None = None,
        lane: int = 0,
        pipeline: PipelineStages | None = None,
        lock_step: tuple[LockStep, RankTime] | None = None,
    ) -> Instance:
        environment, engine = self._environment, self._environment.engine
        prefix_caching = shape.prefix_caching
        if prefix_caching is None:
            prefix_caching = engine.prefix_caching
        plan = self._plan(shape)
        layout, host = plan.layout, plan.host
        # Blocks of recurrent layers hold no tokens that others could begin with.
        reuses = prefix_caching and self._has_prefixes and layout.reuses_prefixes
        pool_type = PrefixPool if reuses else BlockPool
        scheduler = SCHEDULERS[shape.scheduler](
            plan.limits,
            pool_type(num_blocks, engine.block_size, engine.watermark, layout),
            prefill_only=role == "prefill",
            host=None
            if host is None
            else BlockPool(host.num_blocks, engine.block_size, 0.0, layout),
            queue=QUEUES[shape.queue](),
            reach=environment.model.spec.reach,
            plans_ahead=engine.plans_ahead and shape.pp_size == 1,
        )
        return Instance(
            self._env,
            number,
            scheduler,
            step_time,
            self._recorder,
            resolution=self._resolution,
            ranks=ranks,
            reach=environment.model.spec.reach,
            lane=lane,
            order=next(self._lane_numbers),
            pipeline=pipeline,
            lock_step=lock_step,
            copy_s=None if host is None else host.copy_s,
        )

    def share_wires(
        self,
        instance: Instance,
        shape: InstanceShape,
        num_gpus: int,
        wires: tuple[Link, ...],
        network: LinkNetwork,
    ) -> None:
        """Let the collectives of `instance` meet the KV transfers on `wires` of its GPUs.

        Parameters
        ----------
        instance : Instance
            Without a pipeline and of one data-parallel rank.
        shape : InstanceShape
            Its parallelism.
        num_gpus : int
            GPUs of it on the node with these wires.
        wires, network
            Of these GPUs, and the KV-transfer links.
        """
        if not wires:
            return
        step_time = instance.step_time

        def step_time_at(share: int) -> StepTime:
            return step_time if share == SHARES else self._beside_transfers(layout, share)

        layout = shape.layout
        if layout.is_plain:
            layout = Layout(num_gpus)
        self._beside_transfers(layout, SHARES // 2)  # a source knows all shares or none
        spec = self._environment.model.spec
        # Two all-reduces a layer, of which every rank sends 2 (t - 1) / t (see `all_reduce_s`).
        message = spec.hidden_size * ACTIVATION_BYTES
        sent = 2 * spec.num_layers * 2 * (num_gpus - 1) / num_gpus * message
        instance.wires = SharedWires(
            self._env, network, wires, num_gpus * sent, step_time_at, instance.cut_later
        )

    def _beside_transfers(self, layout: Layout, share: int) -> StepTime:
        """Step times where collectives get `share` of the parts of their wires."""
        known = self._step_times_at.get((layout, share))
        if known is None:
            known = self._source.beside_transfers(
                self._environment, layout.tp_size, share / SHARES, **beyond_tp(layout)
            )
            if known is None:
                rule = (
                    "KV transfers and collectives use the same wires here, and this source does "
                    "not know how long a step takes beside transfers"
                )
                remedy = 'Use "roofline", tp_size = 1, or a fabric that is not the GPUs\' PCIe.'
                raise ConfigError("engine.step_times", None, rule, remedy)
            self._step_times_at[(layout, share)] = known
        return known
