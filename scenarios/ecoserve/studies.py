"""EcoServe's evaluation and what it leaves open, study by study; each writes a CSV.

python scenarios/ecoserve/studies.py slo -o results/ecoserve

A study that is stopped goes on where it was: every run is kept.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from cases import (
    LEVELS,
    MODELS,
    SYSTEMS,
    TTFT_S,
    Case,
    ecoserve,
    goodputs,
    sarathi,
    vllm,
)

from simcluster.executor import outcomes

Row = tuple[dict[str, Any], Case, list[dict[str, Any]], dict[str, Any]]
"""What a row of a study is called, its case, its system's tables, and options of the search."""

GPUS = ("L20", "A800")
CV = (1.0, 1.2, 1.5, 2.0)
SLOS = ((5.0, 0.1), (3.0, 0.08), (3.0, 0.05), (1.0, 0.08), (1.0, 0.05))


def comparison() -> Iterator[Row]:
    """Five systems, three models, three data sets, two clusters."""
    for gpu, model, dataset in itertools.product(GPUS, MODELS, TTFT_S):
        case = Case(model=model, gpu=gpu, dataset=dataset)
        for name, tables in SYSTEMS.items():
            label = {"gpu": gpu, "model": model, "dataset": dataset, "name": name}
            if name != "EcoServe (paper)":
                yield label, case, tables(case), {"levels": LEVELS}


def slo() -> Iterator[Row]:
    """CodeLlama-34B with ShareGPT on A800 under ever stricter targets."""
    for ttft_s, tpot_s in SLOS:
        case = Case(ttft_s=ttft_s, tpot_s=tpot_s)
        for name, tables in SYSTEMS.items():
            label = {"ttft_s": ttft_s, "tpot_s": tpot_s, "name": name}
            yield label, case, tables(case), {"seeds": 4, "duration_s": 180.0}


def scaling() -> Iterator[Row]:
    """EcoServe and vLLM with 1 to 12 instances of CodeLlama-34B, TP 4 on L20."""
    for count in (1, 2, 4, 6, 8, 12):
        case = Case(gpu="L20", num_gpus=4 * count, changes={"cluster.nodes": 12})
        for name in ("EcoServe", "EcoServe (paper)", "vLLM"):
            yield (
                {"instances": count, "name": name},
                case,
                SYSTEMS[name](case),
                {"start_rps": 2.5 * count},
            )


def burstiness() -> Iterator[Row]:
    """Gamma arrivals of rising coefficient of variation."""
    for cv in CV:
        case = Case(changes={"workload.arrivals": {"kind": "gamma", "cv": cv}})
        for name in ("EcoServe", "vLLM", "Sarathi"):
            yield {"cv": cv, "name": name}, case, SYSTEMS[name](case), {}


def pipeline() -> Iterator[Row]:
    """Four GPUs of an instance as TP 4, or as TP 2 in two stages: what PaDG makes of pipelines."""
    for gpu in GPUS:
        case = Case(gpu=gpu)
        count = {"L20": 8, "A800": 4}[gpu]
        for (tp, pp), name in itertools.product(((4, 1), (2, 2)), ("EcoServe", "vLLM", "Sarathi")):
            tables = [
                {**table, "tp_size": tp, "pp_size": pp, "instances": count}
                for table in SYSTEMS[name](case)
            ]
            yield {"gpu": gpu, "layout": f"TP{tp} PP{pp}", "name": name}, case, tables, {}


def ablations() -> Iterator[Row]:
    """Which instance is next, and when the window passes on (EcoServe's two ablations)."""
    forms: dict[str, dict[str, Any]] = {
        "cyclic, adaptive": {},
        "random": {"next_instance": "random"},
        "fixed 1/4": {"window": "fixed:0.25"},
        "fixed 1/2": {"window": "fixed:0.5"},
        "fixed 3/4": {"window": "fixed:0.75"},
        "fixed 1": {"window": "fixed:1"},
    }
    for model, variant, name in itertools.product(MODELS, ("code", "paper"), forms):
        if name.startswith("fixed") and variant == "paper":
            continue  # a fixed window checks nothing: the variants are the same
        case = Case(model=model)
        tables = ecoserve(case, variant=variant, **forms[name])
        yield {"model": model, "variant": variant, "name": name}, case, tables, {}


def slack() -> Iterator[Row]:
    """What the statistic of the slack and hold-back contribute: goodput by both metrics."""
    for variant, statistic, hold, metric in itertools.product(
        ("paper", "code"),
        ("mean", "max", "min", "quantile:0.1"),
        (True, False),
        ("ecoserve", "user"),
    ):
        if metric == "ecoserve" and not hold:
            continue  # the paper's metric does not see what users get
        case = Case()
        tables = ecoserve(case, variant=variant, slack=statistic, hold_output=hold)
        label = {"variant": variant, "slack": statistic, "hold_output": hold, "metric": metric}
        yield label, case, tables, {"metric": metric}
    for name, metric in itertools.product(("vLLM", "Sarathi"), ("ecoserve", "user")):
        label = {"variant": name, "slack": "", "hold_output": False, "metric": metric}
        yield label, Case(), SYSTEMS[name](Case()), {"metric": metric}


