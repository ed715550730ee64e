"""Fingerprints of short runs of every strategy and setting: ``python benchmarks/digests.py``.

A restructuring must change no result. ``benchmarks/digests.toml`` lists the runs. Each gives one
line: its name, a SHA-256 digest of the requests frame, and one of all other frames of the run.
``tests/golden/digests.txt`` holds the lines of today and ``tests/test_digests.py`` checks them.

    python benchmarks/digests.py --check tests/golden/digests.txt     # exit 1, what differs
    python benchmarks/digests.py --write tests/golden/digests.txt     # after a change on purpose
    PYTHONPATH=OLD_CHECKOUT python benchmarks/digests.py --check tests/golden/digests.txt

A digest covers the dtype and the bytes of each column, in the order of the columns. Names of
columns are not in it: another name for a column is not another result. Only the public API is
used, so the script also runs on an older checkout. A run fails if it does not show what the list
says of it (a run called "swap" that never swaps would protect nothing).

Digests move when a result moves: also when a constant of the catalogue or a random stream of NumPy
changes. Write them again in the commit that does so, and say why in CHANGELOG.md. They do not
depend on the vector unit: the same with NumPy's and the C library's AVX2 paths switched off
(``NPY_DISABLE_CPU_FEATURES=X86_V3``, ``GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-FMA``), since times
lie on a grid. Machines with AVX-512 and other platforms were not tried.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

import simcluster
from simcluster.runs.result import FRAMES

Table = dict[str, Any]
Frames = Mapping[str, Mapping[str, npt.NDArray[Any]]]

LIST = Path(__file__).with_suffix(".toml")
OTHER_FRAMES = (*(name for name in FRAMES if name != "requests"), "kernels")
"""Frames of the second digest, in its order; a frame that a run does not have counts as empty."""


def _has_event(frames: Frames, event: str) -> bool:
    return bool((frames["scaling"]["event"] == event).any())


SHOWS: dict[str, Callable[[Frames], Any]] = {
    "preempts": lambda f: f["requests"]["num_preemptions"].any(),
    "swaps": lambda f: f["instances"]["num_swaps"].any(),
    "queues": lambda f: f["requests"]["queue_s"].max() > 0.1,
    "pipelines": lambda f: f["spans"]["lane"].any(),
    "splits prompts": lambda f: (
        f["requests"]["prompt_len"].max() > f["spans"]["prefill_tokens"].max()
    ),
    "hides host work": lambda f: f["spans"]["hidden_s"].any(),
    "transfers": lambda f: len(f["transfers"]["start_s"]) >= 10,
    "shares wires": lambda f: (f["spans"]["wire_share"] < 1).any(),
    "windows": lambda f: len(f["windows"]["opened_s"]) >= 3,
    "joins": lambda f: _has_event(f, "join"),
    "frees": lambda f: _has_event(f, "freed"),
    "splits": lambda f: _has_event(f, "split"),
    "merges": lambda f: _has_event(f, "merge"),
    "finds prefixes": lambda f: f["requests"]["num_cached_tokens"].any(),
    "rejects": lambda f: (f["requests"]["status"] == "rejected").any(),
    "leaves some unfinished": lambda f: (f["requests"]["status"] == "unfinished").any(),
    "classes": lambda f: len(set(f["requests"]["slo_class"])) > 1,
    "several models": lambda f: len(set(f["requests"]["model"])) > 1,
    "quality": lambda f: np.ptp(f["requests"]["quality"]) > 0,
    "kernels": lambda f: len(f["kernels"]["start_s"]) > 0,
}
"""Things that a run can be asked to show, and how its frames tell."""


class ListError(Exception):
    """The list of runs says something that is not so."""


class Run(NamedTuple):
    """One run of the list.

    Attributes
    ----------
    scenario : dict
        Tables of a scenario file with one strategy.
    shows : tuple of str
        Keys of `SHOWS`.
    kernels_in : tuple of float or None
        Argument of `simcluster.simulate`.
    same_requests_as : str or None
        A run whose requests must be the same, bit by bit.
    """

    scenario: Table
    shows: tuple[str, ...]
    kernels_in: tuple[float, float] | None
    same_requests_as: str | None


# --- the list of runs ----------------------------------------------------------------------------

_NOT_SCENARIO = ("like", "without", "shows", "kernels_in", "same_requests_as")


def _merged(below: Table, above: Table) -> Table:
    """Return `below` with the keys of `above`, table by table."""
    result = dict(below)
    for key, value in above.items():
        is_table = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if is_table else value
    return result


def _without(tables: Table, dotted: str) -> Table:
    """Return `tables` without one key; a key that is not there is a mistake in the list."""
    first, _, rest = dotted.partition(".")
    if first not in tables:
        raise ListError(f"{LIST.name}: nothing to remove at {dotted}")
    if rest:
        return {**tables, first: _without(tables[first], rest)}
    return {key: value for key, value in tables.items() if key != first}


@functools.cache
def _listed() -> dict[str, Table]:
    return tomllib.loads(LIST.read_text(encoding="utf-8"))


def _scenario(name: str) -> Table:
    """Return the tables of a run as they are merged, its strategy not yet in a list."""
    own = {key: value for key, value in _listed()[name].items() if key not in _NOT_SCENARIO}
    if name == "base":
        return own
    below = _scenario(_listed()[name].get("like", "base"))
    for dotted in _listed()[name].get("without", ()):
        below = _without(below, dotted)
    return _merged(below, own)


def names() -> list[str]:
    """Names of the runs, in the order of the list."""
    return [name for name in _listed() if name != "base"]


def find(name: str) -> Run:
    """Return the run called `name`."""
    listed, tables = _listed()[name], _scenario(name)
    strategy = {"name": name, **tables["strategy"]}
    return Run(
        scenario={**tables, "strategy": [strategy]},
        shows=tuple(listed.get("shows", ())),
        kernels_in=tuple(listed["kernels_in"]) if "kernels_in" in listed else None,
        same_requests_as=listed.get("same_requests_as"),
    )


# --- files that scenarios name -------------------------------------------------------------------


def _trace_rows() -> Iterator[tuple[float, int, int]]:
    """Arrival (s), prompt and output (tokens) of 160 requests."""
    for k in range(160):
        yield round(0.04 * k + 0.01 * (k * k % 3), 3), 20 + 37 * k % 400, 1 + 13 * k % 90


def _blocks(k: int, shared_len: int, prompt_len: int, block: int) -> list[int]:
    """Ids of the blocks of request `k`: a prefix of one of four groups, then blocks of its own."""
    total, shared = -(-prompt_len // block), shared_len // block
    return [100 * (k % 4) + i if i < shared else 1000 * (k + 1) + i for i in range(total)]


def write_files(folder: Path) -> None:
    """Write the traces, clients, outcomes, model and catalogue entry that scenarios name."""
    rows = list(_trace_rows())
    plain = [f"{arrival},{prompt},{output}\n" for arrival, prompt, output in rows]
    (folder / "plain.csv").write_text("arrival_s,prompt_len,output_len\n" + "".join(plain))
    ties = [f"{k // 6 / 8},{100 + 50 * (k // 6 % 3)},{60 + k // 6 % 2}\n" for k in range(240)]
    (folder / "ties.csv").write_text("arrival_s,prompt_len,output_len\n" + "".join(ties))
    large = [
        {
            "timestamp": round(1000 * arrival),
            "input_length": 1100 + prompt,
            "output_length": output,
            "hash_ids": _blocks(k, 1024, 1100 + prompt, 512),
        }
        for k, (arrival, prompt, output) in enumerate(rows)
    ]
    (folder / "blocks512.jsonl").write_text("\n".join(map(json.dumps, large)))
    small = [
        {
            "arrival_s": arrival,
            "input_tokens": 200 + prompt,
            "output_tokens": output,
            "block16_ids": _blocks(k, 16 * (4 + k % 9), 200 + prompt, 16),
        }
        for k, (arrival, prompt, output) in enumerate(rows)
    ]
    (folder / "blocks16.jsonl").write_text("\n".join(map(json.dumps, small)))
    (folder / "clients.csv").write_text(_CLIENTS)
    outcomes = [f"{k / 50},{int(k % 50 < 30)},{int(k % 7 > 0)}\n" for k in range(51)]
    (folder / "outcomes.csv").write_text("score,weak_correct,strong_correct\n" + "".join(outcomes))
    # The model is called like the folder of its file.
    (folder / "small-model").mkdir()
    (folder / "small-model" / "config.json").write_text(json.dumps(_MODEL))
    (folder / "own.toml").write_text(_CATALOGUE)


_CLIENTS = """\
client,mean_rate,cv_mean,pattern_mode,input_tokens_q0,input_tokens_q0.5,input_tokens_q1,\
output_tokens_q0,output_tokens_q0.5,output_tokens_q1
a,3.0,1.5,Gamma,10,100,400,1,30,100
b,1.0,0.7,Weibull,50,300,700,1,60,200
c,0.5,3.0,Gamma,10,40,80,5,9,20
"""
_MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 16,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
}
_CATALOGUE = """\
[[gpu]]
name = "digest-card"
like = "A100-80GB SXM"
memory_gb = 60
bandwidth_gb_s = 1500
source = "no real card: an entry of one's own, for a digest"
"""


# --- digests -------------------------------------------------------------------------------------


def _bytes(column: npt.NDArray[Any]) -> bytes:
    """Bytes of a column; text by its characters, and every NaN in one form."""
    if column.dtype == object:
        return "\0".join(column).encode()
    if column.dtype.kind == "f":
        column = np.where(np.isnan(column), np.nan, column).astype(column.dtype)
    return column.tobytes()


def digest(*frames: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256 over dtype, length and bytes of every column of `frames`, in their order."""
    hashed = hashlib.sha256()
    for columns in frames:
        hashed.update(f"frame of {len(columns)};".encode())
        for column in columns.values():
            dtype = "text" if column.dtype == object else column.dtype.str
            hashed.update(f"{dtype} {len(column)};".encode() + _bytes(column))
    return hashed.hexdigest()


