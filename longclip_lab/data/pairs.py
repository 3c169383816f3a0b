"""`Pairs`: images on disk with their short and long texts, and which text a step trains with.

Every draw depends on (seed, epoch, image) and on nothing that was drawn before, so that a
resumed run sees what the killed one would have seen.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from longclip_lab.errors import LabError
from longclip_lab.text import split_subcaptions

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

    def known_to(self, words: Collection[str]) -> Pairs:
        """The same images with only these words in their texts (`keep_known_words`)."""
        known = KnownWords(words)
        captions = [[known(text) for text in texts] for texts in self.captions]
        captioners = [{who: known(text) for who, text in by.items()} for by in self.captioners]
        return replace(
            self,
            captions=captions,
            captioners=captioners,
            source={**self.source, "words": known.counts.copy()},
            short=[known(text) for text in self.short],
            long=[known(text) for text in self.long],
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


def keep_known_words(data: Any, tokenizer: Any) -> Any:
    """Leave out the words that a word-level tokenizer does not have, and count them.

    The world's tokenizer refuses a caption with a word that the world does not have, so the tiny
    models cannot read photographs' captions as they are. This makes the whole path run on them;
    scores mean nothing. `data` are `Pairs`, a `Benchmark` or shards; `source["words"]` holds how
    many words there were and how many were left out. A caption of which nothing is left becomes a
    full stop. The world's own come back as they are, and so does everything for any other
    tokenizer. Shards of photographs lose their words as they are read, uncounted.
    """
    if not hasattr(tokenizer, "words") or not hasattr(data, "known_to"):
        return data
    return data.known_to(tokenizer.words)


# --- Which of several long captions a picture is trained with, and which part of it ---

SUBCAPTIONS = 3
"""How many LoTLIP trains with (section 5.1)."""


@dataclass(frozen=True)
class DrawnTexts:
    """One long text a picture, and how the draw went.

    `fewer` counts the pictures whose chosen caption has fewer sub-captions than asked for, all of
    which were used; `by_captioner` counts whose captions were chosen.
    """

    texts: list[str]
    fewer: int
    by_captioner: dict[str, int]


def sample_subcaptions(
    captions_by_captioner: Mapping[str, str],
    n: int | None = SUBCAPTIONS,
    seed: int | np.random.Generator = 0,
) -> str:
    """`n` consecutive sub-captions of one captioner's long caption, as one text.

    LoTLIP's rule (section 5.1 and appendix 7.2.1): choose a captioner evenly, then where to start
    evenly; the sub-captions (`text.split_subcaptions`) are joined by ". ", which its text tower
    reads as [SEP]. Of a caption with fewer all are used; n=None means all. The paper does not say
    whether a captioner is chosen first or all captions are strung together; choosing first keeps
    sub-captions of one text together.
    Raises LabError for n below 1 and for a picture without any long caption.

    >>> captions = {"A": "A cat. It sits. It is red. It looks up.", "B": "A red cat"}
    >>> sample_subcaptions(captions, 2, seed=0), sample_subcaptions(captions, 2, seed=1)
    ('A red cat', 'It sits. It is red')
    """
    return draw_subcaptions(captions_by_captioner, n, np.random.default_rng(seed))[0]


def draw_texts(
    captions: Sequence[Mapping[str, str]],
    n: int | None = SUBCAPTIONS,
    seed: int = 0,
    epoch: int = 0,
) -> DrawnTexts:
    """`sample_subcaptions` for every picture of one epoch (`Pairs.captioners`), with counts.

    Raises LabError as `sample_subcaptions` does, naming the picture's number.
    """
    texts, fewer, chosen = [], 0, Counter()
    for index, of_picture in enumerate(captions):
        try:
            drawn = draw_subcaptions(of_picture, n, np.random.default_rng((seed, epoch, index)))
        except LabError as error:
            raise LabError(f"Picture {index}: {error}") from None
        texts.append(drawn[0])
        chosen[drawn[1]] += 1
        fewer += n is not None and drawn[2] < n
    return DrawnTexts(texts, fewer, dict(sorted(chosen.items())))


def choose_caption(captions: Sequence[str], seed: int | np.random.Generator = 0) -> str:
    """One of a picture's short captions, evenly: the raw one or one of its rewrites.

    LaCLIP's text augmentation (Fan et al. 2023, section 3.3, equation 4). Raises LabError for none.

    >>> choose_caption(["a cat", "one cat", "cat"], seed=1)
    'one cat'
    """
    if not captions:
        raise LabError("There is no caption to choose from.")
    return captions[int(np.random.default_rng(seed).integers(len(captions)))]


@lru_cache(maxsize=32_768)
def _split(text: str) -> tuple[str, ...]:
    """Small sets come back every epoch, and splitting is a sixth of a tiny tower's step."""
    return tuple(split_subcaptions(text))


def draw_subcaptions(
    captions: Mapping[str, str], n: int | None, rng: np.random.Generator
) -> tuple[str, str, int]:
    """What `sample_subcaptions` gives, whose caption it is of, and how many that one has."""
    if n is not None and n < 1:
        raise LabError(
            f"Sub-captions: expected at least 1 (or None for all), got {n}; to train without long "
            "captions choose an objective that needs none."
        )
    split = {name: _split(text) for name, text in captions.items()}
    names = [name for name, parts in split.items() if parts]
    if not names:
        raise LabError("no captioner has a long caption with any text.")
    name = names[int(rng.integers(len(names)))]
    parts = split[name]
    count = len(parts) if n is None else min(n, len(parts))
    start = int(rng.integers(len(parts) - count + 1))
    return ". ".join(parts[start : start + count]), name, len(parts)
