"""A user's own file of kernel times as the times of kernels (``engine.kernels = "mine.csv"``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from math import inf
from typing import Final, NoReturn

from simcluster.catalog.kernel_file import KernelCall, KernelRow, KernelTable
from simcluster.catalog.layers import (
    KV_BYTES,
    WEIGHT_DTYPES,
    Attention,
    Experts,
    Layer,
    LayerDtypes,
    WeightDtype,
)
from simcluster.catalog.specs import EngineProfile, GPUSpec
from simcluster.config import ModelConfig
from simcluster.errors import ConfigError
from simcluster.roofline.measured.base import (
    Coverage,
    Elementwise,
    ExpertCall,
    Gemm,
    Heads,
    MeasuredKernels,
    gemm_of,
    operator_of,
)
from simcluster.roofline.measured.ragged import Point, Ragged
from simcluster.roofline.operators import (
    ACTIVATION_BYTES,
    Operator,
    layer_operators,
)

KEY: Final = "engine.kernels"
FARTHEST: Final = 4.0
"""Times that a shape or a number of rows may lie beyond the measured ones; farther is refused."""
_FEWEST: Final = 2
"""Numbers of rows (batch sizes, contexts) that a class must have been measured at."""
_ELEMENTWISE: Final = {
    "norm": ("input_norm", 4.0),
    "rope": ("rope", 2.0),
    "activation": ("activation", 3.0),
    "embedding": ("embedding", 2.0),
    "kv_write": ("kv_write", 2.0),
    "sampler": ("sampler", 5.0),
}
"""Our kernel, and numbers of 16 bits that it moves per element."""
_UNUSED: Final = {
    "grouped_gemm": "single multiplications of experts",
    "attention_mixed": "decodes beside a chunk in one kernel",
    "norm_only": "norms without a residual sum",
    "add": "residual sums",
    "all_reduce": "collectives",
    "all_gather": "collectives",
    "send_recv": "messages",
    "issue": "CPU time",
}
"""Operators of the file that stay the law's, or the engine's and the links'."""


