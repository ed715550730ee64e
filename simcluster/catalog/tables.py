"""What an entry of the catalogue may hold: keys, types, ranges, units; and its check.

Catalogue files speak in the units of data sheets (GB, GB/s, TFLOPS, ms, us); `build` converts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from simcluster.catalog.expert_tiles import PEAKS, TILE_RULES
from simcluster.catalog.layers import KV_BYTES, WEIGHT_DTYPES
from simcluster.catalog.model_entry import DTYPE_KEYS, MIXERS, MLPS, check_layers
from simcluster.errors import ConfigError, nearest, unfit_name

Row = Mapping[str, object]
"""One entry as read from a TOML file."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key of an entry."""

    kind: str
    """``"text"``, ``"number"``, ``"count"`` (whole number), ``"flag"``, ``"texts"``, ``"numbers"``
    or ``"rows"`` (list of lists of numbers)."""
    meaning: str
    """What it says, with the unit."""
    required: bool = True
    """Whether every entry must have it."""
    low: float = 0.0
    high: float = math.inf
    """Range of a number or count, both ends allowed."""
    choices: tuple[str, ...] = ()
    """Allowed texts; empty for any."""


TIERS: Final = ("on-demand", "community", "serverless", "reserved", "list")
"""Kinds of price: see `simcluster.catalog.default_price`."""

_NAME: Final = {
    "name": Key("text", "name in the catalogue"),
    "aliases": Key("texts", "short forms of the name", required=False),
    "like": Key("text", "entry whose keys are taken where this one is silent", required=False),
    "source": Key("text", "where the numbers come from"),
}


def _share(meaning: str, *, required: bool = True) -> Key:
    return Key("number", meaning + ", 0 to 1", required=required, high=1.0)


def _cached(meaning: str) -> Key:
    """Share of bandwidth that caches may lift above 1."""
    return Key("number", meaning, required=False, low=1e-12, high=3.0)


def _gain(kernels: str) -> Key:
    """Speed of the second-level cache relative to memory, as kernels see it."""
    return Key("number", f"gain of cached traffic in {kernels}", required=False, low=1.0)


def _positive(meaning: str, *, required: bool = True) -> Key:
    return Key("number", meaning, required=required, low=1e-12)


_MOST: Final = 1_000_000_000
_MOST_HEADS: Final = 65_536
_LONGEST: Final = 1 << 24
"""Counts above these are slips: of anything, of heads or experts, and tokens of a context."""


def _count(
    meaning: str, *, required: bool = True, low: float = 1, high: float = float(_MOST)
) -> Key:
    return Key("count", meaning, required=required, low=low, high=high)


