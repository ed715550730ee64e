"""BOute on the catalogue's prices: four plans for 32 USD per hour, and what mixing GPUs saves.

First the motivating example of the paper (arXiv 2602.10729): Llama-3.1-70B alone on 12 H100;
routing with 6 GPUs for each model; with the best split of 12 H100; on 6 RTX 5090 and 10 H100.
The paper gives neither rate nor lengths; here the 95th percentile of each plan over the rate, each
on its best parallelism. Then the cheapest plan at equal targets with one GPU type and with several,
and what each GPU type is good at, part by part of what decides it.

python scenarios/boute.py -o results/boute
python plots/fig_boute.py results/boute/example-40.csv -o boute-example.png
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import simcluster
from simcluster.scenario.file import parse_override
from simcluster.studies.cooptimize.database import Unit, kinds_of, throughput_rps
from simcluster.studies.cooptimize.fleets import NO_FLEET, Fleet
from simcluster.studies.cooptimize.judge import Confirmed, Judge, Plan
from simcluster.studies.cooptimize.run import (
    BASELINES,
    described,
    prepared,
    ranked,
    restricted,
    rules,
    table_of,
)
from simcluster.studies.cooptimize.search import Space, exhaustive

HERE = Path(__file__).parent
H100, RTX_5090, RTX_PRO = "H100 SXM", "RTX 5090", "RTX PRO 6000 Blackwell Server"
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
BY_FOURS = "routing, 4 + 8 or 8 + 4 H100"
"""The best split where only whole replicas of four GPUs change hands: another reading of the third
plan, since the paper does not say which splits were tried."""
SHOWN = (*PLANS[:2], BY_FOURS, *PLANS[2:])
READINGS = {"any split": PLANS, "split by fours": (*PLANS[:2], BY_FOURS, PLANS[3])}
KINDS = {
    WEAK: {H100: 1, RTX_PRO: 1, RTX_5090: 1},
    STRONG: {H100: 4, RTX_PRO: 2, RTX_5090: 8},
}
"""The tensor parallelism of most requests per GPU, of each model on each type."""
ABLATIONS: dict[str, tuple[dict[str, object], str]] = {
    "as it is": ({}, ""),
    "prefill first, not chunked": ({"cooptimize.strategies": ["nodg"]}, ""),
    "no host time": ({"engine.profile": "ideal"}, ""),
    "host time of vLLM 0.7": ({"engine.profile": "vllm-0.7"}, ""),
    "answers of 75 tokens, not 300": ({"workload.lengths.output_median": 75}, ""),
    "answers of 900 tokens": ({"workload.lengths.output_median": 900}, ""),
    "prompts of 1,500 tokens, not 150": ({"workload.lengths.prompt_median": 1500}, ""),
    "80 GB on every GPU": ({}, "memory"),
    "NVLink on every GPU": ({}, "fabric"),
}
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
    kind = kinds_of(judge.scenario, judge.table)[0]
    sizes = sorted(
        (u.tp_size for u in judge.database if (u.model, u.gpu) == (model, gpu)), reverse=True
    )
    return [
        judge.stock.fleet(
            judge.database,
            [(Unit(model, gpu, kind, size, 1), n) for size, n in mix.items() if n],
        )
        for mix in partitions(num_gpus, sizes)
        if any(mix.values())
    ]


def fastest(judge: Judge, fractions: Sequence[float], pairs: Sequence[tuple[Fleet, Fleet]]) -> Plan:
    """Return the pair of fleets with the least latency."""
    plans = [judge.look_up(fractions, pair) for pair in pairs]

    def load(plan: Plan) -> float:
        return max(
            share / fleet.capacity_rps
            for share, fleet in zip(plan.fractions, plan.fleets, strict=True)
            if share > 0
        )

    # Beyond the loads of the database all are infinitely slow: then the one that carries most.
    return min(plans, key=lambda plan: (plan.latency_s, load(plan)))


def four_plans(judge: Judge, fractions: tuple[float, float]) -> list[Plan]:
    """Return the example's plans, each on its best parallelism, in the order of `SHOWN`."""

    def split(weak: int, strong: int, gpu: str = H100) -> list[tuple[Fleet, Fleet]]:
        return [
            (one, other)
            for one in fleets(judge, WEAK, gpu, weak)
            for other in fleets(judge, STRONG, H100, strong)
        ]

    fours = [*split(4, 8), *split(8, 4)]
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
        fastest(judge, fractions, fours),
        fastest(judge, fractions, halves),
        fastest(judge, fractions, mixed),
    ]


def example(
    judge: Judge, fractions: tuple[float, float], rates: Sequence[float], out: Path
) -> None:
    """Print the plans' latency over the rate, simulated token by token; write it as a CSV."""
    print(f"P95 end-to-end latency (s), simulated; as published: {PUBLISHED_S}")
    print(f"{100 * fractions[0]:g} % to the 8B, {100 * fractions[1]:g} % to the 70B")
    print(f"{'req/s':>6}  " + "  ".join(f"{name:>30}" for name in SHOWN))
    found: dict[float, dict[str, float]] = {}
    lines = ["rate_rps,plan,p95_s,half_width_s,gpus"]
    for rate in rates:
        at_rate = dataclasses.replace(judge, rate_rps=float(rate))
        plans = four_plans(at_rate, fractions)
        confirmed = at_rate.confirm(plans)
        found[rate] = {n: one.latency_s for n, one in zip(SHOWN, confirmed, strict=True)}
        print(f"{rate:6g}  " + "  ".join(f"{found[rate][n]:30.1f}" for n in SHOWN), flush=True)
        lines += [
            f'{rate:g},"{name}",{one.latency_s!r},{one.half_width_s!r},'
            f'"{described(at_rate, one.plan)}"'
            for name, one in zip(SHOWN, confirmed, strict=True)
        ]
    out.write_text("\n".join(lines) + "\n")
    for reading, names in READINGS.items():
        for count in (3, 4):
            held = [
                rate
                for rate, row in found.items()
                if all(row[a] > row[b] for a, b in pairwise(names[:count]))
            ]
            where = ", ".join(f"{rate:g}" for rate in held) or "no rate"
            print(f"{reading}: the order of the first {count} holds at {where} requests/s.")


