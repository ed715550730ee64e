"""The catalogue: GPUs, links, nodes, models, engines, length tables, each number with its source.

>>> gpu("H100").name
'H100 SXM'
>>> model("codellama_34B").num_kv_heads
8

Names are compared without regard to case, spaces, dashes and underscores. Files are read when
first asked for. `add_file` puts a user's entries before the packaged ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from simcluster.catalog import build, store
from simcluster.catalog.tables import Row
from simcluster.errors import ConfigError, nearest
from simcluster.specs import (
    EngineProfile,
    GPUSpec,
    LengthTable,
    LinkSpec,
    ModelSpec,
    NodeShape,
    Price,
    QualityCounts,
)
from simcluster.units import GB

__all__ = [
    "KINDS",
    "Entry",
    "add_file",
    "clear_added",
    "default_price",
    "engine",
    "gpu",
    "lengths",
    "link",
    "model",
    "names",
    "node",
    "quality",
    "search",
]

KINDS: Final = ("gpu", "model", "link", "node", "engine", "lengths", "quality")
"""What the catalogue holds by name. Prices belong to GPUs; `search` lists them."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry as a list shows it.

    Attributes
    ----------
    kind : str
        One of `KINDS`, or ``"price"``.
    name : str
        Its name in the catalogue; of a price its GPU's.
    summary : str
        Its main numbers in one line.
    source : str
        Where its numbers come from.
    """

    kind: str
    name: str
    summary: str
    source: str


def gpu(name: str, key: str = "cluster.gpu") -> GPUSpec:
    """Return the GPU called `name`, with kernel constants and prices.

    Parameters
    ----------
    name : str
        Full name or short form: ``"A100"`` is the 80 GB SXM part, ``"4090"`` the RTX 4090.
    key : str
        Key of the scenario file that holds `name`, for messages.

    Raises
    ------
    ConfigError
        If the name is unknown or means several GPUs; the message lists them.
    """
    return _gpu(str(store.find("gpu", name, key=key)["name"]))


def model(name: str, key: str = "model.name") -> ModelSpec:
    """Return the model called `name`; parameters and errors as in `gpu`."""
    return build.model(store.find("model", name, key=key))


def link(name: str, key: str = "cluster.fabric") -> LinkSpec:
    """Return the link called `name`; parameters and errors as in `gpu`."""
    return build.link(store.find("link", name, key=key))


def node(name: str, key: str = "cluster.node") -> NodeShape:
    """Return the server called `name`; parameters and errors as in `gpu`."""
    return build.node(store.find("node", name, key=key))


def engine(name: str, key: str = "engine.name") -> EngineProfile:
    """Return the engine profile called `name`; parameters and errors as in `gpu`."""
    return build.engine(store.find("engine", name, key=key))


def lengths(name: str, key: str = "workload.lengths") -> LengthTable:
    """Return the length table called `name`; parameters and errors as in `gpu`."""
    return build.lengths(store.find("lengths", name, key=key))


def quality(name: str, key: str = "quality.benchmark") -> QualityCounts:
    """Return the counts called `name`; parameters and errors as in `gpu`."""
    return build.quality(store.find("quality", name, key=key))


def names(kind: str) -> list[str]:
    """Return the names of one kind of `KINDS`, sorted.

    Raises
    ------
    ConfigError
        If there is no such kind.
    """
    return sorted(store.entries(_known(kind)).rows)


def default_price(gpu: GPUSpec) -> Price | None:
    """Return the lowest dated on-demand price in US dollars; None where there is none.

    Community, serverless, reserved and list prices do not count, nor do other currencies: offers
    that a planner cannot have for sure, now, in the same money, are not comparable.
    """
    prices = [
        p for p in gpu.prices if p.tier == "on-demand" and p.currency == "USD" and p.date != ""
    ]
    return min(prices, key=lambda p: (p.per_gpu_hour, p.provider), default=None)


def search(text: str, kind: str | None = None) -> list[Entry]:
    """Return the entries in whose name, aliases or summary every word of `text` occurs.

    Parameters
    ----------
    text : str
        Words in any spelling; empty for everything.
    kind : str, optional
        One of `KINDS`, or ``"price"``; all but the prices by default.

    Raises
    ------
    ConfigError
        If there is no such kind.
    """
    words = [store.fold(word) for word in text.split()]
    if kind == "price":
        return _search_prices(words)
    found = []
    for each in KINDS if kind is None else (_known(kind),):
        for name in names(each):
            row = store.entries(each).rows[name]
            summary = _SUMMARIES[each](row)
            aliases = row.get("aliases", [])
            assert isinstance(aliases, list)
            place = " ".join(store.fold(part) for part in (name, *aliases, summary))
            if all(word in place for word in words):
                found.append(Entry(each, name, summary, str(row["source"])))
    return found


def _search_prices(words: list[str]) -> list[Entry]:
    """Return the prices whose GPU, terms, provider or date hold all of the folded `words`."""
    found = []
    for name in names("gpu"):
        for price in _gpu(name).prices:
            date = price.date or "no date"
            summary = (
                f"{price.per_gpu_hour:g} {price.currency}/h, {price.tier}, {price.provider}, {date}"
            )
            aliases = store.entries("gpu").rows[name].get("aliases", [])
            assert isinstance(aliases, list)
            place = " ".join(store.fold(part) for part in (name, *aliases, summary))
            if all(word in place for word in words):
                found.append(Entry("price", name, summary, price.source))
    return found


def add_file(path: Path | str) -> None:
    """Put the entries of a TOML file before the packaged ones.

    The file has the tables of the packaged files (``[[gpu]]``, ``[[price]]``, ``[[kernels]]``,
    ``[[model]]``, ``[[link]]``, ``[[node]]``, ``[[engine]]``, ``[[lengths]]``, ``[[quality]]``) and
    their keys. An entry with the name of a packaged one replaces it; ``like = "NAME"`` takes from
    another entry every key that is not given. Adding the same path again replaces what it gave
    before.

    Parameters
    ----------
    path : path
        The file.

    Raises
    ------
    DataError
        If the file cannot be read or is not TOML.
    ConfigError
        If an entry has an unknown key, lacks one, has a wrong type, or names another entry that
        does not exist. Nothing is added then.
    """
    store.add_file(Path(path))
    _gpu.cache_clear()


def clear_added() -> None:
    """Forget the entries of every added file."""
    store.clear()
    _gpu.cache_clear()


@cache
def _gpu(name: str) -> GPUSpec:
    row = store.entries("gpu").rows[name]
    kernels = store.find("kernels", str(row["kernels"]), key=f"gpu {name}: kernels")
    names = row.get("older_kernels", ())
    assert isinstance(names, list | tuple)
    older = [store.find("kernels", n, key=f"gpu {name}: older_kernels") for n in names]
    return build.gpu(row, kernels, store.prices(name), older)


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise ConfigError("kind", kind, "the catalogue has no such kind", nearest(kind, KINDS))
    return kind


def _gpu_summary(row: Row) -> str:
    spec = _gpu(str(row["name"]))
    price = default_price(spec)
    rent = "no on-demand price" if price is None else f"{price.per_gpu_hour:g} USD/h"
    return (
        f"{row['memory_gb']:g} GB, {row['bandwidth_gb_s']:g} GB/s, "
        f"{row['tflops_16bit']:g} TFLOPS 16-bit, {row['fabric']}, {rent}"
    )


def _model_summary(row: Row) -> str:
    spec = build.model(row)
    kind = f"{spec.num_experts} experts" if spec.num_experts else "dense"
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
    return f"host {host:.2f} ms + {per_seq:.0f} us/sequence per step, {graphs}"


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
    "gpu": _gpu_summary,
    "model": _model_summary,
    "link": _link_summary,
    "node": _node_summary,
    "engine": _engine_summary,
    "lengths": _lengths_summary,
    "quality": _quality_summary,
}
