"""Faithfulness of maps: boxes, deletion and insertion curves, shuffled weights, chance.

Petsiuk et al. 2018 (RISE), Section 4.1. Deletion takes the highest places out of the whole first:
the sooner the similarity falls, the smaller the area under its curve, the better. Insertion puts
them into the emptied whole first: the larger the area, the better. Emptied pictures are no
pictures the model was trained on, so only the difference to a random order means something.

Q questions, K places (patches or tokens) of one of them, E steps, S side, D embedding, T tokens.

Adebayo et al. 2018, "Sanity Checks for Saliency Maps", Section 4. A method whose maps look the
same on a tower without learned weights shows the picture, not the model.

Q questions, K places of a map, D embedding.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms.functional import gaussian_blur
from tqdm import tqdm

from longclip_lab.attribution.grounding import (
    Questions,
    Side,
    energy_inside,
    paired,
    peak_inside,
    photographed_things,
    proportion,
    world_pictures,
    world_things,
    world_words,
)
from longclip_lab.attribution.maps import (
    PATCH_METHODS,
    TOKEN_METHODS,
    Method,
    PatchMap,
    TokenMap,
    patch_maps,
    patch_of_pixels,
    token_maps,
)
from longclip_lab.attribution.verdicts import ALL, Faithfulness, Score
from longclip_lab.data import BoxedImages
from longclip_lab.errors import COUNT, SEED, LabError, suggest
from longclip_lab.evaluation import Interval
from longclip_lab.evaluation.records import commit, model_hash, versions
from longclip_lab.models import Clip, encode_images, encode_texts, pixels
from longclip_lab.models.encoding import check_finite

# --- Deletion and insertion: what the similarity does as the places a map names are taken or ---

Mode = Literal["deletion", "insertion"]
Fill = Literal["grey", "blur"]
Similarity = Callable[[Sequence[int], Sequence[np.ndarray]], np.ndarray]
"""Numbers of questions, and which places of each are kept (bool, flat), to their similarities."""
FILLS: dict[Mode, Fill] = {"deletion": "grey", "insertion": "blur"}
STEPS = 12


def ranks(scores_K: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The place of every score in falling order, 0 the highest; equal ones in random order.

    >>> ranks(np.array([0.2, 0.9, 0.5]), np.random.default_rng(0)).tolist()
    [2, 0, 1]
    """
    shuffled = rng.permutation(len(scores_K))
    order = shuffled[np.argsort(-scores_K[shuffled], kind="stable")]
    places = np.empty(len(scores_K), dtype=int)
    places[order] = np.arange(len(scores_K))
    return places


def areas(
    scores: Sequence[np.ndarray],
    similarity: Similarity,
    mode: Mode,
    steps: int = STEPS,
    seed: int = 0,
) -> np.ndarray:
    """The area under every question's deletion or insertion curve: [Q], in units of similarity.

    `scores` are the maps, flat. The curve has `steps` + 1 points (fewer where a map has fewer
    places), from nothing taken or given to everything, joined by straight lines.
    """
    COUNT.check("steps", steps)
    rng = np.random.default_rng(seed)
    questions, kept, shares = [], [], []
    for number, scores_K in enumerate(scores):
        rank_K = ranks(np.asarray(scores_K, dtype=float), rng)
        for count in np.unique(np.linspace(0, len(rank_K), steps + 1).round().astype(int)):
            first_K = rank_K < count
            questions.append(number)
            kept.append(~first_K if mode == "deletion" else first_K)
            shares.append(count / len(rank_K))
    values, shares = similarity(questions, kept), np.array(shares)
    numbers = np.array(questions)
    return np.array(
        [_trapezoid(values[numbers == q], shares[numbers == q]) for q in range(len(scores))]
    )


def _trapezoid(y: np.ndarray, x: np.ndarray) -> float:
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum())


