"""The requests of a scenario in a few numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from simcluster.errors import DataError
from simcluster.runs.cell import Cell
from simcluster.runs.simulate import workload_of
from simcluster.scenario.scenario import Scenario
from simcluster.studies.prefix_reuse import replay
from simcluster.studies.rank.screen import Lengths
from simcluster.units import IntArray
from simcluster.workload import Workload

MAX_REPLAYED: Final = 20_000
"""Prefix reuse is taken from the first requests, this many at most (about 2 s)."""
_MAX_LENGTHS: Final = 1000
"""Requests whose lengths enter the means; more are thinned out evenly."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """What the arithmetic needs of the requests of one run."""

    num_requests: int
    num_rejected: int
    """All requests, and those of them that are longer than ``engine.max_model_len``."""
    rate_rps: float | None
    concurrency: int | None
    """Offered rate (requests/s), None where answers decide; users of a closed loop, else None."""
    prompt_len: int
    output_len: int
    """The median request (tokens)."""
    lengths: Lengths
    """Lengths of those that are served, at most 1000, evenly taken."""
    reused_share: float | None
    """Share of the prompt tokens that one cache without end would hold, 0 to 1; None where no
    prefixes are known."""

    @classmethod
    def of(cls, scenario: Scenario, cell: Cell) -> Requests:
        """Draw the requests of a run and count.

        Raises
        ------
        DataError
            If none of them can be served.
        """
        workload = workload_of(scenario, cell)
        served = ~workload.rejected
        prompts, outputs = workload.prompt_len[served], workload.output_len[served]
        if not len(prompts):
            longest = scenario.environment.model.max_model_len
            raise DataError(
                f"workload: all {workload.num_requests} requests are longer than "
                f"engine.max_model_len = {longest} tokens. Raise it, or ask for shorter ones."
            )
        return cls(
            num_requests=workload.num_requests,
            num_rejected=workload.num_requests - len(prompts),
            rate_rps=workload.rate_rps,
            concurrency=workload.concurrency,
            prompt_len=int(np.median(prompts)),
            output_len=int(np.median(outputs)),
            lengths=Lengths(prompts=_some(prompts), outputs=_some(outputs)),
            reused_share=_reused(workload, scenario),
        )

    def facts(self) -> dict[str, Any]:
        """Return the numbers as JSON has them."""
        return {
            "num_requests": self.num_requests,
            "num_rejected": self.num_rejected,
            "rate_rps": self.rate_rps,
            "concurrency": self.concurrency,
            "median": {"prompt_len": self.prompt_len, "output_len": self.output_len},
            "mean": {
                "prompt_len": float(self.lengths.prompts.mean()),
                "output_len": float(self.lengths.outputs.mean()),
            },
            "reused_token_share": self.reused_share,
        }


def _some(tokens: IntArray) -> IntArray:
    """Return `tokens`, thinned out evenly if they are many."""
    if len(tokens) <= _MAX_LENGTHS:
        return tokens
    chosen: IntArray = tokens[np.linspace(0, len(tokens) - 1, _MAX_LENGTHS).astype(int)]
    return chosen


def _reused(workload: Workload, scenario: Scenario) -> float | None:
    """Share of the prompt tokens of the first requests in a cache without end; None without ids."""
    if workload.hashes is None:
        return None
    count = min(workload.num_requests, MAX_REPLAYED)
    first = Workload(
        arrival_s=workload.arrival_s[:count],
        prompt_len=workload.prompt_len[:count],
        output_len=workload.output_len[:count],
        rejected=workload.rejected[:count],
        hashes=workload.hashes,
    )
    return replay(first, block_size=scenario.environment.engine.block_size).token_share