LAYER_KEYS: Final[Mapping[str, Key]] = {
    "mixer": Key("text", "how tokens see one another", required=False, choices=MIXERS),
    "num_heads": _count("query heads", required=False, high=_MOST_HEADS),
    "num_kv_heads": _count("key and value heads", required=False, high=_MOST_HEADS),
    "head_dim": _count("width of a head", required=False),
    "v_head_dim": _count("width of a value", required=False, low=0),
    "sliding_window": _count("attention window (tokens)", required=False, low=0, high=_LONGEST),
    "attention_chunk": _count(
        "width of attention's chunks (tokens)", required=False, low=0, high=_LONGEST
    ),
    "output_gate": Key("flag", "the query projection also gates the output", required=False),
    "values_are_keys": Key("flag", "no projection of values", required=False),
    "qk_norm": Key("text", "norm of queries and keys", required=False, choices=("head", "all")),
    "q_lora_rank": _count("rank of the query (MLA)", required=False, low=0),
    "kv_lora_rank": _count("rank of the cached latent (MLA)", required=False, low=0),
    "qk_nope_dim": _count("head width without position (MLA)", required=False, low=0),
    "qk_rope_dim": _count("head width with position (MLA)", required=False, low=0),
    "index_heads": _count(
        "heads of the index of sparse attention", required=False, low=0, high=_MOST_HEADS
    ),
    "index_head_dim": _count("their width", required=False, low=0),
    "index_top_k": _count("tokens that the index chooses", required=False, low=0, high=_LONGEST),
    "index_shared": Key("flag", "the choice is that of a layer before", required=False),
    "linear_key_heads": _count("heads of keys (Mamba-2: groups)", required=False, high=_MOST_HEADS),
    "linear_key_dim": _count("width of a key (state size)", required=False),
    "linear_heads": _count("heads of values and of the state", required=False, high=_MOST_HEADS),
    "linear_value_dim": _count("their width", required=False),
    "conv_kernel": _count("width of the convolution (tokens)", required=False),
    "state_bytes_per_number": _positive("bytes of a number of the state", required=False),
    "mlp": Key("text", "what a token passes", required=False, choices=MLPS),
    "ffn_dim": _count("width of the dense MLP, per matrix", required=False),
    "num_experts": _count("experts per layer", required=False, low=0, high=_MOST_HEADS),
    "num_experts_active": _count("experts per token", required=False, low=0, high=_MOST_HEADS),
    "moe_ffn_dim": _count("width of an expert", required=False, low=0),
    "num_shared_experts": _count(
        "experts every token takes", required=False, low=0, high=_MOST_HEADS
    ),
    "shared_ffn_dim": _count("their width together", required=False, low=0),
    "moe_latent_dim": _count("width that experts read and write", required=False, low=0),
    **{
        key: Key("text", "how weights are stored", required=False, choices=tuple(WEIGHT_DTYPES))
        for key in DTYPE_KEYS
    },
}
"""Keys of a layer: of an entry of the table of models, or of one of its runs."""

