"""Figures of how the code is built: ``python benchmarks/structure.py [--root CHECKOUT] [--json]``.

Files are read as text and syntax trees; nothing is imported or run. The rules of counting:

- *Room*: a folder of the package at any depth, or a module at its top; modules of a folder are in
  its room, and the package's own ``__init__`` is a room.
- *Arrow*: an ordered pair of different rooms where a module of the first imports one of the second,
  also inside a function, or by ``importlib.import_module("...")``. ``from a import b`` is an import
  of ``a``, and of ``a.b`` if that is a module. Imports for type checkers are counted apart;
  relative imports are not read (the package has none).
- *Cycle*: rooms that reach each other over arrows. The package's ``__init__`` takes no part: who
  writes ``from simcluster import units`` does not need what it holds.
- *Branches* of a function: 1, and 1 for each ``if``, ``for``, ``while``, ``except``, ``case``,
  ``assert``, conditional expression, comprehension, and each ``and`` or ``or`` between two terms;
  functions inside it included. Of a loop: the same for the statement alone. Lines of a function:
  without its docstring; of a class: with all of them.
- *Pair*: two files, or a file with itself, that share a run of six or more lines: the same text, or
  the same shape, so that one becomes the other by new names (the same new name for the same old
  one), strings and numbers. Comments, docstrings, imports, blank lines and lines of punctuation
  alone are left out. A run of one or two line shapes is a list and counts only as the same text;
  a run that stands in more than eight places is too common to count. The number is that of
  Python 3.11; later versions split f-strings into more tokens.
"""

from __future__ import annotations

import argparse
import ast
import io
import itertools
import json
import keyword
import sys
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

PACKAGE = "simcluster"
NODG_RUN = {
    "": ("request",),
    "engine": ("clock", "recorder"),
    "engine/groups": ("cluster", "front_end"),
    "engine/instance": ("instance", "ports", "runner", "span", "span_log", "state", "held_output"),
    "kvcache": ("pool",),
    "roofline": ("base",),
    "routing": ("base", "least_loaded"),
    "runs": ("simulate",),
    "sched": ("base", "plan", "queue", "decode_batch", "prefill_priority", "chunked"),
    "strategies": ("base", "nodg"),
}
"""Modules that a newcomer reads to follow one NoDG run, by folder; edit it when they move.

They hold request, block pool, scheduler base and two schedulers, step-time base, clock, instance,
front end, router, strategy, cluster, recorder and simulate. A file split off from one is added.
"""
SEARCHED = (PACKAGE, "tests", "scenarios", "plots", "benchmarks")
"""Folders that are searched for pairs."""
MIN_LINES = 6
MOST_PLACES = 8
MIN_SHAPES = 3
MOST_BRANCHES = 10

Arrow = tuple[str, str]
Place = tuple[int, int]


@dataclass(frozen=True)
class Source:
    """One Python file: its path from the root of the checkout, and its text."""

    path: Path
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.text)

    @property
    def module(self) -> str:
        """Dotted name; of a package's ``__init__`` that of the package."""
        return ".".join(self.path.with_suffix("").parts).removesuffix(".__init__")


def sources(root: Path, folder: str) -> list[Source]:
    """Python files of one folder of the checkout."""
    files = sorted((root / folder).rglob("*.py"))
    return [Source(file.relative_to(root), file.read_text(encoding="utf-8")) for file in files]


# --- entries, arrows, cycles ---------------------------------------------------------------------


def _for_type_checkers(tree: ast.Module) -> set[ast.AST]:
    """Nodes under ``if TYPE_CHECKING``."""
    found: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            found.update(inner for statement in node.body for inner in ast.walk(statement))
    return found


def _imported(node: ast.AST, modules: set[str]) -> Iterator[str]:
    """Modules of the package that one node of a tree imports."""
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
        names = [str(a.value) for a in node.args[:1] if isinstance(a, ast.Constant)]
    yield from (name for name in names if name in modules)


def imports(package: list[Source], *, for_types: bool) -> Iterator[Arrow]:
    """Importing and imported module; with or without the imports for type checkers."""
    modules = {source.module for source in package}
    for source in package:
        left_out = set() if for_types else _for_type_checkers(source.tree)
        for node in ast.walk(source.tree):
            if node not in left_out:
                yield from ((source.module, name) for name in _imported(node, modules))


def room_of(source: Source) -> str:
    """Room that a module of the package is in."""
    folder = source.path.parent
    return source.module if folder == Path(PACKAGE) else ".".join(folder.parts)


def arrows(pairs: Iterable[Arrow], room: Callable[[str], str]) -> set[Arrow]:
    """Arrows between different rooms."""
    return {(room(a), room(b)) for a, b in pairs if room(a) != room(b)}


