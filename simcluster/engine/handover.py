"""From a prefill pool to a decode pool: choose, reserve, transfer, join."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from simcluster.engine.clock import ROUTING, At, Clock
from simcluster.engine.instance import InstanceLike
from simcluster.engine.link import LinkNetwork, Path
from simcluster.errors import InvariantError
from simcluster.request import Request
from simcluster.routing.base import Router


class DecodePort:
    """The entrance of a decode instance: requests whose KV is to come, in order.

    Blocks for a request's KV are reserved before it moves, first come, first served.

    Parameters
    ----------
    instance : InstanceLike
        The decode instance.

    Attributes
    ----------
    queue : deque of (Request, InstanceLike)
        Requests that wait for a reservation, with the prefill instance that holds their KV.
    coming_tokens, num_coming : int
        Tokens and number of the requests in the queue or in transfer.
    """

    def __init__(self, instance: InstanceLike) -> None:
        self.instance = instance
        self.instance_id = instance.instance_id
        self.queue: deque[tuple[Request, InstanceLike]] = deque()
        self.coming_tokens = 0
        self.num_coming = 0

    @property
    def load_tokens(self) -> int:
        """Tokens in the instance and on their way to it."""
        return self.instance.load_tokens + self.coming_tokens

    @property
    def free_blocks(self) -> int:
        """Free KV blocks of the instance."""
        return self.instance.free_blocks

    def has_room(self, request: Request) -> bool:
        """Whether the KV of `request` fits above the watermark now."""
        return self.instance.can_reserve(request)


class KvHandover:
    """Moves requests from prefill to decode instances; owner of the decode instances.

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
    bytes_per_token : int
        KV cache of one token (bytes).
    on_finish : callable
        Called with every finished request.
    """

    def __init__(
        self,
        env: Clock,
        network: LinkNetwork,
        decode: Sequence[InstanceLike],
        *,
        router: Callable[[], Router],
        paths: Callable[[InstanceLike, InstanceLike], tuple[Path, ...]],
        bytes_per_token: int,
        on_finish: Callable[[Request], None],
    ) -> None:
        self._env = env
        self._network = network
        self._ports = {instance.instance_id: DecodePort(instance) for instance in decode}
        self.instances = list(decode)  # those in service
        self._held: dict[int, int] = {}  # requests whose KV a prefill instance still holds
        self._reachable: dict[int, tuple[list[DecodePort], Router]] = {}
        self._make_router = router
        self._find_paths = paths
        self._known_paths: dict[tuple[int, int], tuple[Path, ...]] = {}
        self._bytes_per_token = bytes_per_token
        self._on_finish = on_finish
        for instance in decode:
            instance.owner = self

    def hand_over(self, source: InstanceLike, request: Request) -> None:
        """Send `request`, whose prompt `source` has just computed, to a decode instance.

        It is routed once all steps that end now have ended: the router reads other instances.
        """
        env = self._env
        self._held[source.instance_id] = self._held.get(source.instance_id, 0) + 1
        if env.peek() > env.now:
            self._route(source, request)
            return
        routing = At(env, env.now, ROUTING)
        routing.callbacks.append(lambda _: self._route(source, request))

    def _route(self, source: InstanceLike, request: Request) -> None:
        reachable = self._reachable.get(source.instance_id)
        if reachable is None:
            ports = [
                port
                for instance in self.instances
                if self._paths(source, (port := self._ports[instance.instance_id]).instance)
            ]
            reachable = self._reachable[source.instance_id] = (ports, self._make_router())
        ports, router = reachable
        index = router.choose(request, ports, self._env.now)
        if index is None:
            raise InvariantError("a decode instance must be named: its port keeps the queue")
        port = ports[index]
        port.queue.append((request, source))
        port.coming_tokens += request.num_computed_tokens
        port.num_coming += 1
        self._start_transfers(port)

    def _paths(self, source: InstanceLike, destination: InstanceLike) -> tuple[Path, ...]:
        key = (source.instance_id, destination.instance_id)
        paths = self._known_paths.get(key)
        if paths is None:
            paths = self._known_paths[key] = self._find_paths(source, destination)
        return paths

    def _start_transfers(self, port: DecodePort) -> None:
        while port.queue and port.has_room(port.queue[0][0]):
            request, source = port.queue.popleft()
            port.instance.reserve(request)
            self._send(port, source, request, self._paths(source, port.instance))

    def _send(
        self,
        port: DecodePort,
        source: InstanceLike,
        request: Request,
        paths: tuple[Path, ...],
        hop: int = 0,
    ) -> None:
        """Send along `paths` from number `hop` on; then let the request decode."""

        def ended() -> None:
            if hop == 0:
                self._held[source.instance_id] -= 1
                source.release(request)
            if hop + 1 < len(paths):
                self._send(port, source, request, paths, hop + 1)
                return
            request.transfer_s = self._env.now - request.first_token_s
            port.coming_tokens -= request.num_computed_tokens
            port.num_coming -= 1
            port.instance.join(request)

        num_bytes = request.num_computed_tokens * self._bytes_per_token
        self._network.transfer(request.request_id, paths[hop], num_bytes, ended)

    # --- the pools change -----------------------------------------------------------------------

    def add(self, instance: InstanceLike) -> None:
        """Put the decode instance `instance` into service."""
        self.instances.append(instance)
        self._ports[instance.instance_id] = DecodePort(instance)
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
        return sum(self._ports[i.instance_id].num_coming for i in self.instances)

    # --- what the decode instances say --------------------------------------------------------

    def boundary(self, instance: InstanceLike) -> None:
        """Nothing to do: room for a transfer arises when a request ends or is back in."""

    def prefilled(self, instance: InstanceLike, request: Request) -> None:
        """A preempted request has recomputed here: what is left may do for the next transfer."""
        self._start_transfers(self._ports[instance.instance_id])

    def preempted(self, instance: InstanceLike, request: Request) -> None:
        """Nothing to do: the request goes on here, recomputed or swapped back in."""

    def resumed(self, instance: InstanceLike, request: Request) -> None:
        """Nothing to do: the step that is about to start has first call on the free blocks."""

    def finished(self, instance: InstanceLike, request: Request) -> None:
        """Use the freed blocks for the next transfer."""
        self._start_transfers(self._ports[instance.instance_id])
        self._on_finish(request)
