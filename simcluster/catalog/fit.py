"""Kernel, link and host constants from the measured sets.

``python -m simcluster.catalog.fit DATA_DIR`` fits the constants of ``kernels.toml``, ``links.toml``
and ``engines.toml`` anew and prints them beside the mean absolute percentage error (MAPE) of the
fit and of the constants in the catalogue. The numbers in the files were copied from there and
rounded. Needs SciPy (``pip install simcluster[test]``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from simcluster import catalog
from simcluster.specs import GPUSpec, KernelConstants, LinkSpec
from simcluster.units import GB, MB, MS, US, FloatArray, IntArray

_BYTES: Final = 2.0
"""Bytes of one 16-bit number."""
_SMALLEST_MESSAGE: Final = 4096.0
"""Activations of one token of a small model (bytes)."""
_LARGEST_MESSAGE: Final = 2.0**26
"""Activations of 4096 tokens of a model of width 8192 (bytes)."""
_LLAMA_8B: Final = {"hidden": 4096, "heads": 32, "kv_heads": 8, "head_dim": 128, "ffn": 14336}
"""Shape of the model in the vLLM operator set."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """Measured matrix multiplications and elementwise kernels, arrays of shape ``(n,)``.

    Attributes
    ----------
    flops, num_bytes, time_s : float array
        Work (FLOP), device-memory traffic (bytes), measured time (s).
    gemm : bool array
        A matrix multiplication, not an elementwise kernel.
    layer : int array
        Kernels with one number make up one layer; -1 where they stand alone.
    """

    flops: FloatArray
    num_bytes: FloatArray
    time_s: FloatArray
    gemm: np.ndarray[Any, np.dtype[np.bool_]]
    layer: IntArray


@dataclass(frozen=True, slots=True)
class Attention:
    """Measured decode or prefill attention, arrays of shape ``(n,)``.

    Attributes
    ----------
    flops, num_bytes, blocks, time_s : float array
        Work (FLOP), traffic (bytes), sequences x KV heads (decode only), measured time (s).
    """

    flops: FloatArray
    num_bytes: FloatArray
    blocks: FloatArray
    time_s: FloatArray


def mape(predicted: FloatArray, measured: FloatArray) -> float:
    """Mean absolute percentage error, as a share."""
    return float(np.mean(np.abs(predicted / measured - 1.0)))


def kernel_s(kernels: Kernels, gpu: GPUSpec, constants: KernelConstants) -> FloatArray:
    """Times of `kernels` by the kernel law (s)."""
    p = constants.smooth_p
    compute = kernels.flops / (constants.mfu_gemm * gpu.flops_16bit)
    mbu = np.where(kernels.gemm, constants.mbu_gemm, constants.mbu_elementwise)
    memory = kernels.num_bytes / (mbu * gpu.memory_bandwidth)
    law: FloatArray = (compute**p + memory**p) ** (1.0 / p) + constants.fixed_s
    return law


def attention_s(work: Attention, gpu: GPUSpec, constants: KernelConstants) -> FloatArray:
    """Times of attention kernels by the kernel law (s)."""
    p = constants.smooth_p
    compute = work.flops / (constants.mfu_attention * gpu.flops_16bit)
    memory = work.num_bytes / (constants.mbu_attention * gpu.memory_bandwidth)
    blocks = constants.attention_block_s * work.blocks / gpu.num_sms
    law: FloatArray = (compute**p + memory**p) ** (1.0 / p) + blocks + constants.fixed_s
    return law


def all_reduce_s(link: LinkSpec, tp_size: FloatArray, message_bytes: FloatArray) -> FloatArray:
    """Times of all-reduces: a latency plus ring traffic (s)."""
    sent = 2.0 * (tp_size - 1.0) / tp_size * message_bytes
    law: FloatArray = link.allreduce_latency_s + sent / (link.bandwidth * link.allreduce_efficiency)
    return law


def layer_errors(predicted: FloatArray, kernels: Kernels) -> FloatArray:
    """Relative errors of whole layers, summed over their kernels; shape ``(num_layers,)``."""
    members = kernels.layer >= 0
    number = kernels.layer[members]
    total = np.bincount(number, predicted[members])
    measured = np.bincount(number, kernels.time_s[members])
    error: FloatArray = total[measured > 0] / measured[measured > 0] - 1.0
    return error


def vidur_kernels(data: Path, gpu: str) -> Kernels:
    """Layers profiled by Vidur on ``"a100"``, ``"h100"`` or ``"a40"``."""
    import pandas as pd

    parts: list[tuple[FloatArray, FloatArray, FloatArray, bool, IntArray]] = []
    num_layers = 0
    for path in sorted((data / "vidur_mlp").glob(f"{gpu}__*.csv.gz")):
        frame = pd.read_csv(path)

        def column(name: str, frame: pd.DataFrame = frame) -> FloatArray:
            return np.asarray(frame[name], dtype=np.float64)

        m, hidden, tp = column("num_tokens"), column("n_embd"), column("tp")
        width = hidden / tp
        kv_width = hidden / column("n_head") * column("n_kv_head") / tp
        ffn = column("n_expanded_embd") / tp
        inputs = np.where(frame["use_gated_mlp"].astype(bool), 2.0, 1.0)
        number = np.arange(num_layers, num_layers + len(frame))
        num_layers += len(frame)
        gemms = {
            "attn_pre_proj": (width + 2 * kv_width, hidden),
            "attn_post_proj": (hidden, width),
            "mlp_up_proj": (inputs * ffn, hidden),
            "mlp_down_proj": (hidden, ffn),
        }
        elementwise = {
            "input_layernorm": 2 * m * hidden,
            "post_attention_layernorm": 2 * m * hidden,
            "add": 3 * m * hidden,
            "mlp_act": (inputs + 1) * m * ffn,
            "attn_rope": 2 * m * (width + kv_width),
        }
        for name, (n, k) in gemms.items():
            moved = _BYTES * (m * k + k * n + m * n)
            parts.append((2 * m * n * k, moved, column(f"{name}_median_ms") * MS, True, number))
        for name, numbers in elementwise.items():
            if f"{name}_median_ms" in frame:
                time = column(f"{name}_median_ms") * MS
                parts.append((0 * m, _BYTES * numbers, time, False, number))
    return _kernels(parts)


def vllm_kernels(data: Path, gpu: str, tp_sizes: Sequence[int]) -> Kernels:
    """Layers of Llama-3.1-8B profiled in vLLM on ``"RTX4090"`` or ``"RTXPRO6000"``."""
    import pandas as pd

    hidden, ffn = _LLAMA_8B["hidden"], _LLAMA_8B["ffn"]
    width = _LLAMA_8B["heads"] * _LLAMA_8B["head_dim"]
    kv_width = _LLAMA_8B["kv_heads"] * _LLAMA_8B["head_dim"]
    parts: list[tuple[FloatArray, FloatArray, FloatArray, bool, IntArray]] = []
    num_layers = 0
    for tp in tp_sizes:
        path = data / "llmservingsim_ops" / f"{gpu}__Llama-3.1-8B__tp{tp}__dense.csv.gz"
        table = pd.read_csv(path).pivot_table(index="tokens", columns="layer", values="time_us")
        m = np.asarray(table.index, dtype=np.float64)
        number = np.arange(num_layers, num_layers + len(m))
        num_layers += len(m)
        gemms = {
            "qkv_proj": ((width + 2 * kv_width) / tp, hidden),
            "o_proj": (hidden, width / tp),
            "gate_up_proj": (2 * ffn / tp, hidden),
            "down_proj": (hidden, ffn / tp),
        }
        elementwise: dict[str, list[float]] = {
            "layernorm": [4 * hidden] * 2,
            "rotary_emb": [2 * (width + kv_width) / tp],
            "act_fn": [3 * ffn / tp],
        }
        for name, (n, k) in gemms.items():
            time = np.asarray(table[name], dtype=np.float64) * US
            moved = _BYTES * (m * k + k * n + m * n)
            parts.append((2 * m * n * k, moved, time, True, number))
        for name, numbers in elementwise.items():
            time = np.asarray(table[name], dtype=np.float64) * US
            parts += [(0 * m, _BYTES * each * m, time, False, number) for each in numbers]
    return _kernels(parts)


def aic_kernels(data: Path, system: str, cache_bytes: float) -> Kernels:
    """Matrix multiplications profiled by aiconfigurator whose weights do not fit the cache.

    Small ones are kept from 2048 rows on, where the arithmetic rules.
    """
    import pandas as pd

    frame = pd.read_csv(data / "aic_ops" / f"{system}__gemm.csv.gz")
    frame = frame[frame["gemm_dtype"] == "bfloat16"]
    m, n, k = (np.asarray(frame[c], dtype=np.float64) for c in ("m", "n", "k"))
    keep = (n >= 512) & (k >= 512) & ((_BYTES * n * k > 1.5 * cache_bytes) | (m >= 2048))
    m, n, k = m[keep], n[keep], k[keep]
    time = np.asarray(frame["latency_ms"], dtype=np.float64)[keep] * MS
    moved = _BYTES * (m * k + k * n + m * n)
    return _kernels([(2 * m * n * k, moved, time, True, np.full(len(m), -1))])


def aic_decode(data: Path, system: str, cache_bytes: float) -> Attention:
    """Decode attention profiled by aiconfigurator whose KV cache does not fit the GPU's cache."""
    import pandas as pd

    frame = pd.read_csv(data / "aic_ops" / f"{system}__attn_generation.csv.gz")
    keep = (frame["head_dim"] == 128) & (frame["kv_cache_dtype"] == "bfloat16")
    keep &= (frame["num_heads"] <= 8 * frame["num_key_value_heads"]) & (frame["step"] < 16384)
    if "window_size" in frame:
        keep &= frame["window_size"] == 0
    names = ("batch_size", "step", "num_heads", "num_key_value_heads", "latency_ms")
    batch, step, heads, kv_heads, time = (
        np.asarray(frame[keep][c], dtype=np.float64) for c in names
    )
    work = decode_work(batch, step + 1, heads, kv_heads, 128, time * MS)
    return _larger_than(work, 1.5 * cache_bytes)


