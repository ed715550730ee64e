"""The page in headless Chromium: a question from facts to report, one change, the difference.

Skipped with a reason where there is no Chromium, no Playwright or no NiceGUI: ``make browser`` runs
it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("nicegui", reason="the extra ui is not installed")
pytest.importorskip("tomlkit", reason="the extra ui is not installed")

from report.test_browser import ARGUMENTS, CHROMIUM, sync_api
from ui.test_jobs import SMALL

TIMEOUT_MS = 240_000
"""Other work may have the machine; nothing is concluded from how long something takes."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the page."""
    return tmp_path_factory.mktemp("ui")


@pytest.fixture(scope="module")
def address(place: Path) -> Iterator[str]:
    """Where the page is served, by the command that a user calls."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = place / "small.toml"
    file.write_text(SMALL, encoding="utf-8")
    words = ["ui", str(file), "--no-open", "--port", str(port), "--folder", str(place / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "simcluster", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # NiceGUI takes a started pytest for its own test mode.
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST")},
    )
    url = f"http://127.0.0.1:{port}/"
    limit = time.monotonic() + 240
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=5).close()
            break
        except OSError:
            assert process.poll() is None, process.stdout and process.stdout.read()
            assert time.monotonic() < limit
            time.sleep(0.2)
    yield url
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=240)
    assert "Traceback" not in said


@pytest.fixture
def page(address: str) -> Iterator[Any]:
    """An open page that asks nothing of the network and says nothing to the console."""
    said: list[str] = []
    asked: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        tab = browser.new_page(viewport={"width": 1500, "height": 1000})
        tab.set_default_timeout(TIMEOUT_MS)
        tab.on("console", lambda m: said.append(m.text) if m.type == "error" else None)
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(address)
        verdict(tab, "Step times of").wait_for()  # the scenario is checked
        yield tab
        browser.close()
    own = (address, address.replace("http:", "ws:"), "data:", "blob:")
    assert [url for url in asked if not url.startswith(own)] == []
    assert said == []


def verdict(page: Any, words: str) -> Any:
    """Return what the page says of the scenario, once these words are in it."""
    return page.locator(".verdict", has_text=words)


def answered(page: Any, title: str) -> None:
    """Press Answer, and wait for the report of this title."""
    page.get_by_role("button", name="Answer").click()
    page.locator(f'iframe[title="Report of {title}"]').wait_for()


def test_no_hint_lies_over_another_box(page: Any) -> None:
    """Also in a narrow window, where a hint takes two lines."""
    for width in (1500, 900):
        page.set_viewport_size({"width": width, "height": 1000})
        page.wait_for_timeout(300)
        hints = [one.bounding_box() for one in page.locator(".q-field__bottom").all()]
        boxes = [one.bounding_box() for one in page.locator(".q-field__control").all()]
        hints, boxes = ([one for one in own if one] for own in (hints, boxes))
        assert len(hints) >= 4
        assert not [(hint, box) for hint in hints for box in boxes if _overlap(hint, box)]


def _overlap(one: dict[str, float], other: dict[str, float]) -> bool:
    """Whether two rectangles have more than an edge in common."""
    return all(
        one[at] + one[size] > other[at] + 1 and other[at] + other[size] > one[at] + 1
        for at, size in (("x", "width"), ("y", "height"))
    )


def test_from_a_scenario_to_its_report_and_what_a_change_does(page: Any, place: Path) -> None:
    """A key changed in the form: in the file, in the second report, and in the difference."""
    answered(page, "1 compare")
    report = page.frame_locator("iframe")
    report.get_by_role("heading", name="llama-3.1-8b on 2 x A100").wait_for()
    report.locator(".chart .trace").first.wait_for()

    page.get_by_role("tab", name="All keys").click()
    gpu = page.get_by_label("gpu", exact=True)
    gpu.fill("H100")
    gpu.press("Tab")
    verdict(page, "Step times of H100").wait_for()
    page.get_by_role("tab", name="File").click()
    page.locator(".cm-content", has_text='gpu = "H100"').wait_for()
    answered(page, "2 compare")
    page.frame_locator("iframe").get_by_role("heading", name="2 x H100").wait_for()
    assert 'gpu = "H100"' in (place / "out" / "2-compare.toml").read_text(encoding="utf-8")

    page.get_by_label("What differs from").click()
    page.locator(".q-menu").get_by_text("1 compare").click()
    page.get_by_role("button", name="Show differences").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_text("cluster.gpu").wait_for()
    dialog.get_by_role("button", name="Close").click()

    page.get_by_role("button", name="1 compare").click()
    page.get_by_role("button", name="Take its scenario").click()
    verdict(page, "Step times of A100").wait_for()


def test_facts_become_a_scenario(page: Any) -> None:
    """And what is wrong with them is said."""
    page.get_by_label("GPU", exact=True).fill("no such")
    page.get_by_role("button", name="Write the scenario").click()
    page.get_by_text("no GPU of this name").or_(page.get_by_text("no such")).first.wait_for()
    page.get_by_label("GPU", exact=True).fill("L40S")
    page.get_by_role("button", name="Write the scenario").click()
    verdict(page, "Step times of L40S").wait_for()


def test_files_go_up_and_down(page: Any, tmp_path: Path) -> None:
    """A scenario, one that is wrong, a trace; and the file that is shown."""
    page.get_by_role("tab", name="File").click()
    own = tmp_path / "own.toml"
    own.write_text(SMALL.replace("A100", "RTX 4090"), encoding="utf-8")
    uploads = page.locator("input[type=file]")
    uploads.nth(0).set_input_files(own)
    verdict(page, "Step times of RTX 4090").wait_for()
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert Path(download.value.path()).read_text(encoding="utf-8") == own.read_text("utf-8")

    own.write_text(SMALL.replace("tpot_s", "tpot_z"), encoding="utf-8")
    uploads.nth(0).set_input_files(own)
    verdict(page, "slo.tpot_z = 0.04: is not a key of [slo]").wait_for()

    trace = tmp_path / "own trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,100,10\n0.5,200,20\n", "utf-8")
    own.write_text(SMALL, encoding="utf-8")
    uploads.nth(0).set_input_files(own)
    verdict(page, "Step times of A100").wait_for()
    uploads.nth(1).set_input_files(trace)
    page.locator(".cm-content", has_text="own trace.csv").wait_for()
    verdict(page, "Requests: trace").wait_for()


def test_a_refusal_is_shown_and_nothing_breaks(page: Any) -> None:
    """What the command says stands above the answer that is not there."""
    page.get_by_label("Question").click()
    page.get_by_role("option", name="What happens in one run?").click()
    page.get_by_label("Strategy (the first").fill("nobody")
    page.get_by_role("button", name="Answer").click()
    page.get_by_text("error: ").first.wait_for()
    assert page.locator("iframe").count() == 0
