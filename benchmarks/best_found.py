"""Does `simcluster rank` find the best strategy? Against every candidate at ten times the requests.

python benchmarks/best_found.py [--problems 10] [--seed 0] [--times 10]

Random problems: a model, GPUs, lengths, targets and a space of 5 to 10 candidates. Exhaustive: the
goodput of every candidate on draws of requests that the ranking has not seen, with ten times the
requests that the ranking spends on a candidate in the mean. Judged: the ranking's first is the
exhaustive best, or is behind it by less than the exhaustive search can tell; where the true gap of
the exhaustive best two exceeds 5 %, the ranking may call them undecided but not name another.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from typing import Any

import numpy as np

from simcluster.errors import SimclusterError
from simcluster.runs.executor import outcomes
from simcluster.scenario.file import resolve
from simcluster.scenario.rank_table import RankTable
from simcluster.scenario.scenario import Scenario
from simcluster.studies.rank.race import Crossing, cross
from simcluster.studies.rank.rank import rank
from simcluster.studies.rank.ranking import Ranking

MODELS = {"llama-2-13b": [1, 2], "codellama-34b": [2, 4], "llama-2-70b": [4]}
GPUS = ["A100", "L20", "H100", "A800"]
DRAWS = 5


def problem(seed: int) -> tuple[Scenario, RankTable]:
    """Return the random problem `seed`."""
    rng = np.random.default_rng(seed)
    model = str(rng.choice(list(MODELS)))
    gpu = str(rng.choice(GPUS))
    document: dict[str, Any] = {
        "model": {"name": model},
        "cluster": {
            "gpu": gpu,
            "nodes": 2,
            "gpus_per_node": 4,
            "network": str(rng.choice(["10gbe", "25gbe", "100gbe"])),
        },
        "engine": {"profile": "vllm-0.7", "max_model_len": 4096},
        "workload": {
            "lengths": {
                "kind": "lognormal",
                "prompt_median": int(rng.choice([200, 600, 1500])),
                "prompt_sigma": 0.6,
                "prompt_max": 3000,
                "output_median": int(rng.choice([20, 60, 150])),
                "output_sigma": 0.6,
                "output_max": 600,
            }
        },
        "slo": {
            "ttft_s": float(rng.choice([0.5, 1.0, 2.0])),
            "tpot_s": float(rng.choice([0.05, 0.1])),
            "attainment": 0.9,
        },
        "run": {"seeds": [seed]},
    }
    table = RankTable(tp_sizes=tuple(MODELS[model]), prefill_shares=(0.5,), tolerance=0.05)
    return resolve(document), table


def exhaustive(ranking: Ranking, times: float) -> dict[str, np.ndarray]:
    """Return log goodputs of every candidate over draws that the ranking has not seen.

    On `times` the requests that the ranking has spent on a candidate in the mean.
    """
    candidates = ranking.candidates
    per_candidate = times * ranking.num_requests / len(candidates)
    calls = []
    for c in candidates:
        length = max(200, math.ceil(per_candidate / DRAWS / 3))  # three runs or so each
        scenario = ranking.scenario.only(c.name)
        guess = max(c.goodput_rps, 0.02 * c.bound_rps)
        calls += [(scenario, guess, 500_000 + draw, length) for draw in range(DRAWS)]
    found: dict[str, list[float]] = {}
    for draw, crossing in outcomes(_cross, calls):
        found.setdefault(crossing.name, [math.nan] * DRAWS)[draw] = crossing.goodput_rps
    return {name: np.log(np.maximum(values, 1e-9)) for name, values in found.items()}


def _cross(scenario: Scenario, guess: float, seed: int, length: int) -> tuple[int, Crossing]:
    return seed - 500_000, cross(
        scenario, guess_rps=guess, seed=seed, num_requests=length, step=1.05, near=1.05
    )


def judge(ranking: Ranking, logs: dict[str, np.ndarray]) -> tuple[str, float, float]:
    """Return right, tie, undecided or wrong; the gap of the best two; what the choice loses."""
    order = sorted(logs, key=lambda name: -logs[name].mean())
    gap = math.expm1(float(logs[order[0]].mean() - logs[order[1]].mean()))
    chosen = ranking.candidates[0].name
    lost = -math.expm1(float(logs[chosen].mean() - logs[order[0]].mean()))
    if chosen == order[0]:
        return "right", gap, lost
    texts = [t for t in ranking.undecided if chosen in t and order[0] in t]
    differences = logs[order[0]] - logs[chosen]
    error = float(differences.std(ddof=1)) / math.sqrt(DRAWS)
    if differences.mean() < 2.78 * error:  # Student's 97.5 %, four degrees of freedom
        return "tie", gap, lost
    return ("undecided" if texts else "wrong"), gap, lost


def main() -> None:
    """Run the problems and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--problems", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--times", type=float, default=10.0, help="requests over the ranking's")
    options = parser.parse_args()
    verdicts = []
    for seed in itertools.count(options.seed):
        if len(verdicts) == options.problems:
            break
        scenario, table = problem(seed)
        start = time.perf_counter()
        try:
            ranking = rank(scenario, table)
        except SimclusterError as error:  # such as targets that nothing meets: drawn at random
            print(f"problem {seed}: no ranking ({error})", flush=True)
            continue
        took = time.perf_counter() - start
        logs = exhaustive(ranking, options.times)
        verdict, gap, lost = judge(ranking, logs)
        verdicts.append(verdict)
        best = max(logs, key=lambda name: logs[name].mean())
        print(
            f"problem {seed}: {scenario.environment.model.spec.name} on "
            f"{scenario.environment.cluster.gpu.name}, {len(ranking.candidates)} candidates; "
            f"ranked first {ranking.candidates[0].name}, exhaustive best {best}, gap to its second "
            f"{gap:.1%}, choice loses {lost:.1%}: {verdict} ({took:.0f} s)",
            flush=True,
        )
    print({verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))})


if __name__ == "__main__":
    main()
