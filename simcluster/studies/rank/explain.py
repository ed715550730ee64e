"""Why a candidate carries no more: its family, what it is short of, and the figures that say so."""

from __future__ import annotations

from typing import Final, Literal

from simcluster.strategies import FuDG, NoDG, PaDG, SchedulerSettings, Strategy
from simcluster.studies.rank.race import Crossing
from simcluster.studies.rank.screen import Bound

Bottleneck = Literal["prefill", "decode", "link", "memory", "dispatch", "targets"]
_FULL_KV: Final = 0.95  # peak share of KV blocks that says memory held requests back


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


def explain(strategy: Strategy, bound: Bound, crossing: Crossing | None) -> tuple[Bottleneck, str]:
    """Return what keeps a candidate from carrying more, and the figures that say so.

    Notes
    -----
    Judged by the run just beyond the goodput. Full KV blocks: memory. A link that carries less
    than GPUs do: link. Else the target that more requests miss: the TTFT waits for prefills; the
    TPOT and the ITL for decode steps, or for the CPU where it takes over half of a step. What was
    not run is judged by its bound alone.
    """
    if crossing is None:
        return explain_bound(bound)
    beyond = crossing.beyond
    if crossing.goodput_rps <= 0:
        return "targets", "misses the targets at any rate that was tried"
    if beyond is None:
        return "targets", "carries any rate that was tried"
    if beyond.peak_kv_usage >= _FULL_KV and bound.memory_batch <= 2 * bound.batch:
        return "memory", (
            f"KV blocks are full ({beyond.peak_kv_usage:.0%}, {beyond.num_preemptions} "
            f"preemptions): they hold {bound.memory_batch} sequences per instance"
        )
    if bound.link_rps <= min(bound.prefill_rps, bound.decode_rps):
        return "link", f"links carry the KV cache of {bound.link_rps:.3g} requests/s"
    share, latency = beyond.tpot_attainment, "TPOT"
    if beyond.itl_attainment < share:
        share, latency = beyond.itl_attainment, "ITL"
    if beyond.ttft_attainment <= share:
        return "prefill", (
            f"TTFT: {1 - beyond.ttft_attainment:.0%} late at {beyond.rate_rps:.3g} requests/s; "
            f"prefills alone carry {bound.prefill_rps:.3g}"
        )
    late = f"{latency}: {1 - share:.0%} late at {beyond.rate_rps:.3g} requests/s"
    if bound.dispatch_share > 0.5:
        return "dispatch", f"{late}; the CPU takes {bound.dispatch_share:.0%} of a decode step"
    splits = isinstance(strategy, SchedulerSettings) and strategy.splits_prompts
    if bound.decode_rps < 2 * crossing.goodput_rps or isinstance(strategy, FuDG):
        cause = "decode steps are too slow"
    else:
        cause = "chunks of prompts slow them" if splits else "prefills interrupt decoding"
    return "decode", f"{late}; {cause}, decoding alone carries {bound.decode_rps:.3g}"


def explain_bound(bound: Bound) -> tuple[Bottleneck, str]:
    """Return what the roofline alone says a candidate is short of, and the figures."""
    parts: dict[Bottleneck, float] = {
        "prefill": bound.prefill_rps,
        "decode": bound.decode_rps,
        "link": bound.link_rps,
    }
    part = min(parts, key=lambda name: parts[name])
    if part == "decode":
        if bound.batch >= bound.memory_batch:
            text = f"memory holds {bound.memory_batch} sequences per instance"
            return "memory", f"{text}: decoding carries at most {bound.decode_rps:.3g} requests/s"
        if bound.dispatch_share > 0.5:
            text = f"the CPU takes {bound.dispatch_share:.0%} of a decode step"
            return "dispatch", f"{text}: decoding carries at most {bound.decode_rps:.3g} requests/s"
    return part, f"{part} carries at most {parts[part]:.3g} requests/s"
