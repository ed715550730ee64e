"""Pages that are made from the package: commands, entries of the catalogue, and the API.

Sphinx writes them before it reads the other pages (``conf.py``); git ignores them.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import inspect
import io
import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from simcluster import catalog
from simcluster.catalog.tables import TABLES, Key
from simcluster.cli import main
from simcluster.show.commands import GROUPS

MODULES = {
    "Scenario, runs, comparisons": (
        "simcluster",
        "simcluster.runs.folder",
    ),
    "Studies": (
        "simcluster.studies.goodput",
        "simcluster.studies.rank.rank",
        "simcluster.studies.rank.ranking",
        "simcluster.studies.plan",
        "simcluster.scenario.draft",
        "simcluster.studies.cooptimize.run",
        "simcluster.studies.check.facts",
        "simcluster.studies.trace_file",
    ),
    "Tables, figures, reports": (
        "simcluster.show.plot",
        "simcluster.show.plot_timeline",
        "simcluster.show.timeline",
        "simcluster.report.make",
        "simcluster.report.difference",
        "simcluster.frames.metrics",
        "simcluster.frames.breakdown",
        "simcluster.frames.unroll",
        "simcluster.frames.schema",
    ),
    "Extension points": (
        "simcluster.registry",
        "simcluster.strategies",
        "simcluster.routing",
        "simcluster.sched",
        "simcluster.workload",
        "simcluster.kvcache",
        "simcluster.roofline",
        "simcluster.roofline.measured",
        "simcluster.quality",
        "simcluster.engine.instance",
        "simcluster.testing.contracts",
        "simcluster.rng",
        "simcluster.units",
        "simcluster.errors",
    ),
    "Catalogue and measurements": (
        "simcluster.catalog",
        "simcluster.fidelity.calibrate",
        "simcluster.fidelity.validate",
    ),
}
"""Public modules by what they are for: those with an ``__all__``, and those that pages name."""

CLASSES = {
    "measured": "constants fitted to kernels measured on this die",
    "fitted": "constants of a part of the same die or generation, or fitted to published totals",
    "data-sheet": "peaks of the data sheet, shares carried over or assumed",
}
"""Accuracy classes of GPUs, best first."""


def write_all(folder: Path) -> None:
    """Write all generated pages into `folder`, those alone that have changed."""
    pages = {"cli.md": cli(), "entries.md": entries(), "api.md": api()}
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def commands(group: click.Group, path: str = "simcluster") -> Iterator[tuple[str, click.Command]]:
    """Return each command with the words that call it, those of groups after their group."""
    context = click.Context(group)
    named = [name for names in GROUPS.values() for name in names]
    for name in sorted(group.list_commands(context), key=lambda n: (n not in named, n)):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        yield f"{path} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{path} {name}")


def help_of(words: str) -> str:
    """Return what ``--help`` prints of a command, at 80 columns."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main.main([*words.split()[1:], "--help"], prog_name="simcluster", terminal_width=80)
    return printed.getvalue()


def cli() -> str:
    """Return the page of commands: the help of each, as it is printed."""
    parts = ["# Commands\n\nThe help of each command, as `--help` prints it.\n"]
    parts.append(
        "The shell completes commands, options and their words by\n\n```text\n"
        'eval "$(_SIMCLUSTER_COMPLETE=bash_source simcluster)"    # in ~/.bashrc\n'
        'eval "$(_SIMCLUSTER_COMPLETE=zsh_source simcluster)"     # in ~/.zshrc\n'
        "_SIMCLUSTER_COMPLETE=fish_source simcluster | source     # in config.fish\n```\n"
    )
    parts.append(f"```text\n{help_of('simcluster')}```\n")
    for words, _ in commands(main):
        parts.append(f"## `{words}`\n\n```text\n{help_of(words)}```\n")
    return "\n".join(parts)


