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
import html
import io
import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go
from plotly.colors import sample_colorscale, unlabel_rgb

from longclip_lab.errors import LabError
from longclip_lab.files import to_json
from longclip_lab.views.html import Html
from longclip_lab.views.theme import CONFIG, capital

if TYPE_CHECKING:
    import pandas as pd


# --- Views without a kernel: every state that the controls can reach stands in the page ---

STYLE = """<style>
.lc-view .fact {border-bottom: .16em solid var(--fact)}
.lc-view {--lc-paper: var(--jp-layout-color0, #fff);
  --lc-soft: var(--jp-content-font-color2, #595959); --lc-line: #8886;
  --jp-widgets-font-size: 16px; --jp-widgets-inline-height: 34px;
  font-size: 16px; line-height: 1.5; max-width: 760px}
.lc-view :is(.widget-html-content, .widget-html) {font-size: 16px; line-height: 1.5; height: auto}
.lc-view .headline {font-size: 20px; line-height: 1.35; font-weight: 600; margin: 6px 0 4px}
.lc-view .soft {color: var(--lc-soft); fill: var(--lc-soft)}
.lc-view p {margin: 4px 0}
.lc-view .lc-chart {display: block; width: 100%; height: auto; margin: 6px 0}
.lc-view .lc-chart text {font-size: 16px; font-family: inherit}
.lc-view .axis {stroke: var(--lc-soft)}
.lc-view .grid {stroke: var(--lc-line); stroke-width: .7}
.lc-view .text {font-size: 17px; line-height: 1.65; margin: 8px 0}
.lc-view .unread {opacity: .45}
.lc-view .mark {white-space: nowrap; font-size: 16px; font-weight: 600; color: #C25500;
  border-left: 3px solid #D55E00; padding: 0 .4em; margin: 0 .2em}
.lc-view .thumbs {display: flex; gap: 10px; margin: 8px 0 2px; padding: 0; list-style: none}
.lc-view .thumbs li {flex: 1 1 0; min-width: 0; margin: 0}
.lc-view .thumbs img, .lc-view img.big {width: 100%; aspect-ratio: 1; object-fit: cover;
  border-radius: 6px; display: block; margin: 0; outline: 5px solid transparent;
  outline-offset: -5px}
.lc-view .thumbs .own img {outline-color: #D55E00}
.lc-view .chosen {display: inline-block; background: #D55E00; color: #fff; border-radius: 4px;
  padding: 0 .35em; font-weight: 600}
.lc-view table {border-collapse: collapse; width: 100%; font-size: 16px; margin: 6px 0}
.lc-view :is(th, td) {text-align: left; padding: 5px 10px 5px 0; border: 0; vertical-align: middle;
  background: none}
.lc-view td.number, .lc-view th.number {text-align: right; font-variant-numeric: tabular-nums;
  white-space: nowrap}
.lc-view tbody tr {border-top: 1px solid var(--lc-line)}
.lc-states .controls {display: flex; flex-wrap: wrap; gap: 8px 20px; align-items: end}
.lc-states label {display: flex; flex-direction: column; flex: 1 1 220px; font-weight: 600}
.lc-states input[type=range] {width: 100%; accent-color: #0072B2; height: 28px; margin: 0}
.lc-states :is(button, select) {font: inherit; font-weight: 400; padding: 4px 12px;
  min-height: 36px}
</style>"""

_SCRIPT = """<script>
(() => {
  const box = document.getElementById("%s");
  const data = JSON.parse(box.querySelector("script").textContent);
  const inputs = [...box.querySelectorAll("input")];
  const panel = box.querySelector(".panel");
  const show = () => {
    let at = 0;
    inputs.forEach((input, i) => {
      const names = data.controls[i];
      at = at * names.length + Number(input.value);
      input.parentElement.querySelector("output").textContent = names[input.value];
      input.setAttribute("aria-valuetext", names[input.value]);
    });
    panel.innerHTML = data.states[at].map(line => data.lines[line]).join("\\n");
    for (const image of panel.querySelectorAll("[data-picture]"))
      image.setAttribute(
        image.tagName === "image" ? "href" : "src", data.pictures[image.dataset.picture]);
  };
  inputs.forEach(input => input.addEventListener("input", show));
  show();
})();
</script>"""


