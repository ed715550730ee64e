"""Owner of an instance: who hears what happens in it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

from simcluster.request import Request

if TYPE_CHECKING:
    from simcluster.engine.instance.ports import InstanceLike


@mypyc_attr(allow_interpreted_subclasses=True)
class InstanceOwner(ABC):
    """Hears what happens in an instance: the front end before it, the strategy around it.

    Only `finished` must be heard; of the rest an owner takes what concerns it.
    """

    @abstractmethod
    def finished(self, instance: InstanceLike, request: Request) -> None:
        """`request` produced its last token here."""

    def prefilled(self, instance: InstanceLike, request: Request) -> None:
        """`request` produced its first token here (again, after a preemption)."""

    def preempted(self, instance: InstanceLike, request: Request) -> None:
        """`request` was decoding here and lost its KV; it waits to recompute it or get it back."""

    def resumed(self, instance: InstanceLike, request: Request) -> None:
        """`request` decodes here again, its KV copied back from host memory."""

    def joined(self, instance: InstanceLike, request: Request) -> None:
        """`request`, whose KV came from elsewhere, is in the batch of the step about to start."""

    def boundary(self, instance: InstanceLike) -> None:
        """A step of the instance ended, and its state is up to date."""
