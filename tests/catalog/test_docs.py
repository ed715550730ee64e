"""Numbers of docs/catalogue.md and docs/step-times.md against the catalogue they describe."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from simcluster import catalog
from simcluster.catalog.specs import AllReduceTerms, EngineProfile, LinkSpec
from simcluster.catalog.store import packaged
from simcluster.config import ModelConfig
from simcluster.roofline.memory import kv_blocks
from simcluster.scenario.tables import EngineTable
from simcluster.sched import splitting

DOCS = Path(__file__).resolve().parents[2] / "docs"
CATALOGUE = (DOCS / "catalogue.md").read_text(encoding="utf-8")
STEP_TIMES = (DOCS / "step-times.md").read_text(encoding="utf-8")
HEADS = ("profile", "host time per step", "with several GPUs", "captured graphs", "scheduler")
HEADS = (*HEADS, "tokens and sequences of a step", "request to scheduler")


def engine_row(engine: EngineProfile) -> tuple[str, ...]:
    """The numbers of a profile, rounded to three digits."""
    step_s = engine.host_before_s + engine.host_after_s
    seq_s = engine.host_per_seq_before_s + engine.host_per_seq_after_s
    host = f"{1e3 * step_s:.3g} ms + {1e6 * seq_s:.3g} us per sequence" if step_s else "none"
    if engine.overlaps_host:
        host += ", under the step before"
    graphs = f"decode, to {engine.graph_max_seqs}" if engine.graph_max_seqs else "none"
    budget = engine.chunk_size if engine.scheduler in splitting() else "a prompt"
    limits = f"{budget}, {engine.max_num_seqs}"
    if engine.large_gpu_chunk_size:
        limits += f"; on large GPUs {engine.large_gpu_chunk_size}, {engine.large_gpu_max_num_seqs}"
    return (
        f"`{engine.name}`",
        host,
        f"{1e3 * engine.host_workers_s:.3g} ms more" if engine.host_workers_s else "",
        f"{graphs}; {1e6 * engine.issue_s:.3g} us per kernel" if engine.issue_s else graphs,
        engine.scheduler + (", a step ahead" if engine.plans_ahead else ""),
        limits,
        _front_end(engine),
    )


def _front_end(engine: EngineProfile) -> str:
    if not engine.front_end_s:
        return ""
    token = f" + {1e6 * engine.front_end_token_s:.3g} us per token" * (engine.front_end_token_s > 0)
    return f"{1e3 * engine.front_end_s:.3g} ms{token}"


def engines_table() -> str:
    """All profiles as they stand in the documentation."""
    rows = [HEADS, ("---",) * len(HEADS)]
    rows += [engine_row(catalog.engine(name)) for name in catalog.names("engine")]
    return as_markdown(rows)


def as_markdown(rows: Iterable[Sequence[str]]) -> str:
    """Rows as a table of Markdown."""
    return "".join(re.sub(r"\|  (?=\|)", "| ", f"| {' | '.join(row)} |\n") for row in rows)


def test_the_table_of_engines_is_that_of_the_catalogue() -> None:
    """Every profile with its numbers: paste `engines_table` where it differs."""
    assert engines_table() in CATALOGUE


# Links ------------------------------------------------------------------------------------------


def _cells(terms: Iterable[AllReduceTerms]) -> list[str]:
    """Latency and share of the bandwidth at 2, 4 and 8 GPUs, protocol by protocol."""
    known = list(terms)
    return [
        "; ".join(
            f"{1e6 * one.latency_s:.3g} us, {one.efficiency:.3g}"
            + ("" if one.below_bytes == math.inf else f" below {one.below_bytes / 2**10:g} KiB")
            for one in known
            if one.tp_size == size
        )
        for size in (2, 4, 8)
    ]


def link_rows(link: LinkSpec) -> list[tuple[str, ...]]:
    """What the library reaches over a fabric, and what the kernels of an engine do."""
    if link.allreduce_terms:
        library = _cells(link.allreduce_terms)
    else:
        pair = f"{1e6 * link.allreduce_latency_s:.3g} us, {link.allreduce_efficiency:.3g}"
        library = [pair, pair, pair]
    rows = [(f"`{link.name}`", f"{link.bandwidth / 1e9:g}", "library", *library)]
    if link.own_allreduce_terms:
        rows.append(("", "", "engine", *_cells(link.own_allreduce_terms)))
    return rows


def links_table() -> str:
    """All fabrics as they stand in the documentation."""
    fabrics = [catalog.link(name) for name in catalog.names("link")]
    heads = ("fabric", "GB/s", "all-reduce of", "2 GPUs", "4 GPUs", "8 GPUs")
    rows = [heads, ("---",) * len(heads)]
    rows += [row for link in fabrics if link.kind == "fabric" for row in link_rows(link)]
    return as_markdown(rows)


def test_the_table_of_links_is_that_of_the_catalogue() -> None:
    """Every fabric with its numbers: paste `links_table` where it differs."""
    assert links_table() in CATALOGUE


def test_numbers_in_the_text_about_links_are_those_of_the_catalogue() -> None:
    """Bandwidths that all-reduces reach over PCIe, and KV transfers between nodes."""
    reached = {
        (name, terms.tp_size): link.bandwidth * terms.efficiency / 1e9
        for name in ("pcie4", "pcie4-l40s")
        for link in (catalog.link(name),)
        for terms in (*link.own_allreduce_terms, *link.allreduce_terms)
    }
    pairs, four, eight = (reached["pcie4-l40s", size] for size in (2, 4, 8))
    text = f"reach {pairs:.0f} GB/s in pairs, {four:.1f} GB/s at 4 and {eight:.1f} GB/s at 8 GPUs"
    assert text in " ".join(CATALOGUE.split())
    share = catalog.link("pcie4").allreduce_terms[-1].efficiency
    assert f"`pcie4` ({share:g}, {reached['pcie4', 8]:.0f} GB/s)" in CATALOGUE
    fast = [catalog.link(name) for name in ("roce-200", "roce-400", "ib-200", "ib-400")]
    (efficiency,), (latency,) = {one.efficiency for one in fast}, {one.latency_s for one in fast}
    assert f"({efficiency:g}, {1e3 * latency:g} ms;" in CATALOGUE


# Counts and sets --------------------------------------------------------------------------------


def entries(table: str) -> list[dict[str, Any]]:
    """The entries of a packaged file."""
    return [dict(row) for row in packaged(table)]


@pytest.mark.parametrize(
    ("file", "table", "text"),
    [
        ("gpus", "gpu", "{} parts: data-sheet peaks"),
        ("kernels", "kernels", "{} sets of constants"),
        ("models", "model", "{} decoder-only models"),
    ],
)
def test_the_documentation_counts_the_entries(file: str, table: str, text: str) -> None:
    """One more entry is one more in the table of files."""
    number = len(entries(table))
    assert f"| `{file}.toml` | `[[{table}]]` | {text.format(number)}" in CATALOGUE


def test_the_documentation_counts_the_sets_of_lengths() -> None:
    """Measured ones, and those that are fitted to moments."""
    measured = sum(bool(row["num_measured"]) for row in entries("lengths"))
    fitted = len(entries("lengths")) - measured
    assert f"{measured} measured sets, {fitted} fitted to published moments" in CATALOGUE


def kernel_sets() -> dict[str, list[str]]:
    """Sets of constants by the GPUs that the documentation names them for."""
    part = CATALOGUE.split("## Kernel constants")[1].split("\n## ")[0]
    found = {}
    for line in part.splitlines():
        if not line.startswith("| ") or "| set |" in line or "|---" in line:
            continue
        gpus, sets, _ = (cell.strip() for cell in line.strip("|").split("|", 2))
        names = re.findall(r"`([^`]+)`", sets)
        found[gpus] = [names[0] + name if name.startswith("-") else name for name in names]
    return found


def test_every_set_of_constants_stands_in_the_documentation() -> None:
    """And no other; each GPU in a row with the set that it has."""
    documented = {name for names in kernel_sets().values() for name in names}
    assert documented == {row["name"] for row in entries("kernels")}
    for row in entries("gpu"):
        rows = [gpus for gpus, names in kernel_sets().items() if row["kernels"] in names]
        labels = [label.split(" (")[0].strip() for gpus in rows for label in gpus.split(",")]
        assert any(label in row["name"] for label in labels), row["name"]


# Memory -----------------------------------------------------------------------------------------


def test_gigabytes_in_the_documentation_are_those_of_the_catalogue() -> None:
    """The driver's total of an A100-80GB and of a card of 48 GB, in MiB and in bytes."""
    mib = next(row["memory_mib"] for row in entries("gpu") if row["name"] == "A100-80GB SXM")
    assert f"(an A100-80GB has {mib:,} MiB = {mib * 2**20 / 1e9:.1f}e9 bytes)" in CATALOGUE
    of_48 = {row["memory_mib"] for row in entries("gpu") if row["name"] in ("L20", "L40S", "A40")}
    assert [f"(48 GB: {each:,} MiB)" in CATALOGUE for each in of_48] == [True]


