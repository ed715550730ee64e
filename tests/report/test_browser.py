"""Reports in headless Chromium: they draw, controls work, nothing is said or asked for.

Skipped with a reason where there is no Chromium (Debian's package ``chromium``, or the environment
variable CHROMIUM) or no Playwright (``pip install -e ".[browser]"``): ``make browser`` runs them.
"""

from __future__ import annotations

import io
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from report.conftest import HOSTILE, KINDS
from simcluster.report.make import write_report

CHROMIUM = shutil.which(os.environ.get("CHROMIUM", "chromium"))
if CHROMIUM is None:
    pytest.skip("there is no Chromium (CHROMIUM)", allow_module_level=True)
sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A browser for all tests."""
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield found
        found.close()


class Tab:
    """An open report: the page, what it said, what it asked for."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.said.append("dialog"), dialog.dismiss()))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_function("document.documentElement.dataset.drawnMs")

    def close_quietly(self, file: Path) -> None:
        """Check that it said nothing and asked for nothing but itself; close it."""
        self.context.close()
        assert self.said == []
        assert [url for url in self.asked if not url.startswith(("data:", "blob:"))] == [
            file.as_uri()
        ]


@pytest.fixture(scope="module")
def files(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the report of every kind."""
    place = tmp_path_factory.mktemp("pages")
    return {kind: write_report(folders[kind], place / f"{kind}.html") for kind in KINDS}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_report_draws_all_its_charts(
    kind: str, scheme: str, browser: Any, files: dict[str, Path]
) -> None:
    """Every chart has something in it, in both schemes; no error, no request, no wide page."""
    tab = Tab(browser, files[kind], color_scheme=scheme)
    charts = tab.page.locator(".chart")
    assert charts.count() >= 1
    for i in range(charts.count()):
        assert charts.nth(i).locator(".trace path, .trace rect, .point path").count() > 0, i
    assert tab.page.evaluate("document.documentElement.dataset.theme") == scheme
    assert tab.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    tab.close_quietly(files[kind])


IMAGES = Path(__file__).parent / "images"
"""Screenshots, made small; ``SIMCLUSTER_DRAW_SCREENSHOTS=1`` replaces them: look at them."""
SMALL = (96, 48)
LEAST_ALIKE = 0.75


def small(png: bytes) -> Image.Image:
    """Return a screenshot in grey, so small that smoothing hardly matters."""
    return Image.open(io.BytesIO(png)).convert("L").resize(SMALL, Image.Resampling.BOX)


def likeness(one: Image.Image, other: Image.Image) -> float:
    """Return the correlation of the brightness of two pictures, -1 to 1."""
    both = [np.asarray(image, dtype=np.float64).ravel() for image in (one, other)]
    return float(np.corrcoef(both)[0, 1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_chart_looks_as_it_did(kind: str, browser: Any, files: dict[str, Path]) -> None:
    """Against a picture that somebody has looked at."""
    tab = Tab(browser, files[kind], color_scheme="light", viewport={"width": 1000, "height": 800})
    # Inside the axes: what stands around them depends on fonts.
    inside = tab.page.locator(".chart").first.locator(".nsewdrag").first.bounding_box()
    found = small(tab.page.screenshot(full_page=True, clip=inside))
    tab.close_quietly(files[kind])
    if os.environ.get("SIMCLUSTER_DRAW_SCREENSHOTS"):
        found.save(IMAGES / f"{kind}.png")
    assert found.getextrema()[0] < 250, "nothing is drawn"
    assert likeness(found, Image.open(IMAGES / f"{kind}.png")) > LEAST_ALIKE


def test_charts_of_other_kinds_do_not_look_alike() -> None:
    """The comparison would notice another chart."""
    images = [Image.open(IMAGES / f"{kind}.png") for kind in KINDS]
    for one, other in itertools.combinations(images, 2):
        assert likeness(one, other) < LEAST_ALIKE


def test_tables_sort_both_ways_by_mouse_and_keyboard(browser: Any, files: dict[str, Path]) -> None:
    """By a number and by a text; a reader of the screen hears which way."""
    tab = Tab(browser, files["compare"])
    table = tab.page.locator("table.sortable").first
    head = table.locator("th", has_text="TTFT P95").first

    def column(number: int) -> list[str]:
        cells: list[str] = table.locator(f"tbody tr > :nth-child({number})").all_inner_texts()
        return cells

    place = table.locator("thead th").all_inner_texts().index(head.inner_text()) + 1
    head.locator("button").click()
    values = [float(text) for text in column(place)]
    assert values == sorted(values, reverse=True)
    assert head.get_attribute("aria-sort") == "descending"
    head.locator("button").press("Enter")
    assert [float(text) for text in column(place)] == sorted(values)
    assert head.get_attribute("aria-sort") == "ascending"
    first = table.locator("thead th").first
    first.locator("button").click()
    names = column(1)
    assert names == sorted(names, key=str.lower)
    assert head.get_attribute("aria-sort") is None
    tab.close_quietly(files["compare"])


def test_a_choice_changes_its_chart(browser: Any, files: dict[str, Path]) -> None:
    """The axis of the distributions follows, and so does what is drawn."""
    tab = Tab(browser, files["compare"])
    select = tab.page.locator("select", has=tab.page.locator("option", has_text="ITL at")).first
    chart = tab.page.locator("#" + str(select.get_attribute("data-chart")))
    before = chart.locator(".xtitle").text_content()
    assert before == "TTFT (s)"
    curves = chart.locator(".trace path").first.get_attribute("d")
    label = select.locator("option", has_text="ITL at").first.inner_text()
    select.select_option(label=label)
    tab.page.wait_for_function(
        "id => document.querySelector(`#${id} .xtitle`).textContent === 'ITL (ms)'",
        arg=str(select.get_attribute("data-chart")),
    )
    assert chart.locator(".trace path").first.get_attribute("d") != curves
    tab.close_quietly(files["compare"])


def test_a_hostile_name_is_read_as_it_stands(browser: Any, files: dict[str, Path]) -> None:
    """In the legend and the table: no markup, no dialog, no request."""
    tab = Tab(browser, files["compare"])
    assert HOSTILE in tab.page.locator("table.sortable tbody th").all_inner_texts()
    legends = tab.page.locator(".chart .legendtext").all_text_contents()
    assert any(HOSTILE in text.replace("\u00a0", " ") for text in legends), legends[:5]
    assert tab.page.locator("main img").count() == 0
    tab.close_quietly(files["compare"])


def test_the_theme_button_and_paper(browser: Any, files: dict[str, Path]) -> None:
    """A button turns the colours; on paper they are light, and nothing is folded away."""
    tab = Tab(browser, files["run"], color_scheme="light")
    tab.page.locator("#theme").click()
    assert tab.page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert tab.page.locator("#theme").get_attribute("aria-pressed") == "true"
    paper = tab.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(20, 23, 27)"
    tab.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert tab.page.evaluate("document.documentElement.dataset.theme") == "light"
    assert tab.page.locator("details:not([open])").count() == 0
    tab.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert tab.page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert len(tab.page.pdf()) > 20_000
    tab.close_quietly(files["run"])


def test_words_have_contrast(browser: Any, files: dict[str, Path]) -> None:
    """At least 4.5 to 1 between text and paper in both schemes (WCAG 2.1, 1.4.3)."""
    code = """() => {
      const style = getComputedStyle(document.documentElement);
      const value = (name) => style.getPropertyValue(name).trim();
      const light = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16) / 255)
        .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
      const ratio = (a, b) => {
        const [x, y] = [light(value(a)), light(value(b))].sort((p, q) => q - p);
        return (x + 0.05) / (y + 0.05);
      };
      const pairs = [["--ink", "--paper"], ["--soft", "--paper"], ["--ink", "--panel"],
        ["--soft", "--panel"], ["--accent", "--paper"], ["--warn-ink", "--warn"]];
      return pairs.map(([a, b]) => ratio(a, b));
    }"""
    for scheme in ("light", "dark"):
        tab = Tab(browser, files["run"], color_scheme=scheme)
        assert min(tab.page.evaluate(code)) >= 4.5
        tab.close_quietly(files["run"])
