"""Read a scenario file: tables, defaults from the catalogue, one error line for a wrong key.

`load` gives a `Scenario`; its ``document`` is the file with every default filled in, and reading
that again gives the same scenario.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar, Union

from pydantic import Discriminator, Field, Tag, TypeAdapter, ValidationError

from simcluster.catalog import Catalog, config_json, default_price, kernel_file
from simcluster.catalog.kernel_file import KernelTable
from simcluster.catalog.specs import EngineProfile, LinkSpec
from simcluster.config import (
    AICONFIGURATOR,
    EXPERT_SPREAD,
    LAW,
    TARGETS,
    ClusterConfig,
    Environment,
    ModelConfig,
    SloConfig,
)
from simcluster.errors import ConfigError, DataError, nearest
from simcluster.quality import CommonQuality
from simcluster.registry import wanted
from simcluster.scenario import arguments, kernel_use
from simcluster.scenario.check import JsonSchema, markdown, shown, validated
from simcluster.scenario.cooptimize_table import CooptimizeTable
from simcluster.scenario.engines import engine_of, with_file
from simcluster.scenario.quantities import given_twice, override_key, read_units
from simcluster.scenario.remarks import refuse_unused
from simcluster.scenario.scenario import Scenario, as_read, tables_of
from simcluster.scenario.tables import ClusterTable, EngineTable, ModelTable, ScenarioTables
from simcluster.strategies import STRATEGIES, Routed
from simcluster.strategies.base import with_defaults_of
from simcluster.workload import ARRIVALS, LENGTHS, WorkloadSettings
from simcluster.workload.base import joined

Document = dict[str, Any]
"""Tables and values as ``tomllib`` gives them."""

T = TypeVar("T")

STDIN = "-"
"""In place of a path: standard input."""

_DEFAULT_GPUS_PER_NODE = 8
_MAX_GPUS = 32_768
_DEFAULT_ARRIVALS = "poisson"
_DEFAULT_NETWORK = "100gbe"
_NO_NETWORK = "none"


def load(path: str | Path, overrides: Mapping[str, object] | None = None) -> Scenario:
    """Read a scenario file.

    Parameters
    ----------
    path : str or Path
        A TOML file, or ``"-"`` for standard input; ``docs/scenario.md`` lists the keys.
    overrides : mapping of str to object, optional
        Values that replace those of the file, by dotted key, such as ``{"cluster.nodes": 2,
        "strategy.EcoServe.tp_size": 2}``; None removes the key. A key that excludes others
        (``workload.trace``, ``num_requests``, ``duration_s``) takes their place. Relative paths
        start at the folder of the file (those of ``--set`` at the working directory).

    Raises
    ------
    ConfigError
        If a key is unknown, missing or has a value that cannot be used.
    DataError
        If the file cannot be read or is not TOML.
    """
    remedy = "Give the path of a scenario file; simcluster.resolve takes its tables."
    path = arguments.path("path", path, remedy)
    scenario = resolve(parsed(path), overrides, folder=path.parent)
    refuse_unused(scenario)
    kernel_use.refuse_unused(scenario)
    return scenario


def parsed(path: Path) -> Document:
    """Return the tables of a TOML file.

    Raises
    ------
    DataError
        If the file cannot be read or is not TOML.
    """
    try:
        if str(path) == STDIN:
            return tomllib.loads(sys.stdin.buffer.read().decode("utf-8-sig"))
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        remedy = "Give the path of a scenario file, such as scenarios/quickstart.toml."
        raise DataError(f"{path}: cannot be read ({error.strerror}). {remedy}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not text. Give a scenario file in TOML.") from None
    except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
        raise DataError(f"{path}: is not TOML: {error}. Correct the file there.") from None


def resolve(
    document: Mapping[str, object],
    overrides: Mapping[str, object] | None = None,
    *,
    folder: Path | None = None,
    catalog: Catalog | None = None,
) -> Scenario:
    """Return the scenario that a parsed `document` describes.

    Parameters
    ----------
    document : mapping of str to object
        Tables as ``tomllib`` reads them.
    overrides : mapping of str to object, optional
        As in `load`.
    folder : Path, optional
        Relative paths in the document start here; default: the working directory.
    catalog : Catalog, optional
        The entries that the document can name (`Scenario.catalog`); default: the packaged ones and
        those of the document's catalogue files, which are read.

    Raises
    ------
    ConfigError
        As in `load`.
    DataError
        If a catalogue file cannot be read.
    """
    arguments.mapping("document", document, "Give the tables of a scenario file.")
    if overrides is not None:
        arguments.mapping("overrides", overrides, 'Write them as {"slo.ttft_s": 1.0}.')
    tables: Document = json.loads(json.dumps(document, default=_plain))
    changes: Document = json.loads(json.dumps(overrides or {}, default=_plain))
    for key, value in changes.items():
        if override_key(key, value) != key and override_key(key, value) in changes:
            raise given_twice(key, value)
    changes = {override_key(key, value): value for key, value in changes.items()}
    for excluded in [_REPLACED_BY.get(key, []) for key in changes]:
        for other in excluded:
            _override(tables, other, None)
    for key, value in changes.items():
        _override(tables, key, value)
    read_units(tables)
    _absolute_paths(tables, (folder or Path()).absolute())
    _rename_old_keys(tables)
    file = _validated(tables)
    file = dataclasses.replace(file, workload=_workload(file.workload, folder))
    if file.quality is not None:
        based: Any = file.quality.with_base((folder or Path()).absolute())
        file = dataclasses.replace(file, quality=based)
    _check_lists(file)
    file = dataclasses.replace(file, slo=_slo(file))
    if catalog is None:
        catalog = functools.reduce(with_file, dict.fromkeys(file.catalog), Catalog())
    _refuse_node_without_effect(file.cluster, changes, catalog)
    environment = _with_common_context(_environment(file, catalog), file.engine)
    settings: Any = file.quality
    quality = None if settings is None else settings.with_entries(catalog)
    models = _names_of_models(file, environment)
    strategies = _routed(file, models, quality, catalog)
    file = dataclasses.replace(
        file,
        strategy=tuple(with_defaults_of(environment.engine, one) for one in strategies),
        cooptimize=_with_full_names(file.cooptimize, models),
    )
    return Scenario(
        environment=environment,
        workload=file.workload.with_entries(catalog),
        rates_rps=file.sweep.rates_rps or _own_rate(file),
        strategies=file.strategy,
        run=file.run,
        document=_filled_in(file, environment),
        quality=quality,
        catalog=catalog,
        rank=file.rank,
        cooptimize=file.cooptimize,
    )


def changed(scenario: Scenario, overrides: Mapping[str, object]) -> Scenario:
    """Return `scenario` with other values by dotted key, as `load` takes them.

    The catalogue's entries are those that `scenario` could name; no file is read for them again.
    """
    return resolve(scenario.document, overrides, catalog=scenario.catalog)


@functools.cache
def _adapter(
    kinds: tuple[type, ...], workload_kinds: tuple[tuple[str, type], ...]
) -> TypeAdapter[ScenarioTables]:
    """Return the validator for these strategies, and for the arrivals and lengths of now.

    `workload_kinds` are those arrivals and lengths: the validator is made again when they change.
    """
    one = Annotated[Union[kinds], Field(discriminator="kind")]  # type: ignore[valid-type]  # noqa: UP007 - a union made at run time
    return TypeAdapter(_whole(one))


def _whole(one: Any, absent: Sequence[str] = ()) -> type[ScenarioTables]:
    """Return the settings of a file with strategies of type `one`, the tables `absent` None.

    Parameters
    ----------
    one : type or None
        Of a strategy; None where there are no strategies.
    absent : sequence of str
        Tables that must not be there.
    """
    strategies: Any = tuple[()] if one is None else tuple[one, ...]
    many = Annotated[
        strategies,
        Field(description="One table per serving strategy; `rank` and `cooptimize` need none."),
    ]
    fields = [("strategy", many, ()), *((name, None, None) for name in absent)]
    return dataclasses.make_dataclass(
        "ScenarioFile", fields, bases=(ScenarioTables,), frozen=True, kw_only=True
    )


def adapter() -> TypeAdapter[ScenarioTables]:
    """Return the validator of scenario files for all that is registered now."""
    return _adapter(tuple(STRATEGIES.values()), (*ARRIVALS.items(), *LENGTHS.items()))


def _validated(tables: Document) -> ScenarioTables:
    """Return the settings of a file's `tables`, by a validator of its own kinds if they are fit."""
    kinds = frozenset(_kinds_in(tables))
    absent = tuple(name for name in _RARE if name not in tables)
    classes: list[tuple[str, type]] = [(name, ARRIVALS[name]) for name in ARRIVALS if name in kinds]
    classes += [(name, LENGTHS[name]) for name in LENGTHS if name in kinds]
    strategies = tuple((name, STRATEGIES[name]) for name in STRATEGIES if name in kinds)
    small = _small_adapter(strategies, tuple(classes), absent)
    try:
        return small.validate_json(json.dumps(tables, default=str))
    except (ValidationError, ConfigError):
        # What is wrong is said by the validator of all kinds, which knows what else could be meant.
        return validated(adapter(), tables)


