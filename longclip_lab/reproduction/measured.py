"""A model's hits, picture by picture: what a fair comparison of two models needs.

Two models meet the same pictures, and what is hard for one is hard for the other. The difference on
each picture has a far narrower interval than the two scores have.

N pictures, D embedding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

from longclip_lab.errors import LabError, suggest
from longclip_lab.evaluation import Interval, Similarity, bootstrap_mean, get_similarity
from longclip_lab.models import Clip
from longclip_lab.reproduction.locked_pictures import LockedPictures
from longclip_lab.training import Run
from longclip_lab.world import TEMPLATES, SingleObjects, classes

Test = tuple[Any, Sequence[str]]
"""Pictures, their features where these are known (as `Similarity.encode_images` gives them), or
`LockedPictures`; one text for each."""


@dataclass(frozen=True)
class Measured:
    """One model's hits by test, in the pictures' order.

    Of a retrieval test [N]: for each picture the mean of its two hits at rank 1, image to text and
    text to image (0, 0.5 or 1). "kind" and "colour" [N]: right or wrong zero-shot answers.

    With tests called "long" and "short", the figures of trade-offs and of stretching take it as a
    row; both directions then carry the interval of their mean.
    """

    label: str
    stage: str
    hits: dict[str, np.ndarray] = field(repr=False)
    recipe: dict[str, Any] = field(default_factory=dict, repr=False)
    variance_kept: float | None = None

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
        return self.score("long")

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
    tests: Mapping[str, Test],
    singles: SingleObjects | None = None,
    run: Run | None = None,
) -> Measured:
    """The hits of `clip` on retrieval tests by name, and on pictures of single things.

    Features in place of pictures save time where the image tower is the same for many models, as
    it is after stretching; `LockedPictures` do where it is locked but for a head that is trained.
    The model is asked by the similarity that it was last trained for, see `get_similarity`.
    `stage` is "start", "stretched" or "fine-tuned". `run` is the fine-tuning that `clip` comes
    from; it adds the recipe and PCM's share of the variance, the mean over the logged steps.
    """
    how = get_similarity(clip)
    known: dict[int, torch.Tensor] = {}
    hits = {}
    for name, (images, texts) in tests.items():
        if id(images) not in known:
            known[id(images)] = _image_features(clip, how, images)
        found = how.retrieval(known[id(images)], how.encode_texts(clip, texts), bootstrap=0)
        hits[name] = ((found.i2t_ranks == 1).astype(float) + (found.t2i_ranks == 1)) / 2
    if singles is not None:
        seen = _image_features(clip, how, singles.images)
        for name in ("kind", "colour"):
            prompts = how.class_features(clip, classes(name), TEMPLATES)
            named = how.classify(seen, prompts, singles.labels[name], bootstrap=0)
            hits[name] = (named.ranks == 1).astype(float)
    shares = [row["variance_kept"] for row in run.history] if run else []
    is_pcm = run is not None and run.recipe.objective == "longclip"
    return Measured(
        label,
        stage,
        hits,
        recipe=asdict(run.recipe) if run else {},
        variance_kept=sum(shares) / len(shares) if is_pcm else None,
    )


def _image_features(clip: Clip, how: Similarity, images: Any) -> torch.Tensor:
    if isinstance(images, LockedPictures):
        return images.features(clip)
    known = torch.is_tensor(images) and images.is_floating_point()
    return images if known else how.encode_images(clip, images)
