"""Kernels of a step in issue order, with their times in ticks; attention is left open."""

from __future__ import annotations

from typing import Final

from simcluster.catalog.layers import Experts
from simcluster.catalog.specs import LinkSpec
from simcluster.config import ModelConfig
from simcluster.roofline.answers import KernelAnswers
from simcluster.roofline.bounded import remember
from simcluster.roofline.collectives import (
    ExpertLinks,
    all_gather_s,
    all_reduce_s,
    all_to_all_s,
)
from simcluster.roofline.dispatch import TickRun
from simcluster.roofline.kernels import KernelTimer
from simcluster.roofline.layout import Layout
from simcluster.roofline.operators import (
    ACTIVATION_BYTES,
    Operator,
    embedding_operators,
    head_operators,
    layer_operators,
    layer_runs,
)
from simcluster.units import TICKS_PER_S

_BEHIND_ALL_REDUCE: Final = ("input_norm", "post_norm")
"""Norms of a layer that follow an all-reduce."""


class StepKernels:
    """Kernels of one instance, or of one stage of its pipeline.

    Parameters
    ----------
    timer : KernelTimer
        Times of kernels.
    model : ModelConfig
        What is served, in which precision.
    fabric : LinkSpec
        Link between the ranks.
    tp_size, pp_size, stage : int
        Ranks, stages, and which of the stages this is, from 0.
    own_allreduce : bool
        See `EngineProfile`.
    fuses_allreduce_up_to : float
        Largest message of an all-reduce that the norm behind it is part of (bytes); 0 for none.
    layout : Layout, optional
        How the instance is laid out; by default over `tp_size` GPUs alone.
    expert_links : ExpertLinks, optional
        Between its data-parallel ranks; needed where there are several.
    measured : KernelAnswers, optional
        Measured times in the place of the law's.
    """

    def __init__(
        self,
        timer: KernelTimer,
        model: ModelConfig,
        fabric: LinkSpec,
        tp_size: int,
        pp_size: int,
        stage: int,
        *,
        own_allreduce: bool,
        fuses_allreduce_up_to: float,
        layout: Layout | None = None,
        expert_links: ExpertLinks | None = None,
        measured: KernelAnswers | None = None,
    ) -> None:
        self._layout = layout or Layout(tp_size)
        self._links = expert_links or ExpertLinks(fabric, fabric)
        self._measured = measured
        self._timer, self._model, self._fabric, self._tp_size = timer, model, fabric, tp_size
        self._own_allreduce = own_allreduce
        message = ACTIVATION_BYTES * model.spec.hidden_size
        self._most_fused = fuses_allreduce_up_to / message if tp_size > 1 else 0.0
        self._is_first, self._is_last = stage == 0, stage == pp_size - 1
        runs = layer_runs(model.spec, pp_size, stage)
        self._layers = list(dict.fromkeys(run.layer for run in runs))
        self._layer_runs = [(self._layers.index(layer), repeat) for layer, repeat in runs]
        mixers = model.spec.mixers
        # A block without a mixer has no attention: any kind will do.
        self._kinds = [0 if x.mixer is None else mixers.index(x.mixer) for x in self._layers]
        self._head_ticks: dict[int, tuple[float, ...]] = {}

    def runs(
        self, num_tokens: int, num_sampled: int, all_tokens: int | None = None
    ) -> list[tuple[list[Operator], TickRun]]:
        """Operators of a step in issue order, and their times.

        Parameters
        ----------
        num_tokens, num_sampled : int
            Tokens that go through the layers, and sequences that sample a token.
        all_tokens : int, optional
            Tokens of all data-parallel ranks; by default this one's.
        """
        model, tp_size = self._model, self._tp_size
        by_layer = []
        for layer, kind in zip(self._layers, self._kinds, strict=True):
            operators = layer_operators(model, layer, tp_size, num_tokens, self._layout, all_tokens)
            if num_tokens <= self._most_fused:
                operators = [op for op in operators if op.name not in _BEHIND_ALL_REDUCE]
            attention = next((i for i, op in enumerate(operators) if op.kind == "attention"), -1)
            experts = next((mlp for mlp in layer.mlps if isinstance(mlp, Experts)), None)
            by_layer.append((operators, self._ticks(operators, experts), attention, kind))
        runs = []
        if self._is_first:
            first = embedding_operators(model, tp_size, num_tokens)
            runs.append((first, TickRun(self._ticks(first), -1, 0, 1)))
        for number, repeat in self._layer_runs:
            operators, ticks, attention, kind = by_layer[number]
            runs.append((operators, TickRun(ticks, attention, kind, repeat)))
        if self._is_last:
            last = head_operators(model, tp_size, num_tokens, num_sampled)
            # Behind the norm they see the sampled tokens only.
            sampled = self._head_ticks.get(num_sampled)
            if sampled is None:
                sampled = remember(self._head_ticks, num_sampled, self._ticks(last[1:]))
            runs.append((last, TickRun((*self._ticks(last[:1]), *sampled), -1, 0, 1)))
        return runs

    def _ticks(
        self, operators: list[Operator], experts: Experts | None = None
    ) -> tuple[float, ...]:
        if self._measured is None:
            times = [self._operator_s(op, experts) for op in operators]
        else:
            spread = not self._layout.is_plain
            known = self._measured.times(operators, self._timer, spread=spread)
            times = [
                self._operator_s(op, experts) if own is None else own
                for op, own in zip(operators, known, strict=True)
            ]
        return tuple([float(round(time_s * TICKS_PER_S)) for time_s in times])

    def _operator_s(self, operator: Operator, experts: Experts | None) -> float:
        """Time of one kernel (s), of a layer with `experts`; 0 for attention, added per step."""
        match operator.kind:
            case "all_reduce":
                return all_reduce_s(
                    self._fabric,
                    self._tp_size,
                    operator.bytes,
                    own_kernels=self._own_allreduce,
                )
            case "all_gather":
                return all_gather_s(self._fabric, self._tp_size, operator.bytes)
            case "gather" | "scatter":
                return all_gather_s(self._links.group, self._layout.dp_size, operator.bytes)
            case "dispatch" | "combine":
                assert experts is not None, "only layers with experts have an all-to-all"
                return all_to_all_s(self._links, self._layout, experts, operator.bytes)
            case "attention":
                return 0.0
            case _:
                return self._timer.operator_s(operator)
