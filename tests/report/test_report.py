"""Reports: whole, self-contained, escaped, and with the figures of the result folder."""

from __future__ import annotations

import json
import math
import re
import shutil
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import simcluster
from helpers.scenarios import small_scenario
from report.conftest import HOSTILE, KINDS
from simcluster.catalog.toml_writer import to_toml
from simcluster.cli import main
from simcluster.errors import DataError
from simcluster.frames.goodput import met, three_digits
from simcluster.report.common import NOT_MODELLED
from simcluster.report.make import page_of, write_report
from simcluster.report.of_runs import answer
from simcluster.report.of_runs import page as comparison_page
from simcluster.report.page import (
    Chart,
    Choice,
    Page,
    Section,
    Table,
    Text,
    Value,
    as_label,
    missed,
    to_html,
)
from simcluster.show.text import comparison_text

ROOT = Path(__file__).parents[2]
MOST_BYTES = 4e6
VOID = {"meta", "img", "link", "br", "hr", "input"}


class Reader(HTMLParser):
    """What a browser would see: elements with their attributes, text, data of scripts."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.data = ""
        self._open: list[str] = []
        self._script: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep it, and that it is open."""
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        self._script = dict(attrs).get("id") if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        """Check that it closes the last that is open."""
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        """Keep what is shown, and the data of the charts."""
        if self._open and self._open[-1] == "script":
            self.data += data if self._script == "charts" else ""
        elif self._open and self._open[-1] != "style":
            self.text.append(data)

    @property
    def words(self) -> str:
        """All text that is shown, blanks put together."""
        return " ".join(" ".join(self.text).split())

    @classmethod
    def of(cls, html: str) -> Reader:
        """Read a page to its end."""
        reader = cls()
        reader.feed(html)
        reader.close()
        assert not reader._open, "an element is not closed"
        return reader


def first_match(pattern: str, html: str) -> str:
    """Return the first part of a page that a pattern fits; dots fit line ends too."""
    match = re.search(pattern, html, re.S)
    assert match is not None, f"nothing fits {pattern}"
    return match[0]


