"""Figures of primary components: when they leave anything out, and what they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from longclip_lab.errors import LabError
from longclip_lab.views.frame import framed, plot_height
from longclip_lab.views.labels import end_labels
from longclip_lab.views.lanes import SYMBOLS
from longclip_lab.views.theme import PALETTE
from longclip_lab.views.wording import listed

if TYPE_CHECKING:
    import pandas as pd

    from longclip_lab.objectives import RankMeter


def batch_size_message(meters: Sequence[RankMeter]) -> str:
    """Up to which batch the largest k does nothing, and how much it leaves out at most."""
    k = max(meter.k for meter in meters)
    own = [meter for meter in meters if meter.k == k]
    left = 100 * (1 - min(meter.variance_kept for meter in own))
    idle = [meter.batch for meter in own if meter.is_identity]
    if len(idle) == len(own):
        return f"With k = {k}, PCM does nothing in any of these batches"
    most = f"at most {left:.2g}% of the variance is left out"
    if not idle:
        return f"With k = {k}, {most}"
    return f"With k = {k}, PCM does nothing in batches of up to {max(idle)}; beyond, {most}"


def batch_size_figure(meters: Sequence[RankMeter]) -> go.Figure:
    """Variance kept by the first k components against the batch size, a line for every k.

    Hollow points are batches in which the coarse features are the features. Raises LabError for
    no meters.
    """
    if not meters:
        raise LabError("expected at least one rank meter, got none.")
    chart = framed(
        batch_size_message(meters),
        x="images in the batch (log)",
        y="variance kept (%)",
        subtitle="hollow: the coarse features are the features, exactly",
    )
    ks = sorted({meter.k for meter in meters}, reverse=True)
    ends = []
    for number, k in enumerate(ks):
        own = sorted((m for m in meters if m.k == k), key=lambda meter: meter.batch)
        shares = [100 * meter.variance_kept for meter in own]
        symbols = [f"{SYMBOLS[number]}-open" if m.is_identity else SYMBOLS[number] for m in own]
        chart.add_scatter(
            x=[meter.batch for meter in own],
            y=shares,
            name=f"k = {k}",
            mode="lines+markers",
            line={"color": PALETTE[number]},
            marker={"symbol": symbols, "size": 11, "line": {"width": 2, "color": PALETTE[number]}},
            hovertemplate="%{x} images: %{y:.2f}%",
        )
        ends.append(shares[-1])
    batches = sorted({meter.batch for meter in meters})
    low = 100 * min(meter.variance_kept for meter in meters) - 4
    end_labels(
        chart, ends, [f"k = {k}" for k in ks], PALETTE[: len(ks)],
        units_per_pixel=(103 - low) / plot_height(chart),
    )  # fmt: skip
    chart.update_yaxes(range=[low, 103])
    chart.update_xaxes(type="log", tickvals=batches, ticktext=[str(batch) for batch in batches])
    return chart


def encoding_message(table: pd.DataFrame) -> str:
    """Which facts explain most of the variance of these directions together."""
    facts = [name for name in table.columns if name != "variance"]
    weight = table["variance"] / table["variance"].sum()
    whole = (table[facts].mul(weight, axis=0)).sum().sort_values(ascending=False)
    told = listed([f"{name} ({100 * share:.0f}%)" for name, share in whole.head(3).items()])
    return f"What the first {len(table)} directions vary with most: {told}"


def encoding_figure(table: pd.DataFrame, shown: Sequence[int] | None = None) -> go.Figure:
    """Heat map of a table of `probing.directions.explained_by`: directions by facts.

    `shown` are the directions to draw, from 1; the title speaks of all in the table.
    """
    facts = [name for name in table.columns if name != "variance"]
    chart = framed(
        encoding_message(table),
        y="principal direction (its share of all variance)",
        subtitle="share of the direction's variance that the fact explains (%)",
        at_edge=True,
    )
    table = table if shown is None else table.loc[list(shown)]
    percents = np.clip(np.rint(100 * table[facts].to_numpy()), 0, None)
    chart.add_heatmap(
        z=percents,
        x=facts,
        y=[f"{number} ({share:.0%})" for number, share in table["variance"].items()],
        texttemplate="%{z:.0f}",
        showscale=False,
        hovertemplate="direction %{y}, %{x}: %{z:.0f}%<extra></extra>",
    )
    chart.update_yaxes(autorange="reversed", type="category", showgrid=False)
    chart.update_xaxes(side="bottom", type="category", showgrid=False)
    margins = chart.layout.margin.t + chart.layout.margin.b
    chart.update_layout(height=round(margins + 26 * len(table) + 40))
    return chart
