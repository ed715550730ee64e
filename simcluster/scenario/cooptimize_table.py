"""The table ``[cooptimize]`` of a scenario file: what may be chosen, and what is wanted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from simcluster.config import SETTINGS_CONFIG

Kind = Literal["nodg", "chunked", "padg", "fudg"]
Objective = Literal["cost", "latency", "quality"]
Sampler = Literal["auto", "exhaustive", "nsga2", "gp", "random"]

Degree = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class CooptimizeTable:
    """What ``simcluster cooptimize`` searches (the table ``[cooptimize]``)."""

    __pydantic_config__: ClassVar[ConfigDict] = SETTINGS_CONFIG

    models: Annotated[
        tuple[Annotated[str, Field(min_length=1)], ...],
        Field(
            min_length=1,
            description="Models of the scenario, from the weakest to the strongest; one alone asks "
            "for the cheapest GPU mix.",
        ),
    ]
    budget_per_hour: Annotated[
        float | None, Field(gt=0, description="Most that the GPUs may cost per hour.")
    ] = None
    quality_at_least: Annotated[
        float | None, Field(gt=0, le=1, description="Least mean quality of the answers, 0 to 1.")
    ] = None
    latency_at_most_s: Annotated[
        float | None, Field(gt=0, description="Most that the latency may be (s).")
    ] = None
    latency: Annotated[
        Literal["e2el", "ttft", "tpot"],
        Field(description="Which latency: end to end, to the first token, or per output token."),
    ] = "e2el"
    percentile: Annotated[
        float, Field(gt=0, lt=100, description="Which percentile of it, over all requests.")
    ] = 95.0
    goal: Annotated[
        Objective,
        Field(description="What decides between plans that keep to all limits."),
    ] = "latency"
    objectives: Annotated[
        tuple[Objective, ...],
        Field(min_length=2, max_length=3, description="What the Pareto front is of."),
    ] = ("cost", "latency", "quality")
    strategies: Annotated[
        tuple[Kind, ...],
        Field(
            min_length=1,
            description="Strategies of pools: prefill first, chunked prefill, PaDG in rings from "
            "two, FuDG with as many prefill as decode instances.",
        ),
    ] = ("nodg",)
    tp_sizes: Annotated[
        tuple[Degree, ...], Field(min_length=1, description="Tensor-parallel degrees to try.")
    ] = (1, 2, 4, 8)
    pp_sizes: Annotated[
        tuple[Degree, ...], Field(min_length=1, description="Pipeline depths to try.")
    ] = (1,)
    loads: Annotated[
        tuple[Annotated[float, Field(gt=0, le=2)], ...],
        Field(
            min_length=2,
            description="Offered loads of the database, as shares of a replica's throughput, "
            "rising.",
        ),
    ] = (0.15, 0.35, 0.55, 0.7, 0.8, 0.9, 1.0, 1.1)
    fractions: Annotated[
        int, Field(ge=2, le=1000, description="Steps of a load fraction in exhaustive search.")
    ] = 40
    sampler: Annotated[
        Sampler,
        Field(
            description="Search: auto (exhaustive on the database, gp on simulations), exhaustive, "
            "or a sampler of Optuna: nsga2, gp (needs the extra mobo), random."
        ),
    ] = "auto"
    evaluate: Annotated[
        Literal["database", "simulation"],
        Field(description="How a plan is judged while searching."),
    ] = "database"
    evaluations: Annotated[
        int, Field(ge=1, description="Most evaluations of a sampler of Optuna.")
    ] = 400
    stable: Annotated[
        int,
        Field(ge=1, description="A sampler stops when so many evaluations changed nothing."),
    ] = 20
    finalists: Annotated[
        int, Field(ge=1, description="Plans that are simulated token by token at the end.")
    ] = 3
    seeds: Annotated[
        tuple[Annotated[int, Field(ge=0)], ...],
        Field(min_length=1, description="Seeds of these simulations."),
    ] = (0, 1, 2)
