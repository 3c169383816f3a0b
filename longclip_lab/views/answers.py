"""Figures of the counterfactual probe: what a model tells apart, and what it guesses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from longclip_lab.errors import LabError, suggest
from longclip_lab.evaluation import Interval
from longclip_lab.views.frame import GREY, framed, plot_height
from longclip_lab.views.labels import end_labels
from longclip_lab.views.lanes import SYMBOLS, Lane, lanes, scaled
from longclip_lab.views.theme import PALETTE
from longclip_lab.views.wording import CHANCE, capital, compare, listed, percent

if TYPE_CHECKING:
    from longclip_lab.probing import CounterfactualProbe

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
        error_y={
            "type": "data",
            "array": [score.high - score.value for score in percents],
            "arrayminus": [score.value - score.low for score in percents],
            "color": colour,
            "thickness": 2,
            "width": 4,
        },
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
