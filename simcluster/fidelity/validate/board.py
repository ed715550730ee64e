"""The table that opens docs/accuracy.md: errors by kind of deployment, beside other simulators'.

`ROWS` says which checks state the error of which kind. Reports quote the same figures through
``scores.toml`` (`simcluster.roofline.kinds`).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from simcluster import catalog
from simcluster.catalog.scores import Kind, KindScore
from simcluster.fidelity.validate.base import Check
from simcluster.fidelity.validate.blis_vllm015 import Rival
from simcluster.roofline.kinds import BITS, ENGINES

_STEPS: Final = ("prefill step", "decode step")
_SHOWN: Final = {"TTFT": "prefill step", "TPOT": "decode step", "E2E": "", "throughput": ""}
"""Columns of the table, and the single step that stands in each where no request was served."""


class Row(NamedTuple):
    """A kind on some GPUs as one data set measures it."""

    kind: Kind
    data_set: str
    gpu: str
    """As the checks name it."""
    checks: Mapping[str, tuple[str, str, str]]
    """By quantity (`KindScore.quantity`): model, regime and quantity of the check."""
    what: str
    """What was measured, in words."""
    fit: str
    """As in `KindScore`."""


def _same(model: str, regime: str, *quantities: str) -> dict[str, tuple[str, str, str]]:
    """Quantities that the checks name as the table does."""
    return {name: (model, regime, name) for name in quantities}


def _steps(
    model: str, prefill: tuple[str, str], decode: tuple[str, str]
) -> dict[str, tuple[str, str, str]]:
    """Regime and quantity of the checks of prefill steps and of decode steps."""
    return {"prefill step": (model, *prefill), "decode step": (model, *decode)}


_DENSE: Final = "dense"
_REPLAY: Final = {
    **_same("llama-3.1-8b", "mean", "TTFT", "TPOT", "throughput"),
    "E2E": ("llama-3.1-8b", "mean", "latency"),
}
_LOOP: Final = ("TTFT", "TPOT", "throughput")
_SPLITWISE: Final = _steps("llama-2-70b", ("all", "prompt time"), ("all", "token time"))
_STEP: Final = "step time"


def _offline(fabric: str, engine: str, gpu: str, model: str, served: str) -> Row:
    """Return the row of one of MLPerf's systems, whose checks are named by model and engine."""
    kind, check = Kind(_DENSE, 8, fabric, engine), (model, engine, "offline tokens/s per GPU")
    return Row(kind, "mlperf_v51", gpu, {"throughput": check}, f"offline, {served}", "held out")


_TIMES: Final = ("TTFT", "TPOT")


def _mixture(
    bits: int, engine: str, gpu: str, model: str, weights: str, served: str, fit: str = "held out"
) -> Row:
    """Return the row of InferenceMAX's closed loops of a mixture of experts."""
    kind, found = Kind("MoE", bits, "NVLink", engine), _same(model, f"{engine}, {weights}", *_TIMES)
    return Row(kind, "aic_e2e", gpu, found, served, fit)


def _loops(engine: str, regime: str, gpu: str, degrees: str, fit: str) -> Row:
    """Return the row of InferenceMAX's closed loops of Llama-3.1-70B."""
    kind, found = Kind(_DENSE, 8, "NVLink", engine), _same("llama-3.1-70b", regime, *_LOOP)
    return Row(kind, "aic_e2e", gpu, found, f"closed loops of Llama-3.1-70B, TP {degrees}", fit)


def _replay(gpu: str) -> Row:
    """Return the row of one of LLMServingSim's replays."""
    kind, served = Kind(_DENSE, 16, "PCIe", "vllm-0.19"), "means of one replay, Llama-3.1-8B, TP 1"
    return Row(kind, "llmservingsim_vllm", gpu, _REPLAY, served, "fitted")


