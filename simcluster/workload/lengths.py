"""Prompt and output lengths: fixed, lognormal, quantiles, a table of the catalogue."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Final, Literal

import numpy as np
from pydantic import Field

from simcluster import catalog
from simcluster.catalog.specs import LengthTable
from simcluster.config import Settings
from simcluster.errors import ConfigError
from simcluster.units import FloatArray, IntArray
from simcluster.workload.base import MAX_TOKENS, LengthDistribution

Tokens = Annotated[int, Field(ge=1, le=MAX_TOKENS)]
Median = Annotated[float, Field(ge=1, le=MAX_TOKENS)]
Sigma = Annotated[float, Field(ge=0, le=5)]


def whole_tokens(lengths: FloatArray) -> IntArray:
    """Return `lengths` (tokens) rounded to whole numbers from 1 to ``MAX_TOKENS``."""
    return np.rint(np.clip(lengths, 1, MAX_TOKENS)).astype(np.int64)


@dataclass(frozen=True, slots=True)
class Quantiles:
    """A length distribution by its quantiles."""

    levels: FloatArray
    """Cumulative shares, rising from 0 to 1, shape ``(n,)``."""
    values: FloatArray
    """Lengths (tokens), never falling, >= 1, shape ``(n,)``."""
    geometric: bool = False
    """Between two quantiles the logarithm of the length is linear, not the length itself: for few
    quantiles of a heavy-tailed distribution."""

    def at(self, levels: FloatArray) -> IntArray:
        """Return the lengths (tokens, >= 1) at cumulative shares `levels`."""
        if self.geometric:
            return whole_tokens(np.exp(np.interp(levels, self.levels, np.log(self.values))))
        return whole_tokens(np.interp(levels, self.levels, self.values))


@dataclass(frozen=True, slots=True, kw_only=True)
class FixedLengths(Settings):
    """Every request has the same prompt and output length."""

    kind: Literal["fixed"] = "fixed"
    prompt_len: Tokens
    """Prompt of every request (tokens)."""
    output_len: Tokens
    """Output of every request (tokens)."""

    def draw(self, num_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Return prompt and output lengths (tokens)."""
        return (
            np.full(num_requests, self.prompt_len, dtype=np.int64),
            np.full(num_requests, self.output_len, dtype=np.int64),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LognormalLengths(Settings):
    """Lognormal prompts and outputs, independent of each other, rounded and clipped.

    Notes
    -----
    The mean before clipping is ``median * exp(sigma^2 / 2)``.
    """

    kind: Literal["lognormal"] = "lognormal"
    prompt_median: Median
    """Median prompt (tokens)."""
    prompt_sigma: Sigma
    """Standard deviation of the logarithm of the prompt length."""
    output_median: Median
    """Median output (tokens)."""
    output_sigma: Sigma
    """Standard deviation of the logarithm of the output length."""
    prompt_min: Tokens = 1
    """Shorter prompts get this (tokens)."""
    prompt_max: Tokens | None = None
    """Longer prompts get this (tokens); default: no limit."""
    output_min: Tokens = 1
    """Shorter outputs get this (tokens)."""
    output_max: Tokens | None = None
    """Longer outputs get this (tokens); default: no limit."""

    def __post_init__(self) -> None:
        """Check that no limit excludes the other."""
        for name, low, high in (
            ("prompt", self.prompt_min, self.prompt_max),
            ("output", self.output_min, self.output_max),
        ):
            if high is not None and high < low:
                raise ConfigError(
                    f"workload.lengths.{name}_max",
                    high,
                    f"is below {name}_min ({low})",
                    "Raise the first or lower the second.",
                )

    def draw(self, num_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Return prompt and output lengths (tokens)."""
        normal = rng.standard_normal((num_requests, 2))
        with np.errstate(over="ignore"):
            prompt = self.prompt_median * np.exp(self.prompt_sigma * normal[:, 0])
            output = self.output_median * np.exp(self.output_sigma * normal[:, 1])
        return (
            whole_tokens(np.clip(prompt, self.prompt_min, self.prompt_max)),
            whole_tokens(np.clip(output, self.output_min, self.output_max)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantileLengths(Settings):
    """Quantiles written in the scenario; prompt and output independent of each other."""

    kind: Literal["quantiles"] = "quantiles"
    levels: Annotated[tuple[float, ...], Field(min_length=2)]
    """Cumulative shares, rising from 0 to 1."""
    prompt: tuple[Median, ...]
    """Prompt length at each level (tokens), never falling."""
    output: tuple[Median, ...]
    """Output length at each level (tokens), never falling."""

    def __post_init__(self) -> None:
        """Check levels and lengths."""
        rising = all(a < b for a, b in pairwise(self.levels))
        if not rising or self.levels[0] != 0 or self.levels[-1] != 1:
            raise ConfigError(
                "workload.lengths.levels",
                list(self.levels),
                "must rise from 0 to 1",
                "Begin with 0 (the shortest), end with 1 (the longest), sort the rest between.",
            )
        for name, values in (("prompt", self.prompt), ("output", self.output)):
            falling = any(a > b for a, b in pairwise(values))
            if len(values) != len(self.levels) or falling or min(values) < 1:
                raise ConfigError(
                    f"workload.lengths.{name}",
                    list(values),
                    f"must be {len(self.levels)} lengths from 1 up that never fall, "
                    "one for each level",
                    "Give the length at each of the levels.",
                )

    def draw(self, num_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Return prompt and output lengths (tokens)."""
        shares = rng.random((num_requests, 2))
        levels = np.array(self.levels)
        return (
            Quantiles(levels, np.array(self.prompt)).at(shares[:, 0]),
            Quantiles(levels, np.array(self.output)).at(shares[:, 1]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TableLengths(Settings):
    """The name of a table of the catalogue; in a scenario `TabulatedLengths` takes its place."""

    kind: Literal["table"] = "table"
    name: Annotated[str, Field(min_length=1)]
    """Length table of the catalogue."""

    def draw(self, num_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Return prompt and output lengths (tokens) of the packaged table of this name.

        Raises
        ------
        ConfigError
            If the package has no table of this name.
        """
        return TabulatedLengths(catalog.lengths(self.name)).draw(num_requests, rng)


@dataclass(frozen=True, slots=True, kw_only=True)
class LongerLengths:
    """The lengths of another distribution, longer by factors and rounded to whole tokens."""

    of: Any
    """The other distribution, a `LengthDistribution`."""
    prompt: float
    """Factor of prompts, > 0."""
    output: float
    """Factor of outputs, > 0."""

    def draw(self, num_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Return prompt and output lengths (tokens): the same requests, longer."""
        prompt, output = self.of.draw(num_requests, rng)
        return whole_tokens(self.prompt * prompt), whole_tokens(self.output * output)


@dataclass(frozen=True, slots=True)
class TabulatedLengths:
    """Lengths drawn from a table; outputs depend on prompts as far as the table knows."""

    table: LengthTable
    """The quantiles."""

    def draw(self, num_requests: int, rng: np.random.Generator) -> tuple[IntArray, IntArray]:
        """Return prompt and output lengths (tokens).

        The place of a request among the prompts selects the slice that its output is drawn from.
        """
        table = self.table
        levels = np.array(table.levels)
        shares = rng.random((num_requests, 2))
        prompt = Quantiles(levels, np.array(table.prompt)).at(shares[:, 0])
        slices = (shares[:, 0] * len(table.output_by_prompt)).astype(np.int64)
        output = np.empty_like(prompt)
        for number, values in enumerate(table.output_by_prompt):
            own = slices == number
            output[own] = Quantiles(levels, np.array(values)).at(shares[own, 1])
        return prompt, output


_IN_BLOCKS: Final = (
    FixedLengths,
    LognormalLengths,
    QuantileLengths,
    TableLengths,
    TabulatedLengths,
)
"""Distributions that draw request after request: two draws from one generator are one long draw."""
BLOCK: Final = 1 << 18
"""Requests that are drawn at once."""


def drawn(
    lengths: LengthDistribution, num_requests: int, rng: np.random.Generator
) -> tuple[IntArray, IntArray]:
    """Return what ``lengths.draw`` does, of many requests block by block and in four bytes each.

    A draw takes several times the memory of its result while it is made.
    """
    if num_requests <= BLOCK or not isinstance(lengths, _IN_BLOCKS):
        return lengths.draw(num_requests, rng)
    columns = np.empty((2, num_requests), np.int32)
    for first in range(0, num_requests, BLOCK):
        last = min(first + BLOCK, num_requests)
        columns[:, first:last] = lengths.draw(last - first, rng)
    prompt_len: IntArray = columns[0]
    output_len: IntArray = columns[1]
    return prompt_len, output_len