def aic_prefill(data: Path, system: str) -> Attention:
    """Prefill attention of 256 to 16k tokens profiled by aiconfigurator; causal work only."""
    import pandas as pd

    frame = pd.read_csv(data / "aic_ops" / f"{system}__attn_context.csv.gz")
    keep = (frame["head_dim"] == 128) & (frame["kv_cache_dtype"] == "bfloat16")
    keep &= (frame["attn_dtype"] == "bfloat16") & (frame["num_heads"] >= 4)
    keep &= (frame["isl"] >= 256) & (frame["isl"] <= 16384) & (frame["num_key_value_heads"] > 0)
    if "window_size" in frame:
        keep &= frame["window_size"] == 0
    if "step" in frame:
        keep &= frame["step"] == 0
    names = ("batch_size", "isl", "num_heads", "num_key_value_heads", "latency_ms")
    batch, length, heads, kv_heads, time = (
        np.asarray(frame[keep][c], dtype=np.float64) for c in names
    )
    flops = 2 * batch * length**2 * heads * 128
    moved = 2 * _BYTES * batch * length * (heads + kv_heads) * 128
    return Attention(flops, moved, 0 * flops, time * MS)


def vidur_decode(data: Path, cache_bytes: float) -> Attention:
    """Decode attention profiled by Vidur on the A100."""
    import pandas as pd

    path = data / "vidur_attention_a100" / "a100__64q8kv_tp2_flashattention.csv.gz"
    frame = pd.read_csv(path)
    frame = frame[~frame["is_prefill"].astype(bool)]
    batch, context, time = (
        np.asarray(frame[c], dtype=np.float64)
        for c in ("batch_size", "kv_cache_size", "attn_decode_median_ms")
    )
    ones = np.ones(len(batch))
    work = decode_work(batch, context, 32 * ones, 4 * ones, 128, time * MS)
    return _larger_than(work, 1.5 * cache_bytes)


