"""Replay a production trace at its own pace and faster, and see where TTFT and TPOT break.

    python scenarios/azure_trace.py --trace AzureLLMInferenceTrace_conv.csv -o results/azure

The trace is a CSV of the Azure LLM inference data set 2023, or one with the columns arrival_s,
prompt_len and output_len; it may be compressed with gzip.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

import simcluster
from simcluster.show import text as report
from simcluster.workload import build

SCENARIO = Path(__file__).with_name("quickstart.toml")
SPEEDS = (0.5, 1.0, 2.0, 4.0)
"""Rates of the sweep, as multiples of the trace's own."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Sweep multiples of the trace's rate, record TTFT and TPOT of every request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trace", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, default=Path("results/azure_trace"))
    parser.add_argument(
        "--num-requests", type=int, default=2000, help="first requests of the trace"
    )
    options = parser.parse_args(arguments)

    changes: dict[str, object] = {
        "workload.trace": str(options.trace.absolute()),
        "workload.num_requests": options.num_requests,
        "sweep.rates_rps": [],
    }
    scenario = simcluster.load(SCENARIO, changes)
    longest = scenario.environment.model.max_model_len
    own = build(scenario.workload, seed=0, rate_rps=None, max_model_len=longest).rate_rps
    assert own is not None, "a trace whose requests all arrive at once has no rate"
    changes["sweep.rates_rps"] = [own * speed for speed in SPEEDS]
    comparison = simcluster.compare(simcluster.load(SCENARIO, changes), out=options.out)

    print(f"The trace brings {own:.2f} requests/s.\n")
    print(report.comparison_text(comparison))
    traces = {
        cell[:2]: comparison.requests(*cell)[["arrival_s", "ttft_s", "tpot_s"]]
        for cell in comparison.cells()
    }
    frame = pd.concat(traces, names=["strategy", "rate_rps"]).reset_index(level=[0, 1])
    by_run = frame.groupby(["strategy", "rate_rps"], sort=False)
    print(by_run[["ttft_s", "tpot_s"]].quantile(0.9).round(3).add_suffix("_p90").to_string())


if __name__ == "__main__":
    main()
