"""Figures of counterfactual probes and hallucinated captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from longclip_lab.errors import LabError, suggest
from longclip_lab.evaluation import Interval
from longclip_lab.probing import SentenceScores, majority_limit, truth_margin
from longclip_lab.text import split_sentences
from longclip_lab.views.html import Html, image_uri, picture, render
from longclip_lab.views.reading import add_curves
from longclip_lab.views.theme import (
    CHANCE,
    COLOURS,
    GREY,
    PALETTE,
    SYMBOLS,
    Difference,
    Lane,
    capital,
    compare,
    end_labels,
    framed,
    lanes,
    listed,
    percent,
    plot_height,
    points,
    scaled,
    text_colour,
    whiskers,
)
from longclip_lab.world import SIZES, truth

if TYPE_CHECKING:
    from longclip_lab.probing import CounterfactualProbe


# --- Figures of the counterfactual probe: what a model tells apart, and what it guesses ---

GROUPINGS = ("size", "position", "attribute")
Scores = dict[str, Interval]


def counterfactual_figure(
    probe: CounterfactualProbe | Mapping[str, CounterfactualProbe], by: str = "size"
) -> go.Figure:
    """Share of right answers by the thing's size, the changed word's position, or its attribute.

    With several probes (label: probe) of the same questions, the first is what the others are
    compared to. By size and attribute only the questions are counted whose word every model reads;
    the position shows what a longer context brings. Raises LabError for another `by`.
    """
    if by not in GROUPINGS:
        raise LabError(
            f"expected by to be a grouping of the probe, got {by!r}. {suggest(by, GROUPINGS)}"
        )
    probes = dict(probe) if isinstance(probe, Mapping) else {probe.model: probe}
    if not probes:
        raise LabError("expected at least one counterfactual probe, got none. Run one first.")
    if by == "position":
        return _by_position(probes)
    probes = read_by_all(probes)
    scores = {label: grouped(one, by) for label, one in probes.items()}
    return _by_group(probes, scores, by)


def read_by_all(probes: Mapping[str, CounterfactualProbe]) -> dict[str, CounterfactualProbe]:
    """The probes without the questions whose word some model cannot read.

    Those are ties by definition: with them, a short context would look like a bad eye. Raises
    LabError if no question is left.
    """
    read = ~np.any([probe.unread for probe in probes.values()], axis=0)
    if not read.any():
        raise LabError("expected questions whose word every model reads, got none of them.")
    return {label: probe.subset(read) for label, probe in probes.items()}


def grouped(probe: CounterfactualProbe, by: str) -> Scores:
    """Accuracy (a share) in each group of questions, in the probe's order."""
    return {
        row[by]: Interval(row["accuracy"] / 100, row["low"] / 100, row["high"] / 100, row["pairs"])
        for row in probe.table([by]).to_dict("records")
    }


def named(group: str, by: str) -> str:
    """What a group of questions is called in a sentence."""
    return {"size": f"{group} things", "position": f"tokens {group}"}.get(by, group)


def answers_message(scores: Mapping[str, Scores], by: str) -> str:
    """What one model knows and guesses, or where the last of several differs from the first."""
    labels = list(scores)
    if len(labels) > 1:
        return _change_message(labels[0], labels[-1], scores, by)
    own = scores[labels[0]]
    known = [group for group in own if own[group].low > CHANCE]
    guessed = [group for group in own if group not in known]
    told = listed([f"{named(g, by)} ({percent(own[g].value)})" for g in known])
    if not known:
        return "It guesses throughout: no group of questions is answered above chance"
    if not guessed:
        return f"Right answers above chance for {told}"
    return f"Right answers for {told}; for {listed([named(g, by) for g in guessed])} it guesses"


def _change_message(first: str, last: str, scores: Mapping[str, Scores], by: str) -> str:
    changes: dict[str, list[str]] = {"higher": [], "lower": []}
    for group, after in scores[last].items():
        before = scores[first].get(group)
        verdict = compare(after, before) if before else None
        if verdict in changes:
            changes[verdict].append(
                f"{named(group, by)} ({percent(before.value)}\u00a0→\u00a0{percent(after.value)})"
            )
    found = [
        f"{word} on {listed(changes[key])}"
        for key, word in (("higher", "better"), ("lower", "worse"))
        if changes[key]
    ]
    if not found:
        return f"No difference seen between “{first}” and “{last}” for any {by}"
    return f"“{last}” is {', '.join(found)}"


def _questions(probes: Mapping[str, CounterfactualProbe]) -> str:
    asked = f"{len(next(iter(probes.values())).margins):,} questions"
    return f"{asked}: which of two captions, one word apart, fits?"