def _l20(regime: str) -> Row:
    """Return the row of steps on L20 under one tensor-parallel degree."""
    found = _steps("qwen2.5-7b", (regime, "prefill step"), (regime, "decode step"))
    served = f"single steps of Qwen2.5-7B, {regime}"
    kind = Kind(_DENSE, 16, "PCIe", "vllm-0.11")
    return Row(kind, "l20_five_systems", "L20", found, served, "held out")


def _nightly(model: str, gpu: str, check: tuple[str, str], served: str, fit: str) -> Row:
    """Return the row of one of vLLM's nightly latency tests; `check` is its model and regime."""
    kind = Kind(model, 16, "NVLink", "vllm-0.7")
    found = {"E2E": (*check, "latency")}
    return Row(kind, "published_anchors", gpu, found, f"one batch of {served}", fit)


def _splitwise(gpu: str, fit: str) -> Row:
    """Return the row of Splitwise's fixed batches on one GPU."""
    kind, served = Kind(_DENSE, 16, "NVLink", "vllm-0.2"), "single steps of Llama-2-70B, TP 2 to 8"
    return Row(kind, "splitwise_perf", gpu, _SPLITWISE, served, fit)


ROWS: Final = (
    Row(
        Kind(_DENSE, 16, "NVLink", "vllm-0.19"),
        "blis_vllm015",
        "H100",
        _same("dense", "not fitted", "TTFT", "TPOT", "E2E"),
        "load stages of Llama-3.1-8B, Qwen3-14B, TP 1 and 2",
        "held out",
    ),
    Row(
        Kind("MoE", 16, "NVLink", "vllm-0.19"),
        "blis_vllm015",
        "H100",
        _same("mixtral-8x7b", "all stages", "TTFT", "TPOT", "E2E"),
        "load stages of Mixtral-8x7B, TP 2 and 4",
        "held out",
    ),
    _mixture(
        8,
        "vllm-0.19",
        "B200",
        "minimax-m2",
        "fp8-block",
        "closed loops of MiniMax-M2.5, TP 2 and 4",
    ),
    _mixture(
        4,
        "vllm-0.19",
        "H100",
        "gpt-oss-120b",
        "mxfp4",
        "closed loops of gpt-oss-120b, TP 2 to 8",
        "2 of 60 fitted",
    ),
    _mixture(
        4, "vllm-0.19", "B200", "gpt-oss-120b", "mxfp4", "closed loops of gpt-oss-120b, TP 1 to 8"
    ),
    _mixture(
        4, "vllm-0.19", "B200", "minimax-m2", "nvfp4", "closed loops of MiniMax-M2.5, TP 1 to 8"
    ),
    _mixture(
        4,
        "vllm-0.19",
        "B200",
        "kimi-k2.5",
        "nvfp4",
        "closed loops of Kimi-K2.5 (NVFP4), TP 4 and 8",
    ),
    _mixture(
        4, "vllm-0.19", "B200", "kimi-k2.5", "int4-g32", "closed loops of Kimi-K2.5 (INT4), TP 8"
    ),
    _mixture(
        8, "trtllm-1", "B200", "deepseek-v3", "fp8-block", "closed loops of DeepSeek-R1, TP 4 and 8"
    ),
    _mixture(
        4, "trtllm-1", "B200", "gpt-oss-120b", "mxfp4", "closed loops of gpt-oss-120b, TP 1 to 8"
    ),
    _mixture(
        4,
        "trtllm-1",
        "B200",
        "deepseek-v3",
        "nvfp4",
        "closed loops of DeepSeek-R1 (NVFP4), TP 4 and 8",
    ),
    _loops("vllm-0.11-async", "vllm-0.11", "B200", "1 to 8", "5 of 60 fitted"),
    _loops("vllm-0.11", "vllm-0.11", "H100", "2 to 8", "3 of 45 fitted"),
    _offline("NVLink", "vllm-0.11", "H100", "llama-3.1-8b", "Llama-3.1-8B, TP 1"),
    _loops("trtllm-1", "trtllm-1", "B200", "1 to 8", "7 of 72 fitted"),
    _offline("NVLink", "trtllm-1", "H100", "llama-2-70b", "Llama-2-70B, PP 2"),
    _offline("NVLink", "trtllm-1", "H100", "llama-3.1-405b", "Llama-3.1-405B, TP 8"),
    _offline("PCIe", "vllm-0.11", "L40S", "llama-3.1-8b", "Llama-3.1-8B, TP 1"),
    _replay("RTX 4090"),
    _replay("RTX PRO 6000"),
    _l20("TP 1"),
    _l20("TP 4, lower clocks"),
    _nightly(
        _DENSE, "A100-80GB SXM", ("llama-3.1-8b", "nightly, TP 1"), "Llama-3.1-8B, TP 1", "held out"
    ),
    _nightly(
        _DENSE, "H100 SXM", ("llama-3.1-8b", "nightly, TP 1"), "Llama-3.1-8B, TP 1", "held out"
    ),
    _nightly("MoE", "H100 SXM", ("mixtral-8x7b", "nightly, TP 2"), "Mixtral-8x7B, TP 2", "fitted"),
    Row(
        Kind(_DENSE, 16, "PCIe", "vllm-0.7"),
        "EcoServe table 3",
        "L20, A800 PCIe",
        {"prefill step": ("30B, 34B", "all", "prefill tokens/s")},
        "prefill tokens/s of two models, TP 2 and 1",
        "1 of 4 fitted",
    ),
    Row(
        Kind(_DENSE, 16, "NVLink", "vllm-0.6"),
        "apex_e2e",
        "H100",
        _same("llama-3.1-70b", "not fitted", "TTFT", "TPOT"),
        "traces, Llama-3.1-70B, TP 2 to 8",
        "held out",
    ),
    _splitwise("A100", "fitted"),
    _splitwise("H100", "held out"),
    Row(
        Kind(_DENSE, 16, "NVLink", "vllm-0.2"),
        "distserve_fits",
        "A100",
        _steps("opt-13b, opt-66b", ("prefill", _STEP), ("decode", _STEP)),
        "forward passes of OPT-13B and 66B (the authors' fits)",
        "held out",
    ),
    Row(
        Kind(_DENSE, 16, "NVLink", "sarathi"),
        "sarathi_iter",
        "A100 PCIe",
        _steps("yi-34b", ("prefill", _STEP), ("decode", _STEP)),
        "single steps of Yi-34B, TP 2 over a bridge",
        "held out",
    ),
)
"""From the newest engine to the oldest."""


