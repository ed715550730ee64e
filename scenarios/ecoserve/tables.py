"""Paper against simulated: the tables of two pages, from the studies' CSVs.

python scenarios/ecoserve/tables.py results/ecoserve docs/ecoserve.md docs/ecoserve-studies.md
"""

from __future__ import annotations

import csv
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from simcluster.fidelity.validate import ecoserve_prefill

Row = dict[str, str]

GOODPUT_P99 = {
    ("5", "0.1"): {"EcoServe": 42.0, "vLLM": 16.0, "Sarathi": 28.0},
    ("1", "0.05"): {"EcoServe": 18.0, "vLLM": 6.4, "Sarathi": 7.6},
}
"""EcoServe, SLO sensitivity: P99 goodput (requests/s), CodeLlama2-34B on 16 A800."""

BASELINES = ("vLLM", "Sarathi", "DistServe", "MoonCake")
PUBLISHED_RATIOS = {
    "L20": {
        "published, second version": ("1.96", "1.99", "2.51", "2.40"),
        "published, first version": ("1.82", "1.86", "2.23", "2.27"),
    },
    "both": {"published, second version": ("2.01", "1.87", "3.43", "3.41")},
}
"""EcoServe over `BASELINES`, averages: abstract (32 L20) and body (both clusters) of the paper."""

WIDE = 0.25
"""Half width over the goodput at which the ends of the interval are written out."""


def read(folder: Path, name: str) -> list[Row]:
    """Return the rows of a study; none if it has not been run."""
    path = folder / f"{name}.csv"
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def number(row: Row, name: str) -> float:
    """Return a number of a row, NaN where there is none."""
    return float(row[name]) if row.get(name) else math.nan


def with_interval(row: Row | None, level: str) -> str:
    """Return a goodput and half its interval; the interval itself where it is wide."""
    if row is None or not row.get(level):
        return "-"
    value, low, high = (number(row, level + end) for end in ("", "_low", "_high"))
    if not value:
        return "none"
    half = (high - low) / 2
    if half > WIDE * value:
        return f"{value:.1f} ({low:.1f} to {high:.1f})"
    return f"{value:.1f} ± {half:.1f}"


def log_error(row: Row, level: str) -> float:
    """Return half the interval of the logarithm of a goodput."""
    low, high = number(row, f"{level}_low"), number(row, f"{level}_high")
    return math.log(high / low) / 2 if low > 0 else math.inf


def answer(folder: Path) -> str:
    """What the page says first: every published number beside ours, made of the other tables."""
    whole = ecoserve_prefill.checks()[0]
    rows = [
        [
            "prefill of 8 GPUs, four rates (tokens/s)",
            "6,585 to 26,189",
            "one of the four fitted",
            f"{100 * whole.mean:.1f} (mean)",
        ]
    ]
    for row in read(folder, "scaling"):
        if (row["instances"], row["name"]) == ("8", "EcoServe"):
            each = f"{number(row, 'p90') / 8:.1f}"
            rows.append(
                ["requests/s that four L20 sustain at P90", "2.5 to 3.1 (implied)", each, ""]
            )
    for policy in RISING_SHOWN:
        for row in read(folder, "rising"):
            if row["policy"] == policy:
                ends = [float(row[end]) / INSTANCES_PUBLISHED for end in ("fewest", "most")]
                rows.append(
                    [
                        f"instances after the rising load, {policy}",
                        f"{INSTANCES_PUBLISHED}",
                        _span(row["fewest"], row["most"]),
                        " to ".join(dict.fromkeys(f"{100 * (end - 1):+.0f}" for end in ends)),
                    ]
                )
    for (ttft, tpot), published in GOODPUT_P99.items():
        for row in read(folder, "slo"):
            paper = published.get(row["name"])
            if (row["ttft_s"], row["tpot_s"]) == (ttft, tpot) and paper is not None:
                what = f"P99 goodput of {row['name']}, {targets(ttft, tpot)} (requests/s)"
                rows.append([what, f"{paper:g}", f"{number(row, 'p99'):.1f}", off(row, paper)])
    ratios = ratios_by_gpu(read(folder, "comparison"), "p90")
    scopes = {"L20": ratios.get("L20", {}), "both": _together(ratios)}
    for scope, of_scope in scopes.items():
        where = {"L20": "32 L20", "both": "L20 and A800"}[scope]
        papers = PUBLISHED_RATIOS[scope]["published, second version"]
        for name, paper in zip(BASELINES, papers, strict=True):
            found = [ratio for ratio, _ in of_scope.get(name, [])]
            if not found:
                continue
            both = (statistics.mean(found), statistics.median(found))
            rows.append(
                [
                    f"EcoServe over {name} at P90, {where}: mean (median)",
                    paper,
                    f"{both[0]:.2f} ({both[1]:.2f})",
                    f"{100 * (both[0] / float(paper) - 1):+.0f} "
                    f"({100 * (both[1] / float(paper) - 1):+.0f})",
                ]
            )
    return markdown(["what", "published", "simulated", "off (%)"], rows)


