"""Data sets of the drawn world: a fixed function of size, seed and options."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from longclip_lab.errors import COUNT, SEED, SHARE, LabError, suggest
from longclip_lab.files import json_hash
from longclip_lab.world.captions import CAPTIONERS, Caption, long_caption, summary, web_caption
from longclip_lab.world.drawing import draw
from longclip_lab.world.scene import (
    COLOURS,
    KINDS,
    SIZES,
    Scene,
    random_scene,
    sibling,
    single_thing_scene,
)

# --- Sets of pictures with captions: a fixed function of their size, seed and options ---

TRAIN_SEED, PRETRAIN_SEED, SELECTION_SEED, PROBE_SEED, TEST_SEED = 1, 2, 3, 4, 5
"""Which pictures are for what. Recipes and pools were chosen by looking at scores on the pictures
of SELECTION_SEED; published scores are on those of TEST_SEED, which nothing was chosen by."""


@dataclass(frozen=True)
class WorldPairs:
    """Pictures, short and long captions, and the scenes behind them.

    `images` is uint8 [N, H, W, 3]; `captions` lists every short caption of a picture (here one);
    `long_captions` keep the ground truth of `long`.
    """

    images: np.ndarray
    short: list[str]
    long: list[str]
    scenes: list[Scene]
    long_captions: list[Caption]
    source: dict
    name: str = "world"
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.short)

    @property
    def captions(self) -> list[list[str]]:
        return [[text] for text in self.short]

    def subset(self, indices: Sequence[int]) -> WorldPairs:
        """The pairs at these indices, in this order."""
        indices = [int(i) for i in indices]
        return WorldPairs(
            images=self.images[indices],
            short=[self.short[i] for i in indices],
            long=[self.long[i] for i in indices],
            scenes=[self.scenes[i] for i in indices],
            long_captions=[self.long_captions[i] for i in indices],
            source={**self.source, "subset": json_hash(indices)},
            name=self.name,
        )


@dataclass(frozen=True)
class SingleObjects:
    """Pictures of one thing, for zero-shot classification.

    `images` is uint8 [N, H, W, 3]; `labels` maps "kind", "colour" and "size" to class indices [N].
    """

    images: np.ndarray
    labels: dict[str, np.ndarray]
    scenes: list[Scene]
    source: dict
    name: str = "world-single"

    def __len__(self) -> int:
        return len(self.scenes)


def check_size(n: int, seed: int, siblings: int = 1) -> None:
    """Raise LabError unless there can be a set of so many pictures."""
    COUNT.check("n, the number of pictures,", n)
    SEED.check("seed", seed)
    COUNT.check("siblings", siblings)


def draw_all(scenes: Sequence[Scene]) -> np.ndarray:
    """Pictures of scenes, uint8 [N, 72, 72, 3]."""
    return np.stack([np.asarray(draw(scene)) for scene in scenes])


def distinct_scenes(n: int, seed: int, siblings: int = 1) -> list[Scene]:
    """`n` scenes; each `siblings` that follow each other share a summary, no others do.

    Scene i depends only on the seed and on the scenes before it: a larger set begins with the
    smaller one.
    """
    scenes, seen = [], set()
    for i in range(n):
        if i % siblings:
            scenes.append(sibling(scenes[i - i % siblings], np.random.default_rng((seed, i, 0))))
            continue
        for attempt in range(1000):
            scene = random_scene(np.random.default_rng((seed, i, attempt)))
            text = summary(scene).text
            if text not in seen:
                break
        else:
            raise LabError(f"the world has no {n} different summaries; ask for fewer pictures.")
        seen.add(text)
        scenes.append(scene)
    return scenes


def pairs(
    n: int,
    seed: int = TEST_SEED,
    captioner: str = "surveyor",
    hallucination: float = 0.0,
    siblings: int = 1,
) -> WorldPairs:
    """`n` pictures with a short caption (the summary) and a long one (100 to 200 tokens).

    Args:
        n: number of pictures. The world has some 100,000 different summaries.
        seed: which pictures; TRAIN_SEED, PRETRAIN_SEED, SELECTION_SEED, TEST_SEED and PROBE_SEED
            keep apart what should be kept apart.
        captioner: "surveyor", "painter" or "reporter" (whose captions are shorter).
        hallucination: share of wrong facts in the detail sentences of `long`, 0 to 1.
        siblings: how many pictures that follow each other share their summary. With 1 every short
            caption is unique; with more, only the details of the long one tell siblings apart.

    >>> two = pairs(2)
    >>> two.images.shape, two.short[0] in two.long[0]
    ((2, 72, 72, 3), True)
    """
    check_size(n, seed, siblings)
    scenes = distinct_scenes(n, seed, siblings)
    told = [
        long_caption(scene, np.random.default_rng((seed, i, 7)), captioner, hallucination)
        for i, scene in enumerate(scenes)
    ]
    facts = {"n": n, "seed": seed, "captioner": captioner, "hallucination": hallucination}
    facts |= {"siblings": siblings}
    images = draw_all(scenes)
    digest = hashlib.sha256(images.tobytes())
    digest.update("\n".join(caption.text for caption in told).encode())
    return WorldPairs(
        images=images,
        short=[summary(scene).text for scene in scenes],
        long=[caption.text for caption in told],
        scenes=scenes,
        long_captions=told,
        source={"dataset": "world", **facts, "hash": digest.hexdigest()[:16]},
    )


def single_objects(n: int, seed: int = TEST_SEED) -> SingleObjects:
    """`n` pictures with one large or medium thing each, and its labels."""
    check_size(n, seed)
    scenes = [single_thing_scene(np.random.default_rng((seed, i, 11))) for i in range(n)]
    things = [scene.things[0] for scene in scenes]
    labels = {
        "kind": np.array([KINDS.index(thing.kind) for thing in things]),
        "colour": np.array([COLOURS.index(thing.colour) for thing in things]),
        "size": np.array([SIZES.index(thing.size) for thing in things]),
    }
    images = draw_all(scenes)
    digest = hashlib.sha256(images.tobytes()).hexdigest()[:16]
    source = {"dataset": "world-single", "n": n, "seed": seed, "hash": digest}
    return SingleObjects(images, labels, scenes, source)


# --- Pictures as LoTLIP trains on them: a noisy alt-text and long captions by several ---

REWRITES = 4
"""As many as LaCLIP has of each caption (Fan et al. 2023, section 3.2)."""

_OPENINGS = ("a", "a picture of a", "there is a", "we see a")
_OPENING = re.compile(r"^(?:a picture of a|there is a|we see a|a)\s+", re.IGNORECASE)
_PLACE = re.compile(r"\s+((?:in|on|over) a (?:\w+)(?: under a \w+ sky)?)$")


@dataclass(frozen=True)
class WebPairs(WorldPairs):
    """`WorldPairs` whose `short` are alt-texts and whose long captions come from `captioners`.

    `rewritten` holds the rewrites of each alt-text; `captions` lists it and them. `fits` is False
    where the alt-text tells of another picture. `long` is the first captioner's, whole.
    """

    captioners: list[dict[str, str]] = field(default_factory=list)
    rewritten: list[list[str]] = field(default_factory=list)
    fits: np.ndarray = field(default_factory=lambda: np.empty(0, dtype=bool))

    @property
    def captions(self) -> list[list[str]]:
        return [[raw, *more] for raw, more in zip(self.short, self.rewritten, strict=True)]

    def subset(self, indices: Sequence[int]) -> WebPairs:
        """The pairs at these indices, in this order."""
        indices = [int(i) for i in indices]
        part = super().subset(indices)
        return WebPairs(
            **vars(part),
            captioners=[self.captioners[i] for i in indices],
            rewritten=[self.rewritten[i] for i in indices],
            fits=self.fits[indices],
        )

    def retold(self, hallucination: float) -> WebPairs:
        """The same pictures and alt-texts, with long captions that lie at another rate.

        They are those of `web_pairs` at this rate, without drawing anything again. Raises LabError
        for a rate outside 0 to 1, and for pairs that are a part of a set.
        """
        if "subset" in self.source:
            raise LabError("a part of a set cannot be told again: retell the set, then take parts.")
        source = {**self.source, "hallucination": hallucination}
        seed, writers = source["seed"], source["captioners"]
        told = [
            _told(scene, seed, i, writers, hallucination) for i, scene in enumerate(self.scenes)
        ]
        return _with_long(self, told, source)


def web_pairs(
    n: int,
    seed: int = TRAIN_SEED,
    captioners: Sequence[str] = tuple(CAPTIONERS),
    hallucination: float = 0.0,
    noise: float = 0.2,
    tail: float = 0.0,
    siblings: int = 1,
) -> WebPairs:
    """`n` pictures with an alt-text and a long caption by each of `captioners`.

    The pictures are those of `pairs(n, seed, siblings=siblings)`, in any case: what is said of
    them changes neither them nor what else is said.

    Args:
        n: number of pictures.
        seed: which pictures.
        captioners: who writes long captions, in the order of LoTLIP's three MLLMs.
        hallucination: share of wrong facts in the long captions' details, 0 to 1.
        noise: share of alt-texts that tell of another picture, 0 to 1.
        tail: share of alt-texts with one to four sentences of detail behind them.
        siblings: how many pictures that follow each other share their summary.

    Raises LabError for rates outside 0 to 1 and for no or unknown captioners.

    >>> two = web_pairs(2)
    >>> list(two.captioners[0]), len(two.captions[0])
    (['surveyor', 'painter', 'reporter'], 5)
    """
    check_size(n, seed, siblings)
    _check(captioners, noise, tail)
    scenes = distinct_scenes(n, seed, siblings)
    told = [_told(scene, seed, i, captioners, hallucination) for i, scene in enumerate(scenes)]
    fits = np.array([_rng(seed, i, 20).random() >= noise for i in range(n)])
    short = [_alt_text(scene, seed, i, fits[i], tail) for i, scene in enumerate(scenes)]
    rewritten = [
        [rewrite(text, _rng(seed, i, 30 + number)) for number in range(REWRITES)]
        for i, text in enumerate(short)
    ]
    facts = {"n": n, "seed": seed, "captioners": list(told[0]), "hallucination": hallucination}
    facts |= {"noise": noise, "tail": tail, "siblings": siblings}
    untold = WebPairs(
        images=draw_all(scenes),
        short=short,
        long=[],
        scenes=scenes,
        long_captions=[],
        source={},
        name="world-web",
        rewritten=rewritten,
        fits=fits,
    )
    return _with_long(untold, told, {"dataset": "world-web", **facts})


def _with_long(pairs: WebPairs, told: list[dict[str, Caption]], source: dict) -> WebPairs:
    texts = [{who: caption.text for who, caption in by.items()} for by in told]
    every = [*pairs.short, *(text for by in texts for text in by.values())]
    first = [next(iter(by.values())) for by in told]
    return replace(
        pairs,
        long=[caption.text for caption in first],
        long_captions=first,
        captioners=texts,
        source={**source, "hash": _web_digest(pairs.images, every)},
    )


def rewrite(text: str, rng: np.random.Generator) -> str:
    """The first sentence of an alt-text in other words: another opening, things in another order.

    Every fact stays, and nothing is added: what LaCLIP asks of its language models.

    >>> rewrite("A red boat and a blue car on a lake.", np.random.default_rng(6))
    'There is a blue car and a red boat on a lake.'
    """
    sentence, *details = text.split(". ")
    body = _OPENING.sub("", sentence.rstrip("."))
    place = _PLACE.search(body)
    things = (body[: place.start()] if place else body).split(" and a ")
    things = [things[i] for i in rng.permutation(len(things))]
    opening = _OPENINGS[int(rng.integers(len(_OPENINGS)))]
    said = f"{opening} {' and a '.join(things)}{' ' + place[1] if place else ''}"
    return ". ".join([said[0].upper() + said[1:], *details]).rstrip(".") + "."


def _check(captioners: Sequence[str], noise: float, tail: float) -> None:
    if not captioners:
        raise LabError(f"expected at least one captioner of {', '.join(CAPTIONERS)}, got none.")
    for name in captioners:
        if name not in CAPTIONERS:
            raise LabError(
                f"expected a captioner of the world, got {name!r}. {suggest(name, CAPTIONERS)}"
            )
    for name, rate in (("noise", noise), ("tail", tail)):
        SHARE.check(name, rate)


def _told(
    scene: Scene, seed: int, i: int, captioners: Sequence[str], hallucination: float
) -> dict[str, Caption]:
    """Long captions by writer; what one writes does not depend on who else does."""
    return {
        who: long_caption(scene, _rng(seed, i, 7 + number), who, hallucination)
        for number, who in enumerate(CAPTIONERS)
        if who in captioners
    }


def _web_digest(images: np.ndarray, texts: Sequence[str]) -> str:
    digest = hashlib.sha256(images.tobytes())
    digest.update("\n".join(texts).encode())
    return digest.hexdigest()[:16]


def _alt_text(scene: Scene, seed: int, i: int, fits: bool, tail: float) -> str:
    rng = _rng(seed, i, 21)
    return web_caption(scene if fits else random_scene(rng), rng, tail).text


def _rng(*numbers: int) -> np.random.Generator:
    return np.random.default_rng(numbers)
