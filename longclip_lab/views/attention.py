"""Figures of attention weights and of corner tokens.

L layers, H heads, T positions.

T tokens, m corners, q query, k key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import plotly.graph_objects as go
import torch

from longclip_lab.attribution.maps import AttentionWeights
from longclip_lab.errors import LabError
from longclip_lab.models.corner_tokens import causal_corner_mask, corner_attention_mask
from longclip_lab.text import split_subcaptions
from longclip_lab.views.theme import COLOURS, GREY, balanced, framed, percent

if TYPE_CHECKING:
    from longclip_lab.attribution import CornerLooks


# --- Attention weights: the matrix of any layer and head, and what the position read off ---

_BYTES = 150_000  # of all matrices of a figure; as text they take a third more
_LABELS = 40  # more cannot be read at an axis
_NEVER = "#E6E6E6"  # of weights that are 0
_HEAT = [[0, "#F4F6FA"], [0.05, "#D3E1EF"], [0.25, "#86AFD3"], [0.6, "#2A6CA5"], [1, "#062A4F"]]


def attention_figure(found: AttentionWeights) -> go.Figure:
    """The matrix of each layer and head, with a list to choose from that needs no kernel.

    Row q is what position q attends to, in percent; grey is exactly 0, as where a causal mask
    forbids to look ahead. Without room for every head of every layer (about 150 KB) there are the
    means of the layers' heads, and if these are too many, of the last layers. Raises LabError if
    not even one matrix fits.
    """
    matrices = _matrices(found)
    labels = list(map(escape, found.labels))
    chart = framed(
        attention_message(found),
        x="attended to",
        y="attends",
        subtitle=escape(f"{found.model}, {found.tower} tower; each row sums to 100%"),
        height=640,
        at_edge=True,
    )
    top = max(float(matrix.max()) for matrix in matrices.values())
    for index, weights_TT in enumerate(matrices.values()):
        chart.add_heatmap(
            z=np.where(weights_TT == 0, np.nan, 100 * weights_TT).astype(np.float32),
            visible=index == 0, zmin=0, zmax=100 * top, colorscale=_HEAT, x0=0, dx=1, y0=0, dy=1,
            colorbar={"title": {"text": "%"}, "thickness": 14}, hoverongaps=False,
            hovertemplate="%{z:.1f}%<extra></extra>",
        )  # fmt: skip
    buttons = [
        {
            "label": name, "method": "restyle",
            "args": [{"visible": [one == other for other in matrices]}],
        }
        for one, name in zip(matrices, map(escape, matrices), strict=True)
    ]  # fmt: skip
    step = -(-len(labels) // _LABELS)
    ticks = {"tickvals": list(range(0, len(labels), step)), "ticktext": labels[::step]}
    chart.update_xaxes(ticks, tickangle=-60, showgrid=False, constrain="domain",
                       range=[-0.5, len(labels) - 0.5])  # fmt: skip
    chart.update_yaxes(ticks, showgrid=False, range=[len(labels) - 0.5, -0.5], scaleanchor="x",
                       constrain="domain")  # fmt: skip
    chart.update_layout(
        plot_bgcolor=_NEVER,
        margin_b=100,
        updatemenus=[{
            "buttons": buttons, "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom",
            "pad": {"b": 8}, "showactive": True, "font": {"size": 14},
        }],
    )  # fmt: skip
    return chart


def attention_from_figure(found: AttentionWeights, position: int | None = None) -> go.Figure:
    """What one position looks at, a row for each layer and head.

    By default the position that the tower reads off, or the mean of all where it averages.
    Raises LabError for a position that is not there.
    """
    rows, name = _looks(found, position)
    layers, heads = found.weights.shape[:2]
    names = [
        f"layer {layer + 1}, head {head + 1}" if layers > 1 else f"head {head + 1}"
        for layer in range(layers)
        for head in range(heads)
    ]
    labels = list(map(escape, found.labels))
    chart = framed(
        looks_message(found, position),
        x="attended to",
        subtitle=escape(f"{found.model}, {found.tower} tower; from {name}, each row sums to 100%"),
        height=190 + 22 * len(rows),
        at_edge=True,
    )
    chart.add_heatmap(
        z=(100 * rows).astype(np.float32), x0=0, dx=1, y0=0, dy=1, zmin=0, colorscale=_HEAT,
        colorbar={"title": {"text": "%"}, "thickness": 14}, ygap=1,
        hovertemplate="%{z:.1f}%<extra></extra>",
    )  # fmt: skip
    step = -(-len(labels) // _LABELS)
    chart.update_xaxes(tickvals=list(range(0, len(labels), step)), ticktext=labels[::step],
                       tickangle=-60, showgrid=False, ticks="")  # fmt: skip
    chart.update_yaxes(tickvals=list(range(len(names))), ticktext=names, showgrid=False, ticks="",
                       range=[len(names) - 0.5, -0.5])  # fmt: skip
    chart.update_layout(margin_b=100)
    return chart


def attention_message(found: AttentionWeights) -> str:
    """Whether any position looks ahead."""
    ahead = float(np.triu(found.weights, k=1).sum((-2, -1)).mean() / found.weights.shape[-1])
    if ahead == 0:
        return "No position looks ahead: every weight right of the diagonal is exactly 0"
    return f"Positions look both ways: {percent(ahead)} of the weight goes ahead"


def looks_message(found: AttentionWeights, position: int | None = None) -> str:
    """What most heads look at most."""
    rows, name = _looks(found, position)
    most = Counter(rows.argmax(axis=1).tolist())
    best, count = most.most_common(1)[0]
    heads = "the only head" if len(rows) == 1 else f"{count} of {len(rows)} heads"
    return (
        f"From {name} {heads} look{'s' * (len(rows) == 1)} most at “{escape(found.labels[best])}”"
    )


def _looks(found: AttentionWeights, position: int | None) -> tuple[np.ndarray, str]:
    """Rows [L * H, T] of a position, and its name."""
    length = found.weights.shape[-1]
    flat = found.weights.reshape(-1, length, length)
    position = found.pooled if position is None else position
    if position is None:
        return flat.mean(axis=1), "all positions together"
    if not -length <= position < length:
        raise LabError(f"expected a position from 0 to {length - 1}, got {position}.")
    return flat[:, position], found.labels[position]


def _matrices(found: AttentionWeights) -> dict[str, np.ndarray]:
    """What the list offers, by name: means over heads, and single heads if all of them fit."""
    layers, heads, length, _ = found.weights.shape
    room = _BYTES // (4 * length**2)
    if not room:
        raise LabError(
            f"{length} positions are too many for one figure. Draw `attention_from_figure`, which "
            "shows what one position looks at."
        )
    several = heads > 1
    single = layers * heads + several * layers <= room
    matrices = {}
    for layer in range(0 if single else max(0, layers - room), layers):
        name = f"layer {layer + 1} of {layers}" if layers > 1 else "this layer"
        if several:
            matrices[f"{name}, mean of {heads} heads"] = found.weights[layer].mean(axis=0)
        if single or not several:
            for head in range(heads):
                matrices[f"{name}, head {head + 1}"] = found.weights[layer, head]
    return matrices


# --- Corner tokens: who may read whom, and where they look ---

PADDING, CLOSED, AHEAD, HEARD, READ = range(5)
_MEANING = {
    PADDING: ("padding", "#E3E3E3"),
    CLOSED: ("closed by LoTLIP's mask", COLOURS["orange"]),
    AHEAD: ("ahead in a causal tower", "#BFC5CC"),
    HEARD: ("heard of through others", COLOURS["sky"]),
    READ: ("read", COLOURS["blue"]),
}
_PADDED = 2  # padding tokens behind the text
_BLANK = "\u200b"  # makes equal words different labels


class Grid(NamedTuple):
    """Who reads whom: codes [T, T] (row q, column k), the tokens' names, and who is read off."""

    codes_TT: np.ndarray
    labels: tuple[str, ...]
    pooled: int
    corners: tuple[int, ...]