_RARE: Final = ("quality", "cooptimize", "rank")
"""Tables that few files have."""


@functools.lru_cache(maxsize=64)
def _small_adapter(
    kinds: tuple[tuple[str, type], ...],
    workload_kinds: tuple[tuple[str, type], ...],
    absent: tuple[str, ...],
) -> TypeAdapter[ScenarioTables]:
    """Return the validator of files without the tables `absent`, and of these kinds alone."""
    token = wanted.set(frozenset(name for name, _ in workload_kinds))
    try:
        tagged = tuple(Annotated[one, Tag(kind)] for kind, one in kinds)
        one = Annotated[Union[tagged], Discriminator(_kind)] if kinds else None  # noqa: UP007
        return TypeAdapter(_whole(one, absent))
    finally:
        wanted.reset(token)


def _kind(table: object) -> object:
    return table.get("kind") if isinstance(table, dict) else None


def _kinds_in(value: object) -> Iterator[str]:
    """Give the kinds that the tables in `value` state."""
    if isinstance(value, dict):
        if isinstance(kind := value.get("kind"), str):
            yield kind
        for inside in value.values():
            yield from _kinds_in(inside)
    elif isinstance(value, list):
        for inside in value:
            yield from _kinds_in(inside)


def _plain(value: object) -> object:
    """Return what JSON can hold: NumPy numbers and arrays as numbers, dates and paths as text."""
    return value.tolist() if hasattr(value, "tolist") else str(value)


