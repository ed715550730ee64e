"""Settings after the edge: resolved, checked, frozen. What travels inside the package."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema

from simcluster.catalog.kernel_file import KernelTable
from simcluster.catalog.layers import (
    BF16,
    KV_BYTES,
    WEIGHT_DTYPES,
    Attention,
    LatentAttention,
    Mixer,
    ModelSpec,
    Reach,
    Recurrent,
    WeightDtype,
)
from simcluster.catalog.specs import EngineProfile, GPUSpec, LinkSpec
from simcluster.errors import unfit_name

SETTINGS_CONFIG = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
"""pydantic configuration of settings: unknown keys, wrong types, nan and inf are refused."""


class Settings:
    """Base of settings: frozen dataclasses whose fields are the keys of a table of a scenario file.

    The text below a field says what the key means, with its unit; ``simcluster schema`` prints it.
    """

    __slots__ = ()
    __pydantic_config__: ClassVar[ConfigDict] = SETTINGS_CONFIG

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """Return the JSON schema of the table, with the text below each key as its description."""
        found = handler(schema)
        keys = handler.resolve_ref_schema(found)["properties"]
        for key, text in _texts(cls).items():
            if key in keys:
                keys[key].setdefault("description", text)
        return found


def _texts(cls: type[Any]) -> dict[str, str]:
    """Return the texts below the fields of a class and of its bases; none without its source."""
    import ast  # for documentation alone
    import inspect

    texts: dict[str, str] = {}
    for base in reversed(cls.__bases__):
        texts |= _texts(base)
    try:
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    except (OSError, TypeError):
        return texts
    assert isinstance(tree, ast.ClassDef)
    for key, below in itertools.pairwise(tree.body):
        match key, below:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                texts[name] = " ".join(text.split())
    return texts


def _fit(name: str) -> str:
    """Return `name`, or raise with the rule that it breaks (`unfit_name`)."""
    if rule := unfit_name(name):
        raise ValueError(rule)
    return name


Name = Annotated[str, Field(min_length=1), AfterValidator(_fit)]
"""A name of the user's that stands in tables, files and pictures."""

LAW: Final = "law"
AICONFIGURATOR: Final = "aiconfigurator"
"""Values of ``engine.kernels`` that are no path."""

TARGET_KEYS: Final = ("ttft_s", "tpot_s", "itl_s", "e2el_s")
"""Targets that a request, or a class of requests, may have."""
TARGETS: Final = tuple(key.removesuffix("_s") for key in TARGET_KEYS)
"""The same without the unit: the names of shares that met them, and of percentiles."""

Percentile = Annotated[float | None, Field(gt=0, lt=100)]


