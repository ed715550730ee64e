"""From measured kernels to a simulation: measure, calibrate, a catalogue file, a scenario.

The machine is made up. Its times follow formulas that are written down here once more, so that the
constants which come out of the chain can be held to those that went in.
"""

from __future__ import annotations

import csv
import json
import math
import zlib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from simcluster import catalog
from simcluster.catalog import Catalog
from simcluster.cli import main
from simcluster.config import ModelConfig
from simcluster.fidelity.calibrate.readers import plain_csv
from simcluster.fidelity.measure import plan, session
from simcluster.fidelity.measure.plan import Call
from simcluster.roofline import RooflineStepTime, StepShape

GPU = "RTX 4090"
"""A part with a large second-level cache, so that small weights must not be taken for cached."""
PEAK, PEAK_8BIT, BANDWIDTH, SMS = 165.2e12, 330.3e12, 1008e9, 128
MFU, MBU, P, FIXED_S = 0.72, 0.81, 2.2, 4.5e-6
MFU_8BIT, QUANTISE_S, MBU_QUANTISE = 0.6, 5e-6, 0.3
MFU_PREFILL, MBU_PREFILL = 0.5, 0.6
MBU_DECODE, BLOCK_S, ATTENTION_S = 0.85, 3e-6, 11e-6
LEAST_S = 3e-6
SHARES = {
    "norm": (0.7, 4.0),
    "norm_only": (0.7, 2.0),
    "rope": (0.5, 2.0),
    "activation": (0.6, 3.0),
    "add": (0.9, 3.0),
    "embedding": (0.65, 2.0),
    "kv_write": (0.8, 2.0),
    "sampler": (0.8, 5.0),
}
"""Share of bandwidth of elementwise kernels, and 16-bit numbers they move per element."""
EAGER_S, GRAPH_S = 5.3e-6, 82e-6
REDUCE = {2: (9e-6, 0.61), 4: (14e-6, 0.5)}
LINK = 32e9
"""PCIe 4.0 x16 as the catalogue has it, per direction (bytes/s)."""


def either(a: float, b: float, p: float) -> float:
    """Smooth maximum of two times (s)."""
    return float((a**p + b**p) ** (1.0 / p))


def true_s(call: Call) -> float:
    """Time that the made-up machine takes for a call (s)."""
    size = call.size
    match call.operator:
        case "issue":
            return EAGER_S if call.mode == "eager" else GRAPH_S
        case "gemm":
            m, n, k = size("m"), size("n"), size("k")
            tiles = math.ceil(m / 64) * math.ceil(n / 64)
            flops = 2.0 * 64 * 64 * tiles * k
            if call.dtype == "fp8":
                moved = n * k + 2.0 * m * (n + k)
                law = either(flops / (MFU_8BIT * PEAK_8BIT), moved / (MBU * BANDWIDTH), P)
                return law + FIXED_S + QUANTISE_S + 3.0 * m * k / (MBU_QUANTISE * BANDWIDTH)
            moved = 2.0 * (n * k + m * (n + k))
            return either(flops / (MFU * PEAK), moved / (MBU * BANDWIDTH), P) + FIXED_S
        case "attention_decode":
            b, c, heads = size("batch"), size("context") + 1, size("num_heads")
            kv, d = size("num_kv_heads"), size("head_dim")
            arithmetic = 4.0 * heads * d / (MFU_PREFILL * PEAK)
            token = either(arithmetic, 4.0 * kv * d / (MBU_DECODE * BANDWIDTH), P)
            sequence = BLOCK_S * kv / SMS + 4.0 * heads * d / (MBU_DECODE * BANDWIDTH)
            return ATTENTION_S + math.hypot(b * sequence, b * c * token)
        case "attention_prefill":
            b, m, c = size("batch"), size("m"), size("context")
            heads, kv, d = size("num_heads"), size("num_kv_heads"), size("head_dim")
            pairs = b * m * (c + (m + 1) / 2)
            moved = 4.0 * b * (m * heads * d + (c + m) * kv * d)
            compute = 4.0 * pairs * heads * d / (MFU_PREFILL * PEAK)
            return ATTENTION_S + either(compute, moved / (MBU_PREFILL * BANDWIDTH), 1.5)
        case "all_reduce" | "all_gather":
            latency_s, share = REDUCE[size("tp")]
            sent = 2.0 * (size("tp") - 1) / size("tp") * 2.0 * size("m") * size("n")
            return latency_s + sent / (share * LINK)
        case name:
            share, numbers = SHARES[name]
            memory_s = 2.0 * numbers * size("m") * size("n") / (share * BANDWIDTH)
            return either(memory_s, LEAST_S, P)


