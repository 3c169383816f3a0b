"""Training on shards: the same batches as a stream, in any number of processes.

A global batch is a function of (recipe, shards, step): not of the number of processes, of their
worker processes, or of where a run began. The order is `data.shards.Order`'s.

B pairs of one process, T tokens.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from longclip_lab.data.shards import Order, ShardSet
from longclip_lab.data.shards.manifest import longer_than
from longclip_lab.errors import LabError
from longclip_lab.models import Clip
from longclip_lab.training.batches import Batch
from longclip_lab.training.recipe import Recipe
from longclip_lab.training.streaming_lanes import LaneReader, Part, lengths_of
from longclip_lab.training.streaming_record import BrokenPairs
from longclip_lab.training.texts import Drawn, Draws, Texts, check_captioners, token_limit

_FEW = 1000
"""Pairs below which a share of broken ones says little."""
_NAMED = 5


class StreamedPairs:
    """Pictures and texts of shards, handed out by whole batches, as `TrainingPairs` does.

    `broken` names the pairs that this process could not use, and why; another pair of the same
    window stands in for each. Raises LabError for what streams cannot do: keep siblings together
    and read stored features; and as `Order` does.
    """

    stored = None

    def __init__(self, clip: Clip, shards: ShardSet, recipe: Recipe | None = None):
        self.recipe = recipe = recipe or Recipe()
        _check(shards, recipe)
        self.shards = shards
        self.order = Order(
            shards.counts,
            recipe.batch_size,
            recipe.lanes,
            recipe.shuffle_window,
            recipe.seed,
            recipe.resample,
        )
        self.reader = LaneReader(clip, shards, recipe, self.order)
        self.limit = token_limit(clip, recipe)
        self.tokenizer = clip.tokenizer
        self.counts: Counter = Counter()
        self.record = BrokenPairs()

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def broken(self) -> dict[str, str]:
        """What this process could not use so far, by name, and why."""
        return self.record.pairs

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
        draws, found = Draws(self.recipe), {}
        drawn = {"long": draws.draws_long, "short": draws.draws_short}
        unread = {"long": "short", "short": "long"}
        for which, is_drawn in drawn.items():
            if self.recipe.captions == unread[which]:
                found[which] = 0
            elif is_drawn or self.tokenizer.name != self.shards.tokens["tokenizer"]:
                found[which] = self.counts[which] if self.counts["texts"] else None
            else:
                texts = self.shards.tokens[which]["texts_by_length"]
                found[which] = longer_than(texts, self.limit)
        return found

    @property
    def drawn(self) -> Drawn | None:
        """What the first epoch's draw of long texts gave, as far as this process has read it."""
        if not self.counts["texts"] or self.recipe.captions == "short":
            return None
        by = {key[1]: count for key, count in self.counts.items() if isinstance(key, tuple)}
        read, fewer = self.counts["drawn"], self.counts["fewer"]
        return Drawn(read, fewer, dict(sorted(by.items())), self.num_truncated["long"] or 0)

    def batches(
        self, first: int, last: int, rank: int = 0, processes: int = 1
    ) -> Iterable[Batch | LabError]:
        """This process's share of the batches of steps `first`, `first` + 1, ... `last` - 1.

        An error is the last item: raised in a worker process, its message would arrive wrapped.
        """
        lanes = self.order.lanes
        if lanes % processes:
            yield LabError(
                f"{lanes} lanes cannot be shared out evenly to {processes} processes; give a "
                "multiple (--lanes), or fewer processes."
            )
            return
        mine = range(rank * lanes // processes, (rank + 1) * lanes // processes)
        for parts in self._parts(mine, first, last):
            error = next((part for part in parts if isinstance(part, LabError)), None)
            error = error or self._take(parts)
            if error is not None:
                yield error
                return
            yield joined([part.batch for part in parts], int(self.tokenizer.pad_id))

    def members(self, step: int) -> list[str]:
        """The pairs of the global batch of a step, before any stand-in, for a record of what went
        wrong."""
        names = []
        window, row = self.order.window_at(step)
        grouped = self.recipe.length_grouped
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
        self.record = BrokenPairs(folder, rank)

    def _parts(self, mine: range, first: int, last: int) -> Iterator[Sequence[Part | LabError]]:
        """What the worker processes give for each step, in the order of their lanes."""
        workers = min(self.recipe.workers, len(mine))
        if workers == 0:
            yield from ((part,) for part in self.reader.parts(mine, first, last))
            return
        loader = DataLoader(
            _Stream(self.reader, mine, first, last),
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
            news |= part.broken
            self.counts.update(part.counts)
        self.record.add(news)
        read, lost = self.counts["read"], self.counts["lost"]
        if lost <= self.recipe.skip_broken * max(read, min(_FEW, len(self))):
            return None
        some = ", ".join(f"{name} ({why})" for name, why in islice(self.broken.items(), _NAMED))
        return LabError(
            f"{lost} of {read} pairs that were read are broken, more than skip_broken "
            f"({self.recipe.skip_broken:g}) allows: {some}. `longclip-lab data check` names all."
        )


def _as_it_is(part: Part | LabError) -> Part | LabError:
    """torch's own copy of a Counter counts everything twice."""
    return part


class _Stream(IterableDataset):
    """The parts of a worker process's own lanes."""

    def __init__(self, reader: LaneReader, lanes: range, first: int, last: int):
        self.reader, self.lanes, self.first, self.last = reader, lanes, first, last

    def __iter__(self) -> Iterator[Part | LabError]:
        worker = get_worker_info()
        own = np.array_split(np.asarray(self.lanes), worker.num_workers)[worker.id]
        return self.reader.parts(own.tolist(), self.first, self.last)


def joined(batches: Sequence[Batch], pad_id: int) -> Batch:
    """Several lanes' batches as one, texts padded to the longest of all."""
    if len(batches) == 1:
        return batches[0]
    pixels_B3HW = torch.cat([batch.pixels_B3HW for batch in batches])
    long, short = (
        _joined_texts([getattr(batch, which) for batch in batches], pad_id)
        for which in ("long", "short")
    )
    return Batch(pixels_B3HW, long, short)


def _joined_texts(parts: Sequence[Texts | None], pad_id: int) -> Texts | None:
    if parts[0] is None:
        return None
    width = max(part.ids_BT.shape[1] for part in parts)
    ids_BT = torch.cat(
        [
            torch.nn.functional.pad(part.ids_BT, (0, width - part.ids_BT.shape[1]), value=pad_id)
            for part in parts
        ]
    )
    return Texts(
        ids_BT,
        torch.cat([part.lengths_B for part in parts]),
        torch.cat([part.identity_B for part in parts]),
    )


def _check(shards: ShardSet, recipe: Recipe) -> None:
    if recipe.siblings > 1:
        raise LabError(
            "Shards are shuffled pair by pair and keep no siblings together: set siblings=1 "
            "(--siblings 1)."
        )
    if recipe.lock_image and recipe.store_features:
        raise LabError(
            "Pictures in shards have no stored features: set store_features=False "
            "(--no-store-features) to run the locked tower every time."
        )
    check_captioners(recipe.captioners, shards.captioners or {"long": 0})