@dataclass(frozen=True, slots=True, kw_only=True)
class SloTargets(Settings):
    """Latency targets of the requests of a class (a table ``[slo.classes.NAME]``)."""

    ttft_s: Annotated[float | None, Field(gt=0)] = None
    """Target of the time to first token (s)."""
    tpot_s: Annotated[float | None, Field(gt=0)] = None
    """Target of the mean time per output token (s)."""
    itl_s: Annotated[float | None, Field(gt=0)] = None
    """Target of the inter-token latency (s): 99 % of the gaps between the tokens of a request must
    be within it."""
    e2el_s: Annotated[float | None, Field(gt=0)] = None
    """Target of the end-to-end latency (s)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SloPercentiles(Settings):
    """Percentiles that latency targets are for (the table ``[slo.percentiles]``)."""

    ttft: Percentile = None
    """Per cent of the requests that must be within ttft_s; 95 asks for P95 of TTFT ≤ ttft_s."""
    tpot: Percentile = None
    """Per cent of the requests that must be within tpot_s."""
    itl: Percentile = None
    """Per cent of the requests that must be within itl_s."""
    e2el: Percentile = None
    """Per cent of the requests that must be within e2el_s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SloConfig(SloTargets):
    """Latency targets of a request, and how attainment is counted (the table ``[slo]``)."""

    classes: dict[str, SloTargets] | None = None
    """Targets of classes of requests, by the names of workload.classes; what a class leaves out is
    that of [slo]."""
    attainment: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of requests that must meet the targets."""
    criterion: Literal["joint", "marginal"] = "joint"
    """joint: a request meets all targets (DistServe, EcoServe); marginal: the smallest of the
    separate shares (BestServe)."""
    percentiles: SloPercentiles | None = None
    """Percentile of each target, in per cent, with criterion = "marginal"; a target without one has
    that of attainment."""
    metric: Literal["user", "ecoserve"] = "user"
    """user: TTFT = first output - arrival; ecoserve: TTFT = decode start - arrival, TPOT from there
    (EcoServe, section 2.1)."""

    @property
    def has_targets(self) -> bool:
        """Whether a request of any class can miss something by being late."""
        return any(self.has_target(key) for key in TARGET_KEYS)

    def has_target(self, key: str) -> bool:
        """Return whether a request of any class has the target `key`, of `TARGET_KEYS`."""
        slos = [self.of(name) for name in self.classes] if self.classes else [self]
        return any(getattr(slo, key) is not None for slo in slos)

    @property
    def targets(self) -> tuple[str, ...]:
        """Those of `TARGETS` that a request of any class has."""
        return tuple(key for key in TARGETS if self.has_target(f"{key}_s"))

    def wanted(self, key: str) -> float:
        """Return the share of requests (0 to 1) that must meet a target.

        Parameters
        ----------
        key : str
            One of `TARGETS`, or ``"joint"`` for all of them at once.
        """
        own: float | None = getattr(self.percentiles, key, None) if self.percentiles else None
        return self.attainment if own is None else own / 100

    @property
    def counted(self) -> tuple[str, ...]:
        """What must reach its `wanted` share: ``"joint"``, or each target that is set by itself.

        Without targets all of `TARGETS`, which then say what finished.
        """
        if self.criterion == "joint":
            return ("joint",)
        return self.targets or TARGETS

    def of(self, name: str | None) -> SloConfig:
        """Return the targets of class `name`; those of the table itself where it has none."""
        own = (self.classes or {}).get(name or "", SloTargets())
        given = {key: value for key in TARGET_KEYS if (value := getattr(own, key)) is not None}
        return replace(self, classes=None, **given)

    def with_classes(self, names: Iterable[str]) -> SloConfig:
        """Return these targets with those of every class of `names` written out."""
        classes = {
            name: SloTargets(**{key: getattr(self.of(name), key) for key in TARGET_KEYS})
            for name in names
        }
        return replace(self, classes=classes or None)

    def strictest(self) -> SloConfig:
        """Return one set of targets: of each the smallest that a class has."""
        return self._over_classes(lambda values: min(values, default=math.inf))

    def loosest(self) -> SloConfig:
        """Return one set of targets: of each the largest, none where a class has none."""
        num = len(self.classes or ())
        return self._over_classes(lambda values: max(values) if len(values) == num else math.inf)

    def _over_classes(self, choose: Callable[[list[float]], float]) -> SloConfig:
        if not self.classes:
            return self
        each = [self.of(name) for name in self.classes]
        chosen = {
            key: choose([value for slo in each if (value := getattr(slo, key)) is not None])
            for key in TARGET_KEYS
        }
        finite: dict[str, Any] = {
            key: value if value < math.inf else None for key, value in chosen.items()
        }
        return replace(self, classes=None, **finite)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """The machines."""

    gpu: GPUSpec
    """Type of every GPU."""
    num_nodes: int
    gpus_per_node: int
    """How many of each."""
    fabric: LinkSpec
    """Link between the GPUs of a node, per GPU and direction."""
    network: LinkSpec | None
    """Link between nodes, per NIC and direction; None if there is none."""
    num_nics: int
    """NICs per node, shared by its GPUs."""
    pcie: LinkSpec
    """Link between a GPU and its host's memory, per GPU and direction."""
    price_per_gpu_hour: float | None
    """Price of one GPU for one hour in `currency`; None where none is known."""
    currency: str = "USD"
    """ISO code of the price."""
    gpus_per_domain: int | None = None
    """GPUs that `fabric` joins; those of different domains meet over `pcie`. None: all of a
    node."""
    gpus_per_switch: int | None = None
    """GPUs that share one PCIe link to the CPU; None: each has its own."""
    nodes_per_switch: int | None = None
    """Nodes on one network switch; None: all."""
    oversubscription: float = 1.0
    """Bandwidth of the nodes on a network switch over that of its uplinks, >= 1."""

    @property
    def num_gpus(self) -> int:
        """GPUs in the cluster."""
        return self.num_nodes * self.gpus_per_node


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Limits of one step."""

    max_num_seqs: int
    """Most sequences running at once, >= 1."""
    max_num_batched_tokens: int
    """Most tokens of one step, >= 1: of a prefill step, or with chunked prefill the token budget
    (decoding sequences take one each)."""
    prefill_wait_steps: int = 0
    """Steps that prompts wait beside decodes until they and the decodes fill `prefill_wait_tokens`,
    with the scheduler chunked; 0 for none."""
    prefill_wait_tokens: float = 0.0
    """Tokens of a step from which on it does not wait for more."""
    prefill_interval: int = 1
    """Of the steps with decodes every n-th alone computes prompts, with schedulers that split
    prompts, >= 1."""
    reserves_output: bool = False
    """A request is admitted when its whole output has room beside those of all that run."""

    @property
    def delays_prefill(self) -> bool:
        """Whether prompts that fit may wait beside decodes."""
        return self.prefill_wait_steps > 0 or self.prefill_interval > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig(Settings):
    """How a simulation is run (the table ``[run]``)."""

    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**63)], ...], Field(min_length=1)] = (0,)
    """Seeds; every strategy and rate runs once with each."""
    warmup_s: Annotated[float, Field(ge=0)] = 0.0
    """Requests that arrive before this (s) are not counted."""
    cooldown_s: Annotated[float, Field(ge=0)] = 0.0
    """Requests that arrive in this last part of the run (s) are not counted."""
    resolution: Literal["span", "step", "kernel"] = "span"
    """What is an event: a run of equal steps, a step, a kernel."""
    max_time_s: Annotated[float | None, Field(gt=0)] = None
    """Stop the clock here (s); default: when all have finished."""
    recorder: Literal["frames", "summary"] = "frames"
    """What is kept of a run: its frames, or for runs of many million requests the row alone, with
    percentiles to within 0.05 %."""


@dataclass(frozen=True, slots=True)
class SequenceKv:
    """KV cache of a sequence by what its layers keep.

    Attributes
    ----------
    per_token : float
        In the layers that keep all tokens, per token (bytes).
    states : float
        States of recurrent layers (bytes).
    limited : tuple of (Reach, float)
        Windows and chunks, and what their layers keep per token (bytes).
    """

    per_token: float
    states: float
    limited: tuple[tuple[Reach, float], ...]

    def num_bytes(self, num_tokens: int, num_cached: int = 0) -> int:
        """Cache of a sequence of `num_tokens` tokens, >= 1 (bytes).

        Recurrent layers have their state, layers with a window or chunk what they attend to; of the
        others the first `num_cached` tokens are left out.
        """
        total = self.per_token * (num_tokens - num_cached) + self.states
        for reach, per_token in self.limited:
            total += per_token * reach.of(num_tokens)
        return round(total)


EXPERT_SPREAD: Final = 0.63
"""With it a batch visits 0.89 to 0.93 of the experts that an even router would, where each expert
has one to four visits in the mean; real gates visit 0.87 to 0.94 (the maintainers' figure; no
published measurement was found)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The model and how it is stored."""

    spec: ModelSpec
    """Its shape."""
    max_model_len: int
    """Longest prompt plus output (tokens) that is served."""
    weight_dtype: str | None = None
    """How the weights of the layers are stored, a key of `WEIGHT_DTYPES`; None: as the checkpoint
    says. Embedding, router and LM head have 16 bits in any case: engines quantise layers only."""
    kv_dtype: str | None = None
    """How the cache is stored, a key of `KV_BYTES`; None: as the checkpoint says, else bf16."""
    expert_spread: float = EXPERT_SPREAD
    """Coefficient of variation of the popularity of experts; 0: all equally popular."""

    @property
    def weight_bytes(self) -> float:
        """All weights, as they are served (bytes)."""
        spec, hidden, saved = self.spec, self.spec.hidden_size, 0.0
        for layer, repeat in spec.layers:
            parts = layer.matrices(hidden, gated=spec.gated_mlp)
            saved += repeat * sum((2.0 - self.dtype_of(d).num_bytes) * n for d, n in parts)
        return 2.0 * spec.num_params - saved

    @property
    def kv_bytes(self) -> float:
        """Bytes of one number in the cache."""
        return KV_BYTES[self.kv_dtype or self.spec.kv_dtype or "bf16"]

    def dtype_of(self, stored: WeightDtype) -> WeightDtype:
        """Return how weights are served that the checkpoint has `stored`.

        What is stored in the dtype that is named, by whatever blocks, stays as it is, and so does
        what a checkpoint in that dtype left in 16 bits.
        """
        named = self.weight_dtype
        if named is None or named == stored.name.partition("-")[0]:
            return stored
        if named != stored.name == BF16.name:
            found = {dtype.name for run in self.spec.layers for dtype in run.layer.dtypes_in_use}
            if any(named == name.partition("-")[0] for name in found):
                return stored
        return WEIGHT_DTYPES[named]

    def kv_bytes_of(self, mixer: Mixer | None) -> float:
        """Cache of one token in a layer with `mixer`, all heads, without windows (bytes)."""
        if mixer is None:
            return 0.0
        index = mixer.index if isinstance(mixer, LatentAttention) else None
        return self.kv_bytes * mixer.kv_numbers + (0 if index is None else index.cache_bytes)

    def sequence_kv(self, *, last_layer: bool = False) -> SequenceKv:
        """Return what a sequence has in the cache of all layers, or of the last one alone."""
        runs = [(run.layer.mixer, run.repeat) for run in self.spec.layers]
        if last_layer:
            runs = [(runs[-1][0], 1)]
        kept = states = 0.0
        limited: dict[Reach, float] = {}
        for mixer, repeat in runs:
            if isinstance(mixer, Recurrent):
                states += repeat * mixer.state_bytes
            elif isinstance(mixer, Attention) and mixer.reach is not None:
                per_token = repeat * self.kv_bytes_of(mixer)
                limited[mixer.reach] = limited.get(mixer.reach, 0.0) + per_token
            else:
                kept += repeat * self.kv_bytes_of(mixer)
        return SequenceKv(kept, states, tuple(limited.items()))

    @property
    def kv_bytes_per_kept_token(self) -> int:
        """KV cache of one token in the layers that keep all tokens (bytes)."""
        runs = [(run.layer.mixer, run.repeat) for run in self.spec.layers]
        kept = [
            repeat * self.kv_bytes_of(mixer)
            for mixer, repeat in runs
            if not (isinstance(mixer, Attention) and mixer.reach is not None)
        ]
        return round(sum(kept))

    @property
    def kv_bytes_per_token(self) -> int:
        """KV cache of one token over all layers, windows left out of account (bytes)."""
        runs = self.spec.layers
        return round(sum(run.repeat * self.kv_bytes_of(run.layer.mixer) for run in runs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What every strategy of a scenario shares: model, machines, engine, targets."""

    model: ModelConfig
    """What is served."""
    cluster: ClusterConfig
    """On which machines."""
    engine: EngineProfile
    """By which engine; overrides of the scenario are already in it."""
    slo: SloConfig = field(default_factory=SloConfig)
    """The targets; some routers use them."""
    extra_models: tuple[ModelConfig, ...] = ()
    """Further models that strategies of several models serve."""
    extra_clusters: tuple[ClusterConfig, ...] = ()
    """Further machines, each of another GPU type."""
    step_times: str = "roofline"
    """Source of the step times, a key of `simcluster.roofline.STEP_TIMES`."""
    kernels: str | KernelTable = LAW
    """Times of single kernels within the roofline's step times: those of the law (`LAW`), those of
    an installed package (`AICONFIGURATOR`), or of a file."""

    @property
    def models(self) -> tuple[ModelConfig, ...]:
        """All models, `model` first."""
        return (self.model, *self.extra_models)

    @property
    def clusters(self) -> tuple[ClusterConfig, ...]:
        """Machines of all GPU types, `cluster` first."""
        return (self.cluster, *self.extra_clusters)

    def accuracy_of(self, cluster: ClusterConfig) -> str:
        """Return what the step times on `cluster` rest on: ``"measured"``, ...; or ``"unknown"``.

        Unknown are those of another source than the roofline, and of a file's kernel times.
        """
        if self.step_times != "roofline" or isinstance(self.kernels, KernelTable):
            return "unknown"
        return "measured" if self.kernels != LAW else cluster.gpu.constants.accuracy

    def part(self, model: str, gpu: str) -> Environment:
        """Return the environment of one model on the machines of one GPU type, by their names."""
        cluster = next(c for c in self.clusters if c.gpu.name == gpu)
        return replace(
            self,
            model=next(m for m in self.models if m.spec.name == model),
            cluster=cluster,
            engine=self.engine.on(cluster.gpu),
            extra_models=(),
            extra_clusters=(),
        )
