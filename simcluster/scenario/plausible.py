"""Values that are allowed and hardly meant: each is said in one line, with what is usual."""

from __future__ import annotations

from collections.abc import Iterator
from math import inf
from typing import Final, NamedTuple

from simcluster.config import ClusterConfig, Environment, SloConfig
from simcluster.scenario.scenario import Scenario
from simcluster.strategies import FuDG, PaDG
from simcluster.strategies.base import CommonSettings, RouterSettings
from simcluster.strategies.scaling import ScalingSettings, ThresholdSettings
from simcluster.workload.closed_loop import ClosedLoopArrivals


class _Usual(NamedTuple):
    """Range of a number beyond which it is said."""

    least: float
    most: float
    why: str
    """What it means outside of it."""


_ENGINE: Final = {
    "cpu_speed": _Usual(0.1, 10, "CPUs differ by less than 10 from each other"),
    "host_before_s": _Usual(0, 0.1, "engines take milliseconds of CPU work a step"),
    "host_after_s": _Usual(0, 0.1, "engines take milliseconds of CPU work a step"),
    "host_per_seq_before_s": _Usual(0, 1e-3, "engines take microseconds a sequence"),
    "host_per_seq_after_s": _Usual(0, 1e-3, "engines take microseconds a sequence"),
    "host_workers_s": _Usual(0, 0.1, "engines take milliseconds"),
    "issue_s": _Usual(0, 1e-3, "a kernel is issued in microseconds"),
    "piece_issue_s": _Usual(0, 1e-3, "a kernel is issued in microseconds"),
    "graph_issue_s": _Usual(0, 0.1, "a captured step is launched in less than a millisecond"),
    "front_end_s": _Usual(0, 10, "a front end takes milliseconds"),
    "queue_depth": _Usual(128, inf, "the queue must hold the kernels of a layer, and CUDA's 1024"),
    "chunk_size": _Usual(16, 1_000_000, "budgets of a step are 256 to 32768 tokens"),
    "block_size": _Usual(1, 256, "most of a sequence's last block is empty; engines have 1 to 256"),
    "watermark": _Usual(0, 0.5, "most of the KV cache is kept free"),
    "gpu_memory_utilization": _Usual(0, 0.97, "it leaves nothing for captured graphs"),
    "max_num_seqs": _Usual(
        1, 16_384, "no engine runs that many sequences; the budget limits first"
    ),
    "kv_poll_s": _Usual(0, 1, "engines poll every few milliseconds"),
    "handover_s": _Usual(0, 1, "a proxy and a front end take milliseconds"),
}
"""Numbers of ``[engine]``, and what engines have."""

_LONGEST_S: Final = {"ttft_s": 120.0, "tpot_s": 2.0, "itl_s": 2.0, "e2el_s": 7200.0}
"""Targets above these (s) are milliseconds more often than they are meant."""


def implausible(scenario: Scenario) -> Iterator[str]:
    """Give a line for each value of `scenario` that is hardly meant."""
    environment = scenario.environment
    yield from _engine(environment)
    for cluster in environment.clusters:
        yield from _cluster(cluster)
    yield from _targets(environment.slo)
    yield from _workload(scenario)
    for strategy in scenario.strategies:
        if isinstance(strategy, CommonSettings):
            yield from _strategy(strategy, environment)


def _engine(environment: Environment) -> Iterator[str]:
    engine = environment.engine
    for key, usual in _ENGINE.items():
        value = getattr(engine, key)
        if not usual.least <= value <= usual.most:
            yield f"engine.{key} = {value:g} is unusual: {usual.why}"


def _cluster(cluster: ClusterConfig) -> Iterator[str]:
    """Say what of the machines has no effect, and prices and networks that nobody has."""
    gpu, per_node = cluster.gpu.name, cluster.gpus_per_node
    for key, value in (
        ("nics", cluster.num_nics),
        ("gpus_per_domain", cluster.gpus_per_domain),
        ("gpus_per_switch", cluster.gpus_per_switch),
    ):
        if value is not None and value > per_node:
            yield f"cluster.{key} = {value} is more than the {per_node} GPUs of a node ({gpu})"
    switch = cluster.nodes_per_switch
    if switch is not None and switch >= cluster.num_nodes:
        yield (
            f"cluster.nodes_per_switch = {switch} has no effect: all {cluster.num_nodes} nodes are "
            "on one switch, and oversubscription does not count"
        )
    if cluster.oversubscription > 64:
        yield f"cluster.oversubscription = {cluster.oversubscription:g} is unusual: 1 to 16 are met"
    price = cluster.price_per_gpu_hour
    if price is not None and price > 1000:
        yield f"cluster.price_per_gpu_hour = {price:g} is unusual: GPUs cost 0.2 to 20 USD an hour"


