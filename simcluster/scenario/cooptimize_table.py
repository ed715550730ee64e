"""The table ``[cooptimize]`` of a scenario file: what may be chosen, and what is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from simcluster.config import Settings

Kind = Literal["nodg", "chunked", "padg", "fudg"]
Objective = Literal["cost", "latency", "quality"]
Sampler = Literal["auto", "exhaustive", "nsga2", "gp", "random"]

Degree = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CooptimizeTable(Settings):
    """What ``simcluster cooptimize`` searches (the table ``[cooptimize]``)."""

    models: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    """Models of the scenario, from the weakest to the strongest; one alone asks for the cheapest
    GPU mix."""
    budget_per_hour: Annotated[float | None, Field(gt=0)] = None
    """Most that the GPUs may cost per hour."""
    quality_at_least: Annotated[float | None, Field(gt=0, le=1)] = None
    """Least mean quality of the answers, 0 to 1."""
    latency_at_most_s: Annotated[float | None, Field(gt=0)] = None
    """Most that the latency may be (s)."""
    latency: Literal["e2el", "ttft", "tpot"] = "e2el"
    """Which latency: end to end, to the first token, or per output token."""
    percentile: Annotated[float, Field(gt=0, lt=100)] = 95.0
    """Which percentile of it, over all requests."""
    goal: Objective = "latency"
    """What decides between plans that keep to all limits."""
    objectives: Annotated[tuple[Objective, ...], Field(min_length=2, max_length=3)] = (
        "cost",
        "latency",
        "quality",
    )
    """What the Pareto front is of."""
    strategies: Annotated[tuple[Kind, ...] | None, Field(min_length=1)] = None
    """Strategies of pools: nodg (prefill first), chunked (chunked prefill), padg (rings from two),
    fudg (as many prefill as decode instances); default: nodg or chunked, as the engine
    schedules."""
    tp_sizes: Annotated[tuple[Degree, ...], Field(min_length=1)] = (1, 2, 4, 8)
    """Tensor-parallel degrees to try."""
    pp_sizes: Annotated[tuple[Degree, ...], Field(min_length=1)] = (1,)
    """Pipeline depths to try."""
    loads: Annotated[tuple[Annotated[float, Field(gt=0, le=2)], ...], Field(min_length=2)] = (
        0.15,
        0.35,
        0.55,
        0.7,
        0.8,
        0.9,
        1.0,
        1.1,
    )
    """Offered loads of the database, as shares of a replica's throughput, rising."""
    fractions: Annotated[int, Field(ge=2, le=1000)] = 40
    """Steps of a load fraction in exhaustive search."""
    sampler: Sampler = "auto"
    """Search: auto (exhaustive on the database, gp on simulations), exhaustive, or a sampler of
    Optuna: nsga2, gp (needs the extra mobo), random."""
    evaluate: Literal["database", "simulation"] = "database"
    """How a plan is judged while searching."""
    evaluations: Annotated[int, Field(ge=1)] = 400
    """Most evaluations of a sampler of Optuna."""
    stable: Annotated[int, Field(ge=1)] = 20
    """A sampler stops when this number of evaluations changed nothing."""
    finalists: Annotated[int, Field(ge=1)] = 3
    """Plans that are simulated token by token at the end."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)] = (0, 1, 2)
    """Seeds of these simulations."""
