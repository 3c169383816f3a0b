"""Counterfactual questions as they are shown: two captions, a picture, and what the model took."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from longclip_lab.text import split_sentences
from longclip_lab.views.theme import COLOURS

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
    name = question.index
    frame = ""
    if question.box is not None:
        x0, y0, x1, y1 = (f"{100 * share:.1f}%" for share in question.box)
        frame = (
            f'<div style="position:absolute;left:{x0};top:{y0};width:calc({x1} - {x0});'
            f"height:calc({y1} - {y0});box-shadow:0 0 0 2px #fff;border-radius:2px;outline:3px "
            f'solid {COLOURS["vermillion"]};outline-offset:2px"></div>'
        )
    spoken = " of a ".join(part for part in (question.attribute, question.size) if part)
    told = f"{spoken} thing" if question.size else spoken
    place = f"token {question.position}" + f", {told}" * bool(told)
    return (
        '<div style="display:flex;gap:24px;flex-wrap:wrap;margin-top:8px">'
        f'<div style="position:relative;flex:0 0 {PIXELS}px;align-self:flex-start">'
        f'<img data-picture="{name}" alt="the picture in question" '
        f'style="width:100%;display:block;margin:0;border-radius:6px">{frame}</div>'
        '<div style="flex:1 1 320px;min-width:0">'
        f'<p class="soft">{html.escape(place)}</p>{_options(question, span)}'
        f'<p class="headline" style="color:{_INK[question.answer]}">{_verdict(question)}</p>'
        "</div></div>"
        f"<details><summary>the whole caption</summary>{_whole(question)}</details>"
    )


def _options(question: Question, span: tuple[float, float]) -> str:
    """The sentence with either word, and a bar for its score."""
    low, high = span
    rows = []
    start, end_true, end_false = question.change
    first, last = _sentence(question.true, start, end_true)
    for which, text, end, score, colour in (
        ("true", question.true, end_true, question.true_score, COLOURS["green"]),
        ("false", question.false, end_false, question.false_score, COLOURS["vermillion"]),
    ):
        stop = last + end - end_true
        width = 100 * (score - low) / (high - low)
        rows.append(
            f'<div style="margin:6px 0 12px"><div>{html.escape(text[first:start])}'
            f'<b style="border-bottom:3px solid {colour}">{html.escape(text[start:end])}</b>'
            f"{html.escape(text[end:stop])}</div>"
            f'<div style="display:flex;gap:10px;align-items:center"><span style="width:3em">'
            f'{which}</span><div style="flex:1;background:var(--lc-line);height:12px;'
            f'border-radius:3px"><div style="width:{width:.1f}%;height:12px;border-radius:3px;'
            f'background:{colour}"></div></div><span>{score:.3f}</span></div></div>'
        )
    return "".join(rows)


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


def _whole(question: Question) -> str:
    start, end, other = question.change
    return (
        f'<div class="text">{html.escape(question.true[:start])}'
        f"<b>{html.escape(question.true[start:end])}</b> "
        f"<s>{html.escape(question.false[start:other])}</s>"
        f"{html.escape(question.true[end:])}</div>"
    )
