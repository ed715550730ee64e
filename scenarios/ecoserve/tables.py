"""Paper against simulated: the tables of docs/ecoserve.md, from the studies' CSVs.

python scenarios/ecoserve/tables.py results/ecoserve docs/ecoserve.md
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from simcluster.accuracy import ecoserve_prefill

Row = dict[str, str]

GOODPUT_P99 = {
    ("5", "0.1"): {"EcoServe": 42.0, "vLLM": 16.0, "Sarathi": 28.0},
    ("1", "0.05"): {"EcoServe": 18.0, "vLLM": 6.4, "Sarathi": 7.6},
}
"""EcoServe, SLO sensitivity: P99 goodput (requests/s), CodeLlama2-34B on 16 A800."""

RATIOS_L20 = {
    "vLLM": (1.96, 1.82),
    "Sarathi": (1.99, 1.86),
    "DistServe": (2.51, 2.23),
    "MoonCake": (2.40, 2.27),
}
"""EcoServe over each system on 32 L20, average: second version, first version of the paper."""

BASELINES = tuple(RATIOS_L20)


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


def with_interval(row: Row, level: str) -> str:
    """Return a goodput and the half width of its interval."""
    if not row.get(level):
        return "-"
    width = row[f"{level}_ci"]
    return f"{float(row[level]):.1f}" + ("" if width == "nan" else f" ± {float(width):.1f}")


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
    rows = []
    for (ttft, tpot), published in GOODPUT_P99.items():
        for name in ("EcoServe", "EcoServe (paper)", "vLLM", "Sarathi", "DistServe", "MoonCake"):
            row = found.get((ttft, tpot, name))
            if row is None:
                continue
            paper = published.get(name)
            off = "" if paper is None else f"{100 * (float(row['p99']) / paper - 1):+.0f}"
            targets = f"{ttft} s, {1000 * float(tpot):g} ms"
            known = "n/a" if paper is None else f"{paper:g}"
            cells = [targets, row["system"], known, with_interval(row, "p99"), off]
            rows.append([*cells, with_interval(row, "p90"), row["user_ttft_s"]])
    heads = ["targets", "system", "P99 published", "P99 simulated", "off (%)", "P90 simulated"]
    return markdown([*heads, "median user TTFT at P90 (s)"], rows)


def target_3(folder: Path) -> str:
    """Ratios of goodputs at P90, and their averages."""
    table = read(folder, "comparison")
    found = {(r["gpu"], r["model"], r["dataset"], r["name"]): r for r in table}
    rows = []
    for gpu in dict.fromkeys(r["gpu"] for r in table):
        ratios: dict[str, list[float]] = {name: [] for name in BASELINES}
        cases = dict.fromkeys((r["model"], r["dataset"]) for r in table if r["gpu"] == gpu)
        for model, dataset in cases:
            ours = found[gpu, model, dataset, "EcoServe"]
            cells = [f"{gpu}, {model}, {dataset.removesuffix('-ecoserve')}"]
            cells.append(with_interval(ours, "p90"))
            for name in BASELINES:
                row = found.get((gpu, model, dataset, name))
                if row is None or not float(row["p90"]):
                    cells.append("-" if row is None else "0")
                    continue
                ratios[name].append(float(ours["p90"]) / float(row["p90"]))
                option = row["system"].removeprefix(name).strip()
                cells.append(with_interval(row, "p90") + (f" ({option})" if option else ""))
            rows.append(cells)
        means = [
            f"**{sum(values) / len(values):.2f}**" if values else "-" for values in ratios.values()
        ]
        rows.append([f"**{gpu}: EcoServe over it, mean**", "", *means])
        if gpu == "L20":
            paper = [f"{second:g} / {first:g}" for second, first in RATIOS_L20.values()]
            rows.append(["published, second / first version", "", *paper])
    return markdown(["P90 goodput (requests/s)", "EcoServe", *BASELINES], rows)


def target_4(folder: Path) -> str:
    """Instances under a rising load."""
    rows = [
        [r["policy"], f"{100 * float(r['attainment']):.0f}", r["most_instances"]]
        for r in read(folder, "rising")
    ]
    return markdown(
        ["policy", "within targets, whole run (%)", "instances at the end"],
        [["published", "dips to about 85", "16 (split at the twelfth)"], *rows],
    )


def day(folder: Path) -> str:
    """GPU-hours over a day."""
    rows = []
    for r in read(folder, "day"):
        share = f"{100 * float(r['attainment']):.1f}"
        cost = f"{r['cost']} {r['currency']}".strip() or "no price known"
        rows.append([r["policy"], share, r["gpu_hours"], r["good_per_gpu_hour"], cost])
    heads = ["policy", "within targets (%)", "GPU-hours", "good requests per GPU-hour", "cost"]
    return markdown(heads, rows)


def plain(name: str, heads: Sequence[str]) -> Callable[[Path], str]:
    """Return what writes the goodputs of a study."""

    def write(folder: Path) -> str:
        rows = [
            [row[head] for head in heads] + [with_interval(row, level) for level in ("p90", "p99")]
            for row in read(folder, name)
        ]
        return markdown([*heads, "P90 goodput", "P99 goodput"], rows)

    return write


TABLES: dict[str, Callable[[Path], str]] = {
    "target 1": target_1,
    "target 2": target_2,
    "target 3": target_3,
    "target 4": target_4,
    "ablations": plain("ablations", ("model", "variant", "name")),
    "inputs": plain("inputs", ("input", "name")),
    "slack": plain("slack", ("variant", "slack", "hold_output", "metric")),
    "scaling": plain("scaling", ("instances", "name")),
    "burstiness": plain("burstiness", ("cv", "name")),
    "pipeline": plain("pipeline", ("gpu", "layout", "name")),
    "day": day,
}
NEEDS = {"target 2": "slo", "target 3": "comparison", "target 4": "rising"}


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
