"""`Pairs`: images on disk with their short and long texts."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from longclip_lab.errors import LabError

# --- `Pairs`: pictures on disk with their short and long texts ---


@dataclass(frozen=True)
class Pairs:
    """N pictures with one short text, one long text and all captions each.

    `images` are paths; a picture is decoded when it is used. `captioners` holds a picture's long
    captions by captioner, where there are several (else it is empty). `skipped` names what was left
    out, by reason; `source` says where the data come from and holds their hash, JSON-able and
    independent of where the folder lies. The drawn world's pairs have the same fields.

    >>> files = [Path("a.jpg"), Path("b.jpg")]
    >>> pairs = Pairs("two", files, ["a", "b"], ["aa", "bb"], [["a"], ["b"]])
    >>> len(pairs), pairs.subset([1]).short
    (2, ['b'])
    """

    name: str
    images: Sequence[Path]
    short: list[str]
    long: list[str]
    captions: list[list[str]]
    skipped: dict[str, list[str]] = field(default_factory=dict)
    source: dict[str, Any] = field(default_factory=dict)
    captioners: list[dict[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        counts = {
            "images": len(self.images),
            "short": len(self.short),
            "long": len(self.long),
            "captions": len(self.captions),
        }
        if self.captioners:
            counts["captioners"] = len(self.captioners)
        if len(set(counts.values())) != 1:
            listing = ", ".join(f"{count} {what}" for what, count in counts.items())
            raise LabError(f"Pairs need one of each for every picture; {self.name} has {listing}.")

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Iterable[int]) -> Pairs:
        """The pairs at `indices`, in that order; `source["subset"]` says that it is a part.

        Raises LabError if an index lies outside the data.
        """
        chosen = [int(index) for index in indices]
        outside = [index for index in chosen if not 0 <= index < len(self)]
        if outside:
            raise LabError(
                f"{self.name} has {len(self)} pairs (0 to {len(self) - 1}); "
                f"there is no pair {outside[0]}."
            )
        return replace(
            self,
            images=[self.images[index] for index in chosen],
            short=[self.short[index] for index in chosen],
            long=[self.long[index] for index in chosen],
            captions=[self.captions[index] for index in chosen],
            captioners=[self.captioners[index] for index in chosen] if self.captioners else [],
            source={**self.source, "subset": {"of": len(self), "pairs": len(chosen)}},
        )


# --- Real captions for a model that knows only the drawn world's words ---

_WORD = re.compile(r"\w+|[^\w\s]")
NOTHING_KNOWN = "."


def known_part(text: str, words: Collection[str]) -> tuple[str, list[str]]:
    """The words and marks of a text that are among `words` (lower case), and the others.

    >>> known_part("A dog in a boat.", ["a", "boat", "in", "."])
    ('A in a boat .', ['dog'])
    """
    found = _WORD.findall(text)
    unknown = [word for word in found if word.lower() not in words]
    return " ".join(word for word in found if word.lower() in words), unknown


class KnownWords:
    """Texts without the words that are not known; `counts` says how many of how many went.

    >>> filtered = KnownWords(["a", "boat", "."])
    >>> filtered("A boat at dawn."), filtered("Dawn"), filtered.counts
    ('A boat .', '.', {'of': 6, 'left_out': 3})
    """

    def __init__(self, words: Iterable[str]):
        self.words = frozenset(words)
        self.counts = {"of": 0, "left_out": 0}

    def __call__(self, text: str) -> str:
        """What is left of `text`, its words apart; a full stop if nothing is."""
        kept, unknown = known_part(text, self.words)
        self.counts["of"] += len(_WORD.findall(text))
        self.counts["left_out"] += len(unknown)
        return kept or NOTHING_KNOWN


def keep_known_words(pairs: Any, tokenizer: Any) -> Any:
    """Leave out the words that a word-level tokenizer does not have, and count them.

    The world's tokenizer refuses a caption with a word that the world does not have, so the tiny
    models cannot read photographs' captions as they are. This makes the whole path run on them;
    scores mean nothing. `source["words"]` holds how many words there were and how many were left
    out. A caption of which nothing is left becomes a full stop. The world's own pairs come back as
    they are, and so do pairs for any other tokenizer. Shards of photographs lose their words as
    they are read, uncounted.
    """
    if hasattr(pairs, "known_to") and hasattr(tokenizer, "words"):
        return pairs if pairs.pictures == "values" else pairs.known_to(tokenizer.words)
    if not isinstance(pairs, Pairs) or not hasattr(tokenizer, "words"):
        return pairs
    filtered = KnownWords(tokenizer.words)
    captions = [[filtered(text) for text in texts] for texts in pairs.captions]
    captioners = [
        {who: filtered(text) for who, text in of_picture.items()} for of_picture in pairs.captioners
    ]
    source = {**pairs.source, "words": filtered.counts.copy()}
    return replace(
        pairs,
        short=[filtered(text) for text in pairs.short],
        long=[filtered(text) for text in pairs.long],
        captions=captions,
        captioners=captioners,
        source=source,
    )
