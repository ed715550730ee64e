"""Everything that is measured, within a budget of time, into one file."""

from __future__ import annotations

import subprocess
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from simcluster import catalog
from simcluster._version import __version__
from simcluster.errors import ConfigError, DataError
from simcluster.fidelity.measure import collectives, dispatch, plan
from simcluster.fidelity.measure.kernels import Kernels, pool_elements
from simcluster.fidelity.measure.plan import Call
from simcluster.fidelity.measure.record import Record
from simcluster.fidelity.measure.timers import CpuTimer, CudaTimer, Prepared, Timer

if TYPE_CHECKING:
    import torch

Measured = tuple[Call, float, str]
"""A call, its time (s) and its mode."""

_SHARES: Final = {
    "issue": 2,
    "gemm": 50,
    "attention_decode": 20,
    "attention_prefill": 15,
    "elementwise": 13,
    "collective": 20,
}
"""Parts of the budget; what a group does not use goes to those after it."""
_GIVE_UP: Final = 10
"""A group whose first calls all fail is left."""
_WARM_UP_S: Final = 1.0
_FP8_CAPABILITY: Final = (8, 9)
_TOY_CACHE: Final = 2**14
"""What the CPU is said to have, so that toy weights have several copies (bytes)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to measure, where, and for how long."""

    path: Path | None = None
    """File to write; None for one named after the GPU."""
    device: str = "cuda"
    """``"cuda"``, ``"cuda:1"``... or ``"cpu"``."""
    quick: bool = False
    """A few calls of toy size, to try it out."""
    models: tuple[str, ...] = plan.DEFAULT_MODELS
    """Models of the catalogue whose shapes are measured."""
    groups: tuple[str, ...] = plan.GROUPS
    """Of `plan.GROUPS`, which."""
    budget_s: float = 240.0
    """No call starts later than this after the beginning (s)."""


@dataclass(slots=True)
class _Group:
    """How the calls of one group went."""

    calls: Sequence[Call]
    num_measured: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        parts = [f"{self.num_measured} of {len(self.calls)}"]
        parts += [f"{count} left out: {reason}" for reason, count in self.failed.items()]
        late = len(self.calls) - self.num_measured - self.failed.total()
        return "; ".join([*parts, f"{late} left out: no time"] if late else parts)


def measure(settings: Settings, say: Callable[[str], None]) -> Record:
    """Measure and write the file.

    Raises
    ------
    DataError
        If PyTorch or the GPU is missing, the file cannot be written or exists, or nothing could be
        measured.
    ConfigError
        If a model is not in the catalogue, or the device cannot be used.
    KeyboardInterrupt
        As it came; what was measured until then stands in the file.
    """
    end = time.monotonic() + settings.budget_s
    specs = [catalog.model(name, key="--model") for name in settings.models]
    device = _device(settings)
    name = _name(device)
    path = settings.path or Path("-".join(name.lower().split()) + ".csv")
    if path.exists():
        raise DataError(f"{path}: exists. Move it away or name another file with -o.")
    dtype, fp8, num_gpus = _abilities(device)
    if settings.quick:
        groups = plan.toy_calls(dtype=dtype, num_ranks=min(2, num_gpus))
    else:
        groups = plan.calls(specs, dtype=dtype, fp8=fp8, num_gpus=num_gpus)
    results = {name: _Group(groups[name]) for name in settings.groups if groups[name]}
    if not results:
        raise DataError("nothing to measure: collectives need several GPUs, and here is one.")
    record = Record(path, _comments(device, name, settings))
    record.write()
    try:
        say(f"{name}: at most {settings.budget_s:.0f} s, {path} is written on the way")
        _measure_groups(results, record, device, dtype, end, settings, say)
    except KeyboardInterrupt:
        record.write("interrupted")
        raise
    if not record.rows:
        path.unlink(missing_ok=True)
        reasons = [reason for group in results.values() for reason in group.failed]
        why = f" ({reasons[0]})" if reasons else ""
        raise DataError(f"nothing could be measured within {settings.budget_s:g} s{why}")
    record.write(*(f"{name}: {group}" for name, group in results.items()))
    return record


def _measure_groups(
    results: dict[str, _Group],
    record: Record,
    device: torch.device,
    dtype: str,
    end: float,
    settings: Settings,
    say: Callable[[str], None],
) -> None:
    """Measure group by group, each within its share of the time that is left."""
    bench = _Bench(device, dtype, [c for g in results.values() for c in g.calls], settings.quick)
    shares = {name: _SHARES[name] for name in results}
    for name, group in results.items():
        start = time.monotonic()
        deadline = start + (end - start) * shares[name] / sum(shares.values())
        del shares[name]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's, about libraries that cannot run a call
            for call, time_s, mode in bench.measured(name, group, deadline):
                group.num_measured += 1
                record.add(replace(call, mode=mode), time_s)
        say(f"{name}: {group} ({time.monotonic() - start:.0f} s)")


