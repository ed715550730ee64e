"""KV connectors that work inside the steps, as in vLLM's V0 engine (late 2024 to early 2025).

The prefill step does not return before the KV of the prompts that it ended is put into a buffer;
a full buffer stops the instance. The decode step that takes a request in waits for its KV while the
whole batch stands still (vLLM 0.6.4 to 0.8: ``vllm/distributed/kv_transfer``,
``worker/model_runner.py``, ``kv_lookup_buffer/simple_buffer.py``). Connectors of today move KV
beside the steps: `simcluster.engine.groups.handover`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

import simpy

from simcluster.config import ModelConfig, SequenceKv
from simcluster.engine.clock import STEP_END, TRANSFER_END, At, Clock
from simcluster.engine.groups.handover import DecodePort, KvHandover
from simcluster.engine.instance import Instance, InstanceLike
from simcluster.engine.links.link import LinkNetwork
from simcluster.engine.log import Log
from simcluster.errors import InvariantError
from simcluster.request import Request
from simcluster.routing.base import Router
from simcluster.units import on_grid


@dataclass(frozen=True, slots=True)
class ConnectorRates:
    """How fast KV passes a connector that works inside the steps."""

    put_bytes_per_s: float
    get_bytes_per_s: float
    """Of all ranks of an instance together (bytes/s); infinite for a side that does not wait."""
    poll_s: float
    """Wait until a request that has come is noticed (s), for each get."""
    buffer_bytes: float
    """KV that a prefill instance holds for the decode side before it stops (bytes)."""


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
    """

    def __init__(self, env: Clock, rates: ConnectorRates, kv: SequenceKv) -> None:
        self._env = env
        self._rates = rates
        self._kv = kv
        self._held_bytes = 0
        self._room: simpy.Event | None = None

    def put(self, prompts: Sequence[int], order: int) -> Generator[simpy.Event, Any, None]:
        """Let an instance wait until the KV of prompts of these lengths (tokens) is in the buffer.

        An empty buffer takes any prompt; `order` is the place of the instance in ties.
        """
        num_bytes = sum(map(self._kv.num_bytes, prompts))
        while self._held_bytes and self._held_bytes + num_bytes > self._rates.buffer_bytes:
            self._room = simpy.Event(self._env)
            yield self._room
        self._held_bytes += num_bytes
        seconds = on_grid(num_bytes / self._rates.put_bytes_per_s)
        if seconds:
            yield At(self._env, self._env.now + seconds, STEP_END + order)

    def got(self, num_tokens: int) -> None:
        """Forget the KV of a prompt of `num_tokens` tokens, which the decode side has."""
        self._held_bytes -= self._kv.num_bytes(num_tokens)
        if self._room is not None and not self._room.triggered:
            self._room.succeed()


class StepConnector(KvHandover):
    """Moves requests from prefill to decode instances inside their steps.

    Parameters
    ----------
    env, network, decode, router, model, on_finish
        As in `KvHandover`.
    rates : ConnectorRates
        How long steps wait.
    log : Log
        Where the transfers go.
    """

    def __init__(
        self,
        env: Clock,
        network: LinkNetwork,
        decode: Sequence[InstanceLike],
        *,
        router: Callable[[], Router],
        model: ModelConfig,
        on_finish: Callable[[Request], None],
        rates: ConnectorRates,
        log: Log,
    ) -> None:
        super().__init__(
            env,
            network,
            decode,
            router=router,
            paths=lambda source, destination: ((),),
            reaches=lambda source, destination: True,
            model=model,
            on_finish=on_finish,
        )
        self._rates = rates
        self._log = log
        self._buffers: dict[int, Buffer] = {}
        for instance in decode:
            self._serve(instance)

    def _serve(self, instance: InstanceLike) -> None:
        if not isinstance(instance, Instance):
            raise InvariantError("pipelines have no connector inside their steps")
        instance.hooks.get_s = self.get_s

    def get_s(self, requests: Sequence[Request]) -> float:
        """Time that a step waits for the KV of the requests that it takes in (s)."""
        num_bytes = sum([self._kv.num_bytes(r.num_computed_tokens) for r in requests])
        return on_grid(len(requests) * self._rates.poll_s + num_bytes / self._rates.get_bytes_per_s)

    def follow(self, instance: InstanceLike) -> None:
        """Let the steps of the prefill instance `instance` end when their KV has been put."""
        if not isinstance(instance, Instance):
            raise InvariantError("pipelines have no connector inside their steps")
        buffer = Buffer(self._env, self._rates, self._kv)
        self._buffers[instance.instance_id] = buffer
        instance.hooks.put = buffer.put

    def add(self, instance: InstanceLike) -> None:
        """Put the decode instance `instance` into service."""
        super().add(instance)
        self._serve(instance)

    def _start_transfers(self, port: DecodePort) -> None:
        """Let requests join as soon as there is room: their KV comes inside the step."""
        while port.queue and port.has_room(port.queue[0].request):
            move = port.queue.popleft()
            port.reserve(move.request, move.request.num_computed_tokens)
            self._first_copy_ended(move)

    def joined(self, instance: InstanceLike, request: Request) -> None:
        """The step that is about to start waits for the KV of `request`, and then holds it."""
        wait_s = self.get_s([request])
        now = self._env.now
        source = self._buffers[request.prefill_instance]
        num_tokens = request.prompt_len  # it may have been preempted at once
        arrival = At(self._env, now + wait_s, TRANSFER_END)
        arrival.callbacks.append(lambda _: source.got(num_tokens))
        path = f"instance-{request.prefill_instance} to instance-{instance.instance_id} in steps"
        num_bytes = self._kv.num_bytes(num_tokens)
        requested_s = request.first_token_s
        self._log.add((request.request_id, path, num_bytes, requested_s, now, now + wait_s))
        request.transfer_s = now + wait_s - request.first_token_s
        super().joined(instance, request)
