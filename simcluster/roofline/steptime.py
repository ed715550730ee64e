"""Step times from first principles: operators, kernels, collectives, dispatch, host work."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from math import sqrt
from typing import Final, NamedTuple, TypeVar

import numpy as np

from simcluster.config import ModelConfig
from simcluster.errors import InvariantError
from simcluster.roofline.base import KernelRun, KernelSchedule, StepShape, ends_of
from simcluster.roofline.collectives import all_gather_s, all_reduce_s
from simcluster.roofline.dispatch import Line, TickRun, eager_lines, envelope, graph_line
from simcluster.roofline.kernels import PREFILL_TILE, DecodeTerms, KernelTimer
from simcluster.roofline.memory import check_pp, check_tp
from simcluster.roofline.operators import (
    Operator,
    attention_work,
    embedding_operators,
    head_operators,
    layer_operators,
    layer_runs,
)
from simcluster.specs import EngineProfile, GPUSpec, LinkSpec
from simcluster.units import TICK_S, TICKS_PER_S, FloatArray, IntArray

_K = TypeVar("_K")
_V = TypeVar("_V")

_CPU_TIMES: Final = (
    "host_before_s",
    "host_after_s",
    "host_per_seq_before_s",
    "host_per_seq_after_s",
    "host_workers_s",
    "issue_s",
    "graph_issue_s",
)
"""Numbers of an engine profile that depend on the host's CPU."""
_TILE: Final = int(PREFILL_TILE)
_SHORT_RUN: Final = 64
"""Steps from which on a vector pays."""
_TO_WHOLE: Final = 1.5 * 2.0**52
"""Adding and subtracting it rounds a number below 2^51 like ``rint``: half to even."""
_CACHE_SIZE: Final = 32768
"""Token counts whose lines are kept; the cache is emptied when it is full."""


