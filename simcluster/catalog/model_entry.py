"""An entry of the table of models: its keys, its check, and the `ModelSpec` that it describes.

The keys of a layer stand in the entry itself and hold for all layers. Where layers differ,
``layers`` lists runs of equal ones in order, each with the keys in which it differs; a run may
repeat a list of its own::

    layers = [
        { repeat = 10, of = [{ repeat = 5, sliding_window = 1024 }, {}] },
        { repeat = 2, sliding_window = 1024 },
    ]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, Final

from simcluster.catalog.layers import (
    BF16,
    WEIGHT_DTYPES,
    Attention,
    DenseMlp,
    Experts,
    LatentAttention,
    Layer,
    LayerDtypes,
    LayerRun,
    Mixer,
    Mlp,
    ModelSpec,
    Reach,
    Recurrent,
    SparseIndex,
)
from simcluster.errors import ConfigError

Row = Mapping[str, object]

MIXERS: Final = ("attention", "gated-deltanet", "mamba2", "none")
"""Token mixers by the name that the key ``mixer`` gives them."""
MLPS: Final = ("dense", "experts", "both", "none")
"""MLPs by the name that the key ``mlp`` gives them."""
DTYPE_KEYS: Final = ("mixer_dtype", "out_dtype", "mlp_dtype", "experts_dtype", "shared_dtype")
"""Keys of the dtypes of a layer's weights, in the order of `LayerDtypes`."""
_MLA: Final = ("kv_lora_rank", "qk_nope_dim", "qk_rope_dim", "v_head_dim")
_RECURRENT: Final = (
    "linear_key_heads",
    "linear_key_dim",
    "linear_heads",
    "linear_value_dim",
    "conv_kernel",
)
_NEEDS: Final = {
    "num_experts": ("num_experts_active", "moe_ffn_dim"),
    "num_sliding_layers": ("sliding_window",),
    "kv_lora_rank": _MLA,
    "index_top_k": ("kv_lora_rank", "index_heads", "index_head_dim"),
    "linear_key_heads": _RECURRENT,
}
"""Keys that make no sense without others."""


def model(row: Row) -> ModelSpec:
    """Return the model of an entry that `check` accepts."""
    r: dict[str, Any] = dict(row)
    every = [_layer(layer) for layer in _each(r)]
    return ModelSpec(
        name=r["name"],
        hidden_size=r["hidden_size"],
        vocab_size=r["vocab_size"],
        gated_mlp=r["gated_mlp"],
        tied_embeddings=r["tied_embeddings"],
        max_position=r["max_position"],
        layers=tuple(LayerRun(layer, len(list(same))) for layer, same in groupby(every)),
        kv_dtype=r.get("kv_dtype"),
        notes=tuple(r.get("notes", ())),
        source=r["source"],
    )


