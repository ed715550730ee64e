"""From an entry in the units of data sheets to a specification in seconds, bytes and FLOP/s."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from simcluster.catalog.specs import (
    AllReduceTerms,
    EngineProfile,
    ExpertKernel,
    GPUSpec,
    KernelConstants,
    LengthTable,
    LinkSpec,
    NodeShape,
    Price,
    QualityCounts,
)
from simcluster.catalog.tables import Row
from simcluster.units import GB, MB, MS, NS, PS, US

_KIB: Final = 2.0**10
_MIB: Final = 2.0**20
_TERA: Final = 1e12
DRIVER_MIB: Final = 600.0
"""What of a GPU's total the driver keeps (MiB), where it is not known: 469 to 839 where it is."""
_FINER_SHARES: Final = (
    "mfu_gemm_8bit",
    "mbu_quantise",
    "mbu_gemm_few",
    "mfu_gemm_block",
    "mbu_gemm_block",
    "mixed_mfu",
    "decode_overlap_8bit",
    "gemm_waves",
    "gemm_tile_loss",
    "mbu_norm",
    "mbu_rope",
    "mbu_activation",
    "mbu_add",
    "mbu_embedding",
    "mbu_prefill",
    "prefill_p",
    "prefill_waves",
    "attention_causal",
    "decode_waves",
    "decode_overlap",
    "mbu_attention_8bit",
    "cached_norm",
    "cached_rope",
    "cached_activation",
    "cached_add",
    "cached_embedding",
)


def gpu(
    row: Row,
    kernels: tuple[Row, Sequence[Row]],
    prices: Iterable[Row],
    older_kernels: Iterable[tuple[Row, Sequence[Row]]] = (),
) -> GPUSpec:
    """Return a GPU with its kernel constants and prices.

    Constants that were fitted on another die of the same generation count as ``"data-sheet"``.
    """
    r: dict[str, Any] = dict(row)
    memory = r["memory_mib"] * _MIB if "memory_mib" in r else r["memory_gb"] * GB
    cuda = r.get("cuda_mib", r["memory_mib"] - DRIVER_MIB) * _MIB if "memory_mib" in r else None
    eight_bit, four_bit = r.get("tflops_8bit"), r.get("tflops_4bit")
    return GPUSpec(
        name=r["name"],
        vendor=r["vendor"],
        arch=r["arch"],
        memory_bytes=float(memory),
        cuda_bytes=cuda,
        memory_bandwidth=r["bandwidth_gb_s"] * GB,
        flops_16bit=r["tflops_16bit"] * _TERA,
        flops_8bit=None if eight_bit is None else eight_bit * _TERA,
        native_8bit=tuple(r.get("native_8bit", ())) if eight_bit else (),
        flops_4bit=None if four_bit is None else four_bit * _TERA,
        native_4bit=tuple(r.get("native_4bit", ())) if four_bit else (),
        mfu_4bit=r.get("mfu_4bit"),
        num_sms=r["num_sms"],
        l2_bytes=r.get("l2_mb", 0.0) * MB,
        fabric=r["fabric"],
        pcie=r["pcie"],
        constants=kernel_constants(*kernels, r["name"]),
        older_constants=tuple(kernel_constants(*older, r["name"]) for older in older_kernels),
        prices=tuple(price(p) for p in prices),
        source=r["source"],
    )


