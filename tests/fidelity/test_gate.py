"""The gate: a run against accepted scores, the file of them, and the table by kind."""

from __future__ import annotations

import datetime
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from simcluster.catalog.scores import EMPTY, Origin, Scores, committed, read, to_toml
from simcluster.cli import main
from simcluster.errors import DataError
from simcluster.fidelity.validate import blis_vllm015, board, check, document, gate, sarathi_iter
from simcluster.fidelity.validate.base import Check
from simcluster.fidelity.validate.run import Validation

SET = "a set"
about = partial(check, data_set=SET, gpu="A100", regime="all")
CHECKS = (
    about([10.0, 10.0], [11.0, 9.0], quantity="TPOT"),  # mean 10 %, bias 0
    about([10.0, 10.0], [11.0, 11.0], quantity="TTFT", limits="bias"),  # bias +10 %
)


def result(*checks: Check, made: tuple[str, ...] = (SET,)) -> Validation:
    """A validation that found `checks`."""
    return Validation(checks, (), 1.0, made)


def data_with(folder: Path, name: str = SET) -> Path:
    """A folder of measured sets whose set `name` says where it is from."""
    (folder / name).mkdir(parents=True)
    words = "# A set\n\n- Source: somebody, some file\n- Licence: MIT\n"
    (folder / name / "README.md").write_text(words, encoding="utf-8")
    return folder


@pytest.fixture
def accepted(tmp_path: Path) -> Scores:
    """The scores of `CHECKS`."""
    return gate.updated(
        result(*CHECKS), EMPTY, data_with(tmp_path / "data"), today=datetime.date(2026, 12, 1)
    )


@pytest.mark.parametrize(
    ("simulated", "passes"), [([11.1, 8.9], True), ([11.19, 8.81], True), ([11.21, 8.79], False)]
)
def test_two_points_of_the_governing_error_are_the_margin(
    accepted: Scores, simulated: list[float], passes: bool
) -> None:
    """10 % before: 11.9 % is let through, 12.1 % is not, and the line has both."""
    found = gate.compare(
        result(about([10.0, 10.0], simulated, quantity="TPOT"), CHECKS[1]), accepted
    )
    assert found.passed is passes
    expected = [] if passes else ["a set, A100, all, TPOT: mean error 10.0 % before, 12.1 % now"]
    assert list(found.failures) == expected


def test_the_governing_error_decides_and_its_sign_does_not(accepted: Scores) -> None:
    """A bias of -11 % for +10 % passes with any mean; -13 % does not."""
    wide = about([10.0, 10.0], [3.0, 14.8], quantity="TTFT", limits="bias")
    assert gate.compare(result(CHECKS[0], wide), accepted).passed
    low = about([10.0, 10.0], [8.7, 8.7], quantity="TTFT", limits="bias")
    (line,) = gate.compare(result(CHECKS[0], low), accepted).failures
    assert line == "a set, A100, all, TTFT: bias 10.0 % before, 13.0 % now"


def test_a_check_that_is_gone_or_has_other_points_fails(accepted: Scores) -> None:
    """It would else pass by what it leaves out; a better one and a new one pass."""
    fewer = about([10.0], [11.0], quantity="TPOT")
    first, second = gate.compare(result(fewer), accepted).failures
    assert "1 points, 2 before" in first
    assert "not made any more" in second
    better = about([10.0, 10.0], [10.0, 10.0], quantity="TPOT")
    new = about([10.0], [90.0], quantity="E2E")
    found = gate.compare(result(better, CHECKS[1], new), accepted)
    assert found.passed
    assert found.notes == ("a set, A100, all, E2E: new, not compared; --update-gate takes it in",)
    # An empty check is as good as none.
    empty = about([], [], quantity="TPOT")
    assert not gate.compare(result(empty, CHECKS[1]), accepted).passed


