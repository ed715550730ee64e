"""The frames a run gives back: columns, types, units, meanings.

Numbers are made as NumPy columns; ``table`` types them for Parquet and ``frame`` for pandas.
pandas and pyarrow are imported where they are needed, so that importing the package stays fast.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from simcluster.errors import InvariantError

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

Columns = Mapping[str, npt.NDArray[Any]]
"""Columns of one frame: name to one-dimensional array, all of the same length."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: NumPy dtype (``"str"`` for text), unit, meaning."""

    dtype: str
    unit: str
    meaning: str


Schema = Mapping[str, Column]

REQUESTS: Final[Schema] = {
    "request_id": Column("int64", "", "position in the workload, in order of arrival"),
    "arrival_s": Column("float64", "s", "arrival"),
    "prompt_len": Column("int32", "tokens", "prompt"),
    "output_len": Column("int32", "tokens", "output asked for"),
    "num_output_tokens": Column("int32", "tokens", "output produced"),
    "status": Column("str", "", "finished, rejected or unfinished"),
    "prefill_instance": Column("int32", "", "instance of the prefill; -1 none"),
    "decode_instance": Column("int32", "", "instance of the decode; -1 none"),
    "routed_s": Column("float64", "s", "given to an instance"),
    "scheduled_s": Column("float64", "s", "first step that computes any of it starts"),
    "first_token_s": Column("float64", "s", "first token computed: the prefill ended"),
    "decode_start_s": Column("float64", "s", "first decode step starts"),
    "first_output_s": Column("float64", "s", "first token released to the user"),
    "last_token_s": Column("float64", "s", "last token computed"),
    "last_output_s": Column("float64", "s", "last token released to the user"),
    "transfer_s": Column("float64", "s", "its KV transfers, from request to arrival"),
    "num_preemptions": Column("int32", "", "times its KV was taken back"),
    "num_cached_tokens": Column(
        "int32", "tokens", "of the prompt, found in the KV cache at the first admission"
    ),
    "queue_s": Column("float64", "s", "scheduled - arrival"),
    "ttft_s": Column("float64", "s", "first output - arrival"),
    "tpot_s": Column("float64", "s", "(last output - first output) / (output_len - 1)"),
    "e2el_s": Column("float64", "s", "last output - arrival"),
    "model": Column("str", "", "model that answers"),
    "score": Column("float64", "", "difficulty by the router, 0 to 1; NaN without one"),
    "quality": Column("float64", "", "expected quality of the answer, 0 to 1; NaN if not known"),
}

SPANS: Final[Schema] = {
    "instance": Column("int32", "", "instance id"),
    "lane": Column("int32", "", "which of the instance's batches in flight; 0 without a pipeline"),
    "start_s": Column("float64", "s", "start of the first step"),
    "end_s": Column("float64", "s", "end of the last step"),
    "kind": Column("str", "", "prefill, decode or mixed"),
    "num_steps": Column("int32", "", "steps in the span"),
    "num_decodes": Column("int32", "", "decoding sequences in each step"),
    "context_tokens": Column("int32", "tokens", "tokens the decodes attend to in the first step"),
    "num_prefills": Column("int32", "", "sequences with a prefill chunk in each step"),
    "prefill_tokens": Column("int32", "tokens", "prefill tokens of each step"),
    "cached_tokens": Column("int32", "tokens", "of those prompts, in the cache before the span"),
    "kv_usage": Column("float64", "", "share of the KV blocks in use at the end, 0 to 1"),
    "num_waiting": Column("int32", "", "requests waiting in the instance at the end"),
    "num_running": Column("int32", "", "requests running in the instance at the end"),
    "hidden_s": Column("float64", "s", "GPU time of the step before that hides host work; else 0"),
    "wire_share": Column("float64", "", "share of its wires that KV left to its collectives"),
}

SEGMENTS: Final[Schema] = {
    "request_id": Column("int64", "", "who decodes"),
    "instance": Column("int32", "", "where"),
    "lane": Column("int32", "", "in which of the instance's batches"),
    "start_s": Column("float64", "s", "its prefill here ended, with a token; NaN if KV arrived"),
    "first_step": Column("int32", "", "decode steps of the lane before its first one"),
    "last_step": Column("int32", "", "those when it left or the run ended; one token in each"),
}