def found_of(row: Row, checks: Iterable[Check]) -> dict[str, Check]:
    """Return the checks of a row by quantity; those that were not made are left out."""
    own = {
        (item.model, item.regime, item.quantity): item
        for item in checks
        if (item.data_set, item.gpu) == (row.data_set, row.gpu)
    }
    return {name: own[key] for name, key in row.checks.items() if key in own}


def _error(item: Check) -> tuple[float, int]:
    """Error and number of measured runs: one where single requests of a run are compared."""
    return (abs(item.bias), 1) if item.limits == "bias" else (item.mean, item.n)


def kind_scores(checks: Sequence[Check]) -> list[KindScore]:
    """Return the errors by kind of the checks that were made."""
    scores = []
    for row in ROWS:
        gpu = ", ".join(catalog.gpu(name).name for name in row.gpu.split(", "))
        for name, item in found_of(row, checks).items():
            error, n = _error(item)
            scores.append(KindScore(row.kind, gpu, row.data_set, name, n, error, row.fit))
    return scores


_HEADER: Final = (
    "model",
    "weights",
    "GPUs joined by",
    "engine",
    "GPU",
    "measured",
    "n",
    "fitted or held out",
    *(f"{name} %" for name in _SHOWN),
    "best rival on these runs: TTFT, TPOT, E2E %",
)
_NUMBERS: Final = ("n", *(f"{name} %" for name in _SHOWN))


