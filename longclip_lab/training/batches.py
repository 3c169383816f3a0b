"""Which pairs make up which batch, and what a batch holds.

A batch depends on (seed, epoch, step) only, never on what was drawn before, so that a resumed
run sees exactly what the killed one would have seen.

B pairs of one process, T tokens, H W picture, S the shape of a stored feature.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from longclip_lab.errors import LabError
from longclip_lab.models import Clip, pixels
from longclip_lab.training.recipe import Recipe
from longclip_lab.training.texts import Rows, Texts, TextTable, long_texts, short_texts

__all__ = ["Batch", "StepSampler", "TextTable", "Texts", "TrainingPairs", "epoch_order"]

GROUPED_BATCHES = 16


class Batch(NamedTuple):
    """One process's share of a global batch: pictures as pixels, or as stored features."""

    pixels_B3HW: torch.Tensor | None
    long: Texts | None
    short: Texts | None
    stored_BS: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on `device`."""
        long, short = (
            texts and Texts(*(part.to(device, non_blocking=True) for part in texts))
            for texts in (self.long, self.short)
        )
        pictures = (
            part if part is None else part.to(device, non_blocking=True)
            for part in (self.pixels_B3HW, self.stored_BS)
        )
        pixels_B3HW, stored_BS = pictures
        return Batch(pixels_B3HW, long, short, stored_BS)

    def rows(self, start: int, stop: int) -> Batch:
        """The pairs from `start` to `stop`; texts keep the width of the whole batch."""
        long, short = (
            texts and Texts(*(part[start:stop] for part in texts))
            for texts in (self.long, self.short)
        )
        pixels_B3HW, stored_BS = (
            part if part is None else part[start:stop]
            for part in (self.pixels_B3HW, self.stored_BS)
        )
        return Batch(pixels_B3HW, long, short, stored_BS)


class TrainingPairs(Dataset):
    """Pictures and texts of a data set, handed out by whole batches.

    `data` has `.images` (uint8 [N, H, W, 3] or paths), `.short` and `.long`; with sub-captions to
    draw also `.captioners`, with rewrites `.captions`. `stored` are the image features of a locked
    tower (`feature_store`), handed out instead of pixels. `drawn` says what was found in the long
    texts. Raises LabError as `check_pairs` does.

    What the loop reads of it, and of any other source: `len`, `lengths`, `num_truncated`, `drawn`,
    `batches` and `members`.
    """

    def __init__(
        self,
        clip: Clip,
        data: Any,
        recipe: Recipe | None = None,
        stored: np.ndarray | None = None,
    ):
        self.recipe = recipe = recipe or Recipe()
        check_pairs(data)
        self.images = data.images
        self.stored = stored
        # Turning pictures into pixels needs no weights, and worker processes are sent a copy.
        self.recipient = replace(clip, model=nn.Identity())
        self.long = self.short = self.drawn = None
        if recipe.captions != "short":
            self.long, self.drawn = long_texts(clip, data, recipe)
        if recipe.captions != "long":
            self.short = short_texts(clip, data, recipe)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each pair's long text; zeros where texts are drawn or there are none."""
        if isinstance(self.long, TextTable):
            return self.long.lengths
        return np.zeros(len(self), dtype=np.int64)

    @property
    def num_truncated(self) -> dict[str, int]:
        """How many "long" and "short" texts do not fit; of drawn ones, as `drawn` counts."""
        return {
            "long": self.drawn.truncated if self.drawn else 0,
            "short": getattr(self.short, "num_truncated", 0),
        }

    def __getitems__(self, indices: list[int]) -> Batch | LabError:
        """The pairs at `indices`. An unreadable picture comes back as its error: raised in a
        worker process, its message would arrive wrapped in a traceback."""
        try:
            pictures = self.pictures(indices)
        except LabError as error:
            return error
        long, short = (texts and texts.batch(indices) for texts in (self.long, self.short))
        if self.stored is not None:
            return Batch(None, long, short, pictures)
        return Batch(pictures, long, short)

    def batches(
        self, first: int, last: int, rank: int = 0, processes: int = 1
    ) -> Iterable[Batch | LabError]:
        """This process's share of the batches of steps `first`, `first` + 1, ... `last` - 1.

        Other processes decode only pictures on disk.
        """
        on_disk = self.stored is None and not isinstance(self.images, np.ndarray)
        return DataLoader(
            self,
            batch_sampler=StepSampler(self.recipe, self.lengths, first, last, rank, processes),
            collate_fn=lambda batch: batch,
            num_workers=self.recipe.workers if on_disk else 0,
            pin_memory=torch.cuda.is_available(),
            # Its own generator, or starting to iterate would draw from torch's global one.
            generator=torch.Generator().manual_seed(0),
        )

    def members(self, step: int) -> list[int]:
        """The pairs of the global batch of a step, for a record of what went wrong."""
        (pairs,) = StepSampler(self.recipe, self.lengths, step, step + 1)
        return list(pairs)

    def pictures(self, indices: list[int]) -> torch.Tensor:
        """Pixels [B, 3, H, W] or stored features [B, *S]. Raises LabError as `pixels` does."""
        if self.stored is not None:
            return torch.from_numpy(np.array(self.stored[indices]))
        if isinstance(self.images, np.ndarray):
            return pixels(self.recipient, self.images[indices])
        return pixels(self.recipient, [self.images[index] for index in indices])


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
            yield Rows(order[start : start + self.share].tolist(), epoch)
