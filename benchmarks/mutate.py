"""Feeds mutated inputs: ``python benchmarks/mutate.py [--inputs 5000] [--seed 0] [--kind KIND]``.

Six kinds of input: scenario files, overrides, traces, catalogue files, a model's config.json, and
result folders. Each input is a valid one (`BASES`) with one to three mutations of its structure
(keys removed, renamed, moved; values of other types and sizes) or of its bytes. It goes through the
commands that read such input, in this process. What must come back is a result or an error of one
short line: a traceback, more than 20 s, or more than 4 GB is a finding, printed with the number of
the input. ``--kind trace --first 17 --inputs 1 --keep DIR`` makes that input again and keeps it.

Inputs that are valid but large (millions of requests) are read and checked, not simulated.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LIMIT_S = 20
LIMIT_BYTES = 4 << 30
BATCH = 250
LONGEST_LINE = 1500
MOST_TOKENS = 2_000_000
"""Tokens of all requests together up to which an input is simulated."""

NASTY: list[Any] = [
    0, 1, -1, 2, 3, 7, 10**6, 10**12, 10**30, -(10**30), 2**31, 2**63, 2**64, 0.0, -0.0, 0.5, 1e-9,
    1e-300, 1e300, -1e300, float("nan"), float("inf"), float("-inf"), True, False, "", " ", "0",
    "1e3", "nan", "null", "none", "auto", "fixed", "poisson", "L20", "H100", "../..", "/dev/null",
    "/dev/zero", "a" * 300, "\x1b[31m", "\x00", "\ud800", "\u202e", "=cmd()", "$", "_x", "é", [],
    [0], [1, 2, 3], ["a"], [[]], {}, {"kind": "fixed"}, {"a": {}}, {"name": "x"}, [{}], [None],
    None,
]  # fmt: skip


# --- valid inputs ---------------------------------------------------------------------------------

_COMMON: dict[str, Any] = {
    "model": {"name": "llama-2-7b"},
    "cluster": {"gpu": "A100", "nodes": 1, "gpus_per_node": 4},
    "engine": {"profile": "vllm-0.19", "max_model_len": 2048},
    "workload": {
        "lengths": {"kind": "fixed", "prompt_len": 100, "output_len": 8},
        "rate_rps": 4.0,
        "num_requests": 8,
    },
    "slo": {"ttft_s": 1.0, "tpot_s": 0.1},
    "run": {"seeds": [0], "warmup_s": 0.0},
}
_FIXED = {"kind": "fixed", "prompt_len": 9, "output_len": 3}
_NODG = {"name": "a", "kind": "nodg", "instances": 2, "router": "round-robin"}
_FUDG = {"name": "b", "kind": "fudg", "prefill_instances": 1, "decode_instances": 2}
_PADG = {"name": "c", "kind": "padg", "instances": 4}
_ROUTED = {
    "name": "d",
    "kind": "routed",
    "models": ["llama-2-7b", "qwen2.5-7b"],
    "fractions": [0.5, 0.5],
    "pool": [
        {"model": m, "gpu": g, "serving": {"name": "x", "kind": "nodg", "instances": 1}}
        for m, g in (("llama-2-7b", "A100"), ("qwen2.5-7b", "H100"))
    ],
}
SCENARIOS: list[dict[str, Any]] = [
    {**_COMMON, "strategy": [_NODG, _FUDG, _PADG]},
    {
        **_COMMON,
        "engine": {"profile": "vllm-0.7", "max_model_len": 1024, "watermark": 0.01},
        "strategy": [{**_NODG, "autoscale": {"up": 4.0, "down": 1.0, "max_instances": 2}}],
    },
    {
        **_COMMON,
        "cluster": {"gpu": "L20", "nodes": 2, "network": "10gbe", "nics": 2},
        "strategy": [{**_FUDG, "placement": "inter-node", "transfer": "layerwise"}],
        "sweep": {"rates_rps": [1.0, 2.0]},
    },
    {
        **_COMMON,
        "extra_model": [{"name": "qwen2.5-7b"}],
        "extra_cluster": [{"gpu": "H100", "gpus_per_node": 2}],
        "quality": {"kind": "points", "points": [[0, 0.8], [1, 0.9]]},
        "strategy": [_ROUTED],
    },
    {
        **_COMMON,
        "workload": {
            "arrivals": {"kind": "sessions", "mean_turns": 2.0},
            "rate_rps": 2.0,
            "num_requests": 8,
        },
        "strategy": [_NODG],
    },
    {
        **_COMMON,
        "workload": {
            "arrivals": {"kind": "closed-loop", "concurrency": 4},
            "num_requests": 8,
            "classes": [
                {"name": "x", "share": 0.5, "lengths": "sharegpt-ecoserve", "priority": 1},
                {"name": "y", "share": 0.5, "lengths": _FIXED},
            ],
        },
        "slo": {"ttft_s": 1.0, "classes": {"x": {"tpot_s": 0.2}}},
        "strategy": [{**_NODG, "queue": "priority"}],
    },
]  # fmt: skip

TRACES: list[tuple[str, str]] = [
    ("t.csv", "arrival_s,prompt_len,output_len\n0,100,5\n0.5,200,7\n1.25,90,3\n3,30,1\n"),
    (
        "azure.csv",
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n"
        "2023-11-16 18:15:50.9951690,396,109\n2023-11-16 18:15:51.2225670,879,55\n",
    ),
    (
        "burst.csv",
        "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,230,1317,Conversation log\n",
    ),
    (
        "mooncake.jsonl",
        '{"timestamp": 0, "input_length": 1200, "output_length": 5, "hash_ids": [0, 1, 2]}\n'
        '{"timestamp": 3000, "input_length": 1030, "output_length": 6, "hash_ids": [0, 1, 3]}\n'
        '{"timestamp": 27000, "input_length": 600, "output_length": 2, "hash_ids": [0, 9]}\n',
    ),
    (
        "bailian.jsonl",
        '{"chat_id": 1, "parent_chat_id": -1, "timestamp": 0.0, "input_length": 40, '
        '"output_length": 5, "type": "text", "turn": 1, "hash_ids": [1, 2, 3]}\n'
        '{"chat_id": 2, "parent_chat_id": 1, "timestamp": 8.0, "input_length": 70, '
        '"output_length": 5, "type": "text", "turn": 2, "hash_ids": [1, 2, 3, 4, 5]}\n',
    ),
    (
        "aiperf.jsonl",
        '{"session_id": "s", "input_length": 100, "output_length": 10, "timestamp": 0}\n'
        '{"session_id": "s", "input_length": 50, "output_length": 10, "delay": 500}\n',
    ),
    (
        "servesim.jsonl",
        '{"input_toks": 2, "output_toks": 4, "arrival_time_ns": 0, "input_tok_ids": [1, 2]}\n'
        '{"input_toks": 3, "output_toks": 5, "arrival_time_ns": 900000000, '
        '"input_tok_ids": [1, 2, 9]}\n',
    ),
]

CATALOGUES: list[dict[str, Any]] = [
    {
        "gpu": [{"name": "Mine", "like": "A100", "bandwidth_gb_s": 3000, "source": "x"}],
        "price": [{"gpu": "Mine", "per_gpu_hour": 1.5, "currency": "USD", "tier": "on-demand",
                   "provider": "me", "date": "2026-01", "source": "x"}],
    },
    {"engine": [{"name": "mine", "like": "vllm-0.19", "chunk_size": 512, "source": "x"}]},
    {"model": [{"name": "mine", "like": "llama-2-7b", "num_layers": 4, "source": "x"}]},
    {"model": [{"name": "mine", "hidden_size": 1024, "num_layers": 4, "num_heads": 8,
                "num_kv_heads": 2, "head_dim": 128, "ffn_dim": 4096, "vocab_size": 32000,
                "max_position": 4096, "gated_mlp": True, "tied_embeddings": False, "source": "x"}]},
    {"link": [{"name": "mine", "like": "pcie4", "bandwidth_gb_s": 10, "source": "x"}],
     "node": [{"name": "box", "gpu": "A100", "gpus_per_node": 4, "fabric": "mine",
               "network": "10gbe", "num_nics": 1, "source": "x"}]},
    {"kernels": [{"name": "k", "like": "ampere-ga100", "mfu_gemm": 0.5, "source": "x"}],
     "gpu": [{"name": "Mine", "like": "A100", "kernels": "k", "source": "x"}]},
    {"lengths": [{"name": "mine", "levels": [0.0, 0.5, 1.0], "prompt": [1.0, 50.0, 100.0],
                  "output_by_prompt": [[1.0, 5.0, 10.0]], "num_measured": 100,
                  "prompt_mean": 50.0, "output_mean": 5.0, "source": "x", "licence": "x"}]},
]  # fmt: skip

_LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 1024, "intermediate_size": 4096,
    "num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 32000,
    "max_position_embeddings": 4096, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
CONFIGS: list[dict[str, Any]] = [
    _LLAMA,
    {**_LLAMA, "architectures": ["MixtralForCausalLM"], "num_local_experts": 8,
     "num_experts_per_tok": 2},
    {**_LLAMA, "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 16,
     "num_experts_per_tok": 4, "moe_intermediate_size": 256, "head_dim": 128,
     "decoder_sparse_step": 1, "mlp_only_layers": [],
     "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128],
                             "modules_to_not_convert": ["lm_head"]}},
    {**_LLAMA, "architectures": ["DeepseekV3ForCausalLM"], "q_lora_rank": 256, "kv_lora_rank": 128,
     "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64, "n_routed_experts": 8,
     "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 256,
     "first_k_dense_replace": 1, "moe_layer_freq": 1, "num_key_value_heads": 8},
    {"architectures": ["Gemma3ForConditionalGeneration"],
     "text_config": {**_LLAMA, "head_dim": 128, "sliding_window": 512, "sliding_window_pattern": 2,
                     "architectures": None}},
    {**_LLAMA, "architectures": ["GptOssForCausalLM"], "head_dim": 64, "num_local_experts": 8,
     "num_experts_per_tok": 2, "sliding_window": 128,
     "layer_types": ["sliding_attention", "full_attention"] * 2,
     "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["self_attn"]}},
]  # fmt: skip


# --- mutations ------------------------------------------------------------------------------------


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Give every container of a document and every key in it."""
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        for key in keys:
            yield value, key
            yield from places(value[key])


