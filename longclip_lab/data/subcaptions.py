"""Which of several long captions a picture is trained with, and which part of it.

Every draw depends on (seed, epoch, picture) and on nothing that was drawn before, so that a
resumed run sees what the killed one would have seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from longclip_lab.errors import LabError
from longclip_lab.text import split_subcaptions

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
