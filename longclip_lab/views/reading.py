"""Figures of truncation, effective length and caption length.

The states are computed beforehand and stand in the page as JSON, so the slider works in JupyterLab
and in the book, where no kernel runs. Without JavaScript the first state shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import plotly.graph_objects as go

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval
from longclip_lab.views.theme import (
    COLOURS,
    PALETTE,
    SYMBOLS,
    Lane,
    add_curve,
    compare,
    end_labels,
    framed,
    lanes,
    listed,
    percent,
    plot_height,
)

if TYPE_CHECKING:
    from longclip_lab.probing import EffectiveLength, TruncationCurve


# --- Figures about how far a model reads: the truncation curve and effective length ---

STYLES = {  # of the caption as written and of the controls: colour, dash, symbol
    "as written": (COLOURS["blue"], "solid", SYMBOLS[0]),
    "positions re-randomised": (COLOURS["purple"], "dot", SYMBOLS[1]),
    "details only": (COLOURS["vermillion"], "dash", SYMBOLS[2]),
    "summary last": (COLOURS["green"], "dashdot", SYMBOLS[3]),
}


def first_reaching(curve: TruncationCurve, variant: str, score: float) -> int | None:
    """The first cut, in tokens, after which the variant scores at least `score`; None if no cut."""
    for cut, reached in zip(curve.cuts, curve.scores(variant), strict=True):
        if reached.value >= score:
            return cut
    return None


def truncation_message(curve: TruncationCurve) -> str:
    """When half of the caption's score is there, and whether that depends on the word order."""
    written = curve.scores("as written")
    half = first_reaching(curve, "as written", written[-1].value / 2)
    message = f"Half of the score is there after {half} tokens"
    if "summary last" not in curve.hits:
        return message
    moved = first_reaching(curve, "summary last", written[-1].value / 2)
    at_half = curve.cuts.index(half)
    if compare(curve.scores("summary last")[at_half], written[at_half]) != "lower":
        return f"{message}, wherever the summary stands"
    if moved is None:
        return f"{message}; with the summary last, not even after {curve.cuts[-1]}"
    return f"{message}; with the summary last, after {moved}"


def truncation_figure(curve: TruncationCurve) -> go.Figure:
    """R@1 against the number of tokens read, with the controls; bands are 95% intervals."""
    chart = framed(
        truncation_message(curve),
        x="content tokens read (the end token stands behind them)",
        y="R@1 (%)",
        subtitle=f"{curve.model}, {curve.num_pairs:,} pictures, mean of both directions; bands: "
        "95% bootstrap intervals",
    )
    variants = [name for name in STYLES if name in curve.hits]
    scores = {name: curve.scores(name) for name in variants}
    for name in variants:
        colour, dash, symbol = STYLES[name]
        value, low, high = (
            [100 * getattr(score, part) for score in scores[name]]
            for part in ("value", "low", "high")
        )
        add_curve(chart, curve.cuts, value, low, high, name, colour, dash=dash)
        chart.data[-1].marker = {"symbol": symbol, "size": 7}
    top = 100 * max(score.high for name in variants for score in scores[name]) * 1.06
    end_labels(
        chart,
        [100 * scores[name][-1].value for name in variants],
        [name.replace("positions ", "positions<br>") for name in variants],
        [STYLES[name][0] for name in variants],
        units_per_pixel=top / plot_height(chart),
        span=(0, top),
    )
    chart.update_layout(hovermode="x unified")
    chart.update_yaxes(range=[0, top])
    chart.update_xaxes(range=[0, curve.cuts[-1] * 1.015])
    return chart


def definitions(effective: EffectiveLength) -> dict[str, str]:
    """What each definition of effective length says, in a few words."""
    return {
        "half": "half of the final score is reached",
        "plateau": "95% of the final score is reached",
        "marginal gain": f"a token brings under {100 * effective.least_gain:g} points",
        "last gain": "the last gain that is certain",
    }


def effective_length_message(effective: EffectiveLength) -> str:
    """Over what range the definitions of effective length spread, for the caption as written."""
    found = [length.value for length in effective.lengths["as written"].values()]
    low, high = min(found), max(found)
    if high <= 1.25 * low:
        return f"About {low:.0f} tokens, whatever “effective length” is taken to mean"
    return f"“Effective length” is {low:.0f} to {high:.0f} tokens: it depends on the definition"


def effective_length_figure(effective: EffectiveLength) -> go.Figure:
    """Each definition's length for the caption as written and the controls, with intervals."""
    variants = [name for name in STYLES if name in effective.lengths]
    groups = {
        words: [
            Lane(name, effective.lengths[name][key], STYLES[name][0], STYLES[name][2])
            for name in variants
        ]
        for key, words in definitions(effective).items()
    }
    last = effective.curve.cuts[-1]
    return lanes(
        effective_length_message(effective),
        groups,
        x="content tokens",
        span=(0, 1.02 * last),
        subtitle=f"{effective.curve.model}, {effective.curve.num_pairs:,} pictures; whiskers: 95% "
        "bootstrap intervals",
        value_format=".0f",
    )


# --- Truncation curves beside each other: of several readers, and beside published numbers ---

_DASHES = ("solid", "dash", "dashdot", "dot")


class Published(Protocol):
    """What the figure needs of a published curve; `reproduction.experiment` has some."""

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


# --- How long a caption should be: scores by sub-captions trained with and by tokens read ---

