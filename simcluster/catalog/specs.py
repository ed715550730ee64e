"""What GPUs, links, nodes, models and engines are: values read from the catalogue.

Every number in a specification comes with its ``source``. Units are seconds, bytes, FLOP/s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """One published price of a GPU."""

    per_gpu_hour: float
    """Price of one GPU for one hour, in `currency`."""
    currency: str
    """ISO code, such as ``"USD"``; amounts of different currencies are never added."""
    tier: str
    """``"on-demand"``, ``"community"``, ``"serverless"``, ``"reserved"`` or ``"list"``."""
    provider: str
    date: str
    source: str
    """Who asks it, when it was read (year, month or day), where it was read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpertKernel:
    """An engine's kernels for the routed experts of a layer, as measured on one GPU.

    One call sorts tokens by expert, multiplies twice with an activation between, and adds up what
    belongs to a token. A multiplication takes ``(compute^p + memory^p)^(1/p)`` and a time per tile;
    compute counts whole tiles of rows. See `simcluster.roofline.experts`.
    """

    name: str
    weights: str
    """Which weights it is for: ``"bf16"``, ``"fp8"``, ``"fp8-block"``, ``"mxfp4"``, ``"nvfp4"``, or
    ``"int4"``, which also unpacks all others that the GPU does not multiply."""
    tiles: str
    """How the engine chooses tiles, a key of `simcluster.roofline.experts.TILE_RULES`."""
    mfu: float
    """Reachable share of the peak with tiles of 64 rows, padding counted as work."""
    small_tiles: float = 1.0
    large_tiles: float = 1.0
    """Times this with tiles of fewer and of more rows."""
    mbu: float
    """Reachable share of bandwidth."""
    smooth_p: float
    """Exponent p of the smooth maximum, >= 1."""
    tile_s: float
    """Time that a tile takes an SM beside that, times tiles / SMs (s)."""
    fixed_s: float
    """Latency of the whole call (s): sorting tokens by expert, bringing inputs to few bits."""
    number_s: float
    """Time per number of a row times its visits to experts (s): inputs brought to few bits, results
    added up."""
    unaligned: float = 1.0
    """How many times longer it takes where 16 does not divide the width of an expert."""
    tuned: tuple[tuple[int, int], ...] = ()
    """Experts and widths of an expert per rank for which the engine ships tuned tiles."""
    tuned_gain: float = 1.0
    """Times the share of the peak for those."""
    source: str
    """What it was fitted to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelConstants:
    """How much of its data-sheet a GPU reaches; the constants of the kernel model.

    A kernel takes ``(compute^p + memory^p)^(1/p) + fixed`` with ``compute = flops / (mfu x peak)``
    and ``memory = bytes / (mbu x bandwidth)``. What has a default is a finer term: None takes the
    coarser constant named with it, 0 leaves the term out.
    """

    mfu_gemm: float
    mbu_gemm: float
    """Reachable share of peak FLOP/s and of bandwidth in matrix multiplications."""
    mfu_attention: float
    mbu_attention: float
    """The same in prefill attention (mfu) and decode attention (mbu)."""
    mbu_elementwise: float
    """Reachable share of bandwidth in elementwise kernels that have none of their own."""
    smooth_p: float
    """Exponent p of the smooth maximum, >= 1."""
    fixed_s: float
    """Fixed latency of every kernel (s)."""
    attention_block_s: float
    """Decode attention also pays this times batch x kv heads per rank / SMs (s)."""
    mfu_gemm_8bit: float | None = None
    """Share of the 8-bit peak in matrix multiplications with 8-bit weights; None for `mfu_gemm`."""
    quantise_s: float | None = None
    mbu_quantise: float | None = None
    """Latency (s) and share of bandwidth of bringing the input of such a multiplication to 8 bits
    in the table that the constants are fitted to; None where it is not in it. They take it out of
    the table; steps have the engine's kernel (`roofline.kernels.QUANTISE_BYTES`)."""
    mfu_gemm_block: float | None = None
    mbu_gemm_block: float | None = None
    fixed_block_s: float | None = None
    """Shares of the 8-bit peak and of bandwidth, and latency (s), with 8-bit weights scaled by
    blocks, whose inputs a kernel of its own always brings to 8 bits; None for those of other 8-bit
    weights."""
    mbu_gemm_few: float | None = None
    """`mbu_gemm` with at most 16 rows, for which libraries have kernels of their own; None for the
    same."""
    gemm_waves: float | None = None
    """Share of the tiles of a matrix multiplication that waits for whole waves over the SMs, 0 to
    1; None leaves tiles out."""
    gemm_tile_loss: float = 0.0
    """How much slower tiles smaller than 128 x 256 are per operation; see `kernels.GEMM_TILES`."""
    experts: tuple[ExpertKernel, ...] = ()
    """Kernels for experts by the weights they are for; where there is none, experts are as many
    multiplications with `mfu_gemm` and `mbu_gemm`."""
    elementwise_fixed_s: float | None = None
    """Least time of an elementwise kernel (s), the third in its smooth maximum; None for `fixed_s`,
    added."""
    norm_fixed_s: float | None = None
    """The same of a norm (s), which is a reduction; None for `elementwise_fixed_s`."""
    row_chain_s: float = 0.0
    """The least time of an elementwise kernel also grows by this per 1000 bytes of a row (s): one
    block works through a row. Sums are free of it, whose blocks do not know of rows."""
    row_s: float = 0.0
    """Each row of an elementwise kernel takes an SM this long beside its bytes (s)."""
    attention_fixed_s: float | None = None
    """Fixed latency of an attention kernel (s); None for `fixed_s`."""
    mbu_norm: float | None = None
    mbu_rope: float | None = None
    mbu_activation: float | None = None
    mbu_add: float | None = None
    mbu_embedding: float | None = None
    """Share of bandwidth by class of elementwise kernel; None for `mbu_elementwise`."""
    cached_norm: float = 1.0
    cached_rope: float = 1.0
    cached_activation: float = 1.0
    cached_add: float = 1.0
    cached_embedding: float = 1.0
    """By class: how many times faster the second-level cache gives what it holds of an elementwise
    kernel's traffic, >= 1."""
    mbu_prefill: float | None = None
    """Share of bandwidth in prefill attention; None for `mbu_attention`."""
    prefill_p: float | None = None
    """Exponent of the smooth maximum in prefill attention, whose blocks load before they compute;
    None for `smooth_p`."""
    prefill_tile: float = 128.0
    """Queries that one block of prefill attention computes."""
    prefill_waves: float = 0.0
    """Share of these blocks that waits for whole waves, 0 to 1."""
    attention_causal: float = 1.0
    """Share of the masked half of prefill attention that the kernel skips, 0 to 1."""
    decode_waves: float = 0.0
    """Share of decode attention's blocks that waits for whole waves, 0 to 1."""
    attention_context_s: float = 0.0
    """Decode attention also pays this per token of the mean context (s): the tokens of one sequence
    are a chain, however few sequences there are."""
    attention_split_s: float = 0.0
    """Decode attention that splits contexts also pays this (s), for putting the parts together; see
    `kernels.SPLIT_BLOCKS` and `kernels.SPLIT_TOKENS` for when it does."""
    decode_overlap: float = 0.0
    """How far the blocks of decode attention begin and end while others read the cache, 0 to 1: of
    the sum of the two times (0) and the root of the sum of their squares (1), the mean with this
    weight."""
    mbu_attention_8bit: float | None = None
    attention_fixed_8bit_s: float | None = None
    attention_block_8bit_s: float | None = None
    decode_overlap_8bit: float | None = None
    """`mbu_attention`, `attention_fixed_s`, `attention_block_s` and `decode_overlap`
    of decode attention with a cache of one byte per number; None for the same."""
    attention_sm_8bit: float | None = None
    """Such a cache that one SM gets through per second (bytes/s), where the kernel is bound by the
    SMs and not by memory; None for no such bound."""
    mixed_tile: float = 0.0
    """Queries of a tile in attention kernels that compute prefill chunks and decodes in one call: a
    decoding sequence fills a tile with each of its query heads there. 0 where decodes have kernels
    of their own also beside a chunk."""
    mixed_mfu: float = 1.0
    """Share of `mfu_attention` that such tiles reach, 0 to 1."""
    mixed_block_s: float | None = None
    """Time of each such tile beside its context, times tiles / SMs (s); None for
    `attention_block_s`."""
    generation: str = ""
    """Which software was measured, such as ``"2024"``; empty for the current one."""
    accuracy: str
    """``"measured"``, ``"fitted"`` or ``"data-sheet"``: what the constants rest on."""
    source: str
    """Where they come from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GPUSpec:
    """One type of GPU."""

    name: str
    vendor: str
    arch: str
    """Full name, such as ``"A100-80GB SXM"``; vendor; generation (``"Ampere"``, ``"Ada"``...)."""
    memory_bytes: float
    """Capacity that the driver reports (bytes); the data sheet's in decimal GB where that is not
    known. Engines share out a part of the former, which is up to 7 % more."""
    cuda_bytes: float | None = None
    """What a CUDA context can give out, the whole that engines take their share of (bytes); None
    for `memory_bytes`."""
    memory_bandwidth: float
    """Data-sheet bandwidth (bytes/s)."""
    flops_16bit: float
    """Dense FP16/BF16 peak (FLOP/s)."""
    flops_8bit: float | None
    """Dense FP8 (else INT8) peak (FLOP/s); None where the part has none."""
    native_8bit: tuple[str, ...] = ("fp8", "int8")
    """Numbers that it multiplies at that peak, of ``"fp8"``, ``"int8"``."""
    flops_4bit: float | None = None
    """Dense FP4 peak (FLOP/s); None where the part has none."""
    native_4bit: tuple[str, ...] = ()
    """Numbers that it multiplies at that peak, of ``"nvfp4"``, ``"mxfp4"``."""
    mfu_4bit: float | None = None
    """Share of that peak that large NVFP4 multiplications reach; None where it is not measured."""
    num_sms: int
    """Streaming multiprocessors (compute units, cores)."""
    l2_bytes: float = 0.0
    """Second-level cache (bytes), 0 if not known."""
    fabric: str
    """Name of the link to the GPUs of the same node, such as ``"nvlink3"`` or ``"pcie4"``."""
    pcie: str
    """Name of its PCIe link to the host."""
    constants: KernelConstants
    """Reachable shares and latencies with current software."""
    older_constants: tuple[KernelConstants, ...] = ()
    """The same with older software, by its `generation`; may be empty."""
    prices: tuple[Price, ...]
    """Published prices, may be empty."""
    source: str
    """Where the data-sheet numbers were read."""

    @property
    def reached_nvfp4(self) -> float | None:
        """Rate of large NVFP4 multiplications (FLOP/s); None without the units or a measurement."""
        if self.flops_4bit is None or self.mfu_4bit is None or "nvfp4" not in self.native_4bit:
            return None
        return self.mfu_4bit * self.flops_4bit

    @property
    def allocatable_bytes(self) -> float:
        """What a CUDA context can give out (bytes)."""
        return self.memory_bytes if self.cuda_bytes is None else self.cuda_bytes

    def constants_of(self, generation: str) -> KernelConstants:
        """Return the constants with software of `generation`; the current ones if not known."""
        for constants in self.older_constants:
            if constants.generation == generation:
                return constants
        return self.constants


@dataclass(frozen=True, slots=True, kw_only=True)
class AllReduceTerms:
    """A measured all-reduce at one world size: latency plus ring traffic."""

    tp_size: int
    """Ranks of the group."""
    latency_s: float
    """Fixed latency (s)."""
    efficiency: float
    """Share of the link's bandwidth that each GPU reaches, in the traffic of a ring."""
    below_bytes: float = inf
    """Messages from this size on take another kernel (bytes); infinite for no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpec:
    """One type of link, per direction and per port."""

    name: str
    """``"pcie4"``, ``"nvlink4"``, ``"10gbe"``, ``"ib-400"``..."""
    kind: str
    """``"fabric"`` (GPU to GPU inside a node) or ``"network"`` (node to node)."""
    bandwidth: float
    """Data-sheet bandwidth of one direction (bytes/s)."""
    efficiency: float
    """Share of it that large point-to-point transfers reach, 0 to 1."""
    allreduce_efficiency: float
    """Share of it that each GPU reaches in a large ring all-reduce, 0 to 1 (fabrics only)."""
    latency_s: float
    """Latency of one message (s)."""
    allreduce_latency_s: float
    """Fixed latency of one all-reduce or all-gather (s); fabrics only."""
    allreduce_terms: tuple[AllReduceTerms, ...] = ()
    """The communication library (NCCL) at measured world sizes, in place of the two above; of
    several entries of one world size, its protocols, the fastest counts. May be empty."""
    own_allreduce_terms: tuple[AllReduceTerms, ...] = ()
    """Kernels of the engine itself at the world sizes where it has some, by rising size of the
    message; larger messages go to the library. May be empty."""
    wire: str = ""
    """Name of the physical wire, where several entries describe machines with the same one; empty
    for the entry's own name."""
    source: str
    """Where the numbers come from."""

    def same_wire(self, other: LinkSpec) -> bool:
        """Whether both describe the same physical wire."""
        return (self.wire or self.name) == (other.wire or other.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeShape:
    """One type of server."""

    name: str
    """Such as ``"l20-pcie-8"``."""
    gpu: str
    """Name of the GPU in it."""
    gpus_per_node: int
    """How many."""
    fabric: str
    """Name of the link between them."""
    network: str
    """Name of the usual link to other nodes."""
    num_nics: int
    """How many such links the node has; its GPUs share them."""
    gpus_per_domain: int | None = None
    """GPUs that `fabric` joins, the others meet over PCIe; None: all."""
    gpus_per_switch: int | None = None
    """GPUs that share one PCIe link to the CPU; None: each has its own, or it is not known."""
    source: str
    """Where the numbers come from."""


_LARGE_GPU_BYTES: Final = 70.0 * 2**30  # vLLM, EngineArgs.get_batch_defaults


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProfile:
    """What a serving engine adds to the GPU's work, and its default limits."""

    name: str
    """``"vllm-0.7"``, ``"eager"``..."""
    host_before_s: float
    """CPU work of a step before its first kernel is issued (s): schedule, prepare inputs."""
    host_after_s: float
    """CPU work after the last kernel (s): sample, detokenise, send out."""
    host_per_seq_before_s: float
    host_per_seq_after_s: float
    """The same per sequence in the step (s)."""
    overlaps_host: bool
    """The host work of the next step runs while the GPU works on this one."""
    graph_max_seqs: int
    """Pure decode steps of at most this number of sequences are captured graphs, issued at once; 0
    for none."""
    issue_s: float
    """CPU cost of issuing one kernel (s)."""
    graph_issue_s: float
    """CPU cost of launching a captured step (s)."""
    queue_depth: int
    """Kernels that can wait in the GPU's queue before issuing blocks."""
    gpu_memory_utilization: float
    """Share of GPU memory the engine takes, 0 to 1."""
    reserved_bytes: float
    """Memory per GPU beside weights, KV cache, activations and communicators (bytes)."""
    sampler_bytes: float = 0.0
    """Peak of the sampler in the profiling pass, per sequence and token of the vocabulary (bytes);
    0 for an engine without such a pass, whose `reserved_bytes` hold the activations."""
    communicator_bytes: float = 0.0
    """Memory per GPU of an instance on several GPUs joined by NVLink (bytes)."""
    memory_rule: str = "total"
    """What `gpu_memory_utilization` is a share of: ``"total"``, ``"static"`` or ``"free"``; see
    `simcluster.roofline.memory.kv_pool_bytes`."""
    hybrid_kv_cache: bool = True
    """Layers with a window or chunk keep no more tokens than they attend to; else all."""
    block_size: int
    """Tokens of one KV block."""
    watermark: float
    """Share of the blocks kept free when admitting, 0 to 1."""
    max_num_seqs: int
    """Most sequences running at once."""
    max_num_batched_tokens: int | None
    """Most tokens of one prefill step; None for the larger of ``max_model_len`` and 2048."""
    chunk_size: int
    """Default token budget of a step with chunked prefill."""
    source: str
    """Where the numbers come from."""
    host_workers_s: float = 0.0
    """CPU work of a step beside that, before the first kernel, if an instance has several GPUs:
    telling the workers what to do and waiting for them (s)."""
    cpu_speed: float = 1.0
    """Single-thread speed of the host's CPU relative to that of the machine that the CPU times were
    measured on; all of them are divided by it."""
    kernel_generation: str = ""
    """Software generation of its kernels, where the GPU has constants for it:
    `GPUSpec.constants_of`; empty for the current one."""
    scheduler: str = "prefill-priority"
    """What an instance runs next unless the strategy says otherwise, a key of
    `simcluster.sched.SCHEDULERS`."""
    large_gpu_max_num_seqs: int | None = None
    """`max_num_seqs` on GPUs of 70 GiB or more, A100 left out (vLLM's
    ``EngineArgs.get_batch_defaults``); None for the same as elsewhere."""
    large_gpu_chunk_size: int | None = None
    """`chunk_size` on these GPUs; None for the same as elsewhere."""
    handover_s: float = 0.0
    """FuDG: from the arrival of a prompt's KV until the decode side knows of it, through the proxy
    and the front end there (s)."""
    redoes_last_token: bool = False
    """FuDG: the decode side computes the last token of a prompt again, and users get that one
    (vLLM V1); with KV beside the steps, and without pipelines."""
    kv_connector: str = "beside"
    """How FuDG moves KV: ``"beside"`` the steps over the links (vLLM V1, SGLang, Dynamo), or
    ``"inside"`` them, which then wait for it (vLLM V0)."""
    kv_put_bytes_per_s: float | None = None
    kv_get_bytes_per_s: float | None = None
    """Rates of a connector inside the steps, per rank (bytes/s), beside the links; None for a side
    that takes no time of its own."""
    kv_between_steps: bool = False
    """What a get takes at that rate passes only while the prefill instance runs no step."""
    kv_poll_s: float = 0.0
    """Wait of each get beside its bytes (s)."""
    kv_buffer_bytes: float | None = None
    """KV that a rank of a prefill instance holds before it stops (bytes); None for no limit."""
    quantises: str = "fused"
    """How the inputs of multiplications with 8-bit weights are brought to 8 bits: by the kernel
    before, at no cost (``"fused"``), where that is a norm, and by a kernel of their own behind
    attention and activations (``"unfused"``), or all by kernels of their own (``"apart"``)."""
    fuses_allreduce: bool = False
    """The norm behind an all-reduce is part of it."""
    fuses_allreduce_max_bytes: float | None = None
    """Largest message of such an all-reduce (bytes): beyond it the two are kernels of their own.
    None for no limit."""
    front_end_s: float = 0.0
    """Time that a request takes from its arrival to the scheduler: HTTP, chat template, tokenising
    and the way between processes (s). A latency: it does not limit requests/s."""
    front_end_token_s: float = 0.0
    """The same per token of the prompt (s): tokenising."""
    api_servers: int = 0
    """Processes in front of each instance that takes new requests (vLLM's ``--api-server-count``)
    that limit requests/s by the next two; 0: they never do."""
    api_request_s: float = 0.0
    api_token_s: float = 0.0
    """CPU time that such a process takes for a request, and for a token that it streams (s)."""
    piece_max_tokens: int = 0
    """Most tokens of a step that is captured in pieces between attention kernels, where it is not
    captured whole; 0 for none."""
    piece_issue_s: float = 0.0
    """CPU cost per kernel of those (s)."""
    plans_ahead: bool = False
    """A step is planned while the step before runs (vLLM's asynchronous scheduling, SGLang's
    overlap scheduler): what comes in during a step is first computed in the step after the next.
    Not in pipelines. Seats and blocks that a step frees count for the step after it."""
    prefill_wait_steps: int = 0
    prefill_wait_share: float = 0.0
    """With a scheduler that splits prompts: beside decodes prompts wait for others, until the step
    has this share of its token budget, for at most this number of steps (TensorRT-LLM's
    ``batch_wait_max_tokens_ratio`` and ``batch_wait_timeout_iters``); 0 steps for none."""
    prefill_interval: int = 1
    """With such a scheduler: of the steps with decodes every n-th alone computes prompts (vLLM's
    ``prefill_schedule_interval``); 1 for all."""
    reserves_output: bool = False
    """A request is admitted when the KV of its whole output has room beside that of all that run
    (TensorRT-LLM's ``GUARANTEED_NO_EVICT``), so that none is preempted; else when its prompt has
    (``MAX_UTILIZATION``, vLLM)."""
    splits_attention: bool = False
    """Prefill chunks and decodes of a step have attention kernels of their own, also where one
    kernel could compute both (`KernelConstants.mixed_tile`)."""
    own_allreduce: bool = True
    """All-reduces use the engine's own kernels where the link has them
    (`LinkSpec.own_allreduce_terms`), else the communication library alone."""
    prefix_caching: bool = False
    """Requests with a common prefix share its KV blocks unless the strategy says otherwise."""
    expert_parallel: str = "any"
    """Groups of GPUs that it can spread whole experts over: ``"any"`` number that divides them
    (SGLang, TensorRT-LLM), ``"all"`` GPUs of an instance or one (vLLM), or ``"none"``: it has
    neither expert nor attention data parallelism."""

    def front_end_of(self, prompt_len: float) -> float:
        """Time that a prompt (tokens) takes from its arrival to the scheduler, on this CPU (s)."""
        return (self.front_end_s + self.front_end_token_s * prompt_len) / self.cpu_speed

    @property
    def fused_message_bytes(self) -> float:
        """Largest message of an all-reduce that has the norm behind it (bytes); 0 for none."""
        if not self.fuses_allreduce:
            return 0.0
        return inf if self.fuses_allreduce_max_bytes is None else self.fuses_allreduce_max_bytes

    def on(self, gpu: GPUSpec) -> EngineProfile:
        """Return the profile with its limits on `gpu`, in the place of those for large GPUs."""
        if self.large_gpu_chunk_size is None and self.large_gpu_max_num_seqs is None:
            return self
        large = gpu.memory_bytes >= _LARGE_GPU_BYTES and "GA100" not in gpu.arch
        return replace(
            self,
            max_num_seqs=(large and self.large_gpu_max_num_seqs) or self.max_num_seqs,
            chunk_size=(large and self.large_gpu_chunk_size) or self.chunk_size,
            large_gpu_max_num_seqs=None,
            large_gpu_chunk_size=None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityCounts:
    """Who answers right, query by query, of a weak and a strong model on a benchmark."""

    name: str
    """Name in the catalogue."""
    weak: str
    strong: str
    """The models."""
    counts: tuple[int, int, int, int]
    """Queries that both answer right, only the strong one, only the weak one, neither."""
    strong_share: float
    kept_quality: float
    """Operating point of a published router: with this share of the queries sent to the strong
    model, the routed answers keep this share of its accuracy."""
    source: str
    """Where the numbers come from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthTable:
    """Measured prompt and output lengths, as quantiles.

    The output given the prompt is kept by slices of the prompt's distribution of equal weight, so
    that a draw keeps the dependence between the two; one slice means that only the marginal
    distributions are known.
    """

    name: str
    """Whose set it is, such as ``"sharegpt-etalon"``."""
    levels: tuple[float, ...]
    """Cumulative shares of the quantiles, rising from 0 to 1; n of them."""
    prompt: tuple[float, ...]
    """Quantiles of the prompt length (tokens), n of them."""
    output_by_prompt: tuple[tuple[float, ...], ...]
    """For each slice of the prompt's distribution (shortest first) the n quantiles of the output
    length (tokens)."""
    num_measured: int
    """Rows the table was derived from; 0 for a distribution fitted to published moments."""
    prompt_mean: float
    output_mean: float
    """Means of the measured set (tokens), to check draws against."""
    source: str
    licence: str
    """Where the set comes from and under which licence."""
