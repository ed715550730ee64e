"""A request: what was asked, how far it is, and when things happened to it."""

from __future__ import annotations

import enum
from math import nan
from typing import TypeVar

from mypy_extensions import mypyc_attr

from simcluster.units import IntArray

Count = TypeVar("Count", int, IntArray)


class RequestStatus(enum.IntEnum):
    """Where a request stands; the numbers are those of the requests frame."""

    WAITING = 0
    RUNNING = 1
    TRANSFERRING = 2
    PREEMPTED = 3
    FINISHED = 4
    REJECTED = 5


def tokens_gained(num_steps: Count) -> Count:
    """Tokens that a decoding sequence gains in `num_steps` decode steps: one in each.

    Whoever counts a sequence's tokens by steps (decode batch, unrolling, laws, rolling activation)
    asks here, so that steps that yield several tokens have one place to begin.
    """
    return num_steps


def steps_to_gain(num_tokens: Count) -> Count:
    """Decode steps in which a decoding sequence gains `num_tokens` tokens: `tokens_gained` back."""
    return num_tokens


@mypyc_attr(allow_interpreted_subclasses=True)
class Request:
    """One prompt and its answer.

    Plain record: schedulers and instances write it, the recorder reads it at the end. Times are
    seconds on the grid of `simcluster.units`; NaN means "not yet".

    Parameters
    ----------
    request_id : int
        Position in the workload, in order of arrival.
    arrival_s : float
        When it arrives (s).
    prompt_len, output_len : int
        Tokens asked, each >= 1. Schedulers and routers must not read `output_len`.

    Attributes
    ----------
    num_computed_tokens : int
        Tokens whose KV is in the cache. While a request decodes, the instance counts for it (its
        batch grows by one token a step); this is the value at its last change of batch.
    num_output_tokens : int
        Output tokens produced, under the same rule.
    model : int
        Which of the deployment's models answers; 0 where there is one.
    score : float
        Difficulty by the router, 0 to 1; NaN without one.
    slo_class : str or None
        Class whose targets it has; None where the workload has no classes.
    priority : int
        Its class's; the smaller number goes first where a queue orders by priority.
    num_cached_tokens : int
        Tokens of the prompt that its first admission found in a KV cache.
    block_ids : tuple of range
        Ids of its full KV blocks, prompt first, as far as they may be shared; see
        `simcluster.workload.hashes.BlockHashes`.
    scheduled_s : float
        First step that computed any of it starts.
    first_token_s : float
        Its prefill ended: the first token is computed.
    decode_start_s : float
        Its first decode step starts; `first_token_s` if the answer is one token.
    first_output_s, last_output_s : float
        First and last token are released to the user.
    last_token_s : float
        The last token is computed.
    """

    __slots__ = (
        "arrival_s",
        "block_ids",
        "decode_instance",
        "decode_start_s",
        "decode_step",
        "first_output_s",
        "first_token_s",
        "last_output_s",
        "last_token_s",
        "model",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_output_tokens",
        "num_preemptions",
        "output_len",
        "prefill_instance",
        "priority",
        "prompt_len",
        "request_id",
        "routed_s",
        "scheduled_s",
        "score",
        "slo_class",
        "status",
        "transfer_s",
    )

    def __init__(self, request_id: int, arrival_s: float, prompt_len: int, output_len: int) -> None:
        self.request_id = request_id
        self.arrival_s = arrival_s
        self.prompt_len = prompt_len
        self.output_len = output_len
        self.status = RequestStatus.WAITING
        self.num_computed_tokens = 0
        self.num_output_tokens = 0
        self.num_preemptions = 0
        self.num_cached_tokens = 0
        self.block_ids: tuple[range, ...] = ()
        self.prefill_instance = -1
        self.decode_instance = -1
        self.decode_step = -1
        self.model = 0
        self.slo_class: str | None = None
        self.priority = 0
        self.routed_s = nan
        self.scheduled_s = nan
        self.first_token_s = nan
        self.decode_start_s = nan
        self.transfer_s = 0.0
        self.last_token_s = nan
        self.first_output_s = nan
        self.last_output_s = nan
        self.score = nan

    def __repr__(self) -> str:
        return (
            f"Request({self.request_id}, arrival_s={self.arrival_s:.3f}, "
            f"prompt_len={self.prompt_len}, output_len={self.output_len}, {self.status.name})"
        )
