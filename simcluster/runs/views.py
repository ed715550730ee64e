"""How results show themselves: in a notebook, as a frame, as a report, as pictures.

A result is computed by a module and shown by others that stand after it. The module that shows it
is imported by name when somebody asks, so that computing needs neither pandas nor matplotlib.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


class Viewed:
    """A result with views: ``_repr_html_``, `to_frame`, `report`, and pictures of its own.

    `_VIEW` names the module that makes them; it has the functions ``to_frame(result)``,
    ``to_html(result)``, ``save(result, folder)`` and those that draw.
    """

    __slots__ = ()
    _VIEW: ClassVar[str]

    def _view(self, name: str) -> Any:
        return getattr(importlib.import_module(self._VIEW), name)

    def to_frame(self) -> pd.DataFrame:
        """Return what was found as a frame, one row per strategy or candidate."""
        found: pd.DataFrame = self._view("to_frame")(self)
        return found

    def _repr_html_(self) -> str:
        """Return what a notebook shows: what was asked, the answer, the table."""
        text: str = self._view("to_html")(self)
        return text

    def report(self, out: str | Path) -> Path:
        """Write a report: one HTML page, with a result folder beside it.

        Parameters
        ----------
        out : str or Path
            The page, such as ``"first.html"``. Its results are written to the folder of the same
            name without suffix, unless they were read from a folder: then that one is used.

        Returns
        -------
        Path
            The page.

        Raises
        ------
        DataError
            If `out` has no suffix or cannot be written, or the folder holds other results.
        """
        path: Path = self._view("report")(self, out)
        return path

    def _draw(self, name: str, ax: Axes | None, **keywords: Any) -> Axes:
        if ax is None:
            from matplotlib import pyplot as plt

            ax = plt.subplots(layout="constrained")[1]
        axes: Axes = self._view(name)(self, ax=ax, **keywords)
        return axes
