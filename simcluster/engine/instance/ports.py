"""Ports of an instance: what others may ask of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol

from simcluster.request import Request

if TYPE_CHECKING:
    from simcluster.engine.instance.owner import InstanceOwner

StopAt = Callable[["InstanceLike", list[float], int], int]
"""Where a span must stop: from the instance, the end times of its steps (s) and how many of them
have ended to the number of steps, more than those, after which the boundary must be an event."""


OnPrefill = Callable[["InstanceLike", Request, int, float], None]
"""Hears of a prefill that begins: from the instance, the request, the tokens that it will have and
the end of its first layer (s)."""


def at_the_next_boundary(instance: InstanceLike, ends: list[float], first: int) -> int:
    """Stop at the first step boundary to come: a `StopAt`."""
    return first + 1


class InstanceLike(Protocol):
    """What routers and strategies use of an instance: an `Instance`, or one with a pipeline."""

    instance_id: int
    owner: InstanceOwner
    hold_output: bool
    shows_first_token: bool
    num_requests: int
    num_lanes: int

    @property
    def load_tokens(self) -> int:
        """Tokens of the waiting and running requests."""

    @property
    def free_blocks(self) -> int:
        """Free KV blocks where the next request would go."""

    @property
    def waiting_blocks(self) -> int:
        """KV blocks that the requests waiting where it would go will take."""

    @property
    def has_unfinished(self) -> bool:
        """Whether any request waits or runs."""

    @property
    def num_unfinished(self) -> int:
        """Requests that wait or run."""

    @property
    def stats(self) -> InstanceStats:
        """What it has done so far."""

    def cached_tokens(self, request: Request) -> int:
        """Tokens of `request` that it would find in the KV cache here."""

    def blocks_for(self, num_tokens: int) -> int:
        """KV blocks that hold `num_tokens` tokens of one sequence."""

    def prompt_blocks(self, num_tokens: int) -> int:
        """KV blocks of a sequence while its `num_tokens` tokens are prefilled."""

    def decode_step_of(self, lane: int) -> int:
        """Decode steps of `lane` done at its last step boundary."""

    def lane_of(self, request: Request) -> int:
        """The lane that `request` is in."""

    def free_blocks_after(self, num_steps: int) -> int:
        """Free KV blocks when `num_steps` steps of the current span have ended."""

    def has_room(self, request: Request) -> bool:
        """Whether `request` would be admitted at the next boundary."""

    def can_reserve(self, request: Request, num_tokens: int | None = None) -> bool:
        """Whether `num_tokens` of `request` (default: what it has) fit above the watermark."""

    def reserve(self, request: Request, num_tokens: int | None = None) -> int:
        """Take the blocks for the KV of `request`, which is to come; they must be free.

        Returns the tokens whose KV is here already.
        """

    def submit(self, request: Request) -> None:
        """Queue `request` for prefill."""

    def join(self, request: Request) -> None:
        """Take over `request`, whose KV has arrived in blocks reserved here."""

    def release(self, request: Request) -> None:
        """Free the blocks of `request`, whose KV has left for a decode instance."""

    def follow_prefills(self, on_prefill: OnPrefill, num_layers: int) -> None:
        """Tell `on_prefill` of every prefill that begins and ends with its step."""

    def decodes(self, request: Request) -> bool:
        """Whether `request` is decoding here."""

    def prefill_s(self, prompt_len: int, cached_tokens: int = 0) -> float:
        """Time to prefill one prompt alone, `cached_tokens` of it cached (s)."""

    def decode_s(self, num_seqs: int, context_tokens: int) -> float:
        """Time of a decode step of `num_seqs` with `context_tokens` of context together (s)."""

    def wake(self) -> None:
        """Schedule again at the next step boundary; at once if it is idle."""

    def watch(self, stop_at: StopAt | None) -> None:
        """From now on end spans where `stop_at` says, the present one too; None: nowhere."""

    def release_output(self) -> list[Request]:
        """Release the tokens held back so far; return whose last token is among them."""

    def close(self) -> None:
        """Book what has ended, because the run is over."""


class InstanceStats(NamedTuple):
    """Totals of one instance: columns of the instances frame."""

    num_blocks: int
    """KV blocks."""
    busy_s: float
    """Time in steps (s), of all its lanes."""
    num_steps: int
    num_requests: int
    num_preemptions: int
    """How many."""
    peak_kv_usage: float
    """Largest share of blocks in use, 0 to 1."""
    num_swaps: int
    """Preemptions whose KV went to host memory."""
    asked_blocks: int
    cached_blocks: int
    """Full blocks that requests looked for when they came in, and those that they found."""
