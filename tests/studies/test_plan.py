"""From a few facts to a scenario and to an answer."""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from simcluster import catalog
from simcluster.cli import main
from simcluster.errors import ConfigError, DataError
from simcluster.report.common import within_targets
from simcluster.scenario.draft import SPREAD, Draft, Target
from simcluster.scenario.file import resolve
from simcluster.scenario.scenario import Scenario
from simcluster.studies import plan
from simcluster.studies.plan import enough, scenario_of, written
from simcluster.studies.rank.plans import TooFewGpusError
from simcluster.workload.lengths import LognormalLengths, TabulatedLengths

FACTS = ["--model", "llama-2-7b", "--gpu", "A100", "--prompt", "400", "--output", "20"]
TARGETS = ["--ttft-p95", "300ms", "--tpot-p95", "0.05s"]
TTFT = Target(latency="ttft", percentile=95, limit_s=1.0)


def call(*arguments: object, given: str | None = None) -> Result:
    """Call the command line."""
    return CliRunner().invoke(main, [str(a) for a in arguments], input=given)


def draft(**changes: object) -> Draft:
    """Return a draft of a small model."""
    facts = {"model": "llama-2-7b", "gpu": "A100", "targets": (TTFT,), "rate_rps": 5.0}
    return Draft(**{**facts, **changes})  # type: ignore[arg-type]


def test_init_writes_what_was_said_and_nothing_else(tmp_path: Path) -> None:
    """Facts stand in the file as given; the file runs; an existing one is not overwritten."""
    file = tmp_path / "mine.toml"
    result = call("init", *FACTS, *TARGETS, "--rate", 12, "--price", 1.5, "-o", file)
    assert result.exit_code == 0, result.output
    tables = tomllib.loads(file.read_text())
    assert tables["model"] == {"name": "llama-2-7b"}
    assert tables["slo"] == {
        "ttft_s": 0.3, "tpot_s": 0.05, "attainment": 0.95, "criterion": "marginal",
    }  # fmt: skip
    lengths = tables["workload"]["lengths"]
    assert (lengths["prompt_median"], lengths["output_median"]) == (400, 20)
    assert tables["cluster"]["price_per_gpu_hour"] == 1.5
    assert 12.0 in tables["sweep"]["rates_rps"]
    assert [s["kind"] for s in tables["strategy"]] == ["nodg", "padg", "fudg"]
    first = file.read_text().splitlines()[0]
    assert first.startswith("# Made by `simcluster init --model llama-2-7b --gpu A100 --prompt 400")
    assert "--ttft-p95 0.3s" in first
    for command in ("check", "show"):
        assert call(command, file).exit_code == 0
    again = call("init", *FACTS, *TARGETS, "-o", file)
    assert (again.exit_code, "exists" in again.stderr) == (1, True)


def test_the_command_in_a_drafted_file_writes_it_again(tmp_path: Path) -> None:
    """Word for word."""
    import shlex

    text = call("init", *FACTS, *TARGETS, "--rate", 12.5, "--spread", 0).stdout
    line = text.splitlines()[0].split("`")[1]
    assert call(*shlex.split(line)[1:]).stdout == text


def test_lengths_have_the_medians_and_the_spread_that_were_given() -> None:
    """And with none all requests are alike."""
    scenario = scenario_of(draft(prompt_len=700, output_len=90, spread=0.5))
    lengths = scenario.workload.length_distribution
    assert isinstance(lengths, LognormalLengths)
    assert (lengths.prompt_median, lengths.prompt_sigma) == (700, 0.5)
    assert (lengths.output_median, lengths.output_sigma) == (90, 0.5)
    alike = scenario_of(draft(prompt_len=700, spread=0.0)).workload.length_distribution
    assert getattr(alike, "prompt_len", None) == 700


def test_the_spread_that_is_assumed_is_the_median_of_the_tables() -> None:
    """Half the logarithm of P84 over P16 is the standard deviation of the logarithm, if normal."""
    spreads = []
    for name in catalog.names("lengths"):
        table = TabulatedLengths(catalog.lengths(name))
        for lengths in table.draw(4000, np.random.default_rng(1)):
            low, high = np.quantile(lengths, [0.16, 0.84])
            spreads.append(np.log(high / low) / 2)
    assert np.median(spreads) == pytest.approx(SPREAD, abs=0.05)
    assert sorted(spreads)[0] == pytest.approx(0.2, abs=0.05)
    assert sorted(spreads)[-2] == pytest.approx(2.0, abs=0.05)  # the last is the synthetic one


