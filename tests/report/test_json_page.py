"""docs/json.md has every field that any ``--json`` prints, and no other."""

from __future__ import annotations

import contextvars
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
from click.testing import CliRunner

from simcluster.cli import main

ROOT = Path(__file__).parents[2]
DATA = os.environ.get("SIMCLUSTER_DATA", "")
FIRST = ROOT / "scenarios" / "first.toml"
SHORT = ("--set", "workload.duration_s=2")
KERNELS = "operator,m,n,k,dtype,time_us\n" + "".join(
    f"gemm,{m},{n},4096,bf16,{20 + m * n / 1e5:g}\n"
    for n in (4096, 8192)
    for m in (1, 64, 512, 1024, 4096, 8192)
)
Way = tuple[str, ...]
"""Steps from the whole to a field: keys, and ``"[]"`` for the entries of a list."""


class Field(NamedTuple):
    """A row of the page, for one of its fields."""

    way: Way
    alias: str
    """Section or field whose fields are below this one; empty where there are none."""
    is_always: bool
    """Whether every output has it."""


def sections() -> dict[str, list[Field]]:
    """Return the fields of each section of the page."""
    text = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
    found: dict[str, list[Field]] = {}
    for name, body in re.findall(r"^##+ (.+?)\n(.*?)(?=^##|\Z)", text, re.M | re.S):
        own = found.setdefault(name.strip("`").removeprefix("simcluster "), [])
        for cells in re.findall(r"^\| (.+?) \| (.*?) \| (.*?) ?\|$", body, re.M):
            alias = re.search(r"\bas `([^`]+)`", cells[1])
            ways = [way_of(one) for one in re.findall(r"`([^`]+)`", cells[0])]
            if cells[0] == "*(all)*":
                ways = [()]
            own += [Field(way, alias[1] if alias else "", not cells[2].strip()) for way in ways]
    return found


def way_of(field: str) -> Way:
    """Return the steps of a field as the page writes it."""
    return tuple(step for step in field.replace("[]", ".[]").split(".") if step)


def leaves(value: Any, way: Way = ()) -> Iterator[tuple[Way, bool]]:
    """Give the ways to all that holds no further field, and whether there is nothing."""
    if isinstance(value, dict) and value:
        for key, inside in value.items():
            yield from leaves(inside, (*way, key))
    elif isinstance(value, list) and value:
        for inside in value:
            yield from leaves(inside, (*way, "[]"))
    else:
        yield way, value is None or value in ([], {})


def fits(
    way: Way,
    name: str,
    page: dict[str, list[Field]],
    seen: set[tuple[str, Way]],
    *,
    is_empty: bool,
) -> bool:
    """Tell whether a section has a field; keep those that are met on the way to it.

    Nothing may stand where there are fields else: null, or an empty list or table.
    """
    known = False
    for field in page[name]:
        if is_empty and len(field.way) > len(way) and all(map(same, field.way, way)):
            known = True
        whole = field.way[-1:] == ("*",)
        start = field.way[:-1] if whole else field.way
        if len(way) < len(start) or not all(map(same, start, way)):
            continue
        rest = way[len(start) :]
        if rest and not whole:
            if field.alias in page:
                below = fits(rest, field.alias, page, seen, is_empty=is_empty)
            else:
                there = (*way_of(field.alias), *rest)
                below = bool(field.alias) and fits(there, name, page, seen, is_empty=is_empty)
            if not below:
                continue
        seen.add((name, field.way))
        known = True
    return known


def same(step: str, key: str) -> bool:
    """Tell whether a step of the page stands for a key."""
    return step == key or (step.startswith("<") and key != "[]")


def with_json(group: click.Group, path: str = "") -> Iterator[str]:
    """Give the commands that have ``--json``."""
    for name in group.list_commands(click.Context(group)):
        command = group.get_command(click.Context(group), name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from with_json(command, f"{path}{name} ")
        elif any("--json" in option.opts for option in command.params):
            yield path + name


def printed(*words: object) -> Any:
    """Return what a command prints, read as JSON."""
    run = contextvars.copy_context().run
    call = [str(word) for word in (*words, "--json", "--quiet")]
    result = run(lambda: CliRunner().invoke(main, call, catch_exceptions=False))
    assert result.exit_code in (0, 3), result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def outputs(
    folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Any]]:
    """Return what each command prints; searches have written the same to their folders."""
    kernels = tmp_path_factory.mktemp("kernels") / "mine.csv"
    kernels.write_text(KERNELS, encoding="utf-8")
    searched = {
        kind: json.loads((folders[kind] / f"{file}.json").read_text(encoding="utf-8"))
        for kind, file in (
            ("goodput", "goodput"),
            ("rank", "ranking"),
            ("need", "ranking"),
            ("cooptimize", "cooptimize"),
        )
    }
    priced = ("--set", "cluster.price_per_gpu_hour=2")
    fudg = ("--strategy", "DistServe")
    found: dict[str, list[Any]] = {
        "run": [printed("run", FIRST, *SHORT, "--rate", 4, "-v")],
        "compare": [
            printed("compare", FIRST, *SHORT, "--set", "sweep.rates_rps=[4, 40]", *price)
            for price in ((), priced)
        ],
        "goodput": [searched["goodput"]],
        "rank": [searched["rank"], searched["need"]],
        "plan": [searched["need"]],  # `rank --need` is what it runs and prints
        "cooptimize": [searched["cooptimize"]],
        "check": [printed("check", FIRST), printed("check", FIRST, *fudg)],
        "diff": [
            printed("diff", folders["compare"], folders["run"]),
            printed("diff", folders["goodput"], folders["compare"]),
        ],
        "doctor": [printed("doctor")],
        "trace": [printed("trace", ROOT / "scenarios" / "first_trace.csv")],
        "catalog list": [printed("catalog", "list", "A100")],
        "calibrate": [printed("calibrate", kernels, "--gpu", "H100")],
    }
    if DATA:
        found["validate"] = [printed("validate", DATA, "--only", "mlperf_v51")]
    return found


def test_every_command_with_json_has_a_section() -> None:
    """Found on the command line, not listed."""
    assert sorted(with_json(main)) == sorted(
        line.removeprefix("## `simcluster ").removesuffix("`")
        for line in (ROOT / "docs" / "json.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("## `simcluster ")
    )


@pytest.mark.slow
def test_the_page_has_every_field_and_no_other(outputs: dict[str, list[Any]]) -> None:
    """Of all outputs; a field that is not always there says when."""
    page = sections()
    assert set(outputs) | {"validate"} == set(with_json(main))
    seen: set[tuple[str, Way]] = set()
    unknown = {
        (name, ".".join(way))
        for name, values in outputs.items()
        for value in values
        for way, is_empty in leaves(value)
        if not fits(way, name, page, seen, is_empty=is_empty)
    }
    assert unknown == set()
    printed_here = {name for name in page if DATA or name != "validate"}
    absent = {
        (name, ".".join(field.way))
        for name in printed_here
        for field in page[name]
        if field.is_always and (name, field.way) not in seen
    }
    assert absent == set()
