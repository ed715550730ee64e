"""Which rows of InferenceMAX, InferenceX and aiconfigurator count as mixtures, and as what."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from simcluster.fidelity.calibrate.readers import aic_ops
from simcluster.fidelity.validate import aic_moe, gpustack_bench, inferencex_decode
from simcluster.fidelity.validate.harness import environment, serve

DATA = Path(
    os.environ.get(
        "SIMCLUSTER_DATA", str(Path(__file__).resolve().parents[2] / ".." / "shared" / "data")
    )
)


def needs(name: str) -> None:
    """Skip the test where the set is not here."""
    if not (DATA / name).is_dir():
        pytest.skip(f"measured set {name} is not here (SIMCLUSTER_DATA)")


def test_loops_of_mixtures_have_all_experts_on_every_rank() -> None:
    """No expert parallelism, no data-parallel attention, no several tokens a step."""
    needs("aic_e2e")
    for system, count in (("h100_sxm", 60), ("b200_sxm", 579)):
        frame = aic_moe.rows(DATA, system)
        assert len(frame) == count
        assert (frame["moe_ep_size"] == 1).all()
        assert (frame["tp_size"] <= 8).all()
        deepseek = frame["model"] == "deepseek-v3"
        assert not (frame["backend_version"][deepseek] == "1.2.0rc6.post3").any()


def test_versions_with_several_tokens_a_step_are_faster_than_their_kin() -> None:
    """Why they are left out: the same settings take 0.4 to 0.85 of the time per token."""
    needs("aic_e2e")
    from simcluster.fidelity.validate.harness import table

    frame = table(DATA / "aic_e2e" / "b200_sxm.csv.gz", ("backend_version",))
    frame = frame[(frame["model_path"] == "deepseek-ai/DeepSeek-R1") & (frame["moe_ep_size"] == 1)]
    keys = ["precision", "tp_size", "isl", "osl", "batch_size"]
    times = frame.pivot_table(index=keys, columns="backend_version", values="silicon_tpot_ms")
    ratio = (times["1.2.0rc6.post3"] / times["1.2.0rc6.post2"]).dropna()
    assert len(ratio) >= 10
    assert ratio.between(0.4, 0.85).all()


def test_bursts_of_long_prompts_are_of_both_gpus() -> None:
    """From 2,000 tokens of prompt on, and each row with the engine that its command names."""
    needs("gpustack_bench")
    frame = gpustack_bench.rows(DATA, ("a100", "h100"), gpustack_bench.LONG_MODELS)
    assert set(frame["gpu"]) == {"a100", "h100"}
    served = gpustack_bench.command_of("vllm serve openai/gpt-oss-20b --async-scheduling")
    assert (served.model, served.engine) == ("gpt-oss-20b", gpustack_bench.ASYNC)


def test_all_runs_by_context_are_used() -> None:
    """Each has a layout that is simulated; counted in the files by hand."""
    needs("inferencex_decode")
    frame = inferencex_decode.rows(DATA)
    assert frame["layout"].value_counts().to_dict() == {
        "qwen35_vllm_tp8": 45,
        "minimax_m25_vllm_tep8": 65,
        "minimax_m25_vllm_dep8": 7,
    }


def test_all_dtypes_of_experts_are_read_with_the_rows_they_were_measured_with() -> None:
    """By hand: 64 tokens of 8 of 128 experts in turn are 4 visits each, so 128 tiles of 16."""
    needs("aic_ops")
    rows = aic_ops.read_moe(DATA / "aic_ops", "b200_sxm")
    assert {name.split()[0] for name in rows.kernel.tolist()} == {
        "bf16",
        "fp8",
        "fp8-block",
        "int4",
        "nvfp4",
        "mxfp4",
    }
    here = (rows["m"] == 64) & (rows["num_experts"] == 128) & (rows["top_k"] == 8)
    here &= rows.kernel == "bf16 by-tokens"
    balanced = here & (rows["touched"] == 128)
    assert balanced.any()
    assert set(rows["padded"][balanced].tolist()) >= {128.0 * 32.0}  # 64 tokens: tiles of 32 rows
    uneven = here & (rows["touched"] < 128)
    assert (rows["touched"][uneven] > 64).all()


def test_prompts_are_tokenised_in_turn() -> None:
    """A short prompt behind a long one does not overtake it, and each waits for its own length."""
    where = environment(
        "A100",
        "llama-3.1-8b",
        "ideal",
        changes={"front_end_s": 0.0, "front_end_token_s": 1e-3, "max_num_seqs": 1},
    )
    requests = serve(where, [1000, 10], [1, 1], tp_size=1, chunk_size=4096, max_num_seqs=1)
    long_s, short_s = requests["ttft_s"]
    assert long_s > 1.0
    assert short_s > long_s
    apart = serve(
        where, [1000, 10], [1, 1], tp_size=1, chunk_size=4096, arrival_s=np.array([0.0, 5.0])
    )
    assert 0.01 < apart["ttft_s"][1] < 0.1
