"""Figures of maps: on patches, on words, of sentences.

h w rows and columns of the patch grid.

T tokens, P patches, W words, h w rows and columns of the patch grid.

n units (sentences or sub-captions) of a text, k units so far.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from longclip_lab.attribution.contribution import Contribution, RisingCurve
from longclip_lab.attribution.grounding import patches_inside, peak_inside
from longclip_lab.attribution.maps import Explanation, PatchMap, TokenMap, TokenPatches
from longclip_lab.attribution.similarity import groups_of
from longclip_lab.errors import LabError
from longclip_lab.text import split_sentences, split_subcaptions
from longclip_lab.views.html import (
    LARGE,
    LESS,
    MORE,
    SMALL,
    Html,
    add_grey,
    coloured,
    placed,
    render,
    strength,
)
from longclip_lab.views.theme import (
    CHANCE,
    COLOURS,
    GREY,
    PALETTE,
    add_curve,
    capital,
    end_labels,
    framed,
    listed,
    percent,
)

# --- Maps on patches as small pictures side by side: what lights up, where it peaks, and the ---

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the map's picture."""

LIMIT = 24
"""So many maps fit one figure."""
_COLUMNS = 4
_PANEL, _ALONE = 178, 340  # pixels of a small picture, and of a single one
_GAP = 0.03  # of the figure's width, between columns
_LABEL, _LINE, _FOOT = 26, 17, 30  # pixels above and below a picture; of each further line
_LABEL_CHARACTERS = 24


def patch_maps_figure(
    maps: PatchMap | Sequence[PatchMap] | Mapping[str, PatchMap],
    boxes: Box | Sequence[Box] | None = None,
    smooth: bool = False,
    same_scale: bool = False,
) -> go.Figure:
    """One or more maps, each over its picture in grey; a white dot marks the peak.

    Args:
        maps: maps by label; without labels, what tells them apart (texts or methods) is the label.
        boxes: where the right answer lies: one box for all maps, or one for each. It is framed,
            and the title counts the peaks inside, as the pointing game does.
        smooth: shades run from patch to patch; the numbers are the patches' own either way.
        same_scale: one range of shades for all, so that scores of one method can be compared.

    Raises LabError for no maps, for more than 24, and for boxes that are not one for each.
    """
    labelled = _labelled(maps)
    each = _each(boxes, len(labelled))
    alone = len(labelled) == 1
    chart = framed(
        capital(maps_message(labelled, each)), subtitle=_subtitle(labelled), at_edge=True
    )
    labels = [_wrapped("" if alone else label) for label in labelled]
    _lay_out(chart, labels, _ALONE if alone else _PANEL)
    everything = np.concatenate([found.scores.ravel() for found in labelled.values()])
    span = (float(everything.min()), float(everything.max())) if same_scale else None
    for number, (found, box) in enumerate(zip(labelled.values(), each, strict=True), start=1):
        add_map(chart, found, axis_names(number), box, span, smooth, LARGE if alone else SMALL)
        if not (alone or same_scale):
            _add_range(chart, number, found)
    if alone or same_scale:
        bar = {"title": {"text": "score"}, "thickness": 14, "len": 0.8}
        chart.data[0].update(showscale=True, colorbar=bar)
    return chart


def add_map(
    chart: go.Figure,
    found: PatchMap,
    axes: tuple[str, str],
    box: Box | None = None,
    span: tuple[float, float] | None = None,
    smooth: bool = False,
    pixels: int = LARGE,
) -> None:
    """Draw a map over its picture on two axes, 0 to the number of patches."""
    rows, columns = found.grid
    height, width = (
        side / count for side, count in zip(found.image.shape, found.grid, strict=False)
    )
    x, y = found.peak()
    where = {"xaxis": axes[0], "yaxis": axes[1]}
    add_grey(chart, found.image, found.grid, axes, pixels)
    chart.add_heatmap(
        **coloured(found.scores, span), **where, **placed(found), dx=1, dy=1, showscale=False,
        zsmooth="best" if smooth else False,
        hovertemplate="score %{z}<extra></extra>",
    )  # fmt: skip
    chart.add_scatter(
        x=[x / width], y=[y / height], **where, mode="markers", hoverinfo="skip",
        marker={"color": "white", "size": 11, "line": {"color": "black", "width": 2.5}},
    )  # fmt: skip
    if box is not None:
        places = {
            "x0": box[0] / width, "x1": box[2] / width,
            "y0": box[1] / height, "y1": box[3] / height,
        }  # fmt: skip
        for colour, thickness in (("white", 5), ("black", 2)):
            line = {"color": colour, "width": thickness}
            chart.add_shape(type="rect", xref=axes[0], yref=axes[1], line=line, **places)
    bare = {"showgrid": False, "showticklabels": False, "ticks": "", "showline": False}
    chart.layout["xaxis" + axes[0][1:]].update(bare, range=[0, columns], constrain="domain")
    chart.layout["yaxis" + axes[1][1:]].update(
        bare, range=[rows, 0], scaleanchor=axes[0], constrain="domain"
    )