def test_absent_sets_are_said_and_nothing_compared_is_no_success(accepted: Scores) -> None:
    """A folder without measured sets must not pass."""
    found = gate.compare(result(made=()), accepted)
    assert not found.passed
    assert "not compared, absent or not asked for: a set" in found.text()
    assert found.text().endswith("gate: nothing could be compared\n")


def test_scores_survive_their_file(tmp_path: Path, accepted: Scores) -> None:
    """One line per check, rounded to a hundredth of a point, with source and licence."""
    path = tmp_path / "scores.toml"
    path.write_text(to_toml(accepted), encoding="utf-8")
    again = read(path)
    assert to_toml(again) == to_toml(accepted)
    assert [score.key for score in again.checks] == [score.key for score in accepted.checks]
    assert [score.mean for score in again.checks] == pytest.approx([0.1, 0.1])
    assert again.origins == {SET: Origin("somebody, some file", "MIT")}
    assert again.made.startswith("2026-12-01")
    assert sum(line.startswith('  ["A100"') for line in to_toml(accepted).splitlines()) == 2


def test_an_update_of_one_set_leaves_the_others(tmp_path: Path, accepted: Scores) -> None:
    """Checks that a set no longer has go; those of other sets stay as they were."""
    data = data_with(tmp_path / "more", "another")
    other = check([1.0], [1.1], data_set="another", gpu="A100", regime="all", quantity="TPOT")
    both = gate.updated(result(other, made=("another",)), accepted, data)
    assert {score.data_set for score in both.checks} == {SET, "another"}
    assert set(both.origins) == {SET, "another"}
    data_with(data)
    one = gate.updated(result(CHECKS[0]), both, data)
    assert [score.key[:1] + score.key[4:] for score in one.checks] == [
        ("another", "TPOT"),
        (SET, "TPOT"),
    ]
    with pytest.raises(DataError, match="no line '- Source"):
        gate.updated(result(CHECKS[0]), EMPTY, tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "made = 1",
        "not toml",
        'made = "x"\nkinds = []\n[[set]]\nname = "a"\nsource = ""\nlicence = ""\nchecks = [[1]]',
        'made = "x"\nkinds = []\n[[set]]\nname = "a"\nsource = ""\nlicence = ""\n'
        'checks = [["g", "", "all", "TPOT", 1, 0.1, 0.1, nan, 0.1, "mean"]]',
    ],
)
def test_a_file_that_is_none_of_scores_is_one_line(tmp_path: Path, text: str) -> None:
    """Before any check runs."""
    path = tmp_path / "scores.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="not a file of scores"):
        read(path)


def sarathi(folder: Path) -> Path:
    """A made-up set in the form of `sarathi_iter`: one prefill and one decode step."""
    data = data_with(folder, sarathi_iter.DATA_SET)
    for phase, seconds in (("prefill", 0.5), ("decode", 0.05)):
        name = data / sarathi_iter.DATA_SET / f"figure-2__{phase}.csv"
        name.write_text(f"batch_num_{phase}_tokens,batch_execution_time\n8,{seconds}\n")
    return data


def test_the_command_accepts_and_compares(tmp_path: Path) -> None:
    """Exit 0 on the same data; 1 with one line per check where a measured time has moved."""
    data, scores = sarathi(tmp_path / "data"), tmp_path / "scores.toml"
    common = ["validate", str(data), "--only", "sarathi_iter", "--scores", str(scores)]
    absent = CliRunner().invoke(main, [*common, "--gate"])
    assert absent.exit_code == 1
    assert "No such file" in absent.output
    done = CliRunner().invoke(main, [*common, "--update-gate"])
    assert done.exit_code == 0, done.output
    before = scores.read_bytes()
    done = CliRunner().invoke(main, [*common, "--gate"])
    assert done.exit_code == 0, done.output
    assert "gate: 2 checks against the scores of" in done.stdout
    assert scores.read_bytes() == before
    decode = data / "sarathi_iter" / "figure-2__decode.csv"
    decode.write_text("batch_num_decode_tokens,batch_execution_time\n8,0.0005\n")
    done = CliRunner().invoke(main, [*common, "--gate"])
    assert done.exit_code == 1
    first, last = done.stdout.splitlines()
    assert first.startswith("sarathi_iter, A100 PCIe, yi-34b, decode, step time: mean error ")
    assert "1 failed" in last
    refused = CliRunner().invoke(main, [*common, "--gate", "--update-gate"])
    assert refused.exit_code == 2


