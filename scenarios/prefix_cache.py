"""What does reuse of common prefixes give conversations? TTFT and goodput with and without it.

    python scenarios/prefix_cache.py -o results/prefix_cache

Writes `prefix_cache.csv` (one row per strategy and rate) and `prefix_cache.png`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd

import simcluster

SCENARIO = Path(__file__).with_name("prefix_cache.toml")
COLUMNS = ["strategy", "rate_rps", "slo_attainment", "ttft_s_p50", "ttft_s_p90", "tpot_s_p90"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Sweep the rates, record what was found in the caches, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, default=Path("results/prefix_cache"))
    parser.add_argument("--duration", type=float, default=240.0, help="length of each run (s)")
    options = parser.parse_args(arguments)

    changes = {
        "workload.duration_s": options.duration,
        "run.warmup_s": options.duration / 4,
    }
    scenario = simcluster.load(SCENARIO, changes)
    comparison = simcluster.compare(scenario)
    sweep = comparison.sweep[[*COLUMNS, "cached_token_share"]]
    options.out.mkdir(parents=True, exist_ok=True)
    sweep.to_csv(options.out / "prefix_cache.csv", index=False)
    draw(sweep, scenario.environment.slo.ttft_s, options.out / "prefix_cache.png")
    print(sweep.round(3).to_string(index=False))
    print("\nGoodput (requests/s; the ends of the sweep are bounds):\n")
    print(comparison.goodput.set_index("strategy")["goodput_rps"].round(1).to_string())


def draw(sweep: pd.DataFrame, ttft_s: float | None, file: Path) -> None:
    """Draw TTFT and the share of the prompts found in the caches over the rate."""
    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7.6, 6.2), sharex=True, height_ratios=(2, 1), layout="constrained"
    )
    for name, rows in sweep.groupby("strategy", sort=False):
        (line,) = above.plot(rows["rate_rps"], rows["ttft_s_p90"], marker="o", label=f"{name}, P90")
        above.plot(
            rows["rate_rps"],
            rows["ttft_s_p50"],
            marker="o",
            mfc="white",
            ls="--",
            color=line.get_color(),
            label=f"{name}, P50",
        )
        below.plot(
            rows["rate_rps"], 100 * rows["cached_token_share"], marker="o", color=line.get_color()
        )
    if ttft_s is not None:
        above.axhline(ttft_s, color="grey", lw=1, ls=":", label="target")
    above.set(yscale="log", ylabel="TTFT (s)")
    figure.legend(loc="outside upper center", frameon=False, ncols=3)
    below.set(
        xlabel="Offered rate (turns/s)", ylabel="Prompt tokens\nfrom cache (%)", ylim=(-3, 103)
    )
    figure.savefig(file, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main()