def mutate(document: Any, rng: random.Random) -> Any:
    """Return a copy of a document with one change of its structure."""
    document = copy.deepcopy(document)
    found = list(places(document))
    if not found:
        return rng.choice(NASTY)
    place, key = rng.choice(found)
    other_place, other_key = rng.choice(found)
    if rng.randrange(2) and isinstance(place[key], bool | int | float):
        place[key] = alike(place[key], rng)
        return document
    match rng.randrange(7):
        case 0:
            del place[key]
        case 1 if isinstance(place, dict):
            name = str(key)
            at = rng.randrange(len(name) + 1)
            place[name[:at] + rng.choice("aZ_0. \x00") + name[at + 1 :]] = place.pop(key)
        case 2:
            place[key] = copy.deepcopy(other_place[other_key])
        case 3 if isinstance(place[key], bool | int | float):
            place[key] = alike(place[key], rng)
        case 4:
            place[key] = [place[key]] * rng.choice([0, 1, 2, 50])
        case _:
            place[key] = rng.choice(NASTY)
    return document


def alike(value: bool | float, rng: random.Random) -> bool | float:
    """Another value of the same type, which a rule for the type lets pass."""
    if isinstance(value, bool):
        return not value
    scaled = value * rng.choice([-1, 0, 0.1, 0.5, 1.5, 2, 3, 10, 1000, 1e6, 1e12, 1e-3, 1e-9])
    return round(scaled) if isinstance(value, int) else scaled


