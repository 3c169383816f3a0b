"""Questions whose right answer is known: where is this thing, which word fits this picture?

Q questions, N pictures, S side of the picture that the model sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from longclip_lab.attribution.boxes import area, clipped, patch_shares, patches_inside, seen_box
from longclip_lab.attribution.inputs import shown
from longclip_lab.attribution.values import PatchMap, TokenMap
from longclip_lab.data import BoxedPictures
from longclip_lab.errors import LabError
from longclip_lab.files import readable
from longclip_lab.images import is_turned, open_image
from longclip_lab.models import Clip, pixels
from longclip_lab.world import KINDS, PROBE_SEED, SIZES, WorldPairs, pairs

Side = Literal["patches", "tokens"]
PHOTO, DRAWING = "a photo of a {}", "a picture of a {}."
LEAST_SEEN = 0.5  # of a box's area
FILLERS = 2
TURNED = "turned by EXIF, so that its boxes are uncertain"


@dataclass(frozen=True)
class Place:
    """What of a map lies inside the answer: flat over the K places that compete.

    `scores` [K]; `inside` [K] says which places are right, `share` [K] how much of each is.
    """

    scores: np.ndarray
    inside: np.ndarray
    share: np.ndarray


@dataclass(frozen=True)
class Questions:
    """Q texts asked of pictures, and where in the picture or in the text the answer lies.

    `images` uint8 [N, S, S, 3] are as the model sees them; `picture` [Q] says which one a question
    is about. `answers` are lists of boxes in its pixels for patches; for tokens, the characters
    that compete and, first of them, those that are right. `group` [Q] numbers questions that share
    pictures or words: they are drawn together by the bootstrap. `others` are the questions whose
    maps are controls: the same picture with another text, or the same text with another picture.
    """

    side: Side
    images: np.ndarray
    picture: np.ndarray
    texts: list[str]
    answers: list[Any]
    size: np.ndarray
    group: np.ndarray
    others: list[list[int]]
    source: dict[str, Any]
    skipped: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    def asked(self) -> np.ndarray:
        """The picture of every question: uint8 [Q, S, S, 3]."""
        return self.images[self.picture]

    def one_a_group(self, seed: int = 0) -> np.ndarray:
        """Numbers of one question for each group, drawn at random."""
        shuffled = np.random.default_rng(seed).permutation(len(self))
        _, first = np.unique(self.group[shuffled], return_index=True)
        return np.sort(shuffled[first])

    def place(self, number: int, found: PatchMap | TokenMap) -> Place:
        """What of a map lies inside the answer of question `number`."""
        if isinstance(found, PatchMap):
            x, y = found.shift
            boxes = [(a - x, b - y, c - x, d - y) for a, b, c, d in self.answers[number]]
            side = found.image.shape[0]
            inside = patches_inside(boxes, found.grid, side)
            shares = patch_shares(boxes, found.grid, side)
            return Place(found.scores.ravel(), inside.ravel(), shares.ravel())
        right, *wrong = self.answers[number]
        inside = found.within(*right)
        compete = inside | np.any([found.within(*span) for span in wrong], axis=0)
        inside = inside[compete]
        return Place(found.scores[compete], inside, inside.astype(float))


def world_things(clip: Clip, drawn: WorldPairs, seed: int = 0) -> Questions:
    """One thing of each size in every picture of the world: "A red boat."

    Kinds in a picture are all different, so the text fits one thing only.
    """
    rng = np.random.default_rng((seed, 1))
    picture, texts, answers, sizes = [], [], [], []
    for number, scene in enumerate(drawn.scenes):
        for size in SIZES:
            things = [thing for thing in scene.things if thing.size == size]
            if not things:
                continue
            thing = things[int(rng.integers(len(things)))]
            picture.append(number)
            texts.append(f"A {thing.colour} {thing.kind}.")
            answers.append([thing.box(clip.image_size)])
            sizes.append(size)
    source = {**drawn.source, "text": "A {colour} {kind}.", "things": "one of each size a picture"}
    seen = shown(clip, pixels(clip, drawn.images))
    return _about_things(seen, picture, texts, answers, sizes, source)


def photographed_things(
    clip: Clip, boxed: BoxedPictures, n: int, seed: int = 0, text: str | None = None
) -> Questions:
    """Every category in `n` photographs drawn at random: "a photo of a dog".

    Boxes follow the picture through resizing and cropping; a category of which no box keeps half
    of its area is left out, and so is one that a word-level tokenizer has no word for, and a
    photograph that EXIF turns: its boxes may be those of either way up. All are counted and named.
    `text` holds {} for the category; by default PHOTO, or DRAWING for models that know the drawn
    world's words only.

    Raises LabError if no question is left.
    """
    words = getattr(clip.tokenizer, "words", None)
    text = text or (PHOTO if words is None else DRAWING)
    skipped = {reason: list(names) for reason, names in boxed.skipped.items()}
    chosen = np.sort(np.random.default_rng((seed, 2)).permutation(len(boxed))[:n])
    pictures, picture, texts, answers, sizes = [], [], [], [], []
    for number in chosen:
        kept = []
        if is_turned(boxed.images[number]):
            skipped.setdefault(TURNED, []).append(readable(boxed.images[number].name))
            continue
        image = open_image(boxed.images[number])
        for thing in boxed.things[number]:
            name = f"{boxed.images[number].name}: {thing.category}"
            boxes = _visible(clip, thing.boxes, image.size)
            if words is not None and not set(thing.category.split()) <= set(words):
                skipped.setdefault("word unknown to the model", []).append(name)
            elif boxes is None:
                skipped.setdefault("outside the centre crop", []).append(name)
            else:
                kept.append((text.format(thing.category), boxes, thing.size))
        if kept:
            picture += [len(pictures)] * len(kept)
            for values, value in zip((texts, answers, sizes), zip(*kept, strict=True), strict=True):
                values += value
            pictures.append(shown(clip, pixels(clip, [image]))[0])
    if not pictures:
        raise LabError(f"{boxed.name} leaves no thing to ask this model about.")
    source = {**boxed.source, "text": text, "drawn": len(chosen)}
    seen = np.stack(pictures)
    return _about_things(seen, picture, texts, answers, sizes, source, skipped)


def world_words(clip: Clip, drawn: WorldPairs, seed: int = 0) -> Questions:
    """Captions of which one sentence fits the picture: "A kite. A boat. A cup. A tree."

    Two pictures share a caption in random order: it names a kind that only the first holds, one
    that only the second holds, and one or two that neither does. Only the words that name a kind
    compete, so that a method which never looks at the picture is right by chance only. Pairs of
    pictures for which there is no such caption are left out, counted and named.
    """
    rng = np.random.default_rng((seed, 3))
    picture, texts, answers, sizes, skipped = [], [], [], [], {}
    for one in range(0, len(drawn) - 1, 2):
        scenes = drawn.scenes[one], drawn.scenes[one + 1]
        kinds = [{thing.kind for thing in scene.things} for scene in scenes]
        neither = [kind for kind in KINDS if kind not in kinds[0] | kinds[1]]
        own = [
            [thing for thing in scene.things if thing.kind not in other]
            for scene, other in zip(scenes, kinds[::-1], strict=True)
        ]
        common = [size for size in SIZES if all(size in {t.size for t in ts} for ts in own)]
        if not (neither and common):
            skipped.setdefault("no caption tells them apart", []).append(f"{one}, {one + 1}")
            continue
        size = common[one // 2 % len(common)]
        named = [[thing for thing in things if thing.size == size] for things in own]
        right = [things[int(rng.integers(len(things)))].kind for things in named]
        wrong = rng.permutation(neither)[:FILLERS].tolist()
        caption, spans = _caption(rng.permutation([*right, *wrong]).tolist())
        for number, kind in enumerate(right):
            picture.append(one + number)
            texts.append(caption)
            answers.append([spans[kind], *(s for k, s in spans.items() if k != kind)])
            sizes.append(size)
    if not texts:
        raise LabError(f"expected more pictures to make captions for, got {len(drawn)}.")
    pair = np.arange(len(texts)) // 2
    return Questions(
        side="tokens",
        images=shown(clip, pixels(clip, drawn.images)),
        picture=np.array(picture),
        texts=texts,
        answers=answers,
        size=np.array(sizes),
        group=pair,
        others=[[number ^ 1] for number in range(len(texts))],
        source={**drawn.source, "text": "A {kind}. A {kind}. ..., one of them in the picture"},
        skipped=skipped,
    )


def world_pictures(n: int) -> WorldPairs:
    """The pictures of the world that probes are made of. Raises LabError for fewer than 4."""
    if n < 4:
        raise LabError(f"expected at least 4 pictures to ask about, got n={n}.")
    return pairs(n, seed=PROBE_SEED)


def _caption(kinds: Sequence[str]) -> tuple[str, dict[str, tuple[int, int]]]:
    text, spans = "", {}
    for kind in kinds:
        start = len(text) + len(" A " if text else "A ")
        text += f" A {kind}." if text else f"A {kind}."
        spans[kind] = (start, start + len(kind))
    return text, spans


def _about_things(
    images: np.ndarray,
    picture: list[int],
    texts: list[str],
    answers: list[Any],
    sizes: list[str],
    source: dict[str, Any],
    skipped: dict[str, list[str]] | None = None,
) -> Questions:
    numbers = np.array(picture)
    others = [
        [int(j) for j in np.flatnonzero(numbers == numbers[i]) if j != i and texts[j] != texts[i]]
        for i in range(len(texts))
    ]
    return Questions(
        "patches", images, numbers, texts, answers, np.array(sizes), numbers, others, source,
        skipped or {},
    )  # fmt: skip


def _visible(clip: Clip, boxes: Sequence, size: tuple[int, int]) -> list | None:
    """The boxes as the model sees them, cut at the edges; None if none keeps half of its area."""
    mode = clip.card["preprocess"].get("resize_mode", "shortest")
    whole = [seen_box(box, size, clip.image_size, mode) for box in boxes]
    parts = [clipped(box, clip.image_size) for box in whole]
    kept = [
        area(part) / area(box) if area(box) else 0.0 for part, box in zip(parts, whole, strict=True)
    ]
    if max(kept) < LEAST_SEEN:
        return None
    return [part for part, share in zip(parts, kept, strict=True) if share > 0]