class _DecodePlan(NamedTuple):
    """All there is to know of a decode batch of one size, in ticks."""

    attention: DecodeTerms
    lines: tuple[Line, ...]
    host: float


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

    Attributes
    ----------
    overlaps_host : bool
        The engine does the host work of a step while the GPU works on the step before. Never in a
        pipeline, where the batch of a step waits for its own tokens: its host work is not hidden.

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

    def __init__(
        self,
        model: ModelConfig,
        gpu: GPUSpec,
        fabric: LinkSpec,
        engine: EngineProfile,
        tp_size: int,
        pp_size: int = 1,
        stage: int = 0,
    ) -> None:
        check_tp(model, tp_size, key="tp_size")
        check_pp(model, pp_size, key="pp_size")
        if not 0 <= stage < pp_size:
            raise InvariantError(f"no stage {stage} in a pipeline of {pp_size}")
        engine = on_cpu(engine)
        self._model, self._fabric, self._engine = model, fabric, engine
        self._workers_s = engine.host_workers_s if tp_size * pp_size > 1 else 0.0
        self._tp_size = tp_size
        self._is_first, self._is_last = stage == 0, stage == pp_size - 1
        self.overlaps_host = engine.overlaps_host and pp_size == 1
        self._timer = KernelTimer(
            gpu, engine.kernel_generation, quantises_apart=engine.quantises_apart
        )
        self._layer_runs = layer_runs(model.spec, pp_size, stage)
        self._moe_kinds = tuple(dict.fromkeys(run.moe for run in self._layer_runs))
        self._window = model.spec.sliding_window if model.spec.num_sliding_layers else None
        self._work = attention_work(model, tp_size)
        self._fixed = self._timer.attention_fixed_s * TICKS_PER_S
        self._causal = self._timer.constants.attention_causal
        self._mixed: dict[int, tuple[float, float]] = {}
        self._issue = float(round(engine.issue_s * TICKS_PER_S))
        self._graph_issue = float(round(engine.graph_issue_s * TICKS_PER_S))
        self._decode_plans: dict[int, _DecodePlan] = {}
        # By tokens and samples of a step; all lines at first, then a tuple of those that matter.
        self._chunk_lines: dict[tuple[int, int], list[Line] | tuple[Line, ...]] = {}
        self._head_ticks: dict[int, tuple[float, ...]] = {}
        self._prefill_s: dict[int, float] = {}
        self._lone_chunks: dict[tuple[int, int, int], float] = {}
        self._host_ticks: dict[int, float] = {}

    # --- StepTime -----------------------------------------------------------------------------

    def step_s(self, shape: StepShape, hidden_s: float = 0.0) -> float:
        """Duration of one step (s); `hidden_s` of host work is done if the engine overlaps."""
        if shape.chunks:
            core = self._chunk_core(shape)
            host = self._host(shape.num_decodes + len(shape.chunks))
        else:
            plan = self._decode_plan(shape.num_decodes)
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
    ) -> FloatArray:
        """Durations (s) of consecutive pure decode steps, shape ``(num_steps,)``."""
        core = self.decode_gpu_s(num_decodes, context_tokens, num_steps, window_tokens)
        host = self._decode_plan(num_decodes).host
        if not self.overlaps_host:
            core += host * TICK_S
            return core
        exposed = np.empty_like(core)
        exposed[0] = hidden_s
        exposed[1:] = core[:-1]
        np.subtract(host * TICK_S, exposed, out=exposed)
        np.maximum(exposed, 0.0, out=exposed)
        core += exposed
        return core

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
        if (
            num_steps > _SHORT_RUN
            or len(lines) > 1
            or self._window is not None
            or self.overlaps_host
        ):
            durations = self.decode_steps_s(
                num_decodes, context_tokens, num_steps, hidden_s, window_tokens
            )
            return ends_of(start_s, durations)
        line, num_full, _ = lines[0]
        fixed_s, layers_s = (line + host) * TICK_S, num_full * TICK_S
        const, linear, root, rate, split, above = terms
        square = root * root
        contexts = range(context_tokens, context_tokens + num_steps * num_decodes, num_decodes)
        if rate == 0.0 and contexts[-1] <= above:
            times = [
                fixed_s + layers_s * ((const + linear * context + _TO_WHOLE) - _TO_WHOLE)
                for context in contexts
            ]
        else:
            times = [
                fixed_s
                + layers_s
                * (
                    (
                        const
                        + linear * context
                        + sqrt((rate * context) * (rate * context) + square)
                        + (split if context > above else 0.0)
                        + _TO_WHOLE
                    )
                    - _TO_WHOLE
                )
                for context in contexts
            ]
        times[0] += start_s
        return list(accumulate(times))

    def decode_gpu_s(
        self,
        num_decodes: int,
        context_tokens: int,
        num_steps: int,
        window_tokens: IntArray | None = None,
    ) -> FloatArray:
        """Durations (s) of consecutive pure decode steps without their host work.

        Parameters and shape as in `decode_steps_s`.
        """
        terms, lines, _ = self._decode_plan(num_decodes)
        end_tokens = context_tokens + num_steps * num_decodes
        tokens = np.arange(float(context_tokens), end_tokens, num_decodes)
        times = _attention_array(terms, tokens)
        if self._window is None:
            return _maximum(lines, times)
        if window_tokens is None:
            raise InvariantError("a model with a sliding window needs window_tokens")
        windowed = _attention_array(terms, window_tokens.astype(np.float64))
        return _maximum_windowed(lines, times, windowed)

    def gpu_s(self, shape: StepShape) -> float:
        """Duration of the step without its host work (s)."""
        if shape.chunks:
            return self._chunk_core(shape) * TICK_S
        plan = self._decode_plan(shape.num_decodes)
        return self._decode_core(plan, shape.context_tokens, shape.window_tokens) * TICK_S

    def prefill_s(self, prompt_len: int) -> float:
        """Duration of a step that prefills one prompt of `prompt_len` tokens alone (s)."""
        known = self._prefill_s.get(prompt_len)
        if known is None:
            known = self.step_s(StepShape(0, 0, ((prompt_len, 0),), 1, 0))
            _remember(self._prefill_s, prompt_len, known)
        return known

    def kernels(self, shape: StepShape) -> KernelSchedule:
        """The kernels of the step: embedding, layers, head; of a stage those it has.

        Issued and run one by one they end exactly ``gpu_s(shape)`` after the first issue begins.
        """
        num_seqs = shape.num_decodes + len(shape.chunks)
        num_sampled = shape.num_sampled if shape.chunks else shape.num_decodes
        graph = not shape.chunks and self._captured(shape.num_decodes)
        full, windowed = self._attention(shape)
        runs: list[KernelRun] = []
        for operators, tick_run in self._runs(shape.num_tokens, num_sampled):
            ticks = list(tick_run.run_ticks)
            if tick_run.attention >= 0:
                ticks[tick_run.attention] = windowed if tick_run.window else full
            run = KernelRun(
                names=tuple(operator.name for operator in operators),
                issue_s=(0.0 if graph else self._issue * TICK_S,) * len(ticks),
                run_s=tuple(value * TICK_S for value in ticks),
                collective=tuple(
                    operator.kind in ("all_reduce", "all_gather") for operator in operators
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
        before, after = self._host_parts(num_seqs)
        return KernelSchedule(before * TICK_S, tuple(runs), after * TICK_S)

    # --- host ---------------------------------------------------------------------------------

    def host_s(self, shape: StepShape) -> tuple[float, float]:
        """Host work before and after the kernels (s); of a stage the part it does."""
        before, after = self._host_parts(shape.num_decodes + len(shape.chunks))
        return before * TICK_S, after * TICK_S

    def _host_parts(self, num_seqs: int) -> tuple[float, float]:
        """Host work before and after the kernels (ticks)."""
        engine = self._engine
        before = after = 0.0
        if self._is_first:
            before = engine.host_before_s + engine.host_per_seq_before_s * num_seqs
            before += self._workers_s
        if self._is_last:
            after = engine.host_after_s + engine.host_per_seq_after_s * num_seqs
        return float(round(before * TICKS_PER_S)), float(round(after * TICKS_PER_S))

    def _host(self, num_seqs: int) -> float:
        known = self._host_ticks.get(num_seqs)
        if known is None:
            known = sum(self._host_parts(num_seqs))
            _remember(self._host_ticks, num_seqs, known)
        return known

    # --- attention ----------------------------------------------------------------------------

    def _attention(self, shape: StepShape) -> tuple[float, float]:
        """Attention time of a layer without and with the window (ticks, whole)."""
        window = self._window
        if not shape.chunks:
            terms = self._decode_plan(shape.num_decodes).attention
            full = _attention_ticks(terms, shape.context_tokens)
            return full, 0.0 if window is None else _attention_ticks(terms, shape.window_tokens)
        begin, per_token = self._mixed_terms(shape.num_decodes)
        base = self._fixed + begin
        decode = base + per_token * shape.context_tokens
        full = float(round(decode + self._prefill_attention(shape.chunks)))
        if window is None:
            return full, 0.0
        decode = base + per_token * shape.window_tokens
        return full, float(round(decode + self._windowed_prefill(shape.chunks, window)))

    def _mixed_terms(self, num_decodes: int) -> tuple[float, float]:
        """Ticks of so many decodes beside a chunk: context apart, and per token of it."""
        if num_decodes == 0:
            return 0.0, 0.0
        known = self._mixed.get(num_decodes)
        if known is None:
            begin_s, per_token_s = self._timer.mixed_terms(self._work, num_decodes)
            known = begin_s * TICKS_PER_S, per_token_s * TICKS_PER_S
            _remember(self._mixed, num_decodes, known)
        return known

    def _prefill_attention(self, chunks: tuple[tuple[int, int], ...]) -> float:
        """Attention of the chunks over all that is cached (ticks, not rounded)."""
        tokens = cached = tiles = 0
        causal = self._causal
        twice_pairs = twice_padded = 0.0
        for new, old in chunks:
            tokens += new
            cached += old
            twice_seen = 2 * (old + new) - causal * (new - 1)
            num = -(-new // _TILE)
            tiles += num
            twice_pairs += new * twice_seen
            twice_padded += num * _TILE * twice_seen
        return self._prefill_ticks(tokens, cached, 0.5 * twice_pairs, 0.5 * twice_padded, tiles)

    def _windowed_prefill(self, chunks: tuple[tuple[int, int], ...], window: int) -> float:
        """Attention of the chunks over the last `window` tokens (ticks, not rounded)."""
        tokens = cached = tiles = 0
        causal = self._causal
        twice_pairs = twice_padded = 0.0
        for new, old in chunks:
            growing = min(new, max(0, window - old))
            tokens += new
            cached += min(old, window)
            pairs = growing * (2 * (old + growing) - causal * (growing - 1))
            pairs += 2 * (new - growing) * window
            num = -(-new // _TILE)
            tiles += num
            twice_pairs += pairs
            twice_padded += pairs * (num * _TILE / new)
        return self._prefill_ticks(tokens, cached, 0.5 * twice_pairs, 0.5 * twice_padded, tiles)

    def _prefill_ticks(
        self, tokens: int, cached: int, pairs: float, padded_pairs: float, tiles: int
    ) -> float:
        work = self._work
        flops = self._timer.prefill_flops(
            work.prefill_flops * pairs, work.prefill_flops * padded_pairs, tiles * work.heads
        )
        flops += work.expand_flops * cached
        moved = work.io_bytes * tokens + work.prefill_kv_bytes * (tokens + cached)
        return self._timer.prefill_attention_s(flops, moved) * TICKS_PER_S

    # --- the end of the GPU's work ------------------------------------------------------------

    def _decode_core(self, plan: _DecodePlan, context_tokens: int, window_tokens: int) -> float:
        """Issue and execution of a decode step (ticks)."""
        full = _attention_ticks(plan.attention, context_tokens)
        if self._window is None:
            core = -1.0
            for const, num_full, _ in plan.lines:
                value = const + num_full * full
                if value > core:
                    core = value
            return core
        windowed = _attention_ticks(plan.attention, window_tokens)
        return max(c + num_full * full + num * windowed for c, num_full, num in plan.lines)

    def _chunk_core(self, shape: StepShape) -> float:
        """Issue and execution of a step with prefill chunks (ticks)."""
        if shape.num_decodes or len(shape.chunks) > 1:
            return self._chunk_core_anew(shape)
        # Prompts of the same length alone in a step are the commonest case there is.
        key = (*shape.chunks[0], shape.num_sampled)
        known = self._lone_chunks.get(key)
        if known is None:
            known = self._chunk_core_anew(shape)
            _remember(self._lone_chunks, key, known)
        return known

    def _chunk_core_anew(self, shape: StepShape) -> float:
        tokens = shape.num_decodes
        for new, _ in shape.chunks:
            tokens += new
        key = (tokens, shape.num_sampled if self._is_last else 0)
        lines = self._chunk_lines.get(key)
        if lines is None:
            lines = eager_lines(tuple(run for _, run in self._runs(*key)), self._issue)
            _remember(self._chunk_lines, key, lines)
        elif isinstance(lines, list):
            # A count of tokens that comes again: worth finding the lines that matter.
            least = float(round(self._fixed))
            lines = envelope(lines, least, least)
            _remember(self._chunk_lines, key, lines)
        full, windowed = self._attention(shape)
        core = -1.0
        for const, num_full, num_windowed in lines:
            value = const + num_full * full + num_windowed * windowed
            if value > core:
                core = value
        return core

    def _captured(self, num_decodes: int) -> bool:
        return num_decodes <= self._engine.graph_max_seqs

    def _decode_plan(self, num_decodes: int) -> _DecodePlan:
        known = self._decode_plans.get(num_decodes)
        if known is not None:
            return known
        if num_decodes < 1:
            raise InvariantError("a step needs a sequence to decode or a prefill chunk")
        terms = _in_ticks(self._timer.decode_terms(self._work, num_decodes))
        runs = tuple(run for _, run in self._runs(num_decodes, num_decodes))
        if self._captured(num_decodes):
            lines: tuple[Line, ...] = (graph_line(runs, self._graph_issue),)
        else:
            least = _attention_ticks(terms, num_decodes)
            lines = envelope(eager_lines(runs, self._issue), least, least)
        plan = _DecodePlan(terms, lines, self._host(num_decodes))
        _remember(self._decode_plans, num_decodes, plan)
        return plan

    # --- kernels ------------------------------------------------------------------------------

    def _runs(self, num_tokens: int, num_sampled: int) -> list[tuple[list[Operator], TickRun]]:
        """Operators of a step in issue order, and their times."""
        model, tp_size = self._model, self._tp_size
        by_kind = {}
        for moe in self._moe_kinds:
            operators = layer_operators(model, tp_size, num_tokens, moe=moe)
            attention = next(i for i, op in enumerate(operators) if op.kind == "attention")
            by_kind[moe] = operators, self._ticks(operators), attention
        runs = []
        if self._is_first:
            first = embedding_operators(model, tp_size, num_tokens)
            runs.append((first, TickRun(self._ticks(first), -1, False, 1)))
        for moe, window, repeat in self._layer_runs:
            operators, ticks, attention = by_kind[moe]
            runs.append((operators, TickRun(ticks, attention, window, repeat)))
        if self._is_last:
            last = head_operators(model, tp_size, num_tokens, num_sampled)
            # Behind the norm they see the sampled tokens only.
            sampled = self._head_ticks.get(num_sampled)
            if sampled is None:
                sampled = self._ticks(last[1:])
                _remember(self._head_ticks, num_sampled, sampled)
            runs.append((last, TickRun((*self._ticks(last[:1]), *sampled), -1, False, 1)))
        return runs

    def _ticks(self, operators: list[Operator]) -> tuple[float, ...]:
        return tuple(float(round(self._operator_s(op) * TICKS_PER_S)) for op in operators)

    def _operator_s(self, operator: Operator) -> float:
        """Time of one kernel (s); 0 for attention, which is added per step."""
        match operator.kind:
            case "all_reduce":
                return all_reduce_s(self._fabric, self._tp_size, operator.bytes)
            case "all_gather":
                return all_gather_s(self._fabric, self._tp_size, operator.bytes)
            case "attention":
                return 0.0
            case _:
                return self._timer.operator_s(operator)


def on_cpu(engine: EngineProfile) -> EngineProfile:
    """Return `engine` with its CPU times as they are on a CPU of its `cpu_speed`."""
    if engine.cpu_speed == 1.0:
        return engine
    times = {name: getattr(engine, name) / engine.cpu_speed for name in _CPU_TIMES}
    return replace(engine, cpu_speed=1.0, **times)


def _in_ticks(terms: DecodeTerms) -> DecodeTerms:
    """Return `terms`, given in s, in ticks; a power of two, so that no bit is lost."""
    const, linear, root, rate, split, above = terms
    ticks = TICKS_PER_S
    return DecodeTerms(
        const * ticks, linear * ticks, root * ticks, rate * ticks, split * ticks, above
    )


def _attention_ticks(terms: DecodeTerms, tokens: int) -> float:
    """Decode attention over so many tokens of context (ticks, whole)."""
    const, linear, root, rate, split, above = terms
    ticks = const + linear * tokens
    if rate:
        growing = rate * tokens
        ticks += sqrt(growing * growing + root * root)
    if tokens > above:
        ticks += split
    return float(round(ticks))


def _attention_array(terms: DecodeTerms, tokens: FloatArray) -> FloatArray:
    """Like `_attention_ticks` for an array: the same operations in the same order."""
    const, linear, root, rate, split, above = terms
    ticks: FloatArray = tokens * linear
    ticks += const
    if rate:
        growing = tokens * rate
        growing *= growing
        growing += root * root
        np.sqrt(growing, out=growing)
        ticks += growing
    if split and len(tokens) and tokens[-1] > above:
        ticks[tokens > above] += split
    return np.rint(ticks, out=ticks)


def _maximum(lines: tuple[Line, ...], full: FloatArray) -> FloatArray:
    """Upper envelope of `lines` at the attention times `full` (ticks), in seconds."""
    best = full * (lines[0].full * TICK_S)
    best += lines[0].const * TICK_S
    for const, num_full, _ in lines[1:]:
        other = full * (num_full * TICK_S)
        other += const * TICK_S
        np.maximum(best, other, out=best)
    return best


def _maximum_windowed(
    lines: tuple[Line, ...], full: FloatArray, windowed: FloatArray
) -> FloatArray:
    """Like `_maximum` with two kinds of layers."""
    best = np.zeros_like(full)
    for const, num_full, num_windowed in lines:
        value = full * num_full
        value += windowed * num_windowed
        value += const
        np.maximum(best, value, out=best)
    best *= TICK_S
    return best


def _remember(cache: dict[_K, _V], key: _K, value: _V) -> None:
    """Store in a bounded cache, emptied when full."""
    if len(cache) >= _CACHE_SIZE:
        cache.clear()
    cache[key] = value
