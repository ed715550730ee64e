"""The catalogue as a list: its entries, each with its main numbers in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from simcluster.catalog import build, model_entry
from simcluster.catalog.specs import EngineProfile
from simcluster.catalog.store import KINDS, PACKAGED, Catalog, default_price, fold, texts
from simcluster.catalog.tables import Row
from simcluster.units import GB


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as a list shows it."""

    kind: str
    """One of `KINDS`, or ``"price"``."""
    name: str
    """Its name in the catalogue; of a price its GPU's."""
    summary: str
    """Its main numbers in one line."""
    source: str
    """Where its numbers come from."""


def search(text: str, kind: str | None = None, catalog: Catalog = PACKAGED) -> list[Entry]:
    """Return the entries in whose name, aliases or summary every word of `text` occurs.

    Parameters
    ----------
    text : str
        Words in any spelling; empty for everything.
    kind : str, optional
        One of `KINDS`, or ``"price"``; all but the prices by default.
    catalog : Catalog, optional
        Where to look; the packaged entries by default.

    Raises
    ------
    ConfigError
        If there is no such kind.
    """
    if kind == "price":
        entries = [e for name in catalog.names("gpu") for e in _prices(name, catalog)]
    else:
        kinds = KINDS if kind is None else (kind,)
        entries = [_entry(k, name, catalog) for k in kinds for name in catalog.names(k)]
    words = [fold(word) for word in text.split()]
    return [e for e in entries if all(word in _searched(e, catalog) for word in words)]


def _searched(entry: Entry, catalog: Catalog) -> str:
    """Return the folded text that words are looked for in."""
    row = catalog.table("gpu" if entry.kind == "price" else entry.kind).rows[entry.name]
    return " ".join(map(fold, (entry.name, *texts(row, "aliases"), entry.summary)))


def _entry(kind: str, name: str, catalog: Catalog) -> Entry:
    row = catalog.table(kind).rows[name]
    summary = _gpu_summary(row, catalog) if kind == "gpu" else _SUMMARIES[kind](row)
    return Entry(kind, name, summary, str(row["source"]))


def _prices(gpu: str, catalog: Catalog) -> Iterator[Entry]:
    for price in catalog.gpu(gpu).prices:
        summary = (
            f"{price.per_gpu_hour:g} {price.currency}/h, {price.tier}, {price.provider}, "
            f"{price.date or 'no date'}"
        )
        yield Entry("price", gpu, summary, price.source)


def _gpu_summary(row: Row, catalog: Catalog) -> str:
    price = default_price(catalog.gpu(str(row["name"])))
    rent = "no on-demand price" if price is None else f"{price.per_gpu_hour:g} USD/h"
    return (
        f"{row['memory_gb']:g} GB, {row['bandwidth_gb_s']:g} GB/s, "
        f"{row['tflops_16bit']:g} TFLOPS 16-bit, {row['fabric']}, {rent}"
    )


def _model_summary(row: Row) -> str:
    spec = model_entry.model(row)
    kind = f"{spec.experts.num_experts} experts" if spec.experts else "dense"
    return (
        f"{spec.num_params / 1e9:.1f} B, {kind}, {spec.num_layers} layers, "
        f"KV {spec.kv_bytes_per_token / 1e3:.1f} kB/token, context {spec.max_position}"
    )


def _link_summary(row: Row) -> str:
    spec = build.link(row)
    return f"{spec.kind}, {spec.bandwidth / GB:g} GB/s per direction, {spec.efficiency:.0%} reached"


def _node_summary(row: Row) -> str:
    spec = build.node(row)
    return f"{spec.gpus_per_node} x {spec.gpu}, {spec.fabric}, {spec.num_nics} x {spec.network}"


def _engine_summary(row: Row) -> str:
    spec = build.engine(row)
    host = (spec.host_before_s + spec.host_after_s) * 1e3
    per_seq = (spec.host_per_seq_before_s + spec.host_per_seq_after_s) * 1e6
    graphs = f"graphs to {spec.graph_max_seqs}" if spec.graph_max_seqs else "no graphs"
    return f"{limits_text(spec)}; host {host:.2f} ms + {per_seq:.0f} us/sequence per step, {graphs}"


def limits_text(engine: EngineProfile) -> str:
    """Return scheduler and limits of an engine in words.

    >>> from simcluster import catalog
    >>> limits_text(catalog.engine("vllm-0.7"))
    'prefill-priority, prompts whole, 256 sequences'
    """
    if engine.scheduler == "prefill-priority":
        tokens = engine.max_num_batched_tokens
        budget = "prompts whole" if tokens is None else f"{tokens} tokens a prefill step"
    else:
        budget = f"{engine.max_num_batched_tokens or engine.chunk_size} tokens a step"
    text = f"{engine.scheduler}, {budget}, {engine.max_num_seqs} sequences"
    if engine.large_gpu_chunk_size or engine.large_gpu_max_num_seqs:
        tokens = engine.large_gpu_chunk_size or engine.chunk_size
        seqs = engine.large_gpu_max_num_seqs or engine.max_num_seqs
        text += f" (GPUs of 70 GiB or more: {tokens} and {seqs})"
    return text + (", planned a step ahead" if engine.plans_ahead else "")


def _lengths_summary(row: Row) -> str:
    kind = f"{row['num_measured']} measured" if row["num_measured"] else "fitted to moments"
    return f"mean {row['prompt_mean']:g} in, {row['output_mean']:g} out, {kind}"


def _quality_summary(row: Row) -> str:
    spec = build.quality(row)
    both, only_strong, only_weak, neither = spec.counts
    total = both + only_strong + only_weak + neither
    return (
        f"{spec.weak} {(both + only_weak) / total:.1%}, {spec.strong} "
        f"{(both + only_strong) / total:.1%} right of {total}"
    )


_SUMMARIES: Final[dict[str, Callable[[Row], str]]] = {
    "model": _model_summary,
    "link": _link_summary,
    "node": _node_summary,
    "engine": _engine_summary,
    "lengths": _lengths_summary,
    "quality": _quality_summary,
}
