"""Texts as token ids, and batches of pairs.

B texts of one process's batch, T tokens.

A batch depends on (seed, epoch, step) only, never on what was drawn before, so that a resumed
run sees exactly what the killed one would have seen.

B pairs of one process, T tokens, H W picture, S the shape of a stored feature.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from longclip_lab.data import choose_caption, draw_subcaptions, draw_texts
from longclip_lab.errors import LabError, suggest
from longclip_lab.models import Clip, pixels
from longclip_lab.text import sample_sentences
from longclip_lab.training.recipe import Recipe

# --- Texts of a data set as token ids: tokenised once, or drawn anew every epoch ---

TOKENIZED_AT_ONCE = 4096
COUNTED = 10_000
"""Pictures of which a first draw is looked at before the training, to say what will be read."""

_SHORT = 1
"""Keeps the draw of a short text apart from that of the long one."""


class Rows(list[int]):
    """The pairs of one batch, and the epoch that it belongs to."""

    def __init__(self, indices: Iterable[int] = (), epoch: int = 0):
        super().__init__(indices)
        self.epoch = epoch


class Texts(NamedTuple):
    """Token ids_BT, padded to the longest of these texts, how long each one is, and which.

    `identity_B` is a number that texts of the same tokens share, anywhere in the data set.
    """

    ids_BT: torch.Tensor
    lengths_B: torch.Tensor
    identity_B: torch.Tensor


@dataclass(frozen=True)
class Drawn:
    """What the first epoch's draw of long texts gave, on the first 10,000 pictures at most.

    `fewer` pictures' captions have fewer sub-captions than asked for, all of which are used;
    `truncated` texts do not fit the model's context.
    """

    pictures: int
    fewer: int
    by_captioner: dict[str, int]
    truncated: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def token_limit(clip: Clip, recipe: Recipe) -> int:
    """How many tokens a text is cut to: the model's context, or the recipe's limit if smaller."""
    return min(clip.context_length, recipe.token_limit or clip.context_length)


class TextTable:
    """Texts tokenised once, kept without padding; `batch` pads to its own longest text.

    `num_truncated` counts the texts that were cut, at `limit` tokens or the model's context.
    """

    def __init__(self, clip: Clip, texts: Sequence[str], limit: int | None = None):
        self.pad_id = int(clip.tokenizer.pad_id)
        self.num_truncated = 0
        self.length = limit or clip.context_length
        lengths, flat = [], []
        clip.tokenize(texts[0])  # complains of a tokenizer that is not the model's
        for start in range(0, len(texts), TOKENIZED_AT_ONCE):
            batch = clip.tokenizer.encode_batch(
                list(texts[start : start + TOKENIZED_AT_ONCE]), self.length
            )
            self.num_truncated += int(batch.num_truncated)
            used_BT = np.arange(batch.ids.shape[1]) < np.asarray(batch.lengths)[:, None]
            lengths.append(np.asarray(batch.lengths))
            flat.append(np.asarray(batch.ids)[used_BT].astype(np.int32))
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


class DrawnTexts:
    """Texts that are drawn anew every epoch and tokenised when a batch needs them.

    `draw(epoch, picture)` gives a text and depends on nothing else, so that a resumed run and
    one of several processes see what a single whole one sees.
    """

    def __init__(self, clip: Clip, draw: Callable[[int, int], str], limit: int):
        clip.tokenize(draw(0, 0))  # complains of a tokenizer that is not the model's
        self.tokenizer, self.limit, self.draw = clip.tokenizer, limit, draw

    def batch(self, rows: Sequence[int]) -> Texts:
        """The texts of these pictures in the epoch of `rows` (`Rows`; else the first)."""
        epoch = getattr(rows, "epoch", 0)
        return tokenized(self.tokenizer, [self.draw(epoch, index) for index in rows], self.limit)[0]


def tokenized(tokenizer: Any, texts: Sequence[str], limit: int) -> tuple[Texts, int]:
    """Texts as token ids, padded to the longest of them, and how many were cut at `limit`."""
    batch = tokenizer.encode_batch(texts, limit)
    lengths_B = np.asarray(batch.lengths, dtype=np.int64)
    ids_BT = np.ascontiguousarray(batch.ids[:, : lengths_B.max()], dtype=np.int64)
    identity_B = np.array([
        int.from_bytes(blake2b(ids_T[:length].tobytes(), digest_size=8).digest(), "big",
                       signed=True)
        for ids_T, length in zip(ids_BT, lengths_B, strict=True)
    ])  # fmt: skip
    texts_B = Texts(*map(torch.from_numpy, (ids_BT, lengths_B, identity_B)))
    return texts_B, int(batch.num_truncated)


class Draws:
    """What a recipe reads of a picture: a function of its texts, the epoch and its number.

    `draws_long` and `draws_short` say whether that changes from epoch to epoch.
    """

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.draws_long = recipe.subcaptions is not None
        self.draws_short = recipe.rewrites or recipe.objective == "debias-clip"

    @property
    def count(self) -> int | None:
        """Sub-captions of a long text; None for all."""
        return None if self.recipe.subcaptions == "all" else self.recipe.subcaptions

    def long(self, epoch: int, index: int, captions: Mapping[str, str]) -> tuple[str, str, int]:
        """Some sub-captions of one captioner's caption, whose it is, and how many it has."""
        # As `draw_texts` does.
        rng = np.random.default_rng((self.recipe.seed, epoch, index))
        return draw_subcaptions(captions, self.count, rng)

    def short(self, epoch: int, index: int, long: str, captions: Sequence[str]) -> str:
        """With `rewrites` one of a picture's captions; for debias-clip some sentences of its long
        caption behind the first."""
        rng = np.random.default_rng((self.recipe.seed, epoch, index, _SHORT))
        if self.recipe.objective == "debias-clip":
            return sample_sentences(long, rng)
        return choose_caption(captions, rng)