def entries() -> str:
    """Return the page of all entries of the catalogue; GPUs with their class of accuracy."""
    parts = ["# Entries of the catalogue\n"]
    parts.append(
        "GPUs have a class of accuracy, which every table and report quotes. "
        "[Accuracy](accuracy.md) has the errors.\n"
    )
    parts += [f"- `{name}`: {meaning}." for name, meaning in CLASSES.items()]
    parts.append("\n## GPUs\n\n| GPU | accuracy | what it is |\n|---|---|---|")
    for one in catalog.search("", kind="gpu"):
        accuracy = catalog.gpu(one.name).constants.accuracy
        parts.append(f"| {one.name} | {accuracy} | {_cell(one.summary)} |")
    titles = {"model": "Models", "link": "Links", "node": "Nodes", "engine": "Engines"}
    titles |= {"lengths": "Lengths", "quality": "Quality of answers"}
    for kind, title in titles.items():
        parts.append(f"\n## {title}\n\n| name | what it is |\n|---|---|")
        parts += [f"| {one.name} | {_cell(one.summary)} |" for one in catalog.search("", kind=kind)]
    parts.append(
        "\n## Keys of entries\n\nA file of your own has the same tables ([own-gpu](own-gpu.md), "
        "[own-model](own-model.md), [own-engine](own-engine.md)). "
        "With `like` no key is required but `name` and `source`."
    )
    for table, keys in TABLES.items():
        parts.append(
            f"\n### `[[{table}]]`\n\n| key | value | required | meaning |\n|---|---|---|---|"
        )
        parts += [
            f"| `{name}` | {_kind(key)} | {'yes' if key.required else ''} | {_cell(key.meaning)} |"
            for name, key in keys.items()
        ]
    return "\n".join(parts) + "\n"


def _kind(key: Key) -> str:
    """Return what a key takes, with its range."""
    if key.choices:
        return "one of " + ", ".join(f"`{choice}`" for choice in key.choices)
    words = {"flag": "true or false", "texts": "list of texts", "numbers": "list of numbers"}
    kind = words.get(key.kind, key.kind)
    if key.kind not in ("number", "count"):
        return kind
    low = f" >= {key.low:g}" if key.low > 1e-9 else ""
    return kind + low + (f", <= {key.high:g}" if math.isfinite(key.high) else "")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def api() -> str:
    """Return the page of the API: the public modules, their names taken from the docstrings."""
    parts = [
        "# Python API\n\n[From Python](python.md) has the calls that matter most. "
        "Names that do not stand here may change without notice.\n"
    ]
    for title, modules in MODULES.items():
        parts.append(f"## {title}\n")
        for name in modules:
            members = getattr(importlib.import_module(name), "__all__", None)
            parts.append(f"### `{name}`\n\n```{{eval-rst}}\n.. automodule:: {name}")
            parts.append("   :members:" + ("" if members is None else f" {', '.join(members)}"))
            parts.append("```\n")
            own = _texts(Path(importlib.import_module(name).__file__ or ""), set(members or ()))
            others = {one: text for one, text in constants(name).items() if one not in own}
            parts += [f"- `{one}`: {text}" for one, text in others.items()]  # Sphinx shows its own
            parts.append("")
    return "\n".join(parts)


def constants(module: str) -> dict[str, str]:
    """Return what a module exports beside classes and functions, with the text below each.

    The text stands where the name is given its value: in the module, or in one below it.
    """
    exported = importlib.import_module(module)
    values = {
        name: getattr(exported, name)
        for name in getattr(exported, "__all__", ())
        if not name.startswith("__") and not _is_code(getattr(exported, name))
    }
    texts = dict.fromkeys(values, "")
    for name, inner in list(sys.modules.items()):
        if name == module or name.startswith(f"{module}."):
            found = {key for key, value in values.items() if vars(inner).get(key) is value}
            texts |= _texts(Path(inner.__file__ or ""), found)
    return texts


def _texts(file: Path, names: set[str]) -> dict[str, str]:
    """Return the text below the statements of a source file that give `names` their values."""
    body = ast.parse(file.read_text(encoding="utf-8")).body if names else []
    return {
        _target(statement): " ".join(str(below.value.value).split())
        for statement, below in itertools.pairwise(body)
        if _target(statement) in names
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
    }


def _is_code(value: object) -> bool:
    return inspect.isclass(value) or inspect.isroutine(value)


def _target(statement: ast.stmt) -> str:
    """Return the name that a statement gives a value; empty if it gives none."""
    target = statement.target if isinstance(statement, ast.AnnAssign) else None
    if isinstance(statement, ast.Assign):
        target = statement.targets[0]
    return target.id if isinstance(target, ast.Name) else ""
