"""What a training step reads: captions as token ids, images as pixels or cached features.

Captions stay ragged, one after the other without padding, from the tokenizer to the text tower.
A batch depends on (seed, epoch, step) only, never on what was drawn before, so that a resumed run
sees exactly what the killed one would have seen.

B pairs of one process, P tokens of all its texts, T tokens of the longest, H W image, N images of
the data set, S the shape of a cached feature.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from longclip_lab import cache
from longclip_lab.data import choose_caption, draw_subcaptions
from longclip_lab.errors import LabError, suggest
from longclip_lab.models import Clip, pixels
from longclip_lab.models.anatomy import frozen_part
from longclip_lab.models.encoding import Images, check_finite, evaluating, how_read, images_hash
from longclip_lab.models.towers import image_states
from longclip_lab.text import sample_sentences
from longclip_lab.training.checkpoints import weights_hash
from longclip_lab.training.recipe import Recipe

# --- Captions: a ragged batch of token ids, and which caption of an image is read ---

TOKENIZED_AT_ONCE = 4096
COUNTED = 10_000
"""Images of which a first draw is looked at before the training, to say what will be read."""

_SHORT = 1
"""Keeps the draw of a short text apart from that of the long one."""


class TokenBatch(NamedTuple):
    """Texts as token ids, laid end to end without padding: ids_P, and the length of each text.

    `identity_B` is a number that texts of the same tokens share, in any process.
    """

    ids_P: torch.Tensor
    lengths_B: torch.Tensor
    identity_B: torch.Tensor

    def select(self, rows_B: torch.Tensor | Sequence[int]) -> TokenBatch:
        """The texts at `rows_B`, in that order."""
        rows_B = torch.as_tensor(rows_B, dtype=torch.int64)
        lengths_B = self.lengths_B[rows_B]
        starts_B = (self.lengths_B.cumsum(0) - self.lengths_B)[rows_B]
        # Token p of the result stands where its text starts in here, plus how far it is inside.
        shifts_B = starts_B - (lengths_B.cumsum(0) - lengths_B)
        places_P = shifts_B.repeat_interleave(lengths_B) + torch.arange(int(lengths_B.sum()))
        # A table keeps 32-bit ids, half the memory; embeddings ask for 64-bit ones.
        return TokenBatch(self.ids_P[places_P].long(), lengths_B, self.identity_B[rows_B])

    def padded(self, pad_id: int) -> torch.Tensor:
        """Token ids [B, T] for a tower that wants a rectangle, as wide as the longest text."""
        texts = self.ids_P.split(self.lengths_B.tolist())
        return pad_sequence(list(texts), batch_first=True, padding_value=pad_id)


def joined(parts: Sequence[TokenBatch | None]) -> TokenBatch | None:
    """Several batches of texts as one."""
    if parts[0] is None:
        return None
    return TokenBatch(*map(torch.cat, zip(*parts, strict=True)))


class BatchIndices(list[int]):
    """The pairs of one batch, and the epoch that it belongs to."""

    def __init__(self, indices: Iterable[int] = (), epoch: int = 0):
        super().__init__(indices)
        self.epoch = epoch


@dataclass(frozen=True)
class CaptionCounts:
    """What the first epoch's draw of long texts gave, on the first 10,000 images at most.

    `fewer` images' captions have fewer sub-captions than asked for, all of which are used;
    `truncated` texts do not fit the model's context.
    """

    pictures: int
    fewer: int
    by_captioner: dict[str, int]
    truncated: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


class CaptionSampler:
    """Which captions of an image a recipe reads, and their token ids.

    `draws["long"]` and `draws["short"]` say whether a text is drawn anew every epoch: long ones as
    sub-captions (LoTLIP, section 5.1), short ones from rewrites (LaCLIP) or from the long caption
    without its summary (DeBias-CLIP). A draw is a function of (seed, epoch, index) and of the
    image's own texts.
    """

    def __init__(self, clip: Clip, recipe: Recipe):
        self.recipe, self.tokenizer = recipe, clip.tokenizer
        self.limit = min(clip.context_length, recipe.token_limit or clip.context_length)
        self.count = None if recipe.subcaptions == "all" else recipe.subcaptions
        self.draws = {
            "long": recipe.subcaptions is not None,
            "short": recipe.rewrites or recipe.objective == "debias-clip",
        }
        clip.tokenize("a")  # complains of a tokenizer that is not the model's

    def long(self, epoch: int, index: int, captions: Mapping[str, str]) -> tuple[str, str, int]:
        """Some sub-captions of one captioner's caption, whose it is, and how many it has."""
        rng = np.random.default_rng((self.recipe.seed, epoch, index))  # as `data.draw_texts`
        return draw_subcaptions(captions, self.count, rng)

    def short(self, epoch: int, index: int, long: str, captions: Sequence[str]) -> str:
        """One of an image's captions, or some sentences of its long one behind the first."""
        rng = np.random.default_rng((self.recipe.seed, epoch, index, _SHORT))
        # DeBias-CLIP: without the summary, or the model learns to read nothing else.
        if self.recipe.objective == "debias-clip":
            return sample_sentences(long, rng)
        return choose_caption(captions, rng)

    def tokenize(self, texts: Sequence[str]) -> tuple[TokenBatch, int]:
        """Texts as token ids, and how many of them were cut at the limit."""
        parts, truncated = [], 0
        # In pieces: the tokenizer gives a padded rectangle, which for a whole data set would be
        # large.
        for start in range(0, len(texts), TOKENIZED_AT_ONCE):
            some = self.tokenizer.encode_batch(texts[start : start + TOKENIZED_AT_ONCE], self.limit)
            truncated += int(some.num_truncated)
            lengths_B = np.asarray(some.lengths, dtype=np.int64)
            ids = [row[:n] for row, n in zip(np.asarray(some.ids), lengths_B, strict=True)]
            # Python's own hash differs from process to process.
            digests = (blake2b(row.astype(np.int64).tobytes(), digest_size=8) for row in ids)
            identity_B = [int.from_bytes(one.digest(), "big", signed=True) for one in digests]
            flat_P = np.concatenate(ids).astype(np.int64)
            parts.append(TokenBatch(*map(torch.from_numpy, (flat_P, lengths_B)),
                                    torch.tensor(identity_B)))  # fmt: skip
        return joined(parts), truncated