# Overrides --------------------------------------------------------------------------------------


_REPLACED_BY = {
    "workload.num_requests": ["workload.duration_s"],
    "workload.duration_s": ["workload.num_requests"],
    "workload.trace": [
        "workload.arrivals",
        "workload.lengths",
        "workload.num_requests",
        "workload.duration_s",
    ],
}
"""Keys of the file that give way when another one that excludes them is overridden."""


def parse_override(text: str) -> tuple[str, object]:
    """Return key and value of ``key=value``: the value read as TOML, else as text; None if empty.

    >>> parse_override("cluster.nodes = 2")
    ('cluster.nodes', 2)
    >>> parse_override("cluster.gpu=H100")
    ('cluster.gpu', 'H100')

    Raises
    ------
    ConfigError
        If there is no ``=`` or no key before it.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not key or not equals:
        raise ConfigError("--set", text, "must be key=value", "Write --set cluster.nodes=2.")
    if not value:
        return key, None
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except (ValueError, RecursionError):
        return key, value


def with_paths_of(key: str, value: object, folder: Path) -> object:
    """Return the value of an override with its relative paths taken from `folder`.

    Parameters
    ----------
    key : str
        Dotted key, as `load` takes it.
    value : object
        What it is set to: a path, a list or a table that holds paths, or anything else.
    folder : Path
        Where who wrote the override is: the working directory on a command line.
    """
    if isinstance(value, dict):
        return {name: with_paths_of(f"{key}.{name}", one, folder) for name, one in value.items()}
    if isinstance(value, list):
        return [with_paths_of(key, one, folder) for one in value]
    if not isinstance(value, str) or not value:
        return value
    is_path = key in ("catalog", "workload.trace")
    is_path |= key.endswith(".path") and key.startswith(("workload.", "quality."))
    is_path |= key == "engine.kernels" and value.endswith(kernel_file.SUFFIXES)
    is_path |= key == "model.name" and _is_file(joined(folder, value))
    return joined(folder, value) if is_path else value


def _override(tables: Document, key: str, value: object) -> None:
    """Set `key` (``slo.ttft_s``, ``strategy.0.tp_size``, ``strategy[0].tp_size``) in `tables`.

    None removes it.
    """
    *path, last = re.sub(r"\[(\d+)\]", r".\1", key).split(".")
    place: Any = tables
    for depth, piece in enumerate(path):
        if isinstance(place, list):
            place = place[_index(place, piece, key, ".".join(path[:depth]))]
        else:
            place = place.setdefault(piece, {})
        if not isinstance(place, dict | list):
            raise _no_table(key, value, ".".join(path[: depth + 1]), last)
    if isinstance(place, list):
        place[_index(place, last, key, ".".join(path))] = value
    elif value is None:
        place.pop(last, None)
    else:
        place[last] = value


_NAME_OR_TABLE = ("workload.lengths", "workload.arrivals", "workload.trace")


def _no_table(key: str, value: object, above: str, last: str) -> ConfigError:
    """Return the error for an override of a key inside of a plain value."""
    remedy = "See `simcluster show` for the keys."
    if above in _NAME_OR_TABLE:
        inside = f"{last} = {json.dumps(value)}"
        remedy = f"Give the whole table: --set '{above}={{ {inside}, ... }}'; docs/scenario.md "
        remedy += "has its keys."
    return ConfigError(key, shown(value), f"{above} is a value, not a table", remedy)


def _index(rows: list[Any], piece: str, key: str, name: str) -> int:
    """Return which of `rows` a piece of a dotted key means: by number from 0, or by name."""
    names = [str(row.get("name")) for row in rows if isinstance(row, dict)]
    if piece in names:
        return names.index(piece)
    if piece.isdecimal() and int(piece) < len(rows):
        return int(piece)
    rule = f"{name} has no entry {piece!r}"
    raise ConfigError(key, None, rule, f"{nearest(piece, names)} Numbers count from 0.")


def _absolute_paths(tables: Document, folder: Path) -> None:
    """Make the paths in `tables` absolute, so that the scenario can be read from anywhere."""
    if isinstance(files := tables.get("catalog"), list):
        tables["catalog"] = [str(folder / f) if isinstance(f, str) else f for f in files]
    model = tables.get("model")
    named = model.get("name") if isinstance(model, dict) else None
    if isinstance(named, str) and _is_file(str(folder / named)):
        tables["model"] = {**tables["model"], "name": str(folder / named)}
    engine = tables.get("engine")
    kernels = engine.get("kernels") if isinstance(engine, dict) else None
    if isinstance(kernels, str) and kernels.endswith(kernel_file.SUFFIXES):
        tables["engine"] = {**tables["engine"], "kernels": str(folder / kernels)}


def _is_file(name: str) -> bool:
    """Whether a model's name is the path of its ``config.json``, or of the folder that holds it."""
    try:
        return name.endswith(".json") or Path(name, "config.json").is_file()
    except (OSError, ValueError):  # no file can have such a name
        return False


