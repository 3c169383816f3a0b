"""How the place of the wanted picture moves as a query goes on, sentence by sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from longclip_lab.errors import LabError
from longclip_lab.views.frame import framed, plot_height
from longclip_lab.views.labels import end_labels
from longclip_lab.views.lanes import SYMBOLS
from longclip_lab.views.theme import PALETTE, add_curve
from longclip_lab.views.wording import listed, percent

if TYPE_CHECKING:
    from longclip_lab.search import SentenceRanks

_TOP = 1.06  # of the highest bound


def sentence_ranks_message(results: Mapping[str, SentenceRanks], places: int = 1) -> str:
    """What the whole paragraph finds, against its first sentence, by model."""
    told = []
    for label, one in results.items():
        first, last = (one.first(k, places).value for k in (1, one.ranks.shape[1]))
        told.append(f"{label} {percent(first)}\u00a0→\u00a0{percent(last)}")
    where = "first" if places == 1 else f"among the first {places}"
    return f"Found {where} by one sentence → by all: {listed(told)}"


def sentence_ranks_figure(
    result: SentenceRanks | Mapping[str, SentenceRanks], places: int = 1
) -> go.Figure:
    """The share of queries whose picture is among the first `places`, after each sentence.

    Bands are 95% bootstrap intervals over queries; hovering tells the median place. An open marker
    says that some of these queries are longer than the model reads.

    Raises LabError for no result, and for results of different numbers of sentences.
    """
    results = dict(result) if isinstance(result, Mapping) else {result.model: result}
    if len({one.ranks.shape for one in results.values()}) != 1:
        raise LabError(
            "expected at least one result, and results of the same queries, got shapes "
            f"{[one.ranks.shape for one in results.values()]}."
        )
    first = next(iter(results.values()))
    chart = framed(
        sentence_ranks_message(results, places),
        x="sentences of the query",
        y="found first (%)" if places == 1 else f"among the first {places} (%)",
        subtitle=f"{len(first):,} queries, {first.pictures:,} pictures; bands: 95% bootstrap "
        "intervals; open: not all of the text is read",
    )
    count, ends, highest = first.ranks.shape[1], [], 0.0
    for number, (label, one) in enumerate(results.items()):
        shares = [one.first(k, places) for k in range(1, count + 1)]
        band = [[100 * getattr(s, part) for s in shares] for part in ("value", "low", "high")]
        add_curve(chart, range(1, count + 1), *band, label, PALETTE[number])
        symbol = SYMBOLS[number % len(SYMBOLS)]
        cut = [not whole for whole in one.whole.all(axis=0)]
        chart.data[-1].marker = {
            "symbol": [f"{symbol}-open" if open_ else symbol for open_ in cut],
            "size": 9, "line": {"width": 2, "color": PALETTE[number]}, "color": PALETTE[number],
        }  # fmt: skip
        medians = [one.median(k) for k in range(1, count + 1)]
        chart.data[-1].customdata = [(m.value, m.low, m.high) for m in medians]
        chart.data[-1].hovertemplate = (
            "%{y:.0f}%; median place %{customdata[0]:.0f} "
            "(%{customdata[1]:.0f} to %{customdata[2]:.0f})"
        )
        ends.append(band[0][-1])
        highest = max(highest, *band[2])
    top = _TOP * max(highest, 1)
    per_pixel = top / plot_height(chart)
    end_labels(chart, ends, list(results), PALETTE[: len(results)], per_pixel, (0, top))
    chart.update_layout(hovermode="x unified")
    chart.update_yaxes(range=[0, top])
    chart.update_xaxes(range=[0.8, count + 0.2], dtick=1)
    return chart
