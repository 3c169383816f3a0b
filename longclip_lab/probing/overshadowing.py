"""LoTLIP's Figure 1 as numbers: does a large thing's word overshadow a lesser thing's?

Asked on `world.swaps`, whose texts name a large and a lesser thing. Both things are large in one
picture and lesser in the other, and both orders of naming are told, so that neither the word nor
its place in the sentence can stand for the size.

N scenes, W the two pictures of a scene, O order: the large thing named first (0) or second (1),
Z size: the large thing (0) or the lesser one (1), M texts, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from longclip_lab.errors import LabError, suggest
from longclip_lab.evaluation import Interval, bootstrap_mean
from longclip_lab.models import Clip, encode_images, encode_texts
from longclip_lab.plotting import Plottable
from longclip_lab.stats import wilson
from longclip_lab.world.probes import Swaps

LARGE, LESSER = 0, 1


class Score(NamedTuple):
    """How a score is computed for every scene, and what it is.

    A "ratio" is a geometric mean of ratios and its values are logarithms; a "share" lies between 0
    and 1; a "gap" is a difference of shares. `neutral` is what it is where size plays no part, or
    where a model guesses.
    """

    about: str
    unit: str
    neutral: float
    values: Callable[[Overshadowing], np.ndarray]


@dataclass(frozen=True)
class Overshadowing(Plottable):
    """What changing one word does to the text's feature and to its match with the picture.

    `shifts` [N, W, O, Z] is 1 - cosine of the text's feature before and after; `margins` that of
    the true text's cosine with the picture above the changed text's. `shifts_alone` and
    `margins_alone` [N, W, Z] are the same for texts that name nothing else. Scores are means over
    scenes, with 95% bootstrap intervals that draw scenes: the answers about one scene depend on
    each other.
    """

    model: str
    lesser: str
    form: str
    change: str
    shifts: np.ndarray
    margins: np.ndarray
    shifts_alone: np.ndarray
    margins_alone: np.ndarray
    source: dict

    def values(self, name: str) -> np.ndarray:
        """One of `SCORES` for every scene: [N]. Raises LabError for another name."""
        if name not in SCORES:
            raise LabError(
                f"expected a score of overshadowing, got {name!r}. {suggest(name, SCORES)}"
            )
        return SCORES[name].values(self)

    def score(self, name: str) -> Interval:
        """One of `SCORES` over all scenes. Raises LabError for another name."""
        return _interval(SCORES[name].unit if name in SCORES else "", self.values(name))

    def against(self, other: Overshadowing, name: str) -> Interval:
        """How far a score lies above another model's on the same questions: a gap, or a ratio.

        Raises LabError for other questions and for an unknown score.
        """
        asked = [(one.source, one.form, one.change) for one in (self, other)]
        if asked[0] != asked[1]:
            raise LabError(f"expected the same questions, got {asked[0]} and {asked[1]}.")
        difference_N = self.values(name) - other.values(name)
        return _interval("ratio" if SCORES[name].unit == "ratio" else "gap", difference_N)

    def table(self):
        """A DataFrame: score, unit, value, low, high, neutral; all but ratios in percent."""
        import pandas as pd

        rows = []
        for name, score in SCORES.items():
            found, factor = self.score(name), 1 if score.unit == "ratio" else 100
            numbers = (found.value, found.low, found.high, score.neutral)
            rows.append((name, score.unit, *(factor * number for number in numbers)))
        return pd.DataFrame(rows, columns=["score", "unit", "value", "low", "high", "neutral"])

    def to_dict(self) -> dict:
        """JSON-able: what was asked, and every score with its interval."""
        return {
            "protocol": "overshadowing: one word of a text that names a large and a lesser thing",
            "model": self.model,
            "lesser": self.lesser,
            "form": self.form,
            "change": self.change,
            "scenes": len(self.shifts),
            "source": self.source,
            "scores": {name: self.score(name).to_dict() for name in SCORES},
        }


def _interval(unit: str, values_N: np.ndarray) -> Interval:
    """The mean over scenes with its 95% interval, drawn by scenes; of ratios the geometric mean."""
    found = bootstrap_mean(values_N)
    if unit == "share" and np.ptp(values_N) == 0:  # where a bootstrap has no width
        return wilson(found.value * found.n, found.n)
    if unit != "ratio":
        return found
    return Interval(*(float(np.exp(x)) for x in (found.value, found.low, found.high)), found.n)


def _wins(margins: np.ndarray) -> np.ndarray:
    return np.where(margins == 0, 0.5, margins > 0)


def _log(shifts: np.ndarray) -> np.ndarray:
    """Logarithms; a word that moves nothing counts as one that moves as little as float32 tells."""
    return np.log(np.maximum(shifts, np.finfo(np.float32).eps))


def _right(found: Overshadowing, size: int) -> np.ndarray:
    return _wins(found.margins[..., size]).mean((1, 2))


def _right_alone(found: Overshadowing, size: int) -> np.ndarray:
    return _wins(found.margins_alone[..., size]).mean(1)


def _by_order(values_NWOZ: np.ndarray, size: int) -> np.ndarray:
    """What naming a thing first brings against naming it second."""
    own = values_NWOZ[..., size].mean(1)
    return own[:, size] - own[:, 1 - size]  # the large thing is first in order 0


def _outweighs(found: Overshadowing) -> np.ndarray:
    return _wins(found.margins[..., LARGE] - found.margins[..., LESSER]).mean((1, 2))


SCORES: dict[str, Score] = {
    "text: lesser / large": Score(
        "how far the lesser thing's word moves the text's feature, against the large one's",
        "ratio", 1, lambda f: np.diff(_log(f.shifts), axis=-1).mean((1, 2, 3)),
    ),
    "text: first / second": Score(
        "the same for the thing named first, against the one named second",
        "ratio", 1, lambda f: (_by_order(_log(f.shifts), 0) + _by_order(_log(f.shifts), 1)) / 2,
    ),
    "right: large": Score(
        "the true text fits better than one with the large thing's word changed",
        "share", 0.5, lambda f: _right(f, LARGE),
    ),
    "right: lesser": Score(
        "the same with the lesser thing's word changed",
        "share", 0.5, lambda f: _right(f, LESSER),
    ),
    "right: large, alone": Score(
        "the same for a text that names the large thing only",
        "share", 0.5, lambda f: _right_alone(f, LARGE),
    ),
    "right: lesser, alone": Score(
        "the same for a text that names the lesser thing only",
        "share", 0.5, lambda f: _right_alone(f, LESSER),
    ),
    "size: lesser - large": Score(
        "right answers about the lesser thing less those about the large one, in the same texts",
        "gap", 0, lambda f: _right(f, LESSER) - _right(f, LARGE),
    ),
    "company: large": Score(
        "right answers about the large thing beside the lesser one's words, less those alone",
        "gap", 0, lambda f: _right(f, LARGE) - _right_alone(f, LARGE),
    ),
    "company: lesser": Score(
        "right answers about the lesser thing beside the large one's words, less those alone",
        "gap", 0, lambda f: _right(f, LESSER) - _right_alone(f, LESSER),
    ),
    "order: large": Score(
        "right answers about the large thing where it is named first, less where second",
        "gap", 0, lambda f: _by_order(_wins(f.margins), LARGE),
    ),
    "order: lesser": Score(
        "right answers about the lesser thing where it is named first, less where second",
        "gap", 0, lambda f: _by_order(_wins(f.margins), LESSER),
    ),
    "forgiven: lesser": Score(
        "of two texts with one mistake each, that with the mistake about the lesser thing fits",
        "share", 0.5, _outweighs,
    ),
}  # fmt: skip


def overshadowing(
    clip: Clip,
    swaps: Swaps,
    form: str = "one sentence",
    change: str = "kind",
    progress: bool = False,
) -> Overshadowing:
    """Change each thing's word in texts that name two things, and see what it moves.

    `form` is one of `world.probes.FORMS`, `change` "kind" or "colour". Raises LabError for others,
    and if the model's context cuts a text.
    """
    numbers = range(len(swaps))
    texts, alone = {}, {}
    for n, picture, order in product(numbers, (0, 1), (0, 1)):
        first = picture if order == LARGE else 1 - picture
        for changed in (None, 0, 1):
            told = swaps.told(n, picture, first, form, changed, change)
            texts[n, picture, order, changed] = told.text
    for n, which, wrong in product(numbers, (0, 1), (None, change)):
        alone[n, which, wrong] = swaps.alone(n, which, wrong)
    feature = _features(clip, [*texts.values(), *alone.values()], progress)
    images = swaps.images.reshape(-1, *swaps.images.shape[2:])
    images_MD = F.normalize(encode_images(clip, images, progress=progress).double(), dim=1)

    shape = (len(swaps), 2, 2, 2)
    shifts, margins = np.zeros(shape), np.zeros(shape)
    shifts_alone, margins_alone = np.zeros(shape[:3]), np.zeros(shape[:3])
    for n, picture, size in product(numbers, (0, 1), (LARGE, LESSER)):
        which = picture if size == LARGE else 1 - picture
        image = images_MD[2 * n + picture]
        found = _moved(feature[alone[n, which, None]], feature[alone[n, which, change]], image)
        shifts_alone[n, picture, size], margins_alone[n, picture, size] = found
        for order in (0, 1):
            true, false = (feature[texts[n, picture, order, c]] for c in (None, which))
            found = _moved(true, false, image)
            shifts[n, picture, order, size], margins[n, picture, order, size] = found
    return Overshadowing(
        clip.name, swaps.lesser, form, change, shifts, margins, shifts_alone, margins_alone,
        dict(swaps.source),
    )  # fmt: skip


def _moved(true: torch.Tensor, false: torch.Tensor, image: torch.Tensor) -> tuple[float, float]:
    """1 - cosine of two unit features, as exact for near ones, and the first's margin."""
    return float((true - false).square().sum() / 2), float((true - false) @ image)


def _features(clip: Clip, texts: list[str], progress: bool) -> dict[str, torch.Tensor]:
    """The unit feature of every different text."""
    different = list(dict.fromkeys(texts))
    encoded = encode_texts(clip, different, progress=progress)
    if encoded.num_truncated:
        raise LabError(
            f"expected texts that '{clip.name}' reads whole, got {encoded.num_truncated} of "
            f"{len(different)} that do not fit its {clip.context_length} tokens. Stretch it or "
            "ask in another form."
        )
    return dict(zip(different, F.normalize(encoded.features_ND.double(), dim=1), strict=True))