# Checks between keys ----------------------------------------------------------------------------


def _check_lists(file: ScenarioTables) -> None:
    """Refuse what one key alone cannot tell: repeated names, rates and seeds, no targets."""
    names = [s.name for s in file.strategy]
    for i, name in enumerate(names):
        if name in names[:i]:
            rule = f"is also the name of strategy[{names.index(name)}]"
            raise ConfigError(f"strategy[{i}].name", name, rule, "Give each its own name.")
    rates = file.sweep.rates_rps
    if any(b <= a for a, b in itertools.pairwise(rates)):
        rule = "must rise, without repeats"
        raise ConfigError("sweep.rates_rps", shown(rates), rule, f"Write {sorted(set(rates))}.")
    _check_priorities(file)
    seeds = file.run.seeds
    if len(set(seeds)) < len(seeds):
        rule = "must differ from one another"
        raise ConfigError("run.seeds", shown(seeds), rule, f"Write {sorted(set(seeds))}.")


def _check_priorities(file: ScenarioTables) -> None:
    """Refuse a queue by priority where all requests have the same, and priorities without one."""
    classes = file.workload.classes or ()
    differ = len({c.priority for c in classes}) > 1
    queues = [getattr(s, "queue", "first-come") for s in file.strategy]
    for strategy, queue in zip(file.strategy, queues, strict=True):
        if queue == "priority" and not differ:
            raise ConfigError(
                f"strategy.{strategy.name}.queue",
                queue,
                "all requests have the same priority",
                "Add [[workload.classes]] with different values of priority, or leave it out.",
            )


