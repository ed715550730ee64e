"""The fitted sets of ``kernels.toml`` and ``experts.toml``, again from the published measured sets.

``python -m simcluster.fidelity.calibrate.derive DATA_DIR`` prints them; the same data give the same
text. Sets of kernels that are derived from others, not fitted, stand in the file alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from simcluster import catalog
from simcluster.catalog.specs import ExpertKernel, GPUSpec, KernelConstants
from simcluster.catalog.toml_writer import to_toml
from simcluster.fidelity.calibrate.fit import first_kernel, fit
from simcluster.fidelity.calibrate.readers import KERNELS
from simcluster.fidelity.calibrate.readers.samples import Samples, joined
from simcluster.fidelity.calibrate.readers.vidur import TRAINED
from simcluster.fidelity.calibrate.report import experts_row, kernels_row
from simcluster.units import US

_ATTENTION: Final = ("attention_prefill", "attention_decode", "attention_mixed")
_OLD: Final = "2024"
_EXPERTS_SOURCE: Final = (
    "Least squares on relative errors of aiconfigurator's table of fused_experts on {} (aic_ops: "
    "balanced and power-law spreads of tokens, no expert parallelism); a share of its data sheet"
)
_TUNED: Final[Mapping[tuple[str, str], tuple[tuple[int, int], ...]]] = {
    ("ampere-ga100", "bf16"): (
        (8, 1792),
        (8, 2048),
        (8, 3584),
        (8, 4096),
        (8, 7168),
        (128, 192),
    ),
    ("hopper", "bf16"): (
        (8, 1792),
        (8, 2048),
        (8, 3584),
        (8, 4096),
        (8, 7168),
        (128, 192),
        (128, 928),
        (128, 1856),
    ),
    ("hopper", "fp8"): ((8, 2048), (8, 3584), (8, 4096), (8, 7168), (8, 8192), (8, 14336)),
}
"""Experts and widths for which vLLM ships tuned tiles, by set and weights: in aiconfigurator's
tables they reach twice to five times the arithmetic of all others."""
_MARLIN: Final = "hopper int4 marlin"
"""Kernel of 4-bit weights, by its set: the one that serves them under vLLM; measured on H100."""
_OLD_INSTRUCTIONS: Final = 0.629
"""Share of the peak of Hopper's tensor cores that ``mma.sync`` reaches, which Marlin multiplies by
(arXiv 2402.13499, section on tensor cores: 62.9 % in the mean). On Ampere, Ada and GeForce-like
Blackwell it is the instruction of the peak."""
_NEW_INSTRUCTIONS: Final = ("hopper", "hopper-2024", "blackwell")
"""Sets of GPUs whose peak takes other instructions."""
_NOT_SERVED: Final = {
    "blackwell": ("int4 wna16", "mxfp4 trtllm", "fp8-block block-by-tokens", "fp8 by-tokens"),
    "blackwell-gb202": ("int4 wna16",),
}
"""Kernels of the tables that engines do not serve with, by set: the Triton kernel for 4-bit
integers, where Marlin's runs; on B200 that for 8 bits, where FlashInfer's runs (vLLM 0.17,
fused_moe/oracle/fp8.py), and one for MXFP4 that takes longer alone than a whole step of gpt-oss."""
_FP4: Final = "blackwell nvfp4 trtllm"
"""Kernel that stands in for its siblings of FlashInfer with 8-bit inputs, of which there is no
table."""
_SIBLINGS: Final = {
    "fp8-block": "vLLM, SGLang and TensorRT-LLM serve 8-bit weights with it on B200",
    "mxfp4": "vLLM and TensorRT-LLM give gpt-oss inputs in MXFP8 there",
}
_SAME_EXPERTS: Final = {
    "ampere-ga100-2024": "ampere-ga100",
    "ampere-ga100-2023": "ampere-ga100",
    "ampere-ga102": "ampere-ga100",
    "hopper-2024": "hopper",
    "ada-rtx4090": "ada",
}
"""Sets without measured experts, and the set of the same generation whose kernels stand in: vLLM's
Triton kernel has had its default tiles since 2024."""
_PACKED: Final = 6
"""Small kernels by which the collector packs choices and scales before the call of FlashInfer's
kernel (collect_moe.py, _run_nvfp4_once: scale expanded, choices and weights to integers, shifted
and joined); engines have none of them."""


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one published set that a fit takes."""

    folder: str
    """Name of the set."""
    operators: tuple[str, ...] = ()
    """Which of its operators; empty for all."""
    gpu: str = ""
    """GPU they were measured on; empty for that of the fit."""
    groups: tuple[str, ...] = ()
    """Groups that the fit sees; empty for all."""


