"""Was a model trained on the pictures of a benchmark? What its card says, and what it does not.

A benchmark's protocol names the training sets that hold its pictures: "sharegpt4v" (the set and any
part of it), "coco/train2017" (that split of it), "sharegpt4v/all" (only the whole of it, not what
Long-CLIP trains on, which holds the first 1,000 rows out).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

State = Literal["yes", "unknown", "no"]
ORDER: tuple[State, ...] = ("yes", "unknown", "no")
WHOLE = "all"
DRAWN = "world"
"""Cards of models that were trained on the drawn world begin with it."""


@dataclass(frozen=True)
class Contamination:
    """Whether a model has seen a benchmark's pictures, and how one knows."""

    state: State
    why: str

    def to_dict(self) -> dict[str, str]:
        """JSON-able."""
        return asdict(self)


def contamination(card: Mapping[str, Any], training_sets: Sequence[str]) -> Contamination | None:
    """What a model's card says of training sets that hold a benchmark's pictures.

    None if there are no such sets. "yes": the card names one of them. "no": it names everything the
    model was trained on, and none of them is among it; weights that were never trained; models of
    the drawn world. "unknown": all else, and what the card does say.

    >>> contamination({"trained_on": "WIT, then ShareGPT4V"}, ["sharegpt4v"]).state
    'yes'
    >>> contamination({"trained_on": "openai"}, ["sharegpt4v"])
    Contamination(state='unknown', why='the card says of its training data only: openai')
    """
    found = [_of_one(card, name) for name in training_sets]
    return min(found, key=lambda one: ORDER.index(one.state), default=None)


def _of_one(card: Mapping[str, Any], wanted: str) -> Contamination:
    verdicts = [_of_words(card, wanted), *_of_runs(card, wanted)]
    return min(verdicts, key=lambda one: ORDER.index(one.state))


def _of_words(card: Mapping[str, Any], wanted: str) -> Contamination:
    """From the sentence on what the starting weights were trained on."""
    if "trained_on" not in card:
        return Contamination("unknown", "the card does not say what the model was trained on")
    said = card["trained_on"]
    if said is None:
        return Contamination("no", "the weights that it started from were random")
    base, _, part = wanted.partition("/")
    if _names(said, base):
        if not part or (part != WHOLE and _names(said, part)):
            return Contamination("yes", f"the card says that it was trained on: {said}")
        return Contamination("unknown", f"trained on {base}; the card says no more than: {said}")
    if str(said).startswith(DRAWN):
        return Contamination("no", "trained on the drawn world")
    return Contamination("unknown", f"the card says of its training data only: {said}")


def _of_runs(card: Mapping[str, Any], wanted: str) -> Iterable[Contamination]:
    """From the records that training leaves in the card."""
    base, _, part = wanted.partition("/")
    for run in card.get("fine_tuned") or ():
        data = run.get("data", {})
        dataset, split = str(data.get("dataset", "unnamed data")), data.get("split")
        trained = f"fine-tuned on {dataset}" + (f", {split}" if split else "")
        if not _names(dataset, base):
            yield Contamination("no", trained)
        elif not part or split == part:
            yield Contamination("yes", trained)
        elif split is None:
            yield Contamination("unknown", f"{trained}; which part of it is not recorded")
        else:
            yield Contamination("no", trained)


def _names(said: Any, name: str) -> bool:
    """Whether a sentence has a name in it, however it is spelt: ShareGPT-4V, MS COCO, coco2017.

    Not inside of other words: "dci" is not in "red circle".
    """
    letters = r"[^a-z0-9]*".join(re.escape(one) for one in name.lower() if one.isalnum())
    return bool(re.search(rf"(?<![a-z])(?:ms)?{letters}(?![a-z])", str(said).lower()))
