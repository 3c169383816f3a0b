"""Figures of a model's insides: how alike its positions are, how many directions features use.

T positions, W width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from longclip_lab.errors import LabError
from longclip_lab.views.frame import framed
from longclip_lab.views.theme import COLOURS
from longclip_lab.views.wording import listed, percent

if TYPE_CHECKING:
    import torch

    from longclip_lab.objectives import RankMeter

_HEADING = 24  # pixels between the title and the maps
_CELLS = 64  # a side of a heat map; 64 x 64 bytes each keep the figure small


def position_message(tables: Mapping[str, np.ndarray]) -> str:
    """How many of the first table's positions each of the others begins with."""
    (first_label, first), *others = tables.items()
    if not others:
        return f"How alike the positions of “{first_label}” are"
    kept = {label: _kept(first, table) for label, table in others}
    told = listed([f"{label} {count}" for label, count in kept.items()])
    return f"Positions left as they were in “{first_label}”: {told}"


def _kept(first_TW: np.ndarray, other_TW: np.ndarray) -> int:
    shared = min(len(first_TW), len(other_TW))
    same = np.isclose(first_TW[:shared], other_TW[:shared], atol=1e-6).all(1)
    return shared if same.all() else int(same.argmin())


def similarity(positional_embedding_TW: np.ndarray) -> np.ndarray:
    """Cosine similarity of all pairs of positions [T, T]."""
    lengths = np.linalg.norm(positional_embedding_TW, axis=1, keepdims=True)
    unit_TW = positional_embedding_TW / np.maximum(lengths, 1e-12)
    return unit_TW @ unit_TW.T


def position_similarity_figure(positions: Mapping[str, torch.Tensor | np.ndarray]) -> go.Figure:
    """Heat maps of cosine similarity between positions; one for each table [T, W] by label.

    Long tables are drawn by every second, third, ... position. Raises LabError for an empty
    mapping and for tables that are not [T, W].
    """
    tables = {label: np.asarray(table, dtype=np.float32) for label, table in positions.items()}
    if not tables or any(table.ndim != 2 for table in tables.values()):
        shapes = {label: table.shape for label, table in tables.items()}
        raise LabError(f"expected {{label: positions [T, W]}}, got {shapes}.")
    columns = min(len(tables), 2 if len(tables) in (2, 4) else 3)
    rows = -(-len(tables) // columns)
    base = framed(position_message(tables), at_edge=True)
    base.update_layout(title_pad_b=base.layout.title.pad.b + _HEADING)
    chart = make_subplots(
        rows,
        columns,
        subplot_titles=[f"{label} ({len(table)})" for label, table in tables.items()],
        horizontal_spacing=0.09,
        vertical_spacing=0.16,
    )
    chart.update_layout(base.layout.to_plotly_json())
    for index, table_TW in enumerate(tables.values()):
        step = -(-len(table_TW) // _CELLS)
        row, column = index // columns + 1, index % columns + 1
        chart.add_heatmap(
            z=np.rint(100 * similarity(table_TW)[::step, ::step]).astype(np.int8),
            x0=0, dx=step, y0=0, dy=step, coloraxis="coloraxis", row=row, col=column,
            hovertemplate="%{x} and %{y}: %{z}%<extra></extra>",
        )  # fmt: skip
        chart.update_yaxes(autorange="reversed", row=row, col=column)
    chart.update_xaxes(title_text="position", row=rows)
    chart.update_yaxes(title_text="position", col=1)
    side = 540 / columns
    chart.update_layout(
        coloraxis={
            "colorscale": "Cividis",
            "cmax": 100,
            "colorbar": {
                "title": {"text": "cosine (%)", "side": "right"},
                "outlinewidth": 0,
                "thickness": 14,
            },
        },
        height=round(base.layout.margin.t + rows * (side + 60) + 40),
        margin={"t": base.layout.margin.t + _HEADING, "r": 20},
    )
    return chart


def spectrum_figure(meter: RankMeter) -> go.Figure:
    """The share of variance of every principal direction, those that PCM keeps in colour."""
    shares = 100 * np.array(meter.spectrum)
    shares = shares[: max(meter.rank, 1)]
    kept = np.arange(len(shares)) < meter.k
    chart = framed(
        meter.verdict,
        x="principal direction of the batch",
        y="share of the variance (%, log)",
        subtitle=f"{meter.batch} features with {meter.dimension} dimensions",
    )
    chart.add_bar(
        x=np.arange(1, len(shares) + 1),
        y=np.round(shares, 6),
        marker={"color": np.where(kept, COLOURS["blue"], "#BFBFBF").tolist()},
        hovertemplate="direction %{x}: %{y:.3g}%<extra></extra>",
    )
    last_kept = min(meter.k, len(shares))
    chart.add_annotation(
        x=last_kept + 0.6, xanchor="left", y=1, yref="paper", yanchor="top", showarrow=False,
        text=f"the first {last_kept} keep<br>{percent(meter.variance_kept, 2)} of the variance",
        align="left", font={"color": "#00609A", "size": 14},
    )  # fmt: skip
    chart.add_vline(x=last_kept + 0.5, line={"color": COLOURS["blue"], "width": 1.5})
    low = np.floor(np.log10(max(shares.min(), 1e-6)))
    chart.update_yaxes(type="log", range=[low, 2.1], exponentformat="none")
    chart.update_xaxes(range=[0.2, max(len(shares), last_kept + 12) + 0.8])
    chart.update_layout(bargap=0.15)
    return chart
