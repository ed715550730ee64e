"""Reports of single runs and comparisons: strategies at one rate, or over a grid of rates."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from simcluster.frames.goodput import (
    met,
    target_of,
    three_digits,
    wanted_shares,
)
from simcluster.report.common import (
    about,
    command_line,
    family_of,
    gpus,
    last_sections,
    price_caution,
    short,
    targets_in_words,
)
from simcluster.report.difference import SIGNS
from simcluster.report.page import (
    Block,
    Bullets,
    Page,
    Section,
    Table,
    Value,
    missed,
    percent,
)
from simcluster.report.run_charts import RunCharts
from simcluster.runs.folder import Comparison
from simcluster.show.text import largest_error, served, step_times_of
from simcluster.units import MS


def page(comparison: Comparison, folder: Path) -> Page:
    """Return the report of a run or a comparison.

    Parameters
    ----------
    comparison : Comparison
        What was simulated.
    folder : Path
        Its folder, which the command that repeats it names.
    """
    return _Report(comparison, folder).page()


def answer(comparison: Comparison) -> str:
    """Return the answer of a run or a comparison in two sentences."""
    return " ".join(_Report(comparison, Path()).answer())


class _Report(RunCharts):
    """Question, answer, confidence, table."""

    def page(self) -> Page:
        scenario = self.comparison.scenario
        blocks = [self._table(), *self._remarks()]
        sections = [Section("Strategies", blocks)]
        if self.is_swept:
            sections.append(Section("By offered rate", self.by_rate()))
        sections.append(Section("Latencies", [self.distributions()]))
        sections.append(Section("Where the time goes", self.time_goes()))
        sections.append(Section("Over time", self.over_time()))
        single = len(self.comparison.rows) == 1
        return Page(
            question=self._question(),
            about=about(scenario),
            answer=self.answer(),
            confidence=[*self._confidence(), *price_caution(scenario)],
            sections=[
                *sections,
                *last_sections(
                    scenario,
                    step_times_of(scenario.environment),
                    self._command(),
                    ["scenario.toml", "the frames of the run" if single else "the frames"],
                ),
            ],
        )

    def _question(self) -> str:
        what = served(self.comparison.scenario)
        if self.is_swept:
            return f"Which strategy sustains the most requests within the targets: {what}?"
        rate = "" if math.isnan(self.rate) else f" at {self.rate:g} requests/s"
        if len(self.names) == 1:
            return f"Does {self.names[0]} meet the targets{rate}: {what}?"
        return f"Which strategy meets the targets{rate}: {what}?"

    def _command(self) -> str:
        scenario, rows = self.folder / "scenario.toml", self.comparison.rows
        if len(rows) > 1:
            return command_line("compare", scenario, "-o", f"{self.folder}-again")
        row = rows[0]
        words: list[object] = ["run", scenario, "--strategy", row["strategy"]]
        if not math.isnan(self.rate):
            words += ["--rate", f"{self.rate:g}"]
        return command_line(*words, "--seed", row["seed"], "-o", f"{self.folder}-again")

    # Answer -------------------------------------------------------------------------------------

    def answer(self) -> list[str]:
        """Return two sentences."""
        if self.comparison.sweep["slo_attainment"].isna().any():
            return ["Nothing is compared: there are runs without a counted request."]
        return self._swept_answer() if self.is_swept else self._single_answer()

    def _swept_answer(self) -> list[str]:
        order = sorted(self.names, key=self.order)
        best, rest = order[0], order[1:]
        row = self.goodputs[best]
        share, keep, keeps = self._share_words()
        if row["censored"] == "below":
            return [
                f"No strategy {keeps} at any rate of the sweep, the "
                f"lowest of which is {self.rates[0]:g} requests/s.",
                "Lower the rates, loosen the targets, or take other GPUs.",
            ]
        open_ = [name for name in order if self.goodputs[name]["censored"] == "above"]
        if len(open_) > 1:
            return [
                f"{', '.join(open_)} all {keep} at the highest rate of "
                f"the sweep, {self.rates[-1]:g} requests/s.",
                "This sweep does not tell which sustains more: add higher rates to it.",
            ]
        if rest and self._is_close(best, rest[0]):
            return self._close_answer(best, rest[0], share)
        sign = "at least " if row["censored"] else ""
        first = (
            f"{best} sustains the most: {sign}{three_digits(row['goodput_rps'])} requests/s on "
            f"{gpus(row['mean_gpus'])} GPUs with {share}"
        )
        if cost := self._cost_words(best):
            first += f", at {cost}"
        if not rest:
            return [f"{first}.", "There is no other strategy to compare with."]
        return [f"{first}.", self._against(best, rest[0])]

    def _share_words(self) -> tuple[str, str, str]:
        """Return how many requests meet the targets: after "with", after "all", after "no"."""
        if self.slo.percentiles is not None or self.slo.classes:
            words = targets_in_words(self.comparison.scenario)
            return f"the targets met ({words})", "meet the targets", "meets the targets"
        share = f"{100 * self.slo.attainment:g} % of the requests within the targets"
        return share, f"keep {share}", f"keeps {share}"

    def _error(self, first: str, second: str) -> float:
        """Return how far the difference of two goodputs is to be trusted; NaN if not known."""
        rows = self.goodputs[first], self.goodputs[second]
        return math.hypot(*(float(row["goodput_rps_error"]) for row in rows))

    def _is_close(self, first: str, second: str) -> bool:
        """Tell whether two goodputs differ by no more than chance and the grid leave open."""
        rows = self.goodputs[first], self.goodputs[second]
        gap = rows[0]["goodput_rps"] - rows[1]["goodput_rps"]
        return not any(row["censored"] for row in rows) and gap <= self._error(first, second)

    def _close_answer(self, first: str, second: str, share: str) -> list[str]:
        rows = self.goodputs[first], self.goodputs[second]
        values = [three_digits(row["goodput_rps"]) for row in rows]
        gap = 1 - rows[1]["goodput_rps"] / rows[0]["goodput_rps"]
        error = self._error(first, second) / rows[0]["goodput_rps"]
        return [
            f"{first} and {second} sustain the most: about {values[0]} and {values[1]} requests/s "
            f"on {' and '.join(dict.fromkeys(gpus(row['mean_gpus']) for row in rows))} GPUs with "
            f"{share}.",
            f"Which of the two sustains more is not decided: they differ by {percent(gap)}, and "
            f"chance and the grid of rates leave a difference of up to {percent(error)} open.",
        ]

    def _against(self, best: str, second: str) -> str:
        """Return how much less the second sustains, and whether that is more than the error."""
        first, other = self.goodputs[best], self.goodputs[second]
        if other["censored"] == "below":
            return f"No other strategy reaches the targets at {self.rates[0]:g} requests/s."
        gap = first["goodput_rps"] - other["goodput_rps"]
        words = (
            f"{second} follows with {three_digits(other['goodput_rps'])} requests/s "
            f"({percent(gap / first['goodput_rps'])} less)"
        )
        if first["censored"]:
            return f"{words}."
        if math.isnan(self._error(best, second)):
            return f"{words}; how far both are to be trusted is not known."
        return f"{words}, which is more than what chance and the grid of rates leave open."

    def _single_answer(self) -> list[str]:
        order = sorted(self.names, key=lambda name: -self._within(name))
        best = order[0]
        row = self.at_rate[best]
        verb = "meets" if self._reaches(row) else "misses"
        rate = "" if math.isnan(self.rate) else f" at {self.rate:g} requests/s"
        lead = f"{best} {verb} the targets{rate}"
        first = (
            f"{lead}: {self._within_words(row)}; "
            f"TTFT P95 {three_digits(row['ttft_s_p95'])} s, TPOT P95 "
            f"{three_digits(row['tpot_s_p95'] / MS)} ms."
        )
        if not self.slo.has_targets:
            first = (
                f"{best} has a P95 of the TTFT of {three_digits(row['ttft_s_p95'])} s and of the "
                f"TPOT of {three_digits(row['tpot_s_p95'] / MS)} ms{rate}; the scenario sets no "
                "targets."
            )
        if len(order) > 1:
            others = ", ".join(f"{n} {met(max(0.0, self._within(n)))} %" for n in order[1:])
            return [first, f"Within the targets are of the others: {others}."]
        return [first, self._missed_words(best)]

    def _missed_words(self, name: str) -> str:
        """Return which target is missed by how many requests, the most missed first."""
        row = self.at_rate[name]
        shares = sorted(
            (row[f"{key}_attainment"], target_of(f"{key}_attainment")) for key in self.targets
        )
        if not shares:
            return "The scenario sets no targets."
        if shares[0][0] == 1:
            return "Every request meets every target."
        each = ", ".join(f"{missed(share)} miss the {target}" for share, target in shares)
        return f"Of the requests {each}."

    def _within(self, name: str) -> float:
        value = float(self.at_rate[name]["slo_attainment"])
        return -1.0 if math.isnan(value) else value

    def _within_words(self, row: Mapping[str, Any]) -> str:
        """Return the shares that are within the targets beside those that are wanted."""
        wanted = wanted_shares(self.slo)
        if [*wanted] == ["slo_attainment"]:
            share, level = row["slo_attainment"], wanted["slo_attainment"]
            return f"{met(share)} % of the requests are within them, {100 * level:g} % wanted"
        return "of the requests " + ", ".join(
            f"{met(row[key])} % are within the {target_of(key)} ({100 * level:g} % wanted)"
            for key, level in wanted.items()
        )

    def _reaches(self, row: Mapping[str, Any]) -> bool:
        return all(row[key] >= share for key, share in wanted_shares(self.slo).items())

    def _confidence(self) -> list[str]:
        sweep = self.comparison.sweep
        seeds = sweep["seed"].nunique()
        lines = [f"{len(sweep)} run{'s' * (len(sweep) != 1)}, {seeds} seed{'s' * (seeds != 1)}."]
        if self.is_swept and (error := largest_error(self.comparison.goodput)):
            lines.append(
                f"Each goodput of this grid of rates is good to about {error} "
                "(chance and interpolation, about 95 %); `simcluster goodput` gives narrower "
                "intervals and says what the errors of the step times do."
            )
        short = int(sweep["transient"].sum())
        if short:
            lines.append(
                f"{short} of {len(sweep)} runs are shorter than ten median residence times: an "
                "overload may not show in full there. Raise workload.duration_s."
            )
        if limits := self._limits():
            lines.append(limits)
        step_times = step_times_of(self.comparison.scenario.environment)
        lines.append(
            f"Step times of {step_times['gpu']}: {step_times['accuracy']}. Their errors move all "
            "strategies, mostly in the same direction."
        )
        return lines

    def _limits(self) -> str:
        """Return which target limits each strategy, where rates were swept."""
        if not self.is_swept or not self.targets:
            return ""
        words = []
        for name in self.names:
            if key := self._first_missed(name):
                words.append(f"{name} by the {target_of(key + '_attainment')}")
        if not words:
            return ""
        return f"What limits them, first: {', '.join(words)}. Another target may change the order."

    def _first_missed(self, name: str) -> str:
        """Return the target that is missed most just above the goodput; empty if none is."""
        sweep, row = self.comparison.sweep, self.goodputs[name]
        own = sweep[sweep["strategy"] == name]
        above = own[own["rate_rps"] > row["goodput_rps"]]
        if row["censored"] == "above" or above.empty:
            return ""
        next_ = above[above["rate_rps"] == above["rate_rps"].min()].mean(numeric_only=True)
        shares = {key: float(next_[f"{key}_attainment"]) for key in self.targets}
        key = min(shares, key=lambda one: shares[one] - self.slo.wanted(one))
        return key if shares[key] < 1 else ""

    # Table --------------------------------------------------------------------------------------

    def _cost_words(self, name: str) -> str:
        cost = self.cost(name)
        if cost is None or math.isnan(cost[1]):
            return ""
        currency = self.comparison.scenario.environment.cluster.currency
        return (
            f"{three_digits(cost[0])} {currency} per hour, {three_digits(cost[1])} {currency} per "
            "million output tokens"
        )

    def _table(self) -> Table:
        scenario = self.comparison.scenario
        currency = scenario.environment.cluster.currency
        priced = self.cost(self.names[0]) is not None
        heads = ["Strategy", "Kind", "GPUs"]
        if self.is_swept:
            heads += ["Goodput (req/s)", "+- (req/s)", "per GPU (req/s)"]
        else:
            heads += ["Finished (req/s)", "Good (req/s)"]
        heads += [f"{currency}/h", f"{currency}/M output tokens"] if priced else []
        heads += ["Within all targets (%)", *(f"{short(k)} met (%)" for k in self.targets)]
        heads += ["TTFT P50 (s)", "TTFT P95 (s)", "TPOT P50 (ms)", "TPOT P95 (ms)", "E2E P95 (s)"]
        rows = [self._row(name, priced=priced) for name in self.names]
        at = "" if math.isnan(self.rate) else f" at {self.rate:g} requests/s"
        what = "Shares and latencies" if self.is_swept else "All figures"
        return Table(f"{what}{at}. Press a heading to sort.", heads, rows)

    def _row(self, name: str, *, priced: bool) -> list[Value]:
        kind, words = family_of(self.comparison.scenario, name)
        at = self.at_rate[name]
        row = [Value.word(name), Value.word(kind, words)]
        if self.is_swept:
            own = self.goodputs[name]
            sign = SIGNS[own["censored"]]
            goodput, per_gpu = own["goodput_rps"], own["goodput_rps_per_gpu"]
            row += [
                Value.number(own["mean_gpus"], gpus(own["mean_gpus"])),
                Value.number(goodput, f"{sign}{three_digits(goodput)}"),
                Value.digits(own["goodput_rps_error"]),
                Value.number(per_gpu, f"{sign}{three_digits(per_gpu)}"),
            ]
        else:
            row.append(Value.number(at["mean_gpus"], gpus(at["mean_gpus"])))
            row += [Value.digits(at[key]) for key in ("throughput_rps", "good_rps")]
        cost = self.cost(name)
        if priced:
            row += [Value.digits(value) for value in cost or (math.nan, math.nan)]
        shares = ["slo_attainment", *(f"{key}_attainment" for key in self.targets)]
        row += [Value.share(at[key]) for key in shares]
        row += [Value.digits(at["ttft_s_p50"]), Value.digits(at["ttft_s_p95"])]
        row += [Value.digits(at["tpot_s_p50"] / MS), Value.digits(at["tpot_s_p95"] / MS)]
        return [*row, Value.digits(at["e2el_s_p95"])]

    def _remarks(self) -> list[Block]:
        """Return what the table does not show of single strategies."""
        lines = []
        sweep = self.comparison.sweep
        rejected, counted = int(sweep["num_rejected"].sum()), int(sweep["num_requests"].sum())
        if rejected:
            lines.append(f"{rejected} of {counted} requests were rejected; they count as missed.")
        if not counted:
            lines.append("No request is counted: the warm-up or cool-down leaves none.")
        preempted = sweep.groupby("strategy")["num_preemptions"].sum()
        if some := [f"{n} {int(preempted[n])}" for n in self.names if preempted[n]]:
            lines.append(f"Preemptions, all runs together: {', '.join(some)}.")
        return [Bullets(lines)] if lines else []