def vllm_decode(data: Path, gpu: str, cache_bytes: float) -> Attention:
    """Decode attention of Llama-3.1-8B profiled in vLLM."""
    import pandas as pd

    path = data / "llmservingsim_ops" / f"{gpu}__Llama-3.1-8B__tp1__attention.csv.gz"
    frame = pd.read_csv(path)
    frame = frame[(frame["prefill_chunk"] == 0) & (frame["n_decode"] > 0)]
    batch, context, time = (
        np.asarray(frame[c], dtype=np.float64) for c in ("n_decode", "kv_decode", "time_us")
    )
    ones = np.ones(len(batch))
    work = decode_work(batch, context, 32 * ones, 8 * ones, 128, time * US)
    return _larger_than(work, 1.5 * cache_bytes)


def vllm_prefill(data: Path, gpu: str) -> Attention:
    """Prefill attention of whole prompts of Llama-3.1-8B profiled in vLLM."""
    import pandas as pd

    path = data / "llmservingsim_ops" / f"{gpu}__Llama-3.1-8B__tp1__attention.csv.gz"
    frame = pd.read_csv(path)
    frame = frame[(frame["n_decode"] == 0) & (frame["prefill_chunk"] >= 256)]
    new, cached, time = (
        np.asarray(frame[c], dtype=np.float64) for c in ("prefill_chunk", "kv_prefill", "time_us")
    )
    flops = 4 * new * (cached + new / 2) * 32 * 128
    moved = _BYTES * 128 * (2 * new * 32 + 2 * (cached + new) * 8)
    return Attention(flops, moved, 0 * flops, time * US)


