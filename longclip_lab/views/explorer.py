"""Backend and static page of the token explorer.

T tokens, W words, h w rows and columns of the patch grid.

W words, P patches, h w rows and columns of the patch grid.
"""

from __future__ import annotations

import html
import importlib
import inspect
import re
import textwrap
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import plotly.graph_objects as go
from PIL import Image

from longclip_lab.attribution import (
    PATCH_METHODS,
    TOKEN_METHODS,
    PatchMap,
    Pictures,
    TokenMap,
    TokenPatches,
    as_images,
    attention,
    token_patches_of,
    tokens_within,
)
from longclip_lab.attribution.maps import Picture
from longclip_lab.errors import LabError, suggest
from longclip_lab.models import Clip
from longclip_lab.text import split_sentences
from longclip_lab.text.sentences import Span
from longclip_lab.views.html import coloured, image_uri, placed
from longclip_lab.views.theme import framed

# --- What lights up when a reader points at words or at patches: computed on demand, ---

MATRICES = {
    "words alone": "each word alone against each patch (cosine, less empty text's)",
    "words in context": "the state at each word against each patch (cosine, less empty text's)",
}
"""The matrices of tokens and patches: they light up patches for words and words for patches."""

_WORD = re.compile(r"\w+(?:['’.,-]\w+)*|[^\w\s]+")
_REMEMBERED = 512  # maps; one of 14 x 14 patches takes 800 bytes
_PREPARED = 16  # pictures; one of 224 x 224 pixels takes 1.2 MB with its patches


@dataclass(frozen=True)
class Strip:
    """A text as a reader points at it: sentences, words, and how much of it the model read.

    `tokens` [T] are the spans of the tokens read; `unread` counts the others.
    """

    text: str
    tokens: tuple[tuple[int, int], ...]
    unread: int

    @cached_property
    def sentences(self) -> list[Span]:
        """The sub-captions, as `longclip_lab.text.split_sentences` finds them."""
        return split_sentences(self.text)

    @cached_property
    def words(self) -> list[Span]:
        """Words and punctuation marks."""
        return [Span(*match.span()) for match in _WORD.finditer(self.text)]

    @property
    def read(self) -> int:
        """The first character that the model did not read."""
        return self.tokens[-1][1] if self.unread and self.tokens else len(self.text)

    @property
    def words_read(self) -> int:
        """How many words the model read something of."""
        return sum(span.start < self.read for span in self.words) if self.tokens else 0

    def cut_off(self, span: Span) -> Span:
        """The part of the characters that the model read. Raises LabError if that is nothing."""
        end = min(span.end, self.read)
        if end <= span.start or not self.tokens:
            raise LabError("the model never read these words: they lie behind its cut.")
        return Span(span.start, end)

    @cached_property
    def tokens_of_words(self) -> np.ndarray:
        """Which tokens belong to which word that was read: bool [W, T]."""
        inside = [tokens_within(self.tokens, *word) for word in self.words[: self.words_read]]
        return np.array(inside, dtype=bool).reshape(self.words_read, len(self.tokens))


class Lighting:
    """The maps of pictures and texts, for both sides of a pair, remembered for the next question.

    A picture is named by its number among `images`, a text is given as it is, so that a reader
    can type one. The image side of a picture is prepared once for all words, so the weights of
    `clip` must not change meanwhile. Raises LabError as `longclip_lab.attribution.as_pairs` does.
    """

    def __init__(self, clip: Clip, images: Sequence[Picture]):
        self.clip = clip
        self.images = list(images)
        self._remembered: OrderedDict[tuple, Any] = OrderedDict()
        self._prepared = lru_cache(maxsize=_PREPARED)(self._prepare)

    def strip(self, text: str) -> Strip:
        """The text with what the model read of it."""
        pairs = self._once(("pairs", text), lambda: self._prepared(0).paired(text))
        return Strip(text, pairs.spans[0], pairs.unread[0])

    def matrix(self, picture: int, text: str, method: str = "") -> TokenPatches:
        """Every token against every patch; of each word alone unless `method` is another matrix."""
        tokens = matrix_of(method).removeprefix("words ")
        return self._once(
            ("matrix", picture, text, tokens),
            lambda: token_patches_of(self._prepared(picture).paired(text), tokens)[0],
        )

    def patches(
        self, picture: int, text: str, span: Span, method: str, options: dict[str, Any]
    ) -> PatchMap:
        """The patches for the characters `span` of the text.

        A matrix gives the mean of its tokens; every other method is asked about the characters as
        a text of their own.
        """
        if method in MATRICES:
            return self.matrix(picture, text, method).patches(*span)
        known(method, PATCH_METHODS)
        asked = text[slice(*span)] if PATCH_METHODS[method].asks_text else text
        found = self._once(
            ("patches", picture, asked, method, *sorted(options.items())),
            lambda: self._slim(
                PATCH_METHODS[method].run(self._prepared(picture).paired(asked), **options)
            ),
        )
        return replace(found, image=self.matrix(picture, text).image)

    def tokens(self, picture: int, text: str, method: str, options: dict[str, Any]) -> TokenMap:
        """The tokens for the whole picture."""
        known(method, TOKEN_METHODS)
        return self._once(
            ("tokens", picture, text, method, *sorted(options.items())),
            lambda: TOKEN_METHODS[method].run(self._prepared(picture).paired(text), **options)[0],
        )

    def tower(self, side: str, example: Any) -> tuple[int, int]:
        """Layers and heads of the tower "image" or "text", read off its weights of an example."""
        weights = self._once(
            ("tower", side), lambda: attention(self.clip, example, tower=side).weights.shape[:2]
        )
        return weights

    def _prepare(self, picture: int) -> Pictures:
        return as_images(self.clip, self.images[picture])

    def _slim(self, maps: list[PatchMap]) -> PatchMap:
        """The map without its own copy of the picture, which is a hundred times larger."""
        return replace(maps[0], image=maps[0].image[:0])

    def _once(self, key: tuple, compute: Callable[[], Any]) -> Any:
        if key not in self._remembered:
            self._remembered[key] = compute()
            if len(self._remembered) > _REMEMBERED:
                self._remembered.popitem(last=False)
        self._remembered.move_to_end(key)
        return self._remembered[key]


def load_methods() -> None:
    """Import what methods import at their first use, so that no reader waits for it later."""
    for method in (*PATCH_METHODS.values(), *TOKEN_METHODS.values()):
        for module in method.imports:
            importlib.import_module(module)


def matrix_of(method: str) -> str:
    """The matrix that goes with a method: itself, or the words alone."""
    return method if method in MATRICES else next(iter(MATRICES))


def known(method: str, methods: Sequence[str]) -> None:
    """Raise LabError, with near names, unless there is such a method."""
    if method not in methods:
        raise LabError(f"There is no method '{method}' here. {suggest(method, methods)}")


def options_of(method: str, methods: dict[str, Any]) -> list[str]:
    """Which of "layer" and "head" a method lets a reader choose."""
    if method not in methods:
        return []
    taken = inspect.signature(methods[method].run).parameters
    return [name for name in ("layer", "head") if name in taken]


# --- The token explorer for a page where no kernel runs: a slider over sentences and words ---

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
            source=image_uri(shown, photo), x=0, y=0, sizex=width, sizey=rows, xref="x",
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
