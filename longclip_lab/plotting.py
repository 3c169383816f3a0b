"""Lets results of any room draw themselves, while only the room `views` knows how."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

    import plotly.graph_objects as go

    from longclip_lab.views import Html


class Plottable:
    """A result that has a figure in `longclip_lab.views`."""

    def plot(self, **options: object) -> go.Figure:
        """The result's figure; `options` are those of its function in `longclip_lab.views`."""
        from longclip_lab import views

        return views.plot(self, **options)


class Gallery:
    """A search's answer, which `longclip_lab.views` shows as pictures."""

    def html(self, path: str | os.PathLike[str] | None = None) -> Html:
        """The query and its pictures for a notebook; with a path, also written as a page there."""
        from longclip_lab.files import atomic_write
        from longclip_lab.views.found import found_html, found_page

        if path is not None:
            atomic_write(path, found_page([self]))
        return found_html(self)

    def _repr_html_(self) -> str:
        return self.html()