def long_texts(clip: Clip, data: Any, recipe: Recipe) -> tuple[TextTable | DrawnTexts, Drawn]:
    """The long texts of a recipe, and what a look at them gave.

    Raises LabError for captioners that the data do not have.
    """
    limit = token_limit(clip, recipe)
    draws = Draws(recipe)
    if not draws.draws_long:
        table = TextTable(clip, data.long, limit)
        return table, Drawn(len(data.long), 0, {}, table.num_truncated)
    captions = captions_of(data, recipe.captioners)
    first = draw_texts(captions[:COUNTED], draws.count, recipe.seed, epoch=0)
    batch = clip.tokenizer.encode_batch(first.texts, limit)
    drawn = Drawn(len(first.texts), first.fewer, first.by_captioner, int(batch.num_truncated))
    return DrawnTexts(clip, lambda e, i: draws.long(e, i, captions[i])[0], limit), drawn


def short_texts(clip: Clip, data: Any, recipe: Recipe) -> TextTable | DrawnTexts:
    """The short texts of a recipe: the raw ones, or drawn anew every epoch (`Draws.short`)."""
    limit = token_limit(clip, recipe)
    draws = Draws(recipe)
    if not draws.draws_short:
        return TextTable(clip, data.short, limit)
    captions = data.captions if recipe.rewrites else [[] for _ in data.long]

    def draw(epoch: int, index: int) -> str:
        return draws.short(epoch, index, data.long[index], captions[index])

    return DrawnTexts(clip, draw, limit)


def captions_of(data: Any, wanted: Sequence[str] = ()) -> list[dict[str, str]]:
    """Every picture's long captions by captioner; data of one long text have one, "long".

    Raises LabError for a captioner that is not among them, and for a picture that none of
    `wanted` has described.
    """
    captions = list(getattr(data, "captioners", None) or ({"long": text} for text in data.long))
    if not wanted:
        return captions
    check_captioners(wanted, {who for of_picture in captions for who in of_picture})
    chosen = [{who: by[who] for who in wanted if who in by} for by in captions]
    for index, of_picture in enumerate(chosen):
        if not of_picture:
            raise LabError(f"Picture {index} has no long caption by {' or '.join(wanted)}.")
    return chosen


def check_captioners(wanted: Sequence[str], known: Iterable[str]) -> None:
    """Raise LabError for a captioner that the data do not have."""
    known = sorted(known)
    for who in wanted:
        if who not in known:
            raise LabError(f"The data have no captioner {who!r}. {suggest(who, known)}")


# --- Which pairs make up which batch, and what a batch holds ---

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
