"""How often captions say what is not so, counted in the world, where every fact is known.

F facts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval
from longclip_lab.probing.counterfactual import wilson
from longclip_lab.world import Caption, Scene

EDGES = (1, 21, 41, 77, 111, 249)
SUMMARY, THINGS, BACKGROUND = "summary", "things", "background"


@dataclass(frozen=True)
class Hallucination:
    """Every fact of a set of captions, and whether it is so.

    `wrong`, `attribute`, `part` ("summary", "things" or "background"), the `position` (token) in
    the caption, and the numbers of the `caption` and of its `sentence` [F]. `named` are the things
    that a caption names, and `absent` those of them of which the picture has none, both by caption.
    """

    wrong: np.ndarray
    attribute: np.ndarray
    part: np.ndarray
    caption: np.ndarray
    sentence: np.ndarray
    position: np.ndarray
    named: np.ndarray
    absent: np.ndarray

    def rate(self, part: str | None = None, attribute: str | None = None) -> Interval:
        """The share of facts that are wrong. Raises LabError if there are none of this kind."""
        asked = np.ones(len(self.wrong), dtype=bool)
        asked &= True if part is None else self.part == part
        asked &= True if attribute is None else self.attribute == attribute
        return _share(self.wrong[asked], "facts")

    def sentences(self, part: str = THINGS) -> Interval:
        """The share of sentences with a wrong fact in them."""
        of_part = self.part == part
        pairs = np.stack([self.caption[of_part], self.sentence[of_part]])
        _, number = np.unique(pairs, axis=1, return_inverse=True)
        wrong = np.bincount(number.ravel(), weights=self.wrong[of_part])
        return _share(wrong > 0, "sentences")

    def captions(self) -> Interval:
        """The share of captions with a wrong fact in them."""
        return _share(np.bincount(self.caption, weights=self.wrong) > 0, "captions")

    def by_position(self, edges: Sequence[int] = EDGES):
        """A DataFrame with a row for each range of tokens between `edges`: facts of any part, and
        how many are wrong, in percent with a 95% interval."""
        import pandas as pd

        rows = {}
        for start, end in pairwise(edges):
            there = (self.position >= start) & (self.position < end)
            if there.any():
                found = _share(self.wrong[there], "facts")
                rows[f"{start}-{end - 1}"] = _percents(found)
        return pd.DataFrame.from_dict(rows, orient="index").rename_axis("token")

    @property
    def chair_i(self) -> float:
        """Of the things that are named, the share that the picture does not have (CHAIR_i of
        Rohrbach et al. 2018, "Object Hallucination in Image Captioning"); a kind counts once."""
        return float(self.absent.sum() / self.named.sum())

    @property
    def chair_s(self) -> float:
        """The share of captions that name such a thing (CHAIR_s)."""
        return float((self.absent > 0).mean())

    def table(self):
        """A DataFrame with a row for each attribute of things: facts, and how many are wrong."""
        import pandas as pd

        rows = {}
        for name in dict.fromkeys(self.attribute[self.part == THINGS]):
            rows[str(name)] = _percents(self.rate(THINGS, name))
        return pd.DataFrame.from_dict(rows, orient="index")


def hallucination(captions: Sequence[Caption], scenes: Sequence[Scene]) -> Hallucination:
    """Count the wrong facts of captions (`WorldPairs.long_captions`) of these scenes.

    A fact is wrong where its writer made it up (`Fact.true`). The first sentence counts as the
    summary, sentences about no thing as background.
    Raises LabError for no captions, or another number of scenes.

    >>> from longclip_lab import world
    >>> pairs = world.pairs(2, hallucination=1.0)
    >>> found = hallucination(pairs.long_captions, pairs.scenes)
    >>> found.rate("summary").value, found.rate("things").value
    (0.0, 1.0)
    """
    if len(captions) == 0 or len(captions) != len(scenes):
        raise LabError(
            f"expected captions and the scene of each, got {len(captions)} and {len(scenes)}."
        )
    rows = [
        (not fact.true, fact.attribute, _part(number, sentence.thing), index, number,
         fact.tokens[0])
        for index, caption in enumerate(captions)
        for number, sentence in enumerate(caption.sentences)
        for fact in sentence.facts
    ]  # fmt: skip
    counts = [_things(caption, scene) for caption, scene in zip(captions, scenes, strict=True)]
    named, absent = (np.array(column) for column in zip(*counts, strict=True))
    return Hallucination(*map(np.array, zip(*rows, strict=True)), named, absent)


def truth_margin(rate: float, values: int) -> float:
    """How much better the truth fits than one lie, in nats, if `rate` of what is told is wrong.

    Lies are spread evenly over the other values of an attribute of so many values, all equally
    frequent. The truth is told with probability 1 - h, each of the v - 1 lies with h / (v - 1). A
    contrastive loss is least where the similarity of a picture and a text (times the logit scale)
    is, up to a constant, the logarithm of p(text | picture) / p(text) (van den Oord et al. 2018,
    section 2.3); so the two similarities then differ by ln((1 - h) (v - 1) / h). Writers who each
    have one lie make it an attribute of so many values and one.
    Raises LabError for a rate that is not between 0 and 1 and for fewer than two values.

    >>> truth_margin(0.5, 3), truth_margin(0.6, 2)
    (0.693..., -0.405...)
    """
    _check_values(values)
    if not 0 < rate < 1:
        raise LabError(f"expected a rate of lies between 0 and 1, got {rate}.")
    return math.log((1 - rate) * (values - 1) / rate)


def majority_limit(values: int) -> float:
    """The rate of lies above which an attribute of so many values is learned the wrong way round.

    There `truth_margin` is 0: beyond (v - 1) / v every lie fits better than the truth.
    Raises LabError for fewer than two values.

    >>> majority_limit(3), majority_limit(12)
    (0.666..., 0.916...)
    """
    _check_values(values)
    return (values - 1) / values


def _check_values(values: int) -> None:
    if values < 2:
        raise LabError(f"expected an attribute with at least 2 values, got {values}.")


def _part(sentence: int, thing: int) -> str:
    if sentence == 0:
        return SUMMARY
    return BACKGROUND if thing < 0 else THINGS


def _things(caption: Caption, scene: Scene) -> tuple[int, int]:
    """How many kinds a caption names (each once), and how many of them are not there."""
    named = {fact.value for fact in caption.facts if fact.attribute == "kind"}
    return len(named), len(named - {thing.kind for thing in scene.things})


def _percents(found: Interval) -> dict[str, float]:
    percents = (round(100 * v, 1) for v in (found.value, found.low, found.high))
    return dict(zip(("wrong", "low", "high"), percents, strict=True)) | {"facts": found.n}


def _share(hits: np.ndarray, what: str) -> Interval:
    if len(hits) == 0:
        raise LabError(f"there are no such {what} in these captions.")
    return wilson(float(hits.sum()), len(hits))