def _by_group(
    probes: Mapping[str, CounterfactualProbe], scores: Mapping[str, Scores], by: str
) -> go.Figure:
    labels = list(scores)
    first = scores[labels[0]]
    order = list(first) if by == "size" else sorted(first, key=lambda g: -first[g].value)
    if len(labels) == 1:
        everything = [Lane(capital(named(g, by)), scaled(first[g]), PALETTE[0]) for g in order]
        groups = {"": everything}
    else:
        groups = {
            capital(named(group, by)): [
                Lane(label, scaled(scores[label][group]), PALETTE[number], SYMBOLS[number])
                for number, label in enumerate(labels)
                if group in scores[label]
            ]
            for group in order
        }
    lowest = min(score.low for one in scores.values() for score in one.values())
    chart = lanes(
        answers_message(scores, by),
        groups,
        x="right answers (%)",
        span=(min(45, 100 * lowest - 3), 102),
        subtitle=f"{_questions(probes)} Only words that "
        f"{'it reads' if len(labels) == 1 else 'every model reads'}.",
    )
    chart.add_vline(x=50, line={"color": GREY, "width": 1.5, "dash": "dot"}, layer="below")
    marks = range(10 * int(lowest * 10), 101, 10)
    chart.update_xaxes(
        tickvals=list(marks), ticktext=[f"{m}<br>chance" if m == 50 else str(m) for m in marks]
    )
    return chart


def position_message(probes: Mapping[str, CounterfactualProbe]) -> str:
    """Whether answers depend on where the word stands, or what the later positions brought."""
    (first_label, first), *others = probes.items()
    if others and first.unread.any():
        last_label, last = others[-1]
        behind = last.accuracy(first.unread)
        words = f"words that “{first_label}” cannot read"
        if behind.low > CHANCE:
            return f"“{last_label}” is right on {percent(behind.value)} of the {words}"
        return f"“{last_label}” reads on, but guesses the {words} ({percent(behind.value)} right)"
    read = {g: s for g, s in grouped(first, "position").items() if not _unread(first).get(g)}
    (begin, early), (end, late) = next(iter(read.items())), list(read.items())[-1]
    where = f"from {percent(early.value)} at tokens {begin} to {percent(late.value)} at {end}"
    verdict = compare(late, early)
    if verdict == "no difference seen":
        return f"Where a word stands makes no difference that is seen: {where}"
    return f"Right answers {'fall' if verdict == 'lower' else 'rise'} {where}"


def _unread(probe: CounterfactualProbe) -> dict[str, bool]:
    """For each range of positions: does the whole of it lie behind the model's context?"""
    rows = probe.table(["position"]).to_dict("records")
    return {row["position"]: row["unread"] == row["pairs"] for row in rows}


def _unread_counts(probes: Mapping[str, CounterfactualProbe]) -> str:
    return "".join(
        f" “{label}” cannot read {probe.unread.sum():,} of them (hollow)."
        for label, probe in probes.items()
        if probe.unread.any()
    )


def _by_position(probes: Mapping[str, CounterfactualProbe]) -> go.Figure:
    chart = framed(
        position_message(probes),
        x="position of the changed word (tokens)",
        y="right answers (%)",
        subtitle=_questions(probes) + _unread_counts(probes),
        height=400,
    )
    tables = {label: grouped(probe, "position") for label, probe in probes.items()}
    ranges = list(dict.fromkeys(name for scores in tables.values() for name in scores))
    for number, (label, scores) in enumerate(tables.items()):
        shift = 0.06 * (number - (len(probes) - 1) / 2)
        places = [ranges.index(name) + shift for name in scores]
        _add_ranges(chart, label, places, scores, _unread(probes[label]), number)
    floor = min(45, *(100 * s.low - 2 for scores in tables.values() for s in scores.values()))
    if len(probes) > 1:
        end_labels(
            chart,
            [100 * list(scores.values())[-1].value for scores in tables.values()],
            list(probes),
            PALETTE[: len(probes)],
            units_per_pixel=(102 - floor) / plot_height(chart),
            span=(floor, 102),
        )
    chart.add_hline(y=50, line={"color": GREY, "width": 1.5, "dash": "dot"}, layer="below")
    chart.add_annotation(
        x=0, xref="paper", xanchor="left", xshift=6, y=50, yanchor="top", text="chance",
        showarrow=False, font={"color": GREY, "size": 13},
    )  # fmt: skip
    chart.update_xaxes(
        tickvals=list(range(len(ranges))), ticktext=ranges, range=[-0.5, len(ranges) - 0.5]
    )
    chart.update_yaxes(range=[floor, 102])
    return chart


def _add_ranges(
    chart: go.Figure,
    label: str,
    places: list[float],
    scores: Scores,
    unread: Mapping[str, bool],
    number: int,
) -> None:
    colour, symbol = PALETTE[number], SYMBOLS[number]
    percents = [
        Interval(50, 50, 50, score.n) if unread[name] else scaled(score)  # ties by definition
        for name, score in scores.items()
    ]
    chart.add_scatter(
        x=places,
        y=[score.value for score in percents],
        error_y=whiskers(colour, *percents),
        mode="lines+markers",
        name=label,
        line={"color": colour},
        marker={
            "size": 11,
            "symbol": [f"{symbol}-open" if unread[name] else symbol for name in scores],
            "line": {"width": 2, "color": colour},
        },
        hovertemplate="%{y:.1f}",
    )


