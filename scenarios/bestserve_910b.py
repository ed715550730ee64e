"""How far off is BestServe's estimator? CodeLlama-34B on eight Ascend 910B3, against stepping.

python scenarios/bestserve_910b.py -o results/bestserve

For four operating scenarios, with and without graph capture: goodput of every collocated and
disaggregated strategy by BestServe's estimator and by the simulation step by step, and the time of
decode steps by batch and degree of parallelism. docs/bestserve.md discusses the tables.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from simcluster.roofline.base import StepShape
from simcluster.runs.executor import outcomes
from simcluster.scenario.file import resolve
from simcluster.scenario.rank_table import RankTable
from simcluster.scenario.scenario import Scenario
from simcluster.studies import bestserve
from simcluster.studies.rank.race import cross
from simcluster.studies.space import space

OPERATING = {
    "OP1 short in, short out": (256, 64),
    "OP2 short in, long out": (256, 512),
    "OP3 long in, short out": (2048, 64),
    "OP4 long in, long out": (2048, 512),
}
"""Prompt and output (tokens). The paper's lengths and targets are not known; these are ours."""
ENGINES = {"eager": "eager", "graph": "vllm-0.7"}
DRAWS = 3
Row = dict[str, Any]


def scenario_of(prompt_len: int, output_len: int, engine: str) -> Scenario:
    """Return one operating scenario on one node of eight 910B3."""
    return resolve(
        {
            "model": {"name": "codellama-34b"},
            "cluster": {"gpu": "910B3", "nodes": 1, "gpus_per_node": 8},
            "engine": {"profile": engine, "max_model_len": 4096},
            "workload": {
                "lengths": {"kind": "fixed", "prompt_len": prompt_len, "output_len": output_len}
            },
            "slo": {"ttft_s": 1.5, "tpot_s": 0.07, "attainment": 0.9, "criterion": "marginal"},
            "strategy": [{"name": "none", "kind": "nodg", "tp_size": 8}],
        }
    )


def candidates(scenario: Scenario) -> Scenario:
    """Return `scenario` with every strategy that BestServe knows, on all eight cards."""
    table = RankTable(strategies=("nodg", "fudg-intra"), prefill_shares=(0.25, 0.5, 0.75))
    strategies = tuple(space(table, scenario.environment).strategies.values())
    return dataclasses.replace(scenario, strategies=strategies)


def estimate(name: str, engine: str, scenario: Scenario) -> Row:
    """Return both estimates of one strategy, and the CPU time of BestServe's."""
    strategy = scenario.strategies[0]
    start = time.process_time()
    estimated = bestserve.goodput_rps(scenario, strategy)
    took_s = time.process_time() - start
    heuristics = bestserve.goodput_rps(scenario, strategy, times=bestserve.StepTimes)
    return {
        "scenario": name,
        "engine": engine,
        "strategy": strategy.name,
        "bestserve_rps": estimated,
        "heuristics_rps": heuristics,
        "bestserve_cpu_s": took_s,
    }


def simulated(row: Row, scenario: Scenario, duration_s: float) -> Row:
    """Return `row` with the goodput by steps: mean over draws of requests, and the CPU time."""
    start = time.process_time()
    guess = max(row["heuristics_rps"], 0.1)
    crossings = [
        cross(
            scenario,
            guess_rps=guess,
            seed=draw,
            num_requests=max(50, math.ceil(guess * duration_s)),
            step=1.1,
            near=1.03,
        )
        for draw in range(DRAWS)
    ]
    values = [crossing.goodput_rps for crossing in crossings]
    error = np.std(values, ddof=1) / math.sqrt(DRAWS)
    took_s = time.process_time() - start
    return {
        **row,
        "simulated_rps": float(np.mean(values)),
        "simulated_error_rps": float(error),
        "simulated_cpu_s": took_s,
    }


def _case(name: str, engine: str, scenario: Scenario, duration_s: float) -> Row:
    return simulated(estimate(name, engine, scenario), scenario, duration_s)


def study(duration_s: float, names: Sequence[str]) -> list[Row]:
    """Return a row per operating scenario, engine and strategy."""
    calls = []
    for name, (label, engine) in itertools.product(names, ENGINES.items()):
        scenario = candidates(scenario_of(*OPERATING[name], engine))
        calls += [(name, label, scenario.only(s.name), duration_s) for s in scenario.strategies]
    rows = list(outcomes(_case, calls))
    return sorted(rows, key=lambda row: (row["scenario"], row["engine"], row["strategy"]))