def mixed_shares(data: Path, gpu: str, cache_bytes: float) -> FloatArray:
    """How fast decodes are beside a prefill chunk, relative to alone; shape ``(n,)``.

    Time of the decodes alone over what they add to the time of the chunk, in one vLLM kernel call,
    where the decodes matter (a fifth of the chunk's time or more).
    """
    import pandas as pd

    path = data / "llmservingsim_ops" / f"{gpu}__Llama-3.1-8B__tp1__attention.csv.gz"
    frame = pd.read_csv(path)
    chunk, decode = ["prefill_chunk", "kv_prefill"], ["n_decode", "kv_decode"]
    alone = frame[frame["n_decode"] == 0].groupby(chunk)["time_us"].median().rename("chunk_us")
    decodes = frame[frame["prefill_chunk"] == 0].groupby(decode)["time_us"].median()
    mixed = frame[(frame["prefill_chunk"] > 0) & (frame["n_decode"] > 0)]
    mixed = mixed.join(alone, on=chunk).join(decodes.rename("decode_us"), on=decode).dropna()
    cache = mixed["n_decode"] * mixed["kv_decode"] * 2 * _BYTES * 8 * 128
    mixed = mixed[(cache > 1.2 * cache_bytes) & (mixed["decode_us"] > 0.2 * mixed["chunk_us"])]
    share = mixed["decode_us"] / (mixed["time_us"] - mixed["chunk_us"])
    return np.asarray(share, dtype=np.float64)


def decode_work(
    batch: FloatArray,
    context: FloatArray,
    heads: FloatArray,
    kv_heads: FloatArray,
    head_dim: int,
    time_s: FloatArray,
) -> Attention:
    """Work of decode attention of `batch` sequences of `context` tokens."""
    flops = 4 * batch * context * heads * head_dim
    moved = 2 * _BYTES * head_dim * batch * (context * kv_heads + heads)
    return Attention(flops, moved, batch * kv_heads, time_s)


def vllm_all_reduces(data: Path, system: str) -> tuple[FloatArray, FloatArray, FloatArray]:
    """World sizes, message sizes (bytes) and times (s) of vLLM's all-reduce in a captured graph."""
    import pandas as pd

    frame = pd.read_csv(data / "aic_ops" / f"{system}__custom_allreduce.csv.gz")
    frame = frame[frame["backend"] == "vllm_graph"]
    return _all_reduces(frame["num_gpus"], _BYTES * frame["message_size"], frame["latency_ms"] * MS)


def nccl_all_reduces(data: Path, system: str) -> tuple[FloatArray, FloatArray, FloatArray]:
    """World sizes, message sizes (bytes) and times (s) of NCCL's all-reduce."""
    import pandas as pd

    frame = pd.read_csv(data / "aic_ops" / f"{system}__nccl.csv.gz")
    frame = frame[(frame["op_name"] == "all_reduce") & (frame["nccl_dtype"] == "half")]
    return _all_reduces(frame["num_gpus"], _BYTES * frame["message_size"], frame["latency_ms"] * MS)


