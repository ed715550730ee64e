"""What is known of a scenario before any time passes, for every strategy: as JSON has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import inf
from typing import Any, Final

from simcluster.config import Environment, SloConfig
from simcluster.roofline.host import on_cpu
from simcluster.runs.compare import choose
from simcluster.scenario.scenario import Scenario
from simcluster.show.text import all_notes, targets
from simcluster.strategies import FuDG, Routed, SchedulerSettings, Strategy, dry_run
from simcluster.strategies.base import used_by
from simcluster.studies.check import moves, pools
from simcluster.studies.check.pools import Pool
from simcluster.studies.check.requests import Requests
from simcluster.studies.rank.screen import Bound, Lengths, Screen
from simcluster.workload.base import EndlessArrivals

_ENGINE: Final = (
    "name",
    "scheduler",
    "max_num_seqs",
    "chunk_size",
    "max_num_batched_tokens",
    "plans_ahead",
    "overlaps_host",
    "prefix_caching",
    "block_size",
    "watermark",
    "gpu_memory_utilization",
    "memory_rule",
    "hybrid_kv_cache",
    "graph_max_seqs",
    "front_end_s",
    "front_end_token_s",
    "api_servers",
    "kv_connector",
    "prefill_wait_steps",
    "prefill_wait_share",
    "prefill_interval",
)
"""What of an engine's profile decides what it does; the rest are times."""


def facts(
    scenario: Scenario, *, strategies: Sequence[str] = (), rate_rps: float | None = None
) -> dict[str, Any]:
    """Return memory, batches, step times, transfers and bounds of the strategies of `scenario`.

    Parameters
    ----------
    scenario : Scenario
        What is asked about.
    strategies : sequence of str
        Names of the strategies; all by default.
    rate_rps : float, optional
        Offered rate (requests/s); default as in `simulate`.

    Returns
    -------
    dict
        ``model``, ``requests`` (`Requests.facts`), ``targets``, ``engine`` (defaults in use),
        ``strategies`` (of each ``name``, ``kind``, ``pools``, ``transfer``, ``first_token_s``,
        ``bound``), ``links``, ``accuracy`` and ``notes``. Bytes, tokens, seconds, requests/s.

    Raises
    ------
    ConfigError, DataError
        As `simulate`: a deployment that does not fit, requests that cannot be made.
    """
    names = list(strategies) or [strategy.name for strategy in scenario.strategies]
    named = rate_rps is not None or not _needs_rate(scenario)
    # What is drawn of requests, their lengths, does not depend on the rate.
    cell = choose(scenario, names[0] if names else None, rate_rps if named else 1.0)
    requests = Requests.of(scenario, cell)
    if not named:
        requests = replace(requests, rate_rps=None)
    found: list[dict[str, Any]] = []
    used: list[Pool] = []
    for name in names:
        known, own = _of_strategy(scenario.environment, scenario.strategy(name), requests)
        found.append(known)
        used += own
    kv_links = moves.links(found, scenario.environment.cluster)
    environment = scenario.environment
    engine = environment.engine.on(environment.cluster.gpu)
    notes = [*all_notes(scenario), *_not_counted(requests, found)]
    if not named:
        notes.append("No rate is named: none is compared with the requests/s at most (--rate).")
    return {
        "model": environment.model.spec.name,
        "requests": {**requests.facts(), "any_rate": not named},
        "targets": targets(environment.slo),
        "engine": {key: getattr(engine, key) for key in _ENGINE},
        "strategies": found,
        "links": [*pools.links(used), *kv_links],
        "accuracy": _accuracy(environment),
        "notes": notes,
    }


def _needs_rate(scenario: Scenario) -> bool:
    """Whether the arrivals of a scenario take any rate, and it names none."""
    process = scenario.workload.arrival_process
    takes_any = isinstance(process, EndlessArrivals) and process.own_rate_rps is None
    return takes_any and scenario.default_rate_rps is None


def _of_strategy(
    environment: Environment, strategy: Strategy, requests: Requests
) -> tuple[dict[str, Any], list[Pool]]:
    """Return the facts of one strategy, and its pools."""
    cluster = dry_run(environment, strategy)
    own = list(pools.pools_of(cluster, environment))
    rows = [pools.facts(pool, requests) for pool in own]
    known: dict[str, Any] = {
        "name": strategy.name,
        "kind": strategy.kind,
        "num_gpus": cluster.most_gpus if len(own) == 1 else cluster.num_gpus,
        "pools": rows,
        "transfer": None,
    }
    first_s = own[0].environment.engine.front_end_of(requests.prompt_len)
    first_s += rows[0].get("prefill_s", 0.0)
    if isinstance(strategy, FuDG):
        known["transfer"] = moves.facts(strategy, cluster, requests.prompt_len)
        if strategy.first_token == "decode":
            first_s += known["transfer"]["seconds"] + environment.engine.handover_s
            if strategy.redoes_last_token(environment.engine):
                first_s += rows[-1].get("decode_s", 0.0)
    known["first_token_s"] = first_s
    known["bound"] = _bound(environment, strategy, own, requests)
    return known, own


