"""Probes: captions or scenes that differ in one fact.

The answer needs no pool of other pictures and speaks of one word at one token position. This is
the exact form of "did the model read token 90?".

LoTLIP's Figure 1 says that a salient thing's word ("castle") overshadows another's ("garden"). In
photographs a castle is always the large one, so that word and size cannot be told apart. Here each
of two things is the large one in one picture and the lesser one in the other, and a text that names
both fits both pictures: what words do on their own is the same for both sizes and cancels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from longclip_lab.errors import COUNT, SEED, SHARE, LabError, suggest
from longclip_lab.world.captions import (
    Caption,
    Fact,
    Phrase,
    Teller,
    background_sentences,
    build_caption,
    build_sentence,
    habitual_lie,
    long_caption,
    words_of,
)
from longclip_lab.world.datasets import (
    PROBE_SEED,
    SingleObjects,
    WorldPairs,
    distinct_scenes,
    draw_all,
)
from longclip_lab.world.scene import ATTRIBUTES, COLOURS, KINDS, PIXELS, SIZES, Scene, Thing

# --- Pairs of captions that differ in one fact: which of the two fits the picture? ---


@dataclass(frozen=True)
class Counterfactuals:
    """N pictures, each with a true caption and one that is wrong in a single fact.

    `images` uint8 [N, H, W, 3]; `true` and `false` are texts; the rest describes the changed fact:
    `attribute`, `size` of the thing spoken of, `position` (token index of the changed words),
    `old` and `new` value, and the thing's `box` in pixels.
    """

    images: np.ndarray
    true: list[str]
    false: list[str]
    attribute: list[str]
    size: list[str]
    position: np.ndarray
    old: list[str]
    new: list[str]
    box: list[tuple[float, float, float, float]]
    scenes: list[Scene]
    source: dict

    def __len__(self) -> int:
        return len(self.true)

    def table(self):
        """A DataFrame with one row a pair (without the pictures)."""
        import pandas as pd

        names = ("attribute", "size", "position", "old", "new", "true", "false")
        return pd.DataFrame({name: getattr(self, name) for name in names})


def _replacement(fact: Fact, scene: Scene, rng: np.random.Generator) -> str:
    """A wrong value that names nothing else in the scene, so that the text is surely wrong."""
    values = [v for v in ATTRIBUTES[fact.attribute] if v != fact.value]
    if fact.attribute == "kind":
        present = {thing.kind for thing in scene.things}
        values = [v for v in values if v not in present]
    elif fact.attribute == "place":
        taken = {thing.place for thing in scene.things}
        values = [v for v in values if v not in taken] or values
    elif fact.attribute == "relation":
        opposite = {"left of": "right of", "right of": "left of", "above": "below"}
        return opposite.get(fact.value, "above")
    return str(rng.choice(values))


def change_fact(caption: Caption, fact: Fact, value: str) -> str:
    """The caption's text with the words of one fact replaced.

    >>> from longclip_lab.world.captions import summary
    >>> from longclip_lab.world.captions import build_caption
    >>> scene = distinct_scenes(1, seed=0)[0]
    >>> caption = build_caption([summary(scene)])
    >>> fact = caption.facts[0]
    >>> change_fact(caption, fact, "golden").split()[1]
    'golden'
    """
    start, end = fact.span
    if caption.text[start].isupper():
        value = value[:1].upper() + value[1:]
    return caption.text[:start] + value + caption.text[end:]


def counterfactuals(
    n: int,
    seed: int = PROBE_SEED,
    attributes: Sequence[str] = ("kind", "colour", "pattern", "orientation", "place", "relation"),
    captioner: str = "surveyor",
    with_summary: bool = False,
) -> Counterfactuals:
    """`n` pairs; attribute, thing and position are drawn evenly over the detail sentences.

    Captions hold the detail sentences only, unless `with_summary` is set: a summary names kind and
    colour of the main things a second time, and a change further on then contradicts it.
    Errors: LabError for an unknown attribute.
    """
    COUNT.check("n", n)
    SEED.check("seed", seed)
    for attribute in attributes:
        if attribute not in ATTRIBUTES:
            raise LabError(
                f"expected attributes of the world, got {attribute!r}. "
                + suggest(attribute, ATTRIBUTES)
            )
    scenes = distinct_scenes(n, seed)
    told, asked, wrong = [], [], []
    for i, scene in enumerate(scenes):
        rng = np.random.default_rng((seed, i, 13))
        whole = long_caption(scene, rng, captioner)
        caption = whole if with_summary else build_caption(whole.sentences[1:])
        sentences = caption.sentences[1:] if with_summary else caption.sentences
        attribute = attributes[i % len(attributes)]
        facts = [f for s in sentences for f in s.facts if f.attribute == attribute and f.thing >= 0]
        if not facts:  # no thing of this scene has a relation
            facts = [f for s in sentences for f in s.facts if f.thing >= 0]
        fact = facts[int(rng.integers(len(facts)))]
        told.append(caption)
        asked.append(fact)
        wrong.append(_replacement(fact, scene, rng))
    things = [scene.things[fact.thing] for scene, fact in zip(scenes, asked, strict=True)]
    return Counterfactuals(
        images=draw_all(scenes),
        true=[caption.text for caption in told],
        false=[change_fact(c, f, w) for c, f, w in zip(told, asked, wrong, strict=True)],
        attribute=[fact.attribute for fact in asked],
        size=[thing.size for thing in things],
        position=np.array([fact.tokens[0] for fact in asked]),
        old=[fact.value for fact in asked],
        new=wrong,
        box=[thing.box() for thing in things],
        scenes=scenes,
        source={"dataset": "world-counterfactuals", "n": n, "seed": seed, "captioner": captioner,
                "attributes": list(attributes), "with_summary": with_summary},
    )  # fmt: skip


# --- Swaps: each scene drawn twice, with a large and a lesser thing that change places ---

FORMS = ("one sentence", "two sentences", "long", "sizes told")
"""How a text names both things; "sizes told" is the only one that says which is the large one."""
CHANGES = ("kind", "colour")


class Told(NamedTuple):
    """A text, and the characters of the two phrases in it, in the order they are named."""

    text: str
    spans: tuple[tuple[int, int], tuple[int, int]]


@dataclass(frozen=True)
class Swaps:
    """N scenes in two pictures W = 0, 1. Thing 0 is the large one in picture 0, thing 1 in 1.

    `images` uint8 [N, 2, H, W, 3]. The two boxes stand in the same places in both pictures, do not
    touch, and hold in turn the one and the other thing: `places[n]` are the indices of the large
    and of the lesser one in the scenes. `absent[n]` has for each thing a kind and a colour that
    make its words wrong: no thing of the scene is of this kind, neither of the two of this colour.
    """

    images: np.ndarray
    scenes: list[tuple[Scene, Scene]]
    places: list[tuple[int, int]]
    absent: list[tuple[dict[str, str], dict[str, str]]]
    lesser: str
    source: dict

    def __len__(self) -> int:
        return len(self.scenes)

    def thing(self, n: int, which: int) -> Thing:
        """Thing 0 or 1 of scene n, as it is where it is the large one."""
        return self.scenes[n][which].things[self.places[n][0]]

    def boxes(self, n: int, pixels: int = PIXELS) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The large and the lesser box (x0, y0, x1, y1) in a picture with sides of `pixels`."""
        large, lesser = self.places[n]
        things = self.scenes[n][0].things
        return things[large].box(pixels), things[lesser].box(pixels)

    def phrase(self, n: int, which: int, change: str | None = None) -> str:
        """The words for a thing, such as "red boat"; with a `change`, its kind or colour is wrong.

        Raises LabError for another change.
        """
        if change is not None and change not in CHANGES:
            raise LabError(
                f"expected to change a kind or a colour, got {change!r}. {suggest(change, CHANGES)}"
            )
        thing = self.thing(n, which)
        words = {"kind": thing.kind, "colour": thing.colour}
        if change:
            words[change] = self.absent[n][which][change]
        return f"{words['colour']} {words['kind']}"

    def alone(self, n: int, which: int, change: str | None = None) -> str:
        """A text that names one thing only."""
        return f"A {self.phrase(n, which, change)}."

    def nothing(self, n: int, which: int) -> str:
        """A text that names a thing which is not in the picture."""
        wrong = self.absent[n][which]
        return f"A {wrong['colour']} {wrong['kind']}."

    def told(
        self,
        n: int,
        picture: int,
        first: int,
        form: str = "one sentence",
        changed: int | None = None,
        change: str = "kind",
    ) -> Told:
        """A text that names thing `first`, then the other one; the words for `changed` are wrong.

        Raises LabError for an unknown form or change.
        """
        if form not in FORMS:
            raise LabError(
                f"expected a form of text that names two things, got {form!r}. "
                + suggest(form, FORMS)
            )
        order = (first, 1 - first)
        one, two = (self.phrase(n, i, change if i == changed else None) for i in order)
        sizes = ["large" if i == picture else self.lesser for i in order]
        between = " ".join(s.text for s in background_sentences(self.scenes[n][picture]))
        before, middle = {
            "one sentence": ("A ", " and a "),
            "two sentences": ("There is a ", ". There is a "),
            "long": ("There is a ", f". {between} There is a "),
            "sizes told": (f"A {sizes[0]} ", f" and a {sizes[1]} "),
        }[form]
        start, again = len(before), len(before + one + middle)
        spans = ((start, start + len(one)), (again, again + len(two)))
        return Told(f"{before}{one}{middle}{two}.", spans)

    def questions(self, form: str = "one sentence", change: str = "kind") -> Counterfactuals:
        """Every text with every thing's word changed, as counterfactual questions: 8 a scene.

        Raises LabError for an unknown form or change.
        """
        rows = []
        for n, picture, first, which in product(range(len(self)), (0, 1), (0, 1), (0, 1)):
            true = self.told(n, picture, first, form)
            size = "large" if which == picture else self.lesser
            start = true.spans[which ^ first][0]
            position = 1 + len(words_of(true.text[:start])) + CHANGES[::-1].index(change)
            rows.append(
                (
                    true.text, self.told(n, picture, first, form, which, change).text, change, size,
                    position, getattr(self.thing(n, which), change), self.absent[n][which][change],
                    self.boxes(n)[size != "large"], self.scenes[n][picture],
                )
            )  # fmt: skip
        true, false, about, size, position, old, new, box, scenes = map(
            list, zip(*rows, strict=True)
        )
        return Counterfactuals(
            np.repeat(self.images.reshape(-1, *self.images.shape[2:]), 4, axis=0), true, false,
            about, size, np.array(position), old, new, box, scenes,
            {**self.source, "form": form, "change": change},
        )  # fmt: skip


