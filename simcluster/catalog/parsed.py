"""Packaged TOML files, parsed once: kept as bytecode, as Python keeps its modules."""

from __future__ import annotations

import tomllib
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any


class _Loader(SourceFileLoader):
    """Reads a TOML file as Python reads a module.

    The parsed tables go into ``__pycache__`` beside the file, where that can be written, and are
    made again when time or size of the file change.
    """

    def __init__(self, file: Path) -> None:
        # Bytecode is named by its source: scores.toml must not take the place of scores.py.
        super().__init__(file.stem, str(file.with_name(f"{file.stem}_toml.toml")))
        self._file = str(file)

    def path_stats(self, path: Any) -> Any:
        """Return time and size of the file."""
        return super().path_stats(self._file)

    def get_data(self, path: Any) -> bytes:
        """Return the bytes of the file, or of the bytecode at `path`."""
        return super().get_data(self._file if path == self.path else path)

    def source_to_code(  # type: ignore[override]  # it is called with these
        self, data: Any, path: Any, *, _optimization: int = -1
    ) -> CodeType:
        """Return code that makes the tables of the file."""
        return compile(repr(tomllib.loads(bytes(data).decode())), self._file, "eval")


def parsed(file: Path) -> dict[str, Any]:
    """Return the tables of a packaged TOML file: texts, numbers, truth values, lists and tables.

    Raises
    ------
    OSError
        If it cannot be read.
    ValueError
        If it is not TOML.
    """
    loader = _Loader(file)
    code = loader.get_code(loader.name)
    assert code is not None
    tables: dict[str, Any] = eval(code)
    return tables
