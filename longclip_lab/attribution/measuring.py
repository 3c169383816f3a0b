"""From maps and questions to scores: one function for each group of criteria.

Q questions, K places of a map, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch.nn.functional as F

from longclip_lab.attribution.curves import (
    FILLS,
    STEPS,
    Mode,
    Similarity,
    areas,
    picture_similarity,
    text_similarity,
)
from longclip_lab.attribution.pointing import energy_inside, paired, peak_inside, proportion
from longclip_lab.attribution.questions import Questions, Side
from longclip_lab.attribution.sanity import UNCHANGED, rank_correlation
from longclip_lab.attribution.values import PatchMap, TokenMap
from longclip_lab.attribution.verdicts import ALL, Score
from longclip_lab.evaluation import Interval
from longclip_lab.models import Clip, encode_images, encode_texts, pixels

Maps = Sequence[PatchMap] | Sequence[TokenMap]
RANDOM_ORDERS = 8
RANDOM, CENTRE, TRUE_BOX, TRUE_WORD = "random map", "centre", "true box", "true word"
BASELINES: dict[Side, list[str]] = {
    "patches": [RANDOM, CENTRE, TRUE_BOX],
    "tokens": [RANDOM, TRUE_WORD],
}


def pointing_scores(method: str, questions: Questions, maps: Maps, seed: int = 0) -> list[Score]:
    """Pointing, its two controls and energy; for all questions and for every size."""
    places = [questions.place(q, one) for q, one in enumerate(maps)]
    hits_Q = np.array([peak_inside(place.scores, place.inside) for place in places])
    energy_Q = np.array([energy_inside(place.scores, place.share) for place in places])
    chance_Q = np.array([place.inside.mean() for place in places])
    area_Q = np.array([place.share.mean() for place in places])
    other_Q = np.array(
        [
            np.mean([_hit_by_other(questions, q, maps[j]) for j in others]) if others else np.nan
            for q, others in enumerate(questions.others)
        ]
    )
    levels = {"energy": (energy_Q, area_Q), "question": (hits_Q, other_Q)}
    if questions.side == "patches":
        centre = baseline(CENTRE, questions, maps, seed)
        centre_Q = [
            peak_inside(one.scores, one.inside)
            for one in (questions.place(q, found) for q, found in enumerate(centre))
        ]
        levels["centre"] = (hits_Q, np.array(centre_Q))
    scores = []
    for size in (ALL, *dict.fromkeys(questions.size)):
        rows = np.flatnonzero((questions.size == size) | (size == ALL))
        hits = proportion(hits_Q[rows], questions.group[rows], seed)
        chance = float(chance_Q[rows].mean())
        gain = Interval(hits.value - chance, hits.low - chance, hits.high - chance, hits.n)
        facts = (method, questions.side)
        scores.append(Score(*facts, "pointing", size, hits.value, chance, gain))
        for criterion, (values_Q, level_Q) in levels.items():
            known = rows[~np.isnan(level_Q[rows])]
            if len(known):
                gain = paired(values_Q[known] - level_Q[known], questions.group[known], seed)
                value, level = float(values_Q[known].mean()), float(level_Q[known].mean())
                scores.append(Score(*facts, criterion, size, value, level, gain))
    return scores


def _hit_by_other(questions: Questions, number: int, found: PatchMap | TokenMap) -> float:
    place = questions.place(number, found)
    return peak_inside(place.scores, place.inside)


def baseline(name: str, questions: Questions, like: Maps, seed: int = 0) -> list:
    """Maps made without a model, on the grids and tokens of those in `like`."""
    rng = np.random.default_rng((seed, 4))
    made = []
    for number, found in enumerate(like):
        if name == RANDOM:
            scores = rng.random(found.scores.shape)
        elif name == CENTRE:
            middle = np.array(found.image.shape[1::-1]) / 2
            scores = -((found.centres() - middle) ** 2).sum(-1).round(6)
        elif name == TRUE_BOX:
            scores = questions.place(number, found).share.reshape(found.grid)
        else:
            scores = found.within(*questions.answers[number][0]).astype(float)
        facts = (name, found.model)
        if isinstance(found, PatchMap):
            made.append(PatchMap(*facts, found.image, scores, found.text, shift=found.shift))
        else:
            made.append(TokenMap(*facts, found.text, found.spans, scores, found.unread))
    return made


@dataclass
class CurveTest:
    """Deletion and insertion of Q pictures and texts, against random orders.

    What all methods share is computed once: the features, the ends of the curves, and the random
    orders for each size of map. `groups` [Q] and `size` [Q] are those of the questions.
    """

    clip: Clip
    side: Side
    images: np.ndarray
    texts: list[str]
    groups: np.ndarray
    size: np.ndarray
    steps: int = STEPS
    seed: int = 0
    _similarities: dict[tuple, Similarity] = field(default_factory=dict)
    _random: dict[tuple, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._pixels = pixels(self.clip, self.images)
        self._images_QD = F.normalize(encode_images(self.clip, self.images), dim=1)
        self._texts_QD = F.normalize(encode_texts(self.clip, self.texts).features_ND, dim=1)

    def scores(self, method: str, maps: Maps) -> list[Score]:
        """Both criteria. The unit is what the whole picture (text) adds to an emptied one's
        similarity, mean over questions: 0 is the emptied, 1 the whole."""
        scores = []
        flat = [one.scores.ravel() for one in maps]
        for mode in ("deletion", "insertion"):
            similarity = self._similarity(mode, maps)
            empty, unit = self.unit(mode, maps)
            found_Q = (areas(flat, similarity, mode, self.steps, self.seed) - empty) / unit
            random_Q = (self._random_areas(mode, maps, similarity) - empty) / unit
            sign = -1 if mode == "deletion" else 1
            for size in (ALL, *dict.fromkeys(self.size)):
                rows = np.flatnonzero((self.size == size) | (size == ALL))
                gain_Q = sign * (found_Q - random_Q)[rows]
                gain = paired(gain_Q, self.groups[rows], self.seed)
                value, level = float(found_Q[rows].mean()), float(random_Q[rows].mean())
                scores.append(Score(method, self.side, mode, size, value, level, gain))
        return scores

    def unit(self, mode: Mode, maps: Maps) -> tuple[float, float]:
        """The mean similarity of the emptied, and what the whole adds to it.

        A model for which emptied pictures are as similar as whole ones has no such unit; then
        areas stay cosines.
        """
        similarity = self._similarity(mode, maps)
        numbers = range(len(maps))
        whole = similarity(numbers, [np.ones(one.scores.size, bool) for one in maps]).mean()
        empty = similarity(numbers, [np.zeros(one.scores.size, bool) for one in maps]).mean()
        return (float(empty), float(whole - empty)) if whole > empty else (0.0, 1.0)

    def _similarity(self, mode: Mode, maps: Maps) -> Similarity:
        patches = self.side == "patches"
        key = (mode, maps[0].grid, maps[0].shift) if patches else ("tokens",)
        if key not in self._similarities:
            if self.side == "patches":
                made = picture_similarity(
                    self.clip,
                    self._pixels,
                    self._texts_QD,
                    maps[0].grid,
                    FILLS[mode],
                    maps[0].shift,
                )
            else:
                tokens = self.clip.tokenize(self.texts)
                ids = [
                    row[1 : length - 1].numpy()
                    for row, length in zip(tokens.ids_BT, tokens.lengths_B.tolist(), strict=True)
                ]
                made = text_similarity(self.clip, ids, self._images_QD)
            self._similarities[key] = made
        return self._similarities[key]

    def _random_areas(self, mode: Mode, maps: Maps, similarity: Similarity) -> np.ndarray:
        key = (mode, getattr(maps[0], "shift", None), *(one.scores.size for one in maps))
        if key not in self._random:
            rng = np.random.default_rng((self.seed, 5))
            orders = [[rng.random(one.scores.size) for one in maps] for _ in range(RANDOM_ORDERS)]
            found = [areas(order, similarity, mode, self.steps, self.seed) for order in orders]
            self._random[key] = np.mean(found, axis=0)
        return self._random[key]


def weights_score(
    method: str, side: Side, maps: Maps, shuffled: Maps, groups: np.ndarray, seed: int = 0
) -> Score:
    """Rank correlation of the maps with those of a model whose tower was shuffled."""
    correlation_Q = np.array(
        [
            rank_correlation(one.scores, other.scores)
            for one, other in zip(maps, shuffled, strict=True)
        ]
    )
    found = paired(correlation_Q, groups, seed)
    farthest, crosses = max(-found.low, found.high), found.low < 0 < found.high
    nearest = 0.0 if crosses else min(abs(found.low), abs(found.high))
    gain = Interval(
        UNCHANGED - abs(found.value), UNCHANGED - farthest, UNCHANGED - nearest, found.n
    )
    return Score(method, side, "weights", ALL, found.value, UNCHANGED, gain)
