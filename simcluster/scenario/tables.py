"""The tables of a scenario file: every key with its type, unit, rule, default and meaning.

Tables that configure one thing (``[slo]``, ``[run]``, ``[workload]``, ``[[strategy]]``) are
defined beside that thing; here stand those that name entries of the catalogue, and the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from simcluster.config import SETTINGS_CONFIG, RunConfig, SloConfig
from simcluster.quality import Quality
from simcluster.registry import NameIn
from simcluster.roofline import STEP_TIMES
from simcluster.scenario.cooptimize_table import CooptimizeTable
from simcluster.scenario.rank_table import RankTable
from simcluster.strategies.base import Strategy
from simcluster.workload import WorkloadSettings

Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Seconds = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTable:
    """What is served (the table ``[model]``)."""

    __pydantic_config__: ClassVar[ConfigDict] = SETTINGS_CONFIG

    name: Annotated[
        Text,
        Field(
            description="Model of the catalogue, or the path of its config.json (Hugging Face "
            "style), relative to the scenario file."
        ),
    ]
    weight_dtype: Annotated[
        Literal["bf16", "fp8"], Field(description="How the weights are stored.")
    ] = "bf16"
    kv_dtype: Annotated[
        Literal["bf16", "fp8"], Field(description="How the KV cache is stored.")
    ] = "bf16"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterTable:
    """On which machines (the table ``[cluster]``)."""

    __pydantic_config__: ClassVar[ConfigDict] = SETTINGS_CONFIG

    gpu: Annotated[
        Text | None, Field(description="GPU of the catalogue; default: the node shape's.")
    ] = None
    node: Annotated[
        Text | None,
        Field(description="Node shape of the catalogue; fills in the keys that are left out."),
    ] = None
    nodes: Annotated[Count, Field(description="Nodes.")] = 1
    gpus_per_node: Annotated[
        Count | None, Field(description="GPUs of a node; default: the node shape's, else 8.")
    ] = None
    fabric: Annotated[
        Text | None,
        Field(description="Link between the GPUs of a node; default: node shape's, else GPU's."),
    ] = None
    network: Annotated[
        Text | None,
        Field(
            description='Link between nodes, "none" for no network; default: the node shape\'s, '
            "else 100gbe."
        ),
    ] = None
    nics: Annotated[
        Count | None,
        Field(description="Links to other nodes per node; default: the node shape's, else 1."),
    ] = None
    gpus_per_domain: Annotated[
        Count | None,
        Field(
            description="GPUs that the fabric joins, the others meet over PCIe; default: the node "
            "shape's, else all."
        ),
    ] = None
    gpus_per_switch: Annotated[
        Count | None,
        Field(
            description="GPUs that share one PCIe link to the CPU; default: the node shape's, "
            "else 1."
        ),
    ] = None
    nodes_per_switch: Annotated[
        Count | None, Field(description="Nodes on one network switch; default: all.")
    ] = None
    oversubscription: Annotated[
        float,
        Field(
            ge=1,
            description="Bandwidth of the nodes on a network switch over that of its uplinks; "
            "needs nodes_per_switch.",
        ),
    ] = 1.0
    price_per_gpu_hour: Annotated[
        float | None,
        Field(gt=0, description="Price of a GPU for an hour; default: the catalogue's, if any."),
    ] = None
    currency: Annotated[
        str | None,
        Field(pattern="^[A-Z]{3}$", description="ISO code of the price's currency."),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTable:
    """By which engine (the table ``[engine]``); every number of the profile can be overridden."""

    __pydantic_config__: ClassVar[ConfigDict] = SETTINGS_CONFIG

    profile: Annotated[Text, Field(description="Engine profile of the catalogue.")] = "vllm-0.7"
    max_model_len: Annotated[
        Count | None,
        Field(description="Longest prompt plus output (tokens); default: the model's context."),
    ] = None
    gpu_memory_utilization: Annotated[
        float | None, Field(gt=0, le=1, description="Share of GPU memory the engine takes.")
    ] = None
    reserved_bytes: Annotated[
        float | None,
        Field(ge=0, description="Memory per GPU for activations and graphs (bytes)."),
    ] = None
    block_size: Annotated[Count | None, Field(description="KV block (tokens).")] = None
    watermark: Annotated[
        Share | None, Field(description="Share of the KV blocks kept free when admitting.")
    ] = None
    max_num_seqs: Annotated[
        Count | None, Field(description="Most sequences running at once in an instance.")
    ] = None
    max_num_batched_tokens: Annotated[
        Count | None, Field(description="Most tokens of one prefill step.")
    ] = None
    chunk_size: Annotated[
        Count | None, Field(description="Token budget of a step with chunked prefill.")
    ] = None
    host_before_s: Annotated[
        Seconds | None, Field(description="CPU work of a step before its first kernel (s).")
    ] = None
    host_after_s: Annotated[
        Seconds | None, Field(description="CPU work of a step after its last kernel (s).")
    ] = None
    host_per_seq_before_s: Annotated[
        Seconds | None, Field(description="The same per sequence, before (s).")
    ] = None
    host_per_seq_after_s: Annotated[
        Seconds | None, Field(description="The same per sequence, after (s).")
    ] = None
    host_workers_s: Annotated[
        Seconds | None,
        Field(description="More CPU work of a step in an instance of several GPUs (s)."),
    ] = None
    cpu_speed: Annotated[
        float | None,
        Field(
            gt=0,
            description="Single-thread speed of the CPU relative to the profile's machine; divides "
            "all CPU times.",
        ),
    ] = None
    overlaps_host: Annotated[
        bool | None, Field(description="Host work of the next step runs under this one.")
    ] = None
    graph_max_seqs: Annotated[
        int | None,
        Field(ge=0, description="Decode steps up to so many sequences are captured graphs."),
    ] = None
    issue_s: Annotated[Seconds | None, Field(description="CPU cost of one kernel (s).")] = None
    front_end_s: Annotated[
        Seconds | None,
        Field(description="From a request's arrival to the scheduler: HTTP, tokenising (s)."),
    ] = None
    piece_max_tokens: Annotated[
        int | None, Field(ge=0, description="Tokens of steps that are captured in pieces.")
    ] = None
    piece_issue_s: Annotated[
        Seconds | None, Field(description="CPU cost of issuing a kernel of those (s).")
    ] = None
    graph_issue_s: Annotated[
        Seconds | None, Field(description="CPU cost of launching a captured step (s).")
    ] = None
    queue_depth: Annotated[
        Count | None,
        Field(description="Kernels that wait in the GPU's queue before issuing stops."),
    ] = None
    kernel_generation: Annotated[
        str | None,
        Field(description="Software generation of kernels and collectives; empty: the current."),
    ] = None
    plans_ahead: Annotated[
        bool | None,
        Field(
            description="A step is planned while the one before runs, so a request that comes in "
            "joins the step after the next (asynchronous scheduling)."
        ),
    ] = None
    kv_connector: Annotated[
        Literal["beside", "inside"] | None,
        Field(
            description="How fudg moves KV: beside the steps over the links (vLLM V1, SGLang, "
            "Dynamo), or inside the steps, which wait for it (vLLM V0)."
        ),
    ] = None
    kv_put_bytes_per_s: Annotated[
        float | None,
        Field(gt=0, description="KV that a prefill step puts, per rank (bytes/s); inside only."),
    ] = None
    kv_get_bytes_per_s: Annotated[
        float | None,
        Field(gt=0, description="KV that a decode step gets, per rank (bytes/s); inside only."),
    ] = None
    kv_poll_s: Annotated[
        Seconds | None, Field(description="Wait of each get beside its bytes (s); inside only.")
    ] = None
    kv_buffer_bytes: Annotated[
        float | None,
        Field(
            gt=0,
            description="KV that a prefill instance holds before it stops (bytes); inside only.",
        ),
    ] = None
    quantises: Annotated[
        Literal["fused", "unfused", "apart"] | None,
        Field(description="Kernels that bring inputs to 8 bits: none, behind no norm, all."),
    ] = None
    fuses_allreduce: Annotated[
        bool | None, Field(description="The norm behind an all-reduce is part of it.")
    ] = None
    splits_attention: Annotated[
        bool | None,
        Field(description="Prefill chunks and decodes of a step have attention kernels apart."),
    ] = None
    own_allreduce: Annotated[
        bool | None,
        Field(description="The engine has kernels of its own for all-reduces."),
    ] = None
    prefix_caching: Annotated[
        bool | None,
        Field(description="Requests with a common prefix share its KV blocks."),
    ] = None
    step_times: Annotated[
        str, NameIn(STEP_TIMES), Field(description="What says how long a step takes.")
    ] = "roofline"


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepTable:
    """Which rates are compared (the table ``[sweep]``)."""

    __pydantic_config__: ClassVar[ConfigDict] = SETTINGS_CONFIG

    rates_rps: Annotated[
        tuple[Annotated[float, Field(gt=0)], ...],
        Field(description="Offered rates (requests/s), rising; default: workload.rate_rps."),
    ] = ()


_ENGINE, _SLO, _SWEEP, _RUN = EngineTable(), SloConfig(), SweepTable(), RunConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioTables:
    """A scenario file, table by table."""

    __pydantic_config__: ClassVar[ConfigDict] = SETTINGS_CONFIG

    model: Annotated[ModelTable, Field(description="What is served.")]
    cluster: Annotated[ClusterTable, Field(description="On which machines.")]
    workload: Annotated[WorkloadSettings, Field(description="Which requests.")]
    strategy: tuple[Strategy, ...] = ()
    engine: Annotated[EngineTable, Field(description="By which engine.")] = _ENGINE
    slo: Annotated[SloConfig, Field(description="Latency targets.")] = _SLO
    sweep: Annotated[SweepTable, Field(description="Which rates.")] = _SWEEP
    run: Annotated[RunConfig, Field(description="How it is simulated.")] = _RUN
    extra_model: Annotated[
        tuple[ModelTable, ...],
        Field(description="Further models, for strategies of kind routed; keys of [model]."),
    ] = ()
    extra_cluster: Annotated[
        tuple[ClusterTable, ...],
        Field(
            description="Further machines of other GPU types, for strategies of kind routed; keys "
            "of [cluster]."
        ),
    ] = ()
    quality: Annotated[
        Quality | None,
        Field(
            discriminator="kind",
            description="How good answers are by a router's score, for strategies of kind routed.",
        ),
    ] = None
    cooptimize: Annotated[
        CooptimizeTable | None,
        Field(description="What `simcluster cooptimize` searches; other commands pass over it."),
    ] = None
    rank: Annotated[RankTable | None, Field(description="The space of `simcluster rank`.")] = None
    catalog: Annotated[
        tuple[Text, ...],
        Field(description="Catalogue files of your own, relative to the scenario file."),
    ] = ()
