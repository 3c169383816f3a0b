"""Pictures as LoTLIP trains on them: a noisy alt-text and long captions by several writers."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from longclip_lab.errors import SHARE, LabError, suggest
from longclip_lab.world.captioners import CAPTIONERS, long_caption, web_caption
from longclip_lab.world.language import Caption
from longclip_lab.world.scene import Scene, random_scene
from longclip_lab.world.sets import (
    TRAIN_SEED,
    WorldPairs,
    check_size,
    distinct_scenes,
    draw_all,
)

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
        source={**source, "hash": _digest(pairs.images, every)},
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


def _digest(images: np.ndarray, texts: Sequence[str]) -> str:
    digest = hashlib.sha256(images.tobytes())
    digest.update("\n".join(texts).encode())
    return digest.hexdigest()[:16]


def _alt_text(scene: Scene, seed: int, i: int, fits: bool, tail: float) -> str:
    rng = _rng(seed, i, 21)
    return web_caption(scene if fits else random_scene(rng), rng, tail).text


def _rng(*numbers: int) -> np.random.Generator:
    return np.random.default_rng(numbers)