RISING_SHOWN = ("trigger as published", "as published, looked at every 5 s")
INSTANCES_PUBLISHED = 16
Ratios = dict[str, list[tuple[float, float]]]
"""EcoServe over each baseline, case by case, and half the interval."""


def ratios_by_gpu(table: Sequence[Row], level: str) -> dict[str, Ratios]:
    """Return EcoServe's goodput over that of the others, where both have one."""
    found = {(r["gpu"], r["model"], r["dataset"], r["name"]): r for r in table}
    ratios: dict[str, Ratios] = {}
    for gpu, model, dataset in dict.fromkeys(key[:3] for key in found):
        ours = found.get((gpu, model, dataset, "EcoServe"))
        for name in BASELINES:
            row = found.get((gpu, model, dataset, name))
            if ours is None or row is None or not number(row, level) or not number(ours, level):
                continue
            ratio = number(ours, level) / number(row, level)
            error = ratio * math.hypot(log_error(ours, level), log_error(row, level))
            ratios.setdefault(gpu, {}).setdefault(name, []).append((ratio, error))
    return ratios


def _together(ratios: dict[str, Ratios]) -> Ratios:
    """Return the ratios of all GPUs."""
    return {
        name: [pair for of_gpu in ratios.values() for pair in of_gpu.get(name, [])]
        for name in BASELINES
    }


def target_1(_: Path) -> str:
    """Prefill tokens/s of a node."""
    rows = []
    for found, (model, gpu, tp_size, published) in zip(
        ecoserve_prefill.checks()[1:], ecoserve_prefill.PUBLISHED, strict=True
    ):
        node = f"8 x {gpu}, TP {tp_size}"
        made = published * (1 + found.bias)
        rows.append([model, node, f"{published:,.0f}", f"{made:,.0f}", f"{100 * found.bias:+.1f}"])
    return markdown(["model", "node", "published (tokens/s)", "simulated", "off (%)"], rows)


def target_2(folder: Path) -> str:
    """P99 goodputs under relaxed and strict targets."""
    found = {(r["ttft_s"], r["tpot_s"], r["name"]): r for r in read(folder, "slo")}
    released = {
        (r["ttft_s"], r["tpot_s"], r["name"]): r
        for r in read(folder, "readings")
        if r["reading"] == "after release"
    }
    rows = []
    for (ttft, tpot), published in GOODPUT_P99.items():
        for name in ("EcoServe", "EcoServe (paper)", "vLLM", "Sarathi", "DistServe", "MoonCake"):
            row = found.get((ttft, tpot, name))
            if row is None:
                continue
            paper = published.get(name)
            cells = [targets(ttft, tpot), row["system"], "n/a" if paper is None else f"{paper:g}"]
            for by in (row, released.get((ttft, tpot, name))):
                cells += [with_interval(by, "p99"), off(by, paper)]
            rows.append([*cells, with_interval(row, "p90"), row["user_ttft_s"]])
    heads = ["targets", "system", "P99 published", "P99 simulated", "off (%)"]
    heads += ["P99, TPOT after the release", "off (%)", "P90 simulated"]
    return markdown([*heads, "median user TTFT at P90 (s)"], rows)