def captions_of(data: Any, wanted: Sequence[str] = ()) -> list[dict[str, str]]:
    """Every image's long captions by captioner; data of one long text have one, "long".

    Raises LabError for a captioner that is not among them, and for an image that none of `wanted`
    has described.
    """
    captions = list(getattr(data, "captioners", None) or ({"long": text} for text in data.long))
    if not wanted:
        return captions
    check_captioners(wanted, {who for of_image in captions for who in of_image})
    chosen = [{who: by[who] for who in wanted if who in by} for by in captions]
    for index, of_image in enumerate(chosen):
        if not of_image:
            raise LabError(f"Picture {index} has no long caption by {' or '.join(wanted)}.")
    return chosen


def check_captioners(wanted: Sequence[str], known: Iterable[str]) -> None:
    """Raise LabError for a captioner that the data do not have."""
    known = sorted(known)
    for who in wanted:
        if who not in known:
            raise LabError(f"The data have no captioner {who!r}. {suggest(who, known)}")


# --- Which pairs make up which batch, and what a batch holds ---

GROUPED_BATCHES = 16


class Batch(NamedTuple):
    """One process's part of a global batch: images as pixels or as cached features, and texts.

    Texts stay on the CPU until a tower reads them: their lengths decide how they are laid out, and
    asking a GPU for them would wait for it.
    """

    pixels_B3HW: torch.Tensor | None
    long: TokenBatch | None
    short: TokenBatch | None
    stored_BS: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch with its images on `device`."""
        images = (
            part if part is None else part.to(device, non_blocking=True)
            for part in (self.pixels_B3HW, self.stored_BS)
        )
        pixels_B3HW, stored_BS = images
        return self._replace(pixels_B3HW=pixels_B3HW, stored_BS=stored_BS)

    def rows(self, start: int, stop: int) -> Batch:
        """The pairs from `start` to `stop`."""
        rows_B = torch.arange(self.pairs)[start:stop]
        return Batch(
            None if self.pixels_B3HW is None else self.pixels_B3HW[start:stop],
            self.long and self.long.select(rows_B),
            self.short and self.short.select(rows_B),
            None if self.stored_BS is None else self.stored_BS[start:stop],
        )

    @property
    def pairs(self) -> int:
        """How many pairs it holds."""
        return len(self.pixels_B3HW if self.stored_BS is None else self.stored_BS)


class TrainingPairs(Dataset):
    """Images and texts of a data set, handed out by whole batches.

    `data` has `.images` (uint8 [N, H, W, 3] or paths), `.short` and `.long`; with sub-captions to
    draw also `.captioners`, with rewrites `.captions`. `stored` are the image features of a locked
    tower (`stored_features`), handed out instead of pixels. `drawn` says what was found in the
    long texts. Raises LabError as `check_pairs` and `captions_of` do.

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
        self.images, self.stored = data.images, stored
        # Turning images into pixels needs no weights, and worker processes are sent a copy.
        self.recipient = replace(clip, model=nn.Identity())
        self.sampler = sampler = CaptionSampler(clip, recipe)
        self.num_truncated = {"long": 0, "short": 0}
        self.tables: dict[str, TokenBatch] = {}
        self.drawn: CaptionCounts | None = None
        self.captions: list[dict[str, str]] = []
        self.data = data
        for which, unread in (("long", "short"), ("short", "long")):
            # What is read as it is, is tokenised once; what is drawn, when a batch needs it.
            if recipe.captions != unread and not sampler.draws[which]:
                table, cut = sampler.tokenize(list(getattr(data, which)))
                self.tables[which] = table._replace(ids_P=table.ids_P.int())
                self.num_truncated[which] = cut
        if recipe.captions != "short":
            self.drawn = self._look_at_long()
            self.num_truncated["long"] = self.drawn.truncated

    def _look_at_long(self) -> CaptionCounts:
        """What the run reads of the long texts, before it starts."""
        if "long" in self.tables:
            return CaptionCounts(len(self), 0, {}, self.num_truncated["long"])
        self.captions = captions_of(self.data, self.recipe.captioners)
        texts, chosen, fewer = [], Counter(), 0
        for index in range(min(COUNTED, len(self))):
            try:
                text, who, parts = self.sampler.long(0, index, self.captions[index])
            except LabError as error:
                raise LabError(f"Picture {index}: {error}") from None
            texts.append(text)
            chosen[who] += 1
            fewer += self.sampler.count is not None and parts < self.sampler.count
        return CaptionCounts(
            len(texts), fewer, dict(sorted(chosen.items())), self.sampler.tokenize(texts)[1]
        )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each pair's long text; zeros where texts are drawn or there are none."""
        if "long" in self.tables:
            return self.tables["long"].lengths_B.numpy()
        return np.zeros(len(self), dtype=np.int64)

    def texts(self, which: str, indices: Sequence[int]) -> TokenBatch | None:
        """The "long" or "short" texts of these pairs, in the epoch of `indices` (else the first).

        None if the recipe reads none.
        """
        if which in self.tables:
            return self.tables[which].select(indices)
        if self.recipe.captions not in ("both", which):
            return None
        # Drawn here and not in advance: an epoch's draws of a large data set would be a second
        # copy.
        epoch, data, sampler = getattr(indices, "epoch", 0), self.data, self.sampler
        if which == "long":
            texts = [sampler.long(epoch, index, self.captions[index])[0] for index in indices]
        else:
            short = data.captions if self.recipe.rewrites else [()] * len(self)
            texts = [sampler.short(epoch, i, data.long[i], short[i]) for i in indices]
        return sampler.tokenize(texts)[0]

    def __getitems__(self, indices: list[int]) -> Batch | LabError:
        """The pairs at `indices`. An unreadable image comes back as its error: raised in a
        worker process, its message would arrive wrapped in a traceback."""
        try:
            images = self.read_images(indices)
        except LabError as error:
            return error
        long, short = self.texts("long", indices), self.texts("short", indices)
        # Pixels of a locked tower's images would be decoded for nothing.
        if self.stored is not None:
            return Batch(None, long, short, images)
        return Batch(images, long, short)

    def batches(
        self, first: int, last: int, rank: int = 0, processes: int = 1
    ) -> Iterable[Batch | LabError]:
        """This process's part of the batches of steps `first`, `first` + 1, ... `last` - 1.

        Other processes decode only images on disk.
        """
        # What is in memory is indexed faster than it is sent between processes.
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

    def read_images(self, indices: list[int]) -> torch.Tensor:
        """Pixels [B, 3, H, W] or cached features [B, *S]. Raises LabError as `pixels` does."""
        if self.stored is not None:
            return torch.from_numpy(np.array(self.stored[indices]))
        if isinstance(self.images, np.ndarray):
            return pixels(self.recipient, self.images[indices])
        return pixels(self.recipient, [self.images[index] for index in indices])