def vidur_all_reduces(data: Path, machine: str) -> tuple[FloatArray, FloatArray, FloatArray]:
    """World sizes, message sizes (bytes) and times (s) of Vidur's all-reduces inside a node."""
    import pandas as pd

    frame = pd.read_csv(data / "vidur_network" / f"{machine}__all_reduce.csv.gz")
    frame = frame[frame["num_workers"] == frame["devices_per_node"]]
    return _all_reduces(frame["num_workers"], frame["size"], frame["median_ms"] * MS)


def apex_all_reduces(data: Path, gpu: str) -> tuple[FloatArray, FloatArray, FloatArray]:
    """World sizes, message sizes (bytes) and times (s) of APEX's all-reduces inside a node."""
    import pandas as pd

    frame = pd.read_csv(data / "apex_comm" / "collectives.csv")
    frame = frame[(frame["op"] == "all_reduce") & (frame["num_nodes"] == 1)]
    frame = frame[frame["gpu"].str.startswith(gpu) & (frame["dtype"] == "half")]
    size = 1024 * frame["size(kb)"]
    return _all_reduces(frame["num_gpus_per_node"], size, frame["time(us)"] * US)


def _all_reduces(
    tp_size: object, message_bytes: object, time_s: object
) -> tuple[FloatArray, FloatArray, FloatArray]:
    tp, size, time = (np.asarray(v, dtype=np.float64) for v in (tp_size, message_bytes, time_s))
    served = (size >= _SMALLEST_MESSAGE) & (size <= _LARGEST_MESSAGE)
    return tp[served], size[served], time[served]


def _kernels(parts: list[tuple[FloatArray, FloatArray, FloatArray, bool, IntArray]]) -> Kernels:
    """Join kernels of several operators and drop those that were not measured."""
    flops = np.concatenate([p[0] for p in parts])
    moved = np.concatenate([p[1] for p in parts])
    time = np.concatenate([p[2] for p in parts])
    gemm = np.concatenate([np.full(len(p[0]), p[3]) for p in parts])
    layer = np.concatenate([p[4] for p in parts])
    good = time > 0
    return Kernels(flops[good], moved[good], time[good], gemm[good], layer[good])


def _larger_than(work: Attention, num_bytes: float) -> Attention:
    keep = work.num_bytes > num_bytes
    return Attention(work.flops[keep], work.num_bytes[keep], work.blocks[keep], work.time_s[keep])


def _least_squares(
    residuals: Callable[[FloatArray], FloatArray],
    start: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
) -> FloatArray:
    """Minimise the residuals with a loss that forgives outliers beyond 10 %."""
    from scipy.optimize import least_squares

    found = least_squares(residuals, start, bounds=(low, high), loss="soft_l1", f_scale=0.1)
    return np.asarray(found.x, dtype=np.float64)


def fit_kernels(
    kernels: Kernels, gpu: GPUSpec, *, fixed_s: float | None = None
) -> dict[str, float]:
    """Fit mfu_gemm, mbu_gemm, mbu_elementwise, fixed_s, smooth_p on relative errors.

    Whole layers weigh three times, elementwise kernels a third: what counts is the sum.
    """
    from dataclasses import replace

    weight = np.where(kernels.gemm, 1.0, 0.3)
    has_layers = bool((kernels.layer >= 0).any())

    def constants(x: FloatArray) -> KernelConstants:
        return replace(
            gpu.constants,
            mfu_gemm=x[0],
            mbu_gemm=x[1],
            mbu_elementwise=x[2],
            smooth_p=x[3],
            fixed_s=x[4] * US if fixed_s is None else fixed_s,
        )

    def residuals(x: FloatArray) -> FloatArray:
        predicted = kernel_s(kernels, gpu, constants(x))
        each = weight * np.log(predicted / kernels.time_s)
        if not has_layers:
            return np.asarray(each)
        return np.concatenate([each, 3.0 * np.log1p(layer_errors(predicted, kernels))])

    x = _least_squares(
        residuals, [0.7, 0.8, 0.7, 1.5, 3.0], [0.1, 0.1, 0.1, 1.0, 0.1], [1.0, 1.0, 1.0, 4.0, 30.0]
    )
    fitted = constants(x)
    return {
        "mfu_gemm": fitted.mfu_gemm,
        "mbu_gemm": fitted.mbu_gemm,
        "mbu_elementwise": fitted.mbu_elementwise,
        "smooth_p": fitted.smooth_p,
        "fixed_us": fitted.fixed_s / US,
    }