STEPS: Final[Schema] = {
    "instance": Column("int32", "", "instance id"),
    "lane": Column("int32", "", "which of the instance's batches in flight"),
    "start_s": Column("float64", "s", "start"),
    "end_s": Column("float64", "s", "end"),
    "kind": Column("str", "", "prefill, decode or mixed"),
    "num_decodes": Column("int32", "", "decoding sequences"),
    "context_tokens": Column("int64", "tokens", "tokens the decodes attend to"),
    "num_prefills": Column("int32", "", "sequences with a prefill chunk"),
    "prefill_tokens": Column("int64", "tokens", "prefill tokens"),
}

TRANSFERS: Final[Schema] = {
    "request_id": Column("int64", "", "whose KV"),
    "path": Column("str", "", "its links in order, joined by ' > '"),
    "num_bytes": Column("int64", "bytes", "size"),
    "requested_s": Column("float64", "s", "asked for"),
    "start_s": Column("float64", "s", "first byte leaves"),
    "end_s": Column("float64", "s", "last byte arrived"),
    "wait_s": Column("float64", "s", "start - requested: latencies of the path"),
    "duration_s": Column("float64", "s", "end - start"),
    "bytes_per_s": Column("float64", "bytes/s", "num_bytes / duration; NaN without bytes"),
}

LINKS: Final[Schema] = {
    "link": Column("str", "", "one direction of a link; every link that a transfer used"),
    "start_s": Column("float64", "s", "start of an interval, the same for all links"),
    "end_s": Column("float64", "s", "its end"),
    "num_bytes": Column("float64", "bytes", "bytes of KV that passed in it"),
    "bandwidth": Column("float64", "bytes/s", "what the flows on it share"),
    "utilisation": Column("float64", "", "share of the bandwidth that they took, 0 to 1"),
}

WINDOWS: Final[Schema] = {
    "macro": Column("int32", "", "macro instance"),
    "instance": Column("int32", "", "instance id"),
    "opened_s": Column("float64", "s", "its prefill window opens"),
    "closed_s": Column("float64", "s", "another window opens, or the run ends"),
    "released_s": Column("float64", "s", "held output is released; NaN: none is held; inf: never"),
}

SCALING: Final[Schema] = {
    "time_s": Column("float64", "s", "when"),
    "event": Column(
        "str",
        "",
        "start: GPUs taken; join: in service; drain: out of service; freed; split, merge: of macro "
        "instances",
    ),
    "instance": Column("int32", "", "which instance; -1 for splits and merges"),
    "macro": Column("int32", "", "macro instance that it joins, leaves or that is new; -1 none"),
    "size": Column("int32", "", "instances of that macro instance afterwards"),
    "num_instances": Column("int32", "", "instances in service afterwards"),
}

KERNELS: Final[Schema] = {
    "instance": Column("int32", "", "instance id"),
    "rank": Column("int32", "", "rank of its tensor-parallel group"),
    "unit": Column("str", "", "gpu: the kernel runs; cpu: it is issued, or host work is done"),
    "name": Column("str", "", "kernel, or kind of host work"),
    "start_s": Column("float64", "s", "start"),
    "end_s": Column("float64", "s", "end"),
}

INSTANCES: Final[Schema] = {
    "instance": Column("int32", "", "instance id"),
    "pool": Column("str", "", "mixed, prefill or decode"),
    "node": Column("int32", "", "node of its first GPU"),
    "num_gpus": Column("int32", "", "GPUs"),
    "tp_size": Column(
        "int32", "", "GPUs of a tensor-parallel group, of which it has one per stage and rank"
    ),
    "dp_size": Column("int32", "", "data-parallel ranks of attention"),
    "ep_size": Column("int32", "", "groups of GPUs with different experts"),
    "redundant_experts": Column("int32", "", "replicas of experts"),
    "all_to_all": Column("str", "", "how tokens reach the experts of other ranks"),
    "expert_skew": Column("float64", "", "tokens of the busiest group over the mean, at least"),
    "taken_s": Column("float64", "s", "its GPUs are taken"),
    "freed_s": Column("float64", "s", "its GPUs are free again; NaN: held to the end"),
    "num_blocks": Column("int64", "", "KV blocks"),
    "busy_s": Column("float64", "s", "time in steps"),
    "num_steps": Column("int64", "", "steps taken"),
    "num_requests": Column("int64", "", "requests given to it"),
    "num_preemptions": Column("int64", "", "preemptions"),
    "peak_kv_usage": Column("float64", "", "largest share of blocks in use, 0 to 1"),
    "num_swaps": Column("int64", "", "preemptions whose KV went to host memory"),
    "asked_blocks": Column("int64", "", "full KV blocks looked for when requests came in"),
    "cached_blocks": Column("int64", "", "of them found, and shared"),
    "model": Column("str", "", "model that it serves"),
    "gpu": Column("str", "", "type of its GPUs"),
}