def cycles(between: set[Arrow]) -> list[list[str]]:
    """Groups of rooms that reach each other."""
    reach: dict[str, set[str]] = {}
    for start in {a for a, _ in between}:
        seen: set[str] = set()
        ahead = [start]
        while ahead:
            here = ahead.pop()
            new = {b for a, b in between if a == here and b != PACKAGE} - seen
            seen |= new
            ahead += new
        reach[start] = seen
    groups = {
        frozenset(b for b in seen if a in reach.get(b, ()))
        for a, seen in reach.items()
        if a in seen
    }
    return sorted(sorted(group) for group in groups)


# --- functions and classes -----------------------------------------------------------------------

_BRANCHES = {
    "If",
    "For",
    "While",
    "ExceptHandler",
    "match_case",
    "Assert",
    "IfExp",
    "comprehension",
}
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


@dataclass(frozen=True)
class Part:
    """A function or a class: its name, lines and branches, and those of its branchiest loop."""

    name: str
    num_lines: int
    num_branches: int
    loop_branches: int


def _docstring_lines(node: ast.AST) -> set[int]:
    """Lines of the docstring that a function, class or module has; of constants, too."""
    body = getattr(node, "body", None)
    texts = [s for s in body if isinstance(s, ast.Expr)] if isinstance(body, list) else []
    return {
        line
        for s in texts
        if isinstance(s.value, ast.Constant) and isinstance(s.value.value, str)
        for line in range(s.lineno, (s.end_lineno or s.lineno) + 1)
    }


def _branches(function: ast.AST) -> int:
    nodes = list(ast.walk(function))
    terms = sum(len(node.values) - 1 for node in nodes if isinstance(node, ast.BoolOp))
    return 1 + terms + sum(type(node).__name__ in _BRANCHES for node in nodes)


def _loops(node: ast.AST) -> Iterator[ast.AST]:
    return (inner for inner in ast.walk(node) if isinstance(inner, ast.For | ast.While))


def _span(node: Definition) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _definitions(node: ast.AST, name: str) -> Iterator[tuple[str, Definition]]:
    """Functions and classes inside `node`, by the names of what they stand in."""
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, Definition):
            yield f"{name}.{inner.name}", inner
            yield from _definitions(inner, f"{name}.{inner.name}")
        else:
            yield from _definitions(inner, name)


def parts(package: list[Source]) -> tuple[list[Part], list[Part]]:
    """Functions and classes of the package, those inside others too."""
    found: tuple[list[Part], list[Part]] = ([], [])
    for source in package:
        for name, node in _definitions(source.tree, source.module):
            is_class = isinstance(node, ast.ClassDef)
            documented = set() if is_class else _docstring_lines(node)
            part = Part(
                name=name,
                num_lines=_span(node) - len(documented),
                num_branches=_branches(node),
                loop_branches=max(map(_branches, _loops(node)), default=1) - 1,
            )
            found[is_class].append(part)
    return found


# --- lines that stand twice ----------------------------------------------------------------------

Token = tuple[int, str]
Line = tuple[Token, ...]


def code_lines(source: Source) -> list[Line]:
    """Tokens of each line of code."""
    left_out: set[int] = set()
    for node in ast.walk(source.tree):
        left_out |= _docstring_lines(node)
        if isinstance(node, ast.Import | ast.ImportFrom):
            left_out |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines: dict[int, list[Token]] = defaultdict(list)
    for token in tokenize.generate_tokens(io.StringIO(source.text).readline):
        is_code = token.string.strip() and token.type != tokenize.COMMENT
        if is_code and token.start[0] not in left_out:
            kind = tokenize.OP if keyword.iskeyword(token.string) else token.type
            lines[token.start[0]].append((kind, token.string))
    return [
        tuple(line)
        for _, line in sorted(lines.items())
        if any(kind != tokenize.OP or text.isalpha() for kind, text in line)
    ]


def shape(lines: Iterable[Line]) -> tuple[Any, ...]:
    """Return the lines with names numbered as they come, strings and numbers left open."""
    names: dict[str, int] = {}

    def open_token(token: Token) -> object:
        kind, text = token
        if kind == tokenize.NAME:
            return names.setdefault(text, len(names))
        return text if kind == tokenize.OP else kind

    return tuple(tuple(map(open_token, line)) for line in lines)


