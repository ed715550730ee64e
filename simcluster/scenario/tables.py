"""The tables of a scenario file: every key with its type, unit, rule, default and meaning.

Tables that configure one thing (``[slo]``, ``[run]``, ``[workload]``, ``[[strategy]]``) are
defined beside that thing; here stand those that name entries of the catalogue, and the whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from simcluster.config import LAW, RunConfig, Settings, SloConfig
from simcluster.quality import Quality
from simcluster.registry import NameIn
from simcluster.roofline import STEP_TIMES
from simcluster.scenario.cooptimize_table import CooptimizeTable
from simcluster.scenario.rank_table import RankTable
from simcluster.sched import SCHEDULERS
from simcluster.strategies.base import Strategy
from simcluster.workload import WorkloadSettings

Text = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
Seconds = Annotated[float, Field(ge=0, le=3600)]
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTable(Settings):
    """What is served (the table ``[model]``)."""

    name: Text
    """Model of the catalogue, or the path of its config.json (Hugging Face style) or of the folder
    that holds it, relative to the scenario file."""
    weight_dtype: Literal["bf16", "fp8", "fp8-block", "int8", "int4", "mxfp4", "nvfp4"] | None = (
        None
    )
    """How the weights of the layers are stored; default: as the model's config.json says, else
    bf16."""
    kv_dtype: Literal["bf16", "fp8", "int8", "nvfp4"] | None = None
    """How the KV cache is stored; default: as the model's config.json says, else bf16."""
    expert_spread: Annotated[float | None, Field(ge=0, le=3)] = None
    """How unevenly experts are visited: coefficient of variation of their popularity; default
    0.63."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterTable(Settings):
    """On which machines (the table ``[cluster]``)."""

    gpu: Text | None = None
    """GPU of the catalogue; default: the node shape's."""
    node: Text | None = None
    """Node shape of the catalogue; fills in the keys that are left out."""
    nodes: Annotated[int, Field(ge=1, le=10_000)] = 1
    """Nodes."""
    gpus_per_node: Annotated[int | None, Field(ge=1, le=1024)] = None
    """GPUs of a node; default: the node shape's, else 8."""
    fabric: Text | None = None
    """Link between the GPUs of a node; default: node shape's, else GPU's."""
    network: Text | None = None
    """Link between nodes, "none" for no network; default: the node shape's, else 100gbe."""
    nics: Count | None = None
    """Links to other nodes per node; default: the node shape's, else 1."""
    gpus_per_domain: Count | None = None
    """GPUs that the fabric joins, the others meet over PCIe; default: the node shape's, else
    all."""
    gpus_per_switch: Count | None = None
    """GPUs that share one PCIe link to the CPU; default: the node shape's, else 1."""
    nodes_per_switch: Count | None = None
    """Nodes on one network switch; default: all."""
    oversubscription: Annotated[float, Field(ge=1, le=1000)] = 1.0
    """Bandwidth of the nodes on a network switch over that of its uplinks; needs
    nodes_per_switch."""
    price_per_gpu_hour: Annotated[float | None, Field(gt=0, le=1_000_000)] = None
    """Price of a GPU for an hour; default: the catalogue's, if any."""
    currency: Annotated[str | None, Field(pattern="^[A-Z]{3}$")] = None
    """ISO code of the price's currency."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTable(Settings):
    """By which engine (the table ``[engine]``); every number of the profile can be overridden."""

    profile: Text = "vllm-0.19"
    """Engine profile of the catalogue: a whole engine with its scheduler and its limits."""
    max_model_len: Count | None = None
    """Longest prompt plus output (tokens); default: the model's context."""
    gpu_memory_utilization: Annotated[float | None, Field(gt=0, le=1)] = None
    """Share of GPU memory the engine takes."""
    reserved_bytes: Annotated[float | None, Field(ge=0, le=1e13)] = None
    """Memory per GPU for all else (bytes)."""
    memory_rule: Literal["total", "static", "free"] | None = None
    """What gpu_memory_utilization is a share of: all memory (vLLM), weights and cache together
    (SGLang), what weights and activations leave (TensorRT-LLM)."""
    sampler_bytes: Annotated[float | None, Field(ge=0, le=1e6)] = None
    """Peak of the profiling pass per sequence and logit (bytes); 0 for no pass."""
    communicator_bytes: Annotated[float | None, Field(ge=0)] = None
    """Memory per GPU of several joined by NVLink (bytes)."""
    hybrid_kv_cache: bool | None = None
    """Layers with a window or chunk keep what they attend to, not all tokens."""
    block_size: Count | None = None
    """KV block (tokens)."""
    watermark: Share | None = None
    """Share of the KV blocks kept free when admitting."""
    max_num_seqs: Count | None = None
    """Most sequences running at once in an instance."""
    large_gpu_max_num_seqs: Count | None = None
    """The same on GPUs of 70 GiB or more, A100 left out; default: max_num_seqs where that is given,
    else the profile's."""
    max_num_batched_tokens: Count | None = None
    """Most tokens of one prefill step; where prompts are split the budget of any step, in the place
    of chunk_size."""
    chunk_size: Count | None = None
    """Token budget of a step with chunked prefill."""
    large_gpu_chunk_size: Count | None = None
    """The same on GPUs of 70 GiB or more, A100 left out; default: chunk_size where that is given,
    else the profile's."""
    scheduler: Annotated[str | None, NameIn(SCHEDULERS)] = None
    """What instances run next where a strategy does not say; default: the profile's."""
    host_before_s: Seconds | None = None
    """CPU work of a step before its first kernel (s)."""
    host_after_s: Seconds | None = None
    """CPU work of a step after its last kernel (s)."""
    host_per_seq_before_s: Seconds | None = None
    """The same per sequence, before (s)."""
    host_per_seq_after_s: Seconds | None = None
    """The same per sequence, after (s)."""
    host_workers_s: Seconds | None = None
    """More CPU work of a step in an instance of several GPUs (s)."""
    cpu_speed: Annotated[float | None, Field(ge=0.001, le=1000)] = None
    """Single-thread speed of the CPU relative to the profile's machine; divides all CPU times."""
    overlaps_host: bool | None = None
    """Host work of the next step runs under this one."""
    graph_max_seqs: Annotated[int | None, Field(ge=0)] = None
    """Decode steps of up to this number of sequences are captured graphs."""
    issue_s: Seconds | None = None
    """CPU cost of one kernel (s)."""
    front_end_s: Seconds | None = None
    """From a request's arrival to the scheduler: HTTP, tokenising (s)."""
    front_end_token_s: Seconds | None = None
    """The same per token of the prompt (s)."""
    api_servers: Annotated[int | None, Field(ge=0, le=1024)] = None
    """API server processes in front of each instance that takes new requests, which then limit
    requests/s; 0: they do not."""
    api_request_s: Seconds | None = None
    """CPU time of such a process per request (s)."""
    api_token_s: Seconds | None = None
    """CPU time of such a process per streamed token (s)."""
    piece_max_tokens: Annotated[int | None, Field(ge=0)] = None
    """Tokens of steps that are captured in pieces."""
    piece_issue_s: Seconds | None = None
    """CPU cost of issuing a kernel of those (s)."""
    graph_issue_s: Seconds | None = None
    """CPU cost of launching a captured step (s)."""
    queue_depth: Count | None = None
    """Kernels that wait in the GPU's queue before issuing stops."""
    kernel_generation: str | None = None
    """Software generation of kernels and collectives; empty: the current."""
    plans_ahead: bool | None = None
    """A step is planned while the one before runs, so a request that comes in joins the step after
    the next (asynchronous scheduling)."""
    prefill_wait_steps: Annotated[int | None, Field(ge=0, le=1_000_000)] = None
    """Steps that prompts wait beside decodes for others (TensorRT-LLM's batch_wait_timeout_iters);
    with schedulers that split prompts."""
    prefill_wait_share: Share | None = None
    """Share of the token budget for which they do not wait (batch_wait_max_tokens_ratio)."""
    prefill_interval: Annotated[int | None, Field(ge=1, le=1_000_000)] = None
    """Beside decodes prompts are computed in every n-th step only, n being this number (vLLM's
    prefill_schedule_interval); with schedulers that split prompts."""
    reserves_output: bool | None = None
    """A request is admitted when its whole output has room beside those of all that run
    (TensorRT-LLM's GUARANTEED_NO_EVICT), so that none is preempted; false: when its prompt has
    (MAX_UTILIZATION). Engines know max_tokens; here that is the output's length."""
    handover_s: Seconds | None = None
    """From the arrival of KV until the decode side of fudg knows of it: proxy and front end (s)."""
    redoes_last_token: bool | None = None
    """The decode side of fudg computes the last token of a prompt again, and users get that one
    (vLLM V1); with KV beside the steps, and without pipelines."""
    kv_connector: Literal["beside", "inside"] | None = None
    """How fudg moves KV: beside the steps (vLLM V1, SGLang, Dynamo), or inside the steps, which
    wait for it (vLLM V0)."""
    kv_put_bytes_per_s: Annotated[float | None, Field(gt=0)] = None
    """KV that a prefill step puts, per rank (bytes/s); inside only."""
    kv_get_bytes_per_s: Annotated[float | None, Field(gt=0)] = None
    """KV that leaves a prefill instance for a decode step, per rank (bytes/s), before the links
    carry it; inside only."""
    kv_between_steps: bool | None = None
    """KV leaves a prefill instance only between its steps; inside only."""
    kv_poll_s: Seconds | None = None
    """Wait of each get beside its bytes (s); inside only."""
    kv_buffer_bytes: Annotated[float | None, Field(gt=0)] = None
    """KV that a rank of a prefill instance holds before it stops (bytes); inside only."""
    quantises: Literal["fused", "unfused", "apart"] | None = None
    """Kernels that bring inputs to 8 bits: none, behind no norm, all."""
    fuses_allreduce: bool | None = None
    """The norm behind an all-reduce is part of it."""
    fuses_allreduce_max_bytes: Annotated[float | None, Field(gt=0)] = None
    """Largest message of such an all-reduce (bytes)."""
    splits_attention: bool | None = None
    """Prefill chunks and decodes of a step have attention kernels apart."""
    own_allreduce: bool | None = None
    """The engine has kernels of its own for all-reduces."""
    prefix_caching: bool | None = None
    """Requests with a common prefix share its KV blocks."""
    expert_parallel: Literal["any", "all", "none"] | None = None
    """Groups of GPUs that it spreads whole experts over: any number, all GPUs or one, none."""
    step_times: Annotated[str, NameIn(STEP_TIMES)] = "roofline"
    """What says how long a step takes."""
    kernels: Text = LAW
    """Times of single kernels within roofline step times: "law"; "aiconfigurator", the tables of
    that package (pip install "simcluster[aic]"); or the path of a CSV or Parquet file of your own
    kernel times, relative to the scenario file. What is not measured is by the law."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepTable(Settings):
    """Which rates are compared (the table ``[sweep]``)."""

    rates_rps: tuple[Annotated[float, Field(gt=0)], ...] = ()
    """Offered rates (requests/s), rising; default: workload.rate_rps."""


_ENGINE, _SLO, _SWEEP, _RUN = EngineTable(), SloConfig(), SweepTable(), RunConfig()


@dataclass(frozen=True, slots=True, kw_only=True)
class ScenarioTables(Settings):
    """A scenario file, table by table."""

    model: ModelTable
    """What is served."""
    cluster: ClusterTable
    """On which machines."""
    workload: WorkloadSettings
    """Which requests."""
    strategy: tuple[Strategy, ...] = ()
    engine: EngineTable = _ENGINE
    """By which engine."""
    slo: SloConfig = _SLO
    """Latency targets."""
    sweep: SweepTable = _SWEEP
    """Which rates."""
    run: RunConfig = _RUN
    """How it is simulated."""
    extra_model: tuple[ModelTable, ...] = ()
    """Further models, for strategies of kind routed; keys of [model]."""
    extra_cluster: tuple[ClusterTable, ...] = ()
    """Further machines of other GPU types, for strategies of kind routed; keys of [cluster]."""
    quality: Annotated[Quality | None, Field(discriminator="kind")] = None
    """How good answers are by a router's score, for strategies of kind routed."""
    cooptimize: CooptimizeTable | None = None
    """What `simcluster cooptimize` searches; other commands pass over it."""
    rank: RankTable | None = None
    """The space of `simcluster rank`."""
    catalog: tuple[Text, ...] = ()
    """Catalogue files of your own, relative to the scenario file."""
