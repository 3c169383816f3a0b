"""Grounding: boxes, questions with known answers, the pointing game.

Boxes are (x0, y0, x1, y1) in pixels, origin top left. h w rows and columns of a grid of patches,
S side of the picture that the model sees.

K places of one map (patches of a picture, tokens of a text), Q questions.

Q questions, N pictures, S side of the picture that the model sees.

The paper draws "cross-attention maps" of words in CLIP, which has no cross-attention. Here a map is
what a patch method of this room gives, named by its method, on pictures whose boxes are known.

N scenes, W the two pictures of a scene, O order: the large thing named first (0) or second (1),
Z size: asked for the large thing (0) or the lesser one (1), B pairs in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Literal

import numpy as np

from longclip_lab.attribution.maps import PatchMap, TokenMap, patch_maps, shown
from longclip_lab.attribution.similarity import token_patches
from longclip_lab.data import BoxedImages
from longclip_lab.errors import LabError, suggest
from longclip_lab.evaluation import Interval, bootstrap_mean
from longclip_lab.files import readable
from longclip_lab.images import is_turned, open_image
from longclip_lab.models import Clip, pixels
from longclip_lab.plotting import Plottable
from longclip_lab.stats import wilson
from longclip_lab.world import KINDS, PROBE_SEED, SIZES, WorldPairs, pairs
from longclip_lab.world.probes import Swaps, Told

# --- Boxes of things in pictures: where they are in what the model saw, and which patches ---

Box = tuple[float, float, float, float]


def seen_box(box: Box, size: tuple[int, int], side: int, resize_mode: str = "shortest") -> Box:
    """A box of a picture of `size` (width, height), as it lies in what the model sees of it.

    Follows open_clip's preprocessing: "shortest" resizes the shorter edge to `side` and crops the
    centre, "longest" fits the longer edge and pads, "squash" resizes both edges. The result is not
    cut at the picture's edges; see `clipped`. Raises LabError for another mode.

    >>> seen_box((300, 100, 400, 200), (400, 200), 100)
    (100.0, 50.0, 150.0, 100.0)
    """
    width, height = size
    if resize_mode == "squash":
        wide, high = side, side
    elif resize_mode in ("shortest", "longest"):
        edge = min(width, height) if resize_mode == "shortest" else max(width, height)
        wide, high = int(side * width / edge), int(side * height / edge)
    else:
        raise LabError(f"expected resize mode shortest, longest or squash, got '{resize_mode}'.")
    left, top = round((wide - side) / 2), round((high - side) / 2)
    x, y = wide / width, high / height
    return (box[0] * x - left, box[1] * y - top, box[2] * x - left, box[3] * y - top)


def area(box: Box) -> float:
    """Square pixels of a box, 0 for one turned inside out."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def clipped(box: Box, side: int) -> Box:
    """The part of a box inside a picture of `side` x `side` pixels.

    >>> clipped((-5, 2, 5, 8), 6)
    (0, 2, 5, 6)
    """
    x0, y0, x1, y1 = (min(max(edge, 0), side) for edge in box)
    return (x0, y0, x1, y1)


def patch_shares(boxes: Sequence[Box], grid: tuple[int, int], side: int) -> np.ndarray:
    """How much of each patch's area lies in the boxes: [h, w], 0 to 1.

    Where boxes overlap, their areas are counted once.

    >>> patch_shares([(0, 0, 6, 4)], (2, 2), 8)
    array([[1. , 0.5],
           [0. , 0. ]])
    """
    rows, columns = grid
    xs = _edges([0, 2], boxes, columns, side)
    ys = _edges([1, 3], boxes, rows, side)
    covered = np.zeros((len(ys) - 1, len(xs) - 1), dtype=bool)
    middle_x, middle_y = (xs[:-1] + xs[1:]) / 2, (ys[:-1] + ys[1:]) / 2
    for x0, y0, x1, y1 in boxes:
        inside_x, inside_y = (x0 < middle_x) & (middle_x < x1), (y0 < middle_y) & (middle_y < y1)
        covered |= inside_y[:, None] & inside_x[None, :]
    cells = covered * np.diff(ys)[:, None] * np.diff(xs)[None, :]
    shares = np.zeros(grid)
    row = np.minimum((middle_y * rows / side).astype(int), rows - 1)
    column = np.minimum((middle_x * columns / side).astype(int), columns - 1)
    np.add.at(shares, (row[:, None], column[None, :]), cells)
    return shares * rows * columns / side**2


