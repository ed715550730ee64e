"""Paper against simulated: the tables of docs/ecoserve.md, from the studies' CSVs.

python scenarios/ecoserve/tables.py results/ecoserve docs/ecoserve.md
"""

from __future__ import annotations

import csv
import math
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


def other_targets(folder: Path) -> str:
    """P99 goodputs of all systems under all targets."""
    table = read(folder, "slo")
    found = {(r["ttft_s"], r["tpot_s"], r["name"]): r for r in table}
    names = list(dict.fromkeys(r["name"] for r in table))
    rows = []
    for ttft, tpot in dict.fromkeys((r["ttft_s"], r["tpot_s"]) for r in table):
        cells = [with_interval(found.get((ttft, tpot, name)), "p99") for name in names]
        rows.append([targets(ttft, tpot), *cells])
    return markdown(["P99 goodput (requests/s)", *names], rows)


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
    """Return what writes the goodputs of all systems at one level, and EcoServe's ratios."""

    def write(folder: Path) -> str:
        table = read(folder, "comparison")
        found = {(r["gpu"], r["model"], r["dataset"], r["name"]): r for r in table}
        ratios: dict[str, dict[str, list[tuple[float, float]]]] = {}
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
                if row is not None and number(row, level) and number(ours, level):
                    ratio = number(ours, level) / number(row, level)
                    error = ratio * math.hypot(log_error(ours, level), log_error(row, level))
                    ratios.setdefault(gpu, {}).setdefault(name, []).append((ratio, error))
            rows.append(cells)
        both = {
            name: [pair for of_gpu in ratios.values() for pair in of_gpu.get(name, [])]
            for name in BASELINES
        }
        for scope, of_scope in [*ratios.items(), ("both", both)]:
            means = [_mean(of_scope.get(name, [])) for name in BASELINES]
            rows.append([f"**{scope}: EcoServe over it, mean**", "", *means])
            if level == "p90" and scope in PUBLISHED_RATIOS:
                for title, values in PUBLISHED_RATIOS[scope].items():
                    rows.append([title, "", *values])
        heads = [f"{level.upper()} goodput (requests/s)", "EcoServe", *BASELINES]
        return markdown(heads, rows)

    return write


def _mean(ratios: Sequence[tuple[float, float]]) -> str:
    """Return the mean of ratios and half its interval, their errors taken as independent."""
    if not ratios:
        return "-"
    mean = sum(ratio for ratio, _ in ratios) / len(ratios)
    error = math.sqrt(sum(error**2 for _, error in ratios)) / len(ratios)
    return f"**{mean:.2f}** ± {error:.2f}" if error < mean else f"**{mean:.2f}**"


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
    "target 1": target_1,
    "target 2": target_2,
    "other targets": other_targets,
    "readings": readings("p99"),
    "readings at P90": readings("p90"),
    "target 3": comparison("p90"),
    "comparison at P50": comparison("p50"),
    "comparison at P99": comparison("p99"),
    "target 4": target_4,
    "ablations": plain("ablations", ("model", "name"), ("p50", "p90", "p99")),
    "inputs": plain("inputs", ("input", "name")),
    "slack": plain("slack", ("variant", "slack", "hold_output", "metric")),
    "scaling": plain("scaling", ("instances", "name")),
    "burstiness": plain("burstiness", ("cv", "name")),
    "pipeline": plain("pipeline", ("gpu", "layout", "name")),
    "day": day,
}
NEEDS = {
    "target 2": "slo",
    "other targets": "slo",
    "readings at P90": "readings",
    "target 3": "comparison",
    "comparison at P50": "comparison",
    "comparison at P99": "comparison",
    "target 4": "rising",
}
"""The studies of the tables that are not named as theirs."""


def main(arguments: Sequence[str]) -> None:
    """Put every table whose study has been run between its marks in the document."""
    folder, document = Path(arguments[0]), Path(arguments[1])
    text = document.read_text(encoding="utf-8")
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
    document.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
