"""What the rounds and the finals say together: all candidates, the best first.

Who was settled has an interval of its own. Everybody else has the winner's goodput times the ratio
to it on the same requests: what short runs do to all alike falls out of that. If nobody was
settled, the winner's goodput is that of the third round.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from simcluster.studies.goodput import Interval
from simcluster.studies.goodput.runs import WARMUP as FINAL_WARMUP
from simcluster.studies.rank.contest import Contest
from simcluster.studies.rank.draws import around, exp
from simcluster.studies.rank.explain import NOT_RACED, AtGoodput, explain, explain_bound
from simcluster.studies.rank.finals import LONGEST, Finals
from simcluster.studies.rank.race import WARMUP, Crossing
from simcluster.studies.rank.ranking import Candidate, Stage
from simcluster.studies.rank.rounds import BIAS, FIRST, REPLICATIONS, SECOND, THIRD, Rounds

_PERCENT: Final = 100.0


class Standings:
    """The order of the candidates of a contest, after its rounds and finals."""

    def __init__(self, contest: Contest, rounds: Rounds, final: Finals) -> None:
        self._contest, self._rounds, self._final = contest, rounds, final
        self._bounds = contest.bounds
        self.winner = self._winner()
        """Whose goodput says what that of others is."""
        own = final.intervals.get(self.winner)
        self._own = own or rounds.third.interval_of(self.winner, BIAS[2])

    def candidates(self) -> list[Candidate]:
        """Return all candidates, the best first."""
        final, ranked = self._final, []
        for name in self._rounds.first:
            if name in final.intervals:
                one = self._candidate(name, "final", final.intervals[name])
                ranked.append(one.holding(final.mean_gpus[name]))
            elif name == self.winner:
                ranked.append(self._candidate(name, "race", self._own))
            elif name in self._rounds.third:
                ranked.append(self._candidate(name, "race", self._raced(name)))
            else:
                ranked.append(self._candidate(name, "screen", self._screened(name)))
        scale = self._own.value / self._contest.value(self._rounds.first[self.winner])
        for name, guess in self._rounds.guessed.items():
            most = self._bounds[name].total_rps
            guessed = Interval(value=min(scale * guess, most), low=0.0, high=most)
            ranked.append(self._candidate(name, "bound", guessed))
        return sorted(ranked, key=lambda candidate: -candidate.goodput_rps)

    def unsettled_pairs(self) -> list[str]:
        """Return how each finalist that is not settled compares with the winner, in words.

        By the short runs of the third round, and so by the goodputs that the table has.
        """
        third, lines = self._rounds.third, []
        half = third.half_width_of_ratios(0.975) + BIAS[2]
        for name in self._final.unsettled:
            if name == self.winner or not {name, self.winner} <= set(third.sound):
                continue
            ratio = around(math.exp(third.mean_log(self.winner) - third.mean_log(name)), half)
            gain, low, high = (_PERCENT * (x - 1) for x in (ratio.value, ratio.low, ratio.high))
            first, second = self.winner, name
            if gain < 0:
                first, second = name, self.winner
                gain, low, high = (
                    _PERCENT * (1 / x - 1) for x in (ratio.value, ratio.high, ratio.low)
                )
            lines.append(
                f"{first} and {second}: by short runs alone {gain:+.2g} % "
                f"(95 %: {low:+.2g} to {high:+.2g})"
            )
        return lines

    def notes(self, candidates: Sequence[Candidate]) -> tuple[str, ...]:
        """Return which candidates' runs are too short for all of their instances to start."""
        lines = []
        for c in candidates:
            ramp_s = self._bounds[c.name].ramp_s
            if ramp_s is None or c.stage == "bound" or not c.goodput_rps:
                continue
            share = FINAL_WARMUP if c.stage == "final" else WARMUP
            most_s = share * LONGEST / c.goodput_rps
            if most_s < ramp_s:
                lines.append(
                    f"{c.name}: what is counted begins {most_s:.0f} s into its longest runs; all "
                    f"instances take {ramp_s:.0f} s to start at least, so it may sustain more."
                )
        return tuple(lines)

    def _winner(self) -> str:
        """Return whose goodput says what that of others is.

        The best of the settled, but of those that met the targets on each draw of the third round
        if there are any, for the others' ratios to it are taken there.
        """
        third, intervals = self._rounds.third, self._final.intervals
        settled = [name for name in intervals if name in third.sound]
        if third.sound and not settled:
            return max(third.sound, key=third.mean_log)
        return max(settled or intervals, key=lambda name: intervals[name].value)

    def _raced(self, name: str) -> Interval:
        """Return a goodput from that of the winner and the ratio to it in the third round.

        It is 0, with an interval up to the bound, if on some draw the targets were met at no rate.
        """
        third, own = self._rounds.third, self._own
        if name not in third.sound:
            return Interval(value=0.0, low=0.0, high=self._bounds[name].total_rps)
        wide = third.half_width_of_ratios(0.975)
        half = math.hypot(math.log(own.high / own.value), wide) + BIAS[2]
        ratio = math.exp(third.mean_log(name) - third.mean_log(self.winner))
        return around(own.value * ratio, half)

    def _screened(self, name: str) -> Interval:
        """Return a goodput from that of the winner and the ratio to it in an earlier round."""
        second, own = self._rounds.second, self._own
        last = second if name in second else self._rounds.first
        length, bias = (SECOND, BIAS[1]) if last is second else (FIRST, BIAS[0])
        wide = self._rounds.third.half_width_of_ratios(0.975, REPLICATIONS * THIRD / length)
        half = math.hypot(math.log(own.high / own.value), wide) + bias
        scale = own.value / self._contest.value(last[self.winner])
        value, most = scale * self._contest.value(last[name]), self._bounds[name].total_rps
        return Interval(
            value=value,
            low=min(scale * last[name].low_rps * exp(-half), value),
            high=max(min(scale * last[name].high_rps * exp(half), most), value),
        )

    def _last(self, name: str) -> Crossing | None:
        """Return the longest search for the goodput of a candidate, if there was any."""
        if name in self._rounds.third:
            return self._rounds.third[name][0]
        return self._rounds.second.get(name) or self._rounds.first.get(name)

    def _candidate(self, name: str, stage: Stage, goodput: Interval) -> Candidate:
        within = self._final.within.get(name, {})
        return candidate_of(self._contest, name, stage, goodput, self._last(name), within)