_LENGTHS_DASHES = ("solid", "dash", "dot", "dashdot")
_STAR = "#D62728"


def subcaptions_figure(
    counts: Sequence[int | None],
    scores: Mapping[str, Sequence[Interval]],
    subtitle: str = "",
) -> go.Figure:
    """LoTLIP's Figures 2 and 5: each test's score by the sub-captions of the training texts.

    `counts` are the numbers of sub-captions, 0 for alt-texts alone and None for all; `scores` has
    one interval for each of them, as shares, by the test's name. Raises LabError for numbers of
    scores that do not fit.
    """
    for name, found in scores.items():
        if len(found) != len(counts):
            raise LabError(f"{name}: expected {len(counts)} scores, got {len(found)}.")
    names = ["all" if count is None else str(count) for count in counts]
    chart = framed(
        subcaptions_message(names, scores),
        x="sub-captions in a training text",
        y="score (%)",
        subtitle=subtitle,
    )
    x = list(range(len(names)))
    add_curves(chart, x, scores)
    chart.update_xaxes(tickvals=x, ticktext=names, range=[-0.1, len(x) - 0.95])
    return chart


def subcaptions_message(names: Sequence[str], scores: Mapping[str, Sequence[Interval]]) -> str:
    """After how many sub-captions each test's mean is highest.

    >>> rising, falling = [Interval(v, v, v, 3) for v in (0.1, 0.2, 0.3)], None
    >>> subcaptions_message(["0", "1", "all"], {"long": rising, "short": rising[::-1]})
    'Highest mean by sub-captions in training: “long” with all and “short” with 0'
    """
    best = {
        test: names[max(range(len(names)), key=lambda i: found[i].value)]
        for test, found in scores.items()
    }
    told = listed([f"“{test}” with {name}" for test, name in best.items()])
    return f"Highest mean by sub-captions in training: {told}"


def token_limit_figure(
    limits: Sequence[int],
    scores: Mapping[str, Sequence[Interval]],
    flops: Sequence[int],
    subtitle: str = "",
) -> go.Figure:
    """LoTLIP's Figure 4: scores by the tokens that a model may read, and what they cost.

    `flops` are the text tower's operations for one text (`models.text_flops`), the red stars; the
    right axis has them. Raises LabError for numbers that do not fit the limits.
    """
    for name, found in {**scores, "flops": flops}.items():
        if len(found) != len(limits):
            raise LabError(f"{name}: expected {len(limits)} values, got {len(found)}.")
    chart = framed(
        limits_message(limits, scores, flops),
        x="token limit (start and end included)",
        y="R@1 (%)",
        subtitle=subtitle,
        height=460,
    )
    add_curves(chart, list(limits), scores)
    unit, name = (1e9, "GFLOP") if max(flops) >= 1e9 else (1e6, "MFLOP")
    chart.add_scatter(
        x=list(limits), y=[count / unit for count in flops], yaxis="y2", mode="lines+markers",
        marker={"symbol": "star", "size": 13, "color": _STAR},
        line={"color": _STAR, "width": 1, "dash": "dot"}, name=name,
        hovertemplate=f"%{{y:.3g}} {name}",
    )  # fmt: skip
    top = 1.15 * max(flops) / unit
    chart.update_layout(
        yaxis2={
            "overlaying": "y", "side": "right", "range": [0, top], "showgrid": False,
            "tickmode": "auto", "nticks": 5,
            "title": {"text": f"★ {name} for one text", "font": {"color": _STAR}},
            "tickfont": {"color": _STAR},
        },
        hovermode="x unified",
        showlegend=True,
    )  # fmt: skip
    for note in list(chart.layout.annotations):
        note.visible = False  # the right axis stands where names would
    chart.update_layout(margin={"r": 80, "b": 100})
    chart.update_xaxes(type="log", tickvals=list(limits), ticktext=[str(x) for x in limits])
    return chart


def limits_message(
    limits: Sequence[int], scores: Mapping[str, Sequence[Interval]], flops: Sequence[int]
) -> str:
    """Where each curve's mean is highest, and how the cost grows from first to last limit."""
    best = listed([
        f"“{name}” at {limits[max(range(len(limits)), key=lambda i: found[i].value)]}"
        for name, found in scores.items()
    ])  # fmt: skip
    factor = flops[-1] / flops[0]
    cost = f"{limits[-1]} tokens cost {factor:.1f} times as much as {limits[0]}"
    return f"{cost}; highest mean: {best}"


def add_curves(chart: go.Figure, x: list[float], scores: Mapping[str, Sequence[Interval]]) -> None:
    """Draw a curve with its band for each test, shares as percent, named at its end."""
    for number, (name, found) in enumerate(scores.items()):
        value, low, high = (
            [100 * getattr(score, part) for score in found] for part in ("value", "low", "high")
        )
        add_curve(chart, x, value, low, high, name, PALETTE[number % len(PALETTE)],
                  dash=_LENGTHS_DASHES[number % len(_LENGTHS_DASHES)])  # fmt: skip
    bounds = [100 * b for found in scores.values() for s in found for b in (s.low, s.high)]
    span = (max(0.0, min(bounds) - 3), min(100.0, max(bounds) + 3))
    chart.update_yaxes(range=span)
    end_labels(
        chart,
        [100 * found[-1].value for found in scores.values()],
        list(scores),
        [PALETTE[number % len(PALETTE)] for number in range(len(scores))],
        units_per_pixel=(span[1] - span[0]) / plot_height(chart),
        span=span,
    )
