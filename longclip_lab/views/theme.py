"""One look for all figures: template, frame, labels, forest plots, numbers in words.

A figure has one message and its title says it. Colours are Okabe and Ito's, which people who see
colours differently can tell apart (https://jfly.uni-koeln.de/color/). Sizes are made for a page of
the book and hold up on a projector. JupyterLab and the book draw the figures without a network:
the first by plotly's own extension, the second by `longclip_lab.views.book`.

A difference is called one only where the two 95% intervals do not overlap. That is stricter than a
test at 5%, and easy to see in a figure.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import plotly.graph_objects as go
import plotly.io as pio

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval

# --- One look for all figures: the plotly template "longclip" and what draws with it ---

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


# --- The frame of every figure: the message as title, what was measured as subtitle ---

GREY = "#595959"
_WIDEST = 66  # characters of a title's line
_SUBTITLE, _BOTTOM = 26, 60  # pixels


def framed(
    title: str,
    x: str = "",
    y: str = "",
    *,
    subtitle: str = "",
    height: int = 440,
    at_edge: bool = False,
) -> go.Figure:
    """An empty figure without a legend: curves and dots are named where they are.

    The title's lines are about equally long. `at_edge` begins them at the figure's left edge, for
    figures with long names at the y axis.
    """
    chart = figure(balanced(title), x=x, y=y, height=height)
    room = _SUBTITLE if subtitle else 0
    chart.update_layout(
        showlegend=False,
        margin={"t": chart.layout.margin.t + room, "b": _BOTTOM},
        title={
            "pad": {"b": chart.layout.title.pad.b + room},
            "subtitle": {"text": subtitle, "font": {"size": 13, "color": GREY}},
        },
    )
    if at_edge:
        chart.update_layout(title={"xref": "container", "x": 0.012})
    return chart


def balanced(text: str) -> str:
    """The text in as few lines as its width allows, about equally long, joined by `<br>`.

    >>> balanced("One two three four five six seven eight nine ten eleven twelve thirteen.")
    'One two three four five six seven<br>eight nine ten eleven twelve thirteen.'
    """
    lines = textwrap.wrap(text, _WIDEST, break_long_words=False)
    for width in range(max(1, len(text) // max(1, len(lines))), _WIDEST):
        narrower = textwrap.wrap(text, width, break_long_words=False)
        if len(narrower) <= len(lines):
            return "<br>".join(narrower)
    return "<br>".join(lines)


def plot_height(chart: go.Figure) -> float:
    """Pixels between the upper and the lower margin."""
    return chart.layout.height - chart.layout.margin.t - chart.layout.margin.b


# --- Labels that stand beside what they name, so that no reader has to match colours to a ---

# Text needs more contrast than lines do: darker shades, at least 4.5:1 on white.
_TEXT = {
    COLOURS["blue"]: "#00609A",
    COLOURS["vermillion"]: "#A94700",
    COLOURS["green"]: "#00735A",
    COLOURS["purple"]: "#9C4577",
    COLOURS["sky"]: "#1F6F9F",
    COLOURS["orange"]: "#8F6200",
    COLOURS["yellow"]: "#6F6700",
}
CHARACTER, LINE = 7.2, 17  # pixels of the labels' font, generously


def text_colour(colour: str) -> str:
    """The shade of a palette colour that can be read as text on white."""
    return _TEXT.get(colour, colour)


def spread(values: Sequence[float], gap: float) -> list[float]:
    """The values, moved apart as little as needed to leave `gap` between neighbours.

    >>> spread([1.0, 1.0, 5.0], gap=2.0)
    [0.0, 2.0, 5.0]
    """
    order = sorted(range(len(values)), key=lambda i: values[i])
    clusters: list[list[int]] = []
    centres: list[float] = []
    for i in order:
        clusters.append([i])
        centres.append(values[i])
        while len(clusters) > 1 and (
            centres[-1] - centres[-2] < gap * (len(clusters[-1]) + len(clusters[-2])) / 2
        ):
            merged = clusters[-2] + clusters[-1]
            clusters[-2:], centres[-2:] = [merged], [sum(values[j] for j in merged) / len(merged)]
    placed = [0.0] * len(values)
    for members, centre in zip(clusters, centres, strict=True):
        for rank, i in enumerate(members):
            placed[i] = centre + gap * (rank - (len(members) - 1) / 2)
    return placed


def end_labels(
    figure: go.Figure,
    ends: Sequence[float],
    names: Sequence[str],
    colours: Sequence[str],
    units_per_pixel: float,
    span: tuple[float, float] | None = None,
) -> None:
    """Write each curve's name in its colour to the right of its last point, `ends` (y values).

    Makes room for the longest name; `<br>` breaks a name into lines. No name leaves `span`, the
    range of the y axis, if that is given.
    """
    lines = max(name.count("<br>") + 1 for name in names)
    gap = LINE * lines * units_per_pixel
    places = spread(ends, gap)
    if span is not None:
        places = within(places, gap, span)
    for y, name, colour in zip(places, names, colours, strict=True):
        figure.add_annotation(
            x=1, xref="paper", xanchor="left", xshift=6, y=y, yanchor="middle", align="left",
            text=name, showarrow=False, font={"color": text_colour(colour), "size": 14},
        )  # fmt: skip
    longest = max(len(line) for name in names for line in name.split("<br>"))
    figure.update_layout(margin_r=14 + round(CHARACTER * longest))


def within(places: Sequence[float], gap: float, span: tuple[float, float]) -> list[float]:
    """Places at least `gap` apart, pushed so that a label of height `gap` stays inside `span`.

    >>> within([3.0, 5.0, 7.0], gap=2.0, span=(0.0, 7.0))
    [2.0, 4.0, 6.0]
    """
    pushed = list(places)
    highest = span[1] - gap / 2
    for i in sorted(range(len(pushed)), key=lambda i: -places[i]):
        pushed[i] = min(pushed[i], highest)
        highest = pushed[i] - gap
    lowest = span[0] + gap / 2
    for i in sorted(range(len(pushed)), key=lambda i: places[i]):
        pushed[i] = max(pushed[i], lowest)
        lowest = pushed[i] + gap
    return pushed


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: Box) -> float:
        """The common area in square pixels."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