# --- Counterfactual questions as they are shown: two captions, a picture, and what the model ---

ANSWERS = ("right", "wrong", "tie", "not read")
EDGES = (1, 21, 41, 77, 111, 249)
PIXELS = 240
_INK = {"right": "#00735A", "wrong": "#A94700", "tie": "#595959", "not read": "#595959"}


class Change(NamedTuple):
    """The characters in which two texts differ: [start, end_true) and [start, end_false)."""

    start: int
    end_true: int
    end_false: int


def changed_words(true: str, false: str) -> Change:
    """The words in which two texts differ, whole words.

    >>> true, false = "A red boat on a lake.", "A rusty boat on a lake."
    >>> start, end, other = changed_words(true, false)
    >>> true[start:end], false[start:other]
    ('red', 'rusty')
    """
    shorter = min(len(true), len(false))
    start = next((i for i in range(shorter) if true[i] != false[i]), shorter)
    while start and not true[start - 1].isspace():
        start -= 1
    same = 0
    while same < shorter - start and true[-same - 1] == false[-same - 1]:
        same += 1
    while same and true[-same].isalnum():
        same -= 1
    return Change(start, len(true) - same, len(false) - same)


@dataclass(frozen=True)
class Question:
    """One question as it was answered; `box` (x0, y0, x1, y1) is in shares of the picture."""

    index: int
    true: str
    false: str
    change: Change
    position: int
    attribute: str
    size: str
    true_score: float
    false_score: float
    answer: str
    box: tuple[float, float, float, float] | None


def question_card(question: Question, span: tuple[float, float]) -> str:
    """The picture with the thing's box, the sentence with either word, both scores, the answer.

    `span` is the range of the bars. The picture is `<img data-picture="index">`, see `states`.
    """
    low, high = span
    start, end_true, end_false = question.change
    first, last = _sentence(question.true, start, end_true)
    options = []
    for which, text, end, score, colour in (
        ("true", question.true, end_true, question.true_score, COLOURS["green"]),
        ("false", question.false, end_false, question.false_score, COLOURS["vermillion"]),
    ):
        option = {"which": which, "colour": colour, "score": f"{score:.3f}"}
        option |= {"before": text[first:start], "word": text[start:end]}
        option["behind"] = text[end : last + end - end_true]
        options.append(option | {"width": f"{100 * (score - low) / (high - low):.1f}"})
    spoken = " of a ".join(part for part in (question.attribute, question.size) if part)
    told = f"{spoken} thing" if question.size else spoken
    true, false = question.true, question.false
    return render(
        "question.html.j2",
        pixels=PIXELS,
        picture=question.index,
        box=question.box and [f"{100 * share:.1f}%" for share in question.box],
        place=f"token {question.position}" + f", {told}" * bool(told),
        options=options,
        ink=_INK[question.answer],
        verdict=_verdict(question),
        whole=(true[:start], true[start:end_true], false[start:end_false], true[end_true:]),
    )


def token_range(position: int) -> str:
    """The range of token positions that one belongs to, as text.

    >>> token_range(20), token_range(21)
    ('1 to 20', '21 to 40')
    """
    at = int(np.clip(np.digitize(position, EDGES), 1, len(EDGES) - 1))
    return f"{EDGES[at - 1]} to {EDGES[at] - 1}"


def _verdict(question: Question) -> str:
    if question.answer == "not read":
        return "not read: the word lies behind the model's context"
    if question.answer == "tie":
        return "a tie: both captions score the same"
    return f"{question.answer}, by {abs(question.true_score - question.false_score):.4f}"


def _sentence(text: str, start: int, end: int) -> tuple[int, int]:
    """The characters of the sentence around [start, end)."""
    around = [(a, b) for a, b in split_sentences(text) if a < max(end, start + 1) and b > start]
    return (around[0][0], around[-1][1]) if around else (0, len(text))


# --- Hallucinated captions: beside their image, what they cost, and who is believed ---

_SYMBOLS = ("circle", "diamond", "square")


def lies_html(pairs: Any, n: int = 2, pixels: int = 240) -> Html:
    """The first `n` pictures of the world with their long captions: lies struck out, in red, and
    what is so behind them, in green. Raises LabError for n < 1."""
    if n < 1:
        raise LabError(f"expected at least one picture, got n={n}.")
    rows = []
    for i in range(min(n, len(pairs.scenes))):
        caption, scene = pairs.long_captions[i], pairs.scenes[i]
        lies = sorted((fact for fact in caption.facts if not fact.true), key=lambda one: one.span)
        pieces, at = [], 0
        for fact in lies:
            start, end = fact.span
            pieces.append((caption.text[at:start], caption.text[start:end], truth(fact, scene)))
            at = end
        row = {"uri": image_uri(picture(pairs, i, pixels)), "short": pairs.short[i]}
        row |= {"pieces": [*pieces, (caption.text[at:], "", "")]}
        rows.append(row | {"wrong": len(lies), "facts": len(caption.facts)})
    return render("lies.html.j2", rows=rows)


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
            error_y=whiskers(colour, *found, thickness=1.5),
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