# Step times -------------------------------------------------------------------------------------


def test_step_times_name_profiles_and_keys_that_exist() -> None:
    """Every profile and every key of ``[engine]`` that the page names in code."""
    names = set(re.findall(r"`(?:engine\.)?([a-z][a-z0-9_.-]*)`", STEP_TIMES))
    profiles = {name for name in names if re.fullmatch(r"(vllm|trtllm|sarathi)-?[0-9.]*", name)}
    assert profiles <= {*catalog.names("engine"), "trtllm"}  # also a generation of kernels
    keys = set(re.findall(r"`engine\.([a-z_]+)`", STEP_TIMES))
    known = {field.name for field in dataclasses.fields(EngineTable)}
    assert keys <= known


def test_the_depth_of_the_queue_is_that_of_the_profiles() -> None:
    """1024 kernels on NVIDIA GPUs, in every profile."""
    (depth,) = {row["queue_depth"] for row in entries("engine")}
    assert f"({depth} kernels on NVIDIA GPUs)" in STEP_TIMES


def test_the_rules_of_memory_are_those_of_the_profiles() -> None:
    """Each rule that a profile uses stands in the table of engines' rules."""
    rules = {row.get("memory_rule", "total") for row in entries("engine")}
    for rule in rules | {"total", "static", "free"}:
        assert f'| `"{rule}"` |' in STEP_TIMES


