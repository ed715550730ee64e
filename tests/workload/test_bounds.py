"""Values that no one can mean are refused by a rule of their key; those at its ends build."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import simcluster
from helpers.refusals import refused
from simcluster.errors import ConfigError, SimclusterError
from simcluster.units import MAX_TIME_S
from simcluster.workload import ARRIVALS, LENGTHS, Workload, WorkloadSettings, build
from simcluster.workload.base import MAX_TOKENS

DOCUMENT: dict[str, Any] = {
    "model": {"name": "llama-3.1-8b"},
    "cluster": {"gpu": "H100", "gpus_per_node": 1},
    "workload": {"num_requests": 20},
    "strategy": [{"name": "m", "kind": "nodg"}],
}
FIXED = {"kind": "fixed", "prompt_len": 100, "output_len": 10}
LOGNORMAL = {
    "kind": "lognormal",
    "prompt_median": 100,
    "prompt_sigma": 1,
    "output_median": 10,
    "output_sigma": 1,
}
SCHEDULE = {"kind": "schedule", "pieces": [{"duration_s": 10, "rate_rps": 1}]}


def workload(**keys: Any) -> dict[str, Any]:
    """A scenario with this workload."""
    base = {"lengths": FIXED, "num_requests": 20} | keys
    return {**DOCUMENT, "workload": {k: v for k, v in base.items() if v is not None}}


def with_arrivals(**keys: Any) -> dict[str, Any]:
    """A scenario with these arrivals."""
    return workload(arrivals=keys, lengths=None if keys["kind"] == "sessions" else FIXED)


@pytest.mark.parametrize(
    ("document", "key"),
    [
        (workload(rate_rps=1e300), "workload.rate_rps"),
        (workload(num_requests=10**30), "workload.num_requests"),
        (workload(duration_s=1e300, num_requests=None), "workload.duration_s"),
        (workload(lengths={**FIXED, "prompt_len": 10**30}), "workload.lengths.prompt_len"),
        (workload(lengths={**LOGNORMAL, "prompt_median": 1e300}), "workload.lengths.prompt_median"),
        (workload(lengths={**LOGNORMAL, "output_sigma": 1e6}), "workload.lengths.output_sigma"),
        (
            workload(
                lengths={
                    "kind": "quantiles",
                    "levels": [0, 1],
                    "prompt": [1, 1e300],
                    "output": [1, 2],
                }
            ),
            "workload.lengths.prompt",
        ),
        (with_arrivals(kind="gamma", cv=1e300), "workload.arrivals.cv"),
        (with_arrivals(kind="gamma", burstiness=1e-300), "workload.arrivals.burstiness"),
        (with_arrivals(kind="on-off", on_s=1e-6, off_s=1), "workload.arrivals.on_s"),
        (with_arrivals(kind="on-off", on_s=1, off_s=1e300), "workload.arrivals.off_s"),
        (
            with_arrivals(kind="schedule", pieces=[{"duration_s": 1e-9, "rate_rps": 1}]),
            "workload.arrivals.pieces",
        ),
        (
            with_arrivals(kind="schedule", pieces=[{"duration_s": 1, "rate_rps": 1e300}]),
            "workload.arrivals.pieces",
        ),
        (with_arrivals(kind="closed-loop", concurrency=10**9), "workload.arrivals.concurrency"),
        (with_arrivals(kind="sessions", mean_turns=1e6), "workload.arrivals.mean_turns"),
        (with_arrivals(kind="sessions", gap_median_s=1e300), "workload.arrivals.gap_median_s"),
        (with_arrivals(kind="sessions", message_median=1e300), "workload.arrivals.message_median"),
        (with_arrivals(kind="sessions", system_len=10**30), "workload.arrivals.system_len"),
        (
            with_arrivals(kind="sessions", max_context_len=10**30),
            "workload.arrivals.max_context_len",
        ),
        (with_arrivals(kind="trace", path="x", start_s=1e300), "workload.arrivals.start_s"),
        (with_arrivals(kind="trace", path="x", block_size=10**30), "workload.arrivals.block_size"),
        (
            workload(classes=[{"name": "a", "share": 1.0, "priority": 10**30}]),
            "workload.classes",
        ),
    ],
)
def test_a_value_that_no_one_can_mean_is_refused_by_its_key(
    document: dict[str, Any], key: str
) -> None:
    """In one line, with the rule; nothing is drawn."""
    with pytest.raises(ConfigError) as caught:
        simcluster.resolve(document)
    assert caught.value.key.startswith(key)
    assert "must be" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("rate_rps", [1e10, 1e300, float("inf"), float("nan"), 0.0, -1.0])
def test_a_rate_from_elsewhere_keeps_the_same_rule(rate_rps: float) -> None:
    """Of a sweep or of --rate."""
    settings = simcluster.resolve(workload()).workload
    with refused("workload.rate_rps = ", "above 0 and at most 1e+09 requests/s"):
        build(settings, seed=0, rate_rps=rate_rps, max_model_len=1000)


def built(settings: WorkloadSettings, rate_rps: float | None) -> Workload | str:
    """The requests, or the line that says why there are none."""
    try:
        return build(settings, seed=0, rate_rps=rate_rps, max_model_len=2**31)
    except SimclusterError as error:
        return str(error)


EXTREMES: list[dict[str, Any]] = [
    with_arrivals(kind="gamma", cv=100.0),
    with_arrivals(kind="gamma", cv=1e-3),
    with_arrivals(kind="gamma", burstiness=1e6),
    with_arrivals(kind="gamma", burstiness=1e-4),
    with_arrivals(kind="on-off", on_s=1e-3, off_s=MAX_TIME_S),
    with_arrivals(kind="on-off", on_s=MAX_TIME_S, off_s=1e-3),
    with_arrivals(kind="schedule", pieces=[{"duration_s": 1e-3, "rate_rps": 1e9}]),
    with_arrivals(kind="sessions", mean_turns=1000, gap_median_s=86_400, gap_sigma=5),
    with_arrivals(kind="sessions", mean_turns=1000, gap_median_s=1e-3, gap_sigma=0),
    with_arrivals(kind="sessions", message_median=MAX_TOKENS, message_sigma=5),
    with_arrivals(kind="sessions", system_len=MAX_TOKENS, system_prompts=1_000_000),
    with_arrivals(kind="sessions", zipf=10, max_context_len=2),
    workload(lengths={**LOGNORMAL, "prompt_median": MAX_TOKENS, "prompt_sigma": 5}),
    workload(lengths={**FIXED, "prompt_len": MAX_TOKENS, "output_len": MAX_TOKENS}),
]


@pytest.mark.parametrize("rate_rps", [1e-9, 1.0, 1e9])
@pytest.mark.parametrize("number", range(len(EXTREMES)))
def test_values_at_the_ends_of_their_rules_build_or_are_refused(
    number: int, rate_rps: float
) -> None:
    """Finite arrivals in order and lengths from 1 up; or one line."""
    result = built(simcluster.resolve(EXTREMES[number]).workload, rate_rps)
    if isinstance(result, str):
        assert len(result.splitlines()) == 1
        return
    assert np.isfinite(result.arrival_s).all()
    assert (np.diff(result.arrival_s) >= 0).all()
    assert result.arrival_s[-1] < MAX_TIME_S
    assert min(result.prompt_len.min(), result.output_len.min()) >= 1


def test_more_users_than_requests_are_no_endless_loop() -> None:
    """A million users, ten requests: ten at once."""
    document = workload(arrivals={"kind": "closed-loop", "concurrency": 1_000_000}, num_requests=10)
    requests = simcluster.simulate(simcluster.resolve(document)).requests
    assert requests["arrival_s"].tolist() == [0.0] * 10


def test_every_number_of_a_workload_has_an_upper_rule() -> None:
    """In the schema, so that `docs/scenario.md` shows it: a number without fills the memory."""
    from pydantic import TypeAdapter

    unbounded = []
    for cls in (WorkloadSettings, *ARRIVALS.values(), *LENGTHS.values()):
        schema = TypeAdapter(cls).json_schema()
        for table in (schema, *schema.get("$defs", {}).values()):
            for key, value in table.get("properties", {}).items():
                members = [value, *value.get("anyOf", []), value.get("items", {})]
                unbounded += [
                    f"{cls.__name__}.{key}"
                    for member in members
                    if member.get("type") in ("number", "integer")
                    and not {"maximum", "exclusiveMaximum"} & member.keys()
                ]
    # The levels of quantiles must end with 1.
    assert set(unbounded) <= {"QuantileLengths.levels", "WorkloadSettings.levels"}
