"""Plans of ``simcluster cooptimize`` that miss a target of ``[slo]`` in a ten times longer run.

    python benchmarks/cooptimize_check.py            # 12 plans of drawn questions
    python benchmarks/cooptimize_check.py --first 3 --plans 1   # question 3 alone
    python benchmarks/cooptimize_check.py --times 4 # fuller stocks: plans nearer to their targets

Nobody picked the questions: models, GPUs, stock, lengths, targets, how they are counted and rates
are drawn from a seed. Each is asked once with the default settings. A question without a plan
counts for neither side; questions are drawn until that number of plans has been chosen. The plan is
simulated once with a seed that the search did not see, ten times as long as its own runs.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

import simcluster
from simcluster.errors import ConfigError
from simcluster.rng import stream
from simcluster.runs.cell import Cell
from simcluster.studies.cooptimize.judge import NAME
from simcluster.studies.cooptimize.run import Outcome, cooptimize
from simcluster.studies.cooptimize.targets import counted_of, judged, wanted_of

SMALL, LARGE = "llama-3.1-8b", "qwen2.5-14b"
GPUS = {"H100": 2.69, "A100-80GB PCIe": 1.39, "L40S": 0.86, "RTX 4090": 0.59}
"""GPU types of the stock and a price per hour; what they cost does not matter here."""
REFERENCE_SEED = 1_000_003
LONGER = 10


def question(number: int) -> dict[str, Any]:
    """Return the tables of a drawn scenario."""
    rng = stream(0, "cooptimize_check", str(number))

    def between(low: float, high: float) -> float:
        return float(f"{np.exp(rng.uniform(np.log(low), np.log(high))):.3g}")

    first, second = rng.permutation(list(GPUS))[:2].tolist()
    two_models = rng.random() < 0.3
    slo: dict[str, Any] = {"ttft_s": between(0.25, 3.0), "tpot_s": between(0.02, 0.08)}
    share = float(rng.choice([0.9, 0.95, 0.99]))
    match rng.integers(3):
        case 0:
            slo |= {"criterion": "joint", "attainment": share}
        case 1:
            slo |= {"criterion": "marginal", "attainment": share}
        case _:
            percentiles = {"ttft": 100 * share, "tpot": float(rng.choice([90, 95, 99]))}
            slo |= {"criterion": "marginal", "percentiles": percentiles}
    latency = str(rng.choice(["ttft", "tpot", "e2el"]))
    tables: dict[str, Any] = {
        "model": {"name": SMALL},
        "cluster": cluster(first, int(rng.integers(2, 9))),
        "extra_cluster": [cluster(second, int(rng.integers(2, 9)))],
        "engine": {"max_model_len": 16384},
        "workload": {
            "rate_rps": between(2.0, 25.0),
            "duration_s": 60,
            "lengths": {
                "kind": "lognormal",
                "prompt_median": between(150, 1500),
                "prompt_sigma": between(0.3, 1.2),
                "prompt_max": 12000,
                "output_median": between(60, 300),
                "output_sigma": between(0.3, 0.8),
                "output_max": 2000,
            },
        },
        "slo": slo,
        "cooptimize": {
            "models": [SMALL],
            "tp_sizes": [1, 2],
            "latency": latency,
            "goal": "cost",
            "objectives": ["cost", "latency"],
        },
    }
    if two_models:
        tables |= {"extra_model": [{"name": LARGE}]}
        tables |= {"quality": {"kind": "abilities", "accuracies": [0.7, 0.8]}}
        tables["cooptimize"] |= {"models": [SMALL, LARGE], "quality_at_least": 0.75}
    return tables


def cluster(gpu: str, count: int) -> dict[str, Any]:
    """Return a node of one GPU type."""
    return {"gpu": gpu, "nodes": 1, "gpus_per_node": count, "price_per_gpu_hour": GPUS[gpu]}


def reference(outcome: Outcome, times: int) -> np.ndarray:
    """Return the share within each target of the chosen plan in a run `times` as long."""
    judge, chosen = outcome.judge, outcome.chosen
    num = judge.long_run(chosen.plan)
    assert num is not None, "arrivals of any length"
    cell = Cell(NAME, judge.rate_rps, REFERENCE_SEED, times * num)
    plan = judge.scenario_of(chosen.plan)
    return np.array(judged(plan, cell, judge.metric, judge.table.percentile, judge.slo).shares)


def main() -> None:
    """Ask, simulate, count."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0, help="number of the first question")
    parser.add_argument("--times", type=float, default=1.0, help="factor of the drawn rates")
    parser.add_argument("--plans", type=int, default=12, help="plans to check")
    asked = parser.parse_args()
    number, plans, missed, none, started = asked.first, 0, 0, 0, time.process_time()
    while plans < asked.plans:
        tables = question(number)
        tables["workload"]["rate_rps"] *= asked.times
        before = time.process_time()
        try:
            outcome = cooptimize(simcluster.resolve(tables), jobs=1, baselines=False)
        except ConfigError as error:
            none += 1
            print(f"{number}: no plan ({time.process_time() - before:.0f} s): {error}", flush=True)
            number += 1
            continue
        searched = time.process_time()
        shares, slo = reference(outcome, LONGER), outcome.judge.slo
        verdict = outcome.chosen.verdict
        assert verdict is not None, "every question has targets"
        misses = bool((shares < wanted_of(slo)).any())
        plans, missed = plans + 1, missed + misses
        each = ", ".join(
            f"{key} {100 * own:.1f} -> {100 * long:.1f} (wanted {100 * slo.wanted(key):g})"
            for key, own, long in zip(counted_of(slo), verdict.shares, shares, strict=True)
        )
        rejected = [
            one.verdict.status
            for one in outcome.finalists
            if one.verdict and one.verdict.status != "kept"
        ]
        print(
            f"{number}: {outcome.chosen.plan.cost_per_hour:.2f} per h, {each}, "
            f"{len(outcome.chosen.runs)} runs; rejected: {', '.join(rejected) or 'none'}; search "
            f"{searched - before:.0f} s, reference {time.process_time() - searched:.0f} s"
            + ("  MISSED" if misses else ""),
            flush=True,
        )
        number += 1
    print(
        f"{missed} of {plans} plans miss a target in a run {LONGER} times as long; "
        f"{none} questions without a plan; {time.process_time() - started:.0f} CPU seconds"
    )


if __name__ == "__main__":
    main()