def off(row: Row, key: str = "bestserve_rps") -> float:
    """Return by how much an estimate is off, as a share; NaN where nothing is carried."""
    return row[key] / row["simulated_rps"] - 1 if row["simulated_rps"] > 0 else math.nan


def show(rows: list[Row]) -> None:
    """Print goodputs, errors and rankings."""
    for name in dict.fromkeys(row["scenario"] for row in rows):
        for engine in ENGINES:
            own = [r for r in rows if r["scenario"] == name and r["engine"] == engine]
            own.sort(key=lambda row: -row["simulated_rps"])
            print(f"\n{name}, {engine}: goodput (requests/s)")
            print("strategy    by steps         BestServe   off   heuristics alone   off")
            for row in own:
                print(
                    f"{row['strategy']:10s} {row['simulated_rps']:6.2f} +- "
                    f"{row['simulated_error_rps']:.2f} {row['bestserve_rps']:11.2f} "
                    f"{off(row):+6.0%} {row['heuristics_rps']:13.2f} "
                    f"{off(row, 'heuristics_rps'):+10.0%}"
                )
            best = max(own, key=lambda row: row["bestserve_rps"])
            regret = 1 - best["simulated_rps"] / own[0]["simulated_rps"]
            swapped = sum(
                a["bestserve_rps"] < b["bestserve_rps"] for a, b in itertools.combinations(own, 2)
            )
            pairs = len(own) * (len(own) - 1) // 2
            print(
                f"best by steps {own[0]['strategy']}, by BestServe {best['strategy']} "
                f"(loses {regret:.0%}); pairs in the wrong order: {swapped} of {pairs}"
            )
    for key, label in (("bestserve_rps", "BestServe"), ("heuristics_rps", "its heuristics alone")):
        errors = np.abs([off(row, key) for row in rows])
        errors = errors[~np.isnan(errors)]
        within = (errors <= 0.2).mean()
        print(
            f"\n{label}: mean error {errors.mean():.0%}, within 20 % in {within:.0%} of "
            f"{len(errors)} cases, worst {errors.max():.0%}"
        )
    print(
        f"CPU time: BestServe {sum(r['bestserve_cpu_s'] for r in rows):.0f} s, "
        f"by steps {sum(r['simulated_cpu_s'] for r in rows):.0f} s"
    )


def show_steps() -> None:
    """Print decode steps: which are bound by dispatch, and what parallelism and graphs change."""
    print("\ndecode step (ms) over 1,024 tokens, BestServe / by kernels; * issue takes longer")
    print("engine  tp   batch 1          8               32              128")
    for label, engine in ENGINES.items():
        environment = scenario_of(1024, 64, engine).environment
        for tp_size in (2, 4, 8):
            estimator = bestserve.Estimator(environment, tp_size)
            ours = bestserve.StepTimes(environment, tp_size).times
            cells = []
            for batch in (1, 8, 32, 128):
                tokens = 1024 * batch
                shape = StepShape(batch, tokens, (), batch, tokens)
                kernels = ours.kernels(shape)
                issue = sum(sum(run.issue_s) * run.repeat for run in kernels.runs)
                work = sum(sum(run.run_s) * run.repeat for run in kernels.runs)
                mark = "*" if issue > work else " "
                estimated = estimator.decode_s(batch, 1024)
                cells.append(f"{1e3 * estimated:6.1f} / {1e3 * ours.gpu_s(shape):5.1f}{mark}")
            print(f"{label:6s} {tp_size:3d} {' '.join(cells)}")
        if label == "eager":
            issue = bestserve.Estimator(environment, 8).issue_s()
            print(f"       issuing all operators one by one takes {1e3 * issue:.1f} ms")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the study, print the tables, write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, default=Path("results/bestserve"))
    parser.add_argument("--duration", type=float, default=300.0, help="length of each run (s)")
    options = parser.parse_args(arguments)
    names = list(OPERATING) if options.duration >= 60 else list(OPERATING)[:1]
    rows = study(options.duration, names)
    show(rows)
    show_steps()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "bestserve.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"rows: {path}")


if __name__ == "__main__":
    main()
