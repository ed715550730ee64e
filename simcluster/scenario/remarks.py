"""What of a scenario is not used, and what was probably not meant: refused, or said in one line."""

from __future__ import annotations

from collections.abc import Iterator

from simcluster.errors import ConfigError, DataError
from simcluster.scenario.plausible import implausible, unused_connector
from simcluster.scenario.scenario import Scenario
from simcluster.strategies import FuDG
from simcluster.strategies.base import ONE_OF_EACH, CommonSettings


def refuse_unused(scenario: Scenario) -> None:
    """Refuse further models and machines that no strategy and no command can use.

    Raises
    ------
    ConfigError
        If all strategies are of one model on one type of GPU, and there is no ``[cooptimize]``.
    """
    only_one = all(strategy.kind in ONE_OF_EACH for strategy in scenario.strategies)
    if scenario.cooptimize is not None or not only_one:
        return
    if not scenario.strategies and scenario.rank is None:
        return
    environment = scenario.environment
    gpus = [cluster.gpu.name for cluster in environment.clusters]
    models = [model.spec.name for model in environment.models]
    for name, (used, *others) in (("cluster", gpus), ("model", models)):
        if others:
            raise ConfigError(
                f"extra_{name}[0]",
                others[0],
                f"is not used: {_why(name)}, and [{name}] has {used}",
                f"Remove it, or give it a scenario of its own as [{name}]; strategies of kind "
                "'routed' and [cooptimize] use several.",
            )


def _why(name: str) -> str:
    if name == "model":
        return "a strategy of kind nodg, fudg or padg serves one model, that of [model]"
    return (
        "a strategy of kind nodg, fudg or padg runs on the GPUs of [cluster] alone (prefill and "
        "decode on different types of GPUs are not simulated)"
    )


def remarks(scenario: Scenario) -> list[str]:
    """Return what a reader of the results must know of the scenario, one line each.

    Tables and settings that strategies do not use, prefixes that nobody reuses, and values that are
    hardly meant.
    """
    return [
        *_unused(scenario),
        *unused_connector(scenario),
        *_prefixes(scenario),
        *_api_times(scenario),
        *_waits(scenario),
        *_layouts(scenario),
        *implausible(scenario),
    ]


def _unused(scenario: Scenario) -> Iterator[str]:
    environment = scenario.environment
    names = [s.name for s in scenario.strategies if s.kind in ONE_OF_EACH]
    if not names:
        return
    who = f"{', '.join(names)}: " if len(names) < len(scenario.strategies) else ""
    if environment.extra_clusters:
        others = ", ".join(cluster.gpu.name for cluster in environment.extra_clusters)
        yield f"{who}on {environment.cluster.gpu.name} alone; {others} of extra_cluster not used"
    if environment.extra_models:
        others = ", ".join(model.spec.name for model in environment.extra_models)
        yield f"{who}serves {environment.model.spec.name} alone; {others} of extra_model not used"
    if scenario.quality is not None and len(names) == len(scenario.strategies):
        yield "[quality] is not used: it is for strategies of kind routed, and there are none"


def _api_times(scenario: Scenario) -> Iterator[str]:
    """Say which times of API servers were given though there are no API servers."""
    engine = scenario.document.get("engine", {})
    profile = scenario.catalog.engine(scenario.environment.engine.name)
    if scenario.environment.engine.api_servers:
        return
    for key in ("api_request_s", "api_token_s"):
        value = engine.get(key)
        if value is not None and value != getattr(profile, key):
            yield (
                f"engine.{key} = {value:g} is not used: engine.api_servers = 0, which limits "
                "nothing"
            )


def _waits(scenario: Scenario) -> Iterator[str]:
    """Say where prompts were to wait beside decodes, and there are none beside them."""
    engine = scenario.environment.engine
    profile = scenario.catalog.engine(engine.name)
    names = [s.name for s in scenario.strategies if isinstance(s, FuDG)]
    for key in ("prefill_interval", "prefill_wait_steps"):
        value = getattr(engine, key)
        if names and value != getattr(profile, key):
            yield (
                f"{', '.join(names)}: engine.{key} = {value} has no effect: prefill instances have "
                "no decodes for prompts to wait beside"
            )


def _layouts(scenario: Scenario) -> Iterator[str]:
    """Say what is assumed where experts are spread over GPUs and ranks have sequences each."""
    common = [s for s in scenario.strategies if isinstance(s, CommonSettings)]
    spread = [s.name for s in common if s.ep_size > 1 and s.expert_skew == 1.0]
    if spread:
        yield (
            f"{', '.join(spread)}: the experts of each GPU are taken to be equally popular "
            "together, so the busiest GPU has what chance gives it (model.expert_spread says only "
            "how many experts a batch visits); expert_skew says otherwise "
            "(how far off: docs/layouts.md)"
        )
    ranks = [s.name for s in common if s.dp_size > 1]
    if ranks:
        yield (
            f"{', '.join(ranks)}: the steps of all data-parallel ranks last as long as that of the "
            "slowest, and requests go to the rank with the fewest (waiting ones count 4), as in "
            "vLLM"
        )


def _prefixes(scenario: Scenario) -> Iterator[str]:
    """Say where prefixes are known and not reused, and where they are looked for and not known."""
    default = scenario.environment.engine.prefix_caching
    reusing = {
        strategy.name: default if strategy.prefix_caching is None else strategy.prefix_caching
        for strategy in scenario.strategies
        if isinstance(strategy, CommonSettings)
    }
    try:
        known = bool(reusing) and scenario.workload.knows_prefixes()
    except DataError:  # results are shown of a file that is not there any more
        return
    names = [name for name, reuses in reusing.items() if reuses != known]
    who = f"{', '.join(names)}: " if len(names) < len(scenario.strategies) else ""
    if names and known:
        yield (
            f"{who}prompts that begin alike are computed again: prefix caching is off "
            "(engine.prefix_caching = true reuses them)"
        )
    elif names:
        yield (
            f"{who}prefix caching has no effect: requests do not say what they have in common "
            "(a trace with ids of blocks, or arrivals of kind sessions, does)"
        )
    for strategy in scenario.strategies:
        if getattr(strategy, "router", "") == "prefix-aware" and not (
            known and reusing[strategy.name]
        ):
            yield f"{strategy.name}: its router finds no prefixes, and chooses the least loaded"
