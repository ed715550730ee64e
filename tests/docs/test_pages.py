"""Every page shows something that runs, and all that a page shows runs; nothing is left out."""

from __future__ import annotations

import ast
import contextvars
import dataclasses
import importlib.util
import inspect
import os
import re
import runpy
import shutil
import textwrap
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
from click.testing import CliRunner, Result

from helpers.pages import DOCS, GENERATED, ROOT, Block, blocks, pages
from simcluster.catalog import Catalog
from simcluster.catalog.tables import TABLES
from simcluster.cli import main
from simcluster.frames.schema import SCHEMAS
from simcluster.scenario.file import load, resolve
from simcluster.sched import SCHEDULERS
from simcluster.strategies import STRATEGIES

PAGES = pages()
RECORDS = {"decisions": "a record", "changelog": "a record", "index": "a list of pages"}
"""Pages on which there is nothing to do, and what they are."""
DATA = os.environ.get("SIMCLUSTER_DATA", "")
_ALL = {
    name: main.get_command(click.Context(main), name)
    for name in main.list_commands(click.Context(main))
}

SMALL = (
    "scenarios/first.toml",
    "mine.toml",
    "scenarios/rank_small.toml",
    "scenarios/first_cooptimize.toml",
)
"""Scenarios whose searches are short enough to run; those of others are read, every key of them."""
FEW_RATES = ["--set", "sweep.rates_rps=[4]"]
EASY = ["--set", "workload.lengths={kind='fixed', prompt_len=900, output_len=5}"]
SEARCHES: dict[str, list[str]] = {
    "goodput": [
        *("--tolerance", "0.5", "--max-requests", "1000", "--no-step-time-errors", *EASY),
        *("--set", "slo.ttft_s=0.5", "--set", "slo.attainment=0.9"),
    ],
    "rank": ["--set", "rank.mode='bestserve'"],
}
"""What is added to searches, which take minutes; everything else runs as it stands."""
PARSED = ("plan", "measure", "calibrate", "init", "ui")
"""Commands that are parsed and not run: `tests/studies/test_plan.py` runs a plan, those of
the hardware and of `ui` have tests of their own; `init` runs where it writes a file."""


def call(words: list[str]) -> Result:
    """Call the command line in a context of its own, as a process would be."""
    run = contextvars.copy_context().run
    return run(lambda: CliRunner().invoke(main, words, catch_exceptions=False))


