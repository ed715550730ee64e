"""Measured kernel times in the place of the law's, operator by operator.

A source answers how long a call takes, or that it does not know (None: the law counts). Dispatch,
host work, links and the three resolutions stay those of `simcluster.roofline.steptime`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Final, NamedTuple

from simcluster.catalog.layers import BF16, WEIGHT_DTYPES, Attention
from simcluster.catalog.specs import EngineProfile, GPUSpec
from simcluster.config import ModelConfig
from simcluster.roofline.attention import AttentionKind
from simcluster.roofline.base import StepShape
from simcluster.roofline.bounded import remember
from simcluster.roofline.kernels import KernelTimer
from simcluster.roofline.measured.curve import RatioCurve
from simcluster.roofline.operators import (
    ACTIVATION_BYTES,
    ALIGN_KERNELS,
    Operator,
    attention_work,
    head_operators,
    layer_operators,
)
from simcluster.units import TICK_S

_DTYPES: Final = {(d.num_bytes, d.arithmetic): d.name for d in WEIGHT_DTYPES.values()}
CLASSES: Final = (
    "GEMM",
    "experts",
    "prefill attention",
    "decode attention",
    "elementwise",
)
"""Classes of operators that a source may know; collectives are links, which stay ours."""


class Gemm(NamedTuple):
    """A dense multiplication ``y[m, n] = x[m, k] w[k, n]``."""

    dtype: str
    """Of the weights, a key of `WEIGHT_DTYPES`."""
    m: float
    n: float
    k: float


class ExpertCall(NamedTuple):
    """The gated MLP of routed experts in one call."""

    dtype: str
    m: float
    """Tokens."""
    hidden: float
    width: float
    """Inner width of the layer, and width of an expert on this rank."""
    num_experts: int
    top_k: int
    """Experts of a layer, and how many a token visits."""


class Heads(NamedTuple):
    """What an attention kernel sees of a layer on one rank."""

    heads: float
    kv_heads: float
    head_dim: int
    cache_bytes: float
    """Bytes of a number in the cache."""


class Elementwise(NamedTuple):
    """An elementwise kernel on m rows of n, named as in ``docs/calibration.md``."""

    operator: str
    m: float
    n: float


class Coverage(NamedTuple):
    """What of a model's kernels is measured."""

    source: str
    """File, or package and its version."""
    measured: dict[str, str]
    """By class of `CLASSES`: how many rows, or which kernels. Empty if no row is used."""
    beyond: tuple[str, ...] = ()
    """Where steps go beyond what was measured."""
    notes: tuple[str, ...] = ()
    """What else a reader must know."""
    classes: tuple[str, ...] = CLASSES
    """Those of `CLASSES` that the model has."""

    @property
    def lines(self) -> list[str]:
        """Return the coverage in sentences, the first with all classes."""
        known = "; ".join(f"{name} ({about})" for name, about in self.measured.items())
        rest = ", ".join(name for name in self.classes if name not in self.measured)
        law = f"{rest} by the law, " if rest else ""
        lines = [f"{self.source}: measured are {known or 'none'}; {law}collectives by the links"]
        if self.beyond:
            lines.append(
                f"beyond the table (the law, times the ratio at its edge): {'; '.join(self.beyond)}"
            )
        return [*lines, *self.notes]


SPREAD: Final = "experts by the law, which ep_size or dp_size spreads"
"""What is said of layouts whose experts no source is asked for."""