def swaps(n: int, seed: int = PROBE_SEED, lesser: str = "small") -> Swaps:
    """`n` scenes in two pictures each; the lesser thing is "small" or "medium".

    Scenes without a thing of that size that stands clear of a large one and has another colour are
    left out. Raises LabError for n < 1 or another size.

    >>> two = swaps(2)
    >>> two.images.shape, two.told(0, 0, first=0).text == two.told(0, 1, first=0).text
    ((2, 2, 72, 72, 3), True)
    """
    COUNT.check("n", n)
    SEED.check("seed", seed)
    if lesser not in SIZES[1:]:
        raise LabError(
            f"expected the lesser thing to be medium or small, got {lesser!r}. "
            + suggest(lesser, SIZES[1:])
        )
    drawn = n
    while len(fit := list(_fitting(distinct_scenes(drawn, seed), lesser, seed))) < n:
        drawn += n // 2 + 8
    scenes, places, absent = (list(column) for column in zip(*fit[:n], strict=True))
    return Swaps(
        images=np.stack([draw_all(both) for both in scenes]),
        scenes=scenes,
        places=places,
        absent=absent,
        lesser=lesser,
        source={"dataset": "world-swaps", "n": n, "seed": seed, "lesser": lesser},
    )


def _fitting(scenes: list[Scene], lesser: str, seed: int) -> Iterator[tuple]:
    """Of each scene that has them: both pictures, the two things' indices, and wrong words."""
    for number, scene in enumerate(scenes):
        rng = np.random.default_rng((seed, number, 17))
        apart = [
            (i, j)
            for i, one in enumerate(scene.things)
            for j, other in enumerate(scene.things)
            if one.size == "large" and other.size == lesser and one.colour != other.colour
            if not _touch(one.box(), other.box())
        ]
        if apart:
            two = apart[int(rng.integers(len(apart)))]
            yield (scene, _swapped(scene, *two)), two, _wrong(scene, two, rng)


