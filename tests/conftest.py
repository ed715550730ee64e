"""Options and fixtures of the test suite."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).parents[1]
Script = Callable[[str], SimpleNamespace]


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
