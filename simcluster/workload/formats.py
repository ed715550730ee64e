"""Published formats of traces: their columns and units, and how a file is told to be in one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from simcluster.errors import DataError
from simcluster.units import MS, NS, US
from simcluster.workload.files import missing_columns

TraceFormat = Literal[
    "auto",
    "csv",
    "mooncake",
    "bailian",
    "azure-2023",
    "azure-2024",
    "azure-2025",
    "burstgpt",
    "aiperf",
    "guidellm",
    "servegen",
    "llmservingsim",
]
TimeUnit = Literal["s", "ms", "us", "ns"]
UNITS_S: Final[Mapping[str, float]] = {"s": 1.0, "ms": MS, "us": US, "ns": NS}
"""Units of time stamps (s)."""
DATES: Final = "date"
"""In the place of a unit: stamps are dates with times of day."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Columns of a trace, or keys of its JSON objects."""

    format: str
    """Name of the format."""
    arrival: str
    prompt: str
    output: str
    """Time stamp; tokens of the prompt and of the answer."""
    unit: str
    """Unit of the time stamps, a key of `UNITS_S`, or `DATES`."""
    marks: tuple[str, ...] = ()
    """Further columns that tell the format from others: any of them."""
    ids: str | None = None
    """Ids of the prompt's blocks."""
    block_size: int | None = None
    """Tokens of such a block; None where the file does not say."""
    session: str | None = None
    delay: str | None = None
    """Conversation of a turn; wait between the answer before and this turn (same unit)."""
    sub_requests: str | None = None
    """A session's turns, where they stand in one object: each with prompt and output, and the wait
    after its answer under the key `delay`."""
    token_ids: str | None = None
    """Ids of the prompt's tokens, from which those of its blocks are made."""
    is_log: bool = False
    """Rows without tokens are requests that failed; they are left out."""
    sorts: bool = False
    """The format leaves the order open; rows are sorted by their time."""
    images: str | None = None
    """Column of the number of images."""
    source: str = ""
    """Where the format is published."""

    @property
    def columns(self) -> tuple[str, str, str]:
        """Arrival, prompt, output."""
        return self.arrival, self.prompt, self.output

    @property
    def read(self) -> frozenset[str]:
        """All columns that are read."""
        further = (self.ids, self.session, self.delay, self.sub_requests, self.token_ids)
        return frozenset({*self.columns, self.images, *further} - {None})  # type: ignore[arg-type]  # no None left


_AZURE: Final = Layout(
    format="azure-2023",
    arrival="TIMESTAMP",
    prompt="ContextTokens",
    output="GeneratedTokens",
    unit=DATES,
    is_log=True,
    source="Azure/AzurePublicDataset, AzureLLMInferenceDataset2023.md",
)
_MOONCAKE: Final = Layout(
    format="mooncake",
    arrival="timestamp",
    prompt="input_length",
    output="output_length",
    unit="ms",
    ids="hash_ids",
    block_size=512,
    is_log=True,
    source="kvcache-ai/Mooncake, FAST25-release/traces",
)
LAYOUTS: Final = (
    replace(
        _AZURE,
        format="azure-2025",
        marks=("NumImages",),
        images="NumImages",
        source="Azure/AzurePublicDataset, AzureLMMInferenceDataset2025.md",
    ),
    _AZURE,
    replace(
        _AZURE,
        format="azure-2024",
        source="Azure/AzurePublicDataset, AzureLLMInferenceDataset2024.md",
    ),
    Layout(
        format="burstgpt",
        arrival="Timestamp",
        prompt="Request tokens",
        output="Response tokens",
        unit="s",
        is_log=True,
        source="HPMLL/BurstGPT, README.md: rows without response tokens are failures",
    ),
    Layout(
        format="llmservingsim",
        arrival="arrival_time_ns",
        prompt="input_toks",
        output="output_toks",
        unit="ns",
        block_size=16,
        session="session_id",
        delay="tool_duration_ns",
        sub_requests="sub_requests",
        token_ids="input_tok_ids",
        sorts=True,
        source="casys-kaist/LLMServingSim, docs/docs/workloads/jsonl-format.md",
    ),
    replace(
        _MOONCAKE,
        format="bailian",
        unit="s",
        marks=("chat_id", "parent_chat_id"),
        block_size=16,
        source="alibaba-edu/qwen-bailian-usagetraces-anon, README.md",
    ),
    replace(
        _MOONCAKE,
        format="aiperf",
        marks=("session_id", "delay"),
        session="session_id",
        delay="delay",
        is_log=False,
        sorts=True,
        source="ai-dynamo/aiperf, docs/benchmark-modes/trace-replay.md and docs/tutorials/"
        "multi-turn.md (GenAI-Perf's are the same)",
    ),
    _MOONCAKE,
    replace(
        _MOONCAKE,
        format="guidellm",
        unit="s",
        is_log=False,
        sorts=True,
        source="vllm-project/guidellm, docs/guides/trace_replay.md",
    ),
    Layout(
        format="llmservingsim",
        arrival="arrival_s",
        prompt="input_tokens",
        output="output_tokens",
        unit="s",
        marks=("block16_ids",),
        ids="block16_ids",
        block_size=16,
        source="the same with block ids in the place of token ids",
    ),
    Layout(
        format="servegen",
        arrival="timestamp",
        prompt="input_tokens",
        output="output_tokens",
        unit="s",
        source="alibaba/ServeGen, servegen/utils.py: save_requests_to_csv",
    ),
    Layout(
        format="csv",
        arrival="arrival_s",
        prompt="prompt_len",
        output="output_len",
        unit="s",
        ids="hash_ids",
        source="docs/workloads.md",
    ),
    Layout(
        format="azure-2023",
        arrival="arrival_s",
        prompt="input_tokens",
        output="output_tokens",
        unit="s",
        source="the same with seconds in the place of dates",
    ),
)
"""All formats; of those that a file could be in the first is taken, where nothing else tells."""