_KEYS = """<script>
document.getElementById("%s").addEventListener("keydown", event => event.stopPropagation());
</script>"""


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
    first = with_pictures(draw(*(control.start for control in controls)), pictures)
    used = set(re.findall(r'data-picture="([^"]+)"', "\n".join(lines)))
    data = to_json(
        {
            "controls": [list(control.values) for control in controls],
            "lines": list(lines),
            "states": states,
            "pictures": {name: uri for name, uri in pictures.items() if name in used},
        },
        separators=(",", ":"),
        ensure_ascii=False,
    )
    sliders = "".join(
        f"<label><span>{html.escape(control.label)}: <output>"
        f"{html.escape(control.values[control.start])}</output></span>"
        f'<input type="range" min="0" max="{len(control.values) - 1}" value="{control.start}">'
        "</label>"
        for control in controls
    )
    return page(
        f'<div class="controls">{sliders}</div><div class="panel" aria-live="polite">{first}</div>',
        data,
        _SCRIPT,
        title,
    )


def page(body: str, data: str, script: str, title: str = "") -> Html:
    """`body` with its data and the script that brings it to life, under a name of its own.

    JupyterLab would take arrow keys for itself; they are kept from it.
    """
    identity = "lc-" + hashlib.sha256((body + data).encode()).hexdigest()[:12]
    head = f'<div class="headline">{html.escape(title)}</div>' * bool(title)
    data = data.replace("</", r"<\/")  # nothing in the data may end the script
    return Html(
        f'{STYLE}<div class="lc-view lc-states" id="{identity}">{head}{body}'
        f'<script type="application/json">{data}</script></div>'
        f"{script % identity}{_KEYS % identity}"
    )


def with_pictures(drawn: str, pictures: Mapping[str, str]) -> str:
    """The HTML of a state with its pictures in it: `src` of an img, `href` of an image of SVG."""

    def link(found: re.Match[str]) -> str:
        return f'{found[1]} {"href" if found[1] == "<image" else "src"}="{pictures[found[2]]}"'

    return re.sub(r'(<image|<img) data-picture="([^"]+)"', link, drawn)


# --- Cards to leaf through, with filters, for pages where no kernel runs ---

_CARDS_SCRIPT = """<script>
(() => {
  const box = document.getElementById("%s");
  const data = JSON.parse(box.querySelector("script").textContent);
  const filters = [...box.querySelectorAll("select")];
  const [back, on] = box.querySelectorAll("button");
  const panel = box.querySelector(".panel");
  let chosen = data.cards, at = 0;
  const show = () => {
    box.querySelector(".count").textContent = chosen.length
      ? `${at + 1} of ${chosen.length}` : "no question is left";
    back.disabled = at === 0;
    on.disabled = at >= chosen.length - 1;
    panel.innerHTML = chosen.length ? chosen[at].html : "";
    for (const image of panel.querySelectorAll("[data-picture]"))
      image.src = data.pictures[image.dataset.picture];
  };
  const move = step => { at += step; show(); };
  const filter = () => {
    chosen = data.cards.filter(card => filters.every(
      choice => !choice.value || card.tags[choice.name] === choice.value));
    at = 0;
    show();
  };
  back.addEventListener("click", () => move(-1));
  on.addEventListener("click", () => move(1));
  filters.forEach(choice => choice.addEventListener("change", filter));
  show();
})();
</script>"""


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
    lists = []
    for tag in cards[0].tags:
        found = {card.tags[tag] for card in cards}
        names = [name for name in values.get(tag, sorted(found)) if name in found]
        options = "".join(f"<option>{html.escape(name)}</option>" for name in names)
        if len(names) > 1:
            lists.append(
                f'<label style="flex-basis:120px">{html.escape(tag)}'
                f'<select name="{html.escape(tag)}"><option value="">all</option>{options}'
                "</select></label>"
            )
    data = to_json(
        {
            "cards": [{"html": card.html, "tags": dict(card.tags)} for card in cards],
            "pictures": dict(pictures),
        },
        separators=(",", ":"),
        ensure_ascii=False,
    )
    body = (
        f'<div class="controls">{"".join(lists)}</div><div class="controls" '
        'style="margin-top:10px;align-items:center"><button type="button">← previous</button>'
        '<button type="button">next →</button>'
        f'<span class="count">1 of {len(cards)}</span></div>'
        f'<div class="panel" aria-live="polite">{with_pictures(cards[0].html, pictures)}</div>'
    )
    return page(body, data, _CARDS_SCRIPT)


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


