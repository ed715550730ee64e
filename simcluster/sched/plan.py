"""Plans: which tokens the next steps of an instance compute, and what came of them."""

from __future__ import annotations

from simcluster.request import Request
from simcluster.roofline.base import StepShape


class StepPlan:
    """What the next steps of an instance compute.

    Attributes
    ----------
    kind : str
        ``"prefill"``, ``"decode"`` or ``"mixed"``.
    num_decodes, context_tokens : int
        Decoding sequences, and the tokens they attend to in the first step, summed.
    chunks : tuple of (Request, int)
        Requests with a prefill chunk, and the new tokens of each. Over several steps it is one
        request, whose chunks take all that the decodes leave of the token budget.
    max_steps : int
        For how many steps the plan stays valid if nothing arrives.
    last_tokens : int
        New tokens of the chunk in the last of those steps if it ends the prompt and is not the
        first; else 0.
    """

    __slots__ = ("chunks", "context_tokens", "kind", "last_tokens", "max_steps", "num_decodes")

    def __init__(
        self,
        kind: str,
        num_decodes: int,
        context_tokens: int,
        chunks: tuple[tuple[Request, int], ...],
        max_steps: int,
        last_tokens: int = 0,
    ) -> None:
        self.kind = kind
        self.num_decodes = num_decodes
        self.context_tokens = context_tokens
        self.chunks = chunks
        self.max_steps = max_steps
        self.last_tokens = last_tokens

    @property
    def prefill_tokens(self) -> int:
        """New prefill tokens of the first step."""
        return sum([n for _, n in self.chunks])

    @property
    def cached_tokens(self) -> int:
        """Tokens of the requests with a chunk that are in the cache before the first step."""
        return sum([request.num_computed_tokens for request, _ in self.chunks])

    @property
    def closed_steps(self) -> int:
        """For how many steps no newcomer can join, because a prompt takes the whole budget."""
        if not self.chunks or self.max_steps == 1:
            return 0
        return self.max_steps - 1 if self.last_tokens else self.max_steps

    def prompts_ended_by(self, num_steps: int) -> list[Request]:
        """Requests whose prefill ends with the first `num_steps` steps; before they are booked."""
        if self.last_tokens:
            return [self.chunks[0][0]] if num_steps == self.max_steps else []
        if num_steps > 1:
            return []
        return [r for r, n in self.chunks if r.num_computed_tokens + n == target(r)]

    def last_step(self) -> StepPlan:
        """Return the plan of the last step alone, where its chunk is smaller than the others."""
        earlier, size = self.max_steps - 1, self.num_decodes
        context = self.context_tokens + earlier * size
        chunks = ((self.chunks[0][0], self.last_tokens),)
        return StepPlan(self.kind, size, context, chunks, 1)

    def shape(self, window_tokens: int | None = None, step: int = 0) -> StepShape:
        """Shape of step number `step`, from 0, for the step-time model.

        `window_tokens` is the window-capped sum of the contexts then; None in a model without a
        sliding window.
        """
        size = self.num_decodes
        context = self.context_tokens + step * size
        chunks: tuple[tuple[int, int], ...] = ()
        ending = 0
        if step and self.chunks:
            ((request, tokens),) = self.chunks
            cached = request.num_computed_tokens + step * tokens
            if self.last_tokens and step == self.max_steps - 1:
                tokens, ending = self.last_tokens, 1
            chunks = ((tokens, cached),)
        elif self.chunks:
            chunks = tuple([(n, request.num_computed_tokens) for request, n in self.chunks])
            for request, n in self.chunks:
                ending += request.num_computed_tokens + n == target(request)
        return StepShape(
            size,
            context,
            chunks,
            size + ending,
            context if window_tokens is None else window_tokens,
        )


class StepOutcome:
    """What the steps of a plan brought about.

    Attributes
    ----------
    prefilled : list of Request
        Their prompt is computed and they produced a token.
    finished : list of Request
        They produced their last token.
    """

    __slots__ = ("finished", "prefilled")

    def __init__(self) -> None:
        self.prefilled: list[Request] = []
        self.finished: list[Request] = []


def target(request: Request) -> int:
    """Tokens a prefill of `request` computes: prompt, and what was output before a preemption."""
    return request.prompt_len + request.num_output_tokens