@dataclass(frozen=True, slots=True)
class FittedSet:
    """One fitted entry of ``kernels.toml``."""

    name: str
    arch: str
    """Of the entry."""
    gpu: str
    """GPU whose data sheet the shares are of."""
    parts: tuple[Part, ...]
    """Fitted together, one after another where they are of different GPUs."""
    start: str
    """Fitted set whose constants stand where there are no rows, by its name; empty for none."""
    holds_for: tuple[str, ...]
    """GPUs with the same die."""
    generation: str
    """Software."""
    source: str
    """What is fitted to what."""
    tile: int = 128
    """Queries of a tile of the attention kernel."""
    one_kernel: bool = False
    """It computes chunks and decodes of a step in one call."""


_GA100: Final = (
    "A100-80GB SXM",
    "A100-80GB PCIe",
    "A100-40GB SXM",
    "A800-80GB SXM",
    "A800-80GB PCIe",
)
SETS: Final = (
    FittedSet(
        "ada-rtx4090",
        "Ada (AD102), GeForce",
        "RTX 4090",
        (Part("llmservingsim_ops"),),
        "",
        ("RTX 4090",),
        "",
        "Least squares on relative errors of vLLM 0.19 operators of Llama-3.1-8B on RTX 4090 "
        "(LLMServingSim); shares near 1 because it clocks above the data sheet, elementwise "
        "kernels run out of L2",
        64,
        True,
    ),
    FittedSet(
        "ampere-ga100-2024",
        "Ampere (GA100), software of 2024",
        "A100-80GB SXM",
        (Part("vidur_mlp", groups=TRAINED), Part("aic_ops", _ATTENTION)),
        "",
        _GA100,
        _OLD,
        "Multiplications, elementwise kernels, p: Vidur's profiled layers of Llama-2-7B and "
        "CodeLlama-34B on A100 80 GB; attention: aiconfigurator's on A100 SXM with this p "
        "(FlashAttention-2 in both); mixed_mfu and mixed_block carried over from ada-rtx4090",
        128,
        True,
    ),
    FittedSet(
        "ampere-ga100-2023",
        "Ampere (GA100), software of 2023",
        "A100-80GB SXM",
        (Part("vidur_attention_a100"),),
        "ampere-ga100-2024",
        _GA100,
        "2023",
        "As ampere-ga100-2024, with the attention of Vidur's early profile (32 query and 4 KV "
        "heads), whose prefill kernel does not skip the masked half",
        128,
        True,
    ),
    FittedSet(
        "ampere-ga100",
        "Ampere (GA100)",
        "A100-80GB SXM",
        (Part("aic_ops"),),
        "ampere-ga100-2024",
        _GA100,
        "",
        "Multiplications, attention, experts, p: aiconfigurator's vLLM 0.14 kernels on A100 SXM; "
        "elementwise kernels carried over from ampere-ga100-2024, norms, row_* and "
        "mixed_mfu and mixed_block from ada-rtx4090",
        128,
        True,
    ),
    FittedSet(
        "ampere-ga102",
        "Ampere (GA102)",
        "A40",
        (
            Part("vidur_mlp", groups=TRAINED),
            Part("aic_ops", _ATTENTION, "A100-80GB SXM"),
        ),
        "ampere-ga100-2024",
        ("A40", "RTX A6000"),
        "",
        "Multiplications, elementwise kernels, p: Vidur's profiled layers of Llama-2-7B and "
        "CodeLlama-34B on A40; attention: aiconfigurator's on A100 SXM with this p (the same "
        "kernels, no measurement on this die)",
        64,
        True,
    ),
    FittedSet(
        "hopper-2024",
        "Hopper (GH100), software of 2024",
        "H100 SXM",
        (Part("vidur_mlp", groups=TRAINED), Part("aic_ops", _ATTENTION)),
        "ampere-ga100-2024",
        ("H100 SXM", "H800 SXM"),
        _OLD,
        "Multiplications, elementwise kernels, p: Vidur's profiled layers of Llama-2-7B and "
        "CodeLlama-34B on H100 80 GB; attention: aiconfigurator's vLLM 0.14 kernels with this p "
        "(no older measurement); mixed_* carried over from ada-rtx4090",
    ),
    FittedSet(
        "hopper",
        "Hopper (GH100)",
        "H100 SXM",
        (Part("aic_ops"),),
        "hopper-2024",
        ("H100 SXM", "H800 SXM"),
        "",
        "Multiplications, attention, experts, p: aiconfigurator's vLLM 0.14 kernels on H100 SXM; "
        "elementwise kernels carried over from hopper-2024, norms, row_* and "
        "mixed_mfu and mixed_block from ada-rtx4090",
    ),
    FittedSet(
        "ada",
        "Ada (AD102)",
        "L40S",
        (Part("aic_ops"),),
        "ada-rtx4090",
        ("L40S",),
        "",
        "Multiplications (weights beyond L2), attention, experts, p: aiconfigurator's vLLM 0.14 "
        "kernels on L40S; elementwise kernels, mixed_mfu and mixed_block carried over from "
        "ada-rtx4090 (same die)",
        64,
        True,
    ),
    FittedSet(
        "blackwell",
        "Blackwell (GB100)",
        "B200 SXM",
        (Part("aic_ops"),),
        "hopper",
        ("B200 SXM",),
        "",
        "Multiplications, attention, experts, p: aiconfigurator's vLLM 0.19 kernels on B200; "
        "elementwise kernels carried over from hopper; decodes beside a chunk have a kernel of "
        "their own",
        256,
    ),
    FittedSet(
        "blackwell-gb202",
        "Blackwell (GB202)",
        "RTX PRO 6000 Blackwell Server",
        (
            Part("llmservingsim_ops"),
            Part("aic_ops", ("moe",)),
        ),
        "ada-rtx4090",
        ("RTX PRO 6000 Blackwell Server",),
        "",
        "Least squares on relative errors of vLLM 0.19 operators of Llama-3.1-8B at TP 1 and 2 "
        "(LLMServingSim), experts of aiconfigurator's (vLLM 0.19), on RTX PRO 6000; "
        "aiconfigurator's attention, 3 to 5 % faster where it does not come out of L2, is left out",
        64,
        True,
    ),
)
"""In the order in which they are fitted: a set starts from one before it."""