def kernel_constants(row: Row, experts: Iterable[Row], gpu_name: str) -> KernelConstants:
    """Return the constants of `row` and its kernels for experts as they hold for `gpu_name`."""
    r: dict[str, Any] = dict(row)
    accuracy, source = r["accuracy"], r["source"]
    if gpu_name not in r.get("holds_for", ()) and accuracy != "data-sheet":
        accuracy, source = "data-sheet", f"carried over from {r['name']}: {source}"
    return KernelConstants(
        mfu_gemm=float(r["mfu_gemm"]),
        mbu_gemm=float(r["mbu_gemm"]),
        mfu_attention=float(r["mfu_attention"]),
        mbu_attention=float(r["mbu_attention"]),
        mbu_elementwise=float(r["mbu_elementwise"]),
        smooth_p=float(r["smooth_p"]),
        fixed_s=r["fixed_us"] * US,
        attention_block_s=r["attention_block_us"] * US,
        prefill_tile=float(r.get("prefill_tile", 128.0)),
        mixed_tile=float(r.get("mixed_tile", 0.0)),
        quantise_s=_in_units(r.get("quantise_us")),
        fixed_block_s=_in_units(r.get("fixed_block_us")),
        experts=tuple(expert_kernel(each) for each in experts),
        elementwise_fixed_s=_in_units(r.get("elementwise_fixed_us")),
        norm_fixed_s=_in_units(r.get("norm_fixed_us")),
        row_chain_s=r.get("row_chain_ns", 0.0) * NS,
        row_s=r.get("row_us", 0.0) * US,
        attention_fixed_s=_in_units(r.get("attention_fixed_us")),
        attention_fixed_8bit_s=_in_units(r.get("attention_fixed_8bit_us")),
        attention_block_8bit_s=_in_units(r.get("attention_block_8bit_us")),
        attention_sm_8bit=_in_units(r.get("attention_sm_8bit_gb_s"), GB),
        attention_context_s=r.get("attention_context_ns", 0.0) * NS,
        attention_split_s=r.get("attention_split_us", 0.0) * US,
        mixed_block_s=_in_units(r.get("mixed_block_us")),
        generation=r.get("generation", ""),
        accuracy=accuracy,
        source=source,
        **{key: float(r[key]) for key in _FINER_SHARES if key in r},
    )


def expert_kernel(row: Row) -> ExpertKernel:
    """Return a kernel for experts."""
    r: dict[str, Any] = dict(row)
    return ExpertKernel(
        name=r["name"],
        weights=r["weights"],
        tiles=r["tiles"],
        mfu=float(r["mfu"]),
        small_tiles=float(r.get("small_tiles", 1.0)),
        large_tiles=float(r.get("large_tiles", 1.0)),
        mbu=float(r["mbu"]),
        smooth_p=float(r["smooth_p"]),
        tile_s=r["tile_us"] * US,
        fixed_s=r["fixed_us"] * US,
        number_s=r["number_ps"] * PS,
        unaligned=float(r.get("unaligned", 1.0)),
        tuned=tuple((int(num), int(width)) for num, width in r.get("tuned", ())),
        tuned_gain=float(r.get("tuned_gain", 1.0)),
        source=r["source"],
    )


def _in_units(number: float | None, unit: float = US) -> float | None:
    return None if number is None else number * unit


def price(row: Row) -> Price:
    """Return one price; the provider's own words stand in its source."""
    r: dict[str, Any] = dict(row)
    terms = r.get("terms")
    return Price(
        per_gpu_hour=float(r["per_gpu_hour"]),
        currency=r["currency"],
        tier=r["tier"],
        provider=r["provider"],
        date=r["date"],
        source=f"{r['source']} [{terms}]" if terms else r["source"],
    )


def link(row: Row) -> LinkSpec:
    """Return a link."""
    r: dict[str, Any] = dict(row)
    return LinkSpec(
        name=r["name"],
        kind=r["kind"],
        bandwidth=r["bandwidth_gb_s"] * GB,
        efficiency=float(r["efficiency"]),
        allreduce_efficiency=float(r["allreduce_efficiency"]),
        latency_s=r["latency_us"] * US,
        allreduce_latency_s=r["allreduce_latency_us"] * US,
        allreduce_terms=tuple(
            AllReduceTerms(tp_size=int(size), latency_s=latency_us * US, efficiency=share)
            for size, latency_us, share in r.get("allreduce", ())
        ),
        own_allreduce_terms=tuple(
            AllReduceTerms(
                tp_size=int(size),
                latency_s=latency_us * US,
                efficiency=share,
                below_bytes=below_kib * _KIB,
            )
            for size, below_kib, latency_us, share in r.get("own_allreduce", ())
        ),
        wire=r.get("wire", ""),
        source=r["source"],
    )


def node(row: Row) -> NodeShape:
    """Return a server."""
    r: dict[str, Any] = dict(row)
    return NodeShape(
        name=r["name"],
        gpu=r["gpu"],
        gpus_per_node=r["gpus_per_node"],
        fabric=r["fabric"],
        network=r["network"],
        num_nics=r["num_nics"],
        gpus_per_domain=r.get("gpus_per_domain"),
        gpus_per_switch=r.get("gpus_per_switch"),
        source=r["source"],
    )


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value * unit