def image_similarity(
    clip: Clip,
    pixels_Q3SS: torch.Tensor,
    texts_QD: torch.Tensor,
    grid: tuple[int, int],
    fill: Fill,
    shift: tuple[float, float] = (0.0, 0.0),
    batch_size: int = 64,
) -> Similarity:
    """Cosine similarity of pictures of which some patches are kept and the others filled.

    `texts_QD` are the features of the questions' texts, normalised. Whole and emptied pictures are
    encoded once.
    """
    filled_Q3SS = filled(pixels_Q3SS, grid, fill)
    rows_S, columns_S = patch_of_pixels(grid, pixels_Q3SS.shape[-1], shift)
    known: dict[tuple[int, bool], float] = {}

    @torch.no_grad()
    def encode(questions: np.ndarray, kept_BK: np.ndarray) -> np.ndarray:
        mask_B1hw = torch.from_numpy(kept_BK).view(-1, 1, *grid)
        mask_B1SS = mask_B1hw[..., rows_S[:, None], columns_S[None, :]]
        rows = torch.from_numpy(questions)
        pictures = torch.where(mask_B1SS, pixels_Q3SS[rows], filled_Q3SS[rows])
        features_BD = F.normalize(_finite(clip, clip.encode_image(pictures), "pictures"), dim=1)
        return (features_BD * texts_QD[rows]).sum(1).double().numpy()

    def similarity(questions: Sequence[int], kept: Sequence[np.ndarray]) -> np.ndarray:
        return _known_ends(known, questions, kept, encode, batch_size)

    return similarity


def text_similarity(
    clip: Clip,
    ids: Sequence[np.ndarray],
    images_QD: torch.Tensor,
    batch_size: int = 64,
) -> Similarity:
    """Cosine similarity of pictures and texts of which some tokens are left out.

    `ids` are each text's token ids without start and end; tokens that stay move together. The
    features of the pictures are normalised.
    """
    tokenizer = clip.tokenizer
    known: dict[tuple[int, bool], float] = {}

    @torch.no_grad()
    def encode(questions: np.ndarray, kept: Sequence[np.ndarray]) -> np.ndarray:
        texts = [ids[q][keep] for q, keep in zip(questions, kept, strict=True)]
        ids_BT = np.full((len(texts), 2 + max(map(len, texts))), tokenizer.pad_id)
        for row, text in enumerate(texts):
            ids_BT[row, : len(text) + 2] = [tokenizer.start_id, *text, tokenizer.end_id]
        features_BD = _finite(clip, clip.encode_text(torch.from_numpy(ids_BT)), "texts")
        rows = torch.from_numpy(questions)
        return (F.normalize(features_BD, dim=1) * images_QD[rows]).sum(1).double().numpy()

    def similarity(questions: Sequence[int], kept: Sequence[np.ndarray]) -> np.ndarray:
        return _known_ends(known, questions, kept, encode, batch_size)

    return similarity