SWEEP: Final[Schema] = {
    "strategy": Column("str", "", "name in the scenario"),
    "rate_rps": Column("float64", "requests/s", "offered rate"),
    "seed": Column("int64", "", "seed of the run"),
    "num_gpus": Column("int64", "", "GPUs that the strategy holds, the most at a time"),
    "mean_gpus": Column("float64", "", "GPUs that it holds, mean over the window"),
    "num_requests": Column("int64", "", "requests counted"),
    "num_finished": Column("int64", "", "of them finished"),
    "num_rejected": Column("int64", "", "of them rejected"),
    "slo_attainment": Column("float64", "", "share that met the targets, 0 to 1"),
    "ttft_attainment": Column("float64", "", "share that met the TTFT target, 0 to 1"),
    "tpot_attainment": Column("float64", "", "share that met the TPOT target, 0 to 1"),
    "itl_attainment": Column("float64", "", "share that met the ITL target, 0 to 1"),
    "e2el_attainment": Column("float64", "", "share that met the end-to-end target, 0 to 1"),
    "attainment_error": Column(
        "float64", "", "standard error of the attainment, by the means of ten batches of requests"
    ),
    "good_rps": Column(
        "float64", "requests/s", "finished requests per second that met every target"
    ),
    "throughput_rps": Column("float64", "requests/s", "finished requests per second"),
    "output_tokens_per_s": Column("float64", "tokens/s", "output tokens per second"),
    "num_preemptions": Column("int64", "", "preemptions"),
    "cached_token_share": Column(
        "float64", "", "share of the prompt tokens found in the KV cache, 0 to 1"
    ),
    "transient": Column("bool", "", "its requests arrive within ten median residence times"),
    "rates_from_s": Column("float64", "s", "start of the time that rates are taken over"),
    "rates_to_s": Column(
        "float64", "s", "its end: the last arrival counted, or the last output (transient, closed)"
    ),
    **{
        f"{metric}_{stat}": Column("float64", "s", f"{stat} of {metric}")
        for metric in ("ttft_s", "tpot_s", "itl_s", "e2el_s")
        for stat in ("mean", "p50", "p90", "p95", "p99")
    },
}

SCHEMAS: Final[Mapping[str, Schema]] = {
    "requests": REQUESTS,
    "spans": SPANS,
    "segments": SEGMENTS,
    "steps": STEPS,
    "transfers": TRANSFERS,
    "links": LINKS,
    "windows": WINDOWS,
    "scaling": SCALING,
    "kernels": KERNELS,
    "instances": INSTANCES,
    "sweep": SWEEP,
}


SLO_CLASS: Final = "slo_class"
"""Column of the requests frame that only workloads with classes have."""
ITL_P99: Final = "itl_p99_s"
"""Column of the requests frame that only runs with a target of the ITL have."""
CLASS_ATTAINMENT: Final = "slo_attainment."
"""Columns of the sweep frame that only those have, one per class: this and the class's name."""


