"""A ``config.json`` of Hugging Face style, read as an entry of the table of models.

One architecture is one line of `ARCHITECTURES` and, where its layers are unusual, one function
that gives the keys of each layer. What is not known is refused by what it is: a wrong shape looks
like a right one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from simcluster.catalog import model_entry, quantization
from simcluster.catalog.layers import ModelSpec
from simcluster.catalog.quantization import PARTS, Quantization
from simcluster.catalog.tables import MOST_LAYERS, Row, check
from simcluster.errors import ConfigError, DataError

Numbers = dict[str, object]
"""Keys of an entry of the table of models."""
Layers = list[Numbers]
"""Keys of each layer in which it differs from the entry."""

_TEXT_PARTS: Final = ("text_config", "llm_config", "language_config")
_SENSES: Final = {"vision_config": "images", "audio_config": "sound"}
_LAYERS: Final = ("num_hidden_layers", "n_layer")
_HIDDEN: Final = ("hidden_size", "n_embd", "n_embed")
_HEADS: Final = ("num_attention_heads", "n_head")
_POSITIONS: Final = (
    "max_position_embeddings",
    "n_positions",
    "seq_length",
    "max_sequence_length",
)


@dataclass(frozen=True, slots=True)
class Config:
    """The keys of one file, each asked for with its type."""

    where: str
    """The file as an error names it."""
    values: Mapping[str, object]
    """Its keys; a key with the value null counts as absent."""

    def get(self, key: str) -> object:
        """Return the value of `key`; None where it is absent."""
        return self.values.get(key)

    def count(self, *keys: str, default: int | None = None, low: int = 1) -> int:
        """Return the whole number under the first of `keys` that is there, else `default`."""
        for key in keys:
            value = self.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                rule = f"must be a whole number of at least {low}"
                raise self.error(key, value, rule, "Correct the file.")
            return value
        if default is None:
            others = f" (or {', '.join(keys[1:])})" if len(keys) > 1 else ""
            remedy = f"Add {keys[0]}{others}, or take the whole config.json of the model."
            raise self.error(keys[0], None, "the key is missing", remedy)
        return default

    def flag(self, key: str, default: bool) -> bool:
        """Return the truth value of `key`, else `default`."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, value, "must be true or false", "Correct the file.")
        return value

    def error(self, key: str, value: object, rule: str, remedy: str) -> ConfigError:
        """Return the error about one key of this file."""
        shown = json.dumps(value) if isinstance(value, list | dict) else value
        if isinstance(shown, str) and len(shown) > 60:
            shown = shown[:57] + "..."
        return ConfigError(f"{self.where}: {key}", shown, rule, remedy)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """How the files of one architecture are read."""

    model_type: str
    """What such files call it where they name no architecture."""
    gated_mlp: bool
    """Three MLP matrices instead of two."""
    tied_embeddings: bool
    """Whether the LM head shares the embedding where the file does not say."""
    ffn_dim: Callable[[Config], int]
    """Width of the dense MLP."""
    num_kv_heads: Callable[[Config], int]
    """Key and value heads."""
    own_head_dim: bool = False
    """Heads times head dimension need not be the hidden size."""
    layers: Callable[[Config], Layers] | None = None
    """Keys in which each layer differs from the entry; None if all are equal."""
    more: Callable[[Config], Numbers] | None = None
    """What the entry holds beyond that: experts, latent attention."""
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Values of keys that files of this architecture leave out, as its code has them."""
    qk_norm: str = ""
    """Norm of queries and keys, where the file does not turn it off; see `Attention`."""
    modules: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: PARTS)
    """Names of modules by part of a layer, where quantisation names them unlike others."""


def read(path: Path | str, name: str | None = None) -> Row:
    """Read a ``config.json`` and return the entry of the table of models that it describes.

    Parameters
    ----------
    path : Path or str
        The file, as published beside the weights of a model, or the folder that holds it.
    name : str, optional
        Name of the entry; default: the model's name in the file, else that of the file's folder,
        else that of the file.

    Returns
    -------
    Row
        An entry that obeys the rules of `simcluster.catalog.tables`, with ``num_params`` and
        ``kv_bytes_per_token`` counted from the shape.

    Raises
    ------
    DataError
        If the file cannot be read or is not a JSON object.
    ConfigError
        If the architecture is not known, or a key is missing, wrong or contradicts another.

    Notes
    -----
    Of a model that also sees or hears (``text_config``) the text part is read, and a note of the
    entry says so. Not read: biases, learned positions, rope scaling (``max_position_embeddings`` is
    taken as it stands), layers for multi-token prediction.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    whole = Config(path.name, _parsed(path))
    config, notes = _text_part(whole)
    architecture_name, architecture = _architecture(config, whole)
    given = {key: value for key, value in config.values.items() if value is not None}
    if isinstance(listed := given.get("layers_block_type"), list):
        given.setdefault(_LAYERS[0], len(listed))
    config = Config(config.where, {**architecture.defaults, **given})
    row: Numbers = {"name": name or _name(whole, path), **_shape(config, whole, architecture)}
    if architecture.more is not None:
        row |= architecture.more(config)
    _refuse_contradictions(config, row)
    quantization = _quantization(whole, config, path)
    layers = [dict(layer) for layer in _layers(config, architecture, row)]
    for number, layer in enumerate(layers):
        layer |= quantization.dtypes(number, architecture.modules)
    _store_layers(row, layers)
    if quantization.kv_dtype is not None:
        row["kv_dtype"] = quantization.kv_dtype
        notes.append(f"the KV cache is stored in {quantization.kv_dtype}, as the checkpoint says")
    if notes:
        row["notes"] = notes
    row["source"] = f"{path.name} ({architecture_name})"
    check("model", row, where=config.where)
    spec = model_entry.model(row)
    row["num_params"] = spec.num_params
    row["kv_bytes_per_token"] = spec.kv_bytes_per_token
    return row