TABLES: Final[Mapping[str, Mapping[str, Key]]] = {
    "quality": {
        **_NAME,
        "weak": Key("text", "the model of lower quality"),
        "strong": Key("text", "the model of higher quality"),
        "both_correct": _count("queries that both answer right", low=0),
        "only_strong_correct": _count("queries that only the strong model answers right", low=1),
        "only_weak_correct": _count("queries that only the weak model answers right", low=0),
        "neither_correct": _count("queries that neither answers right", low=0),
        "strong_share": _share("share of queries a published router sends to the strong model"),
        "kept_quality": _share("share of the strong model's accuracy that it keeps"),
    },
    "gpu": {
        **_NAME,
        "vendor": Key("text", "who makes it"),
        "arch": Key("text", "generation, such as Hopper"),
        "memory_gb": _positive("capacity of the data sheet (GB)"),
        "memory_mib": _positive("total that the driver reports (MiB)", required=False),
        "cuda_mib": _positive("what a CUDA context can give out (MiB)", required=False),
        "bandwidth_gb_s": _positive("memory bandwidth of the data sheet (GB/s)"),
        "tflops_16bit": _positive("dense FP16/BF16 peak (TFLOPS)"),
        "tflops_8bit": _positive("dense FP8, else INT8 peak (TFLOPS)", required=False),
        "native_8bit": Key("texts", "numbers of that peak: fp8, int8", required=False),
        "tflops_4bit": _positive("dense FP4 peak (TFLOPS)", required=False),
        "native_4bit": Key("texts", "numbers of that peak: nvfp4, mxfp4", required=False),
        "mfu_4bit": _share("share of it that large multiplications reach", required=False),
        "num_sms": _count("streaming multiprocessors, compute units or cores"),
        "l2_mb": _positive("second-level cache (MB)", required=False),
        "fabric": Key("text", "link to the GPUs of the same node"),
        "pcie": Key("text", "link to the host"),
        "kernels": Key("text", "kernel constants to use, a name of the table kernels"),
        "older_kernels": Key("texts", "the same with older software", required=False),
    },
    "kernels": {
        **_NAME,
        "arch": Key("text", "generation they stand for"),
        "mfu_gemm": _share("share of peak FLOP/s in matrix multiplications"),
        "mbu_gemm": _share("share of bandwidth in matrix multiplications"),
        "mfu_attention": _share("share of peak FLOP/s in prefill attention"),
        "mbu_attention": _share("share of bandwidth in decode attention"),
        "mbu_elementwise": _share("share of bandwidth in elementwise kernels"),
        "smooth_p": Key("number", "exponent of the smooth maximum", low=1.0),
        "fixed_us": Key("number", "fixed latency of a kernel (us)"),
        "attention_block_us": Key("number", "per block of decode attention (us)"),
        "mfu_gemm_8bit": _share("share of the 8-bit peak", required=False),
        "quantise_us": Key("number", "of bringing inputs to 8 bits (us)", required=False),
        "mbu_quantise": _share("share of bandwidth in that", required=False),
        "mfu_gemm_block": _share("mfu_gemm_8bit by blocks", required=False),
        "mbu_gemm_block": _share("mbu_gemm by blocks", required=False),
        "fixed_block_us": Key("number", "latency by blocks (us)", required=False),
        "mbu_gemm_few": _share("mbu_gemm with at most 16 rows", required=False),
        "gemm_waves": _share("share of tiles that waits for whole waves", required=False),
        "gemm_tile_loss": Key("number", "slowness of small tiles", required=False),
        "experts": Key("texts", "kernels for experts, names of the table experts", required=False),
        "elementwise_fixed_us": Key("number", "of an elementwise kernel (us)", required=False),
        "norm_fixed_us": Key("number", "of a norm (us)", required=False),
        "row_chain_ns": Key("number", "per 1000 bytes of a row (ns)", required=False),
        "row_us": Key("number", "of an SM per elementwise row (us)", required=False),
        "attention_fixed_us": Key("number", "latency of an attention kernel (us)", required=False),
        "mbu_norm": _cached("share of bandwidth in norms"),
        "mbu_rope": _cached("share of bandwidth in rotary embeddings"),
        "mbu_activation": _cached("share of bandwidth in activations"),
        "mbu_add": _cached("share of bandwidth in sums"),
        "mbu_embedding": _cached("share of bandwidth in the embedding"),
        "cached_norm": _gain("norms"),
        "cached_rope": _gain("rotary embeddings"),
        "cached_activation": _gain("activations"),
        "cached_add": _gain("sums"),
        "cached_embedding": _gain("the embedding"),
        "mbu_prefill": _share("share of bandwidth in prefill attention", required=False),
        "prefill_p": Key("number", "exponent in prefill attention", required=False, low=1.0),
        "prefill_tile": _count("queries of a block of prefill attention", required=False),
        "prefill_waves": _share("share of blocks that waits for whole waves", required=False),
        "attention_causal": _share("share of the masked half that is skipped", required=False),
        "decode_waves": _share("share of blocks that waits for whole waves", required=False),
        "attention_context_ns": Key("number", "per token of mean context (ns)", required=False),
        "attention_split_us": Key("number", "where contexts are split (us)", required=False),
        "decode_overlap": _share("how far blocks begin while others read", required=False),
        "mbu_attention_8bit": _share("mbu_attention with an 8-bit cache", required=False),
        "attention_fixed_8bit_us": Key("number", "latency of its kernel (us)", required=False),
        "attention_block_8bit_us": Key("number", "per block of it (us)", required=False),
        "decode_overlap_8bit": _share("decode_overlap of it", required=False),
        "attention_sm_8bit_gb_s": _positive("of it that one SM reads (GB/s)", required=False),
        "mixed_tile": _count("queries of a tile that a decode fills", required=False, low=0),
        "mixed_mfu": _share("share of mfu_attention in such tiles", required=False),
        "mixed_block_us": Key("number", "per such tile (us)", required=False),
        "generation": Key("text", "which software, such as 2024", required=False),
        "accuracy": Key("text", "what they rest on", choices=("measured", "fitted", "data-sheet")),
        "holds_for": Key("texts", "GPUs with the die that was measured", required=False),
    },
    "experts": {
        **_NAME,
        "weights": Key("text", "weights that it is for", choices=tuple(PEAKS)),
        "tiles": Key("text", "how tiles are chosen", choices=tuple(TILE_RULES)),
        "mfu": _share("share of peak FLOP/s with tiles of 64 rows"),
        "small_tiles": _positive("times that with fewer rows", required=False),
        "large_tiles": _positive("times that with more rows", required=False),
        "mbu": _share("share of bandwidth"),
        "smooth_p": Key("number", "exponent of the smooth maximum", low=1.0),
        "tile_us": Key("number", "of an SM per tile (us)"),
        "fixed_us": Key("number", "latency of a call (us)"),
        "number_ps": Key("number", "per number of a visit (ps)"),
        "unaligned": Key("number", "times longer without 16", required=False, low=1.0),
        "tuned": Key("rows", "experts and widths with tuned tiles", required=False),
        "tuned_gain": _positive("times mfu for those", required=False),
    },
    "price": {
        "gpu": Key("text", "name of the GPU"),
        "per_gpu_hour": _positive("price of one GPU for one hour"),
        "currency": Key("text", "ISO code"),
        "tier": Key("text", "kind of offer", choices=TIERS),
        "terms": Key("text", "the offer in the provider's words", required=False),
        "provider": Key("text", "who asks it"),
        "date": Key("text", "when it was read; empty if unknown"),
        "source": Key("text", "where it was read"),
    },
    "model": {
        **_NAME,
        "num_layers": Key("count", "decoder layers", required=False, low=1, high=1000),
        "hidden_size": _count("width of the residual stream"),
        "vocab_size": _count("tokens of the vocabulary"),
        "gated_mlp": Key("flag", "three MLP matrices instead of two"),
        "tied_embeddings": Key("flag", "LM head shares the embedding"),
        "max_position": _count("longest context (tokens)", high=_LONGEST),
        "num_dense_layers": _count("first layers without experts", required=False, low=0),
        "num_sliding_layers": _count("first layers with the window", required=False, low=0),
        "layers": Key("layers", "runs of equal layers, each with its own keys", required=False),
        "kv_dtype": Key("text", "how the cache is stored", required=False, choices=tuple(KV_BYTES)),
        "notes": Key("texts", "what is not simulated", required=False),
        "num_params": _count("all parameters, to check the shape", required=False, high=1e15),
        "kv_bytes_per_token": _count("16-bit KV cache of a token (bytes), a check", required=False),
        **LAYER_KEYS,
    },
    "link": {
        **_NAME,
        "kind": Key("text", "where it runs", choices=("fabric", "network")),
        "bandwidth_gb_s": _positive("one direction of one port, data sheet (GB/s)"),
        "efficiency": _share("share that large point-to-point transfers reach"),
        "allreduce_efficiency": _share("share that each GPU reaches in a large all-reduce"),
        "latency_us": Key("number", "latency of one message (us)"),
        "allreduce_latency_us": Key("number", "fixed latency of one all-reduce (us)"),
        "allreduce": Key(
            "rows", "GPUs, latency (us), share of bandwidth, by world size", required=False
        ),
        "own_allreduce": Key(
            "rows", "GPUs, message (KiB, below), latency (us), share of bandwidth", required=False
        ),
        "wire": Key("text", "physical wire, where entries share one", required=False),
    },
    "node": {
        **_NAME,
        "gpu": Key("text", "name of the GPU in it"),
        "gpus_per_node": _count("GPUs in it"),
        "fabric": Key("text", "link between its GPUs"),
        "network": Key("text", "link to other nodes"),
        "num_nics": _count("ports of that link"),
        "gpus_per_domain": _count("GPUs that the fabric joins, else all", required=False),
        "gpus_per_switch": _count("GPUs on one PCIe link to the CPU, else one", required=False),
    },
    "engine": {
        **_NAME,
        "host_before_ms": Key("number", "CPU work before the first kernel (ms)"),
        "host_after_ms": Key("number", "CPU work after the last kernel (ms)"),
        "host_per_seq_before_us": Key("number", "before, per sequence (us)"),
        "host_per_seq_after_us": Key("number", "after, per sequence (us)"),
        "host_workers_ms": Key("number", "more with several GPUs (ms)", required=False),
        "kernel_generation": Key("text", "which software its kernels are of", required=False),
        "quantises": Key(
            "text",
            "who brings inputs to 8 bits",
            required=False,
            choices=("fused", "unfused", "apart"),
        ),
        "fuses_allreduce": Key("flag", "a norm is part of the all-reduce", required=False),
        "fuses_allreduce_mib": Key("number", "largest message of those (MiB)", required=False),
        "front_end_ms": Key("number", "from arrival to the scheduler (ms)", required=False),
        "front_end_token_us": Key("number", "the same per token (us)", required=False),
        "api_servers": _count("API servers that limit requests/s", required=False, low=0),
        "api_request_ms": Key("number", "CPU of one of them per request (ms)", required=False),
        "api_token_us": Key("number", "and per streamed token (us)", required=False),
        "piece_max_tokens": _count("tokens of steps captured in pieces", required=False, low=0),
        "piece_issue_us": Key("number", "CPU cost per kernel of those (us)", required=False),
        "reserves_output": Key("flag", "admits by the room of whole outputs", required=False),
        "splits_attention": Key("flag", "chunks and decodes in kernels apart", required=False),
        "own_allreduce": Key("flag", "has kernels of its own for all-reduces", required=False),
        "prefix_caching": Key("flag", "common prefixes share KV blocks", required=False),
        "expert_parallel": Key(
            "text",
            "groups of GPUs that it spreads whole experts over",
            required=False,
            choices=("any", "all", "none"),
        ),
        "overlaps_host": Key("flag", "host work runs while the GPU works"),
        "plans_ahead": Key("flag", "a step is planned while the one before runs", required=False),
        "prefill_wait_steps": _count("steps prompts wait for others", required=False, low=0),
        "prefill_wait_share": Key(
            "number", "share of the budget worth no wait", required=False, high=1.0
        ),
        "prefill_interval": _count("of steps with decodes every n-th has prompts", required=False),
        "handover_ms": Key(
            "number", "from KV there to the decode side's queue (ms)", required=False
        ),
        "redoes_last_token": Key(
            "flag", "decode side redoes a prompt's last token", required=False
        ),
        "kv_connector": Key(
            "text",
            "FuDG moves KV beside the steps or inside",
            required=False,
            choices=("beside", "inside"),
        ),
        "kv_put_gbs": Key("number", "KV put per rank, inside the steps (GB/s)", required=False),
        "kv_get_gbs": Key("number", "KV got per rank, inside the steps (GB/s)", required=False),
        "kv_between_steps": Key("flag", "gets pass between prefill steps only", required=False),
        "kv_poll_ms": Key("number", "wait of each get beside its bytes (ms)", required=False),
        "kv_buffer_gb": Key("number", "KV held per rank before prefill stops (GB)", required=False),
        "graph_max_seqs": _count("largest captured decode batch, 0 for none", low=0),
        "issue_us": Key("number", "CPU cost of issuing one kernel (us)"),
        "graph_issue_us": Key("number", "CPU cost of launching a captured step (us)"),
        "queue_depth": _count("kernels that can wait in the GPU's queue"),
        "gpu_memory_utilization": _share("share of GPU memory the engine takes"),
        "memory_rule": Key(
            "text",
            "what gpu_memory_utilization is a share of",
            required=False,
            choices=("total", "static", "free"),
        ),
        "reserved_gb": Key("number", "memory per GPU for all else (GB)"),
        "sampler_bytes": Key("number", "of the profiling pass, per logit (bytes)", required=False),
        "scheduler": Key("text", "what an instance runs next", required=False),
        "large_gpu_max_num_seqs": _count("max_num_seqs from 70 GiB on, A100 out", required=False),
        "large_gpu_chunk_size": _count("chunk_size from 70 GiB on, A100 out", required=False),
        "communicator_gb": Key("number", "per GPU of an NVLink group (GB)", required=False),
        "hybrid_kv_cache": Key("flag", "windowed layers keep their window alone", required=False),
        "block_size": _count("tokens of one KV block"),
        "watermark": _share("share of the blocks kept free when admitting"),
        "max_num_seqs": _count("most sequences running at once"),
        "max_num_batched_tokens": _count("most tokens of a prefill step", required=False),
        "chunk_size": _count("token budget of a chunked step"),
    },
    "lengths": {
        **_NAME,
        "levels": Key("numbers", "cumulative shares, rising from 0 to 1", high=1.0),
        "prompt": Key("numbers", "quantiles of the prompt length (tokens)"),
        "output_by_prompt": Key("rows", "quantiles of the output length (tokens), by slice"),
        "num_measured": _count("rows it was derived from, 0 if fitted", low=0),
        "prompt_mean": _positive("mean prompt length (tokens)"),
        "output_mean": _positive("mean output length (tokens)"),
        "licence": Key("text", "licence of the measured set"),
    },
}
"""Tables of the catalogue and the keys of their entries."""


