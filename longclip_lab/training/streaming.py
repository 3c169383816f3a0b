"""Training on shards: the same batches as a stream, in any number of processes.

FOLDER/broken/process-00000.json    what one process has found, over all restarts of the run
FOLDER/broken-samples.json          what all processes have found, {name: why}
FOLDER/run.json                     how many that are, under "broken"

A global batch is a function of (recipe, shards, step): not of the number of processes, of their
worker processes, or of where a run began. The order is `data.shards.Order`'s. It calls a stream a
lane.

B pairs of one process, H W an image's size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from longclip_lab.data.shards import Broken, Order, Piece, Sample, ShardSet, Window, stand_ins
from longclip_lab.data.shards.format import longer_than
from longclip_lab.errors import LabError
from longclip_lab.files import atomic_write, read_json_object, to_json
from longclip_lab.images import ImageError, decode_image
from longclip_lab.models import Clip, pixels
from longclip_lab.training.data import (
    Batch,
    CaptionCounts,
    CaptionSampler,
    TokenBatch,
    check_captioners,
    joined,
)
from longclip_lab.training.recipe import Recipe

# --- Which pairs a run could not use: written down as they are found, whole at its end ---

BROKEN, RECORD = "broken-samples.json", "run.json"
_PARTS = "broken"


def read_broken(path: Path) -> dict[str, str]:
    """What one process has found, {name: why}. Raises LabError for a file of anything else."""
    pairs = read_json_object(path)
    if not all(isinstance(why, str) for why in pairs.values()):
        raise LabError(f"{path} does not say which pairs are broken, and why. Move it away.")
    return pairs


def all_broken(
    accelerator: Accelerator, pairs: dict[str, str], folder: Path | None
) -> dict[str, str]:
    """What all processes have found, by name; with a folder, what was found before a restart too,
    by processes that there may be no more."""
    # Every process knows what it has found itself; the folder knows what earlier ones have.
    parts = [pairs]
    if accelerator.num_processes > 1:
        parts = gather_object([pairs])
    if folder is not None:
        paths = sorted((folder / _PARTS).glob("process-*.json"))
        parts += [read_broken(path) for path in paths]
    found = {name: why for part in parts for name, why in part.items()}
    found = dict(sorted(found.items()))
    if folder is not None and found and accelerator.is_main_process:
        atomic_write(folder / BROKEN, to_json(found, indent=1) + "\n")
        record = read_json_object(folder / RECORD)
        record["broken"] = {"pairs": len(found), "named_in": BROKEN}
        atomic_write(folder / RECORD, to_json(record, indent=2) + "\n")
    return found


# --- What the streams of a process read: windows of pairs, the broken ones replaced ---


class Part(NamedTuple):
    """Some streams' part of a batch, and the news: broken pairs found on the way, and counts.

    `counts` are "read" (pairs read) and "lost" (of which broken); and of the first epoch "texts"
    (pairs in batches), "long" and "short" (texts that were cut), "drawn" and "fewer"
    (`data.CaptionCounts`) and ("by", captioner).
    """

    batch: Batch
    broken: dict[str, str]
    counts: Counter


class DecodedPair(NamedTuple):
    """A pair on its way into a batch: its number among all, what it holds, its image."""

    number: int
    sample: Sample
    pixels_3HW: torch.Tensor


@dataclass
class StreamReader:
    """One stream's pairs, row by row; `broken` and `counts` hold what was found since last asked.

    While a window is used the next one is read, as many pairs as are handed out: reading it all at
    once would let everybody wait.
    """

    shards: ShardSet
    order: Order
    number: int
    last: int
    grouped: bool
    to_pixels: Callable[[Image.Image], torch.Tensor]
    broken: dict[str, str] = field(default_factory=dict)
    counts: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.window: Window | None = None
        self.reader = _Reader(self.shards)
        self.ahead: list[Sample | Broken] = []
        self.coming: Iterator[Sample | Broken] | None = None

    def row(self, step: int) -> list[DecodedPair]:
        """The stream's part of a step's batch. Raises LabError if a window has no good pair."""
        window, row = self.order.window_at(step)
        if window != self.window:
            self._load(window)
            self._look_ahead(step - row + window.rows)
        row = int(self.rows[row])
        share = self.order.share
        # As many pairs of the next window as this batch takes: reading is spread evenly.
        self.ahead += islice(self.coming or (), share)
        found = [self._pair_at(row, column) for column in range(share)]
        # A stand-in must not be in the batch twice: it would be its own negative.
        taken = {chosen.number for chosen in found if chosen is not None}
        for column, chosen in enumerate(found):
            if chosen is None:
                found[column] = self._stand_in(row, column, taken)
                taken.add(found[column].number)
        return found

    def _load(self, window: Window) -> None:
        """Read a window, and find out what of it cannot be used without decoding anything."""
        self.window, order = window, self.order
        pieces = order.pieces(self.number, window)
        # The first window of a run has nobody who has read ahead for it.
        if self.coming is None:
            self.coming = self._read(pieces)
        self.content: list[Sample | Broken | None] = [*self.ahead, *self.coming]
        self.numbers = order.numbers(self.number, window)
        lengths = lengths_of(self.shards, pieces) if self.grouped else None
        self.table = order.table(self.number, window, lengths)
        self.rows = order.row_order(window, self.grouped)
        self.counts["read"] += len(self.content)
        for place, sample in enumerate(self.content):
            # Found without decoding: its checksum is wrong, or its bytes are not there.
            if isinstance(sample, Broken):
                self._lose(place, sample.name, sample.detail or sample.reason)

    def _look_ahead(self, step: int) -> None:
        """Begin with the window of a step, unless the stream ends before it."""
        self.ahead, self.coming = [], iter(())
        if step < self.last:
            self.coming = self._read(self.order.pieces(self.number, self.order.window_at(step)[0]))

    def _read(self, pieces: Sequence[Piece]) -> Iterator[Sample | Broken]:
        for piece in pieces:
            yield from self.reader.read(piece)

    def _pair_at(self, row: int, column: int) -> DecodedPair | None:
        """The pair in this place of the window's table; None if it is broken."""
        place = int(self.table[row, column])
        sample = self.content[place]
        if sample is None:
            return None
        try:
            image = decode_image(sample.image)
        # Only decoding shows that an image is broken whose bytes are as they were written.
        except ImageError as error:
            self._lose(place, self.shards.pair_name(int(self.numbers[place])), str(error))
            return None
        return DecodedPair(int(self.numbers[place]), sample, self.to_pixels(image))

    def _stand_in(self, row: int, column: int, taken: set[int]) -> DecodedPair:
        """The first good pair that the batch does not have yet; a second time if there is none."""
        twice: DecodedPair | None = None
        for there in stand_ins(*self.table.shape, row, column):
            chosen = self._pair_at(*there)
            if chosen is not None and chosen.number not in taken:
                return chosen
            twice = twice or chosen
        if twice is None:
            raise LabError(
                f"All {self.table.size} pairs of a window are broken, such as "
                f"{self.shards.pair_name(int(self.numbers[0]))}: `longclip-lab data check` names "
                "them all. Write those shards anew, or read more at a time (--shuffle-buffer)."
            )
        return twice

    def _lose(self, place: int, name: str, reason: str) -> None:
        self.content[place] = None
        self.broken[name] = reason
        self.counts["lost"] += 1


