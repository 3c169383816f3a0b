"""Scores on words, on both sides, and for every pair of a token and a patch.

T tokens, P patches, W words, h w rows and columns of the patch grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

import numpy as np
import plotly.graph_objects as go

from longclip_lab.attribution.values import Explanation, TokenMap, TokenPatches
from longclip_lab.attribution.wording import groups_of
from longclip_lab.errors import LabError
from longclip_lab.views.frame import GREY, framed
from longclip_lab.views.html import Html
from longclip_lab.views.overlay import LESS, MORE, coloured, strength
from longclip_lab.views.patch_maps import add_map
from longclip_lab.views.wording import capital

_MANY_WORDS = 80  # more cannot be read at an axis
_MANY_TOKENS = 60
_PICTURE, _GAP = 0.36, 0.17  # of an explanation's width
_STYLE = """<style>
.lc-strip {display: grid; grid-template-columns: max-content 1fr; gap: .5em 1em; margin: .5em 0;
  align-items: baseline; max-width: 58em}
.lc-strip .words {line-height: 1.9}
.lc-strip .words span {padding: .18em .1em; border-radius: 4px; color: #1d2126}
.lc-strip .words .unread {color: #6b7077; font-style: italic}
.lc-strip .name {font-weight: 600; text-align: right}
.lc-strip small {grid-column: 2; color: #595959}
</style>"""


def token_map_figure(found: TokenMap) -> go.Figure:
    """A bar for every word that was read, its tokens' scores added up: orange for, blue against.

    Raises LabError for a text of which no word was read.
    """
    words, scores_W = word_scores(found)
    against = int((scores_W < 0).sum())
    title = f"{found.method}: “{words[int(np.argmax(scores_W))]}” counts most"
    if against:
        title += f"; {against} of {len(words)} words count against"
    unread = f"; {found.unread} more tokens were never read" if found.unread else ""
    chart = framed(capital(title), y="score", subtitle=f"{escape(found.model)}{unread}", height=380)
    _add_bars(chart, words, scores_W, ("x", "y"))
    return chart


def token_strip(maps: TokenMap | Mapping[str, TokenMap]) -> Html:
    """A text with its words shaded by their scores, one line for each map, as HTML.

    Each line has its own scale: its strongest shade is its largest score. Hovering names a word's
    score. Raises LabError for no maps and for a text of which no word was read.
    """
    maps = {maps.method: maps} if isinstance(maps, TokenMap) else dict(maps)
    if not maps:
        raise LabError("expected at least one map on tokens, got none.")
    lines = "".join(
        f'<span class="name">{escape(label)}</span><span class="words">{_shaded(found)}</span>'
        for label, found in maps.items()
    )
    return Html(
        f'{_STYLE}<div class="lc-strip">{lines}<small><span style="background:rgba({MORE}, .9);'
        'padding:.1em .5em;color:#1d2126">for</span> <span style="background:rgba('
        f'{LESS}, .9);color:white;padding:.1em .5em">against</span> '
        "each line has its own scale</small></div>"
    )


def explanation_figure(found: Explanation, smooth: bool = False) -> go.Figure:
    """Both sides of one similarity: the map over the picture, and bars for the words."""
    words, scores_W = word_scores(found.tokens)
    best = words[int(scores_W.argmax())]
    chart = framed(
        f"Cosine {found.similarity:.2f}: among the words, “{best}” counts most",
        y="score of the word",
        subtitle=escape(f"{found.tokens.method}; {found.tokens.model}"),
        at_edge=True,
    )
    chart.update_layout(
        height=chart.layout.margin.t + 360,
        margin={"l": 10, "b": 90, "r": 10},
        xaxis={"domain": [0, _PICTURE], "anchor": "y"},
        yaxis={"title": None, "anchor": "x"},
        xaxis2={"domain": [_PICTURE + _GAP, 1], "anchor": "y2"},
        yaxis2={"anchor": "x2", "title": {"text": "score of the word"}},
    )
    add_map(chart, found.patches, ("x", "y"), smooth=smooth)
    _add_bars(chart, words, scores_W, ("x2", "y2"))
    return chart


def token_patches_figure(found: TokenPatches) -> go.Figure:
    """The matrix itself: a row for every token, a column for every patch of the picture's rows."""
    count, rows, columns = found.scores.shape
    scores_TP = found.scores.reshape(count, -1)
    token, patch = np.unravel_index(int(scores_TP.argmax()), scores_TP.shape)
    tokens = [found.text[slice(*span)] for span in found.spans]
    places = [f"row {p // columns + 1}, column {p % columns + 1}" for p in range(rows * columns)]
    chart = framed(
        f"Largest of {count} × {rows * columns} entries: “{tokens[token]}” with the patch in "
        f"{places[patch]}",
        x="patches of the picture, one row after the other",
        subtitle=escape(f"{found.method}; {found.model}"),
        height=210 + 20 * min(count, _MANY_TOKENS),
        at_edge=True,
    )
    chart.add_heatmap(
        **coloured(scores_TP), x0=0, dx=1, y0=0, dy=1,
        colorbar={"title": {"text": "score"}, "thickness": 14},
        hovertemplate="%{y}, %{x}: %{z}<extra></extra>",
    )  # fmt: skip
    for edge in range(1, rows):
        chart.add_vline(x=edge * columns - 0.5, line={"color": GREY, "width": 1})
    step = -(-count // _MANY_TOKENS)
    plain = {"showgrid": False, "ticks": ""}
    chart.update_yaxes(
        plain, range=[count - 0.5, -0.5], tickvals=list(range(0, count, step)),
        ticktext=list(map(escape, tokens[::step])),
    )  # fmt: skip
    chart.update_xaxes(
        plain, tickvals=[columns * (row + 0.5) - 0.5 for row in range(rows)],
        ticktext=[f"row {row + 1}" for row in range(rows)],
    )  # fmt: skip
    return chart


def word_scores(found: TokenMap) -> tuple[list[str], np.ndarray]:
    """The words that were read, and their scores [W]: their tokens' added up.

    Raises LabError for a text of which no word was read.
    """
    groups = groups_of(found.text, found.spans, "word")
    if not groups:
        raise LabError(f"'{found.model}' read no word of {found.text!r}.")
    words = [found.text[slice(*_span(found, group))] for group in groups]
    return words, np.array([float(found.scores[group].sum()) for group in groups])


def _span(found: TokenMap, group: np.ndarray) -> tuple[int, int]:
    """The characters of the tokens of a word."""
    return found.spans[group[0]][0], found.spans[group[-1]][1]


def _add_bars(
    chart: go.Figure, words: list[str], scores_W: np.ndarray, axes: tuple[str, str]
) -> None:
    """A bar for each word, in the order of the text."""
    chart.add_bar(
        x=list(range(len(words))), y=scores_W.round(6), xaxis=axes[0], yaxis=axes[1],
        marker={"color": [f"rgb({MORE if score > 0 else LESS})" for score in scores_W]},
        customdata=words, hovertemplate="“%{customdata}”: %{y:.3g}<extra></extra>",
    )  # fmt: skip
    step = -(-len(words) // _MANY_WORDS)
    chart.layout["xaxis" + axes[0][1:]].update(
        tickvals=list(range(0, len(words), step)), ticktext=list(map(escape, words[::step])),
        tickangle=-60 if len(words) > 8 else 0, tickfont={"size": 11 if len(words) > 40 else 14},
        showgrid=False, range=[-0.6, len(words) - 0.4],
    )  # fmt: skip
    chart.layout["yaxis" + axes[1][1:]].update(zeroline=True, zerolinecolor="#BFBFBF")


def _shaded(found: TokenMap) -> str:
    """The text that was read, every word shaded, and how much follows."""
    words, scores_W = word_scores(found)
    largest = float(np.abs(scores_W).max()) or 1.0
    pieces, at = [], 0
    groups = groups_of(found.text, found.spans, "word")
    for group, word, score in zip(groups, words, scores_W, strict=True):
        start, end = _span(found, group)
        shade = strength(score / largest)
        light = ";color:white" if score < 0 and shade > 0.5 else ""
        pieces.append(escape(found.text[at:start]))
        pieces.append(
            f'<span style="background:rgba({MORE if score > 0 else LESS}, {shade:.2f}){light}" '
            f'title="{score:.3g}">{escape(word)}</span>'
        )
        at = end
    if found.unread:
        pieces.append(f' <span class="unread">… {found.unread} more tokens, never read</span>')
    return "".join(pieces)