def check(table: str, row: Row, *, where: str) -> None:
    """Check one entry against the keys of its table.

    Parameters
    ----------
    table : str
        A key of `TABLES`.
    row : mapping
        The entry, keys of ``like`` already filled in.
    where : str
        The entry as an error names it, such as ``mine.toml: gpu[0]``.

    Raises
    ------
    ConfigError
        If a key is unknown, missing, of the wrong type or out of range.
    """
    _check_keys(table, TABLES[table], row, where)
    if rule := unfit_name(str(row.get("name", ""))):
        raise ConfigError(f"{where}.name", row["name"], rule, "Choose another.")
    if table == "lengths":
        _check_lengths(row, where)
    if table == "link":
        _check_all_reduce(row, where)
    if table == "model":
        if "layers" in row:
            _check_runs(row["layers"], f"{where}.layers")  # type: ignore[arg-type]  # just checked
        check_layers(row, where)


def _check_keys(table: str, keys: Mapping[str, Key], row: Row, where: str) -> None:
    """Check that an entry has the keys it must have and no others, each of its type and range."""
    for name in row:
        if name not in keys:
            raise ConfigError(
                f"{where}.{name}", row[name], f"{table} has no such key", nearest(name, keys)
            )
    for name, key in keys.items():
        if name in row:
            _check_value(f"{where}.{name}", row[name], key)
        elif key.required:
            raise ConfigError(
                f"{where}.{name}", None, "the key is missing", f"Add {name}: {key.meaning}."
            )