def ablations(changes: dict[str, object]) -> None:
    """Print what the GPU types give per dollar, as it is and with one thing changed at a time."""
    print("\nRequests per dollar against an H100 (and requests/s of an H100), saturated:")
    heads = [f"{model[10:].upper()} {gpu}" for model in KINDS for gpu in ("H100", "PRO", "5090")]
    print(f"{'':34}" + "".join(f"{head:>10}" for head in heads))
    for name, (extra, replaced) in ABLATIONS.items():
        scenario = simcluster.load(HERE / "boute.toml", {**changes, **extra})
        kind = kinds_of(scenario, table_of(scenario))[0]
        shown = []
        for model, sizes in KINDS.items():
            values = []
            for gpu, tp_size in sizes.items():
                part = scenario.environment.part(model, gpu)
                like = scenario.environment.part(model, H100).cluster
                cluster = part.cluster
                if replaced == "memory":
                    memory = dataclasses.replace(cluster.gpu, memory_bytes=like.gpu.memory_bytes)
                    cluster = dataclasses.replace(cluster, gpu=memory)
                if replaced == "fabric":
                    cluster = dataclasses.replace(
                        cluster, fabric=like.fabric, gpus_per_domain=None, gpus_per_switch=None
                    )
                part = dataclasses.replace(part, cluster=cluster)
                unit = Unit(model, gpu, kind, tp_size, 1)
                alone = dataclasses.replace(scenario, environment=part)
                per_gpu = throughput_rps(alone, unit, 1, 0) / tp_size
                price = cluster.price_per_gpu_hour
                assert price is not None, "boute.toml prices every type"
                values.append((per_gpu, per_gpu / price))
            shown.append(f"{values[0][0]:10.2f}")
            shown += [f"{value / values[0][1]:10.2f}" for _, value in values[1:]]
        print(f"{name:34}" + "".join(shown), flush=True)


def saving(judge: Judge, name: str) -> None:
    """Print the cheapest plan of each kind at equal targets over the rate."""
    print(
        f"\nCheapest plan (USD per hour), {name}: quality at least "
        f"{judge.table.quality_at_least}, P95 at most {judge.table.latency_at_most_s} s"
    )
    homogeneous = rules()[BASELINES[3]]
    print(" req/s  mixed: USD       P95 (s)    one type       P95 (s)  saving %")
    for rate in (10, 20, 30, 40):
        space = Space.of(dataclasses.replace(judge, rate_rps=float(rate)))
        best = []
        for front in (exhaustive(space).front, restricted(space, homogeneous)):
            best.append(next(iter(kept(space.judge, front)), None))
        found = [one for one in best if one is not None]
        if len(found) < 2:
            print(f"{rate:6g}  no plan within the targets")
            continue
        costs = [one.plan.cost_per_hour for one in found]
        cells = "  ".join(
            f"{cost:10.2f}  {one.latency_s:5.1f} +- {one.half_width_s:3.1f}"
            for cost, one in zip(costs, found, strict=True)
        )
        print(f"{rate:6g}  {cells}  {100 * (1 - costs[0] / costs[1]):8.1f}")
        for name, one in zip(("mixed", "one type"), found, strict=True):
            print(f"        {name}: {described(space.judge, one.plan)}", flush=True)


def kept(judge: Judge, front: Sequence[Plan]) -> Iterator[Confirmed]:
    """Give the plans that keep the targets as simulated, cheapest first."""
    for plan in ranked(judge, front)[:8]:
        yield from filter(judge.keeps, judge.confirm([plan]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the parts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, default=Path("results/boute"))
    parser.add_argument("--duration", type=float, default=120.0, help="length of each run (s)")
    parser.add_argument("--rates", type=float, nargs="+", default=RATES, help="requests/s")
    parser.add_argument("--set", dest="changes", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--splits", type=int, default=len(SPLITS), help="how many of the splits")
    parser.add_argument("--part", choices=["example", "saving", "types", "all"], default="all")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    path, cache = HERE / "boute.toml", options.out / "cache"
    changes: dict[str, object] = {
        "cooptimize.budget_per_hour": None,
        "slo.e2el_s": None,  # latencies of runs of a stated length, overloaded or not
        "workload.duration_s": options.duration,
        **dict(parse_override(text) for text in options.changes),
    }
    if options.part in ("types", "all"):
        ablations(changes)
    if options.part in ("example", "all"):
        free = {**changes, "cooptimize.quality_at_least": None}
        judge = prepared(simcluster.load(path, free), cache=cache)
        for fractions in SPLITS[: options.splits]:
            table = options.out / f"example-{100 * fractions[0]:g}.csv"
            example(judge, fractions, options.rates, table)
    targets = {
        "cooptimize.goal": "cost",
        "cooptimize.objectives": ["cost", "latency"],
        "cooptimize.latency_at_most_s": 25.0,
    }
    for name, workload in WORKLOADS.items() if options.part in ("saving", "all") else ():
        scenario = simcluster.load(path, {**changes, **targets, **workload})
        saving(prepared(scenario, cache=cache), name)


if __name__ == "__main__":
    main()
