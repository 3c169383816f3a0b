"""What stretching does to scores, for any number of kept positions and any ratio.

Everything that stretching leaves alone (features of pictures, the texts) is made once. Scores are
kept as hits, picture by picture, so that two ways of stretching are compared on the same pictures.

N pictures, D embedding.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval, bootstrap_mean, retrieval
from longclip_lab.evaluation.classification import class_features, classify
from longclip_lab.files import atomic_write, read_json_object, to_json
from longclip_lab.models import Clip, encode_images, encode_texts, stretch
from longclip_lab.models.encoding import Images

LONG, SHORT, CLASSES = "long captions", "short captions", "zero-shot"


class Classes(NamedTuple):
    """Pictures with their class each, for zero-shot classification (see `evaluation.zero_shot`)."""

    images: Images
    labels: Sequence[int]
    names: Sequence[str]
    templates: Sequence[str]


@dataclass(frozen=True)
class Stretched:
    """The scores of a model with `length` positions: `keep` left alone, the others by `ratio`.

    `hits` maps each test to one number a picture, 0 to 1: R@1 as the mean of both directions, or
    the right class. `truncated` counts the long captions that do not fit.
    """

    keep: int
    ratio: float
    length: int
    hits: dict[str, np.ndarray]
    truncated: int

    def score(self, test: str) -> Interval:
        """The share of hits with its 95% interval."""
        return bootstrap_mean(self.hits[test])

    def against(self, other: Stretched, test: str) -> Interval:
        """This score minus another's on the same pictures, with its 95% interval."""
        return bootstrap_mean(self.hits[test] - other.hits[test])


class StretchingTest:
    """Scores of a model after stretching its positions; each way is measured once.

    `pairs` have pictures with long and short captions; `classes` adds zero-shot classification.
    `test[keep, ratio]` is a `Stretched`, measured when it is first asked for; `in` says whether it
    was. Ratio 1 is the model as it is.
    """

    def __init__(self, clip: Clip, pairs: Any, classes: Classes | None = None):
        self.clip, self.classes = clip, classes
        self.texts = {LONG: list(pairs.long)}
        if list(pairs.short) != self.texts[LONG]:
            self.texts[SHORT] = list(pairs.short)
        self._images = pairs.images
        self._source = {"model": clip.name, **(getattr(pairs, "source", None) or {})}
        self._features: dict[str, torch.Tensor] = {}
        self._known: dict[tuple[int, float], Stretched] = {}

    @property
    def measured(self) -> list[tuple[int, float]]:
        """Every (keep, ratio) whose scores are known, sorted."""
        return sorted(self._known)

    def __contains__(self, key: tuple[int, float]) -> bool:
        return _key(*key) in self._known

    def __getitem__(self, key: tuple[int, float]) -> Stretched:
        """The scores at (keep, ratio). Raises LabError where `stretch` does."""
        key = _key(*key)
        if key not in self._known:
            self._known[key] = self._measure(*key)
        return self._known[key]

    def grid(
        self, keeps: Iterable[int], ratios: Iterable[float], progress: bool = False
    ) -> list[Stretched]:
        """The scores at every keep with every ratio."""
        keys = [(keep, ratio) for keep in keeps for ratio in ratios]
        return [self[key] for key in tqdm(keys, "stretching", disable=not progress)]

    def _measure(self, keep: int, ratio: float) -> Stretched:
        model = stretch(self.clip, keep=keep, ratio=ratio)
        images_ND = self._image_features("pairs", self._images)
        hits, truncated = {}, 0
        for test, texts in self.texts.items():
            encoded = encode_texts(model, texts)
            found = retrieval(images_ND, encoded.features_ND, bootstrap=0)
            hits[test] = ((found.i2t_ranks <= 1).astype(float) + (found.t2i_ranks <= 1)) / 2
            truncated = encoded.num_truncated if test == LONG else truncated
        if self.classes is not None:
            features_ND = self._image_features("classes", self.classes.images)
            classes = class_features(model, self.classes.names, self.classes.templates)
            ranks_N = classify(features_ND, classes, self.classes.labels, bootstrap=0).ranks
            hits[CLASSES] = (ranks_N <= 1).astype(float)
        return Stretched(keep, ratio, model.context_length, hits, truncated)

    def _image_features(self, name: str, images: Images) -> torch.Tensor:
        if name not in self._features:
            self._features[name] = encode_images(self.clip, images)
        return self._features[name]

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write all scores that are known as JSON."""
        rows = [
            {
                "keep": one.keep,
                "ratio": one.ratio,
                "length": one.length,
                "truncated": one.truncated,
                "hits": {test: hits.tolist() for test, hits in one.hits.items()},
            }
            for one in self._known.values()
        ]
        return atomic_write(path, to_json({"source": self._source, "rows": rows}))

    def load(self, path: str | os.PathLike[str]) -> StretchingTest:
        """Take over the scores that `save` wrote; returns the test itself.

        Raises LabError for a file that is missing or no such file, and for scores of another model
        or other pictures.
        """
        try:
            content = read_json_object(path)
            rows = [
                Stretched(
                    row["keep"], row["ratio"], row["length"],
                    {test: np.array(hits) for test, hits in row["hits"].items()}, row["truncated"],
                )
                for row in content["rows"]
            ]  # fmt: skip
            source = content["source"]
        except (LabError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise LabError(
                f"{path} holds no scores that StretchingTest.save wrote ({error})."
            ) from error
        if source != json.loads(json.dumps(self._source)):
            raise LabError(
                f"{path} holds scores of {source}, this test is of {self._source}. Measure anew."
            )
        self._known |= {_key(row.keep, row.ratio): row for row in rows}
        return self


def _key(keep: int, ratio: float) -> tuple[int, float]:
    return int(keep), float(ratio)
