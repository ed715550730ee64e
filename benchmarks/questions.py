"""Searches on questions that nobody picked: ``python benchmarks/questions.py -o FOLDER``.

A script draws planner's questions over models, GPUs, lengths (light and heavy tails), targets and
strategies. Each is searched once with the default settings, and then by a reference: as many
replications at each of two rates close to the answer, twice as long, on requests of their own.
Asked are tracebacks; values outside
the rates that were simulated; contradictions between tables; how many intervals hold the
reference; and whether the best strategy is right, or within the indifference.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import traceback
from pathlib import Path
from typing import Any, Final

import numpy as np

import simcluster
from simcluster.catalog.toml_writer import to_toml
from simcluster.runs.cell import Cell
from simcluster.runs.executor import Runner
from simcluster.scenario.file import resolve
from simcluster.scenario.scenario import Scenario
from simcluster.studies.goodput import Found, find, simulate_cells, tables
from simcluster.studies.goodput.estimate import Estimate, estimate_crossing
from simcluster.studies.goodput.probe import Probe
from simcluster.studies.goodput.runs import replication_seed
from simcluster.studies.goodput.search import Verdict
from simcluster.studies.goodput.shape import falls_at
from simcluster.studies.rank.screen import Lengths, Screen

REPLICATIONS: Final = 8
"""Of the reference, at each of two rates."""
LONGER: Final = 2
"""Times the length of a run of the search..."""
LONGEST: Final = 20_000
"""... but no more requests than these."""
_FIRST: Final = 5_000_001  # replications of the reference: none that a search meets

MACHINES: Final = (
    ("llama-3.1-8b", "L20", 4, (1, 2)),
    ("llama-3.1-8b", "A100-80GB PCIe", 4, (1, 2)),
    ("qwen2.5-14b", "A100-80GB SXM", 4, (1, 2)),
    ("qwen2.5-14b", "L40S", 4, (1, 2)),
    ("codellama-34b", "A100-80GB SXM", 8, (2, 4)),
    ("qwen2.5-32b", "H100 SXM", 8, (2, 4)),
    ("llama-3.1-70b", "H100 SXM", 8, (4,)),
    ("mixtral-8x7b", "H100 SXM", 8, (2, 4)),
    ("qwen3-30b-a3b", "H200 SXM", 4, (1, 2)),
    ("phi-4", "RTX A6000", 4, (1, 2)),
)


def drawn(seed: int) -> dict[str, Any]:
    """Return a question as a scenario document."""
    rng = np.random.default_rng([14, seed])

    def one(values: Any) -> Any:
        return values[int(rng.integers(len(values)))]

    model, gpu, num_gpus, degrees = one(MACHINES)
    degree = one(degrees)
    instances = num_gpus // degree
    heavy = bool(rng.random() < 0.5)
    lengths: dict[str, Any] = {
        "kind": "lognormal",
        "prompt_median": int(np.exp(rng.uniform(np.log(100), np.log(3000)))),
        "prompt_sigma": round(float(rng.uniform(0.9, 1.4) if heavy else rng.uniform(0.2, 0.6)), 2),
        "prompt_max": 14000,
        "output_median": int(np.exp(rng.uniform(np.log(30), np.log(400)))),
        "output_sigma": round(float(rng.uniform(0.3, 0.9)), 2),
        "output_max": 2000,
    }
    document: dict[str, Any] = {
        "model": {"name": model},
        "cluster": {"gpu": gpu, "nodes": 1, "gpus_per_node": num_gpus},
        "engine": {"max_model_len": 16384},
        "workload": {"arrivals": "poisson", "lengths": lengths},
        "slo": {
            "attainment": one([0.9, 0.9, 0.95, 0.99]),
            "criterion": one(["joint", "marginal"]),
        },
        "run": {"seeds": [seed]},
    }
    kinds = [
        {"name": "chunked", "kind": "nodg", "scheduler": "chunked"},
        {"name": "prefill first", "kind": "nodg", "scheduler": "prefill-priority"},
        {"name": "PaDG", "kind": "padg"},
    ]
    if instances >= 2:
        share = max(1, round(float(rng.uniform(0.3, 0.7)) * instances))
        share = min(share, instances - 1)
        kinds.append(
            {"name": "FuDG", "kind": "fudg", "prefill_instances": share}
            | {"decode_instances": instances - share}
        )
    picked = sorted(rng.permutation(len(kinds))[: min(3, len(kinds))].tolist())
    document["strategy"] = [{**kinds[k], "tp_size": degree} for k in picked]
    # Targets in units of what a request gets that is alone: nobody asks for less.
    probe = resolve({**document, "slo": {"ttft_s": 100.0, **document["slo"]}})
    alone = Screen(probe.environment, Lengths.of(probe)).bound(probe.strategies[0])
    ttft_s = float(f"{alone.alone_ttft_s * rng.uniform(1.5, 6):.2g}")
    tpot_s = float(f"{alone.alone_tpot_s * rng.uniform(1.5, 4):.2g}")
    document["slo"] |= {"ttft_s": ttft_s, "tpot_s": tpot_s}
    return document


def reference(found: Found, name: str) -> dict[str, Any]:
    """Return what longer and more runs on other requests say of one strategy."""
    verdict, settings = found.verdicts[name], found.settings
    if verdict.estimate is None and verdict.recommended is None:
        return {}
    if verdict.recommended is not None:
        at = verdict.recommended
        low = runs_at(found, name, at.rate_rps, min(LONGER * at.num_requests, LONGEST), 0)
        wanted = settings.wanted(len(low.outcomes[0].counted))
        fallen = falls_at(low, wanted)
        return {
            "fallen": fallen.num_fallen,
            "runs": fallen.num_runs,
            "hours": fallen.hours,
            "most_per_hour": verdict.falls[0].per_hour[2],
        }
    stage = verdict.stages[-1]
    gap = min(max(stage.gap / 2, 0.01), 0.05)
    centre = math.log(found_value(verdict))
    num = min(LONGER * stage.num_requests, LONGEST)
    for _ in range(4):  # until the crossing is between its two rates
        low, high = (
            runs_at(
                found,
                name,
                math.exp(centre + side * gap / 2),
                num,
                side > 0,
            )
            for side in (-1, 1)
        )
        wanted = settings.wanted(len(low.outcomes[0].counted))
        estimate = estimate_crossing(low.counts, high.counts, wanted)
        if estimate is None:
            gap *= 2
            continue
        shift = estimate.log_rate - centre
        if abs(shift) <= gap / 2:
            break
        centre += max(-2 * gap, min(2 * gap, shift))
    return described(estimate)


def described(estimate: Estimate | None) -> dict[str, Any]:
    """Return an estimate in plain values."""
    if estimate is None:
        return {}
    interval = estimate.interval
    return {"value": interval.value, "low": interval.low, "high": interval.high}


def found_value(verdict: Verdict) -> float:
    """Return a goodput (requests/s)."""
    assert verdict.goodput is not None
    return verdict.goodput.value


def runs_at(found: Found, name: str, rate_rps: float, num: int, side: int) -> Probe:
    """Return replications of the reference at one rate."""
    numbers = tuple(range(_FIRST + side, _FIRST + 2 * REPLICATIONS, 2))
    cells = [Cell(name, rate_rps, replication_seed(found.seed, k), num) for k in numbers]
    return Probe(rate_rps, num, tuple(simulate_cells(found.scenario, cells, Runner(1))), numbers)


def contradictions(found: Found) -> list[str]:
    """Return what disagrees between the values, the pairs and the table; best nothing."""
    wrong = []
    for name, verdict in found.verdicts.items():
        goodput = verdict.goodput
        if goodput is None:
            continue
        rates = [probe.rate_rps for probe in verdict.probes]
        if not min(rates) <= goodput.value <= max(rates):
            wrong.append(f"{name}: {goodput.value} is outside the rates that were simulated")
        bound = Screen(found.scenario.environment, Lengths.of(found.scenario)).bound(
            found.scenario.strategy(name)
        )
        if goodput.value > 1.02 * bound.total_rps:
            wrong.append(f"{name}: {goodput.value} is above its bound of {bound.total_rps}")
        if not goodput.low <= goodput.value <= goodput.high:
            wrong.append(f"{name}: the interval does not hold the value")
    for pair in found.comparisons():
        values = [found_value(found.verdicts[n]) for n in (pair.first, pair.second)]
        if not math.isclose(pair.ratio.value, values[0] / values[1], rel_tol=1e-9):
            wrong.append(f"{pair}: not the ratio of {values}")
    tables.as_text(found)
    json.dumps(tables.as_json(found), allow_nan=False)
    return wrong


def asked(seed: int, *, with_reference: bool, **options: Any) -> dict[str, Any]:
    """Search one question; return what came out."""
    started = time.process_time()
    document = drawn(seed)
    scenario: Scenario = resolve(document)
    result: dict[str, Any] = {"seed": seed, "document": to_toml(document)}
    try:
        found = find(scenario, jobs=1, **options)
        result["cpu_s"] = time.process_time() - started
        result["wrong"] = contradictions(found)
        result["pairs"] = [
            {"text": str(p), "decided": p.decided, "alike": p.alike} for p in found.comparisons()
        ]
        result["strategies"] = {
            name: {
                "status": v.status,
                "requests": v.num_requests,
                **(
                    {}
                    if v.goodput is None
                    else {"value": v.goodput.value, "low": v.goodput.low, "high": v.goodput.high}
                ),
                "reference": reference(found, name) if with_reference else {},
            }
            for name, v in found.verdicts.items()
        }
    except simcluster.SimclusterError as error:
        result["refused"] = str(error)
    except Exception:  # what a question must never end in is what is counted
        result["traceback"] = traceback.format_exc()
    result["all_cpu_s"] = time.process_time() - started
    return result


def summary(results: list[dict[str, Any]]) -> str:
    """Return the figures over all questions."""
    crashed = [r["seed"] for r in results if "traceback" in r]
    refused = [r["seed"] for r in results if "refused" in r]
    wrong = [text for r in results for text in r.get("wrong", [])]
    known = [r for r in results if "strategies" in r]
    held, rows = 0, []
    for r in known:
        for one in r["strategies"].values():
            ref = one["reference"]
            if "value" in ref and "value" in one:
                # The reference has an error of its own: their difference has both.
                error = math.log(ref["high"] / ref["value"])
                own = math.log(one["high"] / one["value"])
                off = math.log(one["value"] / ref["value"])
                rows.append((off, own))
                held += abs(off) <= math.hypot(own, error)
    right = 0
    judged = 0
    for r in known:
        values = {n: o for n, o in r["strategies"].items() if "value" in o}
        truths = {n: o["reference"].get("value", o["value"]) for n, o in values.items()}
        if not truths:
            continue
        judged += 1
        best = max(values, key=lambda n: values[n]["value"])
        right += truths[best] >= max(truths.values()) / 1.03
    collapsing = [
        (r["seed"], n, o["reference"])
        for r in known
        for n, o in r["strategies"].items()
        if o["status"] == "collapses"
    ]
    pairs = [p for r in known for p in r["pairs"]]
    settled = sum(p["decided"] or p["alike"] for p in pairs)
    statuses: dict[str, int] = {}
    for r in known:
        for o in r["strategies"].values():
            statuses[o["status"]] = statuses.get(o["status"], 0) + 1
    lines = [
        f"{len(results)} questions, tracebacks {len(crashed)} {crashed}, refused {refused}",
        f"contradictions {len(wrong)} {wrong}",
        f"statuses {statuses}",
        f"intervals that hold the reference: {held} of {len(rows)}",
        f"mean difference {100 * float(np.mean([o for o, _ in rows])):+.2f} %, "
        f"mean half width {100 * float(np.mean([w for _, w in rows])):.2f} %"
        if rows
        else "",
        f"best strategy right, or within 3 %: {right} of {judged}",
        f"pairs decided or within 3 %: {settled} of {len(pairs)}",
        f"collapses: {collapsing}",
        f"CPU seconds of a search: median {np.median([r['cpu_s'] for r in known]):.0f}, "
        f"most {max(r['cpu_s'] for r in known):.0f}"
        if known
        else "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Search and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--questions", type=int, default=24)
    parser.add_argument("--tolerance", type=float, default=0.03)
    parser.add_argument("--max-requests", type=int, default=200_000)
    parser.add_argument("--no-reference", action="store_true")
    parser.add_argument("-o", "--out", type=Path, required=True)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for seed in range(given.first, given.first + given.questions):
        path = given.out / f"{seed}.json"
        if not path.exists():
            result = asked(
                seed,
                with_reference=not given.no_reference,
                tolerance=given.tolerance,
                max_requests=given.max_requests,
            )
            path.write_text(json.dumps(result, indent=1))
            print(seed, f"{result['all_cpu_s']:.0f} CPU-s", flush=True)
    files = sorted(given.out.glob("*.json"), key=lambda path: int(path.stem))
    print(summary([json.loads(path.read_text()) for path in files]))


if __name__ == "__main__":
    main()