def _slo(file: ScenarioTables) -> SloConfig:
    """Return the targets, those of every class of the workload written out.

    Raises
    ------
    ConfigError
        If a class has targets but no requests, or a percentile cannot be used.
    """
    _check_percentiles(file.slo)
    names = [c.name for c in file.workload.classes or ()]
    for name in file.slo.classes or ():
        if not names:
            rule, remedy = "the workload has no classes", "Add [[workload.classes]] with shares."
            raise ConfigError(f"slo.classes.{name}", None, rule, remedy)
        if name not in names:
            rule = "is no class of the workload"
            raise ConfigError(f"slo.classes.{name}", None, rule, nearest(name, names))
    return file.slo.with_classes(names)


def _check_percentiles(slo: SloConfig) -> None:
    """Refuse percentiles of targets that are not counted by themselves, or not set, and shares."""
    for key in TARGETS:
        percentile: float | None = getattr(slo.percentiles, key, None) if slo.percentiles else None
        name = f"slo.percentiles.{key}"
        if percentile is None:
            continue
        if percentile <= 1:
            meant = f"{100 * percentile:g}" if percentile < 1 else "99 or another below 100"
            rule = f"a percentile is in per cent; {percentile:g} reads as a share"
            raise ConfigError(name, percentile, rule, f"Write {meant}.")
        if slo.criterion == "joint":
            rule = 'criterion = "joint" counts all targets of a request together'
            remedy = 'Write slo.criterion = "marginal", or use slo.attainment for all targets.'
            raise ConfigError(name, percentile, rule, remedy)
        if not slo.has_target(f"{key}_s"):
            rule = f"slo.{key}_s has no value"
            remedy = f"Set slo.{key}_s, or remove the percentile."
            raise ConfigError(name, percentile, rule, remedy)


def _rename_old_keys(tables: Document) -> None:
    """Read keys of earlier versions, which stand in the folders that they wrote."""
    engine = tables.get("engine")
    if isinstance(engine, dict) and isinstance(engine.get("quantises_apart"), bool):
        apart = engine.pop("quantises_apart")
        engine.setdefault("quantises", "apart" if apart else "fused")


def _own_rate(file: ScenarioTables) -> tuple[float, ...]:
    """Return the rate of the workload where no rates are swept."""
    rate = file.workload.rate_rps
    return () if rate is None else (rate,)


# The catalogue ----------------------------------------------------------------------------------


def _environment(file: ScenarioTables, catalog: Catalog) -> Environment:
    models = [
        _model(table, file.engine, key, catalog)
        for key, table in _numbered("model", file.model, file.extra_model)
    ]
    clusters = [
        _cluster(table, key, catalog)
        for key, table in _numbered("cluster", file.cluster, file.extra_cluster)
    ]
    engine = engine_of(file.engine, catalog)
    return Environment(
        model=models[0],
        cluster=clusters[0],
        engine=engine if len(clusters) > 1 else engine.on(clusters[0].gpu),
        slo=file.slo,
        extra_models=tuple(models[1:]),
        extra_clusters=tuple(clusters[1:]),
        step_times=file.engine.step_times,
        kernels=_kernels(file.engine),
    )


