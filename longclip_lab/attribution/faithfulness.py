"""Do the maps mean anything? Every method against boxes, curves, shuffled weights and chance."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from longclip_lab.attribution.measuring import (
    BASELINES,
    RANDOM_ORDERS,
    TRUE_WORD,
    CurveTest,
    Maps,
    baseline,
    pointing_scores,
    weights_score,
)
from longclip_lab.attribution.methods import (
    PATCH_METHODS,
    TOKEN_METHODS,
    Method,
    patch_maps,
    token_maps,
)
from longclip_lab.attribution.questions import (
    Questions,
    Side,
    photographed_things,
    world_pictures,
    world_things,
    world_words,
)
from longclip_lab.attribution.sanity import randomised
from longclip_lab.attribution.verdicts import Faithfulness, Score
from longclip_lab.data import BoxedPictures
from longclip_lab.errors import COUNT, SEED, LabError, suggest
from longclip_lab.evaluation.records import commit, model_hash, versions
from longclip_lab.models import Clip

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
    boxed: BoxedPictures | None = None,
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
    clip: Clip, n: int, seed: int, boxed: BoxedPictures | None, sides: Sequence[Side]
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