_TEXTS: Final = ("prompt", "messages", "text_input", "payload", "text", "texts", "turns", "body")
_VLLM_RESULT: Final = ("request_throughput", "input_lens", "total_input_tokens")


def layouts_of(format: TraceFormat) -> tuple[Layout, ...]:
    """Return the layouts of a format, all for ``"auto"``."""
    return tuple(one for one in LAYOUTS if format in ("auto", one.format))


def candidates(
    file: Path, found: Collection[str], format: TraceFormat, *, arrivals: bool
) -> list[Layout]:
    """Return the layouts that a file with these columns can be in, the likeliest first.

    Parameters
    ----------
    file : Path
        For the error.
    found : collection of str
        Its columns, or the keys of its objects.
    format : str
        What the file is said to be; ``"auto"`` for anything.
    arrivals : bool
        Time stamps are needed. Without them a file of lengths alone will do.

    Raises
    ------
    DataError
        If it fits none: of the likeliest the columns that are missing are named.
    """

    def missing(one: Layout) -> list[str]:
        if one.sub_requests in found:
            return [] if one.arrival in found else [one.arrival]
        needed = one.columns[0 if arrivals else 1 :]
        if one.delay is not None:
            needed = one.columns[1:]  # later turns have no time stamp; the first are checked
        return [name for name in needed if name not in found]

    known = layouts_of(format)
    fitting = [
        one
        for one in known
        if not missing(one)
        and (not one.marks or format != "auto" or any(mark in found for mark in one.marks))
    ]
    if not fitting:
        nearest = max(
            known, key=lambda one: (len(one.read.intersection(found)), one.format == "csv")
        )
        raise missing_columns(file, missing(nearest) or list(nearest.marks), list(found))
    return fitting


def refuse_others(file: Path, row: Mapping[str, Any] | Iterable[str]) -> None:
    """Refuse a file that is known to be something else than a trace, by what it is.

    Raises
    ------
    DataError
        With what the file is, and what to do with it.
    """
    keys = set(row)
    if "conversations" in keys or "conversation" in keys:
        what = "a file of ShareGPT conversations: texts without times or token counts"
        remedy = (
            'Use measured lengths, lengths = "sharegpt-ecoserve", or tokenise it into a CSV of '
            'prompt_len and output_len for lengths = { kind = "trace", path = ... }.'
        )
    elif keys.issuperset(_VLLM_RESULT[:1]) and keys.intersection(_VLLM_RESULT[1:]):
        what = "the result of a benchmark (vllm bench serve or one like it), not a trace"
        remedy = (
            "No command reads it yet. To replay its requests, write start_times, input_lens and "
            "output_lens as a CSV with arrival_s, prompt_len, output_len."
        )
    elif "benchmarks" in keys and keys.intersection(("metadata", "args")):
        what, remedy = "the report of a GuideLLM benchmark, not a trace", "Name the trace."
    elif "input_config" in keys and any("latency" in key for key in keys):
        what, remedy = "the report of an AIPerf or GenAI-Perf run, not a trace", "Name the trace."
    elif {"client", "mean_rate", "cv_mean"} <= keys:
        what = "a table of clients (ServeGen), not a trace"
        remedy = 'Write arrivals = { kind = "clients", path = ... }.'
    elif keys.intersection(_TEXTS) and not any(
        key in keys for one in LAYOUTS for key in (one.prompt, one.sub_requests)
    ):
        what = f"a file of texts ({', '.join(sorted(keys.intersection(_TEXTS)))})"
        remedy = "Count their tokens into columns arrival_s, prompt_len and output_len."
    else:
        return
    raise DataError(f"{file} is {what}. {remedy}")
