"""The order of training on shards: exact epochs, whatever the lanes; a function of the step."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from longclip_lab.data.shards import Order, stand_ins
from longclip_lab.errors import LabError

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=12)
LANES = st.sampled_from([1, 2, 4, 8])
SHARES = st.integers(1, 5)
LENGTHS = np.random.default_rng(0).integers(5, 248, 2000)


def order_of(counts, lanes, share, window, **more):
    assume(sum(counts) >= lanes * share)
    return Order(counts, lanes * share, lanes, max(window, 2 * share), **more)


def batch(order, step, grouped=False):
    """The pairs of a global batch, by number."""
    window, row = order.window_at(step)
    row = order.row_order(window, grouped)[row]
    found = []
    for lane in range(order.lanes):
        numbers = order.numbers(lane, window)
        table = order.table(lane, window, LENGTHS[numbers] if grouped else None)
        found += numbers[table[row]].tolist()
    return found


@given(COUNTS, LANES, SHARES, st.integers(2, 40), st.integers(0, 3), st.booleans())
def test_an_epoch_has_every_pair_once(counts, lanes, share, window, epoch, grouped):
    order = order_of(counts, lanes, share, window)
    first = epoch * order.epoch_steps
    seen = [
        n for step in range(first, first + order.epoch_steps) for n in batch(order, step, grouped)
    ]
    assert len(seen) == len(set(seen)) == sum(counts) // (lanes * share) * lanes * share
    assert set(seen) <= set(range(sum(counts)))


@given(COUNTS, LANES, SHARES, st.integers(2, 40), st.booleans())
def test_pieces_are_the_pairs_and_follow_each_other(counts, lanes, share, window, resample):
    order = order_of(counts, lanes, share, window, resample=resample)
    window, _ = order.window_at(0)
    for lane in range(lanes):
        pieces = order.pieces(lane, window)
        for shard, start, stop in pieces:
            assert 0 <= start < stop <= counts[shard]
        # Only where a shard ends is another begun.
        assert all(counts[shard] == stop for shard, _, stop in pieces[:-1])
        assert all(start == 0 for _, start, _ in pieces[1:])
        assert sum(stop - start for _, start, stop in pieces) == window.rows * share


@given(COUNTS, LANES, SHARES, st.integers(2, 40))
def test_windows_cover_an_epoch_evenly(counts, lanes, share, window):
    order = order_of(counts, lanes, share, window)
    rows = max(window, 2 * share) // share
    found = [order.window_at(step) for step in range(2 * order.epoch_steps)]
    assert [w.first + row + w.epoch * order.epoch_steps for w, row in found] == list(
        range(2 * order.epoch_steps)
    )
    sizes = {w.rows for w, _ in found}
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) < 2 * rows
    assert order.epoch_steps < rows or min(sizes) >= rows


def test_every_step_can_be_the_first_one():
    counts = [40, 25, 40, 3, 0, 17]
    whole = Order(counts, 8, 4, 10, seed=3)
    batches = [batch(whole, step) for step in range(40)]
    for step in (39, 17, 0):
        assert batch(Order(counts, 8, 4, 10, seed=3), step) == batches[step]
    assert batches != [batch(Order(counts, 8, 4, 10, seed=4), step) for step in range(40)]
    assert batches[: whole.epoch_steps] != batches[whole.epoch_steps : 2 * whole.epoch_steps]


def test_what_an_epoch_leaves_out_changes():
    order = Order([50], 16, 2, 16)
    left_out = Counter()
    for epoch in range(300):
        steps = range(epoch * 3, epoch * 3 + 3)
        left_out.update(set(range(50)) - {n for step in steps for n in batch(order, step)})
    assert len(left_out) == 50


def test_grouping_saves_padding():
    counts = [100] * 20

    def padding(grouped):
        order = Order(counts, 40, 4, 200)
        total = 0
        for step in range(order.epoch_steps):
            lengths = LENGTHS[batch(order, step, grouped)]
            total += lengths.max() * len(lengths) - lengths.sum()
        return total

    assert padding(grouped=True) < padding(grouped=False) / 3


def test_grouped_batches_are_not_in_the_order_of_their_length():
    order = Order([400], 8, 4, 100)
    lengths = [LENGTHS[batch(order, step, True)].mean() for step in range(50)]
    assert abs(np.corrcoef(lengths, np.arange(50))[0, 1]) < 0.5


def test_resampling_draws_every_pair_equally_often():
    order = Order([5, 40, 0, 20], 8, 4, 10, resample=True)
    steps = 20_000
    times = np.bincount([n for step in range(steps) for n in batch(order, step)], minlength=65)
    assert times.sum() == 8 * steps
    assert times.std() / times.mean() < 0.1
    again = Order([5, 40, 0, 20], 8, 4, 10, resample=True)
    assert batch(again, 7000) == batch(order, 7000)


@given(st.integers(2, 8), st.integers(1, 6), st.data())
def test_stand_ins_are_all_others_own_row_last(rows, share, draw):
    row, column = draw.draw(st.integers(0, rows - 1)), draw.draw(st.integers(0, share - 1))
    found = list(stand_ins(rows, share, row, column))
    assert len(found) == len(set(found)) == rows * share - 1
    assert (row, column) not in found
    assert all(there[0] != row and there[1] == column for there in found[: rows - 1])


def test_what_makes_no_order():
    with pytest.raises(LabError, match="10 cannot be taken evenly from 4 lanes"):
        Order([100], 10, 4)
    with pytest.raises(LabError, match="at least 16"):
        Order([100], 16, 2, 10)
    with pytest.raises(LabError, match="larger than the data, 7 pairs"):
        Order([4, 3], 8, 2)
