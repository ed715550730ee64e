"""Checks of the kernel law against the operator-level measured sets, held-out parts where set.

What is held out is predicted by a fit that has not seen it, made again when the check runs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np

from simcluster import catalog
from simcluster.catalog.specs import GPUSpec
from simcluster.fidelity.calibrate.fit import (
    decodes_from_memory,
    experts_from_memory,
    fit,
    gemms_from_memory,
    held_out,
)
from simcluster.fidelity.calibrate.law import by_blocks, kernel_s, layer_sums
from simcluster.fidelity.calibrate.readers import aic_ops, llmservingsim_ops, vidur
from simcluster.fidelity.calibrate.readers.samples import ELEMENTWISE, Mask, Samples
from simcluster.fidelity.validate.base import Check, check
from simcluster.roofline.collectives import all_reduce_s
from simcluster.units import FloatArray

DATA_SETS: Final = ("vidur_mlp", "vidur_attention_a100", "aic_ops", "llmservingsim_ops")
_SHORT: Final = {
    "A100-80GB SXM": "A100",
    "H100 SXM": "H100",
    "B200 SXM": "B200",
    "A40": "A40",
    "L40S": "L40S",
    "RTX 4090": "RTX 4090",
    "RTX PRO 6000 Blackwell Server": "RTX PRO 6000",
}
_MLP: Final = {
    "A100-80GB SXM": ("2024", 0.07, 0.05, 0.045, 0.03),
    "H100 SXM": ("2024", 0.10, 0.07, 0.06, 0.04),
    "A40": ("", 0.08, 0.06, 0.05, 0.04),
}
"""Generation; must and aim of each kernel, read as all of them and as the multiplications alone,
and of the sum of a layer's multiplications."""
_LIMITED: Final = ("A100-80GB SXM", "H100 SXM", "B200 SXM")
_GEMM: Final = (0.12, 0.08)
_DECODE: Final = (0.20, 0.12)
_EXPERTS: Final = {
    "bf16": (0.18, 0.12),
    "fp8": (0.20, 0.12),
    "fp8-block": (0.18, 0.12),
    "int4": (0.22, 0.12),
}
"""By weights."""
_PREFILL_BLOCKS: Final = (0.10, 0.08)
_DECODE_BLOCKS: Final = (0.12, 0.09)
_LINKS: Final = {
    "nvlink3": "A100-80GB SXM",
    "nvlink4": "H100 SXM",
    "nvlink5": "B200 SXM",
    "pcie5-staged": "RTX PRO 6000 Blackwell Server",
    "pcie4-l40s": "L40S",
}
"""Link and the GPU that it was measured with."""
_UNSEEN_HEADS: Final = (0.14, 0.10)
_MESSAGES: Final = (4096.0, 2.0**26)


def checks(data_dir: Path) -> list[Check]:
    """Run the checks of the operator-level sets that are in a folder.

    Parameters
    ----------
    data_dir : Path
        Folder of measured sets; those that are not there are passed over.

    Returns
    -------
    list of Check
        ``vidur_mlp``, ``vidur_attention_a100``, ``aic_ops``, ``llmservingsim_ops``.
    """
    parts: dict[str, Callable[[Path], list[Check]]] = dict(
        zip(
            DATA_SETS,
            (mlp_checks, attention_checks, aic_checks, llmservingsim_checks),
            strict=True,
        )
    )
    found: list[Check] = []
    for name, part in parts.items():
        if (data_dir / name).is_dir():
            found += part(data_dir / name)
    if (data_dir / "aic_ops").is_dir():
        found += link_checks(data_dir / "aic_ops")
    return found


def mlp_checks(folder: Path) -> list[Check]:
    """Layers of models that the fit has not seen: each multiplication, and whole layers."""
    found = []
    for name, (generation, must, aim, layer_must, layer_aim) in _MLP.items():
        rows = vidur.read_mlp(folder, name)
        if not len(rows):
            continue
        gpu = catalog.gpu(name)
        start = gpu.constants_of(generation)
        seen = np.isin(rows.group, vidur.TRAINED)
        constants = fit(rows.take(seen), gpu, start)
        test = rows.take(~seen)
        times = kernel_s(test, gpu, constants)
        about = _About("vidur_mlp", name, "unseen models")
        gemm = test.operator == "gemm"
        found += [
            about.check(test, times, np.ones(len(test), dtype=np.bool_), "each kernel", must, aim),
            about.check(test, times, gemm, "each GEMM", must, aim),
            about.layers(test.take(gemm), times[gemm], "GEMMs of a layer", layer_must, layer_aim),
            about.layers(test, times, "kernels of a layer"),
            about.check(test, times, ~gemm, "each elementwise"),
        ]
        for model in sorted(set(test.group.tolist())):
            here = gemm & (test.group == model)
            found.append(replace(about, model=model).check(test, times, here, "each GEMM"))
    return found


