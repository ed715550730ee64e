"""The event loop."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import simpy

from simcluster.engine.clock import Clock
from simcluster.errors import ConfigError


def test_what_a_process_raises_comes_out_as_it_is() -> None:
    """Also what is made of several arguments, of which the message is not one."""
    env = Clock()
    refused = ConfigError("run.recorder", "summary", "cannot be", "Set another.")

    def refuses() -> Generator[simpy.Event, Any, None]:
        yield env.timeout(1.0)
        raise refused

    env.process(refuses())
    with pytest.raises(ConfigError) as caught:
        env.run_until(env.timeout(2.0))
    assert caught.value is refused
    assert env.now == 1.0


def test_a_failure_that_somebody_waits_for_goes_to_him() -> None:
    """And to nobody else."""
    env, heard = Clock(), []

    def fails() -> Generator[simpy.Event, Any, None]:
        yield env.timeout(1.0)
        raise ValueError("no")

    def waits() -> Generator[simpy.Event, Any, None]:
        try:
            yield env.process(fails())
        except ValueError as error:
            heard.append(str(error))

    env.process(waits())
    env.run_until(env.timeout(2.0))
    assert heard == ["no"]
    with pytest.raises(RuntimeError, match="nothing is left to happen"):
        env.run_until(env.event())