def _kernels(table: EngineTable) -> str | KernelTable:
    """Return where the times of kernels come from, with the rows of a file."""
    named = table.kernels
    if named != LAW and table.step_times != "roofline":
        rule = f"step times of {table.step_times!r} do not know single kernels"
        remedy = 'Use engine.step_times = "roofline", or remove the key.'
        raise ConfigError("engine.kernels", named, rule, remedy)
    if named in (LAW, AICONFIGURATOR):
        return named
    if named.endswith(kernel_file.SUFFIXES):
        if not Path(named).is_file():
            rule = "no such file"
            remedy = "A path in a scenario file starts at that file, one of --set where you are."
            raise ConfigError("engine.kernels", named, rule, remedy)
        return kernel_file.read(Path(named))
    rule = "is neither a known source nor a file of kernel times"
    remedy = f'Use "{LAW}", "{AICONFIGURATOR}" or a path that ends in '
    remedy += f'{", ".join(kernel_file.SUFFIXES)}, such as kernels = "my_kernels.csv".'
    raise ConfigError("engine.kernels", named, rule, remedy)


def _numbered(name: str, first: T, extra: tuple[T, ...]) -> list[tuple[str, T]]:
    """Return tables with the names that error lines call them by."""
    return [(name, first), *((f"extra_{name}[{i}]", table) for i, table in enumerate(extra))]


def _model(table: ModelTable, engine: EngineTable, where: str, catalog: Catalog) -> ModelConfig:
    if _is_file(table.name):
        spec = config_json.model(table.name)
    else:
        spec = catalog.model(table.name, key=f"{where}.name")
    longest = engine.max_model_len or spec.max_position
    if longest > spec.max_position:
        raise ConfigError(
            "engine.max_model_len",
            longest,
            f"{spec.name} has a context of {spec.max_position} tokens",
            f"Set it to {spec.max_position} or less.",
        )
    return ModelConfig(
        spec=spec,
        max_model_len=longest,
        weight_dtype=table.weight_dtype,
        kv_dtype=table.kv_dtype,
        expert_spread=(EXPERT_SPREAD if table.expert_spread is None else table.expert_spread),
    )


def _cluster(table: ClusterTable, where: str, catalog: Catalog) -> ClusterConfig:
    shape = catalog.node(table.node, key=f"{where}.node") if table.node else None
    name = table.gpu or (shape.gpu if shape else None)
    if name is None:
        remedy = f'Add gpu = "L20" or node = "..." to [{where}]; `simcluster catalog` lists them.'
        raise ConfigError(f"{where}.gpu", None, "is missing", remedy)
    gpu = catalog.gpu(name, key=f"{where}.gpu")
    fabric = table.fabric or (shape.fabric if shape and not table.gpu else gpu.fabric)
    network = table.network or (shape.network if shape else _DEFAULT_NETWORK)
    price, currency = table.price_per_gpu_hour, table.currency or "USD"
    if price is None:
        if table.currency:
            rule = "is given without a price"
            remedy = f"Add {where}.price_per_gpu_hour or leave the currency out."
            raise ConfigError(f"{where}.currency", table.currency, rule, remedy)
        if known := default_price(gpu):
            price, currency = known.per_gpu_hour, known.currency
    if table.oversubscription > 1 and table.nodes_per_switch is None:
        raise ConfigError(
            f"{where}.oversubscription",
            table.oversubscription,
            "says nothing while all nodes are on one switch",
            f"Add {where}.nodes_per_switch, or leave it out.",
        )
    per_node = table.gpus_per_node or (shape.gpus_per_node if shape else _DEFAULT_GPUS_PER_NODE)
    if table.nodes * per_node > _MAX_GPUS:
        rule = f"with {per_node} GPUs each are more than {_MAX_GPUS} GPUs"
        remedy = "Lower it: results per GPU hardly change with more of the same."
        raise ConfigError(f"{where}.nodes", table.nodes, rule, remedy)
    return ClusterConfig(
        gpu=gpu,
        num_nodes=table.nodes,
        gpus_per_node=per_node,
        fabric=_link(fabric, f"{where}.fabric", "fabric", catalog),
        network=None
        if network == _NO_NETWORK
        else _link(network, f"{where}.network", "network", catalog),
        num_nics=table.nics or (shape.num_nics if shape else 1),
        pcie=catalog.link(gpu.pcie, key=f"{where}.gpu"),
        price_per_gpu_hour=price,
        currency=currency,
        gpus_per_domain=table.gpus_per_domain
        or (shape.gpus_per_domain if shape and shape.fabric == fabric else None),
        gpus_per_switch=table.gpus_per_switch or (shape.gpus_per_switch if shape else None),
        nodes_per_switch=table.nodes_per_switch,
        oversubscription=table.oversubscription,
    )