def _edges(corners: list[int], boxes: Sequence[Box], count: int, side: int) -> np.ndarray:
    """Where patches and boxes begin and end along one axis, sorted."""
    own = [np.clip(box[corner], 0, side) for box in boxes for corner in corners]
    return np.unique([*np.linspace(0, side, count + 1), *own])


def patches_inside(boxes: Sequence[Box], grid: tuple[int, int], side: int) -> np.ndarray:
    """Which patches count as lying in the boxes: those whose middle does; bool [h, w].

    A box between the middles of all patches is held by the patch around its own middle, so that
    no question is unanswerable because a thing is small.

    >>> patches_inside([(0, 0, 3, 3)], (2, 2), 8)
    array([[ True, False],
           [False, False]])
    """
    rows, columns = grid
    x = (np.arange(columns) + 0.5) * side / columns
    y = (np.arange(rows) + 0.5) * side / rows
    inside = np.zeros(grid, dtype=bool)
    for x0, y0, x1, y1 in boxes:
        inside |= ((y0 <= y) & (y < y1))[:, None] & ((x0 <= x) & (x < x1))[None, :]
    if not inside.any():
        x0, y0, x1, y1 = max(boxes, key=area)
        row = min(max(int((y0 + y1) / 2 * rows / side), 0), rows - 1)
        column = min(max(int((x0 + x1) / 2 * columns / side), 0), columns - 1)
        inside[row, column] = True
    return inside


# --- Does a map point at what it was asked about? Its peak, its energy, and chance ---

ROUNDS = 2000


def peak_inside(scores_K: np.ndarray, inside_K: np.ndarray) -> float:
    """The pointing game (Zhang et al. 2016, Section 4.1): 1 if the highest score lies inside.

    Places that share the highest score count in equal parts, so that a map of equal scores, which
    says nothing, gets exactly what a random place would.

    >>> peak_inside(np.array([0.1, 0.9, 0.9]), np.array([False, True, False]))
    0.5
    """
    return float(inside_K[scores_K == scores_K.max()].mean())


def energy_inside(scores_K: np.ndarray, share_K: np.ndarray) -> float:
    """The share of a map's positive mass that lies inside (Wang et al. 2020, Section 4.3).

    `share_K` says how much of each place is inside. A map without positive mass says nothing and
    gets what an even map would: the inside's share of all area.

    >>> energy_inside(np.array([3.0, 1.0, -5.0]), np.array([1.0, 0.0, 0.5]))
    0.75
    """
    positive_K = np.clip(scores_K, 0, None)
    mass = positive_K.sum()
    return float((positive_K * share_K).sum() / mass) if mass > 0 else float(share_K.mean())


def proportion(values_Q: np.ndarray, groups_Q: np.ndarray, seed: int = 0) -> Interval:
    """The mean of hits (0 to 1) with a 95% interval.

    Wilson's where every group (picture) has one question. Where questions share pictures they are
    no independent ones: then a bootstrap draws whole groups, and Wilson's interval for the number
    of groups stands in where all groups are equal and a bootstrap would have no width.
    """
    _, which_Q, sizes = np.unique(groups_Q, return_inverse=True, return_counts=True)
    groups, means = len(sizes), np.bincount(which_Q, values_Q) / sizes
    if groups == len(values_Q):
        return wilson(float(values_Q.sum()), groups)
    if np.ptp(means) < 1e-9:
        bounds = wilson(float(values_Q.mean()) * groups, groups)
        return Interval(bounds.value, bounds.low, bounds.high, len(values_Q))
    return bootstrap_mean(values_Q, groups_Q, ROUNDS, seed)


def paired(gains_Q: np.ndarray, groups_Q: np.ndarray, seed: int = 0) -> Interval:
    """The mean of differences within questions, with a bootstrap interval over whole groups."""
    return bootstrap_mean(gains_Q, groups_Q, ROUNDS, seed)


