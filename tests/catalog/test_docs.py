"""Tables of docs/catalogue.md against the catalogue they describe."""

from __future__ import annotations

from pathlib import Path

from simcluster import catalog
from simcluster.catalog.specs import EngineProfile

ROOT = Path(__file__).resolve().parents[2]
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
    budget = engine.chunk_size if engine.scheduler == "chunked" else "a prompt"
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
        f"{1e3 * engine.front_end_s:.3g} ms" if engine.front_end_s else "",
    )


def engines_table() -> str:
    """All profiles as they stand in the documentation."""
    rows = [HEADS, ("---",) * len(HEADS)]
    rows += [engine_row(catalog.engine(name)) for name in catalog.names("engine")]
    return "".join(f"| {' | '.join(row)} |\n".replace("|  |", "| |") for row in rows)


def test_the_table_of_engines_is_that_of_the_catalogue() -> None:
    """Every profile with its numbers: paste `engines_table` where it differs."""
    documented = (ROOT / "docs" / "catalogue.md").read_text(encoding="utf-8")
    assert engines_table() in documented
