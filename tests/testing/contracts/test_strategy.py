"""The contract of strategies: ours keep it, and it notices those that do not.

Programs that are wrong on purpose stand beside the law that notices each.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
from pydantic import Field

import simcluster
from simcluster.config import Environment, ModelConfig
from simcluster.request import Request
from simcluster.routing import LeastLoaded, RoundRobin
from simcluster.strategies import (
    STRATEGIES,
    Cluster,
    CommonSettings,
    Deployment,
    FuDG,
    Gateway,
    NoDG,
    PaDG,
    Routed,
    ServingGroup,
    Strategy,
)
from simcluster.strategies.scaling import MitosisSettings, ThresholdSettings
from simcluster.testing.contracts import (
    StrategyContract,
)
from simcluster.testing.contracts.base import notices
from simcluster.testing.toy import DEEP, MAX_MODEL_LEN, STRICT, TOY, toy_environment

SCALING: dict[str, Any] = {"interval_s": 2.0**-6, "cooldown_s": 0.0, "start_up_s": 2.0**-5}
OURS: dict[str, list[Strategy]] = {
    "nodg": [
        NoDG(
            name="s",
            instances=1,
            num_kv_blocks=13,
            router="shared-queue",
            autoscale=ThresholdSettings(up=3, down=1, max_instances=3, **SCALING),
        ),
    ],
    "fudg": [
        FuDG(
            name="s",
            prefill_instances=2,
            decode_instances=2,
            placement="inter-node",
            transfer="layerwise",
            prefill_choice="ttft",
            num_kv_blocks=24,
        ),
    ],
    "padg": [
        PaDG(
            name="s",
            instances=2,
            num_kv_blocks=24,
            mitosis=MitosisSettings(lower=1, upper=3, max_instances=4, up_at=0.1, **SCALING),
        ),
    ],
    "routed": [
        Routed(
            name="s",
            models=("small", "large"),
            fractions=(0.5, 0.5),
            pool=(
                ServingGroup(
                    model="small", gpu="A100-80GB SXM", serving=NoDG(name="a", instances=2)
                ),
                ServingGroup(
                    model="large", gpu="A100-80GB SXM", serving=PaDG(name="b", instances=2)
                ),
            ),
        ),
    ],
}
"""Settings that try what each kind can do; a kind that is not here is tried with its defaults."""


def settings_of(kind: str) -> list[Any]:
    """Return settings of a registered strategy."""
    return OURS.get(kind) or [STRATEGIES[kind](name="s")]


@pytest.mark.parametrize(
    "own",
    [settings for kind in STRATEGIES for settings in settings_of(kind)],
    ids=lambda settings: settings.kind,
)
class TestRegisteredStrategies(StrategyContract):
    """Every strategy that is registered."""

    @pytest.fixture
    def strategy(self, own: Any) -> Any:
        """Return settings."""
        return own

    @pytest.fixture
    def environment(self, own: Any) -> Environment:
        """Return the toy cluster; with two models where several are routed."""
        where = toy_environment(slo=STRICT)
        if own.kind != "routed":
            return where
        small, large = (
            ModelConfig(spec=replace(spec, name=name), max_model_len=MAX_MODEL_LEN)
            for spec, name in ((TOY, "small"), (DEEP, "large"))
        )
        return replace(where, model=large, extra_models=(small,))


class Forgetful(Gateway):
    """Does not tell anybody of every seventh request that ends."""

    def finished(self, instance: Any, request: Request) -> None:
        """Pass the news on, or not."""
        if request.request_id % 7 != 6:
            super().finished(instance, request)


class Repeating(Gateway):
    """Tells twice of every seventh request that ends."""

    def finished(self, instance: Any, request: Request) -> None:
        """Pass the news on."""
        if request.request_id % 7 == 6:
            super().finished(instance, request)
        super().finished(instance, request)


class Foreseeing(Gateway):
    """Sends long answers to the first instance."""

    def _place(self, request: Request, among: Any = None) -> bool:
        if request.output_len > 20:
            self.instances[0].submit(request)
            return True
        return super()._place(request, among)


class Dropping(Gateway):
    """Loses requests when it has many."""

    def submit(self, request: Request) -> None:
        """Take it, or not."""
        if sum(instance.load_tokens for instance in self.instances) < 300:
            super().submit(request)


@dataclass(frozen=True, slots=True, kw_only=True)
class Two(CommonSettings):
    """Two instances behind a gateway."""

    gateway: ClassVar[type[Gateway]] = Gateway
    kind: Literal["two"] = "two"

    def build(self, cluster: Cluster) -> Deployment:
        """Place them, and put the gateway in front."""
        instances = [cluster.place(self.shape(), "mixed") for _ in range(2)]
        return Deployment(
            self.gateway(cluster.env, instances, LeastLoaded(), lambda r: cluster.on_finish(r))
        )


def behind(gateway: type[Gateway]) -> type[Two]:
    """Return the strategy whose instances stand behind `gateway`."""
    return type(gateway.__name__, (Two,), {"gateway": gateway, "__slots__": ()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Grows(Two):
    """One more instance in every run."""

    runs: ClassVar[list[int]] = []

    def build(self, cluster: Cluster) -> Deployment:
        """Count the runs, and place as many."""
        self.runs.append(1)
        instances = [cluster.place(self.shape(), "mixed") for _ in range(len(self.runs) % 3 + 1)]
        return Deployment(
            Gateway(cluster.env, instances, RoundRobin(), lambda r: cluster.on_finish(r))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ByHash(Two):
    """Which shape comes first depends on the order of a set of names."""

    def build(self, cluster: Cluster) -> Deployment:
        """Place small and large instances in the order of a set."""
        seqs = {"one": 1, "two": 2, "four": 4, "eight": 8, "sixteen": 16}
        shapes = [dataclasses.replace(self.shape(), max_num_seqs=seqs[name]) for name in set(seqs)]
        instances = [cluster.place(shape, "mixed") for shape in shapes]
        return Deployment(
            Gateway(cluster.env, instances, RoundRobin(), lambda r: cluster.on_finish(r))
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Crashes(Two):
    """Takes it for granted that there is room."""

    def build(self, cluster: Cluster) -> Deployment:
        """Look for the second GPU."""
        if cluster.environment.cluster.num_gpus < 2:
            raise IndexError("no second GPU")
        return Two.build(self, cluster)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mute(Two):
    """Does not say what its key means."""

    extra: int = 3


@dataclass(slots=True, kw_only=True)
class Changeable:
    """Settings that a run can change."""

    kind: Literal["changeable"] = "changeable"
    name: Annotated[str, Field(description="Name.")] = "s"

    def build(self, cluster: Cluster) -> Deployment:
        """As others do."""
        return Two(name=self.name).build(cluster)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stolen(Two):
    """Has the kind of another strategy."""

    kind: Literal["nodg"] = "nodg"  # type: ignore[assignment]  # that is what is wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class Unsendable(Two):
    """Holds what cannot go to another process."""

    weigh: Annotated[Any, Field(description="Weight of a request.")] = dataclasses.field(
        default_factory=lambda: lambda request: 1
    )


CROWDED = "resolutions_agree_in_a_crowd"
READ = "its_table_can_be_read_and_explains_itself"
WRONG_STRATEGIES = [
    (behind(Forgetful), CROWDED, "requests are left and nothing happens"),
    (behind(Repeating), CROWDED, "a request ends twice"),
    (behind(Dropping), CROWDED, "requests are left and nothing happens"),
    (behind(Foreseeing), "decisions_do_not_depend_on_how_long_an_answer_will_be", "one run"),
    (Grows, "the_same_run_gives_the_same_result", "requests|instances"),
    (Grows, "requests_that_have_not_arrived_change_nothing", "one run"),
    (Grows, "a_run_that_is_stopped_is_the_beginning_of_the_whole", "one run"),
    (ByHash, "another_interpreter_gives_the_same_result", "PYTHONHASHSEED"),
    (Unsendable, "another_interpreter_gives_the_same_result", "cannot go to another process"),
    (Mute, READ, "keys without a description: extra"),
    (Changeable, READ, "must be a frozen dataclass"),
    (Stolen, READ, "NoDG has the kind 'nodg' already"),
]


@pytest.mark.parametrize(
    ("wrong", "law", "message"), WRONG_STRATEGIES, ids=[w[0].__name__ for w in WRONG_STRATEGIES]
)
def test_the_strategy_contract_notices(
    wrong: Any, law: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One law of it at least, in words that say what is wrong."""
    # Another interpreter finds this module where we did.
    monkeypatch.syspath_prepend(str(Path(simcluster.__file__).parents[1]))
    given = {} if law == READ else {"environment": toy_environment(slo=STRICT)}
    notices(StrategyContract, law, message, strategy=wrong(name="s"), **given)


def test_the_strategy_contract_notices_a_crash_on_few_machines() -> None:
    """Anything but a ``ConfigError`` comes out."""
    with pytest.raises(IndexError):
        StrategyContract().test_machines_that_are_too_few_are_refused(
            strategy=Crashes(name="s"), environment=toy_environment()
        )