def off(row: Row | None, paper: float | None) -> str:
    """Return how far a P99 goodput is from the published one (%)."""
    if row is None or paper is None:
        return ""
    return f"{100 * (number(row, 'p99') / paper - 1):+.0f}"


def readings(level: str) -> Callable[[Path], str]:
    """Return what writes the goodputs by what the paper's TPOT could mean."""

    def write(folder: Path) -> str:
        table = read(folder, "readings")
        found = {(r["ttft_s"], r["tpot_s"], r["name"], r["reading"]): r for r in table}
        kinds = list(dict.fromkeys(r["reading"] for r in table))
        rows = []
        for ttft, tpot, name in dict.fromkeys(key[:3] for key in found):
            cells = [with_interval(found.get((ttft, tpot, name, kind)), level) for kind in kinds]
            paper = GOODPUT_P99.get((ttft, tpot), {}).get(name)
            known = [] if level != "p99" else ["n/a" if paper is None else f"{paper:g}"]
            rows.append([targets(ttft, tpot), name, *known, *cells])
        published = ["published"] if level == "p99" else []
        return markdown(["targets", "system", *published, *kinds], rows)

    return write


def targets(ttft_s: str, tpot_s: str) -> str:
    """Return the targets in words."""
    return f"{ttft_s} s, {1000 * float(tpot_s):g} ms"


def comparison(level: str) -> Callable[[Path], str]:
    """Return what writes the goodputs of all systems at one level, and EcoServe's ratios.

    The mean is the paper's word; the median says what a case far out does to it.
    """

    def write(folder: Path) -> str:
        table = read(folder, "comparison")
        found = {(r["gpu"], r["model"], r["dataset"], r["name"]): r for r in table}
        ratios = ratios_by_gpu(table, level)
        rows = []
        for gpu, model, dataset in dict.fromkeys(key[:3] for key in found):
            ours = found.get((gpu, model, dataset, "EcoServe"))
            if ours is None:
                continue
            cells = [f"{gpu}, {model}, {dataset.removesuffix('-ecoserve')}"]
            cells.append(with_interval(ours, level))
            for name in BASELINES:
                row = found.get((gpu, model, dataset, name))
                option = "" if row is None else row["system"].removeprefix(name).strip()
                cells.append(with_interval(row, level) + (f" ({option})" if option else ""))
            rows.append(cells)
        for scope, of_scope in [*ratios.items(), ("both", _together(ratios))]:
            means = [_mean(of_scope.get(name, [])) for name in BASELINES]
            rows.append([f"**{scope}: EcoServe over it, mean**", "", *means])
            middle = [_median(of_scope.get(name, [])) for name in BASELINES]
            rows.append([f"{scope}: median", "", *middle])
            if scope in PUBLISHED_RATIOS:
                for title, values in PUBLISHED_RATIOS[scope].items():
                    rows.append([title, "", *values])
        heads = [f"{level.upper()} goodput (requests/s)", "EcoServe", *BASELINES]
        return markdown(heads, rows)

    return write


STREAMS = "a stream for each instance"
"""Input: no router, so that each instance has its own Poisson arrivals. EcoServe has none such."""
CAUSES = (
    "as it stands",
    STREAMS,
    "shortest 3 % as in ShareGPT",
    "GPUs idle for 13 ms a step",
    f"{STREAMS}, both: short answers, idle GPUs",
)


def causes(folder: Path) -> str:
    """P99 goodputs by what might hold vLLM at the published one."""
    found = {(r["input"], r["name"]): r for r in read(folder, "inputs")}
    published = GOODPUT_P99["5", "0.1"]
    names = ("EcoServe", "Sarathi", "vLLM")
    rows = [["published", *(f"{published[name]:g}" for name in names), ""]]
    for what in CAUSES:
        plain_what = what.removeprefix(f"{STREAMS}, ")
        own = [found.get((what, name), found.get((plain_what, name))) for name in names]
        cells = [with_interval(row, "p99") for row in own]
        rows.append([what, *cells, off(own[-1], published["vLLM"])])
    return markdown(["P99 goodput (requests/s)", *names, "vLLM off (%)"], rows)


