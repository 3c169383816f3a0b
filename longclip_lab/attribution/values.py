"""What the attribution methods return: scores that lie on words, on a picture, or on both.

T tokens, L layers, H heads, h w rows and columns of the patch grid, S side of the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from longclip_lab.errors import LabError, NotFiniteError
from longclip_lab.plotting import Plottable


@dataclass(frozen=True)
class TokenMap(Plottable):
    """One score for every token that the model read of a text.

    `spans` [T] are the characters of `text` that each token stands for; start and end tokens have
    no entry. `unread` counts the tokens behind the model's context, which have no score either.
    `details` holds what the method reports beside the scores, such as a convergence delta.
    """

    method: str
    model: str
    text: str
    spans: tuple[tuple[int, int], ...]
    scores: np.ndarray
    unread: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.scores.shape != (len(self.spans),):
            raise LabError(
                f"expected one score for each of {len(self.spans)} tokens, got scores of shape "
                f"{self.scores.shape}."
            )
        _check_finite(self)

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def tokens(self) -> list[str]:
        """The characters that each token stands for."""
        return [self.text[start:end] for start, end in self.spans]

    def within(self, start: int, end: int) -> np.ndarray:
        """Which tokens lie in the characters [start, end) of the text: bool [T]."""
        return tokens_within(self.spans, start, end)

    def total(self, start: int, end: int) -> float:
        """The sum of the scores of the tokens in the characters [start, end)."""
        return float(self.scores[self.within(start, end)].sum())


@dataclass(frozen=True)
class PatchMap(Plottable):
    """One score for every patch of a picture.

    `image` uint8 [S, S, 3] is the picture as the model saw it: resized and cropped. `scores`
    [h, w], row 0 at the top. Pixel coordinates are (x, y) from the top left of `image`. `text` is
    what the map was asked about, None for maps of the picture alone. `shift` is how far, in
    pixels, what a patch's token sees lies from an even grid: nothing for square patches, but a
    stem of convolutions may look to one side.
    """

    method: str
    model: str
    image: np.ndarray
    scores: np.ndarray
    text: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    shift: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        if self.scores.ndim != 2:
            raise LabError(f"expected patch scores [h, w], got shape {self.scores.shape}.")
        _check_finite(self)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.scores.shape

    def centres(self) -> np.ndarray:
        """Pixel coordinates (x, y) of the middle of what every patch sees: [h, w, 2]."""
        rows, columns = self.grid
        height, width = self.image.shape[:2]
        x = (np.arange(columns) + 0.5) * width / columns + self.shift[0]
        y = (np.arange(rows) + 0.5) * height / rows + self.shift[1]
        return np.stack(np.meshgrid(x, y), axis=-1)

    def peak(self) -> tuple[float, float]:
        """Pixel coordinates (x, y) of the middle of the patch with the highest score."""
        row, column = np.unravel_index(int(self.scores.argmax()), self.scores.shape)
        x, y = self.centres()[row, column]
        return float(x), float(y)

    def on_pixels(self, side: int | None = None) -> np.ndarray:
        """The scores where they lie on the picture, [S, S], or on one drawn at another `side`."""
        side = side or self.image.shape[0]
        rows, columns = patch_of_pixels(self.grid, side, self.shift, self.image.shape[0])
        return self.scores[rows[:, None], columns[None, :]]


@dataclass(frozen=True)
class TokenPatches(Plottable):
    """The matrix of every token against every patch, and what each half of it says.

    `scores` [T, h, w]; `similarity` is the cosine of the whole text and the whole picture. The
    papers call slices of such a matrix "cross-attention maps"; CLIP has no cross-attention.
    """

    method: str
    model: str
    image: np.ndarray
    text: str
    spans: tuple[tuple[int, int], ...]
    scores: np.ndarray
    similarity: float
    unread: int = 0
    details: dict[str, Any] = field(default_factory=dict)
    shift: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        _check_finite(self)

    def patches(self, start: int, end: int) -> PatchMap:
        """The patches for the characters [start, end) of the text: the mean over their tokens.

        Raises LabError if the model read no token there.
        """
        inside = tokens_within(self.spans, start, end)
        if not inside.any():
            raise LabError(
                f"no token that the model read lies in the characters {start} to {end} of the "
                f"text ({len(self.spans)} tokens read, {self.unread} not)."
            )
        return PatchMap(
            method=self.method,
            model=self.model,
            image=self.image,
            scores=self.scores[inside].mean(0),
            text=self.text[start:end],
            shift=self.shift,
        )

    def tokens(self, row: int, column: int) -> TokenMap:
        """The tokens for one patch."""
        return TokenMap(
            self.method, self.model, self.text, self.spans, self.scores[:, row, column], self.unread
        )


@dataclass(frozen=True)
class Explanation(Plottable):
    """Why one picture and one text have their cosine similarity: scores on both sides."""

    similarity: float
    tokens: TokenMap
    patches: PatchMap


@dataclass(frozen=True)
class AttentionWeights(Plottable):
    """The attention weights of one tower for one input: [L, H, T, T], rows sum to 1.

    Row q of the last two axes is what position q attends to. `labels` [T] name the positions:
    "[start]", tokens, "[end]" of a text, "[class]" and "row,column" of a picture. `pooled` is the
    position that the tower reads off, None where it averages.
    """

    model: str
    tower: str
    weights: np.ndarray
    labels: tuple[str, ...]
    pooled: int | None
    source: Any = None


def _check_finite(found: TokenMap | PatchMap | TokenPatches) -> None:
    bad = found.scores.size - int(np.isfinite(found.scores).sum())
    if bad:
        raise NotFiniteError(
            f"{found.method} gives {bad} of {found.scores.size} scores of {found.model} that are "
            "no finite numbers. Are the model's weights? Load a checkpoint from before it diverged."
        )


def patch_of_pixels(
    grid: tuple[int, int], side: int, shift: tuple[float, float] = (0.0, 0.0), seen: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The row of patches of each row of pixels [S], and the column of each column.

    `shift` is in pixels of a picture of `seen` (by default `side`). Pixels outside the shifted
    grid belong to its edge.

    >>> patch_of_pixels((2, 2), 6, (1.0, 0.0))[1].tolist()
    [0, 0, 0, 0, 1, 1]
    """
    places = (np.arange(side) + 0.5) * (seen or side) / side
    found = []
    for count, offset in zip(grid, reversed(shift), strict=True):
        index = np.floor((places - offset) * count / (seen or side)).astype(int)
        found.append(np.clip(index, 0, count - 1))
    return found[0], found[1]


def tokens_within(spans: Sequence[tuple[int, int]], start: int, end: int) -> np.ndarray:
    """Which of the half-open `spans` touch the characters [start, end): bool [T].

    >>> tokens_within([(0, 1), (2, 5), (6, 10)], 2, 5).tolist()
    [False, True, False]
    """
    return np.array([low < end and high > start for low, high in spans], dtype=bool)