def _each(r: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the keys of each layer: those of the entry with those of the layer's run."""
    if "layers" in r:
        for own in _expanded(r["layers"]):
            yield r | own
        return
    windowed = r.get("num_sliding_layers", r["num_layers"] if r.get("sliding_window") else 0)
    dense = r.get("num_dense_layers", 0 if r.get("num_experts") else r["num_layers"])
    for i in range(r["num_layers"]):
        own = {} if i < windowed else {"sliding_window": 0, "num_sliding_layers": 0}
        yield r | own | ({"num_experts": 0} if i < dense else {})


def _expanded(runs: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Give the keys of each layer of nested runs."""
    for run in runs:
        own = {key: value for key, value in run.items() if key not in ("repeat", "of")}
        inner = list(_expanded(run["of"])) if "of" in run else [{}]
        for _ in range(run.get("repeat", 1)):
            yield from (own | keys for keys in inner)


def compressed(layers: Sequence[Mapping[str, object]]) -> list[dict[str, object]]:
    """Return the keys of each layer as runs; a period of several runs becomes one with ``of``.

    >>> compressed([{"w": 1}, {}, {"w": 1}, {}, {"w": 1}])
    [{'repeat': 2, 'of': [{'w': 1}, {}]}, {'w': 1}]
    """
    runs = [(dict(keys), len(list(same))) for keys, same in groupby(layers)]
    listed: list[dict[str, object]] = []
    start = 0
    while start < len(runs):
        best = (1, 1)
        for period in range(1, (len(runs) - start) // 2 + 1):
            first, times = runs[start : start + period], 1
            while runs[start + times * period : start + (times + 1) * period] == first:
                times += 1
            if times > 1 and times * period > best[0] * best[1]:
                best = (period, times)
        period, times = best
        part = [
            ({"repeat": count} if count > 1 else {}) | keys
            for keys, count in runs[start : start + period]
        ]
        listed += part if times == 1 else [{"repeat": times, "of": part}]
        start += period * times
    return listed


def _layer(r: dict[str, Any]) -> Layer:
    mixer, mlps = _mixer(r), tuple(_mlps(r))
    experts = [mlp for mlp in mlps if isinstance(mlp, Experts)]
    has = (
        mixer is not None,
        mixer is not None,
        len(mlps) > len(experts),
        bool(experts),
        any(mlp.shared_ffn_dim for mlp in experts),
    )
    # What a layer does not have is not stored in any way.
    stored = zip(DTYPE_KEYS, has, strict=True)
    dtypes = (WEIGHT_DTYPES[r[key]] if there and key in r else BF16 for key, there in stored)
    return Layer(mixer=mixer, mlps=mlps, dtypes=LayerDtypes(*dtypes))


def _mixer(r: dict[str, Any]) -> Mixer | None:
    kind = r.get("mixer", "attention")
    if kind == "none":
        return None
    if kind != "attention":
        return Recurrent(
            kind=kind,
            num_key_heads=r["linear_key_heads"],
            key_dim=r["linear_key_dim"],
            num_heads=r["linear_heads"],
            value_dim=r["linear_value_dim"],
            conv_kernel=r["conv_kernel"],
            state_bytes_per_number=float(r.get("state_bytes_per_number", 2.0)),
        )
    if r.get("kv_lora_rank"):
        index = None
        if r.get("index_top_k"):
            own = not r.get("index_shared", False)
            index = SparseIndex(r["index_heads"], r["index_head_dim"], r["index_top_k"], own)
        return LatentAttention(
            num_heads=r["num_heads"],
            q_lora_rank=r.get("q_lora_rank", 0),
            kv_lora_rank=r["kv_lora_rank"],
            qk_nope_dim=r["qk_nope_dim"],
            qk_rope_dim=r["qk_rope_dim"],
            v_head_dim=r["v_head_dim"],
            index=index,
        )
    reach = None
    if r.get("sliding_window"):
        reach = Reach(r["sliding_window"])
    elif r.get("attention_chunk"):
        reach = Reach(r["attention_chunk"], chunked=True)
    return Attention(
        num_heads=r["num_heads"],
        num_kv_heads=r["num_kv_heads"],
        head_dim=r["head_dim"],
        v_head_dim=r.get("v_head_dim") or r["head_dim"],
        reach=reach,
        output_gate=r.get("output_gate", False),
        values_are_keys=r.get("values_are_keys", False),
        qk_norm=r.get("qk_norm", ""),
    )


def _mlps(r: dict[str, Any]) -> Iterator[Mlp]:
    kind = r.get("mlp", "experts" if r.get("num_experts") else "dense")
    if kind in ("dense", "both"):
        yield DenseMlp(r["ffn_dim"])
    if kind in ("experts", "both"):
        shared = r.get("num_shared_experts", 0) * r["moe_ffn_dim"]
        yield Experts(
            r["num_experts"],
            r["num_experts_active"],
            r["moe_ffn_dim"],
            r.get("shared_ffn_dim", shared),
            r.get("moe_latent_dim", 0),
        )


# The check --------------------------------------------------------------------------------------


def check_layers(row: Row, where: str) -> None:
    """Check what follows from several keys of an entry, each of which is right by itself.

    Raises
    ------
    ConfigError
        If keys of a layer contradict one another, or one is missing that another needs.
    """
    r: dict[str, Any] = dict(row)
    for part, whole, what in (
        ("num_dense_layers", r.get("num_layers"), "layers"),
        ("num_sliding_layers", r.get("num_layers"), "layers"),
    ):
        if whole is not None and r.get(part, 0) > whole:
            rule = f"is more than the {whole} {what} there are"
            raise ConfigError(f"{where}.{part}", r[part], rule, "Correct one of them.")
    if "layers" in r:
        num = sum(1 for _ in _expanded(r["layers"]))
        if r.get("num_layers", num) != num:
            rule = f"is not the {num} layers that the key layers lists"
            raise ConfigError(f"{where}.num_layers", r["num_layers"], rule, "Correct one of them.")
    elif "num_layers" not in r:
        rule, remedy = "the key is missing", "Add num_layers: decoder layers, or list them."
        raise ConfigError(f"{where}.num_layers", None, rule, remedy)
    for layer in {tuple(sorted(each.items(), key=str)): each for each in _hashable(r)}.values():
        _check_layer(layer, where)
    _check_counts(r, where)


def _hashable(r: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the keys of each layer that have plain values."""
    for each in _each(r):
        yield {key: value for key, value in each.items() if not isinstance(value, list | dict)}


def _check_layer(r: dict[str, Any], where: str) -> None:
    """Check the keys of one layer against one another."""
    for key, others in _NEEDS.items():
        missing = [other for other in others if r.get(key) and not r.get(other)]
        if missing:
            remedy = f"Add {missing[0]}."
            raise ConfigError(f"{where}.{key}", r[key], f"needs {missing[0]}", remedy)
    attends = r.get("mixer", "attention") == "attention"
    needed: tuple[str, ...] = _RECURRENT if not attends and r.get("mixer") != "none" else ()
    if attends:
        needed = (
            ("num_heads",) if r.get("kv_lora_rank") else ("num_heads", "num_kv_heads", "head_dim")
        )
    if r.get("mlp", "experts" if r.get("num_experts") else "dense") in ("dense", "both"):
        needed = (*needed, "ffn_dim")
    for key in needed:
        if not r.get(key):
            raise ConfigError(f"{where}.{key}", r.get(key), "the key is missing", f"Add {key}.")
    if attends and r["num_heads"] % r.get("num_kv_heads", 1):
        raise ConfigError(
            f"{where}.num_kv_heads",
            r["num_kv_heads"],
            f"does not divide the {r['num_heads']} query heads",
            "Correct one of them.",
        )
    if r.get("num_experts_active", 0) > r.get("num_experts", 0) > 0:
        rule = f"is more than the {r['num_experts']} experts there are"
        active = r["num_experts_active"]
        raise ConfigError(f"{where}.num_experts_active", active, rule, "Correct one of them.")


def _check_counts(r: dict[str, Any], where: str) -> None:
    """Check published totals against those of the shape."""
    spec = model({"name": "", "source": "", **r})
    if not spec.attentions:
        rule, remedy = "no layer has attention, which is not modelled", "Take another model."
        raise ConfigError(f"{where}.layers", None, rule, remedy)
    if len({mixer.reach for mixer in spec.mixers if mixer.reach is not None}) > 1:
        rule = "layers have windows or chunks of several widths, which is not modelled"
        raise ConfigError(f"{where}.layers", None, rule, "Give all of them one width.")
    for key, counted in (
        ("num_params", spec.num_params),
        ("kv_bytes_per_token", spec.kv_bytes_per_token),
    ):
        given = r.get(key, counted)
        if abs(given - counted) > 0.01 * counted:
            rule = f"is not the {counted} of the shape"
            raise ConfigError(f"{where}.{key}", given, rule, "Correct the shape, or leave it out.")
