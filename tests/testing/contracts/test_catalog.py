"""The contract of catalogue files: the packaged ones keep it, and it notices slips.

Programs that are wrong on purpose stand beside the law that notices each.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from simcluster.catalog import KINDS, Catalog
from simcluster.testing.contracts import (
    CatalogContract,
)
from simcluster.testing.contracts.base import notices
from simcluster.testing.contracts.catalog import names_in


class TestPackagedCatalogue(CatalogContract):
    """Every GPU and model that comes with the package."""

    @pytest.fixture
    def catalog(self) -> Catalog:
        """Return the packaged catalogue."""
        return Catalog()

    @pytest.fixture
    def names(self, catalog: Catalog) -> dict[str, list[str]]:
        """Return the names of all entries."""
        return {kind: catalog.names(kind) for kind in KINDS}


WRONG_GPUS = [
    ("tflops_16bit = 989000", "peaks_are_those_of_one_machine", "FLOP per byte of its memory"),
    ("bandwidth_gb_s = 3.35", "peaks_are_those_of_one_machine", "FLOP per byte of its memory"),
    (
        'kernels = "slow"\n\n[[kernels]]\nname = "slow"\nlike = "ampere-ga100"\nmbu_gemm = 0.05\n'
        'source = "a slip of the pen"',
        "no_step_beats_the_data_sheet",
        "takes [0-9.]+ of what its data sheet allows",
    ),
    ('source = "me"', "every_entry_is_found_and_says_its_source", "does not say its source"),
]


@pytest.mark.parametrize(
    ("line", "law", "message"), WRONG_GPUS, ids=[w[0][:20] for w in WRONG_GPUS]
)
def test_the_catalog_contract_notices(tmp_path: Path, line: str, law: str, message: str) -> None:
    """A slip of units in a GPU that is otherwise an H100, and a number from nowhere."""
    file = tmp_path / "mine.toml"
    source = "" if line.startswith("source") else 'source = "its data sheet"\n'
    file.write_text(f'[[gpu]]\nname = "Mine"\nlike = "H100 SXM"\n{source}{line}\n')
    given = {"names": names_in(file), "catalog": Catalog().with_file(file)}
    notices(CatalogContract, law, message, **given)