def mangle(data: bytes, rng: random.Random) -> bytes:
    """Return bytes with one change."""
    at, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    match rng.randrange(8):
        case 0:
            return data[:at]
        case 1:
            return data[:at] + data[end:]
        case 2:
            return data[:at] + rng.randbytes(rng.choice([1, 2, 30])) + data[at:]
        case 3:
            return data[:end] + data[at:end] * rng.choice([1, 3]) + data[end:]
        case 4:
            return b"\xef\xbb\xbf" + data
        case 5:
            return data.replace(b"\n", b"\r\n")
        case 6:
            lines = data.splitlines(keepends=True)
            rng.shuffle(lines)
            return b"".join(lines)
        case _:
            digits = [i for i, one in enumerate(data) if chr(one).isdigit()] or [0]
            where = rng.choice(digits)
            new = rng.choice([b"", b"-", b"9" * 30, b"1e300", b"nan", b".", b"0x", b"1_0", b"\x00"])
            return data[:where] + new + data[where + 1 :]


def times(rng: random.Random) -> range:
    """One to three mutations, most often one."""
    return range(rng.choice([1, 1, 1, 2, 2, 3]))


def changed(document: Any, rng: random.Random) -> Any:
    """A document with one to three mutations."""
    for _ in times(rng):
        document = mutate(document, rng)
    return document


