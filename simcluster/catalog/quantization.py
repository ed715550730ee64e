"""Dtypes of a checkpoint, from what its files say of quantisation.

Read are ``quantization_config`` of ``config.json`` and ``hf_quant_config.json`` beside it: fp8 (by
blocks too), modelopt, compressed-tensors, AWQ, GPTQ, bitsandbytes, MXFP4 and torchao. Rules name
modules of the layers; a layer's parts are asked for by the names that models give them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

Fault = Callable[[str, object, str, str], Exception]
"""Makes the error about one key: from key, value, rule and remedy."""

PARTS: Final[Mapping[str, tuple[str, ...]]] = {
    "mixer_dtype": (
        "self_attn.q_proj",
        "self_attn.q_a_proj",
        "self_attn.qkv_proj",
        "linear_attn.in_proj_qkv",
        "linear_attn.in_proj_qkvz",
        "mixer.in_proj",
        "mixer.q_proj",
    ),
    "out_dtype": ("self_attn.o_proj", "linear_attn.out_proj", "mixer.out_proj", "mixer.o_proj"),
    "mlp_dtype": ("mlp.gate_proj", "mlp.up_proj", "mixer.up_proj", "feed_forward.gate_proj"),
    "experts_dtype": (
        "mlp.experts.0.gate_proj",
        "mlp.experts",
        "block_sparse_moe.experts.0.w1",
        "mixer.experts.0.up_proj",
        "feed_forward.experts.gate_up_proj",
        "experts.0.gate_proj",
    ),
    "shared_dtype": (
        "mlp.shared_experts.gate_proj",
        "mlp.shared_expert.gate_proj",
        "mixer.shared_experts.up_proj",
        "feed_forward.shared_expert.gate_proj",
    ),
}
"""Modules of a layer that stand for each of its parts, by the families' names."""
_ALGORITHMS: Final = {
    "FP8": "fp8",
    "FP8_PER_CHANNEL_PER_TOKEN": "fp8",
    "FP8_PB_WO": "fp8-block",
    "FP8_PB_REAL": "fp8-block",
    "MXFP8": "mxfp8",
    "NVFP4": "nvfp4",
    "NVFP4_AWQ": "nvfp4",
    "W4A16_NVFP4": "nvfp4",
    "W4A8_NVFP4_FP8": "nvfp4",
    "MXFP4": "mxfp4",
    "W4A8_MXFP4_FP8": "mxfp4",
    "W4A16_AWQ": "int4",
    "W4A8_AWQ": "int4",
    "INT4_AWQ": "int4",
    "W8A8_SQ": "int8",
    "INT8_SQ": "int8",
}
"""Dtypes by the names of modelopt's algorithms."""
_KNOWN: Final = "fp8, modelopt, compressed-tensors, awq, gptq, bitsandbytes, mxfp4, torchao"
_REMEDY: Final = (
    "Name the dtype with model.weight_dtype in the scenario, or take another checkpoint."
)


@dataclass(frozen=True, slots=True)
class Quantization:
    """What a checkpoint says of its weights and its cache.

    Attributes
    ----------
    rules : tuple of (tuple of str, str)
        Patterns of module names and the dtype of what they match; the first that matches counts.
    otherwise : str
        Dtype of all other modules.
    kv_dtype : str or None
        Of the cache; None if it does not say.
    """

    rules: tuple[tuple[tuple[str, ...], str], ...] = ()
    otherwise: str = "bf16"
    kv_dtype: str | None = None

    def dtypes(self, layer: int, modules: Mapping[str, tuple[str, ...]] = PARTS) -> dict[str, str]:
        """Return the dtype of each part of a layer that is not stored in 16 bits.

        `modules` are the names that stand for each part.
        """
        found = {part: self._dtype(layer, names) for part, names in modules.items()}
        return {part: dtype for part, dtype in found.items() if dtype != "bf16"}

    def _dtype(self, layer: int, names: Sequence[str]) -> str:
        full = [f"model.layers.{layer}.{name}" for name in names]
        for patterns, dtype in self.rules:
            if any(_matches(pattern, name) for pattern in patterns for name in full):
                return dtype
        return self.otherwise


def _matches(pattern: str, name: str) -> bool:
    """Whether a rule means a module: by regular expression, by wildcards, or by a part of it.

    What stands before ``layers.`` differs from family to family and says nothing.
    """
    if pattern.startswith("re:"):
        return re.match(pattern[3:], name) is not None
    if "layers." in pattern:
        pattern = "*layers." + pattern.split("layers.", 1)[1]
        return any(fnmatchcase(name, form) for form in (pattern, pattern + ".*"))
    if "*" in pattern or "." in pattern:
        return fnmatchcase(name, pattern) or fnmatchcase(name, f"*{pattern.lstrip('*')}.*")
    return pattern in name.split(".")


