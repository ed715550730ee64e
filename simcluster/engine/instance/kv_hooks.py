"""What moving KV between instances adds to the steps of one; nothing in most deployments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import simpy

from simcluster.engine.instance.span import Span
from simcluster.engine.instance.state import InstanceState
from simcluster.request import Request
from simcluster.sched import StepPlan, target
from simcluster.units import on_grid

Put = Callable[[Sequence[int], int], Iterable[simpy.Event]]
"""Events that a step waits for: from the tokens of the prompts that it ended, and the place in ties
of its instance."""
Get = Callable[[Sequence[Request]], Iterable[simpy.Event]]
"""Events that a step waits for: from the requests that it takes in."""
OnOwnPrefill = Callable[[Request, int, float], None]
"""Hears of a prefill: the request, its tokens at the end, and the end of its first layer (s)."""


class KvHooks:
    """Waits of a KV connector inside the steps, and news of prefills for transfers by layers.

    Attributes
    ----------
    put : callable or None
        What a step waits for whose prompts have ended (`Put`).
    get : callable or None
        What a step waits for until it has the KV of the requests that it takes in (`Get`).
    computes : callable or None
        Hears when steps begin (True) and when they have ended (False).
    taken : list of Request
        Those that the step about to start takes in, where there is a `get`.
    on_prefill : callable or None
        Hears of every prefill that begins and ends with its step.
    num_layers : int
        Layers of the model, for `on_prefill`.
    """

    def __init__(self) -> None:
        self.put: Put | None = None
        self.get: Get | None = None
        self.computes: Callable[[bool], None] | None = None
        self.taken: list[Request] = []
        self.on_prefill: OnOwnPrefill | None = None
        self.num_layers = 1

    def taken_in(self, requests: Sequence[Request]) -> None:
        """Let the step about to start wait for the KV of `requests`, which are in its batch."""
        if self.get is not None:
            self.taken += requests

    def gets(self, plan: StepPlan, span: Span) -> Iterator[simpy.Event]:
        """Give what to wait for until the KV is there that the step of `plan` takes in.

        Meanwhile the step counts as begun: it has its blocks, and nothing cuts it.
        """
        assert self.get is not None, "asked only where there is something to wait for"
        plan.max_steps, plan.last_tokens = 1, 0  # the step that waits has a row of its own
        span.plan, span.num_steps, span.ends = plan, 1, []
        requests, self.taken = self.taken, []
        yield from self.get(requests)

    def began(self, plan: StepPlan, instance: InstanceState, on_prefill: OnOwnPrefill) -> None:
        """Say of every request whose prefill ends with the step of `plan` when its KV appears.

        The first layer ends when the GPU has done its share of the layers; the work of the host is
        taken to come before.
        """
        shape, now = instance.scheduler.shape(plan), instance.env.now
        gpu_s = instance.step_time.gpu_s(shape)
        end_s = now + instance.step_time.step_s(shape, instance.span.hidden_s)
        layer_end_s = end_s - on_grid(gpu_s * (self.num_layers - 1) / self.num_layers)
        for request, num_tokens in plan.chunks:
            total = request.num_computed_tokens + num_tokens
            if plan.max_steps == 1 and total == target(request):
                on_prefill(request, total, max(now, layer_end_s))

    def ended(self, plan: StepPlan, instance: InstanceState, order: int) -> Iterator[simpy.Event]:
        """Give what to wait for until the KV of the prompts that `plan` ended has been put."""
        assert self.put is not None, "asked only where there is something to wait for"
        span = instance.span
        # What asks for one more token and no others is not handed over.
        ended = plan.prompts_ended_by(span.num_steps)
        prompts = [target(r) for r in ended if r.output_len > r.num_output_tokens + 1]
        if prompts:
            yield from self.put(prompts, order)
            span.ends[span.num_steps - 1] = instance.env.now