def _check_value(key: str, value: object, spec: Key) -> None:
    rule = _broken_rule(value, spec)
    if rule:
        raise ConfigError(key, value, f"must be {rule}", f"It is the {spec.meaning}.")


def _broken_rule(value: object, spec: Key) -> str:
    """Return the rule that `value` breaks; empty if none."""
    match spec.kind:
        case "flag":
            return "" if isinstance(value, bool) else "true or false"
        case "text":
            if not isinstance(value, str) or (not value and "empty" not in spec.meaning):
                return "a text"
            if spec.choices and value not in spec.choices:
                return "one of " + ", ".join(spec.choices)
            return ""
        case "texts":
            good = isinstance(value, list) and all(isinstance(v, str) and v for v in value)
            return "" if good else "a list of texts"
        case "numbers":
            good = isinstance(value, list) and all(_is_number(v, spec) for v in value)
            return "" if good else "a list of numbers" + _range(spec)
        case "rows":
            good = isinstance(value, list) and all(
                isinstance(r, list) and all(_is_number(v, spec) for v in r) for r in value
            )
            return "" if good else "a list of lists of numbers" + _range(spec)
        case "layers":
            tables = isinstance(value, list) and all(isinstance(r, dict) for r in value)
            return "" if tables and value else "a list of tables"
        case "count":
            good = isinstance(value, int) and _is_number(value, spec)
            return "" if good else "a whole number" + _range(spec)
        case _:
            return "" if _is_number(value, spec) else "a number" + _range(spec)


