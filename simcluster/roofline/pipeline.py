"""Pipeline parallelism: stages that hold a share of the layers each, and batches that pass them.

A stage works on one batch at a time, in the order in which they were pushed, and hands its
activations to the next one. So a batch begins at a stage when it has arrived there and the batch
before it has left: a recurrence of sums and maxima, exact on the time grid.

Not modelled: contention for the links between stages, and time that sending or receiving takes away
from computing (both run beside it).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from simcluster.catalog.specs import EngineProfile, GPUSpec, LinkSpec
from simcluster.config import ModelConfig
from simcluster.errors import InvariantError
from simcluster.roofline.answers import KernelAnswers
from simcluster.roofline.base import StepShape, StepTime
from simcluster.roofline.layout import Layout
from simcluster.roofline.memory import check_pp
from simcluster.roofline.operators import ACTIVATION_BYTES
from simcluster.roofline.steptime import RooflineStepTime
from simcluster.units import on_grid


def pipeline_stages(
    model: ModelConfig,
    gpu: GPUSpec,
    fabric: LinkSpec,
    engine: EngineProfile,
    tp_size: int,
    pp_size: int,
    layout: Layout | None = None,
    measured: KernelAnswers | None = None,
) -> tuple[RooflineStepTime, ...]:
    """Return the step times of each stage of a pipeline; of a whole instance with `pp_size` 1.

    Parameters
    ----------
    model : ModelConfig
        What is served, in which precision.
    gpu : GPUSpec
        The GPU of every rank.
    fabric : LinkSpec
        Link between the ranks of a stage.
    engine : EngineProfile
        Host work, issue costs, graph capture.
    tp_size : int
        Ranks of each stage.
    pp_size : int
        How many stages.
    layout : Layout, optional
        How each stage is laid out; by default over `tp_size` GPUs alone.
    measured : KernelAnswers, optional
        Measured times of kernels in the place of the law's.

    Raises
    ------
    ConfigError
        If the heads cannot be split over `tp_size` ranks, or the layers over `pp_size` stages.
    """
    check_pp(model, pp_size, key="pp_size")
    return tuple(
        RooflineStepTime(
            model, gpu, fabric, engine, tp_size, pp_size, stage, layout, measured=measured
        )
        for stage in range(pp_size)
    )


def handover_s(model: ModelConfig, link: LinkSpec, num_tokens: int) -> float:
    """Time to hand the activations of `num_tokens` tokens to the next stage (s, on the grid).

    Notes
    -----
    The hidden state of every token in 16 bits goes over one port of `link`, whatever the
    tensor-parallel degree: one message, latency plus bytes / (bandwidth x efficiency). vLLM
    sends the residual stream beside it (twice the bytes), each rank its share over its own port,
    and gathers the shares behind the link.
    """
    num_bytes = num_tokens * model.spec.hidden_size * ACTIVATION_BYTES
    return on_grid(link.latency_s + num_bytes / (link.bandwidth * link.efficiency))


class Pipeline:
    """The stages of one instance as queues in tandem, one batch at a time in each.

    Host work is left to the caller, since it keeps a batch waiting but occupies no stage: push at
    the end of the work before the step, and add that after it to the answer
    (`RooflineStepTime.host_s` of the first and of the last stage).

    Parameters
    ----------
    stages : sequence of StepTime
        Step times of each stage, >= 1; only their `gpu_s` is used.
    model : ModelConfig
        Whose activations are handed over.
    links : sequence of LinkSpec
        From each stage to the next, one less than stages.

    Attributes
    ----------
    free_s : list of float
        When each stage is done with all that was pushed (s).
    busy_s : list of float
        Time each stage has worked, all batches (s).
    starts, ends : list of float
        When the batch pushed last begins and ends at each stage (s); new lists for each batch,
        which the caller may keep.
    """

    def __init__(
        self, stages: Sequence[StepTime], model: ModelConfig, links: Sequence[LinkSpec]
    ) -> None:
        if not stages or len(links) != len(stages) - 1:
            raise InvariantError(f"{len(stages)} stages and {len(links)} links between them")
        self._stages, self._model, self._links = tuple(stages), model, tuple(links)
        self.free_s = [0.0] * len(stages)
        self.busy_s = [0.0] * len(stages)
        self.starts: list[float] = []
        self.ends: list[float] = []
        self._first_start_s = math.inf

    def push(self, arrival_s: float, shape: StepShape) -> float:
        """Send a batch through all stages, behind those pushed before.

        Parameters
        ----------
        arrival_s : float
            When it can begin at the first stage (s, on the grid). Batches never overtake: one that
            arrives before its predecessor waits for it.
        shape : StepShape
            What it computes.

        Returns
        -------
        float
            When the last stage ends (s); what happens later cannot change it.
        """
        starts: list[float] = []
        ends: list[float] = []
        for stage, (duration_s, handed_s) in enumerate(self._times(shape)):
            start_s = max(arrival_s, self.free_s[stage])
            end_s = start_s + duration_s
            self.free_s[stage] = end_s
            self.busy_s[stage] += duration_s
            starts.append(start_s)
            ends.append(end_s)
            arrival_s = end_s + handed_s
        self.starts, self.ends = starts, ends
        self._first_start_s = min(self._first_start_s, starts[0])
        return ends[-1]

    def latency_s(self, shape: StepShape) -> float:
        """Time of a batch in the empty pipeline, handovers included, without host work (s)."""
        return sum([duration_s + handed_s for duration_s, handed_s in self._times(shape)], 0.0)

    def bubble_share(self) -> float:
        """Share of the stages' time without work, from the first start to the last end.

        Returns
        -------
        float
            0 to 1; NaN if there was no work at all. One batch alone leaves 1 - 1 / stages if they
            are equal and handovers take no time.
        """
        elapsed_s = self.free_s[-1] - self._first_start_s
        if not elapsed_s > 0.0:
            return math.nan
        return 1.0 - sum(self.busy_s, 0.0) / (len(self._stages) * elapsed_s)

    def _times(self, shape: StepShape) -> list[tuple[float, float]]:
        """For each stage the time of the batch in it and on the link behind it (s)."""
        tokens = shape.num_tokens
        handed = [handover_s(self._model, link, tokens) for link in self._links]
        return [
            (stage.gpu_s(shape), handed_s)
            for stage, handed_s in zip(self._stages, [*handed, 0.0], strict=True)
        ]
