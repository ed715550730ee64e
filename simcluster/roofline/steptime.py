"""Step times from first principles: operators, kernels, collectives, dispatch, host work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Final, NamedTuple

import numpy as np
from mypy_extensions import mypyc_attr

from simcluster.catalog.specs import EngineProfile, GPUSpec, LinkSpec
from simcluster.config import ModelConfig
from simcluster.errors import InvariantError
from simcluster.roofline.answers import KernelAnswers
from simcluster.roofline.attention import (
    KindTerms,
    StepAttention,
    decode_steps,
    measured_steps,
)
from simcluster.roofline.base import StepShape, ends_of
from simcluster.roofline.bounded import remember
from simcluster.roofline.collectives import ExpertLinks
from simcluster.roofline.dispatch import Line, eager_lines, envelope, graph_line
from simcluster.roofline.host import HostWork, on_cpu
from simcluster.roofline.kernels import KernelTimer
from simcluster.roofline.layout import Layout, check_layout
from simcluster.roofline.memory import check_pp, check_tp
from simcluster.roofline.schedule import KernelRun, KernelSchedule
from simcluster.roofline.step_kernels import StepKernels
from simcluster.units import TICK_S, TICKS_PER_S, FloatArray, IntArray

_SHORT_RUN: Final = 48 if __file__.endswith(".py") else 256
"""Steps from which on a vector pays: more of them where the loop is compiled."""


class _DecodePlan(NamedTuple):
    """All there is to know of a decode batch of one size, in ticks."""

    attention: tuple[KindTerms, ...]
    lines: tuple[Line, ...]
    host: float


@mypyc_attr(allow_interpreted_subclasses=True)
class RooflineStepTime:
    """Durations of the steps of one instance, or one stage of its pipeline: a `StepTime`.

    Scalar and vector answers are the same bits, and equal to the simulation of the kernels one by
    one: every kernel, issue and host time is rounded to the grid where it is made, and the only
    other operations on the way are sums, products with whole numbers and maxima of such times.

    Parameters
    ----------
    model : ModelConfig
        What is served, in which precision.
    gpu : GPUSpec
        The GPU of every rank.
    fabric : LinkSpec
        Link between the ranks.
    engine : EngineProfile
        Host work, issue costs, graph capture.
    tp_size : int
        Ranks of the tensor-parallel group.
    pp_size : int
        Stages of the pipeline; 1 for none.
    stage : int
        Which of them this is, from 0. All methods are about this stage alone: its share of the
        layers (`operators.stage_layers`), issued by its own CPU threads, its decode steps captured
        in a graph of its own. The first stage has the embedding and the host work before a step,
        the last one the LM head, the sampler and the host work after it.
    layout : Layout, optional
        How the instance is laid out; by default over `tp_size` GPUs alone.
    expert_links : ExpertLinks, optional
        Links between its data-parallel ranks; needed where there are several.
    measured : KernelAnswers, optional
        Measured times of kernels in the place of the law's (`simcluster.roofline.measured`).

    Raises
    ------
    ConfigError
        If the heads cannot be split over `tp_size` ranks, or the layers over `pp_size` stages.

    Notes
    -----
    The queue of issued kernels is taken as unbounded. See docs/step-times.md for why a queue
    deeper than the kernels of a layer cannot change the end of a step of equal layers.
    """

    overlaps_host: bool
    """The engine does the host work of a step while the GPU works on the step before. Never in a
    pipeline, where the batch of a step waits for its own tokens: its host work is not hidden."""

    def __init__(
        self,
        model: ModelConfig,
        gpu: GPUSpec,
        fabric: LinkSpec,
        engine: EngineProfile,
        tp_size: int,
        pp_size: int = 1,
        stage: int = 0,
        layout: Layout | None = None,
        expert_links: ExpertLinks | None = None,
        measured: KernelAnswers | None = None,
    ) -> None:
        layout = layout or Layout(tp_size)
        check_layout(model, engine, layout, key="tp_size")
        check_tp(model, tp_size, key="tp_size", layout=layout)
        check_pp(model, pp_size, key="pp_size")
        if not 0 <= stage < pp_size:
            raise InvariantError(f"no stage {stage} in a pipeline of {pp_size}")
        engine = on_cpu(engine)
        self._engine = engine
        self._is_last = stage == pp_size - 1
        self._idle_ranks = layout.dp_size - 1  # beside a prompt alone, each with a dummy token
        self.overlaps_host = engine.overlaps_host and pp_size == 1
        timer = KernelTimer(
            gpu,
            engine.kernel_generation,
            quantises=engine.quantises,
            splits_attention=engine.splits_attention,
        )
        self._host = HostWork(engine, tp_size * pp_size, is_first=stage == 0, is_last=self._is_last)
        self._kernels = StepKernels(
            timer,
            model,
            fabric,
            tp_size,
            pp_size,
            stage,
            own_allreduce=engine.own_allreduce,
            fuses_allreduce_up_to=engine.fused_message_bytes,
            layout=layout,
            expert_links=expert_links,
            measured=measured,
        )
        self._attention = StepAttention(timer, model, tp_size, measured)
        self._is_measured = measured is not None
        self._reaches = self._attention.reach is not None
        self._num_kinds = self._attention.num_kinds
        self._is_plain = self._num_kinds == 1 and not self._reaches
        self._issue = float(round(engine.issue_s * TICKS_PER_S))
        self._piece_issue = float(round(engine.piece_issue_s * TICKS_PER_S))
        self._graph_issue = float(round(engine.graph_issue_s * TICKS_PER_S))
        self._decode_plans: dict[int, _DecodePlan] = {}
        # By tokens, samples and tokens of other ranks of a step; all lines at first, then a tuple
        # of those that matter.
        self._chunk_lines: dict[tuple[int, int, int], list[Line] | tuple[Line, ...]] = {}
        self._prefill_s: dict[int, float] = {}
        self._lone_chunks: dict[tuple[int, int, int, int], float] = {}

    # --- StepTime -----------------------------------------------------------------------------

    def step_s(self, shape: StepShape, hidden_s: float = 0.0) -> float:
        """Duration of one step (s); `hidden_s` of host work is done if the engine overlaps."""
        if shape.chunks:
            core = self._chunk_core(shape)
            host = self._host.total(shape.num_decodes + len(shape.chunks))
        else:
            plan = self._decode_plan(shape.num_decodes, shape.other_tokens)
            core = self._decode_core(plan, shape.context_tokens, shape.window_tokens)
            host = plan.host
        if self.overlaps_host:
            host = max(0.0, host - hidden_s * TICKS_PER_S)
        return (core + host) * TICK_S

    def decode_steps_s(
        self,
        num_decodes: int,
        context_tokens: int,
        num_steps: int,
        hidden_s: float = 0.0,
        window_tokens: IntArray | None = None,
        other_tokens: int = 0,
    ) -> FloatArray:
        """Durations (s) of consecutive pure decode steps, shape ``(num_steps,)``.

        `other_tokens` are those of the other data-parallel ranks in each step.
        """
        core = self.decode_gpu_s(
            num_decodes, context_tokens, num_steps, window_tokens, other_tokens
        )
        host = self._decode_plan(num_decodes, other_tokens).host
        return self._with_host(core, host * TICK_S, 0, hidden_s)

    def decode_runs_s(
        self,
        num_decodes: int,
        context_tokens: IntArray,
        num_steps: IntArray,
        hidden_s: FloatArray,
        window_tokens: IntArray | None = None,
    ) -> FloatArray:
        """Durations (s) of several runs of decode steps, one run after the other.

        Parameters
        ----------
        num_decodes : int
            Sequences of every batch, >= 1.
        context_tokens, num_steps, hidden_s : array, shape ``(num_runs,)``
            Of each run what `decode_steps_s` takes.
        window_tokens : int array, shape ``(num_steps.sum(),)``, optional
            Window-capped sums of each step; needed for models with a sliding window only.

        Returns
        -------
        float array, shape ``(num_steps.sum(),)``
            What `decode_steps_s` returns of each run, to the bit: many short runs in a few calls.
        """
        terms, lines, host = self._decode_plan(num_decodes)
        first = num_steps.cumsum() - num_steps
        tokens = np.repeat(context_tokens - first * num_decodes, num_steps).astype(np.float64)
        tokens += np.arange(len(tokens)) * float(num_decodes)
        windowed = self._windowed(window_tokens) if self._reaches else tokens
        core = _maximum(lines, [kind.ticks_array(tokens, windowed, False) for kind in terms])
        return self._with_host(core, host * TICK_S, first, hidden_s)

    def _with_host(
        self,
        core_s: FloatArray,
        host_s: float,
        first: int | IntArray,
        hidden_s: float | FloatArray,
    ) -> FloatArray:
        """Add to steps their host work (s): all of it, or what the step before does not hide.

        `hidden_s` is that before the steps with the numbers `first`, each the first of a run.
        """
        if not self.overlaps_host:
            core_s += host_s
            return core_s
        exposed = np.empty_like(core_s)
        exposed[1:] = core_s[:-1]
        exposed[first] = hidden_s
        np.subtract(host_s, exposed, out=exposed)
        np.maximum(exposed, 0.0, out=exposed)
        core_s += exposed
        return core_s

    def _windowed(self, window_tokens: IntArray | None) -> FloatArray:
        """Return window-capped sums as numbers to compute with."""
        if window_tokens is None:
            raise InvariantError("a model with a sliding window needs window_tokens")
        return window_tokens.astype(np.float64)

    def decode_ends_s(
        self,
        start_s: float,
        num_decodes: int,
        context_tokens: int,
        num_steps: int,
        hidden_s: float = 0.0,
        window_tokens: IntArray | None = None,
    ) -> list[float]:
        """When consecutive pure decode steps end (s), the first of which starts at `start_s` (s).

        A short run is faster without NumPy; the operations are the same, in the same order.
        """
        terms, lines, host = self._decode_plan(num_decodes)
        kind, end_tokens = terms[0], context_tokens + num_steps * num_decodes
        contexts = range(context_tokens, end_tokens, num_decodes)
        line: Line | None = None
        if num_steps <= _SHORT_RUN and self._is_plain:
            line = _line_between(lines, kind, contexts[0], contexts[-1])
        if line is None:
            durations = self.decode_steps_s(
                num_decodes, context_tokens, num_steps, hidden_s, window_tokens
            )
            return ends_of(start_s, durations)
        const, (num_layers,) = line
        host_s, layers_s = host * TICK_S, num_layers * TICK_S
        fixed_s = const * TICK_S + (0.0 if self.overlaps_host else host_s)
        if kind.measured is None:
            times = decode_steps(kind.terms, contexts, fixed_s, layers_s)
        else:
            times = measured_steps(kind.terms, kind.measured, contexts, fixed_s, layers_s)
        if self.overlaps_host:
            for step, core_s in enumerate(times):
                times[step] = core_s + max(0.0, host_s - hidden_s)
                hidden_s = core_s
        times[0] += start_s
        return list(accumulate(times))

    def decode_gpu_s(
        self,
        num_decodes: int,
        context_tokens: int,
        num_steps: int,
        window_tokens: IntArray | None = None,
        other_tokens: int = 0,
    ) -> FloatArray:
        """Durations (s) of consecutive pure decode steps without their host work.

        Parameters and shape as in `decode_steps_s`.
        """
        terms, lines, _ = self._decode_plan(num_decodes, other_tokens)
        end_tokens = context_tokens + num_steps * num_decodes
        tokens = np.arange(float(context_tokens), end_tokens, num_decodes)
        windowed = self._windowed(window_tokens) if self._reaches else tokens
        return _maximum(lines, [kind.ticks_array(tokens, windowed) for kind in terms])

    def gpu_s(self, shape: StepShape) -> float:
        """Duration of the step without its host work (s)."""
        if shape.chunks:
            return self._chunk_core(shape) * TICK_S
        plan = self._decode_plan(shape.num_decodes, shape.other_tokens)
        return self._decode_core(plan, shape.context_tokens, shape.window_tokens) * TICK_S

    def prefill_s(self, prompt_len: int) -> float:
        """Duration of a step that prefills one prompt of `prompt_len` tokens alone (s)."""
        known = self._prefill_s.get(prompt_len)
        if known is None:
            known = self.step_s(StepShape(0, 0, ((prompt_len, 0),), 1, 0, self._idle_ranks))
            remember(self._prefill_s, prompt_len, known)
        return known

    def kernels(self, shape: StepShape) -> KernelSchedule:
        """The kernels of the step: embedding, layers, head; of a stage those it has.

        Issued and run one by one they end exactly ``gpu_s(shape)`` after the first issue begins.
        """
        num_seqs = shape.num_decodes + len(shape.chunks)
        num_sampled = shape.num_sampled if shape.chunks else shape.num_decodes
        graph = not shape.chunks and self._captured(shape.num_decodes)
        issue = self._issue_of(shape.num_tokens)
        by_kind = self._attention_of(shape)
        runs: list[KernelRun] = []
        all_tokens = shape.num_tokens + shape.other_tokens
        for operators, tick_run in self._kernels.runs(shape.num_tokens, num_sampled, all_tokens):
            ticks = list(tick_run.run_ticks)
            if tick_run.attention >= 0:
                ticks[tick_run.attention] = by_kind[tick_run.kind]
            run = KernelRun(
                names=tuple(operator.name for operator in operators),
                issue_s=(0.0 if graph else issue * TICK_S,) * len(ticks),
                run_s=tuple(value * TICK_S for value in ticks),
                collective=tuple(
                    operator.kind not in ("gemm", "elementwise", "attention")
                    for operator in operators
                ),
                repeat=tick_run.repeat,
            )
            if graph and not runs:
                # Only the very first kernel carries the issue, not one of each equal layer.
                issue_s = (self._graph_issue * TICK_S, *run.issue_s[1:])
                runs.append(replace(run, issue_s=issue_s, repeat=1))
                run = replace(run, repeat=run.repeat - 1)
            if run.repeat:
                runs.append(run)
        before, after = self._host.parts(num_seqs)
        return KernelSchedule(before * TICK_S, tuple(runs), after * TICK_S)

    def _attention_of(self, shape: StepShape) -> list[float]:
        """Attention time of a layer of each kind (ticks, whole)."""
        if shape.chunks:
            return self._attention.of_chunks(shape)
        context, windowed = shape.context_tokens, shape.window_tokens
        kinds = self._decode_plan(shape.num_decodes, shape.other_tokens).attention
        return [kind.ticks(context, windowed) for kind in kinds]

    def host_s(self, shape: StepShape) -> tuple[float, float]:
        """Host work before and after the kernels (s); of a stage the part it does."""
        before, after = self._host.parts(shape.num_decodes + len(shape.chunks))
        return before * TICK_S, after * TICK_S

    # --- the end of the GPU's work ------------------------------------------------------------

    def _decode_core(self, plan: _DecodePlan, context_tokens: int, window_tokens: int) -> float:
        """Issue and execution of a decode step (ticks)."""
        if self._num_kinds == 1:
            return _best(plan.lines, plan.attention[0].ticks(context_tokens, window_tokens))
        by_kind = [kind.ticks(context_tokens, window_tokens) for kind in plan.attention]
        return _best_of_kinds(plan.lines, by_kind)

    def _chunk_core(self, shape: StepShape) -> float:
        """Issue and execution of a step with prefill chunks (ticks)."""
        if shape.num_decodes or len(shape.chunks) > 1:
            return self._chunk_core_anew(shape)
        # Prompts of the same length alone in a step are the commonest case there is.
        key = (*shape.chunks[0], shape.num_sampled, shape.other_tokens)
        known = self._lone_chunks.get(key)
        if known is None:
            known = self._chunk_core_anew(shape)
            remember(self._lone_chunks, key, known)
        return known

    def _chunk_core_anew(self, shape: StepShape) -> float:
        tokens = shape.num_decodes
        for new, _ in shape.chunks:
            tokens += new
        key = (tokens, shape.num_sampled if self._is_last else 0, shape.other_tokens)
        lines = self._chunk_lines.get(key)
        if lines is None:
            all_tokens = tokens + shape.other_tokens
            runs = tuple(run for _, run in self._kernels.runs(key[0], key[1], all_tokens))
            lines = eager_lines(runs, self._issue_of(tokens), self._num_kinds)
            remember(self._chunk_lines, key, lines)
        elif isinstance(lines, list):
            # A count of tokens that comes again: worth finding the lines that matter.
            lines = envelope(lines, self._attention.least)
            remember(self._chunk_lines, key, lines)
        if self._num_kinds == 1:
            return _best(lines, self._attention.of_first_kind(shape))
        return _best_of_kinds(lines, self._attention.of_chunks(shape))

    def _issue_of(self, num_tokens: int) -> float:
        """CPU time to issue a kernel of a step that is not captured whole (ticks)."""
        pieces = num_tokens <= self._engine.piece_max_tokens
        return self._piece_issue if pieces else self._issue

    def _captured(self, num_decodes: int) -> bool:
        return num_decodes <= self._engine.graph_max_seqs

    def _decode_plan(self, num_decodes: int, other_tokens: int = 0) -> _DecodePlan:
        key = num_decodes + (other_tokens << 32)  # one number: it is looked up in every step
        known = self._decode_plans.get(key)
        if known is not None:
            return known
        if num_decodes < 1:
            raise InvariantError("a step needs a sequence to decode or a prefill chunk")
        terms = self._attention.decode_terms(num_decodes)
        all_tokens = num_decodes + other_tokens
        runs = tuple(run for _, run in self._kernels.runs(num_decodes, num_decodes, all_tokens))
        if self._captured(num_decodes):
            lines: tuple[Line, ...] = (graph_line(runs, self._graph_issue, self._num_kinds),)
        else:
            least = [
                0.0 if self._is_measured else kind.ticks(num_decodes, num_decodes) for kind in terms
            ]
            lines = envelope(eager_lines(runs, self._issue_of(num_decodes), self._num_kinds), least)
        plan = _DecodePlan(terms, lines, self._host.total(num_decodes))
        remember(self._decode_plans, key, plan)
        return plan


def _best(lines: Sequence[Line], ticks: float) -> float:
    """Largest of `lines` at the attention time of the one kind of layer (ticks)."""
    best = -1.0
    for const, (num,) in lines:
        value = const + num * ticks
        if value > best:
            best = value
    return best


def _line_between(lines: Sequence[Line], kind: KindTerms, first: int, last: int) -> Line | None:
    """Return which of `lines` is the largest from `first` to `last` tokens of context.

    None where that changes, or is not known. The time of the attention rises with the context, and
    a line that is the largest at both ends is so between them.
    """
    if len(lines) == 1:
        return lines[0]
    if kind.measured is not None:
        return None
    low, high = kind.ticks(first, first), kind.ticks(last, last)
    best_low, best_high = _best(lines, low), _best(lines, high)
    for line in lines:
        const, (num,) = line
        if const + num * low == best_low and const + num * high == best_high:
            return line
    return None


def _best_of_kinds(lines: Sequence[Line], by_kind: Sequence[float]) -> float:
    """Largest of `lines` at the attention time of each kind of layer (ticks)."""
    return max(
        const + sum([num * ticks for num, ticks in zip(counts, by_kind, strict=True)], 0.0)
        for const, counts in lines
    )


def _maximum(lines: Sequence[Line], by_kind: Sequence[FloatArray]) -> FloatArray:
    """Upper envelope of `lines` at the attention times of each kind (ticks), in seconds."""
    best: FloatArray | None = None
    for const, counts in lines:
        value = by_kind[0] * (counts[0] * TICK_S)
        for num, ticks in zip(counts[1:], by_kind[1:], strict=True):
            if num:
                value += ticks * (num * TICK_S)
        value += const * TICK_S
        best = value if best is None else np.maximum(best, value, out=best)
    assert best is not None, "a step has a path"
    return best
