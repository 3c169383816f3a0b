"""One look for all figures: the plotly template "longclip" and what draws with it.

A figure has one message and its title says it. Colours are Okabe and Ito's, which people who see
colours differently can tell apart (https://jfly.uni-koeln.de/color/). Sizes are made for a page of
the book and hold up on a projector. JupyterLab and the book draw the figures without a network:
the first by plotly's own extension, the second by `longclip_lab.views.book`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio

COLOURS = {
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "orange": "#E69F00",
    "black": "#262626",
    "yellow": "#F0E442",
}
PALETTE = tuple(COLOURS.values())
CONFIG = {"displayModeBar": False, "responsive": True}

_GREY = "#595959"
_TITLE_CHARACTERS = 66
_TITLE_SIZE = 19
_TITLE_LINE = round(1.3 * _TITLE_SIZE)
_TITLE_GAP = 14


def _template() -> go.layout.Template:
    axis = {
        "gridcolor": "#E6E6E6",
        "linecolor": "#BFBFBF",
        "showline": True,
        "ticks": "outside",
        "tickcolor": "#BFBFBF",
        "ticklen": 4,
        "zeroline": False,
        "title": {"font": {"size": 15, "color": _GREY}, "standoff": 10},
        "automargin": True,
    }
    return go.layout.Template(
        layout={
            "colorway": PALETTE,
            "font": {
                "family": "Inter, Segoe UI, Helvetica Neue, Arial, sans-serif",
                "size": 14,
                "color": COLOURS["black"],
            },
            "title": {
                "font": {"size": _TITLE_SIZE, "weight": 600},
                "x": 0,
                "xref": "paper",
                "xanchor": "left",
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "pad": {"b": _TITLE_GAP},
            },
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "xaxis": axis,
            "yaxis": axis,
            "legend": {
                "orientation": "h",
                "x": 0,
                "xanchor": "left",
                "y": 0.01,
                "yref": "container",  # below the axis title, however many rows it takes
                "yanchor": "bottom",
            },
            "colorscale": {"sequential": "Cividis", "diverging": "PuOr"},
            "hoverlabel": {"font": {"size": 14}, "bgcolor": "white"},
            "margin": {"l": 70, "r": 30, "t": 60, "b": 55},
        },
        data={
            "scatter": [{"line": {"width": 2.5}, "marker": {"size": 8}}],
            "bar": [{"marker": {"line": {"width": 0}}, "error_y": {"thickness": 1.5}}],
            "heatmap": [
                {"colorscale": "Cividis", "colorbar": {"outlinewidth": 0, "thickness": 14}}
            ],
        },
    )


pio.templates["longclip"] = _template()


class Figure(go.Figure):
    """plotly's figure, which JupyterLab shows with `CONFIG`.

    plotly's renderers import nbformat, which takes longer than all of this package: that waits
    until a figure is shown.
    """

    def show(self, *args: Any, **kwargs: Any) -> Any:
        """As plotly's."""
        _configure_renderer()
        return super().show(*args, **kwargs)

    def _ipython_display_(self) -> None:
        _configure_renderer()
        super()._ipython_display_()

    def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        _configure_renderer()
        return super()._repr_mimebundle_(*args, **kwargs)


def _configure_renderer() -> None:
    pio.renderers["plotly_mimetype"].config.update(CONFIG)  # JupyterLab's renderer


def figure(title: str, x: str = "", y: str = "", *, height: int = 420) -> go.Figure:
    """An empty figure whose title states its message, with axis titles that carry units.

    A long title is broken into lines and the margin grows with it; `<br>` breaks it by hand.

    >>> figure("KPS keeps short captions", x="position", y="R@1 (%)").layout.xaxis.title.text
    'position'
    """
    lines = [line for part in title.split("<br>") for line in _wrap(part)]
    below_first = _TITLE_GAP + _TITLE_LINE * (len(lines) - 1)
    return Figure(
        layout={
            "template": "longclip",
            "title": {"text": "<br>".join(lines), "pad": {"b": below_first}},
            "xaxis": {"title": {"text": x}},
            "yaxis": {"title": {"text": y}},
            "margin": {"t": below_first + _TITLE_LINE + 8},
            "height": height,
        }
    )


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, _TITLE_CHARACTERS, break_long_words=False) or [""]


def translucent(colour: str, alpha: float = 0.18) -> str:
    """A `#RRGGBB` colour as plotly's rgba text, for the area of an interval.

    >>> translucent("#0072B2", 0.5)
    'rgba(0, 114, 178, 0.5)'
    """
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, {alpha})"


def add_curve(
    figure: go.Figure,
    x: Sequence[float],
    value: Sequence[float],
    low: Sequence[float],
    high: Sequence[float],
    name: str,
    colour: str,
    *,
    dash: str = "solid",
) -> go.Figure:
    """Draw a curve and the band of its interval, `low` to `high`, in one colour; return the figure.

    The two answer one legend entry, and hovering shows the value with its interval.
    """
    figure.add_scatter(
        x=[*x, *reversed(x)],
        y=[*high, *reversed(low)],
        fill="toself",
        fillcolor=translucent(colour),
        line={"width": 0},
        mode="lines",
        hoverinfo="skip",
        legendgroup=name,
        showlegend=False,
    )
    figure.add_scatter(
        x=list(x),
        y=list(value),
        customdata=list(zip(low, high, strict=True)),
        hovertemplate="%{y:.3g} (%{customdata[0]:.3g} to %{customdata[1]:.3g})",
        line={"color": colour, "dash": dash},
        mode="lines+markers",
        legendgroup=name,
        name=name,
    )
    return figure