def fit_prefill(work: Attention, gpu: GPUSpec) -> float:
    """Fit mfu_attention with the other constants as they stand in the catalogue."""
    from dataclasses import replace

    def residuals(x: FloatArray) -> FloatArray:
        constants = replace(gpu.constants, mfu_attention=x[0])
        return np.asarray(np.log(attention_s(work, gpu, constants) / work.time_s))

    return float(_least_squares(residuals, [0.5], [0.05], [1.0])[0])


def fit_decode(work: Attention, gpu: GPUSpec) -> tuple[float, float]:
    """Fit mbu_attention and attention_block_s (us) with the other constants of the catalogue."""
    from dataclasses import replace

    def residuals(x: FloatArray) -> FloatArray:
        constants = replace(gpu.constants, mbu_attention=x[0], attention_block_s=x[1] * US)
        return np.asarray(np.log(attention_s(work, gpu, constants) / work.time_s))

    x = _least_squares(residuals, [0.7, 1.0], [0.1, 0.0], [1.0, 20.0])
    return float(x[0]), float(x[1])


def fit_all_reduce(
    tp: FloatArray, size: FloatArray, time: FloatArray, bandwidth: float
) -> tuple[float, float]:
    """Fit efficiency and latency (us) of all-reduces."""
    sent = 2.0 * (tp - 1.0) / tp * size / bandwidth

    def residuals(x: FloatArray) -> FloatArray:
        return np.asarray(np.log((x[1] * US + sent / x[0]) / time))

    x = _least_squares(residuals, [0.5, 10.0], [0.01, 0.1], [1.0, 500.0])
    return float(x[0]), float(x[1])


def cache_bytes(data: Path, gpu: str) -> float:
    """Second-level cache of a GPU (bytes), from the table of data-sheet facts."""
    import pandas as pd

    frame = pd.read_csv(data / "gpu_specs" / "gpu_specs.csv").set_index("gpu")
    return float(np.asarray(frame["l2_mb"])[list(frame.index).index(gpu)]) * MB


def kernel_report(data: Path) -> list[str]:
    """Fit the kernel constants of every measured GPU; one line each."""
    aic = {
        "A100-80GB SXM": "a100_sxm",
        "H100 SXM": "h100_sxm",
        "L40S": "l40s",
        "B200 SXM": "b200_sxm",
        "RTX PRO 6000 Blackwell Server": "rtx_pro_6000_server",
    }
    vidur = {"A100-80GB SXM": "a100", "H100 SXM": "h100", "A40": "a40"}
    vllm = {"RTX 4090": ("RTX4090", (1,)), "RTX PRO 6000 Blackwell Server": ("RTXPRO6000", (1, 2))}
    lines = []
    for name in dict.fromkeys((*vidur, *vllm, *aic)):
        gpu = catalog.gpu(name)
        cache = cache_bytes(data, name)
        if name in vidur:
            lines.append(_kernel_line(f"{name} (Vidur)", vidur_kernels(data, vidur[name]), gpu))
        if name in vllm:
            kernels = vllm_kernels(data, *vllm[name])
            lines.append(_kernel_line(f"{name} (vLLM)", kernels, gpu))
        if name in aic:
            kernels = aic_kernels(data, aic[name], cache)
            # no elementwise kernels in this set: its own fixed latency is that of the catalogue
            lines.append(_kernel_line(f"{name} (aic)", kernels, gpu, fixed_s=gpu.constants.fixed_s))
            lines.append(_prefill_line(f"{name} (aic)", aic_prefill(data, aic[name]), gpu))
            lines.append(_decode_line(f"{name} (aic)", aic_decode(data, aic[name], cache), gpu))
        if name == "A100-80GB SXM":
            lines.append(_decode_line(f"{name} (Vidur)", vidur_decode(data, cache), gpu))
        if name in vllm:
            lines.append(_prefill_line(f"{name} (vLLM)", vllm_prefill(data, vllm[name][0]), gpu))
            work = vllm_decode(data, vllm[name][0], cache)
            lines.append(_decode_line(f"{name} (vLLM)", work, gpu))
            shares = mixed_shares(data, vllm[name][0], cache)
            low, middle, high = np.quantile(shares, [0.25, 0.5, 0.75])
            lines.append(
                f"{name} (vLLM) mixed_mbu: median {middle:.2f}, quartiles {low:.2f} to {high:.2f}"
            )
    return lines


