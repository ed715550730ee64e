"""Options and fixtures of the test suite."""

from __future__ import annotations

import contextlib
import os
import runpy
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

# Before NumPy: threads of BLAS that wait for each other more than double the CPU time of a fit.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from hypothesis import settings

from simcluster.testing.examples import examples

settings.register_profile("suite", examples(100))
settings.load_profile("suite")

ROOT = Path(__file__).parents[1]
PATIENCE_S = 600.0
"""How long a test waits for another process; only one that hangs takes so long."""

Script = Callable[[str], SimpleNamespace]
Wait = Callable[[Callable[[], object]], None]
Recorded = dict[str, int]


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Compare images where pytest-mpl is there; without it their tests are skipped."""
    if hasattr(config.option, "mpl"):
        config.option.mpl = True


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--update-golden``: rewrite the golden traces, whose diff is then reviewed."""
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/*.txt")


@pytest.fixture(scope="session")
def script() -> Script:
    """Names of a script of the repository, given its path such as ``plots/fig_goodput.py``.

    Modules beside it can be imported while it is read, as when it is run.
    """

    def read(path: str) -> SimpleNamespace:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(str((ROOT / path).parent))
            return SimpleNamespace(**runpy.run_path(str(ROOT / path)))

    return read


@pytest.fixture(scope="session")
def md1(script: Script) -> SimpleNamespace:
    """Queue with Poisson arrivals and constant service whose goodput is known from theory."""
    return script("benchmarks/coverage.py")


@pytest.fixture(scope="session")
def wait_until() -> Wait:
    """Wait until a condition holds, however slow the machine is."""

    def wait(condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"nothing happens within {PATIENCE_S:g} s"
            time.sleep(0.005)

    return wait


@pytest.fixture
def killed_twice(
    wait_until: Wait, tmp_path: Path
) -> Callable[[list[str], Callable[[], Recorded]], Recorded]:
    """Run a command that is killed twice, at a random moment after it has recorded something new.

    Takes the command and what tells the runs recorded in ``tmp_path``, with the times of their
    files. Checks that a run once recorded stays as it is, and returns those recorded at the end.
    """

    def count(written: Callable[[], Recorded]) -> int:
        with contextlib.suppress(FileNotFoundError):  # its folder is just being renamed
            return len(written())
        return 0

    def killed_once(command: list[str], written: Callable[[], Recorded], wait_s: float) -> None:
        num_known = len(written())
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(lambda: process.poll() is not None or count(written) > num_known)
        time.sleep(wait_s)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def killed(command: list[str], written: Callable[[], Recorded]) -> Recorded:
        known: Recorded = {}
        for wait_s in np.random.default_rng(1).uniform(0.0, 0.15, size=2).tolist():
            killed_once(command, written, wait_s)
            now = written()
            assert known.items() <= now.items()
            known = now
        assert known
        return known

    return killed