# --- One HTML file that needs nothing else: styles, plotly.js, figures and pictures are ---

_POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)
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


def render(package: str, template: str, **values: Any) -> str:
    """A Jinja template of `package`'s folder "templates" with these values.

    Texts are escaped; figures and other `Html` are not. A name that the template does not know is
    an error.
    """
    import jinja2  # here, as the first figure of a lesson needs no template

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=lambda share: f"{100 * share:.1f}", capital=capital)
    environment.globals.update(zipped=lambda names, words: [(n, words.get(n, "")) for n in names])
    return environment.get_template(template).render(values)


def standalone_page(title: str, body: str, language: str = "en") -> str:
    """A whole document around `body`, which may hold blocks of `figure_block`."""
    own = files("longclip_lab.views")
    styles = (own / "styles" / "report.css").read_text("utf-8")
    script = (own / "styles" / "report.js").read_text("utf-8")
    plotly_js = (own / "vendor" / "plotly-basic.min.js").read_text("utf-8")
    template = json.loads(go.Figure(layout={"template": "longclip"}).to_json())["layout"][
        "template"
    ]
    shared = {"template": template, "dark": DARK, "config": CONFIG}
    return f"""<!DOCTYPE html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{html.escape(title)}</title>
<style>
{styles}</style>
</head>
<body>
{body}
<script type="application/json" id="shared">{_inline(shared)}</script>
<script id="plotly">{plotly_js}</script>
<script>
{script}</script>
</body>
</html>
"""


def _inline(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return to_json(value, separators=(",", ":"), ensure_ascii=False).replace("</", r"<\/")


def figure_block(chart: go.Figure, numbers: str = "", kind: str = "") -> Html:
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
    unfolding = f"<details><summary>The numbers</summary>{numbers}</details>" if numbers else ""
    return Html(
        f'<figure class="card {kind}"><figcaption><h3>{html.escape(message)}</h3>'
        f'<p class="measured">{html.escape(measured)}</p></figcaption>'
        f'<div class="plot" role="img" aria-label="{html.escape(_plain(message))}" '
        f'style="height:{layout["height"]}px">'
        f'<script type="application/json">{_inline(figure)}</script></div>{unfolding}</figure>'
    )


def _plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def table_html(frame: pd.DataFrame, caption: str, words: Sequence[str] = ()) -> Html:
    """A DataFrame as an accessible table; numbers with one decimal, columns `words` to the left."""

    def cell(name: str, value: Any) -> str:
        text = f"{value:.1f}" if isinstance(value, float) else str(value)
        return f"<td{_class(name, words)}>{html.escape(text)}</td>"

    head = "".join(
        f'<th scope="col"{_class(name, words)}>{html.escape(str(name))}</th>' for name in frame
    )
    body = "".join(
        "<tr>" + "".join(cell(name, value) for name, value in row.items()) + "</tr>"
        for row in frame.to_dict("records")
    )
    return Html(
        f'<div class="scroll"><table><caption>{html.escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _class(name: str, words: Sequence[str]) -> str:
    return ' class="words"' if name in words else ""
