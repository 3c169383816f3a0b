"""Labels that stand beside what they name, so that no reader has to match colours to a legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go

from longclip_lab.views.theme import COLOURS

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
