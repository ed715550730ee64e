"""Why a candidate sustains no more: its family, its bottleneck, and the figures that say so."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from simcluster.config import SloConfig
from simcluster.frames.goodput import three_digits
from simcluster.strategies import FuDG, NoDG, PaDG, SchedulerSettings, Strategy
from simcluster.studies.rank.race import Crossing, RaceRun, log_odds
from simcluster.studies.rank.screen import Bound

Bottleneck = Literal["prefill", "decode", "link", "memory", "dispatch", "targets"]
_FULL_KV: Final = 0.95  # peak share of KV blocks that says memory held requests back
_LATENCIES: Final = {"ttft": "TTFT", "tpot": "TPOT", "itl": "ITL", "e2el": "end-to-end latency"}


def family(strategy: Strategy) -> str:
    """Return what kind of strategy a candidate is, in words."""
    match strategy:
        case NoDG():
            return "NoDG chunked" if strategy.splits_prompts else "NoDG"
        case PaDG():
            return "PaDG"
        case FuDG():
            return f"FuDG {strategy.placement}"
    return strategy.kind


@dataclass(frozen=True, slots=True, kw_only=True)
class AtGoodput:
    """What a candidate does at its goodput."""

    within: Mapping[str, float]
    """Share of the requests within each latency target, 0 to 1; by the names of `_LATENCIES`."""
    peak_kv_usage: float
    num_preemptions: int
    """Of the run nearest to it."""

    def most_missed(self, slo: SloConfig) -> str:
        """Return the latency whose share is farthest below, or least above, what is wanted."""
        return min(
            self.within,
            key=lambda key: _logit(self.within[key]) - _logit(slo.wanted(key)),
        )

    @classmethod
    def of(cls, crossing: Crossing | None, slo: SloConfig) -> AtGoodput | None:
        """Return what the runs of a search show where attainment is what is wanted.

        Shares are taken as straight in log odds between the two runs around the crossing, as the
        goodput is; of a search with one run next to it they are moved as far as the attainment. So
        they belong to the goodput whatever a draw of requests does to the rate. None without runs.
        """
        nearest = None if crossing is None else crossing.nearest
        if crossing is None or nearest is None:
            return None
        low, high = crossing.around.low or nearest, crossing.around.high or nearest
        wanted = log_odds(slo.attainment, nearest.num_requests)
        return cls(
            within={key: _between(low, high, key, wanted) for key in _LATENCIES},
            peak_kv_usage=nearest.peak_kv_usage,
            num_preemptions=nearest.num_preemptions,
        )

    def settled(self, within: Mapping[str, float]) -> AtGoodput:
        """Return the same with the shares of the longest runs, as far as those know them."""
        return replace(self, within={**self.within, **within})


NOT_RACED: Final = AtGoodput(within={}, peak_kv_usage=0.0, num_preemptions=0)
"""Where no run of the race lies near the goodput."""


def _between(low: RaceRun, high: RaceRun, key: str, wanted: float) -> float:
    """Return the share within a target where the log odds of attainment are `wanted`."""
    ends = [log_odds(getattr(run, f"{key}_attainment"), run.num_requests) for run in (low, high)]
    fall = low.log_odds - high.log_odds
    if low is high or not fall > 0:
        odds = ends[0] + wanted - low.log_odds
    else:
        odds = ends[0] + (low.log_odds - wanted) / fall * (ends[1] - ends[0])
    share = 1 / (1 + math.exp(-odds))
    # All runs have all requests within it: so many that the next half request may be late.
    return 1.0 if share > 1 - 1 / low.num_requests else share


def _logit(share: float) -> float:
    share = min(max(share, 1e-9), 1 - 1e-9)
    return math.log(share / (1 - share))


def explain(
    strategy: Strategy,
    bound: Bound,
    goodput_rps: float,
    at: AtGoodput | None,
    slo: SloConfig,
) -> tuple[Bottleneck, str]:
    """Return what keeps a candidate from sustaining more, and the figures that say so.

    Parameters
    ----------
    strategy, bound : Strategy, Bound
        The candidate.
    goodput_rps : float
        Its goodput (requests/s), as the table has it.
    at : AtGoodput or None
        What it does there; None if no rate that was tried lies near it.
    slo : SloConfig
        The targets.

    Notes
    -----
    Full KV blocks: memory. A link that sustains less than GPUs do: link. Else the target that is
    missed most at the goodput: the TTFT waits for prefills; the TPOT and the ITL for decode steps,
    or for the CPU where it takes over half of a step; the end-to-end latency for what sustains
    less by itself.
    """
    if goodput_rps <= 0:
        return "targets", "misses the targets at any rate that was tried"
    if at is None:
        return "targets", "sustains any rate that was tried"
    if not at.within:
        return explain_bound(bound)
    if at.peak_kv_usage >= _FULL_KV and bound.memory_batch <= 2 * bound.batch:
        return "memory", (
            f"KV blocks are full ({at.peak_kv_usage:.0%}, {at.num_preemptions} "
            f"preemptions): they hold {bound.memory_batch} sequences per instance"
        )
    if bound.link_rps <= min(bound.prefill_rps, bound.decode_rps):
        return "link", f"links move the KV cache of at most {bound.link_rps:.3g} requests/s"
    missed = at.most_missed(slo)
    shares = ", ".join(
        f"{100 * (1 - at.within[key]):.2g} % miss the {name}"
        for key, name in _LATENCIES.items()
        if key == missed or slo.has_target(f"{key}_s")
    )
    late = f"at {three_digits(goodput_rps)} requests/s {shares}"
    if missed == "ttft" or (missed == "e2el" and bound.prefill_rps <= bound.decode_rps):
        return "prefill", f"{late}; prefills alone sustain {bound.prefill_rps:.3g}"
    if bound.dispatch_share > 0.5:
        return "dispatch", f"{late}; the CPU takes {bound.dispatch_share:.0%} of a decode step"
    splits = isinstance(strategy, SchedulerSettings) and strategy.splits_prompts
    if bound.decode_rps < 2 * goodput_rps or isinstance(strategy, FuDG):
        cause = "decode steps are too slow"
    else:
        cause = "chunks of prompts slow them" if splits else "prefills interrupt decoding"
    return "decode", f"{late}; {cause}, decoding alone sustains {bound.decode_rps:.3g}"


def explain_bound(bound: Bound) -> tuple[Bottleneck, str]:
    """Return the bottleneck by the roofline alone, and the figures."""
    parts: dict[Bottleneck, float] = {
        "prefill": bound.prefill_rps,
        "decode": bound.decode_rps,
        "link": bound.link_rps,
    }
    part = min(parts, key=lambda name: parts[name])
    most = f"decoding sustains at most {bound.decode_rps:.3g} requests/s"
    if part == "decode":
        if bound.batch >= bound.memory_batch:
            text = f"memory holds {bound.memory_batch} sequences per instance"
            return "memory", f"{text}: {most}"
        if bound.dispatch_share > 0.5:
            text = f"the CPU takes {bound.dispatch_share:.0%} of a decode step"
            return "dispatch", f"{text}: {most}"
    return part, f"{part} sustains at most {parts[part]:.3g} requests/s"
