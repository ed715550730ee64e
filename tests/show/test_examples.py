"""Examples that come with the package: each is described, and a copy of them works."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from simcluster.cli import main
from simcluster.show import examples

ROOT = Path(__file__).parents[2]


def call(*words: object) -> tuple[int, str, str]:
    """Call the command line."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    return result.exit_code, result.stdout, result.stderr


def test_every_scenario_and_notebook_is_listed_with_what_it_is() -> None:
    """In lines of 80 columns, none cut."""
    code, text, _ = call("examples")
    assert code == 0
    assert max(map(len, text.splitlines())) <= 80
    files = [*ROOT.glob("scenarios/*.toml"), *ROOT.glob("examples/notebooks/*.ipynb")]
    assert len(files) >= 14
    for file in files:
        name = file.relative_to(ROOT).as_posix()
        assert f"{name}\n    " in text
    assert "A first example, done in seconds" in text


def test_a_copy_works_and_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another folder; a second copy is refused in one line and changes nothing."""
    monkeypatch.chdir(tmp_path)
    code, text, _ = call("examples", "copy")
    assert (code, text.split()) == (0, list(examples.FOLDERS))
    assert call("check", "scenarios/first.toml")[0] == 0
    assert (tmp_path / "examples" / "notebooks" / "first_answer.ipynb").is_file()
    assert not list(tmp_path.rglob("__pycache__"))
    (tmp_path / "scenarios" / "first.toml").write_text("mine")
    code, _, error = call("examples", "copy", ".")
    assert code == 1
    assert error.count("\n") == 1
    assert "scenarios: exists" in error
    assert (tmp_path / "scenarios" / "first.toml").read_text() == "mine"


def test_a_checkout_has_the_examples_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a folder into which they were copied; a file more of one's own does not matter."""
    monkeypatch.chdir(ROOT)
    assert call("examples", "copy") == (0, ".: the examples are there already.\n", "")
    monkeypatch.chdir(tmp_path)
    assert call("examples", "copy", "here")[0] == 0
    (tmp_path / "here" / "scenarios" / "mine.toml").write_text("")
    assert call("examples", "copy", "here") == (0, "here: the examples are there already.\n", "")
    assert (tmp_path / "here" / "scenarios" / "mine.toml").exists()


def test_a_copy_into_a_file_is_one_line(tmp_path: Path) -> None:
    """Nothing is half-written."""
    file = tmp_path / "file"
    file.write_text("")
    code, _, error = call("examples", "copy", file)
    assert (code, error.count("\n")) == (1, 1)
    assert "cannot be written" in error


def test_an_installation_without_examples_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one from a copy of the package alone."""
    monkeypatch.setattr(examples, "PACKAGED", tmp_path)
    monkeypatch.setattr(examples, "CHECKOUT", tmp_path)
    code, _, error = call("examples")
    assert (code, error.count("\n")) == (1, 1)
    assert "has no examples" in error


def test_the_shell_completes_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """By click's own completion, commands that are imported late among them."""
    from click.shell_completion import BashComplete

    monkeypatch.setenv("COMP_WORDS", "simcluster va")
    monkeypatch.setenv("COMP_CWORD", "1")
    done = BashComplete(main, {}, "simcluster", "_SIMCLUSTER_COMPLETE").complete()
    assert done == "plain,validate"
