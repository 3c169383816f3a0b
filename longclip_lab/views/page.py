"""One HTML file that needs nothing else: styles, plotly.js, figures and pictures are inside.

plotly.js is the basic bundle (scatter, bar and pie; a quarter of the full one), vendored with its
licence under `vendor/`, of the version that the installed plotly.py writes JSON for. A content
security policy forbids the page every request.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from longclip_lab.files import to_json
from longclip_lab.views.theme import CONFIG

if TYPE_CHECKING:
    import pandas as pd

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


def page(title: str, body: str, language: str = "en") -> str:
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


def figure_block(chart: go.Figure, numbers: str = "", kind: str = "") -> str:
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
    return (
        f'<figure class="card {kind}"><figcaption><h3>{html.escape(message)}</h3>'
        f'<p class="measured">{html.escape(measured)}</p></figcaption>'
        f'<div class="plot" role="img" aria-label="{html.escape(_plain(message))}" '
        f'style="height:{layout["height"]}px">'
        f'<script type="application/json">{_inline(figure)}</script></div>{unfolding}</figure>'
    )


def _plain(text: str) -> str:
    return text.replace("\u00a0", " ")


def table_html(frame: pd.DataFrame, caption: str, words: Sequence[str] = ()) -> str:
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
    return (
        f'<div class="scroll"><table><caption>{html.escape(caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _class(name: str, words: Sequence[str]) -> str:
    return ' class="words"' if name in words else ""
