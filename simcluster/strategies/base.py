"""What a serving strategy is: settings from the scenario file that build a deployment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol

from pydantic import ConfigDict, Field

from simcluster.config import Environment
from simcluster.engine.cluster import Cluster, Deployment

SETTINGS_CONFIG = ConfigDict(extra="forbid", strict=True)
"""pydantic configuration of settings classes: unknown keys and wrong types are refused."""


class Strategy(Protocol):
    """Settings of a strategy: a frozen dataclass with one field per key of ``[[strategy]]``.

    Field types carry unit, rule and meaning as ``Annotated[..., Field(...)]``; the scenario reader
    validates with them and ``simcluster schema`` prints them.
    """

    kind: str
    name: str

    def build(self, environment: Environment, cluster: Cluster) -> Deployment:
        """Create instances, routing and links in `cluster` and return the entry point.

        Raises
        ------
        ConfigError
            If the deployment does not fit the machines.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonSettings:
    """Keys that every strategy takes."""

    __pydantic_config__: ClassVar[ConfigDict] = SETTINGS_CONFIG

    name: Annotated[str, Field(min_length=1, description="Name in tables and plots.")]
    tp_size: Annotated[int, Field(ge=1, description="GPUs of a tensor-parallel group.")] = 1
    max_num_seqs: Annotated[
        int | None,
        Field(ge=1, description="Most sequences running at once; default: the engine's."),
    ] = None
    max_num_batched_tokens: Annotated[
        int | None,
        Field(ge=1, description="Most tokens of one prefill step; default: the engine's."),
    ] = None
    instances_per_node: Annotated[
        int | None,
        Field(ge=1, description="Most instances on one node; default: as many as fit."),
    ] = None
