"""The table ``[rank]`` of a scenario file: the space of candidates, and how sure the answer is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal

from pydantic import Field

from simcluster.config import Settings

Kind = Literal["nodg", "chunked", "padg", "fudg-intra", "fudg-inter"]
KINDS: Final[tuple[Kind, ...]] = ("nodg", "chunked", "padg", "fudg-intra", "fudg-inter")
"""Families of candidates: prefill first, chunked prefill, PaDG, and FuDG in and between nodes."""

Degree = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTable(Settings):
    """The candidates of ``simcluster rank`` (the table ``[rank]``): all combinations of its lists.

    With ``mode = "bestserve"`` goodputs come from BestServe's estimator in place of simulations.
    """

    num_gpus: tuple[Degree, ...] = ()
    """GPUs of a candidate; default: all of the cluster."""
    strategies: Annotated[tuple[Kind, ...], Field(min_length=1)] = KINDS
    """Families: prefill first, chunked prefill, PaDG, FuDG in a node, between nodes."""
    tp_sizes: Annotated[tuple[Degree, ...], Field(min_length=1)] = (1, 2, 4, 8)
    """Tensor-parallel degrees."""
    pp_sizes: Annotated[tuple[Degree, ...], Field(min_length=1)] = (1,)
    """Stages of the pipeline."""
    dp_sizes: tuple[Degree, ...] = ()
    """Data-parallel ranks of attention; default: 1, and for models with experts 4 and 8 too, where
    the engine can and the experts are spread over all GPUs of an instance."""
    ep_sizes: tuple[Degree, ...] = ()
    """Groups of GPUs with different experts; default: 1, and for models with experts all GPUs of an
    instance too, where the engine can."""
    prefill_shares: Annotated[tuple[Share, ...], Field(min_length=1)] = (0.25, 0.5, 0.75)
    """Shares of the instances that prefill, in FuDG."""
    chunk_sizes: tuple[Degree, ...] = ()
    """Token budgets with chunked prefill (tokens); default: the engine's."""
    max_num_seqs: tuple[Degree, ...] = ()
    """Limits of the sequences running at once; default: the engine's."""
    max_num_batched_tokens: tuple[Degree, ...] = ()
    """Limits of a prefill step (tokens); default: the engine's."""
    mode: Literal["simulate", "bestserve"] = "simulate"
    """simulate: token by token; bestserve: BestServe's estimator and pseudo batches, collocated and
    disaggregated strategies alone."""
    finalists: Annotated[int, Field(ge=1)] = 4
    """Candidates whose goodput is settled to the tolerance."""
    tolerance: Annotated[float, Field(gt=0, lt=1)] = 0.03
    """Half width of a finalist's 95 % interval over its goodput."""
    baselines: tuple[str, ...] | None = None
    """Candidates that are settled and compared with the best however far behind they are; default:
    the first four strategies of the file. The best of each family is too, in any case."""
    need_rps: Annotated[float | None, Field(gt=0)] = None
    """Requests/s that must be sustained: look for the cheapest plans that do, on any number of GPUs
    up to the largest of num_gpus. Default: rank by goodput."""
    headroom: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the goodput that is to stay free, with need_rps."""
    spare_instances: Annotated[int | None, Field(ge=0)] = None
    """Instances that are paid for and idle, each ready to take the place of any other, with
    need_rps; default: as many as availability needs, else none."""
    availability: Annotated[float | None, Field(gt=0, lt=1)] = None
    """Share of the time in which enough instances must be up to sustain the need, with
    instance_availability; default: spare_instances says it."""
    instance_availability: Annotated[float | None, Field(gt=0, lt=1)] = None
    """Share of the time that an instance is up, each by itself; your own figure, there is no
    default."""
