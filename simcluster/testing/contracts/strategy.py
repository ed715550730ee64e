"""The contract of strategies: `simcluster.strategies.Strategy`."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from simcluster.config import Environment
from simcluster.errors import ConfigError
from simcluster.runs.simulate import run
from simcluster.strategies import STRATEGIES, Strategy
from simcluster.testing.contracts.base import (
    CROWDED,
    OTHER_OUTPUTS,
    OTHERWISE,
    PREFIXES,
    REQUESTS,
    Asked,
    agreeing_run,
    assert_same_until,
    crowd,
    digest,
    laws,
    registered,
    watched_run,
    with_outputs,
)
from simcluster.testing.laws import require
from simcluster.testing.toy import (
    COMPARED,
    ENGINES,
    LOOSE,
    STRICT,
    assert_same,
    toy_environment,
    toy_workload,
)

_HASH_SEEDS = ("1", "2", "3")


class StrategyContract:
    """Laws of every strategy; derive a test class with the fixture `strategy`.

    The fixture `environment` may be overridden too: the machines on which the strategy fits, by
    default two nodes of eight GPUs that serve a toy model.

    - Every request that enters ends once, finished or rejected; requests, tokens and KV blocks are
      conserved, and no instance idles beside work that fits.
    - Results at the resolutions span, step and kernel are the same bits.
    - What happens does not depend on what comes later: on requests that have not arrived, on how
      long an answer will be, on when the run is stopped.
    - Its settings keep nothing from run to run, travel to other processes, give the same result
      there, can be read from a scenario file, and say what each key means.
    - Where it does not fit it raises ``ConfigError``.

    Examples
    --------
    ::

        class TestMine(StrategyContract):
            @pytest.fixture
            def strategy(self):
                return Mine(name="mine", instances=3)
    """

    @pytest.fixture
    def strategy(self) -> Strategy:
        """Return the settings that are tested; override it."""
        raise NotImplementedError("give the contract a fixture `strategy` that returns settings")

    @pytest.fixture
    def environment(self) -> Environment:
        """Return model and machines; override it where the strategy needs others."""
        return toy_environment(slo=STRICT)

    def test_resolutions_agree_in_a_crowd(
        self, strategy: Strategy, environment: Environment
    ) -> None:
        """More requests than it can serve in time, some of which are rejected on arrival."""
        load = crowd(120, gap_s=0.0005)
        rejected = np.arange(load.num_requests) % 11 == 3
        agreeing_run(environment, strategy, dataclasses.replace(load, rejected=rejected))

    @laws(50)
    @given(
        requests=REQUESTS,
        concurrency=st.sampled_from([None, None, 1, 4]),
        prefixes=PREFIXES,
        engine=st.sampled_from(ENGINES),
        slo=st.sampled_from([LOOSE, STRICT]),
    )
    def test_resolutions_agree(
        self,
        strategy: Strategy,
        environment: Environment,
        requests: Asked,
        concurrency: int | None,
        prefixes: list[tuple[int, int]] | None,
        engine: Any,
        slo: Any,
    ) -> None:
        """In open and closed loops, with common prefixes, under any engine; every request ends."""
        where = dataclasses.replace(environment, engine=engine, slo=slo)
        agreeing_run(where, strategy, toy_workload(requests, concurrency, prefixes))

    @laws(40)
    @given(requests=REQUESTS, outputs=OTHER_OUTPUTS)
    @example(requests=CROWDED, outputs=OTHERWISE)
    def test_decisions_do_not_depend_on_how_long_an_answer_will_be(
        self,
        strategy: Strategy,
        environment: Environment,
        requests: Asked,
        outputs: list[int],
    ) -> None:
        """With other answers the steps are the same until the first of them ends."""
        load = toy_workload(requests)
        one, other = (
            run(environment, strategy, these, resolution="step")
            for these in (load, with_outputs(load, outputs))
        )
        ends = [result.columns["requests"]["last_token_s"] for result in (one, other)]
        assert_same_until(one, other, float(np.nanmin([*ends[0], *ends[1], np.inf])))

    @laws(30)
    @given(requests=REQUESTS.filter(lambda r: len(r) > 1), share=st.floats(0.1, 0.9))
    @example(requests=CROWDED, share=0.5)
    def test_requests_that_have_not_arrived_change_nothing(
        self, strategy: Strategy, environment: Environment, requests: Asked, share: float
    ) -> None:
        """Without the later requests the steps are the same until the first of those arrives."""
        count = max(1, int(share * len(requests)))
        load = toy_workload(requests)
        whole, part = (
            run(environment, strategy, these, resolution="step")
            for these in (load, toy_workload(requests[:count]))
        )
        assert_same_until(whole, part, float(load.arrival_s[count]))

    def test_a_run_that_is_stopped_is_the_beginning_of_the_whole(
        self, strategy: Strategy, environment: Environment
    ) -> None:
        """Where the clock stops, some requests are unfinished; what was before is the same."""
        load = crowd(80)
        whole = watched_run(environment, strategy, load, resolution="step")
        for share in (0.3, 0.7):
            until_s = share * whole.end_s
            stopped = watched_run(
                environment, strategy, load, resolution="step", max_time_s=until_s
            )
            assert_same_until(whole, stopped, until_s, edge="end_s")

    def test_the_same_run_gives_the_same_result(
        self, strategy: Strategy, environment: Environment
    ) -> None:
        """Neither its settings nor its class keep anything from one run to the next."""
        first, second = (run(environment, strategy, crowd(60)) for _ in range(2))
        assert_same(first, second, (*COMPARED, "spans"))

    def test_another_interpreter_gives_the_same_result(
        self, strategy: Strategy, environment: Environment
    ) -> None:
        """The settings travel to other processes, where sets have other orders."""
        load = crowd(60)
        try:
            task = pickle.dumps((environment, strategy, load))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise AssertionError(f"the settings cannot go to another process: {error}") from error
        here = digest(run(environment, strategy, load))
        for seed in _HASH_SEEDS:
            there = subprocess.run(
                [sys.executable, "-c", f"from {__name__} import elsewhere; elsewhere()"],
                input=task,
                env={
                    **os.environ,
                    "PYTHONHASHSEED": seed,
                    "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                },
                capture_output=True,
                check=False,
            )
            text = there.stderr.decode()
            if "ModuleNotFoundError" in text or "Can't get attribute" in text:
                pytest.skip(
                    f"{type(strategy).__name__} is defined where no other process can import it"
                )
            require(there.returncode == 0, text)
            require(there.stdout.decode().strip() == here, f"PYTHONHASHSEED={seed} decides")

    def test_its_table_can_be_read_and_explains_itself(self, strategy: Strategy) -> None:
        """A scenario file that holds the settings gives them back, and every key has a meaning."""
        settings = type(strategy)
        known = STRATEGIES.get(strategy.kind, settings)
        require(known is settings, f"{known.__name__} has the kind {strategy.kind!r} already")
        with registered(STRATEGIES, settings, strategy.kind) as name:
            require(name == strategy.kind, f"it is registered as {name!r}, its kind is another")
        adapter: TypeAdapter[Any] = TypeAdapter(settings)
        table = {k: v for k, v in dataclasses.asdict(strategy).items() if v is not None}  # type: ignore[call-overload]  # settings are a dataclass
        read = adapter.validate_json(json.dumps(table))
        require(read == strategy, f"a file that holds {strategy} gives {read}")
        properties = adapter.json_schema()["properties"]
        silent = [k for k, v in properties.items() if k != "kind" and not v.get("description")]
        require(not silent, f"keys without a description: {', '.join(silent)}")
        frozen = getattr(settings, "__dataclass_params__").frozen  # noqa: B009 (mypy does not know it)
        require(frozen, "settings must be a frozen dataclass: runs share them")

    def test_machines_that_are_too_few_are_refused(
        self, strategy: Strategy, environment: Environment
    ) -> None:
        """On one node with one GPU it either fits or raises ``ConfigError``, in one line."""
        first, *others = (
            dataclasses.replace(cluster, num_nodes=1, gpus_per_node=1)
            for cluster in environment.clusters
        )
        where = dataclasses.replace(environment, cluster=first, extra_clusters=tuple(others))
        try:
            watched_run(where, strategy, crowd(10))
        except ConfigError as error:
            require("\n" not in str(error), "an error is one line")


def elsewhere() -> None:
    """Run what another process wrote to standard input, and print a digest of the result."""
    environment, strategy, load = pickle.loads(sys.stdin.buffer.read())
    sys.stdout.write(digest(run(environment, strategy, load)))