@pytest.fixture(scope="session")
def pages(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the report of each folder, by the command line."""
    place = tmp_path_factory.mktemp("reports")
    for kind, folder in folders.items():
        file = place / f"{kind}.html"
        result = CliRunner().invoke(main, ["report", str(folder), "-o", str(file)])
        assert (result.exit_code, result.output) == (0, f"{file}\n")
    return {kind: (place / f"{kind}.html").read_text(encoding="utf-8") for kind in folders}


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_is_whole_and_loads_nothing(kind: str, pages: dict[str, str]) -> None:
    """No element refers to a file or a host; each chart has data, a title and words for it."""
    html = pages[kind]
    assert len(html.encode()) < MOST_BYTES
    page = Reader.of(html)
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base"), tag
        assert not {"src", "srcset", "href", "data", "action"} & set(attributes) or (
            tag == "a" and str(attributes["href"]).startswith("#")
        )
        assert not [name for name in attributes if name.startswith("on")]
    policy = next(a for t, a in page.elements if a.get("http-equiv"))
    assert "default-src 'none'" in str(policy["content"])
    charts = json.loads(page.data)
    drawn = [a for t, a in page.elements if a.get("class") == "chart"]
    assert [a["id"] for a in drawn] == list(charts)
    assert all(len(str(a["aria-description"])) > 20 for a in drawn)
    assert all(choice["traces"] for chart in charts.values() for choice in chart["choices"])


@pytest.mark.parametrize("kind", KINDS)
def test_a_report_says_what_the_issue_lists(kind: str, pages: dict[str, str]) -> None:
    """Question, answer, confidence, trust, limits, scenario with defaults, command."""
    page = Reader.of(pages[kind])
    words = page.words
    headings = [t for t, _ in page.elements if t in ("h1", "h2")]
    assert headings[0] == "h1"
    assert len(headings) >= 6
    assert "How sure, and what would change it" in words
    assert "Step times" in words
    for limit in NOT_MODELLED:
        assert limit in words
    assert "gpu_memory_utilization = " in words  # a default that no scenario above sets
    assert "simcluster " + {"need": "rank"}.get(kind, kind) in words
    assert "TTFT" in words


def test_what_is_not_modelled_is_what_the_documentation_says() -> None:
    """One list, word for word."""
    text = " ".join((ROOT / "docs" / "limits.md").read_text(encoding="utf-8").split())
    for limit in NOT_MODELLED:
        assert f"- {limit}" in text


@pytest.mark.parametrize("kind", ["run", "compare", "goodput"])
def test_names_of_users_are_shown_and_never_obeyed(kind: str, pages: dict[str, str]) -> None:
    """A strategy named as markup, script end, plotly template and formula is text everywhere."""
    html = pages[kind]
    assert HOSTILE not in html
    page = Reader.of(html)
    assert HOSTILE in page.words
    assert not [t for t, _ in page.elements if t in ("img", "b")]
    texts = [
        text
        for chart in json.loads(page.data).values()
        for choice in chart["choices"]
        for trace in choice["traces"]
        for text in (trace["name"], *map(str, trace["y"]))
    ]
    assert as_label(HOSTILE) in texts
    assert not [text for text in texts if "<" in text]


def test_control_characters_and_formulas_are_text() -> None:
    """A page holds ANSI codes written out, and a formula as it stands, in cells and labels."""
    nasty = '\x1b[31m=cmd|"/C calc"!A0\x07</script><b>'
    chart = Chart(nasty, nasty * 3, [Choice("", [{"name": nasty}])], {"height": 10})
    table = Table(nasty, [nasty], [[Value.word(nasty, nasty)]])
    page = Page(
        nasty, [(nasty, nasty)], [nasty], [nasty], [Section(nasty, [Text(nasty), table, chart])]
    )
    html = to_html(page)
    assert "\x1b" not in html
    assert "\x07" not in html
    assert not [tag for tag, _ in Reader.of(html).elements if tag == "b"]
    shown = '\\x1b[31m=cmd|"/C calc"!A0\\x07</script><b>'
    assert Reader.of(html).words.count(shown) >= 8
    data = json.loads(Reader.of(html).data)  # whole: nothing in it ended the script
    assert data["chart-0-2"]["choices"][0]["traces"][0]["name"] == nasty


def test_scripts_in_a_page_are_those_that_its_policy_allows(pages: dict[str, str]) -> None:
    """Two digests, of exactly the texts between the script tags."""
    import base64
    import hashlib

    html = pages["compare"]
    allowed = set(re.findall(r"'sha256-([^']+)'", html[:2000]))
    scripts = re.findall(r"<script>(.*?)</script>", html, re.S)
    digests = {base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts}
    assert len(scripts) == 2
    assert digests == allowed


def tables(html: str) -> dict[str, list[list[str]]]:
    """Return the rows of every table by its caption."""
    found = {}
    for one in re.findall(r"<table.*?</table>", html, re.S):
        caption = Reader.of(first_match(r"<caption.*?</caption>", one)).words
        rows = re.findall(r"<tr>(.*?)</tr>", one, re.S)
        cells = [re.findall(r"<t[hd][^>]*>.*?</t[hd]>", row, re.S) for row in rows]
        found[caption] = [[Reader.of(cell).words for cell in row] for row in cells]
    return found


def test_the_table_of_a_comparison_is_its_goodputs(
    folders: dict[str, Path], pages: dict[str, str]
) -> None:
    """As `Comparison.goodput` has them, and costs by hand."""
    comparison = simcluster.read(folders["compare"])
    heads, *rows = next(iter(tables(pages["compare"]).values()))
    by_name = {row[0]: dict(zip(heads, row, strict=True)) for row in rows}
    assert set(by_name) == {"vLLM", "DistServe", HOSTILE}
    for own in comparison.goodput.to_dict("records"):
        row = by_name[own["strategy"]]
        sign = {"": "", "above": ">= ", "below": "< "}[own["censored"]]
        assert row["Goodput (req/s)"] == sign + three_digits(own["goodput_rps"])
        assert float(row["USD/h"]) == 2.0 * own["mean_gpus"]
        # All answers have 20 tokens.
        per_million = 2.0 * own["mean_gpus"] / (own["goodput_rps"] * 20 * 3600 / 1e6)
        assert float(row["USD/M output tokens"]) == pytest.approx(per_million, rel=0.02)


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a comparison whose targets have shares of their own; one strategy reaches no rate."""
    place = tmp_path_factory.mktemp("apart") / "apart"
    tables = small_scenario(
        {"name": "one", "kind": "nodg"},
        {"name": "ring", "kind": "padg"},
        cluster={"price_per_gpu_hour": 2.0},
        workload={"num_requests": 60},
        slo={
            "ttft_s": 0.2,
            "tpot_s": 0.008,
            "attainment": 0.99,
            "criterion": "marginal",
            "percentiles": {"ttft": 80, "tpot": 99},
        },
        sweep={"rates_rps": [2, 12, 30]},
    )
    simcluster.compare(simcluster.resolve(tables), out=place, jobs=1)
    return place


def test_a_goodput_that_is_not_reached_costs_nothing_known(apart: Path) -> None:
    """Below the lowest rate of the sweep there is no rate to divide the price by."""
    goodput = simcluster.read(apart).goodput.set_index("strategy")
    assert "below" in set(goodput["censored"]), "the scenario is not of use"
    heads, *rows = next(iter(tables(to_html(page_of(apart))).values()))
    for row in (dict(zip(heads, row, strict=True)) for row in rows):
        below = goodput.loc[row["Strategy"], "censored"] == "below"
        assert (row["USD/M output tokens"] == "-") == below
        assert row["per GPU (req/s)"].startswith("< ") == below


def test_the_terminal_and_the_report_give_the_same_error() -> None:
    """Of one run per rate: the largest half-width over its goodput, rounded up to a per cent."""
    slo = {"ttft_s": 0.2, "tpot_s": 0.05, "attainment": 0.9}
    strategies = {"name": "one", "kind": "nodg"}, {"name": "two", "kind": "fudg"}
    tables = small_scenario(*strategies, workload={"num_requests": 300}, slo=slo)
    rates = {"sweep.rates_rps": [1, 4, 8, 16, 64]}
    comparison = simcluster.compare(simcluster.resolve(tables, rates), jobs=1)
    rows = comparison.goodput.to_dict("records")
    errors = [100 * row["goodput_rps_error"] / row["goodput_rps"] for row in rows]
    known = [error for error in errors if error == error]
    assert known, "the scenario is not of use"
    report = " ".join(comparison_page(comparison, Path()).confidence)
    said = [
        re.findall(r"goodput.*? is good to about (\d+) %", text.replace("\n", " "))
        for text in (comparison_text(comparison), report)
    ]
    assert said == [[f"{math.ceil(max(known))}"]] * 2


def test_a_goodput_that_is_not_reached_has_no_bar(apart: Path) -> None:
    """Nor a place in the order: the bound of a strategy that fails may exceed a goodput."""
    goodput = simcluster.read(apart).goodput.set_index("strategy")
    blocks = [b for section in page_of(apart).sections for b in section.blocks]
    chart = next(b for b in blocks if isinstance(b, Chart) and b.title.startswith("Goodput:"))
    for choice in chart.choices:
        (bars,) = choice.traces
        drawn = zip(bars["y"], bars["x"], strict=True)
        lengths = {label.split(":")[0]: (label, x) for label, x in drawn}
        for name, censored in goodput["censored"].items():
            label, length = lengths[str(name)]
            assert (length is None) == (censored == "below")
            assert (": &lt; " in label) == (censored == "below")
    for name in goodput.index[goodput["censored"] == "below"]:
        said = chart.alt.partition("Less than the lowest rate of the sweep: ")
        assert name in said[2].partition(".")[0]
        assert name not in said[0]


def test_shares_of_each_target_are_not_called_the_same(apart: Path) -> None:
    """80 % of the TTFT and 99 % of the TPOT are no 99 % of the requests within the targets."""
    words = " ".join(page_of(apart).answer)
    assert "99 % of the requests within the targets" not in words
    assert "the targets" in words


@pytest.mark.parametrize("percentiles", [None, {"ttft": 80, "tpot": 99}])
def test_strategies_at_one_rate_are_answered(percentiles: Any) -> None:
    """Shares beside those that are wanted, of each target where each has its own."""
    slo = {"ttft_s": 0.2, "tpot_s": 0.05, "attainment": 0.9}
    if percentiles:
        slo |= {"attainment": 0.99, "criterion": "marginal", "percentiles": percentiles}
    one, two = {"name": "one", "kind": "nodg"}, {"name": "two", "kind": "fudg"}
    tables = small_scenario(one, two, workload={"num_requests": 40}, slo=slo)
    comparison = simcluster.compare(simcluster.resolve(tables, {"sweep.rates_rps": [4]}), jobs=1)
    words = answer(comparison)
    if percentiles is None:
        assert "% of the requests are within them, 90 % wanted" in words
    else:
        assert "within the TTFT (80 % wanted)" in words
        assert "within the TPOT (99 % wanted)" in words
    share = comparison.sweep.set_index("strategy").loc["two", "slo_attainment"]
    assert f"two {met(share)} %" in words or f"one {met(share)} %" in words


def test_the_limit_of_a_need_is_that_of_the_plan_which_is_answered(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """The first of the ranking sustains the most; the cheapest plan may be another."""
    folder = tmp_path / "need"
    shutil.copytree(folders["need"], folder)
    result = json.loads((folder / "ranking.json").read_text())
    cheapest = result["need"]["plans"][0]["name"]
    own = next(row for row in result["candidates"] if row["name"] == cheapest)
    largest = {**own, "name": "9m-tp8", "bottleneck": "link", "why": "links are full"}
    result["candidates"].insert(0, largest)
    result["notes"] = [
        f"{name}: meets the targets at its goodput, but not at every lower rate: at 1 req/s 70 % "
        "of the requests are within them."
        for name in ("9m-tp8", cheapest)
    ]
    (folder / "ranking.json").write_text(json.dumps(result))
    page = page_of(folder)
    words = " ".join(page.confidence)
    assert f"What limits {cheapest} is {own['bottleneck']} (" in words
    assert "links are full" not in words
    assert page.answer[2:] == [result["notes"][1]]


def test_percentiles_of_a_ranking_are_those_of_each_target(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """`rank` takes each latency at the percentile of its own target, so the axes say which."""
    folder = tmp_path / "rank"
    shutil.copytree(folders["rank"], folder)
    file = folder / "scenario.toml"
    document = tomllib.loads(file.read_text())
    document["slo"] |= {"criterion": "marginal", "percentiles": {"ttft": 80, "tpot": 99}}
    file.write_text(to_toml(document))
    blocks = [block for section in page_of(folder).sections for block in section.blocks]
    chart = next(b for b in blocks if isinstance(b, Chart) and "TTFT against" in b.title)
    titles = [chart.layout[key]["title"]["text"] for key in ("xaxis", "yaxis")]
    assert titles == ["P99 of the TPOT (ms)", "P80 of the TTFT (s)"]


def test_a_search_shows_the_share_of_each_target_that_is_set(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Of those of the scenario and no others, rounded down."""
    folder = tmp_path / "goodput"
    shutil.copytree(folders["goodput"], folder)
    document = tomllib.loads((folder / "scenario.toml").read_text())
    document["slo"] |= {"e2el_s": 3.0}
    del document["slo"]["tpot_s"]
    (folder / "scenario.toml").write_text(to_toml(document))
    result = json.loads((folder / "goodput.json").read_text())
    for row in result["goodput"]:
        row["attainment"] = {"ttft": 0.8999, "tpot": 0.5, "itl": 0.5, "e2el": 0.93750}
    (folder / "goodput.json").write_text(json.dumps(result))
    heads, row, *_ = next(iter(tables(to_html(page_of(folder))).values()))
    shown = {head: cell for head, cell in zip(heads, row, strict=True) if "met (%)" in head}
    assert shown == {"TTFT met (%)": "89.9", "E2E met (%)": "93.7"}


def test_shares_are_rounded_down_everywhere() -> None:
    """As in the terminal: 285 of 304 are 93.75 %; what is missing adds up to 100 with it."""
    assert (met(285 / 304), missed(285 / 304)) == ("93.7", "6.3 %")
    assert (met(0.8996), met(0.9999), met(0.29), missed(1.0)) == ("89.9", "99.9", "29.0", "0.0 %")


def test_turns_are_shown_of_the_time_that_the_run_has(folders: dict[str, Path]) -> None:
    """A run of a few seconds has no chart of a minute."""
    comparison = simcluster.read(folders["run"])
    spans = comparison.frames(comparison.cells()[0])["spans"]
    charts = [
        block
        for section in page_of(folders["run"]).sections
        for block in section.blocks
        if isinstance(block, Chart) and "Rolling activation" in block.title
    ]
    assert charts
    for chart in charts:
        start, end = chart.layout["xaxis"]["range"]
        assert min(spans["start_s"]) <= start < end <= max(spans["end_s"])


def test_distributions_are_those_of_the_requests(
    folders: dict[str, Path], pages: dict[str, str]
) -> None:
    """At every drawn TTFT the curve is the share of the requests that are as fast."""
    comparison = simcluster.read(folders["compare"])
    charts = json.loads(Reader.of(pages["compare"]).data)
    chart = next(c for c in charts.values() if len(c["choices"]) > 6)
    options = re.findall(r"<option[^>]*>(.*?)</option>", pages["compare"])
    assert "TTFT at 12 requests/s" in options
    ttft = comparison.requests("vLLM", 12.0, 0)["ttft_s"].to_numpy()
    curves = [
        trace
        for choice in chart["choices"]
        for trace in choice["traces"]
        if trace["name"] == "vLLM" and "TTFT" in choice["layout"]["xaxis"]["title"]["text"]
    ]
    assert len(curves) == 3
    found = [
        np.allclose([np.mean(ttft <= x * (1 + 6e-6)) for x in curve["x"]], curve["y"], atol=1e-4)
        for curve in curves
    ]
    assert sum(found) == 1


def test_the_parts_of_the_time_add_up(folders: dict[str, Path], pages: dict[str, str]) -> None:
    """The bars of a strategy are as long together as its mean TTFT and end-to-end latency."""
    comparison = simcluster.read(folders["run"])
    requests = comparison.requests()
    charts = json.loads(Reader.of(pages["run"]).data)
    stack = next(c for c in charts.values() if c["layout"].get("barmode") == "stack")
    for choice, metric in zip(stack["choices"], ("ttft_s", "e2el_s"), strict=True):
        total = sum(trace["x"][0] for trace in choice["traces"])
        assert total == pytest.approx(requests[metric].mean(), rel=1e-3)


def test_answers_name_the_best_and_what_it_costs(
    folders: dict[str, Path], pages: dict[str, str]
) -> None:
    """From the files of the folders, not from the page's own code."""

    def answer(kind: str) -> str:
        return Reader.of(first_match(r'<p class="answer">.*?</p>', pages[kind])).words

    ranking = json.loads((folders["rank"] / "ranking.json").read_text())
    best = ranking["candidates"][0]
    assert answer("rank").startswith(f"{best['name']} ({best['strategy']}) sustains the most")
    assert three_digits(best["goodput_rps"]) in answer("rank")
    need = json.loads((folders["need"] / "ranking.json").read_text())["need"]["plans"][0]
    assert need["name"] in answer("need")
    assert f"{three_digits(need['cost_per_hour'])} USD per hour" in answer("need")
    goodput = json.loads((folders["goodput"] / "goodput.json").read_text())["goodput"]
    known = [row for row in goodput if row["goodput_rps"]]
    top = max(known, key=lambda row: row["goodput_rps"]["value"])
    assert answer("goodput").startswith(f"{top['strategy']} sustains the most")
    chosen = json.loads((folders["cooptimize"] / "cooptimize.json").read_text())["chosen"]
    assert f"{three_digits(chosen['cost_per_hour'])} USD per hour" in answer("cooptimize")


def test_a_ranking_says_why_each_loser_loses(
    folders: dict[str, Path], pages: dict[str, str]
) -> None:
    """A row with the figures for every candidate."""
    rows = tables(pages["rank"])["What keeps each candidate from sustaining more"][1:]
    ranking = json.loads((folders["rank"] / "ranking.json").read_text())
    assert [row[0] for row in rows] == [c["name"] for c in ranking["candidates"]]
    assert [row[3] for row in rows] == [c["why"] for c in ranking["candidates"]]


@pytest.mark.parametrize("kind", ["run", "compare"])
def test_the_command_of_a_report_repeats_the_result(
    kind: str, folders: dict[str, Path], pages: dict[str, str], tmp_path: Path
) -> None:
    """As it stands in the page, but for the folder it writes to."""
    import shlex

    line = Reader.of(first_match(r"<pre[^>]*>simcluster .*?</pre>", pages[kind])).words
    words = shlex.split(line)[1:]
    words[words.index("-o") + 1] = str(tmp_path / "again")
    result = CliRunner().invoke(main, words, catch_exceptions=False)
    assert result.exit_code == 0
    name = {"run": "requests.parquet", "compare": "sweep.parquet"}[kind]
    assert (tmp_path / "again" / name).read_bytes() == (folders[kind] / name).read_bytes()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({}, "is not a result folder"),
        ({"goodput.json": "{}", "scenario.toml": "SCENARIO"}, "is damaged or of another version"),
        ({"goodput.json": "[1", "scenario.toml": "SCENARIO"}, "cannot be read"),
        ({"ranking.json": "{}"}, "a version before 0.2 wrote it"),
        ({"meta.json": "{}"}, "is not a result folder"),
    ],
)
def test_a_folder_that_is_no_result_is_one_line(
    content: dict[str, str], words: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    """With what to do; no report is written."""
    place = tmp_path / "some"
    place.mkdir()
    for name, text in content.items():
        if text == "SCENARIO":
            shutil.copy(folders["goodput"] / "scenario.toml", place / name)
        else:
            (place / name).write_text(text)
    result = CliRunner().invoke(main, ["report", str(place), "-o", str(tmp_path / "a.html")])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert words in result.stderr
    assert not (tmp_path / "a.html").exists()


def test_a_report_without_a_name_is_one_line(folders: dict[str, Path]) -> None:
    """No traceback, and nothing beside the folder."""
    result = CliRunner().invoke(main, ["report", str(folders["run"]), "-o", ""])
    assert result.exit_code == 1
    assert result.stderr.count("\n") == 1
    assert "is no file" in result.stderr


def test_a_missing_column_and_an_unwritable_file_are_one_line(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    """Named by file."""
    broken = tmp_path / "broken"
    shutil.copytree(folders["run"], broken)
    import pyarrow.parquet as pq

    kept = pq.read_table(broken / "requests.parquet").drop_columns(["first_token_s"])
    pq.write_table(kept, broken / "requests.parquet")
    with pytest.raises(DataError, match=r"requests\.parquet: has no column first_token_s"):
        page_of(broken)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_report(folders["run"], tmp_path / "file" / "report.html")
    (tmp_path / "there").mkdir()
    with pytest.raises(DataError, match="cannot be written"):
        write_report(folders["run"], tmp_path / "there")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("damage", [{"candidates": []}, {"candidates": [[]]}, {"need": []}])
def test_a_damaged_ranking_is_one_line(
    damage: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    """An empty list, or a list in the place of a table."""
    folder = tmp_path / "rank"
    shutil.copytree(folders["rank"], folder)
    result = json.loads((folder / "ranking.json").read_text()) | damage
    (folder / "ranking.json").write_text(json.dumps(result))
    with pytest.raises(DataError, match="is damaged or of another version"):
        page_of(folder)


def test_a_run_without_finished_requests_has_a_report(tmp_path: Path) -> None:
    """It says that there are none, and draws what there is."""
    from helpers.scenarios import small_scenario

    tables: dict[str, Any] = small_scenario(
        {"name": "a", "kind": "nodg"},
        workload={
            "num_requests": 3,
            "rate_rps": 1,
            "lengths": {"kind": "fixed", "prompt_len": 9000, "output_len": 2},
        },
    )
    simcluster.compare(simcluster.resolve(tables), out=tmp_path / "none")
    page = Reader.of(to_html(page_of(tmp_path / "none")))
    assert "3 of 3 requests were rejected" in page.words


@pytest.mark.parametrize("output_len", [2, 900])
def test_charts_over_time_say_what_they_leave_out(output_len: int, tmp_path: Path) -> None:
    """The end of a run that is long after its last arrival is cut, and said."""
    lengths = {"kind": "fixed", "prompt_len": 100, "output_len": output_len}
    tables: dict[str, Any] = small_scenario(
        {"name": "a", "kind": "nodg"},
        workload={"num_requests": 30, "rate_rps": 20, "lengths": lengths},
    )
    comparison = simcluster.compare(simcluster.resolve(tables), out=tmp_path / "one", jobs=1)
    requests = comparison.requests()
    end, arrival = requests["last_output_s"].max(), requests["arrival_s"].max()
    assert (end > 1.5 * arrival) == (output_len == 900), "the scenario is not of use"
    blocks = [block for section in page_of(tmp_path / "one").sections for block in section.blocks]
    chart = next(b for b in blocks if isinstance(b, Chart) and "over time" in b.title)
    said = f"Not shown: {1.5 * arrival:.0f} to {end:.0f} s, when no request arrives."
    assert chart.note == (said if output_len == 900 else "")


def test_the_library_in_the_package_is_the_one_that_is_named() -> None:
    """Whole and unchanged: its digest stands in docs/decisions.md, beside version and licence."""
    import hashlib

    file = ROOT / "simcluster" / "report" / "assets" / "plotly-basic.min.js"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert digest in (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    assert "MIT License" in (file.parent / "plotly-LICENSE").read_text(encoding="utf-8")