class MeasuredKernels(ABC):
    """Times of kernels of one model on one rank: what is measured, and None for the rest.

    Parameters
    ----------
    model : ModelConfig
        What is served, in which precision.
    gpu : GPUSpec
        The GPU of every rank.
    engine : EngineProfile
        Its generation of kernels is that of the law which gives the shape between points.
    tp_size : int
        Ranks of the tensor-parallel group.
    """

    in_experts: ClassVar[tuple[str, ...]] = (
        *ALIGN_KERNELS,
        "experts_up_proj",
        "experts_activation",
        "experts_ungated_activation",
        "experts_down_proj",
        "experts_sum",
    )
    """Kernels of a layer that one measured call of experts holds: benchmarks time the call of the
    engine, from sorting the tokens by expert to adding up what comes back."""
    brings_inputs: ClassVar[tuple[str, ...]] = ()
    """Weights whose multiplications hold bringing inputs to fewer bits in what is measured."""

    law_quantises: ClassVar[str] = "left out"
    """Of the law that is compared with what is measured: a file has the multiplication alone."""

    knows_elementwise: ClassVar[bool] = True
    """It may have measured elementwise kernels."""

    def __init__(
        self, model: ModelConfig, gpu: GPUSpec, engine: EngineProfile, tp_size: int
    ) -> None:
        self._model, self._tp_size = model, tp_size
        self._law = KernelTimer(gpu, engine.kernel_generation, quantises=self.law_quantises)
        self._known: dict[object, float | None] = {}
        self._law_kinds: dict[Heads, AttentionKind] = {}
        self._curves: dict[tuple[Heads, int], RatioCurve | None] = {}

    def in_call(self, operator: Operator) -> bool:
        """Whether a measured call of experts holds this kernel."""
        return operator.name in self.in_experts

    @abstractmethod
    def coverage(self, *, spread: bool = False) -> Coverage:
        """Return what of the model is measured, and what is not.

        Parameters
        ----------
        spread : bool, optional
            Whether `ep_size` or `dp_size` spread the experts, which are by the law then.
        """

    # --- what a source answers ----------------------------------------------------------------

    @abstractmethod
    def gemm_s(self, call: Gemm, law_s: float) -> float | None:
        """Time of a multiplication (s); the law says `law_s`."""

    @abstractmethod
    def experts_s(self, call: ExpertCall, law_s: float) -> float | None:
        """Time of the experts of a layer (s); the law says `law_s` for the kernels in the call."""

    @abstractmethod
    def elementwise_s(self, call: Elementwise, law_s: float) -> float | None:
        """Time of an elementwise kernel (s); the law says `law_s`."""

    @abstractmethod
    def decode_ratios(self, heads: Heads, num_decodes: int) -> list[tuple[float, float]] | None:
        """Mean context of a sequence (tokens) and measured over law's time there, rising."""

    @abstractmethod
    def prefill_ratio(self, heads: Heads, new: int, cached: int, num_chunks: int) -> float | None:
        """Measured over law's time of a chunk of `new` tokens behind `cached` ones."""

    # --- what step times ask ------------------------------------------------------------------

    def times(
        self, operators: Sequence[Operator], timer: KernelTimer, *, spread: bool = False
    ) -> list[float | None]:
        """Times of kernels that follow one another (s); None for what the law gives.

        Parameters
        ----------
        operators : sequence of Operator
            Kernels of a layer, or those before or behind the layers.
        timer : KernelTimer
            The law with what the engine adds to a kernel, such as bringing inputs to 8 bits.
        spread : bool, optional
            Whether experts are spread over other GPUs than those of the tensor-parallel group: a
            call of this rank then has other experts and tokens than what was measured.
        """
        found = [self._time(operator, timer) for operator in operators]
        if not spread:
            self._put_experts(operators, found, timer)
        return found

    def _time(self, operator: Operator, timer: KernelTimer) -> float | None:
        if operator.kind == "gemm" and operator.groups == 1.0 and not self.in_call(operator):
            gemm = gemm_of(operator)
            if gemm.dtype == "":
                return None
            measured = self._once(gemm, lambda: self.gemm_s(gemm, self._law.operator_s(operator)))
            if measured is None or gemm.dtype in self.brings_inputs:
                return measured
            if operator.arithmetic == BF16.arithmetic:
                return measured
            return measured + (timer.operator_s(operator) - self._law.operator_s(operator))
        if operator.kind == "elementwise" and self.knows_elementwise:
            row = elementwise_of(operator, self._model.kv_bytes)
            if row is None:
                return None
            return self._once(row, lambda: self.elementwise_s(row, timer.operator_s(operator)))
        return None

    def _once(self, key: object, ask: Callable[[], float | None]) -> float | None:
        if key not in self._known:
            remember(self._known, key, ask())
        return self._known[key]

    def _put_experts(
        self, operators: Sequence[Operator], found: list[float | None], timer: KernelTimer
    ) -> None:
        """Share the time of a call of experts out over its kernels, as the law does."""
        members = [i for i, operator in enumerate(operators) if self.in_call(operator)]
        call = experts_of([operators[i] for i in members], self._model)
        if call is None:
            return
        law = [self._law.operator_s(operators[i]) for i in members]
        whole_s = sum(law, 0.0)
        measured = self._once(call, lambda: self.experts_s(call, whole_s))
        if measured is not None:
            for i, law_s in zip(members, law, strict=True):
                found[i] = measured * (law_s / whole_s)

    def decode_curve(self, mixer: Attention, num_decodes: int) -> RatioCurve | None:
        """Return measured over law's time of decode attention of a batch, by tokens of context."""
        key = (self.heads_of(mixer), num_decodes)
        if key not in self._curves:
            knots = self.decode_ratios(*key)
            points = [(mean * num_decodes, ratio) for mean, ratio in knots or ()]
            remember(self._curves, key, RatioCurve(points) if points else None)
        return self._curves[key]

    def chunks_ratio(self, mixer: Attention, chunks: tuple[tuple[int, int], ...]) -> float:
        """Measured over law's time of prefill attention of `chunks`, weighed by their pairs."""
        heads, total, weighed = self.heads_of(mixer), 0.0, 0.0
        for new, cached in chunks:
            key = (heads, new, cached, len(chunks))
            if key not in self._known:
                ratio = self.prefill_ratio(heads, new, cached, len(chunks))
                remember(self._known, key, ratio)
            ratio = self._known[key]
            if ratio is None:
                return 1.0
            pairs = new * (2.0 * cached + new + 1.0)
            total += pairs
            weighed += pairs * ratio
        return weighed / total

    def _classes(self) -> tuple[str, ...]:
        """Classes of operators that the model has."""
        has_experts = self._model.spec.experts is not None
        return tuple(name for name in CLASSES if has_experts or name != "experts")

    def _needed_experts(self) -> list[ExpertCall]:
        """Calls of experts of the model for one token."""
        found = []
        for run in self._model.spec.layers:
            operators = layer_operators(self._model, run.layer, self._tp_size, 1)
            members = [operator for operator in operators if self.in_call(operator)]
            if (call := experts_of(members, self._model)) is not None:
                found.append(call)
        return list(dict.fromkeys(found))

    def _operators(self) -> Iterator[Operator]:
        """Kernels of every layer and of the head for one token."""
        for run in self._model.spec.layers:
            yield from layer_operators(self._model, run.layer, self._tp_size, 1)
        yield from head_operators(self._model, self._tp_size, 1, 1)

    # --- the law at other shapes --------------------------------------------------------------

    def heads_of(self, mixer: Attention) -> Heads:
        """Return what attention kernels of a layer see on a rank."""
        work = attention_work(self._model, mixer, self._tp_size)
        return Heads(work.heads, work.kv_heads, mixer.head_dim, work.cache_bytes)

    def law_decode_s(self, heads: Heads, num_decodes: int, mean_context: float) -> float:
        """Time of decode attention by the law (s), with `mean_context` tokens a sequence."""
        tokens = round(num_decodes * mean_context)
        return self._law_kind(heads).decode_terms(num_decodes).ticks(tokens, tokens) * TICK_S

    def law_prefill_s(self, heads: Heads, new: int, cached: int, num_chunks: int) -> float:
        """Time of prefill attention of equal chunks by the law (s)."""
        chunks = ((new, cached),) * num_chunks
        return self._law_kind(heads).of_chunks(StepShape(0, 0, chunks, 0, 0)) * TICK_S

    def _law_kind(self, heads: Heads) -> AttentionKind:
        known = self._law_kinds.get(heads)
        if known is None:
            mixer = Attention(
                num_heads=int(heads.heads),
                num_kv_heads=int(heads.kv_heads),
                head_dim=heads.head_dim,
                v_head_dim=heads.head_dim,
            )
            known = self._law_kinds[heads] = AttentionKind(self._law, self._model, mixer, 1)
        return known


