"""Help: nothing cut, everything in a group, examples that run; width, silence, standard input."""

from __future__ import annotations

import contextvars
import io
import os
import shlex
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from simcluster.cli import main
from simcluster.show import terminal
from simcluster.show.commands import EXAMPLES, GROUPS
from simcluster.show.text import aligned

ROOT = Path(__file__).parents[1]
DATA = os.environ.get("SIMCLUSTER_DATA", "")
_CONTEXT = click.Context(main)
ALL = {name: main.get_command(_CONTEXT, name) for name in main.list_commands(_CONTEXT)}
"""Commands, also those that are imported when they are called."""
COMMANDS: dict[str, click.Command] = {
    **ALL,
    **{f"catalog {n}": c for n, c in main.commands["catalog"].commands.items()},  # type: ignore[attr-defined]
}


def call(*arguments: object, given: str | None = None) -> Result:
    """Call the command line in a context of its own, as a process would be."""
    words = [str(a) for a in arguments]
    run = contextvars.copy_context().run
    return run(lambda: CliRunner().invoke(main, words, input=given, catch_exceptions=False))


def test_every_command_is_in_a_group_and_has_examples() -> None:
    """Two each; a group has no command that is not there."""
    assert {name for names in GROUPS.values() for name in names} == set(ALL)
    assert set(EXAMPLES) == {name.split()[-1] for name in COMMANDS}
    for name, calls in EXAMPLES.items():
        assert len(set(calls)) == 2
        assert all(name in call.split() or name == "list" for call in calls)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_no_line_of_a_help_is_cut_or_too_long(name: str) -> None:
    """80 columns, no dots in place of words, and the examples stand at its end."""
    lines = call(*name.split(), "--help").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [
        line
        for line in lines
        if line.endswith("...") and "[ARGS]" not in line and "Usage" not in line
    ]
    assert not name or "Examples:" in lines[-12:]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder as a user's would be, with what the examples name; they run in it in turn."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "scenarios").symlink_to(ROOT / "scenarios")
    model = folder / "models" / "mine"
    model.mkdir(parents=True)
    (model / "config.json").write_text(
        '{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, '
        '"num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, '
        '"intermediate_size": 14336, "vocab_size": 128256, "max_position_embeddings": 8192, '
        '"torch_dtype": "bfloat16"}'
    )
    if DATA:
        (folder / "DATA").symlink_to(DATA)
    old = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(old)


SHORTER = {
    "goodput": ["--tolerance", "0.5", "--no-step-time-errors"],
    "rank": ["--set", "rank.mode=bestserve"],
}
"""What is added to the examples of searches, which take a minute each; the rest is as it stands."""
PARSED = ("plan", "ui", "measure", "calibrate")
"""Commands whose examples are parsed and not run: `tests/studies/test_plan.py` runs a plan,
`tests/ui/test_page.py` a page; the
others need a GPU, or what it measured."""


FILES = ("show", "schema", "add-model")
"""Commands that print a file, which no terminal breaks into lines."""


def too_long(words: list[str], text: str) -> list[str]:
    """Return the lines over 80 columns, but for a path or a command to copy."""
    if "--json" in words or "--markdown" in words or set(words) & set(FILES):
        return []
    return [
        line
        for line in text.splitlines()
        if len(line) > 80 and " " in line.strip() and "simcluster " not in line
    ]


@pytest.mark.parametrize("file", sorted((ROOT / "scenarios").glob("*.toml")), ids=lambda f: f.stem)
def test_what_is_said_of_a_scenario_fits_80_columns(file: Path) -> None:
    """Heading, notes and tables; those that have no strategy of their own are ranked."""
    words = ["check", str(file)]
    result = call(*words)
    if result.exit_code:
        assert "the scenario has none" in result.stderr
        return
    assert not too_long(words, result.stdout)
    assert max(map(len, call(*words, "--wide").stdout.splitlines())) > 80


@pytest.mark.slow
def test_the_examples_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the help, as they stand there; each prints something."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
    ran = []
    for name in [name for names in GROUPS.values() for name in names] + ["list", "add-model"]:
        for one in EXAMPLES[name]:
            words = [*shlex.split(one), *SHORTER.get(name, ())]
            if name in PARSED or (name == "validate" and not DATA) or "--need" in words:
                ALL[words[0]].make_context(words[0], shlex.split(one)[1:]).close()
                continue
            if words[:2] == ["catalog", "add-model"]:
                (place / "mine.toml").unlink(missing_ok=True)
            result = call(*words)
            assert result.exit_code in (0, 3), f"{one}\n{result.output}"
            assert result.stdout, one
            assert not too_long(words, result.stdout), one
            ran.append(one)
    assert len(ran) >= 2 * (len(EXAMPLES) - 6)


