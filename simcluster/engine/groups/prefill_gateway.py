"""Front ends of prefill pools: what has been prefilled is handed over to a decode pool."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from simcluster.config import SloConfig
from simcluster.engine.clock import Clock
from simcluster.engine.groups.front_end import Gateway
from simcluster.engine.groups.handover import KvHandover
from simcluster.engine.instance import InstanceLike
from simcluster.request import Request, RequestStatus
from simcluster.routing import LeastLoaded, Router, TtftEstimate
from simcluster.sched import RequestQueue


class PrefillGateway(Gateway):
    """The front end of a prefill pool.

    Parameters
    ----------
    env, instances, router, on_finish, status_interval_s, pending
        As in `Gateway`.
    handover : KvHandover
        Takes what has been prefilled to the decode pool.
    follow_layers : int, optional
        Layers of the model: the KV cache follows the prefills layer by layer; default: it sets out
        when a prefill has ended.
    shows_first_token : bool
        Whether users get the first token from here, or from the decode pool.
    """

    def __init__(
        self,
        env: Clock,
        instances: Sequence[InstanceLike],
        router: Router,
        on_finish: Callable[[Request], None],
        *,
        handover: KvHandover,
        status_interval_s: float = 0.0,
        pending: RequestQueue | None = None,
        follow_layers: int | None = None,
        shows_first_token: bool = False,
    ) -> None:
        super().__init__(env, instances, router, on_finish, status_interval_s, pending=pending)
        self._handover = handover
        self._follow_layers = follow_layers
        self._shows_first_token = shows_first_token
        for instance in self.instances:
            self._set_up(instance)

    def _set_up(self, instance: InstanceLike) -> None:
        instance.shows_first_token = self._shows_first_token
        self._handover.follow(instance)
        if self._follow_layers is not None:
            instance.follow_prefills(self._handover.stream, self._follow_layers)

    def add(self, instance: InstanceLike) -> None:
        """Put `instance` into service."""
        super().add(instance)
        self._set_up(instance)

    def is_drained(self, instance: InstanceLike) -> bool:
        """Whether it has prefilled everything, and all the KV has left."""
        return super().is_drained(instance) and not self._handover.holds(instance)

    def prefilled(self, instance: InstanceLike, request: Request) -> None:
        """Send the request on, unless its one token ended it."""
        if request.status is RequestStatus.TRANSFERRING:
            self._handover.hand_over(instance, request)


class Conductor(PrefillGateway):
    """A front end that estimates TTFT and time between tokens (MoonCake, Algorithm 1).

    Parameters
    ----------
    env, instances, on_finish, handover, follow_layers, shows_first_token
        As in `PrefillGateway`.
    targets : SloConfig or None
        A request that is expected to miss those of its class is rejected; None: none is.
    """

    def __init__(
        self,
        env: Clock,
        instances: Sequence[InstanceLike],
        on_finish: Callable[[Request], None],
        *,
        handover: KvHandover,
        follow_layers: int | None = None,
        shows_first_token: bool = False,
        targets: SloConfig | None = None,
    ) -> None:
        super().__init__(
            env,
            instances,
            LeastLoaded(),  # not asked: the estimate chooses
            on_finish,
            handover=handover,
            follow_layers=follow_layers,
            shows_first_token=shows_first_token,
        )
        self._estimate = TtftEstimate()
        self._targets = targets

    def _place(self, request: Request, among: Collection[InstanceLike] | None = None) -> bool:
        index, ttft_s, prefill_s = self._estimate.choose(request, self.instances, self._env.now)
        instance = self.instances[index]
        targets = self._targets.of(request.slo_class) if self._targets is not None else None
        if targets is not None and self._misses(targets, instance, request, ttft_s):
            self.reject(request)
            return True
        self._estimate.sent(instance, request, prefill_s)
        instance.submit(request)
        return True

    def _misses(
        self, targets: SloConfig, instance: InstanceLike, request: Request, ttft_s: float
    ) -> bool:
        if targets.ttft_s is not None and ttft_s > targets.ttft_s:
            return True
        if targets.tpot_s is None:
            return False
        return self._handover.predicted_tbt_s(instance, request) > targets.tpot_s

    def prefilled(self, instance: InstanceLike, request: Request) -> None:
        """Keep the books of the estimate, and send the request on."""
        self._estimate.prefilled(instance, request)
        super().prefilled(instance, request)