class OwnKernels(MeasuredKernels):
    """Kernel times of a file.

    Parameters
    ----------
    table : KernelTable
        The file.
    model, gpu, engine, tp_size
        As of `MeasuredKernels`.

    Raises
    ------
    ConfigError
        If a class of operators was measured at too few points, or too far from what is served.
    DataError
        If the file has no rows of the GPU.
    """

    def __init__(
        self,
        table: KernelTable,
        model: ModelConfig,
        gpu: GPUSpec,
        engine: EngineProfile,
        tp_size: int,
    ) -> None:
        super().__init__(model, gpu, engine, tp_size)
        self.name = table.name
        graph = [row for row in table.of(gpu.name).rows if not row.call.eager]
        if not graph:
            raise ConfigError(
                KEY,
                table.name,
                'all rows have mode = "eager", which holds CPU time',
                "Measure inside captured graphs: `simcluster measure` does.",
            )
        self._gemms = self._by_dtype(graph, "gemm", self._gemm_point)
        self._experts = self._by_dtype(graph, "moe", self._experts_point)
        cached = [row for row in graph if _cache_bytes(row.call.dtype) == model.kv_bytes]
        self._decode = self._grid(cached, "attention_decode", self._decode_point)
        self._prefill = self._grid(cached, "attention_prefill", self._prefill_point)
        self._rows = {
            name: grid
            for name in _ELEMENTWISE
            if (grid := self._grid(graph, name, self._elementwise_point)) is not None
        }
        self._unused = tuple(
            dict.fromkeys(_UNUSED[r.call.operator] for r in graph if r.call.operator in _UNUSED)
        )
        limits = engine.on(gpu)
        self._most_tokens = float(max(limits.chunk_size, limits.max_num_batched_tokens or 1))
        self._most_seqs = float(limits.max_num_seqs)
        self._longest = float(model.max_model_len)
        self._beyond: list[str] = []
        self._check()

    def coverage(self) -> Coverage:
        """Return what of the model is measured, and how far steps go beyond it."""
        measured = {}
        if self._gemms:
            counts = ", ".join(f"{len(grid)} of {name}" for name, grid in self._gemms.items())
            measured["GEMM"] = f"rows: {counts}"
        if self._experts and self._model.spec.experts is not None:
            counts = ", ".join(f"{len(grid)} of {name}" for name, grid in self._experts.items())
            measured["experts"] = f"rows: {counts}"
        if self._prefill is not None:
            measured["prefill attention"] = f"{len(self._prefill)} rows"
        if self._decode is not None:
            measured["decode attention"] = f"{len(self._decode)} rows"
        if self._rows:
            measured["elementwise"] = ", ".join(self._rows)
        notes = [f"rows of {', '.join(self._unused)} are not used"] if self._unused else []
        absent = sorted({call.dtype for _, call in self._needed_gemms()} - set(self._gemms))
        if self._gemms and absent:
            notes.append(f"GEMMs with weights of {', '.join(absent)} by the law")
        return Coverage(self.name, measured, tuple(self._beyond), tuple(notes))

    # --- what is needed -----------------------------------------------------------------------

    def _check(self) -> None:
        """Refuse what was measured too far from what is served, and note how far it is."""
        for dtype, grid in self._gemms.items():
            self._check_gemms(dtype, grid)
            self._reaches(grid, f"gemm of {dtype}", 0, "m", self._most_tokens)
        for call in self._needed_experts():
            if known := self._experts.get(call.dtype):
                sides = (call.width, call.hidden, float(call.num_experts), float(call.top_k))
                what = f"the layer's experts ({', '.join(f'{value:g}' for value in sides)})"
                self._near(known, "moe", "columns n, k, num_experts and top_k", sides, what)
                self._reaches(known, f"moe of {call.dtype}", 0, "m", self._most_tokens)
        for mixer in self._model.spec.mixers:
            if not isinstance(mixer, Attention):
                continue
            shape = _shape(self.heads_of(mixer))
            names = "columns num_heads, num_kv_heads and head_dim"
            rank = f"a rank's attention ({', '.join(f'{value:g}' for value in shape)})"
            if self._decode is not None:
                self._near(self._decode, "attention_decode", names, shape, rank)
                self._reaches(self._decode, "attention_decode", 0, "batch", self._most_seqs)
                *_, longest = self._several(self._decode, "attention_decode", 1, "context")
                if longest < self._longest:
                    self._say(
                        f"attention_decode at context to {self._longest:g} (table: to {longest:g})"
                    )
            if self._prefill is not None:
                self._near(self._prefill, "attention_prefill", names, shape, rank)
                # Short chunks take next to nothing: only the longest must be near the table.
                self._reaches(self._prefill, "attention_prefill", 2, "m", self._most_tokens, inf)

    def _needed_gemms(self) -> list[tuple[str, Gemm]]:
        """Multiplications of the model for one token."""
        found: dict[Gemm, str] = {}
        for operator in self._operators():
            if operator.kind == "gemm" and operator.groups == 1.0:
                found.setdefault(gemm_of(operator), operator.name)
        return [(name, call) for call, name in found.items()]

    def _check_gemms(self, dtype: str, grid: Ragged) -> None:
        """Refuse a table that no multiplication is near of; the law counts for those that are far.

        A router, say, is far narrower than what a table of projections holds.
        """
        away = sorted(
            (grid.distance((call.n, call.k)), f"{operator} (n {call.n:g}, k {call.k:g}, {dtype})")
            for operator, call in self._needed_gemms()
            if call.dtype == dtype
        )
        if away and away[0][0] > FARTHEST:
            self._refuse_far(away[0][0], "gemm", "columns n and k", away[0][1])
        for times, what in away:
            if times > FARTHEST:
                self._say(f"{what} by the law: the nearest row is {times:.3g} times off")
            elif times > 1.0:
                self._say(f"{what} is not in the table, the nearest is {times:.3g} times off")

    def _near(
        self, grid: Ragged, operator: str, columns: str, shape: tuple[float, ...], what: str
    ) -> None:
        """Refuse shapes that are too far from any measured one; note those that are not there."""
        times = grid.distance(shape)
        if times > FARTHEST:
            self._refuse_far(times, operator, columns, what)
        if times > 1.0:
            self._say(f"{what} is not in the table, the nearest is {times:.3g} times off")

    def _refuse_far(self, times: float, operator: str, columns: str, what: str) -> NoReturn:
        rule = (
            f"{columns} of {operator}: the nearest row is {times:.3g} times off {what}; up to "
            f"{FARTHEST:g} times are interpolated"
        )
        remedy = (
            "Measure that shape (`simcluster measure --model NAME`), or remove the rows of "
            f"{operator} so that the law counts."
        )
        raise ConfigError(KEY, self.name, rule, remedy)

    def _several(self, grid: Ragged, operator: str, axis: int, column: str) -> list[float]:
        """Return the values of an axis; refuse fewer than two."""
        values = grid.all_values(axis)
        if len(values) < _FEWEST:
            rule = f"column {column} of {operator} is {values[0]:g} in all rows: nothing between"
            remedy = f"Measure {operator} at several, or remove its rows so that the law counts."
            raise ConfigError(KEY, self.name, rule, remedy)
        return values

    def _reaches(
        self,
        grid: Ragged,
        operator: str,
        axis: int,
        column: str,
        most: float,
        lowest: float = FARTHEST,
    ) -> None:
        """Refuse a range that is too narrow for steps of 1 to `most`; note what is beyond it."""
        low, *_, high = self._several(grid, operator, axis, column)
        if low > lowest or most > FARTHEST * high:
            rule = (
                f"column {column} of {operator} goes from {low:g} to {high:g}, and steps have 1 "
                f"to {most:g}; up to {FARTHEST:g} times beyond the table are extrapolated"
            )
            limit = "engine.max_num_seqs" if column == "batch" else "engine.chunk_size"
            lower = f"lower {limit} to {FARTHEST * high:g}" if most > FARTHEST * high else ""
            remedy = f"Measure more, {lower or 'from 1 on'}, or remove the rows of {operator}."
            raise ConfigError(KEY, self.name, rule, remedy)
        if low > 1.0 or most > high:
            self._say(f"{operator} at {column} of 1 to {most:g} (table: {low:g} to {high:g})")

    def _say(self, line: str) -> None:
        if line not in self._beyond:
            self._beyond.append(line)

    # --- answers ------------------------------------------------------------------------------

    def gemm_s(self, call: Gemm, law_s: float) -> float | None:
        """Time of a multiplication (s)."""
        grid, shape = self._gemms.get(call.dtype), (call.n, call.k)
        if grid is None or grid.distance(shape) > FARTHEST:
            return None
        return law_s * grid.ratio(shape, (call.m,))

    def experts_s(self, call: ExpertCall, law_s: float) -> float | None:
        """Time of the experts of a layer (s)."""
        grid = self._experts.get(call.dtype)
        if grid is None:
            return None
        shape = (call.width, call.hidden, float(call.num_experts), float(call.top_k))
        return law_s * grid.ratio(shape, (call.m,))

    def elementwise_s(self, call: Elementwise, law_s: float) -> float | None:
        """Time of an elementwise kernel (s)."""
        grid = self._rows.get(call.operator)
        return None if grid is None else law_s * grid.ratio((call.n,), (call.m,))

    def decode_ratios(self, heads: Heads, num_decodes: int) -> list[tuple[float, float]] | None:
        """Mean context of a sequence (tokens) and measured over law's time there, rising."""
        if self._decode is None:
            return None
        shape = _shape(heads)
        return [
            (context, self._decode.ratio(shape, (float(num_decodes), context)))
            for context in self._decode.values(shape, 1)
        ]

    def prefill_ratio(self, heads: Heads, new: int, cached: int, num_chunks: int) -> float | None:
        """Measured over law's time of a chunk of `new` tokens behind `cached` ones."""
        if self._prefill is None:
            return None
        return self._prefill.ratio(
            _shape(heads), (float(num_chunks), float(cached + 1), float(new))
        )

    # --- points -------------------------------------------------------------------------------

    def _grid(
        self, rows: Iterable[KernelRow], operator: str, point: Callable[[KernelRow], Point]
    ) -> Ragged | None:
        points = [point(row) for row in rows if row.call.operator == operator]
        return Ragged(points) if points else None

    def _by_dtype(
        self, rows: list[KernelRow], operator: str, point: Callable[[KernelRow], Point]
    ) -> dict[str, Ragged]:
        found: dict[str, list[KernelRow]] = {}
        for row in rows:
            if row.call.operator == operator:
                dtype = "bf16" if row.call.dtype == "fp16" else row.call.dtype
                found.setdefault(dtype, []).append(row)
        return {dtype: Ragged(map(point, own)) for dtype, own in found.items()}

    def _gemm_point(self, row: KernelRow) -> Point:
        call = row.call
        law_s = self._law.operator_s(
            operator_of(Gemm(_weights(call.dtype).name, call.m, call.n, call.k))
        )
        return Point((call.n, call.k), (call.m,), row.time_s / law_s)

    def _experts_point(self, row: KernelRow) -> Point:
        call = row.call
        law_s = sum(map(self._law.operator_s, self._experts_of(call)), 0.0)
        shape = (call.n, call.k, call.num_experts, call.top_k)
        return Point(shape, (call.m,), row.time_s / law_s)

    def _experts_of(self, call: KernelCall) -> Iterator[Operator]:
        """Kernels that one call of experts holds."""
        layer = Layer(
            mixer=None,
            mlps=(
                Experts(
                    num_experts=int(call.num_experts),
                    num_active=int(call.top_k),
                    ffn_dim=int(call.n),
                ),
            ),
            dtypes=LayerDtypes(experts=_weights(call.dtype)),
        )
        spec = replace(self._model.spec, hidden_size=int(call.k))
        model = replace(self._model, spec=spec, weight_dtype=None)
        for operator in layer_operators(model, layer, 1, int(call.m)):
            if self.in_call(operator):
                yield operator

    def _decode_point(self, row: KernelRow) -> Point:
        call = row.call
        heads = _heads(call, self._model.kv_bytes)
        mean = call.context + 1.0
        law_s = self.law_decode_s(heads, int(call.batch), mean)
        return Point(_shape(heads), (call.batch, mean), row.time_s / law_s)

    def _prefill_point(self, row: KernelRow) -> Point:
        call = row.call
        heads = _heads(call, self._model.kv_bytes)
        law_s = self.law_prefill_s(heads, int(call.m), int(call.context), int(call.batch))
        place = (call.batch, call.context + 1.0, call.m)
        return Point(_shape(heads), place, row.time_s / law_s)

    def _elementwise_point(self, row: KernelRow) -> Point:
        call = row.call
        name, numbers = _ELEMENTWISE[call.operator]
        moved = numbers * ACTIVATION_BYTES * call.m * call.n
        if name == "kv_write":
            moved = (ACTIVATION_BYTES + self._model.kv_bytes) * call.m * call.n
        law_s = self._law.operator_s(Operator(name, "elementwise", 0.0, moved, rows=call.m))
        return Point((call.n,), (call.m,), row.time_s / law_s)


def _weights(dtype: str) -> WeightDtype:
    return WEIGHT_DTYPES["bf16" if dtype == "fp16" else dtype]


def _cache_bytes(dtype: str) -> float | None:
    """Bytes of a number in a cache of this dtype; None where no cache has it."""
    return KV_BYTES.get("bf16" if dtype == "fp16" else dtype)


def _heads(call: KernelCall, cache_bytes: float) -> Heads:
    return Heads(call.num_heads, call.num_kv_heads, int(call.head_dim), cache_bytes)


def _shape(heads: Heads) -> tuple[float, float, float]:
    return (heads.heads, heads.kv_heads, float(heads.head_dim))
