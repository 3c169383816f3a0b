"""The token explorer for a page where no kernel runs: a slider over sentences and words.

W words, P patches, h w rows and columns of the patch grid.
"""

from __future__ import annotations

import html
import textwrap
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from longclip_lab.attribution import PATCH_METHODS
from longclip_lab.attribution.inputs import Picture
from longclip_lab.errors import LabError
from longclip_lab.models import Clip
from longclip_lab.text.splitting import Span
from longclip_lab.views.frame import framed
from longclip_lab.views.html import picture_uri
from longclip_lab.views.lighting import MATRICES, Lighting, Strip
from longclip_lab.views.overlay import coloured, placed

_COLUMN = 40  # characters of a line of the text
_UNREAD_LINES = 4
_LINE = 23  # pixels
_PICTURE = 360  # pixels
_NAMED = 3  # words that a patch names
_SHORT_WORDS = 3  # characters; shorter words get no step of their own


def explorer_figure(
    clip: Clip,
    image: Picture,
    text: str,
    method: str = "similarity-gain",
    limit: int = 24,
    **options: Any,
) -> go.Figure:
    """A picture with what lights up in it for the text, its sentences and its words.

    The slider has at most `limit` steps: the whole text, then the sentences that were read, then
    the words, each word once and none of one or two letters. Hovering over a patch names the words
    that it lights up. `method` and `options` are those of
    `longclip_lab.views.TokenExplorer`. Raises LabError as it does, and for a limit below 1.
    """
    if limit < 1:
        raise LabError(f"expected a limit of at least one step, got {limit}.")
    lighting = Lighting(clip, [image])
    strip = lighting.strip(text)
    steps = _steps(strip, limit)
    maps = {span: lighting.patches(0, text, span, method, options) for _, span in steps}
    matrix = lighting.matrix(0, text, method)
    rows, columns = matrix.scores.shape[1:]
    chart = framed(
        f"What lights up in the picture for the text, its sentences and its words: {method}",
        subtitle=f"{clip.name}: {_about(method)}",
        height=max(_PICTURE, _LINE * _written(strip, None).count("<br>")) + 190,
    )
    first = maps[steps[0][1]]
    chart.add_heatmap(
        **coloured(first.scores), **placed(first), dx=1, dy=1, xgap=1, ygap=1,
        text=_named(strip, matrix.scores),
        hovertemplate="%{text}<br>score: %{z:.2g}<extra></extra>",
        hoverlabel={"font": {"size": 16}},
        colorbar={"title": {"text": "score"}, "len": 0.8, "tickfont": {"size": 16}},
    )  # fmt: skip
    _add_picture(chart, matrix.image, rows, columns)
    chart.add_annotation(
        text=_written(strip, steps[0][1]), x=0, y=1, xref="paper", yref="paper", xanchor="left",
        yanchor="top", align="left", showarrow=False, font={"size": 16},
    )  # fmt: skip
    _add_slider(chart, strip, steps, maps)
    return chart


def _steps(strip: Strip, limit: int) -> list[tuple[str, Span]]:
    """What the slider stops at: a name and the characters, cut off where the model stops."""
    steps = [("the whole text", Span(0, len(strip.text)))]
    for number, span in enumerate(strip.sentences, start=1):
        if span.start < strip.read:
            steps.append((f"sentence {number}", span))
    seen: set[str] = set()
    for span in strip.words[: strip.words_read]:
        word = strip.text[slice(*span)]
        if len(word) >= _SHORT_WORDS and word.lower() not in seen:
            seen.add(word.lower())
            steps.append((f"“{word}”", span))
    return [(name, strip.cut_off(span)) for name, span in steps[:limit]]


def _about(method: str) -> str:
    return MATRICES[method] if method in MATRICES else PATCH_METHODS[method].about


def _named(strip: Strip, scores_Thw: np.ndarray) -> list[list[str]]:
    """For every patch the words that it lights up most, each word once."""
    of_WT = strip.tokens_of_words / np.maximum(strip.tokens_of_words.sum(1, keepdims=True), 1)
    scores_Whw = np.tensordot(of_WT, scores_Thw, axes=1)
    words = [strip.text[slice(*span)].lower() for span in strip.words[: strip.words_read]]

    def told(row: int, column: int) -> str:
        best: dict[str, float] = {}
        for index in np.argsort(-scores_Whw[:, row, column], kind="stable"):
            if words[index].isalnum():
                best.setdefault(words[index], scores_Whw[index, row, column])
        named = [f"{html.escape(word)} {score:.2f}" for word, score in list(best.items())[:_NAMED]]
        return f"row {row + 1}, column {column + 1}<br>lights up: {', '.join(named)}"

    rows, columns = scores_Thw.shape[1:]
    return [[told(row, column) for column in range(columns)] for row in range(rows)]


