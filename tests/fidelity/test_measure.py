"""Measuring one's own GPU: the grid, the file, the budget; the code paths at toy sizes."""

from __future__ import annotations

import csv
import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from simcluster import catalog
from simcluster.cli import main
from simcluster.errors import DataError
from simcluster.fidelity.measure import plan, session
from simcluster.fidelity.measure.plan import Call
from simcluster.fidelity.measure.record import COLUMNS, Record, as_csv
from simcluster.fidelity.measure.timers import num_calls, num_replays

ROOT = Path(__file__).parents[2]
HAS_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="needs PyTorch (extra gpu)")
MODELS = [catalog.model(name) for name in plan.DEFAULT_MODELS]


def call(*arguments: object) -> Result:
    """Call the command line."""
    return CliRunner().invoke(main, ["measure", *(str(a) for a in arguments)])


def rows_of(path: Path) -> list[dict[str, str]]:
    """Rows of a measured file, without its comments."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return list(csv.DictReader(lines))


# The grid ---------------------------------------------------------------------------------------


def test_the_shapes_of_a_known_layer_are_in_the_grid() -> None:
    """Llama-3.1-8B on one of two GPUs, written down by hand."""
    spec = catalog.model("llama-3.1-8b")
    groups = plan.calls([spec], dtype="bf16", fp8=False, num_gpus=1)
    gemms = {(c.n, c.k) for c in groups["gemm"]}
    qkv, out, gate_up, down = (3072, 4096), (4096, 2048), (14336, 4096), (4096, 7168)
    assert {qkv, out, gate_up, down, (64128, 4096)} <= gemms
    decodes = {(c.num_heads, c.num_kv_heads, c.head_dim) for c in groups["attention_decode"]}
    assert decodes == {(32, 8, 128), (16, 4, 128), (8, 2, 128), (4, 1, 128)}
    assert {c.m for c in groups["gemm"]} == set(plan.TOKENS)
    assert all(c.size("m") <= plan.HEAD_TOKENS for c in groups["gemm"] if c.n == 64128)
    assert groups["collective"] == []


def test_degrees_that_do_not_divide_a_model_are_left_out() -> None:
    """The 28 heads of Qwen2.5-7B cannot be split eight ways."""
    groups = plan.calls([catalog.model("qwen2.5-7b")], dtype="bf16", fp8=False, num_gpus=1)
    assert {c.num_heads for c in groups["attention_decode"]} == {28, 14, 7}


@pytest.mark.parametrize("fp8", [False, True])
def test_no_call_stands_twice_in_the_grid(fp8: bool) -> None:
    """Every one costs time; and what was asked of an operator is there."""
    groups = plan.calls(MODELS, dtype="bf16", fp8=fp8, num_gpus=8)
    assert list(groups) == list(plan.GROUPS)
    found = [c for calls in groups.values() for c in calls]
    assert len(set(found)) == len(found)
    assert any(c.dtype == "fp8" for c in found) == fp8
    assert {c.tp for c in groups["collective"]} == {2, 4, 8}
    for c in groups["attention_decode"]:
        assert c.size("batch") * c.size("context") <= plan.MAX_CACHED
    sizes = {name: len(calls) for name, calls in groups.items()}
    assert sum(sizes.values()) < 6000, "five minutes are 50 ms per call"


def test_a_part_of_the_grid_is_a_fair_sample() -> None:
    """The first tenth holds small and large calls, and is the same in every run."""
    gemms = plan.calls(MODELS, dtype="bf16", fp8=False, num_gpus=1)["gemm"]
    assert gemms == plan.calls(MODELS, dtype="bf16", fp8=False, num_gpus=1)["gemm"]
    assert {c.m for c in gemms[: len(gemms) // 10]} == set(plan.TOKENS)


# The file ---------------------------------------------------------------------------------------


def test_columns_are_the_documented_ones() -> None:
    """`docs/calibration.md` shows a file; its header is ours."""
    text = (ROOT / "docs" / "calibration.md").read_text()
    assert ",".join(COLUMNS) in text
    for operator in (*plan.ELEMENTWISE, "gemm", "attention_decode", "all_reduce", "issue"):
        assert f"`{operator}`" in text


def test_a_file_holds_calls_with_empty_cells_for_what_they_lack() -> None:
    """Microseconds, sorted by call, comments of one line."""
    decode = Call(
        operator="attention_decode",
        batch=64,
        context=2047,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        dtype="bf16",
    )
    gemm = [Call(operator="gemm", m=m, n=14336, k=4096, dtype="bf16") for m in (1024, 4)]
    text = as_csv([(gemm[0], 2.0e-4), (gemm[1], 61.4e-6), (decode, 182e-6)], ["one\ntwo"])
    assert text.splitlines() == [
        "# one two",
        ",".join(COLUMNS),
        "attention_decode,,,,64,2047,32,8,128,bf16,,graph,182",
        "gemm,4,14336,4096,,,,,,bf16,,graph,61.4",
        "gemm,1024,14336,4096,,,,,,bf16,,graph,200",
    ]


def test_a_file_is_whole_while_it_grows(tmp_path: Path) -> None:
    """Written every few seconds; nothing else lies about."""
    record = Record(tmp_path / "gpu.csv", ["test"])
    record.write()
    assert rows_of(record.path) == []
    record.add(Call(operator="add", m=1, n=2, dtype="bf16"), 1e-6)
    assert rows_of(record.path) == []
    record._written -= 60
    record.add(Call(operator="add", m=2, n=2, dtype="bf16"), 1e-6)
    assert len(rows_of(record.path)) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["gpu.csv"]
    with pytest.raises(DataError, match="cannot be written"):
        Record(tmp_path / "none" / "gpu.csv", []).write()


@pytest.mark.parametrize(
    ("estimate_s", "calls", "replays"), [(1e-6, 32, 20), (1e-4, 10, 5), (1e-2, 1, 3), (0.0, 32, 20)]
)
def test_repetitions_follow_the_time_of_a_call(estimate_s: float, calls: int, replays: int) -> None:
    """Graphs of about a millisecond, five milliseconds in all, at least three replays."""
    assert num_calls(estimate_s) == calls
    assert num_replays(estimate_s * calls) == replays


# The session, with a machine made up ------------------------------------------------------------


class Clock:
    """Time that passes only where somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        """Time since the start (s)."""
        return self.now_s

    def sleep(self, time_s: float) -> None:
        """Let time pass."""
        self.now_s += time_s


