"""The kernel law and the collectives in the limits where textbooks give the answer."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simcluster.catalog.specs import AllReduceTerms
from simcluster.config import ModelConfig
from simcluster.roofline.collectives import all_gather_s, all_reduce_s
from simcluster.roofline.kernels import KernelTimer, smooth_max
from simcluster.roofline.operators import attention_work
from simcluster.testing.examples import examples
from simcluster.testing.specs import a100, codellama_34b, h100, nvlink3


@given(st.floats(0, 1e3), st.floats(0, 1e3), st.floats(1, 20))
@examples(100)
def test_the_smooth_maximum_lies_between_maximum_and_sum(a: float, b: float, p: float) -> None:
    """Two resources used at once can neither finish before the slower nor after both in turn."""
    value = smooth_max(a, b, p)
    assert max(a, b) <= value <= (a + b) * (1 + 1e-12)
    assert value == smooth_max(b, a, p)


def test_the_smooth_maximum_has_its_limits() -> None:
    """With p = 1 it is the sum, 2 the hypotenuse, large p the plain roofline."""
    assert smooth_max(3, 4, 1) == pytest.approx(7)
    assert smooth_max(3, 4, 2) == pytest.approx(5)
    assert smooth_max(3, 4, 200) == pytest.approx(4)
    assert smooth_max(0, 0, 1.4) == 0


def test_large_multiplications_reach_their_share_of_the_peak() -> None:
    """Compute far above memory: flops / (mfu x peak) plus the fixed latency."""
    time_s = KernelTimer(a100()).gemm_s(312e12, 1e6, 2.0)
    assert time_s == pytest.approx(1 / 0.7 + 3e-6, rel=1e-4)


def test_small_multiplications_stream_their_weights() -> None:
    """Memory far above compute: bytes / (mbu x bandwidth) plus the fixed latency."""
    time_s = KernelTimer(a100()).gemm_s(1e6, 2039e6, 2.0)
    assert time_s == pytest.approx(1e-3 / 0.8 + 3e-6, rel=1e-3)


@pytest.mark.parametrize(("number_bytes", "peak"), [(2.0, 989e12), (1.0, 1979e12), (0.5, 989e12)])
def test_only_one_byte_numbers_use_the_8_bit_peak(number_bytes: float, peak: float) -> None:
    """Others are brought to 16 bits first."""
    time_s = KernelTimer(h100()).gemm_s(1e15, 1.0, number_bytes)
    assert time_s == pytest.approx(1e15 / (0.7 * peak), rel=1e-4)


def test_a_part_without_8_bit_units_falls_back_to_16_bit() -> None:
    """8-bit weights save memory there, not arithmetic."""
    timer = KernelTimer(a100())
    assert timer.gemm_s(1e15, 1.0, 1.0) == timer.gemm_s(1e15, 1.0, 2.0)


def test_decode_attention_streams_the_cache_and_pays_per_block() -> None:
    """CodeLlama-34B has 4096 bytes of cache per layer and token; 32 x 8 blocks on 108 SMs."""
    model = ModelConfig(spec=codellama_34b(), max_model_len=4096)
    work = replace(
        attention_work(model, model.spec.attentions[0], 1), decode_flops=0.0, io_bytes=0.0
    )
    timer = KernelTimer(a100())
    terms = timer.decode_terms(work, 32)
    assert terms.linear == pytest.approx(4096 / (0.8 * 2039e9))
    assert terms.const - timer.attention_fixed_s == pytest.approx(32 * 2e-6 * 8 / 108)


def test_a_ring_all_reduce_sends_all_but_one_share_twice() -> None:
    """The bandwidth term of the ring, 2 (t - 1) / t."""
    link = nvlink3()
    assert all_reduce_s(link, 1, 1e9) == 0
    assert all_reduce_s(link, 2, 0) == link.allreduce_latency_s
    sent = 2 * 7 / 8 * 1e9
    expected = link.allreduce_latency_s + sent / (300e9 * 0.7)
    assert all_reduce_s(link, 8, 1e9) == pytest.approx(expected)


def test_the_engines_own_all_reduce_is_used_below_its_size_and_the_library_beyond() -> None:
    """One kernel below 512 KiB, another below 8 MiB; an engine without them calls the library."""
    terms = [
        AllReduceTerms(tp_size=4, latency_s=lat, efficiency=eff, below_bytes=below)
        for lat, eff, below in ((5e-6, 0.3, 2.0**19), (10e-6, 0.6, 2.0**23))
    ]
    link = replace(nvlink3(), own_allreduce_terms=tuple(terms))

    def expected(num_bytes: float, latency_s: float, efficiency: float) -> float:
        return latency_s + 1.5 * num_bytes / (300e9 * efficiency)

    assert all_reduce_s(link, 4, 2.0**19 - 1) == expected(2.0**19 - 1, 5e-6, 0.3)
    assert all_reduce_s(link, 4, 2.0**19) == expected(2.0**19, 10e-6, 0.6)
    assert all_reduce_s(link, 4, 2.0**23) == expected(2.0**23, 10e-6, 0.7)
    assert all_reduce_s(link, 4, 1e4, own_kernels=False) == expected(1e4, 10e-6, 0.7)
    assert all_reduce_s(link, 8, 1e4) == all_reduce_s(nvlink3(), 8, 1e4)


def test_the_fastest_protocol_of_the_library_counts() -> None:
    """One has less latency, the other more bandwidth."""
    terms = tuple(
        AllReduceTerms(tp_size=2, latency_s=lat, efficiency=eff)
        for lat, eff in ((10e-6, 0.2), (40e-6, 0.6))
    )
    link = replace(nvlink3(), allreduce_terms=terms)
    assert all_reduce_s(link, 2, 1e3) == 10e-6 + 1e3 / (300e9 * 0.2)
    assert all_reduce_s(link, 2, 1e8) == 40e-6 + 1e8 / (300e9 * 0.6)


def test_an_all_gather_is_half_an_all_reduce() -> None:
    """A ring all-reduce is a reduce-scatter and an all-gather of equal traffic."""
    link = replace(nvlink3(), allreduce_latency_s=0.0)
    assert all_gather_s(link, 1, 1e9) == 0
    assert all_gather_s(link, 4, 1e9) == pytest.approx(all_reduce_s(link, 4, 1e9) / 2)