def model(path: Path | str) -> ModelSpec:
    """Return the model that a ``config.json`` describes; parameters and errors as in `read`."""
    return model_entry.model(read(path))


def _store_layers(row: Numbers, layers: list[Numbers]) -> None:
    """Write the keys of the layers into the entry: once what all share, the rest as runs."""
    common = {
        key: value
        for key, value in layers[0].items()
        if all(key in layer and layer[key] == value for layer in layers)
    }
    row |= common
    own = [{k: v for k, v in layer.items() if k not in common} for layer in layers]
    if any(own):
        row["layers"] = model_entry.compressed(own)
        del row["num_layers"]


def _layers(config: Config, architecture: Architecture, row: Numbers) -> Layers:
    """Give what each layer has of its own."""
    number = row["num_layers"]
    assert isinstance(number, int)
    if number > MOST_LAYERS:
        rule = f"must be at most {MOST_LAYERS}"
        raise config.error(_LAYERS[0], number, rule, "Correct the file.")
    if architecture.layers is None:
        return _windows(config, None)
    return architecture.layers(config)


def _text_part(whole: Config) -> tuple[Config, list[str]]:
    """Return the keys of the text model, and what is said of the rest."""
    inner = next((whole.get(key) for key in _TEXT_PARTS if whole.get(key) is not None), None)
    senses = [what for key, what in _SENSES.items() if whole.get(key) is not None]
    if inner is None:
        named = str(whole.get("architectures") or whole.get("model_type") or "")
        if not senses and not re.search(r"VL|[Vv]ision|_vl", named):
            return whole, []
        return whole, [f"{' and '.join(senses) or 'images'} are not simulated: the text part alone"]
    if not isinstance(inner, dict):
        raise whole.error("text_config", inner, "must be a JSON object", "Correct the file.")
    seen = " and ".join(senses) or "images"
    return Config(whole.where, inner), [f"{seen} are not simulated: the text part alone"]


def _quantization(whole: Config, config: Config, path: Path) -> Quantization:
    """Return how the checkpoint is stored: what the file says, else modelopt's file beside it."""
    found = whole.get("quantization_config") or config.get("quantization_config")
    beside = path.with_name("hf_quant_config.json")
    if found is None and beside.is_file():
        whole = Config(beside.name, _parsed(beside))
        found = whole.get("quantization")
    if found is None:
        return Quantization()
    if not isinstance(found, dict):
        raise whole.error("quantization_config", found, "must be a JSON object", "Correct it.")
    return quantization.read(found, whole.error)


def _parsed(path: Path) -> Mapping[str, object]:
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not text. Give the config.json of a model.") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise DataError(f"{path}: must be a JSON object. Give the config.json of a model.")
    return values


def _architecture(config: Config, whole: Config) -> tuple[str, Architecture]:
    """Return the architecture that the file names, by class or else by model type."""
    named = [str(name) for part in (config, whole) for name in _texts(part.get("architectures"))]
    for name in named:
        if name in ARCHITECTURES:
            return name, ARCHITECTURES[name]
        if name in NOT_MODELLED:
            remedy = f"What it has and we lack: {NOT_MODELLED[name]}."
            raise whole.error("architectures", name, "is not modelled", remedy)
    model_type = config.get("model_type") or whole.get("model_type")
    if model_type is not None:
        plain = str(model_type).removesuffix("_text")
        for name, architecture in ARCHITECTURES.items():
            if architecture.model_type in (model_type, plain) and not named:
                return name, architecture
    if not named and model_type is None:
        remedy = "Give the config.json of a model; it says, for example, LlamaForCausalLM."
        raise whole.error("architectures", None, "the key is missing", remedy)
    key = "architectures" if named else "model_type"
    known = list(ARCHITECTURES) if named else [a.model_type for a in ARCHITECTURES.values()]
    remedy = (
        f"Known: {', '.join(known)}. If its layers are of kinds that these have, write it as "
        "[[model]] in a catalogue file."
    )
    unknown = ", ".join(named) or str(model_type)
    raise whole.error(key, unknown, "is not an architecture that can be read", remedy)


