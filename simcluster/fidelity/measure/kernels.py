"""From a call to buffers and a function that runs it, with the kernels that PyTorch has.

Weights and caches lie in one pool, and each call of a graph uses another part of it: they are read
from memory, not from the cache of the GPU. Activations are shared between the calls.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from simcluster.fidelity.measure.plan import Call
from simcluster.fidelity.measure.timers import Prepared

if TYPE_CHECKING:
    import torch

_KV_SLOTS: Final = 65536
_EMBEDDINGS: Final = 32768
_FP8_POOL: Final = 2**30
"""Largest pool of 8-bit weights (bytes): twice the largest matrix, several times a cache."""
_POOL_SHARE: Final = 0.4
"""Of the free memory, what the pool may take."""


def pool_elements(calls: list[Call], cache_bytes: int, free_bytes: int) -> int:
    """Return the size of the pool (16-bit numbers): the largest call's, and four caches.

    Calls that do not fit the share of memory that the pool may take are left out later.
    """
    needed = [_pooled(call) for call in calls]
    return min(max([*needed, 2 * cache_bytes, 1]), int(_POOL_SHARE * free_bytes / 2))


def _pooled(call: Call) -> int:
    """Numbers that one copy of a call's weights or cache has."""
    match call.operator:
        case "gemm":
            return call.size("n") * call.size("k")
        case "attention_decode" | "attention_prefill":
            tokens = call.size("batch") * (call.size("context") + (call.m or 1))
            return 2 * tokens * call.size("num_kv_heads") * call.size("head_dim")
        case _:
            return 0