class _Reader:
    """Goes on in an open shard where the piece before ended."""

    def __init__(self, shards: ShardSet):
        self.shards = shards
        self.at: tuple[int, int] | None = None
        self.samples: Iterator[Sample | Broken] = iter(())

    def read(self, piece: Piece) -> Iterator[Sample | Broken]:
        """The pairs of a piece."""
        # A tar is read from front to back: a new start costs a request, going on costs none.
        if self.at != (piece.shard, piece.start):
            self.samples = self.shards.samples(piece.shard, piece.start)
        for place in range(piece.start, piece.stop):
            self.at = (piece.shard, place + 1)
            yield next(self.samples)


def lengths_of(shards: ShardSet, pieces: Sequence[Piece]) -> np.ndarray:
    """Tokens of the long texts of these pairs, by the shards' own tokenizer."""
    parts = [shards.sidecar(shard).long_tokens[start:stop] for shard, start, stop in pieces]
    return np.concatenate([np.asarray(part, dtype=np.int64) for part in parts])


@dataclass
class StreamGroup:
    """Batches of some streams; read anew in every worker process."""

    clip: Clip
    shards: ShardSet
    recipe: Recipe
    order: Order

    def __post_init__(self) -> None:
        self.sampler = CaptionSampler(self.clip, self.recipe)
        # Turning images into pixels needs no weights, and worker processes are sent a copy.
        self.clip = replace(self.clip, model=nn.Identity())

    def parts(self, numbers: Sequence[int], first: int, last: int) -> Iterator[Part | LabError]:
        """What these streams give to the batches of steps `first` to `last`; an error is the last.

        Raised in a worker process, its message would arrive wrapped in a traceback.
        """
        grouped = self.recipe.length_grouped
        streams = [
            StreamReader(self.shards, self.order, number, last, grouped, self._pixels)
            for number in numbers
        ]
        try:
            for step in range(first, last):
                chosen = [one for stream in streams for one in stream.row(step)]
                # News go along with the batch: worker processes share no memory with the run.
                broken: dict[str, str] = {}
                counts: Counter = Counter()
                for stream in streams:
                    broken |= stream.broken
                    counts.update(stream.counts)
                    stream.broken, stream.counts = {}, Counter()
                batch = self._batch(step, chosen, counts)
                yield Part(batch, broken, counts)
        except LabError as error:
            yield error

    def _batch(self, step: int, chosen: list[DecodedPair], counts: Counter) -> Batch:
        window, _ = self.order.window_at(step)
        # Resampled there are no epochs, and a pair that comes again should be drawn anew.
        epoch = window.number if self.order.resample else window.epoch
        if window.epoch > 0:
            counts = Counter()  # what is said of texts is said of the first epoch
        counts["texts"] += len(chosen)
        texts: dict[str, TokenBatch | None] = {"long": None, "short": None}
        for which, text_of, unread in (
            ("long", self._long, "short"),
            ("short", self._short, "long"),
        ):
            if self.recipe.captions != unread:
                read = [text_of(epoch, one, counts) for one in chosen]
                texts[which], cut = self.sampler.tokenize(read)
                counts[which] += cut
        return Batch(torch.stack([one.pixels_3HW for one in chosen]), **texts)

    def _pixels(self, image: Image.Image) -> torch.Tensor:
        """Exactly what `TrainingPairs` makes of the same file, or of a drawn world's values."""
        # Exactly what `TrainingPairs` makes of a world's values, bit by bit.
        if self.shards.pictures == "values":
            return pixels(self.clip, np.array(image)[None])[0]
        return pixels(self.clip, [image])[0]

    def _long(self, epoch: int, one: DecodedPair, counts: Counter) -> str:
        texts = one.sample.texts
        if not self.sampler.draws["long"]:
            return texts.long
        captions = texts.captioners or {"long": texts.long}
        if wanted := self.recipe.captioners:
            captions = {who: captions[who] for who in wanted if who in captions}
        if not captions:
            name = self.shards.pair_name(one.number)
            raise LabError(f"{name} has no long caption by {' or '.join(wanted)}.")
        text, who, parts = self.sampler.long(epoch, one.number, captions)
        counts["drawn"] += 1
        counts["fewer"] += self.sampler.count is not None and parts < self.sampler.count
        counts["by", who] += 1
        return text

    def _short(self, epoch: int, one: DecodedPair, counts: Counter) -> str:
        texts = one.sample.texts
        if not self.sampler.draws["short"]:
            return texts.short
        return self.sampler.short(epoch, one.number, texts.long, texts.captions)