def _texts(value: object) -> list[object]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _norms_qk(config: Config, architecture: Architecture) -> bool:
    return bool(architecture.qk_norm) and config.flag(
        "use_qk_norm", default=architecture.model_type != "glm4_moe"
    )


def _name(config: Config, path: Path) -> str:
    """Return a name for the model: its own, its folder's, or the file's."""
    own = config.get("_name_or_path")
    if isinstance(own, str) and own.strip("/. "):
        return own.rstrip("/").rsplit("/", 1)[-1].lower()
    folder = path.absolute().parent.name
    return (folder if path.stem == "config" and folder else path.stem).lower()


def _shape(config: Config, whole: Config, architecture: Architecture) -> Numbers:
    """Return what every model has."""
    hidden, heads = config.count(*_HIDDEN), config.count(*_HEADS)
    tied = whole if config.get("tie_word_embeddings") is None else config
    embedded = config.count("word_embed_proj_dim", default=hidden)
    if embedded != hidden:
        rule = f"differs from the hidden size {hidden}, which is not modelled"
        raise config.error("word_embed_proj_dim", embedded, rule, "Take another model.")
    return {
        "num_layers": config.count(*_LAYERS),
        "hidden_size": hidden,
        "num_heads": heads,
        "num_kv_heads": architecture.num_kv_heads(config),
        "head_dim": _head_dim(config, hidden, heads, own=architecture.own_head_dim),
        "ffn_dim": architecture.ffn_dim(config),
        "vocab_size": config.count("vocab_size"),
        "max_position": config.count(*_POSITIONS),
        "gated_mlp": architecture.gated_mlp,
        **({"qk_norm": architecture.qk_norm} if _norms_qk(config, architecture) else {}),
        "tied_embeddings": tied.flag("tie_word_embeddings", architecture.tied_embeddings),
    }


def _head_dim(config: Config, hidden: int, heads: int, *, own: bool) -> int:
    if config.get("kv_lora_rank") is not None and config.get("v_head_dim") is not None:
        return config.count("v_head_dim")
    given = config.get("head_dim")
    if given is None:
        if hidden % heads:
            rule = f"is not a multiple of the {heads} attention heads, and there is no head_dim"
            raise config.error("hidden_size", hidden, rule, "Correct one of them or add head_dim.")
        return hidden // heads
    head_dim = config.count("head_dim")
    if not own and head_dim * heads != hidden:
        rule = f"times {heads} attention heads is {head_dim * heads}, not the hidden size {hidden}"
        raise config.error("head_dim", head_dim, rule, "Correct one of the three.")
    return head_dim


def _refuse_contradictions(config: Config, row: Numbers) -> None:
    """Refuse what single keys cannot tell, in the words of the file."""
    heads, kv_heads = row["num_heads"], row["num_kv_heads"]
    assert isinstance(heads, int)
    assert isinstance(kv_heads, int)
    if heads % kv_heads:
        rule = f"does not divide the {heads} attention heads"
        raise config.error("num_key_value_heads", kv_heads, rule, "Correct one of them.")
    experts, active = row.get("num_experts", 0), row.get("num_experts_active", 0)
    assert isinstance(experts, int)
    assert isinstance(active, int)
    if active > experts:
        rule = f"is more than the {experts} experts there are"
        raise config.error("num_experts_per_tok", active, rule, "Correct one of them.")


# Widths and heads -------------------------------------------------------------------------------


def _intermediate(config: Config) -> int:
    return config.count("intermediate_size")


def _half_of_intermediate(config: Config) -> int:
    """Qwen of the first generation counts gate and up together."""
    both = config.count("intermediate_size")
    if both % 2:
        raise config.error("intermediate_size", both, "must be even", "Correct the file.")
    return both // 2


def _four_times_hidden(*keys: str) -> Callable[[Config], int]:
    return lambda config: config.count(*keys, default=4 * config.count(*_HIDDEN))


def _all_heads(config: Config) -> int:
    return config.count(*_HEADS)


