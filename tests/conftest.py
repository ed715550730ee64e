"""Options of the test suite."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--update-golden``: rewrite the golden traces, whose diff is then reviewed."""
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden/*.txt")
