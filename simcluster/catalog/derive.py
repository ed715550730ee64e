"""Length tables from measured request sets, and from published moments where no set exists.

``python -m simcluster.catalog.derive DATA_DIR`` writes ``lengths.toml`` beside this file; the same
data give the same file.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Final

import numpy as np

from simcluster.units import FloatArray

_LEVELS: Final = np.round(
    np.concatenate(
        [
            [0, 0.001, 0.005, 0.01, 0.02, 0.03, 0.04],
            np.arange(0.05, 0.951, 0.025),
            [0.96, 0.97, 0.98, 0.99, 0.995, 0.999, 1],
        ]
    ),
    4,
)
"""Levels of the quantiles: even steps, dense in the tails."""
_SLICES: Final = 10
"""Slices of the prompt's distribution for which the output is kept apart."""
_LONGEST: Final = 4096
"""Longest length of a fitted distribution (tokens): where EcoServe's prefill profile ends."""
_NORMAL: Final = NormalDist()
_HEADER: Final = """\
# Prompt and output lengths as quantiles. Written by `python -m simcluster.catalog.derive DATA_DIR`.
# output_by_prompt: the output's quantiles by slices of the prompt's distribution, shortest first.

"""


@dataclass(frozen=True, slots=True)
class MeasuredSet:
    """A set of requests with known lengths."""

    name: str
    """Name of the table."""
    path: str
    """File in the folder of measured sets."""
    source: str
    licence: str
    """Where it comes from, and under which licence."""


@dataclass(frozen=True, slots=True)
class Moments:
    """What is published of a set that is not available."""

    mean: float
    median: float
    """Of the length (tokens)."""
    shape: str = "lognormal"
    """``"lognormal"`` or ``"normal"``, truncated to 1 to 4096 tokens."""


_AZURE: Final = (
    "Azure/AzurePublicDataset at b469a11, AzureLLMInferenceTrace_{}.csv (2023-11-11; cite Patel et "
    "al., Splitwise, ISCA 2024); reduced to quantiles"
)
_ETALON: Final = (
    "project-etalon/etalon at d5f18de, data/processed_traces ({}; Llama-2 tokenizer; also used by "
    "Vidur and Sarathi-Serve); reduced to quantiles"
)
_HELIX: Final = (
    "Thesys-lab/Helix-ASPLOS25 at 148b733, simulator/trace_generator/length_data ({}); reduced to "
    "quantiles"
)
_MOONCAKE: Final = (
    "kvcache-ai/Mooncake at 3b5a594, FAST25-release/traces/{}_trace.jsonl; reduced to quantiles; "
    "shared prefixes are not in the table"
)
_APEX: Final = "microsoft/apex_plus at 8769096, traces/llama ({}); reduced to quantiles"

MEASURED: Final = (
    MeasuredSet(
        "azure2023-code",
        "traces_azure2023/azure2023_code.csv.gz",
        _AZURE.format("code"),
        "CC-BY-4.0",
    ),
    MeasuredSet(
        "azure2023-conv",
        "traces_azure2023/azure2023_conv.csv.gz",
        _AZURE.format("conv"),
        "CC-BY-4.0",
    ),
    MeasuredSet(
        "sharegpt-etalon",
        "lengths_etalon/sharegpt_8k.csv.gz",
        _ETALON.format("ShareGPT, multi-turn, at most 8k tokens in all"),
        "Apache-2.0",
    ),
    MeasuredSet(
        "arxiv-etalon",
        "lengths_etalon/arxiv_summarization_4k.csv.gz",
        _ETALON.format("arXiv summarization, at most 4k tokens in all"),
        "Apache-2.0",
    ),
    MeasuredSet(
        "bwb-etalon",
        "lengths_etalon/bwb_4k.csv.gz",
        _ETALON.format("BWB document translation, long outputs, at most 4k tokens in all"),
        "Apache-2.0",
    ),
    MeasuredSet(
        "sharegpt-helix",
        "lengths_helix/shared_gpt.csv.gz",
        _HELIX.format("ShareGPT, single turns, first 1k tokens"),
        "Apache-2.0",
    ),
    MeasuredSet(
        "alpaca-helix",
        "lengths_helix/alpaca.csv.gz",
        _HELIX.format("Alpaca, single turns"),
        "Apache-2.0",
    ),
    MeasuredSet(
        "mooncake-conversation",
        "traces_mooncake/conversation_trace.jsonl.gz",
        _MOONCAKE.format("conversation"),
        "Apache-2.0",
    ),
    MeasuredSet(
        "mooncake-synthetic",
        "traces_mooncake/synthetic_trace.jsonl.gz",
        _MOONCAKE.format("synthetic"),
        "Apache-2.0",
    ),
    MeasuredSet(
        "creation-apex",
        "traces_apex/llama_creation_05.csv.gz",
        _APEX.format("creation: short in, long out"),
        "MIT",
    ),
    MeasuredSet(
        "lmsys-apex",
        "traces_apex/llama_lmsys_05.csv.gz",
        _APEX.format("lmsys: short chat"),
        "MIT",
    ),
    MeasuredSet(
        "summarization-apex",
        "traces_apex/llama_summarization_05.csv.gz",
        _APEX.format("summarization: long in, short out"),
        "MIT",
    ),
)
"""The sets that are measured."""

