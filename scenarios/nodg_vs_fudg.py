"""What does the network cost FuDG? The same strategies on 10 Gbit Ethernet and on InfiniBand.

    python scenarios/nodg_vs_fudg.py -o results/nodg_vs_fudg

Writes `traces.parquet`: TTFT, TPOT and transfer time of every request, by network, strategy, rate.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

import simcluster

SCENARIO = Path(__file__).with_name("nodg_vs_fudg.toml")
NETWORKS = ("10gbe", "ib-400")
COLUMNS = ["request_id", "arrival_s", "ttft_s", "tpot_s", "transfer_s"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Sweep the rates on both networks, record the traces, print medians and goodputs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, default=Path("results/nodg_vs_fudg"))
    parser.add_argument("--duration", type=float, default=240.0, help="length of each run (s)")
    options = parser.parse_args(arguments)

    traces, goodputs = {}, {}
    for network in NETWORKS:
        changes = {"cluster.network": network, "workload.duration_s": options.duration}
        comparison = simcluster.compare(simcluster.load(SCENARIO, changes))
        goodputs[network] = comparison.goodput.set_index("strategy")["goodput_rps"]
        for cell in comparison.cells():
            requests = comparison.requests(*cell)
            traces[network, cell.strategy, cell.rate_rps] = requests[COLUMNS]
    frame = pd.concat(traces, names=["network", "strategy", "rate_rps"]).reset_index(
        level=[0, 1, 2]
    )
    options.out.mkdir(parents=True, exist_ok=True)
    frame.to_parquet(options.out / "traces.parquet", index=False)

    print("Median of TTFT (s), TPOT (s) and KV transfer (s):\n")
    by_run = frame.groupby(["network", "strategy", "rate_rps"], sort=False)
    print(by_run[["ttft_s", "tpot_s", "transfer_s"]].median().round(3).to_string())
    print("\nGoodput (requests/s; the ends of the sweep are bounds):\n")
    print(pd.DataFrame(goodputs).round(1).to_string())


if __name__ == "__main__":
    main()
