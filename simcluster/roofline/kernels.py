"""The time of one kernel on one GPU: a smooth roofline plus a fixed latency.

``(compute^p + memory^p)^(1/p) + fixed`` with ``compute = flops / (mfu x peak)`` and ``memory =
bytes / (mbu x bandwidth)``. A plain maximum without the fixed latency is off by 10-19 % on matrix
multiplications and by more than 100 % on decode attention (measured sets, see docs).
"""

from __future__ import annotations

from simcluster.roofline.operators import AttentionWork
from simcluster.specs import GPUSpec


def smooth_max(a: float, b: float, p: float) -> float:
    """Return ``(a^p + b^p)^(1/p)``, between the maximum and the sum of two times (s), both >= 0.

    >>> smooth_max(3.0, 4.0, 2.0)
    5.0
    """
    high, low = (a, b) if a > b else (b, a)
    if low == 0.0:
        return high
    return float(high * (1.0 + (low / high) ** p) ** (1.0 / p))


class KernelTimer:
    """Times of kernels on one GPU (s, not yet on the grid).

    Parameters
    ----------
    gpu : GPUSpec
        Its peaks and the constants of the kernel law.
    """

    __slots__ = (
        "_attention_bandwidth",
        "_attention_flops",
        "_block_s",
        "_elementwise_bandwidth",
        "_gemm_bandwidth",
        "_gemm_flops",
        "_gemm_flops_8bit",
        "_p",
        "fixed_s",
    )

    def __init__(self, gpu: GPUSpec) -> None:
        constants = gpu.constants
        self._gemm_flops = constants.mfu_gemm * gpu.flops_16bit
        self._gemm_flops_8bit = constants.mfu_gemm * (gpu.flops_8bit or gpu.flops_16bit)
        self._gemm_bandwidth = constants.mbu_gemm * gpu.memory_bandwidth
        self._attention_flops = constants.mfu_attention * gpu.flops_16bit
        self._attention_bandwidth = constants.mbu_attention * gpu.memory_bandwidth
        self._elementwise_bandwidth = constants.mbu_elementwise * gpu.memory_bandwidth
        self._block_s = constants.attention_block_s / gpu.num_sms
        self._p = constants.smooth_p
        self.fixed_s = constants.fixed_s

    def gemm_s(self, flops: float, num_bytes: float, weight_bytes: float) -> float:
        """Time of a matrix multiplication; one-byte weights use the 8-bit peak where there is one.

        Half-byte weights are unpacked and multiplied in 16 bits.
        """
        peak = self._gemm_flops_8bit if weight_bytes == 1.0 else self._gemm_flops
        return smooth_max(flops / peak, num_bytes / self._gemm_bandwidth, self._p) + self.fixed_s

    def elementwise_s(self, num_bytes: float) -> float:
        """Time of a norm, rotary embedding, activation, copy: bandwidth only."""
        return num_bytes / self._elementwise_bandwidth + self.fixed_s

    def prefill_attention_s(self, flops: float, num_bytes: float) -> float:
        """Time of prefill attention without the kernel's fixed latency."""
        return smooth_max(
            flops / self._attention_flops, num_bytes / self._attention_bandwidth, self._p
        )

    def decode_attention_s(self, work: AttentionWork) -> tuple[float, float]:
        """Return the slopes of decode attention: s per sequence, s per token attended to.

        The time of the kernel is ``fixed_s + per_sequence x sequences + per_token x tokens``:
        compute and memory time both grow with the tokens, and so does their smooth maximum.
        """
        per_sequence = self._block_s * work.kv_heads + work.io_bytes / self._attention_bandwidth
        per_token = smooth_max(
            work.decode_flops / self._attention_flops,
            work.decode_kv_bytes / self._attention_bandwidth,
            self._p,
        )
        return per_sequence, per_token