def _is_number(value: object, spec: Key) -> bool:
    return (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and spec.low <= value <= spec.high
    )


def _range(spec: Key) -> str:
    if spec.high < math.inf:
        return f" from {spec.low:g} to {spec.high:g}"
    return " above 0" if 0.0 < spec.low < 1.0 else f" of at least {spec.low:g}"


MOST_LAYERS: Final = 1000
"""More layers than any model has: what has more is a slip."""
_RUN_KEYS: Final = {
    "repeat": Key("count", "how many times", required=False, low=1, high=MOST_LAYERS),
    "of": Key("layers", "runs that are repeated", required=False),
    **LAYER_KEYS,
}


def _check_runs(runs: list[Row], where: str, depth: int = 0) -> int:
    """Check the keys of nested runs of layers; return how many layers they are."""
    total = 0
    for i, run in enumerate(runs):
        place = f"{where}[{i}]"
        _check_keys("model.layers", _RUN_KEYS, run, place)
        repeat, inner = run.get("repeat", 1), run.get("of")
        assert isinstance(repeat, int)
        if inner is not None and depth:
            rule, remedy = "runs can be nested once", "Write the runs out."
            raise ConfigError(f"{place}.of", len(runs), rule, remedy)
        assert inner is None or isinstance(inner, list)
        total += repeat * (1 if inner is None else _check_runs(inner, f"{place}.of", depth + 1))
    if total > MOST_LAYERS:
        rule = f"must be at most {MOST_LAYERS} layers"
        raise ConfigError(where, total, rule, "Correct repeat.")
    return total


