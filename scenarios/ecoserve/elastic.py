"""EcoServe's mitosis: a rising load as in its evaluation, and a day against plain autoscalers.

python scenarios/ecoserve/elastic.py -o results/ecoserve
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from cases import ENGINE
from run import write_csv

from simcluster.frames.metrics import gpu_hours, met_targets
from simcluster.runs import cell
from simcluster.runs.executor import outcomes
from simcluster.runs.simulate import simulate
from simcluster.scenario.file import resolve

BIN_S = 30.0
"""Attainment is sampled every so often (s), as in the paper."""

NODES = 12

START_UP_S = 180.0
"""Start-up of CodeLlama-34B from a local disk (s), as in the paper."""

MITOSIS: dict[str, Any] = {"lower": 6, "upper": 11, "interval_s": 10.0, "cooldown_s": 30.0}
ECOSERVE: dict[str, Any] = {"kind": "padg", "variant": "code", "instances": 8}
PAPER = {**ECOSERVE, "variant": "paper"}

RISING: dict[str, dict[str, Any]] = {
    "trigger as published": {**PAPER, "mitosis": {**MITOSIS, "start_up_s": 0.0}},
    "as published, looked at every 5 s": {
        **PAPER,
        "mitosis": {**MITOSIS, "start_up_s": 0.0, "interval_s": 5.0, "cooldown_s": 0.0},
    },
    "as published, looked at every 30 s": {
        **PAPER,
        "mitosis": {**MITOSIS, "start_up_s": 0.0, "interval_s": 30.0, "cooldown_s": 0.0},
    },
    "as published, slack = min": {
        **PAPER,
        "slack": "min",
        "mitosis": {**MITOSIS, "start_up_s": 0.0},
    },
    "trigger at 0.7": {**PAPER, "mitosis": {**MITOSIS, "start_up_s": 0.0, "up_at": 0.7}},
    "trigger at 0.5": {**PAPER, "mitosis": {**MITOSIS, "start_up_s": 0.0, "up_at": 0.5}},
    "at 0.7, 3 min start-up": {**PAPER, "mitosis": {**MITOSIS, "up_at": 0.7}},
}
"""Policies under a rising load; those but one have their instances up at once."""
for _policy in RISING.values():
    _policy["mitosis"]["scale_down"] = False

THRESHOLD: dict[str, Any] = {"interval_s": 10.0, "cooldown_s": 30.0}
DAY: dict[str, dict[str, Any]] = {
    "EcoServe, 18 fixed": {**PAPER, "instances": 18},
    "EcoServe, mitosis": {**PAPER, "mitosis": {**MITOSIS, "up_at": 0.7}},
    "vLLM, 18 fixed": {"kind": "nodg", "instances": 18},
    "vLLM, threshold": {
        "kind": "nodg",
        "instances": 8,
        "autoscale": {**THRESHOLD, "up": 40.0, "down": 20.0, "min_instances": 2},
    },
    "MoonCake, threshold": {
        "kind": "fudg",  # with KV beside the steps: inside, no 24 instances carry this day
        "placement": "inter-node",
        "prefill_instances": 3,
        "decode_instances": 5,
        "prefill_autoscale": {**THRESHOLD, "up": 4.0, "down": 1.0},
        "decode_autoscale": {**THRESHOLD, "up": 60.0, "down": 30.0, "min_instances": 1},
    },
}
"""Policies over a day. The thresholds (unfinished requests per instance) were set so that the
targets are met at constant load; they are not tuned to the day."""


def rising(step_rps: float = 5.0) -> list[dict[str, float]]:
    """From 20 to 50 requests/s, raised every two minutes."""
    rates = np.arange(20.0, 50.0 + step_rps / 2, step_rps)
    return [{"duration_s": 120.0, "rate_rps": float(rate)} for rate in rates]


def day(hour_s: float) -> list[dict[str, float]]:
    """A day in 24 pieces: 6 requests/s at night, 44 in the afternoon."""
    hours = np.arange(24)
    rates = 25.0 - 19.0 * np.cos((hours - 3.5) / 24 * 2 * np.pi)
    return [{"duration_s": hour_s, "rate_rps": round(float(rate), 2)} for rate in rates]


def with_start_up(table: dict[str, Any], start_up_s: float) -> dict[str, Any]:
    """Return the policy with another start-up time of its instances (s)."""
    scaled = {
        key: {**value, "start_up_s": start_up_s}
        for key, value in table.items()
        if key == "mitosis" or key.endswith("autoscale")
    }
    return {**table, **scaled}


def one(
    study: str, name: str, table: dict[str, Any], pieces: list[dict[str, float]], seed: int
) -> tuple[str, int, list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    """Run one policy; return its name, the seed, attainment over time, changes, and a summary."""
    scenario = resolve(
        {
            "model": {"name": "codellama-34b"},
            "cluster": {"node": "l20-pcie-8", "nodes": NODES},
            "engine": {"profile": ENGINE},
            "workload": {
                "lengths": "sharegpt-ecoserve",
                "arrivals": {"kind": "schedule", "pieces": pieces},
                "duration_s": sum(piece["duration_s"] for piece in pieces),
            },
            "slo": {"ttft_s": 5.0, "tpot_s": 0.1, "metric": "ecoserve"},
            "strategy": [{"name": name, "tp_size": 4, **table}],
        }
    )
    result = simulate(scenario, seed=seed)
    requests, scaling = result.columns["requests"], result.columns["scaling"]
    met = met_targets(requests, scenario.environment.slo)["joint"]
    slot = (requests["arrival_s"] // BIN_S).astype(int)
    over_time = [
        {
            "policy": name,
            "time_s": BIN_S * k,
            "rate_rps": float((slot == k).sum() / BIN_S),
            "attainment": float(met[slot == k].mean()),
        }
        for k in np.unique(slot).tolist()
    ]
    changes = [
        {"policy": name, "time_s": float(t), "event": str(e), "instances": int(n)}
        for t, e, n in zip(
            scaling["time_s"], scaling["event"], scaling["num_instances"], strict=True
        )
        if table["kind"] != "fudg"  # its pools count for themselves
    ]
    end_s = float(requests["arrival_s"].max())
    hours = gpu_hours(result.columns["instances"], end_s)
    price = scenario.environment.cluster.price_per_gpu_hour
    summary = {
        "policy": name,
        "attainment": float(met.mean()),
        "gpu_hours": hours,
        "good_per_gpu_hour": float(met.sum()) / hours,
        "cost": hours * price if price else "",
        "currency": scenario.environment.cluster.currency if price else "",
        "most_instances": int(changes[-1]["instances"] if changes else result.num_gpus // 4)
        if study == "rising"
        else result.num_gpus // 4,
    }
    return name, seed, over_time, changes, summary


def end_of(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the means of some summaries, and the fewest and most instances they end with."""
    means = {
        key: float(np.mean([run[key] for run in runs]))
        for key, value in runs[0].items()
        if isinstance(value, float)
    }
    ends = [run["most_instances"] for run in runs]
    return {**runs[0], **means, "fewest": min(ends), "most": max(ends)}


