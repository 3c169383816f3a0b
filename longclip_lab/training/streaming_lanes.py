"""What the lanes of a process read: windows of pairs, the broken ones replaced.

H W a picture's size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import nn

from longclip_lab.data.shards import Broken, Order, Piece, Sample, ShardSet, Window, stand_ins
from longclip_lab.errors import LabError
from longclip_lab.images import ImageError, decode_image
from longclip_lab.models import Clip, pixels
from longclip_lab.training.batches import Batch
from longclip_lab.training.recipe import Recipe
from longclip_lab.training.texts import Draws, Texts, token_limit, tokenized


class Part(NamedTuple):
    """Some lanes' share of a batch, and the news: broken pairs found on the way, and counts.

    `counts` are "read" (pairs read) and "lost" (of which broken); and of the first epoch "texts"
    (pairs in batches), "long" and "short" (texts that were cut), "drawn" and "fewer"
    (`texts.Drawn`) and ("by", captioner).
    """

    batch: Batch
    broken: dict[str, str]
    counts: Counter


class Chosen(NamedTuple):
    """A pair on its way into a batch: its number among all, what it holds, its picture."""

    number: int
    sample: Sample
    pixels_3HW: torch.Tensor


@dataclass
class Lane:
    """One lane's pairs, row by row; `broken` and `counts` hold what was found since last asked.

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

    def row(self, step: int) -> list[Chosen]:
        """The lane's share of a step's batch. Raises LabError if a window has no good pair."""
        window, row = self.order.window_at(step)
        if window != self.window:
            self._load(window)
            self._look_ahead(step - row + window.rows)
        row = int(self.rows[row])
        share = self.order.share
        self.ahead += islice(self.coming or (), share)
        found = [self._picture(row, column) for column in range(share)]
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
        if self.coming is None:
            self.coming = self._read(pieces)
        self.content: list[Sample | Broken | None] = [*self.ahead, *self.coming]
        self.numbers = order.numbers(self.number, window)
        lengths = lengths_of(self.shards, pieces) if self.grouped else None
        self.table = order.table(self.number, window, lengths)
        self.rows = order.row_order(window, self.grouped)
        self.counts["read"] += len(self.content)
        for place, sample in enumerate(self.content):
            if isinstance(sample, Broken):
                self._lose(place, sample.name, sample.detail or sample.reason)

    def _look_ahead(self, step: int) -> None:
        """Begin with the window of a step, unless the lane ends before it."""
        self.ahead, self.coming = [], iter(())
        if step < self.last:
            self.coming = self._read(self.order.pieces(self.number, self.order.window_at(step)[0]))

    def _read(self, pieces: Sequence[Piece]) -> Iterator[Sample | Broken]:
        for piece in pieces:
            yield from self.reader.read(piece)

    def _picture(self, row: int, column: int) -> Chosen | None:
        """The pair in this place of the window's table; None if it is broken."""
        place = int(self.table[row, column])
        sample = self.content[place]
        if sample is None:
            return None
        try:
            picture = decode_image(sample.image)
        except ImageError as error:
            self._lose(place, self.shards.pair_name(int(self.numbers[place])), str(error))
            return None
        return Chosen(int(self.numbers[place]), sample, self.to_pixels(picture))

    def _stand_in(self, row: int, column: int, taken: set[int]) -> Chosen:
        """The first good pair that the batch does not have yet; a second time if there is none."""
        twice: Chosen | None = None
        for there in stand_ins(*self.table.shape, row, column):
            chosen = self._picture(*there)
            if chosen is not None and chosen.number not in taken:
                return chosen
            twice = twice or chosen
        if twice is None:
            raise LabError(
                f"All {self.table.size} pairs of a window are broken, such as "
                f"{self.shards.pair_name(int(self.numbers[0]))}: `longclip-lab data check` names "
                "them all. Write those shards anew, or read more at a time (--shuffle-window)."
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
class LaneReader:
    """Batches of some lanes; made anew in every worker process."""

    clip: Clip
    shards: ShardSet
    recipe: Recipe
    order: Order

    def __post_init__(self) -> None:
        self.limit = token_limit(self.clip, self.recipe)
        # Turning pictures into pixels needs no weights, and worker processes are sent a copy.
        self.clip = replace(self.clip, model=nn.Identity())
        self.draws = Draws(self.recipe)

    def parts(self, lanes: Sequence[int], first: int, last: int) -> Iterator[Part | LabError]:
        """What these lanes give to the batches of steps `first` to `last`; an error is the last."""
        grouped = self.recipe.length_grouped
        reading = [
            Lane(self.shards, self.order, number, last, grouped, self._pixels) for number in lanes
        ]
        try:
            for step in range(first, last):
                chosen = [one for lane in reading for one in lane.row(step)]
                broken: dict[str, str] = {}
                counts: Counter = Counter()
                for lane in reading:
                    broken |= lane.broken
                    counts.update(lane.counts)
                    lane.broken, lane.counts = {}, Counter()
                batch = self._batch(step, chosen, counts)
                yield Part(batch, broken, counts)
        except LabError as error:
            yield error

    def _batch(self, step: int, chosen: list[Chosen], counts: Counter) -> Batch:
        window, _ = self.order.window_at(step)
        # Resampled there are no epochs, and a pair that comes again should be drawn anew.
        epoch = window.number if self.order.resample else window.epoch
        if window.epoch > 0:
            counts = Counter()  # what is said of texts is said of the first epoch
        counts["texts"] += len(chosen)
        long = short = None
        if self.recipe.captions != "short":
            long = self._texts("long", [self._long(epoch, one, counts) for one in chosen], counts)
        if self.recipe.captions != "long":
            short = self._texts("short", [self._short(epoch, one) for one in chosen], counts)
        return Batch(torch.stack([one.pixels_3HW for one in chosen]), long, short)

    def _pixels(self, picture: Image.Image) -> torch.Tensor:
        """Exactly what `TrainingPairs` makes of the same file, or of a drawn world's values."""
        if self.shards.pictures == "values":
            return pixels(self.clip, np.array(picture)[None])[0]
        return pixels(self.clip, [picture])[0]

    def _long(self, epoch: int, one: Chosen, counts: Counter) -> str:
        texts = one.sample.texts
        if not self.draws.draws_long:
            return texts.long
        captions = texts.captioners or {"long": texts.long}
        if wanted := self.recipe.captioners:
            captions = {who: captions[who] for who in wanted if who in captions}
        if not captions:
            name = self.shards.pair_name(one.number)
            raise LabError(f"{name} has no long caption by {' or '.join(wanted)}.")
        text, who, parts = self.draws.long(epoch, one.number, captions)
        counts["drawn"] += 1
        counts["fewer"] += self.draws.count is not None and parts < self.draws.count
        counts["by", who] += 1
        return text

    def _short(self, epoch: int, one: Chosen) -> str:
        texts = one.sample.texts
        if not self.draws.draws_short:
            return texts.short
        return self.draws.short(epoch, one.number, texts.long, texts.captions)

    def _texts(self, which: str, texts: list[str], counts: Counter) -> Texts:
        made, cut = tokenized(self.clip.tokenizer, texts, self.limit)
        counts[which] += cut
        return made