@pytest.mark.parametrize("spread", [1.6, 3.0])
def test_a_drafted_file_says_which_lengths_are_cut(spread: float) -> None:
    """Those of the draws that are as long as the longest."""
    one = draft(spread=spread)
    longest = 4096 - 1024
    text = written(one)
    said = re.search(rf"prompt_max = {longest}  # model: 4096 tokens; (\S+) % are longer", text)
    assert said is not None
    lengths = scenario_of(one).workload.length_distribution
    assert lengths is not None
    prompts, _ = lengths.draw(100_000, np.random.default_rng(1))
    assert 100 * np.mean(prompts == longest) == pytest.approx(float(said[1]), rel=0.05)


def test_percentiles_of_each_target() -> None:
    """Different ones stand in slo.percentiles, equal ones in slo.attainment."""
    tpot = Target(latency="tpot", percentile=99, limit_s=0.04)
    slo = scenario_of(draft(targets=(TTFT, tpot))).environment.slo
    assert (slo.wanted("ttft"), slo.wanted("tpot"), slo.criterion) == (0.95, 0.99, "marginal")
    words = within_targets(scenario_of(draft(targets=(TTFT, tpot))))
    assert "TTFT ≤ 1.00 s for 95 %, TPOT ≤ 40.0 ms for 99 % of the requests" in words
    assert within_targets(scenario_of(draft())) == "95 % of the requests within TTFT ≤ 1.00 s"
    alone = scenario_of(draft()).environment.slo
    assert (alone.wanted("ttft"), alone.percentiles, alone.tpot_s) == (0.95, None, None)


def test_the_smallest_parallelism_that_fits_is_taken() -> None:
    """70 billion parameters of 2 bytes are 140 GB: two GPUs of 80 GB hold no KV beside them."""
    small = resolve(tomllib.loads(written(draft())))
    large = resolve(tomllib.loads(written(draft(model="llama-2-70b"))))
    assert {s.tp_size for s in small.strategies} == {1}  # type: ignore[attr-defined]
    assert {s.tp_size for s in large.strategies} <= {2, 4}  # type: ignore[attr-defined]
    both = (TTFT, Target(latency="tpot", percentile=95, limit_s=0.05))
    kinds = [[s.kind for s in resolve(tomllib.loads(written(draft(targets=t)))).strategies]
             for t in ((TTFT,), both)]  # fmt: skip
    assert kinds == [["nodg", "fudg"], ["nodg", "padg", "fudg"]]  # PaDG takes turns by both
    one = resolve(tomllib.loads(written(draft(num_gpus=1))))
    assert [s.kind for s in one.strategies] == ["nodg"]


def test_a_parallelism_that_misses_the_targets_is_not_taken() -> None:
    """16 GB of weights at 0.86 TB/s take 19 ms, half on two GPUs, links and host apart: over 10."""
    tight = (TTFT, Target(latency="tpot", percentile=95, limit_s=0.010))
    text = written(draft(model="llama-3.1-8b", gpu="L20", targets=tight))
    assert "tp_size = 4  # smallest that keeps the targets, KV cache for" in text
    never = written(draft(targets=(replace(TTFT, limit_s=0.001),)))
    assert "none keeps the targets for one request" in never


def test_a_kv_cache_for_a_few_requests_is_of_no_use() -> None:
    """60 of 80 GB are weights; 1.4 MB of KV a token leave one GPU some 9,000 to 15,000 tokens."""
    text = written(draft(model="opt-30b", gpu="A100-80GB SXM", prompt_len=300, output_len=300))
    said = re.search(r"tp_size = 2  # KV cache for (\d+) requests, (\d+) with 1", text)
    assert said is not None
    assert 10 <= int(said[2]) <= 25
    assert int(said[1]) > 4 * int(said[2])


def test_lengths_are_no_longer_than_the_model_takes() -> None:
    """Longer requests would be rejected, and count as missed: 4096 tokens for both."""
    for prompt_len, output_len in ((400, 20), (1500, 300), (300, 1500)):
        text = written(draft(prompt_len=prompt_len, output_len=output_len))
        lengths = tomllib.loads(text)["workload"]["lengths"]
        assert lengths["prompt_max"] + lengths["output_max"] <= 4096
        assert lengths["prompt_max"] >= prompt_len
        assert lengths["output_max"] >= output_len
    assert "prompt_max = 3696  # model: 4096 tokens; 0.27 % are longer" in written(
        draft(prompt_len=400, output_len=20)
    )
    assert "prompt_max = 8000  # 20 medians" in written(draft(model="llama-3.1-8b", prompt_len=400))


