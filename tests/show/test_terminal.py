"""Lines of text on a terminal."""

from __future__ import annotations

import pytest

from simcluster.show import terminal


@pytest.mark.parametrize("width", range(16, 60))
def test_numbers_and_commands_are_not_torn(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the width, and no word is lost."""
    monkeypatch.setattr(terminal, "text_width", lambda: width)
    text = "TTFT 4 %, TPOT 12 % off in 18 runs; see `simcluster check` for 3.5 % of them"
    lines = [line.strip() for line in terminal.filled(text).splitlines()]
    assert " ".join(lines) == text
    assert not any(line.startswith("%") for line in lines)
    assert any("`simcluster check`" in line for line in lines)
