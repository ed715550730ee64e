"""What a report is made of, and the HTML page made of that: one file that needs no network.

Everything is text until the template writes it, which escapes it; nothing is HTML before that.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Final, Literal

from simcluster._version import __version__
from simcluster.errors import printable
from simcluster.frames.goodput import met, three_digits

Trace = dict[str, Any]
"""A line, bar or set of points as plotly.js takes it; text in it is escaped by `as_label`."""
INK: Final = "ink"
"""In place of a colour: that of the text, which differs between light and dark."""


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str
    kind: Literal["plain", "warning"] = "plain"


@dataclass(frozen=True, slots=True)
class Bullets:
    """A list of short texts."""

    items: Sequence[str]


@dataclass(frozen=True, slots=True)
class Code:
    """Text of a file or a command, as it stands; folded away under a title where it is long."""

    text: str
    title: str = ""


@dataclass(frozen=True, slots=True)
class Value:
    """A cell of a table: what is read, and what it is sorted by."""

    text: str
    key: float | str
    hint: str = ""

    @classmethod
    def number(cls, value: float | None, text: str | None = None, hint: str = "") -> Value:
        """Return the cell of a number; a dash where it is not known."""
        if value is None or math.isnan(value):
            return cls("-", "", hint)
        return cls(f"{value:g}" if text is None else text, value, hint)

    @classmethod
    def digits(cls, value: float | None, scale: float = 1.0) -> Value:
        """Return the cell of a number over `scale`, with three digits."""
        if value is None or math.isnan(value):
            return cls.number(None)
        return cls.number(value / scale, three_digits(value / scale))

    @classmethod
    def share(cls, share: float | None) -> Value:
        """Return the cell of a share of the requests that meet a target (%)."""
        return cls.number(share, None if share is None else met(share))

    @classmethod
    def word(cls, text: str, hint: str = "") -> Value:
        """Return the cell of a text."""
        return cls(text, text, hint)


@dataclass(frozen=True, slots=True)
class Table:
    """A table that the reader can sort by any column."""

    caption: str
    heads: Sequence[str]
    rows: Sequence[Sequence[Value]]
    folded: bool = False

    @property
    def is_number(self) -> list[bool]:
        """Tell which columns hold numbers, which stand to the right."""
        return [
            any(isinstance(row[i].key, float | int) for row in self.rows)
            for i in range(len(self.heads))
        ]


@dataclass(frozen=True, slots=True)
class Choice:
    """One of several states of a chart that the reader can choose between."""

    label: str
    traces: Sequence[Trace]
    layout: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Chart:
    """An interactive picture."""

    title: str
    alt: str
    """What it shows, in a sentence, for who cannot see it."""
    choices: Sequence[Choice]
    """At least one; the first is shown, or that of `first`."""
    layout: Mapping[str, Any]
    """Axes, height: as plotly.js takes them, without colours."""
    asks: str = ""
    """What the choice is of, such as ``"Offered rate"``."""
    first: int = 0
    note: str = ""


def or_nan(value: float | None) -> float:
    """Return a number of a JSON file, which has None in place of NaN."""
    return math.nan if value is None else value


def percent(share: float) -> str:
    """Return a share in per cent with a digit behind the point.

    >>> percent(0.0042)
    '0.4 %'
    """
    return f"{100 * share:.1f} %"


def missed(share: float) -> str:
    """Return the rest of `frames.goodput.met` in per cent: the two add up to 100.

    >>> missed(0.93750)
    '6.3 %'
    """
    return f"{100 - float(met(share)):.1f} %"


Block = Text | Bullets | Code | Table | Chart


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page with a heading."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True, slots=True)
class Page:
    """A report."""

    question: str
    about: Sequence[tuple[str, str]]
    """What is served on what: label and text."""
    answer: Sequence[str]
    """Two sentences."""
    confidence: Sequence[str]
    """How sure that is, and what would change it."""
    sections: Sequence[Section]


def as_label(text: str) -> str:
    """Return `text` as plotly.js shows it literally, for it reads tags and formulas.

    >>> as_label("<b>$x$</b>")
    '&lt;b&gt;&#36;x&#36;&lt;/b&gt;'
    """
    return html.escape(printable(text), quote=False).replace("$", "&#36;")


def to_html(page: Page) -> str:
    """Return the page as HTML: styles, scripts and numbers are in it, and nothing else is loaded.

    A policy in the page forbids the browser to load anything, whatever stands in it.
    """
    charts = {
        f"chart-{i}-{j}": block
        for i, section in enumerate(page.sections)
        for j, block in enumerate(section.blocks)
        if isinstance(block, Chart)
    }
    library, script = _asset("plotly-basic.min.js"), _asset("report.js")
    ids = {id(chart): name for name, chart in charts.items()}
    text: str = _template().render(
        page=page,
        kind=lambda block: type(block).__name__,
        id_of=lambda block: ids[id(block)],
        version=__version__,
        style=_asset("report.css"),
        library=library,
        script=script,
        hashes=" ".join(f"'sha256-{_sha256(text)}'" for text in (library, script)),
        data=_json({name: _plain(chart) for name, chart in charts.items()}),
    )
    return text


def _plain(chart: Chart) -> dict[str, Any]:
    return {
        "first": chart.first,
        "layout": chart.layout,
        "choices": [{"traces": c.traces, "layout": c.layout} for c in chart.choices],
    }


def _json(value: object) -> str:
    """Return JSON that can stand inside of a script element: nothing in it ends that."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def _sha256(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
    """Return a file of the folder ``assets``."""
    path = resources.files("simcluster.report").joinpath("assets", name)
    return path.read_text(encoding="utf-8")


@cache
def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["printable"] = _shown
    return environment.from_string(_asset("page.html.j2"))


def _shown(text: str) -> str:
    """Return text without control characters, but for line ends."""
    return "\n".join(printable(line) for line in text.split("\n"))