_PLAIN: Final = KernelConstants(
    mfu_gemm=0.7,
    mbu_gemm=0.8,
    mfu_attention=0.5,
    mbu_attention=0.8,
    mbu_elementwise=0.8,
    smooth_p=2.0,
    fixed_s=4e-6,
    attention_block_s=3e-6,
    accuracy="fitted",
    source="first guesses",
)


def fitted_sets(data: Path) -> dict[str, KernelConstants]:
    """Fit every set of `SETS`; norms and rows of current software are those of vLLM 0.19."""
    found: dict[str, KernelConstants] = {}
    for fitted in SETS:
        start = found[fitted.start] if fitted.start else _PLAIN
        if fitted.name != "ada-rtx4090":
            inside = found["ada-rtx4090"]
            start = replace(start, mixed_mfu=inside.mixed_mfu, mixed_block_s=inside.mixed_block_s)
        start = replace(start, experts=_first(fitted.name))
        mixed = fitted.tile if fitted.one_kernel else 0
        start = replace(start, prefill_tile=fitted.tile, mixed_tile=mixed)
        if not fitted.generation and fitted.start.endswith(_OLD) and fitted.gpu != "A40":
            inside = found["ada-rtx4090"]
            start = replace(
                start,
                norm_fixed_s=inside.norm_fixed_s,
                row_chain_s=inside.row_chain_s,
                row_s=inside.row_s,
                mbu_norm=start.mbu_add,
                cached_norm=start.cached_add,
            )
        constants = start
        for rows, gpu in _tables(fitted, data):
            constants = fit(rows, gpu, constants)
        if fitted.name.startswith("hopper") and constants.mbu_attention_8bit is not None:
            constants = _bound_by_sms(constants, catalog.gpu(fitted.gpu))
        experts = tuple(
            _served(kernel, fitted, constants)
            for kernel in constants.experts
            if f"{kernel.weights} {kernel.tiles}" not in _NOT_SERVED.get(fitted.name, ())
        )
        found[fitted.name] = replace(
            constants,
            experts=experts,
            accuracy="fitted",
            source=fitted.source,
            generation=fitted.generation,
        )
    return _with_stand_ins(found)