def check_pairs(data: Any) -> None:
    """Raise LabError unless `data` has as many images as short and long texts, none empty."""
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

    A permutation of the data without the incomplete last batch; with a `hard_negative_group` above
    1, of runs of that many neighbours, each of which stays in one batch. With `length_grouped`,
    every 16 consecutive batches of it are sorted by length, cut into batches again, and those are
    shuffled.
    """
    rng = np.random.default_rng((recipe.seed, epoch))
    size, run = recipe.batch_size, recipe.hard_negative_group
    # Whole groups are shuffled, so that the hard negatives of a group share a batch.
    runs = rng.permutation(len(lengths) // run)[: len(lengths) // size * size // run]
    order = (runs[:, None] * run + np.arange(run)).ravel()
    if not recipe.length_grouped:
        return order
    groups = []
    for start in range(0, len(order), GROUPED_BATCHES * size):
        group = order[start : start + GROUPED_BATCHES * size]
        # Only within some batches, so that an epoch stays nearly random.
        by_length = group[np.argsort(lengths[group], kind="stable")]
        # Short batches first, every time, would be a curriculum that nobody asked for.
        groups.append(rng.permutation(by_length.reshape(-1, size)).ravel())
    return np.concatenate(groups)


class StepSampler(Sampler[list[int]]):
    """This process's part of the batches of steps `first`, `first` + 1, ... `last` - 1.

    The parts of all processes in rank order are the global batch, so the gathered features stand
    as in a single process.
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
        self.rank, self.per_process_batch = rank, recipe.batch_size // processes

    def __len__(self) -> int:
        return self.last - self.first

    def __iter__(self) -> Iterator[list[int]]:
        per_epoch = len(self.lengths) // self.recipe.batch_size
        order, epoch_of_order = np.empty(0, dtype=np.int64), -1
        for step in range(self.first, self.last):
            # From the step alone: a resumed run needs no state of a sampler.
            epoch, position = divmod(step, per_epoch)
            if epoch != epoch_of_order:
                order, epoch_of_order = epoch_order(self.recipe, self.lengths, epoch), epoch
            start = position * self.recipe.batch_size + self.rank * self.per_process_batch
            yield BatchIndices(order[start : start + self.per_process_batch].tolist(), epoch)