def schema_of(name: str, columns: Iterable[Any]) -> Schema:
    """Return the schema of frame `name`, with those of `columns` that not all such frames have."""
    schema = dict(SCHEMAS[name])
    for column in columns:
        if name == "requests" and column == SLO_CLASS:
            schema[column] = Column("str", "", "class that says its targets")
        elif name == "requests" and column == ITL_P99:
            schema[column] = Column("float64", "s", "P99 of its gaps between tokens, nearest rank")
        elif name == "sweep" and "_attainment." in column:
            what, own = column.split("_attainment.", 1)
            of = "its targets" if what == "slo" else f"its {what.upper()} target"
            schema[column] = Column("float64", "", f"share of class {own} that met {of}")
    return schema


def checked(columns: Columns, schema: Schema) -> dict[str, npt.NDArray[Any]]:
    """Return `columns` in the order and with the types of `schema`.

    Raises
    ------
    InvariantError
        If a column is missing, unknown, or of another length than the first.
    """
    if set(columns) != set(schema):
        raise InvariantError(f"columns differ from the schema: {set(columns) ^ set(schema)}")
    typed = {
        name: np.asarray(columns[name], dtype=object if c.dtype == "str" else c.dtype)
        for name, c in schema.items()
    }
    lengths = {len(column) for column in typed.values()}
    if len(lengths) > 1:
        raise InvariantError(f"columns of different lengths: {sorted(lengths)}")
    return typed


def table(columns: Columns, schema: Schema) -> pa.Table:
    """Return `columns` as a typed Arrow table with exactly the columns of `schema`."""
    import pyarrow as pa

    typed = checked(columns, schema)
    return pa.Table.from_arrays([_arrow(c) for c in typed.values()], names=list(typed))


def _arrow(column: npt.NDArray[Any]) -> pa.Array:
    """Return a column as an Arrow array, over its own memory where it is numeric.

    ``pyarrow.array`` would do, but it imports pandas first to see whether it was given a series,
    and that takes longer than a small simulation.
    """
    import pyarrow as pa

    if column.dtype == object:
        encoded = {text: text.encode() for text in set(column)}
        texts = [encoded[text] for text in column]
        offsets = np.zeros(len(texts) + 1, dtype=np.int32)
        np.cumsum(np.fromiter(map(len, texts), np.int32, len(texts)), out=offsets[1:])
        buffers = [None, pa.py_buffer(offsets), pa.py_buffer(b"".join(texts))]
        return pa.Array.from_buffers(pa.string(), len(texts), buffers)
    if column.dtype == np.bool_:
        bits = np.packbits(column, bitorder="little")
        return pa.Array.from_buffers(pa.bool_(), len(column), [None, pa.py_buffer(bits)])
    values = pa.py_buffer(np.ascontiguousarray(column))
    return pa.Array.from_buffers(pa.from_numpy_dtype(column.dtype), len(column), [None, values])


def frame(columns: Columns, schema: Schema) -> pd.DataFrame:
    """Return `columns` as a pandas frame with exactly the columns of `schema`."""
    import pandas as pd

    return pd.DataFrame(
        {
            name: pd.array(column, dtype="str") if schema[name].dtype == "str" else column
            for name, column in checked(columns, schema).items()
        }
    )


ABOUT: Final[Mapping[str, str]] = {
    "requests": "One row per request that arrived, finished or not.",
    "spans": "One row per run of equal steps of an instance.",
    "segments": "One row per stay of a request in a decode batch.",
    "steps": "One row per step; made from the spans by `simcluster.frames.unroll.steps`.",
    "transfers": "One row per KV transfer.",
    "links": "Use of every link over time by KV transfers.",
    "windows": "One row per prefill window of PaDG.",
    "scaling": "One row per change of the number of instances.",
    "kernels": "One row per kernel, of the interval that was asked for; not in result folders.",
    "instances": "One row per instance.",
    "sweep": "One row per run of a comparison: `sweep.parquet`.",
}
"""What a row of each frame is."""


def markdown() -> str:
    """Return every frame and column as the tables of `docs/frames.md`."""
    parts = []
    for name, schema in SCHEMAS.items():
        rows = [
            f"| `{column}` | {one.dtype} | {one.unit} | {one.meaning.replace('|', '/')} |"
            for column, one in schema.items()
        ]
        table = ["| column | type | unit | meaning |", "|---|---|---|---|", *rows]
        parts.append("\n".join([f"## {name}", "", ABOUT[name], "", *table]))
    return "\n\n".join(parts) + "\n"