def filled(pixels_Q3SS: torch.Tensor, grid: tuple[int, int], fill: Fill) -> torch.Tensor:
    """Emptied pictures: the mean colour of the training pictures, or a strong blur.

    The blur's standard deviation is one patch. (Petsiuk et al. delete to grey and insert into a
    blur, for which inserted sharp edges look less like things.) Raises LabError for another fill.
    """
    if fill == "grey":
        return torch.zeros_like(pixels_Q3SS)  # 0 is the mean after normalisation
    if fill == "blur":
        sigma = pixels_Q3SS.shape[-1] / min(grid)
        radius = min(int(2 * sigma), pixels_Q3SS.shape[-1] // 2 - 1)
        return gaussian_blur(pixels_Q3SS, [2 * radius + 1] * 2, [sigma, sigma])
    raise LabError(f"expected fill grey or blur, got '{fill}'.")


def _finite(clip: Clip, features_BD: torch.Tensor, what: str) -> torch.Tensor:
    return check_finite(features_BD.float().cpu(), what, clip.name)


def _known_ends(
    known: dict[tuple[int, bool], float],
    questions: Sequence[int],
    kept: Sequence[np.ndarray],
    encode: Callable[[np.ndarray, np.ndarray], np.ndarray],
    batch_size: int,
) -> np.ndarray:
    """`encode` in batches; what is kept whole or emptied is looked up after the first time."""
    ends = [
        (q, bool(keep.all())) if keep.all() or not keep.any() else None
        for q, keep in zip(questions, kept, strict=True)
    ]
    values = np.array([known.get(end, np.nan) if end else np.nan for end in ends])
    # Masks of about the same size side by side: the texts of a batch are then about equally long.
    missing = sorted(np.flatnonzero(np.isnan(values)), key=lambda i: int(kept[i].sum()))
    for start in range(0, len(missing), batch_size):
        rows = missing[start : start + batch_size]
        numbers = np.array([questions[i] for i in rows])
        masks = [kept[i] for i in rows]
        same = len({len(mask) for mask in masks}) == 1
        values[rows] = encode(numbers, np.stack(masks) if same else masks)
    known.update({end: value for end, value in zip(ends, values, strict=True) if end})
    return values


# --- The randomised-weights check: does a map depend on what the model has learned? ---

UNCHANGED = 0.5
"""Maps whose rank correlation with those of the randomised model reaches this hardly changed."""


def randomised(clip: Clip, tower: Literal["image", "text"], seed: int = 0) -> Clip:
    """A copy of the model with the weights of one tower shuffled.

    Every weight tensor keeps its values and loses their order, so that the sizes of weights and
    activations stay like the trained tower's whatever its architecture. The original and the
    caller's random state are left alone.
    """
    model = deepcopy(clip.model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            part = name.split(".")[0]
            if part.startswith("logit_") or (part == "visual") != (tower == "image"):
                continue
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    return replace(clip, model=model, name=f"{clip.name}, {tower} tower randomised")


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation of two maps; 0 where one of them is the same everywhere.

    >>> rank_correlation(np.array([1, 2, 9]), np.array([0.3, 0.2, 0.1]))
    -1.0
    """
    from scipy.stats import rankdata  # takes longer to import than all of this room

    first, second = (rankdata(scores.ravel()) for scores in (one, other))
    first, second = first - first.mean(), second - second.mean()
    size = np.sqrt((first**2).sum() * (second**2).sum())
    return round(float((first * second).sum() / size), 12) if size else 0.0


# --- From maps and questions to scores: one function for each group of criteria ---

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
                made = image_similarity(
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


# --- Do the maps mean anything? Every method against boxes, curves, shuffled weights and ---

BATCH = 128
DRAWS = 3
REGISTRIES: dict[Side, dict[str, Method]] = {"patches": PATCH_METHODS, "tokens": TOKEN_METHODS}
CARRIED_OUT = {"patches": patch_maps, "tokens": token_maps}
TOWERS = {"patches": "image", "tokens": "text"}


def faithfulness(
    clip: Clip,
    n: int = 100,
    methods: Sequence[str] | None = None,
    seed: int = 0,
    boxed: BoxedImages | None = None,
    progress: bool = False,
) -> Faithfulness:
    """Test attribution methods on one model: who points at what it was asked about?

    Args:
        n: number of pictures. On the world each is asked about one thing of each size (pointing
            and energy); curves and shuffled weights take one question a picture.
        methods: names of PATCH_METHODS and TOKEN_METHODS; all of them by default.
        seed: of the questions, the random orders, the shuffled weights and the bootstrap. The
            world's pictures are always the first `n` of its probes.
        boxed: photographs with boxes (`data.coco_boxes`) instead of the world; patches only.

    A method that cannot be run on this model is kept in `failed` with its message. Intervals are
    95%, for each criterion by itself.

    Raises LabError for an unknown method and for too few pictures.
    """
    COUNT.check("n, the number of pictures,", n)
    SEED.check("The seed", seed)
    began = time.perf_counter()
    chosen = _chosen(methods, ["patches"] if boxed else ["patches", "tokens"])
    asked, curves = _asked(clip, n, seed, boxed, list(chosen))
    scores: list[Score] = []
    seconds: dict[Side, dict[str, float]] = {side: {} for side in chosen}
    failed: dict[Side, dict[str, str]] = {side: {} for side in chosen}
    total = sum(len(names) for names in chosen.values())
    with tqdm(total=total, unit="method", disable=not progress) as bar:
        for side, names in chosen.items():
            test = _Test(clip, side, asked[side], curves[side], seed)
            for name in names:
                bar.set_description(f"{name} ({side})")
                try:
                    found, seconds[side][name] = test.run(name)
                    scores += found
                except LabError as error:
                    failed[side][name] = str(error)
                bar.update()
            scores += test.baselines()
    facts = {
        "n": n,
        "seed": seed,
        "model_hash": model_hash(clip.model),
        "device": str(clip.device),
        "questions": {side: _counts(questions) for side, questions in asked.items()},
        "random_orders": RANDOM_ORDERS,
        "shuffled_towers": DRAWS,
        "commit": commit(),
        "versions": versions(),
        "seconds": round(time.perf_counter() - began, 1),
    }
    return Faithfulness(
        clip.name, scores, seconds, {side: BASELINES[side] for side in chosen}, failed, facts
    )


@dataclass
class _Test:
    """One side of one model: its questions, and what all methods share."""

    clip: Clip
    side: Side
    questions: Questions
    curves: CurveTest
    seed: int
    first: Maps | None = None
    first_on_curves: Maps | None = None

    def __post_init__(self) -> None:
        self.subset = self.questions.one_a_group(self.seed)
        seeds = range(DRAWS * self.seed, DRAWS * (self.seed + 1))
        self.shuffled = [randomised(self.clip, TOWERS[self.side], seed) for seed in seeds]

    def run(self, name: str) -> tuple[list[Score], float]:
        """A method's scores, and the seconds that one map takes."""
        images, texts = self.questions.asked(), self.questions.texts
        self._maps(name, self.clip, images[:2], texts[:2])  # what is loaded or compiled first
        on_cpu = self.clip.device.type == "cpu"
        clock = time.process_time if on_cpu else time.perf_counter  # others may be working too
        began = clock()
        maps = self._maps(name, self.clip, images, texts)
        seconds = (clock() - began) / len(maps)
        scores = pointing_scores(name, self.questions, maps, self.seed)
        on_curves = self._on_curves(name, maps)
        scores += self.curves.scores(name, on_curves)
        own, others = [], []
        for number, shuffled in enumerate(self.shuffled):
            rows = self.subset[number :: len(self.shuffled)]
            own += [maps[i] for i in rows]
            others += self._maps(name, shuffled, images[rows], [texts[i] for i in rows])
        rows = np.concatenate([self.subset[i :: len(self.shuffled)] for i in range(DRAWS)])
        groups = self.questions.group[rows]
        scores.append(weights_score(name, self.side, own, others, groups, self.seed))
        self.first, self.first_on_curves = self.first or maps, self.first_on_curves or on_curves
        return scores, seconds

    def baselines(self) -> list[Score]:
        """Scores of maps made without the model, if any method could be run."""
        scores: list[Score] = []
        if self.first is None:
            return scores
        for name in BASELINES[self.side]:
            maps = baseline(name, self.questions, self.first, self.seed)
            scores += pointing_scores(name, self.questions, maps, self.seed)
            if self.side == "patches":
                scores += self.curves.scores(name, [maps[i] for i in self.subset])
            elif name != TRUE_WORD:  # all words of the texts for the curves are true
                made = baseline(name, self.questions, self.first_on_curves, self.seed)
                scores += self.curves.scores(name, made)
        return scores

    def _on_curves(self, name: str, maps: Maps) -> Maps:
        if self.side == "patches":
            return [maps[i] for i in self.subset]
        return self._maps(name, self.clip, self.curves.images, self.curves.texts)

    def _maps(self, name: str, clip: Clip, images: np.ndarray, texts: Sequence[str]) -> list:
        maps = []
        for start in range(0, len(texts), BATCH):
            rows = slice(start, start + BATCH)
            maps += CARRIED_OUT[self.side](clip, images[rows], list(texts[rows]), method=name)
        return maps


def _chosen(methods: Sequence[str] | None, sides: Sequence[Side]) -> dict[Side, list[str]]:
    """The methods to run on each side, in the registries' order."""
    known = sorted({name for side in sides for name in REGISTRIES[side]})
    for name in methods or ():
        if name not in known:
            raise LabError(f"There is no method '{name}' to test. {suggest(name, known)}")
    chosen = {
        side: [name for name in REGISTRIES[side] if not methods or name in methods]
        for side in sides
    }
    return {side: names for side, names in chosen.items() if names}


def _asked(
    clip: Clip, n: int, seed: int, boxed: BoxedImages | None, sides: Sequence[Side]
) -> tuple[dict[Side, Questions], dict[Side, CurveTest]]:
    """Questions for every side, and what curves are drawn of."""
    if boxed is not None:
        asked: dict[Side, Questions] = {"patches": photographed_things(clip, boxed, n, seed)}
    else:
        drawn = world_pictures(n)
        makers = {"patches": world_things, "tokens": world_words}
        asked = {side: makers[side](clip, drawn, seed) for side in sides}
    curves = {}
    for side, questions in asked.items():
        if side == "patches":
            rows = questions.one_a_group(seed)
            texts = [questions.texts[i] for i in rows]
            images, groups = questions.asked()[rows], questions.group[rows]
            sizes = questions.size[rows]
        else:
            images, texts, groups = questions.images, list(drawn.short), np.arange(len(drawn))
            sizes = np.full(len(drawn), "summary")
        curves[side] = CurveTest(clip, side, images, texts, groups, sizes, seed=seed)
    return asked, curves


def _counts(questions: Questions) -> dict[str, Any]:
    return {
        "questions": len(questions),
        "pictures": len(set(questions.picture.tolist())),
        "by_size": dict(Counter(questions.size.tolist())),
        "skipped": questions.skipped,
        "source": questions.source,
    }
