"""BOute on the catalogue's prices: four plans for 32 USD per hour, and what mixing GPUs saves.

First the motivating example of the paper (arXiv 2602.10729): Llama-3.1-70B alone on 12 H100;
routing with 6 GPUs for each model; with the best split of 12 H100; on 6 RTX 5090 and 10 H100.
The paper gives neither rate nor lengths; here the 95th percentile of each plan over the rate, each
on its best parallelism. Then the cheapest plan at equal targets with one GPU type and with several.

python scenarios/boute.py -o results/boute
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import simcluster
from simcluster.errors import ConfigError
from simcluster.planner.cooptimize.database import Unit
from simcluster.planner.cooptimize.fleets import NO_FLEET, Fleet
from simcluster.planner.cooptimize.judge import Judge, Plan
from simcluster.planner.cooptimize.run import (
    BASELINES,
    described,
    prepared,
    ranked,
    restricted,
    rules,
)
from simcluster.planner.cooptimize.search import Space, exhaustive
from simcluster.scenario_file import parse_override

HERE = Path(__file__).parent
H100, RTX_5090 = "H100 SXM", "RTX 5090"
WEAK, STRONG = "llama-3.1-8b", "llama-3.1-70b"
RATES = (6, 12, 18, 24, 30, 36, 42, 48, 54, 60, 66, 72)
SPLITS = ((0.4, 0.6), (0.6, 0.4))
"""Load fractions of the 8B and 70B: the example's are "40/60", in which order is not known."""
PUBLISHED_S = (28.2, 25.6, 20.5, 17.1)
PLANS = (
    "routing, 6 + 6 H100",
    "70B alone, 12 H100",
    "routing, best split of 12 H100",
    "routing, 6 RTX 5090 + 10 H100",
)
"""From the slowest to the fastest as published."""
WORKLOADS: dict[str, dict[str, object]] = {
    "short questions (boute.toml)": {},
    "chat (sharegpt-ecoserve)": {"workload.lengths": "sharegpt-ecoserve"},
}


