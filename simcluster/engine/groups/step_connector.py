"""KV connectors that work inside the steps, as in vLLM's V0 engine (late 2024 to early 2025).

The prefill step does not return before the KV of the prompts that it ended is put into a buffer;
a full buffer stops the instance. The decode step that takes a request in waits for its KV while the
whole batch stands still (vLLM 0.6.4 to 0.8: ``vllm/distributed/kv_transfer``,
``worker/model_runner.py``, ``kv_lookup_buffer/simple_buffer.py``). A thread of the prefill instance
sends what is asked for, one prompt after the other. Where it copies behind the kernels of the model
(`ConnectorRates.between_steps`) it gets on only while no prefill runs. Connectors of today move KV
beside the steps: `simcluster.engine.groups.handover`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import isnan
from typing import Any, NamedTuple

import simpy

from simcluster.config import ModelConfig, SequenceKv
from simcluster.engine.clock import STEP_END, TRANSFER_END, At, Clock
from simcluster.engine.groups.handover import DecodePort, KvHandover
from simcluster.engine.instance import Instance, InstanceLike
from simcluster.engine.links.link import LinkNetwork, Path
from simcluster.errors import InvariantError
from simcluster.request import Request
from simcluster.routing.base import Router
from simcluster.units import TICK_S, on_grid


@dataclass(frozen=True, slots=True)
class ConnectorRates:
    """How fast KV passes a connector that works inside the steps."""

    put_bytes_per_s: float
    get_bytes_per_s: float
    """Of all ranks of an instance together (bytes/s), beside the links; infinite for a side that
    takes no time of its own."""
    poll_s: float
    """Wait until a request that has come is noticed (s), for each get."""
    buffer_bytes: float
    """KV that a prefill instance holds for the decode side before it stops (bytes)."""
    between_steps: bool
    """What a get takes at `get_bytes_per_s` passes only while the prefill instance runs no step."""


class _Send:
    """A prompt that is asked for.

    Attributes
    ----------
    left_s : float
        What the sender has to do for it yet (s, on the grid).
    """

    __slots__ = ("arrived", "left_s", "num_bytes", "path", "request_id", "requested_s")

    def __init__(
        self,
        request_id: int,
        num_bytes: int,
        path: Path,
        left_s: float,
        requested_s: float,
        arrived: simpy.Event,
    ) -> None:
        self.request_id = request_id
        self.num_bytes = num_bytes
        self.path = path
        self.left_s = left_s
        self.requested_s = requested_s
        self.arrived = arrived


class Sender:
    """The thread of a prefill instance that sends what is asked for, one prompt after the other.

    It brings the KV of a prompt out of the GPUs, and then the links carry it.

    Parameters
    ----------
    env : Clock
        The run.
    network : LinkNetwork
        The links.
    rates : ConnectorRates
        How fast it is.
    """

    def __init__(self, env: Clock, network: LinkNetwork, rates: ConnectorRates) -> None:
        self._env = env
        self._network = network
        self._rates = rates
        self._queue: deque[_Send] = deque()
        self._since_s: float | None = None  # since when it works on the first of them (s)
        self._is_computing = False

    def ask(self, request_id: int, num_bytes: int, path: Path) -> simpy.Event:
        """Return an event that happens when `num_bytes` of KV have arrived over `path`."""
        # At least a tick: in a pause of no length between two steps nothing gets done.
        left_s = max(TICK_S, on_grid(num_bytes / self._rates.get_bytes_per_s))
        arrived = simpy.Event(self._env)
        self._queue.append(_Send(request_id, num_bytes, path, left_s, self._env.now, arrived))
        self._work()
        return arrived

    def computes(self, is_computing: bool) -> None:
        """Know whether the instance runs a step from now on."""
        self._is_computing = is_computing
        if not is_computing:
            self._work()
        elif self._since_s is not None and self._rates.between_steps:
            self._queue[0].left_s -= self._env.now - self._since_s
            self._since_s = None

    def _work(self) -> None:
        """Work on the first prompt, if there is one and the step lets it."""
        held = self._is_computing and self._rates.between_steps
        if self._since_s is not None or held or not self._queue or not self._queue[0].left_s:
            return
        now, send = self._env.now, self._queue[0]
        self._since_s = now
        done = At(self._env, now + send.left_s, TRANSFER_END)
        done.callbacks.append(lambda _: self._out(send, now))

    def _out(self, send: _Send, since_s: float) -> None:
        """Give a prompt to the links, unless a step has come between."""
        if self._since_s != since_s or self._queue[0] is not send:
            return
        self._since_s, send.left_s = None, 0.0
        self._network.transfer(
            send.request_id,
            send.path,
            send.num_bytes,
            self._arrived,
            requested_s=send.requested_s,
        )

    def _arrived(self) -> None:
        self._queue.popleft().arrived.succeed()
        self._work()


class Buffer:
    """KV that a prefill instance has put and nobody has got yet.

    Parameters
    ----------
    env : Clock
        The run.
    rates : ConnectorRates
        How fast it is filled, and how much it holds.
    kv : SequenceKv
        KV cache of a prompt.
    computes : callable
        Hears whether the instance computes: it does not while it waits for room.
    """

    def __init__(
        self, env: Clock, rates: ConnectorRates, kv: SequenceKv, computes: Callable[[bool], None]
    ) -> None:
        self._env = env
        self._rates = rates
        self._kv = kv
        self._computes = computes
        self._held_bytes = 0
        self._room: simpy.Event | None = None

    def put(self, prompts: Sequence[int], order: int) -> Generator[simpy.Event, Any, None]:
        """Let an instance wait until the KV of prompts of these lengths (tokens) is in the buffer.

        An empty buffer takes any prompt; `order` is the place of the instance in ties.
        """
        num_bytes = sum(map(self._kv.num_bytes, prompts))
        while self._held_bytes and self._held_bytes + num_bytes > self._rates.buffer_bytes:
            self._computes(False)
            self._room = simpy.Event(self._env)
            yield self._room
            self._computes(True)
        self._held_bytes += num_bytes
        seconds = on_grid(num_bytes / self._rates.put_bytes_per_s)
        if seconds:
            yield At(self._env, self._env.now + seconds, STEP_END + order)

    def got(self, num_tokens: int) -> None:
        """Forget the KV of a prompt of `num_tokens` tokens, which the decode side has."""
        self._held_bytes -= self._kv.num_bytes(num_tokens)
        if self._room is not None and not self._room.triggered:
            self._room.succeed()


class _Source(NamedTuple):
    """A prefill instance, with what moves its KV."""

    instance: Instance
    sender: Sender
    buffer: Buffer


def _of_one_stage(instance: InstanceLike) -> Instance:
    """Return `instance`, which is no pipeline."""
    if not isinstance(instance, Instance):
        raise InvariantError("pipelines have no connector inside their steps")
    return instance


class StepConnector(KvHandover):
    """Moves requests from prefill to decode instances inside their steps.

    Parameters
    ----------
    env, network, decode, router, paths, model, on_finish, handover_s
        As in `KvHandover`; paths have one copy.
    rates : ConnectorRates
        How long steps wait, beside the links.
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
        rates: ConnectorRates,
        handover_s: float = 0.0,
    ) -> None:
        super().__init__(
            env,
            network,
            decode,
            router=router,
            paths=paths,
            model=model,
            on_finish=on_finish,
            handover_s=handover_s,
        )
        self._rates = rates
        self._sources: dict[int, _Source] = {}  # by prefill instance
        for instance in decode:
            self._serve(instance)

    def _serve(self, instance: InstanceLike) -> None:
        decode = _of_one_stage(instance)
        decode.hooks.get = partial(self._get, decode)

    def _get(self, instance: Instance, requests: Sequence[Request]) -> Iterator[simpy.Event]:
        """Let a step of `instance` wait for the KV of `requests`, one after the other.

        Users see the first token of a request when its KV is there, and its first decode step
        begins when that of all is.
        """
        planned_s = self._env.now
        for request in requests:
            source = self._sources[request.prefill_instance]
            num_tokens = request.prompt_len  # it may have been preempted at once
            if self._rates.poll_s:
                yield At(self._env, self._env.now + self._rates.poll_s, TRANSFER_END)
            yield source.sender.ask(
                request.request_id,
                self._kv.num_bytes(num_tokens),
                self._paths(source.instance, instance)[0],
            )
            now = self._env.now
            source.buffer.got(num_tokens)
            request.transfer_s = now - request.first_token_s
            if isnan(request.first_output_s):
                request.first_output_s = now  # no prefill instance has shown it
        for request in requests:
            if request.decode_start_s == planned_s:
                request.decode_start_s = self._env.now

    def follow(self, instance: InstanceLike) -> None:
        """Let the steps of the prefill instance `instance` end when their KV has been put."""
        prefill = _of_one_stage(instance)
        sender = Sender(self._env, self._network, self._rates)
        buffer = Buffer(self._env, self._rates, self._kv, sender.computes)
        self._sources[prefill.instance_id] = _Source(prefill, sender, buffer)
        prefill.hooks.put = buffer.put
        prefill.hooks.computes = sender.computes

    def add(self, instance: InstanceLike) -> None:
        """Put the decode instance `instance` into service."""
        super().add(instance)
        self._serve(instance)

    def _start_transfers(self, port: DecodePort) -> None:
        """Let requests join as soon as there is room: their KV comes inside the step."""
        while port.queue and port.has_room(port.queue[0].request):
            move = port.queue.popleft()
            port.reserve(move.request, move.request.num_computed_tokens)
            self._first_copy_ended(move)  # the prefill side has it in its buffer

    def joined(self, instance: InstanceLike, request: Request) -> None:
        """The step that is about to start waits for the KV of `request`: see `_get`."""
        self._ports[instance.instance_id].joined(request)