def as_markdown(checks: Sequence[Check], rivals: Sequence[Rival]) -> str:
    """Return the table by kind, the one of other simulators, and what was not measured."""
    parts = [
        "\n".join(
            [
                "| " + " | ".join(_HEADER) + " |",
                "|" + "|".join("---:" if name in _NUMBERS else "---" for name in _HEADER) + "|",
                *("| " + " | ".join(cells) + " |" for cells in _cells(checks, rivals)),
            ]
        ),
        "Mean of the absolute errors of n runs (of a replay, the error of its mean). Numbers with "
        "(step) are of single prefill or decode steps, not of served requests. Throughput is that "
        "of closed loops and replays; below saturation it is the offered rate, and says nothing. "
        "Fitted rows show consistency, not prediction.",
        f"Not measured: {'; '.join(_unmeasured())}; engines that are not named (SGLang).",
    ]
    if rivals:
        parts += ["### Beside other simulators", *_rivals(rivals)]
    return "\n\n".join(parts)


def _cells(checks: Sequence[Check], rivals: Sequence[Rival]) -> Iterator[tuple[str, ...]]:
    for row in ROWS:
        own = found_of(row, checks)
        if not own:
            continue
        shown = []
        for name, step in _SHOWN.items():
            item = own.get(name)
            single = own.get(step)
            if item is not None:
                shown.append(_percent(_error(item)[0]))
            else:
                shown.append("" if single is None else f"{_percent(_error(single)[0])} (step)")
        yield (
            row.kind.model,
            BITS[row.kind.bits],
            row.kind.link,
            ENGINES[row.kind.engine],
            row.gpu,
            f"{row.what} (`{row.data_set}`)",
            str(max(_error(item)[1] for item in own.values())),
            row.fit,
            *shown,
            _best(row, rivals),
        )


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _best(row: Row, rivals: Sequence[Rival]) -> str:
    """Return the errors of the rival with the smallest of E2E, on the runs of `row`."""
    model = next(iter(row.checks.values()))[0]
    same = [one for one in rivals if (row.data_set, model) == ("blis_vllm015", one.model)]
    if not same:
        return ""
    best = min(same, key=lambda one: one.theirs["E2E"].mean)
    errors = ", ".join(_percent(best.theirs[name].mean) for name in ("TTFT", "TPOT", "E2E"))
    return f"{errors} ({best.simulator})"


def _unmeasured() -> list[str]:
    """Models, bits and links without any row, those of a model and bits together."""
    there = {row.kind[:3] for row in ROWS}
    lines = []
    for model, bits in itertools.product(("dense", "MoE"), BITS):
        links = [link for link in ("NVLink", "PCIe") if (model, bits, link) not in there]
        if links:
            lines.append(f"{model} {BITS[bits]}" + (f" on {links[0]}" if len(links) == 1 else ""))
    return lines


def _rivals(rivals: Sequence[Rival]) -> Iterator[str]:
    yield (
        "Predictions that others published for whole runs of `blis_vllm015` "
        "(`peer_predictions.csv`), computed again here, and simcluster on the same runs (a mean "
        "over its stages). Median and, in brackets, mean of the absolute errors in percent; what "
        "they fitted to these runs is not known. Published medians over all of their runs, which "
        "are not all shared: BLIS trained-physics E2E 6.8, TTFT 18.4, TPOT 6.5; AIConfigurator "
        "21.5, 662, 13.2 (README of the set)."
    )
    quantities = ("E2E", "TTFT", "TPOT")
    head = ("models", "simulator", "runs", *quantities, *(f"simcluster {q}" for q in quantities))
    lines = ["| " + " | ".join(head) + " |", "|---|---|" + "---:|" * (len(head) - 2)]
    for one in rivals:
        errors = [
            f"{_percent(side[q].median)} ({_percent(side[q].mean)})"
            for side in (one.theirs, one.ours)
            for q in quantities
        ]
        cells = (one.model, one.simulator, str(one.theirs["E2E"].n), *errors)
        lines.append("| " + " | ".join(cells) + " |")
    yield "\n".join(lines)
    yield (
        "Dense leaves out the run that our host time is fitted to (1 of 10; `all` has it). "
        "LLMServingSim predicts the first 300 requests of a run, against their own measured means."
    )