def _mean(ratios: Sequence[tuple[float, float]]) -> str:
    """Return the mean of ratios and half its interval, their errors taken as independent."""
    if not ratios:
        return "-"
    mean = sum(ratio for ratio, _ in ratios) / len(ratios)
    error = math.sqrt(sum(error**2 for _, error in ratios)) / len(ratios)
    return f"**{mean:.2f}** ± {error:.2f}" if error < mean else f"**{mean:.2f}**"


def _median(ratios: Sequence[tuple[float, float]]) -> str:
    """Return the median of ratios."""
    return f"{statistics.median(ratio for ratio, _ in ratios):.2f}" if ratios else "-"


def target_4(folder: Path) -> str:
    """Instances under a rising load."""
    rows = [
        [r["policy"], f"{100 * float(r['attainment']):.0f}", _span(r["fewest"], r["most"])]
        for r in read(folder, "rising")
    ]
    return markdown(
        ["policy", "within targets, whole run (%)", "instances at the end"],
        [["published", "dips to about 85", "16 (split at the twelfth)"], *rows],
    )


def _span(fewest: str, most: str) -> str:
    """Return a number, or two with what is between."""
    return most if fewest == most else f"{fewest} to {most}"


def day(folder: Path) -> str:
    """GPU-hours over a day."""
    rows = []
    for r in read(folder, "day"):
        share = f"{100 * float(r['attainment']):.1f}"
        cost = f"{r['cost']} {r['currency']}".strip() or "no price known"
        rows.append([r["policy"], share, r["gpu_hours"], r["good_per_gpu_hour"], cost])
    heads = ["policy", "within targets (%)", "GPU-hours", "good requests per GPU-hour", "cost"]
    return markdown(heads, rows)


def plain(
    name: str, heads: Sequence[str], levels: Sequence[str] = ("p90", "p99")
) -> Callable[[Path], str]:
    """Return what writes the goodputs of a study."""

    def write(folder: Path) -> str:
        rows = [
            [row[head] for head in heads] + [with_interval(row, level) for level in levels]
            for row in read(folder, name)
        ]
        return markdown([*heads, *(f"{level.upper()} goodput" for level in levels)], rows)

    return write


TABLES: dict[str, Callable[[Path], str]] = {
    "answer": answer,
    "target 1": target_1,
    "target 2": target_2,
    "readings": readings("p99"),
    "readings at P90": readings("p90"),
    "causes": causes,
    "target 3": comparison("p90"),
    "target 4": target_4,
    "ablations": plain("ablations", ("model", "name")),
    "inputs": plain("inputs", ("input", "name")),
    "slack": plain("slack", ("variant", "slack", "hold_output", "metric")),
    "scaling": plain("scaling", ("instances", "name")),
    "burstiness": plain("burstiness", ("cv", "name")),
    "pipeline": plain("pipeline", ("gpu", "layout", "name")),
    "day": day,
}
NEEDS = {
    "answer": "comparison",
    "target 2": "slo",
    "readings at P90": "readings",
    "target 3": "comparison",
    "target 4": "rising",
    "causes": "inputs",
}
"""The studies of the tables that are not named as theirs."""


def main(arguments: Sequence[str]) -> None:
    """Put every table whose study has been run between its marks in the documents."""
    folder = Path(arguments[0])
    for document in map(Path, arguments[1:]):
        document.write_text(filled(document.read_text(encoding="utf-8"), folder), encoding="utf-8")


def filled(text: str, folder: Path) -> str:
    """Return the page `text` with its tables from `folder`."""
    for name, write in TABLES.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->\n"
        if start not in text:
            continue
        if name != "target 1" and not read(folder, NEEDS.get(name, name)):
            print(f"{name}: not run, left as it is")
            continue
        before, rest = text.split(start)
        text = before + start + "\n" + write(folder) + "\n" + end + rest.split(end)[1]
        print(f"{name}: written")
    return text


if __name__ == "__main__":
    main(sys.argv[1:])