class _Bench:
    """Measures groups of calls on one device."""

    def __init__(self, device: torch.device, dtype: str, calls: list[Call], quick: bool) -> None:
        import torch

        self._device = device
        self._timer: Timer
        if device.type == "cuda":
            torch.cuda.set_device(device)
            properties = torch.cuda.get_device_properties(device)
            cache: int = getattr(properties, "L2_cache_size", 0)
            free, _ = torch.cuda.mem_get_info(device)
            self._timer = CudaTimer(device)
        else:
            cache, free = _TOY_CACHE, 2**30
            self._timer = CpuTimer()
        num_pooled = pool_elements(calls, 4 * cache, free)
        fuse = device.type == "cuda" and not quick
        self._kernels = Kernels(device, dtype, num_pooled, fuse=fuse)
        if device.type == "cuda":
            self._warm_up()

    def _warm_up(self) -> None:
        """Work for a moment, so that clocks have risen when the first call is timed."""
        import torch

        x = torch.randn(4096, 4096, device=self._device, dtype=torch.float16)
        start = time.monotonic()
        while time.monotonic() - start < _WARM_UP_S:
            for _ in range(10):
                torch.mm(x, x)
            torch.cuda.synchronize()

    def measured(self, name: str, group: _Group, deadline: float) -> Iterator[Measured]:
        """Give the calls of a group with their times; note in `group` what failed."""
        if name == "collective":
            yield from self._collectives(group, deadline)
            return
        for call in group.calls:
            if time.monotonic() > deadline:
                return
            try:
                time_s, mode = self._time_s(call)
            except (RuntimeError, ValueError, TypeError, AttributeError) as error:
                group.failed[_reason(error)] += 1
                self._tidy()
                if group.num_measured == 0 and group.failed.total() >= _GIVE_UP:
                    return
                continue
            yield call, time_s, mode

    def _time_s(self, call: Call) -> tuple[float, str]:
        """Return the time of the fastest variant that works (s), and its mode."""
        if call.operator == "issue":
            return dispatch.issue_s(call, self._device), call.mode
        times: list[tuple[float, str]] = []
        errors: list[RuntimeError] = []
        for prepared in self._variants(call):
            try:
                times.append(self._timer.time_s(prepared))
            except RuntimeError as error:
                errors.append(error)
        if not times:
            raise errors[0]
        return min(times)

    def _variants(self, call: Call) -> list[Prepared]:
        import torch

        with torch.no_grad():
            return self._kernels.variants(call)

    def _collectives(self, group: _Group, deadline: float) -> Iterator[Measured]:
        sizes = sorted({call.size("tp") for call in group.calls})
        for i, size in enumerate(sizes):
            calls = [call for call in group.calls if call.tp == size]
            left = (deadline - time.monotonic()) / (len(sizes) - i)
            if left <= 0:
                return
            num_done = 0
            try:
                for answer in collectives.measure(calls, self._device.type, time.time() + left):
                    num_done += 1
                    yield answer
            except (DataError, RuntimeError, OSError) as error:
                group.failed[_reason(error)] += len(calls) - num_done

    def _tidy(self) -> None:
        import torch

        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _reason(error: Exception) -> str:
    """Return the first line of an error, short enough for a comment."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:120]


# The machine ------------------------------------------------------------------------------------


def _device(settings: Settings) -> torch.device:
    """Return the device, or say in one line why there is none."""
    try:
        import torch
    except ImportError:
        raise DataError(
            "simcluster measure needs PyTorch, which is not installed. It comes with the extra "
            'gpu: pip install "simcluster[gpu]".'
        ) from None
    try:
        device = torch.device(settings.device)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cuda", "cpu"):
        rule = "is not a device that can be measured"
        raise ConfigError("--device", settings.device, rule, "Write cuda, cuda:1 or cpu.")
    if device.type == "cpu":
        if not settings.quick:
            rule = "is for trying the code paths out"
            raise ConfigError("--device", "cpu", rule, "Add --quick.")
        return device
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not found:
        raise DataError(
            f"no GPU found: PyTorch {torch.__version__} sees none here. Run this on the machine "
            "with the GPU; --device cpu --quick tries the code paths at toy sizes."
        )
    index = 0 if device.index is None else device.index
    if index >= found:
        rule = f"does not exist: this machine has {found}"
        raise ConfigError("--device", settings.device, rule, "They count from cuda:0.")
    return torch.device("cuda", index)


def _name(device: torch.device) -> str:
    import torch

    return str(torch.cuda.get_device_name(device)) if device.type == "cuda" else "CPU"


def _abilities(device: torch.device) -> tuple[str, bool, int]:
    """Return the 16-bit type, whether there is an 8-bit one, and the number of GPUs."""
    import torch

    if device.type != "cuda":
        return "bf16", False, 2 if torch.distributed.is_available() else 1
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    fp8 = torch.cuda.get_device_capability(device) >= _FP8_CAPABILITY
    return "bf16" if bf16 else "fp16", fp8, int(torch.cuda.device_count())


def _comments(device: torch.device, name: str, settings: Settings) -> list[str]:
    """Return what a reader of the file wants to know about machine and run."""
    import torch

    lines = [
        f"simcluster measure {__version__}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        f"device: {name}",
        f"torch {torch.__version__}, CUDA {torch.version.cuda or 'none'}",
    ]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        lines[1] += (
            f", {torch.cuda.device_count()} here, {properties.multi_processor_count} SMs, "
            f"{properties.total_memory / 2**20:.0f} MiB"
        )
        lines.append(f"driver, largest SM clock, power limit: {_driver(device)}")
    if settings.quick:
        lines.append("toy sizes (--quick): not for calibration")
    else:
        lines.append(f"shapes of {', '.join(settings.models)}")
    return lines


def _driver(device: torch.device) -> str:
    """Return what ``nvidia-smi`` says; ``unknown`` where it cannot be asked."""
    query = "--query-gpu=driver_version,clocks.max.sm,power.limit"
    command = ["nvidia-smi", query, "--format=csv,noheader", f"--id={device.index}"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return answer.stdout.strip() or "unknown"