def _bound(
    environment: Environment, strategy: Strategy, own: Sequence[Pool], requests: Requests
) -> dict[str, Any]:
    """Return what a deployment gets through at most (requests/s), part by part."""
    lengths = requests.lengths
    if requests.reused_share and _caches(strategy, environment):
        lengths = Lengths(
            prompts=lengths.prompts, outputs=lengths.outputs, cached_share=requests.reused_share
        )
    if isinstance(strategy, Routed):
        return {"total_rps": _routed_rps(environment, strategy, own, lengths)}
    if any(pool.role != "mixed" for pool in own) and not isinstance(strategy, FuDG):
        return {"total_rps": None}  # a strategy from elsewhere: nobody knows how its roles meet
    found = _saturated(used_by(strategy, environment), strategy, lengths)
    known: dict[str, Any] = {
        "prefill_rps": _finite(found.prefill_rps),
        "decode_rps": _finite(found.decode_rps),
        "transfer_rps": _finite(found.link_rps),
        "total_rps": found.total_rps,
    }
    engine = on_cpu(environment.engine)
    if engine.api_servers:
        each_s = engine.api_request_s + engine.api_token_s * float(lengths.outputs.mean())
        entries = sum(len(pool.instances) for pool in own if pool.role != "decode")
        known["api_rps"] = engine.api_servers * entries / each_s
        known["total_rps"] = min(known["total_rps"], known["api_rps"])
    if isinstance(strategy, SchedulerSettings) and strategy.splits_prompts and len(own) == 1:
        prompt, output = float(lengths.prompt), float(lengths.outputs.mean())
        steady = pools.Steps(own[0]).steady_rps(prompt, output, found.batch)
        count = found.num_gpus // own[0].instances[0].num_gpus
        known["steady_rps"] = min(known["total_rps"], count * steady)
    return known


def _finite(rps: float) -> float | None:
    """Return a rate, or None for a part that a deployment has not."""
    return rps if rps < inf else None


def _caches(strategy: Strategy, environment: Environment) -> bool:
    own = getattr(strategy, "prefix_caching", None)
    return bool(environment.engine.prefix_caching if own is None else own)


def _saturated(environment: Environment, strategy: Strategy, lengths: Lengths) -> Bound:
    """Return the bound without targets: every request is to be served, none in time."""
    free = Environment(
        model=environment.model,
        cluster=environment.cluster,
        engine=environment.engine,
        slo=SloConfig(attainment=1.0),
        step_times=environment.step_times,
        kernels=environment.kernels,
    )
    return Screen(free, lengths).bound(strategy)


def _routed_rps(
    environment: Environment, strategy: Routed, own: Sequence[Pool], lengths: Lengths
) -> float:
    """Return what the groups of each model carry over the share of the requests it gets: least."""
    each = [0.0] * len(strategy.models)
    for group in strategy.pool:
        found = _saturated(environment.part(group.model, group.gpu), group.serving, lengths)
        placed = sum(
            one.num_gpus
            for pool in own
            for one in pool.instances
            if (one.model, one.gpu) == (group.model, group.gpu)
        )
        alike = [g for g in strategy.pool if (g.model, g.gpu) == (group.model, group.gpu)]
        # By its share of the GPUs: alone in the cluster it might take more of them.
        each[strategy.models.index(group.model)] += (
            found.total_rps * placed / len(alike) / found.num_gpus
        )
    cuts = [0.0, *(min(cut, 1.0) for cut in strategy.cuts()), 1.0]
    shares = [high - low for low, high in pairwise(cuts)]
    return min(rps / share for rps, share in zip(each, shares, strict=True) if share > 0)


def _not_counted(requests: Requests, found: Sequence[dict[str, Any]]) -> list[str]:
    """Say what of the requests these figures leave out, and where the rate is above the bound."""
    lines = []
    if requests.num_rejected:
        lines.append(
            f"{requests.num_rejected} of {requests.num_requests} requests are longer than "
            "engine.max_model_len: rejected, and left out here"
        )
    rate = requests.rate_rps
    for known in found:
        bound = known["bound"]["total_rps"]
        if rate is not None and bound is not None and rate > bound:
            lines.append(
                f"{known['name']}: {rate:.4g} requests/s are offered and at most {bound:.4g} "
                "served: its queue grows as long as requests come"
            )
        buffer = (known["transfer"] or {}).get("buffer_bytes")
        if buffer is not None and buffer < known["transfer"]["bytes"]:
            lines.append(
                f"{known['name']}: the KV cache of the median prompt, "
                f"{known['transfer']['bytes']} bytes, is more than an instance holds with "
                f"engine.kv_buffer_bytes, {buffer:.4g}: one prompt at a time is let in"
            )
    return lines


def _accuracy(environment: Environment) -> list[dict[str, str]]:
    """Return how well each kind of figure is known."""
    cluster = environment.cluster
    memory = "measured" if cluster.gpu.cuda_bytes is not None else "data-sheet"
    about = "the driver's total" if memory == "measured" else "the data sheet's GB"
    return [
        {
            "figure": "weights, KV per token",
            "accuracy": "counted",
            "about": "from the model's shape; within 1 % of published sizes",
        },
        {
            "figure": "KV pool",
            "accuracy": memory,
            "about": f"the engine's rule on {about}; 2.5 % off seven logged ones",
        },
        {
            "figure": "step times, bounds",
            "accuracy": environment.accuracy_of(cluster),
            "about": f"kernels of {cluster.gpu.name}; docs/accuracy.md has the errors",
        },
        {
            "figure": "links",
            "accuracy": "data-sheet",
            "about": "bandwidth of data sheets, and the shares that are reached",
        },
    ]
