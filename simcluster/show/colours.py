"""Colours of strategies, the same in pictures and reports."""

from __future__ import annotations

from typing import Final

COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette for all kinds of colour vision, without its yellow (pale on white)."""
