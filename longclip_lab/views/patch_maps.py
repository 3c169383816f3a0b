"""Maps on patches as small pictures side by side: what lights up, where it peaks, and the answer.

h w rows and columns of the patch grid.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from longclip_lab.attribution.boxes import patches_inside
from longclip_lab.attribution.pointing import peak_inside
from longclip_lab.attribution.values import PatchMap
from longclip_lab.errors import LabError
from longclip_lab.views.frame import GREY, framed
from longclip_lab.views.overlay import LARGE, SMALL, add_grey, coloured, placed
from longclip_lab.views.wording import capital, listed

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
