"""Captions that lie: shown beside their picture, what they cost, who is believed, who can tell."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval
from longclip_lab.probing import SentenceScores, majority_limit, truth_margin
from longclip_lab.views.frame import GREY, framed
from longclip_lab.views.html import Html, picture, picture_uri
from longclip_lab.views.labels import text_colour
from longclip_lab.views.lengths import add_curves
from longclip_lab.views.theme import PALETTE
from longclip_lab.views.wording import Difference, compare, listed, percent, points
from longclip_lab.world import SIZES, Caption, Scene, truth

_SYMBOLS = ("circle", "diamond", "square")
_STYLE = """<style>
.lc-lies {display: grid; grid-template-columns: minmax(120px, 200px) 1fr; gap: 16px 20px;
  max-width: 56em; align-items: start}
.lc-lies img {width: 100%; border-radius: 6px; display: block; margin: 0}
.lc-lies p {margin: 0 0 .5em; line-height: 1.7}
.lc-lies .counted {font-size: .84em; color: #595959}
.lc-lies s {color: #A94700; text-decoration-thickness: .12em}
.lc-lies ins {color: #00735A; font-weight: 600; text-decoration: none}
</style>"""


def lies_html(pairs: Any, n: int = 2, pixels: int = 240) -> Html:
    """The first `n` pictures of the world with their long captions: lies struck out, in red, and
    what is so behind them, in green. Raises LabError for n < 1."""
    if n < 1:
        raise LabError(f"expected at least one picture, got n={n}.")
    rows = []
    for i in range(min(n, len(pairs.scenes))):
        caption, scene = pairs.long_captions[i], pairs.scenes[i]
        wrong = sum(not fact.true for fact in caption.facts)
        rows.append(
            f'<img src="{picture_uri(picture(pairs, i, pixels))}" '
            f'alt="{html.escape(pairs.short[i])}"><div><p>{_marked(caption, scene)}</p>'
            f'<p class="counted">{wrong} of {len(caption.facts)} facts are wrong</p></div>'
        )
    return Html(f'{_STYLE}<div class="lc-lies">{"".join(rows)}</div>')


def _marked(caption: Caption, scene: Scene) -> str:
    pieces, at = [], 0
    for fact in sorted(caption.facts, key=lambda fact: fact.span):
        if fact.true:
            continue
        start, end = fact.span
        pieces.append(html.escape(caption.text[at:start]))
        said = html.escape(caption.text[start:end])
        pieces.append(f"<s>{said}</s> <ins>{html.escape(truth(fact, scene))}</ins>")
        at = end
    return "".join(pieces) + html.escape(caption.text[at:])


def lie_rate_figure(
    rates: Sequence[float],
    scores: Mapping[str, Sequence[Interval]],
    subtitle: str = "",
    changes: Mapping[str, Interval] | None = None,
) -> go.Figure:
    """Each test's score by the share of wrong facts in the training texts.

    `scores` has one interval (shares) a rate by the test's name. The title says what the last rate
    changes against the first: by `changes`, paired differences, or where intervals part. Raises
    LabError for numbers of scores that do not fit.
    """
    for name, found in scores.items():
        if len(found) != len(rates):
            raise LabError(f"{name}: expected {len(rates)} scores, got {len(found)}.")
    chart = framed(
        lie_rate_message(rates, scores, changes),
        x="wrong facts in the training texts (%)",
        y="score (%)",
        subtitle=subtitle,
    )
    add_curves(chart, [100 * rate for rate in rates], scores)
    chart.update_xaxes(tickvals=[100 * rate for rate in rates])
    return chart


def lie_rate_message(
    rates: Sequence[float],
    scores: Mapping[str, Sequence[Interval]],
    changes: Mapping[str, Interval] | None = None,
) -> str:
    """What the highest rate of lies costs against the lowest, test by test.

    >>> fell = [Interval(0.5, 0.4, 0.6, 3), Interval(0.2, 0.1, 0.3, 3)]
    >>> lie_rate_message([0, 0.5], {"long": fell, "short": fell[:1] * 2})
    'With 50% of facts wrong “long” loses 30.0 points; no difference seen at “short”'
    """
    moved, level = [], []
    for test, found in scores.items():
        seen = _side(changes[test]) if changes else compare(found[-1], found[0])
        if seen == "no difference seen":
            level.append(f"“{test}”")
        else:
            verb = "gains" if seen == "higher" else "loses"
            moved.append(f"“{test}” {verb} {points(found[-1], found[0])}")
    told = [listed(moved)] if moved else []
    told += [f"no difference seen at {listed(level)}"] if level else []
    return f"With {percent(rates[-1])} of facts wrong {'; '.join(told)}"


def _side(change: Interval) -> Difference:
    return "higher" if change.low > 0 else "lower" if change.high < 0 else "no difference seen"


def belief_figure(
    rates: Sequence[float],
    margins: Mapping[str, Sequence[Interval]],
    values: Mapping[str, int],
    subtitle: str = "",
) -> go.Figure:
    """How much more a model believes the truth than a lie, by the rate of lies it was told.

    `margins` are differences of similarity times the logit scale (nats), one for each rate by
    attribute; `values` the number of the attribute's values. Dashed: `probing.truth_margin`, where
    a perfect learner ends; dotted: where it is 0. Raises LabError for numbers that do not fit.
    """
    for name, found in margins.items():
        if len(found) != len(rates):
            raise LabError(f"{name}: expected {len(rates)} margins, got {len(found)}.")
    chart = framed(
        belief_message(rates, margins, values),
        x="lies among what is told (%)",
        y="truth over lie (nats)",
        subtitle=subtitle,
        height=480,
    )
    chart.add_hline(y=0, line={"color": GREY, "width": 1.5})
    fine = np.linspace(min(rates), max(rates), 97)
    for number, (name, found) in enumerate(margins.items()):
        colour, limit = PALETTE[number], majority_limit(values[name])
        chart.add_scatter(
            x=100 * fine, y=[truth_margin(rate, values[name]) for rate in fine], mode="lines",
            line={"color": colour, "dash": "dash", "width": 1.5}, hoverinfo="skip",
            showlegend=False,
        )  # fmt: skip
        chart.add_vline(x=100 * limit, line={"color": colour, "dash": "dot", "width": 1.5})
        chart.add_scatter(
            x=[100 * rate for rate in rates],
            y=[one.value for one in found],
            error_y={
                "type": "data", "color": colour, "thickness": 1.5, "width": 4,
                "array": [one.high - one.value for one in found],
                "arrayminus": [one.value - one.low for one in found],
            },
            mode="lines+markers",
            line={"color": colour, "width": 2.5},
            marker={"color": colour, "size": 10, "symbol": _SYMBOLS[number % len(_SYMBOLS)]},
            name=f"{name}, {values[name]} values: limit {percent(limit)}",
            hovertemplate="%{y:.2f}",
        )  # fmt: skip
    chart.update_layout(showlegend=True, margin={"b": 100})
    return chart


def belief_message(
    rates: Sequence[float], margins: Mapping[str, Sequence[Interval]], values: Mapping[str, int]
) -> str:
    """How many of the decided answers go to what is told more often, the truth or a single lie.

    >>> sure, open = Interval(1.0, 0.5, 1.5, 3), Interval(0.1, -0.5, 0.5, 3)
    >>> belief_message([0.2, 0.9], {"colour": [sure, open]}, {"colour": 8})
    'Told more often is believed: so in 1 of 1 decided cases (1 is open)'
    """
    agree = decided = undecided = 0
    for name, found in margins.items():
        for rate, one in zip(rates, found, strict=True):
            if one.low <= 0 <= one.high:
                undecided += 1
                continue
            decided += 1
            agree += (one.value > 0) == (rate < majority_limit(values[name]))
    told = f"Told more often is believed: so in {agree} of {decided} decided cases"
    return f"{told} ({undecided} {'is' if undecided == 1 else 'are'} open)" if undecided else told


def lie_roc_figure(found: SentenceScores, subtitle: str = "") -> go.Figure:
    """Can the scores tell true sentences from lies? An ROC curve for each size of thing.

    Raises LabError unless there are both for each size.
    """
    by_size = {size: found.of(size) for size in SIZES}
    areas = {size: part.auc() for size, part in by_size.items()}
    chart = framed(
        roc_message(areas),
        x="lying sentences that pass (%)",
        y="true sentences that pass (%)",
        subtitle=subtitle,
        height=500,
    )
    chart.add_scatter(
        x=[0, 100], y=[0, 100], mode="lines", line={"color": GREY, "dash": "dot", "width": 1.5},
        hoverinfo="skip", showlegend=False,
    )  # fmt: skip
    for number, (size, part) in enumerate(by_size.items()):
        lies_kept, true_kept = part.roc()
        area = areas[size]
        chart.add_scatter(
            x=100 * lies_kept, y=100 * true_kept, mode="lines",
            line={"color": PALETTE[number], "width": 2.5}, name=size,
        )  # fmt: skip
        chart.add_annotation(
            x=0.98, xref="paper", xanchor="right", y=0.05 + 0.075 * (len(by_size) - 1 - number),
            yref="paper", showarrow=False, align="right",
            text=f"{size}: area {area.value:.2f} ({area.low:.2f} to {area.high:.2f})",
            font={"color": text_colour(PALETTE[number]), "size": 14},
        )  # fmt: skip
    chart.update_xaxes(range=[0, 100])
    chart.update_yaxes(range=[0, 101])
    return chart


def roc_message(areas: Mapping[str, Interval]) -> str:
    """Of which things' lies the scores know more than chance does.

    >>> roc_message({"large": Interval(0.7, 0.6, 0.8, 9), "small": Interval(0.5, 0.4, 0.6, 9)})
    'The score tells lies about large things from the truth, but not about small'
    """
    seen = [size for size, area in areas.items() if area.low > 0.5]
    unseen = [size for size in areas if size not in seen]
    if not seen:
        return "The score cannot tell lies from the truth"
    told = f"The score tells lies about {listed(seen)} things from the truth"
    if unseen:
        return f"{told}, but not about {listed(unseen)}"
    best = max(areas, key=lambda size: areas[size].value)
    worst = min(areas, key=lambda size: areas[size].value)
    return (
        f"The score tells lies from the truth best about {best} things "
        f"({areas[best].value:.2f}), worst about {worst} ({areas[worst].value:.2f}; chance 0.5)"
    )
