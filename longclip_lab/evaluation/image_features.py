"""Pictures pass the image tower once: their features are kept for the next task or the next start.

N pictures, S the shape of one feature.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from open_clip import CLIP, CustomTextCLIP
from torch import nn
from tqdm import tqdm

from longclip_lab import cache
from longclip_lab.evaluation.late_interaction import Similarity
from longclip_lab.evaluation.records import model_hash
from longclip_lab.files import json_hash
from longclip_lab.models import Clip
from longclip_lab.models.encoding import Images, how_read, images_hash

RUN = 64
"""Pictures that are made, and made safe, together."""

_MEANING = {
    "tower": "another image tower",
    "preprocess": "other preprocessing",
    "pictures": "other pictures",
    "images": "pictures that were read by other rules",
    "similarity": "another kind",
    "shape": "another shape",
    "dtype": "another precision",
    "format": "another version of the lab",
}


class ImageFeatureCache:
    """Features of pictures, made once for a model and a way to compare.

    Without a folder those of the last pictures are remembered. In `folder` everything is kept,
    memory-mapped, under a name made of weights, preprocessing and pictures; what was interrupted
    goes on after the last 64 pictures that were finished.
    """

    def __init__(
        self, clip: Clip, how: Similarity, folder: Path | None = None, progress: bool = False
    ):
        self.clip, self.how, self.folder, self.progress = clip, how, folder, progress
        self._images: Any = None

    def __call__(self, images: Images) -> torch.Tensor:
        """Features [N, *S], not normalised. Raises LabError for pictures that cannot be read."""
        if self._images is not images:
            self._features = self._found(images)
            self._images = images
        return self._features

    def _found(self, images: Images) -> torch.Tensor:
        is_stored = isinstance(images, np.ndarray) or all(
            isinstance(image, str | Path) for image in images
        )
        if self.folder is None or not is_stored:
            return self.how.encode_images(self.clip, images, progress=self.progress)
        shape = (len(images), *self.how.encode_images(self.clip, images[:1]).shape[1:])
        identity = self._identity(images, shape)
        home = self.folder / json_hash(identity)
        cache.claim(home, identity, _MEANING, RUN)
        if not cache.is_whole(home):
            cache.fill(home, RUN, self._made(images, cache.missing_runs(home)))
            cache.finish(home)
        # A copy in memory: torch has no tensors that must not be written to.
        return torch.from_numpy(np.array(cache.read(home)))

    def _made(self, images: Images, runs: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        parts = {run: images[run * RUN : (run + 1) * RUN] for run in runs}
        total = sum(map(len, parts.values()))
        before = len(images) - total
        with tqdm(
            total=len(images), initial=before, unit="image", disable=not self.progress
        ) as bar:
            for run, part in parts.items():
                yield run, self.how.encode_images(self.clip, part).numpy()
                bar.update(len(part))

    def _identity(self, images: Images, shape: tuple[int, ...]) -> dict[str, Any]:
        return {
            "format": "longclip-lab-picture-features-1",
            "tower": model_hash(_image_part(self.clip.model)),
            "preprocess": self.clip.card["preprocess"],
            "pictures": images_hash(images, contents=True),
            "images": how_read(images),
            "similarity": self.how.name,
            "shape": list(shape),
            "dtype": "float32",
        }


def _image_part(model: nn.Module) -> nn.Module:
    """What makes an image feature: open_clip's image tower; of other models, all of it."""
    return model.visual if isinstance(model, CLIP | CustomTextCLIP) else model