def kept(folder: Path, *call: Any) -> tuple[str, int, Any, Any, Any]:
    """Return what `one` returns for `call`, from `folder` if it was run before."""
    digest = sha256(json.dumps([cell.program(), *call]).encode()).hexdigest()
    path = folder / f"elastic-{digest[:20]}.json"
    if not path.exists():
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(one(*call)), encoding="utf-8")
        partial.replace(path)
    name, seed, *rest = json.loads(path.read_text(encoding="utf-8"))
    return name, seed, *rest


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both studies and print their summaries."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, default=Path("results/ecoserve"))
    parser.add_argument("--hour", type=float, default=120.0, help="length of an hour (s)")
    parser.add_argument("--study", choices=("rising", "day"), help="this one alone")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each policy")
    parser.add_argument("--quick", action="store_true", help="a few seconds of each")
    parser.add_argument("--jobs", type=int, help="processes; default: one per core")
    options = parser.parse_args(arguments)
    shapes = {"rising": rising(), "day": day(options.hour)}
    if options.quick:
        shapes = {
            name: [{**piece, "duration_s": 1.0} for piece in pieces]
            for name, pieces in shapes.items()
        }
    runs_folder = options.out / "runs"
    runs_folder.mkdir(parents=True, exist_ok=True)
    for study, policies in (("rising", RISING), ("day", DAY)):
        if options.study not in (None, study):
            continue
        if study == "day":  # as much shorter as its hours are
            short_s = START_UP_S * options.hour / 3600.0
            policies = {name: with_start_up(table, short_s) for name, table in policies.items()}
        calls = [
            (runs_folder, study, name, table, shapes[study], seed)
            for name, table in policies.items()
            for seed in range(options.seeds)
        ]
        done = {
            (name, seed): rest for name, seed, *rest in outcomes(kept, calls, jobs=options.jobs)
        }
        found = [done[name, 0] for name in policies]  # over time: of the first seed
        write_csv(options.out / f"{study}_attainment.csv", [r for rows in found for r in rows[0]])
        changes = [r for rows in found for r in rows[1]]
        nothing = {"policy": "", "time_s": 0.0, "event": "", "instances": 0}
        write_csv(options.out / f"{study}_changes.csv", changes or [nothing])
        path = options.out / f"{study}.csv"
        runs = [[done[name, seed][2] for seed in range(options.seeds)] for name in policies]
        write_csv(path, [end_of(of_policy) for of_policy in runs])
        print(f"{path}\n{path.read_text(encoding='utf-8')}", flush=True)


if __name__ == "__main__":
    main()