class Machine(session._Bench):
    """A GPU whose times are known, measured with an error of about a percent."""

    def __init__(self, *_: object) -> None:
        pass

    def _time_s(self, call: Call) -> tuple[float, str]:
        noise = zlib.crc32(repr(call).encode()) / 2**32 - 0.5
        return true_s(call) * (1.0 + 0.04 * noise), call.mode

    def _collectives(self, group: Any, deadline: float) -> Any:
        for call in group.calls:
            yield call, self._time_s(call)[0], call.mode


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """CSV that ``simcluster measure`` writes on that machine."""
    path = tmp_path_factory.mktemp("measured") / "mine.csv"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "_Bench", Machine)
        patch.setattr(session, "_device", lambda settings: "gpu")
        patch.setattr(session, "_name", lambda device: "Test GPU")
        patch.setattr(session, "_abilities", lambda device: ("bf16", True, 4))
        patch.setattr(session, "_comments", lambda device, name, settings: [f"device: {name}"])
        models = ["--model", "llama-3.1-8b", "--model", "llama-2-7b"]
        result = CliRunner().invoke(main, ["measure", "-o", str(path), *models])
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture(scope="module")
def calibrated(measured: Path) -> tuple[Path, dict[str, Any]]:
    """Catalogue file that ``simcluster calibrate`` writes, and its report."""
    out = measured.with_name("mine.toml")
    command = ["calibrate", str(measured), "--gpu", GPU, "-o", str(out), "--json"]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    return out, json.loads(result.stdout)


def test_every_measured_call_is_read_back(measured: Path) -> None:
    """Nothing that `measure` writes is refused or lost by `calibrate`."""
    lines = [line for line in measured.read_text().splitlines() if not line.startswith("#")]
    written = list(csv.DictReader(lines))
    rows = plain_csv.read(measured)
    assert len(rows) == len(written)
    assert set(rows.operator.tolist()) == {row["operator"] for row in written}
    specs = [catalog.model(name) for name in ("llama-3.1-8b", "llama-2-7b")]
    asked = plan.calls(specs, dtype="bf16", fp8=True, num_gpus=4)
    assert len(rows) == sum(len(calls) for calls in asked.values())
    assert rows.time_s.sum() == pytest.approx(sum(float(r["time_us"]) for r in written) * 1e-6)


def test_the_constants_that_made_the_times_come_out(calibrated: tuple[Path, Any]) -> None:
    """Within a few percent, though times have an error and the law has finer terms to spend."""
    out, report = calibrated
    mine = Catalog().with_file(out)
    found = mine.gpu(GPU).constants
    links = {t.tp_size: t for t in mine.link("pcie4-staged (measured)").allreduce_terms}
    engine = mine.engine("vllm-0.19 (measured)")
    assert found.accuracy == "measured"
    assert found.mfu_gemm == pytest.approx(MFU, rel=0.03)
    assert found.mbu_gemm == pytest.approx(MBU, rel=0.03)
    assert found.smooth_p == pytest.approx(P, rel=0.05)
    assert found.fixed_s == pytest.approx(FIXED_S, rel=0.05)
    assert found.mfu_gemm_8bit == pytest.approx(MFU_8BIT, rel=0.05)
    assert found.quantise_s == pytest.approx(QUANTISE_S, rel=0.1)
    assert found.mfu_attention == pytest.approx(MFU_PREFILL, rel=0.05)
    assert found.mbu_attention == pytest.approx(MBU_DECODE, rel=0.03)
    assert found.attention_block_s == pytest.approx(BLOCK_S, rel=0.1)
    assert found.decode_overlap > 0.9
    assert found.attention_fixed_s == pytest.approx(ATTENTION_S, rel=0.05)
    for name in ("norm", "rope", "activation", "add", "embedding"):
        assert getattr(found, f"mbu_{name}") == pytest.approx(SHARES[name][0], rel=0.05), name
    assert found.elementwise_fixed_s == pytest.approx(LEAST_S, rel=0.05)
    for size, (latency_s, share) in REDUCE.items():
        assert links[size].latency_s == pytest.approx(latency_s, rel=0.05)
        assert links[size].efficiency == pytest.approx(share, rel=0.03)
    assert engine.issue_s == pytest.approx(EAGER_S, rel=0.03)
    assert engine.graph_issue_s == pytest.approx(GRAPH_S, rel=0.03)
    for row in report["errors"]:
        assert row["mean"] < 0.02, row
        assert row["held_out"] is None or row["held_out"] < 0.03, row
    alone = {row["operator"] for row in report["errors"] if row["held_out"] is None}
    assert {"norm", "norm_only", "add", "embedding"} <= alone  # both models are 4096 wide