def _places(files: list[list[Line]]) -> Iterator[list[Place]]:
    """Places (file, line) of each text and of each shape of `MIN_LINES` lines."""
    texts: dict[object, list[Place]] = defaultdict(list)
    shapes: dict[object, list[Place]] = defaultdict(list)
    for number, lines in enumerate(files):
        alone = [shape([line]) for line in lines]
        for first in range(len(lines) - MIN_LINES + 1):
            run = slice(first, first + MIN_LINES)
            texts[tuple(lines[run])].append((number, first))
            if len(set(alone[run])) >= MIN_SHAPES:
                shapes[shape(lines[run])].append((number, first))
    yield from itertools.chain(texts.values(), shapes.values())


def pairs(files: list[list[Line]]) -> set[tuple[int, int]]:
    """Pairs of files that share a run; a file is paired with itself where the runs are apart."""
    found = set()
    for places in _places(files):
        if len(places) <= MOST_PLACES:
            for (a, first), (b, second) in itertools.combinations(places, 2):
                if a != b or second - first >= MIN_LINES:
                    found.add((a, b))
    return found


# --- the figures ---------------------------------------------------------------------------------


def figures(root: Path) -> dict[str, tuple[int | None, str]]:
    """Figures of a checkout: what it is, the number (None: cannot be said), a remark."""
    package, tests = sources(root, PACKAGE), sources(root, "tests")
    functions, classes = parts(package)
    largest = max(classes, key=lambda part: part.num_lines)
    longest = max(functions, key=lambda part: part.num_lines)
    loop = max(functions, key=lambda part: part.loop_branches)
    most = max(functions, key=lambda part: part.num_branches)
    branchy = sum(part.num_branches > MOST_BRANCHES for part in functions)
    files = [code_lines(s) for folder in SEARCHED for s in sources(root, folder)]
    return {
        **_map(package),
        "lines to read for one NoDG run": nodg_run(root),
        "lines of the largest class": (largest.num_lines, largest.name),
        "branches of the branchiest loop": (loop.loop_branches, loop.name),
        "branches of the branchiest function": (most.num_branches, most.name),
        "lines of the longest function": (longest.num_lines, longest.name),
        f"functions with more than {MOST_BRANCHES} branches": (branchy, f"of {len(functions):,}"),
        f"pairs that share {MIN_LINES} lines": (len(pairs(files)), f"in {len(files)} files"),
        "lines of the package": (sum(s.text.count("\n") for s in package), f"{len(package)} files"),
        "lines of the tests": (sum(s.text.count("\n") for s in tests), f"{len(tests)} files"),
    }


def _map(package: list[Source]) -> dict[str, tuple[int | None, str]]:
    """Figures of the entries and of the import graph."""
    modules = [s for s in package if len(s.path.parts) == 2]
    folders = {s.path.parts[1] for s in package if len(s.path.parts) > 2}
    room = {source.module: room_of(source) for source in package}
    links = list(imports(package, for_types=False))
    between = arrows(links, room.__getitem__)
    at_top = arrows(links, lambda module: ".".join(module.split(".")[:2]))
    with_types = arrows(imports(package, for_types=True), room.__getitem__)
    rings = [", ".join(ring).replace(f"{PACKAGE}.", "") for ring in cycles(between)]
    entries = f"{len(modules)} modules, {len(folders)} folders"
    return {
        "entries at the top": (len(modules) + len(folders), entries),
        "arrows between rooms": (len(between), f"{len(set(room.values()))} rooms"),
        "arrows between entries at the top": (len(at_top), ""),
        "arrows that type checkers add": (len(with_types - between), "between rooms"),
        "cycles between rooms": (len(rings), "; ".join(rings)),
    }


def nodg_run(root: Path) -> tuple[int | None, str]:
    """Lines of the files of `NODG_RUN`; None if one has moved."""
    files = [root / PACKAGE / d / f"{name}.py" for d, names in NODG_RUN.items() for name in names]
    if missing := [str(file.relative_to(root)) for file in files if not file.exists()]:
        return None, f"edit NODG_RUN, there is no {', '.join(missing)}"
    num_lines = sum(file.read_text(encoding="utf-8").count("\n") for file in files)
    return num_lines, f"{len(files)} files"


def main() -> None:
    """Print the figures of a checkout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    default = Path(__file__).resolve().parents[1]
    parser.add_argument("--root", type=Path, default=default, help="checkout; default: this one")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if not (options.root / PACKAGE).is_dir():
        sys.exit(f"--root {options.root}: has no folder {PACKAGE}. Name a checkout.")
    found = figures(options.root)
    if options.json:
        print(json.dumps({k: {"value": v, "remark": r} for k, (v, r) in found.items()}, indent=2))
        return
    for what, (value, remark) in found.items():
        print(f"{what:38s}{'?' if value is None else format(value, ','):>8s}  {remark}".rstrip())


if __name__ == "__main__":
    main()
