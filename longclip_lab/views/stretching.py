"""Ways of stretching compared on the same test sets, without any training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import plotly.graph_objects as go

from longclip_lab.evaluation import Interval
from longclip_lab.views.theme import (
    PALETTE,
    SYMBOLS,
    Lane,
    compare,
    lanes,
    listed,
    mean,
    points,
    scaled,
)


class Scored(Protocol):
    """What these figures need of a model's row; `reproduction.ModelRow` has it."""

    label: str
    stage: str
    long_i2t: Interval
    long_t2i: Interval
    short_i2t: Interval
    short_t2i: Interval
    variance_kept: float | None
    recipe: dict


def long_score(row: Scored) -> Interval:
    """R@1 on long captions, mean of both directions."""
    return mean(row.long_i2t, row.long_t2i)


def short_score(row: Scored) -> Interval:
    """R@1 on short captions, mean of both directions."""
    return mean(row.short_i2t, row.short_t2i)


def untrained(rows: Sequence[Scored]) -> list[Scored]:
    """The model as it was and its stretched copies."""
    return [row for row in rows if row.stage in ("start", "stretched")]


def stretching_message(rows: Sequence[Scored]) -> str:
    """Which ways of stretching cost short captions something, against the model as it was."""
    start, *stretched = untrained(rows)
    costs = {
        f"“{row.label}”": points(short_score(row), short_score(start))
        for row in stretched
        if compare(short_score(row), short_score(start)) == "lower"
    }
    free = [f"“{row.label}”" for row in stretched if f"“{row.label}”" not in costs]
    if not costs:
        return "No way of stretching costs short captions anything that can be seen"
    message = listed([f"{label} costs short captions {cost}" for label, cost in costs.items()])
    return f"{message}; {listed(free)} nothing that can be seen" if free else message


def long_message(rows: Sequence[Scored]) -> str:
    """What stretching alone brings long captions, against the model as it was."""
    start, *stretched = untrained(rows)
    verdicts = {row.label: compare(long_score(row), long_score(start)) for row in stretched}
    told = [
        f"{points(long_score(row), long_score(start))} with “{row.label}”"
        for row in stretched
        if verdicts[row.label] == "higher"
    ]
    lost = [f"“{label}”" for label in verdicts if verdicts[label] == "lower"]
    gain = (
        f"Long captions gain {listed(told)}" if told else "Long captions gain nothing that is seen"
    )
    return f"{gain}; they lose with {listed(lost)}" if lost else gain


def stretching_figure(rows: Sequence[Scored]) -> go.Figure:
    """R@1 on long and short captions of a model as it was and stretched, without training."""
    groups = {
        heading: [
            Lane(row.label, scaled(score(row)), PALETTE[number], SYMBOLS[number])
            for number, row in enumerate(untrained(rows))
        ]
        for heading, score in (("Long captions", long_score), ("Short captions", short_score))
    }
    everything = [lane.score for members in groups.values() for lane in members]
    low, high = min(s.low for s in everything), max(s.high for s in everything)
    room = max(2.0, high - low)
    return lanes(
        stretching_message(rows),
        groups,
        x="R@1 (%), mean of both directions",
        span=(max(0, low - 0.1 * room), high + 0.1 * room),
        subtitle=f"without any training; {everything[0].n:,} pictures; whiskers: 95%",
    )
