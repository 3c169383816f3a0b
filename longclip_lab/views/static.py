"""Pages without a kernel.

The same function draws a state for the widget and for the page, so both say the same. Lines that
states share are stored once, pictures are stored once, and a few lines of JavaScript put the lines
of the chosen state in place. Without JavaScript the first state shows.

A plotly widget would send 5 MB of JavaScript with each view; these are 2 to 6 KB and need none.
Every element stands on a line of its own, so that `longclip_lab.views.static` can store what many
states share once. Lengths are in pixels of a picture 720 wide; text is 16 high.

plotly.js is the basic bundle (scatter, bar and pie; a quarter of the full one), vendored with its
licence under `vendor/`, of the version that the installed plotly.py writes JSON for. A content
security policy forbids the page every request.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale, unlabel_rgb

from longclip_lab.errors import LabError
from longclip_lab.files import to_json
from longclip_lab.views.html import Html, render
from longclip_lab.views.theme import CONFIG

if TYPE_CHECKING:
    import pandas as pd


# --- Views without a kernel: every state that the controls can reach stands in the page ---


@dataclass(frozen=True)
class Control:
    """A slider of the page: its label, the text of every position, and where it starts."""

    label: str
    values: Sequence[str]
    start: int = 0


def states_html(
    controls: Sequence[Control],
    draw: Callable[..., str],
    pictures: Mapping[str, str],
    title: str = "",
) -> Html:
    """A page piece with sliders; `draw(*positions)` gives the HTML of a state.

    A drawn `<img data-picture="name">` or `<image data-picture="name">` shows the data URI
    `pictures["name"]`.
    """
    lines: dict[str, int] = {}
    states = []
    for positions in itertools.product(*(range(len(control.values)) for control in controls)):
        drawn = draw(*positions).split("\n")
        states.append([lines.setdefault(line, len(lines)) for line in drawn])
    first = with_images(draw(*(control.start for control in controls)), pictures)
    used = set(re.findall(r'data-picture="([^"]+)"', "\n".join(lines)))
    data = {
        "controls": [list(control.values) for control in controls],
        "lines": list(lines),
        "states": states,
        "pictures": {name: uri for name, uri in pictures.items() if name in used},
    }
    body = render("states.html.j2", controls=controls, first=Html(first))
    return page(body, data, "states.js", title)


def page(body: Html, data: Any, script: str, title: str = "") -> Html:
    """`body` with its data and the script that brings it to life, under a name of its own."""
    data = inline(data)
    name = "lc-" + hashlib.sha256((body + data).encode()).hexdigest()[:12]
    return render("view.html.j2", name=name, body=body, data=data, script=script, title=title)


def with_images(drawn: str, pictures: Mapping[str, str]) -> str:
    """The HTML of a state with its pictures in it: `src` of an img, `href` of an image of SVG."""

    def link(found: re.Match[str]) -> str:
        return f'{found[1]} {"href" if found[1] == "<image" else "src"}="{pictures[found[2]]}"'

    return re.sub(r'(<image|<img) data-picture="([^"]+)"', link, drawn)


# --- Cards to leaf through, with filters, for pages where no kernel runs ---


@dataclass(frozen=True)
class Card:
    """The HTML of a card and what filters see of it."""

    html: str
    tags: Mapping[str, str]


def cards_html(
    cards: Sequence[Card],
    pictures: Mapping[str, str],
    values: Mapping[str, Sequence[str]] | None = None,
) -> Html:
    """Cards with a list for each tag, and buttons for the previous and the next one.

    `values` gives the order of a tag's values. Raises LabError for no cards.
    """
    if not cards:
        raise LabError("expected at least one card, got none. Widen the filters.")
    values = dict(values or {})
    lists = {}
    for tag in cards[0].tags:
        found = {card.tags[tag] for card in cards}
        names = [name for name in values.get(tag, sorted(found)) if name in found]
        if len(names) > 1:
            lists[tag] = names
    data = {
        "cards": [{"html": card.html, "tags": dict(card.tags)} for card in cards],
        "pictures": dict(pictures),
    }
    first = Html(with_images(cards[0].html, pictures))
    return page(
        render("cards.html.j2", lists=lists, count=len(cards), first=first), data, "cards.js"
    )


# --- Small charts as SVG text, for views that are drawn anew at every move of a control ---

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
    """A chart that grows by one element at a time; `html` is the whole."""

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
    elements: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    """Kind and attributes of everything in it, as the template reads them."""

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
        self.elements.append(
            ("line", {"points": path, "colour": colour, "width": width, "dash": dash})
        )

    def dot(self, x: float, y: float, colour: str, title: str = "", hollow: bool = False) -> None:
        """A dot whose title shows on hovering."""
        across, down = self.place(x, y)
        fill = "var(--lc-paper)" if hollow else colour
        dot = {"x": across, "y": down, "fill": fill, "colour": colour, "title": title}
        self.elements.append(("dot", dot))

    def picture(self, name: str) -> None:
        """A picture, by its name, over all of the chart."""
        (left, floor), (right, top) = (
            self.place(x, y) for x, y in ((self.x.low, self.y.low), (self.x.high, self.y.high))
        )
        size = {"x": left, "y": top, "width": right - left, "height": floor - top}
        self.elements.append(("picture", {"name": name, **size}))

    def rule(self, x: float, colour: str, dash: str = "") -> None:
        """A vertical line at x."""
        self.line([(x, self.y.low), (x, self.y.high)], colour, 2, dash)

    def text(
        self, x: float, y: float, text: str, anchor: str = "start", colour: str = "currentColor",
        shift: tuple[float, float] = (0, 0),
    ) -> None:  # fmt: skip
        """Text at a point, moved by `shift` pixels (right, down)."""
        across, down = self.place(x, y)
        words = {"x": across + shift[0], "y": down + shift[1], "anchor": anchor}
        self.elements.append(("text", words | {"colour": colour, "text": text}))

    def html(self) -> Html:
        """The chart as an SVG element."""
        return render(
            "chart.html.j2",
            chart=self,
            elements=self.elements,
            left=self.left,
            right=self.width - self.right,
            floor=self.height - self.bottom,
            x_ticks=[(self.place(tick, self.y.low)[0], f"{tick:g}") for tick in self.x.ticks],
            y_ticks=[(self.place(self.x.low, tick)[1], f"{tick:g}") for tick in self.y.ticks],
        )


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


# --- One HTML file that needs nothing else: styles, plotly.js, figures and pictures are ---

_POLICY = "default-src 'none'; img-src data:{}; style-src 'unsafe-inline'"
"""Of a page that asks nobody for anything."""
_TOP = 16  # pixels above a plot whose title stands in the page

DARK = {  # a figure's colours on white, and on a dark page
    "#262626": "#ECE9E2", "#595959": "#A9AFB9", "#E6E6E6": "#2E333B", "#BFBFBF": "#565D68",
    "#0072B2": "#4AA8E8", "#00609A": "#7CC3F4", "rgba(0, 114, 178,": "rgba(74, 168, 232,",
    "#D55E00": "#F0843C", "#A94700": "#F79A5B", "rgba(213, 94, 0,": "rgba(240, 132, 60,",
    "#009E73": "#2CC295", "#00735A": "#4CD3AA", "rgba(0, 158, 115,": "rgba(44, 194, 149,",
    "#CC79A7": "#DD92BB", "#9C4577": "#E6A6CB", "rgba(204, 121, 167,": "rgba(221, 146, 187,",
    "#1F6F9F": "#7CC8F2", "#8F6200": "#F0B740", "#6F6700": "#F0E442",
    '"white"': '"#1B1E24"',
}  # fmt: skip


def document(
    title: str,
    body: Html,
    styles: Sequence[str] = ("report",),
    language: str = "en",
    shared: Html | str = "",
    policy: str = _POLICY.format(""),
) -> Html:
    """A whole page around `body`; `shared` is what its blocks of `figure_block` have in common."""
    return render(
        "page.html.j2", title=title, body=body, styles=styles, language=language, shared=shared,
        policy=policy,
    )  # fmt: skip


def standalone_page(title: str, body: Html, language: str = "en") -> Html:
    """A whole document around `body`, which may hold blocks of `figure_block`."""
    layout = json.loads(go.Figure(layout={"template": "longclip"}).to_json())["layout"]
    shared = inline({"template": layout["template"], "dark": DARK, "config": CONFIG})
    policy = _POLICY.format(" blob:") + "; script-src 'unsafe-inline'"
    return document(title, body, language=language, shared=shared, policy=policy)


def inline(value: Any) -> Html:
    """JSON that cannot end the script element it stands in."""
    text = to_json(value, separators=(",", ":"), ensure_ascii=False)
    return Html(text.replace("</", r"<\/"))


def figure_block(chart: go.Figure, numbers: Html | str = "", kind: str = "") -> Html:
    """A card with a figure: its title and subtitle as text of the page, then the plot.

    `numbers` is a table that unfolds under the plot; `kind` a class of the card.
    """
    figure = json.loads(chart.to_json())
    layout = figure["layout"]
    heading = layout.pop("title")
    message = heading["text"].replace("<br>", " ")
    measured = heading.get("subtitle", {}).get("text", "")
    layout.pop("template")
    removed = layout["margin"]["t"] - _TOP
    layout["margin"]["t"], layout["height"] = _TOP, layout["height"] - removed
    layout.update(paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)")
    return render(
        "figure.html.j2", kind=kind, message=message, measured=measured, numbers=numbers,
        label=message.replace("\u00a0", " "), height=layout["height"], figure=inline(figure),
    )  # fmt: skip


def table_html(frame: pd.DataFrame, caption: str, words: Sequence[str] = ()) -> Html:
    """A DataFrame as an accessible table; numbers with one decimal, columns `words` to the left."""
    rows = [
        [f"{one:.1f}" if isinstance(one, float) else str(one) for one in row.values()]
        for row in frame.to_dict("records")
    ]
    columns = [str(name) for name in frame]
    return render("table.html.j2", caption=caption, columns=columns, rows=rows, words=words)