# --- Questions whose right answer is known: where is this thing, which word fits this ---

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
    clip: Clip, boxed: BoxedImages, n: int, seed: int = 0, text: str | None = None
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


# --- LoTLIP's Figure 1 as maps: where does a lesser thing's word point beside a large one's? ---

ASKED = {
    "phrase alone": "the map of a text that names this thing only",
    "word alone": "that map, less the one of the same text with the thing's kind changed: what the "
    "word adds to it",
    "word in the text": "the same for the text that names both things",
    "phrase in the text": "similarity with the phrase's tokens where they stand in the text that "
    "names both things (their states in the last layer)",
    "whole text": "the map of the text that names both things",
    "nothing there": "the map of a text that names a thing which is not in the picture: what the "
    "method does whatever it is asked",
}
"""How a map was asked for a thing."""
PLACES = ("own", "other", "elsewhere")
SWAPPED_SIZES = ("large", "lesser")


@dataclass(frozen=True)
class WordPointing(Plottable):
    """Where the peaks of maps lie: in the box of the thing asked for, in the other's, elsewhere.

    `hits[asked]` [N, W, O, Z, 3] in the order of `PLACES`; a peak of several patches counts in
    parts. Maps that do not depend on the order of naming have one entry there. `chance` [N, Z, 3]
    are the shares of all patches that lie in these places.
    """

    model: str
    method: str
    lesser: str
    form: str
    hits: dict[str, np.ndarray]
    chance: np.ndarray
    source: dict

    def score(
        self, asked: str, size: str, place: str = "own", order: int | None = None
    ) -> Interval:
        """Share of maps that peak in a place, with a 95% bootstrap interval that draws scenes.

        Raises LabError for a name that is not in `ASKED` (or was not asked), `SIZES`, `PLACES`.
        """
        values_N = self.values(asked, size, place, order)
        if np.ptp(values_N) == 0:  # where a bootstrap has no width
            found = wilson(float(values_N.sum()), len(values_N))
            return replace(found, low=max(0.0, found.low), high=min(1.0, found.high))
        return bootstrap_mean(values_N)

    def values(
        self, asked: str, size: str, place: str = "own", order: int | None = None
    ) -> np.ndarray:
        """For every scene [N] the share of its maps that peak in a place."""
        for name, known in ((asked, self.hits), (size, SWAPPED_SIZES), (place, PLACES)):
            if name not in known:
                raise LabError(f"expected one of {', '.join(known)}; got {name!r}.")
        found = self.hits[asked][:, :, :, SWAPPED_SIZES.index(size), PLACES.index(place)]
        found = found if order is None or found.shape[2] == 1 else found[:, :, [order]]
        return found.mean((1, 2))

    def against(self, other: WordPointing, asked: str, size: str, place: str = "own") -> Interval:
        """The difference to another model's share on the same questions.

        Raises LabError for other questions.
        """
        questions = [(one.source, one.form) for one in (self, other)]
        if questions[0] != questions[1]:
            raise LabError(f"expected the same questions, got {questions[0]} and {questions[1]}.")
        return bootstrap_mean(self.values(asked, size, place) - other.values(asked, size, place))

    def table(self):
        """A DataFrame: asked, size, place, percent, low, high, and chance in percent."""
        import pandas as pd

        rows = []
        for asked, (z, size), (p, place) in product(
            self.hits, enumerate(SWAPPED_SIZES), enumerate(PLACES)
        ):
            found = self.score(asked, size, place)
            numbers = (100 * x for x in (found.value, found.low, found.high))
            rows.append((asked, size, place, *numbers, 100 * self.chance[:, z, p].mean()))
        columns = ["asked", "size", "place", "percent", "low", "high", "chance"]
        return pd.DataFrame(rows, columns=columns)

    def to_dict(self) -> dict:
        """JSON-able: what was asked, and every share with its interval."""
        return {
            "protocol": "word pointing: the box in which a map peaks, of two things named",
            "model": self.model,
            "method": self.method,
            "lesser": self.lesser,
            "form": self.form,
            "scenes": len(self.chance),
            "source": self.source,
            "rows": self.table().round(2).to_dict("records"),
        }