def beside_points(
    points: Sequence[tuple[float, float]],
    names: Sequence[str],
    obstacles: Sequence[Box],
    size: tuple[float, float],
) -> list[tuple[float, float]]:
    """Where to centre each point's name, in pixels, so that it covers as little as possible.

    `points` are in pixels, origin top left; `obstacles` are the whiskers and curves; names avoid
    them, each other and the outside of `size` (width, height). Each name takes the free place
    that is nearest to its point.
    """
    taken = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in points] + list(obstacles)
    outside = [
        Box(-1e4, -1e4, 0, 1e4), Box(size[0], -1e4, 1e4, 1e4),
        Box(-1e4, -1e4, 1e4, 0), Box(-1e4, size[1], 1e4, 1e4),
    ]  # fmt: skip
    placed = []
    for (x, y), name in zip(points, names, strict=True):
        lines = name.split("<br>")
        half_width = CHARACTER * max(map(len, lines)) / 2
        half_height = LINE * len(lines) / 2
        candidates = [
            (x + across * (half_width + distance), y + down * (half_height + distance))
            for distance in (9, 18, 30, 44)
            for across, down in (
                (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1), (0, -1), (0, 1)
            )
        ]  # fmt: skip
        boxes = [
            Box(a - half_width, b - half_height, a + half_width, b + half_height)
            for a, b in candidates
        ]
        cost = [sum(box.overlap(other) for other in taken + outside) for box in boxes]
        best = cost.index(min(cost))
        placed.append(candidates[best])
        taken.append(boxes[best])
    return placed


# --- Dots with whiskers in labelled lanes: the figure for comparing a few scores ---

_LANE_PIXELS, _ALONE_PIXELS, _VALUES = 25, 44, 58
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "cross", "x")


class Lane(NamedTuple):
    """One dot: its name at the axis, its score (in the axis's units), its colour and symbol."""

    name: str
    score: Interval
    colour: str
    symbol: str = "circle"


def lanes(
    title: str,
    groups: Mapping[str, Sequence[Lane]],
    x: str,
    span: tuple[float, float],
    *,
    subtitle: str = "",
    value_format: str = ".1f",
) -> go.Figure:
    """Groups of lanes, top to bottom, each with a heading (an empty heading takes no place).

    `span` is the x axis's range. The values stand in a column at the right.
    """
    chart = framed(title, x=x, subtitle=subtitle, at_edge=True)
    ticks: list[tuple[float, str]] = []
    row = 0.0
    for heading, members in groups.items():
        if heading:
            ticks.append((row, f"<b>{heading}</b>"))
            row += 1
        for lane in members:
            ticks.append((row, _coloured(lane)))
            _add_dot(chart, lane, row, value_format)
            row += 1
        row += 0.45 if heading else 0
    chart.update_yaxes(
        tickvals=[at for at, _ in ticks],
        ticktext=[text for _, text in ticks],
        range=[row - (0.7 if any(groups) else 0.4), -0.6],
        showgrid=False,
        ticks="",
        showline=False,
    )
    chart.update_xaxes(range=span)
    pitch = _LANE_PIXELS if any(groups) else _ALONE_PIXELS
    margins = chart.layout.margin.t + chart.layout.margin.b
    chart.update_layout(height=round(margins + pitch * (row + 0.6)), margin_r=_VALUES)
    return chart


