"""The facts of a scenario as text: a table per strategy, then links, accuracy, what is left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from simcluster.scenario.scenario import Scenario
from simcluster.show.terminal import filled
from simcluster.show.text import aligned, all_notes, heading
from simcluster.units import GB, MS

Facts = dict[str, Any]
"""What `facts.facts` returns."""
_Cell = Callable[[Facts], str | None]


def check_text(scenario: Scenario, known: Facts) -> str:
    """Return the heading of `scenario` and `check_lines`."""
    return f"{heading(scenario)}\n\n{check_lines(scenario, known)}\n"


def check_lines(scenario: Scenario, known: Facts) -> str:
    """Return what `known` says of every strategy, and how well it is known.

    Notes that the heading of `scenario` has are left out: it stands beside these lines.
    """
    parts = [_requests(known["requests"]), _engine(known["engine"])]
    parts += [_strategy(one, known["requests"]) for one in known["strategies"]]
    if known["links"]:
        parts.append(_links(known["links"]))
    parts.append(_accuracy(known["accuracy"]))
    said = set(all_notes(scenario))
    if notes := [note for note in known["notes"] if note not in said]:
        lines = (filled(f"- {note}") for note in notes)
        parts.append("\n".join(["Assumed, not used or not simulated:", *lines]))
    return "\n\n".join(parts)


def _requests(of: Facts) -> str:
    """Return the requests in one paragraph."""
    rate = "as answers decide" if of["rate_rps"] is None else f"at {of['rate_rps']:.4g} a second"
    if of["rate_rps"] is None and of["any_rate"]:
        rate = "at any rate"
    if of["concurrency"] is not None:
        rate = f"from {of['concurrency']} users, each after the answer before"
    median, mean = of["median"], of["mean"]
    text = (
        f"{of['num_requests']:,} requests {rate}; median {median['prompt_len']:,} + "
        f"{median['output_len']:,} tokens, mean {mean['prompt_len']:,.0f} + "
        f"{mean['output_len']:,.0f}"
    )
    if of["reused_token_share"] is not None:
        share = 100 * of["reused_token_share"]
        text += f"; a prefix cache without end holds {share:.1f} % of the prompt tokens"
    return filled(text)


def _engine(engine: Facts) -> str:
    """Return the defaults of the engine that are in use where a strategy says nothing."""
    shown = [
        f"{key} = {str(value).lower() if isinstance(value, bool) else value}"
        for key, value in engine.items()
        if value is not None
    ]
    return filled(f"Engine defaults in use: {', '.join(shown)}")


def _strategy(one: Facts, requests: Facts) -> str:
    """Return a table with a column per pool of instances, and the lines below it."""
    pools = one["pools"]
    rows = [[label, *(cell(pool) or "" for pool in pools)] for label, cell in _rows(requests)]
    heads = ["", *(_title(pool, pools) for pool in pools)]
    rows = [row for row in rows if any(row[1:])]
    table = aligned([heads, *rows])
    return "\n".join(
        [f"{one['name']} ({one['kind']}) on {one['num_gpus']} GPUs", "", table, *_below(one)]
    )


def _title(pool: Facts, pools: Sequence[Facts]) -> str:
    several = len({(each["model"], each["gpu"]) for each in pools}) > 1
    return f"{pool['role']} {pool['model']}, {pool['gpu']}" if several else str(pool["role"])


def _degrees(pool: Facts) -> str:
    """Degrees of parallelism of an instance, those of experts and data where there are any."""
    parts = [f"{pool['tp_size']} x {pool['pp_size']}"]
    parts += [f"data {pool['dp_size']}"] if pool["dp_size"] > 1 else []
    parts += [f"experts {pool['ep_size']}"] if pool["ep_size"] > 1 else []
    return ", ".join(parts)


def _rows(requests: Facts) -> list[tuple[str, _Cell]]:
    """Return labels and cells of the table of a strategy."""
    prompt, output = requests["median"]["prompt_len"], requests["median"]["output_len"]
    return [
        ("instances", lambda p: f"{p['instances']:,}"),
        ("GPUs of one (tensor x pipeline)", _degrees),
        ("scheduler", lambda p: str(p["scheduler"])),
        ("most tokens of a step", lambda p: f"{p['max_num_batched_tokens']:,}"),
        ("most sequences (max_num_seqs)", lambda p: f"{p['max_num_seqs']:,}"),
        ("weights per GPU (GB)", lambda p: f"{p['weight_bytes_per_gpu'] / GB:.2f}"),
        ("KV of a token per GPU (bytes)", lambda p: f"{p['kv_bytes_per_token_per_gpu']:,.0f}"),
        ("KV cache per GPU (GB)", lambda p: f"{p['kv_bytes_per_gpu'] / GB:.2f}"),
        ("KV pool of an instance (tokens)", lambda p: f"{p['kv_pool_tokens']:,}"),
        ("median requests that its memory holds", lambda p: f"{p['batch_in_memory']:,}"),
        ("largest batch of them", lambda p: f"{p['batch']:,}"),
        (f"prefill of {prompt:,} tokens alone (ms)", lambda p: _ms(p, "prefill_s")),
        (
            f"decode step of 1, context {prompt + max(1, output // 2):,} (ms)",
            lambda p: _ms(p, "decode_s"),
        ),
        ("decode step of the largest batch (ms)", lambda p: _ms(p, "decode_s_of_batch")),
    ]


def _ms(pool: Facts, key: str) -> str | None:
    return f"{pool[key] / MS:.3g}" if key in pool else None


def _below(one: Facts) -> list[str]:
    """Return the lines below a table: first token, transfer, bounds."""
    lines = [f"First token of a median request alone: {one['first_token_s'] / MS:.4g} ms"]
    if (move := one["transfer"]) is not None:
        lines.append(_transfer(move))
    bound = one["bound"]
    parts = [
        f"{what} {bound[key]:.4g}"
        for what, key in (
            ("API servers alone", "api_rps"),
            ("prefills alone", "prefill_rps"),
            ("decodes alone", "decode_rps"),
            ("KV transfers alone", "transfer_rps"),
        )
        if bound.get(key) is not None
    ]
    if bound["total_rps"] is None:
        lines.append("Requests/s at most: not known for this kind of strategy")
        return lines
    text = f"Requests/s at most: {bound['total_rps']:.4g}"
    if parts:
        text += f" ({', '.join(parts)})"
    if "steady_rps" in bound:
        steady = f"about {bound['steady_rps']:.4g}"
        text += f"; with every step a like share of prompts and decodes, {steady}"
    return [*lines, filled(text)]


def _transfer(move: Facts) -> str:
    """Return the line on the transfer of the median prompt."""
    took = f"{move['bytes']:,} bytes in {move['seconds'] / MS:.4g} ms"
    text = f"KV transfer of the median prompt: {took}"
    ways = [
        f"{' -> '.join(copy['links'])}, narrowest {copy['narrowest']} with "
        f"{copy['gb_per_s']:.4g} GB/s"
        for copy in move["copies"]
    ]
    if move["connector"] == "inside":
        ways = ["inside the steps, which wait for it", *ways]
    return filled(f"{text} ({'; then '.join(ways)})")


def _links(links: Sequence[Facts]) -> str:
    """Return the links in use."""
    rows = [
        [
            link["purpose"],
            link["link"],
            f"{link['gb_per_s']:.4g}",
            f"{100 * link['reached_share']:.0f}",
            link["accuracy"],
        ]
        for link in links
    ]
    heads = ["links, per GPU or NIC", "", "GB/s", "reached %", "known by"]
    return aligned([heads, *rows], left=(0, 1, 4))


def _accuracy(rows: Sequence[Facts]) -> str:
    table = [[row["figure"], row["accuracy"], row["about"]] for row in rows]
    return aligned([["figure", "known by", ""], *table], left=(0, 1, 2))