def _kernel_line(
    title: str, kernels: Kernels, gpu: GPUSpec, *, fixed_s: float | None = None
) -> str:
    fitted = fit_kernels(kernels, gpu, fixed_s=fixed_s)
    predicted = kernel_s(kernels, gpu, gpu.constants)
    gemm = kernels.gemm
    if gemm.all():
        del fitted["mbu_elementwise"]
    line = f"{title} kernels: " + " ".join(f"{k}={v:.3g}" for k, v in fitted.items())
    line += f" | catalogue: GEMM {mape(predicted[gemm], kernels.time_s[gemm]):.1%}"
    if not gemm.all():
        line += f", elementwise {mape(predicted[~gemm], kernels.time_s[~gemm]):.1%}"
    if (kernels.layer >= 0).any():
        line += f", layer {np.abs(layer_errors(predicted, kernels)).mean():.1%}"
    return line + f" MAPE, n={len(predicted)}"


def _prefill_line(title: str, work: Attention, gpu: GPUSpec) -> str:
    error = mape(attention_s(work, gpu, gpu.constants), work.time_s)
    return (
        f"{title} prefill attention: mfu_attention={fit_prefill(work, gpu):.3g}"
        f" | catalogue: {error:.1%} MAPE, n={len(work.flops)}"
    )


def _decode_line(title: str, work: Attention, gpu: GPUSpec) -> str:
    mbu, block_us = fit_decode(work, gpu)
    error = mape(attention_s(work, gpu, gpu.constants), work.time_s)
    return (
        f"{title} decode attention: mbu_attention={mbu:.3g} attention_block_us={block_us:.3g}"
        f" | catalogue: {error:.1%} MAPE, n={len(work.flops)}"
    )


def link_report(data: Path) -> list[str]:
    """Fit latency and efficiency of the measured links; one line per set and world sizes."""
    sets = [
        ("nvlink3", "A100 SXM, vLLM in a graph", vllm_all_reduces(data, "a100_sxm")),
        ("nvlink3", "A100 SXM, NCCL", nccl_all_reduces(data, "a100_sxm")),
        ("nvlink3", "DGX A100, Vidur", vidur_all_reduces(data, "a100_dgx")),
        ("nvlink4", "H100 SXM, vLLM in a graph", vllm_all_reduces(data, "h100_sxm")),
        ("nvlink4", "H100 SXM, NCCL", nccl_all_reduces(data, "h100_sxm")),
        ("nvlink4", "H100 SXM, APEX", apex_all_reduces(data, "H100")),
        ("nvlink4", "DGX H100, Vidur", vidur_all_reduces(data, "h100_dgx")),
        ("nvlink5", "B200 SXM, vLLM in a graph", vllm_all_reduces(data, "b200_sxm")),
        ("nvlink5", "B200 SXM, NCCL", nccl_all_reduces(data, "b200_sxm")),
        (
            "nvlink3-bridge",
            "A100 PCIe pairs, Vidur",
            vidur_all_reduces(data, "a100_pairwise_nvlink"),
        ),
        ("pcie4", "A100 PCIe pairs, Vidur", vidur_all_reduces(data, "a100_pairwise_nvlink")),
        ("pcie4", "L40S, vLLM in a graph", vllm_all_reduces(data, "l40s")),
        ("pcie4", "L40S, NCCL", nccl_all_reduces(data, "l40s")),
        ("pcie4-staged", "L40S, NCCL", nccl_all_reduces(data, "l40s")),
        ("pcie5", "RTX PRO 6000, NCCL", nccl_all_reduces(data, "rtx_pro_6000_server")),
        ("pcie3", "V100 PCIe, APEX", apex_all_reduces(data, "V100")),
    ]
    lines = []
    for name, title, (tp, size, time) in sets:
        link = catalog.link(name)
        for worlds in ((2,), (4,), (8,), (4, 8)):
            keep = np.isin(tp, worlds)
            if not all((tp == world).any() for world in worlds):
                continue
            efficiency, latency = fit_all_reduce(tp[keep], size[keep], time[keep], link.bandwidth)
            error = mape(all_reduce_s(link, tp[keep], size[keep]), time[keep])
            lines.append(
                f"{name}, {title}, {'+'.join(map(str, worlds))} GPUs: "
                f"allreduce_efficiency={efficiency:.3f} ({efficiency * link.bandwidth / GB:.1f} "
                f"GB/s) allreduce_latency_us={latency:.1f} | catalogue: {error:.0%} MAPE"
            )
    return [*lines, *_send_lines(data), _kv_transfer_line(data)]


