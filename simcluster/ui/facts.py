"""The few facts of which the page makes a scenario: options of ``simcluster init`` and ``plan``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Fact:
    """An option of ``simcluster init`` as a field of the page."""

    option: str
    label: str
    value: str
    """What stands there at first; empty: left out."""
    hint: str = ""


FACTS: Final = (
    Fact("model", "Model", "llama-3.1-8b", "of the catalogue, or a folder with config.json"),
    Fact("gpu", "GPU", "A100", "of the catalogue"),
    Fact("gpus", "GPUs", "2", "nodes of 8; empty: what a plan takes"),
    Fact("prompt", "Median prompt (tokens)", "800"),
    Fact("output", "Median output (tokens)", "60"),
    Fact("spread", "Spread of the lengths", "0.8", "of their logarithm; 0: all alike"),
    Fact("ttft-p95", "TTFT for 95 %", "1s"),
    Fact("tpot-p95", "TPOT for 95 %", "40ms"),
    Fact("rate", "Requests/s", "8", "to be served"),
    Fact("price", "USD per GPU and hour", "", "else the catalogue's"),
)


def words(values: Mapping[str, str]) -> list[str]:
    """Return the facts as the options of ``simcluster init`` and ``plan``; empty ones left out.

    >>> words({"model": "qwen3-8b", "gpu": "H100", "price": " "})
    ['--model', 'qwen3-8b', '--gpu', 'H100']
    """
    return [
        word
        for option, value in values.items()
        if value.strip()
        for word in (f"--{option}", value.strip())
    ]
