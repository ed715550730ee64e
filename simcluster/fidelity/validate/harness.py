"""From a row of a measured set to a simulated run: the catalogue's GPU, model and engine."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simcluster import catalog
from simcluster.catalog.specs import EngineProfile
from simcluster.config import ClusterConfig, Environment, ModelConfig
from simcluster.errors import DataError
from simcluster.frames.schema import Columns
from simcluster.roofline import RooflineStepTime
from simcluster.roofline.layout import Layout
from simcluster.runs.simulate import run
from simcluster.strategies.nodg import NoDG
from simcluster.units import FloatArray, IntArray, grid_array
from simcluster.workload import Workload
from simcluster.workload.hashes import BlockHashes

if TYPE_CHECKING:
    import pandas as pd


def environment(
    gpu: str,
    model: str,
    engine: str | EngineProfile,
    *,
    num_gpus: int = 1,
    max_model_len: int = 32768,
    weight_dtype: str | None = None,
    kv_dtype: str | None = None,
    fabric: str | None = None,
    changes: Mapping[str, Any] | None = None,
) -> Environment:
    """Return one node of `num_gpus` GPUs with a model and an engine, all of the catalogue.

    Parameters
    ----------
    gpu, model, engine, fabric : str
        Names in the catalogue; the GPU's own fabric by default. The engine may be a profile.
    num_gpus : int
        GPUs of the node.
    max_model_len : int
        Longest prompt plus output (tokens).
    weight_dtype, kv_dtype : str, optional
        How weights and cache are stored, as in `ModelConfig`.
    changes : mapping, optional
        Settings of the run that differ from the engine's defaults (limits, not times).
    """
    part = catalog.gpu(gpu)
    link = catalog.link(fabric or part.fabric)
    return Environment(
        model=ModelConfig(
            spec=catalog.model(model),
            max_model_len=max_model_len,
            weight_dtype=weight_dtype,
            kv_dtype=kv_dtype,
        ),
        cluster=ClusterConfig(
            gpu=part,
            num_nodes=1,
            gpus_per_node=num_gpus,
            fabric=link,
            network=link,
            num_nics=1,
            pcie=catalog.link(part.pcie),
            price_per_gpu_hour=None,
        ),
        engine=replace(
            engine if isinstance(engine, EngineProfile) else catalog.engine(engine),
            **(changes or {}),
        ),
    )


def step_time(where: Environment, tp_size: int, layout: Layout | None = None) -> RooflineStepTime:
    """Return the step times of an instance of `tp_size` GPUs, or of `layout`."""
    return RooflineStepTime(
        where.model,
        where.cluster.gpu,
        where.cluster.fabric,
        where.engine,
        tp_size,
        layout=layout,
    )


def serve(
    where: Environment,
    prompt_len: Sequence[int] | IntArray,
    output_len: Sequence[int] | IntArray,
    *,
    tp_size: int,
    pp_size: int = 1,
    arrival_s: FloatArray | None = None,
    concurrency: int | None = None,
    chunk_size: int | None = None,
    num_kv_blocks: int | None = None,
    max_num_seqs: int | None = None,
    hashes: BlockHashes | None = None,
    dp_size: int = 1,
    ep_size: int = 1,
) -> Columns:
    """Simulate one instance and return the columns of its requests.

    Parameters
    ----------
    where : Environment
        Model, machine, engine.
    prompt_len, output_len : sequence of int
        Tokens of each request, shape ``(num_requests,)``.
    tp_size, pp_size : int
        GPUs of the instance: ranks of a stage, and stages.
    arrival_s : float array, optional
        Arrivals (s), sorted; all at 0 if neither this nor `concurrency` is given.
    concurrency : int, optional
        Closed loop: requests in the system at once.
    chunk_size : int, optional
        Token budget of a step with chunked prefill; prefill first where not given.
    num_kv_blocks : int, optional
        KV blocks as reported; what fits in memory by default.
    max_num_seqs : int, optional
        Most sequences running at once; the engine's by default.
    hashes : BlockHashes, optional
        Ids of the requests' blocks, where the engine shares common prefixes.
    dp_size, ep_size : int
        Data-parallel ranks of attention, and groups of GPUs with different experts.
    """
    prompts = np.asarray(prompt_len, dtype=np.int64)
    if arrival_s is None:
        arrival_s = np.zeros(len(prompts))
    workload = Workload(
        arrival_s=grid_array(arrival_s),
        prompt_len=prompts,
        output_len=np.asarray(output_len, dtype=np.int64),
        rejected=np.zeros(len(prompts), dtype=bool),
        concurrency=concurrency,
        hashes=hashes,
    )
    strategy = NoDG(
        name="measured",
        tp_size=tp_size,
        pp_size=pp_size,
        dp_size=dp_size,
        ep_size=ep_size,
        instances=1,
        scheduler="prefill-priority" if chunk_size is None else "chunked",
        chunk_size=chunk_size,
        num_kv_blocks=num_kv_blocks,
        max_num_seqs=max_num_seqs,
        prefix_caching=hashes is not None,
    )
    return run(where, strategy, workload).columns["requests"]


def replayed(trace: pd.DataFrame, num_requests: int) -> tuple[FloatArray, IntArray, IntArray]:
    """Return arrivals (s), prompts and outputs (tokens) of a trace, repeated to `num_requests`.

    A shorter trace is repeated with its own mean gap in between; a longer one is kept whole, so
    that the last ones counted still meet the load behind them.
    """
    times = trace["arrival_s"].to_numpy(dtype=np.float64)
    rounds = max(1, -(-num_requests // len(times))) if num_requests > len(times) else 1
    period = float(times[-1]) * (1 + 1 / len(times))
    arrival_s = np.concatenate([times + i * period for i in range(rounds)])
    lengths = [
        np.tile(trace[name].to_numpy(dtype=np.int64), rounds)
        for name in ("input_tokens", "output_tokens")
    ]
    count = len(times) if rounds == 1 else num_requests
    return arrival_s[:count], lengths[0][:count], lengths[1][:count]


@lru_cache(maxsize=32)
def _table(path: Path, written_ns: int) -> pd.DataFrame:
    """Return the CSV file at `path` as it was written at `written_ns`."""
    import pandas as pd

    try:
        return pd.read_csv(path)
    except (ValueError, OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not a table: {str(error).splitlines()[0]}") from None


def table(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Return the CSV file at `path`, which must have `columns`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    DataError
        If it cannot be read as a table or lacks columns.
    """
    if not path.is_file():
        raise FileNotFoundError(path)
    frame = _table(path, path.stat().st_mtime_ns)
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise DataError(f"{path}: column {', '.join(missing)} is missing")
    return frame


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows of `frame`, each a mapping from column to value."""
    return [{str(name): value for name, value in row.items()} for row in frame.to_dict("records")]