def _send_lines(data: Path) -> list[str]:
    """Bandwidth and latency of messages inside and between nodes, from Vidur's send_recv."""
    import pandas as pd

    lines = []
    for machine in ("a100_dgx", "a100_pairwise_nvlink", "h100_dgx"):
        frame = pd.read_csv(data / "vidur_network" / f"{machine}__send_recv.csv.gz")
        for inside, rows in frame.groupby(frame["devices_per_node"] > 1):
            size = np.asarray(rows["size"], dtype=np.float64)
            time = np.asarray(rows["median_ms"], dtype=np.float64) * MS
            large, small = size >= 0.95 * size.max(), size <= 4096
            lines.append(
                f"send {machine}, {'inside a node' if inside else 'between nodes'}: "
                f"{np.median(size[large] / time[large]) / GB:.1f} GB/s, "
                f"{np.median(time[small]) / US:.1f} us for a small message"
            )
    return lines


def _kv_transfer_line(data: Path) -> str:
    import pandas as pd

    frame = pd.read_csv(data / "published_anchors" / "kv_transfer.csv")
    size = np.asarray(frame["kv_size_mb"], dtype=np.float64) * MB
    time = np.asarray(frame["transfer_ms"], dtype=np.float64) * MS
    design = np.stack([1.0 / time, size / time], axis=1)
    (latency, slope), *_ = np.linalg.lstsq(design, np.ones(len(time)), rcond=None)
    error = mape(latency + slope * size, time)
    return (
        f"roce-200, KV transfer over 8 ports: efficiency={1 / slope / (8 * 25 * GB):.3f} "
        f"latency_us={latency / US:.0f}, {error:.1%} MAPE"
    )


def host_report(data: Path) -> list[str]:
    """Host time per step of Vidur's engines: intercept (ms) and slope (us/sequence)."""
    import pandas as pd

    parts = {
        "before": ("schedule", "prepare_inputs_e2e"),
        "after": ("sampler_e2e", "process_model_outputs"),
        "driver to workers": ("ray_comm_time",),
    }
    lines = []
    for revision in ("latest", "older", "oldest"):
        frame = pd.read_csv(data / "vidur_cpu_overhead" / f"a100_{revision}.csv")
        for tp, rows in frame.groupby("tensor_parallel_degree"):
            batch = np.asarray(rows["batch_size"], dtype=np.float64)
            design = np.stack([np.ones(len(batch)), batch], axis=1)
            for part, names in parts.items():
                columns = [f"{n}_mean" if f"{n}_mean" in rows else f"{n}_median" for n in names]
                time_ms = np.asarray(rows[columns].sum(axis=1), dtype=np.float64)
                (fixed, slope), *_ = np.linalg.lstsq(design, time_ms, rcond=None)
                error = mape(design @ np.array([fixed, slope]), time_ms)
                lines.append(
                    f"host, revision {revision}, tp {tp}, {part}: {fixed:.3f} ms + "
                    f"{slope * 1e3:.1f} us/sequence, {error:.0%} MAPE"
                )
    return lines


def main(arguments: Sequence[str]) -> int:
    """Print the three reports for the folder of measured sets in `arguments`."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m simcluster.catalog.fit DATA_DIR\n")
        return 2
    data = Path(arguments[0])
    for report in (kernel_report, link_report, host_report):
        sys.stdout.write("\n".join(report(data)) + "\n\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