class Bench(session._Bench):
    """A machine that takes 1 ms a call, cannot run two of the calls, and may be interrupted."""

    interrupt_after = 10**9
    broken = 2

    def __init__(self, *_: object) -> None:
        self.done = 0

    def _time_s(self, call: Call) -> tuple[float, str]:
        self.done += 1
        if self.done > self.interrupt_after:
            raise KeyboardInterrupt
        if self.done <= self.broken:
            raise RuntimeError("CUDA out of memory\nmore lines")
        session.time.sleep(0.001)
        return 1e-6 * self.done, "graph"

    def _tidy(self) -> None:
        pass


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> type[Bench]:
    """Put a made-up machine with one GPU in place of this one."""
    monkeypatch.setattr(session, "time", Clock())
    monkeypatch.setattr(session, "_Bench", Bench)
    monkeypatch.setattr(session, "_device", lambda settings: "gpu")
    monkeypatch.setattr(session, "_name", lambda device: "Test GPU 80GB")
    monkeypatch.setattr(session, "_abilities", lambda device: ("bf16", False, 1))
    monkeypatch.setattr(session, "_comments", lambda device, name, settings: [f"device: {name}"])
    monkeypatch.setattr(Bench, "interrupt_after", 10**9)
    monkeypatch.setattr(Bench, "broken", 2)
    return Bench


def test_a_session_ends_within_its_budget(machine: type[Bench], tmp_path: Path) -> None:
    """Every group gets some of it; the file says what was left out and why."""
    out = tmp_path / "gpu.csv"
    result = call("-o", out, "--budget", 1)
    assert 0.9 < session.time.monotonic() < 1.002
    assert result.exit_code == 0, result.output
    found = {row["operator"] for row in rows_of(out)}
    assert {"gemm", "attention_decode", "attention_prefill", "norm", "issue"} <= found
    comments = [line for line in out.read_text().splitlines() if line.startswith("# ")]
    assert comments[0] == "# device: Test GPU 80GB"
    assert "# issue: 2 of 4; 2 left out: CUDA out of memory" in comments
    assert any("gemm: " in line and line.endswith("left out: no time") for line in comments)
    assert "simcluster calibrate" in result.stdout