def _grouped(config: Config) -> int:
    return config.count("num_key_value_heads", default=config.count(*_HEADS))


def _falcon_kv_heads(config: Config) -> int:
    """Groups in the new decoder, else one for all heads or one per head."""
    heads = config.count(*_HEADS)
    if config.flag("new_decoder_architecture", False):
        return config.count("num_kv_heads", "n_head_kv", default=heads)
    return 1 if config.flag("multi_query", True) else heads


# Kinds of layers --------------------------------------------------------------------------------

_FULL: Final[Numbers] = {}


def _counted(config: Config) -> int:
    return config.count(*_LAYERS)


def _windows(config: Config, sliding: Callable[[int], bool] | None) -> Layers:
    """Give each layer its window: as ``layer_types`` lists, else where `sliding` says."""
    layers, kinds = _counted(config), config.get("layer_types")
    if kinds is not None:
        listed = _listed(config, "layer_types", ("full_attention", "sliding_attention"))
        marks = [kind == "sliding_attention" for kind in listed]
    else:
        marks = [sliding is not None and sliding(i) for i in range(layers)]
    if not any(marks):
        return [_FULL] * layers
    window = config.count("sliding_window")
    return [{"sliding_window": window} if mark else _FULL for mark in marks]


def _listed(config: Config, key: str, known: tuple[object, ...]) -> list[object]:
    """Return a list with one of `known` for each layer."""
    values, layers = config.get(key), _counted(config)
    if not isinstance(values, list) or len(values) != layers:
        rule = f"must list one kind for each of the {layers} layers"
        raise config.error(key, values, rule, "Correct the file.")
    for value in values:
        if value not in known:
            rule = "is a kind of layer that is not modelled in this architecture"
            raise config.error(key, str(value), rule, f"Known: {', '.join(map(str, known))}.")
    return values


def _every_layer(config: Config) -> Layers:
    has_window = config.get("sliding_window") is not None
    return _windows(config, lambda i: has_window)


def _from_layer_on(config: Config) -> Layers:
    """Qwen: layers from ``max_window_layers`` on, if windows are used at all."""
    used = config.flag("use_sliding_window", False) and config.get("sliding_window") is not None
    first = config.count("max_window_layers", default=28, low=0) if used else 0
    return _windows(config, lambda i: used and i >= first)


def _every_other(config: Config) -> Layers:
    """The first, the third and so on."""
    return _windows(config, lambda i: i % 2 == 0)


def _all_but_one_in(config: Config) -> Layers:
    """Gemma 3: every sixth layer attends to all; Cohere 2: every fourth."""
    keys = ("sliding_window_pattern", "_sliding_window_pattern")
    pattern = config.count(*keys, default=6)
    return _windows(config, lambda i: (i + 1) % pattern > 0)


def _gemma4(config: Config) -> Layers:
    """Windows, and heads of another shape where a layer attends to all."""
    for key in ("num_kv_shared_layers", "hidden_size_per_layer_input"):
        if config.get(key):
            rule = "is not modelled: layers that share a cache or have inputs of their own"
            raise config.error(key, config.get(key), rule, "Take another model.")
    heads: Numbers = {"head_dim": config.count("global_head_dim", "head_dim")}
    keys = ("num_global_key_value_heads", "num_key_value_heads")
    heads["num_kv_heads"] = config.count(*keys)
    heads["values_are_keys"] = config.flag("attention_k_eq_v", False)
    return [layer or heads for layer in _windows(config, None)]


def _llama4(config: Config) -> Layers:
    """Chunks where a layer has positions, experts in every n-th layer."""
    step = config.count("interleave_moe_layer_step", default=1)
    chunk = config.count("attention_chunk_size", default=8192)
    layers = _counted(config)
    listed = config.get("no_rope_layers") or [int((i + 1) % 4 > 0) for i in range(layers)]
    if not isinstance(listed, list) or len(listed) != layers:
        rule = f"must list a 0 or 1 for each of the {layers} layers"
        raise config.error("no_rope_layers", listed, rule, "Correct the file.")
    experts: list[Numbers] = [
        {} if (i + 1) % step == 0 else {"num_experts": 0} for i in range(layers)
    ]
    chunks: list[Numbers] = [{"attention_chunk": chunk} if rope else {} for rope in listed]
    return [own | mlp for own, mlp in zip(chunks, experts, strict=True)]


def _dense_first(config: Config) -> Layers:
    """Dense layers first, experts in every n-th of the rest; windows where listed."""
    first, every = (
        config.count("first_k_dense_replace", default=0, low=0),
        config.get("moe_layer_freq"),
    )
    if isinstance(every, list):
        marks = [mark == 1 for mark in _listed(config, "moe_layer_freq", (0, 1))]
    else:
        step = config.count("moe_layer_freq", default=1)
        marks = [i >= first and i % step == 0 for i in range(_counted(config))]
    windows = _windows(config, None)
    return [w | ({} if moe else {"num_experts": 0}) for w, moe in zip(windows, marks, strict=True)]