def attention_checks(folder: Path) -> list[Check]:
    """Vidur's attention on A100, with whole blocks of contexts and of batch sizes held out."""
    name = "A100-80GB SXM"
    rows, gpu = vidur.read_attention(folder, name), catalog.gpu(name)
    start = gpu.constants_of("2023")
    prefill = rows.operator == "attention_prefill"
    sizes = rows["m"].copy()
    sizes[~prefill] = rows["batch"][~prefill]
    blocks = np.empty(len(rows), dtype="<U8")
    for phase in (prefill, ~prefill):
        blocks[phase] = vidur.blocks(sizes[phase])
    found = []
    for regime, chunk_regime, grouped in (
        ("unseen contexts", "unseen contexts", rows),
        ("unseen batches", "unseen chunks", replace(rows, group=blocks)),
    ):
        test, times = held_out(grouped, gpu, start, folds=5)
        about = _About("vidur_attention_a100", name, regime)
        here = test.operator == "attention_prefill"
        found += [
            replace(about, regime=chunk_regime).check(
                test, times, here, "prefill attention", *_PREFILL_BLOCKS
            ),
            about.check(test, times, ~here, "decode attention", *_DECODE_BLOCKS),
        ]
    return found


def aic_checks(folder: Path) -> list[Check]:
    """Multiplications with unseen n, attention with unseen head counts, experts."""
    found = []
    for name, system in aic_ops.GPUS.items():
        if not (folder / f"{system}__gemm.csv.gz").exists():
            continue
        gpu = catalog.gpu(name)
        rows = aic_ops.read(folder, name)
        plain = rows.take(rows.operator != "moe")
        test, times = held_out(plain, gpu, gpu.constants, folds=3)
        limited = name in _LIMITED
        gemm, decode = test.operator == "gemm", test.operator == "attention_decode"
        wide = gemm & (test.bytes == 2.0)
        about = _About("aic_ops", name, "unseen n")
        if not limited:
            about = replace(about, regime="unseen n, not in L2")
            wide &= _kept(test, wide, gemms_from_memory, gpu)
            decode &= _kept(test, decode, decodes_from_memory, gpu)
        found.append(about.check(test, times, wide, "each GEMM", *(_GEMM if limited else ())))
        if (gemm & ~wide & (test.bytes == 1.0)).any() and limited:
            here = gemm & (test.bytes == 1.0)
            found.append(about.check(test, times, here, "each 8-bit GEMM"))
        blocks = by_blocks(test)
        if blocks.any() and limited:
            found.append(about.check(test, times, blocks, "each 8-bit GEMM by blocks"))
        heads = replace(about, regime=about.regime.replace("unseen n", "unseen heads"))
        limits = _DECODE if limited else ()
        narrow = test.bytes == 1.0
        found.append(heads.check(test, times, decode & ~narrow, "decode attention", *limits))
        if narrow[decode].any():
            here = decode & narrow
            found.append(heads.check(test, times, here, "decode attention, 8-bit cache"))
        long = (test.operator == "attention_prefill") & (test["m"] >= 256)
        found.append(heads.check(test, times, long, "prefill attention, from 256"))
        experts = replace(about, regime="unseen widths")
        found += _expert_checks(experts, rows.of("moe"), gpu)
    return found


def _expert_checks(about: _About, rows: Samples, gpu: GPUSpec) -> list[Check]:
    """Experts by their weights, hidden sizes not seen; one of one hidden size alone, fitted."""
    found = []
    rows = rows.take(experts_from_memory(rows, gpu))
    for kernel in sorted(set(rows.kernel.tolist())):
        some = rows.take(rows.kernel == kernel)
        weights, tiles = kernel.split()
        test, times = held_out(some, gpu, gpu.constants, folds=3)
        regime = about.regime
        if not len(test):
            test, regime = some, "fitted"
            times = kernel_s(some, gpu, fit(some, gpu, gpu.constants))
        everything = np.ones(len(test), dtype=np.bool_)
        found.append(
            replace(about, regime=regime).check(
                test,
                times,
                everything,
                f"experts, {weights} ({tiles})",
                *(_EXPERTS.get(weights, ()) if regime == about.regime else ()),
            )
        )
    return found


