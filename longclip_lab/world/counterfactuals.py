"""Pairs of captions that differ in one fact: which of the two fits the picture?

The answer needs no pool of other pictures and speaks of one word at one token position. This is
the exact form of "did the model read token 90?".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from longclip_lab.errors import COUNT, SEED, LabError, suggest
from longclip_lab.world.captioners import long_caption
from longclip_lab.world.language import Caption, Fact, build_caption
from longclip_lab.world.scene import Scene
from longclip_lab.world.sets import PROBE_SEED, distinct_scenes, draw_all
from longclip_lab.world.vocabulary import ATTRIBUTES


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

    >>> from longclip_lab.world.captioners import summary
    >>> from longclip_lab.world.language import build_caption
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