def _coloured(lane: Lane) -> str:
    return f'<span style="color:{text_colour(lane.colour)}">{lane.name}</span>'


def _add_dot(chart: go.Figure, lane: Lane, row: float, value_format: str) -> None:
    score = lane.score
    chart.add_scatter(
        x=[score.value],
        y=[row],
        error_x=whiskers(lane.colour, score),
        marker={"color": lane.colour, "size": 11, "symbol": lane.symbol},
        mode="markers",
        hovertemplate=f"{score.low:{value_format}} to {score.high:{value_format}}<extra></extra>",
        showlegend=False,
    )
    chart.add_annotation(
        x=1, xref="paper", xanchor="left", xshift=8, y=row, showarrow=False,
        text=f"{score.value:{value_format}}",
        font={"color": text_colour(lane.colour), "size": 13},
    )  # fmt: skip


def whiskers(colour: str, *scores: Interval, **style: float) -> dict[str, Any]:
    """The 95% intervals of dots; none where there is no bound, as of a single seed."""
    sizes = [
        (score.high - score.value, score.value - score.low) if score.low == score.low else (0, 0)
        for score in scores
    ]
    up, down = (list(one) for one in zip(*sizes, strict=True))
    bars = {"type": "data", "array": up, "arrayminus": down, "color": colour}
    return bars | {"thickness": 2, "width": 4} | style


def scaled(score: Interval, factor: float = 100) -> Interval:
    """The interval in other units, by default percent."""
    return Interval(factor * score.value, factor * score.low, factor * score.high, score.n)


# --- Numbers as sentences: what titles and reports say is read off the intervals here ---

Difference = Literal["higher", "lower", "no difference seen"]

CHANCE = 0.5


def compare(one: Interval, other: Interval) -> Difference:
    """How `one` stands to `other`.

    >>> compare(Interval(0.7, 0.6, 0.8, 100), Interval(0.5, 0.4, 0.59, 100))
    'higher'
    >>> compare(Interval(0.7, 0.6, 0.8, 100), Interval(0.5, 0.4, 0.60, 100))
    'no difference seen'
    """
    if not all(map(math.isfinite, (*_numbers(one), *_numbers(other)))):
        raise LabError(f"expected intervals of numbers to compare, got {one} and {other}.")
    if one.low > other.high:
        return "higher"
    return "lower" if one.high < other.low else "no difference seen"


def mean(one: Interval, other: Interval) -> Interval:
    """The mean of two scores of the same queries, such as both directions of retrieval.

    Its bounds are the means of the bounds: exact for scores that rise and fall together, too wide
    otherwise.
    """
    middles = ((a + b) / 2 for a, b in zip(_numbers(one), _numbers(other), strict=True))
    return Interval(*middles, min(one.n, other.n))


def _numbers(score: Interval) -> tuple[float, float, float]:
    return score.value, score.low, score.high


def percent(share: float, digits: int = 0) -> str:
    """A share from 0 to 1 as text.

    >>> percent(0.7583), percent(0.7583, 1)
    ('76%', '75.8%')
    """
    return f"{100 * share:.{digits}f}%"


def with_interval(score: Interval) -> str:
    """A share with its 95% interval, in percent.

    >>> with_interval(Interval(0.758, 0.731, 0.784, 1000))
    '75.8% (73.1–78.4)'
    """
    return f"{percent(score.value, 1)} ({100 * score.low:.1f}–{100 * score.high:.1f})"


def points(one: Interval, other: Interval) -> str:
    """The distance of two shares in percentage points, without its sign.

    >>> points(Interval(0.65, 0.6, 0.7, 9), Interval(0.758, 0.7, 0.8, 9))
    '10.8 points'
    """
    return f"{100 * abs(one.value - other.value):.1f} points"


def change(
    gap: Interval, more: str = "a gain", less: str = "a loss", neither: str = "no change seen"
) -> str:
    """A difference of two shares in points, in Markdown, and what its 95% interval allows to say.

    >>> change(Interval(0.031, 0.012, 0.05, 400))
    '+3.1 points (+1.2 to +5.0), **a gain**'
    >>> change(Interval(-0.01, -0.03, 0.01, 400), more="better", less="worse", neither="level")
    '-1.0 points (-3.0 to +1.0), **level**'
    """
    seen = more if gap.low > 0 else less if gap.high < 0 else neither
    value, low, high = (f"{100 * bound:+.1f}" for bound in (gap.value, gap.low, gap.high))
    return f"{value} points ({low} to {high}), **{seen}**"


def listed(names: Sequence[str]) -> str:
    """
    >>> listed(["kind", "colour", "place"])
    'kind, colour and place'
    """
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def capital(sentence: str) -> str:
    """The sentence with a capital first letter, the others as they are."""
    return sentence[:1].upper() + sentence[1:]