def _refuse_node_without_effect(table: ClusterTable, changes: Document, catalog: Catalog) -> None:
    """Refuse to change the node shape alone where the file says another GPU: that would stay."""
    if not changes.get("cluster.node") or "cluster.gpu" in changes or table.gpu is None:
        return
    own = catalog.gpu(catalog.node(str(table.node), key="cluster.node").gpu).name
    if own != catalog.gpu(table.gpu, key="cluster.gpu").name:
        raise ConfigError(
            "cluster.node",
            table.node,
            f"has {own}, and the file says cluster.gpu = {table.gpu!r}, which stays",
            "Take the GPU of the node with --set cluster.gpu=, or name the one that you mean.",
        )


def _with_common_context(environment: Environment, engine: EngineTable) -> Environment:
    """Return `environment` with one longest sequence for all models, and names that differ."""
    longest = min(model.max_model_len for model in environment.models)
    for kind, names in (
        ("model", [model.spec.name for model in environment.models]),
        ("cluster", [cluster.gpu.name for cluster in environment.clusters]),
    ):
        for i, name in enumerate(names):
            if name in names[:i]:
                raise ConfigError(
                    f"extra_{kind}[{i - 1}]",
                    name,
                    "is in the scenario already",
                    "Give each model and each GPU type one table.",
                )
    if engine.max_model_len is not None:
        return environment
    models = [dataclasses.replace(m, max_model_len=longest) for m in environment.models]
    return dataclasses.replace(environment, model=models[0], extra_models=tuple(models[1:]))


def _names_of_models(file: ScenarioTables, environment: Environment) -> dict[str, str]:
    """Return the full names of the models by everything that the file may call them."""
    return {
        name: model.spec.name
        for table, model in zip((file.model, *file.extra_model), environment.models, strict=True)
        for name in (table.name, model.spec.name)
    }


def _with_full_names(
    table: CooptimizeTable | None, models: Mapping[str, str]
) -> CooptimizeTable | None:
    """Return `table` with full names; `cooptimize` refuses those that no model has."""
    if table is None:
        return None
    names = tuple(models.get(name, name) for name in table.models)
    return dataclasses.replace(table, models=names)


def _routed(
    file: ScenarioTables,
    models: Mapping[str, str],
    quality: CommonQuality | None,
    catalog: Catalog,
) -> tuple[Any, ...]:
    """Return the strategies, those of several models with the catalogue's full names.

    Raises
    ------
    ConfigError
        If such a strategy has not as many models as the quality.
    """
    strategies = []
    for strategy in file.strategy:
        if isinstance(strategy, Routed):
            groups = tuple(
                dataclasses.replace(
                    group,
                    model=models.get(group.model, group.model),
                    gpu=catalog.gpu(group.gpu, f"strategy.{strategy.name}.pool[{i}].gpu").name,
                )
                for i, group in enumerate(strategy.pool)
            )
            names = tuple(models.get(name, name) for name in strategy.models)
            for name in names:
                if name not in models.values():
                    raise ConfigError(
                        f"strategy.{strategy.name}.models",
                        name,
                        "is no model of this scenario",
                        f"{nearest(name, set(models.values()))} Or add an [[extra_model]].",
                    )
            strategy = dataclasses.replace(strategy, pool=groups, models=names)
            strategy.cuts()
            if quality is not None:
                known = quality.curve().num_models
                if known != len(names):
                    raise ConfigError(
                        f"strategy.{strategy.name}.models",
                        str(list(names)),
                        f"are {len(names)} models, and [quality] knows {known}",
                        "Give the models that the quality is of, from the weakest to the "
                        "strongest; one without requests has a fraction of 0.",
                    )
        strategies.append(strategy)
    return tuple(strategies)


