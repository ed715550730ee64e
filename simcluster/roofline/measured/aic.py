"""NVIDIA's aiconfigurator-core as the times of kernels (``engine.kernels = "aiconfigurator"``).

The package (Apache-2.0; github.com/ai-dynamo/aiconfigurator) bundles measured kernels of vLLM,
SGLang and TensorRT-LLM on NVIDIA GPUs and answers per operator; it needs no network. What it
interpolates is its own affair: `EngineHandle.evaluate_ops_json` in its mode SILICON, which uses
measured rows alone.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator
from functools import lru_cache
from importlib.metadata import version
from typing import Any, Final

from simcluster.catalog.layers import Attention
from simcluster.catalog.specs import EngineProfile, GPUSpec
from simcluster.config import AICONFIGURATOR, ModelConfig
from simcluster.errors import ConfigError
from simcluster.roofline.bounded import remember
from simcluster.roofline.measured.base import (
    SPREAD,
    Coverage,
    Elementwise,
    ExpertCall,
    Gemm,
    Heads,
    MeasuredKernels,
    experts_of,
    gemm_of,
    operator_of,
)
from simcluster.roofline.operators import ACTIVATION_BYTES, Operator, layer_operators

KEY: Final = "engine.kernels"
PACKAGE: Final = "aiconfigurator-core"
SYSTEMS: Final = {
    "A100-80GB SXM": "a100_sxm",
    "H100 SXM": "h100_sxm",
    "H200 SXM": "h200_sxm",
    "B200 SXM": "b200_sxm",
    "B300 SXM": "b300_sxm",
    "GB200 (per GPU)": "gb200",
    "GB300 (per GPU)": "gb300",
    "L40S": "l40s",
    "RTX PRO 6000 Blackwell Server": "rtx_pro_6000_server",
}
"""Catalogue name of a GPU, and the package's."""
BACKENDS: Final = {"vllm": "vllm", "sglang": "sglang", "trtllm": "trtllm", "ideal": "vllm"}
"""Beginning of an engine profile's name, and the package's backend."""
GEMM_MODES: Final = {
    "bf16": "bfloat16",
    "fp8": "fp8_static",
    "fp8-block": "fp8",
    "mxfp8": "fp8",
    "nvfp4": "nvfp4",
}
"""Weights and the package's rows. ``fp8_static`` is fp8 without bringing inputs to 8 bits, which
engines' kernels do (`EngineProfile.quantises`); ``fp8`` has it, as engines need a kernel for it
where scales are by blocks. Rows of fp8 by blocks hold the CPU time of a call (H100: 58 to 92 us
from 1 to 1024 rows of 6144 x 3072, B200: 170 to 270 us, where per tensor 10 to 40 us are measured),
so that those of one scale per matrix stand in."""
EXPERT_MODES: Final = {
    "bf16": ("bfloat16",),
    "fp8": ("fp8", "fp8_block"),
    "fp8-block": ("fp8_block", "fp8"),
    "mxfp8": ("fp8_block", "fp8"),
    "int4": ("int4_wo",),
    "int4-g64": ("int4_wo",),
    "int4-g32": ("int4_wo",),
    "mxfp4": ("w4a16_mxfp4",),
    "nvfp4": ("nvfp4",),
}
"""The same of experts; those behind the first stand in where it has no rows of the shape."""
ON_BLACKWELL: Final = ("w4a8_mxfp4_mxfp8", "w4a16_mxfp4")
"""Experts of MXFP4 on GPUs that multiply 4 bits: with inputs of 8 bits, as SGLang and TensorRT-LLM
run them by default, and vLLM with VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8=1 (InferenceX's
gptoss_fp4_b200.sh). vLLM has no such rows, and TensorRT-LLM none but for whole experts: SGLang's,
of the same kernels (FlashInfer's of TensorRT-LLM), stand in."""
CACHE_MODES: Final = {2.0: "bfloat16", 1.0: "fp8"}
"""Bytes of a number in the cache, and the package's rows."""
SKEW: Final = "power_law_1.01"
"""How unevenly tokens choose experts: what the package's models take by default
(sdk/models/*.py, ``_power_law_alpha = 1.01``)."""
_EACH: Final = 64
"""Rows up to which each number is asked for."""
_LEAST_PREFILL: Final = 0.25
"""Least ratio to the law of prefill attention, where what is taken off is most of a short call."""
_CONTEXTS: Final = tuple(float(2**i) for i in range(18))
"""Mean contexts (tokens) at which decode attention is asked for; in between the law gives the
shape."""


