"""An instance with pipeline parallelism: several disjoint batches in flight on the same stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from simcluster.engine.instance import (
    Instance,
    InstanceLike,
    InstanceOwner,
    InstanceStats,
    OnPrefill,
    StopAt,
    at_the_next_boundary,
)
from simcluster.errors import InvariantError
from simcluster.request import Request


class PipelinedInstance(InstanceOwner):
    """One copy of the model on the stages of a pipeline; as many batches in flight as stages.

    Each batch is a lane: an `Instance` with a scheduler and a share of the KV blocks of its own,
    whose steps pass the common stages (virtual engines of vLLM V0). A request goes to the lane with
    the fewest tokens and stays there.

    Parameters
    ----------
    lanes : sequence of Instance
        The batches; this object becomes their owner.
    prefill_s : callable
        From the tokens of a prompt: time to prefill it alone in the empty pipeline (s).
    """

    owner: InstanceOwner

    def __init__(self, lanes: Sequence[Instance], prefill_s: Callable[[int], float]) -> None:
        self.lanes = list(lanes)
        self.instance_id = lanes[0].instance_id
        self.num_lanes = len(self.lanes)
        self.num_requests = 0
        self._prefill_s = prefill_s
        self._lane_of: dict[int, int] = {}
        for lane in self.lanes:
            lane.owner = self

    # --- what others may do -------------------------------------------------------------------

    @property
    def hold_output(self) -> bool:
        """While true, tokens are computed but not released to the user."""
        return self.lanes[0].hold_output

    @hold_output.setter
    def hold_output(self, value: bool) -> None:
        for lane in self.lanes:
            lane.hold_output = value

    @property
    def shows_first_token(self) -> bool:
        """Whether the first token of a request that decodes elsewhere is shown from here."""
        return self.lanes[0].shows_first_token

    @shows_first_token.setter
    def shows_first_token(self, value: bool) -> None:
        for lane in self.lanes:
            lane.shows_first_token = value

    @property
    def load_tokens(self) -> int:
        """Tokens of the waiting and running requests at the last step boundaries."""
        return sum([lane.load_tokens for lane in self.lanes])

    @property
    def free_blocks(self) -> int:
        """Free KV blocks of the lane that the next request would go to."""
        return self._emptiest.free_blocks

    @property
    def waiting_blocks(self) -> int:
        """KV blocks that the requests waiting in that lane will take."""
        return self._emptiest.waiting_blocks

    @property
    def has_unfinished(self) -> bool:
        """Whether any request waits or runs."""
        return any(lane.has_unfinished for lane in self.lanes)

    @property
    def num_unfinished(self) -> int:
        """Requests that wait or run."""
        return sum([lane.num_unfinished for lane in self.lanes])

    @property
    def stats(self) -> InstanceStats:
        """What the lanes have done so far, together."""
        each = [lane.stats for lane in self.lanes]
        return InstanceStats(
            sum([s.num_blocks for s in each]),
            sum([s.busy_s for s in each], 0.0),
            sum([s.num_steps for s in each]),
            self.num_requests,
            sum([s.num_preemptions for s in each]),
            max(s.peak_kv_usage for s in each),
            sum([s.num_swaps for s in each]),
            sum([s.asked_blocks for s in each]),
            sum([s.cached_blocks for s in each]),
        )

    @property
    def _emptiest(self) -> Instance:
        return min(self.lanes, key=lambda lane: lane.load_tokens)

    def _lane(self, request: Request) -> Instance:
        return self.lanes[self._lane_of[request.request_id]]

    def _assign(self, request: Request) -> Instance:
        lane = self._emptiest
        self._lane_of[request.request_id] = self.lanes.index(lane)
        self.num_requests += 1
        return lane

    def cached_tokens(self, request: Request) -> int:
        """Tokens of `request` that it would find in the KV cache of the lane it would go to."""
        return self._emptiest.cached_tokens(request)

    def blocks_for(self, num_tokens: int) -> int:
        """KV blocks that hold `num_tokens` tokens of one sequence."""
        return self.lanes[0].blocks_for(num_tokens)

    def prompt_blocks(self, num_tokens: int) -> int:
        """KV blocks of a sequence while its `num_tokens` tokens are prefilled."""
        return self.lanes[0].prompt_blocks(num_tokens)

    def decode_step_of(self, lane: int) -> int:
        """Decode steps of `lane` done at its last step boundary."""
        return self.lanes[lane].decode_step_of(0)

    def lane_of(self, request: Request) -> int:
        """The lane that `request` is in."""
        return self._lane_of[request.request_id]

    def free_blocks_after(self, num_steps: int) -> int:
        """Free KV blocks after `num_steps` more steps: watched, each is an event, so as of now."""
        return self.free_blocks

    def has_room(self, request: Request) -> bool:
        """Whether the lane that `request` would go to would admit it at its next boundary."""
        return self._emptiest.has_room(request)

    def can_reserve(self, request: Request, num_tokens: int | None = None) -> bool:
        """Whether the KV of `request` fits above the watermark of that lane now."""
        return self._emptiest.can_reserve(request, num_tokens)

    def reserve(self, request: Request, num_tokens: int | None = None) -> int:
        """Take the blocks for the KV of `request`, which is to come; return tokens here already."""
        return self._assign(request).reserve(request, num_tokens)

    def follow_prefills(self, on_prefill: OnPrefill, num_layers: int) -> None:
        """Not there: the stages of a pipeline prefill at different times."""
        raise InvariantError("the prefills of a pipeline cannot be followed")

    def submit(self, request: Request) -> None:
        """Queue `request` for prefill in the emptiest lane."""
        self._assign(request).submit(request)

    def join(self, request: Request) -> None:
        """Take over `request`, whose KV has arrived in blocks reserved here."""
        self._lane(request).join(request)

    def release(self, request: Request) -> None:
        """Free the blocks of `request`, whose KV has left for a decode instance."""
        self.lanes[self._lane_of.pop(request.request_id)].release(request)

    def decodes(self, request: Request) -> bool:
        """Whether `request` is decoding here."""
        return self._lane(request).decodes(request)

    def prefill_s(self, prompt_len: int, cached_tokens: int = 0) -> float:
        """Time to prefill one prompt of `prompt_len` tokens alone in the empty pipeline (s)."""
        if cached_tokens:
            raise InvariantError("nobody asks a pipeline for the prefill of a part of a prompt")
        return self._prefill_s(prompt_len)

    def decode_s(self, num_seqs: int, context_tokens: int) -> float:
        """Not there: each lane has a batch of its own."""
        raise InvariantError("a pipeline has no decode step of the whole batch")

    def wake(self) -> None:
        """Schedule the idle lanes again now; the others do at their next boundary anyway."""
        for lane in self.lanes:
            lane.wake()

    def watch(self, stop_at: StopAt | None) -> None:
        """From now on let every step boundary be an event; None: no longer.

        At any of them another lane may become the emptiest, so what somebody waits for may come
        true at each.
        """
        for lane in self.lanes:
            lane.watch(None if stop_at is None else at_the_next_boundary)

    def release_output(self) -> list[Request]:
        """Release the tokens held back so far; return whose last token is among them."""
        return [request for lane in self.lanes for request in lane.release_output()]

    def close(self) -> None:
        """Book what has ended, because the run is over."""
        for lane in self.lanes:
            lane.close()

    # --- what the lanes say -------------------------------------------------------------------

    def prefilled(self, instance: InstanceLike, request: Request) -> None:
        """Pass the news on."""
        self.owner.prefilled(self, request)

    def preempted(self, instance: InstanceLike, request: Request) -> None:
        """Pass the news on."""
        self.owner.preempted(self, request)

    def resumed(self, instance: InstanceLike, request: Request) -> None:
        """Pass the news on."""
        self.owner.resumed(self, request)

    def joined(self, instance: InstanceLike, request: Request) -> None:
        """Pass the news on."""
        self.owner.joined(self, request)

    def finished(self, instance: InstanceLike, request: Request) -> None:
        """Pass the news on."""
        self.owner.finished(self, request)
        del self._lane_of[request.request_id]

    def boundary(self, instance: InstanceLike) -> None:
        """Pass the news on."""
        self.owner.boundary(self)
