"""A user's own file of kernel times as the times of kernels (``engine.kernels = "mine.csv"``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from math import inf
from typing import Final, NamedTuple, NoReturn

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
    SPREAD,
    Coverage,
    Elementwise,
    ExpertCall,
    Gemm,
    Heads,
    MeasuredKernels,
    elementwise_of,
    gemm_of,
    operator_of,
)
from simcluster.roofline.measured.ragged import Point, Ragged
from simcluster.roofline.operators import (
    ACTIVATION_BYTES,
    Operator,
    embedding_operators,
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
_CACHED: Final = ("attention_decode", "attention_prefill")
"""Operators whose dtype is that of the cache."""


class _Needed(NamedTuple):
    """A kernel that the model has on one rank."""

    name: str
    what: str
    """Its name and shape, for messages."""
    shape: tuple[float, ...]
    most: float
    """Most rows (of decode attention: sequences) of a step."""


class _Column(NamedTuple):
    """A column along which a class of kernels is interpolated."""

    kind: str
    """One of `CLASSES`."""
    operator: str
    label: str
    """The operator, with its dtype where kernels of each dtype have a table of their own."""
    axis: int
    name: str
    """Of the column."""
    lowest: float = FARTHEST
    """Largest first value that is near enough of steps of one row."""


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
        self.name, self._gpu_name = table.name, gpu.name
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
        others = {r.call.dtype for r in graph if r.call.operator in _CACHED} - {
            row.call.dtype for row in cached
        }
        self._decode = self._grid(cached, "attention_decode", self._decode_point)
        self._prefill = self._grid(cached, "attention_prefill", self._prefill_point)
        self._rows = {
            name: grid
            for name in _ELEMENTWISE
            if (grid := self._grid(graph, name, self._elementwise_point)) is not None
        }
        self._unused = tuple(
            dict.fromkeys(_UNUSED[r.call.operator] for r in graph if r.call.operator in _UNUSED)
        ) + tuple(f"attention with a cache of {dtype}" for dtype in sorted(others))
        limits = engine.on(gpu)
        self._most_tokens = float(max(limits.chunk_size, limits.max_num_batched_tokens or 1))
        self._most_seqs = float(limits.max_num_seqs)
        self._longest = float(model.max_model_len)
        # Labels and shapes of kernels that no measured shape is near enough to.
        self._by_law: set[tuple[str, tuple[float, ...]]] = set()
        # By class of `CLASSES`: what of it is used, where steps go beyond it, and which kernels
        # take the ratios of other shapes.
        self._used: dict[str, str] = {}
        self._beyond: list[tuple[str, str]] = []
        self._between: list[tuple[str, str]] = []
        self._check()

    def coverage(self, *, spread: bool = False) -> Coverage:
        """Return what of the model is measured, and how far steps go beyond it."""
        left_out = "experts" if spread else ""
        measured = {name: about for name, about in self._used.items() if name != left_out}
        beyond, between = (
            tuple(dict.fromkeys(line for name, line in lines if name != left_out))
            for lines in (self._beyond, self._between)
        )
        notes = [f"rows of {', '.join(self._unused)} are not used"] if self._unused else []
        if between:
            notes.append(f"not in the table, by the nearest shapes: {'; '.join(between)}")
        if spread and self._model.spec.experts is not None:
            notes.append(SPREAD)
        return Coverage(self.name, measured, beyond, tuple(notes), self._classes())

    # --- what is needed -----------------------------------------------------------------------

    def _check(self) -> None:
        """Refuse what was measured too far from what is served, and note how far it is."""
        self._check_gemms()
        self._check_experts()
        for mixer in self._model.spec.mixers:
            if isinstance(mixer, Attention):
                self._check_attention(_shape(self.heads_of(mixer)))
        self._check_elementwise()
        if not self._used:
            rule = f"no row is of a kernel that {self._model.spec.name} has on {self._gpu_name}"
            unused = f" (rows of {', '.join(self._unused)})" if self._unused else ""
            remedy = 'Measure its shapes (`simcluster measure --model NAME`), or use "law".'
            raise ConfigError(KEY, self.name, rule + unused, remedy)

    def _needed(self) -> Iterator[tuple[Operator, float]]:
        """Give the kernels of the model for one token, with the most rows that a step has."""
        for operator in (*embedding_operators(self._model, self._tp_size, 1), *self._operators()):
            # Behind the last layer kernels see one row for each sequence.
            is_sampled = operator.name in ("lm_head", "sampler")
            yield operator, self._most_seqs if is_sampled else self._most_tokens

    def _check_gemms(self) -> None:
        """Refuse a table that no multiplication is near of; the law counts for those that are far.

        A router, say, is far narrower than what a table of projections holds.
        """
        needed: dict[str, list[_Needed]] = {}
        for operator, most in self._needed():
            if operator.kind == "gemm" and operator.groups == 1.0 and not self.in_call(operator):
                call = gemm_of(operator)
                what = f"{operator.name} (n {call.n:g}, k {call.k:g}, {call.dtype})"
                one = _Needed(operator.name, what, (call.n, call.k), most)
                needed.setdefault(call.dtype, []).append(one)
        self._unused += tuple(f"gemm of {dtype}" for dtype in self._gemms if dtype not in needed)
        rows, law = [], []
        for dtype, own in needed.items():
            grid = self._gemms.get(dtype)
            if grid is None:
                law += [one.name for one in own]
                continue
            rows.append(f"{len(grid)} of {dtype}")
            column = _Column("GEMM", "gemm", f"gemm of {dtype}", 0, "m")
            away = self._reach(grid, own, column)
            if len(away) == len({one.shape for one in own}):
                times, nearest = min((times, one.what) for times, one in away)
                self._refuse_far(times, "gemm", "columns n and k", nearest)
            law += self._names_by_law(own, column)
        if rows:
            self._use("GEMM", f"rows: {', '.join(rows)}", law)

    def _check_experts(self) -> None:
        calls = {call.dtype: call for call in self._needed_experts()}
        self._unused += tuple(f"moe of {dtype}" for dtype in self._experts if dtype not in calls)
        rows = []
        for dtype, call in calls.items():
            if (grid := self._experts.get(dtype)) is None:
                continue
            rows.append(f"{len(grid)} of {dtype}")
            shape = (call.width, call.hidden, float(call.num_experts), float(call.top_k))
            what = f"the layer's experts ({', '.join(f'{value:g}' for value in shape)})"
            column = _Column("experts", "moe", f"moe of {dtype}", 0, "m")
            self._near(
                grid,
                _Needed("experts", what, shape, self._most_tokens),
                column,
                "columns n, k, num_experts and top_k",
            )
        if rows:
            self._use("experts", f"rows: {', '.join(rows)}", [])

    def _check_attention(self, shape: tuple[float, ...]) -> None:
        """Check both kinds of attention of a layer with heads of `shape`."""
        names = "columns num_heads, num_kv_heads and head_dim"
        what = f"a rank's attention ({', '.join(f'{value:g}' for value in shape)})"
        if (grid := self._decode) is not None:
            kind = "decode attention"
            column = _Column(kind, "attention_decode", "attention_decode", 0, "batch")
            one = _Needed("attention", what, shape, self._most_seqs)
            self._near(grid, one, column, names)
            for known in grid.stand_ins(shape):
                self._several(grid, known, column._replace(axis=1, name="context"))
            longest, (batch,) = min(grid.shortest(known, 1) for known in grid.stand_ins(shape))
            if longest < self._longest:
                where = f"to {longest:g} at batch {batch:g}"
                self._say(
                    kind, f"attention_decode at context to {self._longest:g} (table: {where})"
                )
            self._use(kind, f"{len(grid)} rows", [])
        if (grid := self._prefill) is not None:
            kind = "prefill attention"
            # Short chunks take next to nothing: only the longest must be near the table.
            column = _Column(kind, "attention_prefill", "attention_prefill", 2, "m", lowest=inf)
            self._near(grid, _Needed("attention", what, shape, self._most_tokens), column, names)
            stand_ins = grid.stand_ins(shape)
            most = min(grid.own_values(known, 0)[-1] for known in stand_ins)
            if most < self._most_seqs:
                line = f"attention_prefill of more than {most:g} chunks in a step"
                self._say(kind, line)
            longest = min(grid.own_values(known, 1)[-1] for known in stand_ins) - 1.0
            if longest < self._longest:
                self._say(kind, f"attention_prefill behind more than {longest:g} cached tokens")
            self._use(kind, f"{len(grid)} rows", [])

    def _check_elementwise(self) -> None:
        """Note which of these kernels are far from their rows: the law counts for them."""
        needed: dict[str, list[_Needed]] = {}
        for operator, most in self._needed():
            if operator.kind == "elementwise" and not self.in_call(operator):
                row = elementwise_of(operator, self._model.kv_bytes)
                if row is not None:
                    what = f"{operator.name} (n {row.n:g})"
                    one = _Needed(operator.name, what, (row.n,), most)
                    needed.setdefault(row.operator, []).append(one)
        used, law = [], []
        for name, own in needed.items():
            if (grid := self._rows.get(name)) is None:
                continue
            column = _Column("elementwise", name, name, 0, "m")
            away = self._reach(grid, own, column)
            law += self._names_by_law(own, column)
            if len(away) < len({one.shape for one in own}):
                used.append(name)
        if used:
            self._use("elementwise", ", ".join(used), law)

    def _reach(
        self, grid: Ragged, needed: Iterable[_Needed], column: _Column
    ) -> list[tuple[float, _Needed]]:
        """Return what is too far from all rows, and how far; check the range of the rest by shape.

        A shape that was not measured takes the nearest ones whose range is wide enough.
        """
        away: list[tuple[float, _Needed]] = []
        ranges: dict[tuple[float, float, float], list[str]] = {}
        most_of: dict[tuple[float, ...], _Needed] = {}
        for one in needed:
            if one.shape not in most_of or one.most > most_of[one.shape].most:
                most_of[one.shape] = one
        for shape, one in most_of.items():
            if shape not in grid.shapes:
                allowed = [k for k in grid.shapes if self._is_wide(grid, k, column, one.most)]
                times = grid.distance(shape, allowed)
                if times > FARTHEST >= grid.distance(shape):
                    nearest = min(grid.shapes, key=lambda k: grid.distance(shape, [k]))
                    self._refuse_narrow(grid, nearest, column, one)
                if times > FARTHEST:
                    self._by_law.add((column.label, shape))
                    away.append((grid.distance(shape), one))
                    continue
                grid.stand_in(shape, allowed)
                self._between.append((column.kind, f"{one.what}, {times:.3g} times off"))
            else:
                self._several(grid, shape, column)
                if not self._is_wide(grid, shape, column, one.most):
                    self._refuse_narrow(grid, shape, column, one)
            values = [grid.own_values(known, column.axis) for known in grid.stand_ins(shape)]
            low, high = max(own[0] for own in values), min(own[-1] for own in values)
            if low > 1.0 or one.most > high:
                ranges.setdefault((low, high, one.most), []).append(one.name)
        for (low, high, most), names in ranges.items():
            which = "" if len(names) + len(away) == len(most_of) else f" ({', '.join(names)})"
            line = f"{column.label}{which} at {column.name} of 1 to {most:g}"
            self._say(column.kind, f"{line} (table: {low:g} to {high:g})")
        return away

    def _names_by_law(self, needed: Iterable[_Needed], column: _Column) -> list[str]:
        return [one.name for one in needed if (column.label, one.shape) in self._by_law]

    def _near(self, grid: Ragged, one: _Needed, column: _Column, columns: str) -> None:
        """Refuse a shape that is too far from any measured one, or a range that is too narrow."""
        for times, away in self._reach(grid, [one], column):
            self._refuse_far(times, column.operator, columns, away.what)

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

    def _several(self, grid: Ragged, known: tuple[float, ...], column: _Column) -> None:
        """Refuse fewer than two values of a column of a measured shape."""
        values = grid.own_values(known, column.axis)
        if len(values) < _FEWEST:
            rule = f"{_column_of(column, known)} is {values[0]:g} in all its rows: nothing between"
            remedy = f"Measure it at several, or remove the rows of {column.label}."
            raise ConfigError(KEY, self.name, rule, remedy)

    def _is_wide(
        self, grid: Ragged, known: tuple[float, ...], column: _Column, most: float
    ) -> bool:
        """Whether the rows of a measured shape are near enough of steps of 1 to `most`."""
        values = grid.own_values(known, column.axis)
        enough = len(values) >= _FEWEST and values[0] <= column.lowest
        return enough and most <= FARTHEST * values[-1]

    def _refuse_narrow(
        self, grid: Ragged, known: tuple[float, ...], column: _Column, one: _Needed
    ) -> NoReturn:
        self._several(grid, known, column)
        values = grid.own_values(known, column.axis)
        high = FARTHEST * values[-1]
        rule = (
            f"{_column_of(column, known)} goes from {values[0]:g} to {values[-1]:g}, and "
            f"{one.name} has 1 to {one.most:g}; up to {FARTHEST:g} times beyond the table are "
            "extrapolated"
        )
        limit = "max_num_seqs" if one.most == self._most_seqs else "chunk_size"
        lower = f"lower engine.{limit} to {high:g}" if one.most > high else "from 1 on"
        remedy = f"Measure more, {lower}, or remove the rows of {column.label}."
        raise ConfigError(KEY, self.name, rule, remedy)

    def _use(self, kind: str, about: str, by_law: Iterable[str]) -> None:
        """Note what of a class is used, and which of its kernels are not measured."""
        law = ", ".join(dict.fromkeys(by_law))
        self._used[kind] = f"{about}; by the law: {law}" if law else about

    def _say(self, kind: str, line: str) -> None:
        self._beyond.append((kind, line))

    # --- answers ------------------------------------------------------------------------------

    def gemm_s(self, call: Gemm, law_s: float) -> float | None:
        """Time of a multiplication (s)."""
        label = f"gemm of {call.dtype}"
        return self._time_s(self._gemms.get(call.dtype), label, (call.n, call.k), call.m, law_s)

    def experts_s(self, call: ExpertCall, law_s: float) -> float | None:
        """Time of the experts of a layer (s)."""
        shape = (call.width, call.hidden, float(call.num_experts), float(call.top_k))
        label = f"moe of {call.dtype}"
        return self._time_s(self._experts.get(call.dtype), label, shape, call.m, law_s)

    def elementwise_s(self, call: Elementwise, law_s: float) -> float | None:
        """Time of an elementwise kernel (s)."""
        grid = self._rows.get(call.operator)
        return self._time_s(grid, call.operator, (call.n,), call.m, law_s)

    def _time_s(
        self, grid: Ragged | None, label: str, shape: tuple[float, ...], m: float, law_s: float
    ) -> float | None:
        """Time of a call of `m` rows (s); None where no measured shape is near."""
        if grid is None or (label, shape) in self._by_law or grid.distance(shape) > FARTHEST:
            return None
        self._refuse_beyond(grid, shape, 0, m, f"column m of {label}")
        return law_s * grid.ratio(shape, (m,))

    def decode_ratios(self, heads: Heads, num_decodes: int) -> list[tuple[float, float]] | None:
        """Mean context of a sequence (tokens) and measured over law's time there, rising."""
        if self._decode is None:
            return None
        shape, batch = _shape(heads), float(num_decodes)
        self._refuse_beyond(self._decode, shape, 0, batch, "column batch of attention_decode")
        return [
            (context, self._decode.ratio(shape, (batch, context)))
            for context in self._decode.values(shape, 1)
        ]

    def prefill_ratio(self, heads: Heads, new: int, cached: int, num_chunks: int) -> float | None:
        """Measured over law's time of a chunk of `new` tokens behind `cached` ones."""
        if self._prefill is None:
            return None
        shape = _shape(heads)
        self._refuse_beyond(self._prefill, shape, 2, float(new), "column m of attention_prefill")
        return self._prefill.ratio(shape, (float(num_chunks), float(cached + 1), float(new)))

    def _refuse_beyond(
        self, grid: Ragged, shape: tuple[float, ...], axis: int, value: float, column: str
    ) -> None:
        """Refuse a step that is farther from the table than the limits of the engine let expect.

        A strategy may have a larger `chunk_size`, or compute whole prompts in a step.
        """
        high = grid.top(shape, axis)
        if value > FARTHEST * high:
            rule = (
                f"{column} goes to {high:g}, and a step has {value:g}; up to {FARTHEST:g} times "
                "beyond the table are extrapolated"
            )
            remedy = "Measure more, lower max_num_batched_tokens or chunk_size, or remove its rows."
            raise ConfigError(KEY, self.name, rule, remedy)

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


def _column_of(column: _Column, known: tuple[float, ...]) -> str:
    """Return a column of the rows of a measured shape in words, as the file names it."""
    names = {"gemm": ("n", "k"), "moe": ("n", "k", "num_experts", "top_k")}
    heads = ("num_heads", "num_kv_heads", "head_dim")
    own = names.get(column.operator, heads if len(known) == len(heads) else ("n",))
    shape = ", ".join(f"{name} {value:g}" for name, value in zip(own, known, strict=True))
    return f"column {column.name} of {column.label} ({shape})"


def _weights(dtype: str) -> WeightDtype:
    return WEIGHT_DTYPES["bf16" if dtype == "fp16" else dtype]


def _cache_bytes(dtype: str) -> float | None:
    """Bytes of a number in a cache of this dtype; None where no cache has it."""
    return KV_BYTES.get("bf16" if dtype == "fp16" else dtype)


def _heads(call: KernelCall, cache_bytes: float) -> Heads:
    return Heads(call.num_heads, call.num_kv_heads, int(call.head_dim), cache_bytes)


def _shape(heads: Heads) -> tuple[float, float, float]:
    return (heads.heads, heads.kv_heads, float(heads.head_dim))