def _link(name: str, key: str, kind: str, catalog: Catalog) -> LinkSpec:
    link = catalog.link(name, key=key)
    if link.kind != kind:
        where = {"fabric": "inside a node", "network": "between nodes"}
        rule = f"is a link {where[link.kind]}, not {where[kind]}"
        raise ConfigError(key, name, rule, f"`simcluster catalog --kind link` lists {kind} links.")
    return link


def _workload(settings: WorkloadSettings, folder: Path | None) -> WorkloadSettings:
    """Return `settings` with absolute paths and the arrival process named."""
    settings = settings.with_base((folder or Path()).absolute())
    if settings.trace is None and settings.arrivals is None:
        settings = dataclasses.replace(settings, arrivals=_DEFAULT_ARRIVALS)
    return settings


# The document -----------------------------------------------------------------------------------


def _filled_in(file: ScenarioTables, environment: Environment) -> Document:
    """Return the file with its defaults; keys that have none stay out."""
    quality: Any = file.quality
    models = [
        {
            **dataclasses.asdict(table),
            "name": table.name if _is_file(table.name) else model.spec.name,
        }
        for table, model in zip((file.model, *file.extra_model), environment.models, strict=True)
    ]
    clusters = [_cluster_filled_in(cluster) for cluster in environment.clusters]
    engine = environment.engine
    document: Document = {
        "catalog": file.catalog or None,
        "model": models[0],
        "extra_model": models[1:] or None,
        "cluster": clusters[0],
        "extra_cluster": clusters[1:] or None,
        "quality": None if quality is None else dataclasses.asdict(quality),
        "cooptimize": None if file.cooptimize is None else dataclasses.asdict(file.cooptimize),
        "engine": {
            **dataclasses.asdict(file.engine),
            **{k: getattr(engine, k) for k in _ENGINE_NUMBERS},
            "max_model_len": environment.model.max_model_len,
        },
        "workload": dataclasses.asdict(file.workload),
        "slo": dataclasses.asdict(file.slo),
        "sweep": {"rates_rps": file.sweep.rates_rps or None},
        "run": dataclasses.asdict(file.run),
        "rank": None if file.rank is None else dataclasses.asdict(file.rank),
    }
    return {**as_read(document), **tables_of(file.strategy)}


def _cluster_filled_in(cluster: ClusterConfig) -> Document:
    return {
        "gpu": cluster.gpu.name,
        "nodes": cluster.num_nodes,
        "gpus_per_node": cluster.gpus_per_node,
        "fabric": cluster.fabric.name,
        "network": cluster.network.name if cluster.network else _NO_NETWORK,
        "nics": cluster.num_nics,
        "gpus_per_domain": cluster.gpus_per_domain,
        "gpus_per_switch": cluster.gpus_per_switch,
        "nodes_per_switch": cluster.nodes_per_switch,
        "oversubscription": cluster.oversubscription,
        "price_per_gpu_hour": cluster.price_per_gpu_hour,
        "currency": cluster.currency if cluster.price_per_gpu_hour else None,
    }


_ENGINE_NUMBERS = [
    f.name for f in dataclasses.fields(EngineProfile) if f.name not in ("name", "source")
]


def json_schema() -> JsonSchema:
    """Return the JSON Schema of scenario files, with all registered strategies."""
    schema = adapter().json_schema()
    schema["title"] = "simcluster scenario"
    return schema


def markdown_keys() -> str:
    """Return the tables of all keys, in Markdown; ``docs/scenario.md`` holds them."""
    return markdown(adapter().json_schema())