def test_tables_fit_80_columns_unless_asked(place: Path) -> None:
    """Split with the first column again; `--wide` prints each whole, with the same cells."""
    arguments = ["rank", "scenarios/first.toml", "--set", "rank.mode=bestserve"]
    arguments += ["--set", "strategy=", "--set", "cluster.price_per_gpu_hour=2"]
    narrow = call(*arguments).stdout
    wide = call(*arguments, "--wide").stdout

    def table(text: str) -> list[str]:
        lines = text.splitlines()
        ruled = [i for i, line in enumerate(lines) if line and set(line) == {"-"}]
        return [line for i in ruled for line in lines[i - 1 : i + 3]]

    assert max(map(len, table(narrow))) <= 80
    assert max(map(len, table(wide))) > 80
    assert set(" ".join(table(wide)).split()) - {"-" * n for n in range(200)} <= set(
        " ".join(table(narrow)).split()
    )


def test_a_table_is_split_by_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: 10 + 2 + 8 fit in 20, the third column goes below."""
    rows = [["name", "first", "second"], ["abcdefghij", "12345678", "87654321"]]
    monkeypatch.setattr(terminal, "TABLE_WIDTH", 20)
    assert aligned(rows) == "\n".join(
        [
            "name           first",
            "--------------------",
            "abcdefghij  12345678",
            "",
            "name          second",
            "--------------------",
            "abcdefghij  87654321",
        ]
    )
    monkeypatch.setattr(terminal, "TABLE_WIDTH", 30)
    assert aligned(rows).count("\n") == 2


def test_a_scenario_comes_from_standard_input(place: Path) -> None:
    """As from a file; what is no scenario is one line."""
    text = (ROOT / "scenarios" / "first.toml").read_text()
    assert call("show", "-", given=text).stdout == call("show", "scenarios/first.toml").stdout
    piped = call("run", "-", "--rate", 6, "--set", "workload.duration_s=2", given=text)
    assert piped.exit_code == 0
    wrong = call("run", "-", given="= 3")
    assert (wrong.exit_code, wrong.stderr.count("\n")) == (1, 1)
    assert "is not TOML" in wrong.stderr


def test_quiet_leaves_out_warnings_and_nothing_else(place: Path) -> None:
    """A target that a lone request misses is a warning."""
    arguments = ["run", "scenarios/first.toml", "--set", "slo.ttft=1ms", "--set"]
    arguments += ["workload.duration_s=2"]
    loud, quiet = call(*arguments), call(*arguments, "--quiet")
    assert "warning:" in loud.stderr
    assert quiet.stderr == ""
    assert quiet.stdout == loud.stdout


def test_nothing_is_coloured(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With NO_COLOR or without: no escape codes in what is printed."""
    for value in ("", "1"):
        monkeypatch.setenv("NO_COLOR", value)
        result = call("check", "scenarios/first.toml")
        assert "\x1b" not in result.stdout + result.stderr


class _Screen(io.StringIO):
    """A terminal that keeps what is written to it."""

    def isatty(self) -> bool:
        """Return that somebody reads it."""
        return True


def test_signs_of_life_come_late_say_how_far_and_are_wiped() -> None:
    """Nothing for what is quick; after that a line, which is gone in the end."""
    screen = _Screen()
    with terminal.signs_of_life("working", stream=screen, after_s=60):
        pass
    assert screen.getvalue() == ""
    with terminal.signs_of_life("working", lambda: 0.5, stream=screen, after_s=0, every_s=0.01):
        deadline = time.monotonic() + 60
        while "50 %" not in screen.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "working: 50 %" in screen.getvalue()
    assert screen.getvalue().rsplit("\r", 2)[1].strip() == ""


def test_quiet_and_pipes_have_no_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where work takes long."""
    screen = _Screen()
    token = terminal.QUIET.set(True)
    with terminal.signs_of_life("working", stream=screen, after_s=0):
        time.sleep(0.05)
    terminal.QUIET.reset(token)
    pipe = io.StringIO()
    with terminal.signs_of_life("working", stream=pipe, after_s=0):
        time.sleep(0.05)
    assert screen.getvalue() + pipe.getvalue() == ""


def test_a_run_says_how_far_it_is() -> None:
    """The share of its requests that have ended, between 0 and 1, asked for while it runs."""
    from simcluster.runs import watch
    from simcluster.runs.simulate import simulate
    from simcluster.scenario.file import load

    seen: list[float | None] = []
    original = watch.share_done
    scenario = load(ROOT / "scenarios" / "first.toml")

    assert original() is None
    done = threading.Event()

    def ask() -> None:
        while not done.wait(0.0005):
            seen.append(original())

    thread = threading.Thread(target=ask)
    thread.start()
    simulate(scenario, rate_rps=10)
    done.set()
    thread.join()
    known = [share for share in seen if share is not None]
    assert known
    assert known == sorted(known)
    assert all(0 <= share <= 1 for share in known)
    assert original() is None