def _qwen_moe(config: Config) -> Layers:
    """Experts in every n-th layer, but for those listed as dense."""
    step, listed = config.count("decoder_sparse_step", default=1), config.get("mlp_only_layers")
    listed = [] if listed is None else listed
    if not isinstance(listed, list):
        rule = "must be a list of layer numbers"
        raise config.error("mlp_only_layers", listed, rule, "Correct the file.")
    return [
        {"num_experts": 0} if i in listed or (i + 1) % step else {} for i in range(_counted(config))
    ]


def _qwen_moe_windows(config: Config) -> Layers:
    pairs = zip(_from_layer_on(config), _qwen_moe(config), strict=True)
    return [window | mlp for window, mlp in pairs]


def _glm_dsa(config: Config) -> Layers:
    """Dense layers first; some take the choice of an index before theirs."""
    if config.get("layer_types") is not None:
        _listed(config, "layer_types", ("deepseek_sparse_attention",))
    layers = _dense_first(Config(config.where, {**config.values, "layer_types": None}))
    if config.get("indexer_types") is None:
        return layers
    kinds = _listed(config, "indexer_types", ("full", "shared"))
    return [
        layer | ({"index_shared": True} if kind == "shared" else {})
        for layer, kind in zip(layers, kinds, strict=True)
    ]


def _linear_but_one_in(config: Config) -> Layers:
    """Gated DeltaNet but in every fourth layer (Qwen3-Next, Qwen3.5)."""
    if config.get("layer_types") is not None:
        kinds = _listed(config, "layer_types", ("linear_attention", "full_attention"))
        linear = [kind == "linear_attention" for kind in kinds]
    else:
        every = config.count("full_attention_interval", default=4)
        linear = [(i + 1) % every > 0 for i in range(_counted(config))]
    mlps = _qwen_moe(config) if config.get("num_experts") else [_FULL] * len(linear)
    return [
        ({"mixer": "gated-deltanet"} if mark else {}) | mlp
        for mark, mlp in zip(linear, mlps, strict=True)
    ]


def _nemotron_h(config: Config) -> Layers:
    """Blocks that are a mixer or an MLP: M Mamba-2, * attention, - MLP, E experts."""
    pattern, kinds = config.get("hybrid_override_pattern"), _NEMOTRON_BLOCKS
    if pattern is None and config.get("layers_block_type") is not None:
        named = _listed(config, "layers_block_type", tuple(_NEMOTRON_NAMES))
        return [kinds[_NEMOTRON_NAMES[str(name)]] for name in named]
    if not isinstance(pattern, str) or not pattern or set(pattern) - set(kinds):
        rule = "must be a text of M, *, - and E, one for each block"
        raise config.error("hybrid_override_pattern", pattern, rule, "Correct the file.")
    if len(pattern) != _counted(config):
        rule = f"is {len(pattern)} blocks, not the {_counted(config)} of num_hidden_layers"
        raise config.error("hybrid_override_pattern", pattern, rule, "Take the whole pattern.")
    return [kinds[block] for block in pattern]


_NEMOTRON_NAMES: Final = {"mamba": "M", "attention": "*", "mlp": "-", "moe": "E"}
_NEMOTRON_BLOCKS: Final[Mapping[str, Numbers]] = {
    "M": {"mixer": "mamba2", "mlp": "none"},
    "*": {"mlp": "none"},
    "-": {"mixer": "none", "mlp": "dense"},
    "E": {"mixer": "none", "mlp": "experts"},
}


def _mimo_v2(config: Config) -> Layers:
    """Windows with heads of another shape where ``hybrid_layer_pattern`` says 1."""
    windows = _listed(config, "hybrid_layer_pattern", (0, 1))
    local: Numbers = {
        "sliding_window": config.count("sliding_window"),
        "num_heads": config.count("swa_num_attention_heads", "num_attention_heads"),
        "num_kv_heads": config.count("swa_num_key_value_heads", "num_key_value_heads"),
        "head_dim": config.count("swa_head_dim", "head_dim"),
        "v_head_dim": config.count("swa_v_head_dim", "v_head_dim"),
    }
    moe = _dense_first(config)
    return [(local if mark == 1 else {}) | mlp for mark, mlp in zip(windows, moe, strict=True)]


