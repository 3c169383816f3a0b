"""Boxes of things in pictures: where they are in what the model saw, and which patches they hold.

Boxes are (x0, y0, x1, y1) in pixels, origin top left. h w rows and columns of a grid of patches,
S side of the picture that the model sees.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from longclip_lab.errors import LabError

Box = tuple[float, float, float, float]


def seen_box(box: Box, size: tuple[int, int], side: int, resize_mode: str = "shortest") -> Box:
    """A box of a picture of `size` (width, height), as it lies in what the model sees of it.

    Follows open_clip's preprocessing: "shortest" resizes the shorter edge to `side` and crops the
    centre, "longest" fits the longer edge and pads, "squash" resizes both edges. The result is not
    cut at the picture's edges; see `clipped`. Raises LabError for another mode.

    >>> seen_box((300, 100, 400, 200), (400, 200), 100)
    (100.0, 50.0, 150.0, 100.0)
    """
    width, height = size
    if resize_mode == "squash":
        wide, high = side, side
    elif resize_mode in ("shortest", "longest"):
        edge = min(width, height) if resize_mode == "shortest" else max(width, height)
        wide, high = int(side * width / edge), int(side * height / edge)
    else:
        raise LabError(f"expected resize mode shortest, longest or squash, got '{resize_mode}'.")
    left, top = round((wide - side) / 2), round((high - side) / 2)
    x, y = wide / width, high / height
    return (box[0] * x - left, box[1] * y - top, box[2] * x - left, box[3] * y - top)


def area(box: Box) -> float:
    """Square pixels of a box, 0 for one turned inside out."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def clipped(box: Box, side: int) -> Box:
    """The part of a box inside a picture of `side` x `side` pixels.

    >>> clipped((-5, 2, 5, 8), 6)
    (0, 2, 5, 6)
    """
    x0, y0, x1, y1 = (min(max(edge, 0), side) for edge in box)
    return (x0, y0, x1, y1)


def patch_shares(boxes: Sequence[Box], grid: tuple[int, int], side: int) -> np.ndarray:
    """How much of each patch's area lies in the boxes: [h, w], 0 to 1.

    Where boxes overlap, their areas are counted once.

    >>> patch_shares([(0, 0, 6, 4)], (2, 2), 8)
    array([[1. , 0.5],
           [0. , 0. ]])
    """
    rows, columns = grid
    xs = _edges([0, 2], boxes, columns, side)
    ys = _edges([1, 3], boxes, rows, side)
    covered = np.zeros((len(ys) - 1, len(xs) - 1), dtype=bool)
    middle_x, middle_y = (xs[:-1] + xs[1:]) / 2, (ys[:-1] + ys[1:]) / 2
    for x0, y0, x1, y1 in boxes:
        inside_x, inside_y = (x0 < middle_x) & (middle_x < x1), (y0 < middle_y) & (middle_y < y1)
        covered |= inside_y[:, None] & inside_x[None, :]
    cells = covered * np.diff(ys)[:, None] * np.diff(xs)[None, :]
    shares = np.zeros(grid)
    row = np.minimum((middle_y * rows / side).astype(int), rows - 1)
    column = np.minimum((middle_x * columns / side).astype(int), columns - 1)
    np.add.at(shares, (row[:, None], column[None, :]), cells)
    return shares * rows * columns / side**2


def _edges(corners: list[int], boxes: Sequence[Box], count: int, side: int) -> np.ndarray:
    """Where patches and boxes begin and end along one axis, sorted."""
    own = [np.clip(box[corner], 0, side) for box in boxes for corner in corners]
    return np.unique([*np.linspace(0, side, count + 1), *own])


def patches_inside(boxes: Sequence[Box], grid: tuple[int, int], side: int) -> np.ndarray:
    """Which patches count as lying in the boxes: those whose middle does; bool [h, w].

    A box between the middles of all patches is held by the patch around its own middle, so that
    no question is unanswerable because a thing is small.

    >>> patches_inside([(0, 0, 3, 3)], (2, 2), 8)
    array([[ True, False],
           [False, False]])
    """
    rows, columns = grid
    x = (np.arange(columns) + 0.5) * side / columns
    y = (np.arange(rows) + 0.5) * side / rows
    inside = np.zeros(grid, dtype=bool)
    for x0, y0, x1, y1 in boxes:
        inside |= ((y0 <= y) & (y < y1))[:, None] & ((x0 <= x) & (x < x1))[None, :]
    if not inside.any():
        x0, y0, x1, y1 = max(boxes, key=area)
        row = min(max(int((y0 + y1) / 2 * rows / side), 0), rows - 1)
        column = min(max(int((x0 + x1) / 2 * columns / side), 0), columns - 1)
        inside[row, column] = True
    return inside
