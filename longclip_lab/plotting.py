"""Lets results of any room draw themselves, while only the room `views` knows how."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import plotly.graph_objects as go


class Plottable:
    """A result that has a figure in `longclip_lab.views`."""

    def plot(self, **options: object) -> go.Figure:
        """The result's figure; `options` are those of its function in `longclip_lab.views`."""
        from longclip_lab import views

        return views.plot(self, **options)
