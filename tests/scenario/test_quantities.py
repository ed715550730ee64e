"""Quantities with units: the numbers that people mean, and refusals that say what is known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helpers.scenarios import small_scenario
from simcluster.errors import ConfigError
from simcluster.scenario.file import load, resolve
from simcluster.scenario.quantities import UNITS, quantity, share

FIRST = Path(__file__).parents[2] / "scenarios" / "first.toml"
DOCUMENT = small_scenario({"name": "10s", "kind": "nodg"}, workload={"num_requests": 5})


@pytest.mark.parametrize(
    ("text", "suffix", "value"),
    [
        ("800ms", "_s", 0.8),
        ("40 ms", "_s", 0.04),
        ("1s", "_s", 1.0),
        ("1.5min", "_s", 90.0),
        ("2h", "_s", 7200.0),
        ("7us", "_s", 7e-6),
        ("16GiB", "_bytes", 17179869184.0),
        ("2 GB", "_bytes", 2e9),
        ("25/s", "_rps", 25.0),
        ("90/min", "_rps", 1.5),
    ],
)
def test_a_quantity_is_the_number_that_is_meant(text: str, suffix: str, value: float) -> None:
    """To the bit where the number can be written: 800 ms is 0.8, not 0.8000000000000002."""
    assert quantity(text, suffix) == value


@pytest.mark.parametrize("text", ["800", "ms", "800 parsecs", "", "1s2", "s1", "1e400x", "-"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    """Also a bare number: seconds or milliseconds is just the question."""
    for suffix in UNITS:
        with pytest.raises(ValueError, match="one of the units"):
            quantity(text, suffix)


@pytest.mark.parametrize("text", ["1e999999999999999999999ms", "1e-99999999999999999999s"])
def test_what_no_decimal_can_hold_is_refused(text: str) -> None:
    """An exponent beyond that of decimals is an error of the text, not of ours."""
    with pytest.raises(ValueError, match="out of the range"):
        quantity(text, "_s")


def test_shares() -> None:
    """As a percentage or as a percentile."""
    assert (share("95%"), share("P99"), share("p99.9"), share("90 %")) == (0.95, 0.99, 0.999, 0.9)
    for text in ("95", "P", "%", "P95%"):
        with pytest.raises(ValueError, match="must be a share"):
            share(text)


@pytest.mark.parametrize(
    ("changes", "key", "value"),
    [
        ({"slo.ttft": "800ms"}, "ttft_s", 0.8),
        ({"slo.ttft_s": "0.3 s"}, "ttft_s", 0.3),
        ({"slo.tpot": "15ms"}, "tpot_s", 0.015),
        ({"slo.attainment": "P95"}, "attainment", 0.95),
        ({"slo.attainment": "99%"}, "attainment", 0.99),
    ],
)
def test_targets_are_written_with_units(changes: dict[str, Any], key: str, value: float) -> None:
    """By --set, and in a file in place of the key with its suffix."""
    assert resolve(DOCUMENT, changes).document["slo"][key] == value
    ((name, text),) = changes.items()
    slo = {k: v for k, v in DOCUMENT["slo"].items() if k != key} | {name.split(".")[1]: text}
    assert resolve({**DOCUMENT, "slo": slo}).document["slo"][key] == value


def test_a_target_that_is_written_twice_is_refused() -> None:
    """Which of them is meant, nobody knows."""
    slo = {**DOCUMENT["slo"], "ttft": "1s"}
    with pytest.raises(ConfigError, match=r"slo.ttft = '1s': is the same target"):
        resolve({**DOCUMENT, "slo": slo})


def test_other_keys_take_units_by_their_suffix_and_names_stay_names() -> None:
    """A strategy called 10s is not a time."""
    changes = {
        "workload.duration_s": "2 min",
        "strategy.0.swap_bytes": "2GB",
        "strategy.0.preemption": "swap",
        "workload.rate_rps": "3/s",
    }
    document = resolve(DOCUMENT, changes).document
    assert document["workload"]["duration_s"] == 120.0
    assert document["workload"]["rate_rps"] == 3.0
    assert document["strategy"][0]["swap_bytes"] == 2e9
    assert document["strategy"][0]["name"] == "10s"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slo.ttft": "800"}, "slo.ttft_s = '800': must be a number with one of the units us, ms"),
        ({"slo.ttft_s": "1 GB"}, "must be a number with one of the units"),
        ({"workload.duration_s": "soon"}, "workload.duration_s = 'soon': must be a number"),
        ({"slo.attainment": "most"}, "slo.attainment = 'most': must be a share"),
        ({"slo.attainment": "P100"}, "slo.attainment"),
        ({"strategy.0.swap_bytes": "2gb"}, "GiB. Write such as 2e9 or 2GB."),
    ],
)
def test_a_slip_is_one_line(changes: dict[str, Any], words: str) -> None:
    """Key, value, rule and remedy; P100 passes as a share of 1, which is allowed."""
    if changes == {"slo.attainment": "P100"}:
        assert resolve(DOCUMENT, changes).environment.slo.attainment == 1.0
        return
    with pytest.raises(ConfigError) as caught:
        resolve(DOCUMENT, changes)
    assert words in str(caught.value)
    assert "Write such as" in str(caught.value)


def test_a_target_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    """With a unit in its value and in its name, by overrides or in a file: neither is meant."""
    twice = {"slo.ttft": "1s", "slo.ttft_s": 2.0}
    for changes in (twice, dict(reversed(twice.items()))):
        with pytest.raises(ConfigError, match=r"slo\.ttft = '1s'.*slo\.ttft_s.*Leave one"):
            load(FIRST, changes)
    assert load(FIRST, {"slo.ttft": "2s"}).environment.slo.ttft_s == 2.0
    file = tmp_path / "twice.toml"
    file.write_text(FIRST.read_text().replace("ttft_s = 1.0", 'ttft_s = 1.0\nttft = "1s"'))
    with pytest.raises(ConfigError, match="Leave one"):
        load(file)


def test_a_node_shape_that_would_change_no_gpu_is_refused() -> None:
    """The file's GPU goes before that of the node; taken out or named, the override works."""
    with pytest.raises(ConfigError, match=r"cluster\.node = 'dgx-b300'.*cluster\.gpu = 'A100'"):
        load(FIRST, {"cluster.node": "dgx-b300"})
    b300 = load(FIRST, {"cluster.node": "dgx-b300", "cluster.gpu": None})
    assert b300.environment.cluster.gpu.name == "B300 SXM"
    named = load(FIRST, {"cluster.node": "dgx-b300", "cluster.gpu": "A100"})
    assert named.environment.cluster.gpu.name == "A100-80GB SXM"