def _touch(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] <= b[2] and b[0] <= a[2] and a[1] <= b[3] and b[1] <= a[3]


def _swapped(scene: Scene, one: int, other: int) -> Scene:
    """The scene with all that makes up two things exchanged, but for their sizes and places."""
    a, b = scene.things[one], scene.things[other]
    own = ("kind", "colour", "pattern", "orientation")
    scene = scene.change(one, **{name: getattr(b, name) for name in own})
    return scene.change(other, **{name: getattr(a, name) for name in own})


def _wrong(
    scene: Scene, two: tuple[int, int], rng: np.random.Generator
) -> tuple[dict[str, str], dict[str, str]]:
    """For each of two things a kind that nothing here is of, and a colour that neither has."""
    present = {thing.kind for thing in scene.things}
    seen = {scene.things[i].colour for i in two}
    return tuple(
        {
            "kind": str(rng.choice([kind for kind in KINDS if kind not in present])),
            "colour": str(rng.choice([colour for colour in COLOURS if colour not in seen])),
        }
        for _ in two
    )


# --- Pictures of one thing, told in one sentence: the smallest world in which a caption can ---

TOLD = ("pattern", "colour", "kind")
"""What the sentence says of the thing, in this order."""


def told_things(
    things: SingleObjects,
    hallucination: float = 0.0,
    about: Sequence[str] = TOLD,
    seed: int = 0,
    habits: Sequence[int] = (),
) -> WorldPairs:
    """Pictures of one thing; short and long caption are the same one sentence about it.

    `hallucination` is the rate (0 to 1) at which each of the attributes `about` is replaced by a
    wrong one, drawn evenly. With `habits` these writers (`world.habitual_lie`) tell of the
    pictures in turn, and each always tells the same lie about the same value. Raises LabError for
    another rate, for attributes other than `TOLD` and for a writer without a habit about them.

    >>> from longclip_lab.world import single_objects
    >>> told_things(single_objects(1)).long
    ['A plain purple balloon.']
    """
    SHARE.check("hallucination", hallucination)
    _check(about)
    lies = dict.fromkeys(about, hallucination)
    told = [
        _told(scene, (seed, i, 17), lies, habits[i % len(habits)] if habits else None)
        for i, scene in enumerate(things.scenes)
    ]
    texts = [caption.text for caption in told]
    facts = {"dataset": "world-one-thing", "hallucination": hallucination, "about": list(about)}
    facts |= {"told seed": seed, "habits": list(habits)}
    source = {**things.source, **facts}
    return WorldPairs(things.images, texts, texts, things.scenes, told, source, "world-one-thing")


