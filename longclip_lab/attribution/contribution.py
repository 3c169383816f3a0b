"""What each sentence of a text contributes to its similarity with an image.

B pairs, n units (sentences or sub-captions) of a text, S distinct texts that are run.

n units (sentences or sub-captions) of a text, P permutations.

HiMo-CLIP (Wu et al., AAAI 2026) calls it semantic monotonicity: a fuller true description should
fit its picture better. A text tower that was never asked for it may do otherwise.

N pairs, n units of a text, k units so far.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import overload

import numpy as np
import torch
import torch.nn.functional as F

from longclip_lab.attribution.maps import Pairs, Picture, as_pairs
from longclip_lab.errors import SEED, LabError, Numbers, suggest
from longclip_lab.evaluation import Interval
from longclip_lab.models import Clip, encode_texts
from longclip_lab.models.encoding import Images, evaluating
from longclip_lab.plotting import Plottable
from longclip_lab.stats import bootstrap_mean
from longclip_lab.text import split_sentences, split_subcaptions

# --- Texts made of some of a text's sentences, and their similarity with its picture ---

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


# --- What each sentence of a text does for its similarity with the picture ---

EXACT = 6
"""Up to so many units Shapley values are exact: 64 texts at most."""


@dataclass(frozen=True)
class Contribution(Plottable):
    """The contributions of a text's units to its similarity with a picture, all [n], in cosine.

    `spans` are the units' characters in `text`. With f(S) the similarity of the text of the units
    S, in the order of the text, and f(none) that of the empty text:

    - `leave_one_out` is f(all) - f(all but this): nothing for what another unit says as well;
    - `add_one` is f(this) - f(none): all for what every unit says;
    - `shapley` is the mean gain when the units come in random order: the one division of
      f(all) - f(none) that is symmetric, linear and gives nothing for nothing (Shapley 1953).
      `errors` are its standard errors, 0 where `exact`.

    `curve` [n + 1] is f of none, of the first, of the first two ... units. `unread` counts the
    units wholly behind the model's context, which are no part of all this; `cut` says that of the
    last unit only the beginning is read. `texts_run` counts the texts that were encoded.
    """

    model: str
    text: str
    image: np.ndarray
    units: Units
    leave_one_out: np.ndarray
    add_one: np.ndarray
    shapley: np.ndarray
    errors: np.ndarray
    exact: bool
    curve: np.ndarray
    texts_run: int

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        return self.units.spans

    @property
    def unread(self) -> int:
        return self.units.unread

    @property
    def cut(self) -> bool:
        return self.units.cut

    @property
    def similarity(self) -> float:
        """f(all): the similarity with all that the model reads."""
        return float(self.curve[-1])

    @property
    def empty_similarity(self) -> float:
        """f(none): the similarity with the empty text, start and end token only."""
        return float(self.curve[0])

    @property
    def rising(self) -> float:
        """The share of the steps from the first unit on that raise the similarity; NaN for none."""
        steps = np.diff(self.curve[1:])
        return float((steps > 0).mean()) if len(steps) else math.nan

    def table(self):
        """A DataFrame, a row a unit: text, leave one out, add one, Shapley, error, similarity."""
        import pandas as pd

        return pd.DataFrame({
            "unit": self.units.texts,
            "leave one out": self.leave_one_out,
            "add one": self.add_one,
            "Shapley": self.shapley,
            "standard error": self.errors,
            "similarity so far": self.curve[1:],
        })  # fmt: skip


@overload
def contributions(
    clip: Clip,
    images: Picture,
    texts: str,
    units: str = ...,
    permutations: int = ...,
    seed: int = ...,
) -> Contribution: ...
@overload
def contributions(
    clip: Clip,
    images: Picture | Images,
    texts: Sequence[str],
    units: str = ...,
    permutations: int = ...,
    seed: int = ...,
) -> list[Contribution]: ...
def contributions(
    clip: Clip,
    images: Picture | Images,
    texts: str | Sequence[str],
    units: str = "sentences",
    permutations: int = 64,
    seed: int = 0,
) -> Contribution | list[Contribution]:
    """What each sentence adds to the similarity: one Contribution for a text, a list for a list.

    `units` are "sentences" or "subcaptions" (LoTLIP's). A text of some of them is joined in the
    order of the text, by spaces or, as LoTLIP does, by full stops.

    Shapley values are exact for up to 6 units and wherever that takes no more texts than sampling.
    Else they are means over `permutations` random orders, half of them the other half reversed
    (antithetic sampling; Mitchell et al., JMLR 2022), and each order's gains sum to
    f(all) - f(none), so the values do too.

    Raises LabError for other units, a text without any, fewer than 4 or an odd number of
    permutations, and as `as_pairs` does.
    """
    SEED.check("The seed", seed)
    if permutations not in Numbers(at_least=4, at_most=10**6, whole=True) or permutations % 2:
        raise LabError(
            f"expected an even number of permutations from 4 to 1,000,000, got {permutations}."
        )
    pairs = as_pairs(clip, images, texts)
    read = [units_of(clip, text, units) for text in pairs.texts]
    rng = np.random.default_rng(seed)
    orders = [_orders(len(one), permutations, rng) for one in read]
    wanted = [_wanted(len(one), order) for one, order in zip(read, orders, strict=True)]
    values = similarities(pairs, read, wanted)
    found = [
        _contribution(clip.name, text, image, *one)
        for text, image, *one in zip(
            pairs.texts, pairs.shown_BSS3, read, orders, values, strict=True
        )
    ]
    return found[0] if isinstance(texts, str) and len(found) == 1 else found


def _contribution(
    model: str,
    text: str,
    image: np.ndarray,
    units: Units,
    orders_Pn: np.ndarray | None,
    value: dict[Subset, float],
) -> Contribution:
    everything = frozenset(range(len(units)))
    if orders_Pn is None:
        shapley, errors = exact_shapley(len(units), value), np.zeros(len(units))
    else:
        shapley, errors = sampled_shapley(orders_Pn, value)
    return Contribution(
        model=model,
        text=text,
        image=image,
        units=units,
        leave_one_out=np.array([value[everything] - value[everything - {i}] for i in everything]),
        add_one=np.array([value[frozenset({i})] - value[frozenset()] for i in everything]),
        shapley=shapley,
        errors=errors,
        exact=orders_Pn is None,
        curve=np.array([value[frozenset(range(k))] for k in range(len(units) + 1)]),
        texts_run=len(value),
    )


def exact_shapley(n: int, value: dict[Subset, float]) -> np.ndarray:
    """Shapley values [n] of a function of all 2^n subsets of n players (Shapley 1953).

    >>> both = {frozenset(): 0, frozenset({0}): 0, frozenset({1}): 2, frozenset({0, 1}): 6}
    >>> exact_shapley(2, both)
    array([2., 4.])
    """
    found_n = np.zeros(n)
    for subset in _subsets(n):
        weight = 1 / (n * math.comb(n - 1, len(subset))) if len(subset) < n else 0
        for player in set(range(n)) - subset:
            found_n[player] += weight * (value[subset | {player}] - value[subset])
    return found_n


def sampled_shapley(
    orders_Pn: np.ndarray, value: dict[Subset, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean gains [n] over orders of the players, and their standard errors [n].

    The second half of the orders are the first, reversed. Such a pair is one draw: its two gains
    go together.
    """
    gains_Pn = np.empty(orders_Pn.shape)
    for gains_n, order_n in zip(gains_Pn, orders_Pn.tolist(), strict=True):
        before = frozenset()
        for player in order_n:
            gains_n[player] = value[before | {player}] - value[before]
            before |= {player}
    draws_n = gains_Pn.reshape(2, -1, orders_Pn.shape[1]).mean(axis=0)
    return draws_n.mean(axis=0), draws_n.std(axis=0, ddof=1) / math.sqrt(len(draws_n))


def _orders(n: int, permutations: int, rng: np.random.Generator) -> np.ndarray | None:
    """Random orders [P, n], the second half the first reversed; None where all subsets are run."""
    if n <= EXACT or 2**n <= permutations * (n - 1):
        return None
    half = rng.permuted(np.tile(np.arange(n), (permutations // 2, 1)), axis=1)
    return np.concatenate([half, half[:, ::-1]])


def _wanted(n: int, orders_Pn: np.ndarray | None) -> set[Subset]:
    """The subsets of the units whose similarity is asked for."""
    if orders_Pn is None:
        return set(_subsets(n))
    everything = frozenset(range(n))
    wanted = {everything - {i} for i in everything} | {frozenset({i}) for i in everything}
    wanted |= {frozenset(range(k)) for k in range(n + 1)}
    return wanted | {frozenset(order[:k]) for order in orders_Pn.tolist() for k in range(n + 1)}


def _subsets(n: int) -> list[Subset]:
    sizes = (combinations(range(n), size) for size in range(n + 1))
    return [frozenset(subset) for subset in chain.from_iterable(sizes)]


# --- Does the similarity rise as sentences are added? It should; often it does not ---


@dataclass(frozen=True)
class RisingCurve(Plottable):
    """Similarity of pictures with the first k units of their texts, for many pairs.

    `curves` [N] holds for each pair the similarity after 0, 1, 2 ... units, the empty text first.
    `steps` is the share of the steps from the first unit on that raise it, `always` the share of
    the pairs in which all do; intervals are bootstrapped over pairs, and chance knows no direction:
    one half of the steps. `gains` [k] is the mean similarity after k units (from 1) less that after
    the first, over the pairs that have k units (`n` of each interval), so that no two points are
    compared over different texts. `unread` counts the units behind the context of all texts.
    """

    model: str
    units: str
    curves: tuple[np.ndarray, ...]
    steps: Interval
    always: Interval
    gains: tuple[Interval, ...]
    unread: int

    def __len__(self) -> int:
        return len(self.curves)

    def table(self):
        """A DataFrame, a row for each number of units: gain over the first, its interval, pairs."""
        import pandas as pd

        rows = [(k, g.value, g.low, g.high, g.n) for k, g in enumerate(self.gains, start=1)]
        return pd.DataFrame(rows, columns=["units", "gain", "low", "high", "pairs"])


def rising_curve(
    clip: Clip,
    images: Picture | Images,
    texts: str | Sequence[str],
    units: str = "sentences",
    rounds: int = 1000,
    seed: int = 0,
) -> RisingCurve:
    """The curve of the similarity as sentences are added in order, over many pairs.

    Pairs of which one unit only is read count in no step. Units behind the context are left out,
    as they would change nothing, and are counted.

    Raises LabError if no text has two units that are read, and as `units_of` and `as_pairs` do.
    """
    pairs = as_pairs(clip, images, texts)
    read = [units_of(clip, text, units) for text in pairs.texts]
    starts = [[frozenset(range(k)) for k in range(len(one) + 1)] for one in read]
    values = similarities(pairs, read, starts)
    curves = [
        np.array([value[s] for s in asked]) for asked, value in zip(starts, values, strict=True)
    ]
    rises = [np.diff(curve[1:]) > 0 for curve in curves]
    if not any(len(one) for one in rises):
        raise LabError(f"expected texts with at least two {units} that '{clip.name}' reads.")
    pair_of_step = np.repeat(np.arange(len(rises)), [len(one) for one in rises])
    gains = []
    for k in range(1, max(map(len, curves))):
        gained = np.array([curve[k] - curve[1] for curve in curves if len(curve) > k])
        gains.append(bootstrap_mean(gained, rounds=rounds, seed=seed))
    always = np.array([one.all() for one in rises if len(one)], dtype=float)
    return RisingCurve(
        model=clip.name,
        units=units,
        curves=tuple(curves),
        steps=bootstrap_mean(np.concatenate(rises).astype(float), pair_of_step, rounds, seed),
        always=bootstrap_mean(always, rounds=rounds, seed=seed),
        gains=tuple(gains),
        unread=sum(one.unread for one in read),
    )