class Kernels:
    """Prepares calls on one device.

    Parameters
    ----------
    device : torch.device
        Where they run.
    dtype : str
        16-bit type: ``"bf16"`` or ``"fp16"``.
    num_pooled : int
        Size of the pool (16-bit numbers).
    fuse : bool
        Compile elementwise kernels, as engines have them fused; else they run operation by
        operation.
    """

    def __init__(self, device: torch.device, dtype: str, num_pooled: int, *, fuse: bool) -> None:
        import torch

        self._device = device
        self._dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
        self._pool = torch.randn(num_pooled, dtype=self._dtype, device=device)
        self._pool_fp8: torch.Tensor | None = None
        self._fuse = fuse
        self._fused: dict[tuple[str, int], Callable[..., Any]] = {}

    def variants(self, call: Call) -> list[Prepared]:
        """Return the ways to run `call`; the fastest that works is what counts.

        Raises
        ------
        ValueError
            If its weights or cache do not fit the pool.
        """
        match call.operator:
            case "gemm":
                return [self._gemm_fp8(call) if call.dtype == "fp8" else self._gemm(call)]
            case "attention_decode":
                return [self._decode(call)]
            case "attention_prefill":
                return self._prefill(call)
            case _:
                return [self._elementwise(call)]

    def _random(self, *shape: int) -> torch.Tensor:
        import torch

        return torch.randn(shape, dtype=self._dtype, device=self._device)

    def _copies(self, pool: torch.Tensor, numbers: int) -> int:
        copies = int(pool.numel()) // numbers
        if copies < 1:
            raise ValueError("does not fit the memory")
        return copies

    def _gemm(self, call: Call) -> Prepared:
        """``y = x w^T`` as a linear layer has it, weights by rows of the output."""
        import torch

        m, n, k = call.size("m"), call.size("n"), call.size("k")
        copies = self._copies(self._pool, n * k)
        x, y = self._random(m, k), self._random(m, n)

        def run(i: int) -> None:
            weight = self._pool[i * n * k : (i + 1) * n * k].view(n, k)
            torch.mm(x, weight.t(), out=y)

        return Prepared(run, copies)

    def _gemm_fp8(self, call: Call) -> Prepared:
        """The same with 8-bit weights and activations, scaled per tensor, 16-bit result."""
        import torch

        m, n, k = call.size("m"), call.size("n"), call.size("k")
        if self._pool_fp8 is None:
            self._pool_fp8 = self._random_fp8(min(int(self._pool.numel()), _FP8_POOL))
        pool = self._pool_fp8
        copies = self._copies(pool, n * k)
        x = self._random_fp8(m * k).view(m, k)
        scale = torch.ones((), dtype=torch.float32, device=self._device)

        def run(i: int) -> None:
            weight = pool[i * n * k : (i + 1) * n * k].view(n, k)
            torch._scaled_mm(x, weight.t(), scale_a=scale, scale_b=scale, out_dtype=self._dtype)

        return Prepared(run, copies)

    def _random_fp8(self, numbers: int) -> torch.Tensor:
        import torch

        finite = 0x7F  # codes below are positive and no NaN
        codes = torch.randint(0, finite, (numbers,), dtype=torch.uint8, device=self._device)
        return codes.view(torch.float8_e4m3fn)

    def _cache(self, call: Call, tokens: int) -> tuple[int, Callable[[int], Any]]:
        """Return copies of a cache and a function that gives keys and values of copy i.

        Tokens lie one after the other with their heads side by side, as in the blocks of an
        engine's cache; shape ``(batch, num_kv_heads, tokens, head_dim)``.
        """
        batch, heads, dim = call.size("batch"), call.size("num_kv_heads"), call.size("head_dim")
        numbers = batch * tokens * heads * dim
        copies = self._copies(self._pool, 2 * numbers)

        def get(i: int) -> tuple[torch.Tensor, torch.Tensor]:
            keys, values = (
                self._pool[start : start + numbers].view(batch, tokens, heads, dim).transpose(1, 2)
                for start in (2 * i * numbers, (2 * i + 1) * numbers)
            )
            return keys, values

        return copies, get

    def _query(self, call: Call, tokens: int) -> torch.Tensor:
        batch, heads, dim = call.size("batch"), call.size("num_heads"), call.size("head_dim")
        return self._random(batch, tokens, heads, dim).transpose(1, 2)

    def _decode(self, call: Call) -> Prepared:
        from torch.nn import functional

        copies, cache = self._cache(call, call.size("context") + 1)
        query = self._query(call, 1)

        def run(i: int) -> None:
            keys, values = cache(i)
            functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)

        return Prepared(run, copies)

    def _prefill(self, call: Call) -> list[Prepared]:
        """Each library on its own, since engines take the fastest; behind a cache only one."""
        from torch.nn import functional
        from torch.nn.attention import SDPBackend, sdpa_kernel
        from torch.nn.attention.bias import causal_lower_right

        m, context = call.size("m"), call.size("context")
        copies, cache = self._cache(call, context + m)
        query = self._query(call, m)

        def whole(i: int) -> None:
            keys, values = cache(i)
            functional.scaled_dot_product_attention(
                query, keys, values, is_causal=True, enable_gqa=True
            )

        def chunk(i: int) -> None:
            keys, values = cache(i)
            mask = causal_lower_right(m, context + m)
            functional.scaled_dot_product_attention(
                query, keys, values, attn_mask=mask, enable_gqa=True
            )

        def by(backend: Any, i: int) -> None:
            with sdpa_kernel([backend]):
                whole(i)

        if context:
            return [Prepared(chunk, copies)]
        if self._device.type != "cuda":
            return [Prepared(whole, copies)]
        backends = (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION)
        return [Prepared(partial(by, backend), copies) for backend in backends]

    def _elementwise(self, call: Call) -> Prepared:
        import torch

        m, n = call.size("m"), call.size("n")
        x = self._random(m, 2 * n if call.operator == "activation" else n)
        arguments: tuple[torch.Tensor, ...]
        match call.operator:
            case "norm":
                arguments = (x, self._random(m, n), self._random(n))
            case "norm_only":
                arguments = (x, self._random(n))
            case "rope":
                angles = self._random(2, m, 1, _head_width(n) // 2)
                arguments = (x.view(m, -1, _head_width(n)), angles[0], angles[1])
            case "add":
                arguments = (x, self._random(m, n))
            case "embedding":
                rows = torch.randint(0, _EMBEDDINGS, (m,), device=self._device)
                arguments = (self._random(_EMBEDDINGS, n), rows)
            case "kv_write":
                slots = torch.randperm(_KV_SLOTS, device=self._device)[:m]
                arguments = (self._random(_KV_SLOTS, n), slots, x)
            case _:
                arguments = (x,)
        function = self._function(call.operator, n)
        if self._fuse and call.operator in _FUSED:
            from torch._dynamo import maybe_mark_dynamic

            for argument in arguments[:-1] if call.operator == "norm" else arguments:
                maybe_mark_dynamic(argument, 0)  # one compilation for all numbers of rows
        return Prepared(lambda _: function(*arguments))

    def _function(self, operator: str, n: int) -> Callable[..., Any]:
        """Return the function of an elementwise operator, compiled once per width."""
        import torch

        plain = _functions()[operator]
        if not self._fuse or operator not in _FUSED:
            return plain
        if (operator, n) not in self._fused:
            self._fused[operator, n] = torch.compile(plain)
        return self._fused[operator, n]


_FUSED: Final = ("norm", "rope", "activation")
"""Elementwise operators that PyTorch has no single kernel for."""


def _head_width(n: int) -> int:
    """Return the width of a head that `n` divides into: the work per number is the same."""
    return next(width for width in (128, 96, 80, 64, 32, 16, 2) if n % width == 0)


def _functions() -> dict[str, Callable[..., Any]]:
    """Return the elementwise operators as functions of tensors."""
    import torch
    from torch.nn import functional

    def norm(x: Any, residual: Any, weight: Any) -> Any:
        total = x + residual
        return functional.rms_norm(total, weight.shape, weight), total

    def norm_only(x: Any, weight: Any) -> Any:
        return functional.rms_norm(x, weight.shape, weight)

    def rope(x: Any, cos: Any, sin: Any) -> Any:
        left, right = x.chunk(2, dim=-1)
        return torch.cat((left * cos - right * sin, right * cos + left * sin), dim=-1)

    def activation(x: Any) -> Any:
        gate, up = x.chunk(2, dim=-1)
        return functional.silu(gate) * up

    return {
        "norm": norm,
        "norm_only": norm_only,
        "rope": rope,
        "activation": activation,
        "add": torch.add,
        "embedding": lambda table, rows: functional.embedding(rows, table),
        "kv_write": lambda cache, slots, x: cache.index_copy_(0, slots, x),
        "sampler": lambda x: torch.argmax(x, dim=-1),
    }
