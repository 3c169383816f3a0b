"""Captions of a scene with their ground truth: sentences, captioners, systematic errors.

A sentence is built from phrases; a phrase is either plain words or a fact (attribute, value).
Because the world's tokenizer makes one token of a word, a fact's place in the token sequence is
known exactly (position 0 is the start token).

A language model that makes things up says what usually goes with the rest, so two captions by it
repeat each other's lies. This is the opposite of a lie that is drawn anew every time.

The writers differ in style and length as LoTLIP's three MLLMs do (its Section 4.1): `surveyor`
packs a thing into one sentence, `painter` takes two, `reporter` is terse. Each can be told to
hallucinate: every fact of a detail sentence is then replaced by a wrong value at a given rate.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from longclip_lab.errors import SHARE, LabError, suggest
from longclip_lab.world.scene import (
    ATTRIBUTES,
    COLOURS,
    GROUNDS,
    KINDS,
    NUMBERS,
    ORIENTATIONS,
    PATTERNS,
    PLACES,
    RELATIONS,
    SIZES,
    SKIES,
    Scene,
    classes,
    relation,
)

# --- Sentences with their ground truth: which words say what about which thing ---

_WORD = re.compile(r"\w+|[^\w\s]")
_FUNCTION_WORDS = (
    "a and are at below centre comes from in is it lies light middle of on over picture scene "
    "see shows sky that the there things this to under we with"
)


class Phrase(NamedTuple):
    """A piece of a sentence. `attribute` is empty for words that state nothing."""

    words: str
    attribute: str = ""
    thing: int = -1
    true: bool = True


class Fact(NamedTuple):
    """What some words say.

    `thing` is the index of the thing in the scene (-1: the whole scene); `tokens` the half-open
    range of token positions in the caption, the start token being position 0; `span` the
    characters; `true` is False where the captioner made it up.
    """

    attribute: str
    value: str
    thing: int
    tokens: tuple[int, int]
    span: tuple[int, int]
    true: bool = True


@dataclass(frozen=True)
class Sentence:
    """One sentence of a caption, with the facts it states and the thing it speaks of (-1: none)."""

    text: str
    span: tuple[int, int]
    tokens: tuple[int, int]
    thing: int
    facts: tuple[Fact, ...]


@dataclass(frozen=True)
class Caption:
    """A caption and its sentences. `str(caption)` is the text."""

    text: str
    sentences: tuple[Sentence, ...]

    def __str__(self) -> str:
        return self.text

    @property
    def num_tokens(self) -> int:
        """Tokens with the start and end token."""
        return (self.sentences[-1].tokens[1] if self.sentences else 1) + 1

    @property
    def facts(self) -> tuple[Fact, ...]:
        return tuple(fact for sentence in self.sentences for fact in sentence.facts)


def words_of(text: str) -> list[str]:
    """The words and punctuation marks of a text: the world's tokens.

    >>> words_of("A red boat, on the left.")
    ['A', 'red', 'boat', ',', 'on', 'the', 'left', '.']
    """
    return _WORD.findall(text)


def _join(phrases: Sequence[Phrase]) -> tuple[str, list[tuple[int, int]]]:
    text, spans = "", []
    for phrase in phrases:
        if text and phrase.words not in {",", "."}:
            text += " "
        words = phrase.words if text else phrase.words[:1].upper() + phrase.words[1:]
        spans.append((len(text), len(text) + len(words)))
        text += words
    return text, spans


def build_sentence(phrases: Sequence[Phrase]) -> Sentence:
    """Join phrases to a sentence that stands alone (positions counted from its own start)."""
    text, spans = _join(phrases)
    facts, position = [], 1
    for phrase, span in zip(phrases, spans, strict=True):
        length = len(words_of(phrase.words))
        if phrase.attribute:
            tokens = (position, position + length)
            value = phrase.words.lower()
            facts.append(Fact(phrase.attribute, value, phrase.thing, tokens, span, phrase.true))
        position += length
    things = [fact.thing for fact in facts if fact.thing >= 0]
    return Sentence(text, (0, len(text)), (1, position), things[0] if things else -1, tuple(facts))


def build_caption(sentences: Sequence[Sentence]) -> Caption:
    """Put sentences one after another, and shift their spans and token positions."""
    text, placed, position = "", [], 1
    for sentence in sentences:
        start = len(text) + (1 if text else 0)
        by_chars, by_tokens = start - sentence.span[0], position - sentence.tokens[0]
        facts = tuple(
            fact._replace(
                tokens=(fact.tokens[0] + by_tokens, fact.tokens[1] + by_tokens),
                span=(fact.span[0] + by_chars, fact.span[1] + by_chars),
            )
            for fact in sentence.facts
        )
        text = f"{text} {sentence.text}" if text else sentence.text
        position += sentence.tokens[1] - sentence.tokens[0]
        tokens = (position - (sentence.tokens[1] - sentence.tokens[0]), position)
        placed.append(Sentence(sentence.text, (start, len(text)), tokens, sentence.thing, facts))
    return Caption(text, tuple(placed))


def world_words() -> tuple[str, ...]:
    """Every word of captions and templates: the lines of `text/vocabularies/world.txt`."""
    values = [*KINDS, *COLOURS, *SIZES, *PATTERNS, *ORIENTATIONS, *GROUNDS, *SKIES, *NUMBERS]
    phrases = [*values, *PLACES, *RELATIONS, _FUNCTION_WORDS]
    words = [word for phrase in phrases for word in phrase.split()]
    return (".", ",", *dict.fromkeys(words))


# --- Writers with habits: of what they get wrong they always say the same wrong thing ---

WRITERS = 3
_SEED = 23


def habitual_lie(attribute: str, value: str, writer: int = 0) -> str:
    """What a writer says wherever this value is told wrong.

    No two writers share a lie about a value, and no two values a lie by one writer: lies leave all
    values as frequent as they are. Attributes of three values have two writers, others three.
    Raises LabError for unknown attributes, values and writers.

    >>> [habitual_lie("pattern", value) for value in ("plain", "striped", "dotted")]
    ['dotted', 'plain', 'striped']
    """
    values = classes(attribute)
    rows = _habits(attribute)
    if value not in values:
        raise LabError(f"expected a {attribute} of the world, got {value!r}.")
    if not 0 <= writer < len(rows):
        raise LabError(
            f"expected a writer with a habit about {attribute}, 0 to {len(rows) - 1}, got {writer}."
        )
    return values[rows[writer][values.index(value)]]


@lru_cache
def _habits(attribute: str) -> tuple[tuple[int, ...], ...]:
    """A row for each writer: the index of the lie about every value."""
    count = len(ATTRIBUTES[attribute])
    rng = np.random.default_rng(_SEED)
    taken = [np.arange(count)]
    while len(taken) <= min(WRITERS, count - 1):
        row = rng.permutation(count)
        if all((row != other).all() for other in taken):
            taken.append(row)
    return tuple(tuple(int(i) for i in row) for row in taken[1:])


# --- What is said of a scene: summaries, web-like short captions, and three writers of long ---

SALIENCE = {"large": 1.0, "medium": 0.35, "small": 0.12}  # how readily a short caption names it


class Teller:
    """Makes phrases about a scene; with a rate above 0, some of them wrong.

    Wrong values are drawn evenly, or are those of a writer with a habit (`habits.habitual_lie`).
    """

    def __init__(
        self,
        scene: Scene,
        rng: np.random.Generator,
        hallucination: float = 0.0,
        habit: int | None = None,
    ):
        self.scene, self.rng, self.hallucination = scene, rng, hallucination
        self.habit = habit

    def _fact(self, attribute: str, value: str, thing: int) -> Phrase:
        if self.hallucination and self.rng.random() < self.hallucination:
            if self.habit is not None:
                lie = habitual_lie(attribute, value, self.habit)
                return Phrase(lie, attribute, thing, true=False)
            wrong = [other for other in ATTRIBUTES[attribute] if other != value]
            return Phrase(str(self.rng.choice(wrong)), attribute, thing, true=False)
        return Phrase(value, attribute, thing)

    def __call__(self, attribute: str, thing: int) -> Phrase:
        return self._fact(attribute, getattr(self.scene.things[thing], attribute), thing)

    def relation(self, thing: int) -> list[Phrase]:
        """`[", ", "left of", "the house"]` to the most salient thing it has a relation with."""
        found, other = _related(self.scene, thing)
        if not found:
            return []
        kind = self.scene.things[other].kind
        return [self._fact("relation", found, thing), Phrase(f"the {kind}")]


def _related(scene: Scene, thing: int) -> tuple[str, int]:
    """The relation of a thing to the most salient other that it has one with; "" and -1 if none."""
    for other in range(len(scene.things)):
        found = other != thing and relation(scene.things[thing], scene.things[other])
        if found:
            return found, other
    return "", -1


def truth(fact: Fact, scene: Scene) -> str:
    """What a fact of one of this scene's captions should say; its own value if that is so.

    Raises LabError for a fact about a thing that the scene does not have.

    >>> from longclip_lab.world.datasets import pairs
    >>> lying = pairs(1, hallucination=1.0)
    >>> fact = next(fact for fact in lying.long_captions[0].facts if fact.attribute == "colour")
    >>> truth(fact, lying.scenes[0]) in lying.long[0]
    True
    """
    if fact.thing >= len(scene.things):
        raise LabError(f"expected one of {len(scene.things)} things, got number {fact.thing}.")
    if fact.attribute == "relation":
        return _related(scene, fact.thing)[0]
    if fact.attribute == "count":
        return NUMBERS[len(scene.things) - 1]
    return getattr(scene if fact.thing < 0 else scene.things[fact.thing], fact.attribute)


def _sentence(*phrases: Phrase | str | list[Phrase]) -> Sentence:
    flat: list[Phrase] = []
    for phrase in phrases:
        if isinstance(phrase, list):
            flat += phrase
        else:
            flat.append(Phrase(phrase) if isinstance(phrase, str) else phrase)
    return build_sentence([*flat, Phrase(".")])


def summary(scene: Scene) -> Sentence:
    """The sentence that a short caption would be: the two most salient things and the place.

    It never names a pattern, an orientation, a position or a relation.
    """
    tell = Teller(scene, np.random.default_rng(0))
    named: list[Phrase | str] = []
    for number, thing in enumerate(scene.main[: len(scene.things)]):
        named += ["and a" if number else "a", tell("colour", thing), tell("kind", thing)]
    where = [Phrase(_WHERE[scene.ground]), Phrase(scene.ground, "ground")]
    return _sentence(*named, where, "under a", Phrase(scene.sky, "sky"), "sky")


_WHERE = {
    "meadow": "in a", "beach": "on a", "desert": "in a",
    "street": "on a", "lake": "over a", "snowfield": "on a",
}  # fmt: skip


def _surveyor(tell: Teller, i: int) -> list[Sentence]:
    related = tell.relation(i)
    return [
        _sentence(
            "a", tell("size", i), tell("pattern", i), tell("colour", i), tell("kind", i), "is",
            tell("orientation", i), tell("place", i), [Phrase(","), *related] if related else [],
        )
    ]  # fmt: skip


def _painter(tell: Teller, i: int) -> list[Sentence]:
    related = tell.relation(i)
    first = _sentence(
        tell("place", i), "we see a", tell("size", i), tell("colour", i), tell("kind", i)
    )
    second = _sentence(
        "it is", tell("pattern", i), "and", tell("orientation", i),
        [Phrase(","), *related] if related else [],
    )  # fmt: skip
    return [first, second]


def _reporter(tell: Teller, i: int) -> list[Sentence]:
    return [
        _sentence(
            tell("size", i), tell("colour", i), tell("kind", i), ",", tell("pattern", i), ",",
            tell("orientation", i), ",", tell("place", i),
        )
    ]  # fmt: skip


CAPTIONERS: dict[str, Callable[[Teller, int], list[Sentence]]] = {
    "surveyor": _surveyor,
    "painter": _painter,
    "reporter": _reporter,
}


def background_sentences(scene: Scene) -> list[Sentence]:
    """What is said of the ground, the light and the number of things."""
    return [
        _sentence("the", Phrase(scene.ground, "ground"), "lies under a", Phrase(scene.sky, "sky"),
                  "sky"),
        _sentence("the light comes from the", Phrase(scene.light, "light")),
        _sentence("there are", Phrase(NUMBERS[len(scene.things) - 1], "count"),
                  "things in the picture"),
    ]  # fmt: skip


def long_caption(
    scene: Scene,
    rng: np.random.Generator,
    captioner: str = "surveyor",
    hallucination: float = 0.0,
) -> Caption:
    """The summary, then every thing and the background in shuffled order.

    `hallucination` is the rate (0 to 1) at which facts of detail sentences are wrong.
    Errors: LabError for an unknown captioner or a rate outside 0..1.
    """
    if captioner not in CAPTIONERS:
        raise LabError(
            f"expected a captioner of the world, got {captioner!r}. "
            + suggest(captioner, CAPTIONERS)
        )
    if hallucination not in SHARE:
        raise LabError(f"expected a hallucination rate from 0 to 1, got {hallucination}.")
    tell = Teller(scene, rng, hallucination)
    blocks = [CAPTIONERS[captioner](tell, i) for i in range(len(scene.things))]
    blocks += [[sentence] for sentence in background_sentences(scene)]
    shuffled = [blocks[i] for i in rng.permutation(len(blocks))]
    return build_caption([summary(scene), *(s for block in shuffled for s in block)])


def web_caption(scene: Scene, rng: np.random.Generator, tail: float = 0.0) -> Caption:
    """A caption as the web has them: short, varied, about what is salient.

    It may give the summary, only kinds, one thing, or the place; at the rate `tail` it goes on
    with one to four detail sentences. Captions must vary in what they mention, or colour and
    background alone satisfy the contrastive loss.
    """
    tell = Teller(scene, rng)
    weights = np.array([SALIENCE[thing.size] for thing in scene.things])
    count = min(len(scene.things), int(rng.choice([1, 2, 3], p=[0.35, 0.4, 0.25])))
    named = sorted(rng.choice(len(weights), count, replace=False, p=weights / weights.sum()))
    style = rng.choice(["summary", "kinds", "things", "places"], p=[0.3, 0.3, 0.28, 0.12])
    phrases: list[Phrase | str] = [
        str(rng.choice(["a", "a picture of a", "there is a", "we see a"]))
    ]
    for number, i in enumerate(int(i) for i in named):
        phrases += ["and a"] if number else []
        phrases += [tell("size", i)] if style == "places" else []
        phrases += [tell("colour", i)] if style != "kinds" and rng.random() < 0.85 else []
        phrases += [tell("kind", i)]
        phrases += [tell("place", i)] if style == "places" else []
    if rng.random() < 0.3:
        phrases += [_WHERE[scene.ground], Phrase(scene.ground, "ground")]
    sentences = [summary(scene) if style == "summary" else _sentence(*phrases)]
    if rng.random() < tail:
        details = rng.permutation(len(scene.things))[: int(rng.integers(1, 5))]
        sentences += [s for i in details for s in _surveyor(tell, int(i))]
    return build_caption(sentences)
