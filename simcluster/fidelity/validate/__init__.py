"""How far simulated times are from measured ones, stated per data set, GPU, model and regime.

==================  =============================================================
module              idea
==================  =============================================================
base                a check: errors of one quantity in one regime, and its limits
harness             a measured row -> a simulated run
aic_loops           rows and lengths that the four checks of aic_e2e share
kernel_checks       single kernels against the operator-level sets
aic_e2e             InferenceMAX, dense models
aic_layouts         InferenceX with expert and data parallelism
aic_kernels         the law against aiconfigurator's tables, and MoE runs with them
aic_moe             InferenceMAX, mixtures of experts
apex_e2e            APEX
blis_vllm015        load stages of vLLM 0.15.1
distserve_fits      DistServe's fits of forward passes
eager_engines       engines of 2023 and early 2024, pooled
ecoserve_prefill    EcoServe's table 3
gpustack_bench      bursts under vLLM on A100 and H100, weights of 16, 8 and 4 bits
inferencex_decode   time per token by context, Qwen3.5 and MiniMax-M2.5 on H200
l20_five_systems    steps on L20 over PCIe
llmservingsim_vllm  LLMServingSim's replays
mlperf_v51          MLPerf's offline throughput with 8-bit weights
mooncake_a10_pd     prefill and decode apart on two A10
published_anchors   published numbers of vLLM and of KV transfers
sarathi_iter        Sarathi-Serve's iteration times
splitwise_perf      Splitwise's fixed batches
host_time           host times of engine profiles, derived from runs held apart
run                 all checks on a folder of measured sets
board               errors by kind of deployment, beside other simulators'
gate                checks against the scores that were last accepted
report              a validation as text, rows, Markdown and pictures
document            the tables and pictures of docs/accuracy.md
command             the command line
==================  =============================================================
"""

from simcluster.fidelity.validate.base import Check, check

__all__ = ["Check", "check"]
