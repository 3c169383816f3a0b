"""What each sentence of a text does for its similarity with the picture.

n units (sentences or sub-captions) of a text, P permutations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import overload

import numpy as np

from longclip_lab.attribution.inputs import Picture, as_pairs
from longclip_lab.attribution.subtexts import Subset, Units, similarities, units_of
from longclip_lab.errors import SEED, LabError, Numbers
from longclip_lab.models import Clip
from longclip_lab.models.encoding import Images
from longclip_lab.plotting import Plottable

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
