"""Which of five strategies carries the most requests on 32 L20? Table and pictures in a minute.

python scenarios/quickstart.py -o results/quickstart
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import simcluster
from simcluster.report.of_runs import answer
from simcluster.show import text as report

SCENARIO = Path(__file__).with_name("quickstart.toml")


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the strategies, write frames and pictures, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, default=Path("results/quickstart"))
    parser.add_argument("--duration", type=float, default=240.0, help="length of each run (s)")
    options = parser.parse_args(arguments)

    scenario = simcluster.load(SCENARIO, {"workload.duration_s": options.duration})
    comparison = simcluster.compare(scenario, out=options.out, progress=show_progress)
    print(report.comparison_text(comparison, answer(comparison)))
    for picture in report.write_figures(comparison, options.out / "figures"):
        print(f"picture: {picture}")
    print(f"frames:  {options.out} (simcluster.read gives them back)")


def show_progress(done: int, total: int, share: float) -> None:
    """Count the finished runs on standard error, if a person reads it."""
    if sys.stderr.isatty():
        text = f"\r{done} of {total} runs, {share:.0%} of the work"
        print(text, end="\n" if done == total else "", file=sys.stderr)


if __name__ == "__main__":
    main()