FITTED: Final = {
    "alpaca-ecoserve": (Moments(20.63, 17), Moments(163.80, 119)),
    "sharegpt-ecoserve": (Moments(343.76, 148), Moments(237.20, 152)),
    "longbench-ecoserve": (Moments(2686.89, 2736.5, "normal"), Moments(101.78, 19)),
}
"""Prompt and output of EcoServe's sets (table 4): only mean and median are known."""
_FITTED_SOURCE: Final = (
    "EcoServe (arXiv 2504.18154), table 4: means from readers' notes, medians recalled; {} prompt "
    "and lognormal output, both truncated to 1 to 4096 tokens and fitted to mean and median, "
    "independent of each other"
)


def quantiles(lengths: FloatArray) -> FloatArray:
    """Quantiles of measured lengths such that a linear draw has their mean.

    The inner quantiles are scaled by the per cent or so that linear interpolation is off; smallest
    and largest stay as measured.

    Parameters
    ----------
    lengths : float array, shape ``(n,)``
        Lengths (tokens).

    Returns
    -------
    float array, shape ``(51,)``
        Quantiles (tokens), one decimal, not falling.
    """
    return _with_mean(np.quantile(lengths, _LEVELS), float(lengths.mean()))


def fitted_quantiles(moments: Moments) -> FloatArray:
    """Quantiles of the truncated distribution that has these moments, shape ``(51,)``."""
    to_length: Callable[[FloatArray], FloatArray] = np.exp
    low, high, middle = 0.0, float(np.log(_LONGEST)), float(np.log(moments.median))
    if moments.shape == "normal":
        to_length, low, high, middle = np.asarray, 1.0, float(_LONGEST), moments.median
    mean = _lognormal_mean if moments.shape == "lognormal" else _normal_mean
    width = high - low
    sigma = _bisect(
        lambda s: mean(_mu(s, low, high, middle), s, low, high) - moments.mean,
        width / 1000,
        width / 2,
    )
    mu = _mu(sigma, low, high, middle)
    below, above = _NORMAL.cdf((low - mu) / sigma), _NORMAL.cdf((high - mu) / sigma)
    inner = [
        mu + sigma * _NORMAL.inv_cdf(below + level * (above - below)) for level in _LEVELS[1:-1]
    ]
    values = to_length(np.array([low, *inner, high]))
    # a straight line from the last quantile to the longest length would hold too many long ones
    weight = _weights()
    last = (moments.mean - float(weight[:-1] @ values[:-1])) / weight[-1]
    values[-1] = np.clip(last, values[-2], values[-1])
    return _with_mean(values, moments.mean)


def _weights() -> FloatArray:
    """Weight of each quantile in the mean of a linear draw (trapezoidal rule)."""
    weight = np.zeros(len(_LEVELS))
    weight[:-1] += np.diff(_LEVELS) / 2
    weight[1:] += np.diff(_LEVELS) / 2
    return weight


def _with_mean(values: FloatArray, mean: float) -> FloatArray:
    """Scale the inner values so that the integral over the levels is `mean`; round."""
    weight = _weights()
    ends = weight[0] * values[0] + weight[-1] * values[-1]
    factor = (mean - ends) / float(weight[1:-1] @ values[1:-1])
    scaled = values.copy()
    scaled[1:-1] *= factor
    return np.asarray(np.clip(scaled, values[0], values[-1]).round(1), dtype=np.float64)


def _mu(sigma: float, low: float, high: float, median: float) -> float:
    """Location of the normal whose part between `low` and `high` has the median."""

    def excess(mu: float) -> float:
        below, above = _NORMAL.cdf((low - mu) / sigma), _NORMAL.cdf((high - mu) / sigma)
        return _NORMAL.cdf((median - mu) / sigma) - (below + above) / 2

    return _bisect(excess, median - 6 * sigma, median + 6 * sigma)