def partitions(total: int, sizes: Sequence[int]) -> Iterator[dict[int, int]]:
    """Give the ways to make up `total` GPUs of units of these sizes, as few idle as can be."""
    if not sizes:
        yield {}
        return
    size, *rest = sizes
    for count in range(total // size, -1, -1):
        for others in partitions(total - count * size, rest):
            used = count * size + sum(s * n for s, n in others.items())
            if total - used < min(sizes):
                yield {size: count, **others}


def fleets(judge: Judge, model: str, gpu: str, num_gpus: int) -> list[Fleet]:
    """Return the fleets of a model on a number of GPUs, by every mix of tensor parallelism."""
    sizes = sorted(
        (u.tp_size for u in judge.database if (u.model, u.gpu) == (model, gpu)), reverse=True
    )
    return [
        judge.stock.fleet(
            judge.database,
            [(Unit(model, gpu, "nodg", size, 1), n) for size, n in mix.items() if n],
        )
        for mix in partitions(num_gpus, sizes)
        if any(mix.values())
    ]


def fastest(judge: Judge, fractions: Sequence[float], pairs: Sequence[tuple[Fleet, Fleet]]) -> Plan:
    """Return the pair of fleets with the least latency."""
    plans = [judge.look_up(fractions, pair) for pair in pairs]
    # Beyond the loads of the database all are infinitely slow: then the one that carries most.
    return min(plans, key=lambda p: (p.latency_s, -sum(f.capacity_rps for f in p.fleets)))


def four_plans(judge: Judge, fractions: tuple[float, float]) -> list[Plan]:
    """Return the example's plans, each on its best parallelism, in the order of `PLANS`."""

    def split(weak: int, strong: int, gpu: str = H100) -> list[tuple[Fleet, Fleet]]:
        return [
            (one, other)
            for one in fleets(judge, WEAK, gpu, weak)
            for other in fleets(judge, STRONG, H100, strong)
        ]

    halves = [pair for n in range(2, 11) for pair in split(12 - n, n)]
    mixed = split(6, 10, RTX_5090)
    for n in (4, 6, 8):  # some of the H100 for the small model too
        for pair in split(6, n, RTX_5090):
            for more in fleets(judge, WEAK, H100, 10 - n):
                parts = [*pair[0].parts, *more.parts]
                mixed.append((judge.stock.fleet(judge.database, parts), pair[1]))
    alone = [(NO_FLEET, fleet) for fleet in fleets(judge, STRONG, H100, 12)]
    return [
        fastest(judge, fractions, split(6, 6)),
        fastest(judge, (0.0, 1.0), alone),
        fastest(judge, fractions, halves),
        fastest(judge, fractions, mixed),
    ]


def example(
    judge: Judge, fractions: tuple[float, float], rates: Sequence[float], cache: Path
) -> dict[float, list[float]]:
    """Print the four plans' latency over the rate, simulated token by token; return it."""
    print(f"P95 end-to-end latency (s), simulated; as published: {PUBLISHED_S}")
    print(f"{100 * fractions[0]:g} % to the 8B, {100 * fractions[1]:g} % to the 70B")
    print(f"{'req/s':>6}  " + "  ".join(f"{name:>30}" for name in PLANS))
    found: dict[float, list[float]] = {}
    for rate in rates:
        at_rate = dataclasses.replace(judge, rate_rps=float(rate))
        plans = four_plans(at_rate, fractions)
        found[rate] = [at_rate.confirm(plan, cache).latency_s for plan in plans]
        print(f"{rate:6g}  " + "  ".join(f"{value:30.1f}" for value in found[rate]), flush=True)
    held = in_order(found, len(PLANS))
    for count in (3, 4):
        where = ", ".join(f"{rate:g}" for rate in in_order(found, count)) or "no rate"
        print(f"The published order of the first {count} holds at {where} requests/s.")
    shown = held or list(rates)
    middle = shown[len(shown) // 2]
    at_rate = dataclasses.replace(judge, rate_rps=float(middle))
    for name, plan in zip(PLANS, four_plans(at_rate, fractions), strict=True):
        print(f"  at {middle:g}: {name}: {described(at_rate, plan)}")
    return found


def in_order(found: dict[float, list[float]], count: int) -> list[float]:
    """Return the rates at which each of the first plans is slower than the next."""
    return [rate for rate, row in found.items() if all(a > b for a, b in pairwise(row[:count]))]


def saving(judge: Judge, name: str, cache: Path) -> None:
    """Print the cheapest plan of each kind at equal targets over the rate."""
    print(
        f"\nCheapest plan (USD per hour), {name}: quality at least "
        f"{judge.table.quality_at_least}, P95 at most {judge.table.latency_at_most_s} s"
    )
    homogeneous = rules()[BASELINES[3]]
    print(f"{'req/s':>6}  {'mixed GPUs':>10}  {'one type':>10}  {'saving %':>9}  mixed plan")
    for rate in (10, 20, 30, 40):
        space = Space.of(dataclasses.replace(judge, rate_rps=float(rate)))
        best = []
        for front in (exhaustive(space).front, restricted(space, homogeneous)):
            best.append(next(iter(kept(space.judge, front, cache)), None))
        if best[0] is None or best[1] is None:
            print(f"{rate:6g}  no plan within the targets")
            continue
        costs = [plan.cost_per_hour for plan in best if plan is not None]
        print(
            f"{rate:6g}  {costs[0]:10.2f}  {costs[1]:10.2f}  {100 * (1 - costs[0] / costs[1]):9.1f}"
            f"  {described(space.judge, best[0])}",
            flush=True,
        )


def kept(judge: Judge, front: Sequence[Plan], cache: Path) -> Iterator[Plan]:
    """Give the plans that keep the targets as simulated, cheapest first."""
    for plan in ranked(judge, front)[:8]:
        try:
            confirmed = judge.confirm(plan, cache)
        except ConfigError:
            continue  # cannot be packed on the nodes
        if judge.keeps(confirmed):
            yield plan


def draw(found: dict[float, list[float]], out: Path) -> None:
    """Draw the four plans' latency over the rate."""
    from simcluster.plot import new_figure

    figure = new_figure()
    ax = figure.add_subplot()
    for plan, name in enumerate(PLANS):
        ax.plot(list(found), [row[plan] for row in found.values()], marker="o", label=name)
    held = in_order(found, len(PLANS))
    if held:
        ax.axvspan(min(held), max(held), color="0.9", zorder=0, label="published order holds")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")
    ax.set_xlabel("offered rate (requests/s)")
    ax.set_ylabel("P95 end-to-end latency (s)")
    ax.legend(fontsize="small")
    figure.savefig(out)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run both parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, default=Path("results/boute"))
    parser.add_argument("--duration", type=float, default=120.0, help="length of each run (s)")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="requests/s")
    parser.add_argument("--set", dest="changes", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--splits", type=int, default=len(SPLITS), help="how many of the splits")
    parser.add_argument("--part", choices=["example", "saving", "both"], default="both")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    path, cache = HERE / "boute.toml", options.out / "cache"
    changes: dict[str, object] = {
        "cooptimize.budget_per_hour": None,
        "workload.duration_s": options.duration,
        **dict(parse_override(text) for text in options.changes),
    }
    if options.part != "saving":
        free = {**changes, "cooptimize.quality_at_least": None}
        judge = prepared(simcluster.load(path, free), cache=cache)
        for fractions in SPLITS[: options.splits]:
            found = example(judge, fractions, options.rates, cache)
            draw(found, options.out / f"example-{100 * fractions[0]:g}.png")
    targets = {
        "cooptimize.goal": "cost",
        "cooptimize.objectives": ["cost", "latency"],
        "cooptimize.latency_at_most_s": 25.0,
    }
    for name, workload in WORKLOADS.items() if options.part != "example" else ():
        scenario = simcluster.load(path, {**changes, **targets, **workload})
        saving(prepared(scenario, cache=cache), name, cache)


if __name__ == "__main__":
    main()
