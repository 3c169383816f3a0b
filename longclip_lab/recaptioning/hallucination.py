"""What free text says of the drawn world, and how much of it is not so.

`probing.counterfactual` counts the facts of captions that the world's own writers made and knows
which are lies. A model's caption has no such facts: here its words are read, and compared with the
scene. Only kinds of things and their colours are read; negations, numbers and places are not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from longclip_lab.errors import LabError
from longclip_lab.evaluation import Interval
from longclip_lab.stats import wilson
from longclip_lab.world import Scene
from longclip_lab.world.captions import words_of, world_words
from longclip_lab.world.scene import COLOURS, KINDS, ORIENTATIONS, PATTERNS, SIZES

SYNONYMS = {
    "umbrella": "parasol", "ship": "boat", "sailboat": "boat", "mug": "cup", "teacup": "cup",
    "toadstool": "mushroom", "automobile": "car", "cottage": "house", "violet": "purple",
    "fishes": "fish",
}  # fmt: skip
"""Other words for what the world has, as CHAIR's authors list them for COCO's."""

_ADJECTIVES = {*SIZES, *PATTERNS, *ORIENTATIONS}
_BETWEEN = {",", "and"}
_IS = {"is", "are"}


@dataclass(frozen=True)
class Claim:
    """A kind of thing that a caption names, with the colour it gives it ("" if none)."""

    kind: str
    colour: str = ""


@dataclass(frozen=True, eq=False)
class Hallucinated:
    """What N captions name and the scenes do not have.

    `named_N` counts the kinds that each caption names (each once) and `absent_N` those of them that
    the scene has not. `coloured_N` counts how often a thing is named with its colour, and
    `wrong_N` how often the scene has no such thing of this colour. `words_N` and `unknown_N` count
    the words and those that the world does not know; `unknown` lists these, the most frequent
    first. `absent_elsewhere_N` and `wrong_elsewhere_N` hold each caption against the next scene:
    what a writer who does not look would get.
    """

    named_N: np.ndarray
    absent_N: np.ndarray
    coloured_N: np.ndarray
    wrong_N: np.ndarray
    words_N: np.ndarray
    unknown_N: np.ndarray
    absent_elsewhere_N: np.ndarray
    wrong_elsewhere_N: np.ndarray
    unknown: dict[str, int]

    @property
    def kinds(self) -> Interval:
        """The share of named kinds that are not there: CHAIR_i (Rohrbach et al. 2018)."""
        return _share(self.absent_N, self.named_N)

    @property
    def captions(self) -> Interval:
        """The share of captions that name a kind that is not there: CHAIR_s."""
        return _share(self.absent_N > 0, np.ones(len(self.absent_N)))

    @property
    def colours(self) -> Interval:
        """The share of coloured things of which the scene has none: wrong kind, colour or both."""
        return _share(self.wrong_N, self.coloured_N)

    @property
    def words(self) -> Interval:
        """The share of words outside the world's vocabulary, which were not read."""
        return _share(self.unknown_N, self.words_N)

    @property
    def silent(self) -> Interval:
        """The share of captions that name nothing the world has, right or wrong."""
        return _share(self.named_N == 0, np.ones(len(self.named_N)))

    @property
    def elsewhere(self) -> dict[str, Interval]:
        """`kinds`, `captions` and `colours` if each caption were the next picture's."""
        other = replace(self, absent_N=self.absent_elsewhere_N, wrong_N=self.wrong_elsewhere_N)
        return {name: getattr(other, name) for name in ("kinds", "captions", "colours")}

    def to_dict(self) -> dict:
        """JSON-able: the five shares (None of nothing) and the most frequent unknown words."""
        shares = _told({name: getattr(self, name) for name in _SHARES})
        most = dict(list(self.unknown.items())[:20])
        return {**shares, "elsewhere": _told(self.elsewhere), "unknown": most}

    def table(self):
        """A DataFrame with a row for each share, in percent with a 95% interval (Wilson's), and
        what it were if each caption belonged to the next picture."""
        import pandas as pd

        rows, elsewhere = {}, self.elsewhere
        for name, told in _SHARES.items():
            share = getattr(self, name)
            percents = [round(100 * v, 1) + 0.0 for v in (share.value, share.low, share.high)]
            rows[told] = dict(zip(("%", "low", "high"), percents, strict=True)) | {"of": share.n}
            if name in elsewhere:
                rows[told]["elsewhere %"] = round(100 * elsewhere[name].value, 1)
        return pd.DataFrame.from_dict(rows, orient="index")


