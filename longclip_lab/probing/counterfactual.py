"""The counterfactual probe: two captions differ in one word; which fits the picture?

N pairs, D embedding. Chance is 50%. The answer is exact, does not depend on a pool of other
pictures, and separates the position of a word from the salience of the thing it speaks of.
"""

from __future__ import annotations

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
from longclip_lab.world import Counterfactuals

UNREAD = ("half", "leave out")
"""What a table may do with pairs whose changed word the model never saw."""


def wilson(wins: float, n: int, z: float = 1.959964) -> Interval:
    """Wilson's 95% interval for a proportion (Wilson 1927); `wins` may hold halves.

    >>> wilson(50, 100)
    Interval(value=0.5, low=0.40383..., high=0.59616..., n=100)
    """
    share = wins / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return Interval(float(share), float(centre - half), float(centre + half), n)


def newcombe(one: Interval, other: Interval) -> Interval:
    """The difference of two independent proportions, `one` minus `other`, with a 95% interval.

    Newcombe 1998, method 10; both are Wilson's intervals. The example is his first.

    >>> newcombe(wilson(56, 70), wilson(48, 80))
    Interval(value=0.2..., low=0.0524..., high=0.3338..., n=70)
    """
    gap = one.value - other.value
    down = np.hypot(one.value - one.low, other.high - other.value)
    up = np.hypot(one.high - one.value, other.value - other.low)
    return Interval(float(gap), float(gap - down), float(gap + up), min(one.n, other.n))


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
