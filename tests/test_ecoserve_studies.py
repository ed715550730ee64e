"""The studies of EcoServe's evaluation run, go on where they stopped, and fill the tables."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from simcluster.studies.goodput import Outcome

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "scenarios" / "ecoserve"
Script = Callable[[str], SimpleNamespace]
NAMES = tuple(path.stem for path in FOLDER.glob("*.py"))


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, ModuleType]]:
    """The scripts as modules."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield {name: __import__(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)


def a_system(
    modules: dict[str, ModuleType],
    folder: Path,
    share: Any,
    noise: float = 0.0,
    seed_of: Any = abs,
) -> Any:
    """Runs of a system whose attainment at a rate is `share` of it, with noise between runs."""
    goodputs, case = modules["goodputs"], modules["cases"].Case()

    class Made(goodputs.Runs):  # type: ignore[misc, name-defined]
        asked = 0

        def _run(self, rate_rps: float, replication: int) -> dict[str, Outcome]:
            type(self).asked += 1
            seed = seed_of(replication)
            rng = np.random.default_rng([seed, round(1000 * rate_rps)])
            log_odds = math.log(share(rate_rps) / (1 - share(rate_rps))) + noise * rng.normal()
            met = int(100_000 / (1 + math.exp(-log_odds)))
            found = Outcome(
                counted=(100_000,),
                met=(met,),
                residence_s=1.0,
                arrivals=0.0,
                drift=0.0,
                growth=0.0,
            )
            return {"ecoserve": found, "user": found}

    return Made(case, modules["systems"].vllm(case)[0], folder)


def falling(rate_rps: float) -> float:
    """Half at 20 requests/s; log odds fall by 10 with the logarithm of the rate."""
    return 1 / (1 + (rate_rps / 20.0) ** 10)


@pytest.mark.parametrize("start_rps", [1.0, 19.0, 120.0])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_goodput_is_where_attainment_crosses_the_level(
    modules: dict[str, ModuleType], tmp_path: Path, start_rps: float, level: float
) -> None:
    """Solved for by hand, from any start, in few runs."""
    runs = a_system(modules, tmp_path, falling)
    found = runs.goodput("ecoserve", level, start_rps, 3)
    assert found.value == pytest.approx(20.0 * (1 / level - 1) ** 0.1, rel=1e-3)
    assert runs.asked < 30