def engine(row: Row) -> EngineProfile:
    """Return an engine profile."""
    r: dict[str, Any] = dict(row)
    return EngineProfile(
        name=r["name"],
        host_before_s=r["host_before_ms"] * MS,
        host_after_s=r["host_after_ms"] * MS,
        host_per_seq_before_s=r["host_per_seq_before_us"] * US,
        host_per_seq_after_s=r["host_per_seq_after_us"] * US,
        host_workers_s=r.get("host_workers_ms", 0.0) * MS,
        kernel_generation=r.get("kernel_generation", ""),
        quantises=r.get("quantises", "fused"),
        fuses_allreduce=r.get("fuses_allreduce", False),
        fuses_allreduce_max_bytes=_scaled(r.get("fuses_allreduce_mib"), _MIB),
        front_end_s=r.get("front_end_ms", 0.0) * MS,
        front_end_token_s=r.get("front_end_token_us", 0.0) * US,
        api_servers=r.get("api_servers", 0),
        api_request_s=r.get("api_request_ms", 0.0) * MS,
        api_token_s=r.get("api_token_us", 0.0) * US,
        piece_max_tokens=r.get("piece_max_tokens", 0),
        piece_issue_s=r.get("piece_issue_us", 0.0) * US,
        splits_attention=r.get("splits_attention", False),
        reserves_output=r.get("reserves_output", False),
        own_allreduce=r.get("own_allreduce", True),
        prefix_caching=r.get("prefix_caching", False),
        expert_parallel=r.get("expert_parallel", "any"),
        overlaps_host=r["overlaps_host"],
        plans_ahead=r.get("plans_ahead", False),
        prefill_wait_steps=r.get("prefill_wait_steps", 0),
        prefill_wait_share=float(r.get("prefill_wait_share", 0.0)),
        prefill_interval=r.get("prefill_interval", 1),
        handover_s=r.get("handover_ms", 0.0) * MS,
        redoes_last_token=r.get("redoes_last_token", False),
        kv_connector=r.get("kv_connector", "beside"),
        kv_put_bytes_per_s=_scaled(r.get("kv_put_gbs"), GB),
        kv_get_bytes_per_s=_scaled(r.get("kv_get_gbs"), GB),
        kv_between_steps=r.get("kv_between_steps", False),
        kv_poll_s=r.get("kv_poll_ms", 0.0) * MS,
        kv_buffer_bytes=_scaled(r.get("kv_buffer_gb"), GB),
        graph_max_seqs=r["graph_max_seqs"],
        issue_s=r["issue_us"] * US,
        graph_issue_s=r["graph_issue_us"] * US,
        queue_depth=r["queue_depth"],
        gpu_memory_utilization=float(r["gpu_memory_utilization"]),
        memory_rule=r.get("memory_rule", "total"),
        reserved_bytes=r["reserved_gb"] * GB,
        sampler_bytes=float(r.get("sampler_bytes", 0.0)),
        scheduler=r.get("scheduler", "prefill-priority"),
        large_gpu_max_num_seqs=r.get("large_gpu_max_num_seqs"),
        large_gpu_chunk_size=r.get("large_gpu_chunk_size"),
        communicator_bytes=r.get("communicator_gb", 0.0) * GB,
        hybrid_kv_cache=r.get("hybrid_kv_cache", True),
        block_size=r["block_size"],
        watermark=float(r["watermark"]),
        max_num_seqs=r["max_num_seqs"],
        max_num_batched_tokens=r.get("max_num_batched_tokens"),
        chunk_size=r["chunk_size"],
        source=r["source"],
    )


def lengths(row: Row) -> LengthTable:
    """Return a table of measured or fitted lengths."""
    r: dict[str, Any] = dict(row)
    return LengthTable(
        name=r["name"],
        levels=tuple(float(v) for v in r["levels"]),
        prompt=tuple(float(v) for v in r["prompt"]),
        output_by_prompt=tuple(tuple(float(v) for v in s) for s in r["output_by_prompt"]),
        num_measured=r["num_measured"],
        prompt_mean=float(r["prompt_mean"]),
        output_mean=float(r["output_mean"]),
        source=r["source"],
        licence=r["licence"],
    )


def quality(row: Row) -> QualityCounts:
    """Return who answered right, and a published router's operating point."""
    r: dict[str, Any] = dict(row)
    return QualityCounts(
        name=r["name"],
        weak=r["weak"],
        strong=r["strong"],
        counts=(
            r["both_correct"],
            r["only_strong_correct"],
            r["only_weak_correct"],
            r["neither_correct"],
        ),
        strong_share=float(r["strong_share"]),
        kept_quality=float(r["kept_quality"]),
        source=r["source"],
    )