def _add_picture(chart: go.Figure, image_SS3: np.ndarray, rows: int, columns: int) -> None:
    """The picture under the heat map: in colours for the first step, else grey."""
    photo = len(image_SS3) > 100
    picture = Image.fromarray(image_SS3)
    for shown, opacity in ((picture.convert("L"), 1), (picture, 0)):
        width = columns + 1e-6 * (1 - opacity)  # plotly keeps one of two pictures of the same place
        chart.add_layout_image(
            source=picture_uri(shown, photo), x=0, y=0, sizex=width, sizey=rows, xref="x",
            yref="y", sizing="stretch", layer="below", opacity=opacity,
        )  # fmt: skip
    plain = {"showgrid": False, "showticklabels": False, "ticks": "", "showline": False}
    chart.update_xaxes(**plain, range=[0, columns], domain=[0.52, 1], constrain="domain")
    chart.update_yaxes(
        **plain, range=[rows, 0], scaleanchor="x", constrain="domain", constraintoward="top"
    )
    chart.update_layout(margin={"l": 10, "b": 100})


def _add_slider(
    chart: go.Figure, strip: Strip, steps: list[tuple[str, Span]], maps: dict[Span, Any]
) -> None:
    """One step for nothing, which shows the picture in its colours, then one for each span."""
    stops = [
        {
            "label": "nothing", "method": "update",
            "args": [{"opacity": [0]}, {
                "images[1].opacity": 1, "annotations[0].text": _written(strip, None)
            }],
        }
    ]  # fmt: skip
    for name, span in steps:
        drawn = {**coloured(maps[span].scores), **placed(maps[span])}
        shades = {key: [value] for key, value in drawn.items()}
        text = _written(strip, span)
        stops.append({
            "label": name, "method": "update",
            "args": [{"opacity": [1], **shades}, {
                "images[1].opacity": 0, "annotations[0].text": text
            }],
        })  # fmt: skip
    chart.update_layout(
        sliders=[{
            "active": 1, "steps": stops, "pad": {"t": 20, "b": 10}, "ticklen": 5,
            "font": {"color": "rgba(0,0,0,0)", "size": 1},
            "currentvalue": {
                "prefix": "pointed at: ", "font": {"size": 17, "color": "#1d2126"}, "offset": 14
            },
        }]
    )  # fmt: skip


def _written(strip: Strip, lit: Span | None) -> str:
    """The text in lines: what is pointed at in bold, what was never read in grey."""
    lines, at = [], 0
    for span in strip.sentences:
        for line in textwrap.wrap(strip.text[slice(*span)], _COLUMN, break_long_words=False):
            start = strip.text.index(line.split()[0], at) if line.split() else at
            end = start
            for word in line.split():
                end = strip.text.index(word, end) + len(word)
            lines.append((start, end))
            at = end
    unread = [i for i, (start, _) in enumerate(lines) if start >= strip.read]
    shown = lines[: unread[0] + _UNREAD_LINES] if unread else lines
    written = [_line(strip, Span(*line), lit) for line in shown]
    if len(shown) < len(lines):
        written.append(f'<span style="color:#8a8f96">… {len(lines) - len(shown)} more lines</span>')
    return "<br>".join(written)


def _line(strip: Strip, line: Span, lit: Span | None) -> str:
    lit = lit or Span(0, 0)
    edges = sorted({*line, *(min(max(e, line.start), line.end) for e in (*lit, strip.read))})
    pieces = []
    for start, end in pairwise(edges):
        piece = html.escape(strip.text[start:end].replace("\n", " "))
        if start >= strip.read:
            piece = f'<span style="color:#8a8f96">{piece}</span>'
        elif lit.start <= start < lit.end:
            piece = f'<b style="color:#a94700">{piece}</b>'
        pieces.append(piece)
    return "".join(pieces)