def _normal_mean(mu: float, sigma: float, low: float, high: float) -> float:
    """Mean of a normal distribution between `low` and `high`."""
    a, b = (low - mu) / sigma, (high - mu) / sigma
    mass = _NORMAL.cdf(b) - _NORMAL.cdf(a)
    return mu + sigma * (_NORMAL.pdf(a) - _NORMAL.pdf(b)) / mass


def _lognormal_mean(mu: float, sigma: float, low: float, high: float) -> float:
    """Mean of the exponential of a normal distribution between `low` and `high`."""
    a, b = (low - mu) / sigma, (high - mu) / sigma
    mass = _NORMAL.cdf(b) - _NORMAL.cdf(a)
    moved = _NORMAL.cdf(b - sigma) - _NORMAL.cdf(a - sigma)
    return float(np.exp(mu + sigma**2 / 2)) * moved / mass


def _bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Root of a monotone function between `low` and `high`."""
    sign = 1.0 if function(low) < 0 else -1.0
    for _ in range(100):
        middle = (low + high) / 2
        if sign * function(middle) < 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def read_lengths(path: Path) -> tuple[FloatArray, FloatArray]:
    """Prompt and output lengths (tokens) of one file, each of shape ``(n,)``.

    CSV with the columns ``input_tokens`` and ``output_tokens``, or one JSON object a line with
    ``input_length`` and ``output_length``; gzipped.
    """
    if path.name.endswith(".jsonl.gz"):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        pairs = np.array([(r["input_length"], r["output_length"]) for r in rows], dtype=np.float64)
    else:
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            header = next(lines).strip().split(",")
            columns = [header.index("input_tokens"), header.index("output_tokens")]
            pairs = np.loadtxt(lines, delimiter=",", usecols=columns, ndmin=2)
    return pairs[:, 0], pairs[:, 1]


def slices(prompt: FloatArray, output: FloatArray) -> list[FloatArray]:
    """Outputs by tenths of the prompt's distribution; equal prompts stay in file order."""
    order = np.argsort(prompt, kind="stable")
    return list(np.array_split(output[order], _SLICES))


def derive(data: Path) -> str:
    """Return the text of ``lengths.toml`` for the measured sets in `data`."""
    tables = []
    for each in MEASURED:
        prompt, output = read_lengths(data / each.path)
        tables.append(
            _table(
                each.name,
                quantiles(prompt),
                [quantiles(part) for part in slices(prompt, output)],
                (len(prompt), float(prompt.mean()), float(output.mean())),
                each.source,
                each.licence,
            )
        )
    for name, (prompt_moments, output_moments) in FITTED.items():
        tables.append(
            _table(
                name,
                fitted_quantiles(prompt_moments),
                [fitted_quantiles(output_moments)],
                (0, prompt_moments.mean, output_moments.mean),
                _FITTED_SOURCE.format(prompt_moments.shape),
                "facts",
            )
        )
    return _HEADER + "\n".join(tables)


def _table(
    name: str,
    prompt: FloatArray,
    outputs: Iterable[FloatArray],
    measured: tuple[int, float, float],
    source: str,
    licence: str,
) -> str:
    """One entry as TOML; `measured` holds rows, mean prompt, mean output."""
    rows, prompt_mean, output_mean = measured
    lines = [
        "[[lengths]]",
        f'name = "{name}"',
        f"num_measured = {rows}",
        f"prompt_mean = {prompt_mean:.2f}",
        f"output_mean = {output_mean:.2f}",
        f"levels = {_numbers(_LEVELS)}",
        f"prompt = {_numbers(prompt)}",
        "output_by_prompt = [",
        *(f"  {_numbers(output)}," for output in outputs),
        "]",
        f'source = "{source}"',
        f'licence = "{licence}"',
        "",
    ]
    return "\n".join(lines)


def _numbers(values: FloatArray) -> str:
    shown = (str(int(v)) if v == int(v) else repr(float(v)) for v in values)
    return "[" + ", ".join(shown) + "]"


def main(arguments: Sequence[str]) -> int:
    """Write ``lengths.toml`` from the folder of measured sets in `arguments`."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m simcluster.catalog.derive DATA_DIR\n")
        return 2
    Path(__file__).with_name("lengths.toml").write_text(derive(Path(arguments[0])), "utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
