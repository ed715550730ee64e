"""The table ``[rank]`` of a scenario file: the space of candidates, and how sure the answer is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal

from pydantic import ConfigDict, Field

from simcluster.config import SETTINGS_CONFIG

Kind = Literal["nodg", "chunked", "padg", "fudg-intra", "fudg-inter"]
KINDS: Final[tuple[Kind, ...]] = ("nodg", "chunked", "padg", "fudg-intra", "fudg-inter")
"""Families of candidates: prefill first, chunked prefill, PaDG, and FuDG in and between nodes."""

Degree = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTable:
    """The candidates of ``simcluster rank`` (the table ``[rank]``): all combinations of its lists.

    With ``mode = "bestserve"`` goodputs come from BestServe's estimator in place of simulations.
    """

    __pydantic_config__: ClassVar[ConfigDict] = SETTINGS_CONFIG

    num_gpus: Annotated[
        tuple[Degree, ...],
        Field(description="GPUs of a candidate; default: all of the cluster."),
    ] = ()
    strategies: Annotated[
        tuple[Kind, ...],
        Field(
            min_length=1,
            description="Families: prefill first, chunked prefill, PaDG, FuDG in a node, between "
            "nodes.",
        ),
    ] = KINDS
    tp_sizes: Annotated[
        tuple[Degree, ...], Field(min_length=1, description="Tensor-parallel degrees.")
    ] = (1, 2, 4, 8)
    pp_sizes: Annotated[
        tuple[Degree, ...], Field(min_length=1, description="Stages of the pipeline.")
    ] = (1,)
    prefill_shares: Annotated[
        tuple[Share, ...],
        Field(min_length=1, description="Shares of the instances that prefill, in FuDG."),
    ] = (0.25, 0.5, 0.75)
    chunk_sizes: Annotated[
        tuple[Degree, ...],
        Field(description="Token budgets with chunked prefill (tokens); default: the engine's."),
    ] = ()
    max_num_seqs: Annotated[
        tuple[Degree, ...],
        Field(description="Limits of the sequences running at once; default: the engine's."),
    ] = ()
    max_num_batched_tokens: Annotated[
        tuple[Degree, ...],
        Field(description="Limits of a prefill step (tokens); default: the engine's."),
    ] = ()
    mode: Annotated[
        Literal["simulate", "bestserve"],
        Field(
            description="simulate: token by token; bestserve: BestServe's estimator and pseudo "
            "batches, collocated and disaggregated strategies alone."
        ),
    ] = "simulate"
    finalists: Annotated[
        int, Field(ge=1, description="Candidates whose goodput is settled to the tolerance.")
    ] = 4
    tolerance: Annotated[
        float,
        Field(gt=0, lt=1, description="Half width of a finalist's 95 % interval over its goodput."),
    ] = 0.03
