"""The GPU and the model keep the contract of catalogue files."""

from __future__ import annotations

from pathlib import Path

import pytest
import simcluster_example

from simcluster.testing.contracts import CatalogContract


class TestCatalogue(CatalogContract):
    """All that every GPU and every model keeps."""

    @pytest.fixture
    def file(self) -> Path:
        """Return the path of the file."""
        assert simcluster_example.__file__ is not None
        return Path(simcluster_example.__file__).with_name("catalogue.toml")
