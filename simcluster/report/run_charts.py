"""Charts of a run or a comparison: by rate, latencies, where time goes, over time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from simcluster.frames.breakdown import E2E_PARTS, TTFT_PARTS, e2e_parts, mean_parts, ttft_parts
from simcluster.frames.goodput import (
    mean_attainment,
    met,
    target_of,
    three_digits,
    wanted_shares,
)
from simcluster.frames.itl import GapsInParts
from simcluster.frames.metrics import (
    binned_average,
    ecdf,
    level_over_time,
    mean_by_arrival,
    measured_window,
    request_metrics,
    waiting_over_time,
)
from simcluster.frames.schema import Columns
from simcluster.report import charts
from simcluster.report.difference import SIGNS
from simcluster.report.page import (
    Block,
    Chart,
    Choice,
    Table,
    Text,
    Value,
    percent,
)
from simcluster.report.run_facts import RunFacts, known
from simcluster.runs.cell import Cell
from simcluster.units import MS, FloatArray

_MOST_RATES: Final = 12
"""Rates whose distributions are in the page: those next to the one that is shown first."""
_BINS: Final = 150
_SHOWN_AFTER_ARRIVALS: Final = 1.5
"""Times over the last arrival that are shown of a run: how it empties is seldom asked."""
_WINDOWS_S: Final = 60.0
"""What the chart of rolling activation shows of a run (s)."""
_MOST_BARS: Final = 4000
"""Most steps in that chart; with more of them it ends sooner."""
_LATENCIES: Final = (
    ("ttft_s", "TTFT", "s", 1.0),
    ("tpot_s", "TPOT", "ms", MS),
    ("itl_s", "ITL", "ms", MS),
    ("e2el_s", "End to end", "s", 1.0),
)
_IN_ORDER: Final = {
    "orientation": "h",
    "traceorder": "normal",
    "y": 1.02,
    "yanchor": "bottom",
    "x": 0,
    "xanchor": "left",
}
"""A legend above the chart, in the order of the bars."""
_PARTS: Final = {
    "routing": "waits for an instance or a window",
    "queue": "queue of the instance",
    "prefill": "prefill",
    "transfer": "KV transfer",
    "held": "first token held back",
    "pause": "waits for decode",
    "decode": "decode",
    "release": "last token held back",
}
"""Names of the parts of a latency in legends."""


class RunCharts(RunFacts):
    """The charts, and the tables behind them."""

    def by_rate(self) -> list[Block]:
        """Return attainment, goodput and latency by offered rate."""
        blocks: list[Block] = [self._attainment(), self._goodput_bars()]
        blocks += [self._throughput(), self._attainment_table()]
        return blocks

    def _attainment(self) -> Chart:
        keys = ["slo_attainment", *(f"{key}_attainment" for key in self.targets)]
        wanted = wanted_shares(self.slo)
        choices = []
        for key in keys if len(keys) > 2 else keys[:1]:
            level = wanted.get(key, self.slo.attainment)
            label = "all targets" if key == "slo_attainment" else f"the {target_of(key)} target"
            mark = charts.target_line(level, f"{100 * level:g} % wanted", across=True)
            choices.append(Choice(label, self._attainment_traces(key), mark))
        sweep = self.comparison.sweep
        ends = [
            ", ".join(
                f"{name} {met(known(share))} %"
                for name, share in sweep[sweep["rate_rps"] == rate]
                .groupby("strategy", sort=False)["slo_attainment"]
                .mean()
                .items()
            )
            for rate in (self.rates[0], self.rates[-1])
        ]
        return Chart(
            "Share of the requests within the targets, by offered rate",
            f"At {self.rates[0]:g} requests/s: {ends[0]}; at {self.rates[-1]:g}: {ends[1]}. "
            "Whiskers: intervals of about 95 %.",
            choices,
            charts.layout(
                charts.axis("Offered rate (requests/s)", rangemode="tozero"),
                charts.percent_axis("Share of the requests"),
                height=420,
            ),
            asks="Within ",
        )

    def _attainment_traces(self, key: str) -> list[dict[str, Any]]:
        sweep, traces = self.comparison.sweep, []
        for name in self.names:
            own = sweep[sweep["strategy"] == name]
            # A share that is not known (of a target that no request of a run has) is a gap.
            own = own[own[key].notna()]
            rates, shares = np.empty(0), np.empty(0)
            if len(own):
                rates, shares = mean_attainment(own["rate_rps"], own[key])
            traces += charts.lines(
                self.styles,
                {name: (charts.numbers(rates), charts.numbers(shares))},
                mode="lines+markers",
                marker=self.styles.marker(name),
                hovertemplate="%{x:.4g} req/s: %{y:.1%}<extra>%{fullData.name}</extra>",
            )
            if key == "slo_attainment":
                errors = [
                    2 * float(np.sqrt((at["attainment_error"] ** 2).sum()) / len(at))
                    for _, at in own.groupby("rate_rps")
                ]
                bars = {"type": "data", "array": charts.numbers(errors), "thickness": 1.2}
                traces[-1]["error_y"] = bars
        return traces

    def _goodput_bars(self) -> Chart:
        currency = self.comparison.scenario.environment.cluster.currency
        rows = [self.goodputs[name] for name in self.names]
        ends = [(row["goodput_rps"] - row["goodput_rps_error"], row["goodput_rps"]) for row in rows]
        measures = [
            ("requests/s", [1.0 for _ in rows]),
            ("requests/s per GPU", [1 / row["mean_gpus"] for row in rows]),
        ]
        if self.cost(self.names[0]) is not None:
            price = self.comparison.scenario.environment.cluster.price_per_gpu_hour or math.nan
            scale = [3600 / (row["mean_gpus"] * price) for row in rows]
            measures.append((f"requests per {currency}", scale))
        choices = []
        for unit, scales in measures:
            bounds = [row["goodput_rps"] * s for row, s in zip(rows, scales, strict=True)]
            # What is less than the lowest rate of the sweep has no bar: its bound is no goodput.
            values = [
                math.nan if row["censored"] == "below" else bound
                for row, bound in zip(rows, bounds, strict=True)
            ]
            lows = [low * s for (low, _), s in zip(ends, scales, strict=True)]
            highs = [2 * value - low for value, low in zip(values, lows, strict=True)]
            labels = [
                f"{name}: {SIGNS[row['censored']]}{three_digits(bound)}"
                if row["censored"]
                else name
                for name, row, bound in zip(self.names, rows, bounds, strict=True)
            ]
            bars = charts.interval_bars(
                labels,
                values,
                lows,
                highs,
                [self.styles.colour(name) for name in self.names],
                ["" for _ in rows],
            )
            title = f"Goodput ({unit})"
            choices.append(Choice(unit, [bars], {"xaxis": charts.axis(title, rangemode="tozero")}))
        order = [
            name
            for name in sorted(self.names, key=self.order)
            if self.goodputs[name]["censored"] != "below"
        ]
        none = [name for name in self.names if name not in order]
        said = f"From most to least: {', '.join(order)}. " if order else ""
        if none:
            said += f"Less than the lowest rate of the sweep: {', '.join(none)}. "
        return Chart(
            "Goodput: the highest rate within the targets",
            f"{said}Whiskers: what chance and the grid leave "
            "open, about 95 %; without whiskers that is not known.",
            choices,
            charts.bars_layout("Goodput", len(rows)),
            asks="Goodput in ",
        )

    def _throughput(self) -> Chart:
        sweep = self.comparison.sweep
        choices = []
        for key, name, unit, scale in _LATENCIES[:2]:
            points = {}
            for one in self.names:
                means = sweep[sweep["strategy"] == one].groupby("rate_rps").mean(numeric_only=True)
                x, y = means["throughput_rps"], means[f"{key}_p95"] / scale
                points[one] = (charts.numbers(x), charts.numbers(y))
            traces = charts.lines(
                self.styles,
                points,
                mode="lines+markers",
                hovertemplate="%{x:.4g} req/s: %{y:.4g} "
                + unit
                + "<extra>%{fullData.name}</extra>",
            )
            for trace, one in zip(traces, self.names, strict=True):
                trace["marker"] = self.styles.marker(one)
            y_axis = charts.axis(f"P95 of the {name} ({unit})", type="log", dtick="D2")
            target = getattr(self.slo, key)
            mark = {}
            if target is not None and not self.slo.classes:
                text = f"target {target / scale:g} {unit}"
                mark = charts.target_line(target / scale, text, across=True)
                # Shapes on logarithmic axes take the value, annotations its logarithm.
                mark["annotations"][0]["y"] = math.log10(target / scale)
            choices.append(Choice(f"P95 of the {name}", traces, {"yaxis": y_axis, **mark}))
        return Chart(
            "Latency against throughput",
            "Each point is a rate of the sweep. Further right more requests finish per second; "
            "further up they take longer.",
            choices,
            charts.layout(charts.axis("Finished (requests/s)", rangemode="tozero"), {}, height=420),
            asks="Latency: ",
        )

    def _attainment_table(self) -> Table:
        sweep = self.comparison.sweep
        means = sweep.groupby(["strategy", "rate_rps"])["slo_attainment"].mean().to_dict()
        rows = [
            [
                Value.word(name),
                *(Value.share(means.get((name, rate), math.nan)) for rate in self.rates),
            ]
            for name in self.names
        ]
        heads = ["Strategy", *(f"{rate:g} req/s" for rate in self.rates)]
        return Table("The shares within the targets as a table (%)", heads, rows, folded=True)

    # Latencies ----------------------------------------------------------------------------------

    def _shown_rates(self) -> list[float]:
        """Return the rates whose distributions are shown: those nearest to `rate`."""
        near = sorted(self.rates, key=lambda rate: abs(rate - self.rate))
        return sorted(near[:_MOST_RATES])

    def distributions(self) -> Chart:
        """Return the distributions of the latencies, with the targets."""
        choices: list[Choice] = []
        first = 0
        for rate in self._shown_rates() or [math.nan]:
            requests = self._requests_at(rate)
            for key, name, unit, scale in _LATENCIES:
                is_itl = key == "itl_s"
                if is_itl and not (math.isnan(rate) or rate == self.rate):
                    continue  # needs every step of a run: of the first choice alone
                points = self._itl() if is_itl else self._ecdfs(requests, key, scale)
                target = None if self.slo.classes else getattr(self.slo, key)
                mark = {}
                if target is not None:
                    what = "target of the P99" if is_itl else "target"
                    mark = charts.target_line(target / scale, f"{what} {target / scale:g} {unit}")
                traces = charts.lines(
                    self.styles,
                    points,
                    line={"shape": "hv"},
                    hovertemplate="%{y:.1%} within %{x:.4g} "
                    + unit
                    + "<extra>%{fullData.name}</extra>",
                )
                if rate == self.rate and key == "ttft_s":
                    first = len(choices)
                at = "" if math.isnan(rate) else f" at {rate:g} requests/s"
                x = charts.axis(f"{name} ({unit})", rangemode="tozero")
                x["range"] = [0, _reach(points, None if target is None else target / scale)]
                choices.append(Choice(f"{name}{at}", traces, {"xaxis": x, **mark}))
        return Chart(
            "Share of the requests (of the gaps, for the ITL) within a latency",
            "Each line rises from 0 to 100 %. A line that ends below 100 % has requests that were "
            "rejected or did not finish. The dotted line is the target.",
            choices,
            charts.layout({}, charts.percent_axis("Share"), height=440),
            asks="Show ",
            first=first,
            note="One seed. TTFT: first output - arrival; TPOT: (last output - first output) / "
            "(output length - 1); ITL: every gap between two tokens of all requests.",
        )

    def _requests_at(self, rate: float) -> dict[str, Columns]:
        """Return the requests frame of the first run of each strategy at `rate`."""
        found: dict[str, Columns] = {}
        for cell in self.comparison.cells():
            if cell.strategy in found or not (math.isnan(rate) or cell.rate_rps == rate):
                continue
            if cell.strategy in self.frames and (math.isnan(rate) or rate == self.rate):
                found[cell.strategy] = self.frames[cell.strategy]["requests"]
            else:
                found[cell.strategy] = self._requests_of(cell)
        return found

    def _requests_of(self, cell: Cell) -> Columns:
        frame = self.comparison.requests(*cell[:3])
        return {str(name): frame[name].to_numpy() for name in frame.columns}

    def _counted(self, requests: Columns) -> Any:
        run = self.comparison.scenario.run
        return measured_window(requests, run.warmup_s, run.cooldown_s)

    def _ecdfs(self, requests: Mapping[str, Columns], key: str, scale: float) -> dict[str, Any]:
        points = {}
        for name, columns in requests.items():
            counted = self._counted(columns)
            values = request_metrics(columns, self.slo.metric)[key] / scale
            finished = np.asarray(columns["status"], dtype=object) == "finished"
            values = np.where(finished, values, np.nan)
            if key == "tpot_s":
                counted = counted & (np.asarray(columns["output_len"]) > 1)
            x, share = ecdf(values[counted])
            points[name] = charts.distribution(x, np.diff(share, prepend=0.0), 1.0)
        return points

    def _itl(self) -> dict[str, Any]:
        points = {}
        for name, frames in self.frames.items():
            requests = frames["requests"]
            finished = np.asarray(requests["status"], dtype=object) == "finished"
            gaps = GapsInParts(frames, self.comparison.scenario.environment)
            values, counts = gaps.distribution(self._counted(requests) & finished)
            points[name] = charts.distribution(values / MS, counts, float(counts.sum()))
        return points

    # Time ---------------------------------------------------------------------------------------

    def time_goes(self) -> list[Block]:
        """Return where the time of a request goes, as a chart and a table."""
        names = list(self.frames)
        at = "" if math.isnan(self.rate) else f" at {self.rate:g} requests/s"
        e2e, ttft = self._means(e2e_parts), self._means(ttft_parts)
        longest = [
            max(zip(values, e2e, strict=True), key=lambda pair: known(pair[0]))[1]
            for values in zip(*e2e.values(), strict=True)
        ]
        words = ", ".join(f"{n}: {_PARTS[part]}" for n, part in zip(names, longest, strict=True))
        chart = Chart(
            f"Mean time of a finished request{at}, by what it is spent on",
            f"The longest part: {words}.",
            [
                Choice("to the first output (TTFT)", self._stack(ttft, names)),
                Choice("to the last output (end to end)", self._stack(e2e, names)),
            ],
            {**charts.bars_layout("Mean time (s)", len(names)), "barmode": "stack"}
            | {"showlegend": True, "height": 200 + 38 * len(names), "legend": _IN_ORDER},
            asks="Time ",
        )
        return [chart, self._parts_table(names, ttft, e2e)]

    def _means(self, parts_of: Any) -> dict[str, list[float]]:
        """Return the mean of each part for each strategy; parts of no time are left out."""
        means = [
            mean_parts(parts_of(frames["requests"]), self._finished(frames["requests"]))
            for frames in self.frames.values()
        ]
        by_part = {part: [own[part] for own in means] for part in means[0]}
        kept = ("queue", "prefill", "decode")
        return {p: v for p, v in by_part.items() if p in kept or any(known(x) > 0 for x in v)}

    def _finished(self, requests: Columns) -> Any:
        finished = np.asarray(requests["status"], dtype=object) == "finished"
        return self._counted(requests) & finished

    def _stack(self, parts: Mapping[str, Sequence[float]], names: list[str]) -> Any:
        return charts.stacked({_PARTS[part]: values for part, values in parts.items()}, names)

    def _parts_table(
        self,
        names: list[str],
        ttft: Mapping[str, Sequence[float]],
        e2e: Mapping[str, Sequence[float]],
    ) -> Table:
        rows = []
        for what, parts, meanings in (("TTFT", ttft, TTFT_PARTS), ("end to end", e2e, E2E_PARTS)):
            for part, values in parts.items():
                label = Value.word(f"{what}: {_PARTS[part]}", meanings[part])
                rows.append([label, *(Value.digits(value) for value in values)])
        return Table("The same as a table (mean seconds)", ["Part", *names], rows, folded=True)

    def over_time(self) -> list[Block]:
        """Return queues, KV cache, links and turns of instances over time."""
        end = max(
            (
                float(np.nanmax(f["requests"]["last_output_s"], initial=0.0))
                for f in self.frames.values()
            ),
            default=0.0,
        )
        if end <= 0:
            return [Text("No request was finished.")]
        arrivals = [
            float(np.max(f["requests"]["arrival_s"], initial=0.0)) for f in self.frames.values()
        ]
        shown = min(end, _SHOWN_AFTER_ARRIVALS * max(arrivals) or end)
        edges = np.linspace(0.0, shown, _BINS + 1)
        middles = charts.numbers((edges[:-1] + edges[1:]) / 2)
        rest = f"Not shown: {shown:.0f} to {end:.0f} s, when no request arrives."
        blocks: list[Block] = [self._levels(edges, middles, rest if shown < end else "")]
        if links := self._links():
            blocks.append(links)
        blocks += self._rolling()
        return blocks

    def _levels(self, edges: FloatArray, middles: list[float | None], note: str) -> Chart:
        kv, waiting, ttft = {}, {}, {}
        for name, frames in self.frames.items():
            own = level_over_time(frames["spans"], "kv_usage")
            kv[name] = (middles, charts.numbers(binned_average(*own, edges)))
            own = waiting_over_time(frames["requests"])
            waiting[name] = (middles, charts.numbers(binned_average(*own, edges)))
            values = request_metrics(frames["requests"], self.slo.metric)["ttft_s"]
            bounds, means = mean_by_arrival(frames["requests"], values, _BINS)
            centres = charts.numbers((bounds[:-1] + bounds[1:]) / 2)
            ttft[name] = (centres, charts.numbers(means))
        x = charts.axis("Time (s)")

        def of(points: Any, unit: str) -> Any:
            shown = "%{x:.4g} s: %{y" + unit + "}<extra>%{fullData.name}</extra>"
            return charts.lines(self.styles, points, hovertemplate=shown, connectgaps=False)

        return Chart(
            "Queue, TTFT and KV cache over time",
            "A queue or a TTFT that keeps rising means overload.",
            [
                Choice(
                    "requests waiting for their first step",
                    of(waiting, ":.4g"),
                    {"yaxis": charts.axis("Requests waiting", rangemode="tozero")},
                ),
                Choice(
                    "TTFT by time of arrival",
                    of(ttft, ":.4g"),
                    {"yaxis": charts.axis("Mean TTFT (s)", rangemode="tozero")},
                ),
                Choice(
                    "KV blocks in use, mean over the instances",
                    of(kv, ":.1%"),
                    {"yaxis": charts.percent_axis("KV blocks in use")},
                ),
            ],
            charts.layout(x, {}),
            asks="Show ",
            note=note,
        )

    def _links(self) -> Chart | None:
        """Return the utilisation of the busiest link of each strategy; None where no KV moves."""
        points, words = {}, []
        for name, frames in self.frames.items():
            links = frames["links"]
            link = np.asarray(links["link"], dtype=object)
            use = np.asarray(links["utilisation"], dtype=np.float64)
            if not link.size:
                continue
            means = {str(one): float(use[link == one].mean()) for one in dict.fromkeys(link)}
            busiest = max(means, key=lambda one: (means[one], one))
            own = link == busiest
            starts = np.asarray(links["start_s"])[own]
            points[name] = (charts.numbers(starts), charts.numbers(use[own]))
            words.append(f"{name}: {busiest} ({percent(means[busiest])} on average)")
        if not points:
            return None
        traces = charts.lines(
            self.styles,
            points,
            line={"shape": "hv", "width": 1.5},
            hovertemplate="%{x:.4g} s: %{y:.1%}<extra>%{fullData.name}</extra>",
        )
        return Chart(
            "Use of the busiest link by KV transfers",
            f"{'; '.join(words)}.",
            [Choice("", traces)],
            charts.layout(charts.axis("Time (s)"), charts.percent_axis("Utilisation"), height=320),
        )

    def _rolling(self) -> list[Block]:
        """Return the chart of turns of each strategy with prefill windows."""
        return [
            self._turns(name, frames)
            for name, frames in self.frames.items()
            if len(frames["windows"]["macro"])
        ]

    def _turns(self, name: str, frames: Mapping[str, Columns]) -> Chart:
        spans, windows = frames["spans"], frames["windows"]
        start = float(np.median(np.asarray(windows["opened_s"], dtype=np.float64)))
        starts = np.asarray(spans["start_s"], dtype=np.float64)
        ends = np.asarray(spans["end_s"], dtype=np.float64)
        last = float(ends.max(initial=start))
        end = min(start + _WINDOWS_S, last)
        # Of a run that ends sooner, as much as there is: back to its begin.
        start = max(float(starts.min(initial=start)), min(start, last - _WINDOWS_S))
        shown = (starts < end) & (ends > start)
        if shown.sum() > _MOST_BARS:
            end = float(np.sort(starts[starts > start])[:_MOST_BARS][-1])
            shown = (starts < end) & (ends > start)
        kinds = np.asarray(spans["kind"], dtype=object)
        rows = [f"instance {i}" for i in np.asarray(spans["instance"], dtype=np.int64)]
        traces: list[dict[str, Any]] = []
        opened = np.asarray(windows["opened_s"], dtype=np.float64)
        closed = np.asarray(windows["closed_s"], dtype=np.float64)
        own = (opened < end) & (closed > start)
        traces.append(
            _bars(
                "open prefill window",
                [f"instance {i}" for i in np.asarray(windows["instance"])[own]],
                np.maximum(opened[own], start),
                np.minimum(closed[own], end),
                "rgba(230,159,0,0.35)",
                0.9,
            )
        )
        for kind, colour in (("prefill", "#D55E00"), ("decode", "#8FC5E8"), ("mixed", "#CC79A7")):
            mine = shown & (kinds == kind)
            if mine.any():
                names = [rows[i] for i in np.flatnonzero(mine)]
                traces.append(
                    _bars(
                        f"{kind} steps",
                        names,
                        np.maximum(starts[mine], start),
                        np.minimum(ends[mine], end),
                        colour,
                        0.45,
                    )
                )
        count = len(set(rows))
        y: dict[str, Any] = {"type": "category", "autorange": "reversed", "ticksuffix": " "}
        y["categoryorder"] = "array"
        y["categoryarray"] = sorted(set(rows), key=lambda row: int(row.split()[1]))
        return Chart(
            f"Rolling activation of {name}: who prefills when",
            f"Instances take turns: one has an open prefill window, the others decode "
            f"({start:.0f} to {end:.0f} s).",
            [Choice("", traces)],
            charts.layout(
                charts.axis("Time (s)", range=[start, end]),
                y,
                height=170 + 30 * count,
                barmode="overlay",
            ),
        )


def _bars(
    name: str, rows: list[str], starts: FloatArray, ends: FloatArray, colour: str, width: float
) -> dict[str, Any]:
    """Return bars over time."""
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "y": rows,
        "base": charts.numbers(starts),
        "x": charts.numbers(ends - starts),
        "width": width,
        "marker": {"color": colour, "line": {"width": 0}},
        "hovertemplate": "%{base:.3f} s, %{x:.3f} s long<extra>%{fullData.name}</extra>",
    }


def _reach(points: Mapping[str, tuple[list[Any], list[Any]]], target: float | None) -> float:
    """Return where the axis of latencies ends: past the target and 99 % of the requests."""
    ends = [target or 0.0]
    for x, share in points.values():
        ends += [a for a, b in zip(x, share, strict=True) if b <= 0.99 * share[-1]][-1:]
    return 1.15 * max(ends) or 1.0
