"""Which pairs make up which batch, and what a batch holds.

A batch depends on (seed, epoch, step) only, never on what was drawn before, so that a resumed
run sees exactly what the killed one would have seen.

B pairs of one process, T tokens, H W picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from longclip_lab.errors import LabError
from longclip_lab.models import Clip, pixels
from longclip_lab.training.recipes import Recipe

GROUPED_BATCHES = 16
TOKENIZED_AT_ONCE = 4096


class Texts(NamedTuple):
    """Token ids_BT, padded to the longest of these texts, how long each one is, and which.

    `identity_B` is a number that texts of the same tokens share, anywhere in the data set.
    """

    ids_BT: torch.Tensor
    lengths_B: torch.Tensor
    identity_B: torch.Tensor


class Batch(NamedTuple):
    """One process's share of a global batch."""

    pixels_B3HW: torch.Tensor
    long: Texts
    short: Texts

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        long, short = (Texts(*(part.to(device) for part in texts)) for texts in self[1:])
        return Batch(self.pixels_B3HW.to(device), long, short)


class TextTable:
    """Texts tokenised once, kept without padding; `batch` pads to its own longest text.

    `num_truncated` counts the texts that did not fit the model's context.
    """

    def __init__(self, clip: Clip, texts: Sequence[str]):
        self.pad_id = int(clip.tokenizer.pad_id)
        self.num_truncated = 0
        lengths, flat = [], []
        for start in range(0, len(texts), TOKENIZED_AT_ONCE):
            tokens = clip.tokenize(list(texts[start : start + TOKENIZED_AT_ONCE]))
            self.num_truncated += tokens.num_truncated
            used_BT = torch.arange(tokens.ids_BT.shape[1]) < tokens.lengths_B[:, None]
            lengths.append(tokens.lengths_B.numpy())
            flat.append(tokens.ids_BT[used_BT].numpy().astype(np.int32))
        self.lengths = np.concatenate(lengths)
        self.starts = np.concatenate([[0], np.cumsum(self.lengths)])
        self.flat = np.concatenate(flat)
        first: dict[bytes, int] = {}
        rows = (self.flat[start:end].tobytes() for start, end in pairwise(self.starts))
        self.identity = np.array([first.setdefault(row, i) for i, row in enumerate(rows)])

    def batch(self, indices: Sequence[int]) -> Texts:
        """The texts at `indices`, padded to the longest of them; ids are int64."""
        lengths_B = self.lengths[list(indices)]
        ids_BT = np.full((len(indices), lengths_B.max()), self.pad_id, dtype=np.int64)
        for row, index, length in zip(ids_BT, indices, lengths_B, strict=True):
            row[:length] = self.flat[self.starts[index] : self.starts[index + 1]]
        identity_B = self.identity[list(indices)]
        return Texts(*map(torch.from_numpy, (ids_BT, lengths_B, identity_B)))


class TrainingPairs(Dataset):
    """Pictures and tokenised texts of a data set, handed out by whole batches.

    `data` has `.images` (uint8 [N, H, W, 3] or paths), `.short` and `.long`. Raises LabError as
    `check_pairs` does.
    """

    def __init__(self, clip: Clip, data: Any):
        check_pairs(data)
        self.images = data.images
        # Turning pictures into pixels needs no weights, and worker processes are sent a copy.
        self.recipient = replace(clip, model=nn.Identity())
        self.long = TextTable(clip, data.long)
        self.short = TextTable(clip, data.short)

    def __len__(self) -> int:
        return len(self.images)

    def __getitems__(self, indices: list[int]) -> Batch | LabError:
        """The pairs at `indices`. An unreadable picture comes back as its error: raised in a
        worker process, its message would arrive wrapped in a traceback."""
        if isinstance(self.images, np.ndarray):
            images: Any = self.images[indices]
        else:
            images = [self.images[index] for index in indices]
        try:
            pixels_B3HW = pixels(self.recipient, images)
        except LabError as error:
            return error
        return Batch(pixels_B3HW, self.long.batch(indices), self.short.batch(indices))


def check_pairs(data: Any) -> None:
    """Raise LabError unless `data` has as many pictures as short and long texts, none empty."""
    for field in ("images", "short", "long"):
        if not hasattr(data, field):
            raise LabError(
                f"Training data need .images, .short and .long; {type(data).__name__} has no "
                f".{field}."
            )
    if not len(data.images) == len(data.short) == len(data.long):
        raise LabError(
            f"Every picture needs a short and a long text; came {len(data.images)} pictures, "
            f"{len(data.short)} short and {len(data.long)} long texts."
        )
    if len(data.images) == 0:
        raise LabError("There are no pairs to train on.")
    for field in ("short", "long"):
        empty = [i for i, text in enumerate(getattr(data, field)) if not text.strip()]
        if empty:
            raise LabError(f"The {field} text of pair {empty[0]} is empty ({len(empty)} are).")


def epoch_order(recipe: Recipe, lengths: np.ndarray, epoch: int) -> np.ndarray:
    """The pairs of one epoch in the order of training, as whole batches.

    A permutation of the data without the incomplete last batch; with `recipe.siblings` above 1, of
    runs of that many neighbours, each of which stays in one batch. With `recipe.length_grouped`,
    every 16 consecutive batches of it are sorted by length, cut into batches again, and those
    are shuffled.
    """
    rng = np.random.default_rng((recipe.seed, epoch))
    size = recipe.batch_size
    run = recipe.siblings
    runs = rng.permutation(len(lengths) // run)[: len(lengths) // size * size // run]
    order = (runs[:, None] * run + np.arange(run)).ravel()
    if not recipe.length_grouped:
        return order
    groups = []
    for start in range(0, len(order), GROUPED_BATCHES * size):
        group = order[start : start + GROUPED_BATCHES * size]
        by_length = group[np.argsort(lengths[group], kind="stable")]
        groups.append(rng.permutation(by_length.reshape(-1, size)).ravel())
    return np.concatenate(groups)


class StepSampler(Sampler[list[int]]):
    """This process's share of the batches of steps `first`, `first` + 1, ... `last` - 1.

    The shares of all processes in rank order are the global batch, so the gathered features
    stand as in a single process.
    """

    def __init__(
        self,
        recipe: Recipe,
        lengths: np.ndarray,
        first: int,
        last: int,
        rank: int = 0,
        processes: int = 1,
    ):
        self.recipe, self.lengths = recipe, lengths
        self.first, self.last = first, last
        self.rank, self.share = rank, recipe.batch_size // processes

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = len(self.lengths) // self.recipe.batch_size
        order, epoch_of_order = np.empty(0, dtype=np.int64), -1
        for step in range(self.first, self.last):
            epoch, position = divmod(step, per_epoch)
            if epoch != epoch_of_order:
                order, epoch_of_order = epoch_order(self.recipe, self.lengths, epoch), epoch
            start = position * self.recipe.batch_size + self.rank * self.share
            yield order[start : start + self.share].tolist()


def batches(pairs: TrainingPairs, sampler: StepSampler) -> DataLoader:
    """A DataLoader over whole batches; decoding processes only for pictures on disk."""
    on_disk = not isinstance(pairs.images, np.ndarray)
    return DataLoader(
        pairs,
        batch_sampler=sampler,
        collate_fn=lambda batch: batch,
        num_workers=sampler.recipe.workers if on_disk else 0,
        pin_memory=torch.cuda.is_available(),
        # Its own generator, or starting to iterate would draw from torch's global one.
        generator=torch.Generator().manual_seed(0),
    )
