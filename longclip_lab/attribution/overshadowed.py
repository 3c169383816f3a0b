"""LoTLIP's Figure 1 as maps: where does a lesser thing's word point beside a large one's?

The paper draws "cross-attention maps" of words in CLIP, which has no cross-attention. Here a map is
what a patch method of this room gives, named by its method, on pictures whose boxes are known.

N scenes, W the two pictures of a scene, O order: the large thing named first (0) or second (1),
Z size: asked for the large thing (0) or the lesser one (1), B pairs in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np

from longclip_lab.attribution.boxes import patches_inside
from longclip_lab.attribution.methods import patch_maps
from longclip_lab.attribution.pointing import peak_inside
from longclip_lab.attribution.similarity import token_patches
from longclip_lab.attribution.values import PatchMap
from longclip_lab.errors import LabError, suggest
from longclip_lab.evaluation import Interval, bootstrap_mean
from longclip_lab.models import Clip
from longclip_lab.plotting import Plottable
from longclip_lab.probing import wilson
from longclip_lab.world.swaps import Swaps, Told

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
SIZES = ("large", "lesser")


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
        for name, known in ((asked, self.hits), (size, SIZES), (place, PLACES)):
            if name not in known:
                raise LabError(f"expected one of {', '.join(known)}; got {name!r}.")
        found = self.hits[asked][:, :, :, SIZES.index(size), PLACES.index(place)]
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
        for asked, (z, size), (p, place) in product(self.hits, enumerate(SIZES), enumerate(PLACES)):
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