_SHARES = {
    "kinds": "named kinds that are not there",
    "captions": "captions that name such a kind",
    "colours": "coloured things that are not there",
    "silent": "captions that name no kind",
    "words": "words the world does not know",
}


def hallucinated(captions: Sequence[str], scenes: Sequence[Scene]) -> Hallucinated:
    """Read captions of these scenes, one each. Raises LabError for none, or another number.

    >>> from longclip_lab import world
    >>> pairs = world.pairs(1)
    >>> hallucinated(pairs.long, pairs.scenes).colours.value
    0.0
    """
    if len(captions) == 0 or len(captions) != len(scenes):
        raise LabError(
            f"expected captions and the scene of each, got {len(captions)} and {len(scenes)}."
        )
    known = {word.lower() for word in world_words()} | set(SYNONYMS)
    known |= {f"{kind}s" for kind in KINDS}
    counts, unknown = [], Counter()
    following = [*scenes[1:], scenes[0]]
    for caption, scene, other in zip(captions, scenes, following, strict=True):
        words = [word for word in words_of(caption.lower()) if word.isalnum()]
        strange = [word for word in words if word not in known]
        unknown.update(strange)
        said = claims(caption)
        _, absent, _, wrong = _compared(said, other)
        counts.append([*_compared(said, scene), len(words), len(strange), absent, wrong])
    columns = np.array(counts, dtype=int).T
    return Hallucinated(*columns, unknown=dict(unknown.most_common()))


def claims(text: str) -> list[Claim]:
    """Every mention of a kind of thing, with the colours beside it, in the order of the text.

    A colour belongs to the kind that follows it, with nothing but the world's adjectives between,
    or to the kind before "is" or "are".

    >>> claims("A large striped red boat, left of two houses. The kite is blue.")
    [Claim(kind='boat', colour='red'), Claim(kind='house', colour=''),
     Claim(kind='kite', colour='blue')]
    """
    words = [_plain(word) for word in words_of(text.lower())]
    found = []
    for index, word in enumerate(words):
        if word in KINDS:
            colours = _before(words, index) or _after(words, index)
            found += [Claim(word, colour) for colour in colours or [""]]
    return found


def _compared(said: list[Claim], scene: Scene) -> tuple[int, int, int, int]:
    kinds = {claim.kind for claim in said}
    there = {(thing.kind, thing.colour) for thing in scene.things}
    coloured = [(claim.kind, claim.colour) for claim in said if claim.colour]
    absent = kinds - {kind for kind, _ in there}
    return len(kinds), len(absent), len(coloured), sum(pair not in there for pair in coloured)


def _told(shares: dict[str, Interval]) -> dict[str, dict | None]:
    return {name: share.to_dict() if share.n else None for name, share in shares.items()}


def _plain(word: str) -> str:
    word = SYNONYMS.get(word, word)
    return word[:-1] if word.endswith("s") and word[:-1] in KINDS else word


def _before(words: list[str], index: int) -> list[str]:
    """The colours in the adjectives before a kind: not those in "the sky is blue and boats"."""
    colours = []
    for place in range(index - 1, -1, -1):
        word = words[place]
        if word in COLOURS:
            colours.append(word)
        elif word not in _ADJECTIVES and (word not in _BETWEEN or place == index - 1):
            break
    return colours[::-1]


def _after(words: list[str], index: int) -> list[str]:
    """The colour that is said of a kind: "the kite is blue"."""
    rest = words[index + 1 : index + 3]
    return rest[1:] if len(rest) == 2 and rest[0] in _IS and rest[1] in COLOURS else []


def _share(hits_N: np.ndarray, of_N: np.ndarray) -> Interval:
    total = int(np.sum(of_N))
    if total == 0:
        return Interval(float("nan"), float("nan"), float("nan"), 0)
    return wilson(float(np.sum(hits_N)), total)
