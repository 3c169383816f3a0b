"""Can a CLIP tell which sentences of a caption are not so? Scores, and captions without some.

S detail sentences of all captions, N pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch.nn import functional as F

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval
from longclip_lab.models import Clip, encode_images, encode_texts
from longclip_lab.models.encoding import Images
from longclip_lab.world import Caption, Scene


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