def toml(document: Any) -> bytes:
    """A document as TOML; values that TOML lacks as their nearest text."""

    def value(of: Any) -> str:
        match of:
            case bool():
                return str(of).lower()
            case None:
                return '"None"'
            case float():
                return repr(of)
            case int():
                return str(of)
            case str():
                return json.dumps(of).replace("\\ud800", "?")
            case list():
                return f"[{', '.join(map(value, of))}]"
            case _:
                inside = (
                    f"{json.dumps(str(k)).replace(chr(127), '')} = {value(v)}"
                    for k, v in of.items()
                )
                return f"{{ {', '.join(inside)} }}"  # fmt: skip

    if not isinstance(document, dict):
        return value(document).encode()
    lines = [f"{json.dumps(str(key))} = {value(of)}" for key, of in document.items()]
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def maybe_mangled(data: bytes, rng: random.Random) -> bytes:
    """Bytes as they are, or in one of six with a change."""
    return mangle(data, rng) if rng.randrange(6) == 0 else data


# --- inputs ---------------------------------------------------------------------------------------

Calls = list[list[str]]
"""Command lines, one after the other; ``run`` only where the one before says that it is small."""


def scenario(rng: random.Random, folder: Path) -> Calls:
    """A scenario file."""
    path = folder / "scenario.toml"
    data = toml(changed(rng.choice(SCENARIOS), rng))
    path.write_bytes(maybe_mangled(data, rng))
    return [["show", str(path)], ["check", str(path), "--json"], ["run", str(path)]]


def override(rng: random.Random, folder: Path) -> Calls:
    """Values by dotted key, of keys that exist and of others."""
    path = folder / "scenario.toml"
    document = rng.choice(SCENARIOS)
    path.write_bytes(toml(document))
    settings: list[str] = []
    for _ in times(rng):
        tables = [(name, table) for name, table in document.items() if isinstance(table, dict)]
        keys = [f"{name}.{key}" for name, table in tables for key in table]
        keys += ["strategy.0." + key for key in document["strategy"][0]]
        keys += [f"{table}.{key}" for table, known in schema_keys().items() for key in known]
        key = rng.choice(keys)
        if rng.randrange(8) == 0:
            key = mangle(key.encode(), rng).decode("utf-8", "replace")
        value = rng.choice(NASTY)
        text = value if isinstance(value, str) else toml(value).decode().strip()
        if rng.randrange(8) == 0:
            text = mangle(text.encode("utf-8", "replace"), rng).decode("utf-8", "replace")
        settings += ["--set", f"{key}={text}"]
    return [
        ["show", str(path), *settings],
        ["check", str(path), "--json", *settings],
        ["run", str(path), *settings],
    ]


def schema_keys() -> dict[str, list[str]]:
    """Keys of the tables of a scenario file."""
    from simcluster.scenario.tables import ClusterTable, EngineTable, ModelTable

    tables = {"engine": EngineTable, "cluster": ClusterTable, "model": ModelTable}
    return {name: list(table.__dataclass_fields__) for name, table in tables.items()}


def trace(rng: random.Random, folder: Path) -> Calls:
    """A trace of one of seven formats, changed as rows or as bytes."""
    name, text = rng.choice(TRACES)
    if name.endswith(".jsonl") and rng.randrange(2):
        rows = changed([json.loads(line) for line in text.splitlines()], rng)
        rows = rows if isinstance(rows, list) else [rows]
        data = "\n".join(map(json.dumps, rows)).encode()
    elif rng.randrange(2):
        cells = changed([line.split(",") for line in text.splitlines()], rng)
        rows = cells if isinstance(cells, list) else [[cells]]
        lines = (row if isinstance(row, list) else [row] for row in rows)
        data = "\n".join(",".join(map(str, line)) for line in lines).encode("utf-8", "replace")
    else:
        data = text.encode()
        for _ in times(rng):
            data = mangle(data, rng)
    path = folder / name
    path.write_bytes(maybe_mangled(data, rng))
    base = folder / "scenario.toml"
    document = {**_COMMON, "workload": {"trace": str(path)}, "strategy": [_NODG]}
    base.write_bytes(toml(document))
    told = rng.choice([[], ["--time-unit", "s"], ["--block-size", "16"], ["--format", "csv"]])
    return [
        ["trace", str(path), *told],
        ["check", str(base), "--json"],
        ["run", str(base)],
    ]