class AicKernels(MeasuredKernels):
    """Kernel times of the package.

    Parameters
    ----------
    model, gpu, engine, tp_size
        As of `MeasuredKernels`.

    Raises
    ------
    ConfigError
        If the package is not installed, or has no rows of this GPU or engine, or of this model.
    """

    brings_inputs = ("fp8-block", "mxfp8", "nvfp4")
    law_quantises = "fused"  # what stands in for weights by blocks holds bringing inputs to 8 bits
    knows_elementwise = False

    def in_call(self, operator: Operator) -> bool:
        """Whether a measured call of experts holds this kernel.

        Sorting tokens, the activation and the sum are in the engine's module that was measured; so
        is the choice of experts, for which the package's models have no kernel of its own
        (sdk/models/blocks/moe.py).
        """
        if operator.kind not in ("gemm", "elementwise"):
            return False
        return operator.name.startswith("experts_") or operator.name == "top_k"

    def __init__(
        self, model: ModelConfig, gpu: GPUSpec, engine: EngineProfile, tp_size: int
    ) -> None:
        super().__init__(model, gpu, engine, tp_size)
        backend = backend_of(engine.name)
        self._tables = tables_of(gpu.name, backend)
        self._gpu, self._backend = gpu, backend
        self._rows_of: dict[str, str] = {}
        self._ratios: dict[tuple[object, int], float | None] = {}
        if not self.coverage().measured:
            rule = f"{self._tables.name} has no rows of the kernels of {model.spec.name}"
            raise ConfigError(KEY, AICONFIGURATOR, rule, 'Use kernels = "law", or a file.')

    # --- answers ------------------------------------------------------------------------------

    def gemm_s(self, call: Gemm, law_s: float) -> float | None:
        """Time of a multiplication (s)."""
        mode = GEMM_MODES.get(call.dtype)
        if mode is None:
            return None

        def ratio(m: int) -> float | None:
            at = call._replace(m=float(m))
            answer = self._gemm_answer(at, mode)
            return None if answer is None else answer / self.law_gemm_s(at)

        return self._between(call._replace(m=0.0), call.m, law_s, ratio)

    def _gemm_answer(self, call: Gemm, mode: str) -> float | None:
        # With low_precision_input the answer of fp8_static does not bring the input to 8 bits.
        op = self._tables.ops.GEMM(
            "gemm",
            1.0,
            int(call.n),
            int(call.k),
            self._tables.names.GEMMQuantMode[mode],
            low_precision_input=mode == "fp8_static",
        )
        m = int(call.m)
        return self._tables.ask(op, is_context=False, batch_size=m, s=1, x=m)

    def _between(
        self, key: object, num_tokens: float, law_s: float, ratio: Callable[[int], float | None]
    ) -> float | None:
        """Time of a call (s) from the ratios at the numbers of rows that are asked for.

        Those of up to `_EACH` rows, and beyond them four in each octave: steps with prompts have
        thousands of different numbers of rows, and asking for each would take longer than the
        simulation. In between the ratio is linear in the rows.
        """
        low, high = rows_around(int(num_tokens))
        ends = []
        for m in (low, high):
            if (key, m) not in self._ratios:
                remember(self._ratios, (key, m), ratio(m))
            ends.append(self._ratios[key, m])
        first, last = ends
        if first is None or last is None:
            return None
        share = (num_tokens - low) / (high - low) if high > low else 0.0
        return law_s * (first + share * (last - first))

    def experts_s(self, call: ExpertCall, law_s: float) -> float | None:
        """Time of the experts of a layer (s)."""

        def ratio(m: int) -> float | None:
            at = call._replace(m=float(m))
            answer = self._experts_answer(at)
            return None if answer is None else answer / self._law_experts_s(at)

        return self._between(call._replace(m=0.0), call.m, law_s, ratio)

    def _experts_answer(self, call: ExpertCall) -> float | None:
        modes = EXPERT_MODES.get(call.dtype, ())
        if call.dtype == "mxfp4" and self._gpu.native_4bit:
            modes = ON_BLACKWELL
        for mode in modes:
            for tables in self._expert_tables(mode):
                m = int(call.m)
                op = self._expert_op(call, tables.names.MoEQuantMode[mode])
                found = tables.ask(op, is_context=False, batch_size=m, s=1, x=m)
                if found is not None:
                    self._rows_of[call.dtype] = f"{mode} of {tables.backend}"
                    return found
        return None

    def _expert_tables(self, mode: str) -> Iterator[Tables]:
        yield self._tables
        if mode == ON_BLACKWELL[0] and self._backend != "sglang":
            yield tables_of(self._gpu.name, "sglang")

    def _expert_op(self, call: ExpertCall, mode: Any) -> Any:
        return self._tables.ops.MoE(
            "moe",
            1.0,
            int(call.hidden),
            round(call.width * self._tp_size),
            call.top_k,
            call.num_experts,
            self._tp_size,
            1,
            mode,
            SKEW,
            1,
            is_context=False,
            is_gated=self._model.spec.gated_mlp,
        )

    def elementwise_s(self, call: Elementwise, law_s: float) -> float | None:
        """Nothing: the package has a formula for elementwise kernels, and no rows."""
        return None

    def decode_ratios(self, heads: Heads, num_decodes: int) -> list[tuple[float, float]] | None:
        """Mean context of a sequence (tokens) and measured over law's time there, rising."""
        mode = CACHE_MODES.get(heads.cache_bytes)
        if mode is None:
            return None
        op = self._tables.ops.GenerationAttention(
            "attention",
            1.0,
            int(heads.heads),
            int(heads.kv_heads),
            self._tables.names.KVCacheQuantMode[mode],
            head_size=heads.head_dim,
        )
        found = []
        for context in _CONTEXTS:
            answer = self._tables.ask(op, is_context=False, batch_size=num_decodes, s=int(context))
            if answer is None:
                return None
            found.append((context, answer / self.law_decode_s(heads, num_decodes, context)))
        return found

    def prefill_ratio(self, heads: Heads, new: int, cached: int, num_chunks: int) -> float | None:
        """Measured over law's time of a chunk of `new` tokens behind `cached` ones.

        It is asked for as `_between` says, behind as many cached tokens as its grid has below.
        """
        behind = rows_around(cached)[0] if cached else 0
        key = (heads, behind, num_chunks)
        return self._between(
            key, new, 1.0, lambda m: self._prefill_answer(heads, m, behind, num_chunks)
        )

    def _prefill_answer(self, heads: Heads, new: int, cached: int, num_chunks: int) -> float | None:
        mode = CACHE_MODES.get(heads.cache_bytes)
        if mode is None:
            return None
        names = self._tables.names
        op = self._tables.ops.ContextAttention(
            "attention",
            1.0,
            int(heads.heads),
            int(heads.kv_heads),
            names.KVCacheQuantMode[mode],
            names.FMHAQuantMode.bfloat16,
            head_size=heads.head_dim,
        )
        answer = self._tables.ask(op, is_context=True, batch_size=num_chunks, s=new, prefix=cached)
        if answer is None:
            return None
        # Its answer holds rotary embedding and the write to the cache, which are kernels of ours.
        answer -= self._beside_prefill_s(heads, new * num_chunks)
        law_s = self.law_prefill_s(heads, new, cached, num_chunks)
        return max(answer / law_s, _LEAST_PREFILL)

    def _beside_prefill_s(self, heads: Heads, num_tokens: int) -> float:
        """Time of rotary embedding and cache write by the law (s)."""
        width = heads.head_dim * num_tokens
        rotated = 2.0 * ACTIVATION_BYTES * width * (heads.heads + heads.kv_heads)
        written = (ACTIVATION_BYTES + heads.cache_bytes) * width * 2.0 * heads.kv_heads
        kernels = ("rope", rotated), ("kv_write", written)
        return sum(
            [
                self._law.operator_s(Operator(name, "elementwise", 0.0, moved, rows=num_tokens))
                for name, moved in kernels
            ],
            0.0,
        )

    def law_gemm_s(self, call: Gemm) -> float:
        """Time of a multiplication by the law (s)."""
        return self._law.operator_s(operator_of(call))

    def expert_pairs(self, num_tokens: int) -> list[tuple[float | None, float]]:
        """Times of the calls of experts of `num_tokens` tokens: measured (None), by the law (s)."""
        pairs = [(self._experts_answer(c), law_s) for c, law_s in self._expert_calls(num_tokens)]
        return list(dict.fromkeys(pairs))

    def _expert_calls(self, num_tokens: int) -> Iterator[tuple[ExpertCall, float]]:
        """Calls of experts of each kind of layer, and their times by the law (s)."""
        for run in self._model.spec.layers:
            operators = layer_operators(self._model, run.layer, self._tp_size, num_tokens)
            members = [operator for operator in operators if self.in_call(operator)]
            call = experts_of(members, self._model)
            if call is not None:
                yield call, sum([self._law.operator_s(operator) for operator in members], 0.0)

    def _law_experts_s(self, call: ExpertCall) -> float:
        """Time of a call of experts of the model by the law (s)."""
        return dict(self._expert_calls(int(call.m)))[call]

    def coverage(self, *, spread: bool = False) -> Coverage:
        """Return what of the model is measured, and what is not (see `MeasuredKernels`)."""
        measured: dict[str, str] = {}
        gemms, absent = {}, set()
        for operator in self._operators():
            if operator.kind == "gemm" and not self.in_call(operator):
                call = gemm_of(operator)
                if call.dtype not in GEMM_MODES or self.gemm_s(call, 1.0) is None:
                    absent.add(call.dtype or "another dtype")
                else:
                    gemms[call.dtype] = GEMM_MODES[call.dtype]
        notes = []
        if gemms:
            measured["GEMM"] = ", ".join(
                name if name == mode.replace("bfloat", "bf") else f"{name}: rows {mode}"
                for name, mode in gemms.items()
            )
        if absent and gemms:
            notes.append(f"GEMMs with weights of {', '.join(sorted(absent))} by the law")
        if spread and self._model.spec.experts is not None:
            notes.append(SPREAD)
        for experts in () if spread else self._needed_experts():
            if self.experts_s(experts, 1.0) is not None:
                rows = self._rows_of[experts.dtype]
                measured["experts"] = f"{experts.dtype}: rows {rows}, {SKEW}"
        latent = False
        for mixer in self._model.spec.mixers:
            if not isinstance(mixer, Attention):
                latent = True
                continue
            heads = self.heads_of(mixer)
            if self.prefill_ratio(heads, 1024, 0, 1) is not None:
                measured["prefill attention"] = "16-bit multiplications"
            if self.decode_ratios(heads, 1) is not None:
                measured["decode attention"] = f"cache {CACHE_MODES[heads.cache_bytes]}"
        if latent:
            notes.append("latent attention and recurrent layers by the law")
        return Coverage(self._tables.name, measured, (), tuple(notes), self._classes())


