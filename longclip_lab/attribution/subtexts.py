"""Texts made of some of a text's sentences, and their similarity with its picture.

B pairs, n units (sentences or sub-captions) of a text, S distinct texts that are run.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from longclip_lab.attribution.inputs import Pairs
from longclip_lab.errors import LabError, suggest
from longclip_lab.models import Clip, encode_texts
from longclip_lab.models.encoding import evaluating
from longclip_lab.text import split_sentences, split_subcaptions

UNITS = ("sentences", "subcaptions")

_WORD = re.compile(r"\w+|[^\w\s]")

Subset = frozenset[int]
"""Which units are in a text."""


@dataclass(frozen=True)
class Units:
    """What a model reads of a text, unit by unit.

    `texts` [n] are the units read and `spans` [n] their characters in the text. `unread` counts
    the units of which nothing is read; `cut` is True if the last unit read is not read to its end.
    """

    kind: str
    texts: tuple[str, ...]
    spans: tuple[tuple[int, int], ...]
    unread: int
    cut: bool

    def __len__(self) -> int:
        return len(self.texts)

    def join(self, chosen: Subset) -> str:
        """The text of some units, in the order of the text; none of them: the empty text."""
        return _join(self.kind, [self.texts[index] for index in sorted(chosen)])


def units_of(clip: Clip, text: str, kind: str = "sentences") -> Units:
    """The sentences (`text.split_sentences`) or sub-captions (LoTLIP's rule) that a model reads.

    What stands behind the context is no part of the result but is counted. So a text of some
    units holds nothing that the whole text would not show the model, and fits.

    Raises LabError for another kind, and for a text without a unit.
    """
    if kind not in UNITS:
        raise LabError(f"There are no units '{kind}'. {suggest(kind, UNITS)}")
    spans = _spans(text, kind)
    if not spans:
        raise LabError(f"expected a text with at least one sentence, got {text!r}.")
    parts = [text[start:end] for start, end in spans]
    fitting = bisect_left(
        range(1, len(parts) + 1), True, key=lambda n: not _fits(clip, kind, parts[:n])
    )
    kept = parts[:fitting]
    cut = False
    if fitting < len(parts):  # of the first unit that does not fit, as many words as do
        begun = parts[fitting]
        ends = [0] + [match.end() for match in _WORD.finditer(begun)]
        words = bisect_left(
            range(1, len(ends)),
            True,
            key=lambda n: not _fits(clip, kind, [*kept, begun[: ends[n]]]),
        )
        cut = words > 0
        kept += [begun[: ends[words]]] if cut else []
    if not kept:
        raise LabError(f"'{clip.name}' reads no word of {text!r}.")
    read = [(start, start + len(part)) for (start, _), part in zip(spans, kept, strict=False)]
    return Units(kind, tuple(kept), tuple(read), len(parts) - len(kept), cut)


def similarities(
    pairs: Pairs, units: Sequence[Units], wanted: Sequence[Iterable[Subset]]
) -> list[dict[Subset, float]]:
    """For each pair the cosine similarity of its picture with the texts of some of its units.

    Every text is run once, however many subsets and pairs ask for it.
    """
    texts = [
        {subset: one.join(subset) for subset in asked}
        for one, asked in zip(units, wanted, strict=True)
    ]
    distinct = {text: None for row in texts for text in row.values()}
    row_of = {text: row for row, text in enumerate(distinct)}
    texts_SD = F.normalize(encode_texts(pairs.clip, list(distinct)).features_ND, dim=-1)
    with torch.no_grad(), evaluating(pairs.clip.model):
        images_BD = F.normalize(pairs.clip.encode_image(pairs.pixels_B3HW), dim=-1).float().cpu()
    found = []
    for row, image_D in zip(texts, images_BD, strict=True):
        values = (texts_SD[[row_of[text] for text in row.values()]] @ image_D).tolist()
        found.append(dict(zip(row, values, strict=True)))
    return found


def _spans(text: str, kind: str) -> list[tuple[int, int]]:
    if kind == "sentences":
        return [tuple(span) for span in split_sentences(text)]
    spans, end = [], 0
    for part in split_subcaptions(text):
        start = text.index(part, end)
        end = start + len(part)
        spans.append((start, end))
    return spans


def _join(kind: str, parts: Sequence[str]) -> str:
    """LoTLIP joins sub-captions by ". "; a full stop behind the last is what its texts end in."""
    if kind == "sentences" or not parts:
        return " ".join(parts)
    return ". ".join(parts) + "."


def _fits(clip: Clip, kind: str, parts: Sequence[str]) -> bool:
    return not clip.tokenize(_join(kind, parts)).num_truncated
