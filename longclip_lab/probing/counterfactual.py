"""Counterfactual probes: two captions that differ in a fact; hallucinated captions.

N pairs, D embedding. Chance is 50%. The answer is exact, does not depend on a pool of other
pictures, and separates the position of a word from the salience of the thing it speaks of.

F facts.

S detail sentences of all captions, N pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from torch.nn import functional as F

from longclip_lab.errors import LabError, suggest
from longclip_lab.evaluation import Interval
from longclip_lab.models import Clip, encode_images, encode_texts
from longclip_lab.models.encoding import Images
from longclip_lab.plotting import Plottable
from longclip_lab.stats import wilson
from longclip_lab.world import Caption, Counterfactuals, Scene

# --- The counterfactual probe: two captions differ in one word; which fits the picture? ---

UNREAD = ("half", "leave out")
"""What a table may do with pairs whose changed word the model never saw."""


@dataclass(frozen=True)
class CounterfactualProbe(Plottable):
    """The margin (true minus false cosine similarity) of every pair, and what the pair asked.

    `margins` [N]; a margin of exactly 0 counts as half a win. `unread` [N] is True where the
    changed word lies behind the model's context, so that it never saw it.
    """

    model: str
    margins: np.ndarray
    unread: np.ndarray
    attribute: np.ndarray
    size: np.ndarray
    position: np.ndarray
    source: dict

    @property
    def wins(self) -> np.ndarray:
        return np.where(self.margins == 0, 0.5, self.margins > 0).astype(float)

    def accuracy(self, mask: np.ndarray | None = None) -> Interval:
        """Share of pairs in which the true caption scores higher."""
        wins = self.wins if mask is None else self.wins[mask]
        return wilson(wins.sum(), len(wins))

    def subset(self, mask: np.ndarray) -> CounterfactualProbe:
        """The answers to some of the questions; `mask` [N] is True for those to keep.

        Raises LabError if no question is left.
        """
        mask = np.asarray(mask, dtype=bool)
        if mask.shape != self.margins.shape or not mask.any():
            raise LabError(
                f"expected a mask over {len(self.margins)} questions that keeps at least one, got "
                f"{int(mask.sum())} of {mask.size}."
            )
        parts = ("margins", "unread", "attribute", "size", "position")
        return replace(self, **{part: getattr(self, part)[mask] for part in parts})

    def table(
        self,
        by: Sequence[str] = ("size",),
        edges: Sequence[int] = (1, 21, 41, 77, 111, 249),
        unread: Literal["half", "leave out"] = "half",
    ):
        """A DataFrame of accuracies in percent, grouped by "attribute", "size" and "position".

        Positions are grouped to the half-open ranges between `edges`. A pair whose word lies behind
        the model's context is a tie: half a win by default, which is what guessing would bring.
        Figures by size and attribute leave such pairs out, as "leave out" does here; `unread` in
        the table counts those that are in. Raises LabError for another choice, and if all pairs
        are left out.
        """
        import pandas as pd

        if unread not in UNREAD:
            raise LabError(
                f"expected unread to be a rule, got {unread!r}. {suggest(unread, UNREAD)}"
            )
        if unread == "leave out" and self.unread.any():
            return self.subset(~self.unread).table(by, edges)
        groups = np.digitize(self.position, edges) - 1
        names = np.array([f"{a}-{b - 1}" for a, b in pairwise(edges)])
        order = {
            "size": ["large", "medium", "small"],
            "position": list(names),
            "attribute": list(dict.fromkeys(self.attribute)),
        }
        columns = {"size": self.size, "attribute": self.attribute, "position": names[groups]}
        frame = pd.DataFrame({n: pd.Categorical(columns[n], order[n], ordered=True) for n in by})
        frame["win"], frame["unread"] = self.wins, self.unread
        rows = []
        for key, part in frame.groupby(list(by), observed=True):
            s = wilson(part["win"].sum(), len(part))
            numbers = (100 * s.value, 100 * s.low, 100 * s.high, s.n, int(part["unread"].sum()))
            rows.append((*key, *numbers))
        return pd.DataFrame(rows, columns=[*by, "accuracy", "low", "high", "pairs", "unread"])

    def to_dict(self) -> dict:
        """JSON-able: protocol, counts and the accuracies by each attribute of the question."""
        return {
            "protocol": "counterfactual probe: true against false caption; tied or unread: half",
            "model": self.model,
            "pairs": len(self.margins),
            "unread": int(self.unread.sum()),
            "source": self.source,
            "rows": {
                name: self.table([name]).round(2).astype({name: str}).to_dict("records")
                for name in ("size", "attribute", "position")
            },
        }


class PairScores(NamedTuple):
    """Cosine similarities [N] of pictures with their true and false captions.

    `unread` [N] is True where the model reads the same tokens of both, so that the word in which
    they differ was cut away.
    """

    true: np.ndarray
    false: np.ndarray
    unread: np.ndarray

    @property
    def margins(self) -> np.ndarray:
        """True minus false; exactly 0 where the model read the same."""
        return np.where(self.unread, 0.0, self.true - self.false)


def pair_scores(
    clip: Clip, images: Images, true: Sequence[str], false: Sequence[str], progress: bool = False
) -> PairScores:
    """Score every picture against its two captions. Raises LabError for unequal numbers."""
    if not len(images) == len(true) == len(false):
        raise LabError(
            f"expected a true and a false caption for every picture, got {len(images)} pictures, "
            f"{len(true)} true and {len(false)} false captions."
        )
    images_ND = F.normalize(encode_images(clip, images, progress=progress), dim=1)
    cosines = []
    for texts in (true, false):
        texts_ND = encode_texts(clip, texts, progress=progress).features_ND
        cosines.append((images_ND * F.normalize(texts_ND, dim=1)).sum(1).double().numpy())
    same_NT = clip.tokenize(true).ids_BT == clip.tokenize(false).ids_BT
    return PairScores(*cosines, same_NT.all(1).numpy())


def counterfactual_probe(
    clip: Clip, questions: Counterfactuals, progress: bool = False
) -> CounterfactualProbe:
    """Ask the model which of two captions fits, for every pair of `world.counterfactuals`.

    A caption longer than the model's context is cut as open_clip cuts it; where the changed word is
    cut away, both captions are the same text to the model and the pair is a tie.
    """
    scores = pair_scores(clip, questions.images, questions.true, questions.false, progress)
    return CounterfactualProbe(
        model=clip.name,
        margins=scores.margins,
        unread=scores.unread,
        attribute=np.array(questions.attribute),
        size=np.array(questions.size),
        position=np.asarray(questions.position),
        source=dict(questions.source),
    )


# --- How often captions say what is not so, counted in the world, where every fact is known ---

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


# --- Can a CLIP tell which sentences of a caption are not so? Scores, and captions without ---


@dataclass(frozen=True)
class SentenceScores:
    """How well every sentence about a thing fits its picture, and how often it lies.

    `cosines` and `lies` (the number of wrong facts) [S]; `size` of the thing spoken of [S];
    `caption` and `sentence` say which it is [S].
    """

    cosines: np.ndarray
    lies: np.ndarray
    size: np.ndarray
    caption: np.ndarray
    sentence: np.ndarray

    def __len__(self) -> int:
        return len(self.cosines)

    def of(self, size: str) -> SentenceScores:
        """The sentences about things of one size. Raises LabError if there are none."""
        mask = self.size == size
        if not mask.any():
            raise LabError(f"there are no sentences about {size!r} things.")
        return SentenceScores(**{name: values[mask] for name, values in vars(self).items()})

    def auc(self, rounds: int = 200, seed: int = 0) -> Interval:
        """How often a true sentence scores above one with a lie (the area under the ROC curve).

        0.5 is chance. The interval is a bootstrap over captions: sentences of one are no
        independent samples. Raises LabError unless there are both true sentences and lies.
        """
        from sklearn.metrics import roc_auc_score

        is_true = self._is_true()
        value = roc_auc_score(is_true, self.cosines)
        rng = np.random.default_rng(seed)
        _, number = np.unique(self.caption, return_inverse=True)
        found = []
        for _ in range(rounds):
            drawn = np.bincount(rng.integers(number.max() + 1, size=number.max() + 1),
                                minlength=number.max() + 1)  # fmt: skip
            weights = drawn[number]
            if all(weights[is_true == kind].any() for kind in (True, False)):
                found.append(roc_auc_score(is_true, self.cosines, sample_weight=weights))
        low, high = np.quantile(found, [0.025, 0.975])
        return Interval(float(value), float(low), float(high), len(self))

    def roc(self) -> tuple[np.ndarray, np.ndarray]:
        """Shares of lies and of true sentences that are kept, from no sentence to all.

        Raises LabError unless there are both.
        """
        from sklearn.metrics import roc_curve

        lies_kept, true_kept, _ = roc_curve(self._is_true(), self.cosines)
        return lies_kept, true_kept

    def _is_true(self) -> np.ndarray:
        is_true = self.lies == 0
        if is_true.all() or not is_true.any():
            raise LabError("expected both true sentences and lies; there is only one kind.")
        return is_true


def sentence_scores(
    clip: Clip,
    images: Images,
    captions: Sequence[Caption],
    scenes: Sequence[Scene],
    progress: bool = False,
) -> SentenceScores:
    """Score each sentence about a thing against its picture; the first sentence is left out.

    Raises LabError unless there is a caption and a scene for every picture.
    """
    if not len(images) == len(captions) == len(scenes) > 0:
        raise LabError(
            f"expected a caption and a scene for every picture, got {len(images)} pictures, "
            f"{len(captions)} captions and {len(scenes)} scenes."
        )
    rows = [
        (index, number, sentence)
        for index, caption in enumerate(captions)
        for number, sentence in enumerate(caption.sentences)
        if number and sentence.thing >= 0
    ]
    caption, number, sentences = (list(column) for column in zip(*rows, strict=True))
    images_ND = F.normalize(encode_images(clip, images, progress=progress), dim=1)
    texts = [sentence.text for sentence in sentences]
    texts_SD = F.normalize(encode_texts(clip, texts, progress=progress).features_ND, dim=1)
    return SentenceScores(
        cosines=(images_ND[caption] * texts_SD).sum(1).double().numpy(),
        lies=np.array([sum(not fact.true for fact in s.facts) for s in sentences]),
        size=np.array(
            [scenes[i].things[s.thing].size for i, s in zip(caption, sentences, strict=True)]
        ),
        caption=np.array(caption),
        sentence=np.array(number),
    )


def drop_lowest(
    captions: Sequence[Caption], found: SentenceScores, share: float, by: np.ndarray | None = None
) -> tuple[list[str], np.ndarray]:
    """The captions' texts without a share of their scored sentences, and which are kept [S].

    The lowest of all captions go, by `by` [S], by default the cosines; ties in their order. What
    was not scored stays. Raises LabError for a share outside 0 to 1 and for other numbers.
    """
    values = found.cosines if by is None else np.asarray(by)
    if not 0 <= share <= 1 or values.shape != found.cosines.shape:
        raise LabError(
            f"expected a share from 0 to 1 and {len(found)} values, got {share} and {values.size}."
        )
    kept = np.ones(len(found), dtype=bool)
    kept[np.argsort(values, kind="stable")[: round(share * len(found))]] = False
    gone = set(zip(found.caption[~kept].tolist(), found.sentence[~kept].tolist(), strict=True))
    texts = [
        " ".join(s.text for number, s in enumerate(caption.sentences) if (i, number) not in gone)
        for i, caption in enumerate(captions)
    ]
    return texts, kept