def read(found: Mapping[str, object], fault: Fault) -> Quantization:
    """Return what a ``quantization_config``, or modelopt's own file, says.

    Raises
    ------
    ConfigError
        If the method or its numbers are not known.
    """
    method = str(found.get("quant_method") or ("modelopt" if "quant_algo" in found else ""))
    ignored = _ignored(found)
    kv_dtype = _kv_dtype(found)
    if "quant_algo" in found or method == "modelopt":
        return _modelopt(found, ignored, kv_dtype, fault)
    match method:
        case "fp8" | "fbgemm_fp8":
            dtype = "fp8-block" if found.get("weight_block_size") else "fp8"
        case "mxfp4":
            dtype = "mxfp4"
        case "compressed-tensors":
            return _groups(found, ignored, kv_dtype, fault)
        case "awq" | "gptq" | "gptq_marlin" | "awq_marlin" | "auto-round":
            dtype = _integers(found, found.get("bits") or found.get("w_bit") or 4, fault)
        case "bitsandbytes":
            dtype = "nf4" if found.get("load_in_4bit") or found.get("_load_in_4bit") else "int8"
        case "torchao":
            dtype = _torchao(found, fault)
        case _:
            rule = f"is a way of quantising that is not known ({_KNOWN} are)"
            raise fault("quantization_config.quant_method", method or None, rule, _REMEDY)
    return Quantization(((ignored, "bf16"),), dtype, kv_dtype)


def _ignored(found: Mapping[str, object]) -> tuple[str, ...]:
    """Return the modules that are left in 16 bits."""
    keys = ("ignore", "exclude_modules", "modules_to_not_convert", "llm_int8_skip_modules")
    lists = [found.get(key) for key in keys]
    return tuple(str(name) for names in lists if isinstance(names, list) for name in names)


def _kv_dtype(found: Mapping[str, object]) -> str | None:
    """Return how the cache is to be stored."""
    scheme = found.get("kv_cache_scheme") or found.get("kv_cache_quant_algo")
    if isinstance(scheme, Mapping):
        numbers = f"{scheme.get('num_bits')} {scheme.get('type')}"
        return {"8 float": "fp8", "8 int": "int8", "4 float": "nvfp4"}.get(numbers)
    return {"FP8": "fp8", "INT8": "int8", "NVFP4": "nvfp4"}.get(str(scheme))


def _modelopt(
    found: Mapping[str, object], ignored: tuple[str, ...], kv_dtype: str | None, fault: Fault
) -> Quantization:
    named = found.get("quantized_layers")
    algorithm = str(found.get("quant_algo"))
    if isinstance(named, Mapping):
        by_dtype: dict[str, list[str]] = {}
        for module, how in named.items():
            algo = str(how.get("quant_algo")) if isinstance(how, Mapping) else str(how)
            by_dtype.setdefault(_algorithm(algo, fault), []).append(str(module))
        rules = tuple((tuple(names), dtype) for dtype, names in by_dtype.items())
        return Quantization(((ignored, "bf16"), *rules), "bf16", kv_dtype)
    return Quantization(((ignored, "bf16"),), _algorithm(algorithm, fault), kv_dtype)


def _algorithm(name: str, fault: Fault) -> str:
    dtype = _ALGORITHMS.get(name)
    if dtype is None:
        rule = f"is an algorithm that is not known ({', '.join(_ALGORITHMS)} are)"
        raise fault("quantization_config.quant_algo", name, rule, _REMEDY)
    return dtype


def _groups(
    found: Mapping[str, object], ignored: tuple[str, ...], kv_dtype: str | None, fault: Fault
) -> Quantization:
    groups = found.get("config_groups")
    rules: list[tuple[tuple[str, ...], str]] = [(ignored, "bf16")]
    otherwise = "bf16"
    for group in groups.values() if isinstance(groups, Mapping) else ():
        weights = group.get("weights") if isinstance(group, Mapping) else None
        if not isinstance(weights, Mapping):
            continue
        dtype = _numbers(weights, fault)
        targets = [str(target) for target in group.get("targets", ["Linear"])]
        if "Linear" in targets:
            otherwise = dtype
        elif targets:
            rules.append((tuple(targets), dtype))
    return Quantization(tuple(rules), otherwise, kv_dtype)


def _numbers(weights: Mapping[str, object], fault: Fault) -> str:
    """Return the dtype of a group of compressed-tensors."""
    bits, kind, size = weights.get("num_bits"), weights.get("type"), weights.get("group_size")
    if bits == 8:
        if kind == "int":
            return "int8"
        return "fp8-block" if weights.get("strategy") == "block" else "fp8"
    if bits == 4 and kind == "float":
        return "mxfp4" if size == 32 else "nvfp4"
    return _integers(weights, bits, fault)


def _integers(found: Mapping[str, object], bits: object, fault: Fault) -> str:
    size = found.get("group_size") or found.get("q_group_size") or 128
    if bits == 8:
        return "int8"
    known: dict[object, str] = {-1: "int4", 128: "int4", 64: "int4-g64", 32: "int4-g32"}
    if bits != 4 or size not in known:
        rule = f"with {bits} bits is not known (4 bits by 32, 64 or 128 weights, and 8 bits are)"
        raise fault("quantization_config.group_size", size, rule, _REMEDY)
    return known[size]


def _torchao(found: Mapping[str, object], fault: Fault) -> str:
    kind = str(found.get("quant_type")).lower()
    marks: Iterable[tuple[str, str]] = (
        ("float8", "fp8"),
        ("int8", "int8"),
        ("int4", "int4"),
    )
    for mark, dtype in marks:
        if mark in kind:
            return dtype
    rule = "names no dtype that is known (float8, int8, int4 are)"
    raise fault("quantization_config.quant_type", kind[:60], rule, _REMEDY)