def llmservingsim_checks(folder: Path) -> list[Check]:
    """Operators of Llama-3.1-8B inside vLLM, sizes not seen."""
    found = []
    for name in llmservingsim_ops.GPUS:
        rows, gpu = llmservingsim_ops.read(folder, name), catalog.gpu(name)
        if not len(rows):
            continue
        test, times = held_out(rows, gpu, gpu.constants, folds=3)
        about = _About("llmservingsim_ops", name, "unseen sizes", "llama-3.1-8b")
        for quantity, operators in (
            ("each GEMM", ("gemm",)),
            ("each elementwise", tuple(ELEMENTWISE)),
            ("prefill attention", ("attention_prefill",)),
            ("decode attention", ("attention_decode",)),
            ("mixed attention", ("attention_mixed",)),
        ):
            here = np.isin(test.operator, operators)
            found.append(about.check(test, times, here, quantity))
        found.append(about.layers(test, times, "kernels of a layer"))
    return found + _unseen_heads(folder)


def _unseen_heads(folder: Path) -> list[Check]:
    """Attention with 8 query heads per KV head; the constants know 4 alone."""
    rows = llmservingsim_ops.read_unseen_heads(folder)
    name = "RTX PRO 6000 Blackwell Server"
    gpu = catalog.gpu(name)
    times = kernel_s(rows, gpu, gpu.constants)
    about = _About("llmservingsim_ops", name, "8 query heads per KV head", "qwen3-32b")
    return [
        about.check(rows, times, rows.operator == operator, quantity, *limits)
        for operator, quantity, limits in (
            ("attention_prefill", "prefill attention", ()),
            ("attention_decode", "decode attention", ()),
            ("attention_mixed", "mixed attention", _UNSEEN_HEADS),
        )
    ]


def link_checks(folder: Path) -> list[Check]:
    """All-reduces of 4 kB to 64 MiB in the engine's graph against the catalogue's links.

    The links are fitted to them; an engine's kernels that were timed on other machines alone are
    absent.
    """
    found = []
    for link_name, name in _LINKS.items():
        rows = aic_ops.read_custom(folder, aic_ops.GPUS[name])
        link = catalog.link(link_name)
        message = rows.bytes * rows["m"] * rows["n"]
        rows = rows.take((message >= _MESSAGES[0]) & (message <= _MESSAGES[1]))
        for size in np.unique(rows["tp"]):
            some = rows.take(rows["tp"] == size)
            messages = some.bytes * some["m"] * some["n"]
            times = [all_reduce_s(link, int(size), float(num)) for num in messages]
            about = _About("aic_ops", name, f"{link_name}, {size:g} GPUs")
            found.append(about.pairs(some.time_s, np.array(times), "all-reduce"))
    return found


@dataclass(frozen=True, slots=True)
class _About:
    """What the checks of one set, GPU and regime have in common."""

    data_set: str
    gpu: str
    regime: str
    model: str = ""

    def check(
        self,
        rows: Samples,
        times: FloatArray,
        here: Mask,
        quantity: str,
        must: float | None = None,
        aim: float | None = None,
    ) -> Check:
        """Compare the rows where `here` is true."""
        return self.pairs(rows.time_s[here], times[here], quantity, must, aim)

    def layers(
        self,
        rows: Samples,
        times: FloatArray,
        quantity: str,
        must: float | None = None,
        aim: float | None = None,
    ) -> Check:
        """Compare sums over whole layers."""
        return self.pairs(*layer_sums(rows, times), quantity, must, aim)

    def pairs(
        self,
        measured: FloatArray,
        simulated: FloatArray,
        quantity: str,
        must: float | None = None,
        aim: float | None = None,
    ) -> Check:
        """Compare times (s)."""
        return check(
            measured,
            simulated,
            data_set=self.data_set,
            gpu=_SHORT[self.gpu],
            model=self.model,
            regime=self.regime,
            quantity=quantity,
            must=must,
            aim=aim,
        )


def _kept(
    rows: Samples, here: Mask, rule: Callable[[Samples, GPUSpec], Mask], gpu: GPUSpec
) -> Mask:
    """Which rows, of those where `here` is true, a served model could meet."""
    kept = np.zeros(len(rows), dtype=np.bool_)
    kept[here] = rule(rows.take(here), gpu)
    return kept
