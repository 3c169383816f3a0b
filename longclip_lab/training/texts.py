"""Texts of a data set as token ids: tokenised once, or drawn anew every epoch.

B texts of one process's batch, T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from longclip_lab.data import choose_caption, draw_subcaptions, draw_texts
from longclip_lab.errors import LabError, suggest
from longclip_lab.models import Clip
from longclip_lab.text import sample_sentences
from longclip_lab.training.recipe import Recipe

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
