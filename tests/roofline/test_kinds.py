"""Kinds of deployments and their measured errors: what is quoted, and what is not known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from helpers.scenarios import small_scenario
from simcluster.catalog.scores import Kind, KindScore, committed
from simcluster.config import Environment
from simcluster.roofline.kinds import decode_error, in_words, kind_of, known, summary
from simcluster.scenario.file import resolve
from simcluster.show.text import heading, step_times_of
from simcluster.studies.goodput.errors import errors_of

ON_H100 = {"cluster": {"gpu": "H100"}, "engine": {"profile": "vllm-0.19"}}
DENSE = Kind("dense", 16, "NVLink", "vllm-0.19")


def environment(**tables: Mapping[str, Any]) -> Environment:
    """A node of two H100 with vLLM 0.19 unless said."""
    given = {name: {**ON_H100.get(name, {}), **table} for name, table in tables.items()}
    strategy = {"name": "one", "kind": "nodg"}
    return resolve(small_scenario(strategy, **{**ON_H100, **given})).environment


@pytest.mark.parametrize(
    ("tables", "kind"),
    [
        ({}, DENSE),
        ({"model": {"weight_dtype": "fp8"}}, DENSE._replace(bits=8)),
        ({"model": {"weight_dtype": "mxfp4"}}, DENSE._replace(bits=4)),
        ({"model": {"name": "mixtral-8x7b"}}, DENSE._replace(model="MoE")),
        ({"cluster": {"gpu": "RTX 4090"}}, DENSE._replace(link="PCIe")),
        ({"engine": {"profile": "vllm-0.7"}}, DENSE._replace(engine="vllm-0.7")),
    ],
)
def test_a_kind_is_model_bits_link_and_engine(tables: dict[str, Any], kind: Kind) -> None:
    """Each of the four moves its own part."""
    assert kind_of(environment(**tables)) == kind


def row(quantity: str, n: int, error: float, fit: str = "held out", gpu: str = "H100 SXM") -> Any:
    """An error of the dense kind."""
    return KindScore(DENSE, gpu, "a set", quantity, n, error, fit)


def test_errors_of_several_sets_are_the_mean_over_their_runs() -> None:
    """10 runs at 3 % and 30 at 7 % are 6 %; fitted runs and single steps stand back."""
    rows = [
        row("TTFT", 10, 0.03),
        row("TTFT", 30, 0.07, gpu="B200 SXM"),
        row("TTFT", 60, 0.0, "fitted"),
        row("decode step", 5, 0.5),
    ]
    found = summary(rows)
    assert found is not None
    assert found.errors == {"TTFT": pytest.approx(0.06)}
    assert (found.gpus, found.n, found.fitted) == (("H100 SXM", "B200 SXM"), 40, False)
    only = summary(rows[2:3])
    assert only is not None
    assert only.fitted
    assert summary([]) is None


def test_runs_on_the_same_gpu_come_first() -> None:
    """What was measured on B200 says nothing more of H100 then, and is better than nothing else."""
    here, there = row("TPOT", 2, 0.1), row("TPOT", 9, 0.3, gpu="B200 SXM")
    both = known(environment(), scores=[here, there])
    assert both is not None
    assert both.errors["TPOT"] == pytest.approx(0.1)
    other = known(environment(), scores=[there])
    assert other is not None
    assert other.gpus == ("B200 SXM",)


@pytest.mark.parametrize(
    "tables",
    [
        {"cluster": {"gpu": "H200"}},  # its data sheet alone
        {"engine": {"host_before_s": 0.01}},  # another host
        {"engine": {"profile": "sarathi"}},  # no runs of it on NVLink of H100
        {"model": {"weight_dtype": "fp8"}, "cluster": {"gpu": "A100"}},  # brought to 16 bits
        {"model": {"weight_dtype": "int8"}},  # another arithmetic than was measured
    ],
)
def test_what_was_not_measured_has_no_error(tables: dict[str, Any]) -> None:
    """Rows of the same kind on other GPUs are there, and are not theirs."""
    where = environment(**tables)
    kind = kind_of(where)
    rows = [KindScore(kind, "B200 SXM", "a set", "TPOT", 3, 0.1, "held out")]
    if kind.engine != "sarathi":
        assert known(where, scores=rows) is None
    assert known(where, scores=()) is None


def test_the_heading_quotes_the_error_of_its_kind() -> None:
    """The committed figures, rounded, in the lines on the step times and in JSON."""
    errors = {
        one.quantity: one.error
        for one in committed().kinds
        if one.kind == DENSE and one.gpu == "H100 SXM"
    }
    scenario = resolve(small_scenario({"name": "one", "kind": "nodg"}, **ON_H100))
    text = " ".join(heading(scenario).split())
    assert in_words(DENSE) == "dense bf16 on NVLink with vLLM 0.15+"
    quoted = ", ".join(f"{name} {100 * error:.0f} %" for name, error in errors.items())
    assert f"{in_words(DENSE)}: {quoted} off in 18 runs on H100 SXM)" in text
    assert step_times_of(scenario.environment)["errors"] == pytest.approx(errors)
    four = {**ON_H100, "model": {"weight_dtype": "int4"}}
    text = " ".join(heading(resolve(small_scenario(scenario_strategy(), **four))).split())
    assert "dense 4-bit on NVLink with vLLM 0.15+: not measured, its error is not known)" in text
    assert step_times_of(environment(model={"weight_dtype": "int4"}))["errors"] is None


def scenario_strategy() -> dict[str, Any]:
    """One NoDG deployment."""
    return {"name": "one", "kind": "nodg"}


def test_parts_of_a_step_are_as_uncertain_as_the_kind_is_measured() -> None:
    """Mixtral's TPOT over 0.8, the mean absolute value of a normal distribution; bf16 its floor."""
    mixtral = environment(model={"name": "mixtral-8x7b"})
    (tpot,) = (
        one.error
        for one in committed().kinds
        if one.kind == kind_of(mixtral) and one.quantity == "TPOT"
    )
    assert decode_error(mixtral) == pytest.approx(tpot)
    assert errors_of(mixtral)["memory"] == pytest.approx(tpot / 0.8)
    # Not measured: the worst of what is like it.
    on_a100 = environment(model={"name": "mixtral-8x7b"}, cluster={"gpu": "A100"})
    worst = max(
        one.error
        for one in committed().kinds
        if one.kind.model == "MoE" and one.quantity in ("TPOT", "decode step")
    )
    assert decode_error(on_a100) == pytest.approx(worst)
    assert decode_error(environment(engine={"profile": "vllm-0.11"})) == 0.0
