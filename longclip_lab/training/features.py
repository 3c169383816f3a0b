"""A locked image tower runs once: its features are stored and read back every epoch.

A store is a folder of `longclip_lab.cache`; a picture is a row, in the order of the data. An
interrupted store is finished by the next run. Several processes, on one machine or on several that
share the folder, each make their part.

N pictures, S the shape of one feature.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from longclip_lab import cache
from longclip_lab.errors import LabError
from longclip_lab.models import Clip, pixels
from longclip_lab.models.anatomy import frozen_part
from longclip_lab.models.encoding import Images, check_finite, evaluating, how_read, pictures_hash
from longclip_lab.models.towers import image_states
from longclip_lab.training.checkpoints import weights_hash

RUN = 256
"""Pictures that pass the tower together. Part of what decides the last bits of a feature."""

_MEANING = {
    "tower": "another image tower",
    "preprocess": "other preprocessing",
    "pictures": "other pictures",
    "images": "pictures that were read by other rules",
    "tokens": "another kind (pooled features, or patch tokens)",
    "shape": "another shape",
    "dtype": "another precision",
    "format": "another version of the lab",
}


def stored_features(
    clip: Clip,
    images: Images,
    folder: str | Path | None = None,
    tokens: bool = False,
    half: bool = False,
    workers: int = 0,
    progress: bool = False,
    accelerator: Accelerator | None = None,
) -> np.ndarray:
    """What the frozen part of the image tower gives for `images`, [N, *S], not normalised.

    Features are float32, or float16 with `half`, and are those in front of the linear head that a
    timm tower may have, which a lock leaves trainable (`models.towers.finish_image`). With
    `tokens` every patch's, for token-wise losses. In `folder` they are made once and memory-mapped
    (read-only) from then on; without, they are made in memory.

    Raises LabError if `folder` holds features of anything else, for pictures that cannot be read,
    and for features that are not finite.
    """
    accelerator = accelerator or Accelerator()
    shape = _shape(clip, images, tokens)
    dtype = np.dtype(np.float16 if half else np.float32)
    work = _Work(clip, images, tokens, half, workers, progress and accelerator.is_main_process)
    if folder is None:
        features = np.empty(shape, dtype)
        for run, states in work.make(range(work.count)):
            features[run * RUN : (run + 1) * RUN] = states
        return features
    identity = _identity(clip, images, tokens, shape, dtype)
    home = Path(folder)
    if accelerator.is_main_process:
        cache.claim(home, identity, _MEANING, RUN)
    accelerator.wait_for_everyone()
    if not cache.is_whole(home):
        rank, processes = accelerator.process_index, accelerator.num_processes
        cache.fill(home, RUN, work.make(cache.missing_runs(home)[rank::processes]))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            cache.finish(home)
        accelerator.wait_for_everyone()
    return cache.read(home)


class _Pictures(Dataset):
    """Pixels of whole runs of pictures; a LabError comes back as a value, out of a worker too."""

    def __init__(self, clip: Clip, images: Images):
        self.images = images
        self.recipient = Clip(
            torch.nn.Identity(), clip.tokenizer, clip.preprocess, clip.name, clip.card
        )

    def __len__(self) -> int:
        return -(-len(self.images) // RUN)

    def __getitem__(self, run: int) -> torch.Tensor | LabError:
        some = self.images[run * RUN : (run + 1) * RUN]
        if isinstance(some, np.ndarray):
            some = np.array(some)  # torch complains of values that are mapped read-only
        try:
            return pixels(self.recipient, some)
        except LabError as error:
            return error


@dataclass
class _Work:
    """Runs of pictures to features."""

    clip: Clip
    images: Images
    tokens: bool
    half: bool
    workers: int
    progress: bool

    @property
    def count(self) -> int:
        return -(-len(self.images) // RUN)

    @torch.no_grad()
    def make(self, runs: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """(run, its features) for each of `runs`."""
        on_disk = not isinstance(self.images, np.ndarray)
        loader = DataLoader(
            _Pictures(self.clip, self.images),
            batch_size=None,
            sampler=list(runs),
            num_workers=self.workers if on_disk else 0,
            generator=torch.Generator().manual_seed(0),
        )
        visual, device = self.clip.model.visual, self.clip.device
        total = sum(min(RUN, len(self.images) - run * RUN) for run in runs)
        bar = tqdm(total=total, unit="image", disable=not self.progress, desc="features")
        lower = self.half and device.type == "cuda"
        with evaluating(self.clip.model), bar:
            for run, pixels_B3HW in zip(runs, loader, strict=True):
                if isinstance(pixels_B3HW, LabError):
                    raise pixels_B3HW
                with torch.autocast("cuda", torch.bfloat16) if lower else nullcontext():
                    states = image_states(visual, pixels_B3HW.to(device), self.tokens)
                states = states.to(torch.float16 if self.half else torch.float32).cpu()
                yield run, check_finite(states, "pictures", self.clip.name).numpy()
                bar.update(len(pixels_B3HW))


def _shape(clip: Clip, images: Images, tokens: bool) -> tuple[int, ...]:
    if len(images) == 0:
        raise LabError("Expected at least one picture, got none.")
    size = clip.image_size
    with torch.no_grad(), evaluating(clip.model):
        blank_1 = torch.zeros(1, 3, size, size, device=clip.device)
        return (len(images), *image_states(clip.model.visual, blank_1, tokens).shape[1:])


def _identity(
    clip: Clip, images: Images, tokens: bool, shape: tuple[int, ...], dtype: np.dtype
) -> dict[str, Any]:
    facts = {
        "format": "longclip-lab-features-1",
        "tower": weights_hash(frozen_part(clip.model.visual)),
        "preprocess": clip.card["preprocess"],
        "pictures": pictures_hash(images),
        "images": how_read(images),
        "tokens": tokens,
        "shape": list(shape),
        "dtype": dtype.name,
    }
    return json.loads(json.dumps(facts))