class Tables:
    """The package's rows of one GPU and one engine.

    Attributes
    ----------
    name, backend : str
        Package, system, backend and version; the backend alone.
    ops, names : module
        The package's operators, and its names of dtypes.
    lanes : dict
        By attention op, the kernels that the engine takes by default.

    Raises
    ------
    ImportError
        If the package is not installed.
    LookupError
        If it has no rows of them.
    """

    def __init__(self, system: str, backend: str) -> None:
        with _quiet():
            from aiconfigurator_core.sdk import common, operations, perf_database
            from aiconfigurator_core.sdk.engine import EngineHandle, build_ops_json

            self.ops: Any = operations
            self.names: Any = common
            try:
                database = perf_database.get_database(system, backend, "current")
            except Exception as error:  # the package has no class of its own for it
                raise LookupError(f"{system}, {backend}: {error}") from None
            if database is None:
                raise LookupError(f"{system}, {backend}")
            self._handle: Any = EngineHandle.for_database(database)
            self._as_json: Any = build_ops_json
            self.lanes = _lanes_of(database)
        self.backend = backend
        self.name = f"{PACKAGE} {version(PACKAGE)} ({system}, {backend} {database.version})"

    def ask(self, op: Any, **place: Any) -> float | None:
        """Return the time of one call (s); None where there are no rows of its kind."""
        if (order := self.lanes.get(type(op).__name__)) is not None:
            op._lane_order = order
        try:
            (answer,) = self._handle.evaluate_ops_json(self._as_json([op]), **place)
        except Exception:  # the package has no class of its own for rows that are missing
            return None
        latency_ms = float(answer[1])
        return latency_ms * 1e-3 if latency_ms > 0.0 else None