def corner_mask_figure(
    text: str = "A red boat. It is tall.", most: int = 4, start: int = 2
) -> go.Figure:
    """LoTLIP's attention mask as a picture, with a slider and a list that need no kernel.

    The slider sets the number of corners, 0 to `most`. The list changes what is shown: the mask,
    a shorter text in the same batch (padding), several layers, no mask, a CLIP-style tower.
    Raises LabError for a text without words and for numbers of corners that make no sense.
    """
    if not 0 <= start <= most:
        raise LabError(f"expected 0 <= start <= most corners, got start={start}, most={most}.")
    if not split_subcaptions(text):
        raise LabError("The mask needs a text with at least one word.")
    shown = {name: [draw(text, m) for m in range(most + 1)] for name, draw in _SHOWN.items()}
    titles = {
        name: balanced(mask_message(name, grids[max(start, min(1, most))]))
        for name, grids in shown.items()
    }
    first = next(iter(shown))
    size = len(shown[first][most].labels)
    chart = framed(
        max(titles.values(), key=len),  # whose lines all titles have room for
        x="is read (key k)",
        y="reads (query q)",
        subtitle="each row: what one token may attend to",
        height=380 + 22 * size,
        at_edge=True,
    )
    chart.update_layout(title_text=titles[first])
    colours = [_MEANING[code][1] for code in range(len(_MEANING))]
    edges = np.linspace(0, 1, len(colours) + 1)
    scale = [[edges[i + side], colours[i]] for i in range(len(colours)) for side in (0, 1)]
    for m, grid in enumerate(shown[first]):
        chart.add_heatmap(
            z=grid.codes_TT, x=grid.labels, y=grid.labels, zmin=-0.5, zmax=len(colours) - 0.5,
            colorscale=scale, showscale=False, xgap=1.5, ygap=1.5, visible=m == start,
            hovertemplate="q = %{y}, k = %{x}<extra></extra>",
        )  # fmt: skip
    _add_key(chart)
    _add_controls(chart, shown, titles, start)
    chart.update_xaxes(side="bottom", tickangle=-60, showgrid=False, ticks="", constrain="domain")
    chart.update_yaxes(autorange="reversed", showgrid=False, ticks="", scaleanchor="x",
                       constrain="domain")  # fmt: skip
    return chart