def test_every_committed_kind_and_check_has_an_origin() -> None:
    """And every row of the table by kind has scores: none rests on a check that was renamed."""
    scores = committed()
    assert {score.data_set for score in scores.checks} == set(scores.origins)
    assert all(origin.source and origin.licence for origin in scores.origins.values())
    kinds = {(one.kind, one.data_set, one.quantity) for one in scores.kinds}
    named = {(row.kind, row.data_set, name) for row in board.ROWS for name in row.checks}
    assert kinds == named
    keys = {score.key for score in scores.checks}
    for row in board.ROWS:
        for model, regime, quantity in row.checks.values():
            assert (row.data_set, row.gpu, model, regime, quantity) in keys


@pytest.mark.parametrize("name", ["aic_layouts", "aic_kernels"])
def test_sets_without_a_folder_of_their_own_have_the_origin_of_the_one_they_read(
    tmp_path: Path, name: str
) -> None:
    """Scores of both can be accepted: their rows are in aic_e2e."""
    (tmp_path / "aic_e2e").mkdir()
    (tmp_path / "aic_e2e" / "README.md").write_text("- Source: a page\n- Licence: Apache-2.0\n")
    assert gate._origin(tmp_path, name) == Origin("a page", "Apache-2.0")


def test_the_table_by_kind_has_a_line_per_row_and_the_best_rival() -> None:
    """Two stages at 5 % each; the rival with the smaller E2E stands beside them."""
    blis = partial(check, data_set="blis_vllm015", gpu="H100", model="dense", regime="not fitted")
    checks = [blis([1.0, 1.0], [1.05, 0.95], quantity=name) for name in ("TTFT", "TPOT", "E2E")]

    def rival(name: str, factor: float) -> blis_vllm015.Rival:
        theirs = {q: blis([1.0], [factor], quantity=q) for q in ("TTFT", "TPOT", "E2E")}
        return blis_vllm015.Rival(name, "dense", theirs, theirs)

    text = board.as_markdown(checks, [rival("far", 1.5), rival("near", 1.2)])
    lines = [line for line in text.splitlines() if line.startswith("| dense | bf16")]
    assert len(lines) == 1
    assert "| 2 | held out | 5.0 | 5.0 | 5.0 |  | 20.0, 20.0, 20.0 (near) |" in lines[0]
    assert "| dense | far | 1 | 50.0 (50.0) |" in text
    assert "Not measured: dense 4-bit;" in text


def test_means_of_a_run_weigh_its_stages_by_their_requests() -> None:
    """Stages of 10 and 30 requests/s and equal length: a quarter and three quarters."""
    import numpy as np
    import pandas as pd

    frame = pd.DataFrame({"exp_id": [1, 1], "workload": "general", "rate_rps": [10.0, 30.0]})
    stages = np.array([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]])
    ((run, means),) = blis_vllm015.run_means(frame, stages).items()
    assert run == (1, "general")
    assert means == pytest.approx([4.0, 5.0, 6.0])


def test_a_page_without_marks_is_refused_before_the_checks_run(tmp_path: Path) -> None:
    """And stays as it was."""
    page = tmp_path / "accuracy.md"
    page.write_text("words", encoding="utf-8")
    done = CliRunner().invoke(document.main, [str(tmp_path), str(tmp_path), "--made", "now"])
    assert isinstance(done.exception, DataError)
    assert page.read_text(encoding="utf-8") == "words"
