"""Mixins that give results `.plot()` and `.html()`.

Rooms whose functions return results lie below the room that draws them, and do not import it. It
is found by its name when something is drawn, as pandas finds its plotting backend.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from longclip_lab.files import atomic_write

if TYPE_CHECKING:
    import os

    import plotly.graph_objects as go

BACKEND = "longclip_lab.views"


class Plottable:
    """A result that has a figure in `longclip_lab.views`."""

    def plot(self, **options: object) -> go.Figure:
        """The result's figure; `options` are those of its function in `longclip_lab.views`."""
        return importlib.import_module(BACKEND).plot(self, **options)


class Gallery:
    """A search's answer, which `longclip_lab.views` shows as images."""

    def html(self, path: str | os.PathLike[str] | None = None) -> Any:
        """The query and its images for a notebook; with a path, also written as a page there."""
        views = importlib.import_module(BACKEND)
        if path is not None:
            atomic_write(path, views.found_page([self]))
        return views.found_html(self)

    def _repr_html_(self) -> str:
        return self.html()