def mask_message(name: str, grid: Grid) -> str:
    """Who learns what of the corners, read off the grid; `name` is the entry in the list."""
    if not grid.corners:
        return "Without corners every token of the text reads every other"
    others = [i for i in range(len(grid.labels)) if i not in grid.corners]
    codes_TT = grid.codes_TT
    reading = (codes_TT[np.ix_(others, grid.corners)] >= HEARD).any()
    back = (codes_TT[np.ix_(grid.corners, [grid.pooled])] >= HEARD).all()
    pooled = grid.labels[grid.pooled]
    if name == LAYERS:
        found = "something" if reading else "nothing"
        told = f"Through any number of layers {found} of a corner reaches {pooled}"
        return told + ("; the reverse does, through the text" if back else "")
    if reading:
        return f"Without the mask every token reads the corners, and {pooled} changes with them"
    return f"Nobody reads a corner but the corner itself, not even {pooled}"


def _paper(text: str, m: int, padded: bool = False, mask: bool = True) -> Grid:
    """BERT's order: [CLS] [Cor 1] .. [Cor m] text, each sub-caption with its [SEP]."""
    parts = [[*part.split(), "[SEP]"] for part in split_subcaptions(text)]
    words = [word for part in parts for word in part]
    read = len(parts[0]) if padded and len(parts) > 1 else len(words)
    words = words[:read] + ["[PAD]"] * (len(words) - read + _PADDED)
    corners = tuple(range(1, m + 1))
    used_T = np.ones(1 + m + len(words), dtype=bool)
    used_T[1 + m + read :] = False
    used_BT = torch.from_numpy(used_T)[None]
    if mask:
        allowed_TT = corner_attention_mask(used_BT, m)[0].numpy()
    else:
        allowed_TT = np.broadcast_to(used_T, (len(used_T),) * 2)
    codes_TT = np.where(allowed_TT, READ, CLOSED)
    codes_TT[:, ~used_T] = PADDING
    codes_TT[~used_T] = PADDING
    names = ["[CLS]", *(f"[Cor {i}]" for i in corners), *words]
    return Grid(codes_TT, _distinct(names), 0, corners)


def _through_layers(text: str, m: int) -> Grid:
    grid = _paper(text, m)
    direct_TT = grid.codes_TT == READ
    reached_TT = direct_TT
    for _ in range(len(direct_TT)):
        reached_TT = reached_TT @ direct_TT
    codes_TT = np.where(reached_TT & ~direct_TT, HEARD, grid.codes_TT)
    return grid._replace(codes_TT=codes_TT)


def _causal(text: str, m: int) -> Grid:
    words = [word for part in split_subcaptions(text) for word in (*part.split(), ".")]
    length = len(words) + 2
    order = [*range(length - 1), *range(length, length + m), length - 1]
    end_B = torch.tensor([length - 1])
    allowed, unmasked = (
        causal_corner_mask(end_B, m, mask)[0].numpy()[np.ix_(order, order)]
        for mask in (True, False)
    )
    codes_TT = np.where(allowed, READ, np.where(unmasked, CLOSED, AHEAD))
    corners = tuple(range(length - 1, length - 1 + m))
    names = ["[start]", *words, *(f"[Cor {i + 1}]" for i in range(m)), "[end]"]
    return Grid(codes_TT, _distinct(names), len(names) - 1, corners)


LAYERS, CAUSAL = "the mask, through all layers", "the mask in CLIP's tower"
_SHOWN = {
    "LoTLIP's mask": _paper,
    "... for a shorter text": lambda text, m: _paper(text, m, padded=True),
    LAYERS: _through_layers,
    "no mask": lambda text, m: _paper(text, m, mask=False),
    CAUSAL: _causal,
}