_ALL_REDUCE: Final = {
    "allreduce": ([8, 5.6, 0.55], "8 GPUs, 5.6 us, 0.55 of the bandwidth"),
    "own_allreduce": ([8, 256, 4.6, 0.16], "8 GPUs, below 256 KiB, 4.6 us, 0.16 of the bandwidth"),
}
"""Rows of all-reduces: an example, and what it says."""


def _check_all_reduce(row: Row, where: str) -> None:
    """Check that each world size has its latency and its share, by rising size of the message."""
    for key, (example, meaning) in _ALL_REDUCE.items():
        last = [0.0, 0.0]
        values: Any = row.get(key, ())
        for i, numbers in enumerate(values):
            good = len(numbers) == len(example) and numbers[0] >= 2 and numbers[0] % 1 == 0
            if not (good and 0 < numbers[-1] <= 1):
                rule = f"must be {len(example)} numbers, from 2 GPUs on, with a share of 0 to 1"
                remedy = f"Write such as {example}: {meaning}."
                raise ConfigError(f"{where}.{key}[{i}]", numbers, rule, remedy)
            if key == "own_allreduce" and numbers[0] == last[0] and numbers[1] <= last[1]:
                rule = f"must be above the {last[1]:g} KiB of the row before"
                raise ConfigError(f"{where}.{key}[{i}]", numbers, rule, "Sort the rows.")
            last = numbers


def _check_lengths(row: Row, where: str) -> None:
    """Check that quantiles rise and have as many values as there are levels."""
    levels, prompt, outputs = row["levels"], row["prompt"], row["output_by_prompt"]
    assert isinstance(levels, list)
    assert isinstance(prompt, list)
    assert isinstance(outputs, list)
    if len(levels) < 2 or levels[0] != 0 or levels[-1] != 1:
        raise ConfigError(
            f"{where}.levels", levels[:2], "must rise from 0 to 1", "Start at 0, end at 1."
        )
    lists = {"levels": levels, "prompt": prompt}
    lists |= {f"output_by_prompt[{i}]": values for i, values in enumerate(outputs)}
    for name, values in lists.items():
        if len(values) != len(levels):
            raise ConfigError(
                f"{where}.{name}",
                len(values),
                f"must have {len(levels)} values, one per level",
                "Add or drop quantiles.",
            )
        if any(b < a for a, b in pairwise(values)):
            raise ConfigError(f"{where}.{name}", values[:3], "must not fall", "Sort the quantiles.")
    if not outputs:
        raise ConfigError(f"{where}.output_by_prompt", [], "is empty", "Give at least one slice.")