def _lanes_of(database: Any) -> dict[str, list[str]]:
    """Return by attention op which kernels the engine takes by default."""
    from aiconfigurator_core.sdk.operations.attention import resolved_lane_order_for_op

    return {
        name: list(resolved_lane_order_for_op(database, table))
        for name, table in (
            ("ContextAttention", "_context_attention_data"),
            ("GenerationAttention", "_generation_attention_data"),
        )
    }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the package's warnings and log lines from the user."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def rows_around(num_rows: int) -> tuple[int, int]:
    """Return the numbers of rows that are asked for around `num_rows`; it twice if it is one.

    >>> rows_around(48), rows_around(100), rows_around(128)
    ((48, 48), (96, 112), (128, 128))
    """
    if num_rows <= _EACH:
        return num_rows, num_rows
    step = 1 << (num_rows.bit_length() - 3)
    low = num_rows // step * step
    return (low, low) if low == num_rows else (low, low + step)


def backend_of(engine: str) -> str:
    """Return the package's name of the engine of a profile.

    Raises
    ------
    ConfigError
        If the package has none.
    """
    for start, backend in BACKENDS.items():
        if engine.startswith(start):
            return backend
    rule = f"{PACKAGE} has measured vLLM, SGLang and TensorRT-LLM, not engine {engine!r}"
    remedy = 'Use one of their profiles, kernels = "law", or a file.'
    raise ConfigError(KEY, AICONFIGURATOR, rule, remedy)