def _deci(config: Config) -> Layers:
    """Blocks pruned one by one: attention or MLP missing, widths of their own (Puzzle)."""
    blocks, heads = config.get("block_configs"), config.count(*_HEADS)
    if not isinstance(blocks, list) or len(blocks) != _counted(config):
        rule = f"must list a block for each of the {_counted(config)} layers"
        raise config.error("block_configs", blocks, rule, "Take the whole config.json.")
    layers = []
    for block in blocks:
        attention, ffn = (block.get(part) or {} for part in ("attention", "ffn"))
        if any(part.get("replace_with_linear") for part in (attention, ffn)):
            rule = "has a linear layer in place of a part, which is not modelled"
            raise config.error("block_configs", block, rule, "Take another model.")
        layer: Numbers = {}
        if attention.get("no_op"):
            layer["mixer"] = "none"
        else:
            layer["num_kv_heads"] = heads // int(attention.get("n_heads_in_group") or 1)
        if ffn.get("no_op"):
            layer["mlp"] = "none"
        else:
            width = int(2 * float(ffn.get("ffn_mult") or 0) * config.count(*_HIDDEN) / 3)
            layer["ffn_dim"] = -(-width // 256) * 256
        layers.append(layer)
    return layers


# Experts and other keys of the entry -------------------------------------------------------------


def _mixtral_experts(config: Config) -> Numbers:
    """Every layer has experts, as wide as ``intermediate_size``."""
    return {
        "num_experts": config.count("num_local_experts"),
        "num_experts_active": config.count("num_experts_per_tok", "experts_per_token"),
        "moe_ffn_dim": config.count("intermediate_size"),
    }


def _llama4_experts(config: Config) -> Numbers:
    """One shared expert as wide as a routed one."""
    return {**_mixtral_experts(config), "num_shared_experts": 1}


def _qwen_experts(config: Config) -> Numbers:
    """Routed experts, and a shared one of its own width."""
    shared = config.count("shared_expert_intermediate_size", default=0, low=0)
    return {
        "num_experts": config.count("num_experts"),
        "num_experts_active": config.count("num_experts_per_tok"),
        "moe_ffn_dim": config.count("moe_intermediate_size"),
        **({"shared_ffn_dim": shared} if shared else {}),
    }


def _routed_experts(config: Config) -> Numbers:
    """Routed and shared experts, as DeepSeek names them."""
    keys = ("n_routed_experts", "num_experts", "num_local_experts")
    experts: Numbers = {
        "num_experts": config.count(*keys),
        "num_experts_active": config.count("num_experts_per_tok"),
        "moe_ffn_dim": config.count("moe_intermediate_size"),
    }
    shared = config.count("n_shared_experts", "num_shared_experts", default=0, low=0)
    width = config.count(
        "share_expert_dim", "moe_shared_expert_intermediate_size", default=0, low=0
    )
    if width:
        experts["shared_ffn_dim"] = width
    elif shared:
        experts["num_shared_experts"] = shared
    return experts


def _deepseek(config: Config) -> Numbers:
    """Latent attention and experts."""
    return {
        **_routed_experts(config),
        "q_lora_rank": config.count("q_lora_rank", default=0, low=0),
        "kv_lora_rank": config.count("kv_lora_rank"),
        "qk_nope_dim": config.count("qk_nope_head_dim"),
        "qk_rope_dim": config.count("qk_rope_head_dim"),
        "v_head_dim": config.count("v_head_dim"),
    }


def _deepseek_sparse(config: Config) -> Numbers:
    """The same with an index (DeepSeek-V3.2, GLM 5)."""
    return {
        **_deepseek(config),
        "index_heads": config.count("index_n_heads"),
        "index_head_dim": config.count("index_head_dim"),
        "index_top_k": config.count("index_topk"),
    }


def _gated_delta_net(config: Config) -> Numbers:
    """Linear attention, and a gate on the output of the other layers."""
    experts = _qwen_experts(config) if config.get("num_experts") else {}
    return {
        **experts,
        "output_gate": config.flag("attn_output_gate", True),
        "linear_key_heads": config.count("linear_num_key_heads"),
        "linear_key_dim": config.count("linear_key_head_dim"),
        "linear_heads": config.count("linear_num_value_heads"),
        "linear_value_dim": config.count("linear_value_head_dim"),
        "conv_kernel": config.count("linear_conv_kernel_dim", default=4),
    }


def _mamba(config: Config) -> Numbers:
    """Mamba-2 beside attention, and experts where there are some."""
    experts = _routed_experts(config) if config.get("n_routed_experts") else {}
    if config.get("moe_latent_size"):
        experts["moe_latent_dim"] = config.count("moe_latent_size")
    state = str(config.get("mamba_ssm_cache_dtype") or "bfloat16")
    return {
        **experts,
        "linear_key_heads": config.count("n_groups", default=8),
        "linear_key_dim": config.count("ssm_state_size", default=128),
        "linear_heads": config.count("mamba_num_heads", default=128),
        "linear_value_dim": config.count("mamba_head_dim", default=64),
        "conv_kernel": config.count("conv_kernel", default=4),
        "state_bytes_per_number": 4.0 if state == "float32" else 2.0,
    }


def _gemma4_experts(config: Config) -> Numbers:
    """Experts beside the dense MLP of each layer."""
    if not config.flag("enable_moe_block", False):
        return {}
    return {
        "mlp": "both",
        "num_experts": config.count("num_experts"),
        "num_experts_active": config.count("top_k_experts", "num_experts_per_tok"),
        "moe_ffn_dim": config.count("moe_intermediate_size", "expert_intermediate_size"),
    }


def _values(config: Config) -> Numbers:
    """Experts, and values narrower than keys."""
    return {**_routed_experts(config), "v_head_dim": config.count("v_head_dim")}


def _gated(model_type: str, **special: object) -> Architecture:
    """Return a Llama-like architecture: gated MLP, grouped heads, a head of its own."""
    usual: dict[str, object] = {
        "gated_mlp": True,
        "tied_embeddings": False,
        "ffn_dim": _intermediate,
        "num_kv_heads": _grouped,
        "own_head_dim": True,
    }
    return Architecture(model_type=model_type, **(usual | special))  # type: ignore[arg-type]  # its fields by name


def _plain(model_type: str, **special: object) -> Architecture:
    """Return a GPT-like architecture: two MLP matrices, a key and value head per query head."""
    usual: dict[str, object] = {
        "gated_mlp": False,
        "tied_embeddings": True,
        "ffn_dim": _intermediate,
        "num_kv_heads": _all_heads,
    }
    return Architecture(model_type=model_type, **(usual | special))  # type: ignore[arg-type]  # its fields by name


_GEMMA3: Final = {
    "vocab_size": 262208,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "sliding_window": 4096,
}
"""Defaults of ``Gemma3TextConfig`` (Hugging Face transformers): files leave them out."""
_GEMMA4_MODULES: Final = {**PARTS, "experts_dtype": ("experts.gate_up_proj", "moe.experts")}
_MOE = {"layers": _dense_first, "more": _routed_experts}
_QWEN = {"layers": _from_layer_on}
_QWEN_MOE = {"layers": _qwen_moe_windows, "more": _qwen_experts}
_MLA = {"layers": _dense_first, "more": _deepseek}
_DELTA = {"layers": _linear_but_one_in, "more": _gated_delta_net}

ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "LlamaForCausalLM": _gated("llama"),
    "MistralForCausalLM": _gated("mistral", layers=_every_layer),
    "Mistral3ForConditionalGeneration": _gated("mistral3", layers=_every_layer),
    "MixtralForCausalLM": _gated("mixtral", layers=_every_layer, more=_mixtral_experts),
    "Llama4ForConditionalGeneration": _gated(
        "llama4",
        layers=_llama4,
        more=_llama4_experts,
        ffn_dim=lambda config: config.count("intermediate_size_mlp", "intermediate_size"),
    ),
    "DeciLMForCausalLM": _gated(
        "nemotron-nas", layers=_deci, ffn_dim=lambda config: 1, num_kv_heads=_all_heads
    ),
    "Qwen2ForCausalLM": _gated("qwen2", **_QWEN),
    "Qwen2MoeForCausalLM": _gated("qwen2_moe", **_QWEN_MOE),
    "Qwen2VLForConditionalGeneration": _gated("qwen2_vl", **_QWEN),
    "Qwen2_5_VLForConditionalGeneration": _gated("qwen2_5_vl", **_QWEN),
    "Qwen3ForCausalLM": _gated("qwen3", qk_norm="head", **_QWEN),
    "Qwen3MoeForCausalLM": _gated("qwen3_moe", qk_norm="head", **_QWEN_MOE),
    "Qwen3VLForConditionalGeneration": _gated("qwen3_vl", qk_norm="head", **_QWEN),
    "Qwen3VLMoeForConditionalGeneration": _gated("qwen3_vl_moe", qk_norm="head", **_QWEN_MOE),
    "Qwen3NextForCausalLM": _gated("qwen3_next", qk_norm="head", **_DELTA),
    "Qwen3_5ForConditionalGeneration": _gated("qwen3_5", qk_norm="head", **_DELTA),
    "Qwen3_5MoeForConditionalGeneration": _gated(
        "qwen3_5_moe",
        qk_norm="head",
        **_DELTA,
        ffn_dim=lambda config: config.count("moe_intermediate_size"),
    ),
    "MiMoForCausalLM": _gated("mimo", **_QWEN),
    "MiMoV2FlashForCausalLM": _gated("mimo_v2_flash", layers=_mimo_v2, more=_values),
    "Phi3ForCausalLM": _gated("phi3", layers=_every_layer),
    "GemmaForCausalLM": _gated("gemma", tied_embeddings=True),
    "Gemma2ForCausalLM": _gated("gemma2", tied_embeddings=True, layers=_every_other),
    "Gemma3ForCausalLM": _gated(
        "gemma3_text", tied_embeddings=True, layers=_all_but_one_in, defaults=_GEMMA3
    ),
    "Gemma3ForConditionalGeneration": _gated(
        "gemma3", tied_embeddings=True, layers=_all_but_one_in, defaults=_GEMMA3
    ),
    "Gemma4ForConditionalGeneration": _gated(
        "gemma4",
        tied_embeddings=True,
        layers=_gemma4,
        more=_gemma4_experts,
        modules=_GEMMA4_MODULES,
    ),
    "Cohere2ForCausalLM": _gated(
        "cohere2",
        tied_embeddings=True,
        layers=_all_but_one_in,
        defaults={"sliding_window_pattern": 4},
    ),
    "DeepseekV2ForCausalLM": _gated("deepseek_v2", **_MLA),
    "DeepseekV3ForCausalLM": _gated("deepseek_v3", **_MLA),
    "DeepseekV32ForCausalLM": _gated("deepseek_v32", layers=_dense_first, more=_deepseek_sparse),
    "KimiK25ForConditionalGeneration": _gated("kimi_k25", **_MLA),
    "Glm4MoeForCausalLM": _gated("glm4_moe", qk_norm="head", **_MOE),
    "GlmMoeDsaForCausalLM": _gated("glm_moe_dsa", layers=_glm_dsa, more=_deepseek_sparse),
    "MiniMaxM2ForCausalLM": _gated("minimax_m2", qk_norm="all", more=_mixtral_experts),
    "GptOssForCausalLM": _gated("gpt_oss", layers=_every_other, more=_mixtral_experts),
    "Step3p7FlashForCausalLM": _gated("step3p7", **_MOE),
    "NemotronHForCausalLM": _plain(
        "nemotron_h",
        tied_embeddings=False,
        num_kv_heads=_grouped,
        own_head_dim=True,
        layers=_nemotron_h,
        more=_mamba,
    ),
    "InternLMForCausalLM": _gated("internlm", own_head_dim=False),
    "QWenLMHeadModel": _gated(
        "qwen", own_head_dim=False, ffn_dim=_half_of_intermediate, num_kv_heads=_all_heads
    ),
    "PhiForCausalLM": _plain("phi", tied_embeddings=False, num_kv_heads=_grouped),
    "GPTNeoXForCausalLM": _plain("gpt_neox", tied_embeddings=False),
    "GPT2LMHeadModel": _plain("gpt2", ffn_dim=_four_times_hidden("n_inner")),
    "OPTForCausalLM": _plain("opt", ffn_dim=_four_times_hidden("ffn_dim")),
    "BloomForCausalLM": _plain(
        "bloom",
        ffn_dim=_four_times_hidden("n_inner"),
        defaults={"max_position_embeddings": 2048},
    ),
    "FalconForCausalLM": _plain(
        "falcon",
        ffn_dim=_four_times_hidden("ffn_hidden_size"),
        num_kv_heads=_falcon_kv_heads,
        defaults={"max_position_embeddings": 2048},
    ),
}
"""Architectures by the name that ``config.json`` gives them."""

NOT_MODELLED: Final[Mapping[str, str]] = {
    "DeepseekV4ForCausalLM": "a cache compressed along the context, and hyper-connections",
    "KimiK3ForConditionalGeneration": "Kimi Delta Attention with gates per channel",
    "KimiLinearForCausalLM": "Kimi Delta Attention with gates per channel",
    "MiniMaxM3ForCausalLM": "attention to the blocks of keys that an index chooses",
    "MiniMaxM3SparseForConditionalGeneration": "attention to the blocks that an index chooses",
    "FalconH1ForCausalLM": "attention and Mamba-2 side by side in one layer",
    "JambaForCausalLM": "Mamba-1 layers",
    "MambaForCausalLM": "Mamba-1 layers, and a model without attention",
    "RWKVForCausalLM": "RWKV layers, and a model without attention",
    "T5ForConditionalGeneration": "an encoder before the decoder",
    "WhisperForConditionalGeneration": "an encoder of sound before the decoder",
    "BertModel": "an encoder alone, which generates no tokens",
}
"""Architectures that people ask about, and what simulating them would need."""
