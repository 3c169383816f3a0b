"""An arm: one way to make a model, as data, with a name that its content gives it.

Experiments share arms: what LoTLIP's Table 2 trains, its Tables 3 and 7 need again. An arm's
folder is the hash of all that decides its numbers, so it is trained once, whoever asks first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from longclip_lab.constants import OLD_OBJECTIVES, RENAMED
from longclip_lab.errors import LabError
from longclip_lab.evaluation.late_interaction import TOKEN_WISE
from longclip_lab.files import json_hash
from longclip_lab.training.checkpoints import DISPLAY
from longclip_lab.training.recipe import LENGTH_BUCKETS, Recipe
from longclip_lab.training.recipes import lit

ARM_VERSION = 1
"""Part of every hash. Raise it when a change of the library changes what training or evaluation
gives; `tests/reproduction/test_arms.py` notices such a change."""

LATER: Mapping[str, Any] = {
    "sharding": "none",
    "pca_scope": None,
    "num_streams": 8,
    "shuffle_buffer": 1024,
    "resample": False,
    "max_bad_fraction": 0.05,
}
"""What recipes can say since the arms of the ledger were trained, and how it was before: left out
of the hash where it is so."""

DIGITS = 16
NAME = "arm"


@dataclass(frozen=True)
class Trunk:
    """The tower of a bundled CLIP, or another image tower by name, locked; and the size of a new
    BERT beside it."""

    recipe: Recipe
    image_tower: str = "tiny"
    width: int = 64
    layers: int = 2

    def identity(self) -> dict[str, Any]:
        """Everything that decides its weights, JSON-able."""
        return _content({"version": ARM_VERSION, **asdict(self)})

    def key(self) -> str:
        """The name of its folder: the hash of `identity`."""
        return json_hash(self.identity())


def _recipe(**changes: Any) -> Recipe:
    return replace(
        lit("tiny"),
        **{
            "name": NAME,
            "image_tower": None,
            "text_tower": None,
            "pairs": 6144,
            "steps": 480,
            "warmup_steps": 20,
            "learning_rate": 2e-3,
            "tensorboard": False,
            **changes,
        },
    )


TRUNKS: Mapping[str, Trunk] = {
    "trunk": Trunk(_recipe()),
    "rich trunk": Trunk(_recipe(steps=1440, learning_rate=4e-3), image_tower="tiny-scenes"),
    "micro-trunk": Trunk(_recipe(pairs=16, steps=2, warmup_steps=1, batch_size=8)),
}
"""By the name that `Arm.start` gives. The BERTs have half the width of `world_bert` and two layers
of its three: a run of an arm must take half a minute."""


@dataclass(frozen=True)
class Arm:
    """How a model is made and what it is asked; everything but the seed.

    Without `start` the recipe builds its own new model from two towers. With it, a bundled model
    is taken and, with `stretch`, its positions are stretched; or one of `TRUNKS`, which is given
    the recipe's corner tokens and token limit. Without a recipe nothing is trained. `suite` names
    the tests (`reproduction.runs`).

    Raises LabError for an arm that starts from nothing.
    """

    suite: str
    recipe: Recipe | None = None
    start: str | None = None
    stretch: str | None = None
    keep: int = 20

    def __post_init__(self) -> None:
        if self.recipe is None and self.start is None:
            raise LabError("An arm needs a recipe, or a model to start from.")

    def change(self, **fields: Any) -> Arm:
        """The same arm with some fields of its recipe changed."""
        if self.recipe is None:
            raise LabError("This arm is not trained: it has no recipe to change.")
        return replace(self, recipe=replace(self.recipe, **fields))

    def seeded(self, seed: int) -> Recipe | None:
        """The recipe of one seed, under one name, so that equal arms are one run."""
        if self.recipe is None:
            return None
        return replace(self.recipe, name=NAME, seed=seed, tensorboard=False)

    def identity(self, seed: int) -> dict[str, Any]:
        """Everything that decides the numbers, JSON-able. What an arm is called is no part of it,
        and neither is the seed where nothing is drawn.

        >>> arm = Arm("stretching", start="tiny", stretch="kps")
        >>> arm.identity(3)["stretch"], arm.identity(3)["seed"]
        ('kps', None)
        """
        drawn = self.recipe is not None or self.stretch == "random"
        facts: dict[str, Any] = {"version": ARM_VERSION, **asdict(self)}
        facts["seed"] = seed if drawn else None
        if self.recipe is not None:
            facts["recipe"] = asdict(self.seeded(seed))
            if self.recipe.objective in TOKEN_WISE:
                facts["asked"] = "late interaction"  # not by pooled features, as it was before
        if self.start in TRUNKS:
            facts["start"] = TRUNKS[self.start].identity()
        return _content(facts)

    def key(self, seed: int) -> str:
        """The name of the arm's folder: the hash of `identity`."""
        return json_hash(self.identity(seed))

    def steps(self) -> int:
        """Optimizer steps of its training, 0 if it is not trained."""
        if self.recipe is None:
            return 0
        return self.recipe.total_steps(self.recipe.pairs)


def _content(facts: dict[str, Any]) -> dict[str, Any]:
    """Without what a recipe only shows or what is as it always was, and through JSON, as it is read
    back."""
    if facts["recipe"] is not None:
        # How texts are packed changes nothing but the time: an arm of any number is the same arm.
        fields = (facts["recipe"] | {"length_buckets": LENGTH_BUCKETS}).items()
        facts["recipe"] = {
            name: value
            for name, value in fields
            if name not in DISPLAY and not (name in LATER and value == LATER[name])
        }
        # Arms keep the names that fields and objectives had when they were trained.
        before = {new: name for name, new in RENAMED.items()}
        facts["recipe"] = {before.get(n, n): value for n, value in facts["recipe"].items()}
        old = {new: old for old, new in OLD_OBJECTIVES.items()}
        objective = facts["recipe"]["objective"]
        facts["recipe"]["objective"] = old.get(objective, objective)
    return json.loads(json.dumps(facts))
