"""From a prefill pool to a decode pool: choose, reserve, transfer, join."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from math import inf, isnan

from simcluster.config import ModelConfig
from simcluster.engine.clock import ROUTING, At, Clock
from simcluster.engine.instance import InstanceLike, InstanceOwner, at_the_next_boundary
from simcluster.engine.links.link import LinkNetwork, Path
from simcluster.errors import InvariantError
from simcluster.request import Request
from simcluster.routing.base import Router
from simcluster.units import on_grid


class DecodePort:
    """The entrance of a decode instance: requests whose KV is to come, in order.

    Blocks for a request's KV are reserved before it moves, first come, first served.

    Parameters
    ----------
    instance : InstanceLike
        The decode instance.
    waiting_block_share : float, optional
        Nothing is reserved while requests that do not decode yet have this share of its blocks.

    Attributes
    ----------
    queue : deque of _Move
        Requests that wait for a reservation.
    coming_tokens, num_coming : int
        Tokens and number of the requests in the queue or in transfer.
    reserved_blocks : int
        Blocks of the requests that are in transfer or wait to join the batch.
    """

    def __init__(self, instance: InstanceLike, waiting_block_share: float | None = None) -> None:
        self.instance = instance
        self.instance_id = instance.instance_id
        self.queue: deque[_Move] = deque()
        self.coming_tokens = 0
        self.num_coming = 0
        self.reserved_blocks = 0
        self._reserved: dict[int, int] = {}  # of each of them; joined, it may be preempted at once
        self._most_reserved = inf
        if waiting_block_share is not None:
            self._most_reserved = waiting_block_share * instance.stats.num_blocks

    @property
    def load_tokens(self) -> int:
        """Tokens in the instance and on their way to it."""
        return self.instance.load_tokens + self.coming_tokens

    @property
    def free_blocks(self) -> int:
        """Free KV blocks of the instance."""
        return self.instance.free_blocks

    def cached_tokens(self, request: Request) -> int:
        """Tokens of `request` whose KV the instance has already."""
        return self.instance.cached_tokens(request)

    def has_room(self, request: Request, num_tokens: int | None = None) -> bool:
        """Whether `num_tokens` of `request` (default: what it has) may come in now.

        They must fit above the watermark, and the blocks reserved so far be below their share.
        """
        if self.reserved_blocks >= self._most_reserved:
            return False
        return self.instance.can_reserve(request, num_tokens)

    def reserve(self, request: Request, num_tokens: int) -> int:
        """Take the blocks for `num_tokens` tokens; return those whose KV is there already."""
        num_blocks = self.instance.blocks_for(num_tokens)
        self._reserved[request.request_id] = num_blocks
        self.reserved_blocks += num_blocks
        return self.instance.reserve(request, num_tokens)

    def joined(self, request: Request) -> None:
        """Know that `request` decodes from now on."""
        self.reserved_blocks -= self._reserved.pop(request.request_id)


class _Move:
    """A request on its way from a prefill instance to a decode instance.

    Attributes
    ----------
    paths : tuple of Path
        One path from GPU to GPU, or one to a pool in host memory and one from there.
    num_tokens, num_cached : int
        What it takes at its destination (tokens), and what is there already.
    pieces : int
        Pieces of the first copy that have not arrived.
    """

    __slots__ = ("num_cached", "num_tokens", "paths", "pieces", "port", "request", "source")

    def __init__(
        self,
        request: Request,
        source: InstanceLike,
        port: DecodePort,
        paths: tuple[Path, ...],
        num_tokens: int,
    ) -> None:
        self.request = request
        self.source = source
        self.port = port
        self.paths = paths
        self.num_tokens = num_tokens
        self.num_cached = 0
        self.pieces = 1


class KvHandover(InstanceOwner):
    """Moves requests from prefill to decode instances; owner of the decode instances.

    With one path the decode side pulls: nothing is sent before it has reserved blocks. With two the
    prefill side pushes into a pool in host memory at once, and blocks are reserved for the second
    copy. A prefill may be followed layer by layer (`stream`): all layers but the last are one
    piece, sent from the end of the first layer on, and the last layer is another, sent when the
    prefill and the first piece have ended; so nothing arrives before it was computed, as long as
    the link is not faster than the GPU in the middle of the prefill. (What is sent to a decode side
    without room at the end of the first layer waits for the end of the prefill.)

    Parameters
    ----------
    env : Clock
        The run.
    network : LinkNetwork
        The links.
    decode : sequence of InstanceLike
        The decode pool.
    router : callable
        Makes the router that chooses among the decode instances a prefill instance can reach.
    paths : callable
        From (prefill instance, decode instance) to the paths its KV takes, one after the other;
        empty if there is none.
    reaches : callable, optional
        Whether there are such paths, which is quicker to say than where they lead; default: there
        are if there is one.
    model : ModelConfig
        Whose KV cache moves.
    on_finish : callable
        Called with every finished request.
    waiting_block_share : float, optional
        A decode instance reserves nothing while requests that do not decode yet, in transfer or
        waiting to join the batch, have this share of its blocks (DistServe's
        ``waiting_block_prop_threshold``).
    handover_s : float
        From the arrival of the KV until the decode side knows of the request (s, on the grid).
    redoes_last_token : bool
        The first decode step computes the last token of the prompt once more, in place of the
        token that the prefill side has made: counted as the time of such a step, as loaded as the
        decode side is then, in which others do not wait for it.
    """

    def __init__(
        self,
        env: Clock,
        network: LinkNetwork,
        decode: Sequence[InstanceLike],
        *,
        router: Callable[[], Router],
        paths: Callable[[InstanceLike, InstanceLike], tuple[Path, ...]],
        model: ModelConfig,
        on_finish: Callable[[Request], None],
        reaches: Callable[[InstanceLike, InstanceLike], bool] | None = None,
        waiting_block_share: float | None = None,
        handover_s: float = 0.0,
        redoes_last_token: bool = False,
    ) -> None:
        self._env = env
        self._network = network
        self._handover_s = handover_s
        self._redoes_last_token = redoes_last_token
        self._waiting_block_share = waiting_block_share
        self._ports = {
            instance.instance_id: DecodePort(instance, waiting_block_share) for instance in decode
        }
        self.instances = list(decode)  # those in service
        self._held: dict[int, int] = {}  # requests whose KV a prefill instance still holds
        self._reachable: dict[int, tuple[list[DecodePort], Router]] = {}
        self._make_router = router
        self._find_paths = paths
        self._reaches = reaches
        self._known_paths: dict[tuple[int, int], tuple[Path, ...]] = {}
        self._model = model
        self._on_finish = on_finish
        self._kv, self._last_layer_kv = model.sequence_kv(), model.sequence_kv(last_layer=True)
        self._streams: dict[int, _Move] = {}  # by request: those whose prefill is under way
        for instance in decode:
            instance.owner = self

    def hand_over(self, source: InstanceLike, request: Request) -> None:
        """Send `request`, whose prompt `source` has just computed, to a decode instance.

        It is routed once all steps that end now have ended: the router reads other instances.
        """
        self._held[source.instance_id] = self._held.get(source.instance_id, 0) + 1
        move = self._streams.pop(request.request_id, None)
        if move is not None:
            self._first_piece_or_prefill_ended(move)
            return
        env = self._env
        if env.peek() > env.now:
            self._route(source, request)
            return
        routing = At(env, env.now, ROUTING)
        routing.callbacks.append(lambda _: self._route(source, request))

    def follow(self, instance: InstanceLike) -> None:
        """Know the prefill instance `instance`, from which requests will come."""

    def stream(
        self, source: InstanceLike, request: Request, num_tokens: int, layer_end_s: float
    ) -> None:
        """Follow the prefill of `request`, whose first layer ends at `layer_end_s` (s)."""
        if request.output_len == 1 or self._model.spec.num_layers == 1:
            return  # nothing will be decoded, or there is nothing to be ahead of
        event = At(self._env, layer_end_s, ROUTING)
        event.callbacks.append(lambda _: self._start_stream(source, request, num_tokens))

    def _start_stream(self, source: InstanceLike, request: Request, num_tokens: int) -> None:
        move = self._choose(source, request, num_tokens)
        port = move.port
        if len(move.paths) == 1:
            if port.queue or not port.has_room(request, num_tokens):
                return
            move.num_cached = port.reserve(request, num_tokens)
        port.coming_tokens += num_tokens
        port.num_coming += 1
        move.pieces = 2  # the last layer, and all before; the end of the prefill comes between
        self._streams[request.request_id] = move
        self._network.transfer(
            request.request_id,
            move.paths[0],
            self._bytes(move) - self._last_layer_bytes(move),
            lambda: self._first_piece_or_prefill_ended(move),
        )

    def _first_piece_or_prefill_ended(self, move: _Move) -> None:
        """Send the last layer of a stream if the other of the two has ended before."""
        move.pieces -= 1
        if move.pieces:
            return
        move.pieces = 1
        self._network.transfer(
            move.request.request_id,
            move.paths[0],
            self._last_layer_bytes(move),
            lambda: self._first_copy_ended(move),
        )

    def _bytes(self, move: _Move) -> int:
        """What has to be sent of the KV cache (bytes)."""
        return self._kv.num_bytes(move.num_tokens, move.num_cached)

    def _last_layer_bytes(self, move: _Move) -> int:
        """The last layer's part of that (bytes)."""
        return self._last_layer_kv.num_bytes(move.num_tokens, move.num_cached)

    def _choose(self, source: InstanceLike, request: Request, num_tokens: int) -> _Move:
        """Choose the decode instance for `request`, which will have `num_tokens` tokens there."""
        ports, router = self._reachable_from(source)
        index = router.choose(request, ports, self._env.now)
        if index is None:
            raise InvariantError("a decode instance must be named: its port keeps the queue")
        port = ports[index]
        paths = self._paths(source, port.instance)
        return _Move(request, source, port, paths, num_tokens)

    def _reachable_from(self, source: InstanceLike) -> tuple[list[DecodePort], Router]:
        """Entrances that KV of `source` can reach, and who chooses among them."""
        reachable = self._reachable.get(source.instance_id)
        if reachable is None:
            ports = [
                self._ports[instance.instance_id]
                for instance in self.instances
                if self._is_reached(source, instance)
            ]
            reachable = self._reachable[source.instance_id] = (ports, self._make_router())
        return reachable

    def predicted_tbt_s(self, source: InstanceLike, request: Request) -> float:
        """Predicted time between tokens of `request`, prefilled by `source` (s).

        That of a step of the decode instance with the fewest tokens, as loaded as it is now, with
        all that is on its way to it and the request.
        """
        port = min(self._reachable_from(source)[0], key=lambda p: p.load_tokens)
        num_seqs = port.instance.num_unfinished + port.num_coming + 1
        # `load_tokens` are tokens in the cache; in a step each sequence adds one.
        context_tokens = port.load_tokens + request.prompt_len + num_seqs
        return port.instance.decode_s(num_seqs, context_tokens)

    def _route(self, source: InstanceLike, request: Request) -> None:
        move = self._choose(source, request, request.num_computed_tokens)
        port = move.port
        port.coming_tokens += move.num_tokens
        port.num_coming += 1
        if len(move.paths) == 1:
            port.queue.append(move)
            self._start_transfers(port)
            return
        self._network.transfer(
            request.request_id,
            move.paths[0],
            self._bytes(move),
            lambda: self._first_copy_ended(move),
        )

    def _first_copy_ended(self, move: _Move) -> None:
        self._held[move.source.instance_id] -= 1
        move.source.release(move.request)
        if len(move.paths) == 1:
            self._arrived(move)
            return
        move.port.queue.append(move)
        self._start_transfers(move.port)

    def _arrived(self, move: _Move) -> None:
        """Let the request join when the decode side knows of it: all its KV has arrived."""
        move.request.transfer_s = self._env.now - move.request.first_token_s
        wait_s = self._handover_s
        if self._redoes_last_token:
            instance = move.port.instance
            num_seqs = instance.num_unfinished + 1
            context_tokens = instance.load_tokens + move.request.prompt_len + num_seqs
            wait_s += on_grid(instance.decode_s(num_seqs, context_tokens))
        if not wait_s:
            self._join(move)
            return
        known = At(self._env, self._env.now + wait_s, ROUTING)
        known.callbacks.append(lambda _: self._join(move))

    def _join(self, move: _Move) -> None:
        request, port = move.request, move.port
        port.coming_tokens -= move.num_tokens
        port.num_coming -= 1
        port.instance.join(request)

    def _is_reached(self, source: InstanceLike, destination: InstanceLike) -> bool:
        if self._reaches is not None:
            return self._reaches(source, destination)
        return bool(self._paths(source, destination))

    def _paths(self, source: InstanceLike, destination: InstanceLike) -> tuple[Path, ...]:
        key = (source.instance_id, destination.instance_id)
        paths = self._known_paths.get(key)
        if paths is None:
            paths = self._known_paths[key] = self._find_paths(source, destination)
        return paths

    def _start_transfers(self, port: DecodePort) -> None:
        while port.queue and port.has_room(port.queue[0].request):
            move = port.queue.popleft()
            request = move.request
            num_tokens = request.num_computed_tokens
            move.num_cached = port.reserve(request, num_tokens)
            ended = self._first_copy_ended if len(move.paths) == 1 else self._arrived
            self._network.transfer(
                request.request_id, move.paths[-1], self._bytes(move), partial(ended, move)
            )
        instance = port.instance
        if self._waiting_block_share is not None and instance.num_lanes > 1:
            # Room arises while a batch of a pipeline starts, others may be at a boundary then.
            instance.watch(at_the_next_boundary if port.queue else None)

    # --- the pools change -----------------------------------------------------------------------

    def add(self, instance: InstanceLike) -> None:
        """Put the decode instance `instance` into service."""
        self.instances.append(instance)
        self._ports[instance.instance_id] = DecodePort(instance, self._waiting_block_share)
        self._reachable.clear()
        instance.owner = self

    def drain(self) -> InstanceLike:
        """Give the decode instance with the fewest requests no more of them; return it."""
        instance = min(
            reversed(self.instances),
            key=lambda i: i.num_unfinished + self._ports[i.instance_id].num_coming,
        )
        self.instances.remove(instance)
        self._reachable.clear()
        return instance

    def is_drained(self, instance: InstanceLike) -> bool:
        """Whether a drained decode instance has finished everything, and nothing is to come."""
        coming = self._ports[instance.instance_id].num_coming
        return not coming and not instance.has_unfinished

    def holds(self, source: InstanceLike) -> bool:
        """Whether the prefill instance `source` still holds KV of a request."""
        return bool(self._held.get(source.instance_id))

    def num_coming(self) -> int:
        """Requests on their way to the decode instances in service."""
        return sum([self._ports[i.instance_id].num_coming for i in self.instances])

    # --- what the decode instances say --------------------------------------------------------
    # (Preempted requests stay there; what a resumed one leaves, the step that is about to start
    # has first call on.)

    def prefilled(self, instance: InstanceLike, request: Request) -> None:
        """A preempted request has recomputed here: what is left may do for the next transfer."""
        self._start_transfers(self._ports[instance.instance_id])

    def joined(self, instance: InstanceLike, request: Request) -> None:
        """Let others have its share of the waiting blocks, once the planned step has begun."""
        port = self._ports[instance.instance_id]
        port.joined(request)
        if isnan(request.first_output_s):
            request.first_output_s = self._env.now  # no prefill instance has shown it
        if port.queue and self._waiting_block_share is not None:
            routing = At(self._env, self._env.now, ROUTING)
            routing.callbacks.append(lambda _: self._start_transfers(port))

    def finished(self, instance: InstanceLike, request: Request) -> None:
        """Use the freed blocks for the next transfer."""
        self._start_transfers(self._ports[instance.instance_id])
        self._on_finish(request)
