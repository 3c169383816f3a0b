"""Pictures of the report: the opening scene, questions to guess, the ways of stretching."""

from __future__ import annotations

import html

import numpy as np

from longclip_lab import world
from longclip_lab.text import split_sentences
from longclip_lab.views.html import caption_html, picture_uri

HERO_PIXELS, QUESTION_PIXELS = 560, 300
CANDIDATES, QUESTIONS = 24, 120
_KEPT, _OLD, _NEW = 20, 77, 248
_CIVIDIS = ("#00224E", "#35456C", "#666970", "#948E77", "#C8B866", "#FEE838")


def hero(context_length: int) -> tuple[str, str, int]:
    """A picture of the world, its long caption with the unread part in grey, and its tokens.

    It is the test picture with the longest caption among the first few.
    """
    pairs = world.pairs(CANDIDATES)
    index = max(range(CANDIDATES), key=lambda i: pairs.long_captions[i].num_tokens)
    caption = pairs.long_captions[index]
    uri = picture_uri(world.draw(pairs.scenes[index], HERO_PIXELS))
    scene = (
        f'<img src="{uri}" width="{HERO_PIXELS}" height="{HERO_PIXELS}" '
        f'alt="A drawn scene: {html.escape(pairs.short[index])}">'
    )
    return scene, caption_html(caption, context_length), caption.num_tokens - 2


def question_cards(context_length: int) -> str:
    """Three questions of the probe, to be guessed before the answer is unfolded.

    One about a large thing, one about a small one, one behind the model's context.
    """
    asked = world.counterfactuals(QUESTIONS)
    readable = asked.position < context_length - 1
    size, attribute = np.array(asked.size), np.array(asked.attribute)
    wanted = (
        ("a large thing", readable & (size == "large") & (attribute == "colour")),
        ("a small thing", readable & (size == "small") & (attribute == "pattern")),
        (f"behind position {context_length}", ~readable & (attribute == "kind")),
    )
    chosen = [(words, int(mask.argmax())) for words, mask in wanted if mask.any()]
    return '<div class="questions">' + "".join(_card(asked, *one) for one in chosen) + "</div>"


def _card(asked: world.Counterfactuals, words: str, index: int) -> str:
    true, false, new = asked.true[index], asked.false[index], asked.new[index]
    old = asked.old[index]
    # The texts agree before the changed words; what follows them has the same length in both.
    start = next(i for i, (a, b) in enumerate(zip(true, false, strict=False)) if a != b)
    start = true.rfind(" ", 0, start) + 1
    sentence = next(s for s in split_sentences(true) if s.start <= start < s.end)
    options = [old, new] if index % 2 else [new, old]
    before = html.escape(true[sentence.start : start])
    after = html.escape(true[start + len(old) : sentence.end])
    choice = " or ".join(f'<span class="choice">{html.escape(option)}</span>' for option in options)
    uri = picture_uri(world.draw(asked.scenes[index], QUESTION_PIXELS))
    return (
        f'<figure><img src="{uri}" alt="The picture that the question is about" '
        f'width="{QUESTION_PIXELS}" height="{QUESTION_PIXELS}"><figcaption>'
        f'<span class="asks">{words}, {asked.attribute[index]}, token {asked.position[index]}'
        f"</span>{before}{choice}{after}<details><summary>Which fits?</summary>"
        f"{html.escape(old)}</details></figcaption></figure>"
    )


def stretching_strips() -> str:
    """Four ways from 77 to 248 positions, as SVG; a colour stands for an old position."""
    unit, left, height, gap = 3.0, 132, 24, 46
    gradient = "".join(
        f'<stop offset="{i / (len(_CIVIDIS) - 1)}" stop-color="{colour}"/>'
        for i, colour in enumerate(_CIVIDIS)
    )
    kept_part = (left, left + _KEPT * unit)
    rng = np.random.default_rng(0)
    fills: list[tuple[str, str, str]] = [
        ("not stretched", "stops at 77", _bar(left, left + _OLD * unit, "old")),
        ("linear", "all 77, evenly", _bar(left, left + _NEW * unit, "all")),
        (
            "KPS",
            "the first 20 as they are, the others × 4",
            _bar(*kept_part, "old") + _bar(kept_part[1], left + _NEW * unit, "rest"),
        ),
        (
            "keep + random",
            "77 as they are, the others drawn at random",
            _bar(left, left + _OLD * unit, "old")
            + "".join(
                f'<rect x="{left + i * unit}" width="{unit}" height="{height}" '
                f'fill="{_CIVIDIS[rng.integers(len(_CIVIDIS))]}"/>'
                for i in range(_OLD, _NEW)
            ),
        ),
    ]
    rows = "".join(
        f'<g transform="translate(0 {4 + gap * row})"><text x="{left - 12}" y="17" '
        f'text-anchor="end">{name}</text>{bars}'
        f'<text class="note" x="{left}" y="{height + 14}">{note}</text></g>'
        for row, (name, note, bars) in enumerate(fills)
    )
    spans = {  # gradients in the picture's own units: where position 0 and position 76 lie
        "old": (left, left + _OLD * unit),
        "all": (left, left + _NEW * unit),
        "rest": (kept_part[1] - _KEPT * 4 * unit, left + _NEW * unit),
    }
    gradients = "".join(
        f'<linearGradient id="{name}" gradientUnits="userSpaceOnUse" x1="{a}" x2="{b}">{gradient}'
        "</linearGradient>"
        for name, (a, b) in spans.items()
    )
    width = left + _NEW * unit + 4
    return (
        f'<svg class="strips" viewBox="0 0 {width} {gap * len(fills) + 4}" role="img" '
        'shape-rendering="crispEdges" aria-label="Four ways from 77 to 248 positions">'
        f"<defs>{gradients}</defs>{rows}</svg>"
    )


def _bar(start: float, end: float, gradient: str) -> str:
    return f'<rect x="{start}" width="{end - start}" height="24" fill="url(#{gradient})"/>'
