"""A scenario file made of a few facts: what ``simcluster init`` writes and ``plan`` asks."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from simcluster.errors import ConfigError
from simcluster.units import MS
from simcluster.workload.base import MAX_RATE_RPS

SPREAD: Final = 0.8
"""Standard deviation of the logarithm of lengths where nobody says it.

An assumption: the median over the length tables of the catalogue, which have 0.2 to 2 (half the
logarithm of P84 over P16; one synthetic trace has prompts of 3.2)."""
_LONGEST: Final = 20
"""Longest length, in medians: an assumption.

With the spread above 0.009 % are longer; the file says which share a spread cuts."""
_OUTPUTS: Final = 4
"""The longest output of a request that fills the model's context is the context over this, at most,
where the median is below it: an assumption."""
NODE: Final = 8
"""GPUs of a node, as in most servers of the catalogue."""
_PARTS: Final = (0.5, 0.75, 1.0, 1.25, 1.5)
"""Rates of the sweep, in parts of the rate that is expected."""
LATENCIES: Final = ("ttft", "tpot")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A latency target: of which latency, for which share of the requests, how long."""

    latency: str
    """``"ttft"`` or ``"tpot"``."""
    percentile: int
    """Per cent of the requests that must be within the limit."""
    limit_s: float
    """Longest latency (s)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a scenario is made of."""

    model: str
    """Name in the catalogue, or path of a ``config.json`` or its folder."""
    gpu: str
    """Name in the catalogue."""
    num_gpus: int = NODE
    """GPUs, in nodes of eight."""
    prompt_len: int = 1000
    """Median prompt (tokens)."""
    output_len: int = 200
    """Median output (tokens)."""
    spread: float = SPREAD
    """Standard deviation of the logarithm of both; 0: all alike."""
    targets: Sequence[Target] = ()
    rate_rps: float | None = None
    """Requests/s that are expected."""
    price_per_gpu_hour: float | None = None
    """Price of a GPU; default: that of the catalogue."""
    currency: str = "USD"
    command: str = ""
    """The command that it was made by, for the first line."""
    context: int | None = None
    """Tokens that the model takes, prompt and output together; None if that is not known: then the
    lengths may be longer."""

    def __post_init__(self) -> None:
        """Check what no table of the file checks.

        Raises
        ------
        ConfigError
            If GPUs are not whole nodes, a latency has two targets, or the rates around the one
            that is given are more than any can be.
        """
        most = MAX_RATE_RPS / max(_PARTS)
        if self.rate_rps is not None and math.isfinite(self.rate_rps) and self.rate_rps > most:
            raise ConfigError(
                "--rate", self.rate_rps, f"must be at most {most:.3g} requests/s", "Lower it."
            )
        if self.num_gpus > NODE and self.num_gpus % NODE:
            more = -(-self.num_gpus // NODE) * NODE
            rule = f"more than one node must be whole nodes of {NODE} GPUs"
            raise ConfigError("--gpus", self.num_gpus, rule, f"Write {more}, or up to {NODE}.")
        named = [target.latency for target in self.targets]
        for latency in named:
            if named.count(latency) > 1:
                rule = "has two targets; a latency has one, at one percentile"
                raise ConfigError(f"--{latency}", None, rule, "Leave one of them out.")

    def text(self, tp_size: int | None = None, why: str = "") -> str:
        """Return the file, with comments.

        Parameters
        ----------
        tp_size : int, optional
            GPUs of an instance of the strategies to compare; without it there are none, and the
            rate is a need: all that fits is tried by ``simcluster rank``.
        why : str
            The reason for this degree, for a comment.
        """
        parts = [self._head(), self._machines(), self._workload(), self._slo()]
        parts.append(self._rank() if tp_size is None else self._to_compare(tp_size, why))
        return "\n".join(parts)

    def _head(self) -> str:
        made = f"Made by `{self.command}`.\n# " if self.command else ""
        return (
            f"# {made}Edit it: `simcluster check FILE` says what fits, docs/scenario.md has\n"
            "# every key, `simcluster show FILE` fills in all defaults.\n\n"
            f"[model]\nname = {json.dumps(self.model)}"
            "  # of the catalogue, or a folder with config.json\n"
        )

    def _machines(self) -> str:
        nodes = -(-self.num_gpus // NODE)
        lines = [
            "[cluster]",
            f"gpu = {json.dumps(self.gpu)}  # `simcluster catalog --kind gpu`",
            f"nodes = {nodes}",
            f"gpus_per_node = {min(self.num_gpus, NODE)}",
        ]
        if nodes > 1:
            lines.append('# network = "100gbe"  # between nodes: `simcluster catalog --kind link`')
        if self.price_per_gpu_hour is None:
            lines.append(
                "# price_per_gpu_hour = 2.5  # your own; else the catalogue's, if it has one"
            )
        else:
            lines.append(f"price_per_gpu_hour = {self.price_per_gpu_hour!r}")
            lines.append(f"currency = {json.dumps(self.currency)}")
        return "\n".join([*lines, ""])

    def _workload(self) -> str:
        head = '[workload]\narrivals = "poisson"  # many users who do not know of each other\n'
        if not self.spread:
            lengths = f"prompt_len = {self.prompt_len}\noutput_len = {self.output_len}\n"
            return f'{head}\n[workload.lengths]\nkind = "fixed"  # all requests alike\n{lengths}'
        said = "assumed: measured are 0.2 to 2" if self.spread == SPREAD else "as given"
        prompts, outputs = self._longest()
        how = f"{_LONGEST} medians"
        if prompts < _LONGEST * self.prompt_len:
            how = f"model: {self.context} tokens"
        return (
            f"{head}\n[workload.lengths]"
            "  # or lengths = NAME (`catalog --kind lengths`)\n"
            'kind = "lognormal"\n'
            f"prompt_median = {self.prompt_len}\n"
            f"prompt_sigma = {self.spread:g}  # spread of the logarithm; {said}\n"
            f"prompt_max = {prompts}"
            f"  # {how}; {_cut(self.spread, prompts / self.prompt_len)} are longer, cut to "
            "this\n"
            f"output_median = {self.output_len}\n"
            f"output_sigma = {self.spread:g}\n"
            f"output_max = {outputs}\n"
        )

    def _longest(self) -> tuple[int, int]:
        """Return the longest prompt and the longest output, which the model takes together."""
        prompts, outputs = _LONGEST * self.prompt_len, _LONGEST * self.output_len
        if self.context is not None and prompts + outputs > self.context:
            outputs = min(outputs, max(self.output_len, self.context // _OUTPUTS))
            prompts = min(prompts, max(self.prompt_len, self.context - outputs))
        return prompts, outputs

    def _slo(self) -> str:
        lines = ["[slo]"]
        for target in self.targets:
            shown = (
                f"{target.limit_s:g} s" if target.limit_s >= 1 else f"{target.limit_s / MS:g} ms"
            )
            lines.append(f"{target.latency}_s = {target.limit_s!r}  # {shown}")
        shares = [target.percentile for target in self.targets]
        lines.append(f"attainment = {max(shares, default=90) / 100:g}")
        if len(self.targets) > 1:
            lines.append('criterion = "marginal"  # each target by itself; "joint": both at once')
        if len(set(shares)) > 1:
            each = ", ".join(f"{t.latency} = {t.percentile}" for t in self.targets)
            lines.append(f"percentiles = {{ {each} }}")
        return "\n".join([*lines, ""])

    @property
    def allows_padg(self) -> bool:
        """Whether PaDG can be simulated: its instances take turns by both targets."""
        return {target.latency for target in self.targets} == set(LATENCIES)

    def _rank(self) -> str:
        assert self.rate_rps is not None, "a plan is for a rate"
        some = 'strategies = ["nodg", "chunked", "fudg-intra", "fudg-inter"]'
        return (
            "[rank]  # every strategy, parallelism and split that fits (docs/rank.md)\n"
            + ("" if self.allows_padg else f"{some}  # PaDG needs both targets\n")
            + f"need_rps = {self.rate_rps!r}\n"
            "tolerance = 0.05  # half width of the 95 % intervals\n"
        )

    def _to_compare(self, tp_size: int, why: str) -> str:
        rate = self.rate_rps or 4.0
        rates = sorted({float(f"{rate * part:.3g}") for part in _PARTS})
        need = "" if self.rate_rps is None else f"# need_rps = {self.rate_rps:g}\n"
        strategies = [
            ("every instance prefills and decodes (NoDG)", "chunked prefill", "nodg"),
            ("instances take turns with prefills (PaDG)", "EcoServe", "padg"),
            ("prefill and decode instances, KV moves between them (FuDG)", "split", "fudg"),
        ]
        if not self.allows_padg:
            del strategies[1]
        if self.num_gpus < 2 * tp_size:
            strategies = strategies[:1]  # the others need two instances
        tables = [
            f"[[strategy]]  # {what}\nname = {json.dumps(name)}\nkind = {json.dumps(kind)}\n"
            + ('scheduler = "chunked"\n' if kind == "nodg" else "")
            + f"tp_size = {tp_size}{f'  # {why}' if why and not number else ''}\n"
            for number, (what, name, kind) in enumerate(strategies)
        ]
        return "\n".join(
            [
                "[sweep]  # for `compare`; `goodput` and `rank` find the rates by themselves",
                f"rates_rps = {rates}\n",
                "[rank]  # the space of `rank`: all that fits, unless you narrow it",
                need,
                *tables,
            ]
        )


def _cut(spread: float, longest: float = _LONGEST) -> str:
    """Return which share of the lengths is above the longest, in medians.

    >>> _cut(0.8), _cut(3.0)
    ('0.009 %', '16 %')
    """
    deviations = math.log(longest) / spread
    return f"{50 * math.erfc(deviations / math.sqrt(2)):.2g} %"
