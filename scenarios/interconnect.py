"""Where do the strategies cross as the network gets faster? Llama-30B on L20 and on H100.

    python scenarios/interconnect.py -o results/interconnect

FuDG is the better of two splits of its instances, after MoonCake as EcoServe ran it: the KV cache
passes a pool in host memory. Its bandwidth is swept; NoDG and PaDG move no KV. Writes
`interconnect.parquet`: goodput of each strategy, how busy FuDG's NICs are at it and how long its
KV is on its way.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

import simcluster
from simcluster.units import gbit_per_s

SCENARIO = Path(__file__).with_suffix(".toml")
H100 = {
    "cluster.node": "ecoserve-h100",
    "cluster.nodes": 2,
    "strategy.0.tp_size": 2,
    "strategy.1.tp_size": 2,
    "strategy.2.tp_size": 2,
    "strategy.3.tp_size": 2,
    "sweep.rates_rps": [1, 4, 16, 32, 64, 96, 128, 160, 192],
}
MACHINES = {"4 x 8 L20, PCIe": {}, "2 x 8 H100, NVLink": H100}
NODE_GBIT = (5, 10, 20, 40, 80, 400, 3200)
"""Bandwidth of all NICs of a node."""


def with_network(scenario: simcluster.Scenario, gbit: float) -> simcluster.Scenario:
    """Return `scenario` with NICs of `gbit` Gbit/s per node in all; the rest of the link stays."""
    cluster = scenario.environment.cluster
    assert cluster.network is not None
    network = dataclasses.replace(
        cluster.network, name=f"{gbit:g} Gbit/s", bandwidth=gbit_per_s(gbit) / cluster.num_nics
    )
    cluster = dataclasses.replace(cluster, network=network)
    environment = dataclasses.replace(scenario.environment, cluster=cluster)
    return dataclasses.replace(scenario, environment=environment)


def goodputs(scenario: simcluster.Scenario, prefix: str) -> pd.DataFrame:
    """Goodput of the strategies whose names begin with `prefix`."""
    chosen = tuple(s for s in scenario.strategies if s.name.startswith(prefix))
    return simcluster.compare(dataclasses.replace(scenario, strategies=chosen)).goodput


def load_at(scenario: simcluster.Scenario, strategy: str, rate_rps: float) -> dict[str, float]:
    """Utilisation of the busiest NIC while requests arrive, and time on the way, at `rate_rps`."""
    result = simcluster.simulate(scenario, strategy=strategy, rate_rps=rate_rps)
    links, requests = result.links, result.requests
    last_s = requests["arrival_s"].max()
    nics = links[links["link"].str.contains(" nic") & (links["end_s"] <= last_s)]
    return {
        "nic_utilisation": nics.groupby("link")["utilisation"].mean().max(),
        "transfer_p50_s": requests["transfer_s"].median(),
        "transfer_p90_s": requests["transfer_s"].quantile(0.9),
    }


def rows(
    scenario: simcluster.Scenario, machine: str, node_gbit: Sequence[float]
) -> Iterator[dict[str, object]]:
    """Rows of the frame for one kind of machine."""
    for strategy in ("NoDG", "PaDG"):
        goodput = goodputs(scenario, strategy)["goodput_rps"].iloc[0]
        yield {"machine": machine, "strategy": strategy, "goodput_rps": goodput}
    for gbit in node_gbit:
        here = with_network(scenario, gbit)
        found = goodputs(here, "FuDG")
        best = found.loc[found["goodput_rps"].idxmax()]
        yield {
            "machine": machine,
            "strategy": "FuDG",
            "split": best["strategy"],
            "node_gbit": gbit,
            "goodput_rps": best["goodput_rps"],
            "censored": best["censored"],
            **load_at(here, best["strategy"], max(best["goodput_rps"], here.rates_rps[0])),
        }


def main(arguments: Sequence[str] | None = None) -> None:
    """Sweep the bandwidth on both kinds of machine, record, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--out", type=Path, default=Path("results/interconnect"))
    parser.add_argument("--duration", type=float, help="length of each run (s)")
    parser.add_argument(
        "--gbit", type=float, nargs="+", default=NODE_GBIT, help="bandwidths of a node (Gbit/s)"
    )
    options = parser.parse_args(arguments)

    found = []
    for machine, changes in MACHINES.items():
        length = {} if options.duration is None else {"workload.duration_s": options.duration}
        scenario = simcluster.load(SCENARIO, {**changes, **length})
        found.append(pd.DataFrame(rows(scenario, machine, options.gbit)))
        print(f"\n{machine}\n")
        print(found[-1].drop(columns="machine").round(2).to_string(index=False, na_rep=""))
    options.out.mkdir(parents=True, exist_ok=True)
    pd.concat(found).to_parquet(options.out / "interconnect.parquet", index=False)


if __name__ == "__main__":
    main()