def axis_names(number: int) -> tuple[str, str]:
    """Plotly's names of the axes of panel `number`, from 1."""
    return (f"x{number}", f"y{number}") if number > 1 else ("x", "y")


def maps_message(maps: Mapping[str, PatchMap], boxes: Sequence[Box | None]) -> str:
    """Whose peaks lie in their boxes; without boxes, whether the maps agree on a place."""
    if all(box is not None for box in boxes):
        pairs = zip(maps.items(), boxes, strict=True)
        missed = [label for (label, found), box in pairs if not peaks_inside(found, box)]
        if len(maps) == 1:
            return f"the peak lies {'beside' if missed else 'in'} the box"
        if not missed:
            return f"all {len(maps)} peaks lie in the box asked for"
        if len(missed) == len(maps):
            return f"none of {len(maps)} peaks lies in the box asked for"
        named = listed([label.rstrip(".") for label in missed])
        told = f"; beside it: {named}" if len(missed) <= _COLUMNS else ""
        return f"{len(maps) - len(missed)} of {len(maps)} peaks lie in the box asked for{told}"
    first, *others = maps.values()
    if not others:
        row, column = np.unravel_index(int(first.scores.argmax()), first.grid)
        return f"{first.method} peaks in row {row + 1}, column {column + 1}"
    peaks = {found.peak() for found in maps.values()}
    places = "one place" if len(peaks) == 1 else f"{len(peaks)} places"
    return f"{len(maps)} maps of this picture peak in {places}"


def peaks_inside(found: PatchMap, box: Box) -> bool:
    """Whether the peak's patch has its middle in the box, or meets a box without any middle."""
    (x, y), (left, top, right, bottom) = found.shift, box
    moved = (left - x, top - y, right - x, bottom - y)  # onto the even grid
    inside_hw = patches_inside([moved], found.grid, found.image.shape[0])
    return peak_inside(found.scores.ravel(), inside_hw.ravel()) > 0


def _labelled(maps: PatchMap | Sequence[PatchMap] | Mapping[str, PatchMap]) -> dict[str, PatchMap]:
    """The maps by label; equal labels are numbered."""
    if isinstance(maps, Mapping):
        labelled = dict(maps)
    else:
        given = [maps] if isinstance(maps, PatchMap) else list(maps)
        one_method = len({found.method for found in given}) == 1
        names = [(found.text if one_method else None) or found.method for found in given]
        labelled = {
            name if names.count(name) == 1 else f"{name} ({number})": found
            for number, (name, found) in enumerate(zip(names, given, strict=True), start=1)
        }
    if not 1 <= len(labelled) <= LIMIT:
        raise LabError(f"expected 1 to {LIMIT} maps to draw, got {len(labelled)}.")
    return labelled


def _each(boxes: Box | Sequence[Box] | None, count: int) -> list[Box | None]:
    """One box for each map."""
    if boxes is None:
        return [None] * count
    if isinstance(boxes[0], int | float):
        return [tuple(boxes)] * count
    if len(boxes) != count:
        raise LabError(f"expected one box, or one for each of {count} maps; got {len(boxes)}.")
    return list(boxes)


def _subtitle(maps: Mapping[str, PatchMap]) -> str:
    """What all maps have in common: the text, the method, the model."""
    texts, methods = ({getattr(m, name) for m in maps.values()} for name in ("text", "method"))
    asked = {text for text in texts if text}
    told = [f"“{textwrap.shorten(next(iter(asked)), 60)}”"] if len(asked) == 1 else []
    told += [next(iter(methods))] if len(methods) == 1 else []
    return escape("; ".join([*told, next(iter(maps.values())).model]))


def _wrapped(label: str) -> list[str]:
    return textwrap.wrap(label, _LABEL_CHARACTERS, max_lines=3, placeholder=" …") or [""]