def simulated(run: Run, folder: Path) -> Frames:
    """Frames of a run; files that it names are in `folder`."""
    scenario = simcluster.resolve(run.scenario, folder=folder)
    result = simcluster.simulate(scenario, kernels_in=run.kernels_in)
    return result.columns


def line(name: str, folder: Path) -> str:
    """Simulate one run and return its line: name, digest of the requests, digest of the rest.

    Raises
    ------
    ListError
        If the run does not show what the list says.
    """
    run = find(name)
    frames = simulated(run, folder)
    missing = [what for what in run.shows if not SHOWS[what](frames)]
    if missing:
        raise ListError(f"{name}: the run does not show {', '.join(missing)}, as {LIST.name} says")
    rest = (frames.get(frame, {}) for frame in OTHER_FRAMES)
    return f"{name} {digest(frames['requests'])} {digest(*rest)}"


def read(file: Path) -> dict[str, str]:
    """Lines of a file of digests, by the name of the run."""
    lines = file.read_text(encoding="utf-8").splitlines()
    return {text.split()[0]: text for text in lines if text}


def differences(lines: list[str], file: Path) -> list[str]:
    """One text for each of `lines` that is not in `file`: which run, and which frames."""
    known, texts = read(file), []
    for text in lines:
        name, requests, rest = text.split()
        _, old_requests, old_rest = known.get(name, f"{name} none none").split()
        if (requests, rest) != (old_requests, old_rest):
            which = "other frames" if requests == old_requests else "requests"
            texts.append(f"{name}: {which if name in known else 'not in the file'}")
    return texts


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="runs; default: all")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write all lines to this file")
    parser.add_argument("--check", type=Path, metavar="FILE", help="exit 1 if a line is not in it")
    options = parser.parse_args()
    if options.write and options.names:
        parser.error("--write writes all runs; leave the names out")
    if unknown := set(options.names) - set(names()):
        parser.error(f"{LIST.name} has no run {', '.join(sorted(unknown))}")
    return options


def main() -> None:
    """Print, write or check the lines."""
    options = _arguments()
    lines = []
    with tempfile.TemporaryDirectory() as folder:
        write_files(Path(folder))
        for name in options.names or names():
            try:
                lines.append(line(name, Path(folder)))
            except ListError as error:
                sys.exit(str(error))
            if not options.check:
                print(lines[-1], flush=True)
    if options.write:
        options.write.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if options.check:
        differ = differences(lines, options.check)
        print(*differ, f"{len(lines)} runs, {len(differ)} differ", sep="\n")
        sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