def shown_file(page: str, name: str) -> str:
    """Return a file that a page shows."""
    return next(block.text for block in blocks(DOCS / f"{page}.md") if block.file == name)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder to work in as a reader has it; what a block registers is forgotten."""
    shutil.copytree(ROOT / "scenarios", tmp_path / "scenarios")
    for name in ("examples", "plots"):
        (tmp_path / name).symlink_to(ROOT / name)
    row = '{{"timestamp": {}, "input_length": 600, "output_length": 9, "hash_ids": [1, {}]}}\n'
    (tmp_path / "conversation_trace.jsonl").write_text(
        "".join(row.format(2000 * n, n) for n in range(5))
    )
    for name in ("requests.jsonl", "conversation_trace.jsonl.gz"):
        shutil.copy(tmp_path / "conversation_trace.jsonl", tmp_path / name)
    shutil.copy(ROOT / "scenarios" / "first.toml", tmp_path / "mine.toml")
    config = shown_file("own-model", "models/mine/config.json")
    (tmp_path / "mine.csv").write_text(shown_file("kernel-times", "mine.csv"))
    for folder in ("models/mine", "path/to"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.json").write_text(config)
    if DATA:
        (tmp_path / "DATA").symlink_to(DATA)
        (tmp_path / "DATA_DIR").symlink_to(DATA)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "plugin"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    known = dict(STRATEGIES)
    yield tmp_path
    STRATEGIES.clear()
    STRATEGIES.update(known)
    for name in list(SCHEDULERS.added):
        del SCHEDULERS[name]


def shortened(words: list[str]) -> list[str]:
    """Return a command as the test runs it."""
    name = words[0]
    if name not in ("run", "compare", "goodput", "rank", "timeline"):
        return words
    if "--trace" not in words and "workload.num_requests" not in " ".join(words):
        words = [*words, "--set", "workload.duration_s=2"]
        if name == "compare" and "sweep.rates_rps" not in " ".join(words):
            words = [*words, *FEW_RATES]
    return [*words, *SEARCHES.get(name, ())]


def reads(words: list[str]) -> None:
    """Parse a command, and read the scenario that it names with what it sets."""
    context = _ALL[words[0]].make_context(words[0], list(words[1:]))
    file = context.params.get("file")
    if file is not None and file.exists():
        load(file, dict(context.params.get("overrides") or ()))
    context.close()


def run_command(block: Block) -> None:
    """Run a command of ours, parse what takes long or needs hardware, look for what others name."""
    words = block.words
    if block.kind == "make":
        targets = re.findall(r"^(\w[\w-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[0] in targets
    elif block.kind == "pip":
        extras = re.findall(r"simcluster\[(\w+)\]", block.text)
        declared = (ROOT / "setup.cfg").read_text().partition("extras_require]")[2]
        assert all(f"\n{extra} =" in declared for extra in extras)
        assert words[0] == "install"
    elif block.kind == "python":
        module = words[0] == "-m"
        assert importlib.util.find_spec(words[1]) if module else (ROOT / words[0]).is_file()
    elif re.search(r"\b[A-Z]{4,}(_DIR)?\b(?!/)", block.text) and not (
        DATA and "DATA" in block.text
    ):
        reads(words)  # FILE, FOLDER stand for names
    elif words[0] in PARSED:
        if words[0] == "init" and "-o" in words:
            Path(words[words.index("-o") + 1]).unlink(missing_ok=True)
            assert call(words).exit_code == 0
        else:
            reads(words)
            if "-o" in words and Path("results/goodput").exists():  # what comes after it needs one
                shutil.copytree("results/goodput", words[words.index("-o") + 1])
    elif "--gate" in words or (
        words[0] in (*SEARCHES, "cooptimize") and (words[1] not in SMALL or "--need" in words)
    ):
        reads(words)
    else:
        if words[:2] == ["catalog", "add-model"] and "-o" in words:
            Path(words[words.index("-o") + 1]).unlink(missing_ok=True)
        result = call(shortened(words))
        assert result.exit_code in (0, 3), f"{block.text}\n{result.output}"
        assert result.stdout, block.text


def read_toml(block: Block) -> None:
    """A scenario, a part of one, entries of the catalogue, or entry points."""
    tables = tomllib.loads(block.text)
    if block.file is not None:
        Path(block.file).parent.mkdir(parents=True, exist_ok=True)
        Path(block.file).write_text(block.text)
    if tables.keys() & {"project"}:
        return
    if any(isinstance(tables.get(name), list) for name in TABLES):
        Path("entries.toml").write_text(block.text)
        Catalog().with_file("entries.toml")
        return
    base = tomllib.loads((ROOT / "scenarios" / "first.toml").read_text())
    if any("ep_size" in strategy for strategy in tables.get("strategy", ())):
        base |= {"model": {"name": "mixtral-8x7b"}, "cluster": {"gpu": "H100"}}  # has experts
    if not tables.get("workload", {}).keys() & {"lengths", "trace", "arrivals"}:
        tables["workload"] = {**base["workload"], **tables.get("workload", {})}
    resolve({**base, **tables} if "model" not in tables else tables, folder=Path.cwd())


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_all_that_a_page_shows_runs(page: Path, project: Path) -> None:
    """In the order of the page, in a folder that has the scenarios: shorter, else as it stands."""
    for block in blocks(page):
        if block.kind == "python-code":
            if block.file is None:
                Path("block.py").write_text(block.text)
                runpy.run_path("block.py", run_name="__main__")
        elif block.kind in ("json", "csv"):
            if block.file is not None:
                Path(block.file).parent.mkdir(parents=True, exist_ok=True)
                Path(block.file).write_text(block.text)
        elif block.kind == "toml":
            read_toml(block)
        else:
            run_command(block)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_something_to_run(page: Path) -> None:
    """A command, or Python; a record says that it is one."""
    runs = {"simcluster", "python", "python-code", "make"}
    assert page.stem in RECORDS or [b for b in blocks(page) if b.kind in runs]


def test_no_fence_is_of_an_unknown_kind() -> None:
    """What is not run is text, and says so."""
    known = {"python-code", "toml", "json", "csv", "simcluster", "python", "make", "pip"}
    assert {b.kind for page in PAGES for b in blocks(page)} <= known | {"toctree", "include"}


@pytest.fixture(scope="module")
def generate() -> SimpleNamespace:
    """What makes pages from the package."""
    return SimpleNamespace(**runpy.run_path(str(DOCS / "generate.py")))


def test_every_command_is_on_the_page_of_commands(generate: SimpleNamespace) -> None:
    """With every option that its help has."""
    page = generate.cli()
    for words, command in generate.commands(main):
        own = page.partition(f"## `{words}`\n")[2].partition("\n## ")[0]
        assert "Usage: simcluster" in own
        options = [o for o in command.params if isinstance(o, click.Option) and not o.hidden]
        assert [o.name for o in options if not any(name in own for name in o.opts)] == []
    assert set(main.list_commands(click.Context(main))) == {
        words.split()[1] for words, _ in generate.commands(main)
    }


def test_every_public_name_is_on_the_page_of_the_api(generate: SimpleNamespace) -> None:
    """All packages with an ``__all__``, and the modules that pages name."""
    shown = {name for names in generate.MODULES.values() for name in names}
    for file in (ROOT / "simcluster").rglob("__init__.py"):
        if "__all__" in file.read_text(encoding="utf-8"):
            name = ".".join(file.parent.relative_to(ROOT).parts)
            inner = name.startswith("simcluster.fidelity.calibrate.")
            assert inner or name in shown
    page = generate.api()
    assert all(f".. automodule:: {name}\n" in page for name in shown)


def test_no_public_name_is_undocumented(generate: SimpleNamespace) -> None:
    """Classes with their methods and fields, functions, constants: Sphinx leaves out the others."""
    without = []
    for name in [name for names in generate.MODULES.values() for name in names]:
        module = importlib.import_module(name)
        assert module.__doc__
        own = [key for key, one in vars(module).items() if getattr(one, "__module__", "") == name]
        for member in getattr(module, "__all__", [key for key in own if not key.startswith("_")]):
            value = getattr(module, member)
            if inspect.isclass(value):
                without += [f"{name}.{member}.{one}" for one in undocumented(value)]
            if (inspect.isclass(value) or inspect.isroutine(value)) and not value.__doc__:
                without.append(f"{name}.{member}")
        without += [f"{name}.{one}" for one, text in generate.constants(name).items() if not text]
    assert without == []


def undocumented(cls: type) -> list[str]:
    """Return public methods and fields of a class without a text.

    That of a field stands below it or below those behind it, or in the text of the class.
    """
    without = []
    for name, value in vars(cls).items():
        method = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if inspect.isfunction(method) and not name.startswith("_") and not method.__doc__:
            without.append(name)
    if dataclasses.is_dataclass(cls):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0].body  # type: ignore[attr-defined]  # a class
        waiting: list[str] = []
        for statement in [*body, ast.Pass()]:
            if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                waiting.append(statement.target.id)
                continue
            if not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)):
                said = str(cls.__doc__)
                without += [one for one in waiting if one[0] != "_" and one not in said]
            waiting = []
    return without


def test_every_command_option_and_argument_says_what_it_is(generate: SimpleNamespace) -> None:
    """A help of each option; a text of each command."""
    for words, command in generate.commands(main):
        assert command.help, words
        options = [o for o in command.params if isinstance(o, click.Option) and not o.hidden]
        assert [o.name for o in options if not o.help] == [], words


def test_every_entry_and_key_is_on_the_page_of_entries(generate: SimpleNamespace) -> None:
    """Each GPU with its class of accuracy; classes have a meaning."""
    from simcluster import catalog

    page = generate.entries()
    for name in catalog.names("gpu"):
        accuracy = catalog.gpu(name).constants.accuracy
        assert accuracy in generate.CLASSES
        assert f"| {name} | {accuracy} |" in page
    for kind in ("model", "link", "node", "engine", "lengths", "quality"):
        assert [name for name in catalog.names(kind) if f"| {name} |" not in page] == []
    for table, keys in TABLES.items():
        own = page.partition(f"### `[[{table}]]`\n")[2].partition("\n### ")[0]
        assert [key for key in keys if f"| `{key}` |" not in own] == []


def test_generated_pages_are_not_committed() -> None:
    """They cannot be out of date."""
    ignored = (ROOT / ".gitignore").read_text().split()
    assert [name for name in GENERATED if f"/docs/{name}" not in ignored] == []


def test_frames_and_their_page_have_the_same_names() -> None:
    """`tests/frames/test_frames_page.py` compares them column by column."""
    page = (DOCS / "frames.md").read_text(encoding="utf-8")
    assert [name for name in SCHEMAS if f"## {name}\n" not in page] == []


@pytest.mark.parametrize("page", PAGES[1:], ids=lambda page: page.stem)
def test_the_index_names_every_page_once_in_its_tables(page: Path) -> None:
    """And the side bar has it."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    trees = "".join(re.findall(r"```\{toctree\}\n(.*?)```", index, re.DOTALL)).split()
    assert page.stem == "index" or page.stem in trees
    assert page.stem in ("index", "tutorial", "changelog") or f"({page.name})" in index


def test_the_gallery_has_every_scenario_and_its_picture() -> None:
    """A question and a command each; `quickstart.py` is what `make demo` calls."""
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    files = {
        path.stem for path in (ROOT / "scenarios").glob("*.*") if path.suffix in (".toml", ".py")
    }
    assert [name for name in sorted(files) if not re.search(rf"\b{name}\.(toml|py)\b", text)] == []
    for part in text.split("\n## ")[1:-1]:
        assert re.search(r"^!\[[^\]]{20,}\]\(img/\w[\w-]*\.png\)$", part, re.MULTILINE), part
        assert re.search(r"^    (simcluster|python|make) ", part, re.MULTILINE), part