def _lay_out(chart: go.Figure, labels: Sequence[list[str]], side: int) -> None:
    """Axes for every panel in rows of up to four, and their labels above them."""
    columns = min(_COLUMNS, len(labels))
    rows = math.ceil(len(labels) / columns)
    above = (_LABEL + _LINE * (max(map(len, labels)) - 1)) if any(map(any, labels)) else 0
    below = _FOOT if len(labels) > 1 else 0
    pitch = above + side + below
    chart.update_layout(
        height=chart.layout.margin.t + rows * pitch + 10, margin={"l": 10, "r": 10, "b": 10}
    )
    width = (1 - _GAP * (columns - 1)) / columns
    for index, lines in enumerate(labels):
        row, column = divmod(index, columns)
        x, y = axis_names(index + 1)
        left, top = column * (width + _GAP), 1 - (row * pitch + above) / (rows * pitch)
        chart.layout[f"xaxis{x[1:]}"] = {"domain": [left, left + width], "anchor": y}
        chart.layout[f"yaxis{y[1:]}"] = {
            "domain": [max(0, top - side / (rows * pitch)), top], "anchor": x
        }  # fmt: skip
        if any(lines):
            chart.add_annotation(
                text="<br>".join(map(escape, lines)), x=left + width / 2, y=top, xref="paper",
                yref="paper", xanchor="center", yanchor="bottom", showarrow=False, yshift=2,
                font={"size": 14},
            )  # fmt: skip


def _add_range(chart: go.Figure, number: int, found: PatchMap) -> None:
    """Under a small picture the range of its scores, as every picture has its own shades."""
    x, y = axis_names(number)
    chart.add_annotation(
        text=f"{found.scores.min():.2g} to {found.scores.max():.2g}", x=found.grid[1] / 2,
        y=found.grid[0], xref=x, yref=y, yanchor="top", showarrow=False,
        font={"size": 12, "color": GREY},
    )  # fmt: skip


# --- Scores on words, on both sides, and for every pair of a token and a patch ---

_MANY_WORDS = 80  # more cannot be read at an axis
_MANY_TOKENS = 60
_PICTURE, _ATTRIBUTIONS_GAP = 0.36, 0.17  # of an explanation's width


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
    lines = [(label, _shaded(found), found.unread) for label, found in maps.items()]
    return render("strip.html.j2", lines=lines, more=MORE, less=LESS)


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
        xaxis2={"domain": [_PICTURE + _ATTRIBUTIONS_GAP, 1], "anchor": "y2"},
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


def _shaded(found: TokenMap) -> list[tuple[str, dict[str, Any]]]:
    """The text that was read: what stands in front of each word, and the word with its shade."""
    words, scores_W = word_scores(found)
    largest = float(np.abs(scores_W).max()) or 1.0
    pieces, at = [], 0
    groups = groups_of(found.text, found.spans, "word")
    for group, word, score in zip(groups, words, scores_W, strict=True):
        start, end = _span(found, group)
        shade = strength(score / largest)
        shown = {"paper": f"rgba({MORE if score > 0 else LESS}, {shade:.2f})", "text": word}
        shown |= {"light": score < 0 and shade > 0.5, "score": f"{score:.3g}"}
        pieces.append((found.text[at:start], shown))
        at = end
    return pieces


# --- What each sentence does for the similarity, and whether the similarity rises with them ---

_ROW = 44  # pixels of a sentence
_CHARACTERS = 38  # of a line of a sentence at the axis
_SPLIT = 0.6  # of the width, between contributions and curve
_TWO_SIDED = 1.96  # standard errors of a 95% interval
_KINDS = {
    "leave_one_out": ("leave one out", "square-open", "vermillion", -0.22),
    "add_one": ("add one", "diamond-open", "green", 0.22),
    "shapley": ("Shapley", "circle", "blue", 0.0),
}


