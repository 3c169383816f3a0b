"""The order of training on shards: which pair stands where in which batch, without reading any.

The shards of an epoch, in an order that is drawn anew, are strung together and cut into L equal
lanes. A batch takes B/L pairs from every lane. A process reads some of the lanes, so that it opens
only their shards, and the batch is the same however many processes there are. Within a lane pairs
are shuffled in windows. Everything is a function of (seed, epoch, lane, window), so that a run
begins at any step without what came before.

N pairs, R rows of a window (a lane's share of R batches), b pairs of a row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from longclip_lab.errors import LabError

_SHARDS, _PAIRS, _ROWS, _DRAWS = range(1, 5)
"""What a random number is for."""
DRAWN_AT_ONCE = 1024


class Piece(NamedTuple):
    """The pairs from `start` to `stop` of one shard."""

    shard: int
    start: int
    stop: int


class Window(NamedTuple):
    """So many pairs of every lane that they are shuffled together: `rows` from `first` on."""

    epoch: int
    number: int
    first: int
    rows: int


class Order:
    """The order of `counts[i]` pairs in shard i.

    An epoch has every pair once, but for the last incomplete batch, which is another one every
    epoch. With `resample` every lane draws whole shards for ever, with replacement, and there are
    no epochs. Raises LabError if the lanes do not divide the batch, if a window holds less than two
    rows, or if there are fewer pairs than one batch takes.
    """

    def __init__(
        self,
        counts: Sequence[int],
        batch_size: int,
        lanes: int = 8,
        window: int = 1024,
        seed: int = 0,
        resample: bool = False,
    ):
        self.counts = np.asarray(counts, dtype=np.int64)
        self.firsts = np.concatenate([[0], np.cumsum(self.counts)])
        self.pairs = int(self.firsts[-1])
        self.batch_size, self.lanes, self.seed, self.resample = batch_size, lanes, seed, resample
        if batch_size % lanes:
            raise LabError(
                f"A batch of {batch_size} cannot be taken evenly from {lanes} lanes; give lanes "
                "(--num-streams) that divide it."
            )
        self.share = batch_size // lanes
        if window < 2 * self.share:
            raise LabError(
                f"A lane gives {self.share} pairs to a batch and shuffles {window}; give a "
                f"shuffle_buffer (--shuffle-buffer) of at least {2 * self.share}."
            )
        if self.pairs < batch_size:
            raise LabError(f"A batch of {batch_size} is larger than the data, {self.pairs} pairs.")
        self.epoch_steps = self.pairs // batch_size
        self.window_rows = window // self.share
        self.windows = max(1, self.epoch_steps // self.window_rows)
        self._laid: tuple[int, np.ndarray, np.ndarray, int] | None = None
        self._drawn = [(np.empty(0, dtype=np.int64), np.zeros(1, dtype=np.int64))] * lanes

    def window_at(self, step: int) -> tuple[Window, int]:
        """The window of a step, and which of its rows the step is."""
        if self.resample:
            number, row = divmod(step, self.window_rows)
            return Window(0, number, number * self.window_rows, self.window_rows), row
        epoch, position = divmod(step, self.epoch_steps)
        # Windows as equal as whole rows allow: a short one at the end would hardly be shuffled.
        number = ((position + 1) * self.windows - 1) // self.epoch_steps
        first, end = (n * self.epoch_steps // self.windows for n in (number, number + 1))
        return Window(epoch, number, first, end - first), position - first

    def pieces(self, lane: int, window: Window) -> list[Piece]:
        """What a lane reads for a window, in the order of reading."""
        start, length = window.first * self.share, window.rows * self.share
        if self.resample:
            shards, ends = self._draws(lane, start + length)
            return list(_cut(shards, ends, start, start + length))
        shards, ends, turn = self._epoch(window.epoch)
        start = (turn + lane * self.epoch_steps * self.share + start) % self.pairs
        stop = start + length
        pieces = list(_cut(shards, ends, start, min(stop, self.pairs)))
        if stop > self.pairs:  # round the end of the string
            pieces += _cut(shards, ends, 0, stop - self.pairs)
        return pieces

    def numbers(self, lane: int, window: Window) -> np.ndarray:
        """The pairs of a window [R * b] in the order of reading, counted through all shards."""
        return np.concatenate(
            [
                np.arange(start, stop) + self.firsts[shard]
                for shard, start, stop in self.pieces(lane, window)
            ]
        )

    def table(self, lane: int, window: Window, lengths: np.ndarray | None = None) -> np.ndarray:
        """Where in the order of reading each row's pairs stand [R, b], shuffled.

        With the pairs' `lengths` each row has pairs of similar length, from the shortest to the
        longest; `row_order` shuffles them.
        """
        size = window.rows * self.share
        table = self._rng(_PAIRS, window.epoch, window.number, lane).permutation(size)
        if lengths is not None:
            table = table[np.argsort(lengths[table], kind="stable")]
        return table.reshape(window.rows, self.share)

    def row_order(self, window: Window, grouped: bool) -> np.ndarray:
        """Which row each step of a window takes, the same for all lanes."""
        if not grouped:
            return np.arange(window.rows)
        return self._rng(_ROWS, window.epoch, window.number).permutation(window.rows)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray, int]:
        """The shards of an epoch, where each ends, and where the first lane begins."""
        if self._laid is None or self._laid[0] != epoch:
            rng = self._rng(_SHARDS, epoch)
            shards = rng.permutation(len(self.counts))
            turn = int(rng.integers(self.pairs))
            self._laid = (epoch, shards, np.cumsum(self.counts[shards]), turn)
        return self._laid[1:]

    def _draws(self, lane: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Shards drawn for a lane, at least as many as hold `stop` pairs, and where each ends."""
        shards, ends = self._drawn[lane]
        filled = np.flatnonzero(self.counts)
        while (ends[-1] if len(shards) else 0) < stop:
            rng = self._rng(_DRAWS, lane, len(shards) // DRAWN_AT_ONCE)
            more = filled[rng.integers(len(filled), size=DRAWN_AT_ONCE)]
            shards = np.concatenate([shards, more])
            ends = np.cumsum(self.counts[shards])
        self._drawn[lane] = (shards, ends)
        return shards, ends

    def _rng(self, *state: int) -> np.random.Generator:
        # What it is for stands in front: numpy takes (1, 0) for the same as (1,).
        return np.random.default_rng((state[0], self.seed, *state[1:]))


def stand_ins(rows: int, share: int, row: int, column: int) -> Iterator[tuple[int, int]]:
    """Who may stand in for a pair that is broken, in order of preference.

    The same column of the other rows, so that two of one batch never have the same one; then the
    other columns, and last the pair's own row.

    >>> list(stand_ins(3, 2, row=1, column=0))
    [(2, 0), (0, 0), (2, 1), (0, 1), (1, 1)]
    """
    for right in range(share):
        for down in [*range(1, rows), 0]:
            if right or down:
                yield (row + down) % rows, (column + right) % share


def _cut(shards: np.ndarray, ends: np.ndarray, start: int, stop: int) -> Iterator[Piece]:
    """The pieces of shards strung together between two positions."""
    at = int(np.searchsorted(ends, start, side="right"))
    while start < stop:
        begin = int(ends[at - 1]) if at else 0
        until = min(stop, int(ends[at]))
        if until > start:
            yield Piece(int(shards[at]), start - begin, until - begin)
        start, at = max(start, until), at + 1
