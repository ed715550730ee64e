"""The kind of a deployment, and how far simulated times of that kind are from measured ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Final, NamedTuple

from simcluster import catalog
from simcluster.catalog.scores import Kind, KindScore, committed
from simcluster.catalog.specs import EngineProfile, GPUSpec
from simcluster.config import LAW, ClusterConfig, Environment, ModelConfig
from simcluster.errors import ConfigError

ENGINES: Final = {
    "vllm-0.19": "vLLM 0.15+",
    "vllm-0.11-async": "vLLM 0.10 to 0.14, asynchronous",
    "vllm-0.11": "vLLM 0.10 to 0.14",
    "vllm-0.7": "vLLM 0.7",
    "vllm-0.6": "vLLM 0.6",
    "vllm-0.2": "vLLM 0.2 (2023)",
    "sarathi": "Sarathi-Serve",
    "trtllm-1": "TensorRT-LLM 1",
}
"""Generations of engines by their profiles, in words."""
BITS: Final = {16: "bf16", 8: "8-bit", 4: "4-bit"}
_LINKS: Final = {"nvlink": "NVLink", "pcie": "PCIe"}
_SERVED: Final = ("TTFT", "TPOT", "E2E", "throughput")
_TIMES: Final = (
    "issue_s",
    "graph_issue_s",
    "piece_issue_s",
    "front_end_s",
    "front_end_token_s",
    "cpu_speed",
)
"""Times of an engine profile beside those that begin with ``host_``."""


class Known(NamedTuple):
    """Errors of a kind as far as they were measured."""

    errors: Mapping[str, float]
    """By quantity (shares), served requests or single steps: `KindScore.quantity`."""
    gpus: tuple[str, ...]
    """Where they were measured."""
    n: int
    """Most runs or steps that one of the errors is a mean of."""
    served: bool
    """They are of served requests, not of single steps."""
    fitted: bool
    """Constants were fitted to all of these runs: an error of consistency, not of prediction."""


def kind_of(environment: Environment, cluster: ClusterConfig | None = None) -> Kind:
    """Return the kind of the first model on `cluster`, by default on the first machines."""
    model = environment.model
    fabric = (cluster or environment.cluster).fabric.name
    link = next((name for start, name in _LINKS.items() if fabric.startswith(start)), fabric)
    experts = "dense" if model.spec.experts is None else "MoE"
    return Kind(experts, _bits(model), link, environment.engine.name)


def _bits(model: ModelConfig) -> int:
    """Bits in which most weights of the layers are served."""
    counts: dict[int, int] = {}
    for run in model.spec.layers:
        parts = run.layer.matrices(model.spec.hidden_size, gated=model.spec.gated_mlp)
        for stored, num_params in parts:
            num_bytes = model.dtype_of(stored).num_bytes
            # A share of the scales comes on top of each weight: less than half a byte.
            bits = next((bits for bits in (4, 8) if 8 * num_bytes < 1.5 * bits), 16)
            counts[bits] = counts.get(bits, 0) + run.repeat * num_params
    return max(counts, key=lambda bits: (counts[bits], bits))


def in_words(kind: Kind) -> str:
    """Return such as ``dense bf16 on NVLink with vLLM 0.15+``."""
    engine = ENGINES.get(kind.engine, f"engine {kind.engine}")
    return f"{kind.model} {BITS[kind.bits]} on {kind.link} with {engine}"


def known(
    environment: Environment,
    cluster: ClusterConfig | None = None,
    scores: Iterable[KindScore] | None = None,
) -> Known | None:
    """Return the errors of the environment's kind; None where nothing of it was measured.

    Parameters
    ----------
    environment : Environment
        Model, engine and machines.
    cluster : ClusterConfig, optional
        Which machines of it; the first by default.
    scores : iterable of KindScore, optional
        The committed ones by default.

    Notes
    -----
    Runs on this GPU count before those on others, served requests before single steps, held-out
    runs before fitted ones; means are over all runs that are left. Of a GPU that is known by its
    data sheet alone, or brings 8-bit weights to 16 bits, runs on other GPUs say nothing. Neither
    does the kind where the scenario gives times of its own to the engine or to kernels.
    """
    place = cluster or environment.cluster
    if environment.step_times != "roofline" or not _as_measured(environment.engine):
        return None
    if environment.kernels != LAW:
        return None
    kind = kind_of(environment, place)
    rows = committed().kinds if scores is None else tuple(scores)
    found = [row for row in rows if row.kind == kind]
    here = [row for row in found if place.gpu.name in row.gpu.split(", ")]
    if not here and environment.accuracy_of(place) == "data-sheet":
        return None
    return summary(here or found) if _multiplies(environment.model, place.gpu) else None


def summary(rows: Iterable[KindScore]) -> Known | None:
    """Return the errors of rows of one kind together; None of none."""
    left = list(rows)
    left = [row for row in left if row.quantity in _SERVED] or left
    left = [row for row in left if not row.fitted] or left
    if not left:
        return None
    errors, counts = {}, {}
    for name in dict.fromkeys(row.quantity for row in left):
        same = [row for row in left if row.quantity == name]
        counts[name] = sum(row.n for row in same)
        errors[name] = sum(row.n * row.error for row in same) / counts[name]
    return Known(
        errors=errors,
        gpus=tuple(dict.fromkeys(gpu for row in left for gpu in row.gpu.split(", "))),
        n=max(counts.values()),
        served=left[0].quantity in _SERVED,
        fitted=all(row.fitted for row in left),
    )


def _multiplies(model: ModelConfig, gpu: GPUSpec) -> bool:
    """Whether 8-bit weights are those that were measured, fp8, and the GPU multiplies them."""
    stored = {dtype for layer in model.spec.each_layer for dtype in layer.dtypes_in_use}
    needed = {model.dtype_of(dtype).arithmetic for dtype in stored} - {"16bit"}
    return needed <= {"fp8"} and needed <= set(gpu.native_8bit)


def _as_measured(engine: EngineProfile) -> bool:
    """Whether the engine has the times of the profile whose name it has."""
    try:
        profile = catalog.engine(engine.name)
    except ConfigError:
        return False
    times = [f.name for f in fields(engine) if f.name.startswith("host_") or f.name in _TIMES]
    return all(getattr(engine, name) == getattr(profile, name) for name in times)


def decode_error(environment: Environment) -> float:
    """Return the error of decode times (share) that a deployment of this kind is taken to have.

    That of the kind where it was measured on this GPU. Elsewhere the largest of the kinds measured
    with experts, if it has some, or with weights of as few bits; 0 where neither holds.
    """
    rows = [row for row in committed().kinds if row.quantity in ("TPOT", "decode step")]
    own = known(environment, scores=rows)
    if own is not None and environment.cluster.gpu.name in own.gpus:
        return max(own.errors.values())
    kind = kind_of(environment)
    alike = [
        row.error
        for row in rows
        if (kind.model == row.kind.model == "MoE") or (kind.bits < 16 and row.kind.bits < 16)
    ]
    return max(alike, default=0.0)
