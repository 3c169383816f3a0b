"""A model's hits, picture by picture: what a fair comparison of two models needs.

Two models meet the same pictures, and what is hard for one is hard for the other. The difference on
each picture has a far narrower interval than the two scores have.

N pictures, D embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from longclip_lab.errors import LabError, suggest
from longclip_lab.evaluation import Interval, bootstrap_mean, retrieval, zero_shot
from longclip_lab.models import Clip, encode_images, encode_texts
from longclip_lab.text import drop_sentence
from longclip_lab.training import Run
from longclip_lab.world import TEMPLATES, SingleObjects, classes

CAPTIONS = ("long", "short", "details")


@dataclass(frozen=True)
class Measured:
    """One model's hits by test, in the pictures' order.

    "long", "short" and "details" (the long captions without their first sentence): [N], for each
    picture the mean of its two hits at rank 1, image to text and text to image (0, 0.5 or 1).
    "kind" and "colour": [N], right or wrong zero-shot answers about single things.

    Figures of trade-offs and of stretching take it as a row; both directions then carry the
    interval of their mean, and `plotted_long` names the test that stands for long captions.
    """

    label: str
    stage: str
    hits: dict[str, np.ndarray] = field(repr=False)
    recipe: dict[str, Any] = field(default_factory=dict, repr=False)
    variance_kept: float | None = None
    plotted_long: str = "long"

    def score(self, test: str) -> Interval:
        """The mean of a test's hits. Raises LabError for a test that was not done."""
        return bootstrap_mean(self._of(test))

    def against(self, other: Measured, test: str) -> Interval:
        """The mean difference to `other` on the same pictures, a share from -1 to 1.

        Raises LabError for a test that was not done, or one on another number of pictures.
        """
        own_N, other_N = self._of(test), other._of(test)
        if len(own_N) != len(other_N):
            raise LabError(
                f"Expected the same pictures for '{self.label}' and '{other.label}', got "
                f"{len(own_N)} and {len(other_N)}."
            )
        return bootstrap_mean(own_N - other_N)

    @property
    def long_i2t(self) -> Interval:
        return self.score(self.plotted_long)

    @property
    def short_i2t(self) -> Interval:
        return self.score("short")

    long_t2i, short_t2i = long_i2t, short_i2t

    def _of(self, test: str) -> np.ndarray:
        if test not in self.hits:
            raise LabError(f"'{self.label}' has no test {test!r}. {suggest(test, self.hits)}")
        return self.hits[test]


def measure(
    clip: Clip,
    label: str,
    stage: str,
    pairs: Any,
    singles: SingleObjects | None = None,
    captions: Sequence[str] = CAPTIONS,
    images_ND: torch.Tensor | None = None,
    run: Run | None = None,
) -> Measured:
    """The hits of `clip` on pairs of pictures and captions, and on pictures of single things.

    `stage` is "start", "stretched" or "fine-tuned". `images_ND` are the pictures' features where
    they are known: stretching does not change them. `run` is the fine-tuning that `clip` comes
    from; it adds the recipe and PCM's share of the variance, the mean over the logged steps.

    Raises LabError for captions other than those of CAPTIONS.
    """
    for name in captions:
        if name not in CAPTIONS:
            raise LabError(f"There are no captions {name!r}. {suggest(name, CAPTIONS)}")
    if images_ND is None:
        images_ND = encode_images(clip, pairs.images)
    hits = {name: _hits(clip, images_ND, _texts(pairs, name)) for name in captions}
    for name in ("kind", "colour") if singles is not None else ():
        found = zero_shot(clip, singles.images, singles.labels[name], classes(name), TEMPLATES)
        hits[name] = (found.ranks == 1).astype(float)
    shares = [row["variance_kept"] for row in run.history] if run else []
    is_pcm = run is not None and run.recipe.objective == "pcm"
    return Measured(
        label,
        stage,
        hits,
        recipe=asdict(run.recipe) if run else {},
        variance_kept=sum(shares) / len(shares) if is_pcm else None,
    )


def _texts(pairs: Any, captions: str) -> list[str]:
    if captions == "details":
        return [drop_sentence(text) for text in pairs.long]
    return list(getattr(pairs, captions))


def _hits(clip: Clip, images_ND: torch.Tensor, texts: list[str]) -> np.ndarray:
    found = retrieval(images_ND, encode_texts(clip, texts).features_ND, bootstrap=0)
    return ((found.i2t_ranks == 1).astype(float) + (found.t2i_ranks == 1)) / 2