def test_intervals_hold_the_goodput_about_as_often_as_they_say(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    """Of 100 searches at least 90 (95 are meant), though the rates follow from the runs."""
    truth = 20.0 * (1 / 0.9 - 1) ** 0.1
    held = 0
    for number in range(100):
        folder = tmp_path / str(number)
        folder.mkdir()
        runs = a_system(
            modules, folder, falling, noise=0.3, seed_of=lambda k, n=number: 1000 * n + k + 1
        )
        found = runs.goodput("ecoserve", 0.9, 25.0, 3)
        held += found.low <= truth <= found.high
    assert held >= 90


def test_a_cliff_after_a_plateau_is_not_taken_for_a_slope(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    """Attainment of 99.5 % that breaks off: a line from far below to far above would lie.

    99 % are left where ``(rate / 44) ** 40`` is 0.995 / 0.99 - 1.
    """
    truth = 44.0 * (0.995 / 0.99 - 1) ** (1 / 40)
    found = []
    for number in range(20):
        folder = tmp_path / str(number)
        folder.mkdir()
        runs = a_system(
            modules,
            folder,
            lambda rate: 0.995 / (1 + (rate / 44.0) ** 40),
            noise=0.3,
            seed_of=lambda k, n=number: 1000 * n + k + 1,
        )
        found.append(runs.goodput("ecoserve", 0.99, 45.0, 4).value)
    assert np.mean(found) == pytest.approx(truth, rel=0.03)
    assert min(found) > 0.9 * truth


def test_a_dip_at_low_rates_does_not_hide_the_highest_rate(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    """The search comes from above."""
    runs = a_system(modules, tmp_path, lambda rate: 0.5 if rate < 8 else falling(rate))
    assert runs.goodput("ecoserve", 0.9, 25.0, 3).value > 15


def test_a_level_that_no_rate_reaches_is_given_as_none(
    modules: dict[str, ModuleType], tmp_path: Path
) -> None:
    """0 rather than a search without end."""
    runs = a_system(modules, tmp_path, lambda rate: 0.4)
    assert runs.goodput("ecoserve", 0.9, 25.0, 3) == modules["goodputs"].NONE


def test_hopeless_rates_are_run_short(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    """From six times the goodput down: only rates that may reach the level are run at length."""
    runs = a_system(modules, tmp_path, falling)
    runs.bracket("ecoserve", 0.9, 120.0)
    (path,) = tmp_path.iterdir()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rates = [modules["goodputs"].GRID ** row["step"] for row in rows if row["replication"] == 0]
    assert max(rates) < 22
    assert len(rows) > len(rates)


def test_a_job_that_fails_is_said_and_costs_no_other_row(
    modules: dict[str, ModuleType],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its row is missing, the others are there, and the command fails."""
    run = modules["run"]
    find = run.find

    def fails_for_vllm(case: Any, tables: Any, *rest: Any) -> Any:
        if tables[0]["name"] == "vLLM":
            raise RuntimeError("made up")
        return find(case, tables, *rest)

    monkeypatch.setattr(run, "find", fails_for_vllm)
    with pytest.raises(SystemExit, match="1 of 2 failed"):
        run.run(["scaling"], tmp_path, only={"instances": "1"}, quick=True, jobs=1)
    assert "made up" in capsys.readouterr().err
    assert (tmp_path / "scaling.csv").read_text().count("\n") == 2


def test_a_half_written_run_is_done_again(modules: dict[str, ModuleType], tmp_path: Path) -> None:
    """What a stopped study leaves behind does not count, the runs before it do."""
    first = a_system(modules, tmp_path, falling)
    value = first.goodput("ecoserve", 0.9, 25.0, 3)
    (path,) = tmp_path.iterdir()
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:-1], lines[-1][:40]]))
    again = a_system(modules, tmp_path, falling)
    assert again.goodput("ecoserve", 0.9, 25.0, 3) == value
    assert again.asked == 1


def test_the_best_option_at_p90_is_taken(
    modules: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three the middle one, though the search starts with the first."""
    goodputs, case = modules["goodputs"], modules["cases"].Case()
    scale = {"Sarathi 512": 1.0, "Sarathi 1024": 1.4, "Sarathi 2048": 0.7}

    def at(self: Any, rate_rps: float, replication: int) -> dict[str, Outcome]:
        met = int(100_000 * falling(rate_rps / scale[self._scenario.strategies[0].name]))
        found = Outcome(
            counted=(100_000,), met=(met,), residence_s=1.0, arrivals=0.0, drift=0.0, growth=0.0,
            statistics={"ttft_s_p50": 0.5},
        )  # fmt: skip
        return {"ecoserve": found, "user": found}

    monkeypatch.setattr(goodputs.Runs, "_run", at)
    tables = modules["systems"].sarathi(case)
    found = goodputs.find(case, tables, tmp_path, [("ecoserve", 0.9), ("ecoserve", 0.5)], 3)
    assert found.name == "Sarathi 1024"
    assert found.goodputs["ecoserve", 0.5].value == pytest.approx(28.0, rel=0.01)
    assert found.user_ttft_s == 0.5


def test_every_row_of_every_study_is_a_scenario(modules: dict[str, ModuleType]) -> None:
    """All of them are accepted and fit their machines, every option of them."""
    from simcluster.runs.compare import check

    count = 0
    for study in modules["studies"].STUDIES.values():
        for row in study():
            for table in row.tables:
                check(row.case.scenario([table]))
                count += 1
    assert count > 350


def test_rows_that_look_at_the_same_system_share_its_runs(modules: dict[str, ModuleType]) -> None:
    """The relaxed case is in five studies and simulated once, for both metrics."""
    studies, run = modules["studies"], modules["run"]
    rows = [row for name in studies.STUDIES for row in studies.STUDIES[name]()]
    jobs = run.jobs_of(rows)
    case = modules["cases"].Case()
    (job,) = [
        job
        for job in jobs.values()
        if job.case == case and job.tables == modules["systems"].vllm(case)
    ]
    assert job.wanted[0] == ("ecoserve", 0.9)
    metrics = ("ecoserve", "user", *modules["readings"].READINGS)
    both = {(metric, level) for metric in metrics for level in (0.9, 0.99)}
    assert set(job.wanted) == both
    assert job.replications == 5


def test_fudg_moves_kv_inside_the_steps_as_engines_of_that_time(
    modules: dict[str, ModuleType],
) -> None:
    """MoonCake with the connector measured on A10, DistServe at the speed of PCIe."""
    case = modules["cases"].Case()
    moon = case.scenario(modules["systems"].mooncake(case)[:1])
    assert moon.environment.engine.kv_connector == "inside"
    assert moon.environment.engine.kv_get_bytes_per_s == 0.9e9
    pair = case.scenario(modules["systems"].distserve(case)[:1])
    assert pair.strategies[0].kv_connector == "inside"
    assert pair.environment.engine.kv_get_bytes_per_s is None
    others = case.scenario(modules["systems"].vllm(case))
    hosts = {
        one.environment.engine.host_before_s + one.environment.engine.host_workers_s
        for one in (moon, pair, others)
    }
    assert len(hosts) == 1, "one engine for all"


def test_a_study_goes_on_from_the_runs_it_has(
    modules: dict[str, ModuleType], script: Script, tmp_path: Path
) -> None:
    """The second time nothing is simulated, and the same comes out; figures and tables are made."""
    run, tables = modules["run"], modules["tables"]
    arguments = ["slo", "comparison", "--quick", "--jobs", "1", "-o", str(tmp_path)]
    run.main(arguments)
    first = (tmp_path / "slo.csv").read_text()
    assert first.count("\n") == 3
    runs = {path: path.read_text() for path in (tmp_path / "runs").iterdir()}
    assert all(json.loads(line) for text in runs.values() for line in text.splitlines())
    run.main(arguments)
    assert (tmp_path / "slo.csv").read_text() == first
    assert {path: path.read_text() for path in (tmp_path / "runs").iterdir()} == runs

    document = tmp_path / "doc.md"
    names = ("target 2", "target 3")
    document.write_text(
        "before\n" + "".join(f"<!-- {n} -->\nold\n<!-- end of {n} -->\n" for n in names) + "after\n"
    )
    tables.main([str(tmp_path), str(document)])
    text = document.read_text()
    assert "| 5 s, 100 ms | EcoServe | 42 |" in text
    assert "L20: EcoServe over it, mean" in text
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")

    figure = script("plots/fig_ecoserve_goodput.py").main
    picture = tmp_path / "goodput.png"
    done = CliRunner().invoke(
        figure, [str(tmp_path / "slo.csv"), "-o", str(picture)], catch_exceptions=False
    )
    assert done.exit_code == 0
    assert picture.stat().st_size > 5000


def test_elastic_policies_run(
    modules: dict[str, ModuleType],
    script: Script,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A few seconds of each, with figures and tables."""
    arguments = ["--quick", "--jobs", "1", "--seeds", "2", "-o", str(tmp_path)]
    elastic = modules["elastic"]
    elastic.main(arguments)
    rising = (tmp_path / "rising.csv").read_text()
    monkeypatch.setattr(elastic, "one", None)  # the second time nothing is simulated
    elastic.main(arguments)
    assert (tmp_path / "rising.csv").read_text() == rising
    document = tmp_path / "doc.md"
    document.write_text("<!-- day -->\n<!-- end of day -->\n")
    modules["tables"].main([str(tmp_path), str(document)])
    assert document.read_text().count("\n| ") == 2 + len(modules["elastic"].DAY)
    figure = script("plots/fig_ecoserve_elastic.py").main
    for study in ("rising", "day"):
        picture = tmp_path / f"{study}.png"
        done = CliRunner().invoke(
            figure,
            [str(tmp_path), "--study", study, "-o", str(picture)],
            catch_exceptions=False,
        )
        assert done.exit_code == 0
        assert picture.stat().st_size > 5000
