"""EcoServe's overall scheduler: macro instances that grow, split, shrink and merge (mitosis).

EcoServe, section 3.5. Requests go to a macro instance here; within it rolling activation decides.
Instances move between macro instances as handlers: engine, KV cache and the books of the ring stay
as they are, so that a move takes no time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from simcluster.engine.clock import Clock
from simcluster.engine.groups.macro_instance import MacroInstance
from simcluster.engine.instance import InstanceLike, InstanceOwner
from simcluster.engine.log import Log
from simcluster.request import Request, RequestStatus

MakeMacro = Callable[[Sequence[InstanceLike]], MacroInstance]
"""Makes a macro instance of some instances."""


class Leaving(InstanceOwner):
    """Owner of an instance that has left its macro instance and finishes what it has."""

    def __init__(self, on_finish: Callable[[Request], None]) -> None:
        self._on_finish = on_finish

    def finished(self, instance: InstanceLike, request: Request) -> None:
        """Pass the news on."""
        self._on_finish(request)


class OverallScheduler:
    """Assigns requests to macro instances and keeps their sizes between the bounds.

    A request goes to the macro instance with the fewest unfinished requests per instance ("based on
    their capabilities", says the paper, and no more); among equals to the first after the last one.

    Parameters
    ----------
    env : Clock
        The run.
    groups : sequence of sequence of InstanceLike
        The instances of each macro instance.
    make : callable
        Makes a macro instance.
    on_finish : callable
        Called with every request that finishes in an instance that is leaving.
    bounds : tuple of (int, int), optional
        N_l and N_u; by default macro instances neither split nor merge.
    log : Log
        Where splits and merges are written down.

    Attributes
    ----------
    macros : list of MacroInstance
        In the order in which they were made.
    outstanding : list of Request
        Requests that entered and whose TTFT was not asked for yet; kept only if there are bounds.
    """

    def __init__(
        self,
        env: Clock,
        groups: Sequence[Sequence[InstanceLike]],
        make: MakeMacro,
        on_finish: Callable[[Request], None],
        *,
        log: Log,
        bounds: tuple[int, int] | None = None,
    ) -> None:
        self._env = env
        self._make = make
        self._leaving = Leaving(on_finish)
        self._bounds = bounds
        self._log = log
        self._last = -1
        self.macros: list[MacroInstance] = []
        self.outstanding: list[Request] = []
        for group in groups:
            self._new(group)

    def _new(self, instances: Sequence[InstanceLike]) -> MacroInstance:
        macro = self._make(instances)
        self.macros.append(macro)
        return macro

    def submit(self, request: Request) -> None:
        """Give `request` to a macro instance."""
        if self._bounds is not None:
            self.outstanding.append(request)
        macros = self.macros
        if len(macros) == 1:
            macros[0].submit(request)
            return
        count = len(macros)
        best, least = -1, 0.0
        for step in range(1, count + 1):
            index = (self._last + step) % count
            macro = macros[index]
            load = macro.num_unfinished / len(macro.instances)
            if best < 0 or load < least:
                best, least = index, load
        self._last = best
        macros[best].submit(request)

    def close(self, now: float) -> None:
        """Close the open windows, because the run is over at `now` (s)."""
        for macro in self.macros:
            macro.close(now)

    # --- mitosis --------------------------------------------------------------------------------

    @property
    def instances(self) -> list[InstanceLike]:
        """The instances in service."""
        return [instance for macro in self.macros for instance in macro.instances]

    def add(self, instance: InstanceLike) -> None:
        """Expand by `instance`: into the first macro instance that is not full.

        Where all are full the last one takes it and splits: N_l instances become a new one.
        """
        lower, upper = self._bounds or (1, len(self.instances) + 1)
        room = [macro for macro in self.macros if len(macro.instances) < upper]
        target = room[0] if room else self.macros[-1]
        target.add(instance)
        self._write("join", instance.instance_id, target)
        if len(target.instances) > upper:
            self._split(target, lower)

    def _split(self, macro: MacroInstance, lower: int) -> None:
        """Let `lower` instances of `macro` become a macro instance: the last of its ring.

        Those are the ones whose turn would come last, so the open window stays.
        """
        ring = macro.instances
        start = macro.activation.current
        moving = [ring[(start - k) % len(ring)] for k in range(lower, 0, -1)]
        rings = [macro.remove(instance) for instance in moving]
        new = self._new([])
        for instance, books in zip(moving, rings, strict=True):
            new.add(instance, books)
        self._write("split", -1, new)

    def drain(self) -> InstanceLike:
        """Contract by one instance and return it: it gets no more requests.

        It leaves the smallest macro instance while that has more than N_l; then the next larger
        one, until both together hold N_u and merge. The one with the fewest unfinished requests
        goes, if possible not the one whose window is open.
        """
        lower, upper = self._bounds or (1, len(self.instances))
        by_size = sorted(self.macros, key=lambda macro: len(macro.instances))
        small = by_size[0]
        source = small
        if len(small.instances) <= lower and len(by_size) > 1:
            source = by_size[1]
        rule = source.activation
        index = min(
            range(len(source.instances)),
            key=lambda k: (rule.is_open and k == rule.current, rule.rings[k].num_unfinished, -k),
        )
        instance = source.instances[index]
        source.remove(instance)
        instance.owner = self._leaving
        self._write("drain", instance.instance_id, source)
        others = [macro for macro in by_size[:2] if macro is not source]
        if others and len(source.instances) + len(others[0].instances) <= upper:
            self._merge(*sorted((source, others[0]), key=lambda macro: macro.macro_id))
        return instance

    def _merge(self, kept: MacroInstance, gone: MacroInstance) -> None:
        """Move instances and waiting requests of `gone` to `kept`."""
        waiting = gone.pending.drain()
        for instance in list(gone.instances):
            books = gone.remove(instance)
            kept.add(instance, books)
        gone.num_unfinished = 0
        self.macros.remove(gone)
        self._last = -1
        kept.take_pending(waiting)
        self._write("merge", -1, kept)

    def is_drained(self, instance: InstanceLike) -> bool:
        """Whether an instance that was drained has finished everything."""
        return not instance.has_unfinished

    def _write(self, event: str, instance_id: int, macro: MacroInstance) -> None:
        number, size = macro.macro_id, len(macro.instances)
        self._log.add((self._env.now, event, instance_id, number, size, len(self.instances)))

    # --- what mitosis goes by -------------------------------------------------------------------

    def mean_ttft_s(self, now: float) -> float:
        """Mean TTFT (s) of the requests that began to decode since this was asked last.

        TTFT as in the paper, to the first decode step. Those that no instance could take yet count
        with the time they have waited. 0 if there is neither.
        """
        begun, left = [], []
        for request in self.outstanding:
            if request.decode_start_s <= now:
                begun.append(request.decode_start_s - request.arrival_s)
            elif request.status is not RequestStatus.REJECTED:
                left.append(request)
        self.outstanding = left
        waited = [now - r.arrival_s for macro in self.macros for r in macro.pending]
        both = begun + waited
        return sum(both, 0.0) / len(both) if both else 0.0

    def saved_tpot_s(self, now: float) -> list[tuple[float, int]]:
        """Mean saved TPOT (s) and instances of each macro instance."""
        return [
            (macro.activation.saved_tpot_s(macro.instances, now), len(macro.instances))
            for macro in self.macros
        ]