def asked_things(
    things: SingleObjects,
    attributes: Sequence[str] = TOLD,
    seed: int = 0,
    habit: int | None = None,
) -> Counterfactuals:
    """Each picture of one thing with its true sentence, and with one that is wrong in one word.

    The attributes are asked for in turn. The wrong word is drawn, or is the lie of the writer
    `habit`. Raises LabError for attributes other than `TOLD` and for a writer without a habit.
    """
    _check(attributes)
    told = [_told(scene, (seed, i, 18), {}) for i, scene in enumerate(things.scenes)]
    asked, wrong = [], []
    for i, caption in enumerate(told):
        attribute = attributes[i % len(attributes)]
        fact = next(fact for fact in caption.facts if fact.attribute == attribute)
        others = [value for value in ATTRIBUTES[attribute] if value != fact.value]
        asked.append(fact)
        drawn = str(np.random.default_rng((seed, i, 19)).choice(others))
        wrong.append(drawn if habit is None else habitual_lie(attribute, fact.value, habit))
    only = [scene.things[0] for scene in things.scenes]
    return Counterfactuals(
        images=things.images,
        true=[caption.text for caption in told],
        false=[change_fact(c, f, w) for c, f, w in zip(told, asked, wrong, strict=True)],
        attribute=[fact.attribute for fact in asked],
        size=[thing.size for thing in only],
        position=np.array([fact.tokens[0] for fact in asked]),
        old=[fact.value for fact in asked],
        new=wrong,
        box=[thing.box() for thing in only],
        scenes=things.scenes,
        source={**things.source, "dataset": "world-one-thing-asked",
                "attributes": list(attributes), "habit": habit},
    )  # fmt: skip


def _told(
    scene: Scene, seed: tuple[int, ...], lies: Mapping[str, float], habit: int | None = None
) -> Caption:
    tell = Teller(scene, np.random.default_rng(seed), habit=habit)
    said = []
    for attribute in TOLD:
        tell.hallucination = lies.get(attribute, 0.0)
        said.append(tell(attribute, 0))
    return build_caption([build_sentence([Phrase("a"), *said, Phrase(".")])])


def _check(attributes: Sequence[str]) -> None:
    for name in attributes:
        if name not in TOLD:
            raise LabError(f"expected attributes of one thing, got {name!r}. {suggest(name, TOLD)}")