def test_groups_and_models_can_be_chosen(
    machine: type[Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the file is named after the GPU by default."""
    monkeypatch.chdir(tmp_path)
    result = call("--only", "attention_decode", "--model", "qwen2.5-7b", "--budget", 5)
    assert result.exit_code == 0, result.output
    rows = rows_of(Path("test-gpu-80gb.csv"))
    assert {row["num_heads"] for row in rows} == {"28", "14", "7"}
    assert {row["operator"] for row in rows} == {"attention_decode"}
    again = call("--only", "attention_decode")
    assert again.exit_code == 1
    assert again.stderr == (
        "error: test-gpu-80gb.csv: exists. Move it away or name another file with -o.\n"
    )
    assert "collectives need several GPUs" in call("--only", "collective", "-o", "x.csv").stderr


def test_interrupting_leaves_what_was_measured(
    machine: type[Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that can be used, the reason in it, and the exit code of an interrupt."""
    monkeypatch.setattr(machine, "interrupt_after", 20)
    out = tmp_path / "gpu.csv"
    result = call("-o", out)
    assert result.exit_code == 130
    assert len(rows_of(out)) == 18
    assert "# interrupted" in out.read_text().splitlines()
    assert "Interrupted" in result.stderr


def test_a_machine_that_can_run_nothing_leaves_no_file(
    machine: type[Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups are given up after ten failures, and the first reason is told."""
    monkeypatch.setattr(machine, "broken", 10**9)
    out = tmp_path / "gpu.csv"
    result = call("-o", out)
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == (
        "error: nothing could be measured within 240 s (CUDA out of memory)"
    )
    assert not out.exists()


# This machine -----------------------------------------------------------------------------------


def error_of(*arguments: object) -> str:
    """Return the one line with which a call is refused."""
    result = call(*arguments)
    assert result.exit_code == 1, result.output
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


def test_without_pytorch_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line."""
    monkeypatch.setitem(sys.modules, "torch", None)
    assert 'pip install "simcluster[gpu]"' in error_of()


def test_it_explains_itself() -> None:
    """Without PyTorch too."""
    shown = call("--help").stdout
    assert all(option in shown for option in ("--budget", "--device", "--only", "--quick", "-o"))


def test_an_unknown_model_is_refused_before_anything_starts() -> None:
    """With the nearest names."""
    assert "--model = 'llama-3.1-8bb': no such model" in error_of("--model", "llama-3.1-8bb")


@needs_torch
def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, with what can be done."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    line = error_of()
    assert "no GPU found" in line
    assert "--device cpu --quick" in line
    assert "Add --quick" in error_of("--device", "cpu")
    assert "Write cuda, cuda:1 or cpu" in error_of("--device", "tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "this machine has 2" in error_of("--device", "cuda:2")


@needs_torch
def test_every_code_path_runs_on_the_cpu(tmp_path: Path) -> None:
    """All operators but graphs, at toy sizes."""
    out = tmp_path / "cpu.csv"
    result = call("--device", "cpu", "--quick", "-o", out)
    assert result.exit_code == 0, result.output
    rows = rows_of(out)
    calls: list[Any] = [c for g in plan.toy_calls(dtype="bf16", num_ranks=2).values() for c in g]
    assert len(rows) == len(calls) - 1  # no launch of a graph
    assert {row["operator"] for row in rows} == {c.operator for c in calls}
    assert all(float(row["time_us"]) > 0 for row in rows)
    assert {row["mode"] for row in rows} == {"eager"}
    assert "toy sizes" in out.read_text()


@needs_torch
@pytest.mark.parametrize("copies", [1, 3])
def test_each_call_of_a_graph_uses_other_weights(copies: int) -> None:
    """All copies lie in the pool and none overlaps another."""
    import torch

    from simcluster.fidelity.measure.kernels import Kernels

    kernels = Kernels(torch.device("cpu"), "bf16", copies * 96 * 64 + 5, fuse=False)
    (prepared,) = kernels.variants(Call(operator="gemm", m=2, n=96, k=64, dtype="bf16"))
    assert prepared.copies == copies
    for i in range(copies):
        prepared.run(i)
    with pytest.raises(ValueError, match="does not fit the memory"):
        kernels.variants(Call(operator="gemm", m=2, n=96 * copies, k=128, dtype="bf16"))


@needs_torch
def test_attention_sees_the_cache_in_the_order_of_the_tokens() -> None:
    """Decode attention against the formula, on keys and values taken from the pool by hand."""
    import torch

    from simcluster.fidelity.measure.kernels import Kernels

    kernels = Kernels(torch.device("cpu"), "bf16", 2 * 2 * 8 * 1 * 16, fuse=False)
    one = Call(
        operator="attention_decode",
        batch=2,
        context=7,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        dtype="bf16",
    )
    _, cache = kernels._cache(one, 8)
    keys, values = cache(0)
    assert keys.shape == values.shape == (2, 1, 8, 16)
    assert torch.equal(keys[1, 0, 3], kernels._pool[(8 + 3) * 16 : (8 + 4) * 16])
    assert torch.equal(values[0, 0, 0], kernels._pool[2 * 8 * 16 : 2 * 8 * 16 + 16])


@needs_torch
def test_elementwise_kernels_compute_what_they_are_called() -> None:
    """The norm with residual sum, and the activation, against their formulas."""
    import torch

    from simcluster.fidelity.measure.kernels import _functions

    functions = _functions()
    x, residual, weight = torch.randn(3, 8), torch.randn(3, 8), torch.randn(8)
    normed, total = functions["norm"](x, residual, weight)
    mean_square = ((x + residual) ** 2).mean(-1, keepdim=True)
    expected = (x + residual) / torch.sqrt(mean_square + torch.finfo(x.dtype).eps) * weight
    assert torch.allclose(normed, expected, atol=1e-5)
    assert torch.equal(total, x + residual)
    gate, up = x[:, :4], x[:, 4:]
    assert torch.allclose(functions["activation"](x), gate * torch.sigmoid(gate) * up)
    angle = torch.rand(3, 1, 4)
    heads = x.view(3, 1, 8)
    turned = functions["rope"](heads, torch.cos(angle), torch.sin(angle))
    assert torch.allclose(turned.norm(dim=-1), heads.norm(dim=-1))


@needs_torch
def test_the_timer_of_a_gpu_flushes_and_divides(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a made-up GPU where each call takes 120 us: graphs of nine, cold copies in turn."""
    import contextlib

    import torch

    from simcluster.fidelity.measure.timers import CudaTimer, Prepared

    clock = [0.0]
    log: list[str] = []

    class Stream:
        def __init__(self, *_: object) -> None:
            pass

        def wait_stream(self, _: object) -> None:
            pass

        def synchronize(self) -> None:
            pass

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self, _: object) -> None:
            self.at = clock[0]

        def synchronize(self) -> None:
            pass

        def elapsed_time(self, other: Event) -> float:
            return (other.at - self.at) * 1e3

    class Graph:
        def capture_begin(self, pool: object, capture_error_mode: str) -> None:
            self.before, self.start = clock[0], len(log)

        def capture_end(self) -> None:
            self.captured, clock[0] = log[self.start :], self.before
            del log[self.start :]

        def replay(self) -> None:
            log.append(f"graph of {len(self.captured)}")
            clock[0] += 120e-6 * len(self.captured)

    class Flush:
        def zero_(self) -> None:
            log.append("flush")
            clock[0] += 1.0

    properties = type("Properties", (), {"L2_cache_size": 1})
    fakes: dict[str, object] = {
        "Stream": Stream,
        "Event": Event,
        "CUDAGraph": Graph,
        "stream": lambda _: contextlib.nullcontext(),
        "current_stream": lambda: None,
        "synchronize": lambda: None,
        "graph_pool_handle": lambda: None,
        "mem_get_info": lambda _: (8, 8),
        "get_device_properties": lambda _: properties,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    timer = CudaTimer(torch.device("cpu"))
    monkeypatch.setattr(timer, "_flush", Flush())

    def run(i: int) -> None:
        log.append(f"copy {i}")
        clock[0] += 120e-6

    time_s, mode = timer.time_s(Prepared(run, 3))
    assert time_s == pytest.approx(120e-6, rel=1e-6)
    assert mode == "graph"
    warm_up = ["copy 0", "copy 1", "flush", "copy 2"]
    assert log == [*warm_up, "graph of 9", *["flush", "graph of 9"] * 6]
