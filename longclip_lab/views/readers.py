"""Truncation curves beside each other: of several readers, and beside published numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

import plotly.graph_objects as go

from longclip_lab.errors import LabError
from longclip_lab.views.frame import framed, plot_height
from longclip_lab.views.labels import end_labels
from longclip_lab.views.lanes import SYMBOLS
from longclip_lab.views.reading import STYLES
from longclip_lab.views.theme import COLOURS, PALETTE, add_curve
from longclip_lab.views.wording import listed, percent

if TYPE_CHECKING:
    from longclip_lab.probing import TruncationCurve

_DASHES = ("solid", "dash", "dashdot", "dot")


class Published(Protocol):
    """What the figure needs of a published curve; `reproduction.published` has some."""

    name: str
    source: str

    @property
    def shares(self) -> Mapping[int, float]:
        """Content tokens read: share of the score with all of them, 0 to 1."""


def readers_message(
    curves: Mapping[str, TruncationCurve], variant: str = "as written", start: int = 20
) -> str:
    """What the tokens from `start` on bring to each of the curves."""
    last = next(iter(curves.values())).cuts[-1]
    gains = {label: curve.gain(variant, start, last) for label, curve in curves.items()}
    seen = [
        f"{100 * gain.value:+.0f} points for “{label}”"
        if gain.low > 0 or gain.high < 0
        else f"no change seen for “{label}”"
        for label, gain in gains.items()
    ]
    return f"What tokens {start} to {last} bring: {listed(seen)}"


def readers_figure(
    curves: Mapping[str, TruncationCurve], variant: str = "as written", start: int = 20
) -> go.Figure:
    """One variant of several truncation curves (label: curve), such as two models or two pools.

    `start` is the cut from which the title counts. Raises LabError for no curve, for different
    cuts, and for a variant that a curve does not have.
    """
    _check(curves, variant)
    first = next(iter(curves.values()))
    chart = framed(
        readers_message(curves, variant, start),
        x="content tokens read (the end token stands behind them)",
        y="R@1 (%)",
        subtitle=f"{variant}; {first.num_pairs:,} pictures, mean of both directions; bands: 95% "
        "bootstrap intervals",
    )
    for number, (label, curve) in enumerate(curves.items()):
        scores = curve.scores(variant)
        band = [[100 * getattr(s, part) for s in scores] for part in ("value", "low", "high")]
        colour, dash = PALETTE[number], _DASHES[number % len(_DASHES)]
        add_curve(chart, curve.cuts, *band, label, colour, dash=dash)
        chart.data[-1].marker = {"symbol": SYMBOLS[number], "size": 7}
    top = 106 * max(s.high for curve in curves.values() for s in curve.scores(variant))
    end_labels(
        chart,
        [100 * curve.hits[variant][-1].mean() for curve in curves.values()],
        list(curves),
        PALETTE[: len(curves)],
        units_per_pixel=top / plot_height(chart),
    )
    chart.update_layout(hovermode="x unified")
    chart.update_yaxes(range=[0, top])
    chart.update_xaxes(range=[0, first.cuts[-1] * 1.015])
    return chart


def _check(curves: Mapping[str, TruncationCurve], variant: str) -> None:
    if not curves:
        raise LabError("expected at least one truncation curve, got none. Draw one first.")
    if len({curve.cuts for curve in curves.values()}) > 1:
        cuts = {label: list(curve.cuts) for label, curve in curves.items()}
        raise LabError(f"expected curves with the same cuts, got {cuts}. Give both `cuts=`.")
    for label, curve in curves.items():
        if variant not in curve.hits:
            known = listed(list(curve.hits))
            raise LabError(f"expected '{variant}' in the curve of “{label}”, got {known}.")


def published_figure(curve: TruncationCurve, published: Published, start: int = 20) -> go.Figure:
    """Shares of the score with all tokens: of a curve, of its details alone, and as published.

    Different models and pictures can be compared only so. `start` is the cut that the title
    speaks of; of the published curve the nearest one.
    """
    nearest = min(published.shares, key=lambda tokens: abs(tokens - start))
    told = [f"{percent(published.shares[nearest])} for {published.name}"]
    variants = [name for name in ("as written", "details only") if name in curve.hits]
    at = curve.cuts.index(start)
    means = {name: curve.hits[name].mean(1) for name in variants}
    told += [f"{percent(m[at] / m[-1])} for {curve.model} {name}" for name, m in means.items()]
    chart = framed(
        f"Share of the full score after {start} tokens: {listed(told)}",
        x="content tokens read",
        y="share of the score with all tokens (%)",
        subtitle=published.source,
    )
    for name in variants:
        full = means[name][-1]
        scores = curve.scores(name)
        band = [
            [100 * getattr(s, part) / full for s in scores] for part in ("value", "low", "high")
        ]
        label = f"{curve.model}, {name}"
        add_curve(chart, curve.cuts, *band, label, STYLES[name][0], dash=STYLES[name][1])
    chart.add_scatter(
        x=list(published.shares),
        y=[100 * share for share in published.shares.values()],
        name=published.name,
        line={"color": COLOURS["black"], "dash": "dot"},
        marker={"symbol": "diamond"},
        hovertemplate="%{y:.3g}",
    )
    chart.update_layout(showlegend=True, hovermode="x unified", margin_b=95)
    return chart