_NORMS: Final = ("input_norm", "post_norm", "final_norm")


def gemm_of(operator: Operator) -> Gemm:
    """Return the shape of a dense multiplication; dtype ``""`` where weights have none of ours."""
    dtype = _DTYPES.get((operator.weight_bytes, operator.arithmetic), "")
    inner = operator.flops / (2.0 * operator.rows * operator.cols)
    return Gemm(dtype, operator.rows, operator.cols, float(round(inner)))


def operator_of(call: Gemm) -> Operator:
    """Return the kernel of a multiplication: the inverse of `gemm_of`."""
    dtype = WEIGHT_DTYPES[call.dtype]
    m, n, k = call.m, call.n, call.k
    return Operator(
        "measured",
        "gemm",
        2.0 * m * n * k,
        dtype.num_bytes * n * k + ACTIVATION_BYTES * m * (n + k),
        n * k,
        dtype.num_bytes,
        rows=m,
        cols=n,
        groups=1.0,
        arithmetic=dtype.arithmetic,
    )


def elementwise_of(operator: Operator, kv_bytes: float) -> Elementwise | None:
    """Return the call as ``docs/calibration.md`` names it; None for kernels that it has not."""
    if not operator.rows:
        return None
    numbers = operator.bytes / operator.rows
    if operator.name in _NORMS:
        return Elementwise("norm", operator.rows, operator.weights)
    if operator.name == "rope":
        return Elementwise("rope", operator.rows, numbers / 4.0)
    if operator.name in ("activation", "shared_activation"):
        return Elementwise("activation", operator.rows, numbers / 6.0)
    if operator.name == "embedding":
        return Elementwise("embedding", operator.rows, numbers / 4.0)
    if operator.name == "kv_write":
        return Elementwise("kv_write", operator.rows, numbers / (2.0 + kv_bytes))
    if operator.name == "sampler":
        return Elementwise("sampler", operator.rows, operator.flops / operator.rows)
    return None


def experts_of(members: Sequence[Operator], model: ModelConfig) -> ExpertCall | None:
    """Return the call of the experts whose kernels `members` are; None without experts."""
    up = next((op for op in members if op.name == "experts_up_proj"), None)
    experts = model.spec.experts
    if up is None or experts is None:
        return None
    dtype = _DTYPES.get((up.weight_bytes, up.arithmetic), "")
    routed = up.rows * up.groups
    inputs = 2 if model.spec.gated_mlp else 1
    return ExpertCall(
        dtype,
        float(round(routed / experts.num_active)),
        float(round(up.flops / (2.0 * routed * up.cols))),
        up.cols / inputs,
        experts.num_experts,
        experts.num_active,
    )
