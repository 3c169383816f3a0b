"""A locked image tower runs once: its features are stored and read back every epoch.

FOLDER/features.json       whose features these are: tower, preprocessing, pictures, shape
FOLDER/features.npy        the features, memory-mapped; a picture a row, in the order of the data
FOLDER/features.npy.part   the same while it is being made
FOLDER/done.npy            which runs of 256 pictures are made

An interrupted store is finished by the next run. Several processes, on one machine or on several
that share the folder, each make their part.

N pictures, S the shape of one feature.
"""

from __future__ import annotations

import hashlib
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

from longclip_lab.errors import LabError
from longclip_lab.files import atomic_write
from longclip_lab.models import Clip, pixels
from longclip_lab.models.encoding import Images, evaluating
from longclip_lab.models.token_features import frozen_part, image_states
from longclip_lab.training.checkpoints import weights_hash

RECORD, FEATURES, PART, DONE = "features.json", "features.npy", "features.npy.part", "done.npy"
RUN = 256
"""Pictures that pass the tower together. Part of what decides the last bits of a feature."""

_MEANING = {
    "tower": "another image tower",
    "preprocess": "other preprocessing",
    "pictures": "other pictures",
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
    timm tower may have, which a lock leaves trainable (`models.token_features.finish_image`). With
    `tokens` every patch's, for token-wise losses. In `folder` they are made once and memory-mapped
    (read-only) from then on; without, they are made in memory.

    Raises LabError if `folder` holds features of anything else, and for pictures that cannot be
    read.
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
        _claim(home, identity)
    accelerator.wait_for_everyone()
    if not (home / FEATURES).exists():
        rank, processes = accelerator.process_index, accelerator.num_processes
        _make(home, work, rank, processes)
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _finish(home)
        accelerator.wait_for_everyone()
    return np.load(home / FEATURES, mmap_mode="r")


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
                yield run, states.float().cpu().numpy()
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
        "tokens": tokens,
        "shape": list(shape),
        "dtype": dtype.name,
    }
    return json.loads(json.dumps(facts))


def pictures_hash(images: Images) -> str:
    """SHA-256 over the values of pictures, or over the names and sizes of their files.

    What is said of the pictures does not count: one store serves every captioner.
    Raises LabError for a file that is missing.
    """
    whole = hashlib.sha256()
    if isinstance(images, np.ndarray):
        whole.update(str(images.shape).encode())
        whole.update(np.ascontiguousarray(images).data)
        return f"sha256:{whole.hexdigest()}"
    for image in images:
        if not isinstance(image, str | Path):
            raise LabError("Features are stored for picture files or uint8 values only.")
        try:
            size = Path(image).stat().st_size
        except OSError:
            raise LabError(f"There is no picture {image}.") from None
        whole.update(f"{Path(image).name}\0{size}\n".encode())
    return f"sha256:{whole.hexdigest()}"


def _claim(home: Path, identity: dict[str, Any]) -> None:
    """Make `home` the place of these features; leave in it only what can be gone on with."""
    record = home / RECORD
    if home.exists() and not home.is_dir():
        raise LabError(f"{home} is a file; stored features need a folder.")
    if not record.exists():
        if home.exists() and any(home.iterdir()):
            raise LabError(f"{home} is not empty and holds no stored features; give another.")
        atomic_write(record, json.dumps(identity, indent=2) + "\n")
    try:
        found = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:
        raise LabError(f"{record} cannot be read; delete the folder or give another.") from None
    for key, meaning in _MEANING.items():
        if found.get(key) != identity[key]:
            raise LabError(
                f"{home} holds features of {meaning} ({_brief(found.get(key))} there, "
                f"{_brief(identity[key])} now); give another folder, or delete it."
            )
    shape, dtype = tuple(identity["shape"]), np.dtype(identity["dtype"])
    if _opens(home / FEATURES, shape, dtype):
        return
    (home / FEATURES).unlink(missing_ok=True)
    runs = -(-shape[0] // RUN)
    if _opens(home / PART, shape, dtype) and _opens(home / DONE, (runs,), np.dtype(bool)):
        return
    # `done` goes first and comes last: where it is, the features that it speaks of are.
    (home / DONE).unlink(missing_ok=True)
    np.lib.format.open_memmap(home / PART, "w+", dtype, shape).flush()
    np.lib.format.open_memmap(home / DONE, "w+", np.dtype(bool), (runs,)).flush()


def _brief(value: Any) -> str:
    text = str(value)
    return text[:15] + ".." if text.startswith("sha256:") else text


def _opens(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether `path` is a whole array of this form; one that was cut short is not."""
    try:
        array = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return False
    return array.shape == shape and array.dtype == dtype


def _make(home: Path, work: _Work, rank: int, processes: int) -> None:
    """Make this process's share of what is missing."""
    features = np.load(home / PART, mmap_mode="r+")
    done = np.load(home / DONE, mmap_mode="r+")
    missing = np.flatnonzero(~done).tolist()
    for run, states in work.make(missing[rank::processes]):
        features[run * RUN : (run + 1) * RUN] = states
        features.flush()  # before it is said to be there
        done[run] = True
        done.flush()


def _finish(home: Path) -> None:
    if not np.load(home / DONE).all():
        raise LabError(f"Not all features in {home} were made; run the same command again.")
    (home / PART).replace(home / FEATURES)
    (home / DONE).unlink()