@lru_cache(maxsize=16)
def tables_of(gpu: str, backend: str) -> Tables:
    """Return the package's rows of a GPU, by the catalogue's name, under an engine.

    Raises
    ------
    ConfigError
        If the package is not installed, or has no rows of them.
    """
    if gpu not in SYSTEMS:
        rule = f"{PACKAGE} has no measured kernels of {gpu}"
        close = next((name for name in SYSTEMS if name.split()[0][:4] == gpu.split()[0][:4]), None)
        near = f"The nearest it has is {close}. " if close else f"It has {', '.join(SYSTEMS)}. "
        remedy = f'{near}Use one of these, kernels = "law", or a file of your own.'
        raise ConfigError(KEY, AICONFIGURATOR, rule, remedy)
    try:
        return Tables(SYSTEMS[gpu], backend)
    except ImportError:
        rule = f"needs the package {PACKAGE}, which is not installed"
        remedy = 'Run pip install "simcluster[aic]" (it brings its tables and needs no network).'
        raise ConfigError(KEY, AICONFIGURATOR, rule, remedy) from None
    except LookupError as error:
        rule = f"{PACKAGE} {version(PACKAGE)} has no rows of {error}"
        remedy = 'Use an engine that it has measured on this GPU, kernels = "law", or a file.'
        raise ConfigError(KEY, AICONFIGURATOR, rule, remedy) from None