def word_pointing(
    clip: Clip,
    swaps: Swaps,
    method: str = "similarity-gain",
    form: str = "one sentence",
    asked: Sequence[str] = ("phrase alone", "word alone", "word in the text", "nothing there"),
    batch_size: int = 128,
) -> WordPointing:
    """Draw a map for each thing of each picture in every way `asked`, and see where it peaks.

    `method` is a patch method; "phrase in the text" is similarity whatever the method, as no other
    method has a map for single tokens. Raises LabError for a method, form or way of asking that is
    unknown.
    """
    for name in asked:
        if name not in ASKED:
            raise LabError(f"expected a way of asking, got {name!r}. {suggest(name, ASKED)}")
    hits, chance = {}, np.zeros((len(swaps), 2, 3))
    for name in asked:
        orders = (0, 1) if "text" in name else (0,)
        keys = list(product(range(len(swaps)), (0, 1), orders, (0, 1)))
        found = np.zeros((len(swaps), 2, len(orders), 2, 3))
        for start in range(0, len(keys), batch_size):
            batch = keys[start : start + batch_size]
            maps = word_maps(clip, swaps, batch, name, method, form)
            for key, one in zip(batch, maps, strict=True):
                inside = _insides(swaps, key[0], key[-1], one)
                found[key] = [peak_inside(one.scores.ravel(), place) for place in inside]
                chance[key[0], key[-1]] = [place.mean() for place in inside]
        hits[name] = found
    return WordPointing(clip.name, method, swaps.lesser, form, hits, chance, dict(swaps.source))


def word_maps(
    clip: Clip,
    swaps: Swaps,
    keys: Sequence[tuple[int, int, int, int]],
    asked: str = "phrase alone",
    method: str = "similarity-gain",
    form: str = "one sentence",
) -> list[PatchMap]:
    """One map for each (scene, picture, order, size): see `ASKED` and this file's legend."""
    images = np.stack([swaps.images[n, picture] for n, picture, _, _ in keys])
    # size 0 asks for the thing that is the large one here; order 0 names that one first
    things = [picture ^ size for _, picture, _, size in keys]
    if "text" not in asked:
        named = swaps.nothing if asked == "nothing there" else swaps.alone
        told = [named(n, which) for (n, *_), which in zip(keys, things, strict=True)]
        whole = patch_maps(clip, images, told, method)
        if asked != "word alone":
            return whole
        changed = [
            swaps.alone(n, which, "kind") for (n, *_), which in zip(keys, things, strict=True)
        ]
        return _less(whole, patch_maps(clip, images, changed, method))

    def texts(changed: Sequence[int | None]) -> list[Told]:
        return [
            swaps.told(n, picture, picture ^ order, form, which)
            for (n, picture, order, _), which in zip(keys, changed, strict=True)
        ]

    told = texts([None] * len(keys))
    if asked == "phrase in the text":
        found = token_patches(clip, images, [one.text for one in told], tokens="in context")
        places = [order ^ size for _, _, order, size in keys]
        return [
            matrix.patches(*one.spans[place])
            for matrix, one, place in zip(found, told, places, strict=True)
        ]
    whole = patch_maps(clip, images, [one.text for one in told], method)
    if asked == "whole text":
        return whole
    return _less(whole, patch_maps(clip, images, [one.text for one in texts(things)], method))


def _less(maps: Sequence[PatchMap], others: Sequence[PatchMap]) -> list[PatchMap]:
    """What each map has more than another of the same picture."""
    return [
        replace(one, scores=one.scores - other.scores, method=f"{one.method}, by difference")
        for one, other in zip(maps, others, strict=True)
    ]


def _insides(swaps: Swaps, n: int, size: int, found: PatchMap) -> list[np.ndarray]:
    """Which patches lie in the box asked for, in the other one, and in neither: bool [h * w]."""
    side, (x, y) = found.image.shape[0], found.shift
    # boxes move against the patches, whose tokens may look a little beside an even grid
    boxes = [(a - x, b - y, c - x, d - y) for a, b, c, d in swaps.boxes(n, side)]
    own, other = (patches_inside([boxes[i]], found.grid, side).ravel() for i in (size, 1 - size))
    return [own, other & ~own, ~(own | other)]