def test_small_weights_of_a_measured_file_count(
    measured: Path, calibrated: tuple[Path, Any]
) -> None:
    """`measure` empties the cache between calls: none of its rows is left out as if cached."""
    _, report = calibrated
    rows = plain_csv.read(measured)
    for row in report["errors"]:
        if row["operator"] in ("gemm", "attention_decode"):
            same = (rows.operator == row["operator"]) & (rows.bytes == 2.0)
            assert row["num_rows"] == same.sum()


def test_a_scenario_runs_on_the_measured_gpu(calibrated: tuple[Path, Any], tmp_path: Path) -> None:
    """The file beside a scenario: its constants make the times, and the report says so."""
    out, _ = calibrated
    (tmp_path / "mine.toml").write_text(out.read_text())
    scenario = tmp_path / "scenario.toml"
    lines = [
        'model = { name = "llama-3.1-8b" }',
        f'cluster = {{ gpu = "{GPU}", nodes = 1, gpus_per_node = 1 }}',
        'workload = { lengths = "sharegpt-etalon", rate_rps = 1.0, duration_s = 20 }',
        "slo = { ttft_s = 1.0, tpot_s = 0.1 }",
        'strategy = [{ name = "one", kind = "nodg" }]',
    ]
    found = {}
    for name, first in (
        ("ours", ['engine = { profile = "vllm-0.19", max_model_len = 8192 }']),
        (
            "mine",
            [
                'catalog = ["mine.toml"]',
                'engine = { profile = "vllm-0.19 (measured)", max_model_len = 8192 }',
            ],
        ),
    ):
        scenario.write_text("\n".join([*first, *lines]) + "\n", encoding="utf-8")
        result = CliRunner().invoke(main, ["run", str(scenario), "--json"])
        assert result.exit_code == 0, result.output
        found[name] = json.loads(result.stdout)
    assert found["ours"]["step_times"]["accuracy"] == "fitted"
    assert found["mine"]["step_times"]["accuracy"] == "measured"


def test_steps_of_the_measured_gpu_are_the_sum_of_its_kernels(
    calibrated: tuple[Path, Any],
) -> None:
    """A decode step of Llama-3.1-8B, kernel by kernel by the machine's own formulas."""
    out, _ = calibrated
    mine = Catalog().with_file(out)
    part = mine.gpu(GPU)
    link = mine.link(part.fabric)
    spec = catalog.model("llama-3.1-8b")
    model = ModelConfig(spec=spec, max_model_len=8192)
    step = RooflineStepTime(model, part, link, catalog.engine("ideal"), 1)
    batch, context = 32, 1000

    def gemm(n: int, k: int) -> float:
        return true_s(Call(operator="gemm", m=batch, n=n, k=k, dtype="bf16"))

    def small(operator: str, n: int) -> float:
        return true_s(Call(operator=operator, m=batch, n=n, dtype="bf16"))

    attention = Call(
        operator="attention_decode",
        batch=batch,
        context=context - 1,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        dtype="bf16",
    )
    layer = gemm(6144, 4096) + gemm(4096, 4096) + gemm(28672, 4096) + gemm(4096, 14336)
    layer += 2 * small("norm", 4096) + small("rope", 5120) + small("activation", 14336)
    layer += small("kv_write", 2048) + true_s(attention)
    whole = 32 * layer + gemm(128256, 4096) + small("sampler", 128256) + small("norm", 4096)
    whole += small("embedding", 4096)
    shape = StepShape(batch, batch * context, (), batch, batch * context)
    assert step.gpu_s(shape) == pytest.approx(whole, rel=0.02)