def catalogue(rng: random.Random, folder: Path) -> Calls:
    """A catalogue file of one's own, with a scenario that uses it."""
    own = rng.choice(CATALOGUES)
    path = folder / "mine.toml"
    path.write_bytes(maybe_mangled(toml(changed(own, rng)), rng))
    document: dict[str, Any] = {
        **copy.deepcopy(_COMMON),
        "strategy": [_NODG],
        "catalog": [str(path)],
    }
    if "gpu" in own:
        document["cluster"]["gpu"] = "Mine"
    if "engine" in own:
        document["engine"]["profile"] = "mine"
    if "model" in own:
        document["model"]["name"] = "mine"
    if "node" in own:
        document["cluster"] = {"node": "box"}
    if "lengths" in own:
        document["workload"]["lengths"] = "mine"
    base = folder / "scenario.toml"
    base.write_bytes(toml(document))
    return [["check", str(base), "--json"], ["run", str(base)]]


def config(rng: random.Random, folder: Path) -> Calls:
    """A model's config.json, alone and in a scenario."""
    path = folder / "config.json"
    data = json.dumps(changed(rng.choice(CONFIGS), rng)).encode()
    path.write_bytes(maybe_mangled(data, rng))
    base = folder / "scenario.toml"
    document = {**_COMMON, "strategy": [_NODG], "model": {"name": "config.json"}}
    base.write_bytes(toml(document))
    return [
        ["catalog", "add-model", str(path)],
        ["check", str(base), "--json"],
        ["run", str(base)],
    ]


def folder_of_results(rng: random.Random, folder: Path) -> Calls:
    """A result folder with one of its files changed, renamed, doubled or gone."""
    out = folder / "out"
    shutil.copytree(results(), out)
    files = sorted(path for path in out.rglob("*") if path.is_file())
    for _ in times(rng):
        file = rng.choice(files)
        if not file.exists():
            continue
        match rng.randrange(6):
            case 0:
                file.unlink()
            case 1:
                file.rename(file.with_name("x" + file.name))
            case 2:
                shutil.copy(rng.choice([f for f in files if f.exists()]), folder / "spare")
                (folder / "spare").replace(file)
            case 3 if file.suffix == ".json":
                text = json.dumps(changed(json.loads(file.read_text()), rng))
                file.write_text(text, errors="replace")
            case _:
                file.write_bytes(mangle(file.read_bytes(), rng))
    base = folder / "scenario.toml"
    base.write_bytes(toml(FOLDER))
    return [["*read", str(out)], ["compare", str(base), "-o", str(out), "--jobs", "1"]]


FOLDER = {**_COMMON, "sweep": {"rates_rps": [2.0, 4.0]}, "strategy": [_NODG, _FUDG]}
_results: list[Path] = []


def results() -> Path:
    """A result folder as it should be, made once in a process."""
    if not _results:
        home = Path(tempfile.mkdtemp(prefix="mutate-"))
        (home / "scenario.toml").write_bytes(toml(FOLDER))
        out = home / "out"
        arguments = ["compare", str(home / "scenario.toml"), "-o", str(out), "--jobs", "1"]
        code, _, error = call(arguments)
        assert code == 0, error
        _results.append(out)
    return _results[0]


KINDS: dict[str, Callable[[random.Random, Path], Calls]] = {
    "scenario": scenario,
    "override": override,
    "trace": trace,
    "catalogue": catalogue,
    "config.json": config,
    "results": folder_of_results,
}


# --- one input ------------------------------------------------------------------------------------


class TooLong(BaseException):
    """An input took longer than the limit."""


def _alarm(*_: object) -> None:
    raise TooLong


def call(arguments: list[str]) -> tuple[int, str, str]:
    """Call the command line in this process: exit code, standard output, standard error."""
    from simcluster.cli import main

    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            if arguments[0] == "*read":
                read_results(Path(arguments[1]))
            else:
                main(arguments)
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
    return code, out.getvalue(), error.getvalue()


def read_results(out: Path) -> None:
    """Read a result folder as a script does; an error is one line, as at the command line."""
    import simcluster
    from simcluster.errors import SimclusterError, printable

    try:
        found = simcluster.read(out)
        for cell in found.cells():
            found.frames(cell)
        assert len(found.goodput) >= 0
        assert found.scenario is not None
    except SimclusterError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(1)


def is_small(checked: str) -> bool:
    """Whether a checked scenario takes a moment to run."""
    known = json.loads(checked)["requests"]
    each = known["mean"]["prompt_len"] + known["mean"]["output_len"]
    return bool(known["num_requests"] * each <= MOST_TOKENS)