def _served(kernel: ExpertKernel, fitted: FittedSet, constants: KernelConstants) -> ExpertKernel:
    """Return a kernel as engines serve with it: without what a benchmark does around it."""
    source = _EXPERTS_SOURCE.format(fitted.gpu)
    if kernel.tiles == "trtllm":
        packed_s = _PACKED * (constants.elementwise_fixed_s or 0.0)
        kernel = replace(kernel, fixed_s=kernel.fixed_s - packed_s)
        source += f". Without {packed_s / US:.3g} us of {_PACKED} kernels of the collector's own"
    return replace(kernel, name=f"{fitted.name} {kernel.weights} {kernel.tiles}", source=source)


def _first(name: str) -> tuple[ExpertKernel, ...]:
    """Return first guesses of the kernels for experts that engines ship tuned tiles for."""
    return tuple(
        replace(first_kernel(weights, "by-experts"), tuned=tuned)
        for (of, weights), tuned in _TUNED.items()
        if of == name
    )


def _with_stand_ins(found: Mapping[str, KernelConstants]) -> dict[str, KernelConstants]:
    """Give sets the kernels for experts that were measured elsewhere.

    Marlin's of 4-bit weights is that of H100, the siblings of `_FP4` have its shares, and sets of
    `_SAME_EXPERTS` have all kernels of another.
    """
    (marlin,) = (kernel for kernel in found["hopper"].experts if kernel.name == _MARLIN)
    (fp4,) = (kernel for kernel in found["blackwell"].experts if kernel.name == _FP4)
    siblings = tuple(
        replace(
            fp4,
            name=f"blackwell {weights} trtllm",
            weights=weights,
            source=f"The shares of {_FP4}, of the 8-bit peak: {why}; no table of that kernel",
        )
        for weights, why in _SIBLINGS.items()
    )
    blackwell = found["blackwell"]
    found = {**found, "blackwell": replace(blackwell, experts=(*blackwell.experts, *siblings))}
    native = replace(
        marlin,
        name="mma.sync int4 marlin",
        mfu=marlin.mfu / _OLD_INSTRUCTIONS,
        source=f"The shares of {_MARLIN}, that of the peak over {_OLD_INSTRUCTIONS}: what mma.sync "
        "reaches of Hopper's peak (arXiv 2402.13499), while it is the instruction of the peak here",
    )
    full = {}
    for name, constants in found.items():
        served = marlin if name in _NEW_INSTRUCTIONS else native
        if constants.experts:
            here = served.name in [kernel.name for kernel in constants.experts]
            full[name] = constants.experts if here else (*constants.experts, served)
    return {
        name: replace(constants, experts=full.get(_SAME_EXPERTS.get(name, name), ()))
        for name, constants in found.items()
    }


def _bound_by_sms(constants: KernelConstants, gpu: GPUSpec) -> KernelConstants:
    """The same 8-bit decode attention as a rate of the SMs, which H100 and H200 have in common."""
    share = constants.mbu_attention_8bit
    assert share is not None
    rate = share * gpu.memory_bandwidth / gpu.num_sms
    return replace(constants, mbu_attention_8bit=None, attention_sm_8bit=rate)


def _tables(fitted: FittedSet, data: Path) -> list[tuple[Samples, GPUSpec]]:
    """Rows of the set by the GPU they were measured on, in the order of its parts."""
    tables: dict[str, list[Samples]] = {}
    for part in fitted.parts:
        name = part.gpu or fitted.gpu
        rows = KERNELS[part.folder](data / part.folder, name)
        if part.operators:
            rows = rows.of(*part.operators)
        if part.groups:
            rows = rows.take(np.isin(rows.group, part.groups))
        tables.setdefault(name, []).append(rows)
    return [(joined(parts), catalog.gpu(name)) for name, parts in tables.items()]


def main(arguments: Sequence[str]) -> int:
    """Print the fitted sets for the folder of measured sets in `arguments`."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m simcluster.fidelity.calibrate.derive DATA_DIR\n")
        return 2
    constants = fitted_sets(Path(arguments[0]))
    rows = [
        kernels_row(fitted.name, fitted.arch, constants[fitted.name], fitted.holds_for)
        for fitted in SETS
    ]
    experts = {kernel.name: kernel for each in constants.values() for kernel in each.experts}
    entries = [experts_row(kernel) for kernel in experts.values()]
    sys.stdout.write(to_toml({"kernels": rows, "experts": entries}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