def _distinct(names: list[str]) -> tuple[str, ...]:
    """The names, equal ones made different by characters without width."""
    return tuple(name + _BLANK * names[:i].count(name) for i, name in enumerate(names))


def _add_key(chart: go.Figure) -> None:
    for name, colour in reversed(_MEANING.values()):
        chart.add_scatter(
            x=[None], y=[None], mode="markers", name=name,
            marker={"color": colour, "symbol": "square", "size": 13},
        )  # fmt: skip
    chart.update_layout(showlegend=True, legend={"itemclick": False, "itemdoubleclick": False})


def _add_controls(
    chart: go.Figure, shown: Mapping[str, list[Grid]], titles: Mapping[str, str], start: int
) -> None:
    traces = list(range(len(next(iter(shown.values())))))
    buttons = [
        {
            "label": name, "method": "update",
            "args": [
                {"z": [grid.codes_TT.tolist() for grid in grids],
                 "x": [grid.labels for grid in grids], "y": [grid.labels for grid in grids]},
                {"title.text": titles[name]},
                traces,
            ],
        }
        for name, grids in shown.items()
    ]  # fmt: skip
    steps = [
        {"label": str(m), "method": "restyle",
         "args": [{"visible": [m == other for other in traces]}, traces]}
        for m in traces
    ]  # fmt: skip
    chart.update_layout(
        margin_b=190,
        updatemenus=[{"buttons": buttons, "x": 1, "xanchor": "right", "y": 1, "yanchor": "bottom",
                      "pad": {"b": 6}, "showactive": True}],
        sliders=[{"steps": steps, "active": start, "x": 0, "len": 0.6, "y": 0, "yanchor": "top",
                  "pad": {"t": 85}, "currentvalue": {"prefix": "corner tokens: "}}],
    )  # fmt: skip


def corner_looks_message(looks: CornerLooks) -> str:
    """How much of their weight [CLS] and the corners have on the same words."""
    overlaps = looks.overlap[0, 1:]
    low, high = percent(overlaps.min()), percent(overlaps.max())
    span = low if low == high else f"{low} to {high}"
    return f"{looks.labels[0]} and the corners have {span} of their weight on the same words"


def corner_looks_figure(looks: Mapping[str, CornerLooks]) -> go.Figure:
    """Where [CLS] and the corners look, a panel for each model: weight against an even share.

    1 is what a group of words would get if every word counted the same.
    """
    last = list(looks)[-1]
    after = looks[last]
    several = f"{last}: " if len(looks) > 1 else ""
    groups = [g for g, even in zip(after.groups, after.even, strict=True) if even > 0]
    chart = framed(
        several + corner_looks_message(after),
        subtitle=f"weight on a group of words over its share of the words, last layer, mean of "
        f"{after.num_texts} captions; line: an even share",
        height=150 + 34 * len(groups),
        at_edge=True,
    )
    width = (1 - 0.06 * (len(looks) - 1)) / len(looks)
    top = 1.08 * max(_ratios(one).max() for one in looks.values())
    for panel, (name, one) in enumerate(looks.items()):
        axis = "" if panel == 0 else str(panel + 1)
        begin = panel * (width + 0.06)
        chart.update_layout({
            f"xaxis{axis}": {"domain": [begin, begin + width], "range": [0, top],
                             "title": {"text": name}},
        })  # fmt: skip
        for number, label in enumerate(one.labels):
            chart.add_scatter(
                x=_ratios(one)[number], y=groups, xaxis=f"x{axis}", mode="markers", name=label,
                legendgroup=label, showlegend=panel == 0, opacity=0.85,
                marker={"symbol": _SYMBOLS[number % 4], "size": 11, "color": _TOKENS[number % 4]},
                hovertemplate=f"{label} %{{y}}: %{{x:.2f}} times an even share<extra></extra>",
            )  # fmt: skip
        chart.add_shape(type="line", x0=1, x1=1, y0=0, y1=1, xref=f"x{axis}", yref="paper",
                        line={"color": GREY, "dash": "dot"}, layer="below")  # fmt: skip
    chart.update_yaxes(autorange="reversed")
    chart.update_layout(showlegend=True, margin_b=110)
    return chart


_SYMBOLS = ("circle", "diamond-open", "square-open", "cross-open")
_TOKENS = (COLOURS["black"], COLOURS["vermillion"], COLOURS["blue"], COLOURS["green"])


def _ratios(looks: CornerLooks) -> np.ndarray:
    used_G = looks.even > 0
    return looks.shares[:, used_G] / looks.even[used_G]