def contribution_figure(found: Contribution) -> go.Figure:
    """A row for each sentence: left its contributions, right the similarity with it and all before.

    Whiskers are 95% intervals of sampled Shapley values. Sentences that the model never read have
    a row without dots.
    """
    count, unread = len(found.units), _unread_texts(found)
    chart = framed(
        contribution_message(found),
        subtitle=escape(f"{found.model}; similarity with the empty text "
                        f"{found.empty_similarity:.2f}, with all {found.similarity:.2f}"),
        at_edge=True,
    )  # fmt: skip
    for name, (label, symbol, colour, shift) in _KINDS.items():
        errors = _TWO_SIDED * found.errors if name == "shapley" else np.zeros(count)
        chart.add_scatter(
            x=getattr(found, name).round(6), y=(np.arange(count) + shift).tolist(), name=label,
            mode="markers", showlegend=True,
            marker={"symbol": symbol, "size": 11, "color": COLOURS[colour], "line": {"width": 2.5}},
            error_x={"array": errors.round(6), "visible": bool(errors.any()), "thickness": 2},
            hovertemplate=f"{label} %{{x:+.3f}}<extra></extra>",
        )  # fmt: skip
    chart.add_scatter(
        x=found.curve.round(6), y=[*range(-1, count)], xaxis="x2", mode="lines+markers",
        line={"color": COLOURS["black"]}, showlegend=False,
        hovertemplate="similarity %{x:.3f}<extra></extra>",
    )  # fmt: skip
    names = ["<i>(no text)</i>", *map(_contributions_wrapped, found.units.texts)]
    names += [
        f'<span style="color:#767b81">{_contributions_wrapped(text, lines=1)}<br>never read</span>'
        for text in unread
    ]
    chart.add_vline(x=0, line={"color": GREY, "width": 1.5, "dash": "dot"}, layer="below")
    chart.update_layout(
        height=chart.layout.margin.t + _ROW * len(names) + 110, margin_b=110, showlegend=True,
        legend={"y": 0, "yref": "container", "yanchor": "bottom"},
        xaxis={"domain": [0, _SPLIT], "title": {"text": "contribution (cosine)"}},
        xaxis2={"domain": [_SPLIT + 0.04, 1], "anchor": "y",
                "title": {"text": "similarity so far"}},
        yaxis={"tickvals": list(range(-1, len(names) - 1)), "ticktext": names, "ticks": "",
               "range": [len(names) - 1.5, -1.6], "showline": False},
    )  # fmt: skip
    return chart


def contribution_message(found: Contribution) -> str:
    """Which sentence brings most, and how many of the later ones raise the similarity."""
    best = int(found.shapley.argmax())
    told = f"Sentence {best + 1} of {len(found.units)} brings most: {found.shapley[best]:+.2f}"
    steps = np.diff(found.curve[1:])
    if len(steps):
        told += (
            f"; {int((steps > 0).sum())} of the {len(steps)} after the first raise the similarity"
        )
    return told + (f"; {found.unread} are never read" if found.unread else "")


def rising_figure(result: RisingCurve | Mapping[str, RisingCurve]) -> go.Figure:
    """The mean similarity after k sentences less that after the first, with 95% bands.

    Raises LabError for no result.
    """
    results = dict(result) if isinstance(result, Mapping) else {result.model: result}
    if not results:
        raise LabError("expected at least one rising curve, got none.")
    first = next(iter(results.values()))
    chart = framed(
        rising_message(results),
        x=f"{first.units} of the caption so far",
        y="similarity, less that after the first (cosine)",
        subtitle=f"{len(first):,} pairs; bands: 95%; each point over the pairs that have so many",
    )
    gains = {label: one.gains for label, one in results.items()}
    for colour, (label, points) in zip(PALETTE, gains.items(), strict=False):
        value, low, high = (
            [getattr(point, name) for point in points] for name in ("value", "low", "high")
        )
        add_curve(chart, range(1, len(points) + 1), value, low, high, label, colour)
    chart.add_hline(y=0, line={"color": GREY, "width": 1.5, "dash": "dot"}, layer="below")
    bounds = [b for points in gains.values() for p in points for b in (p.low, p.high)]
    span = (min(bounds) - 0.01, max(bounds) + 0.01)
    pixels = chart.layout.height - chart.layout.margin.t - chart.layout.margin.b
    end_labels(
        chart, [points[-1].value for points in gains.values()], list(gains),
        list(PALETTE[: len(gains)]), (span[1] - span[0]) / pixels, span,
    )  # fmt: skip
    chart.update_yaxes(range=span)
    return chart


def rising_message(results: Mapping[str, RisingCurve]) -> str:
    """The share of steps that rise, and whether that is more than a coin would."""
    told = []
    for label, one in results.items():
        against = (
            "more than half" if one.steps.low > CHANCE
            else "less than half" if one.steps.high < CHANCE
            else "no more than half"
        )  # fmt: skip
        told.append(f"{label} {percent(one.steps.value)} ({against})")
    return f"Added sentences that raise the similarity: {listed(told)}"


def _unread_texts(found: Contribution) -> list[str]:
    """The sentences behind the model's context."""
    if not found.unread:
        return []
    if found.units.kind == "sentences":
        parts = [found.text[slice(*span)] for span in split_sentences(found.text)]
    else:
        parts = split_subcaptions(found.text)
    return parts[-found.unread :]


def _contributions_wrapped(text: str, lines: int = 2) -> str:
    parts = textwrap.wrap(text, _CHARACTERS, max_lines=lines, placeholder=" …")
    return "<br>".join(map(escape, parts))
