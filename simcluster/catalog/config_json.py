"""A ``config.json`` of Hugging Face style, read as an entry of the table of models.

One architecture is one line of `ARCHITECTURES` and, where its layers are unusual, one function
that adds to the entry. What is not known is refused by name: a wrong shape looks like a right one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from simcluster.catalog import model_entry
from simcluster.catalog.layers import ModelSpec
from simcluster.catalog.tables import Row, check
from simcluster.errors import ConfigError, DataError, nearest

Numbers = dict[str, object]
"""Keys of an entry of the table of models."""

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
    """The keys of one file, each asked for with its type.

    Attributes
    ----------
    where : str
        The file as an error names it.
    values : mapping of str to object
        Its keys; a key with the value null counts as absent.
    """

    where: str
    values: Mapping[str, object]

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


@dataclass(frozen=True, slots=True)
class Architecture:
    """How the files of one architecture are read.

    Attributes
    ----------
    model_type : str
        What such files call it where they name no architecture.
    gated_mlp : bool
        Three MLP matrices instead of two.
    tied_embeddings : bool
        Whether the LM head shares the embedding where the file does not say.
    ffn_dim : callable
        Width of the dense MLP.
    num_kv_heads : callable
        Key and value heads.
    own_head_dim : bool
        Heads times head dimension need not be the hidden size.
    num_sliding_layers : callable or None
        Layers with a window where the file does not list them; None if there are no windows.
    more : callable or None
        What the entry holds beyond that: experts, latent attention.
    default_positions : int or None
        Context length of files that do not hold it.
    """

    model_type: str
    gated_mlp: bool
    tied_embeddings: bool
    ffn_dim: Callable[[Config], int]
    num_kv_heads: Callable[[Config], int]
    own_head_dim: bool = False
    num_sliding_layers: Callable[[Config], int] | None = None
    more: Callable[[Config], Numbers] | None = None
    default_positions: int | None = None


def read(path: Path | str, name: str | None = None) -> Row:
    """Read a ``config.json`` and return the entry of the table of models that it describes.

    Parameters
    ----------
    path : Path or str
        The file, as published beside the weights of a model.
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
    Not read: biases, learned positions, rope scaling (``max_position_embeddings`` is taken as it
    stands), quantisation (the scenario says how weights are stored), layers for multi-token
    prediction.
    """
    path = Path(path)
    config = Config(path.name, _parsed(path))
    architecture_name, architecture = _architecture(config)
    row: Numbers = {"name": name or _name(config, path), **_shape(config, architecture)}
    if architecture.more is not None:
        row |= architecture.more(config)
    row |= _window(config, architecture, row)
    _refuse_contradictions(config, row)
    row["source"] = f"{path.name} ({architecture_name})"
    check("model", row, where=config.where)
    spec = model_entry.model(row)
    row["num_params"] = spec.num_params
    row["kv_bytes_per_token"] = spec.kv_bytes_per_token
    return row


def model(path: Path | str) -> ModelSpec:
    """Return the model that a ``config.json`` describes; parameters and errors as in `read`."""
    return model_entry.model(read(path))


def stored_as(path: Path | str) -> str | None:
    """Return how the file says the weights are quantised (``"fp8"``, ``"mxfp4"``), None if not."""
    quantization = Config(Path(path).name, _parsed(Path(path))).get("quantization_config")
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    return method if isinstance(method, str) else None


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


def _architecture(config: Config) -> tuple[str, Architecture]:
    """Return the architecture that the file names, by class or else by model type."""
    named = config.get("architectures")
    if named is not None:
        names = named if isinstance(named, list) else [named]
        for name in names:
            if isinstance(name, str) and name in ARCHITECTURES:
                return name, ARCHITECTURES[name]
        unknown, key = ", ".join(map(str, names)), "architectures"
    else:
        model_type = config.get("model_type")
        if model_type is None:
            remedy = "Give the config.json of a model; it says, for example, LlamaForCausalLM."
            raise config.error("architectures", None, "the key is missing", remedy)
        for name, architecture in ARCHITECTURES.items():
            if architecture.model_type == model_type:
                return name, architecture
        unknown, key = str(model_type), "model_type"
    known = ", ".join(ARCHITECTURES if key == "architectures" else _model_types())
    close = nearest(unknown, ARCHITECTURES if key == "architectures" else _model_types())
    remedy = (close + " " if close.startswith("Did") else "") + (
        f"Known: {known}. Others can be written as [[model]] in a catalogue file."
    )
    raise config.error(key, unknown, "is not an architecture that can be read", remedy)


def _model_types() -> list[str]:
    return [architecture.model_type for architecture in ARCHITECTURES.values()]


def _name(config: Config, path: Path) -> str:
    """Return a name for the model: its own, its folder's, or the file's."""
    own = config.get("_name_or_path")
    if isinstance(own, str) and own.strip("/. "):
        return own.rstrip("/").rsplit("/", 1)[-1].lower()
    folder = path.absolute().parent.name
    return (folder if path.stem == "config" and folder else path.stem).lower()


def _shape(config: Config, architecture: Architecture) -> Numbers:
    """Return what every model has."""
    hidden, heads = config.count(*_HIDDEN), config.count(*_HEADS)
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
        "max_position": config.count(*_POSITIONS, default=architecture.default_positions),
        "gated_mlp": architecture.gated_mlp,
        "tied_embeddings": config.flag("tie_word_embeddings", architecture.tied_embeddings),
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


def _window(config: Config, architecture: Architecture, row: Numbers) -> Numbers:
    """Return window and number of layers that have it; nothing where no layer does."""
    layers = row["num_layers"]
    kinds = config.get("layer_types")
    if kinds is not None:
        if not isinstance(kinds, list) or len(kinds) != layers:
            rule = f"must list one kind for each of the {layers} layers"
            raise config.error("layer_types", kinds, rule, "Correct the file.")
        for kind in kinds:
            if kind not in ("full_attention", "sliding_attention"):
                rule = "is a kind of layer that is not modelled"
                remedy = "Known: full_attention, sliding_attention."
                raise config.error("layer_types", str(kind), rule, remedy)
        sliding = kinds.count("sliding_attention")
    elif architecture.num_sliding_layers is not None:
        sliding = architecture.num_sliding_layers(config)
    else:
        sliding = 0
    if not sliding:
        return {}
    return {"sliding_window": config.count("sliding_window"), "num_sliding_layers": sliding}


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


# Layers with a window ---------------------------------------------------------------------------


def _every_layer(config: Config) -> int:
    return config.count(*_LAYERS) if config.get("sliding_window") is not None else 0


def _from_layer_on(config: Config) -> int:
    """Qwen: layers from ``max_window_layers`` on, if windows are used at all."""
    if not config.flag("use_sliding_window", False) or config.get("sliding_window") is None:
        return 0
    layers = config.count(*_LAYERS)
    return layers - min(layers, config.count("max_window_layers", default=28, low=0))


def _every_other(config: Config) -> int:
    """The first, the third and so on."""
    return (config.count(*_LAYERS) + 1) // 2


def _all_but_one_in(config: Config) -> int:
    """Gemma 3: every sixth layer attends to all."""
    pattern = config.count("sliding_window_pattern", "_sliding_window_pattern", default=6)
    layers = config.count(*_LAYERS)
    return layers - layers // pattern


# Experts and latent attention -------------------------------------------------------------------


def _mixtral_experts(config: Config) -> Numbers:
    """Every layer has experts, as wide as ``intermediate_size``."""
    return {
        "num_experts": config.count("num_local_experts"),
        "num_experts_active": config.count("num_experts_per_tok", "experts_per_token"),
        "moe_ffn_dim": config.count("intermediate_size"),
        "num_shared_experts": 0,
        "num_dense_layers": 0,
    }


def _qwen_experts(config: Config) -> Numbers:
    """Experts in every ``decoder_sparse_step``-th layer but those listed as dense."""
    width = config.count("moe_intermediate_size")
    shared = config.count("shared_expert_intermediate_size", default=0, low=0)
    if shared % width:
        rule = f"is not a multiple of the width {width} of an expert, which is not modelled"
        raise config.error("shared_expert_intermediate_size", shared, rule, "Round it.")
    step, layers = config.count("decoder_sparse_step", default=1), config.count(*_LAYERS)
    listed = config.get("mlp_only_layers") or []
    if not isinstance(listed, list) or not all(type(i) is int for i in listed):
        rule = "must be a list of layer numbers"
        raise config.error("mlp_only_layers", listed, rule, "Correct the file.")
    dense = [i for i in range(layers) if i in listed or (i + 1) % step]
    return {
        "num_experts": config.count("num_experts"),
        "num_experts_active": config.count("num_experts_per_tok"),
        "moe_ffn_dim": width,
        "num_shared_experts": shared // width,
        "num_dense_layers": len(dense),
    }


def _deepseek(config: Config) -> Numbers:
    """Dense layers first, then routed and shared experts; latent attention in all."""
    layers, every = config.count(*_LAYERS), config.count("moe_layer_freq", default=1)
    first = config.count("first_k_dense_replace", default=0, low=0)
    return {
        "num_experts": config.count("n_routed_experts"),
        "num_experts_active": config.count("num_experts_per_tok"),
        "moe_ffn_dim": config.count("moe_intermediate_size"),
        "num_shared_experts": config.count("n_shared_experts", default=0, low=0),
        "num_dense_layers": sum(i < first or i % every > 0 for i in range(layers)),
        "q_lora_rank": config.count("q_lora_rank", default=0, low=0),
        "kv_lora_rank": config.count("kv_lora_rank"),
        "qk_nope_dim": config.count("qk_nope_head_dim"),
        "qk_rope_dim": config.count("qk_rope_head_dim"),
        "v_head_dim": config.count("v_head_dim"),
    }


def _gated(model_type: str, **special: object) -> Architecture:
    """Return a Llama-like architecture: gated MLP, grouped heads, a head of its own."""
    usual: dict[str, object] = {
        "gated_mlp": True,
        "tied_embeddings": False,
        "ffn_dim": _intermediate,
        "num_kv_heads": _grouped,
        "own_head_dim": True,
    }
    return Architecture(model_type, **(usual | special))  # type: ignore[arg-type]  # its fields by name


def _plain(model_type: str, **special: object) -> Architecture:
    """Return a GPT-like architecture: two MLP matrices, a key and value head per query head."""
    usual: dict[str, object] = {
        "gated_mlp": False,
        "tied_embeddings": True,
        "ffn_dim": _intermediate,
        "num_kv_heads": _all_heads,
    }
    return Architecture(model_type, **(usual | special))  # type: ignore[arg-type]  # its fields by name


ARCHITECTURES: Final[Mapping[str, Architecture]] = {
    "LlamaForCausalLM": _gated("llama"),
    "MistralForCausalLM": _gated("mistral", num_sliding_layers=_every_layer),
    "MixtralForCausalLM": _gated("mixtral", num_sliding_layers=_every_layer, more=_mixtral_experts),
    "Qwen2ForCausalLM": _gated("qwen2", num_sliding_layers=_from_layer_on),
    "Qwen2MoeForCausalLM": _gated(
        "qwen2_moe", num_sliding_layers=_from_layer_on, more=_qwen_experts
    ),
    "Qwen3ForCausalLM": _gated("qwen3", num_sliding_layers=_from_layer_on),
    "Qwen3MoeForCausalLM": _gated(
        "qwen3_moe", num_sliding_layers=_from_layer_on, more=_qwen_experts
    ),
    "Phi3ForCausalLM": _gated("phi3", num_sliding_layers=_every_layer),
    "GemmaForCausalLM": _gated("gemma", tied_embeddings=True),
    "Gemma2ForCausalLM": _gated("gemma2", tied_embeddings=True, num_sliding_layers=_every_other),
    "Gemma3ForCausalLM": _gated(
        "gemma3_text", tied_embeddings=True, num_sliding_layers=_all_but_one_in
    ),
    "DeepseekV2ForCausalLM": _gated("deepseek_v2", more=_deepseek),
    "DeepseekV3ForCausalLM": _gated("deepseek_v3", more=_deepseek),
    "GptOssForCausalLM": _gated("gpt_oss", num_sliding_layers=_every_other, more=_mixtral_experts),
    "InternLMForCausalLM": _gated("internlm", own_head_dim=False),
    "QWenLMHeadModel": _gated(
        "qwen", own_head_dim=False, ffn_dim=_half_of_intermediate, num_kv_heads=_all_heads
    ),
    "PhiForCausalLM": _plain("phi", tied_embeddings=False, num_kv_heads=_grouped),
    "GPTNeoXForCausalLM": _plain("gpt_neox", tied_embeddings=False),
    "GPT2LMHeadModel": _plain("gpt2", ffn_dim=_four_times_hidden("n_inner")),
    "OPTForCausalLM": _plain("opt", ffn_dim=_four_times_hidden("ffn_dim")),
    "BloomForCausalLM": _plain(
        "bloom", ffn_dim=_four_times_hidden("n_inner"), default_positions=2048
    ),
    "FalconForCausalLM": _plain(
        "falcon",
        ffn_dim=_four_times_hidden("ffn_hidden_size"),
        num_kv_heads=_falcon_kv_heads,
        default_positions=2048,
    ),
}
"""Architectures by the name that ``config.json`` gives them."""