LOGGED: list[tuple[str, str, str, str, int, dict[str, Any]]] = [
    ("vllm-0.19", "Llama-3.1-8B", "RTX 4090", "RTX 4090", 1, {}),
    ("vllm-0.2", "Llama-2-7B", "A100", "A100", 1, {}),
    ("vllm-0.2", "Llama-2-70B", "4 x A100", "A100", 4, {}),
]


@pytest.mark.parametrize(("profile", "model", "where", "gpu", "tp_size", "keys"), LOGGED)
def test_errors_of_kv_pools_are_those_of_the_catalogue(
    profile: str, model: str, where: str, gpu: str, tp_size: int, keys: dict[str, Any]
) -> None:
    """Logged tokens and our error stand side by side: the second follows from the TOML."""
    engine, spec = catalog.engine(profile).on(catalog.gpu(gpu)), catalog.model(model)
    row = next(
        line.split("|")
        for line in STEP_TIMES.splitlines()
        if f"| {profile.replace('vllm-', 'vLLM ')} | {model} | {where} |" in line
    )
    logged, error = int(row[4].strip().replace(",", "")), row[5].strip()
    longest = {"RTX 4090": 4096}.get(gpu, spec.max_position)
    served = ModelConfig(spec=spec, max_model_len=longest)
    blocks = kv_blocks(served, catalog.gpu(gpu), engine, tp_size, key="tp_size")
    found = 100 * (16 * blocks / logged - 1)
    assert error == f"{found:.1f} %".replace("-0.0", "0.0")