def candidate_of(
    contest: Contest,
    name: str,
    stage: Stage,
    goodput: Interval,
    crossing: Crossing | None,
    within: Mapping[str, float],
) -> Candidate:
    """Return a candidate with its goodput, and what keeps it from more.

    Parameters
    ----------
    contest : Contest
        Of whom.
    name, stage, goodput : str, Stage, Interval
        Who, how far it came, and its goodput (requests/s).
    crossing : Crossing or None
        The longest search of the race for it.
    within : mapping of str to float
        Shares within the latency targets at its goodput, by the finals; empty if it is not settled.
    """
    scenario, bound = contest.scenario, contest.bounds[name]
    slo = scenario.environment.slo
    if crossing is None:
        bottleneck, why = explain_bound(bound)
    else:
        at = AtGoodput.of(crossing, slo)
        if within:
            at = (at or NOT_RACED).settled(within)
        bottleneck, why = explain(scenario.strategy(name), bound, goodput.value, at, slo)
    return Candidate(
        name=name,
        strategy=contest.families[name],
        num_gpus=bound.num_gpus,
        mean_gpus=float(bound.num_gpus) if crossing is None else contest.held(crossing),
        goodput_rps=goodput.value,
        low_rps=goodput.low,
        high_rps=goodput.high,
        stage=stage,
        price_per_gpu_hour=scenario.environment.cluster.price_per_gpu_hour,
        bottleneck=bottleneck,
        why=why,
        ttft_s=math.nan,
        tpot_s=math.nan,
        bound_rps=bound.total_rps,
    )
