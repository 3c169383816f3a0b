"""Pictures of one thing, told in one sentence: the smallest world in which a caption can lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from longclip_lab.errors import SHARE, LabError, suggest
from longclip_lab.world.captioners import Teller
from longclip_lab.world.counterfactuals import Counterfactuals, change_fact
from longclip_lab.world.habits import habitual_lie
from longclip_lab.world.language import Caption, Phrase, build_caption, build_sentence
from longclip_lab.world.scene import Scene
from longclip_lab.world.sets import SingleObjects, WorldPairs
from longclip_lab.world.vocabulary import ATTRIBUTES

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