def fault(calls: Calls, codes: list[int]) -> str:
    """Run the calls of an input; return what is wrong, empty if nothing is, and add exit codes."""
    before = ""
    for arguments in calls:
        if arguments[0] == "run" and not (before and is_small(before)):
            break
        before = ""
        try:
            code, out, error = call(arguments)
        except TooLong:
            return f"{arguments[0]}: more than {LIMIT_S} s"
        except MemoryError:
            return f"{arguments[0]}: more than {LIMIT_BYTES >> 30} GB"
        except BaseException:
            lines = traceback.format_exc().strip().splitlines()
            where = [line.strip() for line in lines if "simcluster/" in line][-1:]
            return f"{arguments[0]}: traceback: {lines[-1][:200]} ({''.join(where)})"
        codes.append(code)
        if code not in (0, 1, 2):
            return f"{arguments[0]}: exit code {code}"
        lines = error.strip().splitlines()
        told = [line for line in lines if line.startswith(("error: ", "Error: "))]
        if code and len(told) != 1:
            return f"{arguments[0]}: {len(told)} lines of error: {error[:200]!r}"
        if code and (len(told[0]) > LONGEST_LINE or not told[0].isprintable()):
            return f"{arguments[0]}: a line of {len(told[0])} characters: {told[0][:200]!r}"
        if code == 1 and arguments[0] == "trace":
            continue
        if code:
            break
        before = out if arguments[0] == "check" else ""
    return ""


def work(kind: str, seed: int, first: int, count: int, keep: Path | None) -> None:
    """Run inputs of one kind and print a line of JSON for each."""
    import simcluster.runs.compare  # noqa: F401 - imports are not the input's time
    from simcluster.scenario import file  # noqa: F401 - the same

    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_BYTES, LIMIT_BYTES))
    signal.signal(signal.SIGALRM, _alarm)
    if kind == "results":
        results()
    for number in range(first, first + count):
        rng = random.Random(f"{seed} {kind} {number}")
        with tempfile.TemporaryDirectory() as name:
            calls = KINDS[kind](rng, Path(name))
            if keep is not None:
                shutil.copytree(name, keep / f"{kind}-{number}")
            start = time.perf_counter()
            codes: list[int] = []
            signal.alarm(LIMIT_S)
            try:
                wrong = fault(calls, codes)
            except TooLong:
                wrong = f"more than {LIMIT_S} s"
            finally:
                signal.alarm(0)
        took_s = time.perf_counter() - start
        print(json.dumps([number, wrong, took_s, not any(codes)]), flush=True)
    for path in _results:
        shutil.rmtree(path.parent, ignore_errors=True)


def main() -> None:
    """Run all kinds in batches of fresh processes and print what went wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--inputs", type=int, default=5000, help="all kinds together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS, help="only this kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first input of a kind")
    parser.add_argument("--keep", type=Path, help="copy the inputs to this folder")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.worker:
        work(told.kind, told.seed, told.first, told.inputs, told.keep)
        return
    kinds = [told.kind] if told.kind else list(KINDS)
    findings: Counter[str] = Counter()
    start, slowest, done, taken = time.perf_counter(), (0.0, ""), 0, 0
    for kind in kinds:
        left = range(told.first, told.first + told.inputs // len(kinds))
        while left:
            batch, left = left[:BATCH], left[BATCH:]
            command = [sys.executable, __file__, "--worker", "--kind", kind]
            command += ["--seed", str(told.seed), "--first", str(batch[0])]
            command += ["--inputs", str(len(batch))]
            command += ["--keep", str(told.keep)] if told.keep else []
            child = subprocess.run(command, capture_output=True, text=True, check=False)
            rows = [json.loads(line) for line in child.stdout.splitlines() if line[:1] == "["]
            for number, wrong, took_s, is_taken in rows:
                taken += is_taken
                slowest = max(slowest, (took_s, f"{kind} {number}"))
                if wrong:
                    findings[wrong] += 1
                    print(f"{kind} {number}: {wrong}", flush=True)
            done += len(rows)
            if len(rows) < len(batch):
                lost = batch[len(rows)]
                findings["process lost"] += 1
                print(f"{kind} {lost}: the process ended: {child.stderr[-300:]}", flush=True)
                left = range(lost + 1, left.stop if left else batch.stop)
        print(f"{kind}: done after {time.perf_counter() - start:.0f} s", file=sys.stderr)
    print(
        f"{done} inputs ({taken} accepted) in {time.perf_counter() - start:.0f} s: "
        f"{findings.total()} findings of {len(findings)} kinds; slowest {slowest[0]:.1f} s "
        f"({slowest[1]})"
    )
    sys.exit(1 if findings else 0)


if __name__ == "__main__":
    main()