def test_as_many_nodes_as_a_rate_may_need() -> None:
    """Twice the rate never takes fewer; a rate that one node surely sustains takes one."""
    few, many = (enough(draft(rate_rps=rate)).num_gpus for rate in (1.0, 300.0))
    assert few == 8
    assert many > 8
    assert many % 8 == 0


def test_gpus_are_doubled_until_they_sustain_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """From what the bound asks for; what no more GPUs mend is refused at once."""
    tried: list[int] = []

    def sustains_from(num_gpus: int, error: type[DataError]) -> None:
        def rank(scenario: Scenario, **_: object) -> str:
            tried.append(scenario.environment.cluster.num_gpus)
            if tried[-1] < num_gpus:
                raise error("no")
            return "ranking"

        tried.clear()
        monkeypatch.setattr(plan, "rank", rank)

    sustains_from(32, TooFewGpusError)
    asked, ranking = plan.sized_plan(draft(rate_rps=1.0))
    assert (asked.num_gpus, str(ranking), tried) == (32, "ranking", [8, 16, 32])
    sustains_from(1024, TooFewGpusError)
    with pytest.raises(TooFewGpusError):
        plan.sized_plan(draft(rate_rps=1.0))
    assert tried[-1] == 512
    sustains_from(16, DataError)
    with pytest.raises(DataError):
        plan.sized_plan(draft(rate_rps=1.0))
    assert tried == [8]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_gpus": 12}, "--gpus = 12: more than one node must be whole nodes of 8 GPUs"),
        ({"targets": (TTFT, TTFT)}, "has two targets"),
        ({"rate_rps": 1e308}, "--rate = 1e+308: must be at most 6.67e+08 requests/s"),
    ],
)
def test_a_draft_that_cannot_be_is_refused(changes: dict[str, object], words: str) -> None:
    """In a line with a remedy."""
    with pytest.raises(ConfigError) as caught:
        draft(**changes)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", *FACTS, *TARGETS], "Missing option '--rate'"),
        (["plan", *FACTS, "--rate", "5"], "Missing a target"),
        (["plan", *TARGETS, "--rate", "5"], "Missing option '--model'"),
        (["plan", *FACTS, "--ttft-p95", "300", "--rate", "5"], "must be a number with one of"),
        (["init", *FACTS], "Missing a target"),
    ],
)
def test_what_is_missing_is_said(arguments: list[str], words: str) -> None:
    """Exit status 2, as of any wrong call."""
    result = call(*arguments)
    assert result.exit_code == 2
    assert words in result.stderr


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"--model": "llama-9"}, "llama-9"),
        ({"--gpu": "A1000000"}, "A1000000"),
        ({"--model": "llama-2-70b", "--gpus": 1}, "is left"),
        ({"--ttft-p95": "1ms"}, "TTFT"),
    ],
)
def test_what_cannot_be_planned_is_one_line(facts: dict[str, object], words: str) -> None:
    """Without a traceback, and with nothing written."""
    given: dict[str, object] = dict(zip(FACTS[::2], FACTS[1::2], strict=True))
    given |= {"--ttft-p95": "300ms", "--rate": 5, **facts}
    result = call("plan", *(word for pair in given.items() for word in pair))
    assert result.exit_code == 1, result.output
    assert result.stderr.count("\n") == 1
    assert words in result.stderr


def test_plan_answers_and_its_folder_has_a_report(tmp_path: Path) -> None:
    """GPUs, strategy, USD per hour and per million tokens, as the ranking has them."""
    out = tmp_path / "plan"
    options = ["--gpus", 2, "--rate", 20, "--price", 2, "--spread", 0, "--jobs", 1, "-o", out]
    result = call("plan", *FACTS, *TARGETS, *options)
    assert result.exit_code == 0, result.output
    best = json.loads((out / "ranking.json").read_text())["need"]["plans"][0]
    first = " ".join(result.stdout.split())
    assert first.startswith(f"{best['name']} ({best['strategy']})")
    assert f"on {best['num_gpus']} GPUs sustains 20 requests/s with 95 %" in first
    # 20 requests/s of 20 tokens are 1.44 million tokens an hour.
    assert best["cost_per_million_output_tokens"] == pytest.approx(2 * best["num_gpus"] / 1.44)
    assert f"{2 * best['num_gpus']:.2f} USD per hour" in first
    assert "Assumed: Poisson arrivals, engine" in first
    page = call("report", out, "-o", tmp_path / "plan.html")
    assert page.exit_code == 0, page.output
    again = call("plan", *FACTS, *TARGETS, *options, "--json")
    assert json.loads(again.stdout)["need"]["plans"][0] == best