# --- Training on shards: the same batches as a stream, in any number of processes ---

_FEW = 1000
"""Pairs below which a share of broken ones says little."""
_NAMED = 5


class StreamedPairs:
    """Images and texts of shards, handed out by whole batches, as `TrainingPairs` does.

    `broken` names the pairs that this process could not use, and why; another pair of the same
    window stands in for each. Raises LabError for what streams cannot do: keep groups of hard
    negatives together and read cached features; and as `Order` does.
    """

    stored = None

    def __init__(self, clip: Clip, shards: ShardSet, recipe: Recipe | None = None):
        self.recipe = recipe = recipe or Recipe()
        _check(shards, recipe)
        self.shards = shards
        self.order = Order(
            shards.counts,
            recipe.batch_size,
            recipe.num_streams,
            recipe.shuffle_buffer,
            recipe.seed,
            recipe.resample,
        )
        self.reader = StreamGroup(clip, shards, recipe, self.order)
        self.sampler = self.reader.sampler
        self.counts: Counter = Counter()
        self.broken: dict[str, str] = {}
        self.broken_path: Path | None = None

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each pair's long text, by the shards' tokenizer; zeros where they are drawn."""
        if self.recipe.subcaptions is None and self.recipe.captions != "short":
            return self.shards.lengths
        return np.zeros(len(self), dtype=np.int64)

    @property
    def num_truncated(self) -> dict[str, int | None]:
        """How many "long" and "short" texts do not fit: of all, where the manifest knows, else of
        those that this process has read of the first epoch; None if it has read none."""
        found: dict[str, int | None] = {}
        counted = self.sampler.tokenizer.name == self.shards.tokens["tokenizer"]
        for which, unread in (("long", "short"), ("short", "long")):
            if self.recipe.captions == unread:
                found[which] = 0
            elif self.sampler.draws[which] or not counted:
                found[which] = self.counts[which] if self.counts["texts"] else None
            else:
                texts = self.shards.tokens[which]["texts_by_length"]
                found[which] = longer_than(texts, self.sampler.limit)
        return found

    @property
    def drawn(self) -> CaptionCounts | None:
        """What the first epoch's draw of long texts gave, as far as this process has read it."""
        if not self.counts["texts"] or self.recipe.captions == "short":
            return None
        by = {key[1]: count for key, count in self.counts.items() if isinstance(key, tuple)}
        read, fewer = self.counts["drawn"], self.counts["fewer"]
        return CaptionCounts(read, fewer, dict(sorted(by.items())), self.num_truncated["long"] or 0)

    def batches(
        self, first: int, last: int, rank: int = 0, processes: int = 1
    ) -> Iterable[Batch | LabError]:
        """This process's part of the batches of steps `first`, `first` + 1, ... `last` - 1.

        An error is the last item, as of `TrainingPairs`.
        """
        # Whole streams, so that the number of processes changes no batch.
        count = self.order.lanes
        if count % processes:
            yield LabError(
                f"{count} streams cannot be shared out evenly to {processes} processes; give a "
                "multiple (--num-streams), or fewer processes."
            )
            return
        mine = range(rank * count // processes, (rank + 1) * count // processes)
        for parts in self._parts(mine, first, last):
            error = next((part for part in parts if isinstance(part, LabError)), None)
            error = error or self._take(parts)
            if error is not None:
                yield error
                return
            batches = [part.batch for part in parts]
            yield Batch(
                torch.cat([batch.pixels_B3HW for batch in batches]),
                joined([batch.long for batch in batches]),
                joined([batch.short for batch in batches]),
            )

    def members(self, step: int) -> list[str]:
        """The pairs of the global batch of a step, before any stand-in, for a record of what went
        wrong."""
        names = []
        window, row = self.order.window_at(step)
        grouped = self.recipe.length_grouped
        # Length-grouped windows take their rows in another order.
        row = int(self.order.row_order(window, grouped)[row])
        for lane in range(self.order.lanes):
            lengths = None
            if grouped:
                lengths = lengths_of(self.shards, self.order.pieces(lane, window))
            places = self.order.table(lane, window, lengths)[row]
            numbers = self.order.numbers(lane, window)[places]
            names += [self.shards.pair_name(int(number)) for number in numbers]
        return names

    def note_in(self, folder: Path, rank: int) -> None:
        """Write down in `folder`, as they are found, which pairs are broken."""
        self.broken_path = folder / _PARTS / f"process-{rank:05d}.json"
        if self.broken_path.exists():
            self.broken = read_broken(self.broken_path)

    def _parts(self, mine: range, first: int, last: int) -> Iterator[Sequence[Part | LabError]]:
        """What the worker processes give for each step, in the order of their streams."""
        # A worker reads whole streams as well.
        workers = min(self.recipe.workers, len(mine))
        if workers == 0:
            yield from ((part,) for part in self.reader.parts(mine, first, last))
            return
        loader = DataLoader(
            _WorkerStreams(self.reader, mine, first, last),
            batch_size=None,
            collate_fn=_as_it_is,
            num_workers=workers,
            # Its own generator, or starting to iterate would draw from torch's global one.
            generator=torch.Generator().manual_seed(0),
        )
        # Whole items come from the workers in turn.
        parts = iter(loader)
        while some := tuple(islice(parts, workers)):
            yield some

    def _take(self, parts: Sequence[Part]) -> LabError | None:
        """Note what is new; an error if too much is broken."""
        news: dict[str, str] = {}
        for part in parts:
            news |= {name: why for name, why in part.broken.items() if name not in self.broken}
            # Counts of all workers together decide whether too much is broken.
            self.counts.update(part.counts)
        self.broken |= news
        if news and self.broken_path is not None:
            # As it is found: what was found before a kill is known to the next start.
            atomic_write(self.broken_path, to_json(self.broken, indent=1) + "\n")
        read, lost = self.counts["read"], self.counts["lost"]
        # Against a thousand pairs at least, or the first broken one would stop the run.
        if lost <= self.recipe.max_bad_fraction * max(read, min(_FEW, len(self))):
            return None
        some = ", ".join(f"{name} ({why})" for name, why in islice(self.broken.items(), _NAMED))
        return LabError(
            f"{lost} of {read} pairs that were read are broken, more than max_bad_fraction "
            f"({self.recipe.max_bad_fraction:g}) allows: {some}. `longclip-lab data check` names "
            "all."
        )


def _as_it_is(part: Part | LabError) -> Part | LabError:
    """torch's own copy of a Counter counts everything twice."""
    return part


class _WorkerStreams(IterableDataset):
    """The parts of a worker process's own streams."""

    def __init__(self, reader: StreamGroup, numbers: range, first: int, last: int):
        self.reader, self.numbers, self.first, self.last = reader, numbers, first, last

    def __iter__(self) -> Iterator[Part | LabError]:
        worker = get_worker_info()
        own = np.array_split(np.asarray(self.numbers), worker.num_workers)[worker.id]
        return self.reader.parts(own.tolist(), self.first, self.last)


def _check(shards: ShardSet, recipe: Recipe) -> None:
    if recipe.hard_negative_group > 1:
        raise LabError(
            "Shards are shuffled pair by pair and keep no hard negatives together: set "
            "hard_negative_group=1 (--hard-negative-group 1)."
        )
    if recipe.lock_image and recipe.cache_image_features:
        raise LabError(
            "Pictures in shards have no cached features: set cache_image_features=False "
            "(--no-cache-image-features) to run the locked tower every time."
        )
    check_captioners(recipe.captioners, shards.captioners or {"long": 0})
