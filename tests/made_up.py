"""Made-up results, for tests of what is drawn and said of results.

Real dataclasses with random hits that follow given shares, so that every claim can be turned round.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from longclip_lab.evaluation import Interval
from longclip_lab.probing import (
    CounterfactualProbe,
    EffectiveLength,
    TruncationCurve,
    default_cuts,
    lengths_of,
    wilson,
)
from longclip_lab.reproduction.results import ModelRow, QuickstartResults

FINAL = {  # R@1 with all tokens, and the number of tokens after which half of it is there
    "as written": (0.70, 11),
    "positions re-randomised": (0.69, 11),
    "details only": (0.10, 40),
    "summary last": (0.10, 40),
}
ACCURACY = {"large": 0.88, "medium": 0.66, "small": 0.51}


@lru_cache
def curve(model: str = "tiny", context: int = 77, pairs: int = 400, **final) -> TruncationCurve:
    """A curve whose variants rise to given (score, half) along a logistic of log tokens."""
    rng = np.random.default_rng(0)
    cuts = default_cuts(context)
    luck_N = rng.permutation((np.arange(pairs) + 0.5) / pairs)
    hits = {}
    for variant, (score, half) in {**FINAL, **final}.items():
        grown = 1 / (1 + (half / np.array(cuts)) ** 4)
        hits[variant] = (luck_N < (score * grown / grown[-1])[:, None]).astype(float)
    return TruncationCurve(
        model=model,
        cuts=cuts,
        hits=hits,
        truncated=dict.fromkeys(hits, pairs if context < 248 else 0),
        unchanged=dict.fromkeys(hits, 0),
        source={"dataset": "made up"},
    )


@lru_cache
def effective(model: str = "tiny", context: int = 77, **final) -> EffectiveLength:
    made = curve(model, context, **final)
    return EffectiveLength(made, {v: lengths_of(made, v) for v in made.hits}, least_gain=0.001)


@lru_cache
def probe(model: str = "tiny", context: int = 77, n: int = 1200, **accuracy) -> CounterfactualProbe:
    """A probe with given accuracy by size; words behind the context are ties."""
    rng = np.random.default_rng(1)
    size = rng.choice(list(ACCURACY), n, p=[0.25, 0.35, 0.4])
    position = rng.integers(2, 170, n)
    share = np.array([{**ACCURACY, **accuracy}[one] for one in size])
    luck = rng.permutation((np.arange(n) + 0.5) / n)
    unread = position > context - 2
    return CounterfactualProbe(
        model=model,
        margins=np.where(unread, 0.0, np.where(luck < share, 0.1, -0.1)),
        unread=unread,
        attribute=rng.choice(["kind", "colour", "pattern", "orientation", "place", "relation"], n),
        size=size,
        position=position,
        source={"dataset": "made up"},
    )


def score(share: float, n: int = 1000) -> Interval:
    return wilson(share * n, n)


def row(
    label: str, stage: str, long: float, short: float, variance_kept: float | None = None, **recipe
) -> ModelRow:
    """A model with these R@1, a little apart in the two directions."""
    return ModelRow(
        label,
        stage,
        long_i2t=score(long + 0.004),
        long_t2i=score(long - 0.004),
        short_i2t=score(short + 0.003),
        short_t2i=score(short - 0.003),
        kind=score(short - 0.3),
        colour=score(min(0.98, short + 0.05)),
        truncated=1000 if stage == "start" else 0,
        seconds=31.5 if recipe else 0.0,
        variance_kept=variance_kept,
        recipe=recipe,
    )


SCORES = {  # label: R@1 on long and on short captions
    "not stretched": (0.685, 0.758),
    "linear": (0.573, 0.650),
    "KPS": (0.726, 0.758),
    "keep + random": (0.721, 0.755),
    "long only": (0.858, 0.640),
    "long + 0.1 short": (0.842, 0.712),
    "long + 1.0 short": (0.802, 0.754),
    "long + short, PCM": (0.800, 0.750),
}
RECIPES = {
    "long only": {"objective": "long", "short_weight": 1.0},
    "long + 0.1 short": {"objective": "mixed", "short_weight": 0.1},
    "long + 1.0 short": {"objective": "mixed", "short_weight": 1.0},
    "long + short, PCM": {"objective": "longclip", "short_weight": 1.0, "k": 32},
}


def rows(variance_kept: float = 0.9995, **changed: tuple[float, float]) -> list[ModelRow]:
    """The quickstart's models; `changed` by label, with "_" for what no argument can be named."""
    made = []
    for label, shares in SCORES.items():
        shares = changed.get("".join(c if c.isalnum() else "_" for c in label), shares)
        recipe = RECIPES.get(label, {})
        stage = "start" if label == "not stretched" else "fine-tuned" if recipe else "stretched"
        kept = variance_kept if recipe.get("objective") == "longclip" else None
        made.append(row(label, stage, *shares, kept, **recipe))
    return made


def results(**changed: tuple[float, float]) -> QuickstartResults:
    best = "long + 1.0 short"
    return QuickstartResults(
        rows=rows(**changed),
        before=effective(),
        after=effective(best, 248, **{"details only": (0.55, 60), "summary last": (0.75, 60)}),
        probes={"tiny": probe(), best: probe(best, 248, large=0.9, medium=0.75, small=0.56)},
        best=best,
        facts={
            "command": "longclip-lab quickstart",
            "seed": 0,
            "seconds": 243.7,
            "commit": "0123abc",
            "threads": 2,
            "pairs": {"probed": 400, "training": 4000},
            "questions": 1200,
        },
    )
