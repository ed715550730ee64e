"""Instances that come and go: nothing is lost, sizes follow the rules, GPU time adds up."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from simcluster.config import SloConfig
from simcluster.engine.clock import Clock
from simcluster.engine.groups.autoscaler import DISK_BYTES_PER_S, Mitosis, Threshold
from simcluster.engine.groups.cluster import Cluster
from simcluster.engine.groups.overall import OverallScheduler
from simcluster.engine.recorder import Recorder
from simcluster.errors import ConfigError
from simcluster.frames.metrics import gpu_hours
from simcluster.request import Request
from simcluster.runs.result import Result
from simcluster.runs.simulate import run
from simcluster.strategies import FuDG, NoDG, PaDG
from simcluster.strategies.scaling import MitosisSettings, ThresholdSettings, start_up_s
from simcluster.testing import specs
from simcluster.testing.examples import examples
from simcluster.testing.laws import check_laws
from simcluster.testing.step_times import LinearStepTime, same_for_all
from simcluster.testing.workloads import workload_of
from simcluster.units import on_grid
from simcluster.workload import Workload

STEP_TIME = same_for_all(LinearStepTime(1.03e-3, 4.9e-3, per_context_token_s=1.7e-6))
MACHINES = specs.environment(
    engine=dataclasses.replace(specs.ideal_engine(), block_size=4),
    max_model_len=256,
    slo=SloConfig(ttft_s=0.25, tpot_s=0.0103),
    num_nodes=3,
    gpus_per_node=8,
)


def mitosis(lower: int, upper: int, **settings: Any) -> MitosisSettings:
    """Looks every 50 ms, without rest, at instances that are there at once."""
    every: dict[str, Any] = {"interval_s": 0.05, "cooldown_s": 0.0, "start_up_s": 0.0}
    return MitosisSettings(lower=lower, upper=upper, **{**every, **settings})


def load(seed: int, count: int = 200, rate_rps: float = 40.0) -> Workload:
    """Poisson arrivals of all lengths."""
    rng = np.random.default_rng(seed)
    return workload_of(
        np.cumsum(rng.exponential(1 / rate_rps, count)),
        rng.integers(1, 120, count),
        rng.integers(1, 100, count),
    )


# --- sizes ---------------------------------------------------------------------------------------


def overall(count: int, lower: int, upper: int) -> tuple[OverallScheduler, Cluster, PaDG]:
    """Idle macro instances."""
    cluster = Cluster(Clock(), MACHINES, Recorder())
    strategy = PaDG(name="padg", instances=count, mitosis=mitosis(lower, upper))
    scheduler = strategy.build(cluster).entry
    assert isinstance(scheduler, OverallScheduler)
    return scheduler, cluster, strategy


def sizes(scheduler: OverallScheduler) -> list[int]:
    """Instances of each macro instance."""
    return [len(macro.instances) for macro in scheduler.macros]


def test_expansion_follows_the_figure_of_the_paper() -> None:
    """EcoServe, figure 7: N_l = 3, N_u = 6; and its experiment: the twelfth splits 6 and 6."""
    scheduler, cluster, strategy = overall(6, 3, 6)
    seen = []
    for _ in range(8):
        scheduler.add(cluster.place(strategy.shape(), "mixed"))
        seen.append(sizes(scheduler))
    assert seen == [[4, 3], [5, 3], [6, 3], [6, 4], [6, 5], [6, 6], [6, 4, 3], [6, 5, 3]]
    scheduler, cluster, strategy = overall(11, 6, 11)
    scheduler.add(cluster.place(strategy.shape(), "mixed"))
    assert sizes(scheduler) == [6, 6]


def test_contraction_takes_from_the_smallest_and_merges_at_the_upper_bound() -> None:
    """EcoServe: the smallest down to N_l, then a full one, until both together hold N_u."""
    scheduler, cluster, strategy = overall(6, 3, 6)
    for _ in range(5):
        scheduler.add(cluster.place(strategy.shape(), "mixed"))
    older = scheduler.macros[0]
    seen = [sizes(scheduler)]
    for _ in range(7):
        scheduler.drain()
        seen.append(sizes(scheduler))
    assert seen == [[6, 5], [6, 4], [6, 3], [5, 3], [4, 3], [6], [5], [4]]
    assert scheduler.macros == [older]


def test_the_instance_whose_window_is_open_goes_last() -> None:
    """Though it has the fewest requests; of the others the one with the fewest goes first."""
    scheduler, _, _ = overall(3, 1, 6)
    (macro,) = scheduler.macros
    first, second, third = macro.instances
    scheduler.submit(Request(0, 0.0, 100, 5))
    scheduler._env.run(until=scheduler._env.now + 2.0**-20)
    assert macro.activation.is_open
    assert macro.instances[macro.activation.current] is first
    for ring, count in zip(macro.activation.rings, (1, 5, 4), strict=True):
        ring.num_unfinished = count
    assert [scheduler.drain() for _ in range(2)] == [third, second]


@examples(100)
@given(
    bounds=st.sampled_from([(1, 1), (1, 2), (2, 3), (3, 6), (2, 7)]),
    moves=st.lists(st.booleans(), max_size=30),
)
def test_sizes_stay_within_their_bounds(bounds: tuple[int, int], moves: list[bool]) -> None:
    """No instance appears twice or is lost; only a macro about to merge is ever below N_l."""
    lower, upper = bounds
    scheduler, cluster, strategy = overall(lower, lower, upper)
    serving = {instance.instance_id for instance in scheduler.instances}
    for grow in moves:
        if grow and cluster.num_that_fit(strategy.shape()):
            new = cluster.place(strategy.shape(), "mixed")
            scheduler.add(new)
            serving.add(new.instance_id)
        elif len(scheduler.instances) > lower:
            serving.remove(scheduler.drain().instance_id)
        ids = [instance.instance_id for instance in scheduler.instances]
        assert sorted(ids) == sorted(serving)
        assert max(sizes(scheduler)) <= upper
        assert sum(size < lower for size in sizes(scheduler)) <= 1
        for macro in scheduler.macros:
            assert len(macro.activation.rings) == len(macro.instances)
            assert macro.activation.current < len(macro.instances)
            assert all(instance.owner is macro for instance in macro.instances)


# --- nothing is lost -----------------------------------------------------------------------------


def check_scaled(result: Result) -> None:
    """Everyone is served once, by an instance in service; instances start, join and go in order."""
    check_laws(result)
    requests, scaling = result.columns["requests"], result.columns["scaling"]
    instances = result.columns["instances"]
    assert (requests["status"] == "finished").all()
    assert instances["num_requests"][instances["pool"] != "decode"].sum() == len(requests["status"])
    for number in instances["instance"]:
        mine = scaling["instance"] == number
        at = {e: t for e, t in zip(scaling["event"][mine], scaling["time_s"][mine], strict=True)}
        assert list(at) == [e for e in ("start", "join", "drain", "freed") if e in at]
        here = requests["prefill_instance"] == number
        routed = requests["routed_s"][here]
        assert (routed >= at.get("join", at.get("start", 0.0))).all()
        assert (routed <= at.get("drain", np.inf)).all()
        used = requests["decode_instance"] == number
        assert (requests["last_token_s"][used] <= at.get("freed", np.inf)).all()
        assert instances["taken_s"][number] == at.get("start", 0.0)
        assert np.array_equal(
            [instances["freed_s"][number]], [at.get("freed", np.nan)], equal_nan=True
        )


def scripted(monkeypatch: pytest.MonkeyPatch, seed: int, kind: type) -> None:
    """Let looks ask for more for a second, for fewer in the next, and so on; or for neither."""
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(
        kind, "__call__", lambda self, now: (1 if now % 2 < 1 else -1) * int(rng.integers(2))
    )


@pytest.mark.parametrize("variant", ["paper", "code"])
@pytest.mark.parametrize("start_up", [0.0, 0.12])
@pytest.mark.parametrize("seed", range(4))
def test_splits_merges_and_drains_lose_nothing(
    variant: Any, start_up: float, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a load with pending requests, whatever the looks decide."""
    scripted(monkeypatch, seed, Mitosis)
    strategy = PaDG(
        name="padg",
        variant=variant,
        instances=2,
        hold_output=seed % 2 == 0,
        status_interval_s=0.03 if seed == 3 else 0.0,
        mitosis=mitosis(2, 3, start_up_s=start_up, max_instances=9),
    )
    result = run(MACHINES, strategy, load(seed, 400, 60.0), step_time=STEP_TIME)
    check_scaled(result)
    events = result.columns["scaling"]["event"]
    assert {"split", "merge", "drain", "freed", "join"} <= set(events)
    scaling = result.columns["scaling"]
    joins = scaling["time_s"][events == "join"]
    starts = scaling["time_s"][events == "start"]
    assert np.array_equal(joins, starts[: len(joins)] + on_grid(start_up))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("router", ["least-loaded", "round-robin", "shared-queue"])
