"""Errors of the step times: what moves which goodput, and what turns an order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pytest

from helpers.outcomes import outcome_of_odds
from helpers.scenarios import small_scenario
from simcluster.roofline import STEP_TIMES
from simcluster.roofline.base import StepShape
from simcluster.scenario.file import resolve
from simcluster.scenario.scenario import Scenario
from simcluster.studies.goodput import Cell, Interval, Outcome, find, tables
from simcluster.studies.goodput.errors import (
    _ERRORS,
    errors_of,
    slower,
    turning,
    widened,
    widened_ratio,
)
from simcluster.studies.goodput.estimate import logit

STRATEGIES = [
    {"name": "one", "kind": "nodg"},
    {"name": "two", "kind": "fudg", "prefill_instances": 1, "decode_instances": 1},
]
SCENARIO = resolve(small_scenario(*STRATEGIES, engine={"profile": "vllm-0.19"}))


@pytest.mark.parametrize(
    ("factor", "prefill", "decode"), [("compute", True, False), ("memory", False, True)]
)
def test_a_part_of_a_step_is_as_much_slower_as_said(
    factor: str, prefill: bool, decode: bool
) -> None:
    """A long prefill computes and a decode of one sequence reads: each takes 10 % longer."""
    longer = math.log(1.1)
    source = STEP_TIMES["roofline"]
    before, after = (
        source(environment, 1)
        for environment in (
            SCENARIO.environment,
            slower(SCENARIO.environment, factor, longer),
        )
    )
    shapes = {
        "prefill": StepShape(0, 0, ((4000, 0),), 1, 0),
        "decode": StepShape(1, 500, (), 1, 500),
    }
    ratio = {name: after.step_s(shape) / before.step_s(shape) for name, shape in shapes.items()}
    for name, moved in (("prefill", prefill), ("decode", decode)):
        assert ratio[name] == pytest.approx(1.1 if moved else 1.0, abs=0.04), name


def test_what_is_not_known_has_no_error() -> None:
    """Step times of another source; what is known less well has a larger one."""
    environment = SCENARIO.environment
    assert errors_of(replace(environment, step_times="mine")) == {}
    known = errors_of(environment)
    assert set(known) == {"compute", "memory", "host", "links"}
    quantised = replace(environment, model=replace(environment.model, weight_dtype="fp8"))
    assert errors_of(quantised)["memory"] > known["memory"]
    sheet = replace(environment.cluster.gpu.constants, accuracy="data-sheet")
    gpu = replace(environment.cluster.gpu, constants=sheet, older_constants=())
    rough = replace(environment, cluster=replace(environment.cluster, gpu=gpu))
    assert all(error > known[name] for name, error in errors_of(rough).items())


def test_the_page_states_the_errors_that_are_used() -> None:
    """By the accuracy of the GPU, as the table of docs/goodput.md has them."""
    page = (Path(__file__).parents[3] / "docs" / "goodput.md").read_text(encoding="utf-8")
    for name, start in (("fitted", "| measured or fitted, dense"), ("data-sheet", "| GPUs known")):
        row = next(line for line in page.splitlines() if line.startswith(start))
        told = [float(cell.removesuffix(" %")) / 100 for cell in row.strip("| ").split(" | ")[1:]]
        assert told == list(_ERRORS[name].values())


def test_a_shift_of_both_widens_the_levels_and_not_the_ratio() -> None:
    """Chance 3 % and an error of 10 % / 1.96: root of the squares; a ratio keeps its 2 %."""
    ten = math.log(1.1) / 1.959964
    own = {"memory": ten}
    wide = widened(Interval(value=10.0, low=10 / 1.03, high=10.3), own)
    half = math.hypot(math.log(1.03), math.log(1.1))
    assert (wide.value, wide.low, wide.high) == pytest.approx(
        (10.0, 10 * math.exp(-half), 10 * math.exp(half)), rel=1e-6
    )
    ratio = Interval(value=1.05, low=1.03, high=1.05**2 / 1.03)
    same = widened_ratio(ratio, own, own)
    assert (same.low, same.high) == pytest.approx((1.03, ratio.high), rel=1e-6)
    # Who depends on memory alone is turned once it is slow enough: 5 % by half the error.
    (turn,) = turning(
        Interval(value=1.05, low=1.04, high=1.06),
        {"memory": -2 * math.log(1.05)},
        {"compute": 0.0},
        {"memory": 0.06, "compute": 0.05},
    )
    assert (turn.factor, turn.error) == ("memory", pytest.approx(0.03))


class Machines:
    """Runs whose goodput is that of the memory bandwidth, to a power of the strategy's own."""

    powers: ClassVar[dict[str, float]] = {"one": 1.0, "two": 0.5}

    def __call__(self, scenario: Scenario, cells: Sequence[Cell]) -> list[Outcome]:
        """Answer in order: 100 and 102 requests/s on the machines as they are."""
        bandwidth = scenario.environment.cluster.gpu.memory_bandwidth
        usual = SCENARIO.environment.cluster.gpu.memory_bandwidth
        came = []
        for cell in cells:
            goodput = {"one": 102.0, "two": 100.0}[cell.strategy]
            goodput *= (bandwidth / usual) ** self.powers[cell.strategy]
            noise = 0.01 * math.sin(cell.seed)
            came.append(
                outcome_of_odds(logit(0.9) - 12 * math.log(cell.rate_rps / goodput) + noise)
            )
        return came


def test_the_shift_of_a_goodput_is_that_of_its_machines() -> None:
    """Linear in the bandwidth, and in its root; the pair is turned by 3.9 % less of it."""
    found = find(SCENARIO, tolerance=0.1, simulate=Machines(), step_time_errors=True)
    error = errors_of(SCENARIO.environment)["memory"]
    assert found.shifts["one"]["memory"] == pytest.approx(-error, rel=0.02)
    assert found.shifts["two"]["memory"] == pytest.approx(-error / 2, rel=0.02)
    assert found.shifts["one"]["compute"] == pytest.approx(0.0, abs=1e-9)
    assert "links" not in found.shifts["one"]
    text = tables.as_text(found)
    assert "With the errors of the step times" in text
    assert "turned by reading memory 4 % slower" in text
    rows = tables.as_json(found)
    one = rows["goodput"][0]
    wide = one["goodput_rps_with_step_time_errors"]
    assert wide["low"] < one["goodput_rps"]["low"] < one["goodput_rps"]["high"] < wide["high"]
    assert rows["comparisons"][0]["ratio_with_step_time_errors"] is not None


def test_other_attainments_have_rates_and_intervals_of_their_own() -> None:
    """Log odds fall by 12 per unit: P50 lies where they are 0, P99 where they are log 99."""
    found = find(SCENARIO, tolerance=0.1, simulate=Machines(), levels=(0.5, 0.99))
    for level, verdicts in found.levels.items():
        expected = 102.0 * math.exp((logit(0.9) - logit(level)) / 12)
        goodput = verdicts["one"].goodput
        assert goodput is not None
        assert goodput.value == pytest.approx(expected, rel=0.01)
    text = tables.as_text(found)
    assert "P50" in text
    assert [row["attainment"] for row in tables.as_json(found)["levels"]] == [0.5, 0.99]