FITTED_PROMPTS: dict[str, Any] = {
    "kind": "quantiles",
    "levels": [0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1],
    "prompt": [1, 5, 8, 14, 24, 44, 70, 103, 147, 211, 309, 480, 873, 1391, 2806, 3901],
}
"""Prompts as fitted to the paper's mean and median; the outputs are filled in from a table."""


def inputs() -> Iterator[Row]:
    """Target 2, relaxed, under changed inputs: which of them decide order and distance."""
    import numpy as np

    from simcluster.workload.lengths import TableLengths

    def with_outputs(table: str) -> dict[str, Any]:
        """Prompts as fitted, outputs as in a measured table."""
        outputs = TableLengths(name=table).draw(100_000, np.random.default_rng(0))[1]
        levels = FITTED_PROMPTS["levels"]
        output = np.quantile(outputs, levels).tolist()
        return {"workload.lengths": {**FITTED_PROMPTS, "output": output}}

    changes: dict[str, dict[str, Any]] = {
        "as it stands": {},
        "outputs of ShareGPT (Helix)": with_outputs("sharegpt-helix"),
        "outputs of LMSYS chats (APEX)": with_outputs("lmsys-apex"),
        "no host time": {"engine.profile": "ideal"},
        "twice the host time": {"engine.cpu_speed": 0.5},
        "eager, no graphs": {"engine.profile": "eager"},
        "4096 batched tokens": {
            "engine.max_num_batched_tokens": 4096,
            "engine.max_model_len": 4096,
        },
        "half the KV memory": {"engine.gpu_memory_utilization": 0.68},
    }
    systems = ("EcoServe", "vLLM", "Sarathi")
    for (what, change), name in itertools.product(changes.items(), systems):
        case = Case(changes=change)
        yield {"input": what, "name": name}, case, SYSTEMS[name](case), {}
    for name, tables in {"vLLM": vllm, "Sarathi": sarathi}.items():
        case = Case()
        yield {"input": "round robin", "name": name}, case, tables(case, router="round-robin"), {}
    for name in systems:
        case = Case()
        yield {"input": "user metric", "name": name}, case, SYSTEMS[name](case), {"metric": "user"}


STUDIES = {
    "comparison": comparison,
    "slo": slo,
    "scaling": scaling,
    "burstiness": burstiness,
    "pipeline": pipeline,
    "ablations": ablations,
    "slack": slack,
    "inputs": inputs,
}


def one(number: int, row: Row, folder: Path) -> tuple[int, dict[str, Any] | None]:
    """Find the goodputs of one row."""
    label, case, tables, options = row
    found = goodputs(case, tables, folder, **options)
    return number, None if found is None else {**label, **found}


def study(
    name: str,
    out: Path,
    *,
    only: Mapping[str, str] | None = None,
    levels: Sequence[float] = (),
    quick: bool = False,
    jobs: int | None = None,
) -> Path:
    """Run a study and write ``NAME.csv`` into `out`; return its path.

    `only` keeps the rows whose label has these values; `levels` replaces the attainments.
    """
    runs = out / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    rows = [
        (label, case, tables, {**options, **({"levels": levels} if levels else {})})
        for label, case, tables, options in STUDIES[name]()
        if all(str(label.get(key)) == value for key, value in (only or {}).items())
    ]
    if quick:
        rows = [(*row[:3], {**row[3], "seeds": 1, "duration_s": 5.0}) for row in rows[:3]]
    path = out / f"{name}.csv"
    done: dict[int, dict[str, Any]] = {}
    for number, row in outcomes(one, [(k, row, runs) for k, row in enumerate(rows)], jobs=jobs):
        if row is not None:
            done[number] = row
            write_csv(path, [done[k] for k in sorted(done)])
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with four significant digits."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.4g}" if isinstance(v, float) else v for k, v in row.items()})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the studies named, all by default, and print their goodputs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", metavar="STUDY", help=", ".join(STUDIES))
    parser.add_argument("-o", "--out", type=Path, default=Path("results/ecoserve"))
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="rows with this value in their label alone; may be repeated",
    )
    parser.add_argument("--levels", type=float, nargs="*", default=(), help="attainments")
    parser.add_argument("--quick", action="store_true", help="three rows of short runs each")
    parser.add_argument("--jobs", type=int, help="processes; default: one per core")
    options = parser.parse_args(arguments)
    for name in options.studies or STUDIES:
        path = study(
            name,
            options.out,
            only=dict(pair.split("=", 1) for pair in options.only),
            levels=options.levels,
            quick=options.quick,
            jobs=options.jobs,
        )
        print(f"{path}\n{path.read_text(encoding='utf-8')}", flush=True)


if __name__ == "__main__":
    main()
