"""The contract of catalogue files: GPUs and models of one's own."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from simcluster.catalog import KINDS, Catalog, search
from simcluster.config import Environment, ModelConfig
from simcluster.roofline import StepShape, tp_degrees, weight_bytes_per_gpu
from simcluster.roofline.of_environment import roofline_step_time
from simcluster.scenario.file import resolve
from simcluster.strategies import NoDG
from simcluster.testing.contracts.base import agreeing_run
from simcluster.testing.laws import require
from simcluster.testing.specs import ideal_engine
from simcluster.testing.toy import toy_workload

SLOWEST = 5.0
"""Longest time of a kernel over what the data sheet allows; longer ones have wrong constants."""
RIDGES = (10.0, 2000.0)
"""FLOP per byte at which a GPU's peaks meet: 37 (H20) to 419 (L40S) in the packaged catalogue."""
_MODEL, _GPU, _ENGINE = "llama-2-7b", "H100 SXM", "vllm-0.7"
_FEW = [(0.0, 60, 3), (0.01, 30, 4), (0.02, 90, 2)]


def environment_of(catalog: Catalog, model: str, gpu: str, num_gpus: int = 1) -> Environment:
    """Return one node with `num_gpus` of these GPUs that serves this model, both by their names."""
    document = {
        "model": {"name": model},
        "cluster": {"gpu": gpu, "gpus_per_node": num_gpus},
        "engine": {"profile": _ENGINE, "max_model_len": 256},
        "workload": {"lengths": {"kind": "fixed", "prompt_len": 1, "output_len": 1}},
        "strategy": [{"name": "contract", "kind": "nodg"}],
    }
    return resolve(document, catalog=catalog).environment


def names_in(file: Path) -> dict[str, list[str]]:
    """Return the names of the entries of a catalogue file, by table."""
    tables = tomllib.loads(file.read_text("utf-8"))
    return {kind: [str(row["name"]) for row in tables.get(kind, ())] for kind in KINDS}


class CatalogContract:
    """Laws of every GPU and every model of a catalogue file; give it the fixture `file`.

    - The file is read, every entry says its source, and a scenario can name it.
    - A GPU's peaks are of one machine (FLOP per byte as GPUs have it), and no step is faster than
      they allow, or more than five times slower: a slip of units is one of the two.
    - A model's weights are as many bytes as its parameters, and it runs on as many GPUs as hold it.
    - Results at the resolutions span, step and kernel are the same bits.

    Examples
    --------
    ::

        class TestMine(CatalogContract):
            @pytest.fixture
            def file(self):
                return Path("mine.toml")
    """

    @pytest.fixture
    def file(self) -> Path:
        """Return the path of the file that is tested; override it."""
        raise NotImplementedError("give the contract a fixture `file` that returns its path")

    @pytest.fixture
    def catalog(self, file: Path) -> Catalog:
        """Return the packaged catalogue with the file's entries beside it."""
        return Catalog().with_file(file)

    @pytest.fixture
    def names(self, file: Path) -> dict[str, list[str]]:
        """Return the names of the file's entries by table."""
        return names_in(file)

    def test_every_entry_is_found_and_says_its_source(
        self, catalog: Catalog, names: dict[str, list[str]]
    ) -> None:
        """As `simcluster catalog` lists it."""
        require(any(names.values()), "the file has no entry")
        for kind, known in names.items():
            sources = {entry.name: entry.source for entry in search("", kind, catalog=catalog)}
            for name in known:
                require(name in sources, f"{kind} {name} is not found")
                require(len(sources[name].split()) > 1, f"{kind} {name} does not say its source")

    def test_peaks_are_those_of_one_machine(
        self, catalog: Catalog, names: dict[str, list[str]]
    ) -> None:
        """FLOP/s over bytes/s, which a slip of units in one of them would change a thousandfold."""
        for name in names["gpu"]:
            spec = catalog.gpu(name)
            ridge = spec.flops_16bit / spec.memory_bandwidth
            low, high = RIDGES
            require(low <= ridge <= high, f"{name} does {ridge:.3g} FLOP per byte of its memory")

    def test_no_step_beats_the_data_sheet(
        self, catalog: Catalog, names: dict[str, list[str]]
    ) -> None:
        """One sequence moves every weight, a long prompt multiplies by every weight."""
        for name in names["gpu"]:
            where = environment_of(catalog, _MODEL, name)
            spec, gpu = where.model.spec, where.cluster.gpu
            inner = spec.num_params - 2 * spec.vocab_size * spec.hidden_size
            model = roofline_step_time(dataclasses.replace(where, engine=ideal_engine()), 1)
            decode = model.step_s(StepShape(1, 1, (), 1, 1)) / (2 * inner / gpu.memory_bandwidth)
            prefill = model.prefill_s(2048) / (2 * inner * 2048 / gpu.flops_16bit)
            for what, share in (("decode step", decode), ("prefill", prefill)):
                require(
                    1 <= share <= SLOWEST,
                    f"{name}: a {what} takes {share:.3g} of what its data sheet allows",
                )

    def test_weights_are_those_of_the_parameters(
        self, catalog: Catalog, names: dict[str, list[str]]
    ) -> None:
        """Two bytes each, on one GPU as on all that share them."""
        for name in names["model"]:
            spec = catalog.model(name)
            model = ModelConfig(spec=spec, max_model_len=256)
            share = weight_bytes_per_gpu(model, 1) / model.weight_bytes
            require(abs(share - 1) < 0.01, f"{name}: {share:.3f} of the bytes of its parameters")
            for tp_size in tp_degrees(model):
                whole = tp_size * weight_bytes_per_gpu(model, tp_size)
                require(whole >= model.weight_bytes * 0.999, f"{name}: TP {tp_size} loses weights")

    def test_resolutions_agree(self, catalog: Catalog, names: dict[str, list[str]]) -> None:
        """On each GPU with a 7B model, and with each model on as many H100 as hold it.

        A model that no degree of H100 holds runs on the GPUs with the most memory.
        """
        largest = max(names["gpu"], key=lambda name: catalog.gpu(name).memory_bytes)
        for name in names["gpu"]:
            self._runs(catalog, _MODEL, name)
        for name in names["model"]:
            self._runs(catalog, name, _GPU, largest)

    def _runs(self, catalog: Catalog, model: str, *gpus: str) -> None:
        served = ModelConfig(spec=catalog.model(model), max_model_len=256)
        held = [
            (gpu, degree)
            for gpu in gpus
            for degree in tp_degrees(served)
            if degree >= served.weight_bytes / (0.8 * catalog.gpu(gpu).memory_bytes - 8e9)
        ]
        require(bool(held), f"{model}: no number of {' or '.join(gpus)} holds its weights")
        gpu, tp_size = held[0]
        where = environment_of(catalog, model, gpu, tp_size)
        strategy = NoDG(name="contract", instances=1, tp_size=tp_size)
        agreeing_run(where, strategy, toy_workload(_FEW))
