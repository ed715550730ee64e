"""Fixed specifications for tests: they do not move when the catalogue is calibrated anew.

The constants are round numbers near the measured ones; nothing here is meant for planning.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from simcluster.catalog import model_entry
from simcluster.catalog.layers import ModelSpec
from simcluster.catalog.specs import EngineProfile, GPUSpec, KernelConstants, LinkSpec
from simcluster.catalog.tables import check
from simcluster.config import ClusterConfig, Environment, ModelConfig, SloConfig

_SOURCE = "round numbers for tests"


def a100() -> GPUSpec:
    """Return an A100-80GB SXM: data-sheet peaks, rounded kernel constants."""
    return GPUSpec(
        name="A100-80GB SXM",
        vendor="NVIDIA",
        arch="Ampere",
        memory_bytes=80e9,
        memory_bandwidth=2039e9,
        flops_16bit=312e12,
        flops_8bit=None,
        num_sms=108,
        fabric="nvlink3",
        pcie="pcie4",
        constants=KernelConstants(
            mfu_gemm=0.7,
            mbu_gemm=0.8,
            mfu_attention=0.5,
            mbu_attention=0.8,
            mbu_elementwise=0.7,
            smooth_p=1.4,
            fixed_s=3e-6,
            attention_block_s=2e-6,
            mixed_tile=64.0,
            mixed_mfu=0.8,
            accuracy="data-sheet",
            source=_SOURCE,
        ),
        prices=(),
        source="NVIDIA A100 data sheet",
    )


def h100() -> GPUSpec:
    """Return an H100-80GB SXM: data-sheet peaks with FP8, rounded kernel constants."""
    a100_spec = a100()
    return replace(
        a100_spec,
        name="H100-80GB SXM",
        arch="Hopper",
        memory_bandwidth=3350e9,
        flops_16bit=989e12,
        flops_8bit=1979e12,
        num_sms=132,
        fabric="nvlink4",
        pcie="pcie5",
        constants=replace(a100_spec.constants, mbu_gemm=0.85, attention_block_s=1e-6),
        source="NVIDIA H100 data sheet",
    )


def codellama_34b(**changes: object) -> ModelSpec:
    """Return CodeLlama-34B: grouped-query attention, 48 layers; or with other keys of an entry."""
    shape = {"num_layers": 48, "hidden_size": 8192, "num_heads": 64, "num_kv_heads": 8}
    shape |= {"head_dim": 128, "ffn_dim": 22016, "vocab_size": 32000, "max_position": 16384}
    return _decoder("codellama-34b", shape, changes)


def llama_2_7b(**changes: object) -> ModelSpec:
    """Return Llama-2-7B: multi-head attention, 32 layers; or with other keys of an entry."""
    shape = {"num_layers": 32, "hidden_size": 4096, "num_heads": 32, "num_kv_heads": 32}
    shape |= {"head_dim": 128, "ffn_dim": 11008, "vocab_size": 32000, "max_position": 4096}
    return _decoder("llama-2-7b", shape, changes)


def _decoder(name: str, shape: Mapping[str, object], changes: Mapping[str, object]) -> ModelSpec:
    """Return the model of an entry of the table of models, checked."""
    row = {"name": name, "gated_mlp": True, "tied_embeddings": False, **shape}
    row |= {"source": "published config.json", **changes}
    if "layers" in changes:
        del row["num_layers"]
    check("model", row, where=name)
    return model_entry.model(row)


def nvlink3() -> LinkSpec:
    """Return the fabric of an A100 node, per GPU and direction."""
    return LinkSpec(
        name="nvlink3",
        kind="fabric",
        bandwidth=300e9,
        efficiency=0.8,
        allreduce_efficiency=0.7,
        latency_s=5e-6,
        allreduce_latency_s=10e-6,
        source=_SOURCE,
    )


def pcie4() -> LinkSpec:
    """Return PCIe 4.0 x16, per GPU and direction, as link to the host or between GPUs."""
    return LinkSpec(
        name="pcie4",
        kind="fabric",
        bandwidth=32e9,
        efficiency=0.8,
        allreduce_efficiency=0.5,
        latency_s=10e-6,
        allreduce_latency_s=20e-6,
        source=_SOURCE,
    )


def ethernet_25g() -> LinkSpec:
    """Return 25 Gbit/s Ethernet, per NIC and direction."""
    return LinkSpec(
        name="25gbe",
        kind="network",
        bandwidth=25e9 / 8,
        efficiency=0.9,
        allreduce_efficiency=0.0,
        latency_s=20e-6,
        allreduce_latency_s=0.0,
        source=_SOURCE,
    )


def ideal_engine() -> EngineProfile:
    """Return an engine without host work: a step takes as long as its kernels."""
    return EngineProfile(
        name="ideal",
        host_before_s=0.0,
        host_after_s=0.0,
        host_per_seq_before_s=0.0,
        host_per_seq_after_s=0.0,
        overlaps_host=False,
        graph_max_seqs=0,
        issue_s=0.0,
        graph_issue_s=0.0,
        queue_depth=1024,
        gpu_memory_utilization=0.9,
        reserved_bytes=2e9,
        block_size=16,
        watermark=0.01,
        max_num_seqs=256,
        max_num_batched_tokens=None,
        chunk_size=512,
        source=_SOURCE,
    )


def vllm_engine() -> EngineProfile:
    """Return an engine like vLLM of 2025: 1 ms of host work, graphs in pure decode."""
    return replace(
        ideal_engine(),
        name="vllm-like",
        host_before_s=0.6e-3,
        host_after_s=0.4e-3,
        host_per_seq_before_s=5e-6,
        host_per_seq_after_s=5e-6,
        graph_max_seqs=256,
        issue_s=6e-6,
        graph_issue_s=100e-6,
    )


def eager_engine() -> EngineProfile:
    """Return an engine that issues every kernel from Python, 20 us each."""
    return replace(
        ideal_engine(),
        name="eager",
        host_before_s=1e-3,
        host_after_s=1e-3,
        host_per_seq_before_s=20e-6,
        host_per_seq_after_s=20e-6,
        issue_s=20e-6,
        graph_issue_s=100e-6,
    )


def environment(
    *,
    model: ModelSpec | None = None,
    engine: EngineProfile | None = None,
    max_model_len: int = 4096,
    num_nodes: int = 2,
    gpus_per_node: int = 8,
    slo: SloConfig | None = None,
) -> Environment:
    """Return a cluster of A100 nodes with one 25 GbE NIC each that serves CodeLlama-34B."""
    return Environment(
        model=ModelConfig(spec=model or codellama_34b(), max_model_len=max_model_len),
        cluster=ClusterConfig(
            gpu=a100(),
            num_nodes=num_nodes,
            gpus_per_node=gpus_per_node,
            fabric=nvlink3(),
            network=ethernet_25g(),
            num_nics=1,
            pcie=pcie4(),
            price_per_gpu_hour=1.5,
        ),
        engine=engine or vllm_engine(),
        slo=slo or SloConfig(ttft_s=5.0, tpot_s=0.1),
    )
