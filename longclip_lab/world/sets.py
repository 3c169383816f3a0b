"""Sets of pictures with captions: a fixed function of their size, seed and options."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from longclip_lab.errors import COUNT, SEED, LabError
from longclip_lab.world.captioners import long_caption, summary
from longclip_lab.world.drawing import draw
from longclip_lab.world.language import Caption
from longclip_lab.world.scene import Scene, random_scene, sibling, single_thing_scene
from longclip_lab.world.vocabulary import COLOURS, KINDS, SIZES

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
            source={**self.source, "subset": _digest(indices)},
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


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


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
