"""The form of a scenario file: all keys, and changes that leave the rest as it was."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

pytest.importorskip("tomlkit", reason="the extra ui is not installed")

from simcluster.errors import ConfigError, DataError
from simcluster.scenario.check import Keys
from simcluster.scenario.file import json_schema
from simcluster.ui import form

SCENARIOS = sorted((Path(__file__).parents[2] / "scenarios").rglob("*.toml"))
FIRST = next(file for file in SCENARIOS if file.name == "first.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("file", SCENARIOS, ids=lambda file: file.stem)
def test_every_value_of_a_file_is_in_its_form(file: Path) -> None:
    """Entered again, each leaves the file as it is: what is shown is what stands there."""
    text = file.read_text(encoding="utf-8")
    document = tomllib.loads(text)
    found = [one for section in form.sections(text) for one in section.fields if one.value]
    assert found
    for one in found:
        assert tomllib.loads(form.with_value(text, one.path, one.value, one.kind)) == document

    # Taken out key by key, nothing is left but names in lists and empty tables.
    for one in found:
        text = form.with_value(text, one.path, "", one.kind)
    assert not [one for section in form.sections(text) for one in section.fields if one.value]


def test_all_keys_of_all_tables_are_there() -> None:
    """Those of the reference (`simcluster schema --markdown`), strategies of every kind."""
    text = ""
    for kind in form.strategy_kinds():
        text = form.with_strategy(text, kind)
    sections = form.sections(text)
    shown = {one.path[-1] for section in sections for one in section.fields}
    keys = Keys(json_schema())
    tables = dict(keys.tables())
    for header in ("[model]", "[cluster]", "[engine]", "[slo]", "[run]", "[rank]", "[cooptimize]"):
        (section,) = [one for one in sections if one.title == header]
        assert [one.name for one in section.fields] == list(tables[header]["properties"])
    for kind in form.strategy_kinds():
        (title,) = [name for name in tables if name == f"[[strategy]] with kind = {kind!r}"]
        missing = set(tables[title]["properties"]) - shown
        assert not missing, (kind, missing)


def test_a_change_keeps_comments_and_the_rest() -> None:
    """By the lines that differ."""
    changed = form.with_value(FIRST, ("cluster", "gpu"), "H100", "text")
    before, after = FIRST.splitlines(), changed.splitlines()
    assert [(a, b) for a, b in zip(before, after, strict=True) if a != b] == [
        ('gpu = "A100"', 'gpu = "H100"')
    ]
    changed = form.with_value(FIRST, ("strategy", 2, "tp_size"), "2", "number")
    assert tomllib.loads(changed)["strategy"][2]["tp_size"] == 2
    assert "# instances take turns with prefills" in changed


def test_new_tables_and_values_of_all_kinds() -> None:
    """A flag, a list, a text that looks like a number, a time with its unit."""
    text = form.with_value(FIRST, ("rank", "num_gpus"), "[2, 4]", "toml")
    text = form.with_value(text, ("engine", "prefix_caching"), "true", "flag")
    text = form.with_value(text, ("slo", "ttft_s"), "800ms", "number")
    text = form.with_value(text, ("run", "warmup_s"), "5", "number")
    text = form.with_value(text, ("strategy", 0, "name"), "7", "text")
    document = tomllib.loads(text)
    assert document["rank"] == {"num_gpus": [2, 4], "finalists": 2}
    assert document["run"] == {"warmup_s": 5}, "a table that was not there"
    assert document["engine"]["prefix_caching"] is True
    assert document["slo"]["ttft_s"] == "800ms"
    assert document["strategy"][0]["name"] == "7"


def test_a_lone_strategy_can_be_taken_out_and_added() -> None:
    """A second of the same kind gets a name of its own."""
    text = form.without_table(FIRST, ("strategy", 0))
    text = form.with_strategy(form.with_strategy(text, "nodg"), "nodg")
    names = [one["name"] for one in tomllib.loads(text)["strategy"]]
    assert names == ["DistServe", "EcoServe", "nodg", "nodg 2"]


def test_what_cannot_be_read_is_one_line() -> None:
    """A list that is none, and a file that is no TOML."""
    with pytest.raises(ConfigError, match=r"rank\.num_gpus = '\[2': is not a value as TOML"):
        form.with_value(FIRST, ("rank", "num_gpus"), "[2", "toml")
    with pytest.raises(DataError, match="The file is not TOML"):
        form.sections("[model")
    with pytest.raises(DataError, match="The file is not TOML"):
        form.with_value("[model", ("model", "name"), "x", "text")


def test_paths_of_a_file_are_found_from_everywhere(tmp_path: Path) -> None:
    """A trace and catalogue files beside it; names of strategies stay, whatever folder there is."""
    for name in ("own.csv", "gpus.toml"):
        (tmp_path / name).touch()
    (tmp_path / "EcoServe").mkdir()
    head = f'catalog = ["gpus.toml"]\n{FIRST}'
    text = form.with_value(head, ("workload", "trace"), "own.csv", "text")
    whole = form.with_whole_paths(text, tmp_path)
    document = tomllib.loads(text)
    document["catalog"] = [str(tmp_path / "gpus.toml")]
    document["workload"]["trace"] = str(tmp_path / "own.csv")
    assert tomllib.loads(whole) == document
    assert form.with_whole_paths(FIRST, tmp_path) == FIRST
