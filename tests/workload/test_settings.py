"""The table ``[workload]``: read by pydantic, refused at the edge, the same as its shorthand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import TypeAdapter, ValidationError

from helpers.refusals import refused
from simcluster.errors import ConfigError
from simcluster.workload import ARRIVALS, LENGTHS, WorkloadSettings, build
from simcluster.workload.clients import ClientArrivals
from simcluster.workload.closed_loop import ClosedLoopArrivals
from simcluster.workload.lengths import FixedLengths, TableLengths
from simcluster.workload.profiles import OnOffArrivals
from simcluster.workload.renewal import ConstantArrivals, GammaArrivals, PoissonArrivals
from simcluster.workload.replay import TraceArrivals, TraceFile, TraceLengths

ADAPTER = TypeAdapter(WorkloadSettings)
FIXED = {"kind": "fixed", "prompt_len": 100, "output_len": 10}


def read(table: dict[str, object]) -> WorkloadSettings:
    """Settings of a ``[workload]`` table, as the scenario reader makes them."""
    return ADAPTER.validate_json(json.dumps(table))


@pytest.mark.parametrize(
    ("table", "process"),
    [
        ({}, PoissonArrivals()),
        ({"arrivals": "poisson"}, PoissonArrivals()),
        ({"arrivals": "constant"}, ConstantArrivals()),
        ({"arrivals": {"kind": "constant"}}, ConstantArrivals()),
        ({"arrivals": {"kind": "gamma", "cv": 2}}, GammaArrivals(cv=2.0)),
        (
            {"arrivals": {"kind": "on-off", "on_s": 1, "off_s": 2}},
            OnOffArrivals(on_s=1.0, off_s=2.0),
        ),
        (
            {"arrivals": {"kind": "closed-loop", "concurrency": 4}},
            ClosedLoopArrivals(concurrency=4),
        ),
        ({"arrivals": {"kind": "trace", "path": "a.csv"}}, TraceArrivals(path="a.csv")),
        (
            {"arrivals": {"kind": "clients", "path": "a", "model": "m"}},
            ClientArrivals(path="a", model="m"),
        ),
    ],
)
def test_arrivals_are_a_name_or_a_table(table: dict[str, object], process: object) -> None:
    """A name is the process with its defaults; no key is Poisson."""
    assert read({"lengths": FIXED, **table}).arrival_process == process


@pytest.mark.parametrize(
    ("lengths", "distribution"),
    [
        ("sharegpt", TableLengths(name="sharegpt")),
        ({"kind": "table", "name": "sharegpt"}, TableLengths(name="sharegpt")),
        (FIXED, FixedLengths(prompt_len=100, output_len=10)),
        (
            {"kind": "trace", "path": "a.csv", "order": "sampled"},
            TraceLengths(path="a.csv", order="sampled"),
        ),
    ],
)
def test_lengths_are_a_name_or_a_table(lengths: object, distribution: object) -> None:
    """A name is a table of the catalogue."""
    assert read({"lengths": lengths}).length_distribution == distribution


def test_a_trace_is_a_path_or_a_table() -> None:
    """Both say the same where the table has only a path."""
    by_path = read({"trace": "a.csv"})
    by_table = read({"trace": {"path": "a.csv"}})
    assert by_path.arrival_process == by_table.arrival_process
    assert by_path.length_distribution is None
    assert by_table.trace == TraceFile(path="a.csv")


def test_a_schedule_is_an_array_of_tables() -> None:
    """As TOML writes it."""
    pieces = [{"duration_s": 60, "rate_rps": 1}, {"duration_s": 30, "rate_rps": 4.5}]
    requests = build(
        read({"lengths": FIXED, "arrivals": {"kind": "schedule", "pieces": pieces}}),
        seed=0,
        rate_rps=None,
        max_model_len=4096,
    )
    assert requests.rate_rps == pytest.approx((60 + 135) / 90)


@pytest.mark.parametrize(
    ("table", "key", "says"),
    [
        ({}, "workload.lengths", "missing"),
        ({"lengths": FIXED, "arrivals": "poison"}, "workload.arrivals", "mean 'poisson'"),
        (
            {"lengths": FIXED, "arrivals": {"kind": "gama"}},
            "workload.arrivals.kind",
            "mean 'gamma'",
        ),
        ({"lengths": FIXED, "arrivals": {"cv": 2}}, "workload.arrivals.kind", "Known: clients"),
        ({"lengths": FIXED, "arrivals": 3}, "workload.arrivals.kind", "a name, or a table"),
        ({"lengths": {"kind": "fxed"}}, "workload.lengths.kind", "mean 'fixed'"),
        ({"lengths": FIXED, "arrivals": "on-off"}, "workload.arrivals", "needs on_s and off_s"),
        (
            {"lengths": FIXED, "arrivals": "gamma"},
            "workload.arrivals.burstiness",
            "either burstiness or cv",
        ),
        ({"lengths": FIXED, "trace": "a.csv"}, "workload.lengths", "gives both"),
        ({"arrivals": "poisson", "trace": "a.csv"}, "workload.arrivals", "gives both"),
        (
            {"lengths": FIXED, "num_requests": 5, "duration_s": 5},
            "workload.duration_s",
            "given too",
        ),
        ({"trace": {"path": "a", "start_s": 3, "end_s": 2}}, "workload.trace.end_s", "after"),
        (
            {"lengths": {"kind": "trace", "path": "a", "start_s": 3, "end_s": 2}},
            "workload.lengths.end_s",
            "after",
        ),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(
    table: dict[str, object], key: str, says: str
) -> None:
    """Key, value, rule and remedy in one line."""
    with refused(says, key=key):
        read(table)


@pytest.mark.parametrize(
    ("table", "where"),
    [
        ({"lengths": FIXED, "rate_rps": 0}, ("rate_rps",)),
        ({"lengths": FIXED, "rate_rps": "5"}, ("rate_rps",)),
        ({"lengths": FIXED, "num_requests": 0}, ("num_requests",)),
        ({"lengths": FIXED, "num_requests": 2.5}, ("num_requests",)),
        ({"lengths": FIXED, "duration_s": -1}, ("duration_s",)),
        ({"lengths": FIXED, "on_too_long": "drop"}, ("on_too_long",)),
        ({"lengths": FIXED, "burstiness": 2}, ("burstiness",)),
        ({"lengths": {**FIXED, "prompt_len": 0}}, ("lengths", "fixed", "prompt_len")),
        (
            {"lengths": FIXED, "arrivals": {"kind": "gamma", "cv": -1}},
            ("arrivals", "gamma", "cv"),
        ),
        (
            {"lengths": FIXED, "arrivals": {"kind": "closed-loop", "concurrency": 0}},
            ("arrivals", "closed-loop", "concurrency"),
        ),
        ({"trace": {"path": "a", "format": "xml"}}, ("trace", "TraceFile", "format")),
        ({"trace": ""}, ("trace", "path")),
        ({"lengths": ""}, ("lengths", "name")),
    ],
)
def test_values_outside_their_range_are_refused_where_they_stand(
    table: dict[str, object], where: tuple[str, ...]
) -> None:
    """The error names the place, in a union after the name of its member."""
    with pytest.raises(ValidationError) as caught:
        read(table)
    assert [error["loc"] for error in caught.value.errors()] == [where]


@pytest.mark.parametrize("rate_rps", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_that_is_none_is_refused(rate_rps: float) -> None:
    """Whether it comes from the settings or from a sweep."""
    settings = WorkloadSettings(lengths=FixedLengths(prompt_len=1, output_len=1))
    with pytest.raises(ConfigError, match=r"workload\.rate_rps = .*: a rate must be above 0"):
        build(settings, seed=0, rate_rps=rate_rps, max_model_len=4096)


@pytest.mark.parametrize(
    ("table", "key", "says"),
    [
        ({"rate_rps": 1, "duration_s": 1e-9}, "workload.duration_s", "no request arrives"),
        ({"rate_rps": 1e9, "duration_s": 1e6}, "workload.duration_s", "more than 30000000"),
        ({"rate_rps": 1e-5}, "workload.rate_rps", "24 days"),
    ],
)
def test_a_workload_without_end_or_beginning_is_refused(
    table: dict[str, object], key: str, says: str
) -> None:
    """Too few, too many, too late."""
    with pytest.raises(ConfigError, match=says) as caught:
        build(read({"lengths": FIXED, **table}), seed=0, rate_rps=None, max_model_len=4096)
    assert caught.value.key == key


def test_relative_paths_are_taken_from_the_folder_of_the_scenario(tmp_path: Path) -> None:
    """Wherever a path stands; absolute ones and everything else stay."""
    moved = read(
        {
            "arrivals": {"kind": "clients", "path": "clients", "model": "m"},
            "lengths": {"kind": "trace", "path": "../lengths.csv", "order": "sampled"},
        }
    ).with_base(tmp_path)
    assert moved.arrivals == ClientArrivals(path=str(tmp_path / "clients"), model="m")
    assert moved.lengths == TraceLengths(path=str(tmp_path / "../lengths.csv"), order="sampled")
    trace = read({"trace": "a.csv"}).with_base(tmp_path)
    assert trace.trace == str(tmp_path / "a.csv")
    absolute = str(tmp_path / "b.csv")
    table = read({"trace": {"path": absolute, "end_s": 4}}).with_base(Path("elsewhere"))
    assert table.trace == TraceFile(path=absolute, end_s=4.0)
    plain = read({"lengths": "sharegpt", "rate_rps": 2})
    assert plain.with_base(tmp_path) == plain


def test_the_schema_knows_every_kind_and_describes_every_key() -> None:
    """``simcluster schema`` is made from this."""
    schema = ADAPTER.json_schema()
    kinds = {
        table["properties"]["kind"]["const"]
        for table in schema["$defs"].values()
        if "kind" in table["properties"]
    }
    assert kinds == set(ARRIVALS) | set(LENGTHS)
    for table in [schema, *schema["$defs"].values()]:
        for key, value in table["properties"].items():
            assert key == "kind" or value.get("description"), key


def test_a_model_that_holds_no_request_is_refused() -> None:
    """One prompt token and one output token must fit."""
    with pytest.raises(ConfigError) as caught:
        build(read({"lengths": FIXED, "rate_rps": 1}), seed=0, rate_rps=None, max_model_len=1)
    assert caught.value.key == "engine.max_model_len"


GUIDE = Path(__file__).resolve().parents[2] / "docs" / "workloads.md"


def test_the_guide_names_every_kind_and_key() -> None:
    """A key that is not in the guide will not be found."""
    text = GUIDE.read_text(encoding="utf-8")
    schema = ADAPTER.json_schema()
    for table in [schema, *schema["$defs"].values()]:
        for key, value in table["properties"].items():
            assert f"`{value['const'] if key == 'kind' else key}`" in text, key
