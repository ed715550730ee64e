"""Output that is computed and not yet released to its users."""

from __future__ import annotations

from simcluster.request import Request


class HeldOutput:
    """First and last tokens of an instance on their way to the users, held back where it is on.

    Attributes
    ----------
    is_on : bool
        While true, tokens are computed but not released.
    """

    def __init__(self) -> None:
        self.is_on = False
        self._first: list[Request] = []
        self._last: list[Request] = []

    def first_token(self, request: Request, now: float) -> None:
        """Release the first token of `request`, computed `now` (s), or hold it back."""
        if self.is_on:
            self._first.append(request)
        else:
            request.first_output_s = now

    def last_token(self, request: Request, now: float) -> None:
        """Release the last token of `request`, computed `now` (s), or hold it back."""
        if self.is_on:
            self._last.append(request)
        else:
            request.last_output_s = now

    def release(self, now: float) -> list[Request]:
        """Release all that is held back, `now` (s); return whose last token is among it."""
        for request in self._first:
            request.first_output_s = now
        for request in self._last:
            request.last_output_s = now
        done = self._last
        self._first, self._last = [], []
        return done