def test_plain_pools_lose_nothing(router: Any, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """NoDG, whatever the looks decide."""
    scripted(monkeypatch, seed, Threshold)
    rules = ThresholdSettings(
        up=2, down=1, interval_s=0.05, cooldown_s=0.0, start_up_s=0.02, max_instances=6
    )
    strategy = NoDG(name="nodg", instances=2, router=router, autoscale=rules)
    result = run(MACHINES, strategy, load(seed), step_time=STEP_TIME)
    check_scaled(result)
    assert {"drain", "freed"} <= set(result.columns["scaling"]["event"])


@pytest.mark.parametrize("seed", range(3))
def test_disaggregated_pools_lose_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """FuDG: a prefill instance leaves after its last KV, a decode instance after its last token."""
    scripted(monkeypatch, seed, Threshold)
    rules = ThresholdSettings(
        up=2, down=1, interval_s=0.05, cooldown_s=0.0, start_up_s=0.0, max_instances=5
    )
    strategy = FuDG(
        name="fudg",
        placement="inter-node",
        prefill_instances=2,
        decode_instances=2,
        prefill_autoscale=rules,
        decode_autoscale=rules,
    )
    result = run(MACHINES, strategy, load(seed), step_time=STEP_TIME)
    check_scaled(result)
    pools = result.columns["instances"]["pool"]
    freed = ~np.isnan(result.columns["instances"]["freed_s"])
    assert freed[pools == "prefill"].any()
    assert freed[pools == "decode"].any()


# --- triggers ------------------------------------------------------------------------------------


def test_overload_adds_instances_and_idleness_takes_them_away() -> None:
    """A burst and a trickle after it: up while requests wait, back to N_l afterwards."""
    burst, trickle = load(1, 300, 150.0), np.linspace(4.0, 12.0, 40)
    workload = workload_of(
        np.concatenate([burst.arrival_s, trickle]),
        np.concatenate([burst.prompt_len, np.full(40, 20)]),
        np.concatenate([burst.output_len, np.full(40, 20)]),
    )
    strategy = PaDG(name="padg", instances=2, mitosis=mitosis(2, 4))
    result = run(MACHINES, strategy, workload, step_time=STEP_TIME)
    check_scaled(result)
    scaling = result.columns["scaling"]
    sizes_over_time = scaling["num_instances"][np.isin(scaling["event"], ["join", "drain"])]
    assert sizes_over_time.max() >= 5
    assert sizes_over_time[-1] == 2
    assert {"split", "merge"} <= set(scaling["event"])
    fixed = run(MACHINES, PaDG(name="padg", instances=2), workload, step_time=STEP_TIME)
    waits = [r.columns["requests"]["routed_s"] - workload.arrival_s for r in (result, fixed)]
    assert waits[0].max() < 0.7 * waits[1].max()
    never = PaDG(name="padg", instances=2, mitosis=mitosis(2, 4, scale_down=False))
    assert (
        "drain"
        not in run(MACHINES, never, workload, step_time=STEP_TIME).columns["scaling"]["event"]
    )


def test_thresholds_and_cooldown_decide_about_plain_pools() -> None:
    """Changes are at least a cooldown apart, and no more instances than asked for."""
    rules = ThresholdSettings(
        up=4, down=1, interval_s=0.05, cooldown_s=0.2, start_up_s=0.0, max_instances=5
    )
    strategy = NoDG(name="nodg", instances=1, autoscale=rules)
    result = run(MACHINES, strategy, load(2, 300, 100.0), step_time=STEP_TIME)
    check_scaled(result)
    scaling = result.columns["scaling"]
    changes = scaling["time_s"][np.isin(scaling["event"], ["start", "drain"])]
    assert len(changes) > 3
    assert (np.diff(changes) >= 0.2 - 1e-9).all()
    assert result.num_gpus == 5


def test_gpu_hours_add_up() -> None:
    """GPU time is the integral of the GPUs taken over time."""
    strategy = PaDG(name="padg", instances=2, mitosis=mitosis(1, 2, start_up_s=0.3))
    result = run(MACHINES, strategy, load(3, 300, 80.0), step_time=STEP_TIME)
    scaling, instances = result.columns["scaling"], result.columns["instances"]
    changes = [(0.0, 2)]
    changes += [
        (float(t), {"start": 1, "freed": -1}[e])
        for t, e in zip(scaling["time_s"], scaling["event"], strict=True)
        if e in ("start", "freed")
    ]
    total = sum(number * (result.end_s - time) for time, number in changes)
    assert gpu_hours(instances, result.end_s) == pytest.approx(total / 3600)
    assert len(changes) > 3


def test_start_up_takes_three_minutes_for_34b() -> None:
    """EcoServe: about 3 minutes for CodeLlama2-34B; in proportion to the weights."""
    cluster = Cluster(Clock(), MACHINES, Recorder())
    weights = MACHINES.model.spec.num_params * 2.0
    assert start_up_s(None, cluster) == weights / DISK_BYTES_PER_S
    assert pytest.approx(180, rel=0.01) == 33.74e9 * 2.0 / DISK_BYTES_PER_S
    assert start_up_s(7.0, cluster) == 7.0


def test_requests_go_where_there_is_least_to_do_per_instance() -> None:
    """Macro instances of 3 and 2 instances share requests 3 to 2."""
    strategy = PaDG(name="padg", instances=5, macro_instances=2, variant="code")
    result = run(MACHINES, strategy, load(5, 2000, 50.0), step_time=STEP_TIME)
    shares = result.columns["instances"]["num_requests"] / 2000
    assert abs(shares[:3].sum() - 0.6) < 0.03


def build(make: Any) -> None:
    """Make settings, and build them if they are a strategy's."""
    make().build(Cluster(Clock(), MACHINES, Recorder()))


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda: mitosis(4, 6), ("lower = 4", "(upper + 1) / 2 = 3.5", "at most 3")),
        (
            lambda: PaDG(name="p", instances=2, mitosis=mitosis(3, 6)),
            ("strategy.p.instances = 2", "mitosis.lower = 3"),
        ),
        (
            lambda: PaDG(name="p", instances=7, mitosis=mitosis(3, 6)),
            ("strategy.p.instances = 7", "mitosis.upper = 6"),
        ),
        (
            lambda: PaDG(name="p", instances=2, macro_instances=3),
            ("macro_instances = 3", "more than the 2 instances"),
        ),
        (lambda: ThresholdSettings(up=1, down=1), ("down = 1", "below up")),
        (
            lambda: NoDG(
                name="n", instances=1, autoscale=ThresholdSettings(up=2, down=1, min_instances=2)
            ),
            ("min_instances = 2", "1 instances"),
        ),
        (
            lambda: FuDG(name="f", prefill_autoscale=ThresholdSettings(up=2, down=1)),
            ("placement = 'intra-node'", "inter-node"),
        ),
    ],
)
def test_bounds_that_contradict_each_other_are_refused(make: Any, parts: tuple[str, ...]) -> None:
    """One line with the rule and the way out."""
    with pytest.raises(ConfigError) as raised:
        build(make)
    for part in parts:
        assert part in str(raised.value)