def _targets(slo: SloConfig) -> Iterator[str]:
    """Say which targets look like milliseconds, and which never decide."""
    for where, one in [("slo", slo), *((f"slo.classes.{n}", slo.of(n)) for n in slo.classes or ())]:
        for key, longest_s in _LONGEST_S.items():
            value = getattr(one, key)
            if value is not None and value > longest_s:
                yield (
                    f"{where}.{key} = {value:g} is in seconds, which every request meets; "
                    f"if milliseconds were meant, write {value / 1000:g}"
                )
        if one.ttft_s is not None and one.e2el_s is not None and one.ttft_s >= one.e2el_s:
            yield (
                f"{where}.ttft_s = {one.ttft_s:g} never decides: "
                f"{where}.e2el_s = {one.e2el_s:g} is not above it"
            )
    if slo.attainment < 0.5:
        yield (
            f"slo.attainment = {slo.attainment:g}: most requests may miss the targets; 0.9 stands "
            "for 90 %"
        )


def _workload(scenario: Scenario) -> Iterator[str]:
    workload = scenario.workload
    rates = [*scenario.rates_rps, *([workload.rate_rps] if workload.rate_rps else [])]
    if rates and max(rates) > 1e5:
        yield f"a rate of {max(rates):g} requests/s: all requests of a run come at once"
    process, number = workload.arrival_process, workload.num_requests
    if isinstance(process, ClosedLoopArrivals) and number and process.concurrency > number:
        yield (
            f"workload.arrivals.concurrency = {process.concurrency} is more than the {number} "
            "requests: all come at once, and nobody comes after them"
        )


def _strategy(strategy: CommonSettings, environment: Environment) -> Iterator[str]:
    """Say what of a strategy has no effect beside its other settings."""
    key = f"strategy.{strategy.name}"
    default = type(strategy).__dataclass_fields__["swap_bytes"].default
    if strategy.preemption != "swap" and strategy.swap_bytes != default:
        yield f'{key}.swap_bytes has no effect without preemption = "swap"'
    if strategy.tp_across_nodes and strategy.tp_size <= environment.cluster.gpus_per_node:
        yield (
            f"{key}.tp_across_nodes has no effect: a group of {strategy.tp_size} fits into a node "
            f"of {environment.cluster.gpus_per_node}"
        )
    if isinstance(strategy, RouterSettings):
        if strategy.router != "prefix-aware" and strategy.prefix_weight != 1.0:
            yield f'{key}.prefix_weight has no effect without router = "prefix-aware"'
        if strategy.status_interval_s > 60:
            yield (
                f"{key}.status_interval_s = {strategy.status_interval_s:g}: the router sends "
                "requests by a load of minutes ago"
            )
    for name in ("chunk_size", "max_num_batched_tokens"):
        tokens = getattr(strategy, name, None)
        if tokens is not None and tokens < 16:
            yield f"{key}.{name} = {tokens}: a prompt takes a step for every {tokens} of its tokens"
    if isinstance(strategy, PaDG):
        yield from _ring(key, strategy)
    if isinstance(strategy, FuDG):
        one = environment.cluster.num_nodes == 1
        if one and strategy.placement == "inter-node":
            yield f'{key}.placement = "inter-node": both pools stand on the one node there is'
    for name in ("autoscale", "prefill_autoscale", "decode_autoscale", "mitosis"):
        rules = getattr(strategy, name, None)
        if isinstance(rules, ScalingSettings):
            yield from _scaling(f"{key}.{name}", rules)


def _ring(key: str, strategy: PaDG) -> Iterator[str]:
    if strategy.instances == 1 and strategy.mitosis is None:
        yield f"{key}.instances = 1: a ring of one has no window to pass on"
    if (strategy.fraction or 0.0) > 10:
        yield (
            f"{key}.window = {strategy.window!r}: a window of {strategy.fraction:g} TTFT targets; "
            "prompts that wait for the next one miss theirs"
        )


def _scaling(key: str, rules: ScalingSettings) -> Iterator[str]:
    for name in ("interval_s", "cooldown_s", "start_up_s"):
        seconds = getattr(rules, name)
        if seconds is not None and seconds > 3600:
            yield f"{key}.{name} = {seconds:g}: more than an hour, longer than most runs"
    if isinstance(rules, ThresholdSettings) and rules.min_instances == rules.max_instances:
        yield f"{key} has no effect: min_instances and max_instances are equal"


def unused_connector(scenario: Scenario) -> Iterator[str]:
    """Say which numbers of a KV connector no strategy uses."""
    engine = scenario.environment.engine
    split = [s for s in scenario.strategies if isinstance(s, FuDG)]
    profile = scenario.catalog.engine(engine.name)
    for key in ("handover_s", "redoes_last_token"):
        if not split and getattr(engine, key) != getattr(profile, key):
            yield f"engine.{key} has no effect: no strategy is of kind fudg"
    if split and engine.redoes_last_token and not any(s.redoes_last_token(engine) for s in split):
        yield (
            "engine.redoes_last_token has no effect: it is left out inside the steps, with "
            'pipelines, and with first_token = "prefill"'
        )
    if any((s.kv_connector or engine.kv_connector) == "inside" for s in split):
        return
    keys = ("put_bytes_per_s", "get_bytes_per_s", "between_steps", "poll_s", "buffer_bytes")
    for key in (f"kv_{name}" for name in keys):
        if getattr(engine, key) != getattr(profile, key):
            yield (
                f"engine.{key} has no effect: no strategy moves KV inside the steps "
                '(kind = "fudg" with kv_connector = "inside")'
            )
    if engine.kv_connector == "inside" != profile.kv_connector and not split:
        yield "engine.kv_connector has no effect: no strategy is of kind fudg"
