"""Small charts as SVG text, for views that are drawn anew at every move of a control.

A plotly widget would send 5 MB of JavaScript with each view; these are 2 to 6 KB and need none.
Every element stands on a line of its own, so that `longclip_lab.views.states` can store what many
states share once. Lengths are in pixels of a picture 720 wide; text is 16 high.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from plotly.colors import sample_colorscale, unlabel_rgb

WIDTH = 720


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high`, linear or logarithmic, with ticks at `ticks`."""

    low: float
    high: float
    ticks: Sequence[float]
    title: str = ""
    log: bool = False

    def share(self, value: float) -> float:
        """Where a value lies between `low` (0) and `high` (1)."""
        low, high, value = (
            math.log(v) if self.log else v for v in (self.low, self.high, max(value, 1e-12))
        )
        return (value - low) / (high - low)


@dataclass
class Chart:
    """A chart that grows by one SVG element at a time; `str` is the whole."""

    x: Scale
    y: Scale
    label: str
    """What the chart shows, for those who hear it."""
    width: float = WIDTH
    height: float = 250
    left: float = 76
    right: float = 24
    top: float = 14
    bottom: float = 58
    elements: list[str] = field(default_factory=list)

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point, from the top left."""
        across = self.left + self.x.share(x) * (self.width - self.left - self.right)
        down = self.height - self.bottom - self.y.share(y) * self._inner_height
        return round(across, 1), round(down, 1)

    @property
    def _inner_height(self) -> float:
        return self.height - self.top - self.bottom

    def line(
        self, points: Iterable[tuple[float, float]], colour: str, width: float = 3, dash: str = ""
    ) -> None:
        """A line through points."""
        path = " ".join(f"{a},{b}" for a, b in (self.place(x, y) for x, y in points))
        dashes = f' stroke-dasharray="{dash}"' * bool(dash)
        self.elements.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{width}"'
            f"{dashes}/>"
        )

    def dot(self, x: float, y: float, colour: str, title: str = "", hollow: bool = False) -> None:
        """A dot whose title shows on hovering."""
        across, down = self.place(x, y)
        fill = "var(--lc-paper)" if hollow else colour
        self.elements.append(
            f'<circle cx="{across}" cy="{down}" r="7" fill="{fill}" stroke="{colour}" '
            f'stroke-width="3"><title>{html.escape(title)}</title></circle>'
        )

    def rule(self, x: float, colour: str, dash: str = "") -> None:
        """A vertical line at x."""
        self.line([(x, self.y.low), (x, self.y.high)], colour, 2, dash)

    def text(
        self, x: float, y: float, text: str, anchor: str = "start", colour: str = "currentColor",
        shift: tuple[float, float] = (0, 0),
    ) -> None:  # fmt: skip
        """Text at a point, moved by `shift` pixels (right, down)."""
        across, down = self.place(x, y)
        self.elements.append(
            f'<text x="{across + shift[0]}" y="{down + shift[1]}" text-anchor="{anchor}" '
            f'fill="{colour}">{html.escape(text)}</text>'
        )

    def _axes(self) -> list[str]:
        left, right = self.left, self.width - self.right
        floor = self.height - self.bottom
        drawn = [f'<line class="axis" x1="{left}" x2="{right}" y1="{floor}" y2="{floor}"/>']
        for tick in self.x.ticks:
            across, _ = self.place(tick, self.y.low)
            drawn += [
                f'<line class="axis" x1="{across}" x2="{across}" y1="{floor}" y2="{floor + 5}"/>',
                f'<text class="soft" x="{across}" y="{floor + 23}" text-anchor="middle">'
                f"{tick:g}</text>",
            ]
        for tick in self.y.ticks:
            _, down = self.place(self.x.low, tick)
            drawn += [
                f'<line class="grid" x1="{left}" x2="{right}" y1="{down}" y2="{down}"/>',
                f'<text class="soft" x="{left - 9}" y="{down + 5.5}" text-anchor="end">'
                f"{tick:g}</text>",
            ]
        middle = (self.top + floor) / 2
        return [
            *drawn,
            f'<text class="soft" x="{(left + right) / 2}" y="{self.height - 8}" '
            f'text-anchor="middle">{html.escape(self.x.title)}</text>',
            f'<text class="soft" transform="translate(18 {middle}) rotate(-90)" '
            f'text-anchor="middle">{html.escape(self.y.title)}</text>',
        ]

    def __str__(self) -> str:
        head = (
            f'<svg class="lc-chart" viewBox="0 0 {self.width} {self.height}" role="img" '
            f'aria-label="{html.escape(self.label)}">'
        )
        return "\n".join([head, *self._axes(), *self.elements, "</svg>"])


def log_ticks(high: float) -> list[int]:
    """1, 2, 5, 10, 20, ... up to `high`; powers of ten alone when there would be many.

    >>> log_ticks(60), log_ticks(3000)
    ([1, 2, 5, 10, 20, 50], [1, 10, 100, 1000])
    """
    steps = (1, 2, 5) if high <= 300 else (1,)
    ticks = [step * 10**power for power in range(7) for step in steps]
    return [tick for tick in ticks if tick <= high]


def round_ticks(low: float, high: float, count: int = 6) -> list[float]:
    """About `count` round numbers from `low` to `high`.

    >>> round_ticks(0, 75)
    [0, 10, 20, 30, 40, 50, 60, 70]
    """
    rough = (high - low) / count
    power = 10 ** math.floor(math.log10(rough))
    step = min((f * power for f in (1, 2, 5, 10)), key=lambda s: abs(math.log(s / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


_LEVELS = 256
_SHADES = [
    channel
    for colour in sample_colorscale("Cividis", np.linspace(0, 1, _LEVELS).tolist())
    for channel in (round(value) for value in unlabel_rgb(colour))
]


def heat_map_uri(values: np.ndarray, low: float, high: float) -> str:
    """A matrix as a PNG data URI, a pixel an entry, dark (`low`) to light (`high`)."""
    from PIL import Image

    levels = np.clip((values - low) / (high - low), 0, 1) * (_LEVELS - 1)
    image = Image.fromarray(np.rint(levels).astype(np.uint8), mode="L")
    image.putpalette(_SHADES)
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def shade(share: float) -> str:
    """The colour of a heat map at a share of its range, 0 to 1."""
    level = round(min(max(share, 0.0), 1.0) * (_LEVELS - 1))
    return "rgb({},{},{})".format(*_SHADES[3 * level : 3 * level + 3])
