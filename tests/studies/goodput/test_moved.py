"""What longer requests and tighter targets do to goodputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner

from helpers.outcomes import outcome_of_odds
from helpers.scenarios import small_scenario
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import main
from simcluster.rng import stream
from simcluster.scenario.file import resolve
from simcluster.scenario.scenario import Scenario
from simcluster.studies.goodput import Cell, Outcome, find, tables
from simcluster.studies.goodput.estimate import logit
from simcluster.studies.goodput.moved import changes

STRATEGIES = ({"name": "one", "kind": "nodg"}, {"name": "two", "kind": "nodg"})
SCENARIO = resolve(
    small_scenario(
        *STRATEGIES,
        workload={"lengths": {"kind": "fixed", "prompt_len": 1000, "output_len": 200}},
        slo={"ttft_s": 1.1, "tpot_s": 0.055, "attainment": 0.9},
    )
)


def lengths_of(scenario: Scenario) -> tuple[int, int]:
    """Mean prompt and output (tokens)."""
    lengths = scenario.workload.length_distribution
    assert lengths is not None
    prompt, output = lengths.draw(1000, stream(0, "lengths"))
    return round(prompt.mean()), round(output.mean())


def test_one_thing_is_moved_at_a_time() -> None:
    """A tenth longer, a tenth tighter, and all else as it was."""
    moved = changes(SCENARIO)
    assert set(moved) == {"prompts", "outputs", "TTFT target", "TPOT target"}
    for name, scenario in moved.items():
        slo = scenario.environment.slo
        got = (*lengths_of(scenario), slo.ttft_s, slo.tpot_s)
        wanted = {"prompts": 1000, "outputs": 200, "TTFT target": 1.1, "TPOT target": 0.055}
        wanted[name] *= 1.1 if name in ("prompts", "outputs") else 1 / 1.1
        assert got == pytest.approx(tuple(wanted.values())), name


def test_targets_and_lengths_of_classes_move_too() -> None:
    """Each class that has its own; a target that a class takes from [slo] moves with it."""
    lengths = {"kind": "fixed", "prompt_len": 100, "output_len": 10}
    classes = [{"name": "a", "share": 0.5, "lengths": lengths}, {"name": "b", "share": 0.5}]
    slo = {"ttft_s": 1.1, "attainment": 0.9, "classes": {"a": {"ttft_s": 2.2}, "b": {}}}
    workload = {"lengths": {**lengths, "prompt_len": 300}, "classes": classes}
    scenario = resolve(small_scenario(*STRATEGIES, workload=workload, slo=slo))
    moved = changes(scenario)
    both = moved["prompts"].workload.length_distribution
    assert both is not None
    prompt, _ = both.draw(100, stream(0, "lengths"))
    assert set(prompt) == {110, 330}
    tight = moved["TTFT target"].environment.slo
    assert (tight.of("a").ttft_s, tight.of("b").ttft_s) == (pytest.approx(2.0), pytest.approx(1.0))


def test_lengths_that_come_with_a_trace_stay(tmp_path: Path) -> None:
    """They were measured, not assumed."""
    path = tmp_path / "trace.csv"
    rows = "".join(f"{k},100,10\n" for k in range(500))
    path.write_text("arrival_s,prompt_len,output_len\n" + rows)
    document = small_scenario(*STRATEGIES, slo={"ttft_s": 1.0, "tpot_s": 0.1})
    document["workload"] = {"trace": str(path)}
    assert set(changes(resolve(document))) == {"TTFT target", "TPOT target"}


class Loads:
    """Goodputs that are powers of what requests ask for and of the TPOT target."""

    def __call__(self, scenario: Scenario, cells: Sequence[Cell]) -> list[Outcome]:
        """Answer in order: 100 and 102 requests/s of requests as they are."""
        prompt, output = lengths_of(scenario)
        tpot_s = scenario.environment.slo.tpot_s
        assert tpot_s is not None
        came = []
        for cell in cells:
            goodput = {
                "one": 102 * (1000 / prompt),
                "two": 100 * math.sqrt(200 / output) * (tpot_s / 0.055) ** 0.3,
            }[cell.strategy]
            noise = 0.01 * math.sin(cell.seed)
            came.append(
                outcome_of_odds(logit(0.9) - 12 * math.log(cell.rate_rps / goodput) + noise)
            )
        return came


def test_the_shift_of_a_goodput_is_that_of_its_law() -> None:
    """Inverse in the prompt; the inverse root of the output; the 0.3rd power of a target.

    The pair is 2 % apart, so prompts 2 % longer turn it, as outputs 4 % shorter do, and a target
    that is 1.02 ** (1 / 0.3) = 1.068 times as long.
    """
    found = find(SCENARIO, tolerance=0.1, simulate=Loads(), sensitivity=True)
    ten, one, two = math.log(1.1), found.sensitivity["one"], found.sensitivity["two"]
    assert one["prompts"] == pytest.approx(-ten, rel=0.02)
    assert one["outputs"] == pytest.approx(0.0, abs=1e-9)
    assert two["outputs"] == pytest.approx(-ten / 2, rel=0.02)
    assert two["TPOT target"] == pytest.approx(-0.3 * ten, rel=0.02)
    text = " ".join(tables.as_text(found).split())
    assert "a tenth longer" in text
    assert "prompts 2 % longer" in text
    assert "outputs 3.9 % shorter" in text
    assert "TPOT target 6.8 % looser" in text
    row = tables.as_json(found)["goodput"][0]
    assert set(row["shift_by_tenths"]) == {"prompts", "outputs", "TTFT target", "TPOT target"}


def test_a_folder_keeps_the_runs_of_the_sensitivity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time nothing is simulated anew, and the answer is the same."""
    path = tmp_path / "scenario.toml"
    document = small_scenario(
        {"name": "one", "kind": "nodg"},
        workload={"lengths": {"kind": "fixed", "prompt_len": 500, "output_len": 20}},
    )
    path.write_text(to_toml(document))
    command = ["goodput", str(path), "--tolerance", "0.2", "--max-requests", "1000"]
    command += ["--no-step-time-errors", "--sensitivity", "-o", str(tmp_path / "out"), "--json"]
    command += ["--jobs", "1"]
    first = CliRunner().invoke(main, command)
    monkeypatch.setattr("simcluster.studies.goodput.runs.run", None)  # what would simulate
    second = CliRunner().invoke(main, command)
    assert first.exit_code == second.exit_code == 0, first.output
    assert first.stdout == second.stdout
    assert '"shift_by_tenths"' in first.stdout
