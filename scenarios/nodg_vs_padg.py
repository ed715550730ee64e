"""NoDG or PaDG? The answer moves with the latency targets: goodput at relaxed and strict ones.

python scenarios/nodg_vs_padg.py -o results/nodg_vs_padg
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

import simcluster

SCENARIO = Path(__file__).with_name("nodg_vs_padg.toml")
TARGETS = {"relaxed": (5.0, 0.1), "strict": (1.0, 0.05)}
"""TTFT and TPOT targets (s)."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Sweep the rates under both pairs of targets and print the goodputs side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, default=Path("results/nodg_vs_padg"))
    parser.add_argument("--duration", type=float, default=240.0, help="length of each run (s)")
    options = parser.parse_args(arguments)

    goodputs = {}
    for name, (ttft_s, tpot_s) in TARGETS.items():
        changes = {
            "slo.ttft_s": ttft_s,
            "slo.tpot_s": tpot_s,
            "workload.duration_s": options.duration,
        }
        scenario = simcluster.load(SCENARIO, changes)
        comparison = simcluster.compare(scenario, out=options.out / name)
        goodput = comparison.goodput.set_index("strategy")
        sign = goodput["censored"].map({"": "", "above": ">= ", "below": "< "})
        title = f"TTFT {ttft_s:g} s, TPOT {1000 * tpot_s:g} ms"
        goodputs[title] = sign + goodput["goodput_rps"].map("{:.1f}".format)
    print("Goodput (requests/s) at 90 % attainment:\n")
    print(pd.DataFrame(goodputs).to_string())


if __name__ == "__main__":
    main()