# --- A locked image tower runs once: its features are cached and read back every epoch ---

RUN = 256
"""Images that pass the tower together. Part of what decides the last bits of a feature."""

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
    (read-only) from then on; without, they are made in memory. An interrupted cache is finished by
    the next run; several processes each make their part.

    Raises LabError if `folder` holds features of anything else, for images that cannot be read,
    and for features that are not finite.
    """
    accelerator = accelerator or Accelerator()
    if len(images) == 0:
        raise LabError("Expected at least one picture, got none.")
    visual, size = clip.model.visual, clip.image_size
    with torch.no_grad(), evaluating(clip.model):
        # Asked of the tower, not derived: heads and pools of timm differ.
        blank_1 = torch.zeros(1, 3, size, size, device=clip.device)
        shape = (len(images), *image_states(visual, blank_1, tokens).shape[1:])
    dtype = np.dtype(np.float16 if half else np.float32)
    shown = progress and accelerator.is_main_process

    def make(runs: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        return _features_of(clip, images, runs, tokens, half, workers, shown)

    if folder is None:
        features = np.empty(shape, dtype)
        for run, states in make(range(-(-len(images) // RUN))):
            features[run * RUN : (run + 1) * RUN] = states
        return features
    identity = {
        "format": "longclip-lab-features-1",
        "tower": weights_hash(frozen_part(visual)),
        "preprocess": clip.card["preprocess"],
        "pictures": images_hash(images),
        "images": how_read(images),
        "tokens": tokens,
        "shape": list(shape),
        "dtype": dtype.name,
    }
    home = Path(folder)
    if accelerator.is_main_process:
        # Through JSON, so that it equals what is read back (tuples become lists).
        cache.claim(home, json.loads(json.dumps(identity)), _MEANING, RUN)
    accelerator.wait_for_everyone()
    # Every process takes every N-th run that is missing, so that all end together.
    if not cache.is_whole(home):
        rank, processes = accelerator.process_index, accelerator.num_processes
        cache.fill(home, RUN, make(cache.missing_runs(home)[rank::processes]))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            cache.finish(home)
        accelerator.wait_for_everyone()
    return cache.read(home)


class _ImageRuns(Dataset):
    """Pixels of whole runs of images; a LabError comes back as a value, out of a worker too."""

    def __init__(self, clip: Clip, images: Images):
        self.images, self.recipient = images, replace(clip, model=nn.Identity())

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


@torch.no_grad()
def _features_of(
    clip: Clip,
    images: Images,
    runs: Sequence[int],
    tokens: bool,
    half: bool,
    workers: int,
    progress: bool,
) -> Iterator[tuple[int, np.ndarray]]:
    """(run, its features) for each of `runs`."""
    loader = DataLoader(
        _ImageRuns(clip, images),
        batch_size=None,
        sampler=list(runs),
        num_workers=0 if isinstance(images, np.ndarray) else workers,
        generator=torch.Generator().manual_seed(0),
    )
    total = sum(min(RUN, len(images) - run * RUN) for run in runs)
    lower = half and clip.device.type == "cuda"
    bar = tqdm(total=total, unit="image", disable=not progress, desc="features")
    with evaluating(clip.model), bar:
        for run, pixels_B3HW in zip(runs, loader, strict=True):
            if isinstance(pixels_B3HW, LabError):
                raise pixels_B3HW
            with torch.autocast("cuda", torch.bfloat16) if lower else nullcontext():
                states = image_states(clip.model.visual, pixels_B3HW.to(clip.device), tokens)
            # On a GPU the towers run in bfloat16; features are kept with more bits, in float16.
            states = states.to(torch.float16 if half else torch.float32).cpu()
            yield run, check_finite(states, "pictures", clip.name).numpy()
            bar.update(len(pixels_B3HW))
