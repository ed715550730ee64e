"""From settings to the requests of one run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from simcluster.errors import ConfigError
from simcluster.rng import stream
from simcluster.units import MAX_TIME_S, IntArray, grid_array
from simcluster.workload.base import MAX_RATE_RPS, BoolArray, Offer, Workload
from simcluster.workload.classes import choices
from simcluster.workload.lengths import drawn as drawn_lengths
from simcluster.workload.settings import RequestClass, WorkloadSettings


def build(
    settings: WorkloadSettings, *, seed: int, rate_rps: float | None, max_model_len: int
) -> Workload:
    """Draw the requests of one run.

    The same seed gives the same requests whatever the strategy, and at another rate the same
    requests closer together or further apart.

    Parameters
    ----------
    settings : WorkloadSettings
        The table ``[workload]``, its paths resolved (``with_base``).
    seed : int
        Seed of the run, >= 0; streams ``"arrivals"``, ``"lengths"`` and ``"classes"`` are drawn
        from.
    rate_rps : float or None
        Offered rate (requests/s) of a sweep; None for ``settings.rate_rps``, and where that is
        None too, for the rate of the trace, schedule or clients.
    max_model_len : int
        Longest prompt plus output (tokens) that is served, >= 2.

    Returns
    -------
    Workload
        Sorted by arrival, times on the grid.

    Raises
    ------
    ConfigError
        If a rate is not above 0 or missing, a length table is unknown, no request arrives, the
        arrivals last longer than the time grid, or a request is too long under
        ``on_too_long = "error"``.
    DataError
        If a trace or clients file cannot be used.
    """
    rate_rps = settings.rate_rps if rate_rps is None else rate_rps
    if rate_rps is not None and not 0 < rate_rps <= MAX_RATE_RPS:
        rule = f"a rate must be above 0 and at most {MAX_RATE_RPS:g} requests/s"
        raise ConfigError("workload.rate_rps", rate_rps, rule, "Change or leave out the rate.")
    if max_model_len < 2:
        raise ConfigError(
            "engine.max_model_len",
            max_model_len,
            "must hold a prompt and an output token",
            "Raise it to 2 or more.",
        )
    lengths = settings.shared_lengths
    drawn = settings.arrival_process.draw(
        Offer(
            num_requests=settings.num_requests,
            duration_s=settings.duration_s,
            rate_rps=rate_rps,
            needs_lengths=lengths is None,
        ),
        seed,
    )
    arrival_s = drawn.arrival_s
    if not arrival_s.max() < MAX_TIME_S:
        raise ConfigError(
            "workload.rate_rps" if rate_rps is not None else "workload",
            rate_rps,
            f"the last of {len(arrival_s)} requests arrives at {arrival_s.max():g} s, later than "
            f"the {MAX_TIME_S:.0f} s (24 days) of the time grid",
            "Raise the rate, ask for fewer requests, or cut a window (start_s, end_s) of a trace.",
        )
    hashes = drawn.hashes if lengths is None else None
    lengths = lengths or drawn.lengths
    assert lengths is not None, "settings without lengths have arrivals with lengths"
    # As many requests as fit are drawn: nothing of their number is kept twice.
    arrival_s = grid_array(arrival_s)
    drawn = replace(drawn, arrival_s=arrival_s)
    asked = prompt_len, output_len = drawn_lengths(lengths, len(arrival_s), stream(seed, "lengths"))
    slo_class = priority = None
    if settings.classes:
        which = choices(settings.shares, len(arrival_s), stream(seed, "classes"))
        slo_class = np.array([c.name for c in settings.classes], dtype=object)[which]
        slo_class.setflags(write=False)
        priority = np.array([c.priority for c in settings.classes], dtype=np.int64)[which]
        prompt_len, output_len = _own_lengths(settings.classes, which, asked, seed)
    prompt_len, output_len, rejected = fit(
        prompt_len, output_len, max_model_len, settings.on_too_long
    )
    if hashes is not None:
        hashes = hashes.of_requests(0, len(arrival_s))
        whole = (prompt_len == asked[0]) & (output_len == asked[1])
        hashes = hashes.cut_to(np.where(whole, hashes.num_tokens, prompt_len))
    for array in (arrival_s, prompt_len, output_len, rejected):
        array.setflags(write=False)
    return Workload(
        arrival_s=arrival_s,
        prompt_len=prompt_len,
        output_len=output_len,
        rejected=rejected,
        concurrency=drawn.concurrency,
        rate_rps=drawn.rate_rps,
        notes=drawn.notes,
        hashes=hashes,
        turns=drawn.turns,
        slo_class=slo_class,
        priority=priority,
    )


def _own_lengths(
    classes: Sequence[RequestClass],
    which: IntArray,
    asked: tuple[IntArray, IntArray],
    seed: int,
) -> tuple[IntArray, IntArray]:
    """Return `asked` with the lengths of classes that have their own in the place of the shared."""
    prompt_len, output_len = (lengths.copy() for lengths in asked)
    for number, one in enumerate(classes):
        if (lengths := one.length_distribution) is not None:
            drawn = lengths.draw(len(which), stream(seed, "lengths", one.name))
            for own, shared in zip(drawn, (prompt_len, output_len), strict=True):
                shared[which == number] = own[which == number]
    return prompt_len, output_len


def fit(
    prompt_len: IntArray, output_len: IntArray, max_model_len: int, on_too_long: str
) -> tuple[IntArray, IntArray, BoolArray]:
    """Return prompts and outputs that fit, and which requests are rejected.

    Parameters
    ----------
    prompt_len, output_len : ndarray of int64
        Tokens asked, shape ``(n,)``.
    max_model_len : int
        Longest prompt plus output (tokens).
    on_too_long : str
        ``"reject"`` marks the longer requests and leaves them as they are; ``"truncate"`` cuts
        the prompt to ``max_model_len - 1`` and then the output to what is left; ``"error"``
        refuses them.

    Raises
    ------
    ConfigError
        If a request is too long under ``"error"``.
    """
    too_long = prompt_len + output_len > max_model_len
    if on_too_long == "reject":
        return prompt_len, output_len, too_long
    if on_too_long == "error" and too_long.any():
        first = int(np.argmax(too_long))
        raise ConfigError(
            "workload.on_too_long",
            on_too_long,
            f"{np.count_nonzero(too_long)} of {len(too_long)} requests are longer than "
            f"max_model_len ({max_model_len}), the first is request {first} with "
            f"{prompt_len[first]} + {output_len[first]} tokens",
            'Raise engine.max_model_len, or choose "reject" or "truncate".',
        )
    prompt_len = np.minimum(prompt_len, max_model_len - 1)
    output_len = np.minimum(output_len, max_model_len - prompt_len)
    return prompt_len, output_len, np.zeros_like(too_long)
