"""Attention weights: the matrix of any layer and head, and what the position read off looks at.

L layers, H heads, T positions.
"""

from __future__ import annotations

from collections import Counter
from html import escape

import numpy as np
import plotly.graph_objects as go

from longclip_lab.attribution.values import AttentionWeights
from longclip_lab.errors import LabError
from longclip_lab.views.frame import framed
from longclip_lab.views.wording import percent

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
